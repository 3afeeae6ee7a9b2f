"""Can emotions be read from the residual stream, by more than words give away?

Everything is in the probe set already: cross-validated scores with their controls. This puts them into a figure and words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from emoprobe.probes import ProbeSet
from emoprobe.probes.probe_set import LABELS
from emoprobe.probes.summary import CONTROLS, best_rows, verdict
from emoprobe.study.result import Result
from emoprobe.study.wording import listed, number, p_value, span

METRICS = {"pearson_r": "r", "auc": "AUC", "accuracy": "accuracy", "macro_auc": "mean AUC"}
CEILING = 0.98
"""Score of the embedding from which on there is no room left to tell layers apart."""
GAINS = {control: CONTROLS[control] for control in ("layer0", "bag_of_words", "random_features")}
"""Controls that a score is paired with, as `probes.scores` names their gains."""
PANELS = 6


def probing(probes: ProbeSet, *, recovery: bool = False) -> Result:
    """Report how well probes read held-out groups of texts, layer by layer, beside their controls.

    With `recovery`, the emotions are known to be there, and finding them is a check: accuracy and valence r of at least 0.9.
    """
    best = best_rows(probes)
    main = [_row(best, concept) for concept in _headlines(probes)]
    checks = {"shuffled annotations score at chance": _shuffled_at_chance(probes)}
    if recovery:
        for row in main:
            checks[f"{_called(row)} at least 0.9"] = bool(row["value"] >= 0.9)
    about = probes.metadata
    return Result(
        name="probing",
        title="Reading emotions off the residual stream",
        question="Can what a text's emotion is be read from the model's residual stream, by more than its words give away?",
        method=(
            f"Linear probes ({listed([f'{name} for {kind}s' for kind, name in about['estimators'].items()])}) on the mean "
            f"residual stream of {about['texts']:,} texts at each of {len(probes.layers)} layers, scored on held-out groups "
            f"in {about['folds']} folds. Beside them the same with annotations shuffled {_times(about['permutations'])}, the "
            "embedding (layer 0), a bag of words, random features of the tokens, a control task (arbitrary labels of words) "
            "and how alike directions fitted to halves of the groups are. q is p against shuffled annotations, corrected for "
            "all concepts (Benjamini and Hochberg); a score counts if q is at most 0.05, and what it is above "
            f"each other control is more than nothing. {_tail(about['permutations'])}"
        ),
        table=probes.scores,
        finding="; ".join(
            f"{_called(row)} {span(row['value'], row['low'], row['high'])}, layer {row['layer']}"
            for row in main
        ),
        controls="; ".join(map(_judges, main)),
        verdict=" ".join(
            [
                _answer(main),
                *map(_sentence, main),
                *_others(best, main),
                CAUTION.format(len(probes.layers)),
            ]
        ),
        sign=int(all(map(_held, main))),
        parts={_called(row): _held(row) for row in main},
        checks=checks,
        figure=probes.plot(_shown(probes)),
        alt=(
            f"Score by layer for {_drawn(_shown(probes))}, with its 95 % interval, shuffled annotations, the embedding and a "
            "bag of words."
        ),
    )


def _times(permutations: Mapping[str, int]) -> str:
    return listed([f"{count} times for {kind}s" for kind, count in permutations.items()])


def _tail(permutations: Mapping[str, int]) -> str:
    """Say where a p comes from that is lower than so few permutations can count."""
    least = listed([f"{1 / (count + 1):.2g} for {kind}s" for kind, count in permutations.items() if count])
    return (
        f"So few permutations can count p no lower than {least}: what is lower is the tail of Student's t, and rests on their "
        "scores being normally distributed."
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


def _held(row: dict[Any, Any]) -> bool:
    """Say whether a score passes every control, and the embedding has left room for that."""
    return not row["fails"] and bool(row["layer0"] < CEILING)


def _answer(main: Sequence[dict[Any, Any]]) -> str:
    """Say which of the headline scores stand above every control, and which controls the others do not pass."""
    held, missed = [row for row in main if _held(row)], [row for row in main if not _held(row)]
    names = listed([_called(row) for row in held]) if held else "None"
    said = f"{names} of {listed([_called(row) for row in main])}" if missed else names
    said += f" {'stands' if len(held) < 2 else 'stand'} above every control"
    failed = list(dict.fromkeys(control for row in missed for control in row["fails"]))
    if failed:
        said += f"; not passed: {listed(failed)}"
    elif missed:
        said += ": the embedding leaves nothing to add"
    return f"{said[0].upper()}{said[1:]}."


def _judges(row: dict[Any, Any]) -> str:
    """Write what a score is judged by: how it lies to shuffled annotations, and by how much it is above each other control."""
    above = {
        name: (row[control], row[f"{control}_gain_low"], row[f"{control}_gain_high"])
        for control, name in GAINS.items()
    }
    above["a control task"] = (row["control_task"], row["selectivity_low"], row["selectivity_high"])
    less = [
        f"{name} {span(row['value'] - control, low, high, sign=True)}"
        for name, (control, low, high) in above.items()
    ]
    return (
        f"{_called(row)} against shuffled annotations (up to {number(row['shuffled_best_high'])}) "
        f"{p_value(row['q'], 'q')}, less {listed(less)}"
    )


def _sentence(row: dict[Any, Any]) -> str:
    """Say what a score is worth: it counts only where it passes every control."""
    said = f"{_called(row).capitalize()} is {span(row['value'], row['low'], row['high'])} at layer {row['layer']}"
    if CONTROLS["shuffled"] in row["fails"]:
        return (
            f"{said}, which is not shown to be above what shuffled annotations reach at their best layer "
            f"({number(row['shuffled_best_high'])}), corrected for all concepts."
        )
    if row["layer0"] >= CEILING:
        return f"{said}, a ceiling: the embedding reaches {number(row['layer0'], 3)}, which leaves next to nothing to add."
    if row["fails"]:
        below = [name for control, name in GAINS.items() if row[f"{control}_gain_high"] < 0]
        further = f" (it is below {listed(below)})" if below else ""
        words = ""
        if GAINS["bag_of_words"] in row["fails"]:
            words = ": words may be all that is read"
        elif GAINS["layer0"] in row["fails"]:
            words = ": no layer is shown to add to it"
        return f"{said}, above chance. {verdict(row)}{further}{words}."
    gains = [_gain(row, control, name) for control, name in GAINS.items()]
    return f"{said}, above all controls: {listed(gains)} on the same texts."


def _gain(row: dict[Any, Any], control: str, name: str) -> str:
    low, high = row[f"{control}_gain_low"], row[f"{control}_gain_high"]
    return f"{span(row['value'] - row[control], low, high, sign=True)} over {name} ({number(row[control])})"


def _others(best: pd.DataFrame, main: list[dict[Any, Any]]) -> list[str]:
    """Name the concepts that beat their controls and count those that do not."""
    shown = {row["concept"] for row in main}
    rest = best[~best.concept.isin(shown)]
    if rest.empty:
        return []
    held = rest.fails.str.len() == 0
    if not held.any():
        return [f"None of the {len(rest)} other concepts stands above all its controls."]
    names = listed(rest.concept[held].tolist(), 12)
    return [f"Of the {len(rest)} other concepts, {int(held.sum())} stand above all their controls ({names})."]


def _shuffled_at_chance(probes: ProbeSet) -> bool:
    """Say whether shuffled scores are at chance, for four in five scores: no higher on average, and lower only as one may be.

    On average they may be above chance by the 95 % interval of their mean, or by 0.01: more would be a leak. Below it they lie
    a little in any case, because what one fold has more of, the others have less of; there chance has to be in the range of
    single permutations. For accuracy chance is always saying the commonest label, which shuffling need not reach.
    """
    scores = probes.scores.dropna(subset=["shuffled_low", "shuffled_high"])
    if scores.empty:
        return True
    # A prediction range for one more permutation is √(n + 1) times as wide as the interval of the mean of n.
    kinds = scores.metric.map(lambda metric: "dimension" if metric == "pearson_r" else "label")
    permutations = kinds.map(probes.metadata["permutations"])
    reach = (scores.shuffled_high - scores.shuffled) / np.sqrt(permutations + 1)
    above = scores.shuffled - scores.chance > np.maximum(reach, 0.01)
    below = (scores.shuffled_high < scores.chance) & (scores.metric != "accuracy")
    return bool((above | below).mean() <= 0.2)


def _shown(probes: ProbeSet) -> list[str]:
    """Return the concepts to draw: all labels together and the dimensions; where these are few, the best-read labels too."""
    scored = set(probes.scores.concept)
    names = [LABELS, *(name for name in probes.concepts if probes.kinds[name] == "dimension")]
    if len(names) < 3:
        best = probes.scores.groupby("concept").value.max()
        names += sorted((name for name in probes.concepts if name not in names), key=lambda name: -best[name])
    return [name for name in names if name in scored][:PANELS]


def _drawn(names: Sequence[str]) -> str:
    return listed(["all labels together" if name == LABELS else name for name in names])
