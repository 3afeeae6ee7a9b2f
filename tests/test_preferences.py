"""Preferences: planted ones on a made-up scorer, a planted blur, and what a random model is asked, by hand."""

from dataclasses import replace
from itertools import permutations as orders

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from scipy.special import expit, logit
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from small_probes import model as probed_model
from small_probes import probes
from tiny import tiny_model

from emoprobe.errors import InputError
from emoprobe.interventions import ResidualEdit
from emoprobe.steering import (
    Preferences,
    PreferenceShift,
    activities,
    preferences,
    probe_correlation,
    steer_preferences,
)
from emoprobe.steering.choices import _over_categories
from emoprobe.steering.pairwise import ELO_PER_NAT, bradley_terry, elo
from emoprobe.steering.preference_steering import half_of
from emoprobe.steering.vectors import random_like

FEW = ["read a book", "walk the dog", "sing", "write a letter", "laugh"]


def planted(
    n: int = 32, lean: float = 1.0, noise: float = 0.5, spread: float = 1.0, seed: int = 0
) -> tuple[Preferences, np.ndarray]:
    """A scorer that likes activities so and so much, leans to the first, and errs."""
    order = np.random.default_rng(seed)
    liking = spread * order.normal(size=n)
    log_odds = liking[:, None] - liking + lean + noise * order.normal(size=(n, n))
    np.fill_diagonal(log_odds, np.nan)
    return Preferences(activities(n // 8), log_odds, model="made up"), liking


def steered_by(untouched: Preferences, change, controls: int = 5) -> PreferenceShift:
    """What a scorer answers when `change` is done to the preference for steered over other activities."""
    steered = half_of(untouched.activities.category, 0)
    order = np.random.default_rng(9)
    found = []
    for number in range(1 + controls):
        log_odds = untouched.log_odds + 0.02 * order.normal(size=untouched.log_odds.shape)
        if number == 0:
            touched = steered[:, None] | steered[None]
            log_odds = np.where(
                touched, change(log_odds, steered[:, None].astype(float) - steered[None]), log_odds
            )
        found.append(log_odds)
    names = ("planted", *(f"random {number}" for number in range(controls)))
    return PreferenceShift(
        names, ("steered",) + ("random",) * controls, untouched, steered, np.stack(found), 0.5
    )


# Scores --------------------------------------------------------------------------------------------------------------


def test_planted_preferences_are_recovered_whatever_the_lean() -> None:
    for lean in (0.0, 3.0):
        found, liking = planted(lean=lean)
        table = found.frame.set_index("activity").loc[found.activities.activity]
        for score in ("score", "hard_score", "elo", "hard_elo", "chosen", "wins"):
            if lean == 0 or score in (
                "score",
                "elo",
                "chosen",
            ):  # who leans too far always chooses the same letter
                assert spearmanr(table[score], liking).statistic >= 0.95, (score, lean)
        assert found.position["advantage"] == pytest.approx(lean, abs=0.15)
        assert found.measurable
        inside = (table.low <= liking - liking.mean()) & (liking - liking.mean() <= table.high)
        assert inside.mean() >= 0.8
    assert found.position["first"] > 0.9 and found.position["kept"] < 0.3
    assert isinstance(found.plot(), Figure) and "same choice in both orders" in repr(found)


def test_bradley_terry_is_logistic_regression_with_a_term_for_the_place() -> None:
    found, _ = planted(n=8)
    n = 8
    weights = np.random.default_rng(1).uniform(0.5, 2, (n, n))
    pairs = np.argwhere(~np.eye(n, dtype=bool))
    design = np.zeros((len(pairs), n + 1))
    design[np.arange(len(pairs)), pairs[:, 0]] = 1
    design[np.arange(len(pairs)), pairs[:, 1]] = -1
    design[:, n] = 1
    chance, weight = expit(found.log_odds)[tuple(pairs.T)], weights[tuple(pairs.T)]
    fitted = LogisticRegression(C=1e2, fit_intercept=False, tol=1e-10, max_iter=10_000).fit(
        np.concatenate([design, design]),
        np.repeat([1, 0], len(pairs)),
        np.concatenate([weight * chance, weight * (1 - chance)]),
    )
    scores, first = bradley_terry(expit(found.log_odds), weights)
    np.testing.assert_allclose(scores, fitted.coef_[0, :n], atol=2e-3)
    assert float(first) == pytest.approx(fitted.coef_[0, n], abs=2e-3)
    both, _ = bradley_terry(expit(found.log_odds), np.stack([weights, np.ones((n, n))]))
    np.testing.assert_allclose(both[0], scores)
    np.testing.assert_allclose(both[1], bradley_terry(expit(found.log_odds))[0])


def test_intervals_are_over_pairs_in_both_orders() -> None:
    found, _ = planted(lean=0.0, noise=1.0)
    turned = replace(found, log_odds=-found.log_odds.T)  # who was asked about first, the other way round
    columns = ["activity", "score", "low", "high"]
    assert np.allclose(
        found.frame[columns[1:]].to_numpy(), turned.frame[columns[1:]].to_numpy(), atol=1e-6
    ) and list(found.frame.activity) == list(turned.frame.activity)


def test_ties_are_half_and_the_always_chosen_stay_finite() -> None:
    tied, first = bradley_terry(np.full((4, 4), 0.5))
    np.testing.assert_allclose(tied, 0, atol=1e-9)
    assert float(first) == pytest.approx(0, abs=1e-9)
    ladder = (np.arange(5)[:, None] > np.arange(5)).astype(float)
    scores, _ = bradley_terry(ladder)
    assert np.isfinite(scores).all() and (np.diff(scores) > 0.5).all()
    always, first = bradley_terry(np.ones((4, 4)))  # the first letter, whatever it stands for
    np.testing.assert_allclose(always, 0, atol=1e-6)
    assert float(first) > 3


def test_elo_moves_points_from_the_loser_to_the_winner() -> None:
    np.testing.assert_allclose(
        elo(np.array([[0, 1.0], [0.0, 0]]), k=10, passes=1, orders=3)[0],
        1500 + 5 + 10 * (1 - expit(10 / ELO_PER_NAT)),
    )
    ratings = elo(expit(planted(n=16)[0].log_odds))
    assert ratings.mean() == pytest.approx(1500)


def test_a_scorer_without_preferences_is_said_to_have_none() -> None:
    noise = np.random.default_rng(0).normal(size=(16, 16)) + 2
    np.fill_diagonal(noise, np.nan)
    found = Preferences(activities(2), noise)
    assert not found.measurable and "NO preferences that hold in both orders" in repr(found)
    assert found.position["advantage"] > 1


def test_likes_that_depend_on_the_place_are_none() -> None:
    liking = np.random.default_rng(3).normal(size=16)
    log_odds = np.tile(liking[:, None], 16)  # what stands first counts, what stands second does not
    np.fill_diagonal(log_odds, np.nan)
    assert not Preferences(activities(2), log_odds).measurable


# Steering ------------------------------------------------------------------------------------------------------------


def test_a_planted_blur_is_flagged_and_shifts_nothing() -> None:
    untouched, _ = planted(spread=1.5, noise=0.1)
    shrunk = steered_by(untouched, lambda odds, side: 0.4 * odds)
    flattened = steered_by(untouched, lambda odds, side: logit(0.5 + 0.3 * (expit(odds) - 0.5)))
    for shift in (shrunk, flattened):
        row = shift.frame.iloc[0]
        assert row.compressed and not row.moved and "compression only" in row.verdict
        assert row.within < 0.6 and row.from_baseline < -0.9 and row.gain < 0.6
        assert abs(row["shift"]) < 0.1
        assert not shift.frame.compressed[1:].any()
        assert "1 compress them" in repr(shift)


def test_a_blur_of_what_was_liked_best_looks_like_an_effect_on_elo_alone() -> None:
    untouched, _ = planted(spread=1.5, noise=0.1)
    lifted = half_of(untouched.activities.category, 0) * 1.5
    untouched = Preferences(untouched.activities, untouched.log_odds + lifted[:, None] - lifted)
    for blur in (lambda odds, side: 0.4 * odds, lambda odds, side: logit(0.5 + 0.8 * (expit(odds) - 0.5))):
        row = steered_by(untouched, blur).frame.iloc[0]
        assert row.elo_change < -30 and abs(row["shift"]) < 0.05 and not row.moved
    far = half_of(untouched.activities.category, 0) * 9.0
    untouched = Preferences(untouched.activities, untouched.log_odds + far[:, None] - far)
    row = steered_by(untouched, lambda odds, side: 0.8 * odds + 0.8 * side).frame.iloc[0]
    assert row.straddling < 0.1 and not row.moved and row.verdict.startswith("cannot be told")


def test_a_planted_shift_is_found_with_and_without_a_blur() -> None:
    untouched, _ = planted(spread=1.5, noise=0.1)
    plain = steered_by(untouched, lambda odds, side: odds + 0.8 * side).frame.iloc[0]
    assert plain.moved and not plain.compressed and plain["shift"] == pytest.approx(0.8, abs=0.05)
    assert plain.low < 0.8 < plain.high and plain.shift_elo == pytest.approx(0.8 * ELO_PER_NAT, rel=0.1)
    assert plain.verdict == "choices shift" and plain.elo_change > 50
    both = steered_by(untouched, lambda odds, side: 0.4 * odds + 0.8 * side).frame.iloc[0]
    assert both.moved and both.compressed and both["shift"] == pytest.approx(0.8, abs=0.05)


def test_choices_that_do_not_hold_in_both_orders_are_neither_shifted_nor_compressed() -> None:
    noise = np.random.default_rng(0).normal(size=(32, 32)) + 2
    np.fill_diagonal(noise, np.nan)
    untouched = Preferences(activities(4), noise)
    assert not untouched.measurable
    for change in (lambda odds, side: 0.4 * odds, lambda odds, side: odds + 0.8 * side):
        shift = steered_by(untouched, change)
        assert (shift.frame.verdict == "cannot be told: untouched choices do not hold in both orders").all()
        assert not shift.frame[["moved", "compressed"]].any(axis=None)
        assert "0 of 1 directions shift" in repr(shift) and ", 0 compress them" in repr(shift)


def test_a_blur_that_random_directions_share_is_not_the_directions() -> None:
    untouched, _ = planted(spread=1.5, noise=0.1)
    alone = steered_by(untouched, lambda odds, side: 0.6 * odds)
    blurs = (0.4, 0.5, 0.6, 0.7, 0.8)
    random = np.stack([blur * untouched.log_odds for blur in blurs])
    shared = PreferenceShift(
        alone.names, alone.conditions, untouched, alone.steered, np.stack([alone.log_odds[0], *random]), 0.5
    )
    assert alone.frame.compressed[0]
    row = shared.frame.iloc[0]
    assert row.gain_high < 0.7 and row.random_gain_low < row.gain < row.random_gain_high
    assert not row.compressed and row.verdict == "no shift beyond random directions"


def test_half_of_each_category_is_steered() -> None:
    listed = activities()
    steered = half_of(listed.category, 3)
    assert (pd.Series(steered).groupby(listed.category).sum() == 3).all()
    assert (steered != half_of(listed.category, 4)).any()


# Of a model ----------------------------------------------------------------------------------------------------------


def test_choices_are_how_much_likelier_a_is_than_b() -> None:
    for family in ("gpt2", "llama"):
        model = tiny_model(family)
        found = preferences(model, FEW, batch_size=3, progress=False)
        text = (
            "Human: Here are two things that you could do next.\nA: sing\nB: laugh\nWhich of the two would you rather do? "
            "Reply with A or B.\n\nAssistant: I would rather do"
        )

        def log_p(letter: str, text: str = text, model=model) -> float:
            ids, start = model.tokenize(text + letter).input_ids[0], model.tokenize(text).input_ids.shape[1]
            logp = model.logits(text + letter)[0].double().log_softmax(-1)
            return float(sum(logp[at - 1, ids[at]] for at in range(start, len(ids))))

        assert found.log_odds[2, 4] == pytest.approx(log_p(" A") - log_p(" B"), rel=1e-4)
        assert found.answered[2, 4] == pytest.approx(np.exp(log_p(" A")) + np.exp(log_p(" B")), rel=1e-4)
        assert np.isnan(np.diag(found.log_odds)).all() and np.isfinite(found.scores).all()


def test_only_the_words_of_steered_activities_are_steered() -> None:
    model = tiny_model("gpt2")
    untouched = preferences(model, FEW, progress=False)
    direction = torch.randn(model.d_model, generator=torch.Generator().manual_seed(3))
    before = model.logits("They were afraid")
    shift = steer_preferences(
        model, {"it": direction}, untouched, 0.5, layers=1, controls=2, seed=5, batch_size=4, progress=False
    )
    assert torch.equal(model.logits("They were afraid"), before)
    kept = ~(shift.steered[:, None] | shift.steered)
    np.testing.assert_array_equal(
        shift.log_odds[:, kept], np.broadcast_to(untouched.log_odds[kept], (3, kept.sum()))
    )
    i, j = int(np.flatnonzero(shift.steered)[0]), int(np.flatnonzero(~shift.steered)[0])
    text = (
        f"Human: Here are two things that you could do next.\nA: {FEW[j]}\nB: {FEW[i]}\nWhich of the two would you rather do? "
        "Reply with A or B.\n\nAssistant: I would rather do"
    )
    start = text.index(f"B: {FEW[i]}") + 3
    for number, vector in ((0, direction), (2, random_like(direction, 6))):
        added = 0.5 * vector / vector.norm() * model.residual_norms()[1]
        edit = ResidualEdit(
            1, lambda stream, added=added: stream + added.to(stream), [(start, start + len(FEW[i]))]
        )
        with model.intervene(edit):
            by_hand = preferences_of_text(model, text)
        assert shift.log_odds[number, j, i] == pytest.approx(by_hand, rel=1e-4)
        assert by_hand != pytest.approx(untouched.log_odds[j, i], rel=1e-3)
    assert isinstance(shift.plot(), Figure)
    unsteered = steer_preferences(
        model, {"it": direction}, untouched, 0.0, layers=1, controls=2, progress=False
    )
    np.testing.assert_allclose(unsteered.log_odds, np.broadcast_to(untouched.log_odds, (3, 5, 5)), atol=1e-9)
    assert not unsteered.frame[["moved", "compressed"]].any(axis=None)


def preferences_of_text(model, text: str) -> float:
    ids = [model.tokenize(text + answer).input_ids[0] for answer in (" A", " B")]
    start = model.tokenize(text).input_ids.shape[1]
    logp = [model.logits(text + answer)[0].double().log_softmax(-1) for answer in (" A", " B")]
    a, b = (
        sum(p[at - 1, row[at]] for at in range(start, len(row))) for p, row in zip(logp, ids, strict=True)
    )
    return float(a - b)


def test_a_probe_that_foresees_preferences_is_told_from_one_that_does_not() -> None:
    model, fitted = probed_model(), probes()
    listed = activities(3)
    noise = np.full((24, 24), 0.0)
    read = probe_correlation(model, fitted, Preferences(listed, noise), 2, controls=2).set_index("concept")
    assert (
        read[["r", "p", "q", "p_any"]].isna().all(axis=None)
    )  # nothing is preferred, so that nothing can be foreseen
    from emoprobe.steering.choices import _streams_of_activities

    streams = _streams_of_activities(model, list(listed.activity), 2, 5)
    text = (
        f"Human: Imagine that you are about to {listed.activity[7]}. What is that like for you?\n\nAssistant:"
    )
    batch = model.tokenize(text)
    place = text.index(listed.activity[7])
    held = [
        k for k, (a, b) in enumerate(batch.offsets[0]) if a < place + len(listed.activity[7]) and b > place
    ]
    np.testing.assert_allclose(streams[7], model.streams(batch, [2])[0, 0, held].mean(0).detach(), rtol=1e-5)
    liking = 2 * fitted.read_out(streams, 2)[:, fitted.concept_index("planted")].double().numpy()
    found = Preferences(listed, liking[:, None] - liking + 0.3)
    table = probe_correlation(model, fitted, found, 2, controls=4).set_index("concept")
    assert table.r["planted"] > 0.98 and table.q["planted"] < 0.01 and table.p_any["planted"] < 0.01
    assert table.within["planted"] > 0.95 and table.low["planted"] > 0.8
    assert table.between["planted"] > 0.98
    assert (table.q >= table.p - 1e-12).all() and (table.p_any >= table.p - 1e-12).all()
    assert table.random_low.iloc[0] < 0.5


def alike_within_categories(order, categories, columns: int = 4):
    """Read-outs (n, columns) and scores (n,) that share nothing but how alike they are within each category."""
    every, member = np.unique(categories, return_inverse=True)
    made = order.normal(size=(len(every), columns + 1))[member]
    made += 0.3 * order.normal(size=made.shape)
    return made[:, :-1], made[:, -1]


def test_categories_that_are_alike_within_are_no_relation() -> None:
    order, categories = np.random.default_rng(0), np.repeat(list("abcdef"), [6, 5, 4, 6, 3, 6])
    found = [_over_categories(*alike_within_categories(order, categories), categories, 0) for _ in range(200)]
    p, p_any = np.stack([p for _, p, _ in found]), np.stack([p_any.min() for *_, p_any in found])
    assert (p < 0.05).mean() <= 0.08 and (p_any < 0.05).mean() <= 0.08
    assert 0.4 < np.median(p) < 0.6


def test_a_relation_across_categories_is_found_in_all_orders_or_drawn_ones() -> None:
    order = np.random.default_rng(1)
    for count, least in ((6, 1 / 720), (10, 1 / 2001)):
        categories = np.repeat(np.arange(count), 4).astype(str)
        read, scores = alike_within_categories(order, categories)
        read[:, 2] = scores + 0.2 * order.normal(size=len(scores))
        between, p, p_any = _over_categories(read, -scores, categories, 3)
        means = [
            [column[categories == c].mean() for c in np.unique(categories)] for column in (read[:, 2], scores)
        ]
        assert between[2] == pytest.approx(-np.corrcoef(means)[0, 1]) and between[2] < -0.95
        assert least - 1e-12 <= p[2] <= p_any[2] <= 0.01 < p[[0, 1, 3]].min()
    by_hand = [
        abs(np.corrcoef(means[0][:4], np.array(means[1][:4])[list(o)])[0, 1]) for o in orders(range(4))
    ]
    few = np.isin(categories, np.unique(categories)[:4])
    _, p, _ = _over_categories(read[few], scores[few], categories[few], 0)
    assert p[2] == pytest.approx(np.mean(np.array(by_hand) >= by_hand[0] - 1e-12))


def test_few_categories_have_no_p_value() -> None:
    categories = np.repeat(list("abc"), 6)
    read, scores = alike_within_categories(np.random.default_rng(2), categories)
    between, p, p_any = _over_categories(read, scores, categories, 0)
    assert np.isfinite(between).all() and np.isnan(p).all() and np.isnan(p_any).all()


def test_shifts_are_set_against_correlations_over_concepts() -> None:
    untouched, _ = planted(n=16, noise=0.1)
    steered = half_of(untouched.activities.category, 0)
    side = steered[:, None].astype(float) - steered[None]
    shifts = np.array([-0.8, -0.2, 0.1, 0.5, 0.9])
    found = np.stack([untouched.log_odds + shift * side for shift in shifts])
    names = tuple("abcde")
    shift = PreferenceShift(names, ("steered",) * 5, untouched, steered, found, 0.5)
    correlations = pd.DataFrame({"concept": [*names[::-1], "f"], "r": [*shifts[::-1] / 2, 0.0]})
    r, low, _ = shift.coupling(correlations)
    assert r == pytest.approx(1) and low > 0.9
    assert not shift.frame.moved.any()  # nothing random stands beside them
    with pytest.raises(InputError, match="at least three"):
        shift.coupling(correlations.head(2))


def test_what_cannot_be_asked_is_refused() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(InputError, match="three or more different"):
        preferences(model, ["sing", "sing", "laugh"], progress=False)
    with pytest.raises(InputError, match="no column category"):
        preferences(model, pd.DataFrame({"activity": FEW}), progress=False)
    untouched = Preferences(activities(1), planted(n=8)[0].log_odds)
    with pytest.raises(InputError, match="at least one"):
        steer_preferences(model, {}, untouched, progress=False)
    assert len(activities()) == 48 and activities().activity.is_unique
