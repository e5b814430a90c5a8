"""The targets, by name."""

from __future__ import annotations

from collections.abc import Callable

from tests.fuzz import contents, envelopes, journals, logins, mailings, messages, offers, replies, sessions, urls
from tests.fuzz.data import FuzzedData
from tests.fuzz.engine import Target

__all__ = ["TARGETS"]

_CHOSEN: list[tuple[Callable[[FuzzedData], None], int, int]] = [
    (replies.reply, 20000, 600),
    (replies.status, 20000, 60),
    (offers.ehlo, 20000, 200),
    (contents.content, 10000, 200),
    (envelopes.envelope, 20000, 120),
    (envelopes.commands, 20000, 60),
    (logins.sasl, 20000, 200),
    (urls.url, 20000, 80),
    (journals.journal, 8000, 200),
    (messages.message, 800, 200),
    (sessions.session, 3000, 1000),
    (sessions.liar, 4000, 1000),
    (mailings.mailing, 400, 120),
]

TARGETS = {run.__name__: Target(run.__name__, run, quick, size) for run, quick, size in _CHOSEN}
"""Each raises, AssertionError as a rule, where something is wrong."""
