"""Exit codes that no error carries (docs/reference/exit-codes.md)."""

from __future__ import annotations

INTERRUPTED = 130
"""128 + SIGINT, as shells report it."""

PIPE_CLOSED = 141
"""128 + SIGPIPE: whoever read our output has enough."""

OUR_FAILURE = 255
"""A command in a guest did not run to its end for a reason of ours, as ssh has it."""
