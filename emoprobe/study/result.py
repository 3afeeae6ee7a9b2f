"""What an experiment leaves behind: a question, how it was asked, numbers, a picture, and what they come to.

A `Result` is a value. It knows nothing of how it was got; the run folder keeps it, the report shows it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

import pandas as pd

from emoprobe import drawing
from emoprobe.errors import InputError
from emoprobe.notebook import shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure


OUTCOMES = {1: "Shown", 0: "Not shown", -1: "The opposite is shown", None: ""}
"""What a result's sign says; where there is none, the verdict itself says why."""
PARTLY = "Partly shown"
SENTENCE = re.compile(r"(?<![A-Z]\.)(?<=[.?!])\s+(?=[^\Wa-z\d]|[“\"])")
"""Where one sentence ends and the next begins; after an initial none does."""


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """Hold the outcome of one experiment.

    `question` is one sentence, `method` two lines; `finding` is the number that answers it with its interval, `controls` the
    range that judges it, and `verdict` says in words what both come to. Its first sentence is the answer, and where `sign` is
    None it says why there is none. `table` holds everything that was measured. `alt` says what the figure shows to those who
    cannot see it. `checks` are what must hold for the numbers to be trusted: name -> whether it did; empty where there is
    nothing to pass. `svg` is the figure as it is kept.
    """

    name: str
    title: str
    question: str
    method: str
    table: pd.DataFrame
    finding: str
    controls: str
    verdict: str
    checks: Mapping[str, bool] = field(default_factory=dict)
    figure: Figure | None = None
    alt: str = ""
    svg: str = ""
    remarks: tuple[str, ...] = ()
    """Warnings that came up on the way."""
    sign: int | None = None
    """1 where all that was asked is shown, beyond all controls; -1 where its opposite is; 0 where neither; None where it was
    not asked, or nobody said."""
    parts: Mapping[str, bool] = field(default_factory=dict)
    """What the question asks part by part: part -> whether it is shown; empty where it asks one thing."""
    published: str = ""
    """What was published of the same experiment on another model, with its source; empty where nothing was."""

    def __post_init__(self) -> None:
        if self.figure is not None and not self.svg:
            object.__setattr__(self, "svg", drawing.svg(self.figure))

    @property
    def passed(self) -> bool:
        """Whether all checks held."""
        return all(self.checks.values())

    @property
    def answer(self) -> str:
        """The first sentence of the verdict."""
        return SENTENCE.split(self.verdict, maxsplit=1)[0]

    @property
    def outcome(self) -> str:
        """How the question is answered: one of OUTCOMES, or PARTLY where some of its parts are shown and others are not."""
        return PARTLY if self.sign == 0 and any(self.parts.values()) else OUTCOMES[self.sign]

    @property
    def in_parts(self) -> str:
        """Which parts are shown and which are not, where it is partly shown; empty elsewhere."""
        if self.outcome != PARTLY:
            return ""
        shown, missed = (
            "; ".join(part for part, held in self.parts.items() if held is is_shown)
            for is_shown in (True, False)
        )
        return f"Shown: {shown}. Not shown: {missed}."

    @property
    def frame(self) -> pd.DataFrame:
        """The table."""
        return self.table

    def plot(self) -> Figure:
        """Return the figure. Raises `InputError` where there is none, or where its SVG alone was kept in a run folder."""
        if self.figure is None:
            kept = "its figure is kept as .svg" if self.svg else "nothing was drawn"
            raise InputError(f'the result "{self.name}" cannot be drawn: {kept}')
        return self.figure

    def __repr__(self) -> str:
        failed = [name for name, held in self.checks.items() if not held]
        return f"<Result {self.name}: {self.finding}" + (f"; FAILED: {'; '.join(failed)}>" if failed else ">")

    def _repr_html_(self) -> str:
        checks = [f"{'✓' if held else '✗'} {name}" for name, held in self.checks.items()]
        published = [f"Published: {self.published}"] if self.published else []
        return (
            f"<h3>{escape(self.title)}</h3>"
            + shown(f"{self.question}\n{self.method}")
            + (drawing.inline(self.svg, self.alt or self.title) if self.svg else "")
            + shown("\n".join([self.verdict, *published, *checks]), self.table)
        )
