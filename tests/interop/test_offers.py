"""The offers of each server, and that it takes them: seen from a bare socket, without the client under test."""

from __future__ import annotations

import base64
import ctypes
import hashlib
import hmac
import socket
import ssl
import struct
import uuid
from typing import TYPE_CHECKING, Self

import pytest

from tests.interop.servers import DOMAIN, PROXY_HEADER

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.interop.servers import MailServer

ALICE, BOB, DAVE, NOBODY = (f"{name}@{DOMAIN}" for name in ("alice", "bob", "dave", "nobody"))
TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


class Dialogue:
    """A connection to one of the server's ports."""

    def __init__(self, server: MailServer, role: str, before: bytes = b"", via: socket.socket | None = None) -> None:
        self.server = server
        self.sock = via or socket.create_connection((server.host, server.ports[role]), timeout=20)
        self.hello = "LHLO" if "lmtp" in role else "EHLO"
        if "haproxy" in role:
            self.sock.sendall(before or PROXY_HEADER)
        if "tls" in role:
            self.sock = server.ssl_context().wrap_socket(self.sock, server_hostname="localhost")
        self.file = self.sock.makefile("rb")
        self.greeting = self.reply()

    def __enter__(self) -> Self:
        self.ehlo()
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.sock.close()

    def reply(self) -> str:
        """The last line of a reply; `lines` has them all."""
        self.lines: list[str] = []
        while True:
            line = self.file.readline()
            assert line, f"the server hung up: {self.server.logs()}"
            self.lines.append(line.decode().rstrip("\r\n"))
            if line[3:4] != b"-":
                return self.lines[-1]

    def send(self, line: str) -> str:
        self.sock.sendall(line.encode() + b"\r\n")
        return self.reply()

    def say(self, *lines: str) -> None:
        """Commands that all succeed."""
        for line in lines:
            assert self.send(line)[0] in "23", (line, self.lines)

    def ehlo(self) -> dict[str, str]:
        self.say(f"{self.hello} client.example")
        pairs = [line[4:].partition(" ") for line in self.lines[1:]]
        self.keywords = {name.upper(): value for name, _, value in pairs}
        return self.keywords

    def starttls(self, certificate: bool = False, version: ssl.TLSVersion | None = None) -> Dialogue:
        self.say("STARTTLS")
        context = self.server.ssl_context(certificate=certificate)
        if version:
            context.minimum_version = context.maximum_version = version
        self.sock = context.wrap_socket(self.sock, server_hostname="localhost")
        self.file = self.sock.makefile("rb")
        self.ehlo()
        return self

    def challenge(self, line: str) -> bytes:
        """Return what the server answers to a response."""
        reply = self.send(line)
        assert reply.startswith("334"), reply
        return base64.b64decode(reply[4:])

    def letter(self, marker: str, parameters: str = "") -> None:
        """One message to alice."""
        self.say(f"MAIL FROM:<{BOB}> {parameters}".rstrip(), f"RCPT TO:<{ALICE}>", "DATA")
        self.say(f"Subject: {marker}\r\n\r\nhello\r\n.")


@pytest.fixture
def server(request: pytest.FixtureRequest) -> MailServer:
    """The server that the test is parametrised with."""
    found: MailServer = request.getfixturevalue(request.param)
    return found


# ---- keywords -------------------------------------------------------------------------------

KEYWORDS = {
    ("postfix", "plain"): "PIPELINING SIZE ETRN STARTTLS ENHANCEDSTATUSCODES 8BITMIME DSN SMTPUTF8 CHUNKING",
    ("postfix", "xclient"): "XCLIENT XFORWARD AUTH",
    ("exim", "plain"): "PIPELINING SIZE ETRN STARTTLS 8BITMIME DSN SMTPUTF8 CHUNKING PRDR PIPECONNECT",
    ("exim498", "plain"): "PIPELINING SIZE 8BITMIME DSN SMTPUTF8 CHUNKING PRDR PIPECONNECT LIMITS",
    ("sendmail", "plain"): "PIPELINING SIZE ETRN STARTTLS ENHANCEDSTATUSCODES 8BITMIME DSN DELIVERBY EXPN VERB",
    ("nodemailer", "plain"): "PIPELINING 8BITMIME SMTPUTF8 ENHANCEDSTATUSCODES DSN AUTH STARTTLS SIZE XCLIENT",
    ("nodemailer", "tls"): "PIPELINING 8BITMIME SMTPUTF8 ENHANCEDSTATUSCODES DSN AUTH REQUIRETLS SIZE XCLIENT",
    ("sasl", "submission"): "PIPELINING SIZE STARTTLS ENHANCEDSTATUSCODES 8BITMIME CHUNKING BURL AUTH",
    ("dovecot24", "submission"): "PIPELINING SIZE STARTTLS ENHANCEDSTATUSCODES 8BITMIME SMTPUTF8 CHUNKING BURL AUTH",
    ("cyrus", "lmtp"): "PIPELINING SIZE ENHANCEDSTATUSCODES 8BITMIME IGNOREQUOTA",
    ("dovecot", "lmtp"): "PIPELINING STARTTLS ENHANCEDSTATUSCODES 8BITMIME CHUNKING",
}


@pytest.mark.parametrize(("server", "role"), list(KEYWORDS), indirect=["server"])
def test_keywords(server: MailServer, role: str) -> None:
    with Dialogue(server, role) as dialogue:
        assert set(dialogue.keywords) >= set(KEYWORDS[server.name, role].split())


# ---- SASL -----------------------------------------------------------------------------------


def plain(dialogue: Dialogue, _: str) -> str:
    return dialogue.send("AUTH PLAIN " + b64(f"\0{dialogue.server.username}\0{dialogue.server.password}".encode()))


def login(dialogue: Dialogue, _: str) -> str:
    dialogue.challenge("AUTH LOGIN")
    dialogue.challenge(b64(dialogue.server.username.encode()))
    return dialogue.send(b64(dialogue.server.password.encode()))


def cram(dialogue: Dialogue, _: str) -> str:
    challenge = dialogue.challenge("AUTH CRAM-MD5")
    digest = hmac.new(dialogue.server.password.encode(), challenge, "md5").hexdigest()
    return dialogue.send(b64(f"{dialogue.server.username} {digest}".encode()))


def scram(dialogue: Dialogue, mechanism: str, binding: bytes | None = None) -> str:
    """The whole exchange, the server's proof included."""
    hash_name = mechanism.removesuffix("-PLUS").removeprefix("SCRAM-").replace("-", "").lower()
    header, secret = "n,,", dialogue.server.password.encode()
    if mechanism.endswith("-PLUS"):
        header = "p=tls-unique,,"
        assert isinstance(dialogue.sock, ssl.SSLSocket)
        binding = binding or dialogue.sock.get_channel_binding("tls-unique")
        assert binding
    first = f"n={dialogue.server.username},r={uuid.uuid4().hex}"
    challenge = dialogue.challenge(f"AUTH {mechanism} {b64((header + first).encode())}").decode()
    nonce, salt, count = (part[2:] for part in challenge.split(","))
    key = hashlib.pbkdf2_hmac(hash_name, secret, base64.b64decode(salt), int(count))
    client, server = hmac.digest(key, b"Client Key", hash_name), hmac.digest(key, b"Server Key", hash_name)
    last = f"c={b64(header.encode() + (binding or b''))},r={nonce}"
    signed = f"{first},{challenge},{last}".encode()
    signature = hmac.digest(hashlib.new(hash_name, client).digest(), signed, hash_name)
    proof = bytes(a ^ b for a, b in zip(client, signature, strict=True))
    reply = dialogue.send(b64(f"{last},p={b64(proof)}".encode()))
    if not reply.startswith("334"):
        return reply
    assert base64.b64decode(reply[4:]).decode() == "v=" + b64(hmac.digest(server, signed, hash_name))
    return dialogue.send("")


def oauth(dialogue: Dialogue, mechanism: str, token: str | None = None) -> str:
    token = token or dialogue.server.oauth_token()
    start = "n,a=" if mechanism == "OAUTHBEARER" else "user="
    comma = "," if mechanism == "OAUTHBEARER" else ""
    response = f"{start}{dialogue.server.username}{comma}\x01auth=Bearer {token}\x01\x01"
    return dialogue.send(f"AUTH {mechanism} {b64(response.encode())}")


def external(dialogue: Dialogue, _: str) -> str:
    """Exim wants to be told which of the certificate's addresses; Dovecot takes its common name."""
    name = f"{dialogue.server.username}@{DOMAIN}".encode() if dialogue.server.name == "exim" else b""
    return dialogue.send(f"AUTH EXTERNAL {b64(name) or '='}")


class Buffer(ctypes.Structure):
    """gss_buffer_desc"""

    _fields_ = [("length", ctypes.c_size_t), ("value", ctypes.c_void_p)]

    @classmethod
    def of(cls, data: bytes) -> Buffer:
        return cls(len(data), ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p))

    @property
    def data(self) -> bytes:
        return ctypes.string_at(self.value, self.length) if self.value else b""


def gssapi(dialogue: Dialogue, _: str) -> str:
    """Kerberos by the machine's own library, which gets its ticket with the keytab."""
    gss = ctypes.CDLL("libgssapi_krb5.so.2")
    hostbased = ctypes.c_void_p.in_dll(gss, "GSS_C_NT_HOSTBASED_SERVICE")
    minor, name, context = ctypes.c_uint32(), ctypes.c_void_p(), ctypes.c_void_p()
    text = Buffer.of(b"smtp@localhost")
    assert gss.gss_import_name(ctypes.byref(minor), ctypes.byref(text), hostbased, ctypes.byref(name)) == 0

    def step(token: bytes) -> tuple[int, bytes]:
        given, made, ignored = Buffer.of(token), Buffer(), ctypes.c_uint32()
        major = gss.gss_init_sec_context(
            *(ctypes.byref(minor), None, ctypes.byref(context), name, None, 2 | 16 | 32, 0, None),
            *(ctypes.byref(given), None, ctypes.byref(made), ctypes.byref(ignored), None),
        )
        return major, made.data

    major, token = step(b"")
    challenge = dialogue.challenge(f"AUTH GSSAPI {b64(token)}")
    while major == 1:  # GSS_S_CONTINUE_NEEDED
        major, token = step(challenge)
        challenge = dialogue.challenge(b64(token))
    assert major == 0, (major, minor)
    given, made = Buffer.of(challenge), Buffer()
    assert gss.gss_unwrap(ctypes.byref(minor), context, ctypes.byref(given), ctypes.byref(made), None, None) == 0
    assert made.data[0] & 1  # no security layer is one of the choices
    chosen = Buffer.of(b"\x01\0\0\0" + dialogue.server.username.encode())
    assert gss.gss_wrap(ctypes.byref(minor), context, 0, 0, ctypes.byref(chosen), None, ctypes.byref(made)) == 0
    return dialogue.send(b64(made.data))


MECHANISMS: dict[str, Callable[[Dialogue, str], str]] = {
    "PLAIN": plain,
    "LOGIN": login,
    "CRAM-MD5": cram,
    "SCRAM-SHA-1": scram,
    "SCRAM-SHA-256": scram,
    "SCRAM-SHA-512": scram,
    "SCRAM-SHA-1-PLUS": scram,
    "SCRAM-SHA-256-PLUS": scram,
    "SCRAM-SHA-512-PLUS": scram,
    "OAUTHBEARER": oauth,
    "XOAUTH2": oauth,
    "EXTERNAL": external,
    "GSSAPI": gssapi,
}
BASIC = "PLAIN LOGIN CRAM-MD5"
OFFERED = {
    ("exim", "auth"): f"{BASIC} EXTERNAL",
    ("sasl", "cyrus"): f"{BASIC} SCRAM-SHA-1 SCRAM-SHA-256 SCRAM-SHA-512 GSSAPI",
    ("sasl", "dovecot"): f"{BASIC} SCRAM-SHA-1 SCRAM-SHA-256 OAUTHBEARER XOAUTH2 GSSAPI",
    ("sasl", "submission"): f"{BASIC} SCRAM-SHA-1 SCRAM-SHA-256 OAUTHBEARER XOAUTH2 EXTERNAL GSSAPI",
    ("dovecot24", "submission"): "PLAIN SCRAM-SHA-1 SCRAM-SHA-256 SCRAM-SHA-1-PLUS SCRAM-SHA-256-PLUS",
    ("cyrus", "lmtp_auth"): f"{BASIC} SCRAM-SHA-1 SCRAM-SHA-256 SCRAM-SHA-512 "
    "SCRAM-SHA-1-PLUS SCRAM-SHA-256-PLUS SCRAM-SHA-512-PLUS",
}
LOGINS = [(server, role, name) for (server, role), names in OFFERED.items() for name in names.split()]


@pytest.mark.parametrize(("server", "role", "mechanism"), LOGINS, indirect=["server"])
def test_mechanism(server: MailServer, role: str, mechanism: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.krb5.items():
        monkeypatch.setenv(name, value)
    marker = uuid.uuid4().hex
    with Dialogue(server, role) as dialogue:
        version = TLS12 if mechanism.endswith("-PLUS") else None  # the standard library knows tls-unique alone
        dialogue.starttls(certificate=mechanism == "EXTERNAL", version=version)
        assert mechanism in dialogue.keywords["AUTH"].split()
        assert MECHANISMS[mechanism](dialogue, mechanism).startswith("235")
        dialogue.ehlo()
        dialogue.letter(marker)
    if server.name != "cyrus":
        assert server.wait_for("alice", containing=marker.encode())


@pytest.mark.parametrize(("server", "role"), [("sasl", "cyrus"), ("exim", "auth")], indirect=["server"])
def test_ntlm(server: MailServer, role: str) -> None:
    """As far as the challenge: the response needs MD4."""
    negotiate = b"NTLMSSP\0" + struct.pack("<II", 1, 0x202) + bytes(16)
    with Dialogue(server, role) as dialogue:
        dialogue.starttls()
        assert "NTLM" in dialogue.keywords["AUTH"].split()
        assert dialogue.send("AUTH NTLM").startswith("334")  # Exim adds some text
        assert dialogue.challenge(b64(negotiate)).startswith(b"NTLMSSP\0\2\0\0\0")
        assert dialogue.send("*").startswith("5")
        assert plain(dialogue, "PLAIN").startswith("235")


@pytest.mark.parametrize(("server", "role"), [("sasl", "dovecot"), ("sasl", "submission")], indirect=["server"])
@pytest.mark.parametrize("mechanism", ["OAUTHBEARER", "XOAUTH2"])
def test_expired_token(server: MailServer, role: str, mechanism: str) -> None:
    """The reason comes as a challenge, which is to be answered before the refusal."""
    with Dialogue(server, role) as dialogue:
        dialogue.starttls()
        reason = oauth(dialogue, mechanism, server.oauth_token(lifetime=-60))
        assert reason.startswith("334")
        assert base64.b64decode(reason[4:]).startswith(b'{"status":')
        assert dialogue.send(b64(b"\x01")).startswith("535")
        assert oauth(dialogue, mechanism).startswith("235")


def test_channel_binding_counts(dovecot24: MailServer) -> None:
    with Dialogue(dovecot24, "submission") as dialogue:
        dialogue.starttls(version=TLS12)
        assert scram(dialogue, "SCRAM-SHA-256-PLUS", b"another one!").startswith("535")
        first = b64(b"y,,n=tester,r=abcdefghijkl")  # "I would have, but you do not offer it"
        assert dialogue.send(f"AUTH SCRAM-SHA-256 {first}").startswith("535")
        assert scram(dialogue, "SCRAM-SHA-256-PLUS").startswith("235")


def test_channel_binding_of_cyrus(cyrus: MailServer) -> None:
    """It takes tls-unique for TLS 1.3 too, where no such thing is defined; its refusals are 501."""
    with Dialogue(cyrus, "lmtp_auth") as dialogue:
        assert dialogue.send(f"MAIL FROM:<{BOB}>").startswith("430")
        dialogue.starttls(version=TLS13)
        assert scram(dialogue, "SCRAM-SHA-256-PLUS", b"another one!").startswith("501")
        assert scram(dialogue, "SCRAM-SHA-256-PLUS").startswith("235")


@pytest.mark.parametrize("server", ["exim", "sasl"], indirect=True)
def test_external_needs_the_certificate(server: MailServer) -> None:
    with Dialogue(server, "auth" if server.name == "exim" else "submission") as dialogue:
        dialogue.starttls()
        assert external(dialogue, "EXTERNAL")[:3] in ("504", "535")


# ---- extensions -----------------------------------------------------------------------------


@pytest.mark.parametrize("server", ["postfix", "exim", "sendmail"], indirect=True)
def test_dsn(server: MailServer) -> None:
    """The report of a success comes to the sender, with what identifies the message for him."""
    envid = uuid.uuid4().hex
    with Dialogue(server, "plain") as dialogue:
        dialogue.say(f"MAIL FROM:<{BOB}> RET=HDRS ENVID={envid}")
        dialogue.say(f"RCPT TO:<{ALICE}> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;some+2Bone@example.org", "DATA")
        dialogue.say("Subject: report\r\n\r\nhello\r\n.")
    (report,) = server.wait_for("bob", containing=f": {envid}".encode())
    assert b"multipart/report" in report
    assert b"Action: delivered" in report
    assert b"hello" not in report


@pytest.mark.parametrize("refused", [[], [DAVE], [ALICE, DAVE]], ids=["none", "some", "all"])
def test_prdr(exim: MailServer, refused: list[str]) -> None:
    marker = uuid.uuid4().hex
    with Dialogue(exim, "plain") as dialogue:
        dialogue.say(f"MAIL FROM:<{BOB}> PRDR", f"RCPT TO:<{ALICE}>")
        assert dialogue.send(f"RCPT TO:<{NOBODY}>").startswith("550")
        dialogue.say(f"RCPT TO:<{DAVE}>", "DATA")
        assert dialogue.send(f"Subject: {marker}\r\nX-Refuse: {':'.join(refused)}\r\n\r\nhello\r\n.").startswith("353")
        codes = [dialogue.reply()[:3] for _ in range(3)]  # one for each that was accepted, and one for all
        wanted = ["550" if to in refused else "250" for to in (ALICE, DAVE)]
        assert codes == [*wanted, max(wanted) if min(wanted) == "550" else "250"]
        dialogue.say("NOOP")
    for mailbox, to in ("alice", ALICE), ("dave", DAVE):
        exim.wait_for(mailbox, count=to not in refused, containing=marker.encode())


def test_prdr_of_one(exim: MailServer) -> None:
    """With one accepted recipient Exim goes without, although it confirmed the request."""
    with Dialogue(exim, "plain") as dialogue:
        assert dialogue.send(f"MAIL FROM:<{BOB}> PRDR") == "250 OK, PRDR Requested"
        dialogue.say(f"RCPT TO:<{ALICE}>", "DATA", "Subject: one\r\n\r\nhello\r\n.")
        assert dialogue.lines[-1].startswith("250 OK id=")
        dialogue.say("NOOP")
        assert dialogue.lines == ["250 OK"]


def test_xclient(postfix: MailServer) -> None:
    marker = uuid.uuid4().hex
    with Dialogue(postfix, "xclient") as dialogue:
        assert "ADDR" in dialogue.keywords["XCLIENT"].split()
        reply = dialogue.send("XCLIENT ADDR=192.0.2.7 NAME=client.example.org")
        assert reply == dialogue.greeting  # the session begins anew
        dialogue.ehlo()
        dialogue.letter(marker)
        dialogue.say(f"MAIL FROM:<{BOB}>")
        assert dialogue.send("XCLIENT ADDR=192.0.2.8").startswith("503")
    (stored,) = postfix.wait_for("alice", containing=marker.encode())
    assert b"(client.example.org [192.0.2.7])" in stored


ADDRESSES = socket.inet_aton("192.0.2.7") + socket.inet_aton("192.0.2.8") + struct.pack("!HH", 4321, 25)
HEADERS = {
    "v1": b"PROXY TCP4 192.0.2.7 192.0.2.8 4321 25\r\n",
    "v2": b"\r\n\r\n\0\r\nQUIT\n\x21\x11" + struct.pack("!H", len(ADDRESSES)) + ADDRESSES,
    "v2 local": b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
}


@pytest.mark.parametrize("header", list(HEADERS))
@pytest.mark.parametrize("server", ["postfix", "exim", "sasl"], indirect=True)
def test_proxy_protocol(server: MailServer, header: str) -> None:
    marker = uuid.uuid4().hex
    with Dialogue(server, "haproxy", HEADERS[header]) as dialogue:
        if server.name == "sasl":
            assert plain(dialogue.starttls(), "PLAIN").startswith("235")
            return
        dialogue.letter(marker)
    (stored,) = server.wait_for("alice", containing=marker.encode())
    assert (b"[127.0.0.1]" if header == "v2 local" else b"[192.0.2.7]") in stored


@pytest.mark.parametrize("server", ["postfix", "exim", "sendmail"], indirect=True)
def test_etrn(server: MailServer) -> None:
    with Dialogue(server, "plain") as dialogue:
        assert dialogue.send(f"ETRN {DOMAIN}").startswith("250")


def test_deliverby(sendmail: MailServer) -> None:
    marker = uuid.uuid4().hex
    with Dialogue(sendmail, "plain") as dialogue:
        assert dialogue.keywords["DELIVERBY"] == "60"  # the least that it takes for a return
        assert dialogue.send(f"MAIL FROM:<{BOB}> BY=59;R").startswith("555")
        assert dialogue.send(f"MAIL FROM:<{BOB}> BY=-60;R").startswith("501")
        dialogue.say(f"MAIL FROM:<{BOB}> BY=-60;N", "RSET", f"MAIL FROM:<{BOB}> BY=120;RT", "RSET")
        dialogue.starttls()
        dialogue.letter(marker, "BY=120;R")
    assert sendmail.wait_for("alice", containing=marker.encode())


def test_limits(exim498: MailServer) -> None:
    """Every MAIL counts, one that was given up too."""
    with Dialogue(exim498, "plain") as dialogue:
        assert dialogue.keywords["LIMITS"] == "MAILMAX=5 RCPTMAX=10"
        dialogue.say(f"MAIL FROM:<{BOB}>", *[f"RCPT TO:<{ALICE}>"] * 10)
        assert dialogue.send(f"RCPT TO:<{ALICE}>").startswith("452")
        dialogue.say(*["RSET", f"MAIL FROM:<{BOB}>"] * 4, "RSET")
        assert dialogue.send(f"MAIL FROM:<{BOB}>").startswith("421")


@pytest.mark.parametrize(
    ("server", "role"),
    [("postfix", "plain"), ("exim", "plain"), ("dovecot", "lmtp"), ("sasl", "submission"), ("dovecot24", "submission")],
    indirect=["server"],
)
def test_chunking(server: MailServer, role: str) -> None:
    marker = uuid.uuid4().hex
    with Dialogue(server, role) as dialogue:
        if role == "submission":
            plain(dialogue.starttls(), "PLAIN")
            dialogue.ehlo()
        dialogue.say(f"MAIL FROM:<{BOB}>", f"RCPT TO:<{ALICE}>")
        start = f"Subject: {marker}\r\n\r\n"
        dialogue.say(f"BDAT {len(start)}\r\n{start[:-2]}", "BDAT 7 LAST\r\nhello")
    (stored,) = server.wait_for("alice", containing=marker.encode())
    assert stored.endswith(b"\n\nhello\n")


@pytest.mark.parametrize("where", ["port", "socket"])
@pytest.mark.parametrize("server", ["cyrus", "dovecot"], indirect=True)
def test_lmtp(server: MailServer, where: str) -> None:
    """A reply for each recipient that was accepted."""
    via = None
    if where == "socket":
        via = socket.socket(socket.AF_UNIX)
        via.connect(str(server.lmtp_socket))
    with Dialogue(server, "lmtp", via=via) as dialogue:
        dialogue.say(f"MAIL FROM:<{BOB}>", f"RCPT TO:<{ALICE}>")
        assert dialogue.send(f"RCPT TO:<{NOBODY}>").startswith("550")
        dialogue.say(f"RCPT TO:<{DAVE}>", "DATA", "Subject: two\r\n\r\nhello\r\n.")
        assert dialogue.reply().startswith("250")
        dialogue.say("NOOP")


# ---- proxies --------------------------------------------------------------------------------


def socks4(sock: socket.socket, port: int) -> None:
    sock.sendall(b"\x04\x01" + struct.pack("!H", port) + bytes([127, 0, 0, 1]) + b"user\0")
    assert sock.recv(8, socket.MSG_WAITALL)[:2] == b"\x00\x5a"


def socks5(sock: socket.socket, port: int, login: tuple[str, str] | None = None) -> None:
    method = b"\x02" if login else b"\x00"
    sock.sendall(b"\x05\x01" + method)
    assert sock.recv(2, socket.MSG_WAITALL) == b"\x05" + method
    if login:
        user, password = (each.encode() for each in login)
        sock.sendall(bytes([1, len(user)]) + user + bytes([len(password)]) + password)
        assert sock.recv(2, socket.MSG_WAITALL) == b"\x01\x00"
    sock.sendall(b"\x05\x01\x00\x03\x09localhost" + struct.pack("!H", port))
    assert sock.recv(10, socket.MSG_WAITALL)[:4] == b"\x05\x00\x00\x01"  # the greeting may be right behind


def connect(sock: socket.socket, port: int, login: tuple[str, str] | None = None) -> None:
    field = f"Proxy-Authorization: Basic {b64(':'.join(login).encode())}\r\n" if login else ""
    sock.sendall(f"CONNECT localhost:{port} HTTP/1.1\r\nHost: localhost:{port}\r\n{field}\r\n".encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += sock.recv(1)
    assert head.split()[:2] == [b"HTTP/1.0", b"200"], head


@pytest.mark.parametrize("way", ["socks4", "socks5", "socks5 auth", "connect", "connect auth"])
def test_proxy(proxies: MailServer, postfix: MailServer, way: str) -> None:
    role = way.replace("4", "").replace("5", "").replace(" ", "_")
    login = (proxies.username, proxies.password) if "auth" in way else None
    sock = socket.create_connection((proxies.host, proxies.ports[role]), timeout=20)
    if way == "socks4":
        socks4(sock, postfix.ports["plain"])
    else:
        (socks5 if "socks" in way else connect)(sock, postfix.ports["plain"], login)
    with Dialogue(postfix, "plain", via=sock) as dialogue:
        dialogue.starttls()
        dialogue.letter(uuid.uuid4().hex)


def test_proxy_wants_a_password(proxies: MailServer, postfix: MailServer) -> None:
    for role, first, refusal in (
        ("socks_auth", b"\x05\x01\x00", b"\x05\xff"),
        ("connect_auth", b"CONNECT localhost:25 HTTP/1.1\r\nHost: localhost:25\r\n\r\n", b"HTTP/1.0 407"),
    ):
        with socket.create_connection((proxies.host, proxies.ports[role]), timeout=20) as sock:
            sock.sendall(first)
            assert sock.recv(len(refusal), socket.MSG_WAITALL) == refusal
