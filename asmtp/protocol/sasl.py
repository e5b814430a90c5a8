"""SASL (RFC 4422, RFC 4954): one AUTH exchange, without I/O.  The mechanisms are in mechanisms.py."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from asmtp.errors import SMTPAuthenticationError, SMTPException
from asmtp.protocol.hidden import hidden
from asmtp.protocol.reply import Reply

__all__ = ["UNPROVEN", "SASLExchange", "Credentials", "Mechanism", "encoded", "from_authobject", "unproven"]

Mechanism: TypeAlias = Generator[bytes | None, bytes | None, None]
"""A generator from challenge to response.

What it yields first is its initial response, or None if the server speaks first; then it is sent each challenge (bytes)
and yields the response.  When the server has said that the login succeeded, it is sent None: it returns then, or
raises what is wrong with that; a mechanism that has to look at the server's last message does it here.
"""

MAX_CHALLENGES = 5
"""Challenges before a server that goes on asking is given up; smtplib's number."""

_ONE_RESPONSE = ("PLAIN", "EXTERNAL")
"""Mechanisms with one response: a server that asks for more has overlooked it, where it came with AUTH."""

MAX_COMMAND = 512
"""Octets of a command line with its CRLF (RFC 5321 §4.5.3.1.4), AUTH with an initial response included."""

MAX_RESPONSE = 12288
"""Octets of a response's line with its CRLF that servers are asked to take (RFC 4954 §4)."""

UNPROVEN = -1
"""The code of an error that is not the server's refusal, but ours: it is not who it should be."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a mechanism is given: who logs in, and where.

    Attributes:
        username, password, token: what is known; empty where it is not.
        host, port: where the client has connected to; empty and 0 where there is none to name.
        service: the service's name for GSSAPI (RFC 4954 §4, RFC 2033): "smtp" or "lmtp".
        offered: the mechanisms that the server offers.
        tls: the connection's :class:`ssl.SSLObject`, for channel binding; None without TLS.
        limit: seconds that a response may take to compute; None: as long as it takes.
    """

    username: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    host: str = ""
    port: int = 0
    service: str = "smtp"
    offered: tuple[str, ...] = ()
    tls: Any = field(default=None, repr=False, compare=False)
    limit: float | None = field(default=None, repr=False, compare=False)


def unproven(why: str) -> SMTPAuthenticationError:
    """The server's part of a login was wrong: it may be someone who does not know the password."""
    return SMTPAuthenticationError(UNPROVEN, why.encode("ascii", "backslashreplace"))


def from_authobject(authobject: Callable[..., Any], *, initial_response_ok: bool = True) -> Mechanism:
    """A mechanism from smtplib's authobject: a function of the challenge, or of nothing for the initial response."""
    response = hidden(authobject() if initial_response_ok else None)
    while True:
        octets = response if response is None or isinstance(response, bytes) else encoded(response)
        challenge = yield octets
        if challenge is None:
            return
        response = hidden(authobject(challenge))


def encoded(response: Any) -> bytes:
    """A response of an authobject's, or what it is made of, as UTF-8: a str, or what has its `encode`.

    Raises:
        TypeError: it has none, or that makes no bytes.
    """
    wrong: Exception = TypeError(f"authobject: user, password or response must be str, not {type(response).__name__}")
    try:
        if hasattr(response, "encode") and isinstance(octets := hidden(response.encode()), bytes):
            return octets
    except UnicodeEncodeError:  # which holds all of it
        wrong = ValueError("authobject: user, password or response is not characters (a lone surrogate)")
    raise wrong


class SASLExchange:
    """One AUTH exchange (RFC 4954 §4).  Whoever has it writes `line`, puts the reply into `reply`, and calls `go_on`.

    235 is success; 503 (already authenticated) is taken for it, as smtplib does, unless the mechanism objects.  What
    the mechanism's error challenge says stands behind the text of the refusal.

    Args:
        name: the mechanism's name.
        slow: the mechanism computes for long, or asks others: `go_on` is to be called off the event loop.
        again: there was a login on this connection already, so 503 is no surprise.

    Attributes:
        line: what is to be written next, without CRLF; None: it is over, and `reply` is the last.
        name: of the mechanism, in upper case.
        answered: how many challenges were answered.
        redact: what an error shows of challenges goes through it.

    Raises:
        ValueError: `name` is not a word; or the generator ends before it has begun.
    """

    def __init__(
        self,
        name: str,
        mechanism: Mechanism,
        *,
        initial_response_ok: bool = True,
        slow: bool = False,
        again: bool = False,
    ) -> None:
        if not name.isascii() or not all(c.isalnum() or c in "-_" for c in name) or not name:
            raise ValueError(f"mechanism: not a SASL mechanism's name: {name!a}")
        self.slow = slow
        self.reply = Reply(0, b"")
        self.answered = 0
        self.redact: Callable[[bytes], bytes] = lambda text: text
        self.name = name.upper()
        self._mechanism = mechanism
        self._initial_response_ok = initial_response_ok
        self._again = again
        self._challenge = b""  # the last that was understood
        self._steps = self._run()
        self.line: bytes | None = next(self._steps)

    def go_on(self) -> None:
        """Look at `reply`.

        Raises:
            SMTPAuthenticationError: the server said no, its challenge was not base64, or it has not proved to be the
                one that knows the password: `smtp_code` is `UNPROVEN` then, and it must not be trusted.
            SMTPException: it asks and asks.
            Exception: what the mechanism raised, when the exchange was cancelled.
        """
        self.line = next(self._steps, None)

    def _run(self) -> Generator[bytes, None, None]:
        """Each line; `reply` is looked at in between."""
        verb = b"AUTH " + self.name.encode()
        try:
            response = hidden(next(self._mechanism))
        except StopIteration:
            raise ValueError(f"mechanism: {self.name}: the generator yields nothing") from None
        line = verb
        held = response is not None
        if response is not None and self._initial_response_ok:
            # RFC 4954 §4: an empty initial response is sent as "="; one that makes the line too long is not sent.
            whole = hidden(verb + b" " + (_base64(response) or b"="))
            if len(whole) + 2 <= MAX_COMMAND:
                line, held = whole, False
        overlooked = line is not verb and self.name in _ONE_RESPONSE
        yield line
        challenges = 0
        while self.reply.code == 334:
            challenges += 1
            if challenges > MAX_CHALLENGES:
                last = (self.reply.code, self.redact(self.reply.message))
                yield from self._cancel()
                raise SMTPException(f"Server AUTH mechanism infinite loop. Last response: {last!r}")
            if not held:  # else the server's empty challenge asks for it
                try:
                    response = self._respond()
                except (binascii.Error, StopIteration):
                    if not overlooked:
                        yield from self._cancel()
                        code, text = self.reply
                        raise SMTPAuthenticationError(
                            code, b"challenge not understood; cancelled: " + self.redact(text)
                        ) from None
                except Exception:
                    yield from self._cancel()
                    raise
            held = overlooked = False
            encoded = _base64(response or b"")
            if len(encoded) + 2 > MAX_RESPONSE:
                yield from self._cancel()
                raise ValueError(f"{self.name}: a response of {len(encoded)} octets; {MAX_RESPONSE - 2} are possible")
            self.answered += 1
            yield encoded
        self._judge()

    def _respond(self) -> bytes | None:
        text = self.reply.message
        # A prompt does not matter: some servers do not even encode it.
        self._challenge = text if self.name in ("LOGIN", "PLAIN") else base64.b64decode(text, validate=True)
        return hidden(self._mechanism.send(self._challenge))

    def _cancel(self) -> Generator[bytes, None, None]:
        """RFC 4954 §4: "*" cancels."""
        self._mechanism.close()
        yield b"*"

    def _judge(self) -> None:
        if self.reply.code == 503 and self._again:
            self._mechanism.close()
            return
        if self.reply.code in (235, 503):
            try:
                self._mechanism.send(None)
            except StopIteration:
                pass
            else:
                self._mechanism.close()
            return
        self._mechanism.close()
        raise SMTPAuthenticationError(self.reply.code, self.reply.message + self.redact(self._why()))

    def _why(self) -> bytes:
        """What the last challenge told of the refusal that came behind it."""
        if not self._challenge:
            return b""
        if self.name in ("OAUTHBEARER", "XOAUTH2"):
            return _token_error(self._challenge)
        if self.name.startswith("SCRAM-") and self._challenge.startswith(b"e="):  # RFC 5802 §7
            told = self._challenge[2:].decode("ascii", "backslashreplace")
            return f" ({told})".encode("unicode_escape")
        return b""


def _base64(response: bytes) -> bytes:
    return hidden(base64.b64encode(response))


def _token_error(challenge: bytes) -> bytes:
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
