"""SASL: every mechanism against a server that checks what it gets, and against one that says anything."""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from typing import Any

from asmtp.auth.selection import choose
from asmtp.errors import SMTPAuthenticationError, SMTPException
from asmtp.protocol.extensions import Extensions
from asmtp.protocol.reply import Reply
from asmtp.protocol.sasl import MAX_COMMAND, Credentials, Mechanism, SASLExchange, from_authobject
from tests.fuzz.data import FuzzedData

__all__ = ["sasl"]

STEPS = 10
TOKENS = ["OAUTHBEARER", "XOAUTH2"]
NAMES = ["CRAM-MD5", "PLAIN", "LOGIN", *TOKENS]
USERS = ["me", "@example.com", "=", ",", "\u00fc", " ", "x" * 100, ""]
SECRETS = ["Secret", "s3cr3t!", "=", ":", "\u00e9", "\r\n", "Z" * 200, ""]
_AUTH = re.compile(rb"AUTH ([A-Z0-9-]+)(?: (=|[A-Za-z0-9+/]+={0,2}))?")
_RESPONSE = re.compile(rb"\*|[A-Za-z0-9+/]*={0,2}")
CHALLENGES = [
    b"",
    b"PDEyMw==",
    b"=",
    b"VXNlcm5hbWU6",
    b"not base64!",
    b"eyJzdGF0dXMiOiI0MDEifQ==",
    b"W1tb",
    b"e30=",
    b"",
]


def sasl(data: FuzzedData) -> None:
    """AUTH with every mechanism: ends in time, base64 and nothing else, the secret in what is checked only."""
    name = data.pick(NAMES)
    user = data.text(USERS, 4)
    secret = data.text(SECRETS, 4)
    host, port = data.pick([("", 0), ("mail.example.com", 587), ("b\u00fccher.example", 0)])
    secrets: dict[str, Any] = {"token": secret} if name in TOKENS else {"password": secret}
    credentials = Credentials(user, host=host, port=port, **secrets)
    try:
        [choice] = choose(Extensions({"auth": name}), credentials, [name], protected=True)
    except (ValueError, SMTPException) as error:
        _check_silent(error, user, secret)
        return
    chosen = choice.make()
    initial = not data.chance(3)
    server = _Server(name, user, secret) if data.flag() else None
    if server is None and data.chance(3):
        chosen = _authobject(data, initial)
    sasl = SASLExchange(name, chosen, initial_response_ok=initial)
    heard = b""
    try:
        for _ in range(STEPS):
            line = sasl.line
            if line is None:
                assert sasl.reply.code in (235, 503)
                assert server is None or server.passed, "it passed, and did not give the password"
                return
            _check_line(line, name, first=line.startswith(b"AUTH "), initial=initial)
            sasl.reply = _anything(data) if server is None else server.answer(line)
            heard += sasl.reply.message
            sasl.go_on()
    except SMTPException as error:
        assert server is None or isinstance(error, SMTPAuthenticationError), error
        assert server is None, f"an honest server did not let it in: {error}"
        if secret.encode() not in heard and _base64(secret) not in heard:  # SASLExchange alone does not redact
            _check_silent(error, user, secret)
    else:
        raise AssertionError("it goes on and on")


def _authobject(data: FuzzedData, initial: bool) -> Mechanism:
    """smtplib's, which answers as long as it is asked."""
    responses: list[str | bytes | None] = ["", "me", b"\xff", None, "\u00fc" * 300]
    return from_authobject(lambda *challenge: data.pick(responses), initial_response_ok=initial)


def _anything(data: FuzzedData) -> Reply:
    code = data.pick([334, 334, 334, 334, 235, 535, 503, 421, 200, -1])
    text = data.pick(CHALLENGES) if data.flag() else base64.b64encode(data.octets(data.below(40)))
    if data.chance(6):
        text = data.octets(data.below(20))
    return Reply(code, text)


def _check_line(line: bytes, name: str, *, first: bool, initial: bool) -> None:
    found = (_AUTH if first else _RESPONSE).fullmatch(line)
    assert found is not None, f"not a line of AUTH: {line!r}"
    if first:
        assert found[1] == name.encode()
        assert initial or found[2] is None, "an initial response that is not wanted"
        assert found[2] is None or len(line) + 2 <= MAX_COMMAND, "longer than a command line may be"


def _base64(secret: str) -> bytes:
    return base64.b64encode(secret.encode(errors="replace"))


def _check_silent(error: BaseException, user: str, secret: str) -> None:
    if len(secret) < 4 or secret in user or secret.isspace():
        return
    seen: BaseException | None = error
    while seen is not None:
        told = f"{seen} {seen!r} {vars(seen)}"
        for shown in (secret, ascii(secret)[1:-1], _base64(secret).decode()):
            assert shown not in told, f"an error shows the password: {told}"
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


class _Server:
    """Checks what it is told by the mechanisms' own documents."""

    def __init__(self, name: str, user: str, secret: str) -> None:
        self.name = name
        self.user = user.encode()
        self.secret = secret.encode()
        self.passed = False
        self._said: list[bytes] = []

    def answer(self, line: bytes) -> Reply:
        """The reply to AUTH, or to a response."""
        if line.startswith(b"AUTH "):
            _, _, initial = line.removeprefix(b"AUTH ").partition(b" ")
            if not initial:
                return Reply(334, self._challenge())
            line = b"" if initial == b"=" else initial
        try:
            self._said.append(base64.b64decode(line, validate=True))
        except binascii.Error as error:
            raise AssertionError(f"not base64: {line!r}") from error
        if self.name == "LOGIN" and len(self._said) == 1:
            return Reply(334, base64.b64encode(b"Password:"))
        self.passed = self._right(*self._said)
        return Reply(235, b"welcome") if self.passed else Reply(535, b"no")

    def _challenge(self) -> bytes:
        challenge = {"CRAM-MD5": b"<1.2@x>", "LOGIN": b"Username:"}.get(self.name, b"")
        return base64.b64encode(challenge)

    def _right(self, *said: bytes) -> bool:
        if self.name == "LOGIN":
            return said == (self.user, self.secret)
        if self.name == "PLAIN":  # RFC 4616 §2
            return said == (b"\0".join([b"", self.user, self.secret]),)
        if self.name == "CRAM-MD5":
            digest = hmac.new(self.secret, b"<1.2@x>", "md5").hexdigest()
            return said == (self.user + b" " + digest.encode(),)
        (response,) = said
        fields = response.split(b"\1")
        assert fields[-2:] == [b"", b""], f"how does it end? {response!r}"
        if self.name == "XOAUTH2":
            return fields[:-2] == [b"user=" + self.user, b"auth=Bearer " + self.secret]
        authorization, comma, rest = fields[0].removeprefix(b"n,a=").partition(b",")  # RFC 7628 §3.1, RFC 5801 §4
        who = authorization.replace(b"=2C", b",").replace(b"=3D", b"=")
        return bool((who, comma, rest) == (self.user, b",", b"") and fields[-3] == b"auth=Bearer " + self.secret)
