"""Dose–response: what happens as the strength of an intervention grows, beside controls of equal norm.

`sweep` runs measures (see `emoprobe.steering.measures` and `generations`) at each strength, under the intervention, under
random directions or valuations, at the opposite strength and under an unrelated concept, and keeps every text's value; what
that says is `Sweep`'s business. It knows nothing of what is measured. The controls are there because any push of the same
size might do as much.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from emoprobe.errors import InputError
from emoprobe.interventions import Intervention, Positions
from emoprobe.layers import Layers
from emoprobe.models import LiveModel
from emoprobe.progress import track
from emoprobe.steering.dose_response import NEGATED, RANDOM, STEERED, UNRELATED, Floats, Sweep
from emoprobe.steering.edits import add
from emoprobe.steering.kept_runs import KeptRuns, described
from emoprobe.steering.measures import Measure
from emoprobe.steering.row_wise import RowWise, run_together
from emoprobe.steering.vectors import Vector, random_like
from emoprobe.valattn import Valuation, biases

if TYPE_CHECKING:
    from emoprobe.workers import RayWorkers

Edit: TypeAlias = Callable[[LiveModel, Vector, float, Layers, Positions], Sequence[Intervention]]
"""What is done with a direction: model, direction, strength, layers, positions → interventions. `add` and `rotate` are such."""
Arm: TypeAlias = "tuple[str, int | None]"
"""A condition, and the seed of a random control."""
OPPOSITE: Arm = (NEGATED, None)


class NonFiniteWarning(UserWarning):
    """A measure gave numbers that are not finite, and they were recorded as NaN."""


def sweep(
    model: LiveModel,
    intervention: Vector | Valuation,
    strengths: Sequence[float],
    prompts: Sequence[str],
    measures: Sequence[Measure],
    *,
    layers: Layers | None = None,
    positions: Positions = "all",
    edit: Edit = add,
    controls: int = 5,
    unrelated: Vector | Valuation | None = None,
    seed: int = 0,
    together: int = 16,
    out: str | os.PathLike[str] | None = None,
    workers: RayWorkers | None = None,
    progress: bool = True,
) -> Sweep:
    """Measure a model at each strength of an intervention, and under controls of equal norm.

    `intervention` is a direction or bare tensor, which `edit` puts into the residual stream: by default `add`, whose strengths
    are fractions of the mean residual norm; `rotate`, whose strengths are radians; or any function of the same arguments, such
    as `lambda *given: scheduled(add(*given), [1, 0.5])`. Or it is a valuation, which biases attention (strengths are λ).
    `layers` is 0.66 by default for the former and all that it has for the latter. `measures` read `prompts`, or texts of their
    own; each is first taken of the untouched model, and those are the values at strength 0, which is always among the
    strengths. `positions` is a name or character spans that fit every text; a valuation has none.

    Controls are `controls` random ones, `intervention.random_like(seed)` and the seeds that follow; the opposite strength
    (condition "negated", run where it is not among the strengths); and, where given, an `unrelated` concept.

    Up to `together` runs share the forward passes of measures that are row-wise, as all of `emoprobe.steering.measures` are
    (see `emoprobe.steering.row_wise`): each prompt is one row for each run, and values are those of one run at a time up to the
    rounding of larger products. Other measures are called once for each run.

    With `out`, a folder, each run is kept there as a Parquet file once it is done, and the same call resumes; strengths and
    controls may be added. `workers`, see `emoprobe.ray_workers`, take groups of runs side by side; measures are sent to them.
    Raises `InputError` for a folder that holds another sweep, or that another process is writing to, or a run that is damaged;
    for strengths that are not finite, measures of the same name, and what `edit` and `inject` refuse. Numbers that are not
    finite, as a model pushed too hard gives, become NaN with a `NonFiniteWarning`.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts or not measures:
        raise InputError("a sweep needs at least one prompt and one measure")
    if together < 1:
        raise InputError(f"together={together} runs cannot share a pass: give 1, one run at a time, or more")
    doses = _checked(strengths)
    subjects: dict[Arm, Vector | Valuation] = {(STEERED, None): intervention}
    for control in range(seed, seed + controls):
        subjects[RANDOM, control] = (
            intervention.random_like(control)
            if isinstance(intervention, Valuation)
            else random_like(intervention, control)
        )
    if unrelated is not None:
        subjects[UNRELATED, None] = unrelated
    placers = {arm: _placer(model, item, edit, layers, positions) for arm, item in subjects.items()}
    for place in placers.values():
        place(0.0)  # what cannot be placed is refused at once
    untouched = _named(measure(model, prompts) for measure in measures)
    asked = {
        "model": model.fingerprint(),
        "intervention": described(intervention),
        "unrelated": described(unrelated),
        "edit": described(edit),
        "measures": [described(measure) for measure in measures],
        "layers": repr(layers),
        "positions": described(positions),
        "prompts": prompts,
        "seed": seed,
    }
    runs = [(arm, dose) for dose in doses for arm in placers]
    # −0.3 and 0.1 × 3 are opposite, though not to the last bit.
    runs += [(OPPOSITE, dose) for dose in doses if not any(math.isclose(-dose, other) for other in doses)]
    rows = [row for arm in dict.fromkeys(arm for arm, _ in runs) for row in _rows(untouched, 0.0, arm)]
    placers[OPPOSITE] = lambda dose: placers[STEERED, None](-dose)
    named = {
        "-".join(str(part) for part in (*arm, dose) if part is not None): (arm, dose)
        for arm, dose in runs
        if dose
    }
    # Groups are those of a sweep that nothing has stopped: rows that are read with fewer others differ in their last digits.
    groups = [list(named)[first : first + together] for first in range(0, len(named), together)]
    with KeptRuns.alone(out, asked, untouched) as kept:
        work = (
            [(placers[arm](dose), name not in kept) for name in group for arm, dose in [named[name]]]
            for group in groups
            if any(name not in kept for name in group)
        )
        given: dict[str, Any] = {"prompts": prompts, "measures": measures}
        if workers is None:
            values = chain.from_iterable(map(partial(_measured, model, **given), work))
        else:
            workers.check_model(model)
            values = chain.from_iterable(workers.map(partial(_in_worker, **given), work))
        for name, (arm, dose) in track(named.items(), "sweeping", wanted=progress):
            rows += _rows(kept.run(name, partial(next, values)), dose, arm)
    raw = pd.DataFrame(rows, columns=["strength", "condition", "seed", "measure", "text", "value"])
    return Sweep(raw.astype({"seed": "Int64"}), _subject(intervention), model.name)


def _placer(
    model: LiveModel, item: Vector | Valuation, edit: Edit, layers: Layers | None, positions: Positions
) -> Callable[[float], list[Intervention]]:
    """Return what makes interventions of a strength."""
    if not isinstance(item, Valuation):
        return lambda strength: [*edit(model, item, strength, 0.66 if layers is None else layers, positions)]
    if not (isinstance(positions, str) and positions == "all"):
        raise InputError('a valuation weighs every token against every other: leave positions at "all"')
    return lambda strength: [*biases(model, item, strength, layers)]


def _measured(
    model: LiveModel,
    runs: Sequence[tuple[Sequence[Intervention], bool]],
    prompts: Sequence[str],
    measures: Sequence[Measure],
) -> Iterator[dict[str, Floats]]:
    """Yield what is measured under interventions that share passes, of those runs that are wanted."""
    shared = {
        measure: run_together(model, partial(measure.passes, model, prompts), [items for items, _ in runs])
        for measure in measures
        if isinstance(measure, RowWise)
    }
    for number, (interventions, wanted) in enumerate(runs):
        if not wanted:
            continue
        with model.intervene(*interventions):
            found = _named(
                shared[measure][number] if isinstance(measure, RowWise) else measure(model, prompts)
                for measure in measures
            )
        yield found


def _in_worker(
    model: LiveModel,
    runs: Sequence[tuple[Sequence[Intervention], bool]],
    prompts: Sequence[str],
    measures: Sequence[Measure],
) -> list[dict[str, Floats]]:
    """Return what `_measured` yields; before it, as in any sweep, measures see the untouched model."""
    for measure in measures:
        measure(model, prompts)
    return list(_measured(model, runs, prompts, measures))


def _named(measured: Iterable[dict[str, Tensor]]) -> dict[str, Floats]:
    found: dict[str, Floats] = {}
    for part in measured:
        for name, values in part.items():
            if name in found:
                raise InputError(f'two measures are called "{name}": give one of them another name=')
            found[name] = torch.as_tensor(values).detach().cpu().double().numpy()
            if found[name].ndim != 1:
                raise InputError(
                    f'"{name}" is of shape {found[name].shape}: a measure gives one number per text'
                )
    return found


def _rows(values: dict[str, Floats], strength: float, arm: Arm) -> list[tuple[object, ...]]:
    """Return one row of the raw table for each measure and text; what is not finite is NaN, with a warning."""
    rows: list[tuple[object, ...]] = []
    for measure, found in values.items():
        _warn_unless_finite(found, measure, strength, arm[0])
        kept = np.where(np.isfinite(found), found, np.nan)
        rows += [(strength, *arm, measure, text, value) for text, value in enumerate(kept)]
    return rows


def _warn_unless_finite(values: Floats, measure: str, strength: float, condition: str) -> None:
    bad = int((~np.isfinite(values)).sum())
    if bad:
        warnings.warn(
            f"at strength {strength:g} ({condition}), {measure} was not finite for {bad} of {len(values)} texts, recorded "
            "as NaN",
            NonFiniteWarning,
            stacklevel=4,
        )


def _checked(strengths: Sequence[float]) -> list[float]:
    given = [float(strength) for strength in strengths]
    if not given or not all(map(math.isfinite, given)):
        raise InputError(f"strengths={list(strengths)} is not a list of finite numbers")
    return sorted({0.0, *given})


def _subject(intervention: Vector | Valuation) -> str:
    if isinstance(intervention, Valuation):
        return f"valuation ({', '.join(intervention.dimensions)})"
    return "vector" if isinstance(intervention, Tensor) else intervention.concept
