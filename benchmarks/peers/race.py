"""Let contestants do the same work in turn, each in a process and an environment of its own, and compare what they return.

Each is set up once (`worker.py`); then all run one after another, round by round, so that every round meets the same machine.
What is compared is the median over rounds of a contestant's time over emoprobe's in the same round.
"""

from __future__ import annotations

import json
import os
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
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        with log.open("w") as errors:
            process = subprocess.Popen(
                [python, str(HERE / "worker.py"), row, name, str(folder), str(out)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )
        one = cls(name, process, out, log, {}, [])
        one.told = one.answer() or {}
        return one

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
        """Return the next answer; None, and the reason in `failed`, where the process has ended instead."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            said = [one for one in self.log.read_text().splitlines() if one.strip()]
            self.failed = said[-1][:300] if said else f"ended with status {self.process.returncode}"
            return None
        found: dict[str, Any] = json.loads(line)
        return found

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

    `pythons` names an interpreter for each; what is `given` to all is JSON, and tensors. The first round warms up and is not
    counted where there are more. Results agree where no entry of the tensor `compared` is farther from ours than `tolerance`
    times our largest.
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
            for _ in range(rounds):
                for one in entered:
                    one.run()
        finally:
            for one in entered:
                one.stop()
        return [record(one, entered[0], tolerance, compared) for one in entered]


def record(one: Contestant, ours: Contestant, tolerance: float, compared: str) -> dict[str, Any]:
    """Return what was measured of a contestant beside ours."""
    found: dict[str, Any] = {"contestant": one.name, **one.told, "failed": one.failed}
    if not one.rounds or not ours.rounds:
        return found
    counted = slice(1 if min(len(one.rounds), len(ours.rounds)) > 1 else 0, None)
    for kind in ("wall", "cpu"):
        pairs = zip(one.rounds[counted], ours.rounds[counted], strict=False)
        ratios = [mine[kind] / theirs[kind] for mine, theirs in pairs]
        found[f"{kind}_ratio"] = statistics.median(ratios)
        found[f"{kind}_ratios"] = [round(ratio, 4) for ratio in ratios]
        found[f"{kind}_seconds"] = statistics.median(entry[kind] for entry in one.rounds[counted])
    found["peak"] = max(entry["peak"] for entry in one.rounds)
    found["peak_ratio"] = found["peak"] / max(entry["peak"] for entry in ours.rounds)
    return found | agreement(load_file(one.out), load_file(ours.out), tolerance, compared)


def agreement(
    theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], tolerance: float, compared: str
) -> dict[str, Any]:
    """Return how far a result is from ours, as a share of our largest entry, and whether that is agreement.

    Where the second axis is that of layers, `apart` names those that differ.
    """
    mine, his = (one[compared].double() for one in (ours, theirs))
    if his.shape != mine.shape:
        return {"agrees": False, "shapes": f"{tuple(his.shape)} and ours {tuple(mine.shape)}"}
    differences = (his - mine).abs() / mine.abs().max().clamp(min=1e-12)
    found = {"difference": float(differences.max()), "agrees": bool(differences.max() <= tolerance)}
    if mine.dim() == 3:
        found["apart"] = [k for k in range(mine.shape[1]) if differences[:, k].max() > tolerance]
    return found


def ranked(records: Sequence[Mapping[str, Any]], key: str = "cpu_ratio") -> list[str]:
    """Return the contestants that finished, fastest first."""
    return [str(one["contestant"]) for one in sorted((r for r in records if key in r), key=lambda r: r[key])]
