"""What can be said on a connection: commands, STARTTLS, logins.  How it is made, and messages, are client.py's."""

from __future__ import annotations

import asyncio
import email.utils
import inspect
import ssl
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import anyio.to_thread

from asmtp import transport
from asmtp.auth import AuthObjects
from asmtp.errors import (
    SMTPAuthenticationError,
    SMTPException,
    SMTPHeloError,
    SMTPNotSupportedError,
    SMTPResponseException,
)
from asmtp.options import (
    Token,
    context_from_files,
    default_context,
)
from asmtp.protocol import dialogue, sasl
from asmtp.protocol.command import command, gate, options_text
from asmtp.protocol.content import to_octets
from asmtp.protocol.envelope import path
from asmtp.protocol.extensions import Extensions
from asmtp.protocol.reply import Reply
from asmtp.protocol.session import Session
from asmtp.protocol.state import Event, State
from asmtp.protocol.transaction import manual_content
from asmtp.transport import Connection

__all__ = ["Commands"]

T = TypeVar("T")


class Commands(AuthObjects):
    """smtplib's commands, awaited; a part of :class:`~asmtp.AsyncSMTP`, which knows the connection."""

    ehlo_msg = "ehlo"
    lmtp = False
    command_encoding: str
    local_hostname: str | None
    helo_resp: bytes | None
    ehlo_resp: bytes | None
    ssl_context: ssl.SSLContext | None
    _session: Session
    _host: str
    _port: int
    _server_hostname: str | None
    _sock_taken: bool
    _greeted: asyncio.Lock
    _rcpts: int  # accepted by hand since MAIL

    def _live(self) -> Connection:
        """The connection that commands go to.

        Raises:
            SMTPServerDisconnected: there is none.
        """
        raise NotImplementedError

    async def _run(self, what: Any, *, alone: bool = False, raw: bool = False) -> Any:
        return await self._live().run(what, alone=alone, raw=raw)

    async def _offload(self, function: Callable[..., T], *args: Any) -> T:
        """Call what would block the loop, in a thread."""
        return await anyio.to_thread.run_sync(function, *args)

    @property
    def esmtp_features(self) -> Extensions:
        """What the server offers: a dict of lower-case keyword to parameters; empty before EHLO."""
        return self._session.extensions

    @esmtp_features.setter
    def esmtp_features(self, features: dict[str, str]) -> None:
        self._session.extensions = Extensions(features)

    @property
    def does_esmtp(self) -> bool:
        """Whether the server answered EHLO (LHLO) with 250."""
        return self._session.esmtp

    @does_esmtp.setter
    def does_esmtp(self, value: bool) -> None:
        self._session.esmtp = bool(value)

    def has_extn(self, opt: str) -> bool:
        """Whether the server offers a service extension; in any case of letters."""
        return opt.lower() in self._session.extensions

    # ---- commands ---------------------------------------------------------------------------

    @property
    def in_challenge(self) -> bool:
        """Whether a SASL response is due next: what is written then is a secret."""
        return self._session.state is State.CHALLENGE

    async def docmd(self, cmd: str, args: str = "") -> Reply:
        """Send any command, and return its reply.

        Raises:
            ValueError: a control character in the command.
        """
        line = command(cmd, args, argument="cmd", encoding=self.command_encoding, secret=self.in_challenge)
        replies = await self._run(dialogue.raw_write(self._session, line, command=True), raw=True)
        reply: Reply = replies[0]
        return reply

    async def helo(self, name: str = "") -> Reply:
        """HELO (RFC 5321 §4.1.1.1), with this machine's name unless another is given."""
        reply: Reply = await self._run(dialogue.hello(self._session, "helo", await self._hello_name(name)), alone=True)
        self.helo_resp = reply.message
        return reply

    async def ehlo(self, name: str = "") -> Reply:
        """EHLO, or LHLO for LMTP; what the server offers is in `esmtp_features` then."""
        verb = self.ehlo_msg
        reply: Reply = await self._run(dialogue.hello(self._session, verb, await self._hello_name(name)), alone=True)
        self.ehlo_resp = reply.message
        return reply

    async def _hello_name(self, name: str) -> str:
        if not name:
            if self.local_hostname is None:
                self.local_hostname = await self._offload(transport.local_hostname)
            name = self.local_hostname
        return name

    async def ehlo_or_helo_if_needed(self) -> None:
        """EHLO, or HELO if that is refused, unless either was said before.

        Raises:
            SMTPHeloError: both were refused.
        """
        async with self._greeted:
            if self.helo_resp is None and self.ehlo_resp is None and not (await self.ehlo()).ok:
                reply = await self.helo()
                if not reply.ok:
                    raise SMTPHeloError(*reply)

    async def noop(self) -> Reply:
        """NOOP."""
        reply: Reply = await self._run(dialogue.single(b"noop\r\n"))
        return reply

    async def rset(self) -> Reply:
        """RSET: whatever transaction is open is given up."""
        self.command_encoding = "ascii"
        reply: Reply = await self._run(self._session.reset())
        return reply

    async def help(self, args: str = "") -> bytes:
        """HELP: its text."""
        reply: Reply = await self._run(dialogue.single(command("help", args)))
        return reply.message

    async def verify(self, address: str) -> Reply:
        """VRFY: ask whether an address is valid."""
        return await self._ask("vrfy", address)

    vrfy = verify

    async def expn(self, address: str) -> Reply:
        """EXPN: ask for the members of a mailing list."""
        return await self._ask("expn", address)

    async def _ask(self, verb: str, address: str) -> Reply:
        gate(address, "address")
        bare = email.utils.parseaddr(address)[1] or address
        line = command(verb, bare, argument="address", encoding=self.command_encoding)
        reply: Reply = await self._run(dialogue.single(line))
        return reply

    async def mail(self, sender: str, options: Sequence[str] = ()) -> Reply:
        """MAIL: begin a transaction by hand.  :meth:`sendmail` does all of one.

        Raises:
            SMTPNotSupportedError: SMTPUTF8 is among the options, and the server does not offer it.
        """
        text = ""
        if options and self.does_esmtp:
            text = options_text(options, "options")
            if "smtputf8" in text.lower().split():
                if not self.has_extn("smtputf8"):
                    raise SMTPNotSupportedError("SMTPUTF8 not supported by server")
                self.command_encoding = "utf-8"
        line = command(f"mail from:{path(sender, 'sender')}{text}", encoding=self.command_encoding)
        self._rcpts = 0
        reply: Reply = await self._run(dialogue.single(line, Event.mail))
        return reply

    async def rcpt(self, recip: str, options: Sequence[str] = ()) -> Reply:
        """RCPT: add a recipient by hand."""
        text = options_text(options, "options") if options and self.does_esmtp else ""
        line = command(f"rcpt to:{path(recip, 'recip')}{text}", encoding=self.command_encoding)
        reply: Reply = await self._run(dialogue.single(line, Event.rcpt))
        self._rcpts += reply.ok
        return reply

    async def data(self, msg: str | bytes) -> Reply:
        """DATA and the content, by hand; the final reply.

        For LMTP, which has a final reply for each recipient: the first that is a refusal, else the last.

        Raises:
            SMTPDataError: DATA was not answered 354.
        """
        owed = max(1, self._rcpts) if self.lmtp else 1
        reply: Reply = await self._run(manual_content(self._session, to_octets(msg), owed))
        return reply

    # ---- TLS, login -------------------------------------------------------------------------

    async def starttls(
        self,
        keyfile: str | None = None,
        certfile: str | None = None,
        context: ssl.SSLContext | None = None,
        *,
        server_hostname: str | None = None,
    ) -> Reply:
        """STARTTLS (RFC 3207).  What the server said before TLS is forgotten, and EHLO is said again when needed.

        Args:
            keyfile, certfile: deprecated: use a context.
            context: by default certificate and host name are verified, TLS 1.2 at least.
            server_hostname: the name the certificate has to be for, if it is not the host.

        Raises:
            SMTPNotSupportedError: the server does not offer it.
            SMTPResponseException: the server offered it, and refused.
            ssl.SSLError: the handshake failed; the connection is closed.
        """
        if keyfile is not None or certfile is not None:
            context = await self._offload(context_from_files, keyfile, certfile, context)
        await self.ehlo_or_helo_if_needed()
        return await self._starttls(context, server_hostname)

    async def _starttls(self, context: ssl.SSLContext | None, server_hostname: str | None = None) -> Reply:
        if not self.has_extn("starttls"):
            raise SMTPNotSupportedError("STARTTLS extension not supported by server.")
        chosen = context or self.ssl_context
        if chosen is None:
            chosen = await self._offload(default_context)
        connection = self._live()
        asking = dialogue.starttls(self._session, self.ehlo_msg, await self._name_under_tls())
        reply: Reply
        hello: Reply | None
        hostname = server_hostname or self._server_hostname or self._host
        reply, hello = await connection.start_tls(asking, chosen, hostname)
        if reply.code != 220:
            raise SMTPResponseException(*reply)
        self.helo_resp = None
        self.ehlo_resp = hello.message if hello is not None and hello.ok else None
        return reply

    async def _name_under_tls(self) -> str | None:
        """The name for the EHLO that follows STARTTLS; None: it is not said before it is needed."""
        return await self._hello_name("")

    async def login(self, user: str, password: str, *, initial_response_ok: bool = True) -> Reply:
        """Log in, with the mechanism that protects the password best among those that both sides know.

        Raises:
            SMTPNotSupportedError: the server does not offer AUTH.
            SMTPAuthenticationError: the credentials were refused.
            SMTPException: no mechanism is known to both sides.
            ValueError: a control character in the user name.
        """
        await self.ehlo_or_helo_if_needed()
        if not self.has_extn("auth"):
            raise SMTPNotSupportedError("SMTP AUTH extension not supported by server.")
        self.user, self.password = user, password
        names = sasl.choose(self.esmtp_features.auth, user, password)
        mechanisms = [(name, sasl.MECHANISMS[name](user, password)) for name in names]
        return await self._first_accepted(mechanisms, initial_response_ok=initial_response_ok)

    async def _login_by_token(self, user: str, source: Token) -> None:
        """Log in with an access token; if the server rejects it, once more with a fresh one."""
        await self.ehlo_or_helo_if_needed()
        if not self.has_extn("auth"):
            raise SMTPNotSupportedError("SMTP AUTH extension not supported by server.")
        token = await self._get_token(source, force=False)
        try:
            await self._present(user, token)
        except SMTPAuthenticationError as error:
            rejected = 500 <= error.smtp_code <= 599
            fresh = await self._get_token(source, force=True) if rejected else token
            if fresh == token:  # accounts are locked over less
                raise
            await self._present(user, fresh)

    async def _get_token(self, source: Any, *, force: bool) -> str:
        if inspect.iscoroutinefunction(source) or inspect.iscoroutinefunction(type(source).__call__):
            token = source(force)
        else:
            token = await self._call_out(source, force)
        if inspect.isawaitable(token):
            token = await token
        if not isinstance(token, str):
            raise TypeError(f"token must return a str, not {type(token).__name__}")
        return token

    async def _call_out(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function of the caller's that may block, in a thread; who is cancelled does not wait for it."""
        return await anyio.to_thread.run_sync(function, *args, abandon_on_cancel=True)

    async def _present(self, user: str, token: str) -> Reply:
        # Of a socket that was given, and of a Unix socket, there is no host to name.
        named = not self._sock_taken and not self._host.startswith("/")
        host, port = (self._host, self._port) if named else ("", 0)
        names = sasl.choose_token(self.esmtp_features.auth, user, token)
        mechanisms = [(name, sasl.TOKEN_MECHANISMS[name](user, token, host, port)) for name in names]
        return await self._first_accepted(mechanisms)

    async def _first_accepted(
        self, mechanisms: Iterable[tuple[str, sasl.Mechanism]], *, initial_response_ok: bool = True
    ) -> Reply:
        refusal = SMTPException("No suitable authentication method found.")
        for name, mechanism in mechanisms:
            lines = sasl.authenticate(name, mechanism, initial_response_ok=initial_response_ok)
            try:
                reply: Reply = await self._run(dialogue.authentication(lines), alone=True)
                return reply
            except SMTPAuthenticationError as error:
                refusal = error
                if error.smtp_code == 535:  # RFC 4954 §6: the credentials are wrong, whatever the mechanism
                    break
        raise refusal

    async def auth(self, mechanism: str, authobject: Callable[..., Any], *, initial_response_ok: bool = True) -> Reply:
        """AUTH with a mechanism of the caller's (RFC 4954).

        Args:
            mechanism: its name.
            authobject: called with each challenge (bytes), returns the response (str or bytes); called
                with nothing for the initial response, where it returns None if there is none.

        Raises:
            SMTPAuthenticationError: the server said no.
        """
        lines = self._exchange(mechanism, authobject, initial_response_ok)
        reply: Reply = await self._run(dialogue.authentication(lines), alone=True)
        return reply
