"""The blocking facade at real servers: smtplib's calls, and what smtplib itself leaves in the mailboxes."""

from __future__ import annotations

import asyncio
import functools
import io
import smtplib
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from email.message import EmailMessage
from typing import TYPE_CHECKING, Any

import pytest

import asmtp
from tests.conftest import LOOPS
from tests.interop.mail import ALICE, BOB, BROKEN, FULL, NOBODY, SENDER, SHAPES, TEMPFAIL, TEMPORARY, Letter, as_stored
from tests.interop.servers import DOMAIN, UTF8_LOCAL

if TYPE_CHECKING:
    from pathlib import Path

    from tests.interop.servers import MailServer


def connect(server: MailServer, shape: str = "bdat-pipelined", **options: Any) -> asmtp.SMTP:
    """A facade on the server's first port, which speaks LMTP to the one that does."""
    common: dict[str, Any] = {"local_hostname": "client.example", "timeout": 30, **SHAPES[shape], **options}
    if "lmtp" in server.ports:
        return asmtp.LMTP(server.host, server.ports["lmtp"], **common)
    return asmtp.SMTP(server.host, server.ports["plain"], **common)


def check(server: MailServer, letter: Letter, mailbox: str = "alice") -> None:
    (stored,) = server.wait_for(mailbox, containing=letter.marker)
    letter.check(server, stored)


BODY = b"\r\n.\r\n..\na\n.\nb\r.\r\nc\r\n" + bytes(range(256)) + b"\r\nno final newline"


def test_sendmail(mail_server: MailServer, shape: str) -> None:
    letters = [Letter(BODY + b"%d" % number) for number in range(3)]
    with connect(mail_server, shape) as client:
        for letter in letters:
            refused = client.sendmail(letter.sender, [NOBODY, ALICE, TEMPFAIL], letter.content)
            assert {who: code for who, (code, _) in refused.items()} == {
                NOBODY: 550,
                TEMPFAIL: TEMPORARY[mail_server.name],
            }
            with pytest.raises(smtplib.SMTPRecipientsRefused) as caught:
                client.sendmail(letter.sender, NOBODY, letter.content)
            assert list(caught.value.recipients) == [NOBODY]
        assert client.noop()[0] == 250
    for letter in letters:
        check(mail_server, letter)


@pytest.mark.parametrize("size", [100, 70_000, 3_000_000])
@pytest.mark.parametrize("kind", ["str", "bytes", "file", "path"])
def test_kinds(mail_server: MailServer, kind: str, size: int, tmp_path: Path) -> None:
    letter = Letter(b"\r\n" + b"line\n.\r\n" * (size // 8) + b"end")
    path = tmp_path / "letter.eml"
    path.write_bytes(letter.content)
    content: dict[str, Any] = {
        "str": letter.content.decode(),
        "bytes": letter.content,
        "file": io.BytesIO(letter.content),
        "path": path,
    }
    with connect(mail_server) as client:
        assert client.sendmail(letter.sender, [ALICE], content[kind]) == {}
    check(mail_server, letter)


def test_same_as_smtplib(smtp_server: MailServer) -> None:
    """A message object leaves the same in the mailbox, whichever of both has sent it."""
    message = EmailMessage()
    message["From"] = f"Sénder <{SENDER}>"
    message["To"] = ALICE
    message["Cc"] = BOB
    message["Bcc"] = NOBODY
    message["Date"] = "Thu, 1 Jan 2026 00:00:00 +0000"
    message["Message-ID"] = "<same@client.example>"
    message["Subject"] = "Grüße"
    message.set_content("From here on\n.\n..dots and 世界\n", cte="8bit")
    message.add_attachment(bytes(range(256)), maintype="application", subtype="octet-stream", filename="β.bin")
    message.set_boundary("same")
    with smtplib.SMTP(smtp_server.host, smtp_server.ports["plain"], "client.example", 30) as theirs:
        expected = theirs.send_message(message)
    with connect(smtp_server) as ours:
        assert ours.send_message(message) == expected
    assert list(expected) == [NOBODY]
    for mailbox in ("alice", "bob"):
        first, second = smtp_server.wait_for(mailbox, 2, containing=b"<same@client.example>")
        assert first[first.index(b"From: ") :] == second[second.index(b"From: ") :]


def test_lmtp(dovecot: MailServer, shape: str) -> None:
    """What smtplib gets wrong: the reply of each recipient after the content."""
    letter, after = Letter(), Letter()
    path = f"{dovecot.lmtp_socket}"
    for client in (connect(dovecot, shape), asmtp.LMTP(path, local_hostname="client.example", **SHAPES[shape])):
        with client:
            refused = client.sendmail(letter.sender, [FULL, ALICE, NOBODY, BROKEN, BOB], letter.content)
            assert {who: code for who, (code, _) in refused.items()} == {FULL: 552, NOBODY: 550, BROKEN: 451}
            with pytest.raises(smtplib.SMTPRecipientsRefused) as caught:
                client.sendmail(letter.sender, [BROKEN, FULL], letter.content)
            assert {who: code for who, (code, _) in caught.value.recipients.items()} == {FULL: 552, BROKEN: 451}
            assert client.sendmail(after.sender, BOB, after.content) == {}
    assert len(dovecot.wait_for("alice", 2, containing=letter.marker)) == 2
    assert len(dovecot.wait_for("bob", 2, containing=letter.marker)) == 2
    assert len(dovecot.wait_for("bob", 2, containing=after.marker)) == 2


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
def test_submission(smtp_server: MailServer, mechanism: str) -> None:
    letter = Letter()
    with asmtp.SMTP(smtp_server.host, smtp_server.ports["submission"], "client.example", 30) as client:
        with pytest.raises(smtplib.SMTPNotSupportedError):
            client.login(smtp_server.username, smtp_server.password)
        assert client.starttls(context=smtp_server.ssl_context())[0] == 220
        client.ehlo()
        client.esmtp_features["auth"] = mechanism
        with pytest.raises(smtplib.SMTPAuthenticationError) as caught:
            client.login(smtp_server.username, "wrong")
        assert caught.value.smtp_code == 535
        assert client.login(smtp_server.username, smtp_server.password)[0] == 235
        assert client.sendmail(letter.sender, ALICE, letter.content) == {}
    check(smtp_server, letter)


def test_implicit_tls(smtp_server: MailServer) -> None:
    letter = Letter()
    port, context = smtp_server.ports["tls"], smtp_server.ssl_context()
    with asmtp.SMTP_SSL("localhost", port, "client.example", timeout=30, context=context) as client:
        client.login(smtp_server.username, smtp_server.password)
        assert client.sendmail(letter.sender, ALICE, letter.content) == {}
    check(smtp_server, letter)


def test_certificates_are_verified(smtp_server: MailServer) -> None:
    """Unlike smtplib's."""
    with pytest.raises(ssl.SSLCertVerificationError):
        asmtp.SMTP_SSL("localhost", smtp_server.ports["tls"], timeout=30)
    with asmtp.SMTP(smtp_server.host, smtp_server.ports["submission"], "client.example", 30) as client:
        with pytest.raises(ssl.SSLCertVerificationError):
            client.starttls()
        assert client.sock is None


def test_international_recipient(smtp_server: MailServer) -> None:
    letter = Letter()
    with connect(smtp_server) as client:
        options = ["SMTPUTF8", "BODY=8BITMIME"]
        assert client.sendmail(letter.sender, f"{UTF8_LOCAL}@{DOMAIN}", letter.content, options) == {}
    check(smtp_server, letter, "utf8")


def test_by_hand(smtp_server: MailServer) -> None:
    letter = Letter(BODY)
    client = connect(smtp_server)
    client.putcmd("NOOP")
    assert client.getreply()[0] == 250
    assert client.ehlo("client.example")[0] == 250
    assert client.mail(SENDER, ["BODY=8BITMIME"])[0] == 250
    assert client.rcpt(NOBODY)[0] == 550
    assert client.rcpt(ALICE)[0] == 250
    assert client.docmd("DATA")[0] == 354
    client.send(as_stored(letter.content).replace(b"\n", b"\r\n").replace(b"\r\n.", b"\r\n.."))
    client.send(b".\r\n")
    assert client.getreply()[0] == 250
    assert client.quit()[0] == 221
    assert client.sock is None
    check(smtp_server, letter)


def test_quit_and_connect_again(mail_server: MailServer) -> None:
    letters = [Letter(), Letter(), Letter()]
    client = connect(mail_server)
    host, port = mail_server.host, next(iter(mail_server.ports.values()))
    for letter in letters:
        assert client.sendmail(letter.sender, ALICE, letter.content) == {}
        assert client.quit()[0] == 221
        with pytest.raises(smtplib.SMTPServerDisconnected):
            client.noop()
        assert client.connect(host, port)[0] == 220
    client.close()
    for letter in letters:
        check(mail_server, letter)


def test_threads_one_after_another(mail_server: MailServer, shape: str) -> None:
    """One object, used in one thread after the other, and closed in yet another."""
    letters = [Letter(BODY + b"%d" % number) for number in range(8)]
    clients: list[asmtp.SMTP] = []
    seen: set[int] = set()

    def use(letter: Letter) -> None:
        seen.add(threading.get_ident())
        if not clients:
            clients.append(connect(mail_server, shape))
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            clients[0].sendmail(SENDER, [NOBODY], letter.content)
        assert clients[0].sendmail(letter.sender, [ALICE], letter.content) == {}

    pools = [ThreadPoolExecutor(1) for _ in range(3)]
    before = threading.active_count()
    for number, letter in enumerate(letters):
        pools[number % 3].submit(use, letter).result(30)
    assert len(seen) == 3
    assert threading.active_count() <= before + 3  # the pools' own
    assert clients[0].quit()[0] == 221
    for pool in pools:
        pool.shutdown()
    for letter in letters:
        check(mail_server, letter)


def test_threads_at_once(mail_server: MailServer) -> None:
    """Each with an object of its own."""
    letters = [[Letter(BODY + b"%d.%d" % (thread, number)) for number in range(10)] for thread in range(6)]

    def use(mine: list[Letter]) -> None:
        with connect(mail_server) as client:
            for letter in mine:
                assert client.sendmail(letter.sender, [ALICE], letter.content) == {}

    with ThreadPoolExecutor(len(letters)) as pool:
        list(pool.map(use, letters))
    for mine in letters:
        for letter in mine:
            check(mail_server, letter)


@pytest.mark.parametrize("loop", list(LOOPS))
def test_where_a_loop_runs(mail_server: MailServer, loop: str) -> None:
    """Called from async code it blocks, as smtplib would, but it works; and it goes on without the loop."""
    letters = [Letter() for _ in range(4)]
    send = functools.partial(deliver, connect(mail_server))

    async def main() -> None:
        send(letters[1])
        await asyncio.to_thread(send, letters[2])
        send(letters[3])

    send(letters[0])
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(main())
    send.args[0].close()
    for letter in letters:
        check(mail_server, letter)


def deliver(client: asmtp.SMTP, letter: Letter) -> None:
    assert client.sendmail(letter.sender, ALICE, letter.content) == {}
