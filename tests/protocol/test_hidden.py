"""Passwords, and all that is made of them, do not show themselves, in whatever frame they are."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import spnego
import spnego.exceptions

import asmtp
from asmtp.auth import gssapi as gssapi
from asmtp.protocol.hidden import hidden, hide
from asmtp.protocol.sasl import Credentials
from tests.fakes.background import in_background
from tests.fakes.embedded import embedded
from tests.fakes.scram import Scram
from tests.fakes.script import listening

USER, PASSWORD = "kim", "pa55-hunter"
SECRETS = [
    secret
    for text in (PASSWORD, f"\0{USER}\0{PASSWORD}", f"user={USER}\1auth=Bearer {PASSWORD}\1\1")
    for secret in (text, repr(text)[1:-1], b64encode(text.encode()).decode()[:-4])
] + [repr(PASSWORD.encode("utf-16-le"))[2:-1]]
LETTER = (b"hi", "a@x.example", ["b@y.example"])


def test_hidden_values_are_what_they_hide() -> None:
    text, octets = hidden("secret"), hidden(b"secret")
    assert (text, octets) == ("secret", b"secret")
    assert f"{text}" == "secret"
    assert b"%b" % octets == b"secret"
    assert repr(text) == repr(octets) == str(octets) == f"{octets}" == "(not shown)"
    assert repr(hidden(["secret", 1])) == "[(not shown), 1]"
    assert repr(hidden(("secret", b"octets"))) == "((not shown), b'octets')"
    assert hidden(None) is None
    again = pickle.loads(pickle.dumps(text))
    assert (again, repr(again)) == ("secret", "(not shown)")


def test_options_that_are_hidden() -> None:
    options = {"password": "secret", "window": 3}
    hide(options)
    assert options == {"password": "secret", "window": 3}
    assert "secret" not in repr(options)


def check(error: BaseException | None) -> int:
    """Check that no frame of ours or of pyspnego's shows a secret, nor the error, nor the errors behind it.

    Returns:
        How many frames of ours there are.
    """
    frames = 0
    while error is not None:
        shown = error.__traceback__
        while shown is not None:
            package = shown.tb_frame.f_globals["__name__"].partition(".")[0]
            if package in ("asmtp", "spnego"):
                frames += package == "asmtp"
                for name, value in list(shown.tb_frame.f_locals.items()):
                    if name not in ("user", "password", "token"):
                        where = f"{shown.tb_frame.f_code.co_qualname}: {name}"
                        assert not [secret for secret in SECRETS if secret in _shown(value)], where
            shown = shown.tb_next
        assert not any(secret in repr(error) + str(error) for secret in SECRETS)
        error = error.__cause__ or error.__context__
    return frames


def _shown(value: Any) -> str:
    """Return a value as error reporters show it."""
    return " ".join(map(repr, value)) + repr(value) if isinstance(value, list | tuple) else repr(value)


NAMES = ("PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2", "OAUTHBEARER")


class Refusing(asyncio.Protocol):
    """Asks as a mechanism expects, and then refuses, or closes instead."""

    ASKS = {"LOGIN": ["334 VXNlcg==", "334 UGFzcw=="], "CRAM-MD5": ["334 PDFAeD4="]}

    def __init__(self, name: str, *, closes: bool = False) -> None:
        self.replies = ["220 hi", f"250-me\r\n250 AUTH {name}", *self.ASKS.get(name, []), "" if closes else "535 no"]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.data_received(b"")

    def data_received(self, data: bytes) -> None:
        reply = self.replies.pop(0) if self.replies else "221 bye"
        if reply:
            self._transport.write(f"{reply}\r\n".encode())
        else:
            self._transport.close()


def refusing(name: str, *, closes: bool = False) -> contextlib.AbstractAsyncContextManager[tuple[str, int]]:
    return listening(lambda: Refusing(name, closes=closes))


def credentials(name: str) -> dict[str, Any]:
    secret: dict[str, Any] = {"token": lambda force: PASSWORD} if "AUTH" in name else {"password": PASSWORD}
    return {"username": USER, "tls": "none", "mechanisms": [name], **secret}


@pytest.mark.parametrize("closes", [False, True], ids=["refused", "cut off"])
@pytest.mark.parametrize("name", NAMES)
async def test_a_login_of_async_smtp_that_fails(name: str, closes: bool) -> None:
    async with refusing(name, closes=closes) as where:
        smtp = asmtp.AsyncSMTP(where[0], where[1], "me.example", **credentials(name))
        with pytest.raises((asmtp.SMTPAuthenticationError, asmtp.SMTPServerDisconnected)) as caught:
            await smtp.connect()
    assert check(caught.value) > 4


@pytest.mark.parametrize("closes", [False, True], ids=["refused", "cut off"])
@pytest.mark.parametrize("name", NAMES)
def test_a_login_of_the_facade_that_fails(name: str, closes: bool) -> None:
    with (
        in_background(refusing(name, closes=closes)) as where,
        pytest.raises((asmtp.SMTPAuthenticationError, asmtp.SMTPServerDisconnected)) as caught,
    ):
        asmtp.SMTP(where[0], where[1], "me.example", **credentials(name))
    assert check(caught.value) > 4


@pytest.mark.parametrize("closes", [False, True], ids=["refused", "cut off"])
@pytest.mark.parametrize("name", NAMES[:3])
def test_a_login_by_hand_that_fails(name: str, closes: bool) -> None:
    with (
        in_background(refusing(name, closes=closes)) as where,
        contextlib.closing(asmtp.SMTP(where[0], where[1], "me.example")) as smtp,
        pytest.raises((asmtp.SMTPAuthenticationError, asmtp.SMTPServerDisconnected)) as caught,
    ):
        smtp.login(USER, PASSWORD, mechanisms=[name])
    assert check(caught.value) > 3


@pytest.mark.parametrize("name", NAMES)
async def test_a_refused_login_of_a_mailer(name: str) -> None:
    async with (
        refusing(name) as where,
        asmtp.AsyncMailer(asmtp.Relay(*where), local_hostname="me.example", **credentials(name)) as posting,
    ):
        with pytest.raises(asmtp.SMTPAuthenticationError) as caught:
            await posting.send(*LETTER)
    assert check(caught.value) >= 1


# ---- mechanisms of pyspnego's -------------------------------------------------------------------


def challenge_of_ntlm() -> bytes:
    """Return the challenge of a server to any client that begins with NTLM."""
    negotiate = next(gssapi.ntlm(Credentials(USER, PASSWORD)))
    answer = spnego.server(protocol="ntlm", options=spnego.NegotiateOptions.use_ntlm).step(negotiate)
    assert answer is not None
    return answer


class Ticketless:
    """Stands for pyspnego's context with a password: it takes a server's first message, or none, and no other."""

    complete = False

    def __init__(self, username: str, password: str, **options: Any) -> None:
        self._replies = {None: b"request", b"reply": b"answer"}

    def step(self, token: bytes | None = None) -> bytes:
        if token not in self._replies:
            raise spnego.exceptions.InvalidTokenError(context_msg="defective token")
        return self._replies[token]


@pytest.fixture(params=["refused", "cut off", "rubbish", "at once", "no context"])
def foreign(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Refusing]:
    """Return a function that makes a server for a mechanism of pyspnego: it asks and refuses, or goes wrong."""
    (tmp_path / "users").write_text(f"DOMAIN:{USER}:{PASSWORD}\n")
    monkeypatch.setenv("NTLM_USER_FILE", str(tmp_path / "users"))
    real = spnego.client

    def client(*args: Any, protocol: str, **options: Any) -> Any:
        if request.param == "no context":
            raise spnego.exceptions.NoCredentialError(context_msg="no credentials")
        make: Any = real if protocol == "ntlm" else Ticketless
        return make(*args, protocol=protocol, **options)

    asks = {"NTLM": challenge_of_ntlm(), "GSSAPI": b"reply"}

    def made(name: str) -> Refusing:
        server = Refusing(name, closes=request.param == "cut off")
        said = {"rubbish": b"rubbish"}.get(request.param, asks[name])
        if request.param == "at once":
            server.replies[2:] = ["235 ok"]
        else:
            server.replies[2:2] = [f"334 {b64encode(said).decode()}"]
        return server

    monkeypatch.setattr(spnego, "client", client)
    return made


FAILURES = (asmtp.SMTPException, ValueError)


@pytest.mark.parametrize("name", ["NTLM", "GSSAPI"])
async def test_a_foreign_login_of_async_smtp_that_fails(name: str, foreign: Callable[[str], Refusing]) -> None:
    async with listening(lambda: foreign(name)) as where:
        smtp = asmtp.AsyncSMTP(where[0], where[1], "me.example", **credentials(name))
        with pytest.raises(FAILURES) as caught:
            await smtp.connect()
    assert check(caught.value) > 4


@pytest.mark.parametrize("name", ["NTLM", "GSSAPI"])
def test_a_foreign_login_of_the_facade_that_fails(name: str, foreign: Callable[[str], Refusing]) -> None:
    with in_background(listening(lambda: foreign(name))) as where:
        with pytest.raises(FAILURES) as caught:
            asmtp.SMTP(where[0], where[1], "me.example", **credentials(name))
        assert check(caught.value) > 4
        with (
            contextlib.closing(asmtp.SMTP(where[0], where[1], "me.example")) as smtp,
            pytest.raises(FAILURES) as caught,
        ):
            smtp.login(USER, PASSWORD, mechanisms=[name])
        assert check(caught.value) > 3


@pytest.mark.parametrize("name", ["NTLM", "GSSAPI"])
async def test_a_foreign_login_of_a_mailer_that_fails(name: str, foreign: Callable[[str], Refusing]) -> None:
    async with (
        listening(lambda: foreign(name)) as where,
        asmtp.AsyncMailer(asmtp.Relay(*where), retry=None, local_hostname="me.example", **credentials(name)) as posting,
    ):
        with pytest.raises(FAILURES) as caught:
            await posting.send(*LETTER)
    assert check(caught.value) >= 1


async def test_scram() -> None:
    server = Scram("SCRAM-SHA-256")
    async with embedded(server):
        options: Any = {"username": USER, "password": PASSWORD, "tls": "none"}
        with pytest.raises(asmtp.SMTPAuthenticationError) as caught:
            await asmtp.AsyncSMTP("127.0.0.1", server.port, "me.example", **options).connect()
        assert check(caught.value) > 4


WRONG = {
    "port": f"smtp://{USER}:{PASSWORD}@mx.example:99999",
    "host": f"smtp://{PASSWORD}:x",
    "path": f"smtp://{USER}@mx.example/{PASSWORD}",
    "bracket": f"smtp://{USER}:[{PASSWORD}@mx.example",
    "percent": f"smtp://{USER}:%{PASSWORD}@mx.example",
    "option": f"smtp://{USER}:{PASSWORD}@mx.example?windows=1",
    "value": f"smtp://{USER}:{PASSWORD}@mx.example?window={PASSWORD}",
    "proxy": f"smtp://mx.example?proxy=socks5://{USER}:{PASSWORD}",
    "proxy port": f"smtp://mx.example?proxy=socks5://{USER}:{PASSWORD}%40proxy:x",
    "scheme": f"smpt://{USER}:{PASSWORD}@mx.example",
}


@pytest.mark.parametrize("kind", [asmtp.AsyncMailer, asmtp.Mailer, asmtp.Relay.from_url])
@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
@pytest.mark.parametrize("url", WRONG.values(), ids=WRONG)
def test_a_wrong_url(url: str, several: bool, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == asmtp.Relay.from_url and several:
        monkeypatch.setenv("ASMTP_URL", f"{url} {url}")
        kind, url = (lambda _: asmtp.Relay.from_environment()), ""
    with pytest.raises(ValueError, match=r"\w") as caught:
        kind([url] if several else url)
    assert check(caught.value) >= 1


def _proxy() -> str:
    return f"socks5://{USER}:{PASSWORD}@127.0.0.1"


@pytest.mark.parametrize("kind", [asmtp.AsyncSMTP, asmtp.SMTP, asmtp.SMTP_SSL, asmtp.LMTP])
def test_wrong_options(kind: Any) -> None:
    for wrong in ({"window": 0}, {"tls": "yes"}, {"proxy": _proxy() + ":x"}, {"token": 3}, {"bogus": 1}):
        with pytest.raises((ValueError, TypeError)) as caught:
            kind(**{"username": USER, "password": PASSWORD, "proxy": _proxy() + ":1", **wrong})
        assert check(caught.value) >= 1
    for wrong in ({"window": 0}, {"tls": "yes"}, {"proxy": _proxy() + ":x"}):
        with pytest.raises((ValueError, TypeError)) as caught:
            asmtp.Mailer("smtp://mx.example", **{"username": USER, "password": PASSWORD, **wrong})  # type: ignore[arg-type]
        assert check(caught.value) >= 1


async def test_a_proxy_that_cannot_be_had() -> None:
    smtp = asmtp.AsyncSMTP("mx.example", proxy=_proxy() + ":1")
    with pytest.raises(OSError) as caught:  # noqa: PT011  # whatever the system says
        await smtp.connect()
    assert check(caught.value) > 4
