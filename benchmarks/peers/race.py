"""Let contestants do the same work in turn, each in a process and an environment of its own, and compare what they return.

Each is set up once (`worker.py`); then all run one after another, round by round, so that every round meets the same machine.
What is compared is the median over rounds of a contestant's time over emoprobe's in the same round.
"""

from __future__ import annotations

import json
import os
import select
import statistics
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

HERE = Path(__file__).resolve().parent
OURS = "emoprobe"
ALONE = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_MMAP_MAX_": "0",
}
"""Environment of every contestant: one thread, no network, and memory that glibc keeps once it has it.

When it gives memory back and takes it anew, which it decides by what happens to lie where, costs up to 15 % of a pass.
"""
PATIENCE = 300
"""Seconds that an answer may take."""
WARM = 3
"""Up to so many rounds all are counted, since they are long ones; of more the first is not."""


@dataclass
class Contestant:
    """Hold a worker's process, and what it has answered."""

    name: str
    process: subprocess.Popen[str]
    out: Path
    log: Path
    told: dict[str, Any]
    rounds: list[dict[str, float]]
    failed: str | None = None

    @classmethod
    def start(cls, row: str, name: str, python: str, folder: Path) -> Contestant:
        """Set a contestant up, on one thread and without a network."""
        out, log = folder / f"{name}.safetensors", folder / f"{name}.log"
        with log.open("w") as errors:
            process = subprocess.Popen(
                [python, str(HERE / "worker.py"), row, name, str(folder), str(out)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | ALONE,
            )
        return cls(name, process, out, log, {}, [])

    def run(self) -> None:
        """Run once more, unless it has failed."""
        if self.failed is not None:
            return
        assert self.process.stdin is not None
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        if (found := self.answer()) is not None:
            self.rounds.append(found)

    def answer(self) -> dict[str, Any] | None:
        """Return the next answer; None, and the reason in `failed`, where there is none."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], PATIENCE)[0]:
            self.failed = f"no answer in {PATIENCE} s"
            self.process.kill()
            return None
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            said = [one for one in self.log.read_text().splitlines() if one.strip()]
            self.failed = f"killed by signal {-status}" if status < 0 else (said or ["ended"])[-1][:300]
            return None
        found: dict[str, Any] = json.loads(line)
        self.failed = found.get("failed")
        return None if self.failed else found

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def race(
    row: str,
    pythons: Mapping[str, str],
    given: Mapping[str, Any],
    rounds: int,
    tolerance: float,
    compared: str,
) -> list[dict[str, Any]]:
    """Return a record for each contestant, ours first.

    `pythons` names an interpreter for each; what is `given` to all is JSON, and tensors. Who begins changes by round.
    Results agree where no entry of the tensor `compared` is farther from ours than `tolerance` times our largest; whole numbers
    agree where they are the same.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tensors = {name: one for name, one in given.items() if isinstance(one, Tensor)}
        (folder / "given.json").write_text(json.dumps({k: v for k, v in given.items() if k not in tensors}))
        if tensors:
            save_file(tensors, folder / "given.safetensors")
        entered: list[Contestant] = []
        try:
            for name, python in pythons.items():
                entered.append(Contestant.start(row, name, python, folder))
            for one in entered:
                one.told = one.answer() or {}
            for number in range(rounds):
                first = number % len(entered)
                for one in (*entered[first:], *entered[:first]):
                    one.run()
        finally:
            for one in entered:
                one.stop()
        return [record(one, entered[0], tolerance, compared) for one in entered]


def record(one: Contestant, ours: Contestant, tolerance: float, compared: str) -> dict[str, Any]:
    """Return what was measured of a contestant beside ours."""
    found: dict[str, Any] = {"contestant": one.name, **one.told, "failed": one.failed}
    if one.failed or ours.failed:
        return found
    counted = slice(1 if len(ours.rounds) > WARM else 0, None)
    found |= times(one.rounds[counted], ours.rounds[counted])
    found["peak"] = max(entry["peak"] for entry in one.rounds)
    found["peak_ratio"] = found["peak"] / max(entry["peak"] for entry in ours.rounds)
    return found | agreement(load_file(one.out), load_file(ours.out), tolerance, compared)


def times(
    one: Sequence[Mapping[str, float]], ours: Sequence[Mapping[str, float]]
) -> dict[str, float | list[float]]:
    """Return seconds and ratios to ours, of wall and processor: medians over rounds, and each round's ratio."""
    found: dict[str, float | list[float]] = {}
    for kind in ("wall", "cpu"):
        ratios = [mine[kind] / theirs[kind] for mine, theirs in zip(one, ours, strict=True)]
        found[f"{kind}_ratio"] = statistics.median(ratios)
        found[f"{kind}_ratios"] = [round(ratio, 4) for ratio in ratios]
        found[f"{kind}_seconds"] = statistics.median(entry[kind] for entry in one)
    return found


def agreement(
    theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], tolerance: float, compared: str
) -> dict[str, Any]:
    """Return how far a result is from ours, as a share of our largest entry, and whether that is agreement.

    Where the second axis is that of layers, `apart` names those that differ.
    """
    mine, his = (one[compared].double() for one in (ours, theirs))
    if his.shape != mine.shape:
        return {"agrees": False, "shapes": f"{tuple(his.shape)} and ours {tuple(mine.shape)}"}
    if not theirs[compared].is_floating_point():
        same = (his == mine).sum().item()
        return {"agrees": same == mine.numel(), "same": f"{same} of {mine.numel()}"}
    differences = (his - mine).abs() / mine.abs().max().clamp(min=1e-12)
    found = {"difference": float(differences.max()), "agrees": bool(differences.max() <= tolerance)}
    if mine.dim() == 3:
        found["apart"] = [k for k in range(mine.shape[1]) if differences[:, k].max() > tolerance]
    return found
