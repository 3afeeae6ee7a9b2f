"""Make the environments in which peers live that cannot be installed beside emoprobe."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

OWN = "own"
"""The environment that runs this: emoprobe's, with the libraries that it is built on."""
PACKAGES = {
    "nnterp": ("nnterp==1.3.0", "nnsight==0.7.0", "transformers<5.24", "torch<2.14"),
    # transformers 5 is what these cannot live with, or (repeng) NumPy 2.
    "four": ("repeng==0.4.0", "steering-vectors==0.12.2", "pyvene==0.1.8", "transformers<5", "torch<2.14"),
}


def interpreter(name: str, folder: Path) -> str:
    """Return the Python of an environment, which is made first where it is not there."""
    if name == OWN:
        return sys.executable
    place = folder / name
    python, made = place / "bin" / "python", place / "made"
    if not made.exists():
        print(f"installing {', '.join(PACKAGES[name])} into {place}", flush=True)
        venv.create(place, with_pip=True, clear=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES[name]], check=True)
        made.touch()
    return str(python)
