"""The digits network compiled in each scheme, once a session."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from qcc import api
from qcc.api import Artifact

Compiled = Callable[..., Artifact]


@pytest.fixture(scope="session")
def in_scheme(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """`in_scheme("W8A8")`: the artifact of the digits network, calibrated where the scheme needs it."""

    @cache
    def compiled(scheme: str) -> Artifact:
        calibration: Any = digits / "calibration.npz" if scheme == "W8A8" else None
        folder = tmp_path_factory.mktemp("digits") / f"{scheme}.qcc"
        return api.compile(digits / "digits.onnx", scheme=scheme, calibration=calibration, output=folder)

    return compiled
