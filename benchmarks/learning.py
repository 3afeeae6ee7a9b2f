"""Does a valuation that is learned from a random start turn into what the probes found, where the truth is known?

    python benchmarks/learning.py [--seeds 5]

On the ground-truth model and texts of its own language, probes are fitted and valuations learned from random starts on some
worlds, and everything is measured on others. Once the next token is learned, without any annotation, and once annotations.
Some minutes on a CPU. Writes benchmarks/learning.json and benchmarks/learning.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import emoprobe as ep
from emoprobe.artefacts import write_bytes
from emoprobe.intervals import mean_interval
from emoprobe.study.texts import METHOD, divide
from emoprobe.valattn.learn import Objective
from emoprobe.valattn.recovery import DRAWS, Recovery, recovery

HERE = Path(__file__).resolve().parent
SETTINGS: Mapping[Objective, Mapping[str, Any]] = {
    "next_token": {"steps": 100, "learning_rate": 0.003},
    "annotations": {"steps": 60, "learning_rate": 0.01},
}
WANTED = 0.9
"""Correlation with held-out valence that learning from annotations should reach."""


def held_out_valence(found: Recovery) -> str:
    """Say how the learned valuations of held-out texts agree with their annotations."""
    parts = []
    for dimension, rows in found.readings.groupby("dimension", sort=False):
        mean, low, high = mean_interval(rows.r.tolist())
        parts.append(f"{dimension} {mean:.3f} [{low:.3f}, {high:.3f}], lowest {rows.r.min():.3f}")
    return "; ".join(parts)


def page(results: Mapping[Objective, Recovery], facts: Mapping[str, Any]) -> str:
    """Write the results down for people."""
    lines = [
        "# Do learned valuations become probed ones?",
        "",
        f"`python benchmarks/learning.py`: the ground-truth model ({facts['model']}), {facts['fitted']} texts of some worlds "
        f"to fit and learn on, {facts['held_out']} of others; {facts['seeds']} random starts. {facts['hardware']}; "
        f"{facts['seconds']:.0f} s in all.",
        "",
        "Overlap is the mean squared cosine of the principal angles between the spaces that rows span, averaged over blocks: 1 "
        f"for the same space. Random spaces are the learned ones turned at random, {facts['draws']} times for each seed; p is "
        "that of the mean over seeds.",
    ]
    for objective, found in results.items():
        lines += ["", f"## Learned on {'the next token' if objective == 'next_token' else 'annotations'}", ""]
        lines += [
            ", ".join(f"{name} {value}" for name, value in SETTINGS[objective].items()).replace("_", " ")
            + ".",
            "",
        ]
        lines += [
            found.report(),
            "",
            f"Held-out texts, r of mean valuations with annotation: {held_out_valence(found)}.",
        ]
        if objective == "annotations":
            valence = found.readings[found.readings.dimension == "valence"].r
            reached = "reached" if (valence >= WANTED).all() else "not reached by all starts"
            lines += [
                "",
                f"r ≥ {WANTED} with held-out valence: **{reached}**. Learned valuations and probes were shown the same",
            ]
            lines += ["annotations, so that their meeting says that learning works, and no more."]
        for table in (found.seeds, found.layers):
            lines += ["", *markdown(table.round(4))]
    return "\n".join(lines) + "\n"


def markdown(table: Any) -> list[str]:
    """Return the lines of a table."""
    rows = [table.columns, ["---"] * len(table.columns), *table.itertuples(index=False)]
    return [
        "| " + " | ".join(f"{cell:g}" if isinstance(cell, float) else str(cell) for cell in row) + " |"
        for row in rows
    ]


def main() -> None:
    """Run everything and write it down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    begun = time.perf_counter()
    model = ep.load_model("ground-truth")
    fitted, held_out = divide(ep.load_corpus("ground-truth"), seed=0)
    probes = ep.fit_probes(model, fitted, concepts=list(METHOD))
    probed = ep.Valuation.from_probes(probes, METHOD)
    results = {
        objective: recovery(model, fitted, held_out, probed, objective=objective, seeds=seeds, **settings)
        for objective, settings in SETTINGS.items()
    }
    facts = {
        "model": model.fingerprint(),
        "fitted": len(fitted),
        "held_out": len(held_out),
        "seeds": seeds,
        "draws": DRAWS,
        "hardware": (
            f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s)"
        ),
        "seconds": time.perf_counter() - begun,
    }
    record = {
        objective: {
            "settings": dict(SETTINGS[objective]),
            "p": found.p,
            "p_shuffled": found.p_shuffled,
            "report": found.report(),
            **{
                name: json.loads(getattr(found, name).to_json(orient="records"))
                for name in ("seeds", "layers", "readings")
            },
        }
        for objective, found in results.items()
    }
    write_bytes(HERE / "learning.json", (json.dumps({"facts": facts, **record}, indent=1) + "\n").encode())
    write_bytes(HERE / "learning.md", page(results, facts).encode())
    print(page(results, facts))


if __name__ == "__main__":
    main()
