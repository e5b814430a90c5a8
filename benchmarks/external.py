"""The peers of the bulk rows that are not Python: Postfix's smtp-source, and nodemailer's pool.

smtp-source is looked for on the PATH, and where ``python tests/interop/servers.py install`` puts Postfix. It
has neither PIPELINING nor CHUNKING, and no warm-up: starting it and opening its connections are within the
clock, and its memory is that of the whole process. nodemailer comes with
``npm install --prefix benchmarks/nodemailer``; it measures itself, as a Python client does.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import shutil
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import bulkclients, scenarios
from .clients import HOST, NAME, SENDER
from .rates import Sample

if TYPE_CHECKING:
    from collections.abc import Callable

NODEMAILER = Path(__file__).parent / "nodemailer"


@dataclass(frozen=True)
class Job:
    """What a client is to send, and where."""

    kind: str
    port: int
    connections: int
    count: int
    warm_up: int


# smtp-source


@functools.cache
def smtp_source_command() -> list[str]:
    """How smtp-source is run, or nothing where it is not installed."""
    if program := shutil.which("smtp-source", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin"):
        return [program]
    try:
        from tests.interop.servers import root_folder
    except ImportError:  # a copy without the tests
        return []
    root = root_folder("postfix")
    program = str(root / "usr/sbin/smtp-source")
    loaders = sorted(root.glob("usr/lib/*/ld-linux*.so.*"))
    if not Path(program).exists() or not loaders:
        return []
    return [str(loaders[0]), "--library-path", f"{root}/usr/lib/postfix:{loaders[0].parent}", program]


def high_water(process: subprocess.Popen[bytes], seen: list[float]) -> None:
    """Note a process's peak of resident memory, MiB, as long as it runs."""
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            return
        if "VmHWM:" in status:
            seen.append(int(status.split("VmHWM:")[1].split()[0]) / 1024)
        time.sleep(0.005)


def smtp_source(job: Job) -> Sample:
    total = job.count + job.warm_up
    with tempfile.NamedTemporaryFile() as file:
        # It makes CRLF of line ends, and adds an empty line.
        file.write(scenarios.content(bulkclients.SIZE - 2).replace(b"\r\n", b"\n"))
        file.flush()
        command = [*smtp_source_command(), "-s", str(job.connections), "-m", str(total), "-d", "-F", file.name]
        command += ["-M", NAME, "-f", SENDER, "-t", scenarios.recipients(1)[0], f"{HOST}:{job.port}"]
        seen: list[float] = []
        before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
            threading.Thread(target=high_water, args=(process, seen)).start()
        seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise bulkclients.NotDelivered(f"smtp-source ended with {process.returncode}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Sample(total / seconds, cpu / total * 1e6, max(seen, default=None))


# nodemailer


@functools.cache
def nodemailer_version() -> str | None:
    """The versions of the nodemailer that was installed here and of node, None where either is missing."""
    try:
        package = json.loads((NODEMAILER / "node_modules/nodemailer/package.json").read_text())
        node = subprocess.run(["node", "--version"], check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{package['version']} on node {node}"


def run_node(**options: object) -> str:
    content = scenarios.content().decode("latin1")
    common = {"host": HOST, "name": NAME, "sender": SENDER, "recipient": scenarios.recipients(1)[0]}
    argument = json.dumps(common | {"content": content, "text": bulkclients.body()} | options)
    command = ["node", str(NODEMAILER / "bulk.mjs"), argument]
    return subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True).stdout


@functools.cache
def nodemailer_octets() -> int:
    """How long a message is that nodemailer makes of our fields."""
    return int(run_node(size=True))


def nodemailer(job: Job) -> Sample:
    told = {"port": job.port, "kind": job.kind, "connections": job.connections}
    return Sample(**json.loads(run_node(**told, count=job.count, warmUp=job.warm_up)))


CLIENTS: dict[str, Callable[[Job], Sample]] = {"smtp-source": smtp_source, "nodemailer": nodemailer}


def available(client: str) -> bool:
    return bool(smtp_source_command() if client == "smtp-source" else nodemailer_version())
