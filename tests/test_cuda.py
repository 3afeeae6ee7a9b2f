"""What runs on a GPU is what runs on the CPU: reading, steering, injection, generation with a KV cache, moments, fits."""

import pytest
import torch
from tiny import FAMILIES, tiny_model
from torch import Tensor

import emoprobe as ep
from emoprobe.models import LiveModel, wrap
from emoprobe.probes.closed_form import grouped_k_fold, linear_discriminants, principal_components, ridge_path
from emoprobe.probes.logistic import logistic
from emoprobe.probes.moments import Moments

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")
TEXTS = ["I am so glad that you came!", "The dog was afraid of the dark, then calm again.", "She was sad."]


def pair(family: str) -> tuple[LiveModel, LiveModel]:
    """Return the same float64 model on the CPU and on the GPU."""
    ours = tiny_model(family)
    moved = tiny_model(family)
    return ours, wrap(moved.underlying.to("cuda"), moved.tokenizer, name=moved.name)


def valuation(model: LiveModel) -> ep.Valuation:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(model.n_layers, 3, model.d_model, generator=generator) / model.d_model**0.5
    return ep.Valuation(weight, torch.zeros(model.n_layers, 3), ("a", "b", "c"), tuple(range(model.n_layers)))


def close(one: Tensor, other: Tensor, tolerance: float = 1e-8) -> None:
    torch.testing.assert_close(one.cpu(), other.cpu(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("family", FAMILIES)
def test_streams_and_logits_of_a_padded_batch(family: str) -> None:
    here, there = pair(family)
    close(here.capture(TEXTS), there.capture(TEXTS), 1e-5)
    close(here.logits(TEXTS)[:, -1], there.logits(TEXTS)[:, -1], 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_steering_and_injection_change_alike(family: str) -> None:
    here, there = pair(family)
    untouched = here.logits(TEXTS)[:, -1]
    vector = torch.randn(here.d_model, generator=torch.Generator().manual_seed(1))
    found = []
    for model in (here, there):
        with ep.steer(model, vector, 0.2, layers=1), ep.inject(model, valuation(model), 0.7):
            found.append(model.logits(TEXTS)[:, -1].cpu())
    close(*found, 1e-5)
    assert not torch.allclose(found[0], untouched, atol=1e-2)
    close(there.logits(TEXTS)[:, -1], untouched, 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_with_a_cache_is_generation_without(family: str) -> None:
    here, there = pair(family)
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    said = []
    for model in (here, there):
        for cached in (True, False):
            with ep.inject(model, valuation(model), 0.7):
                said.append(model.generate(TEXTS, use_cache=cached, **options))
    assert said[0] == said[1] == said[2] == said[3]
    assert said[0] != here.generate(TEXTS, **options)


def test_moments_and_what_follows_from_them() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(300, 2, 24, generator=generator, dtype=torch.float64)
    classes, fold = torch.arange(300) % 4, torch.arange(300) % 5
    vectors += classes[:, None, None] * torch.randn(24, generator=generator, dtype=torch.float64) / 5
    both = []
    for device in ("cpu", "cuda"):
        moments = Moments.zeros(2, 24, n_folds=5, n_classes=4, device=device)
        moments.add(vectors.to(device), fold=fold, classes=classes)
        both.append(moments)
    here, there = both
    close(here.scatter, there.scatter)
    close(linear_discriminants(here).weights, linear_discriminants(there).weights)
    close(ridge_path(here, [0.1, 10.0]).weights, ridge_path(there, [0.1, 10.0]).weights)
    close(grouped_k_fold(here, [0.1, 10.0]).r2, grouped_k_fold(there, [0.1, 10.0]).r2)
    close(principal_components(here).variances, principal_components(there).variances)
    close(
        logistic(vectors[:, 0], classes, tolerance=1e-12).weights,
        logistic(vectors[:, 0].cuda(), classes.cuda(), tolerance=1e-12).weights,
        1e-5,
    )
