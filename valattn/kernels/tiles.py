"""Block sizes of the kernels, by head dimension: of each list the first is used; the benchmark times them all.

Those of 64 and 128 compile for Hopper without spilling registers, but for the last two of `BACKWARD_KEYS[128]`."""

from typing import NamedTuple


class Tiles(NamedTuple):
    """How many queries and keys a program takes at a time, and with how many warps and pipeline stages."""

    queries: int
    keys: int
    warps: int
    stages: int
    specialize: bool = False  # loads by a warp of their own


FORWARD = {
    64: [Tiles(128, 128, 8, 3), Tiles(128, 64, 4, 3), Tiles(128, 64, 8, 3), Tiles(64, 128, 4, 3)],
    128: [Tiles(128, 64, 8, 3), Tiles(128, 128, 8, 2), Tiles(64, 128, 4, 2), Tiles(64, 64, 4, 3)],
    256: [Tiles(128, 64, 8, 2), Tiles(64, 64, 4, 2)],
}
BACKWARD_QUERIES = {
    64: [Tiles(128, 128, 8, 2), Tiles(128, 64, 8, 3), Tiles(128, 64, 4, 3), Tiles(64, 64, 4, 3)],
    128: [Tiles(128, 64, 8, 2), Tiles(64, 64, 4, 2), Tiles(128, 32, 8, 3)],
    256: [Tiles(64, 32, 4, 1), Tiles(128, 32, 8, 1)],
}
BACKWARD_KEYS = {
    64: [Tiles(64, 128, 8, 3), Tiles(64, 128, 8, 2), Tiles(64, 64, 4, 3), Tiles(32, 128, 8, 3)],
    128: [Tiles(32, 128, 8, 2), Tiles(32, 128, 8, 3), Tiles(64, 128, 8, 2), Tiles(64, 64, 4, 2)],
    256: [Tiles(32, 64, 8, 1), Tiles(64, 64, 8, 1)],
}
FEW_QUERIES = Tiles(16, 64, 4, 3)  # decoding
INTERPRETED = Tiles(32, 16, 4, 1)  # on a CPU, small enough that short texts have several blocks


def block_width(d: int) -> int:
    """Return the head dimension as the kernels see it: the next of 64, 128 and 256; what is missing is read as zeros."""
    return next(width for width in (64, 128, 256) if d <= width)
