"""Emotion streams are learned as valuations are: the loss falls, the model stays, what carries e is learned."""

from pathlib import Path

import pytest
import torch
from small_study import small_corpus
from tiny import WIDTH, tiny_model

from emoprobe.valattn import EmotionStream, Valuation, inject, learn_valuation, learning_history


def start(coupled: bool) -> EmotionStream:
    draw = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(3, 2, WIDTH, generator=draw) / 4, torch.randn(3, 2, generator=draw)
    valuation = Valuation(weight, bias, ("valence", "arousal"), (0, 1, 2), strength=torch.tensor(0.5))
    stream = EmotionStream.start(valuation, WIDTH, width=3, hidden=6)
    return stream if coupled else stream.uncoupled()


@pytest.mark.parametrize("coupled", [True, False])
def test_the_loss_falls_and_the_model_is_untouched(coupled: bool, tmp_path: Path) -> None:
    model, init = tiny_model("llama", dtype=torch.float32), start(coupled)
    before = {name: weight.detach().clone() for name, weight in model.named_weights()}
    learned = learn_valuation(
        model,
        small_corpus(),
        init,
        objective="next_token",
        embedding_width=3,
        steps=25,
        batch_size=8,
        learning_rate=0.02,
        progress=False,
    )
    assert isinstance(learned, EmotionStream) and learned.coupled == coupled
    record = learned.valuation.metadata
    assert record["held_out_nll_learned"] < record["held_out_nll_untouched"] - 0.01
    losses = record["losses"]
    assert sum(losses[-5:]) < sum(losses[:5]) - 0.05
    assert set(learned.tensors) == set(init.tensors) | {"embedding"}
    assert learned.outer.abs().max() > 0 and not learned.outer.requires_grad
    for name in ("query", "value", "inner"):  # these get a gradient once B is not 0
        assert not torch.equal(learned.tensors[name], init.tensors[name])
    for name, weight in model.named_weights():
        assert torch.equal(weight, before[name]) and weight.requires_grad
    assert len(learning_history(learned)) == 26 * 3
    loaded = EmotionStream.load(learned.save(tmp_path / "learned.safetensors"))
    with inject(model, learned):
        expected = model.logits("The dog was happy")
    with inject(model, loaded):
        assert torch.equal(model.logits("The dog was happy"), expected)
