"""Steering against independent computations: positions, padding, cache, units, composition, clean-up."""

from collections.abc import Callable

import pytest
import torch
from oracle import Oracle
from tiny import FAMILIES, tiny_model
from torch import Tensor

from emoprobe.errors import InputError
from emoprobe.models import LiveModel
from emoprobe.models.reference import PASSAGES
from emoprobe.probes import Direction
from emoprobe.steering import add, project_out, steer

TEXTS = [
    "I am so glad that you came!",
    "The dog",
    "They were afraid of the dark and of the letter, but laughing.",
]
TOLERANCE = {
    "gpt2": 1e-12,
    "gpt_neox": 1e-6,
    "llama": 1e-6,
}  # the latter compute parts of their blocks in float32
LAYERS = [1, 3]  # a block's stream, and what leaves the last block


def vectors(model: LiveModel, rows: int | None = None, seed: int = 0) -> Tensor:
    shape = (model.d_model,) if rows is None else (rows, model.d_model)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(model: LiveModel, texts: list[str]) -> list[Tensor]:
    batch = model.tokenize(texts)
    return [ids[real] for ids, real in zip(batch.input_ids, batch.real, strict=True)]


def relative(ours: Tensor, truth: Tensor) -> float:
    return float((ours.double() - truth).norm() / truth.norm())


def adding(vector: Tensor, chosen: Callable[[int], Tensor]) -> Callable[[Tensor], Tensor]:
    """Add a vector at some positions, the plain way; `chosen` maps a length to a boolean (position,)."""
    return lambda x: x + chosen(x.shape[1])[None, :, None] * vector


def hooks(model: LiveModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.underlying.modules())


@pytest.mark.parametrize("positions", ["all", "prompt", "last", "mask", "spans", "generated"])
@pytest.mark.parametrize("family", FAMILIES)
def test_steered_logits_equal_the_independent_computation(family: str, positions: str) -> None:
    model = tiny_model(family)
    oracle, batch, rows = Oracle(model), model.tokenize(TEXTS), vectors(model, 2)
    mask = torch.rand(batch.real.shape, generator=torch.Generator().manual_seed(5)) < 0.5
    spans = [[(2, 6), (12, 13)], [(0, 3)], [(5, 9)]]
    given = {"mask": mask, "spans": spans}.get(positions, positions)
    with torch.no_grad():
        untouched = model.forward(batch)
        with steer(model, rows, 3.0, LAYERS, given, unit="raw"):
            steered = model.forward(batch)
    for row, ids in enumerate(tokens(model, TEXTS)):

        def chosen(length: int, row: int = row) -> Tensor:
            if positions == "mask":
                return mask[row, -length:]
            if positions == "spans":
                own = batch.offsets[row][-length:]
                return torch.tensor([any(a < end and b > begin for begin, end in spans[row]) for a, b in own])
            every = torch.ones(length, dtype=torch.bool)
            last = every.cumsum(0) == length
            return {"all": every, "prompt": every, "generated": ~every, "last": last}[positions]

        edits = {layer: adding(3.0 * v, chosen) for layer, v in zip(LAYERS, rows, strict=True)}
        truth = oracle.logits(ids, edits=edits)
        assert relative(steered[row, -len(ids) :], truth) < TOLERANCE[family]
        plain = untouched[row, -len(ids) :]
        if positions == "generated":
            assert torch.equal(steered[row], untouched[row])
        else:
            assert relative(plain, truth) > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_steering_equals_a_hook_written_by_hand(family: str) -> None:
    model = tiny_model(family, dtype=torch.float32)
    blocks = model.underlying.base_model.h if family == "gpt2" else model.underlying.base_model.layers
    vector = vectors(model).float()

    def by_hand(block: torch.nn.Module, args: tuple) -> tuple:
        return (args[0] + 2.0 * vector, *args[1:])

    handle = blocks[1].register_forward_pre_hook(by_hand)
    truth = model.logits(TEXTS)
    handle.remove()
    with steer(model, vector, 2.0, 1, unit="raw"):
        assert torch.equal(model.logits(TEXTS), truth)
    assert not torch.equal(model.logits(TEXTS), truth)


@pytest.mark.parametrize("positions", ["all", "prompt", "generated", "last", "mask", "spans"])
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_and_uncached_generation_equal_greedy_search_by_hand(family: str, positions: str) -> None:
    model = tiny_model(family)
    oracle, vector, length = Oracle(model), vectors(model), 6
    batch = model.tokenize(TEXTS)
    mask = torch.rand(batch.real.shape, generator=torch.Generator().manual_seed(5)) < 0.5
    given = {"mask": mask, "spans": [(0, 5)]}.get(positions, positions)
    options = dict(max_new_tokens=length, do_sample=False)
    plain = model.generate_ids(batch, **options)[:, -length:]
    with steer(model, vector, 3.0, 1, given, unit="raw"):
        cached = model.generate_ids(batch, **options)[:, -length:]
        uncached = model.generate_ids(batch, **options, use_cache=False)[:, -length:]
    assert torch.equal(cached, uncached)
    assert not torch.equal(cached, plain)
    for row, prompt in enumerate(tokens(model, TEXTS)):

        def chosen(total: int, row: int = row, prompt: Tensor = prompt) -> Tensor:
            index, end = torch.arange(total), len(prompt)
            if positions == "mask":
                return torch.nn.functional.pad(mask[row, -end:], (0, total - end))
            if positions == "spans":
                begun = torch.tensor([a < 5 and b > 0 for a, b in batch.offsets[row][-end:]])
                return torch.nn.functional.pad(begun, (0, total - end))
            every = {
                "all": index >= 0,
                "prompt": index < end,
                "generated": index >= end,
                "last": index == end - 1,
            }
            return every[positions]

        ids = prompt
        for _ in range(length):
            logits = oracle.logits(ids, edits={1: adding(3.0 * vector, chosen)})
            ids = torch.cat([ids, logits[-1].argmax()[None]])
        assert torch.equal(cached[row], ids[len(prompt) :])


def test_padding_does_not_matter() -> None:
    model = tiny_model("llama")
    with steer(model, vectors(model), 0.5, 1):
        together = model.logits(TEXTS)
        for row, text in enumerate(TEXTS):
            alone = model.logits(text)[0]
            assert relative(together[row, -len(alone) :], alone.double()) < 1e-6


def test_nested_steering_adds_up() -> None:
    model = tiny_model("gpt2")
    a, b = vectors(model, seed=1), vectors(model, seed=2)
    untouched = model.logits(TEXTS)
    with steer(model, a + b, 1.0, 1, unit="raw"):
        together = model.logits(TEXTS)
    with steer(model, a, 1.0, 1, unit="raw"):
        only_a = model.logits(TEXTS)
        with steer(model, b, 1.0, 1, unit="raw"):
            nested = model.logits(TEXTS)
        assert torch.equal(model.logits(TEXTS), only_a)
    with steer(model, a, 1.0, 1, unit="raw"), steer(model, -a, 1.0, 1, unit="raw"):
        undone = model.logits(TEXTS)
    real = model.tokenize(TEXTS).real
    torch.testing.assert_close(nested[real], together[real], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(undone[real], untouched[real], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(only_a[real], together[real], atol=1e-2)


def test_leaving_by_an_exception_gives_back_the_untouched_model() -> None:
    model = tiny_model("gpt_neox")
    untouched, before = model.logits(TEXTS), hooks(model)
    with pytest.raises(RuntimeError, match="out"), steer(model, vectors(model), 0.5, [0, 2]):
        assert hooks(model) > before
        assert not torch.equal(model.logits(TEXTS), untouched)
        raise RuntimeError("out")
    assert hooks(model) == before
    assert torch.equal(model.logits(TEXTS), untouched)


def test_a_set_up_that_fails_half_way_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gpt2")
    untouched, before, model_norms = model.logits(TEXTS), hooks(model), model.residual_norms()
    assert model_norms.shape == (4,)

    def refuse(*args: object, **kwargs: object) -> None:
        assert hooks(model) > before  # the hook of layer 0 is there already
        raise RuntimeError("no hook here")

    monkeypatch.setattr(model.underlying.base_model.h[2], "register_forward_pre_hook", refuse)
    with pytest.raises(RuntimeError, match="no hook here"), steer(model, vectors(model), 0.5, [0, 2]):
        pass
    assert hooks(model) == before
    assert torch.equal(model.logits(TEXTS), untouched)
    with steer(model, vectors(model), 0.5, 0):  # and it can still be steered
        assert not torch.equal(model.logits(TEXTS), untouched)


@pytest.mark.parametrize("unit", ["norm", "raw"])
def test_strength_zero_is_the_untouched_model_to_the_last_bit(unit: str) -> None:
    model = tiny_model("llama", dtype=torch.float32)
    untouched = model.logits(TEXTS)
    assert add(model, vectors(model), 0, "all", unit=unit) == []
    with steer(model, vectors(model), 0.0, unit=unit):
        assert torch.equal(model.logits(TEXTS), untouched)


def pushed(model: LiveModel, layer: int, **options: object) -> Tensor:
    """What `add` adds at a layer: (d_model,)."""
    (edit,) = add(model, layers=layer, **options)
    nothing = torch.zeros(1, 1, model.d_model, dtype=torch.float64)
    return edit.edit(nothing)[0, 0]


def test_the_norm_unit_is_a_fraction_of_the_mean_residual_norm() -> None:
    model, vector = tiny_model("gpt2"), 7 * vectors(tiny_model("gpt2"))
    norms = []
    for passage in PASSAGES:  # one by one, by transformers' own hidden states, without the first token
        ids = model.tokenize(passage).input_ids
        hidden = model.underlying(ids, output_hidden_states=True).hidden_states
        norms.append(torch.stack([stream[0, 1:].norm(dim=-1) for stream in hidden[:3]]))
    means = torch.cat(norms, dim=1).mean(1)
    for layer in range(3):
        truth = 0.1 * means[layer] * vector / vector.norm()
        torch.testing.assert_close(
            pushed(model, layer, direction=vector, strength=0.1), truth, rtol=1e-5, atol=1e-6
        )
        raw = pushed(model, layer, direction=vector, strength=0.1, unit="raw")
        assert torch.equal(raw, 0.1 * vector)


def test_a_direction_brings_its_own_norms() -> None:
    model = tiny_model("gpt2")
    rows = vectors(model, 2)
    direction = Direction("calm", (1, 3), rows, torch.tensor([5.0, 50.0]))
    for layer, row, norm in zip((1, 3), rows, (5.0, 50.0), strict=True):
        added = pushed(model, layer, direction=direction, strength=-0.2)
        torch.testing.assert_close(added, -0.2 * norm * row / row.norm())
        torch.testing.assert_close(pushed(model, layer, direction=3 * direction, strength=-0.2), added)
    bare = Direction("calm", (1, 3), rows)  # none remembered: the model's are measured
    expected = 0.1 * model.residual_norms()[3] * rows[1] / rows[1].norm()
    torch.testing.assert_close(pushed(model, 3, direction=bare, strength=0.1), expected)


def test_a_tensor_has_one_row_for_all_layers_or_for_each() -> None:
    model = tiny_model("gpt2")
    rows = vectors(model, 4)
    full = {edit.layer: edit for edit in add(model, rows, 1.0, [3, 0], unit="raw")}
    given = {edit.layer: edit for edit in add(model, rows[[3, 0]], 1.0, [3, 0], unit="raw")}
    nothing = torch.zeros(1, 1, model.d_model, dtype=torch.float64)
    for layer in (0, 3):
        assert torch.equal(full[layer].edit(nothing)[0, 0], rows[layer])
        assert torch.equal(given[layer].edit(nothing)[0, 0], rows[layer])
    assert [edit.layer for edit in add(model, rows[0], layers="all", unit="raw")] == [0, 1, 2, 3]


def test_half_precision_stays_what_it_is() -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    vector = vectors(model)
    batch = model.tokenize(TEXTS)
    before = model.streams(batch, [2])
    with steer(model, vector, 1.5, 2, unit="raw"), torch.no_grad():
        after = model.streams(batch, [2])
        assert model.forward(batch).dtype == torch.bfloat16
        assert isinstance(model.generate("The dog", max_new_tokens=3), str)
    assert torch.equal(after, before + (1.5 * vector).bfloat16())
    with model.intervene(*project_out(model, vector, 2)):
        assert model.streams(batch, [2]).dtype == torch.bfloat16


@pytest.mark.parametrize("family", FAMILIES)
def test_projecting_out_leaves_nothing_along_the_direction_and_all_else(family: str) -> None:
    model = tiny_model(family)
    vector, batch, oracle = vectors(model), model.tokenize(TEXTS), Oracle(model)
    unit = vector / vector.norm()
    before = model.streams(batch, [2])[0]
    with model.intervene(*project_out(model, 5 * vector, 2)):
        after, steered = model.streams(batch, [2])[0], model.logits(TEXTS)
        with model.intervene(*project_out(model, vector, 2)):  # twice is once
            again = model.streams(batch, [2])[0]
    with model.intervene(*project_out(model, vector, 2, "last")):
        last = model.streams(batch, [2])[0]
    assert torch.equal(last[:, :-1], before[:, :-1])
    torch.testing.assert_close(last[:, -1], after[:, -1])
    real = batch.real
    assert (before[real] @ unit).abs().max() > 1
    assert (after[real] @ unit).abs().max() < 1e-12
    torch.testing.assert_close(after[real], (before - (before @ unit)[..., None] * unit)[real])
    torch.testing.assert_close(again[real], after[real])
    for row, ids in enumerate(tokens(model, TEXTS)):
        truth = oracle.logits(ids, edits={2: lambda x: x - (x @ unit)[..., None] * unit})
        assert relative(steered[row, -len(ids) :], truth) < 1e-6


def test_what_cannot_be_is_refused_in_words() -> None:
    model = tiny_model("gpt2")
    direction = Direction("calm", (1, 2), vectors(model, 2))
    other = torch.ones(48)
    with pytest.raises(InputError, match='"calm" has no layer 3: it has 1, 2'):
        add(model, direction, layers=3)
    with pytest.raises(InputError, match=r"width 48.*tiny-gpt2-0 has width 32"):
        add(model, other)
    with pytest.raises(InputError, match=r'"calm" has width 48.*width 32'):
        add(model, Direction("calm", (2,), other[None]))
    for strength in (float("nan"), float("inf"), 1e300, -1e39):
        with pytest.raises(InputError, match="not a finite number"):
            add(model, direction, strength)
    with pytest.raises(InputError, match="numbers that are not finite"):
        add(model, torch.full((32,), torch.nan))
    with pytest.raises(InputError, match=r"zero at layer 2.*points nowhere"):
        add(model, torch.stack([torch.ones(32), torch.zeros(32)]), layers=[1, 2])
    assert len(add(model, torch.zeros(32), unit="raw")) == 1
    with pytest.raises(InputError, match="points nowhere"):
        project_out(model, torch.zeros(32))
    with pytest.raises(InputError, match='unit="sigma"'):
        add(model, direction, unit="sigma")
    with pytest.raises(InputError, match=r"shape \(5, 32\).*3 layers given or of the 4 layers"):
        add(model, torch.ones(5, 32), layers=[0, 1, 2])
    with pytest.raises(InputError, match="direction is a str"):
        add(model, "calm")  # type: ignore[arg-type]
    with pytest.raises(InputError, match='positions="middle"'):
        add(model, direction, positions="middle")
