"""What heads, positions and MLPs add to the stream: equal to what the weights say, and refused where it cannot be told."""

import pytest
import torch
from families import family_model
from tiny import tiny_model
from torch import Tensor

from emoprobe import InputError
from emoprobe.models import LiveModel
from emoprobe.models.transformers_parts import patched, read_parts

TEXTS = ["The dog ran away again and we were sad.", "The dog ran away again and we were cad."]


def by_hand(model: LiveModel, text: str, stream: Tensor, index: int, direction: Tensor) -> Tensor:
    """Return weight × value × output projection along a direction, (heads, keys), from the weights themselves."""
    batch = model.tokenize(text)
    weights = model.attention(batch, [index])[1][0, 0, :, -1]  # (heads, keys)
    heads, width = 4, 8
    if "gpt2" in model.name:
        block = model.underlying.transformer.h[index]
        value = block.attn.c_attn(block.ln_1(stream)).split(32, dim=-1)[2]
        output = block.attn.c_proj.weight  # (in, out)
    else:
        block = model.underlying.model.layers[index]
        value = block.self_attn.v_proj(block.input_layernorm(stream))
        output = block.self_attn.o_proj.weight.T
    shared = heads * width // value.shape[-1]  # query heads to a key-value head
    found = torch.empty(heads, len(value), dtype=torch.float64)
    for head in range(heads):
        own = value[:, width * (head // shared) : width * (head // shared + 1)]
        found[head] = weights[head] * (own @ output[width * head : width * (head + 1)] @ direction)
    return found


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_contributions_of_heads_are_those_of_the_weights(family: str) -> None:
    model = tiny_model(family)
    generator = torch.Generator().manual_seed(1)
    directions = torch.randn(1, 32, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        parts = read_parts(model, model.tokenize(TEXTS[0]), 3)
        found, _ = parts.heads(directions)
        for index in range(3):
            expected = by_hand(model, TEXTS[0], parts.streams[index, 0], index, directions[0])
            assert torch.allclose(found[index, 0], expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
@pytest.mark.parametrize("layer", [1, 3])
def test_parts_add_up_to_the_stream(family: str, layer: int) -> None:
    model = tiny_model(family)
    batch = model.tokenize(TEXTS)
    assert batch.real.all()
    directions = torch.randn(2, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    parts = read_parts(model, batch, layer)
    summed = parts.streams[0] + parts.attention.sum(0) + parts.mlp.sum(0)
    assert torch.allclose(summed, parts.streams[layer], atol=1e-12)
    # The model's own attention takes its softmax in another precision.
    assert torch.allclose(summed, model.streams(batch, [layer])[0], atol=1e-5)
    by_head, constant = parts.heads(directions)
    whole = torch.einsum("lbd,bd->lb", parts.attention[:, :, -1], directions)
    assert torch.allclose(by_head.sum((-1, -2)) + constant, whole, atol=1e-12)
    assert torch.allclose(parts.attention, model.attention(batch, range(layer))[0], atol=1e-12)
    alone = read_parts(model, model.tokenize(TEXTS[1]), layer).heads(directions[1:])[0]
    assert torch.allclose(by_head[:, 1:], alone, atol=1e-12)


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model("llama", dtype=torch.float32)
    before = model.logits(TEXTS)
    config = model.underlying.model.layers[0].self_attn.config
    read_parts(model, model.tokenize(TEXTS), 2)
    assert torch.equal(model.logits(TEXTS), before)
    assert model.underlying.model.layers[0].self_attn.config is config
    assert not any(module._forward_hooks for module in model.underlying.modules())
    assert not any(module._forward_pre_hooks for module in model.underlying.modules())


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
def test_a_part_is_replaced_where_it_is_asked_to_be(family: str) -> None:
    model = tiny_model(family)
    one, other = (model.tokenize(text) for text in TEXTS)
    parts, donor = read_parts(model, one, 3), read_parts(model, other, 3)
    positions = torch.zeros(1, parts.streams.shape[2], dtype=torch.bool)
    positions[:, -3] = True
    for kind, given in (("attention", donor.attention), ("mlp", donor.mlp)):
        with torch.no_grad(), patched(getattr(parts.blocks[1], kind), given[1], positions):
            after = model.streams(one, [1, 2])
        own = parts.attention if kind == "attention" else parts.mlp
        added = after[1] - after[0]
        before = parts.streams[2] - parts.streams[1]
        assert torch.allclose(after[0], parts.streams[1], atol=1e-5)
        assert torch.allclose(added[:, :-3], before[:, :-3], atol=1e-5)
        if kind == "mlp" or family == "gpt_neox":  # nothing in the block comes after it
            expected = before[:, -3] - own[1][:, -3] + given[1][:, -3]
            assert torch.allclose(added[:, -3], expected, atol=1e-5)
        assert not torch.allclose(added[:, -3], before[:, -3])
    assert torch.allclose(model.streams(one, [3])[0], parts.streams[3], atol=1e-5)


@pytest.mark.parametrize("name", ["Qwen3", "Mixtral", "StarCoder (GPT-BigCode)", "Phi-3", "ModernBERT"])
def test_other_families_add_up(name: str) -> None:
    model = family_model(name)
    parts = read_parts(model, model.tokenize(TEXTS[0]), 3)  # which checks itself
    assert parts.weights[0].shape[1] == 4


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("GPT-J", "GPTJAttention"),
        ("Gemma 2", "Gemma2Attention"),
        ("OLMo 2", "Olmo2DecoderLayer"),
        ("DiffLlama", "DiffLlamaAttention"),
        ("BERT", "BertSelfAttention"),
    ],
)
def test_families_whose_heads_cannot_be_read_are_named(name: str, said: str) -> None:
    model = family_model(name)
    with pytest.raises(InputError, match=said):
        read_parts(model, model.tokenize(TEXTS[0]), 2)


def test_padding_and_the_embedding_are_refused() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(InputError, match="without padding"):
        read_parts(model, model.tokenize(["We were sad.", "We were."]), 2)
    with pytest.raises(InputError, match="layers 1 to 3"):
        read_parts(model, model.tokenize("We were sad."), 0)
