"""Folds of texts that cut no group, the same under every version of scikit-learn."""

from __future__ import annotations

import warnings
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from emoprobe.errors import InputError

Integers: TypeAlias = NDArray[np.int64]


def grouped_folds(group: Integers, folds: int, classes: Integers | None = None, seed: int = 0) -> Integers:
    """Deal texts into folds so that no group is cut, (texts,).

    `group` (texts,) numbers the groups. With `classes` (texts,) the folds get shares of each class as equal as the groups
    allow. Raises `InputError` for fewer groups than folds.
    """
    groups = len(np.unique(group))
    if folds < 2:
        raise InputError(f"folds={folds}: cross-validation needs at least 2")
    if groups < folds:
        fewer = (
            f"give folds={groups}, or more groups" if groups > 1 else "probes need two groups at the least"
        )
        raise InputError(f"{groups} groups of texts cannot be dealt into {folds} folds: {fewer}")
    group, sizes = np.unique(group, return_inverse=True, return_counts=True)[1:]
    if classes is not None and np.bincount(classes).max() >= folds:
        return _stratified_folds(group, folds, classes, seed)
    # As scikit-learn's GroupKFold, whose order of groups of one size is the machine's before version 1.8.
    fold, held = np.empty(groups, dtype=np.int64), np.zeros(folds)
    for number in np.argsort(sizes, kind="stable")[::-1]:
        fold[number] = held.argmin()
        held[fold[number]] += sizes[number]
    return fold[group]


def _stratified_folds(group: Integers, folds: int, classes: Integers, seed: int) -> Integers:
    # As with shuffle=True, which before scikit-learn 1.8 loses sight of which classes are in which group.
    order = np.random.RandomState(seed).permutation(group.max() + 1)
    shuffled = np.argsort(order)[group]
    fold = np.empty(len(group), dtype=np.int64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")  # then some folds go without it
        splits = StratifiedGroupKFold(folds).split(group, classes, shuffled)
        for number, (_, test) in enumerate(splits):
            fold[test] = number
    return fold
