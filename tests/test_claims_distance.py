"""Cues carried through fillers: the texts, what is read where, and both verdicts, on made-up curves and in planted models."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from parts import shown
from planted_probes import planted_probes
from planted_reader import directions, reader

from emoprobe.corpora.generator import generate
from emoprobe.errors import InputError
from emoprobe.models import LiveModel
from emoprobe.probes import ProbeSet
from emoprobe.study.claims import distance as module
from emoprobe.study.claims.cues import CuePair, generated_pairs, written_pairs
from emoprobe.study.claims.distance import FURTHER, SLOWER, Carried, distance, effects, follow
from emoprobe.study.claims.judging import NOT_SHOWN, NOT_SUPPORTED, POSITIVE, STRENGTHS, SUPPORTED
from emoprobe.valattn import Valuation, inject

PLAIN = "road table window river paper clock lamp stone wagon field basket ladder".split()
CONTROLS = 20
PAIRS = 6


# Texts ---------------------------------------------------------------------------------------------------------------


def test_written_pairs_share_their_filler_and_differ_from_each_other() -> None:
    pairs = written_pairs()
    assert len(pairs) == 10 and len({pair.filler for pair in pairs}) == 10
    assert (
        len({tuple(sorted(pair.filler.split())) for pair in pairs}) == 1
    )  # the same sentences in another order
    for pair in pairs:
        glad, sad = pair.texts()
        assert glad != sad and glad.endswith(pair.filler) and sad.endswith(pair.filler)
        assert abs(len(pair.glad.split()) - len(pair.sad.split())) <= 2
    assert written_pairs(1)[0].filler != pairs[0].filler


def test_generated_pairs_are_of_the_worlds_given_and_their_fillers_feel_nothing() -> None:
    pairs = generated_pairs(["kitchen", "harbour"], count=4)
    assert len({pair.filler for pair in pairs}) == 4
    of_kitchen = {
        sentence
        for text in generate(4000, 5, forms=("first",), worlds=["kitchen"])
        for sentence in text.text.split(". ")
    }
    assert any(part in of_kitchen for part in pairs[0].glad.split(". "))
    assert len(pairs[0].filler.split()) > 150


# Verdicts on made-up curves ------------------------------------------------------------------------------------------


def curves(
    exponent: float = 0.5, *, slower: float = 0.0, random: float = 0.0, scale: float = 1.0, seed: int = 0
) -> Carried:
    """Differences that fall as a power of the distance; λ · `slower` is taken off the exponent, all is `scale` as large."""
    draw = np.random.default_rng(seed)
    at = 2.0 ** (np.arange(8) + 0.5)
    lam, positive = np.array(STRENGTHS), np.array(POSITIVE)
    standard = at**-exponent
    probed = scale * at ** -(exponent - slower * lam[:, None])
    chance = scale * at ** -(exponent - random * positive[:, None])

    def noisy(means: np.ndarray, *shape: int) -> np.ndarray:
        return means + 0.01 * draw.normal(size=(*shape, len(at)))

    return Carried(
        at,
        noisy(standard, PAIRS),
        noisy(probed[:, None], len(lam), PAIRS),
        noisy(chance[None, :, None], CONTROLS, len(positive), PAIRS),
    )


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        ({"slower": 0.1}, SUPPORTED),
        ({"slower": -0.1}, NOT_SUPPORTED),
        ({"slower": 0.1, "random": 0.1}, NOT_SHOWN),
        ({}, NOT_SHOWN),
    ],
)
def test_decay_is_judged_by_its_slope(given: dict[str, float], verdict: str) -> None:
    slope, _ = effects("it", curves(**given))
    assert slope.claim == SLOWER and slope.verdict == verdict


def test_read_outs_that_all_grow_or_shrink_are_carried_no_further() -> None:
    for scale in (0.4, 4.0):
        slope, far = effects("it", curves(scale=scale, random=0.0))
        assert abs(slope.mean[0]) < 0.01 and slope.verdict == NOT_SHOWN
        assert far.claim == FURTHER and np.sign(far.mean[0]) == np.sign(scale - 1)


def test_the_slope_is_that_of_the_share_of_what_is_near_the_cue() -> None:
    exact = curves(slower=0.1)
    still = replace(
        exact,
        standard=np.tile(exact.distances**-0.5, (PAIRS, 1)),
        probed=np.tile(2 * exact.distances**-0.4, (len(STRENGTHS), PAIRS, 1)),
    )
    slope, far = effects("it", still)
    x = np.log2(exact.distances)

    def share(exponent: float) -> float:
        y = exact.distances**-exponent
        return float(np.polyfit(x, y / y[exact.distances <= 8].mean(), 1)[0])

    assert slope.mean[0] == pytest.approx(share(0.4) - share(0.5))
    beyond = exact.distances >= 64
    change = (2 * exact.distances**-0.4 - exact.distances**-0.5)[beyond].mean()
    near = (exact.distances**-0.5)[exact.distances <= 8].mean()
    assert far.mean[0] == pytest.approx(100 * change / near)


def test_without_an_effect_of_the_cue_there_is_no_decay_to_judge() -> None:
    nothing = curves()
    nothing = replace(nothing, standard=nothing.standard - nothing.standard.mean(0))
    assert all(found.verdict == NOT_SHOWN and np.isnan(found.mean[0]) for found in effects("it", nothing))
    # ... nor at a strength at which the effect is gone.
    gone = curves(slower=0.1)
    gone.probed[-1] *= 0.01
    slope, _ = effects("it", gone)
    assert np.isnan(slope.probed[-1, 0]) and np.isfinite(slope.probed[:-1]).all()
    assert np.isnan(slope.mean).all() and slope.verdict == NOT_SHOWN
    # Random valuations under which it is gone do not make the probed one rare.
    drowned = curves(slower=0.1)
    drowned.random[:] *= 0.01
    slope, _ = effects("it", drowned)
    assert slope.p == 1 and slope.verdict == NOT_SHOWN


# A model in which cues are carried -----------------------------------------------------------------------------------


def pairs(count: int = PAIRS, length: int = 150) -> list[CuePair]:
    draw = np.random.default_rng(0)
    return [
        CuePair("happy glad pleased", "sad unhappy upset", " ".join(draw.choice(PLAIN, length)))
        for _ in range(count)
    ]


def planted(felt: bool) -> tuple[LiveModel, Valuation, ProbeSet]:
    """A model that spreads all embeddings evenly, a probe that tells glad from sad words, and a valuation.

    It values words of either feeling highest (`felt`), or those of the filler; all others a little.
    """
    valence, valued = directions(2)
    words = {word: valence + valued for word in ("happy", "glad", "pleased")}
    words |= {word: valued - valence for word in ("sad", "unhappy", "upset")}
    if not felt:
        words = {word: row - valued for word, row in words.items()} | dict.fromkeys(PLAIN, valued)
    model = reader([text for pair in pairs() for text in pair.texts()], words, strength=2.0)
    model = type(model)(model.underlying.float(), model.tokenizer, "planted")
    weight = torch.from_numpy(1.5 * valued).float()[None, None]
    valuation = Valuation(weight, torch.full((1, 1), 0.5), ("felt",), (0,))
    return model, valuation, planted_probes(model, valence[None], ["valence"])


def test_cues_are_carried_further_where_feeling_is_valued() -> None:
    model, valuation, probes = planted(felt=True)
    result = distance(model, valuation, probes, pairs(), controls=CONTROLS)
    rows = result.table[result.table.verdict.fillna("") != ""].set_index(["claim", "measure"])
    assert rows.loc[SLOWER].verdict.iloc[0] == SUPPORTED
    assert rows.loc[FURTHER].verdict.tolist() == [SUPPORTED, SUPPORTED]
    assert "log-odds" in result.method and result.svg
    assert f"{SLOWER[0].upper()}{SLOWER[1:]}: {SUPPORTED}" in result.verdict
    assert shown(result)[:2] == [True, True] and shown(result)[3] and len(result.parts) == 4


def test_they_are_not_where_the_filler_is_valued() -> None:
    model, valuation, probes = planted(felt=False)
    result = distance(model, valuation, probes, pairs(), controls=CONTROLS)
    rows = result.table[result.table.verdict.fillna("") != ""].set_index("claim")
    assert rows.loc[FURTHER].verdict.tolist() == [NOT_SUPPORTED, NOT_SUPPORTED]
    assert SUPPORTED not in rows.loc[SLOWER].verdict.tolist() and not any(shown(result))


def test_what_is_followed_equals_read_outs_and_log_odds_token_by_token() -> None:
    model, valuation, probes = planted(felt=True)
    found = follow(model, valuation, probes, pairs(2), "valence", 2, controls=1, seed=0)
    glad, sad = (
        [model.tokenizer(word)["input_ids"][0] for word in pole]
        for pole in (["happy", "glad", "pleased"], ["sad", "unhappy", "upset"])
    )
    column = 0
    for lam, name in ((0.0, "standard"), (2.0, "probed")):
        for number, pair in enumerate(pairs(2)):
            read, odds = [], []
            for text in pair.texts():
                batch = model.tokenize(text)
                with torch.no_grad(), inject(model, valuation, lam):
                    read.append(
                        probes.read_out(model.streams(batch, [2])[0, 0], 2)[:, column].double().numpy()
                    )
                    chances = model.forward(batch)[0].double().softmax(-1)
                odds.append((chances[:, glad].sum(-1) / chances[:, sad].sum(-1)).log().numpy())
            for values, carried in zip((read, odds), found.values(), strict=True):
                after = (values[0] - values[1])[3:]  # three words of cue
                bins = [
                    after[0:2],
                    after[2:4],
                    after[4:8],
                    after[8:16],
                    after[16:32],
                    after[32:64],
                    after[64:],
                ]
                curve = carried.standard if name == "standard" else carried.probed[-1]
                assert np.allclose(curve[number], [part.mean() for part in bins], atol=1e-4)


def test_a_context_that_is_too_short_is_refused() -> None:
    model, valuation, probes = planted(felt=True)
    with pytest.raises(InputError, match="its context is too short"):
        distance(model, valuation, probes, pairs(length=60), controls=1)


def test_words_that_are_no_single_tokens_are_left_out() -> None:
    model, *_ = planted(felt=True)
    others = [CuePair("glad", "road", pair.filler) for pair in pairs(3)]
    tokenizer = reader([text for pair in others for text in pair.texts()], {}).tokenizer
    assert module._word_tokens(type(model)(model.underlying, tokenizer, "other")) == []
    assert len(module._word_tokens(model)) == 2
