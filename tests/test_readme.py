"""What the README tells people to type works as it stands."""

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_python_in_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(block, str(README), "exec"), names)
    printed = capsys.readouterr().out
    for shown in ("All labels: accuracy", "valence: Pearson r", "read_out", "row cosine", "learned"):
        assert shown in printed
    model = names["model"]
    assert not model.interventions  # type: ignore[attr-defined]
