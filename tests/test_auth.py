"""smtplib's authobjects, driven by `auth()`."""

from __future__ import annotations

import base64
import hmac
from typing import Any

import pytest

from asmtp import AsyncSMTP, SMTPAuthenticationError

from .servers.embedded import PASSWORD, USER, Embedded, embedded
from .servers.script import expect, nothing_more, scripted, send


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.fixture
def smtp() -> AsyncSMTP:
    made = AsyncSMTP()
    made.user, made.password = USER, PASSWORD
    return made


def test_plain(smtp: AsyncSMTP) -> None:
    assert smtp.auth_plain() == smtp.auth_plain(b"") == f"\0{USER}\0{PASSWORD}"


def test_login_gives_the_user_first(smtp: AsyncSMTP) -> None:
    assert smtp.auth_login() == USER
    assert smtp.auth_login(b"Username:") == USER
    smtp._auth_challenge_count = 2
    assert smtp.auth_login(b"Password:") == PASSWORD


def test_cram_md5(smtp: AsyncSMTP) -> None:
    assert smtp.auth_cram_md5() is None
    digest = hmac.new(PASSWORD.encode(), b"challenge", "md5").hexdigest()
    assert smtp.auth_cram_md5(b"challenge") == f"{USER} {digest}"


@pytest.mark.parametrize("initial_response_ok", [True, False])
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
async def test_auth_with_an_authobject(mechanism: str, initial_response_ok: bool) -> None:
    async with embedded(Embedded()) as server:
        async with AsyncSMTP(server.host, server.port, "me.example") as smtp:
            await smtp.ehlo()
            for password, right in (("wrong", False), (PASSWORD, True)):
                smtp.user, smtp.password = USER, password
                authobject: Any = getattr(smtp, "auth_" + mechanism.lower().replace("-", "_"))
                if right:
                    reply = await smtp.auth(mechanism, authobject, initial_response_ok=initial_response_ok)
                    assert reply.code == 235
                else:
                    with pytest.raises(SMTPAuthenticationError) as caught:
                        await smtp.auth(mechanism, authobject, initial_response_ok=initial_response_ok)
                    assert caught.value.smtp_code == 535
        assert server.logins == [(mechanism, False), (mechanism, True)]


@pytest.mark.parametrize("initial_response_ok", [True, False])
async def test_the_challenges_are_counted_anew_for_each_exchange(initial_response_ok: bool) -> None:
    """LOGIN answers by number: the first question gets the user, the second the password."""
    first = expect(f"AUTH LOGIN {b64(USER)}") if initial_response_ok else expect("AUTH LOGIN")
    asked = [] if initial_response_ok else [send("334 " + b64("Username:")), expect(b64(USER))]
    once = [first, *asked, send("334 " + b64("Password:")), expect(b64(PASSWORD))]
    script = [
        send("220 hi"), expect("ehlo me.example"), send("250-hi", "250 AUTH LOGIN"),
        *once, send("454 not now"), *once, send("235 yes"), nothing_more,
    ]  # fmt: skip
    async with scripted(script) as server:
        smtp = AsyncSMTP("127.0.0.1", server.port, "me.example")
        smtp.user, smtp.password = USER, PASSWORD
        await smtp.connect()
        await smtp.ehlo()
        with pytest.raises(SMTPAuthenticationError):
            await smtp.auth("LOGIN", smtp.auth_login, initial_response_ok=initial_response_ok)
        assert (await smtp.auth("LOGIN", smtp.auth_login, initial_response_ok=initial_response_ok)).code == 235
        await smtp.close()
