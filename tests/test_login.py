"""Which mechanisms are tried, in which order, and which are not."""

from __future__ import annotations

from typing import Any

import pytest

from asmtp.errors import SMTPAuthenticationError, SMTPNotSupportedError
from asmtp.login import Choice, Mechanisms, check_mechanisms, choose, is_final, needs
from asmtp.protocol import mechanisms
from asmtp.protocol.extensions import Extensions
from asmtp.protocol.sasl import UNPROVEN, Credentials, Mechanism

ME = Credentials("me", "secret")
TOKEN = Credentials("me", token="vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==")


class TLS:
    """As much of an ssl.SSLObject as a choice looks at."""

    def __init__(self, version: str, certificate: bytes | None = b"x") -> None:
        self._version = version
        self._certificate = certificate

    def version(self) -> str:
        return self._version

    def getpeercert(self, binary_form: bool) -> bytes | None:
        return self._certificate


def names(
    offered: str, credentials: Credentials = ME, wanted: Mechanisms | None = None, *, protected: bool = True
) -> list[str]:
    return [c.name for c in choose(Extensions({"auth": offered}), credentials, wanted, protected=protected)]


ALL = "LOGIN PLAIN CRAM-MD5 SCRAM-SHA-1 SCRAM-SHA-256 SCRAM-SHA-512 SCRAM-SHA-1-PLUS SCRAM-SHA-256-PLUS NTLM EXTERNAL"


@pytest.mark.parametrize(
    ("offered", "tried"),
    [
        ("LOGIN PLAIN CRAM-MD5", "CRAM-MD5 PLAIN LOGIN"),
        ("LOGIN PLAIN", "PLAIN LOGIN"),
        ("GSSAPI LOGIN", "LOGIN"),
        ("plain login", "PLAIN LOGIN"),
        (ALL, "SCRAM-SHA-512 SCRAM-SHA-256 SCRAM-SHA-1 CRAM-MD5 PLAIN LOGIN"),
    ],
)
def test_what_protects_the_password_best_comes_first(offered: str, tried: str) -> None:
    assert names(offered) == tried.split()


@pytest.mark.parametrize(
    ("version", "bindings"),
    [
        ("TLSv1.2", ["tls-unique", "tls-server-end-point"]),
        ("TLSv1.3", ["tls-server-end-point"]),
        (None, []),
    ],
)
def test_channel_binding_where_there_is_tls(version: str | None, bindings: list[str]) -> None:
    tls = version and TLS(version)
    credentials = Credentials("me", "secret", tls=tls)
    found = choose(Extensions({"auth": "SCRAM-SHA-256 SCRAM-SHA-256-PLUS"}), credentials, protected=True)
    certain = [binding for binding in bindings if binding == "tls-unique"]
    assert [choice.name for choice in found] == [*["SCRAM-SHA-256-PLUS"] * len(certain), "SCRAM-SHA-256"]
    assert [choice._binding for choice in found] == [*certain, None]
    assert mechanisms.channel_bindings(tls) == bindings


@pytest.mark.parametrize("asked", [None, ["SCRAM-SHA-256-PLUS", "PLAIN"]])
def test_a_binding_that_the_server_may_not_know_if_there_is_nothing_else(asked: Any) -> None:
    """Or where it is asked for."""
    credentials = Credentials("me", "secret", tls=TLS("TLSv1.3"))
    offered = "PLAIN SCRAM-SHA-256-PLUS" + (" SCRAM-SHA-256" if asked else "")
    found = choose(Extensions({"auth": offered}), credentials, asked, protected=True)
    assert [(c.name, c._binding) for c in found] == [("SCRAM-SHA-256-PLUS", "tls-server-end-point"), ("PLAIN", None)]


def test_channel_binding_without_a_certificate() -> None:
    """As with anonymous ciphers."""
    assert mechanisms.channel_bindings(TLS("TLSv1.2", None)) == ["tls-unique"]
    assert mechanisms.channel_bindings(TLS("TLSv1.3", None)) == []


@pytest.mark.parametrize(
    ("offered", "tried"), [("XOAUTH2 PLAIN OAUTHBEARER", "OAUTHBEARER XOAUTH2"), ("XOAUTH2", "XOAUTH2")]
)
def test_with_a_token(offered: str, tried: str) -> None:
    assert names(offered, TOKEN) == tried.split()


@pytest.mark.parametrize("credentials", [ME, TOKEN])
def test_nothing_in_the_clear_where_others_read_along(credentials: Credentials) -> None:
    offered = "PLAIN LOGIN OAUTHBEARER XOAUTH2 CRAM-MD5 SCRAM-SHA-1"
    if credentials is ME:
        assert names(offered, protected=False) == ["SCRAM-SHA-1", "CRAM-MD5"]
        offered = "PLAIN LOGIN"
    with pytest.raises(SMTPNotSupportedError, match=r"^No suitable .* for everybody on the way to read: call starttls"):
        names(offered, credentials, protected=False)


def test_those_that_the_caller_wants_in_the_caller_s_order() -> None:
    assert names(ALL, ME, ["plain", "SCRAM-SHA-1"]) == ["PLAIN", "SCRAM-SHA-1"]
    assert names(ALL, Credentials(), ["EXTERNAL"]) == ["EXTERNAL"]
    assert names(ALL, ME, ["NTLM", "GSSAPI"]) == ["NTLM"]


def test_one_of_the_caller_s_own() -> None:
    given: list[Credentials] = []

    def own(credentials: Credentials) -> Mechanism:
        given.append(credentials)
        yield b"hi"

    found = choose(Extensions({"auth": "X-OWN PLAIN"}), ME, [("x-own", own), "PLAIN"], protected=False)
    assert [choice.name for choice in found] == ["X-OWN"]  # what is in it, only its author knows
    assert found[0].slow
    assert next(found[0].make()) == b"hi"
    assert given == [ME]


def test_nothing_to_choose() -> None:
    with pytest.raises(SMTPNotSupportedError, match=r"^No suitable authentication method found\. The server offers $"):
        names("")
    both = r"The server offers GSSAPI NTLM XOAUTH2 \(GSSAPI and NTLM can be asked for with mechanisms=\)$"
    with pytest.raises(SMTPNotSupportedError, match=both):
        names("GSSAPI NTLM XOAUTH2")
    with pytest.raises(SMTPNotSupportedError, match="^SMTP AUTH extension not supported by server.$"):
        choose(Extensions(), ME, protected=True)


def test_a_token_mechanism_with_a_password() -> None:
    with pytest.raises(ValueError, match="^mechanisms: XOAUTH2 needs a token$"):
        names("XOAUTH2", ME, ["XOAUTH2"])


@pytest.mark.parametrize("control", ["\r", "\n", "\0", "\x1b", "\x7f", "\x85", "\1"])
def test_no_control_in_a_user_name(control: str) -> None:
    with pytest.raises(ValueError, match="^user: "):
        names("PLAIN", Credentials(f"me{control}", "secret"))
    with pytest.raises(ValueError, match="^token: ") as caught:
        names("XOAUTH2", Credentials("me", token=f"s3cret{control}"))
    assert "s3cret" not in repr(caught.value)


@pytest.mark.parametrize("token", ["s3cret ", " s3cret", "s3 cret", "s3cret\u00fc", "s3cret\ud800"])
def test_a_token_that_is_none(token: str) -> None:
    with pytest.raises(ValueError, match="^token: ") as caught:
        names("XOAUTH2", Credentials("me", token=token))
    assert "cret" not in repr(caught.value)


@pytest.mark.parametrize(
    ("wrong", "kind", "why"),
    [
        ({"password": "secret\0"}, ValueError, "^password: contains a NUL"),
        ({"password": "secret\udc80"}, ValueError, r"^password: not characters \(a lone surrogate\)$"),
        ({"password": b"secret"}, TypeError, "^password must be str, not bytes$"),
        ({"username": "me\udc80"}, ValueError, r"^user: not characters \(a lone surrogate\)$"),
        ({"username": None}, TypeError, "^user must be str, not NoneType$"),
        ({"token": b"secret"}, TypeError, "^token must be str, not bytes$"),
    ],
)
def test_what_cannot_be_credentials(wrong: dict[str, Any], kind: type[Exception], why: str) -> None:
    with pytest.raises(kind, match=why) as caught:
        names("PLAIN", Credentials(**{"username": "me", "password": "secret", **wrong}))
    assert "secret" not in repr(caught.value)


@pytest.mark.parametrize(
    ("code", "proved", "final"),
    [(535, True, True), (535, False, False), (UNPROVEN, False, True), (504, True, False), (454, True, False)],
)
def test_after_which_refusal_it_stops(code: int, proved: bool, final: bool) -> None:
    choice = Choice("SCRAM-SHA-256-PLUS", lambda credentials: iter(()), ME, binding="tls-unique")  # type: ignore[arg-type, return-value]
    choice.proved = proved
    assert is_final(SMTPAuthenticationError(code, b"no"), choice) is final


@pytest.mark.parametrize(
    ("wanted", "kind", "why"),
    [
        ("PLAIN", TypeError, "^mechanisms must be a sequence of names, not str$"),
        (5, TypeError, "^mechanisms must be a sequence of names, not int$"),
        ([], ValueError, "^mechanisms: none is given$"),
        ([5], TypeError, "^mechanisms must hold names"),
        ([("X", "Y")], TypeError, "^mechanisms must hold names"),
        (["PLAIN", "X-OWN"], ValueError, "^mechanisms: 'X-OWN' is unknown; there are SCRAM-SHA-512-PLUS, "),
    ],
)
def test_what_cannot_be_a_choice_of_mechanisms(wanted: Any, kind: type[Exception], why: str) -> None:
    with pytest.raises(kind, match=why):
        check_mechanisms(wanted)


def test_what_mechanisms_need() -> None:
    assert needs(["PLAIN", "xoauth2", "EXTERNAL"]) == {"password", "token", ""}
    assert needs([("X-OWN", lambda credentials: iter(()))]) == {""}  # type: ignore[list-item, arg-type, return-value]
