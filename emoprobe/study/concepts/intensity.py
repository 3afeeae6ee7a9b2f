"""Templates in which one number says how bad or how good things are: do read-outs follow it?

A template holds everything but a number constant, and says which emotions should rise or fall with it. Its read-out before the
reply, averaged over paraphrases, is ranked against the number. A larger number may move a read-out by being larger, so each
template has neutral twins, the same numbers in sentences in which nobody feels anything; and by the design about as many
emotions should fall as rise. Templates are what intervals are over, since emotions of one template move together.

The same is asked of the generator's texts, which say how much in a degree phrase, for the model that knows no numbers.

Source: Sofroniew et al. 2026 (arXiv 2604.07729), figure 3; the grids here have one number of digits each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import permutations
from math import factorial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import rankdata

from emoprobe import drawing
from emoprobe.corpora.generator import EMOTIONS, generate
from emoprobe.errors import InputError
from emoprobe.intervals import CORRELATION, prediction_interval
from emoprobe.models.live import LiveModel
from emoprobe.probes import ProbeSet
from emoprobe.study.concepts.evidence import Evidence, of_mean, p_of_all, p_two_sided, sign_test
from emoprobe.study.concepts.places import CONTROLS, chosen_layer, plain, read_beside_random, turn
from emoprobe.study.concepts.stimuli import load, matched, without
from emoprobe.study.result import Result
from emoprobe.study.wording import number, p_value, ranged, span

Floats = NDArray[np.float64]
LEAST_TEMPLATES = 3
DRAWS = 9999
COLUMNS = 3  # of the picture
DEGREES: tuple[tuple[str, ...], ...] = tuple(
    map(tuple, json.loads((files("emoprobe.corpora") / "worlds.json").read_text(encoding="utf-8"))["degrees"])
)
"""The generator's phrases for how much, from the least level to the most."""
GRID = (0.2, 0.4, 0.6, 0.8, 1.0)
LEAST_AWAY = 0.2 - 1e-9
MOST_ORDERS = 5040
"""Orders of a grid up to which all are tried; of longer grids so many are drawn."""
PUBLISHED = (
    "Sofroniew et al. 2026 (arXiv 2604.07729, figure 3; Claude Sonnet 4.5): afraid, sad, happy and calm move in the expected "
    "directions in 6 of 6 templates, no test given. Replications: rank correlation 1.00 for the dose of a painkiller (n = 7, "
    "Gemma-2-2b); expected directions 11 of 11 (Gemma-4-31B tuned), 7 of 11 (the same, base)."
)


def intensity(
    model: LiveModel,
    probes: ProbeSet,
    *,
    layer: int | float | None = None,
    kind: str = "centred_cosine",
    stimuli: Sequence[Mapping[str, Any]] | None = None,
    spoken: bool = True,
    controls: int = CONTROLS,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = True,
) -> Result:
    """Rank read-outs before the reply against the number in each template, beside neutral twins and random directions.

    `stimuli` are templates, by default nine of the package's own: mappings with name, grid (numbers, rising), expected
    (emotion -> 1 or -1), texts and neutral (with {x} for the number, or written out, one for each number); `generated` makes
    those of the ground-truth model. With `spoken=False` a text is no turn of a conversation and is read over all its words.
    `layer` is by default the one nearest to two thirds of the depth. Raises `InputError` for fewer than two emotions with a
    probe, and fewer than three templates left.
    """
    given = load("intensity") if stimuli is None else stimuli
    concepts, left_out = matched(
        probes, (emotion for template in given for emotion in template["expected"]), 2
    )
    templates = [one for one in given if any(emotion in concepts for emotion in one["expected"])]
    if len(templates) < LEAST_TEMPLATES:
        raise InputError(
            f"probes of {', '.join(concepts)} leave {len(templates)} templates: {LEAST_TEMPLATES} are needed"
        )
    read = chosen_layer(probes, layer)
    texts = [text for one in templates for written in _both(one) for text in written]
    place, where = ("before_reply", "before the reply") if spoken else ("text", "over all words")
    values = read_beside_random(
        model,
        probes,
        [turn(model, text) if spoken else plain(text) for text in texts],
        [place],
        [read],
        kind=kind,
        concepts=list(concepts.values()),
        controls=controls,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    )[:, :, 0, 0]
    curves = by_template(values, templates)
    emotions = list(concepts)
    signs = [_signs(one, emotions) for one in templates]
    expected = np.stack([agreement(curve, sign) for curve, sign in zip(curves, signs, strict=True)], -1)
    nulls = [under_all_orders(curve[0, 0], sign, seed) for curve, sign in zip(curves, signs, strict=True)]
    together = of_mean(expected[:, 0], 0.0, combined(expected[0, 0], nulls, seed), CORRELATION)
    beyond = of_mean(expected[:, 0] - expected[:, 1])
    table = pd.concat(
        [
            pd.DataFrame(
                [
                    {"template": "all", "emotion": "as expected", **together.row()},
                    {"template": "all", "emotion": "as expected, less neutral twins", **beyond.row()},
                ]
            ),
            *(
                _rows(model, one, curve, sign, emotions, seed)
                for one, curve, sign in zip(templates, curves, signs, strict=True)
            ),
        ],
        ignore_index=True,
    )
    single = table[table.template != "all"]
    along = single.value * single.expected
    return Result(
        name="intensity",
        title="Numbers that say how much",
        question=f"Do read-outs {where} rise and fall with a number that says how bad or how good things are?",
        method=(
            f"{len(templates)} templates, {len(texts)} texts with their neutral twins, read ({kind}) {where}, layer {read} of "
            f"{model.n_layers}, averaged over paraphrases. Spearman's ρ of number and read-out, with the expected sign, mean "
            f"over a template's emotions; intervals over templates, p from orders of the numbers. The number of tokens is the "
            f"same along the grid in {_constant(single)} of {len(templates)} templates.{without(left_out)}"
        ),
        table=table,
        finding=(
            f"ρ with the expected sign {span(together.value, together.low, together.high, sign=True)} over {len(templates)} "
            f"templates; {int((along > 0).sum())} of {len(single)} emotions go the expected way (sign test "
            f"{p_value(sign_test(along.to_numpy()))})"
        ),
        controls=(
            f"random directions {ranged(together.expected, sign=True)}, {p_value(together.p)}; neutral twins "
            f"{number(expected[0, 1].mean(), sign=True)}, difference {beyond.said()}"
        ),
        verdict=verdict(together, beyond),
        sign=together.sign if together.sign < 0 or beyond.sign > 0 else 0,
        parts={
            "the expected way": together.sign > 0,
            "by more than in neutral twins": together.sign > 0 and beyond.sign > 0,
        },
        figure=_figure(templates, curves, signs, emotions),
        alt=(
            "One panel for each template: read-outs of the emotions that should rise (↑) or fall (↓), with those of the "
            "neutral twins as grey dashed lines."
        ),
        published=PUBLISHED,
    )


# Texts of the generator ----------------------------------------------------------------------------------------------


def generated(worlds: Sequence[str] | None = None, texts: int = 6, seed: int = 0) -> list[dict[str, Any]]:
    """Return templates of the generator's texts, one for each emotion: one text at all degrees, in `worlds` (default: all).

    By the generator's rule an emotion's degree moves a text from neutral valence and arousal to the emotion's own; so these two
    are what is expected to rise or fall, where the emotion lies at least 0.2 from neutral. Twins are texts in which nobody
    feels anything, with the same degree phrases.
    """
    neutral = EMOTIONS["neutral"]
    expected = {
        emotion: {
            name: int(np.sign(away))
            for name in ("valence", "arousal")
            if abs(away := getattr(place, name) - getattr(neutral, name)) > LEAST_AWAY
        }
        for emotion, place in EMOTIONS.items()
    }
    return [
        {
            "name": emotion,
            "grid": GRID,
            "expected": signs,
            "texts": _at_all_degrees(emotion, worlds, texts, seed),
            "neutral": _at_all_degrees("neutral", worlds, texts, seed + 1 + number),
        }
        for number, (emotion, signs) in enumerate(expected.items())
        if signs
    ]


def _at_all_degrees(emotion: str, worlds: Sequence[str] | None, texts: int, seed: int) -> list[list[str]]:
    """Return texts about one person, each with every degree phrase in turn that stands at the same place of its level."""
    drawn = generate(texts, seed, forms=["third"], emotions=[emotion], worlds=worlds)
    return [[_with_degree(text.text, level) for level in range(len(DEGREES))] for text in drawn]


def _with_degree(text: str, level: int) -> str:
    for phrases in DEGREES:
        for place, phrase in enumerate(phrases):
            if f", {phrase}." in text:
                return text.replace(f", {phrase}.", f", {DEGREES[level][place]}.")
    raise AssertionError(f"no degree phrase in {text!r}")


# Measures ------------------------------------------------------------------------------------------------------------


def by_template(values: Floats, templates: Sequence[Mapping[str, Any]]) -> list[Floats]:
    """Return for each template read-outs (1 + controls, texts or neutral twins, numbers, concepts), means of paraphrases.

    `values` (1 + controls, texts, concepts) are in the order of the templates, their texts, then their twins, then numbers.
    """
    curves, start = [], 0
    for one in templates:
        numbers, parts = len(one["grid"]), []
        for written in (one["texts"], one["neutral"]):
            stop = start + len(written) * numbers
            part = values[:, start:stop].reshape(len(values), len(written), numbers, -1)
            parts.append(part.mean(1))
            start = stop
        curves.append(np.stack(parts, axis=1))
    return curves


def ranked(values: Floats) -> Floats:
    """Return ranks along the last axis, centred and of length 1, so that products are Spearman's ρ; 0 where all are equal."""
    ranks = rankdata(values, axis=-1)
    ranks = ranks - ranks.mean(-1, keepdims=True)
    lengths = np.linalg.norm(ranks, axis=-1, keepdims=True)
    units: Floats = np.divide(ranks, lengths, out=np.zeros_like(ranks), where=lengths > 1e-12)
    return units


def agreement(curves: Floats, signs: Floats) -> Floats:
    """Return ρ of number and read-out with the expected sign, mean over the emotions that have one: (…).

    `curves` are (…, numbers, concepts), numbers rising; `signs` (concepts,) are 1, -1 or, where nothing is expected, 0.
    """
    rho = ranked(np.moveaxis(curves, -2, -1)) @ ranked(np.arange(curves.shape[-2], dtype=float))
    mean: Floats = rho @ signs / np.abs(signs).sum()
    return mean


def under_all_orders(curve: Floats, signs: Floats, seed: int = 0) -> Floats:
    """Return `agreement` of one curve (numbers, concepts) with the numbers in every order, or in many of them: (orders,)."""
    count = len(curve)
    if factorial(count) <= MOST_ORDERS:
        orders = np.array(list(permutations(range(count))), dtype=float)
    else:
        generator = np.random.default_rng(seed)
        orders = generator.permuted(np.tile(np.arange(count, dtype=float), (MOST_ORDERS, 1)), axis=1)
    null: Floats = ranked(orders) @ ranked(curve.T).T @ signs / np.abs(signs).sum()
    return null


def combined(found: Floats, nulls: Sequence[Floats], seed: int = 0) -> float:
    """Return the two-sided p of the mean over templates (templates,), each template's numbers in an order of its own."""
    generator = np.random.default_rng(seed)
    draws = np.mean([generator.choice(null, DRAWS) for null in nulls], axis=0)
    return p_two_sided(float(found.mean()), draws)


def verdict(together: Evidence, beyond: Evidence) -> str:
    """Say whether read-outs follow the numbers as expected, and whether numbers alone do that."""
    if together.sign < 0:
        return f"Read-outs go against what the numbers say, ρ {together.said()}."
    if not together.sign:
        return f"It is not shown that read-outs follow what the numbers say, ρ {together.said()}."
    if beyond.sign > 0:
        return (
            f"Read-outs rise and fall with what the numbers say, ρ {together.said()}, and by more than the same numbers move "
            f"them in neutral sentences, {beyond.said()}."
        )
    return (
        f"Read-outs go with the numbers as expected, ρ {together.said()}, but it is not shown to be more than the same numbers "
        f"do in neutral sentences, {beyond.said()}: the size of a number may be all that is read."
    )


# Tables and pictures -------------------------------------------------------------------------------------------------


def _both(template: Mapping[str, Any]) -> list[list[str]]:
    """Return each text and then each neutral twin of a template, written out with each number of its grid."""
    return [
        [one.format(x=x) for x in template["grid"]] if isinstance(one, str) else list(one)
        for one in (*template["texts"], *template["neutral"])
    ]


def _signs(template: Mapping[str, Any], emotions: Sequence[str]) -> Floats:
    return np.array([float(template["expected"].get(emotion, 0)) for emotion in emotions])


def _rows(
    model: LiveModel,
    template: Mapping[str, Any],
    curve: Floats,
    signs: Floats,
    emotions: Sequence[str],
    seed: int,
) -> pd.DataFrame:
    """Return one row for each expected emotion of a template; value is ρ itself, p is exact and two-sided."""
    lengths = [[len(model.tokenizer(text)["input_ids"]) for text in written] for written in _both(template)]
    rows = []
    for place in np.flatnonzero(signs).tolist():
        alone = np.eye(len(emotions))[place]
        rho = agreement(curve, alone)
        low, high = prediction_interval(rho[1:, 0], CORRELATION)
        null = under_all_orders(curve[0, 0], alone, seed)
        rows.append(
            {
                "template": template["name"],
                "emotion": emotions[place],
                "expected": int(signs[place]),
                "value": rho[0, 0],
                "p": p_of_all(rho[0, 0], null),
                "random_low": low,
                "random_high": high,
                "neutral": rho[0, 1],
                "fewest_tokens": np.min(lengths),
                "most_tokens": np.max(lengths),
                "tokens_vary_by": max(max(row) - min(row) for row in lengths),
            }
        )
    return pd.DataFrame(rows)


def _constant(rows: pd.DataFrame) -> int:
    return int((rows.groupby("template").tokens_vary_by.max() == 0).sum())


@drawing.styled()
def _figure(
    templates: Sequence[Mapping[str, Any]],
    curves: Sequence[Floats],
    signs: Sequence[Floats],
    emotions: Sequence[str],
) -> Figure:
    figure, axes = drawing.tiled(len(templates), columns=COLUMNS, height=1.8)
    colours = dict(zip(emotions, drawing.PALETTE * len(emotions), strict=False))
    for axis, template, curve, sign in zip(axes, templates, curves, signs, strict=True):
        for place in np.flatnonzero(sign).tolist():
            label = f"{emotions[place]} {'↑' if sign[place] > 0 else '↓'}"
            own, neutral = curve[0, :, :, place]
            drawing.line(
                axis, template["grid"], own - own.mean(), label=label, colour=colours[emotions[place]]
            )
            drawing.control(axis, template["grid"], neutral - neutral.mean())
        axis.set_title(template["name"])
        axis.legend(fontsize=6.5)
    for axis in axes[::COLUMNS]:
        axis.set_ylabel("read-out − mean")
    return figure
