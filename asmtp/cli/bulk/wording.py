"""Errors in words for operators, who set options on the command line and in URLs, not in Python."""

from __future__ import annotations

__all__ = ["WORDS", "for_operators"]

WORDS: tuple[tuple[str, str], ...] = (
    (
        "call starttls() first, with a certificate that can be verified, or pass tls='none' if that is meant",
        "begin the URL with smtp+starttls:// or smtps://, or have tls=none in it if that is meant",
    ),
    ("can be asked for with mechanisms=)", "can be asked for with mechanisms= in the URL)"),
    ("ssl_context=ssl.create_default_context(cafile=...), or cafile= in a URL", "cafile= in the URL"),
    (
        "connect to it by such a name, or pass it as server_hostname=",
        "have such a name, or server_hostname=, in the URL",
    ),
    (
        'smtp+starttls:// or tls="required"; smtps:// and tls="implicit" are for ports such as 465',
        "smtp+starttls://; smtps:// is for ports such as 465",
    ),
    ('smtps://, SMTP_SSL or tls="implicit" is meant', "smtps:// is meant"),
    ("with window=1 there are none", "with window=1 in the URL there are none"),
    ("username and password go together", "the URL has one of user name and password, and they go together"),
    ("mechanisms: a token is needed for them", "the URL's mechanisms need a token, which asmtp bulk has no option for"),
    ("timeout must be a number of seconds above 0 or None", "--timeout must be a number of seconds above 0"),
    ("timeout: Non-blocking socket (timeout=0) is not supported", "--timeout must be above 0"),
    ("rate.messages must be", "--rate: messages must be"),
    ("rate.recipients must be", "--rate: recipients must be"),
)
"""Words that asmtp has for programmers, and those for operators."""


def for_operators(text: str) -> str:
    """Return the text of an error with the options that it names as they are called on the command line."""
    for said, meant in WORDS:
        text = text.replace(said, meant)
    return text
