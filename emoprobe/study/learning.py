"""Left to itself, what does a valuation become, and is it what the probes found?

Two are learned with the model frozen: one that starts at the probes, and one that starts at random directions of equal norm
and sees no annotation. Only if the second, too, ends up near the probes has learning found what probing found: the first may
just have stayed there, and annotations would lead any start to where they led the probes. What the second holds of the probed
space is set beside what single random valuations hold of it, each averaged over the same blocks, and beside its own start.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch

from emoprobe.corpora import Corpus
from emoprobe.intervals import SHARE, prediction_interval
from emoprobe.models.live import LiveModel
from emoprobe.study.result import Result
from emoprobe.study.texts import readable
from emoprobe.study.wording import beside_one_more, listed, number, one_more, ranged, span
from emoprobe.valattn import Comparison, Valuation, compare_valuations, learn_valuation
from emoprobe.valattn.compare import RANDOM_START
from emoprobe.valattn.compare_directions import is_random, stream_rows
from emoprobe.valattn.subspaces import overlaps

STEPS, BATCH = 60, 12
TEXTS = 150
CONTROLS = 12
DELTA, EXCESS = ("delta", "low", "high"), ("excess", "excess_low", "excess_high")


def learning(
    model: LiveModel,
    corpus: Corpus,
    held_out: Corpus,
    probed: Valuation,
    *,
    steps: int = STEPS,
    batch_size: int = BATCH,
    keep: str | Path | None = None,
    seed: int = 0,
) -> Result:
    """Learn W, b and λ on `corpus` from the probed valuation and from a random one, and compare on `held_out`.

    `keep` names the file that the learned valuation is written to. The objective is next-token loss; from the probes, the
    squared error of annotated dimensions is added where there are any.
    """
    annotated = any(name in corpus.dimensions for name in probed.dimensions)
    (text,) = readable(model, held_out.texts, 1, seed)
    before = model.logits(text)

    def learn(start: Valuation, objective: Literal["both", "next_token"]) -> Valuation:
        return learn_valuation(
            model,
            corpus,
            start,
            objective=objective,
            steps=steps,
            batch_size=batch_size,
            seed=seed,
            progress=False,
        )

    learned = learn(probed, "both" if annotated else "next_token")
    start = probed.random_like(seed)  # none of the controls, whose seeds begin elsewhere
    from_random = learn(start, "next_token")
    if keep is not None:
        learned.save(keep)
    found = compare_valuations(
        model,
        probed,
        learned,
        held_out,
        learned_from_random=from_random,
        controls=CONTROLS,
        limit=TEXTS,
        seed=seed,
    )
    before_learning = float(
        overlaps(*(stream_rows(one, probed.layers, model.d_model) for one in (start, probed))).mean()
    )
    nll = found.nll.set_index("condition")
    randoms = nll[nll.index.str.startswith("random ")].delta.tolist()
    return Result(
        name="learning",
        title="Learning a valuation",
        question=(
            "Does a valuation learned from the probes help to predict text by more than random ones that learned nothing, and "
            "does one learned from a random start turn into what the probes found?"
        ),
        method=(
            f"W, b and one λ per block trained for {steps} steps of {batch_size} texts with the model frozen: from the probes "
            f"on next-token loss{' and annotations' if annotated else ''}, from random directions on next-token loss alone. "
            f"Compared on {found.texts} texts of {found.groups} groups that neither was trained or fitted on, at the λ learned "
            f"from the probes; the one from random directions has its own. Beside them {CONTROLS} random valuations. Intervals "
            "of the NLL are Student's over these groups."
        ),
        table=_table(found),
        finding=f"ΔNLL {_delta(nll, 'learned')} nats per token, over {found.groups} groups",
        controls=(
            f"not learned: random {one_more(randoms, 4)}, probed {_delta(nll, 'probed')}; learned from a random start "
            f"{_delta(nll, RANDOM_START)}, not comparable"
        ),
        sign=_sign(nll, found),
        parts={
            "the one learned from the probes helps prediction": _helps(nll),
            "the one learned from a random start turns into what the probes found": _finds(found),
        },
        verdict=f"{_prediction(nll, annotated)} {_alignment(found, before_learning, annotated)}",
        checks={
            "the model comes out as it went in": torch.equal(before, model.logits(text)),
        },
        figure=found.plot(),
        alt=(
            "Cosines and token correlations of probed and learned valuations by block, beside random ones; and the change of "
            "the NLL under each, with intervals."
        ),
    )


def _table(found: Comparison) -> pd.DataFrame:
    """Put alignment, overlap and NLL into one long table."""
    overlap = found.overlap.rename(columns={"condition": "dimension", "overlap": "value"}).assign(
        quantity="overlap with the probed space"
    )
    nll = found.nll.rename(columns={"condition": "dimension", "delta": "value"}).assign(
        quantity="ΔNLL, nats per token"
    )
    return pd.concat([found.alignment, overlap, nll], ignore_index=True)


def _delta(nll: pd.DataFrame, condition: str, columns: tuple[str, str, str] = DELTA) -> str:
    return span(*_row(nll, condition, columns), digits=4, sign=True)


def _row(
    nll: pd.DataFrame, condition: str, columns: tuple[str, str, str] = DELTA
) -> tuple[float, float, float]:
    value, low, high = (float(nll.to_dict("index")[condition][column]) for column in columns)
    return value, low, high


def _prediction(nll: pd.DataFrame, annotated: bool) -> str:
    """Say whether the learned valuation helps prediction, and how it lies to the one from a random start, which is no control.

    The two arms differ in more than their start, so that no difference between them is laid to it.
    """
    _, low, high = _row(nll, "learned")
    randoms = _randoms(nll)
    size = nll.to_dict("index")["learned"]["lambda"]
    changed = f"with mean |λ| = {number(size, 3)} the NLL of held-out texts changes by {_delta(nll, 'learned')} nats per token"
    if not low <= high:  # NaN: one group has no interval
        return f"Cannot be told: one group of held-out texts does not tell whether learning helps prediction; {changed}."
    outcome = (
        "makes prediction worse"
        if low > 0
        else "does not help prediction measurably"
        if high >= 0
        else "helps prediction, by more than random ones that learned nothing"
        if _helps(nll)
        else "helps prediction by no more than random ones may that learned nothing"
    )
    return (
        f"The valuation learned from the probes {outcome}: {changed}; under random ones that learned nothing, at the same λ, "
        f"by {ranged(randoms, 4, True)}. Under the one learned from random directions it changes by "
        f"{_delta(nll, RANDOM_START)} (that less this: {_delta(nll, RANDOM_START, EXCESS)}), but the two are not "
        f"comparable: they differ in start{', objective' if annotated else ''} and the λ they reached, with one start each, "
        "so that which of these makes the difference cannot be told."
    )


def _helps(nll: pd.DataFrame) -> bool:
    """Say whether the one learned from the probes lowers the NLL, and by more than one more random valuation may."""
    value, _, high = _row(nll, "learned")
    return bool(high < 0 and value < prediction_interval(_randoms(nll))[0])


def _randoms(nll: pd.DataFrame) -> list[float]:
    """Return the changes of the NLL under random valuations that learned nothing."""
    values: list[float] = nll.delta[nll.index.str.startswith("random ")].tolist()
    return values


def _sign(nll: pd.DataFrame, found: Comparison) -> int | None:
    """Return 1 where both parts are shown, -1 where learning from the probes makes prediction worse; None for one group."""
    _, low, high = _row(nll, "learned")
    if np.isnan([low, high]).any():
        return None
    return -1 if low > 0 else int(_helps(nll) and _finds(found))


def _finds(found: Comparison) -> bool:
    """Say whether the one from a random start holds more of the probes' space than one more random valuation may."""
    mine, random = _held(found)
    return mine > prediction_interval(random, SHARE)[1]


def _held(found: Comparison) -> tuple[float, list[float]]:
    """Return the share of the probes' space that the one from a random start holds, and what single random ones hold of it."""
    held = found.overlap.groupby("condition").overlap.mean()
    return float(held[RANDOM_START]), held[[name for name in held.index if is_random(name)]].tolist()


def _alignment(found: Comparison, before_learning: float, annotated: bool) -> str:
    """Say how near the two are, and whether the one from a random start holds more of the probed space than random ones do.

    A row's sign and the order of rows leave the bias as it is, so that a random start is judged by the spaces that rows span,
    and rows that no annotation held to their sign and place are matched.
    """
    quantity = "row cosine" if annotated else "matched row cosine"
    summary = found.summary()
    cosines = summary[summary.quantity == quantity].set_index("dimension").value
    stayed = listed([f"{name} {number(value)}" for name, value in cosines.items()], 4)
    which = (
        "Cosines of probed and learned rows"
        if annotated
        else "Cosines of probed and learned rows, matched, signs aside"
    )
    taught = " (both were shown the same annotations)" if annotated else ""
    mine, random = _held(found)
    return (
        f"{which}, averaged over blocks{taught}: {stayed}. The rows of the one that started at random and saw no annotation "
        f"hold {number(mine, 3)} of the probes' space (mean squared cosine of the principal angles, mean over blocks; "
        f"{number(before_learning, 3)} at its start): {beside_one_more(mine, random, 'random valuation', 3, SHARE)}. That is "
        "one start, and others may go elsewhere; benchmarks/learning.py learns from several."
    )
