"""The blocking facade under gevent and eventlet, which put their own in the place of what blocks."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest

from tests.conftest import Certificates
from tests.fakes.relay import SHAPES, Relay
from tests.sync.facade import relay_at

PATCH = {
    "gevent": "from gevent import monkey; monkey.patch_all()\nimport gevent as green\n",
    "eventlet": (
        "import warnings; warnings.simplefilter('ignore')  # it says that it is deprecated\n"
        "import eventlet as green; green.monkey_patch(); green.joinall = lambda jobs: [job.wait() for job in jobs]\n"
    ),
}

JOBS = """
import ssl, sys, threading, time
import asmtp

class Waiting:  # another greenlet that does what it has to meanwhile
    turns = 0
    def run(self):
        while True:
            self.turns += 1
            green.sleep(0.001)

def connect():
    if len(sys.argv) < 3:
        return asmtp.SMTP("127.0.0.1", int(sys.argv[1]), "client.example", timeout=20)
    context = ssl.create_default_context(cafile=sys.argv[2])
    return asmtp.SMTP_SSL("localhost", int(sys.argv[1]), "client.example", timeout=20, context=context)

def job(number):
    with connect() as smtp:
        for each in range(4):
            assert smtp.sendmail("a@b.example", "b@b.example", f"{number} {each}") == {}

def shared(smtp, number):
    assert smtp.sendmail("a@b.example", "b@b.example", f"{number} 4") == {}

waiting = Waiting()
green.spawn(waiting.run)
green.joinall([green.spawn(job, number) for number in range(5)])
with connect() as smtp:
    green.joinall([green.spawn(shared, smtp, number) for number in range(5)])
assert waiting.turns > 5, waiting.turns
"""


LATE = "import asmtp; asmtp.SMTP; import warnings; warnings.simplefilter('ignore')  # it says that it is late\n"


@pytest.mark.parametrize(
    ("name", "tls", "late"),
    [
        pytest.param("gevent", False, False, id="gevent"),
        pytest.param("gevent", True, False, id="gevent-TLS"),
        pytest.param("gevent", False, True, id="gevent-late"),  # TLS does not work by itself then
        pytest.param("eventlet", False, False, id="eventlet"),
        pytest.param("eventlet", True, False, id="eventlet-TLS"),
    ],
)
def test_greenlets(name: str, tls: bool, late: bool, certificates: Certificates, tmp_path: Any) -> None:
    """Each with a connection of its own, then all with one, while others go on."""
    more: list[str] = []
    if tls:
        certificates.ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        more = [str(tmp_path / "ca.pem")]

    def answer(verb: str, line: str) -> None:
        if verb == "EHLO":
            time.sleep(0.01)  # so that the client waits

    relay = Relay(SHAPES["both"], answer=answer)
    with relay_at(relay, **({"tls": certificates.server} if tls else {})):
        program = [LATE] * late + [PATCH[name], JOBS]
        command = [sys.executable, "-c", "".join(program), str(relay.port), *more]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    assert sorted(letter.content for letter in relay.letters) == sorted(
        b"%d %d\r\n" % (number, each) for number in range(5) for each in range(5)
    )
