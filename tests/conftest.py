"""What all tests share: no network, and the corpora and models that a checkout may have beside it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from emoprobe.models import LiveModel
    from emoprobe.probes import ProbeSet

os.environ["HF_HUB_OFFLINE"] = (
    "1"  # before anything imports the hub's client: a test that reaches out shall fail
)
os.environ.pop("EMOPROBE_DATA", None)
# Tests compute with tiny tensors, which gain nothing from threads and lose much where cores are shared.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if shutil.which("nvidia-smi") is None:  # is read when triton is first imported, whoever does that
    os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """Hand files out in their order: by number of tests, the notebooks, few and long, would come last and keep one worker."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of shared corpora and models (EMOPROBE_SHARED, or ../shared), or skip the test."""
    folder = Path(os.environ.get("EMOPROBE_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(
            f"no shared corpora or models at {folder}; set EMOPROBE_SHARED to the folder that has them"
        )
    return folder


@pytest.fixture(scope="module")
def model() -> LiveModel:
    """Return a tiny random model; files that need another one have a fixture of their own."""
    from tiny import tiny_model

    return tiny_model("llama")


@pytest.fixture(scope="module")
def probes(model: LiveModel) -> ProbeSet:
    """Return probes of it with random directions, one of them of a hostile name."""
    import numpy as np
    from planted_probes import NAMES, planted_probes

    return planted_probes(model, np.random.default_rng(0).normal(size=(3, model.d_model)), NAMES)
