"""Live models: load one by name, or wrap one that is already there."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from emoprobe.errors import InputError
from emoprobe.models.live import Batch, LiveModel
from emoprobe.places import MODELS, check_model, hub

__all__ = ["Batch", "LiveModel", "load_model", "wrap"]

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
    remote: bool = False,
) -> LiveModel:
    """Load a language model, ready to be read and intervened in.

    `name` is a hub name, a folder in Hugging Face format, "bundled" (also "prose": 7.3 million parameters, trained on
    public-domain fiction) or "ground-truth" (trained on the package's own generator, whose emotions are known). Encoders
    (BERT) come with their masked-language-model head where the checkpoint has one. `backend` is the library that runs the
    model: "transformers", "transformer_lens" (always with plain attention) or "nnsight". `dtype`, `device_map`,
    `quantization_config`, `revision`, `attn_implementation` and `trust_remote_code` are those of transformers; no code of a
    checkpoint is ever run unless `trust_remote_code` says so. A model that caps its attention scores (Gemma 2) is loaded
    with "eager" attention, since "sdpa" would leave the cap out. `device` is where the model goes, by default the CPU. With
    `remote` (backend "nnsight") no weights are loaded, and NDIF's server runs the model: see `nnsight_remote`; it needs a key
    (environment variable NDIF_API_KEY), and sends it your texts. Raises `InputError` if there is no such model, or if both
    `device` and `device_map` are given.
    """
    if remote:
        elsewhere = {"device": device, "device_map": device_map, "quantization_config": quantization_config}
        _check_remote(
            str(name), backend, [option for option, value in elsewhere.items() if value is not None]
        )
        remotely: LiveModel = import_module("emoprobe.models.nnsight_remote").load_remote(
            str(name), revision, dtype, attn_implementation
        )
        return remotely
    if device is not None and device_map is not None:
        raise InputError(
            "give device= or device_map=, not both: the map says where the parts of the model go"
        )
    _check_backend(backend, attn_implementation)
    folder = Path(__file__).parent / MODELS[str(name)] if str(name) in MODELS else None
    if folder is None:
        check_model(name)
    from transformers import AutoConfig, AutoTokenizer

    from emoprobe.models.transformers_structure import caps_scores

    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    chosen = {
        "dtype": dtype,
        "attn_implementation": attn_implementation,
        "device_map": device_map,
        "quantization_config": quantization_config,
    }
    source = str(folder or name)
    try:
        with ExitStack() as stack:
            if not Path(source).exists():
                stack.enter_context(hub())
            if folder is not None:  # a model this small is there at once
                stack.enter_context(_without_bars())
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            if tokenizer.get_vocab().keys() <= {*tokenizer.all_special_tokens}:
                raise ValueError("its tokenizer has no vocabulary")
            config = AutoConfig.from_pretrained(source, **options)
            if attn_implementation is None and caps_scores(config):
                chosen["attn_implementation"] = "eager"  # before 5.21, transformers would take sdpa
            model, loaded = _auto_class(config).from_pretrained(
                source,
                **options,
                **{key: value for key, value in chosen.items() if value is not None},
                output_loading_info=True,
            )
    except ImportError as error:  # device_map and quantization_config need libraries of their own
        raise InputError(f'"{name}" cannot be loaded in this way: {_first_line(error)}') from error
    except (
        Exception
    ) as error:  # transformers and the libraries below it raise of every kind for what is in a folder
        raise InputError(_why_not(str(name), error)) from error
    if device is not None:
        model = model.to(device)
    _check_weights(str(name), model, loaded["missing_keys"])
    return wrap(_hand_over(model.eval(), tokenizer, source, backend), tokenizer, name=str(name))


def _check_weights(name: str, model: Any, missing: Iterable[str]) -> None:
    """Refuse weights that were made up at random, for the checkpoint lacks them, and such as are no finite numbers."""
    made_up = sorted(
        weight for weight in missing if "pooler" not in weight.split(".")
    )  # what reads no residual stream
    if made_up:
        raise InputError(
            f'"{name}" lacks {len(made_up)} weights of a {type(model).__name__} ({", ".join(made_up[:3])}'
            f"{', …' if len(made_up) > 3 else ''}), which would be random numbers: get the model again"
        )
    for path, weight in model.named_parameters():
        bad = _not_finite(weight.detach())
        if bad:
            raise InputError(
                f'"{name}" is damaged: {bad} of the {weight.numel()} numbers of {path} are not finite; get the model again, or '
                "load it in another dtype"
            )


def _not_finite(weight: torch.Tensor) -> int:
    """Count the numbers that are not finite, reading each once and copying none where there is none."""
    if weight.is_meta or not weight.is_floating_point():
        return 0
    # A sum in a weight's own dtype is twenty times as fast as one that converts; of 8 bits there is none.
    total = weight.sum(dtype=torch.float32 if weight.itemsize == 1 else None)
    if total.isfinite():
        return 0
    parts = torch.split(weight.flatten(), 2**20)  # large finite numbers too may add up to infinity
    return sum(int((~part.double().isfinite()).sum()) for part in parts)


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

    `underlying` is a transformers `PreTrainedModel`, a TransformerLens 4 `TransformerBridge`, or an nnsight
    `TransformersModel`, and `tokenizer` the model's own tokenizer. It can be left out for nnsight models and for bridges
    whose tokenizer can be loaded by its name: TransformerLens's copy of it puts a start token before every text, and is not
    used. Raises `InputError` for anything else, for a model in training mode, whose dropout would make every number a random
    one, and for one whose attention leaves out the soft cap that it was trained with.
    """
    if isinstance(underlying, LiveModel):
        return underlying
    backend, kind = _recognise(underlying)
    module = underlying._module if backend == "nnsight" else underlying
    if module.training and not any(parameter.is_meta for parameter in module.parameters()):
        raise InputError("the model is in training mode, so dropout is on: call model.eval() first")
    if tokenizer is None and backend == "transformers":
        raise InputError("wrap needs the model's tokenizer too: emoprobe.wrap(model, tokenizer)")
    if backend != "transformer_lens":  # which computes attention by itself
        _check_soft_cap(module)
    live: LiveModel = getattr(import_module(f"emoprobe.models.{backend}_backend"), kind)(
        underlying, tokenizer, name
    )
    return live


def _check_soft_cap(model: Any) -> None:
    from emoprobe.models.transformers_structure import caps_scores

    if caps_scores(model.config) and model.config.get_text_config()._attn_implementation == "sdpa":
        raise InputError(
            f'{type(model).__name__} was trained with capped attention scores, and attention by "sdpa" leaves the cap out: '
            'load it with attn_implementation="eager", or call model.set_attn_implementation("eager")'
        )


def _recognise(underlying: Any) -> tuple[str, str]:
    """Return backend and class for an object, without importing a library that it does not come from."""
    origins = {(cls.__module__.partition(".")[0], cls.__name__) for cls in type(underlying).__mro__}
    if ("transformers", "PreTrainedModel") in origins:
        return "transformers", "TransformersModel"
    if ("transformer_lens", "TransformerBridge") in origins:
        return "transformer_lens", "TransformerLensModel"
    if ("nnsight", "TransformersModel") in origins:
        return "nnsight", "NnsightModel"
    if ("transformer_lens", "HookedTransformer") in origins:
        raise InputError(
            "HookedTransformer left TransformerLens in 4.0, and emoprobe needs 4.0 or newer: pip install -U transformer-lens, "
            "then wrap TransformerBridge.boot_transformers(name)"
        )
    if ("torch", "OptimizedModule") in origins:
        raise InputError(
            "torch.compile(model) puts another module around the model: compile it in place, model.compile(), and wrap that"
        )
    raise InputError(
        f"cannot wrap a {type(underlying).__name__}: give a transformers PreTrainedModel, a "
        "TransformerLens TransformerBridge or an nnsight TransformersModel"
    )


def _hand_over(model: Any, tokenizer: Any, source: str, backend: str) -> Any:
    """Give a transformers model to the library that shall run it."""
    if backend == "transformer_lens":
        bridges = import_module("transformer_lens.model_bridge")
        # It changes the tokenizer and takes the model apart: neither is used for anything else.
        return bridges.TransformerBridge.boot_transformers(
            source, hf_model=model, tokenizer=deepcopy(tokenizer), device=str(model.device), dtype=model.dtype
        )
    if backend == "nnsight":
        return import_module("nnsight").TransformersModel(model, tokenizer=tokenizer, task="text-generation")
    return model


def _check_backend(backend: str, attn_implementation: str | None) -> None:
    if backend not in BACKENDS:
        known = ", ".join(f'"{name}"' for name in BACKENDS)
        raise InputError(f'backend="{backend}" is not understood: give one of {known}')
    if backend == "transformer_lens" and attn_implementation not in (None, "eager"):
        raise InputError(
            f'attn_implementation="{attn_implementation}" cannot be had with TransformerLens, which computes attention by '
            "itself: leave it out"
        )


def _check_remote(name: str, backend: str, elsewhere: list[str]) -> None:
    if backend != "nnsight":
        raise InputError(f'remote=True with backend="{backend}": only backend="nnsight" runs models remotely')
    if elsewhere:
        raise InputError(
            f"remote=True with {', '.join(elsewhere)}=: the server says where its model lies; leave it out"
        )
    if name in MODELS or Path(name).exists():
        raise InputError(
            f'"{name}" lies on this machine, and no server knows it: give a hub name, or leave out remote=True'
        )


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep the progress bars of transformers off the screen, and leave them afterwards as they were."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled() and not are_progress_bars_disabled()  # it switches both at once
    if shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _why_not(name: str, error: Exception) -> str:
    first_line = _first_line(error)
    if "trust_remote_code" in str(error):
        return f'"{name}" brings code of its own: read it, and give trust_remote_code=True if it may run here'
    if Path(name).is_dir() and not (Path(name) / "config.json").exists():
        return f'the folder "{name}" holds no model, for there is no config.json in it: give the folder that one was saved to'
    if Path(name).exists():
        return f'cannot load a model from the folder "{name}": {first_line}'
    return (
        f'no model "{name}": there is no folder of that name here, nor could it be had from the hub ({first_line}); check the '
        'path, the name or the network, or use "bundled"'
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
