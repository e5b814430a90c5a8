"""Settings of a connection, and the options that become them."""

from __future__ import annotations

import asyncio
import inspect
import ssl
from collections.abc import Callable
from dataclasses import fields
from typing import Any, get_type_hints

import pytest

import asmtp
from asmtp import AsyncLMTP, AsyncSMTP, AsyncSMTP_SSL, Timeouts
from asmtp.client.settings import ConnectionSettings, Options, SharedOptions, settings_of
from asmtp.client.url import OPTIONS
from asmtp.mailer.mailer import MailerOptions, RelayOptions, manager_of


def check(options: Any) -> ConnectionSettings:
    """The settings that the options of a client class ask for."""
    return settings_of(options, "AsyncSMTP")


# ---- a setting is in every list that it belongs in ----------------------------------------------

SETTINGS = get_type_hints(ConnectionSettings)
del SETTINGS["_secret_values"]

ARGUMENTS = {"local_hostname", "timeouts", "source_address"}
"""Arguments of their own, of the client classes."""

IN_THE_REST_OF_A_URL = {"tls", "username", "password"}
IN_NO_URL = {"token", "on_event"}


def test_a_setting_is_a_keyword_argument_of_the_clients() -> None:
    assert set(get_type_hints(Options)) == set(SETTINGS) - ARGUMENTS | {"sock"}


def test_a_setting_is_a_keyword_argument_of_a_mailer() -> None:
    assert set(get_type_hints(RelayOptions)) == set(SETTINGS) - {"window", "timeouts"}
    assert set(get_type_hints(MailerOptions)) >= set(SETTINGS)


def test_a_keyword_argument_has_the_type_of_the_setting() -> None:
    for name, kind in get_type_hints(RelayOptions).items():
        assert kind == SETTINGS[name], name
    for name in get_type_hints(Options).keys() - get_type_hints(SharedOptions).keys() - {"sock"}:
        assert get_type_hints(Options)[name] | None == SETTINGS[name], name


def test_a_setting_has_its_place_in_a_url_or_is_known_to_have_none() -> None:
    assert set(OPTIONS) | IN_THE_REST_OF_A_URL | IN_NO_URL == set(SETTINGS)


def test_an_option_of_a_url_is_documented() -> None:
    for name in (name for option in OPTIONS.values() for name in option.names):
        assert f"``{name.partition('.')[0]}" in str(asmtp.Relay.from_url.__doc__), name


def test_a_setting_is_documented() -> None:
    assert documented(ConnectionSettings) == set(SETTINGS)


def documented(kind: type) -> set[str]:
    """Return the arguments, or attributes, that a class documents."""
    lines = str(inspect.getdoc(kind)).partition("Raises:")[0].splitlines()
    heads = [line.partition(":")[0].strip() for line in lines if line.startswith(" " * 4) and line[4:5].strip()]
    return {name for head in heads for name in head.split(", ")}


@pytest.mark.parametrize("kind", [AsyncSMTP, asmtp.SMTP])
def test_help_shows_the_options_of_a_client(kind: type) -> None:
    positional = {"host", "port", "local_hostname", "timeout", "source_address"}
    assert documented(kind) == positional | set(get_type_hints(Options))


@pytest.mark.parametrize("kind", [AsyncSMTP_SSL, AsyncLMTP, asmtp.SMTP_SSL, asmtp.LMTP])
def test_help_shows_the_options_of_its_variants(kind: type) -> None:
    arguments = set(inspect.signature(kind).parameters) - {"options"}
    assert documented(kind) == arguments | set(get_type_hints(Options))


def test_help_shows_the_options_of_a_relay() -> None:
    assert documented(asmtp.Relay) == {"host", "port", "lmtp"} | set(SETTINGS)


def test_what_a_relay_has() -> None:
    """Checks and defaults of settings are functions, not methods that callers see."""
    shown = {"from_url", "from_environment", "several", "name", "url", "host", "port", "lmtp"}
    assert {name for name in dir(asmtp.Relay) if not name.startswith("_")} == shown | set(SETTINGS)


@pytest.mark.parametrize("kind", [asmtp.AsyncMailer, asmtp.Mailer])
def test_help_shows_the_options_of_a_mailer(kind: type) -> None:
    assert documented(kind) >= {"relay"} | set(get_type_hints(MailerOptions))


OTHER: dict[str, Any] = {
    "tls": "required",
    "username": "me",
    "password": "s3cret",
    "token": None,
    "mechanisms": ("PLAIN",),
    "ssl_context": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
    "server_hostname": "mx.example",
    "local_hostname": "me.example",
    "source_address": ("127.0.0.1", 0),
    "timeouts": Timeouts.of(5),
    "pipelining": False,
    "chunking": False,
    "window": 7,
    "window_octets": 70_000,
    "proxy": "socks5://proxy.example:1080",
    "proxy_protocol": 2,
    "on_event": print,
}
"""Another value than the default, of each setting."""


@pytest.mark.parametrize(
    "made",
    [
        lambda: AsyncSMTP(timeout=5, **without(OTHER, "timeouts"))._settings,
        lambda: asmtp.SMTP(timeout=5, **without(OTHER, "timeouts", "local_hostname"))._client._settings,
        lambda: manager_of(asmtp.AsyncMailer("smtp://127.0.0.1", **OTHER)).settings.relays[0],
        lambda: asmtp.Relay("127.0.0.1", **OTHER),
    ],
)
def test_a_setting_that_is_given_is_kept(made: Callable[[], ConnectionSettings]) -> None:
    settings = made()
    assert set(OTHER) == set(SETTINGS)
    facade = settings.local_hostname is None  # the name is smtplib's attribute there
    for each in fields(ConnectionSettings):
        assert getattr(settings, each.name) == OTHER[each.name] or (facade and each.name == "local_hostname"), each.name


def without(settings: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


# ---- values ---------------------------------------------------------------------------------------


def test_nothing_is_an_option() -> None:
    assert check({}) == ConnectionSettings()


def test_everything_that_is_an_option() -> None:
    check(
        {
            "tls": "required", "ssl_context": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), "server_hostname": "mx.example",
            "username": "me", "password": "secret", "window": 1, "window_octets": 1, "pipelining": False,
            "chunking": False,
        },
    )  # fmt: skip
    check({"username": "me", "token": lambda force: "t0k"})
    check({"username": "me", "password": "secret", "token": None})
    check({"mechanisms": ["EXTERNAL"]})
    check({"mechanisms": [("X-OWN", lambda credentials: iter(()))]})
    check({"mechanisms": ("PLAIN", "GSSAPI"), "username": "me"})
    check({"mechanisms": ["PLAIN"], "username": "me", "password": "secret"})
    check({"mechanisms": ["XOAUTH2"], "username": "me", "token": lambda force: "t0k"})


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
