"""What is TransformerLens's own: its hooks and caches, its generation, its tokenizer, its processing of weights."""

from collections.abc import Iterator

import pytest
import torch
from backends import GREEDY, LAM, TEXTS, difference, load, make_edits, make_valuation, random_model, saved
from tiny import tiny_tokenizer
from torch import Tensor
from transformers import AutoTokenizer, GPTJConfig, GPTNeoConfig, OPTConfig, PretrainedConfig

from emoprobe.errors import InputError
from emoprobe.interventions import AttentionBias, ResidualEdit
from emoprobe.models import LiveModel, load_model, wrap
from emoprobe.valattn import inject

pytest.importorskip("transformer_lens")


@pytest.fixture
def bridge() -> Iterator[LiveModel]:
    live = load(saved("gpt2"), "transformer_lens")
    yield live
    live.underlying.reset_hooks(including_permanent=True)


def test_users_hooks_and_caches_work_beside_ours(bridge: LiveModel) -> None:
    model, batch = bridge.underlying, bridge.tokenize(TEXTS)
    ids, mask = batch.input_ids, batch.real.long()
    seen: list[Tensor] = []
    model.add_hook("blocks.1.hook_resid_pre", lambda x, hook: seen.append(x))
    shift = torch.ones(bridge.d_model)
    with bridge.intervene(ResidualEdit(1, lambda x: x + shift)), inject(bridge, make_valuation(bridge), LAM):
        logits, cache = model.run_with_cache(ids, attention_mask=mask)
        ours = bridge.forward(batch)
        scores = []
        hooked = model.run_with_hooks(
            ids,
            attention_mask=mask,
            fwd_hooks=[("blocks.0.attn.hook_attn_scores", lambda s, hook: scores.append(s))],
        )
    assert torch.equal(logits, ours) and torch.equal(hooked, ours)
    assert torch.allclose(cache["blocks.1.hook_resid_pre"], seen[0] + shift)  # the user's hook came first
    rows = batch.real[:, None].expand(
        scores[0].shape[:3]
    )  # hooks added inside see the scores with their bias
    pattern = scores[0].softmax(-1)
    assert torch.allclose(pattern[rows], cache["blocks.0.attn.hook_pattern"][rows], atol=1e-5)
    left = {id(hook) for hooks in model.list_hooks().values() for hook in hooks}
    assert len(left) == 1  # the user's
    before = len(seen)
    model(ids, attention_mask=mask)
    assert len(seen) == before + 1


def test_reset_hooks_inside_a_block_leaves_ours(bridge: LiveModel) -> None:
    untouched = bridge.logits(TEXTS)
    with bridge.intervene(*make_edits(bridge)):
        changed = bridge.logits(TEXTS)
        bridge.underlying.reset_hooks()
        assert torch.equal(bridge.logits(TEXTS), changed)
    assert torch.equal(bridge.logits(TEXTS), untouched) and not torch.equal(untouched, changed)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_transformer_lens_own_generation(family: str) -> None:
    live = load(saved(family), "transformer_lens")
    model, batch = live.underlying, live.tokenize(TEXTS)
    start = batch.input_ids.shape[1]
    options = dict(do_sample=False, stop_at_eos=False, return_type="tokens", attention_mask=batch.real.long())
    with inject(live, make_valuation(live), LAM):
        expected = live.generate(TEXTS, **GREEDY)
        beams = live.generate(TEXTS, **GREEDY, num_beams=3)
        found = [
            model.generate(batch.input_ids, 10, use_past_kv_cache=use_cache, verbose=False, **options)
            for use_cache in (True, False)
        ]
        found.append(model.hf_generate(batch.input_ids, 10, **options))
        found_beams = model.hf_generate(batch.input_ids, 10, num_beams=3, **options)
    for ids in found:
        assert live.tokenizer.batch_decode(ids[:, start:], skip_special_tokens=True) == expected
    assert live.tokenizer.batch_decode(found_beams[:, start:], skip_special_tokens=True) == beams
    assert expected != live.generate(TEXTS, **GREEDY)


def test_a_cache_filled_on_the_other_side_of_a_block_is_refused(bridge: LiveModel) -> None:
    batch = bridge.tokenize(TEXTS[0])
    token = batch.input_ids[:, -1:]
    _, outside = bridge.underlying(batch.input_ids, return_type="logits_and_cache", use_cache=True)
    with inject(bridge, make_valuation(bridge), LAM):
        with pytest.raises(InputError, match="filled outside"):
            bridge.underlying(token, past_key_values=outside)
        _, inside = bridge.underlying(batch.input_ids, return_type="logits_and_cache", use_cache=True)
    with pytest.raises(InputError, match="filled inside"):
        bridge.underlying(token, past_key_values=inside)


def test_texts_are_tokenised_as_the_model_expects() -> None:
    """TransformerLens's own copy of the tokenizer puts a start token before every text."""
    bridge = load(saved("gpt2"), "transformer_lens").underlying
    own = AutoTokenizer.from_pretrained(saved("gpt2"))(TEXTS[0])["input_ids"]
    assert bridge.tokenizer(TEXTS[0])["input_ids"] == [own_start(bridge), *own]
    assert wrap(bridge).tokenize(TEXTS[0]).input_ids[0].tolist() == own
    bridge.tokenizer.name_or_path, name = "nowhere/at-all", bridge.tokenizer.name_or_path
    try:
        with pytest.raises(InputError, match="start token"):
            wrap(bridge)
    finally:
        bridge.tokenizer.name_or_path = name


def own_start(bridge: object) -> int:
    return int(bridge.tokenizer.bos_token_id)  # type: ignore[attr-defined]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_processed_weights_are_known_by_their_basis(family: str) -> None:
    live = load_model(saved(family), backend="transformer_lens")
    batch = live.tokenize(TEXTS)
    raw, lens = live.streams(batch, range(4)), live.logit_lens(torch.eye(live.d_model))
    assert live.basis == "raw"
    live.check_basis("raw", "these probes")
    live.underlying.enable_compatibility_mode(disable_warnings=True)
    streams = live.streams(batch, range(4))
    if family == "gpt2":
        assert live.basis == "centred"
        assert live.info().set_index("what")["found"]["residual stream"] == "centred"
        assert difference(live, TEXTS, streams, raw - raw.mean(-1, keepdim=True)) < 1e-4
        assert difference(live, TEXTS, streams, raw) > 0.1
        with pytest.raises(InputError, match=r"these probes .* raw residual stream.*centred"):
            live.check_basis("raw", "these probes")
    else:  # RMS norm does not take a mean away, and so nothing is centred
        assert live.basis == "raw"
        assert difference(live, TEXTS, streams, raw) < 1e-4
        centred = lens - lens.mean(-1, keepdim=True)  # the unembedding is
        assert torch.allclose(live.logit_lens(torch.eye(live.d_model)), centred, atol=1e-4)


DELEGATED = [
    OPTConfig(vocab_size=330, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
              max_position_embeddings=128, word_embed_proj_dim=32),
    GPTJConfig(vocab_size=330, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=128),
    GPTNeoConfig(vocab_size=330, hidden_size=32, num_layers=2, num_heads=4, max_position_embeddings=128,
                 attention_types=[[["global"], 2]]),
]  # fmt: skip


@pytest.mark.parametrize("config", DELEGATED, ids=lambda config: config.model_type)
def test_attention_that_discards_edits_is_refused(config: PretrainedConfig) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    tokenizer = tiny_tokenizer()
    tokenizer.init_kwargs |= {"name_or_path": "tiny", "add_bos_token": True}
    live = wrap(
        TransformerBridge.boot_transformers("tiny", hf_model=random_model(config), tokenizer=tokenizer),
        tiny_tokenizer(),
    )
    untouched = live.logits(TEXTS)
    bias = AttentionBias(0, lambda x, forward: torch.ones(*x.shape[:2], 1), 1.0)
    found = live.info().set_index("what")["found"]
    assert "throws away" in found["inject, blocks 0-1"] and found["inject, blocks 0-1"].startswith("no: ")
    with pytest.raises(InputError, match=r"throws away.*block 0 of .*wrap the transformers model"):
        with live.intervene(bias):
            pass
    with live.intervene(ResidualEdit(1, lambda x: 2 * x)):  # steering and reading do work
        assert not torch.equal(live.logits(TEXTS), untouched)
    assert torch.equal(live.logits(TEXTS), untouched)
