"""Relays: of the environment, and without a URL."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from asmtp.client.relay import Relay
from asmtp.transport.timeouts import Timeouts
from tests.client.test_url import ENCODED, mentions

# ---- the environment --------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, "", " \n"])
def test_an_environment_without_relays(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("ASMTP_URL", raising=False)
    if value is not None:
        monkeypatch.setenv("ASMTP_URL", value)
    with pytest.raises(ValueError, match="^ASMTP_URL is not set"):
        Relay.from_environment()


def test_the_relays_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASMTP_URL", " smtps://me:secret@a.example\n\tlmtp+unix:///run/lmtp ")
    assert Relay.from_environment() == [
        Relay("a.example", tls="implicit", username="me", password="secret"),
        Relay("/run/lmtp", lmtp=True, tls="none"),
    ]


def test_a_bad_relay_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASMTP_URL", "smtp://a.example smtp://me:sec/ret@b.example")
    with pytest.raises(ValueError, match=f"^ASMTP_URL, number 2 of 2: URL: .*{ENCODED}") as caught:
        Relay.from_environment()
    assert not mentions(caught.value, "ret@")


# ---- relays without a URL ---------------------------------------------------------------------


def token(force: bool) -> str:
    raise NotImplementedError


@pytest.mark.parametrize(
    ("relay", "name", "url"),
    [
        (Relay("mx.example"), "mx.example:25", "smtp://mx.example"),
        (Relay("mx.example", 587), "mx.example:587", "smtp://mx.example:587"),
        (Relay("mx.example", tls="implicit"), "mx.example:465", "smtps://mx.example"),
        (Relay("mx.example", tls="required"), "mx.example:25", "smtp+starttls://mx.example"),
        (Relay("mx.example", lmtp=True), "mx.example:2003", "lmtp://mx.example"),
        (Relay("mx.example", lmtp=True, tls="implicit"), "mx.example:2003", "lmtp://mx.example?tls=implicit"),
        (Relay("::1"), "[::1]:25", "smtp://[::1]"),
        (Relay("fe80::1%eth0", 587), "[fe80::1%eth0]:587", "smtp://[fe80::1%25eth0]:587"),
        (Relay("bücher.example"), "xn--bcher-kva.example:25", "smtp://xn--bcher-kva.example"),
        (Relay("/run/l@mtp", lmtp=True), "/run/l@mtp", "lmtp+unix:///run/l%40mtp"),
        (Relay("/run/smtp", tls="required"), "/run/smtp", "smtp+unix:///run/smtp?tls=required"),
        (Relay("/run/\udcff"), "/run/\udcff", "smtp+unix:///run/%3F"),
        (Relay("mx.example", username="me/ü", password="secret"), "mx.example:25", "smtp://me%2F%C3%BC:***@mx.example"),
        (Relay("mx.example", username="me", token=token), "mx.example:25", "smtp://me@mx.example"),
        (Relay("mx.example", password="secret"), "mx.example:25", "smtp://:***@mx.example"),
        (
            Relay("mx.example", source_address=("::1", 26), window=5, chunking=False, timeouts=Timeouts.of(None)),
            "mx.example:25",
            "smtp://mx.example?window=5&source_address=%5B%3A%3A1%5D%3A26&timeout=none&chunking=no",
        ),
    ],
)
def test_name_and_url(relay: Relay, name: str, url: str) -> None:
    assert relay.name == name
    assert relay.url == str(relay) == url


def test_the_timeouts_in_a_url() -> None:
    shown = Relay("mx.example", timeouts=Timeouts(final=None)).url
    assert "timeout.connect=60&timeout.tls=60&" in shown
    assert "&timeout.final=none&" in shown


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"host": ""}, ValueError, "^host must be a host name or an IP address, or an absolute path"),
        ({"host": "run/smtp"}, ValueError, "^host must be a host name"),
        ({"host": "smtps://me:secret@mx.example"}, ValueError, r"^host must be .*a URL is for Relay.from_url\(\)$"),
        ({"host": "mx.example:25"}, ValueError, "^host must be a host name"),
        ({"host": "[::1]"}, ValueError, "^host must be a host name"),
        ({"host": "/run/smtp\0"}, ValueError, r"^host: .*control characters: \(not shown\)$"),
        ({"host": None}, TypeError, "^host must be str, not NoneType"),
        ({"port": -1}, ValueError, "^port must be a number from 0 to 65535, not -1"),
        ({"port": 65536}, ValueError, "^port must be"),
        ({"port": "secret"}, TypeError, "^port must be int, not str"),
        ({"port": True}, TypeError, "^port must be int, not bool"),
        ({"tls": "starttls"}, ValueError, "^tls must be 'none', 'opportunistic'"),
        ({"username": "secret\n"}, ValueError, r"^username: .*newline characters: \(not shown\)$"),
        ({"username": b"me"}, TypeError, "^username must be str, not bytes"),
        ({"password": b"secret"}, TypeError, "^password must be str, not bytes"),
        ({"server_hostname": "/run/smtp"}, ValueError, "^server_hostname must be a host name or an IP address$"),
        ({"local_hostname": "a\rb"}, ValueError, "^local_hostname: .*newline"),
        ({"local_hostname": ""}, ValueError, "^local_hostname must be ASCII, without spaces"),
        ({"window": 0}, ValueError, "^window must be a whole number, at least 1, not 0"),
        ({"window_octets": 1.5}, ValueError, "^window_octets must be a whole number, at least 1, not 1.5"),
    ],
)
def test_a_bad_argument(arguments: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        Relay(**{"host": "mx.example", **arguments})
    assert not mentions(caught.value, "secret")


def test_a_relay_does_not_change() -> None:
    relay = Relay("mx.example")
    with pytest.raises(FrozenInstanceError):
        relay.port = 25  # type: ignore[misc]  # that is the point
    assert relay == Relay("mx.example")
    assert len({relay, Relay("mx.example")}) == 1


FULL = Relay("bücher.example", 587, username="me", password="secret", token=token, timeouts=Timeouts.of(5))


@pytest.mark.parametrize(
    "other",
    [copy.copy(FULL), copy.deepcopy(FULL), replace(FULL), *[
        pickle.loads(pickle.dumps(FULL, protocol)) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)
    ]],
)  # fmt: skip
def test_a_copy_holds_everything(other: Relay) -> None:
    assert other == FULL
    assert other.password == "secret"
    assert other.token is token


def test_a_copy_that_differs() -> None:
    assert replace(FULL, port=25).name == "xn--bcher-kva.example:25"
    with pytest.raises(ValueError, match="port must be"):
        replace(FULL, port=-1)
