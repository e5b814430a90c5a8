"""A session, a server, what is on its way between them, and callers who do anything in any order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from asmtp.auth.mechanisms import cram_md5, login, plain
from asmtp.errors import SMTPException, SMTPSenderRefused, SMTPServerDisconnected, SMTPStateError
from asmtp.protocol.content import line_end, wire_size
from asmtp.protocol.dialogue import authentication, greeting, hello, quit_, single, starttls
from asmtp.protocol.envelope import Envelope
from asmtp.protocol.exchange import Dialogue, Exchange, Group
from asmtp.protocol.parameters import Requests
from asmtp.protocol.sasl import Credentials, SASLExchange
from asmtp.protocol.session import Session
from asmtp.protocol.state import HELD, State, Trigger
from asmtp.protocol.transaction import Body, Transaction
from asmtp.protocol.verdict import NotBegun
from tests.fuzz import contents
from tests.fuzz.data import FuzzedData
from tests.fuzz.shadow import Shadow

__all__ = ["Sent", "World"]

ACTIONS = [
    "letter", "letter", "letter", "stream", "stream", "noop", "rset", "hand", "hello", "login", "tls", "tls", "pause",
    "resume", "write", "write", "serve", "serve", "deliver", "deliver", "deliver", "drain", "push", "push", "push",
    "end", "abort", "cancel", "hang up", "quit",
]  # fmt: skip


@dataclass
class Sent:
    """A message under way.

    Attributes:
        content: what was given of it so far.
        whole: that is all of it.
        cancelled: its owner has gone.
    """

    number: int
    recipients: tuple[str, ...]
    content: bytes
    transaction: Transaction
    exchange: Exchange[Any]
    whole: bool
    cancelled: bool = False

    @property
    def sender(self) -> str:
        return f"s{self.number}@x"


class World:
    """All that happens between callers and a server; see :mod:`tests.fuzz.sessions` for what has to come of it.

    Args:
        serve: the server: takes the octets that reach it, and returns those that it says.
    """

    asks = False  # for a reply for each recipient

    def __init__(self, data: FuzzedData, serve: Callable[[bytes], bytes], *, lmtp: bool) -> None:
        self.data = data
        self.serve = serve
        self.session = Session(
            lmtp=lmtp,
            pipelining=not data.chance(6),
            window=data.pick([100, 1, 2, 3]),
            window_octets=data.pick([1 << 20, 1, 200]),
        )
        self.shadow = Shadow(lmtp=lmtp, pipelining=self.session.use_pipelining)
        self.eager = data.flag()  # what is written leaves at once, and not at the end of the loop's pass
        self.up = b""
        self.down = b""
        self.sent: list[Sent] = []
        self.others: list[tuple[str, Exchange[Any]]] = []
        self.told: Counter[int] = Counter()
        self.cancelled: set[int] = set()
        self.session.notify = self._notify
        self.session.on_output = self._on_output
        self.securing: Callable[[], None] = lambda: None

    # ---- the session's hooks ----------------------------------------------------------------

    def _notify(self, exchange: Exchange[Any]) -> None:
        if exchange.done:
            self.told[id(exchange)] += 1
        else:
            assert exchange.pulling, "told of nothing"

    def _on_output(self) -> None:
        session = self.session
        if not session._output:
            assert session.closed, "output of nothing"
            return
        assert not session.closed, "something is written to what is closed"
        self.shadow.wrote(session._output[-1])
        if self.eager:
            self.up += session.output()

    # ---- what happens -----------------------------------------------------------------------

    def start(self, kind: str, dialogue: Any, *, alone: bool = False) -> None:
        self.others.append((kind, self.session.start(dialogue, kind, alone=alone)))

    def open(self) -> None:
        """Greeting and EHLO, as a client begins; not always to the end."""
        self.start("greeting", greeting())
        self.drain()
        self.start("hello", self._hello())
        if not self.data.chance(10):
            self.drain()

    def act(self) -> None:
        """Let something happen."""
        what = self.data.pick(ACTIONS)
        if not (self._command(what) or self._login(what) or self._move(what)) and self.sent:
            self._act_on(what, self.data.pick(self.sent[-4:]))

    def _command(self, what: str) -> bool:
        """Start a message or a command, if that is what happens."""
        data = self.data
        if what in ("letter", "stream"):
            self._letter(streamed=what == "stream")
        elif what == "quit":
            if data.chance(3):
                self.start("quit", quit_(), alone=True)
        elif what == "noop":
            line = b"noop %d" % len(self.others)
            self.start(line.decode(), single(line + b"\r\n"))
        elif what == "rset":
            self.start("rset", self._reset())
        elif what == "hand":
            self.start("hand", single(b"MAIL FROM:<hand@x>\r\n", Trigger.mail))
        elif what == "hello":
            self.start("hello", self._hello(), alone=data.flag())
        else:
            return False
        return True

    def _login(self, what: str) -> bool:
        """Start a login or TLS, if that is what happens, and the server offers it."""
        data, session = self.data, self.session
        if what == "login" and "auth" in session.extensions:
            name, mechanism = data.pick([("CRAM-MD5", cram_md5), ("PLAIN", plain), ("LOGIN", login)])
            chosen = mechanism(Credentials("me", "secret"))
            sasl = SASLExchange(name, chosen, initial_response_ok=data.flag())
            self.start("login", authentication(session, sasl), alone=True)
        elif what == "tls" and "starttls" in session.extensions:
            self.start("tls", starttls(session, self._verb, data.pick([None, "me.example"])), alone=True)
        else:
            return False
        return True

    def _move(self, what: str) -> bool:
        """Move octets, or have a side stop, if that is what happens."""
        data, session = self.data, self.session
        if what in ("pause", "resume"):
            session.paused = what == "pause"
            if not session.paused:
                session.pump()
        elif what == "write":
            self.write()
        elif what == "serve":
            self.write()
            self._serve(data.below(300))
        elif what == "deliver":
            self._deliver(data.below(200))
        elif what == "drain":
            self.drain(finish=data.flag())
        elif what == "hang up":
            if data.chance(3):
                self.hang_up()
        else:
            return False
        return True

    def quit(self) -> None:
        """QUIT, to its end."""
        self.start("quit", quit_(), alone=True)
        self.drain()

    def hang_up(self) -> None:
        """The server closes; see :mod:`tests.fuzz.sessions`."""

    @property
    def _verb(self) -> str:
        return "lhlo" if self.session.lmtp else "ehlo"

    def _hello(self) -> Any:
        return hello(self.session, self._verb, "me.example")

    def _reset(self) -> Dialogue[Any]:
        """Session.reset(), in capitals: no transaction's own."""
        group = Group(b"RSET\r\n", (Trigger.rset,))
        replies = yield group
        if replies[0].ok:
            self.session.mark_clean(group)
        return replies[0]

    def _letter(self, *, streamed: bool) -> None:
        data = self.data
        number = len(self.sent)
        recipients = tuple(f"r{number}-{place}@x" for place in range(data.between(1, 3)))
        content = b"" if streamed else b"%d" % number + data.pick([b":", b""]) + data.blob(contents.TOKENS, 6)
        body = Body(content, wire_size(content), eight_bit=not content.isascii())
        if streamed:
            body = Body(None, None, eight_bit=True)
        asked: Requests = {"prdr": True} if self.asks and data.flag() else {}
        envelope = Envelope(f"s{number}@x", recipients, **asked)
        chunking, apart = not data.chance(4), data.chance(4)
        try:
            transaction = Transaction(self.session, envelope, body, chunking=chunking, apart=apart)
        except SMTPSenderRefused as error:
            self._check_too_large(error, content)
            return
        exchange = self.session.start(transaction.run(), "letter", alone=data.chance(8))
        self.sent.append(Sent(number, recipients, content, transaction, exchange, not streamed))

    def _check_too_large(self, error: SMTPSenderRefused, content: bytes) -> None:
        limit = self.session.extensions.size
        assert limit is not None, repr(error)
        assert wire_size(content) + line_end(content) > limit, repr(error)

    def _act_on(self, what: str, sent: Sent) -> None:
        exchange = sent.exchange
        if what == "cancel":
            self._cancel(sent)
        elif isinstance(exchange.error, NotBegun) and exchange.owner is not None and not self.session.closed:
            self._again(sent)
        elif exchange.pulling and what == "push":
            piece = self.data.blob(contents.TOKENS, 6)
            sent.content += piece
            self.session.push(exchange, piece)
        elif exchange.pulling and what == "end":
            sent.whole = True
            self.session.push(exchange, None)
        elif exchange.pulling and what == "abort":
            self.session.abort(exchange, OSError("the content cannot be had"))

    def _cancel(self, sent: Sent) -> None:
        if not sent.exchange.done:
            sent.cancelled = True
            self.cancelled.add(id(sent.exchange))
        self.session.cancel(sent.exchange)

    def _again(self, sent: Sent) -> None:
        """As a client does it: on its own from now on."""
        self.session.overlap = False
        assert sent.transaction.body.data is not None or not sent.content
        body = sent.transaction.body
        try:
            sent.transaction = Transaction(self.session, sent.transaction.envelope, body)
        except SMTPSenderRefused as error:
            self._check_too_large(error, sent.content)
            return
        self.others.append(("letter", sent.exchange))
        sent.exchange = self.session.start(sent.transaction.run(), "letter")

    # ---- what is on its way -----------------------------------------------------------------

    def write(self) -> None:
        """Let all that was written leave."""
        self.up += self.session.output()

    def _serve(self, count: int) -> None:
        octets, self.up = self.up[:count], self.up[count:]
        self.down += self.serve(octets)

    def _deliver(self, count: int) -> None:
        octets, self.down = self.down[:count], self.down[count:]
        session = self.session
        if not octets or session.closed:
            return
        plaintext = session.state is State.HANDSHAKE
        self.shadow.time += 1
        self.shadow.said(octets)
        session.receive_data(octets)
        self.shadow.time += 1
        if self.shadow.surplus or self.shadow.wrong or plaintext:
            assert session.closed, f"goes on behind {self.shadow.wrong or 'a reply too much'}"
        if session.state is State.HANDSHAKE:
            assert not self.shadow.unfinished, "half a reply behind that to STARTTLS"
        for sent in self.sent:
            if not sent.cancelled and any(written.lost for written in self.shadow.written(sent.sender)):
                assert sent.exchange.done, "a refusal of the content is not told at once"
        self.check()

    def drain(self, *, finish: bool = True) -> None:
        """Go on until nothing moves any more.

        Args:
            finish: what is streamed comes to its end.
        """
        session = self.session
        session.paused = False
        session.pump()
        for _ in range(2000):
            self.write()
            moved = bool(self.up or self.down)
            self._serve(len(self.up))
            if not self.data.chance(4):
                self._deliver(len(self.down))
            while self.down and not session.closed:
                self._deliver(self.data.between(1, 60))
            self.down = b"" if session.closed else self.down
            for sent in self.sent:
                if finish and sent.exchange.pulling:
                    moved = True
                    self._act_on("end", sent)
            if not self._handshake() and not moved and not self.over():
                return
        raise AssertionError("it never comes to an end")

    def over(self) -> bool:
        """The server has closed, and that arrives; whether that changes anything."""
        return False

    def _handshake(self) -> bool:
        for kind, exchange in self.others:
            if kind == "tls" and exchange.pulling and self.session.state is State.HANDSHAKE:
                self.write()
                if self.data.chance(8):
                    self.session.fail(SMTPServerDisconnected("TLS handshake failed"))
                    return True
                self.securing()
                self.shadow.secured()
                self.session.secured()
                self.session.push(exchange, None)
                return True
        return False

    # ---- what always has to be so -----------------------------------------------------------

    def exchanges(self) -> list[Exchange[Any]]:
        return [sent.exchange for sent in self.sent] + [exchange for _, exchange in self.others]

    def check(self) -> None:
        """Check what is true of a session at any time."""
        session = self.session
        everyone = self.exchanges()
        if session.closed:
            assert session.output() == b"", "something is written to what is closed"
            assert session.state in (State.CLOSED, State.BROKEN)
            assert session.idle, "closed, and not idle"
            for exchange in everyone:
                assert exchange.done, f"{exchange.owner} is not told of the end"
        assert len(session._owed) <= session.window + 1, "more under way than the window holds"
        if session.idle:
            assert session.load == 0, f"idle with a load of {session.load}"
            assert session.closed or not session._unanswered, f"idle with {session._unanswered} octets unanswered"
            assert session.state not in HELD, f"idle in {session.state}"
        assert session._unanswered >= 0
        for exchange in everyone:
            told = 0 if id(exchange) in self.cancelled else int(exchange.done)
            assert self.told[id(exchange)] == told, f"{exchange.owner} is told {self.told[id(exchange)]} times"
            if exchange.done and exchange.error is not None:
                assert isinstance(exchange.error, SMTPException | OSError), repr(exchange.error)
                assert not isinstance(exchange.error, SMTPStateError), repr(exchange.error)

    def end(self) -> None:
        """Close, and look at what is left."""
        session = self.session
        session.close()
        session.close()
        session.receive_eof()
        session.receive_data(b"250 late\r\n")
        session.fail(SMTPServerDisconnected("late"))
        session.pump()
        assert session.output() == b""
        for exchange in self.exchanges():
            session.cancel(exchange)
            assert exchange.done
        self.check()
        late = session.start(single(b"noop\r\n"), "late")
        assert late.done
        assert isinstance(late.error, SMTPServerDisconnected)
        assert session.output() == b""
