"""Live models: load one by name, or wrap one that is already there."""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from emoprobe.errors import InputError
from emoprobe.models.live import Batch, LiveModel

__all__ = ["Batch", "LiveModel", "load_model", "wrap"]

BUNDLED = {"ground-truth": "ground_truth", "bundled": "ground_truth"}
"""Names of the models inside the package, and the folders they lie in."""
BACKENDS = ("transformers", "transformer_lens", "nnsight")


def load_model(
    name: str | Path,
    *,
    backend: str = "transformers",
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    device_map: Any = None,
    quantization_config: Any = None,
    revision: str | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> LiveModel:
    """Load a language model, ready to be read and intervened in.

    `name` is a hub name, a folder in Hugging Face format, "ground-truth" (the small model trained on the package's own
    generator, whose emotions are known) or "bundled" (the best model inside the package). Encoders (BERT) come with their
    masked-language-model head where the checkpoint has one. `dtype`, `device_map`, `quantization_config`, `revision`,
    `attn_implementation` and `trust_remote_code` are those of transformers; no code of a checkpoint is ever run unless
    `trust_remote_code` says so. `device` is where the model goes, by default the CPU. Raises `InputError` if there is no
    such model, or if both `device` and `device_map` are given.
    """
    if device is not None and device_map is not None:
        raise InputError(
            "give device= or device_map=, not both: the map says where the parts of the model go"
        )
    _check_backend(backend)
    from transformers import AutoConfig, AutoTokenizer

    folder = Path(__file__).parent / BUNDLED[str(name)] if str(name) in BUNDLED else None
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    chosen = {
        "dtype": dtype,
        "attn_implementation": attn_implementation,
        "device_map": device_map,
        "quantization_config": quantization_config,
    }
    source = str(folder or name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        auto = _auto_class(AutoConfig.from_pretrained(source, **options))
        model = auto.from_pretrained(
            source, **options, **{key: value for key, value in chosen.items() if value is not None}
        )
    except ImportError as error:  # device_map and quantization_config need libraries of their own
        raise InputError(f'"{name}" cannot be loaded in this way: {_first_line(error)}') from error
    except (OSError, ValueError) as error:
        raise InputError(_why_not(str(name), error)) from error
    if device is not None:
        model = model.to(device)
    return wrap(model.eval(), tokenizer, name=str(name))


def _auto_class(config: Any) -> Any:
    """Return the transformers class that loads a checkpoint: encoders without a head as they are, all else with one."""
    from transformers import (
        MODEL_FOR_MASKED_LM_MAPPING,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
    )

    if type(config) not in MODEL_FOR_MASKED_LM_MAPPING or getattr(config, "is_decoder", False):
        return AutoModelForCausalLM
    with_head = any("MaskedLM" in name or "PreTraining" in name for name in config.architectures or ())
    return AutoModelForMaskedLM if with_head else AutoModel


def wrap(underlying: Any, tokenizer: Any = None, *, name: str | None = None) -> LiveModel:
    """Wrap a model that is already in memory; nothing about it is changed.

    `underlying` is a transformers `PreTrainedModel` and `tokenizer` its tokenizer. Raises `InputError` for anything else, and
    for a model in training mode, whose dropout would make every number a random one.
    """
    from transformers import PreTrainedModel

    if isinstance(underlying, LiveModel):
        return underlying
    if not isinstance(underlying, PreTrainedModel):
        raise InputError(
            f"cannot wrap a {type(underlying).__name__}: give a transformers PreTrainedModel (wrapping TransformerLens and "
            "nnsight models is planned, see the README's status table)"
        )
    if tokenizer is None:
        raise InputError("wrap needs the model's tokenizer too: emoprobe.wrap(model, tokenizer)")
    if underlying.training:
        raise InputError("the model is in training mode, so dropout is on: call model.eval() first")
    backend = import_module("emoprobe.models.transformers_backend")
    live: LiveModel = backend.TransformersModel(underlying, tokenizer, name)
    return live


def _check_backend(backend: str) -> None:
    if backend not in BACKENDS:
        known = ", ".join(f'"{name}"' for name in BACKENDS)
        raise InputError(f'backend="{backend}" is not understood: give one of {known}')
    if backend != "transformers":
        raise InputError(
            f'backend="{backend}" is planned but not there yet (README, status): use "transformers"'
        )


def _why_not(name: str, error: Exception) -> str:
    first_line = _first_line(error)
    if Path(name).exists():
        return f'cannot load a model from the folder "{name}": {first_line}'
    return (
        f'no model "{name}": it is neither a folder here nor could it be had from the hub ({first_line}); check the name or '
        'the network, or use "bundled"'
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
