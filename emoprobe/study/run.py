"""The main job: all experiments on one model and one corpus, in a folder that keeps what is done.

    study = emoprobe.run_study("gpt2", "emobank")

Each step reads what earlier ones left in the folder, so that a study taken up again goes on from the very same bits.
"""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping
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
from emoprobe.corpora import Corpus, load_corpus
from emoprobe.corpora.tables import SUFFIXES
from emoprobe.models import LiveModel, load_model
from emoprobe.probes import fit_probes, load_probes
from emoprobe.report import render
from emoprobe.study.folder import RunFolder
from emoprobe.study.geometry import geometry
from emoprobe.study.injecting import injecting
from emoprobe.study.learning import learning
from emoprobe.study.probing import probing
from emoprobe.study.reading import reading
from emoprobe.study.result import Result
from emoprobe.study.sentences import sentences
from emoprobe.study.steering import steering
from emoprobe.study.texts import divide, valuation_dimensions
from emoprobe.study.valuing import valuing
from emoprobe.valattn import Valuation

PERMUTATIONS = 5
SMALL = 20_000_000
"""Parameters up to which one thread is best."""
PACKAGES = ("torch", "transformers", "datasets", "scikit-learn", "numpy", "scipy", "pandas", "matplotlib")
GROUND_TRUTH = "ground-truth"
PAIRS = (("bundled", "passages"), (GROUND_TRUTH, GROUND_TRUTH))
"""Models and corpora of the package that go together: one name says both."""
PROBES, PROBED, LEARNED = (
    "probes.safetensors",
    "valuation-probed.safetensors",
    "valuation-learned.safetensors",
)

Step = Callable[[], Result]


def run_study(
    model: str | Path | LiveModel = "bundled",
    corpus: str | Path | Corpus = "bundled",
    out: str | Path | None = None,
    *,
    limit: int | None = None,
    seed: int = 0,
    resume: bool = True,
    progress: bool = True,
    command: str | None = None,
) -> Study:
    """Run every experiment on a model and a corpus, and leave the record, with a report, in the folder `out`.

    `model` and `corpus` are what `load_model` and `load_corpus` take, or what they return. `out` is by default
    runs/<model>-<corpus>, or runs/bundled and runs/ground-truth for those two. With model and corpus "ground-truth", whose
    emotions are known to be there, finding them is checked. At most `limit` texts are used (default 3,000). A study that was
    begun in the same folder is gone on with, unless `resume` is False: then it is begun again. `command` is how the study was
    asked for, for the record. What is done stays done when the run is interrupted.

    Raises `InputError` for a model or corpus that cannot be loaded, one too small to hold groups out, and for a folder that
    holds something else or cannot be written.
    """
    with _Display(progress) as display:
        display.begin("loading")
        texts = corpus if isinstance(corpus, Corpus) else _corpus(corpus, limit, seed)
        fitted, held_out = divide(texts, limit, seed)
        live = model if isinstance(model, LiveModel) else load_model(model)
        folder = RunFolder.start(
            out or _folder_name(live, texts),
            _identity(live, texts, limit, seed),
            _about(live, texts, fitted, held_out, command or _call(model, corpus, out, limit, seed), seed),
            resume=resume,
        )
        display.done(
            f"{live.name} and {texts.name}: {len(fitted):,} texts to fit on, {len(held_out):,} held out"
        )
        kept = folder.done
        results = []
        with _threads(live):
            for name, step in _steps(folder, live, fitted, held_out, seed):
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


def _steps(
    folder: RunFolder, model: LiveModel, fitted: Corpus, held_out: Corpus, seed: int
) -> Iterator[tuple[str, Step]]:
    """Yield the steps in order; what a later one needs of an earlier one is read from the folder."""
    recovery = model.name == fitted.name == GROUND_TRUTH

    def probe() -> Result:
        found = fit_probes(model, fitted, permutations=PERMUTATIONS, seed=seed, progress=False)
        found.save(folder.path / PROBES)
        return probing(found, recovery=recovery)

    yield "probing", probe
    probes = load_probes(folder.path / PROBES)
    dimensions = [name for name in valuation_dimensions(fitted) if name in probes]

    def value() -> Result:
        probed = Valuation.from_probes(probes, dimensions)
        probed.save(folder.path / PROBED)
        return valuing(model, probed, held_out, seed=seed)

    yield "reading", lambda: reading(model, probes, held_out, dimensions, seed=seed)
    yield "geometry", lambda: geometry(model, probes, fitted, seed=seed)
    yield "valuing", value
    probed = Valuation.load(folder.path / PROBED)
    yield "injecting", lambda: injecting(model, probed, probes, held_out, seed=seed)
    yield "steering", lambda: steering(model, probes, held_out, recovery=recovery, seed=seed)
    yield "learning", lambda: learning(model, fitted, held_out, probed, keep=folder.path / LEARNED, seed=seed)
    yield "sentences", lambda: sentences(model, probes, seed=seed)


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


# The record ----------------------------------------------------------------------------------------------------------


def _corpus(source: str | Path, limit: int | None, seed: int) -> Corpus:
    generated = str(source) == GROUND_TRUTH
    return load_corpus(source, limit=limit if generated else None, seed=seed)


def _folder_name(model: LiveModel, corpus: Corpus) -> Path:
    name = re.sub(rf"({'|'.join(map(re.escape, SUFFIXES))})$", "", corpus.name)
    parts = [model.name] if (model.name, name) in PAIRS else [model.name, name]
    return Path("runs") / "-".join(
        re.sub(r"[^\w.-]+", "-", Path(part).name).strip("-.") or "model" for part in parts
    )


def _identity(model: LiveModel, corpus: Corpus, limit: int | None, seed: int) -> dict[str, Any]:
    """Return what makes two studies the same."""
    return {
        "model": model.fingerprint(),
        "dtype": str(model.dtype),
        "corpus": corpus.fingerprint,
        "limit": limit,
        "seed": seed,
        "emoprobe": emoprobe.__version__,
    }


def _about(
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


def _call(model: object, corpus: object, out: object, limit: int | None, seed: int) -> str:
    """Write down the call as it would be typed; what is no name is named in angle brackets."""

    def written(value: object) -> str:
        return repr(str(value)) if isinstance(value, str | Path) else f"<{getattr(value, 'name', value)}>"

    options = {"out": out and written(out), "limit": limit, "seed": seed}
    given = [
        written(model),
        written(corpus),
        *(f"{key}={value}" for key, value in options.items() if value is not None),
    ]
    return f"emoprobe.run_study({', '.join(given)})"


# The display ---------------------------------------------------------------------------------------------------------


class _Display:
    """Show which step runs and for how long, and leave a line for each that is done."""

    def __init__(self, wanted: bool) -> None:
        self._console = Console(stderr=True, quiet=not wanted, highlight=False)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self._progress = Progress(*columns, console=self._console, transient=True)
        self._task = self._progress.add_task("")
        self._name, self._begun = "", 0.0

    def __enter__(self) -> _Display:
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
