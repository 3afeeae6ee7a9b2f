"""What the experiments give a model to read: texts written for this package, and which probe stands for which emotion.

Each experiment has a JSON file of its own name beside it. Its texts never name the emotion that they are about, nor a word
for it, except where naming it is the experiment (negation, binding). Emotions are adjectives, as in the paper's list; probes
are called what the corpus they were fitted to calls them, so `CONCEPTS` says which names mean the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from emoprobe.errors import InputError
from emoprobe.probes import ProbeSet

CONCEPTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "happy": ("happy", "happiness", "joy", "joyful"),
        "loving": ("loving", "love", "affection"),
        "proud": ("proud", "pride"),
        "calm": ("calm", "calmness", "peaceful", "serene", "relaxed", "contentment", "content"),
        "relieved": ("relieved", "relief"),
        "grateful": ("grateful", "gratitude", "thankful"),
        "inspired": ("inspired", "inspiration"),
        "surprised": ("surprised", "surprise", "astonished", "amazed"),
        "afraid": ("afraid", "fear", "scared", "frightened", "terrified"),
        "nervous": ("nervous", "nervousness", "anxious", "anxiety", "worried"),
        "sad": ("sad", "sadness", "unhappy", "sorrow"),
        "desperate": ("desperate", "desperation", "despair"),
        "angry": ("angry", "anger", "furious", "rage"),
        "guilty": ("guilty", "guilt", "remorse", "remorseful"),
        "ashamed": ("ashamed", "shame", "embarrassed", "embarrassment"),
        "disgusted": ("disgusted", "disgust"),
        "bored": ("bored", "boredom"),
    }
)
"""Emotion -> names that mean it, the nearest first."""


@cache
def load(name: str) -> Any:
    """Return the texts of an experiment, as its JSON file has them."""
    return json.loads(Path(__file__).with_name(f"{name}.json").read_text(encoding="utf-8"))


def matched(probes: ProbeSet, emotions: Iterable[str], least: int = 3) -> tuple[dict[str, str], list[str]]:
    """Return which concept of the probes stands for each emotion, and the emotions for which there is none.

    No concept stands for two. Raises `InputError` where fewer than `least` emotions have one.
    """
    wanted = list(dict.fromkeys(emotions))
    there = {name.casefold(): name for name in probes.concepts}
    names = {emotion: CONCEPTS.get(emotion, (emotion,)) for emotion in wanted}
    found: dict[str, str] = {}
    for rank in range(max(map(len, names.values()), default=0)):
        for emotion in wanted:
            name = names[emotion][rank] if rank < len(names[emotion]) else ""
            if emotion not in found and name in there and there[name] not in found.values():
                found[emotion] = there[name]
    if len(found) < least:
        raise InputError(
            f"these probes know {len(found)} of the emotions that this needs {least} of ({', '.join(wanted)}): they have "
            f"{', '.join(probes.concepts)}; fit probes to a corpus with more of them"
        )
    kept = {emotion: found[emotion] for emotion in wanted if emotion in found}
    return kept, [emotion for emotion in wanted if emotion not in found]


def without(left_out: Iterable[str]) -> str:
    """Say which emotions no probe stood for, or nothing."""
    names = list(left_out)
    return f" Without a probe, and left out: {', '.join(names)}." if names else ""
