"""Probed against learned valuations: do they look the same way, and what does each do to the model?

Beside everything stands what random valuations of equal norm give, and, where there are some, valuations learned from random
starts: only if these end up near the probes too has learning found what probing found. Where those that are compared have seen
the same annotations, their likeness says no more than that both have learned them. The bias λ·V_Q·V_Kᵀ does not change with the
order or the sign of rows; cosines of like-named rows and correlations with annotations do, and are given with their sign.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from emoprobe.checks import check_seed
from emoprobe.corpora import Corpus
from emoprobe.errors import InputError
from emoprobe.models.live import LiveModel
from emoprobe.notebook import shown
from emoprobe.valattn import compare_figures
from emoprobe.valattn.attention_patterns import WORDS
from emoprobe.valattn.compare_behaviour import (
    Runs,
    at_layers,
    attention_table,
    emotional_texts,
    nll_tables,
    per_token,
    strength_table,
)
from emoprobe.valattn.compare_directions import (
    CONTROLS,
    LEARNED,
    PROBED,
    RANDOM_START,
    SEEDS,
    alignment_table,
    annotation_table,
    overlap_table,
    value_tokens,
)
from emoprobe.valattn.valuation import Valuation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "CONTROLS",
    "RANDOM_START",
    "SEEDS",
    "Comparison",
    "compare_valuations",
    "emotional_texts",
    "per_token",
]
FIRST_CONTROL = 10_000
ATTENDED = 40
"""Texts whose attention weights are looked at."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Probed and learned valuations side by side, one table for each question.

    `alignment`: do they look the same way? One row per quantity ("row cosine" of like-named rows; "matched row cosine" of the
    rows matched best, signs aside; "principal angle" in degrees; "token correlation"; "CKA", unbiased, of texts' mean
    valuations), layer and dimension: `value` is probed against learned, the mean over seeds, `low` and `high` its 95 % interval
    over seeds (NaN for one); `control`, `control_low`, `control_high` the mean and the range of random valuations against the
    learned ones; `from_random` is probed against those learned from random starts (NaN without any), `started_low` and
    `started_high` its interval over seeds, `from_random_low` and `from_random_high` the range of random valuations against the
    probed one, where it would be by chance.

    `overlap`: how much of the probed space does each other valuation span, at each layer (mean squared cosine of the principal
    angles)? Random ones are seen as the others are, one by one.

    `annotation`: do valuations agree with people? r of mean valuations and annotations ("text"), and of the words that are
    annotated one by one ("token"), per condition, seed, layer and dimension, with 95 % intervals over groups; `random_high`
    is the highest |r| of a random valuation there.

    `nll`: one row per condition: mean |λ|, NLL in nats per token, its difference `delta` from the untouched model with its
    95 % interval (`low`, `high`), and its difference `excess` from the learned valuation with its own (`excess_low`,
    `excess_high`). Both are paired by text, per token; intervals are Student's over `groups` groups of the corpus, the texts
    of one group not being independent (`per_token`), and NaN where there is one group. `seeds_low` and `seeds_high` are those
    of `delta` over seeds. `emotional`: the same difference on emotional and on neutral texts (see `emotional_texts`).

    `strengths`: the learned λ per condition, seed, layer and head (missing where a layer has one).

    `attention`: where does attention look? Per condition, layer and quantity (see `attention_patterns`) the value in the
    untouched model, its change with intervals over groups and over seeds, and the mean of random valuations' changes with
    where one more would lie at 95 %.
    """

    alignment: pd.DataFrame
    overlap: pd.DataFrame
    annotation: pd.DataFrame
    nll: pd.DataFrame
    emotional: pd.DataFrame
    strengths: pd.DataFrame
    attention: pd.DataFrame
    name: str
    texts: int
    groups: int

    def summary(self) -> pd.DataFrame:
        """Return the alignment averaged over layers, one row per quantity and dimension."""
        columns = ["value", *CONTROLS]
        return self.alignment.groupby(["quantity", "dimension"], sort=False)[columns].mean().reset_index()

    @property
    def frame(self) -> pd.DataFrame:
        """The summary of how alike both are; the tables of the other questions are beside it."""
        return self.summary()

    def plot(self, question: str = "summary") -> Figure:
        """Draw the answer to one question: a table's name, or "summary". Raises `InputError` for what there is none of."""
        if question not in compare_figures.FIGURES:
            raise InputError(f'question="{question}": give one of {", ".join(compare_figures.FIGURES)}')
        if question != "summary" and getattr(self, question).empty:
            raise InputError(
                f"there is nothing to draw of {question}: the corpus has no such annotations or words"
            )
        return compare_figures.FIGURES[question](self)

    def verdict(self) -> str:
        """Say what the numbers come to: do both look the same way, and does either predict text better at the learned λ?"""
        rows = self.alignment[self.alignment.quantity == "matched row cosine"]
        alike, low, high = rows[["value", "control_low", "control_high"]].mean()
        same = (
            "more alike than random ones" if alike > high else "not shown to be more alike than random ones"
        )
        by_name = self.nll.set_index("condition")
        change = by_name.loc[LEARNED, ["delta", "low", "high"]].astype(float)
        excess = by_name.loc[PROBED, ["excess", "excess_low", "excess_high"]].astype(float)
        return (
            f"Rows of both are {same}: their cosine, matched best, is {alike:.2f} on average, with random valuations "
            f"{low:.2f} to {high:.2f}. Learned at its λ against the untouched model: {_nats(*change)}. "
            f"Probed against learned, at that λ: {_nats(*excess)}."
        )

    def __repr__(self) -> str:
        known = self.summary().dropna(axis=1, how="all")
        return (
            f"<Comparison on {self.name}>\n{known.to_string(index=False)}\n{self.nll.to_string(index=False)}\n"
            f"{self.verdict()}"
        )

    def _repr_html_(self) -> str:
        drawn = [
            name for name in compare_figures.FIGURES if name == "summary" or not getattr(self, name).empty
        ]
        title = f"Probed against learned valuations on {self.name}"
        return shown(title, *map(self.plot, drawn), self.frame, self.nll)


def compare_valuations(
    model: LiveModel,
    probed: Valuation,
    learned: Valuation | Sequence[Valuation],
    corpus: Corpus,
    *,
    learned_from_random: Valuation | Sequence[Valuation] | None = None,
    words: Mapping[str, Collection[str]] = WORDS,
    controls: int = 5,
    limit: int = 200,
    seed: int = 0,
    progress: bool = False,
) -> Comparison:
    """Set a probed beside a learned valuation, or those of several seeds, on texts that none should have been fitted on.

    The model is read and changed at the learned λ for all but valuations learned from a random start, which have their own;
    the probed one at that of each seed in turn, and effects are averaged. At most `limit` texts of the corpus are used, drawn
    with `seed`, the first 40 of them for attention; random valuations are `probed.random_like` of seeds from 10,000 on, so that
    none of them is a random start that was drawn with a smaller one. `words` are kinds of words (lower case) that attention
    may move to. Raises `InputError` if two have no layer or not the same dimensions in common, or a learned one has no λ.
    """
    check_seed(seed)
    learned, started = _seeds(learned), _seeds(learned_from_random)
    layers = [layer for layer in probed.layers if all(layer in one.layers for one in (*learned, *started))]
    for one in (*learned, *started):
        if not layers or probed.dimensions != one.dimensions:
            raise InputError(
                f"the valuations cannot be compared: {list(probed.dimensions)} in blocks {list(probed.layers)} against "
                f"{list(one.dimensions)} in blocks {list(one.layers)}"
            )
        if one.strength is None:
            raise InputError(
                "the valuation given as learned has no λ: make it with learn_valuation, or set its strength"
            )
    if not learned:
        raise InputError("no learned valuation was given")
    used = corpus.select(indices=np.random.default_rng(seed).permutation(len(corpus))[:limit])
    everyone: dict[str, Sequence[Valuation]] = {PROBED: [probed], LEARNED: learned}
    everyone |= {f"random {k}": [probed.random_like(FIRST_CONTROL + seed + k)] for k in range(controls)}
    if started:
        everyone[RANDOM_START] = started
    runs = _runs(everyone, learned)
    valued = value_tokens(model, everyone, layers, used)
    overall, emotional = nll_tables(model, runs, used)
    attended = used.select(indices=range(min(ATTENDED, len(used))))
    return Comparison(
        alignment=alignment_table(everyone, valued, layers, model.d_model),
        overlap=overlap_table(everyone, layers, model.d_model),
        annotation=annotation_table(everyone, valued, layers, used),
        nll=overall,
        emotional=emotional,
        strengths=strength_table(
            {name: everyone[name] for name in (LEARNED, RANDOM_START) if name in everyone}
        ),
        attention=attention_table(model, runs, layers, attended, words, progress),
        name=f"{model.name}, {corpus.name}",
        texts=len(used),
        groups=len(np.unique(used.groups)),
    )


def _nats(change: float, low: float, high: float) -> str:
    """Say how the negative log-likelihood differs, and whether the interval shows it; it shows nothing where it holds 0."""
    shown = "lower" if high < 0 else "higher" if low > 0 else "a difference is not shown"
    return f"NLL {change:+.4f} nats per token [{low:+.4f}, {high:+.4f}], {shown}"


def _seeds(given: Valuation | Sequence[Valuation] | None) -> list[Valuation]:
    if given is None:
        return []
    return [given] if isinstance(given, Valuation) else list(given)


def _runs(everyone: Mapping[str, Sequence[Valuation]], learned: Sequence[Valuation]) -> Runs:
    """Return each valuation with the λ that it is injected at.

    The probed one takes each seed's λ, since λ of either sign would cancel in their mean; a random one that of one seed.
    """
    runs = {}
    for place, (name, seeds) in enumerate(everyone.items()):
        if name in (LEARNED, RANDOM_START):
            runs[name] = [(one, one.strength) for one in seeds if one.strength is not None]
            continue
        of = learned if name == PROBED else [learned[place % len(learned)]]
        runs[name] = [
            (seeds[0], at_layers(one.strength, one, seeds[0])) for one in of if one.strength is not None
        ]
    return runs
