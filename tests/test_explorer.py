"""The explorer's server: whom it answers, what it answers, and that nothing is left behind, whatever was asked."""

import asyncio
import base64
import hashlib
import html
import json
import logging
import os
import re
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock
from urllib.parse import unquote, urlsplit

import httpx
import numpy as np
import pytest
import small_probes
import torch
from planted_probes import NAMES

pytest.importorskip("fastapi", reason="the explorer needs emoprobe[explore]")
from fastapi.testclient import TestClient

from emoprobe import explorer
from emoprobe.errors import InputError
from emoprobe.explorer import launch, readings, server
from emoprobe.explorer.readings import Subject
from emoprobe.models import LiveModel
from emoprobe.probes import ProbeSet, difference_map, heat_map, trace
from emoprobe.probes.summary import two
from emoprobe.steering import steer
from emoprobe.study.claims.word_classes import word_places
from emoprobe.valattn import Valuation, inject

TOKEN = "a-token-that-nobody-guesses"
TEXT = "She was happy, but the dog had run away."
HOSTILE = (
    "<script>alert(1)</script> \"quoted\" 'it' 👩‍👧 é مرحبا بالعالم שלום \u202eturned\u202c &amp; {{7*7}}"
)


@pytest.fixture
def subject(model: LiveModel, probes: ProbeSet) -> Subject:
    return Subject.of(model, probes)


@pytest.fixture
def client(subject: Subject) -> Iterator[TestClient]:
    app = server.application(subject, TOKEN)
    with TestClient(
        app, base_url="http://127.0.0.1:8000", headers={"origin": "http://127.0.0.1:8000"}
    ) as asked:
        yield asked


def question(**changed: Any) -> dict[str, Any]:
    return {"text": TEXT, "concept": "calm", "kind": "z", **changed}


def asked(client: TestClient, what: str, **question: Any) -> dict[str, Any]:
    reply = client.post(f"/{TOKEN}/{what}", json=question)
    assert reply.status_code == 200, reply.text
    return parts(reply.text)[-1]


def parts(lines: str) -> list[dict[str, Any]]:
    """Return an answer as far as there was one each time, the whole of it last."""
    return [json.loads(line) for line in lines.split("\n")]


# Whom it answers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/about", f"/{TOKEN[:-1]}/", f"/{TOKEN}x/", f"//{TOKEN}/", "/ü/"])
def test_without_the_token_there_is_nothing(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 403
    assert client.post(path, json=question()).status_code == 403
    assert client.get(f"/{TOKEN}/").status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "0.0.0.0:8000"]
)
def test_a_name_that_was_bent_to_this_machine_is_refused(client: TestClient, host: str) -> None:
    assert client.get(f"/{TOKEN}/about", headers={"host": host}).status_code == 403
    assert client.get(f"/{TOKEN}/about", headers={"host": "localhost:9999"}).status_code == 200  # a tunnel


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:8001", "https://127.0.0.1:8000", ""]
)
def test_questions_come_from_the_page_alone(client: TestClient, origin: str) -> None:
    reply = client.post(f"/{TOKEN}/read", json=question(), headers={"origin": origin})
    assert reply.status_code == 403
    del client.headers["origin"]
    assert client.post(f"/{TOKEN}/read", json=question()).status_code == 403


def test_a_form_of_another_page_cannot_ask(client: TestClient) -> None:
    reply = client.post(f"/{TOKEN}/read", content=b"{}", headers={"content-type": "text/plain"})
    assert reply.status_code == 415


def test_the_page_needs_nothing_else_and_may_do_nothing_else(client: TestClient) -> None:
    reply = client.get(f"/{TOKEN}/")
    style, script = (
        base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        for source in re.findall(r"<(?:style|script)>(.*?)</(?:style|script)>", reply.text, re.DOTALL)
    )
    assert reply.headers["content-security-policy"] == (
        f"default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    assert "src=" not in reply.text and "@import" not in reply.text and "url(" not in reply.text
    for hidden in ("docs", "redoc", "openapi.json"):
        assert client.get(f"/{TOKEN}/{hidden}").status_code == 404


@pytest.mark.parametrize(("path", "status"), [(f"/{TOKEN}/", 200), (f"/{TOKEN}/more", 404), ("/", 403)])
def test_every_reply_says_what_a_browser_may_do_with_it(client: TestClient, path: str, status: int) -> None:
    reply = client.get(path)
    found = dict(reply.headers)
    for own in ("content-length", "content-type", "content-security-policy"):  # the last has its own test
        assert found.pop(own)
    assert reply.status_code == status and found == {
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "cache-control": "no-store",
    }


# What it takes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "changed", "status"),
    [
        ("read", {"text": ""}, 422),
        ("read", {"text": "   \n"}, 400),
        ("read", {"text": "a" * (server.CHARACTERS + 1)}, 422),
        ("read", {"text": "a" * (server.BODY + 1)}, 413),
        ("read", {"text": ["a"]}, 422),
        ("read", {"concept": "envy"}, 400),
        ("read", {"kind": "dots"}, 400),
        ("read", {"more": 1}, 422),
        ("compare", {}, 422),
        ("compare", {"other": " "}, 400),
    ],
)
def test_what_cannot_be_answered_is_refused_in_a_sentence(
    client: TestClient, what: str, changed: dict[str, Any], status: int
) -> None:
    reply = client.post(f"/{TOKEN}/{what}", json=question(**changed))
    assert reply.status_code == status
    sentence = reply.json()["error"]
    assert 10 < len(sentence) < 300 and "\n" not in sentence and "Traceback" not in sentence


@pytest.mark.parametrize(
    ("what", "changed"),
    [
        ("attend", {"layer": 1, "head": 99, "strength": 1}),
        ("attend", {"layer": 1, "head": -1, "strength": 1}),
        ("attend", {"layer": 1, "head": None, "strength": 1e9}),
        ("continue", {"new_tokens": server.NEW_TOKENS + 1}),
        ("continue", {"steering": 1e9}),
        ("continue", {"layer": 77}),
    ],
)
def test_numbers_out_of_range_are_refused(client: TestClient, what: str, changed: dict[str, Any]) -> None:
    usual = {"concept": "calm", "layer": 1, "strength": 0.5, "steering": 0.1, "new_tokens": 3}
    asked_for = {"text": TEXT, **(changed if what == "attend" else usual | changed)}
    assert client.post(f"/{TOKEN}/{what}", json=asked_for).status_code in (400, 422)


@pytest.mark.parametrize(
    "body", [b'{"text": "\\ud800", "concept": "calm", "kind": "z"}', b"{", b"\xff", b"[]", b"null"]
)
def test_bodies_that_are_no_question_are_refused(client: TestClient, body: bytes) -> None:
    reply = client.post(f"/{TOKEN}/read", content=body, headers={"content-type": "application/json"})
    assert reply.status_code in (400, 422)
    assert set(reply.json()) == {"error"}


def test_not_a_number_is_no_strength(client: TestClient) -> None:
    body = b'{"text": "a b", "layer": 0, "head": null, "strength": NaN}'
    reply = client.post(f"/{TOKEN}/attend", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 422


def test_a_question_of_unknown_length_is_refused(client: TestClient) -> None:
    reply = client.post(f"/{TOKEN}/read", content=iter([b"{}"]), headers={"content-type": "application/json"})
    assert reply.status_code == 411

    request = client.build_request("POST", f"/{TOKEN}/read", json=question())
    del request.headers["content-length"]
    assert client.send(request).status_code == 411


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("coding", ["chunked", "gzip, chunked", "identity"])
def test_a_question_in_pieces_is_refused_whatever_length_it_gives(
    client: TestClient, method: str, coding: str
) -> None:
    request = client.build_request(
        method, f"/{TOKEN}/{'about' if method == 'GET' else 'read'}", json=question()
    )
    request.headers["Transfer-Encoding"] = coding
    assert "content-length" in request.headers
    assert client.send(request).status_code == 411


def test_no_more_questions_are_taken_than_a_person_has(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(server.time, "monotonic", lambda: clock[0])
    turn = Turns(server.Turn())
    assert turn.asked(server.BURST + 1) == [200] * server.BURST + [429]
    clock[0] += 2 / server.RATE
    assert turn.asked(3) == [200, 200, 429]


def test_the_model_answers_one_question_at_a_time_and_few_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "WAITING", 3)
    turn = Turns(server.Turn())
    assert turn.asked(5, at_once=True) == [200, 200, 200, 429, 429]
    assert turn.most_at_once == 1 and turn.computed == 3
    assert turn.asked(3, at_once=True) == [200] * 3  # there is room again


def test_a_question_that_nobody_waits_for_is_not_computed() -> None:
    turn = Turns(server.Turn())
    assert turn.asked(1, gone=True) == [204] and turn.computed == 0
    assert turn.asked(1) == [200]


def test_what_fails_halfway_is_told_last() -> None:
    def compute(tell: readings.Tell) -> dict[str, Any]:
        tell({"written": "so far"})
        raise InputError("nothing goes on from here")

    async def all_of_it(compute: Callable[[readings.Tell], dict[str, Any]]) -> tuple[int, list[bytes]]:
        reply = await server.Turn().stream(present(), compute)
        return reply.status_code, [part async for part in getattr(reply, "body_iterator", ())]

    assert asyncio.run(all_of_it(compute)) == (
        200,
        [b'{"written": "so far"}\n', b'{"error":"nothing goes on from here."}'],
    )

    async def refused() -> int:
        return (await server.Turn().stream(present(), lambda tell: {}["missing"])).status_code

    assert asyncio.run(refused()) == 500


def test_a_continuation_that_nobody_waits_for_ends(
    model: LiveModel, probes: ProbeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    ended = threading.Event()

    def slow(subject: Subject, tell: readings.Tell, **asked: Any) -> dict[str, Any]:
        with steer(subject.model, subject.probes["calm"], 0.1):
            try:
                for number in range(1000):
                    tell({"written": number})
                    told.append("part")
                    time.sleep(0.01)
            except InputError:
                ended.set()
                raise
        return {}

    monkeypatch.setattr(readings, "go_on", slow)
    before = model.logits(TEXT)
    chosen = {"concept": "calm", "layer": 1, "strength": 0.5, "steering": 0.1, "new_tokens": 3}
    with launch.explore(model, probes, browser=False, wait=False) as running:
        place = urlsplit(running.address)
        origin = {"origin": f"http://{place.netloc}"}
        with httpx.Client(base_url=running.address, headers=origin) as browser:
            with browser.stream("POST", "continue", json={"text": TEXT, **chosen}) as reply:
                assert json.loads(next(reply.iter_lines())) == {"written": 0}
            assert ended.wait(5) and len(told) < 900
            assert browser.post("read", json=question()).status_code == 200  # the model is free again
    assert torch.equal(model.logits(TEXT), before) and not model.interventions


def present() -> Any:
    """Return the request of somebody who waits."""
    return SimpleNamespace(is_disconnected=AsyncMock(return_value=False))


class Turns:
    """Ask through a `Turn`, and count how many answers are computed, and how many at once."""

    def __init__(self, turn: server.Turn) -> None:
        self.turn, self.loop = turn, asyncio.new_event_loop()
        self.computed = self.now = self.most_at_once = 0

    def asked(self, count: int, *, at_once: bool = False, gone: bool = False) -> list[int]:
        """Return the status of each of `count` questions."""
        request: Any = SimpleNamespace(is_disconnected=AsyncMock(return_value=gone))

        async def all_of_them() -> list[int]:
            questions = [self.turn.answer(request, self._compute) for _ in range(count)]
            replies = await asyncio.gather(*questions) if at_once else [await one for one in questions]
            return [reply.status_code for reply in replies]

        return self.loop.run_until_complete(all_of_them())

    def _compute(self) -> dict[str, Any]:
        self.computed, self.now = self.computed + 1, self.now + 1
        self.most_at_once = max(self.most_at_once, self.now)
        time.sleep(0.001)
        self.now -= 1
        return {}


# What it answers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["read_out", "z", "cosine"])
def test_readings_are_those_of_a_trace(
    client: TestClient, model: LiveModel, probes: ProbeSet, kind: str
) -> None:
    found = asked(client, "read", **question(kind=kind))
    frame = trace(model, probes, TEXT, concepts=["calm"], layers="all", kind=kind).frame
    direct = frame.pivot(index="layer", columns="position", values="value")
    assert found["map"]["rows"] == direct.index.tolist()
    np.testing.assert_allclose(np.array(found["map"]["values"], float), direct.to_numpy(), rtol=1e-12)


@pytest.mark.parametrize("kind", ["read_out", "z"])
def test_a_maps_colours_are_those_of_the_heat_map(kind: str) -> None:
    """Of fitted probes, whose values have a centre that is not zero."""
    model, fitted = small_probes.model(), small_probes.probes()
    found = readings.read(Subject.of(model, fitted), TEXT, "planted", kind)["map"]["styles"]
    shown = heat_map(model, fitted, TEXT, "planted", kind=kind)
    assert kind == "z" or any(shown.trace.centres.values())
    rows = [re.findall('<td style="(.*?)">', row) for row in shown._repr_html_().split("<tr>")[1:]]
    assert found == [row for row in rows if row][::-1]  # a table has its deepest layer on top
    assert len({style for row in found for style in row}) > 10


def test_token_colours_are_those_of_a_trace(client: TestClient, model: LiveModel, probes: ProbeSet) -> None:
    found = asked(client, "read", **question())
    shown = trace(model, probes, TEXT, concepts=["calm"], layers=[2], kind="z")._repr_html_()
    for piece in found["pieces"]:
        if piece["text"]:
            assert f'style="{found["token_styles"][2][piece["token"]]}"' in shown


@pytest.mark.parametrize("text", [TEXT, HOSTILE, " \n a\t\n", "👍" * 30, "\u202e", "a" * 3000, HOSTILE * 40])
def test_the_pieces_are_the_text(client: TestClient, text: str) -> None:
    if not text.strip():
        pytest.skip("nothing to read")
    found = asked(client, "read", **question(text=text))
    assert "".join(piece["text"] for piece in found["pieces"]) == text
    tokens = len(found["map"]["columns"])
    assert tokens <= 512 and all((p["token"] or 0) < tokens for p in found["pieces"])


def test_a_character_of_several_tokens_has_the_colour_of_the_last(
    client: TestClient, model: LiveModel
) -> None:
    batch = model.tokenize("a👍b")
    assert batch.offsets is not None
    bytes_of = [token for token, span in enumerate(batch.offsets[0]) if span == (1, 2)]
    assert len(bytes_of) > 1
    found = asked(client, "read", **question(text="a👍b"))["pieces"]
    assert [piece["text"] for piece in found] == ["", "a", "👍", "b"]  # the first is the start token
    assert found[2]["token"] == bytes_of[-1]


def test_a_long_text_is_read_as_far_as_the_model_reads_and_says_so(
    client: TestClient, model: LiveModel
) -> None:
    text = "The sun came up and the dog had run away. " * 1500  # more than 10,000 tokens
    found = asked(client, "read", **question(text=text))
    assert len(found["map"]["columns"]) == model.context_length
    assert "512 tokens" in found["notice"] and found["pieces"][-1]["token"] is None
    assert asked(client, "compare", **question(text=text, other=text[2:]))["notice"]
    assert asked(client, "attend", text=text, layer=1, head=None, strength=1.0)["notice"]
    further = asked(
        client, "continue", text=text, concept="calm", layer=1, strength=0.5, steering=0.1, new_tokens=5
    )
    assert text.endswith(further["prompt"]) and further["notice"]


@pytest.mark.parametrize(
    "text", ["...", "👍", "word", "a" * server.CHARACTERS, " \n" * 100 + "a b", "\x00\x01 a"]
)
def test_odd_texts_are_read_too(client: TestClient, text: str) -> None:
    """No words, one, one that is very long, one that begins late, what is no character."""
    found = asked(client, "read", **question(text=text))
    assert 0 < len(found["map"]["columns"]) <= 512
    attention = asked(client, "attend", text=text, layer=3, head=0, strength=1.0)
    assert attention["block"] == 2 and (attention["words"] or "two words" in attention["notice"])
    assert asked(client, "compare", **question(text=text, other="She was happy."))["report"]
    chosen = {"concept": "calm", "layer": 3, "strength": 1.0, "steering": -0.1, "new_tokens": 2}
    assert text.endswith(asked(client, "continue", text=text, **chosen)["prompt"])


def test_differences_are_those_of_the_difference_map(
    client: TestClient, model: LiveModel, probes: ProbeSet
) -> None:
    other = TEXT.replace("happy", "afraid and sad")
    found = asked(client, "compare", **question(other=other))
    direct = difference_map(model, probes, TEXT, other, "calm", kind="z")
    np.testing.assert_allclose(
        np.array(found["map"]["values"], float), direct.matrix("calm").to_numpy(), rtol=1e-9
    )
    assert found["report"] == direct.report()
    assert any(None in row for row in found["map"]["values"])  # a gap is no number


@pytest.mark.parametrize("head", [None, 2])
def test_attention_and_magnitudes_are_the_models(
    client: TestClient, model: LiveModel, subject: Subject, head: int | None
) -> None:
    """By hand: sums over a word's tokens, means over its own; norms in quadrature."""
    found = asked(client, "attend", text=TEXT, layer=1, head=head, strength=0.7)
    assert found["words"] == [TEXT[a:b] for a, b in word_places(TEXT)]
    assert subject.valuation is not None
    batch = model.tokenize(TEXT)
    of_word = [
        [t for t, (a, b) in enumerate(batch.offsets[0]) if min(b, end) - max(a, start) > 0]  # type: ignore[index]
        for start, end in word_places(TEXT)
    ]
    attention, sizes = {}, {}
    for lam in (0.0, 0.7):
        with torch.no_grad(), inject(model, subject.valuation, lam):
            outputs, weights = model.attention(batch, [1])
        heads = weights[0, 0].mean(0) if head is None else weights[0, 0, head]
        attention[lam] = np.array(
            [
                [sum(float(heads[q, k]) for q in own for k in seen) / len(own) for seen in of_word]
                for own in of_word
            ]
        )
        sizes[lam] = np.array([float(outputs[0, 0, own].norm()) for own in of_word])
    shown = {name: np.array(found[name]["values"], float) for name in ("standard", "valued", "change")}
    np.testing.assert_allclose(shown["standard"], attention[0.0], atol=1e-12)
    np.testing.assert_allclose(shown["valued"], attention[0.7], atol=1e-12)
    np.testing.assert_allclose(shown["change"], attention[0.7] - attention[0.0], atol=1e-12)
    assert np.abs(shown["change"]).max() > 1e-6  # λ does something
    np.testing.assert_allclose(np.array(found["magnitudes"]).T, [sizes[0.0], sizes[0.7]], rtol=1e-12)
    shares = {lam: size / size.mean() for lam, size in sizes.items()}
    np.testing.assert_allclose(found["gains"], shares[0.7] / shares[0.0] - 1, atol=1e-12)
    assert np.abs(found["gains"]).max() > 1e-6
    still = asked(client, "attend", text=TEXT, layer=1, head=head, strength=0)
    assert still["standard"] == still["valued"] and set(still["gains"]) == {0.0}


def test_continuations_are_the_models(client: TestClient, model: LiveModel, probes: ProbeSet) -> None:
    chosen = {"concept": "valence", "layer": 2, "strength": 1.5, "steering": 0.4, "new_tokens": 12}
    found = asked(client, "continue", text=TEXT, **chosen)
    assert found["untouched"] == model.generate(TEXT, max_new_tokens=12, do_sample=False)
    valuation = Valuation.from_probes(probes, ["valence"])
    with inject(model, valuation, 1.5), steer(model, probes["valence"], 0.4, layers=2):
        assert found["changed"] == model.generate(TEXT, max_new_tokens=12, do_sample=False)
    assert found["changed"] != found["untouched"]
    same = asked(client, "continue", text=TEXT, **(chosen | {"strength": 0, "steering": 0}))
    assert same["changed"] == same["untouched"] == found["untouched"]


def test_a_continuation_is_told_token_by_token(client: TestClient, model: LiveModel) -> None:
    chosen = {"concept": "valence", "layer": 2, "strength": 1.5, "steering": 0.4, "new_tokens": 9}
    reply = client.post(f"/{TOKEN}/continue", json={"text": TEXT, **chosen})
    *begun, whole = parts(reply.text)
    assert (
        reply.headers["content-type"] == "application/x-ndjson"
        and reply.headers["cache-control"] == "no-store"
    )
    so_far = [model.generate(TEXT, max_new_tokens=count, do_sample=False) for count in range(1, 10)]
    assert [part["untouched"] for part in begun[:9]] == [str(text).rstrip("\ufffd") for text in so_far]
    assert len(begun) == 18 and {part["untouched"] for part in begun[9:]} == {so_far[-1]}
    assert len({part["changed"] for part in begun[9:]}) > 2
    assert all(part["writing"] and part["changed"] == "" for part in begun[:9]) and not whole["writing"]
    assert {**begun[-1], "writing": False} == whole
    again = parts(client.post(f"/{TOKEN}/continue", json={"text": TEXT, **chosen}).text)
    assert again == [*begun[9:], whole]  # what is written without any intervention is known
    plain = parts(
        client.post(f"/{TOKEN}/continue", json={"text": "The", **chosen, "strength": 0, "steering": 0}).text
    )
    assert len(plain) == 10 and all(part["changed"] == part["untouched"] for part in plain)


def test_what_is_kept_of_a_continuation_is_as_long_as_was_asked(client: TestClient, model: LiveModel) -> None:
    chosen = {"concept": "valence", "layer": 2, "strength": 0, "steering": 0}
    for count in (3, 8):
        found = asked(client, "continue", text=TEXT, **chosen, new_tokens=count)["untouched"]
        assert found == model.generate(TEXT, max_new_tokens=count, do_sample=False)


def test_what_probes_are_worth_is_said() -> None:
    fitted = small_probes.probes()
    found = readings.about(Subject.of(small_probes.model(), fitted))["concepts"]
    worth = {concept["name"]: concept["worth"] for concept in found}
    best = fitted.scores[fitted.scores.concept == "planted"].sort_values("value").iloc[-1]
    assert (
        f"Pearson r {two(best.value)} [" in worth["planted"] and f"at layer {best.layer}" in worth["planted"]
    )
    assert "Not supported: not shown to be above shuffled annotations" in worth["noise"]


def test_what_probes_are_called_is_said_as_it_is(client: TestClient) -> None:
    found = client.get(f"/{TOKEN}/about").json()
    assert [concept["name"] for concept in found["concepts"]] == list(NAMES)
    assert NAMES[2] not in client.get(f"/{TOKEN}/").text


# What stays -----------------------------------------------------------------------------------------------------------


def test_a_question_that_fails_leaves_the_model_as_it_was(
    client: TestClient, model: LiveModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = model.logits(TEXT)
    seen = []

    def fails(*_: Any, **__: Any) -> Any:
        seen.append(len(model.interventions))
        if model.interventions:
            raise RuntimeError(f"no room for {TEXT}")
        return ""

    monkeypatch.setattr(model, "generate", fails)
    chosen = {"concept": "calm", "layer": 1, "strength": 0.5, "steering": 0.1, "new_tokens": 3}
    with caplog.at_level(logging.DEBUG):
        reply = client.post(f"/{TOKEN}/continue", json={"text": TEXT, **chosen})
    assert reply.status_code == 500 and "RuntimeError" in reply.json()["error"]
    assert seen[0] == 0 and seen[1] > 1
    assert TEXT not in reply.text and TEXT not in caplog.text and "RuntimeError" in caplog.text
    assert torch.equal(model.logits(TEXT), before) and not model.interventions
    asked(client, "read", **question())


def test_a_running_explorer_is_on_this_machine_alone_and_ends(
    model: LiveModel,
    probes: ProbeSet,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    import httpx

    with (
        explorer.explore(model, probes, browser=False, wait=False) as running,
        caplog.at_level(logging.DEBUG, logger="uvicorn.access"),
    ):
        address = running.address
        assert address.startswith("http://127.0.0.1:") and len(address.split("/")[3]) >= 32
        origin = {"origin": address.rsplit("/", 2)[0]}
        reply = httpx.post(f"{address}read", json=question(text="unmentionable"), headers=origin)
        assert reply.status_code == 200
        assert httpx.get(address.replace(address.split("/")[3], "x")).status_code == 403
        port = int(address.split(":")[2].split("/")[0])
        with pytest.raises(InputError, match="port"):
            explorer.explore(model, probes, port=port, browser=False, wait=False)
    with pytest.raises(httpx.ConnectError):
        httpx.get(address)
    written = capfd.readouterr()
    assert written.err == f"emoprobe: the explorer is at {address}\n" and not written.out + caplog.text


def test_the_port_is_open_to_this_machine_alone() -> None:
    with launch._bound(0) as place:
        assert place.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize("line", ["OPTIONS *", "GET foo", "GET *", "POST foo", "GET http://127.0.0.1"])
def test_a_path_that_is_none_is_refused_as_any_other(model: LiveModel, probes: ProbeSet, line: str) -> None:
    with explorer.explore(model, probes, browser=False, wait=False) as running:
        place = urlsplit(running.address)
        with socket.create_connection((place.hostname, place.port), timeout=10) as asking:
            asking.sendall(f"{line} HTTP/1.1\r\nHost: {place.netloc}\r\nConnection: close\r\n\r\n".encode())
            reply = b"".join(iter(lambda: asking.recv(4096), b"")).decode()
    assert reply.startswith("HTTP/1.1 403 ") and "content-security-policy: default-src 'none'" in reply


def test_a_browser_is_started_with_a_file_for_this_user_alone_and_not_with_the_token(
    model: LiveModel, probes: ProbeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(launch.webbrowser, "open", opened.append)
    monkeypatch.setattr(launch.secrets, "token_urlsafe", lambda _: 'token"&<b>')
    with explorer.explore(model, probes, wait=False) as running:
        (uri,) = opened
        assert uri.startswith("file:///") and "token" not in unquote(uri)
        page = Path(urlsplit(uri).path)
        assert stat.S_IMODE(page.stat().st_mode) == 0o600
        assert stat.S_IMODE(page.parent.stat().st_mode) == 0o700
        (target,) = re.findall(r'<meta http-equiv="refresh" content="0; url=([^"]*)">', page.read_text())
        assert html.unescape(target) == running.address and not re.search('[<>"]', target)
    assert not page.parent.exists()


def test_an_explorer_that_is_interrupted_ends(
    model: LiveModel, probes: ProbeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx

    opened: list[str] = []

    def interrupted(running: explorer.Explorer) -> None:
        assert httpx.get(running.address).status_code == 200
        raise KeyboardInterrupt

    monkeypatch.setattr(launch.webbrowser, "open", opened.append)
    monkeypatch.setattr(explorer.Explorer, "wait", interrupted)
    running = explorer.explore(model, probes)
    assert len(opened) == 1
    with pytest.raises(httpx.ConnectError):
        httpx.get(running.address)


def test_probes_that_are_missing_are_fitted_once_and_kept(
    model: LiveModel, probes: ProbeSet, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fitted = []
    monkeypatch.setattr(launch, "fit_probes", lambda *_: fitted.append(1) or probes)
    for _ in range(2):
        assert launch.bundled_probes(model).concepts == probes.concepts
    assert len(fitted) == 1 and "fitting probes" in capsys.readouterr().err
    (kept,) = (tmp_path / "emoprobe" / "probes").iterdir()
    kept.write_bytes(b"damaged")
    launch.bundled_probes(model)
    assert len(fitted) == 2


def test_a_missing_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['fastapi'] = None\n"
        "import emoprobe as ep\n"
        "try: ep.explore('bundled')\n"
        "except ep.InputError as error: print(error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ}
    )
    assert "fastapi" in run.stdout and 'pip install "emoprobe[explore]"' in run.stdout
