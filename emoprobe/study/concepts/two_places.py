"""What is read at two places, held against each other: correlations, words and a picture for `dissociation` and `reply`.

Any direction is alike at two places so close, and any probe has its own mean, so that both stand beside random directions, and
the means of probes over prompts are taken out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from emoprobe import drawing
from emoprobe.intervals import Floats, correlation
from emoprobe.study.concepts.evidence import Evidence, p_two_sided
from emoprobe.study.wording import number, span

PLACES = ("user_end", "before_reply")
LEAST_PROMPTS = 6
SHUFFLES = 999


def across(x: Floats, y: Floats, *, centred: bool, shuffles: int, seed: int = 0) -> Evidence:
    """Return Pearson's r of read-outs at two places, (1 + controls, prompts, concepts) each, over prompts and concepts.

    With `centred` each concept's mean over prompts is taken out first. The interval is over prompts; p is from shuffling the
    prompts at one place, which leaves the concepts' means alone.
    """
    if centred:
        x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    prompts, count = x.shape[1:]
    groups = np.repeat(np.arange(prompts), count)
    r, low, high = correlation(x[0].ravel(), y[0].ravel(), groups, seed)
    generator = np.random.default_rng(seed)
    null = np.array([r_of(x[0], y[0][generator.permutation(prompts)]) for _ in range(shuffles)])
    # With the means left in shuffled prompts are alike too: what counts is how far r lies from what they give.
    p = p_two_sided(r - null.mean(), null - null.mean()) if np.isfinite(r) else np.nan
    chance = np.array([r_of(a, b) for a, b in zip(x[1:], y[1:], strict=True)])
    return Evidence(r, low, high, chance, 0.0, p, (-1.0, 1.0))


def r_of(x: Floats, y: Floats) -> float:
    a, b = x.ravel() - x.mean(), y.ravel() - y.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 1e-12 else 0.0


def spanned(found: Evidence, digits: int = 2, sign: bool = False) -> str:
    return span(found.value, found.low, found.high, digits, sign)


def expected(found: Evidence, digits: int = 2) -> str:
    low, high = (number(bound, digits, True) for bound in found.expected)
    return f"{low} to {high}"


@drawing.styled()
def scatter(values: Floats, emotions: Sequence[str], across_: str, up: str) -> Figure:
    """Draw read-outs at two places, (prompts, 2, concepts), against each other."""
    figure, axes = drawing.panels(1, 1, height=3.6)
    axis = axes[0, 0]
    apart = values - values.mean(0)
    markers = "osD^vPX*<>"
    for place, emotion in enumerate(emotions):
        colour = drawing.PALETTE[place % len(drawing.PALETTE)]
        marker = markers[place // len(drawing.PALETTE) % len(markers)]
        axis.plot(
            apart[:, 0, place],
            apart[:, 1, place],
            marker,
            color=colour,
            label=emotion,
            alpha=0.8,
            linestyle="none",
        )
    drawing.zero(axis)
    drawing.zero(axis, vertical=True)
    axis.set_xlabel(f"{across_}, probe's mean taken out")
    axis.set_ylabel(f"{up}, probe's mean taken out")
    drawing.legend_below(figure, axis, 6)
    return figure
