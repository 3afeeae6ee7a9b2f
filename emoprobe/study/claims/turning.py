"""The second claim: words that turn a sentence gain, plainly emotional ones lose, and standard attention is more uniform.

Each word of a class is set beside words of neither class in the same text that are most like it in place, frequency and number
of tokens, so that what happens to all words of that kind is no gain of the class.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from emoprobe.intervals import Floats
from emoprobe.study.claims.judging import POSITIVE, Effect, Integers, effect_of_mean, overall, stated
from emoprobe.study.claims.magnitudes import picture, told
from emoprobe.study.claims.word_classes import emotional, turning
from emoprobe.study.claims.word_readings import WordReadings
from emoprobe.study.concepts.evidence import in_common
from emoprobe.study.result import Result
from emoprobe.study.wording import span

MATCHES = 3
LEAST = 20
"""Words of a class below which nothing is said of it."""
MEASURES = {
    "gain": "% of the magnitude relative to its text's mean, beside matched words",
    "rank": "% of the text's words that it rises past, beside matched words",
    "attention": "% of the attention that later words give it, beside matched words",
}
CLAIMS = {
    "turning": ("words that turn a sentence gain", 1),
    "emotional": ("plainly emotional words lose", -1),
}
UNIFORM = ("standard attention is more uniform", "percentage points of the evenness of attention", -1)
PUBLISHED = (
    "J. Marín 2024: on two sentences “without” and “though” gain, “frustrated” and “terrible” sometimes lose, and standard "
    "attention is more uniform, by the look of heat maps; no number and no control is given."
)


def turning_and_emotional(
    read: WordReadings, frequencies: pd.Series, norms: pd.DataFrame | None = None
) -> Result:
    """Judge what happens to turning and to emotional words, and to the evenness of attention.

    `frequencies` says how often a word (in lower case, the index) stands in a larger corpus; `norms` are human ratings, see
    `load_word_norms`. A class is judged by the gain of its words' magnitudes; their ranks and the attention that they get are
    reported beside it.
    """
    members = {"turning": turning(read.words), "emotional": emotional(read.words, norms)}
    matches = matched(read, frequencies, members["turning"] | members["emotional"])
    effects = [
        found
        for name, (claim, sign) in CLAIMS.items()
        for found in _of_class(read, members[name], matches, claim, sign)
    ]
    changes = read.changes["evenness"]
    effects.append(effect_of_mean(*UNIFORM, changes.probed, changes.random, read.groups))
    judged = [found for found in effects if found.measure in (MEASURES["gain"], UNIFORM[1])]
    counts = ", ".join(f"{int(member.sum())} {name} words" for name, member in members.items())
    return Result(
        name="words",
        title="Claim 2: turning words gain, emotional words lose",
        question="Do words that turn a sentence gain magnitude, do emotional ones lose, is standard attention more uniform?",
        method=(
            f"{counts} (negations and contrasts; {'human norms' if norms is not None else 'a list of emotion words'}) "
            f"in {len(read.groups)} texts, each beside the {MATCHES} words of its text most like it in place, frequency "
            f"and tokens; {stated()}. Intervals over groups of texts; {read.controls} random valuations."
        ),
        table=pd.concat([found.rows() for found in effects], ignore_index=True),
        finding="; ".join(f"{found.claim}: {span(*found.mean, 2, True)}" for found in judged),
        controls=("random valuations " + "; ".join(found.by_chance() for found in judged)),
        sign=in_common(found.outcome for found in judged),
        parts={found.claim: found.outcome > 0 for found in judged},
        verdict=" ".join(
            [
                f"Of {len(judged)} claims {overall(judged)}.",
                *(told(found) for found in judged),
                _losing(read, members["emotional"], matches),
            ]
        ),
        checks={"λ = 0 leaves every magnitude as it was, to the last bit": read.untouched},
        figure=picture(judged),
        alt="Gain of turning and of emotional words, and evenness of attention, by λ, for probed and random valuations.",
        published=PUBLISHED,
    )


def matched(read: WordReadings, frequencies: pd.Series, classed: NDArray[np.bool_]) -> Integers:
    """Return for each word the words of no class in its text that are most like it, (words, MATCHES); -1 where too few are."""
    counts = frequencies.reindex([word.lower() for word in read.words]).fillna(0).to_numpy(float)
    features = np.stack([read.place, np.log1p(counts), np.log(read.tokens)], axis=1)
    features = (features - features.mean(0)) / np.maximum(features.std(0), 1e-12)
    chosen = np.full((len(read.words), MATCHES), -1)
    for text in np.unique(read.text):
        rows = np.flatnonzero(read.text == text)
        others = rows[~classed[rows]]
        if len(others) < MATCHES:
            continue
        apart = ((features[rows, None] - features[None, others]) ** 2).sum(-1)
        chosen[rows] = others[np.argsort(apart, axis=1, kind="stable")[:, :MATCHES]]
    return chosen


def _of_class(
    read: WordReadings, member: NDArray[np.bool_], matches: Integers, claim: str, sign: int
) -> list[Effect]:
    """Return the effects of each measure on the words of a class; where these are too few, of none of them."""
    rows = _usable(member, matches)
    groups = read.groups[read.text[rows]]
    return [
        effect_of_mean(
            claim,
            measure,
            sign,
            beside(read.changes[name].probed, rows, matches),
            beside(read.changes[name].random, rows, matches),
            groups,
        )
        for name, measure in MEASURES.items()
    ]


def beside(values: Floats, rows: Integers, matches: Integers) -> Floats:
    """Return the values (…, words) of some words less the mean of those that they are matched with: (…, rows)."""
    result: Floats = values[..., rows] - values[..., matches[rows]].mean(-1)
    return result


def _usable(member: NDArray[np.bool_], matches: Integers) -> Integers:
    """Return the words of a class that have matches, or none where these are fewer than LEAST."""
    rows = np.flatnonzero(member & (matches >= 0).all(1))
    return rows if len(rows) >= LEAST else rows[:0]


def _losing(read: WordReadings, member: NDArray[np.bool_], matches: Integers) -> str:
    """Say which share of emotional words loses at the positive λ, beside the words that they are matched with."""
    rows = _usable(member, matches)
    if not len(rows):
        return f"With fewer than {LEAST} emotional words nothing can be said of how many lose."
    gain = read.changes["gain"].probed[-len(POSITIVE) :].mean(0)
    return (
        f"Of emotional words {(gain[rows] < 0).mean():.0%} lose magnitude, of the words that they are matched with "
        f"{(gain[matches[rows]] < 0).mean():.0%}."
    )
