"""Valuations, and the attention that uses them."""

from emoprobe.valattn.attention import val_attention
from emoprobe.valattn.calibration import calibrated_to_deviation, calibrated_to_share
from emoprobe.valattn.compare import Comparison, compare_valuations
from emoprobe.valattn.embeddings import (
    lexicon_annotations,
    lexicon_table,
    lexicon_valuation,
    span_annotations,
)
from emoprobe.valattn.inject import biases, inject
from emoprobe.valattn.learn import learn_valuation, learning_history
from emoprobe.valattn.stream import EmotionStream
from emoprobe.valattn.valuation import Valuation

__all__ = [
    "Comparison",
    "EmotionStream",
    "Valuation",
    "biases",
    "calibrated_to_deviation",
    "calibrated_to_share",
    "compare_valuations",
    "inject",
    "learn_valuation",
    "learning_history",
    "lexicon_annotations",
    "lexicon_table",
    "lexicon_valuation",
    "span_annotations",
    "val_attention",
]
