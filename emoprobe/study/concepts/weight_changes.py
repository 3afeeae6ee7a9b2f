"""A model whose weights were changed at random, by as much as they differ from another's: what any change of that size does."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from emoprobe.errors import InputError
from emoprobe.models import LiveModel, wrap


def perturbations(base: LiveModel, tuned: LiveModel, count: int, seed: int = 0) -> Iterator[LiveModel]:
    """Yield the base model with random noise added to each weight tensor, of the norm of what tuning has added to it.

    The base model itself is not touched; one copy is changed anew each time. Raises `InputError` where weights do not agree.
    """
    if not count:
        return
    changed = dict(tuned.named_weights())
    own = {name: weight.detach().clone() for name, weight in base.named_weights()}
    if {name: weight.shape for name, weight in own.items()} != {
        name: part.shape for name, part in changed.items()
    }:
        raise InputError(
            f"{base.name} and {tuned.name} have other weights, so that there is no change of equal size: give perturbed=0"
        )
    lengths = {name: float((changed[name].detach().double() - own[name].double()).norm()) for name in own}
    other = wrap(copy.deepcopy(base.underlying), base.tokenizer, name=f"{base.name}, changed at random")
    for draw in range(count):
        generator = torch.Generator().manual_seed(1000 * seed + draw)
        with torch.no_grad():
            for name, weight in other.named_weights():
                noise = torch.randn(weight.shape, generator=generator)
                noise *= lengths[name] / float(noise.norm().clamp(min=1e-30))
                weight.copy_(_added(own[name], noise))
        yield other


def _added(weight: Tensor, noise: Tensor) -> Tensor:
    wide = torch.promote_types(weight.dtype, torch.float32)
    return (weight.to(wide) + noise.to(weight.device, wide)).to(weight.dtype)
