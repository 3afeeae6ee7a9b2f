"""Read emotion and valence off the bundled model layer by layer, on the passages and on EmoBank.

    python benchmarks/layers.py [MODEL] [--shared DIR] [--limit N]

MODEL is what `load_model` takes, by default "bundled"; EmoBank lies in DIR/data/emobank (DIR: the environment variable
EMOPROBE_SHARED, or ../shared beside the project). Writes benchmarks/layers.json and benchmarks/layers.md.
"""

import argparse
import json
import os
from pathlib import Path

import pandas as pd

import emoprobe as ep
from emoprobe.artefacts import write_bytes

HERE = Path(__file__).resolve().parent
SHOWN = {
    "passages": {"(labels)": "emotion, accuracy", "valence": "valence, r"},
    "emobank": {"valence": "valence, r"},
}


def table(scores: pd.DataFrame, corpus: str) -> list[str]:
    """Return a corpus's scores by layer as lines of Markdown."""
    lines = []
    for concept, what in SHOWN[corpus].items():
        for row in scores[scores.concept == concept].itertuples():
            gains = [
                f"{value:.2f}, [{low:+.2f}, {high:+.2f}]"
                for value, low, high in (
                    (row.layer0, row.layer0_gain_low, row.layer0_gain_high),
                    (row.bag_of_words, row.bag_of_words_gain_low, row.bag_of_words_gain_high),
                )
            ]
            cells = [corpus, what, str(row.layer), f"{row.value:.2f} [{row.low:.2f}, {row.high:.2f}]", *gains]
            cells.append(f"{row.shuffled:.2f} [{row.shuffled_low:.2f}, {row.shuffled_high:.2f}]")
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = os.environ.get("EMOPROBE_SHARED", str(HERE.parents[1] / "shared"))
    parser.add_argument("model", nargs="?", default="bundled")
    parser.add_argument("--shared", type=Path, default=Path(default), help="folder with data/emobank")
    parser.add_argument("--limit", type=int, default=3000, help="texts of EmoBank, at most")
    given = parser.parse_args()
    model = ep.load_model(given.model)
    corpora = {
        "passages": ep.load_corpus("passages"),
        "emobank": ep.load_corpus("emobank", folder=given.shared / "data" / "emobank", limit=given.limit),
    }
    head = "corpus | concept, metric | layer | score [95 %] | layer 0, gain | bag of words, gain | shuffled"
    lines, record = [f"| {head} |", "|" + "---|" * 7], {}
    for name, corpus in corpora.items():
        scores = ep.fit_probes(model, corpus, permutations=10, progress=False).scores
        lines += table(scores, name)
        record[name] = scores[scores.concept.isin(SHOWN[name])].to_dict("records")
    write_bytes(
        HERE / "layers.json",
        (json.dumps({"model": model.name, **record}, indent=1, default=float) + "\n").encode(),
    )
    write_bytes(HERE / "layers.md", ("\n".join(lines) + "\n").encode())
    print("\n".join(lines))


if __name__ == "__main__":
    main()
