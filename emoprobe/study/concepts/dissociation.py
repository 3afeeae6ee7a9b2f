"""What the user feels and what the reply will: are they read apart where the user ends and where the reply is to begin?

`dissociation` gives prompts whose writer feels one thing while a fitting reply would be about another (somebody tells calmly of
what is alarming), and reads the probes at both places. Whether the second of them tells the reply is asked by `reply`.

Source: Sofroniew et al. 2026 (arXiv 2604.07729), figure 10, tables 3 and 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from emoprobe.errors import InputError
from emoprobe.intervals import Floats
from emoprobe.models.live import LiveModel
from emoprobe.probes import ProbeSet
from emoprobe.study.concepts.evidence import Evidence, of_mean, sign_test
from emoprobe.study.concepts.places import CONTROLS, chosen_layer, read_beside_random, turn
from emoprobe.study.concepts.stimuli import load, matched, without
from emoprobe.study.concepts.two_places import (
    LEAST_PROMPTS,
    PLACES,
    SHUFFLES,
    across,
    expected,
    scatter,
    spanned,
)
from emoprobe.study.result import Result
from emoprobe.study.wording import number

EMOTIONS = ("afraid", "angry", "sad", "calm", "happy", "loving")
PUBLISHED_APART = (
    "Sofroniew et al. 2026 (arXiv 2604.07729, figure 10; Claude Sonnet 4.5): r = 0.11 across the two places over 8 prompts and "
    "6 emotions, no interval; loving always rises before the reply. Replications on Llama-3.3-70B-Instruct: 0.63, and 0.63 to "
    "0.77 across the runs of another group, so that it did not transfer."
)


def dissociation(
    model: LiveModel,
    probes: ProbeSet,
    *,
    layer: int | float | None = None,
    kind: str = "centred_cosine",
    stimuli: Mapping[str, Any] | None = None,
    controls: int = CONTROLS,
    shuffles: int = SHUFFLES,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = True,
) -> Result:
    """Compare read-outs at the user's end with those before the reply, beside random directions and shuffled prompts.

    `stimuli` hold prompts (user, reply: emotions; text) and the question that ends each; by default sixteen of the package's
    own. `layer` is by default the one nearest to two thirds of the depth. Raises `InputError` for fewer than three of the
    emotions with a probe, and fewer than six prompts.
    """
    given = load("dissociation") if stimuli is None else stimuli
    named = [prompt[side] for prompt in given["prompts"] for side in ("user", "reply")]
    concepts, left_out = matched(probes, [*(e for e in EMOTIONS if e in named), *named])
    emotions, prompts = list(concepts), given["prompts"]
    if len(prompts) < LEAST_PROMPTS:
        raise InputError(f"{len(prompts)} prompts are too few: give at least {LEAST_PROMPTS}")
    read = chosen_layer(probes, layer)
    values = read_beside_random(
        model,
        probes,
        [turn(model, f"{prompt['text']} {given['question']}") for prompt in prompts],
        PLACES,
        [read],
        kind=kind,
        concepts=list(concepts.values()),
        controls=controls,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    )[..., 0, :]  # (1 + controls, prompts, places, concepts)
    pooled = across(values[:, :, 0], values[:, :, 1], centred=False, shuffles=shuffles, seed=seed)
    alike = across(values[:, :, 0], values[:, :, 1], centred=True, shuffles=shuffles, seed=seed)
    both = [row for row, prompt in enumerate(prompts) if {prompt["user"], prompt["reply"]} <= set(emotions)]
    leaning = toward_reply(
        values[:, both],
        [emotions.index(prompts[row]["user"]) for row in both],
        [emotions.index(prompts[row]["reply"]) for row in both],
    )
    at_end, at_start, turned = (
        of_mean(units, 0.0, sign_test(units[0]))
        for units in (leaning[..., 0], leaning[..., 1], leaning[..., 1] - leaning[..., 0])
    )
    rows = {
        "r across places, as published": pooled,
        "r across places, probes' means taken out": alike,
        "reply's less user's emotion, user's end": at_end,
        "reply's less user's emotion, before the reply": at_start,
        "reply's less user's emotion, change": turned,
    }
    table = pd.DataFrame([{"measure": name, "layer": read, **found.row()} for name, found in rows.items()])
    shift = (values[0, :, 1] - values[0, :, 0]).mean(0)
    most = int(np.argmax(shift))
    return Result(
        name="dissociation",
        title="The user's emotion and the reply's",
        question="Where the user's emotion is not the one that a reply calls for, are the two read apart at their places?",
        method=(
            f"{len(prompts)} prompts ending in the same question, {len(emotions)} emotions, read ({kind}) at the user's last "
            f"character and before the reply, layer {read} of {model.n_layers}. Pearson's r across the two places; intervals "
            f"over prompts, p from {shuffles} shuffles of prompts. The reply's and the user's emotion are compared over "
            f"{len(both)} prompts that have probes for both, with sign tests.{without(left_out)}"
        ),
        table=table,
        finding=(
            f"r {spanned(alike)} across the two places, {spanned(pooled)} with the probes' means left in; reply's less "
            f"user's emotion {spanned(at_end, 3, True)} at the user's end, {spanned(at_start, 3, True)} before the reply"
        ),
        controls=(
            f"random directions r {expected(alike)}, {expected(pooled)} with means left in; reply's less user's emotion "
            f"{expected(at_end, 3)} and {expected(at_start, 3)}"
        ),
        verdict=(
            f"{verdict_apart(alike)} {verdict_leaning(at_start, turned)} Of all probes {emotions[most]} "
            f"rises most before the reply ({number(float(shift[most]), 3, True)})."
        ),
        sign=at_start.sign if at_start.sign < 0 or turned.sign > 0 else 0,
        parts={
            "before the reply its emotion is read above the user's": at_start.sign > 0,
            "and by more than at the user's end": at_start.sign > 0 and turned.sign > 0,
        },
        figure=scatter(values[0], emotions, "at the user's end", "before the reply"),
        alt="Read-outs before the reply against those at the user's end, one colour for each emotion, probes' means taken out.",
        published=PUBLISHED_APART,
    )


def toward_reply(values: Floats, user: Sequence[int], answer: Sequence[int]) -> Floats:
    """Return by how much the reply's emotion is read above the user's, (1 + controls, prompts, places).

    `values` are (1 + controls, prompts, places, concepts); what all prompts have in common at a place is taken out first.
    """
    apart = values - values.mean(1, keepdims=True)
    rows = np.arange(len(user))
    leaning = (
        apart[:, rows, :, list(answer)] - apart[:, rows, :, list(user)]
    )  # (prompts, 1 + controls, places)
    return np.moveaxis(leaning, 1, 0)


def verdict_apart(alike: Evidence) -> str:
    """Say whether emotions are read apart at the two places, as random directions are, or carried over more than these."""
    low, high = alike.expected
    said = f"r {alike.said()}"
    if alike.value < low and alike.high < float(np.mean(alike.chance)):
        return f"The two places are read apart: emotions are less alike there than random directions, {said}."
    if alike.value > high and alike.low > float(np.mean(alike.chance)):
        return f"What is read at the user's end is carried over: emotions are more alike than random directions, {said}."
    return (
        f"Emotions are not shown to be more or less alike at the two places than random directions, {said}."
    )


def verdict_leaning(at_start: Evidence, turned: Evidence) -> str:
    """Say whose emotion is read before the reply; that the user's merely fades does not make it the reply's."""
    said = at_start.said(3)
    if at_start.sign < 0:
        return f"Before the reply the user's emotion is still read above the reply's, {said}."
    if at_start.sign > 0 and turned.sign > 0:
        return f"Before the reply the reply's emotion is read above the user's, {said}, other than at the user's end."
    if at_start.sign > 0:
        return f"Before the reply the reply's emotion is read above the user's, {said}, not shown to be more than before that."
    fades = f", although the user's fades ({turned.said(3)})" if turned.sign > 0 else ""
    return (
        f"It is not shown that before the reply the reply's emotion is read above the user's, {said}{fades}."
    )
