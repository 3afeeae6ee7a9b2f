"""The fourth claim: the valuations cost O(n·d), and little beside attention.

Three things are timed at growing length n, in processor time and turn by turn: the valuations v = tanh(W·x + b), attention
with the bias λ·V_Q·V_Kᵀ, and the same attention without it, all in the shapes of the model (its heads of queries, of keys and
values, and their width); and, up to the model's context, its whole pass with and without injection. Beside that stands the
arithmetic. The bias is no part of the source's O(n·d): it is quadratic in n, as attention is, and its share of attention does
not shrink with n.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch.nn.functional import pad, scaled_dot_product_attention

from emoprobe import drawing
from emoprobe.folding import fold_key
from emoprobe.intervals import mean_interval
from emoprobe.models.live import Batch, LiveModel
from emoprobe.study.claims.judging import NOT_SHOWN, NOT_SUPPORTED, SIGNS, SUPPORTED
from emoprobe.study.result import Result
from emoprobe.study.wording import span
from emoprobe.valattn import Valuation, inject, val_attention

LENGTHS = (64, 128, 256, 512, 1024, 2048)
REPEATS = 6
FITTED_FROM = 256
"""Length from which on exponents are fitted: below, what every call costs hides how the cost grows."""
LITTLE = 0.1
"""Share of attention's time up to which a cost counts as insignificant."""
LINEAR = 1.5
"""Exponent of n below which growth is nearer to linear than to quadratic."""
PUBLISHED = "J. Marín 2024: O(n·d) on top of attention's O(n²·d), by arithmetic; nothing was timed."
Interval = tuple[float, float, float]


def cost(
    model: LiveModel, valuation: Valuation, lengths: Sequence[int] = LENGTHS, repeats: int = REPEATS
) -> Result:
    """Time valuations and their bias beside attention and beside the whole pass, and judge the claim."""
    return judged(timed(model, valuation, lengths, repeats), model.d_model, heads_of(model), valuation.m)


class Heads(NamedTuple):
    """The heads of a block's attention: how many of queries, how many of keys and values, and the width of each."""

    queries: int
    keys: int
    width: int


def heads_of(model: LiveModel) -> Heads:
    """Return a model's heads by its settings; what they do not tell is as many for keys as for queries, and d_model in all."""
    settings: Any = getattr(model.underlying, "cfg", None) or getattr(model.underlying, "config", None)
    settings = settings.get_text_config() if hasattr(settings, "get_text_config") else settings

    def told(names: Sequence[str], otherwise: int) -> int:
        return next(
            (found for name in names if isinstance(found := getattr(settings, name, None), int)), otherwise
        )

    keys = told(("num_key_value_heads", "n_key_value_heads"), model.n_heads)
    width = told(("head_dim", "d_head"), model.d_model // model.n_heads)
    return Heads(model.n_heads, keys, width)


# Timing --------------------------------------------------------------------------------------------------------------


def timed(
    model: LiveModel, valuation: Valuation, lengths: Sequence[int] = LENGTHS, repeats: int = REPEATS
) -> pd.DataFrame:
    """Return one row for each length and repeat: seconds of each part, NaN for passes that the model cannot do.

    "valuations", "attention" and "with bias" are those of one block, "pass" and "injected" of the whole model. Attention is
    timed at its own width and at the width that the bias makes it, with zeros; the faster counts, because fused kernels are
    slower at some narrow widths, which would flatter the bias.
    """
    frames = []
    for length in lengths:
        parts = {**_of_block(model, valuation, length), **_of_model(model, valuation, length)}
        rows = []
        for _ in range(repeats + 1):  # the first one warms up
            rows.append({name: _seconds(run, model.device.type) for name, run in parts.items()})
        taken = pd.DataFrame(rows[1:])
        faster = taken[list(WIDTHS)].mean().idxmin()
        frames.append(taken.assign(tokens=length, repeat=range(repeats), attention=taken[faster]))
    return pd.concat(frames, ignore_index=True).reindex(columns=["tokens", "repeat", *PARTS])


PARTS = ("valuations", "attention", "with bias", "pass", "injected")
WIDTHS = ("own width", "width of the bias")


def _of_block(model: LiveModel, valuation: Valuation, length: int) -> dict[str, Callable[[], object]]:
    generator = torch.Generator().manual_seed(length)
    heads = heads_of(model)
    q, k, v = (
        torch.randn(1, count, length, heads.width, generator=generator).to(model.device, model.dtype)
        for count in (heads.queries, heads.keys, heads.keys)
    )
    attention = partial(scaled_dot_product_attention, is_causal=True, enable_gqa=heads.keys < heads.queries)
    stream = torch.randn(1, length, model.d_model, generator=generator).to(model.device, model.dtype)
    layer = valuation.layers[0]
    values = valuation.values(stream, layer).to(model.dtype)
    wide = fold_key(k, values).shape[-1] - heads.width
    wide_q, wide_k, wide_v = (pad(part, (0, wide)) for part in (q, k, v))
    return {
        "valuations": lambda: valuation.values(stream, layer),
        "own width": lambda: attention(q, k, v),
        "width of the bias": lambda: attention(wide_q, wide_k, wide_v, scale=heads.width**-0.5),
        "with bias": lambda: val_attention(q, k, v, values, values, 1.0),
    }


def _of_model(model: LiveModel, valuation: Valuation, length: int) -> dict[str, Callable[[], object]]:
    if model.context_length is not None and length > model.context_length:
        return {}
    ids = torch.randint(
        len(model.tokenizer.get_vocab()), (1, length), generator=torch.Generator().manual_seed(length)
    ).to(model.device)
    batch = Batch(("",), ids, torch.ones_like(ids, dtype=torch.bool), None)

    def injected() -> object:
        with inject(model, valuation, 1.0):
            return model.forward(batch)

    return {"pass": lambda: model.forward(batch), "injected": injected}


def _seconds(run: Callable[[], object], device: str) -> float:
    """Return the processor's (a GPU's: the wall clock's) seconds of a call, the mean of as many as take 5 milliseconds."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    calls, begun = 0, clock()
    with torch.no_grad():
        while not calls or clock() - begun < 0.005:
            run()
            calls += 1
            if device == "cuda":
                torch.cuda.synchronize()
    return (clock() - begun) / calls


# Judging -------------------------------------------------------------------------------------------------------------


def judged(times: pd.DataFrame, d_model: int, heads: Heads, m: int) -> Result:
    """Judge the claim by times as `timed` returns them, from a model of this width and these heads, with m dimensions.

    It is supported if the time of valuations grows with an exponent below 1.5, and valuations and bias together take at most a
    tenth of attention's time at the greatest length; not supported if one of them is shown not to hold (95 % intervals over
    repeats).
    """
    grows = {name: exponent(times, name) for name in PARTS[:3]}
    longest, context = int(times.tokens.max()), int(times.dropna(subset="pass").tokens.max())
    of_attention = share(times, longest)
    alone = _ratio(times, longest, lambda row: row["valuations"] / row["attention"])
    of_pass = _ratio(times, context, lambda row: row["injected"] / row["pass"] - 1)
    flops = arithmetic(longest, d_model, heads, m)
    verdict = weighed(grows["valuations"], of_attention)
    return Result(
        name="cost",
        title="Claim 4: the cost is O(n·d), insignificant beside attention",
        question="How does the cost of valuations grow with length, and how much is it beside attention and the whole pass?",
        method=(
            f"Processor time, {times.repeat.nunique()} repeats, n from {times.tokens.min()} to {longest}; one block's "
            f"valuations (m = {m}), attention with and without the bias folded in ({heads.queries} heads of "
            f"{heads.width}, {heads.keys} of keys and values), the whole pass up to n = {context}. Exponents from "
            f"n = {FITTED_FROM} on; insignificant: at most {LITTLE:.0%} of attention. Intervals over repeats."
        ),
        table=_table(times),
        finding=(
            f"valuations grow as n^{span(*grows['valuations'])}; with the bias {span(*_percent(of_attention), 1)} % of "
            f"attention at n = {longest}"
        ),
        controls=f"attention grows as n^{span(*grows['attention'])}",
        sign=SIGNS[verdict],
        parts={
            f"valuations take time that grows more slowly than n^{LINEAR}": grows["valuations"][2] < LINEAR,
            f"with the bias less than {LITTLE:.0%} of attention's": of_attention[2] < LITTLE,
        },
        verdict=(
            f"The cost is O(n·d) and insignificant beside attention: {verdict}. Valuations alone take "
            f"{span(*_percent(alone), 1)} % of attention at n = {longest}, with the bias {span(*_percent(of_attention), 1)} %; "
            f"the whole pass at n = {context} takes {span(*_percent(of_pass), 1, True)} %. By arithmetic, in operations, "
            f"valuations are {flops['valuations']:.2%} of attention at this n, a share that falls as 1/n; the bias is "
            f"{flops['bias']:.1%} of it, m / (2 d_k), at every n: it is quadratic, which the source leaves out."
        ),
        figure=_figure(times),
        alt="Time of valuations, attention, attention with the bias and whole passes by length, on logarithmic axes.",
        published=PUBLISHED,
    )


def weighed(grows: Interval, of_attention: Interval) -> str:
    """Return the verdict on an exponent and a share, each with its interval."""
    if grows[2] < LINEAR and of_attention[2] < LITTLE:
        return SUPPORTED
    return NOT_SUPPORTED if grows[1] > LINEAR or of_attention[1] > LITTLE else NOT_SHOWN


def exponent(times: pd.DataFrame, part: str) -> Interval:
    """Return the exponent of n with which a part's time grows, and its interval over repeats."""
    fitted = times[(times.tokens >= FITTED_FROM) & times[part].notna()]
    slopes = [
        np.polyfit(np.log(rows.tokens), np.log(rows[part]), 1)[0] for _, rows in fitted.groupby("repeat")
    ]
    return mean_interval(slopes)


def share(times: pd.DataFrame, length: int) -> Interval:
    """Return the time that valuations and bias take, as a share of attention's, and its interval over repeats."""
    return _ratio(
        times,
        length,
        lambda row: (row["valuations"] + row["with bias"] - row["attention"]) / row["attention"],
    )


def arithmetic(n: int, d_model: int, heads: Heads, m: int) -> dict[str, float]:
    """Return the operations of valuations and of the bias as shares of attention's, for causal attention in one block.

    Scores and their sums take 2·n²·heads·width together (half of 4·n²·heads·width, the future being masked), valuations
    2·n·m·d_model, and a bias folded into each head's scores n²·m·heads, whatever the number of key-value heads.
    """
    attention = 2 * n**2 * heads.queries * heads.width
    return {"valuations": 2 * n * m * d_model / attention, "bias": n**2 * m * heads.queries / attention}


def _ratio(times: pd.DataFrame, length: int, ratio: Callable[[pd.DataFrame], Any]) -> Interval:
    return mean_interval(np.asarray(ratio(times[times.tokens == length]), dtype=float))


def _percent(interval: Interval) -> Interval:
    return 100 * interval[0], 100 * interval[1], 100 * interval[2]


def _table(times: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each length and part: mean milliseconds with their interval over repeats."""
    rows = []
    for length, part in times.groupby("tokens"):
        for name in PARTS:
            value, low, high = mean_interval(1000 * part[name].dropna().to_numpy())
            rows.append((length, name, value, low, high))
    return pd.DataFrame(rows, columns=["tokens", "part", "milliseconds", "low", "high"]).dropna(
        subset="milliseconds"
    )


@drawing.styled()
def _figure(times: pd.DataFrame) -> Figure:
    figure, axes = drawing.panels(1, 2, height=2.6)
    table = _table(times)
    for axis, parts, title in zip(
        axes.flat, (PARTS[:3], PARTS[3:]), ("one block", "whole pass"), strict=True
    ):
        for name, colour in zip(parts, drawing.PALETTE, strict=False):
            rows = table[table.part == name]
            drawing.line(axis, rows.tokens, rows.milliseconds, rows.low, rows.high, label=name, colour=colour)
        axis.set_title(title)
        axis.set(xlabel="tokens", ylabel="milliseconds", xscale="log", yscale="log")
        axis.legend()
    return figure
