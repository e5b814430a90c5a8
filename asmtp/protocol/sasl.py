"""SASL (RFC 4422, RFC 4954): one AUTH exchange, without I/O.  The mechanisms are in :mod:`asmtp.auth`."""

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

It yields its initial response first, or None if the server speaks first.  Then it is sent each challenge (bytes), and
yields the response.  When the server has said that the login succeeded, it is sent None: then it looks at the server's
last message, if it has to, and returns, or raises what is wrong with that.
"""

MAX_CHALLENGES = 5
"""Challenges that are answered before a server that goes on asking is given up; smtplib's number."""

_ONE_RESPONSE = ("PLAIN", "EXTERNAL")
"""Mechanisms with one response.  A server that asks for it, though it came with AUTH, has overlooked it."""

MAX_COMMAND = 512
"""Octets of a command line with its CRLF (RFC 5321 §4.5.3.1.4), AUTH with an initial response included."""

MAX_RESPONSE = 12288
"""Octets of a response's line with its CRLF that servers are asked to take (RFC 4954 §4)."""

UNPROVEN = -1
"""The code of an error that is our refusal, not the server's: the server is not proven to be the right one."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """The facts that a mechanism may use: who logs in, and where.

    Attributes:
        username, password, token: empty: not known.
        host, port: those that the client has connected to; empty and 0: there are none to name.
        service: the service's name for GSSAPI (RFC 4954 §4, RFC 2033): "smtp" or "lmtp".
        offered: the mechanisms that the server offers.
        tls: the connection's :class:`ssl.SSLObject`, for channel binding; None without TLS.
        limit: seconds that it may take to compute a response; None: as long as it takes.
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
    """Return the error for a server whose part of a login was wrong: it may not know the password."""
    return SMTPAuthenticationError(UNPROVEN, why.encode("ascii", "backslashreplace"))


def from_authobject(authobject: Callable[..., Any], *, initial_response_ok: bool = True) -> Mechanism:
    """Make a mechanism of smtplib's authobject: a function of the challenge, or of nothing for the initial response."""
    response = hidden(authobject() if initial_response_ok else None)
    while True:
        octets = response if response is None or isinstance(response, bytes) else encoded(response)
        challenge = yield octets
        if challenge is None:
            return
        response = hidden(authobject(challenge))


def encoded(response: Any) -> bytes:
    """Return a response of an authobject, or a part of one, as UTF-8.

    Args:
        response: a str, or an object that has its `encode`.

    Raises:
        TypeError: it has no `encode`, or that returns no bytes.
        ValueError: it has a lone surrogate.
    """
    wrong: Exception = TypeError(f"authobject: user, password or response must be str, not {type(response).__name__}")
    try:
        if hasattr(response, "encode") and isinstance(octets := hidden(response.encode()), bytes):
            return octets
    except UnicodeEncodeError:  # it is not raised itself, as it holds all of the response
        wrong = ValueError("authobject: user, password or response is not characters (a lone surrogate)")
    raise wrong


class SASLExchange:
    """One AUTH exchange (RFC 4954 §4).  Its owner writes `line`, puts the answer into `reply`, and calls `go_on`.

    235 is success.  So is 503 (already authenticated), as in smtplib, unless the mechanism objects.  If the server sent
    an error challenge, what that says stands behind the text of the refusal.

    Args:
        name: the mechanism's name.
        mechanism: its generator.
        initial_response_ok: send the initial response with AUTH, if there is one.
        slow: the mechanism computes for long, or asks others: `go_on` has to be called off the event loop.
        again: there was a login on this connection already, so 503 is no surprise.

    Attributes:
        line: what is to be written next, without CRLF; None: the exchange has ended, and `reply` is the last.
        name: the mechanism's name, in upper case.
        answered: how many challenges were answered.
        redact: takes the secrets out of what an error shows of challenges.

    Raises:
        ValueError: `name` is not a SASL mechanism's name; or the generator yields nothing.
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
        """Judge `reply`, and set `line`.

        Raises:
            SMTPAuthenticationError: the server said no, or its challenge was not base64.  Or it has not proved that it
                knows the password: then `smtp_code` is `UNPROVEN`, and the server must not be trusted.
            SMTPException: the server does not stop asking.
            Exception: what the mechanism raised, when the exchange was cancelled.
        """
        self.line = next(self._steps, None)

    def _run(self) -> Generator[bytes, None, None]:
        """Yield each line, and judge `reply` in between."""
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
            if not held:  # else the server's empty challenge asks for the initial response
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
        # The prompts of PLAIN and LOGIN do not matter: some servers do not even encode them.
        self._challenge = text if self.name in ("LOGIN", "PLAIN") else base64.b64decode(text, validate=True)
        return hidden(self._mechanism.send(self._challenge))

    def _cancel(self) -> Generator[bytes, None, None]:
        """Cancel the exchange (RFC 4954 §4: by a line with a single "*")."""
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
        """Return the reason for the refusal that the last challenge gave; empty if there is none."""
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
    """Return status and scope in a token mechanism's error challenge (RFC 7628 §3.2.2)."""
    import json  # few logins need it

    try:
        error = json.loads(challenge)
    except (ValueError, RecursionError):
        return b""
    if not isinstance(error, dict):
        return b""
    told = [f"{key}: {error[key]}" for key in ("status", "scope") if isinstance(error.get(key), str | int)]
    return f" ({', '.join(told)})".encode("unicode_escape") if told else b""
