"""What a forward pass has been given, and what interventions make of one residual stream.

Pure functions over tensors, for backends that place hooks: they know neither models nor libraries.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from emoprobe.interventions import Forward, Intervention, ResidualEdit, Span

Valuations: TypeAlias = tuple[Tensor, Tensor]
"""λ·v of the queries (batch, 1 or heads, queries, m) and v of the keys (batch, keys, m)."""


def describe_pass(
    given: Mapping[str, Any],
    before: Forward | None,
    prompt_length: int | None,
    offsets: Sequence[tuple[Span, ...]] | None,
) -> Forward:
    """Return what a pass has been given, from the arguments `given` to a transformers model and the pass `before`.

    `prompt_length` is None where the user called the model; then what fills an empty cache is the prompt.
    """
    inputs = given.get("input_ids") if given.get("input_ids") is not None else given.get("inputs_embeds")
    assert inputs is not None, "a model is called with input_ids or inputs_embeds"
    batch, length = inputs.shape[:2]
    # "cache" from transformers 5.24 on
    past = next((given[name] for name in ("cache", "past_key_values") if given.get(name) is not None), None)
    mask = given.get("attention_mask")
    start = int(past.get_seq_length()) if past is not None else 0
    real = _real(mask, start, length)
    if real is None:
        real = torch.ones(batch, length, dtype=torch.bool, device=inputs.device)
    if prompt_length is None:
        prompt_length = length if start == 0 or before is None else before.prompt_length
    return Forward(real, given.get("input_ids"), start, prompt_length, offsets, past)


def _real(mask: Any, start: int, length: int) -> Tensor | None:
    """Return which positions of a pass are not padding, (batch, position), or None where its mask does not say."""
    if isinstance(mask, Mapping):  # one mask for each kind of attention in the model
        mask = mask.get("full_attention")
    if not isinstance(mask, Tensor):
        return None
    if mask.dim() == 2:
        return mask[:, start : start + length].bool()
    # Generation with a static cache has expanded it to (batch, 1, queries, keys): what is real sees itself.
    seen = mask if mask.dtype == torch.bool else mask == 0
    real = seen[:, 0].diagonal(start, -2, -1)
    return real if real.shape[1] == length else None


def act_on(
    stream: Tensor, interventions: Sequence[Intervention], forward: Forward
) -> tuple[Tensor, Valuations | None]:
    """Return `stream` (batch, position, d_model) after its edits, in order, and the valuations of its biases, if any."""
    biases = []
    for item in interventions:
        if isinstance(item, ResidualEdit):
            stream = item.apply(stream, forward)
        else:
            biases.append(item)
    sides = [bias.sides(stream, forward) for bias in biases]
    if len(sides) < 2:
        return stream, sides[0] if sides else None
    queries, keys = zip(*sides, strict=True)
    heads = max(side.shape[1] for side in queries)
    return stream, (torch.cat([side.expand(-1, heads, -1, -1) for side in queries], -1), torch.cat(keys, -1))


def add_bias(scores: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """Return attention scores (batch, heads, queries, keys) plus λ·V_Q·V_Kᵀ; masked scores stay exactly what they are."""
    bias = (queries @ keys[:, None].mT).to(scores.dtype)
    # A mask is -inf or the type's smallest number, which in float16 would round to -inf with a bias added.
    return torch.where(scores <= torch.finfo(scores.dtype).min / 2, scores, scores + bias)
