"""A server that is honest, unless it is told to say something else.

What it says is a dict of points of the dialogue (a command's verb; "greeting", "EHLO under TLS", "response" to a
challenge, "content" when its first octets are there, "." at its end, "afterwards" when a message was answered) to what
is said there::

    Liar({"MAIL": "2500 ok", "RCPT": [None, "550 no"], "DATA": [send("354 go"), fin]})

A str is a line, and gets its CRLF; bytes are as they are; a step of a script does what it does; None is the honest
answer.  A list is for the first time, the second, and so on; what is not in a list is for the first time.  From then
on, and on every connection but the first, the server is honest: it answers so that it can be told what to.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Mapping
from typing import TypeAlias

from tests.fakes.script import Peer, Scripted, Step, drip, octets, start_tls
from tests.fakes.server import PATH, Letter

__all__ = ["NOBODY", "PASSWORD", "USER", "Liar", "Says", "Slowly"]

USER, PASSWORD = "tester", "s3cret-Pa55word"

NOBODY = "nobody@y.example"
"""The recipient whom the honest server refuses."""

Say: TypeAlias = "str | bytes | Step | None"
Says: TypeAlias = Mapping[str, "Say | list[Say]"]


class Slowly(bytes):
    """Words that are said octet by octet."""


class Liar(Scripted):
    """The server: it says what it is told to, and keeps what it has seen.

    Args:
        offers, under_tls: EHLO keywords, and those under TLS, if they are others.
        tls: for STARTTLS.
        stalling: read nothing while what was said is not taken.

    Attributes:
        letters: the messages that came whole and were taken, with the final dot or the last octet of BDAT LAST.
        whole: the senders of those that came whole, whatever was said to them.
        commands: what came besides, on all connections.
        begun: how many times MAIL was.
    """

    def __init__(
        self,
        says: Says,
        offers: tuple[str, ...] = (),
        under_tls: tuple[str, ...] | None = None,
        *,
        lmtp: bool = False,
        tls: ssl.SSLContext | None = None,
        stalling: bool = False,
    ) -> None:
        super().__init__((), None)
        self.says = {point: [*what] if isinstance(what, list) else [what] for point, what in says.items()}
        self.offers = offers
        self.under_tls = offers if under_tls is None else under_tls
        self.lmtp = lmtp
        self.tls = tls
        self.stalling = stalling
        self.letters: list[Letter] = []
        self.whole: list[str | None] = []
        self.commands: list[str] = []
        self.begun = 0

    def accept(self) -> Peer:
        peer = Peer([Conversation(self, {} if self.peers else self.says)])
        self.peers.append(peer)
        return peer


class Conversation:
    """One connection; as a step of a script it is all of it."""

    def __init__(self, liar: Liar, says: dict[str, list[Say]]) -> None:
        self.liar = liar
        self.peer: Peer
        self.secure = False
        self._says = says
        self._reset()

    def _reset(self) -> None:
        self.sender: str | None = None
        self.recipients: list[str] = []
        self.body = b""
        self.failed = False

    @property
    def offers(self) -> tuple[str, ...]:
        return self.liar.under_tls if self.secure else self.liar.offers

    async def __call__(self, peer: Peer) -> None:
        self.peer = peer
        # asyncio does not do it for a socket whose protocol was not named: under TLS it waited 40 ms now and then.
        peer.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.liar.stalling:
            peer.transport.set_write_buffer_limits(0)
        await self._say("greeting", "220 liar.example ESMTP")
        while (line := await self._line()) is not None:
            self.liar.commands.append(line)
            verb = line.split(" ")[0].split(":")[0].upper()
            await getattr(self, "_do_" + verb.lower(), self._do_other)(line)

    # ---- octets -----------------------------------------------------------------------------

    async def _line(self) -> str | None:
        """Return the next command; None: the client has closed."""
        peer = self.peer
        while (end := peer.received.find(b"\n", peer.consumed)) < 0:
            if peer.eof:
                return None
            await peer.more()
        line = await peer.take(end + 1 - peer.consumed)
        assert line.endswith(b"\r\n"), f"a bare LF: {line!r}"
        early = peer.coming and not line.startswith(b"BDAT ")
        assert not early or "PIPELINING" in self.offers, f"before the reply to {line!r}: {peer.surplus!r}"
        return line[:-2].decode()

    async def _write(self, data: bytes) -> None:
        peer = self.peer
        if not data or peer.transport.is_closing():
            return
        peer.transport.write(data)
        if self.liar.stalling and peer.transport.get_write_buffer_size():
            peer.transport.pause_reading()
            while peer.transport.get_write_buffer_size() and not peer.eof:  # noqa: ASYNC110  # there is no event
                await asyncio.sleep(0)
            if not peer.transport.is_closing():
                peer.transport.resume_reading()

    async def _say(self, point: str, *honest: str) -> int:
        """Answer, and return the code of what was said; 0 if that was more than words."""
        lies = self._says.get(point)
        lie = lies.pop(0) if lies else None
        if lie is None:
            words = b"".join(map(octets, honest))
        else:
            if callable(lie):
                await lie(self.peer)
                return 0
            words = octets(lie)
        await (drip(words)(self.peer) if isinstance(lie, Slowly) else self._write(words))
        return int(words[:3]) if words[:3].isdigit() else 0

    # ---- before there is a message ----------------------------------------------------------

    async def _do_other(self, line: str) -> None:
        await self._say(line.split(" ")[0].upper(), "500 5.5.2 what?")

    async def _do_ehlo(self, line: str) -> None:
        self._reset()
        *most, last = ["liar.example", *self.offers]
        point = line[:4].upper() + (" under TLS" if self.secure else "")
        await self._say(point, *[f"250-{word}" for word in most], f"250 {last}")

    _do_lhlo = _do_ehlo

    async def _do_helo(self, line: str) -> None:
        self._reset()
        await self._say("HELO", "250 liar.example")

    async def _do_starttls(self, line: str) -> None:
        silent = "STARTTLS" in self._says
        if await self._say("STARTTLS", "220 2.0.0 go") == 220 and self.liar.tls is not None and not silent:
            await start_tls(self.liar.tls)(self.peer)
            self.secure = True

    async def _do_auth(self, line: str) -> None:
        _, mechanism, *initial = line.split(" ")
        honest = "235 2.7.0 welcome" if initial else "334 VXNlcm5hbWU6" if mechanism == "LOGIN" else "334 PDEuMkB4Pg=="
        asked, point = 0, "AUTH"
        if mechanism == "LOGIN" and initial:  # smtplib says the user's name at once
            honest = "334 UGFzc3dvcmQ6"
            asked, point = 1, "AUTH" if "AUTH" in self._says else "response"
        code = await self._say(point, honest)
        while code == 334:
            response = await self._line()
            if response is None:
                break
            if response == "*":
                code = await self._say("cancelled", "501 5.7.0 cancelled")
                continue
            asked += 1
            welcome = mechanism != "LOGIN" or asked > 1
            code = await self._say("response", "235 2.7.0 welcome" if welcome else "334 UGFzc3dvcmQ6")

    # ---- messages ---------------------------------------------------------------------------

    async def _do_mail(self, line: str) -> None:
        found = PATH.search(line)
        assert found is not None, line
        self.liar.begun += 1
        if self.sender is not None:
            await self._say("MAIL", "503 5.5.1 sender already given")
        elif 200 <= await self._say("MAIL", f"250 2.1.0 <{found[1]}> may send") <= 299:
            self.sender = found[1]

    async def _do_rcpt(self, line: str) -> None:
        found = PATH.search(line)
        assert found is not None, line
        who = found[1]
        honest = f"550 5.1.1 <{who}> is nobody" if who == NOBODY else f"250 2.1.5 <{who}> may have it"
        if self.sender is None:
            honest = "503 5.5.1 need MAIL first"
        if 200 <= await self._say("RCPT", honest) <= 299:
            self.recipients.append(who)

    async def _do_data(self, line: str) -> None:
        code = await self._say("DATA", "354 go" if self.recipients else "503 5.5.1 no valid recipients")
        if code != 354:
            return
        peer = self.peer
        while not peer.coming and not peer.eof:
            await peer.more()
        if "content" in self._says:
            await self._say("content")
        seen = 0
        while (size := self._content_ended(seen)) is None:
            if peer.eof:
                await peer.take(peer.coming)
                return
            seen = peer.coming
            await peer.more()
        stuffed = await peer.take(size)
        await self._taken(re.sub(rb"(?m)^\.", b"", stuffed[:-3]))

    def _content_ended(self, seen: int) -> int | None:
        """Count the octets to the end of the content, the dot's line included; `seen` were looked at."""
        peer = self.peer
        if peer.received.startswith(b".\r\n", peer.consumed):
            return 3
        found = peer.received.find(b"\r\n.\r\n", peer.consumed + max(0, seen - 4))
        return None if found < 0 else found + 5 - peer.consumed

    async def _do_bdat(self, line: str) -> None:
        _, size, *last = line.split(" ")
        if "BDAT unread" in self._says:  # and what follows is taken for commands
            await self._say("BDAT unread")
            return
        chunk = await self.peer.take(int(size))
        if len(chunk) < int(size):
            return
        self.body += chunk
        if last:
            await self._taken(self.body, "BDAT")
        elif 400 <= await self._say("BDAT", "250 2.0.0 chunk taken") <= 599:
            self.failed = True

    async def _taken(self, content: bytes, point: str = ".") -> None:
        """Answer: all of a message is there."""
        self.liar.whole.append(self.sender)
        taken = []
        if not self.recipients or self.failed:
            await self._say(point, "503 5.5.1 no valid recipients")
        else:
            for who in self.recipients if self.liar.lmtp else [f"from {self.sender}"]:
                if 200 <= await self._say(point, f"250 2.0.0 <{who}> taken") <= 299:
                    taken.append(who)
        if taken:
            recipients = taken if self.liar.lmtp else self.recipients
            self.liar.letters.append(Letter(self.sender or "", recipients, content))
        self._reset()
        if "afterwards" in self._says:
            await self._say("afterwards")

    # ---- the rest ---------------------------------------------------------------------------

    async def _do_rset(self, line: str) -> None:
        self._reset()
        await self._say("RSET", "250 2.0.0 reset")

    async def _do_noop(self, line: str) -> None:
        await self._say("NOOP", "250 2.0.0 still here")

    async def _do_vrfy(self, line: str) -> None:
        await self._say("VRFY", "252 2.1.5 try it")

    async def _do_quit(self, line: str) -> None:
        if await self._say("QUIT", "221 2.0.0 bye") == 221:
            self.peer.transport.close()
