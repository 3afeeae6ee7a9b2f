"""What somebody feels, and then a long while of nothing in particular: texts for the claim about long distances.

A pair of texts begins with two cues, one glad and one sad, and goes on with the same filler. For the model that knows its
generator's language only, cues and fillers are generated; for all others they are the sentences of `cues.json`, written for
this purpose and not chosen by looking at any model.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from emoprobe.corpora.generator import EMOTIONS, generate

CUES = 10
GENERATED_FILLER = 12
"""Generated neutral texts that make a filler."""


@dataclass(frozen=True)
class CuePair:
    """A glad and a sad beginning, and what both go on with."""

    glad: str
    sad: str
    filler: str

    def texts(self) -> tuple[str, str]:
        """Return the glad text and the sad one."""
        return f"{self.glad} {self.filler}", f"{self.sad} {self.filler}"


def written_pairs(seed: int = 0) -> list[CuePair]:
    """Return the pairs of this package, each with its own order of the neutral sentences."""
    bank = json.loads(Path(__file__).with_name("cues.json").read_text(encoding="utf-8"))
    generator = random.Random(seed)
    neutral = bank["neutral"]
    return [
        CuePair(pair["glad"], pair["sad"], " ".join(generator.sample(neutral, len(neutral))))
        for pair in bank["cues"]
    ]


def generated_pairs(worlds: Sequence[str], seed: int = 0, count: int = CUES) -> list[CuePair]:
    """Return pairs of generated texts of one person each, of these worlds; fillers are about others who feel nothing."""
    glad, sad = ([name for name, place in EMOTIONS.items() if sign * place.valence > 0.5] for sign in (1, -1))
    pairs = []
    for number in range(count):
        world, drawn = [worlds[number % len(worlds)]], 3 * (1000 * seed + number)
        cues = [
            generate(1, drawn + side, forms=("first",), emotions=chosen, worlds=world)[0].text
            for side, chosen in enumerate((glad, sad))
        ]
        filler = generate(GENERATED_FILLER, drawn + 2, forms=("third",), emotions=["neutral"], worlds=worlds)
        pairs.append(CuePair(cues[0], cues[1], " ".join(part.text for part in filler)))
    return pairs
