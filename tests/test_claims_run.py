"""The claims one after another: what each is given, which texts are read, the command, and the page of verdicts."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from small_study import small_corpus, small_model

from emoprobe import cli
from emoprobe.corpora import Corpus
from emoprobe.corpora.generator import WORLDS
from emoprobe.errors import InputError
from emoprobe.study import Result, load_study, run_claims, run_concepts
from emoprobe.study.claims import run
from emoprobe.study.claims.cues import generated_pairs, written_pairs
from emoprobe.study.claims.word_classes import turning, word_places
from emoprobe.study.texts import divide

CLAIMS = ("magnitudes", "turning_and_emotional", "distance", "cost")
STEPS = ("probing", "magnitudes", "words", "distance", "cost")


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Note what each claim is given, instead of judging it."""
    noted: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def stand_in(name: str) -> Any:
        def judge(*arguments: Any, **options: Any) -> Result:
            noted[name] = arguments, options
            row = {"claim": name, "measure": "%", "strength": np.nan, "verdict": "not shown"}
            numbers = dict.fromkeys(
                ("value", "low", "high", "random_low", "random_high", "p", "p_differs"), 0.5
            )
            numbers |= dict.fromkeys(("beyond_negative", "beyond_low", "beyond_high", "clusters"), np.nan)
            table = pd.DataFrame([{**row, **numbers}]) if name != "cost" else pd.DataFrame({"x": [1.0]})
            return Result(
                name, name, "?", "m", table, "found", "controls", "The cost is small: supported. And so on."
            )

        return judge

    for name in CLAIMS:
        monkeypatch.setattr(run, name, stand_in(name))
    monkeypatch.setattr(run, "read_words", lambda *arguments, **options: (arguments, options))
    return noted


def corpus_of_turns() -> Corpus:
    """Sixty texts of the small study, every other of which has a word that turns it, and one that is too short."""
    plain = small_corpus()
    texts = [text.replace(", and", ", but") if row % 2 else text for row, text in enumerate(plain.texts)]
    return Corpus.from_columns(
        {"text": [*texts, "No."], "group": [*plain.groups.tolist(), "week 11"]}, name="turns"
    )


def test_each_claim_gets_the_valuation_of_the_probes_and_texts_they_were_not_fitted_on(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, corpus = small_model(), small_corpus()
    study = run_claims(model, corpus, seed=1, progress=False)
    assert study.folder == Path("runs/small-days-claims") and study.names == STEPS
    assert study.manifest["study"]["experiments"] == "claims"
    (live, valuation, read), options = given["magnitudes"][0][0]
    assert live is model and valuation.dimensions == ("valence", "arousal")
    assert options == {"controls": 20, "seed": 1}
    kept_back = study.manifest["corpus"]["held_out"]
    assert 0 < len(read) <= kept_back
    assert given["turning_and_emotional"][0][0] == given["magnitudes"][0][0]  # read once
    assert given["distance"][0][3] == written_pairs(1) and given["distance"][0][4] == "valence"
    assert given["cost"][0][1].dimensions == valuation.dimensions
    given.clear()
    assert run_claims(model, corpus, seed=1, progress=False).names == STEPS == load_study(study.folder).names
    assert not given
    with pytest.raises(InputError, match="holds another study"):
        run_claims(model, corpus, study.folder, texts=corpus_of_turns(), seed=1, progress=False)
    with pytest.raises(InputError, match="holds another study"):
        run_concepts(model, corpus, study.folder, seed=1, progress=False)


def test_the_ground_truth_gets_cues_in_its_own_language_and_worlds_kept_back(
    given: dict[str, Any], tmp_path: Path
) -> None:
    columns = small_corpus().frame
    worlds = np.array(WORLDS)[np.arange(len(columns)) % len(WORLDS)]
    corpus = Corpus.from_columns(
        {
            **{name: columns[name].tolist() for name in ("text", "valence", "arousal")},
            "group": worlds.tolist(),
        },
        dimensions={"valence": (-1.0, 1.0), "arousal": (0.0, 1.0)},
    )
    kept_back = np.unique(divide(corpus, None, 0)[1].groups).tolist()
    run_claims(small_model("ground-truth"), corpus, tmp_path / "run", progress=False)
    assert given["distance"][0][3] == generated_pairs(kept_back, 0)


def test_without_valence_or_joy_the_claim_on_distance_is_left_out(
    given: dict[str, Any], tmp_path: Path
) -> None:
    study = run_claims(small_model(), small_corpus(labels=True), tmp_path / "run", progress=False)
    assert study.names == ("probing", "magnitudes", "words", "cost")


def test_half_of_the_texts_have_a_word_that_turns_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "TEXTS", 20)
    corpus = corpus_of_turns()
    read = run.chosen(small_model(), corpus)
    turns = [bool(turning([text[a:b] for a, b in word_places(text)]).any()) for text in read.texts]
    assert len(read) == 20 and sum(turns) == 10 and "No." not in read.texts
    assert all(
        corpus.groups[corpus.texts.index(t)] == g for t, g in zip(read.texts, read.groups, strict=True)
    )
    # Where there is none, the others are read.
    none = small_corpus().select(mask=np.array(["never" not in text for text in small_corpus().texts]))
    assert len(none) > 10 and len(run.chosen(small_model(), none)) == 10
    assert run.frequencies(corpus)[["day", "no"]].tolist() == [60, 1]


def test_norms_are_read_and_told_apart(given: dict[str, Any], tmp_path: Path) -> None:
    norms = tmp_path / "norms.csv"
    norms.write_text("word,valence\nhappy,9\nsad,1\n")
    run_claims(small_model(), small_corpus(), tmp_path / "run", norms=norms, progress=False)
    assert given["turning_and_emotional"][0][2].loc["happy", "valence"] == 9
    with pytest.raises(InputError, match="holds another study"):
        run_claims(small_model(), small_corpus(), tmp_path / "run", progress=False)
    norms.write_text("word,valence\nhappy,8\nsad,1\n")  # the same file, with other ratings
    with pytest.raises(InputError, match="holds another study"):
        run_claims(small_model(), small_corpus(), tmp_path / "run", norms=norms, progress=False)


def test_the_command_asks_for_the_same(given: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    model = small_model()
    model.underlying.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    corpus = tmp_path / "days.csv"
    small_corpus().frame[["text", "valence", "arousal", "group"]].to_csv(corpus, index=False)
    where = ["--corpus", str(corpus), "--out", str(tmp_path / "run")]
    columns = ["--columns", "text=text,valence=valence,arousal=arousal,group=group"]
    assert cli.main(["claims", str(tmp_path / "model"), *where, *columns]) == 0
    assert "report.html" in capsys.readouterr().out
    assert load_study(tmp_path / "run").names == STEPS


# The page ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The benchmark, writing into a folder of its own, with two small models to run on."""
    file = Path(__file__).resolve().parents[1] / "benchmarks" / "claims.py"
    spec = importlib.util.spec_from_file_location("claims_page", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "HERE", tmp_path)
    monkeypatch.setattr(module, "models", lambda shared: [("one", "one"), ("two", "two")])

    def examined(name: str, source: str, shared: Path, out: Path, seed: int) -> Any:
        return run_claims(small_model(name), small_corpus(), out / name, seed=seed, progress=False)

    monkeypatch.setattr(module, "examined", examined)
    return module


def test_one_section_is_written_anew_and_the_others_stay(
    given: dict[str, Any], script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["claims.py", "--out", str(tmp_path / "runs"), "--only"]
    monkeypatch.setattr("sys.argv", [*command, "two"])
    script.main()
    monkeypatch.setattr("sys.argv", [*command, "one"])
    script.main()
    record = json.loads((tmp_path / "claims.json").read_text(), parse_constant=pytest.fail)  # no NaN
    assert list(record["models"]) == ["one", "two"]
    page = (tmp_path / "claims.md").read_text()
    assert "| claim | one | two |" in page and "## one" in page and "## two" in page
    assert "| magnitudes | not shown | not shown |" in page
    assert "insignificant beside attention | supported | supported |" in page
    monkeypatch.setattr("sys.argv", [*command, "three"])
    with pytest.raises(SystemExit):
        script.main()
