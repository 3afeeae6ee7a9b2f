"""Add λ·V_Q·V_Kᵀ to the scores of every block's attention, in one pass over a text and in cached generation.

Given a folder of a model, a `text`, `weight` (layers, m, d_model) and `bias` (layers, m) of v = tanh(W·x + b), x being what a
block reads, and λ, each returns as `found` the logits of the text or, where `tokens` are to be written, their ids.
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
    "mask": "own",
    "flex_attention": "own",
    "transformer_lens": "own",
    "nnsight": "own",
    "nnsight_eager": "own",
    "untouched": "own",
}
COMPARED, TOLERANCE = "found", 1e-4
SLOW = ("flex_attention",)
"""Contestants that compile for a minute before they begin; the guard leaves them out."""
REASONS = {
    "mask": "the bias as an attention mask (queries × keys) that SDPA adds, by hooks of torch",
    "flex_attention": "compiled, the bias worked out score by score, by an attention function registered with transformers; in "
    "generation keys are padded to their final length, since on a CPU it compiles for one length only",
    "transformer_lens": "`hook_attn_scores`, which has TransformerLens compute attention in the plain way",
    "nnsight": "the bias as an argument of the attention function, a materialised mask again",
    "nnsight_eager": "an edit of what goes into the softmax of eager attention",
    "untouched": "the model without the bias: the physical limit, and another result",
}


def emoprobe(given: Given) -> Work:
    """Inject with emoprobe."""
    import emoprobe as ep

    model = ep.load_model(given["model"])
    names = tuple(f"v{k}" for k in range(given["weight"].shape[1]))
    valuation = ep.Valuation(given["weight"], given["bias"], names, tuple(range(model.n_layers)))

    def work() -> dict[str, Tensor]:
        batch = model.tokenize(given["text"])
        options = {"max_new_tokens": given["tokens"], "min_new_tokens": given["tokens"], "do_sample": False}
        with ep.inject(model, valuation, given["strength"]):
            if given["tokens"]:
                return {"found": model.generate_ids(batch, **options)[:, -given["tokens"] :]}
            return {"found": model.forward(batch)}

    return work


def mask(given: Given) -> Work:
    """Inject as a mask, by hand."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    model = AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32).eval()
    blocks = getattr(model.base_model, "layers", None) or model.base_model.h
    history: dict[int, Tensor] = {}
    biases: dict[int, Tensor] = {}

    def read(layer: int) -> Any:
        def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            stream = args[0] if args else kwargs["hidden_states"]
            values = torch.tanh(stream @ given["weight"][layer].T + given["bias"][layer])
            known = history.get(layer, values[:, :0])
            history[layer] = torch.cat([known, values], dim=1)
            bias = given["strength"] * values @ history[layer].transpose(1, 2)
            queries, keys = bias.shape[1:]
            causal = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
            biases[layer] = bias.where(causal, -torch.inf)[:, None]

        return hook

    def add(layer: int) -> Any:
        def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return args, {**kwargs, "attention_mask": biases[layer]}

        return hook

    def work() -> dict[str, Tensor]:
        history.clear()
        batch = tokenizer(given["text"], return_tensors="pt")
        handles = []
        for layer, block in enumerate(blocks):
            attention = block.self_attn if hasattr(block, "self_attn") else block.attn
            handles.append(block.register_forward_pre_hook(read(layer), with_kwargs=True))
            handles.append(attention.register_forward_pre_hook(add(layer), with_kwargs=True))
        try:
            if not given["tokens"]:
                return {"found": model(batch.input_ids, use_cache=False).logits}
            ids = model.generate(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                max_new_tokens=given["tokens"],
                min_new_tokens=given["tokens"],
                do_sample=False,
            )
            return {"found": ids[:, -given["tokens"] :]}
        finally:
            for handle in handles:
                handle.remove()

    return work


def flex_attention(given: Given) -> Work:
    """Inject by FlexAttention's score_mod, by hand."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask
    from torch.nn.attention.flex_attention import flex_attention as attend
    from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, AutoTokenizer

    compiled = torch.compile(attend, dynamic=False)
    history: dict[int, Tensor] = {}
    values: dict[int, Tensor] = {}
    masks: dict[int, Any] = {}

    def causal(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return q >= k

    def valued(module: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> Any:
        queries, keys = query.shape[2], key.shape[2]
        own, known = given["strength"] * values[module.layer_idx], history[module.layer_idx]
        options = {"scale": options["scaling"], "enable_gqa": key.shape[1] != query.shape[1]}
        if given["tokens"]:  # every length anew would be compiled anew
            more = lengths[0] + given["tokens"] - keys
            key, value, known = (torch.nn.functional.pad(one, (0, 0, 0, more)) for one in (key, value, known))
        elif queries not in masks:
            masks[queries] = create_block_mask(causal, None, None, queries, keys, device="cpu")
        offset, width = torch.tensor(keys - queries), own.shape[-1]

        def score(scores: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            for dimension in range(width):
                scores = scores + own[b, q, dimension] * known[b, k, dimension]
            return torch.where(k <= q + offset, scores, -float("inf"))

        out = compiled(query, key, value, score_mod=score, block_mask=masks.get(queries), **options)
        return out.transpose(1, 2), None

    lengths: list[int] = []
    AttentionInterface.register("valued", valued)
    AttentionMaskInterface.register("valued", lambda *given, **options: None)
    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    model = AutoModelForCausalLM.from_pretrained(
        given["model"], dtype=torch.float32, attn_implementation="valued"
    ).eval()

    def read(layer: int) -> Any:
        def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            stream = args[0] if args else kwargs["hidden_states"]
            values[layer] = torch.tanh(stream @ given["weight"][layer].T + given["bias"][layer])
            history[layer] = torch.cat([history.get(layer, values[layer][:, :0]), values[layer]], dim=1)

        return hook

    for layer, block in enumerate(getattr(model.base_model, "layers", None) or model.base_model.h):
        block.register_forward_pre_hook(read(layer), with_kwargs=True)

    def work() -> dict[str, Tensor]:
        history.clear()
        batch = tokenizer(given["text"], return_tensors="pt")
        lengths[:] = [batch.input_ids.shape[1]]
        if not given["tokens"]:
            return {"found": model(batch.input_ids, use_cache=False).logits}
        ids = model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            max_new_tokens=given["tokens"],
            min_new_tokens=given["tokens"],
            do_sample=False,
        )
        return {"found": ids[:, -given["tokens"] :]}

    return work


def transformer_lens(given: Given) -> Work:
    """Inject by hooks of TransformerLens."""
    import torch
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    loaded = AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32).eval()
    model = TransformerBridge.boot_transformers(given["model"], hf_model=loaded, tokenizer=tokenizer)
    history: dict[int, Tensor] = {}
    biases: dict[int, Tensor] = {}

    def read(layer: int) -> Any:
        def hook(stream: Tensor, hook: Any) -> None:
            values = torch.tanh(stream @ given["weight"][layer].T + given["bias"][layer])
            history[layer] = torch.cat([history.get(layer, values[:, :0]), values], dim=1)
            biases[layer] = given["strength"] * values @ history[layer].transpose(1, 2)

        return hook

    def add(layer: int) -> Any:
        return lambda scores, hook: scores + biases[layer][:, None]

    def work() -> dict[str, Tensor]:
        history.clear()
        hooks = []
        for layer in range(model.cfg.n_layers):
            hooks.append((f"blocks.{layer}.hook_in", read(layer)))
            hooks.append((f"blocks.{layer}.attn.hook_attn_scores", add(layer)))
        batch = tokenizer(given["text"], return_tensors="pt")
        with model.hooks(fwd_hooks=hooks):
            if not given["tokens"]:
                return {"found": model(batch.input_ids, return_type="logits")}
            ids = model.generate(
                batch.input_ids,
                max_new_tokens=given["tokens"],
                do_sample=False,
                stop_at_eos=False,
                return_type="tokens",
                verbose=False,
            )
            return {"found": ids[:, -given["tokens"] :]}

    return work


def nnsight(given: Given) -> Work:
    """Inject by an argument of the attention function, set by nnsight."""
    import torch
    from nnsight import TransformersModel

    model = TransformersModel(given["model"], task="text-generation", dispatch=True, dtype=torch.float32)
    llama = hasattr(model, "model")
    blocks = model.model.layers if llama else model.transformer.h
    weight, bias, strength = given["weight"], given["bias"], given["strength"]

    def work() -> dict[str, Tensor]:
        history: dict[int, Tensor] = {}
        if not given["tokens"]:
            with model.trace(given["text"]):
                for layer, block in enumerate(blocks):
                    values = torch.tanh(block.input @ weight[layer].T + bias[layer])
                    attention = block.self_attn if llama else block.attn
                    call = attention.source.attention_interface_1
                    added = strength * values @ values.transpose(1, 2)
                    call.inputs = (call.inputs[0], {**call.inputs[1], "position_bias": added[:, None]})
                logits = model.output.logits.save()
            return {"found": logits}
        lengths = {"max_new_tokens": given["tokens"], "min_new_tokens": given["tokens"], "do_sample": False}
        with model.generate(given["text"], **lengths) as tracer:
            for _ in tracer.iter[: given["tokens"]]:
                for layer, block in enumerate(blocks):
                    values = torch.tanh(block.input @ weight[layer].T + bias[layer])
                    history[layer] = torch.cat([history.get(layer, values[:, :0]), values], dim=1)
                    attention = block.self_attn if llama else block.attn
                    call = attention.source.attention_interface_1
                    added = strength * values @ history[layer].transpose(1, 2)
                    call.inputs = (call.inputs[0], {**call.inputs[1], "position_bias": added[:, None]})
            ids = tracer.result.save()
        return {"found": ids[:, -given["tokens"] :]}

    return work


def nnsight_eager(given: Given) -> Work:
    """Inject by nnsight's edit of what goes into the softmax."""
    import torch
    from nnsight import TransformersModel

    options = {"task": "text-generation", "dispatch": True, "attn_implementation": "eager"}
    model = TransformersModel(given["model"], dtype=torch.float32, **options)
    llama = hasattr(model, "model")
    blocks = model.model.layers if llama else model.transformer.h
    weight, bias, strength = given["weight"], given["bias"], given["strength"]

    def work() -> dict[str, Tensor]:
        history: dict[int, Tensor] = {}
        if not given["tokens"]:
            with model.trace(given["text"]):
                for layer, block in enumerate(blocks):
                    values = torch.tanh(block.input @ weight[layer].T + bias[layer])
                    attention = block.self_attn if llama else block.attn
                    softmax = attention.source.attention_interface_1.source.nn_functional_softmax_0
                    softmax.input = softmax.input + (strength * values @ values.transpose(1, 2))[:, None]
                logits = model.output.logits.save()
            return {"found": logits}
        lengths = {"max_new_tokens": given["tokens"], "min_new_tokens": given["tokens"], "do_sample": False}
        with model.generate(given["text"], **lengths) as tracer:
            for _ in tracer.iter[: given["tokens"]]:
                for layer, block in enumerate(blocks):
                    values = torch.tanh(block.input @ weight[layer].T + bias[layer])
                    history[layer] = torch.cat([history.get(layer, values[:, :0]), values], dim=1)
                    attention = block.self_attn if llama else block.attn
                    softmax = attention.source.attention_interface_1.source.nn_functional_softmax_0
                    added = strength * values @ history[layer].transpose(1, 2)
                    softmax.input = softmax.input + added[:, None]
            ids = tracer.result.save()
        return {"found": ids[:, -given["tokens"] :]}

    return work


def untouched(given: Given) -> Work:
    """Run the model as it is."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    model = AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32).eval()

    def work() -> dict[str, Tensor]:
        batch = tokenizer(given["text"], return_tensors="pt")
        if not given["tokens"]:
            return {"found": model(batch.input_ids, use_cache=False).logits}
        ids = model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            max_new_tokens=given["tokens"],
            min_new_tokens=given["tokens"],
            do_sample=False,
        )
        return {"found": ids[:, -given["tokens"] :]}

    return work
