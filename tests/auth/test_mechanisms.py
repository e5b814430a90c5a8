"""SCRAM: the RFCs' own examples, and servers that do not know the password.  The others are in test_sasl.py."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import pytest

from asmtp.auth.mechanisms import scram
from asmtp.errors import SMTPAuthenticationError
from asmtp.protocol.sasl import UNPROVEN, Credentials

# name: nonce, client first, server first, client final, server final
EXAMPLES = {
    "SCRAM-SHA-1": (  # RFC 5802 §5
        "fyko+d2lbbFgONRv9qkxdawL",
        "n,,n=user,r=fyko+d2lbbFgONRv9qkxdawL",
        "r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096",
        "c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
        "v=rmF9pqV8S7suAoZWja4dJRkFsKQ=",
    ),
    "SCRAM-SHA-256": (  # RFC 7677 §3
        "rOprNGfwEbeRWgbNEkqO",
        "n,,n=user,r=rOprNGfwEbeRWgbNEkqO",
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
        "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
        "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
    ),
}
USER = Credentials("user", "pencil")


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> tuple[Any, ...]:
    name = getattr(request, "param", "SCRAM-SHA-256")
    nonce, *messages = EXAMPLES[name]
    monkeypatch.setattr("scramp.core.token_hex", lambda: nonce)
    return (scram(name, USER), *(message.encode() for message in messages))


@pytest.mark.parametrize("example", EXAMPLES, indirect=True)
def test_the_rfcs_examples(example: tuple[Any, ...]) -> None:
    mechanism, client_first, server_first, client_final, server_final = example
    assert next(mechanism) == client_first
    assert mechanism.send(server_first) == client_final
    assert mechanism.send(server_final) == b""
    with pytest.raises(StopIteration):
        mechanism.send(None)


def unproven(mechanism: Any, challenge: bytes | None, why: str) -> None:
    with pytest.raises(SMTPAuthenticationError, match=why) as caught:
        mechanism.send(challenge)
    assert caught.value.smtp_code == UNPROVEN
    assert not caught.value.transient
    assert "pencil" not in str(caught.value)


SIGNATURES = [
    b"v=" + base64.b64encode(bytes(32)), b"v=7rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=", b"v=", b"v=?", b"", b"\xff",
    b"6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=", b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4",
]  # fmt: skip


@pytest.mark.parametrize("signature", SIGNATURES)
def test_a_wrong_signature(example: tuple[Any, ...], signature: bytes) -> None:
    """RFC 5802 §3: the client "MUST consider the authentication exchange to be unsuccessful"."""
    mechanism, _, server_first, _, _ = example
    next(mechanism)
    mechanism.send(server_first)
    unproven(mechanism, signature, "the server has not proved that it knows the password")


def test_success_without_a_proof(example: tuple[Any, ...]) -> None:
    mechanism, _, server_first, _, _ = example
    next(mechanism)
    mechanism.send(server_first)
    unproven(mechanism, None, "said yes without having proved")


def test_success_at_once(example: tuple[Any, ...]) -> None:
    mechanism = example[0]
    next(mechanism)
    unproven(mechanism, None, "said yes without having proved")


NONCE = "rOprNGfwEbeRWgbNEkqO"
FIRSTS = [
    "", "rubbish", f"r={NONCE},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",  # adds nothing to our nonce
    "r=another%hvYDpWUa2RaTCAfuxFIlj,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
    f"r={NONCE}x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=1", f"r={NONCE}x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=2000000000",
    f"r={NONCE}x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=99999999999999999999999", f"r={NONCE}x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=-5",
    f"r={NONCE}x,s=,i=4096", f"r={NONCE}x,s=?,i=4096", f"m=x,r={NONCE}x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
    f"r={NONCE}x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i={'9' * 5000}", "\u0660",
]  # fmt: skip


@pytest.mark.parametrize("first", FIRSTS)
def test_a_server_s_first_message_that_is_none(example: tuple[Any, ...], first: str) -> None:
    """Among them numbers of iterations that would take hours, and those that protect nothing."""
    mechanism = example[0]
    next(mechanism)
    unproven(mechanism, first.encode(), "the server's part of the login is wrong")


@pytest.mark.parametrize("place", [1, 2])
def test_an_error_message(example: tuple[Any, ...], place: int) -> None:
    """RFC 5802 §7: the refusal follows; a success does not."""
    mechanism, _, server_first, _, _ = example
    next(mechanism)
    if place == 2:
        mechanism.send(server_first)
    assert mechanism.send(b"e=invalid-proof") == b""
    unproven(mechanism, None, "invalid-proof")


@pytest.mark.parametrize(
    "wrong", [{"username": ""}, {"username": "a\u0627b"}, {"password": "\u0007x"}, {"password": "a\u0221"}]
)
def test_what_cannot_be_prepared(wrong: dict[str, str]) -> None:
    """RFC 4013; another mechanism may do."""
    given: dict[str, Any] = {"username": "user", "password": "pencil", **wrong}
    credentials = Credentials(**given)
    with pytest.raises(ValueError, match="^SCRAM-SHA-256: ") as caught:
        scram("SCRAM-SHA-256", credentials)
    assert repr(wrong.get("password", "pencil"))[1:-1] not in str(caught.value)


def test_names_and_passwords_are_prepared() -> None:
    """RFC 4013 §3, and "," and "=" are written otherwise (RFC 5802 §5.1)."""
    first = next(scram("SCRAM-SHA-1", Credentials("I\u00adX=,\u00aa", "p")))
    assert first is not None
    assert first.startswith(b"n,,n=IX=3D=2Ca,r=")


def test_a_hash_that_is_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def new(name: str, data: bytes = b"") -> Any:
        raise ValueError(f"[digital envelope routines] unsupported: {name}")

    monkeypatch.setattr(hashlib, "new", new)
    with pytest.raises(ValueError, match="unsupported: sha1"):
        scram("SCRAM-SHA-1-PLUS", USER, binding="tls-unique")


def begun(mechanism: Any) -> str:
    """Return the nonce of the client's first message."""
    first: bytes = next(mechanism)
    return first.rpartition(b"r=")[2].decode()


@pytest.mark.parametrize("count", ["600001", "9999999", "1" + "0" * 5000])
def test_more_iterations_than_a_second_s(count: str) -> None:
    """They would be computed before it is known who the server is."""
    mechanism = scram("SCRAM-SHA-256", USER)
    nonce = begun(mechanism)
    unproven(mechanism, f"r={nonce}more,s=W22ZaJ0SNY7soEsUEjb6gQ==,i={count}".encode(), "more than 600000 iterations")


def test_as_many_as_are_possible() -> None:
    mechanism = scram("SCRAM-SHA-256", USER)
    nonce = begun(mechanism)
    final = mechanism.send(f"r={nonce}more,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=600000".encode())
    assert final is not None
    assert b",p=" in final
