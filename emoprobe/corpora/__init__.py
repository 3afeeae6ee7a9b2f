"""Labelled texts in one schema, wherever they come from: published corpora, the user's tables, generated
texts."""

from emoprobe.corpora.loaders import load_corpus
from emoprobe.corpora.schema import Corpus
from emoprobe.corpora.words import annotated_sentence, token_targets

__all__ = ["Corpus", "annotated_sentence", "load_corpus", "token_targets"]
