"""The command line: ``asmtp demo``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from asmtp import __version__

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status: 0, 1 if it failed, 2 if it cannot be run."""
    parser = argparse.ArgumentParser(prog="asmtp", description="An asyncio-native SMTP client.")
    parser.add_argument("--version", action="version", version=f"asmtp {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("demo", help="send to a server that it starts itself on loopback, and show the dialogue")
    parser.parse_args(argv)
    try:
        from asmtp.cli.demo import demo
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "aiosmtpd":
            raise
        print("asmtp demo needs aiosmtpd: pip install 'asmtp[demo]'", file=sys.stderr)
        return 2
    return demo()
