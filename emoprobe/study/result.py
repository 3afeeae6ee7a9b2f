"""What an experiment leaves behind: a question, how it was asked, numbers, a picture, and what they come to.

A `Result` is a value. It knows nothing of how it was got; the run folder keeps it, the report shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

import pandas as pd

from emoprobe import drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """Hold the outcome of one experiment.

    `question` is one sentence, `method` two lines; `finding` is the number that answers it with its interval, `controls` the
    same number where nothing should be found, and `verdict` says in words what both come to. `table` holds everything that
    was measured. `alt` says what the figure shows to those who cannot see it. `checks` are what must hold for the numbers to
    be trusted: name -> whether it did; empty where there is nothing to pass. `svg` is the figure as it is kept.
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
    published: str = ""
    """What was published of the same experiment on another model, with its source; empty where nothing was."""

    def __post_init__(self) -> None:
        if self.figure is not None and not self.svg:
            object.__setattr__(self, "svg", drawing.svg(self.figure))

    @property
    def passed(self) -> bool:
        """Whether all checks held."""
        return all(self.checks.values())

    def __repr__(self) -> str:
        failed = [name for name, held in self.checks.items() if not held]
        return f"<Result {self.name}: {self.finding}" + (f"; FAILED: {'; '.join(failed)}>" if failed else ">")

    def _repr_html_(self) -> str:
        checks = "".join(
            f"<li>{'✓' if held else '✗'} {escape(name)}</li>" for name, held in self.checks.items()
        )
        table = self.table.head(12).round(4).to_html(index=False, border=0)
        more = (
            f"<p>… {len(self.table) - 12} more rows in <code>.table</code></p>"
            if len(self.table) > 12
            else ""
        )
        return (
            f"<h3>{escape(self.title)}</h3><p><em>{escape(self.question)}</em> {escape(self.method)}</p>"
            f"{self.svg[self.svg.find('<svg') :] if self.svg else ''}<p>{escape(self.verdict)}</p>"
            f"{self._published_html()}<ul>{checks}</ul>"
            f"{table}{more}"
        )

    def _published_html(self) -> str:
        return f"<p><small>Published: {escape(self.published)}</small></p>" if self.published else ""
