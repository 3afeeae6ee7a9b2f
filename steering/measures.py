"""What to measure of a model while something is done to it.

A measure is a function of a live model and the prompts of a sweep, and returns named floats, one for each prompt (or
for each text of its own), so that intervals can be had. The functions here make measures: `nll` and `kl`, or both at
once as `coherence`, say what an intervention costs on held-out text, `read_out` what it does to a probe in later
layers, `continuation` what it makes the model say; they are row-wise, so that runs of a sweep can share their passes
(see `emoprobe.steering.row_wise`). Anything of the same form is a measure too. Logarithms are natural: likelihoods and
divergences are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import kl_div
from torch.nn.utils.rnn import pad_sequence

from emoprobe.activations import mean_over, widened
from emoprobe.errors import InputError
from emoprobe.interventions import ResidualEdit
from emoprobe.layers import resolve_layers
from emoprobe.models import Batch, LiveModel
from emoprobe.scoring import batches, token_nll
from emoprobe.steering.row_wise import Passes, RowWise, run_alone

if TYPE_CHECKING:
    from emoprobe.probes import ProbeSet

Measure: TypeAlias = Callable[[LiveModel, Sequence[str]], dict[str, Tensor]]


def nll(texts: Sequence[str], *, name: str = "nll", batch_size: int = 32) -> RowWise:
    """Measure the mean negative log-likelihood per token of held-out `texts`: nats, one number for each text.

    A text's first token has nothing before it and does not count. Raises `InputError` for a text of one token.
    """
    texts = _listed(texts)

    @RowWise
    def measure(model: LiveModel, prompts: Sequence[str]) -> Passes[dict[str, Tensor]]:
        _refuse_positions(model, name, "generated", "last")
        means = torch.zeros(len(texts), dtype=torch.float64)
        for rows, batch in batches(model, texts, batch_size):
            logits = yield model.forward, batch
            means[rows] = _mean_nll(logits, batch)
        return {name: means}

    return measure


def kl(texts: Sequence[str], *, name: str = "kl", batch_size: int = 32) -> RowWise:
    """Measure KL(untouched ‖ intervened) of the next token on `texts`: nats, mean over a text's tokens, ≥ 0.

    For the untouched model, and what is raised, see `coherence`.
    """
    both = coherence(texts, names=("nll", name), batch_size=batch_size)

    @RowWise
    def measure(model: LiveModel, prompts: Sequence[str]) -> Passes[dict[str, Tensor]]:
        found = yield from both.passes(model, prompts)
        return {name: found[name]}

    return measure


class _Untouched(WeakKeyDictionary[LiveModel, list[Tensor]]):
    """Logits of untouched models; sent to another process, whose models are others, it is empty there."""

    def __reduce__(self) -> tuple[type[_Untouched], tuple[()]]:
        return _Untouched, ()


def coherence(
    texts: Sequence[str], *, names: tuple[str, str] = ("nll", "kl"), batch_size: int = 32
) -> RowWise:
    """Measure what `nll` and `kl` do, in one pass over `texts`.

    The untouched model's logits are those of the last call without interventions, which has to come before any with them
    (a sweep begins so). They are kept as long as the measure and the model are: tokens × vocabulary numbers
    in the model's dtype. Raises `InputError` where the first call is too late, and for a text of one token.
    """
    texts = _listed(texts)
    untouched = _Untouched()

    @RowWise
    def measure(model: LiveModel, prompts: Sequence[str]) -> Passes[dict[str, Tensor]]:
        _refuse_positions(model, names[1], "generated", "last")
        # Without interventions it is measured anew, for weights may have changed.
        before = untouched.get(model) if model.interventions else None
        if before is None and model.interventions:
            raise InputError(
                f"{names[1]} has to be measured on the untouched model before it is in an intervention"
            )
        means, divergence = torch.zeros(2, len(texts), dtype=torch.float64)
        read = []
        for part, (rows, batch) in enumerate(batches(model, texts, batch_size)):
            logits = yield model.forward, batch
            means[rows] = _mean_nll(logits, batch)
            after = logits[batch.real]
            if before is None:
                read.append(after)
                continue
            real = batch.real.cpu()
            spread = torch.zeros(real.shape, dtype=torch.float64)
            spread[real] = _divergence(before[part], after).cpu().double()
            divergence[rows] = spread.sum(-1) / real.sum(-1)
        if before is None:
            untouched[model] = read
        return dict(zip(names, (means, divergence), strict=True))

    return measure


def read_out(
    probes: ProbeSet, concepts: str | Sequence[str], layer: int | float, *, name: str | None = None
) -> RowWise:
    """Measure the read-outs of one concept or several at `layer`: one number for each prompt, on a concept's own scale.

    Each is the mean over the prompt's tokens but the first, which in most models is an attention sink, and is called
    "<concept> <name>", by default "<concept> read-out, layer <layer>". Raises `InputError` where `layer` is not above the
    interventions: there it would show what was put in, or nothing at all.
    """
    concepts = (concepts,) if isinstance(concepts, str) else tuple(concepts)

    @RowWise
    def measure(model: LiveModel, prompts: Sequence[str]) -> Passes[dict[str, Tensor]]:
        (index,) = resolve_layers(layer, model.n_layers)
        label = name or f"read-out, layer {index}"
        _refuse_positions(model, label, "generated")
        _check_above(model, index, label)
        columns = [probes.concept_index(concept) for concept in concepts]
        values = torch.zeros(len(prompts), len(concepts), dtype=torch.float64)
        for rows, batch in batches(model, prompts, 32):
            stream = yield lambda batch: model.streams(batch, [index])[0], batch
            # A read-out is affine, so that its mean over tokens is that of their mean.
            pooled = mean_over([stream], batch.counted())[0]
            values[rows] = probes.read_out(pooled, index)[:, columns].cpu().double()
        return {f"{concept} {label}": values[:, k] for k, concept in enumerate(concepts)}

    return measure


def continuation(continuations: Mapping[str, Sequence[str]], *, batch_size: int = 32) -> RowWise:
    """Measure how likely the model is to go on with any of some texts: nats, one number for each prompt and name.

    For each name it is the log of the mean over its list of P(continuation | prompt), that of a continuation being the
    product over its tokens. Lists of any length compare; where no entry begins another one, adding log(len(list)) gives
    the log-probability that the model says one of them. The tokens of a continuation are those that come after the
    prompt's when both are tokenised as one text; begin it with a space where the prompt ends without one. Raises
    `InputError` where the tokens of prompt and continuation merge.
    """
    if any(isinstance(texts, str) or not len(texts) for texts in continuations.values()):
        raise InputError(
            'continuations maps names to lists of texts, for example {"glad": [" happy", " glad"]}'
        )

    @RowWise
    def measure(model: LiveModel, prompts: Sequence[str]) -> Passes[dict[str, Tensor]]:
        pairs = [(prompt, text) for group in continuations.values() for text in group for prompt in prompts]
        found = yield from passes_of_pairs(model, pairs, batch_size)
        by_text = iter(found.view(-1, len(prompts)))
        return {
            name: torch.stack([next(by_text) for _ in group]).logsumexp(0) - math.log(len(group))
            for name, group in continuations.items()
        }

    return measure


def log_probabilities(model: LiveModel, pairs: Sequence[tuple[str, str]], batch_size: int = 32) -> Tensor:
    """Return log P(continuation | prompt) in nats for pairs of texts, float64 (pairs,). See `continuation`."""
    return run_alone(passes_of_pairs(model, pairs, batch_size))


def passes_of_pairs(model: LiveModel, pairs: Sequence[tuple[str, str]], batch_size: int) -> Passes[Tensor]:
    """Lead to what `log_probabilities` returns, for measures that are row-wise."""
    replies = _replies(model, pairs)
    # The last token of a reply is predicted but never read, so that one-token replies to a prompt share its row.
    readings = [
        (prompt, tuple(reply[:-1].tolist())) for (prompt, _), reply in zip(pairs, replies, strict=True)
    ]
    distinct = list(dict.fromkeys(readings))
    result = torch.zeros(len(pairs), dtype=torch.float64)
    for first in range(0, len(distinct), batch_size):
        rows = {reading: row for row, reading in enumerate(distinct[first : first + batch_size])}
        wanted = [index for index, reading in enumerate(readings) if reading in rows]
        targets = pad_sequence([replies[index] for index in wanted], batch_first=True, padding_value=-1)
        batch = _joined(model.tokenize([prompt for prompt, _ in rows]), [reply for _, reply in rows])
        logits = yield model.forward, batch
        logp = widened(logits[:, -targets.shape[1] :]).log_softmax(-1)
        row = torch.tensor([rows[readings[index]] for index in wanted], device=logp.device)
        position = torch.arange(targets.shape[1], device=logp.device)
        found = logp[row[:, None], position, targets.clamp(min=0)]
        result[wanted] = torch.where(targets >= 0, found, 0.0).sum(-1).cpu().double()
    return result


def _replies(model: LiveModel, pairs: Sequence[tuple[str, str]]) -> list[Tensor]:
    """Return the tokens of each continuation."""
    begun = _token_rows(model, [prompt for prompt, _ in pairs])
    whole = _token_rows(model, [prompt + text for prompt, text in pairs])
    for (prompt, text), start, ids in zip(pairs, begun, whole, strict=True):
        if len(ids) <= len(start) or not torch.equal(ids[: len(start)], start):
            raise InputError(
                f'the tokens of the continuation "{text}" merge with those of the prompt "…{prompt[-20:]}": end the '
                "prompt without a space and begin the continuation with one"
            )
    return [ids[len(start) :] for start, ids in zip(begun, whole, strict=True)]


def _token_rows(model: LiveModel, texts: Sequence[str]) -> list[Tensor]:
    batch = model.tokenize(texts)
    return [ids[real] for ids, real in zip(batch.input_ids, batch.real, strict=True)]


def _joined(prompts: Batch, replies: Sequence[tuple[int, ...]]) -> Batch:
    """Put replies behind prompts, padded on the right, so that all prompts end at the same position."""
    width = max(map(len, replies))
    ids = torch.tensor([[*reply, *[0] * (width - len(reply))] for reply in replies], dtype=torch.long)
    real = torch.arange(width) < torch.tensor([[len(reply)] for reply in replies])
    return replace(
        prompts,
        input_ids=torch.cat([prompts.input_ids, ids.to(prompts.input_ids)], dim=-1),
        real=torch.cat([prompts.real, real.to(prompts.real)], dim=-1),
        offsets=prompts.offsets and tuple((*row, *[(0, 0)] * width) for row in prompts.offsets),
        prompt_length=prompts.input_ids.shape[1],
    )


def _mean_nll(logits: Tensor, batch: Batch) -> Tensor:
    """Return the mean -log P per token of each text, nats: float64 (batch,)."""
    count = batch.real.sum(-1) - 1
    if not bool(count.all()):
        raise InputError(
            f'"{batch.texts[int(count.argmin())]}" is one token, which has no likelihood: leave it out'
        )
    return (token_nll(logits, batch).double().sum(-1) / count).cpu()


def _divergence(before: Tensor, after: Tensor) -> Tensor:
    """Return KL(before ‖ after) of logits (tokens, vocab), nats: (tokens,)."""
    log_p, log_q = widened(before).log_softmax(-1), widened(after).log_softmax(-1)
    # Rounding can take a divergence of nearly nothing below zero.
    return kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1).clamp(min=0)


def _listed(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str) or not len(texts):
        raise InputError("give a list of one or more texts to measure on")
    return list(texts)


def _refuse_positions(model: LiveModel, measure: str, *names: str) -> None:
    """Raise where an edit sits at positions that do not exist, or are not what they say, in a text that is only read."""
    for item in model.interventions:
        if isinstance(item, ResidualEdit) and isinstance(item.positions, str) and item.positions in names:
            raise InputError(
                f'{measure} reads whole texts, where positions="{item.positions}" would mean something else than in '
                'generation: use positions="all"'
            )


def _check_above(model: LiveModel, layer: int, measure: str) -> None:
    edited = {item.layer for item in model.interventions if isinstance(item, ResidualEdit)}
    lowest = min((item.layer for item in model.interventions), default=-1)
    if layer <= lowest or layer in edited:
        raise InputError(
            f"{measure}: layer {layer} is not above the interventions, the lowest of which is at {lowest}: choose a "
            "layer above those that are edited"
        )
