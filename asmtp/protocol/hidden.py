"""Text and octets whose repr does not show them.

Error reporters send the repr of each variable in the frames of a traceback.  They leave out those that are named
`password` or `token`, but not what is made of these, which has other names.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, overload

__all__ = ["HiddenOctets", "HiddenText", "hidden", "hide"]


class HiddenText(str):
    """A str whose repr does not show it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "(not shown)"


class HiddenOctets(bytes):
    """Octets whose repr and str do not show them."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "(not shown)"

    __str__ = __repr__


@overload
def hidden(value: str) -> HiddenText: ...
@overload
def hidden(value: bytes) -> HiddenOctets: ...
@overload
def hidden(value: Any) -> Any: ...
def hidden(value: Any) -> Any:
    """Return a str or bytes, or a list with str, as one that does not show itself; anything else as it is."""
    if isinstance(value, str):
        return HiddenText(value)
    if type(value) in (list, tuple):
        return type(value)(hidden(one) if isinstance(one, str) else one for one in value)
    return HiddenOctets(value) if isinstance(value, bytes) else value


def hide(options: Any, names: Iterable[str] = ("password", "proxy")) -> None:
    """Hide the options in a dict that are a secret, or may hold one."""
    for name in names:
        if name in options:
            options[name] = hidden(options[name])
