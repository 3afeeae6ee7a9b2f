"""How directions lie: what fitting brings about by itself is told from what is in the features."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from emoprobe.corpora import Corpus
from emoprobe.study.geometry import agreement, by_fitting_alone, fitted, over_concepts, verdict

NAMES = tuple("abcdef")


def p_value(estimator: str, seed: int, noise: bool) -> float:
    """Return the p of directions of six correlated dimensions, in features of noise or of what the dimensions stem from."""
    generator = np.random.default_rng(seed)
    latent = generator.normal(size=(240, 3))
    values = np.tanh(0.5 * latent @ generator.normal(size=(3, 6)))
    columns: dict[str, Any] = {
        "text": [f"text {n}" for n in range(240)],
        "group": [f"{n}" for n in range(240)],
    }
    corpus = Corpus.from_columns(
        columns | dict(zip(NAMES, values.T.tolist(), strict=True)),
        dimensions=dict.fromkeys(NAMES, (-1.0, 1.0)),
    )
    features = (
        generator.normal(size=(240, 20))
        if noise
        else latent @ np.linalg.qr(generator.normal(size=(20, 3)))[0].T
    )
    annotated = pd.DataFrame(values).corr().to_numpy()
    how: Any = SimpleNamespace(concepts=NAMES, metadata={"folds": 5, "estimators": {"dimension": estimator}})
    rho = agreement(fitted(how, corpus, features), annotated)
    chance = by_fitting_alone(how, corpus, features, annotated, 19, seed)
    assert len(set(chance)) > 9 and (rho > 0.3 or not noise)  # noise agrees well, which is the trap
    return float((1 + (chance >= rho).sum()) / 20)


@pytest.mark.parametrize("estimator", ["ridge", "mean_difference"])
def test_directions_fitted_to_noise_show_nothing(estimator: str) -> None:
    values = [p_value(estimator, seed, noise=True) for seed in range(8)]
    assert sum(p <= 0.05 for p in values) <= 2 and np.mean(values) > 0.2


def test_a_geometry_that_is_in_the_features_is_found() -> None:
    values = [p_value("mean_difference", seed, noise=False) for seed in range(8)]
    assert sum(p <= 0.05 for p in values) >= 6


def test_the_verdict_follows_the_control() -> None:
    chance = np.linspace(0.3, 0.6, 39)
    assert "more than fitting brings about (p = 0.025)" in verdict(0.7, chance)
    assert "nothing is shown" in verdict(0.5, chance) and "nothing is shown" in verdict(-0.9, chance)
    assert "too few pairs" in verdict(float("nan"), chance)


def test_agreement_leaves_out_what_is_not_known() -> None:
    generator = np.random.default_rng(0)
    matrix = np.corrcoef(generator.normal(size=(6, 20)))
    assert agreement(matrix, matrix) == pytest.approx(1) and agreement(matrix, -matrix) == pytest.approx(-1)
    holed = matrix.copy()
    holed[2] = holed[:, 2] = np.nan
    rest = np.delete(np.delete(matrix, 2, 0), 2, 1)
    assert agreement(holed, matrix) == pytest.approx(agreement(rest, rest))
    assert np.isnan(agreement(matrix[:2, :2], matrix[:2, :2]))


def test_the_interval_of_an_agreement_stays_below_1_and_leaves_out_each_concept() -> None:
    generator = np.random.default_rng(0)
    matrix = np.corrcoef(generator.normal(size=(6, 20)))
    near = np.corrcoef(np.linalg.cholesky(matrix) @ generator.normal(size=(6, 60)))
    low, high = over_concepts(near, matrix)
    assert -1 <= low < agreement(near, matrix) < high < 1
    rest = [np.ix_(np.arange(6) != k, np.arange(6) != k) for k in range(6)]
    z = [np.arctanh(agreement(near[kept], matrix[kept])) for kept in rest]
    error = np.sqrt(5 / 6 * np.sum((np.array(z) - np.mean(z)) ** 2))
    assert high == pytest.approx(np.tanh(np.arctanh(agreement(near, matrix)) + 2.5706 * error), abs=1e-4)
    assert np.isnan(over_concepts(near[:3, :3], matrix[:3, :3])).all()
