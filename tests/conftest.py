"""What every test shares: one compute thread a worker, Hypothesis without deadlines, the repository's paths."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Read when numpy and torch load, so set before any test module imports them: the workers already share the cores.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

settings.register_profile("qcc", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("qcc")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def digits(repository: Path) -> Path:
    """The folder of the small model that ships with qcc: `digits.onnx`, `calibration.npz`, `test.npz`, `labels.npz`."""
    return repository / "examples" / "digits"


@pytest.fixture(scope="session", autouse=True)
def auto_goes_without_tvm() -> Iterator[None]:
    """`--backend auto` means ONNX Runtime, whether TVM is installed or not: contests have tests of their own."""
    from qcc.backends import select

    fitting = select.fitting
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(select, "fitting", lambda target: [name for name in fitting(target) if name != "tvm"])
        yield
