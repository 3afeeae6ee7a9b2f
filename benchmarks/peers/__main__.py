"""Run emoprobe and what users would pick instead side by side: the same weights, the same texts, the same results.

    python benchmarks/peers                  # everything, about a quarter of an hour; writes peers.json and peers.md
    python benchmarks/peers --again          # a second run, into peers_again.json: does the order hold?
    python benchmarks/peers --only steering  # some rows, the rest as it is kept
    python benchmarks/peers --quick          # a minute or two: reports which ratios have slid beside those kept
    python benchmarks/peers --tables         # writes peers.md, and the table in README.md, from what is kept

Peers that cannot be installed beside emoprobe get environments of their own, below `--environments`, made where they are not
there (some minutes, once, with a network). A contestant is a function in capturing.py, directions.py, probing.py, steering.py
and attention_bias.py, written as a user of that library would; its lines are counted. One thread each; on a CPU.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import inputs
import starting
import tables
from environments import OWN, interpreter
from race import race

from emoprobe.artefacts import write_bytes

HERE = Path(__file__).resolve().parent
KEPT, AGAIN = HERE.parent / "peers.json", HERE.parent / "peers_again.json"


@dataclass(frozen=True)
class Case:
    """Hold one comparison: the work, the model, what is given beside the model, rounds, and whether the guard runs it too."""

    row: str
    model: str
    what: str
    rounds: int
    give: Callable[[Path], Mapping[str, Any]]
    quick: bool = False

    @property
    def title(self) -> str:
        """What the case is called in records and tables."""
        return f"{self.row}: {self.model}, {self.what}"


def texts(count: int, different: int | None = None) -> Callable[[Path], Mapping[str, Any]]:
    """Return a function that gives so many sentences, see `inputs.sentences`."""
    return lambda folder: {"texts": inputs.sentences(count, different)}


CASES = (
    Case("capturing", "ground-truth", "5,000 texts, 500 different short ones", 3, texts(5000, 500)),
    Case("capturing", "stories260K", "300 texts", 6, texts(300)),
    Case("capturing", "bundled", "96 texts", 6, texts(96), quick=True),
    Case("capturing", "gpt2-small", "16 texts", 4, texts(16)),
    Case("directions", "bundled", "96 pairs of passages", 5, lambda folder: inputs.pairs()),
    Case("probing", "bundled", "624 passages, 13 emotions", 3, lambda folder: inputs.labelled()),
    Case("steering", "bundled", "4 prompts, 64 tokens", 8, partial(inputs.steering, tokens=64), quick=True),
    Case("steering", "gpt2-small", "4 prompts, 32 tokens", 6, partial(inputs.steering, tokens=32)),
    Case("attention_bias", "bundled", "504 tokens read", 10, partial(inputs.valued, tokens=0), quick=True),
    Case("attention_bias", "gpt2-small", "1,016 tokens read", 5, partial(inputs.valued, tokens=0)),
    Case("attention_bias", "bundled", "64 tokens written", 10, partial(inputs.valued, tokens=64), quick=True),
    Case("attention_bias", "gpt2-small", "32 tokens written", 6, partial(inputs.valued, tokens=32)),
    Case("starting", "bundled", "import", 2, lambda folder: {}),
    Case("starting", "bundled", "help", 8, lambda folder: {}, quick=True),
    Case("starting", "bundled", "first", 3, lambda folder: {}),
)
ROWS = tuple(dict.fromkeys(case.row for case in CASES))


def run(case: Case, place: Path, environments: Path | None) -> list[dict[str, Any]] | str:
    """Return the records of a case, or why it cannot be run. Without `environments`, peers that need their own are left out."""
    folder = inputs.folder_of(case.model, place)
    if folder is None:
        return f"{case.model} is not at hand: set EMOPROBE_SHARED to where its folder lies"

    def python(name: str) -> str:
        return interpreter(name, environments or place)

    if case.row == "starting":
        lines = starting.commands(case.what, python, folder)
        own = python(OWN)
        return starting.race(
            {n: line for n, line in lines.items() if environments or line[0] == own or case.what == "help"},
            case.rounds,
        )
    contest = importlib.import_module(case.row)
    slow = () if environments else getattr(contest, "SLOW", ())
    pythons = {n: python(p) for n, p in contest.CONTESTANTS.items() if environments or p == OWN}
    pythons = {name: one for name, one in pythons.items() if name not in slow}
    given = {"model": str(folder), **case.give(folder)}
    return race(case.row, pythons, given, case.rounds, contest.TOLERANCE, contest.COMPARED)


def machine() -> dict[str, Any]:
    """Return what the figures are measured on."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").open()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {"cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", choices=ROWS, help="rows to run; the others stay as they are kept"
    )
    parser.add_argument("--again", action="store_true", help="keep this as the second run")
    parser.add_argument(
        "--quick", action="store_true", help="compare a few ratios with those kept; writes nothing"
    )
    parser.add_argument("--tables", action="store_true", help="write the tables from what is kept")
    parser.add_argument(
        "--environments", type=Path, default=HERE / ".environments", help="where peers' environments lie"
    )
    options = parser.parse_args()
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {"cases": {}}
    if options.tables:
        return tables.write(kept, json.loads(AGAIN.read_text()) if AGAIN.exists() else None)
    path = AGAIN if options.again else KEPT
    cases: dict[str, Any] = json.loads(path.read_text())["cases"] if options.only and path.exists() else {}
    with tempfile.TemporaryDirectory() as place:
        for case in CASES:
            if (options.only and case.row not in options.only) or (options.quick and not case.quick):
                continue
            print(case.title, flush=True)
            began, load = time.perf_counter(), round(os.getloadavg()[0], 1)
            records = run(case, Path(place), None if options.quick else options.environments)
            about = {**machine(), "load": load, "seconds": round(time.perf_counter() - began, 1)}
            cases[case.title] = about | (
                {"records": records} if isinstance(records, list) else {"left": records}
            )
            if not options.quick:
                write_bytes(path, (json.dumps({"cases": cases}, indent=1) + "\n").encode())
    if options.quick:
        print(tables.slides(cases, kept["cases"]))
    else:
        tables.write(json.loads(KEPT.read_text()), json.loads(AGAIN.read_text()) if AGAIN.exists() else None)


if __name__ == "__main__":
    main()
