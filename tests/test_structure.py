"""The house stands: links in place, one name a module, no code run from data, files that introduce themselves."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINKED = ("autotune", "backends", "frontend", "ir", "passes")
SOURCE_FOLDERS = ("qcc", *LINKED, "benchmarks", "examples")


def python_files(*folders: str) -> list[Path]:
    """Every Python file below the named folders, each once: links are not followed."""
    return sorted(path for folder in folders for path in _walk(ROOT / folder))


def _walk(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        yield from (Path(place) / name for name in names if name.endswith(".py"))


SOURCES = python_files(*SOURCE_FOLDERS)
ALL_FILES = python_files(*SOURCE_FOLDERS, "tests")


def each(files: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", files, ids=lambda path: str(path.relative_to(ROOT)))


@pytest.mark.parametrize("name", LINKED)
def test_package_folder_is_a_relative_link_to_the_top_level(name: str) -> None:
    link = ROOT / "qcc" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..") / name
    assert link.resolve() == ROOT / name
    assert (ROOT / name).is_dir()


def test_there_are_files_to_look_at() -> None:
    assert len(SOURCES) > 20
    assert len(set(ALL_FILES)) == len(ALL_FILES)


@pytest.mark.parametrize("name", LINKED)
def test_folder_of_modules_is_a_package(name: str) -> None:
    """setuptools packs only folders with an `__init__.py`; a folder of data alone needs none."""
    bare = {path.parent for path in python_files(name) if not (path.parent / "__init__.py").exists()}
    assert not bare, f"add an __init__.py to {sorted(map(str, bare))}"


@each(ALL_FILES)
def test_modules_are_imported_as_qcc(path: Path) -> None:
    found = imports_of_linked_folders(ast.parse(path.read_text()))
    assert not found, f"import these through qcc: {found}"


def imports_of_linked_folders(tree: ast.Module) -> list[str]:
    """The absolute imports that name `ir`, `passes` ... at top level: each would load a second copy of `qcc.ir` ..."""
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.append(node.module)
    return [name for name in names if name.split(".")[0] in LINKED]


@each(SOURCES)
def test_source_never_runs_code_from_data(path: Path) -> None:
    found = unsafe_loads(ast.parse(path.read_text()))
    assert not found, f"these can run code from a crafted file: {found}"


def unsafe_loads(tree: ast.Module) -> list[str]:
    """Each import of `pickle`, `weights_only=False` and `allow_pickle=True` in `tree`, as text."""
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found += [ast.unparse(node) for module in modules if module in {"pickle", "cloudpickle", "dill", "joblib"}]
        elif isinstance(node, ast.keyword) and ast.unparse(node) in {"weights_only=False", "allow_pickle=True"}:
            found.append(ast.unparse(node))
    return found


@each(ALL_FILES)
def test_file_opens_with_a_docstring(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


@each(SOURCES)
def test_source_file_has_at_most_400_lines(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= 400, "over 400 lines is two rooms"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("import ir", ["ir"]),
        ("from passes.algorithms import rtn", ["passes.algorithms"]),
        ("def f():\n    import frontend.onnx_file as x", ["frontend.onnx_file"]),
        ("import qcc.ir\nfrom qcc.passes import fold\nfrom . import ir\nfrom .ir import x\nimport irregular", []),
    ],
)
def test_import_scan_sees_top_level_folders_only(text: str, names: list[str]) -> None:
    assert imports_of_linked_folders(ast.parse(text)) == names


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("import pickle", 1),
        ("from pickle import load", 1),
        ("torch.load(f, weights_only=False)", 1),
        ("np.load(f, allow_pickle=True)", 1),
        ("import pickletools\ntorch.load(f, weights_only=True)\nnp.load(f, allow_pickle=False)", 0),
    ],
)
def test_unsafe_scan_sees_what_runs_code(text: str, count: int) -> None:
    assert len(unsafe_loads(ast.parse(text))) == count
