"""Mean-pooled residual streams of all layers, as users of each library would write it.

Given a folder of a model and texts, each returns float32 `vectors` (texts, layers, d_model): the mean over a text's tokens from
the second on, of what every block reads and of what the last one leaves. Batches hold 32 texts.
"""

# what is installed here is one environment's; imports are lines of the user's code
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

Given = dict[str, Any]
Work = Callable[[], dict[str, Tensor]]

CONTESTANTS = {
    "emoprobe": "own",
    "transformers": "own",
    "transformers_sorted": "own",
    "transformer_lens": "own",
    "nnsight": "own",
    "nnterp": "nnterp",
    "steering_vectors": "four",
    "bare_pass": "own",
}
COMPARED, TOLERANCE = "vectors", 1e-4
REASONS = {
    "transformers": "the last of its hidden states is behind the final norm, so that it is no residual stream, and GPT-2's "
    "positions are counted over padding: both are mended here by hand",
    "transformers_sorted": "the same, batched by length in characters, as is often done by hand; emoprobe goes by tokens",
    "steering_vectors": "its recorder has what blocks leave only, so that the embedding is missing",
    "nnterp": "its helpers collect one token's activations, not means; this is its trace, with its names. nnsight 0.7, the "
    "latest that it can be imported with, counts GPT-2's positions over padding",
    "bare_pass": "reads the batches that emoprobe makes and keeps nothing: the physical limit",
}


def emoprobe(given: Given) -> Work:
    """Capture with emoprobe."""
    import emoprobe as ep

    model = ep.load_model(given["model"])
    return lambda: {"vectors": model.capture(given["texts"])}


def transformers(given: Given) -> Work:
    """Capture with `output_hidden_states`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    model = AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32).base_model.eval()
    # Or the last state is normed.
    setattr(model, "norm" if hasattr(model, "norm") else "ln_f", torch.nn.Identity())

    def work() -> dict[str, Tensor]:
        vectors = []
        for first in range(0, len(given["texts"]), 32):
            batch = tokenizer(given["texts"][first : first + 32], padding=True, return_tensors="pt")
            mask = batch.attention_mask
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            states = model(
                batch.input_ids,
                attention_mask=mask,
                position_ids=positions,
                output_hidden_states=True,
                use_cache=False,
            )
            counted = (mask.bool() & (positions > 0))[..., None]
            vectors.append(
                torch.stack([(s * counted).sum(1) / counted.sum(1) for s in states.hidden_states], dim=1)
            )
        return {"vectors": torch.cat(vectors)}

    return work


def transformers_sorted(given: Given) -> Work:
    """Capture with `output_hidden_states`, batched by length in characters."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    model = AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32).base_model.eval()
    # Or the last state is normed.
    setattr(model, "norm" if hasattr(model, "norm") else "ln_f", torch.nn.Identity())

    def work() -> dict[str, Tensor]:
        texts = given["texts"]
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        vectors = torch.empty(len(texts), model.config.num_hidden_layers + 1, model.config.hidden_size)
        for first in range(0, len(texts), 32):
            rows = order[first : first + 32]
            batch = tokenizer([texts[row] for row in rows], padding=True, return_tensors="pt")
            mask = batch.attention_mask
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            states = model(
                batch.input_ids,
                attention_mask=mask,
                position_ids=positions,
                output_hidden_states=True,
                use_cache=False,
            )
            counted = (mask.bool() & (positions > 0))[..., None]
            vectors[rows] = torch.stack(
                [(s * counted).sum(1) / counted.sum(1) for s in states.hidden_states], dim=1
            )
        return {"vectors": vectors}

    return work


def transformer_lens(given: Given) -> Work:
    """Capture with `run_with_cache`."""
    import torch
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    loaded = AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32).eval()
    model = TransformerBridge.boot_transformers(given["model"], hf_model=loaded, tokenizer=tokenizer)
    last = f"blocks.{model.cfg.n_layers - 1}.hook_out"
    names = [*(f"blocks.{layer}.hook_in" for layer in range(model.cfg.n_layers)), last]

    def work() -> dict[str, Tensor]:
        vectors = []
        for first in range(0, len(given["texts"]), 32):
            batch = tokenizer(given["texts"][first : first + 32], padding=True, return_tensors="pt")
            mask = batch.attention_mask
            _, cache = model.run_with_cache(
                batch.input_ids, attention_mask=mask, names_filter=names, return_type=None
            )
            counted = (mask.bool() & (mask.cumsum(-1) > 1))[..., None]
            vectors.append(torch.stack([(cache[n] * counted).sum(1) / counted.sum(1) for n in names], dim=1))
        return {"vectors": torch.cat(vectors)}

    return work


def nnsight(given: Given) -> Work:
    """Capture with nnsight's trace."""
    import torch
    from nnsight import TransformersModel

    model = TransformersModel(given["model"], task="text-generation", dispatch=True, dtype=torch.float32)
    blocks = model.model.layers if hasattr(model, "model") else model.transformer.h

    def work() -> dict[str, Tensor]:
        vectors = []
        for first in range(0, len(given["texts"]), 32):
            texts = given["texts"][first : first + 32]
            mask = model.tokenizer(texts, padding=True, return_tensors="pt").attention_mask
            counted = (mask.bool() & (mask.cumsum(-1) > 1))[..., None]
            with model.trace(texts) as tracer:
                means = []
                for block in blocks:
                    means.append((block.input * counted).sum(1) / counted.sum(1))
                left = blocks[-1].output
                left = left[0] if isinstance(left, tuple) else left
                means.append((left * counted).sum(1) / counted.sum(1))
                pooled = torch.stack(means, dim=1).save()
                tracer.stop()
            vectors.append(pooled)
        return {"vectors": torch.cat(vectors)}

    return work


def nnterp(given: Given) -> Work:
    """Capture with nnterp's trace."""
    import torch
    from nnterp import StandardizedTransformer

    model = StandardizedTransformer(given["model"], device_map="cpu", dtype=torch.float32)

    def work() -> dict[str, Tensor]:
        vectors = []
        for first in range(0, len(given["texts"]), 32):
            texts = given["texts"][first : first + 32]
            mask = model.tokenizer(texts, padding=True, return_tensors="pt").attention_mask
            counted = (mask.bool() & (mask.cumsum(-1) > 1))[..., None]
            with model.trace(texts) as tracer:
                means = []
                for layer in range(model.num_layers):
                    means.append((model.layers_input[layer] * counted).sum(1) / counted.sum(1))
                means.append((model.layers_output[-1] * counted).sum(1) / counted.sum(1))
                pooled = torch.stack(means, dim=1).save()
                tracer.stop()
            vectors.append(pooled)
        return {"vectors": torch.cat(vectors)}

    return work


def steering_vectors(given: Given) -> Work:
    """Capture with the recorder of steering-vectors."""
    import torch
    from steering_vectors import record_activations
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    model = AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32).eval()

    def work() -> dict[str, Tensor]:
        vectors = []
        for first in range(0, len(given["texts"]), 32):
            batch = tokenizer(given["texts"][first : first + 32], padding=True, return_tensors="pt")
            mask = batch.attention_mask
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            with record_activations(model, clone_activations=False) as recorded:
                model.base_model(
                    batch.input_ids, attention_mask=mask, position_ids=positions, use_cache=False
                )
            counted = (mask.bool() & (positions > 0))[..., None]
            vectors.append(
                torch.stack([(one[0] * counted).sum(1) / counted.sum(1) for one in recorded.values()], dim=1)
            )
        return {"vectors": torch.cat(vectors)}

    return work


def bare_pass(given: Given) -> Work:
    """Run the model over the batches that emoprobe makes, by length in tokens, and keep nothing."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    model = AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32).base_model.eval()

    def work() -> dict[str, Tensor]:
        for first in range(0, len(given["texts"]), 1024):
            ids = sorted(tokenizer(given["texts"][first : first + 1024]).input_ids, key=len)
            for begin in range(0, len(ids), 32):
                batch = tokenizer.pad({"input_ids": ids[begin : begin + 32]}, return_tensors="pt")
                positions = (batch.attention_mask.cumsum(-1) - 1).clamp(min=0)
                state = model(
                    batch.input_ids,
                    attention_mask=batch.attention_mask,
                    position_ids=positions,
                    use_cache=False,
                )
        return {"vectors": state.last_hidden_state}

    return work
