"""SMTP, the blocking facade: smtplib's class, which drives an async client on a loop of its own."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterable, Sequence
from email.message import Message
from typing import Any, Self, TypeVar, Unpack

from asmtp.auth.authobjects import AuthObjects
from asmtp.auth.selection import Attempt, Mechanisms, attempts, check_mechanisms
from asmtp.client.address import SMTP_PORT, check_address, check_source, host_and_port
from asmtp.client.content import Content
from asmtp.client.settings import ConnectionSettings, Options, with_options
from asmtp.errors import (
    SMTPAuthenticationError,
    SMTPConnectError,
    SMTPException,
    SMTPNotSupportedError,
    SMTPResponseException,
    SMTPServerDisconnected,
    SMTPStateError,
    SMTPTimeoutError,
    known,
)
from asmtp.protocol import dialogue
from asmtp.protocol.command import command
from asmtp.protocol.envelope import SendmailEnvelope
from asmtp.protocol.exchange import Group
from asmtp.protocol.hidden import hidden, hide
from asmtp.protocol.message import compose
from asmtp.protocol.parameters import Requests
from asmtp.protocol.reply import Reply
from asmtp.protocol.sasl import UNPROVEN, Mechanism
from asmtp.protocol.trampoline import trampoline
from asmtp.sync.calls import DEFAULT_TIMEOUT, Calls, Kept, one_call, timeouts_of
from asmtp.sync.steps import Steps, conduct, is_local, overridden, say, socket_from
from asmtp.transport import connect
from asmtp.transport.timeouts import Timeouts
from asmtp.transport.tls import context_from_files

__all__ = ["SMTP"]

T = TypeVar("T")


@with_options(Options.__annotations__, ConnectionSettings, Options)
class SMTP(AuthObjects, Calls):
    """A connection to an SMTP server, with blocking calls: `smtplib.SMTP`, except for what the README lists.

    Args:
        host: connect to it at once; ``"host:port"`` is understood.
        port: 0 for the protocol's own.
        local_hostname: for EHLO; by default this machine's fully qualified name.
        timeout: seconds for every phase, None for no limits, or :class:`~asmtp.Timeouts`; by default
            `socket.getdefaulttimeout()`, and if that is None the limits of RFC 5321 §4.5.3.2.
        source_address: (host, port) to bind to before connecting.
        {options}

    Raises:
        SMTPConnectError: the greeting was not 220.
        OSError: no connection.
        ValueError, TypeError: an argument is wrong.
    """

    file = None
    ehlo_msg = "ehlo"
    default_port = SMTP_PORT

    def __init__(
        self,
        host: str = "",
        port: int = 0,
        local_hostname: str | None = None,
        timeout: Any = DEFAULT_TIMEOUT,
        source_address: tuple[str, int] | None = None,
        **options: Unpack[Options],
    ) -> None:
        hide(options)
        if before := vars(self).get("_client"):  # it is called again, as by a class that derives from SMTP and SMTP_SSL
            self._release()
            if before.ssl_context is not None:
                options.setdefault("ssl_context", before.ssl_context)
        self._lock = threading.RLock()
        self._host = host
        self.timeout = timeout
        self._client = self._client_class("", 0, None, timeouts_of(timeout), source_address, **options)
        self._client.local_hostname = local_hostname
        self._client.facade = weakref.ref(self)
        if host:
            reply = self.connect(host, port)
            if reply[0] != 220:
                self.close()
                raise SMTPConnectError(*reply)
        if local_hostname is None:
            # smtplib looks it up here, whether or not it is needed.
            self.local_hostname = connect.local_hostname()

    # ---- what is known ----------------------------------------------------------------------

    @property
    def sock(self) -> Any:
        """Return a view of the socket; None without a connection.

        It may be set to a connected socket without TLS, which is the caller's until the next call: `getreply`, if the
        caller has not read the greeting, or any other.  To set it to None closes the connection.
        """
        if self._handed is not None:
            return self._handed
        if not self._client.is_connected:
            return None
        timeout = self.timeout.command if isinstance(self.timeout, Timeouts) else self.timeout
        return self._client.view(self._default_timeout if timeout is DEFAULT_TIMEOUT else timeout, self.close)

    @sock.setter
    def sock(self, sock: socket.socket | None) -> None:
        if isinstance(sock, ssl.SSLSocket) or not isinstance(sock, socket.socket | None):
            raise TypeError("sock: a connected socket without TLS, or None; TLS is begun by starttls()")
        self.close()
        self._handed = sock

    local_hostname: Kept[str] = Kept("The name of this machine, for EHLO.")
    source_address: Kept[tuple[str, int] | None] = Kept("(host, port) to bind to before connecting.")
    esmtp_features: Kept[dict[str, str]] = Kept("The extensions that the server offers, by keyword; empty before EHLO.")
    does_esmtp: Kept[bool] = Kept("Whether the server answered EHLO (LHLO) with 250.")
    helo_resp: Kept[bytes | None] = Kept("The text of the last reply to HELO.")
    ehlo_resp: Kept[bytes | None] = Kept("The text of the last reply to EHLO or LHLO.")
    command_encoding: Kept[str] = Kept('How command lines are encoded: "utf-8" in a transaction with SMTPUTF8.')

    def has_extn(self, opt: str) -> bool:
        """Return whether the server offers a service extension; in any case of letters."""
        return opt.lower() in self.esmtp_features

    # ---- connecting and leaving -------------------------------------------------------------

    @one_call
    def connect(self, host: str = "localhost", port: int = 0, source_address: tuple[str, int] | None = None) -> Reply:
        """Connect to a server, and return its greeting, whatever the code.

        Raises:
            OSError: no connection.
        """
        if self.sock is not None:
            self.close()
        host, port = check_address(host, port)
        check_source(source_address)
        if source_address:
            self.source_address = source_address
        self._default_timeout = socket.getdefaulttimeout()
        self._client.timeouts = Timeouts.of(timeouts_of(self.timeout))
        self._client.default_port = self.default_port  # a subclass may have another
        if self.debuglevel > 0:
            where = host if host.startswith("/") else host_and_port(host, port, self.default_port)
            self._print_debug("connect: to", where, self.source_address)
        try:
            if overridden(self, _HOOK) and not host.startswith("/"):
                where = host_and_port(host, port, self.default_port)
                self._client.given(
                    socket_from(self._get_socket(*where, self._connect_timeout)), local=is_local(where[0])
                )
            reply = self._run(self._client.connect(host, port), task=True)
            if overridden(self, _BY_HAND):
                self._client.keep(reply)
                reply = Reply(*self.getreply())
        except BaseException:
            self.close()
            raise
        self._host = host
        if self.debuglevel > 0:
            self._print_debug("connect:", repr(reply.message))
        return reply

    @property
    def _connect_timeout(self) -> Any:
        return self.timeout.connect if isinstance(self.timeout, Timeouts) else self.timeout

    def _get_socket(self, host: str, port: int, timeout: Any) -> socket.socket:
        """Connect, for a subclass that overrides this hook of smtplib's and calls it.

        It is called only if it is overridden.  Its socket is used, and TLS is begun on that.
        """
        return socket.create_connection((host, port), timeout, self.source_address)

    def __enter__(self) -> Self:
        return self

    @one_call
    def __exit__(self, *args: object) -> None:
        try:
            code, message = self.docmd("QUIT")
            if code != 221:
                raise SMTPResponseException(code, message)
        except (SMTPServerDisconnected, SMTPStateError):  # no connection; or content without its end was written
            pass
        finally:
            self.close()

    @one_call
    def close(self) -> None:
        """Close the connection, without QUIT."""
        self._release()

    def quit(self) -> Reply:
        """Say QUIT and close; return the reply, or (-1, why) if the server closed instead.

        Raises:
            SMTPServerDisconnected: there was no connection.
        """
        if not overridden(self, _BY_HAND):
            return self._run(self._client.quit(), task=True)
        return self._quit_by_hand()

    @one_call
    def _quit_by_hand(self) -> Reply:
        if self.sock is None:
            return Reply(*self.docmd("quit"))  # raises, unless a subclass has its own
        reply: Reply = say(self, dialogue.quit_())
        self.close()
        self._client.leave()
        return reply

    # ---- commands ---------------------------------------------------------------------------

    def _command(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a command of the client's, through `putcmd` and the like if a subclass has its own."""
        if not overridden(self, _BY_HAND):
            return self._run(coroutine)
        try:
            with self._entry():
                self._check_entered()
                if self._handed is not None:
                    self._take_over(spoken=True)
                return conduct(self, self._client.hand_out, coroutine)
        finally:
            coroutine.close()

    def send(self, s: str | bytes) -> None:
        """Write octets as they are: complete command lines, or content.  `getreply` gets the replies."""
        data = s.encode(self.command_encoding) if isinstance(s, str) else bytes(s)
        self._run(self._client.send(data))

    def putcmd(self, cmd: str, args: str = "") -> None:
        """Write a command; `getreply` gets the reply.

        Raises:
            ValueError: a control character in the command.
        """
        secret = self._client.in_challenge
        encoding = self.command_encoding
        # A str, as in smtplib: a subclass may have its own `send`.
        self.send(command(cmd, args, argument="cmd", encoding=encoding, secret=secret).decode(encoding))

    def getreply(self) -> Reply:
        """Return the next reply to octets that `send` or `putcmd` wrote."""
        with self._entry():
            self._check_entered()
            if self._handed is not None:
                return self._take_over(spoken=False)
        return self._run(self._client.getreply())

    def docmd(self, cmd: str, args: str = "") -> Reply:
        """Send any command, and return its reply.

        Raises:
            ValueError: a control character in the command.
        """
        if not overridden(self, _BY_HAND):
            return self._run(self._client.docmd(cmd, args))
        with self._entry():
            self._check_entered()
            self.putcmd(cmd, args)
            return Reply(*self.getreply())

    def _rset(self) -> None:
        """Say RSET, if there is a connection: for subclasses whose `sendmail` is a copy of smtplib's."""
        with contextlib.suppress(SMTPServerDisconnected):
            self.rset()

    def helo(self, name: str = "") -> Reply:
        """Say HELO, with the name of this machine unless another is given."""
        return self._command(self._client.helo(name))

    def ehlo(self, name: str = "") -> Reply:
        """Say EHLO (LHLO for LMTP), and read into `esmtp_features` what the server offers."""
        self._client.ehlo_msg = self.ehlo_msg  # a subclass may have another
        return self._command(self._client.ehlo(name))

    @one_call
    def ehlo_or_helo_if_needed(self) -> None:
        """Say EHLO, or HELO if that is refused, unless either was said before.

        Raises:
            SMTPHeloError: both were refused; or EHLO was, with 421 or 521.
        """
        if self.helo_resp is None and self.ehlo_resp is None:
            trampoline(dialogue.introduction(self._client.lmtp), lambda verb: Reply(*getattr(self, verb)()))

    def help(self, args: str = "") -> bytes:
        """Say HELP, and return its text."""
        return self._command(self._client.help(args))

    def rset(self) -> Reply:
        """Say RSET: give up the transaction that is open."""
        return self._command(self._client.rset())

    def noop(self) -> Reply:
        """Say NOOP."""
        return self._command(self._client.noop())

    def mail(self, sender: str, options: Sequence[str] = ()) -> Reply:
        """Say MAIL: begin a transaction by hand."""
        return self._command(self._client.mail(sender, options))

    def rcpt(self, recip: str, options: Sequence[str] = ()) -> Reply:
        """Say RCPT: add a recipient by hand."""
        return self._command(self._client.rcpt(recip, options))

    def data(self, msg: str | bytes) -> Reply:
        """Say DATA and write the content, by hand; return the final reply.

        Raises:
            SMTPDataError: DATA was not answered 354.
        """
        return self._command(self._client.data(msg))

    def verify(self, address: str) -> Reply:
        """Say VRFY: ask whether an address is valid."""
        return self._command(self._client.verify(address))

    vrfy = verify

    def expn(self, address: str) -> Reply:
        """Say EXPN: ask for the members of a mailing list."""
        return self._command(self._client.expn(address))

    def xclient(self, **attributes: str | None) -> Reply:
        """Say XCLIENT: for whom this connection is; see :meth:`asmtp.AsyncSMTP.xclient`."""
        self.ehlo_or_helo_if_needed()
        return self._command(self._client.xclient(**attributes))

    # ---- TLS, login -------------------------------------------------------------------------

    def starttls(
        self, keyfile: str | None = None, certfile: str | None = None, context: ssl.SSLContext | None = None
    ) -> Reply:
        """Begin TLS by STARTTLS.  By default certificate and host name are verified; pass a context for anything else.

        Raises:
            SMTPNotSupportedError: the server does not offer it.
            SMTPResponseException: the server offered it, and refused.
            ssl.SSLError: the handshake failed; the connection is closed.
        """
        context = context_from_files(keyfile, certfile, context)
        self.ehlo_or_helo_if_needed()
        reply = None
        if self.has_extn("starttls") and overridden(self, _BY_HAND):
            reply = Reply(*self.docmd("STARTTLS"))
            if reply.code != 220:
                raise SMTPResponseException(*reply)
        begun = self._run(self._client.starttls(context=context), task=True)
        return reply or begun

    @one_call
    def auth(
        self, mechanism: str, authobject: Callable[..., Any] | Mechanism, *, initial_response_ok: bool = True
    ) -> Reply:
        """Log in by AUTH with smtplib's authobject, which may call methods of this object, or with a generator.

        See :meth:`asmtp.AsyncSMTP.auth`.

        Raises:
            SMTPAuthenticationError: the server said no.
            Exception: what `authobject` raises; the exchange was cancelled.
        """
        again = self._client.authenticated
        try:
            sasl = self._sasl_exchange(mechanism, authobject, initial_response_ok, again=again)

            def carry_out(group: Any) -> list[Reply] | None:
                if isinstance(group, Group):
                    return [self._respond(group.data)]
                sasl.go_on()  # here: an authobject may call methods of this object
                return None

            return trampoline(self._client.authentication(sasl), carry_out)
        except BaseException as error:
            unproven = isinstance(error, SMTPAuthenticationError) and error.smtp_code == UNPROVEN
            if unproven or isinstance(error, SMTPTimeoutError) or self._client.in_exchange:
                self._client.abort()
                self._release()
            raise

    def _respond(self, line: bytes) -> Reply:
        if not overridden(self, _BY_HAND):
            return self._run(self._client.respond(line))
        verb, _, args = hidden(line[:-2].decode("ascii").partition(" "))
        return Reply(*self.docmd(verb, args))

    def login(
        self,
        user: str,
        password: str,
        *,
        initial_response_ok: bool = True,
        mechanisms: Mechanisms | None = None,
    ) -> Reply:
        """Log in, with the best mechanism that client and server have, through `auth` and the `auth_*` methods.

        See :meth:`asmtp.AsyncSMTP.login`.

        Raises:
            SMTPNotSupportedError: the server does not offer AUTH, or no mechanism that will do.
            SMTPAuthenticationError: the credentials were refused.
        """
        # Not by the decorator: in its frame the password would have no name that error reporters know.
        with self._entry():
            self._check_entered()
            return self._log_in(user, password, initial_response_ok, mechanisms)

    def _log_in(self, user: str, password: str, initial_response_ok: bool, mechanisms: Mechanisms | None) -> Reply:
        if mechanisms is not None:
            check_mechanisms(mechanisms)
        self.ehlo_or_helo_if_needed()
        self.user, self.password = user, password
        candidates = self._client.candidates(user, password, mechanisms)

        def carry_out(attempt: Attempt) -> Any:
            candidate, mechanism = attempt
            if mechanism is None:
                return candidate.make()
            authobject = getattr(self, "auth_" + candidate.name.lower().replace("-", "_"), mechanism)
            return self.auth(candidate.name, authobject, initial_response_ok=initial_response_ok)

        return trampoline(attempts(candidates, first=None, verified=self._client.verified), carry_out)

    # ---- sending ----------------------------------------------------------------------------

    @one_call
    def sendmail(
        self,
        from_addr: str,
        to_addrs: str | Iterable[str],
        msg: Content,
        mail_options: Sequence[str] = (),
        rcpt_options: Sequence[str] = (),
        **requests: Unpack[Requests],
    ) -> dict[str, Reply]:
        """Send one message; return a dict of the recipients that were refused, and the replies that did it.

        See :meth:`asmtp.AsyncSMTP.sendmail` for arguments and exceptions.

        Raises:
            UnicodeEncodeError: as in smtplib, an address is not ASCII and the server lacks SMTPUTF8.
        """
        # Raises what is wrong with the arguments before EHLO is written.
        to_addrs = SendmailEnvelope(from_addr, to_addrs, mail_options, rcpt_options, **requests).recipients
        self._hello_for_message()
        if replaced := overridden(self, _STEPS):
            if requests or self._client.lmtp:
                what = "LMTP" if self._client.lmtp else f"{min(requests)}="
                raise TypeError(f"{what} is not possible where a subclass has its own {replaced[0]}()")
            return Steps(self, replaced).sendmail(from_addr, to_addrs, msg, mail_options, rcpt_options)
        sending = self._client.sendmail(from_addr, to_addrs, msg, mail_options, rcpt_options, **requests)
        try:
            # An async iterator is the caller's code, and may need a task to run in.
            return self._run(sending, task=hasattr(msg, "__aiter__"))
        except SMTPNotSupportedError as error:
            if isinstance(error.__cause__, UnicodeEncodeError):
                raise error.__cause__ from None
            raise

    def _hello_for_message(self) -> None:
        try:
            self.ehlo_or_helo_if_needed()
        except SMTPException as error:
            known(error, error.state or "not_sent")
            raise

    @one_call
    def send_message(
        self,
        msg: Message[Any, Any],
        from_addr: str | None = None,
        to_addrs: str | Iterable[str] | None = None,
        mail_options: Sequence[str] = (),
        rcpt_options: Sequence[str] = (),
        **requests: Unpack[Requests],
    ) -> dict[str, Reply]:
        """Send an email.message.Message through `sendmail`; sender and recipients from its headers.

        As in smtplib, 8-bit parts are sent as they are to a server that lacks 8BITMIME.
        See :meth:`asmtp.AsyncSMTP.send_message`.
        """
        self._hello_for_message()
        sender, recipients, octets, options = compose(
            msg, from_addr, to_addrs, mail_options, self.has_extn, requests, downgrade=False
        )
        return self.sendmail(sender, recipients, octets, options, rcpt_options, **requests)


_HOOK = {"_get_socket": SMTP._get_socket}
_BY_HAND = {name: getattr(SMTP, name) for name in ("putcmd", "getreply", "docmd", "send")}
_STEPS = {name: getattr(SMTP, name) for name in ("mail", "rcpt", "data", "rset")} | _BY_HAND
