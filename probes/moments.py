"""Counts, means and second moments of activations in one pass, and what follows from them exactly.

A sum of squares about the mean can be added up batch by batch, and two such sums joined, without either losing digits (Chan,
Golub & LeVeque 1983, "Algorithms for computing the sample variance"). Mean differences, linear discriminant analysis, ridge
regression with its whole regularisation path and its cross-validation, and principal components are functions of these sums
alone, so that no activation need be stored: memory does not grow with the number of texts.

Targets of a regression ride along as further columns beside the features; of their products with each other only the squares
are kept, so that there may be many. Everything is float64, on the CPU or on a GPU that has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from emoprobe.artefacts import read_artefact, write_artefact
from emoprobe.checks import check_record, check_tensors, reading
from emoprobe.errors import InputError

ROWS = 512
"""Texts that are added at once: enough for fast products, few enough to need little memory."""
BLOCK = 96
"""Height of the strips in which the upper triangle of a scatter matrix is kept."""
TOGETHER = 2**28
"""Entries of the matrices of all layers that are worked on together on a GPU."""
KIND, VERSION = "set of moments", 2


@dataclass(eq=False)
class Moments:
    """Hold moments of vectors z = (x, y), features then targets, by fold, layer and class, all float64.

    `count` is (folds, classes) and `mean` (folds, layers, classes, width), where width is d_model + n_targets. `scatter`
    (folds, layers, packed) holds the sums over texts of (x - m)(z - m)ᵀ about the mean m of the text's own fold and class, of
    the symmetric part only the upper triangle, in strips, and behind them the squares of the targets; `pooled` gives whole
    matrices. Moments of the same shape add up with `+`.
    """

    count: Tensor
    mean: Tensor
    scatter: Tensor
    n_targets: int = 0

    @classmethod
    def zeros(
        cls,
        n_layers: int,
        d_model: int,
        *,
        n_folds: int = 1,
        n_classes: int = 1,
        n_targets: int = 0,
        device: torch.device | str = "cpu",
    ) -> Moments:
        """Return the moments of no text."""
        width = d_model + n_targets
        packed = sum(rows * (width - first) for first, rows in _strips(d_model)) + n_targets

        def empty(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        means = empty(n_folds, n_layers, n_classes, width)
        return cls(empty(n_folds, n_classes), means, empty(n_folds, n_layers, packed), n_targets)

    @property
    def n_folds(self) -> int:
        """The number of folds."""
        return self.mean.shape[0]

    @property
    def n_layers(self) -> int:
        """The number of layers."""
        return self.mean.shape[1]

    @property
    def n_classes(self) -> int:
        """The number of classes."""
        return self.mean.shape[2]

    @property
    def d_model(self) -> int:
        """The number of features."""
        return self.mean.shape[3] - self.n_targets

    def add(
        self,
        vectors: Tensor,
        *,
        fold: Tensor | None = None,
        classes: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> None:
        """Add texts: vectors (texts, layers, d_model), the fold and class numbers (texts,) and targets (texts, n_targets).

        Fold and class default to 0. Raises `InputError` for shapes that do not fit and numbers that are not finite or out
        of range; then nothing is added.
        """
        fold, classes, targets = self._checked(vectors, fold, classes, targets)
        for number in sorted(set(fold.tolist())):
            for rows in (fold == number).nonzero().squeeze(1).split(ROWS):
                self._add_to_fold(number, vectors, rows.to(vectors.device), classes[rows], targets[rows])

    def __iadd__(self, other: Moments) -> Moments:
        """Take in moments of other texts, gathered apart: in another batch, process or machine."""
        shapes = [(part.mean.shape, part.n_targets) for part in (self, other)]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"moments of shapes {shapes[0]} and {shapes[1]} (folds, layers, classes, width; targets) do not add up: gather "
                "them with the same folds, layers, classes and targets"
            )
        count, every = other.count.to(self.count), slice(None)
        for fold in range(self.n_folds):
            self.scatter[fold] += other.scatter[fold].to(self.scatter)
            between = self._moved(fold, every, count[fold], other.mean[fold].to(self.mean))
            _add_products(self.scatter[fold], between, self.d_model)
        self.count += count
        return self

    def __add__(self, other: Moments) -> Moments:
        """Return the moments of both sets of texts."""
        return self.clone().__iadd__(other)

    def clone(self) -> Moments:
        """Return a copy that shares no memory."""
        return Moments(self.count.clone(), self.mean.clone(), self.scatter.clone(), self.n_targets)

    def to(self, device: torch.device | str) -> Moments:
        """Return the moments on `device`."""
        return Moments(self.count.to(device), self.mean.to(device), self.scatter.to(device), self.n_targets)

    def save(self, path: str | Path) -> Path:
        """Write the moments as safetensors, for `load_moments` to read on any machine."""
        tensors = {"count": self.count, "mean": self.mean, "scatter": self.scatter}
        return write_artefact(path, KIND, VERSION, tensors, {"n_targets": self.n_targets})

    def by_layers(self) -> Iterator[slice]:
        """Yield the layers to work on together: many on a GPU, where it is faster; one by one elsewhere, to save memory."""
        together = max(1, TOGETHER // self.mean.shape[-1] ** 2) if self.mean.is_cuda else 1
        for first in range(0, self.n_layers, together):
            yield slice(first, first + together)

    def pooled(self, folds: Sequence[int] | None = None, layers: slice = slice(None)) -> Pooled:
        """Return the moments of the texts in these folds (default: all) as one, at these layers.

        The moments that a fold is predicted from are those of the other folds: nothing is fitted anew.
        """
        chosen = list(range(self.n_folds)) if folds is None else list(folds)
        by_fold, means, d = self.count[chosen], self.mean[:, layers][chosen], self.d_model
        count = by_fold.sum(0)
        mean = torch.einsum("fc,flcw->lcw", by_fold / count.clamp(min=1), means)
        apart = by_fold.sqrt()[:, None, :, None] * (means - mean)
        apart = apart.transpose(0, 1).flatten(1, 2)  # (layers, folds × classes, width)
        within, squares = apart[..., :d].mT @ apart, (apart[..., d:] ** 2).sum(1)
        for fold in chosen:
            _add_unpacked(within, squares, self.scatter[fold, layers])
        return Pooled(count, mean, within, squares)

    def _add_to_fold(
        self, fold: int, vectors: Tensor, rows: Tensor, classes: Tensor, targets: Tensor
    ) -> None:
        carried = torch.nn.functional.one_hot(classes, self.n_classes).to(self.mean)
        count = carried.sum(0)
        for layers in self.by_layers():
            mine = vectors[:, layers][rows].transpose(0, 1).to(self.mean.device)
            both = self.mean.new_empty(len(mine), len(rows) + self.n_classes, self.mean.shape[-1])
            own = both[:, : len(rows)]
            own[..., : self.d_model] = mine
            own[..., self.d_model :] = targets
            mean = carried.T @ own / count.clamp(min=1)[:, None]
            own -= mean[:, classes]
            both[:, len(rows) :] = self._moved(fold, layers, count, mean)
            _add_products(self.scatter[fold, layers], both, self.d_model)
        self.count[fold] += count

    def _moved(self, fold: int, layers: slice, count: Tensor, mean: Tensor) -> Tensor:
        """Join class means of a fold with others; return vectors (layers, classes, width) to add the products of.

        The squares about the joint mean exceed those about the two means by one product of their difference.
        """
        before = self.count[fold]
        joint = (before + count).clamp(min=1)
        apart = mean - self.mean[fold, layers]
        self.mean[fold, layers] += (count / joint)[:, None] * apart
        return (before * count / joint).sqrt()[:, None] * apart

    def _checked(
        self, vectors: Tensor, fold: Tensor | None, classes: Tensor | None, targets: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        texts, device = len(vectors), self.mean.device
        if vectors.shape[1:] != (self.n_layers, self.d_model):
            wanted = f"(texts, {self.n_layers}, {self.d_model})"
            raise InputError(f"vectors of shape {tuple(vectors.shape)}: moments of {wanted} were asked for")
        targets = torch.zeros(texts, 0) if targets is None else targets
        if targets.shape != (texts, self.n_targets):
            wanted = f"({texts}, {self.n_targets})"
            raise InputError(f"targets of shape {tuple(targets.shape)}: {wanted} are needed")
        if not (_finite(vectors) and _finite(targets)):
            raise InputError(
                "a vector or target is infinite or NaN: leave such texts out, or load the model in another dtype"
            )
        numbered = []
        for what, numbers, size in (("fold", fold, self.n_folds), ("class", classes, self.n_classes)):
            numbers = torch.zeros(texts, dtype=torch.long) if numbers is None else numbers.long()
            if numbers.shape != (texts,) or (
                texts and not 0 <= int(numbers.min()) <= int(numbers.max()) < size
            ):
                raise InputError(f"each of the {texts} texts needs a {what} from 0 to {size - 1}")
            numbered.append(numbers.to(device))
        return numbered[0], numbered[1], targets.to(self.mean)


def _finite(values: Tensor) -> bool:
    # By the extremes, which is faster than number by number; by parts, for of a slice each call makes a copy.
    parts = torch.split(values, ROWS) if values.numel() else ()
    return all(bool(torch.stack(torch.aminmax(part)).isfinite().all()) for part in parts)


def load_moments(path: str | Path) -> Moments:
    """Read moments that `Moments.save` wrote. Raises `InputError` for a file that is missing, damaged or something else."""
    tensors, record = read_artefact(path, KIND, VERSION)
    with reading(path, KIND):
        check_record(record, {"n_targets": int})
        count, mean, scatter = (tensors[name] for name in ("count", "mean", "scatter"))
        check_tensors({"count": count, "mean": mean, "scatter": scatter})
        n_targets, (folds, layers, classes, width) = record["n_targets"], mean.shape
        like = Moments.zeros(layers, width - n_targets, n_folds=folds, n_classes=classes, n_targets=n_targets)
        for name, found, right in (("count", count, like.count), ("scatter", scatter, like.scatter)):
            if (
                found.shape != right.shape
                or found.dtype != mean.dtype
                or (name == "count" and (found < 0).any())
            ):
                raise InputError(f"{name} {tuple(found.shape)} does not fit mean {tuple(mean.shape)}")
        return Moments(count, mean, scatter, n_targets)


@dataclass(frozen=True, eq=False)
class Pooled:
    """Hold moments of some folds taken together, for some layers.

    `count` is (classes,), `mean` (layers, classes, width), `within` (layers, d_model, width) the sums of products of the
    features with the features and the targets about the class means, `squares` (layers, n_targets) those of each target with
    itself.
    """

    count: Tensor
    mean: Tensor
    within: Tensor
    squares: Tensor

    @property
    def d_model(self) -> int:
        """The number of features."""
        return self.within.shape[1]

    @property
    def grand_mean(self) -> Tensor:
        """Mean over all texts, (layers, width)."""
        return torch.einsum("c,lcw->lw", self.count / self.count.sum().clamp(min=1), self.mean)

    @property
    def total(self) -> Tensor:
        """What `within` is, about the mean over all texts."""
        between = self._between
        return torch.baddbmm(self.within, between[..., : self.d_model].mT, between)

    @property
    def total_squares(self) -> Tensor:
        """What `squares` is, about the mean over all texts."""
        return self.squares + (self._between[..., self.d_model :] ** 2).sum(1)

    @property
    def _between(self) -> Tensor:
        return self.count.sqrt()[:, None] * (self.mean - self.grand_mean[:, None])


# Upper triangles in strips -------------------------------------------------------------------------------------------


def _strips(d_model: int) -> Iterator[tuple[int, int]]:
    """Yield the first row and the number of rows of each strip; it holds the columns from its first row on."""
    yield from ((first, min(BLOCK, d_model - first)) for first in range(0, d_model, BLOCK))


def _views(packed: Tensor, d_model: int, width: int) -> Iterator[tuple[int, int, Tensor]]:
    """Yield the strips of packed matrices (layers, packed): first row, end row, and (layers, rows, columns) in place."""
    start = 0
    for first, rows in _strips(d_model):
        size = rows * (width - first)
        yield first, first + rows, packed[:, start : start + size].view(len(packed), rows, width - first)
        start += size


def _add_products(packed: Tensor, rows: Tensor, d_model: int) -> None:
    """Add the sums over texts of products in rows (layers, texts, width) to packed matrices."""
    width = rows.shape[-1]
    for first, end, strip in _views(packed, d_model, width):
        strip.baddbmm_(rows[..., first:end].mT, rows[..., first:])
    packed[:, packed.shape[1] - (width - d_model) :] += (rows[..., d_model:] ** 2).sum(1)


def _add_unpacked(matrices: Tensor, squares: Tensor, packed: Tensor) -> None:
    """Add packed matrices (layers, packed) to whole ones (layers, d_model, width) and squares (layers, n_targets)."""
    _, d, width = matrices.shape
    for first, end, strip in _views(packed, d, width):
        matrices[:, first:end, first:] += strip
        matrices[:, end:d, first:end] += strip[..., end - first : d - first].mT
    squares += packed[:, packed.shape[1] - squares.shape[1] :]
