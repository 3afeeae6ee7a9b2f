"""What each part of a transformers model adds to the residual stream: attention by head and position, MLP by block.

The stream at layer L is the embedding plus what the attention and the MLP of every block before L have added. Along a direction
u that is a sum of numbers, and each attention's number is again a sum over heads and the positions they look at: the weight
times the value there, through the head's slice of the output projection ("OV", Elhage et al. 2021, "A Mathematical Framework
for Transformer Circuits"). Nothing is approximate: each reading checks that its parts make up the whole, and a model whose
parts do not (because a norm, a gate or a scale stands between) is refused by name.

Parts are found by structure, not by class: the attention as in `transformers_structure`, its output projection as the linear
module that is called last with as many inputs as all heads have, the MLP as the module whose output is the rest of what the
block adds.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface

from emoprobe.errors import InputError
from emoprobe.models.live import Batch, LiveModel
from emoprobe.models.transformers_attention import eager
from emoprobe.models.transformers_backend import TransformersModel
from emoprobe.models.transformers_structure import gives_its_whole_output

READING = "emoprobe-reading"  # the name under which our attention function is registered


@dataclass(frozen=True, eq=False)
class BlockParts:
    """Hold the modules of one block: `attention` and `mlp` add to the stream, `projection` is the attention's last step."""

    attention: nn.Module
    projection: nn.Module
    mlp: nn.Module


@dataclass(frozen=True, eq=False)
class Parts:
    """Hold what the parts of the blocks before a layer have added to the stream of a batch of texts of one length.

    `streams` is (layers, batch, position, d_model), from the embedding to that layer; `attention` and `mlp` are (blocks, batch,
    position, d_model). `weights` holds for each block the last token's attention, (batch, heads, keys), and `values` what it
    looks at, (batch, kv_heads, keys, width).
    """

    blocks: tuple[BlockParts, ...]
    streams: Tensor
    attention: Tensor
    mlp: Tensor
    weights: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def heads(self, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the heads add to the last token along a direction of each text's own, (batch, d_model).

        The first, (blocks, batch, heads, keys), is by head and by the position that the head looks at; the second, (blocks,
        batch), what the projection's bias adds whatever is looked at. Together they are `attention` at the last token.
        """
        found, constant = [], []
        for block, weights, values in zip(self.blocks, self.weights, self.values, strict=True):
            heads, width = weights.shape[1], values.shape[-1]
            along, bias = _through(block.projection, directions.to(values), heads * width)
            by_head = along.reshape(len(along), heads, width)
            looked_at = values.repeat_interleave(heads // values.shape[1], dim=1)
            found.append(weights * torch.einsum("bhkw,bhw->bhk", looked_at, by_head))
            constant.append(bias)
        return torch.stack(found), torch.stack(constant)


def read_parts(model: LiveModel, batch: Batch, layer: int) -> Parts:
    """Run the blocks before `layer` on texts of one length, and return what each part has added to the stream.

    Raises `InputError` for layer 0, padding, another backend than transformers, and a model whose parts do not add up.
    """
    if not isinstance(model, TransformersModel):
        raise InputError(f"{model.name}: parts of blocks are read with the transformers backend only")
    if not 1 <= layer <= model.n_layers:
        raise InputError(f"layer {layer}: blocks have added something at layers 1 to {model.n_layers}")
    if not bool(batch.real.all()):
        raise InputError("parts of blocks are read without padding: give texts of one length")
    _check(model, layer)
    with torch.no_grad(), _recorded(model, layer) as records:
        streams = model.streams(batch, range(layer + 1))
        blocks = tuple(_parts(model, index, records[index], streams) for index in range(layer))
    attention = torch.stack([record.attention for record in records])
    mlp = torch.stack([records[index].outputs[blocks[index].mlp] for index in range(layer)])
    looked = [record.looked for record in records]
    parts = Parts(
        blocks,
        streams,
        attention.to(streams.device),
        mlp.to(streams.device),
        tuple(weights.to(streams.device) for _, weights in looked),
        tuple(values.to(streams.device) for values, _ in looked),
    )
    _check_heads(model, parts)
    return parts


@contextmanager
def patched(module: nn.Module, values: Tensor, positions: Tensor) -> Iterator[None]:
    """Put `values` (batch, position, d_model) in place of a part's output at `positions` (batch, position) inside the block."""

    def replace(_: nn.Module, args: Any, output: Any) -> Any:
        first = output if isinstance(output, Tensor) else output[0]
        where = positions.to(first.device)[..., None]
        result = torch.where(where, values.to(first), first)
        return result if isinstance(output, Tensor) else type(output)((result, *output[1:]))

    with module.register_forward_hook(replace):
        yield


# Recording a pass ----------------------------------------------------------------------------------------------------


class _Record:
    """What was seen of one block in a pass."""

    def __init__(self) -> None:
        self.attention: Tensor = torch.empty(0)
        self.looked: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))
        self.linear: list[tuple[nn.Module, int]] = []
        self.outputs: dict[nn.Module, Tensor] = {}


_RECORDS: WeakKeyDictionary[nn.Module, _Record] = WeakKeyDictionary()
"""The attention modules that are read at the moment."""


def _recording_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Run the module's own eager attention, and keep values and the last token's weights; called by transformers."""
    own = sys.modules[type(module).__module__].eager_attention_forward
    output, weights = own(module, query, key, value, attention_mask, **kwargs)
    _RECORDS[module].looked = value, weights[:, :, -1]
    return output, weights


AttentionInterface.register(READING, _recording_attention)


def _check(model: TransformersModel, layer: int) -> None:
    for index in range(layer):
        site = model._site(index)
        kind = type(site.module)
        if not site.folds or not hasattr(sys.modules[kind.__module__], "eager_attention_forward"):
            raise InputError(
                f"{model.name} ({kind.__name__}) computes its attention in a way of its own: what its heads look at is not "
                "accessible"
            )
        if not gives_its_whole_output(model._blocks[index], site.module):
            raise InputError(
                f"{model.name} ({kind.__name__}): its attention does not give what it adds to the stream"
            )


@contextmanager
def _recorded(model: TransformersModel, layer: int) -> Iterator[list[_Record]]:
    """Record what the parts of the blocks before `layer` give inside the block."""
    records = [_Record() for _ in range(layer)]
    with ExitStack() as stack:
        stack.enter_context(eager(model.underlying))
        for index, record in enumerate(records):
            attention = model._site(index).module
            _RECORDS[attention] = record
            stack.callback(_RECORDS.pop, attention)
            stack.enter_context(_asking(attention))
            stack.enter_context(attention.register_forward_hook(_keep_attention(record)))
            inside = set(attention.modules())
            for module in inside - {attention}:
                stack.enter_context(module.register_forward_pre_hook(_keep_linear(record)))
            for module in set(model._blocks[index].modules()) - inside:
                stack.enter_context(module.register_forward_hook(_keep_output(record)))
        yield records


@contextmanager
def _asking(attention: nn.Module) -> Iterator[None]:
    """Let an attention module find our attention function where it looks for its own."""
    own: Any = attention.config
    ours = copy.copy(own)
    ours._attn_implementation_internal = READING
    attention.config = ours
    try:
        yield
    finally:
        attention.config = own


def _keep_attention(record: _Record) -> Any:
    def keep(module: nn.Module, args: Any, output: Any) -> None:
        record.attention = output if isinstance(output, Tensor) else output[0]

    return keep


def _keep_linear(record: _Record) -> Any:
    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        has_weights = next(module.parameters(recurse=False), None) is not None  # a dropout is no projection
        if has_weights and args and isinstance(args[0], Tensor):
            record.linear.append((module, args[0].shape[-1]))

    return keep


def _keep_output(record: _Record) -> Any:
    def keep(module: nn.Module, args: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) and output else output
        if isinstance(first, Tensor):
            record.outputs[module] = first

    return keep


# Finding parts -------------------------------------------------------------------------------------------------------


def _parts(model: TransformersModel, index: int, record: _Record, streams: Tensor) -> BlockParts:
    """Return the parts of a block from what was seen of it; a part is what its numbers say it is."""
    site = model._site(index)
    values, weights = record.looked
    inputs = weights.shape[1] * values.shape[-1]
    fitting = [module for module, width in record.linear if width == inputs]
    if not fitting:
        raise InputError(f"{model.name} ({type(site.module).__name__}): its output projection was not found")
    added = (streams[index + 1] - streams[index]).to(record.attention.device)
    rest = added - record.attention
    tolerance = _tolerance(streams.dtype) * float(streams[index + 1].norm())
    for module, output in record.outputs.items():
        if output.shape == rest.shape and float((output.to(rest) - rest).norm()) <= tolerance:
            return BlockParts(site.module, fitting[-1], module)
    raise InputError(
        f"{model.name} ({type(model._blocks[index]).__name__}): what attention and MLP give is not what the block adds to the "
        "stream, so that its parts cannot be told"
    )


def _check_heads(model: TransformersModel, parts: Parts) -> None:
    """Raise `InputError` unless heads and positions make up the attention's output along some directions."""
    generator = torch.Generator().manual_seed(0)
    shape = parts.streams.shape[1], parts.streams.shape[-1]
    directions = torch.randn(shape, generator=generator, dtype=torch.float64).to(parts.attention)
    by_head, constant = parts.heads(directions)
    whole = torch.einsum("lbd,bd->lb", parts.attention[:, :, -1], directions)
    apart = (by_head.sum((-1, -2)) + constant - whole).abs()
    scale = parts.attention[:, :, -1].norm(dim=-1) * directions.norm(dim=-1)
    if bool((apart > _tolerance(parts.streams.dtype) * scale.clamp(min=torch.finfo(scale.dtype).tiny)).any()):
        kind = type(parts.blocks[0].attention).__name__
        raise InputError(
            f"the heads of {model.name} ({kind}) do not add up to what its attention gives: something stands between them"
        )


def _through(projection: nn.Module, directions: Tensor, inputs: int) -> tuple[Tensor, Tensor]:
    """Return what a linear module's inputs give along directions (batch, d_model): (batch, inputs), and its bias (batch,).

    Asked of the module, so that it does not matter how it keeps its weights.
    """
    with torch.enable_grad():
        given = directions.new_zeros(len(directions), 1, inputs, requires_grad=True)
        along = (projection(given)[:, 0] * directions).sum(-1)
        (gradient,) = torch.autograd.grad(along.sum(), given)
    return gradient[:, 0], along.detach()


def _tolerance(dtype: torch.dtype) -> float:
    return 256 * torch.finfo(dtype).eps
