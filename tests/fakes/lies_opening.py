"""Lies before there is a message: to a client that connects, asks for TLS, logs in."""

from __future__ import annotations

import asyncio
import base64
import ssl

from asmtp import (
    SMTPAuthenticationError,
    SMTPConnectError,
    SMTPHeloError,
    SMTPNotSupportedError,
    SMTPResponseException,
)
from tests.fakes.liar import PASSWORD, USER, Slowly
from tests.fakes.lies import Contract, Lie, broken, gone, late, sent
from tests.fakes.script import Peer, Step, drip, fin, flood, octets, rst, send, silence

__all__ = ["AUTH", "OPENING", "dripping", "says", "then"]


LINES = (b"220-" + b"x" * 70 + b"\r\n") * 1000
LINE = b"2" * 65536


def then(*steps: Step) -> Step:
    """Do one step after the other."""

    async def step(peer: Peer) -> None:
        for each in steps:
            await each(peer)

    return step


def says(words: str | bytes, ends: Step = fin) -> Step:
    """Say some last words."""
    return then(send(words), ends)


async def moment(peer: Peer) -> None:
    """Wait until the client knows that it is connected."""
    await asyncio.sleep(0.02)


def dripping(start: str, line: str) -> Step:
    """Send a reply that has no end, a line every tenth of a second."""

    async def step(peer: Peer) -> None:
        peer.transport.write(octets(start))
        while not peer.eof:
            peer.transport.write(octets(line))
            await asyncio.sleep(0.1)

    return step


def unable(raises: type[Exception], code: int | None = None, after: str = "closed") -> Contract:
    """Expect that what is asked for when connecting cannot be had."""
    return Contract(raises, "not_sent", code, after)  # type: ignore[arg-type]


# ---- the greeting -------------------------------------------------------------------------------

GREETING = {
    "no greeting": Lie({"greeting": silence}, late("not_sent"), limit="greeting"),
    "greeting 421": Lie({"greeting": says("421 4.3.2 down")}, unable(SMTPConnectError, 421)),
    "greeting 421, and it stays": Lie({"greeting": "421 4.3.2 down"}, unable(SMTPConnectError, 421)),
    "greeting 450": Lie({"greeting": "450 4.3.2 later"}, unable(SMTPConnectError, 450)),
    "greeting 554": Lie({"greeting": "554 5.3.2 never"}, unable(SMTPConnectError, 554)),
    "greeting 250": Lie({"greeting": "250 hi"}, unable(SMTPConnectError, 250)),
    "greeting 120": Lie({"greeting": "120 in a moment"}, unable(SMTPConnectError, 120)),
    "greeting of many lines": Lie({"greeting": b"220-hi\r\n220-and\r\n220-hello\r\n220 there\r\n"}, sent()),
    "greeting of bytes over 127": Lie({"greeting": b"220 gr\xfc\xdf Gott \xff\r\n"}, sent()),
    "greeting without text": Lie({"greeting": "220"}, sent()),
    "greeting with lone LF": Lie({"greeting": b"220-hi\n220 there\n"}, sent()),
    "greeting byte by byte": Lie({"greeting": Slowly(b"220-hi\r\n220 there\r\n")}, sent()),
    "greeting of another protocol": Lie({"greeting": b"SSH-2.0-OpenSSH_9.9\r\n"}, broken("not_sent")),
    "greeting of HTTP": Lie({"greeting": b"HTTP/1.1 400 Bad Request\r\nServer: x\r\n\r\n"}, broken("not_sent")),
    "greeting of TLS": Lie({"greeting": then(send(b"\x15\x03\x01\x00\x02\x02\x0a"), fin)}, broken("not_sent")),
    "greeting without a code": Lie({"greeting": "hello"}, broken("not_sent")),
    "greeting of an empty line": Lie({"greeting": b"\r\n220 hi\r\n"}, broken("not_sent")),
    "greeting that changes its code": Lie({"greeting": b"220-hi\r\n554 no\r\n"}, broken("not_sent")),
    "greeting without end, many lines": Lie({"greeting": flood(LINES, 2000)}, broken("not_sent", 500), endless=True),
    "greeting without end, one line": Lie({"greeting": flood(LINE, 2000)}, broken("not_sent", 500), endless=True),
    "greeting without end, dripping": Lie(
        {"greeting": dripping("220-hi", "220-and")}, late("not_sent"), limit="greeting"
    ),
    "greeting without end, octet by octet": Lie(
        {"greeting": drip(b"220 " + b"x" * 5000, every=0.01)}, late("not_sent"), limit="greeting"
    ),
    "greeting twice": Lie({"greeting": b"220 hi\r\n220 hi again\r\n"}, broken("not_sent")),
    "greeting cut in the code": Lie({"greeting": then(send(b"22"), fin)}, broken("not_sent")),
    "greeting cut between lines": Lie({"greeting": then(send(b"220-hi\r\n"), fin)}, broken("not_sent")),
    "greeting cut before the line end": Lie({"greeting": then(send(b"220 hi"), fin)}, broken("not_sent")),
    "FIN for a greeting": Lie({"greeting": fin}, gone("not_sent")),
    "RST for a greeting": Lie({"greeting": then(moment, rst)}, gone("not_sent")),
}

# ---- EHLO ---------------------------------------------------------------------------------------

MESS = b"".join(
    b"250-%b\r\n" % word
    for word in (
        b"hi", b"", b" ", b"=", b"-", b"8BITMIME 8BITMIME", b"8BITMIME", b"PIPELINING PLEASE", b"SIZE", b"SIZE lots",
        b"SIZE -1", b"SIZE 1 2", b"SIZE 0x10", b"\xff\xfe", b"AUTH", b"AUTH=", b"LIMITS RCPTMAX=0 MAILMAX=-1 =1 =",
        b"X" * 500, b"SIZE " + b"9" * 500,
    )
) + b"250 .\r\n"  # fmt: skip
HUGE = b"250-liar.example\r\n" + b"".join(b"250-X-%d %b\r\n" % (n, b"x" * 80) for n in range(1200)) + b"250 END\r\n"

EHLO = {
    "EHLO 421": Lie({"EHLO": says("421 4.3.2 bye")}, unable(SMTPHeloError, 421)),
    "EHLO 421, and it stays": Lie({"EHLO": "421 4.3.2 bye"}, unable(SMTPHeloError, 421)),
    "EHLO 521, and it stays": Lie({"EHLO": "521 5.3.2 not here"}, unable(SMTPHeloError, 521, "in step")),
    "EHLO 500, HELO 250": Lie({"EHLO": "500 what?"}, sent(), offers=()),
    "EHLO 550, HELO 550": Lie({"EHLO": "550 no", "HELO": "550 no"}, unable(SMTPHeloError, 550, "in step")),
    "EHLO 500, FIN for HELO": Lie({"EHLO": "500 what?", "HELO": fin}, gone("not_sent")),
    "EHLO 354": Lie({"EHLO": "354 go"}, sent(), offers=()),
    "EHLO 150": Lie({"EHLO": "150 wait"}, sent(), offers=()),
    "EHLO 220": Lie({"EHLO": b"220-liar.example\r\n220 PIPELINING\r\n"}, sent()),
    "EHLO of one line": Lie({"EHLO": "250 hi"}, sent(), offers=()),
    "EHLO without text": Lie({"EHLO": "250"}, sent(), offers=()),
    "EHLO offers a mess": Lie({"EHLO": MESS}, sent()),
    "EHLO offers 100 kB": Lie({"EHLO": HUGE}, broken("not_sent", 500)),
    "EHLO without end": Lie(
        {"EHLO": flood(b"250-X-Y\r\n" * 5000, 2000)},
        broken("not_sent", 500),
        endless=True,
    ),
    "EHLO without end, dripping": Lie({"EHLO": dripping("250-hi", "250-X-Y")}, late("not_sent"), limit="command"),
    "EHLO unanswered": Lie({"EHLO": silence}, late("not_sent"), limit="command"),
    "EHLO answered twice": Lie({"EHLO": b"250 hi\r\n250 hi again\r\n"}, broken("not_sent")),
    "EHLO that changes its code": Lie({"EHLO": b"250-hi\r\n550 no\r\n"}, broken("not_sent")),
    "EHLO cut between lines": Lie({"EHLO": then(send("250-hi", "250-PIPELINING"), fin)}, broken("not_sent")),
    "EHLO byte by byte": Lie({"EHLO": Slowly(b"250-hi\r\n250-PIPELINING\r\n250 8BITMIME\r\n")}, sent()),
    "FIN for EHLO": Lie({"EHLO": fin}, gone("not_sent")),
    "RST for EHLO": Lie({"EHLO": rst}, gone("not_sent")),
}

# ---- STARTTLS -----------------------------------------------------------------------------------

TLS = ("PIPELINING", "STARTTLS")
BARE = "250 liar.example"
UNKNOWN = b"250-liar.example\r\n250 AUTH X-MAGIC \xff\r\n"


async def _plaintext_later(peer: Peer) -> None:
    """Send plaintext when the client has begun the handshake."""
    peer.transport.write(b"220 go\r\n")
    await peer.more()
    await peer.take(peer.coming)
    peer.transport.write(b"250-liar.example\r\n250 AUTH PLAIN\r\n")
    await silence(peer)
    await peer.take(peer.coming)


async def _silent_handshake(peer: Peer) -> None:
    peer.transport.write(b"220 go\r\n")
    await silence(peer)
    await peer.take(peer.coming)


def _handshake(ends: Step) -> Step:
    """End when the client has begun the handshake."""

    async def step(peer: Peer) -> None:
        peer.transport.write(b"220 go\r\n")
        await peer.more()
        await peer.take(peer.coming)
        await ends(peer)

    return step


def starttls(answer: Step | str | bytes, contract: Contract, **options: str) -> Lie:
    return Lie({"STARTTLS": answer}, contract, TLS, ("PIPELINING",), tls=True, **options)  # type: ignore[arg-type]


STARTTLS = {
    "STARTTLS is not offered": Lie({"EHLO": BARE}, unable(SMTPNotSupportedError), TLS, tls=True),
    "STARTTLS 421": starttls(says("421 4.3.2 bye"), unable(SMTPResponseException, 421)),
    "STARTTLS 454": starttls("454 4.7.0 TLS not available", unable(SMTPResponseException, 454)),
    "STARTTLS 502": starttls("502 5.5.1 what?", unable(SMTPResponseException, 502)),
    "STARTTLS 250": starttls("250 no need", unable(SMTPResponseException, 250)),
    "STARTTLS unanswered": starttls(silence, late("not_sent"), limit="command"),
    "STARTTLS that changes its code": starttls(b"220-go\r\n454 no\r\n", broken("not_sent")),
    "STARTTLS cut between lines": starttls(then(send("220-go"), fin), broken("not_sent")),
    "STARTTLS with plaintext behind it": starttls(b"220 go\r\n250 AUTH PLAIN\r\n", broken("not_sent")),
    "STARTTLS with half a line behind it": starttls(b"220 go\r\n2", broken("not_sent")),
    "STARTTLS with plaintext in the handshake": starttls(_plaintext_later, unable(ssl.SSLError)),
    "STARTTLS, then silence": starttls(_silent_handshake, late("not_sent"), limit="tls"),
    "FIN for STARTTLS": starttls(fin, gone("not_sent")),
    "RST for STARTTLS": starttls(rst, gone("not_sent")),
    "FIN in the handshake": starttls(_handshake(fin), gone("not_sent")),
    "RST in the handshake": starttls(_handshake(rst), gone("not_sent")),
    "STARTTLS is offered again": Lie({}, sent(), TLS, TLS, tls=True),
    "PIPELINING is gone after TLS": Lie({}, sent(), TLS, (), tls=True),
    "EHLO 500 after TLS": Lie({"EHLO under TLS": "500 what?"}, sent(), TLS, (), tls=True),
    "EHLO 421 after TLS": Lie({"EHLO under TLS": says("421 bye")}, unable(SMTPHeloError, 421), TLS, tls=True),
    "EHLO unanswered after TLS": Lie(
        {"EHLO under TLS": silence},
        late("not_sent"),
        TLS,
        tls=True,
        limit="command",
    ),
    "FIN after TLS": Lie({"EHLO under TLS": fin}, gone("not_sent"), TLS, tls=True),
    "RST after TLS": Lie({"EHLO under TLS": rst}, gone("not_sent"), TLS, tls=True),
    "AUTH is gone after TLS": Lie(
        {"EHLO under TLS": BARE}, unable(SMTPNotSupportedError), (*TLS, "AUTH PLAIN"), tls=True, login=True
    ),
    "AUTH is another after TLS": Lie(
        {"EHLO under TLS": UNKNOWN}, unable(SMTPNotSupportedError), (*TLS, "AUTH PLAIN"), tls=True, login=True
    ),
}

# ---- AUTH ---------------------------------------------------------------------------------------

PLAIN = ("PIPELINING", "AUTH PLAIN")
LOGIN = ("PIPELINING", "AUTH LOGIN")
CRAM = ("PIPELINING", "AUTH CRAM-MD5")

TOKEN = base64.b64encode(f"\0{USER}\0{PASSWORD}".encode()).decode()
WORD = base64.b64encode(PASSWORD.encode()).decode()


def auth(says: dict[str, object], contract: Contract, offers: tuple[str, ...] = PLAIN, **options: object) -> Lie:
    return Lie(says, contract, offers, login=True, **options)  # type: ignore[arg-type]


def no(code: int) -> Contract:
    return unable(SMTPAuthenticationError, code)


AUTH = {
    "AUTH without mechanisms": auth({"EHLO": b"250-liar.example\r\n250 AUTH\r\n"}, unable(SMTPNotSupportedError)),
    "AUTH with mechanisms that nobody knows": auth({"EHLO": UNKNOWN}, unable(SMTPNotSupportedError)),
    "AUTH is not offered": auth({"EHLO": BARE}, unable(SMTPNotSupportedError)),
    "AUTH 421": auth({"AUTH": says("421 4.3.2 bye")}, no(421)),
    "AUTH 421 to the response": auth({"response": says("421 4.3.2 bye")}, no(421), LOGIN),
    "AUTH 454": auth({"AUTH": "454 4.7.0 later"}, no(454)),
    "AUTH 502": auth({"AUTH": "502 5.5.1 what?"}, no(502)),
    "AUTH 535": auth({"AUTH": "535 5.7.8 wrong"}, no(535)),
    "AUTH 250": auth({"AUTH": "250 ok"}, no(250)),
    "AUTH 354": auth({"AUTH": "354 go"}, no(354)),
    "AUTH 334, then 535": auth({"AUTH": "334 ", "response": "535 5.7.8 wrong"}, no(535), LOGIN),
    "AUTH 235 too early": auth({"AUTH": "235 2.7.0 welcome"}, sent(), LOGIN),
    "AUTH 334 behind all that PLAIN has": auth({"AUTH": "334 more"}, sent()),
    "AUTH 334 without text": auth({"AUTH": "334", "response": "334"}, sent(), LOGIN),
    "AUTH 334 without end": auth({"AUTH": "334 Pz8=", "response": ["334 Pz8="] * 50}, no(501), LOGIN),
    "AUTH 334 without end, and to the end": auth(
        {"AUTH": "334 Pz8=", "response": ["334 Pz8="] * 50, "cancelled": ["334 Pz8="] * 50},
        no(334),
        LOGIN,
    ),
    "AUTH challenge of 1 MB": auth({"AUTH": b"334 " + b"QUFB" * 250_000 + b"\r\n"}, broken("not_sent", 500), CRAM),
    "AUTH challenge without end": auth(
        {"AUTH": then(send(b"334 "), flood(b"QUFB" * 10_000, 2000))}, broken("not_sent", 500), CRAM, endless=True
    ),
    "AUTH challenge that is not base64": auth({"AUTH": "334 ?!"}, no(501), CRAM),
    "AUTH challenge of half an octet": auth({"AUTH": "334 A"}, no(501), CRAM),
    "AUTH challenge of bytes over 127": auth({"AUTH": b"334 \xff\xff\xff\xff\r\n"}, no(501), CRAM),
    "AUTH challenge without text": auth({"AUTH": "334"}, sent(), CRAM),
    "AUTH cancelled, unanswered": auth(
        {"AUTH": "334 ?!", "cancelled": silence}, late("not_sent"), CRAM, limit="command"
    ),
    "AUTH answered twice": auth({"AUTH": b"235 welcome\r\n235 welcome again\r\n"}, broken("not_sent")),
    "AUTH 334 twice": auth({"AUTH": b"334 VXNlcm5hbWU6\r\n334 UGFzc3dvcmQ6\r\n"}, broken("not_sent"), LOGIN),
    "AUTH that changes its code": auth({"AUTH": b"334-VXNl\r\n235 welcome\r\n"}, broken("not_sent"), LOGIN),
    "AUTH 235 cut between lines": auth({"AUTH": then(send("235-welcome"), fin)}, broken("not_sent")),
    "AUTH unanswered": auth({"AUTH": silence}, late("not_sent"), limit="command"),
    "AUTH response unanswered": auth({"response": silence}, late("not_sent"), LOGIN, limit="command"),
    "FIN for AUTH": auth({"AUTH": fin}, gone("not_sent")),
    "RST for AUTH": auth({"AUTH": rst}, gone("not_sent")),
    "FIN for a response": auth({"response": fin}, gone("not_sent"), LOGIN),
    "RST for a response": auth({"response": [None, rst]}, gone("not_sent"), LOGIN),
    "AUTH echoed in the refusal": auth({"AUTH": f"535 5.7.8 wrong: AUTH PLAIN {TOKEN}"}, no(535)),
    "AUTH echoed in a syntax error": auth({"AUTH": f"500 5.5.1 unknown command: auth plain {TOKEN}"}, no(500)),
    "AUTH echoed in 235": auth({"AUTH": f"235 2.7.0 welcome, {TOKEN}"}, sent()),
    "AUTH echoed as it is": auth({"AUTH": f"AUTH PLAIN {TOKEN}"}, broken("not_sent")),
    "AUTH echoed, and cut": auth(
        {"AUTH": then(send(f"535-wrong: AUTH PLAIN {TOKEN}".encode()), fin)}, broken("not_sent")
    ),
    "AUTH echoed behind 235": auth({"AUTH": f"235 welcome\r\n250 {TOKEN}\r\n".encode()}, broken("not_sent")),
    "AUTH decoded in the refusal": auth({"AUTH": f"535 5.7.8 not the password of {USER}: {PASSWORD}"}, no(535)),
    "AUTH response echoed in the refusal": auth({"response": [None, f"535 5.7.8 wrong: {WORD}"]}, no(535), LOGIN),
    "AUTH response echoed as it is": auth({"response": [None, WORD]}, broken("not_sent"), LOGIN),
    "AUTH response echoed in a challenge": auth(
        {"response": [None, f"334 {WORD}"]},
        no(501),
        LOGIN,
    ),
}

OPENING: dict[str, Lie] = {**GREETING, **EHLO, **STARTTLS, **AUTH}
