"""The same work on many GPUs and hosts: live models in Ray actors, which are given pieces of a corpus or of a sweep.

    with ep.ray_workers("gpt2", 8, gpus=1) as workers:
        store_activations(model, texts, "activations", workers=workers)

Functions that take `workers` cut their work into pieces whose results add up, and give the numbers that they give without.
Pieces are handed out as workers become free and two ahead, so that texts may stream and memory does not grow with their number;
results are taken in the order of the pieces, so that they do not depend on which worker was faster. A worker that dies is
replaced, and what it was at is done again.
"""

from __future__ import annotations

import logging
import operator
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from emoprobe.errors import InputError
from emoprobe.extras import check_ray

if TYPE_CHECKING:
    from emoprobe.models.live import LiveModel

Item = TypeVar("Item")
Result = TypeVar("Result")
TRIES = 3
"""How often a piece is given to a new worker after it, or chance, has killed one."""
AHEAD = 2
"""Pieces that each worker is given at once: one to work on and one to go on with."""


@contextmanager
def ray_workers(
    model: str | Callable[[], LiveModel],
    workers: int = 2,
    *,
    cpus: float = 1,
    gpus: float = 0,
    address: str | None = None,
    **options: Any,
) -> Iterator[RayWorkers]:
    """Start `workers` processes, each with a live model of its own, and end them with the block.

    `model` is what `ep.load_model` takes, with its `options`, or a function that returns a live model. Each worker is given
    `cpus` threads and `gpus` (a fraction lets several share one; above 1, give `device_map="auto"`). `address` is that of a
    Ray cluster, whose hosts need this package and the model; without, Ray is started here, if it is not running. Raises
    `InputError` without Ray (`pip install 'emoprobe[ray]'`) and for fewer workers than one.
    """
    check_ray()
    if workers < 1:
        raise InputError(f"workers={workers}: give at least 1")
    import ray

    began = not ray.is_initialized()
    if began:
        ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield RayWorkers(partial(_load, model, options, gpus > 0), workers, cpus, gpus)
    finally:
        if began:
            ray.shutdown()


class RayWorkers:
    """Live models in Ray actors. `ray_workers` starts them."""

    def __init__(self, load: Callable[[], LiveModel], workers: int, cpus: float, gpus: float) -> None:
        import ray

        kind = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=-1, max_task_retries=TRIES)(_Worker)
        self._workers: list[Any] = [kind.remote(load, max(1, int(cpus))) for _ in range(workers)]

    def check_model(self, model: LiveModel) -> None:
        """Raise `InputError` where a worker's model is of another shape, and warn of other weights, dtype or vocabulary."""
        import ray

        wanted = _identity(model, None)
        with _told():
            found = ray.get([worker.run.remote(_identity, None) for worker in self._workers])
        for shape, fingerprint in found:
            if shape != wanted[0]:
                raise InputError(
                    f"the workers' model has {shape[0]} blocks of width {shape[1]}, {model.name} {wanted[0][0]} of "
                    f"{wanted[0][1]}: start workers with the same model"
                )
            if fingerprint != wanted[1]:
                warnings.warn(
                    f"the workers' model differs from {model.name} in weights, their dtype or vocabulary, and what it gives "
                    f"is taken for that of {model.name}",
                    stacklevel=3,
                )
                return

    def map(self, function: Callable[[LiveModel, Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield `function(model, item)` for each item, in order. Raises what the function raises."""
        import ray

        for reference in self._references(function, items):
            with _told():
                found: Result = ray.get(reference)
            yield found

    def total(
        self,
        function: Callable[[LiveModel, Item], Result],
        items: Iterable[Item],
        add: Callable[[Result, Result], Result] = operator.add,
    ) -> Result:
        """Return the sum of `function(model, item)` over the items, of which there is at least one.

        Results are added in a tree, two and two, on whatever host has room: of n of them no more than log2(n) are kept.
        """
        import ray

        added = ray.remote(num_cpus=0)(_added)
        sums: list[tuple[int, Any]] = []  # heights of trees that are full, each lower than the one before it
        for reference in self._references(function, items):
            height = 0
            while sums and sums[-1][0] == height:
                reference, height = added.remote(add, sums.pop()[1], reference), height + 1
            sums.append((height, reference))
        if not sums:
            raise InputError("nothing was given to work on")
        whole = sums.pop()[1]
        while sums:
            whole = added.remote(add, sums.pop()[1], whole)
        with _told():
            found: Result = ray.get(whole)
        return found

    def _references(self, function: Callable[..., Any], items: Iterable[Any]) -> Iterator[Any]:
        """Yield Ray's references of the results, done or not, in the items' order, no more than AHEAD a worker undone."""
        import ray

        placed, rest = ray.put(function), iter(items)
        busy: dict[Any, Any] = {}  # reference -> its worker
        idle = [worker for worker in self._workers for _ in range(AHEAD)]
        while True:
            given = list(islice(rest, len(idle)))
            for item in given:
                worker = idle.pop(0)
                reference = worker.run.remote(placed, item)
                busy[reference] = worker
                yield reference
            if not given:
                return
            done, _ = ray.wait(list(busy))
            idle += [busy.pop(reference) for reference in done]


class _Worker:
    """What lives in an actor: a model, and nothing else that is kept from one piece to the next."""

    def __init__(self, load: Callable[[], LiveModel], threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._model = load()

    def run(self, function: Callable[[LiveModel, Any], Any], item: Any) -> Any:
        return function(self._model, item)


def _identity(model: LiveModel, item: None) -> tuple[tuple[int, int], str]:
    return (model.n_layers, model.d_model), model.fingerprint()


def _added(add: Callable[[Any, Any], Any], one: Any, other: Any) -> Any:
    return add(one, other)


def _load(model: str | Callable[[], LiveModel], options: dict[str, Any], on_gpu: bool) -> LiveModel:
    from emoprobe.models import load_model

    if callable(model):
        return model()
    if on_gpu and not (options.get("device") or options.get("device_map")):
        options = {**options, "device": "cuda"}
    return load_model(model, **options)


@contextmanager
def _told() -> Iterator[None]:
    """Let what a worker raised come out as it was raised there, and say when workers died."""
    from ray.exceptions import RayError, RayTaskError

    try:
        yield
    except RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from None
    except RayError as error:
        raise InputError(
            f"a piece of the work ended {TRIES + 1} workers one after another, or none could load the model ({error}): give "
            "each more memory, smaller batches or fewer workers"
        ) from None
