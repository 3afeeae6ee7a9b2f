"""Runs side by side in one batch: each comes out as it would alone, whatever is done to the others."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from backends import load, saved
from test_steering_kinds import KINDS, made, probes
from test_stream import make_stream
from tiny import FAMILIES, HEADS, tiny_model
from torch import Tensor

from emoprobe.errors import InputError
from emoprobe.interventions import Intervention
from emoprobe.models import Batch, LiveModel
from emoprobe.side_by_side import side_by_side
from emoprobe.steering import (
    Measure,
    add,
    coherence,
    continuation,
    generations,
    kl,
    nll,
    read_out,
    rotate,
    row_wise,
    scheduled,
    sweep,
)
from emoprobe.steering.row_wise import Passes, RowWise, run_together
from emoprobe.valattn import Valuation, biases

TEXTS = ["I am so glad that you came!", "The dog", "They were afraid of the dark and of the letter."]
PROMPTS = ["I am so", "The dog", "They were afraid of the dark and of the letter, but she was"]
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}
# These compute parts of their blocks in float32 whatever the dtype of the weights.
FLOAT64 = ["gpt2"]


def vector(model: LiveModel, seed: int = 7) -> Tensor:
    return torch.randn(model.d_model, generator=torch.Generator().manual_seed(seed))


def valuation(model: LiveModel, m: int = 2, layers: Sequence[int] = (0, 1), seed: int = 11) -> Valuation:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(len(layers), m, model.d_model, generator=generator) / 2
    names = tuple(f"d{k}" for k in range(m))
    return Valuation(weight, torch.zeros(len(layers), m), names, tuple(layers))


def runs_of(model: LiveModel) -> list[list[Intervention]]:
    """Runs of all kinds: edits, positions, valuations of several widths and blocks, streams, both, and nothing at all."""
    mask = torch.rand(model.tokenize(TEXTS).real.shape, generator=torch.Generator().manual_seed(5)) < 0.5
    v, two = vector(model), valuation(model)
    per_head = torch.linspace(-1.5, 1.5, 2 * HEADS).reshape(2, HEADS)
    return [
        [],
        *([*made(kind, model)[0]] for kind in KINDS),
        [*add(model, v, 0.3, 1, [(2, 6)])],
        [*add(model, v, 0.3, 1, [[(2, 6)], [(0, 3)], [(5, 9)]])],
        [*add(model, v, 0.3, 2, mask)],
        [*add(model, v, 0.3, 1, "last"), *rotate(model, v, 0.5, 1)],
        [*scheduled(add(model, v, 0.3, 1), [1.0, 0.5])],
        [*biases(model, two, 1.5)],
        [*biases(model, two, per_head), *biases(model, valuation(model, 3, seed=2), -0.7)],
        [*biases(model, valuation(model, 3, (2,)), 1.5, toward={"d1": 1.0}, share=0.6)],
        [*biases(model, two, 0.0)],
        [*biases(model, make_stream(), 1.5), *add(model, v, 0.3, [0, 2])],
        [*add(model, v, 0.3, 3)],
    ]


def apart(one: Tensor, other: Tensor, real: Tensor) -> float:
    return float((one - other)[real].abs().max() / other[real].abs().max())


def check_side_by_side(model: LiveModel, runs: list[list[Intervention]], tolerance: float) -> None:
    batch = model.tokenize(TEXTS)
    assert not batch.real.all()
    with torch.no_grad():
        untouched = model.forward(batch)
        with model.intervene(*side_by_side(runs)):
            logits = model.forward(batch.repeated(len(runs))).chunk(len(runs))
            streams = model.streams(batch.repeated(len(runs)), [2])[0].chunk(len(runs))
        for number, run in enumerate(runs):
            with model.intervene(*run):
                alone, stream = model.forward(batch), model.streams(batch, [2])[0]
            assert apart(logits[number], alone, batch.real) < tolerance, number
            assert apart(streams[number], stream, batch.real) < tolerance, number
        assert torch.equal(model.forward(batch), untouched)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_run_comes_out_as_it_would_alone(family: str, dtype: torch.dtype) -> None:
    model = tiny_model(family, dtype=dtype)
    runs = runs_of(model)
    tolerance = TOLERANCES[dtype if family in FLOAT64 else torch.float32]
    check_side_by_side(model, runs, tolerance)
    batch = model.tokenize(TEXTS)
    with torch.no_grad():  # and they are not all the same
        with model.intervene(*side_by_side(runs)):
            rows = model.forward(batch.repeated(len(runs))).chunk(len(runs))
    still = [number for number, row in enumerate(rows) if apart(row, rows[0], batch.real) < 1e-4]
    # Nothing, a schedule over generated tokens of which there are none, and λ = 0.
    assert len(still) == 3 and still[0] == 0 and runs[still[1]][0].weight and runs[still[2]][0].is_zero


@pytest.mark.parametrize("backend", ["transformers", "transformer_lens", "nnsight"])
def test_backends_place_them_like_any_other(backend: str) -> None:
    if backend != "transformers":
        pytest.importorskip(backend)
    model = load(saved("llama"), backend)
    v = vector(model)
    runs = [add(model, v, 0.3, 1), biases(model, valuation(model), 1.5), [], rotate(model, v, 0.5, 3)]
    check_side_by_side(model, [[*run] for run in runs], 1e-5)


def test_interventions_around_them_act_on_every_run() -> None:
    model = tiny_model("gpt2")
    v, w, batch = vector(model), vector(model, 8), model.tokenize(TEXTS)
    runs = [add(model, w, 0.3, 1), add(model, w, -0.3, 2)]
    with torch.no_grad(), model.intervene(*add(model, v, 0.5, 1), *biases(model, valuation(model), 1.0)):
        with model.intervene(*side_by_side(runs)):
            rows = model.forward(batch.repeated(2)).chunk(2)
        for run, row in zip(runs, rows, strict=True):
            with model.intervene(*run):
                assert apart(row, model.forward(batch), batch.real) < 1e-10


def test_interventions_around_them_that_are_meant_for_one_prompt_act_on_that_one() -> None:
    model = tiny_model("gpt2")
    v, w = vector(model), vector(model, 8)
    runs = [add(model, w, 0.3, 1), add(model, w, -0.3, 2), []]
    measure = nll(TEXTS)
    mask = torch.zeros(len(TEXTS), model.tokenize(TEXTS).input_ids.shape[1], dtype=torch.bool)
    mask[0] = True
    for positions in (mask, [[(0, 4)], *[[]] * (len(TEXTS) - 1)]):
        with model.intervene(*add(model, v, 2.0, 1, positions=positions)):
            found = run_together(model, lambda: measure.passes(model, PROMPTS), runs)
            for run, values in zip(runs, found, strict=True):
                with model.intervene(*run):
                    assert torch.allclose(values["nll"], measure(model, PROMPTS)["nll"], atol=1e-10)


def test_rows_that_do_not_divide_and_caches_are_refused_and_leave_the_model_as_it_was() -> None:
    model = tiny_model("gpt2")
    untouched, v = model.logits(TEXTS), vector(model)
    edits = side_by_side([add(model, v, 0.3, 1), add(model, v, -0.3, 1)])
    values = side_by_side([biases(model, valuation(model), 1.0), []])
    for placed in (edits, values):
        with model.intervene(*placed):
            with pytest.raises(InputError, match="multiple of 2 rows and no KV cache, not 3 rows"):
                model.logits(TEXTS)
            with pytest.raises(InputError, match="not 2 rows with one"):
                model.generate(TEXTS[:2], max_new_tokens=2, do_sample=False)
    assert torch.equal(model.logits(TEXTS), untouched) and not model.interventions


# Measures ------------------------------------------------------------------------------------------------------------


def measures(model: LiveModel) -> list[RowWise]:
    return [
        nll(TEXTS, batch_size=2),
        kl(TEXTS, batch_size=2),
        coherence([*TEXTS, "He felt calm, then angry."], names=("one", "two")),
        read_out(probes(model), ["calm", "afraid"], 3),
        continuation({"glad": [" happy", " glad", " good and happy"], "sad": [" sad"]}, batch_size=2),
    ]


class Counted:
    """Counts the passes of a model and their rows."""

    def __init__(self, model: LiveModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        for name in ("forward", "streams"):
            run = getattr(model, name)
            monkeypatch.setattr(model, name, lambda batch, *rest, run=run: self._count(run, batch, *rest))

    def _count(self, run: object, batch: Batch, *rest: object) -> Tensor:
        self.rows.append(len(batch.real))
        return run(batch, *rest)  # type: ignore[operator]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_measures_say_the_same_of_runs_together_in_as_many_passes_as_of_one(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("gpt2", dtype=dtype)
    v = vector(model)
    runs = [[*add(model, v, s, 1)] for s in (0.2, -0.4)] + [[*biases(model, valuation(model), 2.0)], []]
    for measure in measures(model):
        measure(model, PROMPTS)
        with monkeypatch.context() as patch:
            counted = Counted(model, patch)
            found = run_together(model, lambda measure=measure: measure.passes(model, PROMPTS), runs)
        with monkeypatch.context() as patch:
            once = Counted(model, patch)
            measure(model, PROMPTS)
        assert counted.rows == [4 * rows for rows in once.rows]
        for run, values in zip(runs, found, strict=True):
            with model.intervene(*run):
                alone = measure(model, PROMPTS)
            assert values.keys() == alone.keys()
            for name in alone:
                bound = TOLERANCES[dtype]
                torch.testing.assert_close(values[name], alone[name], rtol=bound, atol=bound)
                assert values[name].dtype == torch.float64


def test_a_pass_holds_no_more_positions_than_it_may_and_one_run_at_least(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model("gpt2")
    runs = [[*add(model, vector(model), s, 1)] for s in (0.1, 0.2, 0.3, 0.4, 0.5)]
    measure, size = nll(TEXTS), model.tokenize(TEXTS).input_ids.numel()
    found = []
    for positions, rows in ((10**6, [15]), (2 * size, [6, 6, 3]), (2 * size - 1, [3] * 5), (1, [3] * 5)):
        monkeypatch.setattr(row_wise, "POSITIONS", positions)
        with monkeypatch.context() as patch:
            counted = Counted(model, patch)
            found.append(run_together(model, lambda: measure.passes(model, PROMPTS), runs))
        assert counted.rows == rows
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-10, atol=1e-10)


def test_what_asks_for_other_passes_after_other_answers_is_refused() -> None:
    model = tiny_model("gpt2")
    runs = [[*add(model, vector(model), s, 1)] for s in (0.1, -3.0)]

    def passes(live: LiveModel, prompts: Sequence[str]) -> Passes[dict[str, Tensor]]:
        logits = yield live.forward, live.tokenize(prompts)
        chosen = live.tokenizer.decode(logits[0, -1].argmax())
        logits = yield live.forward, live.tokenize([prompts[0] + chosen])
        return {"x": logits[:, -1, 0]}

    def early(live: LiveModel, prompts: Sequence[str]) -> Passes[dict[str, Tensor]]:
        logits = yield live.forward, live.tokenize(prompts)
        if logits[0, -1].argmax() == told[0]:
            logits = yield live.forward, live.tokenize(prompts)
        return {"x": logits[:, -1, 0]}

    told = []
    for run in runs:
        with model.intervene(*run):
            told.append(int(model.logits(PROMPTS)[0, -1].argmax()))
            RowWise(passes)(model, PROMPTS)  # by itself it may
    assert told[0] != told[1]
    untouched = model.logits(PROMPTS)
    for refused in (passes, early):
        with pytest.raises(InputError, match="same passes whatever the model says"):
            run_together(model, lambda refused=refused: refused(model, PROMPTS), runs)
    assert torch.equal(model.logits(PROMPTS), untouched)


def test_the_same_tokens_with_other_padding_are_other_passes() -> None:
    model = tiny_model("gpt2")
    runs = [[*add(model, vector(model), s, 1)] for s in (0.1, -0.1)]
    begun = []

    def passes(live: LiveModel, prompts: Sequence[str]) -> Passes[dict[str, Tensor]]:
        batch = live.tokenize(prompts)
        if begun:
            batch = replace(batch, real=batch.real & (batch.real.cumsum(-1) > 1))
        begun.append(True)
        logits = yield live.forward, batch
        return {"x": logits[:, -1, 0]}

    with pytest.raises(InputError, match="same passes whatever the model says"):
        run_together(model, lambda: passes(model, PROMPTS), runs)


def test_what_a_measure_refuses_it_refuses_of_runs_together_too() -> None:
    model = tiny_model("gpt2")
    run = add(model, vector(model), 0.3, 2)
    for measure, match in (
        (read_out(probes(model), "calm", 2), "not above the interventions"),
        (kl(TEXTS), "on the untouched model before"),
        (nll(["a"]), '"a" is one token'),
    ):
        with pytest.raises(InputError, match=match):
            run_together(model, lambda measure=measure: measure.passes(model, PROMPTS), [run, run])
        assert not model.interventions
    with pytest.raises(InputError, match='positions="generated"'):
        generated = add(model, vector(model), 0.3, 2, "generated")
        run_together(model, lambda: nll(TEXTS).passes(model, PROMPTS), [run, generated])


# Sweeps --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["vector", "valuation", "clamped"])
def test_a_sweep_of_runs_together_is_that_of_one_run_at_a_time(kind: str, dtype: torch.dtype) -> None:
    model = tiny_model("gpt2", dtype=dtype)
    what = valuation(model) if kind == "valuation" else vector(model)
    other = valuation(model, 3, (1,), 5) if kind == "valuation" else vector(model, 8)
    edit = (lambda *given: made("subspace", model)[0] + rotate(*given)) if kind == "clamped" else add

    def plain(live: LiveModel, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {"norm": live.capture(prompts, [3], "last")[:, 0].norm(dim=-1)}

    def swept(together: int) -> pd.DataFrame:
        used: list[Measure] = [*measures(model), plain, generations(max_new_tokens=4)]
        used = [measure for measure in used if kind != "clamped" or measure is not used[3]]
        options = {"unrelated": other, "controls": 2, "progress": False, "together": together}
        return sweep(model, what, [-0.5, 0.2, 0.5], PROMPTS, used, edit=edit, **options).raw

    alone = swept(1)
    for together in (2, 16):
        found = swept(together)
        by = TOLERANCES[dtype]
        pd.testing.assert_frame_equal(found.drop(columns="value"), alone.drop(columns="value"))
        np.testing.assert_allclose(found["value"], alone["value"], rtol=by, atol=by)
    assert alone.groupby(["strength", "condition"])["value"].mean().nunique() > 8


def test_one_run_that_is_not_finite_does_not_spoil_the_others(recwarn: pytest.WarningsRecorder) -> None:
    model = tiny_model("gpt2", dtype=torch.float32)
    options = {"controls": 1, "progress": False}
    found = sweep(model, vector(model), [0.1, 0.2, 1e38], PROMPTS, [nll(TEXTS)], **options).raw
    truth = sweep(model, vector(model), [0.1, 0.2], PROMPTS, [nll(TEXTS)], **options).raw
    assert found[found.strength == 1e38]["value"].isna().all() and len(recwarn)
    left = found[found.strength != 1e38]
    both = left.merge(
        truth.astype({"seed": "Int64"}), on=["strength", "condition", "seed", "measure", "text"]
    )
    assert len(both) == len(truth)
    np.testing.assert_allclose(both.value_x, both.value_y, rtol=1e-5)


def test_an_interrupted_sweep_of_runs_together_keeps_whole_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("gpt2", dtype=torch.float32)
    options = {"controls": 1, "progress": False, "together": 2}
    strengths, used = [0.1, 0.2, 0.3], [nll(TEXTS)]
    whole = sweep(model, vector(model), strengths, PROMPTS, used, **options)
    forward, passes = model.forward, []

    def interrupted(batch: Batch) -> Tensor:
        passes.append(len(batch.real))
        if len(passes) == 4:
            raise KeyboardInterrupt
        return forward(batch)

    monkeypatch.setattr(model, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep(model, vector(model), strengths, PROMPTS, used, out=tmp_path, **options)
    assert len(list(tmp_path.glob("*.parquet"))) == 1 + 2 * 2
    again = sweep(model, vector(model), strengths, PROMPTS, used, out=tmp_path, **options)
    # Nine runs: three strengths, each steered, at random and negated. Untouched, two pairs, the pair that broke off; then the
    # untouched again and the five that were left.
    assert passes == [3, 6, 6, 6, 3, 6, 6, 3]
    pd.testing.assert_frame_equal(again.raw, whole.raw)


def test_a_sweep_runs_at_least_one_at_a_time() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(InputError, match="together=0 runs cannot share a pass"):
        sweep(model, vector(model), [0.1], PROMPTS, [nll(TEXTS)], together=0)
