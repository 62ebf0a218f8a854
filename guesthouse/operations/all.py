"""Every kind of job of the house, in one registry."""

from __future__ import annotations

from guesthouse.images.building import BuildImage, RemoveImage
from guesthouse.images.cache import BuildCache
from guesthouse.images.importing import ImportImage
from guesthouse.jobs.registry import Registry
from guesthouse.operations.creation import Launch
from guesthouse.operations.deletion import DeleteGuest
from guesthouse.operations.editing import PublishPort, Rename, SetGuest, UnpublishPort
from guesthouse.operations.firewall_jobs import ChangeGuestFirewall, ChangeNetworkFirewall
from guesthouse.operations.firewall_lists import (
    ChangeGroup,
    ChangeSet,
    CreateGroup,
    CreateSet,
    RemoveGroup,
    RemoveSet,
)
from guesthouse.operations.hosting import StartGuests, StopGuests
from guesthouse.operations.impairing import ImpairNic
from guesthouse.operations.lifecycle import (
    Pause,
    PowerButton,
    Reset,
    Restart,
    Resume,
    Settle,
    Start,
    Stop,
)
from guesthouse.operations.networking import ChangeNetwork, CreateNetwork, RemoveNetwork
from guesthouse.operations.nics import AddNic, RemoveNic, SetNic
from guesthouse.operations.recovery import Recover
from guesthouse.operations.rooms import Rooms
from guesthouse.operations.sharing import AddShare, RemoveShare
from guesthouse.operations.trash import Purge, Undelete
from guesthouse.storage.collect import Collect


def all_operations(rooms: Rooms, cache: BuildCache) -> Registry:
    """A registry that knows every operation, bound to these rooms."""
    registry = Registry()
    for kind in (
        Launch,
        Start,
        Stop,
        Restart,
        Pause,
        Resume,
        Reset,
        PowerButton,
        Settle,
        DeleteGuest,
        Undelete,
        Purge,
        SetGuest,
        Rename,
        PublishPort,
        UnpublishPort,
        AddShare,
        RemoveShare,
        AddNic,
        SetNic,
        RemoveNic,
        ImpairNic,
        ChangeGuestFirewall,
    ):
        registry.register(kind(rooms))
    for other in (
        CreateNetwork,
        ChangeNetwork,
        RemoveNetwork,
        ChangeNetworkFirewall,
        CreateGroup,
        ChangeGroup,
        RemoveGroup,
        CreateSet,
        ChangeSet,
        RemoveSet,
    ):
        registry.register(other(rooms))
    registry.register(StartGuests(rooms))
    registry.register(StopGuests(rooms))
    registry.register(BuildImage(rooms.catalogue, cache, mirrors=lambda: rooms.settings.mirrors))
    registry.register(RemoveImage(rooms.catalogue))
    registry.register(
        ImportImage(rooms.catalogue, rooms.uploads, most=lambda: rooms.settings.most_image_bytes)
    )
    registry.register(Recover(rooms))
    registry.register(Collect(rooms.documents, rooms.view, rooms.pool))
    return registry
