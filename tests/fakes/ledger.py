"""An account of what was sent, what was said of it, and what the relay took: the three must agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from asmtp import SMTPProtocolError
from tests.fakes.faults import Proxy

__all__ = ["Message", "Said", "complaints", "picky"]

FILLER = b"filler " * 10 + b"\r\n"


def picky(verb: str, line: str) -> str | None:
    """Return a relay's answers: some recipients are not known, and each message is told its own name."""
    if verb == "RCPT" and "<no-" in line:
        return f"550 5.1.1 {line.partition('<')[2].partition('>')[0]}"
    if verb[0] == ".":
        return f"250 2.0.0 taken {line.partition('Subject: ')[2].partition(chr(13))[0]}"
    return None


@dataclass(frozen=True)
class Message:
    """A message with a name, which is everywhere in it."""

    name: str
    people: tuple[str, ...] = ("bob",)
    lines: int = 0

    @property
    def sender(self) -> str:
        return f"from-{self.name}@x.example"

    @property
    def recipients(self) -> list[str]:
        return [f"{who}-{self.name}@y.example" for who in self.people]

    @property
    def good(self) -> list[str]:
        """Return those that a :func:`picky` relay takes."""
        return [recipient for recipient in self.recipients if not recipient.startswith("no-")]

    @property
    def content(self) -> bytes:
        return b"Subject: <%b>\r\n\r\n%b%b" % (self.name.encode(), FILLER * self.lines, self._end)

    @property
    def _end(self) -> bytes:
        return b".end of <%b>\r\n" % self.name.encode()

    def ends(self, stream: bytes) -> int:
        """Count how often the whole content, to its very end, is in what a client wrote to a connection."""
        count = 0
        place = -1
        while (place := stream.find(self._end, place + 1)) >= 0:
            behind = stream[place + len(self._end) :]
            before = stream[:place]
            data, chunk = before.rfind(b"data\r\n"), before.rfind(b"BDAT ")
            if data > chunk:
                count += behind.startswith(b".\r\n")
            else:
                whole = b" LAST\r\n" in before[chunk : chunk + 20]
                count += whole or behind.startswith(b"BDAT 0 LAST\r\n")
        return count


@dataclass
class Said:
    """The words of the client about a message.

    Attributes:
        state: "sent", "refused", "not_sent" or "in_doubt"; "unasked" where it was cancelled.
        accepted: the recipients that have it.
        refused: the recipients that were refused, where it was sent to others.
        failed: the recipients of whom neither is known, where it was, and what is.
        replies: what the client shows of the server's final replies; each has the name in it.
        error: why it was not sent.
    """

    state: str | None
    accepted: Collection[str] = ()
    refused: Mapping[str, tuple[int, bytes]] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    replies: Collection[str] = ()
    error: BaseException | None = None

    def __str__(self) -> str:
        return f"{self.state} {self.error!r}" if self.error is not None else str(self.state)


def complaints(pairs: Iterable[tuple[Message, Said]], proxy: Proxy) -> list[str]:
    """Return all that is not as it must be."""
    pairs = list(pairs)
    letters = proxy.relay.letters
    names = [message.sender for message, _ in pairs]
    found = [f"a letter that nobody sent: {letter}" for letter in letters if letter.sender not in names]
    found += [f"told of {name} {names.count(name)} times" for name in set(names) if names.count(name) > 1]
    for message, said in pairs:
        found += [f"{message.name} is {said}: {what}" for what in _of(message, said, proxy)]
    return found


def _of(message: Message, said: Said, proxy: Proxy) -> list[str]:
    letters = [letter for letter in proxy.relay.letters if letter.sender == message.sender]
    found = []
    for letter in letters:
        if letter.content != message.content:
            found.append(f"taken with other content: {letter.content[:200]!r}")
        if not set(letter.recipients) <= set(message.good):
            found.append(f"taken for others: {letter.recipients}")
    failed = dict(said.failed)
    if said.state in ("in_doubt", "unasked"):
        failed |= dict.fromkeys(set(message.recipients) - set(said.accepted) - set(said.refused), "in_doubt")
    found += _of_state(message, said, failed)
    taken = Counter(recipient for letter in letters for recipient in letter.recipients)
    found += _of_recipients(message, said, failed, taken)
    found += [f"another's final reply: {reply}" for reply in said.replies if f"<{message.name}>" not in reply]
    if said.state != "unasked" and "in_doubt" in (said.state, *failed.values()):
        found += _doubts(message, said, proxy)
    return found


def _of_state(message: Message, said: Said, failed: Mapping[str, str]) -> list[str]:
    """Return what contradicts the state."""
    if said.state in ("not_sent", "refused"):
        return [f"but accepted for {said.accepted}"] if said.accepted else []
    if said.state == "sent":
        everyone = [*said.accepted, *said.refused, *failed]
        if not said.accepted or sorted(everyone) != sorted(message.recipients):
            return [f"accepted {[*said.accepted]}, refused {[*said.refused]}, failed {[*failed]}"]
        return []
    return [] if said.state in ("in_doubt", "unasked") else ["that is no state"]


def _of_recipients(message: Message, said: Said, failed: Mapping[str, str], taken: Counter[str]) -> list[str]:
    """Return what contradicts what was said of each recipient."""
    found = []
    for who in message.recipients:
        if taken[who] > 1 or (taken[who] == 0 and who in said.accepted):
            found.append(f"taken {taken[who]} times for {who}")
        elif taken[who] == 1 and who not in said.accepted and failed.get(who) != "in_doubt":
            found.append(f"taken for {who}")
    for who, (code, text) in said.refused.items():
        if not 400 <= code <= 599 or not text.endswith(f" {who}".encode()):
            found.append(f"another's reply for {who}: {code} {text!r}")
    return found


def _doubts(message: Message, said: Said, proxy: Proxy) -> list[str]:
    """Return whether there is a reason for doubt: it was written to its end, and that was not answered."""
    written = sum(message.ends(bytes(stream)) for stream in proxy.written)
    if not written:
        return ["but its end was never written"]
    if isinstance(said.error, SMTPProtocolError) and said.error.smtp_code == 250:
        return []  # it was taken though its RSET was refused: that is no success, whatever the last reply says
    told = sum(link.shown.count(f"<{message.name}>\r\n".encode()) for link in proxy.links)
    if proxy.relay.lmtp:
        told //= max(
            [len(letter.recipients) for letter in proxy.relay.letters if letter.sender == message.sender] or [1]
        )
    return ["but the client was told"] if told >= written else []
