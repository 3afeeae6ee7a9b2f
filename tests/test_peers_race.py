"""The benchmark beside other libraries: who is timed how, whose results agree, and what its tables say."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "benchmarks" / "peers"
CONTESTANTS = '''
def emoprobe(given):
    """Say what was given."""
    import torch

    return lambda: {"found": given["x"][None, :, None] + given["more"]}


def slow(given):
    """Say it slowly."""
    import time

    import torch

    def work():

        # a comment is no line, nor is the blank one above
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass
        print("what a library prints is no answer")
        return {"found": given["x"][None, :, None] + given["more"]}

    return work


def wrong(given):
    """Say something else in one layer."""
    import torch

    return lambda: {"found": given["x"][None, :, None] + given["more"] + torch.tensor([0.0, 1.0])[None, :, None]}


def other(given):
    """Say it in another shape."""
    return lambda: {"found": given["x"]}


def broken(given):
    """Fail when it comes to it."""

    def work():
        raise ValueError("no such layer | here")

    return work
'''


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the benchmark's files be imported as it imports them, and be gone afterwards."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = {path.stem for path in FOLDER.glob("[a-z]*.py")}
    assert not names & set(sys.modules)
    yield
    for name in names & set(sys.modules):
        del sys.modules[name]


@pytest.fixture
def records(modules: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """A race of five contestants that do not load a model."""
    from race import race

    (tmp_path / "fake.py").write_text(CONTESTANTS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    names = ("emoprobe", "slow", "wrong", "other", "broken")
    given = {"x": torch.tensor([1.0, 2.0]), "more": 3}
    found = race("fake", dict.fromkeys(names, sys.executable), given, 3, 1e-6, "found")
    return {one["contestant"]: one for one in found}


def test_each_is_timed_beside_ours_and_its_result_compared(records: dict[str, dict[str, Any]]) -> None:
    assert (
        records["slow"]["cpu_ratio"] > 20 and len(records["slow"]["cpu_ratios"]) == 2
    )  # the first one warms up
    assert records["emoprobe"]["cpu_ratio"] == 1 and records["slow"]["agrees"]
    assert (records["emoprobe"]["lines"], records["slow"]["lines"]) == (2, 9)
    assert records["wrong"]["apart"] == [1] and not records["wrong"]["agrees"]
    assert records["wrong"]["difference"] == pytest.approx(1 / 5)
    assert "(2,) and ours (1, 2, 1)" in records["other"]["shapes"] and not records["other"]["agrees"]
    assert records["slow"]["versions"]["torch"] and records["slow"]["threads"] == 1
    assert records["slow"]["peak"] > 50 * 2**20


def test_who_fails_is_named_and_stops_nobody(records: dict[str, dict[str, Any]]) -> None:
    assert (
        records["broken"]["failed"] == "ValueError: no such layer | here"
        and "cpu_ratio" not in records["broken"]
    )
    from tables import section

    shown = list(section("steering", list(records.values())))
    assert [line for line in shown if "no such layer \\| here" in line and line.count("failed") == 2]
    assert shown[-1].startswith("| broken")  # after all who finished


def record(name: str, *ratios: float) -> dict[str, Any]:
    """Return a record with these ratios in its rounds."""
    middle = sorted(ratios)[len(ratios) // 2]
    return {"contestant": name, "cpu_ratio": middle, "cpu_ratios": list(ratios)}


def test_an_order_is_held_unless_those_apart_are_swapped(modules: None) -> None:
    from tables import held

    first = {
        "a": [record("emoprobe", 1.0, 1.0), record("x", 1.5, 1.7), record("y", 1.6, 1.9)],
        "b": "not run",
    }
    assert (
        held(first, {"a": [record("emoprobe", 1.0, 1.0), record("x", 1.8, 1.9), record("y", 1.2, 1.3)]})
        == (
            "is the same for all 2 pairs whose rounds did not overlap."  # x and y overlapped: their order was never told
        )
    )
    swapped = {"a": [record("emoprobe", 1.0, 1.0), record("x", 0.8, 0.9), record("y", 1.2, 1.3)]}
    assert held(first, swapped) == "differs for 1 of 2 pairs whose rounds did not overlap: a: emoprobe and x."


def test_the_guard_reports_a_lead_that_shrank_and_nothing_else(modules: None) -> None:
    from tables import slides

    kept = {"a": [record("emoprobe", 1.0), record("x", 2.0), record("y", 1.0)], "b": [record("x", 9.0)]}
    now = {"a": [record("emoprobe", 1.0), record("x", 1.5), record("y", 0.95), record("new", 0.1)]}
    assert slides(now, kept).splitlines() == [
        "SLID  a: x took 2.00 of emoprobe's time, now 1.50",
        "2 ratios compared, 1 worse than those kept by a factor of 1.15 or failed",
    ]
    assert slides(now, {}) == "nothing is kept to compare with"
    failed = {"a": [{"contestant": "emoprobe", "failed": "ValueError: x"}, record("x", 2.0)]}
    assert "FAILED  a: ValueError: x" in slides(failed, kept)


def test_tables_are_those_of_the_record(modules: None) -> None:
    from tables import BEGIN, END, page, summary

    kept, again = (
        json.loads((ROOT / "benchmarks" / name).read_text("utf-8"))
        for name in ("peers.json", "peers_again.json")
    )
    assert (ROOT / "benchmarks" / "peers.md").read_text("utf-8") == page(kept, again)
    readme = (ROOT / "README.md").read_text("utf-8")
    assert readme.partition(BEGIN)[2].partition(END)[0] == summary(kept["cases"])


@pytest.mark.parametrize("row", ["capturing", "directions", "probing", "steering", "attention_bias"])
def test_contestants_are_functions_with_a_place_to_run(modules: None, row: str) -> None:
    import importlib

    from environments import OWN, PACKAGES

    contest = importlib.import_module(row)
    assert next(iter(contest.CONTESTANTS)) == "emoprobe"
    for name, place in contest.CONTESTANTS.items():
        assert callable(getattr(contest, name)) and place in (OWN, *PACKAGES)
    assert set(contest.REASONS) <= set(contest.CONTESTANTS)
