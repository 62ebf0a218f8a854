"""Volumes: the layers that disks are made of."""

from __future__ import annotations

from enum import StrEnum

from guesthouse.model.document import Document


class VolumeFormat(StrEnum):
    QCOW2 = "qcow2"
    RAW = "raw"


class Volume(Document, kw_only=True, frozen=True):
    """One layer: a file in a pool.

    :ivar parent: id of the layer below, which must be immutable; empty for a base.
    :ivar immutable: nobody may write it any more.
    :ivar size: virtual size in bytes.
    :ivar digest: SHA-256 of the file's content, for immutable layers that have one.
    """

    pool: str = "default"
    format: VolumeFormat = VolumeFormat.QCOW2
    parent: str = ""
    immutable: bool = False
    size: int
    digest: str = ""
    created_at: float
    note: str = ""

    @property
    def filename(self) -> str:
        return f"{self.id}.{self.format.value}"
