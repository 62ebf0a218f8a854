"""The micro guest: a kernel and an initrd with busybox, the guest agent and dropbear.

It has no disk, answers in about two seconds even under software emulation and lives in less than
128 MiB. Its packages are only unpacked and its archive is written by ourselves, so no privilege is
needed at all. `files/micro` holds its scripts; `files/common/guesthouse-ssh` carries ssh.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path

from guesthouse.errors import BuildFailed
from guesthouse.images import sources
from guesthouse.images.cpio import Archive
from guesthouse.images.elf import library_closure
from guesthouse.images.kernel import Modules, newest_kernel
from guesthouse.images.recipes import FILES, MicroRecipe
from guesthouse.images.spec import Progress, Workplace, part
from guesthouse.images.toolrun import ToolRunner, require

_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_PERL = ("strict.pm", "warnings.pm", "warnings/register.pm", "Carp.pm", "Errno.pm", "Exporter.pm",
         "Exporter/Heavy.pm", "XSLoader.pm", "Fcntl.pm", "Socket.pm", "Config.pm", "vars.pm",
         "auto/Fcntl/Fcntl.so", "auto/Socket/Socket.so")  # fmt: skip
_SCRIPTS = ("boot", "device", "devices", "dhcp", "dhcp6", "network", "seed")


async def build(
    recipe: MicroRecipe, place: Workplace, run: ToolRunner, progress: Progress
) -> dict[str, str]:
    """Writes `kernel` and `initrd`; returns the facts. Raises what ToolRunner raises."""
    require("mmdebstrap", "apt-get")
    sources.require_keyring()
    tree = place.work / "tree"
    await _unpack(recipe, tree, run, place.mirrors, part(progress, 0.0, 0.8))
    progress(0.8, "writing the initrd")
    facts = await asyncio.to_thread(_assemble, recipe, tree, place.into)
    progress(1.0, "the micro guest is ready")
    return facts


async def _unpack(
    recipe: MicroRecipe, tree: Path, run: ToolRunner, mirrors: Sequence[str], progress: Progress
) -> None:
    phases = {
        "running apt-get update": (0.05, "reading the package lists"),
        "downloading packages": (0.3, "downloading packages"),
        "extracting archives": (0.7, "unpacking packages"),
        "cleaning package lists": (0.95, "unpacking packages"),
    }

    def on_line(line: str) -> None:
        for mark, (fraction, doing) in phases.items():
            if mark in line:
                progress(fraction, doing)

    progress(0.0, "preparing")
    # chrootless: this variant runs nothing of the packages, so it may run as anybody. From 1.5 on
    # (Debian 13) mmdebstrap refuses that to root, for the sake of variants that run the packages'
    # scripts on the host; older ones pass over a skip that they do not know.
    await run.run(
        [
            "mmdebstrap",
            "--variant=extract",
            "--mode=chrootless",
            "--skip=check/chrootless",
            f"--architectures={recipe.architecture}",
            "--format=directory",
            f"--include={','.join(recipe.packages)}",
            recipe.suite,
            str(tree),
            *sources.lines_for(recipe.suite, mirrors),
        ],
        doing="unpacking the packages",
        on_line=on_line,
    )


def _assemble(recipe: MicroRecipe, tree: Path, into: Path) -> dict[str, str]:
    version, kernel = newest_kernel(tree)
    archive = Archive()
    _add_system(archive, recipe)
    _add_programs(archive, tree)
    modules = _add_modules(archive, tree, version, recipe.modules)
    kernel_copy, initrd = into / "kernel", into / "initrd"
    kernel_copy.write_bytes(kernel.read_bytes())
    size = archive.write(initrd)
    for path in (kernel_copy, initrd):
        path.chmod(0o444)
    return {"kernel": version, "modules": str(modules), "initrd_bytes": str(size)}


def _add_system(archive: Archive, recipe: MicroRecipe) -> None:
    """The skeleton: folders, accounts, scripts."""
    for name in ("bin", "sbin", "lib", "lib64"):
        archive.link(name, f"usr/{name}")
    archive.link("init", "bin/busybox")  # busybox acts as init under that name
    for folder in ("dev", "proc", "sys", "run", "mnt", "etc/dropbear", "var/log", "home"):
        archive.folder(folder)
    archive.folder("tmp", 0o1777)
    archive.folder("root", 0o700)
    archive.link("var/run", "../run")
    # Before devtmpfs is mounted init opens this one.
    archive.character_device("dev/console", 5, 1, 0o600)
    archive.file("etc/passwd", b"root:*:0:0:root:/root:/bin/sh\n")
    archive.file("etc/group", b"root:x:0:\ntty:x:5:\n")
    archive.file("etc/shells", b"/bin/sh\n")
    archive.file("etc/hostname", b"micro\n")
    archive.file("etc/hosts", b"127.0.0.1\tlocalhost\n::1\tlocalhost\n")
    archive.file("etc/os-release", os_release(recipe).encode())
    micro = FILES / "micro"
    archive.file("etc/inittab", (micro / "inittab").read_bytes())
    archive.file("etc/profile", (micro / "profile").read_bytes())
    for name in _SCRIPTS:
        archive.file(f"etc/guesthouse/{name}", (micro / name).read_bytes(), 0o755)
    archive.file("etc/acpi/PWRF/00000080", (micro / "power").read_bytes(), 0o755)
    archive.file("usr/sbin/shutdown", (micro / "shutdown").read_bytes(), 0o755)
    agent = (FILES / "common" / "guesthouse-ssh").read_bytes()
    archive.file("usr/sbin/guesthouse-ssh", agent, 0o755)


def os_release(recipe: MicroRecipe) -> str:
    """What os-release(5) says inside the guest."""
    return "".join(
        f'{name}="{value}"\n'
        for name, value in (
            ("ID", recipe.os["id"]),
            ("NAME", "Guesthouse micro"),
            ("VERSION_ID", recipe.os["version"]),
            ("PRETTY_NAME", recipe.os["pretty"]),
        )
    )


def _add_programs(archive: Archive, tree: Path) -> None:
    folders = [tree / place for place in (_LIBRARIES, _LIBRARIES.removeprefix("usr/"))]
    loader = [tree / "lib64", tree / "usr/lib64"]
    programs = {
        "usr/sbin/qemu-ga": tree / "usr/sbin/qemu-ga",
        "usr/sbin/dropbear": tree / "usr/sbin/dropbear",
        "usr/bin/perl": tree / "usr/bin/perl",
        "usr/bin/sshfs": tree / "usr/bin/sshfs",
    }
    busybox = _first(tree / "bin/busybox", tree / "usr/bin/busybox")
    for path, source in {**programs, "usr/bin/busybox": busybox}.items():
        archive.file(path, _first(source).read_bytes(), 0o755)
    for name, source in library_closure(programs.values(), [*folders, *loader]).items():
        where = "usr/lib64" if name.startswith("ld-linux") else _LIBRARIES
        archive.file(f"{where}/{name}", source.read_bytes(), 0o755)
    for name in _PERL:
        source = tree / _LIBRARIES / "perl-base" / name
        if source.is_file():
            archive.file(f"{_LIBRARIES}/perl-base/{name}", source.read_bytes())
    for applet in _applets(busybox.read_bytes()):
        if f"usr/sbin/{applet}" not in archive and f"usr/bin/{applet}" not in archive:
            archive.link(f"usr/bin/{applet}", "busybox")


def _applets(busybox: bytes) -> list[str]:
    """The names busybox answers to: one run of NUL-ended words in its data, sorted, from "[" on."""
    match = re.search(rb"\0((?:\[\0)(?:\[\[\0)(?:[a-z][a-z0-9_.-]*\0)+)", busybox)
    names = match.group(1).decode().rstrip("\0").split("\0") if match else []
    if "sh" not in names or "init" not in names:
        raise BuildFailed("The list of applets was not found in busybox.")
    return names


def _first(*places: Path) -> Path:
    for place in places:
        if place.is_file():
            return place
    raise BuildFailed(f"{places[0].name} is missing from the unpacked packages.")


def _add_modules(archive: Archive, tree: Path, version: str, names: Sequence[str]) -> int:
    """The modules, and the indexes that modprobe reads. Returns how many there are."""
    modules = Modules(tree, version)
    home = f"usr/lib/modules/{version}"
    dependencies: list[str] = []
    aliases: list[str] = []
    for name in modules.closure(names):
        archive.file(f"{home}/{modules.path(name)}", modules.content(name))
        # modprobe loads this list from its end, so the deepest need stands last.
        needed = [one for one in reversed(modules.closure([name])) if one != name]
        paths = " ".join(modules.path(one) for one in needed)
        dependencies.append(f"{modules.path(name)}: {paths}".rstrip() + "\n")
        aliases.extend(f"alias {alias} {name}\n" for alias in modules.aliases(name))
    archive.file(f"{home}/modules.dep", "".join(dependencies).encode())
    archive.file(f"{home}/modules.alias", "".join(aliases).encode())
    return len(dependencies)
