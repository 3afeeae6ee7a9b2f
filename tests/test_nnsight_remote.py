"""Models that a server runs. The server here is nnsight's own rehearsal of one: what is sent is serialised, read back without
emoprobe in sight, and run."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from backends import GREEDY, LAM, TEXTS, difference, load, make_edits, make_valuation, saved
from small_study import small_corpus
from transformers import AutoTokenizer

import emoprobe as ep
from emoprobe.errors import InputError
from emoprobe.interventions import Intervention, ResidualEdit
from emoprobe.models import LiveModel, load_model
from emoprobe.valattn import biases

nnsight = pytest.importorskip("nnsight")
pytestmark = pytest.mark.filterwarnings("ignore:.*was never reached.*:UserWarning")
KEY = "a-key-that-nobody-may-see"
REQUESTS: list[str] = []
"""Models that the server was asked to run, request by request."""


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", KEY)


@pytest.fixture(params=["llama", "gpt2"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def live(family: str, key: None, monkeypatch: pytest.MonkeyPatch) -> LiveModel:
    """Return a model of a hub that is not there, run by a server that is not there."""
    from nnsight.intervention.backends import local, remote

    made = []

    def hub(name: str, **options: Any) -> Any:
        tokenizer = AutoTokenizer.from_pretrained(saved(family))
        made.append(kind(str(saved(family)), tokenizer=tokenizer, **{**options, "revision": None}))
        return made[0]

    class Server:
        def __init__(self, model_key: str, **options: Any) -> None:
            self.model_key = model_key

        def __call__(self, tracer: Any) -> None:
            REQUESTS.append(self.model_key)
            local.LocalSimulationBackend(made[0])(tracer)

    kind = nnsight.TransformersModel
    monkeypatch.setattr(kind, "_remoteable_model_key", lambda self: f"someone/{family}")
    monkeypatch.setattr(nnsight, "TransformersModel", hub)
    monkeypatch.setattr(remote, "RemoteBackend", Server)
    REQUESTS.clear()
    return load_model(f"someone/{family}", backend="nnsight", remote=True, revision="1234")


def interventions(model: LiveModel) -> list[Intervention]:
    return [*make_edits(model), *biases(model, make_valuation(model), LAM)]


def test_a_server_gives_the_numbers_of_a_model_here(live: LiveModel, family: str) -> None:
    local = load(saved(family), "transformers")
    weights = live.underlying._module
    assert all(weight.is_meta for weight in weights.parameters()), "weights were loaded"
    batch, layers = local.tokenize(TEXTS), [3, 0, 2, 0]
    untouched = local.logits(TEXTS)
    assert difference(local, TEXTS, live.logits(TEXTS), untouched) < 1e-5
    assert difference(local, TEXTS, live.streams(batch, layers), local.streams(batch, layers)) < 1e-5
    with live.intervene(*interventions(live)), local.intervene(*interventions(local)):
        changed = live.logits(TEXTS)
        assert difference(local, TEXTS, changed, local.logits(TEXTS)) < 1e-5
        assert difference(local, TEXTS, live.streams(batch, layers), local.streams(batch, layers)) < 1e-5
        assert live.generate(TEXTS, **GREEDY) == local.generate(TEXTS, **GREEDY)
        with live.suspended():
            assert difference(local, TEXTS, live.logits(TEXTS), untouched) < 1e-5
    assert difference(local, TEXTS, changed, untouched) > 0.1
    assert difference(local, TEXTS, live.logits(TEXTS), untouched) < 1e-5
    assert len(REQUESTS) == 7 and {request.rpartition(":")[2] for request in REQUESTS} == {
        f"someone/{family}"
    }


def test_probes_are_fitted_without_weights_and_keep_no_key(
    live: LiveModel, family: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"layers": [1], "permutations": 0, "bootstrap": 0, "progress": False}
    found = ep.fit_probes(live, small_corpus(), **options)
    wanted = ep.fit_probes(load(saved(family), "transformers"), small_corpus(), **options)
    assert torch.allclose(found.directions, wanted.directions, atol=1e-4)
    traced = ep.trace(live, found, TEXTS[0])
    assert len(traced.frame) == len(ep.trace(load(saved(family), "transformers"), wanted, TEXTS[0]).frame)
    assert found.fingerprint != wanted.fingerprint  # weights were not seen
    later = type(live)(live.underlying, live.tokenizer, live.name, "5678")
    assert found.fingerprint == live.fingerprint() != later.fingerprint(), "of another revision"
    assert KEY.encode() not in found.save(tmp_path / "probes.safetensors").read_bytes()
    assert KEY not in repr(live) + str(live.info().to_dict()) + str(vars(live))


def test_what_needs_the_weights_is_refused(live: LiveModel) -> None:
    for refused in (
        lambda: live.logit_lens(torch.ones(live.d_model)),
        lambda: live.attention(live.tokenize(TEXTS), [0]),
        lambda: list(live.named_weights()),
    ):
        with pytest.raises(InputError, match=r"runs remotely: .*load it on this machine"):
            refused()


@pytest.mark.parametrize("positions", ["prompt", "generated"])
def test_where_a_prompt_ends_is_not_sent_with_texts_that_are_scored(live: LiveModel, positions: str) -> None:
    batch = replace(live.tokenize(TEXTS), prompt_length=2)
    with live.intervene(ResidualEdit(1, lambda x: 2 * x, positions=positions)):
        for call in (live.forward, lambda given: live.streams(given, [1])):
            with pytest.raises(InputError, match="not when texts are scored"):
                call(batch)
    assert not REQUESTS


def test_what_cannot_be_sent_is_refused_before_anything_is(live: LiveModel) -> None:
    lock = threading.Lock()

    def guarded(stream: torch.Tensor) -> torch.Tensor:
        with lock:
            return 2 * stream

    with (
        pytest.raises(InputError, match=r"cannot be sent to a server .*lock"),
        live.intervene(ResidualEdit(1, guarded)),
    ):
        pass
    with pytest.raises(InputError, match="character spans"):
        with live.intervene(ResidualEdit(1, torch.neg, positions=[(0, 3)])):
            pass
    assert not REQUESTS and not live.interventions


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("someone/llama", {"backend": "transformers"}, 'only backend="nnsight"'),
        ("someone/llama", {"device": "cpu"}, "remote=True with device="),
        ("bundled", {}, '"bundled" lies on this machine'),
        ("someone/llama", {}, "without a key: .*NDIF_API_KEY"),
    ],
)
def test_options_that_do_not_go_together(
    name: str, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", None)
    with pytest.raises(InputError, match=message):
        load_model(name, **{"backend": "nnsight", "remote": True, **options})


def test_a_model_that_the_hub_does_not_know(key: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*given: Any, **options: Any) -> None:
        raise OSError("no such model\nand more")

    monkeypatch.setattr(nnsight, "TransformersModel", unknown)
    with pytest.raises(
        InputError, match=r"^no configuration and tokenizer .* \(no such model\): check"
    ) as told:
        load_model("someone/nothing", backend="nnsight", remote=True)
    assert KEY not in str(told.value)
