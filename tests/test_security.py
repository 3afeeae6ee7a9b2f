"""Nothing shipped runs code out of data, no token is written down, and no text leaves the machine unasked."""

import ast
import base64
import socket
import threading
from collections.abc import Iterator
from http.server import HTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from small_study import small_corpus, small_model
from test_stories import Endpoint
from tiny import tiny_model

import emoprobe as ep
from emoprobe.corpora.stories import EndpointWriter, ModelWriter, write_stories
from emoprobe.errors import InputError
from emoprobe.probes import fit_probes
from emoprobe.redaction import redacted
from emoprobe.steering.behaviours.sandbox import run_code
from emoprobe.study.result import Result
from emoprobe.study.run import begun

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = [
    file for folder in ("emoprobe", "probes", "steering", "valattn") for file in (ROOT / folder).rglob("*.py")
]
TOKEN, PASSWORD = "hf_" + "Zq8x" * 9, "correct-horse-battery"


# Code out of data ----------------------------------------------------------------------------------------------------


def unsafe(tree: ast.AST) -> Iterator[str]:
    """Yield what runs code that is given as data, or starts a shell."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names]
            )
            yield from (
                name
                for name in names
                if name.split(".")[0]
                in ("pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "subprocess")
            )
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if called in (
            "eval",
            "exec",
            "compile",
            "__import__",
            "os.system",
            "os.popen",
            "yaml.load",
            "tempfile.mktemp",
        ):
            yield called
        if called.startswith(("os.exec", "os.spawn")):
            yield called
        if called == "torch.load" and keywords.get("weights_only") != "True":
            yield "torch.load without weights_only"
        for word in ("shell", "trust_remote_code", "allow_pickle"):
            if keywords.get(word) == "True":
                yield f"{word}=True"


def test_what_is_shipped_runs_no_code_out_of_data() -> None:
    found = {
        (str(file.relative_to(ROOT)), what)
        for file in SHIPPED
        for what in unsafe(ast.parse(file.read_text("utf-8")))
    }
    # The sandbox starts this very Python, with limits; what it runs there is a string to this one.
    assert found == {("steering/behaviours/sandbox.py", "subprocess")}
    assert len(SHIPPED) > 150


@pytest.mark.parametrize(
    "code",
    "import pickle;from joblib import load;eval(x);f(shell=True);torch.load(p);os.system(x);a(trust_remote_code=True)".split(
        ";"
    ),
)
def test_the_search_finds_what_it_looks_for(code: str) -> None:
    assert list(unsafe(ast.parse(code)))


# Tokens --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, TOKEN)
    monkeypatch.setenv("JUDGE_PASSWORD", PASSWORD)


def holds_none(folder: Path, *texts: str) -> None:
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files
    for content in [*(file.read_bytes() for file in files), *(text.encode() for text in texts)]:
        assert TOKEN.encode() not in content and PASSWORD.encode() not in content


def test_a_study_writes_no_token_down(planted: None, tmp_path: Path) -> None:
    def steps(*_: Any) -> Iterator[tuple[str, Any]]:
        table = pd.DataFrame({"layer": [0], "value": [1.0]})
        yield "one", lambda: Result("one", "One", "Is it?", "So.", table, "1", "0", "Yes.")

    command = (
        f"emoprobe study m --corpus https://me:{PASSWORD}@host/c.csv --columns token={TOKEN} && x {TOKEN}"
    )
    options: dict[str, Any] = dict(limit=None, seed=0, resume=True, progress=False, command=command)
    study = begun(small_model(), small_corpus(), tmp_path / "run", steps, {}, **options)
    holds_none(tmp_path / "run", repr(study))
    assert "emoprobe study m --corpus https://host/c.csv" in study.manifest["command"]


@pytest.fixture
def address() -> Iterator[str]:
    Endpoint.received.clear()
    Endpoint.failures = 0
    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://me:{PASSWORD}@127.0.0.1:{server.server_port}/v1"
    server.shutdown()


def test_stories_write_no_token_down_and_send_none_of_the_hub(
    planted: None,
    address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    writer = EndpointWriter(address, "m", retries=0)
    options: dict[str, Any] = dict(emotions=["sad"], about=["the sea"], per_topic=1, progress=False)
    written = write_stories(writer, tmp_path / "s.jsonl", **options)
    assert len(Endpoint.received) == 1 and TOKEN not in str(Endpoint.received), (
        "a key that nobody gave was sent"
    )
    holds_none(tmp_path, repr(written), caplog.text, written.frame.to_string())
    Endpoint.failures = 99
    with pytest.raises(InputError) as raised:
        write_stories(EndpointWriter(address, "m", key=TOKEN, retries=0), tmp_path / "t.jsonl", **options)
    holds_none(tmp_path, str(raised.value))


def test_code_of_a_model_sees_no_token(planted: None) -> None:
    (found,) = run_code("import os", ["dict(os.environ)"]).returned
    assert TOKEN not in str(found) and "HF_TOKEN" not in found[0]


def test_redaction_takes_out_secrets_and_nothing_else(planted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORT_KEY", "fear")
    plain = (
        "emoprobe fit gpt2 key.csv --columns text=token,labels=key --ranges valence=1:9 -o fear.safetensors"
    )
    assert redacted(plain) == plain
    assert redacted(f"a {TOKEN} b") == "a $OPENAI_API_KEY b" or "$H" in redacted(f"a {TOKEN} b")
    assert redacted("x sk-" + "a" * 30) == "x [removed]"
    assert redacted("https://me:p@ss:w@rd@host/c.csv?to=me@x") == "https://host/c.csv?to=me@x"
    assert redacted("https://u:p@h/v1?api_key=abcdef&x=1") == "https://h/v1?api_key=[removed]&x=1"


NAMES = (
    "A_TOKEN MY_KEYS client_secret DB_PASSWORD DB_PASSWD GITHUB_PAT MYSQL_PWD SMTP_PWDS CLOUD_CREDENTIALS"
).split()


@pytest.mark.parametrize("name", NAMES)
def test_what_the_environment_holds_as_a_secret_is_taken_out_whole(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "12345678")
    monkeypatch.setenv(f"OTHER_{name}", "12345678-and-more")
    assert redacted("a 12345678-and-more b 12345678 c 1234567") == f"a $OTHER_{name} b ${name} c 1234567"


@pytest.mark.parametrize("name", ["PWD", "OLDPWD", "COMPAT", "PATH", "PATTERN"])
def test_what_only_ends_like_a_secret_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "/home/me/work")
    assert redacted("emoprobe study m --out /home/me/work/run") == "emoprobe study m --out /home/me/work/run"


@pytest.mark.parametrize(
    "start",
    "hf_ api_org_ sk- ghp_ gho_ ghu_ ghs_ ghr_ github_pat_ xoxa- xoxb- xoxp- xoxr- xoxs- AKIA AIza".split(),
)
def test_tokens_as_services_write_them_are_taken_out(start: str) -> None:
    assert redacted(f"x={start}{'a1' * 8}, or {start}short") == f"x=[removed], or {start}short"


@pytest.mark.parametrize("rest", [(b"{}", b"signed \xff\xfe"), (b"{}", b""), (b"", b"iv", b"told", b"tag")])
def test_json_web_tokens_are_taken_out(rest: tuple[bytes, ...]) -> None:
    """Signed, not signed and encrypted ones (RFC 7519, compact serialisation)."""
    parts = [b'{"alg":"none"}', *rest]
    token = ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)
    assert token.startswith("eyJ")
    assert redacted(f"a: Bearer {token}, eyJ.a.b") == "a: Bearer [removed], eyJ.a.b"


# Network -------------------------------------------------------------------------------------------------------------


def test_nothing_is_sent_anywhere_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the hub's client is not told to stay offline, as it is not for users."""
    tried: list[str] = []

    def refuse(*given: Any, **_: Any) -> None:
        tried.append(str(given[1:] if isinstance(given[0], socket.socket) else given))
        raise OSError("no network here")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    model = tiny_model("llama")
    model.underlying.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    live = ep.load_model(tmp_path / "model")
    probes = fit_probes(live, small_corpus(texts=30), [1, 2], permutations=2, bootstrap=0, progress=False)
    ep.trace(live, probes, "The sun came up.")
    with ep.steer(live, probes["valence"], 0.1, layers=1):
        live.generate("The sun", max_new_tokens=2)
    write_stories(
        ModelWriter(live, max_new_tokens=2),
        tmp_path / "s.jsonl",
        emotions=["sad"],
        about=["the sea"],
        per_topic=1,
    )
    assert not tried, f"tried to reach {tried[:3]}"
