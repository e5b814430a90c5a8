"""smtplib's authobjects, shared by the async client and the facade."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from asmtp.auth.mechanisms import cram_md5_response, plain_response
from asmtp.protocol.hidden import hidden
from asmtp.protocol.sasl import Mechanism, SASLExchange, encoded, from_authobject

__all__ = ["AuthObjects"]


class AuthObjects:
    """smtplib's authobjects: functions of the server's challenge, which take `user` and `password` from self."""

    user: str
    password: str
    _auth_challenge_count = 0

    def auth_cram_md5(self, challenge: bytes | None = None) -> str | None:
        """Respond to a challenge of CRAM-MD5 (RFC 2195); needs self.user and self.password."""
        if challenge is None:
            return None
        return cram_md5_response(self.user, encoded(self.password), challenge)

    def auth_plain(self, challenge: bytes | None = None) -> str:
        """Respond to a challenge of PLAIN (RFC 4616); needs self.user and self.password."""
        return plain_response(self.user, self.password)

    def auth_login(self, challenge: bytes | None = None) -> str:
        """Respond to a challenge of LOGIN; needs self.user and self.password."""
        if challenge is None or self._auth_challenge_count < 2:
            return self.user
        return self.password

    def _sasl_exchange(
        self, mechanism: str, authobject: Callable[..., Any] | Mechanism, initial_response_ok: bool, *, again: bool
    ) -> SASLExchange:
        """Return an AUTH exchange with a generator, or with an authobject, and count the challenges for that."""
        if isinstance(authobject, Generator):
            return SASLExchange(mechanism, authobject, initial_response_ok=initial_response_ok, slow=True, again=again)
        self._auth_challenge_count = 0

        def counted(*challenge: bytes) -> str | bytes | None:
            self._auth_challenge_count += len(challenge)
            response: str | bytes | None = hidden(authobject(*challenge))
            if not challenge and response is not None:
                self._auth_challenge_count = 1
            return response

        responses = from_authobject(counted, initial_response_ok=initial_response_ok)
        return SASLExchange(mechanism, responses, slow=True, again=again)
