"""A connection of a pool: every kind of message, what it may be given, and what becomes of a message in the end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import asmtp
from asmtp.client.content import WHOLE
from asmtp.mailer.connection import AHEAD, DEEP, SHALLOW, ConnectionState, PooledConnection, make_connection
from asmtp.mailer.message import DeliveryRequest, QueuedMessage, RequestState
from asmtp.mailer.relay_state import RelayState
from asmtp.protocol.envelope import Envelope
from asmtp.protocol.verdict import NotBegun
from tests.client.contents import KINDS, ROUTES, email
from tests.fakes.people import SENDER, WHO
from tests.fakes.relay import COMMON, SHAPES, Relay, relaying
from tests.fakes.script import expect, fin, scripted, send, silence, until

pytestmark = pytest.mark.usefixtures("bdat_at_once")


LIMITS = "LIMITS MAILMAX=20 RCPTMAX=50"


class Bench:
    """A connection, and what it tells its pool."""

    def __init__(self, relay: Any, state: RelayState | None = None, **options: Any) -> None:
        lmtp = getattr(relay, "lmtp", False)
        where = asmtp.Relay(relay.host, relay.port, lmtp=lmtp, **{"local_hostname": "me.example", **options})
        self.over: list[DeliveryRequest] = []
        self.lost: list[PooledConnection] = []
        self._news = asyncio.Event()
        self.connection = make_connection(state or RelayState(where), self._over, self._lost)

    def _over(self, request: DeliveryRequest, connection: PooledConnection) -> None:
        assert request.connection is connection is self.connection
        request.state = RequestState.ENDED
        self.over.append(request)
        self._news.set()

    def _lost(self, connection: PooledConnection) -> None:
        self.lost.append(connection)
        self._news.set()

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait until a try has ended, or the connection is lost, and the condition holds."""
        async with asyncio.timeout(60):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def request(
        self, content: Any = b"hello\r\n", *recipients: str, message: QueuedMessage | None = None
    ) -> DeliveryRequest:
        if message is None:
            envelope = Envelope(SENDER, recipients or [WHO], content=content)
            message = QueuedMessage("item", envelope, lambda message: None, 0)
        return DeliveryRequest(message, message.envelope)

    def begin(self, content: Any = b"hello\r\n", *recipients: str) -> DeliveryRequest:
        request = self.request(content, *recipients)
        self.connection.begin(request, asyncio.get_running_loop().time())
        return request

    def withdraw(self, request: DeliveryRequest) -> None:
        """Withdraw a request as a pool does it."""
        if request.state is RequestState.SENDING:
            self.connection.withdraw(request)

    async def ended(self, *requests: DeliveryRequest) -> None:
        """Wait until the tries of these requests have ended, each once."""
        await self.until(lambda: set(requests) <= set(self.over))
        assert all(self.over.count(request) == 1 for request in requests)

    async def sent(self, *requests: DeliveryRequest) -> None:
        await self.ended(*requests)
        for request in requests:
            assert request.error is None
            assert request.outcome is not None
            assert list(request.outcome.accepted) == list(request.envelope.recipients)

    async def error(self, request: DeliveryRequest) -> Any:
        await self.ended(request)
        assert request.outcome is None
        return request.error

    async def in_step(self, relay: Relay) -> None:
        """Check that another message goes over the connection, and arrives as it was written."""
        await self.sent(self.begin(b"in step\r\n", "step@y.example"))
        assert relay.letters[-1].content == b"in step\r\n"
        assert relay.letters[-1].recipients == ["step@y.example"]


@contextlib.asynccontextmanager
async def connection_to(relay: Any, state: RelayState | None = None, **options: Any) -> AsyncIterator[Bench]:
    """Run with an open connection, and close it."""
    bench = Bench(relay, state, **options)
    try:
        await bench.connection.open()
        bench.connection.idle_since = asyncio.get_running_loop().time()
        yield bench
    finally:
        await bench.connection.close()
    await bench.until(lambda: bench.lost)
    assert bench.lost == [bench.connection]


# ---- content ---------------------------------------------------------------------


LARGE = b"Subject: hi\r\n\r\n" + b".hello, hello\r\n" * (WHOLE // 15 + 1)


@pytest.mark.parametrize("kind", ROUTES)
async def test_content_arrives_octet_for_octet(kind: str, shape: tuple[str, ...], tmp_path: Path) -> None:
    content, arrives = KINDS[kind](tmp_path / "m")
    async with relaying(Relay(shape)) as relay, connection_to(relay) as bench:
        await bench.sent(bench.begin(content))
        assert [letter.content for letter in relay.letters] == [arrives]
        assert bench.connection.load == 0
        assert bench.connection.begun == 1
        await bench.in_step(relay)


async def test_many_at_once(shape: tuple[str, ...], tmp_path: Path) -> None:
    """Messages of all kinds, begun without waiting, arrive as they are, and the counts are right."""
    async with relaying(Relay(shape)) as relay, connection_to(relay) as bench:
        requests, expected, files = [], [], []
        for number, (kind, make) in enumerate(KINDS.items()):
            content, arrives = make(tmp_path / str(number))
            if kind.endswith("file"):
                files.append(content)
            requests.append(bench.begin(content))
            expected.append(arrives)
        assert bench.connection.load == len(requests)
        await bench.sent(*requests)
        assert sorted(letter.content for letter in relay.letters) == sorted(expected)
        for file in files:
            file.close()
        assert len(bench.over) == len(requests) == bench.connection.begun
        assert bench.connection.load == 0
        assert len(relay.connections) == 1


async def test_lmtp() -> None:
    relay = Relay(SHAPES["both"], lmtp=True, answer=lambda verb, line: "550 5.2.2 full" if verb == ".full@y" else None)
    async with relaying(relay), connection_to(relay) as bench:
        request = bench.begin(b"hello\r\n", WHO, "full@y")
        await bench.ended(request)
        assert request.outcome is not None
        assert (list(request.outcome.accepted), list(request.outcome.refused)) == ([WHO], ["full@y"])
        assert relay.verbs[0] == "LHLO"


# ---- message objects ---------------------------------------------------------------------------

INTERNATIONAL = "j\u00f6rg@y.example"


@pytest.mark.parametrize("eight", [True, False])
@pytest.mark.parametrize(
    "text", ["gr\u00fc\u00dfe\n", "gr\u00fc\u00dfe, hello\n" * 10_000, "gr\u00fc\u00dfe, hello\n" * 30_000]
)
async def test_eight_bits_only_where_they_are_taken(text: str, eight: bool, shape: tuple[str, ...]) -> None:
    common = COMMON if eight else COMMON[1:]
    async with relaying(Relay(shape, common)) as relay, connection_to(relay) as bench:
        await bench.sent(bench.begin(email(text)))
        letter = relay.letters[0]
        assert letter.content.isascii() is not eight
        assert ("BODY=8BITMIME" in letter.parameters) is eight
        assert (text.encode().strip() in letter.content.replace(b"\r\n", b"\n")) is eight


@pytest.mark.parametrize("lines", [1, 30_000])
async def test_an_international_address(lines: int) -> None:
    message = email("hello\n" * lines)
    message.replace_header("To", INTERNATIONAL)
    async with relaying(Relay(SHAPES["both"])) as relay, connection_to(relay) as bench:
        await bench.sent(bench.begin(message, INTERNATIONAL))
        letter = relay.letters[0]
        assert "SMTPUTF8" in letter.parameters
        assert letter.recipients == [INTERNATIONAL]
        assert f"To: {INTERNATIONAL}".encode() in letter.content
        # The same message to others is written in ASCII.
        await bench.sent(bench.begin(message, WHO))
        assert relay.letters[1].content.isascii()
        assert "SMTPUTF8" not in relay.letters[1].parameters


@pytest.mark.parametrize("content", [b"hello", b"x" * (WHOLE + 1), email("hello\n")], ids=["small", "large", "message"])
async def test_an_international_address_that_is_not_taken(content: Any, shape: tuple[str, ...]) -> None:
    async with relaying(Relay(shape, ("8BITMIME",))) as relay, connection_to(relay) as bench:
        error = await bench.error(bench.begin(content, INTERNATIONAL))
        assert isinstance(error, asmtp.SMTPNotSupportedError)
        assert relay.verbs == ["EHLO"]
        await bench.in_step(relay)


@pytest.mark.parametrize("lines", [1, 10_000, 30_000])
async def test_a_message_for_several_kinds_of_servers(lines: int) -> None:
    async with (
        relaying(Relay(SHAPES["both"])) as modern,
        relaying(Relay(SHAPES["none"], ())) as old,
        connection_to(modern) as first,
        connection_to(old) as second,
    ):
        request = first.request(email("gr\u00fc\u00dfe, hello\n" * lines))
        for bench in (first, second, second, first):
            another = bench.request(message=request.message)
            bench.connection.begin(another, 0)
            await bench.sent(another)
        assert len({letter.content for letter in modern.letters}) == 1
        assert len({letter.content for letter in old.letters}) == 1
        assert old.letters[0].content.isascii()


# ---- what cannot be sent -----------------------------------------------------------------------


async def failing() -> AsyncIterator[bytes]:
    yield b"x" * 1000
    raise LookupError("no more")


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda path: path, FileNotFoundError),
        (lambda path: failing(), LookupError),
        (lambda path: "\u00e9" * (WHOLE + 1), UnicodeEncodeError),
    ],
    ids=["path", "iterator", "str"],
)
async def test_content_that_cannot_be_had(
    make: Callable[[Path], Any], kind: type[Exception], shape: tuple[str, ...], tmp_path: Path
) -> None:
    async with relaying(Relay(shape)) as relay, connection_to(relay) as bench:
        error = await bench.error(bench.begin(make(tmp_path / "no such file")))
        assert isinstance(error, kind)
        assert relay.letters == []
        if bench.connection.usable:
            await bench.in_step(relay)


async def test_a_message_over_the_server_s_size(shape: tuple[str, ...]) -> None:
    async with relaying(Relay(shape, ("SIZE 100",))) as relay, connection_to(relay) as bench:
        for content in (b"x" * 200, b"x" * 100_000):
            error = await bench.error(bench.begin(content))
            assert isinstance(error, asmtp.SMTPSenderRefused)
            assert (error.smtp_code, error.state) == (552, "refused")
        assert relay.verbs == ["EHLO"]
        await bench.in_step(relay)


async def test_what_the_server_says_is_handed_back(shape: tuple[str, ...]) -> None:
    def answer(verb: str, line: str) -> str | None:
        return "550 5.1.1 no" if "no@" in line else "554 5.7.1 spam" if verb == "." and "spam" in line else None

    async with relaying(Relay(shape, answer=answer)) as relay, connection_to(relay) as bench:
        requests = [
            bench.begin(b"hello", "no@y"),
            bench.begin(b"spam"),
            bench.begin(b"hello", WHO, "no@y"),
            bench.begin(),
        ]
        await bench.ended(*requests)
        assert isinstance(requests[0].error, asmtp.SMTPRecipientsRefused)
        assert isinstance(requests[1].error, asmtp.SMTPDataError)
        assert requests[2].outcome is not None
        assert list(requests[2].outcome.refused) == ["no@y"]
        assert requests[3].outcome is not None
        await bench.in_step(relay)


@pytest.mark.parametrize(
    "content", [b"hello", LARGE, email("hello, hello\n" * 10_000)], ids=["small", "large", "message"]
)
async def test_begun_on_a_connection_that_is_gone(content: Any, shape: tuple[str, ...]) -> None:
    """The pool gives such a connection no message; but it may end in the same pass of the loop."""
    async with relaying(Relay(shape)) as relay, connection_to(relay) as bench:
        request = bench.begin(content)
        bench.connection.close()
        later = bench.begin(content)
        for each in (request, later):
            error = await bench.error(each)
            assert isinstance(error, asmtp.SMTPServerDisconnected)
            assert error.state == "not_sent" or (each is request and type(content) is bytes and len(content) < WHOLE)
        assert bench.connection.load == 0


# ---- a connection on which nothing has happened for a while ------------------------------------


@pytest.mark.virtual_clock
@pytest.mark.parametrize(("seconds", "apart"), [(0, False), (0.5, False), (1, False), (1.01, True), (3600, True)])
async def test_content_waits_for_the_envelope(seconds: float, apart: bool) -> None:
    async with relaying(Relay(SHAPES["both"])) as relay, connection_to(relay) as bench:
        await asyncio.sleep(seconds)
        before = len(relay.reads)
        await bench.sent(bench.begin(b"hello\r\n"), bench.begin(b"again\r\n"))
        reads = b"|".join(relay.reads[before:])
        assert (b"rcpt to:<b@y.example>\r\n|BDAT 7 LAST\r\nhello" in reads) is apart
        # Only an answer shows that a connection is not dead: it is given one message at a time until then.
        assert (b"hello\r\nrset\r\nmail" in reads.replace(b"|", b"")) is not apart
        # Neither the next nor another while it is busy.
        assert b"rcpt to:<b@y.example>\r\nBDAT 7 LAST\r\nagain" in reads


@pytest.mark.virtual_clock
async def test_a_busy_connection_is_not_stale(shape: tuple[str, ...]) -> None:
    async with relaying(Relay(shape, latency=5)) as relay, connection_to(relay) as bench:
        first = bench.begin(b"first\r\n")
        await asyncio.sleep(3)
        second = bench.begin(b"second\r\n")
        await bench.sent(first, second)
        if shape == SHAPES["both"]:
            assert relay.reads[1:] == [b"".join(read) for read in ([relay.reads[1]], [relay.reads[2]])]
            assert b"LAST\r\nsecond" in relay.reads[2]


@pytest.mark.virtual_clock
@pytest.mark.parametrize("seconds", [0.5, 2])
async def test_what_is_known_of_a_message_on_a_dead_connection(seconds: float) -> None:
    """If the connection was just used, the message may have gone through; if it was not, the server cannot have it."""
    hello = [send("220 hi"), expect("ehlo me.example"), send("250-hi", "250-PIPELINING", "250 CHUNKING")]

    async def reading(peer: Any) -> None:
        await peer.more()
        await peer.take(peer.coming)

    async with scripted([*hello, reading, fin]) as server, connection_to(server) as bench:
        await asyncio.sleep(seconds)
        error = await bench.error(bench.begin(b"hello\r\n"))
        assert error.state == ("in_doubt" if seconds < 1 else "not_sent")


# ---- how much it may be given ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offers", "options", "depth"),
    [
        ("none", {}, SHALLOW),
        ("chunking", {}, SHALLOW),
        ("pipelining", {}, SHALLOW),
        ("both", {}, 100),
        ("both", {"window": 7}, 7),
        ("both", {"window": 1}, 1),
        ("pipelining", {"window": 1}, SHALLOW),
        ("both", {"pipelining": False}, SHALLOW),
        ("both", {"chunking": False}, SHALLOW),
    ],
)
async def test_depth(offers: str, options: dict[str, Any], depth: int) -> None:
    async with relaying(Relay(SHAPES[offers], hold=2)) as relay, connection_to(relay, **options) as bench:
        requests = []
        for given in range(depth):
            assert bench.connection.room == depth - given
            requests.append(bench.begin())
        assert bench.connection.room == 0
        relay.release()
        await bench.sent(*requests)
        assert bench.connection.room == depth


async def test_depth_of_a_server_that_takes_nothing_behind_another() -> None:
    async with relaying(Relay(SHAPES["both"])) as relay:
        state = RelayState(asmtp.Relay(relay.host, relay.port))
        state.overlap = False
        async with connection_to(relay, state) as bench:
            assert bench.connection.room == SHALLOW
            requests = [bench.begin() for _ in range(3)]
            await bench.sent(*requests)
            assert [verb for verb in relay.verbs if verb in ("MAIL", "RSET")] == ["MAIL"] * 3


@pytest.mark.parametrize(
    ("each", "depth"), [(0, DEEP), (0.0001, DEEP), (AHEAD / DEEP, DEEP), (AHEAD / 8, 8), (AHEAD, SHALLOW), (5, SHALLOW)]
)
async def test_depth_of_what_goes_one_by_one_is_some_20_ms(each: float, depth: int, shape: tuple[str, ...]) -> None:
    async with relaying(Relay(shape)) as relay, connection_to(relay) as bench:
        connection = bench.connection
        connection.busy_since = 0
        connection.measure(10 * each, 10)
        assert connection.room == (100 if shape == SHAPES["both"] else depth)


async def test_no_room_is_never_less_than_none() -> None:
    """A connection may have been given more messages, before its server became slow, than it would be given now."""
    async with relaying(Relay(SHAPES["pipelining"], hold=2)) as relay, connection_to(relay) as bench:
        connection = bench.connection
        connection.measure(connection.busy_since, 10)
        requests = [bench.begin() for _ in range(DEEP)]
        assert connection.room == 0
        connection.measure(connection.busy_since + 50, 10)
        assert (connection.room, connection.load) == (0, DEEP)
        relay.release()
        await bench.sent(*requests)
        assert connection.room == SHALLOW


async def test_busy(shape: tuple[str, ...]) -> None:
    """A connection is busy if it has more than half of the messages that it can have."""
    async with relaying(Relay(shape, hold=2)) as relay, connection_to(relay, window=4) as bench:
        requests = []
        for given in range(4):
            assert bench.connection.busy is (given > 2)
            requests.append(bench.begin())
        assert bench.connection.busy
        relay.release()
        await bench.sent(*requests)
        assert not bench.connection.busy


@pytest.mark.parametrize(
    ("offered", "ours", "limit"),
    [
        ("", None, None),
        ("", 5, 5),
        (" MAILMAX=3", None, 3),
        (" MAILMAX=3", 5, 3),
        (" MAILMAX=3", 2, 2),
        (" MAILMAX=0", 5, 5),
    ],
)
async def test_how_many_messages_it_takes(offered: str, ours: int | None, limit: int | None) -> None:
    async with relaying(Relay((*SHAPES["both"], f"LIMITS{offered}"))) as relay:
        bench = Bench(relay, window=4)
        connection = bench.connection
        connection.limit = ours
        await connection.open()
        assert connection.limit == limit
        for given in range(limit or 10):
            assert connection.usable
            assert connection.room == min(4, (limit or 100) - given)
            await bench.sent(bench.begin())
        assert connection.usable is (limit is None)
        assert connection.room == (4 if limit is None else 0)
        await connection.leave()


@pytest.mark.parametrize(
    ("offered", "learnt", "most"),
    [("", None, None), ("", 7, 7), (" RCPTMAX=5", None, 5), (" RCPTMAX=5", 7, 5), (" RCPTMAX=9", 7, 7)],
)
async def test_how_many_recipients_it_takes(offered: str, learnt: int | None, most: int | None) -> None:
    async with relaying(Relay((f"LIMITS{offered}",))) as relay, connection_to(relay) as bench:
        if learnt is not None:
            bench.connection.relay.crowded(learnt, 1000, certain=True)
        assert bench.connection.most_recipients(1000) == most
        assert bench.connection.most_recipients(2000) == bench.connection._recipients


async def test_when_it_is_of_use() -> None:
    async with relaying(Relay()) as relay, connection_to(relay) as bench:
        connection = bench.connection
        assert (connection.usable, connection.room, connection.left) == (True, SHALLOW, 0)
        assert connection.state is ConnectionState.SERVING
        connection.retire()
        assert connection.retiring
        assert not connection.usable
        assert connection.room == 0
        connection.state = ConnectionState.SERVING
        relay.say("421 4.3.2 going down")
        await bench.until(lambda: bench.lost)
        assert not connection.usable
        assert connection.room == 0


async def test_before_it_is_open() -> None:
    connection = Bench(asmtp.Relay("127.0.0.1", 1)).connection
    assert not connection.usable
    assert connection.room == 0
    with pytest.raises(OSError, match="Connect call failed"):
        await connection.open()
    assert not connection.usable


# ---- how long a message takes ------------------------------------------------------------------


async def test_measuring() -> None:
    """The average moves a tenth of the way for each message; the relay's is that of the last connection seen."""
    async with relaying(Relay()) as relay, connection_to(relay) as bench:
        connection = bench.connection
        connection.service = 1.0
        connection.busy_since = 100.0
        connection.measure(102.0, 1)
        assert connection.service == pytest.approx(1.0 + 0.1 * (2.0 - 1.0))
        assert connection.relay.service == connection.service
        connection.measure(104.0, 4)  # half a second each
        assert connection.service == pytest.approx(1.1 + 0.4 * (0.5 - 1.1))
        connection.measure(107.0, 10)
        assert connection.service == pytest.approx(0.3)
        connection.measure(108.0, 100)
        assert connection.service == pytest.approx(0.01)
        assert connection.answered == 115
        assert Bench(relay, connection.relay).connection.service == connection.service


async def test_a_connection_that_has_just_answered_is_not_stale() -> None:
    """It may be given a message before the pool has seen that it is idle: the content need not wait then."""
    async with relaying(Relay(SHAPES["both"])) as relay, connection_to(relay) as bench:
        connection = bench.connection
        now = asyncio.get_running_loop().time()
        connection.idle_since = now - 100
        connection.measure(now, 1)
        await bench.sent(bench.begin())
        assert relay.reads[-1].count(b"BDAT") == relay.reads[-1].lower().count(b"mail") == 1


@pytest.mark.virtual_clock
async def test_measured_is_the_time_in_which_it_is_busy() -> None:
    async with relaying(Relay(latency=0.5)) as relay, connection_to(relay) as bench:
        connection = bench.connection
        loop = asyncio.get_running_loop()
        await asyncio.sleep(100)
        begun = loop.time()
        request = bench.begin()
        assert connection.busy_since == begun
        await bench.sent(request)
        took = loop.time() - begun
        assert took == pytest.approx(2)  # MAIL, RCPT, DATA, content
        connection.service = 0
        connection.measure(loop.time(), 1)
        assert connection.service == pytest.approx(0.1 * took)


# ---- between messages --------------------------------------------------------------------------


def refusing(verb: str, line: str) -> str | None:
    return "550 5.1.1 no" if "no@" in line else None


async def test_a_transaction_that_may_be_open_is_ended(shape: tuple[str, ...]) -> None:
    async with relaying(Relay(shape, answer=refusing)) as relay, connection_to(relay) as bench:
        bench.connection.tidy()  # nothing to do
        await bench.sent(bench.begin())
        bench.connection.tidy()
        assert "RSET" not in relay.verbs
        await bench.error(bench.begin(b"hello", "no@y"))
        bench.connection.tidy()
        assert not bench.connection.session.idle
        assert bench.connection.load == 0
        bench.connection.tidy()
        await until(lambda: bench.connection.session.idle)
        bench.connection.tidy()
        assert relay.verbs.count("RSET") == 1
        assert relay.verbs[-1] == "RSET"
        await bench.in_step(relay)
        assert relay.verbs.count("RSET") == 1


async def test_a_busy_connection_is_left_alone() -> None:
    """The RSET goes with the next message."""
    async with relaying(Relay(SHAPES["both"], answer=refusing)) as relay, connection_to(relay) as bench:
        refused, behind = bench.begin(b"hello", "no@y"), bench.begin()
        bench.connection.tidy()
        await bench.ended(refused, behind)
        bench.connection.tidy()
        assert relay.verbs == ["EHLO", "MAIL", "RCPT", "BDAT", "RSET", "MAIL", "RCPT", "BDAT"]


async def test_a_connection_that_is_tidied_serves() -> None:
    """It takes messages meanwhile, however long the RSET takes: nothing tells the pool of the end of that."""
    async with relaying(Relay(SHAPES["both"], answer=refusing)) as relay, connection_to(relay) as bench:
        await bench.error(bench.begin(b"hello", "no@y"))
        connection, now = bench.connection, asyncio.get_running_loop().time()
        connection.tidy()
        assert not connection.session.idle
        assert connection.load == 0
        connection.busy_since = now - 100
        assert connection.serves(now)
        request = bench.begin()
        assert connection.busy_since >= now
        await bench.sent(request)


async def test_a_server_out_of_step_is_left() -> None:
    def answer(verb: str, line: str) -> str | None:
        return "503 5.5.1 what?" if verb == "RSET" else refusing(verb, line)

    async with relaying(Relay(answer=answer)) as relay, connection_to(relay) as bench:
        await bench.error(bench.begin(b"hello", "no@y"))
        assert bench.connection.room
        bench.connection.tidy()
        await bench.until(lambda: bench.lost)
        assert not bench.connection.usable
        assert relay.verbs[-1] == "RSET"


async def test_a_connection_that_ends_over_it() -> None:
    async with relaying(Relay(answer=refusing)) as relay, connection_to(relay) as bench:
        await bench.error(bench.begin(b"hello", "no@y"))
        bench.connection.tidy()
        relay.drop()
        await bench.until(lambda: bench.lost)
        bench.connection.tidy()  # and nothing comes of it any more
        assert not bench.connection.usable


async def test_retiring_is_to_say_quit() -> None:
    async with relaying(Relay()) as relay, connection_to(relay) as bench:
        await bench.sent(bench.begin())
        await bench.connection.leave()
        assert relay.verbs[-1] == "QUIT"
        await asyncio.wait_for(relay.quiet(), 5)
        assert bench.lost == [bench.connection]
        await bench.connection.leave()  # there is nothing left to do
        assert relay.verbs.count("QUIT") == 1


async def test_retiring_does_not_raise() -> None:
    def answer(verb: str, line: str) -> str | None:
        return "550 5.0.0 stay" if verb == "QUIT" else None

    async with relaying(Relay(answer=answer)) as relay, connection_to(relay) as bench:
        await bench.connection.leave()
        assert not bench.connection.usable
    async with relaying(Relay()) as relay, connection_to(relay) as bench:
        relay.drop()
        await bench.connection.leave()
        assert not bench.connection.usable


@pytest.mark.virtual_clock
async def test_retiring_does_not_wait_for_ever() -> None:
    hello = [send("220 hi"), expect("ehlo me.example"), send("250 hi")]
    async with scripted([*hello, expect("quit"), silence]) as server, connection_to(server) as bench:
        await bench.connection.leave()
        assert asyncio.get_running_loop().time() == pytest.approx(10, abs=1.1)
        assert bench.lost == [bench.connection]


# ---- a message that nobody wants any more ------------------------------------------------------

EITHER = {"small": b"hello\r\n", "large": LARGE}


async def test_withdrawn_before_it_is_written(shape: tuple[str, ...]) -> None:
    """The message waits for the turn behind another; neither that one nor the connection is harmed."""
    async with relaying(Relay(shape, hold=2)) as relay, connection_to(relay, window=1) as bench:
        first, second, third = bench.begin(b"first\r\n"), bench.begin(b"second\r\n"), bench.begin(b"third\r\n")
        bench.withdraw(second)
        await bench.ended(second)
        assert (second.outcome, second.error) == (None, None)
        relay.release()
        await bench.sent(first, third)
        assert [letter.content for letter in relay.letters] == [b"first\r\n", b"third\r\n"]
        await bench.in_step(relay)


async def test_withdrawn_when_all_of_it_is_written() -> None:
    """The message's outcome is known then."""
    async with relaying(Relay(SHAPES["both"], hold=2)) as relay, connection_to(relay) as bench:
        request, other = bench.begin(b"gone\r\n"), bench.begin(b"other\r\n")
        await asyncio.sleep(0)
        bench.withdraw(request)
        assert request not in bench.over
        relay.release()
        await bench.sent(request, other)
        assert [letter.content for letter in relay.letters] == [b"gone\r\n", b"other\r\n"]
        await bench.in_step(relay)


@pytest.mark.parametrize("content", EITHER)
@pytest.mark.parametrize("owed", [2, 3, 4, 5])
async def test_withdrawn_at_every_reply(owed: int, content: str, shape: tuple[str, ...]) -> None:
    """Whichever reply is awaited, the message is handed back, and the connection is in step or at its end."""
    async with relaying(Relay(shape, hold=owed)) as relay, connection_to(relay) as bench:
        request = bench.begin(EITHER[content])
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(relay.held.wait(), 0.05)
        bench.withdraw(request)
        relay.release()
        await bench.ended(request)
        await until(lambda: bench.connection.session.idle)
        assert (request.outcome is not None) <= (len(relay.letters) == 1)
        if bench.connection.usable:
            await bench.in_step(relay)
        else:
            assert request.outcome is None


@pytest.mark.parametrize("lines", [30_000, 10_000])
async def test_withdrawn_before_its_task_has_begun(lines: int, shape: tuple[str, ...]) -> None:
    """The task has not begun if the message was begun in the same pass of the loop."""
    async with relaying(Relay(shape)) as relay, connection_to(relay) as bench:
        request = bench.begin(email("hello, hello\n" * lines))
        bench.withdraw(request)
        await bench.ended(request)
        assert request.outcome is None
        assert bench.connection.load == 0
        assert relay.verbs == ["EHLO"]
        await bench.in_step(relay)


@pytest.mark.parametrize("owed", [2, 3, 4, 5])
async def test_what_is_known_of_a_large_one_that_is_withdrawn(owed: int, shape: tuple[str, ...]) -> None:
    """If the end of the content was written, the message is in doubt."""
    async with relaying(Relay(shape, hold=owed)) as relay, connection_to(relay) as bench:
        request = bench.begin(LARGE)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(relay.held.wait(), 0.05)
        bench.withdraw(request)
        relay.release()
        await bench.ended(request)
        await until(lambda: bench.connection.session.idle)
        state = getattr(request.error, "state", "sent" if request.outcome else "not_sent")
        assert relay.letters == [] or state != "not_sent"


async def test_withdrawn_while_its_content_is_awaited(shape: tuple[str, ...]) -> None:
    """The connection closes the caller's content, and the message does not arrive."""
    closed = asyncio.Event()
    waiting = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            yield b"x" * 1000
            waiting.set()
            await asyncio.sleep(1000)
        finally:
            closed.set()

    async with relaying(Relay(shape)) as relay, connection_to(relay) as bench:
        request = bench.begin(endless())
        await asyncio.wait_for(waiting.wait(), 5)
        bench.withdraw(request)
        await bench.ended(request)
        assert closed.is_set()
        assert isinstance(request.error, asyncio.CancelledError)
        assert bench.connection.load == (1 if bench.connection.session.load else 0)
        assert relay.letters == []
        if bench.connection.usable:
            assert "CHUNKING" in shape
            await bench.in_step(relay)


async def test_withdrawn_twice(shape: tuple[str, ...]) -> None:
    async with relaying(Relay(shape, hold=2)) as relay, connection_to(relay, window=1) as bench:
        first, second, large = bench.begin(), bench.begin(b"second\r\n"), bench.begin(LARGE)
        for _ in range(2):
            bench.withdraw(first)
            bench.withdraw(large)
        bench.withdraw(second)
        relay.release()
        await bench.ended(first, second, large)
        await until(lambda: not bench.connection.load)


# ---- a server that does not take one message behind another ------------------------------------


async def test_what_was_not_begun_is_handed_back() -> None:
    relay = Relay(SHAPES["both"], quick_tempered=True)
    async with relaying(relay), connection_to(relay) as bench:
        first, *behind = [bench.begin() for _ in range(5)]  # the first leaves at once, the others in one write
        await bench.sent(first)
        await bench.ended(*behind)
        refused = [request for request in behind if request.outcome is None]
        assert len(refused) >= 3
        for request in refused:
            assert isinstance(request.error, NotBegun)
            assert request.error.reply.code == 503
        assert len(relay.letters) == 5 - len(refused)


async def test_alone() -> None:
    """A connection that sends one by one from then on is given no more messages than it needs for that."""
    relay = Relay(SHAPES["both"], quick_tempered=True)
    async with relaying(relay), connection_to(relay) as bench:
        assert bench.connection.room == 100
        bench.connection.alone()
        assert bench.connection.room == SHALLOW
        assert not bench.connection.relay.overlap
        await bench.sent(*[bench.begin() for _ in range(4)])
        assert "RSET" not in relay.verbs
        bench.connection.measure(asyncio.get_running_loop().time(), 1)
        assert SHALLOW <= bench.connection.room <= DEEP


async def test_a_large_message_is_begun_again_at_once() -> None:
    """The other connections of the relay profit from what this one has learnt."""

    def answer(verb: str, line: str) -> str | None:
        return "503 5.5.1 not now" if verb == "RSET" and relay.verbs.count("RSET") == 1 else None

    relay = Relay(SHAPES["both"], answer=answer)
    async with relaying(relay), connection_to(relay) as bench:
        first, large = bench.begin(), bench.begin(LARGE)
        await bench.sent(first, large)
        assert [letter.content for letter in relay.letters] == [b"hello\r\n", LARGE]
        assert relay.verbs.count("RSET") == 2
        assert not bench.connection.relay.overlap
        assert bench.connection.room == SHALLOW


async def test_silence_from_the_server() -> None:
    hello = [send("220 hi"), expect("ehlo me.example"), send("250 hi")]
    async with scripted([*hello, expect("mail from:<a@x.example>"), silence]) as server, connection_to(server) as bench:
        request = bench.begin()
        await asyncio.sleep(0.01)
        assert request not in bench.over
        bench.connection.close()
        error = await bench.error(request)
        assert error.state == "not_sent"
