"""AsyncMailer at Postfix, Exim and Dovecot: what it says of each message is what is in the mailboxes."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import TYPE_CHECKING, Any

import pytest

import asmtp
from asmtp import AsyncMailer
from tests.interop.mail import ALICE, BOB, CAROL, NOBODY, SHAPES, TEMPFAIL, Letter
from tests.interop.servers import DOMAIN, PASSWORD, USERNAME
from tests.interop.test_pipelining import check_all, letters

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from asmtp import Delivery
    from tests.interop.servers import MailServer

MAILBOXES = {ALICE: "alice", BOB: "bob", CAROL: "carol"}


def relay_at(server: MailServer, shape: str = "bdat-pipelined", port: int | None = None) -> asmtp.Relay:
    lmtp = "lmtp" in server.ports
    found = server.ports["lmtp" if lmtp else "plain"]
    return asmtp.Relay(server.host, port or found, lmtp=lmtp, local_hostname="client.example", **SHAPES[shape])


async def check(
    server: MailServer, given: Iterable[tuple[Letter, str]], deliveries: Iterable[Delivery[Any]]
) -> Counter[str]:
    """Each letter was told of once, and is where that says; how many were told what."""
    told = {delivery.item[2]: delivery for delivery in deliveries}
    states: Counter[str] = Counter()
    fates: dict[bytes, tuple[str, Letter]] = {}
    for letter, recipient in given:
        delivery = told.pop(letter.content)
        states[delivery.state] += 1
        fates[letter.marker] = delivery.state, letter
        if delivery.ok:
            await letter.found(server, MAILBOXES[recipient], timeout=60)
    assert not told
    batch = next(iter(fates))[:16]
    stored = [each for mailbox in MAILBOXES.values() for each in server.messages(mailbox, containing=batch)]
    found = Counter(each[each.index(batch) :][:32] for each in stored)
    assert set(found.values()) <= {1}
    for marker in found:
        assert fates[marker][0] in ("sent", "in_doubt")  # what is in doubt may be there, or come later
    return states


async def send_all(posting: AsyncMailer, given: Iterable[tuple[Letter, str]], **options: Any) -> list[Delivery[Any]]:
    items = [(letter.sender, recipient, letter.content) for letter, recipient in given]
    return [delivery async for delivery in posting.send_all(items, **options)]


async def test_what_is_told_is_in_the_mailboxes(mail_server: MailServer, shape: str) -> None:
    """Windows on several connections, which are replaced; some recipients are refused, for now and for good."""
    people = [ALICE, BOB, NOBODY, CAROL, ALICE, TEMPFAIL]
    given = [(letter, people[number % 6]) for number, letter in enumerate(letters(120))]
    retry = asmtp.Retry(initial=0.01)
    async with AsyncMailer(
        relay_at(mail_server, shape), connections=3, window=20, max_messages=30, retry=retry
    ) as posting:
        deliveries = await send_all(posting, given, in_order=True)
    assert [delivery.item[2] for delivery in deliveries] == [letter.content for letter, _ in given]
    assert await check(mail_server, given, deliveries) == {"sent": 80, "refused": 40}
    for delivery, (_, recipient) in zip(deliveries, given, strict=True):
        if recipient == TEMPFAIL:
            assert isinstance(delivery.error, asmtp.SMTPRecipientsRefused)
            assert delivery.error.transient
    assert posting.stats.retried == 40


async def test_tasks(mail_server: MailServer) -> None:
    given = [(letter, [ALICE, BOB][number % 2]) for number, letter in enumerate(letters(60))]
    async with AsyncMailer(relay_at(mail_server), connections=2) as posting:
        receipts = await asyncio.gather(
            *(posting.send(letter.content, letter.sender, [recipient, NOBODY]) for letter, recipient in given)
        )
    for receipt, (_, recipient) in zip(receipts, given, strict=True):
        assert list(receipt.accepted) == [recipient]
        assert list(receipt.refused) == [NOBODY]
        assert receipt.attempts == 1
    sent: dict[str, list[Letter]] = {"alice": [], "bob": []}
    for letter, recipient in given:
        sent[MAILBOXES[recipient]].append(letter)
    await check_all(mail_server, sent)


async def test_message_objects(smtp_server: MailServer) -> None:
    """One object for all."""

    def made() -> Any:
        message = EmailMessage()
        message["From"], message["Date"] = f"me@{DOMAIN}", "Thu, 1 Jan 2026 00:00:00 +0000"
        for number in range(30):
            del message["To"], message["Message-ID"]
            message["To"] = ALICE
            message["Message-ID"] = f"<{number}@client.example>"
            message.set_content(f"Grüße, Nummer {number}\n")
            yield message

    async with AsyncMailer(relay_at(smtp_server)) as posting:
        assert [delivery.ok async for delivery in posting.send_all(made())] == [True] * 30
    stored = await smtp_server.arrived("alice", 30)
    found = [message_from_bytes(each, policy=policy.default) for each in stored]
    texts = {str(each["Message-ID"]): each.get_content() for each in found}
    assert texts == {f"<{number}@client.example>": f"Grüße, Nummer {number}\n" for number in range(30)}


@pytest.mark.parametrize(("port", "tls"), [("submission", "required"), ("tls", "implicit")])
async def test_logging_in(smtp_server: MailServer, port: str, tls: Any) -> None:
    given = [(letter, ALICE) for letter in letters(30)]
    options: Any = {"ssl_context": smtp_server.ssl_context(), "username": USERNAME, "password": PASSWORD, "tls": tls}
    relay = asmtp.Relay(smtp_server.host, smtp_server.ports[port], local_hostname="client.example", **options)
    async with AsyncMailer(relay, connections=2) as posting:
        await posting.verify()
        assert await check(smtp_server, given, await send_all(posting, given)) == {"sent": 30}
    async with AsyncMailer(relay, password="wrong") as posting:
        with pytest.raises(asmtp.SMTPAuthenticationError):
            await posting.verify()
        deliveries = await send_all(posting, given[:3])
        assert {delivery.state for delivery in deliveries} == {"not_sent"}
        assert all(isinstance(delivery.error, asmtp.SMTPAuthenticationError) for delivery in deliveries)


@contextlib.asynccontextmanager
async def cutting(server: MailServer, octets: int) -> AsyncIterator[int]:
    """A way to the server on which each connection is reset when so much has come back; a little later each time."""
    port = server.ports["lmtp" if "lmtp" in server.ports else "plain"]
    connections = 0
    over = asyncio.Event()
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int | None) -> None:
        while data := await reader.read(4096):
            if limit is not None:
                limit -= len(data)
                if limit <= 0:
                    return
            writer.write(data)
            await writer.drain()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        onward, back = await asyncio.open_connection(server.host, port)
        ways = [
            asyncio.create_task(pump(reader, back, None)),
            asyncio.create_task(pump(onward, writer, octets + 97 * connections)),
            asyncio.create_task(over.wait()),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        writer.transport.abort()
        back.transport.abort()

    listener = await asyncio.start_server(carry, "127.0.0.1", 0)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        over.set()
        if tasks:
            await asyncio.wait(tasks)


@pytest.mark.parametrize("retry", [None, asmtp.Retry(attempts=20, initial=0.01, within=None)], ids=["once", "retry"])
async def test_a_way_that_is_cut_again_and_again(
    mail_server: MailServer, shape: str, retry: asmtp.Retry | None
) -> None:
    """Nothing is lost, and nothing but what is in doubt can be there twice."""
    given = [(letter, [ALICE, BOB][number % 2]) for number, letter in enumerate(letters(80))]
    async with cutting(mail_server, 600) as port:
        async with AsyncMailer(relay_at(mail_server, shape, port), connections=2, window=10, retry=retry) as posting:
            deliveries = await send_all(posting, given)
        await asyncio.sleep(0)
    states = await check(mail_server, given, deliveries)
    assert states["sent"] >= 10
    assert states["refused"] == 0
    if retry is not None:
        assert set(states) <= {"sent", "in_doubt"}
