"""Steering beside repeng and steering-vectors: the same vectors on the same weights give the same logits, or it says why not.

Neither can be installed beside emoprobe. `benchmarks/peers_steering.py` runs them in environments of their own and its record
is held to here; EMOPROBE_PEERS names the interpreter of such an environment, to run them again. What they do to a stream is
restated below in plain hooks, so that where they agree and where they differ is tested without them too.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_model
from torch import Tensor

from emoprobe.models import LiveModel
from emoprobe.models.live import Batch
from emoprobe.steering import add

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
TEXTS = ["They were afraid of the dark and of the letter.", "The dog"]
FAMILIES = ("gpt2", "llama")


@pytest.fixture(scope="module")
def peers() -> Iterator[Any]:
    """Return the benchmark as a module."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import peers_steering

        yield peers_steering
    finally:
        sys.path.remove(str(BENCHMARKS))


# With the peers themselves -------------------------------------------------------------------------------------------


def check(row: dict[str, Any], peers: Any) -> None:
    """Hold a row of the record to what is claimed of its case."""
    case, error = row["case"], row.get("error", "")
    if case not in peers.REASONS:
        assert peers.agrees(row), row
    elif case == "added; padded, no positions given":
        if row["peer"] == "repeng" and (row["model"] == "llama" or row["transformers"] >= "5"):
            assert error.startswith("RuntimeError: shape"), row
        elif row["model"] == "llama":
            assert peers.agrees(row), row
        else:
            assert row["unpadded"] <= peers.TOLERANCE and row["difference"] > 0.1, row
    elif case == "added from a token on; padded":
        assert row["unpadded"] <= peers.TOLERANCE and row["difference"] > 0.1, row
    elif case == "added from a token on; step by step":
        assert row["from_unsteered"] <= peers.TOLERANCE and row["difference"] > 0.1, row
    else:
        assert error, row


def test_the_record_holds_what_is_claimed_of_each_case(peers: Any) -> None:
    record = json.loads((BENCHMARKS / "peers_steering.json").read_text())
    for peer, cases in peers.CASES.items():
        versions = {v["transformers"] for v in record["versions"] if peer.replace("_", "-") in v}
        assert {version.split(".")[0] for version in versions} == {"4", "5"}
        expected = {(v, model, "; ".join(case)) for v in versions for model in FAMILIES for case in cases}
        found = [
            (row["transformers"], row["model"], row["case"]) for row in record["rows"] if row["peer"] == peer
        ]
        assert set(found) == expected and len(found) == len(expected)
    for row in record["rows"]:
        check(row, peers)
        assert row.get("from_unsteered", 1.0) > 0.1 or "step by step" in row["case"]  # they do steer
    assert (BENCHMARKS / "peers_steering.md").read_text() == peers.markdown(record)


@pytest.mark.parametrize("peer", ["repeng", "steering_vectors"])
def test_the_peers_give_now_what_the_record_says(peer: str, peers: Any) -> None:
    python = os.environ.get("EMOPROBE_PEERS", sys.executable)
    compared = peers.compare(python, peer)
    if compared is None:
        pytest.skip(f"{python} cannot import {peer}; set EMOPROBE_PEERS to an interpreter that can")
    for row in compared[1]:
        check(row, peers)


# What they do, restated ----------------------------------------------------------------------------------------------


@contextmanager
def hooked(model: LiveModel, block: int, act: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Change what leaves a block, the plain way."""
    base = model.underlying.base_model
    blocks = base.h if hasattr(base, "h") else base.layers

    def hook(_module: object, _inputs: object, output: Any) -> Any:
        return (act(output[0]), *output[1:]) if isinstance(output, tuple) else act(output)

    handle = blocks[block].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def setting(family: str) -> tuple[LiveModel, Batch, Tensor]:
    model = tiny_model(family)
    batch = model.tokenize(TEXTS)
    assert not batch.real.all() and batch.real[0].all()  # padded on the left, the first row without padding
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return model, batch, vector


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("padding", ["spared, as repeng does", "steered, as steering-vectors does"])
def test_whether_padding_is_steered_too_makes_no_difference(family: str, padding: str) -> None:
    """repeng adds control · mask, steering-vectors adds everywhere: no real token attends to padding."""
    model, batch, vector = setting(family)
    where = batch.real[..., None] if padding.startswith("spared") else torch.ones(1, 1, 1, dtype=torch.bool)
    with hooked(model, 1, lambda stream: stream + where * vector):
        theirs = model.forward(batch)
    with model.intervene(*add(model, vector, 1.0, 2, unit="raw")):  # what leaves block 1 is layer 2
        ours = model.forward(batch)
    assert torch.allclose(ours[batch.real], theirs[batch.real], rtol=0, atol=1e-10)
    assert (ours - model.forward(batch))[batch.real].abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_rescaling_the_sum_as_repeng_does_is_keep_norm(family: str) -> None:
    model, batch, vector = setting(family)

    def rescaled(stream: Tensor) -> Tensor:
        moved = stream + vector
        return moved / moved.norm(dim=-1, keepdim=True) * stream.norm(dim=-1, keepdim=True)

    with hooked(model, 1, rescaled):
        theirs = model.forward(batch)
    with model.intervene(*add(model, vector, 1.0, 2, unit="raw", keep_norm=True)):
        ours = model.forward(batch)
    assert torch.allclose(ours[batch.real], theirs[batch.real], rtol=0, atol=1e-10)


def from_index(first: int, vector: Tensor) -> Callable[[Tensor], Tensor]:
    """Add a vector from an index on that counts from the start of each call, as steering-vectors' min_token_index does."""
    return lambda stream: stream + (torch.arange(stream.shape[1]) >= first)[None, :, None] * vector


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_an_index_that_counts_padding_steers_padded_rows_from_an_earlier_token(family: str) -> None:
    model, batch, vector = setting(family)
    first = 2
    with hooked(model, 1, from_index(first, vector)):
        theirs = model.forward(batch)
    late = batch.real & (batch.position_ids >= first)
    with model.intervene(*add(model, vector, 1.0, 2, late, unit="raw")):
        ours = model.forward(batch)
    assert torch.allclose(ours[0], theirs[0], rtol=0, atol=1e-10)
    assert (ours - theirs)[1][batch.real[1]].abs().max() > 0.1
    alone = model.tokenize(TEXTS[1])  # without padding the short text is steered where it was meant to be
    with hooked(model, 1, from_index(first, vector)):
        expected = model.forward(alone)
    assert torch.allclose(ours[1][batch.real[1]], expected[0], rtol=0, atol=1e-5)  # Llama is float32 in parts


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_an_index_that_counts_from_each_call_steers_nothing_with_a_cache(family: str) -> None:
    model, batch, vector = setting(family)
    vector, length = 5 * vector, batch.input_ids.shape[1]
    options = dict(max_new_tokens=8, do_sample=False)
    plain = model.generate_ids(batch, **options)
    with hooked(model, 1, from_index(length, vector)):
        cached = model.generate_ids(batch, **options, use_cache=True)
        uncached = model.generate_ids(batch, **options, use_cache=False)
    assert torch.equal(cached, plain) and not torch.equal(uncached, plain)
    with model.intervene(*add(model, vector, 1.0, 2, "generated", unit="raw")):
        assert torch.equal(model.generate_ids(batch, **options, use_cache=True), uncached)
        assert torch.equal(model.generate_ids(batch, **options, use_cache=False), uncached)


@torch.no_grad()
def test_positions_left_to_the_library_count_padding() -> None:
    """GPT-2 learned its positions: unless they are given, padded rows are computed at others than their own."""
    model, batch, vector = setting("gpt2")
    with model.intervene(*add(model, vector, 1.0, 2, unit="raw")):
        ours = model.forward(batch)
    with hooked(model, 1, lambda stream: stream + vector):
        given = {"input_ids": batch.input_ids, "attention_mask": batch.real.long()}
        without = model.underlying(**given).logits
        with_positions = model.underlying(**given, position_ids=batch.position_ids).logits
    assert torch.allclose(ours[batch.real], with_positions[batch.real], rtol=0, atol=1e-10)
    assert torch.allclose(ours[0], without[0], rtol=0, atol=1e-10)
    assert (ours - without)[1][batch.real[1]].abs().max() > 0.1
