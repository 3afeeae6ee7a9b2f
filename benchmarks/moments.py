"""Measure what probes out of one-pass moments cost beside scikit-learn's on stored activations, within one run.

    python benchmarks/moments.py [--small] [--theirs LAYERS]

Synthetic activations of 20,000 texts, 12 layers of width 768, with 8 classes and 100 topics that the folds keep whole. Their
variances fall as k^-1.5 along the k-th axis, which is about what the pooled activations of small language models do. They lie
in a file that every measurement maps into memory, layer by layer, as `capture` leaves them. Both sides get one thread; times
are of the CPU, which other programs disturb least, with the wall beside them. Each measurement is a process of its own. Its
extra memory is the most that was resident at any time beyond what was before it began, when Python, the libraries and all
activations were there already.

Writes benchmarks/moments.json and benchmarks/moments.md; with `--small` a much smaller case is only printed. scikit-learn's
loop can be timed on the first `--theirs` layers only (default: all); its times are then multiplied up, which the tables say.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import sklearn
import torch
from sklearn.linear_model import LogisticRegression, RidgeCV
from torch import Tensor

from emoprobe.artefacts import write_bytes
from emoprobe.probes.closed_form import grouped_k_fold, ridge
from emoprobe.probes.logistic import axes_of, logistic
from emoprobe.probes.moments import ROWS, Moments

HERE = Path(__file__).resolve().parent
PENALTIES = np.logspace(-1, 7, 9)
CLASSES, TOPICS, FOLDS, BATCH = 8, 100, 5, ROWS
FULL = {"texts": 20_000, "layers": 12, "width": 768}
SMALL = {"texts": 2_000, "layers": 2, "width": 96}
CLOSE = 1e-4
"""Share of the objective within which both logistic regressions have to come."""
ATTEMPTS = [("float32", 1e-4), ("float64", 1e-4), ("float64", 1e-5), ("float64", 1e-6), ("float64", 1e-7)]
"""What scikit-learn is given, from fast to exact: the first that comes CLOSE is compared with."""
EXACT = 1e-6
"""Relative difference that weights and scores of ridge may have."""
FLAT_LAYERS = 3
"""Layers of the pass whose memory is measured at several numbers of texts."""
TARGETS = {"ridge": 15.0, "logistic": 5.0, "memory": 0.1}


class Synthetic:
    """Draw activations, batch by batch and the same each time."""

    def __init__(self, texts: int, layers: int, width: int, path: str | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        # The same whatever the number of layers.
        self.classes = torch.randint(CLASSES, (texts,), generator=generator)
        self.topic = torch.randint(TOPICS, (texts,), generator=generator)
        spread = torch.arange(1, width + 1) ** -0.75
        turn = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
        self.mixing = spread[:, None] * turn
        # On each feature the variance is about the same, so that nobody has to standardise.
        self.mixing /= self.mixing.norm(dim=0)
        self.means = 0.1 * torch.randn(layers, CLASSES, width, generator=generator) @ self.mixing
        self.topics = 0.3 * torch.randn(layers, TOPICS, width, generator=generator) @ self.mixing
        self.centre = torch.randn(layers, width, generator=generator)
        self.fold = self.topic % FOLDS
        self.layers, self.width, self.path = layers, width, path

    def drawn(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the texts of each batch and their activations, float32 (texts, layers, width)."""
        for first in range(0, len(self.classes), BATCH):
            rows = slice(first, min(first + BATCH, len(self.classes)))
            generator = torch.Generator().manual_seed(1 + first)
            vectors = torch.empty(rows.stop - first, self.layers, self.width)
            for layer in range(self.layers):
                noise = torch.randn(len(vectors), self.width, generator=generator)
                own = self.means[layer, self.classes[rows]] + self.topics[layer, self.topic[rows]]
                vectors[:, layer] = noise @ self.mixing + own + self.centre[layer]
            yield rows, vectors

    def mapped(self, mode: str) -> Tensor:
        """Return the activations in the file, or room for them: float32 (texts, layers, width)."""
        shape = (self.layers, len(self.classes), self.width)
        if self.path is None:
            return torch.empty(shape).transpose(0, 1)
        return torch.from_numpy(np.memmap(self.path, np.float32, mode, shape=shape)).transpose(0, 1)

    @cached_property
    def _mapped(self) -> Tensor:
        """Map the file once: the pages of a second mapping would count as extra memory."""
        return self.mapped("c")

    def stored(self) -> Tensor:
        """Return all activations, drawn anew where there is no file of them."""
        if self.path is not None:
            return self._mapped
        everything = self.mapped("w+")
        for rows, vectors in self.drawn():
            everything[rows] = vectors
        return everything

    def batches(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the stored activations batch by batch, as a model would give them: (texts, layers, width)."""
        stored = self.stored()
        for first in range(0, len(stored), BATCH):
            rows = slice(first, min(first + BATCH, len(stored)))
            yield rows, stored[rows].contiguous()


class Clock:
    """Add up the seconds inside `with` blocks."""

    def __init__(self) -> None:
        self.seconds = {"cpu": 0.0, "wall": 0.0}

    def __enter__(self) -> None:
        self._began = time.process_time(), time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds["cpu"] += time.process_time() - self._began[0]
        self.seconds["wall"] += time.perf_counter() - self._began[1]


def memory(what: str) -> int:
    """Return VmHWM (most so far) or VmRSS (now) of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


# What is measured, each in a process of its own ----------------------------------------------------------------------


def gather(data: Synthetic, clock: Clock, times: int = 1) -> Moments:
    """Gather moments by fold and class in one pass, or in several over the same; the clock leaves out reading."""
    moments = Moments.zeros(data.layers, data.width, n_folds=FOLDS, n_classes=CLASSES)
    for _ in range(times):
        for rows, vectors in data.batches():
            with clock:
                moments.add(vectors, fold=data.fold[rows], classes=data.classes[rows])
    return moments


def our_ridge(data: Synthetic, clock: Clock) -> dict[str, Any]:
    """Ridge by moments: one pass, grouped folds at every penalty, and the fit at the best."""
    moments = gather(data, clock)
    gathered = dict(clock.seconds)
    with clock:
        r2 = grouped_k_fold(moments, PENALTIES.tolist()).r2.mean((0, 3))
        best = r2.argmax(0)
        weights = ridge(moments, PENALTIES[best.numpy()].tolist()).weights
    return {
        "gathering": gathered,
        "penalties": PENALTIES[best.numpy()].tolist(),
        **summary(weights.numpy(), r2.amax(0)),
    }


def our_ridge_by_layers(data: Synthetic, clock: Clock) -> dict[str, Any]:
    """The same from stored activations, layer by layer, as scikit-learn has to do it."""
    stored = data.stored()
    weights, scores, penalties = [], [], []
    for layer in range(data.layers):
        with clock:
            moments = Moments.zeros(1, data.width, n_folds=FOLDS, n_classes=CLASSES)
            moments.add(stored[:, layer : layer + 1], fold=data.fold, classes=data.classes)
            r2 = grouped_k_fold(moments, PENALTIES.tolist()).r2.mean((0, 2, 3))
            penalties.append(float(PENALTIES[int(r2.argmax())]))
            weights.append(ridge(moments, penalties[-1:]).weights[0].numpy())
            scores.append(float(r2.max()))
    return {"penalties": penalties, **summary(np.stack(weights), scores)}


def their_ridge(data: Synthetic, clock: Clock) -> dict[str, Any]:
    """Ridge by RidgeCV on stored activations, layer by layer, in float64."""
    stored = data.stored()
    targets = np.eye(CLASSES)[data.classes.numpy()]
    fold = data.fold.numpy()
    splits = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(FOLDS)]
    found = []
    for layer in range(data.layers):
        with clock:
            features = stored[:, layer].double().numpy()
            found.append(RidgeCV(PENALTIES, cv=splits, scoring="r2").fit(features, targets))
    weights = np.stack([model.coef_ for model in found])
    scores = np.array([model.best_score_ for model in found])
    return {"penalties": [float(model.alpha_) for model in found], **summary(weights, scores)}


def summary(weights: Any, scores: Any) -> dict[str, Any]:
    """Return enough of weights (layers, classes, width) to tell whether two fits are one."""
    along = np.random.default_rng(0).normal(size=weights.shape[1:])
    return {
        "projections": (weights * along).sum((1, 2)).tolist(),
        "scores": [float(score) for score in scores],
    }


def our_logistic(data: Synthetic, clock: Clock, C: float, known: bool) -> dict[str, Any]:
    """Logistic regression layer by layer on stored activations; with `known`, the moments are there already."""
    stored = data.stored()
    moments = gather(data, Clock()) if known else None
    objectives, passes = [], []
    for layer in range(data.layers):
        features = stored[:, layer]
        with clock:
            axes = None if moments is None else axes_of(moments.pooled(layers=slice(layer, layer + 1)))
            fitted = logistic(features, data.classes, C, axes=axes)
        passes.append(fitted.passes)
        objectives.append(
            objective(fitted.weights.numpy(), fitted.offsets.numpy(), features, data.classes, C)
        )
    return {"objectives": objectives, "passes": passes}


def their_logistic(data: Synthetic, clock: Clock, C: float, dtype: str, tol: float) -> dict[str, Any]:
    """scikit-learn's LogisticRegression, layer by layer on stored activations."""
    stored = data.stored()
    objectives, passes = [], []
    for layer in range(data.layers):
        with clock:
            features = stored[:, layer].to(getattr(torch, dtype)).numpy()
            model = LogisticRegression(C=C, tol=tol, max_iter=20_000).fit(features, data.classes.numpy())
        passes.append(int(model.n_iter_[0]))
        objectives.append(objective(model.coef_, model.intercept_, stored[:, layer], data.classes, C))
    return {"objectives": objectives, "passes": passes}


def objective(weights: Any, offsets: Any, features: Tensor, classes: Tensor, C: float) -> float:
    """Return scikit-learn's objective in float64, by C · texts."""
    total = 0.0
    weights, offsets = (torch.as_tensor(part, dtype=torch.float64) for part in (weights, offsets))
    for x, y in zip(features.split(1000), classes.split(1000), strict=True):
        logits = x.double() @ weights.T + offsets
        total += float(torch.nn.functional.cross_entropy(logits, y, reduction="sum"))
    return total / len(features) + float((weights**2).sum()) / (2 * C * len(features))


def gathering(data: Synthetic, clock: Clock, times: int) -> dict[str, Any]:
    """Nothing but the pass, over the same activations several times where there shall be more texts."""
    return {"texts": int(gather(data, clock, times).count.sum())}


MEASUREMENTS: dict[str, Callable[..., dict[str, Any]]] = {
    function.__name__: function
    for function in (our_ridge, our_ridge_by_layers, their_ridge, our_logistic, their_logistic, gathering)
}


def measure(name: str, size: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Run a measurement in a process of its own; return what it found, its seconds and bytes."""
    print(name, size, options, file=sys.stderr, flush=True)
    order = json.dumps([name, size, options])
    command = [sys.executable, __file__, "--measure", order]
    # What is freed goes back to the system at once, on either side.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "262144"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measured(order: str) -> dict[str, Any]:
    """Carry out what `measure` orders."""
    name, size, options = json.loads(order)
    torch.set_num_threads(1)
    warm = {"texts": 600, "layers": 1, "width": 64}
    MEASUREMENTS[name](Synthetic(**warm), Clock(), **options)  # what libraries set up on first use
    data, clock = Synthetic(**size), Clock()
    data.stored().aminmax()  # from here on the activations are resident
    Path("/proc/self/clear_refs").write_text("5")  # the most so far is what is there now
    before = memory("VmRSS")
    found = MEASUREMENTS[name](data, clock, **options)
    return {**found, "seconds": clock.seconds, "bytes": memory("VmHWM") - before}


# The comparison ------------------------------------------------------------------------------------------------------


def theirs(name: str, size: dict[str, Any], layers: int, **options: Any) -> dict[str, Any]:
    """Measure scikit-learn on the first layers, and multiply its seconds up to all."""
    found = measure(name, {**size, "layers": layers}, **options)
    times = size["layers"] / layers
    return {
        **found,
        "layers": layers,
        "seconds": {what: times * one for what, one in found["seconds"].items()},
    }


def compare_ridge(size: dict[str, Any], layers: int) -> dict[str, Any]:
    """Compare the ridge regressions, and show that they are one."""
    one_pass, by_layers = measure("our_ridge", size), measure("our_ridge_by_layers", size)
    sklearns = theirs("their_ridge", size, layers)
    for ours in (one_pass, by_layers):
        for key in ("projections", "scores"):
            mine, wanted = ours[key][:layers], sklearns[key]
            ours[f"{key}_apart"] = float(np.max(np.abs(np.subtract(mine, wanted) / wanted)))
            assert ours[f"{key}_apart"] < EXACT, (key, mine, wanted)
        assert ours["penalties"][:layers] == sklearns["penalties"]
    stored = 4 * size["texts"] * size["layers"] * size["width"]
    return {
        "one_pass": {**one_pass, **ratios(one_pass, sklearns)},
        "ours": {**by_layers, **ratios(by_layers, sklearns)},
        "scikit-learn": sklearns,
        "stored_bytes": stored,
        "one_pass_share": one_pass["bytes"] / (sklearns["bytes"] + stored),
    }


def compare_logistic(size: dict[str, Any], layers: int, C: float) -> dict[str, Any]:
    """Compare logistic regressions with scikit-learn's fastest that comes as close to the least objective."""
    ours = measure("our_logistic", size, C=C, known=False)
    known = measure("our_logistic", size, C=C, known=True)
    attempts = []
    for dtype, tol in ATTEMPTS:  # on one layer first
        tried = measure("their_logistic", {**size, "layers": 1}, C=C, dtype=dtype, tol=tol)
        above = tried["objectives"][0] / ours["objectives"][0] - 1
        attempts.append({"dtype": dtype, "tol": tol, "seconds": tried["seconds"], "above": above})
        if above <= CLOSE / 2:
            break
    sklearns = theirs("their_logistic", size, layers, C=C, dtype=dtype, tol=tol)
    least = np.minimum(ours["objectives"][:layers], sklearns["objectives"])
    for one in (ours, sklearns):
        one["above_least"] = float(np.max(np.array(one["objectives"][:layers]) / least - 1))
        assert one["above_least"] < CLOSE, one
    return {
        "C": C,
        "ours": {**ours, **ratios(ours, sklearns)},
        "ours_with_moments_known": {**known, **ratios(known, sklearns)},
        "scikit-learn": {**sklearns, "dtype": dtype, "tol": tol},
        "attempts": attempts,
    }


def ratios(ours: dict[str, Any], sklearns: dict[str, Any]) -> dict[str, float]:
    """Return how many times faster ours is, by CPU and wall, and what share of the memory it takes."""
    return {
        "ratio": sklearns["seconds"]["cpu"] / ours["seconds"]["cpu"],
        "wall_ratio": sklearns["seconds"]["wall"] / ours["seconds"]["wall"],
        "memory_share": ours["bytes"] / sklearns["bytes"],
    }


def run(size: dict[str, Any], layers: int) -> dict[str, Any]:
    """Make all comparisons."""
    loads = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as folder:
        size = {**size, "path": str(Path(folder) / "activations")}
        data = Synthetic(**size)
        everything = data.mapped("w+")
        for rows, vectors in data.drawn():
            everything[rows] = vectors
        del everything
        ridges = compare_ridge(size, layers)
        loads.append(os.getloadavg()[0])
        logistics = [compare_logistic(size, layers, C) for C in (10 / size["width"], 1.0)]
        loads.append(os.getloadavg()[0])
        few = {**size, "layers": min(FLAT_LAYERS, size["layers"])}
        flat = [
            measure("gathering", {**few, "texts": size["texts"] * tenths // 10}, times=times)
            for tenths, times in ((1, 1), (10, 1), (10, 10))
        ]
    del size["path"]
    return {
        "size": size,
        "ridge": ridges,
        "logistic": logistics,
        "memory": [{"texts": one["texts"], "bytes": one["bytes"], "seconds": one["seconds"]} for one in flat],
        "load": [*loads, os.getloadavg()[0]],
        "versions": {
            "torch": torch.__version__,
            "scikit-learn": sklearn.__version__,
            "numpy": np.__version__,
        },
        "machine": f"{processor()}, {os.cpu_count()} cores",
    }


def processor() -> str:
    """Return what the processor calls itself."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def as_markdown(found: dict[str, Any]) -> str:
    """Return the tables, with each target beside what was measured."""
    size, ridge = found["size"], found["ridge"]

    def mega(count: float) -> str:
        return f"{count / 1e6:,.0f} MB"

    def row(name: str, one: dict[str, Any]) -> str:
        told = f"{one['ratio']:.1f} × | {one['memory_share']:.2f}" if "ratio" in one else " | "
        return f"| {name} | {one['seconds']['cpu']:.1f} s | {one['seconds']['wall']:.1f} s | {mega(one['bytes'])} | {told} |"

    def verdict(what: str, ratio: float) -> str:
        wanted = TARGETS[what]
        met = ratio <= wanted if what == "memory" else ratio >= wanted
        return f"{ratio:.2f} (target {wanted:g}: {'met' if met else 'not met'})"

    timed = ridge["scikit-learn"]["layers"]
    multiplied = (
        f" scikit-learn was timed on {timed} of the layers and its times multiplied up."
        if timed < size["layers"]
        else ""
    )
    lines = [
        "# Probes out of one-pass moments, beside scikit-learn",
        "",
        f"{size['texts']:,} texts, {size['layers']} layers of width {size['width']}, {CLASSES} classes, synthetic; one thread "
        f"of {found['machine']}; {', '.join(f'{name} {version}' for name, version in found['versions'].items())}. Load of the "
        f"machine before, between and after: {', '.join(f'{load:.1f}' for load in found['load'])}.{multiplied} Written by "
        "`python benchmarks/moments.py`.",
        "",
        "Extra memory is the most that was resident beyond Python, the libraries and the stored activations "
        f"({mega(ridge['stored_bytes'])} in float32, memory-mapped).",
        "",
        *([found["corrected"], ""] if "corrected" in found else []),
        f"## Ridge: {len(PENALTIES)} penalties, {FOLDS} grouped folds",
        "",
        "| | CPU | wall | extra memory | faster | share of memory |",
        "|---|---|---|---|---|---|",
        row("RidgeCV, layer by layer", ridge["scikit-learn"]),
        row("moments, layer by layer", ridge["ours"]),
        row("moments of all layers in one pass", ridge["one_pass"]),
        "",
        f"From the same stored activations, layer by layer: speed {verdict('ridge', ridge['ours']['ratio'])}, share of the "
        f"extra memory {verdict('memory', ridge['ours']['memory_share'])}. In one pass for all layers, no activations "
        f"stored: speed {verdict('ridge', ridge['one_pass']['ratio'])}, share of what activations and scikit-learn's loop take "
        f"{verdict('memory', ridge['one_pass_share'])}; that memory does not grow with the texts, and theirs does. "
        f"The pass itself takes {ridge['one_pass']['gathering']['cpu']:.1f} s of the CPU, and serves every other probe too. "
        f"The same penalties are chosen; scores differ by at most {ridge['one_pass']['scores_apart']:.0e}, weights by "
        f"{ridge['one_pass']['projections_apart']:.0e} (relative).",
        "",
        "## Logistic regression",
        "",
        "scikit-learn's is the fastest of several precisions and tolerances that comes within 1e-4 of the least objective.",
        "",
        "| C | | CPU | wall | extra memory | faster | share of memory | objective above the least |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in found["logistic"]:
        sklearns = one["scikit-learn"]
        rows = [
            (f"LogisticRegression, {sklearns['dtype']}, tol={sklearns['tol']:g}", sklearns),
            ("preconditioned", one["ours"]),
            ("the same, moments known", one["ours_with_moments_known"]),
        ]
        for name, part in rows:
            above = f" {part['above_least']:.0e} |" if "above_least" in part else " |"
            lines.append(f"| {one['C']:.3g} {row(name, part)}{above}")
    told = "; ".join(
        f"C = {one['C']:.3g}: speed {verdict('logistic', one['ours']['ratio'])}, share of the extra memory "
        f"{verdict('memory', one['ours']['memory_share'])}"
        for one in found["logistic"]
    )
    few = min(FLAT_LAYERS, size["layers"])
    lines += ["", f"{told}.", "", f"## Memory of the pass, {few} layers", ""]
    lines += ["| texts | extra memory | CPU |", "|---|---|---|"]
    lines += [
        f"| {one['texts']:,} | {mega(one['bytes'])} | {one['seconds']['cpu']:.1f} s |"
        for one in found["memory"]
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print and, unless small, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="try a small case and write nothing")
    parser.add_argument("--theirs", type=int, help="time scikit-learn's loop on so many layers only")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measured(options.measure)))
        return
    size = SMALL if options.small else FULL
    found = run(size, options.theirs or size["layers"])
    text = as_markdown(found)
    print(text)
    if not options.small:
        write_bytes(HERE / "moments.json", (json.dumps(found, indent=1) + "\n").encode())
        write_bytes(HERE / "moments.md", text.encode())


if __name__ == "__main__":
    main()
