"""The emotion stream against an independent float64 computation: padding, cache, gradients, clean-up, files."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from backends import load, saved
from oracle import Oracle
from tiny import FAMILIES, HEADS, WIDTH, tiny_model
from torch import Tensor
from transformers import DynamicCache

from emoprobe.errors import InputError
from emoprobe.interventions import Forward, ResidualEdit
from emoprobe.models import LiveModel
from emoprobe.valattn import EmotionStream, Valuation, biases, inject
from emoprobe.valattn.embeddings import emotions_of_pass

TEXTS = [
    "I am so glad that you came!",
    "The dog",
    "They were afraid of the dark and of the letter, but laughing.",
]
LAM = 1.5
E, HIDDEN = 3, 5
GREEDY = {"max_new_tokens": 10, "do_sample": False}


def make_stream(
    layers: tuple[int, ...] = (0, 1, 2), coupled: bool = True, table: bool = False
) -> EmotionStream:
    """Return a stream of random tensors, all of which matter."""
    g = torch.Generator().manual_seed(0)
    count = len(layers)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).float()

    weight = torch.cat([drawn(count, 2, WIDTH) / 4, drawn(count, 2, E)], -1)
    valuation = Valuation(
        weight, drawn(count, 2) / 4, ("a", "b"), layers, embedding=drawn(330, E) if table else None
    )
    updates = count - 1
    squares = (drawn(updates, E, E) for _ in range(3))
    inner = drawn(updates, HIDDEN, WIDTH + E) / 3
    stream = EmotionStream(
        valuation, *squares, inner, drawn(updates, HIDDEN), drawn(updates, E, HIDDEN), drawn(updates, E)
    )
    return stream if coupled else stream.uncoupled()


def by_hand(stream: EmotionStream, ids: Tensor, strength: float | Tensor = LAM) -> dict[int, list]:
    """The same biases for one text without padding, position by position and number by number."""
    wide = {name: tensor.double() for name, tensor in stream.tensors.items()}
    held: dict[str, Tensor] = {}
    strengths = torch.as_tensor(strength, dtype=torch.float64).expand(len(stream.valuation.layers))

    def valuer(row: int):
        def values(x: Tensor) -> Tensor:
            if row == 0:
                table = wide.get("embedding")
                held["e"] = torch.zeros(len(ids), E).double() if table is None else table[ids]
            e = held["e"]
            both = torch.cat([x[0], e], -1)
            if row < len(stream.query):
                held["e"] = torch.stack([step(row, x[0], e, i) for i in range(len(ids))])
            return torch.tanh(both @ wide["weight"][row].T + wide["bias"][row])[None]

        return values

    def step(row: int, x: Tensor, e: Tensor, i: int) -> Tensor:
        query = wide["query"][row] @ e[i]
        scores = torch.stack([query @ (wide["key"][row] @ e[j]) / math.sqrt(E) for j in range(i + 1)])
        weights = scores.exp() / scores.exp().sum()
        heard = e[i] + sum(weights[j] * (wide["value"][row] @ e[j]) for j in range(i + 1))
        if stream.coupled:
            centred = x[i] - x[i].mean()
            heard = torch.cat([centred / torch.sqrt((centred**2).mean() + 1e-5), heard])
        pre = wide["inner"][row] @ heard + wide["inner_bias"][row]
        hidden = pre * 0.5 * (1 + torch.erf(pre / math.sqrt(2)))
        return e[i] + wide["outer"][row] @ hidden + wide["outer_bias"][row]

    return {layer: [(strengths[row], valuer(row))] for row, layer in enumerate(stream.valuation.layers)}


def relative(ours: Tensor, truth: Tensor) -> float:
    return float((ours.double() - truth).norm() / truth.norm())


def rows(model: LiveModel) -> list[Tensor]:
    batch = model.tokenize(TEXTS)
    return [ids[real] for ids, real in zip(batch.input_ids, batch.real, strict=True)]


@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_prefill_equals_the_independent_computation(family: str, coupled: bool) -> None:
    """Padded and alone, with and without a table of e₀, through all blocks and through some."""
    model = tiny_model(family, dtype=torch.float32)
    oracle = Oracle(model)
    for stream in (make_stream(coupled=coupled), make_stream((1, 2), coupled, table=True)):
        with inject(model, stream, LAM):
            padded = model.logits(TEXTS)
            single = [model.logits(text)[0] for text in TEXTS]
        with inject(model, stream.valuation, LAM):
            plain = model.logits(TEXTS)
        for row, ids in enumerate(rows(model)):
            truth = oracle.logits(ids, by_hand(stream, ids))
            assert relative(padded[row, -len(ids) :], truth) < 1e-5
            assert relative(single[row], truth) < 1e-5
            if len(ids) > 4:  # and what is carried does something
                assert relative(plain[row, -len(ids) :], truth) > 0.003


def test_strengths_by_layer_and_blocks_that_do_not_feel_the_stream() -> None:
    """Where λ is 0 e is carried on all the same; blocks that nothing follows are left alone."""
    model, stream = tiny_model("llama"), make_stream()
    oracle, ids = Oracle(model), rows(model)[2]
    lam = torch.tensor([0.0, -1.0, 2.0]).double()
    truth = oracle.logits(ids, by_hand(stream, ids, lam))
    with inject(model, stream, lam):
        assert relative(model.logits(TEXTS[2])[0], truth) < 1e-6
    only = oracle.logits(ids, by_hand(stream, ids, torch.tensor([0.0, 0.0, LAM])))
    with inject(model, stream, LAM, layers=[2]):
        assert relative(model.logits(TEXTS[2])[0], only) < 1e-6
    placed = biases(model, stream, torch.tensor([0.0, 1.0, 0.0]))
    assert [bias.is_zero for bias in placed] == [False, False, True]
    untouched = model.logits(TEXTS)
    with inject(model, stream, torch.zeros(3, HEADS)):
        assert torch.equal(model.logits(TEXTS), untouched)


def test_what_carries_nothing_is_the_plain_valuation() -> None:
    model = tiny_model("gpt_neox", dtype=torch.float32)
    plain = make_stream(table=True).valuation
    start = EmotionStream.start(plain, WIDTH, seed=1)
    assert start.width == E and start.coupled
    with inject(model, plain, LAM):
        expected = model.logits(TEXTS)
    for stream in (start, start.uncoupled()):
        with inject(model, stream, LAM):
            assert torch.equal(model.logits(TEXTS), expected)
    without = replace(plain, weight=plain.weight[..., :WIDTH], embedding=None)
    wider = EmotionStream.start(without, WIDTH, width=4)
    with inject(model, without, LAM):
        expected = model.logits(TEXTS)
    with inject(model, wider, LAM):
        assert torch.equal(model.logits(TEXTS), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"num_beams": 3, "num_return_sequences": 2},
        {"num_return_sequences": 2, "do_sample": True, "top_k": 5},
        {"cache_implementation": "static", "disable_compile": True},
        {"prompt_lookup_num_tokens": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("backend", ["transformers", "transformer_lens", "nnsight"])
def test_cached_generation_is_uncached_generation(backend: str, options: dict) -> None:
    pytest.importorskip(backend)
    model, stream = load(saved("llama"), backend), make_stream()
    texts = TEXTS[2:] if "prompt_lookup_num_tokens" in options else TEXTS
    same = {key: value for key, value in options.items() if key.startswith(("num", "do", "top"))}
    with inject(model, stream, LAM):
        torch.manual_seed(0)
        cached = model.generate(texts, **{**GREEDY, **options})
        torch.manual_seed(0)
        uncached = model.generate(texts, **{**GREEDY, **same}, use_cache=False)
    with inject(model, stream.valuation, LAM):
        torch.manual_seed(0)
        plain = model.generate(texts, **{**GREEDY, **same})
    assert cached == uncached != plain


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("texts", [TEXTS[2:], TEXTS], ids=["alone", "padded"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_static_cache_gives_the_logits_of_no_cache(family: str, texts: list[str], attention: str) -> None:
    """Its unfilled slots are not attended to, and padding is known from the mask that generation has expanded."""
    model, stream = tiny_model(family, dtype=torch.float32), make_stream()
    model.underlying.set_attn_implementation(attention)
    batch = model.tokenize(texts)

    def logits(**options: Any) -> Tensor:
        result = model.underlying.generate(
            batch.input_ids,
            attention_mask=batch.real.long(),
            pad_token_id=model.pad_token_id,
            max_new_tokens=5,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
            **options,
        )
        return torch.stack(result.logits)

    with torch.no_grad(), inject(model, stream, LAM):
        expected = logits(use_cache=False)
        for _ in range(2):  # transformers keeps the cache and takes it again
            found = logits(cache_implementation="static", disable_compile=True)
            assert relative(found, expected.double()) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_every_step_of_cached_generation_and_chunked_prefill_equal_the_independent_computation(
    family: str,
) -> None:
    model, stream = tiny_model(family, dtype=torch.float32), make_stream(table=True)
    oracle, batch = Oracle(model), model.tokenize(TEXTS)
    width = batch.input_ids.shape[1]
    given = dict(attention_mask=batch.real.long(), pad_token_id=model.pad_token_id, do_sample=False)
    with inject(model, stream, LAM), torch.no_grad():
        result = model.underlying.generate(
            input_ids=batch.input_ids,
            max_new_tokens=5,
            output_logits=True,
            return_dict_in_generate=True,
            **given,
        )
        cut = width - 4
        first = model.underlying(
            batch.input_ids[:, :cut],
            attention_mask=batch.real[:, :cut].long(),
            past_key_values=DynamicCache(),
        )
        second = model.underlying(
            batch.input_ids[:, cut:],
            attention_mask=batch.real.long(),
            position_ids=batch.position_ids[:, cut:],
            past_key_values=first.past_key_values,
        )
    for row, real in enumerate(batch.real):
        pads = int((~real).sum())
        for step, logits in enumerate(result.logits):
            ids = result.sequences[row, pads : width + step]
            truth = oracle.logits(ids, by_hand(stream, ids))
            assert relative(logits[row], truth[-1]) < 1e-5
            if (
                step == 0 and not pads
            ):  # positions of a text cut in the middle of padding are numbered otherwise
                assert relative(second.logits[row], truth[-4:]) < 1e-5


def test_what_a_model_computes_at_padding_does_not_spread() -> None:
    stream = make_stream()
    x = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(4))
    forward = Forward(torch.tensor([[False, False, True, True, True], [True] * 5]), prompt_length=5)
    found = []
    for value in (0.0, torch.nan):
        valuers = stream.valuers(emotions_of_pass(None, None), 3)
        found.append(
            [values(x.where(forward.real[..., None], value), forward)[forward.real] for values in valuers]
        )
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_two_streams_keep_their_pasts_apart_and_edits_come_first() -> None:
    model, first = tiny_model("llama"), make_stream()
    second = first.with_tensors({"outer": -first.outer, "weight": first.valuation.weight.flip(1)})
    shift = torch.randn(WIDTH, generator=torch.Generator().manual_seed(3)).double()
    edit = ResidualEdit(1, lambda x: x + shift)
    ids = rows(model)[2]
    both = by_hand(first, ids)
    for layer, pairs in by_hand(second, ids, -0.7).items():
        both[layer] = both[layer] + pairs
    truth = Oracle(model).logits(ids, both, {1: lambda x: x + shift})
    with inject(model, first, LAM), model.intervene(edit), inject(model, second, -0.7):
        assert relative(model.logits(TEXTS[2])[0], truth) < 1e-6
        cached = model.generate(TEXTS, **GREEDY)
        assert cached == model.generate(TEXTS, use_cache=False, **GREEDY)


def test_backends_agree() -> None:
    pytest.importorskip("transformer_lens")
    pytest.importorskip("nnsight")
    stream, found = make_stream(table=True), []
    for backend in ("transformers", "transformer_lens", "nnsight"):
        model = load(saved("gpt_neox"), backend)
        with inject(model, stream, LAM):
            found.append((model.logits(TEXTS)[model.tokenize(TEXTS).real], model.generate(TEXTS, **GREEDY)))
    for logits, text in found[1:]:
        assert (logits - found[0][0]).abs().max() < 1e-4
        assert text == found[0][1]


def test_nnsight_edits_carry_the_stream() -> None:
    pytest.importorskip("nnsight")
    model, stream = load(saved("llama"), "nnsight"), make_stream()
    with inject(model, stream, LAM):
        expected, text = model.logits(TEXTS[2])[0], model.generate(TEXTS[2], **GREEDY)
    edited = model.edited(*biases(model, stream, LAM))
    with pytest.warns(UserWarning), edited.trace(TEXTS[2]):
        logits = edited.output.logits.save()
    assert torch.allclose(logits[0], expected, atol=1e-4)
    with (
        pytest.warns(UserWarning),
        edited.generate(TEXTS[2], pad_token_id=model.pad_token_id, **GREEDY) as tracer,
    ):
        ids = tracer.result.save()
    assert model.tokenizer.decode(ids[0], skip_special_tokens=True).endswith(text)


@pytest.mark.parametrize("coupled", [True, False])
def test_gradients_are_those_of_the_independent_computation(coupled: bool) -> None:
    model, plain = tiny_model("gpt2"), make_stream(coupled=coupled, table=True)
    ids = rows(model)[2]
    leaves = {name: tensor.double().requires_grad_() for name, tensor in plain.tensors.items()}
    stream, oracle, batch = plain.with_tensors(leaves), Oracle(model), model.tokenize(TEXTS[2])

    def grads(logits: Tensor) -> dict[str, Tensor]:
        loss = logits.log_softmax(-1)[:-1].gather(-1, ids[1:, None]).sum()
        return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))

    model.underlying.requires_grad_(False)
    with inject(model, stream, LAM):
        ours = grads(model.forward(batch)[0])
    truth = grads(oracle.logits(ids, by_hand(stream, ids)))
    for name in leaves:
        assert truth[name].norm() > 0, name
        assert relative(ours[name], truth[name]) < 1e-5, name
    assert set(leaves) == {
        "weight",
        "bias",
        "embedding",
        *"query key value inner inner_bias outer outer_bias".split(),
    }


def test_the_model_is_what_it_was_and_the_stream_starts_anew_after_an_exception() -> None:
    model, stream = tiny_model("llama", dtype=torch.float32), make_stream()
    untouched = model.logits(TEXTS)

    class Breaks(Exception):
        pass

    def broken(x: Tensor) -> Tensor:
        raise Breaks

    with inject(model, stream, LAM):
        expected = model.logits(TEXTS)
        with pytest.raises(Breaks), model.intervene(ResidualEdit(2, broken)):
            model.logits(TEXTS)
        assert torch.equal(model.logits(TEXTS), expected)
    assert not torch.equal(expected, untouched)
    assert torch.equal(model.logits(TEXTS), untouched)
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.underlying.modules())
    assert hooks == 0


def test_a_cache_of_outside_is_refused() -> None:
    """By what is carried too, where the block that takes it feels nothing."""
    model, stream = tiny_model("gpt2"), make_stream()
    ids = model.tokenize(TEXTS[0]).input_ids
    with torch.no_grad():
        with inject(model, stream, LAM):
            inside = model.underlying(ids, past_key_values=DynamicCache()).past_key_values
            model.underlying(ids[:, :1], past_key_values=inside)
        with inject(model, stream, LAM), pytest.raises(InputError, match="filled outside the injection"):
            model.underlying(ids[:, :1], past_key_values=inside)  # another run, which remembers nothing of it
        outside = model.underlying(ids, use_cache=True).past_key_values
        with inject(model, stream, LAM), pytest.raises(InputError, match="filled outside the injection"):
            model.underlying(ids[:, :1], past_key_values=outside)


def test_saved_and_loaded_streams_are_the_same(tmp_path: Path) -> None:
    for stream in (make_stream(table=True), make_stream((1, 2), coupled=False)):
        path = stream.save(tmp_path / "stream.safetensors")
        loaded = EmotionStream.load(path)
        assert loaded.tensors.keys() == stream.tensors.keys()
        assert all(torch.equal(tensor, loaded.tensors[name]) for name, tensor in stream.tensors.items())
        assert loaded.valuation.record == stream.valuation.record and loaded.coupled == stream.coupled
    with pytest.raises(InputError, match="holds a emotion stream, not a valuation"):
        Valuation.load(path)
    plain = stream.valuation.save(tmp_path / "plain.safetensors")
    with pytest.raises(InputError, match="not a emotion stream"):
        EmotionStream.load(plain)


def test_what_does_not_fit_is_named() -> None:
    stream = make_stream()
    with pytest.raises(InputError, match=r"consecutive blocks, but its valuation has \[0, 2\]"):
        make_stream((0, 2))
    with pytest.raises(InputError, match=r"3 blocks needs outer \(2, 3, 5\), not \(2, 3, 4\)"):
        replace(stream, outer=stream.outer[..., :4])
    with pytest.raises(InputError, match=r"needs inner \(2, 5, 35\), not \(2, 5, 30\)"):
        replace(stream, inner=stream.inner[..., :30])
    model = tiny_model("gpt2")
    with pytest.raises(InputError, match=r"widths \[2, 3\]"):
        biases(model, stream, LAM, emotions=torch.zeros(1, 4, 2))
