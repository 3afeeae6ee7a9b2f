"""From a valuation to the attention of a live model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from emoprobe.checks import check_finite
from emoprobe.errors import InputError
from emoprobe.interventions import AttentionBias, Forward
from emoprobe.layers import Layers
from emoprobe.models.live import LiveModel
from emoprobe.valattn.embeddings import Emotions, emotions_of_pass
from emoprobe.valattn.stream import EmotionStream, valuation_of
from emoprobe.valattn.valuation import Valuation, valuate


@contextmanager
def inject(
    model: LiveModel,
    valuation: Valuation | EmotionStream,
    strength: float | Tensor | None = None,
    layers: Layers | None = None,
    *,
    emotions: Tensor | None = None,
    toward: Mapping[str, float] | None = None,
    share: float = 1.0,
) -> Iterator[LiveModel]:
    """Run the block with λ·V_Q·V_Kᵀ added to the model's attention scores.

    `valuation` may be an emotion stream, which carries emotion embeddings from block to block. `strength` is λ: a number (a
    negative one too), or a tensor of shape (), (layers,) or (layers, heads); None takes the valuation's own (a learned one).
    `layers` are the blocks that feel it, by default all that the valuation has. `emotions` annotates the tokens of the
    prompts, (batch, position, d_e) aligned with `model.tokenize(prompts)`, for valuations that read an emotion embedding
    (`emoprobe.valattn.embeddings` makes such annotations); tokens without one, NaN or generated, have what the valuation's
    table says, or zero. With λ = 0 the model is untouched to the last bit.

    `toward` lets every query look for one point t of the valuation space instead of what is like itself: {"valence": 1.0}
    attends to what is positive. It is given as v is, from -1 to 1, whatever the range on which people read a dimension; those
    not named are 0, and count for nothing. With `share` α below 1 it is mixed with the query's own: V_Q = α·t + (1 - α)·v.

    Raises `InputError` for a layer, width, shape, basis or target that does not fit.
    """
    placed = biases(model, valuation, strength, layers, emotions=emotions, toward=toward, share=share)
    with model.intervene(*placed):
        yield model


def biases(
    model: LiveModel,
    valuation: Valuation | EmotionStream,
    strength: float | Tensor | None = None,
    layers: Layers | None = None,
    *,
    emotions: Tensor | None = None,
    toward: Mapping[str, float] | None = None,
    share: float = 1.0,
) -> list[AttentionBias]:
    """Return the interventions that `inject` places, one per block. See `inject`."""
    stream = valuation if isinstance(valuation, EmotionStream) else None
    plain = valuation_of(valuation)
    _check_width(model, plain, emotions, stream)
    _check_depth(model, plain)
    if plain.basis is not None:
        model.check_basis(plain.basis, "this valuation")
    felt = plain if layers is None else plain.select(layers, model.n_layers)
    if strength is None and felt.strength is None and toward is not None:
        raise InputError(
            "toward= says where attention looks, not how strongly, and this valuation has no learned λ: give strength= too, "
            "for example strength=0.5"
        )
    strengths = _per_layer(felt.strength if strength is None else strength, felt, model.n_heads)
    of_pass = emotions_of_pass(plain.embedding, emotions)
    if stream is None:
        valuers = [_valuer(felt, row, of_pass) for row in range(len(felt.layers))]
    else:
        valuers = stream.valuers(of_pass, model.n_layers)
        lam = dict(zip(felt.layers, strengths, strict=True))
        strengths = [lam.get(layer, 0.0) for layer in plain.layers]
    query = None if toward is None else _toward(plain, toward, share)
    rows = zip((felt if stream is None else plain).layers, valuers, strengths, strict=True)
    placed = [AttentionBias(layer, valuer, lam, query) for layer, valuer, lam in rows]
    return placed if stream is None else _carrying(placed)


def _carrying(placed: list[AttentionBias]) -> list[AttentionBias]:
    """Keep the biases of a stream at strength 0 as well, as long as a block above feels what they carry."""
    felt = [not bias.is_zero for bias in placed]
    return [replace(bias, carries=any(felt[row + 1 :])) for row, bias in enumerate(placed)]


def _valuer(valuation: Valuation, row: int, emotions: Emotions) -> Callable[[Tensor, Forward], Tensor]:
    """Return the valuation of one block as a function of its stream and the pass.

    It holds tensors alone, so that it can be sent to where a model runs without emoprobe.
    """
    weight, bias = valuation.weight[row], valuation.bias[row]
    return lambda stream, forward: valuate(weight, bias, stream, emotions(forward))


def _toward(valuation: Valuation, target: Mapping[str, float], share: float) -> Callable[[Tensor], Tensor]:
    """Return V_Q = α·t + (1 - α)·v as a function of v (…, m)."""
    unknown = [name for name in target if name not in valuation.dimensions]
    if unknown or not target:
        raise InputError(
            f"toward={dict(target)} is not understood: this valuation's dimensions are {', '.join(valuation.dimensions)}"
        )
    beyond = {name: value for name, value in target.items() if not -1 <= value <= 1}
    if beyond or not 0 <= share <= 1:
        what = (
            f"share={share} is not between 0 and 1"
            if not beyond
            else f"toward={beyond} is not within -1 to 1"
        )
        raise InputError(f"{what}; a stronger effect is asked for by a larger strength")
    point = torch.tensor([target.get(name, 0.0) for name in valuation.dimensions])
    return lambda own: share * point.to(own) + (1 - share) * own


def _check_width(
    model: LiveModel, valuation: Valuation, emotions: Tensor | None, stream: EmotionStream | None
) -> None:
    width = valuation.weight.shape[-1]
    sources = [tensor.shape[-1] for tensor in (emotions, valuation.embedding) if tensor is not None]
    extras = {*sources, *([] if stream is None else [stream.width])}
    if len(extras) > 1:
        raise InputError(
            f"emotion embeddings have widths {sorted(extras)}: annotations, table and stream have to agree"
        )
    extra = max(extras, default=0)
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
        check_finite(strength=strength)
        return [float(strength)] * count
    if not torch.isfinite(strength).all():
        raise InputError(f"strength of shape {tuple(strength.shape)} holds NaN or infinite numbers")
    if strength.dim() == 0:
        return [strength] * count
    if strength.shape[0] != count or strength.shape[1:] not in ((), (n_heads,)):
        raise InputError(
            f"strength of shape {tuple(strength.shape)} does not fit: give a number, ({count},) for the layers or "
            f"({count}, {n_heads}) for layers and heads"
        )
    return list(strength.unbind(0))
