"""Probe real models on real people's words, and write the README's table.

    python benchmarks/real_models.py [--shared DIR] [--limit N] [--out DIR]

Runs the whole study for the bundled model and each in DIR/models on EmoBank and GoEmotions in DIR/data (DIR: the environment
variable EMOPROBE_SHARED, or ../shared beside the project). What is done is kept; the same command goes on. Writes
benchmarks/real_models.json and, as two tables, benchmarks/real_models.md: how well probes read, and what steering, injection
and learning do.
"""

import argparse
import json
import os
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import emoprobe as ep
from emoprobe.artefacts import write_bytes
from emoprobe.study import Study

HERE = Path(__file__).resolve().parent
MODELS = ("bundled", "stories260K", "babyllama-tok361-970K", "babyllama-tok105-940K")
CORPORA = ("emobank", "goemotions")
SHOWN = {"emobank": ("valence", "arousal", "dominance"), "goemotions": ("(labels)",)}
EXPERIMENTS = ("steering", "injecting", "learning")
METRICS = {"pearson_r": "Pearson r", "macro_auc": "mean AUC of 28 labels"}


def studies(shared: Path, out: Path, limit: int, seed: int) -> Iterator[tuple[str, str, Study]]:
    """Yield the finished study of each model on each corpus."""
    for name in MODELS:
        for corpus in CORPORA:
            model = ep.load_model(name if name == "bundled" else shared / "models" / name)
            texts = ep.load_corpus(corpus, folder=shared / "data" / corpus)
            yield name, corpus, ep.run_study(model, texts, out / f"{name}-{corpus}", limit=limit, seed=seed)


def best_layers(study: Study, corpus: str) -> list[dict[str, Any]]:
    """Return the best layer of each concept shown, with its interval and controls."""
    scores = ep.load_probes(study.folder / "probes.safetensors").scores
    best = scores.loc[scores.groupby("concept")["value"].idxmax()].set_index("concept", drop=False)
    return [best.loc[concept].to_dict() for concept in SHOWN[corpus]]


def probing_table(rows: list[dict[str, Any]]) -> str:
    """Return what probes read, as Markdown."""
    head = "model | corpus | concept, metric | best layer | score [95 %] | layer 0, gain | bag of words, gain | shuffled"
    lines = [_line(head.split(" | ")), "|" + "---|" * 8]
    for row in rows:
        concept = "all labels" if row["concept"] == "(labels)" else row["concept"]
        cells = [row["model"], row["corpus"], f"{concept}, {METRICS[row['metric']]}", str(row["layer"])]
        cells.append(f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]")
        for control in ("layer0", "bag_of_words"):
            low, high = row[f"{control}_gain_low"], row[f"{control}_gain_high"]
            cells.append(f"{row[control]:.2f}, [{low:+.2f}, {high:+.2f}]")
        cells.append(f"{row['shuffled']:.2f} [{row['shuffled_low']:.2f}, {row['shuffled_high']:.2f}]")
        lines.append(_line(cells))
    return "\n".join(lines) + "\n"


def effects_table(rows: list[dict[str, str]]) -> str:
    """Return what interventions do, as Markdown."""
    lines = [_line(["model", "corpus", "experiment", "finding [95 %]", "controls"]), "|" + "---|" * 5]
    return "\n".join([*lines, *(_line(row.values()) for row in rows)]) + "\n"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = os.environ.get("EMOPROBE_SHARED", str(HERE.parents[1] / "shared"))
    parser.add_argument("--shared", type=Path, default=Path(default), help="folder with models/ and data/")
    parser.add_argument("--limit", type=int, default=3000, help="texts of each corpus, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/real-models"), help="where the run folders go")
    given = parser.parse_args()
    read, done = [], []
    for name, corpus, study in studies(given.shared, given.out, given.limit, given.seed):
        about = {"model": name, "corpus": corpus}
        read += [{**about, **row} for row in best_layers(study, corpus)]
        done += [
            {**about, "experiment": what, "finding": study[what].finding, "controls": study[what].controls}
            for what in EXPERIMENTS
        ]
    run = {"limit": given.limit, "seed": given.seed, "machine": platform.machine(), "cores": os.cpu_count()}
    content = json.dumps(
        {**run, "probing": read, "effects": done}, indent=1, default=float, ensure_ascii=False
    )
    tables = f"{probing_table(read)}\n{effects_table(done)}"
    write_bytes(HERE / "real_models.json", f"{content}\n".encode())
    write_bytes(HERE / "real_models.md", tables.encode())
    print(tables)


if __name__ == "__main__":
    main()
