"""The session, under callers who do anything in any order: with an honest server, and with one that lies."""

from __future__ import annotations

from asmtp.errors import SMTPException, SMTPProtocolError, SMTPSenderRefused
from asmtp.protocol.verdict import NotBegun, Outcome
from tests.fuzz.contents import canonical
from tests.fuzz.data import FuzzedData
from tests.fuzz.server import Server
from tests.fuzz.world import Sent, World

__all__ = ["liar", "session"]

MOST = 80  # actions


class Honest(World):
    """With a server that keeps an account of what it has."""

    asks = True

    def __init__(self, data: FuzzedData) -> None:
        lmtp = data.flag()
        self.server = Server(data, lmtp=lmtp)
        super().__init__(data, self._feed, lmtp=lmtp)
        self.securing = self.server.secured
        self.cut = False
        self.down = self.server.said()

    def _feed(self, octets: bytes) -> bytes:
        self.server.receive(octets)
        return self.server.said()

    def hang_up(self) -> None:
        self.server.hang_up(self.data.pick(["", "421 timeout"]))
        self.down += self._feed(b"")
        if self.data.chance(4):
            self.down = self.down[: self.data.below(len(self.down) + 1)]
            self.cut = True
            self.over()

    def over(self) -> bool:
        if self.session.closed or not (self.server.done or not self.session.writable):
            return False
        self.session.receive_eof()
        return True

    def check_claims(self) -> None:
        """Check that what is said of each message is what the server knows of it."""
        # What had left and was not read any more still tells how far it was written.
        self.server.hang_up()
        self.server.securing = False
        self.server.receive(self.up)
        for taken in self.server.letters:
            sent = self.sent[int(taken.sender[1:-2])]
            assert taken.content == canonical(sent.content), f"{taken.content!r}, not {sent.content!r}"
            assert sent.whole, "taken before its end"
            assert set(taken.recipients) <= set(sent.recipients), f"{taken.sender} to {taken.recipients}"
        for sent in self.sent:
            self._check_claim(sent)
        if not self.cut and not self.server.impatient:
            assert not isinstance(self.session.error, SMTPProtocolError), self.session.error

    def _check_claim(self, sent: Sent) -> None:
        taken = [taken.recipients for taken in self.server.letters if taken.sender == sent.sender]
        assert len(taken) <= 1, f"{sent.sender} was delivered twice"
        error = sent.exchange.error
        if isinstance(sent.exchange.result, Outcome):
            check_outcome(self, sent)
            assert taken == [[*sent.exchange.result.accepted]], f"said {sent.exchange.result.accepted}, is {taken}"
        elif sent.cancelled:
            assert sent.transaction.state == "in_doubt" or not taken, "cancelled, not sent, and there"
        elif isinstance(error, NotBegun) or not isinstance(error, SMTPException):
            assert not taken, f"{error!r}, and there"
        elif error.state == "in_doubt":
            assert sent.sender in self.server.ended, f"{error!r} is in doubt, and its end was never written"
            assert self.session.lmtp or self.server.impatient or not self._answered(sent), (
                f"{error!r} is in doubt, and was answered"
            )
        else:
            assert error.state in ("refused", "not_sent"), f"{error!r} is {error.state}"
            left_open = isinstance(error, SMTPSenderRefused) and error.smtp_code == 503
            assert not left_open, "MAIL within a transaction, or not told from a RSET that was not taken"
            assert not taken, f"{error!r} is {error.state}, and there"

    def _answered(self, sent: Sent) -> bool:
        written = self.shadow.written(sent.sender)
        finals = [one.content[-1] for one in written if one.content and one.content[-1].last and not one.prdr]
        return any(final.codes and not final.early for final in finals)

    def check_step(self) -> None:
        """When nothing is on its way, both sides agree on where they are."""
        for exchange in self.exchanges():
            assert exchange.done, f"{exchange.owner} is forgotten"
        server = self.server
        assert self.session.idle, "not idle when all is done"
        assert server.idle, f"not read: {server._in!r}"
        assert not self.session.clean or server.sender is None, "a transaction is open, and that is not known"
        for kind, exchange in self.others:
            if kind.startswith("noop") and exchange.error is None and exchange.result.code == 250:
                assert exchange.result.message.startswith(kind.encode()), f"{exchange.result} to {kind}"


def check_outcome(world: World, sent: Sent) -> None:
    """RSET, MAIL, a RCPT and the content were each answered 2yz, and for those recipients."""
    written = world.shadow.written(sent.sender)
    accepted = [one.accepted(lmtp=world.session.lmtp) for one in written]
    said = tuple(sent.exchange.result.accepted)
    assert said in accepted, f"said to be sent to {said}; by the replies it was {accepted}"
    assert said, "sent to nobody"
    refused = set(sent.exchange.result.refused)
    assert refused == set(sent.recipients) - set(said), f"{refused} of {sent.recipients}"


def session(data: FuzzedData) -> None:
    """An honest server: never out of step, each owner told once, and what is said of a message is true."""
    world = Honest(data)
    world.open()
    for _ in range(MOST):
        if not data.left:
            break
        world.act()
        world.check()
    ending = data.pick(["drain", "quit", "eof", "hang up", "close"])
    if ending in ("drain", "quit"):
        world.drain()
        if not world.session.closed:
            world.check_step()
    if ending == "quit":
        world.quit()
        assert world.session.closed
    elif ending == "eof":
        world.write()
        world.server.hang_up()
        world.cut = True
        world.session.receive_eof()
        world.check()
    elif ending == "hang up":
        world.hang_up()
        world.drain()
        assert world.session.closed
    world.write()
    world.end()
    world.check_claims()


class Liar(World):
    """With a server that begins as an honest one does, and then says something else; or anything."""

    def __init__(self, data: FuzzedData) -> None:
        lmtp = data.flag()
        self.server: Server | None = Server(data, lmtp=lmtp)
        self._often = data.pick([6, 3, 20])
        super().__init__(data, self._feed, lmtp=lmtp)
        self._patience = 40
        self.down = self.server.said()

    def _feed(self, octets: bytes) -> bytes:
        data = self.data
        if self.server is not None:
            try:
                self.server.receive(octets)
            except (AssertionError, ValueError, KeyError):
                self.server = None  # the client believes the replies, and it does not
            else:
                said = self.server.said()
                return b"".join([self._changed(line) for line in said.splitlines(keepends=True)])
        return b"".join([self._anything() for _ in range(data.below(4))]) if octets else b""

    def _changed(self, line: bytes) -> bytes:
        data = self.data
        if line.startswith(b"220") and data.flag():
            return line + self._anything()[: data.below(12)]
        if not data.chance(self._often):
            return line
        kind = data.below(8)
        if kind < 4:
            return data.pick([b"250", b"250", b"354", b"550", b"450", b"421", b"334", b"503", b"150"]) + line[3:]
        if kind == 4:
            return b""
        if kind == 5:
            return line + line
        return line + self._anything() if kind == 6 else self._anything()

    def _anything(self) -> bytes:
        data = self.data
        if data.chance(10):
            return data.octets(data.below(12))
        code = data.pick(
            [b"250", b"250", b"250", b"354", b"550", b"421", b"220", b"334", b"235", b"221", b"599", b"100"]
        )
        return (
            code + data.pick([b" ok", b"", b" ", b"-more"]) + data.pick([b"\r\n", b"\r\n", b"\n", b"\r\n250 and\r\n"])
        )

    def hang_up(self) -> None:
        if self.data.flag():
            self.session.receive_eof()

    def over(self) -> bool:
        if self.session.closed or (self.session.idle and self.session.writable):
            return False
        self._patience -= 1
        if self._patience < 0:
            self.session.receive_eof()
        else:
            self.down += self._anything()
        return True


def liar(data: FuzzedData) -> None:
    """A lying server: nothing raised; "sent" only by a 2yz to RSET, MAIL, a RCPT and the content."""
    world = Liar(data)
    world.open()
    for _ in range(MOST):
        if not data.left:
            break
        world.act()
        world.check()
    if data.flag():
        world.drain()
        for exchange in world.exchanges():
            assert exchange.done, f"{exchange.owner} is forgotten"
    world.end()
    for sent in world.sent:
        error = sent.exchange.error
        if isinstance(sent.exchange.result, Outcome):
            check_outcome(world, sent)
        elif isinstance(error, SMTPException):
            states = (None,) if isinstance(error, NotBegun) else ("refused", "not_sent", "in_doubt")
            assert error.state in states, f"{error!r} is {error.state}"
            taken = any(written.taken for written in world.shadow.written(sent.sender))
            assert not taken or error.state == "in_doubt", f"{error!r} is {error.state}, and the content was accepted"
