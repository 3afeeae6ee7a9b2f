"""Training a few tensors while everything else stands still.

What is trained is given as leaf tensors by name, what it is trained for as a function from rows of some training set to a
loss; this file knows nothing of models, texts or valuations. Batches, learning rates and the order of rows are functions of
the seed and the step, so that a run that was broken off goes on from its checkpoint as if nothing had happened.

Under `accelerate launch` each process takes its part of every batch, and gradients are averaged; there is nothing else to do
but to load the model on each process's own device.

Method: AdamW (Loshchilov & Hutter 2019) without decay, a linear warm-up and half a cosine, gradients clipped to norm 1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env, reduce
from torch import Tensor

from emoprobe.artefacts import read_artefact, write_artefact
from emoprobe.bars import bars
from emoprobe.checks import check_record, check_tensors, reading
from emoprobe.errors import InputError

CHECKPOINT, VERSION = "training checkpoint", 1
WARM_UP = 0.1
"""Share of the steps in which the learning rate rises."""
CLIP = 1.0
MEASUREMENTS = 20
"""How often, in a whole run, the held-out loss is measured and a checkpoint written."""
WINDOW = 16
"""Batches whose rows are sorted by length together: enough to save padding, few enough to mix."""

Loss: TypeAlias = Callable[[Sequence[int]], Tensor]


@dataclass(eq=False)
class History:
    """What a training went through.

    `losses` holds the loss of each step's batch, before the step; `validation` pairs of a step and the held-out loss after so
    many steps, the start (0) among them; `paths` watched tensors after each step, the start first: (steps + 1, …). `best` is
    the number of steps after which the tensors were what they are now: the last one, or that of the least held-out loss.
    """

    losses: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    paths: dict[str, Tensor] = field(default_factory=dict)
    best: int = 0


def train(
    parameters: Mapping[str, Tensor],
    loss: Loss,
    lengths: Sequence[int],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    validate: Callable[[], float] | None = None,
    patience: int = 5,
    watch: Sequence[str] = (),
    checkpoint: str | Path | None = None,
    identity: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> History:
    """Minimise the mean of `loss` over rows 0 … len(lengths) - 1, changing `parameters` in place.

    `loss` gets the rows of a batch, rows of like `lengths` together, and returns a scalar that carries gradients. With
    `validate`, a function that returns the held-out loss, the run stops once that has not fallen for `patience` measurements
    (20 in a whole run), and the tensors of the least one are given back. `watch` names tensors whose path is recorded.

    `checkpoint` is a file from which a run that was broken off goes on, to the same end; `identity` is what else, beside the
    settings here, must be the same for that, as JSON takes it. Raises `InputError` for the checkpoint of another run, for rows
    or settings with which nothing can be trained, and where the loss is no longer finite.
    """
    state = _processes()
    _check(lengths, steps, batch_size, learning_rate, state.num_processes)
    settings = {
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "rows": [len(lengths), sum(lengths)],
        "patience": None if validate is None else patience,
        "seed": seed,
        **(identity or {}),
    }
    run, resumed = _Run(parameters, watch), None
    if checkpoint is not None and Path(checkpoint).is_file():
        run.restore(checkpoint, settings)
        resumed = run.step
    every = max(1, steps // MEASUREMENTS)
    with bars(progress and state.is_main_process) as bar:
        task = bar.add_task("learning", total=steps)
        while True:
            if (run.step % every == 0 or run.step == steps) and run.step != resumed:
                if validate is not None:
                    run.measure(validate)
                if checkpoint is not None and state.is_main_process:
                    run.save(checkpoint, settings)
            stalled = validate is not None and run.step - run.history.best >= patience * every
            if run.step == steps or stalled:
                break
            rows = batch_of(run.step, lengths, batch_size, seed)[state.process_index :: state.num_processes]
            run.take_step(loss(rows), learning_rate * rate(run.step, steps))
            bar.update(task, completed=run.step)
    return run.finished()


def rate(step: int, steps: int) -> float:
    """Return the learning rate of a step as a share of the highest: a rise over the first tenth, then half a cosine to 0."""
    rise = math.ceil(WARM_UP * steps)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / (steps - rise)))


def batch_of(step: int, lengths: Sequence[int], batch_size: int, seed: int) -> list[int]:
    """Return the rows of a step's batch: like lengths together, each row once in an epoch but for those left over."""
    size = min(batch_size, len(lengths))
    per_epoch = len(lengths) // size
    epoch, place = divmod(step, per_epoch)
    draw = np.random.default_rng([seed, epoch])
    order = draw.permutation(len(lengths))[: per_epoch * size]
    length = np.asarray(lengths)
    windows = np.split(order, range(WINDOW * size, len(order), WINDOW * size))
    by_length = np.concatenate([window[np.argsort(length[window], kind="stable")] for window in windows])
    batch: list[int] = by_length.reshape(per_epoch, size)[draw.permutation(per_epoch)[place]].tolist()
    return batch


class _Run:
    """The state of a training: everything that a checkpoint holds."""

    def __init__(self, parameters: Mapping[str, Tensor], watch: Sequence[str]) -> None:
        self.parameters = dict(parameters)
        self.optimiser = torch.optim.AdamW(self.parameters.values(), weight_decay=0.0)
        self.history = History()
        self.paths = {name: [self.parameters[name].detach().cpu().clone()] for name in watch}
        self.best: dict[str, Tensor] = {}

    @property
    def step(self) -> int:
        return len(self.history.losses)

    def take_step(self, loss: Tensor, learning_rate: float) -> None:
        mean = _mean(loss.detach().double()).item()
        if not math.isfinite(mean):
            raise InputError(
                f"the loss of step {self.step} is {mean}: give a lower learning rate, or start somewhere else"
            )
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for tensor in self.parameters.values():
            if tensor.grad is not None:
                tensor.grad = _mean(tensor.grad)
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), CLIP)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        self.optimiser.step()
        self.history.losses.append(mean)
        for name, path in self.paths.items():
            path.append(self.parameters[name].detach().cpu().clone())

    def measure(self, validate: Callable[[], float]) -> None:
        """Measure the held-out loss, and remember the tensors where it is the least so far."""
        with torch.no_grad():
            # Its mean over processes, so that all of them decide alike.
            held_out = _mean(torch.tensor(validate(), dtype=torch.float64)).item()
        if held_out < min((value for _, value in self.history.validation), default=math.inf):
            self.best = {name: tensor.detach().clone() for name, tensor in self.parameters.items()}
            self.history.best = self.step
        self.history.validation.append((self.step, held_out))

    def finished(self) -> History:
        """Give the best tensors back, and return the history."""
        self.history.paths = {name: torch.stack(path) for name, path in self.paths.items()}
        if not self.best:
            self.history.best = self.step
        _overwrite(self.parameters, self.best)
        return self.history

    def save(self, path: str | Path, settings: Mapping[str, Any]) -> None:
        """Write a checkpoint, whole or not at all."""
        moments = self.optimiser.state_dict()["state"]
        tensors = {f"now.{name}": tensor for name, tensor in self.parameters.items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        tensors |= {f"path.{name}": torch.stack(path) for name, path in self.paths.items()}
        tensors |= {
            f"{key}.{name}": moments[place][key]
            for place, name in enumerate(self.parameters)
            for key in moments.get(place, {})
        }
        history = self.history
        record = {"losses": history.losses, "validation": history.validation, "best": history.best}
        write_artefact(path, CHECKPOINT, VERSION, tensors, {"settings": dict(settings), **record})

    def restore(self, path: str | Path, settings: Mapping[str, Any]) -> None:
        """Take up a run where its checkpoint left it. Raises `InputError` for that of another run."""
        tensors, record = read_artefact(path, CHECKPOINT, VERSION)
        with reading(path, CHECKPOINT):
            check_record(record, {"settings": dict, "losses": [float], "validation": [list], "best": int})
            check_tensors(tensors)
            validation = [(int(step), float(value)) for step, value in record["validation"]]
            if not 0 <= record["best"] <= len(record["losses"]):
                raise InputError(f"best is {record['best']} of {len(record['losses'])} steps")
        asked = json.loads(json.dumps(settings))  # as it would have been read
        kept = record["settings"]
        others = [name for name in {**asked, **kept} if kept.get(name) != asked.get(name)]
        like = {
            f"{kind}.{name}": tensor
            for kind in ("now", "best")
            for name, tensor in self.parameters.items()
            if kind == "now" or f"best.{name}" in tensors
        }
        misfits = [
            name
            for name, tensor in like.items()
            if name not in tensors
            or (tensors[name].shape, tensors[name].dtype) != (tensor.shape, tensor.dtype)
        ]
        if others or misfits:
            raise InputError(
                f'"{path}" is the checkpoint of another run (it differs in {", ".join(others) or "its tensors"}): give another '
                "file, or delete this one to start anew"
            )
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, _, of = name.partition(".")
            parts.setdefault(kind, {})[of] = tensor
        _overwrite(self.parameters, parts.pop("now"))
        self.best = parts.pop("best", {})
        self.paths = {name: list(path.unbind()) for name, path in parts.pop("path", {}).items()}
        # What is left are the optimiser's moments, where a tensor has been moved at all.
        state = {
            place: {key: of[name] for key, of in parts.items() if name in of}
            for place, name in enumerate(self.parameters)
        }
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict(
            {"state": {k: v for k, v in state.items() if v}, "param_groups": groups}
        )
        self.history = History(record["losses"], validation, best=record["best"])


def _processes() -> PartialState:
    """Return what accelerate knows of the processes that this one is one of."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU", not torch.cuda.is_available()))


def _mean(tensor: Tensor) -> Tensor:
    """Return the mean over processes."""
    state = _processes()
    if state.num_processes == 1:
        return tensor
    mean: Tensor = reduce(tensor.to(state.device), "mean")  # between GPUs only what lies on them can travel
    return mean.to(tensor.device)


def _overwrite(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)


def _check(lengths: Sequence[int], steps: int, batch_size: int, learning_rate: float, processes: int) -> None:
    if not lengths:
        raise InputError("there is nothing to train on: give at least one text")
    if steps < 0 or batch_size < 1 or not learning_rate > 0:
        raise InputError(
            f"steps={steps}, batch_size={batch_size}, learning_rate={learning_rate}: give 0 or more steps, batches of at least "
            "one text, and a learning rate above 0"
        )
    size = min(batch_size, len(lengths))
    if size % processes:
        raise InputError(
            f"a batch of {size} cannot be shared evenly by {processes} processes: give a batch_size that is a multiple of it"
        )
