"""Fixtures that start the real servers, once a session and test worker."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.interop.mail import SHAPES
from tests.interop.servers import MailServer, Unavailable, running

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
RUNNING: list[MailServer] = []


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder, so that none is forgotten."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.interop)


def serve(name: str) -> Iterator[MailServer]:
    """Run a server; where that is impossible skip, or fail if the environment asks for certainty."""
    try:
        with running(name) as server:
            print(f"{name} started in {server.startup:.2f} s: {server.ports}")
            RUNNING.append(server)
            yield server
            RUNNING.remove(server)
    except Unavailable as error:
        if os.environ.get("ASMTP_REQUIRE_INTEROP") == "1":
            pytest.fail(f"ASMTP_REQUIRE_INTEROP=1, but {error}")
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def postfix() -> Iterator[MailServer]:
    """A Postfix: plain, submission and tls ports."""
    yield from serve("postfix")


@pytest.fixture(scope="session")
def exim() -> Iterator[MailServer]:
    """An Exim: plain, submission and tls ports."""
    yield from serve("exim")


@pytest.fixture(scope="session")
def dovecot() -> Iterator[MailServer]:
    """A Dovecot that speaks LMTP, on a port and on a Unix socket."""
    yield from serve("dovecot")


@pytest.fixture(scope="session")
def sasl() -> Iterator[MailServer]:
    """Postfix with Cyrus SASL and with Dovecot's, Dovecot's submission service, and a Kerberos realm."""
    yield from serve("sasl")


@pytest.fixture(scope="session")
def dovecot24() -> Iterator[MailServer]:
    """The submission service of a Dovecot 2.4, which does channel binding."""
    yield from serve("dovecot24")


@pytest.fixture(scope="session")
def sendmail() -> Iterator[MailServer]:
    """A sendmail, which does DELIVERBY."""
    yield from serve("sendmail")


@pytest.fixture(scope="session")
def nodemailer() -> Iterator[MailServer]:
    """An smtp-server of npm's, which does REQUIRETLS: SMTP with STARTTLS and in TLS, and LMTP."""
    yield from serve("nodemailer")


@pytest.fixture(scope="session")
def exim498() -> Iterator[MailServer]:
    """An Exim that announces its limits: 5 messages a connection, 10 recipients a message."""
    yield from serve("exim498")


@pytest.fixture(scope="session")
def postfix_strict() -> Iterator[MailServer]:
    """A Postfix with its own limits on errors."""
    yield from serve("postfix_strict")


@pytest.fixture(scope="session")
def exim_strict() -> Iterator[MailServer]:
    """An Exim with its own limits on errors."""
    yield from serve("exim_strict")


@pytest.fixture(scope="session")
def go() -> Iterator[MailServer]:
    """A server of go-smtp, which does not read a chunk that it refuses."""
    yield from serve("go")


@pytest.fixture(scope="session")
def cyrus() -> Iterator[MailServer]:
    """A Cyrus that speaks LMTP; one of its ports wants AUTH, and does channel binding."""
    yield from serve("cyrus")


@pytest.fixture(scope="session")
def proxies() -> Iterator[MailServer]:
    """SOCKS and CONNECT proxies."""
    yield from serve("proxies")


@pytest.fixture(scope="session", params=["postfix", "exim"])
def smtp_server(request: pytest.FixtureRequest) -> MailServer:
    """Each of the SMTP servers in turn."""
    server: MailServer = request.getfixturevalue(request.param)
    return server


@pytest.fixture(params=["postfix", "exim", "dovecot"])
def mail_server(request: pytest.FixtureRequest) -> MailServer:
    """Each of the servers in turn, SMTP and LMTP."""
    server: MailServer = request.getfixturevalue(request.param)
    return server


@pytest.fixture(params=list(SHAPES))
def shape(request: pytest.FixtureRequest) -> str:
    """Each shape that a transaction can have."""
    name: str = request.param
    return name


@pytest.fixture(autouse=True)
def emptied() -> Iterator[None]:
    """Mailboxes are searched again and again while a message is awaited, so nothing stays in them."""
    yield
    for server in RUNNING:
        for path in (server.directory / "srv/mail").glob("*/new/*"):
            path.unlink(missing_ok=True)
