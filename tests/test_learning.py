"""Learning a valuation through the attention of a live model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_study import small_corpus, small_model
from tiny import tiny_model
from torch import Tensor

from emoprobe.artefacts import digest
from emoprobe.errors import InputError
from emoprobe.interventions import AttentionBias, Forward
from emoprobe.models import LiveModel
from emoprobe.valattn import Valuation, inject, learn_valuation, learning_history
from emoprobe.valattn.learn import _apart, _loss, _recording

TEXTS = ["The dog was happy and calm.", "Sad", "I am so glad that you came! The music was good."]
NAMES = ("valence", "arousal")


def make(seed: int = 0, **fields: Any) -> Valuation:
    draw = torch.Generator().manual_seed(seed)
    weight, bias = torch.randn(2, 2, 32, generator=draw) / 4, torch.randn(2, 2, generator=draw)
    return Valuation(weight, bias, NAMES, (0, 2), **fields)


def learn(model: LiveModel, init: Valuation, **options: Any) -> Valuation:
    settings: dict[str, Any] = {"steps": 20, "batch_size": 8, "learning_rate": 0.03, "progress": False}
    return learn_valuation(model, small_corpus(), init, **(settings | options))


def weights(model: LiveModel) -> list[Tensor]:
    return [weight.detach().clone() for _, weight in model.named_weights()]


def tensors(valuation: Valuation) -> list[Tensor]:
    return [t for n in ("weight", "bias", "strength") if (t := getattr(valuation, n)) is not None]


@pytest.mark.parametrize("objective", ["next_token", "annotations", "both"])
def test_the_loss_of_a_padded_batch_is_that_of_its_texts_alone(objective: str) -> None:
    """Worked out in float64 from each text alone: NLL per token, and the squared error of mean valuations."""
    model = tiny_model("llama")
    valuation = make(strength=torch.tensor([0.7, -0.4]))
    valuation = replace(valuation, weight=valuation.weight.double(), bias=valuation.bias.double())
    targets = torch.tensor([[0.5, float("nan")], [-1.0, 0.2], [0.1, 0.9]])
    wanted = None if objective == "next_token" else targets
    total, tokens, errors = 0.0, 0, []
    for text, target in zip(TEXTS, targets, strict=True):
        ids = model.tokenize(text).input_ids[0]
        with torch.no_grad(), inject(model, valuation):
            logp = model.forward(model.tokenize(text))[0].double().log_softmax(-1)
            streams = model.streams(model.tokenize(text), [0, 2])[:, 0]
        total -= float(logp[:-1].gather(-1, ids[1:, None]).sum())
        tokens += len(ids) - 1
        for row in range(2):
            v = torch.tanh(streams[row] @ valuation.weight[row].T + valuation.bias[row])
            read = v[1:].mean(0)  # the start token does not count
            errors += [float((r - t) ** 2) for r, t in zip(read, target, strict=True) if not t.isnan()]
    expected = (objective != "annotations") * total / tokens + (wanted is not None) * 3 * np.mean(errors)
    found = _loss(model, valuation, TEXTS, wanted, objective != "annotations", 3.0)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_the_gradient_of_the_loss_is_its_slope() -> None:
    model, targets = tiny_model("gpt2"), torch.tensor([[0.5, 0.1], [-1.0, 0.2], [0.1, 0.9]])
    start = make(strength=torch.tensor([[0.5, -0.2, 0.1, 0.3]] * 2))
    names = ("weight", "bias", "strength")
    leaves = {name: getattr(start, name).double().requires_grad_() for name in names}

    def loss(values: dict[str, Tensor]) -> Tensor:
        return _loss(model, replace(start, **values), TEXTS, targets, True, 1.0)

    loss(leaves).backward()  # type: ignore[no-untyped-call]
    draw = torch.Generator().manual_seed(1)
    for name, leaf in leaves.items():
        way = torch.randn(leaf.shape, generator=draw, dtype=torch.float64)
        with torch.no_grad():
            up, down = (
                float(loss(leaves | {name: leaf + sign * 1e-3 * way})) for sign in (1, -1)
            )  # single-precision logits do not allow a smaller step
        assert leaf.grad is not None
        slope = float((leaf.grad * way).sum())
        assert (up - down) / 2e-3 == pytest.approx(slope, rel=0.03) and abs(slope) > 1e-3


def test_what_a_model_computes_at_padding_is_not_learned_from() -> None:
    draw = torch.Generator().manual_seed(0)
    stream, weight = torch.randn(2, 5, 32, generator=draw), torch.randn(2, 32, generator=draw)
    forward = Forward(torch.tensor([[False, False, True, True, True], [True] * 5]))
    found = []
    for value in (0.0, torch.nan):
        leaf, seen = weight.clone().requires_grad_(), list[Tensor]()
        bias = AttentionBias(0, lambda x, _, leaf=leaf: torch.tanh(x @ leaf.T), 1.0)
        _recording(bias, seen).valuation(stream.where(forward.real[..., None], value), forward)
        mean = (seen[0] * forward.real[..., None]).sum()
        found.append((mean.detach(), *torch.autograd.grad(mean, leaf)))
    assert all(torch.equal(one, other) and one.any() for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("patience", [None, 3])
def test_a_run_that_was_broken_off_learns_what_it_would_have(tmp_path: Path, patience: int | None) -> None:
    model, start, checkpoint = small_model(), make(), tmp_path / "checkpoint.safetensors"
    whole = learn(model, start, patience=patience)
    before, forward, calls = weights(model), model.forward, 0

    def failing(batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 12:
            raise KeyboardInterrupt
        return forward(batch)

    model.forward = failing  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        learn(model, start, patience=patience, checkpoint=checkpoint)
    model.forward = forward  # type: ignore[method-assign]
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))
    assert not model.interventions and all(w.requires_grad for _, w in model.named_weights())
    resumed = learn(model, start, patience=patience, checkpoint=checkpoint)
    for a, b in zip(tensors(whole), tensors(resumed), strict=True):
        assert torch.equal(a, b)
    assert resumed.metadata == whole.metadata
    with pytest.raises(InputError, match="it differs in start"):
        learn(model, make(1), patience=patience, checkpoint=checkpoint)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("layers", {"layers": (1, 2)}),
        ("dimensions", {"dimensions": NAMES[::-1]}),
        ("ranges", {"ranges": {"valence": (1.0, 9.0)}}),
        ("basis", {"basis": None}),
    ],
)
def test_the_checkpoint_of_another_valuation_is_refused(
    tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    model, start, options = small_model(), make(), {"steps": 1, "checkpoint": tmp_path / "run.safetensors"}
    learn(model, start, **options)
    with pytest.raises(InputError, match=f"it differs in {name}"):
        learn(model, replace(start, **changes), **options)


def test_tensors_are_told_apart_by_name_and_shape() -> None:
    same = torch.arange(6.0)
    assert digest({"bias": same}) == digest({"bias": same.clone()})
    assert len({digest({"bias": same}), digest({"weight": same}), digest({"bias": same.view(2, 3)})}) == 3


@pytest.mark.parametrize(
    "setting", [{"mixed_precision": True}, {"per_head": True}, {"embedding_width": 2}], ids=str
)
def test_the_checkpoint_of_other_settings_is_refused(tmp_path: Path, setting: dict[str, Any]) -> None:
    model, options = small_model(), {"steps": 1, "checkpoint": tmp_path / "run.safetensors"}
    learn(model, make(), **options)
    with pytest.raises(InputError, match=f"it differs in {next(iter(setting))}"):
        learn(model, make(), **options, **setting)


@pytest.mark.parametrize("per_head", [False, True])
def test_the_path_of_lambda_is_kept(tmp_path: Path, per_head: bool) -> None:
    model, start = small_model(), make(strength=torch.tensor(0.25))
    learned = learn(model, start, per_head=per_head)
    assert learned.strength is not None
    heads = model.n_heads if per_head else 1
    assert learned.strength.shape == ((2, heads) if per_head else (2,))
    path = learning_history(Valuation.load(learned.save(tmp_path / "learned.safetensors")))
    assert len(path) == 21 * 2 * heads and path["layer"].unique().tolist() == [0, 2]
    assert (path.strength[path.step == 0] == 0.25).all()
    last = path[path.step == 20]
    assert last.strength.tolist() == pytest.approx(learned.strength.flatten().tolist(), abs=1e-6)
    assert last.returned.all() and not path.returned[path.step < 20].any() and last.loss.isna().all()
    assert path["head"].isna().all() != per_head
    if per_head:
        assert last.groupby("layer").strength.nunique().tolist() == [heads, heads]
        with inject(model, learned):
            model.logits(TEXTS)
        again = learn(model, learned, steps=1)
        assert again.strength is not None and again.strength.shape == (2, heads), "a λ per head stays one"
    with pytest.raises(InputError, match="no history"):
        learning_history(start)


def test_nothing_is_trained_or_chosen_on_held_out_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    model, corpus = small_model(), small_corpus()
    fitted, test = _apart(np.arange(len(corpus)), corpus, 0.2, 0)
    fitted, chosen_by = _apart(fitted, corpus, 0.2, 0)
    parts = [set(corpus.groups[rows]) for rows in (fitted, chosen_by, test)]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2]) and all(parts)
    read: dict[bool, set[str]] = {True: set(), False: set()}
    tokenize = model.tokenize

    def spied(texts: Any, **options: Any) -> Any:
        read[torch.is_grad_enabled()].update(texts)
        return tokenize(texts, **options)

    monkeypatch.setattr(model, "tokenize", spied)
    monkeypatch.setattr("emoprobe.valattn.learn._held_out_nll", lambda *_: {})
    learned = learn(model, make(), patience=2, steps=40, seed=0)
    assert read[True] and read[True] <= {corpus.texts[row] for row in fitted}
    assert read[False] == {corpus.texts[row] for row in chosen_by}
    validation = learned.metadata["validation"]
    assert (
        validation[0][0] == 0 and min(v for _, v in validation) == dict(validation)[learned.metadata["best"]]
    )


def test_where_learning_only_harms_held_out_groups_the_start_is_returned() -> None:
    """A rate that throws the valuation about: no measurement is better than the first."""
    start = make(strength=torch.tensor(0.0))
    learned = learn(small_model(), start, patience=1, learning_rate=50.0, objective="annotations")
    assert learned.metadata["best"] == 0 and torch.equal(learned.weight, start.weight)
    assert len(learned.metadata["losses"]) == 1


def test_half_precision_runs_the_model_and_not_the_valuation() -> None:
    model, start = small_model(), make(strength=torch.tensor([0.5, 0.5]))
    full, half = (learn(model, start, mixed_precision=mixed, steps=3) for mixed in (False, True))
    assert half.weight.dtype == torch.float32 and half.metadata["losses"] != full.metadata["losses"]
    assert half.metadata["losses"] == pytest.approx(full.metadata["losses"], rel=0.02)
    first = start.select([0], model.n_layers)  # reads the embedding, which no precision changes
    targets = torch.tensor([[0.5, 0.1], [-1.0, 0.2], [0.1, 0.9]])
    exact = _loss(model, first, TEXTS, targets, False, 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(_loss(model, first, TEXTS, targets, False, 1.0), exact)


def test_a_lexicon_may_be_the_start() -> None:
    """Valuations of words alone: a table from tokens to valence and arousal, which moves when it is learned."""
    model = small_model()
    table = torch.zeros(len(model.tokenizer), 2)
    table[model.tokenizer("good", add_special_tokens=False)["input_ids"]] = torch.tensor([0.9, 0.4])
    start = replace(Valuation.annotated(32, (0, 2), NAMES), embedding=table)
    learned = learn(model, start)
    assert learned.metadata["from"] == "annotations" and learned.embedding is not None
    assert (
        not torch.equal(learned.embedding, table)
        and learned.metadata["losses"][-1] < learned.metadata["losses"][0]
    )


def test_too_few_groups_are_said() -> None:
    corpus = small_corpus()
    one = corpus.select(indices=np.flatnonzero(corpus.groups == "week 1"))
    with pytest.raises(InputError, match="too few groups"):
        learn_valuation(small_model(), one, make(), progress=False)
    two = corpus.select(indices=np.flatnonzero(np.isin(corpus.groups, ["week 1", "week 2"])))
    with pytest.raises(InputError, match="3 with patience"):
        learn_valuation(small_model(), two, make(), patience=2, progress=False)
