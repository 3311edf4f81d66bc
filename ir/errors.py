"""The errors a user may see: each names what, where and what to try, and carries the exit code of the contract."""

from __future__ import annotations


class QccError(Exception):
    """Base of every error qcc raises on purpose. `code` is the exit code of the command line."""

    code: int = 70

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  try: {self.hint}" if self.hint else self.message


class CheckFailed(QccError):
    """A check the user asked for did not hold (verify, a gate): exit code 1."""

    code = 1


class BadInput(QccError):
    """The file, the data or the usage is wrong: exit code 2."""

    code = 2


class NotSupported(QccError):
    """The input is valid but outside what qcc handles; the message says why: exit code 3."""

    code = 3


class MissingExtra(QccError):
    """A package or tool is missing; the hint is the command that installs it: exit code 4."""

    code = 4
