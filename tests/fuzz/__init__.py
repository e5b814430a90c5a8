"""Fuzzing: nothing a server, a URL or a caller's strings may hold breaks what the parsers and the session promise.

A target is a function of :class:`~tests.fuzz.data.FuzzedData`, which makes choices out of octets.  Where the octets
come from is not its business: Atheris (guided by coverage), Hypothesis, a seeded generator, or an earlier failure.
``python -m tests.fuzz --help`` tells how to run them; the targets are listed in :mod:`tests.fuzz.targets`.
"""
