"""SASL mechanisms: functions of :class:`~asmtp.Credentials` that return a generator.

A function that cannot be used with these credentials, or on this machine, raises ValueError before anything is
written; another mechanism may do.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable
from typing import Any

from asmtp.errors import SMTPTimeoutError, one_line
from asmtp.protocol.envelope import ascii_domain
from asmtp.protocol.hidden import hidden
from asmtp.protocol.sasl import Credentials, Mechanism, unproven

__all__ = [
    "channel_bindings", "cram_md5", "cram_md5_response", "external", "login", "oauthbearer", "plain", "plain_response",
    "scram", "xoauth2",
]  # fmt: skip


MAX_ITERATIONS = 600_000
"""Iterations of the hash in SCRAM, chosen by the server: less than a second.  RFC 7677 §4 asks for 4096 at least."""

_ITERATIONS = re.compile(r"(?:^|,)i=0*([0-9]+)")


def plain(credentials: Credentials) -> Mechanism:
    """Respond as PLAIN says (RFC 4616)."""
    yield plain_response(credentials.username, credentials.password).encode()


def plain_response(username: str, password: str) -> str:
    """Return the response of PLAIN: no identity to act as, ours, and the password."""
    return hidden(f"\0{username}\0{password}")


def login(credentials: Credentials) -> Mechanism:
    """Respond as LOGIN says (draft-murchison-sasl-login): two prompts whose text does not matter."""
    yield None
    yield credentials.username.encode()
    yield credentials.password.encode()


def cram_md5(credentials: Credentials) -> Mechanism:
    """Return the mechanism CRAM-MD5 (RFC 2195).

    Raises:
        ValueError: this machine's OpenSSL forbids MD5 (FIPS).
    """
    hmac.new(b"", b"", "md5")
    return _cram_md5(credentials)


def _cram_md5(credentials: Credentials) -> Mechanism:
    challenge = yield None
    yield cram_md5_response(credentials.username, credentials.password.encode(), challenge).encode()


def cram_md5_response(username: str, secret: bytes, challenge: bytes | None) -> str:
    """Return the response of CRAM-MD5 to a challenge."""
    return username + " " + hidden(hmac.new(secret, challenge, "md5").hexdigest())


def external(credentials: Credentials) -> Mechanism:
    """Respond as EXTERNAL says (RFC 4422 appendix A): the certificate says who we are, a user name who we act as."""
    yield credentials.username.encode()


def oauthbearer(credentials: Credentials) -> Mechanism:
    """Respond as OAUTHBEARER says (RFC 7628)."""
    name = credentials.username.replace("=", "=3D").replace(",", "=2C")  # RFC 5801 §4
    fields = [b"n,a=%b," % name.encode()]
    if credentials.host:
        fields.append(b"host=%b" % ascii_domain(credentials.host, "host").encode())
    if credentials.port:
        fields.append(b"port=%d" % credentials.port)
    # RFC 7628 §3.2.3: a challenge behind the token is the error; the server refuses when the client has responded.
    yield b"\1".join([*fields, b"auth=Bearer %b\1\1" % credentials.token.encode()])
    yield b"\1"


def xoauth2(credentials: Credentials) -> Mechanism:
    """Respond as XOAUTH2 says, which Google and Microsoft had before there was an RFC."""
    yield b"user=%b\1auth=Bearer %b\1\1" % (credentials.username.encode(), credentials.token.encode())
    yield b""


# ---- SCRAM --------------------------------------------------------------------------------------


def channel_bindings(tls: Any) -> list[str]:
    """Return the types of channel binding that a connection can have, the best first.

    tls-unique (RFC 5929 §3) is not for TLS 1.3 (RFC 8446 appendix C.5).  tls-exporter (RFC 9266) would be, but Python's
    ssl does not have it.

    Args:
        tls: the :class:`ssl.SSLObject`, or None.
    """
    if tls is None:
        return []
    found = ["tls-server-end-point"] if tls.getpeercert(binary_form=True) is not None else []
    return ["tls-unique", *found] if tls.version() in ("TLSv1", "TLSv1.1", "TLSv1.2") else found


def scram(
    name: str,
    credentials: Credentials,
    *,
    binding: str | None = None,
    proved: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = lambda: 0.0,
) -> Mechanism:
    """Respond as SCRAM says (RFC 5802, RFC 7677), by the library scramp.

    To compute the response takes a good part of a second.

    Args:
        name: ``"SCRAM-SHA-256"``, or with ``-PLUS``.
        binding: the type of channel binding, for the -PLUS forms.
        proved: is called before the first octets are written that depend on the password.
        clock: returns the time, in seconds.

    Raises:
        ValueError: this machine's OpenSSL forbids the hash (FIPS); or user name or password cannot be prepared
            (RFC 4013), or the certificate is of a kind that has no tls-server-end-point (RFC 5929 §4.1).
        SMTPTimeoutError: by the generator: the response took longer than `credentials.limit`.
    """
    from scramp import ScramClient, ScramException  # few connections need it, and it takes long to import

    hashlib.new(name.removesuffix("-PLUS").removeprefix("SCRAM-").replace("SHA-", "sha"), b"")
    bound = None
    if binding is not None:
        bound = (binding, credentials.tls)
    elif not any(other.endswith("-PLUS") for other in credentials.offered) and (
        types := channel_bindings(credentials.tls)
    ):
        # RFC 5802 §6: with "y", a server that did offer -PLUS learns that somebody took that out.
        bound = (types[0], credentials.tls)
    try:
        client = ScramClient([name], credentials.username, credentials.password, channel_binding=bound)
    except ScramException as error:
        raise ValueError(f"{name}: {one_line(error)}") from None

    def in_time(begun: float) -> None:
        if credentials.limit is not None and clock() - begun > credentials.limit:
            limit = f"{credentials.limit:g} seconds"
            raise SMTPTimeoutError(f"timed out: the login's response took longer than {limit} to compute")
        proved()

    return _scram(client, ScramException, clock, in_time)


def _scram(
    client: Any, failure: type[Exception], clock: Callable[[], float], computed: Callable[[float], None]
) -> Mechanism:
    challenge = yield client.get_client_first().encode()
    try:
        first = _text(challenge)
        if first.startswith("e="):  # the refusal follows our empty response
            yield b""
        if _is_too_many(first):
            raise unproven(f"the server's part of the login is wrong: more than {MAX_ITERATIONS} iterations")
        begun = clock()
        client.set_server_first(first)
        final = hidden(client.get_client_final())
    except failure as error:
        raise unproven(f"the server's part of the login is wrong: {one_line(error)}") from None
    computed(begun)
    challenge = yield final.encode()
    try:
        verifier = _text(challenge)
        if verifier.startswith("e="):
            yield b""
        client.set_server_final(verifier)
    except failure as error:
        raise unproven(f"the server has not proved that it knows the password: {one_line(error)}") from None
    yield b""


def _is_too_many(first: str) -> bool:
    """Return whether a server's first message asks for more than `MAX_ITERATIONS`."""
    found = _ITERATIONS.search(first)
    return found is not None and (len(found[1]) > len(str(MAX_ITERATIONS)) or int(found[1]) > MAX_ITERATIONS)


def _text(challenge: bytes | None) -> str:
    if challenge is None:
        raise unproven("the server said yes without having proved that it knows the password")
    return challenge.decode("utf-8", "backslashreplace")
