"""Which mechanisms are tried, in which order, and which are not."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import pytest

from asmtp.auth import mechanisms
from asmtp.auth.selection import Attempt, Candidate, Logins, Mechanisms, attempts, check_mechanisms, choose, needs
from asmtp.errors import SMTPAuthenticationError, SMTPNotSupportedError
from asmtp.protocol.extensions import Extensions
from asmtp.protocol.sasl import UNPROVEN, Credentials, Mechanism
from asmtp.protocol.trampoline import trampoline

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
    assert [choice.binding for choice in found] == [*certain, None]
    assert mechanisms.channel_bindings(tls) == bindings


@pytest.mark.parametrize("asked", [None, ["SCRAM-SHA-256-PLUS", "PLAIN"]])
def test_a_binding_that_the_server_may_not_know_if_there_is_nothing_else(asked: Any) -> None:
    """Or where it is asked for."""
    credentials = Credentials("me", "secret", tls=TLS("TLSv1.3"))
    offered = "PLAIN SCRAM-SHA-256-PLUS" + (" SCRAM-SHA-256" if asked else "")
    found = choose(Extensions({"auth": offered}), credentials, asked, protected=True)
    assert [(c.name, c.binding) for c in found] == [("SCRAM-SHA-256-PLUS", "tls-server-end-point"), ("PLAIN", None)]


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


def tried(
    choices: str, said: dict[str, int], *, verified: bool = True, proving: str = "", first: Any = None
) -> list[str]:
    """Which of some mechanisms are tried, where the server says this to them; and the last one's advice.

    Args:
        proving: those of which something that depends on the password is written.
    """
    bindings = {"SCRAM-SHA-256-PLUS": "tls-unique"}
    made = [
        Candidate(name, lambda credentials: iter(()), ME, scram="SCRAM" in name, binding=bindings.get(name))  # type: ignore[arg-type, return-value]
        for name in choices.split()
    ]
    found = []

    def refuse(attempt: Attempt) -> Any:
        candidate, mechanism = attempt
        if mechanism is None:
            return iter(())
        found.append(candidate.name)
        if candidate.name in proving.split():
            candidate._prove()
        raise SMTPAuthenticationError(said.get(candidate.name, 535), b"no")

    with pytest.raises(SMTPAuthenticationError) as caught:
        trampoline(attempts(made, first=first, verified=verified), refuse)
    if caught.value.advice:
        found.append(caught.value.advice.partition(" ")[0])
    return found


FALLBACK = "SCRAM-SHA-512 SCRAM-SHA-256 CRAM-MD5 PLAIN LOGIN"


@pytest.mark.parametrize(
    ("offered", "said", "options", "expected"),
    [
        # 535 is about the password, but for mechanisms that need a secret which the server may not have.
        ("PLAIN LOGIN", {}, {}, "PLAIN"),
        ("CRAM-MD5 PLAIN LOGIN", {}, {}, "CRAM-MD5 PLAIN"),
        ("CRAM-MD5 PLAIN LOGIN", {"PLAIN": 504}, {}, "CRAM-MD5 PLAIN"),
        ("CRAM-MD5 PLAIN LOGIN", {}, {"verified": False}, "CRAM-MD5 CRAM-MD5"),
        ("CRAM-MD5 LOGIN", {}, {}, "CRAM-MD5 CRAM-MD5"),
        (FALLBACK, {}, {}, "SCRAM-SHA-512 PLAIN"),
        (FALLBACK, {}, {"verified": False}, "SCRAM-SHA-512 SCRAM-SHA-512"),
        (FALLBACK, {}, {"proving": "SCRAM-SHA-512"}, "SCRAM-SHA-512"),
        (FALLBACK, {"SCRAM-SHA-512": 504}, {"proving": "SCRAM-SHA-512"}, "SCRAM-SHA-512 SCRAM-SHA-256 PLAIN"),
        (FALLBACK, {"SCRAM-SHA-512": UNPROVEN}, {}, "SCRAM-SHA-512"),
        (FALLBACK, {"SCRAM-SHA-512": 454, "SCRAM-SHA-256": 504, "CRAM-MD5": 504, "PLAIN": 454}, {}, FALLBACK),
        # Behind -PLUS, which somebody in between may have refused, PLAIN is not tried.
        ("SCRAM-SHA-256-PLUS PLAIN", {}, {"proving": "SCRAM-SHA-256-PLUS"}, "SCRAM-SHA-256-PLUS"),
        (
            "SCRAM-SHA-256-PLUS SCRAM-SHA-256 CRAM-MD5 PLAIN", {}, {},
            "SCRAM-SHA-256-PLUS SCRAM-SHA-256 SCRAM-SHA-256",
        ),
        ("SCRAM-SHA-256-PLUS CRAM-MD5 PLAIN", {"SCRAM-SHA-256-PLUS": 504}, {}, "SCRAM-SHA-256-PLUS CRAM-MD5 CRAM-MD5"),
        # What worked comes first.
        (FALLBACK, {}, {"first": ("PLAIN", None)}, "PLAIN"),
        (FALLBACK, {}, {"first": ("EXTERNAL", None)}, "SCRAM-SHA-512 PLAIN"),
        ("SCRAM-SHA-256-PLUS PLAIN", {}, {"first": ("SCRAM-SHA-256-PLUS", "x"), "proving": "SCRAM-SHA-256-PLUS"},
         "SCRAM-SHA-256-PLUS"),
    ],
)  # fmt: skip
def test_what_is_tried_after_a_refusal(
    offered: str, said: dict[str, int], options: dict[str, Any], expected: str
) -> None:
    assert tried(offered, said, **options) == expected.split()


def test_what_is_impossible_is_told_if_there_is_nothing_else() -> None:
    def refuse(attempt: Attempt) -> Any:
        candidate, mechanism = attempt
        if mechanism is None:
            raise ValueError(candidate.name)
        raise SMTPAuthenticationError(535, b"no")

    def one(name: str) -> Candidate:
        return Candidate(name, lambda credentials: iter(()), ME)  # type: ignore[arg-type, return-value]

    with pytest.raises(ValueError, match="^GSSAPI$"):
        trampoline(attempts([one("GSSAPI"), one("NTLM")], first=None, verified=True), refuse)


def test_an_error_of_a_mechanism_that_is_used_is_told_at_once() -> None:
    """A ValueError says that a mechanism is impossible only as it is made."""
    trying = attempts(
        [Candidate(name, lambda credentials: iter(()), ME) for name in ("X-OWN", "PLAIN")],  # type: ignore[arg-type, return-value]
        first=None,
        verified=True,
    )
    candidate, _ = next(trying)
    assert trying.send(mechanism := candidate.make()) == (candidate, mechanism)
    with pytest.raises(ValueError, match="of its own"):
        trying.throw(ValueError("of its own"))


@pytest.mark.virtual_clock
async def test_a_wrong_password_is_said_twice_at_most() -> None:
    logins = Logins()
    said = 0

    async def login(code: int | None) -> None:
        nonlocal said
        async with logins.turn():
            said += 1
            await asyncio.sleep(1)
            if code is not None:
                raise SMTPAuthenticationError(code, b"%d" % said)

    async def all_of(*codes: int | None) -> list[Any]:
        return await asyncio.gather(*(login(code) for code in codes), return_exceptions=True)

    assert await all_of(*[None] * 6) == [None] * 6
    assert await all_of(454, 504, 503, -1) != [None] * 4
    assert said == 10
    errors = await all_of(*[535] * 9)
    assert said == 12
    assert {error.smtp_code for error in errors} == {535}
    assert len({id(error) for error in errors}) == 9
    for _ in range(2):
        with pytest.raises(SMTPAuthenticationError):
            logins.check(asyncio.get_running_loop().time())
        with pytest.raises(SMTPAuthenticationError):
            await login(None)
        await asyncio.sleep(1700)
    await asyncio.sleep(300)
    await login(None)
    assert said == 13


@pytest.mark.virtual_clock
async def test_a_password_that_was_taken_is_not_wrong() -> None:
    logins = Logins()
    for _ in range(5):
        with contextlib.suppress(SMTPAuthenticationError):
            async with logins.turn():
                raise SMTPAuthenticationError(535, b"of one backend among many")
        async with logins.turn():
            pass
    logins.check(asyncio.get_running_loop().time())


def test_what_was_said_in_a_loop_that_is_closed() -> None:
    """It counts, and nobody waits for turns that do not end."""
    logins = Logins()

    async def begin() -> None:
        for _ in range(2):
            await logins.turn().__aenter__()

    async def refuse() -> None:
        async with logins.turn():
            raise SMTPAuthenticationError(535, b"wrong")

    asyncio.run(begin())
    for _ in range(2):
        with pytest.raises(SMTPAuthenticationError):
            asyncio.run(refuse())
    with pytest.raises(SMTPAuthenticationError):
        logins.check(time.monotonic())


@pytest.mark.virtual_clock
async def test_who_waits_for_a_turn_can_be_cancelled() -> None:
    logins = Logins()
    async with logins.turn(), logins.turn():
        waiting = asyncio.ensure_future(logins.turn().__aenter__())
        await asyncio.sleep(1)
        waiting.cancel()
        await asyncio.sleep(1)
        assert waiting.cancelled()
    async with logins.turn():
        pass


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
    assert needs([("X-OWN", lambda credentials: iter(()))]) == {""}  # type: ignore[list-item, return-value]
