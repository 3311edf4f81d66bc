"""The command line: one file a command, and this folder is the registry. Files that begin with `_` are shared by all.

Each command file offers a function `command` whose docstring is its help. Modules import only what `--help` needs; the
rest of qcc is loaded when a command runs.
"""

from __future__ import annotations

import importlib
import pkgutil

import typer

from ._frame import guard

_ORDER = ("compile", "run", "verify", "bench", "eval", "simulate", "export", "report", "inspect", "list", "opt")
"""Commands as a newcomer meets them; others follow by name."""


def names() -> list[str]:
    """The names of all commands."""
    found = {m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")}
    return [n for n in _ORDER if n in found] + sorted(found - set(_ORDER))


def build() -> typer.Typer:
    """The command line as a Typer application."""
    app = typer.Typer(
        name="qcc",
        help="The compiler for quantized models: a network goes in; a small, fast, checked artifact comes out.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_version)
    for name in names():
        app.command(name)(importlib.import_module(f"{__name__}.{name}").command)
    return app


def run(arguments: list[str]) -> int:
    """Run one command; gives the exit code."""
    return guard(lambda: build()(arguments, standalone_mode=False, prog_name="qcc"), arguments)


def _show_version(wanted: bool) -> None:
    if wanted:
        from qcc import __version__

        typer.echo(f"qcc {__version__}")
        raise typer.Exit


def _version(
    version: bool = typer.Option(
        False, "--version", is_eager=True, help="Show the version and leave.", callback=_show_version
    ),
) -> None:
    """The compiler for quantized models: a network goes in; a small, fast, checked artifact comes out."""
    del version
