"""Real mail servers on loopback: Postfix, Exim and Dovecot's LMTP, each in namespaces of its own.

    python tests/interop/servers.py install        fetch the Debian packages into the cache folder
    python tests/interop/servers.py run postfix    start one and print where it listens, until Ctrl-C

The packages conflict with each other and with the machine's own mail system, so they are never installed:
apt resolves their dependencies against an empty system and downloads them, and each server gets a root folder
with everything it needs, libc included. A running server sees that folder read-only; what it writes goes to a
temporary folder and to tmpfs mounts that vanish with it.

Needs Linux, root, and the apt of Debian 12 or of another release with Dovecot 2.3. Installing uses the
standard library only; running needs trustme.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import importlib.util
import os
import random
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST = "127.0.0.1"
DOMAIN = "lab.test"
USERNAME = "tester"
PASSWORD = "s3cret-Pa55"
UTF8_LOCAL = "δοκιμή"  # delivered into the mailbox "utf8" where SMTPUTF8 is offered
MAX_SIZE = 50 * 1024 * 1024
VMAIL = 5000  # who owns the mail; the other numbers are in PASSWD

PASSWD = f"""\
root:x:0:0::/:/bin/sh
nobody:x:65534:65534::/:/bin/false
vmail:x:{VMAIL}:{VMAIL}::/srv/mail:/bin/false
postfix:x:5001:5001::/:/bin/false
Debian-exim:x:5003:5003::/:/bin/false
dovecot:x:5004:5004::/:/bin/false
dovenull:x:5005:5005::/:/bin/false
"""
GROUP = f"""\
root:x:0:
nogroup:x:65534:
mail:x:8:
vmail:x:{VMAIL}:
postfix:x:5001:
postdrop:x:5002:
Debian-exim:x:5003:
dovecot:x:5004:
dovenull:x:5005:
"""


class Unavailable(Exception):
    """This machine cannot run the servers; the text says what is missing."""


@dataclass(frozen=True)
class Recipe:
    """How one kind of server is installed and started."""

    packages: str
    roles: tuple[str, ...]  # the ports it listens on
    files: dict[str, str]  # template under conf/ -> path under /etc
    prepare: str  # shell, run in the server's root folder with the machine's own tools
    command: str


# usr-is-merged stands in for usrmerge, which would bring the whole of Perl.
RECIPES = {
    "postfix": Recipe(
        "postfix sasl2-bin libsasl2-modules libsasl2-modules-db usr-is-merged",
        ("plain", "submission", "tls"),
        {
            "postfix-main.cf": "postfix/main.cf",
            "postfix-master.cf": "postfix/master.cf",
            "postfix-mailboxes": "postfix/mailboxes",
            "postfix-sasl.conf": "postfix/sasl/smtpd.conf",
        },
        # What `postfix check` would make, without its half second of shell scripts.
        f"""
        queue=var/spool/postfix
        mkdir -p $queue/pid var/lib/postfix
        chown 5001 var/lib/postfix
        for d in active bounce corrupt defer deferred flush hold incoming private saved trace; do
            install -d -o 5001 -m 700 $queue/$d
        done
        install -d -o 5001 -g 5002 -m 710 $queue/public
        install -d -o 5001 -g 5002 -m 1730 $queue/maildrop
        printf %s '{PASSWORD}' | chroot . /usr/sbin/saslpasswd2 -p -c -u {DOMAIN} {USERNAME}
        chgrp 5001 etc/sasldb2 && chmod 640 etc/sasldb2
        """,
        "/usr/lib/postfix/sbin/master -d",
    ),
    "exim": Recipe(
        "exim4-daemon-light usr-is-merged",
        ("plain", "submission", "tls"),
        {"exim.conf": "exim4/exim4.conf"},
        "mkdir var/spool/exim4 && chown 5003:5003 var/spool/exim4",
        "/usr/sbin/exim4 -bdf",
    ),
    "dovecot": Recipe(
        "dovecot-core dovecot-lmtpd usr-is-merged",
        ("lmtp",),
        {"dovecot.conf": "dovecot/dovecot.conf", "dovecot-mailboxes": "dovecot/mailboxes"},
        "mkdir var/lib/dovecot",
        "/usr/sbin/dovecot -F",
    ),
}

# The first process of the server's pid namespace; when it ends, the kernel ends all the others. It lives as
# long as its standard input stays open: the server ends with the process that started it, even a killed one.
INIT = """
set -e
umask 022
exec 3<&0 </dev/null
trap 'exit 1' TERM
mount --bind "$1" "$2/root"
mount -o remount,bind,ro "$2/root"
chmod -R go+rX "$2/etc" "$2/srv"
cd "$2/root"
mount --bind "$2/etc" etc
mount --bind "$2/srv" srv
for d in run var tmp; do mount -t tmpfs tmpfs $d; done
mount --rbind /dev dev
mount -t proc proc proc || :
mkdir -p var/lib var/log var/spool var/tmp
ln -s ../run var/run
chmod 1777 tmp var/tmp
{prepare}
{ chroot . {command} || :; echo 'the server ended by itself'; kill $$; } 3<&- &
cat <&3 >/dev/null &
wait $!
"""


@dataclass(frozen=True)
class MailServer:
    """A running server: where it listens, what it delivered and what it logged.

    alice, bob, carol and dave at `DOMAIN` are accepted, nobody gets 550 and tempfail 450 (451 from Dovecot).
    Postfix and Exim put `UTF8_LOCAL` into the mailbox "utf8". Dovecot refuses full and broken after the body,
    with 552 and 451.
    """

    name: str
    host: str
    ports: dict[str, int]  # of plain, submission (STARTTLS, then AUTH), tls (implicit TLS, AUTH), lmtp
    lmtp_socket: Path | None
    ca_pem: Path
    username: str
    password: str
    directory: Path
    startup: float = 0.0  # seconds

    def ssl_context(self) -> ssl.SSLContext:
        """A client context that trusts this server's CA alone and verifies."""
        return ssl.create_default_context(cafile=self.ca_pem)

    def messages(self, mailbox: str, containing: bytes = b"") -> list[bytes]:
        """What was delivered, oldest first, as stored; mailboxes outlive a test, hence the filter."""
        found: list[tuple[int, str, bytes]] = []
        for path in (self.directory / "srv/mail" / mailbox / "new").glob("*"):
            data = path.read_bytes()
            if containing in data:
                found.append((path.stat().st_mtime_ns, path.name, data))
        return [data for _, _, data in sorted(found)]

    def wait_for(self, mailbox: str, count: int = 1, timeout: float = 10, containing: bytes = b"") -> list[bytes]:
        """Poll until at least `count` messages are there: delivery goes on after the reply to the client."""
        deadline = time.monotonic() + timeout
        while len(found := self.messages(mailbox, containing)) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(found)} of {count} messages in {mailbox} after {timeout} s\n{self.logs()}")
            time.sleep(0.01)
        return found

    async def arrived(self, mailbox: str, count: int = 1, timeout: float = 10, containing: bytes = b"") -> list[bytes]:
        """`wait_for` without blocking the event loop."""
        return await asyncio.to_thread(self.wait_for, mailbox, count, timeout, containing)

    def logs(self) -> str:
        """All that the server wrote."""
        paths = [self.directory / "output.log", *sorted((self.directory / "srv/log").glob("*"))]
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')}" for path in paths)


# Installing


def cache_folder() -> Path:
    """Where the servers' software is kept between runs."""
    if folder := os.environ.get("ASMTP_INTEROP_CACHE"):
        return Path(folder).resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "asmtp-interop"


def root_folder(name: str) -> Path:
    """A server's root; another list of packages means another folder, so nothing running loses its files."""
    return cache_folder() / f"{name}-{hashlib.sha256(RECIPES[name].packages.encode()).hexdigest()[:8]}"


def check_machine() -> None:
    """Raise `Unavailable` unless this is Linux, we are root and may make namespaces."""
    if sys.platform != "linux":
        raise Unavailable("the interop servers need Linux")
    if os.geteuid() != 0:
        raise Unavailable("the interop servers need root (mount namespaces, chroot)")
    if missing := [tool for tool in ("unshare", "mount", "chroot") if not shutil.which(tool)]:
        raise Unavailable(f"the interop servers need {', '.join(missing)}")
    trial = ["unshare", "--mount", "--pid", "--fork", "mount", "-t", "tmpfs", "tmpfs", "/tmp"]
    if subprocess.run(trial, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode:
        raise Unavailable("the interop servers need the right to make mount and pid namespaces")


def install(name: str) -> None:
    """Download the packages with all they depend on, and unpack them, unless that was done before."""
    check_machine()
    import fcntl  # not on every platform on which this module is imported

    if missing := [tool for tool in ("apt-get", "dpkg-deb", "tar") if not shutil.which(tool)]:
        raise Unavailable(f"installing the interop servers needs {', '.join(missing)}")
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        root = root_folder(name)
        if root.is_dir():
            return
        with tempfile.TemporaryDirectory(prefix="apt-", dir=cache) as folder:
            debs = download(RECIPES[name].packages.split(), Path(folder))
            partial = Path(folder) / "root"
            for mount_point in ("dev", "etc", "proc", "run", "srv", "tmp", "var"):
                (partial / mount_point).mkdir(parents=True)
            for link in ("bin", "sbin", "lib", "lib64"):
                (partial / "usr" / link).mkdir(parents=True)
                (partial / link).symlink_to(f"usr/{link}")
            partial.chmod(0o755)
            for deb in debs:
                unpack(deb, partial)
            partial.rename(root)


def download(packages: list[str], folder: Path) -> list[Path]:
    """Have apt fetch packages and dependencies as for an empty machine; this one's state stays as it is."""
    (folder / "state/lists/partial").mkdir(parents=True)
    (folder / "cache/archives/partial").mkdir(parents=True)
    (folder / "status").touch()
    options = {
        "Dir::State": folder / "state",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder / "cache",
        "APT::Sandbox::User": "root",  # the cache may be where nobody else can look
        "APT::Install-Recommends": "false",
        "Acquire::Retries": "3",
        "Acquire::Languages": "none",
    }
    apt = ["apt-get", "-q", "-y", *(f"-o{key}={value}" for key, value in options.items())]
    for arguments in (["update"], ["install", "--download-only", *packages]):
        done = subprocess.run(apt + arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"apt-get {' '.join(arguments)}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return sorted((folder / "cache/archives").glob("*.deb"))


def unpack(deb: Path, root: Path) -> None:
    """Unpack one package; the symlinks of a merged /usr stay, which plain `dpkg -x` does not promise."""
    tar = ["tar", "-xp", "--keep-directory-symlink", "-C", str(root)]
    tar += [f"--exclude=./usr/share/{sub}" for sub in ("doc", "man", "locale", "info", "lintian")]
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE) as source:
        subprocess.run(tar, stdin=source.stdout, check=True)
    if source.returncode:
        raise RuntimeError(f"{deb.name} cannot be unpacked")


# Running


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, from below those the kernel gives to clients.

    pytest-randomly gives every worker the same seed, hence the system's own randomness.
    """
    ports: list[int] = []
    while len(ports) < count:
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            if port not in ports:
                ports.append(port)
    return ports


def write_files(server: MailServer, token: str) -> None:
    """Fill the temporary folder: the server's /etc and /srv, with a certificate of its own CA."""
    import trustme  # may be missing where the software is only installed

    etc, srv = server.directory / "etc", server.directory / "srv"
    shutil.copytree(root_folder(server.name) / "etc", etc, symlinks=True)
    (server.directory / "root").mkdir()
    for sub in ("mail", "log", "sock"):
        (srv / sub).mkdir(parents=True)
    os.chown(srv / "mail", VMAIL, VMAIL)
    (srv / "log").chmod(0o777)  # each daemon logs as a user of its own
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(server.ca_pem))
    certificate = ca.issue_cert("localhost", HOST)
    (etc / "server.pem").write_bytes(certificate.private_key_and_cert_chain_pem.bytes())
    (etc / "passwd").write_text(PASSWD)
    (etc / "group").write_text(GROUP)
    # No DNS: names come from here only, so no query leaves the machine and none is waited for.
    (etc / "hosts").write_text(f"127.0.0.1 localhost mail.{DOMAIN}\n")
    (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\nservices: files\n")
    (etc / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    values = {f"PORT_{role.upper()}": str(port) for role, port in server.ports.items()}
    values |= {"DOMAIN": DOMAIN, "USER": USERNAME, "PASSWORD": PASSWORD, "TOKEN": token}
    values |= {"UTF8_LOCAL": UTF8_LOCAL, "MAX_SIZE": str(MAX_SIZE), "VMAIL": str(VMAIL)}
    for template, target in RECIPES[server.name].files.items():
        text = (Path(__file__).parent / "conf" / template).read_text("utf-8")
        for key, value in values.items():
            text = text.replace(f"@{key}@", value)
        (etc / target).parent.mkdir(parents=True, exist_ok=True)
        (etc / target).write_text(text, "utf-8")
        os.utime(etc / target, (0, 0))  # Postfix waits two seconds for a file just written to settle


def greets(server: MailServer, role: str, token: str) -> bool:
    """Whether this very server answers: another test run's may have taken the port in the meantime."""
    try:
        with contextlib.ExitStack() as stack:
            sock = stack.enter_context(socket.create_connection((HOST, server.ports[role]), timeout=5))
            if role == "tls":
                sock = stack.enter_context(server.ssl_context().wrap_socket(sock, server_hostname=HOST))
            return token.encode() in sock.recv(1000)
    except OSError:
        return False


@contextlib.contextmanager
def process(server: MailServer) -> Iterator[subprocess.Popen[bytes]]:
    """The server's namespaces; leaving closes the pipe that keeps them alive."""
    recipe = RECIPES[server.name]
    script = INIT.replace("{prepare}", recipe.prepare).replace("{command}", recipe.command)
    command = ["unshare", "--mount", "--pid", "--ipc", "--fork", "--kill-child", "sh", "-c", script, "init"]
    command += [str(root_folder(server.name)), str(server.directory)]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
    with (
        (server.directory / "output.log").open("wb") as log,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True
        ) as init,
    ):
        try:
            yield init
        finally:
            assert init.stdin is not None
            init.stdin.close()
            try:
                init.wait(5)
            except subprocess.TimeoutExpired:
                init.kill()  # --kill-child: the namespace ends with unshare


@contextlib.contextmanager
def running(name: str) -> Iterator[MailServer]:
    """Start a server on free ports; end it with all its processes and files."""
    check_machine()
    if not root_folder(name).is_dir():
        raise Unavailable(f"{name} is not installed: python tests/interop/servers.py install")
    if importlib.util.find_spec("trustme") is None:
        raise Unavailable("the interop servers need trustme")
    with contextlib.ExitStack() as stack:
        yield start(name, stack)


def start(name: str, stack: contextlib.ExitStack) -> MailServer:
    """Start a server, on other ports if one was taken in between; what ends it goes to `stack`."""
    roles, logs = RECIPES[name].roles, ""
    for _ in range(3):
        began = time.monotonic()
        token = secrets.token_hex(8)
        with contextlib.ExitStack() as attempt:
            folder = Path(attempt.enter_context(tempfile.TemporaryDirectory(prefix=f"asmtp-{name}-")))
            server = MailServer(
                name=name,
                host=HOST,
                ports=dict(zip(roles, free_ports(len(roles)), strict=True)),
                lmtp_socket=folder / "srv/sock/lmtp" if "lmtp" in roles else None,
                ca_pem=folder / "ca.pem",
                username=USERNAME,
                password=PASSWORD,
                directory=folder,
            )
            write_files(server, token)
            init = attempt.enter_context(process(server))
            while time.monotonic() < began + 20 and init.poll() is None:
                if all(greets(server, role, token) for role in roles):
                    stack.push(attempt.pop_all())
                    return replace(server, startup=time.monotonic() - began)
                time.sleep(0.01)
            logs = server.logs()
    raise RuntimeError(f"{name} does not start:\n{logs}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Install or run the servers of the interop tests.")
    parser.add_argument("command", choices=["install", "run"])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RECIPES)}; none means all")
    arguments = parser.parse_args()
    names = arguments.names or list(RECIPES)
    if unknown := set(names) - set(RECIPES):
        parser.error(f"no such server: {', '.join(unknown)}")
    os.umask(0o022)
    try:
        if arguments.command == "install":
            for name in names:
                began = time.monotonic()
                install(name)
                print(f"{name}: {root_folder(name)} ({time.monotonic() - began:.1f} s)", flush=True)
            return
        with contextlib.ExitStack() as stack:
            for name in names:
                server = stack.enter_context(running(name))
                print(f"{name}: {server.ports} {server.directory} ({server.startup:.2f} s)", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()
    except (Unavailable, RuntimeError) as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
