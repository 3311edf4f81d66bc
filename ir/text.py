"""IR text: `parse(show(module))` is the module again."""

from __future__ import annotations

import re
from io import StringIO

from xdsl.context import Context
from xdsl.dialects.builtin import Builtin, ModuleOp
from xdsl.dialects.func import Func
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.utils.exceptions import ParseError, VerifyException

from .dialects.registry import DIALECTS
from .errors import BadInput, QccError

_HINT = "check the IR text at this place"


def context() -> Context:
    """A context that knows every dialect of qcc; each is built when first used."""
    ctx = Context()
    ctx.load_dialect(Builtin)
    ctx.load_dialect(Func)
    for name, load in DIALECTS.items():
        ctx.register_dialect(name, load)
    return ctx


_STRING = re.compile(r'//[^\n]*|"(?:[^"\\\n\v\f]|\\(?:["nt\\]|[0-9A-Fa-f]{2}))*+(?P<end>")?')


def parse(text: str, name: str = "<text>", *, verify: bool = True) -> ModuleOp:
    """The module that `text` spells; `BadInput` names the line where it does not."""
    _check_strings(text, name)
    try:
        parser = Parser(context(), text, name=name)
    except ParseError as error:
        raise BadInput(str(error), hint=_HINT) from error
    try:
        module = parser.parse_module()
    except ParseError as error:
        raise BadInput(str(error), hint=_HINT) from error
    except (VerifyException, QccError, OverflowError, MemoryError) as error:  # a type of 10^20 bits, say
        raise BadInput(f"{name}:{_line(text[: parser.pos].rstrip())}: {error}", hint=_HINT) from error
    if verify:
        check(module, name)
    return module


def _check_strings(text: str, name: str) -> None:
    """Every string is closed: on one that is not, xDSL's lexer backtracks without end."""
    for match in _STRING.finditer(text):
        if match[0].startswith('"') and match["end"] is None:
            raise BadInput(
                f"{name}:{_line(text[: match.start()])}: a string is not closed, or holds an unknown escape", hint=_HINT
            )


def _line(before: str) -> int:
    return before.count("\n") + 1


def show(module: ModuleOp) -> str:
    """The text of a module."""
    stream = StringIO()
    Printer(stream).print_op(module)
    return stream.getvalue() + "\n"


def check(module: ModuleOp, name: str = "the module") -> None:
    """Verify every operation; `BadInput` carries the first reason."""
    try:
        module.verify()
    except VerifyException as error:
        raise BadInput(f"{name}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The sentence of a verifier error that says what is wrong, without xDSL's picture of the operation."""
    root = error.__cause__ if isinstance(error.__cause__, VerifyException) else error
    lines = [line.strip(" ^-") for line in str(root).splitlines()]
    tagged = [
        line for line in lines if line and not line.startswith(("%", '"', "Operation does not verify", "Error while"))
    ]
    return tagged[-1] if tagged else str(error)
