"""Logging in on a connection: with one of several mechanisms, by one AUTH exchange; and access tokens."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from asmtp.auth.selection import Attempt, Candidate, Logins, attempts
from asmtp.client.environment import Environment
from asmtp.client.events import EventLog, clock
from asmtp.errors import SMTPAuthenticationError, SMTPTimeoutError
from asmtp.protocol import dialogue
from asmtp.protocol.reply import Reply
from asmtp.protocol.sasl import UNPROVEN, SASLExchange
from asmtp.protocol.trampoline import async_trampoline
from asmtp.transport.connection import Connection

__all__ = ["Login", "get_token"]


class Login:
    """A log-in on a connection.

    Args:
        live: returns the connection, or raises SMTPServerDisconnected.
        close: closes the connection.
        environment: calls mechanisms that are slow.
        event_log: is told of each mechanism that was tried.
    """

    def __init__(
        self,
        live: Callable[[], Connection],
        close: Callable[[], object],
        environment: Environment,
        event_log: EventLog | None,
    ) -> None:
        self._live = live
        self._close = close
        self._environment = environment
        self._event_log = event_log

    async def with_one_of(
        self, candidates: Sequence[Candidate], logins: Logins | None, *, initial_response_ok: bool
    ) -> Reply:
        """Log in with one of several mechanisms.

        Args:
            logins: what the relay said to the log-ins of other connections.

        Raises:
            SMTPAuthenticationError: the credentials were refused; or the server could not prove that it knows them.
            ValueError: no mechanism can be used with these credentials, or on this machine.
        """
        call_out = self._environment.call_out

        async def carry_out(attempt: Attempt) -> Any:
            candidate, mechanism = attempt
            if mechanism is None:
                return await call_out(candidate.make) if candidate.slow else candidate.make()
            begin = functools.partial(
                SASLExchange,
                candidate.name,
                mechanism,
                initial_response_ok=initial_response_ok,
                slow=candidate.slow,
                again=self._live().session.authenticated,
            )
            async with contextlib.nullcontext() if logins is None else logins.turn():
                reply = await self.exchange(await call_out(begin) if candidate.slow else begin())
            if logins is not None:
                logins.worked = candidate.name, candidate.binding
            return reply

        first = None if logins is None else logins.worked
        verified = self._live().session.secure
        return await async_trampoline(attempts(candidates, first=first, verified=verified), carry_out)

    async def exchange(self, sasl: SASLExchange) -> Reply:
        """Take an AUTH exchange to its end; a slow mechanism computes in a thread.

        Raises:
            SMTPAuthenticationError: the server said no; or it could not prove that it knows the password, and the
                connection is closed.
        """
        connection = self._live()
        begun = clock()
        code = UNPROVEN
        try:
            async with contextlib.aclosing(self._pushes(sasl)) as pushes:
                login = dialogue.authentication(connection.session, sasl)
                reply = await connection.run_streamed(login, pushes, alone=True)
                code = reply.code
                return reply
        except SMTPAuthenticationError as error:
            code = error.smtp_code
            if code == UNPROVEN:
                self._close()
            raise
        except SMTPTimeoutError:
            self._close()
            raise
        finally:
            if self._event_log is not None:
                self._event_log.logged_in(sasl.name, code, clock() - begun)

    async def _pushes(self, sasl: SASLExchange) -> AsyncGenerator[bytes, None]:
        """Compute a response each time that the dialogue pulls."""
        while True:
            await self._environment.call_out(sasl.go_on)
            yield b""


async def get_token(function: Any, environment: Environment, limit: float | None, *, force: bool) -> str:
    """Ask the caller's function for an access token.

    Args:
        limit: seconds that it may take.
        force: ask for a fresh token, whatever is cached.

    Raises:
        SMTPTimeoutError: none came in time.
        TypeError, ValueError: it is no str, or empty.
        Exception: what the function raises.
    """
    if asyncio.current_task() is None:  # driven by a facade, which cannot interrupt a function that blocks
        if _is_async(function):
            asking = get_token(function, environment, limit, force=force)
            return await asyncio.get_running_loop().create_task(asking)
        return await _ask_for_token(function, environment, force)
    try:
        async with asyncio.timeout(limit) as patience:
            return await _ask_for_token(function, environment, force)
    except TimeoutError as error:
        if not patience.expired():
            raise
        raise SMTPTimeoutError(f"timed out: no token within {limit:g} seconds") from error


async def _ask_for_token(function: Any, environment: Environment, force: bool) -> str:
    token = function(force) if _is_async(function) else await environment.call_out(function, force)
    if inspect.isawaitable(token):
        token = await token
    if not isinstance(token, str):
        raise TypeError(f"token must return a str, not {type(token).__name__}")
    if not token:
        raise ValueError("token: empty")
    return token


def _is_async(function: Any) -> bool:
    """Return whether a call returns an awaitable at once."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
