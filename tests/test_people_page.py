"""What the page on people's words counts as above a control goes by what it prints."""

import importlib.util
from pathlib import Path
from typing import Any

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "people.py"


def people() -> Any:
    spec = importlib.util.spec_from_file_location("people", BENCHMARK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def score(concept: str, value: float, low: float, q: float) -> dict[str, Any]:
    row = {
        "concept": concept,
        "metric": "pearson_r",
        "chosen": "mean",
        "value": value,
        "low": 0.1,
        "high": 0.9,
    }
    row |= {
        "shuffled": 0.0,
        "shuffled_low": -0.1,
        "shuffled_high": 0.1,
        "n": 100,
        "groups": 10,
        "required": 0.5,
    }
    for control in ("layer0", "words"):
        row |= {control: 0.2, f"{control}_gain_low": low, f"{control}_gain_high": 0.5, f"{control}_q": q}
    return row


def test_a_score_is_above_a_control_only_if_its_interval_is_too() -> None:
    rows = [
        score("a", 0.6, 0.1, 0.01),
        score("b", 0.6, -0.003, 0.04),
        score("c", 0.6, 0.1, 0.06),
        score("d", 0.4, 0.1, 0.01),
    ]
    exam = {"exam": "first way", "tasks": [{"scores": rows}]}
    page = people()
    assert "Of 4 rs, 2 are above layer 0, 2 above words, 2 above both" in "\n".join(page._exam(exam))
    said = "\n".join(
        page.asked_for([exam, {**exam, "exam": "second way"}, {"exam": "not asked", "tasks": []}])
    )
    assert "tried in 2 ways" in said and "- first way: a; not b, c, d." in said and "not asked" not in said
