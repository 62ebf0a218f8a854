"""Shared folders in the crash matrix: of a guest that is stopped, and of one that runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from guesthouse.model.job import Job
from guesthouse.model.sharing import ShareRequest
from tests.crash.claims import both, is_there, now_of, same_process, unchanged
from tests.crash.daemon_house import CrashHouse
from tests.crash.matrix import Snapshot
from tests.crash.trials import Trial, Verb, known
from tests.e2e.conftest import until

TARGET = "/srv/site"


# --- preparing ------------------------------------------------------------------------------------


def wish(house: CrashHouse) -> ShareRequest:
    """A folder of its own, outside of the file system that fills up."""
    source = house.folder / house.fresh()
    source.mkdir()
    (source / "page").write_text("here")
    return ShareRequest(source=str(source), target=TARGET)


def bare(house: CrashHouse, *, runs: bool) -> Trial:
    return known(house, house.launch("crash/disk", start=runs, ready=runs), wish(house))


def sharing(house: CrashHouse, *, runs: bool) -> Trial:
    wanted = wish(house)
    name = house.launch("crash/disk", start=runs, ready=runs, shares=(wanted,))
    if runs:
        until(lambda: len(servers(wanted)) == 1, say="it is served")
    return known(house, name, wanted)


# --- asking ---------------------------------------------------------------------------------------


def share(house: CrashHouse, trial: Trial) -> Job:
    return house.client.share(trial.name, trial.thing)


def unshare(house: CrashHouse, trial: Trial) -> Job:
    return house.client.unshare(trial.name, "site")


# --- telling --------------------------------------------------------------------------------------


def servers(wanted: ShareRequest) -> list[int]:
    """Pids of the file servers of that folder, whoever started them."""
    return [pid for pid, source in _served() if source == wanted.source]


def _served() -> Iterator[tuple[int, str]]:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if len(words) > 4 and words[3].endswith(b"shares/server/__main__.py"):
            yield int(process.name), str(json.loads(words[4])["source"])


def is_shared(now: Snapshot, trial: Trial) -> bool:
    wanted = trial.thing
    return is_there(now, trial) and [
        (one.source, one.target) for one in now_of(now, trial).spec.shares
    ] == [(wanted.source, wanted.target)]


def is_bare(now: Snapshot, trial: Trial) -> bool:
    return is_there(now, trial) and not now_of(now, trial).spec.shares


def is_served(now: Snapshot, trial: Trial) -> bool:
    return len(servers(trial.thing)) == 1


def nobody_serves(now: Snapshot, trial: Trial) -> bool:
    return not servers(trial.thing)


SHARE_VERBS: dict[str, Verb] = {
    "share": Verb("guest.share", partial(bare, runs=False), share, is_shared, unchanged),
    "share-live": Verb(
        "guest.share",
        partial(bare, runs=True),
        share,
        both(same_process, is_shared, is_served),
        both(same_process, is_bare, nobody_serves),
    ),
    "unshare": Verb("guest.unshare", partial(sharing, runs=False), unshare, is_bare, unchanged),
    # What was unmounted is mounted again.
    "unshare-live": Verb(
        "guest.unshare",
        partial(sharing, runs=True),
        unshare,
        both(same_process, is_bare, nobody_serves),
        both(same_process, is_shared, is_served),
    ),
}
