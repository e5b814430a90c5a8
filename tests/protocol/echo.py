"""A server without a socket that answers each command with the command itself, so that a reply says whose it is."""

from __future__ import annotations

from collections.abc import Callable

from tests.fakes.server import Server

__all__ = ["Echo"]


class Echo(Server):
    """Answer each command line with itself, as the server's side of a session.

    Args:
        refuse: asked for each command line, and each content and its recipient; the code to refuse it with, or "".
    """

    def __init__(
        self,
        *,
        lmtp: bool = False,
        refuse: Callable[[str], str] = lambda line: "",
        impatient: bool = False,
        goes_on: bool = False,
    ) -> None:
        super().__init__(lmtp=lmtp, impatient=impatient, goes_on=goes_on)
        self.refuse = refuse

    def answer(self, verb: str, line: str) -> str | None:
        code = self.refuse(_first_line(line))
        return self.usual(code, line) if code else None

    def usual(self, reply: str, line: str) -> str:
        return f"{reply[:3]} {_first_line(line)}"

    def do_bdat(self, line: str) -> None:
        if self._chunk_reply is not None and self._chunk_reply.startswith("421") and not self.goes_on:
            self.say(self._chunk_reply)  # and it closes
        else:
            super().do_bdat(line)

    def end_of_chunk(self) -> None:
        self.say("250 chunk")

    def refuse_chunk(self) -> None:
        if not self.recipients:
            self.say("503 no recipients")
            return
        for _ in self.recipients if self.lmtp and self._last else [""]:
            self.say("552 too much")


def _first_line(text: str) -> str:
    return text.split("\r\n")[0]
