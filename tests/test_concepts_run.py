"""The representation experiments one after another: what each is given, and where the record goes."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from small_study import small_corpus, small_model

from emoprobe.corpora import Corpus
from emoprobe.errors import InputError
from emoprobe.probes import load_probes
from emoprobe.study import Result, load_study, run_concepts, run_study
from emoprobe.study.concepts import run

EXPERIMENTS = "scenarios intensity dissociation reply speakers deflection chronic held_out sources".split()


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
    return noted


def texts(corpus: Corpus) -> set[str]:
    return set(corpus.texts)


def test_each_experiment_gets_the_probes_and_texts_that_they_were_not_fitted_on(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, corpus, other = small_model(), small_corpus(), small_corpus(texts=40)
    study = run_concepts(model, corpus, beside=[other], seed=1, progress=False)
    assert study.folder == Path("runs/small-days-concepts")
    assert study.names == ("probing", *EXPERIMENTS[:7], "held-out days", "sources")
    probes = load_probes(study.folder / "probes.safetensors")
    fitted, kept_back = given["scenarios"][1]["corpus"], given["chronic"][0][1]
    assert texts(fitted) | texts(kept_back) == texts(corpus) and not texts(fitted) & texts(kept_back)
    assert probes.metadata["corpus_fingerprint"] == fitted.fingerprint
    for name in ("scenarios", "intensity", "dissociation", "reply", "deflection", "held_out", "sources"):
        assert given[name][0][0] is model and given[name][0][1].concepts == probes.concepts
        assert given[name][1]["seed"] == 1
    assert given["speakers"][1]["probes"].concepts == probes.concepts
    assert given["held_out"][0][2] is other and given["held_out"][0][3].fingerprint == fitted.fingerprint
    assert study.manifest["study"]["experiments"] == "concepts"
    given.clear()
    again = run_concepts(model, corpus, beside=[other], seed=1, progress=False)
    assert not given and again.names == study.names == load_study(study.folder).names


def test_the_ground_truth_gets_the_experiment_on_two_persons_alone(
    given: dict[str, Any], tmp_path: Path
) -> None:
    study = run_concepts(small_model("ground-truth"), small_corpus(), tmp_path / "run", progress=False)
    assert study.names == ("probing", "speakers")
    ((_, pairs), _) = given["speakers"]
    assert len(pairs) == run.PAIRS and {e for pair in pairs for e in pair.emotions} == set(run.FELT)


def test_a_folder_of_another_kind_or_with_other_corpora_beside_is_refused(
    given: dict[str, Any], tmp_path: Path
) -> None:
    model, corpus = small_model(), small_corpus()
    run_concepts(model, corpus, tmp_path / "run", progress=False)
    with pytest.raises(InputError, match="holds another study"):
        run_concepts(model, corpus, tmp_path / "run", beside=[small_corpus(texts=40)], progress=False)
    with pytest.raises(InputError, match="holds another study"):
        run_study(model, corpus, tmp_path / "run", progress=False)
