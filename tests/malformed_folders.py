"""Malformed folders: models, runs of studies, kept sweeps, logs of stories, lists of texts and of words. See `malformed`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from malformed import Action, Case, Place
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from emoprobe.corpora.emotion_words import load_word_norms
from emoprobe.models import load_model
from emoprobe.steering.kept_runs import KeptRuns
from emoprobe.study.folder import FIELDS, RunFolder
from emoprobe.study.result import Result

PROMPT = "The sun came up and"


def cases() -> list[Case]:
    return [*_models(), *_studies(), *_sweeps(), *_stories(), *_texts(), *_norms()]


# Models --------------------------------------------------------------------------------------------------------------


def _models() -> Iterator[Case]:
    def case(name: str, spoil: Callable[[Path], object], right: Any = None, says: str = "spoilt") -> Case:
        def build(place: Place) -> Action:
            folder = place.folder / "spoilt"
            shutil.copytree(place.clean.model, folder)
            spoil(folder)
            return ["trace", folder, place.clean.probes, PROMPT]

        return Case(f"model/{name}", build, right, says)

    def config(**changes: Any) -> Callable[[Path], None]:
        def spoil(folder: Path) -> None:
            path = folder / "config.json"
            found = json.loads(path.read_text()) | changes
            path.write_text(json.dumps({key: value for key, value in found.items() if value is not ...}))

        return spoil

    def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
        def spoil(folder: Path) -> None:
            tensors = load_file(folder / "model.safetensors")
            change(tensors)
            save_file(tensors, folder / "model.safetensors", {"format": "pt"})

        return spoil

    def content(file: str, written: bytes | str) -> Callable[[Path], object]:
        return lambda folder: (folder / file).write_bytes(
            written.encode() if isinstance(written, str) else written
        )

    def sharded(folder: Path) -> None:
        live = load_model(folder)
        (folder / "model.safetensors").unlink()
        live.underlying.save_pretrained(folder, max_shard_size="30KB")
        shards = sorted(folder.glob("model-*.safetensors"))
        assert len(shards) > 2
        shards[1].unlink()

    def spot(value: float, name: str = "model.layers.1.mlp.up_proj.weight") -> Callable[[Path], None]:
        return weights(lambda tensors: tensors[name].view(-1)[3:4].fill_(value))

    def tokenizer(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
        def spoil(folder: Path) -> None:
            found = json.loads((folder / "tokenizer.json").read_text())
            change(found)
            (folder / "tokenizer.json").write_text(json.dumps(found))

        return spoil

    def encoder(folder: Path) -> None:
        sizes = dict(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=330
        )
        BertModel(BertConfig(**sizes)).save_pretrained(folder)

    def unreadable(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors").symlink_to(folder / "model.safetensors")

    refused: dict[str, Callable[[Path], object]] = {
        "empty": lambda folder: shutil.rmtree(folder) or folder.mkdir(),
        "no-config": lambda folder: (folder / "config.json").unlink(),
        "no-weights": lambda folder: (folder / "model.safetensors").unlink(),
        "no-tokenizer": lambda folder: [file.unlink() for file in folder.glob("tokenizer*")],
        "missing-shard": sharded,
        "config-not-json": content("config.json", "{"),
        "config-a-list": content("config.json", "[]"),
        "config-empty": content("config.json", "{}"),
        "config-bytes": content("config.json", b"\xff\xfe\0"),
        "config-deep": content("config.json", '{"a":' * 50_000),
        "config-without-type": config(model_type=..., architectures=...),
        "config-type-unknown": config(model_type="perpetuum"),
        "config-type-of-others": config(model_type="gpt2"),
        "config-type-a-number": config(model_type=7),
        "config-fewer-heads": config(num_attention_heads=7),
        "config-wider": config(hidden_size=64),
        "config-deeper": config(num_hidden_layers=4),
        "config-layers-a-string": config(num_hidden_layers="three"),
        "config-layers-negative": config(num_hidden_layers=-1),
        "config-larger-vocabulary": config(vocab_size=10_000),
        "config-remote-code": config(
            auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}, model_type="evil"
        ),
        "weights-empty": content("model.safetensors", b""),
        "weights-garbage": content("model.safetensors", np.random.default_rng(0).bytes(5000)),
        "weights-header-huge": content("model.safetensors", b"\xff" * 8 + b"{}"),
        "weights-cut": lambda folder: content(
            "model.safetensors", (folder / "model.safetensors").read_bytes()[:-99]
        )(folder),
        "weights-one-missing": weights(lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight")),
        "weights-block-missing": weights(lambda t: [t.pop(name) for name in list(t) if ".layers.2." in name]),
        "weights-head-missing": weights(lambda tensors: tensors.pop("lm_head.weight")),
        "weights-renamed": weights(lambda t: t.update({f"x.{name}": t.pop(name) for name in list(t)})),
        "weights-wrong-shape": weights(lambda t: t.update({"model.norm.weight": torch.ones(7)})),
        "weights-nan": spot(float("nan")),
        "weights-nan-in-the-embedding": spot(float("nan"), "model.embed_tokens.weight"),
        "weights-nan-in-the-last-norm": spot(float("nan"), "model.norm.weight"),
        "weights-nan-in-the-head": spot(float("nan"), "lm_head.weight"),
        "weights-infinite": spot(float("inf")),
        "weights-pickled": lambda folder: [
            (folder / "model.safetensors").unlink(),
            content("pytorch_model.bin", b"\x80\x04cos\nsystem\n(S'touch outside'\ntR.")(folder),
        ],
        "weights-link-to-itself": unreadable,
        "another-model": encoder,
        "tokenizer-not-json": content("tokenizer.json", "{"),
        "tokenizer-empty": content("tokenizer.json", ""),
        "tokenizer-an-object": content("tokenizer.json", "{}"),
        "tokenizer-cut": lambda folder: content(
            "tokenizer.json", (folder / "tokenizer.json").read_bytes()[:2000]
        )(folder),
        "tokenizer-config-not-json": content("tokenizer_config.json", "{"),
        "tokenizer-of-others": tokenizer(
            lambda found: found["model"].update(
                vocab={token: 400 + k for token, k in found["model"]["vocab"].items()}
            )
        ),
        "tokenizer-without-vocabulary": tokenizer(lambda found: found["model"].update(vocab={}, merges=[])),
    }
    for name, spoil in refused.items():
        yield case(name, spoil, says="" if name == "config-layers-negative" else "spoilt")
    as_clean: dict[str, Callable[[Path], object]] = {
        "intact": lambda folder: None,
        "further-files": content("notes.bin", b"\0" * 99),
        "further-weights": weights(lambda tensors: tensors.update(other=torch.ones(3))),
        "tokenizer-class-unknown": content("tokenizer_config.json", '{"tokenizer_class": "Evil"}'),
        "generation-config-not-json": content("generation_config.json", "{"),
        "code-beside": content("modeling_evil.py", "raise SystemExit"),
    }
    for name, spoil in as_clean.items():
        yield case(name, spoil, _same_trace)
    yield Case("model/a-file", lambda place: ["info", place.write("model.bin", b"x")], says="is a file")
    yield Case("model/missing", lambda place: ["info", place.folder / "no"], says="check the path")
    yield Case("model/name-odd", lambda place: ["info", "a\0b"])
    yield Case("model/name-traversal", lambda place: ["info", "../../../../etc"])
    yield Case("model/name-hub", lambda place: ["info", "no-such-user/no-such-model"], says="no-such-model")


@cache
def _clean_trace(model: Path, probes: Path) -> str:
    from malformed import _typed

    return str(_typed(["trace", model, probes, PROMPT])[1])


def _same_trace(place: Place, out: str) -> None:
    assert out == _clean_trace(place.clean.model, place.clean.probes), "another trace"


# Studies -------------------------------------------------------------------------------------------------------------


def _run(folder: Path) -> None:
    """Write the folder of a study of one step."""
    about = {
        "title": "small on days", "command": "emoprobe study", "begun": "2026-01-01 00:00:00 +0000", "seed": 0,
        "model": {"name": "small", "backend": "transformers", "blocks": 3, "width": 32, "heads": 4, "parameters": 9,
                  "dtype": "float32", "device": "cpu"},
        "corpus": {"name": "days", "texts": 30, "groups": 6, "fitted_on": 20, "held_out": 10, "labels": ["sad"],
                   "dimensions": {"valence": [-1, 1]}},
        "versions": {"python": "3", "emoprobe": "0"},
        "hardware": {"system": "x", "processor": "y", "cores": 1, "threads": 1, "accelerator": None},
    }  # fmt: skip
    run = RunFolder.start(folder, {"model": "abc", "corpus": "def", "seed": 0}, about)
    table = pd.DataFrame({"layer": [0, 1], "value": [0.5, 0.25]})
    svg = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><path d="M0 0"/></svg>'
    result = Result(
        "probing",
        "Probing",
        "Is it?",
        "So.",
        table,
        "r 0.5",
        "r 0",
        "Perhaps.",
        {"held": True},
        svg=svg,
        sign=0,
    )
    run.step("probing", lambda: result)


def _studies() -> Iterator[Case]:
    def case(
        name: str, spoil: Callable[[Path], object], right: Any = None, says: str = "run", either: bool = False
    ) -> Case:
        def build(place: Place) -> Action:
            folder = place.folder / "run"
            _run(folder)
            spoil(folder)
            return ["report", folder]

        return Case(f"study/{name}", build, right, says, either)

    def content(file: str, written: bytes | str) -> Callable[[Path], object]:
        return lambda folder: (folder / file).write_bytes(
            written.encode() if isinstance(written, str) else written
        )

    def changed(file: str, key: str, value: Any) -> Callable[[Path], object]:
        def spoil(folder: Path) -> None:
            found = json.loads((folder / file).read_text())
            if value is ...:
                del found[key]
            else:
                found[key] = value
            (folder / file).write_text(json.dumps(found))

        return spoil

    def shown(place: Place, out: str) -> None:
        page = (place.folder / "run" / "report.html").read_text()
        assert "Probing" in page and "<script" not in page and "onload=" not in page

    result, manifest = "results/probing.json", "manifest.json"
    for file in (manifest, result):
        for name, written in {
            "empty": "", "cut": '{"format": 1, "stu', "a-list": "[]", "a-number": "1", "null": "null",
            "deep": '{"a":' * 50_000, "huge": '{"format": ' + "9" * 5000 + "}", "bytes": b"\xff\xfe\0", "nul": b"\0" * 99,
        }.items():  # fmt: skip
            yield case(f"{Path(file).stem}-{name}", content(file, written))
    for name, written in {"empty": b"", "cut": b"PAR1", "garbage": b"PAR1" + bytes(99) + b"PAR1"}.items():
        yield case(f"table-{name}", content("results/probing.parquet", written))
    yield case("table-missing", lambda folder: (folder / "results/probing.parquet").unlink())
    yield case("figure-missing", lambda folder: (folder / "figures/probing.svg").unlink())
    yield case("figure-bytes", content("figures/probing.svg", b"\xff\xfe\0"))
    yield case("manifest-missing", lambda folder: (folder / manifest).unlink())
    yield case("folder-missing", shutil.rmtree)
    for key in (
        "format",
        "study",
        "steps",
        "title",
        "command",
        "begun",
        "seed",
        "model",
        "corpus",
        "versions",
        "hardware",
    ):
        for name, value in {"missing": ..., "null": None, "a-number": 99, "a-list": [1]}.items():
            # What is only shown may be anything that can be.
            loose = key in ("title", "command", "begun", "seed") and name != "missing"
            yield case(
                f"manifest-{key}-{name}",
                changed(manifest, key, value),
                shown if loose else None,
                either=loose,
            )
    for key in FIELDS[1:]:  # all but the name
        for name, value in {"missing": ..., "a-number": 7, "a-list": [[1]]}.items():
            optional = name == "missing" and key in ("sign", "parts", "checks", "alt", "published")
            yield case(
                f"result-{key}-{name}",
                changed(result, key, value),
                shown if optional else None,
                either=optional,
            )
    yield case("intact", lambda folder: None, shown)
    yield case("manifest-study-empty", changed(manifest, "study", {}))
    yield case("manifest-steps-huge", changed(manifest, "steps", {"probing": {"seconds": 10**400}}))
    yield case("result-name-path", changed(result, "name", "../../outside"), shown, either=True)
    yield case("result-further", changed(result, "other", 1))
    for name, value in {"script": "<script>alert(1)</script>", "template": "{{ 7*7 }}"}.items():
        yield case(f"manifest-title-{name}", changed(manifest, "title", value), shown)
        yield case(f"result-finding-{name}", changed(result, "finding", value), shown)
    for name, inside in {
        "script": "<script>1</script>",
        "handler": '<path onload="x()"/>',
        "link": '<a href="http://x">',
    }.items():
        yield case(f"figure-{name}", content("figures/probing.svg", f"<svg>{inside}</svg>"), shown)


# Kept runs of sweeps -------------------------------------------------------------------------------------------------


def _sweeps() -> Iterator[Case]:
    values = {"nll": np.array([1.0, 2.0])}

    def kept(folder: Path) -> object:
        runs = KeptRuns(folder, {"strengths": [0.1]}, values)
        return runs.run("first", lambda: {"nll": np.array([3.0, 4.0])})

    def case(name: str, spoil: Callable[[Path], object], right: Any = None) -> Case:
        def build(place: Place) -> Action:
            folder = place.folder / "kept"
            kept(folder)
            spoil(folder)
            return partial(kept, folder)

        return Case(f"sweep/{name}", build, right, "kept")

    def same(place: Place, found: Any) -> None:
        np.testing.assert_array_equal(found["nll"], [3.0, 4.0])

    for name, written in {
        "empty": b"", "cut": b"{", "a-list": b"[]", "a-number": b"5", "null": b"null", "deep": b"[" * 50_000,
        "bytes": b"\xff\xfe", "huge": b"9" * 5000, "other": b'{"strengths": [0.2]}', "nul": bytes(99),
    }.items():  # fmt: skip
        yield case(
            f"asked-{name}", lambda folder, written=written: (folder / "asked.json").write_bytes(written)
        )
    tables = {
        "columns": pd.DataFrame({"a": [1]}),
        "words": pd.DataFrame({"measure": ["nll"], "value": ["x"]}),
        "no-rows": pd.DataFrame({"measure": ["nll"], "value": [1.0]}).head(0),
    }
    for file in ("untouched", "first"):
        for name, written in {"empty": b"", "cut": b"PAR1", "garbage": b"PAR1" + bytes(99) + b"PAR1"}.items():
            yield case(
                f"{file}-{name}", lambda folder, f=file, w=written: (folder / f"{f}.parquet").write_bytes(w)
            )
        for name, table in tables.items():
            yield case(
                f"{file}-{name}", lambda folder, f=file, t=table: t.to_parquet(folder / f"{f}.parquet")
            )
    yield case(
        "first-other-measures",
        lambda folder: pd.DataFrame({"measure": ["kl"], "value": [1.0]}).to_parquet(folder / "first.parquet"),
    )
    yield case(
        "first-fewer-texts",
        lambda folder: pd.DataFrame({"measure": ["nll"], "value": [1.0]}).to_parquet(
            folder / "first.parquet"
        ),
    )
    yield case("intact", lambda folder: None, same)


# Stories -------------------------------------------------------------------------------------------------------------


def _stories() -> Iterator[Case]:
    def build(place: Place, spoil: Callable[[bytes], bytes] | None) -> Action:
        out = place.folder / "s.jsonl"
        about = place.write("topics.txt", "the sea\n")
        command = [
            "stories",
            out,
            "--emotions",
            "afraid",
            "--topics",
            about,
            "--per-topic",
            "1",
            "--max-new-tokens",
            "3",
        ]
        command += ["--model", place.clean.model]
        if spoil is not None:
            from malformed import _typed

            status, _, error = _typed(command)
            assert status == 0, error
            out.unlink()
            log = out.with_suffix(".log.jsonl")
            log.write_bytes(spoil(log.read_bytes()))
        return command

    def case(name: str, spoil: Callable[[bytes], bytes], right: Any = None) -> Case:
        return Case(f"stories/{name}", partial(build, spoil=spoil), right, "s.log.jsonl")

    def changed(key: str, value: Any) -> Callable[[bytes], bytes]:
        def spoil(content: bytes) -> bytes:
            row = json.loads(content)
            row.pop(key) if value is ... else row.update({key: value})
            return (json.dumps(row) + "\n").encode()

        return spoil

    def whole(place: Place, out: str) -> None:
        lines = (place.folder / "s.log.jsonl").read_text().splitlines()
        assert len(lines) == 1 and json.loads(lines[0])["emotions"] == ["afraid"]

    for key in ("key", "kind", "topic", "emotions", "writer", "seed", "reply"):
        for name, value in {"missing": ..., "null": None, "a-list": [[1]], "an-object": {"a": 1}}.items():
            yield case(f"{key}-{name}", changed(key, value))
    wrong: dict[str, Callable[[bytes], bytes]] = {
        "kind-unknown": changed("kind", "poems"),
        "seed-other": changed("seed", 5),
        "writer-other": changed("writer", "somebody"),
        "first-not-json": lambda content: b"{\n" + content,
        "first-a-number": lambda content: b"5\n" + content,
        "first-a-list": lambda content: b"[]\n" + content,
        "first-deep": lambda content: b"[" * 50_000 + b"\n" + content,
        "first-huge": lambda content: b"9" * 5000 + b"\n" + content,
        "first-bytes": lambda content: b"\xff\xfe\n" + content,
        "bytes-in-a-reply": lambda content: content.replace(b'"reply": "', b'"reply": "\xff', 1),
        "nul": lambda content: bytes(99) + b"\n" + content,
        "key-twice": lambda content: content.rstrip()[:-1] + b', "seed": 0}\n',
    }
    for name, spoil in wrong.items():
        yield case(name, spoil)
    right: dict[str, Callable[[bytes], bytes]] = {
        "intact": bytes,
        "empty": lambda content: b"",
        "cut-last-line": lambda content: content[: len(content) // 2],
        "cut-further-line": lambda content: content + content[:50],
        "cut-in-a-character": lambda content: content + b'{"reply": "\xc3',
        "no-last-newline": lambda content: content.rstrip(),
        "blank-lines": lambda content: b"\n\n" + content + b"\n",
    }
    for name, spoil in right.items():
        yield case(name, spoil, whole)
    for name, written in {"empty": b"", "blank": b" \n", "bytes": b"\xff\xfe", "nul": b"a\0b\n"}.items():

        def topics(place: Place, written: bytes = written) -> Action:
            command = build(place, None)
            place.write("topics.txt", written)
            return command

        yield Case(f"stories/topics-{name}", topics, says="topics.txt")
    for name, emotion in {"unknown": "no-such-feeling-at-all", "path": "../../x", "empty": ","}.items():

        def named(place: Place, emotion: str = emotion) -> Action:
            return [
                "stories",
                place.folder / "s.jsonl",
                "--emotions",
                emotion,
                "--per-topic",
                "1",
                "--max-new-tokens",
                "3",
            ]

        if name == "empty":
            yield Case(f"stories/emotion-{name}", named)
    yield Case(
        "stories/suffix",
        lambda place: ["stories", place.folder / "s.txt", "--emotions", "afraid"],
        says=".jsonl",
    )
    yield Case("stories/a-folder", lambda place: ["stories", place.folder, "--emotions", "afraid"])


# Lists ---------------------------------------------------------------------------------------------------------------


def _texts() -> Iterator[Case]:
    for name, written in {
        "empty": b"",
        "blank": b"\n \n",
        "utf-16": "a text\n".encode("utf-16"),
        "bytes": b"\xff\n",
        "nul": b"a\0b\n",
    }.items():

        def build(place: Place, written: bytes = written) -> Action:
            path = place.write("texts.txt", written)
            return [
                "sweep",
                place.clean.model,
                place.clean.probes,
                "valence",
                "--texts",
                path,
                "--controls",
                "0",
            ]

        yield Case(f"texts/{name}", build, says="texts.txt")
    for name, make in {
        "missing": lambda path: None,
        "a-folder": Path.mkdir,
        "link": lambda path: path.symlink_to(path),
    }.items():

        def there(place: Place, make: Callable[[Path], object] = make) -> Action:
            make(place.folder / "texts.txt")
            return [
                "sweep",
                place.clean.model,
                place.clean.probes,
                "valence",
                "--texts",
                place.folder / "texts.txt",
            ]

        yield Case(f"texts/{name}", there, says="texts.txt")


def _norms() -> Iterator[Case]:
    rows = "".join(f"word{k},{k % 9 + 1},5,5\n" for k in range(30))
    clean = "word,valence,arousal,dominance\n" + rows
    wrong: dict[str, bytes | str] = {
        "empty": "",
        "no-words": clean.replace("word,", "thing,", 1),
        "no-ratings": "word,colour\nsun,red\n",
        "a-word-for-a-number": clean.replace("word3,4", "word3,four"),
        "infinite": clean.replace("word3,4", "word3,inf"),
        "huge": clean.replace("word3,4", "word3," + "9" * 400),
        "column-twice": clean.replace("arousal", "valence", 1),
        "short-row": clean + "word99\n",
        "nul": clean.replace("word3", "wo\0rd3", 1),
        "utf-16": clean.encode("utf-16"),
        "latin-1": clean.replace("word3", "wörd3", 1).encode("latin-1"),
    }
    for name, content in wrong.items():
        yield Case(
            f"norms/{name}",
            lambda place, content=content: partial(load_word_norms, place.write("norms.csv", content)),
            says="norms.csv",
        )

    def whole(place: Place, found: pd.DataFrame) -> None:
        assert len(found) == 30 and found.valence["word3"] == 4

    yield Case("norms/intact", lambda place: partial(load_word_norms, place.write("norms.csv", clean)), whole)
