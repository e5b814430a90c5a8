"""A server without a socket that answers each command with the command itself, so that a reply says whose it is.

It behaves like the worst of the real ones: a MAIL in an open transaction is answered 503, but the RCPTs behind
it are taken into the open transaction, as Exim, Dovecot and sendmail do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Delivered:
    """A message that the server took."""

    sender: str
    recipients: tuple[str, ...]
    content: bytes


class Echo:
    """The server's side of a session.

    Args:
        refuse: asked for each command line, and each content and its recipient; the code to refuse it with, or "".
        impatient: 503 to everything that comes in the same octets behind the end of a content, as Haraka does.
        goes_on: it does not close when it has said 421.
    """

    def __init__(
        self,
        *,
        lmtp: bool = False,
        refuse: Callable[[str], str] = lambda line: "",
        impatient: bool = False,
        goes_on: bool = False,
    ) -> None:
        self.lmtp = lmtp
        self.refuse = refuse
        self.impatient = impatient
        self.goes_on = goes_on
        self.closed = False
        self._behind = False
        self.delivered: list[Delivered] = []
        self._data = b""
        self._sender: str | None = None
        self._recipients: list[str] = []
        self._reading = ""  # "data" or "bdat": content comes
        self._count = 0  # octets of the chunk still to come
        self._last = False
        self._content = b""
        self._failed = False

    def feed(self, data: bytes) -> list[str]:
        """Take what the client has written; the replies, without line ends."""
        self._data += data
        self._behind = False
        replies: list[str] = []
        while not self.closed and (some := self._step()) is not None:
            replies += some
            self.closed = some[-1:] != [] and some[-1].startswith("221" if self.goes_on else ("421", "221"))
        return replies

    def _step(self) -> list[str] | None:
        if self._reading == "data":
            return self._read_data()
        if self._reading == "bdat":
            return self._read_chunk()
        line, end, rest = self._data.partition(b"\r\n")
        if not end:
            return None
        self._data = rest
        return self._command(line.decode())

    def _command(self, line: str) -> list[str]:
        code = "503" if self._behind else self.refuse(line) or "250"
        verb = line.split()[0].lower()
        if verb == "bdat":
            self._reading = "bdat"
            self._count = int(line.split()[1])
            self._last = line.endswith("LAST")
            self._failed = self._failed or code != "250"
            return [f"421 {line}"] if code == "421" and not self.goes_on else []
        if verb == "rset" and code == "250":
            self._forget()
        elif verb == "mail" and code == "250":
            if self._sender is not None:
                code = "503"
            else:
                self._sender = line[len("mail from:<") : -1]
        elif verb == "rcpt" and code == "250":
            if self._sender is None:
                code = "503"
            else:
                self._recipients.append(line[len("rcpt to:<") : -1])
        elif verb == "data" and code == "250":
            code = "354" if self._recipients else "503"
            self._reading = "data" if self._recipients else ""
        elif verb == "quit":
            code = "221"
        return [f"{code} {line}"]

    def _read_data(self) -> list[str] | None:
        if self._data.startswith(b".\r\n"):
            content, rest = b"", self._data[3:]
        else:
            content, end, rest = self._data.partition(b"\r\n.\r\n")
            if not end:
                return None
            content += b"\r\n"
        self._data = rest
        self._reading = ""
        return self._finals((b"\r\n" + content).replace(b"\r\n.", b"\r\n")[2:])

    def _read_chunk(self) -> list[str] | None:
        if len(self._data) < self._count:
            return None
        self._content += self._data[: self._count]
        self._data = self._data[self._count :]
        self._reading = ""
        if not self._recipients:
            return ["503 no recipients"]
        if self._failed:
            return ["552 too much"] * (len(self._recipients) if self.lmtp and self._last else 1)
        return self._finals(self._content) if self._last else ["250 chunk"]

    def _finals(self, content: bytes) -> list[str]:
        said = content.split(b"\r\n")[0].decode("latin-1")
        codes = [self.refuse(said) or "250" for _ in self._recipients]
        if not self.lmtp:
            codes = [codes[0]] * len(codes)
        if "421" in codes and not self.goes_on:
            del codes[codes.index("421") + 1 :]
        taken = tuple(who for who, code in zip(self._recipients, codes, strict=False) if code == "250")
        if taken:
            self.delivered.append(Delivered(self._sender or "", taken, content))
        self._forget()
        self._behind = self.impatient
        return [f"{code} {said}" for code in (codes if self.lmtp else codes[:1])]

    def _forget(self) -> None:
        self._sender = None
        self._recipients = []
        self._content = b""
        self._failed = False
