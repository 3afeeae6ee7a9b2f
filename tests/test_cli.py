"""The command line: every command does its work, and whatever is wrong is said in one line with the right exit status."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from small_study import small_corpus, small_model

from emoprobe import cli
from emoprobe.errors import InputError
from emoprobe.study import run

COMMANDS = ("study", "fit", "trace", "steer", "inject", "sweep", "compare", "report", "info")
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
    command = [sys.executable, "-X", "importtime", "-m", "emoprobe.cli", "--help"]
    best = float("inf")
    for _ in range(3):  # a busy machine is slow now and then
        begun = time.perf_counter()
        found = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
        )
        best = min(best, time.perf_counter() - begun)
    assert all(name in found.stdout for name in COMMANDS)
    assert not [
        heavy for heavy in ("torch", "numpy", "transformers", "pandas") if f"| {heavy}\n" in found.stderr
    ]
    assert best < 2.0  # half a second where nothing else runs


def test_nothing_is_offered_that_is_not_there(call: Call) -> None:
    status, out, _ = call()
    assert status == 0 and "stories" not in out and "explore" not in out
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
    assert status == 0 and "valence: Pearson r" in out and "shuffled" in out
    from emoprobe import load_probes

    probes = load_probes(files / "few.safetensors")
    assert probes.layers == (0, 3) and probes.metadata["estimators"] == {"dimension": "mean_difference"}


def test_trace_shows_every_token(call: Call) -> None:
    status, out, _ = call(
        "trace", "model", "probes.safetensors", "the sun came up", "--concepts", "valence", "--layers", "2"
    )
    assert status == 0 and "valence @2" in out
    assert "".join(line.split()[0] for line in out.splitlines()[2:]) == "the␣sun␣came␣up"


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


def test_sweep_measures_and_writes(call: Call, files: Path) -> None:
    (files / "texts.txt").write_text("The sun came up.\n\nIt was dark.\n")
    options = ("--texts", "texts.txt", "--controls", "2")
    status, out, _ = call(
        "sweep", "model", "probes.safetensors", "valence", "--strengths=-0.5,0,0.5", *options
    )
    assert status == 0 and "nll" in out and "valence read-out, layer 3" in out
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


def test_info_says_what_a_model_is(call: Call) -> None:
    status, out, _ = call("info", "model")
    assert status == 0 and "3 (layers 0 to 3)" in out and small_model().fingerprint() in out


def test_study_and_report(call: Call, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = _one_step(monkeypatch)
    columns = ("--columns", "text=sentence,valence=V,group=group")
    status, out, err = call("study", "model", "--corpus", "days.csv", *columns, "--out", "run", "--seed", "5")
    assert status == 0 and out == f"report: {Path('run') / 'report.html'}\n"
    assert "found it" in err  # the display, which leaves stdout to what is worth keeping
    command = json.loads((files / "run" / "manifest.json").read_text())["command"]
    assert (
        command
        == "emoprobe study model --corpus days.csv --columns text=sentence,valence=V,group=group --out run --seed 5"
    )
    assert call(*command.split()[1:])[0] == 0 and made == ["only"]
    (files / "run" / "report.html").unlink()
    assert call("report", "run")[0] == 0
    assert "found it" in (files / "run" / "report.html").read_text()


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
        "./nowhere",
    ),
    "no such corpus": (["study", "model", "--corpus", "nowhere.csv"], "nowhere.csv"),
    "no such column": (
        ["fit", "model", "days.csv", "-o", "x", "--columns", "text=sentence,valence=mood"],
        "mood",
    ),
    "columns not understood": (
        ["fit", "model", "days.csv", "-o", "x", "--columns", "text:sentence"],
        "text:sentence",
    ),
    "out of range": (["fit", "model", "wild.csv", "-o", "x"], "column 'valence': 7.0"),
    "ranges not understood": (["fit", "model", "wild.csv", "-o", "x", "--ranges", "valence=1"], "valence=1"),
    "an empty text": (["fit", "model", "empty.csv", "-o", "x"], "column 'text'"),
    "an empty prompt": (["trace", "model", "probes.safetensors", " "], "text 0 is empty"),
    "no such layer": (
        ["steer", "model", "probes.safetensors", "valence", "the sun", "--layers", "9"],
        "layer 9",
    ),
    "layers not understood": (
        ["fit", "model", "days.csv", "-o", "x", "--layers", "top", *["--columns", "text=sentence"]],
        "top",
    ),
    "no such concept": (["steer", "model", "probes.safetensors", "ennui", "the sun"], "ennui"),
    "no such block": (["inject", "model", "probes.safetensors", "the sun", "--layers", "3"], "layer 3"),
    "probes of another width": (["trace", "wide", "probes.safetensors", "the sun"], "width 32"),
    "no probe set": (["trace", "model", "days.csv", "the sun"], "days.csv"),
    "a probe set missing": (["trace", "model", "nowhere.safetensors", "the sun"], "nowhere.safetensors"),
    "strengths not understood": (
        ["sweep", "model", "probes.safetensors", "--strengths", "low,high"],
        "low,high",
    ),
    "no texts": (["sweep", "model", "probes.safetensors", "--texts", "nowhere.txt"], "nowhere.txt"),
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
    "not a learned valuation": (["compare", "model", "probes.safetensors", "probes.safetensors"], "λ"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_that_names_it(case: str, call: Call, files: Path) -> None:
    (files / "wild.csv").write_text("text,valence\na fine day,0.5\na wild one,7\n")
    (files / "empty.csv").write_text("text,valence\na fine day,0.5\n  ,0.5\n")
    if case == "probes of another width":
        _wide(files / "wide")
    arguments, named = BAD[case]
    before = {path: path.stat().st_mtime_ns for path in files.iterdir() if path.suffix != ".csv"}
    status, out, err = call(*arguments)
    lines = [line for line in err.splitlines() if line.startswith("emoprobe: ") and "warning" not in line]
    assert status == 2, err
    assert not out and len(lines) == 1 and named in lines[0]
    assert "Traceback" not in err
    assert {path: path.stat().st_mtime_ns for path in before} == before


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
