"""Live models: what is captured, tokenised, generated and refused."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracle import Oracle
from tiny import FAMILIES, tiny_model, tiny_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, OpenAIGPTConfig

import emoprobe
from emoprobe.activations import WINDOW, capture, stream_residuals
from emoprobe.errors import InputError
from emoprobe.interventions import AttentionBias, ResidualEdit, overlapping
from emoprobe.layers import resolve_layers
from emoprobe.models import LiveModel, load_model, wrap
from emoprobe.models.live import Tokens
from emoprobe.models.reference import PASSAGES
from emoprobe.probes.tokens import TokenMeans
from emoprobe.scoring import text_nll

TEXTS = ["I am so glad that you came!", "The dog", "They were afraid of the dark and of the letter.", "calm"]


def hidden_states(model: LiveModel, text: str) -> list[Tensor]:
    """The model's own record; its last entry comes after the final norm."""
    batch = model.tokenize(text)
    with torch.no_grad():
        return list(model.underlying(batch.input_ids, output_hidden_states=True).hidden_states)


@pytest.mark.parametrize("family", FAMILIES)
def test_captured_streams_are_the_model_s_own(family: str) -> None:
    model = tiny_model(family)
    norm = Oracle(model)._norm()
    streams = next(stream_residuals(model, TEXTS[:1])).stream[:, 0]
    own = hidden_states(model, TEXTS[0])
    for layer in range(model.n_layers):
        assert torch.equal(streams[layer], own[layer][0])
    assert not torch.allclose(streams[-1], own[-1][0])
    assert torch.allclose(norm(streams[-1]), own[-1][0])


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_batching_and_order_change_nothing(family: str) -> None:
    model = tiny_model(family)
    model.tokenizer.padding_side = "right"  # ours does not depend on it
    for pool in ("mean", "last"):
        one = capture(model, TEXTS, pool=pool, batch_size=1)
        together = capture(model, TEXTS, pool=pool, batch_size=32)
        backwards = capture(model, TEXTS[::-1], pool=pool, batch_size=3).flip(0)
        assert torch.allclose(one, together, atol=1e-5) and torch.allclose(one, backwards, atol=1e-5)
    for row, text in enumerate(TEXTS):
        own = torch.stack(hidden_states(model, text)[:-1])[:, 0]
        assert torch.allclose(capture(model, TEXTS, pool="last")[row, :-1], own[:, -1].float(), atol=1e-5)
        # The mean leaves out the first token, unless it is the only one.
        kept = own[:, 1:] if own.shape[1] > 1 else own
        assert torch.allclose(capture(model, TEXTS)[row, :-1], kept.mean(1).float(), atol=1e-5)
        late = own[:, min(5, own.shape[1] - 1) :].mean(1)
        assert torch.allclose(capture(model, TEXTS, start=5)[row, :-1], late.float(), atol=1e-5)


def test_texts_of_about_as_many_tokens_are_read_together() -> None:
    model = tiny_model("gpt2")
    # Many characters need not be many tokens.
    texts = [text for n in range(1, 9) for text in ("the sun " * n, "\N{GRINNING FACE}" * n)]
    lengths = model.tokenize(texts).real.sum(1)
    assert sorted(range(16), key=lambda row: len(texts[row])) != lengths.argsort(stable=True).tolist()
    batches = list(stream_residuals(model, texts, [0], batch_size=4))
    rows = [row for part in batches for row in part.indices]
    assert sorted(rows) == list(range(16)) and lengths[rows].diff().min() >= 0
    assert [part.batch.real.shape[1] for part in batches] == [
        int(lengths[rows[last]]) for last in (3, 7, 11, 15)
    ]
    assert all(part.batch.texts == tuple(texts[row] for row in part.indices) for part in batches)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_told_prompt_by_prompt_stays_with_its_prompt(dtype: torch.dtype) -> None:
    model = tiny_model("llama", dtype=dtype)
    texts = ["They were afraid of the dark.", "The dog", "I am so glad that you came!"]  # not by length
    spans = [[(0, 4)], [(4, 7)], [(5, 12), (20, 24)]]

    def edit(positions: Any) -> ResidualEdit:
        return ResidualEdit(1, lambda stream: stream + 1, positions=positions)

    alone, nll = [], []
    for text, own in zip(texts, spans, strict=True):
        with model.intervene(edit(own)):
            alone.append(model.capture([text]))
            nll.append(text_nll(model, [text])[0])
    with model.intervene(edit(spans)):
        assert torch.allclose(model.capture(texts), torch.cat(alone), atol=1e-5)
        assert torch.allclose(text_nll(model, texts)[0], torch.cat(nll), atol=1e-4)
        with pytest.raises(InputError, match="spans for 3 texts, but 2 were given"):
            model.capture(texts, batch_size=2)
    mask = position_mask_of(model, texts, spans)
    with model.intervene(edit(mask)):
        assert torch.allclose(model.capture(texts), torch.cat(alone), atol=1e-5)


def position_mask_of(model: LiveModel, texts: list[str], spans: list[list[tuple[int, int]]]) -> Tensor:
    batch = model.tokenize(texts)
    mask = torch.zeros(batch.real.shape, dtype=torch.bool)
    for row, (tokens, own) in enumerate(zip(model.token_spans(batch), spans, strict=True)):
        mask[row, overlapping(tokens, own)] = True
    return mask


def test_half_precision_is_pooled_in_single() -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    texts = [" ".join(TEXTS), TEXTS[2]]
    (part,) = stream_residuals(model, texts)
    counted = part.counted(1)
    for pool in ("mean", TokenMeans("mean")):
        for row, index in enumerate(part.indices):
            exact = torch.stack([stream[row, counted[row]].double().mean(0) for stream in part.by_layer])
            torch.testing.assert_close(
                model.capture(texts, "all", pool)[index].double(), exact, rtol=1e-5, atol=1e-6
            )


def test_texts_are_counted_over_all_that_were_given() -> None:
    model = tiny_model("gpt2")
    texts = [f"the {n}" for n in range(4 * WINDOW + 20)]
    texts[4 * WINDOW + 9] = " "
    with pytest.raises(InputError, match=f"text {4 * WINDOW + 9} is empty"):
        model.capture(texts, batch_size=4)
    with pytest.raises(InputError, match=f"text {4 * WINDOW + 9} is empty"):
        text_nll(model, texts)


def test_a_token_that_the_model_does_not_know_is_told_with_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gpt2")
    monkeypatch.setattr(type(model), "vocabulary_size", 0)
    with pytest.raises(InputError, match="text 7 has token"):
        model.encode(["a", "b"], first=7)


def test_of_long_texts_few_are_tokenised_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, texts = tiny_model("gpt2"), [f"{n} " * (1 + n % 7) for n in range(40)]
    whole, encode, at_once = model.capture(texts, batch_size=4), model.encode, []

    def watched(texts: Sequence[str], **options: Any) -> list[Tokens]:
        at_once.append((len(texts), options["first"]))
        return encode(texts, **options)

    monkeypatch.setattr(model, "encode", watched)
    monkeypatch.setattr("emoprobe.activations.AT_ONCE", 60)
    assert torch.allclose(model.capture(texts, batch_size=4), whole, atol=1e-6)
    assert len(at_once) > 4 and all(count in (4, 8) for count, _ in at_once)
    assert [first for _, first in at_once] == np.cumsum([0, *(count for count, _ in at_once)])[:-1].tolist()
    with pytest.raises(InputError, match="text 33 is empty"):
        model.capture([*texts[:33], " ", *texts[34:]], batch_size=4)


def test_blocks_may_return_lists() -> None:
    sizes = dict(vocab_size=330, n_positions=64, n_embd=32, n_layer=3, n_head=4, initializer_range=0.5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = wrap(AutoModelForCausalLM.from_config(OpenAIGPTConfig(**sizes)).eval(), tiny_tokenizer())
    own, logits = hidden_states(model, TEXTS[0]), model.logits(TEXTS[0])
    streams = next(stream_residuals(model, TEXTS[:1])).stream[:, 0]
    assert torch.allclose(streams, torch.stack(own)[:, 0], atol=1e-5)
    with model.intervene(ResidualEdit(3, lambda x: 2 * x)):  # there is no final norm
        assert torch.allclose(model.logits(TEXTS[0]), 2 * logits, atol=1e-4)
    with model.intervene(AttentionBias(1, lambda x, _: x[..., :2], 1.0)):
        assert not torch.allclose(model.logits(TEXTS[0]), logits, atol=1e-2)


def test_the_pass_stops_at_the_deepest_layer_asked_for() -> None:
    model = tiny_model("llama")
    ran: list[int] = []
    for index, block in enumerate(model._blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    for layers, blocks in [([0], []), ([1, 0], [0]), (2, [0, 1]), ("all", [0, 1, 2])]:
        ran.clear()
        assert capture(model, TEXTS[:1], layers).shape[1] == len(resolve_layers(layers, 3))
        assert ran == blocks
    # ... in the order asked for
    everything = capture(model, TEXTS)
    assert torch.equal(capture(model, TEXTS, [2, 0, -1]), everything[:, [2, 0, 3]])


def test_texts_are_streamed() -> None:
    model, drawn = tiny_model(), []

    def endless():
        while True:
            drawn.append("The dog was happy")
            yield drawn[-1]

    stream = stream_residuals(model, endless(), 0, batch_size=2)
    assert next(stream).indices == (0, 1)
    assert len(drawn) == 2 * WINDOW


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_a_padded_batch_are_those_of_each_text(family: str) -> None:
    model = tiny_model(family, dtype=torch.float32)
    oracle, logits, batch = Oracle(model), model.logits(TEXTS), model.tokenize(TEXTS)
    assert logits.dtype == torch.float32
    for row, (ids, real) in enumerate(zip(batch.input_ids, batch.real, strict=True)):
        assert torch.allclose(logits[row][real].double(), oracle.logits(ids[real]), atol=1e-4)


def test_generate_gives_back_what_it_was_given() -> None:
    model = tiny_model("gpt2")
    single, several = (
        model.generate("The dog", max_new_tokens=5),
        model.generate(["The dog"], max_new_tokens=5),
    )
    assert isinstance(single, str) and several == [single]
    both = model.generate(["The dog", "calm"], max_new_tokens=5, do_sample=True, num_return_sequences=3)
    assert len(both) == 6
    assert model.generate(["calm", "The dog"], max_new_tokens=5, do_sample=False)[1] == model.generate(
        "The dog", max_new_tokens=5, do_sample=False
    )


@pytest.mark.parametrize(("family", "strength"), [("llama", 1e30), ("llama", 1e38), ("gpt2", 1e38)])
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"do_sample": True}, {"min_new_tokens": 2}])
def test_a_model_pushed_out_of_all_bounds_writes_nothing(
    family: str, strength: float, options: dict[str, object]
) -> None:
    """Sums of squares overflow, and logits are all 0 or NaN, of which the likeliest token would be the first of all."""
    model = tiny_model(family, dtype=torch.float32)
    with model.intervene(ResidualEdit(1, lambda stream: strength * (stream + 1))):
        with pytest.raises(InputError, match=r"prefers no token.*lower the strength"):
            model.generate(["The dog", "calm"], max_new_tokens=3, **options)
        with pytest.raises(InputError, match="prefers no token"):  # nor where candidates are tried out first
            model.generate("the dog and the dog and the", max_new_tokens=3, prompt_lookup_num_tokens=2)
    assert model.generate("The dog", max_new_tokens=3)


def test_a_users_own_logits_processors_are_asked_too() -> None:
    def only(ids: Tensor, logits: Tensor) -> Tensor:
        return torch.full_like(logits, -torch.inf).index_fill(1, torch.tensor(65), 0)

    model = tiny_model("gpt2")
    found = model.generate("The dog", max_new_tokens=3, logits_processor=[only], do_sample=False)
    assert found == model.tokenizer.decode([65] * 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_logit_lens_folds_in_what_the_final_norm_does_to_a_direction(family: str) -> None:
    model = tiny_model(family)
    norm, head = Oracle(model)._norm(), model.underlying.get_output_embeddings()
    direction = torch.randn(2, model.d_model, generator=torch.Generator().manual_seed(0)) + 1
    seen = direction if family == "llama" else direction - direction.mean(-1, keepdim=True)
    expected = (seen * norm.weight.float()) @ head.weight.float().T
    assert torch.allclose(model.logit_lens(direction), expected, atol=1e-4)
    raw = direction @ head.weight.float().T
    assert torch.allclose(model.logit_lens(direction, folded=False), raw, atol=1e-4)
    assert not torch.allclose(expected, raw, atol=1e-2)


def test_fingerprint_tells_models_apart() -> None:
    model = tiny_model()
    same, other = copy.deepcopy(model.underlying), copy.deepcopy(model.underlying)
    with torch.no_grad():
        next(iter(other.parameters())).add_(1e-3)
    assert wrap(same, model.tokenizer).fingerprint() == model.fingerprint()
    assert wrap(other, model.tokenizer).fingerprint() != model.fingerprint()
    assert (
        wrap(same, tiny_tokenizer(start=True)).fingerprint() == model.fingerprint()
    )  # the vocabulary is the same


def test_residual_norms_leave_out_padding_and_first_tokens() -> None:
    model = tiny_model("llama")
    norms = model.residual_norms()
    total, count = torch.zeros(4, dtype=torch.float64), 0
    for text in PASSAGES:
        ids = model.tokenizer(text, return_tensors="pt")["input_ids"][:, : model.context_length]
        stream = next(stream_residuals(model, [text])).stream[:, 0, -ids.shape[1] :]
        total += stream[:, 1:].norm(dim=-1).sum(-1)
        count += ids.shape[1] - 1
    assert torch.allclose(norms, (total / count).float(), rtol=1e-4)


def test_layers_have_one_name() -> None:
    assert resolve_layers("all", 12) == tuple(range(13))
    assert resolve_layers("all", 12, blocks=True) == tuple(range(12))
    assert (
        resolve_layers(0.66, 12) == (8,)
        and resolve_layers(1.0, 12) == (12,)
        and resolve_layers(1, 12) == (1,)
    )
    assert resolve_layers(1.0, 12, blocks=True) == (11,)
    assert resolve_layers([-1, 0.5, 6], 12) == (12, 6) and resolve_layers(slice(2, 5), 12) == (2, 3, 4)
    for wrong in (13, -14, 1.5, "mid", [], True, None, float("nan")):
        with pytest.raises(InputError):
            resolve_layers(wrong, 12)


def test_bad_input_is_named(tmp_path: Path) -> None:
    model = tiny_model()
    long = "The dog was happy. " * 100
    for call, words in [
        (lambda: load_model(tmp_path / "nothing"), r'no folder ".*nothing": check the path'),
        (lambda: load_model(tmp_path), r"holds no model, for there is no config\.json in it"),
        (lambda: load_model("bundled", backend="jax"), 'backend="jax"'),
        (lambda: wrap(object()), "cannot wrap a object"),
        (lambda: wrap(model.underlying), "tokenizer"),
        (lambda: wrap(copy.deepcopy(model.underlying).train(), model.tokenizer), "training mode"),
        (lambda: model.logits(["a", " "]), "text 1 is empty"),
        (lambda: model.logits([]), "no text"),
        (lambda: model.logits(["a", 3]), "text 1 is a int"),
        (lambda: model.logits(["a", long]), "text 1 has .* tokens, .* at most"),
        (lambda: model.capture(TEXTS, 9), "layer 9 does not exist: this model has layers 0 to 3"),
        (lambda: model.capture(TEXTS, pool="max"), 'pool="max"'),
        (lambda: model.capture(["a", None]), "text 1 is a NoneType"),
        (lambda: model.capture("hello"), "texts is one string"),
        (lambda: model.capture(["a", "b", "\ud800"]), "text 2 holds a surrogate"),
        (lambda: model.capture(TEXTS, batch_size=0), "batch_size=0"),
        (
            lambda: model.capture(TEXTS, pool=lambda x, counted: x),
            r"pool= gave \(4, 4, \d+, 32\): it has to give",
        ),
        (lambda: model.capture(TEXTS, pool=lambda x, counted: x.sum(2).mT.flip(0)[:, :3]), "pool= gave"),
        (lambda: model.capture(TEXTS, pool=lambda x, counted: None), "pool= gave NoneType"),
    ]:
        with pytest.raises(InputError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
    with pytest.warns(UserWarning, match="1 of 2 texts are longer"):
        capture(model, ["a", long])


def test_a_model_in_memory_is_wrapped_as_it_is() -> None:
    model = tiny_model()
    before = copy.deepcopy(model.underlying.config.to_dict())
    live = emoprobe.wrap(model.underlying, model.tokenizer, name="mine")
    assert live.underlying is model.underlying and live.name == "mine" and emoprobe.wrap(live) is live
    assert (live.n_layers, live.d_model, live.n_heads, live.backend) == (3, 32, 4, "transformers")
    live.logits("The dog")
    assert live.underlying.config.to_dict() == before


def test_what_is_real_is_told_by_length_and_offsets_are_cut_with_the_tokens() -> None:
    """A text may hold the very token that pads, and a text that is cut has no more spans than tokens."""
    model = tiny_model("gpt2")
    pad = model.tokenizer.decode([model.pad_token_id])
    batch = model.tokenize([f"{pad}{pad} the dog", "They were afraid of the dark and of the letter"])
    alone = model.tokenize(f"{pad}{pad} the dog")
    assert (alone.input_ids == model.pad_token_id).any() and alone.real.all()
    assert batch.real[0].sum() == alone.real.shape[1] < batch.real.shape[1] and batch.real[1].all()
    long = model.tokenize(["dog " * 500, "sun"], truncate=True)
    assert long.offsets is not None
    assert {len(row) for row in long.offsets} == {long.input_ids.shape[1]} == {model.context_length}
