"""Setting how far valuations go toward saturation, over a corpus of the reader's choice.

The gain g of a dimension multiplies what goes into its tanh: v = tanh(g·(W·[x; e] + b)). `Valuation.from_probes` standardises
that read-out over the probes' corpus, so that its gain is the read-out's standard deviation there; were it normally
distributed, gain 0.5, 1 and 2 would leave 99.7 %, 86 % and 54 % of the tokens below |v| = 0.9 and give v a standard deviation
of 0.42, 0.63 and 0.80. Elsewhere it is not so distributed, and a learned or random row of W has any spread: here gains are
found by reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq

from emoprobe.activations import stream_residuals
from emoprobe.errors import InputError
from emoprobe.models.live import LiveModel
from emoprobe.valattn.valuation import Valuation, affine

Floats = NDArray[np.float64]
SATURATED = 0.9
"""|v| from which on a valuation counts as saturated."""
STEEPEST = 1e6
"""The highest gain that is tried, in standard deviations of what goes into the tanh."""


def calibrated_to_share(
    model: LiveModel, valuation: Valuation, texts: Sequence[str], share: float = 0.9, *, batch_size: int = 32
) -> Valuation:
    """Return the valuation with gains at which this share of the tokens of `texts` has |v| below 0.9.

    Each dimension of each layer gets a gain of its own. First tokens are left out. Raises `InputError` for a share that is not
    between 0 and 1, and for a dimension that is the same for all tokens.
    """
    if not 0 < share < 1:
        raise InputError(f"share={share} is not between 0 and 1")
    read = _read(model, valuation, texts, batch_size)
    gains = np.arctanh(SATURATED) / np.quantile(np.abs(read), share, axis=1)
    return _with_gains(valuation, gains, {"unsaturated": share})


def calibrated_to_deviation(
    model: LiveModel,
    valuation: Valuation,
    texts: Sequence[str],
    deviation: float = 0.6,
    *,
    batch_size: int = 32,
) -> Valuation:
    """Return the valuation with gains at which v has this standard deviation over the tokens of `texts`.

    Each dimension of each layer gets the least such gain, of its own. First tokens are left out. Raises `InputError` for a
    deviation that is not between 0 and 1, and where no gain reaches it, as happens if nearly all tokens lie on one side of 0.
    """
    if not 0 < deviation < 1:
        raise InputError(f"deviation={deviation} is not between 0 and 1, where that of a tanh lies")
    read = _read(model, valuation, texts, batch_size)
    gains = np.empty((len(read), read.shape[-1]))
    for row, layer in enumerate(valuation.layers):
        for column, name in enumerate(valuation.dimensions):
            gains[row, column] = _gain(read[row, :, column], deviation, f"{name} at layer {layer}")
    return _with_gains(valuation, gains, {"deviation": deviation})


def _gain(read: Floats, deviation: float, what: str) -> float:
    """Return the least gain g at which tanh(g · read) has this standard deviation."""

    def missing(gain: float) -> float:
        return float(np.tanh(gain * read).std() - deviation)

    tried = np.geomspace(1e-3, STEEPEST, 200) / read.std()
    found = [missing(g) for g in tried]
    above = next((place for place, value in enumerate(found) if value >= 0), None)
    if above is None:
        raise InputError(
            f"no gain gives {what} a standard deviation of {deviation}: {deviation + max(found):.2f} at most; take its mean "
            "off first, or ask for less"
        )
    return float(brentq(missing, 0.0, tried[above], xtol=1e-12))


def _read(model: LiveModel, valuation: Valuation, texts: Sequence[str], batch_size: int) -> Floats:
    """Return what goes into the tanh at all counted tokens, (layers, tokens, m)."""
    parts = []
    for part in stream_residuals(model, texts, valuation.layers, batch_size=batch_size):
        counted = part.counted(1)
        table, ids = valuation.embedding, part.batch.input_ids[counted]
        e = None if table is None else table.to(ids.device)[ids]
        layers = zip(valuation.weight, valuation.bias, part.by_layer, strict=True)
        rows = [affine(weight, bias, stream[counted], e) for weight, bias, stream in layers]
        parts.append(torch.stack(rows).detach().cpu())
    read: Floats = torch.cat(parts, dim=1).double().numpy()
    still = np.argwhere(read.std(axis=1) == 0)
    if len(still):
        row, column = still[0]
        raise InputError(
            f"{valuation.dimensions[column]} at layer {valuation.layers[row]} is the same for all tokens of these texts: "
            "leave it out, or give texts that it tells apart"
        )
    return read


def _with_gains(valuation: Valuation, gains: Floats, record: dict[str, float]) -> Valuation:
    factor = torch.as_tensor(gains).to(valuation.weight)
    return replace(
        valuation,
        weight=valuation.weight * factor[..., None],
        bias=valuation.bias * factor,
        metadata={**valuation.metadata, "calibrated": record, "gains": gains.tolist()},
    )
