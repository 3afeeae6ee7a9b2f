"""The logit lens: what it says of the logits' change, which tokens it names, and what random directions give."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import family_model
from oracle import Oracle
from small_probes import model, probes
from tiny import FAMILIES, tiny_model

from emoprobe.errors import InputError
from emoprobe.interventions import ResidualEdit
from emoprobe.models import LiveModel, load_model
from emoprobe.probes import logit_lens
from emoprobe.probes.closed_form import principal_components
from emoprobe.probes.lens import vector_lens
from emoprobe.probes.text_moments import text_moments

TEXT = "we were so glad that the music was not so dark"


def drawn(count: int, width: int, seed: int = 0) -> torch.Tensor:
    """Return random vectors whose coordinates have a mean other than 0."""
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5


def unembedding(live: LiveModel) -> torch.Tensor:
    """Return the rows that make logits; in GPT-2 they are the embedding itself."""
    underlying = live.underlying
    tied = underlying.config.tie_word_embeddings
    head = underlying.get_input_embeddings() if tied else underlying.get_output_embeddings()
    return head.weight.detach().double()


# Exact at the last layer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_small_step_at_the_last_layer_changes_the_logits_as_the_lens_says(family: str) -> None:
    """Finite differences of the whole model, against r⁻¹ (lens(u) - lens(x) · (x·u)/(d r²)) in float64."""
    live = tiny_model(family)
    x = live.streams(live.tokenize(TEXT), [live.n_layers])[0, 0, -1].detach()
    (u,) = drawn(1, live.d_model)
    step = 1e-2 if family == "llama" else 1e-5  # Llama's norm computes in float32, whatever it is given
    tolerance = 1e-3 if family == "llama" else 1e-5

    def logits(along: float) -> torch.Tensor:
        edit = ResidualEdit(live.n_layers, lambda stream: stream + along * u)
        with torch.no_grad(), live.intervene(edit):
            return live.forward(live.tokenize(TEXT))[0, -1].double()

    measured = (logits(step) - logits(-step)) / (2 * step)
    centred = family != "llama"
    x_seen, u_seen = ((v - v.mean()) if centred else v for v in (x, u))
    r = ((x_seen**2).mean() + epsilon(live)).sqrt()
    lens_u, lens_x = live.logit_lens(torch.stack([u, x])).double()
    expected = (lens_u - lens_x * (x_seen @ u_seen) / (live.d_model * r**2)) / r
    assert (measured - expected).abs().max() < tolerance * measured.abs().max()
    unfolded = live.logit_lens(u, folded=False).double() / r
    assert (measured - unfolded).abs().max() > 0.05 * measured.abs().max()
    across = u - x_seen * (x_seen @ u_seen) / (x_seen @ x_seen)  # where x·u = 0 the lens is all of it
    step_across = live.logit_lens(across).double() / r
    chance = logits(0).softmax(-1)
    gradient = step_across - chance @ step_across
    u = across
    found = (logits(step).log_softmax(-1) - logits(-step).log_softmax(-1)) / (2 * step)
    assert (found - gradient).abs().max() < tolerance * gradient.abs().max()


def epsilon(live: LiveModel) -> float:
    norm = Oracle(live)._norm()
    return float(getattr(norm, "variance_epsilon", None) or getattr(norm, "eps", 0.0))


def test_layer_norm_takes_the_mean_out_and_rms_norm_does_not() -> None:
    for family in FAMILIES:
        live = tiny_model(family)
        (u,) = drawn(1, live.d_model).float()
        same = torch.allclose(live.logit_lens(u), live.logit_lens(u + 3), atol=1e-4)
        assert same is (family != "llama")


def test_a_stream_read_by_the_lens_is_the_models_logits_below_a_soft_cap() -> None:
    """Gemma scales by 1 + weight, ties its embeddings and caps its logits: cap · tanh(lens(x) / (r · cap))."""
    live = family_model("Gemma 2")
    cap = live.underlying.config.final_logit_softcapping = 2.0
    batch = live.tokenize(TEXT)
    with torch.no_grad():
        logits, x = live.forward(batch)[0].double(), live.streams(batch, [live.n_layers])[0, 0].double()
    r = ((x**2).mean(-1, keepdim=True) + live.underlying.config.rms_norm_eps).sqrt()
    lens = live.logit_lens(x).double() / r
    assert lens.abs().max() > cap
    assert torch.allclose(logits, cap * torch.tanh(lens / cap), atol=1e-4)
    assert (logits.argsort(-1) == lens.argsort(-1)).double().mean() > 0.99  # the order stays


# The table -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_and_order_are_those_of_algebra_by_hand(family: str) -> None:
    live = tiny_model(family)
    vectors = drawn(3, live.d_model)
    seen = vectors - (0 if family == "llama" else vectors.mean(-1, keepdim=True))
    gain = Oracle(live)._norm().weight.double()
    logits = (seen * gain) @ unembedding(live).T
    scores = logits - logits.mean(-1, keepdim=True)
    frame = vector_lens(live, vectors, ["a", "b", "c"], top=5, randoms=4)
    tokenizer = live.tokenizer
    texts = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    read = [
        token
        for token, text in enumerate(texts)
        if text.strip() and "\ufffd" not in text and token not in tokenizer.all_special_ids
    ]
    for name, row in zip("abc", scores, strict=True):
        part = frame[frame.concept == name]
        for side, sign in (("promoted", -1), ("suppressed", 1)):
            order = sorted(read, key=lambda token: sign * float(row[token]))[:5]
            assert list(part[side]) == [texts[token] for token in order]
            assert np.allclose(part[f"{side}_score"], row[order], rtol=1e-4)
    assert list(frame["rank"]) == [1, 2, 3, 4, 5] * 3


def test_a_probe_sets_lens_is_that_of_its_directions() -> None:
    found = logit_lens(model(), probes(), 0.66, top=3, randoms=10, seed=2)
    directions = probes().directions[probes().layers.index(2)]
    assert found.equals(vector_lens(model(), directions, probes().concepts, 3, randoms=10, seed=2))
    shown = probes().logit_lens(model(), 2, top=3)
    columns = ["concept", "promoted", "suppressed"]
    assert shown[columns].equals(found[columns])


def test_a_vector_of_twice_the_length_scores_twice_and_is_as_unusual() -> None:
    vectors = drawn(1, model().d_model)
    one, two, turned = (vector_lens(model(), v, randoms=40) for v in (vectors, 2 * vectors, -vectors))
    assert np.allclose(2 * one.promoted_score, two.promoted_score, rtol=1e-5)
    for part in ("z", "p"):
        assert np.allclose(one[f"promoted_{part}"], two[f"promoted_{part}"], rtol=1e-4)
        sign = -1 if part == "z" else 1
        assert np.allclose(one[f"promoted_{part}"], sign * turned[f"suppressed_{part}"], rtol=1e-4)
    assert list(one.promoted) == list(turned.suppressed)


def test_principal_components_can_be_read_too() -> None:
    moments = text_moments(model(), ["the sun came up", "they were sad", "so calm a dog"], [2], "tokens")
    vectors = principal_components(moments).vectors[0, :2]
    frame = vector_lens(model(), vectors, ["PC1", "PC2"], top=2, randoms=0)
    assert list(frame.concept) == ["PC1", "PC1", "PC2", "PC2"]
    assert frame.promoted_p.isna().all() and frame.promoted_z.isna().all()


# The control ---------------------------------------------------------------------------------------------------------


def test_a_tokens_z_is_its_cosine_with_the_direction_times_the_root_of_the_width() -> None:
    live, vectors = tiny_model("llama"), drawn(2, 32)
    frame = vector_lens(live, vectors, top=5, randoms=3000)
    rows = Oracle(live)._norm().weight.double() * unembedding(live)
    rows = rows - rows.mean(0)
    texts = [live.tokenizer.decode([token]) for token in range(len(live.tokenizer))]
    for record in frame.to_dict("records"):
        row = rows[texts.index(record["promoted"])]
        u = vectors[int(record["concept"].split()[1])]
        expected = math.sqrt(32) * float(row @ u / row.norm() / u.norm())
        assert record["promoted_z"] == pytest.approx(expected, rel=0.06)


def test_p_is_uniform_for_random_directions_and_small_for_a_tokens_own() -> None:
    live = tiny_model("gpt_neox")
    random = torch.randn(100, live.d_model, generator=torch.Generator().manual_seed(5))
    p = vector_lens(live, random, top=2, randoms=99)
    for rank in (1, 2):
        first = p[p["rank"] == rank].promoted_p
        assert 0.35 < first.mean() < 0.65 and (first <= 0.1).mean() < 0.2 and (first <= 0.5).mean() > 0.3
    token = live.tokenizer.convert_tokens_to_ids("Ġthe")
    own = unembedding(live)[token] * Oracle(live)._norm().weight.double()
    frame = vector_lens(live, own[None], top=1, randoms=99)
    assert frame.promoted[0] == " the" and frame.promoted_p[0] == 0.01 and frame.promoted_z[0] > 4


def test_another_seed_draws_other_directions() -> None:
    def drawn_with(seed: int) -> set[float]:
        p = vector_lens(model(), torch.eye(32)[:1] * 100, top=3, randoms=6, seed=seed)
        return {round(value, 6) for value in p.promoted_z}

    assert drawn_with(0) == drawn_with(0) and not drawn_with(0) & drawn_with(1)
    assert not drawn_with(1) & drawn_with(2)


def test_a_concept_without_a_direction_promotes_nothing() -> None:
    silent = replace(probes(), directions=torch.zeros_like(probes().directions))
    frame = logit_lens(model(), silent, 1, top=2, randoms=20)
    assert (
        (frame.promoted_score == 0).all() and (frame.promoted_p == 1).all() and frame.promoted_z.isna().all()
    )


# Which tokens count --------------------------------------------------------------------------------------------------


class Vocabulary:
    """A tokenizer of a few entries, one of each kind that a lens has to deal with."""

    entries = (
        "<s>", "<0x41>", "<unused7>", "\ufffd\ufffd", "  ", " Joy", "joy", "JOY ", "12", "!?", " радость", "喜", "née",
        " tears", "<|reserved|>",
    )  # fmt: skip
    all_special_ids = (0,)

    class Added:
        special = True

    added_tokens_decoder = {14: Added()}  # noqa: RUF012

    def __len__(self) -> int:
        return len(self.entries)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.entries[token] for token in ids]

    def decode(self, ids: list[int]) -> str:
        return self.entries[ids[0]]


class Lensed:
    """A model of which only the lens is asked: entry i scores by coordinate i; there is one more entry than tokens."""

    name, d_model, tokenizer = "lensed", 16, Vocabulary()

    def logit_lens(self, vectors: torch.Tensor, *, folded: bool = True) -> torch.Tensor:
        return vectors.clone()


@pytest.mark.parametrize(
    ("words", "left"),
    [
        ("text", [" Joy", "joy", "JOY ", "12", "!?", " радость", "喜", "née", " tears"]),
        ("letters", [" Joy", "joy", "JOY ", " радость", "喜", "née", " tears"]),
        ("latin", [" Joy", "joy", "JOY ", "née", " tears"]),
        ("cyrillic", [" радость"]),
    ],
)
def test_junk_is_left_out(words: str, left: list[str]) -> None:
    live: Any = Lensed()
    vectors = torch.arange(16.0)[None].flip(1)  # the higher the entry, the lower its score
    frame = vector_lens(live, vectors, top=50, words=words, randoms=3)
    assert list(frame.promoted) == left and list(frame.suppressed) == left[::-1]


def test_words_that_differ_in_case_or_space_are_shown_once_where_asked() -> None:
    live: Any = Lensed()
    vectors = torch.zeros(1, 16)
    vectors[0, 5:8] = torch.tensor([1.0, 3.0, -2.0])
    frame = vector_lens(live, vectors, top=2, merge=True, words="latin", randoms=60)
    assert frame.promoted[0] == "joy" and frame.suppressed[0] == "JOY "
    assert "joy" not in frame.promoted[1].casefold()
    apart = vector_lens(live, vectors, top=2, words="latin", randoms=60)
    assert list(apart.promoted) == ["joy", " Joy"]
    assert apart.promoted_p[1] < frame.promoted_p[1]  # a second word scores as random ones do


def test_what_cannot_be_read_is_refused() -> None:
    vectors = torch.ones(2, model().d_model)
    for call, message in (
        (lambda: vector_lens(model(), vectors[:, 1:]), r"\(2, 31\): give \(n, 32\)"),
        (lambda: vector_lens(model(), vectors[0]), r"give \(n, 32\)"),
        (lambda: vector_lens(model(), vectors, ["one"]), "1 names for 2 vectors"),
        (lambda: vector_lens(model(), vectors, top=0), "top=0"),
        (lambda: vector_lens(model(), vectors, words="klingon"), 'words="klingon" leaves no token'),
        (lambda: logit_lens(model(), probes(), 9), "layer 9 does not exist"),
    ):
        with pytest.raises(InputError, match=message):
            call()


@pytest.mark.shared
def test_a_real_vocabularys_single_bytes_are_left_out(shared: Path) -> None:
    live = load_model(shared / "models" / "stories260K")
    frame = vector_lens(live, torch.eye(live.d_model)[:8], top=400, randoms=0)
    names = set(live.tokenizer.convert_ids_to_tokens(list(range(len(live.tokenizer)))))
    pieces = {name for name in names if len(name) == 1 or not name.startswith("<")}
    assert set(frame.promoted) <= {piece.replace("▁", " ").strip() for piece in pieces}
    assert len(set(frame.promoted)) > 200
