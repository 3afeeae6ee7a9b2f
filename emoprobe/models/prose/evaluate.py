"""Measure causal language models on books by authors whom the prose models never read: bits per character, samples.

    python -m emoprobe.models.prose.evaluate FOLDER [FOLDER ...] --data DIR [--ngrams TOKENS] [--split test] [--json FILE]

Bits per character compare models of different tokenizers. Each folder is any transformers checkpoint; the first one is
also measured with untrained weights. `--ngrams` takes the `train.bin` of the training run and adds a 5-gram Kneser–Ney
model over the first folder's tokens. `MODEL_CARD.md` quotes the output.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from emoprobe.errors import InputError
from emoprobe.models.prose.corpus import Document, held_out_documents
from emoprobe.models.prose.ngrams import KneserNey

Array = np.ndarray[Any, np.dtype[Any]]
LONGEST = 512  # tokens of context at most, whatever a model could take
OPENINGS = (
    "She was happy because",
    "He was afraid that",
    "The old house",
    "“You have lied to me,” said",
    "At last",
)


def log_probs(model: Any, ids: Array, context: int, first: int, batch: int = 16) -> Array:
    """Return the log-probability in nats (token,) of each token of a text, `first` being put before every window.

    Windows of `context` tokens overlap by half, so that each token but the first few has half a window before it.
    """
    stride = context // 2
    starts = np.arange(0, max(len(ids) - context, 0) + stride, stride)
    places = starts[:, None] + np.arange(context)
    scored = (places < len(ids)) & ((np.arange(context) >= context - stride) | (starts[:, None] == 0))
    windows = torch.from_numpy(ids.astype(np.int64)[places.clip(max=len(ids) - 1)])
    inputs = torch.cat([torch.full((len(windows), 1), first), windows[:, :-1]], 1)
    found = []
    with torch.inference_mode():
        for rows, targets in zip(torch.split(inputs, batch), torch.split(windows, batch), strict=True):
            logits = model(input_ids=rows.to(model.device)).logits.float()
            nats = cross_entropy(logits.flatten(0, 1), targets.flatten().to(model.device), reduction="none")
            found.append(-nats.view(targets.shape).cpu())
    return np.asarray(torch.cat(found).numpy()[scored])


def bits_per_character(
    log_probs_of: Callable[[str], Array], documents: Iterable[Document]
) -> dict[str, float]:
    """Return the bits per character of each author's documents and, as "all", of every character alike."""
    bits: dict[str, float] = {}
    characters: dict[str, int] = {}
    for author, text in documents:
        cost = -float(log_probs_of(text).sum()) / math.log(2)
        for key in ("all", author):
            bits[key] = bits.get(key, 0.0) + cost
            characters[key] = characters.get(key, 0) + len(text)
    return {key: bits[key] / characters[key] for key in bits}


def of_model(model: Any, tokenizer: Any) -> Callable[[str], Array]:
    """Return the function that gives a text's log-probabilities under a transformers model."""
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if first is None:
        raise InputError(
            f"{tokenizer.name_or_path}: the tokenizer has neither a <bos> nor an <eos> token to begin with"
        )
    context = min(model.config.max_position_embeddings, LONGEST)
    return lambda text: log_probs(model, _ids(tokenizer, text), context, first)


def of_ngrams(ngrams: KneserNey, tokenizer: Any) -> Callable[[str], Array]:
    """Return the function that gives a text's log-probabilities under an n-gram model."""
    return lambda text: ngrams.log_probs(_ids(tokenizer, text))


def _ids(tokenizer: Any, text: str) -> Array:
    return np.array(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def untrained(folder: Path, seed: int = 0) -> Any:
    """Return a model of the folder's shape with initial weights."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(AutoModelForCausalLM.from_pretrained(folder).config).eval()


def samples(
    model: Any, tokenizer: Any, seed: int = 0, length: int = 60, temperature: float = 0.8
) -> list[str]:
    """Return one continuation of each opening, drawn at a temperature below 1."""
    torch.manual_seed(seed)
    drawn = []
    for opening in OPENINGS:
        given = tokenizer(opening, return_tensors="pt", return_token_type_ids=False).to(model.device)
        ids = model.generate(**given, do_sample=True, temperature=temperature, max_new_tokens=length)
        drawn.append(tokenizer.decode(ids[0], skip_special_tokens=True))
    return drawn


def table(results: dict[str, dict[str, float]]) -> str:
    """Return bits per character by author and model as a Markdown table."""
    lines = [f"| author | {' | '.join(results)} |", f"|---|{'---:|' * len(results)}"]
    for author in next(iter(results.values())):
        lines.append(f"| {author} | {' | '.join(f'{bits[author]:.3f}' for bits in results.values())} |")
    return "\n".join(lines)


def main() -> None:
    """Read the command line, measure, print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "folders", type=Path, nargs="+", help="transformers checkpoints, the prose model first"
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with fiction/ and tinystories/")
    parser.add_argument("--ngrams", type=Path, help="train.bin of the training run, to learn 5-grams from")
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--characters", type=int, help="read only so much of each book, from its start")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    given = parser.parse_args()
    books = [
        Document(author, text[: given.characters])
        for author, text in held_out_documents(given.data, given.split)
    ]
    results = {}
    tokenizer = AutoTokenizer.from_pretrained(given.folders[0])
    for folder in given.folders:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().to(given.device)
        of_this = of_model(model, AutoTokenizer.from_pretrained(folder))
        results[folder.resolve().name] = bits_per_character(of_this, books)
    if given.ngrams:
        ngrams = KneserNey(np.memmap(given.ngrams, np.uint16, mode="r"), len(tokenizer))
        results["5-gram Kneser–Ney"] = bits_per_character(of_ngrams(ngrams, tokenizer), books)
    model = untrained(given.folders[0]).to(given.device)
    results["untrained"] = bits_per_character(of_model(model, tokenizer), books)
    print(table(results))
    model = AutoModelForCausalLM.from_pretrained(given.folders[0], dtype=torch.float32).eval()
    for text in samples(model, tokenizer):
        print(f"\n> {text!r}")
    if given.json:
        given.json.write_text(json.dumps({"split": given.split, "bits_per_character": results}, indent=1))


if __name__ == "__main__":
    main()
