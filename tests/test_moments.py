"""Moments and what follows from them, against scikit-learn on the stored activations and against the long way round."""

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import GroupKFold
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from small_probes import planted
from tiny import tiny_model

from emoprobe.errors import InputError
from emoprobe.probes import logistic as logistic_module
from emoprobe.probes.closed_form import (
    explained_by_folds,
    generalised_cross_validation,
    grouped_k_fold,
    linear_discriminants,
    mean_difference,
    principal_components,
    ridge,
    ridge_path,
    without_components,
)
from emoprobe.probes.logistic import axes_of, logistic
from emoprobe.probes.moments import BLOCK, ROWS, Moments, load_moments
from emoprobe.probes.sklearn_estimators import MeanDifference, MomentLDA, MomentRidge, NewtonLogistic
from emoprobe.probes.tasks import plan
from emoprobe.probes.text_moments import corpus_moments, text_moments

LAYERS, WIDTH, FOLDS, CLASSES, TARGETS = 2, BLOCK + 21, 4, 3, 2  # two strips, the second one narrower
TEXTS = ROWS + 187  # more than are added at once
PENALTIES = [0.01, 1.0, 300.0, 1e5]


class Data:
    """Correlated features far from the origin with classes, folds and targets that depend on them."""

    def __init__(self, texts: int = TEXTS, width: int = WIDTH) -> None:
        generator = np.random.default_rng(0)
        mixing = generator.normal(size=(LAYERS, width, width)) * np.logspace(0, -2, width)[:, None]
        self.x = np.einsum("nlk,lkd->nld", generator.normal(size=(texts, LAYERS, width)), mixing) + 30.0
        self.fold = generator.choice(FOLDS, texts, p=[0.4, 0.3, 0.2, 0.1])
        along = self.x[:, 0] @ generator.normal(size=(width, TARGETS))
        self.y = along / along.std(0) + generator.normal(size=(texts, TARGETS)) + 7.0
        self.label = np.digitize(self.y[:, 0], np.quantile(self.y[:, 0], [0.3, 0.8]))

    def moments(self, rows: Any = slice(None), *, classes: bool = True, targets: bool = True) -> Moments:
        """Return the moments of some rows, added at once."""
        gathered = Moments.zeros(
            LAYERS,
            self.x.shape[2],
            n_folds=FOLDS,
            n_classes=CLASSES if classes else 1,
            n_targets=TARGETS if targets else 0,
        )
        gathered.add(
            torch.from_numpy(self.x[rows]),
            fold=torch.from_numpy(self.fold[rows]),
            classes=torch.from_numpy(self.label[rows]) if classes else None,
            targets=torch.from_numpy(self.y[rows]) if targets else None,
        )
        return gathered


@pytest.fixture(scope="module")
def data() -> Data:
    return Data()


def same(left: Any, right: Any, tolerance: float) -> bool:
    """Say whether two arrays differ by no more than `tolerance` of the largest entry."""
    left, right = np.asarray(left), np.asarray(right)
    return left.shape == right.shape and bool(np.abs(left - right).max() <= tolerance * np.abs(right).max())


# Adding up -----------------------------------------------------------------------------------------------------------


def test_moments_are_those_of_numpy(data: Data) -> None:
    pooled = data.moments().pooled([1, 2])
    rows = np.isin(data.fold, [1, 2])
    joint = np.concatenate([data.x, np.broadcast_to(data.y[:, None], (TEXTS, LAYERS, TARGETS))], 2)
    assert pooled.count.tolist() == np.bincount(data.label[rows], minlength=CLASSES).tolist()
    for layer in range(LAYERS):
        within = 0
        for number in range(CLASSES):
            mine = joint[rows & (data.label == number), layer]
            assert same(pooled.mean[layer, number], mine.mean(0), 1e-13)
            within = within + (len(mine) - 1) * np.cov(mine.T)
        total = (rows.sum() - 1) * np.cov(joint[rows, layer].T)
        assert same(pooled.within[layer], within[:WIDTH], 1e-12)
        assert same(pooled.squares[layer], np.diag(within)[WIDTH:], 1e-12)
        assert same(pooled.total[layer], total[:WIDTH], 1e-12)
        assert same(pooled.total_squares[layer], np.diag(total)[WIDTH:], 1e-12)


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_merging_in_any_order_equals_one_pass(data: Data, order: tuple[int, ...]) -> None:
    parts = [slice(0, 3), slice(3, 50), slice(50, 51), slice(51, None)]  # some lack classes and folds
    first, second, third, fourth = (data.moments(parts[part]) for part in order)
    for merged in (first + second + third + fourth, (first + second) + (third + fourth)):
        for name in ("count", "mean", "scatter"):
            assert same(getattr(merged, name), getattr(data.moments(), name), 1e-10)


def test_adding_text_by_text_equals_one_pass(data: Data) -> None:
    one_by_one = data.moments(slice(0, 0))
    for row in range(60):
        one_by_one += data.moments(slice(row, row + 1))
    assert same(one_by_one.scatter, data.moments(slice(0, 60)).scatter, 1e-10)
    assert same(one_by_one.mean, data.moments(slice(0, 60)).mean, 1e-10)


def test_digits_survive_far_from_the_origin() -> None:
    """Sums of squares about the origin would be off by more than they are: 1e16 · ε is larger than the variance."""
    near = torch.from_numpy(np.random.default_rng(0).normal(size=(2000, 1, 5)))
    far = Moments.zeros(1, 5)
    for part in (near + 1e8).split(100):
        far.add(part)
    exact = Moments.zeros(1, 5)
    exact.add((near + 1e8) - 1e8)  # what is left of the digits once the offset was added
    assert same(far.scatter, exact.scatter, 1e-6)


def test_saved_moments_are_read_back_to_the_bit(data: Data, tmp_path: Any) -> None:
    moments = data.moments()
    read = load_moments(moments.save(tmp_path / "moments.safetensors"))
    for name in ("count", "mean", "scatter", "n_targets"):
        assert np.array_equal(getattr(read, name), getattr(moments, name))
    assert same((read + read).pooled().total, 2 * moments.pooled().total, 1e-12)


def test_what_does_not_fit_is_refused(data: Data) -> None:
    moments, vectors = data.moments(), torch.from_numpy(data.x[:5])
    targets = torch.from_numpy(data.y[:5])
    before = moments.clone()
    for given, complaint in [
        ({"vectors": vectors[:, :1], "targets": targets}, "vectors of shape"),
        ({"vectors": vectors, "targets": None}, "targets of shape"),
        ({"vectors": vectors.log() * torch.nan, "targets": targets}, "infinite or NaN"),
        ({"vectors": vectors, "targets": targets * torch.nan}, "infinite or NaN"),
        ({"vectors": vectors, "targets": targets, "fold": torch.full((5,), FOLDS)}, "fold from 0 to 3"),
        ({"vectors": vectors, "targets": targets, "classes": torch.full((5,), -1)}, "class from 0 to 2"),
    ]:
        with pytest.raises(InputError, match=complaint):
            moments.add(**given)  # type: ignore[arg-type]
    assert torch.equal(moments.count, before.count) and torch.equal(moments.scatter, before.scatter)
    with pytest.raises(InputError, match="do not add up"):
        moments += data.moments(targets=False)
    with pytest.raises(InputError, match="positive"):
        ridge_path(moments, [1.0, 0.0])
    with pytest.raises(InputError, match="at least 2"):
        grouped_k_fold(data.moments(data.fold == 1), [1.0])
    with pytest.raises(InputError, match="shrinkage"):
        linear_discriminants(moments, 1.5)
    with pytest.raises(InputError, match="share"):
        without_components(mean_difference(moments), principal_components(moments), -0.1)


# Against scikit-learn ------------------------------------------------------------------------------------------------


def test_mean_difference_is_that_of_class_centroids(data: Data) -> None:
    found = mean_difference(data.moments())
    for layer in range(LAYERS):
        means = NearestCentroid().fit(data.x[:, layer], data.label).centroids_
        assert same(found[layer], means - means.mean(0), 1e-10)


@pytest.mark.parametrize(
    ("texts", "shrinkage"), [(TEXTS, 0.0), (TEXTS, 0.3), (TEXTS, 1.0), (90, 0.3), (90, 1.0)]
)
def test_discriminants_equal_scikit_learn(data: Data, texts: int, shrinkage: float) -> None:
    rows = slice(0, texts)
    found = linear_discriminants(data.moments(rows), shrinkage)
    for layer in range(LAYERS):
        model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)
        model.fit(data.x[rows, layer], data.label[rows])
        mine = data.x[:, layer] @ found.weights[layer].numpy().T + found.offsets[layer].numpy()
        wanted = model.decision_function(data.x[:, layer])
        # Logits count up to what all classes share.
        centred = [part - part.mean(1, keepdims=True) for part in (mine, wanted)]
        assert same(*centred, 1e-6)
        weights = [part - part.mean(0) for part in (found.weights[layer].numpy(), model.coef_)]
        assert same(*weights, 1e-6)


@pytest.mark.parametrize("rows", [slice(None), slice(0, 90)], ids=["all", "fewer texts than features"])
@pytest.mark.parametrize("classes", [True, False], ids=["with classes", "without"])
def test_ridge_path_equals_scikit_learn(data: Data, rows: slice, classes: bool) -> None:
    found = ridge_path(data.moments(rows, classes=classes), PENALTIES)
    for place, penalty in enumerate(PENALTIES):
        for layer in range(LAYERS):
            model = Ridge(penalty, solver="svd").fit(data.x[rows, layer], data.y[rows])
            assert same(found.weights[place, layer], model.coef_, 1e-6)
            assert same(found.offsets[place, layer], model.intercept_, 1e-6)


def test_standardised_ridge_equals_scikit_learn(data: Data) -> None:
    found = ridge_path(data.moments(), PENALTIES, standardise=True)
    plain = ridge_path(data.moments(), PENALTIES)
    assert not same(found.weights, plain.weights, 0.01)
    for place, penalty in enumerate(PENALTIES):
        model = make_pipeline(StandardScaler(), Ridge(penalty, solver="svd")).fit(data.x[:, 1], data.y)
        mine = data.x[:, 1] @ found.weights[place, 1].numpy().T + found.offsets[place, 1].numpy()
        assert same(mine, model.predict(data.x[:, 1]), 1e-6)


def test_standardised_ridge_leaves_a_feature_that_never_varies_alone() -> None:
    order = np.random.default_rng(0)
    x = np.column_stack([order.normal(size=(5000, 3)), np.full(5000, 0.1)])
    y = x[:, :1] + order.normal(size=(5000, 1))
    moments = Moments.zeros(1, 4, n_targets=1)
    for first in range(0, 5000, 500):  # merging leaves the constant feature a variance of rounding errors
        rows = slice(first, first + 500)
        moments.add(torch.from_numpy(x[rows, None]), targets=torch.from_numpy(y[rows]))
    found = ridge_path(moments, [1.0], standardise=True)
    model = Ridge(1.0, solver="svd").fit(StandardScaler().fit_transform(x), y[:, 0])
    assert model.coef_[3] == 0 and abs(found.weights[0, 0, 0, 3]) < 1e-6
    assert same(found.weights[0, 0, 0, :3], model.coef_[:3] / x[:, :3].std(0), 1e-9)


@pytest.mark.parametrize("standardise", [False, True])
def test_each_layer_may_have_a_penalty_of_its_own(data: Data, standardise: bool) -> None:
    path = ridge_path(data.moments(), PENALTIES, standardise=standardise)
    found = ridge(data.moments(), [PENALTIES[2], PENALTIES[0]], standardise=standardise)
    for layer, place in enumerate([2, 0]):
        assert same(found.weights[layer], path.weights[place, layer], 1e-9)
        assert same(found.offsets[layer], path.offsets[place, layer], 1e-9)
    places = torch.tensor([[2, 0], [1, 1]])  # and each target
    found = ridge(
        data.moments(), torch.tensor(PENALTIES, dtype=torch.float64)[places], standardise=standardise
    )
    for layer, target in np.ndindex(LAYERS, TARGETS):
        place = places[layer, target]
        assert same(found.weights[layer, target], path.weights[place, layer, target], 1e-9)
        assert same(found.offsets[layer, target], path.offsets[place, layer, target], 1e-9)
    with pytest.raises(InputError, match="one for each"):
        ridge(data.moments(), [1.0])
    with pytest.raises(InputError, match="rounding"):
        ridge(data.moments(slice(0, 90)), [1e-30, 1e-30])


def test_ridge_without_targets_is_that_of_the_classes(data: Data) -> None:
    found = ridge_path(data.moments(targets=False), [30.0])
    model = Ridge(30.0, solver="svd").fit(data.x[:, 1], np.eye(CLASSES)[data.label])
    assert same(found.weights[0, 1], model.coef_, 1e-6)
    assert same(found.offsets[0, 1], model.intercept_, 1e-6)


@pytest.mark.parametrize("targets", [True, False], ids=["targets", "classes"])
@pytest.mark.parametrize("standardise", [False, True])
def test_grouped_folds_equal_the_long_way(data: Data, targets: bool, standardise: bool) -> None:
    found = grouped_k_fold(data.moments(targets=targets), PENALTIES, standardise=standardise)
    y = data.y if targets else np.eye(CLASSES)[data.label]
    for fold in range(FOLDS):
        test = data.fold == fold
        for place, penalty in enumerate(PENALTIES):
            steps = [StandardScaler()] * standardise + [Ridge(penalty, solver="svd")]
            model = make_pipeline(*steps).fit(data.x[~test, 0], y[~test])
            predicted = model.predict(data.x[test, 0])
            assert same(
                found.r2[fold, place, 0], r2_score(y[test], predicted, multioutput="raw_values"), 1e-6
            )
            assert same(found.error[fold, place, 0], ((y[test] - predicted) ** 2).sum(0), 1e-6)
            assert same(found.baseline[fold, place, 0], ((y[test] - y[~test].mean(0)) ** 2).sum(0), 1e-9)
            pairs = zip(predicted.T, y[test].T, strict=True)
            assert same(found.pearson_r[fold, place, 0], [np.corrcoef(*pair)[0, 1] for pair in pairs], 1e-6)


def test_what_folds_explain_is_what_scores_of_folds_say(data: Data) -> None:
    held_out = grouped_k_fold(data.moments(), PENALTIES)
    wanted = (held_out.baseline - held_out.error).sum(0)
    assert same(explained_by_folds(data.moments(), PENALTIES), wanted, 1e-8)


def test_one_eigendecomposition_finds_what_factors_at_each_penalty_find(data: Data) -> None:
    """Few penalties are solved for one by one, many together."""
    few, many = (ridge_path(data.moments(), penalties) for penalties in (PENALTIES[:2], PENALTIES * 20))
    assert same(few.weights, many.weights[:2], 1e-8) and same(few.offsets, many.offsets[:2], 1e-8)


def test_a_fold_that_lacks_a_class_has_no_score_for_it(data: Data) -> None:
    rows = (data.label != 2) | (data.fold != 3)
    found = grouped_k_fold(data.moments(rows, targets=False), [1.0])
    nan = found.r2[:, 0, 0].isnan()
    assert nan[3].tolist() == [False, False, True] and not nan[:3].any()


def test_generalised_cross_validation_equals_its_definition(data: Data) -> None:
    found = generalised_cross_validation(data.moments(), PENALTIES)
    centred = data.x[:, 1] - data.x[:, 1].mean(0)
    for place, penalty in enumerate(PENALTIES):
        hat = centred @ np.linalg.solve(centred.T @ centred + penalty * np.eye(WIDTH), centred.T) + 1 / TEXTS
        left = ((data.y - hat @ data.y) ** 2).sum(0)
        assert same(found[place, 1], TEXTS * left / (TEXTS - np.trace(hat)) ** 2, 1e-8)


def test_principal_components_equal_scikit_learn(data: Data) -> None:
    components = principal_components(data.moments())
    model = PCA().fit(data.x[:, 1])
    assert same(components.variances[1], model.explained_variance_, 1e-9)
    overlap = np.abs((components.vectors[1].numpy() * model.components_).sum(1))
    assert np.allclose(overlap[:40], 1, atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 1.0])
def test_components_up_to_a_share_are_projected_out(data: Data, share: float) -> None:
    components = principal_components(data.moments())
    vectors = torch.from_numpy(data.x[:6]).transpose(0, 1)  # (layers, 6, d_model)
    cleaned, removed = without_components(vectors, components, share)
    for layer in range(LAYERS):
        model = PCA().fit(data.x[:, layer])
        held = model.explained_variance_ratio_.cumsum()
        k = 0 if share == 0 else min(int((held < share).sum()) + 1, WIDTH)
        assert abs(int(removed[layer]) - k) <= (share == 1.0)  # the last one is rounding
        basis = model.components_[: int(removed[layer])]
        x = data.x[:6, layer]
        assert np.abs(cleaned[layer].numpy() - (x - x @ basis.T @ basis)).max() < 1e-6 * np.abs(x).max()


# Out of a model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 32])
def test_moments_of_a_corpus_are_those_of_captured_activations(batch_size: int) -> None:
    corpus, _ = planted()
    model, layers = tiny_model("gpt2"), [0, 2, 3]
    tasks = plan(corpus, folds=3)
    gathered = corpus_moments(model, corpus, tasks, layers, batch_size=batch_size)
    captured = model.capture(corpus.texts, layers, batch_size=7).double()
    assert {task.kind for task in tasks} == {"label", "dimension"}
    for task, moments in zip(tasks, gathered, strict=True):
        x, pooled = captured[task.rows], moments.pooled([0, 2])
        rows = np.isin(task.fold, [0, 2])
        total = torch.stack([(rows.sum() - 1) * x[rows][:, layer].T.cov() for layer in range(3)])
        assert same(pooled.total[..., : model.d_model], total, 1e-5)
        model_of = Ridge(10.0, solver="svd").fit(x[:, 1], task.targets)
        assert same(ridge_path(moments, [10.0]).weights[0, 1], np.atleast_2d(model_of.coef_), 1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pool", ["mean", "last", "tokens"])
def test_moments_do_not_depend_on_batches_order_or_padding(pool: str, side: str) -> None:
    texts = list(planted()[0].texts)[:60]
    model = tiny_model("gpt2")
    alone = text_moments(model, texts, pool=pool, batch_size=1).pooled()
    model.tokenizer.padding_side = side
    for given in (texts, sorted(texts, key=len)):
        padded = text_moments(model, iter(given), pool=pool, batch_size=32).pooled()
        assert padded.count.tolist() == alone.count.tolist()
        assert same(padded.mean, alone.mean, 1e-5) and same(padded.within, alone.within, 1e-5)


def test_tokens_are_those_after_the_start() -> None:
    texts = list(planted()[0].texts)[:20]
    model = tiny_model("gpt2")
    moments = text_moments(model, texts, [1], pool="tokens", start=2).pooled()
    tokens = []

    def keep(stream: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
        tokens.append(stream[0, 0, 2:])
        return stream[:, :, -1]

    model.capture(texts, [1], keep, batch_size=1)
    every = torch.cat(tokens).double()
    assert moments.count.item() == len(every)
    assert same(moments.within[0], (len(every) - 1) * every.T.cov(), 1e-5)


# Logistic regression, and scikit-learn's interface -------------------------------------------------------------------


def objective(weights: Any, offsets: Any, data: Data, layer: int, classes: Any, C: float) -> float:
    """Return scikit-learn's objective for logits of features as they come."""
    logits = data.x[:, layer] @ np.asarray(weights).T + np.asarray(offsets)
    if logits.shape[1] == 1:
        logits = np.hstack([np.zeros_like(logits), logits])
    loss = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(classes)), classes]
    return float(C * loss.sum() + (np.asarray(weights) ** 2).sum() / 2)


@pytest.mark.parametrize("C", [1e-4, 1.0, 100.0])
@pytest.mark.parametrize("classes", [2, CLASSES])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_logistic_reaches_the_objective_of_scikit_learn(
    data: Data, C: float, classes: int, dtype: torch.dtype
) -> None:
    label = np.minimum(data.label, classes - 1)
    features = torch.from_numpy(data.x).to(dtype)
    for layer in range(LAYERS):
        found = logistic(features[:, layer], torch.from_numpy(label), C)
        model = LogisticRegression(C=C, solver="newton-cholesky", tol=1e-9, max_iter=1000).fit(
            data.x[:, layer], label
        )
        least = objective(model.coef_, model.intercept_, data, layer, label, C)
        weights, offsets = found.weights.numpy(), found.offsets.numpy()
        if classes == 2:  # one row, the difference, is what scikit-learn penalises
            weights, offsets = np.diff(weights, axis=0), np.diff(offsets)
        mine = objective(weights, offsets, data, layer, label, C)
        assert mine <= least * (1 + 1e-4)
        centred = (
            [part - part.mean(0) for part in (weights, model.coef_)]
            if classes > 2
            else [weights, model.coef_]
        )
        assert same(*centred, 0.01)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_preconditioning_saves_passes_over_the_texts(data: Data) -> None:
    """The spread of the features differs ten thousandfold between directions: a general solver needs far more passes."""
    features, label = torch.from_numpy(data.x[:, 0]), torch.from_numpy(data.label)
    found = logistic(features, label)
    model = LogisticRegression(tol=1e-6, max_iter=1000).fit(data.x[:, 0], data.label)
    assert found.passes < 80 and model.n_iter_[0] == 1000  # and still not there
    loss = objective(found.weights, found.offsets, data, 0, data.label, 1.0)
    assert loss <= objective(model.coef_, model.intercept_, data, 0, data.label, 1.0) * (1 + 1e-4)
    assert found.objective * TEXTS == pytest.approx(loss, rel=1e-9)


def test_logistic_takes_axes_that_are_known(data: Data) -> None:
    features, label = torch.from_numpy(data.x), torch.from_numpy(data.label)
    pooled = data.moments().pooled(layers=slice(1, 2))  # with folds and targets beside
    given, anew = logistic(features[:, 1], label, axes=axes_of(pooled)), logistic(features[:, 1], label)
    assert same(given.weights, anew.weights, 1e-6) and same(given.offsets, anew.offsets, 1e-6)
    with pytest.raises(InputError, match="not those of"):
        logistic(features[:, 1, 1:], label, axes=axes_of(pooled))


@pytest.mark.parametrize("rows", [7, 100])
def test_logistic_is_the_same_in_any_number_of_pieces(
    data: Data, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, label = torch.from_numpy(data.x[:, 0]), torch.from_numpy(data.label)
    whole = logistic(features, label, tolerance=1e-9)
    assert len(features) % rows and logistic_module.AT_ONCE > features.numel()
    monkeypatch.setattr(logistic_module, "AT_ONCE", rows * features.shape[1])
    pieces = logistic(features, label, tolerance=1e-9)
    assert same(pieces.weights, whole.weights, 1e-6) and same(pieces.offsets, whole.offsets, 1e-6)


def test_logistic_is_not_content_with_what_a_rough_step_promises() -> None:
    """A few texts a thousand times as long as the others, not standardised: conjugate gradients take long there."""
    generator = np.random.default_rng(2)
    label = generator.integers(0, 3, 400)
    features = generator.normal(size=(400, 20)) + 0.5 * generator.normal(size=(3, 20))[label]
    features[:3] *= 1e3
    given = torch.from_numpy(features), torch.from_numpy(label)
    least = logistic(*given, tolerance=1e-11).objective
    assert logistic(*given).objective < least * (1 + 1e-4)


def test_logistic_refuses_what_it_cannot_fit(data: Data) -> None:
    features, label = torch.from_numpy(data.x[:, 0]), torch.from_numpy(data.label)
    for given, complaint in [
        ((features, label[:-1]), "give \\(texts, d_model\\)"),
        ((features, 0 * label), "two or more"),
        ((features, 2 * label), "numbered from 0"),
        ((features, label, 0.0), "C=0.0"),
    ]:
        with pytest.raises(InputError, match=complaint):
            logistic(*given)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@pytest.mark.parametrize(
    "estimator",
    [MomentRidge(), MomentRidge(cv=3, standardise=True), MeanDifference(), MomentLDA(), NewtonLogistic()],
    ids=repr,
)
def test_estimators_keep_to_the_rules_of_scikit_learn(estimator: Any) -> None:
    check_estimator(estimator)


def test_estimators_equal_those_of_scikit_learn(data: Data) -> None:
    x, y, label = data.x[:, 0], data.y, data.label
    ridge = MomentRidge(PENALTIES, cv=FOLDS).fit(x, y, groups=data.fold)
    wanted = RidgeCV(PENALTIES, cv=list(GroupKFold(FOLDS).split(x, groups=data.fold)), scoring="r2").fit(x, y)
    assert ridge.penalty_ == wanted.alpha_
    assert ridge.scores_.max() == pytest.approx(wanted.best_score_, rel=1e-6)
    assert same(ridge.predict(x), wanted.predict(x), 1e-6)
    assert ridge.fit(x, y[:, 0]).predict(x).shape == (TEXTS,)
    for classes in (2, CLASSES):
        few = np.minimum(label, classes - 1)
        lda, theirs = (
            MomentLDA(0.1).fit(x, few),
            LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1).fit(x, few),
        )
        assert same(lda.predict_proba(x), theirs.predict_proba(x), 1e-6)
        assert (MeanDifference().fit(x, few).predict(x) == NearestCentroid().fit(x, few).predict(x)).all()
        logistic_model = NewtonLogistic(tol=1e-9).fit(x, few)
        theirs = LogisticRegression(solver="newton-cholesky", tol=1e-9).fit(x, few)
        assert same(logistic_model.predict_proba(x), theirs.predict_proba(x), 1e-4)
        assert logistic_model.coef_.shape == theirs.coef_.shape
