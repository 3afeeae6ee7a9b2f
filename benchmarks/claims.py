"""Put the claims of valuation attention's source to the test on every model at hand, and write the verdict page.

    python benchmarks/claims.py [--only MODEL] [--shared DIR] [--out DIR]

The bundled model, the ground-truth model, and those in DIR/models where DIR is there (the environment variable EMOPROBE_SHARED,
or ../shared beside the project). Probes of valence, arousal and relevance are fitted on the package's passages, for the
ground-truth model on its generator's texts. Words are read in sentences of EmoBank (DIR/data), where it is there, and emotional
words told by human norms; else in texts of groups kept back. What is done is kept in --out, and the same command goes on; with
--only one model's section is written anew and the others stay. Writes benchmarks/claims.json and benchmarks/claims.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import emoprobe as ep
from emoprobe.artefacts import write_bytes
from emoprobe.study import Study
from emoprobe.study.claims.judging import POSITIVE, STRENGTHS
from emoprobe.study.wording import number, plain, span

HERE = Path(__file__).resolve().parent
NAMES = ("bundled", "ground-truth")
EFFECT = (
    *("claim", "measure", "value", "low", "high", "random_low", "random_high", "p", "p_differs"),
    *("beyond_negative", "beyond_low", "beyond_high", "clusters", "verdict"),
)
CLAIMS = ("magnitudes", "words", "distance", "cost")


def models(shared: Path) -> Iterator[tuple[str, str | Path]]:
    """Yield the models by the names of their sections, with what `load_model` takes."""
    yield from zip(NAMES, NAMES, strict=True)
    yield from ((path.parent.name, path.parent) for path in sorted(shared.glob("models/*/config.json")))


def examined(name: str, source: str | Path, shared: Path, out: Path, seed: int) -> Study:
    """Return the claims judged on one model."""
    model = ep.load_model(source)
    place = out / f"{name}-{model.fingerprint()[:8]}"
    if name == "ground-truth":
        return ep.run_claims(model, name, place, seed=seed)
    emobank, norms = shared / "data/emobank", shared / "data/warriner_vad/Ratings_Warriner_et_al.csv"
    return ep.run_claims(
        model,
        "passages",
        place,
        texts=ep.load_corpus("emobank", folder=emobank) if emobank.is_dir() else None,
        norms=norms if norms.is_file() else None,
        seed=seed,
    )


def section(study: Study) -> dict[str, Any]:
    """Return what the page says of one model."""
    about = study.manifest["model"]
    results = [study[name] for name in CLAIMS if name in study.names]
    effects = [
        row
        for result in results
        if "claim" in result.table
        for row in json.loads(result.table[result.table.verdict.fillna("") != ""].to_json(orient="records"))
    ]
    return {
        "parameters": about["parameters"],
        "blocks": about["blocks"],
        "width": about["width"],
        "heads": about["heads"],
        "fingerprint": study.manifest["study"]["model"],
        "probes": study["probing"].finding,
        "seconds": {name: step["seconds"] for name, step in study.manifest["steps"].items()},
        "results": [
            {
                key: getattr(result, key)
                for key in ("name", "title", "method", "finding", "controls", "verdict")
            }
            for result in results
        ],
        "effects": [{key: row[key] for key in EFFECT} for row in effects],
    }


# The page ------------------------------------------------------------------------------------------------------------


def page(record: dict[str, Any]) -> str:
    """Return all sections as Markdown, the verdicts of all models first."""
    sections = record["models"]
    head = f"""`python benchmarks/claims.py --seed {record["seed"]}` ({record["machine"]}). J. Marín, “Emotion-Informed
        Valuation Mechanism for Improved AI Alignment in Large Language Models” (2024), claims on two sentences that (1) word
        magnitudes vary more under valuation attention, (2) words that turn a sentence gain and plainly emotional ones sometimes
        lose, while standard attention is more uniform, (4) the cost is O(n·d) and insignificant beside attention; and hopes
        that (3) emotional context is carried further. Valuations are made from probes of valence, arousal and relevance and
        injected in all blocks."""
    rules = f"""λ was chosen in advance: {", ".join(map(plain, STRENGTHS))}. A claim is judged by one number, the mean of the
        effect over λ = {", ".join(map(plain, POSITIVE))}, so that no λ is picked. **Supported**: that mean has the claimed
        sign (95 % interval over groups of texts, or over cues), lies beyond that of random valuations of equal norm
        (exact test, 20 of them: p < 0.05 means beyond all 20; one that could not be measured counts as reaching it) and
        beyond the mean over −λ. **Not supported**: it is shown to have the other sign. **Not shown**: anything else,
        also where the effect cannot be had at one of these λ. Nothing is corrected for the number of claims and models:
        where nothing is true, about one in twenty passes the test against random valuations."""
    lines = [
        "# What the source of valuation attention claims, and what shows",
        "",
        *textwrap.wrap(" ".join(head.split()), 128),
        "",
        *textwrap.wrap(" ".join(rules.split()), 128),
        "",
        f"| claim | {' | '.join(sections)} |",
        "|---" * (1 + len(sections)) + "|",
    ]
    for claim in dict.fromkeys(row["claim"] for part in sections.values() for row in part["effects"]):
        cells = [_verdict(part, claim) for part in sections.values()]
        lines.append(f"| {claim} | {' | '.join(cells)} |")
    cells = [_cost(part) for part in sections.values()]
    lines.append(f"| the cost is O(n·d) and insignificant beside attention | {' | '.join(cells)} |")
    for name, part in sections.items():
        lines += ["", *_section(name, part)]
    return "\n".join(lines) + "\n"


def _section(name: str, part: dict[str, Any]) -> Iterator[str]:
    yield f"## {name}"
    yield ""
    yield (
        f"{part['parameters']:,} parameters, {part['blocks']} blocks of width {part['width']}, {part['heads']} heads; "
        f"fingerprint {part['fingerprint']}. Probes: {part['probes']}."
    )
    yield ""
    head = "claim | measure | mean over λ > 0 [95 %] | one more random valuation, 95 % | p | beyond −λ [95 %] | verdict"
    yield f"| {head} |"
    yield "|---|---|---|---|---|---|---|"
    for row in part["effects"]:
        three = {key: np.nan if value is None else value for key, value in row.items()}
        cells = [
            row["claim"],
            row["measure"],
            span(three["value"], three["low"], three["high"], 3, True),
            f"{number(three['random_low'], 3, True)} to {number(three['random_high'], 3, True)}",
            number(three["p"], 3),
            span(three["beyond_negative"], three["beyond_low"], three["beyond_high"], 3, True),
            row["verdict"],
        ]
        yield f"| {' | '.join(cells)} |"
    for result in part["results"]:
        yield ""
        yield f"**{result['title']}.** {result['method']} {result['verdict']}"


def _verdict(part: dict[str, Any], claim: str) -> str:
    """Return the verdict of a claim by its first measure."""
    return next((str(row["verdict"]) for row in part["effects"] if row["claim"] == claim), "not tested")


def _cost(part: dict[str, Any]) -> str:
    cost = next((result["verdict"] for result in part["results"] if result["name"] == "cost"), "")
    return str(cost).partition(": ")[2].partition(". ")[0] or "not tested"


def main() -> None:
    """Run what is not done, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = os.environ.get("EMOPROBE_SHARED", str(HERE.parents[1] / "shared"))
    parser.add_argument("--only", help="the one model whose section is written anew")
    parser.add_argument("--shared", type=Path, default=Path(default), help="folder with models/ and data/")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/claims"), help="where the run folders go")
    given = parser.parse_args()
    known = dict(models(given.shared))
    if given.only and given.only not in known:
        parser.error(f"--only {given.only}: there are {', '.join(known)}")
    kept = HERE / "claims.json"
    record = json.loads(kept.read_text("utf-8")) if kept.is_file() else {"models": {}}
    for name in [given.only] if given.only else known:
        done = section(examined(name, known[name], given.shared, given.out, given.seed))
        sections = {**record["models"], name: done}
        record = {
            "seed": given.seed,
            "machine": f"{platform.machine()}, torch {torch.__version__}",
            "models": {key: sections[key] for key in (*known, *sections) if key in sections},
        }
        write_bytes(kept, (json.dumps(record, indent=1, ensure_ascii=False, default=float) + "\n").encode())
        write_bytes(HERE / "claims.md", page(record).encode())


if __name__ == "__main__":
    main()
