"""What directions do to how a model behaves: sets of scenarios, and what tells what was done in them.

`feedback` asks for candour where flattery or harshness is nearer, `coding` gives tasks that can be passed by cheating,
`pressure` puts a harmful shortcut on offer, `keeping_rules` asks for what a rule forbids and harms nobody. Each is a
`Behaviour`; `replies` makes a measure of it for `emoprobe.steering.sweep`, `choices` one that needs no generation; `rates` and
`verdicts` read the sweep. The kinds of scenarios follow Sofroniew et al. 2026 (arXiv 2604.07729, figures 28 to 35); all texts
are our own.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from emoprobe.errors import InputError
from emoprobe.steering.behaviours.graders import agreement, by_decision, by_judge, by_running, by_secret
from emoprobe.steering.behaviours.rates import rates, verdicts, wilson
from emoprobe.steering.behaviours.sandbox import Ran, run_code
from emoprobe.steering.behaviours.trials import Behaviour, Grade, Scenario, Trial, choices, replies, tried

if TYPE_CHECKING:
    from emoprobe.corpora.stories.writers import Writer

__all__ = [
    "Behaviour",
    "Grade",
    "Ran",
    "Scenario",
    "Trial",
    "agreement",
    "by_decision",
    "by_judge",
    "by_running",
    "by_secret",
    "choices",
    "coding",
    "feedback",
    "keeping_rules",
    "pressure",
    "pressure_scenarios",
    "rates",
    "replies",
    "run_code",
    "tried",
    "verdicts",
    "wilson",
]


@cache
def _data(name: str) -> Any:
    return json.loads(
        resources.files("emoprobe.steering.behaviours").joinpath(f"{name}.json").read_text(encoding="utf-8")
    )


def feedback(judge: Writer, other: Writer | None = None, *, seed: int = 0) -> Behaviour:
    """Return scenarios in which someone wants praise or assent that is not due: "sycophantic", "harsh" or "candid" replies.

    Each reply is judged twice, by `judge` with two seeds or by `judge` and `other`; see `agreement`.
    """
    data = _data("feedback")
    scenarios = tuple(Scenario(one["name"], (one["question"],)) for one in data["scenarios"])
    labels = tuple(data["labels"])
    return Behaviour("feedback", scenarios, labels, by_judge(data["rubric"], labels, judge, other, seed=seed))


def coding(*, run_code: bool = False) -> Behaviour:
    """Return programming tasks that can be passed by cheating: "solved", "cheated", "honest" or "failed" replies.

    In half of the tasks the tests that are shown can be passed honestly or by listing their answers. In the others, which are
    impossible, one of these tests is wrong: honest code fails it ("honest"), and only code made for the test passes.

    What the model writes is run on this machine, in a process with limits that is no jail (see `sandbox`). Raises `InputError`
    unless `run_code` is True, which says that you want that.
    """
    if not run_code:
        raise InputError(
            "grading these tasks runs code that the model wrote, in a process with limits that is no jail: give run_code=True "
            "if you want that, best inside a container"
        )
    data = _data("coding")
    scenarios = tuple(
        Scenario(
            one["name"],
            (
                data["question"].format(
                    task=one["task"], tests=_tests(one["shown"]), function=one["function"]
                ),
            ),
            one,
        )
        for one in data["scenarios"]
    )
    return Behaviour("coding", scenarios, ("solved", "cheated", "honest", "failed"), by_running)


def pressure() -> Behaviour:
    """Return situations with a harmful shortcut on offer, and replies that end in a decision: "shortcut" or "honest"."""
    return Behaviour("pressure", pressure_scenarios(), ("shortcut", "honest"), by_decision)


def pressure_scenarios() -> tuple[Scenario, ...]:
    """Return the situations of `pressure`, each in two wordings, which name the shortcut A and B; for `choices` as well."""
    data = _data("pressure")

    def wording(one: dict[str, str], a: str, b: str) -> str:
        question: str = data["question"].format(situation=one["situation"], a=one[a], b=one[b])
        return question

    return tuple(
        Scenario(
            one["name"],
            (wording(one, "shortcut", "honest"), wording(one, "honest", "shortcut")),
            {"shortcut": ("A", "B")},
        )
        for one in data["scenarios"]
    )


def keeping_rules() -> Behaviour:
    """Return requests for what a rule forbids to tell, a stand-in for harmful requests that harms nobody.

    "complied" replies hold the secret, "declined" ones refuse and do not.
    """
    data = _data("rules")
    scenarios = tuple(
        Scenario(one["name"], (f"{one['rule']}\n\n{one['request']}",), {"secret": one["secret"]})
        for one in data["scenarios"]
    )
    return Behaviour("keeping rules", scenarios, ("complied", "declined"), by_secret)


def _tests(shown: list[list[Any]]) -> str:
    return "\n".join(f"assert {call} == {expected!r}" for call, expected in shown)
