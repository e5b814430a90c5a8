"""The SMTP server under the benchmarks: correct, strict, and faster than any client it measures.

``python -m benchmarks.sink`` listens on three ports of 127.0.0.1, prints them on one line, in the order of
`OFFERS`, and runs until its standard input is closed. ``--selftest`` checks the parser against every way of
splitting a dialogue.

A blocking thread serves a connection: one recv, one pass over all it brought, one send of all the replies.
Whole groups (RSET MAIL RCPT... BDAT or DATA) are matched by one regular expression, chunks are skipped by
their count; what does not match is taken a line at a time by the state machine, which is the reference.

Strict: a client that pipelines where PIPELINING was not offered, that uses CHUNKING where it was not offered,
or that sends content before the 354, gets a 5xx and is closed, so that no figure comes from cheating.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import sys
import threading
from dataclasses import dataclass, field
from itertools import pairwise

OFFERS: dict[str, tuple[bytes, ...]] = {
    "none": (),
    "pipelining": (b"PIPELINING",),
    "chunking": (b"PIPELINING", b"CHUNKING"),
}

RECV_SIZE = 1 << 18
LONGEST_LINE = 4096

GREETING = b"220 sink.example ESMTP\r\n"
RSET_OK = b"250 2.0.0 Ok\r\n"
MAIL_OK = b"250 2.1.0 Ok\r\n"
RCPT_OK = b"250 2.1.5 Ok\r\n"
GO_AHEAD = b"354 End data with <CR><LF>.<CR><LF>\r\n"
QUEUED = b"250 2.0.0 Ok: queued as 4XhWq06gZ5z1\r\n"
CHUNK_OK = b"250 2.0.0 Ok: chunk taken\r\n"

GROUP = re.compile(
    rb"(RSET\r\n)?MAIL FROM:<[^\r\n]*\r\n((?:RCPT TO:<[^\r\n]*\r\n)+)(?:BDAT (\d+) LAST|DATA)\r\n",
    re.IGNORECASE,
)
BDAT = re.compile(rb"BDAT (\d+)( LAST)?", re.IGNORECASE)

# Where a transaction stands. FRESH: not even an EHLO yet.
FRESH, IDLE, MAIL, RCPT, CHUNKS = range(5)


@dataclass
class Conversation:
    """One connection without the socket: bytes in, replies out."""

    offers: tuple[bytes, ...]
    everyone: list[Conversation] = field(default_factory=list)
    messages: int = 0
    recipients: int = 0
    octets: int = 0
    closed: bool = False
    _state: int = FRESH
    _rest: bytes = b""  # what was received and not yet understood
    _in_content: bool = False  # behind a 354
    _chunk: int = 0  # octets of the present chunk still to come
    _chunk_reply: bytes = b""
    _replies: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.everyone.append(self)
        self._may_pipeline = b"PIPELINING" in self.offers
        self._may_chunk = b"CHUNKING" in self.offers

    def feed(self, data: bytes) -> bytes:
        """Take what one recv brought and return everything there is to answer."""
        if self._rest:
            data, self._rest = self._rest + data, b""
        position = 0
        while position < len(data) and not self.closed:
            if self._chunk:
                position = self._skip_chunk(data, position)
            elif self._in_content:
                position = self._content(data, position)
            else:
                after = self._groups(data, position) if self._may_pipeline else position
                position = after if after > position else self._line(data, position)
        replies = b"".join(self._replies)
        self._replies.clear()
        return replies

    def _groups(self, data: bytes, position: int) -> int:
        """The fast path: whole groups, and with BDAT the whole message, as long as they last."""
        match, replies, size, may_chunk = GROUP.match, self._replies, len(data), self._may_chunk
        if self._state != IDLE:
            return position
        while group := match(data, position):
            reset, recipients, count = group.groups()
            after = group.end()
            if count is None:
                if after != size:
                    break  # content ahead of the 354: the line parser says no
                closing = GO_AHEAD
            else:
                after += int(count)
                if after > size or not may_chunk:
                    break  # a piece of a chunk: the line parser knows how to wait for the rest
                closing = QUEUED
            many = recipients.count(b"\n")
            envelope = MAIL_OK + RCPT_OK if many == 1 else MAIL_OK + RCPT_OK * many
            replies.append((RSET_OK if reset else b"") + envelope + closing)
            position = after
            self.recipients += many
            if count is None:
                self._begin_content()
                break
            self.messages += 1
            self.octets += int(count)
        return position

    def _begin_content(self) -> None:
        # The line end of DATA is kept as if it were content: the first line may already be the dot.
        self._in_content = True
        self._rest = b"\r\n"
        self.octets -= 2

    def _content(self, data: bytes, position: int) -> int:
        dot = data.find(b"\r\n.\r\n", position)
        if dot < 0:
            keep = max(position, len(data) - 4)
            self.octets += keep - position
            self._rest = data[keep:]
            return len(data)
        self.octets += dot + 2 - position
        self.messages += 1
        self._in_content = False
        self._state = IDLE
        self._replies.append(QUEUED)
        return self._end_of_command(data, dot + 5)

    def _skip_chunk(self, data: bytes, position: int) -> int:
        step = min(self._chunk, len(data) - position)
        self._chunk -= step
        if not self._chunk:
            self._replies.append(self._chunk_reply)
            self.messages += self._chunk_reply is QUEUED
        return position + step

    def _line(self, data: bytes, position: int) -> int:
        end = data.find(b"\r\n", position)
        if end < 0:
            self._rest = data[position:]
            if len(self._rest) > LONGEST_LINE:
                self._close(b"500 5.5.2 Line too long\r\n")
            return len(data)
        line = data[position:end]
        verb = line[:4].upper()
        if handler := self._commands.get(verb):
            self._replies.append(handler(self, line))
        else:
            self._replies.append(b"500 5.5.2 Unknown command\r\n")
        if verb in (b"EHLO", b"HELO", b"DATA") and end + 2 < len(data):
            self._close(b"554 5.5.0 %s must be the last command of a group\r\n" % verb)
        return self._end_of_command(data, end + 2)

    def _end_of_command(self, data: bytes, position: int) -> int:
        if position < len(data) and not self._may_pipeline and not self._chunk:
            self._close(b"554 5.5.0 PIPELINING was not offered\r\n")
        return position

    def _close(self, reply: bytes) -> None:
        self._replies.append(reply)
        self.closed = True

    # The commands, a method each: the line in, the reply out.

    def _ehlo(self, line: bytes) -> bytes:
        self._state = IDLE
        if line[:1] in b"Hh":
            return b"250 sink.example\r\n"
        lines = [b"sink.example", *self.offers]
        return b"".join(b"250-%s\r\n" % x for x in lines[:-1]) + b"250 %s\r\n" % lines[-1]

    def _mail(self, line: bytes) -> bytes:
        if self._state != IDLE:
            return b"503 5.5.1 EHLO first, and one MAIL a transaction\r\n"
        if not line[4:].upper().startswith(b" FROM:<"):
            return b"501 5.5.4 Syntax: MAIL FROM:<address>\r\n"
        self._state = MAIL
        return MAIL_OK

    def _rcpt(self, line: bytes) -> bytes:
        if self._state not in (MAIL, RCPT):
            return b"503 5.5.1 MAIL first\r\n"
        if not line[4:].upper().startswith(b" TO:<"):
            return b"501 5.5.4 Syntax: RCPT TO:<address>\r\n"
        self._state = RCPT
        self.recipients += 1
        return RCPT_OK

    def _data(self, line: bytes) -> bytes:
        if self._state != RCPT:
            return b"503 5.5.1 RCPT first\r\n"
        self._begin_content()
        return GO_AHEAD

    def _bdat(self, line: bytes) -> bytes:
        match = BDAT.fullmatch(line)
        if not match or not self._may_chunk:
            self.closed = True  # without a count there is no way to find the next command
            return b"502 5.5.1 CHUNKING was not offered, or a syntax error\r\n"
        self._chunk, last = int(match[1]), bool(match[2])
        if self._state not in (RCPT, CHUNKS):
            reply = b"503 5.5.1 RCPT first\r\n"
        else:
            self._state = IDLE if last else CHUNKS
            self.octets += self._chunk
            reply = QUEUED if last else CHUNK_OK
        if not self._chunk:
            self.messages += reply is QUEUED
            return reply
        self._chunk_reply = reply
        return b""

    def _rset(self, line: bytes) -> bytes:
        self._state = min(self._state, IDLE)
        return RSET_OK

    def _noop(self, line: bytes) -> bytes:
        return b"250 2.0.0 Ok\r\n"

    def _quit(self, line: bytes) -> bytes:
        self.closed = True
        return b"221 2.0.0 Bye\r\n"

    def _stat(self, line: bytes) -> bytes:
        """Not SMTP: messages, recipients and octets of all connections so far, for the runner to check."""
        everyone = self.everyone
        sums = [sum(getattr(x, name) for x in everyone) for name in ("messages", "recipients", "octets")]
        return b"250 %d %d %d\r\n" % tuple(sums)

    _commands = {
        b"EHLO": _ehlo, b"HELO": _ehlo, b"MAIL": _mail, b"RCPT": _rcpt, b"DATA": _data, b"BDAT": _bdat,
        b"RSET": _rset, b"NOOP": _noop, b"QUIT": _quit, b"STAT": _stat,
    }  # fmt: skip


def serve(connection: socket.socket, offers: tuple[bytes, ...], everyone: list[Conversation]) -> None:
    """Serve one connection in the calling thread until either side ends it."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    conversation = Conversation(offers, everyone)
    feed, recv, send = conversation.feed, connection.recv, connection.sendall
    with connection:
        try:
            send(GREETING)
            while not conversation.closed and (data := recv(RECV_SIZE)):
                if replies := feed(data):
                    send(replies)
        except ConnectionError:
            pass  # a client that hangs up is the runner's to judge


def listen(offers: tuple[bytes, ...], everyone: list[Conversation]) -> int:
    """Accept connections in a thread of their own, and return the port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=serve, args=(connection, offers, everyone), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    port: int = listener.getsockname()[1]
    return port


def selftest() -> None:
    """A dialogue split at every position, and into single bytes, has the same replies; cheats are refused."""
    group = b"MAIL FROM:<a@b> SIZE=3\r\nRCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\n"
    content = b"A: b\r\n\r\n..x\r\n"
    reset, dialogue = b"RSET\r\n", [b"EHLO x\r\n"]
    chunks = b"BDAT 4\r\n\r\n.\rBDAT 0\r\nBDAT 3 LAST\r\nabc", b"BDAT 2 LAST\r\nhi", b"BDAT 5 LAST\r\nRSET\r"
    chunked = b"".join(reset + group + chunk for chunk in chunks)
    dialogue += [chunked + b"mail from:<>\r\n" * 2 + b"data\r\n"]
    dialogue += [reset + group + b"DATA\r\n", content + b".\r\n" + reset + group + b"DATA\r\n"]
    dialogue += [b".\r\nNOOP\r\nFOO\r\n", b"STAT\r\n", b"QUIT\r\n"]
    ok = [250]
    expected = [ok * 3, ok * 18 + [503, 503], ok * 4 + [354], ok * 5 + [354], [250, 250, 500], ok, [221]]
    for cut in range(max(map(len, dialogue)) + 1):
        conversation = Conversation(OFFERS["chunking"])
        for part, codes in zip(dialogue, expected, strict=True):
            ends = list(range(len(part) + 1)) if cut == 0 else [0, min(cut, len(part)), len(part)]
            answer = b"".join(conversation.feed(part[i:j]) for i, j in pairwise(ends))
            if (got := [int(line[:3]) for line in answer.splitlines()]) != codes:
                raise AssertionError(f"cut at {cut}: {part!r} got {got}, not {codes}")
        counts = (conversation.messages, conversation.recipients, conversation.octets)
        if counts != (5, 10, 7 + 2 + 5 + len(content)) or not conversation.closed:
            raise AssertionError(f"cut at {cut}: counted {counts}")
    for mode, cheat in (
        ("none", b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"),
        ("pipelining", group + b"DATA\r\nA: b\r\n"),
        ("pipelining", group + b"BDAT 2 LAST\r\nhi"),
    ):
        conversation = Conversation(OFFERS[mode])
        conversation.feed(b"EHLO x\r\n")
        if not conversation.feed(cheat).splitlines()[-1].startswith(b"5") or not conversation.closed:
            raise AssertionError(f"{mode}: took {cheat!r}")


def main() -> None:
    """Listen on a port a mode until standard input is closed, so that no sink outlives its runner."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--selftest", action="store_true")
    if parser.parse_args().selftest:
        selftest()
        return
    everyone: list[Conversation] = []
    print(*(listen(offers, everyone) for offers in OFFERS.values()), flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
