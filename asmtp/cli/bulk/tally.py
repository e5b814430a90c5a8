"""Counts of what ``asmtp bulk`` has done so far, told to people or programs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TextIO

from asmtp.cli.bulk.account import Outcome, Standing
from asmtp.errors import DeliveryState, one_line

__all__ = ["Tally", "shown", "tell"]

LISTED = 10_000
"""Recipients and messages that are listed one by one for programs, at most."""

_KINDS = 8  # of errors that people are shown
_SHORT = 300  # characters of a server's or an exception's text
_STATES: tuple[DeliveryState, ...] = ("sent", "refused", "not_sent", "in_doubt")


def shown(text: str) -> str:
    """Escape what is not printable in a text, but for line feeds: servers and file names may hold anything."""
    return "\n".join(one_line(line, None) for line in text.split("\n"))


def tell(text: str, stream: TextIO) -> None:
    """Print a text, as far as the encoding of the stream allows."""
    encoding = stream.encoding or "utf-8"
    print(shown(text).encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


@dataclass(slots=True)
class Tally:
    """Counts of messages, and examples of what went wrong.

    Attributes:
        clock: the time in seconds.
        counts: messages of this run by what became of them.
        unreadable: messages that could not be sent for their own fault.
        before: messages that had nothing left to be sent, by what the journal says of them.
        recipients_refused: recipients.
        octets: how far the sources were read.
        complete: nothing was refused, in doubt, unreadable or left, now or before.
        refusals: the first of the recipients refused, as the JSON has them.
        kinds: errors by kind: how many messages, and the first.
        stopped: why it came to its end early; empty: it did not.
        waiting: what is waited for now; empty: nothing.
    """

    clock: Callable[[], float] = time.monotonic
    counts: dict[DeliveryState, int] = field(default_factory=lambda: dict.fromkeys(_STATES, 0))
    unreadable: int = 0
    before: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("sent", "refused", "in_doubt", "twice"), 0))
    recipients_refused: int = 0
    octets: int = 0
    complete: bool = True
    refusals: list[dict[str, Any]] = field(default_factory=list)
    kinds: dict[str, tuple[int, str]] = field(default_factory=dict)
    stopped: str = ""
    waiting: Callable[[], str] = lambda: ""
    started: float = 0.0
    ended: float | None = None

    def __post_init__(self) -> None:
        self.started = self.clock()

    @property
    def seconds(self) -> float:
        """Return how long the run has taken."""
        return (self.clock() if self.ended is None else self.ended) - self.started

    @property
    def empty(self) -> bool:
        """Tell whether there was no message at all, not even one that an earlier run has dealt with."""
        return not (self.messages or self.unreadable or any(self.before.values()))

    @property
    def messages(self) -> int:
        """Return how many messages have an outcome in this run."""
        return sum(self.counts.values())

    @property
    def rate(self) -> float:
        """Return the messages a second."""
        return self.messages / self.seconds if self.seconds > 0 else 0.0

    # ---- counting ---------------------------------------------------------------------------

    def fault(self, kind: str, name: str, text: str) -> None:
        """Note that something went wrong with a message."""
        self.complete = False
        number, example = self.kinds.get(kind, (0, f"{name}: {text[:_SHORT]}"))
        self.kinds[kind] = number + 1, example

    def broken(self, name: str, text: str) -> None:
        """Note that a message could not be read."""
        self.unreadable += 1
        self.fault("unreadable", name, text)

    def skipped(self, standing: Standing) -> None:
        """Note that, by the journal, nothing is left of a message to be sent."""
        for kind in ("in_doubt", "refused", "sent"):
            if getattr(standing, kind):
                break
        else:
            kind = "twice"
        self.before[kind] += 1
        self.standing(standing)

    def standing(self, standing: Standing) -> None:
        """Note what is known of a message by the journal."""
        if standing.refused or standing.in_doubt:
            self.complete = False

    def arrived(self, name: str, state: DeliveryState, outcomes: Mapping[str, Outcome]) -> None:
        """Note what became of a message."""
        self.counts[state] += 1
        faults = {recipient: outcome for recipient, outcome in outcomes.items() if outcome.state != "sent"}
        for recipient, outcome in faults.items():
            if outcome.state == "refused":
                self._refusal(name, recipient, outcome)
        if faults:
            recipient, outcome = next(iter(faults.items()))
            self.fault(_kind(outcome), name, f"{recipient}: {outcome}")

    def _refusal(self, name: str, recipient: str, outcome: Outcome) -> None:
        self.recipients_refused += 1
        if len(self.refusals) < LISTED:
            self.refusals.append(
                {"message": name, "recipient": recipient, "code": outcome.code, "text": outcome.text}
                | {"transient": outcome.transient}
            )

    # ---- telling ----------------------------------------------------------------------------

    def line(self) -> str:
        """Return the tally in short, while the run goes on."""
        counts = self.counts
        text = f"{counts['sent']:,} sent, {self.rate:,.0f}/s"
        text += f", {counts['refused']:,} refused, {counts['in_doubt']:,} in doubt, {counts['not_sent']:,} not sent"
        text += f", {self.unreadable:,} unreadable" if self.unreadable else ""
        before = sum(self.before.values())
        text += f", {before:,} seen to before" if before else ""
        waiting = "" if self.ended is not None else self.waiting()
        return text + (f"; {waiting}" if waiting else "")

    def text(self) -> str:
        """Return the tally for people, when the run is over."""
        counts = self.counts
        first = (
            f"{self.messages:,} message{'' if self.messages == 1 else 's'} in {self.seconds:.1f} s"
            f" ({self.rate:,.1f}/s): {counts['sent']:,} sent, {counts['refused']:,} refused,"
            f" {counts['not_sent']:,} not sent, {counts['in_doubt']:,} in doubt"
        )
        return "\n".join([first, *self.lines()])

    def lines(self) -> list[str]:
        """Return what there is to say besides, for people."""
        lines = []
        if self.unreadable:
            lines.append(f"{self.unreadable:,} unreadable")
        if any(self.before.values()):
            lines.append(
                "According to the journal: {sent:,} sent before, {refused:,} refused before,"
                " {in_doubt:,} in doubt (not sent again), {twice:,} given twice".format(**self.before)
            )
        if self.recipients_refused:
            lines.append(f"{self.recipients_refused:,} recipient{'' if self.recipients_refused == 1 else 's'} refused")
        kinds = sorted(self.kinds.items(), key=lambda kind: -kind[1][0])
        lines += [f"  {number:,} x {kind}, such as {example}" for kind, (number, example) in kinds[:_KINDS]]
        if len(kinds) > _KINDS:
            lines.append(f"  and {len(kinds) - _KINDS} other kinds of errors")
        if self.stopped:
            lines.append(f"Stopped before the end: {self.stopped}")
        return lines

    def json(self, doubtful: Mapping[str, list[str]]) -> str:
        """Return the tally for programs, when the run is over: one object.

        Args:
            doubtful: as the journal has them.
        """
        return json.dumps(
            {
                "messages": self.messages,
                **self.counts,
                "seconds": round(self.seconds, 3),
                "rate": round(self.rate, 3),
                "stopped": self.stopped or None,
                "recipients_refused": self.recipients_refused,
                "refusals": self.refusals,
                "doubtful": [{"message": key, "recipients": who} for key, who in list(doubtful.items())[:LISTED]],
                **self.troubles(),
            }
        )

    def troubles(self) -> dict[str, Any]:
        """Return what there is to say besides, for programs."""
        kinds = self.kinds.items()
        return {
            "unreadable": self.unreadable,
            "before": self.before,
            "errors": [{"kind": kind, "messages": number, "example": example} for kind, (number, example) in kinds],
        }


def _kind(outcome: Outcome) -> str:
    """Return the codes of a reply, "550 5.1.1", or what went wrong in general."""
    first = outcome.text.partition(" ")[0].rstrip(":")
    if outcome.code is None:
        return outcome.text.partition(": ")[0]
    return (
        f"{outcome.code} {first}" if first.count(".") == 2 and first.replace(".", "").isdigit() else f"{outcome.code}"
    )
