"""Rates and verdicts on made-up sweeps: what is counted, what a floor is, and whose slope is an effect."""

import math

import numpy as np
import pandas as pd
import pytest

from emoprobe.steering import Sweep
from emoprobe.steering.behaviours import rates, verdicts, wilson

SHARE = "made up: done"


def made_up(steered: dict[float, list[float]], random: list[dict[float, list[float]]] | None = None) -> Sweep:
    """A sweep of one share over scenarios, at each strength; random directions change nothing unless given."""
    arms = [steered, *(random if random is not None else [{s: steered[0] for s in steered}] * 3)]
    rows = [
        (strength, "random" if number else "steered", number - 1 if number else None, SHARE, text, value)
        for number, arm in enumerate(arms)
        for strength, values in arm.items()
        for text, value in enumerate(values)
    ]
    raw = pd.DataFrame(rows, columns=["strength", "condition", "seed", "measure", "text", "value"])
    return Sweep(raw.astype({"seed": "Int64"}), "made up", "nothing")


def test_scenarios_without_a_value_are_not_counted() -> None:
    table = rates(made_up({0: [1, 0, math.nan, math.nan], 1: [math.nan] * 4}, random=[]))
    assert table.scenarios.tolist() == [2, 0]
    assert tuple(table.loc[0, ["rate", "low", "high"]]) == pytest.approx((0.5, *wilson(0.5, 2)))
    assert table.loc[1, ["rate", "low", "high"]].isna().all()


def test_where_nothing_could_be_counted_nothing_is_said() -> None:
    row = verdicts(made_up({0: [math.nan] * 4, 1: [0, 1, 0, 1]})).iloc[0]
    assert row.scenarios == 0 and "none of its scenarios could be counted" in row.verdict


def test_a_strength_that_takes_the_rate_off_its_floor_is_no_floor() -> None:
    floor = [0.0] * 10
    wavering = {0: floor, 1: [1.0] * 5 + [0.0] * 5, 2: floor}  # no trend, but it can be moved
    assert verdicts(made_up(wavering)).verdict[0] == "no change beyond random directions"
    assert "at its floor" in verdicts(made_up({0: floor, 1: floor, 2: floor})).verdict[0]
    full = [1.0] * 10
    wavering = {0: full, 1: [1.0] * 5 + [0.0] * 5, 2: full}
    assert verdicts(made_up(wavering)).verdict[0] == "no change beyond random directions"
    assert "at its ceiling" in verdicts(made_up({0: full, 1: full, 2: full})).verdict[0]


def test_staying_flat_where_random_directions_rise_is_no_trend() -> None:
    before, by = np.full(6, 0.5), np.array([0.02, -0.02, 0.01, -0.01, 0.02, -0.02])
    strengths = (0, 0.5, 1)
    rising = [{s: (before + s * slope).tolist() for s in strengths} for slope in (0.4, 0.41, 0.42)]
    flat = made_up({s: (before + s * by).tolist() for s in strengths}, rising)
    summary = flat.summary().iloc[0]
    assert summary.beside_random == "flatter than" and summary.low < 0 < summary.high
    less = "changes less with strength than under random directions"
    assert verdicts(flat).verdict[0] == less
    slower = made_up({s: (before + s * (0.1 + by)).tolist() for s in strengths}, rising)
    summary = slower.summary().iloc[0]
    assert summary.beside_random == "flatter than" and summary.low > 0  # it rises, as anything would
    assert verdicts(slower).verdict[0] == less
    rises = made_up({s: (before + s * np.abs(by)).tolist() for s in strengths})
    assert verdicts(rises).verdict[0] == "rises with strength"
