"""The flash kernel with a term of low rank equals the formula in float64: by Triton's interpreter, or on a GPU of its kind."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import pytest
import torch

ON_GPU = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)
if not ON_GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # is read when triton is imported
triton = pytest.importorskip("triton", reason="Triton is not installed")

from attention_oracle import TOLERANCE, worst  # noqa: E402
from attention_oracle import draw as draw_on_cpu  # noqa: E402
from hypothesis import given  # noqa: E402
from test_val_attention_sweep import Problem, problems, sweep  # noqa: E402

from emoprobe.errors import InputError  # noqa: E402
from emoprobe.valattn import val_attention  # noqa: E402
from emoprobe.valattn.kernels import flash  # noqa: E402
from emoprobe.valattn.kernels.tiles import Tiles  # noqa: E402

if not (ON_GPU or flash.INTERPRETING):
    pytest.skip("triton was imported before its interpreter could be asked for", allow_module_level=True)

DEVICE = "cuda" if ON_GPU else "cpu"
draw = partial(draw_on_cpu, device=DEVICE)


@pytest.fixture(autouse=True)
def right_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter keeps bfloat16 as integers and multiplies these; here products are of the numbers."""
    if ON_GPU:
        return
    from triton.runtime import interpreter

    own = interpreter.InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        bf16 = triton.language.bfloat16

        def numbers(x: Any) -> Any:
            if x.dtype.scalar != bf16:
                return x
            wide = (x.data.astype("uint32") << 16).view("float32")
            return interpreter.TensorHandle(wide, triton.language.float32)

        return own(self, numbers(a), numbers(b), *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


DTYPES = [torch.float16, torch.bfloat16] if ON_GPU else [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "queries", "keys", "d", "m", "options"),
    [
        (2, 1, 67, 67, 64, 3, {}),  # several blocks, the last ones partly filled; grouped queries
        (2, 2, 33, 40, 64, 16, {"causal": False, "scale": 0.2}),
        (4, 2, 5, 50, 96, 5, {}),  # a cached prefix; a head dimension that is no power of two
        (2, 1, 1, 50, 64, 7, {}),  # decoding
        (1, 1, 1, 2, 64, 1, {}),
        (2, 1, 50, 60, 64, 2, {"window": 9}),
        (2, 1, 50, 50, 64, 17, {"window": 9, "causal": False}),
        (2, 1, 40, 40, 64, 3, {"softcap": 1.5}),
        (2, 2, 20, 60, 128, 32, {"softcap": 2.0, "window": 7}),
        (1, 1, 17, 17, 256, 4, {}),
    ],
)
def test_the_kernel_is_the_formula(
    heads: int, kv_heads: int, queries: int, keys: int, d: int, m: int, options: Any, dtype: torch.dtype
) -> None:
    inputs = draw(heads, kv_heads, queries, keys, d, m, dtype)
    assert worst(inputs, "triton", **options) < TOLERANCE[dtype]


@given(problem=problems(65, widths=(16, 64, 96)))
@sweep(max_examples=10)
def test_the_kernel_is_the_formula_at_any_shape(problem: Problem) -> None:
    shape, options = problem
    assert worst(draw(**shape, dtype=DTYPES[0]), "triton", **options) < TOLERANCE[DTYPES[0]]


@pytest.mark.parametrize("causal", [True, False])
def test_padding_is_not_seen(causal: bool) -> None:
    """Left padding under a causal mask leaves queries that see nothing: they give zeros, and gradients that are finite."""
    inputs = draw(2, 1, 50, 50, 64, 3, DTYPES[0])
    mask = (torch.arange(50) >= torch.tensor([[0], [21]]))[:, None, None].to(DEVICE)
    assert worst(inputs, "triton", mask=mask, causal=causal) < TOLERANCE[DTYPES[0]]
    out = val_attention(*inputs, implementation="triton", mask=mask)
    assert not out[1, :, :21].any() and out[1, :, 21:].any()


@pytest.mark.parametrize("m", [3, 8, 16])
def test_large_valuations_keep_their_digits(m: int) -> None:
    """A bias of tens of units is as exact as a small one; rounded to bfloat16 once it would not be."""
    inputs = draw(2, 2, 40, 40, 64, m, torch.bfloat16)
    inputs[5] = inputs[5] * 12
    rounded = [*inputs[:3], *(t.bfloat16().float() for t in inputs[3:5]), inputs[5]]
    exact = [t.double() for t in inputs]
    wanted = val_attention(*exact, implementation="reference")
    ours = val_attention(*inputs, implementation="triton").double()
    coarse = val_attention(*[t.double() for t in rounded], implementation="reference")
    error, coarse_error = (float((t - wanted).norm() / wanted.norm()) for t in (ours, coarse))
    assert error < 5e-3 < coarse_error


def test_tensors_may_be_views_and_tiles_of_any_size() -> None:
    inputs = draw(2, 1, 70, 70, 64, 3, DTYPES[0])
    views = [t.transpose(1, 2).contiguous().transpose(1, 2) if t.dim() == 4 else t for t in inputs]
    assert not views[0].is_contiguous()
    one, other = (val_attention(*t, implementation="triton") for t in (inputs, views))
    assert torch.equal(one, other)
    tiles = Tiles(64, 32, 4, 2)
    setting = flash.Setting(1 / 8, choices=flash.Choices(tiles, tiles, tiles))
    assert torch.allclose(flash.flash_val_attention(*inputs, setting).float(), one.float(), atol=2e-3)


def test_what_the_kernel_cannot_do_is_said() -> None:
    inputs = draw(2, 1, 20, 20, 64, 3, DTYPES[0])
    with pytest.raises(InputError, match="multiples of 16 up to 256, not 24"):
        val_attention(*[t[..., :24] if t.dim() == 4 else t for t in inputs], implementation="triton")
    with pytest.raises(InputError, match="at most 32 dimensions, not 33"):
        val_attention(*draw(2, 1, 5, 5, 64, 33, DTYPES[0]), implementation="triton")
    with pytest.raises(InputError, match="masks of shape"):
        mask = torch.ones(20, 20, dtype=torch.bool, device=DEVICE)
        val_attention(*inputs, mask=mask, implementation="triton")
