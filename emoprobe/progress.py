"""Progress of long work, shown where that is wanted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def track(
    items: Iterable[Item], description: str, wanted: bool, total: int | None = None, completed: int = 0
) -> Iterator[Item]:
    """Yield the items, and meanwhile show how many are done and how long the rest will take, where that is wanted.

    `total` is how many there are, for those that do not know their length, and `completed` how many were done before.
    """
    if not wanted:
        yield from items
        return
    from emoprobe.bars import bars  # what draws it is loaded where something is drawn

    with bars(True) as bar:
        yield from bar.track(items, total=total, completed=completed, description=description)
