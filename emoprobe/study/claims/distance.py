"""The third claim, which its source only hopes for: is emotional context carried further under valuation attention?

Texts begin with a glad or a sad cue and go on with the same filler. At every later token the difference between the two is
measured: of a probe's read-out, and of the log-odds of words for glad and for sad feelings as the next token. It is averaged
between distances of 1, 2, 4, … tokens from the cue. What is judged is how fast it decays: the slope, over the logarithm of the
distance, of the difference as a share of what it is near the cue *in the same condition*, so that an injection which makes all
read-outs larger or smaller carries nothing further. Beside it stands the difference far from the cue itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from emoprobe import drawing
from emoprobe.errors import InputError
from emoprobe.intervals import Floats, mean_interval
from emoprobe.layers import nearest_to_depth
from emoprobe.models.live import Batch, LiveModel
from emoprobe.probes import ProbeSet
from emoprobe.scoring import batches
from emoprobe.study.claims.cues import CuePair
from emoprobe.study.claims.judging import (
    POSITIVE,
    STRENGTHS,
    Effect,
    effect,
    overall,
    stated,
)
from emoprobe.study.claims.magnitudes import told
from emoprobe.study.concepts.evidence import in_common
from emoprobe.study.feelings import POLES
from emoprobe.study.result import Result
from emoprobe.study.wording import number, span
from emoprobe.valattn import Valuation, inject

FURTHEST = 400
"""Tokens after the cue that are read, where the model's context allows."""
NEAREST = 8
"""Distances up to this are near: what decay is measured from."""
FAR = 64
FADED = 0.25
"""Share of the untouched near difference below which there is nothing left to decay, and no slope is taken."""
LEAST_WORDS = 2
BATCH = 10
SLOWER, FURTHER = "the cue's effect decays more slowly", "the cue's effect is larger far away"
NO_WORDS = "no log-odds of words, which are no single tokens of this model"
PUBLISHED = "J. Marín 2024 hopes for it; nothing was measured."


@dataclass(frozen=True, eq=False)
class Carried:
    """The difference that a cue makes, at each distance and in each condition.

    `distances` (bins,) are the geometric middles of the bins, in tokens. `standard` is (pairs, bins), `probed` (strengths,
    pairs, bins) and `random` (controls, positive, pairs, bins), each of one measure.
    """

    distances: Floats
    standard: Floats
    probed: Floats
    random: Floats


def distance(
    model: LiveModel,
    valuation: Valuation,
    probes: ProbeSet,
    pairs: Sequence[CuePair],
    concept: str = "valence",
    *,
    controls: int,
    seed: int = 0,
) -> Result:
    """Follow cues through fillers, with and without injection. `concept` has to be higher with glad cues than with sad ones.

    Raises `InputError` where the model's context, or a tokenizer, leaves no distances to compare.
    """
    layer = nearest_to_depth([part for part in probes.layers if part > 0], probes.n_layers)
    measured = follow(model, valuation, probes, pairs, concept, layer, controls, seed)
    by_measure = {name: effects(name, carried) for name, carried in measured.items()}
    judged = [found for each in by_measure.values() for found in each]
    main = judged[0]
    there = {name: near_effect(carried) for name, carried in measured.items()}
    said = [
        f"Untouched, {name} near the cue differs by {span(*there[name], 3, True)}"
        + (
            f", of which {_kept(carried)} is left beyond {FAR} tokens."
            if there[name][1] > 0
            else ": no effect of the cue to be carried, so that its decay is not judged."
        )
        for name, carried in measured.items()
    ]
    reach = next(iter(measured.values())).distances[-1]
    words = "of the log-odds of glad against sad words" if len(measured) > 1 else NO_WORDS
    return Result(
        name="distance",
        title="Claim 3: emotional context is carried far",
        question="Does valuation attention carry the effect of an emotional cue further through neutral text?",
        method=(
            f"{len(pairs)} pairs of a glad and a sad cue, each with a filler of its own that both go on with, read up to about "
            f"{reach:.0f} tokens behind the cue: difference of {concept}'s read-out at layer {layer} of {model.n_layers}, and "
            f"{words}; decay is the slope over log2 distance of the share of what is found up to {NEAREST} tokens in the same "
            f"condition; {stated()}. Intervals over pairs; {controls} random valuations."
        ),
        table=pd.concat(
            [*(found.rows() for found in judged), *(_curves(*item) for item in measured.items())],
            ignore_index=True,
        ),
        finding=(
            f"slope of the read-out's share changes by {span(*main.mean, 3, True)} per doubling of the distance"
            if np.isfinite(main.mean[0])
            else "near the cue the read-out does not differ, or not at every λ: no decay to be judged"
        ),
        controls=f"random valuations {main.by_chance(3)}",
        sign=in_common(found.outcome for found in judged),
        parts={
            f"{found.claim}: {name}": found.outcome > 0 for name, each in by_measure.items() for found in each
        },
        verdict=" ".join(
            [f"Of {len(judged)} claims {overall(judged)}.", *said, *(told(found) for found in judged)]
        ),
        figure=_figure(measured),
        alt="Difference between glad and sad cues by distance, for several λ and for random valuations.",
        published=PUBLISHED,
    )


# Measuring -----------------------------------------------------------------------------------------------------------


def follow(
    model: LiveModel,
    valuation: Valuation,
    probes: ProbeSet,
    pairs: Sequence[CuePair],
    concept: str,
    layer: int,
    controls: int,
    seed: int,
) -> dict[str, Carried]:
    """Return the differences of each measure; that of words is left out where too few of them are single tokens."""
    randoms = [valuation.random_like(seed + 1 + k) for k in range(controls)]
    texts, begins = _cut(model, pairs)
    ends = _edges(model, texts, begins)
    column, words = probes.concept_index(concept), _word_tokens(model)

    def read(condition: Valuation | None = None, strength: float = 0.0) -> Floats:
        placed = nullcontext() if condition is None else inject(model, condition, strength)
        means = np.empty((len(texts), 1 + bool(words), len(ends) - 1))
        with torch.no_grad(), placed:
            for rows, batch in batches(model, texts, BATCH):
                values = _measure(model, probes, batch, layer, column, words)
                for place, row in enumerate(rows):
                    own = values[:, place, batch.real[place].cpu().numpy()]
                    means[row] = _binned(own, begins[row], ends)
        return np.swapaxes(means[0::2] - means[1::2], 0, 1)

    standard = read()
    probed = np.array([read(valuation, strength) for strength in STRENGTHS])
    random = np.array([[read(other, strength) for strength in POSITIVE] for other in randoms])
    distances = np.sqrt(ends[:-1] * ends[1:])
    names = [f"the read-out of {concept}", "the log-odds of glad words"][: len(standard)]
    return {
        name: Carried(distances, standard[which], probed[:, which], random[:, :, which])
        for which, name in enumerate(names)
    }


def _cut(model: LiveModel, pairs: Sequence[CuePair]) -> tuple[list[str], list[int]]:
    """Return the texts, glad and sad by turns, cut to what is read of them, and the position of the first token after a cue."""
    texts, begins = [], []
    for cue, text in (
        both for pair in pairs for both in zip((pair.glad, pair.sad), pair.texts(), strict=True)
    ):
        most = (
            {} if model.context_length is None else {"truncation": True, "max_length": model.context_length}
        )
        offsets = model.tokenizer(text, return_offsets_mapping=True, **most)["offset_mapping"]
        ends = [end for _, end in offsets]
        begin = next((place for place, end in enumerate(ends) if end > len(cue)), len(ends))
        texts.append(text[: max(ends[: begin + FURTHEST])].rstrip())
        begins.append(begin)
    return texts, begins


def _edges(model: LiveModel, texts: Sequence[str], begins: Sequence[int]) -> Floats:
    """Return where bins of distance begin and end: 1, 2, 4, … up to what every text reaches."""
    lengths = [len(model.tokenizer(text)["input_ids"]) for text in texts]
    reach = min(length - begin for length, begin in zip(lengths, begins, strict=True))
    if reach < 2 * FAR:
        raise InputError(
            f"{model.name} reads {reach} tokens after a cue, and {2 * FAR} are needed: its context is too short"
        )
    doublings = 2.0 ** np.arange(1 + int(np.log2(reach)))
    # What is left over lengthens the last bin, or is one of its own where it is half as long as that would be.
    return np.append(doublings if reach >= 1.5 * doublings[-1] else doublings[:-1], reach)


def _measure(
    model: LiveModel, probes: ProbeSet, batch: Batch, layer: int, column: int, words: list[Tensor]
) -> Floats:
    """Return what is measured at each token, (measures, batch, position)."""
    read = [probes.read_out(model.streams(batch, [layer])[0], layer)[..., column]]
    if words:
        logits = model.forward(batch).float()  # of which only differences count
        glad, sad = (logits[..., ids.to(logits.device)].logsumexp(-1) for ids in words)
        read.append(glad - sad)
    values: Floats = torch.stack([row.double() for row in read]).cpu().numpy()
    return values


def _word_tokens(model: LiveModel) -> list[Tensor]:
    """Return the tokens of words for glad and for sad feelings; nothing where fewer than two of either are single tokens."""
    found = []
    for pole in POLES["valence"]:
        ids = [model.tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in pole]
        single = [row[-1] for row in ids if len(row) == 1 and row[-1] != model.tokenizer.unk_token_id]
        found.append(torch.tensor(single, dtype=torch.long))
    return found if min(len(ids) for ids in found) >= LEAST_WORDS else []


def _binned(values: Floats, begin: int, ends: Floats) -> Floats:
    """Return means (measures, bins) of values (measures, tokens) over distances up to each end; the first token after is 1."""
    after = values[:, begin:]
    bounds = [(int(low) - (which == 0), int(high)) for which, (low, high) in enumerate(pairwise(ends))]
    return np.stack([after[:, low:high].mean(1) for low, high in bounds], axis=1)


# Judging -------------------------------------------------------------------------------------------------------------


def effects(name: str, carried: Carried) -> list[Effect]:
    """Return how injection changes the decay of a difference, and the difference far from the cue.

    Where the untouched model shows no difference near the cue there is nothing to decay, and both are NaN. The decay is NaN
    also where an injection leaves less than a quarter of that difference.
    """
    _, low, _ = near_effect(carried)
    pairs, control = len(carried.standard), carried.random.shape[:2]
    near, far = carried.distances <= NEAREST, carried.distances >= FAR
    everyone = np.concatenate(
        [carried.standard[None], carried.probed, carried.random.reshape(-1, *carried.standard.shape)]
    )
    whole = everyone[..., near].mean((1, 2))
    kept = whole >= FADED * whole[0]

    def split(values: Floats) -> tuple[Floats, Floats]:
        return values[1 : 1 + len(STRENGTHS)], values[1 + len(STRENGTHS) :].reshape(control)

    def means(weights: Floats) -> Floats:
        found: Floats = np.einsum("cpb,p->cb", everyone, weights / weights.sum())
        return found if low > 0 else np.full_like(found, np.nan)

    def slower(weights: Floats) -> tuple[Floats, Floats]:
        mean = means(weights)
        share = mean / mean[:, near].mean(1, keepdims=True)
        steps = np.log2(carried.distances) - np.log2(carried.distances).mean()
        slope = share @ steps / (steps @ steps)
        return split(np.where(kept, slope - slope[0], np.nan))

    def further(weights: Floats) -> tuple[Floats, Floats]:
        mean = means(weights)
        beyond = mean[:, far].mean(1)
        return split(100 * (beyond - beyond[0]) / mean[0, near].mean())

    return [
        effect(SLOWER, f"of the near share per doubling, {name}", 1, slower, pairs),
        effect(FURTHER, f"% of the untouched near difference, {name}", 1, further, pairs),
    ]


def near_effect(carried: Carried) -> tuple[float, float, float]:
    """Return the untouched difference near the cue with its interval over pairs."""
    return mean_interval(carried.standard[:, carried.distances <= NEAREST].mean(1))


# Showing -------------------------------------------------------------------------------------------------------------


def _kept(carried: Carried) -> str:
    mean = carried.standard.mean(0)
    share = mean[carried.distances >= FAR].mean() / mean[carried.distances <= NEAREST].mean()
    return f"{number(100 * share, 0)} %"


def _curves(name: str, carried: Carried) -> pd.DataFrame:
    """Return one row for each λ and distance: the mean difference with its interval, and the range of random valuations."""
    rows = []
    for strength, values in zip((0.0, *STRENGTHS), (carried.standard, *carried.probed), strict=True):
        for place, tokens in enumerate(carried.distances):
            value, low, high = mean_interval(values[:, place])
            chance = (
                carried.random[:, POSITIVE.index(strength), :, place].mean(-1)
                if strength in POSITIVE
                else np.full(1, np.nan)
            )
            rows.append((strength, tokens, value, low, high, chance.min(), chance.max()))
    columns = ["strength", "tokens", "value", "low", "high", "random_low", "random_high"]
    return pd.DataFrame(rows, columns=columns).assign(claim="difference of the cues", measure=name)


@drawing.styled()
def _figure(measured: dict[str, Carried]) -> Figure:
    figure, axes = drawing.panels(1, len(measured), height=2.8)
    for axis, (name, carried) in zip(axes.flat, measured.items(), strict=True):
        curves = _curves(name, carried)
        shown = {strength: curves[curves.strength == strength] for strength in (0.0, *STRENGTHS)}
        strongest = shown[POSITIVE[-1]]
        drawing.control(
            axis,
            strongest.tokens,
            low=strongest.random_low,
            high=strongest.random_high,
            label=f"random valuations, λ = {POSITIVE[-1]:g}",
        )
        plain = shown[0.0]
        drawing.line(axis, plain.tokens, plain.value, plain.low, plain.high, label="untouched, 95 % interval")
        for strength, colour in ((POSITIVE[-1], drawing.RED), (STRENGTHS[0], drawing.GREEN)):
            part = shown[strength]
            drawing.line(axis, part.tokens, part.value, label=f"λ = {number(strength, 0)}", colour=colour)
        drawing.zero(axis)
        axis.set_xscale("log", base=2)
        axis.set_title(name)
        axis.set(xlabel="tokens after the cue", ylabel="glad less sad")
    drawing.legend_below(figure, axes[0, 0])
    return figure
