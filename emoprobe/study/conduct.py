"""Conducting a study: its steps one after another, its record, what it shows on the way, and what is left of it.

Each step is done once: its result is kept in the run folder, and a study taken up again goes on from there. This file knows
nothing of which experiments there are.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jinja2 import TemplateError
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text
from threadpoolctl import threadpool_limits

import emoprobe
from emoprobe import drawing
from emoprobe.artefacts import versions, write_bytes
from emoprobe.bars import bars
from emoprobe.corpora import Corpus
from emoprobe.errors import InputError
from emoprobe.models import LiveModel
from emoprobe.notebook import shown
from emoprobe.redaction import redacted
from emoprobe.report import render
from emoprobe.report.html import duration, missing
from emoprobe.study.folder import RunFolder
from emoprobe.study.result import OUTCOMES, PARTLY, Result

SMALL = 20_000_000
"""Parameters up to which one thread is best."""
PACKAGES = ("torch", "transformers", "datasets", "scikit-learn", "numpy", "scipy", "pandas", "matplotlib")

DRAWN = {
    OUTCOMES[-1]: drawing.RED,
    OUTCOMES[0]: drawing.CONTROL,
    PARTLY: drawing.SKY,
    OUTCOMES[1]: drawing.BLUE,
}
"""Outcomes as a study's figure has them side by side, and their colours."""

Step = Callable[[], Result]


def conduct(
    display: Display, folder: RunFolder, model: LiveModel, steps: Iterable[tuple[str, Step]], seed: int
) -> Study:
    """Do the steps that are not done yet, in order, and write the report. Each step begins with the same seed.

    The first step leaves what all others stand on: once it is done, they are known, and the record says which they are.
    """
    kept = folder.done
    results = []

    def do(name: str, step: Step) -> None:
        display.begin(name)
        torch.manual_seed(seed)
        results.append(folder.step(name, step))
        display.done(results[-1].finding + (" (kept)" if name in kept else ""), results[-1].passed)

    with _threads(model):
        remaining = iter(steps)
        for first in islice(remaining, 1):
            do(*first)
        others = list(remaining)
        folder.plan([*(result.name for result in results), *(name for name, _ in others)])
        for name, step in others:
            do(name, step)
    display.begin("report")
    study = Study(folder.path, tuple(results), folder.manifest)
    display.done(str(study.write_report()))
    return study


@contextmanager
def _threads(model: LiveModel) -> Iterator[None]:
    """Keep to one thread where the model is so small that more gain nothing, and lose much where cores are shared."""
    if _parameters(model) > SMALL or model.device.type != "cpu":
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


# The outcome ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class Study:
    """A finished study: its folder, its results and its record. `run_study` makes one, `load_study` reads one."""

    folder: Path
    results: tuple[Result, ...]
    manifest: Mapping[str, Any]

    @property
    def passed(self) -> bool:
        """Whether every check of every experiment held."""
        return all(result.passed for result in self.results)

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the experiments that are still to be done, where that is on record."""
        return missing(self.manifest, self.names)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the experiments."""
        return tuple(result.name for result in self.results)

    def __getitem__(self, name: str) -> Result:
        """Return the result of an experiment. Raises `InputError` where there is none of that name."""
        if name not in self.names:
            raise InputError(f'no result "{name}": there are {", ".join(self.names)}')
        return self.results[self.names.index(name)]

    def write_report(self) -> Path:
        """Write report.html anew and return where it is."""
        return write_bytes(self.folder / "report.html", render(self.results, self.manifest).encode())

    def __repr__(self) -> str:
        lines = [f"  {result.name}: {result.finding} ({result.controls})" for result in self.results]
        state = "all software checks held" if self.passed else "SOME CHECKS FAILED"
        if self.missing:
            state += (
                f", UNFINISHED: {len(self.results)} of {len(self.results) + len(self.missing)} experiments"
            )
        return "\n".join([f"<Study of {self.manifest.get('title')}, {state}, in {self.folder}>", *lines])

    @property
    def frame(self) -> pd.DataFrame:
        """One row per experiment: name, title, finding, controls, verdict, passed, sign, outcome (see `Result`)."""
        columns = ["name", "title", "finding", "controls", "verdict", "passed", "sign", "outcome"]
        rows = [[getattr(result, column) for column in columns] for result in self.results]
        return pd.DataFrame(rows, columns=columns).astype({"sign": "Int64"})

    def plot(self) -> Figure:
        """Draw how each experiment's question is answered: one mark a row, and none where it was not asked."""
        with drawing.styled():
            figure, axes = drawing.panels(height=0.9 + 0.25 * len(self.results))
            axis = axes[0, 0]
            for place, (outcome, colour) in enumerate(DRAWN.items()):
                rows = self.frame.index[self.frame["outcome"] == outcome]
                axis.plot([place] * len(rows), rows, "o", color=colour, label=outcome)
            axis.set_xticks(range(len(DRAWN)), list(DRAWN))
            axis.set_yticks(self.frame.index, self.frame.title, parse_math=False)
            axis.set(xlim=(-0.5, len(DRAWN) - 0.5), ylim=(len(self.results) - 0.5, -0.5))
            axis.grid(axis="y", color=drawing.INK, alpha=0.2)
        return figure

    def _repr_html_(self) -> str:
        where = f"Study of {self.manifest.get('title')}; report: {self.folder / 'report.html'}"
        return shown(where, self.plot(), self.frame.drop(columns=["name", "verdict"]))


def load_study(path: str | Path) -> Study:
    """Read the folder of a study, finished or not. Raises `InputError` where there is none or where it is damaged."""
    folder = RunFolder.open(path)
    study = Study(folder.path, tuple(folder.load(name) for name in folder.done), folder.manifest)
    try:
        render((), study.manifest)  # results have been looked at one by one
    except (TemplateError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InputError(
            f'"{path}" is damaged, it lacks what a report shows ({error}): give another folder'
        ) from error
    return study


# The record ---------------------------------------------------------------------------------------------------------


def identity(model: LiveModel, corpus: Corpus, limit: int | None, seed: int) -> dict[str, Any]:
    """Return what makes two studies the same."""
    return {
        "model": model.fingerprint(),
        "dtype": str(model.dtype),
        "corpus": corpus.fingerprint,
        "limit": limit,
        "seed": seed,
        "emoprobe": emoprobe.__version__,
    }


def about(
    model: LiveModel, corpus: Corpus, fitted: Corpus, held_out: Corpus, command: str, seed: int
) -> dict[str, Any]:
    return {
        "title": f"{Path(model.name).name if os.path.isabs(model.name) else model.name} on {corpus.name}",
        "command": redacted(command),
        "begun": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "seed": seed,
        "model": {
            "name": model.name,
            "backend": model.backend,
            "blocks": model.n_layers,
            "width": model.d_model,
            "heads": model.n_heads,
            "parameters": _parameters(model),
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.device),
        },
        "corpus": {
            "name": corpus.name,
            "texts": len(corpus),
            "groups": len(np.unique(corpus.groups)),
            "fitted_on": len(fitted),
            "held_out": len(held_out),
            "labels": list(corpus.labels),
            "dimensions": {name: list(bounds) for name, bounds in corpus.dimensions.items()},
        },
        "versions": {
            "python": platform.python_version(),
            "emoprobe": emoprobe.__version__,
            **versions(PACKAGES),
        },
        "hardware": {
            "system": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "accelerator": torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else None,
        },
    }


def _parameters(model: LiveModel) -> int:
    return sum(weight.numel() for _, weight in model.named_weights())


# The display ---------------------------------------------------------------------------------------------------------


class Display:
    """Show which step runs, for how long and until when, about, and leave a line for each that is done."""

    def __init__(self, wanted: bool) -> None:
        self._console = Console(stderr=True, quiet=not wanted, highlight=False)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self._progress = bars(wanted, *columns, console=self._console)
        self._task = self._progress.add_task("")
        self._name, self._begun = "", 0.0
        self._expected: dict[str, float] = {}

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Say from now on of each of these steps how long it will take, and how long all that are left."""
        self._expected = dict(seconds)

    def begin(self, name: str) -> None:
        self._name, self._begun = name, time.perf_counter()
        about, left = self._expected.get(name), sum(self._expected.values())
        told = "" if about is None else f", about {duration(about)}, and {duration(left)} to the end"
        self._progress.reset(self._task, description=f"{name}{told}")
        if not self._console.is_terminal:  # where no spinner turns, long steps would look like a standstill
            self._console.print(f"… {name}, begun {time.strftime('%H:%M:%S')}{told}")

    def done(self, outcome: str, passed: bool = True) -> None:
        took = f"{time.perf_counter() - self._begun:.1f} s"
        self._expected.pop(self._name, None)
        line = Table.grid(padding=(0, 2, 0, 0))
        for options in ({"width": 1}, {"width": 10}, {"width": 8, "justify": "right", "style": "dim"}, {}):
            line.add_column(**options)
        mark = Text("✓", "green") if passed else Text("✗", "red")
        line.add_row(mark, self._name, took, Text(outcome))
        self._console.print(line)
