"""GSSAPI (RFC 4752) and NTLM, by pyspnego, which asks other servers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from asmtp.errors import one_line
from asmtp.protocol.sasl import Credentials, Mechanism, unproven

__all__ = ["gssapi", "ntlm"]

NO_LAYER = 1
"""The bit for "no security layer" (RFC 4752 §3.3): TLS is one."""


def gssapi(credentials: Credentials) -> Mechanism:
    """Return the mechanism GSSAPI (RFC 4752): Kerberos 5, with the tickets of the system's cache, or of a password.

    Raises:
        ImportError: the extra "kerberos" is not installed.
        ValueError: there are no tickets, or none for this server.
    """
    spnego = _spnego("GSSAPI", "kerberos")
    request = spnego.ContextReq.mutual_auth | spnego.ContextReq.integrity
    context = _context(spnego, "GSSAPI", credentials, protocol="kerberos", context_req=request)
    return _gssapi(context, _begin(spnego, "GSSAPI", context), credentials.username)


def _gssapi(context: Any, token: bytes | None, username: str) -> Mechanism:
    while True:
        challenge = yield token or b""
        if context.complete:
            break
        token = _step("GSSAPI", context.step, challenge)
    layers = _step("GSSAPI", context.unwrap, challenge).data
    if len(layers) != 4 or not layers[0] & NO_LAYER:
        raise unproven("GSSAPI: the server wants a security layer besides TLS")
    # No layer, and so no size of its messages (three octets); and the user to act as, which is our own.
    yield context.wrap(bytes([NO_LAYER, 0, 0, 0]) + username.encode(), encrypt=False).data


def ntlm(credentials: Credentials) -> Mechanism:
    """Return the mechanism NTLM (MS-SMTPNTLM, MS-NLMP).

    Raises:
        ImportError: the extra "ntlm" is not installed.
        ValueError: this machine does not do it (FIPS).
    """
    spnego = _spnego("NTLM", "ntlm")
    context = _context(spnego, "NTLM", credentials, protocol="ntlm", options=spnego.NegotiateOptions.use_ntlm)
    return _ntlm(context, _begin(spnego, "NTLM", context))


def _ntlm(context: Any, negotiate: bytes | None) -> Mechanism:
    yield _step("NTLM", context.step, (yield negotiate))


def _spnego(name: str, extra: str) -> Any:
    try:
        import spnego
        import spnego.exceptions
    except ImportError as error:
        raise ImportError(f"{name} needs pyspnego: pip install 'asmtp[{extra}]'") from error
    return spnego


def _context(spnego: Any, name: str, credentials: Credentials, **options: Any) -> Any:
    try:
        return spnego.client(
            credentials.username or None,
            credentials.password or None,
            hostname=credentials.host or "unspecified",
            service=credentials.service,
            **options,
        )
    except spnego.exceptions.SpnegoError as error:
        raise ValueError(f"{name}: {one_line(error)}") from None


def _begin(spnego: Any, name: str, context: Any) -> bytes | None:
    try:
        token: bytes | None = context.step()
    except ImportError as error:  # pyspnego is there, the gssapi package is not
        raise ImportError(f"{name} needs the gssapi package: pip install 'asmtp[kerberos]'") from error
    except spnego.exceptions.SpnegoError as error:
        raise ValueError(f"{name}: {one_line(error)}") from None
    return token


def _step(name: str, function: Callable[[bytes], Any], challenge: bytes | None) -> Any:
    if challenge is None:
        raise unproven(f"{name}: the server said yes without its part of the login")
    try:
        return function(challenge)
    except Exception as error:  # a parser may raise anything at what a server sends
        raise unproven(f"{name}: the server's part of the login is wrong: {one_line(error)}") from None
