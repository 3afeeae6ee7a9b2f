"""A control task for probes of texts: targets that only the identity of words decides, at random.

After Hewitt & Liang 2019 ("Designing and Interpreting Probes with Control Tasks", section 2): every kind of word gets a random
output, and a probe that reads the control as well as the concept shows its own capacity, not what the features stand for.
Their outputs are of single words. Here texts are probed, so a text's control value is the mean of random numbers, one for each
kind of word, over its words, and is given the annotation that ranks where it does: the control has exactly the annotations'
marginal distribution, and as many texts for each label.

A probe's score minus that of the control is its selectivity. It shows that the concept lies nearer to the surface of the
features than an arbitrary property of the same words does. It does not show that the concept is more than a property of
words: a list of emotion words is selective too, which is why the bag of words stands beside it. Words of an unseen group may
be new, for the control as for the concept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.preprocessing import normalize

from emoprobe.probes.estimators import Floats, Integers
from emoprobe.probes.tasks import Task

WORD = r"\w+|[^\w\s]"
DRAWS = 5
"""Control tasks made of dimensions, which are fitted along with them at little cost; for labels there is one."""


def control_targets(task: Task, texts: Sequence[str], rows: Integers, seed: int = 0) -> list[Floats]:
    """Return the targets of control tasks for these rows of the task, each (rows, concepts).

    There are DRAWS for dimensions and one for labels; `texts` are all of the task's.
    """
    generator = np.random.default_rng(seed)
    counts = CountVectorizer(token_pattern=WORD).fit_transform([texts[row] for row in rows])
    shares = normalize(counts.astype(np.float64), norm="l1")
    targets = task.targets[rows]
    deal = _dealt_classes if task.exclusive else _ranked_alike
    draws = DRAWS if task.kind == "dimension" else 1
    return [
        deal(shares @ generator.standard_normal((shares.shape[1], targets.shape[1])), targets)
        for _ in range(draws)
    ]


def _ranked_alike(values: Floats, targets: Floats) -> Floats:
    """Return each column's targets in the order of the values."""
    placed = np.empty_like(targets)
    np.put_along_axis(placed, values.argsort(0, kind="stable"), np.sort(targets, axis=0), 0)
    return placed


def _dealt_classes(values: Floats, targets: Floats) -> Floats:
    """Give each text one class, one with a high value for it, so that each class has as many texts as in the targets."""
    left = targets.sum(0).astype(int)
    spread = values.std(0)
    scaled = (values - values.mean(0)) / np.where(spread > 0, spread, 1)
    placed = np.zeros_like(targets)
    free = np.ones(len(values), dtype=bool)
    for place in scaled.ravel().argsort(kind="stable")[::-1]:
        text, label = divmod(int(place), values.shape[1])
        if free[text] and left[label]:
            placed[text, label], free[text] = 1, False
            left[label] -= 1
    return placed
