"""Probes of parts of texts: each is read where it stands, in its text, and what is planted in tokens is found there."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from small_probes import texts
from tiny import tiny_model

from emoprobe.corpora import Corpus
from emoprobe.corpora.emotion_words import rated_words
from emoprobe.errors import InputError
from emoprobe.probes import fit_probes
from emoprobe.probes.random_features import random_features
from emoprobe.probes.units import MOST, Units, capture_units, read_units

NORMS = pd.DataFrame(
    {"valence": [8.0, 7.5, 7.0, 2.0, 2.5, 1.5], "arousal": [5.0, 6.0, 2.0, 3.0, 7.0, 6.5]},
    index=["glad", "laughing", "calm", "sad", "angry", "afraid"],
)
QUICK: dict[str, Any] = {"permutations": 0, "bootstrap": 0, "progress": False}
TEXT = 'She was glad. "He was sad!" Then came the dog'


def annotated() -> Corpus:
    """Return 40 texts, in ten groups, whose words have ratings, and one that has none."""
    written = [*texts(40), "the sun came up"]
    groups = [f"group {row // 4}" for row in range(40)] + ["none"]
    return rated_words(Corpus.from_columns({"text": written, "group": groups}), NORMS)


def labelled() -> Corpus:
    spans = [
        {"start": 4, "end": 12, "labels": ["joy"], "valence": 1.0},
        {"start": 15, "end": 21, "labels": ["grief"]},
        {"start": 22, "end": 25, "labels": ["grief"], "valence": -0.5},
    ]
    columns = {"text": [TEXT, "no span here"], "spans": [spans, None], "group": ["first", "second"]}
    return Corpus.from_columns(columns, dimensions={"valence": (-1, 1)})


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("level", ["sentence", "span", "token"])
def test_units_are_the_means_of_their_tokens_however_texts_are_batched(family: str, level: str) -> None:
    live, corpus = tiny_model(family), annotated()
    layers = [0, 2]
    expected, told = [], []
    units = read_units(live, corpus, level)
    for unit, row in enumerate(units.text_of):
        batch = live.tokenize(corpus.texts[row])
        assert batch.offsets is not None
        with torch.no_grad():
            stream = live.streams(batch, layers)[:, 0].double()
        inside = units.tokens[unit]
        assert 0 not in inside  # the first token is not read
        expected.append(stream[:, inside].mean(1))
        covered = "".join(corpus.texts[row][slice(*batch.offsets[0][place])] for place in inside)
        told.append(units.corpus.texts[unit].strip() in covered or covered in units.corpus.texts[unit])
    assert all(told) and list(units.groups) == [corpus.groups[row] for row in units.text_of]
    for size in (1, 32):
        for side in ("left", "right"):
            live.tokenizer.padding_side = side
            again = read_units(live, corpus, level, batch_size=size)
            assert all(np.array_equal(a, b) for a, b in zip(units.tokens, again.tokens, strict=True))
            found = capture_units(live, corpus.texts, again, layers, "mean", batch_size=size)
            assert torch.allclose(found.double(), torch.stack(expected), rtol=1e-5, atol=1e-5)
            last = capture_units(live, corpus.texts, again, layers, "last", batch_size=size)
            assert not torch.equal(last, found) or level == "token"
    order = sorted(range(len(corpus)), key=lambda row: len(corpus.texts[row]))
    other = corpus.select(indices=order)
    turned = read_units(live, other, level)
    found = capture_units(live, other.texts, turned, layers, "mean")
    back = np.argsort(np.array(order)[turned.text_of], kind="stable")
    assert torch.allclose(found[back].double(), torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_parts_take_the_annotations_of_the_spans_that_they_overlap() -> None:
    live, corpus = tiny_model(), labelled()
    assert corpus.labels == ("grief", "joy") and corpus.data["labels"][0] == []
    spans = read_units(live, corpus, "span", start=0).corpus
    assert spans.texts == ["was glad", "He was", "sad"] and spans.data["labels"][:] == [
        ["joy"],
        ["grief"],
        ["grief"],
    ]
    np.testing.assert_equal(spans.values("valence"), [1.0, np.nan, -0.5])
    sentences = read_units(live, corpus, "sentence", start=0)
    assert sentences.corpus.texts == ["She was glad.", '"He was sad!"']  # the third is not annotated
    assert sentences.corpus.data["labels"][:] == [["joy"], ["grief"]]
    assert (
        sentences.corpus.values("valence").tolist() == [1.0, -0.5]
        and sentences.groups.tolist() == ["first"] * 2
    )
    tokens = read_units(live, corpus, "token", start=0)
    assert "".join(tokens.corpus.texts).replace(" ", "") == "wasgladHewassad"
    assert all(len(own) == 1 for own in tokens.tokens)


def test_probes_of_tokens_read_what_people_say_of_words() -> None:
    """Single tokens' embeddings tell the rating of their word; the random features of the tokens tell as much."""
    corpus = annotated()
    found = fit_probes(
        tiny_model("llama"), corpus, [0], level="token", folds=4, permutations=4, bootstrap=60, progress=False
    )
    row = found.scores.set_index("concept").loc["valence"]
    assert row.value > 0.9 and row.random_features > 0.9 and row.groups == 10
    assert found.metadata["level"] == "token" and found.metadata["texts"] == 41
    assert (
        f"{row.n} / 10" in found.report()
        and "held-out tokens" in found.report()
        and not found.confounds.empty
    )
    assert found.ranges == {"valence": (1.5, 8.0), "arousal": (2.0, 7.0)}


@pytest.mark.parametrize("level", ["sentence", "span", "token"])
def test_probes_of_parts_do_not_depend_on_batches(level: str) -> None:
    live = tiny_model()
    one, many = (
        fit_probes(live, annotated(), [1], level=level, folds=3, batch_size=size, **QUICK) for size in (1, 32)
    )
    assert torch.allclose(one.directions, many.directions, atol=1e-5)
    assert torch.allclose(one.residual_norms, many.residual_norms, rtol=1e-5)
    whole = fit_probes(live, annotated(), [1], level="span", folds=3, **QUICK)
    assert torch.allclose(
        one.reference_mean, whole.reference_mean, atol=1e-5
    )  # of all tokens, whatever the level


def test_a_long_text_gives_no_more_units_than_others_may() -> None:
    corpus = rated_words(Corpus.from_columns({"text": ["glad sad " * 60, "so glad and sad"]}), NORMS)
    units = read_units(tiny_model(), corpus, "span")
    assert np.bincount(units.text_of).tolist() == [MOST, 2]
    assert [own[0] for own in units.tokens[:MOST]] == sorted(own[0] for own in units.tokens[:MOST])
    assert random_features(units.shares, 4).shape == (MOST + 2, 4)


def test_which_units_of_a_long_text_are_read_depends_on_that_text_alone() -> None:
    long = [f"{name} sad " * 60 for name in ("glad", "calm", "angry")]
    corpus = rated_words(Corpus.from_columns({"text": [*long, "so glad and sad"]}), NORMS)
    order = [2, 3, 0, 1]
    units = read_units(tiny_model(), corpus, "span")
    turned = read_units(tiny_model(), corpus.select(indices=order), "span")
    other = read_units(tiny_model(), corpus, "span", seed=1)

    def chosen(found: Units, text: int) -> list[int]:
        return [own[0] for own, of in zip(found.tokens, found.text_of, strict=True) if of == text]

    for place, text in enumerate(order):
        assert chosen(turned, place) == chosen(units, text)
    assert chosen(units, 0) != chosen(other, 0) and chosen(units, 0) != chosen(units, 1)


def test_a_sentence_that_the_context_cuts_is_left_out() -> None:
    """Its annotation is of the whole, and the model reads the first half."""
    live = tiny_model("gpt2")
    first, second = "She was glad.", f"He was {'very ' * 400}sad."
    spans = [{"start": 4, "end": 12, "valence": 1.0}, {"start": 14, "end": 14 + len(second), "valence": -1.0}]
    text = f"{first} {second}"
    corpus = Corpus.from_columns({"text": [text], "spans": [spans]}, dimensions={"valence": (-1, 1)})
    with pytest.warns(UserWarning, match="cut"):
        units = read_units(live, corpus, "sentence", start=0)
    assert units.corpus.texts == [first]
    with pytest.warns(UserWarning, match="cut"):
        assert read_units(live, corpus, "span", start=0).corpus.texts == ["was glad"]


def test_characters_of_many_tokens_and_spans_that_overlap() -> None:
    """An emoji is four bytes and as many tokens; values of spans over the same characters are averaged by what they share."""
    live = tiny_model("gpt2")
    text = "So 😀 naïve. Ça va 👍🏽!"
    grin, naive = text.index("😀"), text.index("naïve")
    spans = [
        {"start": grin, "end": grin + 1, "labels": ["joy"], "valence": 1.0},
        {"start": grin, "end": naive + 5, "labels": ["irony"], "valence": -1.0},
        {"start": text.index("👍"), "end": text.index("!"), "labels": ["joy"], "valence": 0.5},
    ]
    corpus = Corpus.from_columns({"text": [text], "spans": [spans]}, dimensions={"valence": (-1, 1)})
    batch = live.tokenize([text])
    assert batch.offsets is not None
    lie = batch.offsets[0]
    units = read_units(live, corpus, "span", start=0)
    assert units.corpus.texts == ["😀", "😀 naïve", "👍🏽"]
    for own, span in zip(units.tokens, spans, strict=True):
        start, end = span["start"], span["end"]
        assert own.tolist() == [place for place, (a, b) in enumerate(lie) if a < end and start < b]
    assert len(units.tokens[0]) >= 4
    tokens = read_units(live, corpus, "token", start=0)
    over = (
        tokens.corpus.texts.index("😀") if "😀" in tokens.corpus.texts else tokens.corpus.texts.index(" 😀")
    )
    assert tokens.corpus.values("valence")[over] == pytest.approx(0.0)  # both spans hold it
    assert tokens.corpus.data["labels"][over] == ["irony", "joy"]
    assert len(tokens.tokens[over]) >= 4  # one unit, all tokens of the character
    sentences = read_units(live, corpus, "sentence", start=0).corpus
    assert sentences.texts == ["So 😀 naïve.", "Ça va 👍🏽!"]
    by_hand = (1 * 1.0 + 7 * -1.0) / 8  # characters that each span shares with the sentence
    assert sentences.values("valence").tolist() == pytest.approx([by_hand, 0.5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"level": "word"},
            'level="word" is not understood: give one of "text", "sentence", "span", "token"',
        ),
        ({"level": "token", "pool": lambda stream, counted: stream[:, :, 0]}, 'by "mean" or "last"'),
        ({"level": "token", "confounds": {"speaker": ["a"]}}, "'speaker' has 1 values for 41 texts"),
    ],
)
def test_what_cannot_be_done_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit_probes(tiny_model(), annotated(), [1], folds=3, **{**QUICK, **options})


def test_parts_need_annotations() -> None:
    bare = Corpus.from_columns(
        {"text": texts(6), "valence": np.linspace(0, 1, 6)}, dimensions={"valence": (0, 1)}
    )
    with pytest.raises(InputError, match="needs annotated spans, and no text has one"):
        fit_probes(tiny_model(), bare, level="sentence", **QUICK)
    wrong = [[{"start": 0, "end": 2, "labels": ["envy"]}]]
    with pytest.raises(InputError, match=r"row 1 .*column 'spans: labels': 'envy' is not a known label"):
        Corpus.from_columns({"text": ["so glad"], "spans": wrong}, labels=["joy"])
