"""Each estimator against the equations that define it, in float64."""

import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.model_selection import GroupKFold

from emoprobe.probes.estimators import (
    PENALTIES,
    PRIOR_VARIANCE,
    LinearReadOut,
    _moments_by_fold,
    _penalties,
    class_differences,
    fit_for,
)

Array = np.ndarray[Any, Any]
ALL = [
    ("mean_difference", "dimension"),
    ("ridge", "dimension"),
    ("mean_difference", "label"),
    ("ridge", "label"),
    ("logistic", "label"),
]


@pytest.fixture(autouse=True)
def no_warning() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a fit that does not converge says so in a warning
        yield


def data(texts: int = 60, width: int = 5, classes: int = 3, seed: int = 0) -> tuple[Array, Array, Array]:
    """Return features of unequal scale far from 0, two annotations, and labels that exclude each other."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(texts, width)) * np.logspace(-2, 2, width) + 10
    scaled = (features - 10) / np.logspace(-2, 2, width)
    values = scaled[:, :2] @ generator.normal(size=(2, 2)) + 0.5 * generator.normal(size=(texts, 2)) + 3
    noisy = scaled[:, :classes] + generator.gumbel(size=(texts, classes))
    return features, values, np.eye(classes)[noisy.argmax(1)]


def fitted(
    estimator: str, kind: str, features: Array, targets: Array, exclusive: bool = True
) -> LinearReadOut:
    """Fit texts that are each a group of their own."""
    return fit_for(estimator, kind, exclusive)(features, targets, np.arange(len(features)))


def standardised(features: Array) -> Array:
    return (features - features.mean(0)) / features.std(0)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def softmax(x: Array) -> Array:
    weights = np.exp(x - x.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def cosine(a: Array, b: Array) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_mean_difference_is_the_class_mean_minus_the_mean_of_class_means() -> None:
    features, _, carried = data()
    carried = carried[np.argsort(-carried[:, 0])][
        : len(carried) - 5
    ]  # unbalanced: the overall mean is another point
    features = features[: len(carried)]
    means = np.stack([features[carried[:, k] == 1].mean(0) for k in range(3)])
    expected = means - means.mean(0)
    assert np.allclose(class_differences(features, carried), expected)
    overall = means - features.mean(0)
    assert not np.allclose(class_differences(features, carried), overall, rtol=1e-3)
    read_out = fitted("mean_difference", "label", features, carried)
    for weight, difference in zip(read_out.weights, expected, strict=True):
        assert cosine(weight, difference) == pytest.approx(1)


def test_labels_may_overlap_and_one_alone_is_set_against_the_rest() -> None:
    features, _, carried = data()
    overlapping = carried.copy()
    overlapping[:10] = 1
    means = np.stack([features[overlapping[:, k] == 1].mean(0) for k in range(3)])
    assert np.allclose(class_differences(features, overlapping), means - means.mean(0))
    alone = carried[:, :1]
    difference = class_differences(features, alone)[0]
    assert cosine(
        difference, features[alone[:, 0] == 1].mean(0) - features[alone[:, 0] == 0].mean(0)
    ) == pytest.approx(1)


def test_the_logit_along_a_direction_is_a_logistic_regression_on_one_coordinate() -> None:
    features, _, carried = data()
    read_out = fitted("mean_difference", "label", features, carried)
    for k, direction in enumerate(class_differences(features, carried)):
        along = features @ direction
        scaled = (along - along.mean()) / along.std()
        wrong = sigmoid(read_out(features)[:, k]) - carried[:, k]
        slope = np.linalg.norm(read_out.weights[k]) / np.linalg.norm(direction) * along.std()
        assert wrong.sum() == pytest.approx(0, abs=1e-2)  # the offset's equation
        assert scaled @ wrong + slope / PRIOR_VARIANCE == pytest.approx(0, abs=1e-2)  # the slope's


def test_covariance_direction_and_its_least_squares_line() -> None:
    features, values, _ = data()
    read_out = fitted("mean_difference", "dimension", features, values)
    centred = features - features.mean(0)
    for k in range(2):
        expected = centred.T @ (values[:, k] - values[:, k].mean())
        assert cosine(read_out.weights[k], expected) == pytest.approx(1)
        residual = values[:, k] - read_out(features)[:, k]
        assert residual.sum() == pytest.approx(0, abs=1e-8)
        assert residual @ (centred @ expected) == pytest.approx(
            0, abs=1e-4 * np.linalg.norm(centred @ expected)
        )
        line = LinearRegression().fit((centred @ expected)[:, None], values[:, k])
        assert np.allclose(line.predict((centred @ expected)[:, None]), read_out(features)[:, k])


@pytest.mark.parametrize("noise", [0.3, 3.0, 100.0])
@pytest.mark.parametrize("texts", [40, 12])
def test_ridge_takes_the_heaviest_penalty_that_explains_nearly_as_much_as_the_best(
    noise: float, texts: int
) -> None:
    """The long way round: scikit-learn's ridge at each penalty in each inner fold of groups; with 12 texts it is wide."""
    width = 5 if texts == 40 else 20
    features, values, _ = data(texts=texts, width=width)
    values = values[:, :1] + noise * np.random.default_rng(5).normal(size=(texts, 1))
    group = np.arange(texts) // 2
    scaled = standardised(features)
    explained = []
    for penalty in PENALTIES:
        gain = 0.0
        for train, test in GroupKFold(5).split(scaled, groups=group):
            predicted = Ridge(penalty).fit(scaled[train], values[train, 0]).predict(scaled[test])
            base = values[train, 0].mean()
            gain += ((values[test, 0] - base) ** 2).sum() - ((values[test, 0] - predicted) ** 2).sum()
        explained.append(gain)
    best = max(explained)
    fine = [p for p, gain in zip(PENALTIES, explained, strict=True) if best > 0 and gain >= 0.99 * best]
    expected = Ridge(max(fine, default=PENALTIES[-1])).fit(scaled, values[:, 0])
    read_out = fit_for("ridge", "dimension")(features, values, group)
    assert np.allclose(read_out(features)[:, 0], expected.predict(scaled))
    assert np.allclose(read_out.weights[0] * features.std(0), expected.coef_, atol=1e-8)
    near, far = (_moments_by_fold(*given, group) for given in ((scaled, values), (scaled + 50, values - 7)))
    assert np.array_equal(_penalties(near), _penalties(far))
    if noise == 0.3 and texts == 40:
        assert 1 < len(fine) < len(PENALTIES)  # there was something to choose


def test_a_penalty_that_holds_in_other_groups_is_preferred() -> None:
    """Each group has its own way of speaking, which tells the value there and misleads elsewhere."""
    generator = np.random.default_rng(0)
    group = np.repeat(np.arange(20), 10)
    level = generator.normal(size=(20, 1))[group]
    values = level + 0.3 * generator.normal(size=(200, 1))
    features = np.hstack([np.eye(20)[group], values + generator.normal(size=(200, 1))])
    fit = fit_for("ridge", "dimension")
    across, within = fit(features, values, group), fit(features, values, np.arange(200))

    def own(weights: Array) -> float:
        scaled = weights[0] * features.std(0)
        return float(np.linalg.norm(scaled[:-1]) / abs(scaled[-1]))

    assert own(across.weights) < own(within.weights) / 1.5


def test_columns_of_a_ridge_do_not_influence_each_other() -> None:
    features, values, _ = data()
    both = np.hstack([values, 100 * values[::-1]])
    together, alone = (fitted("ridge", "dimension", features, part) for part in (both, values[:, [1]]))
    assert np.allclose(together.weights[1], alone.weights[0])
    assert np.allclose(together.offsets[1], alone.offsets[0])


def test_multinomial_logistic_satisfies_its_equations_and_is_centred() -> None:
    features, _, carried = data(texts=200)
    read_out = fitted("logistic", "label", features, carried)
    wrong = softmax(read_out(features)) - carried
    scaled = standardised(features)
    weights = read_out.weights * features.std(0)
    gradient = wrong.T @ scaled + weights / (PRIOR_VARIANCE / 5)
    assert np.abs(gradient).max() < 0.02 * np.abs(carried.T @ scaled).max()
    assert np.abs(wrong.sum(0)).max() < 0.05
    assert np.allclose(read_out(features).sum(1), 0, atol=1e-8)
    assert (read_out(features).argmax(1) == carried.argmax(1)).mean() > carried.mean(0).max() + 0.1


@pytest.mark.parametrize(("texts", "width"), [(300, 5), (40, 90)])
def test_multinomial_logistic_is_that_of_scikit_learn(texts: int, width: int) -> None:
    features, _, carried = data(texts=texts, width=width)
    read_out = fitted("logistic", "label", features, carried)
    model = LogisticRegression(C=PRIOR_VARIANCE / width, tol=1e-9, max_iter=10_000)
    model.fit(standardised(features), carried.argmax(1))
    wanted = model.decision_function(standardised(features))
    centred = wanted - wanted.mean(1, keepdims=True)
    assert np.abs(read_out(features) - centred).max() < 1e-2 * np.abs(centred).max()


def test_two_exclusive_labels_are_each_others_opposite() -> None:
    features, _, carried = data(classes=2)
    read_out = fitted("logistic", "label", features, carried)
    assert np.array_equal(read_out.weights[0], -read_out.weights[1])
    two, one = read_out(features), fitted("logistic", "label", features, carried, exclusive=False)(features)
    # One penalised weight vector either way; the two solvers stop as near to the least objective as they are asked to.
    assert np.allclose(softmax(two)[:, 1], sigmoid(one[:, 1]), atol=2e-3)


def test_a_label_that_the_training_texts_lack_is_never_preferred() -> None:
    features, _, carried = data()
    with_missing = np.insert(carried, 1, 0.0, axis=1)
    for estimator in ("logistic", "mean_difference", "ridge"):
        read_out = fitted(estimator, "label", features, with_missing)
        assert np.isfinite(read_out.weights).all() and np.isfinite(read_out.offsets).all()
        assert not (read_out(features).argmax(1) == 1).any()
    two = np.insert(data(classes=2)[2], 0, 0.0, axis=1)
    assert not (fitted("logistic", "label", features, two)(features).argmax(1) == 0).any()


def test_one_vs_rest_satisfies_its_equations_and_survives_constant_columns() -> None:
    features, _, carried = data(texts=200)
    carried = np.hstack([carried, np.ones((200, 1)), np.zeros((200, 1))])
    read_out = fitted("logistic", "label", features, carried, exclusive=False)
    scaled = standardised(features)
    weights = read_out.weights * features.std(0)
    wrong = sigmoid(read_out(features)) - carried
    gradient = (wrong.T @ scaled + weights / (PRIOR_VARIANCE / 5))[:3]
    assert np.abs(gradient).max() < 0.02 * np.abs(carried.T @ scaled).max()
    assert not read_out.weights[3:].any() and read_out.offsets[3] > 5 and read_out.offsets[4] < -5


@pytest.mark.parametrize(("estimator", "kind"), [pair for pair in ALL if pair[0] != "mean_difference"])
def test_units_of_features_do_not_matter_where_they_are_standardised(estimator: str, kind: str) -> None:
    features, values, carried = data(texts=150)
    targets = values if kind == "dimension" else carried
    rescaled = features * np.array([1e-3, 1e3, 1.0, 7.0, 0.1]) - 50
    before, after = (fitted(estimator, kind, part, targets)(part) for part in (features, rescaled))
    assert np.allclose(before, after, atol=2e-2)


@pytest.mark.parametrize(("estimator", "kind"), ALL)
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_planted_directions_are_found(estimator: str, kind: str, scale: float) -> None:
    generator = np.random.default_rng(3)
    width, texts = 64, 3000
    planted = np.linalg.qr(generator.normal(size=(width, 3)))[0].T
    labels = generator.integers(3, size=texts)
    level = generator.normal(size=(texts, 3))
    noise = generator.normal(size=(texts, width))
    if kind == "dimension":
        features, targets = 2 * level @ planted + noise, level
        expected = planted
    else:
        features, targets = 3 * planted[labels] + noise, np.eye(3)[labels]
        expected = planted - planted.mean(0)
    read_out = fitted(estimator, kind, scale * features, targets)
    for weight, direction in zip(read_out.weights, expected, strict=True):
        assert cosine(weight, direction) > 0.95
    shuffled = fitted(estimator, kind, scale * features, generator.permutation(targets))
    assert max(abs(cosine(w, d)) for w, d in zip(shuffled.weights, expected, strict=True)) < 0.7


@pytest.mark.parametrize(("estimator", "kind"), ALL)
def test_features_that_never_vary_say_nothing(estimator: str, kind: str) -> None:
    _, values, carried = data()
    targets = values if kind == "dimension" else carried
    read_out = fitted(estimator, kind, np.full((60, 5), 3.0), targets)
    assert np.allclose(read_out.weights, 0, atol=1e-6) and np.isfinite(read_out.offsets).all()
