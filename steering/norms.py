"""How long residual streams are, over a text that is read and over tokens that the model generates itself.

Strengths are fractions of a mean residual norm, and the two differ: replications of published steering found streams up to 60 %
longer while generating than over the prompt, so that a strength meant something else than was reported. The table says by how
much, and either column, as a tensor, goes to `add(norms=…)`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from emoprobe.activations import mean_norms
from emoprobe.errors import InputError
from emoprobe.models import LiveModel
from emoprobe.models.reference import PASSAGES
from emoprobe.steering.generated_text import SAMPLED, continued


def residual_norms(
    model: LiveModel,
    texts: Sequence[str] | None = None,
    prompts: Sequence[str] | None = None,
    *,
    max_new_tokens: int = 64,
    seed: int = 0,
    batch_size: int = 32,
) -> pd.DataFrame:
    """Return the mean L2 norm of the residual stream, one row for each layer 0 … n_layers: layer, reference, generated, ratio.

    `reference` is over the tokens of `texts` but each one's first, by default the package's reference passages; give a large
    and varied text. `generated` is over what the model, sampling with `seed`, writes behind `prompts` (by default the first
    five words of each text), an end of text included; the prompts themselves are left out. `ratio` is generated / reference.
    Raises `InputError` inside an intervention, which would change both.
    """
    if model.interventions:
        raise InputError("measure residual norms before entering an intervention, which would change them")
    texts = list(PASSAGES if texts is None else texts)
    prompts = [" ".join(text.split()[:5]) for text in texts] if prompts is None else list(prompts)
    total, count = torch.zeros(model.n_layers + 1, dtype=torch.float64), 0
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        for first in range(0, len(prompts), batch_size):
            chunk = prompts[first : first + batch_size]
            batch = continued(model, chunk, max_new_tokens=max_new_tokens, **SAMPLED)
            own = batch.real.clone()
            own[:, : batch.prompt_length] = False
            norms = model.streams(batch, range(model.n_layers + 1)).float().norm(dim=-1)
            total += norms.where(own, 0).sum((-1, -2)).cpu().double()
            count += int(own.sum())
    reference = mean_norms(model, texts, batch_size=batch_size).double().numpy()
    generated = (total / count).numpy()
    return pd.DataFrame(
        {
            "layer": np.arange(len(reference)),
            "reference": reference,
            "generated": generated,
            "ratio": generated / reference,
        }
    )
