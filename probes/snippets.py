"""Stretches of texts that were found to read high or low, and the short list of the best of them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from emoprobe.activations import Residuals
from emoprobe.models.live import LiveModel
from emoprobe.probes.readout import shade, tokens_of


@dataclass(frozen=True)
class Snippet:
    """A stretch of a text: its number, its score, the position of its strongest token and (characters, value) of each piece."""

    text: int
    score: float
    position: int
    pieces: tuple[tuple[str, float], ...]

    @property
    def words(self) -> str:
        """The stretch as it stands in its text."""
        return "".join(characters for characters, _ in self.pieces)

    @property
    def alike(self) -> str:
        """What near-identical snippets share: their words without case, digits, spaces and punctuation."""
        letters = re.sub(r"\W+", " ", re.sub(r"\d+", "0", self.words.casefold())).strip()
        return letters or self.words


class Best:
    """The highest-scoring snippets (lowest, with sign -1), at most `size`, of those that are alike only the highest.

    A snippet that was let go can never belong among them later, so that the order in which they come does not matter. Scores
    within one `grain` rank as equal, for what is the same text differs in the last digits from batch to batch.
    """

    def __init__(self, size: int, sign: int, grain: float) -> None:
        self.size, self.sign, self.grain = size, sign, grain
        self._kept: dict[str, Snippet] = {}

    @property
    def floor(self) -> float:
        """What a score times the sign has to reach to be worth a look."""
        if len(self._kept) < self.size:
            return -math.inf
        return min(self.sign * snippet.score for snippet in self._kept.values()) - self.grain

    def add(self, snippet: Snippet) -> None:
        """Keep a snippet if it belongs among the best."""
        before = self._kept.get(snippet.alike)
        if before is None or self._rank(snippet) > self._rank(before):
            self._kept[snippet.alike] = snippet
        if len(self._kept) > self.size:
            del self._kept[min(self._kept, key=lambda alike: self._rank(self._kept[alike]))]

    def ordered(self) -> list[Snippet]:
        """Return what was kept, the highest-ranking first."""
        return sorted(self._kept.values(), key=self._rank, reverse=True)

    def _rank(self, snippet: Snippet) -> tuple[int, str, int]:
        return round(self.sign * snippet.score / self.grain), snippet.words, -snippet.text


def cut_out(
    model: LiveModel, part: Residuals, row: int, place: int, values: Sequence[float], window: int
) -> tuple[tuple[str, float], ...]:
    """Cut the tokens around a place out of a text, with what lies between them."""
    padding = int((~part.batch.real[row]).sum())
    tokens, text = tokens_of(model, part.batch, row), part.batch.texts[row]
    first, last = max(0, place - padding - window), place - padding + window
    pieces, end = [], -1
    for number, (name, start, stop) in enumerate(tokens[first : last + 1], start=first):
        value = values[number + padding]
        if start < 0:  # a tokenizer that does not say where its tokens lie
            pieces.append((name, value))
        elif start < stop:  # else a special token
            start = start if end < 0 else end
            pieces.append((text[start:stop], value))
            end = max(end, stop)
    return tuple(pieces)


def marked(snippet: Snippet, bound: float, sign: int) -> str:
    """Return a snippet as an HTML list item, tokens beyond a bound (below it, with sign -1) on a coloured ground."""
    pieces = []
    for characters, value in snippet.pieces:
        shown = escape(characters)
        beyond = sign * (value - bound) > 0
        pieces.append(
            f'<span style="{shade(sign * 0.8)}" title="{value:.3g}">{shown}</span>' if beyond else shown
        )
    where = f"{snippet.score:.3g}, text {snippet.text}"
    return f'<li style="white-space:pre-wrap"><small>{escape(where)}</small>  {"".join(pieces)}</li>'
