"""Benchmarks of asmtp beside its peers, in one run: ``python -m benchmarks``.

    python -m benchmarks                      # everything, some minutes; markdown on standard output
    python -m benchmarks --quick              # small counts, fewer bulk rows, under 60 s: that it runs, not how fast
    python -m benchmarks --only single        # what has "single" in its name; --list shows the names
    python -m benchmarks --json results.json  # the samples behind the medians, too

``pip install aiosmtplib smtpproto uvloop`` for the peers, ``npm install --prefix benchmarks/nodemailer`` for
nodemailer, and Debian's postfix or ``python tests/interop/servers.py install`` for Postfix's smtp-source; a
peer that is missing leaves a cell "not installed".

The server is `benchmarks.sink`, a process of its own, and the run begins by showing that it is not the
bottleneck. All clients of a row are measured in turn, a few rounds of them, one connection a sample, opened
and greeted before the clock starts, 1 recipient and 800 octets where nothing else is said. A sample counts
only if the sink has every message and every octet of it. Ratios are of medians. The bulk rows, which have
several connections and other programs among their peers, say more in `benchmarks.bulk`. Leave the machine alone
meanwhile: the client and the sink want a core each, and keep to their own where the system lets them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from . import bulk, cost, imports, large, rates, report, scenarios, servers, sink

QUICK = rates.Effort(rounds=2, near=0.05, far=0.1)
FULL = rates.Effort(rounds=5, near=0.5, far=2.0)


def arguments() -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__, formatter_class=layout)
    parser.add_argument("--quick", action="store_true", help="small counts, fewer bulk rows, under 60 s")
    parser.add_argument("--only", action="append", metavar="NAME", help="rows with NAME in them; repeatable")
    parser.add_argument("--rounds", type=int, metavar="N", help="instead of 5")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples there")
    parser.add_argument("--list", action="store_true", help="print the names for --only")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    every = [*scenarios.SCENARIOS, *(one for one in bulk.SCENARIOS if one.quick or not options.quick)]
    names = [*(scenario.name for scenario in every), "bulk-long", "bulk-cost", "sink", "large", "import"]
    if options.list:
        print(*names, sep="\n")
        return 0
    chosen = {name for name in names if not options.only or any(part in name for part in options.only)}
    if not chosen:
        print("nothing has such a name; see --list", file=sys.stderr)
        return 2
    effort = QUICK if options.quick else FULL
    if options.rounds:
        effort = dataclasses.replace(effort, rounds=options.rounds)
    results: dict[str, object] = {"environment": report.environment()}
    print(report.environment())
    with servers.running(scenarios.RTT) as running:
        measure(running, chosen, effort, options.quick, results)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    return 0


def measure(
    running: servers.Servers, chosen: set[str], effort: rates.Effort, quick: bool, results: dict[str, object]
) -> None:
    """Run what was chosen, print each table as it is there, and collect the samples."""
    if "sink" in chosen:
        sink.selftest()
        count, port = 10_000 if quick else 200_000, running.ports["chunking", 0.0]
        capacity = max(servers.capacity(port, scenarios.content(), count) for _ in range(3))
        results["sink"] = capacity
        print(f"The sink itself takes {capacity:,.0f} messages/s of ready-made pipelined groups.", flush=True)
    wanted = [scenario for scenario in scenarios.SCENARIOS if scenario.name in chosen]
    if wanted:
        rows = rates.run(running, wanted, effort)
        results["rates"] = {row.scenario.name: row.samples for row in rows}
        print("\n" + report.rates_table(rows), flush=True)
    bulks = [scenario for scenario in bulk.SCENARIOS if scenario.name in chosen]
    if quick:
        effort = dataclasses.replace(effort, rounds=1)
    if bulks:
        rows = bulk.run(running, bulks, effort)
        results["bulk"] = {row.scenario.name: {"samples": row.samples, "memory": row.memory} for row in rows}
        print("\n" + report.rates_table(rows, report.BULK_COLUMNS), flush=True)
    if "bulk-long" in chosen:
        count = bulk.LONG_COUNT // (10 if quick else 1)
        added = results["bulk-long"] = bulk.long_memory(running, count)
        print("\n" + report.long_line(count, added), flush=True)
    if "bulk-cost" in chosen:
        costs = results["bulk-cost"] = cost.run(running, effort)
        print("\n" + report.cost_table(costs), flush=True)
    if "large" in chosen:
        size = (2 if quick else 25) * large.MiB
        larges = large.run(running, size, effort.rounds)
        results["large"] = [dataclasses.asdict(one) for one in larges]
        print("\n" + report.large_table(larges, size), flush=True)
    if "import" in chosen:
        imported = imports.run(3 if quick else 31)
        results["imports"] = [dataclasses.asdict(one) for one in imported]
        print("\n" + report.imports_table(imported), flush=True)


if __name__ == "__main__":
    sys.exit(main())
