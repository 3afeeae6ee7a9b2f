"""The valuation function v = tanh(W·[x; e] + b), one per block.

x is the residual stream that enters the block, e an optional emotion embedding of the token. tanh bounds every dimension
to (-1, 1); a dimension that people rate on another range is read out on it by `read_out`, while attention always uses v
itself. A `Valuation` knows nothing of models or attention: `emoprobe.valattn.injection` puts it into one.

Source: J. Marín, "Emotion-Informed Valuation Mechanism for Improved AI Alignment in Large Language Models" (2024); where
it is silent, the decisions are stated at the place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from emoprobe.artefacts import read_artefact, write_artefact
from emoprobe.checks import check_names, check_record, check_tensors, reading
from emoprobe.controls import turned_at_random
from emoprobe.errors import InputError
from emoprobe.layers import Layers, resolve_layers

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from emoprobe.probes import ProbeSet

VERSION = 1
TENSORS = ("weight", "bias", "embedding", "strength", "centre")
Range = tuple[float, float]


def valuate(weight: Tensor, bias: Tensor, stream: Tensor, emotions: Tensor | None = None) -> Tensor:
    """Return tanh(W·[x; e] + b), float (…, m), for W (m, d_model + d_e), b (m,) and streams (…, d_model)."""
    return torch.tanh(affine(weight, bias, stream, emotions))


def affine(weight: Tensor, bias: Tensor, stream: Tensor, emotions: Tensor | None = None) -> Tensor:
    """Return what goes into the tanh: W·[x; e] + b, float (…, m); see `valuate`."""
    dtype, width = torch.promote_types(stream.dtype, torch.float32), stream.shape[-1]
    x, weight, bias = _at(stream, stream, dtype), _at(weight, stream, dtype), _at(bias, stream, dtype)
    extra = weight.shape[-1] - width
    if extra < 0 or (emotions is not None and extra != emotions.shape[-1]):
        given = width if emotions is None else f"{width} + {emotions.shape[-1]}"
        raise InputError(
            f"this valuation reads {weight.shape[-1]} numbers per token, but the model gives {given}"
        )
    read = linear(x, weight[:, :width] if extra else weight, bias)
    if emotions is not None:
        read = read + _at(emotions, stream, dtype) @ weight[:, width:].T
    return read


def _at(tensor: Tensor, other: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor beside another one, in a dtype; to ask first takes a third of the time where it is so already."""
    if tensor.dtype == dtype and tensor.device == other.device:
        return tensor
    return tensor.to(other.device, dtype)


@dataclass(frozen=True, eq=False)
class Valuation:
    """Valuations in m dimensions for some of a model's blocks.

    `weight` is (layers, m, d_model + d_e), `bias` (layers, m); `layers` names the blocks they belong to. `embedding`
    (vocab, d_e) gives each token its emotion embedding; without it e is what the user hands to `inject`, or nothing
    (d_e = 0). `strength` is a learned λ: shape (), (layers,) or (layers, heads). `ranges` says on which scale people read a
    dimension, by default [-1, 1]. `centre` (layers, d_model) is the mean residual vector that the bias takes away, where it is
    known; random controls are centred there too. `basis` names the coordinates of the residual stream that it reads, see
    `LiveModel.basis`; None, where it reads nothing off the stream, fits all.
    """

    weight: Tensor
    bias: Tensor
    dimensions: tuple[str, ...]
    layers: tuple[int, ...]
    embedding: Tensor | None = None
    strength: Tensor | None = None
    ranges: Mapping[str, Range] = field(default_factory=dict)
    centre: Tensor | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    basis: str | None = "raw"

    def __post_init__(self) -> None:
        object.__setattr__(self, "dimensions", tuple(self.dimensions))
        object.__setattr__(self, "layers", tuple(self.layers))
        expected = (len(self.layers), len(self.dimensions))
        if self.weight.dim() != 3 or self.weight.shape[:2] != expected or self.bias.shape != expected:
            raise InputError(
                f"a valuation of {expected[1]} dimensions in {expected[0]} layers needs weight (layers, m, d_model) and bias "
                f"(layers, m), not {tuple(self.weight.shape)} and {tuple(self.bias.shape)}"
            )
        check_tensors({f"a valuation's {name}": tensor for name, tensor in self.tensors.items()})
        strength, embedding, centre = self.strength, self.embedding, self.centre
        if strength is not None and (
            strength.dim() > 2 or strength.shape[:1] not in ((), (len(self.layers),))
        ):
            raise InputError(f"λ is a number or (layers,) or (layers, heads), not {tuple(strength.shape)}")
        if embedding is not None and (embedding.dim() != 2 or embedding.shape[1] >= self.weight.shape[2]):
            raise InputError(f"emotion embeddings are (vocab, d_e), not {tuple(embedding.shape)}")
        if centre is not None and (centre.dim() != 2 or len(centre) != len(self.layers)):
            raise InputError(f"a valuation's centre is (layers, d_model), not {tuple(centre.shape)}")

    @property
    def m(self) -> int:
        """Number of dimensions of the valuation space."""
        return len(self.dimensions)

    def values(self, stream: Tensor, layer: int, emotions: Tensor | None = None) -> Tensor:
        """Return v = tanh(W·[x; e] + b), float (…, m) in (-1, 1), for the stream (…, d_model) entering block `layer`.

        `emotions` is e, (…, d_e); where the valuation has columns for it and none is given, e is zero. Computed in float32,
        or in float64 where the stream is.
        """
        row = self._row(layer)
        return valuate(self.weight[row], self.bias[row], stream, emotions)

    def read_out(self, values: Tensor) -> Tensor:
        """Map valuations (…, m) in (-1, 1) to the ranges on which people read the dimensions."""
        low, high = torch.tensor([self.ranges.get(name, (-1.0, 1.0)) for name in self.dimensions]).T.to(
            values
        )
        read: Tensor = low + (values + 1) / 2 * (high - low)
        return read

    def select(self, layers: Layers, n_layers: int) -> Valuation:
        """Return the valuation of some of its layers. Raises `InputError` for a layer it does not have."""
        rows = [self._row(layer) for layer in resolve_layers(layers, n_layers, blocks=True)]
        strength = self.strength if self.strength is None or self.strength.dim() == 0 else self.strength[rows]
        return replace(
            self,
            weight=self.weight[rows],
            bias=self.bias[rows],
            layers=tuple(self.layers[row] for row in rows),
            strength=strength,
            centre=None if self.centre is None else self.centre[rows],
        )

    def random_like(self, seed: int) -> Valuation:
        """Return a valuation whose rows are turned at random: norms and angles between rows kept, centred at the same point.

        How far tokens spread along a row is not kept, so a control may be further from, or nearer to, saturation. What it makes
        of emotion embeddings stays, and their table is shuffled among the tokens that it says something of. Raises
        `InputError` for a valuation that reads nothing but annotations: shuffle these.
        """
        width = self._stream_width()
        if self.embedding is None and not self.weight[..., :width].any():
            raise InputError(
                "a valuation that reads annotations alone has none at random: shuffle the annotations among tokens"
            )
        turned = turned_at_random(self.weight[..., :width], seed)
        weight = torch.cat([turned, self.weight[..., width:].detach().to(turned)], dim=-1)
        bias = self.bias.detach()
        if self.centre is not None:
            bias = -torch.einsum("lmd,ld->lm", weight[..., : self.centre.shape[-1]], self.centre.to(weight))
        embedding = None if self.embedding is None else _shuffled(self.embedding.detach(), seed)
        record = {"source": "random", "seed": seed}
        return replace(self, weight=weight, bias=bias, embedding=embedding, metadata=record)

    def widened(self, width: int) -> Valuation:
        """Return the same valuation with columns for emotion embeddings of this width: dimension k reads their coordinate k.

        So e says nothing as long as it is zero, and gets a gradient at once. One that has such columns is given back.
        """
        if self.weight.shape[-1] > self._stream_width():
            return self
        columns = torch.eye(self.m, width).to(self.weight).expand(len(self.layers), -1, -1)
        return replace(self, weight=torch.cat([self.weight, columns], dim=-1))

    @classmethod
    def from_probes(
        cls,
        probes: ProbeSet,
        concepts: Sequence[str] | None = None,
        *,
        gain: float = 1.0,
        layers: Layers | None = None,
    ) -> Valuation:
        """Make a valuation out of probes: row k of W is the direction of concept k.

        It is scaled and shifted so that W·x + b is the read-out standardised over the tokens of the probes' corpus (mean 0,
        standard deviation `gain` there). `layers` are blocks, by default all that the probes have.
        """
        n_layers = int(probes.n_layers)
        blocks = [layer for layer in probes.layers if layer < n_layers]
        wanted = blocks if layers is None else resolve_layers(layers, n_layers, blocks=True)
        missing = [layer for layer in wanted if layer not in blocks]
        if missing or not wanted:
            raise InputError(
                f"the probes have no directions for layers {missing}: they were fitted at {list(probes.layers)}"
            )
        names = tuple(concepts if concepts is not None else probes.concepts)
        columns = [probes.concept_index(name) for name in names]
        rows = [probes.layers.index(layer) for layer in wanted]
        directions = probes.directions[rows][:, columns]
        deviation = probes.reference_std[rows][:, columns]
        centre = probes.reference_mean[rows]
        if not (deviation > 0).all():
            row, column = (deviation <= 0).nonzero()[0].tolist()
            raise InputError(
                f"the probe of {names[column]} at layer {wanted[row]} reads the same off every token, so it values nothing: "
                "leave out the concept or the layer"
            )
        weight = gain * directions / deviation[..., None]
        ranges = {name: probes.ranges[name] for name in names if name in probes.ranges}
        return cls(
            weight,
            -torch.einsum("lmd,ld->lm", weight, centre),
            names,
            tuple(wanted),
            ranges=ranges,
            centre=centre,
            metadata={
                "source": "probes",
                "gain": gain,
                "model": probes.model,
                "seed": probes.metadata.get("seed"),
            },
            basis=probes.basis,
        )

    @classmethod
    def annotated(
        cls,
        d_model: int,
        layers: Sequence[int],
        dimensions: Sequence[str],
        *,
        gain: float = 1.0,
        **ranges: Range,
    ) -> Valuation:
        """Make a valuation that looks at the emotion embedding only: v = tanh(gain·e), whatever x is."""
        m = len(dimensions)
        weight = torch.cat([torch.zeros(m, d_model), gain * torch.eye(m)], dim=-1).repeat(len(layers), 1, 1)
        bias = torch.zeros(len(layers), m)
        return cls(
            weight,
            bias,
            tuple(dimensions),
            tuple(layers),
            ranges=ranges,
            centre=torch.zeros(len(layers), d_model),
            metadata={"source": "annotations"},
            basis=None,
        )

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name, as far as it has them: weight, bias, embedding, strength, centre."""
        named = {name: getattr(self, name) for name in TENSORS}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Valuation:
        """Return a valuation with these tensors, by the names of `tensors`, in place of its own."""
        named: dict[str, Any] = dict(tensors)
        return replace(self, **named)

    def with_record(self, *, metadata: Mapping[str, Any], basis: str | None) -> Valuation:
        """Return the valuation with another account of where it comes from and of what it reads."""
        return replace(self, metadata=metadata, basis=basis)

    @property
    def record(self) -> dict[str, Any]:
        """All else that it is, as JSON can hold it."""
        return {
            "dimensions": list(self.dimensions),
            "layers": list(self.layers),
            "ranges": {name: list(span) for name, span in self.ranges.items()},
            "metadata": dict(self.metadata),
            "basis": self.basis,
        }

    @classmethod
    def from_record(cls, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> Valuation:
        """Put together what `tensors` and `record` have taken apart. Raises `InputError` where something is missing."""
        check_record(record, {"dimensions": [str], "layers": [int], "ranges": dict, "metadata": dict})
        check_names(record["dimensions"])
        if min(record["layers"], default=0) < 0 or len(set(record["layers"])) < len(record["layers"]):
            raise InputError(f"blocks {record['layers']} of a valuation are none, or there twice")
        try:
            return cls(
                **tensors,
                dimensions=tuple(record["dimensions"]),
                layers=tuple(record["layers"]),
                ranges={name: (float(low), float(high)) for name, (low, high) in record["ranges"].items()},
                metadata=record["metadata"],
                basis=record.get("basis", "raw"),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"this is not a whole valuation: {error}") from error

    def save(self, path: str | Path) -> Path:
        """Write the valuation to one `.safetensors` file."""
        return write_artefact(path, "valuation", VERSION, self.tensors, self.record)

    @classmethod
    def load(cls, path: str | Path) -> Valuation:
        """Read a valuation that `save` wrote. Raises `InputError` for any other file."""
        tensors, record = read_artefact(path, "valuation", VERSION)
        with reading(path, "valuation"):
            return cls.from_record(tensors, record)

    def _stream_width(self) -> int:
        """Return how many of the columns are for the residual stream; all, where nothing says otherwise."""
        if self.centre is not None:
            return self.centre.shape[-1]
        return self.weight.shape[-1] - (0 if self.embedding is None else self.embedding.shape[-1])

    def _row(self, layer: int) -> int:
        if layer not in self.layers:
            raise InputError(f"this valuation has no layer {layer}: it has {list(self.layers)}")
        return self.layers.index(layer)

    @property
    def frame(self) -> pd.DataFrame:
        """One row per block and dimension: layer, dimension, norm (of the row of W), bias, strength (the block's mean |λ|)."""
        import pandas as pd

        size = (len(self.layers), self.m)
        lam = torch.tensor(torch.nan) if self.strength is None else self.strength.detach().abs().cpu()
        by_block = lam.reshape(len(lam), -1).mean(-1, keepdim=True) if lam.dim() else lam
        columns = {"norm": self.weight.norm(dim=-1), "bias": self.bias, "strength": by_block.expand(size)}
        return pd.DataFrame(
            {
                "layer": np.repeat(self.layers, self.m),
                "dimension": self.dimensions * len(self.layers),
                **{name: tensor.detach().cpu().flatten().numpy() for name, tensor in columns.items()},
            }
        )

    def plot(self) -> Figure:
        """Draw the norm of each dimension's row by block, and λ where it was learned."""
        from emoprobe import drawing

        learned = self.strength is not None
        with drawing.styled():
            figure, axes = drawing.panels(columns=1 + learned)
            for (name, rows), colour in zip(
                self.frame.groupby("dimension", sort=False), cycle(drawing.PALETTE), strict=False
            ):
                drawing.line(axes[0, 0], rows.layer, rows.norm, label=str(name), colour=colour)
            axes[0, 0].set(ylabel="norm of the row of W")
            if learned:
                blocks = self.frame.drop_duplicates("layer")
                drawing.line(axes[0, 1], blocks.layer, blocks.strength)
                axes[0, 1].set(ylabel="mean |λ| over heads")
            for axis in axes[0]:
                axis.set(xlabel="block", ylim=(0, None))
                axis.xaxis.get_major_locator().set_params(integer=True)
            drawing.legend_below(figure, axes[0, 0])
        return figure

    def _repr_html_(self) -> str:
        from emoprobe.notebook import shown

        return shown(repr(self), self.plot(), self.frame)

    def __repr__(self) -> str:
        source = self.metadata.get("source", "tensors")
        return f"<Valuation from {source}: {', '.join(self.dimensions)}; blocks {list(self.layers)}>"


def _shuffled(table: Tensor, seed: int) -> Tensor:
    """Return a table (vocab, d_e) in which the tokens that have an embedding, other than 0, have each other's."""
    known = table.any(-1).nonzero()[:, 0]
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed)).to(known)
    shuffled = table.clone()
    shuffled[known] = table[known[order]]
    return shuffled
