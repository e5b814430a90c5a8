"""``asmtp demo``: several messages at once on one connection, the blocking facade, a thousand letters; what arrived."""

from __future__ import annotations

import asyncio
import contextlib
import email
import email.policy
import sys
import time
from collections.abc import Callable, Iterator
from email.message import EmailMessage

import asmtp
from asmtp.cli.demo.server import Inbox, serving

__all__ = ["demo"]


def letter(number: int, recipient: str) -> EmailMessage:
    """Return a short message."""
    message = EmailMessage()
    message["From"] = "demo@example.com"
    message["To"] = recipient
    message["Subject"] = f"letter {number}"
    message.set_content(f"Hello, this is letter {number}.\n")
    return message


class Dialogue:
    """Prints what a client writes and reads, and counts the turns.

    Attributes:
        unheard: why it could not be printed, if that is so; nothing may be raised in the middle of a dialogue.
    """

    def __init__(self) -> None:
        self.turns = 0
        self.unheard: OSError | None = None
        self._last = ""

    def __call__(self, direction: str, data: bytes) -> None:
        if direction == ">" and self._last != ">":
            self.turns += 1
        self._last = direction
        try:
            for line in _shown(data):
                print(f"    {'C:' if direction == '>' else '     S:'} {line}")
        except OSError as error:
            self.unheard = error


def _shown(data: bytes) -> list[str]:
    """Return the lines of a group, with the content cut out."""
    lines = data.decode("utf-8", "replace").splitlines()
    begun = [line for line in lines if line.split(":")[0].split(" ")[0].upper() in _COMMANDS or line[:1].isdigit()]
    skipped = len(lines) - len(begun)
    if data.endswith(b"\r\n.\r\n"):
        begun.append(".")
        skipped -= 1
    if skipped > 0 and not lines[0][:1].isdigit():
        begun.insert(begun.index(".") if "." in begun else len(begun), f"({skipped} lines of content)")
    return begun


_COMMANDS = {"EHLO", "HELO", "MAIL", "RCPT", "DATA", "BDAT", "RSET", "QUIT", "NOOP"}


async def several_at_once(inbox: Inbox) -> None:
    """Send from three tasks on one connection; nobody configures anything."""
    async with asmtp.AsyncSMTP("127.0.0.1", inbox.port, "client.example") as smtp:
        await smtp.ehlo()
        smtp.trace = dialogue = Dialogue()
        recipients = ["alice@example.com", "bob@example.com", "nobody@example.com"]
        results = await asyncio.gather(
            *(smtp.send_message(letter(n, who)) for n, who in enumerate(recipients, 1)), return_exceptions=True
        )
        smtp.trace = None
        if dialogue.unheard is not None:
            raise dialogue.unheard
        print(
            f"  {len(results)} messages; the client waited for the server {dialogue.turns} times.  Each task's result:"
        )
        for who, result in zip(recipients, results, strict=True):
            print(f"    {who:20} {result!r}")


def facade(inbox: Inbox) -> None:
    """Send as legacy code does: unchanged, but for `import asmtp as smtplib`."""
    with asmtp.SMTP("127.0.0.1", inbox.port, "client.example") as smtp:
        refused = smtp.sendmail("demo@example.com", ["carol@example.com", "nobody@example.com"], "Subject: old\n\nhi")
    print("  sendmail() returned", refused)


async def thousand(inbox: Inbox) -> int:
    """Send a thousand personal letters through a mailer; return how many were sent."""
    letters = (letter(n, "nobody@example.com" if n == 500 else f"reader{n}@example.com") for n in range(1, 1001))
    url = f"smtp://127.0.0.1:{inbox.port}?local_hostname=client.example"
    sent = 0
    begun = time.perf_counter()
    with watched(1000) as done:
        async with asmtp.AsyncMailer(url, connections=4) as mailer:
            async for delivery in mailer.send_all(letters):
                done()
                if delivery.ok:
                    sent += 1
                else:
                    assert delivery.envelope is not None
                    print(f"  {delivery.state}: {delivery.envelope.recipients[0]}: {delivery.error!r}")
    seconds = time.perf_counter() - begun
    print(f"  {sent} of 1000 sent in {seconds:.1f} s, {1000 / seconds:,.0f}/s, the making of the messages included")
    return sent


@contextlib.contextmanager
def watched(total: int) -> Iterator[Callable[[], None]]:
    """Show a bar if rich is installed and somebody watches."""
    try:
        from rich.progress import Progress
    except ModuleNotFoundError:
        yield lambda: None
        return
    with Progress(transient=True, disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task("  sending", total=total)
        yield lambda: bar.advance(task)


def demo() -> int:
    """Run the demo; return the exit status."""
    for offers in (("PIPELINING", "CHUNKING"), ("PIPELINING",), ()):
        with serving(Inbox(*offers)) as inbox:
            print(f"\nThree tasks, one connection, a server that offers {' and '.join(offers) or 'neither'}")
            asyncio.run(several_at_once(inbox))
            if not offers:
                print("\nThe blocking facade, as smtplib's users know it")
                facade(inbox)
            print("\n  The server received:")
            for sender, recipients, content in inbox.letters:
                subject = email.message_from_bytes(content, policy=email.policy.default)["Subject"]
                print(f"    {sender} -> {', '.join(recipients)}: {subject!r}, {len(content)} octets")
            expected = 2 if offers else 3
            if len(inbox.letters) != expected:
                print(f"  {expected} letters were expected")
                return 1
    with serving(Inbox("PIPELINING", "CHUNKING")) as inbox:
        print("\nA thousand personal letters through AsyncMailer, four connections at most")
        sent = asyncio.run(thousand(inbox))
        print(f"  The server received {len(inbox.letters)}.")
    return 0 if sent == len(inbox.letters) == 999 else 1
