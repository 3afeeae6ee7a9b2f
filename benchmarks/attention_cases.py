"""What the benchmark of valuation attention computes, drawn at random, and how far each implementation is from float64.

    python benchmarks/attention_cases.py CASE [--device cuda]

prints a JSON line for each implementation. Needs torch (and triton) alone, not the rest of what emoprobe depends on.
"""

# ruff: noqa: E402

import argparse
import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
for name, folder in (("emoprobe", "emoprobe"), ("emoprobe.valattn", "valattn")):
    package = types.ModuleType(name)  # without what the real ones import
    package.__path__ = [str(ROOT / folder)]
    sys.modules[name] = package

from emoprobe.valattn.attention import val_attention

NAMES = ("out", "dq", "dk", "dv", "dvq", "dvk", "dstrength")
CASES: list[
    dict[str, Any]
] = [  # each tells what is special about it; the first are computed in FlexAttention too
    {"d": 64, "m": 3, "queries": 257, "keys": 257, "flex": True},
    {"d": 64, "m": 3, "queries": 333, "keys": 333, "kv_heads": 2, "padded": "left", "flex": True},
    {"d": 128, "m": 3, "queries": 300, "keys": 300, "kv_heads": 2, "window": 70, "flex": True},
    {"d": 128, "m": 3, "queries": 257, "keys": 257, "softcap": 20.0, "flex": True},
    {"d": 128, "m": 16, "queries": 1025, "keys": 1025},
    {"d": 128, "m": 16, "queries": 333, "keys": 333, "kv_heads": 2, "padded": "right"},
    {"d": 64, "m": 32, "queries": 300, "keys": 300, "kv_heads": 2, "window": 70},
    {"d": 64, "m": 3, "queries": 200, "keys": 333, "padded": "left", "window": 50},
    {"d": 96, "m": 7, "queries": 1, "keys": 129, "kv_heads": 2},
    {"d": 128, "m": 3, "queries": 100, "keys": 1100, "kv_heads": 1},
    {"d": 96, "m": 3, "queries": 257, "keys": 257, "dtype": "float16"},
    {"d": 96, "m": 16, "queries": 257, "keys": 257, "kv_heads": 2},
    {"d": 256, "m": 32, "queries": 130, "keys": 130},
    {"d": 64, "m": 4, "queries": 100, "keys": 170, "causal": False},
    {"d": 64, "m": 3, "queries": 257, "keys": 257, "size": 20.0},
]


def draw(
    batch: int, heads: int, kv_heads: int, queries: int, keys: int, d: int, m: int, **to: Any
) -> list[Tensor]:
    """Return q, k, v, vq, vk and strength; valuations lie in (-1, 1) as tanh leaves them."""
    torch.manual_seed(0)
    around = [(batch, heads, queries, d), (batch, kv_heads, keys, d), (batch, kv_heads, keys, d)]
    valuations = [torch.tanh(torch.randn(batch, n, m)) for n in (queries, keys)]
    strength = torch.linspace(0.5, 1.5, heads).to(to.get("device"))
    return [*[t.to(**to) for t in [*(torch.randn(s) for s in around), *valuations]], strength]


def relative_errors(case: dict[str, Any], implementation: str, device: str) -> dict[str, float]:
    """Return ‖x − x₆₄‖ / ‖x₆₄‖ of the output and of each gradient."""
    case = {"kv_heads": 4, "dtype": "bfloat16", "size": 1.0, **case}
    dtype, keys = getattr(torch, case["dtype"]), case["keys"]
    inputs = draw(
        2, 4, case["kv_heads"], case["queries"], keys, case["d"], case["m"], device=device, dtype=dtype
    )
    inputs[5] = inputs[5] * case["size"]
    options: dict[str, Any] = {k: case[k] for k in ("causal", "window", "softcap") if k in case}
    if "padded" in case:
        real = torch.arange(keys) >= torch.tensor([[0], [keys // 3]])
        real = real if case["padded"] == "left" else real.flip(1)
        options["mask"] = real[:, None, None].to(device)
    ours = [t.detach().requires_grad_() for t in inputs]
    truth = [t.detach().double().requires_grad_() for t in inputs]
    out = val_attention(*ours, implementation=implementation, **options)
    exact = val_attention(*truth, implementation="reference", **options)
    # The gradient that comes in points in part where more strength leads: that of strength would else be a sum of noise.
    more = val_attention(*truth[:5], truth[5] * 1.1, implementation="reference", **options) - exact
    given = torch.randn(exact.shape, generator=torch.Generator().manual_seed(9)).to(device).double()
    given = (given + 2 * more.detach() / more.detach().std()).to(dtype)
    pairs = zip(
        (out, *torch.autograd.grad(out, ours, given)),
        (exact, *torch.autograd.grad(exact, truth, given.double())),
        strict=True,
    )
    errors = [float((a.double() - b).detach().norm() / b.detach().norm()) for a, b in pairs]
    return {name: round(error, 5) for name, error in zip(NAMES, errors, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("case", type=int)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    given = parser.parse_args()
    case = CASES[given.case]
    for implementation in ("folded", "triton", "flex"):
        if implementation == "flex" and not case.get("flex"):
            continue
        row: dict[str, Any] = {"section": "right", "implementation": implementation, "case": case}
        try:
            errors = relative_errors(case, implementation, given.device)
            row |= {"worst": max(errors.values()), "errors": errors}
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}"[:400]
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
