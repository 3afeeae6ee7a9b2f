"""How long a fresh Python takes: to import, to print help, to give the residual streams of one sentence."""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import capturing
from race import ALONE, OURS, PATIENCE, times

HERE = Path(__file__).resolve().parent
IMPORTED = {
    "emoprobe": "own",
    "transformers": "own",
    "transformer_lens": "own",
    "nnsight": "own",
    "nnterp": "nnterp",
    "steering_vectors": "four",
    "repeng": "four",
    "pyvene": "four",
}
READ = (
    "import sys; sys.path.insert(0, {here!r}); import torch, capturing; torch.set_grad_enabled(False); "
    "capturing.{name}({given!r})()"
)


def commands(kind: str, python: Callable[[str], str], folder: Path) -> dict[str, list[str]]:
    """Return a command line for each contestant: "import", "help" or "first" (residual streams of one sentence)."""
    if kind == "import":
        return {name: [python(place), "-c", f"import {name}"] for name, place in IMPORTED.items()}
    if kind == "help":
        tools = {"emoprobe": "emoprobe", "transformers": "transformers"}
        place = Path(python("own")).parent
        return {
            name: [str(place / tool), "--help"] for name, tool in tools.items() if (place / tool).exists()
        }
    given = {"model": str(folder), "texts": ["That evening the rope ran out and the dog was gone."]}
    return {
        name: [python(place), "-c", READ.format(here=str(HERE), name=name, given=given)]
        for name, place in capturing.CONTESTANTS.items()
        if name not in ("transformers_sorted", "bare_pass")
    }


def race(lines: Mapping[str, Sequence[str]], rounds: int) -> list[dict[str, Any]]:
    """Run the command lines in turn; return a record for each, as `race.race` does. The first round is not counted."""
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in lines}
    failed: dict[str, str] = {}
    names = list(lines)
    for number in range(rounds):
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            if name not in failed:
                try:
                    seconds[name].append(taken(lines[name]))
                except (RuntimeError, subprocess.TimeoutExpired) as error:
                    failed[name] = str(error)
    return [record(name, seconds, failed) for name in names]


def taken(line: Sequence[str]) -> dict[str, float]:
    """Return the seconds of a command, of wall and processor. Raises `RuntimeError` with what it said last if it fails."""
    began, used = time.perf_counter(), processor()
    done = subprocess.run(
        line, env=os.environ | ALONE, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    wall, cpu = time.perf_counter() - began, processor() - used
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["failed"])[-1][:300])
    return {"wall": wall, "cpu": cpu}


def processor() -> float:
    """Return the processor's seconds of all children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


def record(
    name: str, seconds: Mapping[str, Sequence[Mapping[str, float]]], failed: Mapping[str, str]
) -> dict[str, Any]:
    """Return what was measured of a contestant beside ours."""
    found: dict[str, Any] = {"contestant": name, "failed": failed.get(name)}
    if name in failed or OURS in failed or OURS not in seconds:
        return found
    return found | times(seconds[name][1:], seconds[OURS][1:])
