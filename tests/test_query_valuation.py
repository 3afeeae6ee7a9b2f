"""λ of every form, m from 1 to 32 and query valuations against an independent float64 computation, padded and cached."""

import pytest
import torch
from backends import load, make_valuation, saved
from oracle import Oracle
from test_injection import TEXTS, relative, rows
from test_injection import make_valuation as of_width
from tiny import FAMILIES, HEADS, tiny_model
from torch import Tensor

from emoprobe.errors import InputError
from emoprobe.models import LiveModel
from emoprobe.valattn import Valuation, biases, inject

GREEDY = {"max_new_tokens": 6, "do_sample": False}
STRENGTHS = {
    "negative": -1.2,
    "per layer": torch.tensor([0.9, -1.6]),
    "per head": torch.linspace(-1.5, 1.5, 2 * HEADS).reshape(2, HEADS),
}
TOWARD = {
    "its own": (None, 1.0),
    "a target": ({"d0": 1.0}, 1.0),
    "mixed": ({"d0": -0.5}, 0.3),
}


def truth_of(model: LiveModel, valuation: Valuation, strength: object, toward: dict | None, share: float):
    """Return ids -> logits, worked out without emoprobe."""
    oracle, lam = Oracle(model), torch.as_tensor(strength, dtype=torch.float64)
    target = torch.zeros(valuation.m, dtype=torch.float64)
    for name, value in (toward or {}).items():
        target[valuation.dimensions.index(name)] = value

    def valuer(row: int):
        weight, bias = valuation.weight[row].double(), valuation.bias[row].double()
        return lambda x: torch.tanh(x @ weight.T + bias)

    def of_queries(v: Tensor) -> Tensor:
        return v if toward is None else share * target.expand_as(v) + (1 - share) * v

    hand = {
        layer: [(lam[row] if lam.dim() else lam, valuer(row), of_queries)]
        for row, layer in enumerate(valuation.layers)
    }
    return lambda ids: oracle.logits(ids, hand)


def check(
    model: LiveModel, valuation: Valuation, strength: object, toward: dict | None, share: float
) -> None:
    batch, truth = model.tokenize(TEXTS), truth_of(model, valuation, strength, toward, share)
    untouched = model.logits(TEXTS)
    with inject(model, valuation, strength, toward=toward, share=share):
        padded = model.logits(TEXTS)
        result = model.underlying.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.real.long(),
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=model.pad_token_id,
            **GREEDY,
        )
        assert model.generate(TEXTS, **GREEDY) == model.generate(TEXTS, use_cache=False, **GREEDY)
    for row, ids in enumerate(rows(model, TEXTS)):
        assert relative(padded[row, -len(ids) :], truth(ids)) < 1e-5
        if len(ids) > 4:
            assert relative(untouched[row, -len(ids) :], truth(ids)) > 0.005
        pads, width = int((~batch.real[row]).sum()), batch.input_ids.shape[1]
        for step, logits in enumerate(result.logits):
            assert relative(logits[row], truth(result.sequences[row, pads : width + step])[-1]) < 1e-5


@pytest.mark.parametrize("toward", TOWARD)
@pytest.mark.parametrize("strength", STRENGTHS)
def test_strengths_and_targets_equal_the_independent_computation(strength: str, toward: str) -> None:
    model = tiny_model("llama", dtype=torch.float32)
    check(model, of_width(model), STRENGTHS[strength], *TOWARD[toward])


@pytest.mark.parametrize("m", [1, 2, 8, 32])
@pytest.mark.parametrize("family", FAMILIES)
def test_spaces_of_one_to_thirty_two_dimensions(family: str, m: int) -> None:
    model = tiny_model(family, dtype=torch.float32)
    check(model, of_width(model, m=m), -2.0 / m**0.5, *TOWARD["mixed"])


def test_a_target_adds_to_the_score_of_a_key_whatever_the_query_and_no_share_is_no_target() -> None:
    model = tiny_model("gpt2")
    valuation = of_width(model)
    with inject(model, valuation, 1.5):
        own = model.logits(TEXTS)
    with inject(model, valuation, 1.5, toward={"d0": 1.0}, share=0.0):
        assert torch.equal(model.logits(TEXTS), own)
    (bias, _) = biases(model, valuation, 1.5, toward={"d1": -1.0, "d2": 0.5})
    queries = bias.query_side(torch.randn(2, 4, 3))
    assert torch.equal(queries, torch.tensor([0.0, -1.5, 0.75]).expand(2, 1, 4, 3))


def test_backends_agree_on_targets() -> None:
    pytest.importorskip("transformer_lens")
    pytest.importorskip("nnsight")
    found = []
    for backend in ("transformers", "transformer_lens", "nnsight"):
        model = load(saved("qwen2"), backend)
        with inject(model, make_valuation(model), -1.5, toward={"a": 1.0}, share=0.7):
            found.append((model.logits(TEXTS)[model.tokenize(TEXTS).real], model.generate(TEXTS, **GREEDY)))
    edited = model.edited(*biases(model, make_valuation(model), -1.5, toward={"a": 1.0}, share=0.7))
    with pytest.warns(UserWarning), edited.trace(TEXTS[2]):
        logits = edited.output.logits.save()
    assert torch.allclose(logits[0], found[0][0][-logits.shape[1] :], atol=1e-4)
    for logits, text in found[1:]:
        assert (logits - found[0][0]).abs().max() < 1e-4 and text == found[0][1]


def test_bad_targets_are_named() -> None:
    model = tiny_model("gpt2")
    valuation = of_width(model)
    for toward, share, words in [
        ({"joy": 1.0}, 1.0, r"dimensions are d0, d1, d2"),
        ({}, 1.0, "is not understood"),
        ({"d0": 1.5}, 1.0, r"within -1 to 1; a stronger effect"),
        ({"d0": float("nan")}, 1.0, "within -1 to 1"),
        ({"d0": 1.0}, 1.5, "share=1.5 is not between 0 and 1"),
    ]:
        with pytest.raises(InputError, match=words):
            biases(model, valuation, 1.0, toward=toward, share=share)
