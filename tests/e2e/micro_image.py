"""The micro image for tests below the daemon, built once into the user's own cache."""

from __future__ import annotations

import asyncio
import os

from guesthouse.host import userns
from guesthouse.images.build import BuildRequest, build, build_key
from guesthouse.images.cache import BuildCache
from guesthouse.images.spec import BuiltImage
from guesthouse.model.folders import resolve
from guesthouse.model.image import BootFiles


async def micro() -> BuiltImage:
    request = BuildRequest(name="micro")
    key = await asyncio.to_thread(build_key, request)
    folders = resolve(os.environ, uid=os.geteuid())
    folders.build_cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    cache = BuildCache(folders.build_cache)
    async with cache.lock(key):
        entry = await cache.lookup(key)
        if entry is not None:
            return entry.built
        folder = await cache.begin(key)
        try:
            built = await build(request, folder, progress=lambda _fraction, _doing: None)
            return (await cache.store(built)).built
        finally:
            await userns.remove_tree(folder)


async def micro_boot_files() -> BootFiles:
    built = await micro()
    return BootFiles(
        kernel=str(built.kernel),
        initrd=str(built.initrd),
        kernel_digest="",
        initrd_digest="",
        cmdline=built.cmdline,
    )
