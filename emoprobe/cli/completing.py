"""What a shell completes besides commands and options: models, corpora, concepts, and what some options choose from.

Where nothing here begins as what was typed, the shell completes the names of files. The names of concepts stand here once more,
and a test holds them to those of the package, because reading them there would load torch and pandas at every stroke of the
tab key.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import typer

from emoprobe.places import CORPORA, MODELS
from emoprobe.records import recorded_names

DIMENSIONS = ("valence", "arousal", "relevance")
EMOTIONS = tuple(
    "anger boredom contentment disgust fear joy love neutral pride relief sadness shame surprise".split()
)
"""Dimensions and labels of the passages."""

Complete = Callable[[str], list[str]]


def among(*values: str) -> Complete:
    """Return what completes one of these values."""

    def complete(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return complete


def listed(*values: str) -> Complete:
    """Return what completes the last of a list of these values, a,b,c."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        given = before.split(",")
        return [before + comma + value for value in among(*values)(last) if value not in given]

    return complete


def models(incomplete: str) -> list[str]:
    """Complete the name of a model of the package, or of one that was downloaded before."""
    from huggingface_hub.constants import HF_HUB_CACHE

    kept = [folder.name.removeprefix("models--") for folder in Path(HF_HUB_CACHE).glob("models--*")]
    return among(*MODELS, *sorted(name.replace("--", "/") for name in kept))(incomplete)


corpora = among("bundled", *(name.replace("ground_truth", "ground-truth") for name in CORPORA))


def concept(context: typer.Context, incomplete: str) -> list[str]:
    """Complete a concept of the probe set that was typed before."""
    return among(*_probed(context))(incomplete)


def concepts(context: typer.Context, incomplete: str) -> list[str]:
    """Complete a list of concepts of the probe set that was typed before."""
    return listed(*_probed(context))(incomplete)


def emotions(incomplete: str) -> list[str]:
    """Complete a list of the package's emotion words."""
    file = Path(__file__).parents[1] / "corpora" / "emotion_words.json"
    clusters = json.loads(file.read_text("utf-8"))["clusters"].values()
    return listed(*sorted(word for words in clusters for word in words))(incomplete)


def _probed(context: typer.Context) -> tuple[str, ...]:
    """Return the concepts of a probe set or valuation, from the head of its file alone, or else those of the passages."""
    # Arguments are not yet told apart while the value of an option is missing; PROBES is the second of each command.
    path = context.params.get("probes") or "".join(context.args[1:2])
    known = recorded_names(path, "concepts") or recorded_names(path, "dimensions")
    return tuple(known) or (*DIMENSIONS, *EMOTIONS)
