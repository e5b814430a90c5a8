"""The doings of asmtp bulk's connections, as it remembers them."""

from __future__ import annotations

from typing import Any

import pytest

from asmtp.cli.bulk.tally import Tally
from asmtp.cli.bulk.watching import Watching
from asmtp.client.events import Event
from asmtp.mailer.mailer import Statistics


def stats(opened: int, opening: int) -> Statistics:
    return Statistics(opened, opening, 0, 0, 0, 0, 0, 0, 0)


def write(*commands: str, server: str = "a:25") -> Event:
    return Event("write", 1, server, 0.0, {"commands": commands, "octets": 1})


@pytest.mark.parametrize(
    ("events", "chunking"),
    [
        ([], False),
        ([write("MAIL", "RCPT", "DATA")], False),
        ([write("MAIL", "BDAT", "RSET")], False),  # a question, not a message
        ([write("RSET", "MAIL", "RCPT", "BDAT")], True),
        ([write("MAIL", "RCPT", "BDAT"), write("MAIL", "RCPT", "DATA")], True),  # the first of another connection
        ([write("MAIL", "RCPT", "BDAT"), write("MAIL", "RCPT", "DATA", server="b:25")], False),
    ],
)
def test_by_what_content_goes(events: list[Event], chunking: bool) -> None:
    watching = Watching()
    for event in events:
        watching(event)
    assert watching.chunking is chunking


def test_what_is_waited_for() -> None:
    now = 0.0
    watching = Watching(lambda: now)
    tally = Tally(waiting=lambda: watching.waiting(current, "a:25 or b:25"))
    current: Any = stats(0, 1)
    now = 14.2
    assert tally.line().endswith("; waiting for the greeting of a:25 or b:25, 14 s")
    watching(Event("close", 1, "a:25", 0.0, {"reason": "timed out"}))
    now = 20.0
    assert tally.line().endswith(", 6 s")
    for current in (stats(1, 1), stats(0, 0)):  # noqa: B007  # the function above reads it
        assert "waiting" not in tally.line()
    current = stats(0, 1)
    tally.ended = 30.0
    assert "waiting" not in tally.line()
