"""Commands to bytes, through the one gate that keeps a caller's line ends and controls out of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

__all__ = ["command", "gate", "options_text", "spelt_out"]

# C0, DEL and C1.  RFC 5321 §4.1.2 has none of them in any command; a CR or LF would begin a new one.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def spelt_out(value: Any) -> Any:
    """Return the str that a proxy (werkzeug's LocalProxy) or a lazy string (Django's) stands for; or the value.

    A proxy only says that it is a str, and a lazy string only has the methods of one; regular expressions take neither.
    """
    if type(value) is str or issubclass(type(value), str):
        return value
    if isinstance(value, str) or (hasattr(value, "encode") and hasattr(value, "partition")):
        return str(value)
    return value


def gate(text: str, argument: str, *, secret: bool = False) -> str:
    """Return `text` if it may stand in a command line.

    Args:
        argument: the caller's name of it, for the error.
        secret: do not show the text in the error.

    Raises:
        TypeError: `text` is not a str.
        ValueError: it holds a control character.
    """
    if not isinstance(text, str):
        raise TypeError(f"{argument} must be str, not {type(text).__name__}")
    found = _CONTROL.search(text)
    if found is not None:
        newline = found[0] in "\r\n"
        kind = "newline" if newline else "control"
        shown = "(not shown)" if secret else text.encode("unicode_escape").decode("ascii")
        # smtplib's words, which its tests look for.
        raise ValueError(f"{argument}: command and arguments contain prohibited {kind} characters: {shown}")
    return text


def options_text(options: Sequence[str], argument: str) -> str:
    """Return ESMTP parameters as they stand behind an address: each with a space before it.

    Raises:
        TypeError: `options` is a str, or holds something that is not a str.
        ValueError: one of them holds a control character.
    """
    if isinstance(options, str) or not hasattr(options, "__iter__"):
        one = "one str" if isinstance(options, str) else type(options).__name__
        raise TypeError(f"{argument} must be a sequence of str, not {one}")
    for option in options:
        if not isinstance(option, str):
            raise TypeError(f"{argument} must be a sequence of str; one is {type(option).__name__}")
    text = "".join([" " + option for option in options])
    gate(text, argument)
    return text


def command(
    verb: str, args: str = "", *, argument: str = "args", encoding: str = "ascii", secret: bool = False
) -> bytes:
    """Return a command line with its CRLF.

    Args:
        verb: the command, with its arguments or without.
        args: what follows the command behind a space; empty: nothing.
        argument: the caller's name of what may be wrong, for the error.
        secret: do not show the line in the error.  A line with AUTH is never shown.

    Raises:
        ValueError: a control character, or a character that `encoding` lacks (a UnicodeEncodeError).
    """
    line = f"{verb} {args}" if args else verb
    secret = secret or verb[:4].upper() == "AUTH"
    gate(line, argument, secret=secret)
    try:
        return line.encode(encoding) + b"\r\n"
    except UnicodeEncodeError:
        if not secret:
            raise
        raise ValueError(f"{argument}: command and arguments contain characters that are not ASCII") from None
