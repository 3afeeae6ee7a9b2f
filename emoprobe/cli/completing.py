"""What a shell completes besides commands and options: models, corpora, and what some options choose from.

Where nothing here begins as what was typed, the shell completes the names of files. The names stand here once more, and a
test holds them to those of the package, because reading them there would load torch and pandas at every stroke of the tab key.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

MODELS = ("bundled", "ground-truth")
CORPORA = ("bundled", "ground-truth", "emobank", "goemotions", "carer", "isear", "crowd_envent")

Complete = Callable[[str], list[str]]


def among(*values: str) -> Complete:
    """Return what completes one of these values."""

    def complete(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return complete


def models(incomplete: str) -> list[str]:
    """Complete the name of a model of the package, or of one that was downloaded before."""
    from huggingface_hub.constants import HF_HUB_CACHE

    kept = [folder.name.removeprefix("models--") for folder in Path(HF_HUB_CACHE).glob("models--*")]
    return among(*MODELS, *sorted(name.replace("--", "/") for name in kept))(incomplete)


corpora = among(*CORPORA)
