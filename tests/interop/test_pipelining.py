"""Many tasks send on one connection: each message arrives once, whole, under its own sender."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

import asmtp
from tests.interop.mail import (
    ALICE,
    BOB,
    BROKEN,
    CAROL,
    FULL,
    MAILBOXES,
    NOBODY,
    TEMPFAIL,
    TEMPORARY,
    Letter,
    connected,
    settled,
)
from tests.interop.servers import DOMAIN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from asmtp import AsyncSMTP
    from tests.interop.servers import MailServer

RECIPIENTS = {"alice": ALICE, "bob": BOB, "carol": CAROL}


def awkward(number: int) -> bytes:
    """A body that differs from all others, and has what may not be taken for its end."""
    source = random.Random(number)
    parts = [b"\r\n", b"\n", b"\r", b".", b"..", b"\r\n.\r\n", b"\xe2\x82\xac", b"word ", b"x" * 1500, b"RSET\r\n"]
    return b"\r\n%d\r\n" % number + b"".join(source.choices(parts, k=source.randrange(60)))


def letters(count: int) -> list[Letter]:
    """Messages that differ in everything, and have the first half of their markers in common."""
    batch = uuid.uuid4().hex[:16]
    made = []
    for number in range(count):
        marker = f"{batch}{number:016}"
        made.append(Letter(awkward(number), sender=f"s{number}@{DOMAIN}", marker=marker.encode()))
    return made


async def check_all(server: MailServer, sent: dict[str, list[Letter]]) -> None:
    """Each is where it belongs, once, and nothing else is anywhere."""
    batch = next(letter for those in sent.values() for letter in those).marker[:16]
    for mailbox in MAILBOXES:
        there = sent.get(mailbox, [])
        stored = await server.arrived(mailbox, len(there), containing=batch, timeout=60)
        by_marker: dict[bytes, list[bytes]] = {letter.marker: [] for letter in there}
        for each in stored:
            at = each.index(batch)
            by_marker[each[at : at + 32]].append(each)
        assert Counter(map(len, by_marker.values())) == ({1: len(there)} if there else {})
        for letter in there:
            letter.check(server, by_marker[letter.marker][0])


async def outcomes(tasks: Iterable[Any]) -> list[dict[str, int] | BaseException]:
    """Return what each `sendmail` returned or raised, replies as codes."""
    results = await asyncio.gather(*tasks, return_exceptions=True)
    return [
        result if isinstance(result, BaseException) else {who: reply.code for who, reply in result.items()}
        for result in results
    ]


@pytest.mark.parametrize("count", [3, 200])
async def test_concurrent(mail_server: MailServer, shape: str, count: int) -> None:
    made = letters(count)
    names = list(RECIPIENTS)
    sent: dict[str, list[Letter]] = {name: [] for name in names}
    async with connected(mail_server, shape) as client:
        tasks = []
        for number, letter in enumerate(made):
            to = names[: number % 3 + 1]  # so that LMTP owes each a different number of replies
            for name in to:
                sent[name].append(letter)
            tasks.append(client.sendmail(letter.sender, [RECIPIENTS[name] for name in to], letter.content))
        assert await outcomes(tasks) == [{}] * count
        await settled(mail_server, client)
        await check_all(mail_server, sent)


async def test_small_window(mail_server: MailServer) -> None:
    made = letters(30)
    async with connected(mail_server, window=3, window_octets=4096) as client:
        tasks = [client.sendmail(letter.sender, [ALICE], letter.content) for letter in made]
        assert await outcomes(tasks) == [{}] * len(made)
    await check_all(mail_server, {"alice": made})


def overlapped(written: list[tuple[str, bytes]], first: str, second: str) -> bool:
    """Return whether the second sender's MAIL was written before the recipient of the first was refused."""
    refusal = next(place for place, (way, data) in enumerate(written) if way == "<" and data.startswith(b"550"))
    before = b"".join(data for way, data in written[:refusal] if way == ">")
    return f"<{first}>".encode() in before and f"<{second}>".encode() in before


async def test_refused_recipients_do_not_lend_their_sender(mail_server: MailServer, shape: str) -> None:
    """Every RCPT of a message is refused while others follow right behind it.

    These servers keep its transaction open then, and answer the next MAIL with 503: without a RSET between
    them they would take the next message under the sender of the one before.
    """
    pattern = "wrwwrrrwrwwwrr" * 3  # wrong, right
    made = letters(len(pattern))
    right = [letter for letter, kind in zip(made, pattern, strict=True) if kind == "r"]
    written: list[tuple[str, bytes]] = []
    async with connected(mail_server, shape) as client:
        await client.ehlo_or_helo_if_needed()
        client.trace = lambda direction, data: written.append((direction, data))
        tasks = []
        for number, (letter, kind) in enumerate(zip(made, pattern, strict=True)):
            to = [ALICE] if kind == "r" else [NOBODY, TEMPFAIL][: number % 2 + 1]
            tasks.append(client.sendmail(letter.sender, to, letter.content))
        results = await outcomes(tasks)
        client.trace = None
        await settled(mail_server, client)
    assert overlapped(written, made[0].sender, made[1].sender) == (shape == "bdat-pipelined")
    codes = {NOBODY: 550, TEMPFAIL: TEMPORARY[mail_server.name]}
    for number, (kind, result) in enumerate(zip(pattern, results, strict=True)):
        if kind == "r":
            assert result == {}
        else:
            assert isinstance(result, asmtp.SMTPRecipientsRefused)
            assert result.state == "refused"
            expected = [NOBODY, TEMPFAIL][: number % 2 + 1]
            assert {who: code for who, (code, _) in result.recipients.items()} == {who: codes[who] for who in expected}
    await check_all(mail_server, {"alice": right})


async def test_other_failures_do_not_either(mail_server: MailServer, shape: str) -> None:
    """MAIL is refused; some recipients are; the connection is used by hand in between; a message is streamed."""
    made = letters(8)

    async def streamed(letter: Letter) -> Any:
        async def pieces() -> Any:
            for start in range(0, len(letter.content), 100):
                yield letter.content[start : start + 100]

        return await client.sendmail(letter.sender, [ALICE], pieces())

    async with connected(mail_server, shape) as client:
        tasks: list[Any] = [
            send(client, made[0], NOBODY),
            streamed(made[1]),
            client.sendmail(made[2].sender, [NOBODY], made[2].content, ["BODY=NONSENSE"]),
            send(client, made[3], NOBODY, ALICE),
            client.noop(),
            send(client, made[4], ALICE, NOBODY),
            client.rset(),
            send(client, made[5], NOBODY),
            streamed(made[6]),
            send(client, made[7], ALICE),
        ]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await settled(mail_server, client)
    kinds = [type(result).__name__ for result in results]
    refused = "SMTPRecipientsRefused"
    assert kinds == [refused, "dict", "SMTPSenderRefused", "dict", "Reply", "dict", "Reply", refused, "dict", "dict"]
    assert [list(result) for result in results if isinstance(result, dict)] == [[], [NOBODY], [NOBODY], [], []]
    await check_all(mail_server, {"alice": [made[number] for number in (1, 3, 4, 6, 7)]})


async def send(client: AsyncSMTP, letter: Letter, *to: str) -> Any:
    return await client.sendmail(letter.sender, to, letter.content)


async def test_lmtp_results_after_the_content(dovecot: MailServer, shape: str) -> None:
    """Each message is owed another number of replies: a pair that slips would show in the next."""
    cases: list[tuple[list[str], dict[str, int]]] = [
        ([FULL], {FULL: 552}),
        ([ALICE, FULL, BOB, BROKEN], {FULL: 552, BROKEN: 451}),
        ([BROKEN, ALICE], {BROKEN: 451}),
        ([NOBODY], {NOBODY: 550}),
        ([ALICE], {}),
        ([NOBODY, BROKEN, TEMPFAIL, FULL], {NOBODY: 550, BROKEN: 451, TEMPFAIL: 451, FULL: 552}),
        ([BOB, NOBODY, ALICE], {NOBODY: 550}),
    ] * 3
    made = letters(len(cases))
    sent: dict[str, list[Letter]] = {"alice": [], "bob": []}
    async with connected(dovecot, shape) as client:
        results = await outcomes(send(client, letter, *to) for letter, (to, _) in zip(made, cases, strict=True))
        assert (await client.noop()).code == 250
    for letter, (to, refused), result in zip(made, cases, results, strict=True):
        if len(refused) == len(to):
            assert isinstance(result, asmtp.SMTPRecipientsRefused)
            assert {who: code for who, (code, _) in result.recipients.items()} == refused
        else:
            assert result == refused
        for name, those in sent.items():
            if RECIPIENTS[name] in to:
                those.append(letter)
    await check_all(dovecot, sent)


async def test_no_reply_waits_for_an_acknowledgement(postfix: MailServer) -> None:
    """Postfix sends the replies to MAIL and RCPT before it reads a chunk, and leaves Nagle's algorithm on.

    So its last reply would wait for our acknowledgement of the others, which the kernel delays by 40 ms. All
    of the messages would take as long; one that does not is enough.
    """
    times = []
    async with connected(postfix) as client:
        for _ in range(10):
            letter = Letter(b"\r\n" + b"line\r\n" * 1500)
            began = asyncio.get_running_loop().time()
            assert await client.sendmail(letter.sender, [ALICE], letter.content) == {}
            times.append(asyncio.get_running_loop().time() - began)
    assert min(times) < 0.03
