"""The servers are what the other interop tests take them for, as seen with the standard library's client."""

from __future__ import annotations

import os
import smtplib
import socket
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.interop.servers import DOMAIN, MAX_SIZE, UTF8_LOCAL, Unavailable, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.interop.servers import MailServer

SENDER = f"sender@{DOMAIN}"
FEATURES = {
    "postfix": {"pipelining", "chunking", "smtputf8", "8bitmime", "dsn", "enhancedstatuscodes", "starttls"},
    "exim": {"pipelining", "chunking", "smtputf8", "8bitmime", "dsn", "prdr", "starttls"},
}


def text(marker: str) -> bytes:
    return f"From: {SENDER}\r\nSubject: {marker}\r\n\r\n.dot\r\nbody of {marker}\r\n".encode()


@contextmanager
def submission(server: MailServer) -> Iterator[smtplib.SMTP]:
    with smtplib.SMTP(server.host, server.ports["submission"], timeout=10) as client:
        client.starttls(context=server.ssl_context())
        client.ehlo()
        yield client


@contextmanager
def lmtp(server: MailServer, where: str) -> Iterator[smtplib.LMTP]:
    assert server.lmtp_socket is not None
    host, port = (server.host, server.ports["lmtp"]) if where == "port" else (str(server.lmtp_socket), 0)
    with smtplib.LMTP(host, port) as client:
        client.ehlo()
        yield client


def test_ehlo(smtp_server: MailServer) -> None:
    with smtplib.SMTP(smtp_server.host, smtp_server.ports["plain"], timeout=10) as client:
        client.ehlo()
        assert set(client.esmtp_features) >= FEATURES[smtp_server.name]
        assert client.esmtp_features["size"] == str(MAX_SIZE)
        assert "auth" not in client.esmtp_features


@pytest.mark.parametrize("mechanism", ["plain", "login", "cram-md5"])
def test_submission(smtp_server: MailServer, mechanism: str) -> None:
    with submission(smtp_server) as client:
        assert set(client.esmtp_features["auth"].split()) == {"PLAIN", "LOGIN", "CRAM-MD5"}
        client.user, client.password = smtp_server.username, smtp_server.password
        authobject = getattr(client, f"auth_{mechanism.replace('-', '_')}")
        code, _ = client.auth(mechanism.upper(), authobject, initial_response_ok=mechanism != "cram-md5")
        assert code == 235
        marker = uuid.uuid4().hex
        client.sendmail(SENDER, [f"bob@{DOMAIN}"], text(marker))
    assert smtp_server.wait_for("bob", containing=marker.encode())


def test_wrong_password(smtp_server: MailServer) -> None:
    with submission(smtp_server) as client, pytest.raises(smtplib.SMTPAuthenticationError):
        client.login(smtp_server.username, "wrong")


def test_auth_needs_tls(smtp_server: MailServer) -> None:
    with smtplib.SMTP(smtp_server.host, smtp_server.ports["submission"], timeout=10) as client:
        client.ehlo()
        assert not client.esmtp_features.get("auth")


def test_implicit_tls(smtp_server: MailServer) -> None:
    marker = uuid.uuid4().hex
    port, context = smtp_server.ports["tls"], smtp_server.ssl_context()
    with smtplib.SMTP_SSL("localhost", port, context=context, timeout=10) as client:
        client.login(smtp_server.username, smtp_server.password)
        client.sendmail(SENDER, [f"carol@{DOMAIN}"], text(marker))
    assert smtp_server.wait_for("carol", containing=marker.encode())


def test_delivery(smtp_server: MailServer) -> None:
    marker = uuid.uuid4().hex
    with smtplib.SMTP(smtp_server.host, smtp_server.ports["plain"], timeout=10) as client:
        to = [f"{name}@{DOMAIN}" for name in ("alice", "dave", "nobody", "tempfail")]
        refused = client.sendmail(SENDER, to, text(marker))
        assert {to: code for to, (code, _) in refused.items()} == {to[2]: 550, to[3]: 450}
        client.mail(SENDER)
        code, _ = client.docmd("RCPT TO:<alice@example.org>")
        assert 500 <= code <= 599  # nothing is relayed
    for mailbox in ("alice", "dave"):
        (stored,) = smtp_server.wait_for(mailbox, containing=marker.encode())
        assert stored.endswith(f"\n\n.dot\nbody of {marker}\n".encode())


def test_utf8(smtp_server: MailServer) -> None:
    marker = uuid.uuid4().hex
    with smtplib.SMTP(smtp_server.host, smtp_server.ports["plain"], timeout=10) as client:
        options = ["SMTPUTF8", "BODY=8BITMIME"]
        client.sendmail(SENDER, [f"{UTF8_LOCAL}@{DOMAIN}"], text(f"δ {marker}"), mail_options=options)
    (stored,) = smtp_server.wait_for("utf8", containing=marker.encode())
    assert f"Subject: δ {marker}".encode() in stored


@pytest.mark.parametrize("where", ["port", "socket"])
def test_lmtp(dovecot: MailServer, where: str) -> None:
    marker = uuid.uuid4().hex
    with lmtp(dovecot, where) as client:
        assert set(client.esmtp_features) >= {"pipelining", "chunking", "8bitmime", "enhancedstatuscodes"}
        to = [f"{name}@{DOMAIN}" for name in ("alice", "nobody", "tempfail", "full", "bob", "broken")]
        assert client.mail(SENDER)[0] == 250
        assert [client.rcpt(each)[0] for each in to] == [250, 550, 451, 250, 250, 250]
        client.putcmd("DATA")
        assert client.getreply()[0] == 354
        client.send(text(marker).replace(b"\r\n.", b"\r\n..") + b".\r\n")
        assert [client.getreply()[0] for _ in range(4)] == [250, 552, 250, 451]
    for mailbox in ("alice", "bob"):
        (stored,) = dovecot.wait_for(mailbox, containing=marker.encode())
        assert f"body of {marker}".encode() in stored
    assert dovecot.messages("full") == []


def test_lmtp_starttls(dovecot: MailServer) -> None:
    with lmtp(dovecot, "port") as client:
        code, _ = client.starttls(context=dovecot.ssl_context())
        assert code == 220


async def test_arrived(postfix: MailServer) -> None:
    assert await postfix.arrived("nobody", count=0) == []
    with pytest.raises(TimeoutError, match="0 of 1"):
        await postfix.arrived("nobody", timeout=0.05)


def test_nothing_is_left(smtp_server: MailServer) -> None:
    """A second server of the kind runs beside the first, on its own ports, and goes without a trace."""
    with running(smtp_server.name) as server:
        assert not set(server.ports.values()) & set(smtp_server.ports.values())
        assert children_of(server.directory)
    assert not server.directory.exists()
    assert not children_of(server.directory)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection((server.host, server.ports["plain"]), timeout=5)


def children_of(directory: Path) -> list[str]:
    """The processes whose mounts show the directory."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/mountinfo") as mounts:
                found += [pid for line in mounts if str(directory) in line][:1]
        except OSError:
            continue
    return found


def test_missing_software(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ASMTP_INTEROP_CACHE", str(tmp_path))
    with pytest.raises(Unavailable), running("exim"):
        pass
