"""From a sweep over behaviours to rates with intervals, and to what can be said at all at this model's baseline.

A model that never does a thing, or always, or that gives no answer which could be graded, shows nothing when it is steered and
goes on so. That is a finding about the model, not about the direction, and is told apart from "no effect" here.
"""

from __future__ import annotations

import math

import pandas as pd
from scipy.stats import norm

from emoprobe.steering.behaviours.trials import ANSWERED, GRADED, LOG_ODDS
from emoprobe.steering.dose_response import FLATTER, STEERED, Sweep

GIVES_ANSWERS = 0.5
"""Share of replies that could be graded, or probability of the two letters, below which a model does not take part."""


def wilson(rate: float, n: int) -> tuple[float, float]:
    """Return Wilson's (1927) 95 % interval of a rate over n independent units, from 0 to 1; NaN for none.

    The rate may be a mean of shares, of several replies per unit. That counts replies to one scenario as one, the most careful
    reading, and unlike resamples of scenarios the interval has a width where the rate is 0 or 1.
    """
    if n < 1 or math.isnan(rate):
        return math.nan, math.nan
    z = float(norm.ppf(0.975))
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, centre - reach), min(1.0, centre + reach)


def rates(sweep: Sweep) -> pd.DataFrame:
    """Return one row per strength, condition, seed and measure that is a share: rate, low, high, scenarios.

    The 95 % interval is `wilson`'s over scenarios; those without a value (NaN) are not counted. Measures that are no shares
    (log-odds) are left out: see `Sweep.frame`.
    """
    keys = ["strength", "condition", "seed", "measure"]
    shares = sweep.raw[~sweep.raw.measure.str.endswith(LOG_ODDS)]
    rows = []
    for key, group in shares.groupby(keys, sort=False, dropna=False):
        value, n = float(group["value"].mean()), int(group["value"].count())
        rows.append((*key, value, *wilson(value, n), n))
    table = pd.DataFrame(rows, columns=[*keys, "rate", "low", "high", "scenarios"])
    return table.astype({"seed": "Int64"})


def verdicts(sweep: Sweep) -> pd.DataFrame:
    """Return one row per measured behaviour: what it is unsteered, how it goes with strength, and what that comes to.

    `baseline` is the rate at strength 0 (`low`, `high`: Wilson's), `answers` how many of its answers could be graded there (for
    choices, the probability of the two letters), `lowest` and `highest` the rates over all strengths. `slope` and
    `beside_random` are those of `Sweep.summary`, per unit of strength. `verdict` is one of

    - "cannot be measured at this model's baseline: …", where fewer than half of its answers count as answers, or where the
      behaviour is at its floor or ceiling (at most one scenario's worth away) and no strength takes it off;
    - "rises with strength" or "falls with strength", where the slope's interval excludes 0 and it is steeper than random
      directions of equal norm make it, or goes the other way from them;
    - "changes less with strength than under random directions", where these have a trend and the slope is flatter: no effect
      of the direction's own, whichever way it goes;
    - "no change beyond random directions".
    """
    table = rates(sweep)
    steered = table[table.condition == STEERED]
    summary = sweep.summary().set_index("measure")
    rows = []
    for measure, part in steered.groupby("measure", sort=False):
        name, what = str(measure).rsplit(": ", 1)
        if what in (GRADED, ANSWERED):
            continue
        unsteered = part[part.strength == 0].iloc[0]
        answers = steered[
            (steered.strength == 0) & steered.measure.isin([f"{name}: {GRADED}", f"{name}: {ANSWERED}"])
        ].rate
        row = {
            **{"behaviour": name, "what": what, "scenarios": int(unsteered.scenarios)},
            **{"baseline": unsteered.rate, "low": unsteered.low, "high": unsteered.high},
            "answers": float(answers.iloc[0]) if len(answers) else math.nan,
            **{"lowest": part.rate.min(), "highest": part.rate.max()},
            **{"slope": summary.slope[measure], "beside_random": summary.beside_random[measure]},
        }
        rows.append({**row, "verdict": _verdict(row)})
    return pd.DataFrame(rows)


def _verdict(row: dict[str, object]) -> str:
    unmeasured = "cannot be measured at this model's baseline: "
    baseline, answers, slope = (float(row[name]) for name in ("baseline", "answers", "slope"))  # type: ignore[arg-type]
    lowest, highest, n = float(row["lowest"]), float(row["highest"]), int(row["scenarios"])  # type: ignore[arg-type, call-overload]
    if answers < GIVES_ANSWERS:
        return unmeasured + f"{answers:.0%} of its answers are answers at all"
    flatter = row["beside_random"] == FLATTER
    if row["beside_random"] and not flatter:
        return f"{'rises' if slope > 0 else 'falls'} with strength"
    if n == 0:
        return unmeasured + "none of its scenarios could be counted"
    if highest <= 1 / n and baseline <= 1 / n:
        return unmeasured + f"at its floor ({baseline:.0%}), and no strength takes it off"
    if lowest >= 1 - 1 / n and baseline >= 1 - 1 / n:
        return unmeasured + f"at its ceiling ({baseline:.0%}), and no strength takes it off"
    if flatter:
        return "changes less with strength than under random directions"
    return "no change beyond random directions"
