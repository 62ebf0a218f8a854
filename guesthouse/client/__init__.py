"""Typed client of the HTTP API: the SDK that the command line and other programs use."""
