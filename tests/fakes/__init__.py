"""Servers, proxies and a clock for the tests.

* :mod:`server`: an SMTP and LMTP server without a socket.  The protocol's tests and the fuzzer build on it.
* :mod:`relay`: that server behind a socket, slow, picky or wrong on purpose; the usual one.  :mod:`careless` is
  another that builds on it.
* :mod:`sink`: takes everything as fast as it can, for very many messages.
* :mod:`script`: a transcript that is played octet for octet.  :mod:`liar` is a script with an honest server to fall
  back on, and :mod:`lies`, `lies_opening` and `lies_sending` are what it says.
* :mod:`embedded`, :mod:`scram`: aiosmtpd, which asmtp's authors did not write.
* :mod:`faults`, :mod:`ledger`: a proxy that spoils a connection at any point, and the account of what must come of it.
* :mod:`background`: any of these on a thread of its own, for clients that block.
* :mod:`clock`: an event loop whose clock jumps."""
