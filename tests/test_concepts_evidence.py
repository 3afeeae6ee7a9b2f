"""Which of three things a number comes to, and exact tests and intervals behind it."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import t

from emoprobe.study.concepts import evidence
from emoprobe.study.concepts.evidence import (
    Evidence,
    fieller,
    of_mean,
    of_share,
    p_of_all,
    p_two_sided,
    sign_test,
)

CHANCE = np.array([-0.1, -0.05, 0.0, 0.05, 0.1])  # one more within 0 ± 2.776 · 0.0791 · √1.2 = ± 0.2405


@pytest.mark.parametrize(
    ("value", "low", "high", "p", "sign"),
    [
        (0.3, 0.1, 0.5, np.nan, 1),
        (0.3, 0.1, 0.5, 0.01, 1),
        (0.3, 0.1, 0.5, 0.05, 0),  # the permutation test does not agree
        (0.3, -0.1, 0.7, 0.01, 0),  # the interval holds 0
        (0.2, 0.1, 0.3, 0.01, 0),  # random directions may give as much
        (-0.3, -0.5, -0.1, 0.01, -1),
        (-0.3, -0.5, 0.1, 0.01, 0),
        (-0.2, -0.3, -0.1, 0.01, 0),
        (np.nan, np.nan, np.nan, np.nan, 0),
    ],
)
def test_an_effect_needs_all_that_speaks_for_it(
    value: float, low: float, high: float, p: float, sign: int
) -> None:
    assert Evidence(value, low, high, CHANCE, 0.0, p).sign == sign


def test_nothing_may_lie_elsewhere() -> None:
    assert Evidence(0.9, 0.8, 1.0, CHANCE + 0.5, 0.5).sign == 1
    assert Evidence(0.1, 0.0, 0.2, CHANCE + 0.5, 0.5).sign == -1
    assert Evidence(0.6, 0.4, 0.8, CHANCE + 0.5, 0.5).sign == 0


def test_without_controls_nothing_is_shown() -> None:
    assert (
        Evidence(0.9, 0.8, 1.0, np.array([])).sign == 0 and Evidence(0.9, 0.8, 1.0, np.array([0.0])).sign == 0
    )


def test_what_is_said() -> None:
    assert Evidence(0.3, 0.1, 0.5, CHANCE, 0.0, 0.012).said().replace("\N{NO-BREAK SPACE}", " ") == (
        "+0.30 [+0.10, +0.50] (random directions −0.24 to +0.24, p = 0.012)"
    )


@pytest.mark.parametrize(
    ("value", "low", "nothing", "least"),
    [
        (0.1, -0.4, 0.0, 0.5),  # half its interval
        (0.1, 0.0, 0.0, 0.2405),  # what one more set of random directions is expected to give
        (0.6, 0.2, 0.5, 0.9),
    ],
)
def test_a_null_says_what_would_have_been_shown(
    value: float, low: float, nothing: float, least: float
) -> None:
    found = Evidence(value, low, 2 * value - low, CHANCE + nothing, nothing)
    assert (
        found.sign == 0
        and found.least == pytest.approx(least, abs=1e-3)
        and found.row()["least"] == found.least
    )
    assert f"; from about {least:+.2f} on it would be shown)" in found.said()
    shift = found.least + 1e-3 - value
    assert Evidence(value + shift, low + shift, 2 * value - low + shift, CHANCE + nothing, nothing).sign == 1


def test_means_and_shares() -> None:
    units = np.random.default_rng(0).normal(size=(6, 9))
    found = of_mean(units)
    reach = t.ppf(0.975, 8) * units[0].std(ddof=1) / 3
    assert (found.value, found.low, found.high) == pytest.approx(
        (units[0].mean(), units[0].mean() - reach, units[0].mean() + reach)
    )
    assert np.allclose(found.chance, units[1:].mean(1))
    ones = of_share(np.ones((3, 16)), 0.5)
    assert (
        ones.value == 1 and ones.high == 1 and ones.low == pytest.approx(0.025 ** (1 / 16))
    )  # Clopper and Pearson
    halves = of_share(np.full((3, 16), 0.5), 0.5)
    assert halves.low < 0.3 and halves.high > 0.7
    mixed = of_share(np.tile([1.0, 1.0, 1.0, 0.9], (3, 1)), 0.5)
    assert mixed.high == 1.0 and mixed.low < 0.95


def test_the_sign_test_is_exact() -> None:
    for values, expected in [
        ([1.0] * 8, 2 / 2**8),
        ([1, 1, -1, 0, 0], 1.0),
        ([-3, -1, -2, -5, 0.1, -1], 14 / 64),
        ([0, 0], 1.0),
    ]:
        assert sign_test(np.array(values, dtype=float)) == pytest.approx(expected)


def test_permutation_p_counts_what_was_seen() -> None:
    assert p_two_sided(2.0, np.array([0.0, -2.0, 3.0, 1.0])) == pytest.approx(3 / 5)
    assert p_of_all(2.0, np.array([2.0, -2.0, 3.0, 1.0])) == pytest.approx(3 / 4)


def test_fiellers_bounds_are_where_the_t_test_turns() -> None:
    generator = np.random.default_rng(1)
    below = generator.normal(1.0, 0.4, 12)
    above = 0.6 * below + generator.normal(0, 0.3, 12)
    ratio, low, high = fieller(above, below)
    assert ratio == pytest.approx(above.mean() / below.mean()) and low < ratio < high
    for bound in (low, high):
        rest = above - bound * below
        assert abs(rest.mean() / rest.std(ddof=1) * np.sqrt(12)) == pytest.approx(t.ppf(0.975, 11), rel=1e-6)


def test_fieller_covers_the_ratio_as_often_as_it_says() -> None:
    generator, held = np.random.default_rng(2), 0
    for _ in range(400):
        below = generator.normal(1.0, 0.8, 10)
        above = 0.5 * below + generator.normal(0, 0.5, 10)
        _, low, high = fieller(above, below)
        held += low <= 0.5 <= high
    assert 0.92 <= held / 400 <= 0.98


def test_no_ratio_to_nothing() -> None:
    below = np.array([1.0, -1.2, 0.3, -0.2])
    assert fieller(np.ones(4), below)[1:] == (-np.inf, np.inf)
    assert np.isnan(fieller(np.ones(1), np.ones(1))).all()


def test_exact_intervals_of_shares() -> None:
    for hits, trials in product((0, 3, 10), (10, 40)):
        low, high = evidence.clopper_pearson(hits, trials)
        assert 0 <= low <= hits / trials <= high <= 1
    assert evidence.clopper_pearson(0, 10) == pytest.approx((0.0, 1 - 0.025**0.1))
