"""The operations of the crash matrix: how each is prepared, asked for, and told done from not.

Families have rooms of their own; all meet in the table here.
"""

from __future__ import annotations

from guesthouse.model.imports import ImportImageRequest
from guesthouse.model.reports import (
    RestartRequest,
    StartRequest,
    StopRequest,
    UnpublishRequest,
)
from tests.crash.claims import (
    absent,
    anything,
    both,
    deleted,
    either,
    has_grown,
    has_image,
    has_micro,
    in_trash,
    is_there,
    launched,
    negated,
    nothing_else,
    now_of,
    publishes,
    runs_anew,
    same_process,
    state_is,
    stray_gone,
    unchanged,
    was_set,
)
from tests.crash.firewall_verbs import FIREWALL_VERBS
from tests.crash.impair_verbs import IMPAIR_VERBS
from tests.crash.network_verbs import NETWORK_VERBS
from tests.crash.nic_verbs import NIC_VERBS
from tests.crash.share_verbs import SHARE_VERBS
from tests.crash.trials import (
    BIGGER,
    POLITE,
    Verb,
    ending,
    forgotten,
    launch,
    launch_micro,
    litter,
    no_micro,
    nothing,
    nothing_built,
    paused,
    paused_bare,
    rebooting,
    running,
    sent,
    set_going,
    stopped,
    trashed,
    with_micro,
)

VERBS: dict[str, Verb] = {
    "launch": Verb("guest.launch", nothing_built, launch_micro, launched, absent),
    "launch-disk": Verb("guest.launch", nothing, launch, launched, absent),
    "start": Verb(
        "guest.start",
        stopped,
        lambda h, t: h.client.start(t.name, StartRequest(paused=True)),
        state_is("paused"),
        state_is("stopped"),
    ),
    "stop": Verb(
        "guest.stop",
        paused,
        lambda h, t: h.client.stop(t.name, StopRequest(timeout=POLITE)),
        state_is("stopped"),
        same_process,
    ),
    "stop-force": Verb(
        "guest.stop",
        running,
        lambda h, t: h.client.stop(t.name, StopRequest(force=True)),
        state_is("stopped"),
        same_process,
    ),
    # What was stopped cannot be brought back: a restart that fails there leaves it stopped.
    "restart": Verb(
        "guest.restart",
        running,
        lambda h, t: h.client.restart(t.name, RestartRequest(force=True)),
        runs_anew,
        either(same_process, state_is("stopped")),
    ),
    "pause": Verb(
        "guest.pause",
        running,
        lambda h, t: h.client.pause(t.name),
        both(same_process, state_is("paused")),
        both(same_process, state_is("running")),
    ),
    "resume": Verb(
        "guest.resume",
        paused,
        lambda h, t: h.client.resume(t.name),
        both(same_process, state_is("running")),
        both(same_process, state_is("paused")),
    ),
    # A guest that was booted by its kernel gets a new process for its own boot loader.
    "reset": Verb(
        "guest.reset",
        running,
        lambda h, t: h.client.reset(t.name),
        either(same_process, runs_anew),
        same_process,
    ),
    "power-button": Verb(
        "guest.power-button",
        paused,
        lambda h, t: h.client.power_button(t.name),
        same_process,
        same_process,
    ),
    "set": Verb(
        "guest.set",
        stopped,
        lambda h, t: h.client.set_guest(t.name, {"cpus": 2, "description": "changed"}),
        was_set,
        unchanged,
    ),
    "set-disk": Verb(
        "guest.set",
        stopped,
        lambda h, t: h.client.set_guest(t.name, {"disk": BIGGER}),
        has_grown,
        unchanged,
    ),
    "rename": Verb(
        "guest.rename",
        stopped,
        lambda h, t: h.client.rename(t.name, f"{t.name}-new"),
        lambda now, t: now_of(now, t).name == f"{t.name}-new",
        unchanged,
    ),
    "publish": Verb(
        "guest.publish",
        paused_bare,
        lambda h, t: h.client.publish(t.name, t.thing),
        publishes,
        unchanged,
    ),
    "unpublish": Verb(
        "guest.unpublish",
        paused,
        lambda h, t: h.client.unpublish(
            t.name, UnpublishRequest(host_ip="127.0.0.1", host_port=t.thing.host_port)
        ),
        negated(publishes),
        unchanged,
    ),
    "delete": Verb(
        "guest.delete", stopped, lambda h, t: h.client.delete_guest(t.name), in_trash, unchanged
    ),
    "delete-now": Verb(
        "guest.delete",
        stopped,
        lambda h, t: h.client.delete_guest(t.name, now=True),
        deleted,
        unchanged,
    ),
    "delete-force": Verb(
        "guest.delete",
        running,
        lambda h, t: h.client.delete_guest(t.name, force=True, now=True),
        deleted,
        either(unchanged, state_is("stopped")),
    ),
    "undelete": Verb(
        "guest.undelete",
        trashed,
        lambda h, t: h.client.undelete(t.name),
        both(is_there, negated(in_trash)),
        unchanged,
    ),
    "purge": Verb("guest.purge", trashed, lambda h, t: h.client.purge(t.name), deleted, unchanged),
    "settle": Verb("guest.settle", ending, set_going, state_is("stopped"), nothing_else, sure=True),
    # Where no new process can be started, it stays stopped.
    "settle-reboot": Verb(
        "guest.settle", rebooting, set_going, runs_anew, state_is("stopped"), sure=True
    ),
    "image-build": Verb(
        "image.build",
        no_micro,
        lambda h, t: h.client.build_image("micro"),
        has_micro,
        negated(has_micro),
    ),
    "image-import": Verb(
        "image.import",
        sent,
        lambda h, t: h.client.import_image(ImportImageRequest(upload=t.thing, name=t.name)),
        has_image,
        negated(has_image),
    ),
    "image-remove": Verb(
        "image.remove",
        with_micro,
        lambda h, t: h.client.remove_image("micro"),
        negated(has_micro),
        has_micro,
    ),
    **NETWORK_VERBS,
    **FIREWALL_VERBS,
    **SHARE_VERBS,
    **NIC_VERBS,
    **IMPAIR_VERBS,
    # Half a recovery is no loss: asked for again, it brings back the rest.
    "recover": Verb(
        "house.recover",
        forgotten,
        lambda h, t: h.client.recover(),
        unchanged,
        anything,
        mend=lambda h: h.do(h.client.recover()),
    ),
    "collect": Verb(
        "storage.collect",
        litter,
        lambda h, t: h.client.collect(),
        stray_gone,
        anything,
    ),
}
