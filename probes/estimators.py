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
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.preprocessing import StandardScaler

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

PENALTIES = np.logspace(-1, 6, 15)
"""Ridge penalties to choose from, for standardised features."""
NEARLY = 0.99
"""Share of the variance explained at the best penalty that a heavier one has to explain too."""
INNER_FOLDS = 5
PRIOR_VARIANCE = 10.0
"""Variance of a logit under the prior of the logistic weights, whatever the width: C = PRIOR_VARIANCE / d_model."""
MAX_ITERATIONS = 10_000


@dataclass(frozen=True, eq=False)
class LinearReadOut:
    """Hold w·x + b for several concepts: `weights` is (concepts, d_model) and `offsets` (concepts,)."""

    weights: Floats
    offsets: Floats

    def __call__(self, features: Floats) -> Floats:
        """Read features (texts, d_model) out as (texts, concepts)."""
        return features @ self.weights.T + self.offsets

    def of_unscaled(self, scaler: StandardScaler) -> LinearReadOut:
        """Return the same read-out for features that have not been through `scaler`."""
        weights = self.weights / scaler.scale_
        return LinearReadOut(weights, self.offsets - weights @ scaler.mean_)


Fit: TypeAlias = Callable[[Floats, Floats, Integers], LinearReadOut]


def fit_for(estimator: str, kind: str, exclusive: bool = False) -> Fit:
    """Return the function that fits `estimator` ("mean_difference", "ridge", "logistic") to targets of `kind`.

    For a "dimension" the targets are annotations and the read-out is in their units; columns do not influence each other.
    For a "label" they are 0 and 1 and the read-out is a logit: of the softmax over the labels, centred over them, for logistic
    regression where they exclude each other (`exclusive`), otherwise of each label against the rest.
    """
    if kind == "dimension":
        return {"mean_difference": _covariance_direction, "ridge": _ridge}[estimator]
    if estimator == "logistic":
        return _multinomial if exclusive else _one_vs_rest
    return {"mean_difference": _mean_difference, "ridge": _ridge_of_labels}[estimator]


# Dimensions ----------------------------------------------------------------------------------------------------------


def _ridge(features: Floats, values: Floats, group: Integers) -> LinearReadOut:
    scaler = StandardScaler().fit(features)
    scaled = scaler.transform(features)
    basis = None
    if scaled.shape[1] > len(scaled):  # ridge never leaves the span of the texts
        basis = np.linalg.svd(scaled, full_matrices=False)[2]
        scaled = scaled @ basis.T
    chosen = _penalties(scaled, values, group)
    path = _ridge_path(scaled, values)
    weights = path[chosen, :, np.arange(values.shape[1])]
    weights = weights if basis is None else weights @ basis
    return LinearReadOut(weights, values.mean(0)).of_unscaled(scaler)


def _penalties(scaled: Floats, values: Floats, group: Integers) -> Integers:
    """Return for each column the position in PENALTIES of the heaviest that explains nearly as much as the best."""
    if len(np.unique(group)) < 2:
        group = np.arange(len(group))
    error = np.zeros((len(PENALTIES), values.shape[1]))
    spread = np.zeros(values.shape[1])
    splitter = GroupKFold(min(INNER_FOLDS, len(np.unique(group))))
    for train, test in splitter.split(scaled, groups=group):
        path = _ridge_path(scaled[train], values[train])
        predicted = (scaled[test] - scaled[train].mean(0)) @ path  # (penalties, texts, columns)
        held_out = values[test] - values[train].mean(0)
        error += ((predicted - held_out) ** 2).sum(1)
        spread += (held_out**2).sum(0)
    explained = spread - error
    # Where even the best penalty does harm, none is enough, and the heaviest is taken.
    enough = explained >= NEARLY * explained.max(0)
    heaviest: Integers = len(PENALTIES) - 1 - enough[::-1].argmax(0)
    return heaviest


def _ridge_path(scaled: Floats, values: Floats) -> Floats:
    """Return the ridge weights at every penalty, (penalties, d_model, columns), for features taken about their mean."""
    centred = scaled - scaled.mean(0)
    eigenvalues, vectors = np.linalg.eigh(centred.T @ centred)
    along = vectors.T @ (centred.T @ (values - values.mean(0)))
    shrunk = along / (np.maximum(eigenvalues, 0)[:, None] + PENALTIES[:, None, None])
    path: Floats = vectors @ shrunk
    return path


def _covariance_direction(features: Floats, values: Floats, group: Integers) -> LinearReadOut:
    """Fit a line by least squares along X_cᵀy_c, the direction that covaries most with the annotation."""
    mean, centred = features.mean(0), values - values.mean(0)
    directions = _unit((features - mean).T @ centred).T
    along = (features - mean) @ directions.T
    slopes = _ratio((along * centred).sum(0), (along**2).sum(0))
    weights = slopes[:, None] * directions
    return LinearReadOut(weights, values.mean(0) - weights @ mean)


# Labels --------------------------------------------------------------------------------------------------------------


def _multinomial(features: Floats, carried: Floats, group: Integers) -> LinearReadOut:
    scaler = StandardScaler().fit(features)
    model = _logistic(features.shape[1]).fit(scaler.transform(features), carried.argmax(1))
    present, concepts = model.classes_, carried.shape[1]
    weights = np.zeros((concepts, features.shape[1]))
    # A label that these rows lack is read out as if half a text carried it.
    offsets = np.full(concepts, np.log(0.5 / len(features)))
    if len(present) == 2:  # scikit-learn gives one row for two classes
        weights[present] = np.stack([-model.coef_[0], model.coef_[0]]) / 2
        offsets[present] = np.array([-1, 1]) * model.intercept_[0] / 2
    else:
        weights[present], offsets[present] = model.coef_, model.intercept_
    return LinearReadOut(weights - weights.mean(0), offsets - offsets.mean()).of_unscaled(scaler)


def _one_vs_rest(features: Floats, carried: Floats, group: Integers) -> LinearReadOut:
    scaler = StandardScaler().fit(features)
    scaled = scaler.transform(features)
    rows = [_one_logit(scaled, column) for column in carried.T]
    weights, offsets = zip(*rows, strict=True)
    return LinearReadOut(np.stack(weights), np.array(offsets)).of_unscaled(scaler)


def _mean_difference(features: Floats, carried: Floats, group: Integers) -> LinearReadOut:
    return _logits_along(class_differences(features, carried), features, carried)


def _ridge_of_labels(features: Floats, carried: Floats, group: Integers) -> LinearReadOut:
    return _logits_along(_ridge(features, 2 * carried - 1, group).weights, features, carried)


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
    pairs = [_one_logit(along[:, [k]], carried[:, k]) for k in range(len(directions))]
    slopes = np.array([slope[0] for slope, _ in pairs]) / scaler.scale_
    offsets = np.array([offset for _, offset in pairs]) - slopes * scaler.mean_
    return LinearReadOut(slopes[:, None] * directions, offsets)


def _one_logit(scaled: Floats, carried: Floats) -> tuple[Floats, float]:
    positive = carried.sum()
    if positive in (0, len(carried)):  # nothing to tell apart
        return np.zeros(scaled.shape[1]), float(np.log((positive + 0.5) / (len(carried) - positive + 0.5)))
    model = _logistic(scaled.shape[1]).fit(scaled, carried)
    return model.coef_[0], float(model.intercept_[0])


def _logistic(width: int) -> LogisticRegression:
    return LogisticRegression(C=PRIOR_VARIANCE / width, max_iter=MAX_ITERATIONS)


def _unit(columns: Floats) -> Floats:
    return _ratio(columns, np.linalg.norm(columns, axis=0))


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Divide, giving 0 for 0 / 0: a feature that never varies says nothing."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
