"""The embedded server: what a client is told that sends content by BDAT."""

from __future__ import annotations

import socket

from asmtp.cli.demo.server import Inbox, serving


def talk(inbox: Inbox, *pieces: bytes) -> list[bytes]:
    """Say each piece when the one before it is answered; the codes of the replies."""
    codes = []
    with socket.create_connection(("127.0.0.1", inbox.port), timeout=10) as sock, sock.makefile("rb") as replies:
        for piece in (b"", b"EHLO me.example\r\n", *pieces):
            sock.sendall(piece)
            line = b"   -"
            while line[3:4] == b"-":
                line = replies.readline()
            codes.append(line[:3])
    return codes[2:]


ENVELOPE = b"MAIL FROM:<a@x.example>\r\n", b"RCPT TO:<b@y.example>\r\n"


def test_chunks() -> None:
    with serving(Inbox("CHUNKING")) as inbox:
        assert talk(inbox, *ENVELOPE, b"BDAT 3\r\nhel", b"BDAT 4 LAST\r\nlo\r\n") == [b"250"] * 4
        assert [letter.content for letter in inbox.letters] == [b"hello\r\n"]


def test_a_refused_chunk_is_read() -> None:
    """RFC 3030 §2."""
    with serving(Inbox("CHUNKING")) as inbox:
        assert talk(inbox, b"BDAT 6 LAST\r\nNOOP\r\n", b"RSET\r\n") == [b"503", b"250"]


def test_bdat_that_is_not_understood() -> None:
    with serving(Inbox("CHUNKING")) as inbox:
        assert talk(inbox, b"BDAT\r\n", b"BDAT x\r\n", b"BDAT 3 FIRST\r\n") == [b"501"] * 3


def test_a_client_that_stays_to_the_end() -> None:
    with serving(Inbox()) as inbox:
        sock = socket.create_connection(("127.0.0.1", inbox.port), timeout=10)
        assert sock.recv(3) == b"220"
    with sock:
        while sock.recv(100):
            pass
