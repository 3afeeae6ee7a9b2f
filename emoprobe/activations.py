"""Reading residual streams out of a live model: batched by length, stopped at the deepest layer needed, streamed.

Nothing here holds more than one window of texts at a time; only what `capture` pools is kept. Padding never enters a
statistic. First tokens are left out of pooled means by default: in most models they are attention sinks, whose norm is
many times that of other tokens, so that a mean over all tokens would mostly measure a text's length.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from emoprobe.errors import InputError
from emoprobe.layers import Layers, resolve_layers
from emoprobe.progress import track
from emoprobe.texts import check_strings

if TYPE_CHECKING:
    from emoprobe.models.live import Batch, LiveModel

Pool: TypeAlias = "str | Callable[[Tensor, Tensor], Tensor]"
WINDOW = 32  # batches that are sorted by length together: enough to save padding, few enough to stream
AT_ONCE = 2**18
"""Characters that are tokenised at once, or one batch: what is known of a token meanwhile takes a hundred bytes or so."""
IN_MEMORY = 2 * 2**30
"""Bytes up to which `capture` keeps vectors in memory; more lie in a temporary file."""


@dataclass(frozen=True, eq=False)
class Residuals:
    """Residual streams of one batch: for each layer (batch, position, d_model), in the model's dtype and place.

    `indices` says which of the texts given the rows are; `batch` holds tokens, mask and character offsets.
    """

    indices: tuple[int, ...]
    by_layer: Sequence[Tensor]
    batch: Batch

    @property
    def stream(self) -> Tensor:
        """All layers in one, (layers, batch, position, d_model): a copy that what can go layer by layer does without."""
        return torch.stack(list(self.by_layer))

    def counted(self, start: int) -> Tensor:
        """Return which positions belong into a statistic, see `Batch.counted`."""
        return self.batch.counted(start)

    def tokens(self, wanted: Tensor) -> Tensor:
        """Return the tokens of all layers where `wanted` (batch, position) is true: (layers, tokens, d_model)."""
        return torch.stack([stream[wanted] for stream in self.by_layer])


def stream_residuals(
    model: LiveModel,
    texts: Iterable[str],
    layers: Layers = "all",
    *,
    batch_size: int = 32,
    progress: bool = False,
) -> Iterator[Residuals]:
    """Yield the residual streams of `texts`, batch by batch, in an order that saves padding.

    `texts` may be a generator of any length. Texts longer than the model's context are cut, with a warning.
    """
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: give 1 or more")
    chosen = resolve_layers(layers, model.n_layers)
    total = len(texts) if isinstance(texts, Sequence) else None
    shown = track(
        _by_length(model, texts, batch_size),
        f"reading {model.name}",
        total=total and -(-total // batch_size),
        wanted=progress,
    )
    for indices, batch in shown:
        with torch.no_grad():
            streams = model.streams_by_layer(batch, chosen)
            _check_finite(model, streams, batch, chosen, indices)
            yield Residuals(indices, streams, batch)


def _check_finite(
    model: LiveModel, streams: Sequence[Tensor], batch: Batch, layers: Sequence[int], indices: Sequence[int]
) -> None:
    """Raise `InputError` that counts and names the tokens whose residual stream is not finite; padding may be anything."""
    # A sum is finite only where all that it adds up is, and takes a third of the time that looking at each number does.
    if torch.stack([stream.sum(-1) for stream in streams]).where(batch.real, 0).isfinite().all():
        return
    finite = torch.stack([stream.isfinite().all(-1) for stream in streams])
    bad = ~finite & batch.real  # (layers, batch, position)
    if not bad.any():
        return
    at = bad.any(-1).any(-1).nonzero()[:, 0].tolist()
    rows = bad.any(0).any(-1).nonzero()[:, 0].tolist()
    named = ", ".join(str(indices[row]) for row in rows[:5]) + (", …" if len(rows) > 5 else "")
    raise InputError(
        f"text {named}: the residual stream of {model.name} in {str(model.dtype).removeprefix('torch.')} is not finite for "
        f"{int(bad[at[0]].sum())} of {int(batch.real.sum())} tokens of a batch, first at layer {layers[at[0]]}: load the model "
        "in float32 or bfloat16, lower the strength of what intervenes, or leave these texts out"
    )


def windows(texts: Iterable[str], batch_size: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the texts that are sorted together, with the number of the first: alone, they are read in the same batches."""
    rest, first = iter(texts), 0
    while window := list(islice(rest, batch_size * WINDOW)):
        yield first, window
        first += len(window)


def stretches(texts: Sequence[str], batch_size: int, most: int) -> Iterator[tuple[int, Sequence[str]]]:
    """Yield at most so many parts of about one length, with the number of the first text: windows that follow each other."""
    size = batch_size * WINDOW
    count = -(-len(texts) // size)
    parts = min(most, count)
    for part in range(parts):
        first, end = (size * (number * count // parts) for number in (part, part + 1))
        yield first, texts[first:end]


def _by_length(
    model: LiveModel, texts: Iterable[str], batch_size: int
) -> Iterator[tuple[tuple[int, ...], Batch]]:
    """Yield batches of texts with about as many tokens each, and which texts these are."""
    for first, window in windows(texts, batch_size):
        check_strings(window, first)
        for skipped, part in _portions(window, batch_size):
            tokens = model.encode(part, truncate=True, first=first + skipped)
            order = model.in_order([len(one.ids) for one in tokens])
            for begin in range(0, len(order), batch_size):
                rows = order[begin : begin + batch_size]
                batch = model.padded([part[row] for row in rows], [tokens[row] for row in rows])
                yield tuple(first + skipped + row for row in rows), batch


def _portions(window: list[str], batch_size: int) -> Iterator[tuple[int, list[str]]]:
    """Yield what of a window is tokenised at once, whole batches of it, with the number of texts before it."""
    first, held = 0, 0
    for place in range(0, len(window), batch_size):
        length = sum(map(len, window[place : place + batch_size]))
        if held and held + length > AT_ONCE:
            yield first, window[first:place]
            first, held = place, 0
        held += length
    yield first, window[first:]


def capture(
    model: LiveModel,
    texts: Sequence[str],
    layers: Layers = "all",
    pool: Pool = "mean",
    *,
    start: int = 1,
    batch_size: int = 32,
    progress: bool = False,
) -> Tensor:
    """Return one vector per text and layer: float32 (texts, layers, d_model) on the CPU.

    `pool` is "mean" (over tokens from the `start`-th on), "last" (the last token), or a function of the stream
    (layers, batch, position, d_model) and the counted positions (batch, position) that returns (layers, batch, d_model).

    Vectors of more than `IN_MEMORY` bytes lie in a temporary file that the system pages in and out, and that is gone with the
    tensor; the environment variable TMPDIR says where. Raises `InputError` where that place has no room for them.
    """
    pooled_by = pooling(pool)
    if isinstance(texts, str):
        raise InputError("texts is one string: give a list of texts")
    texts = list(texts)
    if not texts:
        raise InputError("no text was given")
    vectors = None
    for part in stream_residuals(model, texts, layers, batch_size=batch_size, progress=progress):
        pooled = pooled_by(part, part.counted(start)).to("cpu", torch.float32)
        if vectors is None:
            vectors = room(len(texts), len(pooled), *pooled.shape[2:])
        vectors.index_copy_(0, torch.tensor(part.indices), pooled.transpose(0, 1))
    assert vectors is not None
    return vectors


def room(*shape: int) -> Tensor:
    """Return a float32 tensor to fill: in memory, or in a file if it takes more than `IN_MEMORY` bytes."""
    size = torch.Size(shape).numel()
    if 4 * size <= IN_MEMORY:
        return torch.empty(shape)
    # Its name is gone when the block ends, its bytes when nothing maps them any more, however the program ends.
    with tempfile.NamedTemporaryFile(prefix="emoprobe-") as file:
        try:
            # A full disk would otherwise end the program at some later write.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, 4 * size)
        except OSError as error:
            raise InputError(
                f"{4 * size} bytes of activations do not fit into {tempfile.gettempdir()} ({error.strerror}): capture fewer "
                "layers or texts, or set TMPDIR to a place with more room"
            ) from None
        return torch.from_file(file.name, shared=True, size=size, dtype=torch.float32).view(shape)


def pooling(pool: Pool) -> Callable[[Residuals, Tensor], Tensor]:
    """Return what makes vectors (layers, batch, d_model) of a batch and its counted positions, as `pool` says, see `capture`.

    A function with an attribute `by_layer` that is true is called with a list of layers, each (batch, position, d_model) in the
    model's dtype, so that they need not lie in memory once more. Raises `InputError` for a name that there is not; so does what
    is returned where a function given for `pool` gives what is infinite or NaN.
    """
    if isinstance(pool, str):
        named = named_pool(pool)
        return lambda part, counted: named(part.by_layer, counted)
    if getattr(pool, "by_layer", False):
        return lambda part, counted: pool(part.by_layer, counted)  # type: ignore[arg-type]  # by its own word
    return lambda part, counted: _vectors(pool(part.stream.float(), counted), len(part.indices))


def named_pool(name: str) -> Callable[[Iterable[Tensor], Tensor], Tensor]:
    """Return the function of layers, each (batch, position, d_model), and counted positions that a name stands for.

    It returns (layers, batch, d_model), in float32 or wider. Raises `InputError` for another name.
    """
    if name == "mean":
        return mean_over
    if name == "last":
        return _last_of
    raise InputError(f'pool="{name}" is not understood: give "mean", "last" or a function')


def mean_over(streams: Iterable[Tensor], counted: Tensor) -> Tensor:
    """Return the means (layers, batch, d_model) over counted positions of layers that are (batch, position, d_model)."""
    streams, shown = list(streams), counted[..., None]
    sums = torch.stack([(widened(stream) * shown).sum(-2) for stream in streams])
    if not sums.isfinite().all():
        # A product with the mask keeps the NaN that some models compute at padding; to choose takes three times as long.
        sums = torch.stack([widened(stream).where(shown, 0).sum(-2) for stream in streams])
    return sums / counted.sum(-1)[:, None]


def _last_of(streams: Iterable[Tensor], counted: Tensor) -> Tensor:
    return torch.stack([widened(stream[:, -1]) for stream in streams])  # padding is on the left


def widened(tensor: Tensor) -> Tensor:
    """Return a tensor in float32, or as it is if it is wider: in half precision sums lose digits."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _vectors(pooled: object, batch: int) -> Tensor:
    """Return what a function of the user's made of a stream that is finite, if it is so too, and has a place for each text."""
    if not isinstance(pooled, Tensor) or pooled.dim() not in (2, 3) or pooled.shape[1] != batch:
        found = tuple(pooled.shape) if isinstance(pooled, Tensor) else type(pooled).__name__
        raise InputError(
            f"pool= gave {found}: it has to give a tensor (layers, {batch} texts of a batch, d_model)"
        )
    if not pooled.isfinite().all():
        raise InputError("pool= gave what is infinite or NaN: it has to give a finite vector for every text")
    return pooled


def mean_norms(model: LiveModel, texts: Sequence[str], *, start: int = 1, batch_size: int = 32) -> Tensor:
    """Return the mean L2 norm of the residual stream over tokens, at layers 0 … n_layers: float32 (n_layers + 1,)."""
    total = torch.zeros(model.n_layers + 1, dtype=torch.float64)
    count = 0
    for part in stream_residuals(model, texts, batch_size=batch_size):
        counted = part.counted(start)
        norms = torch.stack([stream.float().norm(dim=-1) for stream in part.by_layer])
        total += norms.where(counted, 0).sum((-1, -2)).cpu().double()
        count += int(counted.sum())
    return (total / count).float()
