"""What long work will cost: what is read, how much memory and disk it takes, and about how long, before it is begun.

Work is counted in texts, tokens and forward passes. How long these take is tried out, for seconds, with a few texts in the very
model and on the very machine. Of studies the counts are those of the bundled model and corpus, `python benchmarks/cost.py`
counts them again; those that grow with the corpus grow here too. It is an estimate: about half to twice as long is to be
expected, and more where other work comes to share the machine.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from rich.filesize import decimal

from emoprobe.corpora import Corpus
from emoprobe.models import LiveModel
from emoprobe.probes import fit_probes
from emoprobe.report.html import duration
from emoprobe.scoring import text_nll
from emoprobe.study.texts import divide

TRIED = 64
"""Texts that reading is tried on, and tokens that are written."""
FITTED = 200
"""Texts that fitting is tried on."""
BATCH = 32
SHARED = 2.75
"""What the probes of all layers share (bag of words, random features, confounds), in layers of fitting: bundled study."""
READ, SCORED, LEARNED, WRITTEN = "read", "scored", "learned", "written"
"""Kinds of work on a token: reading the streams; with logits and attention; with gradients; writing it."""
REPORT = 2 * 2**20
"""Bytes of the tables, figures and report of a study."""


class Work(NamedTuple):
    """What a step asks of a model: texts and tokens that go through it, in so many passes, and fits of all probes."""

    step: str
    kind: str
    texts: int
    tokens: int
    passes: int
    fits: float = 0.0


class Speed(NamedTuple):
    """Seconds that a token of each kind takes, a pass whatever its size, and the fit of all probes."""

    token: dict[str, float]
    one_pass: float
    fit: float
    tried: float


@dataclass(frozen=True, eq=False)
class Cost:
    """The cost of a job. `frame` has one row per step: step, texts, tokens, passes, seconds. Memory and disk are in bytes.

    `weights` is what the model's weights take; `peak` the most that the process has needed in the trial, and what is kept of
    the texts on top.
    """

    name: str
    frame: pd.DataFrame
    weights: int
    peak: int
    disk: int
    device: str
    tried: float

    @property
    def seconds(self) -> float:
        """Seconds that all takes, about."""
        return float(self.frame.seconds.sum())

    @property
    def by_step(self) -> dict[str, float]:
        """Seconds of each step of a study, about; parts of one, as "learning (backwards)", are counted together."""
        seconds = self.frame.groupby(self.frame.step.str.partition(" (")[0]).seconds.sum()
        return {str(step): float(took) for step, took in seconds.items()}

    def __repr__(self) -> str:
        total = self.frame.sum(numeric_only=True)
        rows = pd.concat([self.frame, pd.DataFrame([{"step": "all", **total}])], ignore_index=True)
        shown = rows.assign(seconds=[duration(seconds) for seconds in rows.seconds])
        for column in ("texts", "tokens", "passes"):
            shown[column] = [f"{int(count):,}" for count in rows[column]]
        return (
            f"{self.name}: a dry run, nothing was done and nothing written\n"
            f"{shown.rename(columns={'seconds': 'time, about'}).to_string(index=False)}\n"
            f"memory: weights {decimal(self.weights)}, peak about {decimal(self.peak)} on {self.device}\n"
            f"disk: about {decimal(self.disk)}\n"
            f"time: about {duration(self.seconds)} (± a factor of 2: an estimate from {duration(self.tried)} of trial on this "
            "machine; longer where other work shares it)"
        )


def estimate(
    name: str,
    model: LiveModel,
    work: Sequence[Work],
    texts: Sequence[str],
    *,
    fitted: Corpus | None = None,
    kept: int = 0,
    disk: int = 0,
) -> Cost:
    """Return what `work` costs, after a trial with some of `texts`, and with the probes of `fitted` where any are fitted.

    `kept` are the bytes of what is kept in memory of texts, `disk` those that are written.
    """
    speed = tried(model, texts, fitted, {one.kind for one in work})
    rows = [
        (one.step, one.texts, one.tokens, one.passes, seconds_of(one, speed))
        for one in work
        if one.texts or one.passes
    ]
    weights = sum(weight.numel() * weight.element_size() for _, weight in model.named_weights())
    return Cost(
        name,
        pd.DataFrame(rows, columns=["step", "texts", "tokens", "passes", "seconds"]),
        weights,
        _peak(model) + kept,
        disk,
        str(model.device),
        speed.tried,
    )


def seconds_of(work: Work, speed: Speed) -> float:
    """Return how long a step takes; a token's writing is a pass of its own, and was tried as one."""
    passes = 0 if work.kind == WRITTEN else work.passes
    return work.tokens * speed.token[work.kind] + passes * speed.one_pass + work.fits * speed.fit


def tried(model: LiveModel, texts: Sequence[str], fitted: Corpus | None, kinds: set[str]) -> Speed:
    """Try how fast this is, here, with this model: each kind of work that is wanted."""
    begun = time.perf_counter()
    sample = list(texts[:TRIED])
    tokens = sum(lengths(model, sample))
    model.capture(sample[:1])  # whatever is done once
    one_pass = min(_timed(lambda: model.capture(["a"])) for _ in range(3))
    reading = max(_timed(lambda: model.capture(sample)) - one_pass * -(-len(sample) // BATCH), 1e-9) / tokens
    token = {READ: reading}
    if kinds & {SCORED, LEARNED}:
        token[SCORED] = max(_timed(lambda: text_nll(model, sample, BATCH)) / tokens, reading)
        token[LEARNED] = 3 * token[SCORED]  # backwards takes about twice what forwards does
    if WRITTEN in kinds:
        written = _timed(
            lambda: model.generate(sample[:8], max_new_tokens=16, min_new_tokens=16, do_sample=False)
        )
        token[WRITTEN] = written / (16 * len(sample[:8]))
    fit = 0.0 if fitted is None else _fit(model, fitted)
    return Speed(token, one_pass, fit, time.perf_counter() - begun)


def _fit(model: LiveModel, corpus: Corpus) -> float:
    """Return how long the probes of all layers take to fit and to validate, from those of the embedding of some texts."""
    some = corpus if len(corpus) <= FITTED else corpus.sample(FITTED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of the fit itself are yet to come
        took = _timed(lambda: fit_probes(model, some, 0, permutations=5, progress=False))
    return took * len(corpus) / len(some) * (model.n_layers + 1 + SHARED) / (1 + SHARED)


def _timed(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def lengths(model: LiveModel, texts: Sequence[str]) -> list[int]:
    """Return how many tokens the model reads of each text."""
    most = model.context_length or sys.maxsize
    return [min(len(ids), most) for ids in model.tokenizer(list(texts))["input_ids"]]


# How much there is to do ---------------------------------------------------------------------------------------------


def readings(
    step: str, kind: str, texts: float, length: float, batch: int = BATCH, fits: float = 0.0
) -> Work:
    """Return the work of reading so many texts of a mean length, in batches."""
    return Work(step, kind, round(texts), round(texts * length), -(-round(texts) // batch), fits)


def study_cost(kind: str, model: LiveModel, corpus: Corpus, limit: int | None = None, seed: int = 0) -> Cost:
    """Return the cost of a "study", of "concepts" or of "claims" on a model and a corpus.

    Raises `InputError` for a corpus that is too small for a study, as the study would.
    """
    fitted, held_out = divide(corpus, limit, seed)
    some = [fitted.texts[row] for row in np.random.default_rng(seed).permutation(len(fitted))[:256]]
    length = float(np.mean(lengths(model, some)))
    steps = {"study": _study, "concepts": _concepts, "claims": _claims}[kind]
    work = [_probing(len(fitted), length), *steps(len(fitted), len(held_out), length, len(fitted.labels))]
    vectors, probes = _sizes(model, fitted)
    name = f"{kind} of {model.name} on {corpus.name}, {len(fitted):,} texts to fit on and {len(held_out):,} held out"
    return estimate(name, model, work, some, fitted=fitted, kept=2 * vectors, disk=probes + REPORT)


def fit_cost(model: LiveModel, corpus: Corpus) -> Cost:
    """Return the cost of fitting probes at all layers, on the command line, where vectors lie on disk until it is done."""
    length = float(np.mean(lengths(model, corpus.texts[:256])))
    vectors, probes = _sizes(model, corpus)
    return estimate(
        f"fit of {model.name} on {corpus.name}, {len(corpus):,} texts",
        model,
        [_probing(len(corpus), length)],
        corpus.texts,
        fitted=corpus,
        kept=2 * vectors,
        disk=vectors + probes,
    )


def _sizes(model: LiveModel, corpus: Corpus) -> tuple[int, int]:
    """Return the bytes of a corpus's vectors at all layers, and of its probes."""
    one = 4 * (model.n_layers + 1) * model.d_model
    return one * len(corpus), one * (len(corpus.concepts) + 8)


def _probing(fitted: int, length: float) -> Work:
    return readings("probing", READ, 2 * fitted, length, fits=1.0)


def _study(fitted: int, held_out: int, length: float, labels: int) -> list[Work]:
    steered = min(12, labels) or 2  # without labels, the two ends of valence
    measured = min(16, held_out)
    return [
        readings("reading", READ, min(400, held_out), length, fits=0.05),
        readings("geometry", READ, fitted, length, fits=0.2),
        readings("valuing", READ, min(300, held_out), length, fits=0.05),
        readings("injecting", SCORED, 136 * measured, length, measured),
        readings("steering", SCORED, 912 * steered, 31, 11),
        readings("learning", SCORED, 24 * min(150, fitted), length, 20),
        readings("learning (backwards)", LEARNED, 1400 * min(150, fitted) / 150, length, 12),
        readings("sentences", SCORED, 634, 27, 1),
    ]


def _claims(fitted: int, held_out: int, length: float, labels: int) -> list[Work]:
    read = min(120, held_out)
    return [
        readings(
            "magnitudes", SCORED, 68 * read, length, 8
        ),  # 6 λ, 3 for each of 20 random valuations, untouched
        readings("distance", SCORED, 1340, 430, 10),
        readings("cost", SCORED, 63, 640, 1),
    ]


def _concepts(fitted: int, held_out: int, length: float, labels: int) -> list[Work]:
    own = {  # texts, tokens of each, fits
        "scenarios": (144, 38, 0.06),
        "intensity": (324, 28, 0.06),
        "dissociation": (16, 50, 0.02),
        "reply": (880, 8, 0.03),
        "persistence": (52, 62, 0.03),
        "negation": (384, 34, 0.04),
        "binding": (256, 46, 0.05),
        "speakers": (936, 164, 0.2),
        "deflection": (576, 106, 0.06),
        "chronic": (516, 100, 0.2),
        "sources": (1451, 20, 0.1),
    }
    return [
        readings("emotion vectors", READ, 3 * fitted, length, fits=0.4),
        *(readings(step, READ, texts, tokens, fits=fits) for step, (texts, tokens, fits) in own.items()),
    ]


def sweep_cost(
    model: LiveModel, texts: Sequence[str], strengths: Sequence[float], controls: int, read: int
) -> Cost:
    """Return the cost of a sweep with NLL, KL and `read` read-outs as measures."""
    doses = {strength for strength in strengths if strength}
    runs = len(doses) * (1 + controls) + sum(-dose not in doses for dose in doses)
    length, batch = float(np.mean(lengths(model, texts))), min(BATCH, len(texts))
    work = [
        readings("NLL and KL", SCORED, 2 * (runs + 1) * len(texts), length, batch),
        readings("read-outs", READ, read * (runs + 1) * len(texts), length, batch),
    ]
    return estimate(f"sweep of {model.name} on {len(texts):,} texts, {runs:,} runs", model, work, texts)


def compare_cost(model: LiveModel, corpus: Corpus, controls: int = 5) -> Cost:
    """Return the cost of comparing two valuations on the texts of a corpus, beside random ones."""
    length = float(np.mean(lengths(model, corpus.texts)))
    conditions, attended = 3 + controls, min(40, len(corpus))
    work = [
        readings("values of tokens", READ, len(corpus), length),
        readings("NLL", SCORED, conditions * len(corpus), length),
        readings("attention", SCORED, conditions * attended, length, 8),
    ]
    name = f"comparison in {model.name} on {len(corpus):,} texts of {corpus.name}"
    return estimate(name, model, work, corpus.texts)


def learn_cost(model: LiveModel, corpus: Corpus, numbers: int, steps: int, batch: int = 16) -> Cost:
    """Return the cost of learning a valuation of so many numbers, a fifth of the corpus held out."""
    length = float(np.mean(lengths(model, corpus.texts)))
    work = [
        readings("learning", LEARNED, steps * batch, length, batch),
        readings("NLL of what is held out", SCORED, 2 * len(corpus) / 5, length),
    ]
    name = f"learning a valuation of {model.name} on {len(corpus):,} texts of {corpus.name}, {steps:,} steps"
    return estimate(name, model, work, corpus.texts, disk=4 * numbers)


def stories_cost(model: LiveModel, requests: int, tokens: int, beginnings: Sequence[str]) -> Cost:
    """Return the cost of having a model here write at most `tokens` tokens to each request, eight at once."""
    read = readings("reading", READ, requests, float(np.mean(lengths(model, beginnings))), 8)
    written = Work("writing", WRITTEN, requests, requests * tokens, -(-requests // 8) * tokens)
    disk = requests * tokens * 8
    name = f"{requests:,} requests to {model.name}, at most {tokens:,} tokens each"
    return estimate(name, model, [read, written], beginnings, disk=disk)


# Wording and memory --------------------------------------------------------------------------------------------------


def _peak(model: LiveModel) -> int:
    """Return the most bytes needed so far where the model runs: of the GPU, or of this process."""
    if model.device.type == "cuda":
        return torch.cuda.max_memory_allocated(model.device)
    try:
        import resource
    except ImportError:  # Windows does not say
        return sum(weight.numel() * weight.element_size() for _, weight in model.named_weights())
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
