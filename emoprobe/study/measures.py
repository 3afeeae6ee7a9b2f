"""Measures that share their passes through the model, so that a sweep of many strengths stays affordable.

They give what `emoprobe.steering.nll`, `kl`, `read_out` and `continuation` give, several at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from emoprobe.models.live import LiveModel
from emoprobe.probes import ProbeSet
from emoprobe.scoring import batches, token_nll
from emoprobe.steering import Measure, continuation

NLL, KL = "NLL, nats per token", "KL, nats per token"


def prediction(texts: Sequence[str], batch_size: int = 32) -> Measure:
    """Measure NLL and KL(untouched ‖ intervened), nats per token, on `texts` of two tokens or more.

    The first call has to be on the untouched model, as a sweep's is.
    """
    untouched: list[Tensor] = []

    def measure(model: LiveModel, prompts: Sequence[str]) -> dict[str, Tensor]:
        nll, kl = torch.zeros(len(texts), dtype=torch.float64), torch.zeros(len(texts), dtype=torch.float64)
        first = not untouched
        for number, (rows, batch) in enumerate(batches(model, texts, batch_size)):
            with torch.no_grad():
                logits = model.forward(batch)
            nll[rows] = (token_nll(logits, batch).sum(-1) / (batch.real.sum(-1) - 1)).double().cpu()
            logp = logits[batch.real].float().log_softmax(-1)
            if first:
                untouched.append(logp)
            before = untouched[number]
            divergence = (before.exp() * (before - logp)).sum(-1).clamp(min=0)  # rounding may take it below 0
            lengths = batch.real.sum(-1).tolist()
            kl[rows] = torch.stack([part.mean() for part in divergence.split(lengths)]).double().cpu()
        return {NLL: nll, KL: kl}

    return measure


def read_outs(probes: ProbeSet, concepts: Sequence[str], layer: int) -> Measure:
    """Measure the read-outs of several concepts at `layer`: one number for each prompt, on the concepts' own scales."""

    def measure(model: LiveModel, prompts: Sequence[str]) -> dict[str, Tensor]:
        pooled = model.capture(list(prompts), [layer])[:, 0]
        read = probes.read_out(pooled, layer).double()
        return {f"{name} read-out": read[:, probes.concept_index(name)] for name in concepts}

    return measure


def leaning(name: str, toward: Sequence[str], against: Sequence[str], prompts: Sequence[str]) -> Measure:
    """Measure log P of any of `toward` after each prompt, less that of `against` where there are any: nats."""
    sides: Mapping[str, Sequence[str]] = {"toward": toward, **({"against": against} if against else {})}
    inner = continuation(sides)

    def measure(model: LiveModel, ignored: Sequence[str]) -> dict[str, Tensor]:
        found = inner(model, prompts)
        return {name: found["toward"] - found["against"] if against else found["toward"]}

    return measure
