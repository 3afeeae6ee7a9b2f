"""Numbers that say how much: ranks are scipy's, p values exact, and neutral twins tell a number's size from what it means."""

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from parts import shown
from planted_probes import planted_probes
from planted_reader import directions, reader
from scipy.stats import spearmanr
from tiny import tiny_model

from emoprobe import InputError
from emoprobe.corpora import load_corpus
from emoprobe.corpora.generator import EMOTIONS as GENERATED
from emoprobe.corpora.generator import WORLDS
from emoprobe.models import LiveModel, load_model
from emoprobe.probes import ProbeSet, fit_probes
from emoprobe.study.concepts.evidence import p_of_all
from emoprobe.study.concepts.intensity import (
    DEGREES,
    agreement,
    by_template,
    combined,
    generated,
    intensity,
    under_all_orders,
)
from emoprobe.study.texts import divide

SWALLOWED = "I have swallowed {x} mg of paracetamol since noon because of my tooth. Shall I take another one?"
GRID = [10, 20, 30, 50, 70, 90]
EMOTIONS = {"afraid": "fear", "calm": "contentment", "happy": "joy"}
UNITS = {  # the unit is part of a number's one token
    "afraid": ("mg", {"afraid": 1, "calm": -1}),
    "calm": ("km", {"calm": 1}),
    "happy": ("cm", {"happy": 1, "afraid": -1}),
    "low": ("kg", {"happy": -1}),
    "high": ("lb", {"happy": 1, "calm": -1}),
}
STIMULI: list[dict[str, Any]] = [
    {
        "name": name,
        "grid": GRID,
        "expected": expected,
        "texts": [f"It was {{x}}{unit} this {time}." for time in ("morning", "week")],
        "neutral": [f"The {thing} has {{x}}{unit}n in all." for thing in ("box", "list")],
    }
    for name, (unit, expected) in UNITS.items()
]


def planted(own: float, twins: float) -> tuple[LiveModel, ProbeSet]:
    """Return a model whose numbers carry the expected emotions, rising along the grid, in the texts and in their twins."""
    rows = dict(zip(EMOTIONS, directions(len(EMOTIONS)), strict=True))
    texts = [t.format(x=x) for one in STIMULI for t in (*one["texts"], *one["neutral"]) for x in one["grid"]]
    words = {}
    for unit, expected in UNITS.values():
        for step, x in enumerate(GRID):
            along = sum(sign * (step - 2.5) * rows[emotion] for emotion, sign in expected.items())
            words |= {f"{x}{unit}": own * along, f"{x}{unit}n": twins * along}
    model = reader(texts, words)
    return model, planted_probes(model, np.stack(list(rows.values())), list(EMOTIONS.values()))


@pytest.mark.parametrize(
    ("own", "twins", "said", "parts"),
    [
        (2.0, 0.0, "Read-outs rise and fall with what the numbers say", [True, True]),
        (2.0, 2.0, "the size of a number may be all that is read", [True, False]),
        (0.0, 0.0, "It is not shown that read-outs follow", [False, False]),
        (-2.0, 0.0, "Read-outs go against what the numbers say", [False, False]),
    ],
)
def test_all_outcomes(own: float, twins: float, said: str, parts: list[bool]) -> None:
    model, probes = planted(own, twins)
    found = intensity(model, probes, stimuli=STIMULI)
    assert said in found.verdict and shown(found) == parts
    single = found.table[found.table.template != "all"]
    assert len(single) == 8 and found.table.value[0] == pytest.approx(
        (single.value * single.expected).groupby(single.template).mean().mean()
    )
    if own:
        assert (np.sign(single.value * single.expected) == np.sign(own)).all()
        assert single.p.min() == pytest.approx(2 / 720)
    assert (single.tokens_vary_by == 0).all() and "in 5 of 5 templates" in found.method


def test_batches_change_nothing() -> None:
    model, probes = planted(1.0, 0.5)
    one, many = (intensity(model, probes, stimuli=STIMULI, batch_size=size).table for size in (1, 32))
    numbers = one.select_dtypes("number").columns
    assert np.allclose(one[numbers], many[numbers], equal_nan=True)


def test_a_random_model_shows_nothing_and_says_what_its_tokens_do() -> None:
    model = tiny_model("llama")
    probes = planted_probes(
        model, np.random.default_rng(3).normal(size=(4, 32)), ["fear", "joy", "sadness", "anger"]
    )
    found = intensity(model, probes)
    assert found.verdict.startswith("It is not shown") and "left out: calm, proud" in found.method
    single = found.table[found.table.template != "all"]
    assert set(single.emotion) == {"afraid", "happy", "sad", "angry"} and (single.most_tokens > 10).all()
    row = single.iloc[0]
    lengths = [len(model.tokenizer(SWALLOWED.format(x=x)).input_ids) for x in (1000, 9000)]
    assert row.fewest_tokens <= min(lengths) and max(lengths) <= row.most_tokens


def test_too_little_is_refused() -> None:
    model, probes = planted(0.0, 0.0)
    with pytest.raises(InputError, match="leave 2 templates: 3 are needed"):
        intensity(model, probes, stimuli=STIMULI[:2])
    lonely = planted_probes(model, directions(1), ["fear"])
    with pytest.raises(InputError, match="know 1 of the emotions"):
        intensity(model, lonely, stimuli=STIMULI)


# Measures ------------------------------------------------------------------------------------------------------------


def test_agreement_is_spearmans_rho_with_its_sign() -> None:
    curves = np.random.default_rng(0).normal(size=(3, 2, 6, 4)).round(1)
    signs = np.array([1.0, 0.0, -1.0, 1.0])
    found = agreement(curves, signs)
    for which in np.ndindex(3, 2):
        rho = [spearmanr(range(6), curves[(*which, slice(None), place)]).statistic for place in range(4)]
        assert found[which] == pytest.approx((rho[0] - rho[2] + rho[3]) / 3)
    assert agreement(np.ones((6, 1)), np.array([1.0])) == 0  # what never moves follows nothing


def test_p_is_that_of_all_orders() -> None:
    curve = np.random.default_rng(1).normal(size=(5, 2))
    signs = np.array([1.0, -1.0])
    null = under_all_orders(curve, signs)
    by_hand = [
        (spearmanr(order, curve[:, 0]).statistic - spearmanr(order, curve[:, 1]).statistic) / 2
        for order in permutations(range(5))
    ]
    assert np.allclose(np.sort(null), np.sort(by_hand))
    rising = np.arange(6.0)[:, None]
    assert p_of_all(1.0, under_all_orders(rising, np.ones(1))) == pytest.approx(2 / 720)
    assert len(under_all_orders(np.arange(9.0)[:, None], np.ones(1))) == 5040


def test_the_combined_p_is_uniform_where_nothing_is() -> None:
    generator = np.random.default_rng(2)
    p = []
    for _ in range(150):
        curves = generator.normal(size=(6, 5, 2))
        signs = np.array([1.0, -1.0])
        found = np.array([agreement(curve, signs) for curve in curves])
        p.append(combined(found, [under_all_orders(curve, signs) for curve in curves]))
    assert 0.01 <= np.mean(np.array(p) <= 0.05) <= 0.1 and 0.4 < np.mean(p) < 0.6


def test_values_come_back_to_their_templates() -> None:
    templates = [
        {"grid": [1, 2], "texts": ["a", "b"], "neutral": ["c"]},
        {"grid": [1, 2, 3], "texts": ["d"], "neutral": ["e", "f"]},
    ]
    values = np.arange(15.0)[None, :, None]
    first, second = by_template(values, templates)
    assert first[0, :, :, 0].tolist() == [[1.0, 2.0], [4.0, 5.0]]  # means of a and b, then c
    assert second[0, :, :, 0].tolist() == [[6.0, 7.0, 8.0], [10.5, 11.5, 12.5]]


# Texts of the generator ----------------------------------------------------------------------------------------------


def test_generated_templates_differ_in_the_degree_alone() -> None:
    made = generated([WORLDS[1], WORLDS[4]], texts=4, seed=2)
    assert len(made) == 12 and "neutral" not in [one["name"] for one in made]
    for one in made:
        assert len(one["texts"]) == len(one["neutral"]) == 4
        for written in (*one["texts"], *one["neutral"]):
            assert len(written) == len(one["grid"]) == len(DEGREES) == 5
            phrases = [
                next(p for p in level if f", {p}." in text)
                for level, text in zip(DEGREES, written, strict=True)
            ]
            assert len({text.replace(f", {p}.", "") for text, p in zip(written, phrases, strict=True)}) == 1
        assert {text[0] for text in one["texts"]}.isdisjoint(text[0] for text in one["neutral"])


def test_what_a_degree_moves_is_what_lies_off_neutral() -> None:
    expected = {one["name"]: one["expected"] for one in generated(texts=1)}
    assert expected["joy"] == {"valence": 1, "arousal": 1} and expected["fear"] == {
        "valence": -1,
        "arousal": 1,
    }
    assert expected["contentment"] == {"valence": 1, "arousal": -1}
    assert expected["surprise"] == {"arousal": 1} and expected["love"] == {"valence": 1}
    signs = [sign for signs in expected.values() for sign in signs.values()]
    assert (signs.count(1), signs.count(-1)) == (11, 8)
    for name, signs in expected.items():
        for which, sign in signs.items():
            assert sign * (getattr(GENERATED[name], which) - getattr(GENERATED["neutral"], which)) > 0.19


def test_the_ground_truth_model_reads_how_much_in_its_last_layer_in_worlds_it_was_not_read_in() -> None:
    live = load_model("ground-truth")
    fitted, kept_back = divide(load_corpus("ground-truth", limit=520), seed=0)
    options: dict[str, Any] = {"concepts": ["valence", "arousal"], "permutations": 0, "bootstrap": 0}
    probes = fit_probes(live, fitted, [4, 6], **options, progress=False)
    stimuli = generated(sorted(set(kept_back.groups.tolist())))
    early, late = (
        intensity(live, probes, layer=layer, stimuli=stimuli, spoken=False, progress=False)
        for layer in (4, 6)
    )
    assert "by more than the same numbers move them in neutral sentences" in late.verdict
    assert late.table.value[0] > 0.6 and late.table.p[0] < 0.01 and late.table.value[1] > 0.3
    valence = late.table[late.table.emotion == "valence"]
    assert len(valence) == 11 and (valence.value * valence.expected > 0).all()
    assert "rise and fall" not in early.verdict


def test_texts_that_are_written_out_are_read_over_all_their_words() -> None:
    model, probes = planted(2.0, 0.0)
    written = [
        {
            **one,
            **{
                side: [[t.format(x=x) for x in one["grid"]] for t in one[side]]
                for side in ("texts", "neutral")
            },
        }
        for one in STIMULI
    ]
    spoken, same = intensity(model, probes, stimuli=STIMULI), intensity(model, probes, stimuli=written)
    assert np.allclose(spoken.table.value, same.table.value) and spoken.finding == same.finding
    alone = intensity(model, probes, stimuli=written, spoken=False)
    assert "over all words" in alone.question and "over all words" in alone.method
    assert alone.verdict.startswith("Read-outs rise and fall") and not np.allclose(
        alone.table.neutral.dropna(), spoken.table.neutral.dropna()
    )
