"""A small corpus for a small model, and the probes fitted on it: what several tests of probes start from."""

from functools import cache
from typing import Any

import numpy as np
from tiny import tiny_model

from emoprobe.corpora import Corpus
from emoprobe.models import LiveModel
from emoprobe.probes import ProbeSet, fit_probes

WORDS = "sun dog letter dark calm glad angry sad music children laughing afraid the was not so we they came up".split()
PLANTED_LAYER = 2


def texts(count: int = 240, seed: int = 0) -> list[str]:
    """Return texts of four to twelve words drawn at random."""
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, generator.integers(4, 13))) for _ in range(count)]


@cache
def model() -> LiveModel:
    """Return the tiny model that the probes are fitted on."""
    return tiny_model("gpt2")


@cache
def planted() -> tuple[Corpus, np.ndarray[Any, Any]]:
    """Return a corpus whose dimension "planted" is read off the model at PLANTED_LAYER along a direction, and the direction.

    Label and dimension "noise" have nothing to do with the texts; "halves" is annotated for one text in two.
    """
    generator = np.random.default_rng(1)
    written = texts()
    features = model().capture(written, [PLANTED_LAYER])[:, 0].double().numpy()
    direction = generator.normal(size=features.shape[1])
    direction /= np.linalg.norm(direction)
    along = features @ direction
    along = (along - along.mean()) / np.abs(along - along.mean()).max()
    value = 0.95 * along + 0.02 * generator.uniform(-1, 1, len(along))
    labels = [["high"] if v > 0.15 else ["low"] if v < -0.15 else ["middle"] for v in value]
    columns: dict[str, Any] = {
        "text": written,
        "labels": labels,
        "planted": value,
        "noise": generator.uniform(0, 1, len(value)),
        "halves": np.where(np.arange(len(value)) % 2, value, np.nan),
        "group": [f"group {row // 6}" for row in range(len(value))],
    }
    ranges = {"planted": (-1.0, 1.0), "noise": (0.0, 1.0), "halves": (-1.0, 1.0)}
    return Corpus.from_columns(columns, name="planted", dimensions=ranges), direction


@cache
def probes() -> ProbeSet:
    """Return probes of `model()` on `planted()` at all layers."""
    return fit_probes(model(), planted()[0], permutations=8, bootstrap=100, progress=False)
