"""The dialogue bank is what it is said to be: one of each kind, no emotion named, and every combination readable."""

import re
from collections import Counter
from itertools import product

import numpy as np
import pytest

from emoprobe import InputError
from emoprobe.corpora.generator import EMOTIONS, WORLDS, generate
from emoprobe.study.concepts import dialogues as bank

# For each emotion: beginnings of the words for it, of their inflections, and of words for the same.
STEMS = {
    "joy": "joy rejoic happ glad delight cheer merr elat ecsta thrill excit bliss jubil overjoy",
    "contentment": "content calm peace seren relax satisf tranquil restful cosily comfy",
    "pride": "proud pride triumph honour vain",
    "love": "love lovi belov ador affection fond cherish darling devot tender romant",
    "relief": "relie reassur thankful grateful",
    "surprise": "surpris astonish amaz startl shock stun astound unexpected baffl",
    "boredom": "bore bori tedi dull monoton wear",
    "sadness": "sad sorrow grie mourn unhapp miser gloom lonel heartbr depress melanchol despair",
    "shame": "sham asham embarrass humili guilt remors mortif disgrac",
    "disgust": "disgust revolt repuls nause gross loath vile foul sicken",
    "anger": "anger angr fury furi rage enrag mad irritat annoy livid hate hatr hati outrag wrath cross",
    "fear": "fear afraid scar frighten terr panic anxi dread worr nervous horr alarm",
    "in general": "emotion feeling feel felt mood",
}
MEANT_OTHERWISE = {
    "cross",
    "wearing",
    "scarf",
    "made",
    "happen",
    "happened",
    "borrow",
}  # as in "to cross himself"


def named(text: str) -> list[str]:
    stems = [stem for line in STEMS.values() for stem in line.split()]
    words = set(re.findall(r"[a-z']+", text.lower())) - MEANT_OTHERWISE
    return sorted(word for word in words if any(word.startswith(stem) for stem in stems))


def all_turns() -> list[tuple[str, str, str]]:
    cells = product(bank.emotions(), bank.topics())
    return [(emotion, topic, words) for emotion, topic in cells for words in bank.turns(emotion, topic)]


def test_there_are_two_turns_of_each_emotion_on_each_topic() -> None:
    assert set(bank.emotions()) == set(EMOTIONS) and len(bank.topics()) == 6
    assert len(all_turns()) == 13 * 6 * 2
    assert len({words for *_, words in all_turns()}) == 13 * 6 * 2


def test_no_turn_and_no_preamble_names_an_emotion() -> None:
    texts = [words for *_, words in all_turns()]
    texts += [one.text for one in bank.deflections()]
    assert [(found, text) for text in texts if (found := named(text))] == []


def test_the_leak_test_finds_inflections_and_synonyms() -> None:
    assert named("He was sadly mistaken, terrified and overjoyed.") == ["overjoyed", "sadly", "terrified"]


def test_length_does_not_tell_the_emotion() -> None:
    emotions, lengths = zip(
        *[(emotion, len(words.split())) for emotion, _, words in all_turns()], strict=True
    )
    of = np.array(lengths)
    assert of.min() >= 19 and of.max() <= 34
    means = [of[np.array(emotions) == name].mean() for name in bank.emotions()]
    assert np.ptp(means) < 3


def test_no_turn_repeats_another() -> None:
    said = [words for *_, words in all_turns()] + [one.words for one in bank.deflections()][::2]
    runs = Counter(
        run
        for words in said
        for run in {
            tuple(re.findall(r"[\w']+", words.lower())[k : k + 6]) for k in range(len(words.split()) - 5)
        }
    )
    assert [run for run, count in runs.items() if count > 1] == []


def test_dialogues_combine_every_two_emotions_in_both_orders() -> None:
    made = bank.dialogues(["joy", "fear", "neutral"], ["work", "food"], speakers=bank.CHAT)
    assert [(one.topic, one.emotions) for one in made] == [
        (topic, (mine, theirs))
        for topic in ("work", "food")
        for mine, theirs in product(["joy", "fear", "neutral"], repeat=2)
        if mine != theirs
    ]
    one = made[0]
    said = [(turn.speaker, one.text[turn.start : turn.end]) for turn in one.turns]
    joy, fear = bank.turns("joy", "work"), bank.turns("fear", "work")
    assert said == [("Human", joy[0]), ("Assistant", fear[0]), ("Human", joy[1]), ("Assistant", fear[1])]
    assert one.text == "\n\n".join(f"{speaker}: {words}" for speaker, words in said)
    assert len(bank.dialogues()) == 936


def test_a_speaker_answers_once_the_other_has_spoken() -> None:
    (one,) = [d for d in bank.dialogues(["joy", "fear"], ["work"]) if d.emotions == ("joy", "fear")]
    spans = [(turn.start, turn.end) for turn in one.turns]
    assert one.answers("Person A") == [spans[2]]
    assert one.answers("Person B") == [spans[1], spans[3]]


def test_a_hidden_emotion_is_told_by_the_preamble_alone() -> None:
    with_, without = bank.deflections(), bank.deflections(preamble=False)
    assert len(with_) == len(without) == 6 * 2 * 6 * 2
    kinds = Counter((one.topic, one.target, one.displayed) for one in with_)
    assert set(kinds.values()) == {2} and len(kinds) == 72
    for told, untold in zip(with_, without, strict=True):
        assert told.text.startswith("Scenario: ") and told.text.endswith(untold.text)
        assert told.words == untold.words and told.text.endswith(told.words)
        assert "{" not in told.text


def test_in_talk_of_something_neutral_the_words_are_the_same_whatever_is_felt() -> None:
    said = bank.by_condition(bank.NEUTRAL_TOPIC)
    by_target = [sorted(one.words for one in said if one.target == target) for target in bank.targets()]
    assert all(words == by_target[0] for words in by_target)
    openly = bank.by_condition(bank.EXPRESSED)
    assert all(one.words in bank.turns(one.target, one.topic) for one in openly)
    assert not any(one.text.startswith("Scenario") for one in openly)
    assert [len(bank.by_condition(one)) for one in bank.CONDITIONS] == [144, 144, 72]


def test_generated_pairs_say_whose_words_stand_where() -> None:
    made, source = bank.generated_pairs(40, seed=3), generate(40, seed=3, forms=("pair",))
    for one, text in zip(made, source, strict=True):
        assert one.text == text.text and one.topic in WORLDS
        felt = dict(zip(one.speakers, one.emotions, strict=True))
        assert felt == {text.experiencer: text.emotion, text.other: text.other_emotion}
        assert one.turns[0].speaker == one.speakers[0]
        for turn in one.turns:
            words = one.text[turn.start : turn.end]
            assert words == words.strip()
            inside = any(
                start <= turn.start and turn.end <= end + 80
                for start, end in text.spans
                if start <= turn.start < end
            )
            assert inside == (turn.speaker == text.experiencer)
        assert all(a.speaker != b.speaker for a, b in zip(one.turns, one.turns[1:], strict=False))
    assert {len(one.turns) for one in made} >= {2, 4}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (lambda: bank.turns("envy", "work"), "no emotion 'envy'"),
        (lambda: bank.turns("joy", "war"), "no topic 'war'"),
        (lambda: bank.dialogues(["joy"]), "two different ones"),
        (lambda: bank.dialogues(["joy", "joy"]), "two different ones"),
        (lambda: bank.by_condition("asleep"), "no condition"),
    ],
)
def test_what_is_not_there_is_refused(asked: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        asked()  # type: ignore[operator]
