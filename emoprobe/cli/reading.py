"""Probes and what they read: fit, trace, explore; and what a model is: info."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emoprobe.cli.options import (
    Columns,
    Data,
    Device,
    DType,
    LayersOption,
    Limit,
    Model,
    Probes,
    Ranges,
    Seed,
)
from emoprobe.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from emoprobe.probes import Trace

_UNBOUNDED = 10_000  # columns: wider than any table


def fit(
    model: Model,
    corpus: Annotated[
        str, typer.Argument(help='A corpus by name, a file, or "bundled".', show_default=False)
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write.", show_default=False)],
    estimator: Annotated[str, typer.Option(help="auto, mean_difference, ridge or logistic.")] = "auto",
    layers: LayersOption = "all",
    folder: Data = None,
    columns: Columns = None,
    ranges: Ranges = None,
    folds: Annotated[int, typer.Option(min=2, help="Folds of the cross-validation.")] = 5,
    limit: Limit = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: DType = None,
) -> None:
    """Fit probes for the labels and dimensions of a corpus.

    While the texts are read, their vectors lie in a folder beside the output, OUTPUT.activations; the same command, broken off
    and given again, goes on there. The folder goes when the probes are written.
    """
    import shutil

    from emoprobe import typed
    from emoprobe.probes import fit_probes

    texts = typed.corpus(corpus, folder, columns, ranges, limit, seed)
    if not texts.concepts:
        raise InputError(
            f"{texts.name}: no column is read as labels or as a dimension; say which is, for example "
            "--columns labels=COLUMN or --columns valence=COLUMN"
        )
    typed.writable(output)
    live = typed.model(model, device, dtype)
    kept = output.with_name(f"{output.name}.activations")
    probes = fit_probes(
        live, texts, typed.layers(layers), estimator=estimator, folds=folds, seed=seed, keep=kept
    )
    probes.save(output)
    shutil.rmtree(kept)
    typer.echo(probes.report())
    typer.echo(f"written: {output}")


def trace(
    model: Model,
    probes: Probes,
    text: Annotated[str, typer.Argument(help="The text to read; - for standard input.", show_default=False)],
    concepts: Annotated[
        str | None, typer.Option(help="Some of the concepts: valence,arousal.", show_default="all")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Layers to read at.", show_default="each concept's best")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write every number to a CSV file.")
    ] = None,
    device: Device = None,
) -> None:
    """Read probes out at every token of a text.

    A terminal shows as many concepts as its width holds, those that lie furthest from the mean token of the probes' corpus; a
    file or another program gets them all, each token on one line.
    """
    from functools import partial

    from emoprobe import typed
    from emoprobe.artefacts import write_bytes
    from emoprobe.probes import load_probes
    from emoprobe.probes import trace as traced

    text = typed.words(text)
    if output is not None:
        typed.writable(output)
    loaded = load_probes(probes)
    read = partial(
        traced,
        typed.model(model, device),
        loaded,
        text,
        concepts=typed.split(concepts),
        layers=None if layers is None else typed.layers(layers),
    )
    found = read()
    if output is not None:
        write_bytes(output, found.frame.to_csv(index=False).encode())
    _show_trace(found, lambda: read(kind="z"))


def explore(
    model: Model = "bundled",
    probes: Annotated[
        Path | None,
        typer.Argument(
            help="A probe set, as `emoprobe fit` writes it.",
            show_default="fitted on the bundled corpus, once",
        ),
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Where the page is.", show_default="a free one")
    ] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
    device: Device = None,
    dtype: DType = None,
) -> None:
    """Explore a model on a page of this machine.

    Type a text and see what probes read token by token and layer by layer, standard beside valuation attention, and what the
    model writes as λ and steering strength change. The page is for this machine alone, and nothing that is typed is logged.
    """
    from emoprobe import typed
    from emoprobe.explorer import explore as explored
    from emoprobe.explorer.launch import check_installed

    check_installed()  # before a model is loaded
    explored(typed.model(model, device, dtype), probes, port=port, browser=browser)


def info(model: Model = "bundled", device: Device = None, dtype: DType = None) -> None:
    """Say what a model is made of, what can be done with it, and why not the rest."""
    from emoprobe import typed

    live = typed.model(model, device, dtype)
    weights = sum(weight.numel() for _, weight in live.named_weights())
    norms = ", ".join(f"{norm:.3g}" for norm in live.residual_norms().tolist())
    rows = [
        *live.info().itertuples(index=False, name=None),
        ("layers", f"0 (the embedding) to {live.n_layers}, the residual streams around the blocks"),
        ("residual norms", f"{norms} (layers 0 to {live.n_layers})"),
        ("parameters", f"{weights:,}"),
        ("fingerprint", live.fingerprint()),
    ]
    for what, found in rows:
        typer.echo(f"{what:<20} {found}")


def _show_trace(found: Trace, standardised: Callable[[], Trace]) -> None:
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
        cells = [Text(f"{by_pair[p]['value']:.2f}", style=_shade(by_pair[p]["colour"])) for p in pairs]
        table.add_row(Text(repr(rows.token.iloc[0].replace(" ", "␣"))[1:-1]), *cells)
    return table


def _shade(colour: float) -> str:
    # Too faint a colour is none.
    return (
        ""
        if abs(colour) < 0.15
        else f"{'#D55E00' if colour > 0 else '#0072B2'}{' bold' if abs(colour) > 0.6 else ''}"
    )
