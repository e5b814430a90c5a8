"""What every test has: both event loops (or a virtual clock), and checks that nothing blocks and nothing is left."""

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
from asmtp.protocol.chunking import Chunking
from asmtp.protocol.session import Session
from asmtp.transport import Connection

from .servers.clock import VirtualClockLoop

settings.register_profile("asmtp", deadline=None)  # a busy machine makes no test fail
settings.load_profile("asmtp")

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

LOOPS: dict[str, LoopFactory] = {"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop.new_event_loop}

MORE_THAT_BLOCKS = (
    "socket.getaddrinfo", "socket.getfqdn", "socket.gethostbyname", "ssl.create_default_context", "builtins.open",
)  # fmt: skip

BEHIND_THE_PROBE = {
    "test_cancellation", "test_client_pipelining", "test_client_requests", "test_client_sending", "test_client_sharing",
    "test_content_borders", "test_events", "test_faults_client", "test_lane", "test_lies", "test_mailer_retry",
    "test_misbehaving", "test_pool", "test_run_scale", "test_run_servers",
    "test_session", "test_session_cancel", "test_session_overlap",
    "test_session_random", "test_transaction",
    "test_transaction_requests", "test_transaction_streamed", "test_transport_deadlines",
}  # fmt: skip
"""Modules about what follows once a connection has shown what it does with a refused chunk: see `bdat_at_once`."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "virtual_clock: run on a loop whose clock jumps to the next timer")


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, LoopFactory]:
    """Every async test runs on both loops, or on the virtual clock."""
    if item.get_closest_marker("virtual_clock") is not None:
        return {"virtual_clock": VirtualClockLoop}
    return LOOPS


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        module = item.module.__name__ if isinstance(item, pytest.Function) else ""
        if module.rpartition(".")[2] in BEHIND_THE_PROBE:
            item.fixturenames.insert(0, "bdat_at_once")
        if pytest_asyncio.is_async_test(item):
            for name in ("nothing_blocks", "nothing_is_left"):
                if name not in item.fixturenames:
                    item.fixturenames.insert(0, name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Under coverage: what is run is run by this test, its tasks and callbacks too."""
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
    """Made once: it takes its time."""
    made = BlockBuster("asmtp")
    for name in MORE_THAT_BLOCKS:
        made.functions[name] = BlockBusterFunction(None, name, scanned_modules="asmtp")
    return made


@pytest.fixture
def nothing_blocks() -> Iterator[None]:
    """A call in asmtp that would block the loop fails the test."""
    blockbuster().activate()
    yield
    blockbuster().deactivate()


@pytest.fixture
async def nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """No task goes on behind the test, and no exception is lost."""
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


@pytest.fixture
def transports(monkeypatch: pytest.MonkeyPatch) -> list[asyncio.Transport]:
    """The client's transports, in the order in which they were made."""
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
    """What the client has written, one entry for each `send`.  Not for TLS."""
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
        """For 127.0.0.1 and localhost."""
        return self.showing(self.issued)

    @functools.cached_property
    def issued(self) -> trustme.LeafCert:
        """What `server` shows."""
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
        """A client that trusts the CA."""
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        return context

    def client(self, **attributes: Any) -> ssl.SSLContext:
        """A client of its own that trusts the CA, with attributes set; `certificate`: with one of ours to show."""
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        if attributes.pop("certificate", False):
            self.ca.issue_cert("client@example.com").configure_cert(context)
        for name, value in attributes.items():
            setattr(context, name, value)
        return context

    @functools.cached_property
    def wary(self) -> ssl.SSLContext:
        """A client that does not."""
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
    """Content goes by BDAT from the first message on, whatever it is: as on a connection that has passed the probe."""
    monkeypatch.setattr(Session, "untried", Chunking.SHOWN)
    monkeypatch.setattr(transaction, "_FIELD", re.compile(b""))
