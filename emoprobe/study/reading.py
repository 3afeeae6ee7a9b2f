"""What do the probes say of texts that they have never seen, token by token, and of which words do they speak?

Traces illustrate; the numbers are correlations with annotations on groups of texts that no probe was fitted or chosen on.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from emoprobe import drawing
from emoprobe.corpora import Corpus
from emoprobe.models.live import LiveModel
from emoprobe.probes import ProbeSet, trace
from emoprobe.probes.tasks import plan
from emoprobe.probes.validation import fit_words, shuffle
from emoprobe.study.result import Result
from emoprobe.study.texts import counted, targets
from emoprobe.study.wording import Floats, correlation, listed, number, several, spans

CONTROLS = 20
"""Random directions beside each probe."""
SHUFFLES = 199
READ_BY = {
    "random_high": "random directions",
    "shuffled_high": "shuffled annotations",
    "layer0": "the embedding",
    "bag_of_words": "a bag of words",
}
"""What a concept's r is held to, in the same texts."""
TEXTS = 400
LINE, CHARACTER, WRAP = 0.2, 0.0725, 84  # of a trace: inches a line, inches a character, characters a line
LONGEST = 300  # characters of a text that is shown


def reading(
    model: LiveModel,
    probes: ProbeSet,
    corpus: Corpus,
    held_out: Corpus,
    concepts: Sequence[str],
    *,
    seed: int = 0,
) -> Result:
    """Read `concepts` off texts of held-out groups, and their directions through the unembedding.

    `concepts` are dimensions or labels that were probed for in `corpus`, on which the bag of words is fitted too.
    """
    unseen = held_out if len(held_out) <= TEXTS else held_out.sample(TEXTS, seed)
    table = _correlations(model, probes, corpus, unseen, concepts, seed)
    first = table.concept.iloc[0]
    held = _above_controls(table)
    shown = [str(name) for name in concepts[:2]]
    rows = _most_telling(unseen, first)
    words = _words(model, probes, table)
    return Result(
        name="reading",
        title="Reading aloud",
        question="Do the probes read texts that they have never seen, better than chance, the embedding and words do?",
        method=(
            f"Read-outs at each concept's best layer on {counted(unseen)}, on which nothing was fitted, against annotations; "
            f"intervals over groups. On the same texts: the highest |r| of {CONTROLS} random directions, 95 % of |r| with "
            f"annotations shuffled over texts {SHUFFLES} times, the embedding (layer 0), and a bag of words fitted on what the "
            "probes were. A concept counts if its interval lies above them all. Beside that, the tokens that each direction "
            "would promote if it were the last layer's (logit lens)."
        ),
        table=table.merge(words, on=["concept", "layer"]),
        finding="r " + several(spans(table.concept, table.r, table.low, table.high)),
        controls="to be above "
        + "; ".join(
            f"{name} " + several([f"{number(value)}" for value in table[column]])
            for column, name in READ_BY.items()
        ),
        verdict=(
            f"{_answer(table)} Toward {first}, the direction promotes {words.promoted.iloc[0]}; away from it, "
            f"{words.suppressed.iloc[0]}: a hint about it, not a measure."
        ),
        sign=int(bool(held.all(axis=None))),
        parts={str(name): bool(every) for name, every in zip(table.concept, held.all(axis=1), strict=True)},
        figure=_draw(model, probes, unseen, rows, shown),
        alt=(
            f"Texts coloured token by token by the read-out of {listed(shown)}: orange above the corpus's mean token, blue "
            "below."
        ),
    )


def _correlations(
    model: LiveModel, probes: ProbeSet, corpus: Corpus, unseen: Corpus, concepts: Sequence[str], seed: int
) -> pd.DataFrame:
    """Return one row per concept: r of read-out and annotation at its best layer, and what READ_BY names (NaN: not run)."""
    layers = {name: probes.best_layer(name) for name in concepts}
    captured = sorted({0, *layers.values()})
    pooled = model.capture(unseen.texts, captured)
    randoms = torch.randn(CONTROLS, model.d_model, generator=torch.Generator().manual_seed(seed))
    order, group = np.random.default_rng(seed), np.unique(unseen.groups, return_inverse=True)[1]
    shuffles = [shuffle(group, order) for _ in range(SHUFFLES)]
    words = by_words(corpus, unseen.texts, concepts, probes.metadata["folds"], seed)
    rows = []
    for name, layer in layers.items():
        annotated, column = targets(unseen, name), probes.concept_index(name)

        def r_of(read: Tensor | Floats, truth: Floats = annotated) -> tuple[float, float, float]:
            return correlation(np.asarray(read, dtype=float), truth, unseen.groups, seed)

        def read_at(layer: int, column: int = column) -> Tensor:
            return probes.read_out(pooled[:, captured.index(layer)], layer)[:, column]

        here = read_at(layer)
        chance = [abs(r_of(pooled[:, captured.index(layer)] @ random)[0]) for random in randoms]
        shuffled = [abs(_r(here, annotated[givers])) for givers in shuffles]
        embedding = r_of(read_at(0))[0] if 0 in probes.layers else np.nan
        controls = (
            pd.Series(chance).max(),
            pd.Series(shuffled).quantile(0.95),
            embedding,
            r_of(words[name])[0],
        )
        rows.append((name, layer, *r_of(here), *controls, np.isfinite(annotated).sum()))
    columns = ["concept", "layer", "r", "low", "high", *READ_BY, "texts"]
    return pd.DataFrame(rows, columns=columns)


def _r(read: Tensor, truth: Floats) -> float:
    """Return Pearson's r (no interval) over the texts whose annotation is known; NaN where all have the same."""
    known = np.isfinite(truth)
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(np.asarray(read, dtype=float)[known], truth[known])[0, 1])


def by_words(
    corpus: Corpus, texts: Sequence[str], concepts: Sequence[str], folds: int, seed: int
) -> dict[str, Floats]:
    """Return the read-out of `texts` by a bag of words fitted to `corpus`, for each concept (texts,)."""
    read: dict[str, Floats] = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*nothing to learn")  # as when the probes were fitted
        tasks = plan(corpus, list(concepts), folds, seed)
    for task in tasks:
        known = [corpus.texts[row] for row in task.rows]
        fitted = fit_words(task, known, task.targets, task.group, seed)(texts)
        read |= dict(zip(task.concepts, fitted.T, strict=True))
    return {name: read[name] for name in concepts}


def _above_controls(table: pd.DataFrame) -> pd.DataFrame:
    """Say for each concept and control whether the interval of r lies above it; not above one that was not run."""
    return pd.DataFrame({control: table.low > table[control] for control in READ_BY})


def _answer(table: pd.DataFrame) -> str:
    """Say which concepts are read above every control, and how many are above each."""
    held = _above_controls(table)
    names = table.concept[held.all(axis=1)].tolist()
    many = f"the {len(table)} concepts" if len(table) > 1 else "the one concept"
    which = f"{listed(names)} of {many} {'is' if len(names) == 1 else 'are'}"
    if len(names) == len(table):
        which = f"all {many} {'are' if len(names) > 1 else 'is'}".replace("all the one", "the one")
    counts = [f"{name} {held[control].sum()}" for control, name in READ_BY.items()]
    said = f"{which if names else f'None of {many} is'} read above every control on unseen texts"
    return f"{said[0].upper()}{said[1:]}: above {listed(counts)}."


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
