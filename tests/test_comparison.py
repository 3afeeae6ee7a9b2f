"""Probed against learned valuations: each table worked out another way, and its pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import pearsonr
from small_study import small_corpus, small_model
from tiny import tiny_model

from emoprobe.corpora import Corpus
from emoprobe.errors import InputError
from emoprobe.intervals import mean_interval
from emoprobe.models import LiveModel
from emoprobe.scoring import text_nll
from emoprobe.valattn import Comparison, Valuation, compare_valuations, inject
from emoprobe.valattn.attention_patterns import attention_patterns, word_spans
from emoprobe.valattn.compare_behaviour import emotional_texts, per_token
from emoprobe.valattn.compare_figures import FIGURES
from emoprobe.valattn.subspaces import (
    matched_cosines,
    overlaps,
    overlaps_by_chance,
    principal_angles,
    row_cosines,
)

NAMES = ("valence", "arousal")
WORDS = {"glad": {"good", "laughing"}, "negating": {"never"}, "absent": {"zebra"}}


def make(seed: int = 0, **fields: Any) -> Valuation:
    draw = torch.Generator().manual_seed(seed)
    weight, bias = torch.randn(2, 2, 32, generator=draw) / 4, torch.randn(2, 2, generator=draw)
    return Valuation(weight, bias, NAMES, (0, 2), **fields)


@pytest.fixture(scope="module")
def compared() -> Iterator[tuple[LiveModel, Comparison]]:
    model = small_model()
    learned = [
        make(1, strength=torch.tensor([0.5, -0.2])),
        make(2, strength=torch.tensor([[0.1, 0.2, 0.3, 0.4]] * 2)),
    ]
    yield (
        model,
        compare_valuations(
            model,
            make(),
            learned,
            small_corpus(),
            learned_from_random=make(3, strength=torch.tensor(0.4)),
            words=WORDS,
            controls=3,
        ),
    )


# Rows and spaces ---------------------------------------------------------------------------------------------


def test_rows_are_matched_whatever_their_order_and_sign() -> None:
    draw = np.random.default_rng(0)
    a = draw.normal(size=(4, 20))
    order, signs = [2, 0, 3, 1], np.array([1, -1, -1, 1.0])
    b = 3 * signs[:, None] * a[order]
    assert matched_cosines(a, b) == pytest.approx(np.ones(4))
    assert np.abs(row_cosines(a, b)).max() < 0.7
    assert (
        np.isnan(principal_angles(a[:2] * [[0], [1]], b[:2])).all()
        and np.isnan(overlaps(0 * a[None], b[None])).all()
    )
    assert np.isnan(matched_cosines(a * [[1], [0], [1], [1]], b)).sum() == 1
    c = draw.normal(size=(4, 20))
    sizes = np.abs(a @ c.T) / np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(c, axis=1))
    best = max(sum(sizes[k, p] for k, p in enumerate(way)) for way in permutations(range(4)))
    assert matched_cosines(a, c).sum() == pytest.approx(best)


def test_overlap_is_that_of_the_angles_and_m_of_d_by_chance() -> None:
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(2, 3, 40)), draw.normal(size=(2, 3, 40))
    expected = [(np.cos(np.deg2rad(principal_angles(x, y))) ** 2).mean() for x, y in zip(a, b, strict=True)]
    assert overlaps(a, b) == pytest.approx(expected)
    mixed = np.einsum("jk,lkd->ljd", draw.normal(size=(3, 3)), a)
    assert overlaps(a, mixed) == pytest.approx([1, 1])
    chance = overlaps_by_chance(a, b, 400, seed=0)
    assert chance.shape == (400, 2) and chance.mean() == pytest.approx(3 / 40, rel=0.1)
    # One rotation for all layers: what makes layers alike is kept.
    same = overlaps_by_chance(np.stack([a[0]] * 2), np.stack([b[0]] * 2), 5, seed=0)
    assert same[:, 0] == pytest.approx(same[:, 1]) and np.ptp(same[:, 0]) > 0.01


# Tables ------------------------------------------------------------------------------------------------------


def test_alignment_is_averaged_over_seeds_with_its_interval(compared: tuple[LiveModel, Comparison]) -> None:
    _, found = compared
    probed, learned = make(), [make(1), make(2)]
    table = found.alignment.set_index(["quantity", "layer", "dimension"])
    for row, layer in enumerate((0, 2)):
        each = [
            row_cosines(probed.weight[row].double().numpy(), one.weight[row].double().numpy())[1]
            for one in learned
        ]
        at = table.loc[("row cosine", layer, "arousal")]
        student = np.array(mean_interval(each))
        assert (abs(student) > 1).any(), "of two cosines this far apart, beyond what a cosine can be"
        assert [at["value"], at["low"], at["high"]] == pytest.approx(student.clip(-1, 1), rel=1e-5)
        random = [
            row_cosines(probed.weight[row].numpy(), probed.random_like(10_000 + k).weight[row].numpy())[1]
            for k in range(3)
        ]
        assert [at.from_random_low, at.from_random_high] == pytest.approx(
            [min(random), max(random)], rel=1e-4
        )
    assert np.isnan(at.started_low), "one start has no interval"
    space = found.overlap[(found.overlap.condition == "learned") & (found.overlap.seed == 1)]
    expected = overlaps(learned[1].weight.double().numpy(), probed.weight.double().numpy())
    assert space.overlap.tolist() == pytest.approx(expected.tolist())
    assert found.overlap.groupby("condition").seed.nunique().to_dict() == {
        "learned": 2,
        "learned from random": 1,
        "random 0": 1,
        "random 1": 1,
        "random 2": 1,
    }


def test_cka_is_1_for_itself_and_about_0_for_noise() -> None:
    model, probed = small_model(), make(strength=torch.tensor(0.3))
    turned = torch.linalg.qr(torch.randn(2, 2, generator=torch.Generator().manual_seed(0)))[0]
    small = replace(probed, weight=probed.weight / 50, bias=probed.bias * 0)  # tanh hardly bends
    rotated = replace(small, weight=torch.einsum("jk,lkd->ljd", turned, small.weight))
    table = compare_valuations(model, small, rotated, small_corpus(), controls=1).alignment
    assert table[table.quantity == "CKA"].value.tolist() == pytest.approx([1, 1], abs=1e-3)
    few = compare_valuations(model, small, rotated, small_corpus(), controls=1, limit=3).alignment
    assert few[few.quantity == "CKA"].value.isna().all()


def test_agreement_with_annotations_by_text(compared: tuple[LiveModel, Comparison]) -> None:
    model, found = compared
    corpus, probed = small_corpus(), make()
    read = []
    for text in corpus.texts:
        with torch.no_grad():
            stream = model.streams(model.tokenize(text), [2])[0, 0, 1:]
        read.append(float(probed.values(stream, 2)[:, 0].mean()))
    table = found.annotation.set_index(["of", "condition", "seed", "layer", "dimension"])
    at = table.loc[("text", "probed", 0, 2, "valence")]
    assert at.r == pytest.approx(pearsonr(read, corpus.values("valence")).statistic, abs=1e-4)
    assert at.low < at.r < at.high and 0 < at.random_high < 1
    assert set(found.annotation["of"]) == {"text"}, "no word of this corpus is annotated"
    assert set(table.loc["text"].index.get_level_values("condition")) == {
        "probed",
        "learned",
        "learned from random",
    }


def test_agreement_with_annotations_by_word() -> None:
    """A valuation of words alone, which says just what people say of them; no two of these words share a letter."""
    model = tiny_model("gpt2", dtype=torch.float32)
    said = {"sad": -1.0, "big": 0.0, "fun": 1.0}
    sentences = [[(word, said[word]) for word in order] for order in permutations(said)]
    corpus = Corpus.from_words(sentences, dimensions=("valence",))
    table = torch.zeros(len(model.tokenizer), 1)
    for token in range(len(table)):
        spelled = model.tokenizer.decode([token]).strip()
        table[token] = next((value for word, value in said.items() if spelled and spelled in word), 0.0)
    start = Valuation.annotated(32, (0, 1), ("valence",))
    lexicon = replace(start, embedding=table, strength=torch.tensor(0.1))
    found = compare_valuations(model, lexicon, lexicon, corpus, controls=0).annotation
    assert set(found["of"]) == {"token"}, "the sentences as wholes are not annotated"
    assert found.r.tolist() == pytest.approx([1.0] * 4) and found.random_high.isna().all()


def test_prediction_is_averaged_over_seeds_and_the_probed_one_takes_the_lambda_of_each(
    compared: tuple[LiveModel, Comparison],
) -> None:
    model, found = compared
    used = small_corpus()
    before, count = text_nll(model, used.texts)
    strengths = [torch.tensor([0.5, -0.2]), torch.tensor([[0.1, 0.2, 0.3, 0.4]] * 2)]
    nll = found.nll.set_index("condition")
    for name, seeds in {"learned": (1, 2), "probed": (0, 0)}.items():
        changes = []
        for seed, lam in zip(seeds, strengths, strict=True):
            with inject(model, make(seed), lam):
                changes.append((text_nll(model, used.texts)[0] - before).numpy())
        expected = per_token(np.mean(changes, axis=0), count.numpy(), used.groups)
        assert nll.loc[name, ["delta", "low", "high"]].tolist() == pytest.approx(expected, rel=1e-3, abs=1e-6)
        each = [change.sum() / float(count.sum()) for change in changes]
        assert nll.loc[name, ["seeds_low", "seeds_high"]].tolist() == pytest.approx(
            mean_interval(each)[1:], rel=1e-3
        )
    assert nll.loc["learned", "lambda"] == pytest.approx((0.35 + 0.25) / 2)
    for kind, rows in emotional_texts(used).items():
        part = found.emotional[
            (found.emotional.texts == kind) & (found.emotional.condition == "probed")
        ].iloc[0]
        expected = per_token(np.mean(changes, axis=0)[rows], count.numpy()[rows], used.groups[rows])
        assert [part.delta, part.low, part.high] == pytest.approx(expected, rel=1e-3, abs=1e-6)
        assert part.n == rows.sum() > 0
    assert found.strengths.groupby(["condition", "seed"]).size().to_dict() == {
        ("learned", 0): 2,
        ("learned", 1): 8,
        ("learned from random", 0): 2,
    }


def test_which_texts_are_emotional() -> None:
    corpus = small_corpus()
    kinds, size = emotional_texts(corpus), np.abs(corpus.values("valence"))
    assert size[kinds["emotional"]].min() > size[kinds["neutral"]].max()
    labelled = Corpus.from_columns(
        {"text": ["a", "b", "c", "d"], "labels": [["joy"], ["neutral"], ["joy", "neutral"], []]},
        name="labelled",
    )
    assert {kind: rows.tolist() for kind, rows in emotional_texts(labelled).items()} == {
        "emotional": [True, False, False, False],
        "neutral": [False, True, False, False],
    }
    assert emotional_texts(Corpus.from_columns({"text": ["a", "b"]}, name="no annotation")) == {}


# Attention ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_attention_is_summed_up_as_by_hand(family: str) -> None:
    """Each text alone, loops over heads, queries and keys; in a batch of padded texts it is the same."""
    model = tiny_model(family, dtype=torch.float32)
    texts = ["The music was good, not loud.", "It never came back!", "So good"]
    valuation = make(strength=torch.tensor([1.5, 1.5]))
    words = {"good": {"good"}, "negating": {"not", "never"}}
    with inject(model, valuation):
        found = attention_patterns(model, texts, [0, 2], words, batch_size=3)
        for row, text in enumerate(texts):
            batch = model.tokenize(text)
            assert batch.offsets is not None
            with torch.no_grad():
                weights = model.attention(batch, [0, 2])[1][:, 0].double().numpy()
            members = [
                [
                    k
                    for k, (a, b) in enumerate(batch.offsets[0])
                    if any(a < e and s < b for s, e in word_spans(text, kind))
                ]
                for kind in words.values()
            ]
            for layer in range(2):
                sums = np.zeros(4)
                heads, length = weights.shape[1], weights.shape[2]
                for head in range(heads):
                    for query in range(1, length):
                        w = weights[layer, head, query]
                        sums[0] -= sum(p * np.log(p) for p in w if p > 0)
                        sums[1] += sum(p * (query - k) for k, p in enumerate(w[: query + 1]))
                        sums[2:] += [w[kind].sum() for kind in members]
                expected = sums / (heads * (length - 1))
                expected[2:][[not kind for kind in members]] = np.nan
                assert found[row, layer] == pytest.approx(expected, rel=1e-4, nan_ok=True)
    untouched = attention_patterns(model, texts, [0, 2], words)
    assert np.nanmax(np.abs(untouched - found)) > 0.01, "it was the biased attention"


def test_words_are_found_whole_and_with_their_contractions() -> None:
    text = "Nothing is not knotty; it isn't, it isn’t."
    assert [text[a:b] for a, b in word_spans(text, {"not", "nothing"})] == [
        "Nothing",
        "not",
        "isn't",
        "isn’t",
    ]
    assert word_spans(text, {"it's"}) == []


def test_the_change_of_attention_beside_random_valuations(compared: tuple[LiveModel, Comparison]) -> None:
    model, found = compared
    used = small_corpus()
    texts = used.select(indices=np.random.default_rng(0).permutation(len(used))[:40])
    before = attention_patterns(model, texts.texts, [0, 2], WORDS)
    with inject(model, make(3), 0.4):
        after = attention_patterns(model, texts.texts, [0, 2], WORDS)
    change = (after - before)[:, 1, 0]
    table = found.attention.set_index(["condition", "layer", "quantity"])
    at = table.loc[("learned from random", 2, "entropy")]
    expected = per_token(change, np.ones(len(change)), texts.groups)
    assert [at.change, at.low, at.high] == pytest.approx(expected, rel=1e-4)
    assert at.untouched == pytest.approx(before[:, 1, 0].mean())
    assert at.random_low < at.random < at.random_high and np.isnan(at.seeds_low)
    assert set(found.attention.quantity) == {"entropy", "distance", "on glad words", "on negating words"}
    learned = table.loc[("learned", 2, "entropy")]
    assert learned.seeds_low < learned.change < learned.seeds_high


# Pictures ----------------------------------------------------------------------------------------------------


def test_each_question_has_its_picture_and_a_notebook_shows_them(
    compared: tuple[LiveModel, Comparison],
) -> None:
    _, found = compared
    for question in FIGURES:
        assert found.plot(question).axes
    shown = replace(found, name="<script>")._repr_html_()
    assert shown.count("<svg") == len(FIGURES) and "<script>" not in shown and "&lt;script&gt;" in shown
    with pytest.raises(InputError, match='question="x"'):
        found.plot("x")
    with pytest.raises(InputError, match="nothing to draw of annotation"):
        replace(found, annotation=pd.DataFrame()).plot("annotation")
    assert replace(found, annotation=pd.DataFrame())._repr_html_().count("<svg") == len(FIGURES) - 1


def test_the_closing_sentence_claims_no_more_than_the_intervals(
    compared: tuple[LiveModel, Comparison],
) -> None:
    found = compared[1]
    nll = found.nll.copy()
    learned, probed = (nll.condition == name for name in ("learned", "probed"))
    nll.loc[learned, ["delta", "low", "high"]] = [-0.02, -0.03, -0.01]
    nll.loc[probed, ["excess", "excess_low", "excess_high"]] = [0.01, -0.002, 0.022]
    said = replace(found, nll=nll).verdict()
    assert "NLL -0.0200 nats per token [-0.0300, -0.0100], lower." in said
    assert said.endswith("NLL +0.0100 nats per token [-0.0020, +0.0220], a difference is not shown.")
    assert said in repr(replace(found, nll=nll)).splitlines()[-1]
    nll.loc[probed, ["excess_low", "excess_high"]] = [0.002, 0.018]
    assert replace(found, nll=nll).verdict().endswith("higher.")
    far = found.alignment.assign(value=-1.0)
    assert "are not shown to be more alike than random" in replace(found, alignment=far).verdict()


def test_no_learned_valuation_is_said() -> None:
    with pytest.raises(InputError, match="no learned valuation"):
        compare_valuations(small_model(), make(), [], small_corpus())


def test_lines_are_what_the_tables_say(compared: tuple[LiveModel, Comparison]) -> None:
    _, found = compared
    texts = found.annotation[found.annotation["of"] == "text"]
    for question, table, panel, value in (
        ("attention", found.attention, "quantity", "change"),
        ("annotation", texts, "dimension", "r"),
    ):
        axes = found.plot(question).axes
        for axis, name in zip(axes, table[panel].unique(), strict=False):
            drawn = {str(line.get_label()): line.get_xydata().tolist() for line in axis.get_lines()}
            for condition, rows in table[table[panel] == name].groupby("condition"):
                means = rows.groupby("layer")[value].mean()
                assert drawn[str(condition)] == pytest.approx(means.reset_index().to_numpy()), (
                    name,
                    condition,
                )
