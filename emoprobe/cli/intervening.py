"""Interventions and what they do: steer, inject, sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from emoprobe.cli import parsing
from emoprobe.cli.completing import concept as complete_concept
from emoprobe.cli.completing import concepts as complete_concepts
from emoprobe.cli.options import (
    Device,
    DryRun,
    DType,
    Engine,
    Json,
    LayersOption,
    Model,
    NewTokens,
    Output,
    Probes,
    Prompt,
    Seed,
    Workers,
    checked,
    choice,
    finite,
)
from emoprobe.cli.showing import show_cost, side_by_side, tell_of, write_json
from emoprobe.errors import InputError
from emoprobe.places import check_writable
from emoprobe.records import check_probes, check_recorded


def check_figure(path: Path) -> None:
    """Raise `InputError` for a file of another kind, and for one that cannot be written."""
    check_writable(path)
    if path.suffix.lower() not in (".svg", ".png"):
        raise InputError(f'"{path}" is neither an SVG nor a PNG file: give a name that ends in .svg or .png')


def steer(
    model: Model,
    probes: Probes,
    concept: Annotated[
        str, typer.Argument(help="A concept of the probe set.", autocompletion=complete_concept)
    ],
    prompt: Prompt,
    strength: Annotated[
        float,
        typer.Option(
            help="Fraction of the mean residual norm; below 0, away from it.", callback=checked(finite)
        ),
    ] = 0.05,
    layers: LayersOption = "0.66",
    positions: Annotated[
        str,
        choice("all, prompt, generated or last.", "all", "prompt", "generated", "last"),
    ] = "all",
    max_new_tokens: NewTokens = 40,
    device: Device = None,
    dtype: DType = None,
    as_json: Json = False,
) -> None:
    """Continue a prompt with and without a concept's direction, each time with the likeliest token."""
    check_recorded(probes, [concept])
    prompt = parsing.words(prompt)
    from emoprobe.cli import typed
    from emoprobe.probes import load_probes
    from emoprobe.steering import steer as steered

    loaded = load_probes(probes)
    direction = loaded[concept]
    live = typed.model(model, device, dtype)
    loaded.check_model(live)
    with steered(live, direction, strength, parsing.layers(layers), positions):
        after = live.generate(prompt, max_new_tokens=max_new_tokens, do_sample=False)
    before = live.generate(prompt, max_new_tokens=max_new_tokens, do_sample=False)
    if as_json:
        write_json(prompt=prompt, untouched=before, steered=after, concept=concept, strength=strength)
    else:
        side_by_side(prompt, before, f"{concept} {strength:+g}", after)


def inject(
    model: Model,
    probes: Annotated[
        str,
        typer.Argument(help="A probe set, of the hub too, or a valuation.", callback=checked(check_probes)),
    ],
    prompt: Prompt,
    strength: Annotated[
        float | None, typer.Option(help="λ.", show_default="learned, else 0.5", callback=checked(finite))
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Attention blocks to inject into, from 0.",
            show_default="all",
            callback=checked(parsing.layers),
        ),
    ] = None,
    concepts: Annotated[
        str | None,
        typer.Option(help="Dimensions to value by.", show_default="all", autocompletion=complete_concepts),
    ] = None,
    toward: Annotated[
        str | None,
        typer.Option(
            help="Attend to one point, valence=1,arousal=-0.5, each from -1 to 1.",
            show_default="to what is like oneself",
            callback=checked(parsing.point),
        ),
    ] = None,
    max_new_tokens: NewTokens = 40,
    device: Device = None,
    dtype: DType = None,
    as_json: Json = False,
) -> None:
    """Continue a prompt with and without a valuation in attention, each time with the likeliest token."""
    named = parsing.split(concepts)
    check_recorded(probes, named or ())
    prompt = parsing.words(prompt)
    from emoprobe.cli import typed
    from emoprobe.valattn import inject as injected

    valuation, loaded = typed.valuation(probes, named)
    lam = 0.5 if strength is None and valuation.strength is None else strength
    live = typed.model(model, device, dtype)
    if loaded is not None:
        loaded.check_model(live)
    blocks = None if layers is None else parsing.layers(layers)
    with injected(live, valuation, lam, blocks, toward=parsing.point(toward)):
        after = live.generate(prompt, max_new_tokens=max_new_tokens, do_sample=False)
    before = live.generate(prompt, max_new_tokens=max_new_tokens, do_sample=False)
    if as_json:
        write_json(prompt=prompt, untouched=before, injected=after, strength=lam)
    else:
        side_by_side(prompt, before, "λ learned" if lam is None else f"λ = {lam:g}", after)


def sweep(
    model: Model,
    probes: Annotated[
        str,
        typer.Argument(
            help="A probe set, of the hub too, or a valuation without CONCEPT.",
            callback=checked(check_probes),
        ),
    ],
    concept: Annotated[
        str | None,
        typer.Argument(
            help="Steer with this concept; without it, inject.",
            show_default="none: inject",
            autocompletion=complete_concept,
        ),
    ] = None,
    strengths: Annotated[
        str | None, typer.Option(help="A list of s or λ.", show_default="−0.1 … 0.1 for s, −1 … 1 for λ")
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Residual streams for s, blocks for λ.",
            show_default="0.66 for s, all for λ",
            callback=checked(parsing.layers),
        ),
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(
            help="Texts to measure on, one a line.",
            show_default="built-in passages",
            callback=checked(parsing.lines),
        ),
    ] = None,
    controls: Annotated[int, typer.Option(min=0, help="Random directions beside it.")] = 5,
    output: Output = None,
    figure: Annotated[
        Path | None,
        typer.Option(
            help="Write the picture to an SVG or PNG file.",
            show_default="none",
            callback=checked(check_figure),
        ),
    ] = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: DType = None,
    engine: Engine = "here",
    workers: Workers = 2,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Measure the effect of growing strength, beside random controls.

    With --output, finished runs lie in a folder beside it, OUTPUT.runs, until it is written; the same command, broken off and
    given again, goes on there.
    """
    check_recorded(probes, [] if concept is None else [concept])
    usual = "-1,-0.5,0,0.5,1" if concept is None else "-0.1,-0.05,0,0.05,0.1"
    doses = parsing.numbers("--strengths=", strengths or usual, usual)
    import shutil

    from emoprobe.artefacts import write_bytes
    from emoprobe.cli import typed
    from emoprobe.models.reference import PASSAGES
    from emoprobe.notebook import export
    from emoprobe.probes import load_probes
    from emoprobe.steering import kl, nll, read_out
    from emoprobe.steering import sweep as swept

    subject: Any
    loaded: Any
    if concept is None:
        subject, loaded = typed.valuation(probes, None)
    else:
        loaded = load_probes(probes)
        subject = loaded[concept]
    lines = list(PASSAGES) if texts is None else parsing.lines(texts)
    live = typed.model(model, device, dtype)
    measures = [nll(lines), kl(lines)]
    if loaded is not None:
        loaded.check_model(live)
    if loaded is not None and live.n_layers in loaded.layers:
        names = list(loaded.concepts[:3]) if concept is None else [concept]
        measures += [read_out(loaded, name, live.n_layers) for name in names]
    if dry_run:
        from emoprobe.study.cost import sweep_cost

        show_cost(sweep_cost(live, lines, doses, controls, len(measures) - 2), as_json)
        return
    where = None if layers is None else parsing.layers(layers)
    kept = None if output is None else output.with_name(f"{output.name}.runs")
    if kept is not None:
        tell_of(kept)
    options: dict[str, Any] = {"layers": where, "controls": controls, "seed": seed, "out": kept}
    with typed.engine(engine, workers, model, device, dtype) as shared:
        found = swept(live, subject, doses, lines, measures, workers=shared, **options)
    if output is not None and kept is not None:
        write_bytes(output, found.frame.to_csv(index=False).encode())
        shutil.rmtree(kept)
    if figure is not None:
        export(found, figure)
    written = [path for path in (output, figure) if path is not None]
    if as_json:
        write_json(subject=found.subject, model=found.model, sweep=found.frame, written=written)
        return
    typer.echo(repr(found))
    for path in written:
        typer.echo(f"written: {path}")
