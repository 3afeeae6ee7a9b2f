"""Valuations, valuation attention as a function of tensors, and what is learned and compared."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny import tiny_model
from torch import Tensor

from emoprobe.corpora import Corpus
from emoprobe.errors import InputError
from emoprobe.models import LiveModel
from emoprobe.scoring import text_nll
from emoprobe.valattn import Valuation, compare_valuations, inject, learn_valuation, val_attention
from emoprobe.valattn.compare import per_token
from emoprobe.valattn.learn import frozen

NAMES = ("valence", "arousal", "relevance")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(layers: tuple[int, ...] = (0, 2), width: int = 32, seed: int = 0, **fields: object) -> Valuation:
    g = generator(seed)
    weight, bias = (
        torch.randn(len(layers), 3, width, generator=g) / 4,
        torch.randn(len(layers), 3, generator=g),
    )
    return Valuation(weight, bias, NAMES, layers, **fields)  # type: ignore[arg-type]


# The function ------------------------------------------------------------------------------------------------


def test_values_are_the_formula_and_read_out_on_people_s_ranges() -> None:
    valuation = make(width=34, ranges={"arousal": (0.0, 1.0), "relevance": (1.0, 5.0)})
    x, e = torch.randn(2, 5, 32, generator=generator(1)), torch.randn(2, 5, 2, generator=generator(2))
    expected = torch.tanh(torch.cat([x, e], -1) @ valuation.weight[1].T + valuation.bias[1])
    assert torch.allclose(valuation.values(x, 2, e), expected, atol=1e-6)
    without = torch.tanh(x @ valuation.weight[1, :, :32].T + valuation.bias[1])
    assert torch.allclose(valuation.values(x, 2), without, atol=1e-6)
    read = valuation.read_out(torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]))
    assert torch.allclose(read, torch.tensor([[-1.0, 0.0, 1.0], [1.0, 1.0, 5.0], [0.0, 0.5, 3.0]]))
    assert valuation.values(x.double(), 2).dtype == torch.float64
    assert valuation.values(x.bfloat16(), 2).dtype == torch.float32


def probes_like(width: int = 16, layers: tuple[int, ...] = (0, 1, 2, 3)) -> SimpleNamespace:
    """What `from_probes` reads of a probe set, with reference statistics of known tokens."""
    g = generator(5)
    tokens = torch.randn(len(layers), 4000, width, generator=g) * torch.rand(
        width, generator=g
    ) * 3 + torch.randn(len(layers), 1, width, generator=g)
    directions = torch.nn.functional.normalize(torch.randn(len(layers), 3, width, generator=g), dim=-1)
    spread = torch.einsum("lnd,lkd->lnk", tokens, directions).std(1)
    concepts = list(NAMES)
    return SimpleNamespace(
        model={"name": "m"},
        n_layers=3,
        basis="raw",
        layers=layers,
        concepts=tuple(concepts),
        concept_index=concepts.index,
        ranges={"arousal": (0.0, 1.0)},
        directions=directions,
        reference_mean=tokens.mean(1),
        reference_std=spread,
        metadata={"seed": 7},
        tokens=tokens,
    )


def test_from_probes_standardises_the_read_out_on_the_reference_tokens() -> None:
    probes = probes_like()
    for gain in (1.0, 0.5):
        valuation = Valuation.from_probes(probes, ["arousal", "valence"], gain=gain)  # type: ignore[arg-type]
        assert valuation.layers == (0, 1, 2)  # no attention above the last
        for row, layer in enumerate(valuation.layers):
            before_tanh = torch.atanh(valuation.values(probes.tokens[layer].double(), layer))
            assert torch.allclose(before_tanh.mean(0), torch.zeros(2, dtype=torch.float64), atol=1e-3)
            assert torch.allclose(before_tanh.std(0), torch.full((2,), gain, dtype=torch.float64), rtol=1e-3)
            for k, concept in enumerate((1, 0)):
                cosine = torch.cosine_similarity(
                    valuation.weight[row, k], probes.directions[layer, concept], dim=0
                )
                assert cosine == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(InputError, match=r"no directions for layers \[1\]"):
        Valuation.from_probes(probes_like(layers=(0, 2)), layers=[0, 1])  # type: ignore[arg-type]


def test_random_valuations_have_equal_norms_and_centre() -> None:
    valuation = Valuation.from_probes(probes_like())  # type: ignore[arg-type]
    random, again, other = valuation.random_like(1), valuation.random_like(1), valuation.random_like(2)
    assert torch.allclose(random.weight.norm(dim=-1), valuation.weight.norm(dim=-1), rtol=1e-5)
    assert torch.equal(random.weight, again.weight) and not torch.allclose(random.weight, other.weight)
    assert torch.cosine_similarity(random.weight, valuation.weight, dim=-1).abs().max() < 0.9
    assert valuation.centre is not None
    for row, layer in enumerate(valuation.layers):
        assert random.values(valuation.centre[row], layer).abs().max() < 1e-5


def test_annotated_valuations_see_the_emotions_only() -> None:
    valuation = Valuation.annotated(32, [0, 1], NAMES, gain=2.0, arousal=(0.0, 1.0))
    x, e = torch.randn(4, 32, generator=generator()), torch.rand(4, 3, generator=generator(1))
    assert torch.allclose(valuation.values(x, 1, e), torch.tanh(2 * e))
    assert torch.equal(valuation.values(x, 0), torch.zeros(4, 3))


def test_saved_and_loaded_valuations_are_the_same(tmp_path: Path) -> None:
    full = make(
        width=34,
        embedding=torch.randn(7, 2),
        strength=torch.tensor([0.5, -1.0]),
        centre=torch.randn(2, 32),
        ranges={"arousal": (0.0, 1.0)},
        metadata={"source": "learned", "losses": [1.0, 0.5]},
    )
    for valuation in (full, make()):
        path = valuation.save(tmp_path / "v.safetensors")
        loaded = Valuation.load(path)
        for field in ("weight", "bias", "embedding", "strength", "centre"):
            one, other = getattr(valuation, field), getattr(loaded, field)
            assert (one is None and other is None) or torch.equal(one, other)
        assert (loaded.dimensions, loaded.layers) == (valuation.dimensions, valuation.layers)
        assert (dict(loaded.ranges), dict(loaded.metadata)) == (
            dict(valuation.ranges),
            dict(valuation.metadata),
        )
        first = path.read_bytes()
        assert loaded.save(path).read_bytes() == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["v.safetensors"]


def test_files_that_are_no_valuation_are_refused(tmp_path: Path) -> None:
    good = make().save(tmp_path / "good.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(good[:-10])
    (tmp_path / "text.safetensors").write_text("hello")
    save_file({"weight": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    for name, words in [
        ("absent", "no file"),
        ("cut", "damaged"),
        ("text", "damaged"),
        ("foreign", "not written by emoprobe"),
    ]:
        with pytest.raises(InputError, match=words):
            Valuation.load(tmp_path / f"{name}.safetensors")


def test_bad_tensors_are_named() -> None:
    with pytest.raises(InputError, match=r"needs weight .*not \(2, 3, 4\) and \(2, 4\)"):
        Valuation(torch.zeros(2, 3, 4), torch.zeros(2, 4), NAMES, (0, 1))
    with pytest.raises(InputError, match="finite"):
        Valuation(torch.full((1, 3, 4), torch.nan), torch.zeros(1, 3), NAMES, (0,))
    with pytest.raises(InputError, match="reads 32 numbers per token, but the model gives 64"):
        make().values(torch.zeros(1, 64), 0)


# Attention ---------------------------------------------------------------------------------------------------


def tensors(queries: int = 7, keys: int = 7, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    g = generator(3)
    shapes = [(2, 4, queries, 8), (2, 2, keys, 8), (2, 2, keys, 8), (2, queries, 3), (2, keys, 3)]
    return [torch.randn(shape, generator=g, dtype=dtype) for shape in shapes]


def by_loops(q: Tensor, k: Tensor, v: Tensor, vq: Tensor, vk: Tensor, lam: Tensor, scale: float) -> Tensor:
    """Causal valuation attention, one number at a time."""
    out = torch.zeros_like(q)
    offset = k.shape[2] - q.shape[2]
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            kv = h // (q.shape[1] // k.shape[1])
            for i in range(q.shape[2]):
                seen = range(i + offset + 1)
                scores = [q[b, h, i] @ k[b, kv, j] * scale + lam[h] * (vq[b, i] @ vk[b, j]) for j in seen]
                weights = torch.stack(scores).softmax(0)
                out[b, h, i] = sum(w * v[b, kv, j] for w, j in zip(weights, seen, strict=True))
    return out


@pytest.mark.parametrize("implementation", ["reference", "folded", None])
@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (1, 7), (3, 7)])
def test_attention_is_the_formula(queries: int, keys: int, implementation: str | None) -> None:
    q, k, v, vq, vk = tensors(queries, keys)
    lam = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)
    for scale in (None, 0.3):
        truth = by_loops(q, k, v, vq, vk, lam, 8**-0.5 if scale is None else scale)
        ours = val_attention(q, k, v, vq, vk, lam, scale=scale, implementation=implementation)
        assert torch.allclose(ours, truth, atol=1e-12)
    ours = val_attention(q, k, v, vq, vk, 1.5, implementation=implementation)
    assert torch.allclose(ours, by_loops(q, k, v, vq, vk, torch.full((4,), 1.5), 8**-0.5), atol=1e-12)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("additive", [True, False])
def test_masks_mean_the_same_to_both_implementations(causal: bool, additive: bool) -> None:
    q, k, v, vq, vk = tensors()
    seen = torch.rand(2, 1, 7, 7, generator=generator(4)) > 0.4
    seen |= torch.eye(7, dtype=torch.bool)
    mask = torch.zeros(2, 1, 7, 7, dtype=torch.float64).masked_fill(~seen, -torch.inf) if additive else seen
    one, other = (
        val_attention(q, k, v, vq, vk, 1.5, causal=causal, mask=mask, implementation=name)
        for name in ("reference", "folded")
    )
    assert torch.allclose(one, other, atol=1e-12)
    assert not torch.allclose(one, val_attention(q, k, v, vq, vk, 1.5, causal=causal))


@pytest.mark.parametrize("implementation", ["reference", "folded"])
def test_attention_has_right_gradients(implementation: str) -> None:
    inputs = [t.requires_grad_() for t in tensors(2, 3)] + [
        torch.tensor([0.5, -1.0, 2.0, 0.1], dtype=torch.float64).requires_grad_()
    ]
    assert torch.autograd.gradcheck(lambda *t: val_attention(*t, implementation=implementation), inputs)


def test_attention_names_what_does_not_fit() -> None:
    q, k, v, vq, vk = tensors()
    with pytest.raises(InputError, match="do not fit together"):
        val_attention(q, k, v, vq[:, :3], vk, 1.0)
    with pytest.raises(InputError, match='implementation="triton"'):
        val_attention(q, k, v, vq, vk, 1.0, implementation="triton")


# Learning and comparing --------------------------------------------------------------------------------------


def make_corpus(count: int = 40) -> Corpus:
    """Texts whose valence a word gives away."""
    words = {1.0: ("happy", "glad", "calm"), -1.0: ("sad", "afraid", "angry")}
    rng = np.random.default_rng(0)
    rows = [(sign, rng.choice(words[sign]), i) for i in range(count) for sign in (1.0, -1.0)]
    return Corpus.from_columns(
        {
            "text": [
                f"The dog number {i} was {word} and the children were {word} again." for sign, word, i in rows
            ],
            "valence": [sign for sign, _, _ in rows],
            "group": [str(i % 8) for _, _, i in rows],
        },
        name="words",
        dimensions={"valence": (-1.0, 1.0)},
    )


def snapshot(model: LiveModel) -> list[tuple[Tensor, bool]]:
    return [(w.detach().clone(), w.requires_grad) for _, w in model.named_weights()]


def test_learning_lowers_both_losses_and_leaves_the_model_alone() -> None:
    model, corpus = tiny_model("llama", dtype=torch.float32), make_corpus(16)
    before, init = snapshot(model), make(layers=(0, 1, 2))
    learned = learn_valuation(
        model, corpus, init, objective="next_token", steps=30, learning_rate=0.03, progress=False
    )
    assert learned.metadata["held_out_nll_learned"] < learned.metadata["held_out_nll_untouched"] - 0.01
    assert learned.strength is not None and learned.strength.abs().max() > 0.01
    for (weight, grad), (now, grad_now) in zip(before, snapshot(model), strict=True):
        assert torch.equal(weight, now) and grad == grad_now
    annotated = learn_valuation(
        model, corpus, init, objective="annotations", steps=30, learning_rate=0.03, progress=False
    )
    losses = annotated.metadata["losses"]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    both = learn_valuation(model, corpus, init, steps=3, progress=False)
    again = learn_valuation(model, corpus, init, steps=3, progress=False)
    assert torch.equal(both.weight, again.weight) and both.metadata["losses"] == again.metadata["losses"]
    assert not torch.equal(both.weight, init.weight)


def test_annotations_are_learned_with_their_sign_and_on_the_whole_range() -> None:
    """Where every text is annotated 7.5 of 0 to 10, that is 0.5 of -1 to 1; a dimension without annotations stays free."""
    model, half = tiny_model("llama", dtype=torch.float32), make_corpus(8)
    corpus = Corpus.from_columns(
        {
            "text": list(half.texts),
            "group": list(half.groups),
            "arousal": [7.5] * len(half),
            "relevance": [2.5] * len(half),
        },
        dimensions={"arousal": (0.0, 10.0), "relevance": (0.0, 10.0)},
    )
    learned = learn_valuation(
        model, corpus, make(), objective="annotations", steps=80, learning_rate=0.05, progress=False
    )
    batch = model.tokenize(corpus.texts[0])
    with torch.no_grad():
        values = learned.values(model.streams(batch, [0])[0, 0], 0)[1:].mean(0)
    assert values[1:].tolist() == pytest.approx([0.5, -0.5], abs=0.1)


def test_a_table_of_emotion_embeddings_is_learned_when_asked(tmp_path: Path) -> None:
    model, corpus = tiny_model("gpt2", dtype=torch.float32), make_corpus(8)
    learned = learn_valuation(model, corpus, make(), embedding_width=2, steps=4, progress=False)
    assert learned.embedding is not None and learned.embedding.shape == (len(model.tokenizer), 2)
    assert learned.weight.shape[-1] == model.d_model + 2
    start = learn_valuation(model, corpus, make(), embedding_width=2, steps=0, progress=False)
    assert start.embedding is not None and not torch.equal(start.embedding, learned.embedding)
    # With λ = 0 at the start nothing has happened to the model yet.
    assert start.metadata["held_out_nll_learned"] == start.metadata["held_out_nll_untouched"]
    loaded = Valuation.load(learned.save(tmp_path / "learned.safetensors"))
    with inject(model, learned):
        one = model.logits("The dog was happy")
    with inject(model, loaded):
        assert torch.equal(model.logits("The dog was happy"), one)


def test_what_cannot_be_learned_is_said() -> None:
    model, corpus = tiny_model("gpt2"), make_corpus(4)
    with pytest.raises(InputError, match='objective="x"'):
        learn_valuation(model, corpus, make(), objective="x")  # type: ignore[arg-type]
    other = Valuation(torch.zeros(1, 1, 32), torch.zeros(1, 1), ("dominance",), (0,))
    with pytest.raises(InputError, match='corpus "words" annotates none of'):
        learn_valuation(model, corpus, other)


def test_frozen_gives_back_what_asked_for_gradients() -> None:
    model = tiny_model("gpt2")
    weights = dict(model.named_weights())
    first = next(iter(weights.values())).requires_grad_(False)
    with pytest.raises(ZeroDivisionError), frozen(model):
        assert not any(w.requires_grad for w in weights.values())
        _ = 1 / 0
    assert not first.requires_grad and all(w.requires_grad for w in list(weights.values())[1:])


def test_comparison_of_a_valuation_with_itself_and_with_another() -> None:
    model, corpus = tiny_model("llama", dtype=torch.float32), make_corpus(6)
    probed, learned = make(), make(strength=torch.tensor([0.8, -0.4]))
    same = compare_valuations(
        model, probed, learned, corpus, learned_from_random=make(seed=9, strength=torch.tensor(0.3))
    )
    table = same.alignment.set_index(["quantity", "layer"])
    assert np.allclose(table.loc["row cosine", "value"], 1) and np.allclose(
        table.loc["token correlation", "value"], 1
    )
    assert np.allclose(table.loc["principal angle", "value"], 0, atol=0.1)
    assert (table.loc["row cosine", "control_high"] < 0.9).all() and (
        table.loc["principal angle", "control_low"] > 10
    ).all()
    assert table["from_random"].notna().all()
    # Where the learned is the probed one, random ones are as far from both.
    assert np.allclose(table["control_low"], table["from_random_low"])
    assert np.allclose(table["control_high"], table["from_random_high"])
    nll = same.nll.set_index("condition")
    assert nll.loc["probed", "nll"] == pytest.approx(nll.loc["learned", "nll"])
    assert nll.loc["probed", "lambda"] == pytest.approx(0.6)
    untouched, count = text_nll(model, corpus.texts)
    assert nll.loc["untouched", "nll"] == pytest.approx(float(untouched.sum() / count.sum()))
    with inject(model, learned):
        touched, _ = text_nll(model, corpus.texts)
    assert nll.loc["learned", "delta"] == pytest.approx(float((touched - untouched).sum() / count.sum()))
    by_hand = per_token((touched - untouched).numpy(), count.numpy(), corpus.groups)
    assert nll.loc["learned", ["delta", "low", "high"]].tolist() == pytest.approx(by_hand, rel=1e-4)
    assert nll.loc["learned", "low"] < nll.loc["learned", "delta"] < nll.loc["learned", "high"]
    assert (same.texts, same.groups) == (12, 6)
    assert (nll.loc["learned", ["excess", "excess_low", "excess_high"]] == 0).all()
    with inject(model, make(seed=9), torch.tensor(0.3)):
        other, _ = text_nll(model, corpus.texts)
    started = nll.loc["learned from random", ["excess", "excess_low", "excess_high"]].tolist()
    expected = per_token((other - touched).numpy(), count.numpy(), corpus.groups)
    assert started == pytest.approx(expected, rel=1e-3) and abs(started[0]) > 1e-4
    assert "<script" not in same._repr_html_()
    with pytest.raises(InputError, match="cannot be compared"):
        compare_valuations(model, make(layers=(0,)), make(layers=(1,), strength=torch.tensor([1.0])), corpus)
    with pytest.raises(InputError, match="no λ"):
        compare_valuations(model, probed, probed, corpus)
    with pytest.raises(InputError, match="no λ"):
        compare_valuations(model, probed, learned, corpus, learned_from_random=probed)


def test_texts_of_one_group_give_no_interval() -> None:
    model, corpus = tiny_model("gpt2", dtype=torch.float32), make_corpus(9)
    one = corpus.select(indices=np.flatnonzero(corpus.groups == "0"))
    found = compare_valuations(model, make(), make(seed=1, strength=torch.tensor(0.5)), one, controls=1)
    assert found.groups == 1 < found.texts
    assert found.nll.delta.notna().all() and found.nll[["low", "high"]].isna().all(axis=None)
    found.plot()


def test_an_interval_over_groups_worked_out_by_hand() -> None:
    """Three groups of 2, 1 and 1 texts: R = 6/12; residuals of groups 1 − 3, 1 − 1, 4 − 2; √(3/2 · 8) / 12."""
    total, count = np.array([2.0, -1.0, 1.0, 4.0]), np.array([4.0, 2.0, 2.0, 4.0])
    ratio, low, high = per_token(total, count, np.array(["a", "a", "b", "c"]))
    assert ratio == 0.5
    reach = 4.302653 * np.sqrt(12) / 12  # Student's t of two degrees of freedom
    assert [low, high] == pytest.approx([0.5 - reach, 0.5 + reach], rel=1e-6)
    assert np.isnan(per_token(total, count, np.zeros(4))[1:]).all()


@pytest.mark.parametrize(("groups", "texts"), [(3, 50), (20, 10)])
def test_intervals_cover_what_they_say_where_texts_of_a_group_go_alike(groups: int, texts: int) -> None:
    rng = np.random.default_rng(0)
    member, covered, ignoring = np.repeat(np.arange(groups), texts), 0, 0
    for _ in range(600):
        count = rng.integers(10, 40, size=len(member)).astype(float)
        rate = (
            0.3 + rng.normal(size=groups)[member] * np.sqrt(0.1) + rng.normal(size=len(member)) * np.sqrt(0.9)
        )
        for_groups, for_texts = (
            per_token(rate * count, count, of) for of in (member, np.arange(len(member)))
        )
        covered += for_groups[1] < 0.3 < for_groups[2]
        ignoring += for_texts[1] < 0.3 < for_texts[2]
    assert 0.92 < covered / 600 < 0.98  # ± 3 standard errors
    assert ignoring / 600 < 0.88  # what the test can see: an interval that is too narrow


def test_principal_angles_see_the_space_and_row_cosines_the_rows() -> None:
    """Mixing the rows keeps the space and turns the rows."""
    model, corpus = tiny_model("gpt2", dtype=torch.float32), make_corpus(4)
    probed = make()
    mixed = torch.einsum("jk,lkd->ljd", torch.randn(3, 3, generator=generator(7)), probed.weight)
    learned = Valuation(mixed, probed.bias, NAMES, probed.layers, strength=torch.tensor(0.5))
    table = compare_valuations(model, probed, learned, corpus, controls=1).alignment.set_index("quantity")
    assert table.loc["principal angle", "value"].max() < 0.5
    assert table.loc["row cosine", "value"].abs().max() < 0.99


def test_text_nll_is_that_of_each_text_alone() -> None:
    model, texts = tiny_model("llama"), ["The dog was happy and calm.", "Sad", "I am so glad that you came!"]
    total, count = text_nll(model, texts, batch_size=3)
    for row, text in enumerate(texts):
        ids = model.tokenize(text).input_ids[0]
        logp = model.logits(text)[0].double().log_softmax(-1)
        assert total[row].item() == pytest.approx(-float(logp[:-1].gather(-1, ids[1:, None]).sum()), rel=1e-5)
        assert count[row] == len(ids) - 1
