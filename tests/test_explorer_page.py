"""The explorer's page in a real browser: clicked, typed into, slid, used by keyboard alone, and fed what is hostile.

In every test, an error on the console, a dialog, and a request to anywhere but the explorer are failures.
"""

import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import OPTIONS, chromium
from planted_probes import NAMES

from emoprobe.errors import InputError
from emoprobe.explorer import Explorer, explore, readings
from emoprobe.explorer.readings import Subject
from emoprobe.models import LiveModel
from emoprobe.probes import ProbeSet
from emoprobe.steering import steer
from emoprobe.valattn import Valuation, inject

pytest.importorskip("fastapi", reason="the explorer needs emoprobe[explore]")
playwright_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: emoprobe[test] has it"
)
axe_playwright = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")

TEXT = "She was happy, but the dog had run away."
HOSTILE = (
    '</span></textarea><script>alert(1)</script><img src=x onerror="alert(2)"> "double" \'single\' `tick` &amp; <b>bold</b>\n'
    "👩‍👧 🎉 é ﷽ مرحبا بالعالم שלום עולם \u202eturned\u202c ${7*7} {{7*7}}"
)
expect = playwright_api.expect


@pytest.fixture(scope="module")
def running(model: LiveModel, probes: ProbeSet) -> Iterator[Explorer]:
    with explore(model, probes, browser=False, wait=False) as explorer:
        yield explorer


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright_api.sync_playwright() as playwright:
        path = chromium(playwright)
        if path is None:
            pytest.skip("no Chromium: set EMOPROBE_CHROMIUM to one, or run `playwright install chromium`")
        with playwright.chromium.launch(executable_path=path, args=list(OPTIONS)) as launched:
            yield launched


@pytest.fixture
def opened(browser: Any, running: Explorer) -> Iterator[Callable[..., Any]]:
    """Return what opens the page in a browser of the given kind; whatever goes wrong in it fails the test at its end."""
    contexts, wrong = [], []

    def opening(**kind: Any) -> Any:
        context = browser.new_context(**kind)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: _check_place(request.url, running.address, wrong))
        page.goto(running.address)
        settled(page)
        return page

    yield opening
    for context in contexts:
        context.close()
    assert not wrong


def _check_place(url: str, address: str, wrong: list[str]) -> None:
    if not url.startswith((address, "blob:", "data:", "file:")):
        wrong.append(f"asked for {url}")


@pytest.fixture
def page(opened: Callable[..., Any]) -> Any:
    return opened()


def settled(page: Any) -> None:
    """Wait until everything that was chosen has been asked, answered and drawn."""
    page.wait_for_selector("#run[aria-busy=false]")


def shown(page: Any, selector: str) -> str:
    return str(page.locator(selector).evaluate("element => element.textContent"))


def slide(page: Any, name: str, steps: int) -> None:
    page.focus(f"#{name}")
    for _ in range(abs(steps)):
        page.keyboard.press("ArrowRight" if steps > 0 else "ArrowLeft")


# Reading --------------------------------------------------------------------------------------------------------------


def test_typed_text_is_read_and_coloured(page: Any) -> None:
    page.fill("#text", TEXT)
    settled(page)
    assert shown(page, "#tokens") == TEXT
    grounds = page.locator("#tokens span:not(.special)").evaluate_all(
        "spans => spans.map(span => getComputedStyle(span).backgroundColor)"
    )
    assert len({ground for ground in grounds if ground.startswith("rgba")}) > 3
    cells = page.locator("#map tbody tr").count(), page.locator("#map thead th").count() - 1
    assert cells[0] == 4 and cells[1] == page.locator("#tokens-table tbody tr").count() > 5


def test_a_layer_is_shown_without_asking_again(page: Any) -> None:
    before = page.locator("#tokens span").nth(3).get_attribute("title")
    read = []
    page.on("request", lambda request: read.append(request.url) if request.url.endswith("/read") else None)
    slide(page, "layer", -1)
    assert page.locator("#tokens span").nth(3).get_attribute("title") != before
    expect(page.locator("#map tr.chosen th")).to_have_text(shown(page, "#layer-value"))
    settled(page)
    assert not read


@pytest.mark.parametrize("concept", NAMES)
def test_hostile_text_is_shown_as_it_is(page: Any, concept: str) -> None:
    page.select_option("#concept", concept)
    page.fill("#text", HOSTILE)
    page.fill("#other", HOSTILE.replace("bold", "thin"))
    settled(page)
    assert shown(page, "#tokens") == HOSTILE
    assert concept in shown(page, "#tokens-caption") and shown(page, "#worth")
    assert HOSTILE[-60:] in shown(page, "#continuation")
    assert not page.locator("#results script, #results img, #results b").count()
    assert page.locator("#tokens").evaluate("element => getComputedStyle(element).unicodeBidi") == "isolate"


def test_right_to_left_script_begins_at_the_right(page: Any) -> None:
    page.fill("#text", "مرحبا بالعالم")
    settled(page)
    assert page.locator("#tokens").evaluate("element => getComputedStyle(element).direction") == "rtl"
    assert page.locator("body").evaluate("element => getComputedStyle(element).direction") == "ltr"


def test_ten_thousand_tokens_are_shown_and_said_to_be_read_in_part(page: Any, model: LiveModel) -> None:
    text = "The sun came up and the dog <b>had</b> run away. " * 1200
    assert len(model.tokenizer(text)["input_ids"]) > 10_000
    page.fill("#text", text)
    settled(page)
    assert shown(page, "#tokens") == text
    assert "512 tokens" in shown(page, "#tokens-caption")
    assert page.locator("#map thead th").count() - 1 == model.context_length
    assert page.locator("#tokens .unread").last.evaluate("element => element.textContent.length") > 10_000
    assert shown(page, "#error") == "" and serious(page) == []


def test_two_texts_are_compared(page: Any) -> None:
    page.fill("#text", TEXT)
    page.fill("#other", TEXT.replace("happy", "afraid"))
    settled(page)
    assert page.locator("#difference .marked").count() > 0
    assert "random directions" in shown(page, "#difference-caption")
    page.fill("#other", "")
    settled(page)
    assert shown(page, "#difference") == ""


# Intervening ----------------------------------------------------------------------------------------------------------


def test_sliders_change_what_the_model_writes(page: Any, model: LiveModel, probes: ProbeSet) -> None:
    page.fill("#text", TEXT)
    page.fill("#new-tokens", "8")
    page.locator("#strength").fill("-1.5")
    page.locator("#steering").fill("0.4")
    settled(page)
    sides = page.locator("#continuation .written").evaluate_all("all => all.map(each => each.textContent)")
    assert sides[0] == TEXT + str(model.generate(TEXT, max_new_tokens=8, do_sample=False))
    layer = int(shown(page, "#layer-value"))
    valued = Valuation.from_probes(probes, ["valence"])
    with inject(model, valued, -1.5), steer(model, probes["valence"], 0.4, layers=layer):
        assert sides[1] == TEXT + str(model.generate(TEXT, max_new_tokens=8, do_sample=False))
    assert "λ = −1.5" in shown(page, "#continuation") and "valence +0.40" in shown(page, "#continuation")
    assert "λ = −1.5" in shown(page, "#attention")


def test_what_the_model_writes_is_shown_as_it_comes(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a newer question ends it."""
    go_on, ended = threading.Event(), threading.Event()
    told = {"prompt": TEXT, "untouched": HOSTILE, "changed": "", "notice": None, "writing": True}

    def slow(subject: Subject, tell: readings.Tell, **asked: Any) -> dict[str, Any]:
        try:
            while not go_on.wait(0.02):
                tell(told)
        except InputError:
            ended.set()
            raise
        return {**told, "changed": "and on", "writing": False}

    monkeypatch.setattr(readings, "go_on", slow)
    sides = page.locator("#continuation .written")
    page.locator("#strength").fill("0.7")
    expect(sides.first).to_have_text(TEXT + HOSTILE, use_inner_text=False)
    assert shown(page, "#run[aria-busy=true] #continuation-caption").startswith("The likeliest token")
    page.locator("#strength").fill("0.8")
    assert ended.wait(5)
    go_on.set()
    settled(page)
    expect(sides.last).to_have_text(f"{TEXT}and on")
    assert "λ = +0.8" in shown(page, "#continuation") and page.locator("#continuation script").count() == 0


def test_an_answer_that_comes_late_is_dropped(page: Any) -> None:
    """The first question's answer is held back until the second's is there."""
    held: list[Any] = []

    def hold(route: Any) -> None:
        if json.loads(route.request.post_data)["strength"] == 2 and not held:
            held.append(route)
        else:
            route.continue_()

    page.route("**/attend", hold)
    page.locator("#strength").fill("2")
    page.wait_for_timeout(400)
    page.locator("#strength").fill("-2")
    settled(page)
    held[0].continue_()
    page.wait_for_timeout(300)
    assert "λ = −2.0" in shown(page, "#attention") and "λ = +2.0" not in shown(page, "#attention")


def test_a_question_that_was_sent_away_is_asked_again(page: Any) -> None:
    sent_away = []

    def refuse_once(route: Any) -> None:
        if sent_away:
            route.continue_()
        else:
            sent_away.append(1)
            route.fulfill(status=204)

    page.route("**/attend", refuse_once)  # 204: what the server answers where it took nobody to be waiting
    page.locator("#strength").fill("0.3")
    page.wait_for_selector("#attention >> text=+0.3")


# Keyboard, screen reader ----------------------------------------------------------------------------------------------


def test_everything_can_be_done_by_keyboard(page: Any) -> None:
    order = []
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    for _ in range(10):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            "[document.activeElement.id, getComputedStyle(document.activeElement).outlineStyle]"
        )
        order.append(focused[0])
        assert focused[1] != "none"  # one can see where one is
    assert order[:7] == ["text", "concept", "layer", "kind", "strength", "steering", "keep"]
    page.focus("#text")
    page.keyboard.press("Control+a")
    page.keyboard.type("so sad")
    settled(page)
    assert shown(page, "#tokens") == "so sad"
    page.focus("#concept")
    page.keyboard.press("ArrowUp")
    settled(page)
    assert shown(page, "#tokens-caption").startswith("calm")
    slide(page, "strength", 3)
    settled(page)
    assert "λ = +1.3" in shown(page, "#attention")
    page.focus("#keep")
    page.keyboard.press("Enter")
    assert page.locator("#kept li").count() == 1
    page.focus("#tokens-table >> xpath=../summary")
    page.keyboard.press("Space")
    expect(page.locator("#tokens-table")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(opened: Callable[..., Any], scheme: str) -> None:
    page = opened(color_scheme=scheme)
    page.fill("#other", TEXT)
    settled(page)
    page.click("#keep")
    page.click("summary")
    assert serious(page) == []
    # ... and it would find what is there:
    page.evaluate("document.querySelector('label[for=text]').remove()")
    assert serious(page)


def serious(page: Any) -> list[str]:
    found = axe_playwright.Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {one['nodes'][0]['html'][:200]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("width", [320, 400, 800, 1280])
def test_the_page_never_scrolls_sideways(opened: Callable[..., Any], width: int) -> None:
    page = opened(viewport={"width": width, "height": 800})
    page.fill("#text", TEXT + " " + "x" * 300)
    settled(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


# Errors ---------------------------------------------------------------------------------------------------------------


def test_an_empty_text_is_said_to_be_empty(page: Any) -> None:
    page.fill("#text", "  ")
    settled(page)
    expect(page.locator("#error[role=alert]")).to_have_text("There is nothing to read: type some words.")
    page.fill("#text", TEXT)
    settled(page)
    assert shown(page, "#error") == ""


def test_an_explorer_that_has_ended_is_said_to_have(browser: Any, model: LiveModel, probes: ProbeSet) -> None:
    with explore(model, probes, browser=False, wait=False) as own:
        page = browser.new_page()
        page.goto(own.address)
        settled(page)
    page.fill("#text", "so sad")
    expect(page.locator("#error")).to_have_text("The explorer has ended: start it anew.")
    page.close()


def test_the_policy_stops_what_would_run(browser: Any, running: Explorer) -> None:
    page = browser.new_page()
    page.goto(running.address)
    stopped = page.evaluate(
        """async () => {
            const stopped = new Promise(done =>
                addEventListener("securitypolicyviolation", event => done(event.violatedDirective)));
            document.body.append(Object.assign(document.createElement("script"), { textContent: "window.ran = 1" }));
            return [await stopped, window.ran];
        }"""
    )
    assert stopped == ["script-src-elem", None]
    page.close()


# Keeping --------------------------------------------------------------------------------------------------------------


def test_a_kept_run_is_shared_as_one_file(page: Any, browser: Any, tmp_path: Path) -> None:
    page.select_option("#concept", NAMES[2])
    page.fill("#text", HOSTILE)
    page.fill("#other", HOSTILE.replace("bold", "thin"))
    settled(page)
    page.click("#keep")
    page.fill("#text", "something else")  # what is kept stays as it was
    settled(page)
    with page.expect_download() as download:
        page.click("text=Save page")
    saved = tmp_path / download.value.suggested_filename
    download.value.save_as(saved)
    source = saved.read_text("utf-8")
    assert not re.search(r"<script|\son\w+=|https?://(?!www\.w3\.org)", re.sub(r"&lt;.*?&gt;", "", source))
    wrong: list[str] = []
    shared = browser.new_page()
    shared.on("dialog", lambda dialog: (wrong.append("dialog"), dialog.dismiss()))
    shared.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    shared.goto(saved.as_uri())
    assert shown(shared, "#tokens") == HOSTILE
    grounds = shared.locator("#map td").evaluate_all(
        "all => new Set(all.map(each => getComputedStyle(each).backgroundColor)).size"
    )
    assert grounds > 5
    assert not shared.locator("input, textarea, select, button, script, img").count()
    assert "thin" in shown(shared, "main") and "λ = +1.0" in shown(shared, "main")
    assert serious(shared) == [] and not wrong
    shared.close()


def test_a_kept_run_is_saved_in_numbers_shown_again_and_removed(page: Any, tmp_path: Path) -> None:
    page.fill("#text", TEXT)
    page.locator("#strength").fill("0.4")
    settled(page)
    page.click("#keep")
    with page.expect_download() as download:
        page.click("text=Save numbers")
    download.value.save_as(tmp_path / "run.json")
    run = json.loads((tmp_path / "run.json").read_text("utf-8"))
    assert run["settings"]["text"] == TEXT and len(run["read"]["map"]["values"]) == 4
    assert run["go_on"]["strength"] == 0.4
    page.fill("#text", "something else")
    page.locator("#strength").fill("-2")
    settled(page)
    page.click("text=Show again")
    settled(page)
    assert shown(page, "#tokens") == TEXT and "λ = +0.4" in shown(page, "#attention")
    page.click("text=Remove")
    assert page.locator("#kept li").count() == 0
    expect(page.locator("#kept-caption")).to_be_visible()
