"""The command line: ``asmtp demo``, ``asmtp bulk``."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from asmtp import __version__

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status: 0, 1 if it failed, 2 if it cannot be run, 130 if it was interrupted."""
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # it was closed
            setattr(sys, stream, open(os.devnull, "w"))  # noqa: SIM115  # for the rest of the program
    parser = _Parser(prog="asmtp", description="An asyncio-native SMTP client.")
    parser.add_argument("--version", action="version", version=f"asmtp {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("demo", help="send to a server that it starts itself on loopback, and show the dialogue")
    _bulk_arguments(commands.add_parser("bulk", help="send many messages out of files", description=_BULK))
    arguments, rest = parser.parse_known_args(argv)
    end = rest.index("--") if "--" in rest else len(rest)
    rest, paths = rest[:end], rest[end + 1 :]
    if arguments.command == "bulk" and not any(argument.startswith("-") for argument in rest):
        arguments.paths += rest + paths  # paths with options between them, which argparse cannot take
    elif rest:  # told without their values, which may be URLs with passwords
        options = [argument.partition("=")[0] for argument in rest if argument.startswith("-")]
        parser.error(f"unrecognized arguments: {' '.join(options)}" if options else f"{len(rest)} arguments too many")
    try:
        status = _run(arguments)
        sys.stdout.flush()
    except OSError as error:
        return _unheard(error)
    return status


class _Parser(argparse.ArgumentParser):
    """A parser that shows no URL if an argument is wrong: the URL may hold a password."""

    def error(self, message: str) -> NoReturn:
        told, scheme, _ = message.partition("://")
        super().error(f"{told.rpartition(' ')[0]} (a URL, which is not shown)" if scheme else message)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "bulk":
        from asmtp.cli.bulk.command import bulk

        return bulk(arguments)
    try:
        from asmtp.cli.demo.command import demo
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "aiosmtpd":
            raise
        print("asmtp demo needs aiosmtpd: pip install 'asmtp[demo]'", file=sys.stderr)
        return 2
    return demo()


def _unheard(error: OSError) -> int:
    """Say that the output could not be written, as to a full disk; return the exit status."""
    if not isinstance(error, BrokenPipeError):  # else the reader has closed the pipe
        with contextlib.suppress(OSError):
            print(f"asmtp: {error}", file=sys.stderr, flush=True)
    # Python would fail again when it flushes at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


_BULK = """
Send messages out of files: octet for octet as they are, but without their Bcc fields.  Sender and recipients are those
of the header unless they are given.  The exit status is 0 if every message was sent to all of its recipients, 1 if not,
2 if it cannot be run, 130 if it was interrupted.
"""


def _bulk_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH", help="a message, a directory of .eml files, a Maildir, or an mbox")
    add(
        "--url", action="append", help="the server: smtps://user:password@host; may be repeated; else ASMTP_URL is used"
    )
    add(
        "--url-file",
        metavar="FILE",
        help="a file with the URLs, which nobody else need be able to read: what is in --url is seen in the list of "
        "processes, and stays in the shell's history",
    )
    add("--sender", metavar="ADDR", help="the envelope sender; '' for none")
    add("--recipient", metavar="ADDR", action="append", default=[], help="an envelope recipient; may be repeated")
    add("--connections", metavar="N", type=_number(1), default=4, help="connections at most (%(default)s)")
    add("--rate", help="messages or recipients in a time at most: 100/s, 6000/min, '500 recipients/s'")
    add("--retry", metavar="N", type=_number(0), default=2, help="times to try again what failed for now (%(default)s)")
    add("--timeout", metavar="S", type=float, help="seconds for each phase, instead of those of RFC 5321")
    add("--journal", metavar="FILE", help="keep account there; run again with it, it sends what was not sent")
    add("--retry-in-doubt", action="store_true", help="send what may have been delivered already, too")
    add("--dry-run", action="store_true", help="connect nowhere; tell what would be sent to whom")
    add("--json", action="store_true", help="tell the outcome as one JSON object")
    add("--quiet", action="store_true", help="show no progress")


def _number(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isascii() or not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number, at least {least}, not {text!r}")
        return int(text)

    return number
