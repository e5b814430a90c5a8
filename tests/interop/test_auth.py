"""Every SASL mechanism, at a server that has it."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

import pytest

import asmtp
from tests.interop.servers import DOMAIN

if TYPE_CHECKING:
    from tests.interop.servers import MailServer

ALICE, BOB = f"alice@{DOMAIN}", f"bob@{DOMAIN}"
TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3

# server, role, mechanism
WITH_PASSWORD = [
    *(
        ("sasl", "cyrus", name)
        for name in ("PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-1", "SCRAM-SHA-256", "SCRAM-SHA-512")
    ),
    *(("sasl", "dovecot", name) for name in ("PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-1", "SCRAM-SHA-256")),
    *(("sasl", "submission", name) for name in ("PLAIN", "LOGIN", "SCRAM-SHA-1", "SCRAM-SHA-256")),
    *(("exim", "auth", name) for name in ("PLAIN", "LOGIN", "CRAM-MD5")),
    *(("nodemailer", "plain", name) for name in ("PLAIN", "LOGIN", "CRAM-MD5")),
    *(("dovecot24", "submission", name) for name in ("PLAIN", "SCRAM-SHA-1", "SCRAM-SHA-256")),
    *(("cyrus", "lmtp_auth", name) for name in ("PLAIN", "SCRAM-SHA-1", "SCRAM-SHA-256", "SCRAM-SHA-512")),
    ("sasl", "cyrus", "NTLM"),
]


@pytest.fixture
def server(request: pytest.FixtureRequest) -> MailServer:
    found: MailServer = request.getfixturevalue(request.param)
    return found


def client(server: MailServer, role: str, **options: Any) -> asmtp.AsyncSMTP:
    kind = asmtp.AsyncLMTP if "lmtp" in role else asmtp.AsyncSMTP
    options = {"username": server.username, "password": server.password, **options}
    options.setdefault("ssl_context", server.ssl_context())
    if "tls" in role:
        options["tls"] = "implicit"
    else:
        options.setdefault("tls", "required")
    given = {name: value for name, value in options.items() if value is not None}
    return kind("localhost", server.ports[role], "client.lab.test", 20, **given)


async def works(smtp: asmtp.AsyncSMTP, role: str) -> None:
    async with smtp:
        if "lmtp" not in role:
            assert await smtp.sendmail(ALICE, [BOB], b"Subject: auth\r\n\r\nhi\r\n") == {}
        assert (await smtp.noop()).ok


@pytest.mark.parametrize(("server", "role", "mechanism"), WITH_PASSWORD, indirect=["server"])
async def test_with_a_password(server: MailServer, role: str, mechanism: str) -> None:
    await works(client(server, role, mechanisms=[mechanism]), role)


@pytest.mark.parametrize(("server", "role", "mechanism"), WITH_PASSWORD, indirect=["server"])
async def test_a_wrong_password(server: MailServer, role: str, mechanism: str) -> None:
    with pytest.raises(asmtp.SMTPAuthenticationError) as caught:
        await client(server, role, mechanisms=[mechanism], password="wrong").connect()
    assert 500 <= caught.value.smtp_code <= 599


@pytest.mark.parametrize("version", [TLS12, TLS13])
@pytest.mark.parametrize(
    ("server", "role"),
    sorted({(server, role) for server, role, _ in WITH_PASSWORD} | {("dovecot24", "tls"), ("sasl", "tls")}),
    indirect=["server"],
)
async def test_what_is_chosen(server: MailServer, role: str, version: ssl.TLSVersion) -> None:
    """The best of what is offered works: with channel binding, where that is to be had."""
    context = server.ssl_context()
    context.maximum_version = version
    await works(client(server, role, ssl_context=context), role)


@pytest.mark.parametrize("name", ["SCRAM-SHA-1-PLUS", "SCRAM-SHA-256-PLUS"])
@pytest.mark.parametrize(
    ("server", "role"),
    [("dovecot24", "submission"), ("dovecot24", "tls"), ("cyrus", "lmtp_auth")],
    indirect=["server"],
)
async def test_channel_binding(server: MailServer, role: str, name: str) -> None:
    """tls-unique, as that is what these know; under TLS 1.3 they would want tls-exporter, which Python lacks."""
    context = server.ssl_context()
    context.maximum_version = TLS12
    await works(client(server, role, ssl_context=context, mechanisms=[name]), role)
    with pytest.raises(asmtp.SMTPAuthenticationError):
        await client(server, role, ssl_context=context, mechanisms=[name], password="wrong").connect()


@pytest.mark.parametrize("mechanism", ["OAUTHBEARER", "XOAUTH2"])
@pytest.mark.parametrize("role", ["dovecot", "submission"])
async def test_with_a_token(sasl: MailServer, role: str, mechanism: str) -> None:
    tokens: list[str] = []

    def token(force: bool) -> str:
        tokens.append(sasl.oauth_token(60 if force else -60))
        return tokens[-1]

    smtp = client(sasl, role, password=None, token=token, mechanisms=[mechanism])
    await works(smtp, role)
    assert len(tokens) == 2  # the first had expired
    expired = client(sasl, role, password=None, token=lambda force: sasl.oauth_token(-60), mechanisms=[mechanism])
    with pytest.raises(asmtp.SMTPAuthenticationError, match="status: "):
        await expired.connect()


@pytest.mark.parametrize(
    ("server", "role", "username"),
    [("sasl", "submission", None), ("sasl", "submission", "tester"), ("exim", "auth", "tester@lab.test")],
    indirect=["server"],
)
async def test_with_a_certificate(server: MailServer, role: str, username: str | None) -> None:
    context = server.ssl_context(certificate=True)
    options: dict[str, Any] = {"password": None, "username": username, "mechanisms": ["EXTERNAL"]}
    await works(client(server, role, ssl_context=context, **options), role)
    if role == "submission":
        with pytest.raises(asmtp.SMTPAuthenticationError):
            await client(server, role, **options).connect()


async def test_ntlm_of_old(exim: MailServer) -> None:
    """Exim's "spa" takes only NTLMv1, which pyspnego does not speak unless told to: it is refused, and in step."""
    with pytest.raises(asmtp.SMTPAuthenticationError):
        await client(exim, "auth", mechanisms=["NTLM"]).connect()


@pytest.mark.parametrize("role", ["cyrus", "dovecot", "submission"])
@pytest.mark.parametrize("username", [None, "tester"])
async def test_with_a_ticket(
    sasl: MailServer, role: str, username: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gssapi", exc_type=ImportError)
    for name, value in sasl.krb5.items():
        monkeypatch.setenv(name, value)
    smtp = client(sasl, role, password=None, username=username, mechanisms=["GSSAPI"])
    await works(smtp, role)


def test_the_facade(sasl: MailServer) -> None:
    with asmtp.SMTP("localhost", sasl.ports["cyrus"], "client.lab.test", 20) as smtp:
        smtp.starttls(context=sasl.ssl_context())
        assert smtp.login(sasl.username, sasl.password)[0] == 235
        assert smtp.sendmail(ALICE, [BOB], "Subject: auth\r\n\r\nhi\r\n") == {}


async def test_a_mailer(dovecot24: MailServer) -> None:
    url = f"smtp://{dovecot24.username}:{dovecot24.password}@localhost:{dovecot24.ports['submission']}"
    async with asmtp.AsyncMailer(url, ssl_context=dovecot24.ssl_context()) as mailer:
        assert (await mailer.send(b"Subject: auth\r\n\r\nhi\r\n", ALICE, [BOB])).complete
