"""Results in a notebook: what a name smuggles in is shown and not run, nothing is loaded, and figures hold what frames hold."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from small_probes import model, planted, texts
from small_probes import probes as small_probe_set
from small_study import small_corpus, small_model

import emoprobe as ep
from emoprobe import drawing
from emoprobe.errors import InputError
from emoprobe.notebook import export, shown
from emoprobe.probes import (
    ProbeSet,
    difference_map,
    emotion_vectors,
    heat_map,
    layer_similarity,
    learning_curve,
    score_corpus,
    stability,
    trace,
)
from emoprobe.probes.axes import leading_axes
from emoprobe.probes.circumplex import circumplex
from emoprobe.probes.clusters import clusters
from emoprobe.probes.transfers import Transfer
from emoprobe.probes.word_norms import WordNorms
from emoprobe.steering import (
    ContentLeak,
    EqualCost,
    Preferences,
    PreferenceShift,
    continuation,
    specificity,
    sweep,
)
from emoprobe.study import Result, Study
from emoprobe.study.sentences import compare_sentences
from emoprobe.valattn import Valuation, compare_valuations
from emoprobe.valattn.recovery import Recovery

EVIL = "<script>alert('x')</script> & $x_{ $"
QUICK: dict[str, Any] = {"progress": False, "seed": 0}


# The objects, each with a name that is out for trouble ----------------------------------------------------------------


def probes() -> ProbeSet:
    """Return the small probes, the planted one renamed."""
    found = small_probe_set()
    renamed = {"planted": EVIL}
    return replace(
        found,
        concepts=tuple(renamed.get(name, name) for name in found.concepts),
        kinds={renamed.get(name, name): kind for name, kind in found.kinds.items()},
        ranges={renamed.get(name, name): bounds for name, bounds in found.ranges.items()},
        scores=found.scores.replace({"concept": renamed}),
    )


def few_probes() -> Any:
    """Return a geometry's worth of probes: ten random directions."""
    drawn = torch.randn(4, 10, 32, generator=torch.Generator().manual_seed(0))
    found = probes()
    names = (EVIL, *(f"concept {number}" for number in range(9)))
    return replace(
        found,
        concepts=names,
        kinds=dict.fromkeys(names, "label"),
        ranges={},
        directions=drawn / drawn.norm(dim=-1, keepdim=True),
        **{name: torch.ones(4, 10) for name in ("scale", "offset", "reference_std")},
    )  # fmt: skip


def some_norms() -> dict[str, dict[str, float]]:
    drawn = np.random.default_rng(0)
    return {name: {"valence": drawn.normal(), "arousal": drawn.normal()} for name in few_probes().concepts}


def transferred() -> Transfer:
    base = {
        "layer": 2,
        "metric": "pearson_r",
        "shuffled": 0.0,
        "layer0": 0.2,
        "bag_of_words": 0.3,
        "within": 0.6,
    }
    base |= {"layer0_gain_low": 0.1, "bag_of_words_gain_low": 0.1, "chosen": True, "concept": EVIL, "p": 0.1}
    ends = [(a, b) for a in (EVIL, "b") for b in (EVIL, "b")]
    rows = [base | {"train": a, "test": b, "value": 0.1 * k} for k, (a, b) in enumerate(ends)]
    return Transfer("a model", (EVIL, "b"), pd.DataFrame(rows))


def word_norms() -> WordNorms:
    columns = [
        "r",
        "low",
        "high",
        "p",
        "p_layers",
        "layer0",
        "gain_low",
        "gain_high",
        "random_low",
        "random_high",
    ]
    columns += ["held", "held_low", "held_high", "n"]
    values = np.random.default_rng(0).uniform(0, 1, (3, len(columns)))
    frame = pd.DataFrame(values, columns=columns).assign(layer=range(3), concept=EVIL, norm="valence")
    return WordNorms(frame, pd.DataFrame(index=["sun", "dog"]), np.zeros((2, 3, 1)))


def vector_set() -> Any:
    found = emotion_vectors(
        model(), planted()[0], texts(20, seed=3), start=1, folds=0, shuffles=1, **QUICK
    )  # fmt: skip
    return replace(found, frame=found.frame.replace({"concept": {"high": EVIL}}))


def direction() -> Any:
    return probes()[EVIL]


def swept() -> Any:
    measure = continuation({EVIL: [" happy"]})
    return sweep(model(), direction(), [-0.2, 0, 0.2], texts(4), [measure], controls=2, layers=2, **QUICK)


def specific() -> Any:
    words = {EVIL: [" happy"], "noise": [" sad"]}
    return specificity(
        model(), {name: probes()[name] for name in words}, words, texts(4), controls=2, **QUICK
    )


def equal_cost() -> EqualCost:
    frame = pd.DataFrame({"cost": [0.1, 0.2], "name": EVIL, "strength": [1.0, 2.0], "effect": [0.3, 0.4]})
    frame = frame.assign(low=0.2, high=0.5, random_low=-0.1, random_high=0.1)
    pairs = pd.DataFrame(
        [(0.1, EVIL, "b", 0.2, 0.1, 0.3)], columns=["cost", "one", "other", "difference", "low", "high"]
    )
    return EqualCost(frame, pairs, EVIL, "nll")


def leak() -> ContentLeak:
    columns = ["overlap", "untouched", "change", "low", "high", "random_low", "random_high"]
    rows = [
        ("fitted texts", 0.01, 0.1, 0.05, 0.15, -0.02, 0.03),
        ("fresh texts", 0.01, 0.07, 0.05, 0.15, -0.02, 0.03),
        ("excess of fitted", 0.0, 0.03, 0.05, 0.15, -0.02, 0.03),
    ]
    return ContentLeak(pd.DataFrame(rows, columns=columns), 0.1, 3, EVIL)


def preferred() -> Preferences:
    odds = np.random.default_rng(0).normal(size=(8, 8))
    np.fill_diagonal(odds, np.nan)
    shown = pd.DataFrame({"activity": [EVIL, *"bcdefgh"], "category": ["one", "two"] * 4})
    return Preferences(shown, odds, model="a model")


def shifted() -> PreferenceShift:
    untouched, drawn = preferred(), np.random.default_rng(1)
    odds = np.stack([untouched.log_odds + 0.1 * drawn.normal(size=(8, 8)) for _ in range(4)])
    names, conditions = (EVIL, "r0", "r1", "r2"), ("steered", "random", "random", "random")
    return PreferenceShift(names, conditions, untouched, np.arange(8) < 4, odds, 0.5)


def valuation(strength: torch.Tensor | None = None, seed: int = 0) -> Valuation:
    drawn = torch.randn(2, 2, 32, generator=torch.Generator().manual_seed(seed))
    return Valuation(drawn, torch.zeros(2, 2), (EVIL, "arousal"), (0, 2), strength=strength)


def compared() -> Any:
    learned = valuation(torch.tensor([0.5, -0.2]), seed=1)
    return compare_valuations(small_model(), valuation(), learned, small_corpus(), controls=2)


def recovered() -> Recovery:
    seeds = pd.DataFrame(
        {"seed": [0, 1], "start": [0.02, 0.03], "learned": [0.3, 0.4], "chance": [0.025, 0.02]}
    )
    seeds = seeds.assign(annotated=0.3, shuffled=0.1, delta_nll=-0.01).assign(**{"lambda": 0.5, EVIL: 1.0})
    layers = pd.DataFrame({"layer": [0, 1], "overlap": [0.2, 0.5], "chance": 0.02, "chance_high": 0.04})
    return Recovery("next_token", seeds, layers, pd.DataFrame(), 0.001, 0.02)


def result() -> Result:
    with drawing.styled():
        figure, axes = drawing.panels()
        axes[0, 0].plot([1, 2], [0.25, 0.75])
        axes[0, 0].set_title(EVIL)
    table = pd.DataFrame({"concept": EVIL, "value": [0.25, 0.75]})
    said = {
        "question": EVIL,
        "method": EVIL,
        "finding": EVIL,
        "controls": EVIL,
        "verdict": EVIL,
        "published": EVIL,
    }
    return Result(
        "one", EVIL, table=table, figure=figure, alt=f'" onload={EVIL}', checks={EVIL: True}, sign=1, **said
    )


def study() -> Study:
    return Study(Path(EVIL), (result(), replace(result(), name="two", sign=-1)), {"title": EVIL})


RESULTS: dict[str, tuple[Callable[[], Any], str]] = {
    "trace": (lambda: trace(model(), probes(), f"{EVIL} The sun", concepts=[EVIL]), ""),
    "heat map": (lambda: heat_map(model(), probes(), f"{EVIL} The sun", [EVIL]), ""),
    "difference map": (
        lambda: difference_map(model(), probes(), f"{EVIL} sun", f"{EVIL} dog", [EVIL]),
        "difference",
    ),
    "probe set": (probes, ""),
    "direction": (direction, "*"),
    "corpus scores": (lambda: score_corpus(model(), probes(), [EVIL, *texts(8)], concepts=[EVIL]), "tail"),
    "stability": (
        lambda: renamed(stability(model(), planted()[0], [1, 2], concepts=["planted"], draws=4, **QUICK)),
        "cosine",
    ),
    "learning curve": (
        lambda: renamed(
            learning_curve(
                model(), planted()[0], [2], sizes=[40], concepts=["planted"], repeats=2, bootstrap=40, **QUICK
            )
        ),
        "value",
    ),
    "transfer": (transferred, "value"),
    "geometry": (lambda: few_probes().geometry(2), "*"),
    "axes": (lambda: replaced_norm(leading_axes(few_probes(), some_norms(), permutations=20)), "r"),
    "circumplex": (lambda: circumplex(few_probes().geometry(2), some_norms(), permutations=20), "x"),
    "clusters": (
        lambda: clusters(
            few_probes(), 2, {name: EVIL[: k % 2 + 30] for k, name in enumerate(few_probes().concepts)}
        ),
        "",
    ),
    "word norms": (word_norms, "r"),
    "similarity": (
        lambda: replace(layer_similarity(few_probes(), permutations=10), names=(EVIL, "b")),
        "",
    ),
    "emotion vectors": (vector_set, ""),
    "sweep": (swept, "value"),
    "specificity": (specific, ""),
    "equal cost": (equal_cost, "effect"),
    "content leak": (leak, "change"),
    "preferences": (preferred, "score"),
    "preference shift": (shifted, ""),
    "valuation": (lambda: valuation(torch.tensor([0.5, 0.2])), "norm"),
    "comparison": (compared, ""),
    "recovery": (recovered, "learned"),
    "sentences": (lambda: compare_sentences(model32(), controls=1, layers=1), ""),
    "result": (result, "value"),
    "study": (study, ""),
}
"""Name -> what makes it, and the column of its frame that its figure holds whole ("*": all; "": seen by itself below)."""
UNNAMED = {"clusters", "emotion vectors", "sentences", "recovery"}
"""Whose text holds no name that anybody gave, or only in a frame's header."""


def renamed(found: Any) -> Any:
    return replace(found, corpus=EVIL, frame=found.frame.replace({"concept": {"planted": EVIL}}))


def replaced_norm(found: Any) -> Any:
    return replace(found, frame=found.frame.replace({"norm": {"valence": EVIL}}))


@cache
def model32() -> Any:
    from tiny import tiny_model

    return tiny_model("gpt2", dtype=torch.float32)


@cache
def made(name: str) -> Any:
    return RESULTS[name][0]()


# What is seen ---------------------------------------------------------------------------------------------------------


class Seen(HTMLParser):
    """What a browser would make of a page: its tags, attributes and text; and whether tags are closed as they were opened."""

    VOID = ("br", "hr", "img", "meta", "path", "use", "rect", "image", "stop")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.said = ""
        self._open: list[str] = []
        self.feed(page)
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID or not (self.get_starttag_text() or "").endswith("/>"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop() == tag, f"</{tag}> was not open"

    def handle_data(self, data: str) -> None:
        self.said += data


@pytest.mark.parametrize("name", RESULTS)
def test_html_is_escaped_closed_and_loads_nothing(name: str) -> None:
    page = made(name)._repr_html_()
    seen = Seen(page)
    assert not {"script", "iframe", "object", "embed", "link", "style", "foreignobject", "form"} & set(
        seen.tags
    )
    for key, value in seen.attributes:
        assert not key.startswith("on"), key
        assert key not in ("src", "href", "xlink:href") or value.startswith(
            ("#", "data:image/png;base64,")
        ), value
        assert "url(" not in value or "url(#" in value, value
    assert name in UNNAMED or EVIL in seen.said or "<script>" in seen.said
    assert len(page) < 400_000


@pytest.mark.parametrize("name", RESULTS)
def test_the_figure_holds_what_the_frame_holds(name: str) -> None:
    found, column = made(name), RESULTS[name][1]
    figure = found.plot()
    assert (
        isinstance(figure, Figure)
        and figure.axes
        and isinstance(found.frame, pd.DataFrame)
        and len(found.frame)
    )
    values = (
        found.frame.to_numpy() if column == "*" else found.frame[column].to_numpy(float) if column else []
    )
    values = np.asarray(values, dtype=float)
    if name == "geometry":
        values = values[~np.eye(len(values), dtype=bool)]  # a direction's cosine with itself is not drawn
    held_by(figure, values[np.isfinite(values)])


def test_the_figure_of_a_study_marks_how_each_question_is_answered() -> None:
    partly = replace(result(), name="three", sign=0, parts={"a": True, "b": False})
    results = (*study().results, partly, replace(partly, name="four", parts={}), replace(partly, sign=None))
    found = replace(study(), results=results)
    (axis,) = found.plot().axes
    names = [label.get_text() for label in axis.get_xticklabels()]
    marks = {int(y): names[int(x)] for line in axis.lines for x, y in line.get_xydata()}
    outcomes = found.frame["outcome"].tolist()
    assert outcomes == ["Shown", "The opposite is shown", "Partly shown", "Not shown", ""]
    assert [marks.get(row, "") for row in range(5)] == outcomes


def held_by(figure: Figure, values: Any) -> None:
    drawn = numbers(figure)
    missing = [
        value for value in np.ravel(values) if not np.isclose(drawn, value, rtol=1e-6, atol=1e-9).any()
    ]
    assert not missing, missing[:5]


def numbers(figure: Figure) -> Any:
    """Return every number that a figure's lines, points and fields were given."""
    parts = [np.zeros(0)]
    for axis in figure.axes:
        parts += [np.asarray(line.get_xydata(), float).ravel() for line in axis.lines]
        for collection in axis.collections:
            parts += [np.ma.filled(collection.get_offsets(), np.nan).ravel()]
            if collection.get_array() is not None:
                parts += [np.ma.filled(np.ma.asarray(collection.get_array(), float), np.nan).ravel()]
        parts += [
            np.ma.filled(np.ma.asarray(image.get_array(), float), np.nan).ravel() for image in axis.images
        ]
    return np.concatenate(parts)


def test_the_figures_of_what_is_no_column_hold_it_too() -> None:
    held_by(made("trace").plot(), made("trace").coloured().colour)
    scores = made("probe set").scores
    held_by(made("probe set").plot(), scores[scores.concept == EVIL].value)
    heat = made("heat map")
    centres = [heat.trace.centres[EVIL, layer] for layer in heat.matrix(EVIL).index]
    held_by(heat.plot(), heat.matrix(EVIL).sub(centres, axis=0))
    grouped = made("clusters")
    held_by(grouped.plot(), [grouped.agreement, *grouped.random])
    held_by(made("similarity").plot(), made("similarity").matrix("rsa").dropna(how="all").fillna(0) + 0.0)
    of_layers = made("emotion vectors").frame.groupby("layer")
    held_by(made("emotion vectors").plot(), of_layers.relative.median())
    held_by(made("emotion vectors").plot(), of_layers.kept.median())
    held_by(made("specificity").plot(), made("specificity").matrix)
    shift = made("preference shift").frame
    held_by(made("preference shift").plot(), shift[shift.condition == "steered"][["shift", "gain"]])
    of_rows = made("comparison").alignment
    held_by(made("comparison").plot(), of_rows[of_rows.quantity == "row cosine"].value)
    held_by(made("recovery").plot(), made("recovery").layers.overlap)
    held_by(made("valuation").plot(), [0.5, 0.2])  # |λ|


def test_frames_are_cut_and_the_rest_is_counted() -> None:
    page = shown("a <b>\nline", pd.DataFrame({"n<": [1.23456] * 30}))
    assert page.count("<tr") == 25 and "and 6 rows more" in page and "1.23<" in page and "1.2345" not in page
    assert page.startswith("<p>a &lt;b&gt;</p><p>line</p>") and "n&lt;" in page


def test_a_figure_is_named_for_those_who_cannot_see_it_and_keeps_its_style_to_itself() -> None:
    page = shown('of "all" things', made("result").plot())
    assert (
        'role="img" aria-label="of &quot;all&quot; things"' in page
        and "<style" not in page
        and "<metadata" not in page
    )
    assert re.search(r"(?i)fill: #ffffff|background", page) is None  # the ground is the reader's own


def test_a_result_is_written_as_a_page_and_as_a_picture(tmp_path: Path) -> None:
    found = made("sweep")
    page = ep.export(found, tmp_path / "new" / "sweep.html").read_text("utf-8")
    assert (
        page.startswith("<!doctype html>")
        and found._repr_html_() in page
        and "color-scheme: light dark" in page
    )
    assert "<script" not in page and not re.search(r'(src|href)="(?!#)', page)
    assert export(found, tmp_path / "sweep.svg").read_text("utf-8").endswith("</svg>\n")
    assert export(found, tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match=r"ends in .html, .svg or .png; .frame.to_csv\(\) writes tables"):
        export(found, tmp_path / "sweep.csv")


def test_a_result_read_from_a_folder_shows_its_svg_and_says_why_it_cannot_be_drawn() -> None:
    kept = replace(result(), figure=None)
    assert "<svg" in kept._repr_html_()
    with pytest.raises(InputError, match=r"its figure is kept as \.svg"):
        kept.plot()
    with pytest.raises(InputError, match="nothing was drawn"):
        replace(kept, svg="").plot()
