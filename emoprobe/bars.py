"""Bars that show the progress of long work, with the time that remains, in terminals and in notebooks.

Rich draws it. In a notebook rich would want ipywidgets; here a bar is a display that IPython itself updates, so that nothing
more is needed, and it is gone when the work is done.
"""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import Progress, ProgressColumn

REMEMBERED = 24 * 3600.0
"""Seconds over which speed is estimated: rich's own 30 would leave the time open where a step takes longer."""
BETWEEN = 0.2
"""Seconds between two updates in a notebook, at least."""


def bars(wanted: bool, *columns: str | ProgressColumn, console: Console | None = None) -> Progress:
    """Return what shows several bars, on standard output or on another console, and removes them in the end."""
    place = console or Console()
    seen = wanted and (place.is_terminal or place.is_jupyter)  # into a file rich would write an empty line
    kind = _InNotebook if seen and place.is_jupyter else Progress
    return kind(*columns, console=console, transient=True, disable=not seen, speed_estimate_period=REMEMBERED)


class _InNotebook(Progress):
    """Bars as plain text in one display of a notebook, which changes with them."""

    def __init__(self, *columns: str | ProgressColumn, console: Console | None, **options: Any) -> None:
        # The width is any that lines of output have.
        plain = Console(force_jupyter=False, color_system=None, width=88)
        super().__init__(*columns, console=plain, auto_refresh=False, **options)
        self._display: Any = None
        self._last = 0.0

    def start(self) -> None:
        from IPython.display import display

        self._display = display(self._text(), raw=True, display_id=True)

    def stop(self) -> None:
        if self._display is not None:
            self._display.update({"text/plain": ""}, raw=True)

    def refresh(self) -> None:
        now = time.monotonic()
        if self._display is not None and (now - self._last >= BETWEEN or self.finished):
            self._display.update(self._text(), raw=True)
            self._last = now

    def update(self, *arguments: Any, **options: Any) -> None:
        super().update(*arguments, **options)
        self.refresh()  # no thread does it here

    def _text(self) -> dict[str, str]:
        with self.console.capture() as written:
            self.console.print(self.get_renderable())
        return {"text/plain": written.get()}
