"""GSSAPI and NTLM: pyspnego on both sides, a context that plays Kerberos, and servers that get it wrong."""

from __future__ import annotations

import base64
import builtins
from pathlib import Path
from typing import Any

import pytest
import spnego
import spnego.exceptions

from asmtp import AsyncSMTP
from asmtp.auth import gssapi as gssapi
from asmtp.errors import SMTPAuthenticationError
from asmtp.protocol.sasl import UNPROVEN, Credentials, Mechanism
from tests.fakes.script import expect, nothing_more, scripted, send

ME = Credentials("me", "s3cret-Pa55", host="mx.example")


def unproven(mechanism: Mechanism, challenge: bytes | None, why: str) -> None:
    with pytest.raises(SMTPAuthenticationError, match=why) as caught:
        mechanism.send(challenge)
    assert caught.value.smtp_code == UNPROVEN


# ---- NTLM ---------------------------------------------------------------------------------------


@pytest.fixture
def domain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """pyspnego's server half, which knows the user."""
    users = tmp_path / "users"
    users.write_text("DOMAIN:me:s3cret-Pa55\n")
    monkeypatch.setenv("NTLM_USER_FILE", str(users))
    return spnego.server(protocol="ntlm", options=spnego.NegotiateOptions.use_ntlm)


def test_ntlm(domain: Any) -> None:
    mechanism = gssapi.ntlm(Credentials("DOMAIN\\me", "s3cret-Pa55"))
    negotiate = next(mechanism)
    assert negotiate is not None
    assert negotiate.startswith(b"NTLMSSP\0\1")
    answer = mechanism.send(domain.step(negotiate))
    assert answer is not None
    assert b"s3cret" not in answer
    domain.step(answer)
    assert domain.complete
    with pytest.raises(StopIteration):
        mechanism.send(None)


def test_ntlm_with_a_wrong_password(domain: Any) -> None:
    mechanism = gssapi.ntlm(Credentials("DOMAIN\\me", "wrong"))
    answer = mechanism.send(domain.step(next(mechanism)))
    with pytest.raises(spnego.exceptions.SpnegoError):
        domain.step(answer)


@pytest.mark.parametrize("challenge", [b"", b"x", b"NTLMSSP\0\2", b"NTLMSSP\0" + bytes(40), b"\xff" * 100])
def test_a_challenge_of_ntlm_that_is_none(challenge: bytes) -> None:
    mechanism = gssapi.ntlm(ME)
    next(mechanism)
    unproven(mechanism, challenge, "^.*NTLM: the server's part of the login is wrong: ")


def test_ntlm_and_success_at_once() -> None:
    mechanism = gssapi.ntlm(ME)
    next(mechanism)
    unproven(mechanism, None, "NTLM: the server said yes without its part")


async def test_ntlm_on_a_connection() -> None:
    """As Exchange has it: AUTH NTLM alone, "334 ntlm supported", then the messages."""
    async with scripted(
        [
            send("220 hi"), expect("ehlo me.example"), send("250-hi", "250 AUTH GSSAPI NTLM"),
            expect("AUTH NTLM"), send("334 ntlm supported"), expect(b64(next(gssapi.ntlm(ME)))),
            send("535 5.7.3 Authentication unsuccessful"), nothing_more,
        ]
    ) as server:  # fmt: skip
        smtp = AsyncSMTP("127.0.0.1", server.port, "me.example")
        await smtp.connect()
        with pytest.raises(SMTPAuthenticationError, match=r"5\.7\.3"):
            await smtp.login("me", "s3cret-Pa55", mechanisms=["NTLM"], initial_response_ok=False)
        await smtp.close()


def b64(octets: bytes | None) -> str:
    return base64.b64encode(octets or b"").decode()


# ---- GSSAPI -------------------------------------------------------------------------------------


class Context:
    """As much of pyspnego's context as is used, with tickets that anyone can read."""

    def __init__(self, replies: dict[bytes | None, bytes | None], layers: bytes = b"\1\0\0\0") -> None:
        self.replies = replies
        self.layers = layers
        self.complete = False

    def step(self, token: bytes | None = None) -> bytes | None:
        if token not in self.replies:
            raise spnego.exceptions.InvalidTokenError(context_msg="defective token")
        self.complete = token is not None
        return self.replies[token]

    def unwrap(self, token: bytes) -> Any:
        if not token.startswith(b"wrapped "):
            raise spnego.exceptions.BadMICError(context_msg="defective token")
        return spnego.UnwrapResult(token.removeprefix(b"wrapped "), False, 0)

    def wrap(self, data: bytes, encrypt: bool) -> Any:
        assert not encrypt
        return spnego.WrapResult(b"wrapped " + data, False)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return what pyspnego is asked for; `context` is the object that it gives."""
    seen: dict[str, Any] = {"context": Context({None: b"request", b"reply": None})}

    def client(*args: Any, **options: Any) -> Context:
        seen.update(options, username=args[0], password=args[1])
        context: Context = seen["context"]
        return context

    monkeypatch.setattr(spnego, "client", client)
    return seen


@pytest.mark.parametrize("password", ["", "s3cret-Pa55"])
def test_gssapi(asked: dict[str, Any], password: str) -> None:
    """RFC 4752 §3.1: the context, an empty response where it is complete, and the layers: none."""
    mechanism = gssapi.gssapi(Credentials("me", password, host="mx.example", service="lmtp"))
    assert next(mechanism) == b"request"
    assert mechanism.send(b"reply") == b""
    assert mechanism.send(b"wrapped \7\0\x10\0") == b"wrapped \1\0\0\0me"
    with pytest.raises(StopIteration):
        mechanism.send(None)
    assert (asked["username"], asked["password"]) == ("me", password or None)
    assert (asked["hostname"], asked["service"], asked["protocol"]) == ("mx.example", "lmtp", "kerberos")


def test_gssapi_with_one_message_more(asked: dict[str, Any]) -> None:
    asked["context"] = Context({None: b"request", b"reply": b"mutual"})
    mechanism = gssapi.gssapi(Credentials(host="mx.example"))
    next(mechanism)
    assert mechanism.send(b"reply") == b"mutual"
    assert mechanism.send(b"wrapped \1\0\0\0") == b"wrapped \1\0\0\0"
    assert asked["username"] is None


@pytest.mark.parametrize(
    ("challenges", "why"),
    [
        ([b"rubbish"], "GSSAPI: the server's part of the login is wrong: .*defective token"),
        ([b"reply", b"rubbish"], "GSSAPI: the server's part of the login is wrong: .*defective token"),
        ([b"reply", b"wrapped \6\0\x10\0"], "GSSAPI: the server wants a security layer"),
        ([b"reply", b"wrapped \1"], "GSSAPI: the server wants a security layer"),
        ([None], "GSSAPI: the server said yes without its part"),
        ([b"reply", None], "GSSAPI: the server said yes without its part"),
    ],
)
def test_a_server_s_part_of_gssapi_that_is_wrong(asked: dict[str, Any], challenges: list[Any], why: str) -> None:
    mechanism = gssapi.gssapi(ME)
    next(mechanism)
    for challenge in challenges[:-1]:
        mechanism.send(challenge)
    unproven(mechanism, challenges[-1], why)


def test_no_tickets(asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked["context"] = Context({})
    with pytest.raises(ValueError, match="^GSSAPI: .*defective token"):
        gssapi.gssapi(ME)

    def client(*args: Any, **options: Any) -> None:
        raise spnego.exceptions.NoCredentialError(context_msg="no credentials")

    monkeypatch.setattr(spnego, "client", client)
    with pytest.raises(ValueError, match="^GSSAPI: .*no credentials"):
        gssapi.gssapi(ME)


# ---- what is not installed ----------------------------------------------------------------------


@pytest.mark.parametrize(("make", "extra"), [(gssapi.gssapi, "kerberos"), (gssapi.ntlm, "ntlm")])
def test_without_pyspnego(make: Any, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def importing(name: str, *args: Any) -> Any:
        if name.startswith("spnego"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", importing)
    with pytest.raises(ImportError, match=rf"needs pyspnego: pip install 'asmtp\[{extra}\]'$"):
        make(ME)


def test_without_gssapi(asked: dict[str, Any]) -> None:
    def step(token: bytes | None = None) -> bytes:
        raise ImportError("GSSAPIProxy requires the Python gssapi library")

    asked["context"].step = step
    with pytest.raises(ImportError, match=r"needs the gssapi package: pip install 'asmtp\[kerberos\]'$"):
        gssapi.gssapi(ME)
