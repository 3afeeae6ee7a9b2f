"""Left to itself, what does a valuation become, and is it what the probes found?

Two are learned with the model frozen: one that starts at the probes and one that starts at random directions of equal norm.
Only if the second, too, ends up near the probes has learning found what probing found; the first may just have stayed there.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from emoprobe.corpora import Corpus
from emoprobe.models.live import LiveModel
from emoprobe.study.result import Result
from emoprobe.study.wording import listed, number, span
from emoprobe.valattn import Comparison, Valuation, compare_valuations, learn_valuation

STEPS, BATCH = 80, 16
TEXTS = 200
CONTROLS = 5


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

    `keep` names the file that the learned valuation is written to. The objective is next-token loss, with the squared error of
    annotated dimensions where the valuation has any.
    """
    annotated = any(name in corpus.dimensions for name in probed.dimensions)
    objective = "both" if annotated else "next_token"
    before = model.logits(held_out.texts[0])

    def learn(start: Valuation) -> Valuation:
        return learn_valuation(
            model, corpus, start, objective=objective, steps=steps, batch_size=batch_size, seed=seed, progress=False
        )

    learned, from_random = learn(probed), learn(probed.random_like(seed + 1))
    if keep is not None:
        learned.save(keep)
    found = compare_valuations(
        model, probed, learned, held_out, learned_from_random=from_random, controls=CONTROLS, limit=TEXTS, seed=seed
    )
    nll = found.nll.set_index("condition")
    randoms = nll[nll.index.str.startswith("random ")].delta
    losses = learned.metadata["losses"]
    tenth = max(1, len(losses) // 10)
    return Result(
        name="learning",
        title="Learning a valuation",
        question="Does a valuation that is learned help to predict text, and does it turn into what the probes found?",
        method=(
            f"W, b and one λ per block trained for {steps} steps of {batch_size} texts with the model frozen, on next-token loss"
            f"{' and annotations' if annotated else ''}, from the probes and from random directions. Compared on "
            f"{min(TEXTS, len(held_out))} texts of groups that neither was trained or fitted on; all at the learned λ."
        ),
        table=_table(found),
        finding=f"ΔNLL {_delta(nll, 'learned')} nats per token",
        controls=(
            f"probed {_delta(nll, 'probed')}, random {number(randoms.min(), 3, True)} to {number(randoms.max(), 3, True)}, "
            f"learned from random {_delta(nll, 'learned from random')}"
        ),
        verdict=f"{_prediction(nll)} {_alignment(found)}",
        checks={
            "training lowers the loss": float(np.mean(losses[-tenth:])) < float(np.mean(losses[:tenth])),
            "the model comes out as it went in": torch.equal(before, model.logits(held_out.texts[0])),
        },
        figure=found.plot(),
        alt=(
            "Cosines and token correlations of probed and learned valuations by block, beside random ones; and the change of the "
            "NLL under each, with intervals."
        ),
    )


def _table(found: Comparison) -> pd.DataFrame:
    """Put alignment and NLL into one long table."""
    nll = found.nll.rename(columns={"condition": "dimension", "delta": "value"}).assign(quantity="ΔNLL, nats per token")
    return pd.concat([found.alignment, nll], ignore_index=True)


def _delta(nll: pd.DataFrame, condition: str) -> str:
    row = nll.loc[condition]
    return span(row.delta, row.low, row.high, digits=3, sign=True)


def _prediction(nll: pd.DataFrame) -> str:
    row, other = nll.loc["learned"], nll.loc["learned from random"]
    size = f"with mean |λ| = {number(row['lambda'], 3)} the NLL of held-out texts changes by {_delta(nll, 'learned')} nats per token"
    if row.low <= 0 <= row.high:
        return f"Learning does not help prediction measurably: {size}."
    if row.high < 0:
        same = "so does one learned from random directions" if other.high < 0 else "one learned from random directions does not"
        return f"The learned valuation helps prediction: {size}; {same} ({_delta(nll, 'learned from random')})."
    return f"The learned valuation makes prediction worse: {size}."


def _alignment(found: Comparison) -> str:
    """Say whether the two meet, and whether the one from a random start gets there as well."""
    summary = found.summary()
    cosines = summary[summary.quantity == "row cosine"]
    stayed = listed([f"{row.dimension} {number(row.value)}" for row in cosines.itertuples()], 4)
    arrived = cosines[cosines.from_random.abs() > cosines[["control_low", "control_high"]].abs().max(axis=1)]
    rest = (
        f"the one that started at random has come nearer to the probes than random directions lie for {listed(arrived.dimension.tolist())}"
        if len(arrived)
        else "the one that started at random has not come nearer to the probes than random directions lie, so what probing finds "
        "and what learning finds are not shown to be the same"
    )
    return f"Cosines of probed and learned rows, averaged over blocks: {stayed}; {rest}."
