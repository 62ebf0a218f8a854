"""Errors that the daemon answered, raised as what they are."""

from __future__ import annotations

import json
from typing import Any

from guesthouse.errors import GuesthouseError, Internal, all_errors


def from_problem(body: bytes, status: int) -> GuesthouseError:
    """The error of an answer with `status` >= 400 and a problem+json `body`.

    A body that is none becomes `Internal`, with its beginning in the message.
    """
    try:
        problem = json.loads(body)
    except ValueError:
        problem = None
    if not isinstance(problem, dict) or "code" not in problem:
        text = body[:200].decode(errors="replace").strip()
        return Internal(
            f"The daemon answered {status}: {text or 'without a reason'}.",
            hint="See the end of its log; 'guest daemon status' says where it lies.",
        )
    return error_from(problem)


def error_from(problem: dict[str, Any]) -> GuesthouseError:
    """The error of a problem document: of an answer, of a stream, or of a job.

    A code that this program does not know (a newer daemon's) becomes a plain `GuesthouseError`
    with the same words.
    """
    kind = all_errors().get(str(problem.get("code")), GuesthouseError)
    message = problem.get("detail")
    if not isinstance(message, str):  # a job keeps its words in `message`, its facts in `detail`
        message = problem.get("message")
    error = kind(str(message or problem.get("title") or kind.title), hint=_text(problem, "hint"))
    for name in ("context", "detail"):
        facts = problem.get(name)
        if isinstance(facts, dict):
            error.detail = facts
    return error


def _text(problem: dict[str, Any], name: str) -> str:
    value = problem.get(name)
    return value if isinstance(value, str) else ""
