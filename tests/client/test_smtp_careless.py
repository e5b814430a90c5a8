"""Servers that take a refused chunk for commands: nothing is told wrongly or carried out, and what is good arrives.

The first kind does so from the first chunk on: the probe finds it out.  The second kind passes the probe and does so
later; then the lines of one refused message may be carried out, and what stood behind it is in doubt.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import pytest

import asmtp
from tests.fakes.careless import BLOCKED, Careless, Front, fronted
from tests.fakes.relay import relaying

LETTER = b"Subject: hi\r\n\r\nNOOP this\r\n"
INJECTED = (
    b"Subject: contact form\r\n\r\n"
    b"MAIL FROM:<boss@corp.example>\r\nRCPT TO:<victim@corp.example>\r\nDATA\r\nSubject: pay now\r\n\r\n.\r\n"
)

Message: TypeAlias = tuple[str, str, bytes]
UNWANTED = "unwanted@x.example"
"""Whose content the server refuses, in one of the tests."""


def message(number: int) -> Message:
    """Good ones, each fifth to nobody, and one that may be unwanted."""
    if number == 0:  # so that the second, with the probe, comes before a proxy has connected its backend
        return BLOCKED, "nobody@y.example", LETTER
    if number % 5 == 2:
        return f"s{number}@x.example", "nobody@y.example", INJECTED
    return (UNWANTED, "u@y.example", INJECTED) if number == 13 else (f"s{number}@x.example", "u@y.example", LETTER)


MESSAGES = [message(number) for number in range(51)]
RIGHT = ["refused" if who.startswith("nobody") else "sent" for _, who, _ in MESSAGES]

Server: TypeAlias = Careless | Front
Way: TypeAlias = Callable[[Server, bool, int], Awaitable[list[Any]]]


def url(server: Server, lmtp: bool) -> str:
    return f"{'lmtp' if lmtp else 'smtp'}://{server.host}:{server.port}"


def states(results: list[Any]) -> list[Any]:
    """Return the states of the messages, by the results and exceptions of the calls."""
    unknown = [
        each for each in results if isinstance(each, BaseException) and not isinstance(each, asmtp.SMTPException)
    ]
    assert not unknown
    return [result.state if isinstance(result, asmtp.SMTPException) else "sent" for result in results]


async def one_by_one(server: Server, lmtp: bool, connections: int) -> list[Any]:
    """AsyncSMTP, one message at a time; what a connection that has ended did not send goes over another one."""
    told: list[Any] = []
    smtp = (asmtp.AsyncLMTP if lmtp else asmtp.AsyncSMTP)(server.host, server.port, "me.example")
    async with smtp:
        while len(told) < len(MESSAGES):
            try:
                await smtp.sendmail(*MESSAGES[len(told)])
                told.append("sent")
            except asmtp.SMTPException as error:
                if error.state == "not_sent":
                    await smtp.connect()
                else:
                    told.append(error.state)
    return told


async def at_once(server: Server, lmtp: bool, connections: int) -> list[Any]:
    """AsyncSMTP, all at once."""
    async with (asmtp.AsyncLMTP if lmtp else asmtp.AsyncSMTP)(server.host, server.port, "me.example") as smtp:
        return states(await asyncio.gather(*[smtp.sendmail(*each) for each in MESSAGES], return_exceptions=True))


async def facade(server: Server, lmtp: bool, connections: int) -> list[Any]:
    """The blocking class, as `one_by_one`."""

    def send() -> list[Any]:
        told: list[Any] = []
        with (asmtp.LMTP if lmtp else asmtp.SMTP)(server.host, server.port, "me.example", timeout=20) as smtp:
            while len(told) < len(MESSAGES):
                try:
                    smtp.sendmail(*MESSAGES[len(told)])
                    told.append("sent")
                except asmtp.SMTPException as error:
                    if error.state == "not_sent":
                        smtp.connect(server.host, server.port)
                    else:
                        told.append(error.state)
        return told

    return await asyncio.to_thread(send)


async def async_mailer(server: Server, lmtp: bool, connections: int) -> list[Any]:
    async with asmtp.AsyncMailer(url(server, lmtp), connections=connections) as mailer:
        return [delivery.state async for delivery in mailer.send_all(MESSAGES, in_order=True)]


async def async_mailer_send(server: Server, lmtp: bool, connections: int) -> list[Any]:
    """Each message by a call of its own."""
    async with asmtp.AsyncMailer(url(server, lmtp), connections=connections) as mailer:
        calls = [mailer.send(content, sender, who) for sender, who, content in MESSAGES]
        return states(await asyncio.gather(*calls, return_exceptions=True))


async def mailer(server: Server, lmtp: bool, connections: int) -> list[Any]:
    def send() -> list[Any]:
        with asmtp.Mailer(url(server, lmtp), connections=connections) as mailer:
            return [delivery.state for delivery in mailer.send_all(MESSAGES, in_order=True)]

    return await asyncio.to_thread(send)


WAYS: dict[str, Way] = {
    way.__name__: way for way in (one_by_one, at_once, facade, async_mailer, async_mailer_send, mailer)
}
ONE_AT_A_TIME = ("one_by_one", "facade")


def told_wrongly(backend: Careless, told: list[Any]) -> list[str]:
    """Return the messages whose state is wrong: a sent one arrived once, and a refused or unsent one did not."""
    arrived = Counter(letter.sender for letter in backend.letters)
    wrong = []
    for (sender, _, _), state in zip(MESSAGES, told, strict=True):
        right = {"sent": (1,), "in_doubt": (0, 1)}.get(state, (0,))
        if arrived[sender] not in right:
            wrong.append(f"{sender} is {state}, and arrived {arrived[sender]} times")
    return wrong


@contextlib.asynccontextmanager
async def hidden(backend: Careless, behind: str) -> AsyncIterator[Server]:
    """Run it, or a proxy in front of it."""
    async with relaying(backend) if behind == "itself" else fronted(backend, reads=behind == "reads") as server:
        yield server


@pytest.mark.sampled
@pytest.mark.parametrize("lmtp", [False, True], ids=["smtp", "lmtp"])
@pytest.mark.parametrize("behind", ["itself", "does not read"])
@pytest.mark.parametrize("way", WAYS)
async def test_a_server_that_does_not_read_what_it_refuses(way: str, behind: str, lmtp: bool) -> None:
    """All is as it has to be, as it goes by DATA."""
    backend = Careless(lmtp=lmtp)
    async with hidden(backend, behind) as server:
        told = await WAYS[way](server, lmtp, 3)
    assert told == RIGHT
    assert told_wrongly(backend, told) == []
    assert len(backend.letters) == RIGHT.count("sent") == 40
    assert backend.carried_out(INJECTED + LETTER) == []


PASSING: dict[str, tuple[Callable[[bool], Careless], str]] = {
    "it changes its mind": (lambda lmtp: Careless(2, lmtp=lmtp), "itself"),
    "a proxy that connects its backend at RCPT": (lambda lmtp: Careless(lmtp=lmtp), "reads"),
    "content that is refused": (lambda lmtp: Careless(1000, unwanted=UNWANTED, lmtp=lmtp), "itself"),
}


@pytest.mark.sampled
@pytest.mark.parametrize("lmtp", [False, True], ids=["smtp", "lmtp"])
@pytest.mark.parametrize("kind", PASSING)
@pytest.mark.parametrize("way", WAYS)
async def test_a_server_that_passes_the_probe_and_then_does_not_read(way: str, kind: str, lmtp: bool) -> None:
    """The server carries out the lines of one refused message; the messages behind it are in doubt, and no others."""
    make, behind = PASSING[kind]
    backend = make(lmtp)
    async with hidden(backend, behind) as server:
        told = await WAYS[way](server, lmtp, 1)
    right = [*RIGHT]
    first = 2  # whose chunk is refused
    if backend.unwanted:
        first = 13
        right[first] = "refused"
    assert told_wrongly(backend, told) == []
    assert backend.carried_out(INJECTED).count("MAIL FROM:<boss@corp.example>") == 1
    if way in ONE_AT_A_TIME:
        assert told == right
        return
    unsent = [state for state, as_it_is in zip(told, right, strict=True) if state != as_it_is]
    assert unsent.count("in_doubt") <= first  # the window has opened by one with each answer
    assert set(unsent) <= {"in_doubt"} if "mailer" in way else {"in_doubt", "not_sent"}
