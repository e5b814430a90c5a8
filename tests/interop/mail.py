"""The messages of the interop tests, and how they are found again in the mailboxes.

The invariant is that content arrives as it was given, every line end made CRLF, with one at its end. The servers
then store LF line ends and put fields of their own in front; that is all they change, as long as the content
has a header with From, To, Date and Message-ID:

* Return-Path is the envelope's sender, in every server; Delivered-To, X-Original-To and Envelope-to the recipient
  (Dovecot adds it where there is one only); Received is what it always is.
* Postfix adds From, Date and Message-Id where they are missing (its client is on the same host, and so a local one).
* Postfix and Exim put an empty line before content that begins with a line that is no header field. Exim ends
  a header without a body by an empty line; Dovecot stores content as it comes.
"""

from __future__ import annotations

import contextlib
import re
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from asmtp import AsyncLMTP, AsyncSMTP, SMTPRecipientsRefused
from tests.interop.servers import DOMAIN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.interop.servers import MailServer

SENDER = f"sender@{DOMAIN}"
ALICE, BOB, CAROL, DAVE, NOBODY, TEMPFAIL, FULL, BROKEN = (
    f"{name}@{DOMAIN}" for name in ("alice", "bob", "carol", "dave", "nobody", "tempfail", "full", "broken")
)
MAILBOXES = ("alice", "bob", "carol", "dave", "nobody", "tempfail", "full", "broken", "utf8")

# The options that make a client take each of the shapes that a transaction has.
SHAPES: dict[str, dict[str, Any]] = {
    "bdat-pipelined": {},
    "data-pipelined": {"chunking": False},
    "data": {"chunking": False, "pipelining": False},
}

ADDED = {
    "postfix": ["Return-Path", "X-Original-To", "Delivered-To", "Received"],
    "exim": ["Return-path", "Envelope-to", "Received"],
    "dovecot": ["Return-Path", "Delivered-To", "Received"],
    "nodemailer": ["Return-Path", "X-Asked"],
}
TEMPORARY = {"postfix": 450, "exim": 450, "dovecot": 451}  # what tempfail gets
FIELD = re.compile(rb"(\S+): ([^\n]*\n(?:[ \t][^\n]*\n)*)")


def connect(server: MailServer, shape: str = "bdat-pipelined", **options: Any) -> AsyncSMTP:
    """A client of the server's first port, which speaks LMTP to the one that does."""
    common: dict[str, Any] = {"local_hostname": "client.example", "timeout": 30, **SHAPES[shape], **options}
    if "lmtp" in server.ports:
        return AsyncLMTP(server.host, server.ports["lmtp"], **common)
    return AsyncSMTP(server.host, server.ports["plain"], **common)


async def probed(client: AsyncSMTP) -> None:
    """Have the connection probed, by two messages that nobody gets: the probe goes in front of the second."""
    for _ in range(2):
        with contextlib.suppress(SMTPRecipientsRefused):
            await client.sendmail(SENDER, [NOBODY], Letter().content)


@contextlib.asynccontextmanager
async def connected(server: MailServer, shape: str = "bdat-pipelined", **options: Any) -> AsyncIterator[AsyncSMTP]:
    """A client that is connected, and found in step with the server in the end.

    Where its shape has BDAT, the connection has passed the probe.  It goes without QUIT, which takes Exim 200 ms.
    """
    client = connect(server, shape, **options)
    await client.connect()
    try:
        if shape == "bdat-pipelined" and options.get("chunking", True):
            await probed(client)
        yield client
        assert (await client.noop()).code == 250
    finally:
        await client.close()


@dataclass
class Letter:
    """A message that can be found again.

    Attributes:
        body: what comes behind the header, with the empty line between them.
        marker: in its header, and in no other's.
    """

    body: bytes = b"\r\nhello\r\n"
    sender: str = SENDER
    marker: bytes = field(default_factory=lambda: uuid.uuid4().hex.encode())

    @property
    def content(self) -> bytes:
        """Header and body."""
        return (
            b"From: <%s>\r\nTo: <%s>\r\nDate: Thu, 1 Jan 2026 00:00:00 +0000\r\nMessage-ID: <%s@client.example>\r\n"
            % (SENDER.encode(), ALICE.encode(), self.marker)
        ) + self.body

    async def found(self, server: MailServer, mailbox: str = "alice", timeout: float = 10) -> None:
        """Wait for it, and check that it is there once, byte for byte, and that its sender was kept."""
        (stored,) = await server.arrived(mailbox, containing=self.marker, timeout=timeout)
        self.check(server, stored)

    def check(self, server: MailServer, stored: bytes) -> None:
        """Compare it with what the server has stored."""
        kept = as_stored(self.content)
        assert stored.endswith(kept)
        fields = FIELD.findall(stored[: -len(kept)])
        names = [name.decode() for name, _ in fields]
        assert names == [name for name in ADDED[server.name] if name in names]
        assert b"".join(b"%s: %s" % field for field in fields) + kept == stored
        assert names[0].lower() == "return-path"
        assert fields[0][1] == b"<%s>\n" % self.sender.encode()

    def nowhere(self, server: MailServer) -> bool:
        """Return whether no mailbox has it."""
        return not any(server.messages(mailbox, containing=self.marker) for mailbox in MAILBOXES)


def as_stored(content: bytes) -> bytes:
    """Return what has to arrive, with the line ends of a mailbox."""
    lines = re.split(rb"\r\n|\r|\n", content)
    if lines[-1] == b"":
        lines.pop()
    return b"".join(line + b"\n" for line in lines)


async def settled(server: MailServer, client: AsyncSMTP) -> None:
    """Send one more message and wait for it: what was accepted before it, once or twice, is delivered by then."""
    last = Letter()
    assert await client.sendmail(last.sender, [DAVE], last.content) == {}
    await last.found(server, "dave")
