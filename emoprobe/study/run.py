"""The main job: all experiments on one model and one corpus, in a folder that keeps what is done.

    study = emoprobe.run_study("gpt2", "emobank")

Each step reads what earlier ones left in the folder, so that a study taken up again goes on from the very same bits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from emoprobe.checks import check_seed
from emoprobe.corpora import Corpus, load_corpus
from emoprobe.models import LiveModel, load_model
from emoprobe.places import SUFFIXES
from emoprobe.probes import fit_probes, load_probes
from emoprobe.study.conduct import Display, Step, Study, about, conduct, identity
from emoprobe.study.cost import study_cost
from emoprobe.study.folder import RunFolder
from emoprobe.study.geometry import geometry
from emoprobe.study.injecting import injecting
from emoprobe.study.learning import learning
from emoprobe.study.probing import probing
from emoprobe.study.reading import reading
from emoprobe.study.result import Result
from emoprobe.study.sentences import sentences
from emoprobe.study.steering import steering
from emoprobe.study.texts import divide, valuation_dimensions
from emoprobe.study.valuing import valuing
from emoprobe.valattn import Valuation

PERMUTATIONS = 5
GROUND_TRUTH = "ground-truth"
PAIRS = (("bundled", "passages"), (GROUND_TRUTH, GROUND_TRUTH))
"""Models and corpora of the package that go together: one name says both."""
PROBES, PROBED, LEARNED = (
    "probes.safetensors",
    "valuation-probed.safetensors",
    "valuation-learned.safetensors",
)

Steps = Callable[[RunFolder, LiveModel, Corpus, Corpus, int], Iterable[tuple[str, Step]]]
"""From folder, model, the texts to fit on, those held out and the seed, to the steps in order."""


def run_study(
    model: str | Path | LiveModel = "bundled",
    corpus: str | Path | Corpus = "bundled",
    out: str | Path | None = None,
    *,
    limit: int | None = None,
    seed: int = 0,
    resume: bool = True,
    progress: bool = True,
    command: str | None = None,
) -> Study:
    """Run every experiment on a model and a corpus, and leave the record, with a report, in the folder `out`.

    `model` and `corpus` are what `load_model` and `load_corpus` take, or what they return. `out` is by default
    runs/<model>-<corpus>, or runs/bundled and runs/ground-truth for those two. With model and corpus "ground-truth", whose
    emotions are known to be there, finding them is checked. At most `limit` texts are used (default 3,000). A study that was
    begun in the same folder is gone on with, unless `resume` is False: then it is begun again. `command` is how the study was
    asked for, for the record. What is done stays done when the run is interrupted.

    Raises `InputError` for a model or corpus that cannot be loaded, one too small to hold groups out, and for a folder that
    holds something else or cannot be written.
    """
    return begun(
        model,
        corpus,
        out,
        _steps,
        {},
        limit=limit,
        seed=seed,
        resume=resume,
        progress=progress,
        command=command or written_call("run_study", model, corpus, out, limit, seed),
    )


def begun(
    model: str | Path | LiveModel,
    corpus: str | Path | Corpus,
    out: str | Path | None,
    steps: Steps,
    more: Mapping[str, Any],
    *,
    limit: int | None,
    seed: int,
    resume: bool,
    progress: bool,
    command: str,
    suffix: str = "",
) -> Study:
    """Load model and corpus, keep groups back, and conduct the `steps` that this gives in a folder.

    `more` is what tells this study from others of the same model and corpus, and `suffix` what the name of its folder ends in.
    """
    check_seed(seed)
    with Display(progress) as display:
        display.begin("loading")
        texts = corpus if isinstance(corpus, Corpus) else read_corpus(corpus, limit, seed)
        fitted, held_out = divide(texts, limit, seed)
        live = model if isinstance(model, LiveModel) else load_model(model)
        place = folder_name(live, texts)
        folder = RunFolder.start(
            out or place.with_name(f"{place.name}{suffix}"),
            {**identity(live, texts, limit, seed), **more},
            about(live, texts, fitted, held_out, command, seed),
            resume=resume,
        )
        display.done(
            f"{live.name} and {texts.name}: {len(fitted):,} texts to fit on, {len(held_out):,} held out"
        )
        if progress and not folder.done:  # of what is taken up again nobody knows which steps are long
            display.expect(study_cost(suffix.removeprefix("-") or "study", live, texts, limit, seed).by_step)
        return conduct(display, folder, live, steps(folder, live, fitted, held_out, seed), seed)


def probing_step(folder: RunFolder, model: LiveModel, fitted: Corpus, seed: int) -> Step:
    """Return the step that all others stand on: probes, fitted and kept in the folder, with their scores."""

    def probe() -> Result:
        found = fit_probes(model, fitted, permutations=PERMUTATIONS, seed=seed, progress=False)
        found.save(folder.path / PROBES)
        return probing(found, recovery=is_recovery(model, fitted))

    return probe


def is_recovery(model: LiveModel, fitted: Corpus) -> bool:
    """Say whether the emotions are known to be there."""
    return model.name == fitted.name == GROUND_TRUTH


def _steps(
    folder: RunFolder, model: LiveModel, fitted: Corpus, held_out: Corpus, seed: int
) -> Iterator[tuple[str, Step]]:
    """Yield the steps in order; what a later one needs of an earlier one is read from the folder."""
    recovery = is_recovery(model, fitted)
    yield "probing", probing_step(folder, model, fitted, seed)
    probes = load_probes(folder.path / PROBES)
    dimensions = [name for name in valuation_dimensions(fitted) if name in probes]

    def value() -> Result:
        probed = Valuation.from_probes(probes, dimensions)
        probed.save(folder.path / PROBED)
        return valuing(model, probed, held_out, seed=seed)

    yield "reading", lambda: reading(model, probes, fitted, held_out, dimensions, seed=seed)
    yield "geometry", lambda: geometry(model, probes, fitted, seed=seed)
    yield "valuing", value
    probed = cache(lambda: Valuation.load(folder.path / PROBED))
    yield "injecting", lambda: injecting(model, probed(), probes, held_out, seed=seed)
    yield "steering", lambda: steering(model, probes, held_out, recovery=recovery, seed=seed)
    yield (
        "learning",
        lambda: learning(model, fitted, held_out, probed(), keep=folder.path / LEARNED, seed=seed),
    )
    yield "sentences", lambda: sentences(model, probes, seed=seed)


# The record ----------------------------------------------------------------------------------------------------------


def read_corpus(source: str | Path, limit: int | None, seed: int) -> Corpus:
    """Load a corpus; a generated one is as large as the limit."""
    generated = str(source) == GROUND_TRUTH
    return load_corpus(source, limit=limit if generated else None, seed=seed)


def folder_name(model: LiveModel, corpus: Corpus) -> Path:
    """Return where a study is kept if nobody says otherwise."""
    name = re.sub(rf"({'|'.join(map(re.escape, SUFFIXES))})$", "", corpus.name)
    parts = [model.name] if (model.name, name) in PAIRS else [model.name, name]
    return Path("runs") / "-".join(
        re.sub(r"[^\w.-]+", "-", Path(part).name).strip("-.") or "model" for part in parts
    )


def content_of(norms: pd.DataFrame | None) -> str | None:
    """Return a hash of people's ratings of words, by which a study's folder knows whether they are the same again."""
    return None if norms is None else str(pd.util.hash_pandas_object(norms).sum())


def written_call(name: str, model: object, corpus: object, out: object, limit: int | None, seed: int) -> str:
    """Write down the call as it would be typed; what is no name is named in angle brackets."""

    def written(value: object) -> str:
        return repr(str(value)) if isinstance(value, str | Path) else f"<{getattr(value, 'name', value)}>"

    options = {"out": out and written(out), "limit": limit, "seed": seed}
    given = [
        written(model),
        written(corpus),
        *(f"{key}={value}" for key, value in options.items() if value is not None),
    ]
    return f"emoprobe.{name}({', '.join(given)})"
