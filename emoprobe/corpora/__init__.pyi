from .loaders import load_corpus as load_corpus
from .schema import Corpus as Corpus
from .words import annotated_sentence as annotated_sentence
from .words import token_targets as token_targets
