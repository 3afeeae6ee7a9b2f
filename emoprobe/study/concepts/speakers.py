"""Whose emotion is it: directions for the present and the other speaker, and whether they are two families.

In dialogues whose two speakers' emotions are set independently, the mean stream over one speaker's words has a part that goes
with that speaker's own emotion (the present speaker's) and one that goes with the emotion of the other. With two speakers that
makes a 2 × 2 of {whose words} × {whose emotion}. Both parts are fitted together, by least squares on indicators of both
emotions, so that neither can pass for the other where emotions do not meet equally often.

A speaker's words count once the other has spoken. A direction of one topic is compared with those of the other topics only,
because on one topic both speakers say the same words when they feel the same. The experiment is that of Sofroniew et al. 2026
(arXiv 2604.07729, figures 17 and 18), which reports no scalar, no held-out topic and no null.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from emoprobe import drawing
from emoprobe.controls import turned_at_random
from emoprobe.errors import InputError
from emoprobe.intervals import exceedance, jackknife
from emoprobe.layers import DEPTH, Layers, resolve_layers
from emoprobe.models.live import LiveModel
from emoprobe.probes import ProbeSet
from emoprobe.study.concepts import effects
from emoprobe.study.concepts.dialogues import Dialogue
from emoprobe.study.concepts.dialogues import dialogues as bank
from emoprobe.study.concepts.effects import FLOOR, SHUFFLES, Floats, row_of
from emoprobe.study.result import Result
from emoprobe.study.wording import number, p_value, ranged, span

FAMILIES = (
    "first speaker's words, own emotion",
    "second speaker's words, own emotion",
    "first speaker's words, the other's emotion",
    "second speaker's words, the other's emotion",
)
"""The 2 × 2 of {whose words} × {whose emotion}: two families of the present speaker, two of the other."""
PRESENT, OTHER = ((0, 1),), ((2, 3),)
SAME_WORDS, SAME_PERSON = ((0, 2), (1, 3)), ((0, 3), (1, 2))
COMPARISONS = {
    "present speaker, across owners": PRESENT,
    "other speaker, across owners": OTHER,
    "present against other, same words": SAME_WORDS,
    "present against other, same person's emotion": SAME_PERSON,
}
"""What is compared: pairs of families."""
ITSELF = {"present speaker, with itself": ((0, 0), (1, 1)), "other speaker, with itself": ((2, 2), (3, 3))}
"""Families on other topics with themselves: the most that a comparison can be expected to reach."""
RANDOM = 20
SURE = 0.05
PUBLISHED = (
    "Sofroniew et al. 2026 (arXiv 2604.07729, figures 17 and 18; Claude Sonnet 4.5): present-speaker directions are alike for "
    "both speakers, so are other-speaker directions, the two families are nearly orthogonal and lie alike inside; no number "
    "and no null is given. Replication on Llama-3.3-70B-Instruct (traitinterp): same emotion .54 and .45, same words .15, .14."
)


def speakers(
    model: LiveModel,
    probes: ProbeSet | None = None,
    *,
    dialogues: Sequence[Dialogue] | None = None,
    layer: int | float = DEPTH,
    layers: Layers = "all",
    shuffles: int = SHUFFLES,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = True,
) -> Result:
    """Compare the directions of the present and the other speaker's emotion, held out by topic, at `layers`.

    `dialogues` are by default those of the package's bank (936 of about 150 tokens). What is found is stated at `layer`, an
    index or a share of the depth, which is not chosen by looking; the other layers are its profile. With `probes` their
    directions are compared with each family too, by name. Emotions are shuffled within topics `shuffles` times. Raises
    `InputError` for fewer than three topics, and for a topic whose dialogues do not tell the two emotions apart.
    """
    given = bank() if dialogues is None else list(dialogues)
    (stated,) = resolve_layers(layer, model.n_layers)
    chosen = sorted({stated, *resolve_layers(layers, model.n_layers)})
    emotions, found = speaker_directions(model, given, chosen, batch_size=batch_size, progress=progress)
    table = pd.concat(
        [
            _compared(found[..., place, :], shuffles, seed).assign(layer=number_)
            for place, number_ in enumerate(chosen)
        ],
        ignore_index=True,
    )
    here = found[..., chosen.index(stated), :]
    random = _random(here, seed)
    stories = None if probes is None else _with_probes(here, emotions, probes, stated, shuffles, seed)
    if stories is not None:
        table = pd.concat([table, stories.assign(layer=stated)], ignore_index=True)
    table = table[["layer", *(column for column in table if column != "layer")]]
    at = table[table.layer == stated].set_index("comparison")
    lowest = table[table.layer == 0].set_index("comparison") if 0 in chosen else None
    topics = found.shape[1]
    shown = at.loc[list(COMPARISONS)]
    parts = _parts(at, lowest)
    return Result(
        name="speakers",
        title="Present and other speaker",
        question=(
            "Does the stream hold what the speaker feels and what the other speaker feels in two families of directions, "
            "each alike whoever speaks?"
        ),
        method=(
            f"{len(given)} dialogues, {len(emotions)} emotions, {topics} topics. Mean stream over a speaker's words after the "
            "other has spoken; effects of both speakers' emotions by least squares, topic by topic. Cosines are those of one "
            f"topic's direction with the other topics', averaged over emotions; 95 % intervals by jackknife over topics; "
            f"{shuffles} shuffles of emotions within topics. Stated at layer {stated} of {model.n_layers}."
        ),
        table=table,
        finding="; ".join(
            f"{name} {span(row.cosine, row.low, row.high, sign=True)}" for name, row in shown.iterrows()
        ),
        controls=(
            f"shuffled emotions {ranged([shown.shuffled_low.min(), shown.shuffled_high.max()], sign=True)}; families turned "
            f"at random {ranged(random, sign=True)}; families with themselves "
            + ", ".join(number(at.cosine[name], sign=True) for name in ITSELF)
            + ("" if lowest is None else f"; present speaker at layer 0 {_at_zero(lowest)}")
        ),
        verdict=verdict(at, lowest),
        sign=int(all(parts.values())),
        parts=parts,
        figure=_figure(table, stated),
        alt="Cosine of directions by layer for each pair of families, with intervals, and grey bands of shuffled emotions.",
        published=PUBLISHED,
    )


# Directions ----------------------------------------------------------------------------------------------------------


def speaker_directions(
    model: LiveModel,
    dialogues: Sequence[Dialogue],
    layers: Sequence[int],
    *,
    batch_size: int = 32,
    progress: bool = False,
) -> tuple[list[str], Floats]:
    """Return the emotions and the directions of `FAMILIES`: (families, topics, emotions, layers, d_model), raw length.

    Each sums to zero over the emotions. A direction that is rounding beside the stream is set to zero. Raises `InputError` as
    `speakers` does.
    """
    emotions = sorted({emotion for one in dialogues for emotion in one.emotions})
    topics = sorted({one.topic for one in dialogues})
    if len(topics) < 3:
        raise InputError(
            f"dialogues on {len(topics)} topics: at least 3 are needed, so that directions can be held to other topics"
        )
    count = len(emotions)
    # The normal equations of each topic and speaker: that is all that is kept of the streams.
    within: Floats = np.zeros((len(topics), 2, 2 * count, 2 * count))
    across: Floats = np.zeros((len(topics), 2, 2 * count, len(layers), model.d_model))
    length, read = np.zeros(len(layers)), 0
    places = [[one.answers(speaker) for speaker in one.speakers] for one in dialogues]
    texts = [one.text for one in dialogues]
    for index, means in effects.span_means(
        model, texts, places, layers, batch_size=batch_size, progress=progress
    ):
        topic = topics.index(dialogues[index].topic)
        felt = [emotions.index(emotion) for emotion in dialogues[index].emotions]
        for who, mean in enumerate(means.numpy()):
            if np.isfinite(mean).all():
                columns = [felt[who], count + felt[1 - who]]
                within[topic, who][np.ix_(columns, columns)] += 1
                across[topic, who, columns] += mean
                length, read = length + np.linalg.norm(mean, axis=-1), read + 1
    for row, column in np.ndindex(within.shape[:2]):
        if np.linalg.matrix_rank(within[row, column]) < 2 * count - 1:
            raise InputError(
                f"the dialogues on {topics[row]!r} do not tell what the two speakers feel apart: they need each of the "
                f"{count} emotions for both, in enough different pairs"
            )
    solved = np.einsum("twij,twjld->twild", np.linalg.pinv(within, hermitian=True), across)
    own, others = (
        part - part.mean(2, keepdims=True) for part in (solved[:, :, :count], solved[:, :, count:])
    )
    families = np.concatenate([own, others], axis=1).transpose(1, 0, 2, 3, 4)
    rounding = np.linalg.norm(families, axis=-1) < FLOOR * (length / read)
    families[rounding] = 0.0
    return emotions, families


# Comparisons ---------------------------------------------------------------------------------------------------------


def _compared(directions: Floats, shuffles: int, seed: int) -> pd.DataFrame:
    """Compare families (families, topics, emotions, d): one row for each comparison."""
    dots = effects.products(directions)
    same = effects.same_emotion(dots)
    value, without = effects.held_out_cosines(same).mean(-1), effects.left_out(same)
    null, pooled = effects.shuffled(dots, shuffles, seed), effects.pooled_cosines(same)
    rdm, rdm_null, rdm_without = effects.rdm_correlations(dots, shuffles, seed)
    rows = []
    for name, pairs in {**COMPARISONS, **ITSELF}.items():
        cosine, left, by_chance = (_mean(part, pairs) for part in (value, without, null))
        alike, alike_left, alike_by_chance = (_mean(part, pairs) for part in (rdm, rdm_without, rdm_null))
        low, high = jackknife(cosine, left)
        rdm_low, rdm_high = jackknife(alike, alike_left)
        ceiling = np.sqrt(np.maximum([value[f, f] * value[g, g] for f, g in pairs], 0)).mean()
        rows.append(
            {
                "comparison": name,
                "cosine": float(cosine),
                "low": float(low),
                "high": float(high),
                "shuffled_low": float(np.quantile(by_chance, 0.025)),
                "shuffled_high": float(np.quantile(by_chance, 0.975)),
                "p": float(effects.p_apart(cosine, by_chance)),
                "ceiling": float(ceiling),
                "same_topics": float(_mean(pooled, pairs)),
                "rdm": float(alike),
                "rdm_low": float(rdm_low),
                "rdm_high": float(rdm_high),
                "rdm_p": float(exceedance(alike, alike_by_chance)),
            }
        )
    return pd.DataFrame(rows)


def _mean(values: Floats, pairs: Sequence[tuple[int, int]]) -> Floats:
    mean: Floats = np.mean([values[..., first, second] for first, second in pairs], axis=0)
    return mean


def _random(directions: Floats, seed: int) -> list[float]:
    """Return the mean cosines of families with families turned at random, for all pairs between which none is expected."""
    flat = torch.from_numpy(directions)
    found = []
    for control in range(RANDOM):
        turned = torch.stack([turned_at_random(part, 1000 * seed + control) for part in flat]).double()
        both = np.concatenate([directions, turned.numpy()])
        between = effects.held_out_cosines(effects.same_emotion(effects.products(both))).mean(-1)
        found.append(float(np.nanmean(between[: len(flat), len(flat) :])))
    return found


def _with_probes(
    directions: Floats, emotions: Sequence[str], probes: ProbeSet, layer: int, shuffles: int, seed: int
) -> pd.DataFrame:
    """Compare each family's mean directions with those of probes, emotion by emotion; the null hands names on."""
    shared = [name for name in emotions if name in probes]
    if len(shared) < 3 or layer not in probes.layers:
        raise InputError(
            f"the probes share {len(shared)} emotions with the dialogues and have layers {list(probes.layers)}: at least 3 "
            f"emotions and layer {layer} are needed"
        )
    mine = directions[:, :, [list(emotions).index(name) for name in shared]]
    fitted = torch.stack([probes[name].at(layer) for name in shared]).double().numpy()
    value, null, without = (
        part.reshape(*part.shape[:-1], 2, 2).mean(-1)  # over the two owners
        for part in effects.with_named(mine, fitted, shuffles, seed)
    )
    low, high = jackknife(value, without)
    return pd.DataFrame(
        {
            "comparison": ["present speaker, with probes", "other speaker, with probes"],
            "cosine": value,
            "low": low,
            "high": high,
            "shuffled_low": np.quantile(null, 0.025, axis=0),
            "shuffled_high": np.quantile(null, 0.975, axis=0),
            "p": effects.p_apart(value, null),
        }
    )


# Words ---------------------------------------------------------------------------------------------------------------


def verdict(at: pd.DataFrame, lowest: pd.DataFrame | None = None) -> str:
    """Say what the comparisons at one layer come to; `lowest` are those of the embedding."""
    said = []
    for name, family in (("present", "present speaker"), ("other", "other speaker")):
        itself, across = row_of(at, f"{family}, with itself"), row_of(at, f"{family}, across owners")
        said.append(_family(name, itself, across))
    if lowest is not None and _holds(row_of(at, "present speaker, across owners")):
        before, now = (row_of(part, "present speaker, across owners") for part in (lowest, at))
        if not now.low > before.cosine:
            said.append(
                f"The present speaker's are not shown to be more alike than at the embedding "
                f"({number(before.cosine, sign=True)}): words may be all that they share."
            )
    if not _holds(row_of(at, "other speaker, with itself")):
        return " ".join(
            [*said, "Whether two families are orthogonal cannot be asked where one of them is not there."]
        )
    if not _holds(row_of(at, "present speaker, with itself")):
        return " ".join([*said, "Whether they are orthogonal cannot be asked."])
    return " ".join(
        [*said, *(_against(kind, row_of(at, f"present against other, {kind}")) for kind in KINDS)]
    )


KINDS = {"same words": "over the same words", "same person's emotion": "for the same person's emotion"}


def _holds(row: pd.Series) -> bool:
    """Say whether directions go with each other by more than shuffled emotions do, and surely by more than not at all."""
    return bool(row.p < SURE and row.low > 0)


def _parts(at: pd.DataFrame, lowest: pd.DataFrame | None) -> dict[str, bool]:
    """Return for both families whether they hold, and whoever speaks; the present speaker's by more than at the embedding."""
    parts = {
        f"{who} speaker, {how}": _holds(row_of(at, f"{who} speaker, {how}"))
        for who in ("present", "other")
        for how in ("with itself", "across owners")
    }
    if lowest is not None:
        across = "present speaker, across owners"
        more = row_of(at, across).low > row_of(lowest, across).cosine
        parts[f"{across}, more than at the embedding"] = bool(more and parts[across])
    return parts


def _family(name: str, itself: pd.Series, across: pd.Series) -> str:
    what = f"Directions of the {name} speaker's emotion"
    if not np.isfinite(itself.cosine):
        return f"{what} are not there at all: no word's stream depends on it."
    if not _holds(itself):
        return f"{what} are not shown to hold from topic to topic ({_value(itself)}): nothing is shown to be there."
    if not _holds(across):
        return f"{what} hold from topic to topic ({_value(itself)}), not shown to from speaker to speaker ({_value(across)})."
    return f"{what} are alike whoever speaks, on topics held out ({_value(across)}{_of_most(across)})."


def _against(kind: str, row: pd.Series) -> str:
    what = f"Present against other, {KINDS[kind]}: {_value(row)}"
    if not row.p < SURE:
        return f"{what}: not shown to be other than orthogonal."
    side = "they share a part" if row.cosine > 0 else "they point away from each other"
    return f"{what}{_of_most(row)}: {side}, so they are not orthogonal."


def _of_most(row: pd.Series) -> str:
    """Say how much of the most that noisy directions allow, what each has in common with itself, two have in common."""
    if not row.ceiling > 0:
        return ""
    share = min(1.0, abs(row.cosine) / row.ceiling)
    return f", {share:.0%} of the {number(row.ceiling)} that each has with itself"


def _value(row: pd.Series) -> str:
    return f"cosine {span(row.cosine, row.low, row.high, sign=True)}, {p_value(row.p)}"


def _at_zero(lowest: pd.DataFrame) -> str:
    return number(lowest.cosine["present speaker, across owners"], sign=True)


@drawing.styled()
def _figure(table: pd.DataFrame, stated: int) -> Figure:
    figure, axes = drawing.panels(2, 2, height=2.1, sharex=True, sharey=True)
    for axis, name in zip(axes.flat, COMPARISONS, strict=True):
        part = table[table.comparison == name].sort_values("layer")
        drawing.line(axis, part.layer, part.cosine, part.low, part.high, label="topics held out")
        drawing.control(
            axis, part.layer, None, part.shuffled_low, part.shuffled_high, label="shuffled emotions"
        )
        drawing.control(axis, part.layer, part.ceiling, label="families with themselves")
        drawing.zero(axis)
        axis.axvline(stated, color=drawing.INK, linewidth=0.6, linestyle=":")
        axis.set_title(name)
    for axis in axes[-1]:
        axis.set_xlabel("layer")
    for axis in axes[:, 0]:
        axis.set_ylabel("cosine")
    drawing.legend_below(figure, axes[0, 0])
    return figure
