"""Errors as values in job documents, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from guesthouse.errors import GuesthouseError, Internal, all_errors
from guesthouse.model.ids import new_id
from guesthouse.model.job import Problem


def plain(value: object, enc_hook: Callable[[Any], Any] | None = None) -> Any:
    """`value` as it will be when it comes back from a stored document: lists for tuples, and so on.

    :raise TypeError: JSON cannot hold it.
    """
    return msgspec.json.decode(msgspec.json.encode(value, enc_hook=enc_hook))


def as_problem(error: GuesthouseError) -> Problem:
    """`error` as a value; details that JSON cannot hold become text."""
    return Problem(
        code=error.code,
        title=error.title,
        status=error.status,
        message=error.message,
        hint=error.hint,
        detail=plain(error.detail, enc_hook=str),
    )


def as_error(problem: Problem) -> GuesthouseError:
    """The error that `problem` was made from; its class by the code."""
    kind = all_errors().get(problem.code, Internal)
    error = kind(problem.message, hint=problem.hint)
    error.detail = dict(problem.detail)
    return error


def unforeseen(error: BaseException, doing: str) -> Internal:
    """The `Internal` error that stands for a defect; its short id is also in the log."""
    short = new_id()[-8:]
    return Internal(
        f"A defect of Guesthouse ({short}) while {doing}: {type(error).__name__}: {error}",
        hint="The job's log has the details; please report it.",
        id=short,
    )
