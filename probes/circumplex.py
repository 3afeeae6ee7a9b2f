"""The circumplex: emotions on two components, turned to where people put them by valence and arousal (Russell 1980).

Components have arbitrary signs, and valence may lie between two of them. So the plane of two components is turned, and mirrored
where that fits better, to human ratings by Procrustes' method, and how well it then fits is set against ratings permuted over
concepts and turned to in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from emoprobe import drawing
from emoprobe.errors import InputError
from emoprobe.intervals import exceedance
from emoprobe.notebook import shown
from emoprobe.probes.estimators import Floats
from emoprobe.probes.geometry import PERMUTATIONS, Geometry, Norms, pearson, ratings_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLACES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
"""Where a name may stand beside its point, the best places first."""


@dataclass(frozen=True, eq=False, repr=False)
class Circumplex:
    """Hold concepts in the plane of two components; `circumplex` makes one."""

    frame: pd.DataFrame
    """One row per concept: concept, x, y (the components, turned to the ratings where there are any), and the ratings."""
    axes: tuple[str, str]
    """What x and y are."""
    share: float
    """Share of the variance over concepts in the plane."""
    fit: float
    """1 - Procrustes' disparity, from 0 to 1: the part of the ratings' variance that the turned plane explains; NaN without."""
    p: float
    """How often ratings permuted over concepts are fitted as well."""
    r: tuple[float, float]
    """Pearson's r of x and y with the two ratings, after turning."""

    def __repr__(self) -> str:
        fit = f"; fit to ratings {self.fit:.2f}, p = {self.p:.3g}" if np.isfinite(self.fit) else ""
        return f"<Circumplex of {len(self.frame)} concepts: {self.axes[0]} × {self.axes[1]}{fit}>"

    def _repr_html_(self) -> str:
        return shown(repr(self), self.plot(), self.frame)

    def plot(self) -> Figure:
        """Draw the concepts with their names; names that would cover another are left out, their points are not."""
        with drawing.styled():
            figure, axes = drawing.panels(height=6.0)
            axis = axes[0, 0]
            x, y = self.frame.x.to_numpy(), self.frame.y.to_numpy()
            shown = self.frame[self.axes[0]] if self.axes[0] in self.frame else None
            if shown is None:
                axis.plot(x, y, "o")
            else:
                values = shown.to_numpy(float)
                middle = np.nanmean(values)
                reach = float(np.nanmax(np.abs(values - middle)))
                axis.scatter(x, y, c=drawing.CONTROL, s=14)
                mesh = axis.scatter(
                    x, y, c=values - middle, cmap=drawing.DIVERGING, vmin=-reach, vmax=reach, s=16
                )
                figure.colorbar(mesh, ax=axis, label=f"human {self.axes[0]} about its mean")
            drawing.zero(axis)
            drawing.zero(axis, vertical=True)
            axis.margins(0.12)
            label(figure, axis, x, y, self.frame.concept.tolist())
            axis.set(
                xlabel=self.axes[0],
                ylabel=self.axes[1],
                title=f"{self.share:.0%} of the variance lies in this plane",
            )
        return figure


def circumplex(
    geometry: Geometry,
    norms: Norms | None = None,
    *,
    components: tuple[int, int] = (1, 2),
    dimensions: tuple[str, str] = ("valence", "arousal"),
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Circumplex:
    """Return the plane of two components (counted from 1), turned to two human ratings where `norms` gives them.

    Ratings are standardised over concepts, so that both weigh alike; concepts without them are turned along. The plane is
    chosen before the ratings are seen: whoever tries several has to allow for it. Raises `InputError` for a component or
    rating that is not there.
    """
    names = [f"PC{number}" for number in components]
    for name in names:
        if name not in geometry.coordinates:
            raise InputError(f"no component {name}: there are {', '.join(geometry.coordinates.columns[:8])}")
    points = geometry.coordinates[names].to_numpy()
    frame = pd.DataFrame({"concept": geometry.coordinates.index, "x": points[:, 0], "y": points[:, 1]})
    share = float(geometry.shares[names].sum())
    if norms is None:
        return Circumplex(frame, (names[0], names[1]), share, np.nan, np.nan, (np.nan, np.nan))
    ratings = ratings_of(norms, geometry.coordinates.index)
    missing = [name for name in dimensions if name not in ratings]
    if missing:
        raise InputError(f"no rating {missing[0]!r}: there are {', '.join(ratings.columns)}")
    wanted = ratings[list(dimensions)].to_numpy()
    rated = np.isfinite(wanted).all(1)
    if rated.sum() < 3:
        raise InputError(
            f"only {int(rated.sum())} of these concepts have both ratings: turning a plane needs three or more"
        )
    target = wanted[rated] - wanted[rated].mean(0)
    target /= np.maximum(np.linalg.norm(target, axis=0), np.finfo(float).tiny) * np.sqrt(2)
    middle = points[rated].mean(0)
    source = points[rated] - middle
    source = source / max(np.linalg.norm(source), np.finfo(float).tiny)
    turn, fit = procrustes(source, target)
    generator = np.random.default_rng(seed)
    null = [procrustes(source, target[generator.permutation(len(target))])[1] for _ in range(permutations)]
    turned = (points - middle) @ turn
    frame = frame.assign(x=turned[:, 0], y=turned[:, 1], **dict(zip(dimensions, wanted.T, strict=True)))
    r = tuple(pearson(turned[rated, place], wanted[rated, place]) for place in (0, 1))
    return Circumplex(frame, dimensions, share, fit, exceedance(fit, np.array(null)), (r[0], r[1]))


def procrustes(source: Floats, target: Floats) -> tuple[Floats, float]:
    """Return the rotation or reflection (2, 2) that takes source closest to target, and the share of target explained.

    Both are (n, 2), centred, their squares summing to 1 (Schönemann 1966; with scaling, as `scipy.spatial.procrustes`).
    """
    left, singular, right = np.linalg.svd(source.T @ target)
    return left @ right, float(singular.sum() ** 2)


def label(figure: Figure, axis: Axes, x: Floats, y: Floats, names: list[str], size: float = 7.5) -> None:
    """Write names beside points, each where it covers neither another name nor a point, or not at all."""
    figure.draw_without_rendering()  # only then is it known where the axes lie
    pixels = axis.transData.transform(np.column_stack([x, y])) * 72 / figure.dpi  # in points, as offsets are
    taken = [(across - 2, up - 2, across + 2, up + 2) for across, up in pixels]
    for place, name in enumerate(names):
        text = axis.annotate(
            name, (x[place], y[place]), (0, 0), textcoords="offset points", fontsize=size, parse_math=False
        )
        extent = text.get_window_extent()
        long, tall = extent.width * 72 / figure.dpi, extent.height * 72 / figure.dpi
        for right, above in PLACES:
            start = right * 4 - (long / 2 if right == 0 else long if right < 0 else 0)
            base = above * 4 - (tall / 2 if above == 0 else tall if above < 0 else 0)
            left, bottom = pixels[place] + (start, base)
            box = (left, bottom, left + long, bottom + tall)
            if not any(_overlap(box, other) for other in taken):
                taken.append(box)
                text.set_position((start, base))
                text.set_verticalalignment("bottom")
                break
        else:
            text.remove()


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
