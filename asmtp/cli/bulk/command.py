"""``asmtp bulk``: sends messages out of files, and keeps account of it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import sys
from typing import Any

from asmtp.cli.bulk.journal import Journal, JournalError
from asmtp.cli.bulk.progress import Progress
from asmtp.cli.bulk.sending import AHEAD, Sending, left
from asmtp.cli.bulk.sources import Sources
from asmtp.cli.bulk.tally import LISTED, Tally, tell
from asmtp.cli.bulk.watching import Watching
from asmtp.cli.bulk.wording import for_operators
from asmtp.client.relay import Relay
from asmtp.mailer.mailer import AsyncMailer
from asmtp.mailer.policy import Retry
from asmtp.mailer.rate import Rate
from asmtp.transport.timeouts import Timeouts

__all__ = ["bulk"]

_NOTHING = "asmtp bulk: warning: there is no message at PATH"


def bulk(arguments: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    try:
        return _bulk(arguments)
    except KeyboardInterrupt:  # before or after the sending, which sees to signals itself
        return 130


def _bulk(arguments: argparse.Namespace) -> int:
    try:
        _check_options(arguments)
        watching = Watching()
        sources = Sources(arguments.paths, arguments.sender, arguments.recipient)
        rate = None if arguments.rate is None else Rate.of(arguments.rate)
        given = arguments.url is not None or arguments.url_file is not None
        mailer = None if arguments.dry_run and not given else _mailer(arguments, rate, watching)
        journal = Journal.open(arguments.journal, read_only=arguments.dry_run) if arguments.journal else Journal()
    except (ValueError, TypeError, OSError, JournalError) as error:
        what = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        tell(f"asmtp bulk: {for_operators(what)}", sys.stderr)
        return 2
    tally = Tally()
    with contextlib.closing(journal):
        if arguments.dry_run or mailer is None:
            return _dry_run(arguments, sources, journal, tally)
        with Progress(tally, sources.octets, sys.stderr, quiet=arguments.quiet) as progress:
            tally.waiting = lambda: watching.waiting(mailer.stats, _names(mailer))
            sending = Sending(
                mailer, sources, journal, tally, again=arguments.retry_in_doubt, ahead=_ahead(rate), watching=watching
            )
            if not arguments.json:
                sending.say = progress.say
            asyncio.run(sending.run())
    _conclude(arguments, tally, journal)
    if sending.interrupted:
        return 130
    if tally.empty and not tally.stopped:
        tell(_NOTHING, sys.stderr)
        return 1
    return 0 if tally.complete and not tally.stopped else 1


def _check_options(arguments: argparse.Namespace) -> None:
    """Raise an error that does not show the value, if a URL stands behind another option: it may hold a password.

    Raises:
        ValueError: one does.
    """
    others = {"--sender": [arguments.sender], "--recipient": arguments.recipient, "--rate": [arguments.rate]}
    others |= {"--journal": [arguments.journal], "--url-file": [arguments.url_file]}
    for option, values in others.items():
        if any("://" in value for value in values if value is not None):
            raise ValueError(f"{option}: is a URL, which belongs behind --url")
    if arguments.url is not None and arguments.url_file is not None:
        raise ValueError("--url and --url-file: only one of them can be given")


def _relays(arguments: argparse.Namespace) -> list[Relay]:
    if arguments.url is not None:
        return [Relay.from_url(url) for url in arguments.url]
    if arguments.url_file is not None:
        with open(arguments.url_file, encoding="utf-8-sig", errors="surrogateescape") as file:
            return Relay.several(file.read(1 << 20), arguments.url_file)
    return Relay.from_environment()


def _names(mailer: AsyncMailer) -> str:
    """Return the names of the servers."""
    return repr(mailer).partition(" ")[2].removesuffix(">").replace(", ", " or ")


def _mailer(arguments: argparse.Namespace, rate: Rate | None, watching: Watching) -> AsyncMailer:
    relays = _relays(arguments)
    if arguments.timeout is not None:  # --timeout counts for more than the URLs
        timeouts = Timeouts.of(arguments.timeout)
        relays = [dataclasses.replace(relay, timeouts=timeouts) for relay in relays]
    retry = Retry(attempts=arguments.retry + 1, in_doubt=arguments.retry_in_doubt)
    return AsyncMailer(relays, connections=arguments.connections, rate=rate, retry=retry, on_event=watching)


def _ahead(rate: Rate | None) -> int:
    """Return how many messages may wait for their turn: two seconds' worth."""
    if rate is None:
        return AHEAD
    return min(AHEAD, max(4, int(2 * (rate.messages or rate.recipients or 0) / rate.per)))


def _conclude(arguments: argparse.Namespace, tally: Tally, journal: Journal) -> None:
    doubtful = journal.abandon()
    if arguments.json:
        print(tally.json(doubtful))
        return
    for key, recipients in list(doubtful.items())[:LISTED]:
        tell(f"in doubt: {key} to {', '.join(recipients)}", sys.stderr)
    tell(tally.text(), sys.stdout)


def _dry_run(arguments: argparse.Namespace, sources: Sources, journal: Journal, tally: Tally) -> int:
    """Tell what would be sent."""
    letters: list[dict[str, Any]] = []
    messages = recipients = 0
    for item in sources:
        if item.envelope is None:
            tally.broken(item.name, item.error)
            continue
        envelope = left(journal, item, item.envelope, tally, again=arguments.retry_in_doubt)
        if envelope is None:
            continue
        messages += 1
        recipients += len(envelope.recipients)
        if arguments.json:
            letters.append({"message": item.name, "sender": envelope.sender, "recipients": list(envelope.recipients)})
        else:
            to = ", ".join(envelope.recipients)
            tell(f"{item.name}: {envelope.sender or '<>'} to {to}, {item.octets:,} octets", sys.stdout)
    if arguments.json:
        print(json.dumps({"dry_run": True, "messages": letters, **tally.troubles()}))
    else:
        tell(
            "\n".join([f"{messages:,} messages to {recipients:,} recipients would be sent", *tally.lines()]), sys.stdout
        )
    if not messages and tally.empty:
        tell(_NOTHING, sys.stderr)
        return 1
    return 0 if tally.complete else 1
