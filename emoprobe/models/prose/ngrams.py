"""An interpolated modified Kneser–Ney n-gram model over token ids (Chen & Goodman 1999), to compare with."""

from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class _Order(NamedTuple):
    """The n-grams of one order, each the place of its context in the order below, times V, plus its last token.

    By n-gram: `grams` (sorted) and `left`, the count less its discount. By context: `total` of the counts and `freed`,
    the share that the discounts leave to shorter contexts.
    """

    grams: Array
    left: Array
    total: Array
    freed: Array


class KneserNey:
    """The probabilities of an n-gram model, learnt from one row of token ids below `vocabulary`.

    Five orders of 48 million tokens take a few gigabytes of memory and some minutes.
    """

    def __init__(self, ids: Array, vocabulary: int, order: int = 5) -> None:
        self._vocabulary = vocabulary
        self._orders: list[_Order] = []
        grams, places, contexts = np.zeros(1, np.int64), np.zeros(len(ids), np.int32), 1
        for n in range(1, order + 1):
            # Places of the context that ends before each token. The row is a ring: its first tokens follow its last.
            before = np.roll(places, 1).astype(np.int64)
            longer, first, longer_places = _unique(before * vocabulary + ids)
            if n > 1:  # a shorter n-gram counts once for every different token before it
                self._orders.append(_discounted(grams, np.bincount(places[first]), contexts, vocabulary))
                contexts = len(grams)
            grams, places = longer, longer_places
        self._orders.append(_discounted(grams, np.bincount(places), contexts, vocabulary))

    def log_probs(self, ids: Array) -> Array:
        """Return the log-probability in nats (token,) of each token of a row after those before it."""
        probability = np.full(len(ids), 1 / self._vocabulary)
        place = np.zeros(len(ids), np.int64)  # of each token's context; -1 where training has none such
        for grams, left, total, freed in self._orders:
            keys = place * self._vocabulary + ids
            found = np.searchsorted(grams, keys).clip(max=len(grams) - 1)
            seen = (place >= 0) & (grams[found] == keys)
            here = np.where(seen, left[found], 0.0) / total[place] + freed[place] * probability
            probability = np.where((place >= 0) & (total[place] > 0), here, probability)
            place = np.append(-1, np.where(seen, found, -1)[:-1])
        return np.asarray(np.log(probability))


def _unique(keys: Array) -> tuple[Array, Array, Array]:
    """Return the different keys in order, where each comes first, and each key's place among them (`np.unique`, leaner)."""
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    new = np.append(True, keys[1:] != keys[:-1])
    places = np.empty(len(keys), np.int32)
    places[order] = np.cumsum(new, dtype=np.int32) - 1
    return keys[new], order[new], places


def _discounted(grams: Array, counts: Array, contexts: int, vocabulary: int) -> _Order:
    """Take off each count the discount for counts of one, two or more that leaving one out suggests."""
    counts = np.append(counts, np.zeros(len(grams) - len(counts), counts.dtype))
    of = np.array([(counts == n).sum() for n in range(1, 5)])  # how many n-grams were counted once, twice, …
    ratios = of[1:] / np.maximum(of[:-1], 1)
    share = 1 / (1 + 2 * ratios[0])
    discounts = np.arange(4) - np.append(0, np.arange(2, 5) * share * ratios)
    discount = discounts.clip(0, np.arange(4))[counts.clip(max=3)]
    context = grams // vocabulary
    total = np.bincount(context, counts, contexts)
    freed = np.bincount(context, discount, contexts) / np.maximum(total, 1)
    return _Order(grams, (counts - discount).astype(np.float32), total, freed)
