"""Logging in: the mechanisms that there are, and those that are tried, in order."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import re
import time
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from asmtp.auth import gssapi as gssapi, mechanisms
from asmtp.errors import SMTPAuthenticationError, SMTPNotSupportedError, one_line
from asmtp.protocol.command import gate
from asmtp.protocol.extensions import Extensions
from asmtp.protocol.reply import Reply
from asmtp.protocol.sasl import UNPROVEN, Credentials, Mechanism

__all__ = [
    "Attempt", "Candidate", "Factory", "Logins", "Mechanisms", "attempts", "check_mechanisms", "choose", "needs",
    "require_auth",
]  # fmt: skip

_SURROGATE = re.compile("[\ud800-\udfff]")

Factory: TypeAlias = Callable[[Credentials], Mechanism]
"""A function of credentials that returns a mechanism, which is a generator."""

Mechanisms: TypeAlias = Sequence[str | tuple[str, Factory]]
"""Mechanisms to use: names, and (name, factory) for those that asmtp does not have."""


@dataclass(frozen=True, slots=True)
class _Known:
    """A mechanism that asmtp has.

    Attributes:
        make: the function that makes it.
        needs: the secret that it needs: "password", "token", or "" for none.
        clear: it sends the secret in clear text.
        slow: it computes for long, or asks other servers.
    """

    make: Factory
    needs: str = "password"
    clear: bool = False
    slow: bool = False


_SCRAM = ("SCRAM-SHA-512", "SCRAM-SHA-256", "SCRAM-SHA-1")
_KNOWN: dict[str, _Known] = {
    **{f"{name}-PLUS": _Known(functools.partial(mechanisms.scram, f"{name}-PLUS"), slow=True) for name in _SCRAM},
    **{name: _Known(functools.partial(mechanisms.scram, name), slow=True) for name in _SCRAM},
    "CRAM-MD5": _Known(mechanisms.cram_md5),
    "PLAIN": _Known(mechanisms.plain, clear=True),
    "LOGIN": _Known(mechanisms.login, clear=True),
    "OAUTHBEARER": _Known(mechanisms.oauthbearer, "token", clear=True),
    "XOAUTH2": _Known(mechanisms.xoauth2, "token", clear=True),
    "EXTERNAL": _Known(mechanisms.external, ""),
    "GSSAPI": _Known(gssapi.gssapi, "", slow=True),
    "NTLM": _Known(gssapi.ntlm, slow=True),
}
"""The mechanisms by name, those that protect the password best first."""

_BY_NAME_ONLY = frozenset({"EXTERNAL", "GSSAPI", "NTLM"})
"""Mechanisms that are used only if the caller names them: a password does not mean a certificate or a ticket."""


class Candidate:
    """A mechanism to be tried.

    Args:
        factory: the function that makes it.
        slow: make and use it off the event loop.
        scram: it is asmtp's own SCRAM.
        binding: the type of channel binding, of a -PLUS form; the server may not know that type.

    Attributes:
        proved: True once something was written that depends on the password.
    """

    def __init__(
        self,
        name: str,
        factory: Factory,
        credentials: Credentials,
        *,
        slow: bool = True,
        scram: bool = False,
        binding: str | None = None,
    ) -> None:
        self.name = name
        self.slow = slow
        self.binding = binding
        self.proved = not scram
        self._scram = scram
        self._factory = factory
        self._credentials = credentials

    def make(self) -> Mechanism:
        """Make the mechanism.

        Raises:
            ValueError: it cannot be used with these credentials, or on this machine.
            ImportError: a package that it needs is not installed.
        """
        if not self._scram:
            return self._factory(self._credentials)
        return mechanisms.scram(
            self.name, self._credentials, binding=self.binding, proved=self._prove, clock=time.monotonic
        )

    def _prove(self) -> None:
        self.proved = True

    @property
    def may_lack_secret(self) -> bool:
        """True if 535 may mean that the server lacks the secret for this mechanism, though the password is right.

        Servers that keep passwords hashed, or the keys of another SCRAM, offer the mechanism all the same.
        """
        return self.name == "CRAM-MD5" or (not self.proved and self.binding is None)


_ABOUT_COMMANDS = frozenset({500, 501, 502, 503, 504})
"""Refusals of the command, which say nothing of the password."""


Attempt: TypeAlias = tuple["Candidate", Mechanism | None]
"""A candidate, and None if its mechanism is to be made, or the mechanism that is to be used."""


def attempts(
    candidates: Sequence[Candidate], *, first: tuple[str, str | None] | None, verified: bool
) -> Generator[Attempt, Any, Reply]:
    """Log in with one mechanism after the other; return the reply to the one that the server took.

    The generator yields (candidate, None) to have the mechanism made, which is sent back; then (candidate, mechanism)
    to have it used: it is sent the server's reply, or SMTPAuthenticationError is thrown into it.

    RFC 4954 §6: 535 is about the credentials, whatever the mechanism, and accounts are locked over fewer attempts:
    nothing else is tried then, but in two cases.  If -PLUS was refused before the password came into it, it was the
    channel binding.  And if the server may have no secret for the mechanism, PLAIN is tried under verified TLS: not
    behind -PLUS, which somebody in between may have refused.

    Args:
        first: the name and the binding of the candidate that is tried first, if it is among them.
        verified: there is TLS, and the certificate was verified.

    Raises:
        SMTPAuthenticationError: the last refusal.
        ValueError: there was none, as no mechanism can be used with these credentials, or on this machine.
    """
    refusal: Exception | None = None
    only: str | None = None
    plus = False
    for candidate in sorted(candidates, key=lambda candidate: (candidate.name, candidate.binding) != first):
        if only not in (None, candidate.name):
            continue
        plus = plus or candidate.binding is not None
        try:
            mechanism = yield candidate, None
        except ValueError as error:
            refusal = refusal or error
            continue
        try:
            reply: Reply = yield candidate, mechanism
            return reply
        except SMTPAuthenticationError as error:
            refusal = error
            if error.smtp_code == 535 and candidate.may_lack_secret:
                error.advice = (
                    f"{candidate.name} was used; if the password is right, name another mechanism with mechanisms="
                )
                only = "PLAIN"
                if plus or not verified:
                    break
            elif error.smtp_code == UNPROVEN or (error.smtp_code == 535 and candidate.proved):
                break
    assert refusal is not None
    raise refusal


class _Turns:
    """Log-ins of one event loop: how many are under way, and those that wait."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.under_way = 0
        self.waiting: set[asyncio.Future[None]] = set()


class Logins:
    """Keep what a relay said to log-ins, for all connections to it, in one event loop after the other.

    A password that the relay refuses is sent twice at most, and then not for an hour: more refusals lock accounts.
    One that it takes clears that.

    Attributes:
        worked: name and binding of the mechanism that worked last.
    """

    MOST = 2
    HOUR = 3600.0

    def __init__(self) -> None:
        self.worked: tuple[str, str | None] | None = None
        self._error = SMTPAuthenticationError(535, b"")
        self._refused = 0
        self._until = 0.0  # the loop's time at which refusals are forgotten
        self._turns: _Turns | None = None

    def check(self, now: float) -> None:
        """Raise the last refusal, if the password may not be sent any more.

        Args:
            now: the loop's time.

        Raises:
            SMTPAuthenticationError: the password was refused too often.
        """
        if now >= self._until:
            self._refused = 0
        if self._refused >= self.MOST:
            raise copy.copy(self._error)

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Send the password once.  At the same time there are as many log-ins as may still be refused; others wait.

        Raises:
            SMTPAuthenticationError: see `check`; nothing is written.
        """
        loop = asyncio.get_running_loop()
        self.check(loop.time())
        turns = self._turns
        if turns is None or turns.loop is not loop:  # the other loop is closed, and its log-ins never end
            self._turns = turns = _Turns(loop)
        while self._refused + turns.under_way >= self.MOST:
            await _change(turns)
            self.check(loop.time())
        turns.under_way += 1
        try:
            yield
            self._refused = 0
        except SMTPAuthenticationError as error:
            if 500 <= error.smtp_code <= 599 and error.smtp_code not in _ABOUT_COMMANDS:
                self._refused += 1
                self._until = loop.time() + self.HOUR
                self._error = SMTPAuthenticationError(*error.args)  # a new one: the other holds frames
            raise
        finally:
            turns.under_way -= 1
            for waiting in turns.waiting:
                if not waiting.done():
                    waiting.set_result(None)


async def _change(turns: _Turns) -> None:
    """Wait until a log-in has ended."""
    waiting = turns.loop.create_future()
    turns.waiting.add(waiting)
    try:
        await waiting
    finally:
        turns.waiting.discard(waiting)


def check_mechanisms(wanted: Mechanisms) -> None:
    """Raise if there is something wrong with the mechanisms that a caller chose.

    Raises:
        TypeError, ValueError: they are no sequence of names, or an empty one; or there is no mechanism of a name.
    """
    if isinstance(wanted, str) or not isinstance(wanted, Sequence):
        raise TypeError(f"mechanisms must be a sequence of names, not {type(wanted).__name__}")
    if not wanted:
        raise ValueError("mechanisms: none is given")
    for one in wanted:
        if isinstance(one, tuple) and len(one) == 2 and isinstance(one[0], str) and callable(one[1]):
            continue
        if not isinstance(one, str):
            raise TypeError("mechanisms must hold names, or (name, function of Credentials that returns a generator)")
        if one.upper() not in _KNOWN:
            raise ValueError(f"mechanisms: {one!a} is unknown; there are {', '.join(_KNOWN)}, and (name, function)")


def needs(wanted: Mechanisms) -> set[str]:
    """Return what each of the mechanisms of the caller needs: "password", "token", or "" for neither."""
    return {_KNOWN[one.upper()].needs if isinstance(one, str) else "" for one in wanted}


def require_auth(extensions: Extensions) -> None:
    """Raise SMTPNotSupportedError if the server has no log-ins.

    Raises:
        SMTPNotSupportedError: it does not offer AUTH.
    """
    if "auth" not in extensions:
        raise SMTPNotSupportedError("SMTP AUTH extension not supported by server.")


def choose(
    extensions: Extensions, credentials: Credentials, wanted: Mechanisms | None = None, *, protected: bool
) -> list[Candidate]:
    """Return the mechanisms to try, in order.

    Args:
        extensions: what the server offers.
        wanted: those to use, in this order; by default all that fit the credentials, the best protection first.
        protected: the channel is encrypted, or local, or the caller passed tls="none".

    Raises:
        TypeError: user name, password or token is not a str.
        ValueError: one of them holds a control character, or characters that no token has.  The error does not show it.
        SMTPNotSupportedError: the server offers no mechanism that can be used.
    """
    _check_credentials(credentials)
    require_auth(extensions)
    offered = extensions.auth
    asked = wanted is not None
    if wanted is None:
        secret = "token" if credentials.token else "password"
        wanted = [name for name, known in _KNOWN.items() if known.needs == secret and name not in _BY_NAME_ONLY]
    found: list[Candidate] = []
    unprotected: list[str] = []
    for one in wanted:
        name = (one if isinstance(one, str) else one[0]).upper()
        if name not in offered:
            continue
        if isinstance(one, str) and _KNOWN[name].needs == "token" and not credentials.token:
            raise ValueError(f"mechanisms: {name} needs a token")
        if not isinstance(one, str):
            found.append(Candidate(name, one[1], credentials))
        elif _KNOWN[name].clear and not protected:
            unprotected.append(name)
        elif name.endswith("-PLUS"):
            bindings = mechanisms.channel_bindings(credentials.tls)
            if not asked and name.removesuffix("-PLUS") in offered:
                # RFC 5802 §6.1: every server has to know this one.  Dovecot 2.4 hangs up at one that it does not know.
                bindings = [binding for binding in bindings if binding == "tls-unique"]
            make = _KNOWN[name].make
            found += [Candidate(name, make, credentials, scram=True, binding=binding) for binding in bindings]
        else:
            known = _KNOWN[name]
            found.append(Candidate(name, known.make, credentials, slow=known.slow, scram=name in _SCRAM))
    if not found:
        raise SMTPNotSupportedError(_nothing(offered, unprotected))
    return found


def _nothing(offered: Sequence[str], unprotected: Sequence[str]) -> str:
    """Return why there is no mechanism, in smtplib's words first."""
    what = "No suitable authentication method found."
    if unprotected:
        return (
            f"{what} {' and '.join(unprotected)} would send the password or token for everybody on the way to read: "
            "call starttls() first, with a certificate that can be verified, or pass tls='none' if that is meant"
        )
    named = [name for name in offered if name in _BY_NAME_ONLY]
    also = f" ({' and '.join(named)} can be asked for with mechanisms=)" if named else ""
    return f"{what} The server offers {one_line(' '.join(offered))}{also}"


def _check_credentials(credentials: Credentials) -> None:
    password, token = credentials.password, credentials.token
    gate(credentials.username, "user")
    if _SURROGATE.search(credentials.username):
        raise ValueError("user: not characters (a lone surrogate)")  # encode() would show the password with it
    if not isinstance(password, str):
        raise TypeError(f"password must be str, not {type(password).__name__}")
    if "\0" in password:
        raise ValueError("password: contains a NUL character")
    if _SURROGATE.search(password):
        raise ValueError("password: not characters (a lone surrogate)")  # encode() would show it
    gate(token, "token", secret=True)
    # RFC 6750 §2.1 allows fewer characters, but not every issuer keeps to it.
    if not all("!" <= character <= "~" for character in token):
        raise ValueError("token: contains a space or characters that are not ASCII")
