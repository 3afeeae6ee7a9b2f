"""The same work twice leaves the same bytes, and whatever it leaves says what it was made with: versions, and the seed."""

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from small_study import small_corpus, small_model

import emoprobe as ep
from emoprobe import artefacts
from emoprobe.activation_store import load_activations, store_activations
from emoprobe.corpora.stories import ModelWriter, write_stories
from emoprobe.probes import load_probes
from emoprobe.probes.tasks import plan
from emoprobe.probes.text_moments import corpus_moments
from emoprobe.records import KEY
from emoprobe.steering import export_gguf, export_steering_vectors, import_steering_vectors, nll, sweep
from emoprobe.valattn import EmotionStream, Valuation

SEED = 5
FAST: dict[str, Any] = {"permutations": 2, "bootstrap": 40, "progress": False}


def probes(folder: Path) -> None:
    ep.fit_probes(small_model(), small_corpus(), seed=SEED, **FAST).save(folder / "probes.safetensors")


def vectors(folder: Path) -> None:
    stories = small_corpus(labels=True)
    found = ep.emotion_vectors(small_model(), stories, stories.texts[:20], seed=SEED, layers=[1], **FAST)
    found.raw.save(folder / "raw.safetensors")
    found.denoised.save(folder / "denoised.safetensors")


def start() -> Valuation:
    weight = torch.randn(3, 2, 32, generator=torch.Generator().manual_seed(0))
    return Valuation(weight, torch.zeros(3, 2), ("valence", "arousal"), (0, 1, 2))


def learned(folder: Path) -> None:
    options: dict[str, Any] = {"steps": 3, "batch_size": 4, "seed": SEED, "progress": False}
    for name, init in {"learned": start(), "stream": EmotionStream.start(start(), 32, width=2)}.items():
        ep.learn_valuation(
            small_model(), small_corpus(), init, checkpoint=folder / f"{name} at work.safetensors", **options
        ).save(folder / f"{name}.safetensors")


def started(folder: Path) -> None:
    EmotionStream.start(start(), 32, width=2, seed=SEED).save(folder / "stream.safetensors")
    start().random_like(SEED).save(folder / "random.safetensors")


def study(folder: Path) -> None:
    ep.run_study(small_model(), small_corpus(), folder, seed=SEED, limit=40, progress=False)


def moments(folder: Path) -> None:
    corpus = small_corpus()
    (found,) = corpus_moments(small_model(), corpus, plan(corpus, seed=SEED), [1])
    found.save(folder / "moments.safetensors")


def shards(folder: Path) -> None:
    store_activations(small_model(), small_corpus().texts, folder, [1], shard=25)


def swept(folder: Path) -> None:
    texts = small_corpus().texts[:2]
    sweep(small_model(), torch.ones(32), [0.1], texts, [nll(texts)], out=folder, seed=SEED, progress=False)


def stories(folder: Path) -> None:
    writer = ModelWriter(small_model(), max_new_tokens=8)
    options: dict[str, Any] = {"per_topic": 1, "about": ["the sun"], "seed": SEED, "progress": False}
    write_stories(writer, folder / "stories.jsonl", emotions=["joy"], **options)


def exports(folder: Path) -> None:
    export_steering_vectors(small_model(), torch.ones(32), folder / "exported.safetensors", layers=[2])


def gguf(folder: Path) -> None:
    pytest.importorskip("gguf")
    export_gguf(small_model(), torch.ones(32), folder / "exported.gguf", layers=[2])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[[Path], None]], Path]:
    """Return what does a piece of work, once for all tests, and says where."""

    @cache
    def once(work: Callable[[Path], None]) -> Path:
        folder = tmp_path_factory.mktemp(work.__name__)
        torch.manual_seed(1)
        work(folder)
        return folder

    return once


Done = Callable[[Callable[[Path], None]], Path]
WORK = [probes, vectors, learned, started, study, moments, shards, exports, gguf]


@pytest.mark.parametrize("work", WORK)
def test_the_same_work_twice_leaves_the_same_bytes(
    work: Callable[[Path], None], done: Done, tmp_path: Path
) -> None:
    torch.manual_seed(2)  # whatever was drawn before
    work(tmp_path)
    files = [file for file in sorted(done(work).rglob("*")) if file.suffix in (".safetensors", ".gguf")]
    assert files
    for file in files:
        assert file.read_bytes() == (tmp_path / file.relative_to(done(work))).read_bytes(), file.name


@pytest.mark.parametrize("work", WORK)
def test_tensors_say_their_versions_and_what_was_drawn_its_seed(
    work: Callable[[Path], None], done: Done
) -> None:
    for file in done(work).rglob("*"):
        if file.suffix in (".safetensors", ".gguf"):
            about = record(file)
            assert about["versions"]["torch"] == torch.__version__, file.name
            drawn = work not in (moments, shards, exports, gguf)
            assert not drawn or SEED in found(about, "seed") + found(about, "stream_seed"), file.name


def test_json_beside_tables_says_seed_and_versions(done: Done) -> None:
    written = [done(study) / "manifest.json", done(swept) / "asked.json", done(stories) / "stories.log.jsonl"]
    for file in written:
        about = json.loads(file.read_text().splitlines()[0] if file.suffix == ".jsonl" else file.read_text())
        assert SEED in found(about, "seed") and found(about, "versions")[0]["torch"] == torch.__version__, (
            file.name
        )
    assert json.loads((done(shards) / "index.json").read_text())["versions"]["torch"] == torch.__version__


def record(file: Path) -> dict[str, Any]:
    if file.suffix == ".gguf":
        field = pytest.importorskip("gguf").GGUFReader(file).get_field(KEY)
        return dict(json.loads(field.contents()))
    with safe_open(file, framework="pt") as opened:
        return dict(json.loads(opened.metadata()[KEY]))


def found(about: Any, name: str) -> list[Any]:
    """Return what goes by a name, however deep it lies."""
    if not isinstance(about, Mapping):
        return []
    here = [about[name]] if name in about else []
    return here + [one for part in about.values() for one in found(part, name)]


def test_what_is_kept_goes_on_under_other_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions are an account of what was, not a condition."""
    shards(tmp_path / "store")
    swept(tmp_path / "sweep")
    probes(tmp_path)
    (tmp_path / "store/000001.safetensors").unlink()
    monkeypatch.setattr(artefacts, "version", lambda package: "0.0")
    shards(tmp_path / "store")
    swept(tmp_path / "sweep")
    versions = record(tmp_path / "store/000001.safetensors")["versions"]
    assert versions["transformers"] == "0.0" and versions["torch"] == torch.__version__  # it tells its own
    assert load_activations(tmp_path / "store").vectors().shape == (60, 1, 32)
    load_probes(tmp_path / "probes.safetensors")


def test_files_of_before_versions_were_kept_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artefacts, "versions", lambda: None)
    monkeypatch.setattr("emoprobe.probes.probe_set.VERSION", 1)
    probes(tmp_path)
    started(tmp_path)
    monkeypatch.undo()
    for file in tmp_path.iterdir():
        without(file, "versions")
    assert load_probes(tmp_path / "probes.safetensors").metadata["seed"] == SEED
    assert EmotionStream.load(tmp_path / "stream.safetensors").valuation.metadata["stream_seed"] == SEED
    export_steering_vectors(small_model(), torch.ones(32), tmp_path / "old.safetensors", layers=[2])
    without(tmp_path / "old.safetensors", None)
    assert import_steering_vectors(tmp_path / "old.safetensors").layers == (2,)


def without(file: Path, name: str | None) -> None:
    """Take an entry out of the record of a file, or the whole record."""
    from safetensors.torch import load_file, save_file

    tensors, about = load_file(file), record(file)
    if name is not None:
        del about[name]
    save_file(tensors, file, None if name is None else {KEY: json.dumps(about, sort_keys=True)})
