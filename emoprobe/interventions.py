"""What an intervention is; how it gets into a model is the backend's business.

`ResidualEdit` and `AttentionBias` are small immutable values: a layer, a pure function of tensors, and where or how
strongly it acts. A backend hands their functions what flows through the model, together with a `Forward`: what this
pass has been given. `position_mask` says which positions of a pass an edit may touch, and is right for padding on either
side and for cached generation.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from emoprobe.errors import InputError

Span: TypeAlias = tuple[int, int]
Positions: TypeAlias = "str | Tensor | Sequence[Span] | Sequence[Sequence[Span]]"
NAMED_POSITIONS = ("all", "prompt", "generated", "last")
OPEN = sys.maxsize
"""End of a span of characters that goes on in what is generated behind the prompt."""


@dataclass(frozen=True, eq=False)
class Forward:
    """What one forward pass of a live model has been given.

    `real` (batch, position) is False at padding. `start` counts the positions already in the KV cache, so the pass covers
    positions start … start + position - 1 of its sequences. `prompt_length` is the padded length of the prompt: positions
    from there on were generated. `offsets` holds, for each prompt, the character span of each of its positions, and is None
    where the model was not called with text. `cache` is the KV cache of the pass, if there is one.
    """

    real: Tensor
    input_ids: Tensor | None = None
    start: int = 0
    prompt_length: int = 0
    offsets: Sequence[tuple[Span, ...]] | None = None
    cache: Any = None

    @property
    def positions(self) -> Tensor:
        """Index in the sequence of each position of this pass, shape (position,)."""
        return torch.arange(self.start, self.start + self.real.shape[1], device=self.real.device)

    @property
    def generated(self) -> Tensor:
        """How many tokens were generated before each position of this pass, (position,); negative in the prompt."""
        return self.positions - self.prompt_length

    def blocks(self, count: int) -> "list[Forward]":
        """Return what each of `count` equal blocks of consecutive rows has been given, in a pass without a KV cache."""
        rows, rest = divmod(len(self.real), count)
        if rest or self.cache is not None:
            raise InputError(
                f"{count} runs side by side need a multiple of {count} rows and no KV cache, not {len(self.real)} rows"
                + (" with one" if self.cache is not None else "")
            )
        parts = [slice(first, first + rows) for first in range(0, len(self.real), rows)]
        return [
            replace(
                self,
                real=self.real[part],
                input_ids=None if self.input_ids is None else self.input_ids[part],
                offsets=self.offsets and self.offsets[part],
            )
            for part in parts
        ]


@dataclass(frozen=True, eq=False)
class ResidualEdit:
    """Change the residual stream that enters block `layer` (or leaves the last one, at layer n_layers).

    `edit` maps a stream (batch, position, d_model) to one of the same shape; only the chosen `positions` of its result are
    used. `positions` is "all", "prompt", "generated", "last" (the last position of the prompt, the one before the reply), a
    boolean mask over the prompt, (position,) or (batch, position), or character spans [(start, end), …], the same for all
    prompts or one list for each; a span that ends at `OPEN` goes on in what is generated.

    `weight` says how much of the edit is carried out, stream + weight · (edit(stream) − stream), where not all of it: a
    function of how many tokens were generated before each position, integers (position,) that are negative in the prompt, to
    numbers that broadcast to (batch, position).
    """

    layer: int
    edit: Callable[[Tensor], Tensor]
    positions: Positions = "all"
    weight: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.positions, str) and self.positions not in NAMED_POSITIONS:
            known = ", ".join(f'"{name}"' for name in NAMED_POSITIONS)
            raise InputError(
                f'positions="{self.positions}" is not understood: give {known}, a boolean mask or character spans'
            )

    @property
    def by_prompt(self) -> bool:
        """Whether positions are told prompt by prompt, so that prompts have to come in the order in which they were given."""
        if isinstance(self.positions, Tensor):
            return self.positions.dim() == 2
        return not isinstance(self.positions, str) and not _are_spans(self.positions)

    def apply(self, stream: Tensor, forward: Forward) -> Tensor:
        """Return `stream` (batch, position, d_model) with the chosen positions edited."""
        edited = (
            self.edit(stream)
            if self.weight is None
            else self._in_part(stream, self.weight(forward.generated))
        )
        if isinstance(self.positions, str) and self.positions == "all":
            return edited
        return torch.where(position_mask(self.positions, forward)[..., None], edited, stream)

    def _in_part(self, stream: Tensor, weight: Tensor) -> Tensor:
        # The difference of two numbers of half precision is mostly rounding.
        wide = stream.to(torch.promote_types(stream.dtype, torch.float32))
        return (wide + weight.to(wide)[..., None] * (self.edit(wide) - wide)).to(stream.dtype)


@dataclass(frozen=True, eq=False)
class AttentionBias:
    """Add strength · v_i · v_j to the attention scores of block `layer`, before the softmax.

    `valuation` maps the stream that enters the block (batch, position, d_model), after any edits, and the pass to
    valuations (batch, position, m). `strength` is λ: a number, or a tensor of shape () or (heads,). Scores are those after
    the 1/√d_k scaling: Softmax(QKᵀ/√d_k + λ·V_Q·V_Kᵀ). `query` makes V_Q out of the valuations, where it is not the same.
    `carries` says that blocks above need what `valuation` leaves behind, so that it has to be called at strength 0 too.
    """

    layer: int
    valuation: Callable[[Tensor, Forward], Tensor]
    strength: float | Tensor = 1.0
    query: Callable[[Tensor], Tensor] | None = None
    carries: bool = False

    @property
    def is_zero(self) -> bool:
        """True where the bias cannot change anything nor carry a gradient, so that nothing needs to be done."""
        if self.carries:
            return False
        if isinstance(self.strength, Tensor):
            return not self.strength.requires_grad and not bool(self.strength.any())
        return self.strength == 0

    def sides(self, stream: Tensor, forward: Forward) -> tuple[Tensor, Tensor]:
        """Return λ·V_Q (batch, 1 or heads, position, m) and V_K (batch, position, m) for the stream that enters the block."""
        valuations = self.valuation(stream, forward)
        return self.query_side(valuations), valuations

    def query_side(self, valuations: Tensor) -> Tensor:
        """Return λ·V_Q, from valuations (batch, position, m): (batch, 1 or heads, position, m)."""
        strength = self.strength
        if isinstance(strength, Tensor):
            strength = strength.to(valuations).reshape(1, -1, 1, 1)
        queries = valuations if self.query is None else self.query(valuations)
        return queries.unsqueeze(1) * strength


Intervention: TypeAlias = ResidualEdit | AttentionBias


def position_mask(positions: Positions, forward: Forward) -> Tensor:
    """Return which positions of this pass are meant: boolean (batch, position)."""
    index, real = forward.positions, forward.real
    if isinstance(positions, str):
        if positions == "all":
            return real
        if positions == "prompt":
            return real & (index < forward.prompt_length)
        if positions == "generated":
            return real & (index >= forward.prompt_length)
        return _last_of_prompt(forward)
    if isinstance(positions, Tensor):
        return real & _window(positions.to(real.device), forward)
    mask, open_ended = (part.to(real.device) for part in _mask_from_spans(positions, forward))
    behind = open_ended.repeat_interleave(len(real) // len(open_ended))[:, None] & (forward.generated >= 0)
    return real & (_window(mask, forward) | behind)


def _last_of_prompt(forward: Forward) -> Tensor:
    prompt = forward.real & (forward.positions < forward.prompt_length)
    # The last real position has no real prompt position after it; a cached pass that starts behind the prompt has none.
    following = prompt.flip(-1).cumsum(-1).flip(-1)
    return prompt & (following == 1)


def _window(mask: Tensor, forward: Forward) -> Tensor:
    """Cut a mask over the prompt to this pass; positions behind its end are not chosen."""
    if mask.dtype != torch.bool:
        raise InputError(f"positions is a tensor of {mask.dtype}: a mask of positions has to be boolean")
    mask = mask[None] if mask.dim() == 1 else mask
    batch, length = forward.real.shape
    if mask.shape[1] < min(forward.prompt_length, forward.start + length) or batch % mask.shape[0]:
        raise InputError(
            f"positions mask of shape {tuple(mask.shape)} does not fit a batch of {batch} prompts of "
            f"{forward.prompt_length} positions (padded on the left)"
        )
    end = forward.start + length
    mask = torch.nn.functional.pad(mask, (0, max(0, end - mask.shape[1])))[:, forward.start : end]
    # Beam search and num_return_sequences repeat each prompt's row.
    return mask.repeat_interleave(batch // mask.shape[0], dim=0)


def _mask_from_spans(
    spans: Sequence[Span] | Sequence[Sequence[Span]], forward: Forward
) -> tuple[Tensor, Tensor]:
    """Return which positions of the prompts overlap spans (prompts, position), and which prompts have one that stays open."""
    if forward.offsets is None:
        raise InputError(
            "character spans need the text: call model.logits, model.capture or model.generate with strings and a fast "
            "tokenizer, or give positions as a boolean mask"
        )
    prompts = len(forward.offsets)
    per_prompt = cast("list[Sequence[Span]]", [spans] * prompts if _are_spans(spans) else list(spans))
    if len(per_prompt) != prompts:
        raise InputError(f"positions holds spans for {len(per_prompt)} texts, but {prompts} were given")
    pairs = zip(forward.offsets, per_prompt, strict=True)
    mask = torch.zeros(prompts, len(forward.offsets[0]), dtype=torch.bool)
    for row, (tokens, chosen) in zip(mask, pairs, strict=True):
        row[overlapping(tokens, chosen)] = True
    return mask, torch.tensor([any(end >= OPEN for _, end in chosen) for chosen in per_prompt])


def _are_spans(positions: Sequence[Span] | Sequence[Sequence[Span]]) -> bool:
    return all(isinstance(one, tuple) and len(one) == 2 and isinstance(one[0], int) for one in positions)


def overlapping(tokens: Sequence[Span], spans: Sequence[Span]) -> list[int]:
    """Return the positions of the tokens, given by their characters, that overlap any of these spans of characters."""
    return [
        position
        for position, (a, b) in enumerate(tokens)
        if any(a < end and start < b for start, end in spans)
    ]
