"""What is given to all contestants alike: models as folders that every library reads, texts, vectors, valuations."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import emoprobe as ep
from emoprobe.models import LiveModel
from emoprobe.probes.tasks import plan

SHARED = Path(os.environ.get("EMOPROBE_SHARED", Path(__file__).resolve().parents[3] / "shared"))
PROMPTS = [
    "That evening the rope ran out",
    "She was",
    "I am so happy that you came to see me, and",
    "The letter",
]
PLEASANT, UNPLEASANT = ("joy", "contentment"), ("fear", "sadness")


def folder_of(name: str, place: Path) -> Path | None:
    """Return a folder of a model in float32 and its tokenizer, written below `place`; None where the model is not at hand.

    `name` is that of a bundled model, "gpt2-small" (random weights of its size), or a folder of `EMOPROBE_SHARED`.
    """
    folder = place / name
    if folder.exists():
        return folder
    if name == "gpt2-small":
        tokenizer = ep.load_model("bundled").tokenizer
        torch.manual_seed(0)
        model: Any = GPT2LMHeadModel(
            GPT2Config(bos_token_id=0, eos_token_id=1, vocab_size=len(tokenizer))  # 12 blocks, width 768
        )
    else:
        found = SHARED / "models" / name
        if name not in ("bundled", "ground-truth") and not found.exists():
            return None
        live = ep.load_model(str(found) if found.exists() else name)
        model, tokenizer = live.underlying.float(), live.tokenizer
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    # transformers 4 does not know the name that transformers 5 writes for the same class.
    config = json.loads(path.read_text()) | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "padding_side": "left",
    }
    path.write_text(json.dumps(config))
    return folder


def sentences(count: int, different: int | None = None) -> list[str]:
    """Return so many sentences of the bundled passages, in the passages' order; of the shortest `different` ones only.

    Where there are fewer they come over again.
    """
    passages = ep.load_corpus("passages").texts
    found = [part.strip() for text in passages for part in text.split(". ") if len(part) > 20]
    longest = sorted(map(len, found))[different - 1] if different else max(map(len, found))
    found = [text for text in found if len(text) <= longest][:different]
    return (found * -(-count // len(found)))[:count]


def steering(folder: Path, tokens: int) -> dict[str, Any]:
    """Return a random vector of three tenths of the stream's norm behind the middle block, and prompts of several lengths."""
    model = ep.load_model(str(folder))
    block = model.n_layers // 2
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    length = 0.3 * model.residual_norms()[block + 1]
    return {"prompts": PROMPTS, "vector": vector / vector.norm() * length, "block": block, "tokens": tokens}


def valued(folder: Path, tokens: int) -> dict[str, Any]:
    """Return a random valuation in three dimensions, whose values are of ordinary size, and a text.

    The text is a prompt where `tokens` are to be written behind it, and else as long as the model reads, less eight tokens.
    """
    model = ep.load_model(str(folder))
    weight = torch.randn(model.n_layers, 3, model.d_model, generator=torch.Generator().manual_seed(0))
    weight /= spread(model, weight)[..., None]
    text = PROMPTS[0]
    if not tokens:
        limit = (model.context_length or 1024) - 8
        ids = model.tokenizer(" ".join(sentences(200))).input_ids[:limit]
        text = model.tokenizer.decode(ids, skip_special_tokens=True)
    bias = torch.zeros(model.n_layers, 3)
    return {"text": text, "weight": weight, "bias": bias, "strength": 1.0, "tokens": tokens}


def spread(model: LiveModel, weight: Tensor) -> Tensor:
    """Return the standard deviation of W·x over the tokens of some sentences, (layers, m)."""
    batch = model.tokenize(sentences(8))
    with torch.no_grad():
        streams = model.streams(batch, range(model.n_layers))[:, batch.real]
    return torch.einsum("ltd,lmd->lmt", streams, weight).std(-1)


def pairs() -> dict[str, Sequence[str]]:
    """Return passages of pleasant and unpleasant emotions, paired."""
    corpus = ep.load_corpus("passages")
    by_label: dict[str, list[str]] = {}
    for text, labels in zip(corpus.texts, corpus.data["labels"], strict=True):
        by_label.setdefault(labels[0], []).append(text)
    positive, negative = (
        [text for name in names if name in by_label for text in by_label[name]]
        for names in (PLEASANT, UNPLEASANT)
    )
    count = min(len(positive), len(negative))
    return {"positive": positive[:count], "negative": negative[:count]}


def labelled() -> dict[str, Any]:
    """Return the bundled passages with labels, groups and the folds that emoprobe deals them into."""
    corpus = ep.load_corpus("passages")
    task = next(task for task in plan(corpus, corpus.labels) if task.kind == "label")
    return {
        "texts": corpus.texts,
        "labels": [labels[0] for labels in corpus.data["labels"]],
        "groups": corpus.data["group"][:],
        "fold": np.asarray(task.fold).tolist(),
    }
