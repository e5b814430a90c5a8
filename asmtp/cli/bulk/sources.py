"""Messages out of files, Maildirs and mboxes: an item at a time, ready to be sent.

All of this blocks; it is for a thread.
"""

from __future__ import annotations

import contextlib
import email
import email.errors
import email.policy
import errno
import hashlib
import os
import re
import stat
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from asmtp.protocol.envelope import Envelope, addresses_from_headers

__all__ = ["Item", "Sources"]

STREAMED = 1 << 20
"""Octets above which a file is left where it is, to be streamed; its header has to end within them."""

LARGEST = 1 << 28
"""Octets that are held in memory for one message, at most."""

_PIECE = 1 << 16

_END_OF_HEADER = re.compile(rb"((?>\r\n|\r|\n))(?>\r\n|\r|\n)")
_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:")
_QUOTED_FROM = re.compile(rb"^>(?=>*From )", re.MULTILINE)
_BLIND = frozenset({b"bcc", b"resent-bcc"})
_ADDRESSING = frozenset(prefix + name for prefix in (b"", b"resent-") for name in (b"from", b"sender", b"to", b"cc"))
_ADDRESSING |= _BLIND | {b"resent-date"}

# What the email package raises at a header that it cannot make sense of.
_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, RecursionError, email.errors.MessageError)


@dataclass(slots=True)
class Item:
    """A message, or an item that cannot be read as one.

    Attributes:
        name: what people call it: a path, and the place in an mbox.
        key: what the journal calls it.
        octets: its size in the file.
        envelope: sender, recipients and content (bytes, or the path of what is to be streamed); None: see `error`.
        error: why it cannot be sent.
    """

    name: str
    key: str
    octets: int
    envelope: Envelope | None = None
    error: str = ""


class Sources:
    """The messages of files, directories of .eml files, Maildirs, and mboxes.

    Args:
        paths: where they are.
        sender: the sender of each; None: as its header says.
        recipients: the recipients of each; none: as its header says.

    Raises:
        OSError: there is no such path.
        ValueError: it is neither a file nor a directory; `sender` or a recipient is no address.
    """

    def __init__(self, paths: Sequence[str], sender: str | None = None, recipients: Sequence[str] = ()) -> None:
        if any("://" in path for path in paths):  # an error would show its password
            raise ValueError("a PATH is a URL, which belongs behind --url")
        self._paths = [os.path.abspath(path) for path in paths]
        self._sender = sender
        self._recipients = list(recipients) or None
        Envelope(sender or "", self._recipients or "nobody")
        for path in self._paths:
            mode = os.stat(path).st_mode
            if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
                raise ValueError(f"{path}: neither a file nor a directory")

    def __iter__(self) -> Generator[Item, None, None]:
        for path in self._paths:
            try:
                for file, unique in _files(path):
                    yield from self._file(file, unique)
            except OSError as error:  # a directory that cannot be listed
                yield Item(path, path, 0, error=error.strerror or str(error))

    def octets(self) -> int:
        """Return how much there is, so that progress can be shown."""
        total = 0
        for path in self._paths:
            with contextlib.suppress(OSError):  # a directory that cannot be listed
                for file, _ in _files(path):
                    with contextlib.suppress(OSError):  # it is gone meanwhile
                        total += os.stat(file).st_size
        return total

    def _file(self, path: str, unique: str | None) -> Iterator[Item]:
        """Yield the messages of a file.

        Args:
            unique: the path without what changes in it, for a message in a Maildir.
        """
        try:
            with _opened(path, unique) as file:
                if unique is None and file.peek(5)[:5] == b"From ":
                    yield from self._mbox(path, file)
                elif unique is not None or os.fstat(file.fileno()).st_size or path.lower().endswith(".eml"):
                    yield self._single(path, unique or path, file)
                # Else it is an mbox without messages.
        except OSError as error:
            yield Item(path, unique or path, 0, error=error.strerror or str(error))

    def _single(self, path: str, unique: str, file: BufferedReader) -> Item:
        size = os.fstat(file.fileno()).st_size
        octets = file.read(STREAMED + 1)
        digest = hashlib.sha256(octets)
        content: bytes | Path = octets
        header, _ = _split(octets)
        if len(octets) > STREAMED:
            if len(header) == len(octets):
                return Item(path, unique, size, error=f"its header is longer than {STREAMED} octets")
            if any(name in _BLIND for name, _ in _fields(header)):
                content = octets + file.read(LARGEST)
                digest.update(content[len(octets) :])
                if file.read(1):
                    return Item(path, unique, size, error=f"with a Bcc field, and larger than {LARGEST} octets")
            else:
                content = Path(path)
                for piece in iter(lambda: file.read(STREAMED), b""):
                    digest.update(piece)
        return self._item(Item(path, f"{unique}#{digest.hexdigest()[:16]}", size), header, content)

    def _mbox(self, path: str, file: BufferedReader) -> Iterator[Item]:
        occurrences: dict[bytes, int] = {}
        for number, (octets, size) in enumerate(_entries(file), 1):
            item = Item(f"{path} (message {number})", path, size)
            if octets is None:
                item.error = f"larger than {LARGEST} octets"
                yield item
                continue
            digest = hashlib.sha256(octets).digest()[:8]
            occurrence = occurrences[digest] = occurrences.get(digest, 0) + 1
            item.key = f"{path}#{digest.hex()}" + (f".{occurrence}" if occurrence > 1 else "")
            yield self._item(item, _split(octets)[0], octets)

    def _item(self, item: Item, header: bytes, content: bytes | Path) -> Item:
        fields = list(_fields(header))
        try:
            sender, recipients = self._addresses(fields)
            if not recipients:
                raise ValueError("no recipients")
            if isinstance(content, bytes) and any(name in _BLIND for name, _ in fields):
                # Not by way of the email package, which writes a header anew: signatures must survive.
                content = b"".join(field for name, field in fields if name not in _BLIND) + content[len(header) :]
            item.envelope = Envelope(sender, dict.fromkeys(recipients), content=content)
        except _UNREADABLE as error:
            item.error = str(error).removeprefix("sender: not given, and ") or type(error).__name__
        return item

    def _addresses(self, fields: list[tuple[bytes, bytes]]) -> tuple[str, list[str]]:
        if self._sender is not None and self._recipients is not None:
            return self._sender, self._recipients
        for name, field in fields:
            if not name:  # what comes behind it is header for some and body for others
                raise ValueError(f"a line in the header is no field: {field[:60]!a}")
        octets = b"".join(name + b":" + field.partition(b":")[2] for name, field in fields if name in _ADDRESSING)
        # The policy that knows encoded words, comments and UTF-8 takes six times as long.
        plain = octets.isascii() and b"=?" not in octets and b"(" not in octets
        policy = email.policy.compat32 if plain else email.policy.default
        message = email.message_from_bytes(octets + b"\r\n", policy=policy)
        return addresses_from_headers(message, self._sender, self._recipients)


def _split(octets: bytes) -> tuple[bytes, bytes]:
    """Split into the header and the rest, which begins with the empty line.  A lone CR or LF ends a line, too."""
    if octets[:1] in (b"\r", b"\n"):
        return b"", octets
    found = _END_OF_HEADER.search(octets)
    end = found.end(1) if found else len(octets)
    return octets[:end], octets[end:]


def _fields(header: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the fields: the name in lower case (empty if it is no field), and all octets of it."""
    name = field = b""
    for line in header.splitlines(keepends=True):
        if line[:1] in (b" ", b"\t") and field:
            field += line
            continue
        if field:
            yield name, field
        found = _FIELD.match(line)
        name, field = (found[1].lower() if found else b""), line
    if field:
        yield name, field


def _entries(file: BufferedReader) -> Iterator[tuple[bytes | None, int]]:
    """Yield the messages of an mbox (RFC 4155) and their sizes in it; None for one that is too large.

    The mailbox module of the standard library reads the whole file before it tells of the first message, takes "From "
    anywhere for a new one, and leaves ">From " as it is.
    """
    lines: list[bytes] = []
    size = 0
    fresh = blank = True  # at the start of a line; behind an empty one
    heading = False  # in a "From " line
    for line in iter(lambda: file.readline(_PIECE), b""):
        if blank and line.startswith(b"From "):
            if size:
                yield _entry(lines, size), size
            lines, size, heading = [], 0, True
        size += len(line)
        blank = fresh and line in (b"\n", b"\r\n")
        fresh = line.endswith(b"\n")
        if not heading and size <= LARGEST:
            lines.append(line)
        heading = heading and not fresh
    yield _entry(lines, size), size


def _entry(lines: list[bytes], size: int) -> bytes | None:
    if size > LARGEST:
        return None
    if lines and lines[-1] in (b"\n", b"\r\n"):
        lines.pop()  # it belongs to the mbox
    return _QUOTED_FROM.sub(b"", b"".join(lines))


def _files(path: str) -> Iterator[tuple[str, str | None]]:
    """Yield the files at a path; for those of a Maildir, the path without folder and flags besides."""
    if not os.path.isdir(path):
        yield path, None
    elif all(os.path.isdir(os.path.join(path, name)) for name in ("cur", "new")):
        found = [(name, folder) for folder in ("new", "cur") for name in os.listdir(os.path.join(path, folder))]
        for name, folder in sorted(found):
            if not name.startswith("."):
                yield os.path.join(path, folder, name), os.path.join(path, _unique(name))
    else:
        with os.scandir(path) as entries:
            names = [entry.name for entry in entries if entry.name.lower().endswith(".eml") and not _is_folder(entry)]
        for name in sorted(names):
            yield os.path.join(path, name), None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle: who opens it is told
        return False


def _unique(name: str) -> str:
    return name.partition(":")[0]


def _opened(path: str, unique: str | None) -> BufferedReader:
    """Open a file; look for a message that was moved within its Maildir meanwhile.

    Raises:
        OSError: it cannot be opened, or is no file.
    """
    try:
        file = open(path, "rb", opener=_open_at_once)  # noqa: SIM115  # closed by the caller
    except FileNotFoundError:
        if unique is None:
            raise
        maildir, name = os.path.split(unique)
        moved = [file for file, other in _files(maildir) if other == unique and file != path]
        if not moved:
            raise
        file = open(moved[0], "rb", opener=_open_at_once)  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a file")
    return file


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # not when somebody writes to it, if it is a pipe
