"""SASL (RFC 4422, RFC 4954): mechanisms as plain generators from challenge to response.

A mechanism is a function of user name and password (or token) that returns a generator.  What it yields first is its
initial response, or None if the server speaks first; then it is sent each challenge (bytes) and yields
the response (bytes).  A mechanism that has to look at the last challenge does so after its last response,
and raises what it finds wrong.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Callable, Generator
from typing import TypeAlias

from asmtp.errors import SMTPAuthenticationError, SMTPException
from asmtp.protocol.command import gate
from asmtp.protocol.envelope import ascii_domain
from asmtp.protocol.reply import Reply

__all__ = [
    "MECHANISMS", "TOKEN_MECHANISMS", "Mechanism", "authenticate", "choose", "choose_token", "from_authobject",
]  # fmt: skip

Mechanism: TypeAlias = Generator[bytes | None, bytes, None]

MAX_CHALLENGES = 5
"""Challenges before a server that goes on asking is given up; smtplib's number."""

MAX_COMMAND = 512
"""Octets of a command line with its CRLF (RFC 5321 §4.5.3.1.4), AUTH with an initial response included."""

_BEARER = re.compile("[!-~]+")  # RFC 6750 §2.1 has fewer, but not every issuer keeps to it


def plain(username: str, password: str) -> Mechanism:
    """PLAIN (RFC 4616)."""
    yield f"\0{username}\0{password}".encode()


def login(username: str, password: str) -> Mechanism:
    """LOGIN (draft-murchison-sasl-login): two prompts whose text does not matter."""
    yield None
    yield username.encode()
    yield password.encode()


def cram_md5(username: str, password: str) -> Mechanism:
    """CRAM-MD5 (RFC 2195).

    Raises:
        ValueError: this machine's OpenSSL forbids MD5 (FIPS).
    """
    hmac.new(b"", b"", "md5")
    challenge = yield None
    digest = hmac.new(password.encode(), challenge, "md5").hexdigest()
    yield f"{username} {digest}".encode()


def oauthbearer(username: str, token: str, host: str = "", port: int = 0) -> Mechanism:
    """OAUTHBEARER (RFC 7628).

    Args:
        host, port: where the client has connected to; left out if empty.
    """
    name = username.replace("=", "=3D").replace(",", "=2C")  # RFC 5801 §4
    fields = [b"n,a=%b," % name.encode()]
    if host:
        fields.append(b"host=%b" % ascii_domain(host, "host").encode())
    if port:
        fields.append(b"port=%d" % port)
    # A challenge that comes behind the token is the error; the server says no when it is answered (§3.2.3).
    yield b"\1".join([*fields, b"auth=Bearer %b\1\1" % token.encode()])
    yield b"\1"


def xoauth2(username: str, token: str, host: str = "", port: int = 0) -> Mechanism:
    """XOAUTH2, what Google and Microsoft had before there was an RFC.

    Args:
        host, port: not used.
    """
    yield b"user=%b\1auth=Bearer %b\1\1" % (username.encode(), token.encode())
    yield b""


MECHANISMS: dict[str, Callable[[str, str], Mechanism]] = {
    "CRAM-MD5": cram_md5,
    "PLAIN": plain,
    "LOGIN": login,
}
"""By name, the ones that protect the password best first."""

TOKEN_MECHANISMS: dict[str, Callable[[str, str, str, int], Mechanism]] = {
    "OAUTHBEARER": oauthbearer,
    "XOAUTH2": xoauth2,
}
"""Those of OAuth 2.0, by name, the standard's first: functions of user name, token, host and port."""


def choose(offered: list[str], username: str, password: str) -> list[str]:
    """The names of the mechanisms to try, in order.

    Args:
        offered: what the server offers.

    Raises:
        TypeError: user name or password is not a str.
        ValueError: one holds a control character; the password is not shown.
        SMTPException: the server offers none that is known here.
    """
    gate(username, "user")
    if not isinstance(password, str):
        raise TypeError(f"password must be str, not {type(password).__name__}")
    if "\0" in password:
        raise ValueError("password: contains a NUL character")
    if any("\ud800" <= character <= "\udfff" for character in password):
        raise ValueError("password: not characters (a lone surrogate)")  # encode() would show it
    names = [name for name in MECHANISMS if name in offered and (name != "CRAM-MD5" or _md5_allowed())]
    if not names:
        raise SMTPException("No suitable authentication method found.")
    return names


def choose_token(offered: list[str], username: str, token: str) -> list[str]:
    """The names of the mechanisms to try with a token, in order.

    Args:
        offered: what the server offers.

    Raises:
        TypeError: user name or token is not a str.
        ValueError: one holds a control character, or the token what no token has; the token is not shown.
        SMTPException: the server offers none that is known here.
    """
    gate(username, "username")
    gate(token, "token", secret=True)
    if not _BEARER.fullmatch(token):
        raise ValueError("token: empty, or contains a space or characters that are not ASCII")
    names = [name for name in TOKEN_MECHANISMS if name in offered]
    if not names:
        raise SMTPException("No suitable authentication method found.")
    return names


def _md5_allowed() -> bool:
    try:
        hmac.new(b"", b"", "md5")
    except ValueError:  # FIPS
        return False
    return True


def from_authobject(
    authobject: Callable[..., str | bytes | None], *, initial_response_ok: bool = True
) -> Generator[bytes | None, bytes, None]:
    """A mechanism from smtplib's authobject: a function of the challenge, or of nothing for the initial response."""
    response = authobject() if initial_response_ok else None
    while True:
        octets = response.encode() if isinstance(response, str) else response
        challenge = yield octets
        response = authobject(challenge)


def authenticate(
    name: str, mechanism: Mechanism, *, initial_response_ok: bool = True
) -> Generator[bytes, Reply, Reply]:
    """The lines of one AUTH exchange (RFC 4954 §4); is sent each reply, and returns the last.

    235 is success; 503 (already authenticated) is taken for it, as smtplib does.  What a token mechanism's error
    challenge says stands behind the text of the refusal.

    Raises:
        ValueError: `name` is not a word.
        SMTPAuthenticationError: the server said no, or its challenge was not base64.
        SMTPException: it asks and asks.
    """
    if not name.isascii() or not all(c.isalnum() or c in "-_" for c in name) or not name:
        raise ValueError(f"mechanism: not a SASL mechanism's name: {name!a}")
    verb = b"AUTH " + name.upper().encode()
    held = next(mechanism)
    line = verb
    if held is not None:
        # RFC 4954 §4: an empty initial response is sent as "=".
        line = verb + b" " + (_encode(held) or b"=")
        if not initial_response_ok or len(line) + 2 > MAX_COMMAND:
            line = verb
        else:
            held = None
    reply = yield line
    asked = 0
    challenge = b""
    while reply.code == 334:
        asked += 1
        if asked > MAX_CHALLENGES:
            yield b"*"
            raise SMTPException(f"Server AUTH mechanism infinite loop. Last response: {tuple(reply)!r}")
        try:
            if held is None:
                challenge = _challenge(name, reply.message)
                response = mechanism.send(challenge)
            else:  # the server's empty challenge asks for it
                response = held
        except (binascii.Error, StopIteration):
            # RFC 4954 §4: "*" cancels.
            reply = yield b"*"
            raise SMTPAuthenticationError(
                reply.code, b"challenge not understood; cancelled: " + reply.message
            ) from None
        held = None
        reply = yield _encode(response or b"")
    if reply.code in (235, 503):
        return reply
    why = _why(challenge) if challenge and name.upper() in TOKEN_MECHANISMS else b""
    raise SMTPAuthenticationError(reply.code, reply.message + why)


def _challenge(name: str, text: bytes) -> bytes:
    if name.upper() in ("LOGIN", "PLAIN"):
        return text  # a prompt, which does not matter: some servers do not even encode it
    return base64.b64decode(text, validate=True)


def _why(challenge: bytes) -> bytes:
    """What there is to tell of a token mechanism's error challenge (RFC 7628 §3.2.2): status and scope."""
    import json  # few logins need it

    try:
        error = json.loads(challenge)
    except (ValueError, RecursionError):
        return b""
    if not isinstance(error, dict):
        return b""
    told = [f"{key}: {error[key]}" for key in ("status", "scope") if isinstance(error.get(key), str | int)]
    return f" ({', '.join(told)})".encode("unicode_escape") if told else b""


def _encode(response: bytes) -> bytes:
    return base64.b64encode(response)
