"""From one corpus to another, against fits and scores computed directly, and against what was planted."""

from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import false_discovery_control
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score
from small_probes import PLANTED_LAYER, model, planted

from emoprobe.corpora import Corpus
from emoprobe.errors import InputError
from emoprobe.intervals import prediction_interval
from emoprobe.probes import fit_probes
from emoprobe.probes.estimators import fit_for
from emoprobe.probes.shared import fresh_texts, shared_concepts
from emoprobe.probes.tasks import Task, plan
from emoprobe.probes.transfers import Transfer, fisher, one_more, shuffled_fits, transfer
from emoprobe.probes.validation import fit_words, shuffle

Array = np.ndarray[Any, Any]
OPTIONS: dict[str, Any] = {"permutations": 12, "bootstrap": 100, "progress": False}
SAME = {"up": "high", "down": "low", "Planted": "planted"}
LAYERS = [PLANTED_LAYER, 3]


def made(name: str, rows: Array, **changed: Any) -> Corpus:
    """Return some rows of the planted corpus as a corpus of its own."""
    frame = planted()[0].frame.iloc[rows].drop(columns=["spans", "split", "source"])
    columns: dict[str, Any] = {name: frame[name].tolist() for name in frame} | changed
    columns = {name: column for name, column in columns.items() if column is not None}
    ranges = {d: (-1.0, 1.0) for d in columns if d not in ("text", "labels", "group")}
    return Corpus.from_columns(columns, name=name, dimensions=ranges)


@cache
def corpora() -> tuple[Corpus, Corpus]:
    """Return two corpora with other names for some concepts; the second says four texts of the first, in capitals."""
    one = made("one", np.arange(120))
    rows = np.arange(120, 240)
    frame = planted()[0].frame.iloc[rows]
    called = {"high": "up", "low": "down", "middle": "middle"}
    labels = [[called[row[0]]] for row in frame.labels]
    texts = frame.text.tolist()
    texts[10:14] = [text.upper() for text in one.texts[:4]]
    two = made("two", rows, labels=labels, text=texts, Planted=frame.planted.tolist())
    columns = {
        name: two.frame[name].tolist()
        for name in two.frame
        if name not in ("planted", "spans", "split", "source")
    }
    ranges = {d: (-1.0, 1.0) for d in ("Planted", "noise", "halves")}
    return one, Corpus.from_columns(columns, name="two", dimensions=ranges)


@pytest.fixture(scope="module")
def found() -> Transfer:
    with pytest.warns(UserWarning, match="4 texts of two are in one too"):
        return transfer(model(), corpora(), LAYERS, same=SAME, **OPTIONS)


def row_of(found: Transfer, train: str, test: str, layer: int, concept: str) -> Any:
    f = found.frame
    return f[(f.train == train) & (f.test == test) & (f.layer == layer) & (f.concept == concept)].squeeze()


def task_of(corpus: Corpus, concept: str) -> tuple[Task, int]:
    task = next(task for task in plan(corpus) if concept in task.concepts)
    return task, task.concepts.index(concept)


def features_of(corpus: Corpus, task: Task, layer: int) -> Array:
    captured: Array = model().capture(corpus.texts, [layer])[:, 0].double().numpy()
    return captured[task.rows]


# What is shared ------------------------------------------------------------------------------------------------------


def test_names_that_mean_the_same_are_one_concept() -> None:
    one, two = shared_concepts(corpora(), SAME)
    assert list(one) == ["high", "low", "middle", "planted", "noise", "halves"]
    assert two == {"down": "low", "middle": "middle", "up": "high"} | {
        "Planted": "planted",
        "noise": "noise",
        "halves": "halves",
    }
    one, two = shared_concepts(corpora(), {})
    assert set(one) == set(two) == {"middle", "noise", "halves"}
    assert shared_concepts(corpora(), SAME, ["planted"]) == [{"planted": "planted"}, {"Planted": "planted"}]


def test_a_label_and_a_dimension_of_one_name_are_not_the_same() -> None:
    quarters = np.split(np.arange(240), 4)
    rated = [
        made(name, rows, labels=None, high=planted()[0].frame.planted.iloc[rows].tolist())
        for name, rows in zip(("three", "four"), quarters[2:], strict=True)
    ]
    labelled = [made(name, rows) for name, rows in zip(("one", "two"), quarters[:2], strict=True)]
    assert "high" not in shared_concepts([labelled[0], rated[0]], {})[0]
    found = transfer(model(), [*labelled, *rated], 1, concepts="high", **OPTIONS).frame
    there = set(zip(found.train, found.test, found.metric, strict=True))
    alike = [(("one", "two"), "auc"), (("three", "four"), "pearson_r")]
    assert there == {(train, test, metric) for names, metric in alike for train in names for test in names}


def test_texts_are_the_same_but_for_case_and_spacing() -> None:
    one = Corpus.from_columns({"text": ["A dog  ran.", "b", "c"]}, name="one")
    two = Corpus.from_columns({"text": ["x", "a DOG ran.", "y"]}, name="two")
    with pytest.warns(UserWarning, match="1 texts of two are in one too"):
        fresh = fresh_texts([one, two])
    assert fresh[0, 1].tolist() == [True, False, True] and fresh[1, 0].tolist() == [False, True, True]


# What is scored ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("concept", "own"), [("planted", "Planted"), ("halves", "halves"), ("high", "up")])
@pytest.mark.parametrize("layer", LAYERS)
def test_scores_are_those_of_a_fit_on_one_read_on_the_other(
    found: Transfer, concept: str, own: str, layer: int
) -> None:
    one, two = corpora()
    (task, column), (target, place) = task_of(one, concept), task_of(two, own)
    fit = fit_for("logistic" if task.kind == "label" else "ridge", task.kind, task.exclusive)
    fresh = np.array([not 10 <= row < 14 for row in target.rows])
    truth = target.targets[fresh, place]

    def score(predicted: Array) -> float:
        if task.kind == "label":
            return float(roc_auc_score(truth, predicted))
        return float(np.corrcoef(predicted, truth)[0, 1])

    row = row_of(found, "one", "two", layer, concept)
    for name, at in (("value", layer), ("layer0", 0)):
        read_out = fit(features_of(one, task, at), task.targets, task.group)
        read = read_out(features_of(two, target, at)[fresh])[:, column]
        assert row[name] == pytest.approx(score(read), abs=1e-5)
    texts = [one.texts[r] for r in task.rows]
    words = fit_words(task, texts, task.targets, task.group)
    read = words([two.texts[r] for r in target.rows[fresh]])[:, column]
    assert row.bag_of_words == pytest.approx(score(read), abs=1e-9)
    assert row.n == fresh.sum() and row.left_out == (~fresh).sum() > 0
    assert row.groups == len(set(target.group[fresh]))
    assert row.low <= row.value <= row.high
    assert row.layer0_gain_low <= row.value - row.layer0 <= row.layer0_gain_high


def test_shuffled_annotations_are_read_by_probes_fitted_to_them(found: Transfer) -> None:
    one, two = corpora()
    (task, column), (target, place) = task_of(one, "planted"), task_of(two, "Planted")
    order = np.random.default_rng(0)
    fit, features = fit_for("ridge", "dimension"), features_of(one, task, 3)
    fresh = np.array([not 10 <= row < 14 for row in target.rows])
    scores = []
    for _ in range(12):
        read_out = fit(features, task.targets[shuffle(task.group, order)], task.group)
        read = read_out(features_of(two, target, 3)[fresh])[:, column]
        scores.append(np.corrcoef(read, target.targets[fresh, place])[0, 1])
    row = row_of(found, "one", "two", 3, "planted")
    assert row.shuffled == pytest.approx(np.mean(scores), abs=1e-5)
    assert (row.shuffled_low, row.shuffled_high) == pytest.approx(prediction_interval(scores), abs=1e-5)
    z = np.arctanh(scores)
    far = (np.arctanh(row.value) - z.mean()) / (z.std(ddof=1) * np.sqrt(1 + 1 / 12))
    assert 0 < row.p == pytest.approx(student.sf(far, 11), rel=1e-3)


@pytest.mark.parametrize("concept", ["planted", "high"])
def test_fits_to_many_shuffles_are_those_to_each(concept: str) -> None:
    task, _ = task_of(corpora()[0], concept)
    fit = fit_for("ridge", task.kind, task.exclusive)
    features = features_of(corpora()[0], task, 3)
    order = np.random.default_rng(1)
    for read_out in shuffled_fits(task, fit, features, 3, np.random.default_rng(1)):
        alone = fit(features, task.targets[shuffle(task.group, order)], task.group)
        assert read_out.weights == pytest.approx(alone.weights, abs=1e-8)
        assert read_out.offsets == pytest.approx(alone.offsets, abs=1e-8)


def test_one_more_is_as_high_as_the_end_of_its_range_once_in_forty() -> None:
    null = np.random.default_rng(0).normal(0.3, 0.2, (7, 2))
    ends = [prediction_interval(column) for column in null.T]
    assert one_more(np.array([high for _, high in ends]), null) == pytest.approx(0.025)
    assert one_more(np.array([low for low, _ in ends]), null) == pytest.approx(0.975)
    assert np.isnan(one_more(np.ones(1), np.zeros((5, 1)))).all()
    assert fisher(np.array([0.5, 1.0]), "dimension") == pytest.approx([np.log(3) / 2, 14.16], abs=0.01)
    assert fisher(np.array([0.75, 0.5]), "label") == pytest.approx([np.log(3) / 2, 0])


def test_within_a_corpus_scores_are_cross_validated_and_choose_the_layer(found: Transfer) -> None:
    one, two = corpora()
    options = {"permutations": 0, "bootstrap": 100, "progress": False}
    for corpus in (one, two):
        scores = fit_probes(model(), corpus, LAYERS, **options).scores
        scores = scores.assign(concept=scores.concept.replace(SAME)).set_index(["layer", "concept"])
        for concept in ("planted", "high", "halves"):
            rows = [row_of(found, corpus.name, corpus.name, layer, concept) for layer in LAYERS]
            values = [scores.loc[(layer, concept)].value for layer in LAYERS]
            assert [row.value for row in rows] == pytest.approx(values, abs=1e-6)
            other = next(c.name for c in (one, two) if c is not corpus)
            for layer, value in zip(LAYERS, values, strict=True):
                row = row_of(found, corpus.name, other, layer, concept)
                assert row.within == pytest.approx(value, abs=1e-6)
                assert row.chosen == (value == max(values))
                assert row.within_low <= row.within <= row.within_high


def test_what_was_planted_transfers_and_noise_does_not(found: Transfer) -> None:
    pairs = found.pairs().set_index(["concept", "train"])
    assert (pairs.loc["planted"].value > 0.95).all() and (pairs.loc["planted"].q < 0.05).all()
    assert all("shuffled annotations" not in fails for fails in pairs.loc["planted"].fails)
    assert all("shuffled annotations" in fails for fails in pairs.loc["noise"].fails)
    assert found.report().splitlines()[1].startswith("high: AUC ")


def test_batches_and_padding_change_nothing(found: Transfer) -> None:
    options = {**OPTIONS, "same": SAME, "concepts": ["planted", "noise", "halves"], "batch_size": 1}
    with pytest.warns(UserWarning, match="4 texts"):
        one = transfer(model(), corpora(), LAYERS, **options).frame
    other = found.frame[found.frame.metric == "pearson_r"].reset_index(drop=True)
    assert one.concept.tolist() == other.concept.tolist()
    for column in ("value", "low", "high", "shuffled", "layer0", "bag_of_words", "within"):
        assert one[column].to_numpy() == pytest.approx(other[column].to_numpy(), abs=1e-5, nan_ok=True)


# What is said --------------------------------------------------------------------------------------------------------


def by_hand() -> Transfer:
    base = {
        "layer": 2,
        "metric": "pearson_r",
        "shuffled": 0.0,
        "layer0": 0.2,
        "bag_of_words": 0.3,
        "within": 0.6,
    }
    base |= {"layer0_gain_low": 0.1, "bag_of_words_gain_low": 0.1, "chosen": True, "concept": "joy"}
    rows = [
        base | {"train": "a", "test": "b", "value": 0.5, "p": 0.001},
        base | {"train": "b", "test": "a", "value": 0.4, "p": 0.04, "layer0_gain_low": -0.1},
        base | {"train": "a", "test": "c", "value": 0.3, "p": 0.03, "bag_of_words_gain_low": 0.0},
        base | {"train": "c", "test": "a", "value": 0.1, "p": 0.2},
        base | {"train": "b", "test": "c", "value": 0.2, "p": np.nan},
        base | {"train": "a", "test": "b", "value": 0.9, "p": 0.0, "chosen": False, "layer": 3},
        base | {"train": "a", "test": "a", "value": 0.6, "p": np.nan},
    ]
    return Transfer("a model", ("a", "b", "c"), pd.DataFrame(rows))


def test_pairs_are_judged_beside_all_controls_and_all_other_pairs() -> None:
    pairs = by_hand().pairs().set_index(["train", "test"])
    assert len(pairs) == 5
    q = false_discovery_control([0.001, 0.04, 0.03, 0.2])
    assert pairs.q.dropna().tolist() == pytest.approx(q)
    assert pairs.fails["a", "b"] == []
    assert pairs.fails["b", "a"] == ["shuffled annotations", "the embedding"]  # q is 0.053
    assert pairs.fails["a", "c"] == ["shuffled annotations", "a bag of words"]
    assert pairs.fails["b", "c"] == ["shuffled annotations"]
    report = by_hand().report()
    assert "joy: Pearson r 0.10 to 0.50 over 5 pairs, median 0.30" in report
    assert "Above all controls: 1 (a on b)." in report and "\n1 of 5 pairs are above all controls" in report


def test_the_matrix_has_what_is_fitted_on_in_rows() -> None:
    matrix = by_hand().matrix("joy")
    assert matrix.loc["a", "b"] == 0.5 and matrix.loc["b", "a"] == 0.4 and matrix.loc["a", "a"] == 0.6
    with pytest.raises(InputError, match="no 'fear' is shared: there are joy"):
        by_hand().matrix("fear")


def test_it_shows_itself_and_escapes_names(found: Transfer) -> None:
    titles = [axis.get_title(loc="left") for axis in found.plot(["high", "planted"]).axes]
    assert titles[0] == "high, probe: 2·AUC − 1" and titles[3] == "planted, bag of words: Pearson r"
    frame = found.frame.replace(
        {"concept": {"noise": "<i>"}, "train": {"one": "<b>"}, "test": {"one": "<b>"}}
    )
    shown = Transfer("model", ("<b>", "two"), frame)._repr_html_()
    assert "<b>" not in shown and "<i>" not in shown


def test_what_cannot_be_is_refused() -> None:
    one, two = corpora()
    for given, options, problem in (
        ([one], {}, "corpora one: give two or more"),
        ([one, one], {}, "of different names"),
        ([one, two], {"concepts": "fear"}, "no two corpora share 'fear': one has high"),
        (
            [one, two],
            {"same": {"up": "planted", "Planted": "up"}, "concepts": ["planted"]},
            "share 'planted'",
        ),
        ([one, two], {"same": {"up": "middle"}}, "two: middle and up would both be 'middle'"),
        ([one, two], {"permutations": 3}, "permutations=3"),
        ([one, two], {"bootstrap": 0}, "bootstrap=0"),
    ):
        with pytest.raises(InputError, match=problem):
            transfer(model(), given, 1, **{"progress": False, **options})
