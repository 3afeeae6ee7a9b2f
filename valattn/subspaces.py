"""How the rows of two valuations lie to each other, at one layer or averaged over layers.

λ·V_Q·V_Kᵀ stays what it is when rows change their order or their sign, and nearly so when they are mixed by a rotation, so that
beside the cosines of like-named rows stand those of the best matched rows, signs aside, and the angles between the spaces that
rows span. Plain arrays in, plain arrays out.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import subspace_angles
from scipy.optimize import linear_sum_assignment

from emoprobe.controls import turned_at_random

Floats: TypeAlias = NDArray[np.float64]


def row_cosines(a: Floats, b: Floats) -> Floats:
    """Return the cosine of each row of a (m, d) with the same row of b; NaN for a row that is 0."""
    cosines: Floats = np.diagonal(_cosines(a, b)).copy()
    return cosines


def matched_cosines(a: Floats, b: Floats) -> Floats:
    """Return |cosine| of each row of a (m, d) with the row of b (m, d) that it is matched to, no row twice (Hungarian)."""
    size = np.abs(_cosines(a, b))
    rows, columns = linear_sum_assignment(np.nan_to_num(size), maximize=True)
    matched: Floats = size[rows, columns]
    return matched


def principal_angles(a: Floats, b: Floats) -> Floats:
    """Return the m angles in degrees between the spaces that rows (m, d) span, smallest first; NaN where they span less."""
    if not _spans(np.stack([a, b])).all():
        return np.full(len(a), np.nan)
    angles: Floats = np.rad2deg(subspace_angles(a.T, b.T))[::-1]
    return angles


def overlaps(a: Floats, b: Floats) -> Floats:
    """Return the mean squared cosine of the principal angles at each layer of rows (layers, m, d).

    It is 1 for the same space, m/d on average for spaces drawn at random, and NaN where rows span fewer dimensions than m.
    """
    bases = [np.linalg.qr(rows.swapaxes(-1, -2))[0] for rows in (a, b)]
    shared = ((bases[0].swapaxes(-1, -2) @ bases[1]) ** 2).sum((-1, -2)) / a.shape[-2]
    return np.where(_spans(a) & _spans(b), shared, np.nan)


def overlaps_by_chance(a: Floats, b: Floats, draws: int, seed: int) -> Floats:
    """Return overlaps (draws, layers) with b of rows a (layers, m, d) turned at random, by one rotation for all layers.

    What makes layers alike within a is kept, so that a mean over layers varies as it does by chance.
    """
    turned = (turned_at_random(torch.as_tensor(a), seed + draw).numpy() for draw in range(draws))
    return np.stack([overlaps(rows, b) for rows in turned])


def _spans(rows: Floats) -> NDArray[np.bool_]:
    """Say whether m rows (…, m, d) span m dimensions."""
    return np.asarray(np.linalg.matrix_rank(rows) == rows.shape[-2])


def _cosines(a: Floats, b: Floats) -> Floats:
    with np.errstate(invalid="ignore"):
        unit_a, unit_b = (rows / np.linalg.norm(rows, axis=-1, keepdims=True) for rows in (a, b))
    cosines: Floats = unit_a @ unit_b.T
    return cosines
