"""The first claim: do word magnitudes vary more under valuation attention?"""

from __future__ import annotations

from textwrap import fill

import numpy as np
from matplotlib.figure import Figure

from emoprobe import drawing
from emoprobe.intervals import mean_interval
from emoprobe.study.claims.judging import SURE, Effect, effect_of_mean, stated
from emoprobe.study.claims.word_readings import WordReadings
from emoprobe.study.result import Result
from emoprobe.study.wording import p_value, span

CLAIM = "word magnitudes vary more"
PUBLISHED = "J. Marín 2024: heat maps of two sentences, from which this is read by eye; no model, number or control is given."


def magnitudes(read: WordReadings) -> Result:
    """Judge whether words' magnitudes vary more, by the coefficient of variation within each text."""
    changes = read.changes["variation"]
    found = effect_of_mean(
        CLAIM, "% of the coefficient of variation", 1, changes.probed, changes.random, read.groups
    )
    return Result(
        name="magnitudes",
        title="Claim 1: word magnitudes vary more",
        question="Do word magnitudes vary more under valuation attention than under standard attention?",
        method=(
            "Coefficient of variation of word magnitudes (L2 norm of the attention's output) within each of "
            f"{len(read.groups)} texts, paired with the same text untouched; {stated()}. Intervals over {found.clusters} "
            f"groups of texts; {read.controls} random valuations."
        ),
        table=found.rows(),
        finding=f"variation changes by {span(*found.mean, 2, True)} % of itself",
        controls=(
            f"random valuations {found.by_chance()} %; untouched it is {span(*mean_interval(read.coefficients))}"
        ),
        verdict=told(found),
        sign=found.outcome,
        checks={"λ = 0 leaves every magnitude as it was, to the last bit": read.untouched},
        figure=picture([found]),
        alt="How the coefficient of variation of word magnitudes changes with λ, for the probed valuation and random ones.",
        published=PUBLISHED,
    )


def told(found: Effect) -> str:
    """Write a claim with its verdict, and whether the probed valuation is told from random ones, whichever way it differs."""
    said = f"{found.claim[0].upper()}{found.claim[1:]}: {found.judged()}"
    if not np.isfinite(found.p_differs):
        return said
    differs = "differs" if found.p_differs < SURE else "is not shown to differ"
    return f"{said} It {differs} from random valuations on either side (exact {p_value(found.p_differs)})."


@drawing.styled()
def picture(effects: list[Effect]) -> Figure:
    """Draw effects against λ, with their intervals and the range of random valuations."""
    figure, axes = drawing.tiled(len(effects), height=2.7)
    for axis, found in zip(axes, effects, strict=True):
        rows = found.rows()
        each = rows[rows.strength.notna()]
        drawing.line(axis, each.strength, each.value, each.low, each.high, label="probed, 95 % interval")
        chance = each.dropna(subset="random_low")
        drawing.control(
            axis,
            chance.strength,
            low=chance.random_low,
            high=chance.random_high,
            label="one more random valuation, 95 %",
        )
        drawing.zero(axis)
        axis.set_title(fill(found.claim, 72 // min(3, len(effects))), fontsize=8)
        axis.set_xlabel("λ")
        axis.set_ylabel(fill(found.measure, 30), fontsize=8)
    drawing.legend_below(figure, axes[0])
    return figure
