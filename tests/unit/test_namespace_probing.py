"""What a host lacks for a house's namespace, each with its cure."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import msgspec
import pytest

from guesthouse.host.namespace import holder, probing
from guesthouse.host.namespace.holder import Failure
from guesthouse.host.namespace.idplan import personal_plan
from guesthouse.host.namespace.probing import Situation, apparmor_cure, capabilities, explain
from guesthouse.host.spawn import run
from guesthouse.model.host import Capability

from .namespace_house import FALLBACKS, need_ids

DEBIAN = {"ID": "debian"}
AT = Situation(
    am_root=False,
    switches={
        "user.max_user_namespaces": "96364",
        "user.max_net_namespaces": "96364",
        "user.max_mnt_namespaces": "96364",
    },
    no_new_privs=False,
    python="/usr/bin/python3.12",
    release=DEBIAN,
)
KEEP = " (and keep it in /etc/sysctl.d/)"
APPARMOR = {"kernel.apparmor_restrict_unprivileged_userns": "1"}


def at(**switches: str) -> Situation:
    named = {name.replace("__", "."): value for name, value in switches.items()}
    return msgspec.structs.replace(AT, switches={**AT.switches, **named})


NO_USER = at(user__max_user_namespaces="0")
NO_NET = at(user__max_net_namespaces="0", user__max_mnt_namespaces="0")
CASES = [
    (
        Failure("unshare", errno.ENOSPC, ""),
        NO_USER,
        "user.max_user_namespaces forbids it",
        f"sudo sysctl -w user.max_user_namespaces=65536{KEEP}",
    ),
    (
        Failure("unshare", errno.ENOSPC, ""),
        NO_NET,
        "user.max_net_namespaces and user.max_mnt_namespaces forbid it",
        f"sudo sysctl -w user.max_net_namespaces=65536 user.max_mnt_namespaces=65536{KEEP}",
    ),
    (Failure("unshare", errno.ENOSPC, ""), AT, "as many namespaces as it may", "lsns"),
    (
        Failure("unshare", errno.EPERM, ""),
        at(kernel__unprivileged_userns_clone="0"),
        "kernel.unprivileged_userns_clone forbids it",
        f"sudo sysctl -w kernel.unprivileged_userns_clone=1{KEEP}",
    ),
    (Failure("unshare", errno.EPERM, ""), AT, "as in a container", "seccomp"),
    (
        Failure("unshare", errno.EPERM, ""),
        msgspec.structs.replace(AT, am_root=True),
        "this root may not make it",
        "CAP_SYS_ADMIN and CAP_NET_ADMIN",
    ),
    (
        Failure("mounts", errno.EACCES, ""),
        msgspec.structs.replace(AT, am_root=True, switches=APPARMOR),
        "this root may not do what it is for (mounts:",
        "allow mounts",
    ),
    (Failure("unshare", errno.EINVAL, ""), AT, "this kernel has no", "CONFIG_USER_NS"),
    # Ubuntu: the namespace is made and mapped, and its root may do nothing.
    *(
        (
            Failure(step, number, ""),
            msgspec.structs.replace(AT, switches=APPARMOR),
            "AppArmor forbids it",
            apparmor_cure("/usr/bin/python3.12"),
        )
        for step, number in [
            ("identity", errno.EPERM),
            ("mounts", errno.EACCES),
            ("run", errno.EPERM),
            ("loopback", errno.EPERM),
            ("unshare", errno.EACCES),
        ]
    ),
    (
        Failure("mounts", errno.EPERM, ""),
        AT,
        "may not do what it is for (mounts:",
        "/proc and /sys",
    ),
    (Failure("forwarding", errno.EROFS, ""), AT, "/proc/sys may not be written", "systempaths"),
    (Failure("newuidmap", 127, "x"), AT, "newuidmap is not installed", "sudo apt install uidmap"),
    (
        Failure("newgidmap", 0, "newgidmap: gid range [1-2) -> [5-6) not allowed"),
        AT,
        "newgidmap refuses the ids",
        "/etc/subgid",
    ),
    (
        Failure("newuidmap", 0, "newuidmap: write to uid_map failed: Operation not permitted"),
        AT,
        "newuidmap failed: newuidmap: write to uid_map failed",
        "sudo apt install --reinstall uidmap",
    ),
    (
        Failure("newuidmap", 0, "newuidmap: write to uid_map failed: Operation not permitted"),
        msgspec.structs.replace(AT, no_new_privs=True),
        "may not gain privileges",
        "NoNewPrivileges=",
    ),
    (Failure("record", errno.ENOSPC, ""), AT, "its record cannot be written (No space", "runtime"),
    (Failure("holder", 0, "it died at once"), AT, "it died at once", "guest doctor"),
]


@pytest.mark.parametrize(("failure", "situation", "reason", "cure"), CASES)
def test_each_lack_has_its_cure(
    failure: Failure, situation: Situation, reason: str, cure: str
) -> None:
    lacks = explain(failure, situation)
    assert reason in lacks.message
    assert cure in lacks.hint
    assert lacks.detail["capability"] == "house-namespace"


def test_the_profile_for_apparmor_is_printed_as_a_file() -> None:
    command = apparmor_cure("/usr/bin/python3.12")
    text = command.split("'")[1].replace("\\n", "\n")
    assert text == (
        "abi <abi/4.0>,\n"
        "include <tunables/global>\n"
        "profile guesthouse /usr/bin/python3.12 flags=(unconfined) {\n"
        "  userns,\n"
        "}\n"
    )
    assert command.endswith("sudo apparmor_parser -r /etc/apparmor.d/guesthouse")


def test_a_tap_that_cannot_be_made_is_another_capability() -> None:
    lacks = explain(Failure("tap", errno.ENOENT, ""), AT)
    assert lacks.detail["capability"] == "tun"
    assert lacks.hint


# --- on this host -------------------------------------------------------------------------------


def named(found: tuple[Capability, ...]) -> dict[str, Capability]:
    return {capability.name: capability for capability in found}


@pytest.mark.rootless
async def test_this_host_is_looked_at_by_making_one() -> None:
    need_ids()
    found = named(await capabilities())
    assert set(found) == {"house-namespace", "container-ids", "tun", "network-tools"}
    assert found["house-namespace"].available, found["house-namespace"].reason
    assert found["network-tools"].available, found["network-tools"].reason
    opens = os.access("/dev/net/tun", os.R_OK | os.W_OK)
    assert found["tun"].available is opens
    for capability in found.values():
        assert capability.reason
        assert bool(capability.cure) is not capability.available, capability


@pytest.mark.rootless
async def test_without_ids_there_is_a_line_to_add(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        # Root has the range that nobody claims, which is enough for guests only.
        found = named(await capabilities(tmp_path))
        assert found["house-namespace"].available
        assert "guesthouse:100000:262144" in found["container-ids"].cure
        return
    found = named(await capabilities(tmp_path))
    for name in ("house-namespace", "container-ids"):
        assert not found[name].available
        assert ":100000:65536 | sudo tee -a /etc/subuid /etc/subgid" in found[name].cure


@pytest.mark.rootless
async def test_missing_tools_are_named_with_their_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "guesthouse.host.namespace.probing.tool_environment", lambda: {"PATH": str(tmp_path)}
    )
    found = probing.of_tools(DEBIAN)
    assert not found.available
    assert found.cure == "sudo apt install iproute2 nftables util-linux"
    assert "ip, nft, nsenter" in found.reason


TRIAL = """
import asyncio
from guesthouse.host.namespace import holder, probing
from guesthouse.host.namespace.idplan import Extent, IdPlan
async def main():
    ids = (Extent(0, 0, 1),)
    found = await holder.attempt(IdPlan(uids=ids, gids=ids, mapped=%s))
    if not isinstance(found, holder.Failure) or found.step == "tap":
        raise SystemExit(f"it works: {found}")
    why = probing.explain(found, probing.situation())
    print(why.message, "|", why.hint)
asyncio.run(main())
"""
# As root of a user namespace of the test's own, much may be forbidden that is of the host.
AS_ROOT_OF_MY_OWN = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]


@pytest.mark.rootless
@pytest.mark.parametrize("kind", ["user", "net", "mnt"])
async def test_a_limit_of_zero_is_found_out_for_real(kind: str) -> None:
    script = f'echo 0 > /proc/sys/user/max_{kind}_namespaces && exec "$@"'
    argv = [*AS_ROOT_OF_MY_OWN, script, "sh", sys.executable, "-c", TRIAL % True]
    done = await run(argv)
    assert f"user.max_{kind}_namespaces forbids it" in done.text
    assert f"| sudo sysctl -w user.max_{kind}_namespaces=65536" in done.text


@pytest.mark.rootless
@pytest.mark.parametrize(
    ("script", "reason", "cure"),
    [
        (
            "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec",
            "/proc/sys may not be written",
            "systempaths=unconfined",
        ),
        (
            "exec setpriv --bounding-set=-sys_admin --inh-caps=-all --",
            "this root may not make it (Operation not permitted)",
            "CAP_SYS_ADMIN",
        ),
        (
            "exec setpriv --bounding-set=-net_admin --inh-caps=-all --",
            "this root may not do what it is for (loopback: Operation not permitted)",
            "CAP_NET_ADMIN",
        ),
    ],
    ids=["read-only", "sys_admin", "net_admin"],
)
async def test_what_containers_forbid_is_found_out_for_real(
    script: str, reason: str, cure: str
) -> None:
    argv = [*AS_ROOT_OF_MY_OWN, f'{script} "$@"', "sh", sys.executable, "-c", TRIAL % False]
    done = await run(argv)
    assert reason in done.text
    assert cure in done.text.partition("|")[2]


@pytest.mark.rootless
async def test_masks_over_sys_cost_only_its_view_of_the_network(tmp_path: Path) -> None:
    code = """
import asyncio, sys
from pathlib import Path
from guesthouse.host.namespace.house import HouseNamespace
async def main():
    house = HouseNamespace(Path(sys.argv[1]))
    print(*(await house.ensure()).lacks)
    print((await house.run(["ip", "-o", "link"])).text)
    await house.dissolve()
asyncio.run(main())
"""
    # The mask is locked only for those in a user namespace below the one that made it.
    script = 'mount -t tmpfs mask /sys/kernel && exec unshare --user --map-root-user "$@"'
    argv = [*AS_ROOT_OF_MY_OWN, script, "sh", sys.executable, "-c", code, str(tmp_path)]
    lacks, links = (await run(argv)).text.split("\n", 1)
    assert "sysfs" in lacks.split()
    names = {line.split(":")[1].strip().partition("@")[0] for line in links.splitlines() if line}
    assert names - FALLBACKS == {"lo"}


@pytest.mark.rootless
async def test_ids_that_are_not_ours_are_refused_for_real() -> None:
    table = "ann:3000000000:65536\n"
    plan = personal_plan(("ann",), uid=os.getuid(), gid=os.getgid(), subuid=table, subgid=table)
    found = await holder.attempt(plan)
    assert isinstance(found, Failure)
    assert found.step == "newuidmap"
    why = explain(found, probing.situation())
    assert "newuidmap refuses the ids" in why.message
    assert "/etc/subuid" in why.hint
