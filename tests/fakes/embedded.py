"""aiosmtpd as the other side: an SMTP server that asmtp's authors did not write."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ssl
from collections.abc import AsyncIterator
from typing import Any, TypeVar

from aiosmtpd.smtp import MISSING, SMTP, AuthResult, Envelope, LoginPassword, Session

from asmtp.cli.demo.server import Server
from tests.fakes.relay import Letter
from tests.fakes.script import listening

__all__ = ["PASSWORD", "USER", "Embedded", "embedded"]

USER, PASSWORD = "tester", "s3cret-Pa55"


class Embedded:
    """The server's handler: it says what is offered and who may log in, and keeps what came.

    Args:
        offers: EHLO keywords to add.
        withhold: keywords to leave out.
        mechanisms: the SASL mechanisms offered.
    """

    def __init__(
        self,
        offers: tuple[str, ...] = ("PIPELINING", "CHUNKING"),
        withhold: tuple[str, ...] = (),
        mechanisms: tuple[str, ...] = ("CRAM-MD5", "PLAIN", "LOGIN"),
    ) -> None:
        self.offers = offers
        self.withhold = withhold
        self.mechanisms = mechanisms
        self.letters: list[Letter] = []
        self.logins: list[tuple[str, bool]] = []
        self.hellos = 0
        self.encrypted: list[bool] = []
        self.servers: list[Server] = []
        self.host = ""
        self.port = 0

    async def handle_EHLO(
        self, server: SMTP, session: Session, envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        session.host_name = hostname
        self.hellos += 1
        lines = [line for line in responses if line[4:].split()[0] not in self.withhold]
        return [*lines[:-1], *(f"250-{keyword}" for keyword in self.offers), lines[-1]]

    async def handle_DATA(self, server: Server, session: Session, envelope: Envelope) -> str:
        content = envelope.content
        assert isinstance(content, bytes)
        assert envelope.mail_from is not None
        self.letters.append(
            Letter(envelope.mail_from, list(envelope.rcpt_tos), content, " ".join(envelope.mail_options))
        )
        # aiosmtpd keeps a note of TLS only where STARTTLS led to it.
        assert server.transport is not None
        self.encrypted.append(server.transport.get_extra_info("sslcontext") is not None)
        return "250 2.0.0 taken"

    async def auth_CRAM__MD5(self, server: Server, args: list[str]) -> AuthResult:
        challenge = b"<1896.697170952@postoffice.example>"
        response = await server.challenge_auth(challenge)
        if response is MISSING:
            return AuthResult(success=False, handled=True)
        assert isinstance(response, bytes)
        user, _, digest = response.rpartition(b" ")
        wanted = hmac.new(PASSWORD.encode(), challenge, "md5").hexdigest()
        return self.judge("CRAM-MD5", user == USER.encode() and digest == wanted.encode())

    def authenticate(self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
        assert isinstance(data, LoginPassword)
        return self.judge(mechanism, (data.login, data.password) == (USER.encode(), PASSWORD.encode()))

    def judge(self, mechanism: str, right: bool) -> AuthResult:
        self.logins.append((mechanism, right))
        return AuthResult(success=right, handled=False, auth_data=None)


E = TypeVar("E", bound=Embedded)


@contextlib.asynccontextmanager
async def embedded(
    handler: E, *, tls: ssl.SSLContext | None = None, implicit: bool = False, **options: Any
) -> AsyncIterator[E]:
    """Run aiosmtpd in the test's loop.

    Args:
        tls: offer STARTTLS; with `implicit`, TLS from the first octet.
        options: for aiosmtpd's SMTP.
    """

    def accept() -> Server:
        server = Server(
            handler,
            hostname="embedded.example",
            loop=asyncio.get_running_loop(),
            enable_SMTPUTF8=True,
            tls_context=None if implicit else tls,
            auth_require_tls=False,
            auth_exclude_mechanism={*_has(handler), "PLAIN", "LOGIN"} - set(handler.mechanisms),
            authenticator=handler.authenticate,
            **options,
        )
        handler.servers.append(server)
        return server

    async with listening(accept, tls=tls if implicit else None) as address:
        handler.host, handler.port = address
        try:
            yield handler
        finally:
            for server in handler.servers:
                await _stop(server)


def _has(handler: Embedded) -> set[str]:
    return {name.removeprefix("auth_").replace("__", "-") for name in dir(handler) if name.startswith("auth_")}


async def _stop(server: Server) -> None:
    for transport in (server.transport, server._original_transport):
        if transport is not None:
            transport.abort()  # type: ignore[attr-defined]
    task = server._handler_coroutine
    if task is not None:
        task.cancel()  # it may wait for a handshake that nobody goes on with
        with contextlib.suppress(asyncio.CancelledError, ConnectionError, asyncio.IncompleteReadError):
            await task
