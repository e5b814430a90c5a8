"""The state of each message, and of each of its recipients."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from asmtp.cli.bulk.wording import for_operators
from asmtp.errors import (
    DeliveryState,
    SMTPException,
    SMTPNotSupportedError,
    SMTPProtocolError,
    SMTPRecipientsRefused,
    SMTPResponseException,
    SMTPServerDisconnected,
    SMTPStateError,
    SMTPTimeoutError,
)
from asmtp.mailer.delivery import Delivery, state_of
from asmtp.protocol.reply import Reply

__all__ = ["Account", "Outcome", "Standing", "outcomes_of"]

# The first that fits.
_WORDS: tuple[tuple[type, str], ...] = (
    (SMTPTimeoutError, "no answer in time"),
    (SMTPProtocolError, "the server broke the protocol"),
    (SMTPServerDisconnected, "no connection"),
    (SMTPNotSupportedError, "not supported by the server"),
    (SMTPStateError, "stopped before"),
    (SMTPRecipientsRefused, "refused"),
    (SMTPResponseException, "refused"),
    (SMTPException, "cannot be sent"),
    (OSError, "cannot be read"),
    (ValueError, "cannot be sent"),
    (object, "failed"),
)

_TEXT = 500  # characters of a reply or an exception that are kept


class Outcome(NamedTuple):
    """The outcome of a message for one recipient: a state, and the server's reply or the exception's text."""

    state: DeliveryState
    code: int | None = None
    text: str = ""

    def __str__(self) -> str:
        return self.text if self.code is None else f"{self.code} {self.text}"

    @property
    def transient(self) -> bool:
        """Tell whether a later try may succeed, and cannot deliver twice."""
        # With 53z it is us who were refused, for want of a login, and not the message (RFC 4954 §6).
        passing = self.code is None or self.code < 500 or self.code in (530, 534, 535, 538)
        return self.state == "not_sent" or (self.state == "refused" and passing)


class Standing(NamedTuple):
    """The recipients of a message, by what the journal knows of them."""

    left: tuple[str, ...]
    """To be sent."""
    sent: tuple[str, ...]
    refused: tuple[str, ...]
    """For good."""
    in_doubt: tuple[str, ...]
    under_way: tuple[str, ...]
    """Begun by this very process."""


class Account:
    """An account in memory of what was sent to whom: a small digest for what is settled, names for the rest.

    Attributes:
        doubtful: keys of messages that the server may or may not have, and the recipients concerned.
    """

    def __init__(self) -> None:
        self._sent: set[bytes] = set()
        self._refused: set[bytes] = set()
        self._under_way: dict[str, set[str]] = {}
        self.doubtful: dict[str, list[str]] = {}

    def standing(self, key: str, recipients: Iterable[str]) -> Standing:
        """Return the state of each of the recipients of a message."""
        found: dict[str, list[str]] = {name: [] for name in Standing._fields}
        begun = self._under_way.get(key, ())
        doubtful = self.doubtful.get(key, ())
        for recipient in recipients:
            mark = _mark(key, recipient)
            if recipient in begun:
                name = "under_way"
            elif mark in self._sent:
                name = "sent"
            elif mark in self._refused:
                name = "refused"
            else:
                name = "in_doubt" if recipient in doubtful else "left"
            found[name].append(recipient)
        return Standing(**{name: tuple(chosen) for name, chosen in found.items()})

    def begun(self, key: str, recipients: Sequence[str]) -> None:
        """Note that a message is about to be handed over."""
        begun = self._under_way.setdefault(key, set())
        # Those of a process that died; what becomes of this try says nothing about that one.
        self._doubt(key, begun.intersection(recipients))
        begun.update(recipients)

    def ended(self, key: str, outcomes: Mapping[str, Outcome]) -> None:
        """Note what became of a message."""
        begun = self._under_way.get(key, set())
        for recipient, outcome in outcomes.items():
            begun.discard(recipient)
            if outcome.state == "in_doubt":
                self._doubt(key, [recipient])
            elif not outcome.transient:
                (self._sent if outcome.state == "sent" else self._refused).add(_mark(key, recipient))
                self._settle(key, recipient)
            # Else an earlier doubt stays.
        if not begun:
            self._under_way.pop(key, None)

    def abandon(self) -> dict[str, list[str]]:
        """Take what is begun and has not ended for in doubt from now on: the process gives up on it."""
        for key, recipients in self._under_way.items():
            self._doubt(key, sorted(recipients))
        self._under_way.clear()
        return self.doubtful

    def _doubt(self, key: str, recipients: Iterable[str]) -> None:
        for recipient in recipients:
            doubtful = self.doubtful.setdefault(key, [])
            if recipient not in doubtful:
                doubtful.append(recipient)

    def _settle(self, key: str, recipient: str) -> None:
        doubtful = self.doubtful.get(key, [])
        if recipient in doubtful:
            doubtful.remove(recipient)
            if not doubtful:
                del self.doubtful[key]


def outcomes_of(delivery: Delivery[Any], recipients: Sequence[str]) -> dict[str, Outcome]:
    """Return what became of a message for each recipient."""
    error = delivery.error
    receipt = delivery.receipt
    outcomes = dict.fromkeys(recipients, _failure(delivery.state, error))
    if isinstance(error, SMTPRecipientsRefused):
        outcomes |= {who: Outcome("refused", *_short(*reply)) for who, reply in error.recipients.items()}
    if receipt is not None:
        # The server names the message in its last reply.
        outcomes |= dict.fromkeys(receipt.accepted, Outcome("sent", *_short(*receipt.reply)))
        outcomes |= {who: Outcome("refused", *_short(*reply)) for who, reply in receipt.refused.items()}
        outcomes |= {who: _failure(state_of(failure), failure) for who, failure in receipt.failed.items()}
    return {who: outcomes[who] for who in recipients}


def _failure(state: DeliveryState, error: Exception | None) -> Outcome:
    if isinstance(error, SMTPResponseException) and error.smtp_code > 0:
        return Outcome(state, *_short(error.smtp_code, error.smtp_error))
    return Outcome(state, None, f"{_what(error)}: {for_operators(str(error))}"[:_TEXT])


def _what(error: Exception | None) -> str:
    """Return the error in words for operators, not for programmers."""
    return next(words for kind, words in _WORDS if isinstance(error, kind))


def _short(code: int, message: bytes | str) -> tuple[int, str]:
    octets = message.encode() if isinstance(message, str) else message
    return code, Reply(code, octets).text[:_TEXT]


def _mark(key: str, recipient: str) -> bytes:
    # File names and addresses may hold lone surrogates.
    return hashlib.blake2b(f"{key}\0{recipient}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
