"""The plan on the page of scaling is what its own formulas give."""

import json
import re
from math import ceil, log2
from pathlib import Path

import pytest

from emoprobe.probes.text_moments import SHARES

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "scaling.md"
ROW = re.compile(r"^\| `(\w+)` \| .+ \| `(.+?)` \| ([\d.,e]+) \|$", re.MULTILINE)


def recomputed(page: str) -> dict[str, tuple[float, str]]:
    """Return for each name what its formula gives, and what is shown."""
    names: dict[str, float] = {}
    found = {}
    for name, formula, shown in ROW.findall(page):
        names[name] = eval(formula, {"__builtins__": {}, "ceil": ceil}, names)
        found[name] = names[name], shown
    return found


def agrees(value: float, shown: str) -> bool:
    """Whether a number is right to the last digit that is shown."""
    mantissa, _, power = shown.replace(",", "").partition("e")
    unit = 10.0 ** (int(power or 0) - len(mantissa.partition(".")[2]))
    return abs(value - float(mantissa) * 10.0 ** int(power or 0)) <= 0.5001 * unit


def test_every_number_is_what_its_formula_gives() -> None:
    found = recomputed(PAGE.read_text("utf-8"))
    assert len(found) == PAGE.read_text("utf-8").count("\n| `") > 30
    for name, (value, shown) in found.items():
        assert agrees(value, shown), f"{name}: {value} is shown as {shown}"


@pytest.mark.parametrize(
    ("value", "shown", "right"), [(98.31, "98.3", True), (98.31, "98.4", False), (2826.0, "2,826", True)]
)
def test_digits_are_compared(value: float, shown: str, right: bool) -> None:
    assert agrees(value, shown) is right


def test_what_the_text_says_beside_the_tables() -> None:
    names = {name: value for name, (value, _) in recomputed(PAGE.read_text("utf-8")).items()}
    assert round(names["work"] / 1e12 / 3600) == 15  # hours on a CPU of 1 TFLOP/s
    attention = 4 * names["layers"] * names["d"] * 512
    assert round(100 * attention / (2 * names["parameters"])) == 1  # percent
    assert 0.2 < names["by_token"] / names["reserved"] < names["by_token"] / names["hours"] < 0.5
    assert (
        names["shares"] == SHARES and 0.9 < names["part"] / names["worth"] < 1.1
    )  # "here it is all the same"
    assert log2(names["shares"]) == 7  # sums that the tree keeps


def test_exponents_are_those_of_the_record() -> None:
    record = json.loads((ROOT / "benchmarks" / "scaling.json").read_text("utf-8"))
    page = PAGE.read_text("utf-8")
    for one in (one for part in record["series"].values() for one in part):
        first, last = one["points"][0]["at"], one["points"][-1]["at"]
        shown = [one["exponents"][cost] for cost in ("cpu", "memory")]
        cells = " | ".join(f"{each['exponent']:.2f} ± {each['error']:.2f}" for each in shown)
        row = rf"\| {re.escape(one['what'])} \| [\w, ]+, {first:,} … {last:,} \| {re.escape(cells)} \|"
        assert re.search(row, page), one["what"]
