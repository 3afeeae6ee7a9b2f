"""Gains that leave a stated share of tokens unsaturated, or give valuations a stated spread."""

from dataclasses import replace

import pytest
import torch
from test_injection import TEXTS, make_valuation
from tiny import tiny_model
from torch import Tensor

from emoprobe.errors import InputError
from emoprobe.models import LiveModel
from emoprobe.valattn import Valuation, calibrated_to_deviation, calibrated_to_share

MANY = [f"{text} {text.lower()} {number}" for text in TEXTS for number in range(4)]


def read(model: LiveModel, valuation: Valuation, texts: list[str]) -> Tensor:
    """Valuations of all tokens but the first of each text, one text at a time: (layers, tokens, m)."""
    layers = []
    for layer in valuation.layers:
        with torch.no_grad():
            streams = [model.streams(model.tokenize(text), [layer])[0, 0, 1:] for text in texts]
        e = valuation.embedding
        ids = [model.tokenize(text).input_ids[0, 1:] for text in texts]
        parts = [
            valuation.values(stream, layer, None if e is None else e[row])
            for stream, row in zip(streams, ids, strict=True)
        ]
        layers.append(torch.cat(parts))
    return torch.stack(layers)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_stated_share_of_tokens_is_not_saturated(share: float) -> None:
    model = tiny_model("llama")
    start = make_valuation(model)
    made = calibrated_to_share(model, start, MANY, share, batch_size=5)
    values = read(model, made, MANY)
    below, up_to = ((values.abs() < 0.9 + slack).double().mean(1) for slack in (-1e-6, 1e-6))
    one = 1 / values.shape[1]  # and many tokens are alike
    assert (below - one <= share).all() and (share <= up_to + one).all()
    before = (read(model, start, MANY).abs() < 0.9).double().mean(1)
    assert (before - share).abs().max() > 0.05  # it was otherwise
    assert torch.allclose(
        torch.cosine_similarity(made.weight, start.weight, dim=-1), torch.ones(2, 3), atol=1e-6
    )
    assert made.metadata["calibrated"] == {"unsaturated": share}


@pytest.mark.parametrize("deviation", [0.2, 0.6])
def test_valuations_have_a_stated_spread(deviation: float) -> None:
    model = tiny_model("gpt2")
    start = make_valuation(model)
    before = (
        read(model, replace(start, weight=start.weight / 1000, bias=start.bias / 1000), MANY).atanh() * 1000
    )
    start = replace(start, bias=start.bias - before.mean(1).float())
    with_table = replace(
        start,
        weight=torch.cat([start.weight, torch.ones(2, 3, 1)], -1),
        embedding=torch.randn(len(model.tokenizer), 1, generator=torch.Generator().manual_seed(0)) / 4,
    )
    for valuation in (start, with_table):
        made = calibrated_to_deviation(model, valuation, MANY, deviation)
        spread = read(model, made, MANY).std(1, correction=0)
        assert torch.allclose(spread, torch.full_like(spread, deviation), atol=1e-4)
        gains = torch.tensor(made.metadata["gains"])
        assert torch.allclose(made.bias, valuation.bias * gains, rtol=1e-5)


def test_what_cannot_be_reached_is_said() -> None:
    model = tiny_model("gpt2")
    valuation = make_valuation(model)
    aside = replace(valuation, bias=valuation.bias + 1e4)
    with pytest.raises(
        InputError, match=r"no gain gives d0 at layer 0 a standard deviation of 0.6: 0.00 at most"
    ):
        calibrated_to_deviation(model, aside, MANY)
    blind = Valuation.annotated(model.d_model, [1], ["a"])
    with pytest.raises(InputError, match="a at layer 1 is the same for all tokens"):
        calibrated_to_share(model, blind, MANY)
    for wrong in (0.0, 1.0):
        with pytest.raises(InputError, match="between 0 and 1"):
            calibrated_to_share(model, valuation, MANY, wrong)
        with pytest.raises(InputError, match="between 0 and 1"):
            calibrated_to_deviation(model, valuation, MANY, wrong)
