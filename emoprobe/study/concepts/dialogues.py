"""Dialogues of two speakers whose emotions are set independently, and turns in which a speaker hides one.

The bank (`dialogues.json`) holds single turns, two for each of 13 emotions on each of six topics, no emotion named. Each is
about the speaker's own doings, so that whatever one speaker says on a topic can be followed by whatever the other says on it:
dialogues are combined freely, every turn beside every other, and what the speakers feel is independent by design. Beside them
stand turns in which a speaker who feels one thing shows another, with a preamble that tells what is felt; preambles are for
the model alone and are left out of all statistics.

The design follows Sofroniew et al. 2026 (arXiv 2604.07729, appendix on present and other speakers, and on deflection), whose
dialogues a language model wrote; these were written by hand for this package. Nothing here knows models or probes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from emoprobe.corpora.generator import generate
from emoprobe.errors import InputError
from emoprobe.interventions import Span

PERSONS = ("Person A", "Person B")
CHAT = ("Human", "Assistant")
"""Names of the speakers: two persons, or those of a conversation with a model."""


@dataclass(frozen=True)
class Turn:
    """One speaker's words in a dialogue: characters [start, end), without the speaker's name."""

    speaker: str
    start: int
    end: int


@dataclass(frozen=True)
class Dialogue:
    """A text of two speakers: what each feels, and whose words stand where. `topic` is the group that no split may cut."""

    text: str
    topic: str
    speakers: tuple[str, str]
    emotions: tuple[str, str]
    """What the first and the second of `speakers` feels."""
    turns: tuple[Turn, ...]

    def answers(self, speaker: str) -> list[Span]:
        """Return where a speaker's words stand that follow words of the other: what the other's emotion can have a part in."""
        heard = [number for number, turn in enumerate(self.turns) if turn.speaker != speaker]
        after = self.turns[heard[0] :] if heard else ()
        return [(turn.start, turn.end) for turn in after if turn.speaker == speaker]


@dataclass(frozen=True)
class Hidden:
    """A dialogue at whose end a speaker feels `target` and shows `displayed`, or speaks of something neutral.

    `span` is the speaker's last turn, `words` what it says. Statistics are over that span alone. `preamble` is where the text
    tells what is felt, (0, 0) where it does not.
    """

    text: str
    topic: str
    target: str
    displayed: str
    span: Span
    preamble: Span

    @property
    def words(self) -> str:
        """The turn's own words."""
        return self.text[slice(*self.span)]


@cache
def _bank() -> Mapping[str, Any]:
    return json.loads(Path(__file__).with_name("dialogues.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def emotions() -> tuple[str, ...]:
    """Return the emotions that there are turns for, "neutral" among them."""
    return tuple(_bank()["turns"])


def topics() -> tuple[str, ...]:
    """Return the topics that there are turns on."""
    return tuple(_bank()["turns"]["neutral"])


def targets() -> tuple[str, ...]:
    """Return the emotions that are hidden in some turns."""
    return tuple(_bank()["deflections"])


def turns(emotion: str, topic: str) -> tuple[str, str]:
    """Return the two turns of an emotion on a topic, in the order in which one speaker would say them.

    Raises `InputError` for an emotion or topic that is not in the bank.
    """
    _check("emotion", [emotion], emotions())
    _check("topic", [topic], topics())
    first, second = _bank()["turns"][emotion][topic]
    return first, second


def dialogues(
    chosen: Sequence[str] | None = None,
    on: Sequence[str] | None = None,
    *,
    speakers: tuple[str, str] = PERSONS,
) -> list[Dialogue]:
    """Combine turns into dialogues of four turns: for each topic each two different emotions, in both orders.

    `chosen` are emotions, `on` topics (default: all; 13 · 12 · 6 = 936 dialogues). Two speakers of one emotion would have to
    say the same, so they are left out; an effect that is adjusted for the other speaker's emotion does not suffer from it.
    Raises `InputError` for names that are not in the bank, and fewer than two emotions.
    """
    named = list(emotions() if chosen is None else chosen)
    about = list(topics() if on is None else on)
    _check("emotion", named, emotions())
    _check("topic", about, topics())
    if len(set(named)) < 2 or len(set(named)) < len(named):
        raise InputError(f"emotions {named}: dialogues need two different ones at least, each given once")
    return [
        _combined(topic, (mine, theirs), speakers)
        for topic in about
        for mine in named
        for theirs in named
        if mine != theirs
    ]


def _combined(topic: str, felt: tuple[str, str], speakers: tuple[str, str]) -> Dialogue:
    (a1, a2), (b1, b2) = (turns(emotion, topic) for emotion in felt)
    text, said = _written(list(zip((speakers * 2), (a1, b1, a2, b2), strict=True)))
    return Dialogue(text, topic, speakers, felt, said)


def _written(lines: Iterable[tuple[str, str]], before: str = "") -> tuple[str, tuple[Turn, ...]]:
    """Write speakers and their words as a dialogue, after a preamble; return where the words stand."""
    text, said = before, []
    for speaker, words in lines:
        text += ("\n\n" if text else "") + f"{speaker}: "
        said.append(Turn(speaker, len(text), len(text) + len(words)))
        text += words
    return text, tuple(said)


# Hidden emotions -----------------------------------------------------------------------------------------------------

EXPRESSED, HIDDEN, NEUTRAL_TOPIC = "expressed", "hidden", "neutral topic"
CONDITIONS = (EXPRESSED, HIDDEN, NEUTRAL_TOPIC)
"""What becomes of an emotion: said openly, hidden behind another, or left out of talk about something neutral."""


def deflections(preamble: bool = True, *, speakers: tuple[str, str] = PERSONS) -> list[Hidden]:
    """Return all turns in which an emotion is hidden, each after either of two neutral turns of the other speaker.

    A preamble tells what the first speaker feels; without it the words of the turn are all that there is to go by.
    """
    return [
        _hidden(topic, target, displayed, prompt, words, preamble, speakers)
        for target, by_display in _bank()["deflections"].items()
        for displayed, by_topic in by_display.items()
        for topic, words in by_topic.items()
        for prompt in turns("neutral", topic)
    ]


def by_condition(condition: str, *, speakers: tuple[str, str] = PERSONS) -> list[Hidden]:
    """Return dialogues at whose end the first speaker feels each of the hidden emotions, by what becomes of it.

    "expressed": it shows in what the speaker says (no preamble is needed); "hidden": as `deflections`; "neutral topic": after
    the same preambles the speaker says something neutral, the same words whatever is felt. What is shown is called
    `displayed`. Raises `InputError` for another condition.
    """
    _check("condition", [condition], CONDITIONS)
    if condition == HIDDEN:
        return deflections(speakers=speakers)
    openly = condition == EXPRESSED
    cells = [(target, topic) for target in targets() for topic in topics()]
    return [
        _hidden(topic, target, target if openly else "neutral", prompt, words, not openly, speakers)
        for target, topic in cells
        for words in turns(target if openly else "neutral", topic)
        for prompt in turns("neutral", topic)
        if prompt != words
    ]


def _hidden(
    topic: str,
    target: str,
    displayed: str,
    prompt: str,
    words: str,
    preamble: bool,
    speakers: tuple[str, str],
) -> Hidden:
    before = "Scenario: " + _bank()["preambles"][target][topic].format(name=speakers[0]) if preamble else ""
    text, said = _written([(speakers[1], prompt), (speakers[0], words)], before)
    return Hidden(text, topic, target, displayed, (said[-1].start, said[-1].end), (0, len(before)))


# Pairs whose emotions were drawn -------------------------------------------------------------------------------------


def generated_pairs(n: int, seed: int = 0, *, chosen: Sequence[str] | None = None) -> list[Dialogue]:
    """Return texts about two persons from the package's generator as dialogues: their words are the sentences about them.

    The person of the first sentence is the first speaker; the world is the topic. It is what the ground-truth model was trained
    on. `chosen` are emotions of the generator (default: all).
    """
    return [
        _pair(
            text.text,
            text.world,
            text.spans,
            (text.experiencer, str(text.other)),
            (text.emotion, str(text.other_emotion)),
        )
        for text in generate(n, seed, forms=("pair",), emotions=chosen)
    ]


def _pair(
    text: str, world: str, spans: Sequence[Span], persons: tuple[str, str], felt: tuple[str, str]
) -> Dialogue:
    edges = np.unique([0, len(text), *(edge for span in spans for edge in span)]).tolist()
    said: list[Turn] = []
    for start, end in pairwise(edges):
        words = text[start:end]
        if not words.strip():
            continue
        start += len(words) - len(words.lstrip())
        end -= len(words) - len(words.rstrip())
        who = persons[0] if any(a <= start and end <= b for a, b in spans) else persons[1]
        if said and said[-1].speaker == who:  # goes on speaking
            start = said.pop().start
        said.append(Turn(who, start, end))
    if said[0].speaker != persons[0]:
        persons, felt = (persons[1], persons[0]), (felt[1], felt[0])
    return Dialogue(text, world, persons, felt, tuple(said))


def _check(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise InputError(f"no {what} {name!r}: there are {', '.join(known)}")
