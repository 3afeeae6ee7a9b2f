"""Time steering beside what it cannot do without: a part of benchmarks/steering.py.

What is ours and what is bare run in turn, so that both meet the same machine; see benchmarks/speed.py.
"""

from typing import Any

import numpy as np
import torch
from speed import compare, make_model  # type: ignore[import-not-found]  # benchmarks/speed.py

import emoprobe as ep
from emoprobe.controls import turned_at_random
from emoprobe.models import LiveModel
from emoprobe.steering import Sweep, nll

REPEATS = 3
"""Pairs of timed runs, whose median is told."""
TOKENS = 256
STRENGTHS = np.linspace(-0.5, 0.5, 11).tolist()
WORDS, FEW = 8, 4
"""Words of a prompt, and how few prompts leave a pass half empty."""


def speed() -> dict[str, Any]:
    """Time steered generation, a sweep, and a sweep whose runs share passes."""
    torch.set_num_threads(1)
    model = make_model("cpu")
    return {
        "tokens": TOKENS,
        "generation": generating(model),
        "sweep": sweeping(model),
        "shared": sharing(ep.load_model("bundled")),
    }


def generating(model: LiveModel) -> dict[str, Any]:
    """Compare greedy generation steered at one layer with untouched."""
    vector = push(model)
    options = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}

    def steered() -> object:
        with ep.steer(model, vector, 0.1):
            return model.generate("That evening the rope ran out", **options)

    def untouched() -> object:
        return model.generate("That evening the rope ran out", **options)

    return compare({"ours": steered, "bare": untouched}, REPEATS)


def sweeping(model: LiveModel) -> dict[str, Any]:
    """Compare a sweep, NLL and tokenising included, with as many bare passes of the same batch as it has strengths."""
    vector, prompts = push(model), beginnings(32)
    batch = model.tokenize(prompts)
    inputs = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.real.long(),
        "position_ids": batch.position_ids,
    }

    def passes() -> None:
        for _ in STRENGTHS:
            model.underlying(**inputs, use_cache=False)

    return compare({"ours": lambda: swept(model, vector, prompts), "bare": passes}, REPEATS)


def sharing(model: LiveModel) -> dict[str, Any]:
    """Compare a sweep of few prompts whose runs share passes with one run at a time."""
    vector, prompts = push(model), beginnings(FEW)
    pair = {"ours": lambda: swept(model, vector, prompts), "bare": lambda: swept(model, vector, prompts, 1)}
    return compare(pair, REPEATS)


def swept(model: LiveModel, vector: torch.Tensor, prompts: list[str], together: int = 16) -> Sweep:
    measures = [nll(prompts)]
    return ep.sweep(
        model, vector, STRENGTHS, prompts, measures, controls=0, together=together, progress=False
    )


def push(model: LiveModel) -> torch.Tensor:
    """Return a direction, with the norms that it is measured in already known to the model."""
    model.residual_norms()
    return turned_at_random(torch.ones(model.d_model), 0)


def beginnings(count: int) -> list[str]:
    return [" ".join(text.split()[:WORDS]) for text in ep.load_corpus("passages").texts[:count]]


def told_speed(found: dict[str, Any]) -> list[str]:
    """Return the table of `speed`."""
    generation, sweep, shared = found["generation"], found["sweep"], found["shared"]
    return [
        f"### Speed (12 blocks, width 768, random weights, one CPU thread; medians of {REPEATS} pairs)",
        "",
        "| what | CPU time, ratio | wall time, ratio | target |",
        "|---|---|---|---|",
        f"| tokens per second over {found['tokens']} tokens, steered at one layer beside untouched "
        f"| {1 / generation['cpu_ratio']:.3f} | {1 / generation['ratio']:.3f} | at least 0.95 |",
        f"| a sweep of 11 strengths × 32 prompts (NLL) beside its 11 bare passes | {sweep['cpu_ratio']:.3f} "
        f"| {sweep['ratio']:.3f} | at most 1.3 |",
        f"| a sweep of 11 strengths × {FEW} prompts in the bundled model, runs sharing passes beside one at a time "
        f"| {shared['cpu_ratio']:.3f} | {shared['ratio']:.3f} | below 1 |",
        "",
    ]
