"""What the command line prints for programs, before long work, and as people type: --json, --dry-run, help, completion."""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from heads import stand_in
from small_study import small_corpus, small_model
from test_cli import COMMANDS, Call, _one_step, call, files  # noqa: F401
from typer.main import get_command

from emoprobe import cli
from emoprobe.activation_store import load_activations
from emoprobe.cli import completing
from emoprobe.study import cost

ROOT = Path(__file__).parents[1]
COLUMNS = ("--columns", "text=sentence,valence=V,arousal=arousal,group=group")


@pytest.fixture
def valuations(files: Path) -> Path:  # noqa: F811
    """Return the folder, with a learned valuation in it."""
    import torch

    from emoprobe import Valuation, load_probes

    probed = Valuation.from_probes(load_probes(files / "probes.safetensors"))
    replace(probed, strength=torch.tensor(0.5)).save(files / "learned.safetensors")
    return files


# JSON ----------------------------------------------------------------------------------------------------------------


def test_trace_as_json_is_the_frame(call: Call) -> None:  # noqa: F811
    from emoprobe import load_model, load_probes
    from emoprobe.probes import trace

    status, out, err = call("trace", "model", "probes.safetensors", "the sun", "--json")
    found = json.loads(out)
    frame = trace(load_model("model"), load_probes("probes.safetensors"), "the sun").frame
    assert status == 0 and not err and found["text"] == "the sun"
    pd.testing.assert_frame_equal(pd.DataFrame(found["trace"]), frame, check_dtype=False)


ENDS = {"stories[].too short", "stories[].kept", "stories[].duplicate", "stories[].names its emotion"}
"""Keys that are there only where a story came to that end."""


def _keys(found: dict[str, Any]) -> set[str]:
    """Return the keys of a document, and those of the rows of its tables."""
    keys = set()
    for name, value in found.items():
        rows = value if isinstance(value, list) and value and isinstance(value[0], dict) else []
        keys |= {f"{name}[].{key}" for row in rows for key in row} or {name}
    return keys


def _documented() -> dict[str, set[str]]:
    """Return the keys that the page of the documentation names, by command."""
    sections = re.split("^## ", (ROOT / "docs/json.md").read_text("utf-8"), flags=re.MULTILINE)[1:]
    found = {}
    for section in sections:
        title, _, body = section.partition("\n")
        cells = [line.split("|")[1] for line in body.splitlines() if line.startswith("|")]
        found |= {command: set(re.findall("`(.+?)`", " ".join(cells))) for command in title.split(", ")}
    return found


def test_every_command_that_prints_a_result_prints_it_as_json(
    call: Call,  # noqa: F811
    valuations: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (valuations / "texts.txt").write_text("The sun came up.\nIt was dark.\n")
    _one_step(monkeypatch)
    few = ("--layers", "0", "--estimator", "mean_difference")
    steer = ("valence", "the sun", "--max-new-tokens", "2")
    compared = ("--corpus", "days.csv", "--columns", "text=sentence,group=group,valence=V", "--limit", "12")
    stories = ("--topics", "texts.txt", "--per-topic", "1", "--max-new-tokens", "5")
    documented = _documented()
    asked = {
        ("fit", "model", "days.csv", "-o", "json.safetensors", *COLUMNS, *few): "scores",
        ("steer", "model", "probes.safetensors", *steer): "steered",
        ("inject", "model", "probes.safetensors", *steer[1:], "--toward", "valence=1"): "injected",
        ("sweep", "model", "probes.safetensors", "--texts", "texts.txt", "--controls", "1"): "sweep",
        ("compare", "model", "probes.safetensors", "learned.safetensors", *compared): "nll",
        (
            "learn",
            "model",
            "probes.safetensors",
            "days.csv",
            "-o",
            "l.safetensors",
            *COLUMNS,
            "--steps",
            "1",
        ): "history",
        ("study", "model", "--corpus", "days.csv", *COLUMNS, "--out", "json"): "results",
        ("report", "json"): "results",
        ("stories", "json.jsonl", "--model", "model", "--emotions", "calm", *stories): "stories",
        ("info", "model"): "info",
        ("trace", "model", "probes.safetensors", "the sun"): "trace",
        ("sweep", "model", "probes.safetensors", "--dry-run"): "steps",
    }
    for command, part in asked.items():
        status, out, _ = call(*command, "--json")
        found = json.loads(out, parse_constant=pytest.fail)  # NaN
        assert status == 0 and found[part], command[0]
        section = "Any command with --dry-run" if "--dry-run" in command else command[0]
        assert _keys(found) - ENDS == documented[section], command[0]
    nll = pd.DataFrame(json.loads(call("sweep", *list(asked)[3][1:], "--json")[1])["sweep"])
    assert list(nll.columns) == "strength condition seed measure value low high".split()
    assert nll.seed.isna().any()  # what is missing in the frame is null


# The cost ------------------------------------------------------------------------------------------------------------


def test_a_dry_run_tells_the_cost_and_writes_nothing(call: Call, valuations: Path) -> None:  # noqa: F811
    before = {path: path.stat().st_mtime_ns for path in valuations.rglob("*")}
    for command in (
        ("fit", "model", "days.csv", "-o", "dry.safetensors", *COLUMNS),
        ("study", "model", "--corpus", "days.csv", *COLUMNS, "--out", "dry"),
        ("concepts", "model", "--corpus", "days.csv", *COLUMNS),
        ("claims", "model", "--corpus", "days.csv", *COLUMNS),
        ("sweep", "model", "probes.safetensors", "-o", "dry.csv", "--figure", "dry.svg"),
        ("compare", "model", "probes.safetensors", "learned.safetensors", "--limit", "8"),
        ("learn", "model", "probes.safetensors", "days.csv", "-o", "dry.safetensors", *COLUMNS),
        ("stories", "dry.jsonl", "--emotions", "calm,proud", "--model", "model", "--max-new-tokens", "9"),
    ):
        status, out, err = call(*command, "--dry-run")
        assert status == 0 and not err, (command, err)
        assert "nothing written" in out and "± a factor of 2: an estimate" in out and "memory: weights" in out
        assert re.search(r"^ +all +[1-9][\d,]* ", out, re.MULTILINE), out
    found = json.loads(call(*command, "--dry-run", "--json")[1])
    assert found["seconds"] > 0 and {"read", "writing"} >= {found["steps"][-1]["step"]}
    assert found["steps"][-1]["tokens"] == 2 * 80 * 2 * 9  # emotions, topics, texts each, tokens
    assert {path: path.stat().st_mtime_ns for path in valuations.rglob("*")} == before


def test_disk_for_a_fit_is_counted(call: Call, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    asked = ("fit", "model", "days.csv", "-o", "kept.safetensors", *COLUMNS)
    stated = json.loads(call(*asked, "--dry-run", "--json")[1])["disk"]
    monkeypatch.setattr("shutil.rmtree", lambda folder: None)
    assert call(*asked)[0] == 0
    vectors = load_activations(files / "kept.safetensors.activations").size
    assert vectors < stated < vectors + (files / "kept.safetensors").stat().st_size


def test_bad_input_is_told_in_a_dry_run_too(call: Call) -> None:  # noqa: F811
    status, out, err = call("study", "model", "--corpus", "nowhere.csv", "--dry-run")
    assert status == 2 and not out and "nowhere.csv" in err


def test_requests_to_another_machine_are_counted(call: Call) -> None:  # noqa: F811
    given = ("stories", "dry.jsonl", "--emotions", "calm", "--url", "http://localhost:1/v1", "--dry-run")
    status, out, _ = call(*given)
    assert status == 0 and out.startswith("160 requests to ") and "64,000 tokens" in out


def test_the_texts_that_a_sweep_and_a_comparison_read_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate's texts are those that really go through the model."""
    from emoprobe import Valuation, compare_valuations, fit_probes, sweep
    from emoprobe.steering import kl, nll

    model, corpus = small_model(), small_corpus(texts=12)
    probes = fit_probes(model, corpus, folds=4, permutations=0, bootstrap=0, progress=False)
    read: list[int] = []
    forward = type(model).forward
    monkeypatch.setattr(
        type(model), "forward", lambda self, batch: read.append(len(batch.texts)) or forward(self, batch)
    )
    lines = corpus.texts[:3]
    sweep(model, probes["valence"], [-1, 0, 2], lines, [nll(lines), kl(lines)], controls=2, progress=False)
    swept = sum(read)
    assert cost.sweep_cost(model, lines, [-1, 0, 2], controls=2, read=0).frame.texts.sum() == swept
    read.clear()
    probed = Valuation.from_probes(probes)
    import torch

    compare_valuations(model, probed, replace(probed, strength=torch.tensor(0.5)), corpus)
    rows = cost.compare_cost(model, corpus).frame.set_index("step").texts
    assert rows["NLL"] + rows["values of tokens"] == sum(read)


def test_time_is_that_of_tokens_passes_and_fits() -> None:
    speed = cost.Speed({cost.READ: 0.001, cost.WRITTEN: 0.5}, one_pass=0.25, fit=10.0, tried=1.0)
    assert cost.seconds_of(cost.Work("a", cost.READ, 1, 1000, 4, fits=0.5), speed) == 1 + 1 + 5
    assert cost.seconds_of(cost.Work("a", cost.WRITTEN, 1, 10, 10), speed) == 5
    assert cost.readings("a", cost.READ, 65, 10.0) == ("a", cost.READ, 65, 650, 3, 0.0)


# Help and completion -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("example", [example for _, example in cli.COMMANDS])
def test_examples_parse(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program, name, *arguments = shlex.split(example)
    command = get_command(cli.app).commands[name]  # type: ignore[attr-defined]
    for word in arguments:  # what is not there is refused
        if Path(word).suffix and "/" not in word:
            stand_in(Path(word))
    Path("runs/bundled").mkdir(parents=True)
    Path("runs/bundled/manifest.json").touch()
    assert program == "emoprobe" and command.make_context(name, arguments).params
    with pytest.raises(Exception, match="no-such-option"):  # ... and this would notice
        command.make_context(name, [*arguments, "--no-such-option"])


@pytest.mark.parametrize("width", [40, 60, 100])
def test_help_cuts_no_word(width: int, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("COLUMNS", str(width))
    out = call("--help")[1]
    assert "..." not in out.split("Commands:")[1]
    said = " ".join(out.split())
    assert 'Run the representation experiments of "Emotion Concepts" and write a report.' in said
    assert all(name in out for name in COMMANDS)
    assert cli.COMMANDS[0][1] in call("study", "--help")[1]  # on one line, to be copied


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_holds_where_it_is_not_given(name: str) -> None:
    command = get_command(cli.app).commands[name]  # type: ignore[attr-defined]
    assert not [p.name for p in command.params if not (p.required or p.show_default or p.default is False)]


def _completed(words: str) -> list[str]:
    environment = {**os.environ, "_EMOPROBE_COMPLETE": "complete_bash", "HF_HUB_CACHE": "/nowhere"}
    environment |= {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    command = [sys.executable, "-X", "importtime", "-m", "emoprobe.cli"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert not [name for name in ("torch", "pandas") if f"| {name}\n" in found.stderr]
    return found.stdout.split()


def test_a_shell_completes_commands_models_and_corpora() -> None:
    assert _completed("emoprobe st") == ["study", "steer", "stories"]
    assert _completed("emoprobe study gro") == ["ground-truth"]
    assert _completed("emoprobe study gpt2 --corpus emo") == ["emobank"]
    assert _completed("emoprobe fit bundled pas") == ["passages"]
    assert _completed("emoprobe learn bundled probes.safetensors pas") == ["passages"]
    assert _completed("emoprobe learn bundled p passages --objective ann") == ["annotations"]


def test_a_shell_completes_concepts_of_the_probes_that_were_typed(files: Path) -> None:  # noqa: F811
    probes = files / "probes.safetensors"
    assert _completed(f"emoprobe steer bundled {probes} va") == ["valence"]
    assert _completed(f"emoprobe steer bundled {probes} sad") == []  # which it does not hold
    assert _completed(f"emoprobe trace bundled {probes} text --concepts valence,") == ["valence,arousal"]
    assert _completed("emoprobe steer bundled nowhere.safetensors sad") == ["sadness"]
    assert _completed("emoprobe stories x.jsonl --emotions sad,calm,prou") == ["sad,calm,proud"]


def test_models_that_were_downloaded_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name in ("models--gpt2", "models--Qwen--Qwen3-0.6B", "datasets--gpt2"):
        (tmp_path / name).mkdir()
    assert completing.models("") == ["bundled", "ground-truth", "prose", "Qwen/Qwen3-0.6B", "gpt2"]
    assert completing.models("Qw") == ["Qwen/Qwen3-0.6B"]


def test_the_names_that_are_completed_are_those_that_there_are() -> None:
    from emoprobe import load_corpus
    from emoprobe.corpora.published import PUBLISHED

    assert set(completing.corpora("")) == {"bundled", "passages", "ground-truth", *PUBLISHED}
    corpus = load_corpus("passages")
    assert (tuple(corpus.dimensions), corpus.labels) == (completing.DIMENSIONS, completing.EMOTIONS)


# What people type ----------------------------------------------------------------------------------------------------


def test_probes_may_lie_on_the_hub(call: Call, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    asked: list[str] = []

    def fetched(repo: str, revision: str | None) -> Path:
        asked.append(repo)
        return files / "probes.safetensors"

    monkeypatch.setattr("emoprobe.probes.hub.fetched", fetched)
    here = call("trace", "model", "probes.safetensors", "the sun")
    assert call("trace", "model", "someone/probes", "the sun") == here and asked == ["someone/probes"]
    given = ("inject", "model", "someone/probes", "the sun", "--max-new-tokens", "2")
    assert call(*given)[0] == 0 and len(asked) == 2


def test_toward_is_understood_or_refused(call: Call) -> None:  # noqa: F811
    given = ("inject", "model", "probes.safetensors", "the sun", "--max-new-tokens", "4", "--strength", "40")
    plain, toward = call(*given), call(*given, "--toward", "valence=1")
    assert plain[0] == toward[0] == 0 and plain[1] != toward[1]
    for wrong, named in (
        ("valence", "--toward"),
        ("valence=high", "--toward valence=high"),
        ("mood=1", "mood"),
    ):
        status, out, err = call(*given, "--toward", wrong)
        assert status == 2 and not out and named in err


# Small things --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        ("inject", "model", "learned.safetensors", "the sun", "--concepts", "valence"),
        ("learn", "model", "learned.safetensors", "-o", "x.safetensors", "--dimensions", "valence"),
    ],
    ids=lambda command: command[0],
)
def test_no_dimension_of_a_valuation_is_left_out_unsaid(
    command: tuple[str, ...],
    call: Call,  # noqa: F811
    valuations: Path,
) -> None:
    status, out, err = call(*command)
    assert (status, out) == (2, "")
    assert '"learned.safetensors" is a valuation of arousal, valence, and asked for is valence' in err
    assert call("inject", *command[1:3], "the sun", "--concepts", "valence,arousal")[0] == 0


def test_no_number_of_a_trace_is_minus_zero(capsys: pytest.CaptureFixture[str]) -> None:
    from emoprobe.cli.showing import show_trace

    class Read:
        centres = (("calm", 1),)
        start = 0

        def coloured(self) -> pd.DataFrame:
            values = [-0.004, -0.0, 0.004, -0.006]
            rows = {"position": range(4), "token": "x", "concept": "calm", "layer": 1, "value": values}
            return pd.DataFrame({**rows, "colour": 0.0})

    show_trace(Read(), Read)  # type: ignore[arg-type]
    assert re.findall(r"-?\d\.\d+", capsys.readouterr().out) == ["0.00", "0.00", "0.00", "-0.01"]


def test_the_explorer_says_as_json_where_it_is(
    call: Call,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launch = pytest.importorskip("emoprobe.explorer.launch", reason="the explorer needs emoprobe[explore]")
    running: list[Any] = []
    monkeypatch.setattr(launch.Explorer, "wait", lambda explorer: running.append(explorer))
    status, out, _ = call("explore", "model", "probes.safetensors", "--no-browser", "--json")
    found = json.loads(out)
    assert status == 0 and found == {"address": running[0].address} and set(found) == _documented()["explore"]
    running[0]._thread.join(10)
    assert not running[0]._thread.is_alive()
