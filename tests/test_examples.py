"""Each example does what it says, as its reader would run it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import httpx
import pytest

from asmtp.cli.demo.server import Inbox, serving
from tests.fakes.relay import Relay, relaying

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, inbox: Inbox) -> str:
    url = f"smtp://127.0.0.1:{inbox.port}"
    environment = {**os.environ, "SMTP_HOST": "127.0.0.1", "SMTP_PORT": str(inbox.port), "ASMTP_URL": url}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_legacy_report() -> None:
    with serving(Inbox("PIPELINING")) as inbox:
        output = run("legacy_report.py", inbox)
    assert output == "nobody@example.com was refused: 550 5.1.1 no such user\nsent to 2\n"
    [letter] = inbox.letters
    assert letter.recipients == ["ops@example.com", "boss@example.com"]
    assert b"Subject: Nightly report\r\n" in letter.content


def test_legacy_report_changes_one_line_only() -> None:
    lines = (EXAMPLES / "legacy_report.py").read_text().splitlines()
    assert [line for line in lines if "asmtp" in line] == ["import asmtp as smtplib  # was: import smtplib"]


@pytest.mark.parametrize("offers", [("PIPELINING", "CHUNKING"), ("PIPELINING",), ()])
def test_concurrent_sends(offers: tuple[str, ...]) -> None:
    with serving(Inbox(*offers)) as inbox:
        assert run("concurrent_sends.py", inbox) == "100 sent, 0 not sent\n"
    assert sorted(letter.recipients[0] for letter in inbox.letters) == sorted(
        f"reader{number}@example.com" for number in range(100)
    )
    for letter in inbox.letters:
        number = letter.recipients[0].removeprefix("reader").removesuffix("@example.com")
        assert f"Dear reader {number},\r\n".encode() in letter.content


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name.removesuffix(".py"), EXAMPLES / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    with serving(Inbox("PIPELINING", "CHUNKING")) as inbox:
        yield inbox


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch, inbox: Inbox) -> ModuleType:
    monkeypatch.setenv("ASMTP_URL", f"smtp://127.0.0.1:{inbox.port}")
    return load("signup_app.py")


async def post(app: ModuleType, address: str) -> httpx.Response:
    transport = httpx.ASGITransport(app.app)
    running = app.app.router.lifespan_context(app.app)
    async with running, httpx.AsyncClient(transport=transport, base_url="http://app.example") as client:
        return await client.post("/signup", json={"email": address})


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("new@example.com", 201),
        ("nobody@example.com", 422),
        ("new@example.com\r\nBcc: everyone@example.com", 422),
    ],
)
async def test_signup_app(app: ModuleType, inbox: Inbox, address: str, status: int) -> None:
    response = await post(app, address)
    assert response.status_code == status, response.text
    assert [letter.recipients for letter in inbox.letters] == ([[address]] if status == 201 else [])


@pytest.mark.virtual_clock
async def test_signup_app_at_a_server_that_says_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is nothing against the address."""
    answer = "450 4.2.0 greylisted"
    async with relaying(Relay(answer=lambda verb, line: answer if verb == "RCPT" else None)) as relay:
        monkeypatch.setenv("ASMTP_URL", f"smtp://127.0.0.1:{relay.port}")
        response = await post(load("signup_app.py"), "new@example.com")
    assert response.status_code == 503
    assert response.json() == {"error": "no mail could be sent", "state": "refused"}


@pytest.mark.virtual_clock
async def test_signup_app_without_a_mail_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASMTP_URL", "smtp://127.0.0.1:1")
    response = await post(load("signup_app.py"), "new@example.com")
    assert response.status_code == 503
    assert response.json() == {"error": "no mail could be sent", "state": "not_sent"}


def test_newsletter() -> None:
    with serving(Inbox("PIPELINING", "CHUNKING")) as inbox:
        output = run("newsletter.py", inbox).splitlines()
    assert output[0].startswith("nobody@example.com: refused: ")
    assert output[1:] == ["999 sent"]
    assert len({letter.recipients[0] for letter in inbox.letters}) == len(inbox.letters) == 999


def test_thread_pool() -> None:
    with serving(Inbox("PIPELINING", "CHUNKING")) as inbox:
        output = run("thread_pool.py", inbox)
    assert output.startswith("200 sent; the server said: 2.0.0 OK: letter ")
    assert len({letter.recipients[0] for letter in inbox.letters}) == len(inbox.letters) == 200
