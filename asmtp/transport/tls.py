"""TLS: default contexts, sessions that are resumed, and errors that say what is wrong with a certificate."""

from __future__ import annotations

import contextlib
import functools
import ssl
import warnings
from typing import TYPE_CHECKING, Any, NoReturn, Self

from asmtp.errors import SMTPProtocolError, SMTPServerDisconnected, SMTPTimeoutError, one_line, reason

__all__ = [
    "ResumingContext", "SessionCache", "check_context", "context_from_files", "default_context", "explain",
    "explain_no_tls", "is_no_tls", "raise_tls_error", "tls_is_meant", "unverified_context", "verifying_context",
]  # fmt: skip

if TYPE_CHECKING:
    from ssl import SSLContext as _OwnContext
else:
    # The standard library's class, also if a subclass of it was put in its place (truststore, gevent).
    _OwnContext = ssl.SSLContext.__mro__[-3]


def check_context(context: Any, name: str) -> None:
    """Raise TypeError if event loops cannot use a context, before anything is written.

    Args:
        name: the argument that it was given as.

    Raises:
        TypeError: it lacks what event loops use.
    """
    needed = ("wrap_bio", "verify_mode", "check_hostname", "verify_flags")
    if context is not None and not all(hasattr(context, attribute) for attribute in needed):
        kind = f"{type(context).__module__}.{type(context).__qualname__}"
        raise TypeError(f"{name} must be an ssl.SSLContext, not {kind}: event loops can use no other")


def verifying_context(cafile: str | None = None) -> ssl.SSLContext:
    """Return a context that verifies certificates and names, TLS 1.2 at least.

    Args:
        cafile: the certificates to trust, instead of the system's.
    """
    return _modern(ssl.create_default_context(cafile=cafile))


@functools.cache
def default_context() -> ssl.SSLContext:
    """Return the default context; it is made once, as it takes milliseconds to load the system's certificates."""
    return verifying_context()


@functools.cache
def unverified_context() -> ssl.SSLContext:
    """Return a context that verifies nothing: with tls="opportunistic", any certificate is better than no TLS."""
    context = ssl.SSLContext(
        ssl.PROTOCOL_TLS_CLIENT
    )  # create_default_context() would load the system's certificates, which takes long
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return _modern(context)


def context_from_files(
    keyfile: str | None, certfile: str | None, context: ssl.SSLContext | None
) -> ssl.SSLContext | None:
    """Return a verifying context of smtplib's old arguments `keyfile` and `certfile`; or the context that is given.

    Raises:
        TypeError: event loops cannot use the context.
        ValueError: a context and a file are given.
    """
    check_context(context, "context")
    if keyfile is None and certfile is None:
        return context
    if context is not None:
        which = "keyfile" if keyfile is not None else "certfile"
        raise ValueError(f"context and {which} arguments are mutually exclusive")
    warnings.warn("keyfile and certfile are deprecated, use a custom context instead", DeprecationWarning, stacklevel=3)
    made = verifying_context()
    made.load_cert_chain(certfile or "", keyfile)
    return made


def _modern(context: ssl.SSLContext) -> ssl.SSLContext:
    """Return the context, with TLS 1.2 at least (RFC 8996), whatever the system's configuration says."""
    if context.minimum_version < ssl.TLSVersion.TLSv1_2:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


class SessionCache:
    """The last TLS session with one server, for the next connection to resume (RFC 8446 §2.2, RFC 5246 §7.3).

    To resume it is an offer.  Some servers end the handshake if they get one: a server that asks for certificates and
    has no session id context, say.
    """

    REFUSALS = 2
    """Handshakes that failed with the offer, after which it is not made any more."""

    def __init__(self) -> None:
        self._last: ResumingContext | None = None
        self._refusals = 0

    def of(self, context: ssl.SSLContext, hostname: str | None) -> ssl.SSLSession | None:
        """Return the session to resume: one with the same name, verified by the same context; or None."""
        last = self._last
        if self._refusals >= self.REFUSALS:
            return None
        if last is None or last.object is None or last.context is not context or last.hostname != hostname:
            return None
        if last.verified != how_verified(context):  # OpenSSL does not verify again what it resumes
            return None
        return last.object.session  # with TLS 1.3 it comes after the handshake, so look for it now

    def keep(self, handshake: ResumingContext) -> None:
        """Keep the session of a handshake that was successful."""
        self._last = handshake

    def forget(self) -> None:
        """Forget the session, as a handshake that offered it failed."""
        self._last = None
        self._refusals += 1


class ResumingContext(_OwnContext):
    """A caller's context, for one handshake: it resumes a session, and keeps the certificate that was not accepted.

    Event loops take no session to resume, so this takes the place of the context: an instance of SSLContext to
    `isinstance`, whose `wrap_bio` calls that of `context` with the session.  Tried with asyncio and uvloop on CPython
    3.11.7, 3.12.1 and 3.13.0 (tests/transport/test_tls.py).

    Attributes:
        context: the caller's context.
        object: the TLS object that `wrap_bio` made, or None.
        hostname: the name that the certificate has to be for.
        verified: how `context` had certificates verified at the time of the handshake.
        refused: the handshake failed, and may succeed without the session that it offered.

    Raises:
        TypeError: event loops cannot use the context.
    """

    context: ssl.SSLContext
    verified: tuple[Any, ...]
    hostname: str | None
    object: ssl.SSLObject | None
    refused: bool
    _sessions: SessionCache | None
    _offers: bool

    def __new__(cls, context: ssl.SSLContext, sessions: SessionCache | None = None) -> Self:
        """Check the context, and make one that is another only to the event loop."""
        check_context(context, "ssl_context")
        self = super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)
        self.context = context
        self.verified = ()
        self.object = self.hostname = None
        self.refused = self._offers = False
        self._sessions = sessions
        return self

    def __init__(self, context: ssl.SSLContext, sessions: SessionCache | None = None) -> None:
        pass

    @property  # type: ignore[misc]  # nobody sets it
    def __class__(self) -> type:
        # Event loops look for an instance of the class that `ssl.SSLContext` is at that moment.
        return ssl.SSLContext

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """Wrap two buffers, as SSLContext does, with the session to resume."""
        self.hostname = server_hostname if isinstance(server_hostname, str | None) else server_hostname.decode()
        if session is None and self._sessions is not None:
            session = self._sessions.of(self.context, self.hostname)
        self._offers = session is not None
        self.verified = how_verified(self.context)
        self.object = self.context.wrap_bio(incoming, outgoing, server_side, server_hostname, session)
        return self.object

    @property
    def verifies(self) -> bool:
        """True if the handshake verified certificate and name."""
        return self.verified[:2] == (ssl.CERT_REQUIRED, True)

    def succeeded(self) -> None:
        """Keep the session: the handshake was successful."""
        if self._sessions is not None:
            self._sessions.keep(self)

    def failed(self, error: BaseException) -> None:
        """Heed that the server ended the handshake: it may be the offer to resume a session that it cannot take."""
        # A certificate is not looked at if a session is resumed: it was not the offer that failed.
        if self._sessions is not None and self._offers and not isinstance(error, ssl.SSLCertVerificationError):
            self._sessions.forget()
            self.refused = not isinstance(error, TimeoutError)


def how_verified(context: ssl.SSLContext) -> tuple[Any, ...]:
    """Return what a context verifies at this moment: callers may change it."""
    return context.verify_mode, context.check_hostname, context.verify_flags


NO_TLS = {"WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST"}
"""Reasons that OpenSSL gives if the other side does not speak TLS."""


def is_no_tls(error: BaseException | None) -> bool:
    """Return whether a handshake failed because the other side does not speak TLS."""
    return isinstance(error, ssl.SSLError) and error.reason in NO_TLS


def explain_no_tls(error: ssl.SSLError) -> None:
    """Have an error for which `is_no_tls` is true say what can be done."""
    error.strerror = (
        f"the server does not speak TLS here ({error.reason}): a port that begins without, as 25 and 587 do, is for "
        'smtp+starttls:// or tls="required"; smtps:// and tls="implicit" are for ports such as 465'
    )


WITH_TLS = {465}
WITHOUT_TLS = {0, 25, 587, 2003}
"""Ports that begin with TLS, and without, by their registration or by custom; 0 is the port of a Unix socket."""


def tls_is_meant(error: SMTPServerDisconnected, port: int) -> SMTPServerDisconnected:
    """Return the error to raise if no greeting came without TLS: the port may be one that begins with TLS.

    A server there waits for us to begin, as we do for its greeting.

    Args:
        error: the error that there was instead of a greeting.
        port: the server's.
    """
    silent = isinstance(error, SMTPTimeoutError)
    certain = error.lasting or port in WITH_TLS
    if not certain and (not silent or port in WITHOUT_TLS):
        return error
    which = f"port {port} begins with TLS:" if certain else f"if port {port} begins with TLS, as 465 does,"
    words = f'{error}; {which} smtps://, SMTP_SSL or tls="implicit" is meant'
    told: SMTPServerDisconnected
    if isinstance(error, SMTPProtocolError):
        told = SMTPProtocolError(error.smtp_code, words.encode())
    else:
        told = (SMTPTimeoutError if silent else SMTPServerDisconnected)(words)
    told.lasting = certain
    return told


_NAME = 255  # characters of a host's name (RFC 1035 §2.3.4)
UNKNOWN_ISSUER = {18, 19, 20, 21}  # OpenSSL's X509_V_ERR_: self-signed, and no issuer that is trusted
EXPIRED, NOT_YET_VALID, OTHER_NAME, OTHER_ADDRESS = 10, 9, 62, 64


def explain(error: ssl.SSLCertVerificationError, handshake: ResumingContext) -> None:
    """Have the error say which name was wanted, which names the certificate has, and what can be done."""
    wanted = handshake.hostname or "no name"
    certificate = _refused_certificate(handshake)
    names = [
        one_line(name, _NAME) for kind, name in certificate.get("subjectAltName", ()) if kind in ("DNS", "IP Address")
    ]
    offered = f"it is for {', '.join(names[:10])}{', ...' if names[10:] else ''}" if names else "it names no host"
    if not certificate:
        offered = "it is not known what it is for"
    advice = ""
    if error.verify_code in (OTHER_NAME, OTHER_ADDRESS):
        advice = "; if that is the right server, connect to it by such a name, or pass it as server_hostname="
    elif error.verify_code in UNKNOWN_ISSUER:
        advice = (
            f", issued by {_issuer(certificate)}; if that is the right server, trust the issuer with "
            "ssl_context=ssl.create_default_context(cafile=...), or cafile= in a URL"
        )
    elif error.verify_code in (EXPIRED, NOT_YET_VALID):
        valid = f"{one_line(certificate.get('notBefore'))} to {one_line(certificate.get('notAfter'))}"
        advice = f", valid from {valid}; the server needs another, or our clock is wrong"
    why = one_line(error.verify_message).rstrip(".")
    error.strerror = f"the server's certificate was not accepted for {wanted}: {why}; {offered}{advice}"
    error.args = (error.errno, error.strerror)  # repr() and pickle use them


def _refused_certificate(handshake: ResumingContext) -> dict[str, Any]:
    """Return the certificate, as SSLObject.getpeercert() would; empty if it cannot be had.

    ssl has no public name for a certificate that was refused.
    """
    with contextlib.suppress(Exception):
        chain = handshake.object._sslobj.get_unverified_chain()  # type: ignore[union-attr]
        return dict(chain[0].get_info())
    return {}


def _issuer(certificate: dict[str, Any]) -> str:
    fields = {key: value for part in certificate.get("issuer", ()) for key, value in part}
    known = [fields[key] for key in ("commonName", "organizationalUnitName", "organizationName") if key in fields]
    return ascii(one_line(known[0])) if known else "someone"


def raise_tls_error(error: BaseException, limit: float | None, context: ResumingContext | None) -> NoReturn:
    """Raise the error of a handshake that failed, in words that say what is wrong.

    Args:
        limit: seconds that the handshake was allowed.
        context: is told of it.
    """
    if isinstance(error, ssl.SSLCertVerificationError) and context is not None:
        explain(error, context)
    if isinstance(error, ssl.SSLError) and is_no_tls(error):
        explain_no_tls(error)
    told = error
    if isinstance(error, ConnectionAbortedError) and "handshake" in str(error):
        told = SMTPTimeoutError(f"timed out: no TLS handshake within {limit:g} seconds")
    elif isinstance(error, ConnectionError):
        told = SMTPServerDisconnected(f"Connection unexpectedly closed in the TLS handshake: {reason(error)}")
    if context is not None and isinstance(error, OSError):
        context.failed(told)
    if told is error:
        raise error
    raise told from error
