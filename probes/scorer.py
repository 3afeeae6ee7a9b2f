"""Scoring a corpus of any length with all concepts in one pass: where each concept reads highest and lowest.

Of every concept the best snippets are kept in a short list, and mean, spread and quantiles as they run; nothing else is, so
that memory does not grow with the texts. Sofroniew et al. 2026 (arXiv 2604.07729, figure 1) show such snippets for corpora that
no vector was fitted on, tokens above the corpus's 90th percentile marked. But any direction has snippets on top, and some
meaning can be read into most of them. So random directions are scored in the same pass, and what is said of a concept is how
far its tail stands out against theirs. A concept that does not stand out may still be real; one whose snippets please is not
yet shown.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from emoprobe import drawing
from emoprobe.activations import WINDOW, Residuals, stream_residuals, windows
from emoprobe.errors import InputError
from emoprobe.intervals import prediction_interval
from emoprobe.models.live import LiveModel
from emoprobe.probes.probe_set import ProbeSet
from emoprobe.probes.readout import (
    OWN_CORPUS,
    centre,
    check_kind,
    concepts_and_layers,
    first_counted,
    random_probes,
    read_stream,
    unit_of,
)
from emoprobe.probes.reference_corpus import Reference
from emoprobe.probes.snippets import Best, Snippet, cut_out, marked
from emoprobe.probes.tally import Tally

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from emoprobe.workers import RayWorkers

SIDES = {"top": 1, "bottom": -1}
BY = ("token", "text")
QUANTILES = (0.01, 0.05, 0.1, 0.5, 0.9, 0.95, 0.99)
TAIL = 0.999
"""The quantile that a concept's tail is measured at: of a thousand tokens the strongest."""
GRAIN = 1e-5
"""Standard deviations within which scores rank as equal."""
RANDOMS = 40
"""Random directions at each layer, scored beside the concepts."""


@dataclass(frozen=True, eq=False, repr=False)
class CorpusScores:
    """Hold what concepts read over a corpus; `score_corpus` makes one. Those of two corpora add up with `+`."""

    layers: dict[str, int]
    """Concept -> the layer it was read at."""
    kind: str
    by: str
    highlight: float
    texts: int
    skipped: int
    """Blank texts, which were left out."""
    interrupted: bool
    tally: Tally
    """Of all tokens; its columns are the concepts, then `randoms` directions for each layer, from the lowest on."""
    best: dict[tuple[str, str], Best]
    """(concept, "top" or "bottom") -> its best snippets."""
    randoms: int
    reference: str = OWN_CORPUS

    @property
    def tokens(self) -> int:
        """Tokens that were counted."""
        return self.tally.count

    @property
    def unit(self) -> str:
        """What the scores are, in words."""
        what = "of a text's mean" if self.by == "text" else "of its strongest token"
        return f"{unit_of(self.kind, self.reference)}; scores are those {what}"

    @property
    def snippets(self) -> pd.DataFrame:
        """One row per snippet: concept, layer, side, rank (from 1), score, text (its number), position, snippet."""
        rows = [
            (concept, self.layers[concept], side, rank, kept.score, kept.text, kept.position, kept.words)
            for (concept, side), best in self.best.items()
            for rank, kept in enumerate(best.ordered(), start=1)
        ]
        columns = ["concept", "layer", "side", "rank", "score", "text", "position", "snippet"]
        return pd.DataFrame(rows, columns=columns)

    @property
    def distribution(self) -> pd.DataFrame:
        """One row per concept, over all tokens: concept, layer, tokens, mean, std, lowest, q01 … q99, highest.

        Quantiles are right within half a percent of a standard deviation, or of their distance from the mean token.
        """
        tally = self.tally
        columns = {"mean": tally.mean, "std": tally.std, "lowest": tally.lowest}
        columns |= {f"q{round(100 * share):02d}": tally.quantile(share) for share in QUANTILES}
        columns |= {"highest": tally.highest}
        named = {"concept": list(self.layers), "layer": list(self.layers.values()), "tokens": self.tokens}
        return pd.DataFrame(
            named | {name: values[: len(self.layers)].numpy() for name, values in columns.items()}
        )

    @property
    def controls(self) -> pd.DataFrame:
        """One row per concept and side: concept, layer, side, tail, random, random_low, random_high, p.

        The tail is how many standard deviations from the mean the 99.9th percentile of tokens lies (the 0.1th, for the bottom);
        `random` is the mean tail of random directions at the same layer, with the 95 % interval of one more of them, `p` how
        often one has as long a tail, at the least 1 / (randoms + 1).
        """
        tally, depths = self.tally, sorted(set(self.layers.values()))
        rows = []
        for side, sign in SIDES.items():
            far = tally.quantile(TAIL if sign > 0 else 1 - TAIL)
            tails = (sign * (far - tally.mean) / tally.std).numpy()
            for column, (concept, layer) in enumerate(self.layers.items()):
                first = len(self.layers) + self.randoms * depths.index(layer)
                chance = tails[first : first + self.randoms]
                chance = chance[np.isfinite(chance)]
                tail = float(tails[column])
                held = np.isfinite(tail) and len(chance)
                p = (1 + (chance >= tail).sum()) / (1 + len(chance)) if held else np.nan
                mean = chance.mean() if len(chance) else np.nan
                rows.append((concept, layer, side, tail, mean, *prediction_interval(chance), p))
        columns = ["concept", "layer", "side", "tail", "random", "random_low", "random_high", "p"]
        return pd.DataFrame(rows, columns=columns)

    @property
    def frame(self) -> pd.DataFrame:
        """The controls: how far concepts' tails reach beside those of random directions."""
        return self.controls

    def plot(self) -> Figure:
        """Draw each concept's upper and lower tail beside where one more random direction's lies, 95 %."""
        with drawing.styled():
            figure, axes = drawing.panels(
                columns=len(SIDES), height=1.0 + 0.24 * len(self.layers), sharey=True
            )
            for axis, side in zip(axes[0], SIDES, strict=True):
                rows = self.controls[self.controls.side == side].reset_index(drop=True)
                axis.hlines(
                    rows.index, rows.random_low, rows.random_high, color=drawing.CONTROL, linewidth=5, alpha=0.5,
                    label="one more random direction, 95 %",
                )  # fmt: skip
                axis.plot(rows["tail"], rows.index, "o", label="concept")
                axis.set(xlabel="standard deviations from the mean", title=f"{side}: the {TAIL:.1%} tail")
            axes[0, 0].set_yticks(rows.index, rows.concept, parse_math=False)
            axes[0, 0].invert_yaxis()
            drawing.legend_below(figure, axes[0, 0])
        return figure

    def report(self) -> str:
        """Say how far each concept's tail stands out against those of random directions."""
        about = f"{self.texts} texts, {self.tokens} tokens" + (", interrupted" if self.interrupted else "")
        lines = [
            f"{about}; {self.randoms} random directions at each layer; no p allows for the number of concepts."
        ]
        lines += [_sentence(row) for row in self.controls.to_dict("records") if row["side"] == "top"]
        return "\n".join(lines)

    def __add__(self, other: CorpusScores) -> CorpusScores:
        """Return the scores of both corpora, the texts of the second numbered on from those of the first.

        Raises `InputError` where they were scored with other probes or options.
        """
        settings = [(s.layers, s.kind, s.by, s.highlight, s.randoms, s.reference) for s in (self, other)]
        sizes = [{best.size for best in scores.best.values()} for scores in (self, other)]
        if settings[0] != settings[1] or sizes[0] != sizes[1]:
            raise InputError(f"{self!r} and {other!r} were scored with other options, and do not add up")
        offset = self.texts + self.skipped
        best = {}
        for place, mine in self.best.items():
            best[place] = Best(mine.size, mine.sign, mine.grain)
            for snippet in mine.ordered():
                best[place].add(snippet)
            for snippet in other.best[place].ordered():
                best[place].add(replace(snippet, text=snippet.text + offset))
        return replace(
            self,
            texts=self.texts + other.texts,
            skipped=self.skipped + other.skipped,
            interrupted=self.interrupted or other.interrupted,
            tally=self.tally + other.tally,
            best=best,
        )

    def __repr__(self) -> str:
        return f"<CorpusScores of {self.texts} texts, {self.tokens} tokens: {', '.join(self.layers)}; {self.unit}>"

    def _repr_html_(self) -> str:
        blocks = []
        bounds = {
            side: self.tally.quantile(self.highlight if sign > 0 else 1 - self.highlight)
            for side, sign in SIDES.items()
        }
        for column, (concept, layer) in enumerate(self.layers.items()):
            blocks.append(f"<p><b>{escape(f'{concept}, layer {layer}')}</b></p>")
            for side, sign in SIDES.items():
                bound = float(bounds[side][column])
                lines = [marked(kept, bound, sign) for kept in self.best[concept, side].ordered()]
                blocks.append(f"<p>{side}</p><ol>{''.join(lines)}</ol>")
        caption = (
            f"{self.unit}. Marked: tokens beyond the {100 * self.highlight:g}th percentile of all tokens (at the bottom, below "
            f"the {100 * (1 - self.highlight):g}th)."
        )
        said = "".join(f"<p>{escape(line)}</p>" for line in self.report().splitlines())
        return f"<div>{''.join(blocks)}{said}<p><small>{escape(caption)}</small></p></div>"


def score_corpus(
    model: LiveModel,
    probes: ProbeSet,
    texts: Iterable[str],
    *,
    concepts: Sequence[str] | None = None,
    layer: int | float | None = None,
    kind: str = "z",
    by: str = "token",
    top: int = 20,
    window: int = 12,
    highlight: float = 0.9,
    reference: Reference | None = None,
    randoms: int = RANDOMS,
    seed: int = 0,
    batch_size: int = 32,
    workers: RayWorkers | None = None,
    progress: bool = False,
) -> CorpusScores:
    """Score texts with all concepts in one pass, and keep each concept's `top` highest and lowest snippets.

    `texts` may be any iterable, such as a generator over a corpus that fits into no memory; when it ends, or on a keyboard
    interrupt, what was found is returned. `concepts` are by default all, `layer` the best of each. `kind` and `reference` are
    as in `trace`. `by="token"` ranks a text by its strongest token, `by="text"` by its mean over tokens; a text gives at most
    one snippet per concept and side, `window` tokens either way from the strongest. Snippets that differ only in case, digits,
    spaces or punctuation are kept once. First tokens (attention sinks) are not scored, blank texts left out. Results depend
    neither on the order of the texts nor on `batch_size`, but for rounding. `highlight` is the quantile beyond which the HTML
    marks tokens; `randoms` directions are scored beside the concepts at each of their layers. `workers`, see
    `emoprobe.ray_workers`, score parts of the texts side by side. Raises `InputError` for options out of range, and as `trace`
    does.
    """
    check_kind(kind)
    _check_options(texts, by, top, window, highlight, randoms)
    probes.check_model(model)
    named = OWN_CORPUS if reference is None else reference.name
    probes = probes if reference is None else reference.applied_to(probes)
    layers = dict(concepts_and_layers(probes, concepts, layer))
    reader = _Reader(probes, layers, kind, randoms, seed)
    tally = Tally.zeros(reader.centres, reader.units)
    best = {
        (concept, side): Best(top, sign, GRAIN * float(unit))
        for concept, unit in zip(layers, tally.units, strict=False)
        for side, sign in SIDES.items()
    }
    nothing = CorpusScores(layers, kind, by, highlight, 0, 0, False, tally, best, randoms, named)
    score = partial(
        _added,
        scores=nothing,
        reader=reader,
        start=first_counted(probes),
        window=window,
        batch_size=batch_size,
    )
    if workers is None:
        found = score(model, texts, progress=progress)
    else:
        workers.check_model(model)
        found = workers.total(score, (window for _, window in windows(texts, batch_size)))
    if found.interrupted:
        warnings.warn(
            f"interrupted: these are the scores of {found.texts} texts; the last {batch_size * WINDOW} that were read are "
            "scored from the shortest on, and may not all be among them",
            stacklevel=2,
        )
    if not found.texts:
        raise InputError("no text was given")
    return found


def _added(
    model: LiveModel,
    texts: Iterable[str],
    scores: CorpusScores,
    reader: _Reader,
    start: int,
    window: int,
    batch_size: int,
    progress: bool = False,
) -> CorpusScores:
    """Return scores of nothing yet with those of texts added to their tally and their best."""
    scores = deepcopy(scores)  # a worker is given the same object with each piece
    numbered, read, interrupted = _Numbered(texts), 0, False
    try:
        for part in stream_residuals(
            model, numbered, reader.depths, batch_size=batch_size, progress=progress
        ):
            counted = part.counted(start).cpu()
            values = reader(part.by_layer)
            scores.tally.add(values[counted].double())
            numbers = [numbered.original(index) for index in part.indices]
            _keep(scores.best, list(scores.layers), model, part, counted, values, numbers, scores.by, window)
            read += len(numbers)
    except KeyboardInterrupt:
        if not read:
            raise
        interrupted = True
    return replace(scores, texts=read, skipped=numbered.skipped, interrupted=interrupted)


def _check_options(texts: object, by: str, top: int, window: int, highlight: float, randoms: int) -> None:
    if isinstance(texts, str):
        raise InputError("texts is one string: give a list or another iterable of texts")
    if by not in BY:
        raise InputError(f'by="{by}" is not understood: give one of {", ".join(BY)}')
    if top < 1 or window < 0:
        raise InputError(f"top={top}, window={window}: give at least 1 snippet and no fewer than 0 tokens")
    if not 0.5 <= highlight < 1:
        raise InputError(f"highlight={highlight}: give a quantile from 0.5 to less than 1")
    if randoms < 0:
        raise InputError(f"randoms={randoms}: give 0 or more")


class _Numbered:
    """Texts that are not blank, and which of all they are."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts, self._numbers, self.skipped = texts, {}, 0  # type: tuple[Iterable[str], dict[int, int], int]

    def __iter__(self) -> Iterator[str]:
        for number, text in enumerate(self._texts):
            if text.strip():
                self._numbers[number - self.skipped] = number
                yield text
            else:
                self.skipped += 1

    def original(self, index: int) -> int:
        """Return the number among all texts of the index-th that is not blank; each can be asked for once."""
        return self._numbers.pop(index)


class _Reader:
    """Reads concepts, each at its layer, and random directions at each of these: (…, columns)."""

    def __init__(self, probes: ProbeSet, layers: dict[str, int], kind: str, randoms: int, seed: int) -> None:
        self.kind, self.depths = kind, sorted(set(layers.values()))
        self._concepts = list(layers)
        self._at = {depth: [name for name in layers if layers[name] == depth] for depth in self.depths}
        self._sets = {
            depth: (probes, random_probes(probes, names[0], randoms, seed))
            for depth, names in self._at.items()
        }
        columns = [(probes, name, layer) for name, layer in layers.items()]
        columns += [
            (turned, name, depth) for depth, (_, turned) in self._sets.items() for name in turned.concepts
        ]
        self.centres = torch.tensor([centre(found, name, layer, kind) for found, name, layer in columns])
        self.units = torch.tensor([_spread(found, name, layer, kind) for found, name, layer in columns])

    def __call__(self, stream: Sequence[Tensor]) -> Tensor:
        """Read layers, each (batch, position, d_model), out: float32 (batch, position, columns), on the CPU."""
        own: dict[str, Tensor] = {}
        random = []
        for depth, at in zip(self.depths, stream, strict=True):
            probes, turned = self._sets[depth]
            found = read_stream(probes, at, depth, self.kind, self._at[depth])
            own.update(zip(self._at[depth], found.unbind(-1), strict=True))
            random.append(read_stream(turned, at, depth, self.kind))
        return torch.cat([torch.stack([own[name] for name in self._concepts], -1), *random], -1).cpu()


def _spread(probes: ProbeSet, concept: str, layer: int, kind: str) -> float:
    """Return about how much a concept's values vary over tokens, for the bins of a histogram."""
    row, column = probes.layer_index(layer), probes.concept_index(concept)
    if "cosine" in kind:
        return float(probes.d_model**-0.5)
    std = float(probes.reference_std[row, column])
    return {"z": 1.0, "dot": std, "read_out": std * abs(float(probes.scale[row, column]))}[kind]


def _keep(
    best: dict[tuple[str, str], Best],
    concepts: Sequence[str],
    model: LiveModel,
    part: Residuals,
    counted: Tensor,
    values: Tensor,
    numbers: Sequence[int],
    by: str,
    window: int,
) -> None:
    """Offer each text of a batch to the best of each concept; only those that may belong there are cut out."""
    values = values[..., : len(concepts)]
    for side, sign in SIDES.items():
        strongest = (sign * values).where(counted[..., None], -torch.inf).max(1)  # over tokens
        scores = strongest.values
        if by == "text":
            summed = values.where(counted[..., None], 0).sum(1)
            scores = sign * summed / counted.sum(1, keepdim=True)
        floors = torch.tensor([best[concept, side].floor for concept in concepts])
        for row, column in (scores >= floors).nonzero().tolist():
            place = int(strongest.indices[row, column])
            pieces = cut_out(model, part, row, place, values[row, :, column].tolist(), window)
            position = place - int((~part.batch.real[row]).sum())  # padding is on the left
            score = sign * float(scores[row, column])
            best[concepts[column], side].add(Snippet(numbers[row], score, position, pieces))


def _sentence(row: dict[Any, Any]) -> str:
    far = f"{row['concept']} (layer {row['layer']}): the 99.9th percentile of tokens lies {row['tail']:.1f} standard deviations"
    if not np.isfinite(row["tail"]):
        return f"{row['concept']} (layer {row['layer']}): reads the same at all tokens."
    if not np.isfinite(row["p"]):
        return f"{far} above the mean; held against nothing."
    held = "longer than" if row["p"] <= 0.05 else "not shown to be longer than"
    return (
        f"{far} above the mean; one more random direction may be expected to give {row['random_low']:.1f} to "
        f"{row['random_high']:.1f} (95 %), p = {row['p']:.3f}: {held} those of random directions."
    )
