"""The words of a server reach exceptions, logs and terminals as one printable line of limited length."""

from __future__ import annotations

import logging
from typing import Any

import pytest

import asmtp
from asmtp.cli.bulk.account import outcomes_of
from asmtp.cli.bulk.tally import Tally, shown
from tests.fakes.script import Step, expect, fin, scripted, send
from tests.mailer.mailing import item

NASTY = "\x1b[2J\x07 a\rb\x7f\u2028\u202e\x9b ok".encode() + b"\xff"
LONG = b"x" * 8000  # a line that is read
SHOUT = NASTY + b"y" * 100_000  # one that is not


def says(code: int, text: bytes) -> Step:
    """A reply with such a text in several lines, or in one."""
    lines = [b"%d-" % code + text + b"\r\n", b"%d " % code + text + b"\r\n"]
    return send(*(lines if len(text) < 9000 else lines[1:]))


HELLO = [send("220 hi"), expect("ehlo me.example"), send("250-hi", "250 AUTH PLAIN")]
LOGIN = [expect("AUTH PLAIN AGpvZQBzM2NyZXQ="), send("235 ok")]
SENDER, RECIPIENT, CONTENT = item(1)
MAIL = [*HELLO, *LOGIN, expect(f"mail from:<{SENDER}>")]
RCPT = [*MAIL, send("250 ok"), expect(f"rcpt to:<{RECIPIENT}>")]
DATA = [*RCPT, send("250 ok"), expect("data")]
END = [*DATA, send("354 go"), expect(CONTENT + b".\r\n")]
STAGES: dict[str, list[Step]] = {
    "greeting": [],
    "EHLO": HELLO[:2],
    "AUTH": [*HELLO, *LOGIN[:1]],
    "MAIL": MAIL,
    "RCPT": RCPT,
    "DATA": DATA,
    "end of content": END,
}


@pytest.mark.parametrize("text", [NASTY, NASTY + LONG, SHOUT], ids=["short", "long", "too long"])
@pytest.mark.parametrize("code", [220, 250, 354, 421, 450, 554])
@pytest.mark.parametrize("stage", STAGES)
async def test_what_a_server_says(stage: str, code: int, text: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "asmtp")
    script = [*STAGES[stage], says(code, text), fin]
    async with scripted(script) as server:
        relay = asmtp.Relay(server.host, server.port, username="joe", password="s3cret", tls="none")
        mailer = asmtp.AsyncMailer(relay, local_hostname="me.example", retry=None, connections=1)
        async with mailer:
            (delivery,) = [delivery async for delivery in mailer.send_all([item(1)])]
        server.peer.over.set()
    told: list[Any] = [record.getMessage() for record in caplog.records]
    if delivery.error is None:
        assert delivery.receipt is not None
        told.append(delivery.receipt.reply)
    else:
        told += [delivery.error, *(() if delivery.error.__cause__ is None else [delivery.error.__cause__])]
    for one in map(str, told):
        assert one.isprintable()
        assert len(one) < 4096 * 4 + 100  # the log has more of a reply: four characters for an octet that is escaped
    assert delivery.error is None or len(str(delivery.error)) < 1500
    tally = Tally()
    tally.arrived("name", delivery.state, outcomes_of(delivery, [RECIPIENT]))
    assert all(line.isprintable() for line in shown(tally.text()).split("\n"))
