"""In a checkout the code folders lie beside this one; in a wheel, inside it.

`probes/` is always imported as `emoprobe.probes`. An installed copy needs nothing from this file: it serves
whoever runs Python at the root of a clone.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
BESIDE = {"emoprobe.probes", "emoprobe.steering", "emoprobe.valattn"}


class Beside:
    """A finder that is asked last, after the ordinary ones found nothing."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [str(ROOT)]) if name in BESIDE else None


if (ROOT / "pyproject.toml").is_file():
    sys.meta_path.append(Beside)  # a class serves as well as an instance
