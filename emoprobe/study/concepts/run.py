"""All representation experiments on one model, in a folder that keeps what is done.

    study = emoprobe.run_concepts("gpt2", "emobank")

Probes are fitted on groups of the corpus; what is read with them are this project's own prompts and dialogues, the groups that
were kept back, and other corpora. What a model or a corpus cannot carry is not left out: its result says why.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from emoprobe.corpora import Corpus
from emoprobe.corpora.emotion_words import load_word_norms, rate
from emoprobe.corpora.generator import WORLDS
from emoprobe.errors import InputError
from emoprobe.models import LiveModel, load_model
from emoprobe.probes import ProbeSet, load_probes
from emoprobe.probes.emotion_vector_recipe import EmotionVectors, emotion_vectors
from emoprobe.study.concepts import arrangement
from emoprobe.study.concepts.binding import binding
from emoprobe.study.concepts.binding import generated as generated_scenes
from emoprobe.study.concepts.chronic import chronic
from emoprobe.study.concepts.deflection import deflection
from emoprobe.study.concepts.dialogues import generated_pairs
from emoprobe.study.concepts.dissociation import dissociation
from emoprobe.study.concepts.held_out import held_out
from emoprobe.study.concepts.intensity import generated as generated_degrees
from emoprobe.study.concepts.intensity import intensity
from emoprobe.study.concepts.negation import negation
from emoprobe.study.concepts.persistence import persistence
from emoprobe.study.concepts.reply import reply
from emoprobe.study.concepts.scenarios import scenarios
from emoprobe.study.concepts.sources import sources
from emoprobe.study.concepts.speakers import speakers
from emoprobe.study.concepts.tuning import tuning
from emoprobe.study.conduct import Step, Study
from emoprobe.study.folder import RunFolder
from emoprobe.study.result import Result
from emoprobe.study.run import GROUND_TRUTH, PROBES, begun, content_of, probing_step, written_call
from emoprobe.study.texts import targets

FELT = ("joy", "pride", "relief", "sadness", "anger", "fear")
PAIRS = 1200
"""Generated texts of two persons, for the model that knows no other language: enough for six emotions in each world."""
START = 5
"""Token from which on texts count for emotion vectors: many corpora are of single sentences, the paper's 50 leaves nothing."""
SHUFFLES = 99
NEUTRAL = ("neutral", "no-emotion")
"""What corpora call a text in which nobody feels anything."""
FOREIGN = {
    "scenarios": "its language has no situations but those of its ten worlds; that it reads what these imply is in its probing",
    "dissociation": "its language has no questions and no replies",
    "reply": "its language has no questions and no replies",
    "persistence": "no two of its sentences differ in one word that tells an emotion and go on alike",
    "negation": "negation is not in its language: nobody in it does not feel something",
    "deflection": "nobody in its language says anything, and so nobody hides what they feel",
    "chronic": "nobody in its language says anything, and so nobody keeps back what they feel",
    "held-out": "it knows the words of other corpora as bytes alone",
    "sources": "no two of its sentences have as many tokens and tell of two emotions in the same places",
}
"""What cannot be asked of the ground-truth model, and why."""

Experiment = Callable[[], Result]


def run_concepts(
    model: str | Path | LiveModel = "bundled",
    corpus: str | Path | Corpus = "bundled",
    out: str | Path | None = None,
    *,
    beside: Sequence[Corpus] = (),
    base: str | Path | LiveModel | None = None,
    norms: str | os.PathLike[str] | pd.DataFrame | None = None,
    limit: int | None = None,
    seed: int = 0,
    resume: bool = True,
    progress: bool = True,
    command: str | None = None,
) -> Study:
    """Run the experiments of "Emotion Concepts" on a model, with probes fitted on `corpus`, and leave a report in `out`.

    Arguments are those of `run_study`; `out` is by default runs/<model>-<corpus>-concepts. `beside` are further corpora that
    the probes are tried on. `base` is the model that `model` was tuned from, if what tuning changed is to be asked too. `norms`
    are people's ratings of words, as `load_word_norms` takes them, to hold emotion vectors to; without them each emotion counts
    as valent and aroused as the corpus says its texts are. An experiment that the model or the corpus cannot carry has a result
    that says why. Raises `InputError` as `run_study` does, and for `norms` and a `base` that cannot be loaded.
    """
    ratings = None if norms is None else load_word_norms(norms)
    untuned = load_model(base) if isinstance(base, str | Path) else base
    asked = {
        "experiments": "concepts",
        "beside": [other.fingerprint for other in beside],
        "base": None if untuned is None else untuned.fingerprint(),
        "norms": content_of(ratings),
    }
    return begun(
        model,
        corpus,
        out,
        partial(_steps, beside, untuned, ratings),
        asked,
        limit=limit,
        seed=seed,
        resume=resume,
        progress=progress,
        command=command or written_call("run_concepts", model, corpus, out, limit, seed),
        suffix="-concepts",
    )


def _steps(
    beside: Sequence[Corpus],
    base: LiveModel | None,
    ratings: pd.DataFrame | None,
    folder: RunFolder,
    model: LiveModel,
    fitted: Corpus,
    kept_back: Corpus,
    seed: int,
) -> Iterator[tuple[str, Step]]:
    """Yield the experiments in order; the probes of the first are read by all others."""
    yield "probing", probing_step(folder, model, fitted, seed)
    probes = load_probes(folder.path / PROBES)
    experiments = _of_vectors(model, fitted, ratings, seed)
    if model.name == GROUND_TRUTH:
        experiments |= _of_generated_texts(model, probes, kept_back, seed)
    else:
        experiments |= _of_prompts(model, probes, fitted, kept_back, beside, seed)
    if base is not None:
        experiments["tuning"] = lambda: tuning(base, model, probes, seed=seed, progress=False)
    for name, experiment in experiments.items():
        yield name, partial(_or_why_not, name, experiment)


def _of_prompts(
    model: LiveModel,
    probes: ProbeSet,
    fitted: Corpus,
    kept_back: Corpus,
    beside: Sequence[Corpus],
    seed: int,
) -> dict[str, Experiment]:
    """Return the experiments whose texts are English."""
    quietly: dict[str, Any] = {"seed": seed, "progress": False}
    return {
        "scenarios": lambda: scenarios(model, probes, corpus=fitted, **quietly),
        "intensity": lambda: intensity(model, probes, **quietly),
        "dissociation": lambda: dissociation(model, probes, **quietly),
        "reply": lambda: reply(model, probes, **quietly),
        "persistence": lambda: persistence(model, probes, **quietly),
        "negation": lambda: negation(model, probes, **quietly),
        "binding": lambda: binding(model, probes, **quietly),
        "speakers": lambda: speakers(model, probes, **quietly),
        "deflection": lambda: deflection(model, probes, **quietly),
        "chronic": lambda: chronic(model, kept_back, **quietly),
        **{
            f"held-out {other.name}": partial(held_out, model, probes, other, fitted, **quietly)
            for other in beside
        },
        "sources": lambda: sources(model, probes, **quietly),
    }


def _of_generated_texts(
    model: LiveModel, probes: ProbeSet, kept_back: Corpus, seed: int
) -> dict[str, Experiment]:
    """Return the experiments that the generator has texts for, of worlds that were kept back, and why there are no others."""
    worlds = sorted(set(kept_back.groups.tolist()) & set(WORLDS)) or None
    quietly: dict[str, Any] = {"seed": seed, "progress": False}
    return {
        "intensity": lambda: intensity(
            model,
            probes,
            layer=probes.best_layer("valence"),  # on the texts they were fitted on
            stimuli=generated_degrees(worlds, seed=seed),
            spoken=False,
            **quietly,
        ),
        "binding": lambda: binding(
            model, probes, scenes=generated_scenes(seed=seed + 1, worlds=worlds), **quietly
        ),
        "speakers": lambda: speakers(
            model, probes, dialogues=generated_pairs(PAIRS, seed + 1, chosen=FELT), **quietly
        ),
        **{name: partial(not_carried, name, why) for name, why in FOREIGN.items()},
    }


def _of_vectors(
    model: LiveModel, fitted: Corpus, ratings: pd.DataFrame | None, seed: int
) -> dict[str, Experiment]:
    """Return the experiments on how emotion vectors lie; they are made when they are first asked for, and once."""

    @cache
    def vectors() -> EmotionVectors:
        neutral = [
            text
            for text, carried in zip(fitted.texts, fitted.data["labels"][:], strict=True)
            if set(carried) & set(NEUTRAL)
        ]
        return emotion_vectors(
            model, fitted, neutral, start=START, shuffles=SHUFFLES, seed=seed, progress=False
        )

    def norms() -> pd.DataFrame:
        return _norms(fitted, vectors().raw.concepts, ratings)

    return {
        "axes": lambda: arrangement.axes(vectors(), norms(), seed=seed),
        "circumplex": lambda: arrangement.circumplex(vectors(), norms(), seed=seed),
        "clusters": lambda: arrangement.clusters(vectors(), seed=seed),
        "layers": lambda: arrangement.layers(vectors(), seed=seed),
    }


def _norms(corpus: Corpus, emotions: Sequence[str], ratings: pd.DataFrame | None) -> pd.DataFrame:
    """Return valence and arousal of emotions, rated by people as words or else as the mean of the texts that carry each."""
    if ratings is not None:
        return rate(emotions, ratings)[list(arrangement.PLACED)]
    missing = [name for name in arrangement.PLACED if name not in corpus.dimensions]
    if missing:
        raise InputError(
            f"{corpus.name} does not rate {' and '.join(missing)}: give people's ratings as norms"
        )
    carried = pd.DataFrame({name: targets(corpus, name).astype(bool) for name in emotions})
    return pd.DataFrame(
        {
            name: {emotion: np.nanmean(corpus.values(name)[carried[emotion]]) for emotion in emotions}
            for name in arrangement.PLACED
        }
    )


def _or_why_not(name: str, experiment: Experiment) -> Result:
    """Do an experiment, or say what the model or the corpus lacks for it."""
    try:
        return experiment()
    except InputError as error:
        return not_carried(name, str(error))


def not_carried(name: str, why: str) -> Result:
    """Return the result of an experiment that could not be done on a model and a corpus, and why."""
    return Result(
        name=name,
        title=name.capitalize(),
        question="Can this be asked of this model, with this corpus?",
        method="This experiment was not carried out.",
        table=pd.DataFrame({"why": [why]}),
        finding="not asked",
        controls="none",
        verdict=f"Not asked: {why}.",
    )
