"""Add a vector to the residual stream while a batch of prompts of several lengths is continued, greedily, with a KV cache.

Given a folder of a model, prompts, a `vector` (d_model) and a `block` behind which it is added to every token of prompt and
continuation, each returns the `ids` of what it wrote, (prompts, tokens).
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
    "hook": "own",
    "transformer_lens": "own",
    "nnsight": "own",
    "repeng": "four",
    "steering_vectors": "four",
    "pyvene": "four",
    "untouched": "own",
}
COMPARED, TOLERANCE = "ids", 0.0
REASONS = {
    "hook": "a forward hook of torch on the block, written by hand: what any library comes down to",
    "untouched": "the model without the vector: the physical limit, and another text",
}


def emoprobe(given: Given) -> Work:
    """Steer with emoprobe."""
    import emoprobe as ep
    from emoprobe.steering import add

    model = ep.load_model(given["model"])
    edits = add(model, given["vector"], 1.0, given["block"] + 1, unit="raw")

    def work() -> dict[str, Tensor]:
        batch = model.tokenize(given["prompts"])
        with model.intervene(*edits):
            ids = model.generate_ids(batch, max_new_tokens=given["tokens"], min_new_tokens=given["tokens"])
        return {"ids": ids[:, -given["tokens"] :]}

    return work


def hook(given: Given) -> Work:
    """Steer with a hook of torch."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    model = AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32).eval()
    blocks = getattr(model.base_model, "layers", None) or model.base_model.h

    def add(module: torch.nn.Module, args: object, output: Any) -> Any:
        return output + given["vector"]

    def work() -> dict[str, Tensor]:
        batch = tokenizer(given["prompts"], padding=True, return_tensors="pt")
        handle = blocks[given["block"]].register_forward_hook(add)
        try:
            ids = model.generate(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                max_new_tokens=given["tokens"],
                min_new_tokens=given["tokens"],
                do_sample=False,
            )
        finally:
            handle.remove()
        return {"ids": ids[:, -given["tokens"] :]}

    return work


def transformer_lens(given: Given) -> Work:
    """Steer with a hook of TransformerLens."""
    import torch
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    loaded = AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32).eval()
    model = TransformerBridge.boot_transformers(given["model"], hf_model=loaded, tokenizer=tokenizer)

    def work() -> dict[str, Tensor]:
        batch = tokenizer(given["prompts"], padding=True, return_tensors="pt")
        point = f"blocks.{given['block']}.hook_out"
        with model.hooks(fwd_hooks=[(point, lambda stream, hook: stream + given["vector"])]):
            ids = model.generate(
                batch.input_ids,
                attention_mask=batch.attention_mask,
                max_new_tokens=given["tokens"],
                do_sample=False,
                stop_at_eos=False,
                return_type="tokens",
                verbose=False,
            )
        return {"ids": ids[:, -given["tokens"] :]}

    return work


def nnsight(given: Given) -> Work:
    """Steer with nnsight's generation."""
    import torch
    from nnsight import TransformersModel

    model = TransformersModel(given["model"], task="text-generation", dispatch=True, dtype=torch.float32)
    blocks = model.model.layers if hasattr(model, "model") else model.transformer.h
    options = {"max_new_tokens": given["tokens"], "min_new_tokens": given["tokens"], "do_sample": False}

    def work() -> dict[str, Tensor]:
        with model.generate(given["prompts"], **options) as tracer:
            for _ in tracer.iter[: given["tokens"]]:
                blocks[given["block"]].output += given["vector"]
            ids = tracer.result.save()
        return {"ids": ids[:, -given["tokens"] :]}

    return work


def repeng(given: Given) -> Work:
    """Steer with repeng's control vector."""
    import torch
    from repeng import ControlModel, ControlVector
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    loaded = AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32).eval()
    vector = ControlVector(loaded.config.model_type, {given["block"]: given["vector"].numpy()})
    model = ControlModel(loaded, [given["block"]])

    def work() -> dict[str, Tensor]:
        batch = tokenizer(given["prompts"], padding=True, return_tensors="pt")
        model.set_control(vector, 1.0)
        ids = model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            max_new_tokens=given["tokens"],
            min_new_tokens=given["tokens"],
            do_sample=False,
        )
        model.reset()
        return {"ids": ids[:, -given["tokens"] :]}

    return work


def steering_vectors(given: Given) -> Work:
    """Steer with steering-vectors."""
    import torch
    from steering_vectors import SteeringVector
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    model = AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32).eval()
    vector = SteeringVector({given["block"]: given["vector"]})

    def work() -> dict[str, Tensor]:
        batch = tokenizer(given["prompts"], padding=True, return_tensors="pt")
        with vector.apply(model):
            ids = model.generate(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                max_new_tokens=given["tokens"],
                min_new_tokens=given["tokens"],
                do_sample=False,
            )
        return {"ids": ids[:, -given["tokens"] :]}

    return work


def pyvene(given: Given) -> Work:
    """Steer with pyvene's intervention."""
    import pyvene
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    loaded = AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32).eval()
    where = {"layer": given["block"], "component": "block_output"}
    model = pyvene.IntervenableModel(
        {**where, "intervention": lambda base, source: base + given["vector"]}, model=loaded
    )

    def work() -> dict[str, Tensor]:
        batch = tokenizer(given["prompts"], padding=True, return_tensors="pt")
        _, ids = model.generate(
            {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask},
            unit_locations=None,
            intervene_on_prompt=True,
            max_new_tokens=given["tokens"],
            min_new_tokens=given["tokens"],
            do_sample=False,
        )
        return {"ids": ids[:, -given["tokens"] :]}

    return work


def untouched(given: Given) -> Work:
    """Continue the prompts as they are."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    model = AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32).eval()

    def work() -> dict[str, Tensor]:
        batch = tokenizer(given["prompts"], padding=True, return_tensors="pt")
        ids = model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            max_new_tokens=given["tokens"],
            min_new_tokens=given["tokens"],
            do_sample=False,
        )
        return {"ids": ids[:, -given["tokens"] :]}

    return work
