"""Two persons, two emotions: is each emotion bound to its person when the person is mentioned again?

A scene tells of two persons who feel differently, and mentions both again in sentences without feeling. Where one of them is
mentioned, that person's emotion should be read above the other's. Who feels which, and who is mentioned again first, go round
all ways, so that reading the emotion that was told last, or first, is right half the time. Where a probe lies by itself is
taken out: of the differences between two emotions' read-outs, within a scenario, those where the one is the person's own
should be higher than those where the other is.

The same is asked of the generator's texts about two persons, whose emotions are told in events: over each person's sentences,
and where the person is mentioned again in the beginning of an aftermath.

Source: Sofroniew et al. 2026 (arXiv 2604.07729), figure 15.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from emoprobe import drawing
from emoprobe.corpora.generator import GeneratedText, aftermaths, generate
from emoprobe.errors import InputError
from emoprobe.interventions import Span
from emoprobe.models.live import LiveModel
from emoprobe.probes import ProbeSet
from emoprobe.study.concepts.evidence import Evidence, of_mean, of_share, sign_test
from emoprobe.study.concepts.places import CONTROLS, Prompt, chosen_layer, plain, read_beside_random, turn
from emoprobe.study.concepts.stimuli import CONCEPTS, load, matched, without
from emoprobe.study.result import Result
from emoprobe.study.wording import listed, span

Floats = NDArray[np.float64]
REFERENCE = "reference"
"""The place where a person is mentioned again."""
TOLD, CLAUSE = "emotion word", "end of the sentence"
SENTENCES = "own sentences"
LEAST_GROUPS = 6
PAIRS = 2
MEASURES = ("accuracy", "accuracy, offsets left in", "margin", "first told read higher")
PUBLISHED = (
    "Sofroniew et al. 2026 (arXiv 2604.07729, figure 15; Claude Sonnet 4.5): over 16 scenarios the emotion is read at its word "
    "from early layers on, and at the reference the matching one alone rises in late layers. No accuracy is given, and no "
    "replication with one is known."
)


@dataclass(frozen=True)
class Scene:
    """A text about two persons, read where one of them is spoken of.

    The places of `prompt` are where this person is spoken of, `REFERENCE` among them. `own` and `other` are the concepts of
    what the two feel, `first` says whether this person's was told first. Scenes of one `group` are no independent ones.
    """

    prompt: Prompt
    own: str
    other: str
    first: bool
    group: str


def binding(
    model: LiveModel,
    probes: ProbeSet,
    *,
    layer: int | float | None = None,
    kind: str = "centred_cosine",
    scenes: Sequence[Scene] | None = None,
    controls: int = CONTROLS,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = True,
) -> Result:
    """Ask at each mention of a person whether that person's emotion is read above the other person's, at all layers.

    `scenes` are by default `told` (16 scenarios of the package's own, two pairs of emotions each, all orders); `generated`
    makes those of the ground-truth model. The verdict is given at the reference and at `layer`, by default the one nearest to
    two thirds of the depth, and for all other layers with sign tests that allow for their number. Raises `InputError` for fewer
    than six groups, scenes whose places differ, and orders out of balance.
    """
    given = told(model, probes, seed=seed) if scenes is None else list(scenes)
    left_out = matched(probes, CONCEPTS)[1] if scenes is None else []
    places = _check(given)
    read, layers = chosen_layer(probes, layer), sorted(probes.layers)
    concepts = sorted({name for scene in given for name in (scene.own, scene.other)})
    values = read_beside_random(
        model,
        probes,
        [scene.prompt for scene in given],
        places,
        layers,
        kind=kind,
        concepts=concepts,
        controls=controls,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    )
    own, other = ([concepts.index(getattr(scene, side)) for scene in given] for side in ("own", "other"))
    rows = range(len(given))
    margins = np.moveaxis(values[:, rows, :, :, own] - values[:, rows, :, :, other], 1, 0)
    found = measured(margins, given)  # measure -> (1 + controls, groups, places, layers)
    table = _table(found, places, layers)
    here = {
        (place, measure): judged(measure, found[measure][..., number, layers.index(read)])
        for number, place in enumerate(places)
        for measure in MEASURES
    }
    main, margin, order = (here[REFERENCE, measure] for measure in ("accuracy", "margin", MEASURES[3]))
    groups = len({scene.group for scene in given})
    raw = here[REFERENCE, MEASURES[1]]
    return Result(
        name="binding",
        title="Whose emotion it is",
        question="When one of two persons is mentioned again, is that person's emotion read, and not the other's?",
        method=(
            f"{len(given)} readings of {groups} scenarios with two persons and two of {len(concepts)} emotions, in all orders. "
            f"Read-outs ({kind}) at the token that ends the person's name, at layer {read} of {model.n_layers}: how often the "
            "difference of the two emotions is higher where it should be, probes' own offsets taken out, chance 0.5. Intervals "
            f"over scenarios.{without(left_out)}"
        ),
        table=table,
        finding=(
            f"accuracy at the reference {_value(main)}, with offsets left in {_value(raw)}; own less other emotion "
            f"{span(margin.value, margin.low, margin.high, 4, True)}"
        ),
        controls=(
            f"random directions {_expected(main)}; saying what was told last is right 0.50 by design; the emotion told first "
            f"is read higher in {_value(order)}"
        ),
        verdict=(
            f"{verdict({place: here[place, 'accuracy'] for place in places}, order, read)} "
            f"{of_layers(found['accuracy'][..., places.index(REFERENCE), :], layers)}"
        ),
        sign=main.sign,
        figure=_figure(table, places, layers),
        alt="Accuracy by layer at each place with its interval over scenarios; grey: random directions, and chance.",
        published=PUBLISHED,
    )


# Scenes --------------------------------------------------------------------------------------------------------------


def told(
    model: LiveModel,
    probes: ProbeSet,
    *,
    stimuli: Mapping[str, Any] | None = None,
    pairs: int = PAIRS,
    seed: int = 0,
) -> list[Scene]:
    """Return the package's scenes: `pairs` of emotions for each scenario, both ways round, mentioned again in both orders.

    Emotions are all that have a probe; which meet where is drawn by `seed`, each as often as can be. Raises `InputError` for
    fewer than three emotions with a probe.
    """
    given = load("binding") if stimuli is None else stimuli
    concepts, _ = matched(probes, CONCEPTS)
    meetings = _meetings(list(concepts), pairs * len(given["scenes"]), seed)
    made: list[Scene] = []
    for number, scene in enumerate(given["scenes"]):
        names = given["names"][number % len(given["names"])]
        for emotions in meetings[pairs * number : pairs * (number + 1)]:
            for felt, again in product((emotions, emotions[::-1]), (names, names[::-1])):
                made += _both(model, scene, names, felt, again, concepts, f"scene {number}")
    return made


def generated(texts: int = 128, seed: int = 0, *, worlds: Sequence[str] | None = None) -> list[Scene]:
    """Return scenes of the generator's texts about two persons in `worlds` (default: all), each read at either person.

    The places are the person's own sentences, and the name at the beginning of an aftermath. Concepts are the generator's
    emotions; each text is a group of its own.
    """
    made = []
    for number, text in enumerate(generate(texts, seed, forms=["pair"], worlds=worlds)):
        mine, theirs = list(text.spans), _rest(text)
        first = mine[0][0] < theirs[0][0]
        assert text.other is not None and text.other_emotion is not None
        sides = (
            (text.experiencer, mine, text.emotion, text.other_emotion, first),
            (text.other, theirs, text.other_emotion, text.emotion, not first),
        )
        for who, spans, own, other, earlier in sides:
            again = aftermaths(own, who)[0]
            end = again.index(f" {who} ") + 1 + len(who)
            prompt = plain(f"{text.text} {again[:end]}")
            places = {SENTENCES: spans, REFERENCE: prompt.places["last"]}
            made.append(Scene(Prompt(prompt.text, places), own, other, earlier, f"text {number}"))
    return made


def _both(
    model: LiveModel,
    scene: Mapping[str, str],
    names: Sequence[str],
    felt: Sequence[str],
    again: Sequence[str],
    concepts: Mapping[str, str],
    group: str,
) -> Iterator[Scene]:
    """Yield a text twice, read at either person; the first of `names` feels the first of `felt`."""
    where = scene["where"].format(a=names[0], b=names[1], x=felt[0], y=felt[1])
    sentences = [scene["first"].format(p=again[0]), scene["second"].format(q=again[1])]
    prompt = turn(model, " ".join([where, *sentences]))
    start = prompt.span("user")[0]
    for place, name in enumerate(names):
        told_at = prompt.with_place(name, name, start).span(name)[1]
        sentence = sentences[again.index(name)]
        begins, ends = prompt.with_place("again", sentence, start + len(where)).span("again")
        read = prompt.with_place(TOLD, felt[place], told_at).with_place(REFERENCE, name, begins)
        read = read.at_end_of(REFERENCE)
        places = {TOLD: read.places[TOLD], REFERENCE: read.places[REFERENCE], CLAUSE: (ends - 1, ends)}
        own, other = concepts[felt[place]], concepts[felt[1 - place]]
        yield Scene(Prompt(prompt.text, places), own, other, place == 0, group)


def _meetings(emotions: Sequence[str], count: int, seed: int) -> list[tuple[str, str]]:
    """Draw pairs of emotions, each emotion as often as can be."""
    generator = np.random.default_rng(seed)
    every = list(combinations(emotions, 2))
    met = dict.fromkeys(emotions, 0)
    chosen: list[tuple[str, str]] = []
    for _ in range(count):
        order = [every[place] for place in generator.permutation(len(every))]
        pair = min(order, key=lambda two: (sum(met[name] for name in two), chosen.count(two)))
        chosen.append(pair)
        for name in pair:
            met[name] += 1
    return chosen


def _rest(text: GeneratedText) -> list[Span]:
    """Return where the sentences are that are not about the experiencer."""
    edges = [0, *(edge for start, end in text.spans for edge in (start - 1, end + 1)), len(text.text)]
    gaps = zip(edges[::2], edges[1::2], strict=True)
    return [(start, end) for start, end in gaps if start < end]


def _check(scenes: Sequence[Scene]) -> list[str]:
    """Return the places of scenes, all the same. Raises `InputError` where they cannot be compared."""
    groups = {scene.group for scene in scenes}
    if len(groups) < LEAST_GROUPS:
        raise InputError(f"{len(groups)} scenarios are too few: give at least {LEAST_GROUPS}")
    places = list(scenes[0].prompt.places)
    if REFERENCE not in places or any(list(scene.prompt.places) != places for scene in scenes):
        raise InputError(f"scenes need the same places, with one called {REFERENCE!r} among them")
    if any(scene.own == scene.other for scene in scenes):
        raise InputError("the two persons of a scene feel the same: nothing can be told apart")
    balance: dict[tuple[str, frozenset[str]], list[int]] = {}
    for scene in scenes:
        tally = balance.setdefault((scene.group, frozenset((scene.own, scene.other))), [0, 0, 0])
        tally[0] += 1 if scene.own < scene.other else -1
        tally[1] += 1 if scene.first else -1
    uneven = [group for (group, _), tally in balance.items() if any(tally)]
    if uneven:
        raise InputError(
            f"{uneven[0]}: each pair of emotions must be read as often at either's person and at the one told first as at the "
            "one told last, or their order could pass for binding"
        )
    return places


# Measures ------------------------------------------------------------------------------------------------------------


def measured(margins: Floats, scenes: Sequence[Scene]) -> dict[str, Floats]:
    """Return `MEASURES`, each (1 + controls, groups, places, layers).

    `margins` are own less other read-outs, (1 + controls, scenes, places, layers).
    """
    first = np.array([1.0 if scene.first else -1.0 for scene in scenes])[:, None, None]
    # The sign turns own less other into the difference of two named emotions, whose mean is what the probes have by themselves.
    signs = np.array([1.0 if scene.own < scene.other else -1.0 for scene in scenes])[:, None, None]
    pairs = [(scene.group, *sorted((scene.own, scene.other))) for scene in scenes]
    offsets = _means(margins * signs, [str(pair) for pair in pairs], spread=True)
    groups = [scene.group for scene in scenes]
    return dict(
        zip(
            MEASURES,
            (
                _means(_higher(margins - offsets * signs), groups),
                _means(_higher(margins), groups),
                _means(margins, groups),
                _means(_higher(margins * first), groups),
            ),
            strict=True,
        )
    )


def judged(measure: str, units: Floats) -> Evidence:
    """Return the evidence of one measure, (1 + controls, groups)."""
    return of_mean(units) if measure == "margin" else of_share(units, 0.5)


def _higher(values: Floats) -> Floats:
    # What rounding has left of an equal pair is no difference.
    return np.where(np.abs(values) < 1e-9, 0.5, (values > 0).astype(float))


def _means(values: Floats, groups: Sequence[str], spread: bool = False) -> Floats:
    """Return means over the scenes of each group, (1 + controls, groups, …), or spread over its scenes again."""
    member = np.unique(groups, return_inverse=True)[1]
    share = (member[:, None] == np.arange(member.max() + 1)) / np.bincount(member)
    means: Floats = np.einsum("csp...,sg->cgp...", values, share)
    return means[:, member] if spread else means


# Words and pictures --------------------------------------------------------------------------------------------------


def verdict(accuracies: Mapping[str, Evidence], order: Evidence, layer: int) -> str:
    """Say whether emotions are bound at the reference, at one layer, and whether they were read where they were told."""
    main = accuracies[REFERENCE]
    said = {
        1: "emotions are bound to persons: where one is mentioned again the own emotion is read above the other's",
        0: "it is not shown that emotions are bound to persons: where one is mentioned again the own is read above the other's",
        -1: "emotions go to the wrong person: where one is mentioned again the other's emotion is read above the own",
    }[main.sign]
    parts = [f"At layer {layer} {said}, accuracy {main.said(sign=False)}."]
    for place, found in accuracies.items():
        if place != REFERENCE:
            which = {1: "it is read", 0: "it is not shown to be read", -1: "the other's is read"}[found.sign]
            parts.append(f"At the place “{place}” {which}, {found.said(sign=False)}.")
    leaning = {
        1: "the emotion told first is",
        -1: "the emotion told last is",
        0: "neither the first nor the last told is",
    }
    parts.append(
        f"At the reference {leaning[order.sign]} read higher by more than chance ({_value(order)} for the first)."
    )
    return " ".join(parts)


def of_layers(units: Floats, layers: Sequence[int]) -> str:
    """Say at which layers above the embedding emotions are bound, or go to the wrong person; p is times their number.

    `units` are accuracies at the reference, (1 + controls, groups, layers).
    """
    upper = [place for place, layer in enumerate(layers) if layer > 0]
    found = {}
    for place in upper:
        accuracy = units[..., place]
        p = min(1.0, len(upper) * sign_test(accuracy[0] - 0.5))
        found[layers[place]] = of_share(accuracy, 0.5, p)
    parts = []
    for sign, outcome in ((1, "bound"), (-1, "read at the wrong person")):
        shown = [layer for layer, evidence in found.items() if evidence.sign == sign]
        if shown:
            best = max(shown, key=lambda layer: sign * found[layer].value)
            parts.append(f"{outcome} at layer {listed(shown)} (at {best} {found[best].said(sign=False)})")
    what = listed(parts) if parts else "not shown to be bound at any"
    return f"Of {len(upper)} layers above the embedding, p times {len(upper)}, they are {what}."


def _table(found: Mapping[str, Floats], places: Sequence[str], layers: Sequence[int]) -> pd.DataFrame:
    rows = []
    for (number, place), (depth, layer), measure in product(enumerate(places), enumerate(layers), MEASURES):
        evidence = judged(measure, found[measure][..., number, depth])
        rows.append({"place": place, "layer": layer, "measure": measure, **evidence.row()})
    return pd.DataFrame(rows)


def _value(found: Evidence) -> str:
    return span(found.value, found.low, found.high)


def _expected(found: Evidence) -> str:
    low, high = found.expected
    return f"{low:.2f} to {high:.2f}"


@drawing.styled()
def _figure(table: pd.DataFrame, places: Sequence[str], layers: Sequence[int]) -> Figure:
    figure, axes = drawing.panels(1, len(places), height=2.6, sharey=True)
    for axis, place in zip(axes.flat, places, strict=True):
        rows = table[(table.place == place) & (table.measure == "accuracy")]
        drawing.control(
            axis, layers, None, rows.random_low, rows.random_high, label="random directions, expected"
        )
        drawing.line(axis, layers, rows.value, rows.low, rows.high, label="probes, 95 % interval")
        axis.axhline(0.5, color=drawing.CONTROL, linestyle="--", linewidth=1.2)
        axis.set_title(place)
        axis.set_xlabel("layer")
        axis.set_ylim(-0.02, 1.02)
    axes[0, 0].set_ylabel("accuracy")
    drawing.legend_below(figure, axes[0, 0])
    return figure
