"""What people name on a command line, loaded: models, texts, valuations; whatever is wrong is said in one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rich
import torch
import transformers
from safetensors import SafetensorError, safe_open

from emoprobe.artefacts import KEY
from emoprobe.checks import parse_json
from emoprobe.cli import parsing
from emoprobe.corpora import Corpus, load_corpus
from emoprobe.corpora.tables import read_text
from emoprobe.errors import InputError
from emoprobe.models import LiveModel, load_model
from emoprobe.models.reference import PASSAGES
from emoprobe.probes import ProbeSet, load_probes
from emoprobe.valattn import Valuation
from emoprobe.workers import RayWorkers, ray_workers


def model(name: str, device: str | None = None, dtype: str | None = None) -> LiveModel:
    rich.reconfigure(stderr=True)  # progress goes there, and stdout is for what was found
    transformers.logging.disable_progress_bar()  # models load in less time than it takes to read it
    return load_model(name, **_placed(device, dtype))


@contextmanager
def engine(
    name: str, workers: int, model: str, device: str | None, dtype: str | None
) -> Iterator[RayWorkers | None]:
    """Start what shares the work: with "ray" so many workers, each with the model, and with "here" nothing."""
    if name == "here":
        yield None
        return
    placed = _placed(device, dtype)
    on_gpu = placed["device"] is not None and placed["device"].type == "cuda"
    with ray_workers(model, workers, gpus=int(on_gpu), **placed) as started:
        yield started


def _placed(device: str | None, dtype: str | None) -> dict[str, Any]:
    kind = None if dtype is None else getattr(torch, dtype)
    try:
        place = None if device is None else torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"--device {device} cannot be used here ({str(error).splitlines()[0]}): give another"
        ) from error
    return {"dtype": kind, "device": place}


def corpus(
    name: str, folder: Path | None, columns: str | None, ranges: str | None, limit: int | None, seed: int
) -> Corpus:
    mapping = parsing.pairs("--columns", columns, "text=sentence,valence=V")
    bounds = {
        key: parsing.span(key, value)
        for key, value in parsing.pairs("--ranges", ranges, "valence=1:9").items()
    }
    return load_corpus(name, folder=folder, columns=mapping, ranges=bounds, limit=limit, seed=seed)


def words(text: str) -> str:
    """Return a text that was typed, or that of standard input where it is "-"; refuse none, and the name of a file."""
    piped = text == "-"
    try:
        if piped:
            text = sys.stdin.read().rstrip("\n")
        text.encode()  # bytes that are no UTF-8 come as half characters, which no tokenizer reads
    except UnicodeError:
        raise InputError("the text is not UTF-8: give it, or save its file, in that encoding") from None
    if not piped and os.path.isfile(text):
        raise InputError(
            f'"{text}" is a file: to give what is in it, type - for the text and < {text} at the end'
        )
    if not text.strip():
        raise InputError("the text is empty: give some words to read")
    return text


def lines(path: Path | None) -> list[str]:
    if path is None:
        return list(PASSAGES)
    found = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not found:
        raise InputError(f'"{path}" holds no text: give a file with one text a line')
    return found


def kind(path: str) -> str | None:
    """Return what an artefact says it is, or None for anything else; whoever reads it complains in its own words."""
    try:
        with safe_open(path, framework="pt") as file:
            return str(parse_json((file.metadata() or {})[KEY])["kind"])
    except (SafetensorError, OSError, KeyError, ValueError, TypeError):
        return None


def valuation(path: str, concepts: Sequence[str] | None) -> tuple[Valuation, ProbeSet | None]:
    """Read a valuation, or make one of a probe set, which is returned too."""
    if kind(path) == "valuation":
        found = Valuation.load(path)
        if concepts is not None and set(concepts) != set(found.dimensions):
            raise InputError(
                f'"{path}" is a valuation of {", ".join(found.dimensions)}, and asked for is {", ".join(concepts)}: give the '
                "probe set that holds these, or a valuation of them"
            )
        return found, None
    loaded = load_probes(path)
    return Valuation.from_probes(loaded, concepts), loaded
