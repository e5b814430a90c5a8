"""Commands on a connection, awaited, with smtplib's names; STARTTLS and logging in."""

from __future__ import annotations

import asyncio
import email.utils
import functools
import ssl
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import anyio

from asmtp.auth.authobjects import AuthObjects
from asmtp.auth.selection import (
    Candidate,
    Mechanisms,
    check_mechanisms,
    choose,
    require_auth,
)
from asmtp.client.events import clock
from asmtp.client.link import Link
from asmtp.client.login import Login, get_token
from asmtp.errors import (
    SMTPAuthenticationError,
    SMTPNotSupportedError,
    SMTPResponseException,
)
from asmtp.protocol import dialogue
from asmtp.protocol.command import command, options_text, spelt_out
from asmtp.protocol.content import to_octets
from asmtp.protocol.envelope import path
from asmtp.protocol.extensions import Extensions
from asmtp.protocol.hidden import hidden
from asmtp.protocol.parameters import xclient
from asmtp.protocol.reply import Reply
from asmtp.protocol.sasl import Credentials, Mechanism
from asmtp.protocol.state import State, Trigger
from asmtp.protocol.trampoline import async_trampoline
from asmtp.protocol.transaction import manual_content
from asmtp.transport import connect
from asmtp.transport.tls import ResumingContext, check_context, context_from_files

__all__ = ["Commands"]

T = TypeVar("T")


class Commands(AuthObjects, Link):
    """smtplib's commands, awaited."""

    @property
    def esmtp_features(self) -> Extensions:
        """Return the extensions that the server offers: lower-case keyword to parameters; empty before EHLO."""
        return self._session.extensions

    @esmtp_features.setter
    def esmtp_features(self, features: dict[str, str]) -> None:
        self._session.extensions = Extensions(features)

    @property
    def does_esmtp(self) -> bool:
        """True if the server answered EHLO (LHLO) with 250."""
        return self._session.esmtp

    @does_esmtp.setter
    def does_esmtp(self, value: bool) -> None:
        self._session.esmtp = bool(value)

    def has_extn(self, opt: str) -> bool:
        """Return whether the server offers a service extension; in any case of letters."""
        return opt.lower() in self._session.extensions

    # ---- commands ---------------------------------------------------------------------------

    @property
    def in_challenge(self) -> bool:
        """True if a SASL response is due next: the next line is a secret."""
        return self._session.state is State.CHALLENGE

    async def docmd(self, cmd: str, args: str = "") -> Reply:
        """Send any command, and return its reply.

        Raises:
            ValueError: a control character in the command.
        """
        line = command(cmd, args, argument="cmd", encoding=self.command_encoding, secret=self.in_challenge)
        replies = await self._run(dialogue.raw_write(self._session, line, command=True), raw=True)
        return replies[0]

    async def helo(self, name: str = "") -> Reply:
        """Say HELO (RFC 5321 §4.1.1.1), with the name of this machine unless another is given."""
        reply = await self._run(dialogue.hello(self._session, "helo", await self._hello_name(name)), alone=True)
        self.helo_resp = reply.message
        return reply

    async def ehlo(self, name: str = "") -> Reply:
        """Say EHLO, or LHLO for LMTP, and read into `esmtp_features` what the server offers."""
        verb = self.ehlo_msg
        reply = await self._run(dialogue.hello(self._session, verb, await self._hello_name(name)), alone=True)
        self.ehlo_resp = reply.message
        return reply

    async def _hello_name(self, name: str) -> str:
        if not name:
            if self.local_hostname is None:
                found = connect.THIS_MACHINE  # unless a resolver answers in time
                with anyio.move_on_after(self.timeouts.connect):
                    found = await self._environment.call_out(connect.local_hostname)
                self.local_hostname = found
            name = self.local_hostname
        return name

    async def ehlo_or_helo_if_needed(self) -> None:
        """Say EHLO, or HELO if that is refused, unless either was said before.

        Raises:
            SMTPHeloError: both were refused; or EHLO was, with 421 or 521.
        """
        async with self._greeted:
            if self.helo_resp is None and self.ehlo_resp is None:
                await async_trampoline(dialogue.introduction(self.lmtp), lambda verb: getattr(self, verb)())

    async def noop(self) -> Reply:
        """Say NOOP."""
        return await self._run(dialogue.single(b"noop\r\n"))

    async def rset(self) -> Reply:
        """Say RSET: give up the transaction that is open."""
        self.command_encoding = "ascii"
        return await self._run(self._session.reset())

    async def help(self, args: str = "") -> bytes:
        """Say HELP, and return its text."""
        reply = await self._run(dialogue.single(command("help", args)))
        return reply.message

    async def verify(self, address: str) -> Reply:
        """Say VRFY: ask whether an address is valid."""
        return await self._ask("vrfy", address)

    vrfy = verify

    async def expn(self, address: str) -> Reply:
        """Say EXPN: ask for the members of a mailing list."""
        return await self._ask("expn", address)

    async def _ask(self, verb: str, address: str) -> Reply:
        path(address, "address")  # raises what it raises for MAIL and RCPT
        bare = email.utils.parseaddr(address)[1] or address
        line = command(verb, bare, argument="address", encoding=self.command_encoding)
        return await self._run(dialogue.single(line))

    async def mail(self, sender: str, options: Sequence[str] = ()) -> Reply:
        """Say MAIL: begin a transaction by hand.  :meth:`sendmail` does the whole of one.

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
        return await self._run(dialogue.single(line, Trigger.mail))

    async def rcpt(self, recip: str, options: Sequence[str] = ()) -> Reply:
        """Say RCPT: add a recipient by hand."""
        text = options_text(options, "options") if options and self.does_esmtp else ""
        line = command(f"rcpt to:{path(recip, 'recip')}{text}", encoding=self.command_encoding)
        reply = await self._run(dialogue.single(line, Trigger.rcpt))
        self._rcpts += reply.ok
        return reply

    async def data(self, msg: str | bytes) -> Reply:
        """Say DATA and write the content, by hand; return the final reply.

        LMTP has a final reply for each recipient: return the first refusal, or else the last reply.

        Raises:
            SMTPDataError: DATA was not answered 354.
        """
        owed = max(1, self._rcpts) if self.lmtp else 1
        return await self._run(manual_content(self._session, to_octets(msg), owed))

    async def xclient(self, **attributes: str | None) -> Reply:
        """Say XCLIENT (Postfix): for whom this connection is.  EHLO is said again when it is needed.

        Args:
            attributes: name, addr, port, proto, helo, login, destaddr, destport, if the server offers them; None
                for one that is not known.

        Raises:
            SMTPNotSupportedError: the server does not offer it, or not that attribute.
            ValueError, TypeError: no attribute, or one that is no text.
        """
        await self.ehlo_or_helo_if_needed()
        line = xclient(self.esmtp_features, attributes)
        reply = await self._run(dialogue.xclient(self._session, line), alone=True)
        if reply.ok:
            self.helo_resp = self.ehlo_resp = None
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
        """Begin TLS by STARTTLS (RFC 3207).  The extensions are forgotten, and EHLO is said again when it is needed.

        Args:
            keyfile, certfile: deprecated: use a context.
            context: by default certificate and host name are verified, TLS 1.2 at least.
            server_hostname: the name the certificate has to be for, if it is not the host.

        Raises:
            SMTPNotSupportedError: the server does not offer it.
            SMTPResponseException: the server offered it, and refused.
            ssl.SSLError: the handshake failed; the connection is closed.
        """
        check_context(context, "context")
        if keyfile is not None or certfile is not None:
            context = await self._environment.offload(context_from_files, keyfile, certfile, context)
        await self.ehlo_or_helo_if_needed()
        return await self._starttls(context, server_hostname)

    async def _starttls(self, context: ssl.SSLContext | None, server_hostname: str | None = None) -> Reply:
        if not self.has_extn("starttls"):
            raise SMTPNotSupportedError("STARTTLS extension not supported by server.")
        chosen = context or await self._context()
        connection = self._live()
        # As in smtplib, the facade's `ehlo`, which may be a subclass's own, is called when it is needed.
        name = None if self._as_smtplib else await self._hello_name("")
        asking = dialogue.starttls(self._session, self.ehlo_msg, name)
        reply: Reply
        hello: Reply | None
        hostname = server_hostname or self._settings.server_hostname or self._host
        begun = clock()
        # Within connect() alone: a server that refuses the offer ends the connection, and connect() makes another.
        handshake = self._tls_context = ResumingContext(chosen, None if self._preparing is None else self._sessions)
        reply, hello = await connection.start_tls(asking, handshake, hostname)
        if reply.code != 220:
            raise SMTPResponseException(*reply)
        self._tell_of_tls(connection, begun)
        self.helo_resp = None
        self.ehlo_resp = hello.message if hello is not None and hello.ok else None
        return reply

    async def login(
        self,
        user: str,
        password: str,
        *,
        initial_response_ok: bool = True,
        mechanisms: Mechanisms | None = None,
    ) -> Reply:
        """Log in, with the mechanism that protects the password best among those that client and server have.

        PLAIN and LOGIN send the password in clear text.  They are not used without TLS, unless the server is on this
        machine, or the constructor was given tls="none".

        Args:
            initial_response_ok: send a mechanism's initial response with AUTH (RFC 4954 §4).
            mechanisms: those to use, in this order: names, or (name, function) for one that asmtp does not have; see
                :class:`~asmtp.Relay`.

        Raises:
            SMTPNotSupportedError: the server does not offer AUTH, or no mechanism that will do.
            SMTPAuthenticationError: the credentials were refused; or the server could not prove that it knows them
                (SCRAM): `smtp_code` is -1 then, and the connection is closed.
            ValueError: a control character in the user name.
        """
        user, password = spelt_out(user), spelt_out(password)
        if mechanisms is not None:
            check_mechanisms(mechanisms)
        await self.ehlo_or_helo_if_needed()
        self.user, self.password = user, password
        return await self._log_in(self._credentials(user, password), mechanisms, initial_response_ok)

    async def _log_in_as_told(self) -> None:
        """Log in with the credentials that the constructor was given."""
        await self.ehlo_or_helo_if_needed()
        user = self._settings.username or ""
        if self._settings.token is None:
            await self._log_in(self._credentials(user, self._settings.password or ""))
            return
        require_auth(self.esmtp_features)  # before a token is asked for
        token = await self._token(force=False)
        try:
            await self._log_in(self._credentials(user, token=token))
        except SMTPAuthenticationError as error:
            rejected = 500 <= error.smtp_code <= 599
            fresh = hidden(await self._token(force=True)) if rejected else token
            if fresh == token:  # a second refusal can lock the account
                raise
            await self._log_in(self._credentials(user, token=fresh))

    async def _token(self, *, force: bool) -> str:
        return await get_token(self._settings.token, self._environment, self.timeouts.command, force=force)

    def _credentials(self, user: str, password: str = "", token: str = "") -> Credentials:
        # A socket that was given, and a Unix socket, have no host to name.
        named = not self._sock_taken and not self._host.startswith("/")
        return Credentials(
            user,
            password,
            token,
            host=self._settings.server_hostname or (self._host if named else ""),
            port=self._port if named else 0,
            service="lmtp" if self.lmtp else "smtp",
            offered=tuple(self.esmtp_features.auth),
            tls=self._live().tls,
            limit=self._live().timeouts.command,
        )

    def _candidates(self, credentials: Credentials, wanted: Mechanisms | None) -> list[Candidate]:
        connection = self._live()
        trusted = self._session.secure or (connection.tls is not None and self._tls != "opportunistic")
        protected = self._settings.tls == "none" or trusted or connection.local
        return choose(self.esmtp_features, credentials, wanted or self._settings.mechanisms, protected=protected)

    async def _log_in(
        self, credentials: Credentials, wanted: Mechanisms | None = None, initial_response_ok: bool = True
    ) -> Reply:
        # A token that is refused is replaced, and no account is locked over it.
        logins = None if credentials.token else self._logins
        if logins is not None:
            logins.check(asyncio.get_running_loop().time())
        candidates = self._candidates(credentials, wanted)
        return await self._login.with_one_of(candidates, logins, initial_response_ok=initial_response_ok)

    @property
    def _login(self) -> Login:
        return Login(self._live, self.close, self._environment, self._event_log)

    async def auth(
        self, mechanism: str, authobject: Callable[..., Any] | Mechanism, *, initial_response_ok: bool = True
    ) -> Reply:
        """Log in by AUTH with a mechanism of the caller's (RFC 4954).

        Args:
            mechanism: its name.
            authobject: a generator: it yields its initial response (bytes; None if the server speaks first), is
                sent each challenge (bytes) and yields the response, and is sent None after success, when it returns or
                raises.  Or a function as smtplib has it: called with each challenge (bytes), it returns the response
                (str or bytes); called without arguments, it returns the initial response, or None if there is none.
                Either is called in a thread, as it may block; how long it takes is not limited.

        Raises:
            SMTPAuthenticationError: the server said no.
            Exception: what `authobject` raises; the exchange was cancelled.
        """
        again = self._session.authenticated
        begin = functools.partial(self._sasl_exchange, mechanism, authobject, initial_response_ok, again=again)
        return await self._login.exchange(await self._environment.call_out(begin))
