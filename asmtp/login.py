"""Logging in: which mechanisms there are, and which are tried."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from asmtp import gssapi
from asmtp.errors import SMTPAuthenticationError, SMTPNotSupportedError
from asmtp.protocol import mechanisms
from asmtp.protocol.command import gate
from asmtp.protocol.extensions import Extensions
from asmtp.protocol.sasl import UNPROVEN, Credentials, Mechanism

__all__ = ["Choice", "Factory", "Mechanisms", "check_mechanisms", "choose", "is_final", "needs", "require_auth"]

_SURROGATE = re.compile("[\ud800-\udfff]")

Factory: TypeAlias = Callable[[Credentials], Mechanism]
"""Makes a mechanism: a function of credentials that returns a generator."""

Mechanisms: TypeAlias = Sequence[str | tuple[str, Factory]]
"""The mechanisms to use: names, and for those that asmtp does not have (name, factory)."""


@dataclass(frozen=True, slots=True)
class _Known:
    """A mechanism that asmtp has.

    Attributes:
        make: makes it.
        needs: what it cannot do without: "password", "token", or neither.
        clear: who reads along has the password or the token.
        slow: it computes for long, or asks others.
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
"""By name, those that protect the password best first."""

_BY_NAME_ONLY = frozenset({"EXTERNAL", "GSSAPI", "NTLM"})
"""Used only where they are named: a password says nothing of a certificate, a ticket or a Windows domain."""


class Choice:
    """A mechanism to be tried.

    Args:
        factory: makes it.
        slow: it is to be made and used off the event loop.
        binding: the type of channel binding of a -PLUS form; the server may not know it.

    Attributes:
        proved: something that depends on the password was written.
    """

    def __init__(
        self, name: str, factory: Factory, credentials: Credentials, *, slow: bool = True, binding: str | None = None
    ) -> None:
        self.name = name
        self.slow = slow
        self.proved = binding is None
        self._factory = factory
        self._credentials = credentials
        self._binding = binding

    def make(self) -> Mechanism:
        """The mechanism.

        Raises:
            ValueError: it cannot be used with these credentials, or on this machine.
            ImportError: a package that it needs is not installed.
        """
        if self._binding is None:
            return self._factory(self._credentials)
        return mechanisms.scram(self.name, self._credentials, binding=self._binding, proved=self._prove)

    def _prove(self) -> None:
        self.proved = True


def is_final(error: SMTPAuthenticationError, choice: Choice) -> bool:
    """Whether no other mechanism is to be tried after this refusal.

    RFC 4954 §6: 535 is about the credentials, whatever the mechanism; accounts are locked over less.  But where -PLUS
    was refused before the password came into it, it was the channel binding.
    """
    return error.smtp_code == UNPROVEN or (error.smtp_code == 535 and choice.proved)


def check_mechanisms(wanted: Mechanisms) -> None:
    """Raise what is wrong with a caller's choice of mechanisms.

    Raises:
        TypeError, ValueError: it is no such sequence, or empty; or there is no mechanism of a name.
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
    """What the mechanisms of a caller's choice cannot do without: "password", "token", or "" for neither."""
    return {_KNOWN[one.upper()].needs if isinstance(one, str) else "" for one in wanted}


def require_auth(extensions: Extensions) -> None:
    """Raise that the server has no logins.

    Raises:
        SMTPNotSupportedError: it does not offer AUTH.
    """
    if "auth" not in extensions:
        raise SMTPNotSupportedError("SMTP AUTH extension not supported by server.")


def choose(
    extensions: Extensions, credentials: Credentials, wanted: Mechanisms | None = None, *, protected: bool
) -> list[Choice]:
    """The mechanisms to try, in order.

    Args:
        extensions: what the server offers.
        wanted: those to use, in this order; by default all that fit the credentials, what protects them best first.
        protected: nobody reads along, or that is the caller's will.

    Raises:
        TypeError: user name, password or token is not a str.
        ValueError: one holds a control character, or the token what no token has; they are not shown.
        SMTPNotSupportedError: the server offers none that will do.
    """
    _check_credentials(credentials)
    require_auth(extensions)
    offered = extensions.auth
    asked = wanted is not None
    if wanted is None:
        secret = "token" if credentials.token else "password"
        wanted = [name for name, known in _KNOWN.items() if known.needs == secret and name not in _BY_NAME_ONLY]
    found: list[Choice] = []
    unprotected: list[str] = []
    for one in wanted:
        name = (one if isinstance(one, str) else one[0]).upper()
        if name not in offered:
            continue
        if isinstance(one, str) and _KNOWN[name].needs == "token" and not credentials.token:
            raise ValueError(f"mechanisms: {name} needs a token")
        if not isinstance(one, str):
            found.append(Choice(name, one[1], credentials))
        elif _KNOWN[name].clear and not protected:
            unprotected.append(name)
        elif name.endswith("-PLUS"):
            bindings = mechanisms.channel_bindings(credentials.tls)
            if not asked and name.removesuffix("-PLUS") in offered:
                # RFC 5802 §6.1: this one every server has to know.  At one that it does not know, Dovecot 2.4 hangs up.
                bindings = [binding for binding in bindings if binding == "tls-unique"]
            found += [Choice(name, _KNOWN[name].make, credentials, binding=binding) for binding in bindings]
        else:
            found.append(Choice(name, _KNOWN[name].make, credentials, slow=_KNOWN[name].slow))
    if not found:
        raise SMTPNotSupportedError(_nothing(offered, unprotected))
    return found


def _nothing(offered: Sequence[str], unprotected: Sequence[str]) -> str:
    """Why there is no mechanism, in smtplib's words first."""
    what = "No suitable authentication method found."
    if unprotected:
        return (
            f"{what} {' and '.join(unprotected)} would send the password or token for everybody on the way to read: "
            "call starttls() first, with a certificate that can be verified, or pass tls='none' if that is meant"
        )
    named = [name for name in offered if name in _BY_NAME_ONLY]
    also = f" ({' and '.join(named)} can be asked for with mechanisms=)" if named else ""
    return f"{what} The server offers {' '.join(offered).encode('unicode_escape').decode()}{also}"


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
    # RFC 6750 §2.1 has fewer, but not every issuer keeps to it.
    if not all("!" <= character <= "~" for character in token):
        raise ValueError("token: contains a space or characters that are not ASCII")
