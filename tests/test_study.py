"""The study: what it measures against an independent computation, and that nothing it has done is lost or done twice."""

import html
import inspect
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from small_probes import probes
from small_study import small_corpus, small_model

from emoprobe import InputError
from emoprobe.corpora import Corpus
from emoprobe.models import LiveModel
from emoprobe.probes import load_probes
from emoprobe.report.html import duration
from emoprobe.steering import Sweep, add, continuation, read_out
from emoprobe.study import (
    Result,
    Study,
    injecting,
    learning,
    load_study,
    reading,
    run,
    run_study,
    sentences,
    steering,
    valuing,
)
from emoprobe.study.conduct import Display
from emoprobe.study.cost import Cost
from emoprobe.study.folder import RunFolder
from emoprobe.study.learning import _alignment, _prediction
from emoprobe.study.outcomes import leaning
from emoprobe.study.probing import _shuffled_at_chance
from emoprobe.study.reading import _above_controls, _answer
from emoprobe.study.steering import Steered, _crossed
from emoprobe.study.texts import divide, readable, valuation_dimensions
from emoprobe.study.valuing import _above_random
from emoprobe.study.wording import correlation, listed, number, span
from emoprobe.valattn import Comparison, Valuation
from emoprobe.valattn.compare import CONTROLS as COMPARED

STEPS = ("probing", "reading", "geometry", "valuing", "injecting", "steering", "learning", "sentences")
EXPERIMENTS = (*STEPS, "fit_probes")


@pytest.fixture(scope="module")
def model() -> LiveModel:
    return small_model()


def cheapen(patch: pytest.MonkeyPatch) -> None:
    """Repeat everything less often: what is tested here does not depend on how often."""
    patch.setattr(run, "PERMUTATIONS", 2)
    patch.setattr(injecting, "TEXTS", 4)
    patch.setattr(steering, "TEXTS", 4)
    patch.setattr(learning, "TEXTS", 8)
    patch.setattr(reading, "CONTROLS", 3)
    defaults: dict[Callable[..., object], dict[str, object]] = {
        injecting.injecting: {"strengths": (-1.0, 0.0, 1.0), "controls": 2},
        steering.steering: {"strengths": (-0.1, 0.0, 0.1), "controls": 2},
        learning.learning: {"steps": 3, "batch_size": 4},
        sentences.sentences: {"controls": 2},
    }
    for function, values in defaults.items():
        patch.setattr(function, "__kwdefaults__", {**function.__kwdefaults__, **values})


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    cheapen(monkeypatch)


Calls = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def watched(model: LiveModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Study, Calls]]:
    """A finished study, and with what arguments its experiments and what they are made of were called."""
    with pytest.MonkeyPatch.context() as patch:
        cheapen(patch)
        calls = _recorded(patch)
        yield (
            run_study(model, small_corpus(), tmp_path_factory.mktemp("runs") / "done", progress=False),
            calls,
        )


@pytest.fixture(scope="module")
def finished(watched: tuple[Study, Calls]) -> Study:
    return watched[0]


# A whole study -------------------------------------------------------------------------------------------------------


def test_a_study_leaves_the_whole_record(finished: Study, model: LiveModel) -> None:
    assert finished.names == STEPS
    assert finished.passed, [(r.name, dict(r.checks)) for r in finished.results if not r.passed]
    folder = finished.folder
    assert load_probes(folder / "probes.safetensors").concepts == ("valence", "arousal")
    probed, learned = (
        Valuation.load(folder / f"valuation-{which}.safetensors") for which in ("probed", "learned")
    )
    assert probed.dimensions == learned.dimensions == ("valence", "arousal")
    assert probed.strength is None and learned.strength is not None
    for result in finished.results:
        assert len(pd.read_parquet(folder / "results" / f"{result.name}.parquet")) == len(result.table) > 0
        assert (folder / "figures" / f"{result.name}.svg").read_text().startswith("<?xml")
        assert (folder / "figures" / f"{result.name}.png").read_bytes().startswith(b"\x89PNG")
        assert result.question.endswith("?") and result.finding and result.controls and result.alt
    assert finished.results[0].finding in (folder / "report.html").read_text().replace("&#39;", "'")
    assert not list(folder.rglob(".*"))  # nothing half-written


def test_nothing_is_measured_on_groups_that_something_was_fitted_on(watched: tuple[Study, Calls]) -> None:
    corpus, (_, calls) = small_corpus(), watched
    group = dict(zip(corpus.texts, corpus.groups, strict=True))

    def touched(name: str, argument: str) -> set[str]:
        given = [call[argument] for call in calls[name]]
        return {group[text] for part in given for text in (part.texts if isinstance(part, Corpus) else part)}

    fitted = touched("run.fit_probes", "corpus")
    assert touched("learning.learn_valuation", "corpus") == fitted
    for name, argument in (
        ("run.reading", "held_out"),
        ("run.valuing", "held_out"),
        ("injecting.sweep", "prompts"),
        ("injecting.shared_measures", "texts"),
        ("steering.shared_measures", "texts"),
        ("learning.compare_valuations", "corpus"),
    ):
        measured = touched(name, argument)
        assert measured and not measured & fitted, name
        assert measured <= set(corpus.groups) - fitted


def test_controls_and_the_random_start_are_not_the_valuation_itself(watched: tuple[Study, Calls]) -> None:
    study, calls = watched
    probed = Valuation.load(study.folder / "valuation-probed.safetensors")
    first, second = calls["learning.learn_valuation"]
    assert torch.equal(first["init"].weight, probed.weight)
    assert (first["objective"], second["objective"]) == ("both", "next_token")
    (compared,) = calls["learning.compare_valuations"]
    assert compared["learned_from_random"].metadata["from"] != compared["learned"].metadata["from"]
    assert torch.equal(compared["probed"].weight, probed.weight)
    ((valued, *controls),) = [call["everyone"] for call in calls["valuing._valuations"]]
    assert torch.equal(valued.weight, probed.weight) and len(controls) == valuing.CONTROLS
    others = [probed.weight, *(other.weight for other in controls)]
    for one, *rest in ([second["init"].weight, probed.weight], *(others[row:] for row in range(len(others)))):
        assert torch.allclose(one.norm(dim=-1), probed.weight.norm(dim=-1), rtol=1e-5)
        for other in rest:
            assert torch.cosine_similarity(one, other, dim=-1).abs().max() < 0.9


def test_the_record_says_what_was_done_and_no_secret(
    model: LiveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_swordfish")
    monkeypatch.setattr(run, "_steps", lambda *_: iter([("probing", lambda: _result("probing"))]))
    run_study(model, small_corpus(), tmp_path / "run", seed=3, progress=False)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["study"]["model"] == model.fingerprint()
    assert manifest["study"]["corpus"] == small_corpus().fingerprint
    assert manifest["study"]["seed"] == 3 and manifest["versions"]["torch"] == torch.__version__
    assert manifest["steps"]["probing"]["seconds"] >= 0
    everything = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert b"swordfish" not in everything and b"PATH" not in everything


def test_a_study_of_labels_alone(model: LiveModel, tmp_path: Path) -> None:
    """Labels that are no words anybody feels, and that HTML and TeX would stumble over."""
    study = run_study(model, small_corpus(labels=True), tmp_path / "run", progress=False)
    assert study.names == STEPS and study.passed
    assert "read-out" in study["steering"].question
    assert "added at layer 2 at" in study["steering"].method  # two thirds of three blocks
    assert "<b>sad" not in (tmp_path / "run" / "report.html").read_text()
    assert set(Valuation.load(tmp_path / "run" / "valuation-probed.safetensors").dimensions) <= set(
        small_corpus(True).labels
    )


# Resuming ------------------------------------------------------------------------------------------------------------


def test_an_interrupted_study_goes_on_where_it_was(
    model: LiveModel, finished: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = _counted(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(run, "injecting", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_study(model, small_corpus(), tmp_path / "run", progress=False)
    assert calls == ["fit_probes", "probing", "reading", "geometry", "valuing"]
    begun = load_study(tmp_path / "run")
    assert begun.names == STEPS[:4] and begun.missing == STEPS[4:] and "UNFINISHED: 4 of 8" in repr(begun)
    assert "Unfinished: 4 of 8 experiments are done." in begun.write_report().read_text()
    calls.clear()
    resumed = run_study(model, small_corpus(), tmp_path / "run", progress=False)
    assert calls == ["injecting", "steering", "learning", "sentences"]
    assert resumed.names == STEPS and resumed.missing == () and "UNFINISHED" not in repr(resumed)
    for file in sorted(finished.folder.rglob("*")):
        other = tmp_path / "run" / file.relative_to(finished.folder)
        if file.is_file() and file.name not in ("manifest.json", "report.html"):  # these hold times
            assert other.read_bytes() == file.read_bytes(), file.name


def test_a_finished_study_is_not_done_again_unless_asked(
    model: LiveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def steps(*_: object) -> Iterator[tuple[str, Callable[[], Result]]]:
        for name in ("one", "two"):
            yield name, lambda name=name: made.append(name) or _result(name)  # type: ignore[misc]

    monkeypatch.setattr(run, "_steps", steps)
    record = tmp_path / "run" / "manifest.json"
    for command in ("the first", "the second", "the second"):
        run_study(model, small_corpus(), tmp_path / "run", progress=False, command=command)
        assert made == ["one", "two"]
        assert json.loads(record.read_text())["command"] == "the first"
    reruns = json.loads(record.read_text())["reruns"]
    assert [rerun["command"] for rerun in reruns] == ["the second"] * 2 and all("begun" in r for r in reruns)
    run_study(model, small_corpus(), tmp_path / "run", progress=False, resume=False, command="anew")
    assert made == ["one", "two"] * 2
    anew = json.loads(record.read_text())
    assert anew["command"] == "anew" and "reruns" not in anew


@pytest.mark.parametrize(
    ("model", "corpus", "folder"),
    [
        ("bundled", "passages", "bundled"),
        ("ground-truth", "ground-truth", "ground-truth"),
        ("ground-truth", "passages", "ground-truth-passages"),
        ("bundled", "emobank", "bundled-emobank"),
        ("org/gpt2-1.5B", "data/days.csv", "gpt2-1.5B-days"),
    ],
)
def test_a_study_is_kept_under_its_model_and_corpus(model: str, corpus: str, folder: str) -> None:
    named = run.folder_name(SimpleNamespace(name=model), SimpleNamespace(name=corpus))  # type: ignore[arg-type]
    assert named == Path("runs") / folder


@pytest.mark.parametrize(("change", "named"), [({"seed": 1}, "seed"), ({"limit": 50}, "limit")])
def test_another_study_in_the_same_folder_is_refused(
    model: LiveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, int], named: str
) -> None:
    monkeypatch.setattr(run, "_steps", lambda *_: iter(()))
    run_study(model, small_corpus(), tmp_path / "run", progress=False)
    before = (tmp_path / "run" / "manifest.json").read_bytes()
    with pytest.raises(InputError, match=f"holds another study, small on days .its {named}"):
        run_study(model, small_corpus(), tmp_path / "run", progress=False, **change)  # type: ignore[arg-type]
    assert (tmp_path / "run" / "manifest.json").read_bytes() == before


def test_other_weights_and_other_texts_make_another_study(
    model: LiveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_steps", lambda *_: iter(()))
    run_study(model, small_corpus(), tmp_path / "run", progress=False)
    with pytest.raises(InputError, match="its corpus is"):
        run_study(model, small_corpus(texts=61), tmp_path / "run", progress=False)
    other = small_model()
    with torch.no_grad():
        next(weight for _, weight in other.named_weights()).add_(0.5)
    with pytest.raises(InputError, match="its model is"):
        run_study(other, small_corpus(), tmp_path / "run", progress=False)
    run_study(small_model(), small_corpus(), tmp_path / "run", progress=False)  # the same once more


def test_folders_that_cannot_serve(model: LiveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_steps", lambda *_: iter(()))
    (tmp_path / "file").write_text("a file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.doc").write_text("of value")
    for out, said in (("file", "is a file"), ("file/below", "cannot write"), ("full", "holds other files")):
        with pytest.raises(InputError, match=said):
            run_study(model, small_corpus(), tmp_path / out, progress=False)
    assert (tmp_path / "full" / "thesis.doc").read_text() == "of value"
    with pytest.raises(InputError, match="holds no study"):
        load_study(tmp_path / "full")


def test_a_study_that_was_killed_in_writing_its_manifest_begins_anew(tmp_path: Path) -> None:
    (tmp_path / ".manifest.json.ab_012cd.part").write_text("{")
    RunFolder.start(tmp_path, {"seed": 0}, {"title": "a on b"})
    assert [file.name for file in tmp_path.iterdir()] == ["manifest.json"]


def test_damage_is_named(tmp_path: Path) -> None:
    folder = RunFolder.start(tmp_path / "run", {"seed": 0}, {"title": "a on b"})
    folder.step("one", lambda: _result("one"))
    (tmp_path / "run" / "results" / "one.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r'result "one" .* is damaged'):
        folder.load("one")
    (tmp_path / "run" / "manifest.json").write_text("{")
    with pytest.raises(InputError, match=r"manifest.json. is damaged"):
        RunFolder.open(tmp_path / "run")


def test_a_step_that_fails_leaves_nothing_and_warnings_are_kept(tmp_path: Path) -> None:
    import warnings

    folder = RunFolder.start(tmp_path / "run", {"seed": 0}, {"title": "a on b"})

    def fail() -> Result:
        raise RuntimeError("no")

    def warn() -> Result:
        warnings.warn("12 texts were cut", stacklevel=1)
        return _result("warned")

    with pytest.raises(RuntimeError):
        folder.step("failing", fail)
    assert folder.done == []
    with pytest.warns(UserWarning, match="were cut"):
        folder.step("warned", warn)
    assert folder.load("warned").remarks == ("12 texts were cut",)


def test_a_result_comes_back_as_it_was(tmp_path: Path) -> None:
    made = RunFolder.start(tmp_path / "run", {}, {}).step("one", lambda: _result("one", held=False))
    read = RunFolder.open(tmp_path / "run").load("one")
    pd.testing.assert_frame_equal(read.table, made.table)
    for name in ("title", "question", "finding", "controls", "verdict", "checks", "svg", "alt"):
        assert getattr(read, name) == getattr(made, name)
    assert not read.passed and "FAILED: it held" in repr(read) and "<svg" in read._repr_html_()


# What experiments share ----------------------------------------------------------------------------------------------


def test_held_out_groups_are_held_out() -> None:
    fitted, held_out = divide(small_corpus(), seed=1)
    assert not set(fitted.groups) & set(held_out.groups)
    assert len(fitted) + len(held_out) == 60
    assert sum(map(len, divide(small_corpus(), limit=30))) == 30
    assert divide(small_corpus(), seed=2)[1].fingerprint != held_out.fingerprint
    with pytest.raises(InputError, match="at least 4 groups"):
        divide(small_corpus().select(indices=range(3)))


def test_what_is_valued_by() -> None:
    texts = [f"text {n}" for n in range(40)]
    annotated = {name: [0.5] * 40 for name in ("arousal", "relevance", "valence", "pride")}
    ranges = dict.fromkeys(annotated, (0.0, 1.0))
    full = Corpus.from_columns({"text": texts, **annotated}, dimensions=ranges)
    assert valuation_dimensions(full) == ("valence", "arousal", "relevance")
    assert valuation_dimensions(small_corpus()) == ("valence", "arousal")
    many = Corpus.from_columns({"text": texts, "labels": [[f"label {min(n, 35):02}"] for n in range(40)]})
    chosen = valuation_dimensions(many)
    assert len(chosen) == 32 and "label 35" in chosen and list(chosen) == sorted(chosen)


def test_only_texts_that_can_be_read_whole(model: LiveModel) -> None:
    texts = ["a", "The sun came up.", "long " * 600]
    assert readable(model, texts, 3) == ["The sun came up."]
    with pytest.raises(InputError, match="no held-out text"):
        readable(model, texts[2:], 3)


def test_leaning_is_the_difference_of_two_sides(model: LiveModel) -> None:
    texts = ["The sun came up and the old man was", "It was dark and she was"]
    words = {"toward": [" happy", " glad"], "against": [" sad"]}
    sides = continuation(words)(model, texts)
    found = leaning("joy", words["toward"], words["against"], texts)(model, [])
    torch.testing.assert_close(found["joy"], sides["toward"] - sides["against"])
    found = leaning("joy", words["toward"], (), texts)(model, [])
    torch.testing.assert_close(found["joy"], sides["toward"])


def test_a_leak_in_shuffled_scores_is_noticed() -> None:
    """Shuffled scores at chance pass; those that one permutation may reach, but the mean of ten may not, do not."""
    found = probes()
    chance = found.scores.chance

    def at_chance(shift: float, names: slice | list[str] = slice(None)) -> bool:
        scores = found.scores.copy()
        moved = scores.metric.isin(names) if isinstance(names, list) else pd.Series(True, index=scores.index)
        scores["shuffled"] = chance + shift * moved
        scores["shuffled_low"], scores["shuffled_high"] = scores.shuffled - 0.1, scores.shuffled + 0.1
        metadata = {**found.metadata, "permutations": {"label": 9, "dimension": 9}}
        return _shuffled_at_chance(replace(found, scores=scores, metadata=metadata))

    assert at_chance(0) and at_chance(0.03) and at_chance(-0.03)
    assert not at_chance(0.05) and at_chance(-0.05) and not at_chance(-0.12)
    assert at_chance(-0.2, ["accuracy"]) and at_chance(0.2, ["accuracy"])  # too few scores to tell
    only = replace(found, scores=found.scores[found.scores.metric == "accuracy"])
    assert not _shuffled_at_chance(
        replace(only, scores=only.scores.assign(shuffled=0.9, shuffled_low=0.85, shuffled_high=0.95))
    )
    assert _shuffled_at_chance(
        replace(only, scores=only.scores.assign(shuffled=0.1, shuffled_low=0.05, shuffled_high=0.15))
    )


def made_up(rise: float, random: list[float], others: list[float], bend: float = 0.0) -> Steered:
    """Return a concept whose outcome, over eight texts, goes up by `rise` per unit of strength, and `bend` at the highest."""
    rows = []
    for strength in (-1.0, 0.0, 1.0):
        for text in range(8):
            value = rise * strength + bend * (strength > 0) + 0.1 * (text - 3.5) * (1 + 0.1 * strength)
            rows.append((strength, "steered", None, "log P", text, value))
            rows += [(strength, "random", seed, "log P", text, r * strength) for seed, r in enumerate(random)]
    columns = ["strength", "condition", "seed", "measure", "text", "value"]
    raw = pd.DataFrame(rows, columns=columns).astype({"seed": "Int64"})
    return Steered("joy", "log P", Sweep(raw, "joy", "made up"), pd.Series(others, dtype=float))


def test_what_counts_as_steering() -> None:
    quiet = [-0.2, -0.1, 0.0, 0.1, 0.2]
    good = made_up(2.0, quiet, [0.5, 1.9])
    assert good.monotone and good.specific and good.own
    assert not made_up(2.0, [-3.0, -1.0, 0.0, 1.0, 3.0], []).specific  # random directions may do as much
    assert not made_up(2.0, quiet, [2.1]).own  # another concept does more
    assert not made_up(2.0, quiet, [], bend=-3.0).monotone
    falls = made_up(-2.0, quiet, [])
    assert not (falls.monotone or falls.specific) and falls.own
    # A slope that other texts might not show is no effect, however quiet the controls.
    assert not made_up(0.005, [0.0, 0.0], []).specific


def test_other_concepts_are_steered_with_as_well(model: LiveModel, finished: Study) -> None:
    probes = load_probes(finished.folder / "probes.safetensors")
    names, texts = list(probes.concepts), small_corpus().texts[:4]
    found = _crossed(model, probes, names, [read_out(probes, names, 3, name="read-out")], texts, 1, 0.1)
    assert list(found.index) == names and list(found.columns) == [f"{name} read-out" for name in names]
    with model.intervene(*add(model, probes[names[1]], 0.1, 1)):
        steered = read_out(probes, names[0], 3)(model, texts)
    untouched = read_out(probes, names[0], 3)(model, texts)
    ((measure, after),) = steered.items()
    assert found.loc[names[1], f"{names[0]} read-out"] == pytest.approx(
        float((after - untouched[measure]).mean()), abs=1e-5
    )


def test_a_random_start_is_held_to_random_valuations_as_it_is_to_the_probes() -> None:
    def verdict(held: float, annotated: bool = True) -> str:
        records = [
            ("row cosine", 0, "valence", -0.9, *[0.0] * len(COMPARED)),
            ("matched row cosine", 0, "valence", 0.8, *[0.0] * len(COMPARED)),
        ]
        alignment = pd.DataFrame(records, columns=["quantity", "layer", "dimension", "value", *COMPARED])
        random = {f"random {k}": value for k, value in enumerate((0.02, 0.03, 0.04))}
        rows = [
            (name, 0, block, value)
            for name, value in {**random, "learned from random": held}.items()
            for block in range(4)
        ]
        overlap = pd.DataFrame(rows, columns=["condition", "seed", "layer", "overlap"])
        nothing = pd.DataFrame()
        tables = (alignment, overlap, nothing, nothing, nothing, nothing, nothing)
        return _alignment(Comparison(*tables, "made up", texts=1, groups=1), 0.025, annotated)

    for held, said in ((0.01, "within what"), (0.09, "more than"), (-0.09, "less than")):
        assert f"{said} one more random valuation may be expected to give (0.000 to +0.080, 95 %)" in verdict(
            held
        )
        assert "0.025 at its start" in verdict(held) and "one start" in verdict(held)
    assert "the same annotations" in verdict(0.01) and "valence −0.90" in verdict(0.01)
    # Where no annotation held a row to its sign and place, neither counts.
    assert "annotations)" not in verdict(0.01, False) and "signs aside" in verdict(0.01, False)
    assert "valence 0.80" in verdict(0.01, False)


def test_what_learning_did_to_prediction_is_said_as_intervals_have_it() -> None:
    def verdict(
        learned: tuple[float, ...], excess: tuple[float, ...], randoms: tuple[float, ...] = (-0.01, 0.0, 0.01)
    ) -> str:
        rows = {
            "learned": (0.1, *learned, 0.0, 0.0, 0.0),
            **{f"random {k}": (0.1, value, 0.0, 0.0, 0.0, 0.0, 0.0) for k, value in enumerate(randoms)},
            "learned from random": (0.2, -0.3, -0.4, -0.2, *excess),
        }
        columns = ["lambda", "delta", "low", "high", "excess", "excess_low", "excess_high"]
        frame = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
        signs.append(learning._sign(frame, compared))
        return _prediction(frame, annotated=True)

    signs: list[int | None] = []
    overlap = [("random 0", 0.02), ("random 1", 0.03), ("random 2", 0.04), ("learned from random", 0.5)]
    compared: Any = SimpleNamespace(overlap=pd.DataFrame(overlap, columns=["condition", "overlap"]))
    open_, better, worse = (0.0, -0.1, 0.1), (-0.2, -0.3, -0.1), (0.2, 0.1, 0.3)
    assert "helps prediction, by more than random ones that learned nothing: " in verdict(better, open_)
    by_chance = verdict(better, open_, (-0.3, -0.1, 0.0))
    assert "helps prediction by no more than random ones may that learned nothing: " in by_chance
    assert "under random ones that learned nothing, at the same λ, by −0.3000 to 0.0000" in by_chance
    assert "makes prediction worse" in verdict(worse, open_)
    assert "does not help prediction measurably" in verdict((-0.2, -0.5, 0.1), worse)
    assert signs == [1, 0, -1, 0]
    assert verdict((-0.2, np.nan, np.nan), open_).startswith("Cannot be told: one group")
    assert signs.pop() is None
    # How a random start does is said, and counts for nothing: it differs in more than its start.
    for excess in (open_, better, worse):
        said = verdict(better, excess)
        assert signs[-1] == 1 and "the two are not comparable" in said and "cannot be told" in said
        assert "start, objective and the λ they reached, with one start each" in said
        assert "more than the probes do" not in said and "leads to" not in said
    compared.overlap.loc[3, "overlap"] = 0.03  # found nothing of what the probes found
    verdict(better, worse)
    assert signs[-1] == 0


def test_what_is_read_better_than_every_control() -> None:
    """By r above a control alone, with an interval that goes below it, nothing is shown; nor by a control that was not run."""
    columns = ["concept", "r", "low", "high", "random_high", "shuffled_high", "layer0", "bag_of_words"]
    good = ("joy", 0.6, 0.5, 0.7, 0.4, 0.3, 0.2, 0.4)
    rows = [good]
    for place in range(4, 8):
        for beaten_by in (0.55, np.nan):
            rows.append((*good[:place], beaten_by, *good[place + 1 :]))
    rows.append(("awe", 0.6, np.nan, np.nan, *good[4:]))
    table = pd.DataFrame(rows, columns=columns)
    assert _above_controls(table).all(axis=1).tolist() == [True, *[False] * 9]
    assert _answer(table).startswith("Joy of the 10 concepts is read above every control on unseen texts")
    assert (
        "above random directions 7, shuffled annotations 7, the embedding 7 and a bag of words 7"
        in _answer(table)
    )
    assert _answer(table[1:]).startswith("None of the 9 concepts is read above")
    assert _answer(pd.concat([table[:1]] * 2)).startswith("All the 2 concepts are read above")


def test_controls_of_reading_are_computed_on_the_same_texts(model: LiveModel, finished: Study) -> None:
    probes = load_probes(finished.folder / "probes.safetensors")
    fitted, held_out = divide(small_corpus())
    table = finished["reading"].table.set_index("concept")
    read = probes.read_out(model.capture(held_out.texts, [0])[:, 0], 0)[:, probes.concept_index("valence")]
    r = np.corrcoef(read.double().numpy(), held_out.values("valence"))[0, 1]
    assert table.layer0["valence"] == pytest.approx(r, abs=1e-6)
    words = reading.by_words(fitted, held_out.texts, ["valence"], 5, 0)["valence"]
    r = np.corrcoef(words, held_out.values("valence"))[0, 1]
    assert table.bag_of_words["valence"] == pytest.approx(r, abs=1e-6)
    # ... by words, and those of the texts that the probes were fitted on.
    other = reading.by_words(fitted.select(indices=range(20)), held_out.texts, ["valence"], 5, 0)["valence"]
    assert not np.allclose(words, other)
    again = reading.by_words(fitted, [text.upper() for text in held_out.texts], ["valence"], 5, 0)["valence"]
    assert np.allclose(words, again)
    # They are fitted to each text's own annotation.
    own = reading.by_words(fitted, fitted.texts, ["valence"], 5, 0)["valence"]
    assert np.corrcoef(own, fitted.values("valence"))[0, 1] > 0.5


def test_every_experiment_answers_its_question_in_plain_words(finished: Study) -> None:
    page = (finished.folder / "report.html").read_text()
    answers = re.findall(r'<td class="answer">(.*?)</td>', page)
    assert len(answers) == len(STEPS)
    for result, answer in zip(finished.results, answers, strict=True):
        lead = r"<b>(Shown|Partly shown|Not shown|The opposite is shown)\.</b> ."
        assert re.match(lead if result.sign is not None else "Cannot be told: .", answer), answer
        assert result.verdict.startswith(result.answer) and len(result.answer) > 30


def test_one_minus_and_one_way_to_write_p_in_the_whole_report(finished: Study) -> None:
    page = (finished.folder / "report.html").read_text()
    shown = html.unescape(re.sub(r"<(style|pre)>.*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL))
    assert not re.findall(r"(?<![\w-])-\d[\d.]*", shown) and "−" in shown
    values = re.findall(r"\b[pq]\s[=<]\s(\S+)", shown)
    assert values and all(re.fullmatch(r"0\.0\d\d|0\.[1-9]\d|1\.00|0\.10", v.rstrip(";.,)")) for v in values)


def test_what_judges_an_effect_of_steering() -> None:
    quiet, no_interval = np.array([-0.1, 0.0, 0.1]), (0.3, np.nan, np.nan)
    effect, own = (0.9, 0.7, 1.1), (0.5, 0.3, 0.7)

    def judged(*given: Any) -> tuple[int | None, str]:
        return steering._sign(*given), steering._answer(*given, "it", steered)

    steered = [made_up(2.0, [-0.2, 0.0, 0.2], [0.5, 1.9]), made_up(0.1, [-0.2, 0.0, 0.2], [0.5])]
    _, answer = judged(effect, quiet, own)
    assert "one more random direction for 1 of 2, and its own direction raises it most for 1 of 2." in answer

    assert judged(effect, quiet, own)[0] == judged(effect, quiet, None)[0] == 1
    for given, said in (
        ((effect, 10 * quiet, own), "random directions may do as much"),
        ((effect, quiet, (0.1, -0.1, 0.3)), "other concepts' directions may do as much"),
        (((0.9, -0.1, 1.9), quiet, own), "not shown to raise it"),
    ):
        sign, answer = judged(*given)
        assert sign == 0 and said in answer
    random, other = "by more than with random directions", "by more than with other concepts' directions"
    assert steering._parts(effect, 10 * quiet, own) == {"it rises": True, random: False, other: True}
    assert steering._parts(effect, quiet, (0.1, -0.1, 0.3)) == {"it rises": True, random: True, other: False}
    assert steering._parts((0.9, -0.1, 1.9), quiet, None) == {"it rises": False, random: False}
    sign, answer = judged((-0.9, -1.1, -0.7), quiet, own)
    assert sign == -1 and "lowers it" in answer
    for given in ((no_interval, quiet, own), (effect, quiet[:1], own)):
        sign, answer = judged(*given)
        assert sign is None and answer.startswith("Cannot be told")


def test_what_judges_an_effect_of_injection() -> None:
    quiet = [0.0, 0.1, 0.2]
    read_outs = pd.Series(["steeper than", ""])

    def judged(*given: Any) -> tuple[int | None, str]:
        return injecting._sign(*given), injecting._answer(*given, 2.0)

    assert judged((0.9, 0.7, 1.1), quiet, read_outs[:1])[0] == 1
    sign, answer = judged((0.9, 0.7, 1.1), quiet, read_outs)
    assert sign == 0 and "which is told at λ = 2 alone" in answer
    assert "becomes worse by more than" in answer and "of 2 read-outs 1 follows" in answer
    assert "becomes better" in judged((-0.9, -1.1, -0.7), quiet, read_outs)[1]
    for cost in ((0.9, -0.1, 1.9), (0.2, 0.1, 0.3)):
        sign, answer = judged(cost, quiet, read_outs[:1])
        assert sign == 0 and "not shown to change otherwise" in answer
    assert judged((0.9, 0.7, 1.1), [0.1], read_outs)[0] is None


def test_the_best_block_is_held_to_the_best_block_of_random_valuations() -> None:
    columns = ["layer", "dimension", "r", "low", "high", "random_high"]
    rows = [
        (0, "valence", 0.6, 0.5, 0.7, 0.2),
        (1, "valence", 0.3, 0.2, 0.4, 0.4),
        (0, "arousal", 0.6, 0.5, 0.7, 0.2),
        (1, "arousal", 0.3, 0.2, 0.4, 0.55),
    ]
    table = pd.DataFrame(rows, columns=columns)
    assert _above_random(table, table[table.layer == 0]) == ["valence"]


def test_no_peak_of_a_valuation_is_cut_off() -> None:
    """Panels of a row share their axis, and the last one has the highest peak here."""
    names = ("valence", "arousal", "relevance")
    columns = ["layer", "dimension", "r", "low", "high", "random_high"]
    table = pd.DataFrame([(0, name, 0.5, 0.4, 0.6, 0.2) for name in names], columns=columns)
    histogram = np.full((1, 3, len(valuing.BINS) - 1), 0.05)
    histogram[0, 2, 10] = 0.4
    figure = valuing._figure(Valuation(torch.ones(1, 3, 4), torch.zeros(1, 3), names, (0,)), table, histogram)
    for axis in figure.axes[:3]:
        assert axis.get_ylim()[0] == 0 and axis.get_ylim()[1] > 0.4


def test_correlations_and_their_intervals() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=300)
    y = x + rng.normal(size=300)
    r, low, high = correlation(x, y, np.arange(300).astype(str))
    assert r == pytest.approx(np.corrcoef(x, y)[0, 1])
    fisher = np.tanh(np.arctanh(r) + np.array([-1.96, 1.96]) / np.sqrt(297))
    assert [low, high] == pytest.approx(fisher, abs=0.03)
    # Texts of one group are not so many independent ones.
    _, lower, higher = correlation(
        np.repeat(x, 10), np.repeat(y, 10), np.repeat(np.arange(300), 10).astype(str)
    )
    assert higher - lower == pytest.approx(high - low, abs=0.02)
    y[5] = np.nan
    assert correlation(x, y, np.arange(300))[0] == pytest.approx(
        np.corrcoef(np.delete(x, 5), np.delete(y, 5))[0, 1]
    )
    assert np.isnan(correlation(x, np.ones(300), np.arange(300))[0])


def test_numbers_in_words() -> None:
    assert number(-0.5) == "−0.50" and number(-0.001) == "0.00" and number(2, 1, sign=True) == "+2.0"
    assert span(0.5, 0.25, np.nan) == "0.50" and span(0.5, 0.25, 0.75).split() == ["0.50", "[0.25,", "0.75]"]
    assert listed(["a"]) == "a" and listed(["a", "b", "c"]) == "a, b and c" and listed([]) == "none"
    assert listed("abcd", 2) == "a, b and 2 more" and number(float("nan")) == "not measured"


# Helpers -------------------------------------------------------------------------------------------------------------


def _result(name: str, held: bool = True) -> Result:
    from emoprobe import drawing

    figure, axes = drawing.panels()
    drawing.line(axes[0, 0], [0, 1], [0, 1])
    table = pd.DataFrame({"layer": [0, 1], "value": [0.5, np.nan], "concept": ["joy", None]})
    texts = {
        key: f"{key} of {name}" for key in ("title", "question", "method", "finding", "controls", "verdict")
    }
    return Result(name, table=table, checks={"it held": held}, figure=figure, alt="A line.", **texts)


def _recorded(patch: pytest.MonkeyPatch) -> Calls:
    """Note the arguments, by name, of what a study calls to fit and to measure."""
    calls: Calls = {}
    for module, name in (
        (run, "fit_probes"),
        (run, "reading"),
        (run, "valuing"),
        (valuing, "_valuations"),
        (injecting, "sweep"),
        (injecting, "shared_measures"),
        (steering, "shared_measures"),
        (learning, "learn_valuation"),
        (learning, "compare_valuations"),
    ):
        inner = getattr(module, name)
        noted = calls.setdefault(f"{module.__name__.rsplit('.', 1)[-1]}.{name}", [])

        def call(*given: Any, inner: Any = inner, noted: Any = noted, **options: Any) -> Any:
            noted.append(dict(inspect.signature(inner).bind(*given, **options).arguments))
            return inner(*given, **options)

        patch.setattr(module, name, call)
    return calls


def _interrupt(*_: object, **__: object) -> Result:
    raise KeyboardInterrupt


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note which experiments run."""
    calls: list[str] = []
    for name in EXPERIMENTS:
        inner = getattr(run, name)

        def call(
            *given: object, name: str = name, inner: Callable[..., object] = inner, **options: object
        ) -> object:
            calls.append(name)
            return inner(*given, **options)

        monkeypatch.setattr(run, name, call)
    return calls


def test_the_display_tells_how_long_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(True) as display:
        display.begin("loading")
        display.done("")
        display.expect({"probing": 90.0, "reading": 60.0})
        for name in ("probing", "reading", "report"):
            display.begin(name)
            display.done("")
    told = re.findall(r"… (\w+), begun [\d:]+(.*)", capsys.readouterr().err)
    assert [name for name, _ in told] == ["loading", "probing", "reading", "report"]
    minutes = [duration(seconds) for seconds in (90, 150, 60, 60)]
    assert told[1][1] == f", about {minutes[0]}, and {minutes[1]} to the end"
    assert told[2][1] == f", about {minutes[2]}, and {minutes[3]} to the end"
    assert told[0][1] == told[3][1] == ""


def test_the_steps_that_are_estimated_are_those_of_a_study() -> None:
    frame = pd.DataFrame(
        {"step": ["reading", "learning", "learning (backwards)"], "seconds": [1.0, 2.0, 4.0]}
    )
    found = Cost("a", frame, 0, 0, 0, "cpu", 0.0).by_step
    assert found == {"reading": 1.0, "learning": 6.0}
