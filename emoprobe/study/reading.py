"""What do the probes say of texts that they have never seen, token by token, and of which words do they speak?

Traces illustrate; the numbers are correlations with annotations on groups of texts that no probe was fitted or chosen on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from emoprobe import drawing
from emoprobe.corpora import Corpus
from emoprobe.models.live import LiveModel
from emoprobe.probes import ProbeSet, trace
from emoprobe.study.result import Result
from emoprobe.study.texts import counted, targets
from emoprobe.study.wording import correlation, listed, number, ranged, span

CONTROLS = 20
"""Random directions beside each probe."""
TEXTS = 400
LINE, CHARACTER, WRAP = 0.2, 0.0725, 84  # of a trace: inches a line, inches a character, characters a line
LONGEST = 300  # characters of a text that is shown


def reading(
    model: LiveModel, probes: ProbeSet, held_out: Corpus, concepts: Sequence[str], *, seed: int = 0
) -> Result:
    """Read `concepts` off texts of held-out groups, and their directions through the unembedding.

    `concepts` are dimensions or labels of the corpus that were probed for.
    """
    corpus = held_out if len(held_out) <= TEXTS else held_out.sample(TEXTS, seed)
    table = _correlations(model, probes, corpus, concepts, seed)
    main = table.iloc[0]
    shown = [str(name) for name in concepts[:2]]
    rows = _most_telling(corpus, main.concept)
    words = _words(model, probes, table)
    return Result(
        name="reading",
        title="Reading aloud",
        question="What do the probes say of texts they have never seen, token by token, and which words do they speak of?",
        method=(
            f"Read-outs at each concept's best layer on {counted(corpus)}, on which nothing was fitted, beside {CONTROLS} "
            "random directions, intervals over groups; and the tokens that each direction would promote if it were the last "
            "layer's (logit lens)."
        ),
        table=table.merge(words, on=["concept", "layer"]),
        finding=f"{main.concept} r {span(main.r, main.low, main.high)} on held-out texts",
        controls=f"random directions {ranged([main.random_low, main.random_high])}",
        verdict=(
            f"{_better_read(table)} Toward {main.concept}, the direction promotes {words.promoted.iloc[0]}; away from it, "
            f"{words.suppressed.iloc[0]}. What a direction promotes is a hint about it, not a measure."
        ),
        figure=_draw(model, probes, corpus, rows, shown),
        alt=(
            f"Texts coloured token by token by the read-out of {listed(shown)}: orange above the corpus's mean token, blue "
            "below."
        ),
    )


def _correlations(
    model: LiveModel, probes: ProbeSet, corpus: Corpus, concepts: Sequence[str], seed: int
) -> pd.DataFrame:
    """Return one row per concept: r of read-out and annotation at its best layer, and the range over random directions."""
    layers = {name: probes.best_layer(name) for name in concepts}
    captured = sorted(set(layers.values()))
    pooled = model.capture(corpus.texts, captured)
    rows = []
    for name, layer in layers.items():
        here, annotated = pooled[:, captured.index(layer)], targets(corpus, name)
        read = probes.read_out(here, layer)[:, probes.concept_index(name)].double().numpy()
        r, low, high = correlation(read, annotated, corpus.groups, seed)
        randoms = torch.randn(CONTROLS, model.d_model, generator=torch.Generator().manual_seed(seed))
        chance = [
            abs(correlation((here @ random).double().numpy(), annotated, corpus.groups)[0])
            for random in randoms
        ]
        rows.append(
            (name, layer, r, low, high, -np.nanmax(chance), np.nanmax(chance), np.isfinite(annotated).sum())
        )
    columns = ["concept", "layer", "r", "low", "high", "random_low", "random_high", "texts"]
    return pd.DataFrame(rows, columns=columns)


def _better_read(table: pd.DataFrame) -> str:
    """Say which concepts' intervals of r lie above |r| of every random direction."""
    held = table[table.low > table.random_high]
    which = f" ({listed(held.concept.tolist())})" if len(held) else ""
    return (
        f"On unseen texts {len(held)} of {len(table)} concepts are read better than by any of {CONTROLS} random "
        f"directions{which}."
    )


def _words(model: LiveModel, probes: ProbeSet, table: pd.DataFrame, top: int = 5) -> pd.DataFrame:
    rows = []
    for layer, part in table.groupby("layer", sort=False):
        lens = probes.logit_lens(model, int(str(layer)), top=top)
        for name in part.concept:
            of_concept = lens[lens.concept == name]
            columns = (
                listed([f"“{w.strip()}”" for w in of_concept[way]]) for way in ("promoted", "suppressed")
            )
            rows.append((name, layer, *columns))
    order = {name: row for row, name in enumerate(table.concept)}
    frame = pd.DataFrame(rows, columns=["concept", "layer", "promoted", "suppressed"])
    return frame.sort_values("concept", key=lambda names: names.map(order)).reset_index(drop=True)


def _most_telling(corpus: Corpus, concept: str) -> list[int]:
    """Return the rows of the texts annotated highest and lowest on a concept, of those short enough to be shown."""
    values = targets(corpus, concept)
    rows = [row for row in np.argsort(values, kind="stable") if np.isfinite(values[row])]
    short = [row for row in rows if len(corpus.texts[row]) <= LONGEST] or rows
    return [int(row) for row in dict.fromkeys((short[-1], short[0]))]


# Drawing -------------------------------------------------------------------------------------------------------------


@drawing.styled()
def _draw(
    model: LiveModel, probes: ProbeSet, corpus: Corpus, rows: Sequence[int], concepts: Sequence[str]
) -> Figure:
    """Draw texts in their own letters, once for each concept, on fields coloured by the read-out."""
    texts = [corpus.texts[row][:LONGEST] for row in rows]
    traced = trace(model, probes, texts, concepts=concepts)
    coloured = traced.coloured()
    blocks = []
    for which, (row, text) in enumerate(zip(rows, texts, strict=True)):
        for concept, layer in traced.centres:
            part = coloured[
                (coloured.text == which) & (coloured.concept == concept) & (coloured.layer == layer)
            ]
            title = f"{concept} at layer {layer}, annotated {number(targets(corpus, concept)[row])}"
            blocks.append((title, _lines(text, part)))
    height = sum(len(lines) + 1.6 for _, lines in blocks) * LINE
    figure = drawing.Picture(figsize=(drawing.WIDTH, height))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, drawing.WIDTH), ylim=(height, 0))
    axis.axis("off")
    top = 0.0
    for title, lines in blocks:
        axis.text(0, top + 0.75 * LINE, title, fontsize=9, fontweight="bold")
        for row, line in enumerate(lines):
            _draw_line(axis, line, top + (row + 1.15) * LINE)
        top += (len(lines) + 1.6) * LINE
    return figure


def _draw_line(axis: Any, line: list[tuple[int, str, float]], top: float) -> None:
    for column, piece, colour in line:
        fill = drawing.RED if colour > 0 else drawing.BLUE
        width = len(piece) * CHARACTER
        corner = (column * CHARACTER, top)
        axis.add_patch(
            Rectangle(corner, width, LINE * 0.92, color=fill, alpha=0.65 * abs(colour), linewidth=0)
        )
        # SVG drops spaces at the beginning.
        start = (column + len(piece) - len(piece.lstrip())) * CHARACTER
        axis.text(start, top + 0.68 * LINE, piece.strip(), fontsize=8.5, family="monospace")


def _lines(text: str, tokens: pd.DataFrame) -> list[list[tuple[int, str, float]]]:
    """Break a text into lines of (column, characters, colour in [-1, 1]); a token may go on in the next line."""
    colours = np.zeros(len(text))
    for token in _rows(tokens):
        colours[max(0, token["start"]) : max(0, token["end"])] = token["colour"]
    lines: list[list[tuple[int, str, float]]] = []
    start = 0
    while start < len(text):
        end = start + WRAP
        space = text.rfind(" ", start, end)
        if end < len(text) and space > start:
            end = space + 1
        lines.append(_runs(text[start:end].replace("\n", " "), colours[start:end]))
        start = end
    return lines


def _rows(frame: pd.DataFrame) -> list[dict[Any, Any]]:
    return frame.to_dict("records")


def _runs(text: str, colours: np.ndarray[Any, Any]) -> list[tuple[int, str, float]]:
    starts = [0, *(np.flatnonzero(np.diff(colours)) + 1).tolist()]
    return [
        (start, text[start:end], float(colours[start]))
        for start, end in zip(starts, [*starts[1:], len(text)], strict=True)
    ]
