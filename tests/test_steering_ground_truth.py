"""Steering where the answer is known: the ground-truth model goes on as the emotion it was steered with would."""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from emoprobe.corpora.generator import EMOTIONS, WORLDS, aftermaths, generate
from emoprobe.models import LiveModel, load_model
from emoprobe.steering import project_out, specificity

STEERED = ("joy", "sadness", "anger", "fear", "boredom", "love")
LAYER = 4  # two thirds of the depth


@cache
def model() -> LiveModel:
    return load_model("ground-truth")


@cache
def streams(worlds: tuple[str, ...]) -> tuple[Tensor, np.ndarray]:
    """Return pooled streams (texts, layers, d_model) of generated texts of these worlds, and their emotions."""
    made = generate(13 * 12, seed=3, forms=("first",), worlds=worlds)
    return model().capture([text.text for text in made]).double(), np.array([text.emotion for text in made])


def directions(emotion: str) -> Tensor:
    """Mean of an emotion's texts less that of all: (layers, d_model)."""
    found, emotions = streams(WORLDS[:6])
    return (found[torch.from_numpy(emotions == emotion)].mean(0) - found.mean(0)).float()


def neutral(count: int) -> list[str]:
    made = generate(4 * count, seed=5, forms=("first",), emotions=("neutral",), worlds=WORLDS[6:])
    return sorted((text.text for text in made), key=len)[:count]


def test_what_an_emotion_leads_to_rises_with_its_direction_and_with_no_other() -> None:
    given = {name: directions(name) for name in STEERED}
    said = {name: [f" {aftermaths(name)[0]}"] for name in STEERED}
    options = {"layers": LAYER, "controls": 10, "progress": False}
    weak, strong = (specificity(model(), given, said, neutral(4), s, **options) for s in (0.1, 0.2))
    table, before = strong.table.set_index("concept"), np.diag(weak.matrix)
    assert (before > 0).all() and (table.own.to_numpy() > before).all()
    assert (table.low > 0).all() and (table.own > table.random_next_high).all()
    assert strong.index["index"] > 0.5 and strong.index["p"] < 0.05
    assert strong.index["low"] > strong.index["chance_high"]
    assert set(EMOTIONS) > set(STEERED)


def test_a_concept_that_is_projected_out_is_read_no_more() -> None:
    emotion, below = "sadness", list(range(model().n_layers))
    made = generate(6, seed=9, forms=("first",), emotions=(emotion,), worlds=WORLDS[6:])
    texts, vectors = [text.text for text in made], directions(emotion)
    found, emotions = streams(WORLDS[:6])
    along = found[:, -1].float() @ vectors[-1]
    feeling, calm = (float(along[torch.from_numpy(emotions == name)].mean()) for name in (emotion, "neutral"))

    def share() -> float:
        """How far the texts are read from neutral ones (0) to those of the emotion (1)."""
        read = model().capture(texts, [model().n_layers])[:, 0] @ vectors[-1]
        return (float(read.mean()) - calm) / (feeling - calm)

    untouched = share()
    with model().intervene(*project_out(model(), vectors, below)):
        erased = share()
    turned = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0))
    with model().intervene(*project_out(model(), turned, below)):
        beside = share()
    assert untouched > 0.6 and beside > 0.6 * untouched
    assert erased < 0.4 * untouched
