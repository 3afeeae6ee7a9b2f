"""Saved random models, loaded with each backend, and what is done to all of them.

Tests import it as `from backends import load, saved`.
"""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tiny import tiny_model, tiny_tokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, Qwen2Config

from emoprobe.interventions import ResidualEdit
from emoprobe.models import LiveModel, load_model
from emoprobe.valattn import Valuation

FAMILIES = ("gpt2", "gpt_neox", "llama", "qwen2")
TEXTS = [
    "I am so glad that you came!",
    "The dog",
    "They were afraid of the dark and of the letter, but laughing.",
]
LAM = 1.5
GREEDY = {"max_new_tokens": 10, "do_sample": False}
_FOLDER = TemporaryDirectory()


@cache
def saved(family: str) -> Path:
    """Return a folder with a random model of a family, float32, and its tokenizer."""
    folder = Path(_FOLDER.name) / family
    if family == "qwen2":
        model = random_model(
            Qwen2Config(
                **sizes(), hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
                num_key_value_heads=2, max_position_embeddings=512,
            )
        )  # fmt: skip
        tokenizer = tiny_tokenizer()
    else:
        live = tiny_model(family, dtype=torch.float32)
        model, tokenizer = live.underlying, live.tokenizer
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sizes() -> dict[str, object]:
    return dict(
        vocab_size=len(tiny_tokenizer()), initializer_range=0.25, bos_token_id=None, eos_token_id=None
    )


def random_model(config: PretrainedConfig) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


@cache
def load(folder: Path, backend: str) -> LiveModel:
    """Load a model once; tests leave it as it was."""
    return load_model(folder, backend=backend)


def make_valuation(model: LiveModel, scale: float = 1.0) -> Valuation:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 3, model.d_model, generator=generator) / 2 * scale
    bias = torch.randn(2, 3, generator=generator) / 4
    return Valuation(weight, bias, ("a", "b", "c"), (0, model.n_layers - 1))


def make_edits(model: LiveModel, size: float = 1.0) -> list[ResidualEdit]:
    shift = size * torch.randn(model.d_model, generator=torch.Generator().manual_seed(1))
    return [
        ResidualEdit(1, lambda x: x + shift.to(x.dtype), positions="prompt"),
        ResidualEdit(model.n_layers, lambda x: 1.5 * x),
    ]


def difference(model: LiveModel, texts: str | list[str], one: Tensor, other: Tensor) -> float:
    """Largest difference at real positions of (…, batch, position, numbers)."""
    real = model.tokenize(texts).real
    return float((one - other)[..., real, :].detach().abs().max())
