"""Whose emotion it is: order cannot pass for binding, accuracies are counted one by one, and every outcome can come out."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from planted_probes import planted_probes
from planted_reader import directions, reader
from tiny import tiny_model

from emoprobe import InputError, load_model
from emoprobe.corpora.generator import EMOTIONS as GENERATED
from emoprobe.corpora.generator import generate
from emoprobe.models import LiveModel
from emoprobe.probes import ProbeSet
from emoprobe.study.concepts import binding as module
from emoprobe.study.concepts.binding import (
    CLAUSE,
    REFERENCE,
    SENTENCES,
    TOLD,
    Scene,
    binding,
    generated,
    measured,
    of_layers,
    told,
)
from emoprobe.study.concepts.places import plain, read_at

EMOTIONS = {"happy": "joy", "afraid": "fear", "angry": "anger", "sad": "sadness"}
CONCEPTS = sorted(EMOTIONS.values())


@pytest.fixture(scope="module")
def model() -> LiveModel:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def probes(model: LiveModel) -> ProbeSet:
    return planted_probes(model, np.random.default_rng(0).normal(size=(4, 32)), list(EMOTIONS.values()))


@pytest.fixture(scope="module")
def scenes(model: LiveModel, probes: ProbeSet) -> list[Scene]:
    return told(model, probes)


def outcome(
    monkeypatch: pytest.MonkeyPatch,
    model: LiveModel,
    probes: ProbeSet,
    scenes: Sequence[Scene],
    raised: Callable[[Scene], str | None],
    layers: Sequence[int] = (0, 1, 2, 3),
) -> str:
    """Return the verdict where at the reference one emotion of each scene is raised, at some layers, beside large offsets."""
    generator = np.random.default_rng(1)

    def read(
        _: Any, __: Any, prompts: Sequence[Any], places: Sequence[str], depths: Sequence[int], **___: Any
    ) -> np.ndarray:
        values = generator.normal(
            size=(21, len(prompts), len(places), len(depths), 4)
        ) + 10 * generator.normal(size=4)
        for row, scene in enumerate(scenes):
            name = raised(scene)
            if name is not None:
                values[0, row, places.index(REFERENCE), list(layers), CONCEPTS.index(name)] += 1.5
        return values

    monkeypatch.setattr(module, "read_beside_random", read)
    return binding(model, probes, scenes=scenes).verdict


@pytest.mark.parametrize(
    ("raised", "layers", "said"),
    [
        (
            lambda s: s.own,
            (0, 1, 2, 3),
            ["At layer 2 emotions are bound to persons", "they are bound at layer 1, 2 and 3"],
        ),
        (lambda s: s.own, (3,), ["At layer 2 it is not shown", "they are bound at layer 3 (at 3"]),
        (
            lambda s: None,
            (0, 1, 2, 3),
            ["At layer 2 it is not shown", "not shown to be bound at any", "neither the first nor"],
        ),
        (
            lambda s: s.other,
            (0, 1, 2, 3),
            ["At layer 2 emotions go to the wrong person", "read at the wrong person at layer 1, 2 and 3"],
        ),
        (
            lambda s: s.other if s.first else s.own,
            (0, 1, 2, 3),
            ["it is not shown", "not shown to be bound at any", "the emotion told last is"],
        ),
        (
            lambda s: s.own if s.first else s.other,
            (0, 1, 2, 3),
            ["it is not shown", "not shown to be bound at any", "the emotion told first is"],
        ),
        (
            lambda s: min(s.own, s.other),
            (0, 1, 2, 3),
            ["it is not shown", "not shown to be bound at any", "neither the first nor"],
        ),
    ],
)
def test_all_outcomes(
    monkeypatch: pytest.MonkeyPatch,
    model: LiveModel,
    probes: ProbeSet,
    scenes: list[Scene],
    raised: Callable[[Scene], str | None],
    layers: tuple[int, ...],
    said: list[str],
) -> None:
    found = outcome(monkeypatch, model, probes, scenes, raised, layers)
    assert all(words in found for words in said), found


def test_carrying_words_is_not_binding() -> None:
    rows = dict(zip(EMOTIONS, directions(4), strict=True))
    anything = planted_probes(tiny_model("llama"), np.eye(4, 32), list(EMOTIONS.values()))
    texts = [scene.prompt.text for scene in told(tiny_model("llama"), anything)]
    model = reader(texts, rows, strength=4.0, spread=2.0)
    probes = planted_probes(model, np.stack(list(rows.values())), list(EMOTIONS.values()))
    found = binding(model, probes)
    assert found.verdict.startswith("At layer 2 it is not shown that emotions are bound")
    assert (
        f"At the place “{TOLD}” it is read" in found.verdict
        and "not shown to be bound at any" in found.verdict
    )
    assert found.published and found.svg and "16 scenarios" in found.method


def test_the_table_is_what_texts_read_alone_give(
    model: LiveModel, probes: ProbeSet, scenes: list[Scene]
) -> None:
    given = scenes[:96]
    one, many = (binding(model, probes, scenes=given, batch_size=size).table for size in (1, 32))
    assert np.allclose(one.value, many.value, atol=1e-6)
    read = read_at(
        model, probes, [scene.prompt for scene in given], [REFERENCE], [2], concepts=CONCEPTS, batch_size=1
    )
    margins = np.array(
        [
            values[0, 0, CONCEPTS.index(scene.own)] - values[0, 0, CONCEPTS.index(scene.other)]
            for values, scene in zip(read, given, strict=True)
        ]
    )
    right = margins > 0
    rows = one[(one.place == REFERENCE) & (one.layer == 2)].set_index("measure").value
    assert rows["margin"] == pytest.approx(np.mean(margins), abs=1e-6)
    assert rows["accuracy, offsets left in"] == pytest.approx(np.mean(right), abs=1e-6)


# Scenes --------------------------------------------------------------------------------------------------------------


def test_told_scenes_go_round_all_ways(scenes: list[Scene]) -> None:
    assert len(scenes) == 16 * 2 * 4 * 2
    for group in {scene.group for scene in scenes}:
        here = [scene for scene in scenes if scene.group == group]
        ways = Counter((scene.own, scene.other, scene.first) for scene in here)
        assert set(ways.values()) == {2}  # mentioned again first, and last
        assert (
            sum(scene.own in pair for pair in {frozenset((s.own, s.other)) for s in here} for scene in here)
            >= 16
        )
    often = Counter(scene.own for scene in scenes)
    assert set(often.values()) == {64}


def test_places_of_told_scenes(scenes: list[Scene]) -> None:
    names = {concept: emotion for emotion, concept in EMOTIONS.items()}
    for scene in scenes:
        text = scene.prompt.text
        at = {place: text[slice(*scene.prompt.span(place))] for place in scene.prompt.places}
        assert at[TOLD] == names[scene.own] and at[CLAUSE] == "."
        told_at, reference = scene.prompt.span(TOLD)[0], scene.prompt.span(REFERENCE)
        assert text.index(names[scene.other]) > told_at or not scene.first
        # The name that ends at the reference is the one that stood last before the own emotion's word.
        name = next(
            n for n in text.split() if text[: reference[1]].endswith(n.strip(".,;")) and n[0].isupper()
        ).strip(".,;")
        assert text[:told_at].rstrip().rfind(name) >= 0 and reference[0] > told_at
        others = [n for pair in module.load("binding")["names"] if name in pair for n in pair if n != name]
        assert text[:told_at].rfind(name) > text[:told_at].rfind(others[0])
        assert scene.prompt.span(CLAUSE)[0] > reference[1]


def test_generated_scenes_are_read_at_the_persons_own_sentences() -> None:
    made = generated(40, seed=3)
    assert len(made) == 80 and len({scene.group for scene in made}) == 40
    for mine, theirs in zip(made[::2], made[1::2], strict=True):
        assert (mine.own, mine.other) == (theirs.other, theirs.own) and mine.first != theirs.first
        assert {mine.own, mine.other} <= set(GENERATED)
        whole = "".join(mine.prompt.text[a:b] for s in (mine, theirs) for a, b in s.prompt.places[SENTENCES])  # type: ignore[misc]
        body = mine.prompt.text[: max(end for s in (mine, theirs) for _, end in s.prompt.places[SENTENCES])]  # type: ignore[misc]
        assert sorted(whole) == sorted(body.replace(" ", "") + " " * whole.count(" "))
        for scene in (mine, theirs):
            who = scene.prompt.text.split()[-1]
            assert scene.prompt.text.endswith(f"fterwards {who}") and scene.prompt.span(REFERENCE)[1] == len(
                scene.prompt.text
            )
            for a, b in scene.prompt.places[SENTENCES]:  # type: ignore[misc]
                assert scene.prompt.text[b - 1] == "." and (scene.prompt.text[a].isupper() or a == 0)
            if who != "I":
                assert who in scene.prompt.text[slice(*scene.prompt.places[SENTENCES][0])]  # type: ignore[misc]


def test_the_ground_truth_model_binds_in_its_last_layer() -> None:
    live, texts = load_model("ground-truth"), generate(390, seed=1, forms=["first", "third"])
    names = sorted(GENERATED)
    carried = np.array([[float(text.emotion == name) for name in names] for text in texts])
    pooled = live.capture([text.text for text in texts], [4, 6]).double()
    means = torch.from_numpy(carried / carried.sum(0)).T @ pooled.transpose(
        0, 1
    )  # (layers, concepts, d_model)
    fitted = replace(
        planted_probes(live, np.ones((len(names), live.d_model)), names, [4, 6]),
        directions=torch.nn.functional.normalize(means - means.mean(1, keepdim=True), dim=-1).float(),
        reference_mean=pooled.mean(0).float(),
    )
    found = binding(live, fitted, scenes=generated(60))
    rows = found.table[found.table.measure == "accuracy"].set_index(["place", "layer"]).value
    assert rows[SENTENCES, 4] > 0.95 and "it is read" in found.verdict
    assert "they are bound at layer 6" in found.verdict and rows[REFERENCE, 6] > 0.9
    assert rows[REFERENCE, 4] < 0.7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda scenes: scenes[:64], "scenarios are too few"),
        (lambda scenes: scenes[:-1], "as often at either's person"),
        (
            lambda scenes: [*scenes[:-1], replace(scenes[-1], first=not scenes[-1].first)],
            "as often at either's person",
        ),
        (lambda scenes: [*scenes[:-1], replace(scenes[-1], own=scenes[-1].other)], "feel the same"),
        (lambda scenes: [*scenes[:-1], replace(scenes[-1], prompt=plain("a"))], "the same places"),
        (lambda scenes: [replace(scene, prompt=plain("a b")) for scene in scenes], "one called 'reference'"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    model: LiveModel,
    probes: ProbeSet,
    scenes: list[Scene],
    change: Callable[[list[Scene]], list[Scene]],
    message: str,
) -> None:
    with pytest.raises(InputError, match=message):
        binding(model, probes, scenes=change(scenes))


# Measures ------------------------------------------------------------------------------------------------------------


def test_measures_are_counted_one_by_one(scenes: list[Scene]) -> None:
    given = scenes[:64]
    margins = np.random.default_rng(2).normal(size=(3, len(given), 2, 2))
    found = measured(margins, given)
    groups = sorted({scene.group for scene in given})
    for k, place, layer in np.ndindex(3, 2, 2):
        column = margins[k, :, place, layer]
        for number, group in enumerate(groups):
            rows = [row for row, scene in enumerate(given) if scene.group == group]
            centred = []
            for row in rows:
                same = [
                    other
                    for other in rows
                    if {given[other].own, given[other].other} == {given[row].own, given[row].other}
                ]
                aligned = [column[o] if given[o].own == given[row].own else -column[o] for o in same]
                centred.append(column[row] > np.mean(aligned))
            assert found["accuracy"][k, number, place, layer] == pytest.approx(np.mean(centred))
            assert found["accuracy, offsets left in"][k, number, place, layer] == pytest.approx(
                np.mean(column[rows] > 0)
            )
            assert found["margin"][k, number, place, layer] == pytest.approx(column[rows].mean())
            told_first = [column[row] > 0 if given[row].first else column[row] < 0 for row in rows]
            assert found["first told read higher"][k, number, place, layer] == pytest.approx(
                np.mean(told_first)
            )


def test_layers_pay_for_their_number() -> None:
    units = np.full((21, 7, 6), 0.5)
    units[1:] += 0.05 * np.random.default_rng(3).normal(size=(20, 7, 6))
    units[0, :, 1] = [1, 0.9, 1, 0.9, 1, 0.9, 1]  # p = 2 / 2 ** 7 = 0.016
    assert "they are bound at layer 1" in of_layers(units[..., :4], range(4))  # times 3 layers: 0.047
    assert "not shown to be bound at any" in of_layers(units, range(6))  # times 5
