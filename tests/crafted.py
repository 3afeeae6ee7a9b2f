"""Probe sets made of given vectors, for tests of what is done with vectors wherever they come from."""

from typing import Any

import numpy as np
import pandas as pd
import torch

from emoprobe.probes import ProbeSet


def probe_set(vectors: Any, concepts: tuple[str, ...] | None = None, **changes: Any) -> ProbeSet:
    """Return a probe set of vectors (layers, concepts, d_model): unit directions, their lengths as scale, no scores."""
    stacked = torch.as_tensor(np.asarray(vectors))
    layers, count, width = stacked.shape
    lengths = stacked.norm(dim=-1)
    names = concepts or tuple(f"concept {number}" for number in range(count))
    parts: dict[str, Any] = {
        "model": "crafted",
        "n_layers": layers - 1,
        "fingerprint": "0",
        "layers": tuple(range(layers)),
        "concepts": names,
        "kinds": dict.fromkeys(names, "label"),
        "ranges": {},
        "directions": (stacked / lengths[..., None]).float(),
        "scale": lengths.float(),
        "offset": torch.zeros(layers, count),
        "reference_mean": torch.zeros(layers, width),
        "reference_std": torch.ones(layers, count),
        "residual_norms": torch.ones(layers),
        "scores": pd.DataFrame({"layer": [], "concept": [], "metric": [], "value": []}),
        "metadata": {},
    }
    return ProbeSet(**{**parts, **changes})
