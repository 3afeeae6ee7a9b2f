"""Compare steered logits with those of repeng and steering-vectors: the same vectors, exported to them, on the same weights.

    python -m venv four && four/bin/pip install repeng steering-vectors torch
    python benchmarks/peers_steering.py four/bin/python [MORE ...]

Neither can be installed beside emoprobe: repeng needs numpy below 2, steering-vectors transformers below 5. So each runs in an
environment of its own, whose interpreter is given (several may be); one that lacks a peer leaves that peer out. Models are the
bundled one (Llama) and a random GPT-2. Writes benchmarks/peers_steering.json and .md. Takes about a minute on one CPU core.

Differences are the largest of any logit at a real token, in float64, so that hardly any of them is rounding. Where a peer is
wrong, REASONS says why, and the numbers beside it show that it is so: rows without padding alone, and the distance from the
unsteered model.
"""

import argparse
import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peers_side import CASES, FROM_TOKEN, NEW_TOKENS
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import emoprobe as ep
from emoprobe.artefacts import write_bytes
from emoprobe.models import LiveModel
from emoprobe.models.live import Batch
from emoprobe.steering import add, export_gguf, export_steering_vectors, project_out

HERE = Path(__file__).resolve().parent
TEXTS = ["I am so happy that you came to see me, and the dog is too.", "The letter was", "She was afraid of"]
LAYERS, STRENGTH = [2, 4], 0.3
TOLERANCE = 1e-5
REASONS = {
    "added; padded, no positions given": "Both leave positions to the caller, and without them transformers counts padding: "
    "GPT-2's padded rows are shifted, steered or not (rotary positions are relative, so Llama's are not). repeng reads padding "
    "off the positions, which transformers then makes for one row only, and fails on batches wherever a block gets them.",
    "added from a token on; padded": "min_token_index counts padding: padded rows are steered from an earlier token on.",
    "added from a token on; step by step": "min_token_index counts from the start of each call: with a KV cache a call holds "
    "one token, and nothing is steered.",
    "added to chosen tokens; one text": "apply hands min_token_index=0 on beside token_indices, which is refused; its clean-up "
    "then fails on a handle that it never got.",
}
"""Why a peer differs or fails, by case. In all other cases it has to agree."""


def models(folder: Path) -> Iterator[tuple[str, str, LiveModel]]:
    """Return models by family, and where their weights lie."""
    bundled = ep.load_model("bundled", dtype=torch.float64)
    yield "llama", str(Path(ep.models.__file__).parent / "prose"), bundled
    sizes = dict(n_layer=4, n_embd=48, n_head=4, n_positions=64, initializer_range=0.2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        gpt2 = GPT2LMHeadModel(
            GPT2Config(vocab_size=len(bundled.tokenizer), bos_token_id=0, eos_token_id=1, **sizes)
        )
    gpt2.eval().save_pretrained(folder / "gpt2")
    yield "gpt2", str(folder / "gpt2"), ep.wrap(gpt2.double(), bundled.tokenizer)


def ours(model: LiveModel, vectors: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Return emoprobe's logits (or generated ids) for each case, and the unsteered logits as "unsteered"."""
    one = Batch((), batch.input_ids[:1], batch.real[:1], None)
    late = batch.real & (batch.position_ids >= FROM_TOKEN)
    added = add(model, vectors, STRENGTH, LAYERS)
    edits = {
        "added": added,
        "added -2 times": add(model, vectors, -2 * STRENGTH, LAYERS),
        "added, norm kept": add(model, vectors, STRENGTH, LAYERS, keep_norm=True),
        "projected out": project_out(model, vectors, LAYERS),
    }
    found = {"unsteered": model.forward(batch)}
    for name, these in edits.items():
        with model.intervene(*these):
            found[f"{name}; padded"] = model.forward(batch)
            found[f"{name}; one text"] = model.forward(one)
    with model.intervene(*added):
        options = dict(max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False)
        found["added; generated"] = model.generate_ids(batch, **options)
    found["added; padded, no positions given"] = found["added; padded"]
    with model.intervene(*add(model, vectors, STRENGTH, LAYERS, late)):
        found["added from a token on; padded"] = model.forward(batch)
    with model.intervene(*add(model, vectors, STRENGTH, LAYERS, late[:1])):
        found["added from a token on; one text"] = model.forward(one)
    found["added from a token on; step by step"] = found["added from a token on; one text"]
    return found


@torch.no_grad()
def compare(python: str, peer: str) -> tuple[dict[str, str], list[dict[str, Any]]] | None:
    """Return the versions of a peer's environment and one row per case, or None where the peer is not there."""
    if subprocess.run([python, "-c", f"import {peer}"], capture_output=True).returncode:
        return None
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for family, weights, model in models(Path(temporary)):
            folder = Path(temporary) / f"{family} vectors"
            batch = model.tokenize(TEXTS)
            vectors = torch.randn(
                model.n_layers + 1, model.d_model, generator=torch.Generator().manual_seed(1)
            )
            export_gguf(model, vectors, folder / "vector.gguf", STRENGTH, LAYERS)
            export_steering_vectors(model, vectors, folder / "vector.safetensors", STRENGTH, LAYERS)
            save_file({"ids": batch.input_ids, "mask": batch.real.long()}, folder / "tokens.safetensors")
            out = folder / peer
            subprocess.run(
                [python, str(HERE / "peers_side.py"), peer, weights, str(folder), str(out)], check=True
            )
            record, theirs = json.loads(out.with_suffix(".json").read_text()), load_file(f"{out}.safetensors")
            expected = ours(model, vectors, batch)
            for steering, run in CASES[peer]:
                case = f"{steering}; {run}"
                row = {
                    "peer": peer,
                    "transformers": record["versions"]["transformers"],
                    "model": family,
                    "case": case,
                }
                measured = (
                    {"error": record["failed"][case]}
                    if case in record["failed"]
                    else measure(theirs[case], expected[case], expected["unsteered"], batch.real)
                )
                rows.append({**row, **measured})
    return record["versions"], rows


def measure(theirs: Tensor, ours: Tensor, unsteered: Tensor, real: Tensor) -> dict[str, float]:
    """Return the largest difference of logits at real tokens, that of rows without padding, and that from the unsteered model.

    Generated ids are counted instead: how many differ.
    """
    if theirs.dtype == torch.int64:
        return {"difference": float((theirs != ours).sum())}
    rows = len(ours)
    full = real[:rows].all(-1)

    def largest(one: Tensor, other: Tensor) -> float:
        return float((one - other).abs().max())

    chosen = real[:rows]
    return {
        "difference": largest(theirs[chosen], ours[chosen]),
        "unpadded": largest(theirs[full], ours[full]),
        "from_unsteered": largest(theirs[chosen], unsteered[:rows][chosen]),
    }


def agrees(row: dict[str, Any]) -> bool:
    """Say whether a peer gave what emoprobe gives."""
    return "error" not in row and row["difference"] <= TOLERANCE


def markdown(record: dict[str, Any]) -> str:
    """Return the record as a page."""
    lines = [
        "# Steering beside repeng and steering-vectors",
        "",
        "Written by `benchmarks/peers_steering.py`, which says what is compared. "
        + " ".join(
            "Versions: " + ", ".join(f"{k} {v}" for k, v in e.items()) + "." for e in record["versions"]
        ),
        "",
        "| peer | transformers | model | case | largest difference | without padding | from the unsteered model | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        cells = [row["peer"], row["transformers"], row["model"], row["case"]]
        cells += [
            f"{row[name]:.1e}" if name in row else "" for name in ("difference", "unpadded", "from_unsteered")
        ]
        lines.append(f"| {' | '.join(cells)} | {'agrees' if agrees(row) else row.get('error', 'differs')} |")
    lines += ["", "Why a peer differs or fails:", ""]
    lines += [f"- **{case}.** {reason}" for case, reason in REASONS.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compare in each environment, and write the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("python", nargs="+", help="interpreter of an environment with a peer")
    pythons = parser.parse_args().python
    compared = [found for python in pythons for peer in CASES if (found := compare(python, peer))]
    if not compared:
        parser.error("none of these interpreters can import repeng or steering_vectors")
    record = {
        "versions": [versions for versions, _ in compared],
        "rows": [row for _, rows in compared for row in rows],
    }
    write_bytes(HERE / "peers_steering.json", (json.dumps(record, indent=1) + "\n").encode())
    write_bytes(HERE / "peers_steering.md", markdown(record).encode())


if __name__ == "__main__":
    main()
