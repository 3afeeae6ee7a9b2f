"""Learning a valuation with the model frozen.

W, b and λ (and, when asked, a table of emotion embeddings) are trained through the model's own attention: on next-token
loss, on annotated dimensions, or on both. Nothing of the model changes. Some groups of the corpus are held out, and what the
valuation does to them is measured before and after.

Method: the learnable λ and V of J. Marín's ValAttention (2024). The source names no objective; the two here are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from rich.progress import track
from sklearn.model_selection import GroupShuffleSplit
from torch import Tensor

from emoprobe.corpora import Corpus
from emoprobe.errors import InputError
from emoprobe.interventions import AttentionBias, Forward
from emoprobe.models.live import LiveModel
from emoprobe.scoring import text_nll, token_nll
from emoprobe.valattn.inject import biases, inject
from emoprobe.valattn.valuation import Valuation

Objective: TypeAlias = Literal["next_token", "annotations", "both"]


def learn_valuation(
    model: LiveModel,
    corpus: Corpus,
    init: Valuation,
    *,
    objective: Objective = "both",
    embedding_width: int = 0,
    steps: int = 200,
    batch_size: int = 16,
    learning_rate: float = 0.01,
    annotation_weight: float = 1.0,
    held_out: float = 0.2,
    seed: int = 0,
    progress: bool = True,
) -> Valuation:
    """Train W, b and one λ per layer, starting at `init`, and return the learned valuation.

    "next_token" minimises the mean -log P (nats per token) of the corpus under the injected model; "annotations" the
    squared error between a text's mean valuation and its annotated dimensions, mapped from their declared ranges to [-1, 1];
    "both" their sum, the second times `annotation_weight`. λ starts at the valuation's own, or at 0 (the untouched model).
    With `embedding_width` > 0 a table of emotion embeddings of that width is learned too, one row for each token of the
    vocabulary. `held_out` is the share of the corpus's groups that is not trained on; the record (`metadata`) holds their
    NLL, in nats per token, untouched and with the learned valuation, and the loss at each step.

    Raises `InputError` where annotations are asked for and the corpus has none of the valuation's dimensions.
    """
    if objective not in ("next_token", "annotations", "both"):
        raise InputError(
            f'objective="{objective}" is not understood: give "next_token", "annotations" or "both"'
        )
    targets = _targets(corpus, init) if objective != "next_token" else None
    train, test = next(
        GroupShuffleSplit(1, test_size=held_out, random_state=seed).split(corpus.texts, groups=corpus.groups)
    )
    generator = np.random.default_rng(seed)
    valuation = _trainable(init, embedding_width, len(model.tokenizer), seed)
    parameters = [
        t
        for t in (valuation.weight, valuation.bias, valuation.strength, valuation.embedding)
        if t is not None
    ]
    optimiser = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    losses = []
    with frozen(model):
        for _ in track(range(steps), "learning the valuation", disable=not progress, transient=True):
            rows = generator.choice(train, size=min(batch_size, len(train)), replace=False)
            loss = _loss(
                model,
                valuation,
                [corpus.texts[row] for row in rows],
                targets,
                rows,
                objective,
                annotation_weight,
            )
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            schedule.step()
            losses.append(float(loss.detach()))
    learned = _detached(valuation)
    record = {
        "source": "learned",
        "from": init.metadata.get("source", "tensors"),
        "objective": objective,
        "corpus": corpus.name,
        "steps": steps,
        "seed": seed,
        "losses": losses,
        **_held_out_nll(model, learned, [corpus.texts[row] for row in test]),
    }
    return replace(learned, metadata=record, basis=model.basis)


def _loss(
    model: LiveModel,
    valuation: Valuation,
    texts: list[str],
    targets: Tensor | None,
    rows: np.ndarray[Any, Any],
    objective: Objective,
    annotation_weight: float,
) -> Tensor:
    batch = model.tokenize(texts, truncate=True)
    seen: list[Tensor] = []
    with model.intervene(*[_recording(bias, seen) for bias in biases(model, valuation)]):
        logits = model.forward(batch)
    loss = torch.zeros((), device=logits.device)
    if objective != "annotations":
        nll = token_nll(logits, batch)
        loss = loss + nll.sum() / (batch.real.sum() - len(texts)).clamp(min=1)
    if targets is not None:
        counted = batch.counted()
        read = (torch.stack(seen) * counted[..., None]).sum(-2) / counted.sum(-1)[
            :, None
        ]  # (layers, texts, m)
        wanted = targets[torch.as_tensor(rows)].to(read)
        known = ~wanted.isnan()
        error = (read - wanted.nan_to_num(0.0)).square() * known
        loss = loss + annotation_weight * error.sum() / (known.sum() * len(seen)).clamp(min=1)
    return loss


def _recording(bias: AttentionBias, seen: list[Tensor]) -> AttentionBias:
    """Return the same bias, which also appends the valuations it computes."""
    inner: Callable[[Tensor, Forward], Tensor] = bias.valuation

    def valuation(stream: Tensor, forward: Forward) -> Tensor:
        seen.append(inner(stream, forward))
        return seen[-1]

    return replace(bias, valuation=valuation)


def _targets(corpus: Corpus, init: Valuation) -> Tensor:
    """Return the annotated dimensions mapped to [-1, 1], (texts, m); NaN where there is no annotation."""
    known = [name for name in init.dimensions if name in corpus.dimensions]
    if not known:
        raise InputError(
            f'corpus "{corpus.name}" annotates none of {list(init.dimensions)}: use objective="next_token" or a corpus with '
            "these dimensions"
        )
    columns = []
    for name in init.dimensions:
        if name not in known:
            columns.append(torch.full((len(corpus),), torch.nan))
            continue
        low, high = corpus.dimensions[name]
        columns.append(
            torch.as_tensor(2 * (corpus.values(name) - low) / (high - low) - 1, dtype=torch.float32)
        )
    return torch.stack(columns, dim=-1)


def _trainable(init: Valuation, embedding_width: int, vocabulary: int, seed: int) -> Valuation:
    count = len(init.layers)
    weight, embedding = init.weight.detach().clone(), init.embedding
    if embedding_width and embedding is None:
        generator = torch.Generator().manual_seed(seed)
        embedding = 0.1 * torch.randn(vocabulary, embedding_width, generator=generator)
        # Each dimension starts out reading one coordinate of the table, so that the table gets a gradient at once.
        columns = torch.eye(init.m, embedding_width).to(weight).expand(count, -1, -1)
        weight = torch.cat([weight, columns], dim=-1)
    strength = (
        torch.zeros(count)
        if init.strength is None
        else init.strength.detach().clone().float().expand(count).clone()
    )
    return replace(
        init,
        weight=weight.requires_grad_(),
        bias=init.bias.detach().clone().requires_grad_(),
        strength=strength.requires_grad_(),
        embedding=None if embedding is None else embedding.detach().clone().requires_grad_(),
    )


def _detached(valuation: Valuation) -> Valuation:
    fields = ("weight", "bias", "strength", "embedding")
    return replace(valuation, **{n: t.detach() for n in fields if (t := getattr(valuation, n)) is not None})


def _held_out_nll(model: LiveModel, learned: Valuation, texts: list[str]) -> dict[str, float]:
    untouched, count = text_nll(model, texts)
    with inject(model, learned):
        touched, _ = text_nll(model, texts)
    return {
        "held_out_texts": len(texts),
        "held_out_nll_untouched": float(untouched.sum() / count.sum()),
        "held_out_nll_learned": float(touched.sum() / count.sum()),
    }


@contextmanager
def frozen(model: LiveModel) -> Iterator[None]:
    """Let no weight of the model ask for a gradient inside the block."""
    wanted = [weight for _, weight in model.named_weights() if weight.requires_grad]
    for weight in wanted:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in wanted:
            weight.requires_grad_(True)
