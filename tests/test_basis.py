"""Directions fitted in one basis of the residual stream are refused in another, both ways round."""

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from backends import difference, load, saved
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_probes import planted

from emoprobe.errors import InputError
from emoprobe.models import LiveModel, load_model
from emoprobe.probes import ProbeSet, fit_probes, load_probes, trace
from emoprobe.records import KEY
from emoprobe.steering import add, project_out
from emoprobe.valattn import Valuation, inject, learn_valuation

pytest.importorskip("transformer_lens")

TEXT = "The dog was afraid of the dark"


@cache
def model(basis: str) -> LiveModel:
    """The same weights: as transformers runs them, or as TransformerLens has centred them."""
    if basis == "raw":
        return load(saved("gpt2"), "transformers")
    live = load_model(saved("gpt2"), backend="transformer_lens")
    live.underlying.enable_compatibility_mode(disable_warnings=True)
    return live


@cache
def probes(basis: str) -> ProbeSet:
    options = {"concepts": ["planted", "noise"], "permutations": 0, "bootstrap": 0}
    return fit_probes(model(basis), planted()[0], [1, 2], progress=False, **options)


def uses(probes: ProbeSet) -> dict[str, Callable[[LiveModel], object]]:
    """Ways of using probes with a model, each of which says something only in the right basis."""
    valuation = Valuation.from_probes(probes)
    direction = probes["planted"] - 0.5 * probes["noise"]
    return {
        "trace": lambda model: trace(model, probes, TEXT),
        "logit lens": lambda model: probes.logit_lens(model, 1),
        "steer": lambda model: add(model, direction, 0.1, 1),
        "project out": lambda model: project_out(model, -direction, 1),
        "inject": lambda model: inject(model, valuation.random_like(0), 0.5).__enter__(),
        "learn": lambda model: learn_valuation(model, planted()[0], valuation, steps=1, progress=False),
    }


@pytest.mark.parametrize("use", uses(probes("raw")))
@pytest.mark.parametrize("mine, other", [("raw", "centred"), ("centred", "raw")])
def test_what_was_fitted_in_one_basis_is_refused_in_the_other(mine: str, other: str, use: str) -> None:
    assert probes(mine).basis == mine
    with pytest.raises(InputError, match=rf"made for the {mine} residual stream.* is {other}"):
        uses(probes(mine))[use](model(other))


@pytest.mark.parametrize("basis", ["raw", "centred"])
def test_what_was_fitted_in_a_basis_works_there(basis: str) -> None:
    live, fitted = model(basis), probes(basis)
    valuation = Valuation.from_probes(fitted)
    untouched = live.logits(TEXT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trace(live, fitted, TEXT)
    for edits in (add(live, fitted["planted"], 0.1, 1), project_out(live, fitted["planted"], 1)):
        with live.intervene(*edits):
            assert difference(live, TEXT, live.logits(TEXT), untouched) > 1e-4
    with inject(live, valuation, 0.5):
        assert difference(live, TEXT, live.logits(TEXT), untouched) > 1e-4
    learned = learn_valuation(live, planted()[0], valuation, steps=1, progress=False)
    assert learned.basis == basis


def test_directions_of_two_bases_are_not_combined() -> None:
    with pytest.raises(InputError, match=r"raw residual stream.*centred.*cannot be combined"):
        probes("raw")["planted"] + probes("centred")["planted"]


def test_a_valuation_of_annotations_fits_every_basis_until_it_has_learned() -> None:
    annotated = Valuation.annotated(32, (1,), ["planted"])
    emotions = torch.ones(1, model("raw").tokenize(TEXT).input_ids.shape[1], 1)
    for basis in ("raw", "centred"):
        with inject(model(basis), annotated, 0.5, emotions=emotions):
            model(basis).logits(TEXT)
        table = replace(annotated, embedding=torch.zeros(len(model(basis).tokenizer), 1))
        learned = learn_valuation(model(basis), planted()[0], table, steps=2, progress=False)
        assert learned.basis == basis and learned.weight[..., :32].any()


def test_the_basis_is_kept_in_the_file_and_raw_where_an_older_file_has_none(tmp_path: Path) -> None:
    fitted = probes("centred")
    assert load_probes(fitted.save(tmp_path / "probes")).basis == "centred"
    valuation = Valuation.from_probes(fitted)
    for kept in (valuation, replace(valuation, basis=None)):
        assert Valuation.load(kept.save(tmp_path / "valuation")).basis == kept.basis
    path = valuation.save(tmp_path / "older")
    with safe_open(path, framework="pt") as file:
        record = json.loads(file.metadata()[KEY])
    del record["basis"]
    save_file(load_file(path), path, {KEY: json.dumps(record)})
    assert Valuation.load(path).basis == "raw"


def test_probes_of_an_older_version_are_raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from emoprobe.probes import probe_set

    written = probe_set.fields
    monkeypatch.setattr(probe_set, "fields", lambda kind: [f for f in written(kind) if f.name != "basis"])
    path = probes("centred").save(tmp_path / "older")
    assert load_probes(path).basis == "raw"
