"""Bringing files in from outside: uploads, and images made of them."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from guesthouse.model.document import Noun
from guesthouse.model.image import Seed, SourceFormat

_LARGEST = 1 << 53  # JSON readers written in JavaScript keep integers exact up to that

FileSize = Annotated[int, Meta(ge=1, le=_LARGEST, description="Size of the file in bytes.")]
Line = Annotated[str, Meta(max_length=256)]
Text = Annotated[str, Meta(max_length=4096)]


class UploadRequest(Noun, kw_only=True, frozen=True):
    """A file that will be sent."""

    size: FileSize


class Upload(Noun, kw_only=True, frozen=True):
    """A file on its way in.

    :ivar size: bytes that it has. :ivar stored: bytes that it takes on disk so far; holes take
        none.
    :ivar expires_at: when it is thrown away if nobody uses it (seconds since the epoch).
    :ivar room: bytes that there is room for beside it; what is larger need not be sent.
    """

    id: str
    size: int
    stored: int
    expires_at: float
    room: int


class ImportImageRequest(Noun, kw_only=True, frozen=True):
    """Make an image of an upload, which is gone afterwards.

    :ivar upload: its id. :ivar name: of the image; no other may have it.
    :ivar format: null tells it from the file.
    :ivar os: what is on it, for people.
    :ivar agent: it carries QEMU's guest agent, so that launches wait until that answers.
    :ivar seed: whether something on it reads a NoCloud disc.
    """

    upload: Line
    name: Line
    format: SourceFormat | None = None
    description: Text = ""
    os: Line = ""
    agent: bool = False
    seed: Seed = Seed.NOCLOUD
