"""Both ways of getting a bias into attention: caches, decoding, precision, gradients, and the check before use."""

from dataclasses import replace

import pytest
import torch
from families import family_model
from parity import LAM, TEXTS, relative, valuation_for
from torch import Tensor
from transformers import DynamicCache

from emoprobe.errors import InputError
from emoprobe.folding import fold_keys, fold_queries
from emoprobe.interventions import AttentionBias
from emoprobe.models import LiveModel, transformers_attention
from emoprobe.valattn import Valuation, inject

ROUTES = ["Llama", "Gemma 3 (text)", "GPT-J", "BLOOM", "MPT", "Gemma 2", "DeepSeek-V3"]
"""Folded, folded with windows; at the softmax: rotary, ALiBi, boolean masks, windows and caps, latent keys."""


def at_softmax(model: LiveModel) -> LiveModel:
    """The same model, with every bias added at the softmax."""
    model._sites = {layer: replace(model._site(layer), folds=False) for layer in range(model.n_layers)}
    return model


@pytest.mark.parametrize("options", [{"num_beams": 3, "num_return_sequences": 2}, {"do_sample": True}])
@pytest.mark.parametrize("name", ROUTES)
def test_beams_and_samples_are_the_same_with_and_without_a_cache(name: str, options: dict) -> None:
    model = family_model(name)
    texts = []
    with inject(model, valuation_for(model), LAM):
        for use_cache in (True, False):
            torch.manual_seed(0)
            texts.append(model.generate(TEXTS, max_new_tokens=6, use_cache=use_cache, **options))
    assert texts[0] == texts[1]


@pytest.mark.parametrize("name", ["Llama", "Gemma 3 (text)", "GPT-J", "Gemma 2"])
def test_static_caches_and_prompt_lookup_change_nothing(name: str) -> None:
    model = family_model(name)
    prompt = "the dog and the dog and the"
    with inject(model, valuation_for(model), LAM):
        greedy = model.generate(prompt, max_new_tokens=10, do_sample=False)
        for options in (
            {"cache_implementation": "static", "disable_compile": True},
            {"prompt_lookup_num_tokens": 2},
        ):
            assert model.generate(prompt, max_new_tokens=10, do_sample=False, **options) == greedy


@pytest.mark.parametrize("name", ["Llama", "GPT-J", "DeepSeek-V3"])
def test_assisted_generation_is_that_without_an_assistant(name: str) -> None:
    """An assistant proposes tokens; those that the model refuses are cropped off its cache."""
    model, assistant = family_model(name), family_model("Qwen2", seed=1).underlying
    refused = []
    assistant.generation_config.num_assistant_tokens = 3
    with inject(model, valuation_for(model), LAM):
        uncached = model.generate(TEXTS[0], max_new_tokens=10, do_sample=False, use_cache=False)
        with pytest.MonkeyPatch.context() as patch:
            crop = DynamicCache.crop
            patch.setattr(DynamicCache, "crop", lambda self, n: (refused.append(n), crop(self, n))[1])
            assisted = model.generate(TEXTS[0], max_new_tokens=10, do_sample=False, assistant_model=assistant)
    assert assisted == uncached and refused
    assert uncached != model.generate(TEXTS[0], max_new_tokens=10, do_sample=False)


@pytest.mark.parametrize("name", ["Llama", "GPT-J", "BLOOM", "MPT", "DeepSeek-V3"])
def test_a_cache_that_is_cropped_repeated_and_selected_keeps_its_valuations(name: str) -> None:
    """Two texts; the last two tokens are cropped, rows doubled and put into another order, and the texts go on."""
    model = family_model(name)
    ids = model.tokenize(TEXTS[2]).input_ids
    ids = torch.cat([ids, ids.flip(1)])
    with torch.no_grad(), inject(model, valuation_for(model), LAM):
        past = DynamicCache(config=model.underlying.config)
        model.underlying(ids[:, :12], past_key_values=past, attention_mask=torch.ones(2, 12))
        past.crop(-2)
        past.batch_repeat_interleave(2)
        past.batch_select_indices(torch.tensor([2, 0, 3]))
        past.reorder_cache(torch.tensor([1, 0, 2]))
        rows = ids[torch.tensor([0, 1, 1])]
        ones = torch.ones(3, 16)
        options = (
            {"position_ids": torch.arange(10, 16)[None]} if name in ("Llama", "GPT-J", "DeepSeek-V3") else {}
        )
        ours = model.underlying(rows[:, 10:16], past_key_values=past, attention_mask=ones, **options).logits
        whole = model.underlying(rows[:, :16], attention_mask=ones, use_cache=False).logits[:, 10:]
    assert relative(ours, whole) < 1e-5


@pytest.mark.parametrize("name", ["Llama", "Gemma 3 (text)", "BERT"])
def test_both_routes_agree(name: str) -> None:
    folded, model = family_model(name), at_softmax(family_model(name))
    texts = []
    for one in (folded, model):
        with inject(one, valuation_for(one), LAM):
            texts.append(one.logits(TEXTS)[one.tokenize(TEXTS).real])
    assert relative(texts[1], texts[0]) < 1e-5
    assert not torch.equal(texts[1], texts[0])  # two routes indeed


def test_two_softmaxes_both_get_the_bias_where_it_is_folded_and_are_refused_where_they_are_watched() -> None:
    model = at_softmax(family_model("DiffLlama"))  # its parity is tested on the folded route
    untouched = model.logits(TEXTS)
    with pytest.raises(InputError, match="block 0 takes several softmaxes"):
        with inject(model, valuation_for(model), LAM):
            model.logits(TEXTS)
    assert torch.equal(model.logits(TEXTS), untouched)


@pytest.mark.parametrize("name", ["Llama", "GPT-J", "Gemma 2", "Falcon"])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    model = family_model(name, dtype=torch.float64)
    plain, batch = valuation_for(model), model.tokenize(TEXTS[0])
    weight, bias = plain.weight.double().requires_grad_(), plain.bias.double().requires_grad_()
    lam = torch.tensor(LAM, dtype=torch.float64, requires_grad=True)
    target = torch.randn(model.forward(batch).shape, generator=torch.Generator().manual_seed(2)).double()

    def loss(weight: Tensor, bias: Tensor, lam: Tensor) -> Tensor:
        with inject(model, Valuation(weight, bias, plain.dimensions, plain.layers), lam):
            return (model.forward(batch) * target).mean()

    grads = torch.autograd.grad(loss(weight, bias, lam), [weight, bias, lam])
    for index, parameter in enumerate((weight, bias, lam)):
        step = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)).double()
        ends = []
        for sign in (1e-3, -1e-3):
            moved = [p.detach() for p in (weight, bias, lam)]
            moved[index] = moved[index] + sign * step
            ends.append(loss(*moved).detach())
        slope = (ends[0] - ends[1]) / 2e-3
        assert torch.allclose((grads[index] * step).sum(), slope, rtol=1e-2), (index, grads[index], slope)
        assert slope.abs() > 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_folds_a_large_bias_almost_exactly(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    vq, vk = (4 * torch.randn(1, 50, 3, generator=generator) for _ in range(2))
    zero = torch.zeros(1, 2, 50, 8, dtype=dtype)
    queries, (keys, values) = fold_queries(zero, vq[:, None], 0.3), fold_keys(zero, zero, vk)
    assert queries.shape[-1] == keys.shape[-1] == values.shape[-1] and queries.shape[-1] % 8 == 0
    truth = (vq.double() @ vk.double().mT)[0]
    ours = 0.3 * (queries.double() @ keys.double().mT)[0, 1]
    naive = 0.3 * ((vq / 0.3).to(dtype).double() @ vk.to(dtype).double().mT)[0]
    assert relative(ours, truth) < relative(naive, truth) / 50


def test_half_precision_generation_with_a_cache_is_close_to_the_one_without() -> None:
    for name in ("Llama", "GPT-J"):
        model = family_model(name, dtype=torch.bfloat16, scale=0.1)
        ids = model.tokenize(TEXTS[2]).input_ids
        with torch.no_grad(), inject(model, valuation_for(model), 0.5):
            past = model.underlying(ids[:, :10], use_cache=True).past_key_values
            ours = model.underlying(ids[:, 10:], past_key_values=past).logits
            whole = model.underlying(ids, use_cache=False).logits[:, 10:]
        assert relative(ours, whole) < 2e-2


# The check before use ------------------------------------------------------------------------------------------------


def test_a_bias_without_effect_is_found_before_use(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, function in (("Llama", "fold_queries"), ("GPT-J", None)):
        model = family_model(name)
        if function:
            monkeypatch.setattr(transformers_attention, function, lambda q, v, s: fold_queries(q, 0 * v, s))
        else:
            monkeypatch.setattr(
                transformers_attention._AtSoftmax,
                "_bias",
                lambda s: 0 * s.route.queries @ s.route.keys.mT[:, None],
            )
        with (
            pytest.raises(RuntimeError, match=r"block 0 of .* no effect"),
            inject(model, valuation_for(model), LAM),
        ):
            raise AssertionError("this was to be found before the block runs")


def test_an_attention_that_lost_its_mask_is_found_before_use(monkeypatch: pytest.MonkeyPatch) -> None:
    model = family_model("Llama")
    own = transformers_attention.Route.own_attention

    def maskless(route: transformers_attention.Route, module: torch.nn.Module) -> object:
        function = own(route, module)
        return lambda m, q, k, v, mask, **kwargs: function(m, q, k, v, None, is_causal=False, **kwargs)

    monkeypatch.setattr(transformers_attention.Route, "own_attention", maskless)
    with pytest.raises(RuntimeError, match="tokens see later ones"), inject(model, valuation_for(model), LAM):
        raise AssertionError("this was to be found before the block runs")


def test_the_check_runs_once_and_disturbs_no_enclosing_injection() -> None:
    model = family_model("Qwen2")  # two kinds of attention
    valuation, passes = valuation_for(model), []
    model._blocks[0].register_forward_hook(lambda *_: passes.append(1))
    first, rest = valuation.select([0], 3), valuation.select([1, 2], 3)
    with inject(model, valuation, LAM):
        together = model.logits(TEXTS)
    assert len(passes) > 1
    passes.clear()
    fresh = family_model("Qwen2")
    with inject(fresh, first, LAM), inject(fresh, rest, LAM):
        assert torch.equal(fresh.logits(TEXTS), together)
    with inject(model, valuation, LAM):
        model.logits(TEXTS)
    assert len(passes) == 1


def test_a_forward_of_the_instance_s_own_is_given_back() -> None:
    """An instance's own forward, as accelerate sets it, is there again afterwards."""
    model = family_model("GPT-J")
    attention = model._blocks[1].attn
    own = attention.forward
    attention.forward = lambda *args, **kwargs: own(*args, **kwargs)
    mine = attention.forward
    with inject(model, valuation_for(model), LAM):
        assert attention.forward is not mine
        model.logits(TEXTS)
    assert attention.forward is mine


@pytest.mark.parametrize("name", ["Llama", "GPT-Neo", "GPT-J", "MPT", "OPT"])
def test_attention_weights_follow_the_bias_on_both_routes(name: str) -> None:
    model = family_model(name)
    batch = model.tokenize(TEXTS[2])
    bias = AttentionBias(1, lambda x, _: x[..., :2], 3.0)
    with torch.no_grad():
        _, plain = model.attention(batch, [1])
        with model.intervene(bias):
            outputs, weights = model.attention(batch, [1])
    assert outputs.shape == (1, *batch.input_ids.shape, model.d_model)
    assert torch.allclose(weights.sum(-1), torch.ones_like(weights[..., 0]), atol=1e-5)
    assert weights.triu(1).abs().max() == 0 and weights.shape == plain.shape
    assert not torch.allclose(weights, plain)


@pytest.mark.parametrize("name", ["BERT", "BLOOM"])
def test_attention_that_is_not_all_in_its_module_is_refused(name: str) -> None:
    model = family_model(name)
    with pytest.raises(InputError, match="does not give what it adds"):
        model.attention(model.tokenize(TEXTS[0]), [1])
