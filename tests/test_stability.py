"""Whether directions come back from other texts, against directions computed by hand and against what was planted."""

from typing import Any

import numpy as np
import pytest
from small_probes import PLANTED_LAYER, model, planted

from emoprobe import drawing
from emoprobe.corpora import Corpus
from emoprobe.errors import InputError
from emoprobe.probes.direction_stability import (
    HALVES,
    RESAMPLES,
    Stability,
    agreement,
    cosines,
    halves,
    resamples,
    stability,
)
from emoprobe.probes.estimators import Fit, fit_for
from emoprobe.probes.tasks import Task, plan
from emoprobe.probes.validation import expected_range

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def found() -> Stability:
    return stability(model(), planted()[0], [PLANTED_LAYER, 3], draws=6, progress=False)


def groups_of(sizes: list[int]) -> Array:
    """Return the group of each text, groups mixed."""
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))


# Draws ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[1] * 40, [5] * 8, [30, 1, 1, 2, 9, 3], [3, 3]])
@pytest.mark.parametrize("seed", range(4))
def test_halves_are_disjoint_whole_and_of_like_size(sizes: list[int], seed: int) -> None:
    group = groups_of(sizes)
    first, second = halves(group, np.random.default_rng(seed))
    assert len(first) and len(second)
    assert sorted([*first, *second]) == list(range(len(group)))
    assert not set(group[first]) & set(group[second])
    assert abs(len(first) - len(second)) <= max(sizes)


def test_halves_differ_from_draw_to_draw() -> None:
    group, order = groups_of([2] * 20), np.random.default_rng(0)
    draws = {tuple(halves(group, order)[0]) for _ in range(5)}
    assert len(draws) == 5


def test_a_resample_draws_whole_groups_as_many_as_there_are() -> None:
    group = groups_of([4, 1, 2, 6, 3, 1])
    for sample in resamples(group, np.random.default_rng(3)):
        times = np.bincount(sample, minlength=len(group))
        by_group = [set(times[group == number].tolist()) for number in range(6)]
        assert all(len(counts) == 1 for counts in by_group)
        assert sum(counts.pop() for counts in by_group) == 6


# Cosines -------------------------------------------------------------------------------------------------------------


def test_cosines_are_those_of_directions_computed_by_hand() -> None:
    generator = np.random.default_rng(0)
    features, group = generator.normal(size=(60, 5)), np.arange(60) // 3
    values = features @ generator.normal(size=(5, 2)) + generator.normal(size=(60, 2))
    first, second = halves(group, generator)
    (ours,) = cosines(fit_for("mean_difference", "dimension"), features, [values], group, first, second)
    for column in range(2):
        one, other = (
            (features[rows] - features[rows].mean(0)).T @ (values[rows, column] - values[rows, column].mean())
            for rows in (first, second)
        )
        assert ours[column] == pytest.approx(one @ other / np.sqrt((one @ one) * (other @ other)), abs=1e-12)
    classes = generator.integers(3, size=60)
    (ours,) = cosines(
        fit_for("mean_difference", "label", True), features, [np.eye(3)[classes]], group, first, second
    )
    means = [[features[rows][classes[rows] == k].mean(0) for k in range(3)] for rows in (first, second)]
    one, other = (np.array(part) - np.mean(part, axis=0) for part in means)
    by_hand = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    assert ours == pytest.approx(by_hand, abs=1e-12)


def test_a_resample_counts_a_text_as_often_as_it_was_drawn() -> None:
    generator = np.random.default_rng(1)
    features, values, group = (
        generator.normal(size=(12, 4)),
        generator.normal(size=(12, 1)),
        np.arange(12) // 2,
    )
    first, second = resamples(group, generator)
    (found,) = cosines(fit_for("mean_difference", "dimension"), features, [values], group, first, second)
    directions = []
    for rows in (first, second):
        weight = np.bincount(rows, minlength=12)[:, None] / len(rows)
        x, y = features - (weight * features).sum(0), values - (weight * values).sum(0)
        directions.append((weight * x * y).sum(0))
    one, other = directions
    assert found[0] == pytest.approx(one @ other / np.linalg.norm(one) / np.linalg.norm(other), abs=1e-12)


def test_a_half_without_a_label_says_nothing_of_it() -> None:
    features, group = np.random.default_rng(0).normal(size=(8, 3)), np.arange(8)
    carried = np.eye(2)[[1, 0, 1, 0, 0, 0, 0, 0]]
    fit = fit_for("mean_difference", "label")
    (found,) = cosines(fit, features, [carried[:, [1]]], group, np.arange(4), np.arange(4, 8))
    assert np.isnan(found).all()


def split_half(fit: Fit, features: Any, values: Any, group: Any, splits: int, seed: int = 0) -> Any:
    names = tuple(f"d{column}" for column in range(values.shape[1]))
    task = Task("dimension", False, names, np.arange(len(group)), values, group, np.zeros_like(group))
    return agreement(fit, features, task, halves, splits, seed, shuffles=0)[0]


def test_directions_of_noise_are_as_alike_as_random_ones_and_those_of_a_signal_alike() -> None:
    generator = np.random.default_rng(0)
    width, texts = 40, 400
    features, group = generator.normal(size=(texts, width)), np.arange(texts) // 2
    direction = generator.normal(size=width)
    values = np.stack([generator.normal(size=texts), features @ direction], 1)
    values[:, 1] += generator.normal(size=texts)
    fit = fit_for("mean_difference", "dimension")
    noise = [
        split_half(fit, features, generator.permutation(values), group, 1, seed)[0, 0] for seed in range(200)
    ]
    assert np.mean(noise) == pytest.approx(0, abs=3 * width**-0.5 / np.sqrt(200))
    assert np.std(noise) == pytest.approx(width**-0.5, rel=0.15)
    # A half's direction is the true one plus noise of 1/(texts in it) of the variance of y · x along each axis.
    signal = split_half(fit, features, values, group, 20)[:, 1]
    norm = direction @ direction
    expected = norm / (norm + width * (norm + 1 + norm / width) / (texts / 2))
    assert signal.mean() == pytest.approx(expected, abs=0.05)


def test_shuffled_annotations_are_read_on_the_same_draws() -> None:
    corpus, _ = planted()
    (task,) = plan(corpus, ["planted"])
    features = model().capture(corpus.texts, [PLANTED_LAYER])[:, 0].double().numpy()
    fit = fit_for("ridge", "dimension")
    true, shuffled = agreement(fit, features, task, halves, 8)
    assert true.shape == shuffled.shape == (8, 1)
    assert true.min() > 0.9 and np.abs(shuffled).max() < 0.8
    # Resamples of one set of texts are alike even where the annotations are another text's: that is why they are shown.
    again, chance = agreement(fit, features, task, resamples, 8)
    assert again.min() > 0.9 and chance.mean() > shuffled.mean() + 0.2


# The whole -----------------------------------------------------------------------------------------------------------


def test_what_was_planted_comes_back_and_noise_does_not(found: Stability) -> None:
    best = found.best().set_index("concept")
    assert best.loc["planted", "above"] and best.loc["planted", "cosine"] > 0.9
    assert best.loc["planted", "layer"] == PLANTED_LAYER
    assert best.loc["halves", "above"] and not best.loc["noise", "above"]
    said = {line.split(":")[0]: line for line in found.report().splitlines()}
    assert said["planted"].endswith("comes back from other texts.")
    assert said["noise"].endswith("is not shown to come back from other texts.")


def test_the_frame_holds_what_its_columns_say(found: Stability) -> None:
    frame = found.frame
    assert set(frame.layer) == {PLANTED_LAYER, 3} and set(frame.draw) == {HALVES, RESAMPLES}
    assert set(frame.random) == {model().d_model ** -0.5}
    corpus, _ = planted()
    (task,) = plan(corpus, ["halves"])
    row = frame[(frame.concept == "halves") & (frame.layer == 3) & (frame.draw == HALVES)].iloc[0]
    assert (row.n, row.groups) == (120, 40)
    both = model().capture(corpus.texts, [PLANTED_LAYER, 3])[task.rows].double().numpy()
    fits = [agreement(fit_for("ridge", "dimension"), both[:, k], task, halves, 6) for k in range(2)]
    assert row.cosine == pytest.approx(fits[1][0].mean(), abs=1e-6)
    assert (row.low, row.high) == pytest.approx(np.quantile(fits[1][0], [0.025, 0.975]), abs=1e-6)
    null = [row.shuffled, row.shuffled_low, row.shuffled_high]
    assert null == pytest.approx(expected_range(fits[1][1])[0], abs=1e-6)
    best = np.maximum(fits[0][1], fits[1][1])
    assert row.shuffled_best_high == pytest.approx(expected_range(best)[0, 2], abs=1e-6)


def test_batches_and_padding_change_nothing(found: Stability) -> None:
    part = found.frame[(found.frame.concept == "noise") & (found.frame.layer == 3)]
    options = {"draws": 6, "progress": False, "concepts": "noise"}
    one = stability(model(), planted()[0], [3], batch_size=1, **options).frame
    assert one.cosine.to_numpy() == pytest.approx(part.cosine.to_numpy(), abs=1e-5)
    assert one.shuffled.to_numpy() == pytest.approx(part.shuffled.to_numpy(), abs=1e-5)


def test_it_shows_itself_and_escapes_names(found: Stability) -> None:
    figure = found.plot(["planted", "noise"])
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["planted", "noise"]
    assert drawing.svg(figure).count("resamples, shuffled") == 1
    with pytest.raises(InputError, match="no directions of 'fear'"):
        found.plot(["fear"])
    strange = Stability("<b>model</b>", "corpus", 6, found.frame.replace({"concept": {"noise": "<i>"}}))
    assert "<b>" not in strange._repr_html_() and "<i>" not in strange._repr_html_()


def test_too_few_draws_or_groups_are_refused() -> None:
    corpus, _ = planted()
    with pytest.raises(InputError, match="draws=3"):
        stability(model(), corpus, draws=3, progress=False)
    few = Corpus.from_columns(
        {"text": corpus.texts[:9], "d": np.arange(9) / 9, "group": list("aaabbbccc")},
        dimensions={"d": (0, 1)},
    )
    with pytest.raises(InputError, match="3 groups of texts annotated for d"):
        stability(model(), few, progress=False)
    with pytest.raises(InputError, match="no concept 'fear'"):
        stability(model(), corpus, concepts="fear", progress=False)
