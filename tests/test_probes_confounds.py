"""Confounds: what is planted is flagged by the report, what is not there is not, and the numbers are those of the long way."""

import warnings
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from small_probes import WORDS, model

from emoprobe.corpora import Corpus
from emoprobe.corpora.generator import generate
from emoprobe.errors import ConfoundWarning, InputError
from emoprobe.models import load_model
from emoprobe.probes import ProbeSet, fit_probes, load_probes
from emoprobe.probes.confounds import CONFOUNDS as COLUMNS
from emoprobe.probes.confounds import TOGETHER, _strata, candidates, check_confounds, corrected
from emoprobe.probes.estimators import fit_for
from emoprobe.probes.probe_set import LABELS
from emoprobe.probes.summary import best_rows, judged
from emoprobe.probes.tasks import plan
from emoprobe.probes.validation import out_of_fold

OPENINGS = ("Yesterday", "However", "Once", "There")
NAMES = ("Anna", "Bruno", "Clara", "Dmitri")
QUICK: dict[str, Any] = {"layers": [2], "permutations": 6, "bootstrap": 100, "progress": False}


def corpus(
    planted: str, seed: int = 0, count: int = 160, dimension: bool = False
) -> tuple[Corpus, list[str]]:
    """Return texts of random words in groups of eight, whose labels go with `planted`, or with nothing; and their speakers.

    Where they go with "length", "opening" or "speaker", three texts of four have the value that is common for the label.
    """
    order = np.random.default_rng(seed)
    sad = order.permutation(np.arange(count) % 2).astype(bool)
    drawn = {name: order.integers(2, size=count).astype(bool) for name in ("length", "opening", "speaker")}
    if planted in drawn:
        drawn[planted] = np.where(order.random(count) < 0.85, sad, ~sad)
    opening, speaker = (2 * drawn[name] + order.integers(2, size=count) for name in ("opening", "speaker"))
    length = order.integers(4, 12, size=count) + 8 * drawn["length"]
    texts = [
        f"{OPENINGS[opening[row]]} the {NAMES[speaker[row]]} was {' '.join(order.choice(WORDS, length[row]))}."
        for row in range(count)
    ]
    if planted == "words":
        texts = [
            text.replace(" was ", " was the sad dark sad " if s else " was glad children glad ")
            for text, s in zip(texts, sad, strict=True)
        ]
    columns: dict[str, Any] = {"text": texts, "group": [f"group {row // 8}" for row in range(count)]}
    if dimension:
        values = np.clip(np.where(sad, -0.5, 0.5) + order.normal(0, 0.1, count), -1, 1)
        return Corpus.from_columns({**columns, "valence": values}, dimensions={"valence": (-1, 1)}), []
    columns["labels"] = [["sad" if value else "glad"] for value in sad]
    return Corpus.from_columns(columns, name=planted), [NAMES[number] for number in speaker]


def flags(found: ProbeSet) -> set[str]:
    """Return which candidates the report flags."""
    return {
        line.removeprefix("Flagged: ").split(" predicts ")[0]
        for line in found.report().splitlines()
        if line.startswith("Flagged: ")
    }


@pytest.mark.parametrize(
    ("planted", "expected"), [("length", "length"), ("opening", "opening"), ("speaker", "names")]
)
def test_a_planted_artefact_is_flagged(planted: str, expected: str) -> None:
    texts, speakers = corpus(planted)
    found = fit_probes(model(), texts, confounds={"speaker": speakers}, **QUICK)
    assert expected in flags(found) <= {expected, "speaker", "opening", TOGETHER}
    assert ("speaker" in flags(found)) == (planted == "speaker")
    assert f"The probe is not shown to read more than {expected}." in found.report()
    row = found.confounds.set_index(["concept", "confound"]).loc[("sad", expected)]
    assert row.alone_low > 0.6 and row.value > 0.6 and row.q < 0.05 and row.held_gain_low < 0
    assert all(expected in fails for fails in best_rows(found).flagged)
    assert "Supported: " not in found.report() and "not shown to read more than " in found._repr_html_()


def test_a_planted_artefact_of_a_dimension_is_flagged() -> None:
    found = fit_probes(model(), corpus("length", dimension=True)[0], **QUICK)
    assert "length" in flags(found) <= {"length", TOGETHER}


def test_nothing_is_flagged_where_nothing_is_planted() -> None:
    """Six corpora without artefact, of which three have an emotion in their words: no false alarm."""
    for planted, seed in product(("words", "nothing"), range(3)):
        texts, speakers = corpus(planted, seed)
        found = fit_probes(model(), texts, confounds={"speaker": speakers}, **QUICK)
        assert not flags(found), (planted, seed, found.report())
        assert (found.confounds.set_index("concept").held_low["sad"] > 0.5).all() == (planted == "words")


def test_a_probe_that_reads_more_than_a_confound_is_not_flagged() -> None:
    texts, _ = corpus("length")
    telling = {"sad": " was the sad dark sad ", "glad": " was glad children glad "}
    frame = texts.frame
    frame["text"] = [
        text.replace(" was ", telling[labels[0]])
        for text, labels in zip(frame.text, frame.labels, strict=True)
    ]
    told = Corpus.from_columns({name: frame[name].tolist() for name in ("text", "labels", "group")})
    found = fit_probes(model(), told, **QUICK)
    assert (
        not flags(found) and "The probe reads more than length, which predicts all labels" in found.report()
    )


def test_annotations_that_are_the_same_all_over_a_group_are_told_of() -> None:
    texts, _ = corpus("words")
    frame = texts.frame.sort_values("labels", key=lambda labels: labels.str[0])
    frame["group"] = [f"writer {row // 8}" for row in range(len(frame))]
    sorted_out = Corpus.from_columns({name: frame[name].tolist() for name in ("text", "labels", "group")})
    with pytest.warns(ConfoundWarning, match=r"glad, sad annotated the same all over each group"):
        found = fit_probes(model(), sorted_out, **QUICK)
    assert "Flagged: all labels, glad and sad annotated the same all over each group." in found.report()
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConfoundWarning)
        fit_probes(model(), texts, **QUICK)
        alone = Corpus.from_columns({"text": texts.texts, "labels": texts.data["labels"][:]})
        fit_probes(model(), alone, **QUICK)  # where each text is a group, no group has anything in common


def test_scores_within_strata_are_those_of_scikit_learn() -> None:
    texts, _ = corpus("length")
    (task,) = plan(texts)
    order = np.random.default_rng(1)
    read = task.targets + order.normal(size=task.targets.shape)
    z = {
        "length": candidates(texts.texts)["length"],
        "flag": order.integers(3, size=(len(texts), 1)).astype(float),
    }
    best = dict.fromkeys(["sad", "glad", LABELS], 2)
    frame = check_confounds(task, best, {2: read}, z, (60, 4, 0)).set_index(["concept", "confound"])
    column = task.concepts.index("sad")
    for cell, name in ((z["flag"][:, 0], "flag"), (task.group, "group")):
        right = pairs = 0.0
        for stratum in {*zip(task.fold, cell, strict=True)}:
            inside = (task.fold == stratum[0]) & (cell == stratum[1])
            truth = task.targets[inside, column]
            count = truth.sum() * (1 - truth).sum()
            right += count * roc_auc_score(truth, read[inside, column]) if count else 0
            pairs += count
        assert frame.held["sad", name] == pytest.approx(right / pairs)
    assert frame.held[LABELS, "flag"] == pytest.approx(
        (frame.held["sad", "flag"] + frame.held["glad", "flag"]) / 2
    )
    assert frame.left["sad", "length"] < 0.8 < frame.left["sad", "flag"] <= 1


def test_strata_are_fifths_within_folds_and_keep_equals_together() -> None:
    fold = np.repeat([0, 1], 50)
    told = np.random.default_rng(0).normal(size=100)
    cell = _strata(told, fold)
    assert set(np.bincount(cell)) == {10} and len(set(cell)) == 10
    assert all(np.ptp(fold[cell == number]) == 0 for number in set(cell))
    few = np.round(told).clip(-1, 1)
    cell = _strata(few, fold)
    assert all(np.ptp(few[cell == number]) == 0 for number in set(cell))


def test_candidates_are_what_the_texts_say() -> None:
    texts = ["Yesterday Anna ran!", "There was the dog", "the man saw Anna. there"] * 5
    found = candidates(
        texts, {"writer": ["x", "y", "z"] * 5, "same": ["one"] * 15, "tokens": list(range(15))}
    )
    assert set(found) == {"length", "punctuation", "opening", "ending", "names", "writer", "tokens", TOGETHER}
    assert found["names"].shape == (15, 1)  # Anna; what only begins texts is no name
    assert found["writer"].sum(1).tolist() == [1] * 15 and found["writer"].shape[1] == 3
    assert np.ptp(found["length"][0::3], axis=0).max() == 0 and np.ptp(found["length"], axis=0).min() > 0


@pytest.mark.parametrize(
    ("further", "message"),
    [
        ({"speaker": ["a"]}, "'speaker' has 1 values for 2 texts"),
        ({"length": [1, 2]}, "'length' is looked for anyway"),
        ({"tokens": [1.0, float("nan")]}, "'tokens' lacks numbers"),
    ],
)
def test_candidates_that_cannot_be_used_are_refused(further: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        candidates(["one text", "another"], further)


def test_what_was_found_is_kept(tmp_path: Path) -> None:
    found = fit_probes(model(), corpus("length")[0], **QUICK)
    back = load_probes(found.save(tmp_path / "p.safetensors"))
    pd.testing.assert_frame_equal(back.confounds, found.confounds)
    assert back.report() == found.report()
    assert judged(back.confounds).flagged.any()
    bare = fit_probes(model(), corpus("length")[0], **{**QUICK, "permutations": 0})
    assert bare.confounds.empty and "Confounds were not looked for." in bare.report()
    assert "confounds" in best_rows(bare).fails.iloc[0]


def checked(
    features: np.ndarray, sad: np.ndarray, further: dict[str, Any], per_group: int = 8
) -> pd.DataFrame:
    """Return what is found of "sad" where logistic regression reads `features`, by candidate."""
    count = len(sad)
    columns: dict[str, Any] = {
        "text": ["word"] * count,
        "labels": [["sad" if value else "glad"] for value in sad],
        "group": [f"group {row // per_group}" for row in range(count)],
    }
    (task,) = plan(Corpus.from_columns(columns))
    read = out_of_fold(fit_for("logistic", "label", True), features, task.targets, task.group, task.fold)
    best = dict.fromkeys([*task.concepts, LABELS], 1)
    found = check_confounds(task, best, {1: read}, candidates(columns["text"], further), (100, 6, 0))
    frame = judged(corrected(found))
    return frame[frame.concept == "sad"].set_index("confound")


def mixed(order: np.random.Generator, values: np.ndarray, share: float) -> np.ndarray:
    """Return boolean values of which this share is kept and the rest turned round."""
    return np.where(order.random(len(values)) < share, values, ~values)


def test_two_artefacts_at_once_are_flagged_together() -> None:
    for seed in range(3):
        order = np.random.default_rng(seed)
        sad = order.permutation(np.arange(240) % 2).astype(bool)
        one, other = mixed(order, sad, 0.8), mixed(order, sad, 0.8)
        features = np.column_stack([3.0 * one, 3.0 * other, order.normal(size=(240, 10))])
        frame = checked(features, sad, {"one": one.astype(str), "other": other.astype(str)})
        assert frame.flagged[TOGETHER] and not frame.flagged["one"]  # each is cleared by the other


@pytest.mark.parametrize("kind", ["code", "steps"])
def test_numbers_that_are_codes_or_act_in_steps_are_flagged(kind: str) -> None:
    for seed in range(2):
        order = np.random.default_rng(seed)
        number: np.ndarray = order.integers(40, size=480) if kind == "code" else order.random(480)
        steps = order.permutation(np.arange(40) % 2) if kind == "code" else np.arange(6) % 2
        place = number if kind == "code" else (6 * number).astype(int)
        told = steps[place].astype(bool)
        features = np.column_stack([3.0 * told, order.normal(size=(480, 10))])
        row = checked(features, mixed(order, told, 0.9), {"number": number.tolist()}).loc["number"]
        assert row.flagged and row.alone > 0.8, (seed, row)


def test_a_label_and_its_complement_have_the_same_strata() -> None:
    told = np.random.default_rng(0).integers(12, size=100) / 12
    fold = np.repeat([0, 1], 50)
    one, other = _strata(told, fold), _strata(1 - told, fold)
    cells, mirrored = ({tuple(np.flatnonzero(cell == number)) for number in cell} for cell in (one, other))
    assert cells == mirrored


def test_a_candidate_whose_values_few_texts_share_is_said_to_be_unchecked() -> None:
    speakers = [f"speaker {row % 40}" for row in range(160)]
    found = fit_probes(model(), corpus("nothing")[0], confounds={"speaker": speakers}, **QUICK)
    rows = found.confounds[found.confounds.confound == "speaker"]
    assert len(rows) == 3 and rows.alone.isna().all() and not judged(rows).flagged.any()
    assert "Cannot be checked: speaker, of which no value has 5 texts or more." in found.report()


def test_opening_and_ending_are_of_up_to_three_words() -> None:
    texts = ["He said that it was red, blue and green.", "He said so when it was told of the sky!"] * 10
    found = candidates(texts)
    assert np.ptp(found["opening"], axis=0).sum() == 2  # "He said that", "He said so"
    assert np.ptp(found["ending"], axis=0).sum() == 6


def test_p_is_corrected_for_all_candidates_and_all_labels_by_themselves() -> None:
    frame = pd.DataFrame({"concept": ["a", LABELS, "b", "a", "b"], "p": [0.01, 0.04, 0.02, 0.03, np.nan]})
    assert corrected(frame).q.tolist() == pytest.approx([0.03, 0.04, 0.03, 0.03, np.nan], nan_ok=True)


def test_each_condition_of_the_verdict_counts() -> None:
    clear = {name: np.nan for name in COLUMNS} | {
        "concept": "sad", "confound": "z", "chance": 0.5, "q": 0.01, "alone_low": 0.6,
        "held_low": 0.6, "held_gain_low": 0.1, "left": 0.5, "compared": 30.0,
    }  # fmt: skip
    cases = [
        ({}, True, False),
        ({"q": 0.06, "held_low": 0.4}, False, False),
        ({"alone_low": 0.45, "held_low": 0.4}, False, False),
        ({"held_low": 0.45}, True, True),
        ({"held_gain_low": -0.1}, True, True),
        ({"compared": 8.0}, True, True),
        ({"compared": np.nan}, True, False),  # of an earlier version
        ({"confound": "group", "q": np.nan, "left": 0.0}, True, True),
        ({"confound": "group", "q": np.nan}, False, False),
    ]
    verdicts = judged(pd.DataFrame([clear | other for other, _, _ in cases]))
    assert verdicts.found.tolist() == [found for _, found, _ in cases]
    assert verdicts.flagged.tolist() == [flagged for _, _, flagged in cases]


def test_candidates_of_groups_are_held_against_annotations_handed_from_group_to_group() -> None:
    """Where label and candidate belong to the group, twelve groups that agree by chance are no evidence of 240 texts."""
    sad = np.repeat(np.arange(12) % 2 == 0, 20)
    speaker = np.repeat(np.array([0, 1, 0, 1, 0, 1, 1, 0, 0, 1, 1, 0]), 20).astype(str)
    order = np.random.default_rng(0)
    frame = checked(order.normal(size=(240, 3)), mixed(order, sad, 0.95), {"speaker": speaker}, per_group=20)
    assert frame.p["speaker"] > 0.05 and not frame.found["speaker"]


@pytest.mark.parametrize(("planted", "expected"), [("length", "length"), ("speaker", "names")])
def test_artefacts_planted_in_generated_texts_are_flagged_on_the_ground_truth_model(
    planted: str, expected: str
) -> None:
    """Nobody in these texts feels anything, so that labels can be told from the artefact alone."""
    texts = generate(240, 3, forms=["third"], emotions=["neutral"])
    value = {
        "length": [len(text.text.split()) for text in texts],
        "speaker": [sum(map(ord, text.experiencer)) % 7 for text in texts],
    }[planted]
    high = np.array(value) > np.median(value)
    glad = np.where(np.random.default_rng(0).random(len(texts)) < 0.9, high, ~high)
    labelled = Corpus.from_columns(
        {
            "text": [text.text for text in texts],
            "labels": [["glad" if one else "sad"] for one in glad],
            "group": [text.world for text in texts],
        }
    )
    found = fit_probes(load_model("ground-truth"), labelled, **{**QUICK, "layers": [4]})
    assert expected in flags(found) and "Supported: " not in found.report()
