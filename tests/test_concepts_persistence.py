"""How far one word is carried: differences are those of two prompts read alone; what is planted comes out, and no more."""

from typing import Any

import numpy as np
import pytest
from parts import shown
from planted_probes import planted_probes
from planted_reader import directions, reader
from tiny import tiny_model

from emoprobe import InputError
from emoprobe.models import LiveModel
from emoprobe.probes import ProbeSet
from emoprobe.study.concepts import persistence as module
from emoprobe.study.concepts.persistence import CARRIED, PLACES, late_less_early, persistence, placed
from emoprobe.study.concepts.places import read_at
from emoprobe.study.concepts.stimuli import load

EMOTIONS = {"happy": "joy", "afraid": "fear"}
WHERE = ("road", "river", "bridge", "market", "house", "station", "hill", "mill")
PAIRS: list[dict[str, str]] = [
    {
        "kind": kind,
        "emotion": emotion,
        "more": f"{kind}more{emotion}",
        "less": f"{kind}less{emotion}",
        "text": f"It was {{w}} by the {where}. Then we went on and sat down at the long table with the lamp. What now?",
    }
    for kind in ("word", "number")
    for emotion in EMOTIONS
    for where in WHERE
]


def planted(word: float, number: float, spread: float = 3.0) -> tuple[LiveModel, ProbeSet]:
    """Return a model in which the words, or the numbers, that should be higher carry their emotion, so strongly."""
    rows = dict(zip(EMOTIONS, directions(2), strict=True))
    texts = [pair["text"].replace("{w}", pair[side]) for pair in PAIRS for side in ("more", "less")]
    words = {f"wordmore{emotion}": word * row for emotion, row in rows.items()}
    words |= {f"numbermore{emotion}": number * row for emotion, row in rows.items()}
    # The words of a pair have the same noise otherwise, so that nothing but what was planted differs.
    model = reader(texts, words, strength=1.0, spread=spread)
    embedding = model.underlying.transformer.wte.weight
    for kind, strength in (("word", word), ("number", number)):
        for emotion, row in rows.items():
            more, less = (
                model.tokenizer(f"{kind}{side}{emotion}")["input_ids"][0] for side in ("more", "less")
            )
            embedding.data[more] = embedding.data[less] + strength * embedding.new_tensor(row)
    return model, planted_probes(model, np.stack(list(rows.values())), list(EMOTIONS.values()))


@pytest.mark.parametrize(
    ("word", "number", "spread", "said"),
    [
        (
            3.0,
            0.0,
            3.0,
            [
                "Where one word differs the difference is read as expected",
                "it is carried to the end of the suffix",
            ],
        ),
        (
            3.0,
            0.0,
            0.0,
            [
                "Where one word differs the difference is read as expected",
                "it is not shown to be carried to the end",
            ],
        ),
        (
            0.0,
            0.0,
            3.0,
            [
                "Where one word differs the difference is not shown",
                "it is not shown to be carried to the place",
            ],
        ),
        (
            -3.0,
            0.0,
            3.0,
            ["Where one word differs the difference is read against", "its opposite is carried to the place"],
        ),
        (
            0.0,
            3.0,
            3.0,
            [
                "Where one number differs the difference is read as expected",
                "it is carried to the place before the",
            ],
        ),
    ],
)
def test_all_outcomes(word: float, number: float, spread: float, said: list[str]) -> None:
    model, probes = planted(word, number, spread)
    found = persistence(model, probes, stimuli=PAIRS)
    parts = found.verdict.split("Where one number")
    about = "Where one number" + parts[1] if "number" in said[0] else parts[0]
    assert all(words in about for words in said), found.verdict
    assert found.passed and found.checks  # the embedding's suffix is the same
    places = ("end of the suffix", "place before the reply")
    assert shown(found) == [f"it is carried to the {place}" in parts[0] for place in places]
    at_zero = found.table[(found.table.layer == 0) & (found.table.place != "word")]
    assert (at_zero.value.abs() < 1e-6).all()
    assert "Late layers carry" not in found.verdict  # the first block carries all


def test_what_is_carried_to_one_of_two_places_is_partly_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    own, before_the_reply = module.of_carried, len(PLACES) - 1

    def lost(differences: Any, place: int, layer: int) -> Any:
        return own(differences * (place != before_the_reply), place, layer)

    monkeypatch.setattr(module, "of_carried", lost)
    found = persistence(*planted(3.0, 0.0, 3.0), stimuli=PAIRS)
    assert shown(found) == [True, False] and found.outcome == "Partly shown"
    assert found.in_parts == "Shown: at the end of the suffix. Not shown: before the reply."


def test_differences_are_those_of_prompts_read_alone() -> None:
    model = tiny_model("llama")
    probes = planted_probes(model, np.random.default_rng(0).normal(size=(2, 32)), list(EMOTIONS.values()))
    given = [pair for pair in load("persistence") if pair["emotion"] in EMOTIONS]
    found = persistence(model, probes, stimuli=given)
    for kind in ("word", "number"):
        pairs = [pair for pair in given if pair["kind"] == kind]
        each = []
        for pair in pairs:
            concept = [EMOTIONS[pair["emotion"]]]
            more, less = (
                read_at(
                    model, probes, [placed(model, pair, pair[side])], PLACES, [0, 1, 2, 3], concepts=concept
                )
                for side in ("more", "less")
            )
            each.append((more - less)[0, :, :, 0])
        rows = found.table[found.table["differ in"] == kind]
        assert np.allclose(rows.value.to_numpy().reshape(len(PLACES), 4), np.mean(each, axis=0), atol=1e-6)
    assert "not shown" in found.verdict and found.published


def test_batches_change_nothing() -> None:
    model, probes = planted(1.0, -1.0)
    one, many = (persistence(model, probes, stimuli=PAIRS, batch_size=size).table for size in (1, 32))
    numbers = one.select_dtypes("number").columns
    assert np.allclose(one[numbers], many[numbers], atol=1e-6)


def test_places_cut_the_suffix_between_its_words() -> None:
    model = tiny_model("gpt2")
    for pair in load("persistence"):
        more, less = (placed(model, pair, pair[side]) for side in ("more", "less"))
        assert tuple(more.places) == PLACES
        assert more.text[slice(*more.span("word"))] == pair["more"]
        pieces = [prompt.text[slice(*prompt.span(name))] for prompt in (more, less) for name in PLACES[1:-1]]
        assert pieces[:4] == pieces[4:] and "".join(pieces[:4]) == pair["text"].split("{w}")[1]
        assert all(len(piece) > 15 for piece in pieces) and all(piece[0] == " " for piece in pieces[1:4])
        assert more.text[slice(*more.span("before the reply"))] == ":"


def test_a_suffix_that_differs_in_the_embedding_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    model, probes = planted(1.0, 0.0)

    real = module.read_beside_random

    def shifted(*given: Any, **options: Any) -> np.ndarray:
        values = real(*given, **options)
        values[:, : values.shape[1] // 2, -2, 0] += 0.01
        return values

    monkeypatch.setattr(module, "read_beside_random", shifted)
    assert not persistence(model, probes, stimuli=PAIRS).passed


def test_late_and_early_layers() -> None:
    generator = np.random.default_rng(1)
    values = 0.1 * generator.normal(size=(21, 12, len(PLACES), 8))
    carried = [PLACES.index(name) for name in CARRIED]
    layers = range(8)
    found = late_less_early(values, layers)
    assert found is not None and found.sign == 0
    upper = values[:, :, carried].mean(2)
    expected = upper[0, :, [6, 7]].mean() - upper[0, :, [1, 2]].mean()  # of layers 1 to 7, two each
    assert found.value == pytest.approx(expected)
    for sign in (1, -1):
        moved = values.copy()
        moved[0, :, carried, 5:] += sign
        found = late_less_early(moved, layers)
        assert found is not None and found.sign == sign
    assert late_less_early(values[..., :2], [0, 1]) is None


def test_too_little_is_refused() -> None:
    model, probes = planted(0.0, 0.0)
    with pytest.raises(InputError, match="6 of words are needed"):
        persistence(model, probes, stimuli=[*PAIRS[:5], *PAIRS[16:]])
    lonely = planted_probes(model, directions(1), ["joy"])
    with pytest.raises(InputError, match="know 1 of the emotions"):
        persistence(model, lonely, stimuli=PAIRS)
