"""Having texts written, and keeping those that are fit to be used.

What a writer replies goes into a log, line by line, as it comes; the corpus is made from the log, and can be made anew from it
at any time. So a run that was broken off goes on where it was, and nothing that was paid for is lost.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from emoprobe.artefacts import only_writer, versions, write_bytes
from emoprobe.checks import check_record
from emoprobe.corpora.loaders import load_corpus
from emoprobe.corpora.schema import Corpus
from emoprobe.corpora.stories import prompts as asked
from emoprobe.corpora.stories import turns as read
from emoprobe.corpora.stories.diversity import Duplicates, diversity
from emoprobe.corpora.stories.leaks import leaks, names_any
from emoprobe.corpora.stories.prompts import Request, requests, topics
from emoprobe.corpora.stories.writers import Writer
from emoprobe.errors import InputError
from emoprobe.files import parse_json
from emoprobe.progress import track

KEPT = "kept"
SHORTEST = {asked.STORIES: 30, asked.NEUTRAL: 20, asked.DIALOGUES: 20, asked.DEFLECTION: 20}
"""Words below which a text is no text."""
FEWEST_TURNS = 2
ENTRY = {**dict.fromkeys(("key", "kind", "topic", "writer", "reply"), str), "emotions": [str], "seed": int}


@dataclass(frozen=True, eq=False, repr=False)
class Written:
    """Texts that were written: all of them with what became of each, and the corpus of those that were kept.

    `frame` has one row per text: text, kind, emotions, topic, status ("kept", or why it was not), found (words that give it
    away), scenario and turns (of dialogues; [speaker, words, emotion] each), writer, request.
    """

    path: Path
    frame: pd.DataFrame

    @property
    def kept(self) -> pd.DataFrame:
        """The texts that are fit to be used."""
        return self.frame[self.frame.status == KEPT]

    @property
    def corpus(self) -> Corpus:
        """The texts that were kept: what stories and hidden emotions are labelled with is what is felt; topics are groups.

        Raises `InputError` where none was kept.
        """
        if self.kept.empty:
            raise InputError(f"{self.path}: no text was kept; see .frame for why")
        return load_corpus(self.path)

    def report(self) -> pd.DataFrame:
        """Return one row per emotion (pair): what became of its texts, and how different the kept ones are."""
        rows = []
        for emotions, part in self.frame.groupby("emotions", sort=False):
            counts = part.status.value_counts().to_dict()
            kept = part.text[part.status == KEPT].tolist()
            rows.append(
                {"emotions": emotions, "written": len(part), **counts, **diversity(kept).drop("texts")}
            )
        return pd.DataFrame(rows).fillna({name: 0 for name in set(self.frame.status)})

    def __repr__(self) -> str:
        return f"<Written: {len(self.kept)} of {len(self.frame)} texts kept, in {self.path}>"


def write_stories(
    writer: Writer,
    out: str | Path,
    *,
    kind: str = asked.STORIES,
    emotions: Sequence[str] = (),
    about: Sequence[str] | None = None,
    per_topic: int = 2,
    per_request: int = 1,
    batch_size: int = 8,
    seed: int = 0,
    progress: bool = True,
) -> Written:
    """Let `writer` write `per_topic` texts on each topic for each emotion, and keep those that are clean, in a JSON lines file.

    `kind` is "stories" (one emotion each), "neutral" (dialogues without any), "dialogues" (of two speakers, for each ordered
    pair of different emotions) or "deflection" (the first emotion is felt, the second shown). `about` are topics (default: the
    package's own 80). `per_request` texts are asked for at once. Beside `out` (.jsonl) lies the log, `out` with .log before its
    ending: with the same arguments a run goes on from it, whatever stopped it. `load_corpus(out)` reads the result.

    A text is left out that is too short, has too few turns, names its emotion by the word, a form or a synonym, or repeats an
    earlier one. Raises `InputError` for arguments that `requests` refuses, a log of another writer or seed or that another
    process is writing to, and a file that cannot be written.
    """
    out = Path(out)
    if out.suffix != ".jsonl":
        raise InputError(f"{out}: give a file that ends in .jsonl")
    wanted = requests(
        kind, tuple(emotions), tuple(topics() if about is None else about), per_topic, per_request
    )
    log = out.with_suffix(".log.jsonl")
    with only_writer(log):
        done = {row["key"] for row in _resumed(log, writer.name, seed)}
        missing = iter([request for request in wanted if request.key not in done])
        batches = list(iter(lambda: list(islice(missing, batch_size)), []))
        try:
            for batch in track(batches, f"{writer.name} writes", wanted=progress):
                _append(log, writer, batch, seed)
        finally:  # what was written so far is made use of, whatever stopped it
            written = Written(out, clean(_entries(log), {request.key for request in wanted}))
            _save(written)
    return written


def _append(log: Path, writer: Writer, batch: Sequence[Request], seed: int) -> None:
    # A batch's seed follows from what is asked, so that it is the same wherever a run was taken up again.
    digest = hashlib.sha256("\n".join([str(seed), *(request.key for request in batch)]).encode()).digest()
    replies = writer(batch, int.from_bytes(digest[:4], "big") % 2**31)
    lines = [
        {
            "key": request.key,
            "kind": request.kind,
            "topic": request.topic,
            "emotions": list(request.emotions),
            "texts": request.texts,
            "writer": writer.name,
            "seed": seed,
            "batch": digest.hex()[:16],
            "of": len(batch),
            "versions": versions(),
            "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "reply": reply,
        }
        for request, reply in zip(batch, replies, strict=True)
    ]
    try:
        with log.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    except OSError as error:
        raise InputError(f"{log}: cannot be written ({error.strerror}): give another file") from error


def _resumed(log: Path, writer: str, seed: int) -> list[Mapping[str, Any]]:
    """Return what a log holds, cut off after its last whole batch; refuse one that somebody else wrote.

    A batch is written with one seed, so that what was broken off in its midst is written again as a whole.
    """
    found = list(_entries(log))
    last = [row for row in found if _batch(row) == _batch(found[-1])]
    if last and len(last) < last[-1].get("of", 1):
        found = found[: -len(last)]
    others = {(row["writer"], row["seed"]) for row in found} - {(writer, seed)}
    if others:
        who, other = others.pop()
        raise InputError(
            f"{log} was written by {who} with seed {other}, not by {writer} with seed {seed}: give another file"
        )
    if log.exists():
        whole = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found).encode()
        if whole != log.read_bytes():
            write_bytes(log, whole)
    return found


def _batch(row: Mapping[str, Any]) -> str:
    return str(row.get("batch", row["key"]))


def _entries(log: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the entries of a log; a last line that was not written to its end is passed over."""
    if not log.exists():
        return
    lines = log.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line.decode())
        except ValueError as error:
            if number == len(lines):
                return
            raise InputError(f"{log}, line {number}: not JSON ({error}); repair it or take it out") from error
        try:
            check_record(row, ENTRY)
            if row["kind"] not in SHORTEST:
                raise InputError(f"there is no kind {row['kind'][:60]!r}")
        except InputError as error:
            raise InputError(
                f"{log}, line {number}: no entry of a story log ({error}); take it out"
            ) from error
        yield row


def clean(entries: Iterable[Mapping[str, Any]], keys: set[str] | None = None) -> pd.DataFrame:
    """Read replies and say of each text whether it is kept: the frame of `Written`. `keys` are the requests wanted (all)."""
    rows, duplicates = [], Duplicates()
    for entry in entries:
        if keys is not None and entry["key"] not in keys:
            continue
        for text in read.texts(entry["reply"]) or [""]:
            row = _read(entry, text)
            if row["status"] == KEPT and duplicates.of(row["text"]) is not None:
                row["status"] = "duplicate"
            rows.append(row)
    columns = [
        "text",
        "kind",
        "emotions",
        "topic",
        "status",
        "found",
        "scenario",
        "turns",
        "writer",
        "request",
    ]
    return pd.DataFrame(rows, columns=columns)


def _read(entry: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Return the row of one text, not yet compared with others."""
    kind, emotions = entry["kind"], list(entry["emotions"])
    said: list[list[str]] = []
    before = ""
    if kind != asked.STORIES:
        speakers = asked.ASKING if kind == asked.NEUTRAL else asked.PERSONS
        before = read.scenario(text) if kind == asked.DEFLECTION else ""
        felt = {
            asked.NEUTRAL: ("", ""),
            asked.DIALOGUES: emotions,
            asked.DEFLECTION: (emotions[:1] or [""]) * 2,
        }[kind]
        of = dict(zip(speakers, felt, strict=True))
        said = [[turn.speaker, turn.words, of[turn.speaker]] for turn in read.turns(text, speakers)]
        text = "\n\n".join(f"{speaker}: {words}" for speaker, words, _ in said)
    found = names_any(text) if kind == asked.NEUTRAL else [word for e in emotions for word in leaks(text, e)]
    status = KEPT
    if kind != asked.STORIES and len(said) < FEWEST_TURNS:
        status = "too few turns"
    elif kind == asked.DEFLECTION and not before:
        status = "no scenario"
    elif len(text.split()) < SHORTEST[kind]:
        status = "too short"
    elif found:
        status = "names a feeling" if kind == asked.NEUTRAL else "names its emotion"
    return {
        "text": text,
        "kind": kind,
        "emotions": " / ".join(emotions),
        "topic": entry["topic"],
        "status": status,
        "found": ", ".join(found),
        "scenario": before,
        "turns": said,
        "writer": entry["writer"],
        "request": entry["key"],
    }


def _save(written: Written) -> None:
    lines = []
    for row in written.kept.to_dict("records"):
        felt = [e for e in row["emotions"].split(" / ") if e]
        # A dialogue of two emotions is no text of either.
        labels = felt[:1] if row["kind"] in (asked.STORIES, asked.DEFLECTION) else []
        line = {"text": row["text"], "labels": labels, "group": row["topic"], "source": row["writer"]}
        if row["turns"]:
            line |= {"scenario": row["scenario"], "turns": row["turns"]}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_bytes(written.path, "".join(lines).encode())
