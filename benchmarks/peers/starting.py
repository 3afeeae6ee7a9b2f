"""How long a fresh Python takes: to import, to print help, to give the residual streams of one sentence."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import capturing

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
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in lines}
    failed: dict[str, str] = {}
    for _ in range(rounds):
        for name, line in lines.items():
            if name in failed:
                continue
            began, used = time.perf_counter(), sum(os.times()[2:4])
            done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
            seconds[name].append((time.perf_counter() - began, sum(os.times()[2:4]) - used))
            if done.returncode:
                failed[name] = (done.stderr.strip().splitlines() or ["failed"])[-1][:300]
    ours = seconds["emoprobe"][1:]
    found = []
    for name, taken in seconds.items():
        row: dict[str, Any] = {"contestant": name, "failed": failed.get(name)}
        for part, kind in enumerate(("wall", "cpu")):
            if name in failed:
                break
            ratios = [mine[part] / theirs[part] for mine, theirs in zip(taken[1:], ours, strict=True)]
            row[f"{kind}_ratio"] = statistics.median(ratios)
            row[f"{kind}_ratios"] = [round(ratio, 4) for ratio in ratios]
            row[f"{kind}_seconds"] = statistics.median(one[part] for one in taken[1:])
        found.append(row)
    return found
