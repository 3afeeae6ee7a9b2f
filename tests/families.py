"""Random models of the families that people probe, each with what its own code calls its parts.

Where blocks, attention and final norm lie is written down here by hand, so that what emoprobe finds by structure can be
held against it. Sizes are those of `tiny`: 3 blocks, width 32, 4 heads; windows are short enough to matter.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from tiny import BLOCKS, CONTEXT, HEADS, WIDTH, tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from emoprobe.models import LiveModel, wrap


@dataclass(frozen=True)
class Family:
    """One architecture: its model type, the paths of its parts, and what its configuration needs besides the sizes."""

    kind: str
    blocks: str = "model.layers"
    attention: str = "self_attn"
    norm: str = "model.norm"
    options: dict[str, Any] = field(default_factory=dict)
    sizes: bool = True  # whether the configuration goes by the usual names
    encoder: bool = False
    eager: bool = False
    coarse: bool = (
        False  # the untouched random model itself rounds by more than the tolerance in half precision
    )
    auto: type = AutoModelForCausalLM


GROUPED = {"num_key_value_heads": HEADS // 2}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
_ENCODER = dict(encoder=True, norm="", auto=AutoModelForMaskedLM)
_BERT = dict(attention="attention.self", **_ENCODER)

FAMILIES: dict[str, Family] = {
    "GPT-2": Family("gpt2", "transformer.h", "attn", "transformer.ln_f", {"n_positions": CONTEXT}),
    "GPT-Neo": Family(
        "gpt_neo", "transformer.h", "attn.attention", "transformer.ln_f",
        {"attention_types": [[["global", "local", "global"], 1]], "window_size": 4, "num_layers": BLOCKS, "num_heads": HEADS},
    ),
    "GPT-J": Family("gptj", "transformer.h", "attn", "transformer.ln_f", {"n_positions": CONTEXT, "rotary_dim": 4}),
    "GPT-NeoX (Pythia)": Family("gpt_neox", "gpt_neox.layers", "attention", "gpt_neox.final_layer_norm"),
    "CodeGen": Family("codegen", "transformer.h", "attn", "transformer.ln_f", {"n_positions": CONTEXT, "rotary_dim": 4}),
    "OPT": Family(
        "opt", "model.decoder.layers", norm="model.decoder.final_layer_norm",
        options={"ffn_dim": 64, "word_embed_proj_dim": WIDTH, "pad_token_id": 2},
    ),
    "BLOOM": Family("bloom", "transformer.h", "self_attention", "transformer.ln_f", {"n_layer": BLOCKS, "n_head": HEADS}),
    "MPT": Family(
        "mpt", "transformer.blocks", "attn", "transformer.norm_f",
        {"d_model": WIDTH, "n_heads": HEADS, "n_layers": BLOCKS, "max_seq_len": CONTEXT, "expansion_ratio": 2}, sizes=False,
    ),
    "Falcon": Family(
        "falcon", "transformer.h", "self_attention", "transformer.ln_f",
        {"new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "Falcon (ALiBi)": Family(
        "falcon", "transformer.h", "self_attention", "transformer.ln_f",
        {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}, eager=True,
    ),
    "Llama": Family("llama", options=GROUPED),
    "Mistral": Family("mistral", options={**GROUPED, "sliding_window": 6}),
    "Mixtral": Family("mixtral", options={**GROUPED, "num_local_experts": 2, "num_experts_per_tok": 2}),
    "Qwen2": Family("qwen2", options={**GROUPED, "use_sliding_window": True, "sliding_window": 6, "layer_types": MIXED}),
    "Qwen3": Family("qwen3", options={**GROUPED, "head_dim": 16}),
    "Gemma": Family("gemma", options={**GROUPED, "head_dim": 16}),
    "Gemma 2": Family(
        "gemma2",
        options={
            **GROUPED, "head_dim": 16, "sliding_window": 6, "layer_types": MIXED, "query_pre_attn_scalar": 16,
            "attn_logit_softcapping": 2.0,
        }, eager=True,
    ),
    "Gemma 3 (text)": Family(
        "gemma3_text",
        options={**GROUPED, "head_dim": 16, "sliding_window": 6, "layer_types": MIXED, "query_pre_attn_scalar": 24},
    ),
    "Phi": Family("phi", norm="model.final_layernorm"),
    "Phi-3": Family("phi3", options={**GROUPED, "sliding_window": 6}),
    "StableLM": Family("stablelm", options=GROUPED),
    "OLMo 2": Family("olmo2", options=GROUPED),
    "Cohere": Family("cohere", options=GROUPED),
    "gpt-oss": Family(
        "gpt_oss",
        options={**GROUPED, "head_dim": 16, "sliding_window": 6, "layer_types": MIXED, "num_local_experts": 2,
                 "num_experts_per_tok": 2},
    ),
    "SmolLM3": Family("smollm3", options={**GROUPED, "no_rope_layer_interval": 2}),
    "Granite": Family("granite", options={**GROUPED, "attention_multiplier": 0.5, "residual_multiplier": 0.7}),
    "StarCoder2": Family("starcoder2", options=GROUPED),
    "DeepSeek-V3": Family(
        "deepseek_v3",
        options={
            "num_key_value_heads": HEADS, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8, "v_head_dim": 12, "first_k_dense_replace": BLOCKS,
        },
    ),
    "DeepSeek-V2": Family(
        "deepseek_v2",
        options={
            "num_key_value_heads": HEADS, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8, "v_head_dim": 12, "first_k_dense_replace": BLOCKS,
        },
    ),
    "StarCoder (GPT-BigCode)": Family(
        "gpt_bigcode", "transformer.h", "attn", "transformer.ln_f",
        {"n_positions": CONTEXT, "n_layer": BLOCKS, "n_head": HEADS},
    ),
    "OLMo 3": Family("olmo3", options={**GROUPED, "sliding_window": 6, "layer_types": MIXED}),
    "OLMoE": Family("olmoe", options={**GROUPED, "num_experts": 2, "num_experts_per_tok": 2}),
    "Llama 4 (text)": Family(
        "llama4_text",
        options={**GROUPED, "head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 2, "intermediate_size_mlp": 64,
                 "attention_chunk_size": 6},
    ),
    "Gemma 4 (text)": Family(
        "gemma4_text",
        options={
            **GROUPED, "head_dim": 16, "sliding_window": 6, "layer_types": ["sliding_attention", "sliding_attention",
            "full_attention"], "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0,
        },
        coarse=True,  # queries and keys are normalised, and their products not scaled
    ),
    "Qwen3-MoE": Family(
        "qwen3_moe",
        options={**GROUPED, "head_dim": 8, "num_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    ),
    "Phi-3.5-MoE": Family("phimoe", options={**GROUPED, "num_local_experts": 2, "num_experts_per_tok": 2}),
    "Cohere 2": Family("cohere2", options={**GROUPED, "sliding_window": 6, "layer_types": MIXED}),
    "GLM-4": Family("glm4", options={**GROUPED, "head_dim": 8}),
    "EXAONE 4": Family("exaone4", options={**GROUPED, "sliding_window": 6, "layer_types": MIXED}),
    "ERNIE 4.5": Family("ernie4_5", options={**GROUPED, "head_dim": 8}),
    "Nemotron": Family("nemotron", options={**GROUPED, "head_dim": 8}),
    "Apertus": Family("apertus", options=GROUPED),
    "LFM2": Family(
        "lfm2", attention="self_attn", norm="model.embedding_norm",
        options={**GROUPED, "layer_types": ["full_attention"] * BLOCKS},
    ),
    "DiffLlama": Family("diffllama", options=GROUPED),
    "JetMoE": Family(
        "jetmoe", attention="self_attention",
        options={"num_key_value_heads": 2, "kv_channels": 8, "num_local_experts": 2, "num_experts_per_tok": 2},
    ),
    "BERT": Family("bert", "bert.encoder.layer", **_BERT),
    "RoBERTa": Family("roberta", "roberta.encoder.layer", options={"pad_token_id": 2}, **_BERT),
    "ELECTRA": Family("electra", "electra.encoder.layer", options={"embedding_size": WIDTH}, **_BERT),
    "MPNet": Family("mpnet", "mpnet.encoder.layer", "attention", **_ENCODER),
    "ModernBERT": Family(
        "modernbert", attention="attn", options={"cls_token_id": 0, "sep_token_id": 1},
        **{**_ENCODER, "norm": "model.final_norm"},
    ),
    "DistilBERT": Family(
        "distilbert", "distilbert.transformer.layer", "attention",
        options={"dim": WIDTH, "n_heads": HEADS, "n_layers": BLOCKS, "hidden_dim": 64, "max_position_embeddings": CONTEXT},
        sizes=False, **_ENCODER,
    ),
}  # fmt: skip

REFUSED: dict[str, Family] = {
    "Mamba": Family("mamba", "backbone.layers", norm="backbone.norm_f", sizes=False,
                    options={"hidden_size": WIDTH, "num_hidden_layers": BLOCKS, "state_size": 4}),
    "Qwen3-Next": Family(
        "qwen3_next",
        options={
            **GROUPED, "head_dim": 16, "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
            "num_experts": 0,
        },
    ),
    "Gemma 3n (text)": Family(
        "gemma3n_text",
        options={
            **GROUPED, "head_dim": 8, "layer_types": MIXED, "sliding_window": 6, "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 512, "laurel_rank": 4,
        },
    ),
    "T5": Family("t5", options={"d_model": WIDTH, "num_layers": BLOCKS, "num_heads": HEADS, "d_kv": 8, "d_ff": 64},
                 sizes=False, auto=AutoModelForSeq2SeqLM),
}  # fmt: skip


def family_model(
    name: str, seed: int = 0, dtype: torch.dtype = torch.float32, scale: float = 0.25
) -> LiveModel:
    """Return a live model of a family with random weights of standard deviation `scale`, and uneven gains and biases."""
    family, tokenizer = (FAMILIES | REFUSED)[name], tiny_tokenizer()
    usual = dict(
        num_hidden_layers=BLOCKS, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_attention_heads=HEADS,
        max_position_embeddings=CONTEXT,
    )  # fmt: skip
    shared = dict(vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=None, initializer_range=scale)
    options = {
        **shared,
        "pad_token_id": tokenizer.pad_token_id,
        **(usual if family.sizes else {}),
        **family.options,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = AutoConfig.for_model(family.kind, **options)
        if family.eager:
            config._attn_implementation = "eager"
        underlying = family.auto.from_config(config)
        with torch.no_grad():
            for parameter in underlying.parameters():
                if parameter.dim() == 1:  # biases, the gains of norms, and sinks
                    parameter.add_(0.2 * torch.randn_like(parameter))
    return wrap(underlying.to(dtype).eval(), tokenizer, name=name)
