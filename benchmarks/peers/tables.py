"""Tables out of what `python benchmarks/peers` has measured: peers.md, the README's, and what the guard says."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, TypeAlias

from race import OURS

from emoprobe.artefacts import write_bytes

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- peers: python benchmarks/peers --tables -->\n", "<!-- end of peers -->\n"
SLIDE = 1.15
"""How much a peer's advantage has to shrink for the guard to report it: two runs on one machine differ by less."""
WORK = {
    "capturing": "residual streams of all layers, mean-pooled",
    "directions": "a direction for each layer out of pairs of texts",
    "probing": "logistic probes of all layers beside controls",
    "steering": "a vector added in generation",
    "attention_bias": "λ·V_Q·V_Kᵀ added to attention scores",
    "starting": "a fresh Python",
}
NOT_PEERS = ("untouched", "bare_pass")
"""Contestants that do less than the work: what they take is the physical limit."""
Records: TypeAlias = Sequence[Mapping[str, Any]]
Cases: TypeAlias = Mapping[str, Records | str]


def write(kept: Mapping[str, Any], again: Mapping[str, Any] | None) -> None:
    """Write peers.md beside this folder, and the table in README.md between its marks."""
    write_bytes(ROOT / "benchmarks" / "peers.md", page(kept, again).encode())
    readme = ROOT / "README.md"
    text = readme.read_text()
    if BEGIN in text:
        head, _, rest = text.partition(BEGIN)
        write_bytes(readme, f"{head}{BEGIN}{summary(kept['cases'])}{END}{rest.partition(END)[2]}".encode())


def page(kept: Mapping[str, Any], again: Mapping[str, Any] | None) -> str:
    """Return peers.md."""
    intro = (Path(__file__).parent / "intro.md").read_text()
    lines = [intro.rstrip(), "", f"{machine(kept)}.", ""]
    if again is not None:
        lines += [
            f"Order of contestants in a second run ({machine(again)}) {held(kept['cases'], again['cases'])}",
            "",
        ]
    lines += ["## In short", "", summary(kept["cases"]), ""]
    for title, records in kept["cases"].items():
        lines += [f"## {title}", "", *section(title.partition(":")[0], records), ""]
    return "\n".join(lines).rstrip() + "\n"


def machine(found: Mapping[str, Any]) -> str:
    """Return in one line what a run was made on."""
    load = f"load {min(found['load'])} to {max(found['load'])}"
    hardware = f"{found['cpu']}, {found['cores']} cores, one thread each, Python {found['python']}"
    return f"{hardware}; {found['seconds']:,} s in all, {load}"


def section(row: str, records: Records | str) -> Iterator[str]:
    """Yield the lines of one case: a table, and why contestants differ."""
    if isinstance(records, str):
        yield f"Not run: {records}."
        return
    memory = any("peak_ratio" in one for one in records)
    names = ["contestant", "CPU time", "wall time", *(["peak memory", "lines", "result"] if memory else [])]
    yield "| " + " | ".join(names) + " |"
    yield "|" + "---|" * len(names)
    for one in sorted(records, key=lambda r: r.get("cpu_ratio", float("inf"))):
        yield "| " + " | ".join(cells(one, memory)) + " |"
    contest = importlib.import_module(row)
    reasons = [
        f"**{one['contestant']}**: {contest.REASONS[one['contestant']]}."
        for one in records
        if one["contestant"] in getattr(contest, "REASONS", {})
    ]
    if reasons:
        yield ""
        yield " ".join(reasons)


def cells(one: Mapping[str, Any], memory: bool) -> Iterator[str]:
    """Yield a contestant's cells: ratios to ours with their range over rounds, and whether the result is ours."""
    name = one["contestant"]
    yield f"**{name}**" if name == OURS else name
    for kind in ("cpu", "wall"):
        if f"{kind}_ratio" not in one:
            yield "failed"
            continue
        ratios = one[f"{kind}_ratios"]
        spread = f" [{min(ratios):.2f}, {max(ratios):.2f}]" if len(ratios) > 1 and name != OURS else ""
        yield f"{one[f'{kind}_ratio']:.2f}{spread} ({one[f'{kind}_seconds']:.2f} s)"
    if memory:
        yield f"{one['peak_ratio']:.2f} ({one['peak'] / 2**20:,.0f} MiB)" if "peak_ratio" in one else ""
        yield str(one.get("lines", ""))
        yield result(one)


def result(one: Mapping[str, Any]) -> str:
    """Return in words whether a contestant's result is ours."""
    if one.get("failed"):
        return str(one["failed"]).replace("|", "\\|")
    if one["contestant"] == OURS:
        return ""
    if one["contestant"] in NOT_PEERS:
        return "does less"
    if one.get("agrees"):
        return f"the same (within {one['difference']:.0e})"
    if "shapes" in one:
        return f"of shape {one['shapes']}"
    apart = one.get("apart")
    where = f" at layer {', '.join(map(str, apart))}" if apart and len(apart) < 4 else ""
    return f"differs by {one['difference']:.2g} of the largest entry{where}"


def summary(cases: Cases) -> str:
    """Return one line for each case: the fastest contestant beside emoprobe, and all others in order."""
    lines = [
        "| work | beside emoprobe, CPU time (what is the same within the spread of rounds is called even) |",
        "|---|---|",
    ]
    for title, records in cases.items():
        if isinstance(records, str):
            continue
        row, _, rest = title.partition(": ")
        ran = sorted((r for r in records if "cpu_ratio" in r), key=lambda r: r["cpu_ratio"])
        others = [r for r in ran if r["contestant"] != OURS and r["contestant"] not in NOT_PEERS]
        told = ", ".join(f"{one['contestant'].replace('_', ' ')} {beside(one)}" for one in others)
        lines.append(f"| {WORK[row]} ({rest}) | {told} |")
    return "\n".join(lines) + "\n"


def beside(one: Mapping[str, Any]) -> str:
    """Return a contestant's CPU time over ours, and whether that is more than the spread of rounds."""
    even = min(one["cpu_ratios"]) <= 1 <= max(one["cpu_ratios"])
    return f"{one['cpu_ratio']:.2f}" + (" (even)" if even else "")


def apart(records: Records) -> set[tuple[str, str]]:
    """Return pairs of contestants (faster, slower) whose ratios to ours do not overlap in any round."""
    ran = [r for r in records if "cpu_ratio" in r]
    pairs = set()
    for a, b in combinations(ran, 2):
        faster, slower = sorted((a, b), key=lambda r: r["cpu_ratio"])
        if max(faster["cpu_ratios"]) < min(slower["cpu_ratios"]):
            pairs.add((faster["contestant"], slower["contestant"]))
    return pairs


def held(first: Cases, second: Cases) -> str:
    """Return in words whether what was apart in one run is in the same order in the other."""
    swapped, count = [], 0
    for title, records in first.items():
        other = second.get(title)
        if other is None or isinstance(records, str) or isinstance(other, str):
            continue
        here, there = apart(records), apart(other)
        count += len(here)
        swapped += [f"{title}: {a} and {b}" for a, b in here if (b, a) in there]
    if swapped:
        return (
            f"differs for {len(swapped)} of {count} pairs whose rounds did not overlap: {'; '.join(swapped)}."
        )
    return f"is the same for all {count} pairs whose rounds did not overlap."


def slides(now: Cases, kept: Cases) -> str:
    """Return which contestants have come nearer to emoprobe, beside what is kept, than chance explains; ratios only."""
    lines, count = [], 0
    for title, records in now.items():
        before = kept.get(title)
        if before is None or isinstance(before, str) or isinstance(records, str):
            continue
        then = {r["contestant"]: r["cpu_ratio"] for r in before if "cpu_ratio" in r}
        for one in records:
            name = one["contestant"]
            if name == OURS or name not in then or "cpu_ratio" not in one:
                continue
            count += 1
            if one["cpu_ratio"] * SLIDE < then[name]:
                lines.append(
                    f"SLID  {title}: {name} took {then[name]:.2f} of emoprobe's time, now {one['cpu_ratio']:.2f}"
                )
        if any(r["contestant"] == OURS and r.get("failed") for r in records):
            lines.append(f"FAILED  {title}: {next(r['failed'] for r in records if r['contestant'] == OURS)}")
    if not count:
        return "nothing is kept to compare with"
    return "\n".join(
        [
            *lines,
            f"{count} ratios compared, {len(lines)} worse than those kept by a factor of {SLIDE} or failed",
        ]
    )
