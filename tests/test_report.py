"""The report: it says what the results say, it needs nothing but itself, and nothing hostile gets out of its place."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from emoprobe import drawing
from emoprobe.report import render
from emoprobe.report.html import cell, duration, inline_figure, prose
from emoprobe.study import Result

HOSTILE = (
    '"><script>alert(1)</script><img src=x onerror="alert(2)"><a href="javascript:alert(3)">\'$\\frac$&amp;'
)


class Page(HTMLParser):
    """Collect what a browser would act on, and the text that it would show."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.shown = ""
        self._silent = False
        self.feed(source)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attributes]
        self._silent = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._silent = False

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.shown += data

    def all(self, attribute: str) -> list[str]:
        return [value for name, value in self.attributes if name == attribute]


@drawing.styled()
def result(words: str = "plain", name: str = "probing", **changes: object) -> Result:
    figure, axes = drawing.panels()
    drawing.line(axes[0, 0], [0, 1, 2], [0.1, 0.5, 0.9], [0, 0.4, 0.8], [0.2, 0.6, 1.0], label=words)
    drawing.control(axes[0, 0], [0, 1, 2], [0, 0, 0])
    axes[0, 0].set_title(words)
    drawing.legend_below(figure, axes[0, 0])
    texts = dict.fromkeys(("title", "question", "method", "finding", "controls", "verdict", "alt"), words)
    table = pd.DataFrame({"concept": [words, None], words: [0.123456, np.nan], "n": [7, 8]})
    given = {"checks": {words: True}, "remarks": (words,), **texts, **changes}
    return Result(name=name, table=table, figure=figure, **given)  # type: ignore[arg-type]


def manifest(words: str = "plain") -> dict[str, object]:
    return {
        "format": 1,
        "title": words,
        "command": words,
        "begun": words,
        "seed": 0,
        "study": {"model": words, "corpus": words},
        "model": {"name": words, "blocks": 2, "width": 32, "heads": 4, "parameters": 12345},
        "corpus": {
            "name": words,
            "texts": 50,
            "fitted_on": 30,
            "held_out": 20,
            "labels": [words],
            "dimensions": {words: [0, 1]},
        },
        "versions": {"python": "3", "emoprobe": words},
        "hardware": {"system": words, "cores": 2, "threads": 2, "accelerator": None},
        "steps": {"probing": {"seconds": 1.25}},
    }


def test_hostile_words_stay_words() -> None:
    page = Page(render([result(HOSTILE)], manifest(HOSTILE)))
    assert not {"script", "img", "iframe", "object", "link", "form"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not [value for _, value in page.attributes if value.lstrip().lower().startswith("javascript")]
    # They are all there to be read, though: in the page, its table and its figure.
    assert page.shown.count("alert(1)") >= 15
    # ... and what was looked for would have been found.
    assert "script" in Page(f"<p>{HOSTILE}").tags


@pytest.mark.parametrize(
    "inside",
    [
        "<script>alert(1)</script>",
        '<g onload="alert(1)"/>',
        '<a xlink:href="javascript:alert(1)"/>',
        "<foreignObject><p>x</p></foreignObject>",
        '<image href="https://example.org/x.png"/>',
        '<use href="https://example.org/x.svg#a"/>',
        '<rect style="fill: url(https://example.org/x)"/>',
    ],
)
def test_a_figure_that_could_run_or_call_home_is_left_out(inside: str) -> None:
    plain = '<svg xmlns="http://www.w3.org/2000/svg" width="1pt" height="1pt"><path d="M0 0"/></svg>'
    assert "<path" in inline_figure(plain, "a")
    assert "<svg" not in inline_figure(plain.replace("<path", inside + "<path"), "a")


def test_a_figure_brings_no_style_into_the_page() -> None:
    assert "body" not in inline_figure("<svg><style>body { display: none }</style><path/></svg>", "a")
    assert "<style" in result().svg  # as matplotlib writes one


def test_nothing_is_fetched() -> None:
    source = render([result(), result(name="steering")], manifest())
    page = Page(source)
    for attribute in ("src", "href", "xlink:href", "action", "srcset", "poster", "data"):
        assert all(value.startswith(("#", "data:")) for value in page.all(attribute)), attribute
    assert not re.search(r"@import|url\((?!#)|@font-face", source)
    assert "default-src 'none'" in source  # and the browser is told so
    # Names of namespaces are not addresses, and nothing else looks like one.
    addresses = set(re.findall(r"https?://[^\"'<\s]+", source))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_figures_fit_in() -> None:
    source = render([result(), result(name="steering")], manifest())
    page = Page(source)
    identifiers = page.all("id")
    assert len(identifiers) == len(set(identifiers)) and "probing-figure_1" in identifiers
    for reference in re.findall(r'(?:url\(#|href="#)([^)"]+)', source):
        assert reference in identifiers
    assert drawing.INK not in source and drawing.BLUE.lower() not in source.split("</style>")[1]
    assert "var(--blue)" in source and "currentColor" in source
    assert page.all("aria-labelledby") == ["contents", "caption-probing", "caption-steering"]


def test_every_figure_says_in_words_what_it_shows() -> None:
    page = Page(render([result(), result(name="second", alt="", title="A title")], manifest()))
    images = page.tags.count("svg")
    captions = re.findall(r'<figcaption id="caption-(\w+)"><b>Figure \d.</b> (.*?)</figcaption>', page.source)
    assert images == 2 and captions == [("probing", "plain"), ("second", "A title")]


def test_headings_are_in_order_and_the_contents_lead_to_all_of_them() -> None:
    page = Page(render([result(), result(name="steering", title="Steering's end")], manifest()))
    assert [tag for tag in page.tags if re.fullmatch(r"h\d", tag)] == ["h1", *["h2"] * 6]
    listed = re.search(r"<nav.*?</nav>", page.source, re.DOTALL)
    assert listed and "Steering’s end" in listed[0]
    targets = re.findall(r'href="#(\w+)"', listed[0])
    assert targets == ["short", "probing", "steering", "meaning", "again"]
    assert set(targets) <= set(page.all("id"))


@pytest.mark.parametrize(
    ("kind", "words"), [("study", "fed back"), ("concepts", "Sofroniew"), ("claims", "J. Marín 2024")]
)
def test_each_kind_of_study_says_what_it_is(kind: str, words: str) -> None:
    record = manifest()
    record["study"] = {"model": "m", "corpus": "c", **({} if kind == "study" else {"experiments": kind})}
    assert words in Page(render([result()], record)).shown


def test_every_experiment_answers_in_the_summary_and_first_in_its_section() -> None:
    signs = {1: "Shown.", 0: "Not shown.", -1: "The opposite is shown."}
    told = "By J. Marín r is 0.5 [0.4, 0.6], e.g. here. A second sentence."
    page = render([result(name=f"r{sign + 1}", sign=sign, verdict=told) for sign in signs], manifest())
    assert re.findall(r'class="verdict">.*?<b>(.*?)</b>', page) == list(signs.values())
    answers = re.findall(r'<td class="answer">(.*?)</td>', page)
    assert answers == [f"<b>{said}</b> {told.split(' A ')[0]}" for said in signs.values()]
    parts = {"the first": True, "the second": False, "the third": True}
    partly = render([result(sign=0, parts=parts, verdict=told)], manifest())
    divided = "<b>Partly shown.</b> Shown: the first; the third. Not shown: the second. By J. Marín"
    assert partly.count(divided) == 2
    for sign, none in (
        (0, dict.fromkeys(parts, False)),
        (1, parts),
        (-1, parts),
    ):  # only what is open has parts
        whole = render([result(sign=sign, parts=none, verdict=told)], manifest())
        assert whole.count(f"<b>{signs[sign]}</b> By J.") == 2 and "Shown: " not in whole
    untold = render([result(verdict="Cannot be told: one group. More.")], manifest())
    assert '<td class="answer">Cannot be told: one group.</td>' in untold


def test_an_answer_comes_before_how_it_was_found_and_checks_are_no_success() -> None:
    page = render([result(sign=0, verdict="No. So.", checks={"it held": True})], manifest())
    section = page[page.index('class="experiment"') :]
    places = [
        section.index(f'class="{part}"') for part in ("question", "verdict", "numbers", "method", "checks")
    ]
    assert places == sorted(places) and places[2] < section.index("<figure>") < places[3]
    assert "software check" in section.lower() and "green" not in re.sub(r"--green[^;]*;", "", page).lower()
    assert '<span class="quiet">1 of 1 software check held' in page and 'class="good"' not in page


def test_an_unfinished_study_says_so() -> None:
    record = manifest() | {"planned": ["probing", "reading", "learning"]}
    shown = Page(render([result(), result(name="reading")], record)).shown
    assert (
        "Unfinished: 2 of 3 experiments are done. Missing: learning." in shown
        and "2 experiments of 3" in shown
    )
    record["planned"].pop()
    for whole in (record, manifest()):
        assert "nfinished" not in Page(render([result(), result(name="reading")], whole)).shown


def test_a_line_may_end_between_a_number_and_its_interval_in_the_narrow_table_alone() -> None:
    page = render([result(finding="r 0.50\xa0[0.40,\xa00.60]")], manifest())
    assert page.count("r 0.50 [0.40,\xa00.60]") == page.count("r 0.50\xa0[0.40,\xa00.60]") == 1


def test_the_record_shows_the_command_that_made_the_run_and_those_that_took_it_up() -> None:
    record = manifest() | {
        "reruns": [{"begun": "on Friday", "command": "emoprobe again"}, {"begun": "on Sunday"}]
    }
    shown = Page(render([result()], record)).shown
    assert "Taken up again on Friday by emoprobe again." in shown and "Taken up again on Sunday." in shown
    assert "Taken up again" not in Page(render([result()], manifest())).shown


def test_what_was_not_asked_takes_little_room() -> None:
    from emoprobe.study.concepts.run import not_carried

    page = Page(render([not_carried("speakers", "nobody speaks")], manifest()))
    assert "Not asked: nobody speaks." in page.shown and "All numbers" not in page.shown


def test_paper_has_light_colours_whatever_the_screen_has() -> None:
    source = render([result()], manifest())
    printed = source[source.index("@media print") :]
    assert source.index("prefers-color-scheme: dark") < source.index("@media print")
    for name in ("ground", "ink", "blue", "red", "control"):
        assert f"--{name}:" in printed.split("</style>")[0]


def test_the_page_says_what_the_results_say() -> None:
    odd = result(
        question="What's this?",
        finding="r 0.50 [0.40, 0.60]",
        checks={"it held": True, "it did not": False},
        remarks=("12 texts were cut",),
    )
    page = Page(render([odd, result(name="second")], manifest("a model on a corpus")))
    for said in (
        "r 0.50 [0.40, 0.60]",
        "What’s this?",
        "it did not: this failed",
        "1 of 3 software checks failed",
        "12 texts were cut",
    ):
        assert said in page.shown
    assert "a model on a corpus" in page.shown and "claims nothing about experience" in page.shown
    assert "0.1235" in page.shown and "nan" not in page.shown.lower()
    assert "all 1 software checks held" in Page(render([result()], manifest())).shown


def test_long_tables_are_cut_and_say_so() -> None:
    table = pd.DataFrame({"n": range(2500)})
    page = Page(render([replace(result(), table=table)], manifest()))
    assert "2,500 rows" in page.shown and "The other 500 rows are in results/probing.parquet" in page.shown


def test_numbers_stay_with_what_belongs_to_them() -> None:
    assert (
        prose("p = 0.003, 95 % at s = 0.1; it's x = 2")
        == "p\xa0=\xa00.003, 95\xa0% at s\xa0=\xa00.1; it’s x = 2"
    )


def test_cells_and_durations() -> None:
    assert [cell(value) for value in (0.000123456, -2.0, 7, None, float("nan"), pd.NA)] == [
        "0.0001235",
        "−2",
        "7",
        "",
        "",
        "",
    ]
    assert [cell(value, "p") for value in (0.00012, 0.0123, 1.0)] == ["< 0.001", "0.012", "1.000"]
    assert cell(0.00012, "p_layers") == cell(0.00012, "q") == "< 0.001" != cell(0.00012, "price")
    assert [duration(s) for s in (1.25, 61, 600, 7200)] == ["1.2 s", "61 s", "10.0 min", "2.0 h"]


# Drawing -------------------------------------------------------------------------------------------------------------


def test_equal_figures_are_equal_files() -> None:
    assert result().svg == result().svg
    assert result().svg != result("other").svg


def test_names_with_dollars_are_drawn_as_they_are() -> None:
    assert "$\\frac$" in result("$\\frac$").svg


def test_drawing_leaves_no_style_behind() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    result()
    with pytest.raises(ZeroDivisionError), drawing.styled():
        raise ZeroDivisionError
    assert dict(matplotlib.rcParams) == before


def test_heat_is_red_above_zero_blue_below_and_nothing_at_zero() -> None:
    figure, axes = drawing.panels()
    mesh = drawing.heat(
        axes[0, 0], np.array([[1.0, -1.0, 0.0, np.nan]]), ["row"], list("abcd"), numbers="+.0f"
    )
    drawing.svg(figure)
    red, blue, nothing, missing = mesh.get_facecolors()
    assert red[0] > red[2] and blue[2] > blue[0] and red[3] == blue[3] > 0.8
    assert nothing[3] == pytest.approx(0, abs=0.01) and missing[3] == 0
    assert [text.get_text() for text in axes[0, 0].texts] == ["+1", "−1", "+0"]
