"""Do the directions lie to each other as the annotations do, and is that the model's doing?

Two concepts that people give to the same texts should point the same way: the cosine of two directions is set against the
correlation of the two annotations. But directions fitted to correlated annotations are alike whatever they are fitted on, even
on noise. So the control fits directions anew to annotations that were shuffled over texts, all concepts of a text together:
those agree with the annotations by the fit alone.
"""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from emoprobe import drawing
from emoprobe.corpora import Corpus
from emoprobe.intervals import exceedance, fisher_z, jackknife
from emoprobe.models.live import LiveModel
from emoprobe.probes import ProbeSet
from emoprobe.probes.estimators import fit_for
from emoprobe.probes.geometry import ordered
from emoprobe.probes.tasks import plan
from emoprobe.probes.validation import shuffle
from emoprobe.study.result import Result
from emoprobe.study.texts import targets
from emoprobe.study.wording import Floats, number, p_value, span

SHUFFLES = 39
SURE = 0.05
"""p below which it counts as more than fitting brings about."""


def geometry(
    model: LiveModel, probes: ProbeSet, corpus: Corpus, *, shuffles: int = SHUFFLES, seed: int = 0
) -> Result:
    """Compare the cosines of directions, at the best layer of all, with the correlations of annotations in `corpus`.

    `corpus` is what the probes were fitted on.
    """
    layer = probes.best_layer()
    found = probes.geometry(layer)
    names = list(probes.concepts)
    cosines = found.cosines.to_numpy()
    annotated = pd.DataFrame({name: targets(corpus, name) for name in names}).corr(min_periods=10).to_numpy()
    features = model.capture(corpus.texts, [layer])[:, 0].double().numpy()
    rho = agreement(cosines, annotated)
    chance = by_fitting_alone(probes, corpus, features, annotated, shuffles, seed)
    pairs = np.triu_indices(len(names), 1)
    table = pd.DataFrame(
        {
            "first": [names[row] for row in pairs[0]],
            "second": [names[row] for row in pairs[1]],
            "cosine": cosines[pairs],
            "annotations_r": annotated[pairs],
        }
    )
    return Result(
        name="geometry",
        title="How the directions lie",
        question="Do directions lie to each other as the annotations of texts do, by more than fitting brings about?",
        method=(
            f"Cosines of all {len(table)} pairs of directions at layer {layer}, the best on average, against the correlations "
            f"of their annotations. The control fits directions to annotations shuffled over texts, {shuffles} times: what "
            "these agree with the annotations comes from the fit alone."
        ),
        table=table,
        finding=(
            f"rank correlation {span(rho, *over_concepts(cosines, annotated))} over {len(table)} pairs, interval over concepts"
        ),
        controls=(
            f"directions fitted to shuffled annotations {number(float(np.max(chance)))} at most in {shuffles} fits, "
            f"{p_value(at_least(rho, chance))}"
        ),
        sign=int(at_least(rho, chance) < SURE) if np.isfinite(rho) else None,
        verdict=(
            f"{verdict(rho, chance)} {_extremes(table)} The first principal component holds {found.shares.iloc[0]:.0%} of the "
            "spread."
        ),
        figure=_figure(names, cosines, annotated),
        alt=(
            "Two matrices over all concepts side by side: cosines of their directions, and correlations of their annotations; "
            "orange above zero, blue below."
        ),
    )


def agreement(cosines: Floats, annotated: Floats) -> float:
    """Return Spearman's ρ of two matrices (concepts, concepts) over pairs known in both; NaN for fewer than three."""
    pairs = np.triu_indices(len(cosines), 1)
    known = np.isfinite(cosines[pairs]) & np.isfinite(annotated[pairs])
    if known.sum() < 3:
        return float("nan")
    return float(spearmanr(cosines[pairs][known], annotated[pairs][known]).statistic)


def over_concepts(cosines: Floats, annotated: Floats) -> tuple[float, float]:
    """Return the 95 % interval of that, each concept left out once, on Fisher's z; NaN for fewer than four concepts."""
    everyone = np.arange(len(cosines))
    kept = [np.ix_(rest, rest) for rest in (np.delete(everyone, one) for one in everyone)]
    left_out = np.array([agreement(cosines[rest], annotated[rest]) for rest in kept])
    low, high = np.tanh(jackknife(fisher_z(agreement(cosines, annotated)), fisher_z(left_out)))
    return float(low), float(high)


def at_least(rho: float, chance: Floats) -> float:
    """Return p: how often directions fitted to shuffled annotations agree with the annotations as much."""
    return float(exceedance(rho, chance))


def fitted(probes: ProbeSet, corpus: Corpus, features: Floats, seed: int = 0) -> Floats:
    """Return the cosines (concepts, concepts) of directions fitted to features (texts, d_model) as the probes were."""
    weights: dict[str, Floats] = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*nothing to learn")  # as when the probes were fitted
        tasks = plan(corpus, None, probes.metadata["folds"], seed)
    for task in tasks:
        fit = fit_for(probes.metadata["estimators"][task.kind], task.kind, task.exclusive)
        read_out = fit(features[task.rows], task.targets, task.group)
        weights |= dict(zip(task.concepts, read_out.weights, strict=True))
    stacked = np.stack([weights.get(name, np.full(features.shape[1], np.nan)) for name in probes.concepts])
    with np.errstate(invalid="ignore"):  # what says nothing has no direction
        unit = stacked / np.linalg.norm(stacked, axis=1, keepdims=True)
    cosines: Floats = unit @ unit.T
    return cosines


def by_fitting_alone(
    probes: ProbeSet, corpus: Corpus, features: Floats, annotated: Floats, shuffles: int, seed: int
) -> Floats:
    """Return the agreement (shuffles,) of directions that are fitted to features with the annotations of other texts."""
    order = np.random.default_rng(seed)
    group = np.unique(corpus.groups, return_inverse=True)[1]
    others = (corpus.select(indices=shuffle(group, order)) for _ in range(shuffles))
    return np.array([agreement(fitted(probes, other, features, seed), annotated) for other in others])


def verdict(rho: float, chance: Floats) -> str:
    """Say whether directions agree with annotations by more than those fitted to shuffled annotations do."""
    if not np.isfinite(rho):
        return "Cannot be told: there are too few pairs to say how the directions lie."
    p = at_least(rho, chance)
    if p < SURE:
        return f"Directions lie as their annotations do by more than fitting brings about ({p_value(p)})."
    return (
        f"That directions agree with annotations at {number(rho)} is not shown to be more than fitting alone brings about "
        f"({p_value(p)}): nothing is shown of the model."
    )


def _extremes(table: pd.DataFrame) -> str:
    ordered = table.sort_values("cosine")
    if ordered.empty:
        return ""
    furthest, closest = ordered.iloc[0], ordered.iloc[-1]
    return (
        f"Closest are {closest['first']} and {closest['second']} ({number(closest.cosine)}), least alike "
        f"{furthest['first']} and {furthest['second']} ({number(furthest.cosine)})."
    )


@drawing.styled()
def _figure(names: list[str], cosines: Floats, annotated: Floats) -> Figure:
    """Draw both matrices, like concepts beside like."""
    shown = ordered(pd.DataFrame(cosines, names, names))
    order = [names.index(name) for name in shown]
    figure, axes = drawing.panels(1, 2, height=1.2 + min(4.2, 0.19 * len(names)), sharey=True)
    apart = ~np.eye(len(names), dtype=bool)
    limit = float(np.nanmax(np.abs([cosines[apart], annotated[apart]])))
    titles = ("cosine of directions", "correlation of annotations")
    for axis, title, values in zip(axes.flat, titles, (cosines, annotated), strict=True):
        field = values[np.ix_(order, order)].copy()
        np.fill_diagonal(field, np.nan)
        drawing.heat(axis, field, shown, shown, limit=limit, numbers="+.2f" if len(names) <= 8 else None)
        axis.set_title(title)
    return figure
