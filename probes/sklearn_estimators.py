"""Estimators on moments with scikit-learn's interface: for its pipelines, searches and scores.

They compute in torch, in float64, on the CPU or on `device`; each equals scikit-learn's estimator of the same objective.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from emoprobe.probes.closed_form import (
    generalised_cross_validation,
    grouped_k_fold,
    linear_discriminants,
    mean_difference,
    ridge,
)
from emoprobe.probes.estimators import Floats
from emoprobe.probes.folds import grouped_folds
from emoprobe.probes.logistic import logistic
from emoprobe.probes.moments import Moments


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(
        array if array.flags.writeable else array.copy()
    )  # torch warns of memory it may not write


class MomentRidge(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Ridge regression whose penalty is chosen by grouped k-fold, or by generalised cross-validation where `cv` is None.

    The penalty with the highest R², averaged over targets and folds, is taken. Parameters: `penalties` to choose from; `cv`,
    the number of folds; `standardise`, whether the penalty is for features of unit variance; `device`. Fitted: `coef_`
    (targets, features), `intercept_`, `penalty_` and `scores_` (penalties,), R² or minus the error that is expected.
    """

    def __init__(
        self,
        penalties: Sequence[float] = (0.1, 1.0, 10.0),
        cv: int | None = None,
        standardise: bool = False,
        device: str = "cpu",
    ) -> None:
        self.penalties = penalties
        self.cv = cv
        self.standardise = standardise
        self.device = device

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any, groups: Any = None) -> MomentRidge:
        """Fit to X (texts, features) and y (texts,) or (texts, targets); no one of `groups` (texts,) is cut by a fold."""
        X, y = validate_data(
            self, X, y, multi_output=True, y_numeric=True, dtype=np.float64, ensure_min_samples=self.cv or 1
        )
        targets = _tensor(y.reshape(len(X), -1).astype(np.float64))
        fold = np.zeros(len(X), dtype=np.int64)
        if self.cv:
            groups = np.arange(len(X)) if groups is None else groups
            fold = grouped_folds(groups, self.cv)
        moments = Moments.zeros(
            1, X.shape[1], n_folds=self.cv or 1, n_targets=targets.shape[1], device=self.device
        )
        moments.add(_tensor(X)[:, None], fold=_tensor(fold), targets=targets)
        options = {"standardise": self.standardise}
        if self.cv:
            self.scores_ = grouped_k_fold(moments, self.penalties, **options).r2.mean((0, 2, 3)).cpu().numpy()
        else:
            expected = generalised_cross_validation(moments, self.penalties, **options)
            self.scores_ = -expected.mean((1, 2)).cpu().numpy()
        best = int(np.argmax(self.scores_))
        self.penalty_ = self.penalties[best]
        weights, offsets = ridge(moments, [self.penalty_], **options)
        single = y.ndim == 1
        self.coef_ = weights[0].cpu().numpy()[0 if single else slice(None)]
        self.intercept_ = offsets[0].cpu().numpy()[0 if single else slice(None)]
        return self

    def predict(self, X: Any) -> Floats:
        """Return the predictions for X (texts, features), shaped as the targets were."""
        check_is_fitted(self)
        predicted: Floats = (
            validate_data(self, X, reset=False, dtype=np.float64) @ self.coef_.T + self.intercept_
        )
        return predicted


class _LinearClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Read a logit or score of each class out linearly; two classes have one row, the difference, as in scikit-learn."""

    def fit(self, X: Any, y: Any) -> _LinearClassifier:
        """Fit to X (texts, features) and the class of each text, y (texts,)."""
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"{len(self.classes_)} class: a classifier needs two or more")
        found = self._weights(_tensor(X).to(self.device), _tensor(numbers).to(self.device))
        weights, offsets = (part.cpu().numpy() for part in found)
        if len(self.classes_) == 2:
            weights, offsets = weights[[1]] - weights[[0]], offsets[[1]] - offsets[[0]]
        self.coef_, self.intercept_ = weights, offsets
        return self

    def decision_function(self, X: Any) -> Floats:
        """Return the scores of X (texts, features): (texts, classes), or (texts,) for two classes."""
        check_is_fitted(self)
        scores: Floats = (
            validate_data(self, X, reset=False, dtype=np.float64) @ self.coef_.T + self.intercept_
        )
        return scores.ravel() if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> Any:
        """Return the class with the highest score of each text."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)]

    def _weights(self, features: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class _Probabilistic(_LinearClassifier):
    def predict_proba(self, X: Any) -> Floats:
        """Return the probabilities of each class, (texts, classes)."""
        scores = self.decision_function(X)
        scores = np.column_stack([np.zeros_like(scores), scores]) if scores.ndim == 1 else scores
        exponents = np.exp(scores - scores.max(1, keepdims=True))
        shares: Floats = exponents / exponents.sum(1, keepdims=True)
        return shares


def _of_classes(features: Tensor, classes: Tensor) -> Moments:
    count = int(classes.max()) + 1
    moments = Moments.zeros(1, features.shape[1], n_classes=count, device=features.device)
    moments.add(features[:, None], classes=classes)
    return moments


class MeanDifference(_LinearClassifier):
    """Tell classes apart along their means less the mean of these: each text gets the class of the nearest mean."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def _weights(self, features: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        moments = _of_classes(features, classes)
        centre = moments.pooled().mean[0].mean(0)
        weights = mean_difference(moments)[0]
        return weights, -(weights**2).sum(1) / 2 - weights @ centre


class MomentLDA(_Probabilistic):
    """Linear discriminant analysis, with the covariance shrunk by a share `shrinkage` towards a multiple of the identity."""

    def __init__(self, shrinkage: float = 0.0, device: str = "cpu") -> None:
        self.shrinkage = shrinkage
        self.device = device

    def _weights(self, features: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        weights, offsets = linear_discriminants(_of_classes(features, classes), self.shrinkage)
        return weights[0], offsets[0]


class NewtonLogistic(_Probabilistic):
    """Multinomial logistic regression with scikit-learn's objective and `C`, by `emoprobe.probes.logistic`."""

    def __init__(self, C: float = 1.0, tol: float = 1e-5, device: str = "cpu") -> None:
        self.C = C
        self.tol = tol
        self.device = device

    def _weights(self, features: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        fitted = logistic(features, classes, self.C, tolerance=self.tol)
        return fitted.weights, fitted.offsets
