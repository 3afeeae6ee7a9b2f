"""What the user feels and what the reply will: are they read apart, and does the place before the reply tell the reply?

`dissociation` gives prompts whose writer feels one thing while a fitting reply would be about another (somebody tells calmly of
what is alarming), and reads the probes where the user ends and where the reply is to begin. `reply` lets the model go on, reads
the probes over what it wrote, and asks which of the two places had told it. Any direction is alike at two places so close, and
any probe has its own mean, so both stand beside random directions, and the means of probes over prompts are taken out.

Source: Sofroniew et al. 2026 (arXiv 2604.07729), figures 10 and 11, tables 3 and 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from emoprobe import drawing
from emoprobe.errors import InputError
from emoprobe.intervals import correlation
from emoprobe.models.live import LiveModel
from emoprobe.probes import ProbeSet
from emoprobe.progress import track
from emoprobe.study.concepts.evidence import Evidence, of_mean, p_two_sided, sign_test
from emoprobe.study.concepts.places import CONTROLS, Prompt, chosen_layer, read_beside_random, turn
from emoprobe.study.concepts.stimuli import load, matched, without
from emoprobe.study.result import Result
from emoprobe.study.wording import number, span

Floats = NDArray[np.float64]
PLACES = ("user_end", "before_reply")
EMOTIONS = ("afraid", "angry", "sad", "calm", "happy", "loving")
LEAST_PROMPTS = 6
SHUFFLES = 999
RESAMPLES = 2000
TOPICS = ("home", "work")
"""Topics of the scenarios that replies are asked for, beside the prompts of the dissociation."""
PUBLISHED_APART = (
    "Sofroniew et al. 2026 (arXiv 2604.07729, figure 10; Claude Sonnet 4.5): r = 0.11 across the two places over 8 prompts and "
    "6 emotions, no interval; loving always rises before the reply. Replications on Llama-3.3-70B-Instruct: 0.63, and 0.63 to "
    "0.77 across the runs of another group, so that it did not transfer."
)
PUBLISHED_REPLY = (
    "Sofroniew et al. 2026 (arXiv 2604.07729, figure 11; Claude Sonnet 4.5): r = 0.87 from the place before the reply, 0.59 "
    "from the user's end, no interval. Replication on Llama-3.3-70B-Instruct: 0.77 from the place before the reply."
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
            f"r {_r(alike)} across the two places, {_r(pooled)} with the probes' means left in; reply's less user's emotion "
            f"{_r(at_end, 3, True)} at the user's end, {_r(at_start, 3, True)} before the reply"
        ),
        controls=(
            f"random directions r {_expected(alike)}, {_expected(pooled)} with means left in; reply's less user's emotion "
            f"{_expected(at_end, 3)} and {_expected(at_start, 3)}"
        ),
        verdict=(
            f"{verdict_apart(alike)} {verdict_leaning(at_start, turned)} Of all probes {emotions[most]} "
            f"rises most before the reply ({number(float(shift[most]), 3, True)})."
        ),
        sign=at_start.sign if at_start.sign < 0 or turned.sign > 0 else 0,
        figure=_scatter(values[0], emotions, "at the user's end", "before the reply"),
        alt="Read-outs before the reply against those at the user's end, one colour for each emotion, probes' means taken out.",
        published=PUBLISHED_APART,
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
            f"r {_r(before)} from before the reply, {_r(end)} from the user's end, difference {_r(gained)}; with probes' means "
            f"left in {_r(before_raw)}, {_r(end_raw)}, {_r(gained_raw)}"
        ),
        controls=(
            f"random directions r {_expected(before)} and {_expected(end)}, difference {_expected(gained)}; with means left in "
            f"difference {_expected(gained_raw)}"
        ),
        verdict=verdict_reply(before, gained),
        sign=gained.sign if gained.sign < 0 or before.sign > 0 else 0,
        figure=_scatter(
            np.stack([values[0, :, 1], means[0]], 1), list(concepts), "before the reply", "over the reply"
        ),
        alt="Read-outs over the reply against those before it, one colour for each emotion, probes' means taken out.",
        published=PUBLISHED_REPLY,
    )


# Measures ------------------------------------------------------------------------------------------------------------


def across(x: Floats, y: Floats, *, centred: bool, shuffles: int, seed: int = 0) -> Evidence:
    """Return Pearson's r of read-outs at two places, (1 + controls, prompts, concepts) each, over prompts and concepts.

    With `centred` each concept's mean over prompts is taken out first. The interval is over prompts; p is from shuffling the
    prompts at one place, which leaves the concepts' means alone.
    """
    if centred:
        x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    prompts, count = x.shape[1:]
    groups = np.repeat(np.arange(prompts), count)
    r, low, high = correlation(x[0].ravel(), y[0].ravel(), groups, seed)
    generator = np.random.default_rng(seed)
    null = np.array([_r_of(x[0], y[0][generator.permutation(prompts)]) for _ in range(shuffles)])
    # With the means left in shuffled prompts are alike too: what counts is how far r lies from what they give.
    p = p_two_sided(r - null.mean(), null - null.mean()) if np.isfinite(r) else np.nan
    chance = np.array([_r_of(a, b) for a, b in zip(x[1:], y[1:], strict=True)])
    return Evidence(r, low, high, chance, 0.0, p, (-1.0, 1.0))


def difference(values: Floats, over: Floats, *, centred: bool, seed: int = 0) -> Evidence:
    """Return r(before the reply, reply) − r(user's end, reply), its interval over resampled prompts, and random directions'.

    `values` are (1 + controls, prompts, 2 places, concepts), `over` (1 + controls, prompts, concepts).
    """
    prompts = over.shape[1]

    def gained(which: int, rows: Any) -> float:
        places, target = values[which][rows], over[which][rows]
        if centred:
            places, target = places - places.mean(0), target - target.mean(0)
        return _r_of(places[:, 1], target) - _r_of(places[:, 0], target)

    drawn = np.random.default_rng(seed).integers(prompts, size=(RESAMPLES, prompts))
    low, high = np.nanquantile([gained(0, rows) for rows in drawn], [0.025, 0.975])
    chance = np.array([gained(which, slice(None)) for which in range(1, len(values))])
    return Evidence(gained(0, slice(None)), float(low), float(high), chance)


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


def _r_of(x: Floats, y: Floats) -> float:
    a, b = x.ravel() - x.mean(), y.ravel() - y.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 1e-12 else 0.0


# Words and pictures --------------------------------------------------------------------------------------------------


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


def _r(found: Evidence, digits: int = 2, sign: bool = False) -> str:
    return span(found.value, found.low, found.high, digits, sign)


def _expected(found: Evidence, digits: int = 2) -> str:
    low, high = (number(bound, digits, True) for bound in found.expected)
    return f"{low} to {high}"


@drawing.styled()
def _scatter(values: Floats, emotions: Sequence[str], across_: str, up: str) -> Figure:
    """Draw read-outs at two places, (prompts, 2, concepts), against each other."""
    figure, axes = drawing.panels(1, 1, height=3.6)
    axis = axes[0, 0]
    apart = values - values.mean(0)
    markers = "osD^vPX*<>"
    for place, emotion in enumerate(emotions):
        colour = drawing.PALETTE[place % len(drawing.PALETTE)]
        marker = markers[place // len(drawing.PALETTE) % len(markers)]
        axis.plot(
            apart[:, 0, place],
            apart[:, 1, place],
            marker,
            color=colour,
            label=emotion,
            alpha=0.8,
            linestyle="none",
        )
    drawing.zero(axis)
    drawing.zero(axis, vertical=True)
    axis.set_xlabel(f"{across_}, probe's mean taken out")
    axis.set_ylabel(f"{up}, probe's mean taken out")
    drawing.legend_below(figure, axis, 6)
    return figure
