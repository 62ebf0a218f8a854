"""Looking at the host: what is kept, what is asked anew, and each capability's reason and cure."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
from pathlib import Path

import pytest

from guesthouse.errors import LaunchFailed, QemuMissing, QemuTooOld
from guesthouse.host import capabilities, cgroups, probe_kvm, probe_qemu
from guesthouse.host.firmware import find_ovmf
from guesthouse.host.probe import CACHE_FILE, HostProbe, probe
from guesthouse.host.probe_kvm import KvmVerdict
from guesthouse.model.host import Capability, HostFacts, QemuBinary

DEBIAN = {"ID": "debian"}


def facts(qemu: QemuBinary | None) -> HostFacts:
    return HostFacts(
        boot_id="b",
        kernel="6",
        os="Debian",
        cpus=2,
        memory=1 << 30,
        cgroups="v2",
        root=True,
        accelerator="tcg",
        accelerator_reason="",
        qemu=qemu,
        capabilities=(capabilities.of_qemu(qemu, "", DEBIAN),),
        probed_at=0.0,
    )


def test_missing_qemu_names_the_package() -> None:
    with pytest.raises(QemuMissing) as caught:
        probe_qemu.require_qemu(facts(None))
    assert "apt install qemu-system-x86" in caught.value.hint


def test_old_qemu_is_refused() -> None:
    old = QemuBinary(path="/q", version=(6, 2, 0), machine="pc-q35-6.2")
    with pytest.raises(QemuTooOld, match=r"6\.2\.0"):
        probe_qemu.require_qemu(facts(old))
    assert not capabilities.of_qemu(old, "", DEBIAN).available
    fine = QemuBinary(path="/q", version=(7, 2, 0), machine="pc-q35-7.2")
    assert probe_qemu.require_qemu(facts(fine)) is fine


def test_newest_machine_is_found_by_number_not_by_spelling() -> None:
    names = ["pc-q35-9.2", "pc-q35-10.0", "pc-i440fx-10.0", "q35", "pc-q35-4.0.1", "pc-q35-4.0"]
    assert probe_qemu.q35_machines(names) == (
        "pc-q35-10.0",
        "pc-q35-9.2",
        "pc-q35-4.0.1",
        "pc-q35-4.0",
    )


def test_features() -> None:
    schema = [
        {"meta-type": "enum", "name": "17", "values": ["none", "user", "tap", "hubport"]},
        {"meta-type": "command", "name": "user"},
        {"meta-type": "object", "name": "user", "members": []},
    ]
    assert probe_qemu.features(schema, [{"name": "device"}]) == {
        "user-network",
        "kvm-device-fd",
    }
    assert probe_qemu.features(schema[2:], [{"name": "kernel-irqchip"}]) == set()


@pytest.mark.qemu
async def test_probe_of_this_host_and_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await probe(tmp_path)
    assert first.qemu is not None
    assert first.qemu.machine.startswith("pc-q35-")
    assert first.accelerator in {"kvm", "tcg"}
    assert first.memory > 1 << 28
    names = [c.name for c in first.capabilities]
    assert names == sorted(set(names), key=names.index)
    assert {
        "qemu",
        "kvm",
        "qemu-img",
        "userns",
        "subids",
        "tun",
        "cgroups",
        "ovmf",
        "virtiofs",
    } < set(names)
    assert all(c.available or c.reason for c in first.capabilities)

    asked: list[Path] = []
    examine = probe_qemu.examine

    async def counted(binary: Path) -> QemuBinary:
        asked.append(binary)
        return await examine(binary)

    monkeypatch.setattr(probe_qemu, "examine", counted)
    again = await probe(tmp_path)
    assert (again.qemu, again.accelerator) == (first.qemu, first.accelerator)
    assert not asked
    await probe(tmp_path, refresh=True)
    assert len(asked) == 1
    (tmp_path / CACHE_FILE).write_text('{"format": 1')
    assert (await probe(tmp_path)).qemu == first.qemu
    assert len(asked) == 2


@pytest.mark.qemu
async def test_another_binary_is_asked_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrapper that is touched counts as upgraded."""
    real = probe_qemu.find_qemu(os.environ)
    wrapper = tmp_path / "qemu"
    wrapper.write_text(f'#!/bin/sh\necho run >> {tmp_path}/runs\nexec {real} "$@"\n')
    wrapper.chmod(0o755)
    env = {"GUESTHOUSE_QEMU": str(wrapper), "PATH": os.environ["PATH"]}
    none = tmp_path / "no-kvm"
    for _ in range(2):
        found = await probe(tmp_path, env=env, kvm=none)
    assert found.qemu is not None
    assert found.qemu.path == str(wrapper)
    assert (tmp_path / "runs").read_text() == "run\n"
    os.utime(wrapper, ns=(1, 1))
    await probe(tmp_path, env=env, kvm=none)
    assert (tmp_path / "runs").read_text() == "run\nrun\n"


async def test_host_without_qemu_is_reported(tmp_path: Path) -> None:
    found = await probe(tmp_path, env={"PATH": str(tmp_path)})
    assert found.qemu is None
    assert found.accelerator == "tcg"
    qemu = found.capability("qemu")
    assert qemu is not None
    assert not qemu.available
    assert "PATH" in qemu.reason


@pytest.mark.parametrize("chosen", ["/nonexistent/qemu", "no-such-qemu"])
async def test_a_setting_that_leads_nowhere_is_named(tmp_path: Path, chosen: str) -> None:
    found = await probe(tmp_path, env={"GUESTHOUSE_QEMU": chosen, "PATH": str(tmp_path)})
    with pytest.raises(QemuMissing) as caught:
        probe_qemu.require_qemu(found)
    assert f"GUESTHOUSE_QEMU is '{chosen}'" in caught.value.message
    assert "PATH" not in caught.value.message
    assert "GUESTHOUSE_QEMU" in caught.value.hint
    assert "install" not in caught.value.hint


async def test_qemu_that_does_not_run_is_reported(tmp_path: Path) -> None:
    broken = tmp_path / "qemu"
    broken.write_text("#!/bin/sh\necho libfoo.so.3 is missing >&2\nexit 127\n")
    broken.chmod(0o755)
    found = await probe(tmp_path, env={"GUESTHOUSE_QEMU": str(broken), "PATH": "/bin"})
    qemu = found.capability("qemu")
    assert found.qemu is None
    assert qemu is not None
    assert "libfoo.so.3" in qemu.reason
    with pytest.raises(QemuMissing, match=r"libfoo\.so\.3"):
        probe_qemu.require_qemu(found)


@pytest.mark.qemu
async def test_kvm_verdicts_are_kept_only_when_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "kvm"
    device.touch()
    device.chmod(0o666)
    tried: list[str] = []

    async def judged(*_args: object, **_named: object) -> KvmVerdict:
        tried.append("once")
        settled = len(tried) > 1
        return KvmVerdict(verdict="cannot-run", reason=f"{len(tried)}", settled=settled)

    monkeypatch.setattr(probe_kvm, "judge", judged)
    reasons = [(await probe(tmp_path, kvm=device)).accelerator_reason[-1] for _ in range(3)]
    assert reasons == ["1", "2", "2"]
    device.unlink()
    gone = await probe(tmp_path, kvm=device)
    assert "has no" in gone.accelerator_reason


async def test_unwritable_cache_does_no_harm(tmp_path: Path) -> None:
    await probe(tmp_path / "not-there", env={"PATH": "/usr/bin:/bin"}, kvm=tmp_path / "none")


async def test_examine_quotes_a_program_that_is_no_qemu() -> None:
    with pytest.raises(LaunchFailed, match="does not run"):
        await probe_qemu.examine(Path("/bin/false"))


MOUNTS = "30 20 0:26 {root} {mount} rw - {kind} {kind} rw{options}"


def mount(kind: str, where: str, options: str = "", root: str = "/") -> str:
    return MOUNTS.format(kind=kind, mount=where, options=options, root=root)


@pytest.mark.parametrize(
    ("mounts", "layout"),
    [
        ([mount("cgroup2", "/sys/fs/cgroup")], "v2"),
        ([mount("cgroup", "/sys/fs/cgroup/cpu", ",cpu")], "v1"),
        ([mount("cgroup", "/c", ",cpu"), mount("cgroup2", "/c/unified")], "hybrid"),
        ([mount("ext4", "/")], "none"),
    ],
)
def test_cgroup_layouts(mounts: list[str], layout: str) -> None:
    assert cgroups.layout("\n".join(mounts)) == layout


def test_own_groups_v2(tmp_path: Path) -> None:
    ours = tmp_path / "user.slice" / "ours"
    ours.mkdir(parents=True)
    (ours / "cgroup.controllers").write_text("cpu memory pids\n")
    found = cgroups.own_groups(mount("cgroup2", str(tmp_path)), "0::/user.slice/ours\n")
    assert found == {"cpu": ours, "memory": ours}
    assert cgroups.writable(found)
    (ours / "cgroup.controllers").write_text("pids\n")
    few = cgroups.own_groups(mount("cgroup2", str(tmp_path)), "0::/user.slice/ours\n")
    assert not cgroups.writable(few)


def test_own_groups_v1_and_container(tmp_path: Path) -> None:
    mounts = "\n".join(
        [
            mount("cgroup", f"{tmp_path}/cpu", ",cpu,cpuacct", root="/box"),
            mount("cgroup", f"{tmp_path}/memory", ",memory"),
        ]
    )
    found = cgroups.own_groups(mounts, "3:cpu,cpuacct:/box/a\n2:memory:/b\n0::/x\n")
    assert found == {"cpu": tmp_path / "cpu/a", "memory": tmp_path / "memory/b"}
    assert not cgroups.writable(found)


def test_ovmf_prefers_the_4m_build(tmp_path: Path) -> None:
    assert find_ovmf(tmp_path) is None
    cure = capabilities.of_ovmf(DEBIAN, tmp_path)
    assert (cure.available, cure.cure) == (False, "sudo apt install ovmf")
    folder = tmp_path / "usr/share/OVMF"
    folder.mkdir(parents=True)
    for name in ("OVMF_CODE.fd", "OVMF_VARS.fd", "OVMF_CODE_4M.fd"):
        (folder / name).touch()
    found = find_ovmf(tmp_path)
    assert found is not None
    assert found.code.name == "OVMF_CODE.fd"  # the 4 MiB build lacks its variables
    (folder / "OVMF_VARS_4M.fd").touch()
    found = find_ovmf(tmp_path)
    assert found is not None
    assert found.code.name == "OVMF_CODE_4M.fd"


@pytest.mark.parametrize(
    ("values", "cure"),
    [
        ({"kernel.unprivileged_userns_clone": "0"}, "kernel.unprivileged_userns_clone=1"),
        ({"user.max_user_namespaces": "0"}, "user.max_user_namespaces=65536"),
        (
            {
                "user.max_user_namespaces": "63000",
                "kernel.apparmor_restrict_unprivileged_userns": "1",
            },
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        ({}, "seccomp"),
    ],
)
def test_cure_of_forbidden_user_namespaces(values: dict[str, str], cure: str) -> None:
    assert cure in capabilities.userns_cure(values)


async def test_user_namespaces_are_really_tried() -> None:
    argv = ["unshare", "--user", "--map-root-user", "true"]
    done = await asyncio.to_thread(subprocess.run, argv, check=False, capture_output=True)
    assert (await capabilities.of_userns()).available is (done.returncode == 0)


async def test_user_namespaces_without_powers_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under Ubuntu's AppArmor: the namespace is made and then everything is refused."""
    fake = tmp_path / "unshare"
    fake.write_text("#!/bin/sh\necho 'PermissionError: Operation not permitted' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = await capabilities.of_userns()
    assert not found.available
    assert "Operation not permitted" in found.reason
    assert found.cure


def test_programs_and_their_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    absent = capabilities.of_program("x", "no-such-program", "x-utils", {"ID": "mint"})
    assert absent.cure == "Install what this distribution calls x-utils."
    ubuntu = {"ID": "pop", "ID_LIKE": "ubuntu debian"}
    assert capabilities.of_program("x", "no-such-program", "x-utils", ubuntu).cure == (
        "sudo apt install x-utils"
    )
    program = tmp_path / "no-such-program"
    program.touch(mode=0o755)
    assert capabilities.of_program("x", "no-such-program", "x-utils", DEBIAN).available


def test_tun(tmp_path: Path) -> None:
    absent = capabilities.of_tun(tmp_path / "tun")
    assert (absent.available, absent.cure) == (False, "sudo modprobe tun")
    (tmp_path / "tun").touch()
    assert capabilities.of_tun(tmp_path / "tun").available


def test_os_release() -> None:
    text = '# c\nID=debian\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nNOTHING\n'
    found = capabilities.os_release(text)
    assert found["PRETTY_NAME"] == "Debian GNU/Linux 12 (bookworm)"
    assert found["ID"] == "debian"


@pytest.mark.qemu
async def test_cache_file_is_replaced_whole(tmp_path: Path) -> None:
    await probe(tmp_path, kvm=tmp_path / "none")
    assert [p.name for p in tmp_path.iterdir()] == [CACHE_FILE]
    assert stat.S_ISREG((tmp_path / CACHE_FILE).stat().st_mode)


async def test_what_others_find_is_among_the_facts(tmp_path: Path) -> None:
    answers = [Capability(name="vlan", available=a, reason="tried") for a in (False, True)]
    probed = HostProbe(tmp_path, await probe(tmp_path))

    async def look() -> tuple[Capability, ...]:
        return (answers.pop(0),)

    def vlan(facts: HostFacts) -> list[bool]:
        return [one.available for one in facts.capabilities if one.name == "vlan"]

    await probed.look_too(look)
    assert vlan(probed()) == [False]
    assert vlan(await probed.refresh()) == vlan(probed()) == [True]
