"""What makes a claim supported, not supported or not shown: each condition alone, with numbers made up for it."""

import numpy as np
import pytest

from emoprobe.study.claims.judging import (
    NOT_SHOWN,
    NOT_SUPPORTED,
    POSITIVE,
    STRENGTHS,
    SUPPORTED,
    Effect,
    effect,
    effect_of_mean,
    overall,
)

UNITS, GROUPS, CONTROLS = 60, 15, 20
GROUP = np.arange(UNITS) % GROUPS


def doctored(
    slope: float, *, even: float = 0.0, random: float = 0.0, noise: float = 0.1, sign: int = 1, seed: int = 0
) -> Effect:
    """An effect that is slope · λ + even · |λ|, and `random` · |λ| under random valuations."""
    draw = np.random.default_rng(seed)
    lam, positive = np.array(STRENGTHS), np.array(POSITIVE)
    probed = (slope * lam + even * np.abs(lam))[:, None] + noise * draw.normal(size=(len(lam), UNITS))
    chance = random * positive[:, None] + noise * draw.normal(size=(CONTROLS, len(positive), UNITS))
    return effect_of_mean("it does", "%", sign, probed, chance, GROUP)


def test_a_claim_is_supported_if_it_is_beyond_zero_random_valuations_and_negative_strengths() -> None:
    found = doctored(0.5)
    assert found.verdict == SUPPORTED and not found.lacking
    assert found.mean[0] == pytest.approx(0.5 * np.mean(POSITIVE), abs=0.05)
    assert found.beyond_negative[0] == pytest.approx(np.mean(POSITIVE), abs=0.1)
    assert found.p == pytest.approx(1 / 21) and found.p_differs == pytest.approx(1 / 21)
    assert doctored(-0.5, sign=-1).verdict == SUPPORTED


@pytest.mark.parametrize(
    ("given", "verdict", "why"),
    [
        ({"slope": 0.0}, NOT_SHOWN, "no effect of this sign is shown"),
        ({"slope": 0.5, "random": 0.5}, NOT_SHOWN, "random valuations do as much"),
        ({"slope": 0.0, "even": 0.5}, NOT_SHOWN, "negative λ do as much"),
        ({"slope": -0.5}, NOT_SUPPORTED, "the effect has the other sign"),
        ({"slope": 0.5, "sign": -1}, NOT_SUPPORTED, "the effect has the other sign"),
    ],
)
def test_each_condition_alone_keeps_a_claim_from_being_supported(
    given: dict[str, float], verdict: str, why: str
) -> None:
    found = doctored(**given)  # type: ignore[arg-type]
    assert found.verdict == verdict
    assert why in found.lacking
    assert len(found.lacking) == 1 or given == {"slope": 0.0}
    assert why in found.judged() and found.judged().startswith(verdict)


def test_intervals_are_over_clusters_and_not_over_their_members() -> None:
    """Members of a cluster that all say the same say it once."""
    draw = np.random.default_rng(0)
    once = draw.normal(size=(len(STRENGTHS), GROUPS))
    chance = draw.normal(size=(CONTROLS, len(POSITIVE), GROUPS))
    one = effect_of_mean("it does", "%", 1, once, chance, np.arange(GROUPS))
    four = effect_of_mean(
        "it does", "%", 1, np.repeat(once, 4, 1), np.repeat(chance, 4, -1), np.repeat(np.arange(GROUPS), 4)
    )
    assert four.clusters == GROUPS
    assert np.allclose(one.probed, four.probed) and np.allclose(one.mean, four.mean)
    # A mean's jackknife is Student's interval.
    values = once[3:].mean(0)
    from scipy.stats import t

    reach = t.ppf(0.975, GROUPS - 1) * values.std(ddof=1) / GROUPS**0.5
    assert np.allclose(one.mean, [values.mean(), values.mean() - reach, values.mean() + reach])


def test_random_valuations_are_as_often_supported_as_the_exact_test_says() -> None:
    """Where the probed valuation is one of the random ones, p is at most 0.05 in one of twenty-one."""
    draw = np.random.default_rng(1)
    found = [
        effect_of_mean(
            "it does",
            "%",
            1,
            draw.normal(size=(6, 1)) + draw.normal(size=(6, 8)),
            draw.normal(size=(CONTROLS, 3, 1)) + draw.normal(size=(CONTROLS, 3, 8)),
            np.arange(8),
        )
        for _ in range(400)
    ]
    assert 0.02 < np.mean([one.p < 0.05 for one in found]) < 0.08
    assert 0.02 < np.mean([one.p_differs < 0.05 for one in found]) < 0.08


def test_what_cannot_be_measured_is_not_shown_and_says_so() -> None:
    nothing = effect_of_mean(
        "it does", "%", 1, np.empty((6, 0)), np.empty((CONTROLS, 3, 0)), np.empty(0, dtype=int)
    )
    assert nothing.verdict == NOT_SHOWN and nothing.lacking == ["it could not be measured"]
    assert np.isnan(nothing.p) and nothing.rows().verdict.iloc[-1] == NOT_SHOWN
    # Units that are not finite under one condition are left out of all.
    probed, random = np.ones((6, 4)), np.zeros((CONTROLS, 3, 4))
    probed[2, 0], random[0, 0, 1] = np.nan, np.inf
    kept = effect_of_mean("it does", "%", 1, probed, random, np.arange(4))
    assert kept.clusters == 2 and kept.mean[0] == 1


def growing(missing: tuple[int, ...] = (), random: np.ndarray | None = None) -> Effect:
    """An effect of λ itself that differs little between clusters, NaN at the strengths at `missing`."""
    chance = np.zeros((CONTROLS, len(POSITIVE))) if random is None else random

    def statistic(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = np.array(STRENGTHS) * (1 + 0.01 * weights @ np.arange(len(weights)) / weights.sum())
        found[list(missing)] = np.nan
        return found, chance

    return effect("it does", "%", 1, statistic, 5)


@pytest.mark.parametrize("missing", [3, 5])
def test_there_is_no_mean_where_a_strength_cannot_be_had(missing: int) -> None:
    """A mean over the λ that are left would be held against others over all of them."""
    assert growing().verdict == SUPPORTED
    found = growing((missing,))
    assert found.verdict == NOT_SHOWN and found.lacking == ["it could not be measured"]
    assert np.isnan([found.mean[0], found.p, found.p_differs, found.beyond_negative[0]]).all()
    each = found.rows().iloc[:6]
    assert each.strength.tolist() == list(STRENGTHS) and each.value.isna().sum() == 1


def test_a_negative_strength_that_cannot_be_had_leaves_nothing_to_compare_with() -> None:
    found = growing((0,))
    assert found.mean[0] == pytest.approx(growing().mean[0]) and np.isnan(found.beyond_negative).all()
    assert found.verdict == NOT_SHOWN and found.lacking == ["negative λ could not be measured"]


@pytest.mark.parametrize("lost", [1, CONTROLS])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_random_valuations_that_cannot_be_measured_count_as_reaching_the_probed_one(
    lost: int, bad: float
) -> None:
    random = np.zeros((CONTROLS, len(POSITIVE)))
    random[:lost] = bad
    found = growing(random=random)
    assert found.p == pytest.approx((1 + lost) / (1 + CONTROLS)) == pytest.approx(found.p_differs)
    assert found.verdict == NOT_SHOWN
    assert found.lacking == ["random valuations do as much or could not be measured"]
    assert f"{lost} of {CONTROLS} not measured" in found.said()
    assert found.rows().p.iloc[-1] == found.p


def test_a_random_valuation_is_not_judged_by_the_strengths_that_are_left() -> None:
    random = np.zeros((CONTROLS, len(POSITIVE)))
    random[0, -1] = np.nan
    assert growing(random=random).p == pytest.approx(2 / 21)


def test_one_cluster_has_no_interval_and_shows_nothing() -> None:
    one = effect_of_mean(
        "it does", "%", 1, np.ones((6, 3)), np.zeros((CONTROLS, 3, 3)), np.zeros(3, dtype=int)
    )
    assert one.mean[0] == 1 and np.isnan(one.mean[1:]).all() and one.verdict == NOT_SHOWN


def test_verdicts_are_counted() -> None:
    assert overall([doctored(0.5), doctored(0.5), doctored(-0.5)]) == "2 supported, 1 not supported"
