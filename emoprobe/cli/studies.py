"""Whole experiments: study, concepts, claims; and their report."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emoprobe.cli.completing import models
from emoprobe.cli.options import (
    Columns,
    CorpusOption,
    Data,
    Device,
    DryRun,
    DType,
    Json,
    Model,
    Out,
    Ranges,
    Restart,
    Seed,
    StudyLimit,
    checked,
)
from emoprobe.cli.showing import show_cost, write_json
from emoprobe.files import check_texts
from emoprobe.places import check_model, check_study

if TYPE_CHECKING:
    from emoprobe.corpora import Corpus
    from emoprobe.study import Study

FAILED = 1
"""The exit status of a study whose checks failed."""


def study(
    context: typer.Context,
    model: Model = "bundled",
    corpus: CorpusOption = "bundled",
    folder: Data = None,
    out: Out = None,
    limit: StudyLimit = None,
    seed: Seed = 0,
    columns: Columns = None,
    ranges: Ranges = None,
    device: Device = None,
    dtype: DType = None,
    restart: Restart = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Run every experiment and write a report.

    Probes are fitted and validated, made into a valuation, injected, steered with, learned anew and compared. Without arguments
    it runs on the bundled model and corpus, in some minutes and without a network.
    """
    from emoprobe.study import run_study

    texts = _texts(corpus, folder, columns, ranges, seed)
    _conduct(
        run_study, "study", context, model, texts, out, limit, seed, restart, device, dtype, dry_run, as_json
    )


def concepts(
    context: typer.Context,
    model: Model = "bundled",
    corpus: CorpusOption = "bundled",
    folder: Data = None,
    out: Out = None,
    limit: StudyLimit = None,
    seed: Seed = 0,
    columns: Columns = None,
    ranges: Ranges = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="The model that MODEL was tuned from.",
            show_default="not compared",
            autocompletion=models,
            callback=checked(check_model),
        ),
    ] = None,
    norms: Annotated[
        Path | None,
        typer.Option(
            help="People's ratings of words, a file.",
            show_default="those of the texts",
            callback=checked(check_texts),
        ),
    ] = None,
    device: Device = None,
    dtype: DType = None,
    restart: Restart = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Run the representation experiments of "Emotion Concepts" and write a report.

    How emotions lie to each other, implicit scenarios, numeric intensity, user against reply, persistence, negation, persons
    and speakers, hidden emotions, states, where a read-out comes from, what tuning shifts: each beside its controls and what
    was published of it (Sofroniew et al. 2026, arXiv 2604.07729).
    """
    from functools import partial

    from emoprobe.cli import typed
    from emoprobe.study import run_concepts

    texts = _texts(corpus, folder, columns, ranges, seed)
    run = partial(run_concepts, base=None if base is None else typed.model(base, device, dtype), norms=norms)
    _conduct(
        run, "concepts", context, model, texts, out, limit, seed, restart, device, dtype, dry_run, as_json
    )


def claims(
    context: typer.Context,
    model: Model = "bundled",
    corpus: CorpusOption = "bundled",
    folder: Data = None,
    norms: Annotated[
        Path | None,
        typer.Option(
            help="A file of human word norms.",
            show_default="a list of emotion words",
            callback=checked(check_texts),
        ),
    ] = None,
    out: Out = None,
    limit: StudyLimit = None,
    seed: Seed = 0,
    columns: Columns = None,
    ranges: Ranges = None,
    device: Device = None,
    dtype: DType = None,
    restart: Restart = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Put the claims of valuation attention's source to the test and write a report.

    Word magnitudes vary more; turning words gain and emotional ones lose; emotional context is carried far; the cost is small:
    each beside random valuations and the other sign of λ, with a verdict (J. Marín 2024).
    """
    from functools import partial

    from emoprobe.study import run_claims

    texts = _texts(corpus, folder, columns, ranges, seed)
    run = partial(run_claims, norms=norms)
    _conduct(run, "claims", context, model, texts, out, limit, seed, restart, device, dtype, dry_run, as_json)


def report(
    run: Annotated[Path, typer.Argument(help="The folder of a study.", callback=checked(check_study))],
    as_json: Json = False,
) -> None:
    """Write a study's report.html anew."""
    from emoprobe.study import load_study

    found = load_study(run)
    found.write_report()
    _told(found, as_json)


def _texts(
    corpus: str, folder: Path | None, columns: str | None, ranges: str | None, seed: int
) -> str | Corpus:
    """Return a corpus, or its name where nothing more is said of it."""
    from emoprobe.cli import typed

    plain = folder is None and columns is None and ranges is None
    return corpus if plain else typed.corpus(corpus, folder, columns, ranges, None, seed)


def _conduct(
    run: Callable[..., Study],
    kind: str,
    context: typer.Context,
    model: str,
    texts: str | Corpus,
    out: Path | None,
    limit: int | None,
    seed: int,
    restart: bool,
    device: str | None,
    dtype: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Run all experiments of a kind as they were asked for, or say what that would cost.

    Ends with a status of its own where a check failed.
    """
    from emoprobe.cli import typed

    live = typed.model(model, device, dtype)
    if dry_run:
        from emoprobe.study.cost import study_cost
        from emoprobe.study.run import read_corpus

        corpus = read_corpus(texts, limit, seed) if isinstance(texts, str) else texts
        show_cost(study_cost(kind, live, corpus, limit, seed), as_json)
        return
    command = shlex.join(["emoprobe", *context.obj])
    found = run(live, texts, out, limit=limit, seed=seed, resume=not restart, command=command)
    _told(found, as_json)
    if not found.passed:
        failed = [f"{r.name}: {name}" for r in found.results for name, held in r.checks.items() if not held]
        typer.echo(f"emoprobe: {len(failed)} checks failed ({'; '.join(failed)})", err=True)
        raise typer.Exit(FAILED)


def _told(found: Study, as_json: bool) -> None:
    """Say where the report is, or all that was found; the tables are in the folder."""
    report = found.folder / "report.html"
    if not as_json:
        typer.echo(f"report: {report}")
        if found.missing:
            done, missing = len(found.results), found.missing
            typer.echo(
                f"unfinished: {done} of {done + len(missing)} experiments, missing {', '.join(missing)}"
            )
        return
    said = (
        "name",
        "title",
        "question",
        "finding",
        "controls",
        "verdict",
        "sign",
        "outcome",
        "parts",
        "checks",
        "remarks",
    )
    results = [
        {
            **{part: getattr(result, part) for part in said},
            "table": found.folder / "results" / f"{result.name}.parquet",
        }
        for result in found.results
    ]
    write_json(
        report=report,
        title=found.manifest.get("title"),
        passed=found.passed,
        missing=found.missing,
        results=results,
    )
