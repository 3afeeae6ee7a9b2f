"""Emotion embeddings of a lexicon and of annotations: on tokens, in generation, and in the model."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from oracle import Oracle
from test_stream import relative
from tiny import WIDTH, tiny_model
from torch import Tensor

from emoprobe.errors import InputError
from emoprobe.interventions import Forward
from emoprobe.models import LiveModel
from emoprobe.scoring import text_nll
from emoprobe.valattn import (
    Valuation,
    compare_valuations,
    inject,
    lexicon_annotations,
    lexicon_table,
    lexicon_valuation,
    span_annotations,
)
from emoprobe.valattn.embeddings import emotions_of_pass

SCALE = (1.0, 9.0)
LEXICON = pd.DataFrame(
    {"valence": [9.0, 1.0, 5.0, 3.0], "arousal": [5.0, 7.0, 9.0, 1.0]},
    index=["dog", "dogged", "happy", "the"],
)
TEXTS = ["The dogs were happy, the Dog too.", "A dogged man"]
GREEDY = {"max_new_tokens": 8, "do_sample": False}


def pieces(model: LiveModel, row: int = 0) -> list[str]:
    """What is written at each position of a text, padding and special tokens as nothing."""
    spans = model.token_spans(model.tokenize(TEXTS))
    return [TEXTS[row][a:b] for a, b in spans[row]]


def test_all_tokens_of_a_word_get_what_the_lexicon_says_of_it() -> None:
    model = tiny_model("gpt2")
    e = lexicon_annotations(model, TEXTS, LEXICON, scale=SCALE)
    assert e.shape == (*model.tokenize(TEXTS).input_ids.shape, 2)
    expected, read = {}, "".join(pieces(model))
    assert read == TEXTS[0]
    for word, ratings in {
        "The": (-0.5, -1),
        "dogs": (1, 0),
        "happy": (0, 1),
        "the": (-0.5, -1),
        "Dog": (1, 0),
    }.items():
        start = TEXTS[0].index(word)
        expected |= dict.fromkeys(range(start, start + len(word)), ratings)
    position, split = 0, 0
    for row, piece in zip(e[0], pieces(model), strict=True):
        characters = {expected[i] for i in range(position, position + len(piece)) if i in expected}
        position += len(piece)
        assert len(characters) <= 1
        if characters:
            assert row.tolist() == list(*characters)
            split += len(piece.strip()) < 3
        else:
            assert row.isnan().all()
    assert split > 2  # words of several tokens were among them


def test_causal_annotations_know_of_a_word_what_has_been_read_of_it() -> None:
    model = tiny_model("gpt2")
    e = lexicon_annotations(model, TEXTS, LEXICON, scale=SCALE, causal=True)
    so_far = ""
    found = []
    for row, piece in zip(e[1], pieces(model, 1), strict=True):
        so_far += piece
        found.append((so_far.removeprefix("A ").strip(), row[0].item()))
    read = dict(found)
    assert (
        read["dogged"] == -1.0 and read["dog"] == 1.0
    )  # the same token, before and after it is known to go on
    assert np.isnan(read["d"]) if "d" in read else True
    whole = lexicon_annotations(model, TEXTS, LEXICON, scale=SCALE)
    assert not torch.equal(whole.nan_to_num(9), e.nan_to_num(9))
    cut = lexicon_annotations(model, [TEXTS[1][:5]], LEXICON, scale=SCALE, causal=True)
    full = e[1][model.tokenize(TEXTS).real[1]]
    same = model.tokenize(TEXTS[1][:5]).input_ids.shape[1]
    assert torch.equal(cut[0].nan_to_num(9), full[:same].nan_to_num(9))  # what follows changes nothing


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_table_is_of_tokens_that_are_words_by_themselves(family: str) -> None:
    model = tiny_model(family)
    words = ["the", "was", "and", "happy", "h", "athe", "ah"]
    lexicon = pd.DataFrame({"x": [1.0, 0.0, 0.75, 0.25, 1.0, 1.0, 1.0]}, index=words)
    table = lexicon_table(model, lexicon, scale=(0, 1))
    assert table.shape == (len(model.tokenizer), 1)
    said = {
        model.tokenizer.decode([i]): round(table[i, 0].item(), 3)
        for i in table.any(-1).nonzero()[:, 0].tolist()
    }
    assert said[" the"] == 1.0 and said[" was"] == -1.0 and said[" and"] == 0.5
    assert "the" not in said and "h" not in said  # these are found within words
    assert said.keys() <= {f" {word}" for word in words}


def by_hand(valuation: Valuation, e: Tensor, lam: float) -> dict[int, list]:
    weight = valuation.weight.double()
    return {
        layer: [(lam, lambda x, row=row: torch.tanh(torch.cat([x[0], e.double()], -1) @ weight[row].T)[None])]
        for row, layer in enumerate(valuation.layers)
    }


def test_annotations_come_before_the_table_and_the_table_before_nothing() -> None:
    model = tiny_model("gpt2")
    lexicon = pd.DataFrame({"x": [1.0, -1.0, 0.5], "y": [0.5, 1.0, -1.0]}, index=["the", "dog", "happy"])
    valuation = lexicon_valuation(model, lexicon, [0, 2], scale=(-1, 1), gain=2.0)
    assert valuation.metadata["source"] == "lexicon" and valuation.dimensions == ("x", "y")
    e = lexicon_annotations(model, TEXTS, lexicon, scale=(-1, 1))
    batch, oracle = model.tokenize(TEXTS), Oracle(model)
    with inject(model, valuation, 1.5, emotions=e):
        both = model.logits(TEXTS)
    with inject(model, valuation, 1.5):
        table_only = model.logits(TEXTS)
    assert valuation.embedding is not None
    for row, real in enumerate(batch.real):
        ids = batch.input_ids[row][real]
        table = valuation.embedding[ids]
        joined = torch.where(e[row][real].isnan(), table, e[row][real])
        assert not torch.equal(joined, table)
        truth = oracle.logits(ids, by_hand(valuation, joined, 1.5))
        assert relative(both[row][real], truth) < 1e-6
        assert relative(table_only[row][real], oracle.logits(ids, by_hand(valuation, table, 1.5))) < 1e-6
    with inject(model, valuation, 1.5, emotions=e):
        text = model.generate(TEXTS, **GREEDY)
        assert text == model.generate(TEXTS, use_cache=False, **GREEDY)
        beams = model.generate(TEXTS, num_beams=2, **GREEDY)
        assert beams == model.generate(TEXTS, num_beams=2, use_cache=False, **GREEDY)


def test_what_is_generated_has_what_the_table_says_or_nothing() -> None:
    table, given = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[[5.0], [torch.nan]]])
    ids = torch.tensor([[2, 1], [1, 0]])  # one prompt, two sequences
    behind = Forward(torch.ones(2, 2, dtype=torch.bool), ids, start=1, prompt_length=2)
    for tables, expected in ((table, [[3.0, 2.0], [2.0, 1.0]]), (None, [[0.0, 0.0], [0.0, 0.0]])):
        e = emotions_of_pass(tables, given)(behind)
        assert e is not None and e[..., 0].tolist() == expected
    within = Forward(torch.ones(2, 2, dtype=torch.bool), ids, prompt_length=2)
    e = emotions_of_pass(table, given)(within)
    assert e is not None and e[..., 0].tolist() == [[5.0, 2.0], [5.0, 1.0]]
    assert emotions_of_pass(None, None)(within) is None
    with pytest.raises(InputError, match=r"\(1, 2, 1\) do not fit 2 prompts of 3 positions"):
        emotions_of_pass(table, given)(replace(within, prompt_length=3))


def test_every_kind_of_valuation_does_what_every_other_does(tmp_path: Path) -> None:
    """Probed, random, lexicon-only and annotated: injected, saved, loaded, made random and compared by the same calls."""
    model = tiny_model("llama", dtype=torch.float32)
    lexicon = pd.DataFrame({"a": [1.0, -1.0, 0.5], "b": [0.5, 1.0, -1.0]}, index=["the", "was", "and"])
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 2, WIDTH, generator=g) / 4
    probed = Valuation(weight, torch.zeros(2, 2), ("a", "b"), (0, 2), centre=torch.zeros(2, WIDTH))
    by_words = lexicon_valuation(model, lexicon, [0, 2], scale=(-1, 1))
    annotated = Valuation.annotated(WIDTH, [0, 2], ["a", "b"])
    e = lexicon_annotations(model, TEXTS, lexicon, scale=(-1, 1))
    untouched = model.logits(TEXTS)
    for valuation in (
        probed,
        probed.random_like(1),
        probed.widened(3),
        by_words,
        by_words.random_like(1),
        annotated,
    ):
        given = e if valuation is annotated else None
        with inject(model, valuation, 2.0, emotions=given):
            touched = model.logits(TEXTS)
        assert not torch.equal(touched, untouched)
        loaded = Valuation.load(valuation.save(tmp_path / "v.safetensors"))
        with inject(model, loaded, 2.0, emotions=given):
            assert torch.equal(model.logits(TEXTS), touched)
    with pytest.raises(InputError, match="shuffle the annotations"):
        annotated.random_like(0)
    from test_valuation import make_corpus

    corpus = make_corpus(4)
    learned = replace(by_words, strength=torch.tensor([1.0, -1.0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = compare_valuations(model, by_words, learned, corpus, controls=2)
        mixed = compare_valuations(model, probed, learned, corpus, controls=2)
    table = same.alignment.set_index("quantity")
    assert np.allclose(table.loc["token correlation", "value"], 1)
    assert table.loc["row cosine", "value"].isna().all()  # its rows do not look at the stream
    assert mixed.nll.nll.notna().all()
    total, count = text_nll(model, corpus.texts)
    assert same.nll.set_index("condition").nll["untouched"] == pytest.approx(float(total.sum() / count.sum()))


def test_a_random_lexicon_is_the_same_ratings_of_other_words() -> None:
    model = tiny_model("gpt2")
    lexicon = pd.DataFrame({"x": [1.0, -1.0, 0.5, 0.25]}, index=["the", "was", "and", "to"])
    valuation = lexicon_valuation(model, lexicon, scale=(-1, 1))
    assert valuation.layers == (0, 1, 2)
    one, other = valuation.embedding, valuation.random_like(3).embedding
    assert one is not None and other is not None and not torch.equal(one, other)
    assert torch.equal(one.any(-1), other.any(-1))
    assert torch.equal(one.sort(0).values, other.sort(0).values)
    assert torch.equal(valuation.random_like(3).weight, valuation.weight)


def test_bad_lexicons_and_spans_are_named() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(InputError, match=r"1 to 9, do not lie on scale=\(0, 1\)"):
        lexicon_table(model, LEXICON, scale=(0, 1))
    with pytest.raises(InputError, match='has "dog" twice'):
        lexicon_annotations(model, TEXTS, pd.concat([LEXICON, LEXICON[:1]]), scale=SCALE)
    with pytest.raises(InputError, match="spans of 1 texts were given for 2 texts"):
        span_annotations(model, TEXTS, [[]], ["x"])


@pytest.mark.shared
def test_people_s_norms_on_a_bundled_model(shared: Path) -> None:
    from emoprobe.corpora.emotion_words import load_word_norms
    from emoprobe.models import load_model

    norms = load_word_norms(shared / "data" / "warriner_vad" / "Ratings_Warriner_et_al.csv")
    model = load_model("bundled")
    text = "The brilliantly terrible movie had the audience laughing hysterically."
    e = lexicon_annotations(model, text, norms, scale=SCALE)[0]
    spans = model.token_spans(model.tokenize(text))[0]
    valence = {text[a:b].strip(): value for (a, b), value in zip(spans, e[:, 0].tolist(), strict=True)}
    word = text.index("terrible")
    inside = [e[i, 0].item() for i, (a, b) in enumerate(spans) if a < word + 8 and word < b]
    assert max(inside) < -0.3 and valence
    table = lexicon_table(model, norms, scale=SCALE)
    assert table.any(-1).sum() > 100
