"""Ask models what they would rather do, and see how they behave, untouched and steered, beside random directions.

    python benchmarks/behaviours.py [--only MODEL ...] [--shared DIR]

For the bundled model and each in DIR/models (DIR: the environment variable EMOPROBE_SHARED, or ../shared beside the project)
it takes preferences over activities, asks whether probes foresee them and whether joy's direction shifts them, and runs the
sets of scenarios that need no judge. Code that a model writes is run, in a process with limits. Models this small are not
expected to take part, and the page says where they do not. Writes benchmarks/behaviours.json and benchmarks/behaviours.md; a
model that is run again replaces what it had.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import emoprobe as ep
from emoprobe.artefacts import write_bytes
from emoprobe.models import LiveModel
from emoprobe.probes import ProbeSet
from emoprobe.steering import Measure, activities, preferences, probe_correlation, steer_preferences
from emoprobe.steering.behaviours import (
    choices,
    coding,
    keeping_rules,
    pressure,
    pressure_scenarios,
    replies,
    verdicts,
)
from emoprobe.study.texts import divide
from emoprobe.study.wording import number, ranged, span

HERE = Path(__file__).resolve().parent
CONCEPT, STRENGTHS, SPAN_STRENGTH, CONTROLS = "joy", (0.1,), 0.5, 3
PER_CATEGORY, TOKENS = 2, 24
MEASURES: dict[str, Callable[[], Measure]] = {
    "pressure, by likelihood": lambda: choices("pressure, by likelihood", pressure_scenarios()),
    "pressure": lambda: replies(pressure(), samples=2, max_new_tokens=TOKENS),
    "keeping rules": lambda: replies(keeping_rules(), samples=1, max_new_tokens=TOKENS),
    "coding": lambda: replies(coding(run_code=True), samples=1, max_new_tokens=TOKENS),
}


def preferring(model: LiveModel, probes: ProbeSet) -> dict[str, Any]:
    """Take preferences, foresee them and steer them."""
    found = preferences(model, activities(PER_CATEGORY), progress=False)
    rho, p = found.consistency
    foreseen = probe_correlation(model, probes, found)
    shift = steer_preferences(
        model, {CONCEPT: probes[CONCEPT]}, found, SPAN_STRENGTH, controls=CONTROLS, progress=False
    )
    own, random = shift.frame.iloc[0], shift.frame.iloc[1:]
    categories = found.frame.groupby("category").score.mean().sort_values()
    return {
        "activities": len(found.activities),
        **{"rho": rho, "p": p, "measurable": found.measurable, **found.position},
        "answered": float(np.nanmean(found.answered)),  # type: ignore[arg-type]  # asked of a model
        "categories": categories.to_dict(),
        "foreseen": foreseen.iloc[foreseen.r.abs().argmax()].to_dict(),
        "concepts": len(foreseen),
        "significant": int((foreseen.q < 0.05).sum()),
        "shift": own.to_dict(),
        "random": random[["shift", "gain"]].to_dict("list"),
    }


def behaving(model: LiveModel, probes: ProbeSet) -> dict[str, Any]:
    """Sweep each set of scenarios that fits into the model's context."""
    found: dict[str, Any] = {}
    for name, make in MEASURES.items():
        try:
            sweep = ep.sweep(
                model, probes[CONCEPT], STRENGTHS, ["-"], [make()], controls=CONTROLS, progress=False
            )
        except ep.InputError as error:
            found[name] = str(error)
        else:
            found[name] = verdicts(sweep).to_dict("records")
    return found


def asked(model: LiveModel) -> dict[str, Any]:
    """Return all that was found of one model, and how long it took."""
    begun = time.process_time()
    fit, _ = divide(ep.load_corpus("passages"), 900)
    probes = ep.fit_probes(
        model, fit, [0.66], estimator="mean_difference", permutations=0, bootstrap=0, progress=False
    )
    found: dict[str, Any] = {"behaviours": behaving(model, probes)}
    try:
        found["preferences"] = preferring(model, probes)
    except ep.InputError as error:
        found["preferences"] = str(error)
    return {**found, "cpu_seconds": time.process_time() - begun}


def told(name: str, found: dict[str, Any]) -> list[str]:
    """Return what was found of a model as lines of Markdown."""
    lines = [f"## {name} ({found['cpu_seconds']:.0f} s of CPU time)", ""]
    prefer = found["preferences"]
    if isinstance(prefer, str):
        lines += [f"Preferences: not asked; {prefer}.", ""]
    else:
        lines += [*told_preferences(prefer), ""]
    lines += [
        "| behaviour | what | untouched [95 %] | answers | at s = 0 and 0.1 | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for behaviour, rows in found["behaviours"].items():
        if isinstance(rows, str):
            lines.append(f"| {behaviour} | | | | | not asked: {rows} |")
            continue
        lines += [
            f"| {behaviour} | {row['what']} | {span(row['baseline'], row['low'], row['high'])} | {row['answers']:.2g} "
            f"| {ranged([row['lowest'], row['highest']])} | {row['verdict']} |"
            for row in rows
        ]
    return [*lines, ""]


def told_preferences(prefer: dict[str, Any]) -> list[str]:
    best, shift = prefer["foreseen"], prefer["shift"]
    liked = ", ".join(
        f"{name} {number(value, sign=True)}" for name, value in reversed(prefer["categories"].items())
    )
    held = (
        "hold in both orders"
        if prefer["measurable"]
        else "do NOT hold in both orders: nothing can be measured"
    )
    permuted = (
        "" if "between" in best else " (may be too small: single activities were permuted, not categories)"
    )
    interval = span(shift["shift"], shift["low"], shift["high"])
    gain = span(shift["gain"], shift["gain_low"], shift["gain_high"])
    return [
        f"Preferences over {prefer['activities']} activities {held} (ρ = {number(prefer['rho'])} between scores when shown "
        f"first and second, p = {prefer['p']:.2g}); lean to the first {number(prefer['advantage'], sign=True)} nats, the first "
        f"is chosen in {prefer['first']:.0%} of questions, the same activity in both orders in {prefer['kept']:.0%} of pairs; "
        f"P(A or B) = {prefer['answered']:.2g}. Mean scores: {liked}.",
        "",
        f"Foreseen: {prefer['significant']} of {prefer['concepts']} concepts at q < 0.05; furthest {best['concept']}, r = "
        f"{span(best['r'], best['low'], best['high'])}, within categories {number(best['within'])}, "
        f"q = {best['q']:.2g}{permuted}; one more random direction "
        f"{number(best['random_low'])} to {number(best['random_high'])}.",
        "",
        f"Steered ({CONCEPT}, s = {SPAN_STRENGTH} on the words of half of the activities): shift {interval} nats (random "
        f"{ranged(prefer['random']['shift'])}), gain {gain} (random {ranged(prefer['random']['gain'])}), published score "
        f"{number(shift['elo_change'], 0, sign=True)} Elo, {number(shift['from_baseline'])} correlated with the rating before; "
        f"{shift['verdict']}.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = os.environ.get("EMOPROBE_SHARED", str(HERE.parents[1] / "shared"))
    parser.add_argument("--shared", type=Path, default=Path(default), help="folder with models")
    parser.add_argument("--only", nargs="*", help="names of models; none: write the page anew")
    given = parser.parse_args()
    folders = sorted(
        path for path in (given.shared / "models").glob("*/") if (path / "config.json").is_file()
    )
    sources: dict[str, Any] = {"bundled": "bundled", **{folder.name: folder for folder in folders}}
    kept = HERE / "behaviours.json"
    record = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    for name in sources if given.only is None else given.only:
        model = ep.load_model(sources[name])
        model.name = name  # without the folder that it lies in
        record[name] = asked(model)
        write_bytes(kept, (json.dumps(record, indent=1, default=float, ensure_ascii=False) + "\n").encode())
    lines = [
        "# Preferences and behaviours, beside their controls",
        "",
        "`python benchmarks/behaviours.py`, one CPU thread. `feedback` (sycophancy against harshness) needs a judge and is not "
        f"run here. Random directions: {CONTROLS}.",
        "",
    ]
    for name, found in record.items():
        lines += told(name, found)
    write_bytes(HERE / "behaviours.md", ("\n".join(lines).rstrip() + "\n").encode())
    print("\n".join(lines))


if __name__ == "__main__":
    main()
