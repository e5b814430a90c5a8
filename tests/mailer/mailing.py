"""Make mailers, and messages with names, and check what a mailer tells of them, for all tests of the mailer."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from email.message import EmailMessage
from typing import Any

import asmtp
from asmtp import AsyncMailer, Delivery, Reply
from tests.fakes.relay import Conversation, Relay
from tests.fakes.script import Scripted

__all__ = [
    "Gate", "Impatient", "Tired", "agree", "answering", "comings_and_goings", "email", "item", "items", "mailer",
    "name", "people", "till",
]  # fmt: skip

Answer = Callable[[str, str], str | None]


def mailer(*servers: Relay | Scripted, **options: Any) -> AsyncMailer:
    """Return a mailer for servers of the test."""
    where = [asmtp.Relay(server.host, server.port, lmtp=getattr(server, "lmtp", False)) for server in servers]
    return AsyncMailer(where, **{"local_hostname": "me.example", **options})


def item(number: int, content: bytes | None = None) -> tuple[str, str, bytes]:
    """Return a message with a number, which is in each of its parts."""
    return f"a{number}@x.example", f"b{number}@y.example", content or b"Subject: %d\r\n\r\nhello\r\n" % number


def items(count: int) -> Iterator[tuple[str, str, bytes]]:
    return map(item, range(count))


def email(text: str = "hello\n", **fields: str) -> EmailMessage:
    made = EmailMessage()
    for field, value in ({"From": "a@x.example", "To": "b@y.example", "Subject": "hi"} | fields).items():
        made[field] = value
    made.set_content(text)
    return made


def answering(**replies: str) -> Answer:
    """Return a relay's `answer`.

    Args:
        replies: by verb, or by verb and address: ``RCPT="550 no"``, ``RCPT_b1="451 later"``; `end`: of the content.
    """

    def answer(verb: str, line: str) -> str | None:
        for key, reply in replies.items():
            of, _, only = key.partition("_")
            if of.replace("end", ".") == verb and (not only or f"<{only}" in line):
                return reply
        return None

    return answer


async def till(condition: Callable[[], Any], step: float = 0.05) -> None:
    """Let time pass until the condition holds."""
    while not condition():  # noqa: ASYNC110  # there is no event for it
        await asyncio.sleep(step)


def people(replies: dict[str, Reply]) -> dict[str, tuple[int, str]]:
    """Return replies as code and enhanced code."""
    return {who: (reply.code, reply.enhanced) for who, reply in replies.items()}


def name(delivery: Delivery[Any]) -> int:
    """Return which of `items` a delivery is about."""
    sender: str = delivery.item[0]
    return int(sender[1 : sender.index("@")])


def agree(relay: Relay | Iterable[Relay], deliveries: Iterable[Delivery[Any]], count: int) -> Counter[str]:
    """Check that each of `count` items was told of once, and truly; return how many have each state.

    Args:
        relay: who may have taken them.
    """
    relays = [relay] if isinstance(relay, Relay) else list(relay)
    deliveries = list(deliveries)
    assert sorted(map(name, deliveries)) == list(range(count))
    taken = Counter(letter.sender for each in relays for letter in each.letters)
    states: Counter[str] = Counter()
    for delivery in deliveries:
        sender, recipient, content = delivery.item
        states[delivery.state] += 1
        times = taken.pop(sender, 0)
        expected = {"sent": {1}, "refused": {0}, "not_sent": {0}, "in_doubt": {0, 1}}[delivery.state]
        assert times in expected, f"{sender} is {delivery.state}, and was taken {times} times"
        assert delivery.ok == (delivery.state == "sent") == (delivery.error is None)
        if delivery.ok:
            assert delivery.receipt is not None
            assert list(delivery.receipt.accepted) == [recipient]
            assert delivery.receipt.complete
    assert not taken
    for each in relays:
        for letter in each.letters:
            assert letter.content == item(int(letter.sender[1:].partition("@")[0]))[2]
    return states


class Gate:
    """An event that counts the tasks that wait for it."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.waiting = 0

    async def __call__(self) -> None:
        self.waiting += 1
        await self.event.wait()


class _Tired(Conversation):
    relay: Tired
    taken = 0

    def command(self, line: str) -> None:
        if self.taken >= self.relay.most and line.upper().startswith("MAIL"):
            self.relay.commands.append(line)
            self.say(self.relay.bye)
        else:
            super().command(line)

    def end(self, content: bytes) -> None:
        super().end(content)
        self.taken += 1
        if self.taken >= self.relay.most and not self.relay.bye:
            self.flush()
            self.transport.close()


class Tired(Relay):
    """A relay that closes each connection when it has taken `most` messages.

    `bye` is what it says to the next MAIL then; empty: it closes without a word, behind the reply to the last one.
    """

    conversation = _Tired
    most = 10
    bye = ""


class _Impatient(Conversation):
    relay: Impatient
    idle = 0
    taken = 0  # as many letters as there were when an RSET was free

    def command(self, line: str) -> None:
        if line.upper() == "RSET":
            self.idle += self.taken == len(self.relay.letters)
            self.taken = len(self.relay.letters)
        if self.idle > self.relay.most:
            self.say(self.relay.bye)
            self.flush()
            self.transport.close()
        else:
            super().command(line)


class Impatient(Relay):
    """A relay that counts RSETs as Exim does, but for one behind each message, and ends the connection after `most`."""

    conversation = _Impatient
    most = 10
    bye = "554 Too many nonmail commands"


class Comings:
    """A listening socket that can be shut, so that no client can connect, and opened again at the same place."""

    def __init__(self, relay: Relay, sock: socket.socket) -> None:
        self._relay = relay
        self._sock = sock  # keeps the port
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        self._sock.listen(100)
        self._server = await loop.create_server(self._relay.accept, sock=self._sock.dup())

    async def shut(self, *, drop: bool = True) -> None:
        """Take no more connections, and close those that there are."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self._sock.shutdown(socket.SHUT_RDWR)
        if drop:
            self._relay.drop()
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def comings_and_goings(relay: Relay) -> AsyncIterator[Comings]:
    """Run a relay that can go away and come back."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with socket.socket() as other:
            # A port that was asked for is kept when the socket is shut; one that the kernel has chosen is not.
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("127.0.0.1", 0))
            sock.bind(other.getsockname())
        relay.host, relay.port = sock.getsockname()
        comings = Comings(relay, sock)
        await comings.open()
        try:
            yield comings
        finally:
            await comings.shut()
            for conversation in relay.connections:
                conversation.kill()
            await relay.quiet()
    assert relay.violations == []
