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


def asleep(given):
    """Never come back."""
    import time

    return lambda: time.sleep(1000)


def killed(given):
    """Be killed, as by a machine without memory."""
    import os

    return lambda: os.kill(os.getpid(), 9)


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
    """A race of contestants that do not load a model."""
    from race import race

    (tmp_path / "fake.py").write_text(CONTESTANTS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    names = ("emoprobe", "slow", "wrong", "other", "broken", "killed")
    given = {"x": torch.tensor([1.0, 2.0]), "more": 3}
    found = race("fake", dict.fromkeys(names, sys.executable), given, 4, 1e-6, "found")
    return {one["contestant"]: one for one in found}


def test_each_is_timed_beside_ours_and_its_result_compared(records: dict[str, dict[str, Any]]) -> None:
    assert records["slow"]["cpu_ratio"] > 20
    assert len(records["slow"]["cpu_ratios"]) == 3  # the first one warms up
    assert records["emoprobe"]["cpu_ratio"] == 1 and records["slow"]["agrees"]
    assert (records["emoprobe"]["statements"], records["slow"]["statements"]) == (2, 9)
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
    assert records["killed"]["failed"] == "killed by signal 9"
    from tables import section, summary

    case = {"records": list(records.values())}
    shown = list(section("steering", case))
    assert [line for line in shown if "no such layer \\| here" in line and line.count("failed") == 2]
    assert shown[-2].startswith("| broken") and shown[-1].startswith("| killed")  # after all who finished
    assert "broken failed, killed failed" in summary({"steering: x": case})


def test_whole_numbers_agree_where_they_are_the_same(modules: None) -> None:
    from race import agreement

    ours, theirs = ({"ids": torch.tensor([[100_000, last]])} for last in (7, 8))
    assert agreement(theirs, ours, 1e-4, "ids") == {"agrees": False, "same": "1 of 2"}
    assert agreement(ours, ours, 0.0, "ids")["agrees"]


def test_who_does_not_answer_is_left_behind(
    modules: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import race

    (tmp_path / "fake.py").write_text(CONTESTANTS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(race, "PATIENCE", 15)
    given = {"x": torch.tensor([1.0, 2.0]), "more": 3}
    found = race.race("fake", dict.fromkeys(("emoprobe", "asleep"), sys.executable), given, 1, 1e-6, "found")
    assert found[1]["failed"] == "no answer in 15 s" and found[0]["cpu_ratio"] == 1


def record(name: str, *ratios: float, **more: Any) -> dict[str, Any]:
    """Return a record with these ratios in its rounds."""
    middle = sorted(ratios)[len(ratios) // 2]
    return {"contestant": name, "cpu_ratio": middle, "cpu_ratios": list(ratios), **more}


def test_an_order_is_held_unless_those_apart_are_swapped(modules: None) -> None:
    from tables import held

    ours = record("emoprobe", 1.0, 1.0)
    first = {
        "a": {"records": [ours, record("x", 1.5, 1.7), record("y", 1.6, 1.9)]},
        "b": {"left": "no model"},
    }
    told = "of 2 pairs whose rounds did not overlap in the first, "
    again = {"a": {"records": [ours, record("x", 1.8, 1.9), record("y", 1.2, 1.3)]}}
    assert held(first, again) == f"{told}2 are in the same order, none is swapped."  # x and y were not apart
    unclear = {"a": {"records": [ours, record("x", 0.9, 1.1), record("y", 1.2, 1.3)]}}
    assert held(first, unclear) == f"{told}1 are in the same order, 1 overlap, none is swapped."
    swapped = {"a": {"records": [ours, record("x", 0.8, 0.9), record("y", 1.2, 1.3)]}}
    assert held(first, swapped) == f"{told}1 are in the same order, 1 are swapped (a: emoprobe and x)."


def test_the_guard_reports_a_lead_that_shrank_and_nothing_else(modules: None) -> None:
    from tables import slides

    ours = record("emoprobe", 1.0)
    x, y = record("x", 1.9, 2.0, 2.1, agrees=True), record("y", 1.0, agrees=True)
    kept = {"a": {"cpu": "one", "records": [ours, x, y]}, "b": {"cpu": "one", "records": [record("x", 9.0)]}}
    now = {"a": {"cpu": "one", "records": [ours, record("x", 1.5), record("y", 0.95), record("new", 0.1)]}}
    assert slides(now, kept).splitlines() == [
        "SLID  a: x took 2.00 of emoprobe's time, now 1.50",
        "2 ratios compared with those kept, 1 to look at",
    ]
    now["a"]["records"][1] = record("x", 1.2, 1.5, 1.95)
    assert slides(now, kept).startswith("SLID PERHAPS  a: x took")
    now["a"]["records"][1] = record("x", 2.0, agrees=False, same="1 of 2")
    assert slides(now, kept).startswith("DIFFERS  a: x: 1 of 2 tokens the same")
    assert slides(now, {}) == "nothing is kept to compare with"
    failed = [{"contestant": "emoprobe", "failed": "ValueError: x"}, {"contestant": "x", "failed": None}]
    told = slides({"a": {"cpu": "two", "records": failed}}, kept)
    assert told.startswith("FAILED  a: ValueError: x") and "on other hardware: one and two" in told


def test_first_is_who_is_not_beaten_by_the_same_result_in_all_rounds(modules: None) -> None:
    from tables import asked

    def told(*others: dict[str, Any]) -> str:
        about = {"cpu": "one", "seconds": 60.0, "load": 0.0}
        return asked({"steering: x": {**about, "records": [record("emoprobe", 1.0, 1.0), *others]}})

    assert "| 1 of 1 rows |" in told(
        record("x", 0.9, 1.1, agrees=True), record("untouched", 0.5, 0.6, agrees=False)
    )
    assert "| 1 of 1 rows |" in told(record("x", 0.7, 0.8, agrees=False))
    assert "| 0 of 1 rows |" in told(record("x", 0.8, 0.9, agrees=True))


def test_commands_are_timed_even_where_one_fails(modules: None) -> None:
    from starting import race

    lines = {"emoprobe": [sys.executable, "-c", "pass"], "x": [sys.executable, "-c", "1/0"]}
    found = race(lines, 2)
    assert found[0]["cpu_ratio"] == 1 and found[1]["failed"] == "ZeroDivisionError: division by zero"
    backwards = race({"emoprobe": lines["x"], "x": lines["emoprobe"]}, 2)
    assert [one["failed"] for one in backwards] == ["ZeroDivisionError: division by zero", None]
    assert not any("cpu_ratio" in one for one in backwards)


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
