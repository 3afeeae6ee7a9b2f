"""Stories: what is asked for, what gives an emotion away, how replies are read, and that nothing written is lost."""

import json
import random
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tiny import tiny_model

from emoprobe.corpora import load_corpus
from emoprobe.corpora.stories import EndpointWriter, ModelWriter, write_stories
from emoprobe.corpora.stories.diversity import Duplicates, diversity
from emoprobe.corpora.stories.leaks import covered, leaks, names_any
from emoprobe.corpora.stories.prompts import KINDS, Request, requests, topics
from emoprobe.corpora.stories.turns import Said, scenario, texts, turns
from emoprobe.corpora.stories.writing import clean
from emoprobe.errors import InputError

WORDS = "lamp river stone glove window chair bread road cloud paper engine button garden coat letter".split()


def filler(number: int, count: int = 40) -> str:
    """Return words in an order that no other number gives."""
    return " ".join(random.Random(number).choices(WORDS, k=count))


class Scripted:
    """A writer that says what it is told to, and notes what it was asked."""

    name = "scripted"

    def __init__(self, reply: Any = None, stop_after: int | None = None) -> None:
        self.reply = reply or (lambda request, place: filler(hash_of(request)))
        self.asked: list[Request] = []
        self.seeds: list[int] = []
        self.stop_after = stop_after

    def __call__(self, requests: Sequence[Request], seed: int) -> list[str]:
        if self.stop_after is not None and len(self.seeds) >= self.stop_after:
            raise KeyboardInterrupt
        self.seeds.append(seed)
        self.asked += requests
        return [self.reply(request, place) for place, request in enumerate(requests)]


def hash_of(request: Request) -> int:
    return sum(ord(c) * (i + 1) for i, c in enumerate(request.key))


# Leaks ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "emotion", "found"),
    [
        ("She was ANGRY, and her anger grew.", "angry", ["ANGRY", "anger"]),
        ("He raged and stormed.", "furious", ["raged"]),
        ("The fire was hungry.", "angry", []),
        ("A ragged coat, a garage, a page.", "angry", []),
        ("He was worn-out and weary.", "tired", ["worn-out", "weary"]),
        ("She felt at\nease.", "calm", ["at\nease"]),
        ("He was flabbergasted.", "flabbergasted", ["flabbergasted"]),
        ("He was wistfully silent.", "wistful", ["wistfully"]),
        ("Please sit down, it is pleasant here.", "happy", []),
        ("They laughed until they cried.", "happy", []),
    ],
)
def test_the_word_its_forms_and_its_synonyms_leak_and_nothing_else(
    text: str, emotion: str, found: list[str]
) -> None:
    assert leaks(text, emotion) == found


def test_neutral_texts_may_say_thanks_and_content_but_name_no_feeling() -> None:
    assert names_any("Thanks. What kind of web content is it? Alert the patient team, they are stuck.") == []
    assert names_any("I am delighted, if a little anxious.") == ["delighted", "anxious"]


def test_every_published_emotion_word_has_a_family(shared: Path) -> None:
    words = json.loads((shared / "reference" / "emotion_concepts.json").read_text())["words"]
    assert len(words) == 171 and set(words) <= covered()
    for word in words:
        assert leaks(f"They were {word} that day.", word), word


# Replies -------------------------------------------------------------------------------------------------------------


def test_texts_of_a_reply_are_parted_and_freed_of_what_nobody_asked_for() -> None:
    reply = "Here are two stories:\nStory 1:\nThe door shut.\nHe waited.\n###\n**Title**\nRain fell."
    reply += "\n\n(Note: no feeling is named.)\nMore."
    assert texts(reply) == ["The door shut.\nHe waited.", "Rain fell."]
    assert texts("  \n###\n ") == []


def test_turns_end_where_the_dialogue_ends() -> None:
    text = (
        "Scenario: Ann lost the race and is sad.\n\nperson a: Did you close the gate?\nPerson B: I did,\nand the shed too.\n"
        "**Person A:** Good.\nPerson A: Then let us go.\n\nNote: Person A is sad throughout."
    )
    assert scenario(text) == "Ann lost the race and is sad."
    assert turns(text, ("Person A", "Person B")) == [
        Said("Person A", "Did you close the gate?"),
        Said("Person B", "I did, and the shed too."),
        Said("Person A", "Good. Then let us go."),
    ]
    assert turns("AI: One.\n\nThis is a remark.\nPerson: Two.", ("Person", "AI")) == [Said("AI", "One.")]
    assert turns("No dialogue at all", ("Person", "AI")) == []


def test_near_duplicates_are_found_whatever_their_case_and_endings() -> None:
    seen = Duplicates()
    first, second = filler(1, 60), filler(2, 60)
    assert seen.of(first) is None and seen.of(second) is None
    assert seen.of(first.upper() + " and one more word") == 0
    assert seen.of(" ".join(second.split()[:45])) == 1
    assert seen.of(" ".join(first.split()[:20]) + " " + filler(5, 60)) is None
    assert seen.of("a b") is None and seen.of("A B!") == 3


def test_diversity_counts_names_and_openings() -> None:
    found = diversity(
        ["Then Elias came home.", "At last Elias left for good.", "Then Elias came back, and Mary saw."]
    )
    assert (found["name"], found["name_share"], found["texts"]) == ("Elias", 1.0, 3)
    assert found["openings"] == pytest.approx(1 / 3)
    assert diversity([])["name_share"] == 0


# Writing -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_requests_are_complete_and_distinct_and_name_what_they_ask_for(kind: str) -> None:
    emotions = ("sad", "proud", "calm")
    listed = requests(kind, emotions, topics()[:4], 5, 2)
    pairs = {"stories": 3, "neutral": 1, "dialogues": 6, "deflection": 6}[kind]
    assert len(listed) == 4 * pairs * 3 and len({request.key for request in listed}) == len(listed)
    assert sum(request.texts for request in listed) == 4 * pairs * 5
    for request in listed:
        said = request.instruction()
        assert request.topic in said and all(emotion in said for emotion in request.emotions)
        assert request.beginning().endswith(request.opening())


def test_requests_refuse_what_makes_no_sense() -> None:
    for kind, emotions, about in (
        ("poems", ("sad",), ("a",)),
        ("stories", (), ("a",)),
        ("dialogues", ("sad",), ("a",)),
    ):
        with pytest.raises(InputError):
            requests(kind, emotions, about, 1, 1)
    with pytest.raises(InputError, match="no topic"):
        requests("neutral", (), (), 1, 1)
    with pytest.raises(InputError, match="per_topic=0"):
        requests("neutral", (), ("a",), 0, 1)


def test_clean_texts_become_a_corpus_and_the_others_say_why_not(tmp_path: Path) -> None:
    def reply(request: Request, place: int) -> str:
        if request.topic == "a lost suitcase":
            return f"He was so {request.emotions[0]}ly gone. " + filler(hash_of(request))
        if request.topic == "the night shift in a bakery":
            return filler(4)  # the same for all emotions
        return "Too short." if request.topic == "a broken boiler" else filler(hash_of(request))

    about = ["a lost suitcase", "the night shift in a bakery", "a broken boiler", "the village fair"]
    written = write_stories(
        Scripted(reply),
        tmp_path / "s.jsonl",
        emotions=["sad", "proud"],
        about=about,
        per_topic=1,
        progress=False,
    )
    status = {(row.emotions, row.topic): row.status for row in written.frame.itertuples()}
    assert status["sad", "a lost suitcase"] == "names its emotion"
    assert status["proud", "the night shift in a bakery"] == "duplicate"
    assert status["sad", "a broken boiler"] == "too short"
    assert [value for value in status.values()].count("kept") == 3
    corpus = load_corpus(tmp_path / "s.jsonl")
    assert corpus.texts == written.corpus.texts == written.kept.text.tolist()
    assert set(corpus.groups) == {"the night shift in a bakery", "the village fair"}
    assert set(corpus.labels) == {"sad", "proud"} and set(corpus.data["source"]) == {"scripted"}
    report = written.report().set_index("emotions")
    assert report.loc["sad", "kept"] == 2 and report.loc["proud", "duplicate"] == 1


def test_a_run_that_was_stopped_goes_on_and_ends_as_one_that_was_not(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "emotions": ["sad", "proud"],
        "about": list(topics()[:5]),
        "per_topic": 2,
        "batch_size": 4,
        "progress": False,
    }
    whole = Scripted()
    complete = write_stories(whole, tmp_path / "whole.jsonl", **options)
    with pytest.raises(KeyboardInterrupt):
        write_stories(Scripted(stop_after=2), tmp_path / "part.jsonl", **options)
    assert len(load_corpus(tmp_path / "part.jsonl")) == 8  # what was written is there already
    log = tmp_path / "part.log.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    for kept, batches in (
        (8, 2),
        (7, 1),
        (5, 1),
        (4, 1),
    ):  # of a batch of which lines are missing all is written again
        # As a machine leaves it that loses its power.
        log.write_text("".join(lines[:kept]) + '{"key": "half a li')
        rest = Scripted()
        resumed = write_stories(rest, tmp_path / "part.jsonl", **options)
        assert [request.key for request in rest.asked] == [
            request.key for request in whole.asked[4 * batches :]
        ]
        assert rest.seeds == whole.seeds[batches:]
        assert resumed.frame.equals(complete.frame)
    again = Scripted()
    assert (
        write_stories(again, tmp_path / "part.jsonl", **options).frame.equals(complete.frame)
        and not again.asked
    )
    with pytest.raises(InputError, match="written by scripted with seed 0"):
        write_stories(Scripted(), tmp_path / "part.jsonl", **options, seed=1)


def test_two_do_not_write_to_one_log_at_once(tmp_path: Path) -> None:
    options: dict[str, Any] = {"emotions": ["sad"], "about": ["the sea"], "per_topic": 3, "progress": False}

    def meanwhile(request: Request, place: int) -> str:
        with pytest.raises(InputError, match=r'another process is writing to ".*s\.log\.jsonl"'):
            write_stories(Scripted(), tmp_path / "s.jsonl", **options)
        return filler(hash_of(request))

    written = write_stories(Scripted(meanwhile), tmp_path / "s.jsonl", **options)
    assert len(written.frame) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.jsonl", "s.log.jsonl"]
    again = Scripted()
    assert (
        write_stories(again, tmp_path / "s.jsonl", **options).frame.equals(written.frame) and not again.asked
    )


def test_dialogues_and_hidden_emotions_keep_who_feels_what(tmp_path: Path) -> None:
    def reply(request: Request, place: int) -> str:
        before = "Scenario: it was sad.\n" if request.kind == "deflection" else ""
        who = ("Person", "AI") if request.kind == "neutral" else ("Person A", "Person B")
        return f"{before}{who[0]}: {filler(hash_of(request))}\n{who[1]}: {filler(hash_of(request) + 1)}\nNote: sad."

    for kind, felt in (
        ("dialogues", ["sad", "proud"]),
        ("deflection", ["sad", "sad"]),
        ("neutral", ["", ""]),
    ):
        out = tmp_path / f"{kind}.jsonl"
        written = write_stories(
            Scripted(reply),
            out,
            kind=kind,
            emotions=["sad", "proud"],
            about=["the sale of a boat"],
            progress=False,
        )
        first = json.loads(out.read_text().splitlines()[0])
        assert [turn[2] for turn in first["turns"]] == felt and "Note" not in first["text"]
        assert first["scenario"] == ("it was sad." if kind == "deflection" else "")
        assert first["labels"] == (["sad"] if kind == "deflection" else [])
        assert set(written.frame.status) == {"kept"}
    assert clean([]).empty


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.jsonl"):
        write_stories(Scripted(), tmp_path / "s.csv", emotions=["sad"], progress=False)
    (tmp_path / "s.log.jsonl").write_text('{"no": "entry"}\n')
    with pytest.raises(InputError, match="line 1: no entry"):
        write_stories(Scripted(), tmp_path / "s.jsonl", emotions=["sad"], progress=False)
    with pytest.raises(InputError, match=r"cannot write to .*s\.jsonl"):
        write_stories(
            Scripted(), tmp_path / "s.log.jsonl" / "s.jsonl", emotions=["sad"], about=["a"], progress=False
        )
    write_stories(Scripted(), tmp_path / "new" / "s.jsonl", emotions=["sad"], about=["a"], progress=False)
    assert (tmp_path / "new" / "s.jsonl").is_file(), "folders that are missing are made, as everywhere"


# Writers -------------------------------------------------------------------------------------------------------------


def test_a_live_model_writes_the_same_with_the_same_seed_and_leaves_the_generator_alone(
    tmp_path: Path,
) -> None:
    import torch

    writer = ModelWriter(tiny_model("gpt2"), max_new_tokens=20)
    asked = requests("dialogues", ("sad", "calm"), topics()[:1], 1, 1)
    state = torch.random.get_rng_state()
    first, second, other = writer(asked, 1), writer(asked, 1), writer(asked, 2)
    assert first == second != other and len(first) == 2
    assert all(reply.startswith("Person A:") for reply in first)
    assert torch.equal(state, torch.random.get_rng_state())
    assert "tiny-gpt2" in writer.name


class Endpoint(BaseHTTPRequestHandler):
    """Answers as an OpenAI-compatible server would, now and then not at all."""

    failures: ClassVar[int] = 0
    received: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if Endpoint.failures:
            Endpoint.failures -= 1
            self.send_error(500)
            return
        Endpoint.received.append({"path": self.path, "key": self.headers["Authorization"], **body})
        message = {"role": "assistant", "content": "Once there was a boat."}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        answer = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }
        payload = json.dumps({**answer, "system_fingerprint": ""}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    Endpoint.received.clear()
    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


def test_an_endpoint_is_asked_with_key_and_seed_and_asked_again(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    Endpoint.failures, waited = 2, list[float]()
    writer = EndpointWriter(address, "m", key="secret", sleep=waited.append)
    asked = requests("stories", ("sad",), topics()[:2], 1, 1)
    assert writer(asked, 5) == ["Once there was a boat."] * 2
    assert waited == [1.0, 2.0] and [call["seed"] for call in Endpoint.received] == [5, 6]
    assert (
        Endpoint.received[0]["path"] == "/v1/chat/completions"
        and Endpoint.received[0]["key"] == "Bearer secret"
    )
    assert Endpoint.received[0]["messages"][0]["content"] == asked[0].instruction()
    assert "secret" not in writer.name
    Endpoint.failures = 99
    with pytest.raises(InputError, match="does not answer"):
        EndpointWriter(address, "m", retries=1, sleep=waited.append)(asked, 0)
    Endpoint.failures = 0
