"""From a valuation to the attention of a live model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from emoprobe.errors import InputError
from emoprobe.interventions import AttentionBias, Forward
from emoprobe.layers import Layers
from emoprobe.models.live import LiveModel
from emoprobe.valattn.valuation import Valuation, valuate


@contextmanager
def inject(
    model: LiveModel,
    valuation: Valuation,
    strength: float | Tensor | None = None,
    layers: Layers | None = None,
    *,
    emotions: Tensor | None = None,
) -> Iterator[LiveModel]:
    """Run the block with λ·V_Q·V_Kᵀ added to the model's attention scores.

    `strength` is λ: a number, or a tensor of shape (), (layers,) or (layers, heads); None takes the valuation's own (a
    learned one). `layers` are blocks, by default all that the valuation has. `emotions` annotates the tokens of the prompts,
    (batch, position, d_e) aligned with `model.tokenize(prompts)`, for valuations that read an emotion embedding and have no
    table of it; unannotated (NaN) and generated tokens count as zero. With λ = 0 the model is untouched to the last bit.

    Raises `InputError` for a layer, width, shape or basis that does not fit.
    """
    with model.intervene(*biases(model, valuation, strength, layers, emotions=emotions)):
        yield model


def biases(
    model: LiveModel,
    valuation: Valuation,
    strength: float | Tensor | None = None,
    layers: Layers | None = None,
    *,
    emotions: Tensor | None = None,
) -> list[AttentionBias]:
    """Return the interventions that `inject` places, one per block. See `inject`."""
    _check_width(model, valuation, emotions)
    if layers is not None:
        valuation = valuation.select(layers, model.n_layers)
    _check_depth(model, valuation)
    if valuation.basis is not None:
        model.check_basis(valuation.basis, "this valuation")
    strengths = _per_layer(valuation.strength if strength is None else strength, valuation, model.n_heads)
    return [
        AttentionBias(layer, _valuer(valuation, layer, emotions), lam)
        for layer, lam in zip(valuation.layers, strengths, strict=True)
    ]


def _valuer(valuation: Valuation, layer: int, emotions: Tensor | None) -> Callable[[Tensor, Forward], Tensor]:
    """Return the valuation of one block as a function of its stream and the pass.

    It holds tensors alone, so that it can be sent to where a model runs without emoprobe.
    """
    row = valuation.layers.index(layer)
    weight, bias, embedding = valuation.weight[row], valuation.bias[row], valuation.embedding

    def values(stream: Tensor, forward: Forward) -> Tensor:
        if embedding is None:
            here = None if emotions is None else _window(emotions, forward)
        elif forward.input_ids is None:
            raise InputError("this valuation looks up token ids, but the model was called with inputs_embeds")
        else:
            here = embedding.to(forward.input_ids.device)[forward.input_ids]
        return valuate(weight, bias, stream, here)

    return values


def _window(emotions: Tensor, forward: Forward) -> Tensor:
    """Cut annotations of the prompt to this pass; what lies behind the prompt is zero."""
    batch, length = forward.real.shape
    if batch % emotions.shape[0] or emotions.shape[1] != forward.prompt_length:
        raise InputError(
            f"emotions of shape {tuple(emotions.shape)} do not fit {batch} prompts of {forward.prompt_length} positions: "
            "annotate the positions of model.tokenize(prompts)"
        )
    end = forward.start + length
    padded = torch.nn.functional.pad(emotions.nan_to_num(0.0), (0, 0, 0, max(0, end - emotions.shape[1])))
    return (
        padded[:, forward.start : end]
        .repeat_interleave(batch // emotions.shape[0], dim=0)
        .to(forward.real.device)
    )


def _check_width(model: LiveModel, valuation: Valuation, emotions: Tensor | None) -> None:
    width = valuation.weight.shape[-1]
    extra = emotions.shape[-1] if emotions is not None else 0
    if valuation.embedding is not None:
        extra = valuation.embedding.shape[-1]
    made_for = model.d_model if valuation.centre is None else valuation.centre.shape[-1]
    if made_for != model.d_model:
        raise InputError(
            f"this valuation was made for a residual stream of width {made_for}, but that of {model.name} has width "
            f"{model.d_model}: make one for this model"
        )
    if width < model.d_model or (extra and width != model.d_model + extra):
        raise InputError(
            f"this valuation reads {width} numbers per token, but {model.name} has a residual stream of width "
            f"{model.d_model}" + (f" and emotion embeddings of width {extra}" if extra else "")
        )


def _check_depth(model: LiveModel, valuation: Valuation) -> None:
    too_deep = [layer for layer in valuation.layers if not 0 <= layer < model.n_layers]
    if too_deep:
        raise InputError(
            f"this valuation is for blocks {too_deep}, but {model.name} has blocks 0 to {model.n_layers - 1}"
        )


def _per_layer(strength: float | Tensor | None, valuation: Valuation, n_heads: int) -> list[float | Tensor]:
    count = len(valuation.layers)
    if strength is None:
        raise InputError("this valuation has no learned λ: give strength=, for example 0.5")
    if not isinstance(strength, Tensor):
        if not torch.isfinite(torch.tensor(float(strength))):
            raise InputError(f"strength={strength} is not a finite number")
        return [float(strength)] * count
    if strength.dim() == 0:
        return [strength] * count
    if strength.shape[0] != count or strength.shape[1:] not in ((), (n_heads,)):
        raise InputError(
            f"strength of shape {tuple(strength.shape)} does not fit: give a number, ({count},) for the layers or "
            f"({count}, {n_heads}) for layers and heads"
        )
    return list(strength.unbind(0))
