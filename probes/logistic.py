"""Multinomial logistic regression by Newton's method, preconditioned with the second moments and started from LDA.

Features of a language model vary a thousand times more along some directions than along others, and general solvers then need
thousands of passes over the texts. Here each Newton step is solved by conjugate gradients in coordinates in which the features
are white, where a few passes are enough; fits of several classifications of the same texts share these coordinates. The
objective is scikit-learn's `LogisticRegression`:

    C · Σ cross-entropy + ½ Σ ‖w‖²    (offsets free; for two classes, w is the difference of the two rows)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from emoprobe.errors import InputError
from emoprobe.probes.moments import Moments, Pooled

AT_ONCE = 2**18
"""Numbers of features that are worked on at once: they stay in the cache while they are used twice."""
NEWTON_STEPS = 100
CG_STEPS = 100
CG_TOLERANCE = 0.3
"""Preconditioned residual, relative to the gradient, at which a Newton step is exact enough on the way."""
LAST_CG_TOLERANCE = 0.03
"""The same of the step that decides whether there is anything left to gain."""
ARMIJO = 1e-4


class LogisticFit(NamedTuple):
    """Hold logits (classes, d_model) and (classes,), centred over the classes, and how they were found.

    `objective` is scikit-learn's, divided by C · texts; `gain` what the last Newton step promised to take off it, which as a
    rule is far more than what is left; `passes` how often the texts were gone through.
    """

    weights: Tensor
    offsets: Tensor
    objective: float
    gain: float
    passes: int


class PrincipalAxes(NamedTuple):
    """Hold the mean (d_model,) of features, and their variances (d_model,) along axes, the columns of (d_model, d_model).

    Features that lie along their axes already, about a mean of 0, have None for axes.
    """

    mean: Tensor
    variances: Tensor
    axes: Tensor | None


def principal_axes(features: Tensor) -> PrincipalAxes:
    """Return the principal axes of features (texts, d_model), in float64 and where these lie."""
    moments = Moments.zeros(1, features.shape[1], device=features.device)
    moments.add(features[:, None])
    return axes_of(moments.pooled())


def logistic(
    features: Tensor,
    classes: Tensor,
    C: float = 1.0,
    *,
    tolerance: float = 1e-5,
    axes: PrincipalAxes | None = None,
) -> LogisticFit:
    """Fit the logits of classes (texts,), numbered from 0, to features (texts, d_model) of any float dtype.

    Computes wherever the features lie, some texts at a time, so that no copy of them is made: products within these in the
    features' dtype (at least float32) about their mean, all else in float64. Stops after a Newton step, solved to
    `LAST_CG_TOLERANCE`, that promises to lower the objective by no more than a share `tolerance`. `axes` are the features'
    principal axes, where they are known already: they do not depend on the classes.

    Raises `InputError` for shapes that do not fit, fewer than two classes, a class without texts and C that is not positive.
    """
    if features.dim() != 2 or classes.shape != features.shape[:1] or not len(features):
        raise InputError(
            f"features {tuple(features.shape)} and classes {tuple(classes.shape)}: give (texts, d_model) and (texts,)"
        )
    there = sorted(set(classes.tolist()))
    if len(there) < 2 or there != list(range(len(there))):
        raise InputError(f"classes {there}: give two or more, numbered from 0, each with texts")
    if not C > 0:
        raise InputError(f"C={C}: give a positive number")
    axes = principal_axes(features) if axes is None else axes
    if axes.mean.shape != features.shape[1:]:
        raise InputError(f"principal axes of {len(axes.mean)} features are not those of {features.shape[1]}")
    return _Problem(features, classes, axes, C).solved(tolerance)


def axes_of(pooled: Pooled) -> PrincipalAxes:
    """Return the principal axes of features whose moments are known, at the first layer that these have."""
    d = pooled.d_model
    variances, axes = torch.linalg.eigh(pooled.total[0, :, :d] / pooled.count.sum())
    return PrincipalAxes(pooled.grand_mean[0, :d], variances.clamp(min=0), axes)


class _Problem:
    """The mean cross-entropy plus penalty, for weights on features about their mean, and its derivatives.

    A point is (classes, d_model + 1), the offset in the last column. About the mean, offsets and weights hardly interact.
    """

    def __init__(self, features: Tensor, classes: Tensor, axes: PrincipalAxes, C: float) -> None:
        self.features, self.classes = features, classes
        self.dtype = torch.promote_types(features.dtype, torch.float32)
        self.mean, self.variances, self.axes = axes
        self.prior = classes.bincount().to(self.mean) / len(features)
        self.count = len(self.prior)
        # For two classes scikit-learn has one row, the difference, whose square is twice that of two opposite rows.
        self.penalty = (2.0 if self.count == 2 else 1.0) / (C * len(features))
        self.probabilities = self.mean.new_empty(self.count, len(features))
        self.passes = 0

    def solved(self, tolerance: float) -> LogisticFit:
        point, objective, gradient = self._start()
        rounding = 10 * torch.finfo(self.dtype).eps
        gain, accuracy = float("inf"), CG_TOLERANCE
        for _ in range(NEWTON_STEPS):
            step = self._newton_step(gradient, accuracy)
            descent = float((gradient * step).sum())
            gain = -descent / 2
            size = 1.0
            while size > 1e-10:
                moved = point + size * step
                value, slope = self._value(moved)
                if value <= objective * (1 + rounding) + ARMIJO * size * descent:
                    break
                size /= 2
            else:  # nothing but rounding is left to gain
                break
            point, objective, gradient = moved, value, slope
            if gain <= tolerance * objective:
                if accuracy == LAST_CG_TOLERANCE:
                    break
                accuracy = LAST_CG_TOLERANCE  # a rough step may promise far less than is left
        weights, offsets = point[:, :-1], point[:, -1] - point[:, :-1] @ self.mean
        return LogisticFit(weights - weights.mean(0), offsets - offsets.mean(), objective, gain, self.passes)

    def _start(self) -> tuple[Tensor, float, Tensor]:
        """Return the better of zero weights and linear discriminants, as far as the penalty lets these grow."""
        nothing = self.mean.new_zeros(self.count, len(self.mean) + 1)
        nothing[:, -1] = self.prior.log()
        apart = self._class_means()  # about the mean of all
        discriminants = nothing.clone()
        ridge = self.count * self.penalty
        discriminants[:, :-1] = self._divided(apart, self.variances + ridge)
        discriminants[:, -1] -= (discriminants[:, :-1] * apart).sum(1) / 2
        candidates = []
        for point in (nothing, discriminants):
            value, gradient = self._value(point)
            candidates.append((value, gradient, point, self.probabilities))
        value, gradient, point, self.probabilities = min(candidates, key=lambda candidate: candidate[0])
        return point, value, gradient

    def _class_means(self) -> Tensor:
        total = self.mean.new_zeros(self.count, len(self.mean))
        for rows, x in self._chunks():
            total.index_add_(0, self.classes[rows], x.to(total))
        return total / (self.prior * len(self.features))[:, None]

    def _value(self, point: Tensor) -> tuple[float, Tensor]:
        """Return objective and gradient, and keep the probabilities (classes, texts) for `_curvature`."""
        gradient = torch.zeros_like(point)
        loss = 0.0
        self.probabilities = torch.empty_like(self.probabilities)  # `_start` keeps those of two points
        for rows, x in self._chunks():
            logs = _along(point, x).double().log_softmax(0)
            own = self.classes[None, rows]
            loss -= float(logs.gather(0, own).sum())
            p = self.probabilities[:, rows] = logs.exp()
            _accumulate(gradient, p.scatter_add(0, own, p.new_full(own.shape, -1.0)), x)
        objective = loss / len(self.features) + float(self.penalty * (point[:, :-1] ** 2).sum() / 2)
        return objective, self._completed(gradient, point)

    def _curvature(self, step: Tensor) -> Tensor:
        """Return the product of the Hessian with a step."""
        product = torch.zeros_like(step)
        for rows, x in self._chunks():
            p = self.probabilities[:, rows]
            along = p * _along(step, x)
            _accumulate(product, along - p * along.sum(0), x)
        return self._completed(product, step)

    def _completed(self, total: Tensor, point: Tensor) -> Tensor:
        """Make a sum over texts the mean over texts, and add the penalty's part."""
        total /= len(self.features)
        total[:, :-1] += self.penalty * point[:, :-1]
        return total

    def _newton_step(self, gradient: Tensor, accuracy: float) -> Tensor:
        """Solve Hessian · step = -gradient by preconditioned conjugate gradients."""
        precondition = self._preconditioner()
        residual, step = -gradient, torch.zeros_like(gradient)
        solved = precondition(residual)
        direction, along = solved, (residual * solved).sum()
        target = accuracy**2 * along
        for _ in range(CG_STEPS):
            product = self._curvature(direction)
            curvature = (direction * product).sum()
            if not curvature > 0:
                break
            size = along / curvature
            step, residual = step + size * direction, residual - size * product
            solved = precondition(residual)
            previous, along = along, (residual * solved).sum()
            if along <= target:
                break
            direction = solved + along / previous * direction
        return step

    def _preconditioner(self) -> Callable[[Tensor], Tensor]:
        """Return the inverse of the Hessian as if the probabilities had nothing to do with the features.

        It is then a Kronecker product: the mean over texts of diag(p) - ppᵀ, by the covariance of the features.
        """
        p = self.probabilities
        mixing, rotation = torch.linalg.eigh(p.mean(1).diag() - p @ p.T / p.shape[1])
        mixing = mixing.clamp(min=0)[:, None]
        least = torch.finfo(p.dtype).tiny
        weight_scale = (mixing * self.variances + self.penalty).clamp(min=least)
        # Adding the same to all offsets changes nothing, and no gradient points there.
        offset_scale = torch.where(mixing > 1e-12, mixing, 1.0)

        def precondition(gradient: Tensor) -> Tensor:
            turned = rotation.T @ gradient
            weights = self._divided(turned[:, :-1], weight_scale)
            solved: Tensor = rotation @ torch.cat([weights, turned[:, -1:] / offset_scale], 1)
            return solved

        return precondition

    def _divided(self, weights: Tensor, scale: Tensor) -> Tensor:
        """Divide weights by a scale along the principal axes."""
        if self.axes is None:
            return weights / scale
        return (weights @ self.axes / scale) @ self.axes.T

    def _chunks(self) -> Iterator[tuple[slice, Tensor]]:
        self.passes += 1
        mean = self.mean.to(self.dtype)
        step = max(1, (AT_ONCE if mean.device.type == "cpu" else 64 * AT_ONCE) // len(mean))
        for first in range(0, len(self.features), step):
            rows = slice(first, first + step)
            x = self.features[rows]
            yield rows, x if self.axes is None else x - mean


def _along(point: Tensor, x: Tensor) -> Tensor:
    """Return weights times features plus offsets, (classes, texts)."""
    return (point[:, :-1].to(x) @ x.T).add_(point[:, -1:].to(x))


def _accumulate(total: Tensor, by_text: Tensor, x: Tensor) -> None:
    total[:, :-1] += by_text.to(x) @ x
    total[:, -1] += by_text.sum(1)
