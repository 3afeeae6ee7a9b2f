"""A study small enough to run in seconds: a random model and a corpus of happy and sad days, in ten groups."""

import random

import torch
from tiny import tiny_model

from emoprobe.corpora import Corpus
from emoprobe.models import LiveModel

GLAD = ("the sun came up", "the music was good", "the children were laughing", "she came home at last")
SAD = ("the dog had run away", "it was dark and cold", "the letter never came", "they had lost the house")


def small_model(name: str = "small") -> LiveModel:
    """Return a random Llama of three blocks, single precision."""
    model = tiny_model("llama", dtype=torch.float32)
    model.name = name
    return model


def small_corpus(labels: bool = False, texts: int = 60) -> Corpus:
    """Return texts of four clauses; valence is the share of glad ones, arousal is noise; or labels in their place."""
    draw = random.Random(0)
    rows = []
    for number in range(texts):
        glad = draw.randint(0, 4)
        clauses = [draw.choice(GLAD) for _ in range(glad)] + [draw.choice(SAD) for _ in range(4 - glad)]
        draw.shuffle(clauses)
        rows.append(
            (f"Day {number}: {', and '.join(clauses)}.", glad / 2 - 1, draw.random(), f"week {number % 10}")
        )
    words, valence, arousal, groups = map(list, zip(*rows, strict=True))
    if labels:
        named = [["glad"] if value > 0 else ["<b>sad</b>"] if value < 0 else ["$mixed$"] for value in valence]
        return Corpus.from_columns({"text": words, "labels": named, "group": groups}, name="days")
    return Corpus.from_columns(
        {"text": words, "valence": valence, "arousal": arousal, "group": groups},
        name="days",
        dimensions={"valence": (-1.0, 1.0), "arousal": (0.0, 1.0)},
    )
