"""The run folder: what was asked, what came out, and which steps are done.

    manifest.json       what was asked, which steps there are, versions, seeds, hardware, durations
    *.safetensors       probes and valuations
    results/            one .parquet (the table) and one .json (the rest) for each step
    figures/            one .svg and one .png for each step that has a figure
    report.html

Every file is written whole or not at all, and a step's JSON last, so that a step is done when that is there. This file knows
nothing of experiments.
"""

from __future__ import annotations

import io
import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from emoprobe import drawing
from emoprobe.artefacts import holds_nothing, write_bytes
from emoprobe.checks import check_record, read_parquet
from emoprobe.errors import InputError
from emoprobe.files import parse_json
from emoprobe.places import check_out, check_study
from emoprobe.study.result import Result

FORMAT = 1
FIELDS = (
    "name",
    "title",
    "question",
    "method",
    "finding",
    "controls",
    "verdict",
    "sign",
    "parts",
    "checks",
    "alt",
    "remarks",
    "published",
)
RESULT = {name: str for name in FIELDS if name not in ("sign", "parts", "checks", "remarks")} | {
    "sign": (int, type(None)),
    "parts": {...: bool},
    "checks": {...: bool},
    "remarks": [str],
    "figure": bool,
}
"""What the JSON of a result has to be."""
STORED = ("tables", "results", "figures")


class RunFolder:
    """One study's folder. `RunFolder.start` makes or resumes one, `RunFolder.open` reads one that is there."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def start(
        cls, path: str | Path, study: Mapping[str, Any], about: Mapping[str, Any], *, resume: bool = True
    ) -> RunFolder:
        """Begin a study in `path`, or go on with it where the same one was begun there.

        `study` is what makes two studies the same (fingerprints, options, seed), `about` everything else that is worth
        knowing. The record stays that of who began it; when and by which command it is taken up again, and what is
        different then, is appended to its list "reruns". With `resume=False` steps that are done are done again, under a
        new record. Raises `InputError` where another study, or something that is none, lies in the folder, and where it
        cannot be written.
        """
        path = Path(path)
        asked: dict[str, Any] = json.loads(json.dumps(study))
        manifest: dict[str, Any] = {"format": FORMAT, "study": asked, **about, "steps": {}}
        before = _record_of_same(path, asked) if path.exists() else None
        if not resume:
            for file in path.glob("results/*.json"):
                file.unlink()
        elif before is not None:
            differs = {key for key, value in about.items() if value != before.get(key)}
            told = {key: value for key, value in about.items() if key in differs | {"begun", "command"}}
            manifest = before | {"reruns": [*before.get("reruns", []), told]}
        folder = cls(path, manifest)
        folder._write_manifest()
        return folder

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Read the folder of a study. Raises `InputError` where there is none."""
        return cls(Path(path), _manifest(Path(path)))

    @property
    def done(self) -> list[str]:
        """Names of the steps that are done, in the order in which they were."""
        found = [file.stem for file in (self.path / "results").glob("*.json")]
        order = list(self.manifest["steps"])
        return sorted(found, key=lambda name: (order.index(name) if name in order else len(order), name))

    def step(self, name: str, make: Callable[[], Result]) -> Result:
        """Return a step's result: the one that is kept, or else a new one, which is then kept.

        Warnings that come up are kept with it.
        """
        if name in self.done:
            return self.load(name)
        begun = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            result = make()
        told = dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, UserWarning))
        for message in told:
            warnings.warn(message, stacklevel=2)
        result = replace(result, name=name, remarks=tuple(told))
        self.manifest["steps"][name] = {"seconds": round(time.perf_counter() - begun, 2)}
        self._keep(result)
        self._write_manifest()
        return result

    def plan(self, names: Sequence[str]) -> None:
        """Put on record which steps there are, so that an unfinished study is known for one."""
        self.manifest["planned"] = list(names)
        self._write_manifest()

    def load(self, name: str) -> Result:
        """Read a step's result; its figure is there as SVG."""
        stem = self.path / "results" / name
        try:
            # Older ones have no parts.
            record = {"parts": {}} | parse_json(stem.with_suffix(".json").read_bytes())
            check_record(record, RESULT)
            if record["name"] != name or record["sign"] not in (None, -1, 0, 1):
                raise InputError(f"it is called {record['name'][:60]!r}, with sign {record['sign']}")
            table = read_parquet(stem.with_suffix(".parquet")).to_pandas()
            drawn = self.path / "figures" / f"{name}.svg"
            svg = drawn.read_text("utf-8") if record.pop("figure") else ""
            return Result(**{**record, "remarks": tuple(record["remarks"])}, table=table, svg=svg)
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = str(error) if isinstance(error, InputError) else type(error).__name__
            raise InputError(
                f'the result "{name}" in "{self.path}" is damaged ({reason}): delete '
                f"{stem.with_suffix('.json')} and run the study again"
            ) from error

    def _keep(self, result: Result) -> None:
        table = io.BytesIO()
        result.table.to_parquet(table, index=False)
        write_bytes(self.path / "results" / f"{result.name}.parquet", table.getvalue())
        if result.svg:
            write_bytes(self.path / "figures" / f"{result.name}.svg", result.svg.encode())
        if result.figure is not None:
            write_bytes(self.path / "figures" / f"{result.name}.png", drawing.png(result.figure))
        record = {name: getattr(result, name) for name in FIELDS} | {"figure": bool(result.svg)}
        for judged in ("parts", "checks"):
            record[judged] = {name: bool(held) for name, held in record[judged].items()}
        write_bytes(self.path / "results" / f"{result.name}.json", _json(record))

    def _write_manifest(self) -> None:
        write_bytes(self.path / "manifest.json", _json(self.manifest))


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def _manifest(path: Path) -> dict[str, Any]:
    check_study(path)
    file = path / "manifest.json"
    try:
        manifest: dict[str, Any] = parse_json(file.read_bytes())
        check_record(manifest, {"format": int, "study": dict, "steps": {...: {"seconds": (int, float)}}})
        optional = {"reruns": [dict], "planned": [str]}
        check_record(manifest, {key: what for key, what in optional.items() if key in manifest})
    except (OSError, ValueError) as error:
        raise InputError(f'"{file}" is damaged ({error}): give another folder') from error
    if manifest["format"] > FORMAT:
        raise InputError(f'"{file}" was written by a later emoprobe: upgrade this one')
    return manifest


def _record_of_same(path: Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the record of a folder that holds this very study; None if it holds nothing yet."""
    check_out(path)
    if holds_nothing(path):
        return None
    if not (path / "manifest.json").is_file():
        raise InputError(f'"{path}" holds other files and no study: give a folder that is new or empty')
    manifest = _manifest(path)
    found = manifest["study"]
    differing = [key for key in (*asked, *found) if asked.get(key) != found.get(key)]
    if differing:
        key = differing[0]
        raise InputError(
            f'"{path}" holds another study, {manifest.get("title")} (its {key} is {found.get(key)}, not {asked.get(key)}): '
            "give another folder, or delete that one"
        )
    return manifest
