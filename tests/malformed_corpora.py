"""Malformed corpora: CSV, TSV, JSON, JSON lines, Parquet and the folders of published corpora. See `malformed`."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from malformed import COLUMNS, ROWS, Case, Place, fit

from emoprobe.corpora import load_corpus
from emoprobe.probes import load_probes

Row = dict[str, Any]
NAN = float("nan")


def cases() -> list[Case]:
    return [*_delimited(), *_values(), *_json(), *_parquet(), *_places(), *_published()]


# What has to come of it ----------------------------------------------------------------------------------------------


def _case(
    name: str, file: str, content: bytes | str, says: str | None = None, rows: Sequence[Row] | None = None
) -> Case:
    """Return the case of one file; refused unless the `rows` that it holds are given."""

    def build(place: Place) -> Sequence[object]:
        path = place.write(file, content)
        return fit(place.clean, path, place.folder / "out.safetensors")

    where = file if says is None else says
    return Case(f"corpus/{name}", build, None if rows is None else _holds(file, rows), where)


def _holds(file: str, rows: Sequence[Row]) -> Callable[[Place, str], None]:
    """Return the check that a corpus is these rows, and that its probes are those of the clean corpus where they are its."""

    def check(place: Place, out: str) -> None:
        found = load_corpus(place.folder / file)
        assert found.texts == [row["text"] for row in rows], "other texts"
        assert [labels for labels in found.data["labels"][:]] == [
            [row["label"]] if row.get("label") else [] for row in rows
        ]
        wanted = [float(row["valence"]) if row.get("valence") else NAN for row in rows]
        np.testing.assert_array_equal(found.values("valence"), wanted)
        if rows == ROWS:
            assert list(found.groups) == [row["group"] for row in rows]
            ours, theirs = (load_probes(p) for p in (place.folder / "out.safetensors", place.clean.probes))
            assert torch.equal(ours.directions, theirs.directions), "other probes"

    return check


def _with(number: int, **cells: Any) -> list[Row]:
    """Return the rows with some cells of one of them replaced."""
    return [{**row, **cells} if place == number else dict(row) for place, row in enumerate(ROWS)]


# Separated values ----------------------------------------------------------------------------------------------------


def _csv(
    rows: Sequence[Row] = ROWS, separator: str = ",", columns: Sequence[str] = COLUMNS, **options: Any
) -> str:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=separator, lineterminator="\n", **options)
    writer.writerow(columns)
    writer.writerows([row.get(column, "") for column in columns] for row in rows)
    return out.getvalue()


def _delimited() -> Iterator[Case]:
    for suffix, separator in (("csv", ","), ("tsv", "\t")):
        clean = _csv(separator=separator)
        lines = clean.splitlines(keepends=True)
        accent = clean.replace("sang", "chantèrent", 1)
        cut = [*lines[:-1], lines[-1].rsplit(separator, 2)[0] + "\n"]
        refused: dict[str, bytes | str] = {
            "empty": b"",
            "blank": b" \n\n  \n",
            "header-only": lines[0],
            "no-header": "".join(lines[1:]),
            "no-text": clean.replace("text", "txt", 1),
            "text-twice": clean.replace("label", "text", 1),
            "label-twice": clean.replace("group", "label", 1),
            "utf-16": clean.encode("utf-16"),
            "utf-16-without-mark": clean.encode("utf-16-le"),
            "utf-32": clean.encode("utf-32"),
            "latin-1": accent.encode("latin-1"),
            "lone-byte": clean.encode()[:200] + b"\xff" + clean.encode()[200:],
            "cut-in-a-character": accent[: accent.index("è") + 1].encode()[:-1],
            "nul-in-a-text": clean.replace("sang", "sa\0ng", 1),
            "nul-in-a-label": clean.replace("sad", "s\0ad", 1),
            "nul-tail": clean + "\0" * 512,
            "only-nul": b"\0" * 512,
            "long-row": "".join([*lines[:9], separator.join("abcdefgh") + "\n", *lines[9:]]),
            "short-row": "".join([*lines[:9], "only a text\n", *lines[9:]]),
            "cut-last-row": "".join(cut),
            "unclosed-quote": clean + '"and then',
            "other-separator": clean.replace(separator, "|"),
            "gzip": gzip.compress(clean.encode()),
            "line-break-in-a-column": '"te\nxt"' + clean.removeprefix("text"),
            "random-bytes": np.random.default_rng(0).bytes(4096),
        }
        for name, content in refused.items():
            yield _case(f"{suffix}/{name}", f"days.{suffix}", content)
        accepted: dict[str, bytes | str] = {
            "byte-order-mark": b"\xef\xbb\xbf" + clean.encode(),
            "crlf": clean.replace("\n", "\r\n"),
            "cr": clean.replace("\n", "\r"),
            "blank-lines": clean.replace("\n", "\n\n"),
            "no-last-newline": clean.rstrip("\n"),
            "all-quoted": _csv(separator=separator, quoting=csv.QUOTE_ALL),
            "columns-moved": _csv(separator=separator, columns=COLUMNS[::-1]),
            "further-column": _csv(
                [{**row, "note": "x" * 99} for row in ROWS], separator, (*COLUMNS, "note")
            ),
            "many-columns": _csv(
                [{**row, **{f"c{k}": "1" for k in range(2000)}} for row in ROWS],
                separator,
                (*COLUMNS, *(f"c{k}" for k in range(2000))),
            ),
        }
        for name, content in accepted.items():
            yield _case(f"{suffix}/{name}", f"days.{suffix}", content, rows=ROWS)


def _values() -> Iterator[Case]:
    """Cells that are wrong, each named by its row, and strange ones that are right."""
    wrong: dict[str, Row] = {
        "text-empty": {"text": ""},
        "text-blank": {"text": " \t "},
        "valence-word": {"valence": "very"},
        "valence-inf": {"valence": "inf"},
        "valence-minus-inf": {"valence": "-Infinity"},
        "valence-overflow": {"valence": "1e999"},
        "valence-outside": {"valence": "1.5"},
        "valence-comma": {"valence": "0,5"},
        "valence-underscore": {"valence": "0_1"},
        "valence-hex": {"valence": "0x1"},
        "valence-5000-digits": {"valence": "9" * 5000},
        "labels-broken-list": {"label": "['sad'"},
        "labels-code": {"label": "[__import__('os').getcwd()]"},
        "labels-deep": {"label": "[" * 50_000},
        "labels-deep-closed": {"label": "[" * 5000 + "]" * 5000},
        "label-escape": {"label": "\x1b[2J\x1b]0;owned\x07"},
        "label-newline": {"label": "sad\nglad"},
        "label-direction": {"label": "sad\u202egnp"},
    }
    for name, cells in wrong.items():
        says = "label" if name.startswith("label-") else "row 8"
        yield _case(f"cell/{name}", "days.csv", _csv(_with(7, **cells)), says)
    right: dict[str, Row] = {
        "valence-missing": {"valence": ""},
        "text-with-quotes": {"text": 'He said "no, never", and left\nat once.'},
        "text-na": {"text": "NA"},
        "text-formula": {"text": "=cmd|' /C calc'!A0"},
        "text-line-separator": {"text": "one\u2028two\x85three\x0bfour"},
        "text-escape": {"text": "red \x1b[31m alert"},
        "text-emoji": {"text": "👩‍👩‍👧‍👦 \u0301\u0301 ﷺ \U0010ffff"},
        "text-right-to-left": {"text": "\u202eevil \u2066text"},
        "label-path": {"label": "../../outside"},
        "label-absolute": {"label": "/tmp/outside"},
        "label-html": {"label": "<script>alert(1)</script>"},
        "label-template": {"label": "{{ 7 * 7 }} %s {0}"},
        "label-long": {"label": "long" * 2000},
        "group-huge": {"group": "9" * 5000},
        "group-path": {"group": "../../etc"},
    }
    for name, cells in right.items():
        yield _case(f"cell/{name}", "days.csv", _csv(_with(7, **cells)), rows=_with(7, **cells))
    long = [*_with(7, text="sun and rain " * 800_000)]
    yield _case("cell/text-10-MB", "days.csv", _csv(long), rows=long)
    word = [*_with(7, text="a" * 10_000_000)]
    yield _case("cell/text-10-MB-one-word", "days.csv", _csv(word), rows=word)
    yield _case(
        "cell/label-one-only", "days.csv", _csv([{**row, "label": "sad", "valence": "0"} for row in ROWS]), ""
    )
    yield _case(
        "cell/valence-all-missing",
        "days.csv",
        _csv([{**row, "valence": ""} for row in ROWS], columns=COLUMNS[:1] + COLUMNS[2:]),
        "",
    )


# JSON ----------------------------------------------------------------------------------------------------------------


def _lines(rows: Sequence[Mapping[str, Any]] = ROWS) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _json() -> Iterator[Case]:
    numbers = [{**row, "valence": float(row["valence"])} for row in ROWS]
    clean = _lines(numbers)
    lines = clean.splitlines(keepends=True)

    def line(number: int, content: str) -> str:
        return "".join([*lines[:number], content + "\n", *lines[number + 1 :]])

    def value(key: str, written: str) -> str:
        row = {**numbers[7], key: "@"}
        return line(7, json.dumps(row).replace('"@"', written))

    refused = {
        "empty": "",
        "not-json": line(7, "day, sad, 0.5"),
        "cut-line": clean[:-40],
        "row-a-number": line(7, "5"),
        "row-a-list": line(7, '["a", "b"]'),
        "row-null": line(7, "null"),
        "key-twice": line(7, lines[7].rstrip()[:-1] + ', "text": "another"}'),
        "deep": line(7, '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}"),
        "deep-unclosed": line(7, '{"a":' * 100_000),
        "huge-integer": value("valence", "9" * 5000),
        "large-integer": value("valence", "9" * 400),
        "infinity": value("valence", "Infinity"),
        "boolean": value("valence", "true"),
        "valence-list": value("valence", "[0.1]"),
        "text-number": value("text", "5"),
        "text-null": value("text", "null"),
        "text-list": value("text", '["a"]'),
        "text-object": value("text", '{"a": 1}'),
        "text-surrogate": value("text", '"a\\ud800b"'),
        "text-only-nul": value("text", '"\\u0000\\u0000"'),
        "label-object": value("label", '{"sad": 1}'),
        "label-list-of-lists": value("label", '[["sad"]]'),
        "label-surrogate": value("label", '"\\udc00"'),
        "utf-16": clean.encode("utf-16"),
        "nul-tail": clean + "\0" * 64,
    }
    for name, content in refused.items():
        yield _case(f"jsonl/{name}", "days.jsonl", content)
    spans = {
        "a-number": 5,
        "an-object": {"start": 0, "end": 3},
        "without-end": [{"start": 0}],
        "words": [{"start": "a", "end": "b"}],
        "a-fraction": [{"start": 0.5, "end": 3}],
        "huge": [{"start": 0, "end": 10**30}],
        "backwards": [{"start": 3, "end": 1}],
        "outside": [{"start": 0, "end": 10_000}],
        "negative": [{"start": -3, "end": 2}],
        "value-infinite": [{"start": 0, "end": 3, "valence": float("inf")}],
        "value-a-word": [{"start": 0, "end": 3, "valence": "high"}],
        "text-not-json": "[{'start': 0",
        "text-deep": "[" * 50_000,
    }
    for name, found in spans.items():
        rows = [{**row, "spans": found if place == 7 else []} for place, row in enumerate(numbers)]
        yield _case(f"spans/{name}", "days.jsonl", _lines(rows), "row 8")
    words = {
        "a-number": 3,
        "empty-word": [["", 0, 0, 0]],
        "too-few-values": [["sun", 0.5]],
        "value-a-word": [["sun", "high", 0, 0]],
        "value-outside": [["sun", 7, 0, 0]],
        "deep": "[" * 50_000,
    }
    for name, found in words.items():
        rows = [{"words": [["sun", 0.5, 0.1, 0.2]], "label": "sad"}] * 7 + [{"words": found, "label": "sad"}]
        yield _case(f"words/{name}", "days.jsonl", _lines(rows), "row 8")
    accepted = {
        "byte-order-mark": (b"\xef\xbb\xbf" + clean.encode(), ROWS),
        "crlf": (clean.replace("\n", "\r\n"), ROWS),
        "blank-lines": (clean.replace("\n", "\n\n"), ROWS),
        "further-keys": (_lines([{**row, "note": {"deep": [1, 2]}} for row in numbers]), ROWS),
        "nan": (value("valence", "NaN"), _with(7, valence="")),
        "null": (value("valence", "null"), _with(7, valence="")),
        "text-with-nul": (value("text", '"a\\u0000b c"'), _with(7, text="a\0b c")),
        "a-list": (json.dumps(numbers), ROWS),
    }
    for name, (content, rows) in accepted.items():
        yield _case(f"jsonl/{name}", "days.jsonl", content, rows=rows)
    whole = json.dumps(numbers)
    broken = {
        "empty-list": "[]",
        "numbers": "[1, 2, 3]",
        "cut": whole[:-30],
        "comma": whole[:-1] + ",]",
        "two-lists": whole + whole,
        "deep": "[" * 100_000,
        "huge-integer": whole.replace("0.5", "9" * 5000, 1),
        "an-object": json.dumps({"rows": numbers}, indent=1),
        "a-string": '"text"',
    }
    for name, content in broken.items():
        yield _case(f"json/{name}", "days.json", content)


# Parquet -------------------------------------------------------------------------------------------------------------


def _table(**columns: Any) -> pa.Table:
    plain = {name: pa.array([row[name] for row in ROWS]) for name in COLUMNS}
    plain["valence"] = pa.array([float(row["valence"]) for row in ROWS])
    return pa.table({**plain, **columns})


def _stored(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


def _bomb() -> bytes:
    """Return a file of half a megabyte that unpacks to 20 GB: two texts, ten thousand times each."""
    longest = pa.array(["happy sad day " * 70_000 + end for end in "ab"])
    numbers = pa.array(np.arange(20_000, dtype=np.int32) % 2)
    return _stored(pa.table({"text": pa.DictionaryArray.from_arrays(numbers, longest), "valence": numbers}))


def _parquet() -> Iterator[Case]:
    clean = _stored(_table())
    size = len(ROWS)
    labelled = {"info": {"features": {"label": {"names": ["sad"], "_type": "ClassLabel"}}}}
    wrong = {
        "text-numbers": _stored(_table(text=pa.array(range(size)))),
        "text-bytes": _stored(_table(text=pa.array([b"\xff\xfe"] * size))),
        "text-not-utf-8": _stored(
            _table(text=pa.Array.from_buffers(pa.string(), size, pa.array([b"\xff\xfe "] * size).buffers()))
        ),
        "text-lists": _stored(_table(text=pa.array([["a"]] * size))),
        "text-structs": _stored(_table(text=pa.array([{"a": 1}] * size))),
        "text-null": _stored(_table(text=pa.array(["a"] + [None] * (size - 1)))),
        "valence-words": _stored(_table(valence=pa.array(["x"] * size))),
        "valence-booleans": _stored(_table(valence=pa.array([True] * size))),
        "valence-times": _stored(_table(valence=pa.array([0] * size, pa.timestamp("ns")))),
        "valence-infinite": _stored(_table(valence=pa.array([float("inf")] * size))),
        "valence-lists": _stored(_table(valence=pa.array([[0.1]] * size))),
        "label-structs": _stored(_table(label=pa.array([{"a": 1}] * size))),
        "no-rows": _stored(_table().slice(0, 0)),
        "no-columns": _stored(pa.table({})),
        "text-twice": _stored(pa.table([pa.array(["a", "b"])] * 2, names=["text", "text"])),
        "class-numbers-without-names": _stored(
            _table(label=pa.array(range(size))).replace_schema_metadata({"huggingface": json.dumps(labelled)})
        ),
        "features-not-json": _stored(_table().replace_schema_metadata({"huggingface": "{"})),
        "features-deep": _stored(_table().replace_schema_metadata({"huggingface": "[" * 50_000})),
        "empty": b"",
        "magic-only": b"PAR1PAR1",
        "random": b"PAR1" + np.random.default_rng(1).bytes(2000) + b"PAR1",
        "footer-length-huge": clean[:-8] + b"\xff\xff\xff\x7f" + b"PAR1",
        "footer-spoiled": clean[:-200] + bytes(100) + clean[-100:],
        "pages-spoiled": clean[:4] + bytes(400) + clean[404:],
        "bomb": _bomb(),
    }
    wrong |= {f"cut-{share}": clean[: len(clean) * share // 100] for share in (1, 25, 50, 75, 99)}
    for name, content in wrong.items():
        yield _case(f"parquet/{name}", "days.parquet", content)
    accepted = {
        "dictionary": _table(text=_table()["text"].combine_chunks().dictionary_encode()),
        "single": _table(valence=_table()["valence"].cast(pa.float32())),
        "large-strings": _table(text=_table()["text"].cast(pa.large_string())),
        "decimals": _table(valence=pa.array([Decimal(row["valence"]) for row in ROWS])),
        "features-of-others": _table().replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": {"x": {"dtype": "int8", "_type": "Value"}}}})}
        ),
        "further-column": _table(note=pa.array([{"a": [1]}] * size)),
    }
    for name, table in accepted.items():
        yield _case(f"parquet/{name}", "days.parquet", _stored(table), rows=ROWS)


# Places and names ----------------------------------------------------------------------------------------------------


def _places() -> Iterator[Case]:
    def read(place: Place, path: object) -> Sequence[object]:
        return fit(place.clean, path, place.folder / "out.safetensors")

    def bomb(place: Place) -> Sequence[object]:
        path = place.folder / "days.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("days.csv", b"0" * 50_000_000)
        return read(place, path)

    def made(name: str, make: Callable[[Path], object]) -> Callable[[Place], Sequence[object]]:
        def build(place: Place) -> Sequence[object]:
            make(place.folder / name)
            return read(place, place.folder / name)

        return build

    def pipe(path: Path) -> None:
        os.mkfifo(path)  # reading it would wait for ever

    yield Case("place/missing", lambda place: read(place, place.folder / "no.csv"), says="no such file")
    yield Case("place/name-with-nul", lambda place: read(place, "da\0ys.csv"))
    yield Case("place/name-too-long", lambda place: read(place, "d" * 300 + ".csv"))
    yield Case("place/a-folder", made("days.csv", Path.mkdir), says="days.csv")
    yield Case("place/a-pipe", made("days.csv", pipe), says="days.csv")
    yield Case("place/link-to-itself", made("days.csv", lambda path: path.symlink_to(path)), says="days.csv")
    yield Case(
        "place/link-to-nothing", made("days.csv", lambda path: path.symlink_to("/no/such")), says="days.csv"
    )
    yield Case("place/a-device", lambda place: read(place, "/dev/zero"))
    yield Case("place/zip-bomb", bomb, says="days.zip")
    for suffix in (".xlsx", ".pkl", ".npy", ".csv.gz", ""):
        yield _case(f"place/suffix{suffix or '-none'}", f"days{suffix}", b"x" * 99)


def _published() -> Iterator[Case]:
    files = {
        "emobank": {
            "emobank.csv": "id,split,V,A,D,text\na_0_5,train,{},3,3,The sun.\nb_0_5,dev,3,3,3,Rain.\n"
        },
        "goemotions": {f"{part}.tsv": "The sun came up\t{}\tid1\n" for part in ("train", "dev", "test")},
        "carer": {f"{part}.txt": "the sun came up;{}\n" for part in ("train", "val", "test")},
    }
    wrong = {
        "emobank": ("99", "inf", "high", ""),
        "goemotions": ("99", "-1", "joy", "", "1,,2", "9" * 5000),
        "carer": ("bliss", "", "joy;more"),
    }
    for name, values in wrong.items():
        for value in values:

            def build(place: Place, name: str = name, value: str = value) -> Sequence[object]:
                for file, content in files[name].items():
                    place.write(f"{name}/{file}", content.format(value))
                return [
                    *fit(place.clean, name, place.folder / "out.safetensors"),
                    "--folder",
                    place.folder / name,
                ]

            yield Case(f"published/{name}-{value[:8] or 'nothing'}", build, says=name)
    headers = {"emobank": "emobank.csv", "isear": "isear.csv", "crowd_envent": "generation.csv"}
    for name, file in headers.items():
        for kind, content in {"columns": "a,b\n1,2\n", "empty": "", "bytes": b"\xff\xfe\0\0"}.items():

            def build(
                place: Place, name: str = name, file: str = file, content: Any = content
            ) -> Sequence[object]:
                place.write(f"{name}/{file}", content)
                return [
                    *fit(place.clean, name, place.folder / "out.safetensors"),
                    "--folder",
                    place.folder / name,
                ]

            yield Case(f"published/{name}-{kind}", build, says=name)
