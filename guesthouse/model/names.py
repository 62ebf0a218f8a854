"""Names that people give to objects."""

# ruff: noqa: SIM905  (lists of words read better as text than as a word a line)

from __future__ import annotations

import re
import secrets
from collections.abc import Container

from guesthouse.errors import InvalidInput
from guesthouse.model.ids import is_id

# RFC 1123 section 2.1: letters, digits, hyphens; lower case because DNS compares without case.
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_IMAGE = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}(/[a-z0-9][a-z0-9._-]{0,62}){0,2}")


def check_name(name: str, *, field: str = "name") -> str:
    """Return `name` when it is an RFC 1123 label (1 to 63 of a-z, 0-9, -).

    :raise InvalidInput: it is not, or it looks like an id and would hide one.
    """
    if not _LABEL.fullmatch(name):
        raise InvalidInput(
            f"{name!r} cannot be a name.",
            hint="Use 1 to 63 lower-case letters, digits and hyphens, with no hyphen at the ends.",
            field=field,
        )
    if is_id(name.upper()):
        raise InvalidInput(
            f"{name!r} has the shape of an id, which would make it ambiguous.",
            hint="Choose a shorter name.",
            field=field,
        )
    return name


def check_image_name(name: str, *, field: str = "image") -> str:
    """Return `name` when it can name an image: `debian/12`, `micro`, `team/web/v2`.

    :raise InvalidInput: it cannot.
    """
    if not _IMAGE.fullmatch(name):
        raise InvalidInput(
            f"{name!r} cannot be an image's name.",
            hint="Use parts of lower-case letters, digits, '.', '_' and '-', joined by '/'.",
            field=field,
        )
    return name


_MOODS = (
    "amber bold brave bright calm clear cosy crisp dear deft eager early fair fond free "
    "fresh gentle glad golden good grand green happy hearty honest jolly keen kind late "
    "light lively lucky mellow merry mild neat noble open patient plain proud quick quiet "
    "ready rosy royal sage silver sleek snug soft spry steady still sunny swift tidy trim "
    "true warm wise witty young"
).split()
_GUESTS = (
    "aunt baker bard botanist captain cartographer cellist cook courier cousin dancer "
    "diarist diver drummer falconer farmer ferrier fiddler florist gardener glazier "
    "harpist herald hiker joiner juggler keeper lodger mariner mason miller minstrel "
    "neighbour nephew niece novelist oarsman painter pianist pilgrim pilot poet potter "
    "printer ranger roamer rower sailor scholar scribe singer smith tailor tinker "
    "traveller uncle visitor wanderer weaver wright"
).split()


def pleasant_name(taken: Container[str]) -> str:
    """A name such as `merry-pilgrim` that is not in `taken`."""
    for attempt in range(1000):
        name = f"{secrets.choice(_MOODS)}-{secrets.choice(_GUESTS)}"
        if attempt > 50:
            name += f"-{secrets.randbelow(10_000)}"
        if name not in taken:
            return name
    raise InvalidInput("No free name was found.", hint="Give the guest a name.", field="name")
