"""What MkDocs cannot do by itself: pages that lie elsewhere in the repository, and pages made from the code.

Pages are read where they lie, so that nothing is copied; links between files of the repository become links between pages.
The reference is made of what each package exports, the page of the command line of what the commands say of themselves.
"""

import json
import posixpath
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = {
    "README.md": "overview.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "examples/README.md": "examples/which.md",
    "emoprobe/models/prose/MODEL_CARD.md": "cards/prose.md",
    "emoprobe/models/ground_truth/MODEL_CARD.md": "cards/ground_truth.md",
    **{f"benchmarks/{path.name}": f"benchmarks/{path.name}" for path in ROOT.glob("benchmarks/*.md")},
}
"""Files of the repository, and the pages that they are."""
NOTEBOOKS = {f"examples/{path.name}": f"examples/{path.stem}.md" for path in ROOT.glob("examples/*.ipynb")}
PLACES = {page: file for file, page in (ELSEWHERE | NOTEBOOKS).items()}
PACKAGES = (
    "models",
    "corpora",
    "corpora.stories",
    "probes",
    "valattn",
    "steering",
    "steering.behaviours",
    "study",
    "report",
    "explorer",
)
"""Sub-packages of emoprobe whose exported names have a page of the reference."""
BESIDE = ("probes", "steering", "valattn")
"""Folders that are imported as sub-packages of emoprobe."""
PAGES = {
    **ELSEWHERE,
    **NOTEBOOKS,
    **{f"{folder}/__init__.pyi": f"reference/{folder}.md" for folder in BESIDE},
}
"""Files that a page may link to, and the pages that show them: of a package's names, its reference."""
NOT_CODE = shutil.ignore_patterns("__pycache__", "*.safetensors", "*.json", "*.jsonl")
_tree = tempfile.TemporaryDirectory(prefix="emoprobe-docs-")


@event_priority(100)  # before mkdocstrings reads its options
def on_config(config: MkDocsConfig) -> None:
    """Show mkdocstrings the sources of this checkout, nested as they are imported."""
    for folder in ("", *BESIDE):
        source, package = ROOT / (folder or "emoprobe"), Path(_tree.name, "emoprobe", folder)
        shutil.copytree(source, package, dirs_exist_ok=True, ignore=NOT_CODE)  # griffe follows no links
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [_tree.name]
    config.watch += [str(ROOT / name) for name in ("emoprobe", *BESIDE, *ELSEWHERE)]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages that do not lie in docs/."""
    for file, page in ELSEWHERE.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / file)))
    for file, page in NOTEBOOKS.items():
        files.append(File.generated(config, page, content=notebook(ROOT / file)))
    emoprobe = griffe.load("emoprobe", search_paths=[_tree.name], try_relative_path=False)
    made = {"command-line": command_line(), "emoprobe": front_door(emoprobe)}
    made |= {package: exported(emoprobe[package]) for package in PACKAGES}
    for name, content in made.items():
        files.append(File.generated(config, f"reference/{name}.md", content=content))


def on_page_markdown(markdown: str, page: Page, files: Files, **rest: Any) -> str:
    """Turn links between files of the repository into links between pages."""
    here = page.file.src_uri
    folder = posixpath.dirname(PLACES.get(here, f"docs/{here}"))

    def turned(found: re.Match[str]) -> str:
        file = posixpath.normpath(posixpath.join(folder, found[1]))
        to = PAGES.get(file, file.removeprefix("docs/"))
        if files.get_file_from_path(to) is None:
            return found[0]
        return f"]({posixpath.relpath(to, posixpath.dirname(here) or '.')}{found[2] or ''})"

    return re.sub(r"\]\(([^)#:\s]+)(#[^)\s]*)?\)", turned, markdown)


def notebook(path: Path) -> str:
    """Return an executed notebook as a page: its text, its code, and what that showed."""
    parts = []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        parts += [_shown(output) for output in cell.get("outputs", ())]
    return "\n\n".join(parts)


def _shown(output: dict[str, Any]) -> str:
    found = {kind: "".join(content) for kind, content in output.get("data", {}).items()}
    if "text/html" in found:
        lines = [line for line in found["text/html"].splitlines() if line.strip()]  # a blank one would end it
        return "\n".join(["<div>", *lines, "</div>"])
    if "image/png" in found:
        return f'<img alt="{escape(found["text/plain"])}" src="data:image/png;base64,{found["image/png"].strip()}">'
    plain = found.get("text/plain", "".join(output.get("text", "")))
    return f"```text\n{plain.rstrip()}\n```"


def command_line() -> str:
    """Return the page of the command line: what each command says when it is asked for help."""
    from typer.main import get_command
    from typer.testing import CliRunner

    from emoprobe.cli import app

    def asked(*command: str) -> str:
        shown = CliRunner().invoke(app, [*command, "--help"], prog_name="emoprobe", env={"COLUMNS": "100"})
        return f"```text\n{shown.output.strip()}\n```\n"

    names = get_command(app).commands  # type: ignore[attr-defined]
    sections = [f"## emoprobe {name}\n\n{asked(name)}" for name in names]
    return "\n".join(["# Command line\n", asked(), *sections])


def front_door(emoprobe: griffe.Module) -> str:
    """Return the page of the names at the top of the package: what each is, and in full those that no other page has."""
    named = _exports(emoprobe)
    rows = [f"| [`{name}`][{found.path}] | {_first_paragraph(found)} |" for name, found in named.items()]
    elsewhere = {found.path for package in PACKAGES for found in _exports(emoprobe[package]).values()}
    own = {name: found for name, found in named.items() if found.path not in elsewhere}
    about = "What `import emoprobe as ep` gives. Each name is loaded when it is first used.\n"
    table = ["| name | what it is |", "|---|---|", *rows, ""]
    return "\n".join(["# emoprobe\n", about, *table, *_entries("emoprobe", own)])


def exported(package: griffe.Module) -> str:
    """Return the page of a package: what it is, and all names that it exports."""
    assert package.docstring is not None, package.path
    return "\n".join(
        [f"# {package.path}\n", package.docstring.value, "", *_entries(package.path, _exports(package))]
    )


def _exports(package: griffe.Module) -> dict[str, griffe.Object]:
    """Return what `__all__` lists or, of a package that loads its names when they are used, what its stub imports."""
    imported = [n for n, m in package.members.items() if m.is_alias and m.target_path.startswith("emoprobe.")]
    names = sorted(map(str, package.exports or imported), key=str.lower)
    return {name: _defined(package.members[name]) for name in names}


def _entries(package: str, named: Mapping[str, griffe.Object]) -> Iterable[str]:
    for name, found in named.items():
        options = "show_root_heading: true, show_root_toc_entry: true"
        yield f"::: {found.path}\n    options: {{ {options}, heading: {package}.{name}, toc_label: {name} }}\n"


def _defined(member: griffe.Object | griffe.Alias) -> griffe.Object:
    """Return what a name stands for, where it is defined; a module of the same name hides the function that it holds."""
    found = member.final_target if isinstance(member, griffe.Alias) else member
    return _defined(found.members[member.name]) if found.is_module else found


def _first_paragraph(found: griffe.Object) -> str:
    text = found.docstring.value if found.docstring else ""
    return " ".join(text.split("\n\n")[0].split()).replace("|", "\\|")
