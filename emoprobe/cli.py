"""The command line: the package's words, one command each.

Nothing heavy is imported before a command is known to run, so that help is there at once. `main` turns what can go wrong into
one line and an exit status: 0 done, 1 a study whose checks failed, 2 bad input, 70 a fault of this package, 130 interrupted.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emoprobe.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from emoprobe.corpora import Corpus
    from emoprobe.probes import Trace
    from emoprobe.study import Study

FAILED, BAD_INPUT, FAULT, INTERRUPTED = 1, 2, 70, 130
RESUMED = ("study", "concepts", "claims", "stories")
"""Commands that go on where they were stopped."""
# Newer releases of typer carry click inside themselves, and older ones do not.
_BadUsage: type[Any] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")

_UNBOUNDED = 10_000  # columns: wider than any table
_OPTIONS: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^text (\d+)\b", lambda found: f"text {int(found[1]) + 1}"),  # people count from 1
    (r"\branges=\{'(.+?)': \(lowest, highest\)\}", r"--ranges \1=LOWEST:HIGHEST"),
    (r"\bleave one out, as in columns=\{'words': None\}", "remove one of them from the file"),
    (r"\bcolumns=\{'(.+?)': \.\.\.\}", r"--columns \1=COLUMN"),
    (r"\bfolder=", "--folder"),
    (r"\b(estimator|folds|layers|positions|strengths?)=", r"--\1 "),
    (r", a boolean mask or character spans", ""),
    (r"\bfit_probes\b", "`emoprobe fit`"),
    (
        r"\bmake it with learn_valuation, or set its strength",
        "`emoprobe study` writes one, valuation-learned.safetensors",
    ),
)
"""What messages say of Python, as regular expressions, and what a command line has in its place."""

app = typer.Typer(
    name="emoprobe",
    help="Find functional emotions in language models: probes with controls, valuation attention, steering, reports.",
    epilog="Exit status: 0 done, 1 a study whose checks failed, 2 bad input, 130 interrupted.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[str, typer.Argument(help='A hub name, a folder, or "bundled".', show_default=False)]
Probes = Annotated[Path, typer.Argument(help="A probe set, as `emoprobe fit` writes it.", show_default=False)]
Prompt = Annotated[str, typer.Argument(help="The text to go on from.", show_default=False)]
Device = Annotated[
    str | None, typer.Option(help="Where the model runs, for example cuda.", show_default="cpu")
]
DType = Annotated[
    str | None, typer.Option(help="Type of the weights, for example bfloat16.", show_default="the model's")
]
Seed = Annotated[int, typer.Option(help="Everything that is drawn is drawn with it.")]
LayersOption = Annotated[
    str,
    typer.Option(
        help='Residual streams (0 is the embedding): an index, a fraction, a list 2,4, a slice 2:5, or "all".'
    ),
]
Columns = Annotated[
    str | None,
    typer.Option(
        help="Which column is what: text=sentence,labels=emotion,valence=V,group=document.",
        show_default=False,
    ),
]
Ranges = Annotated[
    str | None,
    typer.Option(help="Lowest and highest annotation: valence=1:9,arousal=1:9.", show_default=False),
]
Data = Annotated[
    Path | None, typer.Option(help="The folder that holds a published corpus.", show_default="download it")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Use at most so many texts.", show_default=False)]
StudyModel = Annotated[str, typer.Argument(help='A hub name, a folder, or "bundled".')]
StudyCorpus = Annotated[
    str, typer.Option(help='The texts to fit probes on: a corpus by name, a file, or "bundled".')
]
StudyLimit = Annotated[
    int | None, typer.Option(min=1, help="Use at most so many texts.", show_default="3000")
]
Restart = Annotated[bool, typer.Option("--restart", help="Do again what is done already.")]
NewTokens = Annotated[int, typer.Option(min=1, help="Tokens to write.")]


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Say which version this is.", is_eager=True)
    ] = False,
) -> None:
    if version:
        from emoprobe import __version__

        typer.echo(f"emoprobe {__version__}")
        raise typer.Exit


# Commands ------------------------------------------------------------------------------------------------------------


@app.command(epilog="Example: emoprobe study gpt2 --corpus emobank --out runs/gpt2")
def study(
    context: typer.Context,
    model: StudyModel = "bundled",
    corpus: StudyCorpus = "bundled",
    folder: Data = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the record goes.", show_default="runs/MODEL-CORPUS")
    ] = None,
    limit: StudyLimit = None,
    seed: Seed = 0,
    columns: Columns = None,
    ranges: Ranges = None,
    device: Device = None,
    dtype: DType = None,
    restart: Restart = False,
) -> None:
    """Run every experiment and write a report.

    Probes are fitted and validated, made into a valuation, injected, steered with, learned anew and compared. Without arguments
    it runs on the bundled model and corpus, in some minutes and without a network.
    """
    from emoprobe.study import run_study

    texts = _texts(corpus, folder, columns, ranges, seed)
    _reported(_asked(run_study, context, model, texts, out, limit, seed, restart, device, dtype))


@app.command(epilog="Example: emoprobe concepts gpt2 --corpus goemotions --out runs/gpt2-concepts")
def concepts(
    context: typer.Context,
    model: StudyModel = "bundled",
    corpus: StudyCorpus = "bundled",
    folder: Data = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the record goes.", show_default="runs/MODEL-CORPUS-concepts")
    ] = None,
    limit: StudyLimit = None,
    seed: Seed = 0,
    columns: Columns = None,
    ranges: Ranges = None,
    base: Annotated[
        str | None, typer.Option(help="The model that MODEL was tuned from.", show_default="not compared")
    ] = None,
    norms: Annotated[
        Path | None,
        typer.Option(help="People's ratings of words, a file.", show_default="those of the texts"),
    ] = None,
    device: Device = None,
    dtype: DType = None,
    restart: Restart = False,
) -> None:
    """Run the representation experiments of "Emotion Concepts" and write a report.

    How emotions lie to each other, implicit scenarios, numeric intensity, user against reply, persistence, negation, persons
    and speakers, hidden emotions, states, where a read-out comes from, what tuning shifts: each beside its controls and what
    was published of it (Sofroniew et al. 2026, arXiv 2604.07729).
    """
    from functools import partial

    from emoprobe import typed
    from emoprobe.study import run_concepts

    texts = _texts(corpus, folder, columns, ranges, seed)
    run = partial(run_concepts, base=None if base is None else typed.model(base, device, dtype), norms=norms)
    _reported(_asked(run, context, model, texts, out, limit, seed, restart, device, dtype))


@app.command(epilog="Example: emoprobe claims gpt2 --corpus emobank --out runs/gpt2-claims")
def claims(
    context: typer.Context,
    model: StudyModel = "bundled",
    corpus: StudyCorpus = "bundled",
    folder: Data = None,
    norms: Annotated[
        Path | None,
        typer.Option(help="A file of human word norms.", show_default="a list of emotion words"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the record goes.", show_default="runs/MODEL-CORPUS-claims")
    ] = None,
    limit: StudyLimit = None,
    seed: Seed = 0,
    columns: Columns = None,
    ranges: Ranges = None,
    device: Device = None,
    dtype: DType = None,
    restart: Restart = False,
) -> None:
    """Put the claims of valuation attention's source to the test and write a report.

    Word magnitudes vary more; turning words gain and emotional ones lose; emotional context is carried far; the cost is small:
    each beside random valuations and the other sign of λ, with a verdict (J. Marín 2024).
    """
    from functools import partial

    from emoprobe.study import run_claims

    texts = _texts(corpus, folder, columns, ranges, seed)
    run = partial(run_claims, norms=norms)
    _reported(_asked(run, context, model, texts, out, limit, seed, restart, device, dtype))


@app.command(
    epilog="Example: emoprobe fit gpt2 reviews.csv --columns text=review,valence=stars --ranges valence=1:5 -o v.safetensors"
)
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
    """Fit probes for the labels and dimensions of a corpus."""
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
    probes = fit_probes(live, texts, typed.layers(layers), estimator=estimator, folds=folds, seed=seed)
    probes.save(output)
    typer.echo(probes.report())
    typer.echo(f"written: {output}")


@app.command(epilog='Example: emoprobe trace gpt2 vad.safetensors "I am so happy that you came!"')
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


@app.command(
    epilog='Example: emoprobe steer gpt2 vad.safetensors valence "My flight leaves in ten minutes and" --strength 0.08'
)
def steer(
    model: Model,
    probes: Probes,
    concept: Annotated[str, typer.Argument(help="A concept of the probe set.", show_default=False)],
    prompt: Prompt,
    strength: Annotated[
        float, typer.Option(help="Fraction of the mean residual norm; below 0, away from it.")
    ] = 0.05,
    layers: LayersOption = "0.66",
    positions: Annotated[str, typer.Option(help="all, prompt, generated or last.")] = "all",
    max_new_tokens: NewTokens = 40,
    device: Device = None,
    dtype: DType = None,
) -> None:
    """Continue a prompt with and without a concept's direction, each time with the likeliest token."""
    from emoprobe import typed
    from emoprobe.probes import load_probes
    from emoprobe.steering import steer as steered

    prompt = typed.words(prompt)
    loaded = load_probes(probes)
    direction = loaded[concept]
    live = typed.model(model, device, dtype)
    loaded.check_model(live)
    with steered(live, direction, strength, typed.layers(layers), positions):
        after = live.generate(prompt, max_new_tokens=max_new_tokens, do_sample=False)
    before = live.generate(prompt, max_new_tokens=max_new_tokens, do_sample=False)
    _side_by_side(prompt, before, f"{concept} {strength:+g}", after)


@app.command(
    epilog='Example: emoprobe inject gpt2 vad.safetensors "The brilliantly terrible movie" --strength 0.5'
)
def inject(
    model: Model,
    probes: Annotated[Path, typer.Argument(help="A probe set or a valuation.", show_default=False)],
    prompt: Prompt,
    strength: Annotated[float | None, typer.Option(help="λ.", show_default="learned, else 0.5")] = None,
    layers: Annotated[
        str | None, typer.Option(help="Attention blocks to inject into, from 0.", show_default="all")
    ] = None,
    concepts: Annotated[str | None, typer.Option(help="Dimensions to value by.", show_default="all")] = None,
    max_new_tokens: NewTokens = 40,
    device: Device = None,
    dtype: DType = None,
) -> None:
    """Continue a prompt with and without a valuation in attention, each time with the likeliest token."""
    from emoprobe import typed
    from emoprobe.valattn import inject as injected

    prompt = typed.words(prompt)
    valuation, loaded = typed.valuation(probes, typed.split(concepts))
    lam = 0.5 if strength is None and valuation.strength is None else strength
    live = typed.model(model, device, dtype)
    if loaded is not None:
        loaded.check_model(live)
    with injected(live, valuation, lam, None if layers is None else typed.layers(layers)):
        after = live.generate(prompt, max_new_tokens=max_new_tokens, do_sample=False)
    before = live.generate(prompt, max_new_tokens=max_new_tokens, do_sample=False)
    _side_by_side(prompt, before, "λ learned" if lam is None else f"λ = {lam:g}", after)


@app.command(epilog="Example: emoprobe sweep gpt2 vad.safetensors valence --strengths=-0.1,-0.05,0,0.05,0.1")
def sweep(
    model: Model,
    probes: Annotated[
        Path, typer.Argument(help="A probe set, or a valuation without CONCEPT.", show_default=False)
    ],
    concept: Annotated[
        str | None, typer.Argument(help="Steer with this concept; without it, inject.", show_default=False)
    ] = None,
    strengths: Annotated[
        str | None, typer.Option(help="A list of s or λ.", show_default="−0.1 … 0.1 for s, −1 … 1 for λ")
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(help="Residual streams for s, blocks for λ.", show_default="0.66 for s, all for λ"),
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="Texts to measure on, one a line.", show_default="built-in passages")
    ] = None,
    controls: Annotated[int, typer.Option(min=0, help="Random directions beside it.")] = 5,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write every number to a CSV file.")
    ] = None,
    figure: Annotated[Path | None, typer.Option(help="Write the picture to an SVG or PNG file.")] = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: DType = None,
) -> None:
    """Measure the effect of growing strength, beside random controls."""
    from emoprobe import drawing, typed
    from emoprobe.artefacts import write_bytes
    from emoprobe.probes import load_probes
    from emoprobe.steering import kl, nll, read_out
    from emoprobe.steering import sweep as swept

    for path in (output, figure):
        if path is not None:
            typed.writable(path)
    if figure is not None and figure.suffix.lower() not in (".svg", ".png"):
        raise InputError(
            f'"{figure}" is neither an SVG nor a PNG file: give a name that ends in .svg or .png'
        )
    subject: Any
    loaded: Any
    if concept is None:
        subject, loaded = typed.valuation(probes, None)
    else:
        loaded = load_probes(probes)
        subject = loaded[concept]
    doses = typed.numbers(strengths or ("-1,-0.5,0,0.5,1" if concept is None else "-0.1,-0.05,0,0.05,0.1"))
    lines = typed.lines(texts)
    live = typed.model(model, device, dtype)
    measures = [nll(lines), kl(lines)]
    if loaded is not None:
        loaded.check_model(live)
    if loaded is not None and live.n_layers in loaded.layers:
        names = list(loaded.concepts[:3]) if concept is None else [concept]
        measures += [read_out(loaded, name, live.n_layers) for name in names]
    where = None if layers is None else typed.layers(layers)
    found = swept(live, subject, doses, lines, measures, layers=where, controls=controls, seed=seed)
    typer.echo(repr(found))
    if output is not None:
        write_bytes(output, found.frame.to_csv(index=False).encode())
    if figure is not None:
        picture = found.plot()
        write_bytes(
            figure, drawing.png(picture) if figure.suffix.lower() == ".png" else drawing.svg(picture).encode()
        )
    for path in (output, figure):
        if path is not None:
            typer.echo(f"written: {path}")


@app.command(
    epilog="Example: emoprobe compare gpt2 valuation-probed.safetensors valuation-learned.safetensors --corpus emobank"
)
def compare(
    model: Model,
    probed: Annotated[
        Path, typer.Argument(help="A valuation, or a probe set to make one of.", show_default=False)
    ],
    learned: Annotated[Path, typer.Argument(help="A learned valuation, with its λ.", show_default=False)],
    corpus: Annotated[
        str, typer.Option(help="Texts to compare on; best ones that neither was fitted on.")
    ] = "bundled",
    folder: Data = None,
    columns: Columns = None,
    ranges: Ranges = None,
    limit: Annotated[int, typer.Option(min=2, help="Use at most so many texts.")] = 200,
    seed: Seed = 0,
    device: Device = None,
    dtype: DType = None,
) -> None:
    """Compare a probed with a learned valuation."""
    from emoprobe import typed
    from emoprobe.valattn import compare_valuations

    second, _ = typed.valuation(learned, None)
    first, _ = typed.valuation(probed, list(second.dimensions))
    texts = typed.corpus(corpus, folder, columns, ranges, limit, seed)
    typer.echo(
        repr(
            compare_valuations(
                typed.model(model, device, dtype), first, second, texts, limit=limit, seed=seed
            )
        )
    )


@app.command(
    epilog="Example: emoprobe stories stories.jsonl --emotions afraid,calm,proud --model Qwen/Qwen3-0.6B --per-topic 2"
)
def stories(
    output: Annotated[Path, typer.Argument(help="The file to write, .jsonl.", show_default=False)],
    emotions: Annotated[
        str | None, typer.Option(help="What is to be felt: afraid,calm,proud.", show_default=False)
    ] = None,
    kind: Annotated[
        str,
        typer.Option(
            help="stories, neutral, dialogues (of two speakers) or deflection (the first is hidden)."
        ),
    ] = "stories",
    model: Annotated[
        str, typer.Option(help="Who writes: a hub name, a folder, or a name at --url.")
    ] = "bundled",
    url: Annotated[
        str | None, typer.Option(help="An OpenAI-compatible address, up to /v1.", show_default="a model here")
    ] = None,
    topics: Annotated[
        Path | None, typer.Option(help="Topics, one a line.", show_default="80 of the package's")
    ] = None,
    per_topic: Annotated[int, typer.Option(min=1, help="Texts for each topic and emotion.")] = 2,
    per_request: Annotated[int, typer.Option(min=1, help="Texts to ask for at once.")] = 1,
    max_new_tokens: NewTokens = 400,
    seed: Seed = 0,
    device: Device = None,
    dtype: DType = None,
) -> None:
    """Let a language model write texts for emotions, and keep those that do not name them and are not twice there.

    What it says is logged beside the file as it comes; the same command goes on where it was stopped. A key for --url is read
    from the environment variable OPENAI_API_KEY. Models that follow instructions write best.
    """
    from emoprobe import typed
    from emoprobe.corpora.stories import EndpointWriter, ModelWriter, Writer, write_stories

    typed.writable(output)
    writer: Writer
    if url is not None:
        key = os.environ.get("OPENAI_API_KEY")
        writer = EndpointWriter(url, model, key=key, max_new_tokens=max_new_tokens)
    else:
        writer = ModelWriter(typed.model(model, device, dtype), max_new_tokens=max_new_tokens)
    written = write_stories(
        writer,
        output,
        kind=kind,
        emotions=typed.split(emotions) or (),
        about=None if topics is None else typed.lines(topics),
        per_topic=per_topic,
        per_request=per_request,
        seed=seed,
    )
    typer.echo(written.report().to_string(index=False, float_format=lambda value: f"{value:.2f}"))
    typer.echo(f"written: {output} ({len(written.kept)} of {len(written.frame)} texts kept)")


@app.command(epilog="Example: emoprobe report runs/bundled")
def report(run: Annotated[Path, typer.Argument(help="The folder of a study.", show_default=False)]) -> None:
    """Write a study's report.html anew."""
    from emoprobe.study import load_study

    typer.echo(f"report: {load_study(run).write_report()}")


@app.command(epilog="Example: emoprobe info bundled")
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


# Showing and running --------------------------------------------------------------------------------------------------


def _texts(
    corpus: str, folder: Path | None, columns: str | None, ranges: str | None, seed: int
) -> str | Corpus:
    """Return a corpus, or its name where nothing more is said of it."""
    from emoprobe import typed

    plain = folder is None and columns is None and ranges is None
    return corpus if plain else typed.corpus(corpus, folder, columns, ranges, None, seed)


def _asked(
    run: Callable[..., Study],
    context: typer.Context,
    model: str,
    texts: str | Corpus,
    out: Path | None,
    limit: int | None,
    seed: int,
    restart: bool,
    device: str | None,
    dtype: str | None,
) -> Study:
    """Run all experiments of a kind as they were asked for."""
    from emoprobe import typed

    return run(
        typed.model(model, device, dtype),
        texts,
        out,
        limit=limit,
        seed=seed,
        resume=not restart,
        command=shlex.join(["emoprobe", *context.obj]),
    )


def _reported(found: Study) -> None:
    """Say where the report is, and end with a status of its own where a check failed."""
    typer.echo(f"report: {found.folder / 'report.html'}")
    if not found.passed:
        failed = [f"{r.name}: {name}" for r in found.results for name, held in r.checks.items() if not held]
        typer.echo(f"emoprobe: {len(failed)} checks failed ({'; '.join(failed)})", err=True)
        raise typer.Exit(FAILED)


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


def _side_by_side(prompt: str, before: object, name: str, after: object) -> None:
    same = " (no difference)" if after == before else ""
    typer.echo(f"untouched\n  {prompt}{before}\n\n{name}{same}\n  {prompt}{after}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; what the user can mend is said in one line on stderr."""
    given = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    _quieten()
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            return _run(given)
        except _BadUsage as error:
            where = getattr(getattr(error, "ctx", None), "command_path", "emoprobe")
            return _refuse(f"{error.format_message().rstrip('.')}; see {where} --help")
        except InputError as error:
            return _refuse(_in_options(str(error)))
        except BrokenPipeError:  # whoever reads our output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except OSError as error:
            return _refuse(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
        except Exception:
            traceback.print_exc()
            sys.stderr.write(
                "emoprobe: this is a fault of emoprobe, not yours; please report it with what stands above\n"
            )
            return FAULT


def _run(given: list[str]) -> int:
    try:
        status = typer.main.get_command(app).main(given, "emoprobe", standalone_mode=False, obj=given)
    except (typer.Abort, KeyboardInterrupt):
        status = INTERRUPTED
    if status == INTERRUPTED:  # some releases of typer return it, others raise
        resumes = given[0] in RESUMED
        kept = "what is done is kept, and the same command resumes" if resumes else "nothing was written"
        sys.stderr.write(f"\nemoprobe: interrupted; {kept}\n")
    return status if isinstance(status, int) else 0


def _in_options(message: str) -> str:
    """Say what the package says of its Python arguments in the options of the command line."""
    for in_python, typed_in in _OPTIONS:
        message = re.sub(in_python, typed_in, message)
    return message


def _refuse(message: str) -> int:
    sys.stderr.write(f"emoprobe: {' '.join(message.split())}\n")
    return BAD_INPUT


def _show_warning(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
    if issubclass(category, UserWarning):
        sys.stderr.write(f"emoprobe: warning: {' '.join(str(message).split())}\n")


def _quieten() -> None:
    """Keep the bars and hints of the libraries below off the screen."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")


if __name__ == "__main__":
    sys.exit(main())
