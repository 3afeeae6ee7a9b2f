"""Learning curves against cross-validation done the long way, against what was planted, and against curves drawn by hand."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from small_probes import PLANTED_LAYER, model, planted

from emoprobe.corpora import Corpus
from emoprobe.errors import InputError
from emoprobe.probes.estimators import fit_for
from emoprobe.probes.learning_curves import (
    LearningCurve,
    _resampled_shares,
    beginnings,
    learning_curve,
    sizes_for,
)
from emoprobe.probes.probe_set import LABELS
from emoprobe.probes.tasks import Task, plan
from emoprobe.probes.validation import out_of_fold, words_out_of_fold

Array = np.ndarray[Any, Any]
OPTIONS: dict[str, Any] = {"repeats": 3, "bootstrap": 200, "progress": False}


@pytest.fixture(scope="module")
def found() -> LearningCurve:
    return learning_curve(model(), planted()[0], [PLANTED_LAYER], **OPTIONS)


def task_of(concept: str, folds: int = 4) -> Task:
    return next(task for task in plan(planted()[0], folds=folds) if concept in task.concepts)


def features_of(task: Task, layer: int = PLANTED_LAYER) -> Array:
    captured: Array = model().capture(planted()[0].texts, [layer])[:, 0].double().numpy()
    return captured[task.rows]


def curve(found: LearningCurve, concept: str) -> pd.DataFrame:
    return found.frame[found.frame.concept == concept].set_index("size")


def r_within_folds(predicted: Array, values: Array, fold: Array) -> float:
    parts = [(predicted[fold == k], values[fold == k]) for k in set(fold)]
    covariance = sum(((p - p.mean()) * (v - v.mean())).sum() for p, v in parts)
    return float(
        covariance
        / np.sqrt(sum(p.var() * len(p) for p, _ in parts) * sum(v.var() * len(v) for _, v in parts))
    )


# What is drawn -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_draws_are_whole_groups_of_other_folds_and_grow(seed: int) -> None:
    task, sizes = task_of("planted"), [20, 50, 90, 180]
    drawn = beginnings(task, sizes, [seed])
    for number in range(4):
        rest = set(np.flatnonzero(task.fold != number).tolist())
        before: set[int] = set()
        for size, by_fold in zip(sizes, drawn, strict=True):
            rows = by_fold[number]
            assert len(set(rows)) == len(rows) and set(rows) <= rest
            assert size - 6 < len(rows) <= size  # groups have six texts
            chosen = set(task.group[rows])
            assert set(rows) == {row for row in rest if task.group[row] in chosen}
            assert before <= set(rows)
            before = set(rows)
        assert before == rest
    assert any(
        set(a) != set(b) for a, b in zip(drawn[0], beginnings(task, sizes, [seed + 100])[0], strict=True)
    )


def test_sizes_are_halved_down_to_a_few_and_end_with_all() -> None:
    assert sizes_for(480) == [60, 120, 240, 480]
    assert sizes_for(100_000) == [3125, 6250, 12500, 25000, 50000, 100_000]
    assert sizes_for(20) == [20]
    assert sizes_for(100, [10, 50, 400]) == [10, 50, 100]


# What is scored ------------------------------------------------------------------------------------------------------


def test_all_texts_score_what_cross_validation_gives(found: LearningCurve) -> None:
    for concept in ("planted", "halves", LABELS, "high"):
        task = next(
            task for task in plan(planted()[0], folds=4) if concept in {name for name, _ in task.measures}
        )
        fit = fit_for("logistic" if task.kind == "label" else "ridge", task.kind, task.exclusive)
        predicted = out_of_fold(fit, features_of(task), task.targets, task.group, task.fold)
        column = [name for name, _ in task.measures].index(concept)
        last = curve(found, concept).iloc[-1]
        assert last.value == pytest.approx(
            task.score(predicted, task.targets, task.plain)[0, column], abs=1e-6
        )
        texts = [planted()[0].texts[row] for row in task.rows]
        words = words_out_of_fold(task, texts)
        assert last.bag_of_words == pytest.approx(
            task.score(words, task.targets, task.plain)[0, column], abs=1e-9
        )
        predicted = out_of_fold(fit, features_of(task, 0), task.targets, task.group, task.fold)
        assert last.layer0 == pytest.approx(
            task.score(predicted, task.targets, task.plain)[0, column], abs=1e-6
        )


def test_fewer_texts_score_what_probes_of_just_these_give(found: LearningCurve) -> None:
    task = task_of("planted")
    column, features, fit = task.concepts.index("planted"), features_of(task), fit_for("ridge", "dimension")
    size = int(curve(found, "planted").index[1])
    scores = []
    for draw in range(OPTIONS["repeats"]):
        (samples,) = beginnings(task, [size], [0, draw])
        predicted = np.empty(len(task.rows))
        for number, rows in enumerate(samples):
            held_out = task.fold == number
            read_out = fit(features[rows], task.targets[rows][:, [column]], task.group[rows])
            predicted[held_out] = read_out(features[held_out])[:, 0]
        scores.append(r_within_folds(predicted, task.targets[:, column], task.fold))
    row = curve(found, "planted").loc[size]
    assert len(set(scores)) == 3 and row.value == pytest.approx(np.mean(scores), abs=1e-6)
    assert row.missing == pytest.approx(curve(found, "planted").iloc[-1].value - row.value, abs=1e-12)


def test_intervals_hold_the_scores_and_pair_sizes_and_controls(found: LearningCurve) -> None:
    frame = found.frame
    assert (frame.low <= frame.value).all() and (frame.value <= frame.high).all()
    gains = frame[frame.concept == "planted"]
    for control in ("layer0", "bag_of_words"):
        gain = gains.value - gains[control]
        assert (gains[f"{control}_gain_low"] <= gain).all() and (gain <= gains[f"{control}_gain_high"]).all()
    whole = frame[frame["size"] == frame.groupby(["concept", "metric"])["size"].transform("max")]
    assert (whole[["missing", "missing_low", "missing_high"]] == 0).all(axis=None)
    # What is paired with itself differs from itself by nothing.
    embedding = learning_curve(model(), planted()[0], 0, concepts="halves", **OPTIONS).frame
    assert (embedding[["layer0_gain_low", "layer0_gain_high"]] == 0).all(axis=None)
    assert (embedding.high - embedding.low > 0.05).all()


def test_draws_are_resampled_by_as_much_as_their_mean_varies() -> None:
    shares = _resampled_shares(3, 20_000, 0)
    assert shares[0] == pytest.approx(1 / 3) and shares.sum(1) == pytest.approx(1)
    values = np.array([0.1, 0.5, 0.3])
    means = shares[1:] @ values
    assert means.mean() == pytest.approx(values.mean(), abs=0.005)
    assert means.var() == pytest.approx(values.var(ddof=1) / 3, rel=0.05)


def test_what_was_planted_is_learned_and_noise_is_not(found: LearningCurve) -> None:
    planted_curve = curve(found, "planted")
    assert planted_curve.value.iloc[-1] > 0.95 and planted_curve.missing_low.iloc[0] > 0
    assert (planted_curve.shuffled.abs() < 0.4).all()
    assert (planted_curve.shuffled_low < planted_curve.shuffled).all()
    verdicts = found.verdicts().set_index("concept").verdict
    assert verdicts["noise"] == "unread" and verdicts["planted"] in ("flat", "rises")
    assert found.verdicts(margin=1.0).set_index("concept").enough["planted"] == planted_curve.index[0]
    assert set(found.frame.layer) == {PLANTED_LAYER}


def test_batches_and_padding_change_nothing(found: LearningCurve) -> None:
    one = learning_curve(
        model(), planted()[0], PLANTED_LAYER, concepts="halves", batch_size=1, **OPTIONS
    ).frame
    other = found.frame[found.frame.concept == "halves"]
    assert len(one) == len(other)
    for column in ("value", "low", "high", "shuffled", "layer0", "bag_of_words", "missing_high"):
        assert one[column].to_numpy() == pytest.approx(other[column].to_numpy(), abs=1e-5)


def test_a_draw_with_one_label_says_that_one() -> None:
    texts, labels = planted()[0].texts[:48], ["a"] * 24 + ["b"] * 24
    columns = {
        "text": texts,
        "labels": [[name] for name in labels],
        "group": [f"{row // 3}" for row in range(48)],
    }
    corpus = Corpus.from_columns(columns)
    found = learning_curve(model(), corpus, 1, sizes=[3, 30], **OPTIONS)
    smallest = curve(found, "a").iloc[0]
    assert smallest.texts == 3 and smallest.value == 0.5
    assert curve(found, LABELS).value.iloc[0] == pytest.approx(0.5, abs=0.15)


# What is said --------------------------------------------------------------------------------------------------------


def drawn_by_hand(missing: list[tuple[float, float, float]], value: float = 0.6) -> LearningCurve:
    sizes = [50, 100, 200, 400]
    gaps = np.array([*missing, (0.0, 0.0, 0.0)])
    frame = pd.DataFrame({"layer": 3, "concept": "joy", "metric": "pearson_r", "size": sizes})
    frame["value"] = value - gaps[:, 0]
    frame["low"], frame["high"] = frame.value - 0.05, frame.value + 0.05
    frame[["missing", "missing_low", "missing_high"]] = gaps
    frame = frame.assign(shuffled_high=0.2, layer0=0.3, bag_of_words=0.4, n=500, groups=50)
    return LearningCurve("a model", "a corpus", 4, frame.sample(frac=1, random_state=0))


@pytest.mark.parametrize(
    ("missing", "value", "verdict", "enough"),
    [
        ([(0.1, 0.05, 0.15), (0.01, 0.0, 0.019), (0.0, -0.01, 0.01)], 0.6, "flat", 100),
        ([(0.0, -0.01, 0.01), (0.1, 0.05, 0.15), (0.0, -0.01, 0.01)], 0.6, "flat", 200),  # a dip breaks it
        ([(0.0, -0.01, 0.01), (0.0, -0.01, 0.01), (0.1, 0.05, 0.15)], 0.6, "rises", np.nan),
        ([(0.2, 0.1, 0.3), (0.1, 0.05, 0.15), (0.02, -0.01, 0.05)], 0.6, "open", np.nan),
        ([(0.0, -0.01, 0.01)] * 3, 0.1, "unread", np.nan),
    ],
)
def test_verdicts(
    missing: list[tuple[float, float, float]], value: float, verdict: str, enough: float
) -> None:
    found = drawn_by_hand(missing, value)
    row = found.verdicts().iloc[0]
    assert row.verdict == verdict and row.enough == pytest.approx(enough, nan_ok=True)
    said = {
        "flat": f"; {enough:.0f} texts are enough: all of them add",
        "rises": "; the curve still rises: from 200 to 400 texts it gained +0.100 [+0.050, +0.150].",
        "open": "; whether it still rises cannot be told: from 200 to 400 texts it gained +0.020 [-0.010, +0.050].",
        "unread": "not shown to be above shuffled annotations",
    }
    sentence = found.report().splitlines()[1]
    assert said[verdict] in sentence and sentence.startswith(f"joy, layer 3: Pearson r {value:.2f} ")


def test_it_shows_itself_and_escapes_names(found: LearningCurve) -> None:
    titles = [axis.get_title(loc="left") for axis in found.plot().axes]
    assert titles == [LABELS, "planted", "noise", "halves"]
    with pytest.raises(InputError, match="no curve at layer 3"):
        found.plot(layer=3)
    with pytest.raises(InputError, match="no curve of 'fear'"):
        found.plot(["fear"])
    assert f"Single labels, layer {PLANTED_LAYER}, 3 curves: " in found.report()
    shown = LearningCurve(
        "<b>", "corpus", 3, found.frame.replace({"concept": {"noise": "<i>"}})
    )._repr_html_()
    assert "<b>" not in shown and "<i>" not in shown


def test_what_cannot_be_is_refused() -> None:
    corpus = planted()[0]
    for options, problem in (
        ({"sizes": [1, 30]}, r"sizes=\[1, 30\]"),
        ({"sizes": []}, r"sizes=\[\]"),
        ({"repeats": 1}, "repeats=1"),
        ({"bootstrap": 10}, "bootstrap=10"),
        ({"estimator": "svm"}, 'estimator="svm" is not understood'),
        ({"folds": 41}, "40 groups of texts cannot be dealt into 41 folds"),
    ):
        with pytest.raises(InputError, match=problem):
            learning_curve(model(), corpus, 1, **{"progress": False, **options})
