"""What the study says of injection and steering follows from its numbers, and its few-group intervals hold what they say."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from small_study import small_corpus, small_model

from emoprobe import InputError
from emoprobe.corpora import Corpus
from emoprobe.models import LiveModel
from emoprobe.steering import Measure, Sweep
from emoprobe.study import injecting
from emoprobe.study.dose import KL, NLL
from emoprobe.study.injecting import _beyond, _price, _trends
from emoprobe.study.outcomes import WORDS, left_out
from emoprobe.study.result import Result
from emoprobe.study.steering import Steered, _steered_with, _verdict
from emoprobe.study.texts import counted, readable, readable_part
from emoprobe.study.wording import beside_one_more, correlation
from emoprobe.valattn import Valuation

STRENGTHS = (-2.0, -1.0, 0.0, 1.0, 2.0)
QUIET = [-0.02, -0.01, 0.0, 0.01, 0.02]


@pytest.fixture(scope="module")
def model() -> LiveModel:
    return small_model()


def planted(curves: dict[str, tuple[float, Sequence[float]]], bend: float = 0.0) -> Sweep:
    """Return a sweep whose measures go with strength by a slope, and by one for each random control.

    All are bent upwards by `bend` times the squared strength; eight texts differ a little in slope and much in level.
    """
    rows: list[tuple[object, ...]] = []
    for measure, (own, random) in curves.items():
        for seed, slope in [(None, own), *enumerate(random)]:
            condition = "steered" if seed is None else "random"
            for strength in STRENGTHS:
                for text in range(8):
                    value = (slope + 0.001 * (text - 3.5)) * strength + bend * strength**2 + text
                    rows.append((strength, condition, seed, measure, text, value))
    columns = ["strength", "condition", "seed", "measure", "text", "value"]
    return Sweep(pd.DataFrame(rows, columns=columns).astype({"seed": "Int64"}), "planted", "nothing")


# Injecting -----------------------------------------------------------------------------------------------------------

BESIDE = [0.1, 0.12, 0.14, 0.16, 0.18]  # one more within 0.14 ± 2.776 · 0.0316 · √1.2 = [0.044, 0.236]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.24, "more than"),
        (0.23, "within what"),  # beyond any of these, and not beyond what one more might
        (0.14, "within what"),
        (0.05, "within what"),
        (0.04, "less than"),
        (-0.3, "less than"),
    ],
)
def test_the_price_is_held_to_one_more_random_valuation(value: float, said: str) -> None:
    assert beside_one_more(value, BESIDE, "random valuation", 3) == (
        f"{said} one more random valuation may be expected to give (+0.044 to +0.236, 95 %)"
    )
    sure = (value, value - 0.01, value + 0.01)
    assert _beyond(sure, BESIDE) == (
        1
        if said == "more than"
        else -1
        if value < 0
        else 0  # a rise beneath the random ones is none of either
    )
    assert _beyond((value, -1.0, 1.0), BESIDE) == 0  # whose interval holds 0
    price = _price((value, value - 0.1, value + 0.1), BESIDE, 2.0)
    assert said in price and "interval over texts" in price and "+0.100 to +0.180" in price


@pytest.mark.parametrize("chance", [[0.1], [float("nan")]])
def test_too_few_random_valuations_tell_nothing(chance: list[float]) -> None:
    assert beside_one_more(0.5, chance, "random valuation", 3) == "too few of them to compare with"
    assert (
        _trends(pd.Series({"a read-out": ""}), 1) == "With so few random valuations no trend can be judged."
    )


def test_trends_are_listed_with_their_direction_beside_what_chance_gives() -> None:
    none = _trends(pd.Series(dict.fromkeys("abc", "")), 10)
    assert "in 0 of 3: a null result (by chance 0.15 of 3 would differ)" in none
    two = _trends(pd.Series({"a": "steeper than", "b": "", "c": "the other way from", "d": ""}), 10)
    assert (
        "in 2 of 4, by chance 0.20 of 4 would differ: a (steeper than random ones) and c (the other way"
        in two
    )
    assert "null" not in two and " b " not in two


def injected(
    monkeypatch: pytest.MonkeyPatch, model: LiveModel, found: Sweep, held_out: Corpus
) -> tuple[Result, list[str]]:
    """Return what is said of a planted sweep, and the texts that were to be measured."""
    given: list[str] = []

    def measures(_: object, __: object, texts: Sequence[str]) -> list[Measure]:
        given.extend(texts)
        return []

    def sweep(
        _: object, __: object, ___: object, prompts: Sequence[str], *____: object, **options: Any
    ) -> Sweep:
        assert list(prompts) == given
        return found

    monkeypatch.setattr(injecting, "sweep", sweep)
    monkeypatch.setattr(injecting, "shared_measures", measures)
    monkeypatch.setattr(injecting, "checks", lambda *_: {})
    valuation = Valuation(torch.ones(1, 1, model.d_model), torch.zeros(1, 1), ("valence",), (0,))
    return injecting.injecting(model, valuation, None, held_out, strengths=STRENGTHS), given  # type: ignore[arg-type]


def test_no_sentence_on_injection_contradicts_another(
    model: LiveModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The NLL falls with λ, and under random valuations more steeply: that is no trend which these lacked."""
    curves = {
        NLL: (-0.265, [-0.34, -0.35, -0.36, -0.37, -0.39]),
        KL: (0.0, QUIET),
        "valence read-out": (0.01, QUIET),
    }
    result, _ = injected(monkeypatch, model, planted(curves, bend=0.5), small_corpus())
    # At λ = 2 each is 4 · 0.5 + 2 · slope.
    assert (
        "changes the NLL by +1.470" in result.verdict
        and "random ones by +1.220 to +1.320: more than" in result.verdict
    )
    assert "in 0 of 1: a null result" in result.verdict and "λ = 0, the untouched model" in result.verdict
    assert result.verdict.count("NLL") == 2 and "KL" not in result.verdict
    assert "interval over texts" in result.finding and "of 10 groups" in result.method

    curves = {NLL: (0.0, QUIET), KL: (0.0, QUIET), "valence read-out": (0.3, [0.7, 0.72, 0.74, 0.76, 0.78])}
    result, _ = injected(monkeypatch, model, planted(curves, bend=-0.5), small_corpus())
    assert "within what one more" in result.verdict and "is lowest at λ = −2." in result.verdict
    assert "in 1 of 1, by chance 0.05 of 1 would differ: valence read-out (flatter than" in result.verdict

    curves = {NLL: (-0.3, QUIET), KL: (0.0, QUIET), "valence read-out": (0.3, QUIET)}
    result, _ = injected(monkeypatch, model, planted(curves), small_corpus())
    assert "less than one more" in result.verdict and "valence read-out (steeper than" in result.verdict


def test_injection_is_measured_on_texts_of_as_many_held_out_groups_as_can_be(
    model: LiveModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(injecting, "TEXTS", 5)
    corpus = small_corpus()
    held_out = corpus.select(mask=np.isin(corpus.groups, ["week 1", "week 4", "week 7"]))
    curves = {NLL: (0.0, QUIET), KL: (0.0, QUIET), "valence read-out": (0.0, QUIET)}
    result, given = injected(monkeypatch, model, planted(curves), held_out)
    weeks = pd.Series([corpus.groups[corpus.texts.index(text)] for text in given]).value_counts()
    assert sorted(weeks) == [1, 2, 2] and set(weeks.index) == {"week 1", "week 4", "week 7"}
    assert "on 5 held-out texts of 3 groups" in result.method


# Steering ------------------------------------------------------------------------------------------------------------


def concept(name: str, slope: float, others: Sequence[float], random: Sequence[float] = QUIET) -> Steered:
    return Steered(name, "log P", planted({"log P": (slope, random)}), pd.Series(others, dtype=float))


def said(steered: Sequence[Steered]) -> str:
    kinds = ["dimension" if part.concept == "valence" else "label" for part in steered]
    cost = (0.02, 0.01, 0.03)
    given = ("its read-out", " nats", "8 beginnings", (0.5, 0.2, 0.8), [-0.1, 0.3], cost, [0.01, 0.002])
    return _verdict(steered, *given, kinds)


def test_what_steering_does_is_said_of_as_many_concepts_as_it_does_it_to() -> None:
    """A slope of 1 changes the outcome by 2 at the highest strength."""
    every = said([concept(name, 1.0, [0.1, 1.9]) for name in "abc"])
    assert every.count("all of 3") == 3 and "none" not in every
    assert "(by chance 1 in 3 would)" in every and "by chance 1 in 40 would" in every
    none = said([concept(name, -1.0, [0.1, 3.0]) for name in "abc"])
    assert (
        none.count("none of 3") == 3
        and none.count("all of") == 1
        and "falls instead of rising for all of 3" in none
    )
    mixed = said(
        [
            concept("joy", 1.0, [0.1, 1.9]),
            concept("fear", 1.0, [0.1, 2.1]),  # another direction does more
            concept(
                "anger", 1.0, [0.1, 1.9], random=[-3.0, -1.5, 0.0, 1.5, 3.0]
            ),  # random ones may do as much
        ]
    )
    rises, beyond_random, own = (
        next(part for part in mixed.split(". ") if key in part)
        for key in ("monotonically", "rises on the whole", "raises it most")
    )
    assert (
        "all of 3" in rises and "2 of 3 (joy and fear)" in beyond_random and "2 of 3 (joy and anger)" in own
    )
    assert "slopes over 8 beginnings" in beyond_random


def test_figures_on_steering_name_what_they_are_over() -> None:
    several = said([concept(name, 1.0, [0.1]) for name in "abc"])
    assert "(means over the same concepts): within what one more random direction may be expected" in several
    assert several.count("mean of 3 concepts, interval over concepts") == 2
    assert "+0.50\N{NO-BREAK SPACE}[+0.20,\N{NO-BREAK SPACE}+0.80] nats" in several
    alone = said([concept("joy", 1.0, [])])
    assert "(one concept)" in alone and "ther concepts" not in alone and "all of 1" in alone


def test_steering_names_its_price_beside_that_of_random_directions_and_who_goes_the_wrong_way() -> None:
    mixed = said([concept("valence", 4.0, []), concept("joy", 0.2, []), concept("awe", -0.5, [])])
    assert "random directions of equal norm cost +0.006 on average (+0.002 to +0.010)" in mixed
    assert "not more at equal cost" in mixed and "falls instead of rising for 1 of 3 (awe)" in mixed
    # Changes at the highest strength, 2: 0.4 and -1 without the dimension, whose is 8.
    assert "Over the 2 emotions alone, without dimensions, it is −0.30" in mixed
    alike = said([concept(name, 1.0, []) for name in "ab"])
    assert "emotions alone" not in alike and "falls instead" not in alike


def test_which_concepts_are_steered_with_and_why_others_are_not() -> None:
    concepts = ("valence", "joy", "awe", "fear")
    probes: Any = SimpleNamespace(concepts=concepts)
    assert left_out(probes, WORDS, concepts) == ""
    assert left_out(probes, WORDS, ("valence", "joy")) == (
        "Left out: awe (no plain words); fear (read less well than these 12)."
    )
    steered = [concept(name, 1.0, []) for name in concepts[:2]]
    assert _steered_with(steered, ["dimension", "label"]) == "valence and joy"
    assert _steered_with(steered, ["dimension"] * 2) == "the dimensions valence and joy"


# Texts of many groups ------------------------------------------------------------------------------------------------


def test_each_group_comes_once_before_any_comes_twice(model: LiveModel) -> None:
    sizes = {"large": 20, "small": 2, "single": 1}
    groups = [name for name, size in sizes.items() for _ in range(size)]
    corpus = Corpus.from_columns(
        {"text": [f"The sun came up on day {n}." for n in range(23)], "group": groups, "valence": [0.0] * 23},
        dimensions={"valence": (-1.0, 1.0)},
    )
    drawn = {most: readable_part(model, corpus, most) for most in (1, 3, 5, 23, 40)}
    assert set(drawn[3].groups) == set(sizes)
    assert sorted(pd.Series(drawn[5].groups).value_counts()) == [1, 2, 2]
    assert len(drawn[23]) == len(drawn[40]) == len(set(drawn[40].texts)) == 23
    assert (counted(drawn[1]), counted(drawn[5])) == (
        "1 held-out text of 1 group",
        "5 held-out texts of 3 groups",
    )
    assert readable_part(model, corpus, 5).texts == drawn[5].texts
    others = [readable_part(model, corpus, 1, seed) for seed in range(20)]
    assert {part.groups[0] for part in others} == set(sizes)  # no group comes first for its name or size
    assert len({part.texts[0] for part in others if part.groups[0] == "large"}) > 2


def test_a_group_counts_though_its_first_texts_cannot_be_read(model: LiveModel) -> None:
    texts = [*["a"] * 9, "The dog had run away.", *[f"It was dark and cold, night {n}." for n in range(10)]]
    corpus = Corpus.from_columns(
        {"text": texts, "group": ["one"] * 10 + ["two"] * 10, "valence": [0.0] * 20},
        dimensions={"valence": (-1.0, 1.0)},
    )
    for seed in range(5):
        assert set(readable_part(model, corpus, 2, seed).groups) == {"one", "two"}
        assert "a" not in readable(model, texts, 20, seed)
    with pytest.raises(InputError, match="no held-out text"):
        readable_part(model, corpus.select(indices=range(9)), 3)


# Correlations over few groups ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [3, 8])
@pytest.mark.parametrize("alike", [0.0, 0.1, 0.3])
def test_a_correlations_interval_holds_it_as_often_as_it_says(groups: int, alike: float) -> None:
    """Texts of a group share a part of both variables: an intraclass correlation of `alike`, at a true r of 0.6."""
    rng = np.random.default_rng(groups)
    mix, member = np.linalg.cholesky([[1, 0.6], [0.6, 1]]), np.repeat(np.arange(groups), 30)
    held = []
    for _ in range(800):
        shared, own = rng.normal(size=(groups, 2)) @ mix.T, rng.normal(size=(30 * groups, 2)) @ mix.T
        x, y = (np.sqrt(alike) * shared[member] + np.sqrt(1 - alike) * own).T
        _, low, high = correlation(x, y, member)
        held.append(low <= 0.6 <= high)
    assert 0.93 < np.mean(held) < 0.985


def test_few_groups_are_left_out_one_at_a_time() -> None:
    rng = np.random.default_rng(4)
    member = rng.integers(6, size=90)
    x = rng.normal(size=90) + member
    y = x + rng.normal(size=90)
    r, low, high = correlation(x, y, member.astype(str))
    without = [np.arctanh(np.corrcoef(x[member != g], y[member != g])[0, 1]) for g in range(6)]
    error = np.sqrt(5 / 6 * np.sum((without - np.mean(without)) ** 2))
    assert [r, low, high] == pytest.approx(
        np.tanh(np.arctanh(r) + np.array([0, -1, 1]) * 2.5706 * error), abs=1e-5
    )
    assert (
        correlation(x, 2 * x, member)[0] == pytest.approx(1)
        and np.isfinite(correlation(x, 2 * x, member)).all()
    )
    assert np.isnan(correlation(x, y, np.zeros(90))[1:]).all()
