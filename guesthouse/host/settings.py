"""Settings of a house: `settings.toml` in its config folder, read once at the daemon's start.

Strict: an unknown key is an error that names the ones it may have meant, because a misspelt
setting that is silently ignored looks like a defect of ours.
"""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path

import msgspec

from guesthouse.errors import Forbidden, InvalidInput, UnknownField
from guesthouse.model.document import Noun, convert_strict
from guesthouse.model.names import check_name
from guesthouse.model.units import parse_size

FILE_NAME = "settings.toml"


class Settings(Noun, kw_only=True, frozen=True):
    """:ivar mirrors: lines of apt's sources.list from which Debian images are built; empty takes
        the host's own, else the builder's default.
    :ivar default_user: login user that a guest gets when its launch names none.
    :ivar job_retention_days: how long ended jobs are kept; 0 forgets them within the hour.
    :ivar trash_days: how long removed guests stay in the trash; 0 removes them at once.
    :ivar max_image_size: largest disk that an imported image may have, such as `2T`.
    """

    mirrors: tuple[str, ...] = ()
    default_user: str = "guest"
    job_retention_days: int = 7
    trash_days: int = 7
    max_image_size: str = "2T"

    @property
    def most_image_bytes(self) -> int:
        return parse_size(self.max_image_size)


def load_settings(config: Path) -> Settings:
    """The settings in the folder `config`; the defaults when there is no file.

    :raise InvalidInput: not TOML, an unknown key (`UnknownField`) or a value that cannot be; the
        message names the file and the key. :raise Forbidden: the file cannot be read.
    """
    path = config / FILE_NAME
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Settings()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"{path} is not valid TOML: {error}.",
            hint="Correct it, or move it away to use the defaults.",
        ) from error
    except OSError as error:
        raise Forbidden(
            f"{path} cannot be read: {error.strerror}.",
            hint="Correct its owner and mode, or move it away to use the defaults.",
        ) from error
    known = [field.name for field in msgspec.structs.fields(Settings)]
    for key in raw:
        if key not in known:
            similar = difflib.get_close_matches(key, known, n=2, cutoff=0.5)
            raise UnknownField(
                f"{path} has an unknown setting {key!r}.",
                hint=f"Did you mean {' or '.join(similar)}?"
                if similar
                else f"The settings are: {', '.join(known)}.",
                field=key,
            )
    return _checked(convert_strict(raw, Settings, what=str(path)), path)


def _checked(settings: Settings, path: Path) -> Settings:
    check_name(settings.default_user, field="default_user")
    for field in ("job_retention_days", "trash_days"):
        if getattr(settings, field) < 0:
            raise InvalidInput(
                f"{path}: {field} cannot be negative.",
                hint="Write a number of days, such as 30.",
                field=field,
            )
    try:
        parse_size(settings.max_image_size)
    except InvalidInput as error:
        raise InvalidInput(
            f"{path}: max_image_size: {error.message}", hint=error.hint, field="max_image_size"
        ) from None
    for line in settings.mirrors:
        if not line.startswith("deb ") or not line.isprintable():
            raise InvalidInput(
                f"{path}: {line!r} is not a line of apt's sources.",
                hint="Write each mirror as: deb URL SUITE COMPONENT…",
                field="mirrors",
            )
    return settings
