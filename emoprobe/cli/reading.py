"""Probes and what they read: fit, trace, explore; and what a model is: info."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from emoprobe.cli import parsing
from emoprobe.cli.completing import DIMENSIONS, EMOTIONS, listed
from emoprobe.cli.options import (
    Columns,
    Corpus,
    Data,
    Device,
    DryRun,
    DType,
    Engine,
    Json,
    LayersOption,
    Limit,
    Model,
    Output,
    Probes,
    Ranges,
    Seed,
    Some,
    Workers,
    Written,
    checked,
    choice,
)
from emoprobe.cli.showing import show_cost, show_trace, tell_of, write_json
from emoprobe.errors import InputError
from emoprobe.extras import check_explorer
from emoprobe.records import check_probe_set, check_recorded


def fit(
    model: Model,
    corpus: Corpus,
    output: Written,
    concepts: Annotated[
        str | None,
        typer.Option(
            help="Some of the corpus's labels and dimensions: valence,arousal.",
            show_default="all",
            autocompletion=listed(*DIMENSIONS, *EMOTIONS),
        ),
    ] = None,
    estimator: Annotated[
        str,
        choice("auto, mean_difference, ridge or logistic.", "auto", "mean_difference", "ridge", "logistic"),
    ] = "auto",
    layers: LayersOption = "all",
    folder: Data = None,
    columns: Columns = None,
    ranges: Ranges = None,
    folds: Annotated[int, typer.Option(min=2, help="Folds of the cross-validation.")] = 5,
    limit: Limit = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: DType = None,
    engine: Engine = "here",
    workers: Workers = 2,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Fit probes for the labels and dimensions of a corpus.

    While the texts are read, their vectors lie in a folder beside the output, OUTPUT.activations; the same command, broken off
    and given again, goes on there. The folder goes when the probes are written.
    """
    import shutil

    from emoprobe.artefacts import only_writer
    from emoprobe.cli import typed
    from emoprobe.probes import fit_probes

    texts = typed.corpus(corpus, folder, columns, ranges, limit, seed)
    if not texts.concepts:
        raise InputError(
            f"{texts.name}: no column is read as labels or as a dimension; say which is, for example "
            "--columns labels=COLUMN or --columns valence=COLUMN"
        )
    live = typed.model(model, device, dtype)
    if dry_run:
        from emoprobe.study.cost import fit_cost

        show_cost(fit_cost(live, texts), as_json)
        return
    kept = output.with_name(f"{output.name}.activations")
    options: dict[str, Any] = {"estimator": estimator, "concepts": parsing.split(concepts), "folds": folds}
    with only_writer(output), typed.engine(engine, workers, model, device, dtype) as shared:
        tell_of(kept)
        probes = fit_probes(
            live, texts, parsing.layers(layers), workers=shared, seed=seed, keep=kept, **options
        )
        probes.save(output)
        shutil.rmtree(kept)
    if as_json:
        write_json(probes=output, scores=probes.scores, confounds=probes.confounds)
        return
    typer.echo(probes.report())
    typer.echo(f"written: {output}")


def trace(
    model: Model,
    probes: Probes,
    text: Annotated[str, typer.Argument(help="The text to read; - for standard input.")],
    concepts: Some = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Layers to read at.", show_default="each concept's best", callback=checked(parsing.layers)
        ),
    ] = None,
    output: Output = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Read probes out at every token of a text.

    A terminal shows as many concepts as its width holds, those that lie furthest from the mean token of the probes' corpus; a
    file or another program gets them all, each token on one line.
    """
    chosen = parsing.split(concepts)
    check_recorded(probes, chosen or ())
    text = parsing.words(text)
    from functools import partial

    from emoprobe.artefacts import write_bytes
    from emoprobe.cli import typed
    from emoprobe.probes import load_probes
    from emoprobe.probes import trace as traced

    loaded = load_probes(probes)
    read = partial(
        traced,
        typed.model(model, device),
        loaded,
        text,
        concepts=chosen,
        layers=None if layers is None else parsing.layers(layers),
    )
    found = read()
    if output is not None:
        write_bytes(output, found.frame.to_csv(index=False).encode())
    if as_json:
        write_json(text=text, trace=found.frame)
        return
    show_trace(found, lambda: read(kind="z"))
    if output is not None:
        typer.echo(f"written: {output}")


def explore(
    model: Model = "bundled",
    probes: Annotated[
        Path | None,
        typer.Argument(
            help="A probe set, as `emoprobe fit` writes it.",
            show_default="fitted on the bundled corpus, once",
            callback=checked(check_probe_set),
        ),
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Where the page is.", show_default="a free one")
    ] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
    device: Device = None,
    dtype: DType = None,
    as_json: Json = False,
) -> None:
    """Explore a model on a page of this machine.

    Type a text and see what probes read token by token and layer by layer, standard beside valuation attention, and what the
    model writes as λ and steering strength change. The page is for this machine alone, and nothing that is typed is logged.
    With --json its address, in which a secret token lets whoever has it in, is printed as soon as the page is there.
    """
    check_explorer()
    from emoprobe.cli import typed
    from emoprobe.explorer import explore as explored

    live = typed.model(model, device, dtype)
    running = explored(live, probes, port=port, browser=browser, wait=not as_json)
    if as_json:
        write_json(address=running.address)
        running.until_interrupted()


def info(model: Model = "bundled", device: Device = None, dtype: DType = None, as_json: Json = False) -> None:
    """Say what a model is made of, what can be done with it, and why not the rest."""
    from emoprobe.cli import typed

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
    if as_json:
        write_json(info=[{"what": what, "found": found} for what, found in rows])
        return
    for what, found in rows:
        typer.echo(f"{what:<20} {found}")
