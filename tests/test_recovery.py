"""Learning from random starts, reduced: on the ground-truth model, and where nothing is to be found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_study import small_corpus, small_model
from torch import Tensor

import emoprobe as ep
from emoprobe.activations import capture
from emoprobe.controls import turned_at_random
from emoprobe.errors import InputError
from emoprobe.models import LiveModel
from emoprobe.study.texts import METHOD, divide
from emoprobe.valattn import Valuation
from emoprobe.valattn.learn import annotated_targets
from emoprobe.valattn.recovery import Recovery, _annotated_directions, _readings, recovery
from emoprobe.valattn.subspaces import overlaps


def test_the_ground_truth_is_learned_from_annotations_and_its_space_is_the_probed_one() -> None:
    """Reduced: two starts, few texts and steps; the whole is `python benchmarks/learning.py`."""
    model = ep.load_model("ground-truth")
    fitted, held_out = divide(ep.load_corpus("ground-truth", limit=240), seed=0)
    vectors = model.capture(fitted.texts, [5]).double().numpy()
    targets = np.stack([fitted.values(name) for name in METHOD], axis=1)
    rows, _ = _annotated_directions(vectors, targets, 0)
    scale = (vectors[:, 0] @ rows[0].T).std(0)
    weight = torch.tensor(rows[0] / scale[:, None], dtype=torch.float32)[None]
    probed = Valuation(weight, torch.zeros(1, 3), METHOD, (5,))
    options = {"seeds": 2, "steps": 30, "learning_rate": 0.02, "draws": 99, "shuffles": 99, "progress": False}
    found = recovery(model, fitted, held_out, probed, objective="annotations", **options)  # type: ignore[arg-type]
    valence = found.readings[found.readings.dimension == "valence"]
    assert (valence.r > 0.85).all() and (valence.layer == 5).all()
    assert found.p == found.p_shuffled == 0.01 and (found.seeds.learned > 5 * found.seeds.chance).all()
    assert "more than random spaces do" in found.report() and "held more than" in found.report()


def test_what_learns_nothing_finds_nothing() -> None:
    """No step: the start is what comes out, and it is a random space."""
    draw = torch.Generator().manual_seed(0)
    probed = Valuation(
        torch.randn(2, 2, 32, generator=draw), torch.zeros(2, 2), ("valence", "arousal"), (0, 2)
    )
    corpus = small_corpus()
    found = recovery(
        small_model(), corpus, corpus, probed, seeds=2, steps=0, draws=99, shuffles=19, progress=False
    )
    assert found.seeds.start.tolist() == pytest.approx(found.seeds.learned.tolist())
    assert found.seeds.chance.tolist() == pytest.approx([2 / 32] * 2, rel=0.25)
    assert found.p > 0.01 and "not shown to be more" in found.report() and (found.seeds.delta_nll == 0).all()
    assert found.layers.layer.tolist() == [0, 2] and (found.layers.chance_high > found.layers.chance).all()
    starts = [probed.random_like(1000 + seed).weight.double().numpy() for seed in range(2)]
    expected = [overlaps(start, probed.weight.double().numpy()).mean() for start in starts]
    assert found.seeds.start.tolist() == pytest.approx(expected)
    assert isinstance(found, Recovery)
    with pytest.raises(InputError, match="seeds=1"):
        recovery(small_model(), corpus, corpus, probed, seeds=1)


def test_random_spaces_are_other_draws_than_the_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, list[int]] = {"valuation": [], "subspaces": []}
    for module, seeds in drawn.items():

        def spied(rows: Tensor, seed: int, seeds: list[int] = seeds) -> Tensor:
            seeds.append(seed)
            return turned_at_random(rows, seed)

        monkeypatch.setattr(f"emoprobe.valattn.{module}.turned_at_random", spied)
    monkeypatch.setattr("emoprobe.valattn.recovery.STARTS", 10)
    probed = Valuation(torch.ones(1, 1, 32), torch.zeros(1, 1), ("valence",), (0,))
    corpus = small_corpus()
    recovery(small_model(), corpus, corpus, probed, seeds=2, steps=0, draws=9, shuffles=1, progress=False)
    assert drawn["valuation"] == [10, 11] and len(set(drawn["subspaces"])) == 18
    assert not set(drawn["valuation"]) & set(drawn["subspaces"])


def test_what_a_model_computes_at_padding_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    model, corpus = small_model(), small_corpus()
    valuation = Valuation(
        torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(0)),
        torch.zeros(1, 1),
        ("valence",),
        (1,),
    )
    part = corpus, annotated_targets(corpus, valuation).double().numpy()

    def spoiled(model: LiveModel, texts: list[str], layers: list[int], reduce: Any) -> Tensor:
        return capture(
            model, texts, layers, lambda x, counted: reduce(x.where(counted[..., None], torch.nan), counted)
        )

    expected = _readings(model, valuation.with_tensors({"strength": torch.zeros(())}), part, part, 0)
    monkeypatch.setattr("emoprobe.valattn.recovery.capture", spoiled)
    found = _readings(model, valuation.with_tensors({"strength": torch.zeros(())}), part, part, 0)
    assert len(found) == 1 and found == expected


def test_directions_of_annotations_are_covariances_and_shuffles_hold_none() -> None:
    draw = np.random.default_rng(0)
    streams, targets = draw.normal(size=(50, 2, 6)), draw.normal(size=(50, 1))
    targets[7] = np.nan
    true, shuffled = _annotated_directions(streams, targets, 30)
    known = np.delete(np.arange(50), 7)
    expected = [
        [
            sum((targets[i, 0] - targets[known, 0].mean()) * streams[i, layer, k] for i in known)
            for k in range(6)
        ]
        for layer in range(2)
    ]
    assert true[:, 0] == pytest.approx(np.array(expected))
    assert len(shuffled) == 30 and np.mean([one.mean() for one in shuffled]) == pytest.approx(0, abs=1.0)
    assert all(not np.allclose(one, true) for one in shuffled)
