"""What people name on a command line, loaded: models, texts, valuations; whatever is wrong is said in one line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rich
import torch
import transformers

from emoprobe.cli import parsing
from emoprobe.corpora import Corpus, load_corpus
from emoprobe.errors import InputError
from emoprobe.models import LiveModel, load_model
from emoprobe.probes import ProbeSet, load_probes
from emoprobe.records import recorded
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
    mapping, bounds = parsing.columns(columns), parsing.ranges(ranges)
    return load_corpus(name, folder=folder, columns=mapping, ranges=bounds, limit=limit, seed=seed)


def valuation(path: str, concepts: Sequence[str] | None) -> tuple[Valuation, ProbeSet | None]:
    """Read a valuation, or make one of a probe set, which is returned too."""
    if recorded(path, "kind") == "valuation":
        found = Valuation.load(path)
        if concepts is not None and set(concepts) != set(found.dimensions):
            raise InputError(
                f'"{path}" is a valuation of {", ".join(found.dimensions)}, and asked for is {", ".join(concepts)}: give the '
                "probe set that holds these, or a valuation of them"
            )
        return found, None
    loaded = load_probes(path)
    return Valuation.from_probes(loaded, concepts), loaded
