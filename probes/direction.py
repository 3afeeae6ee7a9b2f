"""A direction in the residual stream: a value with a name, one vector per layer, and algebra.

It knows nothing of how it was found. `happy - sad`, `2 * calm` and `-afraid` read as written; `random_like` gives the
control that every claim about a direction needs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pandas as pd
from torch import Tensor

from emoprobe.controls import turned_at_random
from emoprobe.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Direction:
    """Hold one vector per layer for one concept.

    `vectors` is (layers, d_model), of unit norm when it comes from a probe; sums and multiples are left as they fall.
    `residual_norms` (layers,) is the mean norm of the residual stream where the probe was fitted, the unit of steering
    strengths, or None where nothing was measured. `basis` names the coordinates of the residual stream that the vectors are
    written in, see `LiveModel.basis`. Raises `InputError` where the shapes do not agree.
    """

    concept: str
    layers: tuple[int, ...]
    vectors: Tensor
    residual_norms: Tensor | None = None
    basis: str = "raw"

    def __post_init__(self) -> None:
        if self.vectors.dim() != 2 or len(self.vectors) != len(self.layers):
            shape = tuple(self.vectors.shape)
            raise InputError(
                f'direction "{self.concept}": vectors of shape {shape} do not fit {len(self.layers)} layers'
            )
        if self.residual_norms is not None and self.residual_norms.shape != (len(self.layers),):
            shape = tuple(self.residual_norms.shape)
            raise InputError(
                f'direction "{self.concept}": residual norms of shape {shape}, for {len(self.layers)} layers'
            )

    def at(self, layer: int) -> Tensor:
        """Return the vector at one layer, (d_model,). Raises `InputError` for a layer that this direction lacks."""
        if layer not in self.layers:
            raise InputError(f'direction "{self.concept}" has no layer {layer!r}: it has {list(self.layers)}')
        return self.vectors[self.layers.index(layer)]

    def random_like(self, seed: int = 0) -> Direction:
        """Return a random direction: this one turned at random, with its norms and its angles between layers."""
        return self._with(f"random {seed}", turned_at_random(self.vectors, seed))

    def __add__(self, other: Direction) -> Direction:
        return self._combine(other, "+") if isinstance(other, Direction) else NotImplemented

    def __sub__(self, other: Direction) -> Direction:
        return self._combine(other, "-") if isinstance(other, Direction) else NotImplemented

    def __mul__(self, factor: float) -> Direction:
        if not isinstance(factor, (int, float)):
            return NotImplemented
        return self._with(f"{factor:g} {_bracketed(self.concept)}", self.vectors * factor)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Direction:
        if not isinstance(divisor, (int, float)):
            return NotImplemented
        return self._with(f"{_bracketed(self.concept)} / {divisor:g}", self.vectors / divisor)

    def __neg__(self) -> Direction:
        return self._with(f"-{_bracketed(self.concept)}", -self.vectors)

    def _combine(self, other: Direction, sign: str) -> Direction:
        if self.layers != other.layers or self.vectors.shape != other.vectors.shape:
            raise InputError(
                f'"{self.concept}" (layers {list(self.layers)}, width {self.vectors.shape[1]}) and "{other.concept}" '
                f"(layers {list(other.layers)}, width {other.vectors.shape[1]}) cannot be combined: they must agree in both"
            )
        if self.basis != other.basis:
            raise InputError(
                f'"{self.concept}" ({self.basis} residual stream) and "{other.concept}" ({other.basis}) cannot be combined'
            )
        name = f"{self.concept} {sign} {_bracketed(other.concept)}"
        return self._with(name, self.vectors + other.vectors if sign == "+" else self.vectors - other.vectors)

    def _with(self, concept: str, vectors: Tensor) -> Direction:
        return replace(self, concept=concept, vectors=vectors)

    @property
    def frame(self) -> pd.DataFrame:
        """Cosine between the vectors of each two layers, layers × layers."""
        unit = self.vectors.double() / self.vectors.double().norm(dim=-1, keepdim=True)
        layers = pd.Index(self.layers, name="layer")
        return pd.DataFrame((unit @ unit.T).cpu().numpy(), index=layers, columns=layers)

    def plot(self) -> Figure:
        """Draw the cosines between layers."""
        from emoprobe import drawing

        names = [str(layer) for layer in self.layers]
        with drawing.styled():
            figure, axes = drawing.panels(height=1.2 + min(5.0, 0.24 * len(names)))
            numbers = "+.2f" if len(names) <= 14 else None
            mesh = drawing.heat(axes[0, 0], self.frame.to_numpy(), names, names, limit=1.0, numbers=numbers)
            figure.colorbar(mesh, ax=axes[0, 0], label="cosine")
            axes[0, 0].set(xlabel="layer", ylabel="layer")
            axes[0, 0].set_title(self.concept, parse_math=False)
        return figure

    def _repr_html_(self) -> str:
        from emoprobe.notebook import shown

        return shown(repr(self), self.plot())

    def __repr__(self) -> str:
        return f"<Direction {self.concept}: layers {list(self.layers)}, width {self.vectors.shape[1]}>"


def _bracketed(name: str) -> str:
    return f"({name})" if " " in name or name.startswith("-") else name
