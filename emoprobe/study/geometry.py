"""Do the directions lie to each other as the annotations do?

Two concepts that people give to the same texts should point the same way. The cosine of two directions is set against the
correlation of the two annotations, and both against the same after the concepts' names have been permuted (Mantel 1967).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.stats import spearmanr

from emoprobe import drawing
from emoprobe.corpora import Corpus
from emoprobe.probes import ProbeSet
from emoprobe.study.result import Result
from emoprobe.study.texts import targets
from emoprobe.study.wording import Floats, number

PERMUTATIONS = 2000


def geometry(probes: ProbeSet, corpus: Corpus, *, seed: int = 0) -> Result:
    """Compare the cosines of directions, at the best layer of all, with the correlations of annotations in `corpus`."""
    layer = probes.best_layer()
    found = probes.geometry(layer)
    names = list(probes.concepts)
    cosines = found.cosines.to_numpy()
    annotated = pd.DataFrame({name: targets(corpus, name) for name in names}).corr(min_periods=10).to_numpy()
    pairs = np.triu_indices(len(names), 1)
    table = pd.DataFrame(
        {
            "first": [names[row] for row in pairs[0]],
            "second": [names[row] for row in pairs[1]],
            "cosine": cosines[pairs],
            "annotations_r": annotated[pairs],
        }
    )
    rho, p = _mantel(cosines, annotated, seed)
    closest = table.loc[table.cosine.idxmax()]
    furthest = table.loc[table.cosine.idxmin()]
    share = float(found.shares.iloc[0])
    few = " With so few pairs that says little." if len(table) < 10 else ""
    return Result(
        name="geometry",
        title="How the directions lie",
        question="Do the directions lie to each other as the emotions do that people, or the generator, gave to the same texts?",
        method=(
            f"Cosines of all {len(table)} pairs of directions at layer {layer}, the best on average, against the correlations "
            f"of their annotations; the control permutes the concepts' names {PERMUTATIONS:,} times."
        ),
        table=table,
        finding=f"rank correlation {number(rho)} over {len(table)} pairs",
        controls=f"p = {p:.3g} when names are permuted",
        verdict=(
            f"Directions {'lie' if p < 0.05 and rho > 0 else 'are not shown to lie'} as their annotations do (Spearman {number(rho)}, "
            f"p = {p:.3g}).{few} Closest are {closest['first']} and {closest['second']} ({number(closest.cosine)}), most opposed "
            f"{furthest['first']} and {furthest['second']} ({number(furthest.cosine)}). The first principal component holds "
            f"{share:.0%} of the spread."
        ),
        figure=_figure(names, cosines, annotated),
        alt="Two matrices over all concepts side by side: cosines of their directions, and correlations of their annotations.",
    )


def _mantel(cosines: Floats, annotated: Floats, seed: int) -> tuple[float, float]:
    """Return Spearman's ρ over pairs of concepts, and how often it is as high when one side's concepts are permuted."""
    pairs = np.triu_indices(len(cosines), 1)
    known = np.isfinite(annotated[pairs])
    if known.sum() < 3:
        return float("nan"), 1.0

    def agreement(order: np.ndarray) -> float:
        permuted = annotated[np.ix_(order, order)][pairs]
        both = np.isfinite(permuted)
        return float(spearmanr(cosines[pairs][both], permuted[both]).statistic)

    generator = np.random.default_rng(seed)
    rho = agreement(np.arange(len(cosines)))
    chance = np.array([agreement(generator.permutation(len(cosines))) for _ in range(PERMUTATIONS)])
    return rho, float((1 + (chance >= rho - 1e-12).sum()) / (1 + PERMUTATIONS))


@drawing.styled()
def _figure(names: list[str], cosines: Floats, annotated: Floats) -> object:
    if len(names) > 2:  # like beside like
        tree = linkage(1 - cosines[np.triu_indices(len(names), 1)].clip(-1, 1), "average", optimal_ordering=True)
        order = leaves_list(tree)
    else:
        order = np.arange(len(names))
    height = 1.3 + min(4.2, 0.19 * len(names))
    figure, axes = drawing.panels(1, 2, height=height, sharey=True)
    shown = [names[place] for place in order]
    for axis, title, values in zip(axes.flat, ("cosine of directions", "correlation of annotations"), (cosines, annotated), strict=True):
        field = values[np.ix_(order, order)].copy()
        np.fill_diagonal(field, np.nan)
        image = drawing.heat(axis, field, shown, shown, limit=1.0)
        axis.set_title(title)
    bar = figure.colorbar(image, ax=axes.ravel().tolist(), shrink=0.8, aspect=30)
    bar.outline.set_visible(False)
    return figure
