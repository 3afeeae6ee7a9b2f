"""What the README and the documentation tell people to type works as it stands, and prints what they show.

The blocks of a page run in order, in one namespace and an empty folder: Python, and the commands of console blocks, in this
process. A block of text right behind one of Python, and the lines under a command, are what it prints; spaces do not count, nor
does one in the last digit shown, which another machine may round otherwise. `<!-- not run: why -->` above a block keeps it
from running; it is compiled, and its names are looked up, all the same. The how-to pages start with the probes that the
tutorial leaves behind.
"""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import partial
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from heads import stand_in
from outputs import alike

from emoprobe.cli import app, main
from emoprobe.corpora import load_corpus
from emoprobe.probes import fit_probes

ROOT = Path(__file__).resolve().parents[1]
TUTORIAL = "docs/tutorial.md"
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
BESIDE = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("C*.md", "benchmarks/*.md", "examples/*.md", "emoprobe/models/*/*.md")
    for path in ROOT.glob(pattern)
)
FENCE = re.compile(
    r"(?:^<!-- not run: (?P<why>.+?) -->\n)?^```(?P<kind>python|console)\n(?P<body>.*?)^```\n"
    r"(?:\n```text\n(?P<shown>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)
README_PRINTS = ("accuracy", "Pearson r", "read_out", "row cosine", "learned")
SAMPLE = 52
"""Passages on which the README's block is run, at two layers: on all of both it takes minutes."""
LINES = 10
"""Of code, or one command, is what each use may take."""
NOT_RUN = 11
"""Blocks that may go without being run."""


class Block(NamedTuple):
    """Hold a block of a page: where it stands, what is typed, what is shown of its output, and why it is not run."""

    page: str
    line: int
    kind: str
    body: str
    shown: str
    why: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text("utf-8")
    return [
        Block(
            page,
            text[: found.start("body")].count("\n") + 1,
            found["kind"],
            found["body"],
            found["shown"] or "",
            found["why"] or "",
        )
        for found in FENCE.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in blocks(page)]


# Running -------------------------------------------------------------------------------------------------------------


def run_page(page: str) -> tuple[dict[str, Any], str]:
    """Run the blocks of a page and return its namespace and what it printed."""
    names: dict[str, Any] = {"__name__": "__main__"}
    printed = [
        run_python(block, names) if block.kind == "python" else run_console(block)
        for block in blocks(page)
        if not block.why
    ]
    return names, "".join(printed)


def run_python(block: Block, names: dict[str, Any]) -> str:
    # Blank lines in front, so that a traceback names the line of the page.
    code = compile("\n" * (block.line - 1) + block.body, str(ROOT / block.page), "exec")
    with redirect_stdout(StringIO()) as printed:
        exec(code, names)
    check(block, block.shown, printed.getvalue())
    return printed.getvalue()


def run_console(block: Block) -> str:
    everything = ""
    for command, shown in commands(block.body):
        with redirect_stdout(StringIO()) as printed:
            status = main(shlex.split(command)[1:])
        assert status == 0, f"{block}: {command}"
        check(block, shown, printed.getvalue())
        everything += printed.getvalue()
    return everything


def commands(body: str) -> Iterator[tuple[str, str]]:
    """Yield the commands of a console block, each with what stands under it."""
    for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        yield command, shown


def check(block: Block, shown: str, printed: str) -> None:
    if shown and not alike(shown, printed):
        pytest.fail(f"{block} shows\n{shown}\nand prints\n{printed}", pytrace=False)


def test_outputs_are_compared() -> None:
    assert alike("r  0.37, λ", "r 0.38,\nλ\n") and alike("-0.00", "0.00")
    assert not alike("r 0.37", "r 0.39")
    assert not alike("r 0.37", "s 0.37")
    assert not alike("r 0.37", "r 0.37 0.37")
    with pytest.raises(pytest.fail.Exception, match="prints"):
        run_python(Block("README.md", 1, "python", "print(1 + 1)\n", "3\n", ""), {})


@pytest.fixture(scope="module")
def left_behind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the tutorial, and return the folder with the files that it leaves."""
    folder = tmp_path_factory.mktemp("tutorial")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_page(TUTORIAL)
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if any(block.page == page for block in BLOCKS)])
def test_what_a_page_says_runs(
    page: str, left_behind: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if page == TUTORIAL:
        assert (left_behind / "probes.safetensors").is_file()
        return
    shutil.copy(left_behind / "probes.safetensors", tmp_path)
    monkeypatch.chdir(tmp_path)
    if page == "README.md":
        monkeypatch.setattr("emoprobe.load_corpus", partial(load_corpus, limit=SAMPLE))
        monkeypatch.setattr("emoprobe.fit_probes", partial(fit_probes, layers=[4, 5]))
    names, printed = run_page(page)
    model = names.get("model")
    assert model is None or not model.interventions
    for shown in README_PRINTS if page == "README.md" else ():
        assert shown in printed


# Looking -------------------------------------------------------------------------------------------------------------


def test_few_blocks_are_not_run() -> None:
    assert len([block for block in BLOCKS if block.why]) <= NOT_RUN


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.kind == "python"], ids=str)
def test_names_and_arguments_exist(block: Block) -> None:
    """Also in blocks that are not run."""
    tree = ast.parse(block.body)
    aliases: dict[str, Any] = {"ep": import_module("emoprobe")}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("emoprobe"):
            for name in node.names:
                aliases[name.asname or name.name] = getattr(import_module(str(node.module)), name.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            assert hasattr(aliases[node.value.id], node.attr), f"{block}: {ast.unparse(node)}"
        if isinstance(node, ast.Call) and (called := found_in(aliases, node.func)) is not None:
            given = {word.arg: None for word in node.keywords if word.arg}
            inspect.signature(called).bind_partial(*node.args, **given)


def found_in(aliases: dict[str, Any], node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return aliases.get(node.id)
    within = found_in(aliases, node.value) if isinstance(node, ast.Attribute) else None
    return getattr(within, node.attr, None) if within is not None else None  # type: ignore[attr-defined]


def typed_commands() -> Iterator[tuple[str, str]]:
    """Yield the commands of the pages, in blocks and in the text, each with its page."""
    for page in PAGES:
        text = (ROOT / page).read_text("utf-8")
        for found in re.finditer(
            r"^\$ (emoprobe .+)$|^    (.*\bemoprobe [a-z].*)$|`(emoprobe [^`]+)`", text, re.MULTILINE
        ):
            typed = " ".join("".join(filter(None, found.groups())).split())
            if "|" not in typed:  # a list of commands is none
                yield from ((page, part.strip()) for part in typed.split("&&"))


@pytest.mark.parametrize(("page", "typed"), sorted(set(typed_commands())))
def test_commands_parse(page: str, typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program, *words = shlex.split(typed)
    if Path(program).name != "emoprobe":
        return
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    if words and not words[0].startswith("-"):
        assert words[0] in known, typed
    for word in words:  # what is not there is refused
        if Path(word).suffix:
            Path(word).parent.mkdir(parents=True, exist_ok=True)
            stand_in(Path(word))
    if len(words) > 1:  # a bare name is a mention
        known[words[0]].make_context(words[0], words[1:])


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/how-to/")])
def test_each_use_takes_ten_lines(page: str) -> None:
    first = blocks(page)[0]
    assert len([line for line in first.body.splitlines() if line.strip()]) <= LINES


@pytest.mark.parametrize("page", [*PAGES, *BESIDE])
def test_links_and_named_scripts_are_there(page: str) -> None:
    """Links lead to files of the repository, so that pages can be read there too; `mkdocs build --strict` checks anchors."""
    text = (ROOT / page).read_text("utf-8")
    for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
        target = (ROOT / page).parent.joinpath(link).resolve()
        assert target.exists(), f"{page}: {link}"
    for script in re.findall(r"python ((?:benchmarks|examples|tests)/\S+?\.py)", text):
        assert (ROOT / script).is_file(), script
