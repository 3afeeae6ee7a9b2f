"""Measure valuation attention beside unmodified fused attention, as ratios within one run.

    python benchmarks/attention.py [--device cpu] [--seconds 200]

CPU (one thread, float32, CPU time): time at n = 2,048 and 4,096 of folded, plain and built-bias attention, and memory at up
to 16,384.
GPU (bfloat16, causal): first each implementation against a float64 reference, then time at n = 8,192 and 32,768 beside each
back end of SDPA, FlexAttention and a built bias. Results go to attention_DEVICE.json, as they come, and to attention.md, in
the folder $OUT or else beside this file; what fails is a line too. Needs torch (and triton) alone, not the rest of what
emoprobe depends on, and takes FlashAttention-4 along where it is installed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from attention_cases import CASES, draw  # makes emoprobe importable without the rest of what it depends on
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa

from emoprobe.folding import fold_keys, fold_queries
from emoprobe.valattn.attention import val_attention

FOLDER = Path(os.environ.get("OUT", Path(__file__).parent))
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


class Log:
    """Results, on the screen and in a file of JSON lines, and the time that is left."""

    def __init__(self, device: str, seconds: float) -> None:
        self.file = (FOLDER / f"attention_{device}.json").open("w")
        self.end = time.monotonic() + seconds

    def __call__(self, section: str, **row: Any) -> None:
        line = json.dumps({"section": section, **row})
        print(line, flush=True)
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
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return None


# On a GPU ------------------------------------------------------------------------------------------------------------


def ways_of(run: Callable[..., Tensor], inputs: list[Tensor]) -> dict[str, Callable[[], object]]:
    """Return a forward pass, and a forward and a backward pass, as functions of nothing."""
    wanted = [t.detach().requires_grad_() for t in inputs]
    given = torch.randn_like(inputs[0])

    @torch.no_grad()
    def forward() -> object:
        return run(*inputs)

    return {"forward": forward, "both": lambda: torch.autograd.grad(run(*wanted), wanted, given)}


def gpu_milliseconds(run: Callable[[], object], device: str) -> float:
    """Return how long the GPU takes for a call; it first waits, so that all the work is queued when the clock starts."""
    if device == "cpu":
        started = time.perf_counter()
        run()
        return 1000 * (time.perf_counter() - started)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(8_000_000)
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def plain_on(backend: str) -> Callable[..., Tensor]:
    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(BACKENDS[backend]):
            return sdpa(q, k, v, is_causal=True)

    return run


def plain_flash_4(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from flash_attn.cute import flash_attn_func

    out: Tensor = flash_attn_func(*(t.transpose(1, 2) for t in (q, k, v)), causal=True)[0]
    return out.transpose(1, 2)


def folded_for_torch(q: Tensor, k: Tensor, v: Tensor, vq: Tensor, vk: Tensor, strength: Tensor) -> Tensor:
    """Folded attention on what torch chooses, as where FlashAttention-4 is not installed."""
    d, scale = q.shape[-1], q.shape[-1] ** -0.5
    wide_q = fold_queries(q, strength[:, None, None] * vq[:, None], scale)
    wide_k, wide_v = fold_keys(k, v, vk)
    return sdpa(wide_q, wide_k, wide_v, is_causal=True, scale=scale)[..., :d]


def built_bias(q: Tensor, k: Tensor, v: Tensor, vq: Tensor, vk: Tensor, strength: Tensor) -> Tensor:
    bias = (strength[:, None, None] * (vq @ vk.mT)[:, None]).to(q.dtype)
    ahead = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
    return sdpa(q, k, v, bias.masked_fill(ahead, -torch.inf))


def compare(log: Log, device: str, d: int, m: int, n: int, others: bool) -> None:
    """Time all ways to attend at one size in turn; ratios are to the fastest back end of unmodified attention.

    With `others`, these are FlexAttention and a built bias, which take long to compile or much memory.
    """
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    inputs = draw(1, 16, 16, n, n, d, m, device=device, dtype=dtype)
    backends = BACKENDS if device == "cuda" else ["flash"]
    plain = {f"plain {name}": plain_on(name) for name in backends}
    ours: dict[str, Callable[..., Tensor]] = {"default": val_attention}
    if others:
        ours |= {"flex": lambda *t: val_attention(*t, implementation="flex"), "built bias": built_bias}
    else:
        ours |= {
            "folded": lambda *t: val_attention(*t, implementation="folded"),
            "folded on torch": folded_for_torch,
            "triton": lambda *t: val_attention(*t, implementation="triton"),
        }
    size = {"d": d, "m": m, "n": n, "heads": 16, "batch": 1}
    runs: dict[tuple[str, str], Callable[[], object]] = {}
    for name, run in (*plain.items(), ("plain flash-attn-4", plain_flash_4), *ours.items()):
        for way, call in ways_of(run, inputs if name in ours else inputs[:3]).items():
            if log.attempt("fast", f"{size} {name} {way}", lambda call=call: (call(), call())):
                runs[name, way] = call
    times: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for _ in range(15 if n < 20000 else 7):
        for key, call in runs.items():
            times[key].append(gpu_milliseconds(call, device))
        if log.left() < 0:
            break
    found = {key: statistics.median(taken) for key, taken in times.items() if taken}
    for name in dict.fromkeys(name for name, _ in found):
        row: dict[str, float] = {}
        for way in ("forward", "both"):
            if (name, way) in found:
                fastest = min(taken for (who, how), taken in found.items() if how == way and who in plain)
                row[way] = round(found[name, way], 3)
                row[f"{way}_ratio"] = round(found[name, way] / fastest, 3)
        log("fast", way=name, **size, **row)


def on_gpu(log: Log, device: str, n: tuple[int, ...]) -> None:
    import triton

    from emoprobe.valattn import hopper

    row = {"torch": torch.__version__, "triton": triton.__version__, "flash-attn-4": None}
    if hopper.installed():
        row["flash-attn-4"] = version("flash-attn-4")
    if device == "cuda":
        row |= {"gpu": torch.cuda.get_device_name(), "cudnn": torch.backends.cudnn.version()}
    log("machine", **row)
    # Compiling takes most of the time, so that it is done side by side, in processes that may also fail or hang alone.
    jobs = [["attention_cases.py", str(i), "--device", device] for i in range(len(CASES))]

    def job(arguments: list[str]) -> str:
        command = [sys.executable, str(Path(__file__).with_name(arguments[0])), *arguments[1:]]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=100)
        except subprocess.TimeoutExpired as late:  # its output is bytes all the same
            before, error = (late.stdout or b"").decode(), "no end after 100 s"
        else:
            before, error = done.stdout, done.stderr[-600:] if done.returncode else ""
        failure = json.dumps({"section": "right", "what": arguments, "error": error})
        return f"{before}\n{failure}" if error else before

    with ThreadPoolExecutor(14 if device == "cuda" else 1) as pool:
        for output in pool.map(job, jobs if device == "cuda" else jobs[:2]):
            for line in output.splitlines():
                if line.startswith("{"):
                    found = json.loads(line)
                    log(found.pop("section"), **found)
    log("time", left=round(log.left()))
    for others in (False, True):
        for length in n:
            for d in (64, 128):
                for m in (3, 16):
                    if not others or (m, length) == (3, n[0]):
                        log.attempt(
                            "fast",
                            f"d={d} m={m} n={length}",
                            lambda d=d, m=m, length=length, others=others: compare(
                                log, device, d, m, length, others
                            ),
                        )
    log("time", left=round(log.left()))


# On a CPU ------------------------------------------------------------------------------------------------------------


def cpu_milliseconds(run: Callable[[], object]) -> float:
    started = time.process_time()
    run()
    return 1000 * (time.process_time() - started)


def on_cpu(log: Log) -> None:
    torch.set_num_threads(1)
    plain = plain_on("flash")
    ours = {"folded": val_attention, "built bias": built_bias}
    for n in (2048, 4096):
        inputs = draw(1, 8, 8, n, n, 64, 3, dtype=torch.float32)
        rows: dict[str, dict[str, float]] = {name: {} for name in ("plain", *ours)}
        for way, repeats in (("forward", 9), ("both", 5)):
            runs = {"plain": ways_of(plain, inputs[:3])[way]}
            runs |= {name: ways_of(run, inputs)[way] for name, run in ours.items()}
            rounds = [{name: cpu_milliseconds(run) for name, run in runs.items()} for _ in range(repeats + 1)]
            for name, row in rows.items():  # the first round warms up
                row[way] = round(statistics.median(taken[name] for taken in rounds[1:]), 1)
                ratio = statistics.median(taken[name] / taken["plain"] for taken in rounds[1:])
                row[f"{way}_ratio"] = round(ratio, 3)
        for name, row in rows.items():
            log("fast", way=name, n=n, d=64, m=3, heads=8, **row)
    for n in (4096, 8192, 16384):
        output = subprocess.run(
            [sys.executable, __file__, "--memory", str(n)], capture_output=True, text=True, check=True
        )
        log("memory", **json.loads(output.stdout))


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


def markdown() -> Iterator[str]:
    """Write down the results of all devices that lie in the folder."""
    yield "# Valuation attention beside unmodified attention\n"
    yield "Written by `python benchmarks/attention.py`. Times are in milliseconds, medians of runs taken in turn; ratios are to"
    yield "unmodified attention in the same run, on a GPU to the fastest back end of SDPA. `both` is forward and backward.\n"
    for device in ("cuda", "cpu"):
        path = FOLDER / f"attention_{device}.json"
        if path.exists():
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            yield from targets(rows, device)
            yield from (row["text"] + "\n" for row in rows if row["section"] == "note")
            for section in dict.fromkeys(row["section"] for row in rows if row["section"] != "note"):
                yield f"## {device}: {section}\n"
                of_it = [row for row in rows if row.get("section") == section and row.pop("section")]
                yield from table([row for row in of_it if not {"error", "skipped"} & set(row)])
                yield from (f"- {row}" for row in of_it if {"error", "skipped"} & set(row))
                yield ""


def targets(rows: list[dict[str, Any]], device: str) -> Iterator[str]:
    """Say of each size what was asked of valuation attention and what came out."""
    asked, way = ((1.10, 1.15), "default") if device == "cuda" else ((1.25, 1.20), "folded")
    yield f"## {device}: what was asked\n"
    yield f"| d | m | n | forward ≤ {asked[0]:.2f} | forward and backward ≤ {asked[1]:.2f} |"
    yield "|---|---|---|---|---|"
    for row in rows:
        if row["section"] == "fast" and row.get("way") == way:
            told = [
                f"{ratio} ({'met' if ratio <= most else 'not met'})"
                for ratio, most in zip((row["forward_ratio"], row["both_ratio"]), asked, strict=True)
            ]
            yield f"| {row['d']} | {row['m']} | {row['n']:,} | {told[0]} | {told[1]} |"
    yield ""


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if columns:
        yield "| " + " | ".join(columns) + " |"
        yield "|" + "---|" * len(columns)
    for row in rows:
        yield "| " + " | ".join(str(row.get(column, "")) for column in columns) + " |"
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seconds", type=float, default=200.0)
    parser.add_argument("--smoke", action="store_true", help="run the GPU's part on a CPU, at a small size")
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory:
        return memory(given.memory)
    log = Log(given.device, given.seconds)
    if given.smoke:
        on_gpu(log, "cpu", (128,))
    elif given.device == "cuda":
        on_gpu(log, "cuda", (8192, 32768))
    else:
        on_cpu(log)
    log.file.close()
    (FOLDER / "attention.md").write_text("\n".join(markdown()))


if __name__ == "__main__":
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "8")
    main()
