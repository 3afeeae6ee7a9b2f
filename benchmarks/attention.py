"""Measure valuation attention beside unmodified fused attention, as ratios within one run.

    python benchmarks/attention.py [--device cpu] [--out FILE] [--seconds 150]

CPU (one thread, float32): time at n = 2,048 and 4,096 of folded, plain and built-bias attention, and memory at up to 16,384.
GPU (bfloat16, causal): first each implementation against a float64 reference, then the tile sizes of our kernel, then time at
n = 8,192 and 32,768 beside each back end of SDPA, FlexAttention and a built bias. Results are JSON lines, written as they
come; a section that fails is a line too. Needs torch (and triton) alone, not the rest of what emoprobe depends on.
"""

# ruff: noqa: B023 (what closes over a loop variable is called within its turn)

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa

ROOT = Path(__file__).resolve().parents[1]
for name, folder in (("emoprobe", "emoprobe"), ("emoprobe.valattn", "valattn")):
    package = types.ModuleType(name)  # without what the real ones import
    package.__path__ = [str(ROOT / folder)]
    sys.modules[name] = package

from emoprobe.folding import fold_keys, fold_queries  # noqa: E402
from emoprobe.valattn.attention import val_attention  # noqa: E402

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
CASES: list[dict[str, Any]] = [  # each tells what is special about it
    {"d": 64, "m": 3, "queries": 257, "keys": 257},
    {"d": 128, "m": 16, "queries": 1025, "keys": 1025},
    {"d": 64, "m": 3, "queries": 200, "keys": 333, "kv_heads": 2, "padded": True},
    {"d": 128, "m": 5, "queries": 300, "keys": 300, "kv_heads": 2, "window": 70, "softcap": 20.0},
    {"d": 96, "m": 7, "queries": 1, "keys": 129},
    {"d": 96, "m": 3, "queries": 257, "keys": 257, "dtype": "float16"},
    {"d": 256, "m": 32, "queries": 130, "keys": 130},
    {"d": 64, "m": 4, "queries": 100, "keys": 170, "causal": False},
    {"d": 64, "m": 3, "queries": 257, "keys": 257, "size": 20.0},
]
NAMES = ("out", "dq", "dk", "dv", "dvq", "dvk", "dstrength")


class Log:
    """JSON lines, on the screen and in a file, and the time that is left."""

    def __init__(self, out: Path | None, seconds: float) -> None:
        self.file = out.open("a") if out else None
        self.end = time.monotonic() + seconds

    def __call__(self, section: str, **row: Any) -> None:
        line = json.dumps({"section": section, **row})
        print(line, flush=True)
        if self.file:
            self.file.write(line + "\n")
            self.file.flush()

    def left(self) -> float:
        return self.end - time.monotonic()

    def attempt(self, section: str, what: str, run: Callable[[], Any]) -> Any:
        """Return what `run` returns, or None with a line that says why there is nothing."""
        if self.left() < 0:
            return self(section, what=what, skipped="no time left")
        try:
            return run()
        except Exception as error:
            self(section, what=what, error=f"{type(error).__name__}: {error}"[:400])
            torch.cuda.empty_cache()
        return None


def draw(
    batch: int, heads: int, kv_heads: int, queries: int, keys: int, d: int, m: int, **to: Any
) -> list[Tensor]:
    """Return q, k, v, vq, vk and strength; valuations lie in (-1, 1) as tanh leaves them."""
    torch.manual_seed(0)
    around = [(batch, heads, queries, d), (batch, kv_heads, keys, d), (batch, kv_heads, keys, d)]
    valuations = [torch.tanh(torch.randn(batch, n, m)) for n in (queries, keys)]
    strength = torch.linspace(0.5, 1.5, heads).to(to.get("device"))
    return [*[t.to(**to) for t in [*(torch.randn(s) for s in around), *valuations]], strength]


# Right? --------------------------------------------------------------------------------------------------------------


def relative_errors(case: dict[str, Any], implementation: str, device: str) -> dict[str, float]:
    """Return ‖x − x₆₄‖ / ‖x₆₄‖ of the output and of each gradient."""
    case = {"kv_heads": 4, "dtype": "bfloat16", "size": 1.0, **case}
    dtype = getattr(torch, case["dtype"])
    keys = case["keys"]
    inputs = draw(
        2, 4, case["kv_heads"], case["queries"], keys, case["d"], case["m"], device=device, dtype=dtype
    )
    inputs[5] = inputs[5] * case["size"]
    options: dict[str, Any] = {k: case[k] for k in ("causal", "window", "softcap") if k in case}
    if case.get("padded"):
        options["mask"] = (torch.arange(keys) >= torch.tensor([[0], [keys // 3]]))[:, None, None].to(device)
    ours = [t.detach().requires_grad_() for t in inputs]
    truth = [t.detach().double().requires_grad_() for t in inputs]
    out = val_attention(*ours, implementation=implementation, **options)
    exact = val_attention(*truth, implementation="reference", **options)
    given = torch.randn(out.shape, device=device).to(dtype)
    pairs = zip(
        (out, *torch.autograd.grad(out, ours, given)),
        (exact, *torch.autograd.grad(exact, truth, given.double())),
        strict=True,
    )
    errors = [float((a.double() - b).norm() / b.norm()) for a, b in pairs]
    return dict(zip(NAMES, errors, strict=True))


def check_one(log: Log, number: int, device: str) -> None:
    for implementation in ("triton", "folded"):
        if implementation == "folded" and "softcap" in CASES[number]:
            continue
        case = CASES[number]
        found = log.attempt(
            "right", f"{implementation} {case}", lambda: relative_errors(case, implementation, device)
        )
        if found:
            log("right", implementation=implementation, case=case, worst=max(found.values()), errors=found)


# Fast? ---------------------------------------------------------------------------------------------------------------


def milliseconds(run: Callable[[], object], repeats: int = 12) -> float:
    """Return the median time of a call on the GPU."""
    for _ in range(3):
        run()
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start, end in pairs:
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in pairs)


def both_ways(run: Callable[..., Tensor], inputs: list[Tensor]) -> dict[str, float]:
    """Return the time of a forward pass, and of forward and backward."""
    with torch.no_grad():
        forward = milliseconds(lambda: run(*inputs))
    wanted = [t.detach().requires_grad_() for t in inputs]
    given = torch.randn_like(run(*inputs))
    return {
        "forward": forward,
        "both": milliseconds(lambda: torch.autograd.grad(run(*wanted), wanted, given)),
    }


def with_tiles(kind: str, tiles: Any) -> Callable[..., Tensor]:
    """Return attention by our kernel, with these tiles in the kernel `kind` and the usual ones in the others."""
    from emoprobe.valattn.kernels.flash import Setting, choose_tiles, flash_val_attention

    def run(q: Tensor, *rest: Tensor) -> Tensor:
        choices = choose_tiles(q)._replace(**{kind: tiles})
        return flash_val_attention(q, *rest, Setting(q.shape[-1] ** -0.5, choices=choices))

    return run


def compile_tiles(d: int, number: int) -> None:
    """Compile the kernels with the tiles of this number, so that a process that comes later finds them."""
    from emoprobe.valattn.kernels import tiles

    inputs = draw(2, 16, 16, 256, 256, d, 3, device="cuda", dtype=torch.bfloat16)
    for kind, table in (
        ("forward", tiles.FORWARD),
        ("queries", tiles.BACKWARD_QUERIES),
        ("keys", tiles.BACKWARD_KEYS),
    ):
        if number < len(table[d]):
            wanted = [t.requires_grad_() for t in inputs]
            with_tiles(kind, table[d][number])(*wanted).sum().backward()
    torch.cuda.synchronize()


def best_tiles(log: Log, d: int) -> None:
    """Time every tile size and put the fastest first in its list, for what follows in this process."""
    from emoprobe.valattn.kernels import tiles

    inputs = draw(2, 16, 16, 8192, 8192, d, 3, device="cuda", dtype=torch.bfloat16)
    for kind, table in (
        ("forward", tiles.FORWARD),
        ("queries", tiles.BACKWARD_QUERIES),
        ("keys", tiles.BACKWARD_KEYS),
    ):
        times = {}
        for size in table[d]:
            found = log.attempt(
                "tiles", f"{kind} {tuple(size)}", lambda: both_ways(with_tiles(kind, size), inputs)
            )
            if found:
                times[size] = found["forward" if kind == "forward" else "both"]
                log("tiles", d=d, kind=kind, tiles=list(size), **found)
        if times:
            table[d].sort(key=lambda size: times.get(size, 1e9))


def folded_on(backend: str, width: int, value_width: int | None = None) -> Callable[..., Tensor]:
    """Return folded attention on one back end, widened to `width` columns; values to `value_width`."""

    def run(q: Tensor, k: Tensor, v: Tensor, vq: Tensor, vk: Tensor, strength: Tensor) -> Tensor:
        d, scale = q.shape[-1], q.shape[-1] ** -0.5
        wide_q = fold_queries(q, strength[:, None, None] * vq[:, None], scale)
        wide_k, _ = fold_keys(k, v, vk)
        wide_q, wide_k = (torch.nn.functional.pad(t, (0, width - t.shape[-1])) for t in (wide_q, wide_k))
        wide_v = torch.nn.functional.pad(v, (0, (value_width or width) - d))
        with sdpa_kernel(BACKENDS[backend]):
            return sdpa(wide_q, wide_k, wide_v, is_causal=True, scale=scale)[..., :d]

    return run


def plain_on(backend: str) -> Callable[..., Tensor]:
    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(BACKENDS[backend]):
            return sdpa(q, k, v, is_causal=True)

    return run


def built_bias(q: Tensor, k: Tensor, v: Tensor, vq: Tensor, vk: Tensor, strength: Tensor) -> Tensor:
    bias = (strength[:, None, None] * (vq @ vk.mT)[:, None]).to(q.dtype)
    ahead = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
    return sdpa(q, k, v, bias.masked_fill(ahead, -torch.inf))


def compare(log: Log, d: int, m: int, n: int, others: bool) -> None:
    """Time all ways to attend at one size; ratios are to the fastest back end of unmodified attention."""
    inputs = draw(2 if n < 20000 else 1, 16, 16, n, n, d, m, device="cuda", dtype=torch.bfloat16)
    size = {"d": d, "m": m, "n": n, "heads": 16, "batch": inputs[0].shape[0]}
    plain = {
        name: log.attempt(
            "fast", f"{size} plain {name}", lambda name=name: both_ways(plain_on(name), inputs[:3])
        )
        for name in BACKENDS
    }
    fastest = {way: min(found[way] for found in plain.values() if found) for way in ("forward", "both")}
    widths = {64: 80 if m <= 5 else 112, 128: 144 if m <= 5 else 176}
    ways: dict[str, Callable[..., Tensor]] = {
        "triton": lambda *t: val_attention(*t, implementation="triton"),
        "folded": lambda *t: val_attention(*t, implementation="folded"),
        **{f"folded on {name}": folded_on(name, widths[d]) for name in BACKENDS},
        "folded on cudnn, values as they are": folded_on("cudnn", widths[d], d),
    }
    if d == 128:
        ways["folded on cudnn, 192 and 128"] = folded_on("cudnn", 192, 128)
    if others:
        ways = {"flex": lambda *t: val_attention(*t, implementation="flex"), "built bias": built_bias}
    for name, found in plain.items():
        if found and not others:
            log("fast", way=f"plain {name}", **size, **found)
    for name, run in ways.items():
        found = log.attempt("fast", f"{size} {name}", lambda run=run: both_ways(run, inputs))
        if found:
            ratios = {f"{way}_ratio": round(found[way] / fastest[way], 3) for way in fastest}
            log("fast", way=name, **size, **found, **ratios)


def on_gpu(log: Log) -> None:
    import triton

    log("machine", gpu=torch.cuda.get_device_name(), torch=torch.__version__, triton=triton.__version__,
        cudnn=torch.backends.cudnn.version())  # fmt: skip
    # Compiling takes most of the time, so that it is done side by side, in processes that may also fail or hang alone.
    jobs = [["--case", str(i)] for i in range(len(CASES))]
    jobs += [["--compile", f"{d},{i}"] for d in (64, 128) for i in range(4)]

    def job(arguments: list[str]) -> str:
        command = [sys.executable, __file__, "--device", "cuda", *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=75)
        except subprocess.TimeoutExpired:
            return json.dumps({"section": "right", "what": arguments, "error": "no end after 75 s"})
        if done.returncode:
            return json.dumps({"section": "right", "what": arguments, "error": done.stderr[-600:]})
        return done.stdout

    with ThreadPoolExecutor(12) as pool:
        for output in pool.map(job, jobs):
            for line in output.splitlines():
                if line.startswith("{"):
                    row = json.loads(line)
                    log(row.pop("section"), **row)
    log("time", left=log.left())
    for d in (64, 128):
        log.attempt("tiles", f"d={d}", lambda d=d: best_tiles(log, d))
    for others in (False, True):
        for n in (8192, 32768):
            for d in (64, 128):
                for m in (3, 16):
                    if not others or (m, n) == (3, 8192):
                        what = f"d={d} m={m} n={n}"
                        log.attempt("fast", what, lambda d=d, m=m, n=n: compare(log, d, m, n, others))
    log("time", left=log.left())


# On a CPU ------------------------------------------------------------------------------------------------------------


def cpu_seconds(ways: dict[str, Callable[[], object]], repeats: int = 5) -> dict[str, float]:
    """Run in turn, so that all meet the same machine; return the shortest CPU time of each."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, run in ways.items():
            started = time.process_time()
            run()
            times[name].append(time.process_time() - started)
    return {name: min(found[1:]) for name, found in times.items()}


def on_cpu(log: Log) -> None:
    torch.set_num_threads(1)
    for n in (2048, 4096):
        inputs = draw(1, 8, 8, n, n, 64, 3, dtype=torch.float32)
        wanted = [t.detach().requires_grad_() for t in inputs]
        kinds: dict[str, Callable[..., Tensor]] = {
            "plain": lambda q, k, v, *rest: sdpa(q, k, v, is_causal=True),
            "folded": val_attention,
            "built bias": built_bias,
            "reference": lambda *t: val_attention(*t, implementation="reference"),
        }

        def both(run: Callable[..., Tensor], wanted: list[Tensor] = wanted) -> None:
            run(*wanted).sum().backward()

        with torch.no_grad():
            forward = cpu_seconds({name: lambda run=run: run(*inputs) for name, run in kinds.items()})  # type: ignore[misc]
        full = cpu_seconds({name: lambda run=run: both(run) for name, run in kinds.items()}, 3)  # type: ignore[misc]
        for name in kinds:
            log("cpu", n=n, way=name, forward=forward[name], both=full[name],
                forward_ratio=round(forward[name] / forward["plain"], 3),
                both_ratio=round(full[name] / full["plain"], 3))  # fmt: skip
    for n in (4096, 8192, 16384):
        output = subprocess.run(
            [sys.executable, __file__, "--memory", str(n)], capture_output=True, text=True, check=True
        )
        log("cpu memory", **json.loads(output.stdout))


def memory(n: int) -> None:
    """Print the peak of memory that a folded forward pass takes beyond an unmodified one, in bytes of q, k and v."""
    torch.set_num_threads(1)
    inputs = draw(1, 8, 8, n, n, 64, 3, dtype=torch.float32)
    val_attention(*[t[:, :, :64] if t.dim() == 4 else t[:, :64] if t.dim() == 3 else t for t in inputs])
    peaks = []
    with torch.no_grad():
        for run in (lambda: sdpa(*inputs[:3], is_causal=True), lambda: val_attention(*inputs)):
            before = resident("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # start the peak anew
            run()
            peaks.append(resident("VmHWM") - before)
    given = sum(t.nbytes for t in inputs[:3])
    print(
        json.dumps({"n": n, "plain": peaks[0], "folded": peaks[1], "over_qkv": (peaks[1] - peaks[0]) / given})
    )


def resident(key: str) -> int:
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(key))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seconds", type=float, default=150.0)
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--compile", help=argparse.SUPPRESS)
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    log = Log(given.out, given.seconds)
    if given.case is not None:
        check_one(log, given.case, given.device)
    elif given.compile:
        compile_tiles(*(int(part) for part in given.compile.split(",")))
    elif given.memory:
        memory(given.memory)
    elif given.device == "cuda":
        on_gpu(log)
    else:
        on_cpu(log)


if __name__ == "__main__":
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "8")
    main()
