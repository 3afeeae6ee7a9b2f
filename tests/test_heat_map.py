"""Layer × token maps of one text, and of the difference between two, against the streams read by hand."""

import re
from dataclasses import replace
from html import unescape
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from small_probes import model, planted, probes, texts
from tiny import tiny_model

from emoprobe.errors import InputError
from emoprobe.probes import fit_probes, trace
from emoprobe.probes.difference_maps import align, difference_map
from emoprobe.probes.heat_maps import HeatMap, heat_map
from emoprobe.probes.readout import random_probes
from emoprobe.probes.reference_corpus import reference

TEXT = "we were so glad that <b>music</b> was not dark"
GLAD, SAD = "they were glad and the music was so calm", "they were so very sad and the music was so calm"


def stream(text: str) -> torch.Tensor:
    """Return the residual streams (layers, tokens, d_model) of one text alone, float64."""
    with torch.no_grad():
        return model().streams(model().tokenize(text), range(4))[:, 0].double()


def ids(text: str) -> list[int]:
    return model().tokenize(text).input_ids[0].tolist()


# One text ------------------------------------------------------------------------------------------------------------


def test_a_heat_map_holds_every_layer_and_token() -> None:
    found = heat_map(model(), probes(), TEXT, ["high", "planted"])
    for concept in ("high", "planted"):
        column = probes().concept_index(concept)
        u, mean = probes().directions[:, column].double(), probes().reference_mean.double()
        along = torch.einsum("lpd,ld->lp", stream(TEXT) - mean[:, None], u)
        expected = along / probes().reference_std[:, column, None].double()
        matrix = found.matrix(concept)
        assert list(matrix.index) == [0, 1, 2, 3] and matrix.shape == (4, len(ids(TEXT)))
        assert np.allclose(matrix, expected, rtol=1e-4, atol=1e-5)
    assert set(found.frame.kind) == {"z"}
    one = heat_map(model(), probes(), TEXT, "high", layers=[2, 3], kind="read_out")
    assert one.matrix("high").shape[0] == 2 and "4 layers" in repr(found) and "2 layers" in repr(one)
    with pytest.raises(InputError, match="no heat map of 'low'"):
        one.matrix("low")
    with pytest.raises(InputError, match="no probe for 'joy'"):
        heat_map(model(), probes(), TEXT, "joy")


def test_a_heat_map_can_be_about_a_reference_and_smoothed() -> None:
    about = reference(model(), probes(), texts(20, seed=9), name="others")
    found = heat_map(model(), probes(), TEXT, "high", reference=about)
    assert not np.allclose(
        found.matrix("high"), heat_map(model(), probes(), TEXT, "high").matrix("high"), atol=1e-2
    )
    assert "of others" in repr(found)
    smooth = HeatMap(trace(model(), probes(), TEXT, concepts="high", layers="all").smoothed(5))
    assert "mean of 5 tokens" in smooth._repr_html_()


@pytest.mark.parametrize("kind", ["z", "read_out"])
def test_pictures_have_a_panel_for_each_concept_and_escape_what_they_write(kind: str) -> None:
    found = heat_map(model(), probes(), TEXT, ["high", "planted"], kind=kind)
    figure = found.plot()
    figure.canvas.draw()
    assert [axis.get_title(loc="left") for axis in figure.axes[:2]] == ["high", "planted"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["3", "2", "1", "0"]
    centres = [[found.trace.centres["high", layer]] for layer in (3, 2, 1, 0)]
    drawn = figure.axes[0].collections[0].get_array()
    assert np.allclose(drawn, found.matrix("high").to_numpy()[::-1] - centres)
    html = found._repr_html_()
    assert set(re.findall(r"<(\w+)", html)) == {
        "div", "p", "b", "table", "thead", "tbody", "tr", "th", "td", "small"
    }  # fmt: skip
    assert html.count("<td") == 2 * 4 * len(ids(TEXT))
    assert "<" in unescape(re.sub(r"<[^>]*>", "", html))  # the text's own tag, in tokens
    spread = np.abs(found.matrix("high").to_numpy())
    assert f">{spread[2, 3]:.2g}<" in html or f">-{spread[2, 3]:.2g}<" in html


def test_the_first_token_does_not_set_the_scale() -> None:
    loud = trace(model(), probes(), TEXT, concepts="high", layers="all", kind="z")
    quiet_scale = HeatMap(loud).plot().axes[0].collections[0].get_clim()
    loud.frame.loc[loud.frame.position == 0, "value"] = 1e6
    assert HeatMap(loud).plot().axes[0].collections[0].get_clim() == quiet_scale


# Alignment -----------------------------------------------------------------------------------------------------------


def test_every_token_is_placed_once_in_order_and_shared_ends_are_paired() -> None:
    generator = np.random.default_rng(0)
    for _ in range(300):
        a, b = (generator.integers(0, 3, generator.integers(1, 9)).tolist() for _ in range(2))
        start, end = generator.integers(0, 3, 3).tolist(), generator.integers(3, 6, 4).tolist()
        a, b = start + a + end, start + b + end
        pairs = align(a, b)
        assert [x for x, _ in pairs if x is not None] == list(range(len(a)))
        assert [y for _, y in pairs if y is not None] == list(range(len(b)))
        assert pairs[:3] == [(0, 0), (1, 1), (2, 2)]
        assert pairs[-4:] == [(len(a) - n, len(b) - n) for n in (4, 3, 2, 1)]


@pytest.mark.parametrize(
    ("a", "b", "pairs"),
    [
        ("xAy", "xBy", [(0, 0), (1, 1), (2, 2)]),
        ("xAy", "xBCy", [(0, 0), (1, None), (None, 1), (None, 2), (2, 3)]),
        ("xy", "xNy", [(0, 0), (None, 1), (1, 2)]),
        ("xNy", "xy", [(0, 0), (1, None), (2, 1)]),
        ("xAmnBy", "xCDmnEy", [(0, 0), (1, None), (None, 1), (None, 2), (2, 3), (3, 4), (4, 5), (5, 6)]),
        ("aa", "a", [(0, 0), (1, None)]),
        ("ab", "ab", [(0, 0), (1, 1)]),
        ("a", "b", [(0, 0)]),
    ],
)
def test_alignment_of_small_texts(a: str, b: str, pairs: list[Any]) -> None:
    assert align([*map(ord, a)], [*map(ord, b)]) == pairs


# Two texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["centred_cosine", "dot", "z", "read_out"])
def test_differences_are_taken_between_aligned_tokens(kind: str) -> None:
    found = difference_map(model(), probes(), GLAD, SAD, ["high", "planted"], kind=kind)
    own = [trace(model(), probes(), text, layers="all", kind=kind).frame for text in (GLAD, SAD)]
    suffix = 0
    while ids(GLAD)[-1 - suffix] == ids(SAD)[-1 - suffix]:
        suffix += 1
    assert suffix > 5 and len(ids(GLAD)) != len(ids(SAD))
    for concept, layer in product(("high", "planted"), range(4)):
        a, b = (f[(f.concept == concept) & (f.layer == layer)].value.to_numpy() for f in own)
        part = found.frame[(found.frame.concept == concept) & (found.frame.layer == layer)]
        assert np.allclose(part.difference.iloc[-suffix:], a[-suffix:] - b[-suffix:], atol=1e-5)
        assert (part.relation.iloc[-suffix:] == "same").all()
        gaps = part.relation.isin(["only a", "only b"])
        assert gaps.any() and part[gaps].difference.isna().all() and part[gaps].z.isna().all()
        assert np.allclose(part.value_a.dropna(), a, atol=1e-5)
        assert np.allclose(part.value_b.dropna(), b, atol=1e-5)
    assert "".join(part.token_a) == GLAD and "".join(part.token_b) == SAD


def test_z_is_the_cosine_of_difference_and_direction_times_the_root_of_the_width() -> None:
    """Along random unit directions the difference Δ of two streams has the standard deviation |Δ| / √d."""
    found = difference_map(model(), probes(), GLAD, SAD, "planted", kind="dot", randoms=4000)
    column, a, b = probes().concept_index("planted"), stream(GLAD), stream(SAD)
    checked = 0
    for row in found.frame.dropna(subset="z").itertuples():
        apart = a[row.layer, row.position_a] - b[row.layer, row.position_b]
        u = probes().directions[row.layer, column].double()
        assert row.z == pytest.approx(float(apart @ u / apart.norm()) * 32**0.5, rel=0.05, abs=0.02)
        assert row.random_high == pytest.approx(1.96 * float(apart.norm()) / 32**0.5, rel=0.12)
        checked += 1
    assert checked > 20


def test_where_texts_have_not_come_to_differ_there_is_nothing_to_compare() -> None:
    found = difference_map(
        model(), probes(), "they were glad and so calm", "they were sad and so calm", "high"
    )
    frame = found.frame
    first = frame[frame.relation != "same"].place.min()
    assert frame[frame.place < first].z.isna().all()
    assert np.allclose(frame[frame.place < first].difference, 0, atol=1e-6)
    deep = frame[(frame.place > first) & (frame.relation == "same") & (frame.layer > 0)]
    assert len(deep) and deep.z.notna().all()
    same = difference_map(model(), probes(), TEXT, TEXT, "high")
    assert same.tests.cells[0] == 0 and np.isnan(same.tests.p[0]) and same.frame.z.isna().all()
    assert "share no token that could differ" in same.report()
    same.plot().canvas.draw()
    assert "<td" in same._repr_html_()


def test_rounding_before_the_first_difference_is_not_taken_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """In half precision the same tokens in texts of other lengths differ in their last digits."""
    streams, generator = model().streams_by_layer, torch.Generator().manual_seed(0)

    def rough(*args: Any) -> list[torch.Tensor]:
        return [
            exact * (1 + 1e-2 * torch.randn(exact.shape, generator=generator)) for exact in streams(*args)
        ]

    monkeypatch.setattr(model(), "streams_by_layer", rough)
    found = difference_map(model(), probes(), GLAD, SAD, "high")
    first = found.frame[found.frame.relation != "same"].place.min()
    assert first > 1 and found.frame[found.frame.place < first].z.isna().all()
    assert found.frame[found.frame.place >= first].z.notna().any()
    assert found.tests.place[0] >= first


def test_p_is_how_often_a_random_directions_largest_z_is_as_large() -> None:
    found = difference_map(model(), probes(), GLAD, SAD, "planted", kind="dot", randoms=30, seed=3)
    turned, cells = random_probes(probes(), "planted", 30, 3), []
    a, b = stream(GLAD), stream(SAD)
    shared = found.frame[(found.frame.relation == "same") & found.frame.z.notna()]
    assert len(shared) == found.tests.cells[0]
    for row in shared.itertuples():
        apart = a[row.layer, row.position_a] - b[row.layer, row.position_b]
        own = probes().directions[row.layer, probes().concept_index("planted")].double()
        cells.append([float(apart @ own), *(turned.directions[row.layer].double() @ apart).tolist()])
    values = np.array(cells)
    z = np.abs(values) / np.sqrt((values**2).mean(1))[:, None]
    assert found.tests.p[0] == pytest.approx((z.max(0) >= z[:, 0].max()).mean(), abs=1e-9)
    assert abs(found.tests.z[0]) == pytest.approx(shared.z.abs().max())


def test_p_of_the_largest_cell_is_uniform_for_random_directions_and_small_for_a_planted_one() -> None:
    generator = torch.Generator().manual_seed(3)
    found = []
    for number in range(60):
        drawn = torch.randn(probes().directions.shape, generator=generator)
        random = replace(probes(), directions=drawn / drawn.norm(dim=-1, keepdim=True))
        maps = difference_map(model(), random, GLAD, SAD, "high", kind="dot", randoms=99, seed=number)
        found.append(float(maps.tests.p[0]))
    # Layers are drawn apart here and turned together in the control, which keeps angles: the law of each |z| is the same.
    assert 0.3 < np.mean(found) < 0.7 and np.mean(np.array(found) <= 0.1) < 0.25
    apart = (stream(GLAD)[3, -1] - stream(SAD)[3, -1]).float()
    directions = probes().directions.clone()
    directions[:, 0] = apart / apart.norm()
    along = replace(probes(), directions=directions)
    (test,) = difference_map(model(), along, GLAD, SAD, "high", kind="dot", randoms=99).tests.itertuples()
    assert test.p == 0.01 and test.z > 4 and test.difference > 0 and test.cells > 20


def test_the_report_says_what_random_directions_give() -> None:
    found = difference_map(model(), probes(), GLAD, SAD, ["high", "planted"])
    lines = found.report().splitlines()
    assert lines[0].startswith("high: the shared token that differs most is") and len(lines) == 3
    assert "200 random directions of equal norm give." in lines[1] and "2 concepts" in lines[2]
    for line, p in zip(lines, found.tests.p, strict=False):
        assert ("not shown to be more" in line) is (p > 0.05)
    assert "a − b in cosine" in repr(found)


def test_gaps_are_left_empty_and_what_is_written_is_escaped() -> None:
    found = difference_map(
        model(), probes(), "they <i>were</i> so glad and calm", "they were glad & calm", "high"
    )
    figure = found.plot()
    figure.canvas.draw()
    gaps = found.frame.drop_duplicates("place").relation.isin(["only a", "only b"]).sum()
    assert gaps > 0 and len(figure.axes[0].patches) == gaps
    html = found._repr_html_()
    assert html.count("<td></td>") == 4 * gaps
    assert "<i>" not in html and "& " not in html
    outside = found.frame[
        found.frame.z.notna()
        & (
            (found.frame.difference > found.frame.random_high)
            | (found.frame.difference < found.frame.random_low)
        )
    ]
    assert html.count("<u>") == len(outside)


def test_a_llama_with_a_start_token_aligns_too() -> None:
    live = tiny_model("llama")
    options: Any = {"permutations": 0, "bootstrap": 0, "progress": False}
    own = fit_probes(live, planted()[0], [1, 3], concepts=["planted"], **options)
    found = difference_map(live, own, GLAD, SAD, "planted")
    first = found.frame.iloc[0]
    assert first.relation == "same" and first.token_a == "<start>" and set(found.frame.layer) == {1, 3}


def test_what_cannot_be_compared_is_refused() -> None:
    for options, message in (
        ({"randoms": 5}, "at least 20"),
        ({"kind": "sum"}, 'kind="sum" is not understood'),
        ({"layers": 9}, "layer 9 does not exist"),
    ):
        with pytest.raises(InputError, match=message):
            difference_map(model(), probes(), GLAD, SAD, "high", **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="is empty"):
        difference_map(model(), probes(), GLAD, " ", "high")
