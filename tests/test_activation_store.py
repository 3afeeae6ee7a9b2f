"""Activations on disk are those in memory, to the bit the same after any interruption, and damage to them is seen."""

import errno
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_model

from emoprobe import activation_store
from emoprobe.activation_store import load_activations, store_activations
from emoprobe.activations import capture
from emoprobe.artefacts import write_bytes
from emoprobe.corpora import Corpus
from emoprobe.errors import InputError
from emoprobe.models.live import LiveModel
from emoprobe.probes import fit_probes
from emoprobe.probes.tokens import TokenMeans

TEXTS = [f"{'very ' * (7 * number % 11)}happy was the dog number {number}" for number in range(26)]
OPTIONS = {"layers": [0, 2], "shard": 6, "batch_size": 4}


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*")}


class BrokenOffError(Exception):
    """What ends a run early."""


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let models die once they have read as many batches as the list's one number says."""
    left = [10**6]
    streams = type(tiny_model("gpt2")).streams_by_layer

    def mortal(self: LiveModel, *given: object, **options: object) -> list[torch.Tensor]:
        left[0] -= 1
        if left[0] < 0:
            raise BrokenOffError
        return streams(self, *given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(type(tiny_model("gpt2")), "streams_by_layer", mortal)
    return left


@pytest.mark.parametrize("pool", ["mean", "last"])
def test_what_is_stored_is_what_is_captured(tmp_path: Path, pool: str) -> None:
    model = tiny_model("gpt2")
    store = store_activations(model, TEXTS, tmp_path, pool=pool, **OPTIONS)
    wanted = capture(model, TEXTS, OPTIONS["layers"], pool)
    assert torch.allclose(store.vectors(), wanted, atol=1e-6)
    again = load_activations(tmp_path)
    assert again == store and torch.equal(again.layer(2), store.vectors()[:, 1])
    parts = list(again.shards([2]))
    assert [rows.stop - rows.start for rows, _ in parts] == [6, 6, 6, 6, 2]
    assert torch.equal(torch.cat([vectors for _, vectors in parts]), store.vectors()[:, 1:])
    from_third = store_activations(
        model, TEXTS, tmp_path / "third", pool="mean", start=2, **OPTIONS
    ).vectors()
    assert torch.allclose(from_third, capture(model, TEXTS, OPTIONS["layers"], start=2), atol=1e-6)


def test_half_precision_halves_the_size_that_is_stated(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    whole = store_activations(model, TEXTS, tmp_path / "32", **OPTIONS)
    half = store_activations(model, TEXTS, tmp_path / "16", dtype=torch.bfloat16, **OPTIONS)
    assert whole.size == 26 * 2 * model.d_model * 4 == 2 * half.size
    on_disk = sum(
        part.numel() * part.element_size()
        for f in sorted((tmp_path / "16").glob("*.safetensors"))
        for part in load_file(f).values()
    )
    assert on_disk == half.size
    assert torch.equal(half.vectors(), whole.vectors().bfloat16().float())
    with pytest.raises(InputError, match="float32 or"):
        store_activations(model, TEXTS, tmp_path / "64", dtype=torch.float64)


@pytest.mark.parametrize("batches", range(9))
def test_a_run_that_was_broken_off_goes_on_to_the_same_bytes(
    tmp_path: Path, dying: list[int], batches: int
) -> None:
    model, pool = tiny_model("gpt2"), TokenMeans("mean")
    store_activations(model, TEXTS, tmp_path / "whole", pool=pool, **OPTIONS)
    dying[0] = batches
    with pytest.raises(BrokenOffError):
        store_activations(model, TEXTS, tmp_path / "broken", pool=TokenMeans("mean"), **OPTIONS)
    kept = contents(tmp_path / "broken")
    shards = batches // 2
    assert len(kept) == (shards and shards + 1)  # a shard for each two batches, and the index with the first
    with pytest.raises(InputError, match=rf"holds {shards} of 5 shards" if shards else "no activations"):
        load_activations(tmp_path / "broken")
    dying[0], resumed = 9 - batches // 2 * 2, TokenMeans("mean")  # no finished shard is read again
    store_activations(model, TEXTS, tmp_path / "broken", pool=resumed, **OPTIONS)
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")
    assert torch.equal(resumed.mean, pool.mean) and torch.equal(resumed.norm, pool.norm)


def test_a_fit_that_was_broken_off_gives_the_same_probes(
    tmp_path: Path, dying: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activation_store, "SHARD", 6)
    model = tiny_model("gpt2")
    rows = {
        "text": TEXTS,
        "labels": [["joy", "fear"][n % 2] for n in range(26)],
        "group": [f"group {n // 4}" for n in range(26)],
    }
    corpus = Corpus.from_columns(rows, name="texts")
    options = {"layers": [1, 2], "permutations": 0, "bootstrap": 0, "batch_size": 4, "progress": False}
    whole = fit_probes(model, corpus, keep=tmp_path / "whole", **options)
    dying[0] = 3
    with pytest.raises(BrokenOffError):
        fit_probes(model, corpus, keep=tmp_path / "broken", **options)
    dying[0] = 10**6
    resumed = fit_probes(model, corpus, keep=tmp_path / "broken", **options)
    assert resumed.save(tmp_path / "a").read_bytes() == whole.save(tmp_path / "b").read_bytes()
    plain = fit_probes(model, corpus, **options)
    assert torch.allclose(plain.directions, whole.directions, atol=1e-4)
    assert torch.allclose(plain.reference_mean, whole.reference_mean, atol=1e-5)
    with pytest.raises(InputError, match="whole texts"):
        fit_probes(model, corpus, keep=tmp_path / "c", level="sentence", **options)


@pytest.mark.parametrize("change", ["number", "checksum", "truncated", "other", "missing"])
def test_a_damaged_shard_is_seen(tmp_path: Path, change: str) -> None:
    model = tiny_model("gpt2")
    store = store_activations(model, TEXTS, tmp_path / "a", **OPTIONS)
    path = tmp_path / "a" / "000001.safetensors"
    if change == "number":
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    elif change == "checksum":
        save_file(
            load_file(path),
            path,
            {
                "emoprobe": json.dumps(
                    {"kind": "shard of activations", "version": 1, "asked": store.asked, "sha256": {}}
                )
            },
        )
    elif change == "truncated":
        path.write_bytes(path.read_bytes()[:-5])
    elif change == "other":
        store_activations(model, TEXTS[::-1], tmp_path / "b", **OPTIONS)
        shutil.copy(tmp_path / "b" / path.name, path)
    else:
        path.unlink()
    with pytest.raises(InputError, match=r"000001|no file"):
        store.vectors()


@pytest.mark.parametrize("record", [{}, {"sha256": []}, {"sha256": {"layer.0": 1}}, {"sha256": None}])
def test_a_shard_that_says_nothing_of_itself_is_damaged(tmp_path: Path, record: dict[str, object]) -> None:
    store = store_activations(tiny_model("gpt2"), TEXTS, tmp_path, **OPTIONS)
    about = {"kind": "shard of activations", "version": 1, "asked": store.asked, **record}
    path = tmp_path / "000001.safetensors"
    save_file(load_file(path), path, {"emoprobe": json.dumps(about)})
    for call in (store.vectors, lambda: store.sums(1)):
        with pytest.raises(InputError, match=r"000001.* is damaged"):
            call()


@pytest.mark.parametrize("rows", [1, 5])
def test_a_shard_of_fewer_texts_is_damaged_though_its_checksums_agree(tmp_path: Path, rows: int) -> None:
    store = store_activations(tiny_model("gpt2"), TEXTS, tmp_path, **OPTIONS)
    store.write(1, store.vectors()[:rows], {})
    for call in (store.vectors, lambda: store.layer(2)):
        with pytest.raises(InputError, match=r"000001.* is damaged"):
            call()


def test_the_index_is_there_before_any_shard_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = activation_store.ActivationStore.write

    def seen(self: activation_store.ActivationStore, *given: object) -> None:
        assert (self.folder / "index.json").is_file()
        write(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(activation_store.ActivationStore, "write", seen)
    store_activations(tiny_model("gpt2"), TEXTS, tmp_path, **OPTIONS)


def test_what_was_killed_in_writing_its_index_is_not_something_else(tmp_path: Path) -> None:
    (tmp_path / ".index.json.ab_012cd.part").write_bytes(b"{")
    store_activations(tiny_model("gpt2"), TEXTS, tmp_path, **OPTIONS)
    assert len(list(tmp_path.iterdir())) == 6


def test_two_do_not_write_to_one_folder_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, refused = tiny_model("gpt2"), []
    whole = store_activations(model, TEXTS, tmp_path / "whole", **OPTIONS)
    write = activation_store.ActivationStore.write

    def meanwhile(self: activation_store.ActivationStore, *given: object) -> None:
        for texts in (TEXTS, TEXTS[::-1]):
            with pytest.raises(InputError, match=r'another process is writing to ".*kept"') as raised:
                store_activations(model, texts, tmp_path / "kept", **OPTIONS)
            refused.append(raised)
        write(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(activation_store.ActivationStore, "write", meanwhile)
    store_activations(model, TEXTS, tmp_path / "kept", **OPTIONS)
    assert len(refused) == 2 * len(whole.rows) and contents(tmp_path / "kept") == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "whole"]


def test_what_is_asked_for_has_to_be_what_lies_there(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    store = store_activations(model, TEXTS, tmp_path / "a", **OPTIONS)
    for other in (
        {"start": 2},
        {"layers": [0, 1]},
        {"pool": "last"},
        {"dtype": torch.bfloat16},
        {"shard": 7},
        {"batch_size": 5},
    ):
        with pytest.raises(InputError, match="other activations"):
            store_activations(model, TEXTS, tmp_path / "a", **{**OPTIONS, **other})
    with pytest.raises(InputError, match=r"\(sha256 differ"):
        store_activations(model, [*TEXTS[:-1], "another"], tmp_path / "a", **OPTIONS)
    with pytest.raises(InputError, match=r"other activations \(model"):
        store_activations(tiny_model("gpt2", seed=1), TEXTS, tmp_path / "a", **OPTIONS)
    with pytest.raises(InputError, match=r"model_dtype"):
        store_activations(tiny_model("gpt2", dtype=torch.float32), TEXTS, tmp_path / "a", **OPTIONS)
    with pytest.raises(InputError, match=r"\(sha256 differ"):
        store_activations(model, ["".join(TEXTS[:2]), "", *TEXTS[2:]], tmp_path / "a", **OPTIONS)
    with pytest.raises(InputError, match="layer 1 is not kept"):
        store.layer(1)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "letter.txt").write_text("dear")
    for call in (
        lambda: store_activations(model, TEXTS, tmp_path / "b", **OPTIONS),
        lambda: load_activations(tmp_path / "b"),
    ):
        with pytest.raises(InputError, match=r"something else|no activations"):
            call()
    for broken in (
        "{",
        "[]",
        '{"layers": 3}',
        json.dumps({**json.loads((tmp_path / "a" / "index.json").read_text()), "shard": 0}),
    ):
        (tmp_path / "a" / "index.json").write_text(broken)
        with pytest.raises(InputError, match="damaged"):
            load_activations(tmp_path / "a")


def test_a_disk_without_room_is_said_to_be_full_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dying: list[int]
) -> None:
    model, usage = tiny_model("gpt2"), namedtuple("usage", "free")
    dying[0] = 0
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(26 * 2 * model.d_model * 4 - 1))
    with pytest.raises(InputError, match="do not fit"):
        store_activations(model, TEXTS, tmp_path, **OPTIONS)


def test_what_fails_before_its_first_shard_is_not_in_the_way_of_other_work(
    tmp_path: Path, dying: list[int]
) -> None:
    model = tiny_model("gpt2")
    dying[0] = 1
    with pytest.raises(BrokenOffError):
        store_activations(model, TEXTS, tmp_path / "kept", **OPTIONS)
    assert not (tmp_path / "kept").exists()
    dying[0] = 2
    store_activations(model, TEXTS[:5], tmp_path / "kept", **OPTIONS)


@pytest.mark.parametrize("where", ["open", "fsync", "replace"])
def test_a_file_that_cannot_be_written_leaves_what_was_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str
) -> None:
    path = write_bytes(tmp_path / "kept", b"before")

    def full(*given: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path if where == "open" else os, where, full)
        with pytest.raises(InputError, match=r"cannot write to .*kept.*No space left.*make room"):
            write_bytes(path, b"after")
    assert [file.name for file in tmp_path.iterdir()] == ["kept"] and path.read_bytes() == b"before"
