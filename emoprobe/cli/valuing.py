"""Valuations: learn one, and compare it with a probed one."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from emoprobe.cli import parsing
from emoprobe.cli.options import (
    Columns,
    Corpus,
    CorpusOption,
    Data,
    Device,
    DryRun,
    DType,
    Json,
    Limit,
    Model,
    Ranges,
    Seed,
    Some,
    Written,
    checked,
    choice,
)
from emoprobe.cli.showing import show_cost, tell_of, write_json
from emoprobe.records import check_probes, check_recorded, check_valuation


def learn(
    model: Model,
    probes: Annotated[
        str,
        typer.Argument(
            help="A probe set, of the hub too, or a valuation, to start from.", callback=checked(check_probes)
        ),
    ],
    output: Written,
    corpus: Corpus = "bundled",
    dimensions: Some = None,
    objective: Annotated[
        str,
        choice("What is learned from: next_token, annotations or both.", "next_token", "annotations", "both"),
    ] = "both",
    steps: Annotated[int, typer.Option(min=1, help="Steps of training, of 16 texts each.")] = 200,
    folder: Data = None,
    columns: Columns = None,
    ranges: Ranges = None,
    limit: Limit = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: DType = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Learn a valuation and its λ from texts, the model frozen.

    W, b and λ are trained through the model's own attention, starting at the probes and, where none was learned before, at
    λ = 0, which is the untouched model. A fifth of the texts' groups is held out, to say what it does to them; whether random
    valuations would do the same, and what has become of the probes, says `emoprobe compare`.

    While it is learned, what there is of it lies beside the output, in OUTPUT.checkpoint; the same command, broken off and
    given again, goes on from there. That file goes when the valuation is written.
    """
    named = parsing.split(dimensions, "--dimensions")
    check_recorded(probes, named or ())
    from emoprobe.artefacts import only_writer
    from emoprobe.cli import typed
    from emoprobe.valattn import learn_valuation, learning_history

    start, loaded = typed.valuation(probes, named)
    texts = typed.corpus(corpus, folder, columns, ranges, limit, seed)
    live = typed.model(model, device, dtype)
    if loaded is not None:
        loaded.check_model(live)
    if dry_run:
        from emoprobe.study.cost import learn_cost

        show_cost(learn_cost(live, texts, start.weight.numel(), steps), as_json)
        return
    options: dict[str, Any] = {"objective": objective, "steps": steps, "seed": seed}
    kept = output.with_name(f"{output.name}.checkpoint")
    # The processes of `accelerate launch` write together; the first one answers for them.
    with only_writer(output) if os.environ.get("RANK", "0") == "0" else nullcontext():
        tell_of(kept)
        learned = learn_valuation(live, texts, start, checkpoint=kept, **options)
        learned.save(output)
        kept.unlink(missing_ok=True)  # another process of `accelerate launch` may have been first
    about = ("held_out_texts", "held_out_nll_untouched", "held_out_nll_learned")
    count, before, after = (learned.metadata[name] for name in about)
    history = learning_history(learned)
    if as_json:
        held_out = {name: learned.metadata[name] for name in about}
        write_json(valuation=output, dimensions=learned.dimensions, **held_out, history=history)
        return
    typer.echo(repr(learned))
    reached = history[history.returned]
    blocks = ", ".join(
        f"{lam:+.3f} (block {block})" for block, lam in zip(reached.layer, reached.strength, strict=True)
    )
    typer.echo(f"λ: {blocks}")
    typer.echo(f"NLL of {count} held-out texts: {after:.4f} nats per token, untouched {before:.4f}")
    typer.echo(f"written: {output}")


def compare(
    model: Model,
    probed: Annotated[
        str,
        typer.Argument(help="A valuation, or a probe set to make one of.", callback=checked(check_probes)),
    ],
    learned: Annotated[
        Path,
        typer.Argument(
            help="A learned valuation, as `emoprobe learn` writes it.", callback=checked(check_valuation)
        ),
    ],
    corpus: CorpusOption = "bundled",
    folder: Data = None,
    columns: Columns = None,
    ranges: Ranges = None,
    limit: Annotated[int, typer.Option(min=2, help="Use at most so many texts.")] = 200,
    seed: Seed = 0,
    device: Device = None,
    dtype: DType = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Compare a probed with a learned valuation, best on texts that neither was fitted on."""
    from emoprobe.cli import typed
    from emoprobe.valattn import Valuation, compare_valuations

    second = Valuation.load(learned)
    first, _ = typed.valuation(probed, list(second.dimensions))
    texts = typed.corpus(corpus, folder, columns, ranges, limit, seed)
    live = typed.model(model, device, dtype)
    if dry_run:
        from emoprobe.study.cost import compare_cost

        show_cost(compare_cost(live, texts), as_json)
        return
    found = compare_valuations(live, first, second, texts, limit=limit, seed=seed)
    if as_json:
        about = (
            "name",
            "texts",
            "groups",
            "alignment",
            "overlap",
            "annotation",
            "nll",
            "emotional",
            "strengths",
            "attention",
        )
        write_json(verdict=found.verdict(), **{part: getattr(found, part) for part in about})
    else:
        typer.echo(repr(found))
