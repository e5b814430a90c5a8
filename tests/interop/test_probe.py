"""The probe of BDAT at real servers with their own limits on errors: what it shows, and what it leaves behind.

Postfix, Exim and Dovecot read a chunk that they refuse, but for Dovecot's submission service before the login;
go-smtp does not.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

import asmtp
from tests.interop.mail import ALICE, BOB, NOBODY, SENDER, Letter
from tests.interop.servers import PASSWORD, USERNAME

if TYPE_CHECKING:
    from tests.interop.servers import MailServer

PROBE = b"BDAT 8 LAST\r\nXASMTP\r\n"


def client(server: MailServer, **options: Any) -> asmtp.AsyncSMTP:
    common: dict[str, Any] = {"local_hostname": "client.example", "timeout": 30, **options}
    if "lmtp" in server.ports:
        return asmtp.AsyncLMTP(server.host, server.ports["lmtp"], **common)
    role = "plain" if "plain" in server.ports else "submission"
    if role == "submission":
        common |= {"tls": "required", "ssl_context": server.ssl_context()}
    return asmtp.AsyncSMTP(server.host, server.ports[role], **common)


@pytest.fixture(params=["postfix_strict", "exim_strict", "dovecot", "sasl", "dovecot24"])
def reads(request: pytest.FixtureRequest) -> MailServer:
    """Each server that reads a chunk that it refuses, after the login where it wants one."""
    server: MailServer = request.getfixturevalue(request.param)
    return server


async def logged_in(server: MailServer, smtp: asmtp.AsyncSMTP) -> None:
    await smtp.ehlo()
    if "submission" in server.ports and "plain" not in server.ports:
        await smtp.login(USERNAME, PASSWORD)


@pytest.mark.parametrize("first", ["taken", "refused"])
async def test_what_is_shown(reads: MailServer, first: str) -> None:
    """The first message by DATA, the probe, and from then on BDAT: behind refused recipients, too."""
    written: list[bytes] = []
    came: list[bytes] = []
    async with client(reads) as smtp:
        await logged_in(reads, smtp)
        smtp.trace = lambda way, data: (written if way == ">" else came).append(data)
        letters = [Letter() for _ in range(4)]
        to = [ALICE if first == "taken" else NOBODY, ALICE, NOBODY, ALICE]
        told = []
        for letter, who in zip(letters, to, strict=True):
            try:
                await smtp.sendmail(letter.sender, [who], letter.content)
                told.append("sent")
            except asmtp.SMTPRecipientsRefused as error:
                told.append(error.state or "")
    assert told == ["refused" if who == NOBODY else "sent" for who in to]
    everything = b"".join(written)
    assert everything.count(PROBE) == 2
    assert everything.count(b"data\r\n") == 1
    assert everything.count(b" LAST\r\n") == 5
    for letter, state in zip(letters, told, strict=True):
        if state == "sent":
            await reads.arrived("alice", containing=letter.marker)


async def test_a_message_that_is_withdrawn_behind_its_probe(reads: MailServer) -> None:
    """The connection serves those that come next: Dovecot's submission service ends on it without one more RSET."""
    letters = [Letter() for _ in range(3)]
    async with client(reads) as smtp:
        await logged_in(reads, smtp)
        await smtp.sendmail(SENDER, [ALICE], letters[0].content)
        withdrawn = asyncio.create_task(smtp.sendmail(SENDER, [BOB], Letter().content))

        def withdraw(way: str, data: bytes) -> None:
            if b"BDAT 8 LAST" in data:
                withdrawn.cancel()

        smtp.trace = withdraw
        await asyncio.wait([withdrawn])
        with pytest.raises(asyncio.CancelledError) as caught:
            await withdrawn
        for letter in letters[1:]:
            await smtp.sendmail(SENDER, [ALICE], letter.content)
        assert smtp.is_connected
    for letter in letters:
        await reads.arrived("alice", containing=letter.marker)
    state = getattr(caught.value, "state", None)  # the replies to the probe may have been quicker
    assert len(reads.messages("bob")) <= (state == "in_doubt")


def noted(server: MailServer) -> list[str]:
    """Return what the probe left in the server's log."""
    return [line for line in server.logs().splitlines() if "BDAT" in line or "XASMTP" in line]


async def test_what_exim_logs(exim_strict: MailServer) -> None:
    """One message leaves nothing, two leave two lines: two of the three errors that it allows by default."""
    before = len(noted(exim_strict))
    for count, lines in ((1, 0), (2, 2)):
        async with client(exim_strict) as smtp:
            for _ in range(count):
                await smtp.sendmail(SENDER, [ALICE], Letter().content)
        after = noted(exim_strict)[before:]
        assert len(after) == lines
        assert all('protocol error in "BDAT 8 LAST"' in line for line in after)


@pytest.mark.parametrize("connections", [1, 4])
async def test_exim_ends_a_connection_at_the_eleventh_refused_message(
    exim_strict: MailServer, connections: int
) -> None:
    """It says "554 Too many nonmail commands", to RSET: nothing behind it is in doubt, or lost."""
    letters = [Letter() for _ in range(100)]
    messages = [
        (letter.sender, NOBODY if number % 3 == 2 else ALICE, letter.content) for number, letter in enumerate(letters)
    ]
    url = f"smtp://{exim_strict.host}:{exim_strict.ports['plain']}"
    before = exim_strict.logs().count("too many nonmail commands")
    async with asmtp.AsyncMailer(url, connections=connections, local_hostname="client.example") as posting:
        told = [delivery.state async for delivery in posting.send_all(messages, in_order=True)]
    assert told == ["refused" if who == NOBODY else "sent" for _, who, _ in messages]
    assert connections > 1 or exim_strict.logs().count("too many nonmail commands") > before
    stored = await exim_strict.arrived("alice", 67, timeout=20)
    for letter, (_, who, _) in zip(letters, messages, strict=True):
        assert sum(letter.marker in each for each in stored) == (who == ALICE)


async def test_without_a_login_dovecot_does_not_read_it(sasl: MailServer) -> None:
    """Its submission service takes nothing before AUTH, and a chunk for commands: so none is sent with content."""
    written: list[bytes] = []
    async with client(sasl) as smtp:
        await smtp.ehlo()
        smtp.trace = lambda way, data: written.append(data) if way == ">" else None
        for _ in range(3):
            with pytest.raises(asmtp.SMTPSenderRefused) as caught:
                await smtp.sendmail(SENDER, [ALICE], Letter().content)
            assert caught.value.smtp_code == 530
    assert b"From:" not in b"".join(written)


@pytest.mark.parametrize("way", ["client", "facade", "async mailer", "mailer"])
async def test_go_smtp(go: MailServer, way: str) -> None:
    """It takes a chunk that it refuses for commands: all that is good arrives, and nothing else."""
    commands = (
        b"Subject: x\r\n\r\nMAIL FROM:<boss@lab.test>\r\nRCPT TO:<bob@lab.test>\r\nDATA\r\nSubject: y\r\n\r\n.\r\n"
    )
    letters = [Letter() for _ in range(50)]
    messages = [
        (letter.sender, NOBODY, commands) if number % 5 == 2 else (letter.sender, ALICE, letter.content)
        for number, letter in enumerate(letters)
    ]
    url = f"smtp://{go.host}:{go.ports['plain']}"

    def blocking() -> list[str]:
        if way == "mailer":
            with asmtp.Mailer(url) as posting:
                return [delivery.state for delivery in posting.send_all(messages, in_order=True)]
        told = []
        with asmtp.SMTP(go.host, go.ports["plain"], "me.example", timeout=20) as smtp:
            for message in messages:
                try:
                    smtp.sendmail(*message)
                    told.append("sent")
                except asmtp.SMTPRecipientsRefused:
                    told.append("refused")
        return told

    if way == "client":
        async with client(go) as smtp:
            calls = [smtp.sendmail(*message) for message in messages]
            results = await asyncio.gather(*calls, return_exceptions=True)
        told = ["refused" if isinstance(result, asmtp.SMTPRecipientsRefused) else "sent" for result in results]
    elif way == "async mailer":
        async with asmtp.AsyncMailer(url) as posting:
            told = [delivery.state async for delivery in posting.send_all(messages, in_order=True)]
    else:
        told = await asyncio.to_thread(blocking)
    assert told == ["refused" if who == NOBODY else "sent" for _, who, _ in messages]
    stored = await go.arrived("alice", 40)
    for letter, (_, who, _) in zip(letters, messages, strict=True):
        assert sum(letter.marker in each for each in stored) == (who == ALICE)
    assert not go.messages("bob")
