"""Hostile input: every malformed file of the tests, and fuzzing of all that reads one. What came of it: hostile.md.

    python benchmarks/hostile.py malformed              the cases of tests/malformed.py, all of them, counted by reader
    python benchmarks/hostile.py fuzz --seconds 400     random spoiling by hypothesis, until so many seconds of CPU are used
    python benchmarks/hostile.py guided --seconds 300   the same targets, guided by coverage (pip install atheris)

A target is given bytes and may do two things with them: read them, or raise InputError. Everything else is a finding.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from malformed import ROWS, Clean, Place, cases, judge
from malformed_artefacts import MAKERS, _closed, _opened
from malformed_corpora import _csv, _lines, _stored, _table
from malformed_folders import _run

from emoprobe.corpora import load_corpus
from emoprobe.corpora.emotion_words import load_word_norms
from emoprobe.corpora.stories.writing import _entries
from emoprobe.errors import InputError
from emoprobe.probes import load_probes
from emoprobe.probes.moments import load_moments
from emoprobe.steering import import_gguf, import_steering_vectors
from emoprobe.study import load_study
from emoprobe.valattn import EmotionStream, Valuation

TOKENS = [
    *(
        b"",
        b"\0",
        b"\xff",
        b'"',
        b"'",
        b"\n",
        b"\r",
        b",",
        b"\t",
        b"[",
        b"]",
        b"{",
        b"}",
        b"\xe2\x80\xa8",
        b"\xef\xbb\xbf",
    ),
    *(
        b"NaN",
        b"1e999",
        b"-1",
        b"null",
        b"true",
        b"9" * 400,
        b"9" * 5000,
        b"[" * 2000,
        b"\\ud800",
        b"\\u0000",
        b"../../x",
        b"text",
    ),
]
SPOILING = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 40), st.sampled_from(TOKENS) | st.binary(max_size=12)),
    min_size=1,
    max_size=5,
)
"""Where in the content, how many bytes are taken out there, and what is put in."""
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


GENERATING = settings(
    max_examples=60,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


class Targets:
    """What reads files: name -> (a clean content, a function of the spoilt one)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        clean = Clean(folder)
        rows = [{**row, "valence": float(row["valence"])} for row in ROWS]
        spans = [{"text": row["text"], "spans": [{"start": 0, "end": 3, "valence": 0.5}]} for row in ROWS[:3]]
        words = [{"words": [["sun", 0.5, 0.1, 0.2], ["rain", -0.5, 0.1, None]]}] * 3
        log = {
            "key": "k",
            "kind": "stories",
            "topic": "t",
            "writer": "w",
            "reply": "r",
            "emotions": ["sad"],
            "seed": 0,
        }
        _run(folder / "run")
        run = folder / "run"
        norms = "word,valence,arousal\n" + "".join(f"w{k},{k},5\n" for k in range(9))
        vectors = {1: torch.ones(4), 2: torch.ones(4)}
        torch.save(vectors, folder / "vectors.pt")
        self.of: dict[str, tuple[bytes, Callable[[bytes], object]]] = {
            "csv": (_csv(ROWS[:5]).encode(), self.file("f.csv", load_corpus)),
            "tsv": (_csv(ROWS[:5], "\t").encode(), self.file("f.tsv", load_corpus)),
            "json lines": (_lines(rows[:5]).encode(), self.file("f.jsonl", load_corpus)),
            "json": (json.dumps(rows[:5]).encode(), self.file("f.json", load_corpus)),
            "spans": (_lines(spans).encode(), self.file("f.jsonl", load_corpus)),
            "words": (_lines(words).encode(), self.file("f.jsonl", load_corpus)),
            "parquet": (_stored(_table()), self.file("f.parquet", load_corpus)),
            "word norms": (norms.encode(), self.file("f.csv", load_word_norms)),
            "probe set": (MAKERS["probes"](clean).read_bytes(), self.file("f.safetensors", load_probes)),
            "valuation": (
                MAKERS["valuation"](clean).read_bytes(),
                self.file("f.safetensors", Valuation.load),
            ),
            "emotion stream": (
                MAKERS["stream"](clean).read_bytes(),
                self.file("f.safetensors", EmotionStream.load),
            ),
            "moments": (MAKERS["moments"](clean).read_bytes(), self.file("f.safetensors", load_moments)),
            "story log": (
                _lines([log, log]).encode(),
                self.file("f.jsonl", lambda path: list(_entries(path))),
            ),
            "manifest": ((run / "manifest.json").read_bytes(), self.run("manifest.json")),
            "result": ((run / "results/probing.json").read_bytes(), self.run("results/probing.json")),
            "figure": ((run / "figures/probing.svg").read_bytes(), self.run("figures/probing.svg")),
            "steering vectors": (
                (folder / "vectors.pt").read_bytes(),
                self.file("f.pt", import_steering_vectors),
            ),
            "control vector": (self.gguf(), self.file("f.gguf", import_gguf)),
        }

    def file(self, name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
        def target(content: bytes) -> object:
            path = self.folder / name
            path.write_bytes(content)
            return read(path)

        return target

    def run(self, name: str) -> Callable[[bytes], object]:
        def target(content: bytes) -> object:
            path = self.folder / "run" / name
            before = path.read_bytes()
            path.write_bytes(content)
            try:
                return load_study(self.folder / "run").write_report()
            finally:
                path.write_bytes(before)

        return target

    def gguf(self) -> bytes:
        import gguf
        import numpy as np

        writer = gguf.GGUFWriter(self.folder / "clean.gguf", "controlvector")
        writer.add_tensor("direction.1", np.ones(8, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return (self.folder / "clean.gguf").read_bytes()


def spoilt(content: bytes, spoiling: list[tuple[float, int, bytes]]) -> bytes:
    for where, taken, put in spoiling:
        at = int(where * len(content))
        content = content[:at] + put + content[at + taken :]
    return content


def resealed(content: bytes, where: float, value: object) -> bytes:
    """Put a value in the place of one of a JSON object's, or of the record in a safetensors header."""
    if content[:1] == b"{":
        record = json.loads(content.splitlines()[0]) if content.count(b"\n{") else json.loads(content)
        record[list(record)[int(where * (len(record) - 1))]] = value
        return json.dumps(record).encode()
    header, body = _opened(content)
    record = json.loads(header["__metadata__"]["emoprobe"])
    record[list(record)[int(where * (len(record) - 1))]] = value
    header["__metadata__"]["emoprobe"] = json.dumps(record)
    return _closed(header, body)


def judged(target: Callable[[bytes], object], content: bytes) -> str:
    """Return "refused", or "right" for what was read; whatever else comes up goes on up."""
    try:
        target(content)
    except InputError as error:
        assert len(str(error).splitlines()) == 1, f"several lines: {error}"
        return "refused"
    return "right"


WITH_RECORDS = ("probe set", "valuation", "emotion stream", "moments", "story log", "manifest", "result")


def fuzz(seconds: float, first: int) -> None:
    """Spoil every target's content at random until the time is used, and tell what came of it."""
    counts: Counter[tuple[str, str]] = Counter()
    findings: dict[str, str] = {}
    begun, number = time.process_time(), first
    with tempfile.TemporaryDirectory() as folder:
        targets = Targets(Path(folder)).of
        while time.process_time() - begun < seconds:
            for name in targets:
                one_round(name, *targets[name], number, counts, findings)
            number += 1
    told(counts, time.process_time() - begun, findings)


def one_round(
    name: str,
    clean: bytes,
    target: Callable[[bytes], object],
    number: int,
    counts: Counter[tuple[str, str]],
    findings: dict[str, str],
) -> None:
    strategy = st.tuples(st.none(), SPOILING)
    if name in WITH_RECORDS:
        strategy |= st.tuples(st.floats(0, 1), JSON)

    def trial(drawn: tuple) -> None:
        where, what = drawn
        content = spoilt(clean, what) if where is None else resealed(clean, where, what)
        tried(name, target, content, counts, findings)

    seed(number)(GENERATING(given(strategy)(trial)))()


def tried(
    name: str,
    target: Callable[[bytes], object],
    content: bytes,
    counts: Counter[tuple[str, str]],
    findings: dict[str, str],
) -> None:
    """Give a target its content, and count what comes of it; each finding is printed once."""
    try:
        counts[name, judged(target, content)] += 1
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        key = f"{name}: {type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
        counts[name, "finding"] += 1
        if key not in findings:
            findings[key] = f"{error}"[:300]
            print("FINDING", key, findings[key], content[:300], flush=True)


def guided(seconds: int) -> None:
    """Let atheris spoil what the first byte says, guided by which lines of this package are run."""
    import atheris

    folder = Path(tempfile.mkdtemp())
    targets = Targets(folder).of
    for module in ("artefacts", "checks", "corpora.tables", "corpora.cells", "corpora._checks", "corpora.loaders",
                   "probes.probe_set", "valattn.valuation", "steering.interchange", "study.folder"):  # fmt: skip
        for value in vars(sys.modules[f"emoprobe.{module}"]).values():
            if getattr(value, "__module__", "") == f"emoprobe.{module}" and hasattr(value, "__code__"):
                atheris.instrument_func(value)
    counts: Counter[tuple[str, str]] = Counter()
    findings: dict[str, str] = {}
    begun, names = time.process_time(), list(targets)

    def one(data: bytes) -> None:
        if not data:
            return
        name = names[data[0] % len(names)]
        tried(name, targets[name][1], data[1:], counts, findings)
        if sum(counts.values()) % 2000 == 0:
            told(counts, time.process_time() - begun, findings)

    corpus = folder / "corpus"
    corpus.mkdir()
    for number, (content, _) in enumerate(targets.values()):
        (corpus / str(number)).write_bytes(bytes([number]) + content)
    atheris.Setup(
        [
            sys.argv[0],
            f"-max_total_time={seconds}",
            "-max_len=6000",
            "-timeout=60",
            "-rss_limit_mb=6000",
            str(corpus),
        ],
        one,
    )
    atheris.Fuzz()


def told(counts: Counter, spent: float, findings: dict[str, str]) -> None:
    names = list(dict.fromkeys(name for name, _ in counts))
    for name in names:
        print(
            f"| {name} | "
            + " | ".join(str(counts[name, what]) for what in ("refused", "right", "finding"))
            + " |"
        )
    print(f"{sum(counts.values())} cases in {spent:.0f} s of CPU; {len(findings)} findings")


def malformed() -> int:
    """Run every case, and count by reader."""
    counts: Counter[tuple[str, str]] = Counter()
    findings: dict[str, str] = {}
    begun = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        clean = Clean(Path(folder))
        for number, case in enumerate(cases()):
            place = Place(clean, Path(folder) / str(number) / "in")
            place.folder.mkdir(parents=True)
            try:
                outcome = judge(case, place)
            except Exception as error:
                outcome, findings[case.name] = "finding", str(error)
                print("FINDING", case.name, str(error)[:500], flush=True)
            counts[case.name.split("/")[0], outcome] += 1
    told(counts, time.process_time() - begun, findings)
    return bool(findings)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["malformed", "fuzz", "guided"])
    parser.add_argument("--seconds", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    given_ = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if given_.what == "malformed":
        sys.exit(malformed())
    fuzz(given_.seconds, given_.seed) if given_.what == "fuzz" else guided(given_.seconds)
