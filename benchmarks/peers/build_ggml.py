"""Builds ggml for this processor out of the source archive of xllamacpp, whose wheel only knows AVX2.

    python -m benchmarks.peers.build_ggml [--archive FILE.tar.gz] [--jobs N]

The archive is the one of the installed wheel's release, so both hold the same ggml. The libraries go to qcc's cache, in
`peers/ggml-RELEASE`. It needs cmake, a C++ compiler and, without `--archive`, the package index.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath

from qcc.ir.cache import cache_folder
from qcc.ir.errors import BadInput, MissingExtra, QccError

PACKAGE = "xllamacpp"
SOURCE = "thirdparty/llama.cpp/ggml"
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DGGML_NATIVE=ON",
    "-DGGML_LLAMAFILE=ON",  # the tiled products of llamafile, on in llama.cpp but off in ggml alone
    "-DGGML_OPENMP=OFF",  # its own thread pool can be put to sleep between two timings; OpenMP's goes on spinning
    "-DGGML_CCACHE=OFF",
    "-DGGML_BUILD_TESTS=OFF",
    "-DGGML_BUILD_EXAMPLES=OFF",
    "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
    "-DCMAKE_INSTALL_RPATH=$ORIGIN",
)


def library() -> Path:
    """The CPU library of the native build; MissingExtra where it has not been built."""
    path = _folder() / "libggml-cpu.so"
    if not path.is_file():
        raise MissingExtra("ggml is not built for this processor", hint="python -m benchmarks.peers.build_ggml")
    return path


def build(archive: Path | None = None, jobs: int = 0) -> Path:
    """Build and return the CPU library; `archive` is a source archive at hand, else pip fetches it."""
    if shutil.which("cmake") is None:
        raise MissingExtra("cmake is missing", hint="apt-get install cmake, or pip install cmake")
    target = _folder()
    with tempfile.TemporaryDirectory(prefix="ggml-") as name:
        scratch = Path(name)
        source = _extract(archive or _download(scratch), scratch / "source")
        _run("cmake", "-S", str(source), "-B", str(scratch / "build"), *OPTIONS)
        _run("cmake", "--build", str(scratch / "build"), "--target", "ggml-cpu", "-j", str(jobs or os.cpu_count() or 1))
        target.mkdir(parents=True, exist_ok=True)
        for path in (scratch / "build").rglob("libggml*.so*"):
            if not path.is_symlink():
                # Beside the running one, then renamed: a process that has it loaded keeps the old file.
                shutil.copyfile(path, target / f"{path.name}.new")
                (target / f"{path.name}.new").replace(target / _loaded_name(path.name))
    return library()


def _folder() -> Path:
    try:
        return cache_folder() / "peers" / f"ggml-{version(PACKAGE)}"
    except PackageNotFoundError as error:
        raise MissingExtra(f"{PACKAGE} is not installed", hint=f"pip install {PACKAGE}") from error


def _loaded_name(name: str) -> str:
    """The name under which the loader looks a library up: `libggml-base.so.0.26.0` is asked for as `.so.0`."""
    stem, _, release = name.partition(".so")
    return f"{stem}.so" if stem == "libggml-cpu" else f"{stem}.so{'.'.join(release.split('.')[:2])}"


def _download(scratch: Path) -> Path:
    wanted = f"{PACKAGE}=={version(PACKAGE)}"
    _run(sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "-d", str(scratch), wanted)
    return next(iter(scratch.glob(f"{PACKAGE}-*.tar.gz")))


def _extract(archive: Path, target: Path) -> Path:
    """The folder of ggml's sources, of which alone is unpacked."""
    if not archive.is_file():
        raise BadInput(f"{archive}: no such file")
    with tarfile.open(archive) as tar:
        inside = [m for m in tar.getmembers() if f"/{SOURCE}/" in f"/{PurePosixPath(m.name)}"]
        tar.extractall(target, members=inside, filter="data")
    found = [p for p in target.glob(f"*/{SOURCE}") if (p / "CMakeLists.txt").is_file()]
    if not found:
        raise BadInput(f"{archive}: holds no {SOURCE}", hint=f"give the source archive of {PACKAGE}")
    # The template of pkg-config's file is left out of the archive, and CMake stops without one.
    (found[0] / "ggml.pc.in").touch()
    return found[0]


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BadInput(f"{' '.join(command[:4])} ... failed", hint=(done.stderr or done.stdout)[-1500:])


def main() -> None:
    """Build and print where the library lies."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--archive", type=Path, help="a source archive at hand")
    parser.add_argument("--jobs", type=int, default=0, help="compiler processes (default: one a core)")
    options = parser.parse_args()
    try:
        print(build(options.archive, options.jobs))
    except QccError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
