"""SASL (RFC 4422, RFC 4954): mechanisms as plain generators from challenge to response.

A mechanism is a function of user name and password that returns a generator.  What it yields first is its
initial response, or None if the server speaks first; then it is sent each challenge (bytes) and yields
the response (bytes).  A mechanism that has to look at the last challenge does so after its last response,
and raises what it finds wrong.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Callable, Generator
from typing import TypeAlias

from asmtp.errors import SMTPAuthenticationError, SMTPException
from asmtp.protocol.command import gate
from asmtp.protocol.reply import Reply

__all__ = ["MECHANISMS", "Mechanism", "authenticate", "choose", "from_authobject"]

Mechanism: TypeAlias = Generator[bytes | None, bytes, None]

MAX_CHALLENGES = 5
"""Challenges before a server that goes on asking is given up; smtplib's number."""

MAX_COMMAND = 512
"""Octets of a command line with its CRLF (RFC 5321 §4.5.3.1.4), AUTH with an initial response included."""


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


MECHANISMS: dict[str, Callable[[str, str], Mechanism]] = {
    "CRAM-MD5": cram_md5,
    "PLAIN": plain,
    "LOGIN": login,
}
"""By name, the ones that protect the password best first."""


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
    names = [name for name in MECHANISMS if name in offered and (name != "CRAM-MD5" or _md5_allowed())]
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

    235 is success; 503 (already authenticated) is taken for it, as smtplib does.

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
    while reply.code == 334:
        asked += 1
        if asked > MAX_CHALLENGES:
            yield b"*"
            raise SMTPException(f"Server AUTH mechanism infinite loop. Last response: {tuple(reply)!r}")
        try:
            response = held if held is not None else mechanism.send(_challenge(name, reply.message))
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
    raise SMTPAuthenticationError(*reply)


def _challenge(name: str, text: bytes) -> bytes:
    if name.upper() in ("LOGIN", "PLAIN"):
        return text  # a prompt, which does not matter: some servers do not even encode it
    return base64.b64decode(text, validate=True)


def _encode(response: bytes) -> bytes:
    return base64.b64encode(response)
