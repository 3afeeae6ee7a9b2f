"""What a steered model writes: repetition, variety, likelihood under the untouched model, word norms, overlap."""

import math

import pandas as pd
import pytest
import torch
from backends import load, saved
from tiny import tiny_model

from emoprobe.errors import InputError
from emoprobe.models import LiveModel
from emoprobe.steering import generations, lexicon, overlap, steer, sweep
from emoprobe.steering.generated_text import DISTINCT, OWN_NLL, REPETITION

PROMPTS = ["I am so glad that you came", "The dog", "They were afraid of the dark and"]


def vector(model: LiveModel) -> torch.Tensor:
    return torch.randn(model.d_model, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_likelihood_and_repetition_equal_a_computation_by_hand(strength: float) -> None:
    model, length = tiny_model("llama"), 12
    with steer(model, vector(model), strength):
        found = generations({"length": len}, max_new_tokens=length, temperature=0)(model, PROMPTS)
        written = [model.generate(prompt, max_new_tokens=length, do_sample=False) for prompt in PROMPTS]
    assert found["length"].tolist() == [len(text) for text in written]
    for row, prompt in enumerate(PROMPTS):
        with steer(model, vector(model), strength):
            ids = model.generate_ids(model.tokenize(prompt), max_new_tokens=length, do_sample=False)[0]
        own = ids[-length:].tolist()
        each = model.underlying(ids[None]).logits[0].double().log_softmax(-1)  # untouched
        start = len(ids) - length
        truth = -torch.stack([each[p - 1, ids[p]] for p in range(start, len(ids))]).mean()
        assert float(found[OWN_NLL][row]) == pytest.approx(float(truth.detach()), rel=1e-5)
        fours = [tuple(own[p : p + 4]) for p in range(length - 3)]
        again = sum(run in fours[:p] for p, run in enumerate(fours)) / len(fours)
        assert float(found[REPETITION][row]) == pytest.approx(again)
        twos = {tuple(own[p : p + 2]) for p in range(length - 1)}
        assert float(found[DISTINCT][row]) == pytest.approx(len(twos) / (length - 1))


def test_an_end_of_text_is_counted_and_what_follows_is_not() -> None:
    model = tiny_model("gpt2")
    end = int(model.logits(PROMPTS[1])[0, -1].argmax())
    model.tokenizer.eos_token = model.tokenizer.convert_ids_to_tokens(end)
    model.underlying.generation_config.eos_token_id = end
    found = generations(max_new_tokens=8, temperature=0)(model, PROMPTS[1:])
    truth = -model.logits(PROMPTS[1])[0, -1].double().log_softmax(-1)[end]
    assert float(found[OWN_NLL][0]) == pytest.approx(float(truth.detach()), rel=1e-5)
    assert (float(found[REPETITION][0]), float(found[DISTINCT][0])) == (0.0, 1.0)


def test_sampling_has_a_seed_of_its_own_and_leaves_the_users_alone() -> None:
    model = tiny_model("gpt2")
    torch.manual_seed(5)
    first = generations({"length": len}, seed=1, max_new_tokens=8)(model, PROMPTS)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)
    again = generations({"length": len}, seed=1, max_new_tokens=8)(model, PROMPTS)
    other = generations({"length": len}, seed=2, max_new_tokens=8)(model, PROMPTS)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first[OWN_NLL], other[OWN_NLL])


def test_a_lexicon_scores_words_and_counts_unknown_ones_as_its_mean() -> None:
    norms = pd.DataFrame({"valence": [8.0, 2.0, 5.0, math.nan]}, index=["glad", "sad", "table", "odd"])
    score = lexicon(norms)
    assert score("Glad, GLAD and sad: odd!") == pytest.approx((3 + 3 - 3) / 5)
    assert score("the dog") == score("") == score("…") == 0
    with pytest.raises(InputError, match=r"do not rate 'arousal': they have valence"):
        lexicon(norms, "arousal")


def test_overlap_is_the_share_of_runs_of_words_that_come_from_the_texts() -> None:
    score = overlap(["The bolt gave way and the rope ran out."], n=3)
    assert score("the BOLT gave way, she said") == pytest.approx(2 / 4)
    assert score("rope the ran") == 0 and score("the bolt") == 0


def test_the_gate_closes_where_a_model_is_pushed_too_hard() -> None:
    model = tiny_model("gpt2", dtype=torch.float32)
    measure = generations(max_new_tokens=24)
    result = sweep(
        model, vector(model), [-0.02, 0.02, 0.04, 50], PROMPTS, [measure], controls=1, progress=False
    )
    low, high = result.usable()
    assert high < 50 and low <= 0
    assert f"coherent for strengths from {low:g} to {high:g}" in repr(result)
    assert result.usable({OWN_NLL: 1e9}) == (-0.02, 50)
    with pytest.raises(InputError, match="no coherence gate"):
        result.usable({"spelling": 1.0})


@pytest.mark.parametrize("backend", ["transformers", "nnsight", "transformer_lens"])
def test_more_tokens_than_a_model_reads_are_refused_before_any_is_written(backend: str) -> None:
    model = load(saved("gpt2"), backend)
    prompts = ["The dog", "The dog and the letter " * 50]
    room = (model.context_length or 0) - int(model.tokenize(prompts).real.sum(-1).max())
    assert 0 < room < 300
    for ask in (
        lambda: model.generate(prompts, max_new_tokens=room + 1),
        lambda: generations({"length": len}, max_new_tokens=room + 1)(model, prompts),
    ):
        with pytest.raises(InputError, match=f"give max_new_tokens={room} or less, or a shorter prompt"):
            ask()
    assert model.generate_ids(model.tokenize(prompts), max_new_tokens=room).shape[1] == model.context_length
