"""`python -m qcc`, and the `qcc` command."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run the command line and leave with the exit code of the contract."""
    from qcc.cli import run

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a time limit cleans up as Ctrl-C does
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
