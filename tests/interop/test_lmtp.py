"""AsyncLMTP at real servers, over TCP and over a Unix socket: a reply for each recipient after the content."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

import asmtp
from tests.interop.mail import ALICE, BOB, BROKEN, FULL, NOBODY, SENDER, SHAPES, TEMPFAIL, Letter, settled
from tests.interop.servers import DOMAIN, UTF8_LOCAL

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.interop.servers import MailServer


@pytest.fixture(params=["port", "socket"])
def where(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def connect(server: MailServer, where: str, shape: str = "bdat-pipelined", **options: Any) -> asmtp.AsyncLMTP:
    host, port = (server.host, server.ports["lmtp"]) if where == "port" else (str(server.lmtp_socket), 0)
    return asmtp.AsyncLMTP(host, port, "client.example", 30, **SHAPES[shape], **options)


async def test_delivery(dovecot: MailServer, where: str, shape: str) -> None:
    letter = Letter(b"\r\na\n.\r\nb\r.\r\nc")
    async with connect(dovecot, where, shape) as client:
        assert await client.sendmail(letter.sender, [ALICE, BOB], letter.content) == {}
        assert client.ehlo_resp is not None
        assert client.helo_resp is None
    await letter.found(dovecot, "alice")
    await letter.found(dovecot, "bob")


@pytest.mark.parametrize("streamed", [False, True])
async def test_mixed_results(dovecot: MailServer, where: str, shape: str, streamed: bool) -> None:
    """Refused in front of the content, refused behind it, and taken, in turns."""
    letter, after = Letter(), Letter()
    to = [NOBODY, FULL, ALICE, TEMPFAIL, BROKEN, BOB]

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(letter.content), 9):
            yield letter.content[start : start + 9]

    async with connect(dovecot, where, shape) as client:
        refused = await client.sendmail(letter.sender, to, pieces() if streamed else letter.content)
        assert {who: reply.code for who, reply in refused.items()} == {
            NOBODY: 550, TEMPFAIL: 451, FULL: 552, BROKEN: 451,
        }  # fmt: skip
        assert b"Mailbox is full" in refused[FULL].message
        assert b"Mailbox is full" not in refused[BROKEN].message
        assert (await client.noop()).code == 250
        assert await client.sendmail(after.sender, [ALICE], after.content) == {}
    await letter.found(dovecot, "alice")
    await letter.found(dovecot, "bob")
    await after.found(dovecot, "alice")
    assert not dovecot.messages("full", containing=letter.marker)


@pytest.mark.parametrize("to", [[FULL], [BROKEN, FULL], [NOBODY, FULL, TEMPFAIL], [NOBODY, TEMPFAIL]])
async def test_nobody_is_left(dovecot: MailServer, where: str, shape: str, to: list[str]) -> None:
    letter, after = Letter(), Letter()
    codes = {NOBODY: 550, TEMPFAIL: 451, FULL: 552, BROKEN: 451}
    async with connect(dovecot, where, shape) as client:
        with pytest.raises(asmtp.SMTPRecipientsRefused) as caught:
            await client.sendmail(letter.sender, to, letter.content)
        assert {who: code for who, (code, _) in caught.value.recipients.items()} == {who: codes[who] for who in to}
        assert caught.value.state == "refused"
        assert (await client.noop()).code == 250
        assert await client.sendmail(after.sender, [BOB], after.content) == {}
        await settled(dovecot, client)
    await after.found(dovecot, "bob")
    assert letter.nowhere(dovecot)


async def test_by_hand(dovecot: MailServer, where: str) -> None:
    letter, after = Letter(), Letter()
    async with connect(dovecot, where) as client:
        assert (await client.ehlo()).code == 250
        assert (await client.mail(SENDER)).code == 250
        assert [(await client.rcpt(who)).code for who in (ALICE, NOBODY, FULL, BOB)] == [250, 550, 250, 250]
        assert (await client.data(letter.content)).code == 552  # the first refusal of three replies
        assert await client.sendmail(after.sender, [BOB], after.content) == {}
    await letter.found(dovecot, "alice")
    await letter.found(dovecot, "bob")
    await after.found(dovecot, "bob")


async def test_another_server(nodemailer: MailServer) -> None:
    letters = [Letter() for _ in range(10)]
    async with connect(nodemailer, "port") as client:
        to = [ALICE, NOBODY, BOB, TEMPFAIL]
        results = await asyncio.gather(*(client.sendmail(each.sender, to, each.content) for each in letters))
    assert [list(result) for result in results] == [[NOBODY, TEMPFAIL]] * len(letters)
    for letter in letters:
        await letter.found(nodemailer, "alice")
        await letter.found(nodemailer, "bob")


async def test_starttls(dovecot: MailServer, shape: str) -> None:
    letters = [Letter() for _ in range(10)]
    async with connect(dovecot, "port", shape, tls="required", ssl_context=dovecot.ssl_context()) as client:
        to = [ALICE, FULL, BOB]
        results = await asyncio.gather(*(client.sendmail(each.sender, to, each.content) for each in letters))
    assert [list(result) for result in results] == [[FULL]] * len(letters)
    for letter in letters:
        await letter.found(dovecot, "alice")
        await letter.found(dovecot, "bob")


async def test_international_recipient(dovecot: MailServer, where: str) -> None:
    """Dovecot does not offer SMTPUTF8."""
    letter = Letter()
    async with connect(dovecot, where) as client:
        with pytest.raises(asmtp.SMTPNotSupportedError):
            await client.sendmail(SENDER, [f"{UTF8_LOCAL}@{DOMAIN}"], letter.content)
        assert await client.sendmail(letter.sender, [ALICE], letter.content) == {}
    await letter.found(dovecot)


async def test_quit_and_connect_again(dovecot: MailServer, where: str) -> None:
    client = connect(dovecot, where)
    for _ in range(3):
        letter = Letter()
        async with client:
            assert await client.sendmail(letter.sender, [ALICE], letter.content) == {}
        assert not client.is_connected
        await letter.found(dovecot)
