"""Valuations, and the attention that uses them."""

from emoprobe.valattn.attention import val_attention
from emoprobe.valattn.inject import biases, inject
from emoprobe.valattn.valuation import Valuation

__all__ = ["Valuation", "biases", "inject", "val_attention"]
