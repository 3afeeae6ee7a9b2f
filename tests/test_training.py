"""The trainer: plain tensors, a loss of rows, and nothing else."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState
from torch import Tensor

from emoprobe.errors import InputError
from emoprobe.valattn.training import History, _check, batch_of, rate, train

LENGTHS = [5, 40, 7, 33, 12, 28, 9, 21, 14, 30, 6, 18]
X = torch.randn(len(LENGTHS), 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = X @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def start() -> dict[str, Tensor]:
    return {
        "weight": torch.zeros(3, dtype=torch.float64, requires_grad=True),
        "shift": torch.ones(1, dtype=torch.float64, requires_grad=True),
    }


def squared(tensors: dict[str, Tensor]) -> Callable[[Sequence[int]], Tensor]:
    def loss(rows: Sequence[int]) -> Tensor:
        chosen = list(rows)
        return (X[chosen] @ tensors["weight"] + tensors["shift"] - Y[chosen]).square().mean()

    return loss


def run(tensors: dict[str, Tensor], loss: Any = None, **options: Any) -> History:
    settings: dict[str, Any] = {
        "steps": 40,
        "batch_size": 4,
        "learning_rate": 0.1,
        "watch": ("shift",),
        "progress": False,
    }
    return train(tensors, loss or squared(tensors), LENGTHS, **(settings | options))


def test_it_is_adamw_with_clipping_a_warm_up_and_a_cosine() -> None:
    """Written out by hand in float64: moments, bias correction, clipped gradients, the rate of each step."""
    tensors = start()
    history = run(tensors, steps=60, batch_size=12)
    by_hand = start()
    w = torch.cat([t.detach() for t in by_hand.values()])
    first, second = torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    design = torch.cat([X, torch.ones(len(X), 1, dtype=torch.float64)], dim=1)
    rates = [*((k + 1) / 6 for k in range(6)), *(0.5 * (1 + np.cos(np.pi * k / 54)) for k in range(54))]
    clipped = 0
    for step, share in enumerate(rates, start=1):
        error = design @ w - Y
        assert history.losses[step - 1] == pytest.approx(float(error.square().mean()))
        gradient = 2 * design.T @ error / len(X)
        clipped += bool(gradient.norm() > 1)
        gradient = gradient / max(1.0, float(gradient.norm()) + 1e-6)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        w = w - 0.1 * share * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    assert torch.allclose(torch.cat([t.detach() for t in tensors.values()]), w, rtol=1e-9)
    assert 0 < clipped < len(rates)
    assert history.paths["shift"].shape == (61, 1) and history.paths["shift"][0] == 1
    assert history.paths["shift"][-1] == tensors["shift"] and history.best == 60


def test_rates_rise_to_the_whole_and_fall_to_nothing() -> None:
    rates = [rate(step, 200) for step in range(200)]
    assert rates[0] == 1 / 20 and rates[19] == rates[20] == 1 and 0 < rates[-1] < 1e-3
    assert np.all(np.diff(rates[:20]) > 0) and np.all(np.diff(rates[20:]) < 0)
    assert rate(0, 1) == 1


def test_each_row_is_met_once_in_an_epoch_and_with_its_like() -> None:
    lengths = [(7 * k) % 101 for k in range(101)]
    epoch = [batch_of(step, lengths, 10, seed=3) for step in range(10)]
    assert len({row for batch in epoch for row in batch}) == 100 and all(len(batch) == 10 for batch in epoch)
    assert max(np.ptp([lengths[row] for row in batch]) for batch in epoch) <= 11
    order = [np.mean([lengths[row] for row in batch]) for batch in epoch]
    assert order != sorted(order), "batches come in random order, not from short to long"
    assert sorted(batch_of(10, lengths, 10, seed=3)) != sorted(epoch[0])
    assert batch_of(0, lengths, 10, seed=4) != epoch[0] == batch_of(0, lengths, 10, seed=3)
    assert sorted(batch_of(5, [1, 2, 3], 10, seed=0)) == [0, 1, 2]
    met = Counter(row for step in range(200) for row in batch_of(step, lengths, 10, seed=0))
    assert min(met.values()) >= 15, "what is left over in one epoch has its turn in another"


@pytest.mark.parametrize("early", [False, True])
def test_a_run_that_was_broken_off_ends_where_it_would_have(tmp_path: Path, early: bool) -> None:
    def options(tensors: dict[str, Tensor]) -> dict[str, Any]:
        every_row = range(len(LENGTHS))
        return {"validate": lambda: float(squared(tensors)(every_row)), "patience": 3} if early else {}

    whole, checkpoint = start(), tmp_path / "training.safetensors"
    expected = run(whole, **options(whole))
    broken, calls = start(), 0

    def failing(rows: Sequence[int]) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 24:
            raise KeyboardInterrupt
        return squared(broken)(rows)

    with pytest.raises(KeyboardInterrupt):
        run(broken, failing, checkpoint=checkpoint, **options(broken))
    assert list(tmp_path.iterdir()) == [checkpoint], "no half-written file is left"
    resumed, seen = start(), 0

    def counting(rows: Sequence[int]) -> Tensor:
        nonlocal seen
        seen += 1
        return squared(resumed)(rows)

    found = run(resumed, counting, checkpoint=checkpoint, **options(resumed))
    assert 0 < seen == 40 - 22, "it goes on from the last checkpoint, and does not begin again"
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name])
    assert found.losses == expected.losses and found.validation == expected.validation
    assert torch.equal(found.paths["shift"], expected.paths["shift"]) and found.best == expected.best
    again = start()
    done = run(again, lambda rows: pytest.fail("done already"), checkpoint=checkpoint, **options(again))
    assert done.losses == expected.losses and torch.equal(again["weight"], whole["weight"])


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "training.safetensors"
    run(start(), checkpoint=path, identity={"corpus": "a"})
    with pytest.raises(InputError, match="another run"):
        run(start(), checkpoint=path, identity={"corpus": "b"})
    with pytest.raises(InputError, match="it differs in corpus"):
        run(start(), checkpoint=path)
    with pytest.raises(InputError, match="it differs in seed"):
        run(start(), checkpoint=path, identity={"corpus": "a"}, seed=1)
    other = {"weight": torch.zeros(2, requires_grad=True), "shift": torch.ones(1, requires_grad=True)}
    with pytest.raises(InputError, match="it differs in its tensors"):
        run(other, checkpoint=path, identity={"corpus": "a"})


def test_it_stops_early_and_gives_the_best_back() -> None:
    """The held-out loss falls until step 10 and rises from there on."""
    tensors, taken = start(), []

    def loss(rows: Sequence[int]) -> Tensor:
        taken.append(tensors["weight"].detach().clone())
        return squared(tensors)(rows)

    history = run(tensors, loss, validate=lambda: abs(len(taken) - 10.0), patience=3)
    assert history.best == 10 and len(history.losses) == 16, (
        "three measurements, two steps apart, without a gain"
    )
    assert history.validation == [(step, abs(step - 10.0)) for step in range(0, 18, 2)]
    assert torch.equal(tensors["weight"], taken[10])
    untouched = start()
    assert run(untouched, validate=lambda: 1.0).best == 0, "where nothing gets better, the start is the best"
    assert torch.equal(untouched["weight"], torch.zeros(3, dtype=torch.float64))


def test_what_cannot_be_trained_is_said() -> None:
    with pytest.raises(InputError, match="nothing to train on"):
        train(start(), squared(start()), [], steps=1, batch_size=1, learning_rate=1)
    with pytest.raises(InputError, match="batch_size=0"):
        run(start(), batch_size=0)
    with pytest.raises(InputError, match="the loss of step 0 is nan"):
        run(start(), lambda rows: torch.tensor(float("nan"), requires_grad=True))


def test_a_tensor_that_the_loss_does_not_reach_stays_as_it_is(tmp_path: Path) -> None:
    tensors = start() | {"idle": torch.ones(2, requires_grad=True)}
    run(tensors, checkpoint=tmp_path / "c.safetensors")
    assert torch.equal(tensors["idle"].detach(), torch.ones(2))
    run(start() | {"idle": torch.ones(2, requires_grad=True)}, checkpoint=tmp_path / "c.safetensors")


def process(rank: int, port: int, folder: Path) -> None:
    """Be one of two processes of a run, and write down what came of it."""
    place = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": 2,
        "RANK": rank,
        "LOCAL_RANK": rank,
    }
    os.environ.update({name: str(value) for name, value in place.items()}, ACCELERATE_USE_CPU="true")
    PartialState._reset_state()
    tensors, met = start(), []

    def loss(rows: Sequence[int]) -> Tensor:
        met.append(list(rows))
        return squared(tensors)(rows)

    history = run(tensors, loss, steps=10, checkpoint=folder / "checkpoint.safetensors")
    found = [PartialState().num_processes, tensors["weight"].tolist(), history.losses, met]
    (folder / f"{rank}.json").write_text(json.dumps(found))


@pytest.mark.skipif(sys.platform != "linux", reason="forks, so that nothing is imported anew")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """Each takes half of every batch; the mean of two halves' gradients is the gradient of the whole."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=process, args=(rank, port, tmp_path)) for rank in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join(timeout=60)
        assert one.exitcode == 0
    tensors = start()
    alone = run(tensors, steps=10)
    shares = []
    for rank in range(2):
        count, weight, losses, met = json.loads((tmp_path / f"{rank}.json").read_text())
        shares.append(met)
        assert count == 2
        assert weight == pytest.approx(tensors["weight"].tolist(), rel=1e-9)
        assert losses == pytest.approx(alone.losses, rel=1e-9)
    for step, halves in enumerate(zip(*shares, strict=True)):
        assert [len(half) for half in halves] == [2, 2]
        assert sorted(row for half in halves for row in half) == sorted(batch_of(step, LENGTHS, 4, seed=0))
    assert (tmp_path / "checkpoint.safetensors").is_file()
    with pytest.raises(InputError, match="cannot be shared"):
        _check([1, 2, 3], 1, 3, 0.1, processes=2)
