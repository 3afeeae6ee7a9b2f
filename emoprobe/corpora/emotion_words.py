"""The emotion words of "Emotion Concepts and their Function in a Large Language Model", and what people say of such words.

The 171 words and the ten clusters that k-means made of their vectors in the paper's model (Sofroniew et al. 2026, arXiv
2604.07729, appendix and table 12) lie in `emotion_words.json`. Human ratings of words are brought by the user, whose licence
they come under: Warriner, Kuperman & Brysbaert 2013 (13,915 English lemmas, 1 to 9), the NRC VAD lexicon (0 to 1 or -1 to 1),
or any table. Such lists hold lemmas, and emotion words are participles and phrases; which entry stands for a word is always
said, because "resigned" is not quite what "resign" is.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from emoprobe.corpora import cells
from emoprobe.corpora._checks import bad_cell
from emoprobe.corpora.schema import Corpus
from emoprobe.corpora.tables import read_delimited, read_table
from emoprobe.errors import InputError

NORMS = ("valence", "arousal", "dominance")
FORMS = ("exact", "spelling", "inflection", "related")
"""How an entry stands for a word, from the surest on: itself; with other hyphens and spaces; its lemma; a near relative."""
RELATIVES = {
    "at ease": "ease",
    "contemptuous": "contempt",
    "empathetic": "empathy",
    "exuberant": "exuberance",
    "grief-stricken": "grief",
    "jubilant": "jubilation",
    "remorseful": "remorse",
    "self-confident": "confident",
    "self-critical": "critical",
    "shaken": "shake",
}
"""Words that no inflection leads to a lemma from, and what is close to them. "On edge" is not about an edge: it is left out."""
WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
"""What is looked up of a text: letters, with apostrophes and hyphens within."""
_ENTRY = ("word", "term", "lemma")
_COLUMNS = {name: (name, f"{name[0]}.mean.sum", name[0]) for name in NORMS}


def emotion_words() -> tuple[str, ...]:
    """Return the 171 words, in alphabetical order."""
    return tuple(sorted(word for words in emotion_clusters().values() for word in words))


@cache
def emotion_clusters() -> dict[str, tuple[str, ...]]:
    """Return the ten published clusters and their words, each word in one."""
    text = Path(__file__).with_name("emotion_words.json").read_text(encoding="utf-8")
    return {name: tuple(words) for name, words in json.loads(text)["clusters"].items()}


def load_word_norms(source: str | os.PathLike[str] | pd.DataFrame) -> pd.DataFrame:
    """Return human ratings of words: one row per word (the index, in lower case), columns valence, arousal, dominance.

    `source` is the file of Warriner et al. (`Ratings_Warriner_et_al.csv`), that of the NRC VAD lexicon, or a table with a
    column or index of words and any of the three (also as V, A, D); columns that it lacks are left out. Ratings stay on their
    scale. Entries that differ in case only are averaged. Raises `InputError` for a file that cannot be read, a table without
    words or ratings, and a rating that is no number.
    """
    name, frame = _table(source)
    known = {str(column).strip().lower(): column for column in frame.columns}
    if len(known) < len(frame.columns):
        raise InputError(
            f"{name}: a column is there twice ({', '.join(map(str, frame.columns))}); remove one"
        )
    word = next((known[spelling] for spelling in _ENTRY if spelling in known), None)
    ratings = {
        norm: known[spelling]
        for norm, spellings in _COLUMNS.items()
        for spelling in spellings[::-1]
        if spelling in known
    }
    if word is None or not ratings:
        raise InputError(
            f"{name}: columns {', '.join(map(str, frame.columns))} hold no word norms: give a column word and one or more of "
            f"{', '.join(NORMS)}"
        )
    found = {
        norm: cells.numbers(name, str(column), frame[column].tolist()) for norm, column in ratings.items()
    }
    for norm, values in found.items():
        if any(map(math.isinf, values)):
            raise bad_cell(
                name, [*map(math.isinf, values)].index(True), norm, None, "is infinite", "correct it"
            )
    index = pd.Index([str(entry).strip().lower() for entry in frame[word]], name="word")
    return pd.DataFrame(found, index=index).groupby(level=0, sort=False).mean()


def _table(source: str | os.PathLike[str] | pd.DataFrame) -> tuple[str, pd.DataFrame]:
    if isinstance(source, pd.DataFrame):
        named = any(str(column).strip().lower() in _ENTRY for column in source.columns)
        return "table", source if named else source.rename_axis("word").reset_index()
    path = Path(source)
    if path.suffix.lower() == ".txt":
        return path.name, read_delimited(path, "\t")
    return path.name, read_table(path).frame


def rate(words: Sequence[str], norms: pd.DataFrame, *, forms: Iterable[str] = FORMS[:3]) -> pd.DataFrame:
    """Return the ratings of words, one row for each in order: the columns of `norms`, `entry` and `form`.

    `norms` is what `load_word_norms` returns. Each word gets the entry of the surest of `forms` that there is; NaN, and "" for
    both, where there is none. By default near relatives ("grief" for "grief-stricken") are not asked for. Raises `InputError`
    for a form that is not among FORMS.
    """
    wanted = list(forms)
    unknown = [form for form in wanted if form not in FORMS]
    if unknown:
        raise InputError(f"form {unknown[0]!r} is not understood: give some of {', '.join(FORMS)}")
    rows: list[dict[str, Any]] = []
    for word in words:
        entry, form = next(
            (
                (candidate, form)
                for form, candidate in _candidates(word.strip().lower())
                if form in wanted and candidate in norms.index
            ),
            ("", ""),
        )
        ratings = {norm: norms.at[entry, norm] if entry else float("nan") for norm in map(str, norms.columns)}
        rows.append({**ratings, "entry": entry, "form": form})
    return pd.DataFrame(rows, index=pd.Index(list(words), name="word"))


def rated_words(corpus: Corpus, norms: pd.DataFrame) -> Corpus:
    """Return a corpus's texts with each word that has a rating as a span of these values, and no other annotation.

    `norms` is what `load_word_norms` returns; words are looked up as by `rate`, and ratings keep their scale. Probes of
    tokens can be fitted to the result (`fit_probes(..., level="token")`): what a word means to people wherever it stands.
    """
    kinds = sorted({found.group() for text in corpus.texts for found in WORD.finditer(text)})
    ratings = rate(kinds, norms)[list(norms.columns)].dropna(how="all").to_dict("index")
    spans = [
        [
            {"start": found.start(), "end": found.end(), **ratings[found.group()]}
            for found in WORD.finditer(text)
            if found.group() in ratings
        ]
        for text in corpus.texts
    ]
    columns = {"text": corpus.texts, "spans": spans, "group": corpus.groups.tolist()}
    columns |= {name: corpus.data[name][:] for name in ("source", "split")}
    ranges = {str(name): (float(norms[name].min()), float(norms[name].max())) for name in norms}
    return Corpus.from_columns(columns, name=corpus.name, dimensions=ranges)


def _candidates(word: str) -> Iterator[tuple[str, str]]:
    """Yield (form, entry) that may stand for a word, the surest first."""
    yield "exact", word
    for spelling in (word.replace("-", " "), word.replace(" ", "-"), word.replace("-", "").replace(" ", "")):
        yield "spelling", spelling
    if " " not in word and "-" not in word:
        for lemma in _lemmas(word):
            yield "inflection", lemma
    if word in RELATIVES:
        yield "related", RELATIVES[word]


def _lemmas(word: str) -> Iterator[str]:
    """Yield what a regular participle or plural may be a form of."""
    for ending in ("ed", "ing"):
        stem = word.removesuffix(ending)
        if stem == word or len(stem) < 3:
            continue
        yield stem + "e"
        yield stem
        if stem[-1] == stem[-2]:
            yield stem[:-1]  # trapped
        if stem.endswith("i"):
            yield stem[:-1] + "y"  # horrified
        if stem.endswith("ck"):
            yield stem[:-1]  # panicked
    if word.endswith("s") and len(word) > 3:
        yield word[:-1]
