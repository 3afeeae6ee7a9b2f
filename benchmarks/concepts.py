"""Run the representation experiments on the bundled and on small real models, and write the results page.

    python benchmarks/concepts.py [--only MODEL …] [--shared DIR] [--limit N] [--out DIR]

Probes are fitted on the package's passages (on its generator's texts for the ground-truth model), and tried on EmoBank and
GoEmotions in DIR/data where DIR is there (the environment variable EMOPROBE_SHARED, or ../shared beside the project). Models
are ground-truth, bundled, and those in DIR/models. What is done is kept in the folder that --out names; the same command goes
on. Writes benchmarks/concepts.json, a section for each model, and benchmarks/concepts.md. With --only the sections of other
models stay as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import emoprobe as ep
from emoprobe.artefacts import write_bytes
from emoprobe.study import Study

HERE = Path(__file__).resolve().parent
BESIDE = ("emobank", "goemotions")
REAL = ("stories260K", "babyllama-tok361-970K", "babyllama-tok105-940K")
MODELS = ("ground-truth", "bundled", *REAL)
NORMS = Path("data") / "warriner_vad" / "Ratings_Warriner_et_al.csv"
FIELDS = ("title", "question", "method", "finding", "controls", "published", "verdict", "sign", "remarks")
NOT_ASKED, UNKNOWN = "–", "?"
SHOWN, NULL, AGAINST = "●", "○", "▽"


def examined(name: str, shared: Path, out: Path, limit: int, seed: int) -> Study:
    """Run what is not done yet of the experiments of one model."""
    if name == "ground-truth":
        return ep.run_concepts(name, name, out / name, limit=limit, seed=seed)
    here = [corpus for corpus in BESIDE if (shared / "data" / corpus).is_dir()]
    beside = [
        ep.load_corpus(corpus, folder=shared / "data" / corpus, limit=limit, seed=seed) for corpus in here
    ]
    norms = shared / NORMS if (shared / NORMS).is_file() else None
    model = ep.load_model("bundled" if name == "bundled" else shared / "models" / name)
    return ep.run_concepts(model, "passages", out / name, beside=beside, norms=norms, seed=seed)


def section(study: Study) -> dict[str, Any]:
    """Return what is kept of one model: its record, and the words of each experiment."""
    record = study.manifest
    return {
        **{name: record[name] for name in ("begun", "seed", "model", "versions", "hardware")},
        "corpus": record["corpus"]["name"],
        "seconds": {name: step["seconds"] for name, step in record["steps"].items()},
        "results": {
            result.name: {name: getattr(result, name) for name in FIELDS} for result in study.results
        },
    }


# The page ------------------------------------------------------------------------------------------------------------


def mark(found: Mapping[str, Any]) -> str:
    """Say by one character what an experiment itself made of its numbers; of older runs that is not known."""
    if found["finding"] == "not asked":
        return NOT_ASKED
    return {1: SHOWN, 0: NULL, -1: AGAINST, None: UNKNOWN}[found.get("sign")]


def cell(text: str) -> str:
    """Return words as a table takes them."""
    return " ".join(text.split(" ")).replace("|", "\\|").replace("\n", " ")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = [head, ["---"] * len(head), *([cell(text) for text in row] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def summary(models: Mapping[str, Mapping[str, Any]], experiments: Mapping[str, str]) -> list[str]:
    """Return the table of all experiments and models."""
    rows = []
    for name, title in experiments.items():
        found = [model["results"].get(name) for model in models.values()]
        rows.append([f"[{title}](#{anchor(title)})", *(mark(one) if one else "" for one in found)])
    return table(["experiment", *models], rows)


def anchor(title: str) -> str:
    """Return what a heading is called in links, as GitHub writes it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def experiment(name: str, title: str, models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the section of one experiment: the published value, and what each model gave."""
    asked = {model: part["results"][name] for model, part in models.items() if name in part["results"]}
    done = {model: found for model, found in asked.items() if mark(found) != NOT_ASKED}
    lines = ["", f"## {title}", ""]
    if done:
        first = next(iter(done.values()))
        lines += [first["question"], "", f"Published: {first['published'] or 'nothing comparable.'}", ""]
        rows = [[model, found["finding"], found["controls"]] for model, found in done.items()]
        lines += [*table(["model", "found, with 95 % intervals", "controls"], rows), ""]
    return lines + [f"- **{model}** {mark(one)} {one['verdict']}" for model, one in asked.items()]


def page(models: Mapping[str, Mapping[str, Any]], command: str) -> str:
    """Write everything down for people."""
    titles: dict[str, str] = {}
    for model in models.values():
        for name, found in model["results"].items():
            if mark(found) != NOT_ASKED or name not in titles:
                titles[name] = found["title"]
    lines = [
        "# The representation experiments of “Emotion Concepts”",
        "",
        f"`{command}`; each model is read by probes of its own. What was published is of other, far larger",
        "models and stands beside for orientation: that a small model shows nothing says nothing about those. Each finding has",
        "random directions of equal norm or shuffled labels beside it; a null says from where on it would be shown.",
        "",
        f"{SHOWN} all that was asked is shown, beyond all controls; {NULL} it is not; {AGAINST} its opposite is;",
        f"{NOT_ASKED} it cannot be asked; {UNKNOWN} the run did not keep a sign. The verdict says more; runs of",
        "27 November 2026 kept none, and theirs were read off their verdicts.",
        "Base against tuned: no pair of models lies here,",
        "and that experiment has been tried on planted changes only (`tests/test_concepts_tuning.py`).",
        "",
        *summary(models, titles),
        "",
        *table(
            ["model", "parameters", "blocks × width", "probes of", "seconds", "machine", "versions"],
            [about(name, model) for name, model in models.items()],
        ),
    ]
    for name, title in titles.items():
        lines += experiment(name, title, models)
    return "\n".join(lines) + "\n"


def about(name: str, model: Mapping[str, Any]) -> list[str]:
    """Return the row of a model in the table of the runs."""
    facts, hardware, versions = model["model"], model["hardware"], model["versions"]
    return [
        name,
        f"{facts['parameters']:,}",
        f"{facts['blocks']} × {facts['width']}",
        model["corpus"],
        f"{sum(model['seconds'].values()):.0f}",
        f"{hardware['processor']}, {hardware['cores']} cores, {hardware['threads']} thread used, {model['begun'][:10]}",
        ", ".join(
            f"{package} {versions[package]}" for package in ("emoprobe", "python", "torch", "transformers")
        ),
    ]


def main() -> None:
    """Run what was asked for, and write it down beside what is there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = os.environ.get("EMOPROBE_SHARED", str(HERE.parents[1] / "shared"))
    parser.add_argument(
        "--only", nargs="+", choices=MODELS, help="models to run; the others stay as they are"
    )
    parser.add_argument("--shared", type=Path, default=Path(default), help="folder with models/ and data/")
    parser.add_argument("--limit", type=int, default=1000, help="texts of each corpus, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/concepts"), help="where the run folders go")
    given = parser.parse_args()
    there = [name for name in MODELS if name not in REAL or (given.shared / "models" / name).is_dir()]
    kept = HERE / "concepts.json"
    sections = json.loads(kept.read_text("utf-8")) if kept.is_file() else {}
    for name in given.only or there:
        sections[name] = section(examined(name, given.shared, given.out, given.limit, given.seed))
        ordered = {model: sections[model] for model in MODELS if model in sections}
        write_bytes(kept, (json.dumps(ordered, indent=1, ensure_ascii=False) + "\n").encode())
        command = f"python benchmarks/concepts.py --limit {given.limit} --seed {given.seed}"
        write_bytes(HERE / "concepts.md", page(ordered, command).encode())


if __name__ == "__main__":
    main()
