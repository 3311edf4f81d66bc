"""Functions and flags are the same words; a change of either is deliberate: mend `signatures.txt` with it."""

from __future__ import annotations

import inspect
from pathlib import Path

import typer

import qcc
from qcc import api
from qcc.api.options import Options
from qcc.cli import build

GOLDEN = Path(__file__).with_name("signatures.txt")
FUNCTIONS = ("compile", "plan", "load", "verify", "bench", "evaluate", "report", "simulate", "export")

IN_PYTHON_ONLY = {"inputs", "progress", "pick"}
ON_THE_COMMAND_LINE_ONLY = {"json", "quiet", "debug", "explain", "dry_run"}
OTHER_WORDS = {
    "image": {"image_size", "image_mean", "image_std", "image_order"},  # one object in Python, its parts as flags
    "input_shapes": {"input_shape"},  # a mapping in Python, one flag an input
}


def spelled(function: object) -> str:
    """One parameter a line, as in the source."""
    signature = inspect.signature(function)  # type: ignore[arg-type]
    lines, star = [], False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            lines.append("    *")
            star = True
        lines.append(f"    {parameter}".replace(" at 0x", " at "))
    return "\n".join([f"{function.__name__}(", *lines, f") -> {signature.return_annotation}"])  # type: ignore[attr-defined]


def test_signatures_are_the_pinned_ones() -> None:
    found = "\n\n".join(spelled(getattr(api, name)) for name in FUNCTIONS) + "\n"
    found = "\n".join(line.split(" = <")[0] for line in found.splitlines()) + "\n"
    assert found == GOLDEN.read_text(), f"if this is meant, write to {GOLDEN.name}:\n{found}"


def flags(command: str) -> set[str]:
    """The parameters of a command as Python names."""
    group = typer.main.get_command(build())
    return {str(parameter.name) for parameter in group.commands[command].params} - {"help"}  # type: ignore[attr-defined]


def keywords(name: str) -> set[str]:
    return set(inspect.signature(getattr(api, name)).parameters)


def test_flags_of_compile_are_its_keyword_arguments() -> None:
    expected = keywords("compile") - IN_PYTHON_ONLY
    for name, parts in OTHER_WORDS.items():
        expected = (expected - {name}) | parts
    assert flags("compile") - ON_THE_COMMAND_LINE_ONLY == expected


def test_flags_of_verify_bench_and_report_are_their_keyword_arguments() -> None:
    assert flags("verify") - ON_THE_COMMAND_LINE_ONLY == keywords("verify") - {"seed"}
    assert flags("bench") - ON_THE_COMMAND_LINE_ONLY == keywords("bench") - {"inputs"}
    assert flags("report") - ON_THE_COMMAND_LINE_ONLY == keywords("report")
    assert flags("eval") - ON_THE_COMMAND_LINE_ONLY == keywords("evaluate") - {"progress"} | {"text"}


def test_every_command_takes_the_common_flags() -> None:
    group = typer.main.get_command(build())
    for name in group.commands:  # type: ignore[attr-defined]
        assert {"json", "quiet", "debug"} <= flags(name), name


def test_defaults_of_flags_are_those_of_keyword_arguments() -> None:
    group = typer.main.get_command(build())
    python = {n: p.default for n, p in inspect.signature(api.compile).parameters.items()}
    recorded = {f: getattr(Options(), f) for f in Options.__dataclass_fields__}
    for parameter in group.commands["compile"].params:  # type: ignore[attr-defined]
        name = str(parameter.name)
        if name in python and name not in ("model", "ignore", "include", "dynamic", "output"):
            assert parameter.default == python[name], name
            if name in recorded and python[name] is not None:
                assert recorded[name] == python[name], name


def test_the_package_offers_the_public_names() -> None:
    for name in qcc.__all__:
        assert getattr(qcc, name) is not None
    assert qcc.compile is api.compile
    assert qcc.report is api.report
    assert not hasattr(qcc, "no_such_name")
