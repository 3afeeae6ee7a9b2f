"""Interventions under faults: whatever is raised, wherever, and however blocks are nested, the model is what it was.

Each trial draws nested blocks of interventions, a place and a moment at which something is raised, and what it is. Afterwards
outputs are the same to the last bit and every table of hooks is the same, entry by entry. Threads: see `LiveModel.intervene`.
"""

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from backends import TEXTS, load, make_valuation, saved
from torch import Tensor, nn

from emoprobe.errors import InputError
from emoprobe.interventions import AttentionBias, Forward, ResidualEdit
from emoprobe.models import LiveModel
from emoprobe.models.transformers_attention import ROUTES
from emoprobe.valattn import inject

TRIALS = {
    ("transformers", "gpt2"): 400,
    ("transformers", "llama"): 400,
    ("transformer_lens", "gpt2"): 100,
    ("nnsight", "llama"): 100,
}
RAISED = (
    ZeroDivisionError,
    KeyboardInterrupt,
    SystemExit,
    MemoryError,
    InputError,
    StopIteration,
    GeneratorExit,
    torch.OutOfMemoryError,
)
PLACES = ("edit", "valuation", "weight", "hook", "model", "user", "placing", "generation")


class Fuse:
    """Raises at the n-th call."""

    def __init__(self, kind: type[BaseException], calls: int) -> None:
        self.kind, self.left = kind, calls

    def __call__(self) -> None:
        self.left -= 1
        if self.left <= 0:
            raise self.kind("a fault")


def module_of(model: LiveModel) -> nn.Module:
    inner = {"transformers": "", "transformer_lens": "original_model", "nnsight": "_module"}[model.backend]
    module: nn.Module = getattr(model.underlying, inner) if inner else model.underlying
    return module


TABLES = (
    "_forward_hooks _forward_pre_hooks _forward_hooks_with_kwargs _forward_pre_hooks_with_kwargs "
    "_forward_hooks_always_called _backward_hooks _backward_pre_hooks"
).split()
OWN = "_interventions _intervening _hooked _biased _forward _batch _prompt_length".split()


def state(model: LiveModel) -> list[Any]:
    """Return every table and setting that an intervention may touch, each entry by its identity."""
    found: list[Any] = [len(ROUTES)]
    roots = [module_of(model)] + ([model.underlying] if model.backend == "transformer_lens" else [])
    for module in {id(module): module for root in roots for module in root.modules()}.values():
        own = vars(module)
        found += [(key, id(value)) for table in TABLES for key, value in own[table].items()]
        found += [id(hook) for hook in own.get("fwd_hooks", ())]
        config = own.get("config")
        found.append((type(module), len(own), "forward" in own, id(config), module.training))
        found.append(getattr(config, "_attn_implementation", None))
    for live in (model, getattr(model, "_inner", model)):
        found.append([getattr(live, name, None) for name in OWN])
    return found


def drawn(draw: random.Random, model: LiveModel, fuse: Callable[[], None] | None, place: str) -> list[Any]:
    """Return one to three interventions, one of which holds the fuse."""

    def edit(stream: Tensor) -> Tensor:
        return 1.1 * stream

    def values(stream: Tensor, forward: Forward) -> Tensor:
        return stream[..., :2].float().tanh()

    def lit(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*given: Any) -> Tensor:
            assert fuse is not None
            fuse()
            return function(*given)

        return call

    kinds: dict[str, Callable[[bool], Any]] = {
        "edit": lambda bad: ResidualEdit(draw.randint(0, model.n_layers), lit(edit) if bad else edit),
        "valuation": lambda bad: AttentionBias(
            draw.randrange(model.n_layers), lit(values) if bad else values, 1.0
        ),
        "weight": lambda bad: ResidualEdit(
            draw.randint(0, model.n_layers), edit, weight=lit(torch.ones_like) if bad else torch.ones_like
        ),
    }
    chosen = [kinds[draw.choice(list(kinds))](False) for _ in range(draw.randint(0, 2))]
    if fuse is not None:
        chosen.append(kinds[place if place in kinds else "edit"](True))
    draw.shuffle(chosen)
    return chosen


def one_trial(draw: random.Random, model: LiveModel, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let something be raised somewhere inside nested blocks; return where."""
    place, kind = draw.choice(PLACES), draw.choice(RAISED)
    fuse = Fuse(kind, draw.randint(1, 3) if place in ("placing", "generation") else 1)
    inside = place in ("edit", "valuation", "weight", "generation")
    depth = draw.randint(1, 3)
    at = draw.randrange(depth)
    modules = [module for module in module_of(model).modules() if not list(module.children())]
    with pytest.raises((kind, RuntimeError) if kind is StopIteration else kind), ExitStack() as stack:
        if place == "placing":
            register = draw.choice(("register_forward_hook", "register_forward_pre_hook"))
            original = getattr(nn.Module, register)

            def failing(*args: Any, **kwargs: Any) -> Any:
                fuse()
                return original(*args, **kwargs)

            stack.enter_context(monkeypatch.context()).setattr(nn.Module, register, failing)
        for level in range(depth):
            stack.enter_context(
                model.intervene(*drawn(draw, model, fuse if inside and level == at else None, place))
            )
        if place in ("hook", "model"):
            broken = draw.choice(modules)
            stack.enter_context(broken.register_forward_hook(lambda *_: fuse()))
            if place == "model":
                stack.enter_context(monkeypatch.context()).setattr(
                    broken, "forward", lambda *_, **__: fuse(), raising=False
                )
        if draw.random() < 0.2:
            stack.enter_context(model.suspended() if not inside and place != "placing" else ExitStack())
        if place == "user":
            draw.choice([model.logits, lambda texts: model.capture(texts, [1])])(TEXTS[:2])
        elif place == "generation":
            model.generate(TEXTS[:2], max_new_tokens=5, do_sample=False)
        else:
            model.logits(TEXTS)
        fuse.left = (
            0  # what was not reached (a module that this model does not run, few hooks): then in user code
        )
        fuse()
    return place


@pytest.mark.parametrize(("backend", "family"), TRIALS)
def test_a_thousand_faults_leave_the_model_as_it_was(
    backend: str, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(saved(family), backend)
    valuation = make_valuation(model)
    with inject(model, valuation, 1.0):
        biased = model.logits(TEXTS)  # proves the kinds of attention, which happens once
    untouched, before = model.logits(TEXTS), state(model)
    assert not torch.equal(biased, untouched)
    draw, seen = random.Random(f"{backend} {family}"), set()
    for trial in range(TRIALS[backend, family]):
        seen.add(one_trial(draw, model, monkeypatch))
        assert state(model) == before, f"trial {trial}: other hooks"
        if trial % 5 == 0:
            assert torch.equal(model.logits(TEXTS), untouched), f"trial {trial}: other outputs"
    assert seen == set(PLACES)
    assert torch.equal(model.logits(TEXTS), untouched)
    with inject(model, valuation, 1.0):
        assert torch.equal(model.logits(TEXTS), biased), "and it can still be intervened in"


def test_faults_leave_the_blocks_around_them_in_place() -> None:
    model = load(saved("llama"), "transformers")
    with model.intervene(ResidualEdit(1, lambda x: 1.2 * x)):
        outer, before = model.logits(TEXTS), state(model)
        with (
            pytest.raises(ZeroDivisionError),
            model.intervene(ResidualEdit(2, lambda x: x / 0 if 1 // 0 else x)),
        ):
            model.logits(TEXTS)
        assert state(model) == before and torch.equal(model.logits(TEXTS), outer)


# Threads -------------------------------------------------------------------------------------------------------------


def in_a_thread(call: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result(timeout=60)


@pytest.mark.parametrize("backend", ["transformers", "transformer_lens", "nnsight"])
def test_another_thread_is_refused_while_a_block_is_open_and_welcome_after(backend: str) -> None:
    model = load(saved("llama"), backend)
    untouched = model.logits(TEXTS)
    calls: list[Callable[[], Any]] = [
        lambda: model.logits(TEXTS),
        lambda: model.capture(TEXTS, [1]),
        lambda: model.attention(model.tokenize(TEXTS), [1]),
        lambda: model.generate(TEXTS[0], max_new_tokens=2),
        lambda: model.intervene(ResidualEdit(1, lambda x: x)).__enter__(),
        lambda: model.suspended().__enter__(),
    ]
    with model.intervene(ResidualEdit(1, lambda x: 2 * x)):
        steered, before = model.logits(TEXTS), state(model)
        for call in calls:
            with pytest.raises(InputError, match="another thread is inside an intervention"):
                in_a_thread(call)
        assert state(model) == before and torch.equal(model.logits(TEXTS), steered)
    assert torch.equal(in_a_thread(lambda: model.logits(TEXTS)), untouched)


def test_threads_on_one_model_get_the_right_numbers_or_a_refusal() -> None:
    model = load(saved("llama"), "transformers")
    untouched, streams, before = model.logits(TEXTS), model.capture(TEXTS), state(model)
    expected = {}
    for factor in (0.5, 2.0):
        with model.intervene(ResidualEdit(1, lambda x, factor=factor: factor * x)):
            expected[factor] = model.logits(TEXTS)
    done = {"right": 0, "refused": 0}
    lock = threading.Lock()

    def work(number: int) -> None:
        draw = random.Random(number)
        for _ in range(40):
            try:
                match draw.randrange(3):
                    case 0:
                        right = torch.equal(model.logits(TEXTS), untouched)
                    case 1:
                        right = torch.equal(model.capture(TEXTS), streams)
                    case _:
                        factor = draw.choice([0.5, 2.0])
                        with model.intervene(ResidualEdit(1, lambda x, factor=factor: factor * x)):
                            right = torch.equal(model.logits(TEXTS), expected[factor])
                assert right, "a number of another thread's"
                outcome = "right"
            except InputError:
                outcome = "refused"
            with lock:
                done[outcome] += 1

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(work, number) for number in range(4)]:
            future.result(timeout=60)
    assert sum(done.values()) == 160 and min(done.values()) > 0, done
    assert state(model) == before and torch.equal(model.logits(TEXTS), untouched)


def test_threads_on_different_models_do_not_hear_of_each_other() -> None:
    models = [load(saved(family), "transformers") for family in ("gpt2", "llama", "gpt_neox")]

    def work(model: LiveModel) -> list[Any]:
        with inject(model, make_valuation(model), 1.0), model.intervene(ResidualEdit(1, lambda x: 1.5 * x)):
            return [model.logits(TEXTS), model.generate(TEXTS[0], max_new_tokens=8, do_sample=False)]

    alone = [work(model) for model in models]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(5):
            together = list(pool.map(work, models, timeout=120))
            for (logits, text), (other, words) in zip(alone, together, strict=True):
                assert torch.equal(logits, other) and text == words
