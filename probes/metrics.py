"""Scores of held-out predictions, and their uncertainty over groups.

Two choices are made throughout. Predictions are compared with each other within a fold only: across folds they come from
different fits, and whoever pools them finds noise anticorrelated with the truth, because a fold whose texts lie high was
predicted from others that lie low (Forman & Scholz 2010, "Apples-to-apples in cross-validation studies"). And a score is a
function of sums over groups, so that a bootstrap over groups is one matrix product: row 0 of the weights is all ones and
gives the score, each further row is one resample.

The area under the ROC curve is not a ratio of sums. Its resamples use its first-order (Hájek) expansion in the placement
values of DeLong et al. 1988, clustered as in Obuchowski 1997; what that leaves out is of order 1/texts.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.stats import rankdata
from scipy.stats import t as student

from emoprobe.intervals import FEW_GROUPS
from emoprobe.probes.estimators import Floats, Integers


@dataclass(frozen=True, eq=False)
class Weighting:
    """Hold how often each group counts in each resample.

    `group` and `fold` (texts,) number the group and fold of each text; a group lies in one fold. `counts` is
    (1 + resamples, groups), its first row all ones.
    """

    group: Integers
    fold: Integers
    counts: NDArray[np.uint8]

    def by_fold(self) -> Iterator[tuple[Integers, Weighted]]:
        """Yield the rows of each fold, and the way to sum over them."""
        for fold in np.unique(self.fold):
            rows = np.flatnonzero(self.fold == fold)
            groups, member = np.unique(self.group[rows], return_inverse=True)
            yield rows, Weighted(member, self.counts[:, groups].astype(np.float64))


@dataclass(frozen=True, eq=False)
class Weighted:
    """Sum over the rows of one fold, once per resample."""

    member: Integers
    counts: Floats

    def sums(self, values: Floats) -> Floats:
        """Return the weighted sums of values (rows, columns) over rows: (1 + resamples, columns)."""
        totals: Floats = self.counts @ (self._indicator @ values)
        return totals

    @cached_property
    def _indicator(self) -> csr_array:
        rows = len(self.member)
        places = (self.member, np.arange(rows))
        return csr_array((np.ones(rows), places), shape=(self.counts.shape[1], rows))


def weighting(group: Integers, fold: Integers, resamples: int = 0, seed: int = 0) -> Weighting:
    """Return the weights of a bootstrap over groups: in each resample as many groups are drawn as there are."""
    groups = int(group.max()) + 1
    generator = np.random.default_rng(seed)
    counts = np.ones((1 + resamples, groups), dtype=np.uint8)
    for row in range(1, 1 + resamples):
        counts[row] = np.bincount(generator.integers(groups, size=groups), minlength=groups)
    return Weighting(group, fold, counts)


def accuracy(predicted: Floats, carried: Floats, weights: Weighting) -> Floats:
    """Return the share of texts whose highest read-out is their label: (1 + resamples,)."""
    right = predicted.argmax(1) == carried.argmax(1)
    both = np.stack([right, np.ones(len(right))], axis=1)
    sums = np.sum([fold.sums(both[rows]) for rows, fold in weights.by_fold()], axis=0)
    return _quotient(sums[:, 0], sums[:, 1])


def correlation(predicted: Floats, values: Floats, weights: Weighting) -> Floats:
    """Return Pearson's r within folds, of (texts, columns) each: (1 + resamples, columns)."""
    covariance = spread_x = spread_y = np.zeros((len(weights.counts), predicted.shape[1]))
    for rows, fold in weights.by_fold():
        x, y = _centred(predicted[rows]), _centred(values[rows])
        size = fold.sums(np.ones((len(rows), 1)))
        mean_x, mean_y = (_quotient(fold.sums(part), size) for part in (x, y))
        covariance = covariance + fold.sums(x * y) - size * mean_x * mean_y
        spread_x = spread_x + fold.sums(x * x) - size * mean_x**2
        spread_y = spread_y + fold.sums(y * y) - size * mean_y**2
    return _quotient(covariance, np.sqrt(np.maximum(spread_x, 0) * np.maximum(spread_y, 0)))


def _centred(values: Floats) -> Floats:
    # What does not vary is exactly zero, so that no rounding error gets correlated with anything.
    return np.where(np.ptp(values, axis=0) > 0, values - values.mean(0), 0.0)


def auc(predicted: Floats, carried: Floats, weights: Weighting) -> Floats:
    """Return the area under the ROC curve within folds, of (texts, columns) each: (1 + resamples, columns).

    It is the share of pairs from one fold, one text with and one without the label, that the read-out ranks rightly; ties
    count half. NaN where no fold has such a pair.
    """
    ranked = pairs = np.zeros((len(weights.counts), predicted.shape[1]))
    for rows, fold in weights.by_fold():
        x, y = predicted[rows], carried[rows].astype(np.float64)
        placed = _placements(x, y)
        sums = fold.sums(np.hstack([y, 1 - y, placed * y, placed * (1 - y)]))
        with_label, without, right, right_without = np.split(sums, 4, axis=1)
        area = _quotient((placed * y).sum(0), y.sum(0))
        resampled = _quotient(right, with_label) + _quotient(right_without, without)
        ranked = ranked + with_label * without * np.clip(resampled - area, 0, 1)
        pairs = pairs + with_label * without
    result: Floats = np.where(pairs > 0, _quotient(ranked, pairs), np.nan)
    return result


def _placements(predicted: Floats, carried: Floats) -> Floats:
    """Return, for each text, the share of the texts of the other kind that it is ranked rightly against."""
    positive = carried > 0
    texts, with_label = len(predicted), positive.sum(0)
    overall = rankdata(predicted, axis=0)
    # Ranks among their own kind: with each text that carries the label put behind all that do not.
    own = rankdata(overall + texts * positive, axis=0) - np.where(positive, texts - with_label, 0)
    below = _quotient(overall - own, np.where(positive, texts - with_label, with_label))  # of the other kind
    apart = (with_label > 0) & (with_label < texts)
    placed: Floats = np.where(apart, np.where(positive, below, 1 - below), 0.0)
    return placed


def mean_known(values: Floats) -> Floats:
    """Return the mean of each row's numbers that are not NaN; NaN where there is none."""
    known = ~np.isnan(values)
    mean: Floats = np.where(known.any(1), _quotient(np.nansum(values, axis=1), known.sum(1)), np.nan)
    return mean


def interval(scores: Floats, groups: int, level: float = 0.95) -> tuple[Floats, Floats]:
    """Return the interval of scores (1 + resamples, …), the first row being the score itself; NaN without resamples.

    It is the percentile interval over resamples where these are of many groups. Of fewer than FEW_GROUPS that is too narrow;
    there it is the score ± Student's t with groups − 1 degrees of freedom times the resamples' spread, freed of the factor by
    which resampling few groups underestimates it.
    """
    value, resampled = scores[0], scores[1:]
    if not len(resampled) or groups < 2:
        return np.full_like(value, np.nan), np.full_like(value, np.nan)
    tail = (1 - level) / 2
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN")
        warnings.filterwarnings("ignore", "Degrees of freedom")
        if groups >= FEW_GROUPS:
            low, high = np.nanquantile(resampled, [tail, 1 - tail], axis=0)
            return low, high
        spread = np.nanstd(resampled, axis=0, ddof=1) * np.sqrt(groups / (groups - 1))
    reach = student.ppf(1 - tail, groups - 1) * spread
    return value - reach, value + reach


def _quotient(numerator: Floats, denominator: Floats) -> Floats:
    shape = np.broadcast_shapes(numerator.shape, denominator.shape)
    return np.divide(numerator, denominator, out=np.zeros(shape), where=denominator > 0)
