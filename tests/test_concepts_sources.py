"""Where a read-out comes from: what alone can carry it is found to, shares are exact, nothing is traced where nothing is."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from planted_probes import planted_probes
from tiny import tiny_model

from emoprobe import InputError
from emoprobe.interventions import ResidualEdit
from emoprobe.models import LiveModel
from emoprobe.probes import ProbeSet
from emoprobe.study.concepts.source_pairs import PAIRS, Pair, aligned, by_length, partners
from emoprobe.study.concepts.sources import HEAD, TOTAL, _flipped, _t, sources, verdict
from emoprobe.study.concepts.tracing import (
    ATTENTION,
    ELSEWHERE,
    MLP,
    PLACES,
    STREAM,
    UNRELATED,
    WRITTEN,
    traced,
)

BEFORE = (
    "The old man and the",
    "We were so glad that the",
    "I am not sure how the",
    "In the dark the",
    "He said that the",
)
AFTER = (" was not there.", " had come back again.", " ran away.", ", and then it was calm.")
SMALL = tuple(
    Pair("a" if row % 2 else "b", before, ("dog", "ran"), ("fog", "man"), after)
    for row, (before, after) in enumerate(itertools.product(BEFORE, AFTER))
)


def one_head(block: int, head: int) -> LiveModel:
    """Return a model in which one head alone moves anything between tokens, and MLPs add nothing."""
    model = tiny_model("llama")
    with torch.no_grad():
        for index, layer in enumerate(model.underlying.model.layers):
            layer.mlp.down_proj.weight.zero_()
            for other in range(4):
                if (index, other) != (block, head):
                    layer.self_attn.o_proj.weight[:, 8 * other : 8 * (other + 1)] = 0
    return model


def along_the_difference(model: LiveModel, layer: int) -> ProbeSet:
    """Return probes along what the words change at the last token on average, so that there is something to trace."""
    known = aligned(model, SMALL)
    texts = [[getattr(pair, kind) for pair in known] for kind in ("emotional", "neutral")]
    last = [model.capture(part, [layer], "last")[:, 0].double().numpy() for part in texts]
    apart = last[0] - last[1]
    names = np.array([pair.concept for pair in known])
    return planted_probes(model, np.stack([apart[names == name].mean(0) for name in "ab"]), ["a", "b"])


def test_the_one_head_that_can_carry_it_is_found() -> None:
    model = one_head(1, 2)
    result = sources(model, along_the_difference(model, 3), SMALL, layer=3, controls=10, flips=199)
    assert result.passed and result.svg and result.published
    table = result.table
    heads = table[table.kind == HEAD].set_index(["block", "head", "place"])
    assert heads.share.sum() == pytest.approx(1)
    others = heads.share[[index for index in heads.index if index[:2] != (1, 2)]]
    assert np.allclose(others, 0, atol=1e-6) and (heads.p[others.index] > 0.05).all()
    assert heads.p[1, 2, "changed words"] < 0.05
    place = table[table.kind != HEAD].set_index(["kind", "block", "place"])
    for block in range(3):
        moved = block > 1
        assert place.share[STREAM, block, PLACES[0]] == pytest.approx(0 if moved else 1, abs=1e-5)
        assert place.share[STREAM, block, PLACES[2]] == pytest.approx(1 if moved else 0, abs=1e-5)
        assert place.share[ATTENTION, block, PLACES[2]] == pytest.approx(1 if block == 1 else 0, abs=1e-5)
        assert place.share[MLP, block, PLACES[2]] == pytest.approx(0, abs=1e-5)
        assert place.share[ELSEWHERE, block, PLACES[1]] == pytest.approx(0, abs=1e-5)
    assert "from layer 2 on more of it is at the last token" in result.finding.lower()
    assert "1.2 from the changed words" in result.verdict
    assert "attention, most goes through block 1 at the last token" in result.verdict
    assert "No block's MLPs" in result.verdict


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
def test_all_accounts_are_exact(family: str) -> None:
    model = tiny_model(family)
    probes = along_the_difference(model, 2)
    known = aligned(model, SMALL)
    found = traced(model, probes, known, 2, 2)
    written = sum(values[0, :, 0] for (kind, _), values in found.cells.items() if kind.endswith("written"))
    assert np.allclose(written, found.total[0], atol=1e-6)
    for block, heads in found.heads.items():
        assert np.allclose(heads.sum((-1, -2)), found.cells[WRITTEN["attention"], block][..., 0], atol=1e-9)
    assert np.allclose(found.cells[STREAM, 0][..., 0], found.total, atol=1e-6)
    directions = {name: probes[name].at(2).double() for name in "ab"}
    for row in (0, len(known) - 1):
        pair = known[row]
        streams = [
            model.streams(model.tokenize(text), [1, 2])[:, 0].detach()
            for text in (pair.emotional, pair.neutral)
        ]
        along = directions[pair.concept]
        assert found.total[0, row] == pytest.approx(
            float((streams[0][1, -1] - streams[1][1, -1]) @ along), rel=1e-5
        )
        mask = torch.zeros(len(pair.changed), dtype=torch.bool)
        mask[-1] = True
        edit = ResidualEdit(1, lambda stream, donor=streams[1][0]: donor[None].to(stream), mask)
        with model.intervene(edit), torch.no_grad():
            after = model.streams(model.tokenize(pair.emotional), [2])[0, 0, -1]
        lost = float((streams[0][1, -1] - after) @ along)
        assert found.cells[STREAM, 1][0, row, 2] == pytest.approx(lost, rel=1e-5, abs=1e-5)


def test_nothing_depends_on_the_batch() -> None:
    model = tiny_model("llama")
    probes, known = along_the_difference(model, 3), aligned(model, SMALL)
    one, many = (traced(model, probes, known, 3, 1, batch_size=size) for size in (1, 32))
    assert np.allclose(one.total, many.total) and one.cells.keys() == many.cells.keys()
    assert (UNRELATED, 1) in one.cells
    for key, values in one.cells.items():
        assert np.allclose(values, many.cells[key], atol=1e-6, equal_nan=True)
    for block, values in one.heads.items():
        assert np.allclose(values, many.heads[block], atol=1e-6)


def test_nothing_is_traced_along_a_direction_that_nothing_moves() -> None:
    model = tiny_model("llama")
    drawn = np.random.default_rng(5).normal(size=(2, 32))
    result = sources(model, planted_probes(model, drawn, ["a", "b"]), SMALL, layer=3, controls=20, flips=99)
    assert "there is nothing to trace" in result.verdict and result.passed
    assert ";" not in result.finding


def test_the_wrong_sign_is_not_traced() -> None:
    model = tiny_model("llama")
    probes = along_the_difference(model, 3)
    against = planted_probes(model, -probes.directions[3].numpy(), ["a", "b"])
    assert "nothing to trace" in sources(model, against, SMALL, layer=3, controls=5, flips=99).verdict


# Words and tests -----------------------------------------------------------------------------------------------------


def rows(p: float, effect: float, total: float = 1.0) -> pd.DataFrame:
    base = {"block": 0, "head": -1, "place": PLACES[2], "effect": 0.0, "low": -0.1, "high": 0.1, "share": 0.0}
    base |= {"random_low": -0.2, "random_high": 0.2, "share_low": 0.0, "share_high": 0.0, "p": np.nan}
    made = [{**base, "kind": TOTAL, "block": -1, "effect": total, "low": total - 0.2, "high": total + 0.2}]
    for kind in (STREAM, ATTENTION, MLP):
        made += [{**base, "kind": kind, "place": place, "share": 0.5} for place in PLACES]
    made.append({**base, "kind": HEAD, "head": 3, "p": p, "effect": effect, "share": effect})
    return pd.DataFrame(made)


def test_every_verdict_can_come_out() -> None:
    assert "0.3 from the last token" in verdict(rows(0.01, 0.5), 1)
    assert "0.3 from the last token" in verdict(rows(0.01, -0.5), 1)
    assert "No single head" in verdict(rows(0.2, 0.5), 1)
    assert "No single head" in verdict(rows(0.01, 0.1), 1)  # as random directions
    assert "nothing to trace" in verdict(rows(0.01, 0.5, total=0.1), 1)
    assert "up to layer 0 more of it goes through the changed words" in verdict(rows(0.2, 0.5), 1).lower()


def test_heads_are_corrected_for_the_largest_of_all() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for seed in range(60):
        series = list(generator.normal(size=(30, 16)))
        largest = _flipped(series, 199, seed)
        hits += min((1 + (largest >= abs(_t(one))).sum()) / 200 for one in series) < 0.05
    assert hits <= 9
    values = generator.normal(size=12)
    signs = np.random.default_rng(3).choice([-1.0, 1.0], size=(5, 12))
    assert np.allclose(_flipped([values], 5, 3), [abs(_t(values * row)) for row in signs])


# Pairs ---------------------------------------------------------------------------------------------------------------


def test_pairs_are_aligned_token_by_token() -> None:
    model = tiny_model("gpt2")
    found = aligned(model, PAIRS)
    for pair in found:
        one, two = (model.tokenize(text).input_ids[0] for text in (pair.emotional, pair.neutral))
        assert len(one) == len(two) == len(pair.changed) and torch.equal(one != two, pair.changed)
        assert not pair.changed[-1] and pair.changed.any()
    groups = by_length(found, 4)
    assert sorted(index for group in groups for index in group) == list(range(len(found)))
    assert all(
        len({len(found[index].changed) for index in group}) == 1 and len(group) <= 4 for group in groups
    )
    lengths = [len(pair.changed) for pair in found]
    for index, other in enumerate(partners(found)):
        assert lengths[other] == lengths[index] and (other != index or lengths.count(lengths[index]) == 1)


def test_no_pair_names_its_emotion() -> None:
    from test_concepts_dialogues import named

    texts = [pair.written(word) for pair in PAIRS for word in (*pair.emotional, *pair.neutral)]
    assert [(found, text) for text in texts if (found := named(text))] == []
    assert len({pair.concept for pair in PAIRS}) >= 10


def test_too_few_pairs_are_refused() -> None:
    model = tiny_model("llama")
    probes = planted_probes(model, np.eye(2, 32), ["a", "b"])
    with pytest.raises(InputError, match="at least 5"):
        sources(model, probes, SMALL[:3])
