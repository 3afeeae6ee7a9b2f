"""Short stories whose emotion is known because it was drawn before a word was written.

Every text comes from latents: an emotion, its intensity, a world (kitchen, harbour, …), a form and an experiencer. The
emotion shows in events, bodies and acts and is never named. Every world has its own sentences, so that a classifier of
words that learned in some worlds knows little in the others. Not nothing: sentences for one emotion are built alike, and
their function words ("was", "and" and "had" for shame, "for" for love) name the emotion of an unseen world about one time
in five, chance being one in thirteen; what other words worlds share, and names and degrees, tell nothing. So does a bag of
words in part, and stands beside every probe. Only the aftermath, the sentence that may follow, is worded by emotion alone,
the same in every world; whoever predicts it must have inferred the emotion. And only the mood, a sentence that may follow
too, is worded by valence and arousal alone: whoever predicts its words must have inferred how good and how lively things
are to the person, whatever the emotion. The sentences are in `worlds.json`. This file knows nothing of models or probes.
"""

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from emoprobe.errors import InputError


@dataclass(frozen=True)
class Emotion:
    """Place one emotion in the space of the three dimensions, at full intensity.

    `valence` lies in [-1, 1], `arousal` and `relevance` (how much it matters to the person) in [0, 1].
    """

    valence: float
    arousal: float
    relevance: float


@dataclass(frozen=True)
class GeneratedText:
    """Hold one text with all that it was made from.

    Attributes:
        text: the context, two to four sentences, without the aftermath.
        emotion: a key of `EMOTIONS`: what `experiencer` feels.
        intensity: one of 0.2, 0.4, 0.6, 0.8, 1.0; the text shows it in a degree phrase, the aftermath in a duration.
        valence, arousal, relevance: as `felt` places the emotion at that intensity.
        world: a member of `WORLDS`; to be used as the group in cross-validation.
        form: "first", "third" or "pair" (two people, two emotions).
        speaker: "I" where a character tells the story, else "narrator".
        experiencer: "I" or a name.
        other, other_emotion, other_intensity: the second person of a pair, else None.
        spans: (start, end) in characters of the sentences about `experiencer`, in order.
        aftermath: one or two sentences about `experiencer` that go on from `text` after a space.
    """

    text: str
    emotion: str
    intensity: float
    valence: float
    arousal: float
    relevance: float
    world: str
    form: str
    speaker: str
    experiencer: str
    other: str | None
    other_emotion: str | None
    other_intensity: float | None
    spans: tuple[tuple[int, int], ...]
    aftermath: str


EMOTIONS: Mapping[str, Emotion] = MappingProxyType(
    {
        "joy": Emotion(0.95, 0.80, 0.70),
        "contentment": Emotion(0.70, 0.10, 0.35),
        "pride": Emotion(0.75, 0.60, 0.85),
        "love": Emotion(0.90, 0.40, 0.95),
        "relief": Emotion(0.55, 0.30, 0.80),
        "surprise": Emotion(0.15, 0.90, 0.40),
        "boredom": Emotion(-0.40, 0.05, 0.15),
        "sadness": Emotion(-0.80, 0.25, 0.85),
        "shame": Emotion(-0.65, 0.45, 0.80),
        "disgust": Emotion(-0.60, 0.60, 0.45),
        "anger": Emotion(-0.75, 0.90, 0.85),
        "fear": Emotion(-0.85, 0.95, 0.95),
        "neutral": Emotion(0.00, 0.30, 0.10),
    }
)
FORMS = ("first", "third", "pair")

_BANKS: dict[str, Any] = json.loads(Path(__file__).with_name("worlds.json").read_text(encoding="utf-8"))
WORLDS: tuple[str, ...] = tuple(_BANKS["worlds"])
SCALES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {phrase: tuple(words) for scales in _BANKS["moods"].values() for phrase, words in scales.items()}
)
"""The words of moods by the phrase that they follow, each from the least to the most of its dimension."""
_LEVELS = len(_BANKS["degrees"])
_RANGES = {"valence": (-1.0, 1.0), "arousal": (0.0, 1.0)}
_SPREAD = 0.15  # of the words of a mood about the person's own place, as a share of the scale
_PRONOUN = {name: pronoun for pronoun, names in _BANKS["names"].items() for name in names}
_NAMES = sorted(_PRONOUN)
_CASES = {  # pronoun: possessive, object, reflexive
    "I": ("my", "me", "myself"),
    "she": ("her", "her", "herself"),
    "he": ("his", "him", "himself"),
}
_WEIGHTS = {"first": 3, "third": 3, "pair": 2}  # a quarter are pairs
_EVENT, _SIGN = "events", "sign"
_PLANS = ((_EVENT, _SIGN), (_EVENT, _EVENT, _SIGN), (_EVENT, _SIGN, _SIGN), (_EVENT, _EVENT, _SIGN, _SIGN))


def generate(
    n: int,
    seed: int = 0,
    *,
    forms: Sequence[str] = FORMS,
    emotions: Sequence[str] | None = None,
    worlds: Sequence[str] | None = None,
) -> list[GeneratedText]:
    """Generate `n` texts, as even over emotion × world as `n` allows, the same for the same arguments.

    `forms`, `emotions` and `worlds` narrow the choice (default: all); the second emotion of a pair is drawn from
    `emotions` too, where it has at least two. With all forms a quarter of the texts are pairs.

    Raises:
        InputError: if `n` is negative or a name is not among `FORMS`, `EMOTIONS`, `WORLDS`.
    """
    if n < 0:
        raise InputError(f"generate: n must not be negative, got {n}")
    forms = _chosen("form", forms, FORMS)
    emotions = _chosen("emotion", emotions, tuple(EMOTIONS))
    cells = [(e, w) for e in emotions for w in _chosen("world", worlds, WORLDS)]
    others = emotions if len(emotions) > 1 else list(EMOTIONS)
    rng = random.Random(seed)
    weights = [_WEIGHTS[form] for form in forms]
    return [_text(rng, rng.choices(forms, weights)[0], *cell, others) for cell in _rounds(rng, cells, n)]


def aftermaths(emotion: str, experiencer: str = "I", *, intensity: float = 0.6) -> tuple[str, ...]:
    """Return every one-sentence aftermath of an emotion, about `experiencer`, to be put after a text and a space.

    They are the generic continuations whose log-probability tells what a model thinks the person feels. Their duration
    phrase goes with `intensity` in (0, 1]. `experiencer` is "I" or one of the generator's names, as in
    `GeneratedText.experiencer`.

    Raises:
        InputError: if the emotion or the name is not one of the generator's, or the intensity is out of range.
    """
    _chosen("emotion", [emotion], tuple(EMOTIONS))
    _chosen("experiencer", [experiencer], ("I", *_NAMES))
    if not 0 < intensity <= 1:
        raise InputError(f"aftermaths: intensity must be in (0, 1], got {intensity}")
    level = min(_LEVELS - 1, max(0, round(intensity * _LEVELS) - 1))
    opener, duration = _BANKS["afterwards"][0], _BANKS["durations"][level][0]
    bank = _BANKS["aftermaths"][emotion]
    return tuple(_sentence(f"{opener} {{s}} {clause} {duration}", experiencer) for clause in bank)


def felt(emotion: str, intensity: float) -> Emotion:
    """Place an emotion of some intensity: its values times w plus neutral's times 1 - w, w = (1 + intensity) / 2."""
    weight, full, rest = (1 + intensity) / 2, EMOTIONS[emotion], EMOTIONS["neutral"]
    return Emotion(
        valence=weight * full.valence + (1 - weight) * rest.valence,
        arousal=weight * full.arousal + (1 - weight) * rest.arousal,
        relevance=weight * full.relevance + (1 - weight) * rest.relevance,
    )


def mood(feeling: Emotion, experiencer: str, rng: random.Random) -> str:
    """Draw a sentence that says how good and how lively things are to `experiencer`, by valence and arousal alone.

    It has one word of each of `SCALES`, drawn on its own. The words of a scale stand at even distances over the range of
    its dimension, and are the likelier the nearer they are to `feeling`, as a normal density is whose standard deviation
    is 0.15 of the range. So the log-odds of any two words are linear in the dimension.
    """
    phrases = []
    for dimension, scales in _BANKS["moods"].items():
        low, high = _RANGES[dimension]
        place = (getattr(feeling, dimension) - low) / (high - low)
        for phrase, words in scales.items():
            levels = [i / (len(words) - 1) for i in range(len(words))]
            weights = [math.exp(-(((level - place) / _SPREAD) ** 2) / 2) for level in levels]
            phrases.append(f"{phrase} {rng.choices(words, weights)[0]}")
    return _sentence("{s} " + ", ".join(phrases[:-1]) + " and " + phrases[-1], experiencer)


def _chosen(kind: str, names: Sequence[str] | None, known: tuple[str, ...]) -> list[str]:
    if names is None:
        return list(known)
    for name in names:
        if name not in known:
            raise InputError(f"unknown {kind} {name!r}: choose from {', '.join(known)}")
    if not names:
        raise InputError(f"no {kind} was given: choose at least one of {', '.join(known)}")
    return list(names)


def _rounds(rng: random.Random, cells: list[tuple[str, str]], n: int) -> Iterator[tuple[str, str]]:
    for start in range(0, n, len(cells)):
        rng.shuffle(cells)
        yield from cells[: n - start]


def _text(rng: random.Random, form: str, emotion: str, world: str, others: Sequence[str]) -> GeneratedText:
    level = rng.randrange(_LEVELS)
    experiencer = "I" if form == "first" else rng.choice(_NAMES)
    other = other_emotion = other_level = None
    if form == "pair":
        people = rng.sample(["I", *_NAMES], 2) if rng.random() < 1 / 3 else rng.sample(_NAMES, 2)
        experiencer, other = people
        other_emotion = rng.choice([e for e in others if e != emotion])
        other_level = rng.randrange(_LEVELS)
        mine = _about(rng, world, emotion, level, experiencer, (_EVENT, _SIGN))
        theirs = _about(rng, world, other_emotion, other_level, other, (_EVENT, _SIGN))
        sentences = _woven(rng, mine, theirs)
    else:
        sentences = [
            (s, True) for s in _about(rng, world, emotion, level, experiencer, rng.choice(_PLANS), True)
        ]
    text, spans = _joined(sentences)
    intensity = (level + 1) / _LEVELS
    feeling = felt(emotion, intensity)
    return GeneratedText(
        text=text,
        emotion=emotion,
        intensity=intensity,
        valence=feeling.valence,
        arousal=feeling.arousal,
        relevance=feeling.relevance,
        world=world,
        form=form,
        speaker="I" if "I" in (experiencer, other) else "narrator",
        experiencer=experiencer,
        other=other,
        other_emotion=other_emotion,
        other_intensity=None if other_level is None else (other_level + 1) / _LEVELS,
        spans=spans,
        aftermath=_aftermath(rng, emotion, level, experiencer, alone=form != "pair"),
    )


def _about(
    rng: random.Random,
    world: str,
    emotion: str,
    level: int,
    who: str,
    plan: Sequence[str],
    alone: bool = False,
) -> list[str]:
    """Write the sentences about one person; the first body or act carries the degree."""
    bank = _BANKS["worlds"][world][emotion]
    events = rng.sample(bank["events"], plan.count(_EVENT))
    signs = [rng.choice(bank[kind]) for kind in rng.sample(["body", "acts"], plan.count(_SIGN))]
    signs[0] += ", " + rng.choice(_BANKS["degrees"][level])
    if rng.random() < 0.4:
        events[0] = f"{rng.choice(_BANKS['openers'])} {events[0]}"
    return [
        _sentence(template, who, pronoun=alone and i > 0 and rng.random() < 0.6)
        for i, template in enumerate(events + signs)
    ]


def _woven(rng: random.Random, mine: list[str], theirs: list[str]) -> list[tuple[str, bool]]:
    """Put two people's sentences in one order, each with whether it is about the experiencer."""
    first, second = [(s, True) for s in mine], [(s, False) for s in theirs]
    if rng.random() < 0.5:
        first, second = second, first
    if rng.random() < 0.5:
        return first + second
    signs = [first[1], second[1]]
    rng.shuffle(signs)
    return [first[0], second[0], *signs]


def _joined(sentences: Sequence[tuple[str, bool]]) -> tuple[str, tuple[tuple[int, int], ...]]:
    spans, start = [], 0
    for sentence, about in sentences:
        if about:
            spans.append((start, start + len(sentence)))
        start += len(sentence) + 1
    return " ".join(sentence for sentence, _ in sentences), tuple(spans)


def _aftermath(rng: random.Random, emotion: str, level: int, who: str, alone: bool) -> str:
    clauses = rng.sample(_BANKS["aftermaths"][emotion], 2 if rng.random() < 0.3 else 1)
    openers = rng.sample(_BANKS["afterwards"], len(clauses))
    durations = rng.sample(_BANKS["durations"][level], len(clauses))
    return " ".join(
        _sentence(f"{opener} {{s}} {clause} {duration}", who, pronoun=alone and rng.random() < 0.5)
        for opener, clause, duration in zip(openers, clauses, durations, strict=True)
    )


def _sentence(template: str, who: str, pronoun: bool = False) -> str:
    """Fill a template: {s} subject, {n} its possessive, and {u} {p} {o} {r} the pronouns that refer back to it."""
    subject = "I" if who == "I" else _PRONOUN[who]
    possessive, object_, reflexive = _CASES[subject]
    named = who != "I" and not pronoun
    filled = template.format(
        s=who if named else subject,
        n=f"{who}'s" if named else possessive,
        u=subject,
        p=possessive,
        o=object_,
        r=reflexive,
    )
    return filled[0].upper() + filled[1:] + "."
