"""Tables out of what `python benchmarks/peers` has measured: peers.md, the README's, and what the guard says."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, TypeAlias

from race import OURS, WARM

from emoprobe.artefacts import write_bytes

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- peers: python benchmarks/peers --tables -->\n", "<!-- end of peers -->\n"
SLIDE = 1.15
"""How much a contestant has to come nearer to emoprobe for the guard to report it."""
WORK = {
    "capturing": "residual streams of all layers, mean-pooled",
    "directions": "a direction for each layer out of pairs of texts",
    "probing": "logistic probes of all layers beside controls",
    "steering": "a vector added in generation",
    "attention_bias": "λ·V_Q·V_Kᵀ added to attention scores",
    "starting": "a fresh Python",
}
LESS = ("untouched", "bare_pass")
"""Contestants that do less than the work: what they take is the physical limit."""
Records: TypeAlias = Sequence[Mapping[str, Any]]
Case: TypeAlias = Mapping[str, Any]
"""Hardware, load and seconds of one comparison, and its `records`; or why it was `left` out."""


def write(kept: Mapping[str, Any], again: Mapping[str, Any] | None) -> None:
    """Write peers.md beside this folder, and the table in README.md between its marks."""
    write_bytes(ROOT / "benchmarks" / "peers.md", page(kept, again).encode())
    readme = ROOT / "README.md"
    text = readme.read_text("utf-8")
    if BEGIN in text:
        head, _, rest = text.partition(BEGIN)
        write_bytes(readme, f"{head}{BEGIN}{summary(kept['cases'])}{END}{rest.partition(END)[2]}".encode())


def page(kept: Mapping[str, Any], again: Mapping[str, Any] | None) -> str:
    """Return peers.md."""
    here = Path(__file__).parent
    lines = [(here / "intro.md").read_text("utf-8").rstrip(), "", f"First run: {machine(kept['cases'])}."]
    if again is not None:
        lines += [f"Second run: {machine(again['cases'])}; {held(kept['cases'], again['cases'])}"]
    lines += ["", "## In short", "", summary(kept["cases"]), "## What was asked", "", asked(kept["cases"])]
    lines += [(here / "why.md").read_text("utf-8")]
    for title, case in kept["cases"].items():
        lines += [f"## {title}", "", *section(title.partition(":")[0], case), ""]
    return "\n".join(lines).rstrip() + "\n"


def machine(cases: Mapping[str, Case]) -> str:
    """Return in one line what a run was made on."""
    hardware = {f"{case['cpu']}, {case['cores']} cores, Python {case['python']}" for case in cases.values()}
    loads = [case["load"] for case in cases.values()]
    seconds = sum(case["seconds"] for case in cases.values())
    return f"{' and '.join(sorted(hardware))}; {seconds / 60:.1f} minutes, load {min(loads)} to {max(loads)}"


def section(row: str, case: Case) -> Iterator[str]:
    """Yield the lines of one case: a table, and why contestants differ."""
    if "left" in case:
        yield f"Not run: {case['left']}."
        return
    records = case["records"]
    memory = any("peak_ratio" in one for one in records)
    names = ["contestant", "CPU time", "wall time", *(["memory", "statements", "result"] * memory)]
    yield "| " + " | ".join(names) + " |"
    yield "|" + "---|" * len(names)
    for one in sorted(records, key=lambda r: r.get("cpu_ratio", float("inf"))):
        yield "| " + " | ".join(cells(one, memory)) + " |"
    given = getattr(importlib.import_module(row), "REASONS", {})
    reasons = [
        f"**{one['contestant']}**: {given[one['contestant']]}."
        for one in records
        if one["contestant"] in given
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
            yield "failed" if memory else str(one["failed"]).replace("|", "\\|")
            continue
        ratios = one[f"{kind}_ratios"]
        spread = f" [{min(ratios):.2f}, {max(ratios):.2f}]" if len(ratios) > 1 and name != OURS else ""
        yield f"{one[f'{kind}_ratio']:.2f}{spread} ({one[f'{kind}_seconds']:.2f} s)"
    if memory:
        yield f"{one['peak_ratio']:.2f} ({one['peak'] / 2**20:,.0f} MiB)" if "peak_ratio" in one else ""
        yield str(one.get("statements", ""))
        yield result(one)


def result(one: Mapping[str, Any]) -> str:
    """Return in words whether a contestant's result is ours."""
    if one.get("failed"):
        return str(one["failed"]).replace("|", "\\|")
    if one["contestant"] == OURS:
        return ""
    if one["contestant"] in LESS:
        return "does less"
    if one.get("agrees"):
        return f"the same (within {one['difference']:.0e})" if "difference" in one else "the same"
    if "shapes" in one:
        return f"of shape {one['shapes']}"
    if "same" in one:
        return f"{one['same']} tokens the same"
    apart = one.get("apart")
    where = f" at layer {', '.join(map(str, apart))}" if apart and len(apart) < 4 else ""
    return f"differs by {one['difference']:.2g} of the largest entry{where}"


def summary(cases: Mapping[str, Case]) -> str:
    """Return one line for each case: what all contestants take beside emoprobe, in order."""
    lines = ["| work | CPU time over emoprobe's, fastest first |", "|---|---|"]
    for title, case in cases.items():
        if "left" in case:
            continue
        row, _, rest = title.partition(": ")
        ran = sorted((r for r in case["records"] if "cpu_ratio" in r), key=lambda r: r["cpu_ratio"])
        told = [beside(one) for one in ran if one["contestant"] != OURS]
        told += [
            f"{one['contestant'].replace('_', ' ')} failed" for one in case["records"] if one.get("failed")
        ]
        if told:
            lines.append(f"| {WORK[row]} ({rest}) | {', '.join(told)} |")
    return "\n".join(lines) + "\n"


def beside(one: Mapping[str, Any]) -> str:
    """Return a contestant's CPU time over ours, and what has to be said with it."""
    said = [f"{one['cpu_ratio']:.2f}"]
    if len(one["cpu_ratios"]) > WARM and min(one["cpu_ratios"]) <= 1 <= max(one["cpu_ratios"]):
        said.append("(even)")
    if one["contestant"] not in LESS and one.get("agrees") is False:
        said.append("(another result)")
    name = one["contestant"].replace("_", " ")
    return f"*{name}* {' '.join(said)}" if one["contestant"] in LESS else f"{name} {' '.join(said)}"


def asked(cases: Mapping[str, Case]) -> str:
    """Return what the project asked of itself, and what was measured."""
    lines = ["| asked | measured |", "|---|---|"]
    bare = {title: one for title, one in _of(cases, "capturing", "bare_pass")}
    told = ", ".join(
        f"{1 / one['cpu_ratio']:.2f} ({title.partition(': ')[2].partition(',')[0]})"
        for title, one in bare.items()
    )
    lines.append(f"| capture at most 1.05 of the bare forward pass over the same batches | {told} |")
    for title, case in cases.items():
        for one in case.get("records", ()):
            if title.endswith("help") and one["contestant"] == OURS and "wall_seconds" in one:
                lines.append(f"| `emoprobe --help` under 0.5 s | {one['wall_seconds']:.2f} s |")
    minutes = sum(case["seconds"] for case in cases.values()) / 60
    lines.append(f"| all of it in less than 20 minutes | {minutes:.1f} minutes |")
    first = [title for title, case in cases.items() if "records" in case and _first(case["records"])]
    count = sum("records" in case for case in cases.values())
    lines.append(
        f"| first among those with the same result, or even with the first | {len(first)} of {count} rows |"
    )
    return "\n".join(lines) + "\n"


def _of(cases: Mapping[str, Case], row: str, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield a contestant's records in all cases of a row in which it ran."""
    for title, case in cases.items():
        for one in case.get("records", ()):
            if title.startswith(f"{row}:") and one["contestant"] == name and "cpu_ratio" in one:
                yield title, one


def _first(records: Records) -> bool:
    """Whether no contestant that does the work, with our result, is faster than emoprobe in all rounds."""
    others = [r for r in records if "cpu_ratio" in r and r["contestant"] not in (OURS, *LESS)]
    ours = any(r["contestant"] == OURS and "cpu_ratio" in r for r in records)
    return ours and all(max(r["cpu_ratios"]) >= 1 for r in others if r.get("agrees", True))


def apart(records: Records) -> dict[tuple[str, str], bool]:
    """Return pairs of contestants (faster, slower), and whether their ratios to ours overlap in no round."""
    ran = sorted((r for r in records if "cpu_ratio" in r), key=lambda r: r["cpu_ratio"])
    return {
        (a["contestant"], b["contestant"]): max(a["cpu_ratios"]) < min(b["cpu_ratios"])
        for a, b in combinations(ran, 2)
    }


def held(first: Mapping[str, Case], second: Mapping[str, Case]) -> str:
    """Return in words whether what was apart in one run is in the same order, as clearly, in the other."""
    same, unclear, swapped = 0, 0, []
    for title, case in first.items():
        other = second.get(title, {})
        if "records" not in case or "records" not in other:
            continue
        there = apart(other["records"])
        for (a, b), clear in apart(case["records"]).items():
            if not clear:
                continue
            same += there.get((a, b)) is True
            unclear += there.get((a, b)) is False or there.get((b, a)) is False
            swapped += [f"{title}: {a} and {b}"] if there.get((b, a)) is True else []
    told = f"of {same + unclear + len(swapped)} pairs whose rounds did not overlap in the first, {same} are in the same order"
    told += f", {unclear} overlap" if unclear else ""
    return told + (
        f", {len(swapped)} are swapped ({'; '.join(swapped)})." if swapped else ", none is swapped."
    )


def slides(now: Mapping[str, Case], kept: Mapping[str, Case]) -> str:
    """Return which contestants have come nearer to emoprobe than when `kept` was measured, by ratios within one run."""
    lines, count = [], 0
    for title, case in now.items():
        before = {r["contestant"]: r for r in kept.get(title, {}).get("records", ())}
        for one in case.get("records", ()):
            then = before.get(one["contestant"], {})
            if one["contestant"] == OURS:
                lines += [f"FAILED  {title}: {one['failed']}"] if one.get("failed") else []
                continue
            if "cpu_ratio" not in then:
                continue
            if one.get("failed") or (then.get("agrees") and one.get("agrees") is False):
                lines.append(f"DIFFERS  {title}: {one['contestant']}: {result(one)}")
            if "cpu_ratio" not in one:
                continue
            count += 1
            if one["cpu_ratio"] * SLIDE < then["cpu_ratio"]:
                sure = max(one["cpu_ratios"]) < min(then["cpu_ratios"])
                told = f"{one['contestant']} took {then['cpu_ratio']:.2f} of emoprobe's time, now {one['cpu_ratio']:.2f}"
                lines.append(f"{'SLID' if sure else 'SLID PERHAPS'}  {title}: {told}")
    if not count and not lines:
        return "nothing is kept to compare with"
    hardware = {case["cpu"] for case in (*now.values(), *kept.values()) if "cpu" in case}
    other = f"; on other hardware: {' and '.join(sorted(hardware))}" if len(hardware) > 1 else ""
    return "\n".join([*lines, f"{count} ratios compared with those kept, {len(lines)} to look at{other}"])
