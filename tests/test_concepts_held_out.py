"""Probes on other texts: scores are scikit-learn's, what is planted is found, and what is not is not, whatever the batch."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from parts import shown
from planted_probes import planted_probes
from scipy.stats import pearsonr
from sklearn.metrics import roc_auc_score
from small_probes import texts
from tiny import tiny_model

from emoprobe import InputError
from emoprobe.corpora import Corpus
from emoprobe.models import LiveModel
from emoprobe.study.concepts.held_out import held_out, judged, verdict

NAMES = ("planted", "against", "nothing", "strength")
LAYER = 2


@pytest.fixture(scope="module")
def model() -> LiveModel:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def directions() -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(0).normal(size=(32, 32)))[0][:4]


@pytest.fixture(scope="module")
def corpora(model: LiveModel, directions: np.ndarray) -> tuple[Corpus, Corpus]:
    """Return a corpus labelled by what the model reads at LAYER, and one that probes are said to be fitted on."""
    generator = np.random.default_rng(1)
    written = texts(160, seed=5)
    along = model.capture(written, [LAYER])[:, 0].double().numpy() @ directions.T
    along -= np.median(along, axis=0)
    labels = [
        [name for name, holds in zip(NAMES, (a > 0, b < 0, generator.random() < 0.5), strict=False) if holds]
        for a, b in along[:, :2]
    ]
    strength = along[:, 3] / np.abs(along[:, 3]).max()
    columns: dict[str, Any] = {
        "text": written,
        "labels": [[{"planted": "shown"}.get(name, name) for name in row] for row in labels],
        "strength": np.where(np.arange(160) % 4, strength, np.nan),
        "group": [f"group {row // 4}" for row in range(160)],
    }
    corpus = Corpus.from_columns(columns, name="others", dimensions={"strength": (-1.0, 1.0)})
    own = texts(40, seed=6) + written[:8]
    fitted_on = Corpus.from_columns(
        {
            "text": own,
            "labels": [["planted"] if generator.random() < 0.5 else ["nothing"] for _ in own],
            "group": [f"own {row // 4}" for row in range(48)],
        },
        name="own",
    )
    return corpus, fitted_on


@pytest.fixture(scope="module")
def result(model: LiveModel, directions: np.ndarray, corpora: tuple[Corpus, Corpus]) -> Any:
    probes = planted_probes(model, directions, NAMES)
    return held_out(model, probes, *corpora, names={"planted": "shown"}, layer=LAYER, shuffles=199, top=10)


def test_what_is_planted_is_read_and_what_is_not_is_not(result: Any) -> None:
    table = result.table.set_index("concept")
    assert table.value["planted"] == pytest.approx(1, abs=0.03) and table.q["planted"] < 0.03
    assert table.value["against"] == pytest.approx(0, abs=0.03) and table.p["against"] == 1
    assert table.value["strength"] > 0.99 and table.metric["strength"] == "pearson_r"
    assert table.p["nothing"] > 0.05 and table.low["nothing"] < 0.5 < table.high["nothing"]
    assert table.layer0_gain_low["planted"] > 0 and table.words_gain_low["planted"] > 0
    assert table.top["planted"] == 1 and table.top["against"] == 0 and 0.3 < table.top_chance["planted"] < 0.7
    assert "planted" in result.verdict and "against" not in result.verdict
    assert "2 of 4 concepts are read" in result.verdict
    assert [name for name, held in zip(result.parts, shown(result), strict=True) if held] == ["planted"]
    assert "8 texts that the probes were fitted on are left out" in result.method
    assert np.isnan(table.words["strength"]) and result.svg and result.published


def test_scores_do_not_depend_on_batches_or_order(
    model: LiveModel, directions: np.ndarray, corpora: tuple[Corpus, Corpus], result: Any
) -> None:
    probes = planted_probes(model, directions, NAMES)
    corpus, fitted_on = corpora
    turned = corpus.select(indices=np.arange(len(corpus))[::-1])
    options: dict[str, Any] = {"names": {"planted": "shown"}, "layer": LAYER, "shuffles": 20, "top": 10}
    again = held_out(model, probes, turned, fitted_on, batch_size=1, **options).table.set_index("concept")
    before = result.table.set_index("concept")
    for column in ("value", "layer0", "words", "top", "random_high", "highest"):
        if column == "highest":
            assert again[column].tolist() == before[column].tolist()
        else:
            assert np.allclose(again[column], before[column], atol=1e-9, equal_nan=True)


def test_scores_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(2)
    carried = generator.random(90) < 0.4
    dimension = np.where(generator.random(90) < 0.8, generator.normal(size=90).clip(-3, 3), np.nan)
    corpus = Corpus.from_columns(
        {
            "text": [f"text {row}" for row in range(90)],
            "labels": [["a"] if one else ["b"] for one in carried],
            "d": dimension,
            "group": [f"g{row // 3}" for row in range(90)],
        },
        dimensions={"d": (-3.0, 3.0)},
    )
    values = generator.normal(size=(90, 2)) + 0.5 * carried[:, None]
    random = generator.normal(size=(20, 90, 2))
    words, embedding = generator.normal(size=(90, 2)), generator.normal(size=(90, 2))
    found = judged(values, random, embedding, words, corpus, {"first": "a", "second": "d"}, 99)
    known = np.isfinite(dimension)
    assert found.value["first"] == pytest.approx(roc_auc_score(carried, values[:, 0]))
    assert found.layer0["first"] == pytest.approx(roc_auc_score(carried, embedding[:, 0]))
    assert found.value["second"] == pytest.approx(pearsonr(dimension[known], values[known, 1])[0])
    assert found.words["second"] == pytest.approx(pearsonr(dimension[known], words[known, 1])[0])
    ps = found.p.to_numpy()
    assert np.allclose(
        found.q, np.minimum.accumulate((np.sort(ps) * 2 / [1, 2])[::-1])[::-1][ps.argsort().argsort()]
    )
    assert (
        found.n.tolist() == [90, known.sum()] and found.random_low["first"] < 0.5 < found.random_high["first"]
    )


ROW = {
    "concept": "fear",
    "metric": "auc",
    "value": 0.8,
    "low": 0.7,
    "high": 0.9,
    "q": 0.01,
    "random_high": 0.6,
}
ROW |= {
    "layer0_gain_low": 0.05,
    "words_gain_low": 0.05,
    "words_gain_high": 0.2,
    "top": 0.8,
    "top_chance": 0.1,
}


def said(*rows: dict[str, float]) -> str:
    return verdict(pd.DataFrame([{**ROW, **row} for row in rows]))


def test_every_verdict_can_come_out() -> None:
    assert "By more than the embedding and a bag of words, too, 1" in said({}) and "80%" in said({})
    assert "words may be all that is read" in said({"words_gain_low": -0.1})
    assert "words may be all that is read" in said({"layer0_gain_low": -0.1})
    assert "reads 1 of 1 better" in said({"words_gain_low": -0.3, "words_gain_high": -0.1})
    assert said({"q": 0.2}).startswith("None of 1 concepts")
    assert said({"random_high": 0.85}).startswith("None of 1 concepts")
    assert "1 of 2 concepts is read" in said({}, {"q": 0.5})
    assert "prove nothing" in verdict(pd.DataFrame())


def test_texts_without_annotations_are_shown_by_their_snippets(
    model: LiveModel, directions: np.ndarray, corpora: tuple[Corpus, Corpus]
) -> None:
    probes = planted_probes(model, directions, NAMES)
    plain = Corpus.from_columns({"text": texts(20, seed=9)}, name="plain")
    found = held_out(model, probes, plain, corpora[1], layer=LAYER)
    assert (
        found.figure is None and "prove nothing" in found.verdict and found.table.highest.str.len().min() > 10
    )
    with pytest.raises(InputError, match="fitted on all of its texts"):
        held_out(model, probes, corpora[1], corpora[1], layer=LAYER)


def test_half_precision_is_read_as_well(directions: np.ndarray, corpora: tuple[Corpus, Corpus]) -> None:
    single = tiny_model("llama", dtype=torch.bfloat16)
    probes = planted_probes(single, directions, NAMES)
    table = held_out(single, probes, *corpora, layer=LAYER, shuffles=20).table.set_index("concept")
    assert table.value["strength"] > 0.9


def test_a_concept_can_be_called_among_many() -> None:
    """What is read perfectly must not be lost among fifty concepts because so many shuffles alone can show no more."""
    generator = np.random.default_rng(3)
    names = [f"c{number}" for number in range(50)]
    carried = generator.random((200, 50)) < 0.3
    corpus = Corpus.from_columns(
        {
            "text": [f"text {row}" for row in range(200)],
            "labels": [[name for name, one in zip(names, row, strict=True) if one] for row in carried],
        }
    )
    values = generator.normal(size=(200, 50))
    values[:, 7] += 2 * carried[:, 7]
    others = generator.normal(size=(200, 50))
    random = generator.normal(size=(20, 200, 50))
    found = judged(values, random, others, others, corpus, dict(zip(names, names, strict=True)), 499)
    assert found.q["c7"] < 0.05 and (found.q.drop("c7") < 0.05).sum() == 0
