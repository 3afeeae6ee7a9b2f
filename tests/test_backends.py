"""The same call does the same thing to a model of transformers, TransformerLens or nnsight."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from backends import FAMILIES, GREEDY, LAM, TEXTS, difference, load, make_edits, make_valuation, saved
from torch import Tensor

from emoprobe.errors import InputError
from emoprobe.interventions import AttentionBias, ResidualEdit
from emoprobe.models import LiveModel, load_model, wrap
from emoprobe.valattn import Valuation, inject

pytest.importorskip("transformer_lens")
pytest.importorskip("nnsight")

OTHERS = ("transformer_lens", "nnsight")
REAL = ("stories260K", "babyllama-tok361-970K", "babyllama-tok105-940K")


def check_agreement(
    reference: LiveModel, other: LiveModel, texts: str | list[str], scale: float = 1.0
) -> None:
    batch = reference.tokenize(texts)
    assert torch.equal(other.tokenize(texts).input_ids, batch.input_ids)
    layers = range(reference.n_layers + 1)
    with torch.no_grad():
        streams = reference.streams(batch, layers), other.streams(batch, layers)
    assert difference(reference, texts, *streams) < 1e-4
    plain = reference.logits(texts)
    assert difference(reference, texts, plain, other.logits(texts)) < 1e-4
    valuation = make_valuation(reference, scale)
    found: dict[LiveModel, tuple[Tensor, object, object]] = {}
    for model in (reference, other):
        with (
            inject(model, valuation, LAM),
            model.intervene(*make_edits(model, scale)),
        ):  # nested: they compose
            cached = model.generate(texts, **GREEDY)
            uncached = model.generate(texts, **GREEDY, use_cache=False)
            found[model] = model.logits(texts), cached, uncached
    ours, theirs = found[reference], found[other]
    assert difference(reference, texts, ours[0], theirs[0]) < 1e-4
    assert difference(reference, texts, ours[0], plain) > 0.01  # and something was done
    assert ours[1] == theirs[1] == theirs[2] == ours[2]
    if isinstance(texts, list):
        assert ours[1] != reference.generate(texts, **GREEDY)


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_backends_agree_on_random_weights(family: str, backend: str) -> None:
    reference, other = load(saved(family), "transformers"), load(saved(family), backend)
    assert other.backend == backend
    check_agreement(reference, other, TEXTS)  # padded on the left
    check_agreement(reference, other, TEXTS[2])
    assert other.fingerprint() == reference.fingerprint()
    described = [(m.n_layers, m.d_model, m.n_heads, m.context_length, m.basis) for m in (reference, other)]
    assert described[0] == described[1]


@pytest.mark.shared
@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("name", REAL)
def test_backends_agree_on_real_weights(shared: Path, name: str, backend: str) -> None:
    folder = shared / "models" / name
    check_agreement(load(folder, "transformers"), load(folder, backend), TEXTS, scale=0.3)


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_attention_and_logit_lens_agree(family: str, backend: str) -> None:
    reference, other = load(saved(family), "transformers"), load(saved(family), backend)
    batch, valuation = reference.tokenize(TEXTS), make_valuation(reference)
    found = []
    for model in (reference, other):
        with torch.no_grad(), inject(model, valuation, LAM):
            found.append(model.attention(batch, [2, 0]))
    for ours, theirs in zip(*found, strict=True):
        real = batch.real if ours.dim() == 4 else batch.real[:, None].expand(ours.shape[1:4])
        assert (ours - theirs)[:, real].abs().max() < 1e-4
    vectors = torch.randn(2, reference.d_model, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(reference.logit_lens(vectors), other.logit_lens(vectors), atol=1e-5)


@pytest.mark.parametrize("backend", ["transformers", *OTHERS])
def test_what_follows_a_prompt_counts_as_generated(backend: str) -> None:
    """In a batch that holds prompts together with what follows them."""
    model = load(saved("gpt2"), backend)
    batch = replace(model.tokenize(TEXTS[2]), prompt_length=6)
    edit = ResidualEdit(model.n_layers, lambda x: x + 1.0, positions="generated")
    with torch.no_grad():
        plain = model.streams(batch, [model.n_layers])
        with model.intervene(edit):
            edited = model.streams(batch, [model.n_layers])
            changed = (
                (model.forward(batch) - model.forward(replace(batch, prompt_length=None))).abs().amax(-1)
            )
    assert changed[0, :6].max() == 0 and changed[0, 6:].min() > 0
    assert torch.allclose(
        (edited - plain)[0, 0, :, 0], (torch.arange(plain.shape[2]) >= 6).float(), atol=1e-5
    )


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3, "num_return_sequences": 2},
        {"num_return_sequences": 2, "do_sample": True, "top_k": 5},
        {"cache_implementation": "static", "disable_compile": True},
        {"prompt_lookup_num_tokens": 3},
    ],
)
@pytest.mark.parametrize("backend", ["transformers", *OTHERS])
def test_every_kind_of_generation_is_right_with_a_cache(backend: str, options: dict[str, object]) -> None:
    model = load(saved("llama"), backend)
    texts = TEXTS[:1] if "prompt_lookup_num_tokens" in options else TEXTS
    same = {key: value for key, value in options.items() if key.startswith(("num", "do", "top"))}
    with inject(model, make_valuation(model), LAM):
        torch.manual_seed(0)
        cached = model.generate(texts, **{**GREEDY, **options})
        torch.manual_seed(0)
        uncached = model.generate(texts, **{**GREEDY, **same, "use_cache": False})
    assert cached == uncached


@pytest.mark.parametrize("backend", OTHERS)
def test_strength_zero_is_the_untouched_model_to_the_last_bit(backend: str) -> None:
    model = load(saved("llama"), backend)
    untouched = model.logits(TEXTS)
    with inject(model, make_valuation(model), 0.0):
        assert torch.equal(model.logits(TEXTS), untouched)
    with inject(model, make_valuation(model), LAM):
        assert not torch.equal(model.logits(TEXTS), untouched)
    assert torch.equal(model.logits(TEXTS), untouched)


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("where", ["outside", "edit", "valuation"])
def test_exceptions_restore_everything(backend: str, where: str) -> None:
    model = load(saved("gpt2"), backend)
    untouched, before = model.logits(TEXTS), hooks_and_config(model)

    def fail(*args: object) -> Tensor:
        raise ZeroDivisionError

    extra = {
        "outside": [],
        "edit": [ResidualEdit(1, fail)],
        "valuation": [AttentionBias(1, fail, 1.0)],
    }[where]
    with pytest.raises(ZeroDivisionError):
        with inject(model, make_valuation(model), LAM), model.intervene(*make_edits(model), *extra):
            assert hooks_and_config(model) != before
            model.logits(TEXTS)
            raise ZeroDivisionError
    assert hooks_and_config(model) == before
    assert torch.equal(model.logits(TEXTS), untouched)


def hooks_and_config(model: LiveModel) -> list[object]:
    module = model.underlying._module if model.backend == "nnsight" else model.underlying.original_model
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules()]
    handles = [len(getattr(m, "fwd_hooks", ())) for m in module.modules()]
    configs = [getattr(getattr(m, "config", None), "_attn_implementation", None) for m in module.modules()]
    return [hooks, handles, configs]


@pytest.mark.parametrize("backend", OTHERS)
def test_gradients_reach_valuation_and_strength(backend: str) -> None:
    grads = []
    for model in (load(saved("llama"), "transformers"), load(saved("llama"), backend)):
        plain = make_valuation(model)
        strength = torch.tensor(0.5, requires_grad=True)
        weight = plain.weight.clone().requires_grad_()
        valuation = Valuation(weight, plain.bias, plain.dimensions, plain.layers)
        with inject(model, valuation, strength):
            model.forward(model.tokenize(TEXTS[0])).logsumexp(-1).sum().backward()
        grads.append((strength.grad, weight.grad))
    for ours, theirs in zip(*grads, strict=True):
        assert ours.abs().max() > 0
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_other_objects_are_refused_with_a_way_out() -> None:
    def made(module: str, name: str) -> object:
        return type(name, (), {"__module__": module})()

    with pytest.raises(InputError, match=r"left TransformerLens in 4.0"):
        wrap(made("transformer_lens.HookedTransformer", "HookedTransformer"))
    for module, name in [
        ("transformer_lens.model_bridge", "RemoteBridge"),
        ("nnsight", "NNsight"),
        ("builtins", "x"),
    ]:
        with pytest.raises(InputError, match=rf"cannot wrap a .*{name}"):
            wrap(made(module, name))
    with pytest.raises(InputError, match=r"plain|by itself"):
        load_model("bundled", backend="transformer_lens", attn_implementation="sdpa")


def test_training_mode_is_refused() -> None:
    for backend in OTHERS:
        live = load(saved("gpt2"), backend)
        module = live.underlying._module if backend == "nnsight" else live.underlying
        module.train()
        try:
            with pytest.raises(InputError, match="training mode"):
                wrap(live.underlying, live.tokenizer)
        finally:
            module.eval()
