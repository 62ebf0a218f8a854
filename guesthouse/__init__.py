"""Guesthouse: a house for guests (virtual machines and system containers) on any Linux machine."""

__version__ = "0.1.0"
