"""The campaign of kills sees whether work goes on or begins anew, and its page is what its record says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
CAMPAIGN = f"""
import json, os, pathlib, random, signal, sys, time
sys.path.insert(0, {str(BENCHMARKS)!r})
import faults

class Never(random.Random):
    def uniform(self, a, b):
        return 3600.0

def work(folder, resumes):
    # The moment of the one kill is the work's own, so that a slow machine does not move it.
    killed = folder.with_suffix(".killed")
    for part in range(8):
        kept = folder / f"{{part}}.txt"
        if not (resumes and kept.is_file()):
            faults.MODEL.logits(["the sun came up"])
            if part == 4 and folder.name != "whole" and not killed.exists():
                killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            kept.write_text("done")

found = {{}}
for name, resumes in (("goes on", True), ("begins anew", False)):
    faults.WORK[name] = lambda folder, resumes=resumes: work(folder, resumes)
    faults.PARTS[name] = "*.txt"
    found[name] = faults.campaign(name, 1, Never(), pathlib.Path(sys.argv[1]) / name)
place = pathlib.Path(sys.argv[1])
ended = {{
    "timed": faults.run(lambda folder: time.sleep(600), place, 0.2),
    "crashed": faults.run(lambda folder: os.kill(os.getpid(), signal.SIGTERM), place, None),
    "failed": faults.run(lambda folder: 1 / 0, place, None),
}}
record = json.loads(pathlib.Path(faults.__file__).with_suffix(".json").read_text("utf-8"))
print(json.dumps([found, ended, faults.page(record)]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="work is killed in a forked process")
def test_it_is_seen_whether_work_goes_on_or_begins_anew(tmp_path: Path) -> None:
    # In a process of its own: it forks, and this one may have threads.
    said = subprocess.run(
        [sys.executable, "-c", CAMPAIGN, tmp_path], capture_output=True, check=True, timeout=300
    )
    found, ended, page = json.loads(said.stdout)
    assert ended["timed"] == [True, ""] and ended["crashed"] == [False, "ended by signal 15"]
    assert not ended["failed"][0] and "ZeroDivisionError" in ended["failed"][1]
    assert page == (BENCHMARKS / "faults.md").read_text("utf-8")
    resumed, anew = found["goes on"], found["begins anew"]
    assert resumed["tokens"] == anew["tokens"] > 0 and resumed["kills"] == anew["kills"] == 1
    assert resumed["differing"] == anew["differing"] == []
    # Five of eight parts are read before the kill. Only the one that it came into is read twice.
    assert resumed["parts_written_again"] == 0 and anew["parts_written_again"] == 4
    assert (resumed["read_after_the_last_kill"], resumed["read_in_all"]) == (0.5, 1.125)
    assert (anew["read_after_the_last_kill"], anew["read_in_all"]) == (1, 1.625)
    assert resumed["read_in_all_if_begun_anew"] == anew["read_in_all_if_begun_anew"] == 1.625
