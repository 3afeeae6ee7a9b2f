"""Folds, scores and controls, against what they mean computed the long way."""

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sklearn
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

from emoprobe.corpora import Corpus
from emoprobe.errors import InputError
from emoprobe.probes import metrics
from emoprobe.probes.estimators import Fit, fit_for
from emoprobe.probes.folds import grouped_folds
from emoprobe.probes.probe_set import LABELS
from emoprobe.probes.tasks import Task, plan
from emoprobe.probes.validation import (
    bag_of_words,
    described,
    out_of_fold,
    shuffle,
    subset,
    validate,
    words_out_of_fold,
)

Array = np.ndarray[Any, Any]
FOLDS = ["3112002023131113112323200320033223012201", "2112001013101133113023002230133112011220"]


def made_task(kind: str, targets: Array, group: Array, folds: int = 5, exclusive: bool = True) -> Task:
    exclusive = exclusive and kind == "label"
    fold = grouped_folds(group, folds, targets.argmax(1) if exclusive else None)
    concepts = tuple(f"concept {k}" for k in range(targets.shape[1]))
    return Task(kind, exclusive, concepts, np.arange(len(targets)), targets, group, fold)


def cross_validate(task: Task, fit: Fit, features: Array, weights: Any, permutations: int, seed: int) -> Any:
    """Return the scores of one layer as a table."""
    return described(task, validate(task, fit, features, weights, permutations, seed))


# Folds ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("stratified", [False, True])
def test_no_group_is_ever_cut(seed: int, stratified: bool) -> None:
    generator = np.random.default_rng(seed)
    group = np.unique(generator.integers(0, 20, 200) ** 2, return_inverse=True)[1]
    classes = generator.integers(0, 3, 200) if stratified else None
    fold = grouped_folds(group, 5, classes, seed)
    assert set(fold) == set(range(5))
    assert all(len(set(fold[group == g])) == 1 for g in set(group))


def test_folds_have_alike_shares_of_each_class_where_groups_allow() -> None:
    classes = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [100, 50, 25]))
    fold = grouped_folds(np.arange(175), 5, classes)
    assert all((np.bincount(classes[fold == k]) == [20, 10, 5]).all() for k in range(5))


@pytest.mark.parametrize("seed", range(5))
def test_folds_are_those_of_scikit_learn(seed: int) -> None:
    """Of 1.8 and newer: before it, dealing a shuffled order mixed groups up, and ties were broken by the machine."""
    generator = np.random.default_rng(seed)
    group, classes = 3 * generator.integers(0, 20, 100), generator.integers(0, 3, 100)
    dealt = [grouped_folds(group, 4, classes, seed), grouped_folds(group, 4)]
    if seed == 0:
        assert ["".join(map(str, fold[:40])) for fold in dealt] == FOLDS
    if tuple(map(int, sklearn.__version__.split(".")[:2])) >= (1, 8):
        for fold, splitter in zip(
            dealt, [StratifiedGroupKFold(4, shuffle=True, random_state=seed), GroupKFold(4)], strict=True
        ):
            tests = [test for _, test in splitter.split(group, classes, group)]
            assert all((fold[test] == number).all() for number, test in enumerate(tests))


def test_fewer_groups_than_folds_are_refused() -> None:
    with pytest.raises(InputError, match="4 groups of texts cannot be dealt into 5 folds: give folds=4"):
        grouped_folds(np.arange(40) % 4, 5)
    with pytest.raises(InputError, match="at least 2"):
        grouped_folds(np.arange(40), 1)
    with pytest.raises(InputError, match=r"1 groups of texts .*: probes need two groups"):
        grouped_folds(np.zeros(40, dtype=int), 5)
    assert set(grouped_folds(np.arange(40) % 4, 4)) == set(range(4))


@pytest.mark.parametrize("estimator", ["ridge", "mean_difference", "logistic"])
def test_a_prediction_has_seen_nothing_of_its_fold(estimator: str) -> None:
    generator = np.random.default_rng(0)
    features, group = generator.normal(size=(60, 4)), np.arange(60) // 3
    kind = "label" if estimator == "logistic" else "dimension"
    targets = np.eye(2)[generator.integers(2, size=60)] if kind == "label" else generator.normal(size=(60, 2))
    fold = grouped_folds(group, 5)
    fit = fit_for(estimator, kind, True)
    before = out_of_fold(fit, features, targets, group, fold)
    changed, test = targets.copy(), fold == 2
    changed[test] = changed[test][:, ::-1] + (kind == "dimension") * 100
    after = out_of_fold(fit, features, changed, group, fold)
    assert np.array_equal(before[test], after[test])
    assert not np.allclose(before[~test], after[~test])
    # ... nor of the features of other held-out texts, by way of a scaling done too early.
    first, moved = np.flatnonzero(test)[0], features.copy()
    moved[np.flatnonzero(test)[1:]] *= 1000
    assert np.array_equal(out_of_fold(fit, moved, targets, group, fold)[first], before[first])


# Scores --------------------------------------------------------------------------------------------------------------


def scored(texts: int = 90, seed: int = 0) -> tuple[Array, Array, Array, metrics.Weighting]:
    generator = np.random.default_rng(seed)
    group = np.unique(generator.integers(0, 30, texts), return_inverse=True)[1]
    fold = grouped_folds(group, 3)
    predicted = generator.normal(size=(texts, 2)).round(1)  # with ties
    values = 0.6 * predicted + generator.normal(size=(texts, 2))
    carried = (values > 0.3).astype(float)
    return predicted, values, carried, metrics.weighting(group, fold, 300, seed)


def repeated(weights: metrics.Weighting, resample: int) -> Array:
    """Return the rows of a resample, each as often as its group was drawn."""
    return np.repeat(np.arange(len(weights.group)), weights.counts[resample][weights.group])


def test_a_resample_draws_as_many_groups_as_there_are() -> None:
    weights = scored()[3]
    groups = weights.counts.shape[1]
    assert (weights.counts[0] == 1).all() and (weights.counts[1:].sum(1) == groups).all()
    drawn = weights.counts[1:].astype(float)
    assert drawn.mean(0) == pytest.approx(1, abs=0.25) and drawn.var() == pytest.approx(
        1 - 1 / groups, rel=0.1
    )


def test_auc_is_that_of_scikit_learn_averaged_over_the_pairs_of_folds() -> None:
    predicted, _, carried, weights = scored()
    for k in range(2):
        areas, pairs = [], []
        for fold in range(3):
            rows = weights.fold == fold
            areas.append(roc_auc_score(carried[rows, k], predicted[rows, k]))
            pairs.append(carried[rows, k].sum() * (1 - carried[rows, k]).sum())
        assert metrics.auc(predicted, carried, weights)[0, k] == pytest.approx(
            np.average(areas, weights=pairs)
        )
    one_fold = metrics.weighting(weights.group, np.zeros_like(weights.fold))
    assert metrics.auc(predicted, carried, one_fold)[0, 0] == pytest.approx(
        roc_auc_score(carried[:, 0], predicted[:, 0])
    )


def test_resampled_correlation_and_accuracy_are_those_of_the_resampled_texts() -> None:
    predicted, values, carried, weights = scored()
    found = metrics.correlation(predicted, values, weights)
    right = metrics.accuracy(predicted, np.column_stack([carried[:, 0], 1 - carried[:, 0]]), weights)
    for resample in (0, 1, 77):
        rows = repeated(weights, resample)
        centred = [part[rows].copy() for part in (predicted, values)]
        for fold in range(3):
            here = weights.fold[rows] == fold
            for part in centred:
                part[here] -= part[here].mean(0)
        for k in range(2):
            expected = np.corrcoef(centred[0][:, k], centred[1][:, k])[0, 1]
            assert found[resample, k] == pytest.approx(expected)
        expected = (predicted[rows].argmax(1) == 1 - carried[rows, 0]).mean()
        assert right[resample] == pytest.approx(expected)


def test_resampled_auc_is_close_to_that_of_the_resampled_texts() -> None:
    predicted, _, carried, weights = scored(texts=300)
    one_fold = metrics.weighting(weights.group, np.zeros_like(weights.fold), 300)
    found = metrics.auc(predicted, carried, one_fold)[1:, 0]
    exact = np.array(
        [
            roc_auc_score(carried[rows, 0], predicted[rows, 0])
            for rows in (repeated(one_fold, resample) for resample in range(1, 301))
        ]
    )
    assert np.abs(found - exact).max() < 0.02 < exact.std() * 2
    assert np.allclose(np.quantile(found, [0.025, 0.975]), np.quantile(exact, [0.025, 0.975]), atol=0.005)


def test_scores_compare_texts_within_folds_only() -> None:
    predicted, values, carried, weights = scored()
    shifted = predicted + 100 * weights.fold[:, None]
    assert np.allclose(
        metrics.correlation(predicted, values, weights), metrics.correlation(shifted, values, weights)
    )
    assert np.array_equal(metrics.auc(predicted, carried, weights), metrics.auc(shifted, carried, weights))
    assert (
        abs(np.corrcoef(shifted[:, 0], values[:, 0])[0, 1])
        < metrics.correlation(predicted, values, weights)[0, 0] / 2
    )


def test_a_probe_that_predicts_the_training_mean_is_worth_nothing() -> None:
    generator = np.random.default_rng(0)
    values, group = generator.normal(size=(50, 1)), np.arange(50)
    fold = grouped_folds(group, 5)
    predicted = out_of_fold(fit_for("ridge", "dimension"), np.zeros((50, 3)), values, group, fold)
    assert np.corrcoef(predicted[:, 0], values[:, 0])[0, 1] < -0.1  # what pooling over folds would report
    weights = metrics.weighting(group, fold)
    assert metrics.correlation(predicted, values, weights)[0, 0] == 0
    assert metrics.auc(predicted, (values > 0).astype(float), weights)[0, 0] == 0.5


def test_labels_without_pairs_have_no_auc() -> None:
    predicted, _, carried, weights = scored()
    assert np.isnan(metrics.auc(predicted, 0 * carried, weights)).all()


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """Texts of a group share their error; an interval that took texts for independent would be far too narrow."""
    generator = np.random.default_rng(0)
    inside = naive = 0
    for _ in range(200):
        group = np.arange(400) // 10
        right = (generator.uniform(size=40) < 0.5)[group]
        predicted = np.column_stack([right, ~right]).astype(float)
        carried = np.tile([1.0, 0.0], (400, 1))
        for groups, independent in ((group, False), (np.arange(400), True)):
            weights = metrics.weighting(groups, groups % 5, 200, 1)
            low, high = metrics.interval(metrics.accuracy(predicted, carried, weights), 40)
            if independent:
                naive += low <= 0.5 <= high
            else:
                inside += low <= 0.5 <= high
    assert 175 <= inside <= 200 and naive < 120


def test_intervals_of_few_groups_are_wider_and_cover() -> None:
    """Eight groups with errors of their own: percentiles of resampled groups cover 95 % too seldom, Student's t does."""
    generator = np.random.default_rng(0)
    inside = percentile = 0
    for _ in range(300):
        group = np.arange(240) // 30
        right = generator.uniform(size=240) < generator.beta(4, 4, size=8)[group]
        predicted = np.column_stack([right, ~right]).astype(float)
        weights = metrics.weighting(group, group % 4, 200, 1)
        scores = metrics.accuracy(predicted, np.tile([1.0, 0.0], (240, 1)), weights)
        low, high = metrics.interval(scores, 8)
        inside += low <= 0.5 <= high
        low, high = np.quantile(scores[1:], [0.025, 0.975])
        percentile += low <= 0.5 <= high
    assert inside >= 0.92 * 300 and percentile < 0.91 * 300
    assert np.isnan(metrics.interval(scores, 1)).all() and np.isnan(metrics.interval(scores[:1], 8)).all()


def test_labels_too_rare_to_be_scored_do_not_spoil_the_rest() -> None:
    """Two texts carry the rare label: most resamples, and most shuffled samples, have no pair of it in any fold."""
    generator = np.random.default_rng(0)
    targets = np.column_stack([generator.integers(2, size=60), np.arange(60) < 2]).astype(float)
    features = targets[:, [0]] + 0.5 * generator.normal(size=(60, 3))
    task = made_task("label", targets, np.arange(60) // 2, exclusive=False)
    weights = metrics.weighting(task.group, task.fold, 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = cross_validate(task, fit_for("logistic", "label"), features, weights, 3, 0).set_index(
            "concept"
        )
    assert list(scores.metric) == ["macro_auc", "auc", "auc"]
    assert scores.notna().all().all()
    areas = scores.value[["concept 0", "concept 1"]]
    assert scores.value[LABELS] == pytest.approx(areas.mean())
    assert np.isnan(metrics.mean_known(np.array([[np.nan, np.nan], [np.nan, 0.7]]))).tolist() == [True, False]


# Controls ------------------------------------------------------------------------------------------------------------


def test_what_identifies_a_group_gives_nothing() -> None:
    """Each group has its own feature and its own label, so a fit that sees half of a group knows the other half."""
    generator = np.random.default_rng(0)
    group = np.repeat(np.arange(40), 10)
    label = generator.permutation(np.arange(40) % 2)[group]
    features = np.eye(40)[group] + 0.01 * generator.normal(size=(400, 40))
    task = made_task("label", np.eye(2)[label], group)
    fit = fit_for("logistic", "label", True)
    honest = cross_validate(task, fit, features, task.plain, 3, 0).value
    cut = made_task("label", np.eye(2)[label], np.arange(400))
    leaking = cross_validate(cut, fit, features, cut.plain, 3, 0).value
    assert honest[0] < 0.6 and honest[1] < 0.65
    assert leaking[0] > 0.95 and leaking[1] > 0.95


KINDS = [("ridge", "label"), ("mean_difference", "label"), ("logistic", "label")]
KINDS += [("ridge", "dimension"), ("mean_difference", "dimension")]


@pytest.mark.parametrize(("estimator", "kind"), KINDS)
def test_the_planted_is_found_and_its_shuffle_is_at_chance(estimator: str, kind: str) -> None:
    generator = np.random.default_rng(1)
    group = np.arange(600) // 4
    latent = generator.normal(size=(600, 2))
    features = latent @ generator.normal(size=(2, 16)) + 0.5 * generator.normal(size=(600, 16))
    targets = np.eye(2)[(latent[:, 0] > 0).astype(int)] if kind == "label" else latent
    task = made_task(kind, targets, group)
    weights = metrics.weighting(group, task.fold, 200)
    scores = cross_validate(task, fit_for(estimator, kind, True), features, weights, 20, 0)
    if kind == "label":
        assert list(scores.concept) == [LABELS, "concept 0", "concept 1"]
        assert list(scores.metric) == ["accuracy", "auc", "auc"]
    chance = 0.5 if kind == "label" else 0.0
    assert (scores.value > 0.75).all()
    assert (
        (scores.low < scores.value) & (scores.value < scores.high) & (scores.low > scores.shuffled_high)
    ).all()
    assert (abs(scores.shuffled - chance) < 0.05).all()
    assert ((scores.shuffled_low < chance) & (chance < scores.shuffled_high)).all()


def test_shuffling_hands_annotations_on_from_group_to_group() -> None:
    generator = np.random.default_rng(0)
    group = generator.permutation(np.repeat(np.arange(12), 5))
    givers = [shuffle(group, np.random.default_rng(seed)) for seed in range(200)]
    for giver in givers:
        assert np.array_equal(np.sort(giver), np.arange(60))  # every annotation is used once
        # ... and a group of equal size gets those of one group only.
        assert all(len(set(group[giver[group == g]])) == 1 for g in range(12))
    assert len({tuple(giver) for giver in givers}) == 200
    # Each giver is as likely as any other, also within its group.
    received = np.bincount([giver[7] for giver in givers], minlength=60)
    assert received.max() <= 12
    alone = shuffle(np.arange(60), np.random.default_rng(0))
    assert np.array_equal(np.sort(alone), np.arange(60)) and not np.array_equal(alone, np.arange(60))


def test_shuffling_keeps_the_likeness_of_a_groups_texts_in_the_null() -> None:
    """One label and one feature vector for each of 20 groups: 20 things are shuffled, not 400."""
    generator = np.random.default_rng(0)
    group = np.arange(400) // 20
    features = generator.normal(size=(20, 3))[group]
    targets = generator.normal(size=(20, 1))[group]
    fit = fit_for("mean_difference", "dimension", True)
    task = made_task("dimension", targets, group)
    frame = cross_validate(task, fit, features, task.plain, 40, 0)
    assert frame.shuffled_high[0] - frame.shuffled_low[0] > 0.8  # shuffling texts would give about 0.2


def test_shuffled_labels_are_fitted_on_a_sample_of_whole_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    group = np.arange(300) // 6
    task = made_task("label", np.eye(2)[generator.integers(2, size=300)], group)
    part = subset(task, 100, np.random.default_rng(0))
    assert 90 < len(part) <= 100
    assert all((group[part] == g).sum() == 6 for g in set(group[part]))
    assert np.array_equal(subset(task, 300, generator), np.arange(300))
    sizes: list[int] = []
    fit = fit_for("mean_difference", "label", True)

    def spying(features: Any, targets: Array, group: Array) -> Any:
        sizes.append(len(targets))
        return fit(features, targets, group)

    monkeypatch.setattr("emoprobe.probes.validation.SHUFFLE_TEXTS", 100)
    cross_validate(task, spying, generator.normal(size=(300, 3)), task.plain, 2, 0)
    assert max(sizes[:5]) > 200 and max(sizes[5:]) <= 100


@pytest.mark.parametrize("kind", ["label", "dimension"])
def test_control_tasks_of_some_texts_are_those_of_a_task_of_these_alone(kind: str) -> None:
    generator = np.random.default_rng(0)
    features, group = generator.normal(size=(300, 3)), np.arange(300) // 6
    targets = np.eye(2)[(features[:, 0] > 0).astype(int)] if kind == "label" else features[:, :1]
    task = made_task(kind, targets, group)
    part = subset(task, 100, generator)
    controls = [targets[generator.permutation(part)] for _ in range(2)]
    few = replace(
        task, rows=np.arange(len(part)), targets=targets[part], group=group[part], fold=task.fold[part]
    )
    fit = fit_for("mean_difference", kind, True)
    found = validate(task, fit, features, task.plain, 2, 0, (part, controls))
    alone = validate(few, fit, features[part], few.plain, 2, 0, (np.arange(len(part)), controls))
    assert found.control is not None and alone.control is not None and alone.selectivity is not None
    assert np.allclose(found.control, alone.control) and np.allclose(found.selectivity, alone.selectivity)
    assert found.predicted.shape == targets.shape and (found.scores[0] > 0.8).all()


def test_a_bag_of_words_reads_words_and_only_within_its_folds() -> None:
    generator = np.random.default_rng(0)
    group = np.arange(200) // 5
    label = generator.integers(2, size=200)
    telling = [f"it was a {'glad' if one else 'sad'} day" for one in label]
    task = made_task("label", np.eye(2)[label], group)
    assert (bag_of_words(task, telling, task.plain) > 0.99).all()
    # A word for each group, and one label for each group: only a fit that saw the group could tell.
    of_group = generator.permutation(np.arange(40) % 2)[group]
    task = made_task("label", np.eye(2)[of_group], group)
    assert bag_of_words(task, [f"word{g}x" for g in group], task.plain)[0, 0] < 0.7
    cut = made_task("label", np.eye(2)[of_group], np.arange(200))
    assert bag_of_words(cut, [f"word{g}x" for g in group], cut.plain)[0, 0] > 0.95


@pytest.mark.parametrize("kind", ["label", "dimension"])
def test_a_bag_of_words_has_seen_nothing_of_its_fold(kind: str) -> None:
    """Neither held-out annotations nor how common a word is in held-out texts."""
    generator = np.random.default_rng(0)
    words = np.array("glad sad sun rain dog letter".split())
    texts = [" ".join(generator.choice(words, 4)) for _ in range(60)]
    values = np.array([[text.count("glad") + 0.0, generator.normal()] for text in texts])
    targets = values if kind == "dimension" else np.eye(2)[(values[:, 0] > 0).astype(int)]
    task = made_task(kind, targets, np.arange(60) // 2)
    before = words_out_of_fold(task, texts)
    test = np.flatnonzero(task.fold == 1)
    changed, other = targets.copy(), list(texts)
    changed[test] = changed[test][:, ::-1]
    for row in test[1:]:
        other[row] = "glad"
    after = words_out_of_fold(replace(task, targets=changed), other)
    assert np.array_equal(before[test[0]], after[test[0]])
    assert not np.allclose(before[test[1:]], after[test[1:]]) and not np.allclose(
        before[task.fold == 0], after[task.fold == 0]
    )


def test_a_bag_of_words_reads_dimensions_signs_and_any_script() -> None:
    generator = np.random.default_rng(0)
    value = generator.integers(0, 4, 200)
    texts = ["😀" * v + " 好" + "!" * (3 - v) for v in value]
    task = made_task("dimension", value[:, None].astype(float), np.arange(200) // 2)
    assert bag_of_words(task, texts, task.plain)[0, 0] > 0.9


# Tasks ---------------------------------------------------------------------------------------------------------------


def corpus(**columns: Any) -> Corpus:
    ranges = {name: (0.0, 1.0) for name in columns if name in ("valence", "arousal")}
    texts = [f"text number {row}" for row in range(len(next(iter(columns.values()))))]
    return Corpus.from_columns({"text": texts, **columns}, dimensions=ranges)


def test_texts_without_an_annotation_are_left_out() -> None:
    nan = float("nan")
    made = corpus(labels=[["a"], ["b"], []] * 10, valence=[0.1, nan, 0.3] * 10, arousal=[0.5, 0.2, 0.6] * 10)
    labels, valence, arousal = plan(made)
    assert labels.exclusive and len(labels.rows) == 20 and labels.concepts == ("a", "b")
    assert len(valence.rows) == 20 and len(arousal.rows) == 30
    assert np.array_equal(labels.targets.sum(1), np.ones(20))
    assert np.isfinite(valence.targets).all()


def test_dimensions_of_the_same_texts_are_one_task() -> None:
    made = corpus(valence=[0.1, 0.2, 0.3] * 10, arousal=[0.5, 0.2, 0.6] * 10)
    (task,) = plan(made)
    assert task.concepts == ("valence", "arousal") and task.targets.shape == (30, 2)
    (task,) = plan(made, ["arousal"])
    assert task.concepts == ("arousal",)


def test_labels_that_overlap_or_stand_alone_are_told_from_their_absence() -> None:
    (task,) = plan(corpus(labels=[["a"], ["b"], [], ["a", "b"]] * 10))
    assert not task.exclusive and len(task.rows) == 40
    assert task.measures == [(LABELS, "macro_auc"), ("a", "auc"), ("b", "auc")]
    (task,) = plan(corpus(labels=[["a"], []] * 10))
    assert not task.exclusive and len(task.rows) == 20


def test_exclusive_labels_are_fitted_whichever_are_wanted() -> None:
    made = corpus(labels=[["a"], ["b"], ["c"]] * 10)
    (task,) = plan(made, ["b"])
    assert task.concepts == ("a", "b", "c")


def test_concepts_that_cannot_be_learnt_are_left_out_or_refused() -> None:
    made = corpus(labels=[["a"], ["b"]] * 10 + [["rare"]], valence=[0.5] * 21)
    with pytest.warns(UserWarning, match="nothing to learn rare, valence from"):
        (task,) = plan(made)
    assert task.concepts == ("a", "b") and len(task.rows) == 20
    with pytest.raises(InputError, match="nothing to learn valence"):
        plan(made, ["valence", "a"])
    with pytest.raises(
        InputError, match="no concept 'joy'; its labels and dimensions are a, b, rare, valence"
    ):
        plan(made, ["joy"])
    with pytest.raises(InputError, match="nothing to probe for"):
        plan(corpus(group=["x", "y"]))
