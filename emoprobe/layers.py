"""One way of naming layers, everywhere.

Layer `l` is the residual stream that enters block `l` (TransformerLens: `blocks.l.hook_resid_pre`), for
l = 0 … n_layers. Layer 0 is the embedding; layer `n_layers` leaves the last block, before the final norm. Hugging Face's
last `hidden_states` entry comes after that norm, so it is not layer `n_layers`.
"""

from collections.abc import Sequence
from numbers import Integral, Real
from typing import TypeAlias

from emoprobe.errors import InputError

Layers: TypeAlias = "int | float | Sequence[int | float] | slice | str"


def resolve_layers(layers: Layers, n_layers: int, *, blocks: bool = False) -> tuple[int, ...]:
    """Turn what a user may call layers into indices, in the order given and without repeats.

    `layers` is an index (negative ones count from the end), a fraction of the depth in [0, 1] as a float, a list of
    either, a slice, or "all". With `blocks=True` only 0 … n_layers - 1 exist: what leaves the last block has no
    attention above it. Raises `InputError` for a layer that does not exist.
    """
    count = n_layers if blocks else n_layers + 1
    if isinstance(layers, str):
        if layers != "all":
            raise InputError(
                f'layers="{layers}" is not understood: give an index, a fraction, a list, a slice or "all"'
            )
        return tuple(range(count))
    if isinstance(layers, slice):
        chosen = tuple(range(count))[layers]
    else:
        items = layers if isinstance(layers, Sequence) or hasattr(layers, "__iter__") else [layers]
        chosen = tuple(dict.fromkeys(_resolve_one(item, n_layers, blocks) for item in items))
    if not chosen:
        raise InputError(f"{_written(layers)} names none: {_existing(n_layers, blocks)}")
    return chosen


DEPTH = 2 / 3
"""Where to read unless told otherwise: the share of the depth of Sofroniew et al. 2026 (arXiv 2604.07729)."""


def nearest_to_depth(layers: Sequence[int], n_layers: int) -> int:
    """Return the one of these layers that lies nearest to two thirds of the depth, the shallower of two.

    It is not the best of several, so that no number has to be corrected for its having been chosen.
    """
    return min(layers, key=lambda layer: (abs(3 * layer - 2 * n_layers), layer))


def _resolve_one(layer: object, n_layers: int, blocks: bool) -> int:
    # A whole number is an index and any other real a fraction: 1 is layer 1, 1.0 is the full depth.
    count, what = (n_layers, "block") if blocks else (n_layers + 1, "layer")
    if isinstance(layer, Integral) and not isinstance(layer, bool):
        index = int(layer)
        if -count <= index < count:
            return index % count
    elif isinstance(layer, Real) and not isinstance(layer, bool):
        if 0.0 <= float(layer) <= 1.0:
            return min(round(float(layer) * n_layers), count - 1)
        raise InputError(f"{what} {layer} is not a fraction of the depth: fractions lie between 0.0 and 1.0")
    raise InputError(
        f"{what} {layer!r} does not exist: {_existing(n_layers, blocks)}, or fractions 0.0 to 1.0"
    )


def _existing(n_layers: int, blocks: bool) -> str:
    """Say which there are; the two kinds differ by one, so the message has to say which kind is meant."""
    if blocks:
        return f"this model has attention blocks 0 to {n_layers - 1}"
    return f"this model has layers 0 to {n_layers} (residual streams; 0 is the embedding)"


def _written(layers: object) -> str:
    """Write a selection as people type it: the slice 3:3, the list []."""
    if not isinstance(layers, slice):
        return f"layers={layers!r}"
    parts = (layers.start, layers.stop) + (() if layers.step is None else (layers.step,))
    return f"layers {':'.join('' if part is None else str(part) for part in parts)}"
