"""The blocking facade: SMTP, SMTP_SSL, LMTP.  smtplib's classes, each driving an async client on a loop of its own.

No thread is started: a call runs the private loop in the calling thread until it is done.  A loop that
is not running belongs to no thread, so an object made in one thread works in another.  Only where the calling
thread already runs a loop does a helper thread run the private one for the duration of the call.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import functools
import socket
import ssl
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Future, wait
from email.message import Message
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, Unpack, cast

from asmtp.auth.authobjects import AuthObjects
from asmtp.auth.selection import Attempt, Mechanisms, attempts, check_mechanisms
from asmtp.client.address import LMTP_PORT, SMTP_PORT, SMTP_SSL_PORT, check_address, check_source, host_and_port
from asmtp.client.content import Content
from asmtp.client.events import handle_all, kept_for, unheard
from asmtp.client.settings import Options
from asmtp.errors import (
    SMTPAuthenticationError,
    SMTPConnectError,
    SMTPException,
    SMTPNotSupportedError,
    SMTPResponseException,
    SMTPServerDisconnected,
    SMTPStateError,
    SMTPTimeoutError,
)
from asmtp.protocol import dialogue
from asmtp.protocol.command import command
from asmtp.protocol.envelope import Envelope
from asmtp.protocol.exchange import Group
from asmtp.protocol.hidden import hidden, hide
from asmtp.protocol.message import compose
from asmtp.protocol.parameters import Requests
from asmtp.protocol.reply import Reply
from asmtp.protocol.sasl import UNPROVEN, Mechanism
from asmtp.protocol.trampoline import trampoline
from asmtp.sync.client import BlockingClient, BlockingClientSSL, BlockingLMTPClient
from asmtp.sync.driver import drive, end, in_task, new_selector, running_loop, without_loop
from asmtp.sync.steps import Steps, conduct, is_local, overridden, say, socket_from
from asmtp.transport import connect
from asmtp.transport.timeouts import Timeouts
from asmtp.transport.tls import check_context, context_from_files, verifying_context

__all__ = ["LMTP", "SMTP", "SMTP_SSL"]

T = TypeVar("T")
P = ParamSpec("P")
S = TypeVar("S", bound="SMTP")
_DEFAULT_TIMEOUT: Any = socket._GLOBAL_DEFAULT_TIMEOUT  # type: ignore[attr-defined]


def _timeouts(value: Any) -> float | None | Timeouts:
    """smtplib's timeout: not given means socket's default; where that is not set, the RFC's limits."""
    if value is not _DEFAULT_TIMEOUT:
        return value  # type: ignore[no-any-return]
    default = socket.getdefaulttimeout()
    return Timeouts() if default is None else default


_NESTED = "a call in the middle of another one: from a signal handler, or from a callback"


def _one_call(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Keep other threads out of a method that consists of several calls."""

    @functools.wraps(method)
    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self._entry():
            self._check_entered()
            return method(self, *args, **kwargs)

    return call


class _Kept(Generic[T]):
    """An attribute of smtplib's that the driven client keeps."""

    def __init__(self, doc: str) -> None:
        self.__doc__ = doc

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: SMTP | None, owner: type) -> T:
        # On the class it is what smtplib has there: None, so that mocks made from the class have it.
        return cast("T", None if instance is None else getattr(instance._client, self._name))

    def __set__(self, instance: SMTP, value: T) -> None:
        setattr(instance._client, self._name, value)


class SMTP(AuthObjects):
    """A connection to an SMTP server, with blocking calls: `smtplib.SMTP`, except for what the README lists.

    Args:
        host: connect to it at once; ``"host:port"`` is understood.
        port: 0 for the protocol's own.
        local_hostname: for EHLO; by default this machine's fully qualified name.
        timeout: seconds for every phase, None for no limits, or :class:`~asmtp.Timeouts`; by default
            `socket.getdefaulttimeout()`, and where that is None the limits of RFC 5321 §4.5.3.2.
        source_address: (host, port) to bind to before connecting.
        options: see :class:`~asmtp.client.settings.ConnectionSettings`.

    Raises:
        SMTPConnectError: the greeting was not 220.
        OSError: no connection.
        ValueError, TypeError: an argument is wrong.
    """

    debuglevel = 0
    file = None
    ehlo_msg = "ehlo"
    default_port = SMTP_PORT
    timeout: Any = _DEFAULT_TIMEOUT
    _client_class: type[BlockingClient] = BlockingClient
    _host = ""
    _traced = False
    _driver: int | None = None  # the thread in which a call is in mid-exchange
    _loop: asyncio.AbstractEventLoop | None = None
    _handed: socket.socket | None = None  # a connected socket that was set as `sock`, until something is said on it

    def __init__(
        self,
        host: str = "",
        port: int = 0,
        local_hostname: str | None = None,
        timeout: Any = _DEFAULT_TIMEOUT,
        source_address: tuple[str, int] | None = None,
        **options: Unpack[Options],
    ) -> None:
        hide(options)
        if before := vars(self).get("_client"):  # it is called again, as by what derives from SMTP and SMTP_SSL
            self._release()
            if before.ssl_context is not None:
                options.setdefault("ssl_context", before.ssl_context)
        self._lock = threading.RLock()
        self._host = host
        self.timeout = timeout
        self._client = self._client_class("", 0, None, _timeouts(timeout), source_address, **options)
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

    @functools.cached_property
    def _lock(self) -> threading.RLock:
        """Held by who calls.  Made here for a subclass whose `__init__` calls none, as smtplib's works then, too."""
        return threading.RLock()

    @functools.cached_property
    def _client(self) -> BlockingClient:
        """The async client that this drives; made here where `_lock` is."""
        client = self._client_class("", 0, None, _timeouts(self.timeout))
        client.facade = weakref.ref(self)
        return client

    # ---- the loop ---------------------------------------------------------------------------

    @staticmethod
    def _new_loop() -> asyncio.AbstractEventLoop:
        # Whatever the policy makes for others.  asyncio logs that, perhaps into a handler that makes another.
        with unheard():
            return asyncio.SelectorEventLoop(new_selector())

    def _entry(self) -> contextlib.AbstractContextManager[Any]:
        """What a call holds, so that others wait; `_check_entered` comes next."""
        if self._driver == threading.get_ident():
            raise SMTPStateError(_NESTED)
        return self._lock

    def _check_entered(self) -> None:
        if self._driver is not None:  # by this thread, which waits for a helper
            raise SMTPStateError(_NESTED)

    def _run(self, coroutine: Coroutine[Any, Any, T], *, task: bool = False) -> T:
        """Run the private loop until `coroutine` is done; `task`: it needs to be one.

        Raises:
            SMTPStateError: this is called in the middle of another call, by a signal handler or a callback.
        """
        try:
            with self._entry():
                self._check_entered()
                if self._handed is not None:
                    self._take_over(spoken=True)
                return self._run_alone(coroutine, task)
        finally:
            coroutine.close()  # it may not even have begun

    def _run_alone(self, coroutine: Coroutine[Any, Any, T], task: bool) -> T:
        loop = self._loop
        if loop is None:
            loop = self._loop = self._new_loop()
            loop.set_exception_handler(self._client.strike)
        if running_loop() is None:
            return self._run_here(loop, coroutine, task)
        # Called from async code: it blocks, as smtplib would, but it works.
        work = functools.partial(self._run_here, loop, coroutine, task)
        return _in_thread(work, functools.partial(self._interrupt, loop))

    def _run_here(self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T], task: bool) -> T:
        driven = self._client
        if self._traced or self.debuglevel > 0:
            self._traced = self.debuglevel > 0
            driven.trace = self._trace if self._traced else None
        try:
            self._driver = threading.get_ident()
            if driven.readable():
                # A 421 or EOF that came meanwhile must not be paired with the next command.
                drive(loop, driven, asyncio.sleep(0))
            result = drive(loop, driven, in_task(coroutine) if task else coroutine)
            if driven.struck is not None:
                raise driven.struck
            return result
        except BaseException as error:
            # What has left an exchange in the middle, of any class: nobody goes on with it.
            struck, driven.struck = driven.struck, None
            if struck is not None or driven.unfinished:
                driven.abort()
            if tasks := asyncio.all_tasks(loop):
                drive(loop, driven, _cancelled(tasks))
            if struck is not None and struck is not error:
                raise struck from error
            raise
        finally:
            self._driver = driven.struck = None
            if not driven.is_connected:
                self._release()

    def _command(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a command of the client's; through `putcmd` and the like where these are not asmtp's own."""
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

    def _take_over(self, *, spoken: bool) -> Reply:
        """Speak on a socket that was set as `sock`; the greeting.

        Args:
            spoken: the caller has read it: something else than `getreply` is called first.
        """
        handed, self._handed = self._handed, None
        assert handed is not None
        self._default_timeout = socket.getdefaulttimeout()
        self._client.timeouts = Timeouts.of(_timeouts(self.timeout))
        self._client.given(handed, local=is_local(self._host), spoken=spoken)
        return self._run(self._client.connect(self._host or "localhost"), task=True)

    def _interrupt(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have a call that a helper thread runs end now."""

        def end() -> None:
            self._client.abort()
            for task in asyncio.all_tasks(loop):
                task.cancel()

        with contextlib.suppress(RuntimeError):  # it has ended
            loop.call_soon_threadsafe(end)
        self._client.cut()

    def _release(self) -> None:
        """Give back what the connection used: its socket, the loop."""
        handed, self._handed = self._handed, None
        if handed is not None:
            handed.close()
        loop, self._loop = self._loop, None
        released = self._client.close()
        if loop is not None:
            # If this is called from async code (or by the garbage collector there), that has to wait.
            without_loop(end, loop, self._client, released)

    def __del__(self) -> None:
        if getattr(self, "_loop", None) is not None:
            # As a socket that is dropped does: it says so, and closes at once.
            warnings.warn(f"unclosed {self._client!r}", ResourceWarning, stacklevel=1, source=self)
            self._release()

    # ---- what is known ----------------------------------------------------------------------

    @property
    def sock(self) -> Any:
        """What there is to see of the socket; None without a connection.

        It may be set to a connected socket without TLS, which is the caller's until the next call: `getreply`, where
        the server's greeting was not read from it, or any other.  To set it to None closes the connection.
        """
        if self._handed is not None:
            return self._handed
        if not self._client.is_connected:
            return None
        timeout = self.timeout.command if isinstance(self.timeout, Timeouts) else self.timeout
        return self._client.view(self._default_timeout if timeout is _DEFAULT_TIMEOUT else timeout, self.close)

    @sock.setter
    def sock(self, sock: socket.socket | None) -> None:
        if isinstance(sock, ssl.SSLSocket) or not isinstance(sock, socket.socket | None):
            raise TypeError("sock: a connected socket without TLS, or None; TLS is begun by starttls()")
        self.close()
        self._handed = sock

    local_hostname: _Kept[str] = _Kept("What EHLO says this machine is called.")
    source_address: _Kept[tuple[str, int] | None] = _Kept("(host, port) to bind to before connecting.")
    esmtp_features: _Kept[dict[str, str]] = _Kept("What the server offers, by keyword; empty before EHLO.")
    does_esmtp: _Kept[bool] = _Kept("Whether the server answered EHLO (LHLO) with 250.")
    helo_resp: _Kept[bytes | None] = _Kept("The text of the last reply to HELO.")
    ehlo_resp: _Kept[bytes | None] = _Kept("The text of the last reply to EHLO or LHLO.")
    command_encoding: _Kept[str] = _Kept('How command lines are encoded: "utf-8" in a transaction with SMTPUTF8.')

    def has_extn(self, opt: str) -> bool:
        """Whether the server offers a service extension; in any case of letters."""
        return opt.lower() in self.esmtp_features

    # ---- debugging --------------------------------------------------------------------------

    def set_debuglevel(self, debuglevel: int) -> None:
        """1: write the dialogue to stderr, as smtplib does; 2: with the time.  Credentials are not shown."""
        self.debuglevel = debuglevel

    def _print_debug(self, *args: Any) -> None:
        if self.debuglevel > 1:
            args = (datetime.datetime.now().time(), *args)
        print(*args, file=sys.stderr)

    def _trace(self, direction: str, data: bytes) -> None:
        if direction == ">":
            # smtplib shows commands as str, content as bytes.
            one_line = data.isascii() and data.endswith(b"\n") and data.count(b"\n") == 1
            self._print_debug("send:", repr(data.decode("ascii") if one_line else data))
        else:
            code, _, text = data.partition(b" ")
            *lines, last = text.split(b"\n")
            for line in lines:
                self._print_debug("reply:", repr(code + b"-" + line + b"\r\n"))
            self._print_debug("reply:", repr(code + b" " + last + b"\r\n"))
            self._print_debug(f"reply: retcode ({code.decode()}); Msg: {text!a}")

    # ---- connecting and leaving -------------------------------------------------------------

    @_one_call
    def connect(self, host: str = "localhost", port: int = 0, source_address: tuple[str, int] | None = None) -> Reply:
        """Connect to a server and return its greeting, whatever it is.

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
        self._client.timeouts = Timeouts.of(_timeouts(self.timeout))
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
        """Connect, for a subclass that overrides it and calls this: smtplib's hook.

        It is asked only where it is overridden.  The socket that it returns is used, and TLS is begun on that.
        """
        return socket.create_connection((host, port), timeout, self.source_address)

    def __enter__(self) -> Self:
        return self

    @_one_call
    def __exit__(self, *args: object) -> None:
        try:
            code, message = self.docmd("QUIT")
            if code != 221:
                raise SMTPResponseException(code, message)
        except (SMTPServerDisconnected, SMTPStateError):  # no connection; or content was begun, and no end written
            pass
        finally:
            self.close()

    @_one_call
    def close(self) -> None:
        """Close the connection, without QUIT."""
        self._release()

    def quit(self) -> Reply:
        """Say QUIT and close; the reply, or (-1, why) if the server closed instead.

        Raises:
            SMTPServerDisconnected: there was no connection.
        """
        if not overridden(self, _BY_HAND):
            return self._run(self._client.quit(), task=True)
        return self._quit_by_hand()

    @_one_call
    def _quit_by_hand(self) -> Reply:
        if self.sock is None:
            return Reply(*self.docmd("quit"))  # which raises, unless it is another's
        reply: Reply = say(self, dialogue.quit_())
        self.close()
        self._client.leave()
        return reply

    # ---- commands ---------------------------------------------------------------------------

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
        # A str, as smtplib's: it may be a `send` of a subclass's own.
        self.send(command(cmd, args, argument="cmd", encoding=encoding, secret=secret).decode(encoding))

    def getreply(self) -> Reply:
        """The next reply to what `send` or `putcmd` wrote."""
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
        """RSET, if there is a connection: for subclasses whose `sendmail` is made after smtplib's."""
        with contextlib.suppress(SMTPServerDisconnected):
            self.rset()

    def helo(self, name: str = "") -> Reply:
        """HELO, with this machine's name unless another is given."""
        return self._command(self._client.helo(name))

    def ehlo(self, name: str = "") -> Reply:
        """EHLO (LHLO for LMTP); what the server offers is in `esmtp_features` then."""
        self._client.ehlo_msg = self.ehlo_msg  # a subclass may have another
        return self._command(self._client.ehlo(name))

    @_one_call
    def ehlo_or_helo_if_needed(self) -> None:
        """EHLO, or HELO if that is refused, unless either was said before.

        Raises:
            SMTPHeloError: both were refused; or EHLO was, with 421 or 521.
        """
        if self.helo_resp is None and self.ehlo_resp is None:
            trampoline(dialogue.introduction(self._client.lmtp), lambda verb: Reply(*getattr(self, verb)()))

    def help(self, args: str = "") -> bytes:
        """HELP: its text."""
        return self._command(self._client.help(args))

    def rset(self) -> Reply:
        """RSET: whatever transaction is open is given up."""
        return self._command(self._client.rset())

    def noop(self) -> Reply:
        """NOOP."""
        return self._command(self._client.noop())

    def mail(self, sender: str, options: Sequence[str] = ()) -> Reply:
        """MAIL: begin a transaction by hand."""
        return self._command(self._client.mail(sender, options))

    def rcpt(self, recip: str, options: Sequence[str] = ()) -> Reply:
        """RCPT: add a recipient by hand."""
        return self._command(self._client.rcpt(recip, options))

    def data(self, msg: str | bytes) -> Reply:
        """DATA and the content, by hand; the final reply.

        Raises:
            SMTPDataError: DATA was not answered 354.
        """
        return self._command(self._client.data(msg))

    def verify(self, address: str) -> Reply:
        """VRFY: ask whether an address is valid."""
        return self._command(self._client.verify(address))

    vrfy = verify

    def expn(self, address: str) -> Reply:
        """EXPN: ask for the members of a mailing list."""
        return self._command(self._client.expn(address))

    def xclient(self, **attributes: str | None) -> Reply:
        """XCLIENT: say for whom this connection is; see :meth:`asmtp.AsyncSMTP.xclient`."""
        self.ehlo_or_helo_if_needed()
        return self._command(self._client.xclient(**attributes))

    # ---- TLS, login -------------------------------------------------------------------------

    def starttls(
        self, keyfile: str | None = None, certfile: str | None = None, context: ssl.SSLContext | None = None
    ) -> Reply:
        """STARTTLS.  By default certificate and host name are verified; pass a context for anything else.

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

    @_one_call
    def auth(
        self, mechanism: str, authobject: Callable[..., Any] | Mechanism, *, initial_response_ok: bool = True
    ) -> Reply:
        """AUTH with smtplib's authobject, which may call methods of this object, or with a generator.

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
        """Log in, with the best mechanism that both sides know, through `auth` and the `auth_*` methods.

        See :meth:`asmtp.AsyncSMTP.login`.

        Raises:
            SMTPNotSupportedError: the server does not offer AUTH, or no mechanism that will do.
            SMTPAuthenticationError: the credentials were refused.
        """
        # Not by the decorator, in whose frame the password would have no name that error reporters know.
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

    @_one_call
    def sendmail(
        self,
        from_addr: str,
        to_addrs: str | Iterable[str],
        msg: Content,
        mail_options: Sequence[str] = (),
        rcpt_options: Sequence[str] = (),
        **requests: Unpack[Requests],
    ) -> dict[str, Reply]:
        """Send one message; a dict of the recipients that were refused, and the replies that did it.

        See :meth:`asmtp.AsyncSMTP.sendmail` for arguments and exceptions.

        Raises:
            UnicodeEncodeError: as in smtplib, an address is not ASCII and the server lacks SMTPUTF8.
        """
        # Raises what is wrong with them before EHLO is written.
        to_addrs = Envelope(from_addr, to_addrs, mail_options, rcpt_options, **requests).recipients
        self._hello_for_message()
        if replaced := overridden(self, _STEPS):
            if requests or self._client.lmtp:
                what = "LMTP" if self._client.lmtp else f"{min(requests)}="
                raise TypeError(f"{what} is not possible where a subclass has its own {replaced[0]}()")
            return Steps(self, replaced).sendmail(from_addr, to_addrs, msg, mail_options, rcpt_options)
        sending = self._client.sendmail(from_addr, to_addrs, msg, mail_options, rcpt_options, **requests)
        try:
            # An async iterator is its author's code, and may need a task to run in.
            return self._run(sending, task=hasattr(msg, "__aiter__"))
        except SMTPNotSupportedError as error:
            if isinstance(error.__cause__, UnicodeEncodeError):
                raise error.__cause__ from None
            raise

    def _hello_for_message(self) -> None:
        try:
            self.ehlo_or_helo_if_needed()
        except SMTPException as error:
            error.state = error.state or "not_sent"
            raise

    @_one_call
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


def _in_thread(function: Callable[[], T], interrupt: Callable[[], None]) -> T:
    """Call in a thread where no loop runs, and wait for it; `interrupt` makes it end where the wait does."""
    future: Future[T] = Future()
    records: list[Any] = []

    def helper() -> None:
        if future.set_running_or_notify_cancel():
            try:
                with kept_for(records.append):
                    result = function()
                future.set_result(result)
            except BaseException as error:  # carried over to the caller
                future.set_exception(error)

    thread = threading.Thread(target=helper, name="asmtp")
    try:
        thread.start()
        return future.result()
    except BaseException:
        if not future.done() and not future.cancel():  # Ctrl-C
            interrupt()
            wait([future])
        raise
    finally:
        if thread.is_alive():
            thread.join()
        handle_all(records)


async def _cancelled(tasks: Iterable[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


class SMTP_SSL(SMTP):
    """SMTP with TLS from the first octet, on port 465 by default; certificate and host name are verified.

    Args:
        keyfile, certfile: deprecated: use a context.
        context: for TLS; pass your own to verify less, or to show a certificate.
    """

    default_port = SMTP_SSL_PORT
    _client_class = BlockingClientSSL

    def __init__(
        self,
        host: str = "",
        port: int = 0,
        local_hostname: str | None = None,
        keyfile: str | None = None,
        certfile: str | None = None,
        timeout: Any = _DEFAULT_TIMEOUT,
        source_address: tuple[str, int] | None = None,
        context: ssl.SSLContext | None = None,
        **options: Unpack[Options],
    ) -> None:
        self.keyfile = keyfile
        self.certfile = certfile
        context = context_from_files(keyfile, certfile, context)
        hide(options)
        if context is not None:
            options["ssl_context"] = context
        # By its name, as in smtplib: mix-ins between the two have other arguments.
        SMTP.__init__(self, host, port, local_hostname, timeout, source_address, **options)

    @property
    def context(self) -> ssl.SSLContext:
        """The context for TLS.  It is this object's own: to change it changes nobody else's."""
        if self._client.ssl_context is None:
            self._client.ssl_context = verifying_context()
        return self._client.ssl_context

    @context.setter
    def context(self, context: ssl.SSLContext) -> None:
        check_context(context, "context")
        self._client.ssl_context = context


class LMTP(SMTP):
    """LMTP over TCP (port 2003 by default) or a Unix socket (an absolute path as `host`).

    Unlike smtplib's, `sendmail` reads the reply of each recipient, and tells of each that was refused.
    """

    ehlo_msg = "lhlo"
    default_port = LMTP_PORT
    _client_class = BlockingLMTPClient

    def __init__(
        self,
        host: str = "",
        port: int = LMTP_PORT,
        local_hostname: str | None = None,
        source_address: tuple[str, int] | None = None,
        timeout: Any = _DEFAULT_TIMEOUT,
        **options: Unpack[Options],
    ) -> None:
        hide(options)
        # smtplib's default keeps "host:port" from being understood; ours does not.
        port = 0 if port == LMTP_PORT else port
        super().__init__(
            host, port, local_hostname=local_hostname, source_address=source_address, timeout=timeout, **options
        )
