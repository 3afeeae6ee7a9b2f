"""Linear read-outs from features: mean difference, ridge, logistic.

Each takes features (texts, d_model) and targets (texts, concepts) and gives one weight vector and offset per concept, in
the units of the features as they came. What scaling there is happens inside, on the rows given, so that nothing of a held-out
row is ever seen. Scikit-learn does the fitting. This file knows nothing of models, layers or folds.

The mean difference of labels follows "Emotion Concepts and their Function in a Large Language Model" (Sofroniew et al.
2026, arXiv 2604.07729): the mean over a class's texts minus the mean of all class means.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.preprocessing import StandardScaler

Floats: TypeAlias = NDArray[np.float64]
Flags: TypeAlias = NDArray[np.bool_]

PENALTIES = np.logspace(-1, 6, 15)
"""Ridge penalties to choose from by generalised cross-validation, for standardised features."""
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


Fit: TypeAlias = Callable[[Floats, Floats], LinearReadOut]


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


def _ridge(features: Floats, values: Floats) -> LinearReadOut:
    scaler = StandardScaler().fit(features)
    model = RidgeCV(PENALTIES, alpha_per_target=True).fit(scaler.transform(features), values)
    # For a single column scikit-learn drops an axis.
    return LinearReadOut(np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_)).of_unscaled(scaler)


def _covariance_direction(features: Floats, values: Floats) -> LinearReadOut:
    """Fit a line by least squares along X_cᵀy_c, the direction that covaries most with the annotation."""
    mean, centred = features.mean(0), values - values.mean(0)
    directions = _unit((features - mean).T @ centred).T
    along = (features - mean) @ directions.T
    slopes = _ratio((along * centred).sum(0), (along**2).sum(0))
    weights = slopes[:, None] * directions
    return LinearReadOut(weights, values.mean(0) - weights @ mean)


# Labels --------------------------------------------------------------------------------------------------------------


def _multinomial(features: Floats, carried: Floats) -> LinearReadOut:
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


def _one_vs_rest(features: Floats, carried: Floats) -> LinearReadOut:
    scaler = StandardScaler().fit(features)
    scaled = scaler.transform(features)
    rows = [_one_logit(scaled, column) for column in carried.T]
    weights, offsets = zip(*rows, strict=True)
    return LinearReadOut(np.stack(weights), np.array(offsets)).of_unscaled(scaler)


def _mean_difference(features: Floats, carried: Floats) -> LinearReadOut:
    return _logits_along(class_differences(features, carried), features, carried)


def _ridge_of_labels(features: Floats, carried: Floats) -> LinearReadOut:
    return _logits_along(_ridge(features, 2 * carried - 1).weights, features, carried)


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
