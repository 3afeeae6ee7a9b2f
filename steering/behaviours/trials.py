"""Scenarios, what a model does in them, and the shares of what it does as measures for a sweep.

A behaviour is a set of scenarios and a way to grade replies: by rule where the outcome can be checked, else by a judge. As a
measure it gives, for each scenario, the share of replies with each label, so that a sweep sets it beside random directions, the
opposite strength and the untouched model, for edits of the residual stream and for λ alike. Scenarios are the independent
units; replies to the same one are not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
import torch

from emoprobe.errors import InputError
from emoprobe.steering.asking import asked
from emoprobe.steering.generated_text import SAMPLED
from emoprobe.steering.measures import passes_of_pairs
from emoprobe.steering.row_wise import Passes, RowWise

if TYPE_CHECKING:
    from emoprobe.models import LiveModel
    from emoprobe.steering.measures import Measure

GRADED = "graded"
SHORTCUT, LOG_ODDS, ANSWERED = "shortcut chosen", "log-odds of the shortcut", "answered A or B"


@dataclass(frozen=True)
class Scenario:
    """A situation: `questions` are its wordings, taken in turn; `facts` are what a grader needs to know."""

    name: str
    questions: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """One reply in a scenario, the `sample`-th, to the wording `scenario.questions[wording]`."""

    scenario: Scenario
    sample: int
    wording: int
    reply: str


Grade: TypeAlias = Callable[[Sequence[Trial]], "list[tuple[str, ...]]"]
"""Trials → for each its label, by one judgement or several; "" where none can be given."""


@dataclass(frozen=True)
class Behaviour:
    """Scenarios, the labels that replies may get, and what gives them."""

    name: str
    scenarios: tuple[Scenario, ...]
    labels: tuple[str, ...]
    grade: Grade


def tried(
    model: LiveModel,
    behaviour: Behaviour,
    *,
    samples: int = 4,
    max_new_tokens: int = 200,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 32,
) -> pd.DataFrame:
    """Let a model reply `samples` times in each scenario; one row per reply: scenario, sample, reply, grades.

    `grades` is a tuple with one label by each judgement, "" where none could be given. Replies are sampled from the whole
    distribution with `seed` (temperature 0: the likeliest). Raises `InputError` for samples < 1 and a grader that gives a label
    that the behaviour does not have.
    """
    if samples < 1:
        raise InputError(f"samples={samples}: give at least 1")
    asked_for = [
        (scenario, sample, sample % len(scenario.questions))
        for scenario in behaviour.scenarios
        for sample in range(samples)
    ]
    texts = [asked(model, scenario.questions[wording]).text for scenario, _, wording in asked_for]
    options = {**SAMPLED, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    replies: list[str] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for first in range(0, len(texts), batch_size):
            written = model.generate(
                texts[first : first + batch_size], max_new_tokens=max_new_tokens, **options
            )
            replies += [written] if isinstance(written, str) else written
    # A model without a chat template goes on with the other's next words.
    trials = [Trial(*one, reply.split("\nHuman:")[0]) for one, reply in zip(asked_for, replies, strict=True)]
    grades = behaviour.grade(trials)
    unknown = {label for given in grades for label in given} - {*behaviour.labels, ""}
    if unknown or len(grades) != len(trials):
        raise InputError(
            f"the grader of {behaviour.name} gave {len(grades)} grades to {len(trials)} replies, unknown labels: "
            f"{sorted(unknown)}"
        )
    rows = [
        (trial.scenario.name, trial.sample, trial.reply, given)
        for trial, given in zip(trials, grades, strict=True)
    ]
    return pd.DataFrame(rows, columns=["scenario", "sample", "reply", "grades"])


def replies(
    behaviour: Behaviour,
    *,
    samples: int = 4,
    max_new_tokens: int = 200,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 32,
    observe: Callable[[pd.DataFrame], object] | None = None,
) -> Measure:
    """Measure a behaviour: for each scenario the share of replies with each label, "<name>: <label>", and "<name>: graded".

    The rest of the replies could not be graded. Where there are several judgements, each counts in equal part. The measure has
    texts of its own and needs no prompts. `observe` is handed what `tried` returned for each strength and condition, to read
    and to compare judgements (`list.append` will do); runs that a resumed sweep had kept are not among them.
    """

    def measure(model: LiveModel, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        found = tried(
            model,
            behaviour,
            samples=samples,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            batch_size=batch_size,
        )
        if observe is not None:
            observe(found)
        wanted = {label: (label,) for label in behaviour.labels} | {GRADED: behaviour.labels}
        return {
            f"{behaviour.name}: {name}": _shares(found, labels, len(behaviour.scenarios))
            for name, labels in wanted.items()
        }

    return measure


def choices(
    behaviour: str, scenarios: Sequence[Scenario], *, batch_size: int = 32, opening: str = "DECISION:"
) -> RowWise:
    """Measure which of two options is likelier, the shortcut or the honest way, without generating; see `pressure_scenarios`.

    Each scenario is asked in all its wordings, which name the shortcut by another letter; `facts["shortcut"]` says by which.
    "log-odds of the shortcut" is the mean over wordings of log P(its letter) − log P(the other) in nats, "shortcut chosen" the
    share of wordings in which it is likelier, "answered A or B" the mean probability of either letter.
    """

    @RowWise
    def measure(model: LiveModel, prompts: Sequence[str]) -> Passes[dict[str, torch.Tensor]]:
        pairs, towards = [], []
        for scenario in scenarios:
            for wording, letter in zip(scenario.questions, scenario.facts["shortcut"], strict=True):
                text = asked(model, wording, opening=opening).text
                pairs += [(text, " A"), (text, " B")]
                towards.append(1.0 if letter == "A" else -1.0)
        log_p = (yield from passes_of_pairs(model, pairs, batch_size)).view(-1, 2)
        log_odds = (log_p[:, 0] - log_p[:, 1]) * torch.tensor(towards, dtype=torch.float64)
        values = {
            SHORTCUT: (log_odds.sign() + 1) / 2,
            LOG_ODDS: log_odds,
            ANSWERED: log_p.exp().sum(-1),
        }
        by_scenario = np.repeat(np.arange(len(scenarios)), [len(one.questions) for one in scenarios])
        means = (
            pd.DataFrame({name: found.numpy() for name, found in values.items()}).groupby(by_scenario).mean()
        )
        return {
            f"{behaviour}: {name}": torch.tensor(means[name].tolist(), dtype=torch.float64) for name in values
        }

    return measure


def _shares(found: pd.DataFrame, labels: Sequence[str], scenarios: int) -> torch.Tensor:
    """Return for each scenario, in order, the share of grades that are among `labels`: float64 (scenarios,)."""
    share = [sum(label in labels for label in given) / len(given) for given in found.grades]
    return torch.tensor(share, dtype=torch.float64).view(scenarios, -1).mean(1)
