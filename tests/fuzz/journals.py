"""The journal of ``asmtp bulk``: read, or refused with a reason; what had begun is never forgotten."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any, get_args

from asmtp.cli.bulk.journal import Journal, JournalError
from asmtp.errors import DeliveryState
from tests.fuzz.data import FuzzedData

__all__ = ["journal"]

HEADER = json.dumps({"format": "asmtp bulk journal", "version": 1}).encode() + b"\n"
KEYS = ["m1", "m2", "\u00fc", "\ud800"]
PEOPLE = ["a@x", "b@x", "c@x"]
STATES = list(get_args(DeliveryState))
# What stands where it should not.
ODD = [
    b"", b"null", b"[]", b"{}", b'"', b"1", b"\0", b"\xff\xfe", b'{"begun":1,"to":[]}', b'{"ended":"m1","to":[]}',
    b'{"ended":"m1","to":{"a@x":["sent","5"]}}', b'{"ended":"m1","to":{"a@x":["refused","5",1]}}', b'{"begun":"m1"}',
    b'{"ended":"m1","to":{"a@x":[[],5,""]}}', b'{"ended":"m1","to":{"a@x":1}}', b"9" * 5000,
    b'{"begun":"m1","to":[{}]}', b'{"begun":"m1","ended":"m1","to":[]}', b'{"ended":"m1","to":{"a@x":["sent",1,2,3]}}',
    b"NaN", b"[" * 90, b"\n",
]  # fmt: skip
_FILE = Path(tempfile.gettempdir()) / f"asmtp-fuzz-{os.getpid()}"


def journal(data: FuzzedData) -> None:
    """A journal cut off anywhere, or with anything in it: what is begun and has not ended is in doubt."""
    records = [_record(data) for _ in range(data.below(12))]
    lines = [HEADER, *(json.dumps(record, separators=(",", ":")).encode() + b"\n" for record in records)]
    odd = data.chance(2)
    if odd:
        lines.insert(data.below(len(lines) + 1), data.pick(ODD) + data.pick([b"\n", b"\n", b""]))
    octets = b"".join(lines)
    cut = data.below(len(octets) + 1) if data.flag() else len(octets)
    octets = octets[:cut]
    try:
        _FILE.write_bytes(octets)
        found = Journal.open(str(_FILE), read_only=True)
    except JournalError as error:
        assert odd, f"not read: {error}"
        assert len(str(error)) < 600, "an error as long as the journal"
        return
    finally:
        _FILE.unlink(missing_ok=True)
    if odd:
        return
    known = _reference(records[: max(octets.count(b"\n") - 1, 0)])
    for key in KEYS:
        standing = found.standing(key, PEOPLE)
        for who in PEOPLE:
            place = next(name for name in standing._fields if who in getattr(standing, name))
            assert place == known.get((key, who), "left"), f"{key!a} {who}: {place}: {octets!r}"


def _record(data: FuzzedData) -> dict[str, Any]:
    key = data.pick(KEYS)
    people = data.some(PEOPLE)
    if data.flag():
        return {"begun": key, "at": 1.5, "to": people}
    return {"ended": key, "at": 2, "to": {who: _outcome(data) for who in people}}


def _outcome(data: FuzzedData) -> list[Any]:
    return [data.pick(STATES), data.pick([None, 250, 450, 550, 530]), "text"]


def _reference(records: list[dict[str, Any]]) -> dict[tuple[str, str], str]:
    """A model of what the docstrings of the account say, for one message and one recipient at a time."""
    known: dict[tuple[str, str], str] = {}
    begun: dict[tuple[str, str], bool] = {}
    doubt: dict[tuple[str, str], bool] = {}
    settled: dict[tuple[str, str], set[str]] = {}
    for record in records:
        for who in record["to"]:
            if "begun" in record:
                pair = (record["begun"], who)
                doubt[pair] = doubt.get(pair, False) or begun.get(pair, False)
                begun[pair] = True
                continue
            pair = (record["ended"], who)
            state, code, _ = record["to"][who]
            begun[pair] = False
            passing = code is None or code < 500 or code == 530
            if state == "in_doubt":
                doubt[pair] = True
            elif state == "sent" or (state == "refused" and not passing):
                settled.setdefault(pair, set()).add(state)
                doubt[pair] = False
    for pair in begun.keys() | doubt.keys() | settled.keys():
        if settled.get(pair):
            known[pair] = "sent" if "sent" in settled[pair] else "refused"
        elif doubt.get(pair) or begun.get(pair):
            known[pair] = "in_doubt"
    return known
