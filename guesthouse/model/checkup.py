"""How a house itself is: findings for `guest doctor`."""

from __future__ import annotations

from enum import StrEnum

from guesthouse.model.document import Noun


class Health(StrEnum):
    """`notice`: nothing is broken, yet somebody should know. `trouble`: something is."""

    FINE = "fine"
    NOTICE = "notice"
    TROUBLE = "trouble"


class Check(Noun, kw_only=True, frozen=True):
    """One finding. Several may have the same name.

    :ivar name: what was looked at: `documents`, `database`, `keeper`, `space`, `disks`, `guests`,
        `subnets`.
    :ivar message: what was found, in a sentence.
    :ivar cure: the command, or what else to do; empty where nothing is to be done.
    """

    name: str
    health: Health
    message: str
    cure: str = ""


class Checkup(Noun, kw_only=True, frozen=True):
    """:ivar checks: in the order in which they were made."""

    checks: tuple[Check, ...]
