"""From choices between two at a time to a score for each: Bradley–Terry by maximum likelihood, and Elo.

Outcomes are a matrix (…, n, n): the chance that the one shown first (row) is chosen over the one shown second (column), from 0
to 1, ½ for a tie; the diagonal does not count. Nothing here knows who chose, or between what.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Floats = NDArray[np.float64]
PRIOR = 0.01
"""Precision of a normal prior on scores, which keeps them finite where one is always chosen; its spread is 10 nats."""
ELO_PER_NAT = 400 / math.log(10)
MEAN_ELO = 1500.0


def bradley_terry(outcomes: Floats, weights: Floats | None = None) -> tuple[Floats, Floats]:
    """Return scores (…, n) in nats, with the mean 0, and the advantage (…) of being shown first, in nats.

    The log-odds of the first are score(first) − score(second) + advantage (Bradley and Terry 1952, with the order effect of
    Davidson and Beaver 1977). Outcomes between 0 and 1 count in part for either side, so that a tie is half of each; `weights`
    (…, n, n) say how much each pair counts. Newton's method on the penalised likelihood, which is concave.
    """
    n = outcomes.shape[-1]
    off = ~np.eye(n, dtype=bool)
    counts = np.broadcast_to(
        off * (1.0 if weights is None else weights), outcomes.shape if weights is None else weights.shape
    )
    won = np.where(off, outcomes, 0.5)
    parameters = np.zeros((*counts.shape[:-2], n + 1))
    for _ in range(100):
        step = _newton_step(parameters, won, counts)
        # Far from the optimum a full step may overshoot where outcomes are all but certain.
        parameters = parameters + step * np.minimum(
            1, 4 / np.maximum(np.abs(step).max(-1, keepdims=True), 1e-300)
        )
        if np.abs(step).max() < 1e-10:
            break
    scores = parameters[..., :n]
    return scores - scores.mean(-1, keepdims=True), parameters[..., n]


def _newton_step(parameters: Floats, won: Floats, counts: Floats) -> Floats:
    n = won.shape[-1]
    scores, first = parameters[..., :n], parameters[..., n:]
    chance = expit(scores[..., :, None] - scores[..., None, :] + first[..., None])
    missing, slack = counts * (won - chance), counts * chance * (1 - chance)
    slope = np.concatenate(
        [missing.sum(-1) - missing.sum(-2) - PRIOR * scores, missing.sum((-1, -2))[..., None]], axis=-1
    )
    curve = np.zeros((*counts.shape[:-2], n + 1, n + 1))
    curve[..., :n, :n] = -slack - np.swapaxes(slack, -1, -2)
    rows = np.arange(n)
    curve[..., rows, rows] += slack.sum(-1) + slack.sum(-2) + PRIOR
    curve[..., :n, n] = curve[..., n, :n] = slack.sum(-1) - slack.sum(-2)
    curve[..., n, n] = (
        slack.sum((-1, -2)) + 1e-9
    )  # where everything is certain, the advantage stays where it is
    step: Floats = np.linalg.solve(curve, slope[..., None])[..., 0]
    return step


def elo(outcomes: Floats, *, k: float = 16.0, passes: int = 4, orders: int = 20, seed: int = 0) -> Floats:
    """Return Elo ratings (n,) with the mean 1500, from outcomes (n, n), played one after another.

    After each comparison the winner takes k · (outcome − expectation) points from the loser, the expectation being
    1 / (1 + 10^(−difference/400)) (Elo 1978). Ratings depend on the order of play, so that they are means over `orders` random
    ones, each played `passes` times. The order in which options are shown is not in the model: give both orders of each pair.
    """
    n = len(outcomes)
    pairs = np.argwhere(~np.eye(n, dtype=bool))
    generator = np.random.default_rng(seed)
    ratings = np.full((orders, n), MEAN_ELO)
    rows = np.arange(orders)
    for _ in range(passes):
        played = np.stack([generator.permutation(len(pairs)) for _ in range(orders)], axis=1)
        for step in played:
            first, second = pairs[step].T
            expected = expit((ratings[rows, first] - ratings[rows, second]) / ELO_PER_NAT)
            taken = k * (outcomes[first, second] - expected)
            ratings[rows, first] += taken
            ratings[rows, second] -= taken
    mean: Floats = ratings.mean(0)
    return mean
