"""The extensions that a server offers: the reply to EHLO or LHLO, parsed (RFC 5321 §4.1.1.1)."""

from __future__ import annotations

import contextlib
import datetime
import re

__all__ = ["Extensions"]

_KEYWORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*")
_SECONDS = re.compile("[0-9]{1,9}")
_LIMIT = re.compile("[1-9][0-9]{0,5}")  # RFC 9422 §4: at most six digits
# Before RFC 4954, some servers wrote "AUTH=LOGIN PLAIN".
_OLD_AUTH = re.compile(r"auth=(.*)", re.IGNORECASE)


class Extensions(dict[str, str]):
    """smtplib's `esmtp_features`: a dict of lower-case keywords and their parameters, which callers may change.

    The properties read the dict as it is at that moment.
    """

    @classmethod
    def parse(cls, message: bytes) -> Extensions:
        """Read the text of a 250 reply to EHLO, behind its first line, which is the server's name."""
        found = cls()
        for line in message.decode("latin-1").split("\n")[1:]:
            old = _OLD_AUTH.match(line)
            if old:
                found["auth"] = found.get("auth", "") + " " + old[1]
                continue
            keyword = _KEYWORD.match(line)
            if keyword is None:  # some servers send an empty line
                continue
            name = keyword[0].lower()
            parameters = line[keyword.end() :].strip()
            found[name] = found.get(name, "") + " " + parameters if name == "auth" else parameters
        return found

    @property
    def size(self) -> int | None:
        """Return the largest message that the server takes, in octets; None: it declares no limit (RFC 1870 §3)."""
        value = self.get("size", "")
        return (int(value) or None) if value.isascii() and value.isdigit() and len(value) <= 20 else None

    @property
    def limits(self) -> dict[str, int]:
        """Return the limits declared, such as RCPTMAX and MAILMAX (RFC 9422 §2), if they are numbers above 0."""
        found = {}
        for word in self.get("limits", "").upper().split():
            name, _, value = word.partition("=")
            if _LIMIT.fullmatch(value):
                found[name] = int(value)
        return found

    @property
    def deliver_by(self) -> int | None:
        """Return the least time for DELIVERBY, in seconds; None: the server declares none (RFC 2852 §4)."""
        value = self.get("deliverby", "")
        return int(value) if _SECONDS.fullmatch(value) else None

    @property
    def future_release(self) -> tuple[int | None, datetime.datetime | None]:
        """Return the most that FUTURERELEASE allows, in seconds and as a time; None: not declared (RFC 4865 §4)."""
        words = self.get("futurerelease", "").split()
        longest = int(words[0]) if words and _SECONDS.fullmatch(words[0]) else None
        latest = None
        with contextlib.suppress(ValueError):
            latest = datetime.datetime.fromisoformat(words[1]) if words[1:] else None
        return longest, latest if latest is not None and latest.utcoffset() is not None else None

    @property
    def auth(self) -> list[str]:
        """Return the SASL mechanisms offered, in upper case, each once (RFC 4954 §3)."""
        return list(dict.fromkeys(self.get("auth", "").upper().split()))
