"""From results to one self-contained HTML page: no network, no script, light and dark, good on paper.

Everything that is written comes from somewhere else (concepts, texts, paths), so all of it is escaped; figures are taken in as
SVG only if they hold nothing that could run. The page's look is in `page.html`; this file knows nothing of experiments.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from emoprobe import drawing

ROWS = 2000
"""Rows of a table that are shown; all are in the run folder."""
ACTIVE = re.compile(
    r"<\s*(script|foreignobject|iframe|object|embed)\b"  # what runs
    r"|<[^>]*\son\w+\s*="  # what runs when something happens
    r"|<[^>]*href\s*=\s*[\"']?(?!#|data:image/)[^\"'#\s]"  # what lies elsewhere
    r"|<[^>]*url\((?!#)",
    re.IGNORECASE,
)
PASSIVE = re.compile(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", re.DOTALL)
"""What the page has no use for; a style sheet inside a figure would hold for all of the page."""
VARIABLES = {
    drawing.INK: "currentColor",
    drawing.BLUE: "var(--blue)",
    drawing.RED: "var(--red)",
    drawing.GREEN: "var(--green)",
    drawing.PINK: "var(--pink)",
    drawing.ORANGE: "var(--orange)",
    drawing.SKY: "var(--sky)",
    drawing.CONTROL: "var(--control)",
}
"""What the page replaces the colours of figures by, so that they suit its ground."""


KINDS = {
    "study": {
        "name": "a study",
        "about": "What can be read of emotion in this model, what it does when it is fed back, and how much of either is more "
        "than chance",
    },
    "concepts": {
        "name": "emotion concepts",
        "about": "How this model represents emotion concepts, by the experiments of “Emotion Concepts” (Sofroniew et al. 2026)",
    },
    "claims": {
        "name": "claims of valuation attention",
        "about": "What becomes of the claims of valuation attention’s source (J. Marín 2024) in this model",
    },
}
"""What kinds of studies there are, by what their manifests say of their experiments."""
UNBROKEN = re.compile(r" (?=%)|(?<=\b[pqrs]) (?=[=<] \d)|(?<=\b[pqrs] [=<]) (?=\d)")
"""Spaces at which no line may end."""
P_VALUE = re.compile(r"[pq](_\w+)?")
"""Names of columns that hold p values."""


class Reported(Protocol):
    """What the page wants to know of a result."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def question(self) -> str: ...
    @property
    def method(self) -> str: ...
    @property
    def table(self) -> pd.DataFrame: ...
    @property
    def finding(self) -> str: ...
    @property
    def controls(self) -> str: ...
    @property
    def verdict(self) -> str: ...
    @property
    def checks(self) -> Mapping[str, bool]: ...
    @property
    def svg(self) -> str: ...
    @property
    def alt(self) -> str: ...
    @property
    def remarks(self) -> Sequence[str]: ...
    @property
    def published(self) -> str: ...
    @property
    def outcome(self) -> str: ...
    @property
    def in_parts(self) -> str: ...
    @property
    def answer(self) -> str: ...


def render(results: Sequence[Reported], manifest: Mapping[str, Any]) -> str:
    """Return the page for the results of a study, in their order, and its record."""
    held = [check for result in results for check in result.checks.values()]
    done = {result.name for result in results}
    return _page().render(
        results=results,
        manifest=manifest,
        kind=KINDS[manifest["study"].get("experiments", "study")],
        rows=ROWS,
        checks=len(held),
        failed=len(held) - sum(held),
        missing=missing(manifest, done),
        seconds=sum(step["seconds"] for step in manifest.get("steps", {}).values()),
        numeric=lambda column: pd.api.types.is_numeric_dtype(column),
    )


@cache
def _page() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(figure=inline_figure, cell=cell, duration=duration, prose=prose, loose=loose)
    return environment.get_template("page.html")


def inline_figure(svg: str, name: str) -> Markup:
    """Return an SVG file's content as part of a page: as wide as its place, in the page's colours, with ids of its own.

    A figure that holds anything that could run is left out.
    """
    start = svg.find("<svg")
    if start < 0 or ACTIVE.search(svg):
        return Markup("<p class=quiet>This figure is not shown: its file is no plain SVG.</p>")
    svg = PASSIVE.sub("", svg[start:])
    svg = re.sub(r'(<svg[^>]*?)\swidth="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?)\sheight="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace("<svg", f'<svg role="img" aria-labelledby="caption-{escape(name)}"', 1)
    # Several figures share the page, and each has its figure_1.
    prefix = re.sub(r"\W", "-", name)
    svg = re.sub(r'(\bid=")', rf"\1{prefix}-", svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\1{prefix}-", svg)
    for colour, variable in VARIABLES.items():
        svg = re.sub(re.escape(colour), variable, svg, flags=re.IGNORECASE)
    # ACTIVE was looked for above, the name is escaped, and the page's policy runs nothing.
    return Markup(svg)  # nosec B704


def missing(manifest: Mapping[str, Any], done: Container[str]) -> tuple[str, ...]:
    """Return the names of the experiments that are still to be done, where the record says which there are."""
    return tuple(name for name in manifest.get("planned", ()) if name not in done)


def prose(text: str) -> str:
    """Set apostrophes as printers do, and keep what belongs to a number by it: 95 %, p = 0.003."""
    return UNBROKEN.sub("\N{NO-BREAK SPACE}", text.replace("'", "’"))


def loose(text: str) -> str:
    """Let a line end between a number and its interval: in a narrow column the two do not fit side by side."""
    return text.replace("\N{NO-BREAK SPACE}[", " [")


def cell(value: object, column: object = "") -> str:
    """Write a table's cell: four significant digits, a true minus, and nothing for what is missing; p as far as 0.001."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and P_VALUE.fullmatch(str(column)):
        return "< 0.001" if value < 0.001 else f"{value:.3f}"
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", "−")
    return str(value)


def duration(seconds: float) -> str:
    """Write a duration as people do."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
