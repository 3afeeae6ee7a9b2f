"""The two sentences of the method's source: do word magnitudes behave under valuation attention as it says?

The magnitude of a word at a block is the L2 norm of the attention's output (after the output projection) at its tokens,
summed in quadrature over its sub-word tokens; punctuation around a word is not part of it. Magnitudes are compared
between the untouched model and the model with λ·V_Q·V_Kᵀ in its attention, V from annotations or from probes, and each
number stands beside the same number for control valuations. Two sentences are two data points: what shows here shows on
them, and no more is claimed.

Source of the claims: J. Marín, "Emotion-Informed Valuation Mechanism for Improved AI Alignment in Large Language Models"
(2024), whose text defines neither magnitudes nor thresholds; the definitions are ours, in `statistics` and `shows`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from emoprobe.corpora.words import VALUATION
from emoprobe.errors import InputError
from emoprobe.layers import Layers, resolve_layers
from emoprobe.models.live import LiveModel
from emoprobe.study.result import Result
from emoprobe.study.sentence_readings import Bench
from emoprobe.study.source_sentences import GROUPS, SENTENCES, Word
from emoprobe.study.word_magnitudes import Floats, Reading, gains, rank_shifts, variation
from emoprobe.study.wording import listed, number, plain, ranged
from emoprobe.valattn import Valuation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from emoprobe.probes import ProbeSet

CLAIMS = {
    "word magnitudes vary more": ("variation", 1),
    "words that turn a sentence gain": ("turning", 1),
    "a plainly emotional word loses": ("emotional", -1),
    "standard attention is more uniform": ("evenness", -1),
}
"""The source's claims: the statistic that each is about, and the sign it should have under valuation attention."""
SWEEP = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Multiples of the stated λ at which the claims are tested again."""


@dataclass(frozen=True, eq=False)
class SentenceComparison:
    """Standard against valuation attention on the two sentences.

    - `claims`: one row per claim, valuation and λ: the statistic (in percent) in each sentence, its mean, the range of the
      controls' means, and whether the claim shows.
    - `groups`: for each valuation and group of words, the mean rank shift (positive: up) and the range of the controls.
    - `words`: for each sentence, word, layer and condition, the magnitude, the magnitude over the sentence's mean, its
      change against standard in percent, and the rank shift.
    - `variation`: for each sentence, layer and valuation, the coefficients of variation and the range of the controls.
    - `readings`: for each condition and sentence, the arrays behind all that.

    All but `claims` are at the stated λ, `strength`.
    """

    claims: pd.DataFrame
    groups: pd.DataFrame
    words: pd.DataFrame
    variation: pd.DataFrame
    readings: dict[str, dict[str, Reading]]
    layers: tuple[int, ...]
    strength: float
    controls: int
    """Control valuations beside each."""
    untouched: bool
    """Whether λ = 0 gave the standard magnitudes, to the last bit."""

    @property
    def frame(self) -> pd.DataFrame:
        """The claims."""
        return self.claims

    def _repr_html_(self) -> str:
        return self.result()._repr_html_()

    def plot(self) -> Figure:
        """Draw word magnitudes and word-to-word attention, standard against valuation, for each sentence."""
        from emoprobe.study.sentence_figure import draw

        return draw(self)

    def result(self) -> Result:
        """Return the comparison as a result of the study; rank shifts stand below the claims in its table."""
        from emoprobe.study.sentence_figure import ALT

        stated = self.claims[self.claims["strength"] == self.strength]
        shown = [
            f"{(rows['shows'] == 'yes').sum()} hold with {name}"
            for name, rows in stated.groupby("valuation", sort=False)
        ]
        annotated = stated[stated["valuation"] == "annotated"].set_index("claim")
        held = int((annotated["shows"] == "yes").sum())
        varies = (
            annotated[[*SENTENCES, "value", "control_low", "control_high"]]
            .astype(float)
            .loc["word magnitudes vary more"]
            .to_dict()
        )
        verdicts = [_verdict(name, rows) for name, rows in stated.groupby("valuation", sort=False)]
        groups = self.groups.assign(
            claim=[f"rank shift of {group} words" for group in self.groups["group"]],
            strength=self.strength,
            shows="",
        )
        return Result(
            name="sentences",
            title="Two sentences under valuation attention",
            question="Do word magnitudes change under valuation attention as the method's source says?",
            method=(
                f"L2 norm of the attention's output at each word, in blocks {_listed(self.layers)} at λ = "
                f"{plain(self.strength)}, for the two sentences of J. Marín (LessWrong, 4 September 2024) with our "
                "annotations; a claim shows if its statistic has the claimed sign and lies beyond that of every one of "
                f"{self.controls} control valuations of equal norm. Annotations enter mapped to [−1, 1] (annotated) or as they "
                "are (unmapped)."
            ),
            table=pd.concat([self.claims, groups[list(self.claims.columns)]], ignore_index=True),
            finding=(
                f"of {len(CLAIMS)} claims each, {listed(shown)} valuations; two sentences give no interval: with annotated "
                "valuations the magnitudes' coefficient of variation changes by "
                f"{listed([f'{number(varies[name], 1, True)} %' for name in SENTENCES])}, on average by "
                f"{number(varies['value'], 1, True)} %"
            ),
            controls=(
                f"{self.controls} control valuations change it by "
                f"{ranged([varies['control_low'], varies['control_high']], 1, True)} % on average; a claim lies beyond all of "
                f"them by chance in 1 of {self.controls + 1}"
            ),
            sign=int(bool((annotated["shows"] == "yes").all())),
            parts={str(claim): shows == "yes" for claim, shows in annotated["shows"].items()},
            verdict=" ".join(
                [
                    f"Of the source's {len(CLAIMS)} claims {held or 'none'} hold{'s' * (held < 2)} with annotated valuations, "
                    "beyond every control.",
                    *verdicts,
                    _by_chance(stated, self.controls),
                    "Two sentences are two data points, and their annotator was one.",
                ]
            ),
            checks={
                "λ = 0 leaves every magnitude as it was, to the last bit": self.untouched,
                "annotations change the magnitudes": self.strength == 0
                or not _equal(self.readings["standard"], self.readings["annotated"]),
            },
            figure=self.plot(),
            alt=ALT,
        )


def sentences(
    model: LiveModel,
    probes: ProbeSet | None = None,
    *,
    strength: float = 1.0,
    layers: Layers = "all",
    controls: int = 20,
    seed: int = 0,
) -> Result:
    """Ask of the two sentences whether the claims of the method's source show in this model. See `compare_sentences`.

    Of `probes`, those for valence, arousal and relevance are used, or all where there is none of these.
    """
    probed = None
    if probes is not None:
        named = [name for name in VALUATION if name in probes.concepts]
        probed = Valuation.from_probes(probes, named or None)
    comparison = compare_sentences(
        model, probed, strength=strength, layers=layers, controls=controls, seed=seed
    )
    return comparison.result()


def compare_sentences(
    model: LiveModel,
    probed: Valuation | None = None,
    *,
    strength: float = 1.0,
    layers: Layers = "all",
    controls: int = 20,
    seed: int = 0,
) -> SentenceComparison:
    """Read the two sentences with and without valuation attention, in annotated, probed and control valuations.

    Valuations are tanh(e), e a word's annotations mapped to [-1, 1] ("annotated") or as they are ("unmapped"), and `probed`.
    The controls of annotations turn every word's e to a random direction of equal norm, or shuffle e among the words, in
    turns; those of `probed` are random directions of equal norm, which need not spread tokens as widely as probes do.

    All `layers` (blocks; those that `probed` has, where it is given) are biased together at λ = `strength`, and magnitudes
    are read at each. Raises `InputError` if nothing is left to read, or a word has no token in this model.
    """
    if controls < 1:
        raise InputError(f"controls={controls}: a claim needs at least one control valuation to be judged by")
    blocks = resolve_layers(layers, model.n_layers, blocks=True)
    if probed is not None:
        blocks = tuple(block for block in blocks if block in probed.layers)
        if not blocks:
            raise InputError(
                f"the probed valuation has none of the layers asked for: it has {list(probed.layers)}"
            )
        probed = probed.select(blocks, model.n_layers)
    bench = Bench(model, blocks)
    families = {
        "annotated": bench.annotated(controls, seed, mapped=True),
        "unmapped": bench.annotated(controls, seed, mapped=False),
    }
    if probed is not None:
        randoms = [probed.random_like(seed + 1 + k) for k in range(controls)]
        families["probed"] = [(valuation, None) for valuation in (probed, *randoms)]
    standard = bench.read()
    sweep = {
        (name, factor * strength): [bench.read(condition, factor * strength) for condition in conditions]
        for name, conditions in families.items()
        for factor in SWEEP
    }
    stated = {name: sweep[name, strength] for name in families}
    summary = _summary(standard, sweep)
    readings = {"standard": standard} | {name: runs[0] for name, runs in stated.items()}
    return SentenceComparison(
        _claims(summary),
        _groups(summary, strength),
        _words(readings, blocks),
        _variation(standard, stated, blocks),
        readings,
        blocks,
        strength,
        controls,
        _equal(standard, bench.read(families["annotated"][0], 0.0)),
    )


# Statistics ----------------------------------------------------------------------------------------------------------


def statistics(words: Sequence[Word], before: Reading, after: Reading) -> dict[str, float]:
    """Return what the claims are about, for one sentence, each the mean over layers.

    - "variation": change of the coefficient of variation of word magnitudes, in percent of what it was.
    - "turning": mean gain of the turning words, in percent, where a word's gain is the change of its magnitude over the
      mean magnitude of its sentence.
    - "emotional": gain in percent of the plainly emotional word that gains least.
    - "evenness": change of the evenness of attention weights, in percentage points.
    - "rank, <group>": mean number of ranks by which the group's words rose.
    """
    gain = gains(before.magnitudes, after.magnitudes).mean(0)
    shift = rank_shifts(before.magnitudes, after.magnitudes).mean(0)
    member = {group: np.array([group in word.groups for word in words]) for group in GROUPS}
    ratio = variation(after.magnitudes) / variation(before.magnitudes)
    return {
        "variation": 100 * float(ratio.mean() - 1),
        "turning": 100 * float(gain[member["turning"]].mean()),
        "emotional": 100 * float(gain[member["emotional"]].min()),
        "evenness": 100 * float((after.evenness - before.evenness).mean()),
        **{f"rank, {group}": float(shift[member[group]].mean()) for group in GROUPS},
    }


def shows(value: float, controls: Floats, sign: int) -> str:
    """Judge a claim that a statistic has this sign: "yes", "no" or "undecided".

    "yes": it has, and lies beyond every control on that side. "no": it has not, or it lies short of every control.
    "undecided": it has, but some controls do as well. Beyond all of 20 controls lies one in 21 by chance.
    """
    value, controls = sign * value, sign * controls
    if value > 0 and value > controls.max():
        return "yes"
    return "no" if value <= 0 or value < controls.min() else "undecided"


# Tables --------------------------------------------------------------------------------------------------------------


def _summary(
    standard: dict[str, Reading], sweep: dict[tuple[str, float], list[dict[str, Reading]]]
) -> pd.DataFrame:
    """Return one row per valuation, λ and statistic: its value in each sentence, their mean, and the controls' means."""
    records = []
    for (valuation, strength), runs in sweep.items():
        found = [
            {name: statistics(SENTENCES[name], standard[name], run[name]) for name in SENTENCES}
            for run in runs
        ]
        for statistic in next(iter(found[0].values())):
            values = np.array([[of[name][statistic] for name in SENTENCES] for of in found])
            records.append(
                {
                    "valuation": valuation,
                    "strength": strength,
                    "statistic": statistic,
                    **dict(zip(SENTENCES, values[0], strict=True)),
                    "value": values[0].mean(),
                    "controls": values[1:].mean(-1),
                }
            )
    frame = pd.DataFrame.from_records(records)
    frame["control_low"] = [controls.min() for controls in frame["controls"]]
    frame["control_high"] = [controls.max() for controls in frame["controls"]]
    return frame


def _claims(summary: pd.DataFrame) -> pd.DataFrame:
    parts = []
    for claim, (statistic, sign) in CLAIMS.items():
        rows = summary[summary["statistic"] == statistic].copy()
        pairs = zip(rows["value"], rows["controls"], strict=True)
        rows["shows"] = [shows(value, controls, sign) for value, controls in pairs]
        rows.insert(0, "claim", claim)
        parts.append(rows)
    order = pd.concat(parts).sort_values(["valuation", "strength"], kind="stable")
    return order.drop(columns=["statistic", "controls"]).reset_index(drop=True)


def _groups(summary: pd.DataFrame, strength: float) -> pd.DataFrame:
    rows = summary[summary["statistic"].str.startswith("rank, ") & (summary["strength"] == strength)].copy()
    rows.insert(1, "group", rows["statistic"].str.removeprefix("rank, "))
    return rows.drop(columns=["statistic", "controls", "strength"]).reset_index(drop=True)


def _words(readings: dict[str, dict[str, Reading]], blocks: tuple[int, ...]) -> pd.DataFrame:
    frames = []
    for condition, by_sentence in readings.items():
        for name, words in SENTENCES.items():
            before, after = readings["standard"][name].magnitudes, by_sentence[name].magnitudes
            index = pd.MultiIndex.from_product(
                [blocks, range(len(words))], names=["layer", "position"]
            ).to_frame(index=False)
            frames.append(
                index.assign(
                    sentence=name,
                    word=[words[position].text for position in index["position"]],
                    condition=condition,
                    magnitude=after.ravel(),
                    relative=(after / after.mean(-1, keepdims=True)).ravel(),
                    gain=100 * gains(before, after).ravel(),
                    rank_shift=rank_shifts(before, after).ravel(),
                )
            )
    return pd.concat(frames, ignore_index=True)


def _variation(
    standard: dict[str, Reading], stated: dict[str, list[dict[str, Reading]]], blocks: tuple[int, ...]
) -> pd.DataFrame:
    frames = []
    for valuation, runs in stated.items():
        for name in SENTENCES:
            values = np.array([variation(run[name].magnitudes) for run in runs])
            columns = {
                "sentence": name,
                "layer": blocks,
                "valuation": valuation,
                "standard": variation(standard[name].magnitudes),
                "value": values[0],
                "control_low": values[1:].min(0),
                "control_high": values[1:].max(0),
            }
            frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def _equal(one: dict[str, Reading], other: dict[str, Reading]) -> bool:
    return all(np.array_equal(one[name].magnitudes, other[name].magnitudes) for name in SENTENCES)


def _verdict(valuation: object, claims: pd.DataFrame) -> str:
    """Say in words which claims show, do not, and stay open at the stated λ."""
    words = {"yes": "shows", "no": "does not show", "undecided": "undecided: some controls do as much"}
    found = [
        f"{claim} ({words[shows]})" for claim, shows in zip(claims["claim"], claims["shows"], strict=True)
    ]
    return f"With {valuation} valuations: {'; '.join(found)}."


def _by_chance(stated: pd.DataFrame, controls: int) -> str:
    """Say how many claims show, of how many that could, and how many may be expected to where nothing is there."""
    shown, many = int((stated["shows"] == "yes").sum()), len(stated)
    return (
        f"In all {shown} of {many} claims show, and {number(many / (controls + 1), 1)} would if valuations were no different "
        f"from their controls, each with a chance of at most 1 in {controls + 1}."
    )


def _listed(layers: Sequence[int]) -> str:
    consecutive = list(layers) == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]}–{layers[-1]}" if consecutive and len(layers) > 2 else ", ".join(map(str, layers))
