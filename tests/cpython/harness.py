"""Run CPython's own tests of smtplib against asmtp: those of the interpreter that runs this file.

    python -m tests.cpython.harness REPORT [MODULE]

They are `test.test_smtplib`, and of `test.test_logging` what sends mail; nothing of them is copied here. Their
`import smtplib` gets MODULE: asmtp, or smtplib itself to see what the harness makes of the original. REPORT is
written as JSON: see `main`.

The tests run as they stand, but for two things, changed in memory only:

* Some of them replace the module's `socket` by `test.mock_socket`, a fake that pretends to be a blocking socket.
  Here a real server on loopback says what the fake would have said, and they are given its port, its Unix
  socket, and a source port that nobody uses.
* One reads the private `smtplib._MAXLINE`; asmtp gets the value that smtplib has.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import importlib.util
import inspect
import json
import os
import socket
import socketserver
import struct
import sys
import tempfile
import threading
import types
import unittest
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.cpython.surface import differences

# Tests that can work on a fake of a blocking socket only, by id, with the reason: none.  (smtplib itself fails
# LMTPGeneralTests.testBasic2 on a real socket: its LMTP takes "host:port" for the name of a host.)
NOT_APPLICABLE: dict[str, str] = {}

FAKE_PATH = "/some/local/lmtp/delivery/program"
FAKE_SOURCE_PORT = "19876"
TIME_LIMIT = 90  # seconds, for everything


class Greeter(socketserver.BaseRequestHandler):
    """Says what was queued, and nothing more."""

    def handle(self) -> None:
        self.request.settimeout(10)
        lines, self.server.lines[:] = self.server.lines[:], []  # type: ignore[attr-defined]
        with contextlib.suppress(OSError):
            for line in lines:
                self.request.sendall(line + b"\r\n")
            while self.request.recv(4096):
                pass


class Server(socketserver.ThreadingTCPServer):
    """On loopback.  It resets its connections: no TIME_WAIT keeps a source port from being used again."""

    def shutdown_request(self, request: Any) -> None:
        request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_request(request)


class FakeSocketModule(types.ModuleType):
    """A stand-in for `test.mock_socket`, with a real server behind it; the rest is `socket`."""

    def __init__(self, path: str) -> None:
        original = importlib.import_module("test.mock_socket")
        super().__init__("test.mock_socket")
        self.path = path
        self.lines: list[bytes] = []
        self.getfqdn = original.getfqdn

    def __getattr__(self, name: str) -> Any:
        return getattr(socket, name)

    def reply_with(self, line: bytes) -> None:
        self.lines.append(line)

    @contextlib.contextmanager
    def serving(self) -> Iterator[int]:
        """A server on loopback and on the Unix socket; its port."""
        self.lines.clear()
        with contextlib.ExitStack() as stack:
            tcp = Server(("127.0.0.1", 0), Greeter)
            unix = socketserver.ThreadingUnixStreamServer(self.path, Greeter)
            stack.callback(os.unlink, self.path)
            for server in (tcp, unix):
                server.lines = self.lines  # type: ignore[union-attr]
                thread = threading.Thread(target=server.serve_forever, args=(0.01,))
                thread.start()
                stack.callback(thread.join)
                stack.callback(server.server_close)
                stack.callback(server.shutdown)
            yield tcp.server_address[1]


def load_test_smtplib(fake: FakeSocketModule) -> types.ModuleType:
    """`test.test_smtplib`, with `fake` for the socket module that it puts into smtplib."""
    package = importlib.import_module("test")
    package.mock_socket = sys.modules["test.mock_socket"] = fake  # type: ignore[attr-defined]
    spec = importlib.util.find_spec("test.test_smtplib")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text("utf-8")
    # Any port that is free: a number chosen before could be taken when the second class binds it.
    source = source.replace(FAKE_PATH, fake.path).replace(FAKE_SOURCE_PORT, "0")
    module = types.ModuleType("test.test_smtplib")
    module.__file__ = spec.origin
    sys.modules[module.__name__] = module
    exec(compile(source, spec.origin, "exec"), module.__dict__)
    return module


def served(case: type[unittest.TestCase], fake: FakeSocketModule) -> type[unittest.TestCase]:
    """The same test case, with a server where the fake socket was."""

    class Served(case):  # type: ignore[misc, valid-type]
        def setUp(self) -> None:
            port = self.enterContext(fake.serving())
            super().setUp()
            self.port = port

    return Served


def cases_of(module: types.ModuleType) -> list[type[unittest.TestCase]]:
    everything = vars(module).values()
    return [
        each
        for each in everything
        if inspect.isclass(each) and issubclass(each, unittest.TestCase) and each.__module__ == module.__name__
    ]


def load(path: str) -> dict[str, unittest.TestCase]:
    """All tests, by id."""
    fake = FakeSocketModule(path)
    module = load_test_smtplib(fake)
    tests: dict[str, unittest.TestCase] = {}
    names = unittest.TestLoader().getTestCaseNames
    for case in cases_of(module):
        ancestry = [each for each in case.__mro__ if each.__module__ == module.__name__]
        faked = any("mock_socket.reply_with" in inspect.getsource(each) for each in ancestry)
        made = served(case, fake) if faked else case
        tests |= {f"{case.__name__}.{name}": made(name) for name in names(case)}
    handler = importlib.import_module("test.test_logging").SMTPHandlerTest
    handler.TIMEOUT = 15  # not five minutes
    return tests | {f"{handler.__name__}.{name}": handler(name) for name in names(handler)}


def run(test: unittest.TestCase) -> tuple[str, str, list[str]]:
    """The fate of a test, why, and what it left behind: unclosed resources, unraisable exceptions, threads."""
    support: Any = importlib.import_module("test.support")
    support.environment_altered = False
    result = unittest.TestResult()
    left: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", ResourceWarning)
        hook, sys.unraisablehook = sys.unraisablehook, lambda args: left.append(repr(args.exc_value))
        test.run(result)
        gc.collect()
        sys.unraisablehook = hook
    left += [str(warning.message) for warning in caught]
    if support.environment_altered:
        left.append("environment altered (threads, mostly)")
    if not result.wasSuccessful():
        told = [text for _, text in result.failures + result.errors] or ["unexpected success"]
        return "failed", "\n".join(told), left
    if result.skipped:
        return "skipped", result.skipped[0][1], left
    return "passed", "", left


def main() -> None:
    """Write {"missing": why} or {"module": its file, "surface": [differences], "points": how many were compared,
    "tests": {id: [passed | failed | skipped | not run, why, [what is left behind]]}}.
    """
    output, name = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "asmtp"
    faulthandler.dump_traceback_later(TIME_LIMIT, exit=True)
    report: dict[str, Any] = {}
    try:
        importlib.import_module("test.test_smtplib")  # once as it is, to see whether it is there
        importlib.import_module("test.test_logging")
    except (ImportError, unittest.SkipTest) as error:
        output.write_text(json.dumps({"missing": f"{type(error).__name__}: {error}"}))
        return
    original, module = importlib.import_module("smtplib"), importlib.import_module(name)
    report["module"] = module.__file__
    report["points"], report["surface"] = differences(original, module)
    if not hasattr(module, "_MAXLINE"):
        module._MAXLINE = original._MAXLINE  # type: ignore[attr-defined]
    sys.modules["smtplib"] = module  # all that needs the original has it by now
    with tempfile.TemporaryDirectory(prefix="lmtp-") as folder:
        tests = load(f"{folder}/program")
        assert sys.modules["test.test_smtplib"].smtplib is module
        report["tests"] = {
            id: ["not run", NOT_APPLICABLE[id], []] if id in NOT_APPLICABLE else run(test) for id, test in tests.items()
        }
    output.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
