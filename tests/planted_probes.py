"""Probe sets whose directions are given rather than fitted."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from emoprobe.models import LiveModel
from emoprobe.probes import ProbeSet

NAMES = ("calm", "valence", '<img src=x onerror="alert(3)">')
"""Concepts, one of a hostile name."""


def planted_probes(
    model: LiveModel, directions: np.ndarray, names: Sequence[str], layers: Sequence[int] | None = None
) -> ProbeSet:
    """Return probes of `model` whose directions at every layer are these rows (concepts, d_model), taken at length 1."""
    chosen = tuple(range(model.n_layers + 1) if layers is None else layers)
    rows = torch.from_numpy(np.asarray(directions, dtype=np.float32))
    rows = rows / rows.norm(dim=-1, keepdim=True)
    shape = (len(chosen), len(names))
    return ProbeSet(
        model=model.name,
        n_layers=model.n_layers,
        fingerprint=model.fingerprint(),
        layers=chosen,
        concepts=tuple(names),
        kinds=dict.fromkeys(names, "label"),
        ranges={},
        directions=rows[None].repeat(len(chosen), 1, 1),
        scale=torch.ones(shape),
        offset=torch.zeros(shape),
        reference_mean=torch.zeros(len(chosen), model.d_model),
        reference_std=torch.ones(shape),
        residual_norms=torch.ones(len(chosen)),
        scores=pd.DataFrame({"layer": [], "concept": [], "metric": [], "value": []}),
        metadata={"corpus": "planted", "start": 1},
    )
