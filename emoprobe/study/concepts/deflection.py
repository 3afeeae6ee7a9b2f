"""Emotions that are felt and not shown: is there a direction for them, and is it another than that of the emotion shown?

A speaker feels one thing, as a preamble tells, and shows another. The deflection direction of an emotion is the mean stream
over the speaker's words where it is hidden, less the mean over all hidden emotions behind the same display. It has two parts:
what the words of the turn give away by themselves, read with the preamble taken off, and what the preamble adds to the same
words. Only the second can say that a model keeps in mind what is not being said; and it can be an echo of the preamble's own
words, so how far these alone hold from topic to topic stands beside it.

The recipe is that of Sofroniew et al. 2026 (arXiv 2604.07729, appendix, figures 61 to 63), who find deflection directions at
low cosines to their namesakes of stories, and to keep about 80 % of their norm when the space of the stories is projected out.
Two things must be said with that. A low cosine is also what noise has, so directions are held to topics that had no part in
them. And a random vector keeps √(1 − k/d) of its norm when k of d dimensions are projected out: the norm kept is no cosine.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from emoprobe import drawing
from emoprobe.errors import InputError
from emoprobe.intervals import jackknife
from emoprobe.interventions import Span
from emoprobe.models.live import LiveModel
from emoprobe.probes import ProbeSet
from emoprobe.study.concepts import effects
from emoprobe.study.concepts.dialogues import EXPRESSED, Hidden, by_condition, deflections
from emoprobe.study.concepts.dialogues import targets as hidden_emotions
from emoprobe.study.concepts.effects import FLOOR, SHUFFLES, Floats, row_of
from emoprobe.study.concepts.places import chosen_layer
from emoprobe.study.result import Result
from emoprobe.study.wording import number, p_value, ranged, span

FAMILIES = ("deflection", "context part", "words part", "expressed")
"""Hidden emotions, their two parts, and the same emotions said openly."""
PREAMBLE = "preamble's words, with itself"
SHARE = 0.99
"""Variance of the stories' directions that is projected out."""
SURE = 0.05
PUBLISHED = (
    "Sofroniew et al. 2026 (arXiv 2604.07729, appendix, figures 61 and 63; Claude Sonnet 4.5): very low cosines with story "
    "vectors of the same name; about 80 % of the norm is kept when story components of 99 % variance are projected out; "
    "no null is given. Replication on Llama-3.3-70B-Instruct (traitinterp): cosine .24, norm kept .96."
)


def deflection(
    model: LiveModel,
    probes: ProbeSet,
    *,
    layer: int | float | None = None,
    layers: Sequence[int] | None = None,
    shuffles: int = SHUFFLES,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = True,
) -> Result:
    """Find the directions of hidden emotions and set them against those of `probes`, by name, on topics held out.

    `probes` hold the directions of the same emotions told openly: the paper's are `emoprobe.probes.emotion_vectors` of stories;
    any probe set with at least three of the hidden emotions serves. What is found is stated at `layer` (that of
    `chosen_layer`), which is not chosen by looking; `layers` (all with probes) are its profile. Raises `InputError` for probes
    of another model or with fewer of the emotions.
    """
    probes.check_model(model)
    stated = chosen_layer(probes, layer)
    chosen = sorted({stated, *(probes.layers if layers is None else layers)})
    shared = [name for name in hidden_emotions() if name in probes]
    if len(shared) < 3:
        raise InputError(
            f"the probes have {len(shared)} of the hidden emotions ({', '.join(hidden_emotions())}): at least 3 are needed"
        )
    targets, found = hidden_directions(model, chosen, batch_size=batch_size, progress=progress)
    mine = found[:, :, [targets.index(name) for name in shared]]
    parts = []
    for place, number_ in enumerate(chosen):
        told = probes.directions[probes.layer_index(number_)].double().numpy()
        namesakes = told[[probes.concept_index(name) for name in shared]]
        parts.append(_compared(mine[..., place, :], namesakes, told, shuffles, seed).assign(layer=number_))
    told_by = _preambles(model, targets, shuffles, seed, batch_size)
    table = pd.concat([*parts, told_by.assign(layer=stated)], ignore_index=True)
    table = table[["layer", *(column for column in table if column != "layer")]]
    at = table[table.layer == stated].set_index("measure")
    k = int(at["removed"].max())
    named = row_of(at, "deflection, with probes")
    kept = row_of(at, "norm kept, deflection")
    topics, held = found.shape[1], _parts(at)
    return Result(
        name="deflection",
        title="Emotions that are hidden",
        question="Has an emotion that is felt and not shown a direction of its own, apart from that of the emotion shown?",
        method=(
            f"{len(shared)} emotions hidden behind calm and cheerful turns on {topics} topics; mean stream over the turn, less "
            f"the mean over emotions behind the same display. Cosines of one topic's direction with the other topics', and "
            f"with directions of the same name ({probes.metadata.get('corpus', 'unknown texts')}); jackknife over topics, "
            f"{shuffles} shuffles of emotions within topics, names handed on. Stated at layer {stated} of {model.n_layers}."
        ),
        table=table,
        finding=(
            f"cosine with the namesake {_value(named)}; norm kept {_value(kept, False)} with {k} of {model.d_model} "
            "dimensions projected out"
        ),
        controls=(
            f"names handed on {ranged([named.null_low, named.null_high], sign=True)}; a random vector keeps "
            f"{number(kept.expected)}; embeddings of the preambles' words, on other topics {_value(row_of(at, PREAMBLE))}; "
            f"emotions said openly: cosine {_value(row_of(at, 'expressed, with probes'))}, kept "
            f"{number(at.value['norm kept, expressed'])}"
        ),
        verdict=verdict(at),
        sign=int(all(held.values())),
        parts=held,
        figure=_figure(table, stated),
        alt="Cosines by layer of deflection directions with themselves and with namesakes, and the norm kept beside chance.",
        published=PUBLISHED,
    )


# Directions ----------------------------------------------------------------------------------------------------------


def hidden_directions(
    model: LiveModel, layers: Sequence[int], *, batch_size: int = 32, progress: bool = False
) -> tuple[list[str], Floats]:
    """Return the hidden emotions and the directions of `FAMILIES`: (families, topics, emotions, layers, d_model), raw length.

    The deflection direction is the sum of its two parts. Each sums to zero over the emotions; what is rounding beside the
    stream is set to zero.
    """
    told, untold = deflections(), deflections(preamble=False)
    targets = list(dict.fromkeys(one.target for one in told))
    topics = sorted({one.topic for one in told})
    hidden, length = _directions(model, told, targets, topics, layers, batch_size, progress)
    words, _ = _directions(model, untold, targets, topics, layers, batch_size, progress)
    openly, _ = _directions(model, by_condition(EXPRESSED), targets, topics, layers, batch_size, progress)
    families = np.stack([hidden, hidden - words, words, openly])
    families[np.linalg.norm(families, axis=-1) < FLOOR * length] = 0.0
    return targets, families


def _directions(
    model: LiveModel,
    given: Sequence[Hidden],
    targets: Sequence[str],
    topics: Sequence[str],
    layers: Sequence[int],
    batch_size: int,
    progress: bool = False,
) -> tuple[Floats, Floats]:
    """Return means over the turns of each topic and emotion, less those over emotions, and the stream's mean norm.

    Every display has as many turns of each emotion, so that its own mean is the same for all of them and drops out.
    """
    places = [one.span for one in given]
    return _by_topic(model, given, places, targets, topics, layers, batch_size, progress)


def _by_topic(
    model: LiveModel,
    given: Sequence[Hidden],
    places: Sequence[Span],
    targets: Sequence[str],
    topics: Sequence[str],
    layers: Sequence[int],
    batch_size: int,
    progress: bool = False,
) -> tuple[Floats, Floats]:
    sums: Floats = np.zeros((len(topics), len(targets), len(layers), model.d_model))
    length: Floats = np.zeros(len(layers))
    texts = [one.text for one in given]
    for index, means in effects.span_means(
        model, texts, [[[place]] for place in places], layers, batch_size=batch_size, progress=progress
    ):
        mean = means[0].numpy()
        sums[topics.index(given[index].topic), targets.index(given[index].target)] += mean
        length += np.linalg.norm(mean, axis=-1)
    by_cell = sums * len(topics) * len(targets) / len(given)
    return by_cell - by_cell.mean(1, keepdims=True), length / len(given)


def _preambles(
    model: LiveModel, targets: Sequence[str], shuffles: int, seed: int, batch_size: int
) -> pd.DataFrame:
    """Return how far the embeddings of the preambles' own words hold from topic to topic."""
    given = deflections()
    topics = sorted({one.topic for one in given})
    found, _ = _by_topic(model, given, [one.preamble for one in given], targets, topics, [0], batch_size)
    dots = effects.products(found[None, :, :, 0])
    same = effects.same_emotion(dots)
    parts = (
        effects.held_out_cosines(same).mean(-1),
        effects.left_out(same),
        effects.shuffled(dots, shuffles, seed),
    )
    return pd.DataFrame([_row(PREAMBLE, *(part[..., 0, 0] for part in parts))])


# Comparisons ---------------------------------------------------------------------------------------------------------


def _compared(directions: Floats, namesakes: Floats, told: Floats, shuffles: int, seed: int) -> pd.DataFrame:
    """Return one row for each measure of families (families, topics, emotions, d) at one layer."""
    dots = effects.products(directions)
    same = effects.same_emotion(dots)
    value, without = effects.held_out_cosines(same).mean(-1), effects.left_out(same)
    null = effects.shuffled(dots, shuffles, seed)
    rows = []
    for place, name in enumerate(FAMILIES):
        rows.append(
            _row(f"{name}, with itself", value[place, place], without[:, place, place], null[:, place, place])
        )
    for place, name in enumerate(FAMILIES[:2]):
        rows.append(_row(f"{name}, with expressed", value[place, 3], without[:, place, 3], null[:, place, 3]))
    by_name = effects.with_named(directions, namesakes, shuffles, seed)
    for place, name in enumerate(FAMILIES):
        whole, by_chance, left = (part[..., place] for part in by_name)
        rows.append(_row(f"{name}, with probes", whole, left, by_chance))
    share = effects.reliability(same)
    shares = np.stack([effects.reliability(part) for part in effects.each_left_out(same)])
    freed, freed_left = by_name[0] / np.sqrt(share), by_name[2] / np.sqrt(shares)
    for place, name in enumerate(FAMILIES[:2]):
        less = (part[..., place] - part[..., 3] for part in (freed, freed_left))
        rows.append(_row(f"{name} less expressed, with probes, freed of noise", *less))
    space = story_space(told)
    k, d = len(space), directions.shape[-1]
    for place, name in enumerate(FAMILIES):
        kept = norm_kept(directions[place].mean(0), space)
        left = np.array(
            [
                norm_kept(np.delete(directions[place], topic, 0).mean(0), space)
                for topic in range(directions.shape[1])
            ]
        )
        row = _row(f"norm kept, {name}", np.array(kept), left)
        rows.append({**row, "expected": float(np.sqrt(1 - k / d)), "removed": k})
    return pd.DataFrame(rows)


def _row(measure: str, value: Floats, without: Floats, null: Floats | None = None) -> dict[str, object]:
    low, high = jackknife(value, without)
    known = null is not None and np.isfinite(null).all()
    null = null if null is not None and known else np.array([np.nan])
    return {
        "measure": measure,
        "value": float(value),
        "low": float(low),
        "high": float(high),
        "null_low": float(np.quantile(null, 0.025)),
        "null_high": float(np.quantile(null, 0.975)),
        "p": float(effects.p_apart(value, null)) if known else np.nan,
    }


def story_space(directions: Floats, share: float = SHARE) -> Floats:
    """Return the principal axes (k, d) of directions (emotions, d), at length 1, that hold `share` of their variance."""
    units = effects.unit(directions)
    _, singular, axes = np.linalg.svd(units - units.mean(0), full_matrices=False)
    held = (singular**2).cumsum() / max((singular**2).sum(), np.finfo(float).tiny)
    k = int(np.searchsorted(held, share - 1e-12)) + 1
    space: Floats = axes[: min(k, len(axes))]
    return space


def norm_kept(vectors: Floats, space: Floats) -> float:
    """Return the mean share of the norm of vectors (emotions, d) that is left when orthonormal axes (k, d) are projected out.

    NaN where all vectors are zero. Of a random vector's squared norm 1 − k/d is left on average.
    """
    lengths = np.linalg.norm(vectors, axis=-1)
    left = np.linalg.norm(vectors - vectors @ space.T @ space, axis=-1)
    there = lengths > 0
    return float((left[there] / lengths[there]).mean()) if there.any() else float("nan")


# Words ---------------------------------------------------------------------------------------------------------------


def verdict(at: pd.DataFrame) -> str:
    """Say what the measures at one layer come to."""
    itself, context = row_of(at, "deflection, with itself"), row_of(at, "context part, with itself")
    if not _holds(itself):
        return (
            f"Directions of hidden emotions are not shown to hold from topic to topic ({_value(itself)}, {p_value(itself.p)}): "
            "nothing is shown to be there, and a low cosine or a large norm kept says nothing."
        )
    said = [f"Directions of hidden emotions hold on topics held out ({_value(itself)}, {p_value(itself.p)})."]
    if _holds(context):
        said.append(
            f"So does what the preamble adds to the same words ({_value(context)}){_echo(row_of(at, PREAMBLE))}."
        )
        which, name = "context part", "What the preamble adds"
    else:
        what = "is nothing" if not np.isfinite(context.value) else f"is not shown to ({_value(context)})"
        said.append(
            f"What the preamble adds to the same words {what}: these are directions of the words that people hide things with."
        )
        which, name = "deflection", "They"
    return " ".join(
        [*said, _against_namesakes(at, which, name), _kept(row_of(at, f"norm kept, {which}"), name)]
    )


def _holds(row: pd.Series) -> bool:
    return bool(row.p < SURE and row.low > 0)


def _parts(at: pd.DataFrame) -> dict[str, bool]:
    """Return whether what is hidden has directions that hold, beyond the words it is hidden with and those of the preamble."""
    whole, context = (_holds(row_of(at, f"{name}, with itself")) for name in ("deflection", "context part"))
    return {
        "directions that hold from topic to topic": whole,
        "beyond the words it is hidden with": context,
        "and beyond those of the preambles": context and not _is_echo(row_of(at, PREAMBLE)),
    }


def _is_echo(preamble: pd.Series) -> bool:
    return bool(preamble.p < SURE and preamble.value > 0)


def _echo(preamble: pd.Series) -> str:
    """Say whether what a preamble adds may be an echo of its words."""
    if _is_echo(preamble):
        return f", but so do the preambles' own words ({_value(preamble)}): it may be an echo of these"
    return ": what is felt is there while it is not shown"


def _against_namesakes(at: pd.DataFrame, which: str, name: str) -> str:
    """Say how directions lie to those of their names, where directions of emotions said openly do so."""
    row, openly = row_of(at, f"{which}, with probes"), row_of(at, "expressed, with probes")
    verb = "lie" if name == "They" else "lies"
    if not _holds(openly):
        return (
            f"Even emotions said openly are not shown to lie along the probes of their names here ({_value(openly)}): low "
            "cosines would prove nothing."
        )
    beside = f"{_value(row)}; said openly {_value(openly)}"
    if not row.p < SURE:
        return f"{name} {verb} no more along the probes of their names than of others ({beside})."
    if row.value < 0:
        return f"{name} {verb} against the probes of their names ({beside})."
    less = row_of(at, f"{which} less expressed, with probes, freed of noise")
    freed = f"{beside}; freed of noise, the difference is {_value(less)}"
    if less.high < 0:
        return f"{name} {verb} along the probes of their names, less than emotions said openly do ({freed})."
    return f"{name} {verb} along the probes of their names, not shown to be less than emotions said openly ({freed})."


def _kept(row: pd.Series, name: str) -> str:
    verb = "keep" if name == "They" else "keeps"
    what = f"{name} {verb} {_value(row, False)} of the norm outside the probes' space"
    chance = f"what a random vector would keep ({number(row.expected, 3)})"
    if row.high < row.expected:
        return f"{what}, less than {chance}: a part lies inside."
    if row.low > row.expected:
        return f"{what}, more than {chance}."
    return f"{what}, which is {chance}, and what noise keeps: it tells nothing."


def _value(row: pd.Series, sign: bool = True) -> str:
    return span(row.value, row.low, row.high, sign=sign)


@drawing.styled()
def _figure(table: pd.DataFrame, stated: int) -> Figure:
    figure, axes = drawing.panels(1, 3, height=2.6, sharex=True)
    titles = {"with itself": "on other topics", "with probes": "with namesakes", "norm kept": "norm kept"}
    for axis, (kind, title) in zip(axes.flat, titles.items(), strict=True):
        for name, colour in zip(("deflection", "context part", "expressed"), drawing.PALETTE, strict=False):
            measure = f"norm kept, {name}" if kind == "norm kept" else f"{name}, {kind}"
            part = table[table.measure == measure].sort_values("layer")
            drawing.line(axis, part.layer, part.value, part.low, part.high, label=name, colour=colour)
            if name == "deflection" and kind != "norm kept":
                drawing.control(axis, part.layer, None, part.null_low, part.null_high, label="chance")
            if name == "deflection" and kind == "norm kept":
                drawing.control(axis, part.layer, part.expected)
        axis.axvline(stated, color=drawing.INK, linewidth=0.6, linestyle=":")
        axis.set_title(title)
        axis.set_xlabel("layer")
    axes[0, 0].set_ylabel("cosine, or share of the norm")
    drawing.legend_below(figure, axes[0, 0])
    return figure
