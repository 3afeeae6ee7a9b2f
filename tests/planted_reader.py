"""A model whose streams are known: embeddings with planted directions, and one block that spreads them over what follows.

Layer 0 is the embedding of a word, layer 1 that plus the mean of all (normalised) embeddings so far, and the further layers add
nothing. So whatever the words of a text carry can be read at every later place, and nothing else can.
"""

import re
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedTokenizerFast

from emoprobe.models import LiveModel, wrap

WIDTH, BLOCKS = 48, 3


def word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer of one token for each word or run of punctuation of these texts."""
    words = sorted(
        {word for text in [*texts, "Human: Assistant:"] for word in re.findall(r"\w+|[^\w\s]+", text)}
    )
    vocabulary = {word: place for place, word in enumerate(["<unk>", "<pad>", "<end>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="<end>"
    )


def directions(count: int, seed: int = 0) -> np.ndarray:
    """Return orthonormal rows (count, WIDTH), each with the mean 0 that a norm leaves alone."""
    noise = np.random.default_rng(seed).normal(size=(WIDTH, count))
    return np.linalg.qr(noise - noise.mean(0))[0].T


def reader(
    texts: Iterable[str],
    planted: Mapping[str, np.ndarray],
    *,
    strength: float = 2.0,
    spread: float = 1.0,
    seed: int = 0,
) -> LiveModel:
    """Return the model for the words of `texts`; those in `planted` carry a direction `strength` times their own length.

    `spread` is how much of the mean embedding so far is added at every token.
    """
    tokenizer = word_tokenizer(texts)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_layer=BLOCKS,
        n_embd=WIDTH,
        n_head=2,
        n_positions=256,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    underlying = AutoModelForCausalLM.from_config(config).double().eval()
    noise = np.random.default_rng(seed).normal(size=(len(tokenizer), WIDTH))
    embedding = noise / np.linalg.norm(noise, axis=1, keepdims=True)
    for word, direction in planted.items():
        (token,) = tokenizer(word)["input_ids"]
        assert token != tokenizer.unk_token_id, word
        embedding[token] += strength * direction
    with torch.no_grad():
        for name, parameter in underlying.named_parameters():
            if "ln_" not in name:
                parameter.zero_()
        underlying.transformer.wte.weight.copy_(torch.from_numpy(embedding))
        first = underlying.transformer.h[0].attn
        first.c_attn.weight[:, 2 * WIDTH :] = spread * torch.eye(WIDTH)
        first.c_proj.weight.copy_(torch.eye(WIDTH))
    return wrap(underlying, tokenizer, name="reader")
