"""Benchmarks of asmtp beside its peers: ``python -m benchmarks --help``."""
