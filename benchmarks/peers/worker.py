"""Set one contestant up in the environment of this interpreter, and run it as often as it is told: see `race.py`.

    python worker.py ROW CONTESTANT FOLDER OUT

ROW is a file of contestants beside this one. FOLDER holds what is given to all of them alike: `given.json`, and tensors in
`given.safetensors`. What the last run returned is kept in OUT, a safetensors file. On standard output a line of JSON says that
the contestant is ready, and one follows for each line on standard input: seconds of wall and processor, the most memory that
the process held meanwhile; or, once, why it has failed.
"""

import ast
import importlib
import inspect
import json
import sys
import textwrap
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("emoprobe", "transformers", "transformer-lens", "nnsight", "nnterp", "steering-vectors", "repeng", "pyvene",
            "scikit-learn", "torch", "numpy")  # fmt: skip


def main(row: str, contestant: str, folder: Path, out: Path) -> None:
    """Answer lines on standard input; what libraries print goes elsewhere."""
    answers, sys.stdout = sys.stdout, sys.stderr
    import torch
    from safetensors.torch import load_file, save_file

    torch.set_grad_enabled(False)
    given = json.loads((folder / "given.json").read_text())
    tensors = folder / "given.safetensors"
    given |= load_file(tensors) if tensors.exists() else {}
    make = getattr(importlib.import_module(row), contestant)
    try:
        work = make(given)
        told = {"statements": statements(make), "versions": versions(), "threads": torch.get_num_threads()}
        print(json.dumps(told), file=answers, flush=True)
        for _ in sys.stdin:
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            started = time.perf_counter(), time.process_time()
            found = work()
            wall, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
            took = {"wall": wall, "cpu": cpu, "peak": peak()}
            save_file({name: one.contiguous() for name, one in found.items()}, out)
            print(json.dumps(took), file=answers, flush=True)
    except Exception as error:  # whatever a library raises is what is reported
        said = "".join(traceback.format_exception_only(error)).strip().splitlines()[0]
        print(json.dumps({"failed": said[:300]}), file=answers, flush=True)


def statements(contestant: object) -> int:
    """Return how many statements a contestant's user had to write: those of its body, without the docstring."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(contestant)))  # type: ignore[arg-type]
    return sum(isinstance(node, ast.stmt) for node in ast.walk(tree)) - 2


def peak() -> int:
    """Return the most bytes that this process has had resident; Linux says so."""
    return 1024 * int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])


def versions() -> dict[str, str]:
    """Return what is installed here, of what may take part."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
