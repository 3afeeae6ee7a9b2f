"""Read-outs of single words against ratings: by hand, planted, and where only their length goes with them."""

from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from crafted import probe_set
from scipy.stats import pearsonr
from small_probes import model
from tiny import tiny_model

from emoprobe.errors import InputError
from emoprobe.probes import ProbeSet
from emoprobe.probes.word_norms import CARRIERS, against_word_norms

QUICK: dict[str, Any] = {"permutations": 99, "random": 8}
PLANTED = 2


@cache
def words() -> list[str]:
    """Return pronounceable words of two to five syllables."""
    generator = np.random.default_rng(0)
    syllables = ["".join(pair) for pair in product("bdgklmnprst", "aeiou")]
    found = {"".join(generator.choice(syllables, generator.integers(2, 6))) for _ in range(150)}
    return sorted(found)[:120]


@cache
def probes() -> ProbeSet:
    """Return probes of valence and arousal whose directions are random, one per layer."""
    vectors = np.random.default_rng(1).normal(size=(4, 2, 32))
    return probe_set(
        vectors,
        ("valence", "arousal"),
        fingerprint=model().fingerprint(),
        kinds=dict.fromkeys(("valence", "arousal"), "dimension"),
    )


@cache
def by_hand() -> np.ndarray[Any, Any]:
    """Return u·x of each word (words, layers, concepts): every sentence read alone, tokens found by their characters."""
    found = np.zeros((len(words()), 4, 2))
    for row, word in enumerate(words()):
        for carrier in CARRIERS:
            text = carrier.format(word=word)
            start = text.index(word)
            batch = model().tokenize([text])
            with torch.no_grad():
                stream = model().streams(batch, range(4))[:, 0].double()
            assert batch.offsets is not None
            held = [i for i, (a, b) in enumerate(batch.offsets[0]) if a < start + len(word) and b > start]
            mean = stream[:, held].mean(1)
            found[row] += torch.einsum("ld,lcd->lc", mean, probes().directions.double()).numpy() / len(
                CARRIERS
            )
    return found


def norms(seed: int = 0) -> pd.DataFrame:
    """Return ratings that the second layer's valence read-out knows much of; arousal is noise."""
    generator = np.random.default_rng(seed)
    along = by_hand()[:, PLANTED, 0]
    along = (along - along.mean()) / along.std()
    noise = generator.normal(size=(2, len(along)))
    return pd.DataFrame({"word": words(), "valence": 5 + along + 0.7 * noise[0], "arousal": 5 + noise[1]})


def test_words_are_read_as_the_mean_over_their_tokens_and_sentences() -> None:
    found = against_word_norms(model(), probes(), norms(), **QUICK)
    assert np.allclose(found.read, by_hand(), atol=1e-5) and found.words.index.tolist() == words()
    rows = found.frame.set_index(["concept", "layer"])
    for concept, layer in product(("valence", "arousal"), range(4)):
        r = pearsonr(by_hand()[:, layer, ("valence", "arousal").index(concept)], norms()[concept]).statistic
        assert rows.r[concept, layer] == pytest.approx(r, abs=1e-5)
        fisher = np.tanh(np.arctanh(r) + np.array([-1.96, 1.96]) / np.sqrt(len(words()) - 3))
        assert np.allclose(rows.loc[(concept, layer), ["low", "high"]].astype(float), fisher, atol=0.07)
    counts = [len(model().tokenizer(carrier.format(word=words()[7]))["input_ids"]) for carrier in CARRIERS]
    assert 0 < found.words.tokens.iloc[7] < min(counts) and found.words.characters.iloc[7] == len(words()[7])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch_size", [1, 32])
def test_readings_do_not_depend_on_batches_or_padding(side: str, batch_size: int) -> None:
    read = tiny_model("gpt2")
    read.tokenizer.padding_side = side
    few = norms().head(24)
    found = against_word_norms(read, probes(), few, **QUICK, batch_size=batch_size)
    assert np.allclose(found.read, by_hand()[:24], atol=1e-5)
    assert found.frame.equals(against_word_norms(read, probes(), few, **QUICK, batch_size=batch_size).frame)


def test_planted_valence_is_found_beside_its_controls_and_noise_is_not() -> None:
    found = against_word_norms(model(), probes(), norms(), **QUICK)
    rows = found.frame.set_index(["concept", "layer"])
    at = rows.loc[("valence", PLANTED)]
    assert at.low > 0.6 and at.p_layers == 0.01 and at.r > at.random_high and at.held_low > 0.5
    assert at.gain_low > 0 and at.layer0 == pytest.approx(rows.r["valence", 0])
    assert (rows.p_layers >= rows.p).all() and (rows.p_layers["arousal"] > 0.05).all()
    assert "It goes with them." in found.report() and "Not shown to go with them." in found.report()
    gain = abs(at.r) - abs(at.layer0)
    assert at.gain_low < gain < at.gain_high and rows.gain_high["valence", 0] == 0
    found.plot()


def test_random_directions_are_where_directions_at_random_lie() -> None:
    """The range is that of one more: about 95 in 100 random directions lie within it."""
    found = against_word_norms(model(), probes(), norms(), permutations=0, random=30).frame
    row = found[(found.concept == "valence") & (found.layer == 1)].iloc[0]
    generator = np.random.default_rng(5)
    inside = probe_set(generator.normal(size=(4, 40, 32)), fingerprint=model().fingerprint())
    pairs = dict.fromkeys(inside.concepts, "valence")
    others = against_word_norms(model(), inside, norms(), concepts=pairs, permutations=0, random=2).frame
    within = others[others.layer == 1].r.between(row.random_low, row.random_high).mean()
    assert 0.8 < within <= 1


def test_what_only_length_knows_is_said_not_to_go_with_ratings() -> None:
    lengths = np.array([len(word) for word in words()], dtype=float)
    noise = np.random.default_rng(3).normal(size=len(lengths))
    rated = pd.DataFrame({"word": words(), "valence": lengths + 0.5 * noise})
    many = probe_set(np.random.default_rng(6).normal(size=(4, 20, 32)), fingerprint=model().fingerprint())
    found = against_word_norms(
        model(), many, rated, concepts=dict.fromkeys(many.concepts, "valence"), **QUICK
    )
    high = found.frame[found.frame.r.abs() > 0.4]
    assert len(high) > 3 and (high.low * high.high > 0).all() and (high.held.abs() < 0.25).all()
    assert (high.held_low * high.held_high < 0).mean() > 0.7
    best = found.frame.loc[found.frame.r.abs().idxmax()]
    alone = against_word_norms(model(), many, rated, concepts={best.concept: "valence"}, **QUICK).report()
    assert "Not shown to go with them." in alone


def test_covariates_are_held_constant() -> None:
    frequency = pd.DataFrame(
        {"frequency": norms().valence.to_numpy(), "note": "x"}, index=[word.upper() for word in words()]
    )
    rated = norms(1).assign(valence=norms().valence + 0.3 * norms(9).arousal)
    found = against_word_norms(model(), probes(), rated, covariates=frequency.iloc[:100], **QUICK)
    row = found.frame[(found.frame.concept == "valence") & (found.frame.layer == PLANTED)].iloc[0]
    assert row.n == 100 and list(found.words) == ["valence", "arousal", "frequency", "characters", "tokens"]
    assert row.r > 0.5 and row.held < 0.35
    held = np.column_stack([np.ones(100), found.words[["frequency", "characters", "tokens"]]])
    rest = [
        column - held @ np.linalg.lstsq(held, column, rcond=None)[0]
        for column in (found.read[:, PLANTED, 0], found.words.valence.to_numpy())
    ]
    assert row.held == pytest.approx(pearsonr(*rest).statistic, abs=1e-8)


def test_words_are_drawn_by_seed() -> None:
    first, again, other = (
        against_word_norms(model(), probes(), norms(), limit=25, seed=seed, **QUICK) for seed in (0, 0, 1)
    )
    assert first.frame.equals(again.frame) and len(first.words) == 25
    assert first.words.index.tolist() != other.words.index.tolist()
    assert first.words.index.tolist() == sorted(first.words.index)


def test_probes_without_the_embedding_have_no_such_control() -> None:
    part = probe_set(
        np.random.default_rng(1).normal(size=(1, 1, 32)),
        ("joy",),
        layers=(2,),
        n_layers=3,
        fingerprint=model().fingerprint(),
    )
    found = against_word_norms(model(), part, norms(), concepts={"joy": "valence"}, **QUICK)
    assert found.frame.layer0.isna().all() and "embedding" not in found.report()
    assert found.frame.norm.tolist() == ["valence"] and found.frame.concept.tolist() == ["joy"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"concepts": {"joy": "valence"}}, "no probe for 'joy'"),
        ({"concepts": {"valence": "weight"}}, "no norm 'weight'"),
        ({"carriers": ["no word at all"]}, "does not hold {word} once"),
        ({"carriers": []}, "one sentence at the least"),
        ({"random": 1}, "random=2 or more"),
        ({"covariates": pd.DataFrame({"f": [1.0]}, index=[words()[0]])}, "1 words have all ratings"),
        ({"norms": pd.DataFrame({"word": ["a"], "dominance": [1]})}, "no probe is of a norm"),
    ],
)
def test_what_cannot_be_done_is_said(options: dict[str, Any], complaint: str) -> None:
    given = {"norms": norms(), **QUICK, **options}
    with pytest.raises(InputError, match=complaint):
        against_word_norms(model(), probes(), given.pop("norms"), **given)
