"""Scenarios that imply an emotion and do not name it: is it read, and where?

Somebody tells of a situation; the probes are read before the reply begins (the colon of the paper's figure 2), at the last
token of the same words as plain text, which suits models that know no conversations, and over all the words. The measure is
how much the scenario's own emotion stands out after the means of each scenario and of each probe are taken out, because some
probes are up for everything; recall is given beside it. What words alone tell is the read-out of the embedding over the words,
and a bag of words fitted to the probes' own corpus.

Source: Sofroniew et al. 2026 (arXiv 2604.07729), figure 2 and table 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from emoprobe import drawing
from emoprobe.corpora import Corpus
from emoprobe.errors import InputError
from emoprobe.intervals import mean_interval
from emoprobe.models.live import LiveModel
from emoprobe.probes import ProbeSet
from emoprobe.probes.tasks import plan
from emoprobe.probes.validation import fit_words
from emoprobe.study.concepts.evidence import Evidence, clopper_pearson, of_mean, of_share, p_two_sided
from emoprobe.study.concepts.places import CONTROLS, chosen_layer, plain, read_at, read_beside_random, turn
from emoprobe.study.concepts.stimuli import load, matched, without
from emoprobe.study.result import Result
from emoprobe.study.wording import number, span

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
PLACES = ("before the reply", "end of the plain text", "all words")
EMBEDDING, WORDS = "embedding over all words", "bag of words"
SHUFFLES = 999
PUBLISHED = (
    "Sofroniew et al. 2026 (arXiv 2604.07729, figure 2; Claude Sonnet 4.5): a strong diagonal over 12 scenarios, +0.03 to "
    "+0.10; no recall, no null. Replications: top-1 5 of 12 (Llama-3.3-70B), 6 of 12 (Llama-3.1-8B; 9 in an earlier version); "
    "top-3 12 of 12 (Gemma-2-2b), 20 to 60 % of 10 (five models of 1.5 to 8 billion parameters)."
)


def scenarios(
    model: LiveModel,
    probes: ProbeSet,
    *,
    layer: int | float | None = None,
    kind: str = "centred_cosine",
    corpus: Corpus | None = None,
    stimuli: Mapping[str, Mapping[str, str]] | None = None,
    controls: int = CONTROLS,
    shuffles: int = SHUFFLES,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = True,
) -> Result:
    """Read what emotion each scenario implies, at three places, beside random directions, shuffled scenarios and words.

    `stimuli` are emotion -> topic -> text; by default the package's own, 17 emotions on four topics. `corpus` is what the
    probes were fitted on: a bag of words fitted to it then stands beside them. `layer` is by default the one nearest to two
    thirds of the depth. Emotions are shuffled within topics. Raises `InputError` for fewer than three emotions with a probe.
    """
    given = load("scenarios") if stimuli is None else stimuli
    concepts, left_out = matched(probes, given)
    read = chosen_layer(probes, layer)
    rows = [(emotion, topic, text) for emotion in concepts for topic, text in given[emotion].items()]
    texts = [text for _, _, text in rows]
    own = np.array([list(concepts).index(emotion) for emotion, _, _ in rows])
    topics = np.unique([topic for _, topic, _ in rows], return_inverse=True)[1]
    names = list(concepts.values())

    turns = [turn(model, text) for text in texts]
    reading: dict[str, Any] = {
        "kind": kind,
        "concepts": names,
        "batch_size": batch_size,
        "progress": progress,
    }
    beside: dict[str, Any] = {**reading, "controls": controls, "seed": seed}
    both = ["before_reply", "user"]
    spoken = read_beside_random(model, probes, turns, both, [read], **beside)[..., 0, :]
    alone = [plain(text) for text in texts]
    written = read_beside_random(model, probes, alone, ["last"], [read], **beside)[..., 0, 0, :]
    scores = dict(zip(PLACES, (spoken[:, :, 0], written, spoken[:, :, 1]), strict=True))
    baselines: dict[str, Floats] = {}
    if 0 in probes.layers:
        baselines[EMBEDDING] = read_at(model, probes, turns, ["user"], [0], **reading)[:, 0, 0]
    if corpus is not None:
        baselines[WORDS] = words_read(corpus, names, texts, seed)

    orders = within_topics(own, topics, shuffles, seed)
    found = {place: stands_out(values, own, orders, len(PLACES)) for place, values in scores.items()}
    table = _table(found, scores, baselines, own)
    main = {row["measure"]: row for row in _records(table[table.place == PLACES[0]])}
    count = len(names)
    return Result(
        name="scenarios",
        title="Scenarios that imply an emotion",
        question="Is the emotion that a situation implies, and that nobody names, read off the model before it replies?",
        method=(
            f"{len(texts)} scenarios of {count} emotions on {len(set(topics.tolist()))} topics, read ({kind}) at layer {read} "
            f"of {model.n_layers}. How much the own emotion stands out from the others, means of scenarios and of probes taken "
            f"out; intervals over emotions, of recall exact over scenarios; p from {shuffles} shuffles of emotions within "
            f"topics, times {len(PLACES)} places.{without(left_out)}"
        ),
        table=table,
        finding=(
            f"before the reply the own emotion stands out by {_value(main['stands out'], 3, True)}; top-1 "
            f"{_value(main['top-1'])}, top-3 {_value(main['top-3'])}"
        ),
        controls=(
            f"chance top-1 {number(1 / count)}, top-3 {number(min(1, 3 / count))}; random directions top-1 "
            f"{number(main['top-1']['random_low'])} to {number(main['top-1']['random_high'])}; share of other emotions read "
            f"lower {number(main['others below']['value'])}, " + _baselines(table)
        ),
        verdict=" ".join(_said(place, found[place], table) for place in PLACES),
        sign=_sign(found[PLACES[0]], table),
        parts={
            "the own probe stands out": found[PLACES[0]].sign > 0,
            "by more than the embedding and words tell": _sign(found[PLACES[0]], table) > 0,
        },
        figure=_figure(list(concepts), scores[PLACES[0]][0], own, table),
        alt=(
            "Left, a matrix of scenarios' emotions by probes, orange where a probe stands out; right, the share of other "
            "emotions that are read lower, at each place, beside the embedding, a bag of words and chance."
        ),
        published=PUBLISHED,
    )


# Measures ------------------------------------------------------------------------------------------------------------


def out_of_means(scores: Floats) -> Floats:
    """Take the means of each scenario and of each probe out of scores (…, scenarios, concepts)."""
    apart = scores - scores.mean(-1, keepdims=True)
    result: Floats = apart - apart.mean(-2, keepdims=True)
    return result


def by_emotion(scores: Floats, own: Labels) -> Floats:
    """Return how far each emotion stands out in its scenarios: its mean less that of all others, (…, concepts).

    `scores` are (…, scenarios, concepts), `own` (scenarios,) says which concept is each scenario's own.
    """
    apart = out_of_means(scores)
    count = scores.shape[-1]
    # Rows sum to zero, so the mean of the others is -own / (count - 1).
    alone = apart[..., np.arange(len(own)), own] * count / (count - 1)
    member = own[:, None] == np.arange(count)
    means: Floats = alone @ (member / member.sum(0))
    return means


def stands_out(scores: Floats, own: Labels, orders: Labels, tests: int) -> Evidence:
    """Return the mean over emotions of `by_emotion`, with p over `orders` (shuffles, scenarios) times the number of tests."""
    units = by_emotion(scores, own)
    null = np.array([by_emotion(scores[0], order).mean() for order in orders])
    return of_mean(units, 0.0, min(1.0, tests * p_two_sided(float(units[0].mean()), null)))


def within_topics(own: Labels, topics: Labels, shuffles: int, seed: int) -> Labels:
    """Return the scenarios' emotions handed on among the scenarios of each topic, (shuffles, scenarios)."""
    generator = np.random.default_rng(seed)
    orders = np.tile(own, (shuffles, 1))
    for topic in np.unique(topics):
        rows = np.flatnonzero(topics == topic)
        orders[:, rows] = generator.permuted(orders[:, rows], axis=1)
    return orders


def recall(scores: Floats, own: Labels, most: int) -> Floats:
    """Return for each scenario whether its own concept is among the `most` highest, (…, scenarios).

    Of equals as many are counted as would come first by lot.
    """
    mine = scores[..., np.arange(len(own)), own][..., None]
    above, equal = (scores > mine).sum(-1), (scores == mine).sum(-1)
    chances: Floats = np.clip((most - above) / equal, 0, 1)
    return chances


def others_below(scores: Floats, own: Labels) -> Floats:
    """Return the share of other concepts that are read lower than a scenario's own, equals counting half: (…, scenarios).

    The mean of each probe over scenarios is taken out first; by chance it is one half.
    """
    apart = scores - scores.mean(-2, keepdims=True)
    mine = apart[..., np.arange(len(own)), own][..., None]
    lower = (apart < mine).sum(-1) + ((apart == mine).sum(-1) - 1) / 2
    shares: Floats = lower / (scores.shape[-1] - 1)
    return shares


def words_read(corpus: Corpus, concepts: list[str], texts: list[str], seed: int = 0) -> Floats:
    """Return the logits that a bag of words fitted to a corpus's labels gives new texts, (texts, concepts).

    Raises `InputError` where the corpus has not all of the concepts as labels.
    """
    missing = [name for name in concepts if name not in corpus.labels]
    if missing:
        raise InputError(
            f"{corpus.name} has no label {missing[0]!r}: give the corpus that the probes were fitted on"
        )
    task = next(task for task in plan(corpus, concepts, seed=seed) if task.kind == "label")
    written = [corpus.texts[row] for row in task.rows]
    read = fit_words(task, written, task.targets, task.group, seed)(texts)
    logits: Floats = read[:, [task.concepts.index(name) for name in concepts]]
    return logits


# Words and pictures --------------------------------------------------------------------------------------------------


def _table(
    found: Mapping[str, Evidence], scores: Mapping[str, Floats], baselines: Mapping[str, Floats], own: Labels
) -> pd.DataFrame:
    """Return one row for each place or baseline and measure, and for what each place has above the baselines."""
    records: list[dict[str, object]] = []
    ranks = {place: others_below(values[0], own) for place, values in scores.items()}
    ranks |= {name: others_below(values, own) for name, values in baselines.items()}
    count = next(iter(scores.values())).shape[-1]
    member = (own[:, None] == np.arange(count)) / np.bincount(own, minlength=count)
    for place, values in {**scores, **{name: values[None] for name, values in baselines.items()}}.items():
        if place in found:
            records.append({"place": place, "measure": "stands out", "chance": 0.0, **found[place].row()})
        for most in (1, 3):
            shares = recall(values, own, most).mean(-1)
            interval = clopper_pearson(shares[0] * len(own), len(own))
            evidence = Evidence(shares[0], *interval, shares[1:], most / count, bounds=(0.0, 1.0))
            measure = {"place": place, "measure": f"top-{most}", "chance": min(1.0, most / count)}
            records.append({**measure, **evidence.row()})
        below = of_share(others_below(values, own) @ member, 0.5)
        records.append({"place": place, "measure": "others below", "chance": 0.5, **below.row()})
    for place in scores:
        for name in baselines:
            gain = mean_interval((ranks[place] - ranks[name]) @ member)
            columns = dict(zip(("value", "low", "high"), gain, strict=True))
            records.append(
                {"place": place, "measure": f"others below, above {name}", "chance": 0.0, **columns}
            )
    return pd.DataFrame(records)


def _value(row: Mapping[str, float], digits: int = 2, sign: bool = False) -> str:
    return span(row["value"], row["low"], row["high"], digits, sign)


def _baselines(table: pd.DataFrame) -> str:
    rows = table[(table.measure == "others below") & ~table.place.isin(PLACES)]
    said = [f"{row['place']} {_value(row)}" for row in _records(rows)]
    return ", ".join([*said, "chance 0.50"])


def _said(place: str, found: Evidence, table: pd.DataFrame) -> str:
    """Say what comes of one place, and whether it is more than words."""
    where = place[0].upper() + place[1:]
    if not found.sign:
        return f"{where}: it is not shown that the own emotion stands out, {found.said(3)}."
    if found.sign < 0:
        return f"{where}: the own emotion is read lower than others, {found.said(3)}."
    gains = _gains(place, table)
    said = f"{where}: the own emotion stands out, {found.said(3)}"
    for row in _records(gains):
        lies = "above" if row["low"] > 0 else "below" if row["high"] < 0 else "not shown to be above"
        said += f"; by rank {lies} the {row['measure'].removeprefix('others below, above ')}"
    return f"{said}."


def _gains(place: str, table: pd.DataFrame) -> pd.DataFrame:
    return table[(table.place == place) & table.measure.str.startswith("others below, above")]


def _sign(found: Evidence, table: pd.DataFrame) -> int:
    """Return what comes of the first place: an effect counts only if it is more than words."""
    return found.sign if found.sign < 0 or (_gains(PLACES[0], table).low > 0).all() else 0


def _records(rows: pd.DataFrame) -> list[dict[Any, Any]]:
    return rows.to_dict("records")


@drawing.styled()
def _figure(emotions: list[str], scores: Floats, own: Labels, table: pd.DataFrame) -> Figure:
    figure, axes = drawing.panels(1, 2, height=1.4 + 0.19 * len(emotions), width_ratios=(1.5, 1))
    apart = out_of_means(scores)
    means = np.stack([apart[own == place].mean(0) for place in range(len(emotions))])
    drawing.heat(axes[0, 0], means, emotions, emotions)
    axes[0, 0].set_title("before the reply")
    axes[0, 0].set_ylabel("scenarios for")
    axes[0, 0].set_xlabel("probes for")
    rows = _records(table[table.measure == "others below"])
    axis = axes[0, 1]
    for number_, row in enumerate(rows):
        colour = drawing.BLUE if row["place"] in PLACES else drawing.CONTROL
        errors = [[row["value"] - row["low"]], [row["high"] - row["value"]]]
        axis.errorbar([row["value"]], [number_], xerr=errors, fmt="o", color=colour)
    axis.axvline(0.5, color=drawing.CONTROL, linestyle="--", linewidth=1.2)
    axis.set_yticks(range(len(rows)), [row["place"] for row in rows])
    axis.invert_yaxis()
    axis.set_xlabel("share of others below")
    return figure
