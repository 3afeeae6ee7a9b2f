"""Probes on texts that they were not fitted on, of other writers: what reads highest there, and is it what people say it is?

Two passes over the corpus. One keeps the snippets that read highest for each concept; where the texts have labels, the share
of these that carry the concept's label is told beside the share among all texts. The other reads each text out as a whole, and
asks how well that tells texts with the label from those without (area under the ROC curve), or goes with the annotation
(Pearson's r).

Beside each score stand random directions at the same layer, probes of the embedding, and a bag of words that was fitted to the
same texts as the probes; p values are by shuffling annotations over groups and allow for the number of concepts. Sofroniew
et al. 2026 (arXiv 2604.07729, figure 1) show snippets of twelve emotions, with neither labels nor controls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy.stats import false_discovery_control
from torch import Tensor

from emoprobe import drawing
from emoprobe.activations import mean_over, stream_residuals
from emoprobe.controls import turned_at_random
from emoprobe.corpora import Corpus
from emoprobe.errors import InputError
from emoprobe.intervals import prediction_interval
from emoprobe.models.live import LiveModel
from emoprobe.probes import ProbeSet, metrics
from emoprobe.probes.estimators import Floats, Integers
from emoprobe.probes.readout import first_counted
from emoprobe.probes.scorer import score_corpus
from emoprobe.probes.tasks import plan
from emoprobe.probes.validation import fit_words, permutation_p, shuffle
from emoprobe.study.concepts.places import CONTROLS, chosen_layer
from emoprobe.study.result import Result
from emoprobe.study.texts import targets
from emoprobe.study.wording import listed, number, ranged, span

RESAMPLES = 500
SHUFFLES = 499
TOP = 20
SHOWN = 3
SURE = 0.05
AREA, CORRELATION = "auc", "pearson_r"
PUBLISHED = (
    "Sofroniew et al. 2026 (arXiv 2604.07729, figure 1; Claude Sonnet 4.5): the highest snippets of Common Corpus, The Pile "
    "and two sets of conversations fit the emotions' names, by reading them; no number and no control is given."
)


def held_out(
    model: LiveModel,
    probes: ProbeSet,
    corpus: Corpus,
    fitted_on: Corpus,
    *,
    names: Mapping[str, str] | None = None,
    layer: int | float | None = None,
    controls: int = CONTROLS,
    shuffles: int = SHUFFLES,
    top: int = TOP,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = True,
) -> Result:
    """Read `probes` on `corpus`, which they were not fitted on, at one layer (that of `chosen_layer`), with controls.

    `fitted_on` is what they were fitted on: its texts are left out of `corpus`, and the bag of words learns from it. `names`
    says what concepts are called in `corpus`, {"joy": "happiness"}, where it has another name for them. Concepts without labels
    there are shown by their snippets alone. Raises `InputError` where no text is left.
    """
    probes.check_model(model)
    read = chosen_layer(probes, layer)
    called = {concept: (names or {}).get(concept, concept) for concept in probes.concepts}
    corpus, dropped = _without(corpus, fitted_on)
    scores = score_corpus(
        model,
        probes,
        corpus.texts,
        layer=read,
        by="text",
        top=top,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    )
    table = pd.DataFrame({"concept": list(probes.concepts)}).set_index("concept")
    table["called"] = list(called.values())
    annotated = {concept: name for concept, name in called.items() if _annotated(corpus, name)}
    snippets = scores.snippets[scores.snippets.side == "top"]
    table = table.join(_snippets(snippets, corpus, annotated))
    if annotated:
        values, random, embedding = _read_out(
            model, probes, corpus, list(annotated), read, controls, seed, batch_size, progress
        )
        words = _words(fitted_on, list(annotated), corpus.texts, seed)
        found = judged(values, random, embedding, words, corpus, annotated, shuffles, seed)
        table = table.join(found)
    table = table.reset_index().assign(layer=read)
    scored = table.dropna(subset="value") if annotated else pd.DataFrame(columns=["metric"])
    beyond = _beyond_words(scored.set_index("concept")) if len(scored) else pd.Series(dtype=bool)
    return Result(
        name="held_out",
        title=f"On other people's texts: {corpus.name}",
        question=f"Do probes fitted on {fitted_on.name} read {corpus.name} as people do?",
        method=(
            f"{len(corpus):,} texts of {len(np.unique(corpus.groups)):,} groups, layer {read} of {model.n_layers}; mean "
            f"read-out over a text's tokens. Intervals over resampled groups; {controls} sets of random directions, {shuffles} "
            f"shuffles of annotations over groups, corrected over {len(scored)} concepts (Benjamini and Hochberg); a bag of "
            f"words of {fitted_on.name}. {dropped} texts that the probes were fitted on are left out."
        ),
        table=table,
        finding=_finding(scored),
        controls=_controls(scored),
        verdict=verdict(scored),
        sign=int(bool(beyond.all())) if len(scored) else None,
        parts={str(name): bool(one) for name, one in beyond.items()},
        figure=_figure(scored) if len(scored) else None,
        alt="Score of each concept with its interval, beside random directions, the embedding's probe and a bag of words.",
        published=PUBLISHED,
    )


def _without(corpus: Corpus, fitted_on: Corpus) -> tuple[Corpus, int]:
    """Return the texts that nothing was fitted on, and how many were left out."""
    known = {_plain(text) for text in fitted_on.texts}
    new = np.array([_plain(text) not in known for text in corpus.texts])
    if not new.any():
        raise InputError(f"{corpus.name}: the probes were fitted on all of its texts; give another corpus")
    return corpus.select(mask=new), int((~new).sum())


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _annotated(corpus: Corpus, name: str) -> bool:
    """Say whether a corpus tells enough of a concept to score by: two texts or more of two kinds."""
    if name not in (*corpus.labels, *corpus.dimensions):
        return False
    values = targets(corpus, name)
    values = values[np.isfinite(values)]
    if name in corpus.labels:
        return bool(2 <= values.sum() <= len(values) - 2)
    return len(values) > 2 and bool(np.ptp(values) > 0)


def _snippets(snippets: pd.DataFrame, corpus: Corpus, annotated: Mapping[str, str]) -> pd.DataFrame:
    """Return for each concept its first snippets, and how many of the best carry its label, beside the share of all texts."""
    rows = {}
    for concept, part in snippets.groupby("concept", sort=False):
        row: dict[str, object] = {"highest": " | ".join(part.snippet.str.strip()[:SHOWN])}
        name = annotated.get(str(concept))
        if name in corpus.labels:
            carried = targets(corpus, name)
            row |= {"top": float(carried[part.text.to_numpy()].mean()), "top_chance": float(carried.mean())}
        rows[concept] = row
    return pd.DataFrame.from_dict(rows, orient="index").reindex(columns=["top", "top_chance", "highest"])


# Reading -------------------------------------------------------------------------------------------------------------


def _read_out(
    model: LiveModel,
    probes: ProbeSet,
    corpus: Corpus,
    concepts: Sequence[str],
    layer: int,
    controls: int,
    seed: int,
    batch_size: int,
    progress: bool = False,
) -> tuple[Floats, Floats, Floats | None]:
    """Read texts out: by the probes (texts, concepts), by random directions (controls, texts, concepts), by the embedding's.

    The embedding's probes are None where none were fitted.
    """
    columns = [probes.concept_index(name) for name in concepts]
    own = probes.directions[probes.layer_index(layer)][columns]
    turned = [turned_at_random(own, 1000 * seed + control) for control in range(controls)]
    stacked = torch.cat([own, *turned]).double()
    lowest = probes.directions[probes.layer_index(0)][columns].double() if 0 in probes.layers else None
    read = np.empty((len(corpus), (2 + controls) * len(columns)))
    parts = stream_residuals(model, corpus.texts, [0, layer], batch_size=batch_size, progress=progress)
    for part in parts:
        pooled: Tensor = mean_over(
            map(Tensor.double, part.by_layer), part.counted(first_counted(probes))
        ).cpu()
        both = [pooled[1] @ stacked.T, pooled[0] @ (own.double() if lowest is None else lowest).T]
        read[list(part.indices)] = torch.cat(both, dim=1).numpy()
    apart = read.reshape(len(corpus), 2 + controls, len(columns)).transpose(1, 0, 2)
    return apart[0], apart[1:-1], None if lowest is None else apart[-1]


def _words(fitted_on: Corpus, concepts: Sequence[str], texts: Sequence[str], seed: int) -> Floats:
    """Return what a bag of words fitted to the probes' corpus reads, (texts, concepts); NaN where it was not annotated."""
    read = np.full((len(texts), len(concepts)), np.nan)
    known = [name for name, _ in fitted_on.concepts]
    wanted = [name for name in concepts if name in known]
    for task in plan(fitted_on, wanted, folds=2, seed=seed) if wanted else []:
        words = fit_words(task, [fitted_on.texts[row] for row in task.rows], task.targets, task.group, seed)(
            texts
        )
        for place, name in enumerate(concepts):
            if name in task.concepts:
                read[:, place] = words[:, task.concepts.index(name)]
    return read


# Judging -------------------------------------------------------------------------------------------------------------


def judged(
    values: Floats,
    random: Floats,
    embedding: Floats | None,
    words: Floats,
    corpus: Corpus,
    annotated: Mapping[str, str],
    shuffles: int,
    seed: int = 0,
) -> pd.DataFrame:
    """Return one row for each concept: metric, value, low, high, p, q, controls and what the value is above them.

    `values` and `words` are (texts, concepts), `random` (controls, texts, concepts); `annotated` names concepts in the corpus.
    `p` is how often annotations shuffled over groups are read as well, by `permutation_p`,
    `q` the false discovery rate at which it counts.
    """
    rows = {
        concept: _scored(
            values[:, place],
            random[:, :, place],
            None if embedding is None else embedding[:, place],
            words[:, place],
            targets(corpus, name),
            np.unique(corpus.groups, return_inverse=True)[1],
            AREA if name in corpus.labels else CORRELATION,
            shuffles,
            seed,
        )
        for place, (concept, name) in enumerate(annotated.items())
    }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table["q"] = false_discovery_control(table.p)
    return table


def _scored(
    values: Floats,
    random: Floats,
    embedding: Floats | None,
    words: Floats,
    truth: Floats,
    group: Integers,
    metric: str,
    shuffles: int,
    seed: int,
) -> dict[str, object]:
    known = np.isfinite(truth)
    truth, group = truth[known], np.unique(group[known], return_inverse=True)[1]
    groups = int(group.max()) + 1
    fold = np.zeros(len(truth), dtype=np.int64)
    weights = metrics.weighting(group, fold, RESAMPLES, seed)
    score = metrics.auc if metric == AREA else metrics.correlation

    def read(part: Floats, by: metrics.Weighting) -> Floats:
        columns = part[known] if part.ndim == 2 else part[known, None]
        return score(columns, np.tile(truth[:, None], (1, columns.shape[1])), by)

    plain = metrics.weighting(group, fold)
    found = read(values, weights)[:, 0]
    low, high = metrics.interval(found, groups)
    row: dict[str, object] = {
        "metric": metric,
        "value": float(found[0]),
        "low": float(low),
        "high": float(high),
    }
    generator = np.random.default_rng(seed)
    dealt = np.stack([truth[shuffle(group, generator)] for _ in range(shuffles)], axis=1)
    null = score(np.tile(values[known, None], (1, shuffles)), dealt, plain)[0]
    row |= {
        "shuffled": float(null.mean()),
        "p": float(permutation_p(found[:1], null[:, None])[0]),
    }
    chance = read(random.T, plain)[0]
    row |= dict(zip(("random_low", "random_high"), prediction_interval(chance, (-1.0, 1.0)), strict=True))
    for name, other in (("layer0", embedding), ("words", words)):
        there = other is not None and np.isfinite(other).all()
        resampled = read(other, weights)[:, 0] if other is not None and there else np.full_like(found, np.nan)
        gains = metrics.interval(found - resampled, groups) if there else (np.nan, np.nan)
        row |= {name: float(resampled[0])}
        row |= {f"{name}_gain_low": float(gains[0]), f"{name}_gain_high": float(gains[1])}
    return row | {"n": len(truth), "groups": groups}


# Words ---------------------------------------------------------------------------------------------------------------

KINDS = {AREA: ("AUC", 0.5), CORRELATION: ("r", 0.0)}


def _finding(scored: pd.DataFrame) -> str:
    said = [
        f"mean {name} {number(part.value.mean())} over {len(part)} concepts ({ranged(part.value.tolist())})"
        for metric, (name, _) in KINDS.items()
        if len(part := scored[scored.metric == metric])
    ]
    return "; ".join(said) or "no concept has annotations there"


def _controls(scored: pd.DataFrame) -> str:
    said = []
    for metric, (name, _) in KINDS.items():
        part = scored[scored.metric == metric]
        if len(part):
            means = {"shuffled": "shuffled", "layer0": "embedding", "words": "words"}
            shown = [f"{what} {number(part[column].mean())}" for column, what in means.items()]
            highest = number(part.random_high.mean())
            said.append(f"{name}: {', '.join(shown)}, one more random direction up to {highest}")
    return "; ".join(said) or "nothing to compare with"


def verdict(scored: pd.DataFrame) -> str:
    """Say which concepts are read on other texts, and by more than which controls."""
    if not len(scored):
        return "The corpus has no annotations for these concepts: snippets show what reads highest, and prove nothing."
    read = _read(scored)
    count = len(scored)
    if not read.any():
        return f"None of {count} concepts is shown to be read on these texts, after correction and beside random directions."
    both = _beyond_words(scored)
    said = [
        f"{int(read.sum())} of {count} concepts {'is' if read.sum() == 1 else 'are'} read on texts of others, above shuffled "
        f"annotations and random directions: {listed(_best(scored[read]))}."
    ]
    below = scored.words_gain_high < 0
    if both.any():
        said.append(
            f"By more than the embedding and a bag of words, too, {int(both.sum())}: {listed(_best(scored[both]))}."
        )
    else:
        said.append("None is above the embedding and a bag of words both: words may be all that is read.")
    if below.any():
        said.append(f"A bag of words of the same texts reads {int(below.sum())} of {count} better.")
    labelled = scored.dropna(subset="top") if "top" in scored else scored.iloc[:0]
    if len(labelled):
        said.append(
            f"Of the highest-read texts {labelled.top.mean():.0%} carry the label, of all texts "
            f"{labelled.top_chance.mean():.0%}."
        )
    return " ".join(said)


def _read(scored: pd.DataFrame) -> pd.Series[bool]:
    return (scored.q < SURE) & (scored.value > scored.random_high)


def _beyond_words(scored: pd.DataFrame) -> pd.Series[bool]:
    return _read(scored) & (scored.layer0_gain_low > 0) & (scored.words_gain_low > 0)


def _best(part: pd.DataFrame) -> list[str]:
    ordered = part.sort_values("value", ascending=False)
    return [f"{row.concept} {span(row.value, row.low, row.high)}" for _, row in ordered.iterrows()]


@drawing.styled()
def _figure(scored: pd.DataFrame) -> Figure:
    kinds = [metric for metric in KINDS if (scored.metric == metric).any()]
    tallest = max(int((scored.metric == metric).sum()) for metric in kinds)
    figure, axes = drawing.panels(1, len(kinds), height=1.2 + 0.2 * tallest)
    for axis, metric in zip(axes.flat, kinds, strict=True):
        part = scored[scored.metric == metric].sort_values("value")
        rows = np.arange(len(part))
        for row, low, high in zip(rows, part.random_low, part.random_high, strict=True):
            axis.plot([low, high], [row, row], color=drawing.CONTROL, alpha=0.35, linewidth=6)
        reach = np.abs(part[["low", "high"]].to_numpy(float).T - part.value.to_numpy(float))
        axis.errorbar(part.value, rows, xerr=reach, fmt="o", color=drawing.BLUE, label="probe")
        axis.plot(part.words, rows, "s", color=drawing.CONTROL, label="bag of words")
        axis.plot(part.layer0, rows, "^", color=drawing.CONTROL, label="layer 0")
        axis.axvline(KINDS[metric][1], color=drawing.INK, linewidth=0.6)
        axis.set_yticks(rows, list(part.concept))
        axis.set_xlabel(KINDS[metric][0])
    drawing.legend_below(figure, axes[0, 0])
    return figure
