"""Random models and a tokenizer that are small enough to test with and large enough to go wrong.

Plain functions: `tiny_model(family, seed, dtype)` gives a live model with random weights, `tiny_tokenizer()`
a fast byte-level tokenizer that takes any text. Weights are far larger than at the start of a training, and
gains and biases are not left at 1 and 0: attention is far from uniform, and whatever a test changes shows.
Tests import it as `from tiny import tiny_model`.
"""

from functools import cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from emoprobe.models import LiveModel, wrap

FAMILIES = ("gpt2", "gpt_neox", "llama")
START, END, PAD = "<start>", "<end>", "<pad>"
WIDTH, BLOCKS, HEADS, CONTEXT = 32, 3, 4, 512

_TEXT = (
    "The sun came up and the old man was happy to see it. She was sad that the dog had run away, and they "
    "were afraid of the dark. I am so glad that you came! He felt calm, then angry, then calm again. We were "
    "not sure how she would feel about the letter, but the children were laughing and the music was good."
)


def tiny_tokenizer(start: bool = False) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with some merges; with `start`, a start token precedes each text."""
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained()), bos_token=START, eos_token=END, pad_token=PAD
    )
    if start:
        wrapped.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{START} $A", special_tokens=[(START, wrapped.bos_token_id)]
        )
    return wrapped


@cache
def _trained() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=[START, END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_TEXT], trainer)
    return tokenizer.to_str()


def tiny_model(family: str = "gpt2", seed: int = 0, dtype: torch.dtype = torch.float64) -> LiveModel:
    """Return a random live model: 3 blocks, width 32, 4 heads, context 512.

    `family` is "gpt2" (learned positions), "gpt_neox" (parallel residual, rotary) or "llama" (grouped
    queries, rotary, RMS norm, a start token before each text). Generation never ends before `max_new_tokens`.
    """
    tokenizer = tiny_tokenizer(start=family == "llama")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        underlying = AutoModelForCausalLM.from_config(_config(family, len(tokenizer)))
        with torch.no_grad():
            for parameter in underlying.parameters():
                if parameter.dim() == 1:  # biases and the gains of norms
                    parameter.add_(0.2 * torch.randn_like(parameter))
    return wrap(underlying.to(dtype).eval(), tokenizer, name=f"tiny-{family}-{seed}")


def _config(family: str, vocabulary: int) -> PretrainedConfig:
    shared = dict(vocab_size=vocabulary, initializer_range=0.25, bos_token_id=None, eos_token_id=None)
    if family == "gpt2":
        return GPT2Config(
            n_layer=BLOCKS,
            n_embd=WIDTH,
            n_head=HEADS,
            n_positions=CONTEXT,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **shared,
        )
    sizes = dict(
        num_hidden_layers=BLOCKS,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_attention_heads=HEADS,
        max_position_embeddings=CONTEXT,
    )
    if family == "gpt_neox":
        return GPTNeoXConfig(**sizes, **shared)
    if family == "llama":
        return LlamaConfig(**sizes, num_key_value_heads=HEADS // 2, **shared)
    raise ValueError(f'family="{family}" is not one of {", ".join(FAMILIES)}')
