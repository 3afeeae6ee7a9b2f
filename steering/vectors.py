"""From a direction and layers to one vector for each layer, and the unit that strengths are told in.

A direction is a probe's, or a bare tensor. What does not fit the model is refused here, for all edits alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from emoprobe.controls import turned_at_random
from emoprobe.errors import InputError

if TYPE_CHECKING:
    from emoprobe.models import LiveModel
    from emoprobe.probes import Direction

Vector: TypeAlias = "Direction | Tensor"
"""A `Direction`, or a bare tensor: (d_model,) for every layer, or (layers, d_model), one row for each of the layers
given or for each layer 0 … n_layers."""


def unit_length(vectors: Tensor) -> Tensor:
    """Return vectors (…, d_model) divided by their norms."""
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / norms


def random_like(direction: Vector, seed: int) -> Vector:
    """Return a control: the direction turned at random, its norms and its angles between layers kept."""
    if isinstance(direction, Tensor):
        return turned_at_random(direction, seed)
    _check_is_direction(direction)
    return direction.random_like(seed)


def vectors_at(model: LiveModel, direction: Vector, layers: Sequence[int]) -> Tensor:
    """Return one vector for each layer, at least float32: (layers, d_model)."""
    rows = (
        _rows_of_tensor(model, direction, layers)
        if isinstance(direction, Tensor)
        else _rows(direction, layers)
    )
    if rows.shape[-1] != model.d_model:
        raise InputError(
            f"{name_of(direction)} has width {rows.shape[-1]}, but the residual stream of {model.name} has width "
            f"{model.d_model}: was it made for another model?"
        )
    if not isinstance(direction, Tensor):
        model.check_basis(direction.basis, name_of(direction))
    if not bool(torch.isfinite(rows).all()):
        raise InputError(f"{name_of(direction)} holds numbers that are not finite")
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def _rows(direction: Direction, layers: Sequence[int]) -> Tensor:
    _check_is_direction(direction)
    missing = [layer for layer in layers if layer not in direction.layers]
    if missing:
        raise InputError(
            f"{name_of(direction)} has no layer {', '.join(map(str, missing))}: "
            f"it has {', '.join(map(str, direction.layers))}"
        )
    return direction.vectors[[direction.layers.index(layer) for layer in layers]]


def _check_is_direction(direction: object) -> None:
    if not hasattr(direction, "vectors"):
        raise InputError(
            f"direction is a {type(direction).__name__}: give a Direction, such as probes[concept], or a tensor"
        )


def _rows_of_tensor(model: LiveModel, tensor: Tensor, layers: Sequence[int]) -> Tensor:
    if tensor.dim() == 1:
        return tensor.expand(len(layers), -1)
    if tensor.dim() == 2 and len(tensor) == len(layers):
        return tensor
    if tensor.dim() == 2 and len(tensor) == model.n_layers + 1:
        return tensor[list(layers)]
    raise InputError(
        f"a direction of shape {tuple(tensor.shape)} does not fit: give (d_model,), or (layers, d_model) with one row "
        f"for each of the {len(layers)} layers given or of the {model.n_layers + 1} layers of {model.name}"
    )


def norms_at(
    model: LiveModel, direction: Vector, layers: Sequence[int], norms: Tensor | None = None
) -> Tensor:
    """Return the mean residual norm at each of `layers`, (layers,).

    It is that of `norms` (n_layers + 1,) where they are given, else what the direction remembers, else what the model measures.
    Raises `InputError` for norms of another shape or not positive.
    """
    if norms is not None:
        if norms.shape != (model.n_layers + 1,) or not bool((norms > 0).all()):
            raise InputError(
                f"norms of shape {tuple(norms.shape)} do not fit: give a positive one for each layer 0 to {model.n_layers}"
            )
        return norms[list(layers)]
    if isinstance(direction, Tensor) or direction.residual_norms is None:
        return model.residual_norms()[list(layers)]
    return direction.residual_norms[[direction.layers.index(layer) for layer in layers]]


def check_directed(direction: Vector, vectors: Tensor, layers: Sequence[int]) -> None:
    """Raise `InputError` where a direction is zero."""
    empty = [layer for layer, vector in zip(layers, vectors, strict=True) if not bool(vector.any())]
    if empty:
        raise InputError(
            f"{name_of(direction)} is zero at layer {', '.join(map(str, empty))}, so it points nowhere: leave that layer out"
        )


def name_of(direction: Vector) -> str:
    """Return how a message calls a direction."""
    return "the vector" if isinstance(direction, Tensor) else f'the direction "{direction.concept}"'
