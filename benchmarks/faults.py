"""Kill long work at random moments, start it again until it ends, and compare what it leaves with undisturbed work.

    python benchmarks/faults.py [--kills 25] [--only fit …] [--seed 0]

Fit, study, sweep, learning and stories, on a small random model, each in a process that is forked when all is loaded and
ended by SIGKILL at a moment drawn from the length of undisturbed work, until `--kills` of each have hit. After each kill every
file under a final name must be whole; when the work ends, what it leaves must be that of undisturbed work, byte for byte but
for times, with no temporary file beside it, and no part that was done before a kill may have been written again. That it has
gone on, and not begun anew to the same end, is seen by the tokens that the model reads, in training and in writing too: after
the last kill fewer than undisturbed work reads. Then the same work on a disk that is too small for it (a tmpfs, which only the
superuser may mount): it must say so, and go on when there is room. Writes faults.json and faults.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # a small model and a small corpus

import pandas as pd  # noqa: E402
import torch  # noqa: E402
from safetensors import safe_open  # noqa: E402
from small_study import small_corpus, small_model  # noqa: E402

import emoprobe as ep  # noqa: E402
from emoprobe import activation_store  # noqa: E402
from emoprobe.corpora.stories import ModelWriter, write_stories  # noqa: E402
from emoprobe.errors import InputError  # noqa: E402
from emoprobe.steering import kl, nll  # noqa: E402

MODEL, CORPUS = small_model(), small_corpus(texts=240)
VECTOR = torch.linspace(-1, 1, MODEL.d_model)
TIMES = re.compile(
    rb'"(seconds|begun|written|ended|durations?)": ?("[^"]*"|[0-9.]+)'
    rb"|\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d ?[+-]\d{4}|\b\d+(\.\d+)? (s|min)\b"
)
"""What may differ: moments and durations."""
TOKENS = multiprocessing.RawValue("q")
"""How many the model has read in the process that was started last, also where that one was killed."""


# The work ------------------------------------------------------------------------------------------------------------


def fit(folder: Path) -> None:
    activation_store.SHARD = 8
    ep.fit_probes(
        MODEL, CORPUS, keep=folder / "kept", permutations=4, bootstrap=100, batch_size=4, progress=False
    ).save(folder / "probes.safetensors")


def study(folder: Path) -> None:
    ep.run_study(MODEL, CORPUS, folder / "run", limit=60, progress=False, command="emoprobe study")


def sweep(folder: Path) -> None:
    texts = CORPUS.texts[:24]
    ep.sweep(
        MODEL,
        VECTOR,
        [-0.4, -0.2, 0.2, 0.4],
        texts[:8],
        [nll(texts), kl(texts)],
        together=4,
        out=folder / "sweep",
        progress=False,
    ).frame.to_parquet(folder / "sweep.parquet")


def learn(folder: Path) -> None:
    weight = torch.randn(MODEL.n_layers, 2, MODEL.d_model, generator=torch.Generator().manual_seed(0))
    start = ep.Valuation(weight, torch.zeros(MODEL.n_layers, 2), ("a", "b"), tuple(range(MODEL.n_layers)))
    ep.learn_valuation(
        MODEL,
        CORPUS,
        start,
        objective="next_token",
        steps=40,
        checkpoint=folder / "checkpoint.safetensors",
        progress=False,
    ).save(folder / "learned.safetensors")


def stories(folder: Path) -> None:
    write_stories(
        ModelWriter(MODEL, max_new_tokens=60),
        folder / "stories.jsonl",
        emotions=["joy", "fear", "anger"],
        per_topic=3,
        about=["the sun", "the dog", "a letter", "the house"],
        batch_size=2,
        progress=False,
    )


WORK: dict[str, Callable[[Path], None]] = {
    "fit": fit,
    "study": study,
    "sweep": sweep,
    "learn": learn,
    "stories": stories,
}
PARTS = {
    "fit": "kept/0*.safetensors",
    "study": "run/results/*.json",
    "sweep": "sweep/*.parquet",
    "learn": "",
    "stories": "",
}
"""Files that hold a part each: once there, they are not to be written again."""


# Killing it ----------------------------------------------------------------------------------------------------------


def count(block: torch.nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
    """Count the tokens of a forward pass; a text that is written is read token by token."""
    stream = given[0] if given else named["hidden_states"]
    TOKENS.value += stream.shape[:-1].numel()


def run(work: Callable[[Path], None], folder: Path, seconds: float | None) -> tuple[bool, str]:
    """Do the work in a process of its own; return whether SIGKILL ended it, and how it failed if it did by itself."""
    reading, writing = os.pipe()
    TOKENS.value = 0
    child = os.fork()
    if not child:
        os.close(reading)
        status = 0
        try:
            MODEL.underlying.model.layers[0].register_forward_pre_hook(count, with_kwargs=True)
            work(folder)
        except BaseException:
            os.write(writing, traceback.format_exc()[-4000:].encode())
            status = 1
        os._exit(status)
    os.close(writing)
    ends = time.perf_counter() + (seconds if seconds is not None else 3600)
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.perf_counter() >= ends:
            os.kill(child, signal.SIGKILL)
            ended = os.waitpid(child, 0)
            break
        time.sleep(0.002)
    with os.fdopen(reading) as said:
        # What a killed process has begun may live on and keep the pipe open.
        signalled = os.WTERMSIG(ended[1]) if os.WIFSIGNALED(ended[1]) else 0
        if signalled == signal.SIGKILL:
            return True, ""
        return False, f"ended by signal {signalled}" if signalled else said.read()


def check_whole(folder: Path) -> None:
    """Read every file under a final name; raise where one is not whole."""
    for file in files(folder):
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as found:
                for name in found.keys():
                    found.get_tensor(name)
        elif file.suffix == ".json":
            json.loads(file.read_text("utf-8"))
        elif file.suffix == ".parquet":
            pd.read_parquet(file)
        elif file.suffix in (".html", ".svg"):
            assert file.read_text("utf-8").rstrip().endswith((">",)), file


def files(folder: Path) -> list[Path]:
    """Return the files under final names: what is being written has a name that begins with a dot."""
    return sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))


def left(folder: Path) -> dict[str, bytes]:
    """Return what work has left, temporary files too, without times."""
    found = {}
    for file in filter(Path.is_file, folder.rglob("*")):
        content = file.read_bytes()
        if file.suffix in (".json", ".jsonl", ".html"):
            content = TIMES.sub(b"", content)
        found[str(file.relative_to(folder))] = content.replace(str(folder).encode(), b"")
    return found


def campaign(name: str, kills: int, draw: random.Random, place: Path) -> dict[str, Any]:
    """Kill a piece of work until `kills` have hit; return what came of it."""
    work, parts = WORK[name], PARTS[name]
    whole = place / "whole"
    whole.mkdir(parents=True)
    begun = time.perf_counter()
    killed, failure = run(work, whole, None)
    assert not killed and not failure, failure
    length, tokens = time.perf_counter() - begun, TOKENS.value
    wanted = left(whole)
    hits = rounds = resumed = rewritten = 0
    differing: list[str] = []
    shares: list[list[float]] = []  # of undisturbed work's tokens, for each process of each round with a kill
    while hits < kills:
        folder = place / f"round {rounds}"
        folder.mkdir()
        rounds, here, done = rounds + 1, 0, {}
        read: list[float] = []
        while True:
            # Work that is killed again and again must come to its end all the same.
            killed, failure = run(work, folder, draw.uniform(0, length) if here < 8 else None)
            assert not failure, failure
            read.append(TOKENS.value / tokens)
            rewritten += sum(not file.is_file() or file.stat().st_mtime_ns != at for file, at in done.items())
            if not killed:
                break
            hits, here = hits + 1, here + 1
            check_whole(folder)
            done = {file: file.stat().st_mtime_ns for file in (folder.glob(parts) if parts else ())}
            resumed += bool(done)
        if here:
            shares.append(read)
        found = left(folder)
        differing += [file for file in {*wanted, *found} if found.get(file) != wanted.get(file)]
        shutil.rmtree(folder)
    return {
        "seconds": round(length, 2),
        "kills": hits,
        "rounds": rounds,
        "ended": rounds,
        "with_parts_done": resumed,
        "parts_written_again": rewritten,
        "tokens": tokens,
        "read_after_the_last_kill": round(fmean(read[-1] for read in shares), 3),
        "read_in_all": round(fmean(sum(read) for read in shares), 3),
        "read_in_all_if_begun_anew": round(fmean(sum(read[:-1]) + 1 for read in shares), 3),
        "differing": sorted(set(differing)),
    }


# A disk that is full -------------------------------------------------------------------------------------------------


def full_disk(name: str, place: Path) -> dict[str, Any]:
    """Do a piece of work on a disk of half the size that it needs, then make room and do it again."""
    work, whole, disk = WORK[name], place / "whole", place / "disk"
    need = sum(file.stat().st_size for file in files(whole))
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={max(need // 2, 8192)}", "tmpfs", disk], check=True)
    try:
        killed, failure = run(work, disk, None)
        check_whole(disk)
        before = len(files(disk))
        subprocess.run(["mount", "-o", f"remount,size={16 * need + 2**20}", disk], check=True)
        _, again = run(work, disk, None)
        found, wanted = left(disk), left(whole)
        return {
            "said": failure.strip().splitlines()[-1].replace(str(disk), "DISK") if failure else "nothing",
            "clean": not killed and InputError.__name__ in failure,
            "files_before": before,
            "went_on": not again,
            "differing": sorted(file for file in {*wanted, *found} if found.get(file) != wanted.get(file)),
        }
    finally:
        subprocess.run(["umount", disk], check=True)


# The record ----------------------------------------------------------------------------------------------------------


def page(record: dict[str, Any]) -> str:
    """Return the record as Markdown."""
    lines = [
        "# Work that is killed, and disks that are full",
        "",
        "`python benchmarks/faults.py`, on a small random model, with the options and the torch that each row names. Every "
        "kill is a SIGKILL at a moment drawn from the length of undisturbed work; work is started again until it ends. Files "
        "are compared byte for byte, but for times.",
        "",
        "| work | options | undisturbed | kills | after parts were done | parts written again | ends that differ |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in record["kills"].items():
        parts = (row["with_parts_done"], row["parts_written_again"]) if PARTS[name] else ("–", "–")
        lines.append(
            f"| {name} | {row['options']} | {row['seconds']} s | {row['kills']} in {row['rounds']} rounds | {parts[0]} | "
            f"{parts[1]} | {', '.join(row['differing']) or 'none'} |"
        )
    lines += [
        "",
        "Work that begins anew comes to the same end. So the tokens that the model reads are counted too, in training and in "
        "writing as well. Here they are shares of what undisturbed work reads, means over the rounds with a kill: after the "
        "last kill, work that begins anew reads 1. What a kill may cost is one part: a shard of a fit, a step of a study, a "
        "group of a sweep's runs that share passes (4 here, 16 by default), a twentieth of the steps of learning, a batch of "
        "stories.",
        "",
        "| work | tokens undisturbed | read after the last kill | read in all | in all, had the last start begun anew |",
        "|---|---|---|---|---|",
    ]
    for name, row in record["kills"].items():
        shares = ("read_after_the_last_kill", "read_in_all", "read_in_all_if_begun_anew")
        counted = (
            [f"{row['tokens']:,}", *(f"{row[share]:.2f}" for share in shares)] if "tokens" in row else []
        )
        lines.append(f"| {' | '.join([name, *(counted or ['not counted in that run', '–', '–', '–'])])} |")
    lines += ["", "On a disk of half the size that is needed:", ""]
    lines += ["| work | says | goes on when there is room | differs from undisturbed |", "|---|---|---|---|"]
    for name, row in record["full disks"].items():
        lines.append(
            f"| {name} | {row['said']} | {'yes' if row['went_on'] else 'NO'} | {', '.join(row['differing']) or 'no'} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=25, help="of each piece of work")
    parser.add_argument("--only", nargs="*", choices=WORK, default=list(WORK))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = {"kills": {}, "full disks": {}}
    options = f"--kills {asked.kills} --seed {asked.seed} ({os.uname().machine}, torch {torch.__version__})"
    kept = asked.out / "faults.json"
    if kept.is_file() and len(asked.only) < len(WORK):  # what was not asked for stays as it was
        record = json.loads(kept.read_text("utf-8"))
    with tempfile.TemporaryDirectory() as place:
        for name in asked.only:
            here = Path(place) / name
            found = campaign(name, asked.kills, random.Random(f"{asked.seed} {name}"), here)
            record["kills"][name] = {"options": options, **found}
            print(name, record["kills"][name], flush=True)
            if os.geteuid() == 0 and shutil.which("mount"):
                record["full disks"][name] = full_disk(name, here)
                print(name, record["full disks"][name], flush=True)
    (asked.out / "faults.json").write_text(json.dumps(record, indent=1) + "\n")
    (asked.out / "faults.md").write_text(page(record))


if __name__ == "__main__":
    main()
