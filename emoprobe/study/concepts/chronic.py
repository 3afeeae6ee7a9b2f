"""Is what a speaker feels kept in mind while nothing shows it, by a state that a linear probe can read?

A logistic regression learns what a speaker feels from the mean stream over a turn, in three conditions mixed: the emotion is
expressed, it is hidden behind another, or the turn is about something neutral, in the same words whatever is felt (only a
preamble, which no statistic includes, tells). It is tested on topics that it was not fitted on, condition by condition. Then
the same probe reads running text: a state that is really kept should show there as well, with activations of the same size and
with the emotion that people read in it.

The probe is that of Sofroniew et al. 2026 (arXiv 2604.07729, table 5 and figure 16), who found it well above chance in all
conditions and yet took it for overfitted, because on other text its activations are tiny and unordered. Two of their
conditions, stories written and other people talked about, are not among ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits

from emoprobe import drawing
from emoprobe.corpora import Corpus
from emoprobe.errors import InputError
from emoprobe.intervals import SHARE, exceedance, jackknife, mean_interval
from emoprobe.layers import DEPTH, resolve_layers
from emoprobe.models.live import LiveModel
from emoprobe.probes.estimators import Floats, Integers, LinearReadOut, fit_for
from emoprobe.probes.tasks import Task
from emoprobe.probes.validation import fit_words, out_of_fold, words_out_of_fold
from emoprobe.progress import track
from emoprobe.study.concepts import effects
from emoprobe.study.concepts.dialogues import CONDITIONS, NEUTRAL_TOPIC, Hidden, by_condition
from emoprobe.study.concepts.dialogues import targets as hidden_emotions
from emoprobe.study.concepts.effects import row_of
from emoprobe.study.result import Result
from emoprobe.study.wording import listed, number, p_value, span

SHUFFLES = 39
SURE = 0.05
TINY = 0.5
"""Share of the activations on dialogues below which those on running text are called small."""
TOP = 20
"""Texts of the highest read-out that are looked at for each emotion."""
RUNNING = "running text"
PUBLISHED = (
    "Sofroniew et al. 2026 (arXiv 2604.07729, table 5 and figure 16; Claude Sonnet 4.5), 15 emotions, chance .067: expressed "
    ".713, hidden .760, neutral topic .386, story writing .760, discussing others .826; on other text tiny and unordered "
    "activations, so that no chronic state is claimed."
)


@dataclass(frozen=True, eq=False)
class Turns:
    """Hold dialogues and what their last turns are read from: features (turns, d_model) at one layer, embedding at layer 0."""

    given: Sequence[Hidden]
    condition: Integers
    """Position in CONDITIONS, (turns,)."""
    task: Task
    features: Floats
    embedding: Floats


def chronic(
    model: LiveModel,
    corpus: Corpus,
    *,
    layer: int | float = DEPTH,
    shuffles: int = SHUFFLES,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = True,
) -> Result:
    """Fit a probe of what a speaker feels to three conditions mixed, test it on other topics and on running text.

    `corpus` is the running text; where it has labels that are among the hidden emotions, it is tested whether the probe finds
    them. `layer` is an index or a share of the depth, not chosen by looking. Emotions are shuffled within topics `shuffles`
    times. Raises `InputError` for fewer than 20 shuffles, with which nothing could be told at 5 %.
    """
    if shuffles < 20:
        raise InputError(f"shuffles={shuffles}: give at least 20, so that p can be below 0.05")
    (read,) = resolve_layers(layer, model.n_layers)
    turns = read_turns(model, read, batch_size=batch_size, progress=progress)
    with threadpool_limits(1):  # a solver of many small steps spends its time starting threads
        conditions = by_topic(turns, shuffles, seed, progress)
        running = on_running_text(model, turns, corpus, read, seed, batch_size, progress)
    table = pd.concat([conditions, pd.DataFrame([running])], ignore_index=True).assign(layer=read)
    shown = table.set_index("where")
    parts = _parts(shown)
    return Result(
        name="chronic",
        title="A state that is kept",
        question="Is what a speaker feels kept in a linear state while it is hidden, or in talk about something neutral?",
        method=(
            f"Logistic regression on the mean stream over {len(turns.given)} turns of three conditions mixed, "
            f"{len(turns.task.concepts)} emotions, layer {read} of {model.n_layers}, each of {turns.task.groups} topics held "
            f"out in turn; then the probe fitted to all of them reads {len(corpus)} texts of {corpus.name}. Intervals are over "
            f"topics (running text: over groups); {shuffles} shuffles of emotions within topics; bags of the turn's words and "
            "of all words."
        ),
        table=table,
        finding="accuracy "
        + ", ".join(f"{name} {_value(row_of(shown, name))}" for name in (*CONDITIONS, RUNNING))
        + f"; activations on running text {number(row_of(shown, RUNNING).activation)} of those on the dialogues",
        controls=f"chance {number(1 / len(turns.task.concepts))}; "
        + "; ".join(
            f"{name}: words of the turn {number(shown.turn_words[name])}, of all the text {number(shown.all_words[name])}, "
            f"layer 0 {number(shown.layer0[name])}"
            for name in CONDITIONS
        ),
        verdict=verdict(shown),
        sign=int(all(parts.values())),
        parts=parts,
        figure=_figure(shown),
        alt="Accuracy in each condition and on running text, with intervals, beside words, the embedding and chance.",
        published=PUBLISHED,
    )


def read_turns(model: LiveModel, layer: int, *, batch_size: int = 32, progress: bool = False) -> Turns:
    """Return the last turns of the dialogues of all conditions, and the mean streams over them."""
    given = [one for condition in CONDITIONS for one in by_condition(condition)]
    sizes = [len(by_condition(condition)) for condition in CONDITIONS]
    condition = np.repeat(np.arange(len(CONDITIONS)), sizes)
    features: Floats = np.empty((len(given), 2, model.d_model))
    places = [[[one.span]] for one in given]
    texts = [one.text for one in given]
    read = effects.span_means(model, texts, places, [0, layer], batch_size=batch_size, progress=progress)
    for index, means in read:
        features[index] = means[0].numpy()
    named = hidden_emotions()
    carried = np.array([[float(one.target == name) for name in named] for one in given])
    topic = np.unique([one.topic for one in given], return_inverse=True)[1].astype(np.int64)
    task = Task("label", True, named, np.arange(len(given)), carried, topic, topic)
    return Turns(given, condition, task, features[:, 1], features[:, 0])


# On other topics -----------------------------------------------------------------------------------------------------


def by_topic(turns: Turns, shuffles: int, seed: int = 0, progress: bool = False) -> pd.DataFrame:
    """Return one row for each condition: accuracy on held-out topics, its interval over topics, null and controls."""
    task, fit = turns.task, fit_for("logistic", "label", exclusive=True)

    def right(features: Floats, targets: Floats) -> Floats:
        predicted = out_of_fold(fit, features, targets, task.group, task.fold)
        return _right(predicted, targets, turns)

    found = right(turns.features, task.targets)
    layer0 = right(turns.embedding, task.targets)
    generator = np.random.default_rng(seed)
    null = []
    for _ in track(range(shuffles), "shuffling emotions", wanted=progress):
        dealt = shuffled_within(task, generator)
        null.append(right(turns.features, dealt).mean(1))
    by_chance = np.array(null)
    words = [_right(words_out_of_fold(task, texts, seed), task.targets, turns) for texts in _texts(turns)]
    rows = []
    for place, name in enumerate(CONDITIONS):
        value, low, high = mean_interval(found[place], SHARE)
        row = {"where": name, "accuracy": value, "low": low, "high": high, "chance": 1 / len(task.concepts)}
        row["shuffled"] = float(by_chance[:, place].mean())
        row["p"] = float(exceedance(np.array(value), by_chance[:, place]))
        controls = zip(("layer0", "turn_words", "all_words"), (layer0, *words), strict=True)
        for control, other in controls:
            row[control] = float(other[place].mean())
            _, row[f"{control}_gain_low"], row[f"{control}_gain_high"] = mean_interval(
                found[place] - other[place]
            )
        rows.append({**row, "n": int((turns.condition == place).sum()), "groups": task.groups})
    return pd.DataFrame(rows)


def shuffled_within(task: Task, generator: np.random.Generator) -> Floats:
    """Return targets (texts, concepts) with the emotions of each topic renamed, alike for all its texts."""
    dealt = np.empty_like(task.targets)
    for topic in range(task.groups):
        rows = task.group == topic
        dealt[rows] = task.targets[rows][:, generator.permutation(len(task.concepts))]
    return dealt


def _right(predicted: Floats, targets: Floats, turns: Turns) -> Floats:
    """Return accuracies (conditions, topics)."""
    hit = predicted.argmax(1) == targets.argmax(1)
    kinds = range(len(CONDITIONS))
    return np.array(
        [
            [
                hit[(turns.condition == kind) & (turns.task.group == topic)].mean()
                for topic in range(turns.task.groups)
            ]
            for kind in kinds
        ]
    )


def _texts(turns: Turns) -> tuple[list[str], list[str]]:
    """Return the words of the turns alone, and all the text that the model has read by then."""
    return [one.words for one in turns.given], [one.text for one in turns.given]


# On running text -----------------------------------------------------------------------------------------------------


def on_running_text(
    model: LiveModel,
    turns: Turns,
    corpus: Corpus,
    layer: int,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = False,
) -> dict[str, object]:
    """Read the probe of all dialogues out of another corpus: how large it is there, and whether people's labels come out.

    `activation` is the mean of a text's highest logit over that of held-out turns (logits have mean zero over emotions), and
    `strongest` its 99th percentile over the same. Accuracy is over texts with one label among the emotions; `top` is the share
    of the highest-read texts of each emotion that carry it, `top_chance` what it would be by drawing texts.
    """
    task, fit = turns.task, fit_for("logistic", "label", exclusive=True)
    probe: LinearReadOut = fit(turns.features, task.targets, task.group)
    held_out = out_of_fold(fit, turns.features, task.targets, task.group, task.fold)
    captured = model.capture(corpus.texts, [layer], batch_size=batch_size, progress=progress)
    features = captured[:, 0].double().numpy()
    read = probe(features)
    usual = float(held_out.max(1).mean())
    row: dict[str, object] = {
        "where": RUNNING,
        "activation": float(read.max(1).mean()) / usual,
        "strongest": float(np.quantile(read.max(1), 0.99)) / usual,
    }
    shared = [name for name in task.concepts if name in corpus.labels]
    carried = corpus.label_matrix()[:, [corpus.labels.index(name) for name in shared]]
    one = carried.sum(1) == 1
    if len(shared) < 2 or not one.any():
        return row
    columns = [task.concepts.index(name) for name in shared]
    truth, group = carried[one].argmax(1), np.unique(corpus.groups[one], return_inverse=True)[1]
    words = fit_words(task, _texts(turns)[0], task.targets, task.group, seed)
    texts = [text for text, kept in zip(corpus.texts, one, strict=True) if kept]
    hit = read[one][:, columns].argmax(1) == truth
    said = words(texts)[:, columns].argmax(1) == truth
    value, low, high = _over_groups(hit.astype(float), group)
    _, gain_low, gain_high = _over_groups(hit.astype(float) - said, group)
    best = [np.argsort(-read[:, column], kind="stable")[:TOP] for column in columns]
    hits = [carried[rows, place].mean() for place, rows in enumerate(best)]
    row |= {
        "accuracy": value,
        "low": low,
        "high": high,
        "chance": float(np.bincount(truth).max() / len(truth)),
    }
    row |= {
        "turn_words": float(said.mean()),
        "turn_words_gain_low": gain_low,
        "turn_words_gain_high": gain_high,
    }
    row |= {"top": float(np.mean(hits)), "top_chance": float(carried.mean()), "n": int(one.sum())}
    return row | {"groups": int(group.max()) + 1}


def _over_groups(values: Floats, group: Integers) -> tuple[float, float, float]:
    """Return the mean over texts and its interval by jackknife over groups; NaN bounds for one group."""
    sums, sizes = np.bincount(group, values), np.bincount(group)
    value = np.array(values.mean())
    if len(sums) < 2:
        return float(value), np.nan, np.nan
    low, high = jackknife(value, (sums.sum() - sums) / (sizes.sum() - sizes))
    return float(value), float(low), float(high)


# Words ---------------------------------------------------------------------------------------------------------------


def verdict(shown: pd.DataFrame) -> str:
    """Say what accuracies on other topics and what is read off running text come to; rows are named by `where`."""
    said = [_condition(name, row_of(shown, name)) for name in CONDITIONS]
    neutral, running = row_of(shown, NEUTRAL_TOPIC), row_of(shown, RUNNING)
    carries, why = _carries_over(running)
    said.append(why)
    if not _above_chance(neutral):
        said.append("That a state is kept while something neutral is talked about is not shown.")
    elif not neutral.all_words_gain_low > 0:
        said.append(
            "What is read in neutral talk may be an echo of the words before it: a bag of all words is not below it."
        )
    elif carries:
        said.append("A state is kept in neutral talk, by more than words, and running text bears it out.")
    else:
        said.append(
            "What is read in neutral talk is not borne out by running text: no state that is kept is shown."
        )
    return " ".join(said)


def _parts(shown: pd.DataFrame) -> dict[str, bool]:
    """Return whether a state is kept in neutral talk, by more than words, and running text bears it out."""
    neutral = row_of(shown, NEUTRAL_TOPIC)
    parts = {
        "it is read in neutral talk, above chance": True,
        "and above words": neutral.all_words_gain_low > 0,
        "its probe reads running text, too": _carries_over(row_of(shown, RUNNING))[0],
    }
    return {part: bool(_above_chance(neutral) and held) for part, held in parts.items()}


def _above_chance(row: pd.Series) -> bool:
    return bool(row.p < SURE and row.low > row.chance)


def _condition(name: str, row: pd.Series) -> str:
    what = f"{name.capitalize()}: accuracy {_value(row)} on other topics"
    if not _above_chance(row):
        return f"{what}, not shown to be above chance ({number(row.chance)}, {p_value(row.p)})."
    kinds = {"turn_words": "the turn's words", "all_words": "all the words", "layer0": "the embedding"}
    not_below = [kind for control, kind in kinds.items() if not row[f"{control}_gain_low"] > 0]
    if not_below:
        return f"{what}, above chance ({number(row.chance)}), not shown to be above {listed(not_below)}."
    return f"{what}, above chance ({number(row.chance)}) and all controls."


def _carries_over(row: pd.Series) -> tuple[bool, str]:
    """Say whether the probe reads running text as people do, at its usual size."""
    size = f"activations there are {number(row.activation)} of those on the dialogues"
    small = row.activation < TINY
    if not np.isfinite(row.get("accuracy", np.nan)):
        return False, f"On running text {size}; it has no labels to compare with."
    commonest = number(row.chance)
    what = f"On running text people's label comes out with accuracy {_value(row)} (always the commonest: {commonest})"
    if not row.low > row.chance:
        return False, f"{what}, not shown to be above chance; {size}."
    words = "" if row.turn_words_gain_low > 0 else f", not shown to be above words ({number(row.turn_words)})"
    return not small and not words, f"{what}{words}; {size}{', small' if small else ''}."


def _value(row: pd.Series) -> str:
    return span(row.accuracy, row.low, row.high)


@drawing.styled()
def _figure(shown: pd.DataFrame) -> Figure:
    figure, axes = drawing.panels(1, 1, height=2.8)
    axis, places = axes[0, 0], np.arange(len(shown))
    reach = np.abs(shown[["low", "high"]].to_numpy(float).T - shown.accuracy.to_numpy(float))
    axis.errorbar(places, shown.accuracy, reach, fmt="o", color=drawing.BLUE, label="probe")
    names = {"turn_words": ("turn's words", "s"), "all_words": ("all words", "D"), "layer0": ("layer 0", "^")}
    for shift, (column, (name, marker)) in enumerate(names.items(), start=1):
        axis.plot(places + 0.12 * shift, shown[column], marker, color=drawing.CONTROL, label=name)
    axis.plot(places, shown.chance, "_", color=drawing.INK, markersize=18, label="chance")
    axis.set_xticks(places, list(shown.index))
    axis.set_xlim(-0.5, len(shown) - 0.2)
    axis.set_ylim(0, 1)
    axis.set_ylabel("accuracy")
    drawing.legend_below(figure, axis, columns=5)
    return figure
