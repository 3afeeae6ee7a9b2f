"""The emotion stream: emotion embeddings carried from block to block beside the residual stream, each changing the other.

    v_l = tanh(W_l·[x_l; e_l] + b_l)                       what x feels of e, through attention: λ·V_Q·V_Kᵀ
    a_l = Softmax(Q_l e_l · (K_l e_l)ᵀ / √d_e) · V_l e_l   what e sees of earlier tokens' e
    e_{l+1} = e_l + B_l·gelu(A_l·[x_l / |x_l|; e_l + a_l] + c_l) + d_l

x_l is the residual stream that enters block l, |x_l| its standard deviation once its mean is taken off (layer norm without a
gain, as blocks normalise what they read), e_0 what a table or annotations say of the token, or 0. The attention over e is
causal and sees no padding. With B = d = 0 nothing is carried, and this is the plain valuation with e_0. Uncoupled, A has no
columns for x, so that e never hears of it.

Source: decision and comments in J. Marín's thread ("the semantic and the emotional stream … update each other iteratively"); it
gives no formula, so these are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear

from emoprobe.artefacts import read_artefact, write_artefact
from emoprobe.checks import check_tensors, reading
from emoprobe.errors import InputError
from emoprobe.interventions import Forward
from emoprobe.models.past import remember
from emoprobe.valattn.attention import val_attention
from emoprobe.valattn.embeddings import Emotions
from emoprobe.valattn.valuation import Valuation, valuate

VERSION = 1
CARRYING = ("query", "key", "value", "inner", "inner_bias", "outer", "outer_bias")
UNSEEN = -1e9
"""What is added to the scores of padding; its weight is then exactly 0 in float32."""
_RUNS = count()  # tells apart what several streams keep in one KV cache


@dataclass(frozen=True, eq=False)
class EmotionStream:
    """Valuations of consecutive blocks, and what carries e from each of these blocks to the next.

    `valuation` holds W, b, λ and e_0's table. The rest, all with one row fewer than there are blocks, are Q, K and V: `query`,
    `key`, `value` (updates, d_e, d_e); A and c: `inner` (updates, hidden, d_model + d_e, or d_e where uncoupled), `inner_bias`
    (updates, hidden); B and d: `outer` (updates, d_e, hidden), `outer_bias` (updates, d_e).
    """

    valuation: Valuation
    query: Tensor
    key: Tensor
    value: Tensor
    inner: Tensor
    inner_bias: Tensor
    outer: Tensor
    outer_bias: Tensor

    def __post_init__(self) -> None:
        layers, width = self.valuation.layers, self.width
        if layers != tuple(range(layers[0], layers[0] + len(layers))):
            raise InputError(
                f"an emotion stream runs through consecutive blocks, but its valuation has {list(layers)}: choose some"
            )
        updates, hidden = len(layers) - 1, self.inner.shape[1]
        reads = width if self.inner.shape[-1] == width else self.valuation.weight.shape[-1]
        needed = dict.fromkeys(("query", "key", "value"), (updates, width, width)) | {
            "inner": (updates, hidden, reads),
            "inner_bias": (updates, hidden),
            "outer": (updates, width, hidden),
            "outer_bias": (updates, width),
        }
        for name, shape in needed.items():
            if getattr(self, name).shape != shape:
                raise InputError(
                    f"an emotion stream of width {width} through {len(layers)} blocks needs {name} {shape}, not "
                    f"{tuple(getattr(self, name).shape)}"
                )

    @property
    def width(self) -> int:
        """Width of the emotion embeddings, d_e."""
        return self.query.shape[-1]

    @property
    def coupled(self) -> bool:
        """Whether x changes e."""
        return self.inner.shape[-1] > self.width

    @classmethod
    def start(
        cls, valuation: Valuation, d_model: int, *, width: int = 8, hidden: int = 32, seed: int = 0
    ) -> EmotionStream:
        """Return the stream that carries nothing yet, and so does what `valuation` does: the place where learning starts.

        A valuation without columns for e gets `width` of them (see `Valuation.widened`). B and d are 0; Q, K, V and A are
        random with variance 1 / columns, drawn with `seed`.
        """
        if valuation.weight.shape[-1] == d_model:
            valuation = valuation.widened(width)
        record = {**valuation.metadata, "stream_seed": seed}
        valuation = valuation.with_record(metadata=record, basis=valuation.basis)
        width, updates = valuation.weight.shape[-1] - d_model, len(valuation.layers) - 1
        generator = torch.Generator().manual_seed(seed)

        def drawn(rows: int, columns: int) -> Tensor:
            return torch.randn(updates, rows, columns, generator=generator) / math.sqrt(columns)

        return cls(
            valuation,
            query=drawn(width, width),
            key=drawn(width, width),
            value=drawn(width, width),
            inner=drawn(hidden, d_model + width),
            inner_bias=torch.zeros(updates, hidden),
            outer=torch.zeros(updates, width, hidden),
            outer_bias=torch.zeros(updates, width),
        )

    def uncoupled(self) -> EmotionStream:
        """Return the stream in which e is changed by e alone: A without its columns for x."""
        return replace(self, inner=self.inner[..., -self.width :])

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name, those of the valuation among them."""
        return self.valuation.tensors | {name: getattr(self, name) for name in CARRYING}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> EmotionStream:
        """Return a stream with these tensors, by the names of `tensors`, in place of its own."""
        own: dict[str, Any] = {name: tensor for name, tensor in tensors.items() if name in CARRYING}
        rest = {name: tensor for name, tensor in tensors.items() if name not in CARRYING}
        return replace(self, valuation=self.valuation.with_tensors(rest), **own)

    def with_record(self, *, metadata: Mapping[str, Any], basis: str | None) -> EmotionStream:
        """Return the stream with another account of where its valuation comes from and of what it reads."""
        return replace(self, valuation=self.valuation.with_record(metadata=metadata, basis=basis))

    def save(self, path: str | Path) -> Path:
        """Write the stream to one `.safetensors` file."""
        return write_artefact(path, "emotion stream", VERSION, self.tensors, self.valuation.record)

    @classmethod
    def load(cls, path: str | Path) -> EmotionStream:
        """Read a stream that `save` wrote. Raises `InputError` for any other file."""
        tensors, record = read_artefact(path, "emotion stream", VERSION)
        with reading(path, "emotion stream"):
            own = {name: tensors.pop(name) for name in CARRYING}
            check_tensors(own)
            return cls(Valuation.from_record(tensors, record), **own)

    def valuers(self, emotions: Emotions, n_layers: int) -> list[Callable[[Tensor, Forward], Tensor]]:
        """Return for each block the function of its stream and the pass that gives its valuations, and carries e on.

        Within a pass they are to be called block by block. `emotions` says e_0; `n_layers` is how many blocks the model has.
        """
        run, carried = next(_RUNS), dict[str, Tensor]()
        valuation, width = self.valuation, self.width

        def valuer(row: int) -> Callable[[Tensor, Forward], Tensor]:
            weight, bias = valuation.weight[row], valuation.bias[row]
            update = {name: getattr(self, name)[row] for name in CARRYING} if row < len(self.query) else None

            def values(stream: Tensor, forward: Forward) -> Tensor:
                x = stream.to(torch.promote_types(stream.dtype, torch.float32))
                e = emotions(forward) if row == 0 else carried.pop("e")
                e = x.new_zeros(*x.shape[:2], width) if e is None else e.to(x)
                if update is not None:
                    past = partial(remember, forward, (run, row), n_layers)
                    here = {name: tensor.to(x) for name, tensor in update.items()}
                    carried["e"] = _carried_on(here, x, e, forward, past)
                return valuate(weight, bias, stream, e)

            return values

        return [valuer(row) for row in range(len(valuation.layers))]

    def __repr__(self) -> str:
        form = "coupled" if self.coupled else "uncoupled"
        return f"<EmotionStream of width {self.width}, {form}, over {self.valuation!r}>"


def valuation_of(source: Valuation | EmotionStream) -> Valuation:
    """Return a valuation as it is, and that of an emotion stream."""
    return source.valuation if isinstance(source, EmotionStream) else source


def _carried_on(
    update: Mapping[str, Tensor],
    x: Tensor,
    e: Tensor,
    forward: Forward,
    past: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> Tensor:
    """Return e at the next block, (batch, position, d_e). `past` puts earlier positions before keys and values."""
    heard = e + _attended(update, e, forward, past)
    if update["inner"].shape[-1] > e.shape[-1]:
        # Some models compute NaN at padding, and a weight of 0 in the next block's attention would keep it.
        x = x.where(forward.real[..., None], 0.0)
        heard = torch.cat([layer_norm(x, x.shape[-1:]), heard], dim=-1)
    hidden = gelu(linear(heard, update["inner"], update["inner_bias"]))
    return e + linear(hidden, update["outer"], update["outer_bias"])


def _attended(
    update: Mapping[str, Tensor],
    e: Tensor,
    forward: Forward,
    past: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> Tensor:
    """Return the causal attention of e to e, (batch, position, d_e).

    What is padding is told in one more column of the keys, so that it goes into the KV cache with them, and no mask is built.
    """
    query, key, value = (linear(e, update[name])[:, None] for name in ("query", "key", "value"))
    padding = (~forward.real)[:, None, :, None].to(e)
    keys, values = past(torch.cat([key, padding], dim=-1), value)
    ones = torch.ones_like(padding[:, 0])
    attended = val_attention(
        query, keys[..., :-1], values, ones, keys[:, 0, :, -1:], UNSEEN, implementation="folded"
    )
    return attended[:, 0]
