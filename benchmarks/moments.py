"""Measure what probes out of one-pass moments cost beside scikit-learn's on stored activations, within one run.

    python benchmarks/moments.py [--small]

Synthetic activations of 20,000 texts, 12 layers of width 768, with 8 classes and 100 topics that the folds keep whole. Their
variances fall as k^-1.5 along the k-th axis, which is about what the pooled activations of small language models do. Both
sides get one thread; times are of the CPU, which other programs disturb least, with the wall beside them. Each measurement
is a process of its own, whose memory is what it took at most beyond what Python and the libraries take. Writes
benchmarks/moments.json and benchmarks/moments.md; with `--small` a much smaller case is only printed.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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
from emoprobe.probes.logistic import logistic
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
TARGETS = {"ridge": 15.0, "logistic": 5.0, "memory": 0.1}


class Synthetic:
    """Draw activations, batch by batch and the same each time."""

    def __init__(self, texts: int, layers: int, width: int) -> None:
        generator = torch.Generator().manual_seed(0)
        spread = torch.arange(1, width + 1) ** -0.75
        turn = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
        self.mixing = spread[:, None] * turn
        # On each feature the variance is about the same, so that nobody has to standardise.
        self.mixing /= self.mixing.norm(dim=0)
        self.means = 0.1 * torch.randn(layers, CLASSES, width, generator=generator) @ self.mixing
        self.topics = 0.3 * torch.randn(layers, TOPICS, width, generator=generator) @ self.mixing
        self.centre = torch.randn(layers, width, generator=generator)
        self.classes = torch.randint(CLASSES, (texts,), generator=generator)
        self.topic = torch.randint(TOPICS, (texts,), generator=generator)
        self.fold = self.topic % FOLDS
        self.layers, self.width = layers, width

    def batches(self) -> Iterator[tuple[slice, Tensor]]:
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

    def stored(self) -> Tensor:
        """Return all activations, float32 (texts, layers, width)."""
        everything = torch.empty(len(self.classes), self.layers, self.width)
        for rows, vectors in self.batches():
            everything[rows] = vectors
        return everything


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


def gather(data: Synthetic, clock: Clock) -> Moments:
    """Gather moments by fold and class in one pass; the clock leaves out drawing the activations."""
    moments = Moments.zeros(data.layers, data.width, n_folds=FOLDS, n_classes=CLASSES)
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
    for layer in range(data.layers):
        with clock:
            moments = Moments.zeros(1, data.width, n_folds=FOLDS, n_classes=CLASSES)
            moments.add(stored[:, layer : layer + 1], fold=data.fold, classes=data.classes)
            best = grouped_k_fold(moments, PENALTIES.tolist()).r2.mean((0, 2, 3)).argmax()
            ridge(moments, [float(PENALTIES[int(best)])])
    return {}


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
            pooled = None if moments is None else moments.pooled(layers=slice(layer, layer + 1))
            fitted = logistic(features, data.classes, C, pooled=pooled)
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


def gathering(data: Synthetic, clock: Clock) -> dict[str, Any]:
    """Nothing but the pass."""
    return {"texts": int(gather(data, clock).count.sum())}


MEASUREMENTS: dict[str, Callable[..., dict[str, Any]]] = {
    function.__name__: function
    for function in (our_ridge, our_ridge_by_layers, their_ridge, our_logistic, their_logistic, gathering)
}


def measure(name: str, size: dict[str, int], **options: Any) -> dict[str, Any]:
    """Run a measurement in a process of its own; return what it found, its seconds and bytes."""
    print(name, size, options, file=sys.stderr, flush=True)
    order = json.dumps([name, size, options])
    command = [sys.executable, __file__, "--measure", order]
    # What is freed goes back to the system at once, where memory is compared layer by layer.
    returning = {"MALLOC_MMAP_THRESHOLD_": "262144"} if name in ("our_ridge_by_layers", "their_ridge") else {}
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, **returning}
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measured(order: str) -> dict[str, Any]:
    """Carry out what `measure` orders."""
    name, size, options = json.loads(order)
    torch.set_num_threads(1)
    warm = {"texts": 600, "layers": 1, "width": 64}
    MEASUREMENTS[name](Synthetic(**warm), Clock(), **options)  # what libraries set up on first use
    data, clock = Synthetic(**size), Clock()
    before = memory("VmRSS")
    found = MEASUREMENTS[name](data, clock, **options)
    stored = 4 * size["texts"] * size["layers"] * size["width"]
    return {**found, "seconds": clock.seconds, "bytes": memory("VmHWM") - before, "stored_bytes": stored}


# The comparison ------------------------------------------------------------------------------------------------------


def compare_ridge(size: dict[str, int]) -> dict[str, Any]:
    """Compare the ridge regressions, and show that they are one."""
    ours, theirs = measure("our_ridge", size), measure("their_ridge", size)
    by_layers = measure("our_ridge_by_layers", size)
    extra = [one["bytes"] - one["stored_bytes"] for one in (by_layers, theirs)]
    apart = [
        float(np.max(np.abs(np.subtract(ours[key], theirs[key])) / np.abs(theirs[key])))
        for key in ("projections", "scores")
    ]
    return {
        "ours": ours,
        "ours_by_layers": by_layers,
        "scikit-learn": theirs,
        "extra_share": extra[0] / extra[1],
        "same_penalties": ours["penalties"] == theirs["penalties"],
        "weights_apart": apart[0],
        "scores_apart": apart[1],
        **ratios(ours, theirs),
    }


def compare_logistic(size: dict[str, int], C: float) -> dict[str, Any]:
    """Compare logistic regressions with scikit-learn's fastest that comes as close to the least objective."""
    ours = measure("our_logistic", size, C=C, known=False)
    known = measure("our_logistic", size, C=C, known=True)
    attempts = []
    for dtype, tol in ATTEMPTS:  # on one layer first
        options = {"C": C, "dtype": dtype, "tol": tol}
        tried = measure("their_logistic", {**size, "layers": 1}, **options)
        best = measure("our_logistic", {**size, "layers": 1}, C=C, known=False)["objectives"][0]
        attempts.append(
            {
                "dtype": dtype,
                "tol": tol,
                "seconds": tried["seconds"],
                "above": tried["objectives"][0] / best - 1,
            }
        )
        if attempts[-1]["above"] <= CLOSE / 2:
            break
    theirs = measure("their_logistic", size, **options)
    least = np.minimum(ours["objectives"], theirs["objectives"])
    for one in (ours, theirs):
        one["above_least"] = float(np.max(np.array(one["objectives"]) / least - 1))
    return {
        "C": C,
        "ours": ours,
        "ours_with_moments_known": known,
        "scikit-learn": {**theirs, "dtype": dtype, "tol": tol},
        "attempts": attempts,
        "ratio_with_moments_known": theirs["seconds"]["cpu"] / known["seconds"]["cpu"],
        **ratios(ours, theirs),
    }


def ratios(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """Return how many times faster ours is, by CPU and wall, and what share of the memory it takes."""
    return {
        "ratio": theirs["seconds"]["cpu"] / ours["seconds"]["cpu"],
        "wall_ratio": theirs["seconds"]["wall"] / ours["seconds"]["wall"],
        "memory_share": ours["bytes"] / theirs["bytes"],
    }


def run(size: dict[str, int]) -> dict[str, Any]:
    """Make all comparisons."""
    flat = [measure("gathering", {**size, "texts": size["texts"] * tenths // 10}) for tenths in (1, 10, 100)]
    return {
        "size": size,
        "ridge": compare_ridge(size),
        "logistic": [compare_logistic(size, C) for C in (10 / size["width"], 1.0)],
        "memory": [{"texts": one["texts"], "bytes": one["bytes"], "seconds": one["seconds"]} for one in flat],
        "load": os.getloadavg(),
        "versions": {
            "torch": torch.__version__,
            "scikit-learn": sklearn.__version__,
            "numpy": np.__version__,
        },
        "machine": platform.processor() or platform.machine(),
    }


def as_markdown(found: dict[str, Any]) -> str:
    """Return the tables, with each target beside what was measured."""
    size, ridge = found["size"], found["ridge"]

    def mega(count: float) -> str:
        return f"{count / 1e6:,.0f} MB"

    def row(name: str, one: dict[str, Any], ratio: float | None = None) -> str:
        told = "" if ratio is None else f"{ratio:.1f} ×"
        return f"| {name} | {one['seconds']['cpu']:.1f} s | {one['seconds']['wall']:.1f} s | {mega(one['bytes'])} | {told} |"

    def verdict(what: str, ratio: float) -> str:
        wanted = TARGETS[what]
        met = ratio <= wanted if what == "memory" else ratio >= wanted
        return f"{ratio:.2f} (target {wanted:g}: {'met' if met else 'not met'})"

    lines = [
        "# Probes out of one-pass moments, beside scikit-learn",
        "",
        f"{size['texts']:,} texts, {size['layers']} layers of width {size['width']}, {CLASSES} classes, synthetic; one thread; "
        f"{', '.join(f'{name} {version}' for name, version in found['versions'].items())}. Written by "
        "`python benchmarks/moments.py`.",
        "",
        "Memory is the most that a process took beyond Python and the libraries. scikit-learn's has the stored activations "
        f"({mega(ridge['ours']['stored_bytes'])} in float32), which one pass does without; logistic regression needs them "
        "on either side.",
        "",
        f"## Ridge: {len(PENALTIES)} penalties, {FOLDS} grouped folds",
        "",
        "| | CPU | wall | memory | faster |",
        "|---|---|---|---|---|",
        row("RidgeCV, layer by layer", ridge["scikit-learn"]),
        row("moments, layer by layer", ridge["ours_by_layers"]),
        row("moments, one pass for all layers", ridge["ours"], ridge["ratio"]),
        "",
        f"Speed: {verdict('ridge', ridge['ratio'])}. Share of the memory beyond the stored activations, both layer by layer: "
        f"{verdict('memory', ridge['extra_share'])}; of all memory, the one pass without them: "
        f"{verdict('memory', ridge['memory_share'])}. "
        f"The pass itself takes {ridge['ours']['gathering']['cpu']:.1f} s of it, and serves every other probe too. "
        f"{'The same' if ridge['same_penalties'] else 'Not the same'} penalties are chosen; scores differ by at most "
        f"{ridge['scores_apart']:.0e}, weights by {ridge['weights_apart']:.0e} (relative).",
        "",
        "## Logistic regression",
        "",
        "scikit-learn's is the fastest of several precisions and tolerances that comes within 1e-4 of the least objective.",
        "",
        "| C | | CPU | wall | memory | faster | objective above the least |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found["logistic"]:
        theirs = one["scikit-learn"]
        rows = [
            (f"LogisticRegression, {theirs['dtype']}, tol={theirs['tol']:g}", theirs, None),
            ("preconditioned", one["ours"], one["ratio"]),
            ("the same, moments known", one["ours_with_moments_known"], one["ratio_with_moments_known"]),
        ]
        for name, part, ratio in rows:
            above = f" {part['above_least']:.0e} |" if "above_least" in part else " |"
            lines.append(f"| {one['C']:.3g} {row(name, part, ratio)}{above}")
    told = "; ".join(
        f"C = {one['C']:.3g}: speed {verdict('logistic', one['ratio'])}" for one in found["logistic"]
    )
    lines += ["", f"{told}.", "", "## Memory of the pass", "", "| texts | memory | CPU |", "|---|---|---|"]
    lines += [
        f"| {one['texts']:,} | {mega(one['bytes'])} | {one['seconds']['cpu']:.1f} s |"
        for one in found["memory"]
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print and, unless small, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="try a small case and write nothing")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measured(options.measure)))
        return
    found = run(SMALL if options.small else FULL)
    text = as_markdown(found)
    print(text)
    if not options.small:
        write_bytes(HERE / "moments.json", (json.dumps(found, indent=1) + "\n").encode())
        write_bytes(HERE / "moments.md", text.encode())


if __name__ == "__main__":
    main()
