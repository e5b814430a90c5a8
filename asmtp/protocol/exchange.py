"""The parts of a dialogue: groups of commands, and the exchange in which a dialogue is under way."""

from __future__ import annotations

import enum
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypeVar

from asmtp.protocol.state import Trigger

if TYPE_CHECKING:
    from asmtp.protocol.reply import Reply

__all__ = [
    "PULL", "Dialogue", "Exchange", "ExchangeState", "Group", "Phase", "Pull", "StepBehind", "Turn",
]  # fmt: skip

T = TypeVar("T")


class Phase(enum.Enum):
    """The reasons to await a reply; each has a time limit of its own (RFC 5321 §4.5.3.2)."""

    GREETING = "the greeting"
    COMMAND = "a command"
    DATA = "DATA"
    CONTENT = "content being sent"
    FINAL = "the end of the content"
    QUIT = "QUIT"


class Turn(enum.Enum):
    """The ways to go on behind a group, with the turn to write or without it."""

    UNTIL_REPLY = "keeps the turn, and goes on when all replies that it is owed are in"
    KEEP = "keeps the turn, and goes on at once"
    RELEASE = "has written everything: gives up the turn, and judges when all replies are in"
    UNTIL_COUNTED = "has written everything, but keeps the turn: the server's replies tell how many there are"


_UNTIL_REPLY = Turn.UNTIL_REPLY
_COMMAND = Phase.COMMAND


class Group:
    """Commands (or content) written in one go, and the replies they are owed.

    Args:
        data: the octets to write; empty: wait for replies only.
        triggers: what they mean to the state, in order.
        owed: how many replies they add to those that the dialogue is owed.
        turn: what the dialogue does next.
        phase: what the replies are awaited for.
        final: the same for the last reply; by default `phase`.
        secret: do not show it in a trace.
        replies: the list to add the replies to.  A dialogue that writes several groups may give them the same list.
        per_recipient: (LMTP) the places of the RCPT replies in `replies`: each 2yz among them but the first adds
            one to the replies owed after the content (RFC 2033 §4.2).
        more: replies to what the dialogue wrote before may still come in front of this group's.

    Attributes:
        serial: the number of the last command written that may leave a transaction open: see `Session.mark_clean`.
        dropped: the group never left: the session ended before the transport took it.
        behind: it was written while others' replies were still owed.
    """

    __slots__ = (
        "behind", "data", "dropped", "final", "more", "owed", "per_recipient", "phase", "replies", "secret", "serial",
        "triggers", "turn",
    )  # fmt: skip

    def __init__(
        self,
        data: bytes,
        triggers: tuple[Trigger, ...],
        owed: int = 1,
        *,
        turn: Turn = _UNTIL_REPLY,
        phase: Phase = _COMMAND,
        final: Phase | None = None,
        secret: bool = False,
        replies: list[Reply] | None = None,
        per_recipient: range | None = None,
        more: bool = False,
    ) -> None:
        self.data = data
        self.triggers = triggers
        self.owed = owed
        self.turn = turn
        self.phase = phase
        self.final = final or phase
        self.secret = secret
        self.replies: list[Reply] = [] if replies is None else replies
        self.per_recipient = per_recipient
        self.more = more
        self.serial = 0
        self.dropped = False
        self.behind = False


class Pull:
    """The type of PULL."""


PULL: Final = Pull()
"""Yielded by a dialogue to be sent the next octets of its content: bytes, or None at the end."""


class StepBehind:
    """Yielded by a dialogue that has not written anything, to step back into the line, behind another dialogue.

    The other one is written when no reply is owed: some servers lose what stands behind content that they have not
    answered.

    Args:
        dialogue: the one that goes in front: see :func:`asmtp.protocol.chunking.probe`.
    """

    __slots__ = ("dialogue",)

    def __init__(self, dialogue: Dialogue[Any]) -> None:
        self.dialogue = dialogue


Dialogue: TypeAlias = Generator[Group | Pull | StepBehind, Any, T]
"""One thing that a caller wants of the server, with a result of type T: see :mod:`asmtp.protocol.state`."""


class ExchangeState(enum.Enum):
    """The states of an exchange.

    ========= ======================================================= ================================================
    state     what happens                                            next state
    ========= ======================================================= ================================================
    QUEUED    the turn is free, and the window is open                ACTIVE, with the turn
              it is cancelled, or the session ends                    DONE
    ACTIVE    its dialogue yields PULL                                PULLING
              its dialogue yields StepBehind                          QUEUED, behind the other one
              its dialogue returns or raises, or the session ends     DONE
              it is cancelled while it has the turn                   CANCELLED
    PULLING   it is given content, or a reply refuses the content     ACTIVE
              its content cannot be had, or the session ends          DONE
              it is cancelled                                         CANCELLED, or DONE if it is owed no reply
    CANCELLED its last reply is in, or the session ends               DONE
    DONE      its dialogue has ended; replies that come are dropped   none
    ========= ======================================================= ================================================

    If an exchange is cancelled when it has given up the turn, it stays ACTIVE: its replies are judged as if its owner
    were there.  If it is cancelled in the middle of a command (`HELD`), the session ends.
    """

    QUEUED = "queued"
    ACTIVE = "active"
    PULLING = "pulling"
    CANCELLED = "cancelled"
    DONE = "done"


# Looked up once: a member of an enum takes CPython 3.11 70 ns.
_QUEUED = ExchangeState.QUEUED
_PULLING = ExchangeState.PULLING
_DONE = ExchangeState.DONE


class Exchange(Generic[T]):
    """A dialogue under way: the replies it is owed, and in the end its result or its error.

    Args:
        owner: anything that tells the I/O layer who awaits the result (a future, if there is no `on_done`); None:
            nobody does.
        alone: write it only when no reply is owed.
        raw: it may end in the middle of AUTH, DATA or STARTTLS; its caller takes care of the rest.

    Attributes:
        state: where it is.
        on_done: is called with the exchange when it is done, unless nobody awaits it any more.
        group: the last group that the dialogue has written.
        owed: how many replies have yet to come.
        size: how many octets it has written.
        result, error: how it ended, once it is DONE.
        read: the number of the read during which it was written (0: not during a read): see `Inbound.reads`.
    """

    __slots__ = (
        "alone", "dialogue", "error", "group", "on_done", "owed", "owner", "raw", "read", "result", "size", "state",
    )  # fmt: skip

    def __init__(self, dialogue: Dialogue[T], owner: Any, alone: bool, raw: bool) -> None:
        self.dialogue = dialogue
        self.owner = owner
        self.on_done: Callable[[Exchange[T]], None] | None = None
        self.alone = alone
        self.raw = raw
        self.group: Group | None = None
        self.owed = 0
        self.size = 0
        self.read = 0
        self.state = _QUEUED
        self.result: Any = None
        self.error: BaseException | None = None

    @property
    def done(self) -> bool:
        """Tell whether it has a result or an error."""
        return self.state is _DONE

    @property
    def pulling(self) -> bool:
        """Tell whether its dialogue waits for content: see :meth:`asmtp.protocol.session.Session.push`."""
        return self.state is _PULLING

    @property
    def phase(self) -> Phase:
        """Return the reason to await the next reply."""
        group = self.group
        assert group is not None
        return group.phase if self.owed > 1 and not group.per_recipient else group.final
