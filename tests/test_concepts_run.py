"""The representation experiments one after another: what each is given, what cannot be asked, and where the record goes."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from small_study import small_corpus, small_model

from emoprobe.corpora import Corpus
from emoprobe.corpora.generator import WORLDS
from emoprobe.errors import InputError
from emoprobe.probes import load_probes
from emoprobe.study import Result, load_study, run_concepts, run_study
from emoprobe.study.concepts import run

ARRANGED = "axes circumplex clusters layers".split()
PROMPTED = (
    "scenarios intensity dissociation reply persistence negation binding speakers deflection chronic held_out sources"
).split()
EXPERIMENTS = [*PROMPTED, "tuning"]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Note what each experiment is given, instead of running it."""
    noted: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def stand_in(name: str) -> Any:
        def experiment(*arguments: Any, **options: Any) -> Result:
            noted[name] = arguments, options
            return Result(name, name, "?", "m", pd.DataFrame({"x": [1.0]}), "found", "controls", "verdict")

        return experiment

    for name in EXPERIMENTS:
        monkeypatch.setattr(run, name, stand_in(name))
    for name in ARRANGED:
        monkeypatch.setattr(run.arrangement, name, stand_in(name))
    return noted


def texts(corpus: Corpus) -> set[str]:
    return set(corpus.texts)


def felt_corpus(ratings: bool = True) -> Corpus:
    """Return texts with a label each, some neutral, in ten groups; the glad ones are rated 0.5, the others -0.25."""
    rows = [
        ("glad", "the sun came up"),
        ("sad", "the dog had run away"),
        ("neutral", "it was a day of the week"),
    ]
    chosen = [rows[number % 3] for number in range(60)]
    columns: dict[str, Any] = {
        "text": [f"Day {number}: {text}." for number, (_, text) in enumerate(chosen)],
        "labels": [[label] for label, _ in chosen],
        "group": [f"week {number % 10}" for number in range(60)],
    }
    if not ratings:
        return Corpus.from_columns(columns, name="days")
    columns["valence"] = [0.5 if label == "glad" else -0.25 for label, _ in chosen]
    columns["arousal"] = [0.75 if label == "sad" else 0.25 for label, _ in chosen]
    return Corpus.from_columns(
        columns, name="days", dimensions={"valence": (-1.0, 1.0), "arousal": (0.0, 1.0)}
    )


def test_each_experiment_gets_the_probes_and_texts_that_they_were_not_fitted_on(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, corpus, other = small_model(), felt_corpus(), small_corpus(texts=40)
    study = run_concepts(model, corpus, beside=[other], seed=1, progress=False)
    assert study.folder == Path("runs/small-days-concepts")
    assert study.names == ("probing", *ARRANGED, *PROMPTED[:10], "held-out days", "sources")
    probes = load_probes(study.folder / "probes.safetensors")
    fitted, kept_back = given["scenarios"][1]["corpus"], given["chronic"][0][1]
    assert texts(fitted) | texts(kept_back) == texts(corpus) and not texts(fitted) & texts(kept_back)
    assert probes.metadata["corpus_fingerprint"] == fitted.fingerprint
    for name in PROMPTED:
        assert given[name][0][0] is model and given[name][1]["seed"] == 1
        assert not given[name][1]["progress"]  # two bars at once would be an error
        if name != "chronic":
            assert given[name][0][1].concepts == probes.concepts
    assert given["held_out"][0][2] is other and given["held_out"][0][3].fingerprint == fitted.fingerprint
    vectors = {name: given[name][0][0] for name in ARRANGED}
    assert len({id(one) for one in vectors.values()}) == 1  # made once
    about = vectors["axes"].raw.metadata
    assert (
        about["corpus_fingerprint"] == fitted.fingerprint
        and about["start"] == run.START
        and about["seed"] == 1
    )
    assert about["recipe"]["neutral_texts"] == sum("day of the week" in text for text in fitted.texts)
    norms = given["axes"][0][1]
    assert norms.loc["glad"].tolist() == [0.5, 0.25] and norms.loc["sad"].tolist() == [-0.25, 0.75]
    assert study.manifest["study"]["experiments"] == "concepts"
    given.clear()
    again = run_concepts(model, corpus, beside=[other], seed=1, progress=False)
    assert not given and again.names == study.names == load_study(study.folder).names


def test_words_are_rated_by_people_where_their_ratings_are_given(
    given: dict[str, Any], tmp_path: Path
) -> None:
    norms = pd.DataFrame(
        {"word": ["glad", "sad"], "valence": [7.0, 2.0], "arousal": [5.0, 3.0], "dominance": [6, 3]}
    )
    run_concepts(small_model(), felt_corpus(ratings=False), tmp_path / "run", norms=norms, progress=False)
    rated = given["axes"][0][1]
    assert rated.loc["sad"].tolist() == [2.0, 3.0] and list(rated.columns) == ["valence", "arousal"]
    with pytest.raises(InputError, match="holds another study"):
        run_concepts(small_model(), felt_corpus(ratings=False), tmp_path / "run", progress=False)


def test_what_cannot_be_asked_is_said_in_words(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: Any, **__: Any) -> Result:
        raise InputError("these probes know 1 of the emotions")

    monkeypatch.setattr(run, "negation", refuses)
    study = run_concepts(small_model(), felt_corpus(ratings=False), tmp_path / "run", progress=False)
    assert study["negation"].verdict == "Not asked: these probes know 1 of the emotions."
    assert (
        "does not rate valence and arousal" in study["axes"].verdict
        and study["clusters"].verdict == "verdict"
    )
    assert study.names == ("probing", *ARRANGED, *PROMPTED[:10], "sources") and "Not asked" in (
        study.folder / "report.html"
    ).read_text("utf-8")
    unlabelled = run_concepts(small_model(), small_corpus(), tmp_path / "other", progress=False)
    assert all("need texts of two or more labels" in unlabelled[name].verdict for name in ARRANGED)

    def fails(*_: Any, **__: Any) -> Result:
        raise ValueError("a fault")

    monkeypatch.setattr(run, "negation", fails)
    with pytest.raises(ValueError, match="a fault"):  # a fault is none of the corpus's
        run_concepts(small_model(), felt_corpus(), tmp_path / "third", progress=False)


def test_the_ground_truth_gets_texts_of_its_generator_and_a_reason_for_each_of_the_others(
    given: dict[str, Any], tmp_path: Path
) -> None:
    study = run_concepts(small_model("ground-truth"), small_corpus(), tmp_path / "run", progress=False)
    asked = {"intensity", "binding", "speakers"}
    assert set(study.names) == {"probing", *ARRANGED, *PROMPTED} - {"held_out"} | {"held-out"}
    assert set(given) == asked
    assert "negation is not in its language" in study["negation"].verdict
    for name in set(study.names) - asked - {"probing"}:
        assert study[name].verdict.startswith("Not asked: ") and study[name].finding == "not asked"
    pairs = given["speakers"][1]["dialogues"]
    assert len(pairs) == run.PAIRS and {e for pair in pairs for e in pair.emotions} == set(run.FELT)
    assert not given["intensity"][1]["spoken"]


def test_the_ground_truth_is_read_in_worlds_that_were_kept_back(
    given: dict[str, Any], monkeypatch: Any
) -> None:
    noted: list[Any] = []
    monkeypatch.setattr(run, "generated_degrees", lambda worlds, **_: noted.append(worlds))
    monkeypatch.setattr(run, "generated_scenes", lambda worlds, **_: noted.append(worlds))
    kept: Any = type("Kept", (), {"groups": np.array([WORLDS[2], WORLDS[0], WORLDS[2]])})
    probes: Any = type("Probes", (), {"best_layer": staticmethod({"valence": 5}.__getitem__)})
    made: Any = run._of_generated_texts(small_model(), probes, kept, 0)
    made["intensity"](), made["binding"]()
    assert given["intensity"][1]["layer"] == 5
    assert noted == [sorted([WORLDS[0], WORLDS[2]])] * 2


def test_a_base_model_is_compared_where_one_is_given(given: dict[str, Any], tmp_path: Path) -> None:
    model, base = small_model(), small_model("base")
    study = run_concepts(model, small_corpus(), tmp_path / "run", base=base, progress=False)
    assert study.names[-1] == "tuning"
    assert given["tuning"][0][:2] == (base, model) and given["tuning"][0][2].model == model.name
    with pytest.raises(InputError, match="holds another study"):
        run_concepts(model, small_corpus(), tmp_path / "run", progress=False)


def test_a_folder_of_another_kind_or_with_other_corpora_beside_is_refused(
    given: dict[str, Any], tmp_path: Path
) -> None:
    model, corpus = small_model(), small_corpus()
    run_concepts(model, corpus, tmp_path / "run", progress=False)
    with pytest.raises(InputError, match="holds another study"):
        run_concepts(model, corpus, tmp_path / "run", beside=[small_corpus(texts=40)], progress=False)
    with pytest.raises(InputError, match="holds another study"):
        run_study(model, corpus, tmp_path / "run", progress=False)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_are_called_alike(name: str) -> None:
    signature = inspect.signature(getattr(run, name))
    first = list(signature.parameters)
    assert first[0] == ("base" if name == "tuning" else "model")
    assert name in ("chronic", "tuning") or first[1] == "probes"
    for option, default in {"seed": 0, "batch_size": 32, "progress": True}.items():
        assert signature.parameters[option].default == default
        assert signature.parameters[option].kind is inspect.Parameter.KEYWORD_ONLY
    assert signature.parameters["layer"].kind is inspect.Parameter.KEYWORD_ONLY
    assert "Raises `InputError`" in " ".join(getattr(run, name).__doc__.split())
