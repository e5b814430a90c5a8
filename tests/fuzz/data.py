"""Choices made out of octets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

__all__ = ["FuzzedData"]

T = TypeVar("T")


class FuzzedData:
    """A source of input for a target: numbers, choices, strings, taken from the front of some octets.

    When they are used up, each number is 0, each choice the first and each string empty, so that every target comes
    to an end and a shorter input is a simpler one.  (Atheris has a class for this, too; but a file must mean the same
    input where there is no Atheris.)
    """

    __slots__ = ("_data", "_place")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    @property
    def left(self) -> int:
        """Octets not used yet."""
        return len(self._data) - self._place

    def octets(self, count: int) -> bytes:
        """The next octets; fewer where they are used up."""
        taken = self._data[self._place : self._place + count]
        self._place += len(taken)
        return taken

    def below(self, limit: int) -> int:
        """A number from 0 to below `limit`."""
        width = (max(limit - 1, 1).bit_length() + 7) // 8
        return int.from_bytes(self.octets(width), "big") % limit

    def between(self, low: int, high: int) -> int:
        """A number from `low` to `high`, which is one of them."""
        return low + self.below(high - low + 1)

    def chance(self, of: int) -> bool:
        """True once in `of` times."""
        return self.below(of) == of - 1

    def flag(self) -> bool:
        """True or False."""
        return self.chance(2)

    def pick(self, choices: Sequence[T]) -> T:
        """One of them."""
        return choices[self.below(len(choices))]

    def some(self, choices: Sequence[T]) -> list[T]:
        """Any number of them, in their order."""
        return [choice for choice in choices if self.flag()]

    def many(self, choices: Sequence[T], limit: int) -> list[T]:
        """Up to `limit` of them, in any order, with repetitions."""
        return [self.pick(choices) for _ in range(self.between(0, limit))]

    def text(self, tokens: Sequence[str], limit: int) -> str:
        """Up to `limit` tokens, joined; an empty token stands for any character."""
        return "".join([token or self.character() for token in self.many(tokens, limit)])

    def blob(self, tokens: Sequence[bytes], limit: int) -> bytes:
        """Up to `limit` tokens, joined; an empty token stands for some octets of any value."""
        return b"".join([token or self.octets(self.between(1, 8)) for token in self.many(tokens, limit)])

    def character(self) -> str:
        """Any character: ASCII mostly, lone surrogates among the others."""
        kind = self.below(8)
        if kind < 5:
            return chr(self.below(128))
        return chr(self.below(256) if kind == 5 else self.below(0x10000) if kind == 6 else self.below(0x110000))

    def pieces(self, data: bytes, limit: int = 8) -> list[bytes]:
        """The same octets cut into up to `limit` pieces, some of them empty; or octet by octet."""
        count = self.between(0, limit)
        if count == limit:
            return [data[place : place + 1] for place in range(len(data))]
        cuts = sorted(self.below(len(data) + 1) for _ in range(count))
        return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
