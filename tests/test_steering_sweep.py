"""Dose–response: exact at strength 0, honest about chance, NaN instead of a crash, safe to show."""

import math
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from matplotlib.figure import Figure
from scipy import stats
from tiny import tiny_model
from torch import Tensor

from emoprobe.errors import InputError
from emoprobe.intervals import mean_interval, prediction_interval
from emoprobe.models import LiveModel
from emoprobe.probes import Direction
from emoprobe.steering import (
    NonFiniteWarning,
    Sweep,
    add,
    continuation,
    generations,
    kl,
    nll,
    rotate,
    scheduled,
    steer,
    sweep,
)
from emoprobe.steering.dose_response import _beside_random, _monotone_range
from emoprobe.steering.kept_runs import KeptRuns, described
from emoprobe.steering.row_wise import run_together
from emoprobe.steering.sweeping import Edit
from emoprobe.steering.vectors import random_like
from emoprobe.valattn import Valuation, inject

PROMPTS = ["I am so glad that you came", "The dog", "They were afraid of the dark and", "The sun came up and"]
TEXTS = ["She was sad that the dog had run away.", "He felt calm, then angry.", "The music was good."]


def vector(model: LiveModel, rows: int | None = None) -> Tensor:
    shape = (model.d_model,) if rows is None else (rows, model.d_model)
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def valuation(model: LiveModel) -> Valuation:
    generator = torch.Generator().manual_seed(11)  # not that of a control
    weight = torch.randn(2, 2, model.d_model, generator=generator) / 2
    return Valuation(weight, torch.zeros(2, 2), ("valence", "arousal"), (0, 1))


def measures() -> list:
    return [nll(TEXTS), kl(TEXTS), continuation({"glad": [" happy", " glad"], "sad": [" sad"]})]


def steered(result: Sweep) -> pd.DataFrame:
    return result.raw[result.raw["condition"] == "steered"]


def made_up(
    value: object, strengths: Sequence[float] = (-1, -0.5, 0, 0.5, 1), texts: int = 40, controls: int = 5
) -> Sweep:
    """A sweep whose values are `value(strength, seed, generator)` (texts,), with seed None for the steered condition."""
    generator = np.random.default_rng(0)
    rows = []
    for strength in strengths:
        for seed in (None, *range(controls)):
            condition = "steered" if seed is None else "random"
            values = value(strength, seed, generator) + generator.normal(size=texts) * 0.1  # type: ignore[operator]
            rows += [(strength, condition, seed, "m", text, v) for text, v in enumerate(values)]
    raw = pd.DataFrame(rows, columns=["strength", "condition", "seed", "measure", "text", "value"])
    return Sweep(raw.astype({"seed": "Int64"}), "made up", "nothing")


@pytest.mark.parametrize("kind", ["tensor", "direction", "valuation"])
def test_strength_zero_gives_exactly_the_untouched_values_and_others_the_intervened(kind: str) -> None:
    model = tiny_model("llama", dtype=torch.float32)
    what = {
        "tensor": vector(model),
        "direction": Direction("calm", (2,), vector(model)[None], torch.tensor([9.0])),
        "valuation": valuation(model),
    }[kind]
    used = measures()
    untouched = {name: v for m in used for name, v in m(model, PROMPTS).items()}
    result = sweep(model, what, [0.5, 0, -0.5], PROMPTS, used, controls=2, together=1, progress=False)
    place = inject if kind == "valuation" else steer
    for strength in (-0.5, 0.0, 0.5):
        with place(model, what, strength):
            truth = {name: v for m in used for name, v in m(model, PROMPTS).items()}
        for name, values in truth.items():
            part = result.raw[(result.raw["strength"] == strength) & (result.raw["measure"] == name)]
            found = part[part["condition"] == "steered"]["value"].to_numpy()
            assert np.array_equal(found, values.double().numpy())
            assert np.array_equal(found, untouched[name].double().numpy()) == (strength == 0)
            for seed in (0, 1):
                control = part[part["seed"] == seed]["value"].to_numpy()
                assert np.array_equal(control, found) == (strength == 0)
    kls = result.raw[result.raw["measure"] == "kl"]
    assert (kls["value"] >= 0).all() and (kls[kls["strength"] == 0]["value"] == 0).all()


def test_the_frame_is_tidy_and_made_of_the_texts() -> None:
    model = tiny_model("gpt2", dtype=torch.float32)
    result = sweep(
        model, vector(model), [-0.5, 0, 0.5], PROMPTS, measures(), controls=2, seed=3, progress=False
    )
    frame = result.frame
    assert list(frame.columns) == ["strength", "condition", "seed", "measure", "value", "low", "high"]
    assert len(frame) == 3 * (1 + 2) * 4
    assert set(frame["seed"].dropna()) == {3, 4} and frame["seed"].isna().sum() == 12
    assert (frame["low"] <= frame["value"]).all() and (frame["value"] <= frame["high"]).all()
    for row in frame.itertuples():
        same = result.raw["seed"].isna() if row.seed is pd.NA else result.raw["seed"] == row.seed
        part = result.raw[
            same & (result.raw["strength"] == row.strength) & (result.raw["measure"] == row.measure)
        ]
        assert len(part) == (len(TEXTS) if row.measure in ("nll", "kl") else len(PROMPTS))
        assert row.value == pytest.approx(part["value"].mean())
    again = sweep(
        model, vector(model), [-0.5, 0, 0.5], PROMPTS, measures(), controls=2, seed=3, progress=False
    )
    pd.testing.assert_frame_equal(result.frame, again.frame)
    other = sweep(
        model, vector(model), [-0.5, 0, 0.5], PROMPTS, measures(), controls=2, seed=9, progress=False
    )
    pd.testing.assert_frame_equal(steered(result), steered(other))
    assert not np.array_equal(result.frame["value"], other.frame["value"])


def test_controls_have_the_norm_and_the_angles_of_what_they_control_for() -> None:
    model = tiny_model("gpt2")
    for given in (vector(model), vector(model, 4), vector(model, 4)[:, :2]):  # more rows than columns too
        turned = random_like(given, 0)
        assert isinstance(turned, Tensor) and turned.dtype == given.dtype and turned.shape == given.shape
        rows, others = given.reshape(-1, given.shape[-1]), turned.reshape(-1, given.shape[-1])
        torch.testing.assert_close(others @ others.T, rows @ rows.T, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(turned, given, atol=0.1)
    drawn = torch.stack([random_like(vector(model), seed) for seed in range(500)])
    cosines = torch.cosine_similarity(drawn, vector(model)[None], dim=-1)
    # Uniform on the sphere: cosines have mean 0 and variance 1/d, and no coordinate has a sign of its own.
    assert abs(float(cosines.mean())) < 4 / math.sqrt(500 * 32)
    assert float(cosines.var()) == pytest.approx(1 / 32, rel=0.25)
    assert ((drawn > 0).double().mean(0) - 0.5).abs().max() < 0.1


@pytest.mark.parametrize("texts", [3, 4, 12])
def test_the_interval_of_a_mean_holds_it_as_often_as_it_says_however_few_texts(texts: int) -> None:
    draws = np.random.default_rng(texts).normal(3, 2, size=(4000, texts))
    intervals = [mean_interval(row) for row in draws]
    assert np.mean([low <= 3 <= high for _, low, high in intervals]) == pytest.approx(0.95, abs=0.012)
    mean, low, high = intervals[0]
    truth = stats.ttest_1samp(draws[0], 0).confidence_interval()
    assert mean == pytest.approx(draws[0].mean()) and (low, high) == pytest.approx((truth.low, truth.high))


def test_one_value_has_no_interval_and_none_no_mean() -> None:
    assert mean_interval([2.0])[0] == 2 and all(map(math.isnan, mean_interval([2.0])[1:]))
    assert all(map(math.isnan, mean_interval([])))
    assert all(map(math.isnan, mean_interval([1.0, math.nan, 2.0])))


def test_a_sweeps_intervals_are_those_of_the_mean_over_its_texts() -> None:
    result = made_up(lambda s, seed, g: s * np.arange(5.0), texts=5)
    raw = steered(result)
    for row in result.frame[result.frame.condition == "steered"].itertuples():
        truth = stats.ttest_1samp(raw[raw.strength == row.strength].value, 0).confidence_interval()
        assert (row.low, row.high) == pytest.approx((truth.low, truth.high))
    slopes = [np.polyfit(text.strength, text.value, 1)[0] for _, text in raw.groupby("text")]
    truth = stats.ttest_1samp(slopes, 0).confidence_interval()
    (row,) = result.summary().itertuples()
    assert (row.low, row.high) == pytest.approx((truth.low, truth.high))


def test_one_more_random_control_falls_into_the_prediction_interval_as_often_as_it_says() -> None:
    draws = np.random.default_rng(2).normal(3, 2, size=(4000, 6))
    intervals = [prediction_interval(row[:5]) for row in draws]
    inside = np.mean([low <= row[5] <= high for (low, high), row in zip(intervals, draws, strict=True)])
    assert inside == pytest.approx(0.95, abs=0.012)
    assert all(map(math.isnan, prediction_interval(draws[0, :1])))


def test_the_widest_monotone_range() -> None:
    strengths = np.array([-2.0, -1, 0, 1, 2, 4])
    for means, truth in {
        (1, 2, 3, 4, 5, 6): (-2, 4),
        (6, 5, 4, 3, 2, 1): (-2, 4),
        (4, 1, 0, 1, 4, 9): (0, 4),
        (9, 4, 1, 0, 1, 0): (-2, 1),
        (0, 0, 0, 1, 1, 1): (0, 1),
        (5, 0, 5, 0, 5, 0): (2, 4),
    }.items():
        assert _monotone_range(strengths, np.array(means, dtype=float)) == truth
    assert all(map(math.isnan, _monotone_range(strengths, np.ones(6))))


def test_a_planted_effect_is_found_and_measured() -> None:
    result = made_up(lambda s, seed, g: np.full(40, 2.0 * s if seed is None else g.normal() * 0.1 * s))
    (row,) = result.summary().itertuples()
    part = result.frame[result.frame["condition"] == "steered"]
    assert row.slope == pytest.approx(np.polyfit(part["strength"], part["value"], 1)[0])
    assert row.low < 2.0 < row.high and row.high - row.low < 0.2
    assert row.spearman == pytest.approx(1) and (row.monotone_from, row.monotone_to) == (-1, 1)
    assert row.random_high < row.slope
    assert row.verdict == "rises with strength monotonically from -1 to 1, steeper than random controls"
    falling = made_up(lambda s, seed, g: np.full(40, -2.0 * s if seed is None else g.normal() * 0.1 * s))
    assert falling.summary()["verdict"][0].endswith(
        "falls with strength monotonically from -1 to 1, steeper than random controls"
    )


def test_what_random_controls_do_too_is_not_called_specific() -> None:
    slopes = np.random.default_rng(5).normal(size=6)
    result = made_up(lambda s, seed, g: np.full(40, s * (1.0 if seed is None else slopes[seed])))
    (verdict,) = result.summary()["verdict"]
    assert verdict == "rises with strength monotonically from -1 to 1, but no more than random controls may"
    alone = made_up(lambda s, seed, g: np.full(40, -s), controls=0)
    assert alone.summary()["verdict"][0].startswith(
        "falls with strength monotonically from -1 to 1; too few random"
    )


UP, DOWN = [0.8, 0.9, 1.0, 1.1, 1.2], [-1.2, -1.1, -1.0, -0.9, -0.8]


@pytest.mark.parametrize(
    ("slope", "random", "beside"),
    [
        (2.0, UP, "steeper than"),
        (-2.0, DOWN, "steeper than"),
        (0.3, UP, "flatter than"),
        (-0.3, DOWN, "flatter than"),
        (0.0, UP, "flatter than"),  # no trend where controls have one
        (-0.3, UP, "the other way from"),
        (-2.0, UP, "the other way from"),
        (0.3, DOWN, "the other way from"),
        (2.0, DOWN, "the other way from"),
        (2.0, [-0.2, -0.1, 0.0, 0.1, 0.2], "steeper than"),
        (0.0, [-0.2, -0.1, 0.0, 0.1, 0.2], ""),
        (1.0, [-1.9, -1.5, -1.1, -0.8, -0.5], "the other way from"),  # one more could rise, by much less
        (1.0, UP, ""),
        (-1.0, DOWN, ""),
        (1.0, [1.0], ""),
    ],
)
def test_a_slope_is_put_on_the_right_side_of_random_ones(
    slope: float, random: list[float], beside: str
) -> None:
    result = made_up(
        lambda s, seed, g: np.full(40, s * (slope if seed is None else random[seed])), controls=len(random)
    )
    (row,) = result.summary().itertuples()
    assert row.beside_random == beside
    said = [phrase for phrase in ("steeper than", "flatter than", "other way") if phrase in row.verdict]
    assert said == ([beside.removeprefix("the ").removesuffix(" from")] if beside else [])
    assert row.verdict.endswith(f", {beside} random controls") == bool(beside)
    assert row.verdict.startswith("rises" if slope > 0 else "falls" if slope < 0 else "no overall trend")


def test_a_slope_that_may_be_anything_is_on_no_side() -> None:
    assert _beside_random(0.0, (-0.1, 0.1), (0.5, 1.0)) == "flatter than"
    for slope, interval in ((-2.45, (-5.0, 0.1)), (2.0, (-1.0, 5.0)), (0.0, (-0.6, 0.6))):
        assert _beside_random(slope, interval, (0.5, 1.0)) == ""


def test_one_text_is_no_trend_that_others_share() -> None:
    result = made_up(lambda s, seed, g: np.array([2.0 * s if seed is None else 0.0]), texts=1)
    (verdict,) = result.summary()["verdict"]
    assert verdict.endswith("; one text is too few to tell whether others would")


def test_nothing_and_not_one_way_are_named_so() -> None:
    (verdict,) = made_up(lambda s, seed, g: np.zeros(40)).summary()["verdict"]
    assert verdict.startswith("no overall trend: the slope's interval includes 0")
    (verdict,) = made_up(lambda s, seed, g: np.full(40, s * s)).summary()["verdict"]
    assert verdict.startswith("no overall trend") and "one way only from" in verdict
    (verdict,) = made_up(lambda s, seed, g: np.full(40, s * s + s)).summary()["verdict"]
    assert verdict.startswith("rises with strength on the whole (one way only from -0.5 to 1)")
    flat = made_up(lambda s, seed, g: np.zeros(40))
    (verdict,) = Sweep(flat.raw.assign(value=1.0), "x", "y").summary()["verdict"]
    assert verdict == "does not change"


@pytest.mark.filterwarnings("ignore::emoprobe.steering.NonFiniteWarning")
def test_a_model_pushed_too_hard_gives_nan_and_a_warning() -> None:
    model = tiny_model("gpt2", dtype=torch.float32)
    with pytest.warns(
        NonFiniteWarning, match=r"at strength 1e\+38 \(steered\), nll was not finite for 3 of 3 texts"
    ):
        result = sweep(model, vector(model), [0, 0.1, 1e38], PROMPTS, measures(), controls=1, progress=False)
    last = result.frame[result.frame["strength"] == 1e38]
    assert len(last) == 12 and last[["value", "low", "high"]].isna().all(axis=None)
    assert result.frame[result.frame["strength"] < 1]["value"].notna().all()
    assert result.summary()["verdict"].str.endswith("; not finite at 1e+38").all()
    assert result.summary()["slope"].notna().all()
    with pytest.warns(NonFiniteWarning):
        lost = sweep(model, vector(model), [0, 1e38], PROMPTS, measures(), controls=1, progress=False)
    assert lost.summary()["verdict"].str.startswith("cannot be judged").all()
    assert isinstance(lost.plot(), Figure)
    assert model.logits(PROMPTS).isfinite().all()
    endless = sweep(
        model,
        vector(model),
        [0, 1],
        PROMPTS,
        [lambda live, prompts: {"x": torch.tensor([math.inf, 1.0])}],
        controls=0,
        progress=False,
    )
    assert endless.raw["value"].isna().tolist() == [True, False] * 4


# Beside what ---------------------------------------------------------------------------------------------------------


def values(result: Sweep, condition: str, strength: float, measure: str = "glad") -> np.ndarray:
    raw = result.raw
    chosen = (raw.condition == condition) & (raw.strength == strength) & (raw.measure == measure)
    return raw[chosen]["value"].to_numpy()


def test_the_opposite_and_an_unrelated_concept_stand_beside() -> None:
    model = tiny_model("llama", dtype=torch.float32)
    other = vector(model, 2)[1]
    used = [continuation({"glad": [" happy", " glad"]})]
    result = sweep(
        model, vector(model), [0.2, 0.5, -0.5], PROMPTS, used, controls=1, unrelated=other, progress=False
    )
    for condition, strength, given, by in (
        ("steered", -0.5, vector(model), -0.5),
        ("negated", 0.2, -vector(model), 0.2),
        ("unrelated", 0.5, other, 0.5),
        ("negated", 0.0, other, 0.0),
    ):
        with steer(model, given, by):
            truth = used[0](model, PROMPTS)["glad"].numpy()
        np.testing.assert_allclose(values(result, condition, strength), truth, rtol=1e-6)
    assert not len(values(result, "negated", 0.5))  # -0.5 is among the strengths
    assert set(result.raw.strength) == {-0.5, 0.0, 0.2, 0.5}
    effects = result.effects().set_index("strength")
    untouched = values(result, "steered", 0.0)

    def change(condition: str, strength: float) -> float:
        return float((values(result, condition, strength) - untouched).mean())

    assert effects.negated[0.2] == pytest.approx(change("negated", 0.2))
    assert effects.negated[0.5] == pytest.approx(change("steered", -0.5))
    assert effects.unrelated[0.2] == pytest.approx(change("unrelated", 0.2))
    assert isinstance(result.plot(), Figure)


def test_effects_are_changes_with_intervals_beside_random_ones() -> None:
    result = made_up(lambda s, seed, g: np.full(40, 2.0 * s if seed is None else 0.2 * seed * s))
    raw = result.raw[result.raw.strength.isin([0, 1])]
    both = raw[raw.condition == "steered"].pivot(index="text", columns="strength", values="value")
    changes = (both[1] - both[0]).to_numpy()
    truth = stats.ttest_1samp(changes, 0).confidence_interval()
    row = result.effects().set_index("strength").loc[1]
    assert (row.change, row.low, row.high) == pytest.approx((changes.mean(), truth.low, truth.high))
    assert row.d == pytest.approx(changes.mean() / changes.std(ddof=1))
    ups = raw[raw.condition == "random"].groupby(["strength", "seed"])["value"].mean()
    random = (ups.loc[1.0] - both[0].mean()).to_numpy()
    assert row.random == pytest.approx(random.mean(), abs=0.05)
    assert bool(row.beyond_random) and row.random_high < row.change
    nothing = made_up(lambda s, seed, g: np.full(40, 0.1 * s if seed is None else 0.2 * seed * s))
    assert not nothing.effects().beyond_random.any()
    assert len(result.effects()) == 4


def test_the_usable_window_reaches_as_far_as_every_limit_holds() -> None:
    def gate(up: dict[float, float], down: dict[float, float]) -> Sweep:
        rows = [
            (s, "steered", None, name, text, value + text)
            for name, found in (("repetition", up), ("distinct-2", down))
            for s, value in found.items()
            for text in range(3)
        ]
        raw = pd.DataFrame(rows, columns=["strength", "condition", "seed", "measure", "text", "value"])
        return Sweep(raw.astype({"seed": "Int64"}), "made up", "nothing")

    flat = dict.fromkeys([-2.0, -1.0, 0.0, 1.0, 2.0], 0.5)
    assert gate(flat, flat).usable() == (-2, 2)
    assert gate({**flat, 1.0: 0.65}, flat).usable() == (-2, 0)  # 2 holds again, but 1 lies between
    assert gate({**flat, 1.0: 0.3}, flat).usable() == (-2, 2)  # less repetition is no harm
    assert gate(flat, {**flat, -1.0: 0.3, 2.0: 0.45}).usable() == (0, 2)
    assert gate({**flat, 2.0: math.nan}, flat).usable() == (-2, 1)
    assert gate(flat, {**flat, -1.0: 0.3}).usable({"repetition": 0.1}) == (-2, 2)


@pytest.mark.parametrize(
    "maker", [rotate, partial(add, keep_norm=True), lambda *a: scheduled(rotate(*a), [1, 0.5])]
)
def test_any_edit_of_a_direction_is_swept_with_its_controls(maker: Edit) -> None:
    model = tiny_model("gpt2", dtype=torch.float32)
    used = [generations({"length": len}, max_new_tokens=6), *measures()[2:]]
    result = sweep(
        model, vector(model), [0.7], PROMPTS, used, edit=maker, controls=1, layers=1, progress=False
    )
    for condition, given in (("steered", vector(model)), ("random", random_like(vector(model), 0))):
        with model.intervene(*maker(model, given, 0.7, 1, "all")):
            truth = {name: v for m in used for name, v in m(model, PROMPTS).items()}
        for name, found in truth.items():
            np.testing.assert_allclose(values(result, condition, 0.7, name), found.numpy(), rtol=1e-6)


# Kept ----------------------------------------------------------------------------------------------------------------


def test_an_interrupted_sweep_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gpt2", dtype=torch.float32)
    inner, calls = continuation({"glad": [" happy"]}), []

    def measure(live: LiveModel, prompts: Sequence[str]) -> dict[str, Tensor]:
        calls.append(live.interventions)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return inner(live, prompts)

    def run(strengths: Sequence[float], **options: object) -> Sweep:
        given = {"out": tmp_path / "kept", "controls": 1, "progress": False, **options}
        return sweep(model, vector(model), strengths, PROMPTS, [measure, nll(TEXTS)], **given)  # type: ignore[arg-type]

    with pytest.raises(KeyboardInterrupt):
        run([-0.5, 0.5])
    done = len(list((tmp_path / "kept").glob("*.parquet")))
    assert done == 3  # the untouched model and two runs
    groups: list[int] = []

    def spied(live: LiveModel, passes: Any, runs: list[Any]) -> Any:
        groups.append(len(runs))
        return run_together(live, passes, runs)

    with monkeypatch.context() as patch:
        patch.setattr("emoprobe.steering.sweeping.run_together", spied)
        again = run([-0.5, 0.5])
        assert groups == [4], "rows that are read with fewer others may differ in their last digits"
        assert len(calls) == 4 + 1 + 2  # the untouched model, and what was left
        run([-0.5, 0.5, 0.9], together=4)
        assert groups == [4, 3], "a group that is there is not read again"
    both = [inner, nll(TEXTS)]
    whole = sweep(model, vector(model), [-0.5, 0.5], PROMPTS, both, controls=1, progress=False)
    apart = whole.raw.measure == "nll"  # what shares passes shares them with the runs that are there already
    assert again.raw[apart].equals(whole.raw[apart])
    pd.testing.assert_frame_equal(again.raw, whole.raw)
    before = len(calls)
    more = run([-0.5, 0.5, 0.7, -0.7], controls=2)
    assert len(calls) == before + 1 + 2 * 3 + 2 * 1 and len(more.raw) == 5 * 3 * (len(PROMPTS) + len(TEXTS))
    for options, match in (
        ({"layers": 1}, "layers differ"),
        ({"seed": 3}, "seed differ"),
        ({"edit": rotate}, "edit differ"),
    ):
        with pytest.raises(InputError, match=match):
            run([0.5], **options)
    with pytest.raises(InputError, match="intervention, measures differ"):
        sweep(model, -vector(model), [0.5], PROMPTS, [inner], out=tmp_path / "kept", progress=False)
    with pytest.raises(InputError, match="measures differ"):
        other = [continuation({"glad": [" sad"]})]
        sweep(model, vector(model), [0.5], PROMPTS, other, out=tmp_path / "kept", progress=False)


FACTOR: float | Tensor = 1.0


def test_functions_are_told_apart_by_defaults_and_by_what_they_name_in_their_module(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def made(by: float, word: str = "") -> Callable[..., Any]:
        def measure(live: LiveModel, prompts: Sequence[str], factor: float = by, *, said: str = word) -> Any:
            return FACTOR * factor, said

        return measure

    seen = [described(made(1.0)), described(made(2.0)), described(made(1.0, "a"))]
    for other in (2.0, torch.zeros(2), torch.ones(2)):
        monkeypatch.setitem(globals(), "FACTOR", other)
        seen.append(described(made(1.0)))
    assert len(set(seen)) == 6 and described(made(1.0)) == seen[-1]


def test_a_sweep_is_not_gone_on_with_by_another_measure_edit_or_mask(tmp_path: Path) -> None:
    model = tiny_model("gpt2")

    def doubled(live: LiveModel, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {"kl": 2 * live.logits(list(prompts))[:, -1, 0]}

    def trebled(live: LiveModel, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {"kl": 3 * live.logits(list(prompts))[:, -1, 0]}

    doubled.__qualname__ = trebled.__qualname__ = "measure"
    edits = [lambda *given, w=weights: scheduled(add(*given), w) for weights in ((1.0,), (-3.0,))]
    edits += [
        lambda *given: scheduled(add(*given), [0.5]),
        lambda *given: scheduled(add(*given), [0.25]),
        partial(add, unit="raw"),
    ]
    masks = [torch.ones(len(PROMPTS), 800, dtype=torch.bool) for _ in range(2)]
    masks[1][1, 400] = False
    asked = [
        {"measures": [kl(TEXTS)]},
        {"measures": [kl([*TEXTS[:2], "He was afraid."])]},
        {"measures": [kl(TEXTS, batch_size=1)]},
    ]
    asked += [{"measures": [kl(PROMPTS)], "edit": edit} for edit in edits]
    asked += [{"measures": [continuation({"glad": [" happy"]})], "positions": mask} for mask in masks]
    asked += [{"measures": [measure]} for measure in (doubled, trebled)]

    def run(number: int, folder: int) -> Sweep:
        given = {"edit": add, **asked[number]}
        measures = given.pop("measures")
        return sweep(
            model,
            vector(model),
            [0.5],
            PROMPTS,
            measures,
            controls=0,
            progress=False,
            out=tmp_path / str(folder),
            **given,
        )  # type: ignore[arg-type]

    for number in range(len(asked)):
        first = run(number, number)
        assert run(number, number).raw.equals(first.raw)
        for other in range(number):
            with pytest.raises(InputError, match="holds another sweep"):
                run(number, other)


def kept_run(out: Path, **options: Any) -> tuple[Callable[[], Sweep], Path]:
    """Sweep into a folder; return what does so again, and one of the runs that are kept there."""
    model = tiny_model("gpt2")
    given: dict[str, Any] = {"controls": 0, "progress": False, "out": out, **options}

    def again() -> Sweep:
        return sweep(model, vector(model), [0.5, 0.7], PROMPTS, [nll(TEXTS)], **given)

    again()
    return again, out / "steered-0.5.parquet"


def rewritten(path: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Change a kept run as whoever has it in an editor of tables might, who keeps what else the file says."""
    before = pq.read_table(path)
    after = pa.Table.from_pandas(change(before.to_pandas()), preserve_index=False)
    pq.write_table(after.replace_schema_metadata(before.schema.metadata), path)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-5]),
        lambda path: path.write_bytes(b""),
        lambda path: rewritten(path, lambda table: table.iloc[:-1]),
        lambda path: rewritten(path, lambda table: table.iloc[::-1]),
        lambda path: rewritten(path, lambda table: table.assign(measure="other")),
        lambda path: rewritten(path, lambda table: table.assign(value=np.nextafter(table.value, 0))),
        lambda path: pd.read_parquet(path).to_parquet(path, index=False),
        lambda path: shutil.copy(path.with_name("steered-0.7.parquet"), path),
        lambda path: shutil.copy(kept_run(path.parent / "other", seed=3)[1], path),
    ],
    ids="cut empty fewer-texts other-order other-measures one-bit no-checksum other-run other-sweep".split(),
)
def test_a_kept_run_that_is_not_what_was_written_is_named_and_can_be_made_again(
    tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    again, path = kept_run(tmp_path)
    whole, before = path.read_bytes(), again().raw
    rewritten(path, lambda table: table)
    pd.testing.assert_frame_equal(
        again().raw, before
    )  # the same numbers in another file are what was written
    spoil(path)
    with pytest.raises(InputError, match=r'steered-0\.5\.parquet" is damaged.*delete it, and the same call'):
        again()
    path.unlink()
    pd.testing.assert_frame_equal(again().raw, before)
    assert path.read_bytes() == whole


def test_what_was_not_finite_is_read_as_it_was_written(tmp_path: Path) -> None:
    values = {"a": np.array([0.0, -0.0, np.nan, -np.nan, np.inf]), "b": np.array([1e-310, -np.inf])}
    for _ in range(2):
        runs = KeptRuns(tmp_path, {}, {"a": np.zeros(5), "b": np.zeros(2)})
        found = runs.run("run", lambda: values)
        assert {name: part.tobytes() for name, part in found.items()} == {
            name: part.tobytes() for name, part in values.items()
        }


def test_two_sweeps_do_not_write_to_one_folder_at_once(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    given: dict[str, Any] = {"controls": 0, "progress": False, "out": tmp_path / "kept"}

    def measure(live: LiveModel, prompts: Sequence[str]) -> dict[str, Tensor]:
        if live.interventions:
            with live.suspended(), pytest.raises(InputError, match=r'another process is writing to ".*kept"'):
                sweep(live, vector(live), [0.9], PROMPTS, [nll(TEXTS)], **given)
        return {"one": torch.ones(1)}

    first = sweep(model, vector(model), [0.5], PROMPTS, [measure], **given)
    assert len(first.raw) == 4 and [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert {path.name for path in given["out"].iterdir()} == {
        "asked.json", "untouched.parquet", "steered-0.5.parquet", "negated-0.5.parquet"
    }  # fmt: skip


def test_a_measure_that_has_changed_by_itself_is_seen_by_what_it_says(tmp_path: Path) -> None:
    model, state = tiny_model("gpt2"), [1.0]

    def measure(live: LiveModel, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {"first": state[0] * live.logits(list(prompts))[:, -1, 0]}

    given = {"controls": 0, "progress": False, "out": tmp_path}
    sweep(model, vector(model), [0.5], PROMPTS, [measure], **given)  # type: ignore[arg-type]
    state[0] = 2.0
    with pytest.raises(InputError, match="say something else of the untouched model"):
        sweep(model, vector(model), [0.5], PROMPTS, [measure], **given)  # type: ignore[arg-type]


def test_the_cost_is_against_the_model_as_it_is_now() -> None:
    model, measure = tiny_model("gpt2"), kl(TEXTS)
    sweep(model, vector(model), [0.5], PROMPTS, [measure], controls=0, progress=False)
    with torch.no_grad():
        model.underlying.transformer.h[1].mlp.c_fc.weight.mul_(1.5)
    again = sweep(model, vector(model), [0.5], PROMPTS, [measure], controls=0, progress=False)
    fresh = sweep(model, vector(model), [0.5], PROMPTS, [kl(TEXTS)], controls=0, progress=False)
    assert again.raw.equals(fresh.raw) and (again.raw[again.raw.strength == 0].value == 0).all()


def test_it_shows_itself_and_nothing_that_a_name_smuggles_in() -> None:
    import matplotlib.pyplot as plt

    model = tiny_model("gpt2", dtype=torch.float32)
    evil = "<script>alert(1)</script> $x_{ $"
    direction = Direction(evil, (2,), vector(model)[None])
    result = sweep(
        model, direction, [0, 0.5], PROMPTS, [continuation({evil: [" happy"]})], controls=1, progress=False
    )
    page = result._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;alert(1)" in page and "<svg" in page
    assert evil in repr(result)
    assert isinstance(result.plot(), Figure) and len(result.plot().axes) == 1
    assert plt.get_fignums() == []  # no figure is left in global state
    many = sweep(model, direction, [0, 0.5], PROMPTS, measures(), controls=0, progress=False)
    assert len(many.plot().axes) == 4


def test_any_function_of_model_and_prompts_is_a_measure() -> None:
    model = tiny_model("gpt2", dtype=torch.float32)

    def last_norm(live: LiveModel, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {"norm": live.capture(prompts, [3], "last")[:, 0].norm(dim=-1)}

    result = sweep(model, vector(model), [0, 4], "The dog", [last_norm], controls=1, progress=False)
    assert result.frame["measure"].unique().tolist() == ["norm"] and result.frame["low"].isna().all()
    assert len(result.raw) == 6


def test_what_cannot_be_swept_is_refused_in_words() -> None:
    model = tiny_model("gpt2", dtype=torch.float32)

    def refused(
        match: str, *, what: object = None, strengths: object = (0, 1), used: object = None, **options: object
    ) -> None:
        with pytest.raises(InputError, match=match):
            sweep(
                model,
                vector(model) if what is None else what,  # type: ignore[arg-type]
                strengths,  # type: ignore[arg-type]
                PROMPTS,
                measures() if used is None else used,  # type: ignore[arg-type]
                progress=False,
                **options,  # type: ignore[arg-type]
            )

    refused("not a list of finite numbers", strengths=[0, float("nan")])
    refused("not a list of finite numbers", strengths=[])
    refused('two measures are called "nll"', used=[nll(TEXTS), nll(PROMPTS)])
    refused("at least one prompt and one measure", used=[])
    refused("one number per text", used=[lambda live, prompts: {"x": torch.zeros(2, 2)}])
    refused("direction is a str", what="calm")
    refused("width 5", what=torch.ones(5))
    refused("not finite", what=torch.full((32,), torch.inf))
    refused('leave positions at "all"', what=valuation(model), positions="last")
    refused("layer 9", layers=9)
    assert np.isfinite(
        sweep(
            model,
            vector(model),
            [1],
            PROMPTS,
            [nll(TEXTS), nll(PROMPTS, name="nll of prompts")],
            controls=0,
            progress=False,
        ).frame["value"]
    ).all()


def test_a_strength_and_its_opposite_are_not_run_again_for_their_last_bit() -> None:
    model = tiny_model("gpt2")
    strengths = np.linspace(-0.5, 0.5, 11).tolist()
    assert any(-strength not in strengths for strength in strengths)
    vector = torch.ones(model.d_model).cumsum(0)
    found = sweep(
        model, vector, strengths, ["The dog ran"], [nll(["The dog ran"])], controls=0, progress=False
    )
    assert set(found.raw.condition) == {"steered"}
