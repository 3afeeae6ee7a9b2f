"""Malformed artefacts: probe sets, valuations, emotion streams, moments, checkpoints, steering vectors. See `malformed`."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from malformed import Action, Case, Clean, Place
from safetensors.torch import save
from torch import Tensor

from emoprobe.probes import load_probes
from emoprobe.probes.moments import Moments, load_moments
from emoprobe.probes.probe_set import _digest
from emoprobe.records import KEY
from emoprobe.steering import import_gguf, import_steering_vectors
from emoprobe.valattn import EmotionStream, Valuation
from emoprobe.valattn.training import train

Parts = tuple[dict[str, Tensor], dict[str, Any]]
PROMPT = "The sun came up and"


def cases() -> list[Case]:
    found = [_intact(kind) for kind in READERS]
    found += [case for kind in READERS for case in (*_bytes(kind), *_tensors(kind), *_records(kind))]
    return [*found, *_foreign(), *_names(), *_gguf(), *_vectors()]


# Clean artefacts, and what reads them --------------------------------------------------------------------------------


def _valuation(clean: Clean) -> Path:
    return Valuation.from_probes(load_probes(clean.probes), ["valence"]).save(
        clean.folder / "valuation.safetensors"
    )


def _stream(clean: Clean) -> Path:
    probes = load_probes(clean.probes)
    started = EmotionStream.start(Valuation.from_probes(probes, ["valence"], layers=[1]), probes.d_model)
    return started.save(clean.folder / "stream.safetensors")


def _moments(clean: Clean) -> Path:
    return Moments.zeros(2, 4, n_targets=1).save(clean.folder / "moments.safetensors")


def _trained(path: Path) -> object:
    weight = torch.ones(2, requires_grad=True)
    options = dict(steps=4, batch_size=2, learning_rate=0.1, checkpoint=path, progress=False)
    return train({"weight": weight}, lambda rows: (weight**2).sum(), [1, 2, 3, 4], **options), weight.detach()


def _checkpoint(clean: Clean) -> Path:
    path = clean.folder / "checkpoint.safetensors"
    _trained(path)
    return path


def _trace(place: Place, path: Path) -> Action:
    return ["trace", place.clean.model, path, PROMPT]


def _inject(place: Place, path: Path) -> Action:
    return ["inject", place.clean.model, path, PROMPT, "--max-new-tokens", "2"]


MAKERS: dict[str, Callable[[Clean], Path]] = {
    "probes": lambda clean: clean.probes,
    "valuation": _valuation,
    "stream": _stream,
    "moments": _moments,
    "checkpoint": _checkpoint,
}
READERS: dict[str, Callable[[Place, Path], Action]] = {
    "probes": _trace,
    "valuation": _inject,
    "stream": lambda place, path: partial(EmotionStream.load, path),
    "moments": lambda place, path: partial(load_moments, path),
    "checkpoint": lambda place, path: partial(_trained, path),
}


def _case(kind: str, name: str, spoil: Callable[[bytes], bytes], says: str = "spoilt.safetensors") -> Case:
    def build(place: Place) -> Action:
        clean = MAKERS[kind](place.clean).read_bytes()
        return READERS[kind](place, place.write("spoilt.safetensors", spoil(clean)))

    if f"{kind}/{name}" in (
        "probes/n_layers-a-number",
        "valuation/tensor-narrower",
    ):  # whole, and of another model
        says = "width"
    return Case(f"{kind}/{name}", build, says=says)


def _intact(kind: str) -> Case:
    """What is not spoilt is read, or all refusals would be worth nothing."""
    return Case(
        f"{kind}/intact",
        lambda place: READERS[kind](place, MAKERS[kind](place.clean)),
        lambda place, out: None,
    )


# The file ------------------------------------------------------------------------------------------------------------


def _opened(content: bytes) -> tuple[dict[str, Any], bytes]:
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def _closed(header: Any, body: bytes, size: int | None = None) -> bytes:
    written = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(written) if size is None else size) + written + body


def _changed(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    """Return what changes the header in place, or puts what `change` returns in its stead."""

    def spoil(content: bytes) -> bytes:
        header, body = _opened(content)
        other = change(header)
        return _closed(header if other is None else other, body)

    return spoil


def _first(header: Mapping[str, Any]) -> Any:
    return header[next(name for name in sorted(header) if name != "__metadata__")]


def _bytes(kind: str) -> Iterator[Case]:
    for share in (0, 1, 10, 50, 90, 99):
        yield _case(kind, f"cut-{share}", lambda content, share=share: content[: len(content) * share // 100])
    for name, size in {"zero": 0, "one": 1, "huge": 2**62, "largest": 2**64 - 1, "beyond": 10**9}.items():
        yield _case(
            kind, f"header-length-{name}", lambda content, size=size: struct.pack("<Q", size) + content[8:]
        )
    headers: dict[str, Callable[[dict[str, Any]], Any]] = {
        "not-json": lambda header: b"{" * 64,
        "deep": lambda header: b'{"a":' * 50_000,
        "a-list": lambda header: [],
        "empty": lambda header: {},
        "without-metadata": lambda header: header.pop("__metadata__") and None,
        "metadata-of-others": lambda header: header.update(__metadata__={"format": "pt"}),
        "overlap": lambda header: (
            [
                part.update(data_offsets=[0, part["data_offsets"][1] - part["data_offsets"][0]])
                for name, part in header.items()
                if name != "__metadata__"
            ]
            and None
        ),
        "beyond-the-end": lambda header: _first(header).update(data_offsets=[0, 10**12]),
        "backwards": lambda header: _first(header).update(data_offsets=[8, 0]),
        "negative": lambda header: _first(header).update(data_offsets=[-8, 0]),
        "dtype": lambda header: _first(header).update(dtype="F128"),
        "shape": lambda header: _first(header).update(shape=[10**9, 10**9]),
        "shape-negative": lambda header: _first(header).update(shape=[-1]),
    }
    for name, change in headers.items():
        yield _case(kind, f"header-{name}", _changed(change))
    yield _case(kind, "garbage", lambda content: np.random.default_rng(0).bytes(len(content)))
    yield _case(kind, "tail", lambda content: content + b"\0" * 99)
    yield _case(kind, "pickle", lambda content: b"\x80\x04cos\nsystem\n(S'true'\ntR.")


# What is in it -------------------------------------------------------------------------------------------------------


def _rewritten(
    kind: str, change: Callable[[dict[str, Tensor], dict[str, Any]], Any]
) -> Callable[[bytes], bytes]:
    """Return what changes tensors and record, and seals them again, as somebody could who means harm."""

    def spoil(content: bytes) -> bytes:
        tensors, record = _parts(content)
        other = change(tensors, record)
        if "digest" in record and all(tensor.dim() for tensor in tensors.values()):
            record["digest"] = _digest(tensors, record)
        return save(tensors, {KEY: other if isinstance(other, str) else json.dumps(record)})

    return spoil


def _parts(content: bytes) -> Parts:
    header, _ = _opened(content)
    from safetensors.torch import load

    return load(content), json.loads(header["__metadata__"][KEY])


def _any(tensors: Mapping[str, Tensor]) -> str:
    """Return the name of the tensor that all is about."""
    wanted = ("directions", "weight", "scatter", "now.weight")
    return next(name for name in wanted if name in tensors)


def _tensors(kind: str) -> Iterator[Case]:
    def put(make: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor], Any], None]:
        def change(tensors: dict[str, Tensor], record: Any) -> None:
            tensors[_any(tensors)] = make(tensors[_any(tensors)]).contiguous()

        return change

    def spot(value: float) -> Callable[[Tensor], Tensor]:
        def make(tensor: Tensor) -> Tensor:
            tensor = tensor.clone()
            tensor.view(-1)[0] = value
            return tensor

        return make

    changes: dict[str, Any] = {
        "missing": lambda tensors, record: _drop(tensors),
        "nan": put(spot(float("nan"))),
        "infinite": put(spot(float("inf"))),
        "whole-numbers": put(lambda tensor: tensor.long()),
        "booleans": put(lambda tensor: tensor.bool()),
        "complex": put(lambda tensor: tensor.to(torch.complex64)),
        "narrower": put(lambda tensor: tensor[..., :-1]),
        "no-axes": put(lambda tensor: tensor.sum()),
        "one-more-axis": put(lambda tensor: tensor[None]),
        "nothing": put(lambda tensor: tensor[:0]),
    }
    for name, change in changes.items():
        yield _case(kind, f"tensor-{name}", _rewritten(kind, change))
    # One tensor more harms nobody; a later version may have it.
    more = _case(
        kind, "tensor-further", _rewritten(kind, lambda tensors, record: tensors.update(other=torch.ones(3)))
    )
    yield replace(more, right=lambda place, out: None, either=True)


def _drop(tensors: dict[str, Tensor]) -> None:
    del tensors[_any(tensors)]


FIELDS = {
    "probes": (
        "model",
        "n_layers",
        "fingerprint",
        "layers",
        "concepts",
        "kinds",
        "ranges",
        "scores",
        "metadata",
    ),
    "valuation": ("dimensions", "layers", "ranges", "metadata"),
    "stream": ("dimensions", "layers", "ranges", "metadata"),
    "moments": ("n_targets",),
    "checkpoint": ("settings", "losses", "validation", "best"),
}
WRONG = {
    "null": None,
    "a-number": 7,
    "a-fraction": 0.5,
    "a-string": "x",
    "a-list": [[1], {}],
    "an-object": {"x": []},
}
FITTING = {
    ("probes", "metadata", "an-object"), ("probes", "model", "a-string"), ("probes", "fingerprint", "a-string"),
    ("valuation", "metadata", "an-object"), ("stream", "metadata", "an-object"),
    ("stream", "dimensions", "a-string"),
    ("valuation", "dimensions", "a-string"),
}  # fmt: skip
"""What is of the right kind although it is another; nothing can be wrong with it."""


def _records(kind: str) -> Iterator[Case]:
    wholes = {
        "record-not-json": "{",
        "record-a-list": "[]",
        "record-a-number": "1",
        "record-null": "null",
        "record-deep": "[" * 50_000,
        "record-huge-number": '{"kind": ' + "9" * 5000 + "}",
        "record-twice": '{"kind": "x", "kind": "probe set", "version": 1}',
    }
    for name, written in wholes.items():
        yield _case(kind, name, _rewritten(kind, lambda tensors, record, written=written: written))
    for name, version in {"later": 99, "a-string": "1", "null": None, "a-boolean": True, "below": -1}.items():
        yield _case(
            kind, f"version-{name}", _rewritten(kind, lambda t, record, v=version: record.update(version=v))
        )
    yield _case(kind, "kind-other", _rewritten(kind, lambda t, record: record.update(kind="another")))
    for field in FIELDS[kind]:
        yield _case(
            kind, f"without-{field}", _rewritten(kind, lambda t, record, f=field: _without(record, f))
        )
        for name, value in WRONG.items():
            if (kind, field, name) not in FITTING:
                change = lambda t, record, f=field, v=value: record.update({f: v})  # noqa: E731
                yield _case(kind, f"{field}-{name}", _rewritten(kind, change))


def _without(record: dict[str, Any], field: str) -> None:
    del record[field]


def _foreign() -> Iterator[Case]:
    """Whole artefacts where another kind is wanted, and probes of other models."""
    for kind in READERS:
        for other in MAKERS:
            if kind != other and (kind, other) != ("valuation", "probes"):  # of probes, a valuation is made

                def build(place: Place, kind: str = kind, other: str = other) -> Action:
                    return READERS[kind](place, MAKERS[other](place.clean))

                yield Case(f"{kind}/given-{other}", build, says=".safetensors")
    resealed: dict[str, Callable[[dict[str, Tensor], dict[str, Any]], Any]] = {
        "another-depth": lambda tensors, record: record.update(n_layers=12),
        "layer-beyond": lambda tensors, record: record.update(layers=[1, 99]),
        "layer-negative": lambda tensors, record: record.update(layers=[-1, 3]),
        "layer-twice": lambda tensors, record: record.update(layers=[1, 1]),
        "layer-fraction": lambda tensors, record: record.update(layers=[1.5, 3]),
        "layer-huge": lambda tensors, record: record.update(layers=[1, 10**400]),
        "concept-twice": lambda tensors, record: record.update(
            concepts=["valence"] * len(record["concepts"])
        ),
        "concept-control": lambda tensors, record: (
            record["concepts"].__setitem__(0, "\x1b[2J") or record["kinds"].update({"\x1b[2J": "label"})
        ),
        "range-nan": lambda tensors, record: record["ranges"].update(valence=[float("nan"), 1]),
        "range-backwards": lambda tensors, record: record["ranges"].update(valence=[1, -1]),
        "basis-unknown": lambda tensors, record: record.update(basis=["raw"]),
    }
    for name, change in resealed.items():
        yield _case("probes", name, _rewritten("probes", change), "")
    yield _case("probes", "tampered", lambda content: content[:-4] + b"\0\0\x80?")


# Names ---------------------------------------------------------------------------------------------------------------


def _names() -> Iterator[Case]:
    """Concepts by which nothing may ever be written anywhere."""
    for name, concept in {
        "up": "../../outside",
        "absolute": "/tmp/outside",
        "html": "<script>1</script>",
    }.items():

        def build(place: Place, concept: str = concept) -> Action:
            probes = load_probes(place.clean.probes)
            named = (concept, *probes.concepts[1:])
            other = replace(
                probes,
                concepts=named,
                kinds=dict(zip(named, probes.kinds.values(), strict=True)),
                scores=probes.scores.replace({"concept": {probes.concepts[0]: concept}}),
            )
            path = other.save(place.folder / "named.safetensors")
            return [
                "sweep",
                place.clean.model,
                path,
                concept,
                "--layers",
                "1",
                "--strengths",
                "0,0.1",
                "--controls",
                "2",
                "--figure",
                place.folder / "f.svg",
            ]

        yield Case(f"probes/name-{name}", build, lambda place, out: None)


# Other tools' files --------------------------------------------------------------------------------------------------


def _gguf() -> Iterator[Case]:
    def written(
        architecture: str = "controlvector",
        names: tuple[str, ...] = ("direction.1", "direction.2"),
        **options: Any,
    ) -> bytes:
        import gguf

        path = Path(options["folder"]) / "clean.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        for name in names:
            writer.add_tensor(name, np.full(options.get("width", 8), options.get("value", 1.0), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()

    def case(name: str, spoil: Callable[[bytes], bytes] = bytes, right: Any = None, **options: Any) -> Case:
        def build(place: Place) -> Action:
            clean = written(folder=place.folder, **options)
            return partial(import_gguf, place.write("spoilt.gguf", spoil(clean)))

        return Case(f"gguf/{name}", build, right, "" if right else "spoilt.gguf")

    def whole(place: Place, found: Any) -> None:
        assert found.layers == (2, 3) and torch.equal(found.vectors, torch.ones(2, 8))

    yield case("intact", right=whole)
    yield case("nothing", names=())
    yield case("architecture", architecture="llama")
    yield case("nan", value=float("nan"))
    yield case("infinite", value=float("inf"))
    yield case("other-tensors", names=("weight",))
    yield case("number-huge", names=("direction." + "9" * 40,))
    yield case("number-twice", names=("direction.1", "direction.01"))
    yield case("number-superscript", names=("direction.²",))
    for share in (0, 1, 5, 20, 40, 60, 80, 99):
        yield case(f"cut-{share}", lambda content, share=share: content[: len(content) * share // 100])
    for place in (4, 8, 16, 24, 32, 40, 60, 100, 120):
        for name, value in {"ff": b"\xff" * 8, "00": bytes(8)}.items():
            # Some bytes are padding: what is read then must be what was written.
            found = case(
                f"bytes-{place}-{name}",
                lambda content, place=place, value=value: content[:place] + value + content[place + 8 :],
                right=whole,
            )
            yield Case(found.name, found.build, found.right, "", either=True)


def _vectors() -> Iterator[Case]:
    def saved(found: object) -> bytes:
        out = io.BytesIO()
        torch.save(found, out)
        return out.getvalue()

    def bomb(content: bytes) -> bytes:
        """Return a file of torch.save whose tensor says that it takes 50 MB more than the archive."""
        out = io.BytesIO()
        with (
            zipfile.ZipFile(io.BytesIO(content)) as old,
            zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new,
        ):
            for item in old.infolist():
                new.writestr(
                    item.filename, old.read(item) if "data/" not in item.filename else bytes(50_000_000)
                )
        return out.getvalue()

    rows = {1: torch.ones(4), 2: torch.ones(4)}
    clean, tensors = saved(rows), save({"1": torch.ones(4), "2": torch.ones(4)})
    wrong = {
        "empty": b"",
        "garbage": np.random.default_rng(0).bytes(999),
        "pickle-cut": clean[: len(clean) // 2],
        "pickle-tail": clean[:-30],
        "pickle-plain": b"\x80\x04cos\nsystem\n(S'touch outside'\ntR.",
        "zip-of-nothing": b"PK\x05\x06" + bytes(18),
        "zip-of-several-disks": b"PK\x06\x07" + struct.pack("<IQI", 0, 0, 9) + b"PK\x05\x06" + bytes(18),
        "a-number": saved(5),
        "strings": saved({"a": "b"}),
        "nan": saved({1: torch.full((4,), float("nan"))}),
        "widths": saved({1: torch.ones(4), 2: torch.ones(5)}),
        "negative": saved({-1: torch.ones(4)}),
        "huge": saved({10**30: torch.ones(4)}),
        "complex": saved({1: torch.ones(4, dtype=torch.complex64)}),
        "sparse": saved({1: torch.ones(4).to_sparse()}),
        "no-numbers": saved({1: torch.ones(0)}),
        "tensors-cut": tensors[:-9],
        "tensors-nan": save({"1": torch.full((4,), float("nan"))}),
        "tensors-names": save({"weight": torch.ones(4)}),
        "tensors-twice": save({"1": torch.ones(4), "01": torch.ones(4)}),
    }
    for name, content in wrong.items():
        yield Case(
            f"vectors/{name}",
            lambda place, content=content: partial(
                import_steering_vectors, place.write("spoilt.pt", content)
            ),
            says="spoilt.pt",
        )

    def whole(place: Place, found: Any) -> None:
        assert found.layers == (2, 3) and torch.equal(found.vectors, torch.ones(2, 4))

    for name, content in {"intact": clean, "tensors-intact": tensors}.items():
        yield Case(
            f"vectors/{name}",
            lambda place, content=content: partial(import_steering_vectors, place.write("clean.pt", content)),
            whole,
        )
    yield Case(
        "vectors/zip-bomb",
        lambda place: partial(import_steering_vectors, place.write("spoilt.pt", bomb(clean))),
        whole,
        either=True,
    )
