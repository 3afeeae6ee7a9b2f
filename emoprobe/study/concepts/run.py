"""All representation experiments on one model, in a folder that keeps what is done.

    study = emoprobe.run_concepts("gpt2", "emobank")

Probes are fitted on groups of the corpus; what is read with them are this project's own prompts and dialogues, the groups that
were kept back, and other corpora.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from emoprobe.corpora import Corpus
from emoprobe.models import LiveModel, load_model
from emoprobe.probes import fit_probes, load_probes
from emoprobe.study.concepts.chronic import chronic
from emoprobe.study.concepts.deflection import deflection
from emoprobe.study.concepts.dialogues import generated_pairs
from emoprobe.study.concepts.dissociation import dissociation, reply
from emoprobe.study.concepts.held_out import held_out
from emoprobe.study.concepts.intensity import intensity
from emoprobe.study.concepts.scenarios import scenarios
from emoprobe.study.concepts.sources import sources
from emoprobe.study.concepts.speakers import speakers
from emoprobe.study.conduct import Display, Step, Study, about, conduct, identity
from emoprobe.study.folder import RunFolder
from emoprobe.study.probing import probing
from emoprobe.study.result import Result
from emoprobe.study.run import GROUND_TRUTH, PERMUTATIONS, PROBES, folder_name, read_corpus, written_call
from emoprobe.study.texts import divide

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
    with Display(progress) as display:
        display.begin("loading")
        texts = corpus if isinstance(corpus, Corpus) else read_corpus(corpus, limit, seed)
        fitted, kept_back = divide(texts, limit, seed)
        live = model if isinstance(model, LiveModel) else load_model(model)
        place = folder_name(live, texts)
        asked = identity(live, texts, limit, seed) | {"beside": [other.fingerprint for other in beside]}
        said = command or written_call(model, corpus, out, limit, seed, "run_concepts")
        folder = RunFolder.start(
            out or place.with_name(f"{place.name}-concepts"),
            asked | {"experiments": "concepts"},
            about(live, texts, fitted, kept_back, said, seed),
            resume=resume,
        )
        display.done(
            f"{live.name} and {texts.name}: {len(fitted):,} texts to fit on, {len(kept_back):,} held out"
        )
        steps = _steps(folder, live, fitted, kept_back, beside, seed)
        return conduct(display, folder, live, steps, seed)


def _steps(
    folder: RunFolder,
    model: LiveModel,
    fitted: Corpus,
    kept_back: Corpus,
    beside: Sequence[Corpus],
    seed: int,
) -> Iterator[tuple[str, Step]]:
    """Yield the experiments in order; the probes of the first are read by all others."""

    def probe() -> Result:
        found = fit_probes(model, fitted, permutations=PERMUTATIONS, seed=seed, progress=False)
        found.save(folder.path / PROBES)
        return probing(found, recovery=model.name == fitted.name == GROUND_TRUTH)

    yield "probing", probe
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
        yield f"held-out {other.name}", lambda other=other: held_out(model, probes, other, fitted, seed=seed)
    yield "sources", lambda: sources(model, probes, seed=seed)
