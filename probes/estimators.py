"""Linear read-outs from features: mean difference, ridge, logistic.

Each takes features (texts, d_model), targets (texts, concepts) and the number of each text's group, and gives one weight vector
and offset per concept, in the units of the features as they came. What scaling and choosing there is happens inside, on the
texts given, so that nothing of a held-out text is ever seen. This file knows nothing of models, layers or controls.

Ridge penalties are chosen across groups, since it is in other groups that a read-out has to hold. Over a wide range they often
make no difference to the read-out, but much to its direction: the lighter ones follow whatever the features hardly ever do. So
the heaviest penalty is taken that explains nearly as much as the best.

The mean difference of labels follows "Emotion Concepts and their Function in a Large Language Model" (Sofroniew et al.
2026, arXiv 2604.07729): the mean over a class's texts minus the mean of all class means.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from emoprobe.probes.closed_form import explained_by_folds, ridge
from emoprobe.probes.folds import Integers as Integers
from emoprobe.probes.folds import grouped_folds
from emoprobe.probes.logistic import PrincipalAxes, logistic
from emoprobe.probes.moments import Moments

Floats: TypeAlias = NDArray[np.float64]

PENALTIES = np.logspace(-1, 6, 15)
"""Ridge penalties to choose from, for standardised features."""
NEARLY = 0.99
"""Share of the variance explained at the best penalty that a heavier one has to explain too."""
INNER_FOLDS = 5
PRIOR_VARIANCE = 10.0
"""Variance of a logit under the prior of the logistic weights, whatever the width: C = PRIOR_VARIANCE / d_model."""
TOLERANCE = 1e-3
"""Share of the objective that the last step of a logistic regression may promise. What is left then is far less, see
`LAST_CG_TOLERANCE` there: no more than scikit-learn leaves."""
MAX_ITERATIONS = 10_000


@dataclass(frozen=True, eq=False)
class LinearReadOut:
    """Hold w·x + b for several concepts: `weights` is (concepts, d_model) and `offsets` (concepts,)."""

    weights: Floats
    offsets: Floats

    def __call__(self, features: Floats) -> Floats:
        """Read features (texts, d_model) out as (texts, concepts)."""
        return features @ self.weights.T + self.offsets


class Standardised:
    """Features of unit variance about their mean, in coordinates of their own span where there are fewer texts than features.

    A weight vector whose norm is penalised never leaves that span, so that nothing is lost. `features` are as they came, and
    `coordinates` (texts, at most d_model); what is worked out of them serves every fit to the same texts.
    """

    def __init__(self, features: Floats) -> None:
        self.features = features

    @cached_property
    def _scaler(self) -> StandardScaler:
        return StandardScaler().fit(self.features)

    @cached_property
    def _scaled(self) -> Floats:
        scaled: Floats = self._scaler.transform(self.features)
        return scaled

    @cached_property
    def _span(self) -> tuple[Floats, Floats] | None:
        """Variances along the principal axes that fewer texts than features span, and these axes as rows."""
        texts, width = self.features.shape
        if texts >= width:
            return None
        _, lengths, axes = np.linalg.svd(self._scaled, full_matrices=False)
        return lengths**2 / texts, axes

    @cached_property
    def coordinates(self) -> Floats:
        return self._scaled if self._span is None else self._scaled @ self._span[1].T

    @cached_property
    def _turn(self) -> tuple[Floats, Floats | None]:
        """Variances of the coordinates along their principal axes, and these as columns, None where they lie along them."""
        if self._span is not None:
            return self._span[0], None
        variances, axes = np.linalg.eigh(self.coordinates.T @ self.coordinates / len(self.coordinates))
        return variances.clip(min=0), axes

    @cached_property
    def along_axes(self) -> tuple[Tensor, PrincipalAxes]:
        """The coordinates along their principal axes, float32 (texts, at most d_model), and these."""
        variances, axes = self._turn
        turned = self.coordinates if axes is None else self.coordinates @ axes
        there = torch.from_numpy(variances)
        return torch.from_numpy(turned).float(), PrincipalAxes(torch.zeros_like(there), there, None)

    def turned_back(self, weights: Floats) -> Floats:
        """Return weights along the principal axes as weights of the coordinates."""
        axes = self._turn[1]
        return weights if axes is None else weights @ axes.T

    def read_out(self, weights: Floats, offsets: Floats) -> LinearReadOut:
        """Return a read-out of the coordinates as one of the features as they came."""
        weights = weights if self._span is None else weights @ self._span[1]
        weights = weights / self._scaler.scale_
        return LinearReadOut(weights, offsets - weights @ self._scaler.mean_)


Fit: TypeAlias = Callable[["Floats | Standardised", Floats, Integers], LinearReadOut]


def sharing(fit: Callable[[Standardised, Floats, Integers], LinearReadOut]) -> Fit:
    """Let a fit take features as they are too; given as `Standardised` they share their preparation with other fits."""

    def wrapped(features: Floats | Standardised, targets: Floats, group: Integers) -> LinearReadOut:
        prepared = features if isinstance(features, Standardised) else Standardised(features)
        return fit(prepared, targets, group)

    return wrapped


def fit_for(estimator: str, kind: str, exclusive: bool = False) -> Fit:
    """Return the function that fits `estimator` ("mean_difference", "ridge", "logistic") to targets of `kind`.

    For a "dimension" the targets are annotations and the read-out is in their units; columns do not influence each other.
    For a "label" they are 0 and 1 and the read-out is a logit: of the softmax over the labels, centred over them, for logistic
    regression where they exclude each other (`exclusive`), otherwise of each label against the rest.
    """
    if kind == "dimension":
        return sharing({"mean_difference": _covariance_direction, "ridge": _ridge}[estimator])
    if estimator == "logistic":
        return sharing(_multinomial if exclusive else _one_vs_rest)
    return sharing({"mean_difference": _mean_difference, "ridge": _ridge_of_labels}[estimator])


# Dimensions ----------------------------------------------------------------------------------------------------------


def _ridge(scaled: Standardised, values: Floats, group: Integers) -> LinearReadOut:
    moments = _moments_by_fold(scaled.coordinates, values, group)
    weights, offsets = ridge(moments, torch.from_numpy(PENALTIES[_penalties(moments)])[None])
    return scaled.read_out(weights[0].numpy(), offsets[0].numpy())


def _moments_by_fold(scaled: Floats, values: Floats, group: Integers) -> Moments:
    """Return the moments of features and values in folds that cut no group."""
    if len(np.unique(group)) < 2:
        group = np.arange(len(group))
    folds = min(INNER_FOLDS, len(np.unique(group)))
    fold = grouped_folds(group, folds)
    moments = Moments.zeros(1, scaled.shape[1], n_folds=folds, n_targets=values.shape[1])
    vectors, folds_of, targets = (
        torch.from_numpy(np.ascontiguousarray(part)) for part in (scaled, fold, values)
    )
    moments.add(vectors[:, None], fold=folds_of, targets=targets)
    return moments


def _penalties(moments: Moments) -> Integers:
    """Return for each target the position in PENALTIES of the heaviest that explains nearly as much as the best."""
    explained = explained_by_folds(moments, PENALTIES.tolist())[:, 0].numpy()  # (penalties, targets)
    # Where even the best penalty does harm, none is enough, and the heaviest is taken.
    enough = explained >= NEARLY * explained.max(0)
    heaviest: Integers = len(PENALTIES) - 1 - enough[::-1].argmax(0)
    return heaviest


def _covariance_direction(scaled: Standardised, values: Floats, group: Integers) -> LinearReadOut:
    """Fit a line by least squares along X_cᵀy_c, the direction that covaries most with the annotation."""
    features = scaled.features
    mean, centred = features.mean(0), values - values.mean(0)
    directions = _unit((features - mean).T @ centred).T
    along = (features - mean) @ directions.T
    slopes = _ratio((along * centred).sum(0), (along**2).sum(0))
    weights = slopes[:, None] * directions
    return LinearReadOut(weights, values.mean(0) - weights @ mean)


# Labels --------------------------------------------------------------------------------------------------------------


def _multinomial(scaled: Standardised, carried: Floats, group: Integers) -> LinearReadOut:
    (texts, width), concepts = scaled.features.shape, carried.shape[1]
    present, classes = np.unique(carried.argmax(1), return_inverse=True)
    weights = np.zeros((concepts, scaled.coordinates.shape[1]))
    # A label that these rows lack is read out as if half a text carried it.
    offsets = np.full(concepts, np.log(0.5 / texts))
    if len(present) > 1:
        (features, axes), numbers = scaled.along_axes, torch.from_numpy(classes)
        found = logistic(features, numbers, PRIOR_VARIANCE / width, tolerance=TOLERANCE, axes=axes)
        weights[present] = scaled.turned_back(found.weights.numpy())
        offsets[present] = found.offsets.numpy()
    return scaled.read_out(weights - weights.mean(0), offsets - offsets.mean())


def _one_vs_rest(scaled: Standardised, carried: Floats, group: Integers) -> LinearReadOut:
    width = scaled.features.shape[1]
    rows = [_one_logit(scaled.coordinates, column, width) for column in carried.T]
    weights, offsets = zip(*rows, strict=True)
    return scaled.read_out(np.stack(weights), np.array(offsets))


def _mean_difference(scaled: Standardised, carried: Floats, group: Integers) -> LinearReadOut:
    return _logits_along(class_differences(scaled.features, carried), scaled.features, carried)


def _ridge_of_labels(scaled: Standardised, carried: Floats, group: Integers) -> LinearReadOut:
    return _logits_along(_ridge(scaled, 2 * carried - 1, group).weights, scaled.features, carried)


def class_differences(features: Floats, carried: Floats) -> Floats:
    """Return each class's mean minus the mean of the class means, (concepts, d_model).

    A single label is contrasted with the texts that do not carry it. A label that no text carries gets zeros.
    """
    classes = np.hstack([carried, 1 - carried]) if carried.shape[1] == 1 else carried
    counts = classes.sum(0)
    centred = features - features.mean(0)  # the differences stay what they are, and lose fewer digits
    means = classes.T @ centred / np.maximum(counts, 1)[:, None]
    differences = means - means[counts > 0].mean(0)
    differences[counts == 0] = 0
    wanted: Floats = differences[: carried.shape[1]]
    return wanted


def _logits_along(directions: Floats, features: Floats, carried: Floats) -> LinearReadOut:
    """Turn each direction into a logit by a logistic regression of its label on the one coordinate along it."""
    scaler = StandardScaler().fit(features @ directions.T)
    along = scaler.transform(features @ directions.T)
    pairs = [_one_logit(along[:, [k]], carried[:, k], 1) for k in range(len(directions))]
    slopes = np.array([slope[0] for slope, _ in pairs]) / scaler.scale_
    offsets = np.array([offset for _, offset in pairs]) - slopes * scaler.mean_
    return LinearReadOut(slopes[:, None] * directions, offsets)


def _one_logit(scaled: Floats, carried: Floats, width: int) -> tuple[Floats, float]:
    """Return weights and offset of one logit, for coordinates of features of this width."""
    positive = carried.sum()
    if positive in (0, len(carried)):  # nothing to tell apart
        return np.zeros(scaled.shape[1]), float(np.log((positive + 0.5) / (len(carried) - positive + 0.5)))
    model = _logistic(width).fit(scaled, carried)
    return model.coef_[0], float(model.intercept_[0])


def _logistic(width: int) -> LogisticRegression:
    return LogisticRegression(C=PRIOR_VARIANCE / width, max_iter=MAX_ITERATIONS)


def _unit(columns: Floats) -> Floats:
    return _ratio(columns, np.linalg.norm(columns, axis=0))


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Divide, giving 0 for 0 / 0: a feature that never varies says nothing."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
