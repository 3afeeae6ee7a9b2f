"""Components against human norms: planted axes are found and said to be, and noise is not."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from crafted import probe_set
from scipy.spatial import procrustes as scipys
from scipy.stats import pearsonr
from sklearn.decomposition import PCA

from emoprobe.errors import InputError
from emoprobe.probes.axes import leading_axes
from emoprobe.probes.circumplex import circumplex, procrustes
from emoprobe.probes.geometry import geometry, ordered

CONCEPTS, WIDTH = 30, 24


def ratings(seed: int = 0) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    names = [f"concept {number}" for number in range(CONCEPTS)]
    return pd.DataFrame(generator.uniform(1, 9, (CONCEPTS, 2)), names, ["valence", "arousal"])


def vectors(strengths: tuple[tuple[float, float], ...], seed: int = 0) -> np.ndarray[Any, Any]:
    """Return noise (layers, concepts, d_model) with valence and arousal planted at each layer with these strengths."""
    generator = np.random.default_rng(100 + seed)
    z = (ratings(seed) - ratings(seed).mean()) / ratings(seed).std()
    planes = np.linalg.qr(generator.normal(size=(WIDTH, WIDTH)))[0][:2]
    noise = generator.normal(size=(len(strengths), CONCEPTS, WIDTH)) * 0.3
    return noise + np.einsum("cz,lz,zd->lcd", z.to_numpy(), np.array(strengths), planes)


def noise(sets: int, layers: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(7).normal(size=(sets, layers, CONCEPTS, WIDTH)))


# Components ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unit", "raw"])
def test_components_are_those_of_unit_or_raw_vectors(kind: str) -> None:
    given = vectors(((1.5, 0.8),))
    given[0] *= np.linspace(1, 4, CONCEPTS)[:, None]
    found = geometry(probe_set(given), 0, vectors=kind)
    rows = given[0] if kind == "raw" else given[0] / np.linalg.norm(given[0], axis=1, keepdims=True)
    model = PCA().fit(rows)
    assert np.allclose(found.shares, model.explained_variance_ratio_[: len(found.shares)], atol=1e-6)
    assert np.allclose(np.abs(found.coordinates), np.abs(model.transform(rows)), atol=1e-4)
    lengths = np.linalg.norm(given[0], axis=1)
    for place in range(3):
        assert found.length_r.iloc[place] == pytest.approx(
            pearsonr(found.coordinates.iloc[:, place], lengths).statistic, abs=1e-4
        )
    assert kind in repr(found)


def test_lengths_make_the_first_component_of_raw_vectors() -> None:
    """The trap of a withdrawn claim: vectors alike in direction and not in length have a large first component."""
    generator = np.random.default_rng(0)
    common = generator.normal(size=WIDTH)
    given = (common + 0.8 * generator.normal(size=(1, CONCEPTS, WIDTH))) * np.logspace(0, 1, CONCEPTS)[
        :, None
    ]
    raw, unit = (geometry(probe_set(given), 0, vectors=kind) for kind in ("raw", "unit"))
    assert abs(raw.length_r.iloc[0]) > 0.95 and raw.shares.iloc[0] > 2 * unit.shares.iloc[0]
    assert abs(unit.length_r.iloc[0]) < 0.5


def test_lengths_that_were_not_kept_are_not_spoken_of() -> None:
    given = vectors(((1.0, 1.0),))
    given /= np.linalg.norm(given, axis=-1, keepdims=True)
    unit = probe_set(given, metadata={"recipe": {"norm": "unit"}})
    assert geometry(unit, 0).length_r.isna().all()
    with pytest.raises(InputError, match='norm="raw"'):
        geometry(unit, 0, vectors="raw")
    with pytest.raises(InputError, match='vectors="long"'):
        geometry(unit, 0, vectors="long")


def test_like_concepts_come_to_lie_side_by_side() -> None:
    generator = np.random.default_rng(1)
    kinds = np.arange(CONCEPTS) % 3
    given = generator.normal(size=(3, WIDTH))[kinds] + 0.1 * generator.normal(size=(CONCEPTS, WIDTH))
    found = geometry(probe_set(given[None]), 0)
    order = [int(name.split()[1]) % 3 for name in found.order]
    assert np.count_nonzero(np.diff(order)) == 2 and sorted(found.order) == sorted(found.cosines.index)
    assert found.plot().axes[0].get_title(loc="left") == "cosines of directions at layer 0"
    two = found.cosines.iloc[:2, :2]
    assert ordered(two) == list(two.index)


# Human norms ---------------------------------------------------------------------------------------------------------


def test_a_search_through_components_costs() -> None:
    found = geometry(probe_set(vectors(((1.5, 0.8),))), 0, ratings()).norms
    assert found is not None
    best = found.loc[found.groupby("norm").r.apply(lambda r: r.abs().idxmax())].set_index("norm")
    assert (best.component == pd.Series({"arousal": "PC2", "valence": "PC1"})).all()
    assert (best.r.abs() > 0.8).all() and (best.p_searched < 0.01).all()
    assert (found.p_searched >= found.p).all() and (found.p_searched > found.p + 0.1).any()
    assert (found.low < found.r).all() and (found.r < found.high).all()
    weak = geometry(probe_set(noise(1, 1)[0].numpy()), 0, ratings()).norms
    assert weak is not None and (weak.p_searched > 0.05).all()


def test_searched_p_values_are_honest() -> None:
    """Over many sets of noise the best of five components has an uncorrected p below 0.1 far too often, a corrected not."""
    plain, searched = [], []
    for seed in range(60):
        given = np.random.default_rng(seed).normal(size=(1, 14, WIDTH))
        norms = pd.DataFrame(
            {"valence": np.random.default_rng(1000 + seed).normal(size=14)},
            [f"concept {number}" for number in range(14)],
        )
        found = geometry(probe_set(given), 0, norms, seed=seed).norms
        assert found is not None
        plain.append(found.p.min())
        searched.append(found.p_searched.min())
    assert np.mean(np.array(plain) < 0.1) > 0.25 and np.mean(np.array(searched) < 0.1) < 0.22


def test_ratings_of_other_columns_are_not_taken_for_norms() -> None:
    rated = ratings().assign(entry="x")
    rated.loc["concept 3", "valence"] = np.nan
    found = geometry(probe_set(vectors(((1.5, 0.8),))), 0, rated).norms
    assert found is not None and set(found.norm) == {"valence", "arousal"}
    assert found[found.norm == "valence"].n.unique().tolist() == [CONCEPTS - 1]


# Axes and their controls ---------------------------------------------------------------------------------------------


def test_a_planted_axis_is_found_where_it_is() -> None:
    probes = probe_set(vectors(((0, 0), (0.4, 0), (1.5, 0.8))))
    found = leading_axes(probes, ratings(), noise(39, 3))
    at = found.frame.set_index(["norm", "layer"])
    assert at.component["valence", 2] == "PC1" and at.component["arousal", 2] == "PC2"
    for norm in ("valence", "arousal"):
        row = at.loc[(norm, 2)]
        assert row.r > 0.8 and row.low > 0.5 and row.p_layers < 0.01 and row.p_shuffled == 0.025
        assert row.p_shuffled_layers == 0.025 and at.p_shuffled_layers[norm, 0] >= at.p_shuffled[norm, 0]
        assert row.layer0 == at.r[norm, 0] < 0.6 and row.n == CONCEPTS
        assert at.p[norm, 0] > 0.05
        assert row.low <= row.r <= row.high
    assert (found.frame.p_layers >= found.frame.p).all() and (found.frame.p_layers > found.frame.p).any()
    assert found.shares.PC1[2] > 2 * found.shares.shuffled_PC1[2]
    assert "Valence: |r| 0.9" in found.report() and found.report().count("An axis.") == 2
    searched = found.frame.p_shuffled_layers > found.frame.p_shuffled
    assert searched.any()  # the highest of three layers is higher than that of one
    found.plot()


def test_what_the_report_says_follows_the_controls() -> None:
    planted = leading_axes(probe_set(vectors(((0, 0), (1.5, 0.8)))), ratings(), noise(39, 2)).report()
    assert planted.count("An axis.") == 2
    both = probe_set(vectors(((1.5, 0.8), (1.5, 0.8))))
    everywhere = leading_axes(both, ratings(), noise(39, 2)).report()
    assert "not shown to be more of one than in the embedding" in everywhere or "layer 0" in everywhere
    nothing = leading_axes(probe_set(noise(1, 4)[0].numpy()), ratings(), noise(39, 4))
    assert nothing.report().count("Not shown to be an axis.") == 2
    for few, said in ((None, "no sets"), (noise(10, 2), "10 sets")):  # what was not run is not passed
        report = leading_axes(both, ratings(), few).report()
        assert report.count(f"Not shown to be an axis: {said} of shuffled labels") == 2
    one = leading_axes(probe_set(vectors(((1.5, 0.8),)), n_layers=3, layers=(2,)), ratings()).frame
    assert one.layer0.isna().all() and one.p_shuffled.isna().all()


# Circumplex ----------------------------------------------------------------------------------------------------------


def test_a_plane_is_turned_to_the_ratings() -> None:
    found = circumplex(geometry(probe_set(vectors(((1.2, 1.2),))), 0), ratings())
    assert found.fit > 0.8 and found.p < 0.001 and min(found.r) > 0.85
    plane = geometry(probe_set(vectors(((1.2, 1.2),))), 0).coordinates.iloc[:, :2].to_numpy()
    turned = found.frame[["x", "y"]].to_numpy()
    apart = plane[:, None] - plane
    assert np.allclose(np.linalg.norm(apart, axis=-1), np.linalg.norm(turned[:, None] - turned, axis=-1))
    assert found.share == pytest.approx(geometry(probe_set(vectors(((1.2, 1.2),))), 0).shares.iloc[:2].sum())
    chance = circumplex(geometry(probe_set(noise(1, 1)[0].numpy()), 0), ratings())
    assert chance.fit < 0.4 and chance.p > 0.05


def test_the_fit_is_that_of_procrustes() -> None:
    generator = np.random.default_rng(0)
    source, target = (part - part.mean(0) for part in generator.normal(size=(2, 12, 2)))
    source, target = source / np.linalg.norm(source), target / np.linalg.norm(target)
    turn, fit = procrustes(source, target)
    assert np.allclose(turn @ turn.T, np.eye(2)) and fit == pytest.approx(1 - scipys(target, source)[2])
    mirrored = np.array([[0.0, 1.0], [1.0, 0.0]])
    assert procrustes(source @ mirrored, source)[1] == pytest.approx(1)


def test_concepts_without_ratings_are_turned_along() -> None:
    place = geometry(probe_set(vectors(((1.2, 1.2),))), 0)
    all_rated = circumplex(place, ratings())
    some = ratings()
    some.iloc[0] = np.nan
    found = circumplex(place, some)
    assert np.allclose(found.frame[["x", "y"]], all_rated.frame[["x", "y"]], atol=0.2)
    assert np.isnan(found.frame.valence[0]) and np.isfinite(found.frame.x).all()
    upper = ratings().where(ratings().valence > 5)
    few, rated = circumplex(place, upper), upper.notna().all(axis=1).to_numpy()
    standard = (upper[rated] - upper[rated].mean()) / upper[rated].std()
    expected = 1 - scipys(standard, place.coordinates.to_numpy()[rated, :2])[2]
    assert few.fit == pytest.approx(expected) and rated.sum() < 20
    plain = circumplex(place)
    assert plain.axes == ("PC1", "PC2") and np.isnan(plain.fit)
    assert np.allclose(plain.frame.x, place.coordinates.PC1)


def test_names_cover_neither_each_other_nor_points() -> None:
    figure = circumplex(geometry(probe_set(vectors(((1.2, 1.2),))), 0), ratings()).plot()
    figure.canvas.draw()
    axis = figure.axes[0]
    boxes = [text.get_window_extent() for text in axis.texts]
    assert len(boxes) > CONCEPTS // 2
    for place, one in enumerate(boxes):
        for other in boxes[place + 1 :]:
            across = min(one.x1, other.x1) - max(one.x0, other.x0)
            up = min(one.y1, other.y1) - max(one.y0, other.y0)
            assert min(across, up) < 1  # pixel
    circumplex(geometry(probe_set(vectors(((1.2, 1.2),))), 0)).plot()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"components": (1, 99)}, "no component PC99"),
        ({"dimensions": ("valence", "weight")}, "no rating 'weight'"),
    ],
)
def test_planes_that_are_not_there_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        circumplex(geometry(probe_set(vectors(((1.2, 1.2),))), 0), ratings(), **options)
