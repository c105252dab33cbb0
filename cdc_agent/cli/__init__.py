"""The command line. One file per command; ``parser`` lists them, ``output`` prints, ``daemon_client`` asks the daemon.

Everything that goes wrong on purpose ends as ``error: …`` and ``hint: …`` on standard error and the error's exit code:
0 ok, 1 found something, 2 usage, 75 try again, 78 configuration or identity, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from cdc_agent.cli.output import print_error
from cdc_agent.cli.parser import build_parser
from cdc_agent.errors import CdcAgentError

__all__ = ["main"]

#: The shell's code for "ended by Ctrl-C".
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except CdcAgentError as exc:
        print_error(exc)
        return exc.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (`| head`); the interpreter must not complain at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _dispatch(arguments: list[str]) -> int:
    args = build_parser().parse_args(arguments)
    code: int = args.command(args)
    return code
