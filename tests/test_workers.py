"""Ray's workers give the numbers of one process, though one of them dies in the midst of the work."""

import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_probes import model, planted, probes, texts
from tiny import tiny_model

from emoprobe import activation_store, activations, cli
from emoprobe import workers as module
from emoprobe.activation_store import store_activations
from emoprobe.cli import typed
from emoprobe.corpora import Corpus
from emoprobe.errors import InputError
from emoprobe.models import LiveModel
from emoprobe.probes import fit_probes, text_moments
from emoprobe.probes.scorer import score_corpus
from emoprobe.probes.tasks import plan
from emoprobe.probes.text_moments import corpus_moments
from emoprobe.probes.tokens import TokenMeans
from emoprobe.steering import kl, read_out, sweep
from emoprobe.workers import RayWorkers

PLANTED = "planted"
FOLDER: list[Path] = []
"""Where the model lies that the workers have loaded."""
ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'emoprobe[ray]'")


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayWorkers]:
    """Return two workers that have loaded the small model."""
    folder = tmp_path_factory.mktemp("ray") / "model"
    model().underlying.save_pretrained(folder)
    model().tokenizer.save_pretrained(folder)
    FOLDER.append(folder)
    ray.cloudpickle.register_pickle_by_value(__import__(__name__))
    with module.ray_workers(str(folder), 2, dtype=torch.float64) as started:
        yield started
    assert not ray.is_initialized()


def slowly(live: LiveModel, seconds: float) -> tuple[int, float]:
    """Return the process that did it, after a while."""
    time.sleep(seconds)
    return os.getpid(), seconds


def deadly(live: LiveModel, mark: Path) -> str:
    """End the worker, the first time."""
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return mark.name


class Deadly:
    """A mean over tokens that ends the worker at the eighth batch, the first time."""

    def __init__(self, mark: Path) -> None:
        self.mark, self.batches = mark, 0

    def __call__(self, stream: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
        self.batches += 1
        if self.batches == 8 and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return activations.mean_over(stream, counted)


def refusing(live: LiveModel, item: int) -> int:
    """Raise what a user is to see."""
    raise InputError(f"item {item} is refused")


def letters(live: LiveModel, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Measure, run by run, how likely the last token is that each prompt makes likeliest."""
    return {"likeliest": live.logits(list(prompts))[:, -1].log_softmax(-1).amax(-1)}


def test_pieces_come_back_in_order_and_are_taken_only_as_they_are_needed(workers: RayWorkers) -> None:
    taken = []

    def items() -> Iterator[float]:
        for number in range(12):
            taken.append(number)
            yield 0.3 if number % 4 == 0 else 0.01

    found = workers.map(slowly, items())
    first = next(found)
    assert first[1] == 0.3 and len(taken) <= 2 * module.AHEAD + 2
    rest = [first, *found]
    assert [seconds for _, seconds in rest] == [0.3, 0.01, 0.01, 0.01] * 3
    assert len({process for process, _ in rest}) == 2 and os.getpid() not in {process for process, _ in rest}


@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_totals_are_added_in_order(workers: RayWorkers, count: int) -> None:
    letters = list("abcdefgh"[:count])
    assert workers.total(lambda live, letter: letter, letters) == "".join(letters)


def test_what_a_worker_raises_is_what_the_user_sees(workers: RayWorkers) -> None:
    with pytest.raises(InputError, match=r"^item 0 is refused$"):
        list(workers.map(refusing, [0, 1]))
    with pytest.raises(InputError, match=r"^item 1 is refused$"):
        workers.total(refusing, [1])
    with pytest.raises(InputError, match="nothing was given"):
        workers.total(refusing, [])


def test_workers_of_another_model_do_not_pass_for_this_one(workers: RayWorkers, tmp_path: Path) -> None:
    other, corpus = tiny_model("gpt2", seed=1), planted()[0]
    scored = fit_probes(other, corpus, [1], permutations=0, bootstrap=0, progress=False)
    for call in (
        lambda: store_activations(other, texts(3), tmp_path, workers=workers),
        lambda: corpus_moments(other, corpus, plan(corpus), [1], workers=workers),
        lambda: score_corpus(other, scored, texts(3), randoms=0, workers=workers),
        lambda: sweep(
            other,
            torch.ones(32),
            [0.1],
            texts(1),
            [kl(texts(1))],
            controls=0,
            workers=workers,
            progress=False,
        ),
    ):
        with pytest.warns(UserWarning, match="workers' model differs from tiny-gpt2-1"):
            call()
    deeper = SimpleNamespace(name="deeper", n_layers=4, d_model=32, fingerprint=model().fingerprint)
    with pytest.raises(InputError, match=r"model has 3 blocks of width 32, deeper 4 of 32"):
        workers.check_model(deeper)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        workers.check_model(model())


@pytest.mark.parametrize("error", ["OutOfMemoryError", "WorkerCrashedError", "ActorDiedError"])
def test_whatever_ends_workers_is_said_in_words(error: str) -> None:
    given = ("no memory",) if error == "OutOfMemoryError" else ()
    with pytest.raises(InputError, match="give each more memory"), module._told():
        raise getattr(ray.exceptions, error)(*given)


@pytest.mark.parametrize("shares", [128, 3])
def test_moments_are_those_of_one_process(
    workers: RayWorkers, shares: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_moments, "SHARES", shares)  # 240 texts in 8 windows of 32
    corpus, tasks = planted()[0], plan(planted()[0], folds=3)
    alone = corpus_moments(model(), corpus, tasks, [0, 2], batch_size=1)
    together = corpus_moments(model(), corpus, tasks, [0, 2], batch_size=1, workers=workers)
    again = corpus_moments(model(), corpus, tasks, [0, 2], batch_size=1, workers=workers)
    for one, other, same in zip(alone, together, again, strict=True):
        assert torch.equal(one.count, other.count)
        for part in ("mean", "scatter"):
            wanted, found = getattr(one, part), getattr(other, part)
            assert (found - wanted).abs().max() <= 1e-10 * wanted.abs().max()
            assert torch.equal(found, getattr(same, part))  # whichever worker was faster


def test_scores_are_those_of_one_process(workers: RayWorkers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "WINDOW", 8)
    given = [*texts(170, seed=3), " ", *texts(30, seed=4)]
    alone = score_corpus(model(), probes(), given, top=5, randoms=3, batch_size=6)
    together = score_corpus(model(), probes(), iter(given), top=5, randoms=3, batch_size=6, workers=workers)
    assert (together.texts, together.skipped, together.tokens) == (alone.texts, 1, alone.tokens)
    columns = ["concept", "side", "rank", "text", "position", "snippet"]
    assert together.snippets[columns].equals(alone.snippets[columns])
    for table in ("snippets", "distribution", "controls"):
        one, other = (getattr(scores, table).select_dtypes("number") for scores in (alone, together))
        assert np.allclose(one, other, rtol=1e-6, atol=1e-8, equal_nan=True)


def test_probes_are_those_of_one_process(workers: RayWorkers, tmp_path: Path) -> None:
    options = {"layers": [2], "permutations": 0, "bootstrap": 0, "progress": False}
    alone = fit_probes(model(), planted()[0], **options)
    together = fit_probes(model(), planted()[0], workers=workers, **options)
    assert together.save(tmp_path / "a").read_bytes() == alone.save(tmp_path / "b").read_bytes()


def test_the_command_line_shares_its_work_too(
    workers: RayWorkers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "texts.csv"
    planted()[0].frame[["text", PLANTED, "group"]].to_csv(corpus, index=False)
    monkeypatch.setattr(typed, "ray_workers", lambda model, number, **options: nullcontext(workers))
    for name, engine in (("a", "here"), ("b", "ray")):
        fitted = ["fit", str(FOLDER[0]), str(corpus), "-o", str(tmp_path / name), "--layers", "2"]
        given = ["--columns", f"text=text,group=group,{PLANTED}={PLANTED}", "--ranges", f"{PLANTED}=-9:9"]
        given += ["--dtype", "float64"]
        assert cli.main([*fitted, *given, "--engine", engine]) == 0
        swept = [
            "sweep",
            str(FOLDER[0]),
            str(tmp_path / name),
            PLANTED,
            "--controls",
            "1",
            "--strengths",
            "0.1",
        ]
        assert (
            cli.main([*swept, "--dtype", "float64", "-o", str(tmp_path / f"{name}.csv"), "--engine", engine])
            == 0
        )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "a.csv", "b", "b.csv", "texts.csv"]
    capsys.readouterr()
    assert cli.main([*fitted, *given, "--engine", "dask"]) == 2
    assert "'--engine': \"dask\" is not known: give here or ray" in capsys.readouterr().err


def test_a_sweep_is_that_of_one_process(workers: RayWorkers, tmp_path: Path) -> None:
    given, held_out = texts(4, seed=5), texts(6, seed=6)
    asked = (probes()[PLANTED], [-0.2, 0.1, 0.3], given)
    measures = [kl(held_out), read_out(probes(), [PLANTED], layer=3), letters]
    options = {"layers": 1, "controls": 2, "together": 4, "progress": False}
    alone = sweep(model(), *asked, measures, **options)
    together = sweep(model(), *asked, measures, out=tmp_path, workers=workers, **options)
    assert together.raw.equals(alone.raw)
    assert len(list(tmp_path.glob("*.parquet"))) == 1 + 3 * 3 + 3  # untouched; own and random; opposite


def test_a_worker_that_dies_is_replaced_and_its_piece_done_again(workers: RayWorkers, tmp_path: Path) -> None:
    marks = [tmp_path / name for name in "abcdef"]
    for mark in set(marks) - {marks[2]}:
        mark.touch()
    assert workers.total(deadly, marks) == "abcdef"
    assert marks[2].exists()


def test_a_store_is_the_same_though_a_worker_is_killed_in_the_midst(
    workers: RayWorkers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activation_store, "SHARD", 8)
    alone, together = TokenMeans("mean"), TokenMeans("mean")
    store_activations(model(), texts(), tmp_path / "alone", pool=alone)
    before = {process for process, _ in workers.map(slowly, [0.2] * 4)}
    killed: list[int] = []

    def kill() -> None:
        while len(list((tmp_path / "together").glob("0*"))) < 3:
            time.sleep(0.005)
        killed.append(min(before))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    store_activations(model(), texts(), tmp_path / "together", pool=together, workers=workers)
    killer.join()
    files = [file.name for file in (tmp_path / "alone").iterdir()]
    assert len(files) == 31 and sorted(files) == sorted(f.name for f in (tmp_path / "together").iterdir())
    for name in files:
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "together" / name).read_bytes()
    assert torch.equal(alone.mean, together.mean) and torch.equal(alone.norm, together.norm)
    after = {process for process, _ in workers.map(slowly, [0.2] * 4)}
    assert killed and len(after) == 2 and killed[0] not in after


def test_moments_of_a_share_are_counted_once_though_its_worker_dies_in_the_midst(
    workers: RayWorkers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_moments, "SHARES", 2)
    count = 4 * 32 * activations.WINDOW
    values = np.random.default_rng(0).uniform(size=count)
    columns = {"text": texts(count), PLANTED: values, "group": [f"group {n % 50}" for n in range(count)]}
    corpus = Corpus.from_columns(columns, name="many", dimensions={PLANTED: (0.0, 1.0)})
    tasks, mark = plan(corpus), tmp_path / "mark"
    (alone,) = corpus_moments(model(), corpus, tasks, [2], activations.mean_over)
    (together,) = corpus_moments(model(), corpus, tasks, [2], Deadly(mark), workers=workers)
    assert mark.exists() and torch.equal(alone.count, together.count)
    for part in ("mean", "scatter"):
        wanted = getattr(alone, part)
        assert (getattr(together, part) - wanted).abs().max() <= 1e-10 * wanted.abs().max()


@pytest.mark.parametrize("count", [1, 31, 32, 33, 200])
@pytest.mark.parametrize("most", [1, 3, 100])
def test_parts_are_whole_windows_of_about_one_length(
    count: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activations, "WINDOW", 4)
    given = [str(number) for number in range(count)]
    parts = list(activations.stretches(given, 2, most))
    assert [text for _, part in parts for text in part] == given
    assert [given[first] for first, _ in parts] == [part[0] for _, part in parts]
    assert len(parts) == min(most, -(-count // 8)) and all(first % 8 == 0 for first, _ in parts)
    lengths = [-(-len(part) // 8) for _, part in parts]
    assert max(lengths) - min(lengths) <= 1
    assert list(activations.stretches([], 2, most)) == []


def test_what_cannot_be_started_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="workers=0"), module.ray_workers("bundled", 0):
        pass
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"emoprobe\[ray\]"), module.ray_workers("bundled"):
        pass
