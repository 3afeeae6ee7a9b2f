"""Texts that a language model writes: stories."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from emoprobe.cli.options import Device, DType, NewTokens, Seed


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
