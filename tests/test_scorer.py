"""The corpus scorer against scores of each text alone, and what it holds on to."""

import re
import weakref
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from html import unescape
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from small_probes import WORDS, model, probes, texts

from emoprobe.activations import WINDOW
from emoprobe.errors import InputError
from emoprobe.probes.readout import random_probes
from emoprobe.probes.reference_corpus import reference
from emoprobe.probes.scorer import CorpusScores, score_corpus
from emoprobe.probes.snippets import Best, Snippet
from emoprobe.probes.tally import Tally

CORPUS = texts(60, seed=7)
CONCEPTS = ["high", "planted", "noise"]
ANYWHERE = ["concept", "side", "rank", "position", "snippet"]


@cache
def streams(text: str) -> Any:
    """Return the residual streams (layers, tokens, d_model) of one text alone, from its second token on, float64."""
    with torch.no_grad():
        return model().streams(model().tokenize(text), range(4))[:, 0, 1:].double().numpy()


def by_hand(written: list[str], concept: str, layer: int, kind: str) -> list[Any]:
    """Return each text's values from its second token on, one text at a time."""
    column = probes().concept_index(concept)
    u, mean = (
        part.double().numpy() for part in (probes().directions[layer, column], probes().reference_mean[layer])
    )
    scale, offset, std = (
        float(part[layer, column]) for part in (probes().scale, probes().offset, probes().reference_std)
    )
    read = {
        "dot": lambda x: x @ u,
        "read_out": lambda x: scale * (x @ u) + offset,
        "z": lambda x: (x - mean) @ u / std,
        "cosine": lambda x: x @ u / np.linalg.norm(x, axis=1),
    }[kind]
    return [read(streams(text)[layer]) for text in written]


# Against each text alone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["z", "cosine", "read_out"])
@pytest.mark.parametrize("by", ["token", "text"])
def test_snippets_are_those_of_the_highest_and_lowest_texts(kind: str, by: str) -> None:
    found = score_corpus(model(), probes(), CORPUS, concepts=CONCEPTS, kind=kind, by=by, top=5, randoms=3)
    frame = found.snippets
    assert len(frame) == len(CONCEPTS) * 2 * 5
    for concept in CONCEPTS:
        layer = probes().best_layer(concept)
        assert found.layers[concept] == layer
        values = by_hand(CORPUS, concept, layer, kind)
        for side, sign in (("top", 1), ("bottom", -1)):
            strongest = [int((sign * v).argmax()) + 1 for v in values]
            scores = np.array([v.mean() if by == "text" else sign * (sign * v).max() for v in values])
            order = np.argsort(-sign * scores)[:5]
            part = frame[(frame.concept == concept) & (frame.side == side)]
            assert part.text.is_unique
            assert np.allclose(part.score, scores[order], atol=1e-5)  # of equals, any
            assert np.allclose(part.score, scores[part.text], atol=1e-5)
            assert list(part.position) == [strongest[row] for row in part.text]
            assert list(part["rank"]) == [1, 2, 3, 4, 5]


def test_the_distribution_is_that_of_all_tokens() -> None:
    found = score_corpus(model(), probes(), CORPUS, concepts=CONCEPTS, kind="dot", randoms=0)
    for row in found.distribution.to_dict("records"):
        values = np.concatenate(by_hand(CORPUS, row["concept"], row["layer"], "dot"))
        assert row["tokens"] == len(values) == found.tokens
        assert row["mean"] == pytest.approx(values.mean(), abs=1e-6)
        assert row["std"] == pytest.approx(values.std(), rel=1e-5)
        assert row["lowest"] == pytest.approx(values.min()) and row["highest"] == pytest.approx(values.max())
        for name in ("q01", "q05", "q10", "q50", "q90", "q95", "q99"):
            share = int(name[1:]) / 100
            near = np.quantile(values, [max(0, share - 1 / len(values)), min(1, share + 1 / len(values))])
            assert near[0] - 0.01 * values.std() <= row[name] <= near[1] + 0.01 * values.std()


def test_results_depend_on_neither_batches_nor_order_nor_padding() -> None:
    written = [*CORPUS, *(text.upper() for text in CORPUS[:9]), *CORPUS[:20]]
    found = score_corpus(model(), probes(), written, top=6, batch_size=32)
    for batch_size in (1, 5):
        same = score_corpus(model(), probes(), written, top=6, batch_size=batch_size)
        assert same.snippets[[*ANYWHERE, "text"]].equals(found.snippets[[*ANYWHERE, "text"]])
        assert np.allclose(same.snippets.score, found.snippets.score, atol=1e-5)
        check_equal(same, found)
    backwards = score_corpus(model(), probes(), written[::-1], top=6, batch_size=7)
    assert backwards.snippets[ANYWHERE].equals(found.snippets[ANYWHERE])
    check_equal(backwards, found)


def check_equal(one: CorpusScores, other: CorpusScores) -> None:
    for left, right in ((one.distribution, other.distribution), (one.controls, other.controls)):
        assert left.columns.equals(right.columns)
        for column in left:
            if left[column].dtype.kind == "f":
                assert np.allclose(left[column], right[column], atol=1e-5, equal_nan=True)
            else:
                assert left[column].equals(right[column])


def test_scores_of_two_parts_add_up() -> None:
    options: Any = {"concepts": CONCEPTS, "top": 4}
    whole = score_corpus(model(), probes(), [*CORPUS[:25], " ", *CORPUS[25:]], **options)
    parts = [score_corpus(model(), probes(), part, **options) for part in ([*CORPUS[:25], " "], CORPUS[25:])]
    joined = parts[0] + parts[1]
    assert joined.snippets[[*ANYWHERE, "text"]].equals(whole.snippets[[*ANYWHERE, "text"]])
    assert (joined.texts, joined.skipped, joined.tokens) == (60, 1, whole.tokens)
    check_equal(joined, whole)
    assert len(parts[0].snippets.text.unique()) and parts[0].snippets.text.max() < 25  # left as they were
    for changed in ({"top": 5}, {"kind": "dot"}, {"concepts": ["high"]}, {"by": "text"}):
        with pytest.raises(InputError, match="do not add up"):
            parts[0] + score_corpus(model(), probes(), CORPUS[:3], **{**options, **changed})


def test_scores_may_be_about_a_reference_and_at_another_layer() -> None:
    about = reference(model(), probes(), CORPUS, name="this corpus")
    found = score_corpus(model(), probes(), CORPUS, concepts=["high"], layer=1, reference=about)
    (row,) = found.distribution.to_dict("records")
    assert row["layer"] == 1 and row["mean"] == pytest.approx(0, abs=1e-4)
    assert row["std"] == pytest.approx(1, abs=1e-4) and "of this corpus" in repr(found)


# Snippets ------------------------------------------------------------------------------------------------------------


def test_a_snippet_is_a_window_around_the_strongest_token() -> None:
    for window in (0, 2, 50):
        found = score_corpus(model(), probes(), CORPUS, concepts=["planted"], top=3, window=window, randoms=0)
        for row in found.snippets.to_dict("records"):
            offsets = model().tokenize(CORPUS[row["text"]]).offsets
            assert offsets is not None
            spans = offsets[0]
            first, last = max(0, row["position"] - window), min(len(spans) - 1, row["position"] + window)
            assert row["snippet"] == CORPUS[row["text"]][spans[first][0] : spans[last][1]]
            (kept,) = [s for s in found.best["planted", row["side"]].ordered() if s.text == row["text"]]
            values = by_hand([CORPUS[row["text"]]], "planted", probes().best_layer("planted"), "z")[0]
            shown = [value for _, value in kept.pieces][first == 0 :]
            assert np.allclose(shown, values[max(0, first - 1) : last], atol=1e-5)


def test_of_near_identical_snippets_the_highest_is_kept_once() -> None:
    found = score_corpus(model(), probes(), CORPUS, concepts=["planted"], top=1, window=50, randoms=0)
    (best,) = found.snippets[found.snippets.side == "top"].to_dict("records")
    again = [CORPUS[best["text"]]] * 4
    more = score_corpus(
        model(), probes(), [*again, *CORPUS], concepts=["planted"], top=5, window=50, randoms=0
    )
    top = more.snippets[more.snippets.side == "top"]
    assert top.snippet.is_unique and top.text.iloc[0] == 0 and len(top) == 5
    assert more.texts == len(CORPUS) + 4  # all count in the distribution


def test_what_is_alike_differs_in_case_digits_spaces_or_punctuation_only() -> None:
    def alike(words: str) -> str:
        return Snippet(0, 0.0, 0, ((words, 0.0),)).alike

    assert alike("At 9:45, he  Wept!") == alike("at 12:03 he wept") != alike("at 12:03 he slept")
    assert alike("!!!") != alike("???")


def test_the_best_are_the_same_in_any_order() -> None:
    generator = np.random.default_rng(0)
    drawn = [
        Snippet(number, float(generator.integers(0, 40)), 0, ((f"w{chr(97 + number % 17)}", 0.0),))
        for number in range(200)
    ]
    for sign in (1, -1):
        expected: dict[str, float] = {}
        for snippet in drawn:
            before = expected.get(snippet.words, -np.inf)
            expected[snippet.words] = max(before, sign * snippet.score)
        highest = sorted(((score, words) for words, score in expected.items()), reverse=True)[:6]
        for seed in range(5):
            best = Best(6, sign, 1e-5)
            for place in np.random.default_rng(seed).permutation(200):
                best.add(drawn[place])
            assert [(sign * s.score, s.words) for s in best.ordered()] == highest
            assert best.floor == pytest.approx(highest[-1][0], abs=1e-4)


def test_scores_that_differ_by_rounding_rank_as_equal() -> None:
    for order in (1, -1):
        best = Best(2, 1, 1e-5)
        for text, score in [(5, 2.0), (2, 2.0 - 1e-8), (9, 2.0 + 1e-8)][::order]:
            best.add(Snippet(text, score, 0, (("so it goes", 0.0),)))
        assert [snippet.text for snippet in best.ordered()] == [2]


# The control ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [2, None])
def test_tails_are_held_against_random_directions_of_the_same_pass(layer: int | None) -> None:
    found = score_corpus(
        model(), probes(), CORPUS, concepts=["high", "noise"], layer=layer, randoms=12, seed=4
    )
    assert layer or len(set(found.layers.values())) == 2

    def tail(u: torch.Tensor, depth: int, sign: int) -> float:
        x = np.concatenate([streams(text)[depth] for text in CORPUS])
        along = sign * (x @ u.double().numpy())
        return float((np.quantile(along, 0.999) - along.mean()) / along.std())

    for row in found.controls.to_dict("records"):
        depth, sign = row["layer"], 1 if row["side"] == "top" else -1
        own = probes().directions[depth, probes().concept_index(row["concept"])]
        first = next(name for name in found.layers if found.layers[name] == depth)
        turned = random_probes(probes(), first, 12, 4).directions[depth]
        chance = [tail(turned[number], depth, sign) for number in range(12)]
        assert row["tail"] == pytest.approx(tail(own, depth, sign), abs=0.05)
        assert row["random"] == pytest.approx(np.mean(chance), abs=0.03)
        assert row["random_low"] < row["random"] < row["random_high"]
        unclear = sum(abs(value - row["tail"]) <= 0.05 for value in chance)
        longer = sum(value > row["tail"] + 0.05 for value in chance)
        assert unclear < 6 and (1 + longer) / 13 <= row["p"] <= (1 + longer + unclear) / 13


def test_a_direction_that_fires_seldom_stands_out() -> None:
    """A direction planted along the one token that only a few texts hold has a longer tail than random ones."""
    live, layer = model(), 0
    rare = live.underlying.get_input_embeddings().weight[live.tokenize("$").input_ids[0, 0]].detach().float()
    directions = probes().directions.clone()
    directions[layer, 0] = rare / rare.norm()
    planted = replace(probes(), directions=directions)
    written = [*CORPUS, "the $ sun", "so $", "dark $ dark $"]
    name = probes().concepts[0]
    found = score_corpus(live, planted, written, concepts=[name], layer=layer, kind="dot")
    row = found.controls[found.controls.side == "top"].iloc[0]
    assert row.p == pytest.approx(1 / 41) and row["tail"] > row.random_high
    assert "longer than those of random directions" in found.report()
    assert found.snippets.snippet[:3].str.contains("$", regex=False).all()


def test_without_random_directions_nothing_is_said_to_stand_out() -> None:
    found = score_corpus(model(), probes(), CORPUS[:5], concepts=["high"], randoms=0)
    assert found.controls.p.isna().all() and "held against nothing" in found.report()


def test_a_probe_without_a_direction_scores_nothing_unusual() -> None:
    silent = replace(
        probes(),
        directions=torch.zeros_like(probes().directions),
        reference_std=torch.zeros_like(probes().reference_std),
    )
    found = score_corpus(model(), silent, CORPUS[:5], concepts=["high"], layer=1, kind="dot", randoms=4)
    assert (found.snippets.score == 0).all() and found.controls.p.isna().all()
    assert "nan" not in found._repr_html_()


# Streaming -----------------------------------------------------------------------------------------------------------


class Held(str):
    """A text that says when it is let go."""


def test_no_more_texts_are_held_than_are_sorted_together() -> None:
    held: weakref.WeakSet[Held] = weakref.WeakSet()
    most = []

    def stream(count: int) -> Iterator[str]:
        for number in range(count):
            text = Held(f"{WORDS[number % 20]} {WORDS[number % 19]} {number}")
            held.add(text)
            most.append(len(held))
            yield text

    found = score_corpus(model(), probes(), stream(800), layer=0, batch_size=2, randoms=2)
    assert found.texts == 800 == len(most)
    assert max(most) <= 2 * 2 * WINDOW + 2  # this window, and the next one as it is filled
    sizes = [tensor.numel() for tensor in (found.tally.counts, found.tally.moments.scatter)]
    few = score_corpus(model(), probes(), CORPUS[:2], layer=0, randoms=2)
    assert sizes == [tensor.numel() for tensor in (few.tally.counts, few.tally.moments.scatter)]
    assert {len(best.ordered()) for best in found.best.values()} == {20}


def test_blank_texts_are_left_out_and_numbers_stay() -> None:
    written = ["", *CORPUS[:3], " \n", *CORPUS[3:6]]
    found = score_corpus(model(), probes(), iter(written), concepts=["high"], randoms=0)
    assert (found.texts, found.skipped) == (6, 2)
    assert set(found.snippets.text) == {1, 2, 3, 5, 6, 7}


def test_an_interrupt_keeps_what_was_scored() -> None:
    def stream() -> Iterator[str]:
        yield from CORPUS[:32]
        yield from CORPUS[:32]
        raise KeyboardInterrupt

    with pytest.warns(UserWarning, match="interrupted: these are the scores of 64 texts"):
        found = score_corpus(model(), probes(), stream(), concepts=["high"], batch_size=2, randoms=0)
    assert found.interrupted and found.texts == 64 and "interrupted" in found.report()
    rest = score_corpus(model(), probes(), [" ", *CORPUS[:3]], concepts=["high"], batch_size=2, randoms=0)
    for both in (rest + found, found + rest):
        assert both.interrupted and (both.texts, both.skipped) == (67, 1)

    def at_once() -> Iterator[str]:
        raise KeyboardInterrupt
        yield ""

    with pytest.raises(KeyboardInterrupt):
        score_corpus(model(), probes(), at_once(), concepts=["high"])


def test_an_interrupt_among_texts_that_are_sorted_together_has_scored_the_shortest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lengths = model().tokenize(CORPUS).real.sum(1)
    read, batches = type(model()).streams_by_layer, iter(range(4))

    def mortal(*given: Any, **options: Any) -> list[torch.Tensor]:
        if next(batches) == 3:
            raise KeyboardInterrupt
        return read(*given, **options)

    monkeypatch.setattr(type(model()), "streams_by_layer", mortal)
    with pytest.warns(UserWarning, match=r"scores of 6 texts; the last 64 .* from the shortest on"):
        found = score_corpus(model(), probes(), CORPUS, concepts=["high"], batch_size=2, randoms=0)
    assert set(found.snippets.text) == set(lengths.argsort(stable=True)[:6].tolist())


def test_what_cannot_be_scored_is_refused() -> None:
    for written, options, message in (
        ("one text", {}, "texts is one string"),
        ([], {}, "no text was given"),
        (["", " "], {}, "no text was given"),
        (CORPUS, {"by": "word"}, 'by="word" is not understood: give one of token, text'),
        (CORPUS, {"top": 0}, "top=0"),
        (CORPUS, {"highlight": 1.0}, "highlight=1.0"),
        (CORPUS, {"randoms": -1}, "randoms=-1"),
        (CORPUS, {"kind": "sum"}, 'kind="sum"'),
        (CORPUS, {"concepts": ["joy"]}, "no probe for 'joy'"),
        (CORPUS, {"layer": 9}, "layer 9 does not exist"),
    ):
        with pytest.raises(InputError, match=message):
            score_corpus(model(), probes(), written, **options)  # type: ignore[arg-type]


# Showing -------------------------------------------------------------------------------------------------------------


def test_html_marks_tokens_beyond_the_corpus_percentile_and_is_escaped() -> None:
    written = [*CORPUS, "so <script>alert(1)</script> & glad"]
    name = "<i>high</i>"
    named = replace(probes(), concepts=tuple(name if c == "high" else c for c in probes().concepts))
    found = score_corpus(model(), named, written, concepts=[name], layer=2, top=61, randoms=2)
    html = found._repr_html_()
    assert set(re.findall(r"<(\w+)", html)) == {"div", "p", "b", "ol", "li", "small", "span"}
    assert "alert(1)" in unescape(re.sub(r"<[^>]*>", "", html))
    high, low = (float(found.tally.quantile(share)[0]) for share in (0.9, 0.1))
    pieces = [
        [value for kept in found.best[name, side].ordered() for _, value in kept.pieces]
        for side in ("top", "bottom")
    ]
    beyond = sum(value > high for value in pieces[0]) + sum(value < low for value in pieces[1])
    assert html.count("<span") == beyond > 10
    assert f"<b>{'&lt;i&gt;high&lt;/i&gt;'}, layer 2</b>" in html


def test_a_tokenizer_without_offsets_shows_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    padded = model().padded
    monkeypatch.setattr(model(), "padded", lambda *given: replace(padded(*given), offsets=None))
    found = score_corpus(model(), probes(), CORPUS[:4], concepts=["high"], randoms=0)
    assert found.snippets.snippet.str.contains("Ġ").any()


# Tallies -------------------------------------------------------------------------------------------------------------


def test_a_tally_finds_the_quantiles_of_skewed_and_shifted_values() -> None:
    generator = np.random.default_rng(0)
    values = np.column_stack(
        [generator.normal(size=4000), 50 + 3 * generator.standard_t(2, 4000), np.full(4000, 7.0)]
    )
    tally = Tally.zeros(torch.tensor([0.0, 45.0, 7.0]), torch.tensor([1.0, 2.0, 0.0]))
    for part in np.array_split(values, 7):
        tally.add(torch.from_numpy(part))
    tally.add(torch.zeros(0, 3, dtype=torch.float64))
    for share in (0.001, 0.1, 0.5, 0.9, 0.999):
        expected = np.quantile(values, share, axis=0, method="inverted_cdf")
        found = tally.quantile(share).numpy()
        unit = np.array([1.0, 2.0, 1.0])
        allowed = 0.005 * np.maximum(unit, np.abs(expected - [0, 45, 7])) * 1.5
        assert (np.abs(found - expected) <= allowed).all(), share
    even = Tally.zeros(torch.zeros(1), torch.ones(1))
    even.add(torch.linspace(0.0011, 1.0011, 100_001, dtype=torch.float64)[:, None])
    assert float(even.quantile(0.5)) == pytest.approx(0.5011, abs=2e-5)  # interpolated within a bin
    assert np.allclose(tally.mean, values.mean(0)) and np.allclose(tally.std, values.std(0))
    frame = pd.DataFrame({"lowest": tally.lowest, "highest": tally.highest})
    assert np.allclose(frame, np.column_stack([values.min(0), values.max(0)]))
    with pytest.raises(InputError, match="infinite or NaN"):
        tally.add(torch.full((1, 3), torch.nan, dtype=torch.float64))
    assert tally.count == 4000 == int(tally.counts[0].sum())


def test_parts_are_added_to_what_is_given_without_changing_it() -> None:
    """Each part of a corpus that workers share is added to one beginning, and so it has to stay one."""
    inside: list[CorpusScores] = []
    counted: list[int] = []

    class InHere:
        def check_model(self, live: Any) -> None:
            pass

        def total(self, score: Any, pieces: Iterator[list[str]]) -> CorpusScores:
            for _ in range(2):
                inside.append(score(model(), texts()[:8]))
                counted.append(inside[-1].tally.count)
            return inside[0]

    workers: Any = InHere()
    score_corpus(model(), probes(), texts()[:8], concepts=["planted"], workers=workers)
    assert [one.texts for one in inside] == [8, 8]
    assert torch.equal(inside[0].tally.counts, inside[1].tally.counts)
    assert counted[0] == counted[1] > 0
