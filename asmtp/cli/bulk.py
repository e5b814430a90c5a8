"""``asmtp bulk``: sends messages out of files, and keeps account of it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import sys
from typing import Any

from asmtp.cli.journal import Journal, JournalError
from asmtp.cli.progress import Progress
from asmtp.cli.sending import AHEAD, Sending, left
from asmtp.cli.sources import Sources
from asmtp.cli.tally import LISTED, Tally, tell
from asmtp.mailer import AsyncMailer
from asmtp.options import Timeouts
from asmtp.policy import Rate, Retry
from asmtp.url import Relay

__all__ = ["bulk"]


def bulk(arguments: argparse.Namespace) -> int:
    """Run the command; the exit status."""
    try:
        return _bulk(arguments)
    except KeyboardInterrupt:  # before or after the sending, which sees to signals itself
        return 130


def _bulk(arguments: argparse.Namespace) -> int:
    try:
        sources = Sources(arguments.paths, arguments.sender, arguments.recipient)
        rate = None if arguments.rate is None else Rate.of(arguments.rate)
        mailer = None if arguments.dry_run and arguments.url is None else _mailer(arguments, rate)
        journal = Journal.open(arguments.journal, read_only=arguments.dry_run) if arguments.journal else Journal()
    except (ValueError, TypeError, OSError, JournalError) as error:
        what = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        tell(f"asmtp bulk: {what}", sys.stderr)
        return 2
    tally = Tally()
    with contextlib.closing(journal):
        if arguments.dry_run or mailer is None:
            return _dry_run(arguments, sources, journal, tally)
        with Progress(tally, sources.octets, sys.stderr, quiet=arguments.quiet) as progress:
            sending = Sending(mailer, sources, journal, tally, again=arguments.retry_in_doubt, ahead=_ahead(rate))
            if not arguments.json:
                sending.say = progress.say
            asyncio.run(sending.run())
    _conclude(arguments, tally, journal)
    if sending.interrupted:
        return 130
    return 0 if tally.complete and not tally.stopped else 1


def _mailer(arguments: argparse.Namespace, rate: Rate | None) -> AsyncMailer:
    relays = Relay.from_environment() if arguments.url is None else [Relay.from_url(url) for url in arguments.url]
    if arguments.timeout is not None:  # what URLs say counts for more than what the mailer is told
        timeouts = Timeouts.of(arguments.timeout)
        relays = [dataclasses.replace(relay, timeouts=timeouts) for relay in relays]
    retry = Retry(attempts=arguments.retry + 1, in_doubt=arguments.retry_in_doubt)
    return AsyncMailer(relays, connections=arguments.connections, rate=rate, retry=retry)


def _ahead(rate: Rate | None) -> int:
    """How many messages may wait for their turn: two seconds' worth."""
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
    return 0 if tally.complete else 1
