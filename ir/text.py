"""IR text: `parse(show(module))` is the module again."""

from __future__ import annotations

from io import StringIO

from xdsl.context import Context
from xdsl.dialects.builtin import Builtin, ModuleOp
from xdsl.dialects.func import Func
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.utils.exceptions import ParseError, VerifyException

from .errors import BadInput, QccError
from .universe import DIALECTS


def context() -> Context:
    """A context that knows every dialect of qcc; each is built when first used."""
    ctx = Context()
    ctx.load_dialect(Builtin)
    ctx.load_dialect(Func)
    for name, load in DIALECTS.items():
        ctx.register_dialect(name, load)
    return ctx


def parse(text: str, name: str = "<text>", *, verify: bool = True) -> ModuleOp:
    """The module that `text` spells; `BadInput` names the line where it does not."""
    parser = Parser(context(), text, name=name)
    try:
        module = parser.parse_module()
    except ParseError as error:
        raise BadInput(str(error), hint="check the IR text at this place") from error
    except (VerifyException, QccError) as error:
        line = text.count("\n", 0, parser.pos) + 1
        raise BadInput(f"{name}:{line}: {error}", hint="check the IR text at this place") from error
    if verify:
        check(module, name)
    return module


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
