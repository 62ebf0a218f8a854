"""qcow2 of strangers. Source: QEMU's docs/interop/qcow2.txt."""

from __future__ import annotations

from guesthouse.errors import EngineError
from guesthouse.images.foreign.window import Foreign, Window, damaged, refused
from guesthouse.model.image import SourceFormat
from guesthouse.storage.qcow2 import MAGIC, Header, parse_header

KIND = SourceFormat.QCOW2
_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _EXTENDED_L2 = (1 << bit for bit in range(5))
_KNOWN = _DIRTY | _CORRUPT | _DATA_FILE | _COMPRESSION | _EXTENDED_L2
_BITMAPS = 1  # bit of the autoclear features
_LARGEST_L1 = 32 << 20  # bytes; what QEMU itself takes (qcow2.h, QCOW_MAX_L1_SIZE)
_LARGEST_REFCOUNTS = 8 << 20  # bytes (QCOW_MAX_REFTABLE_SIZE)
_LARGEST_SNAPSHOTS = 65536  # entries (QCOW_MAX_SNAPSHOTS)


def look(fd: int, most: int) -> Foreign:
    """:raise InvalidInput: it is damaged, encrypted, too large, or needs other files."""
    file = Window(fd, KIND)
    header = _parse(file)
    if header.backing:
        raise refused(
            KIND,
            f"it holds only what differs from another file ({header.backing!r})",
            "Make it whole where that file is: qemu-img convert -O qcow2 IMAGE WHOLE.qcow2",
            reason="backing-file",
        )
    if header.data_file:
        raise refused(
            KIND,
            "its data lies in another file",
            "Bring both together: qemu-img convert -O qcow2 IMAGE WHOLE.qcow2",
            reason="data-file",
        )
    if header.corrupt:
        raise refused(
            KIND,
            "QEMU has marked it as corrupt",
            "Have it mended where it was made: qemu-img check -r all IMAGE",
            reason="damaged",
        )
    size = file.check_size(header.size, most)
    notes = _check(file, header)
    return Foreign(KIND, size, notes)


def _parse(file: Window) -> Header:
    head = file.read(0, min(file.size, 1 << 16), "its header")
    assert head.startswith(MAGIC)  # that is how it was recognised
    try:
        return parse_header(head, "the image")
    except EngineError as error:
        raise damaged(KIND, error.message.rpartition(": ")[2].rstrip(".")) from None


def _check(file: Window, header: Header) -> tuple[str, ...]:
    """What the header says beside its name and size."""
    (version,) = file.unpack(">I", 4, "its header")
    crypt, l1_size, l1_at, refcounts_at, refcount_clusters, snapshots, snapshots_at = file.unpack(
        ">IIQQIIQ", 32, "its header"
    )
    if crypt:
        raise refused(
            KIND,
            "it is encrypted",
            "Decrypt it where its key is: qemu-img convert --object secret,… -O qcow2 …",
            reason="encrypted",
        )
    features = autoclear = 0
    if version == 3:
        features, _, autoclear = file.unpack(">QQQ", 72, "its header")
    if unknown := features & ~_KNOWN:
        raise refused(
            KIND,
            f"it uses features that this house does not know (bits {unknown:#x})",
            "Convert it where it was made: qemu-img convert -O qcow2 -o compat=1.1 IMAGE NEW",
            reason="unknown-feature",
        )
    per_table = (header.cluster_size // (16 if features & _EXTENDED_L2 else 8)) or 1
    needed = -(-header.size // (header.cluster_size * per_table))
    if l1_size < needed or l1_size * 8 > _LARGEST_L1:
        raise damaged(KIND, "its first table does not fit its size")
    file.require(l1_at, l1_size * 8, "its first table")
    if refcount_clusters * header.cluster_size > _LARGEST_REFCOUNTS:
        raise damaged(KIND, "its table of reference counts is too large")
    file.require(refcounts_at, refcount_clusters * header.cluster_size, "its reference counts")
    if snapshots > _LARGEST_SNAPSHOTS:
        raise damaged(KIND, "it claims more snapshots than the format allows")
    if snapshots:
        file.require(snapshots_at, snapshots * 40, "its table of snapshots")
    return _notes(snapshots, dirty=bool(features & _DIRTY), bitmaps=bool(autoclear & _BITMAPS))


def _notes(snapshots: int, *, dirty: bool, bitmaps: bool) -> tuple[str, ...]:
    notes = []
    if snapshots:
        what = "snapshot" if snapshots == 1 else "snapshots"
        notes.append(f"{snapshots} {what} inside it: only the present state is taken")
    if bitmaps:
        notes.append("dirty bitmaps for backups inside it are not taken")
    if dirty:
        notes.append("it was not closed properly; its disk may be as after a power cut")
    return tuple(notes)
