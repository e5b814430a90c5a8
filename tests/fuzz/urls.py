"""The URL of a relay: ValueError or a Relay, and never a word of the password."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

from asmtp.client.relay import Relay
from tests.fuzz.data import FuzzedData

__all__ = ["url"]

SCHEMES = ["smtp", "smtps", "smtp+starttls", "lmtp", "lmtp+unix", "smtp+unix", "http", "SMTP", ""]
# No error has three of these letters within four of its own text.
SECRET = [
    "Q",
    "Z",
    "X",
    "J",
    "q",
    "z",
    "j",
    "QZXJ",
    "@",
    "/",
    "?",
    "#",
    ":",
    "%",
    "%4",
    "[",
    "]",
    "&",
    "=",
    "\u00e9",
    "",
]
LETTERS = frozenset("QZXJqzj")
HOSTS = [
    "mail.example.com", "192.0.2.1", "[2001:db8::1]", "[fe80::1%25eth0]", "b\u00fccher.example",
    "xn--bcher-kva.example", "a_b", "%2Frun%2Fx", "[", "]", "a b", "", "-", "mail.example.com.", "[v1.x]", "1.2.3.4.5",
]  # fmt: skip
OPTIONS = [
    "timeout=5", "timeout=none", "timeout=1e999", "timeout.connect=3", "timeout.quit=0.5", "timeout.final=1e3",
    "tls=none", "tls=required", "tls=opportunistic", "tls=implicit", "server_hostname=x.example", "server_hostname=%5B",
    "local_hostname=me.example", "local_hostname=%5B127.0.0.1%5D", "local_hostname=a%20b", "source_address=192.0.2.1",
    "source_address=%5B::1%5D:5", "source_address=192.0.2.1:77", "pipelining=no", "pipelining=YES", "chunking=off",
    "window=1", "window=0", "window_octets=100", "cafile=/nonexistent/x", "keyfile=y", "certfile=%00", "what=1",
    "", "&",
]  # fmt: skip


def url(data: FuzzedData) -> None:
    """Relay.from_url: ValueError or a Relay; nothing of the password in either; its own URL means the same."""
    password = data.text(SECRET, 10)
    raw = data.flag()
    written = _url(data, password if raw else quote(password, safe="", errors="replace"))
    if data.chance(4):
        written = _damaged(data, written)
    try:
        relay = Relay.from_url(written)
    except ValueError as error:
        _check_silent(error, written if raw else password, written)
        return
    assert "***" not in str(relay.password)
    for shown in (relay.url, str(relay), repr(relay), relay.name):
        secret = relay.password or ""
        for part in _parts(secret):
            told = shown.replace(str(relay.username), "").replace(relay.host, "")
            assert part not in told, f"{shown} shows {part!r}"
    real = relay.url
    if relay.password is not None:
        real = real.replace(":***@", f":{quote(relay.password, safe='')}@", 1)
    again = Relay.from_url(real)
    assert again == relay, f"{written} is {relay!r}; {real} is {again!r}"


def _url(data: FuzzedData, password: str) -> str:
    scheme = data.pick(SCHEMES)
    user = data.pick(["me", "me%40example.com", "", "a+b", "\u00fc", "a:b"])
    userinfo = data.pick([f"{user}:{password}@", f"{user}:{password}@", f"{user}@", "", f"{user}:{password}"])
    port = data.pick(["", "", ":587", ":0", ":65536", ":", ":x"])
    host = "" if scheme.endswith("unix") and not data.chance(8) else data.pick(HOSTS) + port
    path = data.pick(["/run/lmtp", "/a%20b", "/", ""] if scheme.endswith("unix") else ["", "", "/", "/x"])
    options = data.many(OPTIONS, 4)
    query = data.pick(["?", "?", "#", ""]) + "&".join(options) if options else ""
    return f"{scheme}://{userinfo}{host}{path}{query}"


def _damaged(data: FuzzedData, written: str) -> str:
    place = data.below(len(written) + 1)
    return (
        written[:place] + data.text(["@", ":", "/", "%", "[", "]", " ", "\n", ""], 3) + written[place + data.below(3) :]
    )


def _parts(secret: str) -> Iterator[str]:
    """Any four characters that can only have come from it."""
    for place in range(len(secret) - 3):
        part = secret[place : place + 4]
        if sum(character in LETTERS for character in part) >= 3:
            yield part


def _check_silent(error: BaseException, *secrets: str) -> None:
    seen: BaseException | None = error
    while seen is not None:
        told = f"{seen} {seen!r} {seen.args}"
        for secret in secrets:
            for part in _parts(secret):
                assert part not in told, f"an error shows {part!r}: {told}"
        seen = seen.__cause__ or seen.__context__
