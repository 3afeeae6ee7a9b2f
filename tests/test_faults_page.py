"""The campaign of kills sees whether work goes on or begins anew, and its page is what its record says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PARTS = 8
CAMPAIGN = f"""
import json, pathlib, random, sys, time
sys.path.insert(0, {str(BENCHMARKS)!r})
import faults

class Beyond(random.Random):
    def uniform(self, a, b):
        return 0.55 * b

def work(folder, resumes):
    for part in range({PARTS}):
        kept = folder / f"{{part}}.txt"
        if not (resumes and kept.is_file()):
            faults.MODEL.logits(["the sun came up"])
            time.sleep(0.05)
            kept.write_text("done")

found = {{}}
for name, resumes in (("goes on", True), ("begins anew", False)):
    faults.WORK[name] = lambda folder, resumes=resumes: work(folder, resumes)
    faults.PARTS[name] = "*.txt"
    found[name] = faults.campaign(name, 1, Beyond(), pathlib.Path(sys.argv[1]) / name)
record = json.loads(pathlib.Path(faults.__file__).with_suffix(".json").read_text("utf-8"))
print(json.dumps([found, faults.page(record)]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="work is killed in a forked process")
def test_it_is_seen_whether_work_goes_on_or_begins_anew(tmp_path: Path) -> None:
    # In a process of its own: it forks, and this one may have threads.
    said = subprocess.run(
        [sys.executable, "-c", CAMPAIGN, tmp_path], capture_output=True, check=True, timeout=300
    )
    found, page = json.loads(said.stdout)
    assert page == (BENCHMARKS / "faults.md").read_text("utf-8")
    resumed, anew = found["goes on"], found["begins anew"]
    assert resumed["tokens"] == anew["tokens"] > 0 and min(resumed["kills"], anew["kills"]) >= 1
    assert resumed["differing"] == anew["differing"] == []
    # At most the part that a kill came into is read twice.
    assert resumed["parts_written_again"] == 0 and 1 <= resumed["read_in_all"] <= 1 + resumed["kills"] / PARTS
    assert 0 < resumed["read_after_the_last_kill"] < 1
    assert resumed["read_in_all"] < resumed["read_in_all_if_begun_anew"]
    assert anew["parts_written_again"] > 0 and anew["read_after_the_last_kill"] == 1
    assert anew["read_in_all"] == anew["read_in_all_if_begun_anew"] > 1
