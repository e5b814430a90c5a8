"""TLS: the contexts used where none is given, sessions that are resumed, and what is wrong with a certificate."""

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
    # The standard library's, whatever has been put in its place (truststore, gevent), which is a subclass of it.
    _OwnContext = ssl.SSLContext.__mro__[-3]


def check_context(context: Any, name: str) -> None:
    """Raise if a context is of a make that event loops cannot use, before anything is written.

    Args:
        name: the argument that it was given as.

    Raises:
        TypeError: it is.
    """
    needed = ("wrap_bio", "verify_mode", "check_hostname", "verify_flags")
    if context is not None and not all(hasattr(context, attribute) for attribute in needed):
        kind = f"{type(context).__module__}.{type(context).__qualname__}"
        raise TypeError(f"{name} must be an ssl.SSLContext, not {kind}: event loops can use no other")


def verifying_context(cafile: str | None = None) -> ssl.SSLContext:
    """A context with which certificates and names are verified, TLS 1.2 at least.

    Args:
        cafile: the certificates to trust, instead of the system's.
    """
    return _modern(ssl.create_default_context(cafile=cafile))


@functools.cache
def default_context() -> ssl.SSLContext:
    """The context used where none is given; made once, as it takes milliseconds to load the system's certificates."""
    return verifying_context()


@functools.cache
def unverified_context() -> ssl.SSLContext:
    """For tls="opportunistic", where a certificate that cannot be verified is better than no TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # without the system's certificates, which take long to load
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return _modern(context)


def context_from_files(
    keyfile: str | None, certfile: str | None, context: ssl.SSLContext | None
) -> ssl.SSLContext | None:
    """smtplib's old `keyfile` and `certfile` arguments as a (verifying) context; or the one that is given.

    Raises:
        TypeError: it is none that event loops can use.
        ValueError: both are given.
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
    """RFC 8996: TLS 1.2 at least, whatever the system's configuration says."""
    if context.minimum_version < ssl.TLSVersion.TLSv1_2:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


class SessionCache:
    """The last TLS session with one server, for the next connection to resume (RFC 8446 §2.2, RFC 5246 §7.3).

    It is an offer.  There are servers that end the handshake where it is made: one that asks for certificates and has
    no session id context, say.
    """

    REFUSALS = 2
    """So many, and nothing is offered any more."""

    def __init__(self) -> None:
        self._last: ResumingContext | None = None
        self._refusals = 0

    def of(self, context: ssl.SSLContext, hostname: str | None) -> ssl.SSLSession | None:
        """The session to resume: one with the same name, verified by the same context."""
        last = self._last
        if self._refusals >= self.REFUSALS:
            return None
        if last is None or last.object is None or last.context is not context or last.hostname != hostname:
            return None
        if last.verified != how_verified(context):  # OpenSSL does not verify again what it resumes
            return None
        return last.object.session  # with TLS 1.3 it comes after the handshake, so it is asked for now

    def keep(self, handshake: ResumingContext) -> None:
        """This one was successful."""
        self._last = handshake

    def forget(self) -> None:
        """A handshake that offered the session failed."""
        self._last = None
        self._refusals += 1


class ResumingContext(_OwnContext):
    """Somebody's context, for one handshake: it resumes a session, and knows the certificate that was not accepted.

    To event loops it is a context; what it is asked for, the other one does.

    Attributes:
        object: what was made of it, or None.
        hostname: the name that the certificate has to be for.
        verified: how `context` had certificates verified when it was used.
        refused: it failed, and without the session that it offered it may not.

    Raises:
        TypeError: it is no context that event loops can use.
    """

    context: ssl.SSLContext
    verified: tuple[Any, ...]
    hostname: str | None
    object: ssl.SSLObject | None
    refused: bool
    _sessions: SessionCache | None
    _offers: bool

    def __new__(cls, context: ssl.SSLContext, sessions: SessionCache | None = None) -> Self:
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
        # What event loops ask for is an instance of the class that stands there now.
        return ssl.SSLContext

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """As SSLContext has it."""
        self.hostname = server_hostname if isinstance(server_hostname, str | None) else server_hostname.decode()
        if session is None and self._sessions is not None:
            session = self._sessions.of(self.context, self.hostname)
        self._offers = session is not None
        self.verified = how_verified(self.context)
        self.object = self.context.wrap_bio(incoming, outgoing, server_side, server_hostname, session)
        return self.object

    @property
    def verifies(self) -> bool:
        """Whether certificate and name are verified."""
        return self.verified[:2] == (ssl.CERT_REQUIRED, True)

    def succeeded(self) -> None:
        """There is TLS."""
        if self._sessions is not None:
            self._sessions.keep(self)

    def failed(self, error: BaseException) -> None:
        """There is none, and that is the other side's doing."""
        # What is resumed has its certificate not looked at again.
        if self._sessions is not None and self._offers and not isinstance(error, ssl.SSLCertVerificationError):
            self._sessions.forget()
            self.refused = not isinstance(error, TimeoutError)


def how_verified(context: ssl.SSLContext) -> tuple[Any, ...]:
    """What a context has verified: it may be changed while it is used."""
    return context.verify_mode, context.check_hostname, context.verify_flags


NO_TLS = {"WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST"}
"""What OpenSSL says where the other side does not speak TLS."""


def is_no_tls(error: BaseException | None) -> bool:
    """Whether a handshake failed because the other side does not speak TLS."""
    return isinstance(error, ssl.SSLError) and error.reason in NO_TLS


def explain_no_tls(error: ssl.SSLError) -> None:
    """Have the error say what can be done where `is_no_tls`."""
    error.strerror = (
        f"the server does not speak TLS here ({error.reason}): a port that begins without, as 25 and 587 do, is for "
        'smtp+starttls:// or tls="required"; smtps:// and tls="implicit" are for ports such as 465'
    )


WITH_TLS = {465}
WITHOUT_TLS = {0, 25, 587, 2003}
"""Ports of which it is known how they begin; 0 is a Unix socket's."""


def tls_is_meant(error: SMTPServerDisconnected, port: int) -> SMTPServerDisconnected:
    """Return what to tell where no greeting came without TLS, and the port may be one that begins with it.

    A server there waits for us to begin, as we do for its greeting.

    Args:
        error: what there was instead.
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
    """Have the error say which name was wanted, which the certificate has, and what can be done."""
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
    error.args = (error.errno, error.strerror)  # what repr() shows, and what is left of it by pickling


def _refused_certificate(handshake: ResumingContext) -> dict[str, Any]:
    """What the certificate says, as SSLObject.getpeercert() would; empty where it cannot be had.

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
