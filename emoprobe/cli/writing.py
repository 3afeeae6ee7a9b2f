"""Texts that a language model writes: stories."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emoprobe.cli import parsing
from emoprobe.cli.completing import emotions as complete_emotions
from emoprobe.cli.completing import models
from emoprobe.cli.options import Device, DryRun, DType, Json, NewTokens, Seed, checked, choice
from emoprobe.cli.showing import show_cost, write_json
from emoprobe.places import check_model, check_writable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emoprobe.corpora.stories import Writer
    from emoprobe.corpora.stories.prompts import Request


def stories(
    output: Annotated[
        Path,
        typer.Argument(
            help="The file to write, .jsonl.", show_default=False, callback=checked(check_writable)
        ),
    ],
    emotions: Annotated[
        str | None,
        typer.Option(
            help="What is to be felt: afraid,calm,proud.",
            show_default="none, for --kind neutral",
            autocompletion=complete_emotions,
        ),
    ] = None,
    kind: Annotated[
        str,
        choice(
            "stories, neutral, dialogues (of two speakers) or deflection (the first is hidden).",
            "stories",
            "neutral",
            "dialogues",
            "deflection",
        ),
    ] = "stories",
    model: Annotated[
        str,
        typer.Option(help="Who writes: a hub name, a folder, or a name at --url.", autocompletion=models),
    ] = "bundled",
    url: Annotated[
        str | None, typer.Option(help="An OpenAI-compatible address, up to /v1.", show_default="a model here")
    ] = None,
    topics: Annotated[
        Path | None,
        typer.Option(
            help="Topics, one a line.", show_default="80 of the package's", callback=checked(parsing.lines)
        ),
    ] = None,
    per_topic: Annotated[int, typer.Option(min=1, help="Texts for each topic and emotion.")] = 2,
    per_request: Annotated[int, typer.Option(min=1, help="Texts to ask for at once.")] = 1,
    max_new_tokens: NewTokens = 400,
    seed: Seed = 0,
    device: Device = None,
    dtype: DType = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Let a language model write texts for emotions, and keep those that do not name them and are not twice there.

    What it says is logged beside the file as it comes; the same command goes on where it was stopped. A key for --url is read
    from the environment variable OPENAI_API_KEY. Models that follow instructions write best.
    """
    if url is None:
        check_model(model)
    from emoprobe.cli import typed
    from emoprobe.corpora.stories import EndpointWriter, ModelWriter, write_stories
    from emoprobe.corpora.stories.prompts import requests
    from emoprobe.corpora.stories.prompts import topics as own_topics

    writer: Writer
    if url is not None:
        key = os.environ.get("OPENAI_API_KEY")
        writer = EndpointWriter(url, model, key=key, max_new_tokens=max_new_tokens)
    else:
        writer = ModelWriter(typed.model(model, device, dtype), max_new_tokens=max_new_tokens)
    felt = tuple(parsing.split(emotions, "--emotions", "afraid,calm") or ())
    about = None if topics is None else parsing.lines(topics)
    if dry_run:
        asked = requests(kind, felt, tuple(about or own_topics()), per_topic, per_request)
        _show_cost(asked, writer, max_new_tokens, as_json)
        return
    written = write_stories(
        writer,
        output,
        kind=kind,
        emotions=felt,
        about=about,
        per_topic=per_topic,
        per_request=per_request,
        seed=seed,
    )
    if as_json:
        write_json(written=output, asked=len(written.frame), kept=len(written.kept), stories=written.report())
        return
    typer.echo(written.report().to_string(index=False, float_format=lambda value: f"{value:.2f}"))
    typer.echo(f"written: {output} ({len(written.kept)} of {len(written.frame)} texts kept)")


def _show_cost(asked: Sequence[Request], writer: Writer, max_new_tokens: int, as_json: bool) -> None:
    """Print what these requests will cost; of a model elsewhere no more is known than how many tokens it may write."""
    from emoprobe.corpora.stories import ModelWriter

    if isinstance(writer, ModelWriter):
        from emoprobe.study.cost import stories_cost

        beginnings = [request.beginning() for request in asked[:64]]
        show_cost(stories_cost(writer.model, len(asked), max_new_tokens, beginnings), as_json)
    elif as_json:
        write_json(name=writer.name, requests=len(asked), tokens=len(asked) * max_new_tokens)
    else:
        most = len(asked) * max_new_tokens
        typer.echo(
            f"{len(asked):,} requests to {writer.name}, which may write {most:,} tokens: a dry run, none was sent"
        )
