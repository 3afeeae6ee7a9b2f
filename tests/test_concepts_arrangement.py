"""How vectors lie, as experiments: what is planted is found, what is not is said not to be, and shuffled labels decide."""

from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from parts import shown
from planted_probes import planted_probes
from tiny import tiny_model

from emoprobe.errors import InputError
from emoprobe.probes import ProbeSet
from emoprobe.probes.emotion_vector_recipe import EmotionVectors
from emoprobe.study.concepts import arrangement
from emoprobe.study.result import Result

NAMES = (
    "joy",
    "pride",
    "love",
    "relief",
    "contentment",
    "surprise",
    "sadness",
    "anger",
    "fear",
    "shame",
    "disgust",
    "boredom",
)
ANGLES = np.linspace(0, 2 * np.pi, len(NAMES), endpoint=False)
NORMS = {
    name: {"valence": np.cos(angle), "arousal": np.sin(angle)}
    for name, angle in zip(NAMES, ANGLES, strict=True)
}
HALVES = {name: "up" if NORMS[name]["valence"] > 0 else "down" for name in NAMES}
SETS = 39


@cache
def probes() -> ProbeSet:
    noise = np.random.default_rng(0).normal(size=(len(NAMES), 32))
    made = planted_probes(tiny_model("llama"), noise, NAMES)
    noisy = made.directions + 0.3 * torch.randn(
        made.directions.shape, generator=torch.Generator().manual_seed(0)
    )
    return replace(
        made,
        directions=torch.nn.functional.normalize(noisy, dim=-1),
        metadata={"corpus": "c", "start": 5, "texts": 9},
    )


@cache
def vectors(strength: float, alike: bool = False) -> EmotionVectors:
    """Return random vectors with the ratings planted in them; those of shuffled labels are random, or `alike` at all layers."""
    made = arrangement.planted(probes(), NORMS, strength)
    drawn = torch.randn(SETS, *made.directions.shape, generator=torch.Generator().manual_seed(1))
    if alike:
        drawn = drawn[:, :1].expand_as(drawn)
    return EmotionVectors(made, made, pd.DataFrame(), {"raw": drawn, "denoised": drawn})


@cache
def experiments(strength: float, alike: bool = False) -> dict[str, Result]:
    given = vectors(strength, alike)
    return {
        "axes": arrangement.axes(given, NORMS),
        "circumplex": arrangement.circumplex(given, NORMS),
        "clusters": arrangement.clusters(given, HALVES, k=2),
        "layers": arrangement.layers(given),
    }


def test_what_is_planted_is_found() -> None:
    found = experiments(3.0)
    assert found["axes"].verdict.startswith("On a leading component lie valence and arousal.")
    assert found["axes"].verdict.count("Not shown") == 0 and "An axis" in found["axes"].verdict
    table = found["axes"].table[found["axes"].table.vectors == "denoised"]
    best = table.loc[table.groupby("norm", sort=False).r.idxmax()]
    assert (
        shown(found["axes"]) == (best.layer0 < best.low).tolist() == [False, True]
    )  # it is planted at layer 0, too
    assert found["circumplex"].verdict.startswith("Emotions lie in this plane as people place them")
    assert found["circumplex"].table.fit.iloc[0] > 0.9
    assert "in 3 of 3 pairs of layers" in found["layers"].verdict


def test_what_is_not_there_is_said_not_to_be_and_what_would_have_been_found() -> None:
    found = experiments(0.0, alike=True)
    assert found["axes"].verdict.startswith("Neither valence nor arousal is shown")
    assert found["axes"].verdict.count("Not shown to be an axis.") == 2
    assert shown(found["axes"]) == [False, False]
    assert "would have been found." in found["axes"].verdict
    assert found["circumplex"].verdict.startswith("It is not shown")
    assert found["clusters"].verdict.startswith("The published clusters are not shown to be found")
    assert "in none of 3 pairs" in found["layers"].verdict  # shuffled labels are the same at all layers


def test_clusters_are_those_that_were_planted() -> None:
    sides = {name: {"side": 1.0 if half == "up" else -1.0} for name, half in HALVES.items()}
    apart = replace(vectors(3.0), denoised=arrangement.planted(probes(), sides, 3.0))
    found = arrangement.clusters(apart, HALVES, k=2)
    assert found.table.agreement.iloc[0] == 1 and found.verdict.startswith("The published clusters are found")
    for group in found.table.groupby("cluster").concept:
        assert len({HALVES[name] for name in group[1]}) == 1
    by_name = arrangement.clusters(vectors(3.0)).table.set_index("concept").given
    assert (
        by_name["joy"] == "Exuberant Joy" and by_name["fear"] == "Fear and Overwhelm"
    )  # by their published names


@pytest.mark.parametrize("name", ["axes", "circumplex", "clusters", "layers"])
def test_results_are_whole(name: str) -> None:
    result = experiments(3.0)[name]
    assert result.name == name and result.question.endswith("?") and "2604.07729" in result.published
    for words in (result.title, result.method, result.finding, result.controls, result.verdict, result.alt):
        assert words and "nan" not in words.lower().split() and " -" not in words
    assert result.svg and len(result.table) and f"{SETS} sets" in result.method


def test_a_plane_that_shuffled_labels_fit_as_well_is_not_shown() -> None:
    given = vectors(3.0)
    same = given.denoised.directions[None].expand(SETS, *given.denoised.directions.shape)
    fitted = replace(given, shuffled={"raw": same, "denoised": same})
    assert arrangement.circumplex(fitted, NORMS).verdict.startswith("It is not shown")


def test_planted_ratings_have_the_spread_that_was_asked_for() -> None:
    own, added = probes(), arrangement.planted(probes(), NORMS, 0.5)
    apart = (added.directions * added.scale[..., None] - own.directions * own.scale[..., None]).double()
    for layer in range(apart.shape[0]):
        singular = torch.linalg.svdvals(apart[layer] - apart[layer].mean(0))
        # Two ratings that are not correlated: a spread of 0.5 of the mean length (1) along each of two directions.
        assert torch.allclose(singular[:2], torch.tensor(0.5 * np.sqrt(len(NAMES) - 1)).double(), atol=1e-4)
        assert singular[2] < 1e-4


def test_too_little_to_go_by_is_refused() -> None:
    with pytest.raises(InputError, match="three or more"):
        arrangement.axes(vectors(0.0), {"joy": {"valence": 1.0}})
    few = replace(vectors(0.0), denoised=replace_layers(vectors(0.0).denoised, 2))
    drawn = vectors(0.0).shuffled["denoised"][:, :2]
    with pytest.raises(InputError, match="fewer than two layers"):
        arrangement.layers(replace(few, shuffled={"raw": drawn, "denoised": drawn}))


def replace_layers(given: ProbeSet, count: int) -> ProbeSet:
    parts = ("directions", "scale", "offset", "reference_mean", "reference_std", "residual_norms")
    return replace(
        given, layers=given.layers[:count], **{name: getattr(given, name)[:count] for name in parts}
    )
