"""The results as markdown, ready for a README: what was measured, on what, and whether it met the target."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from . import clients, cost, external, imports, large

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .rates import Row

COLUMNS = ("asmtp", "aiosmtplib", "smtplib", "smtpproto")
BULK_COLUMNS = ("asmtp", "aiosmtplib", "smtplib", "smtp-source", "nodemailer")
NOT_INSTALLED = "not installed"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float) -> str:
    """Three significant digits or all of the whole part."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def environment() -> str:
    model, cpuinfo = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if cpuinfo.exists():
        named = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = named[0].partition(":")[2].strip() if named else model
    names = ("asmtp", "aiosmtplib", "smtpproto", "anyio", "uvloop")
    versions = ", ".join(f"{name} {clients.version(name)}" for name in names)
    versions += f", nodemailer {external.nodemailer_version() or NOT_INSTALLED}"
    return (
        f"{datetime.date.today()}, {model}, {os.cpu_count()} cores, {platform.system()} "
        f"{platform.release()}, {platform.python_implementation()} {platform.python_version()}, {versions}."
    )


def verdicts(got: list[float | None], aims: list[float], at_least: bool) -> str:
    """One yes or no a target."""
    words = []
    for value, aim in zip(got, aims, strict=True):
        if value is None:
            words.append("–")
        else:
            words.append("yes" if (round(value, 2) >= aim if at_least else round(value, 2) <= aim) else "**no**")
    return ", ".join(words)


def rate_cell(row: Row, column: str) -> str:
    client = next((name for name in row.scenario.clients if name.partition(".")[0] == column), None)
    if client is None:
        return ""
    if not row.samples[client]:
        return NOT_INSTALLED
    cell = f"{number(row.rate(client))} ±{row.spread(client):.0%}, {number(row.cpu(client))} µs"
    return cell + (f", {row.memory[client]:.1f} MiB" if client in row.memory else "")


def rate_line(row: Row, columns: Sequence[str]) -> list[str]:
    """The cells of a row; what has a target is "≥" it, and has its yes or no."""
    got = {f"× {peer}": (row.ratio(peer), aim) for peer, aim in row.scenario.targets}
    if row.scenario.least is not None:
        subject = row.scenario.clients[0]
        got["/s"] = (row.rate(subject) if row.samples[subject] else None, row.scenario.least)
    shown = []
    for unit, (value, aim) in got.items():
        figure = "–" if value is None else f"{value:,.0f}" if unit == "/s" else f"{value:.2f}"
        shown.append(figure + unit + ("" if aim is None else f" (≥ {aim:,g})"))
    aimed = [(value, aim) for value, aim in got.values() if aim is not None]
    met = verdicts([value for value, _ in aimed], [aim for _, aim in aimed], at_least=True)
    cells = [rate_cell(row, column) for column in columns]
    return [row.scenario.work, row.scenario.offers, *cells, ", ".join(shown), met]


def rates_table(rows: list[Row], columns: Sequence[str] = COLUMNS) -> str:
    header = ["work", "server offers", *columns, "asmtp is (target)", "met"]
    memory = ", resident memory that it adds" if any(row.memory for row in rows) else ""
    title = f"Messages/s (median ± half the spread), CPU time of the client a message{memory}:"
    return title + "\n\n" + table(header, (rate_line(row, columns) for row in rows))


def long_line(count: int, added: float | None) -> str:
    what = NOT_INSTALLED if added is None else f"{added:.1f} MiB of resident memory added at the peak"
    return f"{count:,} messages from a generator through `send_all`, 4 connections: {what}."


def cost_table(figures: dict[str, float | None]) -> str:
    """Every step beside the whole of which it is a part."""
    whole = figures[cost.WHOLE]
    lines = []
    for step, taken in figures.items():
        share = f"{taken / whole:.0%}" if taken is not None and whole else "–"
        lines.append([step, NOT_INSTALLED if taken is None else number(taken), share])
    return table(["an EmailMessage, asyncio, CHUNKING", "µs of CPU time", f"of one {cost.WHOLE}"], lines)


def large_line(figures: large.Figures, base: float | None) -> list[str]:
    row = figures.row
    if figures.rate is None:
        return [row.client, row.source, row.offers, NOT_INSTALLED, *[""] * 6]
    ratio = figures.rate / base if base else None
    cells = [number(figures.rate), "–" if ratio is None else f"{ratio:.2f}×"]
    cells += ["–" if x is None else f"{x:.1f}" for x in (figures.rss, figures.traced, figures.stall)]
    if row.added is None:
        return [row.client, row.source, row.offers, *cells, "", ""]
    met = [
        verdicts([ratio], [1.0], at_least=True),
        verdicts([figures.rss, figures.stall], [row.added, large.STALL_TARGET], at_least=False),
    ]
    targets = f"≥ 1×, ≤ {row.added:g} MiB resident, ≤ {large.STALL_TARGET:g} ms"
    return [row.client, row.source, row.offers, *cells, targets, ", ".join(met)]


def large_table(results: list[large.Figures], size: int) -> str:
    """The peer of a row is smtplib with the same kind of source."""
    base = {figures.row.source: figures.rate for figures in results if figures.row.client == "smtplib"}
    header = ["client", "from", "server offers", "MB/s", "× smtplib", "added RSS, MiB", "traced peak, MiB"]
    header += ["longest stall, ms", "target", "met"]
    lines = [large_line(figures, base.get(figures.row.source)) for figures in results]
    return f"One message of {size / large.MiB:g} MiB:\n\n" + table(header, lines)


def imports_table(results: list[imports.Imported]) -> str:
    lines = []
    for result in results:
        aim = imports.TARGETS.get(result.statement)
        if result.milliseconds is None or result.ratio is None:
            lines.append([f"`{result.statement}`", NOT_INSTALLED, "", "", ""])
            continue
        goal = ["", ""] if aim is None else [f"≤ {aim:g}×", verdicts([result.ratio], [aim], at_least=False)]
        lines.append([f"`{result.statement}`", f"{result.milliseconds:.1f}", f"{result.ratio:.2f}×", *goal])
    header = ["import, in a fresh interpreter", "ms", "× smtplib", "target", "met"]
    return table(header, lines)
