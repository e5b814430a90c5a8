"""Calls of a blocking facade to its async client: on a private loop, one at a time.

No thread is started: a call runs the private loop in the calling thread until it is done.  A loop that is not running
belongs to no thread, so an object made in one thread works in another.  Only if a loop runs in the calling thread
already, a helper thread runs the private one for the duration of the call.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import functools
import socket
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future, wait
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, cast

from asmtp.client.events import handle_all, kept_for, unheard
from asmtp.errors import SMTPStateError
from asmtp.protocol.reply import Reply
from asmtp.sync.client import BlockingClient
from asmtp.sync.driver import drive, end, in_task, new_selector, running_loop, without_loop
from asmtp.sync.steps import is_local
from asmtp.transport.timeouts import Timeouts

__all__ = ["DEFAULT_TIMEOUT", "Calls", "Kept", "one_call", "timeouts_of"]

T = TypeVar("T")
P = ParamSpec("P")
S = TypeVar("S", bound="Calls")
DEFAULT_TIMEOUT: Any = socket._GLOBAL_DEFAULT_TIMEOUT  # type: ignore[attr-defined]


def timeouts_of(value: Any) -> float | None | Timeouts:
    """Return limits for smtplib's timeout: if it is not given, the default of sockets, or else the RFC's."""
    if value is not DEFAULT_TIMEOUT:
        return value  # type: ignore[no-any-return]
    default = socket.getdefaulttimeout()
    return Timeouts() if default is None else default


_NESTED = "a call in the middle of another one: from a signal handler, or from a callback"


def one_call(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Keep other threads out of a method that makes several calls."""

    @functools.wraps(method)
    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self._entry():
            self._check_entered()
            return method(self, *args, **kwargs)

    return call


class Kept(Generic[T]):
    """An attribute of smtplib's whose value the client has."""

    def __init__(self, doc: str) -> None:
        self.__doc__ = doc

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Calls | None, owner: type) -> T:
        # On the class it is None, as in smtplib, so that mocks that are made from the class have the attribute.
        return cast("T", None if instance is None else getattr(instance._client, self._name))

    def __set__(self, instance: Calls, value: T) -> None:
        setattr(instance._client, self._name, value)


class Calls:
    """Calls that block: each drives the client on a private loop until it is done.

    A subclass is the API of smtplib, and may be made without `__init__`.
    """

    debuglevel = 0
    timeout: Any = DEFAULT_TIMEOUT
    _client_class: type[BlockingClient] = BlockingClient
    _host = ""
    _traced = False
    _default_timeout: float | None = None  # of sockets, when it was connected
    _driver: int | None = None  # the thread in which a call is in mid-exchange
    _loop: asyncio.AbstractEventLoop | None = None
    _handed: socket.socket | None = None  # a connected socket that was set as `sock`, until something is said on it

    @functools.cached_property
    def _lock(self) -> threading.RLock:
        """Return the lock that a call holds; made here for a subclass that does not call `__init__`, as in smtplib."""
        return threading.RLock()

    @functools.cached_property
    def _client(self) -> BlockingClient:
        """Return the async client that this drives; made here if `_lock` is."""
        client = self._client_class("", 0, None, timeouts_of(self.timeout))
        client.facade = weakref.ref(self)
        return client

    # ---- the loop ---------------------------------------------------------------------------

    @staticmethod
    def _new_loop() -> asyncio.AbstractEventLoop:
        # Not what the policy makes.  asyncio logs that one is made, perhaps into a handler that makes another.
        with unheard():
            return asyncio.SelectorEventLoop(new_selector())

    def _entry(self) -> contextlib.AbstractContextManager[Any]:
        """Return the lock that a call holds, so that other threads wait; call `_check_entered` next."""
        if self._driver == threading.get_ident():
            raise SMTPStateError(_NESTED)
        return self._lock

    def _check_entered(self) -> None:
        if self._driver is not None:  # this thread waits for a helper thread, which drives
            raise SMTPStateError(_NESTED)

    def _run(self, coroutine: Coroutine[Any, Any, T], *, task: bool = False) -> T:
        """Run the private loop until `coroutine` is done.

        Args:
            task: the coroutine needs to be a task.

        Raises:
            SMTPStateError: this is called in the middle of another call, by a signal handler or a callback.
        """
        try:
            with self._entry():
                self._check_entered()
                if self._handed is not None:
                    self._take_over(spoken=True)
                return self._run_alone(coroutine, task)
        finally:
            coroutine.close()  # it may not even have begun

    def _run_alone(self, coroutine: Coroutine[Any, Any, T], task: bool) -> T:
        loop = self._loop
        if loop is None:
            loop = self._loop = self._new_loop()
            loop.set_exception_handler(self._client.strike)
        if running_loop() is None:
            return self._run_here(loop, coroutine, task)
        # Called from async code: it blocks, as smtplib would, but it works.
        work = functools.partial(self._run_here, loop, coroutine, task)
        return _in_thread(work, functools.partial(self._interrupt, loop))

    def _run_here(self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T], task: bool) -> T:
        driven = self._client
        if self._traced or self.debuglevel > 0:
            self._traced = self.debuglevel > 0
            driven.trace = self._trace if self._traced else None
        try:
            self._driver = threading.get_ident()
            if driven.readable():
                # A 421 or EOF that came meanwhile must not be paired with the next command.
                drive(loop, driven, asyncio.sleep(0))
            result = drive(loop, driven, in_task(coroutine) if task else coroutine)
            if driven.struck is not None:
                raise driven.struck
            return result
        except BaseException as error:
            # Any exception may have left an exchange in the middle, and nobody goes on with it.
            struck, driven.struck = driven.struck, None
            if struck is not None or driven.unfinished:
                driven.abort()
            if tasks := asyncio.all_tasks(loop):
                drive(loop, driven, _cancelled(tasks))
            if struck is not None and struck is not error:
                raise struck from error
            raise
        finally:
            self._driver = driven.struck = None
            if not driven.is_connected:
                self._release()

    def _take_over(self, *, spoken: bool) -> Reply:
        """Speak on a socket that was set as `sock`, and return the greeting.

        Args:
            spoken: the caller has read the greeting: the first call is another one than `getreply`.
        """
        handed, self._handed = self._handed, None
        assert handed is not None
        self._default_timeout = socket.getdefaulttimeout()
        self._client.timeouts = Timeouts.of(timeouts_of(self.timeout))
        self._client.given(handed, local=is_local(self._host), spoken=spoken)
        return self._run(self._client.connect(self._host or "localhost"), task=True)

    def _interrupt(self, loop: asyncio.AbstractEventLoop) -> None:
        """End a call that a helper thread runs."""

        def end() -> None:
            self._client.abort()
            for task in asyncio.all_tasks(loop):
                task.cancel()

        with contextlib.suppress(RuntimeError):  # it has ended
            loop.call_soon_threadsafe(end)
        self._client.cut()

    def _release(self) -> None:
        """Release the socket and the loop."""
        handed, self._handed = self._handed, None
        if handed is not None:
            handed.close()
        loop, self._loop = self._loop, None
        released = self._client.close()
        if loop is not None:
            # A loop may run in this thread, if async code (or the garbage collector there) calls this.
            without_loop(end, loop, self._client, released)

    def __del__(self) -> None:
        if getattr(self, "_loop", None) is not None:
            # Warn and close at once, as a socket does that is dropped.
            warnings.warn(f"unclosed {self._client!r}", ResourceWarning, stacklevel=1, source=self)
            self._release()

    # ---- debugging --------------------------------------------------------------------------

    def set_debuglevel(self, debuglevel: int) -> None:
        """Write the dialogue to stderr, without credentials, as smtplib does; with the time, if the level is 2."""
        self.debuglevel = debuglevel

    def _print_debug(self, *args: Any) -> None:
        if self.debuglevel > 1:
            args = (datetime.datetime.now().time(), *args)
        print(*args, file=sys.stderr)

    def _trace(self, direction: str, data: bytes) -> None:
        if direction == ">":
            # smtplib shows commands as str, content as bytes.
            one_line = data.isascii() and data.endswith(b"\n") and data.count(b"\n") == 1
            self._print_debug("send:", repr(data.decode("ascii") if one_line else data))
        else:
            code, _, text = data.partition(b" ")
            *lines, last = text.split(b"\n")
            for line in lines:
                self._print_debug("reply:", repr(code + b"-" + line + b"\r\n"))
            self._print_debug("reply:", repr(code + b" " + last + b"\r\n"))
            self._print_debug(f"reply: retcode ({code.decode()}); Msg: {text!a}")


def _in_thread(function: Callable[[], T], interrupt: Callable[[], None]) -> T:
    """Call in a thread where no loop runs, and wait for it; if the wait is interrupted, `interrupt` ends the call."""
    future: Future[T] = Future()
    records: list[Any] = []

    def helper() -> None:
        if future.set_running_or_notify_cancel():
            try:
                with kept_for(records.append):
                    result = function()
                future.set_result(result)
            except BaseException as error:  # the caller raises it
                future.set_exception(error)

    thread = threading.Thread(target=helper, name="asmtp")
    try:
        thread.start()
        return future.result()
    except BaseException:
        if not future.done() and not future.cancel():  # Ctrl-C
            interrupt()
            wait([future])
        raise
    finally:
        if thread.is_alive():
            thread.join()
        handle_all(records)


async def _cancelled(tasks: Iterable[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
