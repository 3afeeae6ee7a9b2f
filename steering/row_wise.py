"""Measures that read each row of a forward pass by itself, so that several runs can share their passes.

Such a measure is a generator function: it yields what is to be run and on which batch, is sent what comes out, and returns
its named values. Who runs its passes is left open: `run_alone` runs them one by one, `run_together` those of several runs at
once, each in its own block of rows under its own interventions. The measure cannot tell which.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from emoprobe.errors import InputError
from emoprobe.interventions import Intervention
from emoprobe.models import Batch, LiveModel
from emoprobe.side_by_side import side_by_side

T = TypeVar("T")
Passes: TypeAlias = Generator[tuple[Callable[[Batch], Tensor], Batch], Tensor, T]
"""Yields a reader and a batch, such as `model.forward` and `model.tokenize(prompts)`, and is sent reader(batch), without
gradients, whose first dimension is the batch's rows."""
POSITIONS = 2048
"""Positions up to which the runs of `run_together` are put into one pass: those of 32 texts of 64 tokens."""


class RowWise:
    """A measure out of a generator function of model and prompts, to be called like any other; see `Passes`.

        @RowWise
        def surprise(model, prompts):
            batch = model.tokenize(prompts)
            logits = yield model.forward, batch
            return {"surprise": -logits[:, -1].log_softmax(-1)[:, 0]}

    Its values have to depend on what it is sent row by row, and what it yields not at all. `run_together` begins it inside its
    run's interventions, for what it refuses; later they are in place only where a pass is run.
    """

    def __init__(self, passes: Callable[[LiveModel, Sequence[str]], Passes[dict[str, Tensor]]]) -> None:
        self.passes = passes

    def __call__(self, model: LiveModel, prompts: Sequence[str]) -> dict[str, Tensor]:
        return run_alone(self.passes(model, prompts))


def run_alone(passes: Passes[T]) -> T:
    """Run passes one after another as the model stands, and return what they lead to."""
    answer = None
    while True:
        try:
            reader, batch = next(passes) if answer is None else passes.send(answer)
        except StopIteration as end:
            value: T = end.value
            return value
        with torch.no_grad():
            answer = reader(batch)


def run_together(
    model: LiveModel, begin: Callable[[], Passes[T]], runs: Sequence[Sequence[Intervention]]
) -> list[T]:
    """Return what passes lead to under the interventions of each of `runs`, which share forward passes.

    As many runs go into one pass as keep it within `POSITIONS`, and at least one. Raises `InputError` where runs ask for
    different batches.
    """
    passes = [begin() for _ in runs]
    asked: dict[int, tuple[Callable[[Batch], Tensor], Batch]] = {}
    found: dict[int, T] = {}

    def go_on(run: int, answer: Tensor | None = None) -> None:
        asked.pop(run, None)
        try:
            asked[run] = next(passes[run]) if answer is None else passes[run].send(answer)
        except StopIteration as end:
            found[run] = end.value

    for run, interventions in enumerate(runs):
        with model.intervene(*interventions):
            go_on(run)
    while asked:
        reader, batch = asked[min(asked)]
        if len(asked) < len(runs) or not all(_same(batch, other) for _, other in asked.values()):
            raise InputError("a row-wise measure has to ask for the same passes whatever the model says")
        # Interventions around these runs may be meant for single prompts, whose rows would stand elsewhere.
        size = 1 if model.interventions else max(1, POSITIONS // batch.input_ids.numel())
        for first in range(0, len(runs), size):
            group = range(first, min(first + size, len(runs)))
            with model.intervene(*side_by_side([runs[run] for run in group])), torch.no_grad():
                answers = reader(batch.repeated(len(group))).chunk(len(group))
            for run, answer in zip(group, answers, strict=True):
                go_on(run, answer)
    return [found[run] for run in range(len(runs))]


def _same(one: Batch, other: Batch) -> bool:
    return torch.equal(one.input_ids, other.input_ids) and torch.equal(one.real, other.real)
