"""Showing a probe set: a table, a few sentences and a figure, each score beside its controls.

What a probe's evidence has to pass is decided here and nowhere else. Its best layer must lie above what shuffled annotations
reach at their best layer, with q, corrected for all concepts, of at most LEVEL. What it is above the embedding, a bag of words,
random features and a control task, resample by resample, must be more than nothing. And directions fitted to halves of the
groups must be more alike than shuffled annotations make them. A control that was not run is not passed.

Nor may it be shown to read no more than a confound. What tells an annotation alone, with q of at most LEVEL and an interval
above chance, is one, and a probe reads more where, that held constant, its score is above chance and above what the confound
itself still tells, and texts enough are left to compare. An annotation that is the same all over each group is not told from
the group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from emoprobe import drawing
from emoprobe.errors import InputError
from emoprobe.probes.confounds import GROUP, LEAST
from emoprobe.probes.probe_set import COLUMNS, LABELS, ProbeSet

METRICS = {"pearson_r": "Pearson r", "auc": "AUC", "accuracy": "accuracy", "macro_auc": "mean AUC"}
CONTROLS = {
    "shuffled": "shuffled annotations",
    "layer0": "the embedding",
    "bag_of_words": "a bag of words",
    "random_features": "random features",
    "control_task": "a control task",
    "split_half": "stability",
    "confounds": "confounds",
}
COMPARED = 10
"""Texts of the rarer kind that must be left to compare with a confound held constant: of fewer no interval can be trusted."""
LEVEL = 0.05
"""Share of concepts above shuffled annotations that may be so by chance."""


def best_rows(probes: ProbeSet) -> pd.DataFrame:
    """Return the row of `probes.scores` at each concept's best layer, with the controls that it does not pass in `fails`.

    `confounds` is how many candidates were looked at (NaN: none), `flagged` what it is not shown to read more than.
    """
    scores = probes.scores.reindex(columns=COLUMNS).dropna(subset="value")
    best = scores.loc[scores.groupby(["concept", "metric"], sort=False)["value"].idxmax()]
    checked = judged(probes.confounds)
    flagged = checked[checked.flagged]
    named = [flagged.confound[flagged.concept == concept].tolist() for concept in best.concept]
    best = best.assign(
        confounds=best.concept.map(checked.groupby("concept").size()).astype("float64"),
        flagged=pd.Series(named, index=best.index, dtype=object),
    )
    fails = [[name for control, name in CONTROLS.items() if not _passes(row, control)] for row in _rows(best)]
    return best.assign(fails=pd.Series(fails, index=best.index, dtype=object))


def _passes(row: dict[Any, Any], control: str) -> bool:
    """Say whether a score passes a control; NaN, a control that was not run, is not passed."""
    if control == "shuffled":
        if math.isnan(row["q"]):  # of an earlier version, or bare
            return bool(row["value"] > row["shuffled_best_high"])
        return bool(row["q"] <= LEVEL)
    if control == "control_task":
        return bool(row["selectivity_low"] > 0)
    if control == "confounds":
        return row["confounds"] > 0 and not row["flagged"]
    if control == "split_half":
        return bool(row["split_half"] > row["split_half_shuffled_high"])
    return bool(row[f"{control}_gain_low"] > 0)


def not_run(row: dict[Any, Any]) -> list[str]:
    """Name the controls of a score that were not run."""
    return [name for control, name in CONTROLS.items() if math.isnan(row[control])]


def verdict(row: dict[Any, Any]) -> str:
    """Say what a row of `best_rows` is worth, and why it is not worth more."""
    if not row["fails"]:
        return "Supported"
    missing = not_run(row)
    above = [
        name for name in row["fails"] if name not in (CONTROLS["split_half"], CONTROLS["confounds"], *missing)
    ]
    reasons = []
    if above:
        reasons.append(f"not shown to be above {joined(above)}")
    if CONTROLS["split_half"] in row["fails"] and CONTROLS["split_half"] not in missing:
        reasons.append("its direction is not shown to come back from other texts")
    if row["flagged"]:
        reasons.append(f"not shown to read more than {joined(row['flagged'])}")
    if missing:
        reasons.append(f"not held to {joined(missing)}")
    found = "Not supported" if CONTROLS["shuffled"] in row["fails"] else "Readable"
    return f"{found}: {'; '.join(reasons)}"


def _rows(frame: pd.DataFrame) -> list[dict[Any, Any]]:
    return frame.to_dict("records")


def report(probes: ProbeSet) -> str:
    """Say what the evidence comes to, then how well each concept is read at its best layer, beside the controls."""
    about = probes.metadata
    estimators = " and ".join(f"{name} for {kind}s" for kind, name in about.get("estimators", {}).items())
    heading = (
        f"Probes of {probes.model} on {about.get('corpus', 'unknown texts')}: {estimators or 'unknown estimator'}; "
        f"{about.get('folds', '?')} folds that cut no group; layers {', '.join(map(str, probes.layers))}."
    )
    found, legend = sentences(probes)
    return "\n".join([heading, *found, "", _plain_table(probes), "", *legend])


def sentences(probes: ProbeSet) -> tuple[list[str], list[str]]:
    """Return what was found, a sentence for each kind of evidence and each confound, and how the numbers are to be read."""
    return _verdicts(_rows(best_rows(probes))) + confound_sentences(probes), _legend(probes)


def judged(confounds: pd.DataFrame) -> pd.DataFrame:
    """Return `ProbeSet.confounds` with columns `found` (it goes with the concept) and `flagged` (the probe reads no more)."""
    rows, chance = confounds, confounds.chance
    found = (rows.q <= LEVEL) & (rows.alone_low > chance)
    more = (rows.held_low > chance) & (rows.held_gain_low > 0) & ~_few(rows)
    same = (rows.confound == GROUP) & (rows.left == 0)
    return rows.assign(found=(found | same).astype(bool), flagged=((found & ~more) | same).astype(bool))


def _few(rows: Any) -> Any:
    """Say where too few texts were left to compare; NaN, of an earlier version, is not taken for few."""
    return rows["compared"] < COMPARED


def confound_sentences(probes: ProbeSet) -> list[str]:
    """Say for each candidate what it tells, and whether the probes are shown to read more than it."""
    rows = judged(probes.confounds)
    if rows.empty:
        return ["Confounds were not looked for."]
    lines = []
    for name, found in rows[rows.found].groupby("confound", sort=False):
        if name == GROUP:
            concepts = joined([_named(concept) for concept in found.concept])
            lines.append(
                f"Flagged: {concepts} annotated the same all over each group. Groups held out cannot tell that from what a "
                "group's texts have in common."
            )
            continue
        flagged, more = found[found.flagged], found[~found.flagged]
        if len(flagged):
            told = "; ".join(_confounded(row) for row in _rows(flagged))
            lines.append(f"Flagged: {name} predicts {told}. The probe is not shown to read more than {name}.")
        if len(more):
            told = joined([f"{_named(row['concept'])} ({_told(row)})" for row in _rows(more)])
            lines.append(f"The probe reads more than {name}, which predicts {told}.")
    unchecked = list(dict.fromkeys(rows.confound[rows.alone.isna() & (rows.confound != GROUP)]))
    if unchecked:
        lines.append(f"Cannot be checked: {joined(unchecked)}, of which no value has {LEAST} texts or more.")
    silent = [
        name
        for name in dict.fromkeys(rows.confound)
        if name not in {GROUP, *unchecked, *rows.confound[rows.found]}
    ]
    if silent:
        lines.append(f"Not shown to predict any concept: {joined(silent)}.")
    return lines


def _confounded(row: dict[Any, Any]) -> str:
    """Say what a confound tells of a concept, and what is left of the probe's score."""
    held = "with it held constant there is nothing left to compare"
    if not math.isnan(row["held"]):
        bounds = f"[{two(row['held_low'])}, {two(row['held_high'])}]"
        held = f"with it held constant the probe's is {two(row['held'])} {bounds}, its own {two(row['alone_held'])}"
        if _few(row):
            held += ", of too few texts to tell"
    return f"{_named(row['concept'])} ({_told(row)}; {held})"


def _told(row: dict[Any, Any]) -> str:
    return f"{METRICS[row['metric']]} {two(row['alone'])} [{two(row['alone_low'])}, {two(row['alone_high'])}]"


def _named(concept: str) -> str:
    return "all labels" if concept == LABELS else concept


def _verdicts(best: list[dict[Any, Any]]) -> list[str]:
    """Say which concepts the evidence supports, each with its best layer."""
    named = {"Supported": list[str](), "Readable": list[str](), "Not supported": list[str]()}
    for row in best:
        if row["concept"] != LABELS:
            named[verdict(row).partition(":")[0]].append(f"{row['concept']} (layer {row['layer']})")
    meaning = ("", ", but a control tells as much or was not run", ", not told from chance")
    return [
        f"{kind}{more}: {joined(names)}."
        for (kind, names), more in zip(named.items(), meaning, strict=True)
        if names
    ]


def _plain_table(probes: ProbeSet) -> str:
    """Return the best layers, their scores and their controls, with a star where a score is not shown to be above one."""
    columns = ("shuffled", "layer0", "bag_of_words", "random_features", "control_task", "split_half")
    rows = []
    for row in _rows(best_rows(probes)):
        marks = {column: "*" if CONTROLS[column] in row["fails"] else " " for column in columns}
        controls = [
            "–  " if math.isnan(row[column]) else two(row[column]) + marks[column] for column in columns
        ]
        score = [METRICS[row["metric"]], str(row["layer"]), _span(row)]
        rows.append([row["concept"], *score, *controls, _small(row["q"]), f"{row['n']} / {row['groups']}"])
    head = "concept score layer value [95%] shuffled embedding words random task halves q n/groups".split()
    head[3:5] = ["value [95%]"]
    return str(pd.DataFrame(rows, columns=head).to_string(index=False))


def _legend(probes: ProbeSet) -> list[str]:
    """Say how the numbers of a report are to be read."""
    counts = probes.metadata.get("permutations", {})
    least = ", ".join(
        f"{1 / (count + 1):.2g} for {kind}s" for kind, count in sorted(counts.items(), reverse=True) if count
    )
    layers = len(probes.layers)
    return [
        f"value: of the best of {layers} layers, on held-out {probes.metadata.get('level', 'text')}s (n, in so many groups), "
        "with its 95% interval over resampled groups: too narrow where groups are few, and allowing neither for refitting nor "
        "for having picked the layer.",
        "Beside it what shuffled annotations, the embedding, a bag of words, random features and a control task give in its "
        "place, and how alike directions fitted to halves of the groups are. *: the value is not shown to be above it (for "
        "halves: the direction is not shown to come back); –: was not run.",
        "q: one-sided, against shuffled annotations at their best layer, corrected for all concepts (Benjamini & Hochberg); "
        f"counting permutations gives p no lower than {least or 'nothing'}, and what is lower is the tail of Student's t.",
    ]


def _span(row: dict[Any, Any]) -> str:
    return f"{two(row['value'])} [{two(row['low'])}, {two(row['high'])}]"


def _small(number: float) -> str:
    return f"{number:.2g}" if not number < 1e-4 else "< 0.0001"


def two(number: float) -> str:
    """Write a score with two decimals, or three where it is all but 1."""
    decimals = 3 if 0.99 <= abs(number) < 1 else 2
    return f"{round(number, decimals) + 0.0:.{decimals}f}"  # the sum turns -0.0 into 0.0


def joined(names: Sequence[str]) -> str:
    """Write one name or several as people list them."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def table(probes: ProbeSet) -> str:
    """Return an HTML table of the best layers, their intervals and their controls."""
    head = ["concept", "metric", "best layer", "score [95%]", "shuffled", "q", "embedding", "bag of words"]
    head += ["random features", "control task", "halves alike", "evidence"]
    numbers = ("layer0", "bag_of_words", "random_features", "control_task", "split_half")
    rows = []
    for row in _rows(best_rows(probes)):
        cells = [
            row["concept"],
            METRICS[row["metric"]],
            str(row["layer"]),
            _span(row),
            two(row["shuffled"]),
        ]
        cells += [_small(row["q"]), *(two(row[column]) for column in numbers), verdict(row)]
        rows.append("".join(f"<td>{escape(cell)}</td>" for cell in cells))
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    heading = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    return (
        f"<p>{escape(repr(probes))}</p><table><thead><tr>{heading}</tr></thead><tbody>{body}</tbody></table>"
    )


def plot(probes: ProbeSet, concepts: Sequence[str] | None = None) -> Figure:
    """Draw score by layer, one panel per concept, with its 95% band, shuffled labels, embedding and bag of words.

    `concepts` may name any in `probes.scores`; by default they are the dimensions and, for labels, "(labels)". Raises
    `InputError` for one that is not there.
    """
    known = list(dict.fromkeys(probes.scores.concept))
    if concepts is None:
        concepts = [name for name in known if probes.kinds.get(name) != "label"]
    for name in concepts:
        if name not in known:
            raise InputError(f"no scores for {name!r}: there are {', '.join(known)}")
    with drawing.styled():
        figure, axes = drawing.tiled(len(concepts), height=2.3)
        for axis, concept in zip(axes, concepts, strict=True):
            _panel(axis, probes.scores[probes.scores.concept == concept])
        drawing.legend_below(figure, axes[0])
    return figure


def _panel(axis: Any, scores: pd.DataFrame) -> None:
    draw_scores(axis, scores.layer, scores)
    axis.set(xlabel="layer")
    axis.xaxis.get_major_locator().set_params(integer=True)


def draw_scores(axis: Axes, x: pd.Series, scores: pd.DataFrame) -> None:
    """Draw one concept's scores over x, with their interval, beside shuffled annotations, the embedding and a bag of words."""
    bounds = scores.shuffled_low, scores.shuffled_high
    drawing.control(axis, x, scores.shuffled, *bounds, label="shuffled", style=":")
    drawing.control(axis, x, scores.layer0, label="embedding", style="--")
    drawing.control(axis, x, scores.bag_of_words, label="bag of words", style="-.")
    drawing.line(axis, x, scores.value, scores.low, scores.high, label="probe, 95% interval")
    axis.set_title(scores.concept.iloc[0], parse_math=False)
    axis.set_ylabel(METRICS[scores.metric.iloc[0]])
