"""What dialogues are made of: groups of commands, and the exchanges that they are under way in."""

from __future__ import annotations

import enum
from collections.abc import Generator
from typing import Any, Final, Protocol, TypeAlias

from asmtp.protocol.reply import Reply
from asmtp.protocol.state import Trigger

__all__ = ["PULL", "Dialogue", "Exchange", "Group", "Phase", "ProbeFirst", "Pull", "Watcher"]


class Phase(enum.Enum):
    """What a reply is awaited for: each has a time limit of its own (RFC 5321 §4.5.3.2)."""

    GREETING = "the greeting"
    COMMAND = "a command"
    DATA = "DATA"
    CONTENT = "content being sent"
    FINAL = "the end of the content"
    QUIT = "QUIT"


class Group:
    """Commands (or content) written in one go, and the replies they are owed.

    Args:
        data: the octets to write.
        triggers: what they mean to the state, in order.
        owed: how many replies they add to what the dialogue is owed.
        last: the dialogue writes nothing more and gives up the turn.
        open_end: nor does this one, but how many replies there will be, the first of them tells: it keeps the turn.
        wait: resume the dialogue when all it is owed has come; False: at once.
        phase: what the replies are awaited for; a group's last reply may have a phase of its own, `final`.
        secret: never shown in a trace.
        replies: where replies are collected; a dialogue that writes several groups may share one list.
        per_recipient: (LMTP) the places of the RCPT replies: each 2yz among them but the first adds
            one to the replies owed after the content (RFC 2033 §4.2).
        more: replies to what the dialogue wrote before may still come in front of this group's.

    Attributes:
        dropped: it never left: the session ended in the same breath.
        behind: it was written behind something that was not answered.
    """

    __slots__ = (
        "behind", "data", "dropped", "triggers", "final", "last", "more", "open_end", "owed", "per_recipient", "phase",
        "replies", "secret", "serial", "wait",
    )  # fmt: skip

    def __init__(
        self,
        data: bytes,
        triggers: tuple[Trigger, ...],
        owed: int = 1,
        *,
        last: bool = False,
        open_end: bool = False,
        wait: bool = True,
        phase: Phase = Phase.COMMAND,
        final: Phase | None = None,
        secret: bool = False,
        replies: list[Reply] | None = None,
        per_recipient: range | None = None,
        more: bool = False,
    ) -> None:
        self.data = data
        self.triggers = triggers
        self.owed = owed
        self.last = last
        self.open_end = open_end
        self.wait = wait
        self.phase = phase
        self.final = final or phase
        self.secret = secret
        self.replies: list[Reply] = [] if replies is None else replies
        self.per_recipient = per_recipient
        self.more = more
        self.serial = 0  # see Session.mark_clean()
        self.dropped = False
        self.behind = False


class Pull:
    """The type of PULL."""


PULL: Final = Pull()
"""What a dialogue yields to be sent the next octets of its content: bytes, or None at the end."""


class ProbeFirst:
    """What a transaction yields, before it has written anything, to have the probe of BDAT written in front of it.

    Args:
        mail: its MAIL line: see :func:`asmtp.protocol.chunking.probe`.
    """

    __slots__ = ("mail",)

    def __init__(self, mail: bytes) -> None:
        self.mail = mail


Dialogue: TypeAlias = Generator[Group | Pull | ProbeFirst, Any, Any]


class Exchange:
    """A dialogue under way: the replies it is owed, and in the end its result or its error.

    Attributes:
        owner: anything; for whoever started it.
        pulling: the dialogue waits for content: see :meth:`asmtp.protocol.session.Session.push`.
        done, result, error: how it ended.
    """

    __slots__ = (
        "abandoned", "alone", "dialogue", "done", "error", "group", "owed", "owner", "pulling", "raw",
        "result", "size", "waiting", "written",
    )  # fmt: skip

    def __init__(self, dialogue: Dialogue, owner: Any, alone: bool, raw: bool) -> None:
        self.dialogue = dialogue
        self.owner = owner
        self.alone = alone
        self.raw = raw
        self.group: Group | None = None
        self.owed = 0
        self.size = 0
        self.waiting = False
        self.written = 0  # the number of the delivery of octets in whose course it was written; 0 for none
        self.pulling = False
        self.abandoned = False
        self.done = False
        self.result: Any = None
        self.error: BaseException | None = None

    @property
    def phase(self) -> Phase:
        """What the next reply is awaited for."""
        group = self.group
        assert group is not None
        return group.phase if self.owed > 1 and not group.per_recipient else group.final


class Watcher(Protocol):
    """Who is told of what is written and read."""

    def wrote(self, group: Group) -> None:
        """A group is written."""

    def replied(self, replies: list[Reply]) -> None:
        """Replies have come in one go; what repeats a secret was taken out."""
