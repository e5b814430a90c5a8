"""aiosmtpd with SCRAM, by the server's half of the library scramp, and with lies."""

from __future__ import annotations

import base64
from typing import Any

from aiosmtpd.smtp import MISSING, AuthResult
from scramp import ScramException, ScramMechanism

from asmtp.cli.demo.server import Server
from tests.fakes.embedded import PASSWORD, USER, Embedded

__all__ = ["LIES", "SCRAM", "Scram"]

SCRAM = tuple(f"SCRAM-{name}{plus}" for plus in ("", "-PLUS") for name in ("SHA-1", "SHA-256", "SHA-512"))
LIES = ("signature", "early", "no proof", "nonce", "iterations", "rubbish")


class Scram(Embedded):
    """The handler.

    Args:
        mechanisms: those offered.
        binding: the type of channel binding that the -PLUS forms want.
        lie: what is wrong with its part of the login.

    Attributes:
        bound: the gs2 flag of each login: "n", "y", "p=...".
    """

    def __init__(self, *mechanisms: str, binding: str = "tls-server-end-point", lie: str = "") -> None:
        super().__init__(mechanisms=mechanisms)
        self.binding = binding
        self.lie = lie
        self.bound: list[str] = []
        self.certificate = ""  # PEM

    async def scram(self, name: str, server: Server, args: list[str]) -> AuthResult:
        """Run one exchange; the client's initial response is in `args`, or has to be asked for."""
        asked = args[1] if len(args) > 1 else None
        first = base64.b64decode(asked) if asked else await self.ask(server, b"")
        self.bound.append(first.split(b",")[0].decode())
        scram = self.server_half(name, server)
        try:
            scram.set_client_first(first.decode())
            if self.lie == "early":
                return AuthResult(success=True, handled=False)
            scram.set_client_final((await self.ask(server, self.twisted(scram.get_server_first()))).decode())
            if self.lie != "no proof":
                final = scram.get_server_final().encode()
                await self.ask(server, b"v=" + base64.b64encode(bytes(20)) if self.lie == "signature" else final)
        except ScramException:
            return self.judge(name, False)
        return self.judge(name, True)

    def server_half(self, name: str, server: Server) -> Any:
        mechanism = ScramMechanism(name)
        account = mechanism.make_auth_info(PASSWORD)
        tls = server.transport and server.transport.get_extra_info("ssl_object")
        bound = None
        if tls is not None and any(name.endswith("-PLUS") for name in self.mechanisms):
            bound = (self.binding, tls if self.binding == "tls-unique" else self.certificate)
        return mechanism.make_server(lambda user: account if user == USER else None, channel_binding=bound)

    def twisted(self, first: str) -> bytes:
        if self.lie == "nonce":
            first = "r=another" + first[first.index(",") :]
        if self.lie == "iterations":
            first = first[: first.rindex("i=")] + "i=2000000000"
        return b"rubbish" if self.lie == "rubbish" else first.encode()

    @staticmethod
    async def ask(server: Server, challenge: bytes) -> bytes:
        response = await server.challenge_auth(challenge)
        if response is MISSING:
            raise ScramException("cancelled")
        assert isinstance(response, bytes)
        return response


def _offered(name: str) -> Any:
    async def auth(self: Scram, server: Server, args: list[str]) -> AuthResult:
        return await self.scram(name, server, args)

    return auth


for _name in SCRAM:  # aiosmtpd finds them by their names
    setattr(Scram, "auth_" + _name.replace("-", "__"), _offered(_name))
