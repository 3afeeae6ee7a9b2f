"""Measure how time, memory and disk grow with texts, layers, width, concepts and workers, and fit the exponents.

    python benchmarks/scaling.py [--only texts layers width concepts workers] [--most 1000000]

Models are random Llamas of few parameters, so that what the library does shows beside them. Each figure comes from a process
of its own, forked when all is loaded: its CPU seconds and wall seconds, and by how much the most memory that it held exceeds
what it held before, texts and model included. Exponents are slopes of least squares through logarithms, with standard errors.
Workers are Ray's, warm, with one thread each; their CPU seconds are their own, and times are medians. Writes
scaling.json and scaling.md beside it, and the exponents in docs/scaling.md; parts that are not asked for stay as they were.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs" / "scaling.md"
BEGIN, END = "<!-- benchmarks/scaling.py writes from here -->\n", "<!-- to here -->"
sys.path.insert(0, str(HERE.parent / "tests"))  # a small tokenizer, and probes of given directions

import numpy as np  # noqa: E402
import torch  # noqa: E402
from planted_probes import planted_probes  # noqa: E402
from scipy.stats import linregress  # noqa: E402
from tiny import tiny_tokenizer  # noqa: E402
from transformers import AutoModelForCausalLM, LlamaConfig  # noqa: E402

import emoprobe as ep  # noqa: E402
from emoprobe.activation_store import store_activations  # noqa: E402
from emoprobe.artefacts import write_bytes  # noqa: E402
from emoprobe.corpora import Corpus  # noqa: E402
from emoprobe.models import LiveModel  # noqa: E402
from emoprobe.probes import ProbeSet, score_corpus  # noqa: E402
from emoprobe.probes.tasks import plan  # noqa: E402
from emoprobe.probes.text_moments import corpus_moments, text_moments  # noqa: E402
from emoprobe.workers import RayWorkers, ray_workers  # noqa: E402

TEXTS = (1_000, 10_000, 100_000, 1_000_000)
LAYERS, WIDTHS, CONCEPTS, WORKERS = (
    (1, 2, 4, 8, 16),
    (64, 128, 256, 512, 1024),
    (1, 2, 4, 8, 16, 32, 64),
    (1, 2),
)
FEW, BATCH = 4_096, 128
"""Texts wherever something else varies, and how many are read at once."""
SHARED, LONG, REPEATS = 8_192, 12, 3
"""Texts that workers share, how many times longer each is: enough work for sharing to be worth it; and how often they do."""
SYLLABLES = [one + other for one, other in product("abcdefghij", repeat=2)]


def model(blocks: int = 1, width: int = 32) -> LiveModel:
    """Return a random Llama."""
    tokenizer = tiny_tokenizer(start=True)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=blocks,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=None,
    )
    return ep.wrap(AutoModelForCausalLM.from_config(config).eval(), tokenizer, name="random weights")


def texts(count: int) -> Iterator[str]:
    """Yield texts of three syllables each, seven tokens or so, no two the same."""
    yield from islice(map(" ".join, product(SYLLABLES, repeat=3)), count)


def corpus(count: int, concepts: int = 1, times: int = 1) -> Corpus:
    """Return texts in fifty groups with annotations that mean nothing."""
    draw = np.random.default_rng(0)
    names = [f"concept {number}" for number in range(concepts)]
    columns = {name: draw.uniform(size=count) for name in names}
    written = [" ".join([text] * times) for text in texts(count)]
    groups = [f"group {number % 50}" for number in range(count)]
    return Corpus.from_columns(
        {"text": written, "group": groups, **columns},
        name="syllables",
        dimensions=dict.fromkeys(names, (0.0, 1.0)),
    )


def probes(live: LiveModel, concepts: int) -> ProbeSet:
    """Return random probes."""
    directions = np.random.default_rng(0).normal(size=(concepts, live.d_model))
    return planted_probes(live, directions, [f"concept {number}" for number in range(concepts)])


# What is measured: what is made ready, and then timed ----------------------------------------------------------------

Work = Callable[[], object]


def moments(count: int, blocks: int = 1, width: int = 32, concepts: int = 1) -> Work:
    live, given = model(blocks, width), corpus(count, concepts)
    tasks = plan(given)
    return lambda: corpus_moments(live, given, tasks, batch_size=BATCH)


def streamed(count: int) -> Work:
    live = model()
    return lambda: text_moments(live, texts(count), batch_size=BATCH)


def scores(count: int, blocks: int = 1, concepts: int = 4) -> Work:
    live = model(blocks)
    found = probes(live, concepts)
    return lambda: score_corpus(live, found, texts(count), layer=1.0, batch_size=BATCH)


def stored(count: int, blocks: int = 1) -> Work:
    live, given = model(blocks), list(texts(count))

    def work() -> int:
        with tempfile.TemporaryDirectory() as folder:
            store_activations(live, given, folder, batch_size=BATCH)
            return sum(file.stat().st_size for file in Path(folder).iterdir())

    return work


def memory(what: str) -> int:
    """Return VmHWM (most so far) or VmRSS (now) of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def measured(make: Callable[..., Work], first: int, options: dict[str, int], found: Any) -> None:
    """Send through a pipe what work costs this process."""
    torch.set_num_threads(1)
    make(**{**options, "count": min(300, options["count"])})()  # what libraries set up on first use
    work = make(**options)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the most so far is what is there now
    before, cpu, wall = memory("VmRSS"), time.process_time(), time.perf_counter()
    disk = work()
    cost = {
        "cpu": time.process_time() - cpu,
        "wall": time.perf_counter() - wall,
        "memory": memory("VmHWM") - before,
    }
    found.send({"at": first, **cost, **({"disk": disk} if isinstance(disk, int) else {})})


def series(
    make: Callable[..., Work], what: str, against: str, values: tuple[int, ...], most: int
) -> dict[str, Any]:
    """Measure work for each value of what varies, up to `most`, and fit how its cost grows."""
    points = []
    fork = multiprocessing.get_context("fork")
    for value in sorted({min(value, most) for value in values}):
        receiving, sending = fork.Pipe(duplex=False)
        options = {"count": FEW, against: value}
        child = fork.Process(target=measured, args=(make, value, options, sending))
        child.start()
        sending.close()
        points.append({**receiving.recv(), "load": os.getloadavg()[0]})
        child.join()
        print(what, options, points[-1], file=sys.stderr, flush=True)
    exponents = {
        cost: exponent(points, cost) for cost in ("cpu", "wall", "memory", "disk") if cost in points[0]
    }
    return {"what": what, "against": against, "points": points, "exponents": exponents}


def exponent(points: list[dict[str, float]], cost: str) -> dict[str, float]:
    """Return the slope of a cost through logarithms, and its standard error; memory below a megabyte counts as one."""
    costs = [max(point[cost], 1e6 if cost == "memory" else 1e-9) for point in points]
    line = linregress(np.log([point["at"] for point in points]), np.log(costs))
    return {"exponent": float(line.slope), "error": float(line.stderr)}


# Workers -------------------------------------------------------------------------------------------------------------


def shared(count: int = SHARED, blocks: int = 4, width: int = 64) -> list[dict[str, Any]]:
    """Measure moments of longer texts in one process, and by Ray's workers; compare them with the former."""
    live, given = model(blocks, width), corpus(count, times=LONG)
    few, wanted, costs = corpus(128), [], []
    tasks, few_tasks = plan(given), plan(few)

    def timed(workers: RayWorkers | None) -> None:
        corpus_moments(live, few, few_tasks, batch_size=1, workers=workers)  # four pieces: all is loaded
        times = []
        for _ in range(REPEATS):
            load, own, theirs = os.getloadavg()[0], time.process_time(), spent(workers)
            wall = time.perf_counter()
            (found,) = corpus_moments(live, given, tasks, workers=workers)
            wall = time.perf_counter() - wall
            own = time.process_time() - own
            times.append({"wall": wall, "cpu": own, "workers_cpu": spent(workers) - theirs, "load": load})
        wanted.append(found.scatter)
        apart = float((found.scatter - wanted[0]).abs().max() / wanted[0].abs().max())
        middle = {cost: float(np.median([one[cost] for one in times])) for cost in times[0]}
        costs.append({"workers": len(wanted) - 1, **middle, "apart": apart})
        print(costs[-1], file=sys.stderr, flush=True)

    timed(None)
    with tempfile.TemporaryDirectory() as folder:
        live.underlying.save_pretrained(folder)
        live.tokenizer.save_pretrained(folder)
        for number in WORKERS:
            with ray_workers(folder, number) as workers:
                timed(workers)
    return costs


def spent(workers: RayWorkers | None) -> float:
    """Return the CPU seconds that all workers have had so far."""
    return 0.0 if workers is None else sum(dict(workers.map(own_seconds, range(32))).values())


def own_seconds(live: LiveModel, item: int) -> tuple[int, float]:
    """Return the process and its CPU seconds, after a moment in which others take their share."""
    time.sleep(0.02)
    return os.getpid(), time.process_time()


# The record ----------------------------------------------------------------------------------------------------------

AGAINST = {"count": "texts", "blocks": "blocks, all layers", "width": "d_model", "concepts": "concepts"}


def page(found: dict[str, Any]) -> str:
    """Return the record as Markdown."""
    grown = [one for part in PARTS for one in found["series"][part]]
    lines = [
        "# Scaling",
        "",
        "`python benchmarks/scaling.py`: random Llamas, of one block and width 32 where nothing else is said, float32, one "
        f"thread, batches of {BATCH}; {FEW:,} texts of seven tokens or so where their number does not vary. "
        f"{found['machine']}, {found['cores']} cores ({load(grown)}; above one, CPU seconds say more than wall seconds); "
        f"{sum(found['seconds'].values())} s in all. Memory is what is added to what texts, annotations "
        f"and model take, in exponents at least 1 MB; it is full from {32 * BATCH:,} texts on, which are sorted by length "
        "together. An exponent of 0 is flat, of 1 proportional.",
        "",
        "| what | against | from … to | CPU, s | exponent | wall, exponent | memory, MB | exponent |",
        "|---|---|---|---|---|---|---|---|",
        *map(summary, grown),
        "",
    ]
    disk = next(one for one in grown if "disk" in one["exponents"])
    each = [point["disk"] / point["at"] for point in disk["points"]]
    lines += [
        f"On disk `store_activations` took {each[0]:.0f} … {each[-1]:.0f} bytes a text, {fitted(disk, 'disk')}.",
        "",
        "## Every point",
        "",
        "| what | against | at | CPU, s | wall, s | memory, MB | load |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in grown:
        for point in one["points"]:
            figures = [f"{point[cost]:.2f}" for cost in ("cpu", "wall")]
            figures += [f"{point['memory'] / 1e6:.1f}", f"{point['load']:.1f}"]
            lines.append(
                f"| {one['what']} | {AGAINST[one['against']]} | {point['at']:,} | {' | '.join(figures)} |"
            )
    lines += [
        "",
        "## Workers",
        "",
        f"Moments of {SHARED:,} texts of {LONG} times that length, four blocks of width 64, by Ray's workers of one thread "
        f"each; {speed_up(found['workers'])}. `apart` is the largest difference from the moments of one process, relative to "
        "the largest entry. Wall seconds tell of workers only where as many cores are free; CPU seconds tell what sharing "
        "costs.",
        "",
        "| workers | wall, s | CPU here, s | CPU of the workers, s | apart | load before |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["workers"]:
        figures = [f"{row[cost]:.1f}" for cost in ("wall", "cpu", "workers_cpu")]
        lines.append(
            f"| {row['workers'] or 'none'} | {' | '.join(figures)} | {row['apart']:.0e} | {row['load']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def load(grown: list[dict[str, Any]]) -> str:
    """Say how busy the machine was."""
    loads = [point["load"] for one in grown for point in one["points"]]
    return f"load {min(loads):.1f} to {max(loads):.1f}"


def summary(one: dict[str, Any]) -> str:
    """Return a line that says how one kind of work grows against one quantity."""
    first, last = one["points"][0], one["points"][-1]
    cells = [
        one["what"],
        AGAINST[one["against"]],
        f"{first['at']:,} … {last['at']:,}",
        f"{first['cpu']:.2f} … {last['cpu']:.2f}",
        fitted(one, "cpu"),
        fitted(one, "wall"),
        f"{first['memory'] / 1e6:.1f} … {last['memory'] / 1e6:.1f}",
        fitted(one, "memory"),
    ]
    return f"| {' | '.join(cells)} |"


def fitted(one: dict[str, Any], cost: str) -> str:
    """Return an exponent with its standard error."""
    return f"{one['exponents'][cost]['exponent']:.2f} ± {one['exponents'][cost]['error']:.2f}"


def speed_up(rows: list[dict[str, Any]]) -> str:
    """Say how many times as fast two workers are as one."""
    wall = {row["workers"]: row["wall"] for row in rows}
    return f"two are {wall[1] / wall[2]:.2f} times as fast as one, and one {wall[0] / wall[1]:.2f} times as fast as none"


def exponents(found: dict[str, Any]) -> str:
    """Return what the documentation shows of it."""
    grown = [one for part in PARTS for one in found["series"][part]]
    lines = [
        "| what | against | time (CPU) | memory beyond texts and model |",
        "|---|---|---|---|",
        *(
            f"| {one['what']} | {AGAINST[one['against']]}, {one['points'][0]['at']:,} … {one['points'][-1]['at']:,} | "
            f"{fitted(one, 'cpu')} | {fitted(one, 'memory')} |"
            for one in grown
        ),
        "",
        f"Of Ray's workers, {speed_up(found['workers'])}; {found['cores']} cores, {load(grown)}.",
    ]
    return "\n".join(lines) + "\n"


def write(found: dict[str, Any]) -> None:
    """Keep the record, and show it on both pages."""
    write_bytes(HERE / "scaling.json", (json.dumps(found, indent=1) + "\n").encode())
    write_bytes(HERE / "scaling.md", page(found).encode())
    before, _, rest = DOCS.read_text("utf-8").partition(BEGIN)
    write_bytes(DOCS, (before + BEGIN + exponents(found) + END + rest.partition(END)[2]).encode())


PARTS: dict[str, list[tuple[Callable[..., Work], str, str, tuple[int, ...]]]] = {
    "texts": [
        (streamed, "text_moments of a generator", "count", TEXTS),
        (moments, "corpus_moments", "count", TEXTS),
        (scores, "score_corpus of a generator", "count", TEXTS),
        (stored, "store_activations", "count", TEXTS),
    ],
    "layers": [
        (moments, "corpus_moments", "blocks", LAYERS),
        (scores, "score_corpus", "blocks", LAYERS),
        (stored, "store_activations", "blocks", LAYERS),
    ],
    "width": [(moments, "corpus_moments", "width", WIDTHS)],
    "concepts": [
        (moments, "corpus_moments", "concepts", CONCEPTS),
        (scores, "score_corpus", "concepts", CONCEPTS),
    ],
}
"""What is measured, under what name, against what, and at which values."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [*PARTS, "workers"]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="parts to measure anew")
    parser.add_argument("--most", type=int, default=TEXTS[-1], help="texts")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads((HERE / "scaling.json").read_text("utf-8"))
    found |= {"machine": platform.machine(), "cores": os.cpu_count()}
    found["versions"] = {"python": platform.python_version(), "torch": torch.__version__}
    for name in asked.only:
        began = time.perf_counter()
        if name == "workers":
            found["workers"] = shared()
        else:
            found["series"][name] = [series(*one, asked.most) for one in PARTS[name]]
        found["seconds"][name] = round(time.perf_counter() - began)
        write(found)
    print(page(found))


if __name__ == "__main__":
    main()
