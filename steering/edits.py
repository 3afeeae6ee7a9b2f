"""Steering: edits of the residual stream along a direction.

`add` and `project_out` say what happens, as `ResidualEdit` values that any backend can place and any number of which
compose; `steer` is `add` as a context manager. Strength is a fraction of the mean residual norm at the layer, so that
one number means about as much in every layer and model (Sofroniew et al., "Emotion Concepts and their Function in a
Large Language Model", 2026). Nothing here knows how a direction was found: a bare tensor serves as well as a probe's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from emoprobe.errors import InputError
from emoprobe.interventions import Positions, ResidualEdit
from emoprobe.layers import Layers, resolve_layers

if TYPE_CHECKING:
    from emoprobe.models import LiveModel
    from emoprobe.probes import Direction

Vector: TypeAlias = "Direction | Tensor"
"""A `Direction`, or a bare tensor: (d_model,) for every layer, or (layers, d_model), one row for each of the layers
given or for each layer 0 … n_layers."""


@contextmanager
def steer(
    model: LiveModel,
    direction: Vector,
    strength: float = 0.05,
    layers: Layers = 0.66,
    positions: Positions = "all",
    unit: str = "norm",
) -> Iterator[LiveModel]:
    """Run the block with `strength` of `direction` added to the residual stream at `layers`; see `add`."""
    with model.intervene(*add(model, direction, strength, layers, positions, unit)):
        yield model


def add(
    model: LiveModel,
    direction: Vector,
    strength: float = 0.05,
    layers: Layers = 0.66,
    positions: Positions = "all",
    unit: str = "norm",
) -> list[ResidualEdit]:
    """Return the edits that add `direction` to the residual stream at each of `layers`.

    With unit="norm" strength is a fraction of the mean residual norm at the layer, as the direction remembers it or else
    as `model.residual_norms()` measures it, and the length of the direction does not matter; with unit="raw" the vector is
    multiplied by strength as it is. At strength 0 there is nothing to edit. Raises `InputError` for a layer that the
    direction does not have, another width or basis than the model's, numbers that are not finite, and a zero vector with
    unit="norm".
    """
    chosen = resolve_layers(layers, model.n_layers)
    vectors = _vectors(model, direction, chosen)
    if not math.isfinite(strength):
        raise InputError(f"strength={strength} is not a finite number")
    if unit not in ("norm", "raw"):
        raise InputError(
            f'unit="{unit}" is not understood: give "norm" (fraction of the mean residual norm) or "raw"'
        )
    if unit == "norm":
        _check_directed(direction, vectors, chosen)
    if strength == 0:
        return []
    if unit == "norm":
        vectors = _unit(vectors) * _norms(model, direction, chosen).to(vectors)[:, None]
    return [
        ResidualEdit(layer, _adder(strength * vector), positions)
        for layer, vector in zip(chosen, vectors, strict=True)
    ]


def project_out(
    model: LiveModel, direction: Vector, layers: Layers = 0.66, positions: Positions = "all"
) -> list[ResidualEdit]:
    """Return the edits that take away all of the residual stream along `direction` at each of `layers`.

    Raises `InputError` as `add` does with unit="norm".
    """
    chosen = resolve_layers(layers, model.n_layers)
    vectors = _vectors(model, direction, chosen)
    _check_directed(direction, vectors, chosen)
    return [
        ResidualEdit(layer, _projector(vector), positions)
        for layer, vector in zip(chosen, vectors, strict=True)
    ]


def _adder(vector: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda stream: stream + vector.to(stream)


def _projector(vector: Tensor) -> Callable[[Tensor], Tensor]:
    def project(stream: Tensor) -> Tensor:
        # A dot product over the width loses too much in half precision.
        wide = stream.to(torch.promote_types(stream.dtype, torch.float32))
        unit = _unit(vector.to(wide))
        return (wide - (wide @ unit)[..., None] * unit).to(stream.dtype)

    return project


def _unit(vectors: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / norms


def _vectors(model: LiveModel, direction: Vector, layers: Sequence[int]) -> Tensor:
    """Return one vector for each layer, at least float32: (layers, d_model)."""
    rows = (
        _rows_of_tensor(model, direction, layers)
        if isinstance(direction, Tensor)
        else _rows(direction, layers)
    )
    if rows.shape[-1] != model.d_model:
        raise InputError(
            f"{_name(direction)} has width {rows.shape[-1]}, but the residual stream of {model.name} has width "
            f"{model.d_model}: was it made for another model?"
        )
    if not isinstance(direction, Tensor):
        model.check_basis(direction.basis, _name(direction))
    if not bool(torch.isfinite(rows).all()):
        raise InputError(f"{_name(direction)} holds numbers that are not finite")
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def _rows(direction: Direction, layers: Sequence[int]) -> Tensor:
    if not hasattr(direction, "vectors"):
        raise InputError(
            f"direction is a {type(direction).__name__}: give a Direction, such as probes[concept], or a tensor"
        )
    missing = [layer for layer in layers if layer not in direction.layers]
    if missing:
        raise InputError(
            f"{_name(direction)} has no layer {', '.join(map(str, missing))}: "
            f"it has {', '.join(map(str, direction.layers))}"
        )
    return direction.vectors[[direction.layers.index(layer) for layer in layers]]


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


def _norms(model: LiveModel, direction: Vector, layers: Sequence[int]) -> Tensor:
    """Return the mean residual norm at each layer: (layers,)."""
    if isinstance(direction, Tensor) or direction.residual_norms is None:
        return model.residual_norms()[list(layers)]
    return direction.residual_norms[[direction.layers.index(layer) for layer in layers]]


def _check_directed(direction: Vector, vectors: Tensor, layers: Sequence[int]) -> None:
    empty = [layer for layer, vector in zip(layers, vectors, strict=True) if not bool(vector.any())]
    if empty:
        raise InputError(
            f"{_name(direction)} is zero at layer {', '.join(map(str, empty))}, so it points nowhere: leave that layer out"
        )


def _name(direction: Vector) -> str:
    return "the vector" if isinstance(direction, Tensor) else f'the direction "{direction.concept}"'
