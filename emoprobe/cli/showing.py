"""Ways to show what was found: one JSON document, a trace in a terminal, two continuations."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from emoprobe.probes import Trace
    from emoprobe.study.cost import Cost

_UNBOUNDED = 10_000  # columns: wider than any table


def write_json(**parts: object) -> None:
    """Print one JSON document.

    A frame becomes a list with an object for each row (`orient="records"` of pandas); a number that is missing or not finite
    becomes null.
    """
    typer.echo(json.dumps(_plain(parts), indent=2, allow_nan=False))


def _plain(part: Any) -> Any:
    """Return what JSON can hold."""
    if hasattr(part, "to_json"):
        return json.loads(part.to_json(orient="records", double_precision=15))
    if isinstance(part, Mapping):
        return {str(name): _plain(value) for name, value in part.items()}
    if isinstance(part, list | tuple):
        return [_plain(value) for value in part]
    if isinstance(part, Path):
        return str(part)
    return None if isinstance(part, float) and not math.isfinite(part) else part


def show_cost(cost: Cost, as_json: bool) -> None:
    """Print what a job will cost."""
    if as_json:
        sizes = ("name", "device", "seconds", "weights", "peak", "disk", "tried")
        write_json(**{part: getattr(cost, part) for part in sizes}, steps=cost.frame)
    else:
        typer.echo(repr(cost))


def tell_of(kept: Path) -> None:
    """Say on standard error that work goes on from what an earlier call has left, if it does."""
    if kept.exists():
        typer.echo(f"going on from {kept}", err=True)


def side_by_side(prompt: str, before: object, name: str, after: object) -> None:
    """Print a prompt's continuations by the untouched model and under an intervention."""
    same = " (no difference)" if after == before else ""
    typer.echo(f"untouched\n  {prompt}{before}\n\n{name}{same}\n  {prompt}{after}")


def show_trace(found: Trace, standardised: Callable[[], Trace]) -> None:
    """Print a trace: in a terminal the concepts that fit, the furthest from their mean token first to stay; else all."""
    from rich.console import Console

    console, shown = Console(), list(found.centres)
    table = _trace_table(found, shown)
    if not console.is_terminal:
        Console(width=_UNBOUNDED).print(table)
        return
    wide = console.options.update(width=_UNBOUNDED)
    if console.measure(table, options=wide).maximum > console.width:
        scores = standardised()
        counted = scores.frame[scores.frame.position >= scores.start]
        away = counted.groupby(["concept", "layer"]).value.mean().abs().to_dict()
        while len(shown) > 1 and console.measure(table, options=wide).maximum > console.width:
            shown.remove(min(shown, key=lambda pair: away.get(pair, 0.0)))
            table = _trace_table(found, shown)
    console.print(table)
    if len(shown) < len(found.centres):
        console.print(
            f"{len(shown)} of {len(found.centres)} columns, those furthest from the mean token of the probes' corpus; "
            "--concepts chooses others, --output writes all",
            style="dim",
            highlight=False,
        )


def _trace_table(found: Trace, pairs: Sequence[tuple[str, int]]) -> Table:
    """Set out one line per token and one column per concept and layer; none is ever cut or wrapped."""
    from rich.table import Column, Table
    from rich.text import Text

    names = [Text(f"{concept} @{layer}") for concept, layer in pairs]
    table = Table("token", *(Column(name, no_wrap=True) for name in names), box=None)
    for _, rows in found.coloured().groupby("position", sort=True):
        records: list[dict[Any, Any]] = rows.to_dict("records")
        by_pair = {(row["concept"], row["layer"]): row for row in records}
        # The sum turns -0.0 into 0.0.
        cells = [
            Text(f"{round(by_pair[p]['value'], 2) + 0.0:.2f}", style=_shade(by_pair[p]["colour"]))
            for p in pairs
        ]
        table.add_row(Text(repr(rows.token.iloc[0].replace(" ", "␣"))[1:-1]), *cells)
    return table


def _shade(colour: float) -> str:
    # Too faint a colour is none.
    return (
        ""
        if abs(colour) < 0.15
        else f"{'#D55E00' if colour > 0 else '#0072B2'}{' bold' if abs(colour) > 0.6 else ''}"
    )
