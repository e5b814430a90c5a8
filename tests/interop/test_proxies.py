"""Through Dante and tinyproxy to a real server, and servers that want the PROXY protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

import asmtp
from tests.interop.servers import DOMAIN

if TYPE_CHECKING:
    from tests.interop.servers import MailServer

ALICE, BOB = f"alice@{DOMAIN}", f"bob@{DOMAIN}"
LETTER = b"Subject: far away\r\n\r\nhi\r\n"


def url(proxies: MailServer, scheme: str, role: str) -> str:
    user = f"{proxies.username}:{quote(proxies.password)}@" if role.endswith("_auth") else ""
    return f"{scheme}://{user}127.0.0.1:{proxies.ports[role]}"


@pytest.mark.parametrize(
    ("scheme", "role"),
    [("socks5", "socks"), ("socks5", "socks_auth"), ("http", "connect"), ("http", "connect_auth")],
)
async def test_through_a_proxy(proxies: MailServer, smtp_server: MailServer, scheme: str, role: str) -> None:
    proxy = url(proxies, scheme, role)
    for _ in range(5):  # the greeting comes now with the proxy's answer, now behind it
        async with asmtp.AsyncSMTP("127.0.0.1", smtp_server.ports["plain"], "client.lab.test", 20, proxy=proxy) as smtp:
            assert await smtp.sendmail(ALICE, [BOB], LETTER) == {}
    async with asmtp.AsyncSMTP(
        "localhost", smtp_server.ports["submission"], "client.lab.test", 20, proxy=proxy,
        username=smtp_server.username, password=smtp_server.password, ssl_context=smtp_server.ssl_context(),
    ) as smtp:  # fmt: skip
        assert await smtp.sendmail(ALICE, [BOB], LETTER) == {}


@pytest.mark.parametrize(("scheme", "role"), [("socks5", "socks_auth"), ("http", "connect_auth")])
async def test_a_wrong_password(proxies: MailServer, postfix: MailServer, scheme: str, role: str) -> None:
    for user in ("", "tester:wrong@"):
        proxy = f"{scheme}://{user}127.0.0.1:{proxies.ports[role]}"
        with pytest.raises(ConnectionError, match="^proxy ") as caught:
            await asmtp.AsyncSMTP("127.0.0.1", postfix.ports["plain"], timeout=20, proxy=proxy).connect()
        assert "wrong" not in str(caught.value)


@pytest.mark.parametrize(("scheme", "role"), [("socks5", "socks"), ("http", "connect")])
async def test_a_host_that_there_is_not(proxies: MailServer, scheme: str, role: str) -> None:
    with pytest.raises(ConnectionError, match="^proxy "):
        await asmtp.AsyncSMTP("no.such.host.test", 25, timeout=20, proxy=url(proxies, scheme, role)).connect()


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("server", ["postfix", "exim"])
async def test_the_proxy_protocol(server: str, version: int, request: pytest.FixtureRequest) -> None:
    """The client that the header names is the one that the server knows: it stands in the Received field."""
    found: MailServer = request.getfixturevalue(server)
    header = asmtp.ProxyHeader(version, source=("192.0.2.77", 4711))
    port = found.ports["haproxy"]
    async with asmtp.AsyncSMTP("127.0.0.1", port, "client.lab.test", 20, proxy_protocol=header) as smtp:
        assert await smtp.sendmail(ALICE, [BOB], b"Subject: proxied %d\r\n\r\nhi\r\n" % version) == {}
    [letter] = await found.arrived("bob", containing=b"proxied %d" % version)
    assert b"192.0.2.77" in letter
