"""What is measured under an intervention, against float64 computations on one unpadded text at a time."""

import copy
import gc
import math
import weakref

import pytest
import torch
from tiny import FAMILIES, tiny_model
from torch import Tensor

from emoprobe.errors import InputError
from emoprobe.models import LiveModel
from emoprobe.steering import (
    add,
    coherence,
    continuation,
    kl,
    log_probabilities,
    nll,
    project_out,
    read_out,
    steer,
)

PROMPTS = ["I am so", "The dog", "They were afraid of the dark and of the letter, but she was"]
REPLIES = {"glad": [" happy", " glad", " good and happy that you came"], "sad": [" sad"]}
TEXTS = [
    "She was sad that the dog had run away.",
    "He felt calm",
    "The music was good, and the children were laughing.",
]


def vector(model: LiveModel) -> Tensor:
    return torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))


class PlainProbes:
    """What a `ProbeSet` does, for two concepts."""

    def __init__(self, model: LiveModel) -> None:
        self.weight = torch.randn(model.d_model, 2, generator=torch.Generator().manual_seed(3))

    def concept_index(self, concept: str) -> int:
        return ("calm", "afraid").index(concept)

    def read_out(self, stream: Tensor, layer: int | float) -> Tensor:
        return 2 * (stream @ self.weight.to(stream)) + layer


class ByHand:
    """The model in float64, one text at a time, with a vector added by a plain hook where one is given."""

    def __init__(self, model: LiveModel, added: Tensor | None = None, layer: int = 1) -> None:
        self.tokenizer, self.underlying = model.tokenizer, copy.deepcopy(model.underlying).double()
        base = self.underlying.base_model
        block = (base.h if hasattr(base, "h") else base.layers)[layer]
        if added is not None:
            block.register_forward_pre_hook(
                lambda module, args: (args[0] + added.double(), *args[1:]),
            )

    def log_probabilities(self, text: str) -> tuple[list[int], Tensor]:
        ids = self.tokenizer(text)["input_ids"]
        with torch.no_grad():
            return ids, self.underlying(torch.tensor([ids])).logits[0].log_softmax(-1)

    def continuation(self, prompt: str, reply: str) -> float:
        start = len(self.tokenizer(prompt)["input_ids"])
        ids, logp = self.log_probabilities(prompt + reply)
        assert len(ids) > start
        return sum(float(logp[at - 1, ids[at]]) for at in range(start, len(ids)))


@pytest.mark.parametrize("strength", [0.0, 1.5])
@pytest.mark.parametrize("family", FAMILIES)
def test_continuations_equal_a_computation_by_hand(family: str, strength: float) -> None:
    model = tiny_model(family)
    by_hand = ByHand(model, strength * vector(model))
    pairs = [(prompt, reply) for prompt in PROMPTS for group in REPLIES.values() for reply in group]
    truth = {pair: by_hand.continuation(*pair) for pair in pairs}
    with steer(model, vector(model), strength, 1, unit="raw"):
        for size in (1, 2, 32):
            torch.testing.assert_close(
                log_probabilities(model, pairs, size),
                torch.tensor(list(truth.values())).double(),
                rtol=1e-6,
                atol=1e-5,
            )
        found = continuation(REPLIES)(model, PROMPTS)
    for name, group in REPLIES.items():
        for row, prompt in enumerate(PROMPTS):
            mean = sum(math.exp(truth[prompt, reply]) for reply in group) / len(group)
            assert float(found[name][row]) == pytest.approx(math.log(mean), rel=1e-6)


def test_continuations_are_probabilities() -> None:
    """Over all that can come next they sum to one."""
    model = tiny_model("gpt2")
    letters = [chr(code) for code in range(33, 127)]
    pieces = [text for text in letters if len(model.tokenizer(text)["input_ids"]) == 1]
    probabilities = log_probabilities(model, [("The dog was:", text) for text in pieces]).exp()
    start, end = model.tokenizer("The dog was:")["input_ids"], model.logits("The dog was:")[0, -1].softmax(-1)
    whole = sum(
        float(end[model.tokenizer("The dog was:" + text)["input_ids"][len(start)]]) for text in pieces
    )
    assert float(probabilities.sum()) == pytest.approx(whole, rel=1e-5)
    assert 0.1 < whole < 1


def test_tokens_that_merge_over_the_boundary_are_refused() -> None:
    model = tiny_model("gpt2")
    whole, parts = model.tokenizer("The dog was"), model.tokenizer("The dog w")
    assert whole["input_ids"][: len(parts["input_ids"])] != parts["input_ids"]
    with pytest.raises(InputError, match=r'continuation "as" merge with those of the prompt "…The dog w"'):
        continuation({"x": ["as"]})(model, ["The dog w"])
    for empty in ([], "happy"):
        with pytest.raises(InputError, match="maps names to lists"):
            continuation({"x": empty})


@pytest.mark.parametrize("family", FAMILIES)
def test_nll_and_kl_equal_a_computation_by_hand(family: str) -> None:
    model = tiny_model(family)
    push = 1.5 * vector(model)
    before, after = ByHand(model), ByHand(model, push)
    measures = [nll(TEXTS, batch_size=2), kl(TEXTS, batch_size=2)]
    untouched = [measure(model, PROMPTS) for measure in measures]
    together = coherence(TEXTS, names=("one", "two"))
    together(model, PROMPTS)
    with steer(model, push, 1.0, 1, unit="raw"):
        steered = [measure(model, PROMPTS) for measure in measures]
        both = together(model, PROMPTS)
    torch.testing.assert_close(both, {"one": steered[0]["nll"], "two": steered[1]["kl"]})
    assert torch.equal(untouched[1]["kl"], torch.zeros(len(TEXTS), dtype=torch.float64))
    bound = 1e-10 if family == "gpt2" else 1e-5  # the others compute parts of their blocks in float32
    for row, text in enumerate(TEXTS):
        ids, log_p = before.log_probabilities(text)
        _, log_q = after.log_probabilities(text)
        for logp, values in ((log_p, untouched), (log_q, steered)):
            truth = -sum(float(logp[at - 1, ids[at]]) for at in range(1, len(ids))) / (len(ids) - 1)
            assert float(values[0]["nll"][row]) == pytest.approx(truth, rel=bound)
        divergence = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
        assert float(steered[1]["kl"][row]) == pytest.approx(divergence, rel=bound)
        assert divergence > 0.01
    with steer(model, push, 1e-6, 1, unit="raw"):
        assert (measures[1](model, PROMPTS)["kl"] >= 0).all()


def test_the_untouched_model_has_to_be_seen_first_and_is_forgotten_with_it() -> None:
    model = tiny_model("gpt2")
    measure = kl(TEXTS)
    with (
        steer(model, vector(model), 0.5, 1),
        pytest.raises(InputError, match="on the untouched model before"),
    ):
        measure(model, PROMPTS)
    other = tiny_model("gpt2", seed=1)
    assert not measure(model, PROMPTS)["kl"].any() and not measure(other, PROMPTS)["kl"].any()  # each its own
    alive = weakref.ref(other)
    del other
    gc.collect()
    assert alive() is None  # the measure does not hold it
    assert not measure(model, PROMPTS)["kl"].any()


def test_read_outs_are_means_over_the_tokens_behind_the_first() -> None:
    model = tiny_model("llama")
    probes, push = PlainProbes(model), vector(model)
    by_hand = ByHand(model, push)
    with steer(model, push, 1.0, 1, unit="raw"):
        found = read_out(probes, "afraid", 2)(model, PROMPTS)
    assert list(found) == ["afraid read-out, layer 2"]
    for row, prompt in enumerate(PROMPTS):
        ids = torch.tensor([model.tokenizer(prompt)["input_ids"]])
        stream = by_hand.underlying(ids, output_hidden_states=True).hidden_states[2][0, 1:]
        truth = probes.read_out(stream, 2)[:, 1].mean().detach()
        assert float(found["afraid read-out, layer 2"][row]) == pytest.approx(float(truth), rel=1e-5)
    several = read_out(probes, ["afraid", "calm"], 1.0, name="top")(model, PROMPTS)
    assert list(several) == ["afraid top", "calm top"]
    assert torch.equal(
        several["calm top"], read_out(probes, "calm", 3)(model, PROMPTS)["calm read-out, layer 3"]
    )


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_read_out_below_or_at_an_edit_is_refused(layer: int) -> None:
    model = tiny_model("gpt2")
    measure = read_out(PlainProbes(model), "calm", layer)
    measure(model, PROMPTS)  # nothing there yet
    with (
        steer(model, vector(model), 0.5, [1, 2]),
        pytest.raises(InputError, match="not above the interventions"),
    ):
        measure(model, PROMPTS)


def test_positions_that_only_generation_knows_are_refused() -> None:
    model = tiny_model("gpt2")
    probes, push = PlainProbes(model), vector(model)
    measures = [nll(TEXTS), kl(TEXTS), read_out(probes, "calm", 3)]
    for measure in measures:
        measure(model, PROMPTS)
        with (
            steer(model, push, 0.5, 1, "generated"),
            pytest.raises(InputError, match='positions="generated"'),
        ):
            measure(model, PROMPTS)
    for index, measure in enumerate(measures):
        with steer(model, push, 0.5, 1, "last"):
            if index < 2:
                with pytest.raises(InputError, match='positions="last"'):
                    measure(model, PROMPTS)
            else:
                measure(model, PROMPTS)


@pytest.mark.parametrize("positions", ["all", "prompt", "generated", "last"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_continuation_is_as_likely_as_cached_generation_finds_it(family: str, positions: str) -> None:
    """Prompt and reply in one padded pass, against the model called token by token with its cache."""
    model = tiny_model(family)
    pairs = [(prompt, text) for prompt in PROMPTS for text in REPLIES["glad"]]
    plain = log_probabilities(model, pairs)
    with steer(model, vector(model), 2.0, 1, positions, unit="raw"), torch.no_grad():
        ours = log_probabilities(model, pairs)
        for row, (prompt, text) in enumerate(pairs):
            ids = model.tokenize(prompt + text).input_ids
            start, cache, total = model.tokenize(prompt).input_ids.shape[1], None, 0.0
            step = ids[:, :start]
            for position in range(start, ids.shape[1]):
                output = model.underlying(step, past_key_values=cache, use_cache=True)
                cache, step = output.past_key_values, ids[:, position : position + 1]
                total += float(output.logits[0, -1].log_softmax(-1)[step.item()])
            assert float(ours[row]) == pytest.approx(total, abs=1e-4)
    # A one-token reply is predicted from the prompt alone, so edits behind it cannot be seen there.
    changed = (ours - plain).abs() > 0.01
    assert changed[2::3].all() and (positions == "generated" or changed.all())


def test_spans_of_a_prompt_hold_under_a_continuation() -> None:
    model = tiny_model("gpt_neox")
    pair = [("The dog was sad and", " happy that you came")]
    plain = log_probabilities(model, pair)
    with steer(model, vector(model), 2.0, 1, [(0, 100)], unit="raw"):
        spans = log_probabilities(model, pair)
    length = model.tokenize(pair[0][0]).input_ids.shape[1]
    mask = torch.ones(length, dtype=torch.bool)
    full = "".join(pair[0])
    ids = model.tokenize(full).input_ids[0]
    with steer(
        model, vector(model), 2.0, 1, torch.nn.functional.pad(mask, (0, len(ids) - length)), unit="raw"
    ):
        logp = model.logits(full)[0].log_softmax(-1)
    truth = sum(float(logp[at - 1, ids[at]]) for at in range(length, len(ids)))
    assert float(spans) == pytest.approx(truth, rel=1e-5)
    assert abs(float(spans - plain)) > 0.01


def test_texts_that_cannot_be_measured_are_refused() -> None:
    model = tiny_model("gpt2")
    for make in (nll, kl, coherence):
        for texts in ([], "one text"):
            with pytest.raises(InputError, match="list of one or more texts"):
                make(texts)
    with pytest.raises(InputError, match='"a" is one token'):
        nll(["He felt calm", "a"])(model, PROMPTS)


def test_measures_work_on_any_intervention() -> None:
    model = tiny_model("gpt2")
    measure = kl(TEXTS)
    measure(model, PROMPTS)
    with model.intervene(*project_out(model, vector(model), 2), *add(model, vector(model), 0.3, 1)):
        assert (measure(model, PROMPTS)["kl"] > 0).all()
