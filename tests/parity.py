"""What must hold for every family, each as a function that raises where it does not; run as a script it writes the table.

    python tests/parity.py        rewrites the table in docs/models.md

The independent computation takes one text at a time, in float64, through the family's own eager attention: hooks on the
modules named in `families` read each block's stream, work out the valuations and put λ·V·Vᵀ into the mask of its attention.
Nothing of emoprobe runs in it: no folding, no padding, no cache.
"""

import copy
import inspect
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, REFUSED, family_model
from torch import Tensor, nn

from emoprobe.activations import stream_residuals
from emoprobe.errors import InputError
from emoprobe.interventions import AttentionBias, ResidualEdit
from emoprobe.models import LiveModel
from emoprobe.valattn import Valuation, biases, inject

TEXTS = [
    "I am so glad that you came!",
    "The dog",
    "They were afraid of the dark and of the letter, but laughing.",
]
LAM = 1.5


def valuation_for(model: LiveModel, m: int = 3) -> Valuation:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(model.n_layers, m, model.d_model, generator=generator) / 2
    bias = torch.randn(model.n_layers, m, generator=generator) / 4
    return Valuation(weight, bias, tuple(f"d{k}" for k in range(m)), tuple(range(model.n_layers)))


def relative(ours: Tensor, truth: Tensor) -> float:
    return float((ours.double() - truth.double()).norm() / truth.double().norm())


# The independent computation -----------------------------------------------------------------------------------------


def independent_logits(
    model: LiveModel, texts: list[Tensor], valuation: Valuation, strength: float
) -> list[Tensor]:
    """Return logits (position, vocab) in float64 for the token ids (position,) of each text."""
    family = FAMILIES[model.name]
    underlying = copy.deepcopy(model.underlying).double().requires_grad_(False)
    underlying.config._attn_implementation_internal = "eager"  # Falcon would not let itself be asked
    underlying.config._experts_implementation_internal = "eager"  # the others know no float64
    for layer, block in enumerate(underlying.get_submodule(family.blocks)):
        here: dict[str, Tensor] = {}
        weight, bias = valuation.weight[layer].double(), valuation.bias[layer].double()
        block.register_forward_pre_hook(_reading(here, weight, bias), with_kwargs=True)
        attention = block.get_submodule(family.attention)
        attention.register_forward_pre_hook(_adding(here, family, strength), with_kwargs=True)
    with torch.no_grad():
        return [underlying(ids[None]).logits[0] for ids in texts]


def _reading(here: dict[str, Tensor], weight: Tensor, bias: Tensor) -> Callable[..., None]:
    def read(block: nn.Module, args: Any, kwargs: Any) -> None:
        stream = args[0] if args else kwargs["hidden_states"]
        here["v"] = torch.tanh(torch.einsum("bpd,md->bpm", stream, weight) + bias)

    return read


def _adding(here: dict[str, Tensor], family: Any, strength: float) -> Callable[..., Any]:
    def add(attention: nn.Module, args: Any, kwargs: Any) -> Any:
        names = list(inspect.signature(type(attention).forward).parameters)[1:]
        given = dict(zip(names, args, strict=False)) | kwargs
        bias = strength * torch.einsum("bim,bjm->bij", here["v"], here["v"])[:, None]
        n = bias.shape[-1]
        if family.kind == "mpt":  # its mask is boolean; its other summand has no batch
            given["position_bias"] = given["position_bias"][:, :, -n:] + bias[0]
            return (), given
        if family.kind == "codegen":  # divides the sum of scores and mask
            bias = bias * attention.scale_attn
        mask = given.get("attention_mask")
        if mask is None:
            mask = torch.zeros(1, 1, n, n, dtype=torch.float64)
            if not family.encoder:
                mask = mask.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -1e300)
        assert mask.is_floating_point() and mask.shape[-2:] == (n, n)
        given["attention_mask"] = torch.where(mask > -1e30, mask + bias, mask)
        return (), given

    return add


# What must hold ------------------------------------------------------------------------------------------------------


def check_streams(name: str) -> None:
    """(a) Captured streams are the model's own hidden states, and padding does not change them."""
    model = family_model(name)
    batch = model.tokenize(TEXTS)
    (part,) = stream_residuals(model, TEXTS)
    streams = part.stream[:, [part.indices.index(row) for row in range(len(TEXTS))]]
    path = (FAMILIES | REFUSED)[name].norm
    norm = model.underlying.get_submodule(path) if path else nn.Identity()
    for row, (ids, real) in enumerate(zip(batch.input_ids, batch.real, strict=True)):
        with torch.no_grad():
            own = model.underlying(ids[real][None], output_hidden_states=True).hidden_states
            last = norm(streams[-1, row][real])
        assert len(own) == model.n_layers + 1
        for layer in range(model.n_layers):
            assert relative(streams[layer, row][real], own[layer][0]) < 1e-5, f"layer {layer}"
        assert relative(last, own[-1][0]) < 1e-5, "last layer"
        if path:  # before the norm it was something else
            assert relative(streams[-1, row][real], own[-1][0]) > 1e-2


# Smaller weights in half precision: large ones would let the rounding of these models themselves grow beyond the tolerance.
PRECISIONS = [
    (torch.float32, 1e-5, 0.25, (LAM,)),
    (torch.bfloat16, 2e-2, 0.1, (0.5, 2.0)),
    (torch.float16, 5e-3, 0.1, (0.5, 2.0)),
]
"""Type, relative error allowed, standard deviation of the weights, λ."""


def check_injection(name: str) -> None:
    """(b) Injection is the independent computation: within 1e-5 in float32, 2e-2 in bfloat16, 5e-3 in float16."""
    for dtype, tolerance, scale, strengths in PRECISIONS[: 1 if FAMILIES[name].coarse else None]:
        model = family_model(name, dtype=dtype, scale=scale)
        valuation, batch, untouched = standardised(model), model.tokenize(TEXTS), model.logits(TEXTS)
        texts = [ids[real] for ids, real in zip(batch.input_ids, batch.real, strict=True)]
        for lam in strengths:
            with inject(model, valuation, lam):
                ours = model.logits(TEXTS)
            truths = independent_logits(model, texts, valuation, lam)
            for row, truth in enumerate(truths):
                error = relative(ours[row, -len(truth) :], truth)
                assert error < tolerance, f"{dtype}, λ = {lam}: {error:.1e}"
                if len(truth) > 8 and lam > 1:  # and there was something to compute
                    assert relative(untouched[row, -len(truth) :], truth) > 2 * tolerance


def standardised(model: LiveModel) -> Valuation:
    """Return a random valuation that varies over tokens as one made of probes does: mean 0, deviation 1 before the tanh."""
    valuation, batch = valuation_for(model), model.tokenize(TEXTS)
    with torch.no_grad():
        stream = model.streams(batch, range(model.n_layers))[:, batch.real].float()
    weight = valuation.weight / torch.einsum("lnd,lmd->lnm", stream, valuation.weight).std(1)[..., None]
    return replace(valuation, weight=weight, bias=-torch.einsum("lmd,ld->lm", weight, stream.mean(1)))


def check_generation(name: str) -> None:
    """(c) Cached is uncached greedy generation, in a batch of uneven lengths padded on the left."""
    model = family_model(name)
    if FAMILIES[name].encoder:
        with pytest.raises(InputError, match="encoder"):
            model.generate(TEXTS, max_new_tokens=2)
        return
    options = {"max_new_tokens": 8, "do_sample": False}
    plain = model.generate(TEXTS, **options)
    with inject(model, valuation_for(model), LAM):
        cached = model.generate(TEXTS, **options)
        assert cached == model.generate(TEXTS, use_cache=False, **options)
    assert cached != plain


def check_zero(name: str) -> None:
    """(d) λ = 0 is the untouched model to the last bit."""
    model = family_model(name)
    untouched = model.logits(TEXTS)
    with inject(model, valuation_for(model), 0.0):
        assert torch.equal(model.logits(TEXTS), untouched)
    with inject(model, valuation_for(model), LAM):
        assert not torch.equal(model.logits(TEXTS), untouched)


class Breaks(Exception):
    pass


def check_restored(name: str) -> None:
    """(e) After an exception in the middle of a pass the model is what it was."""
    model = family_model(name)
    untouched, before = model.logits(TEXTS), state(model)

    def breaks(stream: Tensor) -> Tensor:
        raise Breaks

    with (
        pytest.raises(Breaks),
        model.intervene(*biases(model, valuation_for(model), LAM), ResidualEdit(2, breaks)),
    ):
        assert state(model) != before
        model.logits(TEXTS)
    assert state(model) == before
    assert torch.equal(model.logits(TEXTS), untouched)


def state(model: LiveModel) -> list[Any]:
    modules = list(model.underlying.modules())
    return [
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules],
        [id(getattr(m, "config", None)) for m in modules],
        [sorted(vars(m)) for m in modules],
        model.underlying.config.to_dict(),
        model._interventions,
    ]


def check_refused(name: str) -> str:
    """Streams are captured where there is one stream; injection is refused with the reason, which is returned."""
    try:
        model = family_model(name)
        if model.n_heads:  # Mamba's own record leaves out the embedding
            check_streams(name)
    except InputError as error:
        return str(error)
    with pytest.raises(InputError) as caught:
        bias = [AttentionBias(layer, lambda x, _: x[..., :2], LAM) for layer in range(model.n_layers)]
        with model.intervene(*bias):
            raise AssertionError("this was to be refused")
    return str(caught.value)


CHECKS = {
    "streams": check_streams,
    "injection": check_injection,
    "generation": check_generation,
    "λ = 0": check_zero,
    "restored": check_restored,
}


# The table -----------------------------------------------------------------------------------------------------------

PAGE = Path(__file__).resolve().parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- table: python tests/parity.py -->\n", "<!-- end of table -->"


def row_of(name: str) -> list[str]:
    """Run all checks of one family and return its row."""
    model, cells = family_model(name), [name]
    cells.append(
        "folded" if all(model._site(layer).folds for layer in range(model.n_layers)) else "at the softmax"
    )
    for what, check in CHECKS.items():
        if what == "generation" and FAMILIES[name].encoder:
            cells.append("refused: encoder")
            continue
        try:
            check(name)
            coarse = what == "injection" and FAMILIES[name].coarse
            cells.append("yes (float32; half rounds by more itself)" if coarse else "yes")
        except AssertionError as error:
            cells.append(f"no: {error}".splitlines()[0])
    return cells


def table() -> str:
    lines = [["family", "bias goes in", *CHECKS], ["---"] * (2 + len(CHECKS))]
    lines += [row_of(name) for name in FAMILIES]
    lines += [
        [name, "–", "–", f"refused: {check_refused(name)}", *["–"] * (len(CHECKS) - 2)] for name in REFUSED
    ]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    before, rest = PAGE.read_text().split(BEGIN)
    new = table()
    PAGE.write_text(before + BEGIN + new + END + rest.split(END)[1])
    print(new)
    sys.exit("| no" in new)
