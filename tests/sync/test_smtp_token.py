"""The blocking facade: logging in with an access token on connecting."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import asmtp
from tests.client.test_login_token import REFUSED, USER, google, oauthbearer, offering, xoauth2
from tests.fakes.script import expect, nothing_more, send
from tests.sync.facade import nothing_left, script_at


@pytest.fixture(autouse=True)
def loops(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[asyncio.AbstractEventLoop]]:
    with nothing_left(monkeypatch) as made:
        yield made


def log_in(server: Any, token: Any, *, kind: Any = asmtp.SMTP, **options: Any) -> None:
    options = {"local_hostname": "me.example", "tls": "none", "username": USER, "token": token, **options}
    smtp = kind(server.host, server.port, **options)
    assert smtp.sock is not None
    smtp.close()


def blocking(force: bool) -> str:
    return "n3w" if force else "0ld"


async def awaited(force: bool) -> str:
    async with asyncio.timeout(5):
        await asyncio.sleep(0)
    return blocking(force)


TOKENS = pytest.mark.parametrize(
    "token", [blocking, awaited, lambda force: awaited(force)], ids=["blocking", "async", "lambda"]
)


@TOKENS
def test_a_token(token: Any) -> None:
    with script_at(offering("OAUTHBEARER", oauthbearer("0ld"), send("235 welcome"))) as server:
        log_in(server, token)


@TOKENS
def test_a_fresh_token(token: Any) -> None:
    with script_at(offering("XOAUTH2", xoauth2("0ld"), *REFUSED, xoauth2("n3w"), send("235 ok"))) as server:
        log_in(server, token)


@TOKENS
def test_a_token_from_async_code(token: Any) -> None:
    async def main() -> None:
        log_in(server, token)

    with script_at(offering("XOAUTH2", xoauth2("0ld"), *REFUSED, xoauth2("n3w"), send("235 ok"))) as server:
        asyncio.run(main())


def test_rejected() -> None:
    script = offering("XOAUTH2", xoauth2("0ld"), *REFUSED, xoauth2("n3w"), send("535 no"))
    with script_at(script) as server, pytest.raises(asmtp.SMTPAuthenticationError) as caught:
        log_in(server, blocking)
    assert (caught.value.smtp_code, caught.value.smtp_error) == (535, b"no")


def test_the_calling_thread_calls() -> None:
    """And to it, no loop is running: it may run one."""
    threads: list[threading.Thread] = []

    def token(force: bool) -> str:
        threads.append(threading.current_thread())
        assert asyncio._get_running_loop() is None
        return asyncio.run(awaited(force))

    with script_at(offering("XOAUTH2", xoauth2("0ld"), *REFUSED, xoauth2("n3w"), send("235 ok"))) as server:
        log_in(server, token)
    assert threads == [threading.current_thread()] * 2


@pytest.mark.parametrize("kind", [LookupError, KeyboardInterrupt])
@pytest.mark.parametrize("make", [False, True], ids=["blocking", "async"])
def test_a_function_that_fails(kind: type[BaseException], make: bool) -> None:
    def token(force: bool) -> str:
        raise kind("no refresh token")

    async def fetch(force: bool) -> str:
        return token(force)

    with script_at(offering("XOAUTH2")) as server, pytest.raises(kind, match="^no refresh token$"):
        log_in(server, fetch if make else token)


def test_lmtp() -> None:
    script = [send("220 hi"), expect("lhlo me.example"), send("250-hi", "250 AUTH XOAUTH2")]
    with script_at([*script, xoauth2("0ld"), send("235 ok"), nothing_more]) as server:
        log_in(server, blocking, kind=asmtp.LMTP)


def test_tls_is_required() -> None:
    def token(force: bool) -> str:
        pytest.fail("called")

    with script_at(offering("XOAUTH2")) as server, pytest.raises(asmtp.SMTPNotSupportedError, match="STARTTLS"):
        log_in(server, token, tls=None)


def test_debug_output_does_not_show_it(capsys: pytest.CaptureFixture[str]) -> None:
    with script_at(offering("XOAUTH2", xoauth2("0ld"), *REFUSED, xoauth2("n3w"), send("235 ok"))) as server:
        smtp = asmtp.SMTP(local_hostname="me.example", tls="none", username=USER, token=blocking)
        smtp.set_debuglevel(1)
        smtp.connect(server.host, server.port)
        smtp.close()
    shown = capsys.readouterr().err
    assert "(not shown)" in shown
    for token in ("0ld", "n3w"):
        assert token not in shown
        assert google(token)[-20:] not in shown


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"token": blocking}, ValueError, "username is needed with token"),
    ({"username": "u", "password": "p", "token": blocking}, ValueError, "password and token: "),
    ({"username": "u", "token": "t"}, TypeError, "token must be a function"),
]


@pytest.mark.parametrize(("options", "kind", "words"), WRONG)
@pytest.mark.parametrize("facade", [asmtp.SMTP, asmtp.SMTP_SSL, asmtp.LMTP])
def test_wrong_options(facade: Callable[..., Any], options: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        facade(**options)


def test_a_token_that_does_not_come() -> None:
    """An async token function has the time of a command."""

    async def token(force: bool) -> str:
        await asyncio.Event().wait()
        return ""

    with (
        script_at(offering("XOAUTH2")) as server,
        pytest.raises(asmtp.SMTPTimeoutError, match=r"no token within 0\.05 seconds"),
    ):
        log_in(server, token, timeout=asmtp.Timeouts(command=0.05))
