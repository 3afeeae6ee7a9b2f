"""What is looked for by name: nearly one of the package's is refused at once, and a hub out of reach is not waited for."""

from pathlib import Path

import httpx
import pytest
from huggingface_hub import constants

from emoprobe import places
from emoprobe.corpora import load_corpus
from emoprobe.errors import InputError
from emoprobe.models import load_model


@pytest.mark.parametrize(
    ("name", "meant"), [("bundeld", "bundled"), ("ground_truth", "ground-truth"), ("Prose", "prose")]
)
def test_a_model_misspelt_is_asked_about(name: str, meant: str) -> None:
    with pytest.raises(InputError, match=f'no model "{name}": did you mean "{meant}"'):
        load_model(name)


@pytest.mark.parametrize(
    ("name", "meant"), [("emobnk", "emobank"), ("go-emotion", "go-emotions"), ("pasages", "passages")]
)
def test_a_corpus_misspelt_is_asked_about(name: str, meant: str) -> None:
    with pytest.raises(InputError, match=f'no corpus "{name}": did you mean "{meant}"'):
        load_corpus(name)


@pytest.mark.parametrize("name", ["gpt2", "t5-small", "ctrl", "bert-base-uncased", "someone/bundeld"])
def test_names_of_the_hub_are_let_through(name: str) -> None:
    places.check_model(name)
    for corpus in ("imdb", "glue", "emo", "go_emotions", "Ground-Truth", "someone/emobnk"):
        places.check_corpus(corpus)


class Client:
    """Stand in for the hub's client: answers, or has no network."""

    def __init__(self, error: Exception | None) -> None:
        self.error, self.asked = error, 0

    def head(self, address: str, timeout: float) -> None:
        assert address == constants.ENDPOINT and timeout <= 5
        self.asked += 1
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize(
    "error", [None, httpx.ConnectError("no route to host"), httpx.ConnectTimeout("late")]
)
def test_a_hub_out_of_reach_is_asked_once(error: Exception | None, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(error)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_session", lambda: client)
    with pytest.raises(ZeroDivisionError), places.hub():
        assert constants.is_offline_mode() is (error is not None)
        raise ZeroDivisionError
    assert client.asked == 1 and not constants.is_offline_mode()


def test_every_name_of_the_hub_is_asked_for_in_this_way(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of itself the hub's client would ask again and again, for most of a minute; what is asked here fails at once."""
    from emoprobe import load_probes

    client = Client(httpx.ConnectError("no route to host"))
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_session", lambda: client)
    monkeypatch.chdir(tmp_path)
    for load in (load_model, load_corpus, load_probes):
        with pytest.raises(InputError, match=r"nobody/nothing.*hub"):
            load("nobody/nothing")  # type: ignore[operator]
    assert client.asked == 3 and not waited
