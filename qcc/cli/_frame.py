"""What every command shares: the flags `--json --quiet --debug`, the streams, and the exit codes.

Results for machines are one JSON object, the last line of stdout; progress and tables for people go to stderr. Exit
codes: 0 done, 1 a check failed, 2 bad input or usage, 3 not supported, 4 something is missing, 70 an internal error,
130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Protocol, runtime_checkable

import typer

from qcc.ir.errors import QccError

if TYPE_CHECKING:
    from rich.console import Console

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors and the result.")]
DebugFlag = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

INTERNAL, INTERRUPTED = 70, 130


class Screen:
    """Where a command writes: tables and progress to stderr, the JSON object to stdout."""

    def __init__(self, *, as_json: bool, quiet: bool) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self._console: Console | None = None
        self._stage = ""

    @property
    def console(self) -> Console:
        """A rich console on stderr."""
        if self._console is None:
            from rich.console import Console

            self._console = Console(stderr=True, quiet=self.quiet, highlight=False)
        return self._console

    def result(self, data: dict[str, Any]) -> None:
        """Print the JSON object, if it was asked for. Any: plain JSON values."""
        if self.as_json:
            print(json.dumps(data, allow_nan=False), flush=True)

    def stage(self, name: str) -> None:
        """A stage of long work begins."""
        if not self.quiet:
            self.console.print(f"[dim]·[/dim] {name}")

    def step(self, done: int, total: int) -> None:
        """How far the stage is: drawn in place on a terminal, not at all in a file."""
        if not self.quiet and self.console.is_terminal:
            self.console.print(f"[dim]  {done}/{total}[/dim]", end="\n" if done == total else "\r")


@runtime_checkable
class _UsageError(Protocol):
    """What Typer raises for a wrong command line; which package the class comes from depends on Typer's version."""

    def format_message(self) -> str: ...


def guard(command: Callable[[], object], arguments: list[str]) -> int:
    """Run a command; what it raises becomes an exit code, a clear message and, with `--json`, `{error, code, hint}`."""
    try:
        code = command()
        if code == INTERRUPTED:  # Typer turns Ctrl-C into this code, without a word
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except QccError as error:
        return _report(error.message, error.code, error.hint, arguments, error)
    except (KeyboardInterrupt, typer.Abort):
        return _report("interrupted; nothing was written", INTERRUPTED, "", arguments, None)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError as error:
        return _report(
            "out of memory", 2, "use a smaller model, fewer or smaller samples, or a larger machine", arguments, error
        )
    except Exception as error:  # noqa: BLE001 - the outermost frame: everything else is a bug and is reported as one
        if isinstance(error, _UsageError):
            if type(error).__name__ == "NoArgsIsHelpError":
                print(error.format_message(), file=sys.stderr)
                return 2
            hint = "`qcc --help` and `qcc COMMAND --help` show what there is"
            return _report(error.format_message(), 2, hint, arguments, None)
        return _report(
            f"internal error: {type(error).__name__}: {error}",
            INTERNAL,
            "run it again with --debug and report it",
            arguments,
            error,
        )


def _report(message: str, code: int, hint: str, arguments: list[str], error: BaseException | None) -> int:
    if "--debug" in arguments and error is not None:
        import traceback

        traceback.print_exception(error)
    print(f"qcc: {message}", file=sys.stderr)
    if hint:
        print(f"  try: {hint}", file=sys.stderr)
    if "--json" in arguments:
        print(json.dumps({"error": message, "code": code, "hint": hint}), flush=True)
    return code


def size(count: float) -> str:
    """Bytes for people: 1.2 MB."""
    for unit in ("B", "kB", "MB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def pairs(values: list[str], flag: str) -> list[tuple[str, str]]:
    """`NAME=VALUE` options taken apart."""
    from qcc.ir.errors import BadInput

    found: list[tuple[str, str]] = []
    for value in values:
        name, equals, rest = value.partition("=")
        if not equals or not name or not rest:
            raise BadInput(f"{flag} {value!r} is not NAME=VALUE", hint=f"write it like {flag} x=1,3,48,320")
        found.append((name, rest))
    return found
