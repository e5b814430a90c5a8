"""AsyncSMTP, AsyncSMTP_SSL, AsyncLMTP: one connection, with smtplib's methods, awaited."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import ssl
from collections.abc import Iterable, Sequence
from email.message import Message
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar, Unpack

from asmtp.client.address import LMTP_PORT, SMTP_SSL_PORT, check_address
from asmtp.client.commands import Commands
from asmtp.client.content import PIECE, WHOLE, Content, Pieces, body_of, whole
from asmtp.client.events import clock
from asmtp.client.settings import ConnectionSettings, Options, settings_of, with_options
from asmtp.errors import (
    SMTPConnectError,
    SMTPException,
    SMTPResponseException,
    SMTPServerDisconnected,
    SMTPStateError,
    known,
    one_line,
)
from asmtp.protocol import dialogue
from asmtp.protocol.command import spelt_out
from asmtp.protocol.content import to_octets
from asmtp.protocol.envelope import Envelope, SendmailEnvelope
from asmtp.protocol.hidden import hide
from asmtp.protocol.message import compose, weight
from asmtp.protocol.parameters import Requests
from asmtp.protocol.reply import Reply
from asmtp.protocol.transaction import Body, Transaction
from asmtp.protocol.verdict import NotBegun, Outcome
from asmtp.transport.connection import Connection
from asmtp.transport.timeouts import Timeouts
from asmtp.transport.tls import unverified_context

__all__ = ["AsyncLMTP", "AsyncSMTP", "AsyncSMTP_SSL", "Progress"]

T = TypeVar("T")
logger = logging.getLogger("asmtp")


class Progress(Protocol):
    """An object that is told how the sending of a message comes along."""

    transaction: Transaction | None
    """The transaction that was begun last."""


@with_options(Options.__annotations__, ConnectionSettings, Options)
class AsyncSMTP(Commands):
    """A connection to an SMTP server.

    Any number of tasks may await :meth:`sendmail` and :meth:`send_message` on one connection: their messages
    are pipelined as far as the server allows, and each task gets its own result.

    As a context manager it connects on entry, and says QUIT on exit.

    Args:
        host: the server; ``"host:port"`` is understood, and the absolute path of a Unix socket.
        port: 0 for the protocol's own.
        local_hostname: for EHLO; by default this machine's fully qualified name.
        timeout: seconds for every phase, None for no limits, or :class:`~asmtp.Timeouts`, the default.
        source_address: (host, port) to bind to before connecting.
        {options}

    Raises:
        ValueError, TypeError: an argument is wrong.
    """

    def __init__(
        self,
        host: str = "",
        port: int = 0,
        local_hostname: str | None = None,
        timeout: float | Timeouts | None = Timeouts(),  # noqa: B008  # immutable
        source_address: tuple[str, int] | None = None,
        **options: Unpack[Options],
    ) -> None:
        hide(options)
        sock = options.pop("sock", None)
        settings = settings_of(
            options,
            self._called or type(self).__name__,
            local_hostname=local_hostname,
            timeouts=Timeouts.of(timeout),
            source_address=source_address,
        )
        if sock is not None and settings.proxy is not None:
            raise ValueError("proxy and sock: only one of them can be given")
        if sock is not None and not hasattr(sock, "fileno"):
            raise TypeError(f"sock must be a connected socket, not {type(sock).__name__}")
        self._set_up(*check_address(host, port), settings, sock)

    # ---- connecting and leaving -------------------------------------------------------------

    async def connect(self, host: str = "", port: int = 0, source_address: tuple[str, int] | None = None) -> Reply:
        """Connect, begin TLS and log in, as `tls` and the credentials given to the constructor ask for.

        Args:
            host, port: by default those given to the constructor, else localhost and the protocol's port.

        Returns:
            The server's greeting.

        Raises:
            OSError: no connection.
            SMTPConnectError: the greeting was not 220.
            SMTPTimeoutError, SMTPServerDisconnected: as everywhere.
            SMTPNotSupportedError: TLS is required, or credentials were given, and the server does not offer it.
            ssl.SSLError: the TLS handshake failed, or the certificate does not fit.
            SMTPAuthenticationError: the credentials were refused; for a token: a fresh one too.
            Exception: any that the function given as `token` raises.
        """
        if self._preparing is not None:
            raise SMTPStateError("connect() is under way")
        if self.is_connected:
            raise SMTPStateError("already connected: call quit() or close() first")
        self._preparing = asyncio.current_task()
        try:
            try:
                return await self._come_up(host, port, source_address, verified=True)
            except ssl.SSLCertVerificationError as error:
                if self._tls != "opportunistic" or self._sock_taken:
                    raise
                await self.close()
                logger.warning("certificate not verified, going on without: %s", one_line(error.verify_message))
            return await self._come_up(host, port, source_address, verified=False)
        except BaseException:
            self.close()
            raise
        finally:
            self._preparing = None

    async def _come_up(self, host: str, port: int, source_address: tuple[str, int] | None, *, verified: bool) -> Reply:
        """Connect, with TLS and login; once more if the server did not take the offer to resume a session."""
        while True:
            try:
                reply = await self._open(host, port, source_address)
                if reply.code == 220:
                    await self._prepare(verified=verified)
                elif not self._as_smtplib:
                    raise SMTPConnectError(*reply)
                return reply
            except (ssl.SSLError, SMTPServerDisconnected):
                if self._tls_context is None or not self._tls_context.refused:
                    raise
            await self.close()

    async def _prepare(self, *, verified: bool) -> None:
        """Begin TLS and log in, as the constructor was told."""
        trusted = self._tls != "opportunistic"
        if self._tls in ("required", "opportunistic"):
            await self.ehlo_or_helo_if_needed()
            if self._tls == "required":
                await self._starttls(None)
            elif self.has_extn("starttls"):
                trusted = await self._try_starttls(None if verified else unverified_context()) and verified
        if self._logs_in:
            if trusted:
                await self._log_in_as_told()
            else:
                logger.warning("not logging in: the connection is not protected by verified TLS")

    async def _try_starttls(self, context: ssl.SSLContext | None) -> bool:
        """Begin TLS, but go on without it if the server refuses STARTTLS; return whether there is TLS."""
        try:
            await self._starttls(context)
        except SMTPResponseException as error:
            if not self._session.idle or self._session.closed:
                raise
            logger.warning("STARTTLS was offered, and refused with %d; going on without", error.smtp_code)
            return False
        return True

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
            The reply, or (-1, why) if the server closed instead: it has the messages that it took before.

        Raises:
            SMTPServerDisconnected: there was no connection.
        """
        reply = await self._run(dialogue.quit_(), alone=True)
        await self.close()
        self._forget()
        return reply

    # ---- sending ----------------------------------------------------------------------------

    async def sendmail(
        self,
        from_addr: str,
        to_addrs: str | Iterable[str],
        msg: Content,
        mail_options: Sequence[str] = (),
        rcpt_options: Sequence[str] = (),
        **requests: Unpack[Requests],
    ) -> dict[str, Reply]:
        """Send one message.

        Args:
            from_addr: the sender; ``"<>"`` for none.
            to_addrs: one recipient, or several.
            msg: the message: str (ASCII), bytes, an EmailMessage, the path of a file or a binary file, or an
                async iterator of bytes.  Files and iterators are streamed and never held whole.
            mail_options: ESMTP parameters for MAIL.
            rcpt_options: ESMTP parameters for every RCPT.
            requests: extensions to use: see :class:`~asmtp.Requests`.

        Returns:
            The recipients that were refused, with the replies that did it: (code, text).  Empty if none was.

        Raises:
            SMTPRecipientsRefused: all recipients were refused.
            SMTPSenderRefused: the sender was refused; or the message is larger than the server takes (552).
            SMTPDataError: the content was refused.
            SMTPHeloError: EHLO and HELO were refused.
            SMTPNotSupportedError: the server does not offer an extension that is needed, as SMTPUTF8 for an address.
            SMTPServerDisconnected: the connection is gone; `state` says whether the message was sent.
            ValueError, TypeError: an argument is wrong; nothing was written.
        """
        envelope = SendmailEnvelope(from_addr, to_addrs, mail_options, rcpt_options, **requests)
        msg = spelt_out(msg)
        if isinstance(msg, str):
            msg = to_octets(msg)
        try:
            return (await self._send(envelope, msg)).refused
        except SMTPException as error:
            known(error, error.state or "not_sent")
            raise

    async def _send(self, envelope: Envelope, msg: Content, progress: Progress | None = None) -> Outcome:
        if type(msg) is bytes and len(msg) <= WHOLE:
            return await self._transact(envelope, whole(msg), None, progress)
        if self.helo_resp is None and self.ehlo_resp is None:
            await self.ehlo_or_helo_if_needed()
        body, pieces = await body_of(
            msg, self._environment.offload, eight_bit=self.has_extn("8bitmime"), utf8=envelope.international
        )
        try:
            return await self._transact(envelope, body, pieces, progress)
        finally:
            if pieces is not None:  # close a file, wherever the reading ended
                await pieces.aclose()

    async def send_message(
        self,
        msg: Message[Any, Any],
        from_addr: str | None = None,
        to_addrs: str | Iterable[str] | None = None,
        mail_options: Sequence[str] = (),
        rcpt_options: Sequence[str] = (),
        **requests: Unpack[Requests],
    ) -> dict[str, Reply]:
        """Send an email.message.Message; sender and recipients are those of its headers, unless they are given.

        Bcc fields are not sent.  If the server lacks 8BITMIME, 8-bit parts are re-encoded; SMTPUTF8 is used if a local
        part needs it.  Returns and raises what :meth:`sendmail` does.

        Raises:
            ValueError: no sender or no recipients; more than one block of Resent- fields.
        """
        await self.ehlo_or_helo_if_needed()
        work = functools.partial(
            compose, msg, from_addr, to_addrs, mail_options, self.has_extn, requests, downgrade=True
        )
        composed = await self._environment.offload(work) if weight(msg) > PIECE else work()
        sender, recipients, octets, mail_options = composed
        return await self.sendmail(sender, recipients, octets, mail_options, rcpt_options, **requests)

    async def _transact(
        self, envelope: Envelope, body: Body, pieces: Pieces, progress: Progress | None = None
    ) -> Outcome:
        if self._event_log is None:
            return await self._try_transaction(envelope, body, pieces, progress)
        begun = clock()
        try:
            outcome = await self._try_transaction(envelope, body, pieces, progress)
        except BaseException as error:
            self._event_log.delivered(envelope, body.head, None, error, clock() - begun)
            raise
        self._event_log.delivered(envelope, body.head, outcome, None, clock() - begun)
        return outcome

    async def _try_transaction(
        self, envelope: Envelope, body: Body, pieces: Pieces, progress: Progress | None
    ) -> Outcome:
        if self.helo_resp is None and self.ehlo_resp is None:
            await self.ehlo_or_helo_if_needed()
        connection = self._live()
        session = self._session
        tries = 0
        while True:
            transaction = Transaction(session, envelope, body, chunking=self.chunking)
            if progress is not None:
                progress.transaction = transaction
            try:
                if pieces is None:
                    outcome = await connection.run(transaction.run())
                else:
                    outcome = await connection.run_streamed(transaction.run(), pieces)
                return outcome
            except NotBegun as refusal:
                # This server does not take RSET behind an unanswered message (Haraka: 503).
                session.overlap = False
                tries += 1
                if tries == 2:
                    await self._tidy(connection)
                    raise known(SMTPResponseException(*refusal.reply), "not_sent") from None
            except SMTPException:
                await self._tidy(connection)
                raise
            except asyncio.CancelledError as error:
                error.state = transaction.state  # type: ignore[attr-defined]  # for callers that keep an account
                raise

    async def _tidy(self, connection: Connection) -> None:
        """Say RSET after a refusal, as smtplib does, so that no transaction stays open on an idle connection.

        If other tasks wait to write, the next transaction begins with RSET instead.
        """
        session = connection.session
        if session.idle and not session.clean and not session.closed:
            with contextlib.suppress(SMTPException):
                reply = await connection.run(session.reset())
                if not reply.ok and session.idle:
                    # Out of step: Exim takes the rest of a chunk that was too large for commands, and closes then.
                    connection.close()


@with_options(Options.__annotations__, ConnectionSettings, Options)
class AsyncSMTP_SSL(AsyncSMTP):
    """AsyncSMTP with TLS from the first octet, on port 465 by default.

    Args:
        host, port, local_hostname, timeout, source_address: as for :class:`AsyncSMTP`.
        {options}

    Raises:
        ValueError, TypeError: an argument is wrong.
    """

    default_port = SMTP_SSL_PORT
    default_tls = "implicit"


@with_options(Options.__annotations__, ConnectionSettings, Options)
class AsyncLMTP(AsyncSMTP):
    """LMTP (RFC 2033), over TCP (port 2003 by default) or a Unix socket (an absolute path as `host`).

    The dict that `sendmail` returns has also the recipients that were refused after the content, and
    SMTPRecipientsRefused is raised if all were refused.

    Args:
        host, port, local_hostname, timeout, source_address: as for :class:`AsyncSMTP`.
        {options}

    Raises:
        ValueError, TypeError: an argument is wrong.
    """

    default_port = LMTP_PORT
    ehlo_msg = "lhlo"
    lmtp = True
