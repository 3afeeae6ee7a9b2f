"""Specificity of steering and effects at equal cost, on planted matrices, planted curves and a random model."""

import math
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from tiny import tiny_model
from torch import Tensor

from emoprobe.errors import InputError
from emoprobe.intervals import prediction_interval
from emoprobe.models import LiveModel
from emoprobe.steering import Specificity, Sweep, at_equal_cost, continuation, rotate, specificity, steer
from emoprobe.steering.causal import index_of
from emoprobe.steering.vectors import random_like

PROMPTS = ["I am so glad that you came", "The dog", "They were afraid of the dark and"]
WORDS = {"glad": [" happy", " glad"], "sad": [" sad"], "afraid": [" afraid", " not sure"]}


def directions(model: LiveModel) -> dict[str, Tensor]:
    rows = torch.randn(3, model.d_model, generator=torch.Generator().manual_seed(7))
    return dict(zip(WORDS, rows, strict=True))


def made_up(matrix: np.ndarray, controls: int = 6, noise: float = 0.05) -> Specificity:
    order, size = np.random.default_rng(0), len(matrix)
    random = order.normal(size=(controls, size)) * 0.1
    means = np.concatenate([matrix, random])[..., None]
    changes = means + noise * order.normal(size=(size + controls, size, 8))
    return Specificity(tuple("abcdefgh"[:size]), changes, 0.1, "nothing")


def test_each_entry_is_the_change_under_that_direction() -> None:
    model = tiny_model("gpt2", dtype=torch.float32)
    found = specificity(
        model,
        directions(model),
        WORDS,
        PROMPTS,
        0.4,
        layers=1,
        controls=2,
        seed=4,
        edit=rotate,
        progress=False,
    )
    measure = continuation(WORDS)
    untouched = measure(model, PROMPTS)
    with model.intervene(*rotate(model, directions(model)["sad"], 0.4, 1)):
        sad = measure(model, PROMPTS)
    with model.intervene(*rotate(model, random_like(directions(model)["glad"], 5), 0.4, 1)):
        random = measure(model, PROMPTS)
    for k, name in enumerate(WORDS):
        np.testing.assert_allclose(found.changes[1, k], (sad[name] - untouched[name]).numpy(), rtol=1e-5)
        np.testing.assert_allclose(found.changes[4, k], (random[name] - untouched[name]).numpy(), rtol=1e-5)
        assert found.matrix.loc["sad", name] == pytest.approx(
            float((sad[name] - untouched[name]).mean()), rel=1e-5
        )
    assert found.frame.steered.unique().tolist() == [*WORDS, "random 4", "random 5"]
    assert isinstance(found.plot(), Figure) and "index" in repr(found)
    with steer(model, directions(model)["sad"], 0.3, layers=1):
        by_adding = measure(model, PROMPTS)["glad"] - untouched["glad"]
    added = specificity(model, directions(model), WORDS, PROMPTS, 0.3, layers=1, controls=2, progress=False)
    np.testing.assert_allclose(added.changes[1, 0], by_adding.numpy(), rtol=1e-5)


def test_the_index_is_one_where_nothing_else_rises_and_nothing_where_all_go_alike() -> None:
    for row, truth in (
        ([3.0, 0, 0, 0], 1),
        ([3.0, -1, -1, -1], 1),
        ([3.0, 1, 1, 1], 0.5),
        ([2.0, 2, 2, 2], 0),
        ([0.0, 1, 1, 1], -1),
        ([-1.0, 1, 1, 1], -1),
        ([3.0, 3, -3, 0], 3 / 5),
    ):
        assert index_of(np.array(row))[0] == pytest.approx(truth)
    assert np.isnan(index_of(np.zeros(3))).all()


def test_a_specific_matrix_is_told_from_one_that_is_not() -> None:
    specific = made_up(2 * np.eye(6))
    found = specific.index
    assert found["index"] > 0.9 and found["low"] > found["chance_high"] and found["p"] < 0.01
    alike = made_up(np.tile([2.0, 0, 0, 0, 0, 0], (6, 1)))  # every direction raises the first concept
    assert alike.index["p"] > 0.2 and alike.index["index"] < 0.2
    moved = made_up(2 * np.roll(np.eye(6), 1, axis=1))
    assert moved.index["index"] < -0.9
    table = specific.table.set_index("concept")
    assert (table.index_low < table["index"]).all() and (table["index"] < table.index_high).all()
    assert (table.own > table.random_next_high).all() and (table.random_low < 0).any()
    assert table.own["b"] == pytest.approx(specific.changes[1, 1].mean())
    assert table.others["b"] == pytest.approx(np.delete(specific.changes[1].mean(-1), 1).mean())
    assert table.random["b"] == pytest.approx(specific.changes[6:, 1].mean())
    assert "6 of 6 rise by more" in repr(specific)
    uneven = specific.changes.copy()
    uneven[0, 0] = [20.0] + [0.0] * 7  # one text makes the mean, so that its interval includes 0
    assert "5 of 6 rise by more" in repr(Specificity(specific.concepts, uneven, 0.1, "nothing"))


def test_p_is_that_of_all_orders_and_chance_is_each_concepts_own() -> None:
    found = made_up(np.random.default_rng(3).normal(size=(4, 4)), noise=0.01)
    indices = index_of(found.changes[:4].mean(-1))
    every = [indices[range(4), order].mean() for order in permutations(range(4))]
    exact = np.mean(np.array(every) >= indices.diagonal().mean() - 1e-12)
    assert 0.05 < exact < 0.6 and found.index["p"] == pytest.approx(exact, abs=0.04)
    random = index_of(found.changes[4:].mean(-1))
    for k, row in found.table.iterrows():
        assert (row.chance_low, row.chance_high) == pytest.approx(prediction_interval(random[:, k]))
    assert found.table.chance_low.nunique() == 4


def test_concepts_need_both_a_direction_and_words() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(InputError, match="give both for the same two or more concepts"):
        specificity(model, directions(model), {"glad": [" glad"]}, PROMPTS, progress=False)
    with pytest.raises(InputError, match="two or more"):
        specificity(model, {"glad": torch.ones(32)}, {"glad": [" glad"]}, PROMPTS, progress=False)


# At equal cost -------------------------------------------------------------------------------------------------------


def planted(effect: float, cost: float, *, scale: float = 1.0, controls: int = 4, texts: int = 30) -> Sweep:
    """A sweep in which a unit of strength changes the effect and costs so much; `scale` is the unit of its strengths."""
    order = np.random.default_rng(1)
    of_text = {"effect": order.normal(size=texts), "cost": order.normal(size=20)}
    bent = {"effect": 1 + 0.1 * order.normal(size=texts), "cost": 1 + 0.1 * order.normal(size=20)}
    rows = []
    for seed in (None, *range(controls)):
        for size in (-2, -1, 0, 1, 2):
            slope = {"effect": effect if seed is None else 0.1 * (seed - 1.5), "cost": cost}
            for measure, base in of_text.items():
                by = slope[measure] * (size if measure == "effect" else abs(size)) * bent[measure]
                condition = "steered" if seed is None else "random"
                rows += [(size * scale, condition, seed, measure, k, v) for k, v in enumerate(base + by)]
    raw = pd.DataFrame(rows, columns=["strength", "condition", "seed", "measure", "text", "value"])
    return Sweep(raw.astype({"seed": "Int64"}), "made up", "nothing")


def test_effects_are_compared_where_costs_are_equal_whatever_the_unit_of_strength() -> None:
    edits, valued = planted(3.0, 0.5), planted(1.0, 0.25, scale=40.0)
    found = at_equal_cost({"edits": edits, "λ": valued}, "effect", "cost", [0.2, 0.4])
    frame = found.frame.set_index(["name", "cost"])
    ones = (
        edits.changes().raw.query("strength == 1 and condition == 'steered'").groupby("measure").value.mean()
    )
    per_effect, per_cost = ones["effect"] / 3.0, ones["cost"] / 0.5
    for cost in (0.2, 0.4):
        size = cost / (0.5 * per_cost)
        assert frame.strength["edits", cost] == pytest.approx(size)
        assert frame.effect["edits", cost] == pytest.approx(3.0 * size * per_effect)
        assert frame.strength["λ", cost] == pytest.approx(40 * 2 * size)
        assert frame.effect["λ", cost] == pytest.approx(2 * size * per_effect)
        assert (
            frame.random_low["edits", cost] < 0 < frame.random_high["edits", cost] < frame.low["edits", cost]
        )
    row = found.differences.set_index("cost").loc[0.4]
    assert (row.one, row.other) == ("edits", "λ")
    assert row.difference == pytest.approx(frame.effect["edits", 0.4] - frame.effect["λ", 0.4])
    assert 0 < row.low < row.difference < row.high
    assert isinstance(found.plot(), Figure) and "edits − λ" in repr(found)
    down = at_equal_cost({"edits": edits, "λ": valued}, "effect", "cost", [0.2], sign=-1).frame.set_index(
        "name"
    )
    assert down.strength["edits"] == pytest.approx(-frame.strength["edits", 0.2])
    assert down.effect["edits"] == pytest.approx(-frame.effect["edits", 0.2])


def test_a_cost_that_falls_again_is_reached_where_it_is_reached_first() -> None:
    cost, strengths = [0.0, 1.0, 0.5, 0.6], [0, 1, 2, 3]
    rows = [
        (float(s), "steered", None, name, k, value)
        for s in strengths
        for name, value in (("effect", 3.0 * s), ("cost", cost[s]))
        for k in range(2)
    ]
    raw = pd.DataFrame(rows, columns=["strength", "condition", "seed", "measure", "text", "value"])
    sweep = Sweep(raw.astype({"seed": "Int64"}), "", "")
    frame = at_equal_cost({"a": sweep}, "effect", "cost", [0.25, 0.8]).frame
    assert frame.strength.tolist() == pytest.approx([0.25, 0.8])
    assert frame.effect.tolist() == pytest.approx([0.75, 2.4])


def test_the_interval_covers_as_often_as_it_says() -> None:
    order, inside = np.random.default_rng(3), []
    for _ in range(300):
        slopes, prices = 2 + order.normal(size=20), 1 + 0.3 * order.normal(size=20)
        rows = [
            (float(s), "steered", None, name, k, s * value)
            for s in (0, 1, 2)
            for name, values in (("effect", slopes), ("cost", prices))
            for k, value in enumerate(values)
        ]
        raw = pd.DataFrame(rows, columns=["strength", "condition", "seed", "measure", "text", "value"])
        found = at_equal_cost({"a": Sweep(raw.astype({"seed": "Int64"}), "", "")}, "effect", "cost", [1.0])
        inside.append(found.frame.low[0] <= 2.0 <= found.frame.high[0])
    assert np.mean(inside) == pytest.approx(0.95, abs=0.035)


def test_costs_that_are_not_reached_and_measures_that_are_not_there_are_told() -> None:
    edits, valued = planted(3.0, 0.5), planted(1.0, 0.25)
    beyond = at_equal_cost({"edits": edits, "λ": valued}, "effect", "cost", [0.8]).frame.set_index("name")
    assert math.isfinite(beyond.effect["edits"]) and math.isnan(beyond.effect["λ"])
    default = at_equal_cost({"edits": edits, "λ": valued}, "effect", "cost").frame
    assert len(default) == 10 and default[["effect", "low"]].notna().all(axis=None)
    most = valued.frame.query("measure == 'cost' and condition == 'steered'").set_index("strength").value
    assert default.cost.max() == pytest.approx(0.9 * (most[2.0] - most[0.0]))
    with pytest.raises(InputError, match='"edits" did not measure kl'):
        at_equal_cost({"edits": edits}, "effect", "kl")
    with pytest.raises(InputError, match="have to be positive"):
        at_equal_cost({"edits": edits}, "effect", "cost", [-1.0])
    with pytest.raises(InputError, match="other numbers of texts"):
        at_equal_cost({"edits": edits, "λ": planted(1.0, 0.2, texts=5)}, "effect", "cost")
