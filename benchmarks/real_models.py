"""Probe real models on real people's words, and write the README's table.

    python benchmarks/real_models.py [--shared DIR] [--limit N] [--out DIR]

Runs the whole study for each model in DIR/models on EmoBank and GoEmotions in DIR/data (DIR: the environment variable
EMOPROBE_SHARED, or ../shared beside the project). What is done is kept; the same command goes on. Writes
benchmarks/real_models.json and benchmarks/real_models.md.
"""

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import emoprobe as ep
from emoprobe.artefacts import write_bytes

HERE = Path(__file__).resolve().parent
MODELS = ("stories260K", "babyllama-tok361-970K", "babyllama-tok105-940K")
CORPORA = ("emobank", "goemotions")
SHOWN = {"emobank": ("valence", "arousal", "dominance"), "goemotions": ("(labels)",)}
METRICS = {"pearson_r": "Pearson r", "macro_auc": "mean AUC of 28 labels"}


def rows(shared: Path, out: Path, limit: int, seed: int) -> list[dict[str, Any]]:
    """Run the studies and return the best layer of each concept shown, with its interval and controls."""
    found = []
    for name in MODELS:
        for corpus in CORPORA:
            model = ep.load_model(shared / "models" / name)
            texts = ep.load_corpus(corpus, folder=shared / "data" / corpus)
            study = ep.run_study(model, texts, out / f"{name}-{corpus}", limit=limit, seed=seed)
            probes = ep.load_probes(study.folder / "probes.safetensors")
            for concept in SHOWN[corpus]:
                scores = probes.scores[probes.scores["concept"] == concept]
                best = scores.loc[scores["value"].idxmax()].to_dict()
                found.append({"model": name, "corpus": corpus, "passed": study.passed, **best})
    return found


def table(found: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    head = [
        "model",
        "corpus",
        "concept",
        "metric",
        "best layer",
        "score [95 %]",
        "layer 0",
        "bag of words",
        "shuffled",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in found:
        concept = "all labels" if row["concept"] == "(labels)" else row["concept"]
        shuffled = f"{row['shuffled']:.2f} [{row['shuffled_low']:.2f}, {row['shuffled_high']:.2f}]"
        cells = [row["model"], row["corpus"], concept, METRICS[row["metric"]], str(row["layer"])]
        cells += [f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]", f"{row['layer0']:.2f}"]
        cells += [f"{row['bag_of_words']:.2f}", shuffled]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = os.environ.get("EMOPROBE_SHARED", str(HERE.parents[1] / "shared"))
    parser.add_argument("--shared", type=Path, default=Path(default), help="folder with models/ and data/")
    parser.add_argument("--limit", type=int, default=3000, help="texts of each corpus, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/real-models"), help="where the run folders go")
    given = parser.parse_args()
    found = rows(given.shared, given.out, given.limit, given.seed)
    about = {"limit": given.limit, "seed": given.seed, "machine": platform.machine(), "cores": os.cpu_count()}
    content = json.dumps({**about, "rows": found}, indent=1, default=float) + "\n"
    write_bytes(HERE / "real_models.json", content.encode())
    write_bytes(HERE / "real_models.md", table(found).encode())
    print(table(found))


if __name__ == "__main__":
    main()
