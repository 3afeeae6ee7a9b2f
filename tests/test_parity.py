"""Every family against its own hidden states and an independent computation; see `parity` for what is checked."""

import pytest
from families import FAMILIES, REFUSED
from parity import CHECKS, PAGE, check_refused


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", FAMILIES)
def test_parity(name: str, check: str) -> None:
    CHECKS[check](name)


@pytest.mark.parametrize(
    "name, reason",
    [
        ("Mamba", "block 0 of Mamba is of type linear_attention"),
        ("Qwen3-Next", "block 0 of Qwen3-Next is of type linear_attention"),
        ("T5", "an encoder and a decoder"),
        ("Gemma 3n (text)", "not one residual stream"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(name: str, reason: str) -> None:
    assert reason in check_refused(name)


def test_the_page_says_of_every_family_what_holds() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    for name in FAMILIES:
        (row,) = [line for line in rows if line.startswith(f"| {name} |")]
        assert row.count("| yes ") == len(CHECKS) - FAMILIES[name].encoder
    for name in REFUSED:
        assert any(line.startswith(f"| {name} | – | – | refused: ") for line in rows)
