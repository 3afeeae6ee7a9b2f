"""The signs on the page of the experiments are what these said themselves, and not read off their words."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from emoprobe.study.concepts.evidence import Evidence, in_common
from emoprobe.study.concepts.negation import resolved
from emoprobe.study.folder import RunFolder
from emoprobe.study.result import Result

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "concepts.py"


def result(sign: int | None) -> Result:
    words = "Before the reply: the own emotion stands out; by rank below the embedding."
    return Result("one", "t", "q?", "m", pd.DataFrame({"a": [1]}), "f", "c", words, sign=sign)


@pytest.mark.parametrize(("sign", "mark"), [(1, "●"), (0, "○"), (-1, "▽"), (None, "?")])
def test_signs_are_kept_and_shown(tmp_path: Path, sign: int | None, mark: str) -> None:
    spec = importlib.util.spec_from_file_location("concepts", BENCHMARK)
    assert spec is not None and spec.loader is not None
    page: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    folder = RunFolder.start(tmp_path / "run", {}, {})
    folder.step("one", lambda: result(sign))
    loaded = folder.load("one")
    assert loaded.sign == sign
    assert page.mark({name: getattr(loaded, name) for name in page.FIELDS}) == mark
    assert page.mark({"finding": "not asked"}) == "–" and page.mark({"finding": "of an older run"}) == "?"


def test_an_answer_has_the_sign_that_all_its_parts_have() -> None:
    assert [in_common(signs) for signs in ((1, 1), (-1, -1), (1, 0), (1, -1))] == [1, -1, 0, 0]


def test_a_negation_is_resolved_only_beyond_what_length_does() -> None:
    read = Evidence(1.0, 0.8, 1.2, np.array([-0.1, 0.0, 0.1]))
    unread = Evidence(0.0, -0.1, 0.1, np.array([-0.1, 0.0, 0.1]))
    kept, half, gone = (pd.Series({"low": low, "high": low + 0.2}) for low in (0.8, 0.4, 0.0))
    unknown = pd.Series({"low": np.nan, "high": np.nan})
    assert resolved(read, gone, kept) == 1 and resolved(read, kept, kept) == -1
    for evidence, negated, longer in (
        (read, half, kept),
        (read, gone, gone),
        (read, gone, unknown),
        (unread, gone, kept),
    ):
        assert resolved(evidence, negated, longer) == 0
