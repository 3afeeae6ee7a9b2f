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
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text
from threadpoolctl import threadpool_limits

import emoprobe
from emoprobe.artefacts import versions, write_bytes
from emoprobe.corpora import Corpus
from emoprobe.models import LiveModel
from emoprobe.report import render
from emoprobe.study.folder import RunFolder
from emoprobe.study.result import Result

SMALL = 20_000_000
"""Parameters up to which one thread is best."""
PACKAGES = ("torch", "transformers", "datasets", "scikit-learn", "numpy", "scipy", "pandas", "matplotlib")

Step = Callable[[], Result]


def conduct(
    display: Display, folder: RunFolder, model: LiveModel, steps: Iterable[tuple[str, Step]], seed: int
) -> Study:
    """Do the steps that are not done yet, in order, and write the report. Each step begins with the same seed."""
    kept = folder.done
    results = []
    with _threads(model):
        for name, step in steps:
            display.begin(name)
            torch.manual_seed(seed)
            results.append(folder.step(name, step))
            display.done(results[-1].finding + (" (kept)" if name in kept else ""), results[-1].passed)
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

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the experiments."""
        return tuple(result.name for result in self.results)

    def __getitem__(self, name: str) -> Result:
        """Return the result of an experiment. Raises `InputError` where there is none of that name."""
        if name not in self.names:
            raise emoprobe.InputError(f'no result "{name}": there are {", ".join(self.names)}')
        return self.results[self.names.index(name)]

    def write_report(self) -> Path:
        """Write report.html anew and return where it is."""
        return write_bytes(self.folder / "report.html", render(self.results, self.manifest).encode())

    def __repr__(self) -> str:
        lines = [f"  {result.name}: {result.finding} ({result.controls})" for result in self.results]
        state = "all checks held" if self.passed else "SOME CHECKS FAILED"
        return "\n".join([f"<Study of {self.manifest.get('title')}, {state}, in {self.folder}>", *lines])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{escape(r.title)}</td><td>{escape(r.finding)}</td><td>{escape(r.controls)}</td>"
            f"<td>{'✓' if r.passed else '✗'}</td></tr>"
            for r in self.results
        )
        return (
            f"<p>Study of {escape(str(self.manifest.get('title')))}; report: <code>{escape(str(self.folder / 'report.html'))}"
            f"</code></p><table><tr><th>experiment</th><th>finding</th><th>controls</th><th>checks</th></tr>{rows}</table>"
        )


def load_study(path: str | Path) -> Study:
    """Read the folder of a study, finished or not. Raises `InputError` where there is none or where it is damaged."""
    folder = RunFolder.open(path)
    return Study(folder.path, tuple(folder.load(name) for name in folder.done), folder.manifest)


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
        "title": f"{model.name} on {corpus.name}",
        "command": command,
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
    """Show which step runs and for how long, and leave a line for each that is done."""

    def __init__(self, wanted: bool) -> None:
        self._console = Console(stderr=True, quiet=not wanted, highlight=False)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self._progress = Progress(*columns, console=self._console, transient=True)
        self._task = self._progress.add_task("")
        self._name, self._begun = "", 0.0

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def begin(self, name: str) -> None:
        self._name, self._begun = name, time.perf_counter()
        self._progress.reset(self._task, description=name)

    def done(self, outcome: str, passed: bool = True) -> None:
        took = f"{time.perf_counter() - self._begun:.1f} s"
        line = Table.grid(padding=(0, 2, 0, 0))
        for options in ({"width": 1}, {"width": 10}, {"width": 8, "justify": "right", "style": "dim"}, {}):
            line.add_column(**options)
        mark = Text("✓", "green") if passed else Text("✗", "red")
        line.add_row(mark, self._name, took, Text(outcome))
        self._console.print(line)
