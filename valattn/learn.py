"""Learning a valuation with the model frozen.

W, b and λ (and, when asked, a table of emotion embeddings) are trained through the model's own attention: on next-token
loss, on annotated dimensions, or on both. Nothing of the model changes. Some groups of the corpus are held out, and what the
valuation does to them is measured before and after.

Any valuation may be the start: one of probes, `random_like` of it, or one that looks words up in a lexicon (a table of
emotion embeddings, which is then learned further); or an emotion stream, and then what carries it is learned as well. How
tensors are trained is in `training`.

Method: the learnable λ and V of J. Marín's ValAttention (2024). The source names no objective; the two here are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import GroupShuffleSplit
from torch import Tensor

from emoprobe.artefacts import digest
from emoprobe.checks import check_seed
from emoprobe.corpora import Corpus
from emoprobe.errors import InputError
from emoprobe.interventions import AttentionBias, Forward
from emoprobe.models.live import LiveModel
from emoprobe.scoring import text_nll, token_nll
from emoprobe.valattn.injection import biases, inject
from emoprobe.valattn.stream import CARRYING, EmotionStream, valuation_of
from emoprobe.valattn.training import History, train
from emoprobe.valattn.valuation import Valuation

Objective: TypeAlias = Literal["next_token", "annotations", "both"]
Learnable = TypeVar("Learnable", Valuation, EmotionStream)
TRAINED = ("weight", "bias", "strength", "embedding", *CARRYING)
DIGITS = 6
"""Decimals to which λ's path is kept."""


def learn_valuation(
    model: LiveModel,
    corpus: Corpus,
    init: Learnable,
    *,
    objective: Objective = "both",
    per_head: bool = False,
    embedding_width: int = 0,
    steps: int = 200,
    batch_size: int = 16,
    learning_rate: float = 0.01,
    annotation_weight: float = 1.0,
    held_out: float = 0.2,
    patience: int | None = None,
    mixed_precision: bool = False,
    checkpoint: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Learnable:
    """Train W, b and λ, starting at `init`, and return the learned valuation, or emotion stream where that was the start.

    "next_token" minimises the mean -log P (nats per token) of the corpus under the injected model; "annotations" the
    squared error between a text's mean valuation and its annotated dimensions, mapped from their declared ranges to [-1, 1];
    "both" their sum, the second times `annotation_weight`. There is one λ per layer, or with `per_head` one per layer and
    head; it starts at the valuation's own, or at 0 (the untouched model). With `embedding_width` > 0 a table of emotion
    embeddings of that width is learned too, one row for each token of the vocabulary.

    `held_out` is the share of the corpus's groups that nothing is trained or chosen on; the record (`metadata`) holds their
    NLL, in nats per token, untouched and with the learned valuation, the loss at each step and the path of λ, which
    `learning_history` returns as a frame. With `patience`, as great a share of the other groups is kept from training to
    stop by: once their loss has not fallen for so many of 20 measurements in a whole run, the best valuation so far is
    returned. `mixed_precision` runs the frozen model in bfloat16. A run that was broken off goes on from `checkpoint`, a
    file, to the same end. Under `accelerate launch` batches are shared by the processes.

    Raises `InputError` where annotations are asked for and the corpus has none of the valuation's dimensions, for a corpus of
    too few groups to hold any out, and for the checkpoint of another run.
    """
    if objective not in ("next_token", "annotations", "both"):
        raise InputError(
            f'objective="{objective}" is not understood: give "next_token", "annotations" or "both"'
        )
    check_seed(seed)
    everything = corpus.texts
    targets = annotated_targets(corpus, valuation_of(init)) if objective != "next_token" else None
    fitted, test = _apart(np.arange(len(corpus)), corpus, held_out, seed)
    chosen_by = None
    if patience is not None:
        fitted, chosen_by = _apart(fitted, corpus, held_out, seed)
    valuation = _trainable(
        init, model.n_heads if per_head else None, embedding_width, len(model.tokenizer), seed
    )

    def loss(rows: Sequence[int]) -> Tensor:
        texts = [everything[row] for row in rows]
        wanted = None if targets is None else targets[list(rows)]
        with torch.autocast(model.device.type, torch.bfloat16, enabled=mixed_precision):
            return _loss(model, valuation, texts, wanted, objective != "annotations", annotation_weight)

    def validate() -> float:
        assert chosen_by is not None, "is called only where there is something to stop by"
        rows = sorted(chosen_by, key=lambda row: len(everything[row]))
        parts = [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]
        return sum(len(part) * float(loss(part)) for part in parts) / len(rows)

    parameters = {name: valuation.tensors[name] for name in TRAINED if name in valuation.tensors}
    settings: dict[str, Any] = {
        "objective": objective,
        "annotation_weight": annotation_weight,
        "held_out": held_out,
        "per_head": per_head,
        "embedding_width": embedding_width,
        "mixed_precision": mixed_precision,
        **{name: value for name, value in valuation_of(init).record.items() if name != "metadata"},
    }
    if checkpoint is not None:
        settings |= {"model": model.fingerprint(), "model_dtype": str(model.dtype)}
        settings |= {"corpus": corpus.fingerprint, "start": digest(parameters)}
    with frozen(model):
        history = train(
            parameters,
            lambda rows: loss([int(fitted[row]) for row in rows]),
            [len(everything[row]) for row in fitted],
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            validate=None if chosen_by is None else validate,
            patience=patience or 0,
            watch=("strength",),
            checkpoint=checkpoint,
            identity=settings,
            seed=seed,
            progress=progress,
        )
    learned = valuation.with_tensors({name: tensor.detach() for name, tensor in parameters.items()})
    record = {
        "source": "learned",
        "from": valuation_of(init).metadata.get("source", "tensors"),
        "objective": objective,
        "corpus": corpus.name,
        "steps": steps,
        "seed": seed,
        **_recorded(history),
        **_held_out_nll(model, learned, [everything[row] for row in test]),
    }
    return learned.with_record(metadata=record, basis=model.basis)


def learning_history(learned: Valuation | EmotionStream) -> pd.DataFrame:
    """Return the path of λ: one row per step, layer and head, from the start on.

    Columns: step, layer, head (missing where a layer has one λ), strength (λ, to six decimals), loss (that of the batch the
    next step was made on; the last has none), validation (the loss on groups kept to stop by, where it was measured), and
    returned (whether the valuation is that of this step). Raises `InputError` for a valuation that was not learned.
    """
    learned = valuation_of(learned)
    record = learned.metadata
    if "strength_path" not in record:
        raise InputError("this valuation has no history: learn_valuation returns one that has")
    path = np.asarray(record["strength_path"], dtype=float)
    per_head = path.ndim == 3
    path = path if per_head else path[..., None]
    steps, layers, heads = (axis.ravel() for axis in np.indices(path.shape))
    losses = np.append(np.asarray(record["losses"], dtype=float), np.nan)
    validation = dict(record["validation"])
    return pd.DataFrame(
        {
            "step": steps,
            "layer": np.asarray(learned.layers)[layers],
            "head": pd.array(heads if per_head else [pd.NA] * len(heads), dtype="Int64"),
            "strength": path.ravel(),
            "loss": losses[steps],
            "validation": [validation.get(step, np.nan) for step in steps.tolist()],
            "returned": steps == record["best"],
        }
    )


def _recorded(history: History) -> dict[str, Any]:
    """Return what a training went through, as JSON takes it."""
    path = history.paths["strength"].double().numpy().round(DIGITS)
    return {
        "losses": history.losses,
        "validation": history.validation,
        "best": history.best,
        "strength_path": path.tolist(),
    }


def _apart(rows: np.ndarray[Any, Any], corpus: Corpus, share: float, seed: int) -> tuple[Any, Any]:
    """Return the rows of most groups and those of the others, a share of them."""
    groups = corpus.groups[rows]
    if len(np.unique(groups)) < 2:
        raise InputError(
            f'corpus "{corpus.name}" has too few groups to hold any out: give a corpus of 2 groups or more, of 3 with patience='
        )
    most, others = next(GroupShuffleSplit(1, test_size=share, random_state=seed).split(rows, groups=groups))
    return rows[most], rows[others]


def _loss(
    model: LiveModel,
    valuation: Valuation | EmotionStream,
    texts: list[str],
    targets: Tensor | None,
    predicts: bool,
    annotation_weight: float,
) -> Tensor:
    """Return the loss of one batch: mean NLL of its tokens where it `predicts`, error of its `targets` (texts, m) if any."""
    batch = model.tokenize(texts, truncate=True)
    seen: list[Tensor] = []
    with model.intervene(*[_recording(bias, seen) for bias in biases(model, valuation)]):
        logits = model.forward(batch)
    loss = torch.zeros((), device=logits.device)
    if predicts:
        nll = token_nll(logits, batch)
        loss = loss + nll.sum() / (batch.real.sum() - len(texts)).clamp(min=1)
    if targets is not None:
        counted = batch.counted()
        # (layers, texts, m)
        read = (torch.stack(seen) * counted[..., None]).sum(-2) / counted.sum(-1)[:, None]
        wanted = targets.to(read)
        known = ~wanted.isnan()
        error = (read - wanted.nan_to_num(0.0)).square() * known
        loss = loss + annotation_weight * error.sum() / (known.sum() * len(seen)).clamp(min=1)
    return loss


def _recording(bias: AttentionBias, seen: list[Tensor]) -> AttentionBias:
    """Return the same bias, which also appends the valuations it computes, in full precision whatever the model runs in."""
    inner: Callable[[Tensor, Forward], Tensor] = bias.valuation

    def valuation(stream: Tensor, forward: Forward) -> Tensor:
        with torch.autocast(stream.device.type, enabled=False):
            # Some models compute NaN at padding, and a weight of 0 would keep it, here and in the gradients.
            seen.append(inner(stream.where(forward.real[..., None], 0.0), forward))
        return seen[-1]

    return replace(bias, valuation=valuation)


def annotated_targets(corpus: Corpus, init: Valuation) -> Tensor:
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


def _trainable(
    init: Learnable, heads: int | None, embedding_width: int, vocabulary: int, seed: int
) -> Learnable:
    """Return a copy of the start whose tensors ask for gradients, with a λ per layer, or per layer and head."""
    valuation = valuation_of(init)
    if embedding_width and valuation.embedding is None:
        generator = torch.Generator().manual_seed(seed)
        embedding = 0.1 * torch.randn(vocabulary, embedding_width, generator=generator)
        # A stream has columns for e already.
        wide = valuation if isinstance(init, EmotionStream) else valuation.widened(embedding_width)
        init = init.with_tensors({"weight": wide.weight, "embedding": embedding})
    count, strength = len(valuation.layers), torch.zeros(())
    if valuation.strength is not None:
        strength = valuation.strength.detach().float()
    if strength.dim() < 2 and heads is not None:
        strength = strength.reshape(-1, 1).expand(count, heads)
    elif strength.dim() == 0:
        strength = strength.expand(count)
    tensors = init.tensors | {"strength": strength}
    return init.with_tensors(
        {name: tensors[name].detach().clone().requires_grad_() for name in TRAINED if name in tensors}
    )


def _held_out_nll(model: LiveModel, learned: Valuation | EmotionStream, texts: list[str]) -> dict[str, float]:
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
