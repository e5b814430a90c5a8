"""What is set once for a connection."""

from __future__ import annotations

import ssl
from typing import Any

import pytest

from asmtp import AsyncLMTP, AsyncSMTP, AsyncSMTP_SSL, Timeouts
from asmtp.options import check, host_and_port


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
    check({"mechanisms": [("X-OWN", lambda credentials: iter(()))]}, "AsyncSMTP")  # type: ignore[list-item]
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
