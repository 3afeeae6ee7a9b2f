"""Can emotions be read from the residual stream, and from which layer on?

Everything is in the probe set already: cross-validated scores with their controls. This puts them into a figure and words.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from emoprobe.probes import ProbeSet
from emoprobe.probes.tasks import LABELS
from emoprobe.study.result import Result
from emoprobe.study.wording import listed, number, span

METRICS = {"pearson_r": "r", "auc": "AUC", "accuracy": "accuracy", "macro_auc": "mean AUC"}
CHANCE = {"pearson_r": 0.0, "auc": 0.5, "macro_auc": 0.5}
PANELS = 6


def probing(probes: ProbeSet, *, recovery: bool = False) -> Result:
    """Report how well probes read held-out groups of texts, layer by layer, beside their controls.

    With `recovery`, the emotions are known to be there, and finding them is a check: accuracy and valence r of at least 0.9.
    """
    scores = probes.scores.dropna(subset="value")
    best = scores.loc[scores.groupby(["concept", "metric"], sort=False)["value"].idxmax()]
    main = [_row(best, concept) for concept in _headlines(probes)]
    checks = {"shuffled annotations score at chance": _shuffled_at_chance(scores)}
    if recovery:
        for row in main:
            checks[f"{_called(row)} at least 0.9"] = bool(row["value"] >= 0.9)
    about = probes.metadata
    return Result(
        name="probing",
        title="Reading emotions off the residual stream",
        question="Can what a text's emotion is be read from the model's residual stream, and from which layer on?",
        method=(
            f"Linear probes ({listed([f'{name} for {kind}s' for kind, name in about['estimators'].items()])}) on the mean "
            f"residual stream of {about['texts']:,} texts at each of {len(probes.layers)} layers, scored on held-out groups "
            f"in {about['folds']} folds. Beside them the same with shuffled annotations, the embedding (layer 0) and a bag of "
            "words."
        ),
        table=probes.scores,
        finding="; ".join(
            f"{_called(row)} {span(row['value'], row['low'], row['high'])}, layer {row['layer']}"
            for row in main
        ),
        controls="; ".join(
            f"shuffled {number(row['shuffled'])}, embedding {number(row['layer0'])}, words {number(row['bag_of_words'])}"
            for row in main
        ),
        verdict=" ".join(
            [_sentence(row) for row in main] + _others(best, main) + [CAUTION.format(len(probes.layers))]
        ),
        checks=checks,
        figure=probes.plot(_shown(probes)),
        alt="Score by layer for each concept, with its 95 % interval, shuffled annotations, the embedding and a bag of words.",
    )


CAUTION = (
    "Intervals are 95 % over resampled groups of held-out texts; they allow neither for refitting nor for having picked the "
    "best of {} layers."
)


def _headlines(probes: ProbeSet) -> list[str]:
    """Return the concepts that speak for all: the labels together, and valence or else the first dimension."""
    dimensions = [name for name in probes.concepts if probes.kinds[name] == "dimension"]
    labels = [LABELS] if (probes.scores.concept == LABELS).any() else []
    return labels + (["valence"] if "valence" in dimensions else dimensions[:1])


def _row(best: pd.DataFrame, concept: str) -> dict[Any, Any]:
    return best[best.concept == concept].iloc[0].to_dict()


def _called(row: dict[Any, Any]) -> str:
    return f"{'emotion' if row['concept'] == LABELS else row['concept']} {METRICS[row['metric']]}"


def _sentence(row: dict[Any, Any]) -> str:
    """Say what a score is worth: it counts only where its interval lies above every control."""
    controls = {
        "shuffled annotations": row["shuffled_high"],
        "the embedding": row["layer0"],
        "a bag of words": row["bag_of_words"],
    }
    above = [name for name, value in controls.items() if row["low"] > value]
    below = [name for name in controls if name not in above]
    said = f"{_called(row).capitalize()} is {span(row['value'], row['low'], row['high'])} at layer {row['layer']}"
    if not below:
        best = max(controls, key=lambda name: controls[name])
        return (
            f"{said}, above all three controls, the best of which, {best}, reaches {number(controls[best])}."
        )
    if "shuffled annotations" in below:
        return f"{said}, which is not above what shuffled annotations reach: nothing was found."
    return f"{said}, above chance but not above {listed(below)}: words may be all that is read."


def _others(best: pd.DataFrame, main: list[dict[Any, Any]]) -> list[str]:
    """Name the concepts that beat their controls and count those that do not."""
    shown = {row["concept"] for row in main}
    rest = best[~best.concept.isin(shown)]
    if rest.empty:
        return []
    held = rest.low > rest[["shuffled_high", "layer0", "bag_of_words"]].max(axis=1)
    if not held.any():
        return [f"None of the {len(rest)} other concepts stands above all its controls."]
    names = listed(rest.concept[held].tolist(), 12)
    return [f"Of the {len(rest)} other concepts, {int(held.sum())} stand above all their controls ({names})."]


def _shuffled_at_chance(scores: pd.DataFrame) -> bool:
    """Whether chance lies in the range of shuffled scores, for at least four in five of all scores with a known chance."""
    known = scores[scores.metric.isin(CHANCE)].dropna(subset=["shuffled_low", "shuffled_high"])
    if known.empty:
        return True
    chance = known.metric.map(CHANCE)
    return bool(np.mean((known.shuffled_low <= chance) & (chance <= known.shuffled_high)) >= 0.8)


def _shown(probes: ProbeSet) -> list[str]:
    """Return the concepts to draw: all labels together and the dimensions; where these are few, the best-read labels too."""
    scored = set(probes.scores.concept)
    names = [LABELS, *(name for name in probes.concepts if probes.kinds[name] == "dimension")]
    if len(names) < 3:
        best = probes.scores.groupby("concept").value.max()
        names += sorted((name for name in probes.concepts if name not in names), key=lambda name: -best[name])
    return [name for name in names if name in scored][:PANELS]
