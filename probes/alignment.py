"""Centred kernel alignment, unbiased: how alike two sets of vectors of the same things lie, whatever their bases.

A kernel holds the products of n vectors with each other; two are compared by the Hilbert-Schmidt independence criterion over
what each has of it with itself (Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited"). The plain
estimator is near 1 for noise of more dimensions than vectors; the unbiased one (Song et al. 2012, "Feature Selection via
Dependence Maximization", eq. 5) leaves each vector's product with itself out, and is 0 on average for noise. It does not change
when a vector is added to all. Plain arrays in, plain arrays out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from emoprobe.probes.estimators import Floats

LEAST = 4
"""Vectors that the unbiased estimator needs."""


class Kernels(NamedTuple):
    """Hold kernels without their diagonals: flat (layers, n²), their row sums (layers, n), and the sums of these (layers,)."""

    flat: Floats
    rows: Floats
    total: Floats


def kernels(products: Floats) -> Kernels:
    """Take kernels (layers, n, n) apart for `criterion`."""
    hollow = products.copy()
    np.einsum("lii->li", hollow)[:] = 0
    rows = hollow.sum(-1)
    return Kernels(hollow.reshape(len(hollow), -1), rows, rows.sum(-1))


def permuted(given: Kernels, order: np.ndarray[Any, Any]) -> Kernels:
    """Return the kernels of the same vectors in another order (n,)."""
    n = given.rows.shape[1]
    flat = given.flat.reshape(-1, n, n)[:, order[:, None], order].reshape(len(given.flat), -1)
    return Kernels(flat, given.rows[:, order], given.total)


def criterion(a: Kernels, b: Kernels) -> Floats:
    """Return the unbiased Hilbert-Schmidt independence criterion of each two kernels, (layers of a, layers of b)."""
    n = a.rows.shape[1]
    joint = a.flat @ b.flat.T - 2 / (n - 2) * a.rows @ b.rows.T
    result: Floats = (joint + np.outer(a.total, b.total) / ((n - 1) * (n - 2))) / (n * (n - 3))
    return result


def own_criterion(a: Kernels) -> Floats:
    """Return that of each kernel with itself, (layers,)."""
    each = (Kernels(a.flat[[i]], a.rows[[i]], a.total[[i]]) for i in range(len(a.flat)))
    return np.array([criterion(one, one)[0, 0] for one in each])


def aligned(joint: Floats, own_a: Floats, own_b: Floats) -> Floats:
    """Return criteria (layers of a, layers of b) over those of kernels with themselves; NaN where these are not above 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        own = np.sqrt(np.outer(np.where(own_a > 0, own_a, np.nan), np.where(own_b > 0, own_b, np.nan)))
        result: Floats = joint / own
    return result


def cka(a: Floats, b: Floats) -> Floats:
    """Return the unbiased centred kernel alignment of kernels (layers, n, n) with others, (layers of a, layers of b).

    It is 1 where two kernels are the same up to a factor and a shift of the vectors, and 0 on average where they have nothing
    to do with each other; single values may lie below 0. NaN where a kernel has no structure that stands out from noise.
    """
    x, y = kernels(a), kernels(b)
    return aligned(criterion(x, y), own_criterion(x), own_criterion(y))
