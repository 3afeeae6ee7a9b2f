"""Progress: how far, and how long the rest will take; nothing unless wanted; in a notebook without ipywidgets."""

import io
import re
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from rich.console import Console

from emoprobe import bars as module
from emoprobe.bars import bars
from emoprobe.progress import track


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, force_jupyter=False, width=88, color_system=None)


def test_a_bar_says_how_much_is_done_and_how_long_the_rest_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    console, now = terminal(), [0.0]
    bar = bars(True, console=console)
    monkeypatch.setattr(bar, "get_time", lambda: now[0])
    task = bar.add_task("reading", total=10)
    with bar:
        for _ in range(5):
            bar.advance(task)
            now[0] += 100.0  # far longer than the 30 s over which rich would estimate speed
        bar.refresh()
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert "reading" in written and "50%" in written and "0:08:20" in written


def test_what_is_not_wanted_is_not_shown_and_items_come_through(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(iter("abc"), "reading", False, total=3)) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


def test_a_notebook_shows_bars_without_ipywidgets_and_keeps_none() -> None:
    cells = [
        "from emoprobe.progress import track\nimport emoprobe.bars as p\np.BETWEEN = 0",
        "items = track(range(4), 'reading', True)\nnext(items), next(items), next(items);",
        "done = list(track(range(4), 'all of it', True))",
        "for _ in track(range(2), 'outer', True):\n    for _ in track(range(2), 'inner', True): pass",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(book, timeout=60, kernel_name="python3").execute()
    half, whole, nested = (texts(cell.outputs) for cell in book.cells[1:])
    assert re.match(r"reading .* 50% 0:00:0\d", half[0]) and len(half) == 1
    assert whole == [""] and nested == ["", "", ""]


def texts(outputs: list[Any]) -> list[str]:
    """Return what displays hold; nothing else is to be there, warnings least of all."""
    assert all(output.output_type == "display_data" for output in outputs), outputs
    return [output.data["text/plain"].strip() for output in outputs]


def test_a_notebook_is_known_by_its_console(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(bars(True, console=terminal())) is not module._InNotebook
    assert type(bars(True, console=Console(force_jupyter=True))) is module._InNotebook
    assert type(bars(False, console=Console(force_jupyter=True))) is not module._InNotebook
