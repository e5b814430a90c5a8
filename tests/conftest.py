"""Set up every test: both event loops (or a virtual clock), and checks that nothing blocks and nothing is left."""

from __future__ import annotations

import asyncio
import functools
import gc
import re
import ssl
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import anyio.to_thread
import pytest
import pytest_asyncio
import trustme
import uvloop
from blockbuster import BlockBuster, BlockBusterFunction
from coverage import Coverage
from hypothesis import settings

from asmtp.protocol import transaction
from asmtp.protocol.session import Session
from asmtp.protocol.state import Chunking
from asmtp.transport.connection import Connection
from tests.fakes.clock import VirtualClockLoop
from tests.fakes.relay import SHAPES

settings.register_profile("asmtp", deadline=None)  # a busy machine makes no test fail
settings.load_profile("asmtp")

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

LOOPS: dict[str, LoopFactory] = {"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop.new_event_loop}

MORE_THAT_BLOCKS = (
    "socket.getaddrinfo", "socket.getfqdn", "socket.gethostbyname", "ssl.create_default_context", "builtins.open",
)  # fmt: skip


SAMPLE = 7
"""One case in so many of a `sampled` test is run by ``-m "not long"``: a prime, so that the values of all parameters
take turns."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "virtual_clock: run on a loop whose clock jumps to the next timer")


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, LoopFactory]:
    """Run every async test on both loops, or on the virtual clock."""
    if item.get_closest_marker("virtual_clock") is not None:
        return {"virtual_clock": VirtualClockLoop}
    return LOOPS


@pytest.hookimpl(tryfirst=True)  # before the marks are looked at
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    _mark_all_but_a_sample(items)
    for item in items:
        if pytest_asyncio.is_async_test(item):
            for name in ("nothing_blocks", "nothing_is_left"):
                if name not in item.fixturenames:
                    item.fixturenames.insert(0, name)


def _mark_all_but_a_sample(items: list[pytest.Item]) -> None:
    """Mark the cases of a test that is `sampled` as long, but for every seventh of them."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sampled") is not None:
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for several in cases.values():
        several.sort(key=lambda item: item.nodeid)  # whatever the order in which they will run
        for place, item in enumerate(several):
            if place % SAMPLE:
                item.add_marker(pytest.mark.long)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Tell coverage which test runs, so that the lines of its tasks and callbacks count for it, too."""
    coverage = Coverage.current()
    if coverage is not None:
        coverage.switch_context(item.nodeid.removesuffix(".py").replace("/", ".").replace(".py::", "."))
    try:
        return (yield)
    finally:
        if coverage is not None:
            coverage.switch_context("")


@functools.cache
def blockbuster() -> BlockBuster:
    """Return the blocker.  It is made once, as that takes time."""
    made = BlockBuster("asmtp")
    for name in MORE_THAT_BLOCKS:
        made.functions[name] = BlockBusterFunction(None, name, scanned_modules="asmtp")
    return made


@pytest.fixture
def nothing_blocks() -> Iterator[None]:
    """Fail the test if a call in asmtp would block the loop."""
    blockbuster().activate()
    yield
    blockbuster().deactivate()


@pytest.fixture
async def nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Fail the test if a task goes on behind it, or if an exception is lost."""
    loop = asyncio.get_running_loop()
    complaints: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda loop, context: complaints.append(context))
    if isinstance(loop, VirtualClockLoop):
        # So that the clock stands still meanwhile.
        run_sync = lambda function, *args, **_: loop.run_in_executor(None, function, *args)  # noqa: E731
        monkeypatch.setattr(anyio.to_thread, "run_sync", run_sync)
    yield
    for _ in range(3):
        await asyncio.sleep(0)
    left = asyncio.all_tasks() - {asyncio.current_task()}
    gc.collect(1)
    assert not left
    assert not complaints


@pytest.fixture(params=sorted(SHAPES))
def shape(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Return what a server offers: each set of keywords that decides how a message is written."""
    return SHAPES[request.param]


@pytest.fixture
def transports(monkeypatch: pytest.MonkeyPatch) -> list[asyncio.Transport]:
    """Return the client's transports, in the order in which they were made."""
    made: list[asyncio.Transport] = []
    original = Connection.connection_made

    def connection_made(self: Connection, transport: Any) -> None:
        made.append(transport)
        original(self, transport)

    monkeypatch.setattr(Connection, "connection_made", connection_made)
    return made


class _Counting:
    """A transport that remembers what was written to it."""

    def __init__(self, transport: asyncio.Transport, writes: list[bytes]) -> None:
        self._transport = transport
        self._writes = writes

    def write(self, data: bytes) -> None:
        self._writes.append(bytes(data))
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return what the client has written, one entry for each `send`.  Not for TLS."""
    seen: list[bytes] = []
    original = Connection.connection_made

    def connection_made(self: Connection, transport: Any) -> None:
        original(self, _Counting(transport, seen))  # type: ignore[arg-type]

    monkeypatch.setattr(Connection, "connection_made", connection_made)
    return seen


@dataclass
class Certificates:
    """A CA of our own, and contexts around it."""

    ca: trustme.CA

    @functools.cached_property
    def server(self) -> ssl.SSLContext:
        """Return a context for a server at 127.0.0.1 and localhost."""
        return self.showing(self.issued)

    @functools.cached_property
    def issued(self) -> trustme.LeafCert:
        """Return the certificate that `server` shows."""
        return self.ca.issue_cert("127.0.0.1", "localhost")

    def server_for(self, *names: str) -> ssl.SSLContext:
        return self.showing(self.ca.issue_cert(*names))

    @staticmethod
    def showing(certificate: trustme.LeafCert) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
        return context

    @functools.cached_property
    def trusting(self) -> ssl.SSLContext:
        """Return a context for a client that trusts the CA."""
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        return context

    def client(self, **attributes: Any) -> ssl.SSLContext:
        """Return a new context for a client that trusts the CA, with attributes; `certificate`: it has one to show."""
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        if attributes.pop("certificate", False):
            self.ca.issue_cert("client@example.com").configure_cert(context)
        for name, value in attributes.items():
            setattr(context, name, value)
        return context

    @functools.cached_property
    def wary(self) -> ssl.SSLContext:
        """Return a context for a client that does not trust the CA."""
        return ssl.create_default_context()


@pytest.fixture(scope="session")
def certificates() -> Certificates:
    made = Certificates(trustme.CA())
    assert made.server
    assert made.trusting
    assert made.wary
    return made


@pytest.fixture
def bdat_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send content by BDAT from the first message on, whatever it is, as on a connection that has passed the probe."""
    monkeypatch.setattr(Session, "untried", Chunking.SHOWN)
    monkeypatch.setattr(transaction, "_FIELD", re.compile(b""))
