"""One connection, awaited: AsyncSMTP, AsyncSMTP_SSL, AsyncLMTP.  smtplib's methods, on the protocol state machine."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import functools
import inspect
import logging
import ssl
import sys
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from email.message import Message
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import anyio.to_thread

from asmtp import transport
from asmtp.auth import AuthObjects
from asmtp.body import PIECE, WHOLE, Content, Pieces, body_of, whole
from asmtp.errors import (
    SMTPAuthenticationError,
    SMTPConnectError,
    SMTPException,
    SMTPHeloError,
    SMTPNotSupportedError,
    SMTPResponseException,
    SMTPServerDisconnected,
    SMTPStateError,
)
from asmtp.options import (
    LMTP_PORT,
    SMTP_PORT,
    SMTP_SSL_PORT,
    Options,
    TLSMode,
    Token,
    check,
    context_from_files,
    default_context,
    host_and_port,
    unverified_context,
)
from asmtp.protocol import dialogue, sasl
from asmtp.protocol.command import command, gate, options_text
from asmtp.protocol.content import to_octets
from asmtp.protocol.envelope import Envelope, path
from asmtp.protocol.extensions import Extensions
from asmtp.protocol.message import compose, weight
from asmtp.protocol.reply import Reply
from asmtp.protocol.session import Session
from asmtp.protocol.state import Event, State
from asmtp.protocol.transaction import Body, NotBegun, Outcome, Transaction, manual_content
from asmtp.transport import Address, Connection, Timeouts, open_connection

__all__ = ["AsyncLMTP", "AsyncSMTP", "AsyncSMTP_SSL"]

T = TypeVar("T")
logger = logging.getLogger("asmtp")


class AsyncSMTP(AuthObjects):
    """A connection to an SMTP server.

    Any number of tasks may await :meth:`sendmail` and :meth:`send_message` on one connection: their messages
    are pipelined as far as the server allows, and each task gets its own result.

    As a context manager it connects on entry, and says QUIT on exit.

    Args:
        host: where to connect to; ``"host:port"`` is understood, and the absolute path of a Unix socket.
        port: 0 for the protocol's own.
        local_hostname: for EHLO; by default this machine's fully qualified name.
        timeout: seconds for every phase, None for no limits, or :class:`~asmtp.Timeouts`, the default.
        source_address: (host, port) to bind to before connecting.
        options: see :class:`~asmtp.options.Options`.

    Raises:
        ValueError, TypeError: an argument is wrong.
    """

    default_port = SMTP_PORT
    ehlo_msg = "ehlo"
    default_tls: TLSMode | None = None
    lmtp = False
    _session_class = Session

    def __init__(
        self,
        host: str = "",
        port: int = 0,
        local_hostname: str | None = None,
        timeout: float | Timeouts | None = Timeouts(),  # noqa: B008  # immutable
        source_address: tuple[str, int] | None = None,
        **options: Unpack[Options],
    ) -> None:
        self._host = host
        self._port = port
        self.local_hostname = local_hostname if local_hostname is None else gate(local_hostname, "local_hostname")
        self.timeouts = Timeouts.of(timeout)
        self.source_address = source_address
        check(options, type(self).__name__)
        self._username = options.get("username")
        self._password = options.get("password")
        self._token = options.get("token")
        default: TLSMode = "none" if self._username is None else "required"
        self._tls: TLSMode = options.get("tls") or self.default_tls or default
        self.ssl_context = options.get("ssl_context")
        self._server_hostname = options.get("server_hostname")
        self._window = options.get("window", 100)
        self._window_octets = options.get("window_octets", 1 << 20)
        self._pipelining = options.get("pipelining", True)
        self.chunking = options.get("chunking", True)
        self._sock = options.get("sock")
        self.command_encoding = "ascii"
        self.helo_resp: bytes | None = None
        self.ehlo_resp: bytes | None = None
        self._trace: Callable[[str, bytes], None] | None = None
        self._session = self._new_session()
        self._connection: Connection | None = None
        self._preparing: asyncio.Task[Any] | None = None  # the task that connects, until all is as it shall be
        self._sock_taken = False
        self._greeted = asyncio.Lock()
        self._rcpts = 0  # accepted by hand since MAIL

    def _new_session(self) -> Session:
        session = self._session_class(
            lmtp=self.lmtp,
            pipelining=self._pipelining,
            window=self._window,
            window_octets=self._window_octets,
        )
        session.trace = self._trace
        return session

    # ---- what is known ----------------------------------------------------------------------

    @property
    def is_connected(self) -> bool:
        """Whether commands can be sent."""
        return self._connection is not None and not self._session.closed and self._preparing is None

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

    @property
    def sock(self) -> transport.SocketView | None:
        """What there is to see of the socket; None without a connection."""
        if not self.is_connected or self._connection is None:
            return None
        return transport.SocketView(self._connection.transport, self.timeouts.command)

    @property
    def trace(self) -> Callable[[str, bytes], None] | None:
        """Called with ``">"`` and what is written, and with ``"<"`` and each reply; credentials are not shown."""
        return self._trace

    @trace.setter
    def trace(self, function: Callable[[str, bytes], None] | None) -> None:
        self._trace = self._session.trace = function

    def __repr__(self) -> str:
        state = self._session.state.name.lower() if self._connection is not None else "not connected"
        return f"<{type(self).__module__}.{type(self).__name__} {self._host}:{self._port} {state}>"

    # ---- connecting and leaving -------------------------------------------------------------

    async def connect(self, host: str = "", port: int = 0, source_address: tuple[str, int] | None = None) -> Reply:
        """Connect, and do what `tls` and the credentials given to the constructor ask for.

        Args:
            host, port: by default those given to the constructor, else localhost and the protocol's port.

        Returns:
            The server's greeting.

        Raises:
            OSError: no connection.
            SMTPConnectError: the greeting was not 220.
            SMTPTimeoutError, SMTPServerDisconnected: as everywhere.
            SMTPNotSupportedError: TLS is required, or a login asked for, and not offered.
            ssl.SSLError: the TLS handshake failed, or the certificate does not fit.
            SMTPAuthenticationError: the credentials were refused; for a token: a fresh one too.
            Exception: what the function given as `token` raises.
        """
        if self._preparing is not None:
            raise SMTPStateError("connect() is under way")
        if self.is_connected:
            raise SMTPStateError("already connected: call quit() or close() first")
        self._preparing = asyncio.current_task()
        try:
            reply = await self._open(host, port, source_address)
            if self._welcome(reply):
                try:
                    await self._prepare(verified=True)
                except ssl.SSLCertVerificationError as error:
                    if self._tls != "opportunistic" or self._sock_taken:
                        raise
                    await self.close()
                    logger.warning("certificate not verified, going on without: %s", error.verify_message)
                    if self._welcome(await self._open(host, port, source_address)):
                        await self._prepare(verified=False)
        except BaseException:
            self.close()
            raise
        finally:
            self._preparing = None
        return reply

    def _welcome(self, greeting: Reply) -> bool:
        """Whether to go on after the greeting."""
        if greeting.code != 220:
            raise SMTPConnectError(*greeting)
        return True

    async def _prepare(self, *, verified: bool) -> None:
        """TLS and login, as the constructor was told."""
        trusted = self._tls != "opportunistic"
        if self._tls in ("required", "opportunistic"):
            await self.ehlo_or_helo_if_needed()
            if self._tls == "required" or self.has_extn("starttls"):
                await self._starttls(None if verified else unverified_context())
                trusted = trusted or verified
        if self._username is not None:
            if not trusted:
                logger.warning("not logging in: the connection is not protected by verified TLS")
            elif self._token is not None:
                await self._login_by_token(self._username, self._token)
            elif self._password is not None:
                await self.login(self._username, self._password)

    async def _open(self, host: str, port: int, source_address: tuple[str, int] | None) -> Reply:
        """Connect and read the greeting."""
        if source_address:
            self.source_address = source_address
        if not host:
            if self._sock_taken:
                raise SMTPStateError("the socket given to the constructor was used: a host is needed to connect again")
            host, port = self._host or "localhost", port or self._port
        address: Address = host
        if not host.startswith("/"):
            default = SMTP_SSL_PORT if self._tls == "implicit" and not self.lmtp else self.default_port
            address = host_and_port(host, port, default)
        self._host, self._port = address if isinstance(address, tuple) else (address, port)
        self._forget()
        self._audit("smtplib.connect", self._host, self._port)
        context = None
        if self._tls == "implicit":
            context = self.ssl_context or await self._offload(default_context)
        # Before there is a connection: the server's first octets may come with it.
        greeting = self._session.start(dialogue.greeting())
        connection = await open_connection(
            address,
            self._session,
            self.timeouts,
            source_address=self.source_address,
            ssl_context=context,
            server_hostname=self._server_hostname or self._host,
            sock=self._sock,
            resolver=self._resolve,
            made=self._made,
        )
        self._sock_taken = self._sock is not None
        self._sock = None
        reply: Reply = await connection.finished(greeting)
        return reply

    def _made(self, connection: Connection) -> None:
        self._connection = connection

    def _audit(self, event: str, *args: Any) -> None:
        sys.audit(event, self, *args)

    def _forget(self) -> None:
        self._session = self._new_session()
        self._greeted = asyncio.Lock()  # a lock belongs to one loop, and the next connection may be on another
        self.helo_resp = self.ehlo_resp = None
        self.command_encoding = "ascii"

    async def _resolve(self, host: str, port: int) -> list[tuple[Any, ...]]:
        return await transport.resolve(host, port)

    async def _offload(self, function: Callable[..., T], *args: Any) -> T:
        """Call what would block the loop, in a thread."""
        return await anyio.to_thread.run_sync(function, *args)

    async def __aenter__(self) -> Self:
        if not self.is_connected:
            await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self.is_connected and (kind is None or issubclass(kind, Exception)):
                with contextlib.suppress(SMTPException):
                    await self.quit()
        finally:
            await self.close()

    async def quit(self) -> Reply:
        """Say QUIT when all replies are in, and close.

        Returns:
            The reply, or (-1, why) if the server closed instead: what it took before, it has taken.

        Raises:
            SMTPServerDisconnected: there was no connection.
        """
        reply: Reply = await self._run(dialogue.quit_(), alone=True)
        await self.close()
        self._forget()
        return reply

    def close(self) -> Awaitable[None]:
        """Close at once, without QUIT.

        It is done when the call returns.  Awaiting what it returns waits until the socket is released too.
        """
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        return _Released(connection)

    async def _run(self, what: Any, *, alone: bool = False, raw: bool = False) -> Any:
        return await self._live().run(what, alone=alone, raw=raw)

    def _live(self) -> Connection:
        connection = self._connection
        if connection is None or (self._preparing is not None and self._preparing is not asyncio.current_task()):
            raise SMTPServerDisconnected("please run connect() first")
        return connection

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

    # ---- sending ----------------------------------------------------------------------------

    async def sendmail(
        self,
        from_addr: str,
        to_addrs: str | Iterable[str],
        msg: Content,
        mail_options: Sequence[str] = (),
        rcpt_options: Sequence[str] = (),
    ) -> dict[str, Reply]:
        """Send one message.

        Args:
            from_addr: the sender; ``"<>"`` for none.
            to_addrs: one recipient, or several.
            msg: the message: str (ASCII), bytes, an EmailMessage, the path of a file or a binary file, or an
                async iterator of bytes.  Files and iterators are streamed and never held whole.
            mail_options: ESMTP parameters for MAIL.
            rcpt_options: ESMTP parameters for every RCPT.

        Returns:
            The recipients that were refused, with the replies that did it: (code, text).  Empty if none was.

        Raises:
            SMTPRecipientsRefused: all recipients were refused.
            SMTPSenderRefused: the sender was; or the message is larger than the server takes (552).
            SMTPDataError: the content was.
            SMTPHeloError: EHLO and HELO were.
            SMTPNotSupportedError: an address needs SMTPUTF8, and the server does not offer it.
            SMTPServerDisconnected: the connection is gone; `state` tells what is known of the message.
            ValueError, TypeError: an argument is wrong; nothing was written.
        """
        envelope = Envelope(from_addr, to_addrs, mail_options, rcpt_options)
        if isinstance(msg, str):
            msg = to_octets(msg)
        try:
            return (await self._send(envelope, msg)).refused
        except SMTPException as error:
            error.state = error.state or "not_sent"
            raise

    async def _send(self, envelope: Envelope, msg: Content) -> Outcome:
        if type(msg) is bytes and len(msg) <= WHOLE:
            return await self._transact(envelope, whole(msg), None)
        if self.helo_resp is None and self.ehlo_resp is None:
            await self.ehlo_or_helo_if_needed()
        body, pieces = await body_of(msg, self._offload, eight_bit=self.has_extn("8bitmime"))
        try:
            return await self._transact(envelope, body, pieces)
        finally:
            if pieces is not None:  # a file is closed, wherever the reading ended
                await pieces.aclose()

    async def send_message(
        self,
        msg: Message[Any, Any],
        from_addr: str | None = None,
        to_addrs: str | Iterable[str] | None = None,
        mail_options: Sequence[str] = (),
        rcpt_options: Sequence[str] = (),
    ) -> dict[str, Reply]:
        """Send an email.message.Message; sender and recipients from its headers unless they are given.

        Bcc fields are not sent.  Where the server lacks 8BITMIME, 8-bit parts are re-encoded; SMTPUTF8 is used
        where a local part needs it.  Returns and raises what :meth:`sendmail` does.

        Raises:
            ValueError: no sender or no recipients; more than one block of Resent- fields.
        """
        await self.ehlo_or_helo_if_needed()
        work = functools.partial(compose, msg, from_addr, to_addrs, mail_options, self.has_extn, downgrade=True)
        composed = await self._offload(work) if weight(msg) > PIECE else work()
        sender, recipients, octets, mail_options = composed
        return await self.sendmail(sender, recipients, octets, mail_options, rcpt_options)

    async def _transact(self, envelope: Envelope, body: Body, pieces: Pieces) -> Outcome:
        if self.helo_resp is None and self.ehlo_resp is None:
            await self.ehlo_or_helo_if_needed()
        connection = self._live()
        session = self._session
        tries = 0
        while True:
            transaction = Transaction(session, envelope, body, chunking=self.chunking)
            try:
                if pieces is None:
                    outcome: Outcome = await connection.run(transaction.run())
                else:
                    outcome = await connection.run_streamed(transaction.run(), pieces)
                return outcome
            except NotBegun as refusal:
                # A server that does not take a RSET behind an unanswered message (Haraka: 503).
                session.overlap = False
                tries += 1
                if tries == 2:
                    await self._tidy(connection)
                    error = SMTPResponseException(*refusal.reply)
                    error.state = "not_sent"
                    raise error from None
            except SMTPException:
                await self._tidy(connection)
                raise

    async def _tidy(self, connection: Connection) -> None:
        """After a refusal: RSET, as smtplib does it, so that no transaction stays open on an idle connection.

        Where others are waiting to write, it rides with the next transaction instead.
        """
        session = connection.session
        if session.idle and not session.settled and not session.closed:
            with contextlib.suppress(SMTPException):
                reply: Reply = await connection.run(session.reset())
                if not reply.ok and session.idle:
                    # Out of step: Exim takes the rest of a chunk that was too large for commands, and closes.
                    connection.close()


class _Released:
    """What `close` returns: awaitable, but nothing is missed by those who do not."""

    def __init__(self, connection: Connection | None) -> None:
        self._connection = connection

    def __await__(self) -> Generator[Any, None, None]:
        if self._connection is not None:
            yield from self._connection.wait_closed().__await__()


class AsyncSMTP_SSL(AsyncSMTP):
    """AsyncSMTP with TLS from the first octet, on port 465 by default."""

    default_port = SMTP_SSL_PORT
    default_tls = "implicit"


class AsyncLMTP(AsyncSMTP):
    """LMTP (RFC 2033), over TCP (port 2003 by default) or a Unix socket (an absolute path as `host`).

    `sendmail` tells of each recipient: one that was refused after the content is in the dict it returns, and
    SMTPRecipientsRefused is raised where none is left.
    """

    default_port = LMTP_PORT
    ehlo_msg = "lhlo"
    lmtp = True
