"""The outcome of each message of ``asmtp bulk``, in a file that survives the process and a power cut.

One JSON object a line: a header first, then two kinds of records.  ``begun`` names a message and its recipients, and is
on the disk before the message is handed over; ``ended`` tells what became of it, for each recipient.  A crash can lose
the last ``ended`` records, never a ``begun`` one that counted: what is begun and has not ended is in doubt.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self, get_args

from asmtp.cli.bulk.account import Account, Outcome
from asmtp.errors import DeliveryState

__all__ = ["Journal", "JournalError"]

_FORMAT = "asmtp bulk journal"
_VERSION = 1
_HEADER = json.dumps({"format": _FORMAT, "version": _VERSION}).encode() + b"\n"
_STATES = get_args(DeliveryState)


class JournalError(Exception):
    """The journal cannot be used, or not be written to; the text says why."""


class Journal(Account):
    """An account that is kept in a file, if it is opened with :meth:`open`.

    The methods that note and tell touch no file.  `take` and `write` bring what was noted to the disk; `write`
    may run in another thread than the rest, one call at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self._noted: list[bytes] = []
        self._kept: bytes = b""  # could not be written; part of the next `write`
        self._file: int | None = None
        self._size = 0  # octets known to be durable
        self._broken = False

    @classmethod
    def open(cls, path: str, *, read_only: bool = False) -> Self:
        """Open a journal or begin one; lock it; cut off a last line that a crash left half-written.

        Args:
            read_only: neither create, lock nor repair it; one that does not exist is an empty one.

        Raises:
            JournalError: another process has it, it is no journal, or a line is unreadable.
        """
        made = cls()
        if read_only and not os.path.exists(path):
            return made
        flags = os.O_RDONLY if read_only else os.O_RDWR | os.O_CREAT | os.O_APPEND
        try:
            made._file = os.open(path, flags | getattr(os, "O_CLOEXEC", 0), 0o600)
            if not stat.S_ISREG(os.fstat(made._file).st_mode):
                raise JournalError(f"{path}: not a file")
            if not read_only:
                _lock(made._file, path)
            made._load(path)
            if not read_only:
                made._begin(path)
        except BaseException as error:
            made.close()
            if isinstance(error, OSError):
                raise JournalError(f"{path}: {error.strerror}") from error
            raise
        if read_only:
            made.close()
        return made

    @property
    def is_open(self) -> bool:
        """Tell whether there is a file."""
        return self._file is not None

    def close(self) -> None:
        """Close the file, which gives up the lock; what was not written is lost."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def begun(self, key: str, recipients: Sequence[str]) -> None:
        """Note that a message is about to be handed over; it may be when this is written."""
        super().begun(key, recipients)
        self._note({"begun": key, "at": round(time.time(), 3), "to": recipients})

    def ended(self, key: str, outcomes: Mapping[str, Outcome]) -> None:
        """Note what became of it."""
        super().ended(key, outcomes)
        self._note({"ended": key, "at": round(time.time(), 3), "to": outcomes})

    def _note(self, record: dict[str, Any]) -> None:
        if self._file is not None:
            self._noted.append(json.dumps(record, separators=(",", ":")).encode() + b"\n")

    def take(self) -> bytes:
        """Return what was noted since the last call, for `write`."""
        noted, self._noted = self._noted, []
        return b"".join(noted)

    def write(self, records: bytes) -> None:
        """Append, and wait until it is durable.  Octets that could not be written are kept for the next call.

        Raises:
            JournalError: it is not durable: disk full, say.
        """
        if self._file is None:
            return
        if self._broken:
            raise JournalError("the journal cannot be written to any more")
        self._kept += records
        try:
            rest = memoryview(self._kept)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            _sync(self._file)
        except OSError as error:
            try:  # so that half a line is not in the way of the next; what a failed fsync left is written anew
                os.ftruncate(self._file, self._size)
            except OSError:
                self._broken = True
            raise JournalError(f"the journal cannot be written to: {error.strerror}") from error
        self._size += len(self._kept)
        self._kept = b""

    def _load(self, path: str) -> None:
        assert self._file is not None
        with open(self._file, "rb", closefd=False) as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    if number == 1 and not _HEADER.startswith(line):
                        raise JournalError(f"{path}: not a journal of asmtp bulk")
                    break  # torn: it was never durable, so nothing relies on it
                try:
                    if number == 1:
                        _check_header(line, path)
                    else:
                        self._read(json.loads(line))
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                    raise JournalError(f"{path}: line {number} is unreadable: {line[:60]!a}") from error
                self._size += len(line)
        self.abandon()

    def _read(self, record: dict[str, Any]) -> None:
        key, recipients = record.get("begun", record.get("ended")), record["to"]
        if not isinstance(key, str) or len({"begun", "ended"} & record.keys()) != 1:
            raise ValueError("no record")
        if "begun" in record:
            if not isinstance(recipients, list) or not all(isinstance(recipient, str) for recipient in recipients):
                raise ValueError("no recipients")
            super().begun(key, recipients)
            return
        outcomes = {recipient: Outcome(*outcome) for recipient, outcome in recipients.items()}
        if not all(outcome.state in _STATES for outcome in outcomes.values()):
            raise ValueError("no state")
        super().ended(key, outcomes)

    def _begin(self, path: str) -> None:
        assert self._file is not None
        os.ftruncate(self._file, self._size)
        if not self._size:
            self.write(_HEADER)
            with contextlib.suppress(OSError):  # not every system can
                _sync_folder(os.path.dirname(os.path.abspath(path)))


def _check_header(line: bytes, path: str) -> None:
    try:
        header = json.loads(line)
        known = header["format"] == _FORMAT
    except (ValueError, KeyError, TypeError, RecursionError):
        known = False
    if not known:
        raise JournalError(f"{path}: not a journal of asmtp bulk")
    if header["version"] != _VERSION:
        raise JournalError(f"{path}: version {header['version']!r} of the journal; this asmtp knows {_VERSION}")


def _lock(file: int, path: str) -> None:
    try:
        import fcntl
    except ModuleNotFoundError as error:
        raise JournalError("a journal needs flock, which this system does not have") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise JournalError(f"{path}: another process is using this journal") from error


def _sync(file: int) -> None:
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(file, fcntl.F_FULLFSYNC)  # fsync leaves it in the drive's cache there
    else:
        os.fsync(file)


def _sync_folder(path: str) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
