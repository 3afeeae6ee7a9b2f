"""Malformed input of every kind is refused in one line, or read right: no traceback, no hang, no wrong answer."""

from pathlib import Path

import pytest
from malformed import Case, Clean, Place, cases, judge

EVERY = cases()
FIRST = {case.name.split("/")[0]: case for case in reversed(EVERY)}
QUICK = list({case.name: case for case in (*FIRST.values(), *EVERY[4::16])}.values())
"""The first of each reader, and one in sixteen."""


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Clean:
    return Clean(tmp_path_factory.mktemp("clean"))


def test_there_are_enough_and_of_every_reader() -> None:
    assert len(EVERY) >= 900
    assert len(FIRST) >= 14


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_some_of_each(case: Case, clean: Clean, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    judge(case, Place(clean, folder))


@pytest.mark.slow
def test_all(clean: Clean, tmp_path: Path) -> None:
    wrong = []
    for number, case in enumerate(EVERY):
        folder = tmp_path / str(number) / "in"
        folder.mkdir(parents=True)
        try:
            judge(case, Place(clean, folder))
        except AssertionError as error:
            wrong.append(str(error))
    assert not wrong, "\n\n".join(wrong)
