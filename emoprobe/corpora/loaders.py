"""From anything that holds labelled texts to a `Corpus`: find it, read it, say which column is which.

Knows where sources may be and how their columns map to the schema; `tables` reads files, `published` knows
the published corpora, `cells` the ways of writing annotations down, and `schema` what a corpus is.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Container, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import datasets
import pandas as pd

from emoprobe.corpora import cells
from emoprobe.corpora._checks import FIXED, check_ranges_known
from emoprobe.corpora.published import PUBLISHED, Published, fetched, first_line
from emoprobe.corpora.schema import SPLITS, Corpus
from emoprobe.corpora.tables import Table, from_dataset, read_table
from emoprobe.corpora.words import RANGES, VALUATION
from emoprobe.errors import InputError
from emoprobe.places import LIKE, SUFFIXES, canonical, check_corpus, hub

GROUND_TRUTH = "ground_truth"
GROUND_TRUTH_TEXTS = 2000
PASSAGES = Path(__file__).parent / "passages"
SCHEMA = (*FIXED, "words")
"""What a column may be besides a dimension."""
Columns = Mapping[str, str | Sequence[str] | None]
Ranges = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Source:
    """Hold a table under its name, with what is known of its columns before the user says anything."""

    name: str
    table: Table
    columns: Columns = field(default_factory=dict)
    ranges: Ranges = field(default_factory=dict)


def load_corpus(
    source: str | os.PathLike[str] | pd.DataFrame | datasets.Dataset | datasets.DatasetDict,
    *,
    folder: str | os.PathLike[str] | None = None,
    split: str | None = None,
    columns: Columns | None = None,
    ranges: Ranges | None = None,
    limit: int | None = None,
    seed: int = 0,
    name: str | None = None,
) -> Corpus:
    """Load labelled texts, wherever they are, in one schema.

    `source` is "emobank", "goemotions", "carer", "isear", "crowd_envent", "passages" (624 short texts written
    for this package: 13 emotions × 12 topics × 4 forms; also "bundled") or "ground-truth" (generated); a CSV,
    TSV, JSON, JSON lines or Parquet file; a table in memory; or a data set of the hub. A published corpus is
    read from `folder` if given, from a sub-folder of the environment variable EMOPROBE_DATA that has it, or
    else downloaded.

    `columns` says which column of the source is which of the schema: {"text": "sentence", "labels":
    "emotion", "valence": "V", "group": "document"}; any other key is the name of a dimension, None leaves a
    column out, and labels may also be a list of columns of 0 and 1. Columns that bear the schema's names need
    no mention. Instead of text, `words` may hold [word, valence, arousal, relevance] lists. `ranges` declares
    dimensions: {"valence": (1, 9)}; by default valence lies in [-1, 1], and arousal, relevance and dominance
    in [0, 1].

    `split` keeps one split, `limit` a random sample of at most that many texts ("ground-truth": how many to
    generate), drawn with `seed`. Raises InputError, in one line, for everything that can be wrong with a
    source or its contents.
    """
    opened = _open(source, folder, split, limit, seed)
    corpus = _tidy(opened, columns or {}, ranges or {}, name or opened.name)
    if split is not None:
        corpus = corpus.select(split)
    return corpus if limit is None else corpus.sample(limit, seed)


def _open(source: object, folder: object, split: str | None, limit: int | None, seed: int) -> Source:
    """Find out what a source is, and read it."""
    if isinstance(source, pd.DataFrame):
        return Source("table", Table(source))
    if isinstance(source, datasets.Dataset | datasets.DatasetDict):
        return Source("dataset", from_dataset(source))
    if not isinstance(source, str | os.PathLike):
        raise InputError(
            f"a {type(source).__name__} is no corpus; give a name, a path, a DataFrame or a datasets.Dataset"
        )
    path, known = Path(source), canonical(os.fspath(source))
    if folder is not None and known not in PUBLISHED:
        raise InputError(f"{source}: folder= is for published corpora ({', '.join(PUBLISHED)}); leave it out")
    if known == PASSAGES.name:
        return _passages()
    if known == GROUND_TRUTH:
        return _ground_truth(GROUND_TRUTH_TEXTS if limit is None else limit, seed)
    if folder is None and path.is_dir() and (found := _recognised(path)):
        return _published(found, path)
    if known in PUBLISHED:
        return _published(known, _folder_of(known, folder))
    if path.is_file() or path.suffix.lower() in SUFFIXES:
        return Source(path.name, read_table(path))
    if path.is_dir():
        raise InputError(f"{path}: holds none of {', '.join(PUBLISHED)}; give a file of the folder instead")
    check_corpus(source)
    return _hub(os.fspath(source), split)


def _recognised(folder: Path) -> str | None:
    """Say which published corpus a folder holds; its name decides where the files would fit several."""
    fitting = [name for name, corpus in PUBLISHED.items() if corpus.is_in(folder)]
    named = canonical(folder.name)
    return named if named in fitting else next(iter(fitting), None)


def _folder_of(known: str, folder: object) -> Path | None:
    """Return the folder that holds a published corpus: the one given, one in EMOPROBE_DATA, or None."""
    if folder is not None:
        given = Path(str(folder))
        for candidate in (given, *_subfolders(given, known)):
            if PUBLISHED[known].is_in(candidate):
                return candidate
        wanted = " or ".join(" and ".join(files) for files in PUBLISHED[known].marks)
        raise InputError(f"{known}: {given} does not hold {wanted}; give the folder that does")
    data = os.environ.get("EMOPROBE_DATA")
    return next(iter(_subfolders(Path(data), known)), None) if data else None


def _subfolders(folder: Path, known: str) -> list[Path]:
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    return [f for f in inside if f.is_dir() and canonical(f.name) == known and PUBLISHED[known].is_in(f)]


def _published(known: str, folder: Path | None) -> Source:
    corpus: Published = PUBLISHED[known]
    found = fetched(known, corpus) if folder is None else folder
    try:
        table = corpus.read(found) if isinstance(found, Path) else found
    except InputError:
        raise
    except (LookupError, ValueError) as error:  # a column that is not there, a class number that is none
        raise InputError(
            f"{known}: the files in {found} are not as published ({error!r}); get them again, or load one by its path"
        ) from error
    return Source(known, table, corpus.columns, corpus.ranges)


def _hub(name: str, split: str | None) -> Source:
    """Load from the hub, only the split that is asked for."""
    try:
        with hub():
            data = datasets.load_dataset(name) if split is None else datasets.load_dataset(name, split=split)
    except Exception as error:  # whatever the hub's clients raise; their classes change with their versions
        raise InputError(
            f"{name}: is no file here, none of {', '.join((*PUBLISHED, 'passages', 'ground-truth'))}, and could not be loaded "
            f"from the hub ({first_line(error)}); check the name or the path"
        ) from error
    table = from_dataset(data)
    return Source(name, table if split is None else Table(table.frame.assign(split=split), table.classes))


def _ground_truth(n: int, seed: int) -> Source:
    """Generate texts; the sentences about the one who feels carry the values of the feeling."""
    from emoprobe.corpora.generator import generate

    if n < 1:
        raise InputError(f"ground-truth: limit={n}; ask for at least one text")
    texts = generate(n, seed, forms=("first", "third"))  # a pair has two emotions, and a text one label
    frame = pd.DataFrame(
        {c: [getattr(text, c) for text in texts] for c in ("text", "emotion", "world", "form")}
    )
    dimensions = (*VALUATION, "intensity")
    for dimension in dimensions:
        frame[dimension] = [getattr(text, dimension) for text in texts]
    values = frame[list(VALUATION)].to_dict("records")
    frame["spans"] = pd.Series(
        [[{"start": a, "end": b, **v} for a, b in text.spans] for text, v in zip(texts, values, strict=True)]
    )
    columns = {"text": "text", "labels": "emotion", "group": "world", "source": "form", "spans": "spans"}
    return Source(
        "ground-truth", Table(frame), columns | {d: d for d in dimensions}, {"intensity": (0.0, 1.0)}
    )


def _passages() -> Source:
    """Read the passages, one file per topic; each was written and rated singly, by one writer."""
    frame = pd.concat(
        [read_table(path).frame for path in sorted(PASSAGES.glob("*.jsonl"))], ignore_index=True
    )
    columns = {"text": "text", "labels": "label", "group": "topic", "source": "form"}
    return Source(PASSAGES.name, Table(frame), columns | {dimension: dimension for dimension in VALUATION})


def _tidy(source: Source, columns: Columns, ranges: Ranges, name: str) -> Corpus:
    """Read the columns of a table as the schema's."""
    frame = source.table.frame
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise InputError(f"{name}: column {twice[0]!r} is there twice; rename or remove one")
    mapping = _mapping(source, columns, ranges, name)
    known = {**RANGES, **source.ranges, **ranges}
    declared = [target for target in mapping if target not in SCHEMA]
    check_ranges_known(name, declared, known)
    made: dict[str, list[Any]] = {}
    for target, column in mapping.items():
        made |= _column(name, target, column, frame)
    dimensions = list(dict.fromkeys([*declared, *_annotated(made, mapping)]))
    check_ranges_known(name, dimensions, known)
    for dimension in ranges:
        if dimension not in dimensions:
            raise InputError(
                f"{name}: {dimension!r} has a range but is no dimension ({_there_are(dimensions)}); "
                f"say which column it is, columns={{{dimension!r}: ...}}"
            )
    labels = mapping.get("labels")
    vocabulary = labels if isinstance(labels, list | tuple) else source.table.classes.get(str(labels))
    corpus = Corpus.from_columns(
        made, name=name, labels=vocabulary, dimensions={d: known[d] for d in dimensions}
    )
    _tell_of_joined_groups(corpus, made.get("group", []))
    return corpus


def _tell_of_joined_groups(corpus: Corpus, given: Sequence[str | None]) -> None:
    """Warn where fewer groups are left than were given, because texts stand in several."""
    pairs = {
        (before, after) for before, after in zip(given, corpus.groups, strict=False) if before is not None
    }
    before, after = (len({pair[side] for pair in pairs}) for side in (0, 1))
    if after < before:
        warnings.warn(
            f"{corpus.name}: some texts stand in several groups, which are therefore taken as one ({before:,} groups become "
            f"{after:,}), so that no text is both fitted on and tested on",
            stacklevel=4,
        )


def _mapping(source: Source, columns: Columns, ranges: Ranges, name: str) -> dict[str, str | Sequence[str]]:
    """Settle which columns are read as what: as the user says, or else as is known or evident."""
    frame = source.table.frame
    evident = {target: target for target in (*SCHEMA, *RANGES, *ranges) if target in frame.columns}
    if "label" in frame.columns:  # as the hub's data sets mostly have it
        evident.setdefault("labels", "label")
    wanted = {**(source.columns or evident), **columns}
    mapping = {target: column for target, column in wanted.items() if column is not None}
    for target, column in mapping.items():
        for one in column if target == "labels" and isinstance(column, list | tuple) else (column,):
            if not isinstance(one, Hashable) or one not in frame.columns:
                raise InputError(
                    f"{name}: no column {one!r} to read as {target!r}; {_there_are(frame.columns)}"
                )
    _check_spelt(name, columns, {*SCHEMA, *RANGES, *source.ranges, *ranges}, frame)
    if "words" in mapping and ("text" in mapping or "spans" in mapping):
        raise InputError(
            f"{name}: 'words' make the text and its spans, which are there as well; "
            "leave one out, as in columns={'words': None}"
        )
    if not {"text", "words"} & mapping.keys():
        raise InputError(
            f"{name}: say which column holds the texts, columns={{'text': ...}}; {_there_are(frame.columns)}"
        )
    return mapping


def _check_spelt(name: str, targets: Iterable[str], known: Container[str], frame: pd.DataFrame) -> None:
    """Refuse what would be a dimension nobody knows, and is nearly one of the schema's names."""
    for target in targets:
        meant = get_close_matches(target, SCHEMA, n=1, cutoff=LIKE)
        if meant and target not in known:
            raise InputError(
                f"{name}: nothing is called {target!r} here ({', '.join(SCHEMA)}, or a dimension with a range): did you "
                f"mean columns={{{meant[0]!r}: ...}}? Of columns {_there_are(frame.columns)}"
            )


def _column(name: str, target: str, column: Any, frame: pd.DataFrame) -> dict[str, list[Any]]:
    """Read one column, or the columns of several labels, as the schema's column `target`."""
    if isinstance(column, list | tuple):
        return {target: cells.one_hot(name, column, frame)}
    found = frame[column].tolist()
    if target == "text":
        return {target: [None if cells.is_missing(cell) else cell for cell in found]}
    if target == "words":
        return dict(zip(("text", "spans"), cells.words(name, column, found), strict=True))
    if target == "labels":
        return {target: cells.labels(name, column, found)}
    if target == "spans":
        return {target: cells.spans(name, column, found)}
    if target == "split":
        return {target: [SPLITS.get(str(cell), cell) for cell in cells.strings(found)]}
    if target in FIXED:
        return {target: cells.strings(found)}
    return {target: cells.numbers(name, column, found)}


def _annotated(made: Mapping[str, list[Any]], mapping: Mapping[str, object]) -> list[str]:
    """List the dimensions that spans have values for; other things that they may carry (the word) are
    left."""
    if "words" in mapping:
        return list(VALUATION)
    keys = dict.fromkeys(
        key
        for spans in made.get("spans", [])
        for span in spans
        for key in span
        if isinstance(span[key], float | int)
    )
    return [key for key in keys if key not in ("start", "end")]


def _there_are(names: Iterable[object]) -> str:
    return f"there are: {', '.join(map(str, names)) or 'none'}"
