"""What is wrong with files, options and the installation is told before torch is loaded, in the words of whoever reads them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from heads import artefact

REFUSING = """
import json, sys

from emoprobe import cli

sys.modules["fastapi"] = sys.modules["ray"] = None  # as if they were not installed
for given in json.loads(sys.argv[1]):
    status = cli.main(given)
    heavy = {"torch", "transformers", "pandas", "datasets"} & set(sys.modules)
    assert status == 2 and not heavy, f"{given} gave {status} with {heavy}"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working folder, with files that are damaged or of one kind or another."""
    artefact(tmp_path / "probes", "probe set", concepts=["fear", "joy"])
    artefact(tmp_path / "valuation", "valuation", dimensions=["valence"])
    artefact(tmp_path / "stream", "emotion stream")
    (tmp_path / "cut").write_bytes((tmp_path / "probes").read_bytes()[:-9])
    (tmp_path / "words").write_text("no artefact at all")
    (tmp_path / "empty.csv").write_bytes(b"\xef\xbb\xbf\r\n")
    (tmp_path / "latin.csv").write_bytes("text,valence\ngood,1\ncafé,1\n".encode("latin-1"))
    (tmp_path / "utf16.csv").write_bytes("text\n".encode("utf-16-le"))
    (tmp_path / "blank.txt").write_text(" \n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(folder: Path, *commands: list[str]) -> list[str]:
    """Return the sentence that each command is refused with, in a process of its own in which nothing heavy is loaded."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", REFUSING, json.dumps(commands)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    assert found.returncode == 0, found.stderr
    return [line.removeprefix("emoprobe: ") for line in found.stderr.splitlines()]


def test_files_are_refused_at_once_in_the_words_of_whoever_reads_them(folder: Path) -> None:
    from emoprobe.corpora import load_corpus
    from emoprobe.probes import load_probes
    from emoprobe.valattn import Valuation

    read = {
        **{name: load_probes for name in ("cut", "words", "stream", "valuation", "nowhere.safetensors")},
        **{name: load_corpus for name in ("empty.csv", "latin.csv", "utf16.csv", "blank.txt", "nowhere.csv")},
        "probes": Valuation.load,
    }
    late = []
    for name, load in read.items():
        with pytest.raises(ValueError) as error:
            load(name)  # type: ignore[operator]
        late.append(str(error.value))
    commands = [
        ["trace", "bundled", "cut", "the sun"],
        ["explore", "bundled", "words"],
        ["inject", "bundled", "stream", "the sun"],
        ["steer", "bundled", "valuation", "fear", "the sun"],
        ["sweep", "bundled", "nowhere.safetensors"],
        ["fit", "bundled", "empty.csv", "-o", "x"],
        ["study", "--corpus", "latin.csv"],
        ["learn", "bundled", "probes", "utf16.csv", "-o", "x"],
        ["fit", "bundled", "blank.txt", "-o", "x"],
        ["claims", "--corpus", "nowhere.csv"],
        ["compare", "bundled", "valuation", "probes"],
    ]
    assert refused(folder, *commands) == [
        *late[:-1],
        f"{late[-1]}: `emoprobe learn` makes one of it",
    ]
    assert "line 3 is not UTF-8" in late[6] and "damaged" in late[0]


def test_what_is_typed_is_refused_at_once(folder: Path) -> None:
    steer, inject, sweep = (
        ["steer", "bundled", "probes", "fear"],
        ["inject", "bundled", "valuation"],
        ["sweep", "bundled", "probes"],
    )
    typed = {
        "did you mean": ["info", "bundeld"],
        "the text is empty": ["trace", "bundled", "probes", " "],
        '"words" is a file': [*steer, "words"],
        "finite": [*steer, "the sun", "--strength", "inf"],
        "--strengths=a are no numbers": [*sweep, "--strengths", "a"],
        "holds no text": [*sweep, "--texts", "blank.txt"],
        "nowhere.txt": [*sweep, "--texts", "nowhere.txt"],
        "line 3 is not UTF-8": [*sweep, "--texts", "latin.csv"],
        '--toward "1" is not understood': [*inject, "the sun", "--toward", "valence=1,1"],
        "layers": [*inject, "the sun", "--layers", "x"],
        "float99": ["info", "bundled", "--dtype", "float99"],
        '--columns "a"': ["fit", "bundled", "passages", "-o", "x", "--columns", "a"],
        "a range has two ends": ["study", "--ranges", "valence=1"],
        "no manifest.json": ["report", "."],
        "the explorer needs fastapi": ["explore"],
        "workers need ray": [*sweep, "--engine", "ray"],
    }
    for part, sentence in zip(typed, refused(folder, *typed.values()), strict=True):
        assert part in sentence


def test_of_a_file_of_texts_no_more_than_the_beginning_is_looked_at(folder: Path) -> None:
    """What is wrong further on is told by whoever reads all of it, and a character may be cut where the look ends."""
    from emoprobe.files import FIRST, check_texts, read_text

    path = folder / "long.csv"
    for begun in ("text\n", "text\nx"):  # in one of the two, the look ends within an é
        path.write_bytes(begun.encode() + "é".encode() * (FIRST // 2) + b"\n\xff")
        check_texts(path)
        with pytest.raises(ValueError, match=r"line 3 is not UTF-8"):
            read_text(path)
    path.write_bytes(b"text\n" + "é".encode()[:1])  # but not where the file ends
    with pytest.raises(ValueError, match=r"line 2 is not UTF-8"):
        check_texts(path)
