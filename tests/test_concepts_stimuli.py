"""What models are given to read names no emotion where it must not, is balanced where it must be, and finds its probes."""

import re
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from emoprobe import InputError
from emoprobe.study.concepts.stimuli import CONCEPTS, load, matched

STEMS = {
    "happy": "happ(y|i)|joy|glad|delight|cheer|elat|bliss|merr|jubil",
    "loving": "lov(e|i)|affection|ador|fond|tender|cherish",
    "proud": "proud|pride|triumph",
    "calm": "calm|peace|seren|relax|tranquil|sooth",
    "relieved": "relie|reassur",
    "grateful": "grateful|gratitude|thank|appreciat",
    "inspired": "inspir|motivat",
    "surprised": "surpris|astonish|amaz|shock|stunn|startl",
    "afraid": "afraid|fear|scar(e|y)|fright|terr(or|if)|panic|dread|horr",
    "nervous": "nerv|anxi|worr|tense|uneas|jitter",
    "sad": "sad|unhapp|sorrow|grie(f|v)|mourn|miser|melanchol|heartbr",
    "desperate": "desper|despair|hopeless",
    "angry": r"ang(er|r)|furi|rage|mad\b|madden|annoy|irritat|outrag|indignan",
    "guilty": "guilt|remorse|sorry|regret",
    "ashamed": "asham|shame|embarrass|humiliat|mortif",
    "disgusted": "disgust|revolt|nause|repuls|gross",
    "bored": "bor(ed|ing|edom)|tedi|monoton|dull",
}
"""Beginnings of each emotion's word, its inflections and its obvious synonyms."""


def texts() -> Iterator[tuple[str, str]]:
    """Yield (where it stands, text) of all that must name no emotion."""
    for emotion, by_topic in load("scenarios").items():
        for topic, text in by_topic.items():
            yield f"scenario, {emotion}, {topic}", text
    for template in load("intensity"):
        for text in (*template["texts"], *template["neutral"]):
            yield template["name"], text
    for prompt in load("dissociation")["prompts"]:
        yield "dissociation", prompt["text"]
    for pair in load("persistence"):
        yield "persistence", pair["text"].replace("{w}", f"{pair['more']} {pair['less']}")
    for frame in load("negation")["frames"]:  # the phrase names it, and nothing else does
        yield "negation", frame["text"]
    for scene in load("binding")["scenes"]:
        yield "binding", " ".join((scene["where"], scene["first"], scene["second"]))


@pytest.mark.parametrize("emotion", STEMS)
def test_no_text_names_an_emotion(emotion: str) -> None:
    leaks = re.compile(rf"\b({STEMS[emotion]})", re.IGNORECASE)
    assert all(
        leaks.search(name) for name in (emotion, *CONCEPTS[emotion]) if name not in ("content", "contentment")
    )
    found = [(where, leaks.search(text).group()) for where, text in texts() if leaks.search(text)]  # type: ignore[union-attr]
    assert not found


def test_every_emotion_is_watched() -> None:
    assert set(STEMS) == set(CONCEPTS) == set(load("scenarios"))


def test_scenarios_are_balanced_over_topics() -> None:
    given = load("scenarios")
    assert len(given) >= 12 and len({tuple(sorted(by_topic)) for by_topic in given.values()}) == 1
    assert len(next(iter(given.values()))) >= 4
    every = [text for by_topic in given.values() for text in by_topic.values()]
    assert len(set(every)) == len(every)
    words = {
        emotion: sum(len(text.split()) for text in by_topic.values()) / 4
        for emotion, by_topic in given.items()
    }
    assert max(words.values()) < 1.4 * min(words.values())  # length tells no emotion


def test_templates_have_what_the_experiment_needs() -> None:
    templates = load("intensity")
    assert len(templates) >= 6
    for template in templates:
        grid = template["grid"]
        assert len(grid) >= 6 and grid == sorted(set(grid)) and len({len(str(x)) for x in grid}) == 1
        assert len(template["texts"]) == len(template["neutral"]) >= 3
        assert all(text.count("{x}") == 1 for text in (*template["texts"], *template["neutral"]))
        assert set(template["expected"].values()) <= {1, -1} and set(template["expected"]) <= set(CONCEPTS)
    signs = Counter(sign for template in templates for sign in template["expected"].values())
    assert abs(signs[1] - signs[-1]) <= 2  # a drift with numbers alone is as often against what is expected
    rising = Counter(
        (emotion, sign) for template in templates for emotion, sign in template["expected"].items()
    )
    assert all(rising[emotion, 1] and rising[emotion, -1] for emotion in ("happy", "sad", "calm", "afraid"))


def test_pairs_differ_in_one_early_word() -> None:
    pairs = load("persistence")
    kinds = Counter(pair["kind"] for pair in pairs)
    assert kinds["word"] >= 12 and kinds["number"] >= 6
    for pair in pairs:
        before, after = pair["text"].split("{w}")
        assert " " not in pair["more"] + pair["less"] and pair["more"] != pair["less"]
        assert len(after) > 100 and len(before) < 60 and pair["text"].endswith("?")
        assert pair["emotion"] in CONCEPTS
        if pair["kind"] == "number":
            assert (
                len(pair["more"]) == len(pair["less"]) and pair["more"].isdigit() and pair["less"].isdigit()
            )


def test_prompts_end_in_a_question_and_pull_apart() -> None:
    given = load("dissociation")
    assert given["question"].endswith("?") and len(given["prompts"]) >= 8
    assert all(prompt["user"] != prompt["reply"] for prompt in given["prompts"])


def test_negation_changes_the_phrase_alone() -> None:
    given = load("negation")
    assert set(given["phrases"]) == {"affirmed", "longer", "negated", "nobody"} and len(given["frames"]) >= 6
    longer, negated = (given["phrases"][name].split() for name in ("longer", "negated"))
    assert len(longer) == len(negated)  # so many words more than the affirmed, both
    for frame in given["frames"]:
        assert frame["text"].startswith("{phrase} ") and frame["text"].count(frame["later"]) == 1


def test_scenes_mention_each_person_twice() -> None:
    given = load("binding")
    assert len(given["scenes"]) >= 16
    for scene in given["scenes"]:
        assert all(scene["where"].count(slot) == 1 for slot in ("{a}", "{b}", "{x}", "{y}"))
        assert scene["first"].count("{p}") == 1 and scene["second"].count("{q}") == 1
        where = scene["where"]
        assert where.index("{a}") < where.index("{x}") < where.index("{b}") < where.index("{y}")


# Matching ------------------------------------------------------------------------------------------------------------


def probes(*concepts: str) -> Any:
    return SimpleNamespace(concepts=concepts)


def test_emotions_find_their_probes() -> None:
    found, left_out = matched(
        probes("Joy", "fear", "sadness", "shame"), ["happy", "afraid", "guilty", "sad", "ashamed"]
    )
    assert found == {"happy": "Joy", "afraid": "fear", "sad": "sadness", "ashamed": "shame"}
    assert left_out == ["guilty"]


def test_no_probe_stands_for_two_and_the_nearest_name_wins() -> None:
    found, _ = matched(probes("content", "calm", "joy", "happy", "love"), ["calm", "happy", "loving"])
    assert found == {"calm": "calm", "happy": "happy", "loving": "love"}
    assert matched(probes("x", "y", "z"), ["x", "y", "z", "x"])[0] == {"x": "x", "y": "y", "z": "z"}
    names = [name for meanings in CONCEPTS.values() for name in meanings]
    assert len(names) == len(set(names))


def test_too_few_probes_are_refused() -> None:
    with pytest.raises(InputError, match="they have valence, arousal; fit probes"):
        matched(probes("valence", "arousal"), ["happy", "sad"], least=2)
