"""What a transformers model is made of, found by structure: blocks, attention modules, final norm, first position.

No class is known by name. Decoder or encoder blocks are the list of modules that is as long as the configuration says; an
attention module is one whose forward asks transformers' attention interface for its function, or else one that calls
itself attention. Nothing here runs a model or changes one.
"""

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING, PreTrainedModel

from emoprobe.errors import InputError


@dataclass(frozen=True, eq=False)
class AttentionSite:
    """The attention module of a block, and whether a bias can be folded into its queries and keys.

    It can where the module asks transformers' attention interface for the function that computes its attention, and does not
    cap its scores. Otherwise the bias is added to the scores where the softmax is about to be taken. `kind` tells apart
    what may behave differently.
    """

    module: nn.Module
    folds: bool
    kind: str


def parameters_of(kind: type[nn.Module]) -> tuple[str, ...]:
    """Names of the parameters of a module's forward, without self."""
    return tuple(inspect.signature(kind.forward).parameters)[1:]


def _asks_interface(kind: type[nn.Module]) -> bool:
    code = getattr(inspect.unwrap(kind.forward), "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def find_blocks(model: PreTrainedModel, n_layers: int) -> nn.ModuleList:
    """Return the blocks that the residual stream flows through.

    Of all lists as long as the model is deep it is the one with most parameters: a list of experts lies inside a block.
    """
    lists: list[nn.ModuleList] = [
        m for m in model.base_model.modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers
    ]
    if not lists:
        raise InputError(f"no list of {n_layers} blocks was found in {type(model).__name__}")
    sizes = [sum(p.numel() for p in blocks.parameters()) for blocks in lists]
    return lists[sizes.index(max(sizes))]


def find_trunk(model: PreTrainedModel, blocks: nn.ModuleList) -> nn.Module:
    """Return the innermost module around the blocks that is called with token ids: any pass of the model goes through it."""
    around: list[nn.Module] = [
        m for m in model.base_model.modules() if any(child is blocks for child in m.modules())
    ]
    return [m for m in around if "input_ids" in parameters_of(type(m))][-1]


def caps_scores(config: Any) -> bool:
    """Whether attention scores go through a soft cap, as in Gemma 2: attention by "sdpa" leaves it out without a word."""
    return getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None


def find_attention(block: nn.Module, layer: int, config: Any, where: str) -> AttentionSite:
    """Return the one self-attention of a block. Raises `InputError` with the reason where a bias cannot be put into it."""
    types = getattr(config, "layer_types", None) or []
    kind = str(types[layer]) if layer < len(types) else "attention"
    if "attention" not in kind or "linear" in kind:
        raise InputError(
            f"{where} is of type {kind}: without a softmax over keys there is nothing to add λ·V_Q·V_Kᵀ to"
        )
    modules = [module for module in block.modules() if not _is_cross_attention(module)]
    found = [module for module in modules if _asks_interface(type(module))]
    named = [
        module for module in modules if re.search("attention|attn", type(module).__name__, re.IGNORECASE)
    ]
    if len(found) > 1:
        raise InputError(
            f"{where} has {len(found)} self-attention modules: it is not clear which one a bias is meant for"
        )
    if not found and not named:
        raise InputError(f"{where} has no attention module that a bias could be put into")
    module = (found or named)[0]
    if getattr(module, "is_kv_shared_layer", False):
        raise InputError(
            f"{where} looks at the keys of an earlier block, which have that block's valuations: not supported"
        )
    own_way = (  # of computing scores or caching keys, although the module may ask the interface for the rest
        caps_scores(config)  # a folded bias would be capped too
        or getattr(module, "reorder_and_upcast_attn", False)
        or hasattr(module, "kv_lora_rank")  # latent attention caches what its keys are made from
    )
    folds = bool(found) and not own_way
    return AttentionSite(module, folds, f"{type(module).__name__}, {kind}")


def gives_its_whole_output(block: nn.Module, attention: nn.Module) -> bool:
    """Whether what an attention module returns is its contribution to the stream.

    In BERT the projection of the output stands outside of it, and in BLOOM the stream is added inside.
    """
    around = [
        m for m in block.modules() if any(child is attention for child in m.children()) and m is not block
    ]
    outside = [
        m
        for parent in around
        for m in parent.children()
        if m is not attention and next(m.parameters(), None) is not None
    ]
    return not outside and "residual" not in parameters_of(type(attention))


def ways_of_injection(blocks: nn.ModuleList, config: Any) -> dict[str, str]:
    """Return, for each range of blocks that are alike ("inject, blocks 0-11"), how a bias gets into them, or why not."""

    def way(layer: int) -> str:
        site = find_attention(blocks[layer], layer, config, "it")
        return f"yes, {'folded' if site.folds else 'at the softmax (quadratic memory)'}: {site.kind}"

    return by_ranges("inject", len(blocks), way)


def by_ranges(what: str, n_layers: int, way: Callable[[int], str]) -> dict[str, str]:
    """Return what `way` says of each block, or "no" and the reason where it raises, once for each range of blocks."""
    ways: dict[str, list[int]] = {}
    for layer in range(n_layers):
        try:
            said = way(layer)
        except InputError as error:
            said = f"no: {error}"
        ways.setdefault(said, []).append(layer)
    return {f"{what}, blocks {_ranges(layers)}": said for said, layers in ways.items()}


def _ranges(layers: Sequence[int]) -> str:
    """Write indices shortly: 0-2, 5."""
    starts = [i for i in layers if i - 1 not in layers]
    ends = [i for i in layers if i + 1 not in layers]
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def _is_cross_attention(module: nn.Module) -> bool:
    return bool(getattr(module, "is_cross_attention", False)) or "CrossAttention" in type(module).__name__


def find_final_norm(model: PreTrainedModel, blocks: nn.ModuleList) -> nn.Module:
    """Return the norm between the last block and the output embedding, or the identity where there is none."""
    # The last norm that stands beside the blocks; an embedding norm, where there is one, stands before them.
    parent = next(m for m in model.base_model.modules() if any(child is blocks for child in m.children()))
    norms = [child for child in parent.children() if "norm" in type(child).__name__.lower()]
    return norms[-1] if norms else nn.Identity()


def effect_of(norm: nn.Module, width: int) -> tuple[Tensor, bool]:
    """Return the factor by which a norm scales each coordinate, (width,), and whether it takes the mean out of its input.

    Both are found by asking it. A vector of alternating ±1 has mean 0 and mean square 1, so layer norm, RMS norm and RMS norm
    with 1 + weight all leave it as it is but for their gain and bias; and with 1 added to it, layer norm alone does the same.
    """
    weight = next(norm.parameters(), torch.empty(0))
    probe = torch.ones(1, 1, width, dtype=weight.dtype, device=weight.device)
    probe[..., 1::2] = -1
    with torch.no_grad():
        plain, turned, shifted = norm(probe), norm(-probe), norm(probe + 1)
    twice = plain - turned
    takes_mean_out = bool((shifted - plain).abs().max() < 0.05 * twice.abs().max())
    return (twice / 2 * probe).float().flatten(), takes_mean_out


def first_position(model: PreTrainedModel) -> int:
    """Return the position id of a text's first token: 0, or what follows the padding's own position (RoBERTa)."""
    for name, module in model.base_model.named_modules():
        if isinstance(module, nn.Embedding) and "position" in name and module.padding_idx is not None:
            return int(module.padding_idx) + 1
    return 0


def context_length_of(config: Any, first: int) -> int | None:
    """Return how many tokens a model reads at most, or None where it says nothing of it."""
    for name in ("max_position_embeddings", "max_seq_len"):
        length = getattr(config, name, None)
        if length is not None:
            return int(length) - first
    return None


def is_encoder(model: PreTrainedModel) -> bool:
    """True where every token sees every other, as in BERT, so that nothing can be generated."""
    causal = [getattr(m, "is_causal", None) for m in model.base_model.modules() if _asks_interface(type(m))]
    masked = type(model.config) in MODEL_FOR_MASKED_LM_MAPPING
    if causal:  # some decoders leave it to the mask
        return not any(causal) and (masked or type(model.config) not in MODEL_FOR_CAUSAL_LM_MAPPING)
    return masked and not getattr(model.config, "is_decoder", False)
