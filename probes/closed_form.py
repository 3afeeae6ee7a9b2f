"""Mean difference, linear discriminant analysis, ridge regression and principal components, out of moments alone.

Everything is for all layers at once, in float64, and equals the same estimator fitted to the stored activations. What depends
on single texts, such as an accuracy or an area under the ROC curve, is not among what moments can give.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from emoprobe.errors import InputError
from emoprobe.probes.moments import Moments, Pooled


class Weights(NamedTuple):
    """Hold linear read-outs w·x + b: `weights` (…, layers, outputs, d_model) and `offsets` (…, layers, outputs)."""

    weights: Tensor
    offsets: Tensor


class HeldOut(NamedTuple):
    """Hold how each fold is predicted from the others, all (folds, penalties, layers, targets).

    `r2` is one minus squared error over squared deviation from the fold's own mean, as in scikit-learn, `pearson_r` the
    correlation within the fold; both NaN where a target does not vary within the fold. `error` is the sum over the fold's
    texts of the squared error, and `baseline` the same where the mean of the other folds is all that is predicted.
    """

    r2: Tensor
    pearson_r: Tensor
    error: Tensor
    baseline: Tensor


class Components(NamedTuple):
    """Hold principal components, largest first: `variances` (layers, d_model), `vectors` (layers, d_model, d_model) in rows."""

    variances: Tensor
    vectors: Tensor


# Labels --------------------------------------------------------------------------------------------------------------


def mean_difference(moments: Moments) -> Tensor:
    """Return each class's mean minus the mean of all class means, (layers, classes, d_model).

    The recipe of "Emotion Concepts and their Function in a Large Language Model" (Sofroniew et al. 2026, arXiv 2604.07729).
    A class without texts gets zeros.
    """
    count = moments.count.sum(0)
    means = torch.einsum("fc,flcw->lcw", moments.count / count.clamp(min=1), moments.mean)
    means = means[..., : moments.d_model]
    differences = means - means[:, count > 0].mean(1, keepdim=True)
    return differences.where(count[:, None] > 0, 0.0)


def linear_discriminants(moments: Moments, shrinkage: float = 0.0) -> Weights:
    """Return the logits of linear discriminant analysis for each class, priors being the shares of texts.

    `shrinkage` from 0 to 1 moves the covariance within classes towards a multiple of the identity with the same trace. Where
    that covariance is singular, its pseudo-inverse is taken. A class without texts gets zeros and an offset of -inf.
    Raises `InputError` for a shrinkage out of range.
    """
    if not 0 <= shrinkage <= 1:
        raise InputError(f"shrinkage={shrinkage}: give a number from 0 to 1")
    found = [_discriminants(moments.pooled(layers=layers), shrinkage) for layers in moments.by_layers()]
    return Weights(*(torch.cat(part) for part in zip(*found, strict=True)))


def _discriminants(pooled: Pooled, shrinkage: float) -> Weights:
    d = pooled.d_model
    texts, centre = pooled.count.sum().clamp(min=1), pooled.grand_mean[..., :d]
    values, vectors = torch.linalg.eigh(pooled.within[..., :d] / texts)
    values = (1 - shrinkage) * values + shrinkage * values.mean(-1, keepdim=True)
    apart = (pooled.mean[..., :d] - centre[:, None]).where(pooled.count[:, None] > 0, 0.0)
    weights = apart @ vectors * _inverse(values)[:, None] @ vectors.mT
    # About the grand mean all numbers are small; the offsets follow for features as they come.
    half = (weights * apart).sum(-1) / 2
    offsets = (pooled.count / texts).log() - half - torch.einsum("lcd,ld->lc", weights, centre)
    return Weights(weights, offsets)


# Regression ----------------------------------------------------------------------------------------------------------


class _Normal(NamedTuple):
    """The normal equations: texts, means and second moments of features x and targets y about them, layers first."""

    texts: Tensor
    mean_x: Tensor
    mean_y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor


def _normal(pooled: Pooled) -> _Normal:
    """Return the normal equations for the targets; where there are none, for 0 and 1 of each class."""
    d, texts, mean, total = pooled.d_model, pooled.count.sum(), pooled.grand_mean, pooled.total
    mean_x, mean_y = mean[:, :d], mean[:, d:]
    if mean_y.shape[1]:
        return _Normal(texts, mean_x, mean_y, total[..., :d], total[..., d:], pooled.total_squares)
    share = (pooled.count / texts.clamp(min=1)).expand(len(mean), -1)
    xy = (pooled.count[:, None] * (pooled.mean - mean_x[:, None])).mT
    return _Normal(texts, mean_x, share, total, xy, texts * share * (1 - share))


def ridge(moments: Moments, penalties: Sequence[float] | Tensor, *, standardise: bool = False) -> Weights:
    """Return the ridge regression of each target at a penalty of its own: weights (layers, targets, d_model).

    `penalties` is (layers,) or (layers, targets). Otherwise as `ridge_path`. Raises `InputError` for penalties that are not
    positive, or so small that rounding outweighs them, and where there is not one for each layer.
    """
    strengths = torch.as_tensor(penalties, dtype=torch.float64)
    outputs = moments.n_targets or moments.n_classes
    if strengths.shape not in ((moments.n_layers,), (moments.n_layers, outputs)):
        raise InputError(
            f"penalties of shape {tuple(strengths.shape)} for {moments.n_layers} layers: give one for each, "
            f"or ({moments.n_layers}, {outputs}), one for each target too"
        )
    strengths = strengths.view(moments.n_layers, -1, 1)
    found = []
    for layers in moments.by_layers():
        normal = _normal(moments.pooled(layers=layers))
        scale = _scale(normal, standardise)
        weights = torch.zeros_like(normal.xy.mT)
        here = strengths[layers].to(scale).expand(-1, outputs, 1)
        for strength in _positive(here.unique(), scale):  # type: ignore[no-untyped-call]
            mine = (here == strength).any(0)[:, 0]
            solved = _solved(normal._replace(xy=normal.xy[..., mine]), strength, scale)
            if solved is None:
                raise InputError(f"penalties={penalties}: one is less than rounding errors; give larger ones")
            weights[:, mine] = torch.where(here[:, mine] == strength, solved, weights[:, mine])
        found.append(_with_offsets(normal, weights))
    return Weights(*(torch.cat(part) for part in zip(*found, strict=True)))


def ridge_path(moments: Moments, penalties: Sequence[float], *, standardise: bool = False) -> Weights:
    """Return the ridge regression of each target at every penalty: weights (penalties, layers, targets, d_model).

    Minimises ‖y - Xw - b‖² + penalty·‖w‖², the offset free, for the targets of the moments; where they have none, for 1 where
    a text is of a class and 0 where not. With `standardise` the penalty is for features of unit variance; the weights are for
    the features as they come, either way. Raises `InputError` for penalties that are not positive.
    """
    found = []
    for layers in moments.by_layers():
        normal = _normal(moments.pooled(layers=layers))
        found.append(_path(normal, _positive(penalties, normal.xx), standardise))
    return Weights(*(torch.cat(part, 1) for part in zip(*found, strict=True)))


def generalised_cross_validation(
    moments: Moments, penalties: Sequence[float], *, standardise: bool = False
) -> Tensor:
    """Return the mean squared error that generalised cross-validation expects, (penalties, layers, targets).

    n·RSS / (n - df)², df the trace of the hat matrix with its offset (Golub, Heath & Wahba 1979). scikit-learn's `RidgeCV`
    calls leave-one-out by that name, which needs single texts. Grouped texts make it too hopeful; prefer `grouped_k_fold`.
    """
    found = []
    for layers in moments.by_layers():
        normal = _normal(moments.pooled(layers=layers))
        strengths = _positive(penalties, normal.xx)
        values = torch.linalg.eigvalsh(_scaled(normal.xx, _scale(normal, standardise))).clamp(min=0)
        freedom = (values / (values + strengths[:, None, None])).sum(-1)  # (penalties, layers)
        error = _squared_error(normal, _path(normal, strengths, standardise).weights)
        found.append(normal.texts * error / ((normal.texts - 1 - freedom) ** 2)[..., None])
    return torch.cat(found, 1)


def grouped_k_fold(moments: Moments, penalties: Sequence[float], *, standardise: bool = False) -> HeldOut:
    """Score the ridge regression of each fold from the moments of the other folds, at every penalty.

    Targets and `standardise` are as in `ridge_path`. Whole groups lie in a fold where the folds were dealt so. Raises
    `InputError` for fewer than two folds with texts.
    """
    filled = moments.count.sum(1).nonzero().squeeze(1).tolist()
    if len(filled) < 2:
        raise InputError(
            f"{len(filled)} folds with texts: cross-validation needs at least 2; add texts with their folds"
        )
    by_layers = []
    for layers in moments.by_layers():
        folds = []
        for fold in filled:
            train = _normal(moments.pooled([other for other in filled if other != fold], layers))
            read_out, mean_y = _path(train, _positive(penalties, train.xx), standardise), train.mean_y
            del train  # its matrices are the largest things here
            folds.append(_scored(_normal(moments.pooled([fold], layers)), read_out, mean_y))
        by_layers.append([torch.stack(part) for part in zip(*folds, strict=True)])
    return HeldOut(*(torch.cat(part, 2) for part in zip(*by_layers, strict=True)))


def explained_by_folds(moments: Moments, penalties: Sequence[float]) -> Tensor:
    """Return what ridge explains of folds predicted from the others, summed over them: (penalties, layers, targets).

    This is `baseline - error` of `grouped_k_fold`, found without a weight vector of each penalty, for hundreds of targets.
    """
    found = []
    for layers in moments.by_layers():
        filled = moments.count.sum(1).nonzero().squeeze(1).tolist()
        gain = torch.zeros((), dtype=torch.float64)
        for fold in filled:
            train = _normal(moments.pooled([other for other in filled if other != fold], layers))
            test = _normal(moments.pooled([fold], layers))
            apart_x, apart_y = test.mean_x - train.mean_x, test.mean_y - train.mean_y
            values, vectors = torch.linalg.eigh(train.xx)
            # Moments of the fold about the others' means, along the others' principal axes.
            xx = vectors.mT @ (test.xx + test.texts * apart_x[..., None] * apart_x[:, None]) @ vectors
            yx = (test.xy + test.texts * apart_x[..., None] * apart_y[:, None]).mT @ vectors
            along = train.xy.mT @ vectors
            by_penalty = []
            for strength in _positive(penalties, values):
                weights = along / (values.clamp(min=0) + strength)[:, None]
                by_penalty.append(((2 * yx - weights @ xx) * weights).sum(-1))
            gain = gain + torch.stack(by_penalty)
        found.append(gain)
    return torch.cat(found, 1)


def _path(normal: _Normal, penalties: Tensor, standardise: bool) -> Weights:
    """Return the ridge read-outs (penalties, layers, targets, d_model)."""
    scale = _scale(normal, standardise)
    d, targets = normal.xy.shape[1:]
    # One eigendecomposition does for any number of penalties, and costs about as much as 14 Cholesky factors; but with
    # many targets these cost more to use.
    if len(penalties) * (d + 9 * targets) < 14 * d:
        solved = [_solved(normal, strength, scale) for strength in penalties]
        if all(weights is not None for weights in solved):
            return _with_offsets(normal, torch.stack([weights for weights in solved if weights is not None]))
    values, vectors = torch.linalg.eigh(_scaled(normal.xx, scale))
    along = (normal.xy / scale[..., None]).mT @ vectors  # (layers, targets, d_model)
    shrunk = along / (values.clamp(min=0) + penalties[:, None, None])[:, :, None]
    return _with_offsets(normal, shrunk @ vectors.mT / scale[:, None])


def _solved(normal: _Normal, strength: Tensor, scale: Tensor) -> Tensor | None:
    """Return the weights (layers, targets, d_model) at one penalty by Cholesky's factor; None where rounding outweighs it."""
    penalised = normal.xx.clone()
    penalised.diagonal(dim1=1, dim2=2).add_(strength * scale**2)
    root, failed = torch.linalg.cholesky_ex(penalised)
    return None if failed.any() else torch.cholesky_solve(normal.xy, root).mT


def _with_offsets(normal: _Normal, weights: Tensor) -> Weights:
    return Weights(weights, normal.mean_y - torch.einsum("...td,...d->...t", weights, normal.mean_x))


def _scale(normal: _Normal, standardise: bool) -> Tensor:
    """Return what features are divided by before they are penalised, (layers, d_model): 1, or their standard deviations.

    A feature that does not vary but for rounding is left as it is; the bound is that of scikit-learn's `StandardScaler`, which
    allows for errors that add up over texts.
    """
    if not standardise:
        return torch.ones_like(normal.mean_x)
    variance = normal.xx.diagonal(dim1=1, dim2=2) / normal.texts.clamp(min=1)
    rounding = normal.texts * torch.finfo(variance.dtype).eps
    constant = variance <= rounding * variance + (rounding * normal.mean_x) ** 2
    return variance.where(~constant, 1.0).sqrt()


def _scaled(xx: Tensor, scale: Tensor) -> Tensor:
    return xx / (scale[:, :, None] * scale[:, None])


def _squared_error(normal: _Normal, weights: Tensor) -> Tensor:
    """Return Σ (y - Xw)² about both means, (penalties, layers, targets); not below 0 by rounding."""
    shared = (weights * normal.xy.mT).sum(-1)
    return (normal.yy - 2 * shared + _spread(normal, weights)).clamp(min=0)


def _spread(normal: _Normal, weights: Tensor) -> Tensor:
    """Return Σ (Xw)² about the mean, (penalties, layers, targets)."""
    return ((weights @ normal.xx) * weights).sum(-1).clamp(min=0)


def _scored(test: _Normal, read_out: Weights, mean_y: Tensor) -> list[Tensor]:
    """Return what `HeldOut` holds of one fold known by its moments, where those of the others gave `read_out` and `mean_y`."""
    weights, offsets = read_out
    bias = test.mean_y - offsets - torch.einsum("pltd,ld->plt", weights, test.mean_x)
    spread, shared = _spread(test, weights), (weights * test.xy.mT).sum(-1)
    error = (test.yy - 2 * shared + spread).clamp(min=0) + test.texts * bias**2
    varies = test.yy > 0
    r2 = (1 - error / test.yy).where(varies, torch.nan)
    r = (shared / (spread * test.yy).sqrt()).where(varies & (spread > 0), torch.nan)
    baseline = test.yy + test.texts * (test.mean_y - mean_y) ** 2
    return [r2, r, error, baseline.expand_as(error)]


def _positive(penalties: Sequence[float] | Tensor, like: Tensor) -> Tensor:
    if not len(penalties) or not min(penalties) > 0:
        raise InputError(f"penalties={[float(one) for one in penalties]}: give one or more positive numbers")
    return torch.as_tensor(penalties, dtype=like.dtype, device=like.device)


def _inverse(values: Tensor) -> Tensor:
    """Invert eigenvalues, with zeros for those that are zero but for rounding."""
    least = values.shape[-1] * torch.finfo(values.dtype).eps * values.amax(-1, keepdim=True)
    return torch.where(values > least, 1 / values, 0.0)


# Principal components ------------------------------------------------------------------------------------------------


def principal_components(moments: Moments) -> Components:
    """Return the principal components of all vectors at each layer, with their variances (divisor: texts - 1)."""
    found = []
    for layers in moments.by_layers():
        pooled = moments.pooled(layers=layers)
        covariance = pooled.total[..., : pooled.d_model] / (pooled.count.sum() - 1).clamp(min=1)
        values, vectors = torch.linalg.eigh(covariance)
        found.append((values.clamp(min=0).flip(-1), vectors.mT.flip(-2)))
    return Components(*(torch.cat(part) for part in zip(*found, strict=True)))


def without_components(vectors: Tensor, components: Components, share: float) -> tuple[Tensor, Tensor]:
    """Project out of vectors (layers, …, d_model) the leading components, up to a share of their variance.

    Returns the vectors, and how many components it took at each layer, (layers,): the fewest that hold at least `share` of
    the variance. Emotion vectors are cleaned so of what varies in neutral text (Sofroniew et al. 2026, share 0.5).
    Raises `InputError` for a share that is not from 0 to 1.
    """
    if not 0 <= share <= 1:
        raise InputError(f"share={share}: give a number from 0 to 1")
    variances = components.variances
    held = variances.cumsum(-1) - variances  # by the components before each
    wanted = share * variances.sum(-1, keepdim=True)
    removed = (held < wanted) & (variances > 0)
    basis = components.vectors * removed[..., None]
    flat = vectors.to(basis).flatten(1, -2)
    cleaned = flat - flat @ basis.mT @ basis
    return cleaned.view(vectors.shape), removed.sum(-1)
