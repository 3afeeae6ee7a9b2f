"""What a writer is asked for: emotion stories, neutral dialogues, dialogues of two speakers, and hidden emotions.

The four kinds follow the appendix of "Emotion Concepts and their Function in a Large Language Model" (Sofroniew et al. 2026,
arXiv 2604.07729); the wording is this project's own. A writer that follows instructions gets them; one that only continues
text gets the beginning of a page on which such a text would stand.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from emoprobe.errors import InputError

STORIES, NEUTRAL, DIALOGUES, DEFLECTION = "stories", "neutral", "dialogues", "deflection"
KINDS = (STORIES, NEUTRAL, DIALOGUES, DEFLECTION)
MARK = "###"
"""Stands alone on a line between two texts of one reply."""
PERSONS = ("Person A", "Person B")
ASKING = ("Person", "AI")


@dataclass(frozen=True)
class Request:
    """One request to a writer: what kind of text, on which topic, for which emotions, the `number`-th for these.

    `emotions` holds one emotion for stories, none for neutral dialogues, those of both speakers for dialogues, and the felt and
    the displayed one for deflection. `texts` is how many one reply shall hold.
    """

    kind: str
    topic: str
    emotions: tuple[str, ...]
    number: int
    texts: int

    @property
    def key(self) -> str:
        """What tells this request from all others."""
        return "|".join([self.kind, self.topic, *self.emotions, str(self.number), str(self.texts)])

    def instruction(self) -> str:
        """Return the request in words, for a writer that follows instructions."""
        apart = (
            f"Put a line with only {MARK} between two of them. Write nothing else."
            if self.texts > 1
            else "Write nothing else."
        )
        count = f"{self.texts} different {{}}s" if self.texts > 1 else "one {}"
        if self.kind == STORIES:
            return (
                f"Please write {count.format('short story').replace('storys', 'stories')} of one paragraph each on this topic: "
                f"{self.topic}. The main character feels {self.emotions[0]}. Never use that word, a form of it or a word that "
                "means the same: let it show in what the character does, says, thinks and feels in the body, and in what "
                "happens. Vary names, places, who tells it and how it begins. " + apart
            )
        if self.kind == NEUTRAL:
            return (
                f"Please write {count.format('dialogue')} of two to six exchanges between a person and an AI assistant, on "
                f"this topic: {self.topic}. Begin the lines with “{ASKING[0]}:” and “{ASKING[1]}:”. Keep to facts, tasks and "
                "instructions: no feeling of anybody's, no thanks, no praise, no apologies, no small talk. "
                + apart
            )
        if self.kind == DIALOGUES:
            return (
                f"Please write {count.format('dialogue')} of six to ten lines between two people on this topic: {self.topic}. "
                f"Begin the lines with “{PERSONS[0]}:” and “{PERSONS[1]}:”. {PERSONS[0]} feels {self.emotions[0]} all along, "
                f"{PERSONS[1]} feels {self.emotions[1]}, whatever the other feels. Neither names a feeling: it shows in how "
                "they speak. " + apart
            )
        return (
            f"Please write {count.format('dialogue')} of four to eight lines between two people on this topic: "
            f"{self.topic}. First one line that begins with “Scenario:” and tells why {PERSONS[0]} feels "
            f"{self.emotions[0]}. Then the dialogue, its lines beginning with “{PERSONS[0]}:” and “{PERSONS[1]}:”. In it "
            f"{PERSONS[0]} hides that and appears to feel {self.emotions[1]}; no feeling is named in the dialogue. "
            + apart
        )

    def beginning(self) -> str:
        """Return the beginning of a page, for a writer that only continues text."""
        if self.kind == STORIES:
            return f"A short story about {self.topic}, told so that the reader feels how {self.emotions[0]} someone is.\n\n"
        if self.kind == NEUTRAL:
            return f"A conversation about {self.topic}.\n\n{ASKING[0]}:"
        felt = " and ".join(f"{who} is {what}" for who, what in zip(PERSONS, self.emotions, strict=True))
        if self.kind == DIALOGUES:
            return f"A conversation about {self.topic}. {felt}.\n\n{PERSONS[0]}:"
        felt = f"{PERSONS[0]} feels {self.emotions[0]} and shows {self.emotions[1]}"
        return f"A conversation about {self.topic}. {felt}.\n\nScenario:"

    def opening(self) -> str:
        """Return the end of `beginning` that belongs to the text itself."""
        return self.beginning().rpartition("\n\n")[2]


@cache
def topics() -> tuple[str, ...]:
    """Return the package's topics for stories and dialogues."""
    return tuple(json.loads(Path(__file__).with_name("topics.json").read_text(encoding="utf-8")))


def requests(
    kind: str, emotions: tuple[str, ...], about: tuple[str, ...], per_topic: int, per_request: int
) -> list[Request]:
    """List all requests for `per_topic` texts of each topic and each emotion (pair of different emotions), in a fixed order.

    Raises `InputError` for an unknown kind, numbers below 1, and fewer emotions than the kind needs.
    """
    if kind not in KINDS:
        raise InputError(f'kind="{kind}" is not understood: give one of {", ".join(KINDS)}')
    if per_topic < 1 or per_request < 1:
        raise InputError(f"per_topic={per_topic}, per_request={per_request}: give numbers from 1 on")
    needed = {STORIES: 1, NEUTRAL: 0, DIALOGUES: 2, DEFLECTION: 2}[kind]
    if len(emotions) < needed or len(set(emotions)) < len(emotions):
        many = "emotion" if needed == 1 else "different emotions"
        raise InputError(
            f"{kind} need at least {needed} {many}, and given were {', '.join(emotions) or 'none'}: give emotions=afraid,calm"
        )
    if not about:
        raise InputError("no topic was given")
    combined: list[tuple[str, ...]] = [()]
    if kind == STORIES:
        combined = [(emotion,) for emotion in emotions]
    elif kind != NEUTRAL:
        combined = [(one, other) for one in emotions for other in emotions if one != other]
    return [
        Request(kind, topic, felt, number, min(per_request, per_topic - number * per_request))
        for topic in about
        for felt in combined
        for number in range(-(-per_topic // per_request))
    ]
