"""Servers that lie, to the async client, to the facade and to the mailer: what each has to make of it.

The lies and the contracts are in tests/fakes/lies*.py.  Whatever the lie, and whoever it is told to:

* the call comes to an end, by itself or in the time allowed for its phase;
* what is said of the message is so: it is not "not_sent" where the server has all of it;
* the connection is in step, and the next message gets the replies to it; or it is closed, and never used again;
* what has no end takes no memory;
* the password is not in what is raised, logged or traced.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import logging
import traceback
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

import asmtp
from asmtp import AsyncLMTP, AsyncSMTP, SMTPServerDisconnected, Timeouts
from asmtp.protocol.reply import MAX_REPLY
from tests.conftest import Certificates
from tests.fakes.background import calling, in_background
from tests.fakes.liar import NOBODY, PASSWORD, USER, Liar
from tests.fakes.lies import Lie
from tests.fakes.lies_opening import AUTH, OPENING
from tests.fakes.lies_sending import SENDING
from tests.fakes.script import running
from tests.mailer.mailing import mailer

pytestmark = pytest.mark.usefixtures("bdat_at_once")

SENDER = "alice@x.example"
NEXT = "dave@x.example"
ERIN = "erin@y.example"

PATIENCE = 20
"""Seconds for a phase that the lie is not about."""

LIMIT = 0.4
"""Seconds for the one that it is about, where they are real ones."""

VIRTUAL_LIMIT = 4
"""The same where they are not."""

LIES: dict[str, Lie] = {**OPENING, **SENDING}


def told(*, timed: bool | None = None) -> pytest.MarkDecorator:
    """For each lie that is told this way; `timed`: those that meet a time limit, or that do not."""
    cases = [pytest.param(lie, id=name) for name, lie in LIES.items() if timed is None or bool(lie.limit) is timed]
    return pytest.mark.parametrize("lie", cases)


# ---- what is the same for all ways --------------------------------------------------------------


@dataclass
class Seen:
    """The result of the first message."""

    error: Exception | None = None
    without: dict[str, Any] | None = None
    connected: bool = False


def liar_of(lie: Lie, certificates: Certificates) -> Liar:
    tls = certificates.server if lie.tls else None
    return Liar(lie.says, lie.offers, lie.under_tls, lmtp=lie.lmtp, tls=tls, stalling=lie.stalling)


def options_of(lie: Lie, certificates: Certificates) -> dict[str, Any]:
    options: dict[str, Any] = {"tls": "required" if lie.tls else "none"}
    if lie.tls:
        options["ssl_context"] = certificates.trusting
    if lie.login:
        options |= {"username": USER, "password": PASSWORD}
    return options


def timeouts_of(lie: Lie, limit: float) -> Timeouts:
    phases: dict[str, float] = dict.fromkeys(Timeouts.__annotations__, PATIENCE)
    return Timeouts(**phases | ({lie.limit: limit} if lie.limit else {}))


def where(lie: Lie) -> dict[str, int]:
    return {"receive_buffer": 8192} if lie.deaf else {}


def content_of(lie: Lie) -> Any:
    return lie.content() if callable(lie.content) else lie.content


def check(lie: Lie, seen: Seen, liar: Liar, raises: type[Exception] | None = None) -> None:
    """Check that what became of the first message is what the contract says, and that it is so.

    Args:
        raises: instead of what the contract has.
    """
    contract, error = lie.contract, seen.error
    assert type(error) is (raises or contract.raises or type(None)), repr(error)
    if error is None:
        assert {who: reply[0] for who, reply in (seen.without or {}).items()} == contract.without
    else:
        state = getattr(error, "state", None)
        assert (state if seen.connected else state or "not_sent") == contract.state, repr(error)
        assert len(str(error)) < 1000
    if contract.code is not None:
        codes = {code for code, _ in getattr(error, "recipients", {}).values()} or {getattr(error, "smtp_code", None)}
        assert codes == {contract.code}, repr(error)
    if contract.state == "not_sent":
        assert SENDER not in liar.whole
    if contract.state == "sent":
        assert [letter.sender for letter in liar.letters] == [SENDER]


async def settled(condition: Callable[[], bool]) -> None:
    """For a moment, until it is so: what comes behind the final reply comes in its own time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1):
            while not condition():  # noqa: ASYNC110  # there is no event for it
                await asyncio.sleep(0.001)


def check_next(liar: Liar, without: dict[str, Any], connections: int) -> None:
    """The second message got the replies to it, and is what was sent."""
    assert without == {NOBODY: (550, b"5.1.1 <%b> is nobody" % NOBODY.encode())}
    letter = liar.letters[-1]
    assert (letter.sender, letter.recipients, letter.content) == (NEXT, [ERIN], b"second\r\n")
    assert len(liar.peers) == connections


SECRETS = (
    PASSWORD,
    base64.b64encode(PASSWORD.encode()).decode(),
    base64.b64encode(f"\0{USER}\0{PASSWORD}".encode()).decode(),
)


def check_secrets(text: str) -> None:
    """Neither the password nor what the server was sent for it, nor a good piece of that."""
    for secret in SECRETS:
        for start in range(max(1, len(secret) - 8)):
            assert secret[start : start + 8] not in text


def all_of(error: BaseException | None) -> str:
    """Return all text that can be seen of an exception and of those behind it."""
    if error is None:
        return ""
    chain, text = [error], "".join(traceback.format_exception(error))
    for each in chain:
        text += f"{each!r} {each.args!r} {vars(each)!r}"
        chain += [other for other in (each.__cause__, each.__context__) if other is not None and other not in chain]
    return text


@contextlib.contextmanager
def bounded(lie: Lie) -> Iterator[None]:
    """Check that what has no end takes no memory."""
    if not lie.endless:
        yield
        return
    gc.collect()
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The server's own buffer is in it; what it sends is some ten times as much.
    assert peak < 8 * MAX_REPLY + 6_000_000


# ---- the async client ---------------------------------------------------------------------------


async def tell_async(lie: Lie, certificates: Certificates, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    traced: list[str] = []
    async with running(liar_of(lie, certificates), **where(lie)) as liar:
        kind = AsyncLMTP if lie.lmtp else AsyncSMTP
        options = options_of(lie, certificates)
        smtp = kind(liar.host, liar.port, "me.example", timeout=timeouts_of(lie, VIRTUAL_LIMIT), **options)
        smtp.trace = lambda way, data: traced.append(f"{way} {data!r}")
        try:
            seen = Seen()
            with bounded(lie):
                async with asyncio.timeout(10 * PATIENCE):
                    try:
                        await smtp.connect()
                        seen.connected = True
                        seen.without = await smtp.sendmail(SENDER, lie.recipients, content_of(lie))
                    except Exception as error:
                        seen.error = error
            check_secrets("\n".join([all_of(seen.error), *traced, caplog.text, repr(smtp)]))
            await settled(lambda: seen.error is not None or bool(liar.letters))
            check(lie, seen, liar)
            closed = lie.contract.after == "closed"
            if closed:
                if seen.error is None:
                    await settled(lambda: not smtp.is_connected)
                assert not smtp.is_connected
                for call in (smtp.noop, smtp.quit, lambda: smtp.sendmail(NEXT, ERIN, b"never")):
                    with pytest.raises(SMTPServerDisconnected):
                        await call()
                await smtp.close()
                await smtp.connect()
            without = await smtp.sendmail(NEXT, [ERIN, NOBODY], b"second")
            check_next(liar, without, 1 + closed)
            await smtp.quit()
            assert not smtp.is_connected
        finally:
            await smtp.close()


@told(timed=False)
async def test_async(lie: Lie, certificates: Certificates, caplog: pytest.LogCaptureFixture) -> None:
    await tell_async(lie, certificates, caplog)


@pytest.mark.virtual_clock
@told(timed=True)
async def test_async_in_time(lie: Lie, certificates: Certificates, caplog: pytest.LogCaptureFixture) -> None:
    begun = asyncio.get_running_loop().time()
    await tell_async(lie, certificates, caplog)
    assert asyncio.get_running_loop().time() - begun < 2 * VIRTUAL_LIMIT


# ---- the facade ---------------------------------------------------------------------------------


class SMTP(asmtp.SMTP):
    debuglevel = 1  # from the greeting on


class LMTP(asmtp.LMTP):
    debuglevel = 1


@pytest.mark.sampled
@told()
def test_facade(
    lie: Lie, certificates: Certificates, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    with in_background(running(liar_of(lie, certificates), **where(lie))) as liar, contextlib.ExitStack() as stack:

        def connected() -> asmtp.SMTP:
            kind = LMTP if lie.lmtp else SMTP
            timeouts = timeouts_of(lie, LIMIT)
            made = kind(liar.host, liar.port, "me.example", timeout=timeouts, **options_of(lie, certificates))
            stack.callback(made.close)
            return made

        seen = Seen()
        with bounded(lie):
            try:
                smtp = connected()
                seen.connected = True
                seen.without = smtp.sendmail(SENDER, lie.recipients, content_of(lie))
            except Exception as error:
                seen.error = error
        check_secrets("\n".join([all_of(seen.error), caplog.text, *capsys.readouterr()]))
        for _ in range(100):  # until the server has noted what it did
            if calling(lambda: seen.error is not None or bool(liar.letters)):
                break
        check(lie, seen, liar)
        closed = lie.contract.after == "closed"
        if closed:
            if seen.connected:
                assert seen.error is None or smtp.sock is None
                for call in (smtp.noop, smtp.quit, lambda: smtp.sendmail(NEXT, ERIN, b"never")):
                    with pytest.raises(SMTPServerDisconnected):
                        call()
                assert smtp.sock is None
            smtp = connected()
        without = smtp.sendmail(NEXT, [ERIN, NOBODY], b"second")
        calling(lambda: None)
        check_next(liar, without, 1 + closed)
        smtp.quit()
        assert smtp.sock is None


# ---- the mailer ---------------------------------------------------------------------------------


@pytest.mark.sampled
@pytest.mark.virtual_clock
@told()
async def test_mailer(lie: Lie, certificates: Certificates, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    options: dict[str, Any] = options_of(lie, certificates)
    options |= {"connections": 1, "retry": None, "timeouts": timeouts_of(lie, VIRTUAL_LIMIT)}
    async with running(liar_of(lie, certificates), **where(lie)) as liar, mailer(liar, **options) as posting:
        seen = Seen(connected=True)
        with bounded(lie):
            async with asyncio.timeout(10 * PATIENCE):
                try:
                    receipt = await posting.send(content_of(lie), SENDER, lie.recipients)
                    seen.without = receipt.refused
                except Exception as error:
                    seen.error = error
        check_secrets("\n".join([all_of(seen.error), caplog.text, repr(posting)]))
        # What no exception of asmtp's is, it does not raise for a connection that it made on its own account.
        ours = lie.contract.raises is None or issubclass(lie.contract.raises, asmtp.SMTPException)
        check(lie, seen, liar, None if ours else SMTPServerDisconnected)
        # One that could not be made ready for messages, it does not keep.
        closed = lie.contract.after == "closed" or lie.retired or (seen.error is not None and not liar.begun)
        if closed:
            # A relay whose password is wrong is left alone for a while.
            await (settled(lambda: posting.stats.open == 0) if seen.error is None else asyncio.sleep(3600))
            assert posting.stats.open == 0
        receipt = await posting.send(b"second", NEXT, [ERIN, NOBODY])
        check_next(liar, receipt.refused, 1 + closed)
        assert list(receipt.accepted) == [ERIN]
        assert ERIN.encode() in receipt.accepted[ERIN].message


# ---- who logs in by hand ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lie",
    [
        pytest.param(lie, id=name)
        for name, lie in AUTH.items()
        # smtplib's authobjects say what they have said once more.
        if not lie.limit and name not in ("AUTH 334 behind all that PLAIN has", "AUTH response echoed in a challenge")
    ],
)
def test_login_by_hand(
    lie: Lie, certificates: Certificates, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """The facade has a way of its own then; and the connection is in step afterwards, or closed."""
    caplog.set_level(logging.DEBUG)
    with in_background(running(liar_of(lie, certificates))) as liar:
        smtp = SMTP(liar.host, liar.port, "me.example", timeout=PATIENCE)
        with contextlib.closing(smtp):
            seen = Seen()
            with bounded(lie):
                try:
                    smtp.login(USER, PASSWORD)
                except asmtp.SMTPException as error:
                    seen.error = error
            check_secrets("\n".join([all_of(seen.error), caplog.text, *capsys.readouterr()]))
            assert lie.contract.raises is None or seen.error is not None or smtp.sock is None
            try:
                assert smtp.noop() == (250, b"2.0.0 still here")
            except SMTPServerDisconnected:
                assert smtp.sock is None
