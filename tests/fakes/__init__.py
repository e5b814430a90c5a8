"""Servers and clocks for the tests: what they talk to, in the test's own event loop."""
