"""The arguments and options that several commands share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer

from emoprobe.cli import parsing
from emoprobe.cli.completing import among, concepts, corpora, models
from emoprobe.extras import check_ray
from emoprobe.places import check_corpus, check_folder, check_model, check_out, check_writable
from emoprobe.records import check_probe_set


def checked(check: Callable[[Any], None]) -> Callable[[typer.Context, Any], Any]:
    """Return what refuses a value that is not there, before a command begins and imports what is heavy."""

    def callback(context: typer.Context, given: Any) -> Any:
        if given is not None and not context.resilient_parsing:  # as while a shell completes
            check(given)
        return given

    return callback


def choice(
    help: str, *values: str, needs: Mapping[str, Callable[[], None]] = MappingProxyType({}), **said: Any
) -> Any:
    """Return an option that has one of these values, which it completes; another is refused before a command begins.

    `needs` has for some values what refuses them where they cannot be had.
    """

    def one_of(given: str) -> None:
        if given not in values:
            raise typer.BadParameter(f'"{given}" is not known: give {", ".join(values[:-1])} or {values[-1]}')
        if given in needs:
            needs[given]()

    return typer.Option(help=help, autocompletion=among(*values), callback=checked(one_of), **said)


def finite(given: float) -> None:
    """Refuse a number that is infinite or none."""
    if not math.isfinite(given):
        raise typer.BadParameter(f"{given} is not a finite number")


Model = Annotated[
    str,
    typer.Argument(
        help='A hub name, a folder, or "bundled".', autocompletion=models, callback=checked(check_model)
    ),
]
Probes = Annotated[
    str,
    typer.Argument(
        help="A probe set, as `emoprobe fit` writes it, or a repository of the hub that holds one.",
        callback=checked(check_probe_set),
    ),
]
Some = Annotated[
    str | None,
    typer.Option(help="Some of the concepts: valence,arousal.", show_default="all", autocompletion=concepts),
]
Corpus = Annotated[
    str,
    typer.Argument(
        help='A corpus by name, a file, or "bundled".', autocompletion=corpora, callback=checked(check_corpus)
    ),
]
CorpusOption = Annotated[
    str,
    typer.Option(
        help='The texts: a corpus by name, a file, or "bundled".',
        autocompletion=corpora,
        callback=checked(check_corpus),
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        help="Write every number to a CSV file.",
        show_default="none",
        callback=checked(check_writable),
    ),
]
Written = Annotated[
    Path, typer.Option("-o", "--output", help="The file to write.", callback=checked(check_writable))
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Where the record goes.",
        show_default="runs/MODEL-CORPUS; concepts and claims add their name",
        callback=checked(check_out),
    ),
]
Prompt = Annotated[str, typer.Argument(help="The text to go on from.", show_default=False)]
Device = Annotated[
    str | None, typer.Option(help="Where the model runs, for example cuda.", show_default="cpu")
]
DType = Annotated[
    str | None,
    choice(
        "Type of the weights, for example bfloat16.",
        "float32",
        "bfloat16",
        "float16",
        "float64",
        show_default="the model's",
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Everything that is drawn is drawn with it.")]
LayersOption = Annotated[
    str,
    typer.Option(
        help='Residual streams (0 is the embedding): an index, a fraction, a list 2,4, a slice 2:5, or "all".',
        callback=checked(parsing.layers),
    ),
]
Columns = Annotated[
    str | None,
    typer.Option(
        help="Which column is what: text=sentence,labels=emotion,valence=V,group=document.",
        show_default="as they are named",
        callback=checked(parsing.columns),
    ),
]
Ranges = Annotated[
    str | None,
    typer.Option(
        help="Lowest and highest annotation: valence=1:9,arousal=1:9.",
        show_default="valence −1 to 1; arousal, relevance and dominance 0 to 1",
        callback=checked(parsing.ranges),
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        help="The folder that holds a published corpus.",
        show_default="download it",
        callback=checked(check_folder),
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Use at most so many texts.", show_default="all")]
StudyLimit = Annotated[
    int | None, typer.Option(min=1, help="Use at most so many texts.", show_default="3000")
]
Restart = Annotated[bool, typer.Option("--restart", help="Do again what is done already.")]
NewTokens = Annotated[int, typer.Option(min=1, help="Tokens to write.")]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document: tables as lists of rows, missing numbers as null."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what it would cost here, and do nothing.")]
Engine = Annotated[
    str,
    choice(
        "here, or ray: share the work among processes, hosts and GPUs (emoprobe[ray]).",
        "here",
        "ray",
        needs={"ray": check_ray},
    ),
]
Workers = Annotated[int, typer.Option(min=1, help="Processes of --engine ray, a model in each.")]
