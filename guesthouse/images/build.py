"""Builds the house's own images from Debian's packages."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from guesthouse.errors import InvalidInput, UnknownImage
from guesthouse.host import userns
from guesthouse.images import debian, micro
from guesthouse.images.recipes import FILES, RECIPES, DebianRecipe, Recipe
from guesthouse.images.spec import BuildRequest, BuiltImage, Progress, Workplace
from guesthouse.images.toolrun import ToolRunner

__all__ = ["BuildRequest", "BuiltImage", "Progress", "build", "build_key", "known"]

# The code that shapes the result; a change in any of them is another image.
_BUILDERS = (
    "build.py", "cpio.py", "debian.py", "disk.py", "elf.py", "gpt.py", "kernel.py", "micro.py",
    "recipes.py",
)  # fmt: skip


def known() -> list[tuple[str, str]]:
    """The names that can be built, each with a line about it."""
    return [(recipe.name, recipe.description) for recipe in RECIPES]


def build_key(request: BuildRequest) -> str:
    """SHA-256 over all that shapes the image: its recipe, our files for guests, our builders.

    Mirrors and the day's package versions are not in it. Raises UnknownImage, InvalidInput.
    """
    digest = hashlib.sha256(msgspec.json.encode(_recipe(request), order="deterministic"))
    here = Path(__file__).parent
    inputs = [here / name for name in _BUILDERS]
    inputs += sorted(path for path in FILES.rglob("*") if path.is_file())
    for path in inputs:
        content = path.read_bytes()
        digest.update(f"\n{path.relative_to(here)} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


async def build(
    request: BuildRequest,
    into: Path,
    *,
    mirrors: Sequence[str] = (),
    progress: Progress,
    cancelled: asyncio.Event | None = None,
) -> BuiltImage:
    """Builds an image into the empty folder `into`, as root or as an ordinary user.

    `mirrors` are whole lines for sources.list, see `sources.lines_for`. When it fails or is
    cancelled nothing is left but `build.log`, and no process runs on.

    Raises UnknownImage, InvalidInput, HostLacks, BuildFailed, Cancelled, NoSpace.
    """
    recipe = _recipe(request)
    key = await asyncio.to_thread(build_key, request)
    work = into / "work"
    place = Workplace(into=into, work=work, mirrors=tuple(mirrors))
    (work / "tmp").mkdir(parents=True)
    run = ToolRunner(into / "build.log", cancelled, {"TMPDIR": str(work / "tmp")})
    done = False
    try:
        if isinstance(recipe, DebianRecipe):
            facts = await debian.build(recipe, place, run, progress)
        else:
            facts = await micro.build(recipe, place, run, progress)
        run.check_cancelled()
        done = True
    finally:
        await asyncio.shield(_clean(into, work, keep_results=done))
    disk = into / "disk.qcow2"
    return BuiltImage(
        name=recipe.name,
        build_key=key,
        disk=disk if isinstance(recipe, DebianRecipe) else None,
        kernel=into / "kernel",
        initrd=into / "initrd",
        cmdline=recipe.cmdline,
        virtual_size=recipe.size if isinstance(recipe, DebianRecipe) else 0,
        os=dict(recipe.os),
        facts=facts,
        seed=recipe.seed,
    )


def _recipe(request: BuildRequest) -> Recipe:
    for recipe in RECIPES:
        if recipe.name == request.name:
            if recipe.architecture != request.architecture:
                raise InvalidInput(
                    f"{request.name} cannot be built for {request.architecture}.",
                    hint=f"It can be built for {recipe.architecture}.",
                    field="architecture",
                )
            return recipe
    raise UnknownImage(
        f"There is no recipe for an image {request.name!r}.",
        hint=f"These can be built: {', '.join(recipe.name for recipe in RECIPES)}.",
    )


async def _clean(into: Path, work: Path, *, keep_results: bool) -> None:
    """Removes the work folder, whose files may belong to our sub-ids, and unwanted results."""
    await userns.remove_tree(work)
    if not keep_results:
        for name in ("disk.qcow2", "kernel", "initrd"):
            (into / name).unlink(missing_ok=True)
    shutil.rmtree(work, ignore_errors=True)
