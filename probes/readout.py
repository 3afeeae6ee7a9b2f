"""Reading probes out along the tokens of a text.

`trace` gives one number per token, concept and layer, in one of five units; which one is always said. Two of these, z-scores
and centred cosines, are about how a corpus's tokens lie: those that the probes were fitted on, or those of a `reference`. This
file knows nothing of how probes are fitted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from emoprobe.activations import stream_residuals, widened
from emoprobe.controls import turned_at_random
from emoprobe.errors import InputError
from emoprobe.interventions import Span
from emoprobe.layers import Layers, resolve_layers
from emoprobe.models.live import Batch, LiveModel
from emoprobe.probes.lens import logit_lens as logit_lens  # where it once stood
from emoprobe.probes.probe_set import ProbeSet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from emoprobe.probes.reference_corpus import Reference

UNITS = {
    "read_out": "read-out (the annotation's units; logits for labels)",
    "dot": "u·x",
    "cosine": "cosine of u and x",
    "centred_cosine": "cosine of u and x minus the mean token",
    "z": "standard deviations of u·x from the mean token",
}
OWN_CORPUS = "the probes' corpus"
ABOVE, BELOW = (213, 94, 0), (0, 114, 178)
"""Vermilion and blue of Okabe and Ito, which everyone can tell apart."""


@dataclass(frozen=True, eq=False, repr=False)
class Trace:
    """Hold read-outs along the tokens of one or several texts; `trace` makes one."""

    texts: tuple[str, ...]
    kind: str
    frame: pd.DataFrame
    """One row per text, token, concept and layer: text (its number), position, token, start, end (its characters in the text,
    -1 where the tokenizer does not say; equal for special tokens), concept, layer, kind, value."""
    centres: dict[tuple[str, int], float]
    """(concept, layer) -> the value that is shown uncoloured: that of the corpus's mean token, or 0 where there is none."""
    start: int = 1
    """Tokens before this one do not set the scale of colours: in most models the first token is an attention sink."""
    reference: str = OWN_CORPUS
    """The corpus whose mean token and spread the values are about."""
    window: int = 1
    """Tokens that each value is the mean of, see `smoothed`."""

    @property
    def unit(self) -> str:
        """What the values are, in words."""
        over = f"; mean of {self.window} tokens" if self.window > 1 else ""
        return unit_of(self.kind, self.reference) + over

    def __repr__(self) -> str:
        pairs = ", ".join(f"{concept} at layer {layer}" for concept, layer in self.centres)
        tokens = len(self.frame) // max(1, len(self.centres))
        return f"<Trace of {len(self.texts)} texts, {tokens} tokens: {pairs}; {self.unit}>"

    def smoothed(self, window: int) -> Trace:
        """Return the trace with each value replaced by the mean over `window` tokens around it, for display.

        Fewer at the ends of a text; tokens before `start` are left as they are and have no part in the others. What is shown
        says so. Raises `InputError` unless `window` is odd and positive, and for a trace that is smoothed already.
        """
        if window < 1 or window % 2 == 0:
            raise InputError(f"window={window}: give an odd number of tokens, so that each is in the middle")
        if self.window > 1:
            raise InputError(
                f"this trace is a mean of {self.window} tokens already: smooth the one it was made of"
            )
        later = self.frame[self.frame.position >= self.start]
        along = later.groupby(["text", "concept", "layer"], sort=False).value
        means = along.rolling(window, center=True, min_periods=1).mean().droplevel([0, 1, 2])
        values = self.frame.value.copy()
        values[means.index] = means
        return replace(self, frame=self.frame.assign(value=values), window=window)

    def coloured(self) -> pd.DataFrame:
        """Return the frame with a column `colour` in [-1, 1]: how far above or below its centre each value is shown."""
        frames = []
        for (concept, layer), centre in self.centres.items():
            part = self.frame[(self.frame.concept == concept) & (self.frame.layer == layer)]
            away = part.value - centre
            scale = away[part.position >= self.start].abs()
            reach = float(scale.quantile(0.99)) if len(scale) else float(away.abs().max())
            frames.append(part.assign(colour=(away / reach).clip(-1, 1) if reach > 0 else 0.0))
        return pd.concat(frames, ignore_index=True)

    def _repr_html_(self) -> str:
        coloured = self.coloured()
        rows = []
        for number, text in enumerate(self.texts):
            for concept, layer in self.centres:
                of_text = coloured[
                    (coloured.text == number) & (coloured.concept == concept) & (coloured.layer == layer)
                ]
                rows.append(_row(text, _titled((concept, layer)), of_text))
        caption = (
            f"{self.unit}. Orange: above, blue: below {self.centre_in_words}; the strongest colour is the 99th "
            "percentile of each row's concept."
        )
        return f'<div style="line-height:1.7">{"".join(rows)}<p><small>{escape(caption)}</small></p></div>'

    @property
    def centre_in_words(self) -> str:
        """What is shown uncoloured."""
        return f"the mean token of {self.reference}" if self.kind in ("read_out", "dot") else "0"

    def plot(self, text: int = 0) -> Figure:
        """Draw one text: tokens from left to right, one line of coloured fields per concept and layer."""
        from emoprobe import drawing

        part = self.coloured()
        part = part[part.text == text]
        if part.empty:
            raise InputError(f"text {text} is not in this trace: it has 0 to {len(self.texts) - 1}")
        tokens = part.drop_duplicates("position").sort_values("position").token.map(visible).tolist()
        field = np.stack(
            [part[(part.concept == c) & (part.layer == layer)].colour.to_numpy() for c, layer in self.centres]
        )
        with drawing.styled():
            width, height = max(4.0, 0.2 * len(tokens) + 2), 0.35 * len(field) + 1.6
            figure = drawing.Picture(figsize=(width, height), layout="constrained")
            axes = figure.subplots()
            image = axes.imshow(field, cmap=drawing.DIVERGING, vmin=-1, vmax=1, aspect="auto")
            axes.set_xticks(range(len(tokens)), tokens, rotation=90, parse_math=False)
            axes.set_yticks(range(len(field)), [_titled(pair) for pair in self.centres], parse_math=False)
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            axes.set_title(self.unit)
            figure.colorbar(image, ax=axes, label=f"away from {self.centre_in_words}")
        return figure


def trace(
    model: LiveModel,
    probes: ProbeSet,
    text: str | Sequence[str],
    *,
    concepts: Sequence[str] | None = None,
    layers: Layers | None = None,
    kind: str = "read_out",
    reference: Reference | None = None,
    batch_size: int = 32,
) -> Trace:
    """Read probes out at every token of one text or several.

    `concepts` are by default all, `layers` the best one of each concept. `kind` is "read_out" (in the annotation's units, or
    logits), "dot" (u·x), "cosine" (of u and x), "centred_cosine" (of u and x less the mean token) or "z" (u·x in standard
    deviations over tokens from the mean token). Mean and spread are those of the tokens that the probes were fitted on, or of a
    `reference`. Values of a text do not depend on the texts beside it. Raises `InputError` for an unknown concept, layer or
    kind, a reference of other probes, and a model of another shape than the probes'; warns of one with other weights.
    """
    check_kind(kind)
    probes.check_model(model)
    probes = probes if reference is None else reference.applied_to(probes)
    texts = (text,) if isinstance(text, str) else tuple(text)
    if not texts:
        raise InputError("no text was given")
    pairs = concepts_and_layers(probes, concepts, layers)
    wanted = sorted({layer for _, layer in pairs})
    frames: dict[int, pd.DataFrame] = {}
    for part in stream_residuals(model, texts, wanted, batch_size=batch_size):
        read = [
            read_stream(probes, part.by_layer[wanted.index(layer)], layer, kind, [concept])[..., 0]
            for concept, layer in pairs
        ]
        values = torch.stack(read).cpu()
        for row, index in enumerate(part.indices):
            tokens = tokens_of(model, part.batch, row)
            real = part.batch.real[row].cpu()
            frames[index] = _frame(index, tokens, pairs, kind, values[:, row, real])
    ordered = pd.concat([frames[index] for index in range(len(texts))], ignore_index=True)
    centres = {pair: centre(probes, *pair, kind) for pair in pairs}
    named = OWN_CORPUS if reference is None else reference.name
    return Trace(texts, kind, ordered, centres, first_counted(probes), named)


def concepts_and_layers(
    probes: ProbeSet, concepts: Sequence[str] | None, layers: Layers | None
) -> list[tuple[str, int]]:
    """Return what is read: each concept, by default all, at its best layer or at each of `layers` ("all": all probed)."""
    names = (
        [concepts] if isinstance(concepts, str) else list(probes.concepts if concepts is None else concepts)
    )
    names = list(dict.fromkeys(names))
    for name in names:
        probes.concept_index(name)
    if layers is None:
        return [(name, probes.best_layer(name)) for name in names]
    chosen = probes.layers if layers == "all" else resolve_layers(layers, probes.n_layers)
    for layer in chosen:
        probes.layer_index(layer)
    return [(name, layer) for name in names for layer in chosen]


def read_stream(
    probes: ProbeSet,
    stream: Tensor,
    layer: int | float,
    kind: str = "read_out",
    concepts: Sequence[str] | None = None,
) -> Tensor:
    """Read a residual stream (…, d_model) at `layer` out in one of the units of `trace`: (…, concepts).

    Computed in float32, or in float64 where the stream is. Raises `InputError` for an unknown concept, layer or kind.
    """
    check_kind(kind)
    row = probes.layer_index(layer)
    columns = [probes.concept_index(name) for name in (probes.concepts if concepts is None else concepts)]
    x = widened(stream)
    mean = probes.reference_mean[row].to(x)
    directions, scale, offset, spread = (
        part[row, columns].to(x)
        for part in (probes.directions, probes.scale, probes.offset, probes.reference_std)
    )
    if kind in ("centred_cosine", "z"):
        x = x - mean
    along = x @ directions.T
    if kind == "read_out":
        return scale * along + offset
    if kind == "dot":
        return along
    if kind == "z":
        return along / spread.clamp(min=torch.finfo(x.dtype).tiny)  # 0 where there is no direction
    lengths: Tensor = x.norm(dim=-1, keepdim=True) * directions.norm(dim=-1)
    return along / lengths.clamp(min=torch.finfo(x.dtype).tiny)


def check_kind(kind: str) -> None:
    """Raise `InputError` for a unit that there is not."""
    if kind not in UNITS:
        raise InputError(f'kind="{kind}" is not understood: give one of {", ".join(UNITS)}')


def unit_of(kind: str, reference: str = OWN_CORPUS) -> str:
    """Return a unit in words, with the corpus that it is about."""
    return f"{UNITS[kind]} of {reference}" if kind in ("z", "centred_cosine") else UNITS[kind]


def first_counted(probes: ProbeSet) -> int:
    """Return the position of the first token that belongs into statistics."""
    return int(probes.metadata.get("start", 1))


def centre(probes: ProbeSet, concept: str, layer: int, kind: str) -> float:
    """Return what a concept reads at the mean token, or 0 where the unit is about it already."""
    if kind not in ("read_out", "dot"):
        return 0.0
    mean = probes.reference_mean[probes.layer_index(layer)]
    return float(read_stream(probes, mean, layer, kind, [concept]))


def tokens_of(model: LiveModel, batch: Batch, row: int) -> list[tuple[str, int, int]]:
    """Return (token, start, end) of the real tokens of one text."""
    ids = batch.input_ids[row][batch.real[row]].tolist()
    names = [str(name) for name in model.tokenizer.convert_ids_to_tokens(ids)]
    if batch.offsets is None:
        return [(name, -1, -1) for name in names]
    spans = batch.offsets[row][-len(ids) :]
    return [
        (batch.texts[row][start:end] if start < end else name, start, end)
        for name, (start, end) in zip(names, spans, strict=True)
    ]


def _frame(
    index: int, tokens: list[tuple[str, int, int]], pairs: list[tuple[str, int]], kind: str, values: Tensor
) -> pd.DataFrame:
    names, starts, ends = zip(*tokens, strict=True)
    shared = {"text": index, "position": range(len(tokens)), "token": names, "start": starts, "end": ends}
    parts = [
        pd.DataFrame(
            {**shared, "concept": concept, "layer": layer, "kind": kind, "value": row.double().numpy()}
        )
        for (concept, layer), row in zip(pairs, values, strict=True)
    ]
    return pd.concat(parts, ignore_index=True)


def _row(text: str, title: str, tokens: pd.DataFrame) -> str:
    """Return the HTML of one text under one concept: its own characters, coloured token by token."""
    written, records = [], tokens.to_dict("records")
    for characters, number in pieces(text, [(token["start"], token["end"]) for token in records]):
        if number is None:
            written.append(escape(characters))
            continue
        token = records[number]
        shown = characters or ("·" if token["end"] > token["start"] else token["token"])
        written.append(
            f'<span style="{shade(token["colour"])}" title="{token["value"]:.3g}">{escape(shown)}</span>'
        )
    return f'<div style="white-space:pre-wrap"><b>{escape(title)}</b>  {"".join(written)}</div>'


def pieces(text: str, spans: Sequence[Span]) -> Iterator[tuple[str, int | None]]:
    """Cut a text where tokens begin and end: yield characters and the token, by its number in `spans`, that holds them.

    Characters in no token have None. A token without characters of its own has "": a special one, a further byte of the
    character before, or any where the tokenizer does not say where tokens lie (all ends -1; then they are all there is).
    """
    end = 0
    for number, (start, stop) in enumerate(spans):
        if start > end:
            yield text[end:start], None
        yield text[max(end, start) : max(end, stop)], number
        end = max(end, stop)
    if any(stop >= 0 for _, stop in spans):
        yield text[end:], None


def shade(colour: float) -> str:
    """Return the CSS of a ground for a colour in [-1, 1]."""
    red, green, blue = ABOVE if colour > 0 else BELOW
    return f"background:rgba({red},{green},{blue},{0.6 * abs(colour):.2f})"


def _titled(pair: tuple[str, int]) -> str:
    return f"{pair[0]}, layer {pair[1]}"


def visible(token: str) -> str:
    """Return a token as it can be written below an axis."""
    return token.replace("\n", "⏎").strip(" ") or "␣"


# A control -----------------------------------------------------------------------------------------------------------


def random_probes(probes: ProbeSet, concept: str, times: int, seed: int = 0) -> ProbeSet:
    """Return probes along random directions, the control of what a concept reads: its own turned at random `times` times.

    Norms, angles between layers, scales, offsets and spreads stay the concept's.
    """
    column = probes.concept_index(concept)
    own = probes.directions[:, column]
    turned = [turned_at_random(own, seed * times + number) for number in range(times)]
    again = [column] * times
    return replace(
        probes,
        concepts=tuple(f"random {number}" for number in range(times)),
        directions=torch.stack([own, *turned], dim=1)[:, 1:],
        scale=probes.scale[:, again],
        offset=probes.offset[:, again],
        reference_std=probes.reference_std[:, again],
    )
