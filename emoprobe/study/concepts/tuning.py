"""What tuning a model changes in what it feels like to be asked: the same probes on a base model and a tuned one.

Both models read the same prompts in the same words, the template of the tuned one included, and the same probes are read at
the position before the reply: prompts that are hard on an assistant, and neutral ones. The shift of a concept is what the tuned
model reads less what the base does. Sofroniew et al. 2026 (arXiv 2604.07729, figures 36 and 84, table 16) find shifts towards
brooding and low spirits, much the same on both kinds of prompts.

Any change of weights shifts read-outs, and shifts them alike on all prompts. So the base model is also changed at random, each
weight tensor by as much as tuning has changed it: what tuning does has to differ from that. Random directions stand beside the
probes. "Feels like" is a manner of speaking of representations; nothing is claimed of experience.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import false_discovery_control
from scipy.stats import t as student

from emoprobe import drawing
from emoprobe.errors import InputError
from emoprobe.intervals import distance_of_one_more, jackknife, mean_interval, prediction_interval
from emoprobe.models import LiveModel
from emoprobe.probes import ProbeSet
from emoprobe.probes.geometry import permutation_test
from emoprobe.progress import track
from emoprobe.study.concepts.effects import Floats, row_of
from emoprobe.study.concepts.places import CONTROLS, chosen_layer, read_beside_random, turn
from emoprobe.study.concepts.tuning_prompts import CHALLENGING, NEUTRAL, WORDS
from emoprobe.study.concepts.weight_changes import perturbations
from emoprobe.study.result import Result
from emoprobe.study.wording import listed, number, p_value, ranged, span

SETS = {"neutral": NEUTRAL, "challenging": CHALLENGING}
PERTURBED = 10
"""Random changes of the base model beside that of tuning."""
SURE = 0.05
ALL = "(all)"
SHIFT, ALIKE, CONSISTENT, SIZE = (
    "shift",
    "base and tuned, r",
    "neutral and challenging shifts, r",
    "mean |shift|",
)
PUBLISHED = (
    "Sofroniew et al. 2026 (arXiv 2604.07729, figures 36 and 84, table 16; Claude Sonnet 4.5): base and tuned r = .83 on "
    "neutral and .67 on challenging prompts; shifts on neutral and challenging prompts r = .90; most up brooding, gloomy, "
    "reflective, most down spiteful, playful, exuberant; growing to the middle-late layers. Replication on Llama-3.3-70B "
    "(traitinterp): consistency .80, in the opposite direction."
)


def tuning(
    base: LiveModel,
    tuned: LiveModel,
    probes: ProbeSet,
    *,
    layer: int | float | None = None,
    layers: Sequence[int] | None = None,
    kind: str = "centred_cosine",
    published: Mapping[str, float] | None = None,
    controls: int = CONTROLS,
    perturbed: int = PERTURBED,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = True,
) -> Result:
    """Read `probes` (of one of the two) on `base` and `tuned` before the reply, and say what tuning has shifted.

    `kind` is a unit of `emoprobe.trace`. What is found is stated at `layer` (that of `chosen_layer`), which is not chosen by
    looking; `layers` (all with probes) are its profile. `published` may hold shifts of other models, word -> shift, to compare
    with: the paper's table 16 has 171. `perturbed` times the base model is changed at random as much as tuning has changed it;
    0 leaves the control out. Raises `InputError` for models of other shapes, vocabularies or weights.
    """
    _check_alike(base, tuned)
    if perturbed == 1:
        raise InputError("perturbed=1: give 0, or at least 2, so that their range is known")
    stated = chosen_layer(probes, layer)
    chosen = sorted({stated, *(probes.layers if layers is None else layers)})
    prompts = [turn(tuned, user) for user in (*NEUTRAL, *CHALLENGING)]

    def read(model: LiveModel) -> Floats:
        """Return read-outs (1 + controls, prompts, layers, concepts)."""
        with warnings.catch_warnings():
            if probes.fingerprint in marks:  # they are of one of the two, and meant to be read on others
                warnings.filterwarnings("ignore", "these probes were fitted on")
            found = read_beside_random(
                model, probes, prompts, ["before_reply"], chosen, kind=kind, controls=controls, seed=seed,
                batch_size=batch_size,
            )  # fmt: skip
        return found[:, :, 0]

    marks = [model.fingerprint() for model in (base, tuned)]
    before, after = read(base), read(tuned)
    others = track(
        perturbations(base, tuned, perturbed, seed),
        "reading random changes",
        total=perturbed,
        wanted=progress,
    )
    by_chance = [read(other)[0] - before[0] for other in others]
    table = tabulated(
        before,
        after,
        np.array(by_chance).reshape(len(by_chance), *before.shape[1:]),
        chosen,
        list(probes),
        stated,
    )
    at = table[table.layer == stated]
    compared = None if published is None else compare(at, published)
    return Result(
        name="tuning",
        title="What tuning has shifted",
        question=f"How do the read-outs before a reply differ between {base.name} and {tuned.name}?",
        method=(
            f"{len(CHALLENGING)} challenging and {len(NEUTRAL)} neutral prompts in the template of the tuned model; {kind} at "
            f"the last token before the reply, {len(probes)} concepts, layer {stated} of {base.n_layers}. Intervals over "
            f"prompts. The p of a shift is the largest of three: over prompts, beside {controls} sets of random directions, "
            f"and beside {perturbed} random changes of the base model as large as tuning's, tensor by tensor; corrected over "
            "concepts and sets (Benjamini and Hochberg)."
        ),
        table=table,
        finding=_finding(at) + ("" if compared is None else f"; {compared}"),
        controls=_controls(at),
        verdict=verdict(at) + ("" if compared is None else f" With published shifts: {compared}."),
        sign=int(_beyond_controls(at[at.measure == SHIFT])),
        figure=_figure(table, stated),
        alt="Shift of each concept on both kinds of prompts, with intervals and random changes, and the profile over layers.",
        published=PUBLISHED,
    )


def _check_alike(base: LiveModel, tuned: LiveModel) -> None:
    shapes = [(model.d_model, model.n_layers) for model in (base, tuned)]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"{base.name} and {tuned.name} have other widths or depths ({shapes[0]}, {shapes[1]}): one is not the other's base"
        )
    if base.tokenizer.get_vocab() != tuned.tokenizer.get_vocab():
        raise InputError(
            f"{base.name} and {tuned.name} have other vocabularies: the same prompts are not the same tokens"
        )


# Tabulating ----------------------------------------------------------------------------------------------------------


def tabulated(
    before: Floats,
    after: Floats,
    by_chance: Floats,
    layers: Sequence[int],
    concepts: Sequence[str],
    stated: int,
) -> pd.DataFrame:
    """Return one row for each measure, set, concept and layer.

    `before` and `after` are (1 + controls, prompts, layers, concepts), neutral prompts first, `by_chance` the shifts of models
    changed at random, (models, prompts, layers, concepts).
    """
    rows = []
    parts = {"neutral": slice(0, len(NEUTRAL)), "challenging": slice(len(NEUTRAL), None)}
    shifts = after - before
    for place, layer in enumerate(layers):
        here, chance = shifts[:, :, place], by_chance[:, :, place]
        for name, part in parts.items():
            rows += [
                {
                    **_shift(here[:, part, column], chance[:, part, column]),
                    "set": name,
                    "concept": concept,
                    "layer": layer,
                    "base": float(before[0, part, place, column].mean()),
                    "tuned": float(after[0, part, place, column].mean()),
                }
                for column, concept in enumerate(concepts)
            ]
            both = np.stack([before[0, part, place], after[0, part, place]])
            value, low, high = _over_prompts(both, lambda x: _r(*np.nanmean(x, axis=1)))
            rows.append(
                {"measure": ALIKE, "set": name, "value": value, "low": low, "high": high, "layer": layer}
            )
        for measure, statistic in ((CONSISTENT, _consistency), (SIZE, _size)):
            value, low, high = _over_prompts(here[0], statistic)
            row = {"measure": measure, "set": ALL, "value": value, "low": low, "high": high, "layer": layer}
            for what, values in (("random", here[1:]), ("perturbed", chance)):
                row |= _range(what, np.array([statistic(part) for part in values]))
            rows.append(row)
    table = pd.DataFrame(rows)
    table["concept"] = table.concept.fillna(ALL)
    of_r = table.measure.isin([ALIKE, CONSISTENT])
    table.loc[of_r, ["low", "high"]] = table.loc[of_r, ["low", "high"]].clip(-1, 1)
    known = (table.measure == SHIFT) & (table.layer == stated)
    table.loc[known, "q"] = false_discovery_control(table.p[known].astype(float))
    return table


def _shift(values: Floats, chance: Floats) -> dict[str, object]:
    """Return a concept's shift over prompts (1 + controls, prompts); `chance` is (models, prompts).

    Its p is the largest of three, for it has to stand up to each: to the spread over prompts (Student's t), to one more random
    direction, and to one more random change of the weights.
    """
    value, low, high = mean_interval(values[0])
    error = values[0].std(ddof=1) / np.sqrt(len(values[0]))
    over_prompts = (
        float(2 * student.sf(abs(value) / error, len(values[0]) - 1)) if error > 0 else float(value == 0)
    )
    controls = {"random": values[1:].mean(1), "perturbed": chance.mean(1)}
    p = max(over_prompts, *(_one_more(value, part) for part in controls.values()))
    row: dict[str, object] = {"measure": SHIFT, "value": value, "low": low, "high": high, "p": p}
    for what, part in controls.items():
        row |= _range(what, part)
    return row


def _one_more(value: float, chance: Floats) -> float:
    """Return how probable one more value of the same normal distribution is to lie as far out; 0 where there is none."""
    if not len(chance):
        return 0.0
    away = distance_of_one_more(value, chance)
    if np.isnan(away):
        return float(value == chance.mean())
    return float(2 * student.sf(abs(away), len(chance) - 1))


def _range(what: str, values: Floats) -> dict[str, float]:
    known = values[np.isfinite(values)]
    low, high = prediction_interval(known) if len(known) > 1 else (np.nan, np.nan)
    mean = float(known.mean()) if len(known) else np.nan
    return {what: mean, f"{what}_low": low, f"{what}_high": high}


def _over_prompts(values: Floats, statistic: Callable[[Floats], float]) -> tuple[float, float, float]:
    """Return a statistic of values (…, prompts, concepts), NaN left out, and its interval by jackknife over prompts."""
    value, left = statistic(values), []
    for prompt in range(values.shape[-2]):
        without = values.copy()
        without[..., prompt, :] = np.nan  # so that both sets keep their places
        left.append(statistic(without))
    low, high = jackknife(np.array(value), np.array(left))
    return value, float(low), float(high)


def _consistency(shift: Floats) -> float:
    """Return r over concepts of the mean shifts (prompts, concepts) on neutral and on challenging prompts."""
    neutral, challenging = shift[: len(NEUTRAL)], shift[len(NEUTRAL) :]
    return _r(np.nanmean(neutral, axis=0), np.nanmean(challenging, axis=0))


def _size(shift: Floats) -> float:
    return float(np.abs(np.nanmean(shift, axis=0)).mean())


def _r(x: Floats, y: Floats) -> float:
    x, y = x - x.mean(), y - y.mean()
    lengths = np.linalg.norm(x) * np.linalg.norm(y)
    return float(x @ y / lengths) if len(x) > 2 and lengths > 0 else float("nan")


def compare(at: pd.DataFrame, published: Mapping[str, float]) -> str:
    """Say how the shifts of all prompts go with published ones, over the concepts that both have."""
    shifts = at[at.measure == SHIFT].groupby("concept", sort=False).value.mean()
    named = {concept: WORDS.get(str(concept), str(concept)) for concept in shifts.index}
    shared = [concept for concept, word in named.items() if word in published]
    if len(shared) < 5:
        return f"only {len(shared)} concepts are among the published shifts"
    theirs = np.array([published[named[concept]] for concept in shared])
    r, p = permutation_test(shifts[shared].to_numpy(float), theirs)
    said = "" if p < SURE else ", not shown to be related"
    return f"r = {number(r, sign=True)} over {len(shared)} concepts (permutation {p_value(p)}{said})"


# Words ---------------------------------------------------------------------------------------------------------------


def _rows(at: pd.DataFrame, measure: str) -> pd.DataFrame:
    return at[at.measure == measure].set_index("set")


def _value(row: pd.Series, sign: bool = False) -> str:
    return span(row.value, row.low, row.high, sign=sign)


def _finding(at: pd.DataFrame) -> str:
    alike = _rows(at, ALIKE)
    return (
        ", ".join(f"base and tuned r {_value(row_of(alike, name))} on {name} prompts" for name in SETS)
        + f"; shifts on both r {_value(row_of(_rows(at, CONSISTENT), ALL))}"
    )


def _controls(at: pd.DataFrame) -> str:
    consistent, size = (row_of(_rows(at, measure), ALL) for measure in (CONSISTENT, SIZE))
    return (
        f"shifts of random changes on both kinds of prompts r {number(consistent.perturbed)}, of random directions "
        f"{number(consistent.random)}; mean |shift| {number(size.value, 3)}, random changes {number(size.perturbed, 3)}, "
        f"random directions {number(size.random, 3)}"
    )


def verdict(at: pd.DataFrame) -> str:
    """Say which shifts stand out from random directions and random changes, and what their consistency is worth."""
    shifts = at[at.measure == SHIFT]
    if not shifts.value.abs().max() > 0:
        return "The two models read alike: every shift is exactly zero."
    out, known = shifts.q < SURE, shifts.perturbed_high.notna()
    said = []
    if not out.any():
        said.append(
            "No concept is shown to shift by more than random directions and random changes of the weights do."
        )
    for name, sign in (("up", 1), ("down", -1)):
        part = shifts[out & (np.sign(shifts.value) == sign)].sort_values("value", key=lambda x: -x.abs())
        if len(part):
            ones = [f"{row.concept} on {row['set']} prompts ({_small(row)})" for _, row in part.iterrows()]
            said.append(f"{name.capitalize()}, beyond all controls: {listed(ones, 6)}.")
    if not known.all():
        said.append(
            "No random changes of the weights were made, without which shifts show no more than that weights differ."
        )
    consistent = row_of(_rows(at, CONSISTENT), ALL)
    said.append(_consistent(consistent))
    return " ".join(said)


def _beyond_controls(shifts: pd.DataFrame) -> bool:
    """Say whether any concept shifts by more than random directions and random changes of the weights, which were made."""
    return bool(
        (shifts.q < SURE).any() and shifts.perturbed_high.notna().all() and shifts.value.abs().max() > 0
    )


def _small(row: pd.Series) -> str:
    return span(row.value, row.low, row.high, 3, sign=True)


def _consistent(row: pd.Series) -> str:
    what = f"Shifts on neutral and on challenging prompts go together at r = {_value(row)}"
    if not np.isfinite(row.perturbed_low):
        return f"{what}; what random changes give was not measured."
    which = (
        "more than"
        if row.value > row.perturbed_high
        else "less than"
        if row.value < row.perturbed_low
        else "as"
    )
    return (
        f"{what}, {which} those of random changes of the weights do "
        f"({ranged([max(row.perturbed_low, -1), min(row.perturbed_high, 1)])}): "
        + ("it says something of the tuning." if which != "as" else "it says nothing of the tuning.")
    )


@drawing.styled()
def _figure(table: pd.DataFrame, stated: int) -> Figure:
    shifts = table[(table.measure == SHIFT) & (table.layer == stated)]
    figure, axes = drawing.panels(1, 2, height=1.4 + 0.2 * shifts.concept.nunique())
    order = shifts.groupby("concept").value.mean().sort_values().index
    for (name, colour), shift in zip(zip(SETS, drawing.PALETTE, strict=False), (-0.15, 0.15), strict=True):
        part = shifts[shifts["set"] == name].set_index("concept").loc[order]
        rows = np.arange(len(part)) + shift
        for row, low, high in zip(rows, part.perturbed_low, part.perturbed_high, strict=True):
            axes[0, 0].plot([low, high], [row, row], color=drawing.CONTROL, alpha=0.35, linewidth=5)
        reach = np.abs(part[["low", "high"]].to_numpy(float).T - part.value.to_numpy(float))
        axes[0, 0].errorbar(part.value, rows, xerr=reach, fmt="o", color=colour, label=f"{name} prompts")
    axes[0, 0].set_yticks(range(len(order)), list(order))
    axes[0, 0].set_xlabel("shift")
    drawing.zero(axes[0, 0], vertical=True)
    size = table[table.measure == SIZE].sort_values("layer")
    drawing.line(axes[0, 1], size.layer, size.value, size.low, size.high)
    drawing.control(
        axes[0, 1],
        size.layer,
        size.perturbed,
        size.perturbed_low,
        size.perturbed_high,
        label="random changes",
    )
    axes[0, 1].set_xlabel("layer")
    axes[0, 1].set_ylabel(SIZE)
    drawing.legend_below(figure, axes[0, 0])
    return figure
