"""Measure what steering does, beside its controls: on the model whose answer is known, on the bundled one and on real weights.

    python benchmarks/steering.py [--only PART ...] [--shared DIR]

Parts: `ground-truth`, `bundled`, `real` (the models in DIR/models; DIR: the environment variable EMOPROBE_SHARED, or ../shared
beside the project), `speakers` (directions of the present and the other speaker, and of hidden emotions, in the bundled model),
and `speed`. Each takes minutes on one CPU core. Without --only all are run; with it, the others keep what they had. Writes
benchmarks/steering.json and benchmarks/steering.md.
"""

import argparse
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from steering_erasing import DEPTH, erased, told_erased
from steering_speed import speed, told_speed

import emoprobe as ep
from emoprobe.artefacts import write_bytes
from emoprobe.corpora import Corpus
from emoprobe.corpora.generator import EMOTIONS, aftermaths
from emoprobe.layers import resolve_layers
from emoprobe.models import LiveModel
from emoprobe.probes import Direction, ProbeSet
from emoprobe.steering import at_equal_cost, coherence, generations, specificity
from emoprobe.study import feelings
from emoprobe.study.concepts.deflection import hidden_directions
from emoprobe.study.concepts.dialogues import dialogues, topics
from emoprobe.study.concepts.speakers import speaker_directions
from emoprobe.study.outcomes import leaning
from emoprobe.study.texts import divide, readable_part, targets
from emoprobe.study.wording import ranged, span

HERE = Path(__file__).resolve().parent
DOSES = (0.05, 0.1, 0.2, 0.4)
FEW = (0.1, 0.2)
"""Doses of the directions of speakers, which are many."""
STATED = 0.2
"""Strength that is told of in the tables, in fractions of the mean residual norm. It and the layer were settled after a look at
the ground-truth model (an earlier training of it; at half the depth disgust does not rise), and at no other."""
SWEPT, LAMBDAS = (0.05, 0.1, 0.2, 0.4), (1.0, 2.0, 4.0, 8.0)
"""Strengths and λ that are swept upward with controls, and downward without."""
CONTROLS, PROMPTS, SENTENCES = 10, 6, 2
Lines = list[str]


# What is asked of each model -----------------------------------------------------------------------------------------


def doses(
    model: LiveModel,
    directions: Mapping[str, Direction],
    continuations: Mapping[str, Sequence[str]],
    prompts: Sequence[str],
    layer: int,
    strengths: Sequence[float] = DOSES,
) -> dict[str, Any]:
    """Steer with each concept at each dose; say up to where its continuations become ever likelier, and how specifically."""
    found = {
        dose: specificity(
            model, directions, continuations, prompts, dose, layers=layer, controls=CONTROLS, progress=False
        )
        for dose in strengths
    }
    at = found[STATED]
    curves = np.stack([np.zeros(len(at.concepts)), *(np.diag(one.matrix) for one in found.values())])
    rises = np.cumprod(np.diff(curves, axis=0) > 0, axis=0).sum(0)
    table = at.table.assign(monotone_to=[([0.0, *strengths])[count] for count in rises])
    return {
        "layer": layer,
        "stated": STATED,
        "doses": list(strengths),
        "prompts": len(prompts),
        "table": table.to_dict("records"),
        "curves": {name: curves[:, k].tolist() for k, name in enumerate(at.concepts)},
        "index": at.index,
        "index_by_dose": {str(dose): one.index["index"] for dose, one in found.items()},
    }


def told_doses(name: str, found: dict[str, Any]) -> Lines:
    """Return the table of `doses` and a sentence."""
    table = pd.DataFrame(found["table"])
    mean_zero = ((table.random_low <= 0) & (table.random_high >= 0)).sum()
    zero = ((table.random_next_low <= 0) & (table.random_next_high >= 0)).sum()
    above = ((table.own > table.random_next_high) & (table.low > 0)).sum()
    total = found["index"]
    lines = [
        f"### {name}: each emotion's direction added at layer {found['layer']}",
        "",
        f"Change of log P of its continuations after {found['prompts']} beginnings at s = {found['stated']:g}, in nats; beside "
        f"it {CONTROLS} random directions of equal norm. Doses: {', '.join(f'{dose:g}' for dose in found['doses'])}.",
        "",
        "| concept | own direction [95 %] | rises to s = | random, mean [95 %] | one more random | index [95 %] | by chance |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["table"]:
        own, random, index = (
            span(row[middle], row[f"{name}low"], row[f"{name}high"], sign=middle != "index")
            for middle, name in (("own", ""), ("random", "random_"), ("index", "index_"))
        )
        one_more = ranged([row["random_next_low"], row["random_next_high"]], sign=True)
        chance = ranged([row["chance_low"], row["chance_high"]])
        lines.append(
            f"| {row['concept']} | {own} | {row['monotone_to']:g} | {random} | {one_more} | {index} | {chance} |"
        )
    least, none = table.monotone_to.min(), int((table.monotone_to == 0).sum())
    rising = (
        f"{none} of {len(table)} do not rise at all" if none else f"all rise at least up to s = {least:g}"
    )
    by_dose = ", ".join(f"{value:.2f} at {dose}" for dose, value in found["index_by_dose"].items())
    return [
        *lines,
        "",
        f"Rises by more than one more random direction may: {above} of {len(table)}; zero lies where one more random "
        f"direction would for {zero} of {len(table)}, and within the interval of random directions' mean for {mean_zero}; "
        f"{rising}. Specificity index over concepts "
        f"{span(total['index'], total['low'], total['high'])} (random directions "
        f"{ranged([total['chance_low'], total['chance_high']])}; columns shuffled p = {total['p']:.2g}); lowest "
        f"{table['index'].min():.2f}; by dose {by_dose}.",
        "",
    ]


def against_lambda(
    model: LiveModel,
    probes: ProbeSet,
    dimension: str,
    toward: Sequence[str],
    away: Sequence[str],
    prompts: Sequence[str],
    neutral: Sequence[str],
    layer: int,
) -> dict[str, Any]:
    """Sweep a dimension's direction and its λ-weighted valuation, and compare what each does at equal KL and equal NLL."""
    words = leaning("log P toward − away", toward, away, prompts)
    measures = [words, coherence(neutral), generations(max_new_tokens=24)]
    valuation = ep.Valuation.from_probes(probes, [dimension])
    options: dict[str, Any] = {"controls": 4, "progress": False}
    sweeps = {
        "residual": ep.sweep(model, probes[dimension], SWEPT, prompts, measures, layers=layer, **options),
        "λ": ep.sweep(model, valuation, LAMBDAS, prompts, measures, **options),
    }
    record: dict[str, Any] = {"dimension": dimension, "layer": layer}
    for name, swept in sweeps.items():
        summary = swept.summary().set_index("measure")
        record[name] = {
            "usable": swept.usable(),
            "effects": swept.effects().to_dict("records"),
            "verdict": summary.verdict["log P toward − away"],
            "summary": summary.drop(columns="verdict").loc["log P toward − away"].to_dict(),
        }
    for cost in ("kl", "nll"):
        try:
            equal = at_equal_cost(sweeps, "log P toward − away", cost)
        except ep.InputError as error:
            record[cost] = {"refused": str(error)}
            continue
        record[cost] = {
            "frame": equal.frame.to_dict("records"),
            "differences": equal.differences.to_dict("records"),
        }
    return record


def told_lambda(found: dict[str, Any]) -> Lines:
    """Return what `against_lambda` found."""
    lines = [
        f"Steering along {found['dimension']} at layer {found['layer']} beside the λ-weighted valuation of it:",
        "",
    ]
    for name in ("residual", "λ"):
        row = found[name]
        low, high = row["usable"]
        slope = row["summary"]
        lines.append(
            f"- {name}: coherent from {low:g} to {high:g}; log P of what goes with it {row['verdict']} (slope "
            f"{span(slope['slope'], slope['low'], slope['high'], 3, True)}, one more random control "
            f"{ranged([slope['random_low'], slope['random_high']], 3, True)})."
        )
    for cost, label in (("kl", "KL"), ("nll", "NLL")):
        part = found[cost]
        if "refused" in part:
            lines.append(f"- at equal {label}: not comparable ({part['refused']}).")
            continue
        frame = pd.DataFrame(part["frame"])
        lines += [
            "",
            f"| change of {label}, nats | residual: s, effect [95 %], random | λ, effect [95 %], random | difference [95 %] |",
        ]
        lines.append("|---|---|---|---|")
        for row in part["differences"]:
            cells = [
                f"{own.strength:+.3g}: {span(own.effect, own.low, own.high, sign=True)}, "
                f"{ranged([own.random_low, own.random_high], sign=True)}"
                for own in frame[frame.cost == row["cost"]].itertuples()
            ]
            difference = span(row["difference"], row["low"], row["high"], sign=True)
            lines.append(f"| {row['cost']:.3g} | {' | '.join(cells)} | {difference} |")
        lines.append("")
    return [*lines, ""]


# Parts ---------------------------------------------------------------------------------------------------------------


def fitted(model: LiveModel, corpus: Corpus) -> tuple[ProbeSet, Corpus, Corpus]:
    """Return probes fitted on most groups of a corpus, those texts, and the texts of the others."""
    fit, held_out = divide(corpus, 900)
    probes = ep.fit_probes(
        model, fit, estimator="mean_difference", permutations=0, bootstrap=0, progress=False
    )
    return probes, fit, held_out


def first_person(corpus: Corpus, emotion: str | None = None) -> np.ndarray[Any, Any]:
    """Return which generated texts are told by the one who feels (and feels this): booleans (texts,)."""
    told = np.asarray(corpus.data["source"][:]) == "first"
    return told if emotion is None else told & (targets(corpus, emotion) > 0)


def ground_truth() -> dict[str, Any]:
    """Steer the model whose texts were generated: what an emotion leads to is known."""
    model = ep.load_model("ground-truth")
    probes, fit, held_out = fitted(model, ep.load_corpus("ground-truth", limit=1200))
    before, neutral = (
        sorted(readable_part(model, part.select(mask=first_person(part, "neutral")), 16).texts, key=len)
        for part in (fit, held_out)
    )
    names = [name for name in EMOTIONS if name != "neutral"]
    said = {name: [f" {text}" for text in aftermaths(name)[:SENTENCES]] for name in names}
    (layer,) = resolve_layers(DEPTH, model.n_layers)
    glad, grim = (
        [text for name in group for text in said[name][:1]]
        for group in (("joy", "contentment", "love"), ("sadness", "anger", "fear"))
    )
    return {
        "model": "ground-truth",
        "doses": doses(model, {name: probes[name] for name in names}, said, neutral[:PROMPTS], layer),
        "erased": erased(model, probes, names, held_out.select(mask=first_person(held_out)), neutral, before),
        "lambda": against_lambda(model, probes, "valence", glad, grim, neutral[:PROMPTS], neutral, layer),
    }


def of_language(model: LiveModel) -> dict[str, Any]:
    """Steer a model of English with probes of the passages: words for emotions after neutral beginnings."""
    probes, _, held_out = fitted(model, ep.load_corpus("passages"))
    names = [name for name in probes.concepts if name in feelings.ADJECTIVES]
    said = {name: [f" {word}" for word in feelings.ADJECTIVES[name]] for name in names}
    neutral = readable_part(model, held_out, 16).texts
    (layer,) = resolve_layers(DEPTH, model.n_layers)
    poles = feelings.words("valence")
    assert poles is not None, "valence has words of its own"
    return {
        "model": model.name,
        "doses": doses(model, {name: probes[name] for name in names}, said, feelings.PROMPTS, layer),
        "lambda": against_lambda(model, probes, "valence", *poles, feelings.PROMPTS, neutral, layer),
    }


def real(shared: Path) -> dict[str, Any]:
    """Steer each of the real models that lie in the shared folder."""
    folders = sorted(path for path in (shared / "models").iterdir() if (path / "config.json").is_file())
    return {folder.name: {**of_language(ep.load_model(folder)), "model": folder.name} for folder in folders}


def speakers() -> dict[str, Any]:
    """Steer the bundled model with directions of the present and the other speaker, and of emotions hidden and shown."""
    model = ep.load_model("bundled")
    (layer,) = resolve_layers(DEPTH, model.n_layers)
    emotions, families = speaker_directions(model, dialogues(on=topics()[:3]), [layer])
    hidden, deflected = hidden_directions(model, [layer])
    norms = model.residual_norms()[[layer]]
    kinds = {
        "present speaker": (emotions, families[:2].mean((0, 1))),
        "other speaker": (emotions, families[2:].mean((0, 1))),
        "deflection": (hidden, deflected[0].mean(0)),
        "shown openly": (hidden, deflected[3].mean(0)),
    }
    record = {}
    for kind, (names, vectors) in kinds.items():
        known = [
            name for name in names if name in feelings.ADJECTIVES and np.abs(vectors[names.index(name)]).sum()
        ]
        directions = {
            name: Direction(name, (layer,), torch.from_numpy(vectors[names.index(name)]).float(), norms)
            for name in known
        }
        said = {name: [f" {word}" for word in feelings.ADJECTIVES[name]] for name in known}
        found = doses(model, directions, said, feelings.PROMPTS, layer, FEW)
        record[kind] = {"model": f"{model.name}, {kind}", "doses": found}
    return record


# Telling -------------------------------------------------------------------------------------------------------------


def told(found: dict[str, Any]) -> Lines:
    """Return what was found of a model, or of each of several, as lines of Markdown."""
    if "generation" in found:
        return told_speed(found)
    if "doses" not in found:
        return [line for part in found.values() for line in told(part)]
    lines = told_doses(found["model"], found["doses"])
    lines += told_erased(found["erased"]) if "erased" in found else []
    return lines + (told_lambda(found["lambda"]) if "lambda" in found else [])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = os.environ.get("EMOPROBE_SHARED", str(HERE.parents[1] / "shared"))
    parser.add_argument("--shared", type=Path, default=Path(default), help="folder with models")
    names = ("ground-truth", "bundled", "real", "speakers", "speed")
    parser.add_argument(
        "--only", nargs="*", choices=names, default=names, help="parts to run; none: write anew"
    )
    given = parser.parse_args()
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "ground-truth": ground_truth,
        "bundled": lambda: of_language(ep.load_model("bundled")),
        "real": lambda: real(given.shared),
        "speakers": speakers,
        "speed": speed,
    }
    kept = HERE / "steering.json"
    record = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    for name in given.only:
        record[name] = {"found": parts[name](), "hardware": platform.machine(), "torch": torch.__version__}
        write_bytes(kept, (json.dumps(record, indent=1, default=float, ensure_ascii=False) + "\n").encode())
    lines = [
        "# Steering, beside its controls",
        "",
        "`python benchmarks/steering.py`, one CPU thread each. Directions are differences of means, fitted on most groups of a "
        f"corpus, added at {DEPTH:g} of the depth, the library's default. That layer and s = {STATED:g} were settled after a "
        "look at the ground-truth model, an earlier training of it included, where at half the depth one emotion did not rise; "
        "no other model was looked at for them. Beginnings are few, so that intervals are wide; random directions lower or "
        "raise words by chance, and nulls are told as such. Speed was measured while other programs took most of the "
        "machine (load 7 to 17 on 2 cores): CPU time is to be read, wall time says what they took.",
        "",
    ]
    for name in (name for name in names if name in record):
        made = record[name]
        lines += [f"## {name} ({made['hardware']}, torch {made['torch']})", "", *told(made["found"])]
    write_bytes(HERE / "steering.md", ("\n".join(lines).rstrip() + "\n").encode())
    print("\n".join(lines))


if __name__ == "__main__":
    main()
