"""What else the annotations go with, and how much a probe still reads when that is held constant.

Where sad texts are longer, a probe of length passes for one of sadness, in every group and beside every control. So for each
candidate z (length, punctuation, opening, names, source, and what the user brings) two things are measured on the folds and
the resamples of the probe's own score:

1. *Alone*: how well z tells the concept in held-out groups, by ridge regression, beside shuffled annotations.
2. *Held constant*: the score of the probe's held-out read-outs where texts are compared within a fold and a stratum of z only,
   beside what z itself still tells there. Strata are fifths of what z predicts of the concept (of its propensity or prognostic
   score: Rosenbaum & Rubin 1983, Hansen 2008), which balances the annotations over z of any kind; five take away about nine
   tenths of a confound (Cochran 1968), and the comparison with z in the same strata accounts for the rest. Within strata an
   AUC is the covariate-adjusted one of Janes & Pepe 2009, a correlation the partial one.

The read-outs are judged, not the features regressed on z: a linear regression leaves features what is not linear in z, for the
probe to find (Dinga et al. 2020, bioRxiv 2020.08.17.255034), and outside of cross-validation it biases scores downwards (Snoek,
Miletić & Scholte 2019, NeuroImage 184). Comparing held-out predictions where z and the annotation are independent is what
Chyzhyk et al. 2022 (GigaScience 11) recommend too. A candidate that goes with an emotion is not for that an artefact: people
may write shorter when angry. What is asked is whether the probe is shown to read more than it.

Two artefacts at once let a probe read more than either, so that all candidates together are one more candidate. What a number
tells may be smooth, in steps, or a code's; an interaction of two candidates is not looked for.

Held-out groups cannot separate an annotation from what its group is, where it is the same all over each group; that is looked
for as the candidate "group", by comparing within groups. This file knows texts, annotations and read-outs, nothing of models.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import false_discovery_control, rankdata
from sklearn.linear_model import Ridge
from sklearn.preprocessing import SplineTransformer

from emoprobe.errors import InputError
from emoprobe.probes import metrics
from emoprobe.probes.control_task import WORD
from emoprobe.probes.estimators import Floats, Integers, LinearReadOut, Standardised, sharing
from emoprobe.probes.probe_set import CONFOUNDS, LABELS
from emoprobe.probes.tasks import Task
from emoprobe.probes.validation import out_of_fold, permutation_p, shuffle, times

GROUP = "group"
"""The candidate that stands for what the texts of a group have in common."""
TOGETHER = "everything together"
"""The candidate that is all others at once: a probe of two artefacts reads more than either."""
STRATA = 5
PENALTY = 30.0
"""Of the ridge regression on standardised columns, of which there may be as many as texts."""
KNOTS, STEPS = 6, 40
WORDS = 3
"""How many words of a text's beginning and end are looked at."""
LEAST, MOST = 5, 200
"""A value of a candidate that fewer texts have is no value of its own, and so many values at most are."""


def candidates(
    texts: Sequence[str], further: Mapping[str, Sequence[object]] | None = None
) -> dict[str, Floats]:
    """Return each candidate as columns (texts, columns) that a linear model can tell annotations from.

    From the texts come length (in words and marks), punctuation (how often each mark stands), opening and ending (the first and
    last one, two and three words) and names (words that these texts write with a capital only). `further` maps names to one
    value per text: numbers, or what is compared as strings. Numbers enter as a cubic spline of their ranks and as steps, at
    each fortieth of the texts; these too, and all else, as one column for each value that LEAST texts have. What is the same
    everywhere is left out; what varies but has no value that LEAST texts share keeps no column, and cannot be checked. Last
    comes TOGETHER, the columns of all. Raises `InputError` for a wrong number of values, a number that is missing, and a name
    that stands for something else.
    """
    check_values(further or {}, len(texts))
    words = [re.findall(WORD, text) for text in texts]
    marks = [Counter(word for word in row if not word[0].isalnum()) for row in words]
    found = {
        "length": _numbers(np.array([len(row) for row in words])),
        "punctuation": _bag(marks),
        "opening": _bag([_starts(row) for row in words]),
        "ending": _bag([_starts([word for word in row if word[0].isalnum()][::-1]) for row in words]),
        "names": _bag(_names(words)).clip(max=1),
    }
    for name, values in (further or {}).items():
        if name in found or name in (GROUP, TOGETHER):
            raise InputError(f"confounds: {name!r} is looked for anyway; give it another name")
        found[name] = _columns(name, values)
    varied = {name: np.asarray(z[:, np.ptp(z, axis=0) > 0], dtype=np.float64) for name, z in found.items()}
    unshared = {name for name, values in (further or {}).items() if len({str(value) for value in values}) > 1}
    kept = {name: z for name, z in varied.items() if z.shape[1] or name in unshared}
    told = [z for z in kept.values() if z.shape[1]]
    return {**kept, TOGETHER: np.hstack(told)} if len(told) > 1 else kept


def check_values(further: Mapping[str, Sequence[object]], texts: int) -> None:
    """Raise `InputError` where a candidate has not one value for each text."""
    for name, values in further.items():
        if len(values) != texts:
            raise InputError(f"confounds: {name!r} has {len(values)} values for {texts} texts; give one each")


def _columns(name: str, values: Sequence[object]) -> NDArray[Any]:
    cells = np.asarray(values)
    if cells.dtype.kind not in "iuf":
        return _bag([Counter([str(value)]) for value in values])
    if not np.isfinite(cells).all():
        raise InputError(f"confounds: {name!r} lacks numbers; give them all, or strings for what is unknown")
    return _numbers(cells)


def _numbers(numbers: NDArray[Any]) -> NDArray[Any]:
    """Return what a smooth function of numbers (texts,), one with steps, and one of each repeated number are made of."""
    ranks: NDArray[Any] = rankdata(numbers)[:, None] / len(numbers)
    if np.ptp(ranks) == 0:
        return ranks
    smooth = SplineTransformer(KNOTS, include_bias=False).fit_transform(ranks)
    steps = ranks > np.arange(1, STEPS) / STEPS
    columns: NDArray[Any] = np.hstack([smooth, steps, _bag([Counter([str(number)]) for number in numbers])])
    return columns


def _bag(rows: Sequence[Counter[str]]) -> NDArray[Any]:
    """Count what at least LEAST rows have, the commonest MOST of it: (rows, kinds)."""
    shared = Counter(kind for row in rows for kind in row)
    kinds = [kind for kind, count in shared.most_common(MOST) if count >= LEAST]
    return np.array([[row[kind] for kind in kinds] for row in rows], dtype=np.float64).reshape(len(rows), -1)


def _starts(words: Sequence[str]) -> Counter[str]:
    return Counter(" ".join(words[:count]) for count in range(1, min(WORDS, len(words)) + 1))


def _names(words: Sequence[Sequence[str]]) -> list[Counter[str]]:
    """Return each text's words that stand within a sentence somewhere, and nowhere without a capital."""
    small = {word for row in words for word in row if word[0].islower()}
    inside = {word for row in words for before, word in pairwise(row) if before[0].isalnum() or before == ","}
    names = {word for word in inside if word[0].isupper() and word.lower() not in small}
    return [Counter(word for word in row if word in names) for row in words]


def check_confounds(
    task: Task,
    best: Mapping[str, int],
    held_out: Mapping[int, Floats],
    found: Mapping[str, Floats],
    options: tuple[int, int, int],
) -> pd.DataFrame:
    """Return a row of CONFOUNDS (but q) for each measure of the task that `best` names and candidate, and for "group".

    `best` says at which layer each concept, and LABELS, is looked at; `held_out` holds that layer's held-out read-outs (texts,
    concepts), `found` the candidates of the task's texts, `options` the numbers of resamples and permutations, and the seed.
    All labels together are scored by the mean AUC, since an accuracy compares no texts.
    """
    bootstrap, permutations, seed = options
    ranked = replace(task, exclusive=False)
    measures = [concept for concept, _ in ranked.measures]
    weights = metrics.weighting(task.group, task.fold, bootstrap, seed)
    order = np.random.default_rng(seed)
    shuffled = [task.targets[shuffle(task.group, order)] for _ in range(times(task.kind, permutations))]
    scored = {layer: ranked.score(read, task.targets, weights)[0] for layer, read in held_out.items()}
    rows: list[dict[str, object]] = []
    for name, z in found.items():
        if not z.shape[1]:
            rows += [
                {
                    "layer": best[concept],
                    "concept": concept,
                    "confound": name,
                    "metric": metric,
                    "chance": chance,
                }
                for (concept, metric), chance in zip(ranked.measures, ranked.chance, strict=True)
                if concept in best
            ]
            continue
        told, *by_chance = np.split(
            out_of_fold(_ridge, z, np.hstack([task.targets, *shuffled]), task.group, task.fold),
            1 + len(shuffled),
            axis=1,
        )
        alone = ranked.score(told, task.targets, weights)
        low, high = np.clip(metrics.interval(alone, task.groups), *task.bounds)
        null = [ranked.score(x, y, task.plain)[0] for x, y in zip(by_chance, shuffled, strict=True)]
        p = permutation_p(alone[0], np.array(null).reshape(-1, len(ranked.measures)))
        cells = [_strata(column, task.fold) for column in told.T]
        for row in _held_constant(task, ranked, name, best, held_out, told, cells, weights):
            place = measures.index(str(row["concept"]))
            row |= {
                "alone": alone[0, place],
                "alone_low": low[place],
                "alone_high": high[place],
                "p": p[place],
            }
            rows.append(row)
    if task.groups < len(task.group):
        told = np.zeros(task.targets.shape)
        cells = [task.group] * len(task.concepts)
        rows += _held_constant(task, ranked, GROUP, best, held_out, told, cells, weights)
    for row in rows:
        concept = str(row["concept"])
        row["value"] = scored[best[concept]][measures.index(concept)]
    return pd.DataFrame(rows).reindex(columns=CONFOUNDS)


@sharing
def _ridge(scaled: Standardised, targets: Floats, group: Integers) -> LinearReadOut:
    model = Ridge(PENALTY).fit(scaled.coordinates, targets)
    return scaled.read_out(model.coef_.reshape(targets.shape[1], -1), model.intercept_)


def _strata(told: Floats, fold: Integers) -> Integers:
    """Number the cells in which texts are of one fold and of one fifth of what a candidate predicts: (texts,)."""
    cell = np.empty(len(told), dtype=np.int64)
    for number in np.unique(fold):
        rows = fold == number
        values, place = np.unique(told[rows].round(9), return_inverse=True)
        if len(values) > STRATA:
            middle = (rankdata(place) - 0.5) / len(place) - 0.5  # of equals; mirrored where the annotation is
            place = np.round(STRATA * middle).astype(np.int64) + STRATA // 2
        cell[rows] = number * STRATA + place
    return cell


def _held_constant(
    task: Task,
    ranked: Task,
    name: str,
    best: Mapping[str, int],
    held_out: Mapping[int, Floats],
    told: Floats,
    cells: Sequence[Integers],
    weights: metrics.Weighting,
) -> list[dict[str, object]]:
    """Return a row for each measure with what read-outs, and a candidate's own predictions `told`, score within `cells`."""

    @cache  # all labels together ask for what each label asks for
    def within(column: int, layer: int) -> tuple[Floats, float, float]:
        both = np.stack([held_out[layer][:, column], told[:, column]], axis=1)
        truth = task.targets[:, [column, column]]
        score = metrics.correlation if task.kind == "dimension" else metrics.auc
        inside = metrics.Weighting(task.group, cells[column], weights.counts)
        spread = _spread(truth[:, 0], cells[column])
        left = spread / max(_spread(truth[:, 0], task.fold), 1e-12)
        scores = score(both, truth, inside)
        compared = spread if task.kind == "label" else left * len(truth)
        return (scores if left > 1e-9 else np.full_like(scores, np.nan)), left, compared

    rows = []
    for (concept, metric), chance in zip(ranked.measures, ranked.chance, strict=True):
        if concept not in best:  # fitted along with what was asked for
            continue
        layer = best[concept]
        columns = range(len(task.concepts)) if concept == LABELS else [task.concepts.index(concept)]
        parts, left, compared = zip(*(within(column, layer) for column in columns), strict=True)
        held, alone = (metrics.mean_known(np.stack([part[:, side] for part in parts], 1)) for side in (0, 1))
        low, high = np.clip(metrics.interval(held, task.groups), *task.bounds)
        gain_low, gain_high = metrics.interval(held - alone, task.groups)
        rows.append(
            {
                "layer": layer,
                "concept": concept,
                "confound": name,
                "metric": metric,
                "chance": chance,
                "held": held[0],
                "held_low": float(low),
                "held_high": float(high),
                "alone_held": alone[0],
                "held_gain_low": float(gain_low),
                "held_gain_high": float(gain_high),
                "left": float(np.mean(left)),
                "compared": float(np.mean(compared)),
            }
        )
    return rows


def _spread(truth: Floats, cell: Integers) -> float:
    """Return the sum of squares about the means of cells; of 0 and 1, how many 1 it amounts to with any number of 0 beside."""
    member = np.unique(cell, return_inverse=True)[1]
    size = np.bincount(member)
    return float((truth**2).sum() - (np.bincount(member, truth) ** 2 / size).sum())


def corrected(frame: pd.DataFrame) -> pd.DataFrame:
    """Put in q: p corrected for all candidates and concepts (Benjamini & Hochberg 1995), all labels together by themselves."""
    q = frame.p.astype("float64").copy()
    for together in (frame.concept == LABELS, frame.concept != LABELS):
        tested = together & q.notna()
        if tested.any():
            q[tested] = false_discovery_control(q[tested])
    return frame.assign(q=q)
