"""Lies about a message: to MAIL, RCPT, DATA and the content, between messages, and at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from asmtp import SMTPDataError, SMTPRecipientsRefused, SMTPSenderRefused
from tests.fakes.liar import Slowly
from tests.fakes.lies import BOB, CAROL, After, Contract, Lie, broken, content_begun, gone, late, refused, sent
from tests.fakes.lies_opening import dripping, says, then
from tests.fakes.script import Peer, deaf, fin, flood, read_all, rst, send, silence

__all__ = ["SENDING"]

ALONE = ()  # every command is awaited
BATCH = ("PIPELINING",)
CHUNKS = ("PIPELINING", "CHUNKING")
BIG = b"x" * 70 + b"\r\n"
LONG = b"250-" + b"x" * 70 + b"\r\n"

NO_SENDER, NO_ONE, NO_DATA = SMTPSenderRefused, SMTPRecipientsRefused, SMTPDataError

NEVER = "550 5.7.1 no"


async def begun(peer: Peer) -> None:
    """Wait for the first of the content."""
    while not peer.coming:
        await peer.more()


async def swallow(peer: Peer) -> None:
    """Take whatever comes for content that has no end."""
    peer.transport.write(b"354 go\r\n")
    await read_all(peer)


# ---- MAIL ---------------------------------------------------------------------------------------

MAIL = {
    "MAIL 421": Lie({"MAIL": says("421 4.3.2 bye")}, refused(NO_SENDER, 421, "closed")),
    "MAIL 421, awaited": Lie({"MAIL": says("421 4.3.2 bye")}, refused(NO_SENDER, 421, "closed"), ALONE),
    "MAIL 450": Lie({"MAIL": "450 4.7.1 later"}, refused(NO_SENDER, 450)),
    "MAIL 354": Lie({"MAIL": "354 go"}, broken("not_sent", 354)),
    "MAIL 354, and it means it": Lie({"MAIL": swallow}, broken("not_sent", 354), ALONE),
    "MAIL 334": Lie({"MAIL": "334 VXNlcm5hbWU6"}, broken("not_sent", 334)),
    "MAIL 150": Lie({"MAIL": "150 wait"}, refused(NO_SENDER, 150), ALONE),
    "MAIL 299": Lie({"MAIL": "299 why not"}, sent()),
    "MAIL 2500": Lie({"MAIL": "2500 ok"}, broken("not_sent")),
    "MAIL 25": Lie({"MAIL": "25 ok"}, broken("not_sent")),
    "MAIL 650": Lie({"MAIL": "650 ok"}, broken("not_sent")),
    "MAIL -250": Lie({"MAIL": "-250 ok"}, broken("not_sent")),
    "MAIL of letters": Lie({"MAIL": "OK fine"}, broken("not_sent")),
    "MAIL with a tab behind the code": Lie({"MAIL": "250\tok"}, broken("not_sent")),
    "MAIL with fullwidth digits": Lie({"MAIL": "\uff12\uff15\uff10 ok"}, broken("not_sent")),
    "MAIL with NUL": Lie({"MAIL": b"\x00250 ok\r\n"}, broken("not_sent")),
    "MAIL with an empty line before it": Lie({"MAIL": b"\r\n250 ok\r\n"}, broken("not_sent")),
    "MAIL with an empty line behind it": Lie({"MAIL": b"250 ok\r\n\r\n"}, broken("not_sent")),
    "MAIL with an empty line within": Lie({"MAIL": b"250-ok\r\n\r\n250 ok\r\n"}, broken("not_sent")),
    "MAIL with a line without a code within": Lie({"MAIL": b"250-ok\r\nfine\r\n250 ok\r\n"}, broken("not_sent")),
    "MAIL that changes its code": Lie({"MAIL": b"250-ok\r\n550 no\r\n"}, broken("not_sent")),
    "MAIL that changes its code to another success": Lie({"MAIL": b"250-ok\r\n251 ok\r\n"}, sent()),
    "MAIL with bytes over 127": Lie({"MAIL": b"250 \xff\xfe\x80 ok\r\n"}, sent()),
    "MAIL with NUL in the text": Lie({"MAIL": b"250 o\x00k\r\n"}, sent()),
    "MAIL with lone LF": Lie({"MAIL": b"250-o\n250 k\n"}, sent()),
    "MAIL with CR CR LF": Lie({"MAIL": b"250 ok\r\r\n"}, sent()),
    "MAIL without text": Lie({"MAIL": "250"}, sent()),
    "MAIL of many lines without text": Lie({"MAIL": b"250-\r\n250-\r\n250\r\n"}, sent()),
    "MAIL byte by byte": Lie({"MAIL": Slowly(b"250-2.1.0 o\r\n250 2.1.0 k\r\n")}, sent()),
    "MAIL with a line of 8000 octets": Lie({"MAIL": b"250 " + b"x" * 8000 + b"\r\n"}, sent()),
    "MAIL with a line of 9000 octets": Lie({"MAIL": b"250 " + b"x" * 9000 + b"\r\n"}, broken("not_sent", 500)),
    "MAIL without end": Lie({"MAIL": flood(LONG * 1000, 2000)}, broken("not_sent", 500), endless=True),
    "MAIL without end, dripping": Lie({"MAIL": dripping("250-o", "250-k")}, late("not_sent"), limit="command"),
    "MAIL answered before it is asked": Lie(
        {"EHLO": b"250-hi\r\n250 PIPELINING\r\n250 ok\r\n"},
        broken("not_sent"),
    ),
    "MAIL answered twice": Lie({"MAIL": b"250 ok\r\n250 ok\r\n"}, Contract(NO_DATA, "refused", 250)),
    "MAIL answered twice, awaited": Lie({"MAIL": b"250 ok\r\n250 ok\r\n"}, broken("not_sent"), ALONE),
    "MAIL unanswered": Lie({"MAIL": silence}, late("not_sent"), limit="command"),
    "MAIL cut in the code": Lie({"MAIL": then(send(b"25"), fin)}, broken("not_sent")),
    "MAIL cut between lines": Lie({"MAIL": then(send(b"250-ok\r\n"), fin)}, broken("not_sent")),
    "FIN for MAIL": Lie({"MAIL": fin}, gone("not_sent")),
    "FIN for MAIL, awaited": Lie({"MAIL": fin}, gone("not_sent"), ALONE),
    "RST for MAIL": Lie({"MAIL": rst}, gone("not_sent")),
}

# ---- RCPT ---------------------------------------------------------------------------------------

BOTH = (BOB, CAROL)

RCPT = {
    "RCPT 421": Lie({"RCPT": says("421 4.3.2 bye")}, refused(NO_ONE, 421, "closed")),
    "RCPT 421, awaited": Lie({"RCPT": says("421 4.3.2 bye")}, refused(NO_ONE, 421, "closed"), ALONE),
    "RCPT 421, and it goes on": Lie({"RCPT": "421 4.7.0 later"}, refused(NO_ONE, 421, "closed")),
    "RCPT 252": Lie({"RCPT": "252 cannot verify"}, sent()),
    "RCPT 299": Lie({"RCPT": "299 why not"}, sent()),
    "RCPT 354": Lie({"RCPT": "354 go"}, broken("not_sent", 354)),
    "RCPT 354, and it means it": Lie({"RCPT": swallow}, broken("not_sent", 354), ALONE),
    "RCPT 334": Lie({"RCPT": "334 "}, broken("not_sent", 334), ALONE),
    "RCPT 150": Lie({"RCPT": "150 wait"}, refused(NO_ONE, 150)),
    "RCPT 503": Lie({"RCPT": "503 5.5.1 MAIL first"}, refused(NO_ONE, 503)),
    "RCPT 250, 550": Lie({"RCPT": [None, NEVER]}, sent(without={CAROL: 550}), recipients=BOTH),
    "RCPT 550, 421": Lie({"RCPT": [NEVER, says("421 4.3.2 bye")]}, Contract(NO_ONE, "refused"), recipients=BOTH),
    "RCPT 250, 421": Lie({"RCPT": [None, says("421 4.3.2 bye")]}, Contract(NO_ONE, "refused", 421), recipients=BOTH),
    "RCPT 250, FIN": Lie({"RCPT": [None, fin]}, gone("not_sent"), recipients=BOTH),
    "RCPT answered for two at once": Lie({"RCPT": [b"250 bob\r\n250 carol\r\n", b""]}, sent(), recipients=BOTH),
    "RCPT answered once for two": Lie(
        {"RCPT": [None, b""], "DATA": silence}, late("not_sent"), recipients=BOTH, limit="command"
    ),
    "RCPT unanswered, awaited": Lie({"RCPT": silence}, late("not_sent"), ALONE, limit="command"),
    "RCPT that changes its code": Lie({"RCPT": b"250-ok\r\n550 no\r\n"}, broken("not_sent")),
    "RCPT cut between lines": Lie({"RCPT": then(send(b"550-no\r\n"), fin)}, broken("not_sent")),
    "RCPT byte by byte": Lie(
        {"RCPT": [Slowly(b"550-no\r\n550 no\r\n"), None]}, sent(without={BOB: 550}), recipients=BOTH
    ),
    "RCPT answers are read, or nothing is": Lie(
        {"RCPT": [b"250-" + b"x" * 500 + b"\r\n250 ok\r\n"] * 1000},
        sent(),
        recipients=tuple(f"b{n}@y.example" for n in range(1000)),
        stalling=True,
        deaf=True,
    ),
    "FIN for RCPT": Lie({"RCPT": fin}, gone("not_sent")),
    "RST for RCPT": Lie({"RCPT": rst}, gone("not_sent")),
}

# ---- DATA ---------------------------------------------------------------------------------------

DATA = {
    "DATA 421": Lie({"DATA": says("421 4.3.2 bye")}, refused(NO_DATA, 421, "closed")),
    "DATA 250": Lie({"DATA": "250 ok"}, refused(NO_DATA, 250)),
    "DATA 250, and it means 354": Lie(
        {"DATA": then(send("250 go"), read_all)}, Contract(NO_DATA, "refused", 250), limit="command"
    ),
    "DATA 450": Lie({"DATA": "450 4.3.2 later"}, refused(NO_DATA, 450)),
    "DATA 550": Lie({"DATA": NEVER}, refused(NO_DATA, 550), ALONE),
    "DATA 150": Lie({"DATA": "150 wait"}, refused(NO_DATA, 150)),
    "DATA 355": Lie({"DATA": "355 go"}, refused(NO_DATA, 355)),
    "DATA 334": Lie({"DATA": "334 go"}, refused(NO_DATA, 334)),
    "DATA 354 though every recipient is refused": Lie({"RCPT": NEVER, "DATA": "354 go"}, refused(NO_ONE, 550)),
    "DATA 354 though the sender is refused": Lie(
        {"MAIL": NEVER, "RCPT": NEVER, "DATA": "354 go"}, refused(NO_SENDER, 550)
    ),
    "DATA 354 for recipients of nobody": Lie(
        {"MAIL": NEVER, "RCPT": "250 ok", "DATA": "354 go"}, refused(NO_SENDER, 550, "closed")
    ),
    "DATA 354 without recipients, and 250 to nothing": Lie(
        {"RCPT": NEVER, "DATA": "354 go", ".": "250 taken"}, refused(NO_ONE, 550)
    ),
    "DATA 354 without recipients, and nothing to nothing": Lie(
        {"RCPT": NEVER, "DATA": "354 go", ".": silence}, Contract(NO_ONE, "refused", 550), limit="final"
    ),
    "DATA 354 byte by byte": Lie({"DATA": Slowly(b"354-go\r\n354 on\r\n")}, sent()),
    "DATA 354 twice": Lie({"DATA": b"354 go\r\n354 go on\r\n"}, broken("not_sent")),
    "DATA 354 that changes its code": Lie({"DATA": b"354-go\r\n250 ok\r\n"}, broken("not_sent")),
    "DATA 354 and 250 at once": Lie({"DATA": b"354 go\r\n250 taken\r\n"}, broken("not_sent")),
    "DATA 354 and 550 at once": Lie({"DATA": b"354 go\r\n550 no\r\n"}, broken("not_sent")),
    "DATA 354 and 421 at once": Lie({"DATA": says(b"354 go\r\n421 bye\r\n")}, gone("not_sent")),
    "DATA 354, then FIN": Lie({"DATA": then(send("354 go"), begun, fin)}, gone("not_sent"), content=content_begun),
    "DATA unanswered": Lie({"DATA": silence}, late("not_sent"), limit="data"),
    "DATA unanswered, awaited": Lie({"DATA": silence}, late("not_sent"), ALONE, limit="data"),
    "DATA cut in the code": Lie({"DATA": then(send(b"35"), fin)}, broken("not_sent")),
    "DATA cut between lines": Lie({"DATA": then(send(b"354-go\r\n"), fin)}, broken("not_sent")),
    "FIN for DATA": Lie({"DATA": fin}, gone("not_sent")),
    "RST for DATA": Lie({"DATA": rst}, gone("not_sent")),
}

# ---- content ------------------------------------------------------------------------------------

CONTENT = {
    "content 421": Lie({"content": says("421 bye")}, refused(NO_DATA, 421, "closed"), content=content_begun),
    "content 421, and it stays": Lie({"content": "421 bye"}, refused(NO_DATA, 421, "closed"), content=content_begun),
    "content 452 before its end": Lie({"content": "452 full"}, refused(NO_DATA, 452, "closed"), content=content_begun),
    "content 552 before its end": Lie({"content": "552 much"}, refused(NO_DATA, 552, "closed"), content=content_begun),
    "content 250 before its end": Lie({"content": "250 taken"}, broken("in_doubt", 250), content=content_begun),
    "content 354 before its end": Lie({"content": "354 go on"}, refused(NO_DATA, 354, "closed"), content=content_begun),
    "content nonsense before its end": Lie({"content": "hm"}, broken("not_sent"), content=content_begun),
    "content half an answer before its end": Lie(
        {"content": then(send(b"552-too"), fin)}, broken("not_sent"), content=content_begun
    ),
    "FIN in the content": Lie({"content": fin}, gone("not_sent"), content=content_begun),
    "RST in the content": Lie({"content": rst}, gone("not_sent"), content=content_begun),
    "content is not read": Lie({"content": deaf}, late("not_sent"), content=BIG * 60_000, limit="content", deaf=True),
    "content is not read, by BDAT": Lie(
        {"BDAT unread": deaf}, late("not_sent"), CHUNKS, content=BIG * 60_000, limit="content", deaf=True
    ),
    "content 552, and the rest is not read": Lie(
        {"content": then(send("552 much"), deaf)}, refused(NO_DATA, 552, "closed"), content=BIG * 60_000, deaf=True
    ),
    "content RST in the middle": Lie({"content": rst}, gone("not_sent"), content=BIG * 60_000, deaf=True),
}

# ---- the end of the content ---------------------------------------------------------------------

FINAL = {
    "final 421": Lie({".": says("421 4.3.2 bye")}, refused(NO_DATA, 421, "closed")),
    "final 421, and it stays": Lie({".": "421 4.3.2 bye"}, refused(NO_DATA, 421, "closed")),
    "final 450": Lie({".": "450 4.7.1 later"}, refused(NO_DATA, 450)),
    "final 552": Lie({".": "552 5.3.4 much"}, refused(NO_DATA, 552), ALONE),
    "final 354": Lie({".": "354 go"}, broken("in_doubt", 354)),
    "final 354, and it means it": Lie({".": swallow}, broken("in_doubt", 354)),
    "final 150": Lie({".": "150 wait"}, refused(NO_DATA, 150)),
    "final 299": Lie({".": "299 why not"}, sent()),
    "final 251": Lie({".": b"251-will\r\n251 forward\r\n"}, sent()),
    "final 2500": Lie({".": "2500 taken"}, broken("in_doubt")),
    "final of letters": Lie({".": "taken"}, broken("in_doubt")),
    "final of an empty line": Lie({".": b"\r\n"}, broken("in_doubt")),
    "final with bytes over 127": Lie({".": b"250 \xe4\xf6\xfc\r\n"}, sent()),
    "final with lone LF": Lie({".": b"250-ta\n250 ken\n"}, sent()),
    "final without text": Lie({".": "250"}, sent()),
    "final byte by byte": Lie({".": Slowly(b"250-ta\r\n250 ken\r\n")}, sent()),
    "final that changes its code to another refusal": Lie({".": b"550-no\r\n554 never\r\n"}, refused(NO_DATA, 554)),
    "final that changes its code": Lie({".": b"250-taken\r\n550 no\r\n"}, broken("in_doubt")),
    "final without end": Lie({".": flood(LONG * 1000, 2000)}, broken("in_doubt", 500), endless=True),
    "final without end, dripping": Lie({".": dripping("250-ta", "250-ken")}, late("in_doubt"), limit="final"),
    "final unanswered": Lie({".": silence}, late("in_doubt"), limit="final"),
    "final unanswered, awaited": Lie({".": silence}, late("in_doubt"), ALONE, limit="final"),
    "final cut in the code": Lie({".": then(send(b"25"), fin)}, broken("in_doubt")),
    "final cut before the line end": Lie({".": then(send(b"250 taken"), fin)}, broken("in_doubt")),
    "final cut between lines": Lie({".": then(send(b"250-taken\r\n"), fin)}, broken("in_doubt")),
    "final cut, a refusal": Lie({".": then(send(b"550-no\r\n"), fin)}, broken("in_doubt")),
    "FIN for the final dot": Lie({".": fin}, gone("in_doubt")),
    "RST for the final dot": Lie({".": rst}, gone("in_doubt")),
    "final 250 twice": Lie({".": b"250 taken\r\n250 and that too\r\n"}, sent("closed")),
    "final 250, then nonsense": Lie({".": b"250 taken\r\nhello\r\n"}, sent("closed")),
    "final 250, then half a line": Lie({".": b"250 taken\r\n250-a"}, sent("closed")),
    "final 250, then 421": Lie({".": b"250 taken\r\n421 bye\r\n"}, sent("closed")),
    "final 250, then FIN": Lie({"afterwards": fin}, sent("closed")),
    "final 250, then RST": Lie({"afterwards": rst}, sent("closed")),
    "idle 421": Lie({"afterwards": says("421 4.4.2 idle")}, sent("closed")),
    "idle 421, and it stays": Lie({"afterwards": "421 4.4.2 idle"}, sent("closed")),
    "idle 250": Lie({"afterwards": "250 by the way"}, sent("closed")),
    "idle 550": Lie({"afterwards": "550 by the way"}, sent("closed")),
    "idle without end": Lie({"afterwards": flood(LONG * 1000, 2000)}, sent("closed"), endless=True),
    "idle half a line": Lie({"afterwards": b"250"}, sent("closed")),
}

# ---- groups -------------------------------------------------------------------------------------

GROUPS = {
    "a group of which only the first is answered": Lie(
        {"RCPT": b"", "DATA": silence}, late("not_sent"), limit="command"
    ),
    "a group of which only the first is answered, and FIN": Lie({"RCPT": b"", "DATA": fin}, gone("not_sent")),
    "a group that is answered backwards": Lie(
        {"MAIL": b"", "RCPT": b"", "DATA": then(send("354 go", "250 bob", "250 alice"), read_all)},
        broken("not_sent", 354),
    ),
    "a group whose DATA is answered before RCPT": Lie(
        {"RCPT": b"", "DATA": then(send("354 go", "250 bob"), read_all)},
        broken("not_sent", 354),
    ),
    "a group with an answer too many in front": Lie(
        {"MAIL": b"250 hm\r\n250 alice\r\n", "DATA": then(send("354 go"), read_all)},
        Contract(NO_DATA, "refused", 250),
    ),
    "a group with an answer too many within": Lie(
        {"RCPT": b"250 bob\r\n250 hm\r\n", "DATA": then(send("354 go"), read_all)}, Contract(NO_DATA, "refused", 250)
    ),
    "a group with an answer too many behind": Lie({"DATA": b"354 go\r\n250 hm\r\n"}, broken("not_sent")),
    "a refused RSET": Lie({"RCPT": NEVER, "RSET": "502 5.5.1 what?"}, refused(NO_ONE, 550, "closed")),
    "RSET 354": Lie({"RCPT": NEVER, "RSET": "354 go"}, refused(NO_ONE, 550, "closed")),
    "RSET 421": Lie({"RCPT": NEVER, "RSET": says("421 bye")}, refused(NO_ONE, 550, "closed")),
    "RSET of nonsense": Lie({"RCPT": NEVER, "RSET": "done"}, refused(NO_ONE, 550, "closed")),
    "RSET answered twice": Lie({"RCPT": NEVER, "RSET": b"250 ok\r\n250 ok\r\n"}, refused(NO_ONE, 550, "closed")),
    "RSET unanswered": Lie({"RCPT": NEVER, "RSET": silence}, Contract(NO_ONE, "refused", 550), limit="command"),
    "RSET cut between lines": Lie({"RCPT": NEVER, "RSET": then(send("250-ok"), fin)}, refused(NO_ONE, 550, "closed")),
    "FIN for RSET": Lie({"RCPT": NEVER, "RSET": fin}, refused(NO_ONE, 550, "closed")),
    "RST for RSET": Lie({"RCPT": NEVER, "RSET": rst}, refused(NO_ONE, 550, "closed")),
}

# ---- BDAT ---------------------------------------------------------------------------------------


def bdat(says: dict[str, object], contract: Contract, **options: object) -> Lie:
    return Lie(says, contract, CHUNKS, **options)  # type: ignore[arg-type]


BDAT = {
    "BDAT 421": bdat({"BDAT": says("421 bye")}, refused(NO_DATA, 421, "closed")),
    "BDAT 450": bdat({"BDAT": "450 later"}, refused(NO_DATA, 450)),
    "BDAT 502, and the content is taken for commands": bdat(
        {"BDAT unread": "502 5.5.1 no such command"}, broken("not_sent", 502)
    ),
    "BDAT 503, and the content is taken for commands": bdat(
        {"BDAT unread": "503 5.5.1 not now"}, broken("not_sent", 503)
    ),
    "BDAT 354": bdat({"BDAT": "354 go"}, broken("in_doubt", 354)),
    "BDAT 500, and the content is taken for commands": bdat(
        {"BDAT unread": "500 5.5.2 what?"}, broken("not_sent", 500)
    ),
    "BDAT 500, and the content is taken for many commands": bdat(
        {"BDAT unread": "500 5.5.2 what?"}, broken("not_sent", 500), content=b"noop\r\n" * 50
    ),
    "BDAT answered twice": bdat({"BDAT": b"250 taken\r\n250 and that too\r\n"}, sent("closed")),
    "BDAT unanswered": bdat({"BDAT": silence}, late("in_doubt"), limit="final"),
    "BDAT cut between lines": bdat({"BDAT": then(send("250-taken"), fin)}, broken("in_doubt")),
    "BDAT that changes its code": bdat({"BDAT": b"250-taken\r\n550 no\r\n"}, broken("in_doubt")),
    "FIN for BDAT": bdat({"BDAT": fin}, gone("in_doubt")),
    "RST for BDAT": bdat({"BDAT": rst}, gone("in_doubt")),
    "BDAT 552 to the first chunk": bdat({"BDAT": "552 much"}, refused(NO_DATA, 552), content=BIG * 10_000),
    "BDAT 421 to the first chunk": bdat(
        {"BDAT": says("421 bye")}, refused(NO_DATA, 421, "closed"), content=BIG * 10_000
    ),
    "BDAT 552 to the first chunk, and 250 to the last": bdat(
        {"BDAT": "552 much"}, refused(NO_DATA, 552), content=content_begun
    ),
    "MAIL 421 in front of BDAT": bdat({"MAIL": says("421 bye")}, refused(NO_SENDER, 421, "closed")),
    "RCPT 421 in front of BDAT": bdat({"RCPT": says("421 bye")}, refused(NO_ONE, 421, "closed")),
    "MAIL 2500 in front of BDAT": bdat({"MAIL": "2500 ok"}, broken("in_doubt")),
    "MAIL refused, the rest taken": bdat(
        {"MAIL": NEVER, "RCPT": "250 ok", "BDAT": "250 taken"}, broken("in_doubt", 250)
    ),
    "RCPT refused, the rest taken": bdat({"RCPT": NEVER, "BDAT": "250 taken"}, broken("in_doubt", 250)),
}

# ---- LMTP ---------------------------------------------------------------------------------------


def lmtp(says: dict[str, object], contract: Contract, **options: object) -> Lie:
    return Lie(says, contract, lmtp=True, **{"recipients": BOTH, **options})  # type: ignore[arg-type]


LMTP = {
    "LMTP 250, 550": lmtp({".": ["250 bob", "550 carol"]}, sent(without={CAROL: 550})),
    "LMTP 450, 250": lmtp({".": ["450 bob", "250 carol"]}, sent(without={BOB: 450})),
    "LMTP 550, 550": lmtp({".": ["550 bob", "550 carol"]}, refused(NO_ONE, 550)),
    "LMTP 250, and no more": lmtp({".": ["250 bob", silence]}, late("in_doubt"), limit="final"),
    "LMTP 550, and no more": lmtp({".": ["550 bob", silence]}, late("in_doubt"), limit="final"),
    "LMTP 250, then FIN": lmtp({".": ["250 bob", fin]}, gone("in_doubt")),
    "LMTP 250, then RST": lmtp({".": ["250 bob", rst]}, gone("in_doubt")),
    "LMTP 250, then 421": lmtp({".": ["250 bob", says("421 bye")]}, sent("closed", without={CAROL: 421})),
    "LMTP 421, and no more": lmtp({".": says("421 bye")}, refused(NO_DATA, 421, "closed")),
    "LMTP 250, then nonsense": lmtp({".": ["250 bob", "carol"]}, broken("in_doubt")),
    "LMTP one too many": lmtp({".": [None, b"250 carol\r\n250 dan\r\n"]}, sent("closed")),
    "LMTP one for all": lmtp({".": ["250 all", b""], "afterwards": silence}, late("in_doubt"), limit="final"),
    "LMTP for one that was refused too": lmtp(
        {"RCPT": [NEVER, None], ".": b"250 bob\r\n250 carol\r\n"}, sent("closed", without={BOB: 550})
    ),
    "LMTP byte by byte": lmtp(
        {".": [Slowly(b"250-b\r\n250 ob\r\n"), Slowly(b"550 carol\r\n")]}, sent(without={CAROL: 550})
    ),
    "LMTP one too few by BDAT": lmtp({"BDAT": ["250 bob", silence]}, late("in_doubt"), limit="final", offers=CHUNKS),
    "LMTP one too many by BDAT": lmtp({"BDAT": [None, b"250 carol\r\n250 dan\r\n"]}, sent("closed"), offers=CHUNKS),
    "LMTP mixed by BDAT": lmtp(
        {"RCPT": [None, NEVER], "BDAT": "450 bob"}, Contract(NO_ONE, "refused", after="in step"), offers=CHUNKS
    ),
    "LMTP FIN for LHLO": lmtp(
        {"LHLO": fin},
        gone("not_sent"),
    ),
    "LMTP DATA 354 though every recipient is refused": lmtp(
        {"RCPT": [NEVER] * 2, "DATA": "354 go"}, refused(NO_ONE, 550)
    ),
    "LMTP 552 before the end of the content": lmtp(
        {"content": "552 much"}, Contract(NO_DATA, "refused", 552), content=content_begun
    ),
}

# ---- limits of the server's ---------------------------------------------------------------------

CROWDED = "4.3.2 Concurrent connections limit exceeded"
THROTTLED = "454 4.7.0 Throttling failure: Maximum sending rate exceeded."

SAID: Sequence[tuple[int, Any, After]] = (
    (421, says(f"421 {CROWDED}"), "closed"),
    (432, f"432 {CROWDED}", "in step"),
    (451, f"451 {CROWDED}", "in step"),
)

LIMITS = {
    **{
        f"{verb} {code}, too many connections": Lie({verb: said}, refused(error, code, after), offers, retired=True)
        for verb, error, offers in (
            ("MAIL", NO_SENDER, BATCH),
            ("RCPT", NO_ONE, BATCH),
            ("DATA", NO_DATA, BATCH),
            (".", NO_DATA, BATCH),
            ("BDAT", NO_DATA, CHUNKS),
        )
        for code, said, after in SAID
    },
    "MAIL 454, throttled": Lie({"MAIL": THROTTLED}, refused(NO_SENDER, 454)),
    "RCPT 454, throttled": Lie({"RCPT": THROTTLED}, refused(NO_ONE, 454)),
    "DATA 454, throttled": Lie({"DATA": THROTTLED}, refused(NO_DATA, 454)),
    "final 454, throttled": Lie({".": THROTTLED}, refused(NO_DATA, 454)),
    "BDAT 454, throttled": bdat({"BDAT": THROTTLED}, refused(NO_DATA, 454)),
    "LMTP 454, 454, throttled": lmtp({".": [THROTTLED] * 2}, refused(NO_ONE, 454)),
    "LMTP 432, 432, too many connections": lmtp({".": [f"432 {CROWDED}"] * 2}, refused(NO_ONE, 432), retired=True),
}

# ---- QUIT ---------------------------------------------------------------------------------------

QUIT = {
    "QUIT 250": Lie({"QUIT": "250 ok"}, sent()),
    "QUIT 421": Lie({"QUIT": says("421 bye")}, sent()),
    "QUIT 500": Lie({"QUIT": "500 what?"}, sent()),
    "QUIT 354": Lie({"QUIT": "354 go"}, sent()),
    "QUIT of nonsense": Lie({"QUIT": "bye"}, sent()),
    "QUIT answered twice": Lie({"QUIT": b"221 bye\r\n221 bye\r\n"}, sent()),
    "QUIT cut between lines": Lie({"QUIT": then(send("221-bye"), fin)}, sent()),
    "QUIT unanswered": Lie({"QUIT": silence}, sent(), limit="quit"),
    "QUIT without end": Lie({"QUIT": flood(LONG * 1000, 2000)}, sent(), endless=True),
    "QUIT without end, dripping": Lie({"QUIT": dripping("221-b", "221-ye")}, sent(), limit="quit"),
    "FIN for QUIT": Lie({"QUIT": fin}, sent()),
    "RST for QUIT": Lie({"QUIT": rst}, sent()),
}

SENDING: dict[str, Lie] = {**MAIL, **RCPT, **DATA, **CONTENT, **FINAL, **GROUPS, **BDAT, **LMTP, **LIMITS, **QUIT}
