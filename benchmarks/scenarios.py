"""What is measured, as data: a row a piece of work, with the ratios asmtp wants to reach."""

from __future__ import annotations

from dataclasses import dataclass

RTT = 20.0  # ms, where a scenario says "far"

# How many tasks send at once where sends are concurrent.
TASKS = 256


@dataclass(frozen=True)
class Scenario:
    """One row. `clients[0]` is the subject, the others its peers.

    `targets` are ratios to a peer's rate, None where the ratio is shown without there being a target; `least`
    is a target of messages/s.
    """

    name: str
    work: str
    offers: str  # a key of sink.OFFERS
    clients: tuple[str, ...]
    targets: tuple[tuple[str, float | None], ...] = ()
    tasks: int = 1
    recipients: int = 1
    rtt: float = 0.0
    loop: str = "asyncio"
    least: float | None = None


def content(size: int = 800) -> bytes:
    """A message of exactly `size` octets, in lines that end in CRLF."""
    return text(size, b"From: sender@example.com\r\nTo: recipient@example.net\r\nSubject: benchmark\r\n\r\n")


def text(size: int, head: bytes = b"") -> bytes:
    """Lines after `head` that make it `size` octets long."""
    line = b"The quick brown fox jumps over the lazy dog, and then it does it once more.\r\n"
    # One join, not a sum: a sum would hold a big message twice, and the peak memory is measured.
    lines, rest = divmod(size - len(head), len(line))
    if rest < 2:
        lines, rest = lines - 1, rest + len(line)
    return b"".join((head, *([line] * lines), line[: rest - 2], b"\r\n"))


def recipients(number: int) -> list[str]:
    return [f"recipient{i}@example.net" for i in range(number)]


def _one_at_a_time() -> list[Scenario]:
    wanted = {"chunking": 4.0, "pipelining": 1.8, "none": 1.1}
    return [
        Scenario(
            f"single-{offers}",
            "one message at a time",
            offers,
            ("asmtp", "aiosmtplib", "smtpproto"),
            (("aiosmtplib", ratio),),
        )
        for offers, ratio in wanted.items()
    ]


def _concurrent() -> list[Scenario]:
    wanted = {"chunking": (("aiosmtplib", 15.0), ("smtplib", 5.0)), "pipelining": (("aiosmtplib", 5.0),)}
    return [
        Scenario(
            f"tasks-{offers}-{loop}",
            f"{TASKS} tasks on one connection, {loop}",
            offers,
            ("asmtp", "aiosmtplib", "smtplib"),
            targets,
            tasks=TASKS,
            loop=loop,
        )
        for loop in ("asyncio", "uvloop")
        for offers, targets in wanted.items()
    ]


def _many_recipients() -> list[Scenario]:
    return [
        Scenario(
            f"recipients-{offers}" + ("-far" if rtt else ""),
            "50 recipients a message" + (f", {rtt:.0f} ms away" if rtt else ""),
            offers,
            ("asmtp", "aiosmtplib"),
            (("aiosmtplib", 20.0 if rtt else 10.0),),
            recipients=50,
            rtt=rtt,
        )
        for rtt in (0.0, RTT)
        for offers in ("chunking", "pipelining")
    ]


def _facade() -> list[Scenario]:
    wanted = [("none", 0.0, 1.0), ("pipelining", 0.0, 1.0), ("chunking", 0.0, 1.8)]
    wanted += [("pipelining", RTT, 2.0), ("chunking", RTT, 2.0)]
    return [
        Scenario(
            f"facade-{offers}" + ("-far" if rtt else ""),
            "blocking facade" + (f", {rtt:.0f} ms away" if rtt else ""),
            offers,
            ("asmtp.SMTP", "smtplib"),
            (("smtplib", ratio),),
            rtt=rtt,
        )
        for offers, rtt, ratio in wanted
    ]


def _concurrent_far() -> list[Scenario]:
    return [
        Scenario(
            f"tasks-{offers}-far",
            f"{TASKS} tasks on one connection, {RTT:.0f} ms away",
            offers,
            ("asmtp", "aiosmtplib"),
            (("aiosmtplib", ratio),),
            tasks=TASKS,
            rtt=RTT,
        )
        for offers, ratio in (("chunking", 50.0), ("pipelining", 4.0))
    ]


SCENARIOS = [*_one_at_a_time(), *_concurrent(), *_many_recipients(), *_facade(), *_concurrent_far()]
