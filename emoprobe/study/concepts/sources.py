"""Where a read-out comes from: which layers, positions and heads bring an emotion to the last token.

Two sentences differ in a word that brings an emotion in, and end alike; what a probe reads at the last token differs. Two
accounts are given of that difference, which Sofroniew et al. 2026 (arXiv 2604.07729) leave open.

Patching: in the run on the emotional sentence, the stream, or what an attention or an MLP gives, is replaced at some positions
by that of the neutral sentence. What the read-out loses is what went through there (activation patching: Vig et al. 2020; Meng
et al. 2022). Effects of different places overlap, so shares need not sum to one.

Contribution: the stream at the last token is a sum of what embedding, heads and MLPs have written there, and each head's part
is a sum over the positions it looks at (attention weight times OV). Along the probe these are numbers that add up to the
read-out exactly, which is checked. They say what is written at the last token, not what caused it to be written.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from emoprobe import drawing
from emoprobe.errors import InputError
from emoprobe.intervals import jackknife, mean_interval, prediction_interval
from emoprobe.models.live import LiveModel
from emoprobe.probes import ProbeSet
from emoprobe.study.concepts.effects import Floats
from emoprobe.study.concepts.places import CONTROLS, chosen_layer
from emoprobe.study.concepts.source_pairs import PAIRS, Aligned, Pair, aligned
from emoprobe.study.concepts.tracing import (
    ATTENTION,
    ELSEWHERE,
    EMBEDDING,
    MLP,
    PLACES,
    STREAM,
    UNRELATED,
    WRITTEN,
    Traced,
    traced,
)
from emoprobe.study.result import Result
from emoprobe.study.wording import listed, ranged, span

HEAD, TOTAL = "head, written", "total"
FLIPS = 999
SURE = 0.05
FEWEST = 5
EXACT = 1e-3
PUBLISHED = (
    "Sofroniew et al. 2026 (arXiv 2604.07729) leave open how attention brings an emotion to a later token. On appraisals, "
    "Tak et al. 2025 (arXiv 2502.05489; Llama-3.2-1B) find attention at the last token to matter in layers 9 to 11 of 16, MLPs "
    "later."
)


def sources(
    model: LiveModel,
    probes: ProbeSet,
    pairs: Sequence[Pair] = PAIRS,
    *,
    layer: int | float | None = None,
    controls: int = CONTROLS,
    flips: int = FLIPS,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = True,
) -> Result:
    """Trace what probes read at the last token, at `layer` (that of `chosen_layer`), to layers, positions and heads.

    `pairs` whose emotion has no probe, or which this tokenizer does not allow to be aligned, are left out. Beside the probes
    stand `controls` random directions of equal norm, patches from other pairs and at other positions; heads are tested by
    flipping signs of pairs `flips` times, with the largest of all heads. Raises `InputError` for fewer than five pairs, and a
    model whose heads are not accessible, see `emoprobe.models.transformers_parts.read_parts`.
    """
    probes.check_model(model)
    read = chosen_layer(probes, layer)
    known = aligned(model, [pair for pair in pairs if pair.concept in probes])
    if len(known) < FEWEST:
        raise InputError(
            f"{len(known)} of {len(pairs)} pairs can be traced (the others have no probe, or no words of as many tokens): "
            f"at least {FEWEST} are needed"
        )
    found = traced(model, probes, known, read, controls, seed, batch_size, progress)
    table = tabulated(found, flips, seed)
    total = table[table.kind == TOTAL].iloc[0]
    place = _by_place(table)
    checks = _checks(found, place)
    return Result(
        name="sources",
        title="Where a read-out comes from",
        question="Which layers, positions and heads bring an emotion from its words to the last token?",
        method=(
            f"{len(known)} pairs of sentences with aligned tokens, which differ in {_changed(known)} and end alike; "
            f"read-out of the pair's emotion at the last token, layer {read} of {model.n_layers}, in standard deviations over "
            "tokens. The neutral run is patched into the emotional one, by layer and position; what heads, MLPs and embedding "
            f"write is added up. Intervals over pairs; {controls} sets of random directions; heads corrected for the "
            "largest of all."
        ),
        table=table,
        finding=f"the read-out differs by {_total(total)}"
        + (f"; {_where(place, read)}" if _differs(total) else ""),
        controls=(
            f"random directions {ranged([total.random_low, total.random_high], sign=True)}"
            + (f"; {_beside(place)}" if _differs(total) else "")
        ),
        verdict=verdict(table, read),
        sign=int(_differs(table[table.kind == TOTAL].iloc[0])),
        checks=checks,
        figure=_figure(table, read),
        alt="Maps, in standard deviations, of what patching stream, attention and MLP takes, and of what heads write.",
        published=PUBLISHED,
    )


def _changed(known: Sequence[Aligned]) -> str:
    counts = [int(pair.changed.sum()) for pair in known]
    return f"{min(counts)} to {max(counts)} tokens" if min(counts) < max(counts) else f"{counts[0]} tokens"


# Tabulating ----------------------------------------------------------------------------------------------------------


def tabulated(found: Traced, flips: int = FLIPS, seed: int = 0) -> pd.DataFrame:
    """Return one row for each cell: kind, block, head, place, effect with its interval, share of the total, random range, p.

    Effects are in standard deviations of the read-out; shares are NaN where there is nothing to share. `p` is of heads alone:
    how often the largest |t| of all heads and places is as large when the signs of pairs are flipped.
    """
    rows = [_row(TOTAL, -1, -1, PLACES[2], found.total, found.total)]
    for (kind, block), values in found.cells.items():
        places = PLACES if values.shape[-1] == len(PLACES) else _places_of(kind)
        rows += [_row(kind, block, -1, place, values[..., k], found.total) for k, place in enumerate(places)]
    keys = [
        (block, head, k)
        for block, part in found.heads.items()
        for head in range(part.shape[2])
        for k in range(3)
    ]
    largest = _flipped([found.heads[block][0, :, head, k] for block, head, k in keys], flips, seed)
    for block, head, k in keys:
        values = found.heads[block][:, :, head, k]
        p = float((1 + (largest >= abs(_t(values[0])) - 1e-12).sum()) / (1 + flips))
        rows.append({**_row(HEAD, block, head, PLACES[k], values, found.total), "p": p})
    table = pd.DataFrame(rows)
    if not _differs(table.iloc[0]):
        table[["share", "share_low", "share_high"]] = np.nan
    return table


def _places_of(kind: str) -> tuple[str, ...]:
    return {UNRELATED: PLACES[:1], ELSEWHERE: PLACES[1:2]}.get(kind, PLACES[2:])


def _row(kind: str, block: int, head: int, place: str, values: Floats, total: Floats) -> dict[str, object]:
    there = np.isfinite(values[0])
    own, whole = values[0, there], total[0, there]
    effect, low, high = mean_interval(own)
    random = prediction_interval(values[1:, there].mean(1)) if len(values) > 2 else (np.nan, np.nan)
    row: dict[str, object] = {"kind": kind, "block": block, "head": head, "place": place}
    row |= {"effect": effect, "low": low, "high": high, "random_low": random[0], "random_high": random[1]}
    share = own.sum() / whole.sum() if whole.sum() != 0 else np.nan
    left = (own.sum() - own) / (whole.sum() - whole) if len(own) > 2 else np.full(3, np.nan)
    bounds = jackknife(np.array(share), left)
    return row | {
        "share": float(share),
        "share_low": float(bounds[0]),
        "share_high": float(bounds[1]),
        "n": len(own),
    }


def _t(values: Floats) -> float:
    error = values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() / error) if error > 0 else 0.0


def _flipped(series: Sequence[Floats], flips: int, seed: int) -> Floats:
    """Return the largest |t| of several series (pairs,) under each flip of the pairs' signs, the same for all series."""
    values = np.stack(series)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(flips, values.shape[1]))
    count, squares = values.shape[1], (values**2).sum(1)
    means = signs @ values.T / count  # (flips, series)
    variance = (squares / count - means**2) * count / (count - 1)
    error = np.sqrt(np.maximum(variance, 0) / count)
    t = np.divide(np.abs(means), error, out=np.zeros_like(means), where=error > 0)
    largest: Floats = t.max(1)
    return largest


def _checks(found: Traced, place: pd.DataFrame) -> dict[str, bool]:
    written = sum(
        values[0, :, 0] for (kind, _), values in found.cells.items() if kind in (*WRITTEN.values(), EMBEDDING)
    )
    scale = max(float(np.abs(found.total[0]).max()), 1e-12)
    whole = found.cells[STREAM, 0][0, :, 0]
    by_block = [
        np.abs(part[0].sum((-1, -2)) - found.cells[WRITTEN["attention"], block][0, :, 0]).max()
        for block, part in found.heads.items()
    ]
    return {
        "what is written adds up to the read-out": bool(
            np.abs(written - found.total[0]).max() <= EXACT * scale
        ),
        "heads and positions add up to the attention": bool(max(by_block) <= EXACT * scale),
        "all changed words patched at the embedding give the neutral read-out": bool(
            np.abs(whole - found.total[0]).max() <= EXACT * scale
        ),
    }


# Words ---------------------------------------------------------------------------------------------------------------


def verdict(table: pd.DataFrame, layer: int) -> str:
    """Say what patching and contributions come to."""
    total = table[table.kind == TOTAL].iloc[0]
    if not _differs(total):
        return (
            f"The words that bring the emotion in are not shown to change its read-out at the last token ({_total(total)}, "
            f"random directions {ranged([total.random_low, total.random_high], sign=True)}): there is nothing to trace."
        )
    place = _by_place(table)
    said = [f"{_where(place, layer).capitalize()}."]
    for kind, name in ((ATTENTION, "attention"), (MLP, "MLPs")):
        said.append(_most(table, kind, name))
    heads = table[(table.kind == HEAD) & (table.p < SURE)].copy()
    heads = heads[(heads.effect > heads.random_high) | (heads.effect < heads.random_low)]
    if heads.empty:
        return " ".join([*said, "No single head is shown to write a part of it, corrected for all heads."])
    heads = heads.reindex(heads.share.abs().sort_values(ascending=False).index)
    names = [
        f"{int(row.block)}.{int(row['head'])} from the {row.place} ({_part(row)})"
        for _, row in heads.iterrows()
    ]
    return " ".join([*said, f"Heads that write a part of it, corrected for all heads: {listed(names, 6)}."])


def _differs(total: pd.Series) -> bool:
    """Say whether there is a difference of the read-out, of the sign it should have, by more than random directions have."""
    return bool(total.low > 0 and total.effect > total.random_high)


def _total(total: pd.Series) -> str:
    return f"{span(total.effect, total.low, total.high, sign=True)} standard deviations"


def _beside(place: pd.DataFrame) -> str:
    """Say what patches take that should take less: at random other words, and from another pair."""
    blocks = sorted({block for kind, block, _ in place.index if kind == ELSEWHERE})
    middle = blocks[len(blocks) // 2]
    return (
        f"patched at layer {middle} at random other words {_share(place, ELSEWHERE, middle, PLACES[1])} of it, from another "
        f"pair {_share(place, UNRELATED, middle, PLACES[0])}"
    )


def _by_place(table: pd.DataFrame) -> pd.DataFrame:
    """Return what a table says of whole blocks, to be looked up by kind, block and place; heads are many in each place."""
    return table[table.kind != HEAD].set_index(["kind", "block", "place"]).sort_index()


def _where(place: pd.DataFrame, layer: int) -> str:
    """Say at which layer what is read has moved from the changed words to the last token."""
    moved = [
        block
        for block in range(layer)
        if place.share[STREAM, block, PLACES[2]] > place.share[STREAM, block, PLACES[0]]
    ]
    if not moved:
        block = layer - 1
        return (
            f"up to layer {block} more of it goes through the changed words ({_share(place, STREAM, block, PLACES[0])}) than "
            f"through the last token ({_share(place, STREAM, block, PLACES[2])})"
        )
    return (
        f"from layer {moved[0]} on more of it is at the last token ({_share(place, STREAM, moved[0], PLACES[2])}) than at the "
        f"changed words ({_share(place, STREAM, moved[0], PLACES[0])})"
    )


def _most(table: pd.DataFrame, kind: str, name: str) -> str:
    part = table[table.kind == kind]
    row = part.iloc[int(part.effect.to_numpy().argmax())]
    if not (row.low > 0 and row.effect > row.random_high):
        return f"No block's {name} at one place is shown to carry a part of it."
    return f"Of {name}, most goes through block {int(row.block)} at the {row.place} ({_part(row)})."


def _part(row: pd.Series) -> str:
    return span(row.share, row.share_low, row.share_high)


def _share(place: pd.DataFrame, kind: str, block: int, where: str) -> str:
    if (kind, block, where) not in place.index:
        return "not measured"
    return _part(place.loc[[(kind, block, where)]].iloc[0])


@drawing.styled()
def _figure(table: pd.DataFrame, layer: int) -> Figure:
    figure, axes = drawing.panels(1, 4, height=1.5 + 0.28 * layer)
    blocks = [str(block) for block in range(layer)]
    # What one more random direction may show has to look like nothing much.
    limit = float(table[table.kind == TOTAL][["effect", "random_low", "random_high"]].abs().to_numpy().max())
    for axis, (kind, title) in zip(
        axes.flat, {STREAM: "stream", ATTENTION: "attention", MLP: "MLP"}.items(), strict=False
    ):
        part = table[table.kind == kind].pivot_table(
            index="block", columns="place", values="effect", sort=False
        )
        drawing.heat(axis, part[list(PLACES)].to_numpy(), blocks, PLACES, limit=limit, numbers="+.2f")
        axis.set_title(title)
    heads = table[table.kind == HEAD].groupby(["block", "head"]).effect.sum().unstack()
    drawing.heat(axes[0, 3], heads.to_numpy(), blocks, [str(head) for head in heads.columns], limit=limit)
    axes[0, 3].set_title("written by head")
    axes[0, 0].set_ylabel("block")
    return figure
