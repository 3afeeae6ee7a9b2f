"""An independent computation of what an injected or steered model must give.

One text at a time, without padding, cache, hooks or folding, in float64: the blocks of an eager copy of the model are
called one after another, each with a full additive mask that holds the bias, and residual edits are made between them.
"""

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from emoprobe.models import LiveModel

Valuer = Callable[[Tensor], Tensor]


class Oracle:
    """The model in float64 with eager attention, run by hand."""

    def __init__(self, model: LiveModel) -> None:
        self.underlying = copy.deepcopy(model.underlying).double().requires_grad_(False)
        self.underlying.set_attn_implementation("eager")
        self.base = self.underlying.base_model
        self.family = self.underlying.config.model_type

    def logits(
        self,
        ids: Tensor,
        biases: Mapping[int, list[tuple]] | None = None,
        edits: Mapping[int, Valuer] | None = None,
    ) -> Tensor:
        """Return logits (position, vocab) for token ids (position,).

        `biases` maps a block to [(λ, x -> v)] or, where V_Q is not v, [(λ, x -> v, v -> V_Q)]; `edits` a layer
        to a function of the whole stream (1, position, d_model).
        """
        streams, blocks = self._embed(ids[None]), self._blocks()
        causal = torch.full((len(ids), len(ids)), -torch.inf, dtype=torch.float64).triu(1)
        positions = torch.arange(len(ids))[None]
        for layer, block in enumerate(blocks):
            streams = (edits or {}).get(layer, lambda x: x)(streams)
            mask = causal[None, None].expand(1, self.underlying.config.num_attention_heads, -1, -1).clone()
            for strength, valuer, *query in (biases or {}).get(layer, []):
                v = valuer(streams)
                of_queries = query[0](v) if query else v
                lam = torch.as_tensor(strength, dtype=torch.float64).reshape(1, -1, 1, 1)
                mask += lam * (of_queries @ v.mT)[:, None]
            output = block(streams, attention_mask=mask, **self._positional(streams, positions))
            streams = output[0] if isinstance(output, tuple) else output
        streams = (edits or {}).get(len(blocks), lambda x: x)(streams)
        logits: Tensor = self.underlying.get_output_embeddings()(self._norm()(streams))[0]
        return logits

    def _blocks(self) -> list[torch.nn.Module]:
        return list(self.base.h if self.family == "gpt2" else self.base.layers)

    def _embed(self, ids: Tensor) -> Tensor:
        if self.family == "gpt2":
            return self.base.wte(ids) + self.base.wpe(torch.arange(ids.shape[1])[None])
        return (self.base.embed_in if self.family == "gpt_neox" else self.base.embed_tokens)(ids)

    def _positional(self, streams: Tensor, positions: Tensor) -> dict[str, object]:
        if self.family == "gpt2":
            return {}
        return {"position_embeddings": self.base.rotary_emb(streams, positions), "position_ids": positions}

    def _norm(self) -> torch.nn.Module:
        names = {"gpt2": "ln_f", "gpt_neox": "final_layer_norm", "llama": "norm"}
        return self.base.get_submodule(names[self.family])
