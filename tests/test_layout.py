"""The four folders are one package, in the checkout as in the wheel, and importing it is quick."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml  # a dependency of transformers

ROOT = Path(__file__).resolve().parents[1]
if sys.version_info >= (3, 11):
    import tomllib

FOLDERS = ("emoprobe", "probes", "steering", "valattn")
HEAVY = (
    "torch",
    "transformers",
    "transformer_lens",
    "nnsight",
    "datasets",
    "sklearn",
    "pandas",
    "matplotlib",
    "numpy",
)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_every_package_on_disk_is_in_the_wheel() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    on_disk = {
        init.parent.relative_to(ROOT) for folder in FOLDERS for init in (ROOT / folder).rglob("__init__.py")
    }
    names = {path if path.parts[0] == "emoprobe" else Path("emoprobe") / path for path in on_disk}
    assert {".".join(path.parts) for path in names} == set(table["packages"])
    assert table["package-dir"] == {"emoprobe": "emoprobe"} | {f"emoprobe.{f}": f for f in FOLDERS[1:]}


def loaded_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules, sep='\\n')"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not loaded_after("import emoprobe") & set(HEAVY)
    # ... and this test would notice:
    assert "torch" in loaded_after("import emoprobe; emoprobe.ResidualEdit")


def test_the_command_line_starts_without_anything_heavy() -> None:
    assert not loaded_after("import emoprobe.cli") & set(HEAVY)


def test_no_module_has_two_names() -> None:
    """`import probes` at the root of a clone would make twin classes; nothing of ours may do it."""
    modules = loaded_after("import emoprobe.probes, emoprobe.steering, emoprobe.valattn, emoprobe.study")
    assert "emoprobe.valattn.valuation" in modules
    assert not {name for name in modules if name.split(".")[0] in FOLDERS[1:]}


def test_every_public_name_can_be_had() -> None:
    import emoprobe

    for name in emoprobe.__all__:
        assert getattr(emoprobe, name) is not None
    assert {"load_model", "fit_probes", "inject", "steer", "sweep", "run_study", "learn_valuation"} <= set(
        emoprobe.__all__
    )


def test_no_name_that_is_loaded_late_is_a_module_too() -> None:
    """Once a module of that name were imported, the package would give it in place of what it holds."""
    lazy = [stub for folder in FOLDERS for stub in (ROOT / folder).rglob("__init__.pyi")]
    assert len(lazy) >= 5
    for stub in lazy:
        names = re.findall(r"^from \.\w.*? import \(?\s*(\w+)", stub.read_text("utf-8"), re.MULTILINE)
        beside = {path.stem for path in stub.parent.iterdir() if path.suffix == ".py" or path.is_dir()}
        assert names and not set(names) & beside, stub


def test_continuous_integration_runs_what_the_readme_says() -> None:
    command = (
        "python3 -m venv .venv && .venv/bin/pip install '.[test]' && .venv/bin/pytest -n auto --dist loadfile"
    )
    for file in ("README.md", ".ci/run"):
        assert (
            command in (ROOT / file).read_text().splitlines() or f"    {command}" in (ROOT / file).read_text()
        )


def test_workflows_run_the_same_and_may_do_no_more_than_they_need() -> None:
    workflows = {path.stem: yaml.safe_load(path.read_text()) for path in ROOT.glob(".github/workflows/*.yml")}
    steps = workflows["ci"]["jobs"]["ci"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    jobs = workflows["release"]["jobs"]
    assert jobs["ci"]["uses"] == "./.github/workflows/ci.yml" and jobs["build"]["needs"] == "ci"
    for workflow in workflows.values():
        assert workflow["permissions"] == {"contents": "read"}
        for name, job in workflow["jobs"].items():
            wanted = {"id-token": "write"} if name == "publish" else None
            assert job.get("permissions") == wanted, name
            for step in job.get("steps", []):
                assert re.search(r"@(release/)?v\d+$", step.get("uses", "@v1")), step


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_the_version_is_the_same_everywhere() -> None:
    import emoprobe

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert emoprobe.__version__ == project["version"] == citation["version"]
