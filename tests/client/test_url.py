"""URLs of relays: read, and written without the password."""

from __future__ import annotations

import ssl
import traceback
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote, unquote

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import example, given, strategies as st

from asmtp.client.relay import Relay
from asmtp.transport.timeouts import Timeouts
from tests.conftest import Certificates

# ---- URLs that are good -----------------------------------------------------------------------

GOOD = {
    "smtp://mx.example": Relay("mx.example"),
    "SMTP://mx.example": Relay("mx.example"),
    "smtp://mx.example/": Relay("mx.example"),
    "smtp://mx.example.": Relay("mx.example."),
    "smtp://my_relay": Relay("my_relay"),
    "smtp://mx.example:587": Relay("mx.example", 587),
    "smtp://mx.example:65535": Relay("mx.example", 65535),
    "smtp+starttls://mx.example": Relay("mx.example", tls="required"),
    "smtps://mx.example": Relay("mx.example", tls="implicit"),
    "smtps://mx.example:4650": Relay("mx.example", 4650, tls="implicit"),
    "lmtp://mx.example": Relay("mx.example", lmtp=True),
    "lmtp+unix:///run/dovecot/lmtp": Relay("/run/dovecot/lmtp", lmtp=True, tls="none"),
    "lmtp+unix:///run/a%20b%40%3F": Relay("/run/a b@?", lmtp=True, tls="none"),
    "lmtp+unix://me:secret@/run/lmtp": Relay("/run/lmtp", lmtp=True, tls="none", username="me", password="secret"),
    "lmtp+unix:///run/lmtp?window=5": Relay("/run/lmtp", lmtp=True, tls="none", window=5),
    "smtp://127.0.0.1:2525": Relay("127.0.0.1", 2525),
    "smtp://[::1]": Relay("::1"),
    "smtp://[2001:db8::1]:587": Relay("2001:db8::1", 587),
    "smtp://[fe80::1%25eth0]:587": Relay("fe80::1%eth0", 587),
    "smtp://bücher.example": Relay("xn--bcher-kva.example"),
    "smtp://b%C3%BCcher.example:25": Relay("xn--bcher-kva.example", 25),
    "smtp://Bücher。example": Relay("xn--bcher-kva.example"),
    "smtps://me:secret@mx.example": Relay("mx.example", tls="implicit", username="me", password="secret"),
    "smtps://me@mx.example": Relay("mx.example", tls="implicit", username="me"),
    "smtp://me%40corp.example:p%3Aw%2F%25%40@mx.example": Relay(
        "mx.example", username="me@corp.example", password="p:w/%@"
    ),
    "smtp://me:p:w+%2B%20@mx.example": Relay("mx.example", username="me", password="p:w++ "),
    "smtp://mé:gr%C3%BC%C3%9Fe@mx.example": Relay("mx.example", username="mé", password="grüße"),
    "smtp://me:secret@mx.example?tls=none": Relay("mx.example", tls="none", username="me", password="secret"),
    "smtp://mx.example?tls=opportunistic": Relay("mx.example", tls="opportunistic"),
    "smtp://mx.example?tls=required": Relay("mx.example", tls="required"),
    "smtp://mx.example?timeout=30": Relay("mx.example", timeouts=Timeouts.of(30)),
    "smtp://mx.example?timeout=none": Relay("mx.example", timeouts=Timeouts.of(None)),
    "smtp://mx.example?timeout.final=none&timeout.connect=0.5": Relay(
        "mx.example", timeouts=Timeouts(final=None, connect=0.5)
    ),
    "smtp://mx.example?timeout.connect=1e1&timeout=30": Relay(
        "mx.example", timeouts=replace(Timeouts.of(30), connect=10)
    ),
    "smtp://10.0.0.1?server_hostname=mx.example": Relay("10.0.0.1", server_hostname="mx.example"),
    "smtp://10.0.0.1?server_hostname=b%C3%BCcher.example": Relay("10.0.0.1", server_hostname="xn--bcher-kva.example"),
    "smtp://mx.example?local_hostname=[10.0.0.1]": Relay("mx.example", local_hostname="[10.0.0.1]"),
    "smtp://mx.example?source_address=10.0.0.1": Relay("mx.example", source_address=("10.0.0.1", 0)),
    "smtp://mx.example?source_address=10.0.0.1:26": Relay("mx.example", source_address=("10.0.0.1", 26)),
    "smtp://mx.example?source_address=::1": Relay("mx.example", source_address=("::1", 0)),
    "smtp://mx.example?source_address=[::1]": Relay("mx.example", source_address=("::1", 0)),
    "smtp://mx.example?source_address=%5B::1%5D:26": Relay("mx.example", source_address=("::1", 26)),
    "smtp://mx.example?pipelining=no&chunking=OFF": Relay("mx.example", pipelining=False, chunking=False),
    "smtp://mx.example?pipelining=false&chunking=0": Relay("mx.example", pipelining=False, chunking=False),
    "smtp://mx.example?pipelining=True&chunking=on": Relay("mx.example"),
    "smtp://mx.example?pipelining=1&chunking=yes": Relay("mx.example"),
    "smtp://mx.example/?window=5&window_octets=65536": Relay("mx.example", window=5, window_octets=65536),
}


@pytest.mark.parametrize("url", GOOD)
def test_a_good_url(url: str) -> None:
    assert Relay.from_url(url) == GOOD[url]


@pytest.mark.parametrize("url", GOOD)
def test_what_url_shows_is_a_url_that_says_the_same(url: str) -> None:
    relay = GOOD[url]
    shown = relay.url if relay.password is None else relay.url.replace("***", quote(relay.password, safe=""), 1)
    assert Relay.from_url(shown) == relay


# ---- URLs that are bad ------------------------------------------------------------------------

KNOWN = r"one of smtp://, smtp\+starttls://, smtps://, lmtp://, lmtp\+unix://"
ENCODED = "must be percent-encoded in user name and password"
HOST_AND_PORT = "URL: host and port must be"

BAD = {
    "": KNOWN,
    "mx.example": KNOWN,
    "//mx.example": KNOWN,
    "http://mx.example": KNOWN,
    "smtp_s://mx.example": KNOWN,
    "smtp+ssl://mx.example": rf"{KNOWN}; this one is smtps://$",
    "smtp+tls://mx.example": rf"{KNOWN}; this one is smtp\+starttls:// \(STARTTLS\), or smtps://",
    "smtp:mx.example": "'//' must follow the scheme: smtp://$",
    "lmtp+unix:/run/lmtp": r"'//' must follow the scheme: lmtp\+unix://$",
    # characters
    "smtp:// mx.example": "URL: whitespace",
    "localhost:25": r"URL: the scheme is missing: smtp://localhost:25 is meant\?",
    "mx.example:465": r"URL: the scheme is missing: smtps://mx.example:465 is meant\?",
    "[::1]:25": r"URL: the scheme is missing: smtp://\[::1\]:25 is meant\?",
    "secret": "URL: the scheme must be one of",
    "user:secret@mx.example:25": "URL: the scheme must be one of",
    "smtp://mx.example?local_hostname=a\u2028b": "URL: whitespace",
    "smtp://me:secret\udcff@mx.example": "URL: .* surrogates",
    "smtp://m\tx.example": r"URL: .*prohibited control characters: \(not shown\)",
    "smtp://mx.example\x7f": r"URL: .*prohibited control characters: \(not shown\)",
    "smtp://m%0Ax.example": "URL: host: .*prohibited newline",
    "smtp://m%0ae:secret@mx.example": "URL: user name: .*prohibited newline",
    "smtp://me:sec%00ret@mx.example": "URL: password: .*prohibited control",
    "smtp://me:sec%C2%85ret@mx.example": "URL: password: .*prohibited control",
    "lmtp+unix:///run/%00": "URL: path: .*prohibited control",
    "smtp://mx.example?tls%0d=none": "URL: option 1: .*prohibited newline",
    "smtp://mx.example?local_hostname=a%0d": "URL: option local_hostname: .*prohibited newline",
    # percent-encoding
    "smtp://m%x.example": "URL: host: '%' must be followed",
    "smtp://[fe80::1%eth0]": r"URL: host: '%' must be followed by two hexadecimal digits \(%25 is",
    "smtp://m%:secret@mx.example": "URL: user name: '%' must be followed",
    "smtp://me:100%@mx.example": "URL: password: '%' must be followed",
    "smtp://me:%FF@mx.example": "URL: password: the percent-encoded octets are not UTF-8",
    "lmtp+unix:///run/%2": "URL: path: '%' must be followed",
    "smtp://mx.example?tls=%": "URL: option tls: '%' must be followed",
    "smtp://mx.example?tls=%80": "URL: option tls: .* not UTF-8",
    # user name and password
    "smtp://me@corp.example:secret@mx.example": ENCODED,
    "smtp://me:sec@ret@mx.example": ENCODED,
    "smtp://me:sec/ret@mx.example": ENCODED,
    "smtp://me:25/ret@mx.example": ENCODED,
    "smtp://me:25?ret@mx.example": ENCODED,
    "smtp://me:25#ret@mx.example": ENCODED,
    "smtp://me:sec[ret@mx.example": "special characters in user name and password must be percent-encoded",
    "smtp://me:sec[::1]ret@mx.example": "must be percent-encoded",
    "smtp://me:sec℀ret@mx.example": "special characters in user name and password must be percent-encoded",
    "smtp://:secret@mx.example": "URL: the user name is empty",
    "smtp://@mx.example": "URL: the user name is empty",
    "smtp://me:@mx.example": "URL: the password is empty",
    # host, port, path, fragment
    "smtp://": "URL: the host is missing",
    "smtp:///mx.example": "URL: the host is missing",
    "smtp://?timeout=5": "URL: the host is missing",
    "smtp://me:secret@": "URL: the host is missing",
    "smtp://:25": HOST_AND_PORT,
    "smtp://mx.example:": HOST_AND_PORT,
    "smtp://mx.example:smtp": HOST_AND_PORT,
    "smtp://mx.example:0": HOST_AND_PORT,
    "smtp://mx.example:65536": HOST_AND_PORT,
    "smtp://mx.example:-25": HOST_AND_PORT,
    "smtp://mx.example:٢٥": HOST_AND_PORT,
    "smtp://me:secret": HOST_AND_PORT,
    "smtp://::1": HOST_AND_PORT,
    "smtp://[::1]x:25": "bracket|URL: host and port must be",
    "smtp://[::1": "URL: brackets belong around",
    "smtp://[mx.example]": "URL: brackets",
    "smtp://[127.0.0.1]": "URL: brackets",
    "smtp://[::g]": "URL: brackets belong around|URL: host must be",
    "smtp://%3A%3A1": "URL: brackets must be",
    "smtp://mx..example": "URL: host must be a host name or an IP address$",
    "smtp://mx!example": "URL: host must be",
    "smtp://mx%20example": "URL: host must be",
    "smtp://me%3Asecret%2F%40mx.example": "URL: brackets must be",
    "smtp://secret%2F%40mx.example": "URL: host must be",
    "smtp://%2Frun%2Fsmtp": "URL: host must be",
    f"smtp://{'a' * 64}.example": "URL: host must be",
    f"smtp://{'a.' * 127}": "URL: host must be",
    "smtp://bü--.example": "URL: host must be",
    "smtp://mx.example/run": "URL: there must be no path",
    "smtp://mx.example//": "URL: there must be no path",
    "smtp://mx.example#": "URL: there must be no fragment",
    "smtp://mx.example?tls=none#x": "URL: there must be no fragment",
    "lmtp+unix://mx.example/run/lmtp": r"URL: lmtp\+unix:// has no host",
    "lmtp+unix://run/lmtp": r"URL: lmtp\+unix:// has no host",
    "lmtp+unix://": "URL: the path of the socket is missing",
    "lmtp+unix:///": "URL: the path of the socket is missing",
    # options
    "smtp://mx.example?tsl=none": r"URL: option 1 is unknown \(is tls meant\?\); there are timeout, timeout.connect,",
    "smtp://mx.example?tls=none&TIMEOUT=5": "URL: option 2 is unknown; there are",
    "smtp://mx.example?user=me": "URL: option 1 is unknown; there are",
    "smtp://mx.example?timeout.total=5": r"URL: option 1 is unknown \(is timeout.\w+ meant",
    "smtp://mx.example?tls=none;window=5": "URL: option tls must be",
    "smtp://mx.example?tls=none&": "URL: option 2 is unknown",
    "smtp://mx.example?tls": "URL: option tls is empty",
    "smtp://mx.example?tls=": "URL: option tls is empty",
    "smtp://mx.example?tls=none&tls=none": "URL: option tls is repeated",
    "smtp://mx.example?tls=implicit": "URL: option tls must be none, opportunistic or required .*smtps://",
    "smtps://mx.example?tls=implicit": "URL: option tls is for smtp:// only, not for smtps://",
    "smtp+starttls://mx.example?tls=none": r"URL: option tls is for smtp:// only, not for smtp\+starttls://",
    "lmtp://mx.example?tls=none": "URL: option tls is for smtp:// only, not for lmtp://",
    "smtp://mx.example?timeout=0": "URL: option timeout must be a number of seconds above 0, or none",
    "smtp://mx.example?timeout=-1": "URL: option timeout must be a number of seconds",
    "smtp://mx.example?timeout=1e999": "URL: option timeout must be a number of seconds",
    "smtp://mx.example?timeout=inf": "URL: option timeout must be a number of seconds",
    "smtp://mx.example?timeout=1_0": "URL: option timeout must be a number of seconds",
    "smtp://mx.example?timeout=30s": "URL: option timeout must be a number of seconds",
    "smtp://mx.example?timeout.tls=x": "URL: option timeout.tls must be a number of seconds",
    "smtp://mx.example?server_hostname=a:b": "URL: option server_hostname must be a host name or an IP address$",
    "smtp://mx.example?local_hostname=a%20b": "local_hostname must be ASCII, without spaces",
    "smtp://mx.example?local_hostname=b%C3%BC": "local_hostname must be ASCII, without spaces",
    "smtp://mx.example?source_address=mx.example": "URL: option source_address must be an IP address",
    "smtp://mx.example?source_address=10.0.0.1:": "URL: option source_address must be an IP address",
    "smtp://mx.example?source_address=10.0.0.1:65536": "URL: option source_address must be an IP address",
    "smtp://mx.example?pipelining=maybe": "URL: option pipelining must be yes or no",
    "smtp://mx.example?chunking=2": "URL: option chunking must be yes or no",
    "smtp://mx.example?window=0": "URL: option window must be a whole number, at least 1",
    "smtp://mx.example?window=1.5": "URL: option window must be a whole number",
    f"smtp://mx.example?window={'9' * 19}": "URL: option window must be a whole number",
    "smtp://mx.example?window_octets=64k": "URL: option window_octets must be a whole number",
    "smtp://mx.example?keyfile=/k.pem": "URL: option keyfile needs certfile",
    "smtp://mx.example?cafile=/no/such/file": "URL: option cafile cannot be used: No such file or directory$",
    "smtp://mx.example?certfile=/no/such/file": "URL: option certfile cannot be used: No such file or directory$",
}


@pytest.mark.parametrize("url", BAD)
def test_a_bad_url(url: str) -> None:
    with pytest.raises(ValueError, match=BAD[url]) as caught:
        Relay.from_url(url)
    assert not mentions(caught.value, "secret")


def test_a_url_that_is_no_str() -> None:
    with pytest.raises(TypeError, match="^URL must be str, not bytes"):
        Relay.from_url(b"smtp://me:secret@mx.example")  # type: ignore[arg-type]  # that is the point


# ---- certificate files ------------------------------------------------------------------------


@pytest.fixture
def files(certificates: Certificates, tmp_path: Path) -> Path:
    """A directory with the CA's certificate, ours, and our key, plain and encrypted."""
    issued = certificates.ca.issue_cert("client.example")
    certificates.ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    for blob in issued.cert_chain_pems:
        blob.write_to_path(tmp_path / "chain.pem", append=True)
    key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
    kind = serialization.BestAvailableEncryption(b"passphrase")
    encrypted = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, kind)
    (tmp_path / "encrypted.pem").write_bytes(encrypted)
    return tmp_path


@pytest.mark.parametrize(
    "query",
    [
        "cafile={0}/ca.pem",
        "certfile={0}/chain.pem&keyfile={0}/key.pem",
        "cafile={0}/ca.pem&certfile={0}/own.pem",
    ],
)
def test_a_context_from_files(files: Path, query: str) -> None:
    (files / "own.pem").write_bytes((files / "key.pem").read_bytes() + (files / "chain.pem").read_bytes())
    context = Relay.from_url(f"smtps://mx.example?{query.format(files)}").ssl_context
    assert context is not None
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_a_cafile_is_trusted_instead_of_the_systems(files: Path) -> None:
    context = Relay.from_url(f"smtps://mx.example?cafile={files}/ca.pem").ssl_context
    assert context is not None
    assert len(context.get_ca_certs()) == 1


def test_no_files_no_context() -> None:
    assert Relay.from_url("smtps://mx.example").ssl_context is None


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("cafile={0}/key.pem", "option cafile cannot be used: "),
        ("certfile={0}/chain.pem", "option certfile cannot be used: "),
        ("certfile={0}/ca.pem&keyfile={0}/key.pem", "option certfile or keyfile cannot be used: "),
        ("certfile={0}/chain.pem&keyfile={0}/encrypted.pem", "option certfile or keyfile cannot be used: "),
    ],
)
def test_files_that_do_not_fit(files: Path, query: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Relay.from_url(f"smtps://mx.example?{query.format(files)}")


# ---- the password -----------------------------------------------------------------------------

MARKS = "jJ7Ж"  # in no other part of the URLs below, and in no error
SPECIALS = "@:/?#[]%&=+ \\;\"'<>\t\n\0℀."


def mentions(error: BaseException, text: str) -> bool:
    """Whether an error, or one that it came from, holds a text anywhere."""
    seen: list[BaseException] = []
    after: list[BaseException | None] = [error]
    while after:
        one = after.pop()
        if one is not None and one not in seen:
            seen.append(one)
            after += [one.__cause__, one.__context__]
    told = [str(one) + repr(one) + repr(one.args) + repr(vars(one)) for one in seen]
    told += traceback.format_exception_only(error)
    return any(text in one for one in told)


@st.composite
def secrets(draw: st.DrawFn) -> str:
    """Raw passwords in which every run of plain characters is marked."""
    runs = st.text(MARKS, min_size=1, max_size=3)
    pieces = draw(st.lists(st.one_of(runs, st.sampled_from(SPECIALS)), max_size=8))
    return "".join([draw(runs), *pieces, draw(runs)])


SHAPES = [
    "smtp://me:{}@mx.example",
    "smtps://me:{}@mx.example:x",
    "smtp://me:{}@mx.example?tls=none",
    "smtp://me:{}@mx.example?timeout=0",
    "smtp://me:{}@mx.example?unknown=5",
    "smtp://me:{}@mx.example/path",
    "smtp://me:{}@mx.example#fragment",
    "smtp://me:{}@mx%.example",
    "smtp://me:{}@[::1]:25",
    "smtp://me:{}@[::1",
    "smtp://me:{}@mx..example",
    "smtp://me:{}@",
    "smtp://:{}@mx.example",
    "smtp://me:25/{}@mx.example",
    "smtp://me:25?{}@mx.example",
    "smtp://me:25#{}@mx.example",
    "smtp://m%0Ae:{}@mx.example",
    "smtp+ssl://me:{}@mx.example",
    "me:{}@mx.example",
    "smtp:me:{}@mx.example",
    "lmtp+unix://me:{}@/run/lmtp",
    "lmtp+unix://me:{}@mx.example/run/lmtp",
    "lmtp+unix://me:{}@",
    "smtp://mx.example?password={}",
    "smtp://mx.example?{}",
    "smtp://mx.example?tls={}",
    "smtp://mx.example?source_address={}",
    "smtp://mx.example?window={}x",
]


def reading(url: str) -> Relay | ValueError:
    try:
        return Relay.from_url(url)
    except ValueError as error:
        return error


@given(st.sampled_from(SHAPES), secrets())
@example("smtp://me:{}@mx.example", "7@j")
@example("smtp://me:{}@mx.example", "7/j")
@example("smtp://me:{}@mx.example", "%7")
@example("smtp://me:{}@mx.example", "7%FF7")
@example("smtp://me:{}@mx.example", "7%00J")
@example("smtp://me:{}@mx.example", "%7J℀")
@example("smtp://me:{}@mx.example", "7℀J")
@example("smtp://me:{}@mx.example", "j[7]j")
@example("lmtp+unix://me:{}@/run/lmtp", "7/j")
def test_a_raw_password_is_never_shown(shape: str, secret: str) -> None:
    read = reading(shape.format(secret))
    if isinstance(read, ValueError):
        assert not any(mentions(read, mark) for mark in MARKS)
        assert read.__cause__ is None
        assert read.__context__ is None
    else:
        assert read.password == unquote(secret)
        assert not any(mark in shown for shown in (repr(read), str(read), read.url, read.name) for mark in MARKS)


@given(st.text(min_size=1), st.text(min_size=1))
def test_an_encoded_user_name_and_password_come_back(username: str, password: str) -> None:
    encoded = quote(username, safe="")
    read = reading(f"smtps://{encoded}:{quote(password, safe='')}@mx.example")
    if any(ord(char) < 32 or 127 <= ord(char) < 160 for char in username + password):
        assert "prohibited" in str(read)
    else:
        assert isinstance(read, Relay)
        assert (read.username, read.password) == (username, password)
        assert str(read) == f"smtps://{encoded}:***@mx.example"
        assert repr(read) == repr(replace(read, password=None))


@given(st.sampled_from(["", "smtp:", "smtp://", "lmtp+unix://", "smtp://mx.example?", "smtp://mx.example"]), st.text())
def test_any_text_is_a_relay_or_a_valueerror(start: str, text: str) -> None:
    read = reading(start + text)
    if isinstance(read, Relay):
        assert Relay.from_url(read.url.replace("***", "secret")) == replace(read, password=read.password and "secret")


@pytest.mark.parametrize("zone", ["e=th0", "b\u00fc"])
def test_a_zone_that_could_not_stand_in_a_url(zone: str) -> None:
    """RFC 6874 §2."""
    with pytest.raises(ValueError, match="^host must be a host name or an IP address"):
        Relay(f"fe80::1%{zone}")
    assert Relay.from_url(Relay("fe80::1%eth0.7").url).host == "fe80::1%eth0.7"


# ---- mechanisms and proxies ---------------------------------------------------------------------


def test_mechanisms() -> None:
    relay = Relay.from_url("smtp://mx.example?mechanisms=SCRAM-SHA-256,plain")
    assert relay.mechanisms == ("SCRAM-SHA-256", "plain")
    assert Relay.from_url(relay.url) == relay
    own = Relay("mx.example", mechanisms=["PLAIN", ("X-OWN", lambda credentials: iter(()))])  # type: ignore[list-item, return-value]
    assert own.url == "smtp://mx.example?mechanisms=PLAIN%2CX-OWN"
    hash(own)
    with pytest.raises(ValueError, match="^URL: option mechanisms must be names") as caught:
        Relay.from_url("smtp://mx.example?mechanisms=s3cret")
    assert "s3cret" not in str(caught.value)


def test_a_proxy_and_the_proxy_protocol() -> None:
    relay = Relay.from_url("smtp://mx.example?proxy=socks5://me:s3cret%2540p%40proxy.example:1080&proxy_protocol=2")
    assert relay.proxy == "socks5://me:s3cret%40p@proxy.example:1080"
    assert relay.proxy_protocol == 2
    assert "s3cret" not in relay.url + repr(relay)
    for query in ("proxy=s3cret", "proxy_protocol=s3cret"):
        with pytest.raises(ValueError, match="^URL: option proxy") as caught:
            Relay.from_url(f"smtp://mx.example?{query}")
        assert "s3cret" not in str(caught.value)


def test_white_space_around_it_is_no_part_of_it() -> None:
    """As it comes out of a file, or of an environment variable that was made by one."""
    assert Relay.from_url(" \tsmtp://mx.example:2525\r\n") == Relay("mx.example", 2525)
