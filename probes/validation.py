"""Cross-validation that keeps groups whole, with the controls that a probe's score is worth nothing without.

All that is fitted (scaling, penalties, vocabularies) is fitted inside the training folds. Beside the score stand: the same
with annotations shuffled, where the score must fall to chance; and a bag of words, what the words alone give away. The third
control, the embedding, is layer 0. This file knows features, targets and groups, nothing of models.

Annotations are handed on from group to group, each group's together and in random order: texts of a group are alike, and
where their annotations are alike too, shuffling single texts would make chance look narrower than it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GroupShuffleSplit

from emoprobe.intervals import distance_of_one_more, prediction_interval
from emoprobe.probes import metrics
from emoprobe.probes.estimators import Fit, Floats, Integers, LinearReadOut, Standardised
from emoprobe.probes.tasks import Task

SHUFFLE_TEXTS = 5000
"""Shuffled labels are fitted on at most so many texts (whole groups); shuffled dimensions cost little and use all texts."""
CHEAP_PERMUTATIONS = 100
"""Dimensions are shuffled at least so often, where they are at all."""
RIDGE_PENALTIES = (0.3, 1.0, 3.0, 10.0)
LOGISTIC_PENALTIES = (1.0, 10.0)


def out_of_fold(fit: Fit, features: Floats, targets: Floats, group: Integers, fold: Integers) -> Floats:
    """Return the read-out of each text by a fit that has not seen its fold: (texts, concepts)."""
    return each_out_of_fold(fit, features, [targets], group, fold)[0]


def each_out_of_fold(
    fit: Fit, features: Floats, targets: Sequence[Floats], group: Integers, fold: Integers
) -> list[Floats]:
    """Return what `out_of_fold` does for each of several targets of the same texts, whose preparation is shared."""
    predicted = [np.empty(each.shape) for each in targets]
    for number in np.unique(fold):
        test = fold == number
        train = Standardised(features[~test])
        for found, each in zip(predicted, targets, strict=True):
            found[test] = fit(train, each[~test], group[~test])(features[test])
    return predicted


@dataclass(frozen=True, eq=False)
class Validated:
    """Hold what held-out groups say of one layer: `scores` (1 + resamples, measures) and `null` (permutations, measures).

    `predicted` (texts, concepts) are the held-out read-outs that were scored.
    With control tasks, `control` is their mean score and `selectivity` what the score is above it, both (1 + resamples,
    measures).
    """

    scores: Floats
    null: Floats
    predicted: Floats
    control: Floats | None = None
    selectivity: Floats | None = None


def validate(
    task: Task,
    fit: Fit,
    features: Floats,
    weights: metrics.Weighting,
    permutations: int,
    seed: int,
    control: tuple[Integers, Sequence[Floats]] | None = None,
) -> Validated:
    """Score one layer's features (texts, d_model) by cross-validation, with shuffled annotations and control tasks beside it.

    `control` holds positions among the texts and the targets of control tasks for these, each (positions, concepts). Where not
    all texts have them, selectivity compares two fits to those that do.
    """
    order, permutations = np.random.default_rng(seed), times(task.kind, permutations)
    rows, controls = (np.arange(len(task.rows)), []) if control is None else (control[0], list(control[1]))
    of_controls: Sequence[Floats] = []
    if task.kind == "dimension":
        # Columns do not influence each other, so that further ones of all texts are fitted along.
        along = controls if len(rows) == len(task.rows) else []
        shuffled = [task.targets[shuffle(task.group, order)] for _ in range(permutations)]
        columns = [task.targets, *shuffled, *along]
        held_out = out_of_fold(fit, features, np.hstack(columns), task.group, task.fold)
        parts = np.split(held_out, len(columns), 1)
        predicted, of_controls = parts[0], parts[permutations + 1 :]
        null = []
        if shuffled:
            together = np.hstack(parts[1 : permutations + 1]), np.hstack(shuffled)
            null = np.split(task.score(*together, task.plain)[0], permutations)
    else:
        predicted = out_of_fold(fit, features, task.targets, task.group, task.fold)
        null = _shuffled_labels(task, fit, features, permutations, order)
    scores = task.score(predicted, task.targets, weights)
    found = np.array(null).reshape(permutations, len(task.measures))
    if not controls:
        return Validated(scores, found, predicted)
    part = metrics.Weighting(task.group[rows], task.fold[rows], weights.counts)
    same = scores
    if not of_controls:
        # Where not all texts have a control task, the fit to the same ones is repeated to compare it with.
        again = [task.targets[rows]] if len(rows) < len(task.rows) else []
        fitted = each_out_of_fold(fit, features[rows], [*controls, *again], task.group[rows], task.fold[rows])
        of_controls = fitted[: len(controls)]
        if again:
            same = task.score(fitted[-1], again[0], part)
    beside = np.mean([task.score(p, y, part) for p, y in zip(of_controls, controls, strict=True)], axis=0)
    return Validated(scores, found, predicted, beside, same - beside)


def described(task: Task, found: Validated) -> pd.DataFrame:
    """Return one row per measure: concept, metric, value, low, high, chance, shuffled, shuffled_low, shuffled_high.

    `low` and `high` are 95% over resampled groups, `shuffled` the mean with shuffled annotations, and the last two the range in
    which 95% of shuffled scores are to be expected.
    """
    low, high = np.clip(metrics.interval(found.scores, task.groups), *task.bounds)
    concepts, names = zip(*task.measures, strict=True)
    frame = pd.DataFrame(
        {"concept": concepts, "metric": names, "value": found.scores[0], "low": low, "high": high}
    )
    frame["chance"] = task.chance
    frame[["shuffled", "shuffled_low", "shuffled_high"]] = np.clip(expected_range(found.null), *task.bounds)
    return frame


def permutation_p(values: Floats, null: Floats) -> Floats:
    """Return the one-sided p of scores (measures,) among shuffled ones (permutations, measures); NaN for fewer than two.

    It is the exact (1 + shuffled scores at least as high) / (permutations + 1) (Phipson & Smyth 2010). That cannot be less
    than 1 / (permutations + 1): where no shuffled score is as high, it is the chance that one more value of the shuffled
    scores' normal distribution is, by Student's t, if that is less.
    """
    result = np.full(len(values), np.nan)
    for place, (value, column) in enumerate(zip(values, null.T, strict=True)):
        shuffled = column[~np.isnan(column)]
        if len(shuffled) < 2 or np.isnan(value):
            continue
        exact = (1 + (shuffled >= value).sum()) / (len(shuffled) + 1)
        result[place] = exact
        if value > shuffled.max():
            far = np.nan_to_num(distance_of_one_more(value, shuffled), nan=np.inf)
            result[place] = min(exact, student.sf(far, len(shuffled) - 1))
    return result


def shuffle(group: Integers, order: np.random.Generator) -> Integers:
    """Return whose annotation each text gets, (texts,): groups in random order, and in random order within each.

    Where every text is a group of its own this is a plain permutation; where groups are of equal size each gets the
    annotations of one other.
    """
    dealt = np.lexsort((order.permutation(len(group)), order.permutation(int(group.max()) + 1)[group]))
    giver = np.empty_like(dealt)
    giver[np.argsort(group, kind="stable")] = dealt
    return giver


def _shuffled_labels(
    task: Task, fit: Fit, features: Floats, permutations: int, order: np.random.Generator
) -> list[Floats]:
    part = subset(task, SHUFFLE_TEXTS, order)
    group, fold = np.unique(task.group[part], return_inverse=True)[1], task.fold[part]
    targets = [task.targets[part][shuffle(group, order)] for _ in range(permutations)]
    predicted = each_out_of_fold(fit, features[part], targets, group, fold)
    weights = metrics.weighting(group, fold)
    return [task.score(held_out, y, weights)[0] for held_out, y in zip(predicted, targets, strict=True)]


def subset(task: Task, most: int, order: np.random.Generator) -> Integers:
    """Return the positions of about `most` texts of the task, in whole groups drawn at random; all if there are no more."""
    if len(task.rows) <= most:
        return np.arange(len(task.rows))
    sizes = np.bincount(task.group)
    drawn = order.permutation(task.groups)
    kept = drawn[: max(1, int(np.searchsorted(sizes[drawn].cumsum(), most, side="right")))]
    return np.flatnonzero(np.isin(task.group, kept))


def expected_range(null: Floats) -> Floats:
    """Return mean and 95% prediction range of shuffled scores (permutations, measures): (measures, 3).

    It allows for how few permutations there are; NaN for fewer than two.
    """
    if len(null) < 2:
        return np.full((null.shape[1], 3), np.nan)
    # A rare label may be missing from a shuffled sample.
    known = [scores[~np.isnan(scores)] for scores in null.T]
    return np.array(
        [(scores.mean() if len(scores) else np.nan, *prediction_interval(scores)) for scores in known]
    )


def times(kind: str, permutations: int) -> int:
    """Return how often a kind of concept is shuffled where `permutations` are asked for."""
    return max(permutations, CHEAP_PERMUTATIONS) if permutations and kind == "dimension" else permutations


# Bag of words --------------------------------------------------------------------------------------------------------


def bag_of_words(task: Task, texts: Sequence[str], weights: metrics.Weighting, seed: int = 0) -> Floats:
    """Return the scores of TF-IDF words and pairs of words on the same folds, (1 + resamples, measures).

    `texts` are those of the task. The model on top is linear: ridge for dimensions, logistic regression of each label against
    the rest for labels; its penalty is chosen on a grouped split of the training folds.
    """
    return task.score(words_out_of_fold(task, texts, seed), task.targets, weights)


def words_out_of_fold(task: Task, texts: Sequence[str], seed: int = 0) -> Floats:
    """Return the bag of words' read-out of each text by a fit that has not seen its fold: (texts, concepts)."""
    words = np.asarray(texts, dtype=object)
    predicted = np.empty(task.targets.shape)
    for number in np.unique(task.fold):
        test = task.fold == number
        read = fit_words(task, words[~test], task.targets[~test], task.group[~test], seed)
        predicted[test] = read(words[test])
    return predicted


def fit_words(
    task: Task, texts: Sequence[str], targets: Floats, group: Integers, seed: int = 0
) -> Callable[[Sequence[str]], Floats]:
    """Fit the bag of words to texts with targets (texts, concepts) of the task's kind, and return what reads new texts out."""
    vectoriser = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+|[^\w\s]")
    model = _tuned_on_words(task, vectoriser.fit_transform(texts), targets, group, seed)
    return lambda new: model(vectoriser.transform(new))


def _tuned_on_words(
    task: Task, train: Any, targets: Floats, group: Integers, seed: int
) -> Callable[[Any], Floats]:
    fit = _ridge_on_words if task.kind == "dimension" else _logistic_on_words
    penalties = RIDGE_PENALTIES if task.kind == "dimension" else LOGISTIC_PENALTIES
    if len(np.unique(group)) < 2:  # nothing to choose by
        return fit(train, targets, 1.0)
    inner, outer = next(GroupShuffleSplit(1, test_size=0.2, random_state=seed).split(group, groups=group))
    one_fold = metrics.weighting(np.zeros(len(outer), dtype=np.int64), np.zeros(len(outer), dtype=np.int64))
    worth = []
    for penalty in penalties:
        predicted = fit(train[inner], targets[inner], penalty)(train[outer])
        worth.append(np.nan_to_num(task.score(predicted, targets[outer], one_fold)).mean())
    return fit(train, targets, penalties[int(np.argmax(worth))])


def _ridge_on_words(words: Any, values: Floats, penalty: float) -> LinearReadOut:
    model = Ridge(penalty).fit(words, values)
    return LinearReadOut(np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_))


def _logistic_on_words(words: Any, carried: Floats, inverse_penalty: float) -> Callable[[Any], Floats]:
    def decide(column: Floats) -> Callable[[Any], Floats]:
        if column.min() == column.max():
            return lambda new: np.full(new.shape[0], -np.inf if column[0] == 0 else np.inf)
        model = LogisticRegression(C=inverse_penalty, solver="liblinear", random_state=0).fit(words, column)
        decision: Callable[[Any], Floats] = model.decision_function
        return decision

    decisions = [decide(column) for column in carried.T]
    return lambda new: np.stack([decision(new) for decision in decisions], axis=1)
