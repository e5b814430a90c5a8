"""Input that a caller must not give never reaches the wire."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from asmtp import AsyncSMTP
from tests.fakes.relay import Relay, relaying

BAD = ["\r\nquit", "\n", "\r", "\0", "\x7f", "\t", "\x1b", "\x85"]

CALLS: dict[str, tuple[str, Callable[[AsyncSMTP, str], Awaitable[Any]]]] = {
    "sendmail sender": ("from_addr", lambda smtp, bad: smtp.sendmail(f"a{bad}@x.example", "b@y.example", b"hi")),
    "sendmail recipient": ("to_addrs", lambda smtp, bad: smtp.sendmail("a@x.example", ["b@y.example", f"c{bad}"], b"")),
    "sendmail mail_options": (
        "mail_options", lambda smtp, bad: smtp.sendmail("a@x.example", "b@y.example", b"", [f"X={bad}"])),
    "sendmail rcpt_options": (
        "rcpt_options", lambda smtp, bad: smtp.sendmail("a@x.example", "b@y.example", b"", (), [f"X={bad}"])),
    "mail": ("sender", lambda smtp, bad: smtp.mail(f"a{bad}@x.example")),
    "mail options": ("options", lambda smtp, bad: smtp.mail("a@x.example", [f"X={bad}"])),
    "rcpt": ("recip", lambda smtp, bad: smtp.rcpt(f"a{bad}@x.example")),
    "rcpt options": ("options", lambda smtp, bad: smtp.rcpt("a@x.example", [f"X={bad}"])),
    "docmd": ("cmd", lambda smtp, bad: smtp.docmd(f"noop{bad}")),
    "docmd args": ("cmd", lambda smtp, bad: smtp.docmd("noop", bad)),
    "help": ("args", lambda smtp, bad: smtp.help(bad)),
    "verify": ("address", lambda smtp, bad: smtp.verify(f"a{bad}@x.example")),
    "expn": ("address", lambda smtp, bad: smtp.expn(f"a{bad}@x.example")),
    "ehlo": ("local_hostname", lambda smtp, bad: smtp.ehlo(f"me{bad}.example")),
    "helo": ("local_hostname", lambda smtp, bad: smtp.helo(f"me{bad}.example")),
    "login": ("user", lambda smtp, bad: smtp.login(f"me{bad}", "secret")),
    "auth": ("mechanism", lambda smtp, bad: smtp.auth(f"PLAIN{bad}", lambda challenge=None: "x")),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("call", CALLS)
async def test_control_characters_stay_here(call: str, bad: str) -> None:
    argument, function = CALLS[call]
    async with (
        relaying(Relay(("PIPELINING", "AUTH PLAIN"))) as relay,
        AsyncSMTP(relay.host, relay.port, "me.example") as smtp,
    ):
        await smtp.ehlo()
        with pytest.raises(ValueError, match=f"^{argument}: "):
            await function(smtp, bad)
        assert (await smtp.noop()).ok
        assert relay.verbs == ["EHLO", "NOOP"]


@pytest.mark.parametrize("bad", BAD)
def test_control_characters_in_the_constructor(bad: str) -> None:
    with pytest.raises(ValueError, match="^local_hostname: "):
        AsyncSMTP(local_hostname=f"me{bad}")
    with pytest.raises(ValueError, match="^username: "):
        AsyncSMTP(username=f"me{bad}", password="x")


@pytest.mark.parametrize("bad", [None, 5, b"a@x.example"])
async def test_an_address_that_is_no_str(bad: Any) -> None:
    async with relaying(Relay()) as relay, AsyncSMTP(relay.host, relay.port, "me.example") as smtp:
        await smtp.ehlo()
        for sender, recipient in ((bad, "b@y.example"), ("a@x.example", [bad])):
            with pytest.raises(TypeError):
                await smtp.sendmail(sender, recipient, b"hi")
        for call in (smtp.mail, smtp.rcpt, smtp.verify):
            with pytest.raises(TypeError):
                await call(bad)
        assert relay.verbs == ["EHLO"]


@pytest.mark.parametrize("bad", ["a@x.example> SIZE=1", "a@x.example, b@y.example", "<a@x.example> SIZE=1"])
async def test_an_address_that_is_none(bad: str) -> None:
    async with relaying(Relay()) as relay, AsyncSMTP(relay.host, relay.port, "me.example") as smtp:
        await smtp.ehlo()
        with pytest.raises(ValueError, match="^to_addrs: "):
            await smtp.sendmail("a@x.example", [bad], b"hi")
        with pytest.raises(ValueError, match="^from_addr: "):
            await smtp.sendmail(bad, "b@y.example", b"hi")
        assert relay.verbs == ["EHLO"]


@pytest.mark.parametrize("bad", ["a@x.example> SIZE=1", "a@x.example, b@y.example", "a\ufffd@x.example"])
async def test_vrfy_and_expn_refuse_what_mail_refuses(bad: str) -> None:
    async with relaying(Relay()) as relay, AsyncSMTP(relay.host, relay.port, "me.example") as smtp:
        await smtp.ehlo()
        for call in (smtp.vrfy, smtp.verify, smtp.expn):
            with pytest.raises(ValueError, match="^address: "):
                await call(bad)
        for greet in (smtp.ehlo, smtp.helo):
            with pytest.raises(ValueError, match="^local_hostname: "):
                await greet("me>" + bad)
        assert relay.verbs == ["EHLO"]


async def test_no_recipients() -> None:
    async with relaying(Relay()) as relay, AsyncSMTP(relay.host, relay.port, "me.example") as smtp:
        await smtp.ehlo()
        with pytest.raises(ValueError, match="no recipients"):
            await smtp.sendmail("a@x.example", [], b"hi")
        assert relay.verbs == ["EHLO"]


@pytest.mark.parametrize("options", ["SIZE=5", [5], [None]])
async def test_options_of_the_wrong_type(options: Any) -> None:
    async with relaying(Relay()) as relay, AsyncSMTP(relay.host, relay.port, "me.example") as smtp:
        await smtp.ehlo()
        for where in ((options,), ((), options)):
            with pytest.raises(TypeError):
                await smtp.sendmail("a@x.example", "b@y.example", b"hi", *where)
        assert relay.verbs == ["EHLO"]
