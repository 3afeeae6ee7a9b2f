"""The command line: every command does its work, and whatever is wrong is said in one line with the right exit status."""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_study import small_corpus, small_model

from emoprobe import activation_store, cli
from emoprobe.artefacts import only_writer
from emoprobe.errors import InputError
from emoprobe.probes import ProbeSet
from emoprobe.study import run

COMMANDS = (
    "study",
    "fit",
    "trace",
    "steer",
    "inject",
    "sweep",
    "learn",
    "compare",
    "report",
    "explore",
    "stories",
    "concepts",
    "claims",
    "info",
)
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model, a corpus as CSV, and probes for it."""
    folder = tmp_path_factory.mktemp("cli")
    model = small_model()
    model.underlying.save_pretrained(folder / "model")
    model.tokenizer.save_pretrained(folder / "model")
    corpus = small_corpus().frame.rename(columns={"text": "sentence", "valence": "V"})
    corpus[["sentence", "V", "arousal", "group"]].to_csv(folder / "days.csv", index=False)
    given = [str(folder / name) for name in ("model", "days.csv", "probes.safetensors")]
    columns = "text=sentence,valence=V,arousal=arousal,group=group"
    assert cli.main(["fit", given[0], given[1], "-o", given[2], "--columns", columns]) == 0
    return folder


@pytest.fixture
def call(files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Return a function that runs a command in that folder: (status, stdout, stderr)."""
    monkeypatch.chdir(files)

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run


# Help ----------------------------------------------------------------------------------------------------------------


def test_help_is_there_at_once() -> None:
    # That nothing heavy is imported; how long it takes is in benchmarks/peers.
    command = [sys.executable, "-X", "importtime", "-m", "emoprobe.cli", "--help"]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert all(name in found.stdout for name in COMMANDS)
    assert not [
        heavy for heavy in ("torch", "numpy", "transformers", "pandas") if f"| {heavy}\n" in found.stderr
    ]


def test_what_is_offered_is_all_that_there_is(call: Call) -> None:
    status, out, _ = call()
    offered = re.findall(r"^  (\w+)  ", out.split("Commands:")[1], re.MULTILINE)
    assert status == 0 and sorted(offered) == sorted(COMMANDS)
    assert call("--version") == (0, "emoprobe 0.1.0\n", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_shows_an_example_that_it_understands(command: str, call: Call) -> None:
    status, out, err = call(command, "--help")
    assert status == 0 and not err
    assert f"Example: emoprobe {command}" in out


# What the commands do ------------------------------------------------------------------------------------------------


def test_fit_writes_probes_and_says_what_they_are_worth(call: Call, files: Path) -> None:
    columns = (
        "--columns",
        "text=sentence,valence=V,group=group",
        "--layers",
        "0,-1",
        "--estimator",
        "mean_difference",
    )
    status, out, _ = call("fit", "model", "days.csv", "-o", "few.safetensors", *columns)
    assert status == 0 and "valence Pearson r" in " ".join(out.split()) and "shuffled" in out
    from emoprobe import load_probes

    probes = load_probes(files / "few.safetensors")
    assert probes.layers == (0, 3) and probes.metadata["estimators"] == {"dimension": "mean_difference"}


def test_trace_shows_every_token(call: Call) -> None:
    status, out, _ = call(
        "trace", "model", "probes.safetensors", "the sun came up", "--concepts", "valence", "--layers", "2"
    )
    assert status == 0 and "valence @2" in out
    assert "".join(line.split()[0] for line in out.splitlines()[2:]) == "the␣sun␣came␣up"


def _values(out: str) -> tuple[list[str], list[list[float]]]:
    """Read a trace's table: its columns, and a row of numbers for each token."""
    columns = re.findall(r"\w+ @\d", out.splitlines()[0])
    rows = [
        [float(cell) for cell in line.split()[1:]]
        for line in out.splitlines()[1:]
        if not re.search("columns|written", line)
    ]
    return columns, rows


def test_a_trace_that_goes_to_a_file_is_whole(call: Call, files: Path) -> None:
    import pandas as pd

    from emoprobe import load_model, load_probes
    from emoprobe.probes import trace

    found = trace(load_model("model"), load_probes("probes.safetensors"), "the sun", layers="all").frame
    given = ("trace", "model", "probes.safetensors", "the sun", "--layers", "all")
    status, out, err = call(*given, "-o", "numbers.csv")
    columns, rows = _values(out)
    assert status == 0 and not err and "\x1b" not in out and "…" not in out
    assert len(columns) == 8 and max(map(len, out.splitlines())) > 80  # more than a terminal would hold
    for column, values in zip(columns, zip(*rows, strict=True), strict=True):
        concept, layer = column.split(" @")
        truth = found[(found.concept == concept) & (found.layer == int(layer))].sort_values("position").value
        assert list(values) == pytest.approx(truth.tolist(), abs=0.0051)
    written = pd.read_csv(files / "numbers.csv")
    assert written.token.tolist() == found.token.tolist() and written.value.tolist() == pytest.approx(
        found.value.tolist()
    )


def test_a_fit_that_was_broken_off_goes_on(call: Call, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["fit", "model", "days.csv", "--columns", "text=sentence,valence=V,arousal=arousal,group=group"]
    monkeypatch.setattr(activation_store, "SHARD", 20)
    assert call(*wanted, "-o", "whole.safetensors")[0] == 0
    write, kept = activation_store.ActivationStore.write, files / "broken.safetensors.activations"

    def interrupted(self: activation_store.ActivationStore, number: int, *given: object) -> None:
        if number == 2:
            raise KeyboardInterrupt
        write(self, number, *given)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(activation_store.ActivationStore, "write", interrupted)
        assert call(*wanted, "-o", "broken.safetensors")[0] == 130
    assert len(list(kept.glob("*.safetensors"))) == 2 and not (files / "broken.safetensors").exists()
    before = {file: file.stat().st_mtime_ns for file in kept.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda folder: None)
        assert call(*wanted, "-o", "broken.safetensors")[0] == 0
    assert before == {
        file: file.stat().st_mtime_ns for file in before
    }  # finished shards are not written again
    assert (files / "broken.safetensors").read_bytes() == (files / "whole.safetensors").read_bytes()
    assert not (files / "whole.safetensors.activations").exists()


def test_of_two_fits_with_one_output_the_second_is_told(
    call: Call, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ["fit", "model", "days.csv", "-o", "twice.safetensors", "--columns", "text=sentence,valence=V"]
    save, said = ProbeSet.save, list[tuple[int, str, str]]()

    def meanwhile(self: ProbeSet, path: Path) -> Path:
        # All vectors are there, and what is made of them is not yet.
        monkeypatch.setattr(ProbeSet, "save", save)
        said.append(call(*wanted))
        return save(self, path)

    monkeypatch.setattr(ProbeSet, "save", meanwhile)
    assert call(*wanted)[0] == 0
    ((status, out, err),) = said
    assert status == 2 and not out
    assert err.startswith('emoprobe: another process is writing to "twice.safetensors": wait until')
    assert [file.name for file in files.iterdir() if "twice" in file.name] == ["twice.safetensors"]


@pytest.mark.parametrize("width", [30, 60, 200])
def test_a_terminal_shows_the_columns_that_fit_uncut(
    width: int, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.text import Text

    from emoprobe import load_model, load_probes
    from emoprobe.probes import trace

    given = ("trace", "model", "probes.safetensors", "the sun", "--layers", "all")
    every, _ = _values(call(*given)[1])
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    out = Text.from_ansi(call(*given)[1]).plain
    assert "…" not in out and max(map(len, out.splitlines())) <= width
    table = "\n".join(line for line in out.splitlines() if line.startswith(" "))
    columns, rows = _values(table)
    assert all(len(row) == len(columns) for row in rows)
    z = trace(load_model("model"), load_probes("probes.safetensors"), "the sun", layers="all", kind="z").frame
    away = z[z.position > 0].groupby(["concept", "layer"]).value.mean().abs().sort_values(ascending=False)
    furthest = {f"{concept} @{layer}" for concept, layer in away.index[: len(columns)]}
    assert columns == [column for column in every if column in furthest]
    assert (f"{len(columns)} of 8" in out) == (len(columns) < 8) == (width < 200)


def test_the_untouched_continuation_is_the_models_own(call: Call) -> None:
    from emoprobe import load_model

    own = load_model("model").generate("the sun", max_new_tokens=5, do_sample=False)
    for arguments in (
        ("steer", "model", "probes.safetensors", "valence", "the sun", "--strength", "4", "--layers", "1"),
        ("inject", "model", "probes.safetensors", "the sun", "--strength", "40", "--concepts", "valence"),
    ):
        _, out, _ = call(*arguments, "--max-new-tokens", "5")
        assert out.startswith(f"untouched\n  the sun{own}\n\n") and "no difference" not in out
        zero = [
            *arguments[: arguments.index("--strength") + 1],
            "0",
            *arguments[arguments.index("--strength") + 2 :],
        ]
        assert call(*zero, "--max-new-tokens", "5")[1].endswith(f" (no difference)\n  the sun{own}\n")


def test_steer_and_inject_write_two_continuations(call: Call) -> None:
    for arguments in (
        ("steer", "model", "probes.safetensors", "valence", "the sun", "--strength", "4", "--layers", "1"),
        ("inject", "model", "probes.safetensors", "the sun", "--strength", "40", "--concepts", "valence"),
    ):
        status, out, _ = call(*arguments, "--max-new-tokens", "5")
        untouched, changed = out.split("\n\n")
        assert status == 0 and untouched.startswith("untouched\n  the sun")
        assert untouched.splitlines()[1:] != changed.splitlines()[1:]
    neutral = call(
        "steer",
        "model",
        "probes.safetensors",
        "valence",
        "the sun",
        "--strength",
        "0",
        "--max-new-tokens",
        "5",
    )[1]
    untouched, changed = neutral.split("\n\n")
    assert untouched.splitlines()[1:] == changed.splitlines()[1:]


def test_a_text_may_come_from_standard_input(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = call("trace", "model", "probes.safetensors", "the sun came up")
    monkeypatch.setattr("sys.stdin", io.StringIO("the sun came up\n"))
    assert call("trace", "model", "probes.safetensors", "-") == typed and typed[0] == 0
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    status, _, err = call("steer", "model", "probes.safetensors", "valence", "-")
    assert status == 2 and "the text is empty" in err


def test_sweep_measures_and_writes(call: Call, files: Path) -> None:
    (files / "texts.txt").write_text("The sun came up.\n\nIt was dark.\n")
    options = ("--texts", "texts.txt", "--controls", "2")
    status, out, _ = call(
        "sweep", "model", "probes.safetensors", "valence", "--strengths=-0.5,0,0.5", *options
    )
    assert status == 0 and "nll" in out and "valence read-out, layer 3" in out
    assert re.search(
        r"nll: [\d.]+ \[[\d.]+, [\d.]+\] at 0\.5, untouched [\d.]+, random [\d.]+ to [\d.]+; ", out
    )
    more = ("--strengths", "0,1", "-o", "numbers.csv", "--figure", "picture.svg")
    status, out, _ = call("sweep", "model", "probes.safetensors", *options, *more)
    assert status == 0 and "Sweep of valuation" in out
    assert (files / "numbers.csv").read_text().startswith("strength,condition,seed,measure")
    assert "<svg" in (files / "picture.svg").read_text()


def test_compare_sets_two_valuations_side_by_side(call: Call, files: Path) -> None:
    import torch

    from emoprobe import Valuation, load_probes

    probed = Valuation.from_probes(load_probes(files / "probes.safetensors"))
    replace(probed, strength=torch.tensor(0.5)).save(files / "learned.safetensors")
    where = ("--corpus", "days.csv", "--columns", "text=sentence,group=group", "--limit", "6")
    status, out, _ = call("compare", "model", "probes.safetensors", "learned.safetensors", *where)
    assert status == 0 and "row cosine" in out and "untouched" in out


def test_learn_writes_a_valuation_that_compare_takes(call: Call, files: Path) -> None:
    import torch

    from emoprobe import Valuation, learn_valuation, load_corpus, load_model, load_probes

    columns = ("--columns", "text=sentence,valence=V,group=group")
    asked = ("learn", "model", "probes.safetensors", "days.csv", "-o", "own.safetensors", *columns)
    status, out, _ = call(*asked, "--dimensions", "valence", "--steps", "2", "--seed", "1")
    assert status == 0 and "NLL of " in out and "(block 0)" in out and "written: own.safetensors" in out
    found = Valuation.load(files / "own.safetensors")
    texts = load_corpus("days.csv", columns={"text": "sentence", "valence": "V", "group": "group"})
    start = Valuation.from_probes(load_probes("probes.safetensors"), ["valence"])
    expected = learn_valuation(load_model("model"), texts, start, steps=2, seed=1, progress=False)
    assert found.dimensions == ("valence",) and found.strength is not None and found.strength.any()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in expected.tensors.items())
    compared = ("compare", "model", "probes.safetensors", "own.safetensors", "--corpus", "days.csv", *columns)
    assert call(*compared, "--limit", "12")[0] == 0


def test_a_learning_that_was_broken_off_goes_on(
    call: Call, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emoprobe.valattn.training import _Run

    columns = ("--columns", "text=sentence,valence=V,group=group", "--dimensions", "valence")
    wanted = ("learn", "model", "probes.safetensors", "days.csv", *columns, "--steps", "40")
    assert call(*wanted, "-o", "unbroken.safetensors")[0] == 0
    take_step, taken, until = _Run.take_step, list[int](), 7

    def interrupted(self: _Run, *given: Any) -> None:
        if self.step == until:
            raise KeyboardInterrupt
        taken.append(self.step)
        take_step(self, *given)

    monkeypatch.setattr(_Run, "take_step", interrupted)
    status, _, err = call(*wanted, "-o", "broken_off.safetensors")
    assert status == 130 and err.endswith("what is done is kept, and the same command resumes\n")
    kept, output = files / "broken_off.safetensors.checkpoint", files / "broken_off.safetensors"
    assert kept.is_file() and not output.exists()
    with only_writer(output):
        status, _, err = call(*wanted, "-o", "broken_off.safetensors")
    assert status == 2 and 'another process is writing to "broken_off.safetensors"' in err
    for other in (("--seed", "1"), ("--dtype", "bfloat16")):
        status, _, err = call(*wanted, *other, "-o", "broken_off.safetensors")
        refused = err.splitlines()[-1]
        assert (
            status == 2 and '"broken_off.safetensors.checkpoint" is the checkpoint of another run' in refused
        )
        assert other[0].removeprefix("--") in refused and "delete this one to start anew" in refused
    taken, until = [], 40
    status, _, err = call(*wanted, "-o", "broken_off.safetensors")
    assert status == 0 and err == "going on from broken_off.safetensors.checkpoint\n"
    assert taken == list(range(6, 40))  # one of twenty parts of the run at most is done again
    assert output.read_bytes() == (files / "unbroken.safetensors").read_bytes()
    assert not kept.exists() and not (files / "unbroken.safetensors.checkpoint").exists()


def test_info_says_what_a_model_is(call: Call) -> None:
    status, out, _ = call("info", "model")
    assert (
        status == 0
        and "inject, blocks 0-2   yes, folded" in out
        and "chat template        no" in out
        and "0 (the embedding) to 3" in out
        and small_model().fingerprint() in out
    )


def test_study_and_report(call: Call, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = _one_step(monkeypatch)
    columns = ("--columns", "text=sentence,valence=V,group=group")
    status, out, err = call("study", "model", "--corpus", "days.csv", *columns, "--out", "run", "--seed", "5")
    assert status == 0 and out == f"report: {Path('run') / 'report.html'}\n"
    assert re.search(r"… only, begun \d\d:\d\d:\d\d\n", err)  # where no spinner turns
    assert "found it" in err  # the display, which leaves stdout to what is worth keeping
    command = json.loads((files / "run" / "manifest.json").read_text())["command"]
    assert (
        command
        == "emoprobe study model --corpus days.csv --columns text=sentence,valence=V,group=group --out run --seed 5"
    )
    assert call(*command.split()[1:])[0] == 0 and made == ["only"]
    (files / "run" / "report.html").unlink()
    assert call("report", "run")[:2] == (0, out)
    assert "found it" in (files / "run" / "report.html").read_text()
    manifest = files / "run" / "manifest.json"
    record = json.loads(manifest.read_text())
    assert record["planned"] == ["only"]
    manifest.write_text(json.dumps(record | {"planned": ["only", "another", "a third"]}))
    assert call("report", "run")[1] == f"{out}unfinished: 1 of 3 experiments, missing another, a third\n"
    assert json.loads(call("report", "run", "--json")[1])["missing"] == ["another", "a third"]


# What goes wrong -----------------------------------------------------------------------------------------------------


def _one_step(
    monkeypatch: pytest.MonkeyPatch, held: bool = True, error: BaseException | None = None
) -> list[str]:
    """Make a study of a single step, and return the list of the times that it ran."""
    from test_report import result

    made: list[str] = []

    def step() -> object:
        if error is not None:
            raise error
        made.append("only")
        return result(finding="found it", checks={"it held": held})

    monkeypatch.setattr(run, "_steps", lambda *_: iter([("only", step)]))
    return made


def test_a_study_whose_checks_failed(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    _one_step(monkeypatch, held=False)
    status, out, err = call(
        "study", "model", "--corpus", "days.csv", "--columns", "text=sentence,valence=V", "--out", "bad"
    )
    assert status == 1 and "report" in out and "1 checks failed (only: it held)" in err


def test_an_interrupted_study_says_what_is_kept(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    _one_step(monkeypatch, error=KeyboardInterrupt())
    status, _, err = call(
        "study", "model", "--corpus", "days.csv", "--columns", "text=sentence,valence=V", "--out", "cut"
    )
    assert status == 130
    assert err.splitlines()[-1] == "emoprobe: interrupted; what is done is kept, and the same command resumes"


def test_our_own_faults_are_not_the_users(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    _one_step(monkeypatch, error=ZeroDivisionError("oops"))
    status, _, err = call(
        "study", "model", "--corpus", "days.csv", "--columns", "text=sentence,valence=V", "--out", "our"
    )
    assert status == 70 and "Traceback" in err and "not yours" in err


BAD = {
    "no such command": (["frobnicate"], "frobnicate"),
    "no such option": (["study", "--frobnicate"], "--frobnicate"),
    "an argument missing": (["trace", "model"], "probes"),
    "an option missing": (["fit", "model", "days.csv"], "--output"),
    "no number": (["study", "--limit", "many"], "--limit"),
    "no such model": (
        ["study", "./nowhere", "--corpus", "days.csv", "--columns", "text=sentence,valence=V"],
        'no folder "./nowhere": check the path',
    ),
    "a file for a model": (["info", "days.csv"], '"days.csv" is a file'),
    "no such corpus": (["study", "model", "--corpus", "nowhere.csv"], "nowhere.csv"),
    "no such column": (
        ["fit", "model", "days.csv", "-o", "x", "--columns", "text=sentence,valence=mood"],
        "mood",
    ),
    "columns not understood": (
        ["fit", "model", "days.csv", "-o", "x", "--columns", "text:sentence"],
        "text:sentence",
    ),
    "no such column at all": (
        ["fit", "model", "days.csv", "-o", "x"],
        "days.csv: say which column holds the texts, --columns text=",
    ),
    "no number in a column": (
        ["fit", "model", "days.csv", "-o", "x", "--columns", "text=sentence,arousal=group"],
        "days.csv: row 1 (the first text is row 1), column 'group'",
    ),
    "no labels": (["fit", "model", "plain.csv", "-o", "x"], "--columns labels=COLUMN"),
    "a range unknown": (
        ["fit", "model", "plain.csv", "-o", "x", "--columns", "stars=stars"],
        "--ranges stars=LOWEST:HIGHEST",
    ),
    "a range of nothing": (
        ["fit", "model", "plain.csv", "-o", "x", "--ranges", "stras=1:5"],
        "--columns stras=COLUMN",
    ),
    "a folder for a file": (
        ["fit", "model", "wild.csv", "-o", "x", "--folder", "model"],
        "--folder is for published corpora",
    ),
    "no such estimator": (
        ["fit", "model", "rated.csv", "-o", "x", "--estimator", "lasso"],
        "Invalid value for '--estimator': \"lasso\" is not known: give auto, mean_difference, ridge or logistic",
    ),
    "out of range": (
        ["fit", "model", "wild.csv", "-o", "x"],
        "wild.csv: row 2 (the first text is row 1), column 'valence': 7.0",
    ),
    "out of range, and what to do": (
        ["fit", "model", "wild.csv", "-o", "x"],
        "--ranges valence=LOWEST:HIGHEST",
    ),
    "ranges not understood": (["fit", "model", "wild.csv", "-o", "x", "--ranges", "valence=1"], "valence=1"),
    "an empty text": (
        ["fit", "model", "empty.csv", "-o", "x"],
        "empty.csv: row 2 (the first text is row 1), column 'text': the cell is empty",
    ),
    "an empty line of JSON": (
        ["fit", "model", "empty.jsonl", "-o", "x"],
        "empty.jsonl: row 2 (the first text is row 1), column 'text': the cell is empty",
    ),
    "too few groups": (["fit", "model", "rated.csv", "-o", "x"], "give --folds 3"),
    "an empty prompt": (["trace", "model", "probes.safetensors", " "], "the text is empty"),
    "a prompt too long": (
        ["steer", "model", "probes.safetensors", "valence", "the sun " * 600],
        "text 1 has",
    ),
    "no concept": (["trace", "model", "probes.safetensors", "the sun", "--concepts", ","], "--concepts"),
    "no such position": (
        ["steer", "model", "probes.safetensors", "valence", "the sun", "--positions", "top"],
        "Invalid value for '--positions': \"top\"",
    ),
    "no finite strength": (
        ["inject", "model", "probes.safetensors", "the sun", "--strength", "nan"],
        "Invalid value for '--strength': nan is not a finite number",
    ),
    "a strength beyond float32": (
        ["steer", "model", "probes.safetensors", "valence", "the sun", "--strength", "1e300"],
        "--strength 1e+300 is not a finite number in float32",
    ),
    "a strength beyond what a model bears": (
        ["steer", "model", "probes.safetensors", "valence", "the sun", "--strength", "-1e38"],
        "lower the strength",
    ),
    "λ beyond what a model bears": (
        ["inject", "model", "probes.safetensors", "the sun", "--strength", "1e38"],
        "lower the strength",
    ),
    "no such layer": (
        ["steer", "model", "probes.safetensors", "valence", "the sun", "--layers", "9"],
        "layer 9 does not exist: this model has layers 0 to 3 (residual streams",
    ),
    "layers not understood": (
        ["fit", "model", "days.csv", "-o", "x", "--layers", "top", *["--columns", "text=sentence"]],
        "top",
    ),
    "no such concept": (["steer", "model", "probes.safetensors", "ennui", "the sun"], "ennui"),
    "no such block": (
        ["inject", "model", "probes.safetensors", "the sun", "--layers", "3"],
        "block 3 does not exist: this model has attention blocks 0 to 2",
    ),
    "probes of another width": (["trace", "wide", "probes.safetensors", "the sun"], "width 32"),
    "a valuation of another width": (["inject", "wide", "probes.safetensors", "the sun"], "width 32"),
    "a sweep of another width": (["sweep", "wide", "probes.safetensors"], "width 32"),
    "no probe set": (["trace", "model", "days.csv", "the sun"], "days.csv"),
    "a probe set missing": (["trace", "model", "nowhere.safetensors", "the sun"], "nowhere.safetensors"),
    "a file for a text": (
        ["trace", "model", "probes.safetensors", "days.csv"],
        '"days.csv" is a file: to give what is in it, type - for the text',
    ),
    "a figure of another kind": (
        ["sweep", "model", "probes.safetensors", "--figure", "picture.bmpp"],
        '"picture.bmpp" is neither an SVG nor a PNG file',
    ),
    "strengths not understood": (
        ["sweep", "model", "probes.safetensors", "--strengths", "low,high"],
        "low,high",
    ),
    "no texts": (
        ["sweep", "model", "probes.safetensors", "--texts", "nowhere.txt"],
        "nowhere.txt: no such file; check the path",
    ),
    "an unreadable figure": (
        ["sweep", "model", "probes.safetensors", "--figure", "days.csv/x.svg"],
        "days.csv/x.svg",
    ),
    "an unwritable output": (
        ["fit", "model", "days.csv", "-o", "days.csv/x", "--columns", "text=sentence,valence=V"],
        "days.csv/x",
    ),
    "an unwritable folder": (
        [
            "study",
            "model",
            "--corpus",
            "days.csv",
            "--columns",
            "text=sentence,valence=V",
            "--out",
            "days.csv/x",
        ],
        "days.csv/x",
    ),
    "no study": (["report", "model"], "manifest.json"),
    "no such type": (["info", "model", "--dtype", "float7"], "float7"),
    "no such device": (["info", "model", "--device", "abacus"], "abacus"),
    "a model misspelt": (["info", "bundeld"], 'no model "bundeld": did you mean "bundled"?'),
    "a corpus misspelt": (
        ["study", "model", "--corpus", "Ground_Trut"],
        'no corpus "Ground_Trut": did you mean "ground-truth"?',
    ),
    "a name of the schema misspelt": (
        ["fit", "model", "days.csv", "-o", "x", "--columns", "txt=sentence"],
        "did you mean --columns text=COLUMN? Of columns there are: sentence, V, arousal, group",
    ),
    "a folder for probes": (
        ["trace", "model", "model", "the sun"],
        '"model" is a folder: give the file in it',
    ),
    "a folder for texts": (
        ["sweep", "model", "probes.safetensors", "--texts", "model"],
        "model: is a folder, not a file; check the path",
    ),
    "a file for a study's folder": (
        ["study", "model", "--corpus", "days.csv", "--out", "days.csv"],
        '"days.csv" is a file, not a folder',
    ),
    "strengths, and how to write them": (
        ["sweep", "model", "probes.safetensors", "valence", "--strengths", "low,high"],
        "--strengths=low,high are no numbers: write --strengths=-0.1,-0.05,0,0.05,0.1",
    ),
    "no emotions": (
        ["stories", "x.jsonl", "--model", "model"],
        "stories need at least 1 emotion, and given were none: give --emotions afraid,calm",
    ),
    "emotions that name none": (
        ["stories", "x.jsonl", "--model", "model", "--emotions", ",,"],
        '--emotions ",," names none: write --emotions afraid,calm',
    ),
    "concepts that were not annotated": (
        ["fit", "model", "rated.csv", "-o", "x", "--folds", "3", "--concepts", "valence,zeal"],
        "zeal",
    ),
    "more tokens than there is room for": (
        ["inject", "model", "probes.safetensors", "the sun", "--max-new-tokens", "600"],
        "give --max-new-tokens ",
    ),
    "not a learned valuation": (
        ["compare", "model", "probes.safetensors", "probes.safetensors"],
        '"probes.safetensors" holds a probe set, not a valuation: `emoprobe learn` makes one of it',
    ),
    "no learned valuation": (
        ["compare", "model", "probes.safetensors", "nope.safetensors"],
        'no file "nope.safetensors": a valuation was to be read from it',
    ),
    "nothing to learn from": (
        ["learn", "model", "probes.safetensors", "plain.csv", "-o", "x"],
        'use --objective "next_token"',
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_that_names_it(case: str, call: Call, files: Path) -> None:
    (files / "wild.csv").write_text("text,valence\na fine day,0.5\na wild one,7\n")
    (files / "empty.csv").write_text("text,valence\na fine day,0.5\n  ,0.5\n")
    (files / "empty.jsonl").write_text(
        '{"text": "a fine day", "valence": 0.5}\n{"text": null, "valence": 0.5}\n'
    )
    (files / "plain.csv").write_text("text,stars\na fine day,3\n")
    _rated(files / "rated.csv")
    if "wide" in BAD[case][0]:
        _wide(files / "wide")
    arguments, named = BAD[case]
    before = {path: path.stat().st_mtime_ns for path in files.iterdir() if path.suffix != ".csv"}
    status, out, err = call(*arguments)
    lines = [line for line in err.splitlines() if line.startswith("emoprobe: ") and "warning" not in line]
    assert status == 2, err
    assert not out and len(lines) == 1 and named in lines[0]
    assert "--out" not in arguments or err == f"{lines[0]}\n"
    assert "Traceback" not in err
    in_python = (
        "ranges columns emotions max_new_tokens folder folds estimator layers positions strengths strength"
    )
    python = rf"(?<!-)\b({'|'.join(in_python.split())})=|_probes|_valuation|\bNone\b"
    assert not re.search(python, lines[0])
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (["steer", "bundled", "probes.safetensors", "fear", "the sun"], "positions"),
        (["fit", "bundled", "passages", "-o", "x"], "estimator"),
        (["sweep", "bundled", "probes.safetensors"], "engine"),
        (["stories", "x.jsonl"], "kind"),
        (["fit", "bundled", "passages", "-o", "x"], "layers"),
        (["sweep", "bundled", "probes.safetensors"], "layers"),
        (["trace", "bundled", "probes.safetensors", "the sun"], "layers"),
    ],
)
def test_what_is_not_among_choices_is_refused_while_options_are_read(
    command: list[str], option: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    _nothing_heavy(monkeypatch)
    status, out, err = call(*command, f"--{option}", "spark")
    assert status == 2 and not out and err.count("\n") == 1
    assert option in err and '"spark"' in err and "give" in err


@pytest.mark.parametrize(
    "command",
    [
        ["steer", "model", "probes.safetensors", "valense", "the sun"],
        ["sweep", "model", "probes.safetensors", "valense"],
        ["inject", "model", "probes.safetensors", "the sun", "--concepts", "arousal,valense"],
        ["trace", "model", "probes.safetensors", "the sun", "--concepts", "arousal,valense"],
        ["learn", "model", "probes.safetensors", "-o", "x", "--dimensions", "arousal,valense"],
    ],
    ids=lambda command: command[0],
)
def test_a_concept_misspelt_is_refused_before_anything_heavy_is_loaded(
    command: list[str], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    _nothing_heavy(monkeypatch)
    status, out, err = call(*command)
    assert (status, out) == (2, "")
    assert (
        err == "emoprobe: no probe for 'valense': did you mean 'valence'? Here there are arousal, valence\n"
    )


@pytest.mark.parametrize("seed", [-1, 2**32, 99999999999])
def test_seeds_have_one_range_everywhere(seed: int, call: Call) -> None:
    from typer.main import get_command

    commands = get_command(cli.app).commands  # type: ignore[attr-defined]
    seeded = [name for name, found in commands.items() if "seed" in {option.name for option in found.params}]
    assert {"fit", "study", "concepts", "claims", "sweep", "compare", "stories"} <= set(seeded)
    for name in seeded:
        status, out, err = call(name, "--seed", seed)
        assert status == 2 and not out and "Invalid value for '--seed'" in err and err.count("\n") == 1


def _nothing_heavy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the import fail that each command begins with, and that loads torch."""
    monkeypatch.setitem(sys.modules, "emoprobe.cli.typed", None)
    monkeypatch.delattr("emoprobe.cli.typed", raising=False)  # where it was imported before


def test_advice_can_be_followed(call: Call, files: Path) -> None:
    _rated(files / "rated.csv")
    given = ("fit", "model", "rated.csv", "-o", "rated.safetensors")
    status, _, err = call(*given)
    (advice,) = re.findall(r"give (--folds \d)", err)
    assert status == 2 and call(*given, *advice.split())[0] == 0
    (files / "wild.csv").write_text((files / "rated.csv").read_text().replace(",0.5,", ",7,"))
    status, _, err = call("fit", "model", "wild.csv", *given[3:], *advice.split())
    (advice,) = re.findall(r"(--ranges .*)", err)
    options = ("--folds", "3", *advice.replace("LOWEST:HIGHEST", "-1:9").split())
    assert status == 2 and call("fit", "model", "wild.csv", *given[3:], *options)[0] == 0


def _rated(path: Path) -> None:
    """Write texts of three groups with their valence."""
    rows = [f"day {number},{(-1) ** number * 0.5},{number % 3}" for number in range(18)]
    path.write_text("\n".join(["text,valence,group", *rows]))


def test_warnings_are_one_line_each(call: Call, files: Path) -> None:
    """Probes of other weights are used, with a warning."""
    import torch

    other = small_model()
    with torch.no_grad():
        next(weight for _, weight in other.named_weights()).add_(0.5)
    other.underlying.save_pretrained(files / "other")
    other.tokenizer.save_pretrained(files / "other")
    status, _, err = call("trace", "other", "probes.safetensors", "the sun")
    assert (
        status == 0
        and err.startswith("emoprobe: warning: these probes were fitted on ")
        and err.count("\n") == 1
    )
    assert call("trace", "model", "probes.safetensors", "the sun")[2] == ""


def test_status_reaches_the_shell(files: Path) -> None:
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "emoprobe.cli", "report", str(files / "model")]
    found = subprocess.run(
        command, capture_output=True, text=True, cwd=root, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert found.returncode == 2 and found.stderr.count("\n") == 1


def _wide(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig

    model = small_model()
    config = LlamaConfig(**{**model.underlying.config.to_dict(), "hidden_size": 64, "head_dim": 16})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)


def test_input_errors_are_value_errors() -> None:
    assert issubclass(InputError, ValueError)


def test_text_that_is_no_utf8_is_refused_in_one_line(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    for encoding in ({"errors": "surrogateescape"}, {}):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Das caf\xe9"), "utf-8", **encoding))
        status, _, err = call("trace", "model", "probes.safetensors", "-")
        assert (
            status == 2
            and err == "emoprobe: the text is not UTF-8: give it, or save its file, in that encoding\n"
        )
    status, _, err = call("steer", "model", "probes.safetensors", "valence", "\udcff evening")
    assert status == 2 and "not UTF-8" in err
