"""Does it help the next token if emotion embeddings hear the residual stream? Learned streams, coupled and not, side by side.

    python benchmarks/stream.py [--model bundled] [--corpus passages] [--steps 200] [--seeds 3] [--device cpu]

From the same start (random valuations of m = 3 dimensions in all blocks, spread to a standard deviation of 0.6, λ = 0.1, a
table of e₀ of width 8) three things are learned on the next token of most groups of the corpus: a valuation, whose e stays what
the table says; a stream whose e is changed by e alone; and one whose e hears the residual stream. What each does to the NLL of
the groups kept back is given in nats per token, averaged over seeds, with 95 % intervals over whole groups; so are the
differences between them, which is what the question is about. The numbers of parameters are given too: they are not equal.
Prints a table and writes it to benchmarks/stream.md.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import GroupShuffleSplit

import emoprobe as ep
from emoprobe.artefacts import write_bytes
from emoprobe.corpora import Corpus
from emoprobe.models import LiveModel
from emoprobe.scoring import text_nll
from emoprobe.valattn import EmotionStream, Valuation, calibrated_to_deviation
from emoprobe.valattn.compare_behaviour import per_token

HERE = Path(__file__).resolve().parent
DIMENSIONS, WIDTH, HIDDEN, STRENGTH = 3, 8, 32, 0.1


def starts(model: LiveModel, texts: list[str], seed: int) -> dict[str, Valuation | EmotionStream]:
    """Return what learning starts from under each condition: all do the same to the model at first."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(model.n_layers, DIMENSIONS, model.d_model, generator=draw)
    centre = model.capture(texts[:64], range(model.n_layers)).mean(0)
    bias = -torch.einsum("lmd,ld->lm", weight, centre)
    names = tuple(f"dimension {number}" for number in range(1, DIMENSIONS + 1))
    random = Valuation(
        weight,
        bias,
        names,
        tuple(range(model.n_layers)),
        strength=torch.tensor(STRENGTH),
        centre=centre,
        basis=model.basis,
    )
    plain = calibrated_to_deviation(model, random, texts[:64])
    coupled = EmotionStream.start(plain, model.d_model, width=WIDTH, hidden=HIDDEN, seed=seed)
    return {"e fixed": plain, "e hears e": coupled.uncoupled(), "e hears e and x": coupled}


def learned(model: LiveModel, train: Corpus, steps: int, seed: int) -> dict[str, Valuation | EmotionStream]:
    """Return what has been learned under each condition."""
    settings = {
        "objective": "next_token",
        "embedding_width": WIDTH,
        "steps": steps,
        "held_out": 0.1,
        "seed": seed,
    }
    begun = starts(model, train.texts, seed)
    return {name: ep.learn_valuation(model, train, init=start, **settings) for name, start in begun.items()}  # type: ignore[arg-type]


def parameters(source: Valuation | EmotionStream) -> int:
    """Return how many numbers were learned."""
    return sum(tensor.numel() for name, tensor in source.tensors.items() if name != "centre")


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--model", default="bundled")
    options.add_argument("--corpus", default="passages")
    options.add_argument("--steps", type=int, default=200)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--device", default="cpu")
    given = options.parse_args()
    model, corpus = ep.load_model(given.model, device=given.device), ep.load_corpus(given.corpus)
    split = GroupShuffleSplit(1, test_size=0.3, random_state=0)
    train, test = (
        corpus.select(indices=rows) for rows in next(split.split(corpus.texts, groups=corpus.groups))
    )
    untouched, count = (part.numpy() for part in text_nll(model, test.texts))
    totals: dict[str, list[np.ndarray]] = {}
    sizes: dict[str, int] = {}
    for seed in range(given.seeds):
        for name, source in learned(model, train, given.steps, seed).items():
            with ep.inject(model, source):
                totals.setdefault(name, []).append(text_nll(model, test.texts)[0].numpy())
            sizes[name] = parameters(source)
    mean = {name: np.mean(parts, axis=0) for name, parts in totals.items()}
    both = mean["e hears e and x"]
    pairs = {f"{name} − untouched": total - untouched for name, total in mean.items()}
    pairs |= {f"e hears e and x − {name}": both - total for name, total in mean.items() if total is not both}
    rows = [(what, *per_token(change, count, test.groups)) for what, change in pairs.items()]
    table = pd.DataFrame(rows, columns=["NLL, nats per token", "difference", "low", "high"])
    groups = len(np.unique(test.groups))
    note = (
        f"{model.name}, {test.name}: {len(test)} texts of {groups} groups kept back, {given.steps} steps, {given.seeds} seeds, "
        f"{given.device}. Learned numbers: {', '.join(f'{name} {size:,}' for name, size in sizes.items())}.\n"
    )
    text = (
        f"# Emotion streams, coupled and not\n\n{note}\n```\n{table.round(4).to_string(index=False)}\n```\n"
    )
    print(text)
    write_bytes(HERE / "stream.md", text.encode())


if __name__ == "__main__":
    main()
