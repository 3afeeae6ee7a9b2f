"""Steering: edits of the residual stream along directions.

Each function says what happens, as `ResidualEdit` values that any backend can place and any number of which compose, with
each other and with valuations: `add`, `rotate`, `project_out` and `clamp`; `only_where` and `scheduled` narrow edits down to
tokens that another probe picks out, and to a course over generated tokens. `steer` is `add` as a context manager. The unit
of strength is a fraction of the mean residual norm at the layer, so that one number means about as much in every layer and
model (Sofroniew et al., "Emotion Concepts and their Function in a Large Language Model", 2026). Nothing here knows how a
direction was found: a bare tensor serves as well as a probe's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from emoprobe.checks import check_finite
from emoprobe.errors import InputError
from emoprobe.interventions import Positions, ResidualEdit
from emoprobe.layers import Layers, resolve_layers
from emoprobe.steering.vectors import Vector, check_directed, norms_at, unit_length, vectors_at

if TYPE_CHECKING:
    from emoprobe.models import LiveModel
    from emoprobe.probes import ProbeSet


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
    *,
    norms: Tensor | None = None,
    keep_norm: bool = False,
) -> list[ResidualEdit]:
    """Return the edits that add `direction` to the residual stream at each of `layers`.

    With unit="norm" strength is a fraction of the mean residual norm at the layer, and the length of the direction does not
    matter. That norm is a length in the stream's own units: `norms` (n_layers + 1,) where given (see `residual_norms`, which
    measures it over a text of yours and over generated tokens, where it differs), or else as the direction remembers it (over
    its corpus), or else as `model.residual_norms()` measures it. With unit="raw" the vector is multiplied by strength as it
    is. With `keep_norm` the sum is scaled to the norm that the stream had, token by token: it turns, and does not grow. At
    strength 0 there is nothing to edit.

    Raises `InputError` for a layer that the direction does not have, another width or basis than the model's, numbers that are
    not finite, and a zero vector with unit="norm".
    """
    chosen = resolve_layers(layers, model.n_layers)
    vectors = vectors_at(model, direction, chosen)
    check_finite(strength=strength)
    if unit not in ("norm", "raw"):
        raise InputError(
            f'unit="{unit}" is not understood: give "norm" (fraction of the mean residual norm) or "raw"'
        )
    if unit == "norm":
        check_directed(direction, vectors, chosen)
    if strength == 0:
        return []
    if unit == "norm":
        vectors = unit_length(vectors) * norms_at(model, direction, chosen, norms).to(vectors)[:, None]
    edit = _keeping_norm if keep_norm else _adder
    return _edits(chosen, [edit(strength * vector) for vector in vectors], positions)


def rotate(
    model: LiveModel,
    direction: Vector,
    angle: float = 0.1,
    layers: Layers = 0.66,
    positions: Positions = "all",
) -> list[ResidualEdit]:
    """Return the edits that turn the residual stream toward `direction` by `angle` radians, its norm kept, at each of `layers`.

    Each token turns in the plane of its own stream and the direction, and not beyond the direction; by a negative angle it
    turns away, and not beyond the opposite. A stream along the direction already stays what it is. At angle 0 there is
    nothing to edit. Raises `InputError` as `add` does with unit="norm".
    """
    chosen = resolve_layers(layers, model.n_layers)
    vectors = vectors_at(model, direction, chosen)
    check_finite(angle=angle)
    check_directed(direction, vectors, chosen)
    if angle == 0:
        return []
    return _edits(
        chosen, [_turner(math.copysign(1, angle) * vector, abs(angle)) for vector in vectors], positions
    )


def project_out(
    model: LiveModel,
    direction: Vector | Sequence[Vector],
    layers: Layers = 0.66,
    positions: Positions = "all",
    *,
    strength: float = 1.0,
) -> list[ResidualEdit]:
    """Return the edits that take away the residual stream along `direction`, or in the space of several, at each of `layers`.

    `strength` is the share that is taken away: 1 for all of it, 2 mirrors the stream. What several directions share is taken
    away once. Raises `InputError` as `add` does with unit="norm", and for no direction at all.
    """
    chosen = resolve_layers(layers, model.n_layers)
    several = isinstance(direction, Sequence) and not isinstance(direction, Tensor)
    directions = cast("Sequence[Vector]", direction if several else [direction])
    if isinstance(directions, str) or not len(directions):
        raise InputError("give a direction to project out, or a list of one or more")
    check_finite(strength=strength)
    given = [vectors_at(model, one, chosen) for one in directions]
    for one, vectors in zip(directions, given, strict=True):
        check_directed(one, vectors, chosen)
    if strength == 0:
        return []
    spaces = torch.stack([rows.to(given[0].device, torch.float64) for rows in given], dim=1)
    return _edits(chosen, [_projector(_basis(space), strength) for space in spaces], positions)


def clamp(
    model: LiveModel,
    probes: ProbeSet,
    concept: str,
    low: float,
    high: float | None = None,
    layers: Layers = 0.66,
    positions: Positions = "all",
) -> list[ResidualEdit]:
    """Return the edits that keep the read-out of `concept` within `low` and `high` at each of `layers`, in the probe's units.

    Without `high` the read-out is set to `low`; an infinite bound is none. Streams move along the probe's direction alone, by
    as much as it takes. Raises `InputError` for a layer without a probe, a probe that reads nothing, and low > high.
    """
    high = low if high is None else high
    if not low <= high:
        raise InputError(f"low={low} is not below high={high}")
    probes.check_model(model)
    chosen = resolve_layers(layers, model.n_layers)
    column = probes.concept_index(concept)
    edits = []
    for layer in chosen:
        row = probes.layer_index(layer)
        slope, offset = probes.scale[row, column] * probes.directions[row, column], probes.offset[row, column]
        if not bool(slope.any()):
            raise InputError(f'the probe of "{concept}" reads nothing at layer {layer}: leave that layer out')
        edits.append(_clamper(slope, offset, low, high))
    return _edits(chosen, edits, positions)


# Narrowing down ------------------------------------------------------------------------------------------------------


def only_where(
    edits: Sequence[ResidualEdit],
    probes: ProbeSet,
    concept: str,
    above: float = -math.inf,
    below: float = math.inf,
) -> list[ResidualEdit]:
    """Return `edits` that touch only tokens whose read-out of `concept` lies above `above` and below `below`.

    The read-out is taken of the stream that the edit meets, at its own layer, in the probe's units. Raises `InputError` for a
    concept or a layer that was not probed for.
    """
    column = probes.concept_index(concept)
    for edit in edits:
        probes.layer_index(edit.layer)

    def narrowed(edit: ResidualEdit) -> Callable[[Tensor], Tensor]:
        def act(stream: Tensor) -> Tensor:
            read = probes.read_out(stream, edit.layer)[..., column]
            return torch.where(((read > above) & (read < below))[..., None], edit.edit(stream), stream)

        return act

    return [replace(edit, edit=narrowed(edit)) for edit in edits]


def scheduled(
    edits: Sequence[ResidualEdit], schedule: Sequence[float] | Callable[[int], float]
) -> list[ResidualEdit]:
    """Return `edits` whose strength follows a schedule over generated tokens; the prompt is left as it is.

    `schedule` gives the share of the edit at the n-th generated token, counted from 0: a list, whose last number holds from
    its end on, or a function of n. For `add` it multiplies the strength. Raises `InputError` for an empty list and for
    numbers that are not finite.
    """
    if not callable(schedule):
        listed = list(schedule)
        if not listed or not all(map(math.isfinite, listed)):
            raise InputError(f"schedule={listed} is not a list of one or more finite numbers")

    def share(n: int) -> float:
        value = 0.0 if n < 0 else schedule(n) if callable(schedule) else listed[min(n, len(listed) - 1)]
        check_finite(schedule=value)
        return value

    def weight(generated: Tensor) -> Tensor:
        return torch.tensor(
            [share(n) for n in generated.tolist()], dtype=torch.float64, device=generated.device
        )

    return [replace(edit, weight=weight) for edit in edits]


# What happens to a stream --------------------------------------------------------------------------------------------


def _edits(
    layers: Sequence[int], edits: Sequence[Callable[[Tensor], Tensor]], positions: Positions
) -> list[ResidualEdit]:
    return [ResidualEdit(layer, edit, positions) for layer, edit in zip(layers, edits, strict=True)]


def _adder(vector: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda stream: stream + vector.to(stream)


def _keeping_norm(vector: Tensor) -> Callable[[Tensor], Tensor]:
    def act(wide: Tensor) -> Tensor:
        moved = wide + vector.to(wide)
        return moved * _ratio(_norm(wide), _norm(moved))

    return _widely(act)


def _turner(vector: Tensor, angle: float) -> Callable[[Tensor], Tensor]:
    def act(wide: Tensor) -> Tensor:
        toward, norm = unit_length(vector.to(wide)), _norm(wide)
        along = (wide @ toward)[..., None]
        across = wide - along * toward
        # Angles from the direction: as the stream lies, and as it shall lie.
        now = torch.atan2(_norm(across), along)
        then = (now - angle).clamp(min=0)
        turned = norm * (then.cos() * toward + then.sin() * across * _ratio(1.0, _norm(across)))
        return torch.where(_norm(across) > 0, turned, wide)

    return _widely(act)


def _projector(basis: Tensor, strength: float) -> Callable[[Tensor], Tensor]:
    def act(wide: Tensor) -> Tensor:
        rows = basis.to(wide)
        return wide - strength * (wide @ rows.mT) @ rows

    return _widely(act)


def _clamper(slope: Tensor, offset: Tensor, low: float, high: float) -> Callable[[Tensor], Tensor]:
    def act(wide: Tensor) -> Tensor:
        vector = slope.to(wide)
        read = wide @ vector + offset.to(wide)
        return wide + ((read.clamp(low, high) - read) / (vector @ vector))[..., None] * vector

    return _widely(act)


def _widely(act: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Run an edit in float32 or wider: a dot product over the width loses too much in half precision."""
    return lambda stream: act(stream.to(torch.promote_types(stream.dtype, torch.float32))).to(stream.dtype)


def _basis(vectors: Tensor) -> Tensor:
    """Return an orthonormal basis of what vectors (n, d_model) span: (rank, d_model)."""
    _, sizes, rows = torch.linalg.svd(unit_length(vectors), full_matrices=False)
    # Directions are float32: what is left of one that the others span is its rounding.
    basis: Tensor = rows[sizes > 1e-6 * sizes[0]]
    return basis


def _norm(stream: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(stream, dim=-1, keepdim=True)
    return norm


def _ratio(numerator: Tensor | float, denominator: Tensor) -> Tensor:
    """Return a quotient that is 0 where its denominator is."""
    ratio: Tensor = torch.where(denominator > 0, numerator / denominator, 0.0)
    return ratio
