"""The catalogue on a real store, pool and qemu-img; the images are small stand-ins."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from guesthouse.errors import Conflict, InUse, InvalidInput, NotFound, UnknownImage
from guesthouse.images.cache import parts
from guesthouse.images.catalogue import Catalogue, Known
from guesthouse.images.spec import BuiltImage
from guesthouse.model.device import Disk
from guesthouse.model.guest import Guest, GuestSpec, GuestStatus
from guesthouse.model.ids import new_id
from guesthouse.model.image import Image
from guesthouse.model.states import GuestState
from guesthouse.model.volume import Volume
from guesthouse.storage.pool import DirectoryPool
from guesthouse.storage.usage import DOOMED
from guesthouse.store.contract import ABSENT, Put
from guesthouse.store.documents import Documents
from guesthouse.store.sqlite import SqliteStore
from guesthouse.store.view import View

MIB = 1 << 20
KNOWN = [Known("debian/12", "Debian 12"), Known("micro", "small")]


@pytest.fixture
async def catalogue(tmp_path: Path) -> AsyncIterator[Catalogue]:
    store = await SqliteStore.open(tmp_path / "guesthouse.db")
    view = await View.open(store)
    pool = await DirectoryPool.open(tmp_path / "pool")
    yield Catalogue(Documents(store), view, pool, tmp_path / "boot", known=lambda: KNOWN)
    await view.close()
    await store.close()


def build(
    folder: Path, name: str = "debian/12", content: bytes = b"one", *, disk: bool = True
) -> BuiltImage:
    folder.mkdir()
    for part in ("kernel", "initrd"):
        (folder / part).write_bytes(part.encode() + content)
    if disk:
        raw = folder / "raw"
        raw.write_bytes(content.ljust(4096))
        os.truncate(raw, 8 * MIB)
        argv = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, folder / "disk.qcow2"]
        subprocess.run([str(word) for word in argv], check=True)
        raw.unlink()
        (folder / "disk.qcow2").chmod(0o444)
    return BuiltImage(
        name=name, build_key=content.hex(), disk=folder / "disk.qcow2" if disk else None,
        kernel=folder / "kernel", initrd=folder / "initrd", cmdline="quiet",
        virtual_size=8 * MIB if disk else 0, os={"id": "debian"}, facts={},
    )  # fmt: skip


async def add(catalogue: Catalogue, built: BuiltImage) -> Image:
    return await catalogue.add_built(built, image_id=new_id(), volume_id=new_id())


async def launch(catalogue: Catalogue, image: Image, name: str = "web") -> Guest:
    """As guest.launch does: overlay, then both documents."""
    volumes = catalogue.documents.volumes
    ops, disks = [], ()
    if image.volume:
        base = catalogue.view.volumes[image.volume]
        top = Volume(id=new_id(), parent=base.id, size=base.size, created_at=time.time())
        await catalogue.pool.create_overlay(top, catalogue.pool.path(base))
        ops.append(volumes.put_op(top, expect=ABSENT))
        disks = (Disk(name="root", volume=top.id, size=top.size),)
    guest = Guest(
        id=new_id(),
        name=name,
        uuid="",
        number=0,
        created_at=0.0,
        spec=GuestSpec(image=image.name, image_id=image.id, disks=disks),
        status=GuestStatus(state=GuestState.STOPPED, since=0.0),
    )
    ops.append(catalogue.documents.guests.put_op(guest, expect=ABSENT))
    await catalogue.view.wait_for(await catalogue.documents.store.commit(ops))
    return guest


async def test_a_built_image_comes_in(catalogue: Catalogue, tmp_path: Path) -> None:
    built = build(tmp_path / "b")
    image = await add(catalogue, built)
    assert catalogue.resolve("debian/12") == image == catalogue.resolve(image.id)
    assert catalogue.resolve(image.id[:-2]) == image
    volume = catalogue.view.volumes[image.volume]
    assert volume.immutable and volume.size == 8 * MIB
    path = catalogue.pool.path(volume)
    assert path.read_bytes() == built.disk.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o444
    files = catalogue.boot_files(image.id)
    assert Path(files.kernel).read_bytes() == b"kernelone"
    assert Path(files.initrd).stat().st_mode & 0o777 == 0o444
    assert Path(files.kernel).stat().st_nlink == 1
    assert files.cmdline == "quiet"
    for part in parts(built).values():  # clearing the cache hurts nobody
        part.unlink()
    assert path.stat().st_nlink == 1
    assert catalogue.boot_files(image.id) == files


async def test_adding_again_with_the_same_ids_changes_nothing(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    built, ids = build(tmp_path / "b"), {"image_id": new_id(), "volume_id": new_id()}
    first = await catalogue.add_built(built, **ids)
    assert await catalogue.add_built(built, **ids) == first
    assert len(catalogue.view.images) == len(catalogue.view.volumes) == 1


async def test_the_same_content_is_the_same_image(catalogue: Catalogue, tmp_path: Path) -> None:
    built = build(tmp_path / "b")
    first = await add(catalogue, built)
    other_recipe = msgspec.structs.replace(built, build_key="ff")
    second = await add(catalogue, other_recipe)
    assert second.id == first.id and second.build_key == "ff"
    assert catalogue.resolve("debian/12").build_key == "ff"
    assert len(os.listdir(catalogue.pool.layers.folder)) == 1


async def test_one_layer_under_two_names(catalogue: Catalogue, tmp_path: Path) -> None:
    built = build(tmp_path / "b")
    first = await add(catalogue, built)
    second = await add(catalogue, msgspec.structs.replace(built, name="team/web"))
    assert second.id != first.id and second.volume == first.volume
    assert await catalogue.remove(first) == 0
    assert catalogue.pool.path(catalogue.view.volumes[second.volume]).exists()
    assert catalogue.boot_files(second.id) is not None
    for part in parts(built).values():
        part.unlink()
    assert await catalogue.remove(second) > 0
    assert os.listdir(catalogue.pool.layers.folder) == []


async def test_a_newer_build_takes_the_name(catalogue: Catalogue, tmp_path: Path) -> None:
    old = await add(catalogue, build(tmp_path / "b1"))
    await launch(catalogue, old)
    new = await add(catalogue, build(tmp_path / "b2", content=b"two"))
    assert catalogue.resolve("debian/12") == new
    assert catalogue.resolve(old.id) == old
    named = await catalogue.documents.images.named("debian/12")
    assert named.id == new.id
    assert await catalogue.prune(-1) == 0  # the older one is in use
    await catalogue.remove(new)
    named = await catalogue.documents.images.named("debian/12")
    assert named.id == old.id and catalogue.resolve("debian/12") == old


async def test_replaced_images_go_when_nobody_uses_them(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    old = await add(catalogue, build(tmp_path / "b1"))
    new = await add(catalogue, build(tmp_path / "b2", content=b"two"))
    assert await catalogue.prune() == 0 and len(catalogue.view.images) == 2  # too young
    await catalogue.prune(-1)
    assert list(catalogue.view.images) == [new.id]
    assert list(catalogue.view.volumes) == [new.volume]
    assert os.listdir(catalogue.boot.folder) == [new.id]
    assert old.volume not in catalogue.view.volumes


async def test_a_used_image_stays(catalogue: Catalogue, tmp_path: Path) -> None:
    image = await add(catalogue, build(tmp_path / "b"))
    await launch(catalogue, image)
    with pytest.raises(InUse, match="guest web") as caught:
        await catalogue.remove(image)
    assert caught.value.detail["users"] == ["guest web"]
    assert catalogue.resolve("debian/12") == image
    micro = await add(catalogue, build(tmp_path / "m", "micro", disk=False))
    await launch(catalogue, micro, "tiny")
    with pytest.raises(InUse, match="guest tiny"):
        await catalogue.remove(micro)


async def test_a_launch_in_the_middle_of_a_removal_wins(
    catalogue: Catalogue, tmp_path: Path, monkeypatch
) -> None:
    image = await add(catalogue, build(tmp_path / "b"))
    retire = catalogue._retire

    async def retire_late(*args: object) -> None:
        await launch(catalogue, image)
        await retire(*args)

    monkeypatch.setattr(catalogue, "_retire", retire_late)
    with pytest.raises(InUse, match="guest web"):
        await catalogue.remove(image)
    assert catalogue.resolve("debian/12") == image
    assert (await catalogue.documents.images.named("debian/12")).id == image.id
    top = next(v for v in catalogue.view.volumes.values() if v.parent)
    assert len(await catalogue.pool.verify_chain(catalogue.view.volumes, top.id)) == 2


async def test_removal_goes_on_after_an_interruption(catalogue: Catalogue, tmp_path: Path) -> None:
    image = await add(catalogue, build(tmp_path / "b"))
    await catalogue.pool.write_copy("images", image)
    await catalogue.pool.write_copy("volumes", catalogue.view.volumes[image.volume])
    found = await catalogue.documents.images.require(image.id)
    await catalogue._retire(found.doc, found.revision)  # and the daemon died here
    with pytest.raises(UnknownImage):
        catalogue.resolve("debian/12")
    await catalogue.remove(image)
    await catalogue.remove(image)
    assert not catalogue.view.volumes
    assert os.listdir(catalogue.pool.layers.folder) == []
    assert os.listdir(catalogue.boot.folder) == []
    assert catalogue.pool.copies.keys == []
    assert await catalogue.documents.images.named("debian/12") is None


async def test_a_layer_that_others_lie_on_waits(catalogue: Catalogue, tmp_path: Path) -> None:
    image = await add(catalogue, build(tmp_path / "b"))
    guest = await launch(catalogue, image)
    gone = catalogue.documents.guests.delete_op(guest.id)
    await catalogue.view.wait_for(await catalogue.documents.store.commit([gone]))
    await catalogue.remove(image)
    assert catalogue.view.volumes[image.volume].note == DOOMED
    assert catalogue.pool.path(catalogue.view.volumes[image.volume]).exists()


async def test_nothing_is_removed_while_documents_are_quarantined(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    image = await add(catalogue, build(tmp_path / "b"))
    broken = Put(f"guests/{new_id()}", b"{}")
    await catalogue.view.wait_for(await catalogue.documents.store.commit([broken]))
    with pytest.raises(Conflict, match="cannot be read"):
        await catalogue.remove(image)
    assert catalogue.resolve("debian/12") == image


async def test_damaged_files_do_not_come_in(catalogue: Catalogue, tmp_path: Path) -> None:
    built = build(tmp_path / "b")
    digests = {"disk": "0" * 64, "kernel": "0" * 64, "initrd": "0" * 64}
    ids = {"image_id": new_id(), "volume_id": new_id()}
    with pytest.raises(InvalidInput):
        await catalogue.add_built(built, digests=digests, **ids)
    micro = build(tmp_path / "m", "micro", disk=False)
    with pytest.raises(InvalidInput, match="kernel"):
        await catalogue.add_built(micro, digests=digests, **ids)
    await catalogue.discard(**ids)
    assert not catalogue.view.images and not catalogue.view.volumes
    assert os.listdir(catalogue.pool.layers.folder) == []
    assert os.listdir(catalogue.boot.folder) == []


async def test_discarding_spares_what_has_documents(catalogue: Catalogue, tmp_path: Path) -> None:
    image = await add(catalogue, build(tmp_path / "b"))
    await catalogue.discard(image.id, image.volume)
    assert catalogue.boot_files(image.id) is not None
    assert catalogue.pool.path(catalogue.view.volumes[image.volume]).exists()


async def test_unknown_images_come_with_advice(catalogue: Catalogue, tmp_path: Path) -> None:
    with pytest.raises(UnknownImage) as caught:
        catalogue.resolve("debain/12")
    assert "Did you mean debian/12" in caught.value.hint
    assert "debian/12, micro" in caught.value.hint
    with pytest.raises(UnknownImage) as caught:
        catalogue.resolve("micro")
    assert caught.value.hint == "It can be built: guest image build micro"
    image = await add(catalogue, build(tmp_path / "m", "micro", disk=False))
    Path(catalogue.boot_files(image.id).kernel).unlink()
    with pytest.raises(NotFound, match="boot file"):
        catalogue.boot_files(image.id)
