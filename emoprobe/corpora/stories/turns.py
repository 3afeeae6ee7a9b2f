"""Reading a writer's reply: single texts, the turns of a dialogue, the scenario before it.

Writers add what nobody asked for: a heading before the first line, a note after the last one, often with the very word that
was forbidden. A note that is taken for the end of somebody's turn puts that word into the statistics (one replication of
Sofroniew et al. 2026 found it in 13 % of the last turns), so a dialogue ends where something else begins.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from emoprobe.corpora.stories.prompts import MARK

HEADING = re.compile(r"^\s*(?:\*\*|#+\s|(?:story|dialogue|text)\s*\d*\s*[:.)]|\d+\s*[.)]\s*$)", re.IGNORECASE)
AFTERWORD = re.compile(
    r"^\s*(?:[(\[*_]*\s*(?:note|notes|author'?s note|explanation|comment|word count|end|the end|fin|disclaimer|let me know|"
    r"i hope|here (?:is|are)|this (?:story|dialogue))\b.*|[-–—*_=]{3,}\s*)$",
    re.IGNORECASE,
)
SCENARIO = re.compile(r"^\s*\**scenario\**\s*:\**\s*(.+)$", re.IGNORECASE | re.MULTILINE)


class Said(NamedTuple):
    """One turn of a dialogue."""

    speaker: str
    words: str


def texts(reply: str) -> list[str]:
    """Return the texts of a reply, parted by lines that hold only the mark, without headings and afterwords."""
    parts = re.split(rf"^\s*{re.escape(MARK)}\s*$", reply.replace("\r\n", "\n"), flags=re.MULTILINE)
    kept = (_without_frame(part) for part in parts)
    return [text for text in kept if text]


def _without_frame(text: str) -> str:
    lines = text.strip().split("\n")
    while lines and (HEADING.match(lines[0]) or AFTERWORD.match(lines[0])) and len(lines) > 1:
        lines.pop(0)
    ends = [row for row, line in enumerate(lines) if row and AFTERWORD.match(line)]
    return "\n".join(lines[: ends[0]] if ends else lines).strip()


def scenario(text: str) -> str:
    """Return what a line that begins with "Scenario:" says; empty where there is none."""
    found = SCENARIO.search(text)
    return found.group(1).strip() if found else ""


def turns(text: str, speakers: Sequence[str]) -> list[Said]:
    """Return the turns of a dialogue in order; two lines of one speaker in a row are one turn.

    What stands before the first speaker's line is left out, and all from the first line on that is an afterword, or that
    comes after an empty line and belongs to no speaker.
    """
    names = {name.lower(): name for name in speakers}
    begins = re.compile(rf"^\s*\**({'|'.join(map(re.escape, speakers))})\**\s*:\**\s*(.*)$", re.IGNORECASE)
    found: list[Said] = []
    parted = False
    for line in text.split("\n"):
        opened = begins.match(line)
        if opened:
            who, words = names[opened.group(1).lower()], opened.group(2).strip()
            if found and found[-1].speaker == who:
                found[-1] = Said(who, f"{found[-1].words} {words}".strip())
            else:
                found.append(Said(who, words))
        elif found and line.strip():
            if parted or AFTERWORD.match(line):
                break
            found[-1] = Said(found[-1].speaker, f"{found[-1].words} {line.strip()}".strip())
        parted = not line.strip()
    return [said for said in found if said.words]
