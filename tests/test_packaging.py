"""A wheel of qcc holds every module, installs alone, and starts quickly without torch."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
import venv
import zipfile
from pathlib import Path

import pytest

START_LIMIT_SECONDS = 0.5
LINKED = ("autotune", "backends", "frontend", "ir", "passes")
SHIPPED_SUFFIXES = (".py", ".toml", ".mlir", ".css", ".js", ".h", ".c")

TORCH_FREE_HELP = """
import sys
from qcc.__main__ import main
sys.argv = ["qcc", "--help"]
try:
    code = main()
except SystemExit as stop:
    code = stop.code
assert code in (None, 0), code
heavy = {"torch", "tvm", "onnxruntime", "transformers"} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that the build leaves nothing in the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    copy.mkdir()
    for name in ("qcc", *LINKED):
        shutil.copytree(
            repository / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.qcc")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, copy / name)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(copy), cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_wheel_holds_every_module_and_data_file(wheel: Path, repository: Path) -> None:
    expected = {
        path.relative_to(repository).as_posix()
        for path in (repository / "qcc").rglob("*")
        if path.suffix in SHIPPED_SUFFIXES
    } | {
        f"qcc/{path.relative_to(repository).as_posix()}"
        for name in LINKED
        for path in (repository / name).rglob("*")
        if path.suffix in SHIPPED_SUFFIXES
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == expected


@pytest.mark.slow
def test_wheel_runs_in_a_fresh_environment(wheel: Path, repository: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    python = str(environment / "bin" / "python")
    run(python, "-m", "pip", "install", "-q", "-c", str(repository / "constraints.txt"), str(wheel), cwd=tmp_path)
    shown = run(str(environment / "bin" / "qcc"), "--help", cwd=tmp_path)
    assert "compile" in shown
    run(python, "-c", TORCH_FREE_HELP, cwd=tmp_path)
    where = run(python, "-c", "import qcc.ir; print(qcc.ir.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(environment)


def test_help_loads_no_heavy_library(repository: Path) -> None:
    """Here torch is installed and could be imported; in the fresh environment it could not."""
    run(sys.executable, "-c", TORCH_FREE_HELP, cwd=repository)


@pytest.mark.parametrize("arguments", [("-c", "import qcc"), ("-m", "qcc", "--help")], ids=["import", "help"])
def test_start_takes_less_than_half_a_second(repository: Path, arguments: tuple[str, ...]) -> None:
    seconds: list[float] = []
    for _ in range(3):
        start = time.perf_counter()
        run(sys.executable, *arguments, cwd=repository)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < START_LIMIT_SECONDS, f"took {seconds}; see `python -X importtime {' '.join(arguments)}`"


def run(*command: str, cwd: Path) -> str:
    """The output of `command`, which must succeed."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout
