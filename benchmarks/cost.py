"""Where the time goes with an EmailMessage: to build it, to flatten it, to find its addresses, to send it.

The first three are calls in a loop; a message sent as octets, and one built and sent, are bulk samples (one
connection, CHUNKING), of which the CPU time is taken.
"""

from __future__ import annotations

import email.generator
import io
import statistics
import time
from typing import TYPE_CHECKING

from . import bulk, bulkclients, rates

if TYPE_CHECKING:
    from collections.abc import Callable

    from .servers import Servers

WHOLE = "built and sent"


def flat(message: bulkclients.Message) -> bytes:
    """What any client has to do with a message, without asmtp."""
    assert not isinstance(message, tuple)
    with io.BytesIO() as out:
        email.generator.BytesGenerator(out, policy=message.policy).flatten(message, linesep="\r\n")
        return out.getvalue()


def steps() -> dict[str, Callable[[], object]]:
    message = bulkclients.build(0)
    calls: dict[str, Callable[[], object]] = {
        "build: `EmailMessage()`, 5 header fields, `set_content()`": lambda: bulkclients.build(0),
        "flatten: the standard library's `BytesGenerator` alone": lambda: flat(message),
    }
    if bulk.has("asmtp", "AsyncSMTP"):
        from asmtp.protocol.envelope import addresses_from_headers
        from asmtp.protocol.message import flatten

        calls["flatten: `asmtp.protocol.message.flatten`"] = lambda: flatten(message)
        calls["addresses: `asmtp.protocol.envelope.addresses_from_headers`"] = lambda: addresses_from_headers(message)
    return calls


def timed(call: Callable[[], object], seconds: float) -> float:
    """CPU time of one call, µs; the median of five loops."""
    call()
    begin = time.process_time()
    call()
    number = max(1, round(seconds / 5 / max(time.process_time() - begin, 1e-6)))
    loops = []
    for _ in range(5):
        begin = time.process_time()
        for _ in range(number):
            call()
        loops.append((time.process_time() - begin) / number * 1e6)
    return statistics.median(loops)


def run(servers: Servers, effort: rates.Effort) -> dict[str, float | None]:
    """µs of CPU time a message, by step; None where asmtp has no AsyncMailer."""
    figures: dict[str, float | None] = {name: timed(call, effort.near) for name, call in steps().items()}
    for name, kind in (("sent as octets", "bytes"), ("sent ready-made", "EmailMessage"), (WHOLE, "built")):
        scenario = bulk.row("chunking", 1, (), kind=kind)
        (measured,) = rates.run(servers, [scenario], effort, bulk.Method())
        figures[name] = measured.cpu("asmtp") if measured.samples["asmtp"] else None
    return figures
