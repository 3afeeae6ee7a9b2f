"""What `capture` and `mean_norms` return: the same however texts are batched, padded and ordered, wherever it is kept."""

import os
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from tiny import tiny_model
from torch import Tensor

from emoprobe import activations
from emoprobe.activations import capture, mean_norms
from emoprobe.errors import InputError

TEXTS = [f"{'very ' * (7 * number % 11)}happy was the dog number {number}" for number in range(34)] + ["a"]
ORDERS = {
    "as given": list(range(len(TEXTS))),
    "sorted": sorted(range(len(TEXTS)), key=lambda i: len(TEXTS[i])),
}


@cache
def alone(family: str) -> list[Tensor]:
    """Return a model's own streams of each text by itself, (layers before the last, position, d_model)."""
    model, found = tiny_model(family), []
    for text in TEXTS:
        ids = torch.tensor([model.tokenizer(text).input_ids])
        with torch.no_grad():
            streams = model.underlying(ids, output_hidden_states=True).hidden_states
        found.append(torch.cat(streams[:-1]))  # transformers gives the last one normalised
    return found


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch_size", [1, 32])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_captures_and_norms_are_those_of_each_text_alone(
    family: str, batch_size: int, side: str, order: str
) -> None:
    model = tiny_model(family)
    own = alone(family)
    model.tokenizer.padding_side = side
    texts = [TEXTS[row] for row in ORDERS[order]]
    for pool in ("mean", "last"):
        found = capture(model, texts, [0, 1, 2], pool, batch_size=batch_size)
        for vectors, row in zip(found, ORDERS[order], strict=True):
            counted = own[row][:, 1:] if own[row].shape[1] > 1 else own[row]
            wanted = counted.mean(1) if pool == "mean" else own[row][:, -1]
            assert (vectors - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    counted = torch.cat([one[:, 1:] if one.shape[1] > 1 else one for one in own], 1)
    norms = mean_norms(model, texts, batch_size=batch_size)
    assert norms.shape == (model.n_layers + 1,)
    assert torch.allclose(norms[:3].double(), counted.norm(dim=-1).mean(1), rtol=1e-5)


def mapped() -> list[str]:
    """Return what this process maps of captures' temporary files."""
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if "emoprobe-" in line]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mapped files")
def test_much_is_kept_in_a_file_that_vanishes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = tiny_model()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    wanted = capture(model, TEXTS)
    monkeypatch.setattr(activations, "IN_MEMORY", wanted.numel() * 4)
    assert (
        torch.equal(capture(model, TEXTS), wanted) and not mapped()
    )  # exactly as much is still kept in memory
    monkeypatch.setattr(activations, "IN_MEMORY", wanted.numel() * 4 - 1)
    found = capture(model, TEXTS)
    assert torch.equal(found, wanted) and found.dtype == torch.float32 and found.is_contiguous()
    assert len(mapped()) == 1 and str(tmp_path) in mapped()[0]
    assert not list(tmp_path.iterdir())  # the name is gone already, whatever happens to the program
    found += 1  # a tensor like any other
    view = found[3]
    del found
    assert torch.equal(view, wanted[3] + 1)
    del view
    assert not mapped()


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system cannot set room aside")
def test_a_full_disk_is_said_to_be_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(activations, "IN_MEMORY", 0)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match=r"No space left on device.*TMPDIR"):
        capture(tiny_model(), TEXTS[:3])
    assert not list(tmp_path.iterdir())


def test_a_pool_has_to_give_a_vector_for_each_text() -> None:
    with pytest.raises(
        InputError, match=r"pool= gave \(4, 1, 32\): it has to give a tensor \(layers, 3 texts"
    ):
        capture(tiny_model(), TEXTS[:3], pool=lambda stream, counted: stream[:, :1, -1])
