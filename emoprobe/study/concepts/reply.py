"""Is the reply told before it begins?

`reply` lets the model go on, reads the probes over what it wrote, and asks which of two places had told it: where the user
ends, or where the reply is to begin.

Source: Sofroniew et al. 2026 (arXiv 2604.07729), figure 11.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from emoprobe.errors import InputError
from emoprobe.intervals import RESAMPLES, Floats
from emoprobe.models.live import LiveModel
from emoprobe.probes import ProbeSet
from emoprobe.progress import track
from emoprobe.study.concepts.evidence import Evidence
from emoprobe.study.concepts.places import CONTROLS, Prompt, chosen_layer, read_beside_random, turn
from emoprobe.study.concepts.stimuli import load, matched, without
from emoprobe.study.concepts.two_places import (
    LEAST_PROMPTS,
    PLACES,
    SHUFFLES,
    across,
    expected,
    r_of,
    scatter,
    spanned,
)
from emoprobe.study.result import Result

TOPICS = ("home", "work")
"""Topics of the scenarios that replies are asked for, beside the prompts of the dissociation."""
PUBLISHED_REPLY = (
    "Sofroniew et al. 2026 (arXiv 2604.07729, figure 11; Claude Sonnet 4.5): r = 0.87 from the place before the reply, 0.59 "
    "from the user's end, no interval. Replication on Llama-3.3-70B-Instruct: 0.77 from the place before the reply."
)


def reply(
    model: LiveModel,
    probes: ProbeSet,
    *,
    layer: int | float | None = None,
    kind: str = "centred_cosine",
    prompts: Sequence[str] | None = None,
    tokens: int = 20,
    samples: int = 0,
    controls: int = CONTROLS,
    shuffles: int = SHUFFLES,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = True,
) -> Result:
    """Ask which place tells the read-outs over the model's own reply: the user's end, or the place before the reply.

    The model continues each of `prompts` (user turns; default: those of `dissociation`, and scenarios on two topics) by
    `tokens` tokens, greedily, or `samples` times at temperature 1 if that is not 0 (`seed` draws them, batch by batch); then
    the read-outs over all of a reply are taken in a second pass. Raises `InputError` for fewer than three emotions with a
    probe, and fewer than six prompts that were replied to.
    """
    concepts, left_out = matched(probes, load("scenarios"))
    asked = list(_default_prompts(concepts) if prompts is None else prompts)
    read, names = chosen_layer(probes, layer), list(concepts.values())
    begun = [turn(model, text) for text in asked]
    written = continued(model, begun, tokens, samples, seed, batch_size, progress)
    kept = [row for row, texts in enumerate(written) if texts]
    if len(kept) < LEAST_PROMPTS:
        raise InputError(
            f"{model.name} replied to {len(kept)} of {len(asked)} prompts: at least {LEAST_PROMPTS} are needed"
        )
    options: dict[str, Any] = {
        "kind": kind,
        "concepts": names,
        "controls": controls,
        "seed": seed,
        "batch_size": batch_size,
        "progress": progress,
    }
    at_places = read_beside_random(model, probes, [begun[row] for row in kept], PLACES, [read], **options)
    replies = [_with_reply(begun[row], text) for row in kept for text in written[row]]
    owner = np.array([place for place, row in enumerate(kept) for _ in written[row]])
    over = read_beside_random(model, probes, replies, ["reply"], [read], **options)[:, :, 0, 0]
    means = np.stack([over[:, owner == place].mean(1) for place in range(len(kept))], axis=1)
    values = at_places[..., 0, :]
    rows: dict[str, Evidence] = {}
    for centred in (True, False):
        which = "probes' means taken out" if centred else "as published"
        for place, name in enumerate(("user's end", "before the reply")):
            found = across(values[:, :, place], means, centred=centred, shuffles=shuffles, seed=seed)
            rows[f"r of {name} with the reply, {which}"] = found
        rows[f"difference, {which}"] = difference(values, means, centred=centred, seed=seed)
    table = pd.DataFrame([{"measure": name, "layer": read, **found.row()} for name, found in rows.items()])
    end, before, gained = list(rows.values())[:3]
    end_raw, before_raw, gained_raw = list(rows.values())[3:]
    how = f"{samples} samples" if samples else "greedily"
    return Result(
        name="reply",
        title="The reply told before it begins",
        question="Do read-outs before the reply tell those over the reply better than read-outs at the user's end do?",
        method=(
            f"{len(kept)} prompts, continued by {tokens} tokens ({how}) and read again ({kind}) at layer {read} of "
            f"{model.n_layers}: mean over the reply against the user's last character and the place before the reply, "
            f"{len(names)} emotions. Pearson's r with probes' means taken out; intervals over prompts by resampling, p from "
            f"{shuffles} shuffles of prompts.{without(left_out)}"
        ),
        table=table,
        finding=(
            f"r {spanned(before)} from before the reply, {spanned(end)} from the user's end, difference {spanned(gained)}; "
            f"with probes' means left in {spanned(before_raw)}, {spanned(end_raw)}, {spanned(gained_raw)}"
        ),
        controls=(
            f"random directions r {expected(before)} and {expected(end)}, difference {expected(gained)}; with means left in "
            f"difference {expected(gained_raw)}"
        ),
        verdict=verdict_reply(before, gained),
        sign=gained.sign if gained.sign < 0 or before.sign > 0 else 0,
        parts={
            "the place before the reply tells it": before.sign > 0,
            "better than the user's end": before.sign > 0 and gained.sign > 0,
        },
        figure=scatter(
            np.stack([values[0, :, 1], means[0]], 1), list(concepts), "before the reply", "over the reply"
        ),
        alt="Read-outs over the reply against those before it, one colour for each emotion, probes' means taken out.",
        published=PUBLISHED_REPLY,
    )


def difference(values: Floats, over: Floats, *, centred: bool, seed: int = 0) -> Evidence:
    """Return r(before the reply, reply) − r(user's end, reply), its interval over resampled prompts, and random directions'.

    `values` are (1 + controls, prompts, 2 places, concepts), `over` (1 + controls, prompts, concepts).
    """
    prompts = over.shape[1]

    def gained(which: int, rows: Any) -> float:
        places, target = values[which][rows], over[which][rows]
        if centred:
            places, target = places - places.mean(0), target - target.mean(0)
        return r_of(places[:, 1], target) - r_of(places[:, 0], target)

    drawn = np.random.default_rng(seed).integers(prompts, size=(RESAMPLES, prompts))
    low, high = np.nanquantile([gained(0, rows) for rows in drawn], [0.025, 0.975])
    chance = np.array([gained(which, slice(None)) for which in range(1, len(values))])
    return Evidence(gained(0, slice(None)), float(low), float(high), chance)


def continued(
    model: LiveModel,
    prompts: Sequence[Prompt],
    tokens: int,
    samples: int,
    seed: int,
    batch_size: int,
    progress: bool = False,
) -> list[list[str]]:
    """Return what the model writes after each prompt: one continuation, or `samples`; those without a word are left out."""
    how: dict[str, Any] = {"max_new_tokens": tokens, "do_sample": False}
    if samples:
        how |= {
            "do_sample": True,
            "num_return_sequences": samples,
            "temperature": 1.0,
            "top_k": 0,
            "top_p": 1.0,
        }
    each = max(1, samples)
    written: list[list[str]] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        starts = range(0, len(prompts), batch_size)
        for start in track(starts, "writing replies", wanted=progress):
            found = model.generate([prompt.text for prompt in prompts[start : start + batch_size]], **how)
            flat = [found] if isinstance(found, str) else found
            written += [flat[place : place + each] for place in range(0, len(flat), each)]
    return [[text for text in texts if text.strip()] for texts in written]


def _with_reply(prompt: Prompt, text: str) -> Prompt:
    start = len(prompt.text)
    return Prompt(prompt.text + text, {"reply": (start, start + len(text.rstrip()))})


def _default_prompts(concepts: Mapping[str, str]) -> list[str]:
    apart, implied = load("dissociation"), load("scenarios")
    return [
        *(f"{prompt['text']} {apart['question']}" for prompt in apart["prompts"]),
        *(implied[emotion][topic] for emotion in concepts for topic in TOPICS),
    ]


def verdict_reply(before: Evidence, gained: Evidence) -> str:
    """Say which of the two places tells the reply, and whether the one before the reply tells it at all."""
    told = (
        f"The place before the reply tells what is read over it by more than random directions do, r {before.said()}."
        if before.sign > 0
        else f"It is not shown that the place before the reply tells what is read over it by more than random directions do, "
        f"r {before.said()}."
    )
    if gained.sign > 0:
        return f"{told} It tells it better than the user's end does, {gained.said()}."
    if gained.sign < 0:
        return f"{told} The user's end tells it better, {gained.said()}."
    return f"{told} That it tells it better than the user's end is not shown, {gained.said()}."
