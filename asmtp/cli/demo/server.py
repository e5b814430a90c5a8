"""A mail server on loopback, for the demo: aiosmtpd, with PIPELINING advertised and CHUNKING added."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

from aiosmtpd.smtp import SMTP, Envelope, Session, syntax

__all__ = ["Inbox", "Letter", "Server", "serving"]


class Letter(NamedTuple):
    """A message as the server took it."""

    sender: str
    recipients: list[str]
    content: bytes


class Server(SMTP):
    """aiosmtpd's server, with CHUNKING (RFC 3030)."""

    @syntax("BDAT size [LAST]")
    async def smtp_BDAT(self, arg: str | None) -> None:
        """Read a chunk: its octets follow, whatever becomes of them (RFC 3030 §2)."""
        words = (arg or "").upper().split()
        if not words or not words[0].isdigit() or words[1:] not in ([], ["LAST"]):
            await self.push("501 5.5.4 Syntax: BDAT size [LAST]")
            return
        envelope: Any = self.envelope
        chunk = await self._reader.readexactly(int(words[0]))
        if not envelope.rcpt_tos:
            await self.push("503 5.5.1 no valid recipients")
        elif words[-1] != "LAST":
            envelope.content = (envelope.content or b"") + chunk
            await self.push("250 2.0.0 chunk taken")
        else:
            envelope.content = (envelope.content or b"") + chunk
            await self.push(await self._call_handler_hook("DATA"))
            self._set_post_data_state()  # type: ignore[no-untyped-call]


class Inbox:
    """The answers of the server: it offers `offers`, keeps the letters, and knows no ``nobody@``."""

    def __init__(self, *offers: str) -> None:
        self.offers = offers
        self.letters: list[Letter] = []
        self.port = 0

    async def handle_EHLO(
        self, server: SMTP, session: Session, envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        """Offer PIPELINING: aiosmtpd takes groups of commands, but does not say so."""
        session.host_name = hostname
        return [*responses[:-1], *(f"250-{keyword}" for keyword in self.offers), responses[-1]]

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, rcpt_options: list[str]
    ) -> str:
        """Refuse one address."""
        if address.startswith("nobody@"):
            return "550 5.1.1 no such user"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        """Keep a letter."""
        content = envelope.content
        assert isinstance(content, bytes)
        self.letters.append(Letter(envelope.mail_from or "", list(envelope.rcpt_tos), content))
        return f"250 2.0.0 OK: letter {len(self.letters)} taken"


@contextlib.contextmanager
def serving(inbox: Inbox) -> Iterator[Inbox]:
    """Run the server in a thread of its own, on a free port of 127.0.0.1; the port is in `inbox.port`."""
    loop = asyncio.new_event_loop()
    started = threading.Event()
    connections: list[Server] = []

    def accept() -> Server:
        server = Server(inbox, hostname="demo.example", enable_SMTPUTF8=True, loop=loop)
        connections.append(server)
        return server

    async def serve() -> None:
        server = await loop.create_server(accept, "127.0.0.1", 0)
        inbox.port = server.sockets[0].getsockname()[1]
        started.set()
        try:
            await loop.create_future()  # until it is cancelled
        finally:
            server.close()
            for connection in connections:
                if connection.transport is not None:
                    connection.transport.close()
            tasks = [c._handler_coroutine for c in connections if c._handler_coroutine is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def run() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(main)
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    main = loop.create_task(serve())
    thread = threading.Thread(target=run, name="asmtp demo server")
    thread.start()
    started.wait()
    try:
        yield inbox
    finally:
        loop.call_soon_threadsafe(main.cancel)
        thread.join()
