"""Run a model's code in a process of its own, with limits, and see what its functions return.

The process gets a folder that is deleted afterwards, an empty environment, Python without site-packages, and limits on CPU
time, memory, the size of files and further processes; it and all that it started are killed when the time is out. Where the
kernel lets it, it has no network. This keeps accidents away: endless loops, full memories, full disks. IT IS NO JAIL: code that
means harm can read what the user can read. Run what you do not trust in a container or a virtual machine as well.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess  # nosec B404
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emoprobe.errors import InputError

MEBIBYTE = 2**20
RETURNED = "returned.jsonl"
RUNNER = """
import ctypes, json, resource, sys
job = json.load(sys.stdin)
try:
    ctypes.CDLL(None).unshare(0x10000000 | 0x40000000)  # a user and a network of its own; fails where that is forbidden
except (OSError, AttributeError):
    pass
returned = open(job["returned"], "a")
for name, most in job["limits"].items():
    resource.setrlimit(getattr(resource, name), most)
space = {"__name__": "solution"}
exec(compile(job["code"], "solution", "exec"), space)
for call in job["calls"]:
    try:
        line = json.dumps([eval(call, space)])
    except Exception:
        line = "[]"
    returned.write(line + "\\n")
    returned.flush()
"""


@dataclass(frozen=True)
class Ran:
    """What calls returned: a list of one value each, empty for a call that failed; `in_time` is False where time ran out.

    A process that something else killed (the system, when memory runs out) counts as one whose time ran out.
    """

    returned: tuple[list[Any], ...]
    in_time: bool


def run_code(
    code: str,
    calls: Sequence[str],
    *,
    seconds: float = 5.0,
    memory: int = 512 * MEBIBYTE,
    file_size: int = MEBIBYTE,
) -> Ran:
    """Run `code`, then each of `calls` (expressions), in another process; return what they gave, as JSON has it.

    `seconds` bounds CPU time (rounded up) and, twice as much, the time on the clock; `memory` and `file_size` are in bytes.
    What is not JSON counts as a failed call, as do all calls where the code itself does not run. Raises `InputError` on a
    system without such limits (Windows).
    """
    if importlib.util.find_spec("resource") is None:
        raise InputError("this system has no limits for processes, so that code of a model is not run on it")
    whole = int(-(-seconds // 1))
    limits = {  # soft and hard; one second of CPU lies between, for where both are reached at once the hard one's SIGKILL comes
        "RLIMIT_CPU": (whole, whole + 1),
        "RLIMIT_AS": (memory, memory),
        "RLIMIT_FSIZE": (file_size, file_size),
        "RLIMIT_NPROC": (0, 0),
        "RLIMIT_CORE": (0, 0),
    }
    job = json.dumps({"code": code, "calls": list(calls), "limits": limits, "returned": RETURNED})
    with tempfile.TemporaryDirectory(prefix="emoprobe-", ignore_cleanup_errors=True) as folder:
        # No shell: this very Python, under limits; to run the code of a model is the point.
        process = subprocess.Popen(  # nosec B603
            [sys.executable, "-I", "-S", "-c", RUNNER],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            start_new_session=True,
        )
        try:
            process.communicate(job.encode(), timeout=2 * seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            running = process.poll() is None
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # and whatever it has started
            process.wait()
        returned = _read(Path(folder) / RETURNED)
    missing: list[list[Any]] = [[]] * (len(calls) - len(returned))
    return Ran(
        (*returned[: len(calls)], *missing),
        not running and process.returncode not in (-signal.SIGXCPU, -signal.SIGKILL),
    )


def _read(path: Path) -> list[list[Any]]:
    """Return the values of calls; a line that is no list of one value is a failed call."""
    if not path.is_file():
        return []
    found: list[list[Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            value = []
        found.append(value if isinstance(value, list) and len(value) == 1 else [])
    return found
