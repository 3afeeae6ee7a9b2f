"""All representation experiments on one model, in a folder that keeps what is done.

    study = emoprobe.run_concepts("gpt2", "emobank")

Probes are fitted on groups of the corpus; what is read with them are this project's own prompts and dialogues, the groups that
were kept back, and other corpora.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from emoprobe.corpora import Corpus
from emoprobe.models import LiveModel
from emoprobe.probes import load_probes
from emoprobe.study.concepts.chronic import chronic
from emoprobe.study.concepts.deflection import deflection
from emoprobe.study.concepts.dialogues import generated_pairs
from emoprobe.study.concepts.dissociation import dissociation, reply
from emoprobe.study.concepts.held_out import held_out
from emoprobe.study.concepts.intensity import intensity
from emoprobe.study.concepts.scenarios import scenarios
from emoprobe.study.concepts.sources import sources
from emoprobe.study.concepts.speakers import speakers
from emoprobe.study.conduct import Step, Study
from emoprobe.study.folder import RunFolder
from emoprobe.study.run import GROUND_TRUTH, PROBES, begun, probing_step, written_call

FELT = ("joy", "pride", "relief", "sadness", "anger", "fear")
PAIRS = 1200
"""Generated texts of two persons, for the model that knows no other language: enough for six emotions in each world."""


def run_concepts(
    model: str | Path | LiveModel = "bundled",
    corpus: str | Path | Corpus = "bundled",
    out: str | Path | None = None,
    *,
    beside: Sequence[Corpus] = (),
    limit: int | None = None,
    seed: int = 0,
    resume: bool = True,
    progress: bool = True,
    command: str | None = None,
) -> Study:
    """Run the experiments of "Emotion Concepts" on a model, with probes fitted on `corpus`, and leave a report in `out`.

    Arguments are those of `run_study`; `out` is by default runs/<model>-<corpus>-concepts. `beside` are further corpora that
    the probes are tried on. An experiment whose emotions the corpus lacks is left out. The ground-truth model, which speaks its
    generator's language only, gets the experiment on two persons alone. Raises `InputError` as `run_study` does.
    """
    return begun(
        model,
        corpus,
        out,
        partial(_steps, beside),
        {"experiments": "concepts", "beside": [other.fingerprint for other in beside]},
        limit=limit,
        seed=seed,
        resume=resume,
        progress=progress,
        command=command or written_call("run_concepts", model, corpus, out, limit, seed),
        suffix="-concepts",
    )


def _steps(
    beside: Sequence[Corpus],
    folder: RunFolder,
    model: LiveModel,
    fitted: Corpus,
    kept_back: Corpus,
    seed: int,
) -> Iterator[tuple[str, Step]]:
    """Yield the experiments in order; the probes of the first are read by all others."""
    yield "probing", probing_step(folder, model, fitted, seed)
    probes = load_probes(folder.path / PROBES)
    if model.name == GROUND_TRUTH:
        pairs = generated_pairs(PAIRS, seed + 1, chosen=FELT)
        yield "speakers", lambda: speakers(model, pairs, seed=seed)
        return
    yield "scenarios", lambda: scenarios(model, probes, corpus=fitted, seed=seed)
    yield "intensity", lambda: intensity(model, probes, seed=seed)
    yield "dissociation", lambda: dissociation(model, probes, seed=seed)
    yield "reply", lambda: reply(model, probes, seed=seed)
    yield "speakers", lambda: speakers(model, probes=probes, seed=seed)
    yield "deflection", lambda: deflection(model, probes, seed=seed)
    yield "chronic", lambda: chronic(model, kept_back, seed=seed)
    for other in beside:
        yield f"held-out {other.name}", partial(held_out, model, probes, other, fitted, seed=seed)
    yield "sources", lambda: sources(model, probes, seed=seed)
