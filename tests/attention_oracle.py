"""Problems for valuation attention, and how far a solution is from the formula in float64."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from emoprobe.valattn import val_attention

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def draw(
    heads: int,
    kv_heads: int,
    queries: int,
    keys: int,
    d: int,
    m: int,
    dtype: torch.dtype = torch.float32,
    *,
    batch: int = 2,
    device: str = "cpu",
) -> list[Tensor]:
    """Return q, k, v in `dtype`, vq and vk as tanh leaves them, and a strength of each head, of both signs."""
    g = torch.Generator().manual_seed(0)
    around = [(batch, heads, queries, d), (batch, kv_heads, keys, d), (batch, kv_heads, keys, d)]
    valuations = [torch.tanh(torch.randn(batch, n, m, generator=g)) for n in (queries, keys)]
    wide = [torch.randn(shape, generator=g).to(dtype) for shape in around]
    return [t.to(device) for t in (*wide, *valuations, torch.linspace(-1.0, 1.5, heads))]


def worst(inputs: list[Tensor], run: Callable[..., Tensor] | str, **options: Any) -> float:
    """Return the largest relative error of the output and the gradients, ‖x − x₆₄‖ / ‖x₆₄‖.

    `run` is the name of an implementation, or a function to be called as `val_attention` is.
    """
    if isinstance(run, str):
        options["implementation"] = run
        run = val_attention
    ours = [t.detach().requires_grad_() for t in inputs]
    truth = [t.detach().double().requires_grad_() for t in inputs]
    exactly = {**options, "implementation": "reference"}
    mask = options.get("mask")
    if mask is not None and mask.is_floating_point():
        options["mask"], exactly["mask"] = mask.to(inputs[0].dtype), mask.double()
    exact = val_attention(*truth, **exactly)
    # The gradient that comes in points in part where more strength leads: that of strength would else be a sum of noise.
    more = (val_attention(*truth[:5], truth[5] * 1.1, **exactly) - exact).detach()
    given = torch.randn(exact.shape, generator=torch.Generator().manual_seed(9)).to(exact)
    given = (given + 2 * more / (more.std(correction=0) + 1e-9)).to(inputs[0].dtype)
    out = run(*ours, **options)
    found = (out, *torch.autograd.grad(out, ours, given.to(out.dtype)))
    wanted = (exact, *torch.autograd.grad(exact, truth, given.double()))
    assert all(t.isfinite().all() for t in found)
    # Where few keys are seen, gradients to scores all but vanish; they are held to a part of the largest gradient.
    floor = 0.1 * max(float(t.detach().norm()) for t in wanted)
    return max(
        float((a.detach().double() - b.detach()).norm()) / max(float(b.detach().norm()), floor, 1e-30)
        for a, b in zip(found, wanted, strict=True)
    )
