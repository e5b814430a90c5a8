"""What a server's 4yz says of the server, not of the message: too many connections, enough of this one, or too fast."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable

from asmtp.errors import SMTPSenderRefused, SMTPServerDisconnected
from asmtp.mailer.delivery import replies_of
from asmtp.protocol.reply import Reply

__all__ = [
    "Limit", "any_throttling", "is_answered", "is_closing", "is_crowded", "is_throttling", "limit_of",
    "says_too_many_recipients", "too_many_recipients",
]  # fmt: skip


# What servers say when they are sent too much: there is no code for it, and 4.7.x says "policy" of greylisting too.
# Too many recipients may be those of one message (but Postfix's "from" is a rate); too many messages "in this
# connection" (Exim, Amazon), and too many errors, ask for another connection.
_TOO_MUCH = re.compile(
    rb"too (?:many(?! recipients(?! from| received)| messages in| errors(?! from))|much|fast|frequent|quick)"
    rb"|throttl|slow down|\brate\b(?!@)|unexpected volume"
    rb"|(?:connection|messag(?:e|ing)|relay|send(?:ing)?|hourly|daily)s? (?:limit|quota)",
    re.IGNORECASE,
)


def is_throttling(reply: Reply) -> bool:
    """Whether the server says that it is sent too much: 4yz, with words for that."""
    return 400 <= reply.code <= 499 and _TOO_MUCH.search(reply.message) is not None


_CROWDED = re.compile(r"too many .*(?:connections|sessions)|connections? limit|concurren", re.IGNORECASE)


def is_crowded(text: str) -> bool:
    """Whether a server says that it has too many connections."""
    return _CROWDED.search(text) is not None


def any_throttling(replies: Iterable[Reply]) -> bool:
    """Whether one of them says that the server is sent too much."""
    return any(map(is_throttling, replies))


class Limit(enum.Enum):
    """What a server has enough of."""

    CONNECTIONS = "connections"
    """There are too many: this one is of no use."""
    MESSAGES = "messages"
    """This connection has taken as many as it takes, and the server says so."""
    SENDER = "sender"
    """It may be that, and it may be about this sender."""
    RATE = "rate"
    """It is sent too much at a time."""


_ENOUGH = re.compile(
    rb"too many (?:messages|mails|e-?mails|transactions)"
    rb"|messages? (?:limit )?(?:per|in this|for this|on this) (?:connection|session)",
    re.IGNORECASE,
)


def _kind(reply: Reply) -> Limit | None:
    """What one reply says by its words, its code, and its enhanced code."""
    if not 400 <= reply.code <= 499:
        return None
    # Office 365: "432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded".
    if is_crowded(reply.message.decode("latin-1")) or (reply.code == 432 and reply.enhanced == "4.3.2"):
        return Limit.CONNECTIONS
    # 454 has no other meaning for a message (but 4.7.1, "relay access denied" for now).
    if is_throttling(reply) or (reply.code == 454 and reply.enhanced in ("", "4.7.0")):
        return Limit.RATE
    return None


def limit_of(error: BaseException, taken: int) -> Limit | None:
    """Which limit of the server a message met, if it did.

    Args:
        error: what it met.
        taken: how many messages the connection took before.
    """
    if isinstance(error, SMTPServerDisconnected):  # it was written behind another that was told
        crowded = not taken and error.state == "not_sent" and is_crowded(str(error))
        return Limit.CONNECTIONS if crowded else None
    replies = replies_of(error)
    kinds = {_kind(reply) for reply in replies}
    if Limit.CONNECTIONS in kinds:
        return Limit.CONNECTIONS
    # A connection that took messages and says no to a sender: OpenSMTPD from the 101st on, "452 4.5.3 Too many
    # messages sent".  421 ends the connection anyway.
    if isinstance(error, SMTPSenderRefused) and taken and 400 <= replies[0].code <= 499 and replies[0].code != 421:
        if replies[0].enhanced.endswith(".5.3") or _ENOUGH.search(replies[0].message):
            return Limit.MESSAGES
        return Limit.RATE if Limit.RATE in kinds else Limit.SENDER
    return Limit.RATE if Limit.RATE in kinds else None


def is_answered(error: BaseException) -> bool:
    """Whether the server has given its answer to a message that met `error`; 421 is the end of the connection."""
    return getattr(error, "state", None) == "refused" and not is_closing(error)


def is_closing(error: BaseException) -> bool:
    """Whether the server said 421: it closes, whatever it was asked (RFC 5321 §3.8).  Not, that it is sent too much."""
    replies = replies_of(error)
    return any(reply.code == 421 for reply in replies) and not any_throttling(replies)


def too_many_recipients(reply: Reply) -> bool:
    """Whether a reply to RCPT may mean that a transaction has too many: 452, or 552 (RFC 5321 §4.5.3.1.10)."""
    certain = says_too_many_recipients(reply)
    return reply.code in (452, 552) and (certain or (reply.code == 452 and not reply.enhanced))


def says_too_many_recipients(reply: Reply) -> bool:
    """Whether a reply says so in words, or by its enhanced code."""
    text = reply.message.lower()  # not: a mailbox with too many messages
    return reply.enhanced.endswith(".5.3") or (b"too many" in text and (b"recipient" in text or b"rcpt" in text))
