"""Run the representation experiments on the bundled models and write the results page.

    python benchmarks/concepts.py [--shared DIR] [--limit N] [--out DIR]

Probes are fitted on the package's passages (bundled model) or its generator's texts (ground-truth model), and tried on EmoBank
and GoEmotions in DIR/data where DIR is there (the environment variable EMOPROBE_SHARED, or ../shared beside the project).
With it a small model in DIR/models is examined too, with probes of the passages. What is done is kept; the same command goes
on. Writes benchmarks/concepts.md: each experiment's finding, its controls, what was published, and the verdict.
"""

import argparse
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import torch

import emoprobe as ep
from emoprobe.artefacts import write_bytes
from emoprobe.study import Study

HERE = Path(__file__).resolve().parent
BESIDE = ("emobank", "goemotions")
SMALL = ("stories260K",)


def studies(shared: Path, out: Path, limit: int, seed: int) -> Iterator[tuple[str, Study]]:
    """Yield the finished experiments of each model."""
    here = [name for name in BESIDE if (shared / "data" / name).is_dir()]
    beside = [ep.load_corpus(name, folder=shared / "data" / name, limit=limit, seed=seed) for name in here]
    yield "ground-truth", ep.run_concepts("ground-truth", "ground-truth", out / "ground-truth", limit=limit)
    yield "bundled", ep.run_concepts("bundled", "passages", out / "bundled", beside=beside, seed=seed)
    for name in SMALL:
        if (shared / "models" / name).is_dir():
            model = ep.load_model(shared / "models" / name)
            yield name, ep.run_concepts(model, "passages", out / name, beside=beside, seed=seed)


def page(name: str, study: Study) -> str:
    """Return the results of one model as Markdown."""
    about = study.manifest["model"]
    lines = [
        f"## {name} ({about['parameters']:,} parameters), probes of {study.manifest['corpus']['name']}\n",
        "| experiment | finding | controls | published elsewhere | verdict |",
        "|---|---|---|---|---|",
    ]
    for result in study.results:
        cells = [result.title, result.finding, result.controls, result.published, result.verdict]
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = os.environ.get("EMOPROBE_SHARED", str(HERE.parents[1] / "shared"))
    parser.add_argument("--shared", type=Path, default=Path(default), help="folder with models/ and data/")
    parser.add_argument("--limit", type=int, default=1000, help="texts of each corpus beside, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/concepts"), help="where the run folders go")
    given = parser.parse_args()
    pages = [page(name, study) for name, study in studies(given.shared, given.out, given.limit, given.seed)]
    machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    head = (
        "# The representation experiments of “Emotion Concepts”\n\n"
        f"`python benchmarks/concepts.py --limit {given.limit} --seed {given.seed}` ({machine}). What was published is of "
        "other, far larger models and stands here for orientation; a null of a small model says nothing about those.\n"
    )
    write_bytes(HERE / "concepts.md", "\n".join([head, *pages]).encode())


if __name__ == "__main__":
    main()
