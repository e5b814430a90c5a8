"""What is set once for a connection."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import pytest

import asmtp
from asmtp import AsyncLMTP, AsyncSMTP, AsyncSMTP_SSL, Timeouts
from asmtp.client.options import check, check_address, host_and_port


class Lazy:
    """As Django's lazy strings: no str, but with its methods."""

    def __str__(self) -> str:
        return "127.0.0.1"

    encode = partition = None


def test_nothing_is_an_option() -> None:
    check({}, "AsyncSMTP")


def test_everything_that_is_an_option() -> None:
    check(
        {
            "tls": "required", "ssl_context": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), "server_hostname": "mx.example",
            "username": "me", "password": "secret", "window": 1, "window_octets": 1, "pipelining": False,
            "chunking": False, "sock": None,
        },
        "AsyncSMTP",
    )  # fmt: skip
    check({"username": "me", "token": lambda force: "t0k"}, "AsyncSMTP")
    check({"username": "me", "password": "secret", "token": None}, "AsyncSMTP")
    check({"mechanisms": ["EXTERNAL"]}, "AsyncSMTP")
    check({"mechanisms": [("X-OWN", lambda credentials: iter(()))]}, "AsyncSMTP")  # type: ignore[list-item, return-value]
    check({"mechanisms": ("PLAIN", "GSSAPI"), "username": "me"}, "AsyncSMTP")
    check({"mechanisms": ["PLAIN"], "username": "me", "password": "secret"}, "AsyncSMTP")
    check({"mechanisms": ["XOAUTH2"], "username": "me", "token": lambda force: "t0k"}, "AsyncSMTP")


@pytest.mark.parametrize("kind", [AsyncSMTP, AsyncSMTP_SSL, AsyncLMTP])
def test_an_unknown_option(kind: Any) -> None:
    with pytest.raises(TypeError, match=rf"^{kind.__name__}\(\) got an unexpected keyword argument 'ttl'"):
        kind("mx.example", ttl=5)


@pytest.mark.parametrize("options", [{"username": "me"}, {"password": "secret"}])
def test_half_of_the_credentials(options: Any) -> None:
    with pytest.raises(ValueError, match="username and password go together") as caught:
        AsyncSMTP(**options)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"token": str}, ValueError, "username is needed with token"),
        ({"token": str, "password": "s3cret"}, ValueError, "password and token: only one of them can be given"),
        (
            {"token": str, "username": "me", "password": "s3cret"},
            ValueError,
            "password and token: only one of them can be given",
        ),
        ({"mechanisms": ["PLAIN"]}, ValueError, "mechanisms: a password is needed for them"),
        ({"mechanisms": ["PLAIN"], "username": "me"}, ValueError, "mechanisms: a password is needed for them"),
        ({"mechanisms": ["XOAUTH2"], "username": "me"}, ValueError, "mechanisms: a token is needed for them"),
        ({"mechanisms": ["PLAIN"], "username": "me", "token": str}, ValueError, "mechanisms: a password is needed"),
        ({"mechanisms": ["EXTERNAL"], "password": "s3cret"}, ValueError, "username and password go together"),
        ({"mechanisms": "PLAIN"}, TypeError, "mechanisms must be a sequence of names, not str"),
        (
            {"token": "s3cret", "username": "me"},
            TypeError,
            "token must be a function that returns a token, not str",
        ),
        ({"token": str, "username": "me\n"}, ValueError, "username: .*newline"),
    ],
)
def test_a_token_is_a_function_and_goes_with_a_username(options: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=f"^{words}") as caught:
        AsyncSMTP(**options)
    assert "s3cret" not in str(caught.value)


def test_a_username_that_is_no_str() -> None:
    with pytest.raises(TypeError, match="^username must be str"):
        AsyncSMTP(username=5, password="x")  # type: ignore[arg-type]  # that is the point


@pytest.mark.parametrize("tls", ["starttls", True, "", "REQUIRED"])
def test_a_mode_of_tls_that_is_none(tls: Any) -> None:
    with pytest.raises(ValueError, match="^tls must be"):
        AsyncSMTP(tls=tls)


@pytest.mark.parametrize("name", ["window", "window_octets"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "5", None])
def test_a_window_that_is_none(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be a whole number"):
        AsyncSMTP(**{name: value})


@pytest.mark.parametrize(
    ("host", "port", "result"),
    [
        ("mx.example", 0, ("mx.example", 25)),
        ("mx.example", 587, ("mx.example", 587)),
        ("mx.example:587", 0, ("mx.example", 587)),
        ("::1", 0, ("::1", 25)),
        ("fe80::1", 587, ("fe80::1", 587)),
    ],
)
def test_host_and_port(host: str, port: int, result: tuple[str, int]) -> None:
    assert host_and_port(host, port, 25) == result


@pytest.mark.parametrize("host", ["mx.example:", "mx.example:smtp"])
def test_a_port_that_is_no_number(host: str) -> None:
    with pytest.raises(OSError, match="nonnumeric port"):
        host_and_port(host, 0, 25)


def test_one_number_sets_every_limit() -> None:
    assert Timeouts.of(5) == Timeouts(5, 5, 5, 5, 5, 5, 5, 5)
    assert Timeouts.of(None) == Timeouts(None, None, None, None, None, None, None, None)
    chosen = Timeouts(final=1.5)
    assert Timeouts.of(chosen) is chosen


def test_the_defaults_are_those_of_rfc_5321() -> None:
    limits = Timeouts()
    assert (limits.greeting, limits.command, limits.data, limits.content, limits.final) == (300, 300, 120, 180, 600)


@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_a_limit_that_is_no_time_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="^timeout"):
        Timeouts.of(value)
    with pytest.raises(ValueError, match=r"^timeout\.data"):
        Timeouts(data=value)
    with pytest.raises(ValueError, match="^timeout"):
        AsyncSMTP(timeout=value)


@pytest.mark.parametrize("value", ["5", True, (1, 2)])
def test_a_limit_that_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="^timeout must be a number"):
        Timeouts.of(value)
    with pytest.raises(TypeError, match=r"^timeout\.quit must be a number"):
        Timeouts(quit=value)


# ---- every argument that is wrong is named ----------------------------------------------------

WRONG: list[tuple[str, Any]] = [
    *[("host", value) for value in (5, b"127.0.0.1", ["mx.example"], "mx\r\n.example")],
    *[("port", value) for value in (-1, 65536, 1.5, True, [25])],
    *[
        ("source_address", value)
        for value in (5, 0, "192.0.2.1", ("192.0.2.1",), (None, 0), ("", 65536), ("", "0"), ("a\nb", 0), ("", True))
    ],
    *[("server_hostname", value) for value in (5, b"mx.example")],
    *[("pipelining", value) for value in ("no", 0, None)],
    ("chunking", "no"),
    ("sock", "socket"),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_an_argument_that_is_wrong_is_named(name: str, value: Any) -> None:
    given = {"host": "127.0.0.1", "port": 1, name: value}
    for kind in (AsyncSMTP, asmtp.SMTP):
        with pytest.raises((TypeError, ValueError), match=f"^{name}\\b"):
            kind(**given)
    if name == "sock":
        return
    with pytest.raises((TypeError, ValueError), match=f"^{name}\\b"):
        asmtp.Relay(**given)
    if name not in ("host", "port") and value is not None:  # to a mailer, None says nothing
        with pytest.raises((TypeError, ValueError), match=f"^{name}\\b"):
            asmtp.Mailer("smtp://127.0.0.1", **{name: value})


@pytest.mark.parametrize("name", ["host", "port", "source_address"])
def test_what_connect_is_given_is_named(name: str) -> None:
    given: dict[str, Any] = {"host": "127.0.0.1", "port": 1, name: 70000}
    for kind in (AsyncSMTP, asmtp.SMTP):
        with pytest.raises((TypeError, ValueError), match=f"^{name}\\b"):
            found: Any = kind().connect(**given)
            asyncio.run(found)


@pytest.mark.parametrize(("name", "value"), [("timeouts", "5"), ("timeouts", -1), ("token", "t0k"), ("lmtp", "no")])
def test_what_is_wrong_with_a_relay_is_named(name: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{name}\\b"):
        asmtp.Relay("127.0.0.1", **{name: value})
    if name == "timeouts":
        with pytest.raises((TypeError, ValueError), match="^timeouts\\b"):
            asmtp.AsyncMailer("smtp://127.0.0.1", timeouts=value)


def test_a_relay_has_one_number_of_seconds_for_all() -> None:
    assert asmtp.Relay("127.0.0.1", timeouts=5).timeouts == Timeouts.of(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("port", ["2525", 2525])
@pytest.mark.parametrize("host", ["127.0.0.1", Lazy()])
def test_a_port_out_of_the_environment(host: Any, port: Any) -> None:
    assert check_address(host, port) == ("127.0.0.1", 2525)


def test_what_is_not_given_and_what_a_resolver_knows() -> None:
    cases: list[Any] = [(None, None), ("", 0), ("mx.example", "smtp")]
    assert [check_address(*case) for case in cases] == [("", 0), ("", 0), ("mx.example", "smtp")]


@pytest.mark.parametrize("name", ["x..example", f"{'x' * 64}.example"])
def test_a_name_that_no_resolver_takes(name: str) -> None:
    for given in ({"host": name}, {"source_address": (name, 0)}):
        arguments: Any = {"host": "127.0.0.1", "port": 1, **given}
        argument = next(iter(given))
        with pytest.raises(UnicodeError, match=f"^{argument}: no host name: '{name}'"):
            asyncio.run(AsyncSMTP(**arguments).connect())
        with pytest.raises(UnicodeError, match=f"^{argument}: no host name: '{name}'"):
            asmtp.SMTP(**arguments)
