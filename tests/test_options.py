"""What is set once for a connection."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest

from asmtp import AsyncLMTP, AsyncSMTP, AsyncSMTP_SSL, Timeouts
from asmtp.options import check, context_from_files, default_context, host_and_port, unverified_context

from .conftest import Certificates


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


def test_the_default_context_verifies() -> None:
    context = default_context()
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert default_context() is context


def test_the_unverified_context_does_not() -> None:
    context = unverified_context.__wrapped__()
    assert context.verify_mode == ssl.CERT_NONE
    assert not context.check_hostname
    assert context is not default_context()


def test_context_from_files(certificates: Certificates, tmp_path: Path) -> None:
    given = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    assert context_from_files(None, None, None) is None
    assert context_from_files(None, None, given) is given
    issued = certificates.ca.issue_cert("client.example")
    key, chain = tmp_path / "key.pem", tmp_path / "chain.pem"
    issued.private_key_pem.write_to_path(key)
    for blob in issued.cert_chain_pems:
        blob.write_to_path(chain, append=True)
    with pytest.warns(DeprecationWarning, match="custom context"):
        made = context_from_files(str(key), str(chain), None)
    assert made is not None
    assert made.verify_mode == ssl.CERT_REQUIRED
    assert made.check_hostname


@pytest.mark.parametrize(("files", "named"), [(("key", None), "keyfile"), ((None, "cert"), "certfile")])
def test_files_and_a_context(files: tuple[str | None, str | None], named: str) -> None:
    with pytest.raises(ValueError, match=f"context and {named} arguments are mutually exclusive"):
        context_from_files(*files, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))


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
