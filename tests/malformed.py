"""Malformed input, made by rule: what is done to a clean file, and what has to come of it.

A `Case` writes its input into a folder and says which command, or which call, is to read it. `judge` runs it as the command
line does and gives "refused" (exit status 2, one line, nothing written) or "right" (accepted, and the outcome is what the case
says). Anything else is an AssertionError: a traceback, a hang, a wrong answer. The inputs are in `malformed_corpora`,
`malformed_artefacts` and `malformed_folders`; `benchmarks/hostile.py` runs them all.
"""

from __future__ import annotations

import contextlib
import io
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from small_study import small_model

from emoprobe import cli
from emoprobe.errors import InputError

SECONDS = 60
"""After so long a case hangs."""
ROWS = [
    {
        "text": f"Day {number}: {'the sun came up' if number % 2 else 'the letter never came'}, and {number} of us sang.",
        "label": "glad" if number % 2 else "sad",
        "valence": f"{(number % 5) / 4 - 0.5:.2f}",
        "group": f"week {number % 6}",
    }
    for number in range(30)
]
COLUMNS = tuple(ROWS[0])


@dataclass(frozen=True)
class Place:
    """Where a case may write, `folder`, and where what is clean lies."""

    clean: Clean
    folder: Path

    def write(self, name: str, content: bytes | str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path


Action = Sequence[object] | Callable[[], object]
"""A command line without its first word, or a call of Python."""


@dataclass(frozen=True)
class Case:
    """An input: `build` writes it and returns what reads it; `right` says what must hold where it is accepted.

    Without `right` it has to be refused. `says` has to be part of what is then said.
    """

    name: str
    build: Callable[[Place], Action]
    right: Callable[[Place, Any], None] | None = None
    says: str = ""
    either: bool = False
    """Whether it may be refused although there is a right answer."""


class Clean:
    """Clean inputs in a folder: a model, a corpus; the rest is made by the modules that spoil it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def model(self) -> Path:
        live = small_model()
        live.underlying.save_pretrained(self.folder / "model")
        live.tokenizer.save_pretrained(self.folder / "model")
        return self.folder / "model"

    @cached_property
    def corpus(self) -> Path:
        path = self.folder / "days.csv"
        pd.DataFrame(ROWS).to_csv(path, index=False)
        return path

    @cached_property
    def probes(self) -> Path:
        path = self.folder / "probes.safetensors"
        assert cli.main(fit(self, self.corpus, path)) == 0
        return path


def fit(clean: Clean, corpus: object, output: Path) -> list[str]:
    command = ["fit", clean.model, corpus, "-o", output, "--layers", "1,3", "--folds", "2"]
    return [str(part) for part in (*command, "--estimator", "mean_difference")]


@contextlib.contextmanager
def no_longer_than(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise AssertionError(f"hangs: not done in {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def judge(case: Case, place: Place) -> str:
    """Run a case; return "refused" or "right", or raise AssertionError with what was seen."""
    before = _files(place.folder.parent)
    action = case.build(place)
    made = _files(place.folder.parent)
    with no_longer_than(SECONDS):
        status, out, error = _called(action) if callable(action) else _typed(action)
    seen = f"{case.name}: status {status}\n{error}"
    told = [line for line in error.splitlines() if line and not line.startswith("emoprobe: warning: ")]
    if status == cli.BAD_INPUT:
        assert case.right is None or case.either, f"refused: {seen}"
        assert len(told) == 1 and told[0].startswith("emoprobe: "), seen
        assert len(told[0]) < 1500, f"a line of {len(told[0])} characters: {seen[:300]}"
        assert case.says in told[0], f"does not say {case.says!r}: {seen}"
        assert _files(place.folder.parent) == made, f"left something behind: {seen}"
        return "refused"
    assert status == 0 and not told, seen
    assert case.right is not None, f"accepted: {seen}"
    outside = {path for path in _files(place.folder.parent) - before if place.folder not in path.parents}
    assert not outside, f"wrote {outside}"
    case.right(place, out)
    return "right"


def _files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.is_dir()}


def _typed(arguments: Sequence[object]) -> tuple[int, Any, str]:
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        status = cli.main([str(argument) for argument in arguments])
    return status, out.getvalue(), error.getvalue()


def _called(call: Callable[[], object]) -> tuple[int, Any, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return 0, call(), ""
        except InputError as error:
            return cli.BAD_INPUT, None, f"emoprobe: {error}\n"


def cases() -> list[Case]:
    """Return all cases, each by a name of its own."""
    import malformed_artefacts
    import malformed_corpora
    import malformed_folders

    every = [*malformed_corpora.cases(), *malformed_artefacts.cases(), *malformed_folders.cases()]
    names = [case.name for case in every]
    assert len(set(names)) == len(names), "a name is there twice"
    return every
