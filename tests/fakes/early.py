"""A server that refuses a message before it has read all of it, and closes: in a thread, as it takes real sockets."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator

__all__ = ["ENOUGH", "REFUSAL", "early"]

ENOUGH = 200_000
"""Octets of content after which it has seen enough."""

REFUSAL = b"552 5.3.4 too large"


@contextlib.contextmanager
def early(*offers: str, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Run it, for one connection after the other, and give its port.

    Args:
        offers: the extensions.
        tls: TLS from the first octet.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_serve, args=(listener, offers, tls))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _serve(listener: socket.socket, offers: tuple[str, ...], tls: ssl.SSLContext | None) -> None:
    while True:
        try:
            accepted, _ = listener.accept()
        except OSError:  # it is over
            return
        with contextlib.suppress(OSError), accepted:
            accepted.settimeout(20)
            sock = accepted if tls is None else tls.wrap_socket(accepted, server_side=True)
            with sock, sock.makefile("rb") as lines:
                _talk(sock, lines, offers)


def _talk(sock: socket.socket, lines: object, offers: tuple[str, ...]) -> None:
    sock.sendall(b"220 early\r\n")
    for line in lines:  # type: ignore[attr-defined]
        verb = line[:4].upper()
        if verb == b"EHLO":
            sock.sendall("".join(f"250-{offer}\r\n" for offer in ("early", *offers)).encode() + b"250 HELP\r\n")
        elif verb == b"DATA":
            sock.sendall(b"354 go on\r\n")
        elif verb not in (b"MAIL", b"RCPT", b"RSET", b"BDAT"):
            continue  # a line of the content
        else:
            if verb != b"BDAT":
                sock.sendall(b"250 fine\r\n")
        if verb in (b"DATA", b"BDAT"):
            lines.read(ENOUGH)  # type: ignore[attr-defined]
            sock.sendall(REFUSAL + b"\r\n")
            return
