"""How results show themselves in a notebook, and how what is shown is written to a file.

A result says, draws and tabulates (`report()` or its `repr`, `plot()`, `frame`), and `shown` makes HTML of the three: all text
escaped, pictures inline, nothing loaded from anywhere, readable on white and on
black. This file knows nothing of what is shown.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Protocol

import pandas as pd
from matplotlib.figure import Figure

from emoprobe import drawing
from emoprobe.artefacts import write_bytes
from emoprobe.errors import InputError

ROWS = 24
"""Rows of a table that are shown; all are in the frame."""
PAGE = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><meta name="viewport" '
    'content="width=device-width"><style>:root {{ color-scheme: light dark }} body {{ font: 15px/1.5 sans-serif; '
    "margin: 2em }} td, th {{ padding: 0 .6em; text-align: right }}</style></head><body>{body}</body></html>"
)


class Shown(Protocol):
    """What shows itself in a notebook."""

    def plot(self) -> Figure: ...

    def _repr_html_(self) -> str: ...


def shown(*parts: str | Figure | pd.DataFrame) -> str:
    """Return HTML of text, figures and tables, one below the other; the first line of text says what the figures show."""
    said = next((part for part in parts if isinstance(part, str)), "").splitlines()
    return "".join(_html(part, said[0] if said else "") for part in parts)


def _html(part: str | Figure | pd.DataFrame, what: str) -> str:
    if isinstance(part, str):
        return "".join(f"<p>{escape(line)}</p>" for line in part.splitlines())
    if isinstance(part, Figure):
        return drawing.inline(drawing.svg(part), what)
    named = not isinstance(part.index, pd.RangeIndex)
    table = part.head(ROWS).to_html(index=named, border=0, float_format="{:.3g}".format, na_rep="")
    more = len(part) - ROWS
    return table + (f"<p><small>… and {more} rows more</small></p>" if more > 0 else "")


def export(result: Shown, path: str | Path) -> Path:
    """Write what a result shows to a file: `.html`, one page as in a notebook, or `.svg` or `.png`, its figure.

    Tables are pandas frames, with `to_csv` and others of their own. Raises `InputError` for another ending.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending == ".html":
        page = PAGE.format(title=escape(repr(result).splitlines()[0]), body=result._repr_html_())
        return write_bytes(path, page.encode())
    if ending == ".svg":
        return write_bytes(path, drawing.svg(result.plot()).encode())
    if ending == ".png":
        return write_bytes(path, drawing.png(result.plot()))
    raise InputError(f'"{path}": give a file that ends in .html, .svg or .png; .frame.to_csv() writes tables')
