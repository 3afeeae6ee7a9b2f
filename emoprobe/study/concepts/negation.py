"""“Feels happy”, “does not feel happy”, “no one feels happy”: does the read-out of the emotion heed the negation?

How much a word for an emotion moves the emotion's own read-out is its contrast: the read-out with this word less that with the
other emotions' words in the same sentence, so that what a negation does to all sentences cancels. The ratio of the contrast in
negated to that in affirmed sentences is 1 where the negation is ignored and 0 where it is resolved. A negation also makes a
sentence longer; “does indeed feel happy” does so by as many words, and its ratio is what nothing but length brings about.

Source: Sofroniew et al. 2026 (arXiv 2604.07729), figure 14.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from emoprobe import drawing
from emoprobe.errors import InputError
from emoprobe.models.live import LiveModel
from emoprobe.probes import ProbeSet
from emoprobe.study.concepts.evidence import Evidence, fieller, in_common, of_mean
from emoprobe.study.concepts.places import CONTROLS, Prompt, chosen_layer, read_beside_random, turn
from emoprobe.study.concepts.stimuli import CONCEPTS, load, matched, without
from emoprobe.study.result import Result
from emoprobe.study.wording import span

Floats = NDArray[np.float64]
CONDITIONS = ("affirmed", "longer", "negated", "nobody")
NEGATIONS = {"negated": "“does not feel”", "nobody": "“no one feels”"}
PLACES = ("word", "later word", "place before the reply")
JUDGED = PLACES[1:]
"""Where it is judged whether a negation is resolved: after the word."""
LEAST_FRAMES = 3
HALF = 0.5
"""Share of the affirmed contrast that a resolved negation leaves less than, and an ignored one more than."""
PUBLISHED = (
    "Sofroniew et al. 2026 (arXiv 2604.07729, figure 14; Claude Sonnet 4.5): early layers are the same, and by late layers the "
    "negated emotion is near 0 while the affirmed one stays. No ratio is given, and no replication with one is known."
)


def negation(
    model: LiveModel,
    probes: ProbeSet,
    *,
    layer: int | float | None = None,
    kind: str = "centred_cosine",
    stimuli: Mapping[str, Any] | None = None,
    controls: int = CONTROLS,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = True,
) -> Result:
    """Compare the contrast of negated and affirmed sentences at the word, a later word and before the reply, at all layers.

    `stimuli` hold phrases (condition -> text with {name} and {w}) and frames (name, text with {phrase}, later: a word in it);
    by default eight frames of the package's own. Emotions are all that have a probe, named by their adjectives. The verdict is
    given at `layer`, by default the one nearest to two thirds of the depth. Raises `InputError` for fewer than three emotions
    with a probe, and fewer than three frames.
    """
    given = load("negation") if stimuli is None else stimuli
    concepts, left_out = matched(probes, CONCEPTS)
    frames: Sequence[Mapping[str, str]] = given["frames"]
    if len(frames) < LEAST_FRAMES:
        raise InputError(f"{len(frames)} frames are too few: give at least {LEAST_FRAMES}")
    read, layers = chosen_layer(probes, layer), sorted(probes.layers)
    prompts = [
        placed(model, frame, given["phrases"][condition], emotion)
        for condition in CONDITIONS
        for frame in frames
        for emotion in concepts
    ]
    values = read_beside_random(
        model,
        probes,
        prompts,
        PLACES,
        layers,
        kind=kind,
        concepts=list(concepts.values()),
        controls=controls,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    )
    shape = (len(values), len(CONDITIONS), len(frames), len(concepts), *values.shape[2:])
    contrasts = contrast(
        values.reshape(shape)
    )  # (1 + controls, conditions, frames, emotions, places, layers)
    table = _table(contrasts, layers)
    at = {
        (place, condition): table[
            (table.place == place) & (table.layer == read) & (table.condition == condition)
        ].iloc[0]
        for place in PLACES
        for condition in CONDITIONS
    }
    affirmed = {
        place: _affirmed(contrasts[..., number, layers.index(read)]) for number, place in enumerate(PLACES)
    }
    shown = [(place, condition) for place in JUDGED for condition in NEGATIONS]
    signs = {
        f"{NEGATIONS[condition]} at the {place}": resolved(
            affirmed[place], at[place, condition], at[place, "longer"]
        )
        for place, condition in shown
    }
    return Result(
        name="negation",
        title="Negated emotions",
        question="Does the read-out of an emotion heed that the emotion is negated, after the word and by late layers?",
        method=(
            f"{len(prompts)} sentences: {len(frames)} frames, {len(concepts)} emotions, affirmed, negated in two ways, and "
            f"affirmed at the negated length. Contrast of the named with the other emotions' words ({kind}), stated at layer "
            f"{read} of {model.n_layers}; ratio to affirmed with Fieller's 95 % interval, the wider of those over frames and "
            f"over emotions.{without(left_out)}"
        ),
        table=table,
        finding="; ".join(
            f"{NEGATIONS[condition]} leaves {_ratio(at[place, condition])} at the {place}"
            for place, condition in shown
        ),
        controls="; ".join(
            f"{place}: “does indeed feel” leaves {_ratio(at[place, 'longer'])}, affirmed contrast {affirmed[place].said(3)}"
            for place in JUDGED
        ),
        verdict=" ".join(
            [
                *(
                    verdict(place, condition, affirmed[place], at[place, condition], at[place, "longer"])
                    for place, condition in shown
                ),
                f"At the word itself {NEGATIONS['negated']} leaves {_ratio(at[PLACES[0], 'negated'])}, in the first layer "
                f"above the embedding {_ratio(_of(table, PLACES[0], first=True))}; at the later word it leaves "
                f"{_ratio(_of(table, PLACES[1], first=False))} in the last layer.",
            ]
        ),
        sign=in_common(signs.values()),
        parts={part: sign > 0 for part, sign in signs.items()},
        figure=_figure(table, layers),
        alt="Contrast by layer at each place, affirmed, at equal length and negated in two ways, with intervals over emotions.",
        published=PUBLISHED,
    )


def placed(model: LiveModel, frame: Mapping[str, str], phrase: str, emotion: str) -> Prompt:
    """Return a sentence as a turn with the places of `PLACES`."""
    said = phrase.format(name=frame["name"], w=emotion)
    prompt = turn(model, frame["text"].format(phrase=said))
    prompt = prompt.with_place(PLACES[0], emotion, prompt.span("user")[0])
    prompt = prompt.with_place(PLACES[1], frame["later"], prompt.span(PLACES[0])[1])
    return Prompt(prompt.text, {**prompt.places, PLACES[2]: prompt.places["before_reply"]})


def contrast(values: Floats) -> Floats:
    """Return each emotion's read-out with its own word less the mean of those with the others' words in the same sentence.

    `values` are (1 + controls, conditions, frames, words, places, layers, concepts), words in the order of the concepts; the
    result is (1 + controls, conditions, frames, emotions, places, layers).
    """
    count = values.shape[3]
    own = np.moveaxis(np.diagonal(values, axis1=3, axis2=6), -1, 3)
    every = np.moveaxis(values.sum(3), -1, 3)
    result: Floats = own - (every - own) / (count - 1)
    return result


def ratio(contrasts: Floats, condition: int) -> tuple[float, float, float]:
    """Return the contrast of a condition over that of the first, with the wider of two intervals: over frames, over emotions.

    `contrasts` are (conditions, frames, emotions). Where one of the two is unbounded, so is the result.
    """
    bounds = [fieller(contrasts[condition].mean(axis), contrasts[0].mean(axis)) for axis in (1, 0)]
    return bounds[0][0], min(low for _, low, _ in bounds), max(high for _, _, high in bounds)


def resolved(affirmed: Evidence, negated: Any, longer: Any) -> int:
    """Return 1 where a negation is resolved, by more than length does, -1 where it is not, 0 where neither is shown."""
    if affirmed.sign <= 0 or not np.isfinite([negated.low, negated.high]).all():
        return 0
    if negated.low > HALF:
        return -1
    return int(negated.high < HALF and negated.high < longer.low)


def verdict(place: str, condition: str, affirmed: Evidence, negated: Any, longer: Any) -> str:
    """Say whether a negation is resolved at a place: its ratio's interval has to say so, and length must not do the same."""
    which = NEGATIONS[condition]
    if affirmed.sign <= 0 or not np.isfinite([negated.low, negated.high]).all():
        return (
            f"Whether {which} is resolved at the {place} cannot be said: the affirmed emotion is not read there, contrast "
            f"{affirmed.said(3)}."
        )
    left = f"{_ratio(negated)} of the contrast are left"
    if negated.low > HALF:
        return f"At the {place} {which} is not resolved: {left}."
    if negated.high >= HALF:
        return f"It is not shown whether {which} is resolved at the {place}: {left}."
    if np.isfinite(longer.low) and negated.high < longer.low:
        outcome = "turned into its opposite" if negated.high < 0 else "resolved"
        return f"At the {place} {which} is {outcome}: {left}, at equal length {_ratio(longer)}."
    return (
        f"At the {place} {left} with {which}, but a sentence as long without a negation is not shown to keep more, "
        f"{_ratio(longer)}: the negation need not be what does it."
    )


# Tables and pictures -------------------------------------------------------------------------------------------------


def _affirmed(contrasts: Floats) -> Evidence:
    """Return the mean affirmed contrast over emotions, out of (1 + controls, conditions, frames, emotions)."""
    return of_mean(contrasts[:, 0].mean(1))


def _table(contrasts: Floats, layers: Sequence[int]) -> pd.DataFrame:
    """Return one row for each place, layer and condition: contrast with its interval over emotions, and ratio to affirmed."""
    rows = []
    for place, name in enumerate(PLACES):
        for depth, layer in enumerate(layers):
            here = contrasts[..., place, depth]
            for number, condition in enumerate(CONDITIONS):
                found = of_mean(here[:, number].mean(1))
                left, low, high = ratio(here[0], number) if number else (1.0, 1.0, 1.0)
                columns = {"ratio": left, "low": low, "high": high, "contrast": found.value}
                columns |= {"contrast_low": found.low, "contrast_high": found.high}
                columns |= dict(zip(("random_low", "random_high"), found.expected, strict=True))
                rows.append({"place": name, "layer": layer, "condition": condition, **columns})
    return pd.DataFrame(rows)


def _of(table: pd.DataFrame, place: str, first: bool) -> Any:
    """Return the row of “does not feel” at a place, in the first layer above the embedding or in the last."""
    rows = table[(table.place == place) & (table.condition == "negated")]
    upper = rows[rows.layer > 0]
    return (upper if len(upper) else rows).iloc[0 if first else -1]


def _ratio(row: Any) -> str:
    if not np.isfinite([row.low, row.high]).all():
        return "an unknown part"
    return span(row.ratio, row.low, row.high)


@drawing.styled()
def _figure(table: pd.DataFrame, layers: Sequence[int]) -> Figure:
    figure, axes = drawing.panels(1, len(PLACES), height=2.6)
    colours = {"affirmed": drawing.BLUE, "negated": drawing.RED, "nobody": drawing.ORANGE}
    for axis, place in zip(axes.flat, PLACES, strict=True):
        for condition in CONDITIONS:
            rows = table[(table.place == place) & (table.condition == condition)]
            if condition == "longer":
                drawing.control(axis, layers, rows.contrast, label="affirmed, equal length")
                continue
            bounds = (rows.contrast_low, rows.contrast_high)
            label = NEGATIONS.get(condition, condition)
            drawing.line(axis, layers, rows.contrast, *bounds, label=label, colour=colours[condition])
        drawing.zero(axis)
        axis.set_title(place)
        axis.set_xlabel("layer")
    axes[0, 0].set_ylabel("contrast")
    drawing.legend_below(figure, axes[0, 0])
    return figure
