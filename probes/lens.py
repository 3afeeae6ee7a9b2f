"""Reading directions through the unembedding: which tokens' logits they raise and lower, and how unusual that is.

The logit lens (nostalgebraist 2020, "interpreting GPT: the logit lens"; Sofroniew et al. 2026, arXiv 2604.07729, table 1) reads
a direction u as if it were added to the stream x at the last layer. There it is exact but for what x decides: with g the gain
of the final norm, r the root mean square that it divides by and W the unembedding, adding εu changes the logits by
ε/r · W(g ⊙ (u - x·(x·u)/(d·r²))) in the limit, which is ε/r times the lens where x·u = 0. Layer norm takes the mean out of both
first. At earlier layers the lens is a hint: the blocks above may do anything with a direction.

Every vocabulary has tokens that any direction moves much. So each score stands beside those of random directions.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from emoprobe.controls import turned_at_random
from emoprobe.errors import InputError

if TYPE_CHECKING:
    from emoprobe.models.live import LiveModel
    from emoprobe.probes.probe_set import ProbeSet

RANDOMS = 200
"""Random directions that a score is held against."""
TOGETHER = 16
"""Random directions that are read at once, so that memory does not grow with their number."""
JUNK = re.compile(r"<0x[0-9A-Fa-f]{2}>|[<\[]unused_?\d+[>\]]")
"""Single bytes, which stand in for characters that the vocabulary lacks, and entries left free."""


def logit_lens(
    model: LiveModel,
    probes: ProbeSet,
    layer: int | float,
    top: int = 10,
    *,
    words: str = "text",
    merge: bool = False,
    folded: bool = True,
    randoms: int = RANDOMS,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the tokens whose logits each concept's direction at `layer` raises and lowers most; see `vector_lens`.

    Raises `InputError` as that and `ProbeSet.check_model` do.
    """
    probes.check_model(model)
    vectors = probes.directions[probes.layer_index(layer)]
    return vector_lens(
        model,
        vectors,
        probes.concepts,
        top,
        words=words,
        merge=merge,
        folded=folded,
        randoms=randoms,
        seed=seed,
    )


def vector_lens(
    model: LiveModel,
    vectors: Tensor,
    names: Sequence[str] | None = None,
    top: int = 10,
    *,
    words: str = "text",
    merge: bool = False,
    folded: bool = True,
    randoms: int = RANDOMS,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the tokens whose logits vectors (n, d_model) raise and lower most when they are read as the last layer's.

    One row per vector and rank: concept (its name, by default its number), rank (from 1), promoted, suppressed and, of each of
    the two, `_score`, `_z` and `_p`. The score is the logit that the vector adds where the final norm divides by 1, less its
    mean over the vocabulary, which no probability depends on; for a unit vector, times √d_model, it is about what a steering
    strength of 1 at the last layer adds. `z` is the score in standard deviations of the same token's score over `randoms`
    random directions of the vector's norm; `p` is how often one of these scores as high at the same rank (with its own first,
    second, … token), at the least 1 / (randoms + 1). Both are NaN without random directions.

    Special tokens, single bytes, entries that the tokenizer does not have and tokens that are no text by themselves are left
    out. `words` may leave out more: "letters" asks for a letter, the name of a script ("latin", "cyrillic", …) for letters of
    that script only. `merge` shows words that differ in case or in the space before them once. `folded=False` reads without
    the final norm, to show what it does. A soft cap on logits (Gemma) keeps the order of the tokens' logits, and shrinks each
    change by 1 - (logit / cap)²; it is not in the scores. Raises `InputError` for vectors of another width, for options out of
    range, and for models that a logit lens cannot read.
    """
    rows = vectors.detach().float().cpu()
    if rows.dim() != 2 or rows.shape[1] != model.d_model or not len(rows):
        raise InputError(f"vectors of shape {tuple(vectors.shape)}: give (n, {model.d_model})")
    names = [f"vector {number}" for number in range(len(rows))] if names is None else list(names)
    if len(names) != len(rows):
        raise InputError(f"{len(names)} names for {len(rows)} vectors: give one for each")
    if top < 1 or randoms < 0:
        raise InputError(
            f"top={top}, randoms={randoms}: give at least 1 token, and no fewer than 0 directions"
        )
    entries = _Entries(model, words, merge)
    top = min(top, entries.count)
    scores = entries.scores(model, rows, folded)
    spread, chance = _of_random(model, entries, top, folded, randoms, seed)
    norms = rows.norm(dim=1)
    frames = []
    for name, row, norm in zip(names, scores, norms, strict=True):
        sides: dict[str, list[Any]] = {}
        for side, sign in (("promoted", 1), ("suppressed", -1)):
            best = entries.leading(sign * row, top)
            found = row[best]
            sides[side] = [entries.texts[place] for place in best]
            sides[f"{side}_score"] = found.tolist()
            sides[f"{side}_z"] = (found / (norm * spread[best])).tolist()
            beaten = (norm * chance >= sign * found).sum(0)
            sides[f"{side}_p"] = (
                ((1 + beaten.double()) / (1 + randoms)).tolist() if randoms else [float("nan")] * top
            )
        frames.append(pd.DataFrame({"concept": name, "rank": range(1, top + 1), **sides}))
    return pd.concat(frames, ignore_index=True)


class _Entries:
    """The entries of a vocabulary that count: `texts` as they read, `groups` which of them are shown as one."""

    def __init__(self, model: LiveModel, words: str, merge: bool) -> None:
        tokenizer = model.tokenizer
        unembedded = model.logit_lens(torch.zeros(1, model.d_model)).shape[1]
        self.size = min(len(tokenizer), unembedded)  # either may have entries that the other has not
        names = tokenizer.convert_ids_to_tokens(list(range(self.size)))
        special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        special |= set(tokenizer.all_special_ids)
        kept, self.texts = [], []
        for token, name in enumerate(names):
            if token in special or name is None or JUNK.fullmatch(str(name)):
                continue
            text = str(tokenizer.decode([token]))
            if text.strip() and "\N{REPLACEMENT CHARACTER}" not in text and _counts(text, words):
                kept.append(token)
                self.texts.append(text)
        if not kept:
            raise InputError(
                f'words="{words}" leaves no token of {model.name}: give "text", "letters" or a script'
            )
        self.kept = torch.tensor(kept)
        same = {text.strip().casefold(): number for number, text in enumerate(self.texts)}
        numbers = [same[text.strip().casefold()] for text in self.texts] if merge else range(len(kept))
        self.groups = torch.from_numpy(np.unique(list(numbers), return_inverse=True)[1])
        self.count = int(self.groups.max()) + 1

    def scores(self, model: LiveModel, vectors: Tensor, folded: bool) -> Tensor:
        """Return the logits that vectors promote, about their mean over the vocabulary: (n, entries)."""
        logits = model.logit_lens(vectors, folded=folded).cpu()[:, : self.size]
        return logits[:, self.kept] - logits.mean(1, keepdim=True)

    def leading(self, scores: Tensor, top: int) -> list[int]:
        """Return the places of the highest scores (entries,), one of each group, the highest first."""
        found: dict[int, int] = {}
        for place in scores.argsort(descending=True, stable=True).tolist():
            found.setdefault(int(self.groups[place]), place)
            if len(found) == top:
                break
        return list(found.values())

    def highest(self, scores: Tensor, top: int) -> Tensor:
        """Return the highest scores of groups, (n, top)."""
        best = scores.new_full((len(scores), self.count), -torch.inf)
        best.scatter_reduce_(1, self.groups.expand(len(scores), -1), scores, "amax")
        return best.topk(top, dim=1).values


def _counts(text: str, words: str) -> bool:
    if words == "text":
        return True
    letters = [character for character in text if character.isalpha()]
    script = "" if words == "letters" else f"{words.upper()} "
    return bool(letters) and all(unicodedata.name(letter, "").startswith(script) for letter in letters)


def _of_random(
    model: LiveModel, entries: _Entries, top: int, folded: bool, randoms: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Return each entry's spread over random unit directions (entries,), and the highest scores of each (randoms, top)."""
    square, highest = torch.zeros(len(entries.kept)), []
    unit = torch.zeros(1, model.d_model)
    unit[0, 0] = 1
    for first in range(0, randoms, TOGETHER):
        numbers = range(first, min(first + TOGETHER, randoms))
        drawn = torch.cat([turned_at_random(unit, seed * randoms + number) for number in numbers])
        scores = entries.scores(model, drawn, folded)
        square += scores.square().sum(0)
        highest.append(entries.highest(scores, top))
    spread = (square / randoms).sqrt() if randoms else torch.full_like(square, torch.nan)
    return spread, torch.cat(highest) if highest else torch.zeros(0, top)
