"""AsyncMailer: how it is made, what it counts, and how it ends."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import gc
import pickle
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import asmtp
from asmtp import AsyncMailer, Rate, Retry, Timeouts
from asmtp.mailer.mailer import Statistics, manager_of
from tests.conftest import LOOPS, Certificates
from tests.fakes.clock import now
from tests.fakes.embedded import Embedded, embedded
from tests.fakes.people import SENDER, WHO
from tests.fakes.relay import SHAPES, Relay, relaying
from tests.fakes.script import until
from tests.mailer.mailing import Tired, answering, comings_and_goings, email, item, items, mailer, till
from tests.sync.facade import relay_at
from tests.sync.threads import Stop

# ---- how it is made ---------------------------------------------------------------------------


@pytest.fixture
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ASMTP_URL", raising=False)


WRONG: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "nothing given": (None, {}, ValueError, "ASMTP_URL is not set"),
    "an empty list": ([], {}, ValueError, "^relay: none is given"),
    "a number": (5, {}, TypeError, "^relay must be a URL or a Relay, not int"),
    "one of them": (["smtp://a.example", b"smtp://b.example"], {}, TypeError, "^relay must be .*, not bytes"),
    "no URL": ("mail.example.com", {}, ValueError, "^URL: the scheme"),
    "no connections": ("smtp://a.example", {"connections": 0}, ValueError, "^connections must be .*, not 0"),
    "connections": ("smtp://a.example", {"connections": 2.0}, ValueError, "^connections must be .*, not 2.0"),
    "many": ("smtp://a.example", {"connections": True}, ValueError, "^connections must be .*, not True"),
    "window": ("smtp://a.example", {"window": 0}, ValueError, "^window must be"),
    "max_messages": ("smtp://a.example", {"max_messages": -1}, ValueError, "^max_messages must be"),
    "idle": ("smtp://a.example", {"idle": 0}, ValueError, "^idle must be"),
    "idle of another type": ("smtp://a.example", {"idle": "60"}, TypeError, "^idle must be .*, not str"),
    "idle?": ("smtp://a.example", {"idle": True}, TypeError, "^idle must be .*, not bool"),
    "max_age": ("smtp://a.example", {"max_age": -1.0}, ValueError, "^max_age must be"),
    "max_age, not a number": ("smtp://a.example", {"max_age": float("nan")}, ValueError, "^max_age must be"),
    "rate": ("smtp://a.example", {"rate": "fast"}, ValueError, "^rate: not a rate"),
    "rate of another type": ("smtp://a.example", {"rate": 100}, TypeError, "^rate must be .*, not int"),
    "retry": ("smtp://a.example", {"retry": 3}, TypeError, "^retry must be .*, not int"),
    "timeouts": ("smtp://a.example", {"timeouts": -1}, ValueError, "time"),
    "an unknown option": ("smtp://a.example", {"user": "me"}, TypeError, "AsyncMailer.*'user'"),
    "tls": ("smtp://a.example", {"tls": "yes"}, ValueError, "^tls must be"),
    "a user without a password": ("smtp://me@a.example", {}, ValueError, "username and password go together"),
    "a password without a user": ("smtp://a.example", {"password": "s3cret"}, ValueError, "username and password"),
    "two secrets": ("smtp://me:s3cret@a.example", {"token": lambda: "t"}, ValueError, "password and token"),
    "a token without a user": ("smtp://a.example", {"token": lambda: "t"}, ValueError, "username is needed with token"),
    "a token that is none": ("smtp://me@a.example", {"token": "s3cret"}, TypeError, "^token must be a function"),
}


@pytest.mark.usefixtures("no_environment")
@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments(case: str) -> None:
    """The constructor raises, not the first send, and no secret is in the error."""
    relay, options, kind, words = WRONG[case]
    with pytest.raises(kind, match=words) as caught:
        AsyncMailer(relay, **options)
    assert "s3cret" not in str(caught.value)


async def test_the_relay_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    async with relaying(Relay()) as relay:
        monkeypatch.setenv("ASMTP_URL", f"smtp://{relay.host}:{relay.port}?local_hostname=env.example")
        async with AsyncMailer() as posting:
            await posting.send(b"hi", SENDER, WHO)
        assert relay.commands[0] == "ehlo env.example"


def test_a_wrong_url_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASMTP_URL", "smtp://me:s3cret/word@mail.example.com")
    with pytest.raises(ValueError, match="ASMTP_URL") as caught:
        AsyncMailer()
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_its_repr_has_the_relays_and_no_secret() -> None:
    posting = AsyncMailer(["smtps://me:s3cret@mail.example.com", "smtp://mail.example.net"])
    assert repr(posting) == "<asmtp.mailer.mailer.AsyncMailer mail.example.com:465, mail.example.net:25>"


async def test_options_go_over_what_the_url_says() -> None:
    async with relaying(Relay(SHAPES["both"])) as relay:
        url = f"smtp://{relay.host}:{relay.port}?local_hostname=url.example&chunking=yes"
        async with AsyncMailer(url, local_hostname="option.example", chunking=False) as posting:
            await posting.send(b"hi", SENDER, WHO)
        assert relay.commands[0] == "ehlo option.example"
        assert "DATA" in relay.verbs


async def test_an_option_that_is_none_says_nothing(certificates: Certificates) -> None:
    """An option that is None, as wrappers pass it on, does not turn off the TLS that the URL asks for."""
    async with embedded(Embedded(), tls=certificates.server) as server:
        relay = asmtp.Relay(server.host, server.port, tls="required", ssl_context=certificates.trusting)
        async with AsyncMailer(relay, tls=None, ssl_context=None, local_hostname=None, token=None) as posting:
            await posting.send(b"hi", SENDER, WHO)
    assert server.encrypted == [True]


@pytest.mark.parametrize("timeouts", [7, Timeouts.of(7), None])
@pytest.mark.virtual_clock
async def test_timeouts(timeouts: Any) -> None:
    async with relaying(Relay(latency=10)) as relay, mailer(relay, timeouts=timeouts, retry=None) as posting:
        if timeouts is None:
            assert (await posting.send(b"hi", SENDER, WHO)).complete
            assert now() > 40
        else:
            with pytest.raises(asmtp.SMTPTimeoutError) as caught:
                await posting.send(b"hi", SENDER, WHO)
            assert caught.value.state == "not_sent"
            assert now() == pytest.approx(7, abs=1)


# ---- what its arguments do --------------------------------------------------------------------


async def test_connections_are_opened_as_the_load_asks() -> None:
    async with relaying(Relay(latency=0.002)) as relay, mailer(relay, connections=3) as posting:
        for _ in range(5):
            await posting.send(b"hi", SENDER, WHO)
        assert len(relay.connections) == 1
        await asyncio.gather(*(posting.send(b"hi", SENDER, WHO) for _ in range(200)))
        assert 1 < len(relay.connections) <= 3


@pytest.mark.virtual_clock
async def test_a_connection_that_is_idle_is_closed() -> None:
    async with relaying(Relay()) as relay, mailer(relay, idle=10) as posting:
        await posting.send(b"hi", SENDER, WHO)
        await asyncio.sleep(9)
        assert posting.stats.open == 1
        await asyncio.sleep(2)
        assert posting.stats.open == 0
        assert relay.verbs[-1] == "QUIT"
        await posting.send(b"hi", SENDER, WHO)
        assert len(relay.connections) == 2


@pytest.mark.virtual_clock
async def test_a_connection_of_some_age_is_replaced() -> None:
    async with relaying(Relay()) as relay, mailer(relay, max_age=100, idle=None) as posting:
        for _ in range(50):
            await posting.send(b"hi", SENDER, WHO)
            await asyncio.sleep(5)
        assert 3 <= len(relay.connections) <= 4
        assert len(relay.letters) == 50


async def test_a_connection_is_replaced_after_so_many_messages() -> None:
    async with relaying(Relay(SHAPES["both"])) as relay, mailer(relay, connections=1, max_messages=10) as posting:
        async for delivery in posting.send_all(items(100)):
            assert delivery.ok
    begun = [conversation.transport for conversation in relay.connections]
    assert 10 <= len(begun) <= 12
    assert relay.verbs.count("QUIT") == len(begun)


@pytest.mark.parametrize("rate", ["10/s", Rate(messages=10), "600/min"])
@pytest.mark.virtual_clock
async def test_a_rate(rate: Any) -> None:
    async with relaying(Relay(SHAPES["both"])) as relay, mailer(relay, rate=rate) as posting:
        async for delivery in posting.send_all(items(101)):
            assert delivery.ok
        assert now() == pytest.approx(10, abs=0.3)


@pytest.mark.virtual_clock
@pytest.mark.parametrize("who", [[WHO, "c@y.example"], [WHO]], ids=["for one of two", "for all"])
async def test_a_rate_of_recipients_and_a_server_that_is_sent_too_much(who: list[str]) -> None:
    slow = 0.0
    for reply in ("451 4.7.1 policy", "450 4.7.1 you are sending too fast"):
        left = [reply]
        relay = Relay(answer=lambda verb, line: left.pop() if verb == "RCPT" and left else None)  # noqa: B023
        begun = now()
        async with relaying(relay), mailer(relay, rate="10 recipients/s", retry=Retry(jitter=0)) as posting:
            deliveries = [d async for d in posting.send_all((SENDER, who, b"hi") for _ in range(100 // len(who)))]
            assert all(delivery.ok for delivery in deliveries)
        took, slow = slow, now() - begun
    assert took == pytest.approx(10, abs=1)
    assert slow > 12


# ---- what it counts ---------------------------------------------------------------------------


async def test_statistics() -> None:
    answer = answering(RCPT_no="550 no", RCPT_later="451 later")
    async with relaying(Relay(SHAPES["both"], answer=answer, hold=2)) as relay:
        posting = mailer(relay, connections=1, retry=None)
        assert posting.stats == Statistics(0, 0, 0, 0, 0, 0, 0, 0, 0)
        names = ["b1", "b2", "no", "later"]
        sends = [asyncio.create_task(posting.send(b"hi", SENDER, f"{name}@y.example")) for name in names]
        await asyncio.sleep(0)
        assert posting.stats == Statistics(0, 1, 4, 4, 0, 0, 0, 0, 0)
        await relay.held.wait()
        assert posting.stats == Statistics(1, 0, 0, 4, 0, 0, 0, 0, 0)
        relay.release()
        await asyncio.gather(*sends, return_exceptions=True)
        assert posting.stats == Statistics(1, 0, 0, 0, 2, 2, 0, 0, 0)
        await posting.aclose()
        assert posting.stats == Statistics(0, 0, 0, 0, 2, 2, 0, 0, 0)
        assert posting.stats.sent == 2


async def test_statistics_of_send_all() -> None:
    answer = answering(RCPT_no="550 no")
    wrong = [(SENDER, "b1@y.example", b"hi"), (SENDER, "no@y.example", b"hi"), (SENDER, "b\n@y.example", b"hi"), None]
    async with relaying(Relay(answer=answer)) as relay, mailer(relay) as posting:
        states = [delivery.state async for delivery in posting.send_all(wrong)]
        assert sorted(states) == ["not_sent", "not_sent", "refused", "sent"]
        assert posting.stats == Statistics(1, 0, 0, 0, 1, 1, 2, 0, 0)


# ---- how it ends ------------------------------------------------------------------------------


async def closed(posting: AsyncMailer) -> None:
    """Check that a mailer takes nothing any more."""
    with pytest.raises(asmtp.SMTPStateError, match="the mailer was closed"):
        await posting.send(b"hi", SENDER, WHO)
    with pytest.raises(asmtp.SMTPStateError, match="the mailer was closed"):
        posting.send_all([])
    with pytest.raises(asmtp.SMTPStateError, match="the mailer was closed"):
        async with posting:
            pass
    assert await posting.drain() == []
    await posting.aclose()
    posting.abort()


async def test_closed() -> None:
    async with relaying(Relay()) as relay:
        posting = mailer(relay)
        await posting.send(b"hi", SENDER, WHO)
        await posting.aclose()
        assert relay.verbs[-1] == "QUIT"
        await relay.quiet()
        await closed(posting)
        assert len(relay.connections) == 1


async def test_closed_though_it_was_never_used() -> None:
    posting = AsyncMailer("smtp://127.0.0.1:9", local_hostname="me.example")
    await posting.aclose()
    await closed(posting)


async def test_the_context_manager_waits_for_what_is_in_flight() -> None:
    async with relaying(Relay(SHAPES["both"], hold=2)) as relay:
        async with mailer(relay) as posting:
            sending = asyncio.create_task(posting.send(b"hi", SENDER, WHO))
            await relay.held.wait()
            asyncio.get_running_loop().call_later(0.01, relay.release)
        assert posting.stats.sent == 1
        assert (await sending).complete
        assert relay.verbs[-1] == "QUIT"
        await closed(posting)


@pytest.mark.virtual_clock
async def test_closing_waits_for_another_try() -> None:
    left = ["451 later"]
    relay = Relay(answer=lambda verb, line: left.pop() if verb == "RCPT" and left else None)
    async with relaying(relay):
        async with mailer(relay, retry=Retry(initial=20, jitter=0)) as posting:
            sending = asyncio.create_task(posting.send(b"hi", SENDER, WHO))
            await till(lambda: posting.stats.retried)
        assert (await sending).attempts == 2


async def test_an_exception_goes_through_the_context_manager() -> None:
    async with relaying(Relay()) as relay:
        with pytest.raises(ZeroDivisionError):
            async with mailer(relay) as posting:
                await posting.send(b"hi", SENDER, WHO)
                raise ZeroDivisionError
        assert relay.verbs[-1] == "QUIT"
        await relay.quiet()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("before", [0, 1])
async def test_abort(shape: str, before: int) -> None:
    """abort() does not wait, and every caller is told the state that is known."""
    async with relaying(Relay(SHAPES[shape], hold=(4 if shape == "both" else 7) if before else 2)) as relay:
        posting = mailer(relay, connections=1)
        for _ in range(before):
            relay.hold = None
            await posting.send(b"before", SENDER, WHO)  # so that the connection is one that was of use already
            relay.hold = 0
        sends = [asyncio.create_task(posting.send(b"hi %d" % n, SENDER, WHO)) for n in range(20)]
        await relay.held.wait()
        posting.abort()
        errors = await asyncio.wait_for(asyncio.gather(*sends, return_exceptions=True), 5)
        states = {getattr(error, "state", None) for error in errors}
        assert states <= {"not_sent", "in_doubt"}
        assert posting.stats.in_flight == posting.stats.waiting == 0
        await closed(posting)
        await relay.quiet()


@pytest.mark.virtual_clock
async def test_abort_while_some_wait_for_another_try() -> None:
    async with relaying(Relay(answer=answering(RCPT="451 later"))) as relay:
        posting = mailer(relay, retry=Retry(initial=20, jitter=0))
        sending = asyncio.create_task(posting.send(b"hi", SENDER, WHO))
        await till(lambda: posting.stats.retried)
        posting.abort()
        with pytest.raises(asmtp.SMTPRecipientsRefused) as caught:
            await sending
        assert caught.value.state == "refused"  # which is all that is known
        assert now() < 1
        await closed(posting)


@pytest.mark.virtual_clock
async def test_abort_while_some_of_the_recipients_wait_for_another_try() -> None:
    async with relaying(Relay(answer=answering(RCPT_c="451 4.2.0 later"))) as relay:
        posting = mailer(relay, retry=Retry(initial=20, jitter=0))
        sending = asyncio.create_task(posting.send(b"hi", SENDER, [WHO, "c@y.example"]))
        await till(lambda: posting.stats.retried)
        posting.abort()
        receipt = await sending
        assert list(receipt.accepted) == [WHO]
        assert receipt.refused == {"c@y.example": (451, b"4.2.0 later")}
        await closed(posting)


async def test_abort_as_the_reply_comes_that_asks_for_another_transaction() -> None:
    async with relaying(Relay(SHAPES["both"], answer=answering(RCPT_c="452 4.5.3 too many"))) as relay:
        posting = mailer(relay)
        sending = asyncio.create_task(posting.send(b"hi", SENDER, [WHO, "c@y.example"]))
        await until(lambda: relay.letters)
        while not sending.done():
            await asyncio.sleep(0)
            if posting.stats.open and "BDAT" in relay.verbs:
                posting.abort()
        result = (await asyncio.gather(sending, return_exceptions=True))[0]
        assert getattr(result, "state", "sent") in ("in_doubt", "sent")
        await closed(posting)


@pytest.mark.parametrize("shape", SHAPES)
async def test_cancelled_inside_the_context_manager(shape: str) -> None:
    """Leaving does not wait for a server that says nothing."""
    async with relaying(Relay(SHAPES[shape])) as relay:
        others: list[asyncio.Task[Any]] = []

        async def body() -> None:
            async with mailer(relay, connections=2) as posting:
                await posting.send(b"hi", SENDER, WHO)
                relay.hold = 0
                others.extend(asyncio.create_task(posting.send(b"hi", SENDER, WHO)) for _ in range(10))
                await posting.send(b"hi", SENDER, WHO)

        running = asyncio.create_task(body())
        await relay.held.wait()
        await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(running, 5)
        for error in await asyncio.gather(*others, return_exceptions=True):
            assert isinstance(error, asmtp.SMTPException)
            assert error.state in ("not_sent", "in_doubt")
        await relay.quiet()


async def test_cancelled_while_it_is_closed() -> None:
    """A mailer of which aclose() was cancelled can be closed again."""
    async with relaying(Relay(SHAPES["both"], hold=2)) as relay:
        posting = mailer(relay)
        sending = asyncio.create_task(posting.send(b"hi", SENDER, WHO))
        await relay.held.wait()
        closing = asyncio.create_task(posting.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        relay.release()
        assert (await sending).complete
        await posting.aclose()
        await relay.quiet()


@pytest.mark.virtual_clock
async def test_closed_while_it_connects() -> None:
    """Closing waits for messages that wait for the connection."""
    async with relaying(Relay(latency=5)) as relay:
        posting = mailer(relay, close_timeout=None)
        sending = asyncio.create_task(posting.send(b"hi", SENDER, WHO))
        await asyncio.sleep(1)
        await posting.aclose()
        assert (await sending).complete
        await relay.quiet()


async def test_closed_twice_at_once() -> None:
    async with relaying(Relay()) as relay:
        posting = mailer(relay)
        sends = [asyncio.create_task(posting.send(b"hi", SENDER, WHO)) for _ in range(10)]
        await asyncio.sleep(0)
        await asyncio.gather(posting.aclose(), posting.aclose(), posting.drain())
        assert all(receipt.complete for receipt in await asyncio.gather(*sends))
        await relay.quiet()


# ---- its loop ---------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", LOOPS)
def test_it_belongs_to_one_loop(loop: str) -> None:
    make: Callable[[], asyncio.AbstractEventLoop] = LOOPS[loop]
    posting: list[AsyncMailer] = []

    async def first() -> None:
        async with relaying(Relay()) as relay:
            posting.append(mailer(relay))
            await posting[0].send(b"hi", SENDER, WHO)
            posting[0].abort()
            posting.append(mailer(relay))
            await posting[1].send(b"hi", SENDER, WHO)
        await until(lambda: not posting[1].stats.open)

    async def second() -> None:
        with pytest.raises(asmtp.SMTPStateError, match="belongs to the event loop"):
            await posting[1].send(b"hi", SENDER, WHO)
        (delivery,) = [delivery async for delivery in posting[1].send_all([item(0)])]
        assert delivery.state == "not_sent"
        assert "belongs to the event loop" in str(delivery.error)
        with pytest.raises(asmtp.SMTPStateError, match="belongs to the event loop"):
            await posting[1].aclose()
        with pytest.raises(asmtp.SMTPStateError, match="belongs to the event loop"):
            await posting[1].drain()

    with asyncio.Runner(loop_factory=make) as alive:
        alive.run(first())
        with asyncio.Runner(loop_factory=make) as runner:
            runner.run(second())
    posting.clear()
    gc.collect()


@pytest.mark.parametrize("first", ["send", "send_all"])
@pytest.mark.parametrize("loop", LOOPS)
def test_one_loop_after_the_other(loop: str, first: str) -> None:
    """One mailer serves several asyncio.run(), one after the other: it counts on, and opens new connections."""
    posting: list[AsyncMailer] = []

    async def use(number: int) -> None:
        async with relaying(Relay()) as relay:
            if not posting:
                posting.append(mailer(relay))
            manager, where = manager_of(posting[0]), asmtp.Relay(relay.host, relay.port, local_hostname="me.example")
            manager.settings = dataclasses.replace(manager.settings, relays=[where])
            if first == "send":
                await posting[0].send(b"hi", SENDER, WHO)
            assert [delivery.ok async for delivery in posting[0].send_all([item(1)])] == [True]
            if first == "send_all":
                await posting[0].send(b"hi", SENDER, WHO)
            assert len(relay.letters) == 2
            assert posting[0].stats.sent == 2 * number
            assert await posting[0].drain() == []

    for number in (1, 2, 3):
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(use(number))
    gc.collect()


@pytest.mark.sampled
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("then", ["aclose", "anext", "send", "abort", "nothing"])
@pytest.mark.parametrize("content", [b"hi", b"hi" * (1 << 16)], ids=["small", "large"])
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # sockets and transports that nobody has closed
def test_a_loop_that_ends_with_messages_in_flight(loop: str, then: str, content: bytes) -> None:
    """The messages are told of with the state that is known of them, and the mailer goes on in the next event loop."""
    use_in_two_loops(LOOPS[loop], then, content)
    gc.collect()


def use_in_two_loops(make: Callable[[], asyncio.AbstractEventLoop], then: str, content: bytes) -> None:
    stop = Stop()
    with relay_at(Relay(SHAPES["pipelining"], answer=stop)) as relay:
        posting = AsyncMailer(f"smtp://127.0.0.1:{relay.port}", local_hostname="me.example", connections=1, window=3)
        deliveries = posting.send_all((SENDER, WHO, content) for _ in range(5))
        told = []

        async def first() -> None:
            asking = asyncio.ensure_future(anext(deliveries))
            await asyncio.to_thread(stop.reached.wait, 10)
            assert not asking.done()  # and it is cancelled, as all tasks are at the end of a loop

        async def second() -> None:
            stop.go.set()
            if then == "aclose":
                told.extend(await deliveries.aclose())
            elif then == "anext":
                with pytest.raises(asmtp.SMTPStateError, match="not all was taken: the event loop was closed"):
                    while True:
                        told.append(await anext(deliveries))
            assert (await posting.send(b"hi", SENDER, WHO)).complete
            assert posting.stats.in_flight == 0
            assert posting.stats.in_doubt == 1
            assert posting.stats.not_sent >= 1
            await posting.aclose()

        with asyncio.Runner(loop_factory=make) as runner:
            runner.run(first())
        if then == "abort":
            posting.abort()
            assert posting.stats.in_flight == 0
            assert posting.stats.in_doubt == 1
            stop.go.set()
        else:
            with asyncio.Runner(loop_factory=make) as runner:
                runner.run(second())
        if then in ("aclose", "anext"):
            states = [delivery.state for delivery in told]
            assert states.count("in_doubt") == 1
            assert set(states) == {"in_doubt", "not_sent"}
            assert all(delivery.error is not None for delivery in told)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
async def test_one_that_was_used_is_pickled_by_its_settings(duplicate: Callable[[AsyncMailer], AsyncMailer]) -> None:
    async with relaying(Relay()) as relay:
        async with mailer(relay, connections=3, rate="900/s", retry=Retry(7)) as posting:
            await posting.send(*item(1)[2:], *item(1)[:2])
            again = duplicate(posting)
            assert posting.stats.sent == posting.stats.open == 1
        assert again.stats == Statistics(0, 0, 0, 0, 0, 0, 0, 0, 0)
        assert repr(again) == repr(posting)
        settings = manager_of(again).settings
        assert (settings.connections, settings.rate, settings.retry) == (3, Rate(900), Retry(7))
        async with again:
            await again.send(*item(2)[2:], *item(2)[:2])
            assert again.stats.sent == 1
    assert [letter.sender for letter in relay.letters] == [item(1)[0], item(2)[0]]


def test_it_is_made_without_a_loop() -> None:
    posting = AsyncMailer("smtp://127.0.0.1:9", local_hostname="me.example")
    assert sum(posting.stats) == 0
    deliveries = posting.send_all(list[bytes]())
    del deliveries
    asyncio.run(posting.aclose())


# ---- a server that is not what it was ---------------------------------------------------------


async def test_a_connection_that_the_server_has_closed_is_not_used() -> None:
    async with comings_and_goings(relay := Relay()) as comings, mailer(relay, retry=None) as posting:
        await posting.send(b"hi", SENDER, WHO)
        relay.drop()
        await relay.quiet()
        await until(lambda: not posting.stats.open)
        assert (await posting.send(b"hi", SENDER, WHO)).attempts == 1
        del comings


@pytest.mark.parametrize("bye", ["", "421 4.7.0 enough"])
async def test_one_message_after_the_other_to_a_server_that_closes(bye: str) -> None:
    """No try is counted, as the message is not to blame."""
    relay = Tired()
    relay.most, relay.bye = 2, bye
    async with relaying(relay), mailer(relay, retry=None) as posting:
        for number in range(10):
            receipt = await posting.send(b"%d" % number, SENDER, WHO)
            assert receipt.attempts == 1
        assert [letter.content for letter in relay.letters] == [b"%d\r\n" % number for number in range(10)]


async def test_nobody_holds_on_to_a_message() -> None:
    """The mailer does not keep a message that was sent."""
    async with relaying(Relay()) as relay, mailer(relay) as posting:
        made = email()
        kept = weakref.ref(made)
        receipt = await posting.send(made)
        del made
        await asyncio.sleep(0)
        gc.collect()
        assert kept() is None
        assert receipt.complete


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # the transport and the socket, which have no name
@pytest.mark.parametrize("closed", [False, True])
def test_one_that_is_never_closed_says_so_by_name(closed: bool) -> None:
    with relay_at(Relay()) as relay, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")

        async def main() -> None:
            posting = AsyncMailer(f"smtp://127.0.0.1:{relay.port}")
            await posting.send(b"hi", SENDER, WHO)
            if closed:
                await posting.aclose()

        asyncio.run(main())
        gc.collect()
        told = [str(warning.message) for warning in caught if "never closed" in str(warning.message)]
        caught.clear()  # a warning holds the mailer
        gc.collect()
        name = f"<asmtp.mailer.mailer.AsyncMailer 127.0.0.1:{relay.port}>"
    caught.clear()  # warnings hold the transport, which another test's collection would find
    gc.collect()
    assert told == ([] if closed else [f"{name} was never closed: use it with async with, or await aclose()"])
