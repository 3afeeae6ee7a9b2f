"""Every kind of edit against an independent computation, one token at a time, in float64; where, when and on which backend."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from backends import load, make_valuation, saved
from oracle import Oracle
from planted_probes import planted_probes
from test_loading import TEMPLATE
from test_steering_edits import TEXTS, TOLERANCE, hooks, relative, tokens, vectors
from tiny import FAMILIES, tiny_model
from torch import Tensor

from emoprobe.errors import InputError
from emoprobe.interventions import OPEN, ResidualEdit
from emoprobe.models import LiveModel
from emoprobe.models.reference import PASSAGES
from emoprobe.probes import ProbeSet
from emoprobe.steering import (
    add,
    clamp,
    only_where,
    project_out,
    residual_norms,
    rotate,
    scheduled,
)
from emoprobe.steering.generated_text import up_to_end
from emoprobe.valattn import biases

LAYERS = [1, 3]
OneToken = Callable[[Tensor], Tensor]
"""A stream of one token (d_model,) before and after."""


def probes(model: LiveModel) -> ProbeSet:
    found = planted_probes(model, vectors(model, 2).numpy(), ["calm", "afraid"])
    found.scale.fill_(0.5)
    found.offset.fill_(0.25)
    return found


def read(model: LiveModel, concept: int, x: Tensor) -> Tensor:
    return 0.5 * (x @ probes(model).directions[0, concept].double()) + 0.25


def turned(x: Tensor, v: Tensor, angle: float) -> Tensor:
    """Rodrigues' rotation in the plane of x and v, by the matrix exponential of its generator."""
    a = v / v.norm()
    b = x - (x @ a) * a
    b = b / b.norm()
    reach = math.acos(float(x @ a / x.norm()))
    sign = 1 if angle > 0 else -1
    by = sign * min(abs(angle), reach if sign > 0 else math.pi - reach)
    return torch.linalg.matrix_exp(by * (torch.outer(a, b) - torch.outer(b, a))) @ x


KINDS = (
    "keep norm",
    "rotate",
    "rotate away",
    "rotate onto",
    "project out",
    "half",
    "subspace",
    "clamp",
    "range",
    "where",
)


def made(kind: str, model: LiveModel, positions: object = "all") -> tuple[list[ResidualEdit], OneToken]:
    """Return the edits of a kind, and what they must do to one token."""
    v, w = vectors(model), vectors(model, seed=1)
    place = {"layers": LAYERS, "positions": positions}
    if kind == "keep norm":
        edits = add(model, v, 3.0, unit="raw", keep_norm=True, **place)
        return edits, lambda x: (x + 3 * v) * x.norm() / (x + 3 * v).norm()
    if kind.startswith("rotate"):
        angle = {"rotate": 0.6, "rotate away": -0.6, "rotate onto": 3.0}[kind]
        return rotate(model, v, angle, **place), lambda x: turned(x, v, angle)
    if kind in ("project out", "half"):
        share = 1.0 if kind == "project out" else 0.5
        edits = project_out(model, 3 * v, strength=share, **place)
        return edits, lambda x: x - share * (x @ v) / (v @ v) * v
    if kind == "subspace":
        space = torch.stack([v, w], dim=1)
        edits = project_out(model, [v, w, v - 2 * w], **place)  # three directions, two dimensions
        return edits, lambda x: x - space @ torch.linalg.lstsq(space, x[:, None]).solution[:, 0]
    u = probes(model).directions[0].double()
    if kind == "clamp":
        edits = clamp(model, probes(model), "calm", 1.5, **place)
        return edits, lambda x: x + 2 * (1.5 - read(model, 0, x)) * u[0] / (u[0] @ u[0])
    if kind == "range":
        edits = clamp(model, probes(model), "calm", -0.1, 0.4, **place)
        return (
            edits,
            lambda x: x + 2 * (read(model, 0, x).clamp(-0.1, 0.4) - read(model, 0, x)) * u[0] / (u[0] @ u[0]),
        )
    edits = only_where(add(model, v, 3.0, unit="raw", **place), probes(model), "afraid", above=0.0, below=0.6)
    return edits, lambda x: x + 3 * v if 0 < read(model, 1, x) < 0.6 else x


def everywhere(
    one: OneToken, chosen: Callable[[int], bool] = lambda position: True
) -> Callable[[Tensor], Tensor]:
    def act(stream: Tensor) -> Tensor:
        rows = [one(x) if chosen(position) else x for position, x in enumerate(stream[0])]
        return torch.stack(rows)[None]

    return act


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_each_kind_equals_the_independent_computation_in_padded_batches(family: str, kind: str) -> None:
    model = tiny_model(family)
    edits, one = made(kind, model)
    untouched = model.logits(TEXTS)
    with model.intervene(*edits):
        steered = model.logits(TEXTS).double()
    oracle = Oracle(model)
    for row, ids in enumerate(tokens(model, TEXTS)):
        truth = oracle.logits(ids, edits=dict.fromkeys(LAYERS, everywhere(one)))
        assert relative(steered[row, -len(ids) :], truth) < max(TOLERANCE[family], 1e-6)  # logits are float32
    real = model.tokenize(TEXTS).real
    assert relative(untouched[real], steered[real]) > 0.01
    assert torch.equal(model.logits(TEXTS), untouched)


@pytest.mark.parametrize("kind", [*KINDS, "schedule"])
def test_each_kind_on_generated_tokens_with_and_without_cache_equals_greedy_search_by_hand(kind: str) -> None:
    model, length = tiny_model("llama"), 5
    v, shares = vectors(model), [1.0, -2.0, 0.5]
    batch, options = model.tokenize(TEXTS), {"max_new_tokens": length, "do_sample": False}
    if kind == "schedule":
        edits, one = scheduled(add(model, v, 3.0, LAYERS, unit="raw"), shares), None
    else:
        edits, one = made(kind, model, "generated")
    plain = model.generate_ids(batch, **options)[:, -length:]
    with model.intervene(*edits):
        cached = model.generate_ids(batch, **options)[:, -length:]
        uncached = model.generate_ids(batch, **options, use_cache=False)[:, -length:]
    assert torch.equal(cached, uncached) and not torch.equal(cached, plain)
    oracle = Oracle(model)
    for row, prompt in enumerate(tokens(model, TEXTS)):
        end = len(prompt)

        def act(stream: Tensor, end: int = end) -> Tensor:
            rows = []
            for position, x in enumerate(stream[0]):
                if position < end:
                    rows.append(x)
                elif one is None:
                    rows.append(x + 3 * shares[min(position - end, 2)] * v)
                else:
                    rows.append(one(x))
            return torch.stack(rows)[None]

        ids = prompt
        for _ in range(length):
            ids = torch.cat([ids, oracle.logits(ids, edits=dict.fromkeys(LAYERS, act))[-1].argmax()[None]])
        assert torch.equal(cached[row], ids[end:])


def test_a_schedule_may_be_a_function_and_leaves_the_prompt_as_it_is() -> None:
    model = tiny_model("gpt2")
    v, options = vectors(model), {"max_new_tokens": 6, "do_sample": False}
    listed = scheduled(add(model, v, 3.0, 1, unit="raw"), [0.0, 0.0, 4.0])
    called = scheduled(add(model, v, 3.0, 1, unit="raw"), lambda n: 4.0 if n >= 2 else 0.0)
    always = scheduled(add(model, v, 3.0, 1, "all", unit="raw"), [1.0])
    generated = add(model, v, 3.0, 1, "generated", unit="raw")
    untouched, found = model.logits(TEXTS), []
    for edits in (listed, called, always, generated):
        with model.intervene(*edits):
            assert torch.equal(model.logits(TEXTS), untouched)
            found.append(model.generate(TEXTS, **options))
    assert found[0] == found[1] != found[2] == found[3]
    with pytest.raises(InputError, match="list of one or more finite numbers"):
        scheduled(generated, [])
    with model.intervene(*scheduled(generated, lambda n: math.inf)):
        with pytest.raises(InputError, match="schedule=inf is not a finite number"):
            model.generate(TEXTS, **options)
    assert torch.equal(model.logits(TEXTS), untouched)


def test_weights_may_differ_from_row_to_row_of_a_batch() -> None:
    model = tiny_model("llama")
    (edit,) = add(model, vectors(model), 1.0, 2, unit="raw")
    doses = torch.tensor([0.0, 2.0, -1.0])
    rows = ResidualEdit(2, edit.edit, weight=lambda generated: doses[:, None])
    with model.intervene(rows):
        together = model.logits(TEXTS)
    real = model.tokenize(TEXTS).real
    for row, dose in enumerate(doses.tolist()):
        with model.intervene(*add(model, vectors(model), dose, 2, unit="raw")):
            alone = model.logits(TEXTS)
        torch.testing.assert_close(together[row][real[row]], alone[row][real[row]], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_other_backends_do_the_same(backend: str, kind: str) -> None:
    pytest.importorskip(backend)
    found = []
    for name in ("transformers", backend):
        model = load(saved("gpt2"), name)
        with model.intervene(*made(kind, model)[0]):
            found.append(model.logits(TEXTS)[model.tokenize(TEXTS).real])
            with model.suspended():
                bare = model.logits(TEXTS)
        assert torch.equal(bare, model.logits(TEXTS))
    assert relative(found[1], found[0].double()) < 1e-4
    assert relative(bare[model.tokenize(TEXTS).real], found[0].double()) > 0.01


@pytest.mark.parametrize("backend", ["transformers", "transformer_lens", "nnsight"])
def test_suspending_gives_the_untouched_model_within_edits_and_valuations(backend: str) -> None:
    if backend != "transformers":
        pytest.importorskip(backend)
    model = load(saved("gpt2"), backend)
    untouched = model.logits(TEXTS)
    with model.intervene(
        *add(model, vectors(model).float(), 0.5, 1), *biases(model, make_valuation(model), 1.5)
    ):
        touched = model.logits(TEXTS)
        with pytest.raises(RuntimeError, match="out"), model.suspended():
            assert torch.equal(model.logits(TEXTS), untouched) and model.interventions == ()
            raise RuntimeError("out")
        assert torch.equal(model.logits(TEXTS), touched) and not torch.equal(touched, untouched)
    assert torch.equal(model.logits(TEXTS), untouched)


def test_edits_and_valuations_compose() -> None:
    model = tiny_model("gpt2")
    valuation, (edits, one) = make_valuation(model), made("rotate", model)
    oracle = Oracle(model)
    weights, shifts = valuation.weight.double(), valuation.bias.double()
    with model.intervene(*biases(model, valuation, 0.7), *edits):
        steered = model.logits(TEXTS).double()
    with model.intervene(*edits):
        only_edits = model.logits(TEXTS).double()
    for row, ids in enumerate(tokens(model, TEXTS)):
        valued = {
            layer: [(0.7, lambda x, k=k: torch.tanh(x @ weights[k].T + shifts[k]))]
            for k, layer in enumerate(valuation.layers)
        }
        truth = oracle.logits(ids, valued, dict.fromkeys(LAYERS, everywhere(one)))
        assert relative(steered[row, -len(ids) :], truth) < 1e-6
        assert relative(only_edits[row, -len(ids) :], truth) > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_after_an_exception_the_model_is_what_it_was(kind: str) -> None:
    model = tiny_model("gpt_neox")
    untouched, before = model.logits(TEXTS), hooks(model)
    with pytest.raises(RuntimeError, match="out"), model.intervene(*made(kind, model)[0]):
        assert hooks(model) > before and not torch.equal(model.logits(TEXTS), untouched)
        raise RuntimeError("out")
    assert hooks(model) == before and torch.equal(model.logits(TEXTS), untouched)


def test_turning_and_keeping_the_norm_keep_it_and_stop_at_the_direction() -> None:
    model = tiny_model("gpt2")
    v = vectors(model)
    stream = torch.randn(2, 5, model.d_model, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    stream[0, 0], stream[0, 1] = 0.0, 2 * v  # nothing, and the direction itself
    (onto,) = rotate(model, v, 4.0, 1)
    torch.testing.assert_close(
        torch.cosine_similarity(onto.edit(stream)[1], v[None], dim=-1), torch.ones(5).double()
    )
    (opposite,) = rotate(model, v, -4.0, 1)
    torch.testing.assert_close(
        torch.cosine_similarity(opposite.edit(stream)[1], v[None], dim=-1), -torch.ones(5).double()
    )
    (kept,) = add(model, v, 0.3, 1, keep_norm=True)
    for edit in (onto, opposite, kept):
        torch.testing.assert_close(edit.edit(stream).norm(dim=-1), stream.norm(dim=-1))
        assert edit.edit(stream).isfinite().all()
        assert torch.equal(edit.edit(stream)[0, 0], stream[0, 0])
    torch.testing.assert_close(onto.edit(stream)[0, 1], stream[0, 1])
    assert rotate(model, v, 0.0) == [] and project_out(model, v, strength=0.0) == []
    half = stream.bfloat16()
    for edit in (onto, kept):
        assert edit.edit(half).dtype == torch.bfloat16


def test_the_assistants_turn_is_its_messages_and_the_reply_to_come() -> None:
    model = tiny_model("gpt2")
    model.tokenizer.chat_template = TEMPLATE
    messages = [
        {"role": "user", "content": "How are you?"},
        {"role": "assistant", "content": "Quite well."},
        {"role": "user", "content": "The dog ran away."},
    ]
    chats = [model.chat_text(messages), model.chat_text(messages[:1])]
    texts, spans = [chat.text for chat in chats], [chat.turns_of_assistant() for chat in chats]
    assert spans[1] == [(len(texts[1]) - 1, OPEN)] and spans[0][0] == chats[0].spans[1]
    closed = model.chat_text(messages[:2], add_generation_prompt=False)
    assert closed.turns_of_assistant() == [closed.spans[1]]
    v, options = vectors(model), {"max_new_tokens": 5, "do_sample": False}
    mask = torch.zeros(model.tokenize(texts).real.shape, dtype=torch.bool)
    for row, chat in enumerate(chats):
        for position, (a, b) in enumerate(model.tokenize(texts).offsets[row]):
            inside = any(a < end and start < b for start, end in chat.spans[1:2])
            mask[row, position] = inside or (b > a and b == len(chat.text))
    by_hand = add(model, v, 3.0, 1, mask, "raw") + add(model, v, 3.0, 1, "generated", "raw")
    only_prompt = add(model, v, 3.0, 1, mask, "raw")
    found = []
    for edits in (add(model, v, 3.0, 1, spans, "raw"), by_hand, only_prompt):
        with model.intervene(*edits):
            for cached in (True, False):
                found.append(model.generate_ids(model.tokenize(texts), use_cache=cached, **options))
            beams = model.generate_ids(model.tokenize(texts), num_beams=2, num_return_sequences=2, **options)
            found.append(beams)
    for ours, theirs in zip(found[:3], found[3:6], strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[6])


def test_norms_are_measured_over_the_text_given_and_over_generated_tokens() -> None:
    model, length = tiny_model("llama"), 4
    prompts = ["The dog", "I am so glad that you came!"]
    frame = residual_norms(model, TEXTS, prompts, max_new_tokens=length, seed=3)
    assert frame.layer.tolist() == [0, 1, 2, 3]

    def streams(ids: Tensor) -> Tensor:
        hidden = model.underlying(ids[None], output_hidden_states=True).hidden_states
        return torch.stack([stream[0].norm(dim=-1) for stream in hidden[:3]])

    reference = torch.cat([streams(ids)[:, 1:] for ids in tokens(model, TEXTS)], dim=1).mean(1)
    torch.manual_seed(3)
    batch = model.tokenize(prompts)
    ids = model.generate_ids(batch, max_new_tokens=length, do_sample=True, top_k=0)
    begun = tokens(model, prompts)
    own = [
        streams(torch.cat([start, row[-length:]]))[:, -length:] for start, row in zip(begun, ids, strict=True)
    ]
    assert frame.reference[:3].tolist() == pytest.approx(reference.tolist(), rel=1e-5)
    assert frame.generated[:3].tolist() == pytest.approx(torch.cat(own, dim=1).mean(1).tolist(), rel=1e-5)
    assert frame.ratio.tolist() == pytest.approx((frame.generated / frame.reference).tolist())
    longer = torch.tensor(frame.generated)
    (edit,) = add(model, vectors(model), 0.1, 2, norms=longer)
    pushed = edit.edit(torch.zeros(1, 1, model.d_model, dtype=torch.float64)).norm()
    assert float(pushed) == pytest.approx(0.1 * frame.generated[2])
    assert residual_norms(model, max_new_tokens=1).reference.tolist() == pytest.approx(
        model.residual_norms().tolist()
    )
    assert len(PASSAGES) > 3


def test_what_follows_an_end_of_text_does_not_count() -> None:
    ids = torch.tensor([[5, 9, 7, 9], [5, 6, 7, 8]])
    assert up_to_end(ids, 9).tolist() == [[True, True, False, False], [True] * 4]
    assert up_to_end(ids, None).all()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda m: rotate(m, torch.zeros(32)), "points nowhere"),
        (lambda m: rotate(m, vectors(m), math.nan), "angle=nan is not a finite number"),
        (lambda m: project_out(m, []), "give a direction to project out"),
        (lambda m: project_out(m, "calm"), "give a direction to project out"),  # type: ignore[arg-type]
        (lambda m: project_out(m, [vectors(m), torch.zeros(32)]), "points nowhere"),
        (lambda m: project_out(m, vectors(m), strength=math.inf), "strength=inf is not"),
        (lambda m: clamp(m, probes(m), "calm", 2.0, 1.0), "low=2.0 is not below high=1.0"),
        (lambda m: clamp(m, probes(m), "joy", 2.0), "no probe for 'joy'"),
        (lambda m: only_where(add(m, vectors(m)), probes(m), "joy"), "no probe for 'joy'"),
        (lambda m: add(m, vectors(m), norms=torch.ones(3)), "give a positive one for each layer 0 to 3"),
        (lambda m: add(m, vectors(m), norms=torch.zeros(4)), "give a positive one"),
    ],
)
def test_what_cannot_be_is_refused_in_words(
    make: Callable[[LiveModel], Sequence[ResidualEdit]], match: str
) -> None:
    with pytest.raises(InputError, match=match):
        make(tiny_model("gpt2"))


def test_norms_are_refused_within_an_intervention() -> None:
    model = tiny_model("gpt2")
    with (
        model.intervene(*add(model, vectors(model), 0.1)),
        pytest.raises(InputError, match="before entering"),
    ):
        residual_norms(model)
