"""Injection against an independent float64 computation: prefill, padding, cache, gradients, clean-up."""

import copy

import pytest
import torch
from oracle import Oracle
from tiny import FAMILIES, tiny_model
from torch import Tensor

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


def make_valuation(
    model: LiveModel, seed: int = 0, m: int = 3, layers: tuple[int, ...] = (0, 2)
) -> Valuation:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(len(layers), m, model.d_model, generator=generator) / 2
    bias = torch.randn(len(layers), m, generator=generator) / 4
    return Valuation(weight, bias, tuple(f"d{k}" for k in range(m)), layers)


def by_hand(valuation: Valuation, strength: float | Tensor = LAM) -> dict[int, list]:
    """The same biases, written down without emoprobe."""

    def valuer(row: int):
        weight, bias = valuation.weight[row].double(), valuation.bias[row].double()
        return lambda x: torch.tanh(torch.einsum("bpd,md->bpm", x, weight) + bias)

    return {layer: [(strength, valuer(row))] for row, layer in enumerate(valuation.layers)}


def relative(ours: Tensor, truth: Tensor) -> float:
    return float((ours.double() - truth).norm() / truth.norm())


def rows(model: LiveModel, texts: list[str]) -> list[Tensor]:
    batch = model.tokenize(texts)
    return [ids[real] for ids, real in zip(batch.input_ids, batch.real, strict=True)]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_prefill_equals_the_independent_computation(family: str, attention: str) -> None:
    model = tiny_model(family, dtype=torch.float32)
    model.underlying.set_attn_implementation(attention)
    valuation, oracle = make_valuation(model), Oracle(model)
    untouched = model.logits(TEXTS)
    with inject(model, valuation, LAM):
        padded = model.logits(TEXTS)
        single = [model.logits(text)[0] for text in TEXTS]
    for row, ids in enumerate(rows(model, TEXTS)):
        truth = oracle.logits(ids, by_hand(valuation))
        assert relative(padded[row, -len(ids) :], truth) < 1e-5
        assert relative(single[row], truth) < 1e-5
        plain = untouched[row, -len(ids) :]
        assert relative(plain, oracle.logits(ids)) < 1e-5
        if len(ids) > 4:  # and the bias did something worth computing
            assert relative(plain, truth) > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_every_step_of_cached_generation_equals_the_independent_computation(family: str) -> None:
    model = tiny_model(family, dtype=torch.float32)
    valuation, oracle = make_valuation(model), Oracle(model)
    batch = model.tokenize(TEXTS)
    with inject(model, valuation, LAM):
        result = model.underlying.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.real.long(),
            max_new_tokens=8,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=model.pad_token_id,
        )
    width = batch.input_ids.shape[1]
    for row, real in enumerate(batch.real):
        pads = int((~real).sum())
        for step, logits in enumerate(result.logits):
            ids = result.sequences[row, pads : width + step]
            assert relative(logits[row], oracle.logits(ids, by_hand(valuation))[-1]) < 1e-5


@pytest.mark.parametrize(
    "options", [{"do_sample": False}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_and_uncached_generation_agree(family: str, options: dict) -> None:
    model = tiny_model(family)
    plain = model.generate(TEXTS, max_new_tokens=10, **options)
    with inject(model, make_valuation(model), LAM):
        cached = model.generate(TEXTS, max_new_tokens=10, **options)
        uncached = model.generate(TEXTS, max_new_tokens=10, use_cache=False, **options)
    assert cached == uncached
    assert cached != plain


def test_static_cache_and_sampling_agree_with_the_dynamic_cache() -> None:
    model = tiny_model("llama")
    with inject(model, make_valuation(model), LAM):
        dynamic = model.generate(TEXTS, max_new_tokens=10, do_sample=False)
        static = model.generate(
            TEXTS, max_new_tokens=10, do_sample=False, cache_implementation="static", disable_compile=True
        )
        samples = []
        for use_cache in (True, False):
            torch.manual_seed(0)
            samples.append(model.generate(TEXTS, max_new_tokens=10, do_sample=True, use_cache=use_cache))
    assert static == dynamic
    assert samples[0] == samples[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_strength_zero_is_the_untouched_model_to_the_last_bit(family: str) -> None:
    model = tiny_model(family, dtype=torch.float32)
    valuation, untouched = make_valuation(model), model.logits(TEXTS)
    for zero in (0.0, torch.tensor(0.0), torch.zeros(2), torch.zeros(2, model.n_heads)):
        with inject(model, valuation, zero):
            assert torch.equal(model.logits(TEXTS), untouched)


def test_strength_per_layer_and_per_head() -> None:
    model = tiny_model("llama")
    valuation, oracle = make_valuation(model), Oracle(model)
    strength = torch.randn(2, model.n_heads, generator=torch.Generator().manual_seed(1)).double()
    (ids,) = rows(model, TEXTS[:1])
    hand = by_hand(valuation)
    truth = oracle.logits(ids, {0: [(strength[0], hand[0][0][1])], 2: [(strength[1], hand[2][0][1])]})
    with inject(model, valuation, strength):
        assert relative(model.logits(TEXTS[0])[0], truth) < 1e-6
    truth = oracle.logits(ids, {0: [(2.0, hand[0][0][1])], 2: [(-1.0, hand[2][0][1])]})
    with inject(model, valuation, torch.tensor([2.0, -1.0])):
        assert relative(model.logits(TEXTS[0])[0], truth) < 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_one_strength_and_one_of_each_head_add_up_in_a_block(family: str) -> None:
    model = tiny_model(family)
    first, second, oracle = make_valuation(model, 1), make_valuation(model, 2, m=2), Oracle(model)
    heads = torch.linspace(-1.0, 2.0, model.n_heads).double()
    (ids,) = rows(model, TEXTS[:1])
    hand = {layer: both + by_hand(second, heads)[layer] for layer, both in by_hand(first).items()}
    truth = oracle.logits(ids, hand)
    placed = [*biases(model, first, LAM), *biases(model, second, heads.expand(2, -1))]
    for order in (placed, placed[::-1]):
        with model.intervene(*order):
            assert relative(model.logits(TEXTS[0])[0], truth) < 1e-6


def test_interventions_compose_in_one_block_and_nested() -> None:
    """Two valuations and an edit below them: valuations read the edited stream, and biases add up."""
    model = tiny_model("gpt_neox")
    first, second, oracle = (
        make_valuation(model, 1),
        make_valuation(model, 2, m=2, layers=(2,)),
        Oracle(model),
    )
    shift = torch.randn(model.d_model, generator=torch.Generator().manual_seed(3)).double()
    edit = ResidualEdit(2, lambda x: x + shift)
    (ids,) = rows(model, TEXTS[:1])
    both = by_hand(first)
    both[2] = both[2] + by_hand(second, -0.7)[2]
    truth = oracle.logits(ids, both, {2: lambda x: x + shift})
    together = [*biases(model, first, LAM), *biases(model, second, -0.7), edit]
    with model.intervene(*together):
        assert relative(model.logits(TEXTS[0])[0], truth) < 1e-6
    with inject(model, first, LAM), model.intervene(edit), inject(model, second, -0.7):
        assert relative(model.logits(TEXTS[0])[0], truth) < 1e-6
        assert relative(model.logits(TEXTS[0])[0], oracle.logits(ids, by_hand(first))) > 0.01


def test_emotion_embeddings_by_table_and_by_annotation() -> None:
    model = tiny_model("gpt2")
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(len(model.tokenizer), 2, generator=generator)
    weight = torch.randn(1, 3, model.d_model + 2, generator=generator) / 2
    by_table = Valuation(weight, torch.zeros(1, 3), ("a", "b", "c"), (1,), embedding=table)
    by_hand_e = Valuation(weight, torch.zeros(1, 3), ("a", "b", "c"), (1,))
    batch, oracle = model.tokenize(TEXTS), Oracle(model)
    with inject(model, by_table, LAM):
        looked_up = model.logits(TEXTS)
        text = model.generate(TEXTS, max_new_tokens=6, do_sample=False)
        assert text == model.generate(TEXTS, max_new_tokens=6, do_sample=False, use_cache=False)
    with inject(model, by_hand_e, LAM, emotions=table[batch.input_ids]):
        assert torch.equal(model.logits(TEXTS), looked_up)
    with inject(model, by_hand_e, LAM):
        assert not torch.allclose(model.logits(TEXTS), looked_up)
    (ids,) = rows(model, TEXTS[:1])

    def valuer(x: Tensor) -> Tensor:
        return torch.tanh(torch.cat([x, table[ids][None].double()], -1) @ weight[0].double().T)

    with inject(model, by_table, LAM):
        assert relative(model.logits(TEXTS[0])[0], oracle.logits(ids, {1: [(LAM, valuer)]})) < 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_weight_bias_and_strength(family: str) -> None:
    """And they are those of the independent computation."""
    model = tiny_model(family)
    plain, oracle = make_valuation(model), Oracle(model)
    batch, (ids,) = model.tokenize(TEXTS[0]), rows(model, TEXTS[:1])
    weight, bias = plain.weight.double().requires_grad_(), plain.bias.double().requires_grad_()
    lam = torch.tensor(LAM, dtype=torch.float64, requires_grad=True)
    valuation = Valuation(weight, bias, plain.dimensions, plain.layers)

    def grads(logits: Tensor) -> list[Tensor]:
        return list(
            torch.autograd.grad(
                logits.log_softmax(-1)[:-1].gather(-1, ids[1:, None]).sum(), [weight, bias, lam]
            )
        )

    with inject(model, valuation, lam):
        ours = grads(model.forward(batch)[0])

    def valuer(row: int):
        return lambda x: torch.tanh(x @ weight[row].T + bias[row])

    truth = grads(oracle.logits(ids, {0: [(lam, valuer(0))], 2: [(lam, valuer(1))]}))
    for one, other in zip(ours, truth, strict=True):
        assert relative(one, other) < 1e-5
        assert other.norm() > 0


def state(model: LiveModel) -> tuple:
    modules = list(model.underlying.modules())
    return (
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules],
        [id(getattr(m, "config", None)) for m in modules],
        [sorted(vars(m)) for m in modules],
        model.underlying.config.to_dict(),
        model.underlying.config._attn_implementation,
        model._interventions,
        set(model._hooked),
    )


class Breaks(Exception):
    pass


def test_the_model_is_what_it_was_after_any_way_out() -> None:
    model = tiny_model("llama", dtype=torch.float32)
    weights = copy.deepcopy(model.underlying.state_dict())
    before, untouched = state(model), model.logits(TEXTS)
    valuation = make_valuation(model)

    def broken(x: Tensor) -> Tensor:
        raise Breaks

    with inject(model, valuation, LAM):
        changed = model.logits(TEXTS)
    assert not torch.equal(changed, untouched)
    placed = biases(model, valuation, LAM)
    ways = [
        (Breaks, lambda: body_raises(model, valuation)),
        (Breaks, lambda: run_inside(model, [*placed, ResidualEdit(2, broken)])),
        (Breaks, lambda: run_inside(model, [*placed, AttentionBias(1, lambda x, f: broken(x))])),
        (InputError, lambda: run_inside(model, [*placed, ResidualEdit(99, broken)])),
        (Breaks, lambda: set_up_fails(model, valuation)),
    ]
    for error, way in ways:
        with pytest.raises(error):
            way()
        assert state(model) == before
        assert torch.equal(model.logits(TEXTS), untouched)
    for name, weight in model.underlying.state_dict().items():
        assert torch.equal(weight, weights[name])


def body_raises(model: LiveModel, valuation: Valuation) -> None:
    with inject(model, valuation, LAM):
        model.generate(TEXTS, max_new_tokens=2)
        raise Breaks


def run_inside(model: LiveModel, interventions: list) -> None:
    with model.intervene(*interventions):
        model.logits(TEXTS)


def set_up_fails(model: LiveModel, valuation: Valuation) -> None:
    """The second block cannot be hooked: what the first has got must go again."""
    block = model._blocks[2]

    def refuse(*args, **kwargs):
        raise Breaks

    block.register_forward_pre_hook = refuse
    try:
        with inject(model, valuation, LAM):
            raise AssertionError("set-up was to fail")
    finally:
        del block.register_forward_pre_hook


def test_a_cache_may_not_cross_the_border_of_the_block() -> None:
    model = tiny_model("gpt2")
    ids, valuation = model.tokenize(TEXTS[0]).input_ids, make_valuation(model)
    with torch.no_grad():
        outside = model.underlying(ids, use_cache=True).past_key_values
        with inject(model, valuation, LAM):
            with pytest.raises(InputError, match="filled outside the injection"):
                model.underlying(ids[:, :1], past_key_values=outside)
            inside = model.underlying(ids, use_cache=True).past_key_values
        with pytest.raises(InputError, match="filled inside an injection"):
            model.underlying(ids[:, :1], past_key_values=inside)


def test_a_bias_that_the_attention_never_asks_for_is_reported() -> None:
    model = tiny_model("llama")
    attention = model._blocks[0].self_attn
    bypass = lambda hidden_states, **kwargs: (hidden_states, None)  # noqa: E731
    attention.forward = bypass
    with (
        pytest.raises(RuntimeError, match=r"block 0 .* never asked"),
        inject(model, make_valuation(model), LAM),
    ):
        raise AssertionError("this was to be found before the block runs")


def test_right_padding_by_the_user_is_right_too() -> None:
    model = tiny_model("gpt_neox")
    valuation, left = make_valuation(model), model.tokenize(TEXTS)
    right_ids = torch.stack(
        [torch.cat([i[r], i[~r]]) for i, r in zip(left.input_ids, left.real, strict=True)]
    )
    right_mask = left.real.flip(-1)
    with torch.no_grad(), inject(model, valuation, LAM):
        ours = model.logits(TEXTS)
        theirs = model.underlying(input_ids=right_ids, attention_mask=right_mask.long()).logits
    for row, real in enumerate(left.real):
        assert torch.allclose(ours[row][real], theirs[row][right_mask[row]].float(), atol=1e-5)


def test_bad_input_is_named() -> None:
    model = tiny_model("llama")
    valuation = make_valuation(model)
    with pytest.raises(InputError, match="no learned λ"), inject(model, valuation):
        pass
    target = {valuation.dimensions[0]: 1.0}
    with pytest.raises(InputError, match=r"give strength= too"), inject(model, valuation, toward=target):
        pass
    with pytest.raises(InputError, match="has no layer 1"), inject(model, valuation, 1.0, layers=1):
        pass
    with (
        pytest.raises(InputError, match=r"block 7 does not exist: .*attention blocks 0 to 2"),
        inject(model, valuation, 1.0, layers=7),
    ):
        pass
    with pytest.raises(InputError, match=r"reads 16 numbers per token, .* width 32"):
        with inject(model, Valuation(torch.zeros(1, 3, 16), torch.zeros(1, 3), ("a", "b", "c"), (0,)), 1.0):
            pass
    wide = Valuation(
        torch.zeros(1, 1, 64), torch.zeros(1, 1), ("a",), (9,), centre=torch.zeros(1, 64)
    )  # of a model twice as wide: else the first half of each row would be read, as if the rest were for emotions
    with pytest.raises(InputError, match=r"width 64, .* width 32"), inject(model, wide, 1.0):
        pass
    for beyond in (float("nan"), 1e300):
        with pytest.raises(InputError, match="not a finite number"), inject(model, valuation, beyond):
            pass
    for strength in (torch.tensor(torch.nan), torch.tensor([1.0, torch.inf])):
        with pytest.raises(InputError, match="NaN or infinite"), inject(model, valuation, strength):
            pass
    with pytest.raises(InputError, match=r"blocks \[8\]"):
        with inject(model, Valuation(torch.zeros(1, 1, 32), torch.zeros(1, 1), ("a",), (8,)), 1.0):
            pass
