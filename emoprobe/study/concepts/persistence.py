"""One early word differs: how far is it carried into the words that follow and that are the same?

Pairs of prompts differ in one word (an exam went well or badly) or in one number, and share a long suffix and the place before
the reply. What is measured is the difference of the two read-outs with the expected sign, at the word, in four parts of the
suffix and before the reply, layer by layer. In the embedding the suffix is the same in both, so that all that is found in it
was carried there.

Source: Sofroniew et al. 2026 (arXiv 2604.07729), figures 12 and 13, which show one pair each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from emoprobe import drawing
from emoprobe.errors import InputError
from emoprobe.models.live import LiveModel
from emoprobe.probes import ProbeSet
from emoprobe.study.concepts.evidence import Evidence, in_common, of_mean, sign_test
from emoprobe.study.concepts.places import CONTROLS, Prompt, chosen_layer, read_beside_random, turn
from emoprobe.study.concepts.stimuli import load, matched, without
from emoprobe.study.result import Result
from emoprobe.study.wording import number, span

Floats = NDArray[np.float64]
PARTS = 4
PLACES = ("word", *(f"suffix {part + 1} of {PARTS}" for part in range(PARTS)), "before the reply")
CARRIED = (PLACES[-2], PLACES[-1])
"""Where it is judged whether the difference is carried: the end of the suffix, and the place before the reply."""
KINDS = ("word", "number")
LEAST_PAIRS = 6
PUBLISHED = (
    "Sofroniew et al. 2026 (arXiv 2604.07729, figures 12 and 13; Claude Sonnet 4.5): in one pair early layers differ at the "
    "word alone and late ones carry the difference into the suffix and to the place before the reply; in one pair of numbers "
    "it emerges in late layers, sharply before the reply. No effect size is given, and no replication with one is known."
)


def persistence(
    model: LiveModel,
    probes: ProbeSet,
    *,
    layer: int | float | None = None,
    kind: str = "centred_cosine",
    stimuli: Sequence[Mapping[str, str]] | None = None,
    controls: int = CONTROLS,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = True,
) -> Result:
    """Follow the difference of paired prompts from the word where they differ to the place before the reply, at all layers.

    `stimuli` are pairs, by default 26 of the package's own: mappings with kind ("word" or "number"), emotion, more and less
    (words; the emotion is expected higher with the first) and text, with {w} where they go. The verdict is given at `layer`, by
    default the one nearest to two thirds of the depth, and at two places, whose p values are doubled. Raises `InputError` for
    fewer than two emotions with a probe, and fewer than six pairs of words left.
    """
    given = load("persistence") if stimuli is None else stimuli
    concepts, left_out = matched(probes, (pair["emotion"] for pair in given), 2)
    pairs = [pair for pair in given if pair["emotion"] in concepts]
    if sum(pair["kind"] == "word" for pair in pairs) < LEAST_PAIRS:
        raise InputError(
            f"probes of {', '.join(concepts)} leave {len(pairs)} pairs: {LEAST_PAIRS} of words are needed"
        )
    read, layers = chosen_layer(probes, layer), sorted(probes.layers)
    sides = [[placed(model, pair, pair[side]) for pair in pairs] for side in ("more", "less")]
    values = read_beside_random(
        model,
        probes,
        [*sides[0], *sides[1]],
        PLACES,
        layers,
        kind=kind,
        concepts=list(concepts.values()),
        controls=controls,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    )
    column = [list(concepts).index(pair["emotion"]) for pair in pairs]
    more, less = (
        half[:, range(len(pairs)), :, :, column] for half in np.split(values, 2, axis=1)
    )  # (pairs, 1 + controls, places, layers)
    differences = np.moveaxis(more - less, 1, 0)
    kinds = np.array([pair["kind"] for pair in pairs])
    table = _table(differences, kinds, layers)
    extra = _tokens(model, sides[0]) - _tokens(model, sides[1])
    found = {
        (which, place): of_carried(differences[:, kinds == which], PLACES.index(place), layers.index(read))
        for which in KINDS
        if (kinds == which).sum() >= 2
        for place in PLACES
    }
    late = late_less_early(differences[:, kinds == "word"], layers)
    at_word, at_end, at_start = (found["word", place] for place in (PLACES[0], *CARRIED))
    same = _suffix_is_same(differences, layers, extra)
    return Result(
        name="persistence",
        title="How far one word is carried",
        question="Is the emotion of one early word carried into the words that follow it, and to the place before the reply?",
        method=(
            f"{(kinds == 'word').sum()} pairs of prompts that differ in one word, {(kinds == 'number').sum()} in one number; "
            f"difference of the two read-outs ({kind}) of the emotion concerned, stated at layer {read} of {model.n_layers}. "
            f"Intervals over pairs, sign tests, p times {len(CARRIED)} places. In {(extra == 0).sum()} pairs both have "
            f"as many tokens.{without(left_out)}"
        ),
        table=table,
        finding=(
            f"difference {_three(at_word)} at the word, {_three(at_end)} at the end of the suffix, {_three(at_start)} before "
            "the reply"
        ),
        controls=(
            f"random directions {_expected(at_word)}, {_expected(at_end)} and {_expected(at_start)}; at layer 0 "
            + (
                _three(of_carried(differences[:, kinds == "word"], 4, layers.index(0)))
                if 0 in layers
                else "not probed"
            )
            + " at the end of the suffix"
        ),
        verdict=" ".join(
            [
                *(_said(found, which) for which in KINDS if (which, PLACES[0]) in found),
                _of_depth(late),
            ]
        ),
        sign=in_common((at_end.sign, at_start.sign)),
        parts={"at the end of the suffix": at_end.sign > 0, "before the reply": at_start.sign > 0},
        checks={} if same is None else {"in the embedding the suffix is the same in both": same},
        figure=_figure(differences, kinds, layers),
        alt="Mean difference by layer and place, for words and for numbers; orange where it has the expected sign.",
        published=PUBLISHED,
    )


# Places and measures -------------------------------------------------------------------------------------------------


def placed(model: LiveModel, pair: Mapping[str, str], word: str) -> Prompt:
    """Return one side of a pair as a turn, with the places of `PLACES`; the suffix is cut into parts between its words."""
    before, after = pair["text"].split("{w}")
    prompt = turn(model, before + word + after)
    start, end = prompt.span("user")
    at_word = start + len(before)
    suffix = at_word + len(word)
    spaces = [place for place in range(suffix, end) if prompt.text[place] == " "]
    even = [suffix + part * (end - suffix) / PARTS for part in range(1, PARTS)]
    cuts = [suffix, *(min(spaces, key=lambda place: abs(place - middle)) for middle in even), end]
    spans = [(at_word, suffix), *pairwise(cuts), prompt.span("before_reply")]
    return Prompt(prompt.text, dict(zip(PLACES, spans, strict=True)))


def of_carried(differences: Floats, place: int, layer: int) -> Evidence:
    """Return the mean difference of pairs at a place and layer, out of (1 + controls, pairs, places, layers)."""
    units = differences[:, :, place, layer]
    return of_mean(units, 0.0, min(1.0, len(CARRIED) * sign_test(units[0])))


def late_less_early(differences: Floats, layers: Sequence[int]) -> Evidence | None:
    """Return the difference where it should be carried to, in the last third of the layers less in the first third.

    Layer 0 is no part of it; None where there are fewer than two others.
    """
    upper = [place for place, layer in enumerate(layers) if layer > 0]
    if len(upper) < 2:
        return None
    third = max(1, len(upper) // 3)
    carried = differences[:, :, [PLACES.index(name) for name in CARRIED]].mean(2)
    units = carried[..., upper[-third:]].mean(-1) - carried[..., upper[:third]].mean(-1)
    return of_mean(units, 0.0, sign_test(units[0]))


def _tokens(model: LiveModel, prompts: Sequence[Prompt]) -> NDArray[np.int64]:
    return np.array([len(model.tokenizer(prompt.text)["input_ids"]) for prompt in prompts])


def _suffix_is_same(differences: Floats, layers: Sequence[int], extra: NDArray[np.int64]) -> bool | None:
    """Say whether nothing differs in the suffix at layer 0, of pairs whose words have as many tokens; None where unknown."""
    if 0 not in layers or (extra != 0).all():
        return None
    return bool(np.abs(differences[0, extra == 0, 1:, layers.index(0)]).max() < 1e-4)


# Words, tables and pictures ------------------------------------------------------------------------------------------


def _table(differences: Floats, kinds: NDArray[np.str_], layers: Sequence[int]) -> pd.DataFrame:
    """Return one row for each kind of pairs, place and layer."""
    rows = []
    for which in KINDS:
        if (kinds == which).sum() < 2:
            continue
        for place, name in enumerate(PLACES):
            for depth, layer in enumerate(layers):
                units = differences[:, kinds == which, place, depth]
                found = of_mean(units, 0.0, sign_test(units[0]))
                rows.append(
                    {
                        "differ in": which,
                        "place": name,
                        "layer": layer,
                        "pairs": units.shape[1],
                        **found.row(),
                    }
                )
    return pd.DataFrame(rows)


def _said(found: Mapping[tuple[str, str], Evidence], which: str) -> str:
    """Say of one kind of pairs what is read at the word, and how far that is carried."""
    at_word, at_end, at_start = (found[which, place] for place in (PLACES[0], *CARRIED))
    read = {1: "is read as expected", 0: "is not shown", -1: "is read against what is expected"}
    carried = {1: "it is carried", 0: "it is not shown to be carried", -1: "its opposite is carried"}
    return (
        f"Where one {which} differs the difference {read[at_word.sign]} at the {which} itself, {at_word.said(3)}; "
        f"{carried[at_end.sign]} to the end of the suffix, {at_end.said(3)}; {carried[at_start.sign]} to the place before the "
        f"reply, {at_start.said(3)}."
    )


def _of_depth(late: Evidence | None) -> str:
    if late is None:
        return "Too few layers have probes to tell late from early ones."
    said = {
        1: "Late layers carry more of it than early ones",
        0: "It is not shown that late layers carry more of it than early ones",
        -1: "Early layers carry more of it than late ones",
    }[late.sign]
    return f"{said}, {late.said(3)}."


def _three(found: Evidence) -> str:
    return span(found.value, found.low, found.high, 3, True)


def _expected(found: Evidence) -> str:
    low, high = found.expected
    return f"{number(low, 3, True)} to {number(high, 3, True)}"


@drawing.styled()
def _figure(differences: Floats, kinds: NDArray[np.str_], layers: Sequence[int]) -> Figure:
    shown = [which for which in KINDS if (kinds == which).sum() >= 2]
    figure, axes = drawing.panels(1, len(shown), height=1.4 + 0.2 * len(layers), sharey=True)
    means = [differences[0, kinds == which].mean(0).T[::-1] for which in shown]
    for axis, which, field in zip(axes.flat, shown, means, strict=True):
        # Each kind has a scale of its own: a number moves less than a word does.
        mesh = drawing.heat(axis, field, [str(layer) for layer in layers][::-1], PLACES)
        figure.colorbar(mesh, ax=axis, shrink=0.8)
        axis.set_title(f"one {which} differs, {(kinds == which).sum()} pairs")
    axes[0, 0].set_ylabel("layer")
    return figure
