"""Word magnitudes, turning and emotional words: classes and matches, the reading of a model, and both verdicts each way."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from parts import shown
from planted_reader import WIDTH, directions, reader
from tiny import tiny_model

from emoprobe.corpora import Corpus
from emoprobe.errors import InputError
from emoprobe.models import LiveModel
from emoprobe.study.claims import turning as module
from emoprobe.study.claims.judging import NOT_SHOWN, NOT_SUPPORTED, POSITIVE, STRENGTHS, SUPPORTED
from emoprobe.study.claims.magnitudes import magnitudes
from emoprobe.study.claims.turning import beside, matched, turning_and_emotional
from emoprobe.study.claims.word_classes import emotional, turning, word_places
from emoprobe.study.claims.word_readings import Changes, WordReadings, read_words
from emoprobe.valattn import Valuation, inject

CONTROLS = 20
PLAIN = "road table window river paper clock lamp stone wagon field basket ladder".split()
FELT, TURNS = ["happy", "sad", "afraid", "proud"], ["without", "though", "but", "not"]


def corpus(count: int = 40, seed: int = 0) -> Corpus:
    """Texts of fourteen words in ten groups, each with an emotional and a turning word at random places."""
    draw = np.random.default_rng(seed)
    texts = []
    for _ in range(count):
        words = [*draw.choice(PLAIN, 12), draw.choice(FELT), draw.choice(TURNS)]
        texts.append(" ".join(draw.permutation(words)))
    return Corpus.from_columns({"text": texts, "group": [f"group {row % 10}" for row in range(count)]})


def frequencies() -> pd.Series:
    return pd.Series({word: 10 for word in [*PLAIN, *FELT, *TURNS]})


# Classes and matches -------------------------------------------------------------------------------------------------


def test_words_are_found_and_classed() -> None:
    text = "I don’t like it, though: the ill-lit road was NOT safe without you."
    words = [text[start:end] for start, end in word_places(text)]
    assert words == "I don’t like it though the ill-lit road was NOT safe without you".split()
    assert [w for w, t in zip(words, turning(words), strict=True) if t] == [
        "don’t",
        "though",
        "NOT",
        "without",
    ]
    assert [w for w, t in zip(words, emotional(words), strict=True) if t] == ["safe"]


def test_norms_tell_emotional_words_by_how_far_people_rate_them_from_the_mean() -> None:
    plain = {f"word{k}": 5 + 0.01 * k for k in range(-20, 21)}
    norms = pd.DataFrame({"valence": {**plain, "grief": 1.0, "delight": 9.0, "not": 1.0}})
    norms.index.name = "word"
    assert emotional(["Grief", "delight", "word3", "unknown", "not"], norms).tolist() == [
        True,
        True,
        False,
        False,
        False,
    ]


def made_up(texts: int = 30, words: int = 10, seed: int = 0) -> WordReadings:
    """Readings in which nothing happens: noise of 0.1 around 0, two classes of words in every text."""
    draw = np.random.default_rng(seed)
    names = [[*PLAIN[: words - 2], FELT[text % 4], TURNS[text % 4]] for text in range(texts)]

    def nothing(units: int) -> Changes:
        return Changes(
            0.1 * draw.normal(size=(len(STRENGTHS), units)),
            0.1 * draw.normal(size=(CONTROLS, len(POSITIVE), units)),
        )

    return WordReadings(
        tuple(word for row in names for word in draw.permutation(row)),
        np.repeat(np.arange(texts), words),
        np.tile(np.arange(words), texts),
        np.ones(texts * words),
        np.arange(texts) % 10,
        {name: nothing(texts) for name in ("variation", "evenness")}
        | {name: nothing(texts * words) for name in ("gain", "rank", "attention")},
        np.full(texts, 0.3),
        True,
    )


def test_words_are_matched_within_their_text_by_place_frequency_and_tokens() -> None:
    read = made_up(texts=1, words=10)
    read = replace(read, words=(*PLAIN[:8], "happy", "not"))
    counts = pd.Series({**dict.fromkeys(PLAIN[:8], 1), "river": 1000, "not": 1000})
    classed = np.array([False] * 8 + [True] * 2)
    rows = matched(read, counts, classed)
    assert 3 in rows[9]  # as frequent as "not", though others stand nearer
    assert set(rows[8]) == {5, 6, 7}  # "happy" is near those before it
    assert not np.isin(rows, [8, 9]).any()
    few = matched(replace(read, words=read.words), counts, np.array([True] * 8 + [False] * 2))
    assert (few == -1).all()
    values = np.arange(20.0).reshape(2, 10)
    assert beside(values, np.array([8]), rows).tolist() == [[2.0], [2.0]]


# Verdicts on doctored readings ---------------------------------------------------------------------------------------


def with_effect(
    read: WordReadings, name: str, member: np.ndarray, slope: float, random: float = 0.0
) -> WordReadings:
    changes = read.changes[name]
    lam, positive = np.array(STRENGTHS)[:, None], np.array(POSITIVE)[None, :, None]
    moved = Changes(changes.probed + slope * lam * member, changes.random + random * positive * member)
    return replace(read, changes={**read.changes, name: moved})


@pytest.mark.parametrize(
    ("slope", "random", "verdict"),
    [(1.0, 0.0, SUPPORTED), (-1.0, 0.0, NOT_SUPPORTED), (1.0, 1.0, NOT_SHOWN), (0.0, 0.0, NOT_SHOWN)],
)
def test_magnitudes_vary_more_only_where_they_do_and_random_valuations_do_not(
    slope: float, random: float, verdict: str
) -> None:
    result = magnitudes(with_effect(made_up(), "variation", np.ones(30), slope, random))
    assert result.table.verdict.iloc[-1] == verdict
    assert f": {verdict}" in result.verdict
    assert result.passed and not magnitudes(replace(made_up(), untouched=False)).passed


def judged(read: WordReadings) -> dict[str, str]:
    found = turning_and_emotional(read, frequencies())
    rows = found.table[found.table.strength.isna() & ~found.table.measure.str.contains("rises|later words")]
    verdicts = dict(zip(rows.claim, rows.verdict, strict=True))
    assert shown(found) == [verdicts[claim] == SUPPORTED for claim in found.parts]
    return verdicts


@pytest.mark.parametrize("slope", [1.0, -1.0])
def test_turning_and_emotional_words_are_judged_each_by_its_own_sign(slope: float) -> None:
    read = made_up()
    yes, no = (SUPPORTED, NOT_SUPPORTED) if slope > 0 else (NOT_SUPPORTED, SUPPORTED)
    gained = judged(with_effect(read, "gain", turning(read.words), slope))
    assert gained == {
        module.CLAIMS["turning"][0]: yes,
        module.CLAIMS["emotional"][0]: NOT_SHOWN,
        module.UNIFORM[0]: NOT_SHOWN,
    }
    lost = judged(with_effect(read, "gain", emotional(read.words), slope))
    assert lost[module.CLAIMS["emotional"][0]] == no and lost[module.CLAIMS["turning"][0]] == NOT_SHOWN
    even = judged(with_effect(read, "evenness", np.ones(30), slope))
    assert even[module.UNIFORM[0]] == no


def test_what_happens_to_all_words_is_no_gain_of_a_class() -> None:
    read = made_up()
    assert set(judged(with_effect(read, "gain", np.ones(len(read.words)), 1.0)).values()) == {NOT_SHOWN}


def test_too_few_words_of_a_class_are_not_judged() -> None:
    read = made_up(texts=10)
    result = turning_and_emotional(read, frequencies())
    assert "it could not be measured" in result.verdict and "fewer than 20 emotional words" in result.verdict


# Reading a model -----------------------------------------------------------------------------------------------------


def test_changes_equal_those_of_each_text_read_alone() -> None:
    """Padded batches against one text at a time, magnitudes and attention from the model's own outputs and weights."""
    model = tiny_model("llama", dtype=torch.float32)
    weight = torch.randn(2, 3, model.d_model, generator=torch.Generator().manual_seed(0)) / 2
    valuation = Valuation(weight, torch.zeros(2, 3), ("a", "b", "c"), (0, 2))
    texts = ["The sun came up, and the old dog was glad!", "She was not happy; it was dark all day.", "No."]
    given = Corpus.from_columns({"text": texts, "group": ["x", "y", "z"]})
    read = read_words(model, valuation, given, controls=1, seed=3, batch_size=2)
    assert read.untouched and read.groups.tolist() == [0, 1]
    assert read.words[:4] == ("The", "sun", "came", "up") and read.place[10] == 0 and read.words[10] == "She"
    for number, text in enumerate(texts[:2]):
        before, after = (by_hand(model, valuation, text, lam) for lam in (0.0, 2.0))
        other = by_hand(model, valuation.random_like(4), text, 0.5)
        rows = np.flatnonzero(read.text == number)
        for found, (size, attention) in (
            (lambda name: read.changes[name].probed[STRENGTHS.index(2.0)], after),
            (lambda name: read.changes[name].random[0, POSITIVE.index(0.5)], other),
        ):
            cv = [part.std(1) / part.mean(1) for part in (before[0], size)]
            assert found("variation")[number] == pytest.approx(100 * (cv[1] / cv[0] - 1).mean(), rel=1e-3)
            share = [part / part.mean(1, keepdims=True) for part in (before[0], size)]
            assert np.allclose(
                found("gain")[rows], 100 * (share[1] / share[0] - 1).mean(0), rtol=1e-3, atol=1e-3
            )
            given_to = [part for part in (before[1], attention)]
            change = [100 * (given_to[1][j] / given_to[0][j] - 1) for j in range(len(rows) - 1)]
            assert np.allclose(found("attention")[rows[:-1]], change, rtol=1e-3, atol=1e-3)
            assert np.isnan(found("attention")[rows[-1]])
        assert np.abs(read.changes["gain"].probed[:, rows]).max() > 1


def by_hand(model: LiveModel, valuation: Valuation, text: str, lam: float) -> tuple[np.ndarray, list[float]]:
    """Magnitudes (blocks, words), and the mean attention that each word but the last gets from later words."""
    batch = model.tokenize(text)
    with torch.no_grad(), inject(model, valuation, lam):
        outputs, weights = (part[:, 0].double().numpy() for part in model.attention(batch, valuation.layers))
    owner = []
    for start, end in batch.offsets[0]:
        owner.append([w for w, (a, b) in enumerate(word_places(text)) if a < end and start < b])
    tokens = [[t for t, words in enumerate(owner) if w in words] for w in range(len(word_places(text)))]
    sizes = np.array([[(layer[at] ** 2).sum() ** 0.5 for at in tokens] for layer in outputs])
    pattern = weights.mean((0, 1))
    received = [
        float(
            np.mean(
                [
                    np.mean([pattern[i, at].sum() for i in tokens[later]])
                    for later in range(word + 1, len(tokens))
                ]
            )
        )
        for word, at in enumerate(tokens[:-1])
    ]
    return sizes, received


def test_texts_of_few_words_are_refused() -> None:
    model = tiny_model("gpt2", dtype=torch.float32)
    valuation = Valuation(torch.ones(1, 1, model.d_model), torch.zeros(1, 1), ("a",), (0,))
    with pytest.raises(InputError, match="no text has 5 words"):
        read_words(model, valuation, Corpus.from_columns({"text": ["Too short."]}), controls=1)


# A model in which it is so, and one in which it is not ---------------------------------------------------------------


def planted(words: list[str]) -> tuple[LiveModel, Valuation]:
    """A model with even attention in its first block, whose `words` carry a direction that is written out six times as large.

    The valuation reads the same direction, so that these words attend to themselves and others like them.
    """
    (along,) = directions(1)
    model = reader(corpus().texts, dict.fromkeys(words, along), strength=3.0)
    first = model.underlying.transformer.h[0].attn
    with torch.no_grad():
        first.c_attn.weight[:, 2 * WIDTH :] += 5 * torch.from_numpy(np.outer(along, along))
    model = type(model)(model.underlying.float(), model.tokenizer, "planted")
    weight = torch.from_numpy(1.5 * along).float()[None, None]
    return model, Valuation(weight, torch.zeros(1, 1), ("valence",), (0,))


def test_the_claims_show_in_a_model_that_is_made_for_them() -> None:
    """Turning words carry what is valued: they attend to themselves, and what they carry is large."""
    model, valuation = planted(TURNS)
    read = read_words(model, valuation, corpus(), controls=CONTROLS)
    found = judged(read)
    assert found[module.CLAIMS["turning"][0]] == SUPPORTED
    assert found[module.UNIFORM[0]] == SUPPORTED
    assert magnitudes(read).table.verdict.iloc[-1] == SUPPORTED


def test_they_do_not_show_where_the_valued_words_are_others() -> None:
    """Emotional words carry it: they gain, against the claim; and a valuation of nothing changes nothing."""
    model, valuation = planted(FELT)
    found = judged(read_words(model, valuation, corpus(), controls=CONTROLS))
    assert found[module.CLAIMS["emotional"][0]] == NOT_SUPPORTED
    assert found[module.CLAIMS["turning"][0]] != SUPPORTED
    elsewhere = directions(2)[1]
    off = replace(valuation, weight=torch.from_numpy(1.5 * elsewhere).float()[None, None])
    read = read_words(model, off, corpus(), controls=CONTROLS)
    assert magnitudes(read).table.verdict.iloc[-1] != SUPPORTED
    assert SUPPORTED not in judged(read).values()
