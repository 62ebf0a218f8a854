"""The typed layer over a store: collections of documents and the index of their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple

from guesthouse.errors import (
    Conflict,
    GuesthouseError,
    InvalidInput,
    NameTaken,
    NotFound,
    ReadOnlyStore,
    RevisionConflict,
    UnknownImage,
)
from guesthouse.model.document import D, decode_document, encode
from guesthouse.model.firewall import AddressSet, SecurityGroup
from guesthouse.model.guest import Guest
from guesthouse.model.image import Image
from guesthouse.model.job import Job
from guesthouse.model.network import Lease, Network
from guesthouse.model.volume import Volume
from guesthouse.store.contract import ABSENT, Check, Delete, Op, Put, Store

ATTEMPTS = 16
"""How often `update` reads again after somebody else's change."""


class Versioned(NamedTuple, Generic[D]):
    """A document and the revision of the store that last wrote it."""

    doc: D
    revision: int


class Listed(NamedTuple, Generic[D]):
    """:ivar broken: why documents do not parse, by key. :ivar revision: watch from there."""

    documents: list[Versioned[D]]
    broken: dict[str, str]
    revision: int


class Named(NamedTuple):
    """Whom a name belongs to. :ivar revision: of the name's entry, for `release_op`."""

    id: str
    revision: int


class CollectionKind(Generic[D]):
    """Where documents of one kind live, and the operations on them. No store is needed for these.

    :ivar noun: as in events and messages: `guest`. :ivar prefix: `guests/`.
    """

    def __init__(self, noun: str, prefix: str, kind: type[D]) -> None:
        self.noun = noun
        self.prefix = prefix
        self.kind = kind

    def key(self, id: str) -> str:
        return self.prefix + id

    def name_key(self, name: str) -> str:
        return f"names/{self.prefix}{name}"

    def put_op(self, doc: D, expect: int | None = None) -> Put:
        return Put(self.key(doc.id), encode(doc), expect)

    def delete_op(self, id: str, expect: int | None = None) -> Delete:
        return Delete(self.key(id), expect)

    def check_op(self, id: str, expect: int) -> Check:
        return Check(self.key(id), expect)

    def claim_op(self, name: str, id: str) -> Put:
        """Take a name that nobody has; see `name_conflict` for what its failure means."""
        return Put(self.name_key(name), id.encode(), ABSENT)

    def release_op(self, name: str, expect: int | None = None) -> Delete:
        return Delete(self.name_key(name), expect)

    def decode(self, key: str, value: bytes) -> D:
        """The document of an entry.

        :raise InvalidInput: it does not parse. :raise ReadOnlyStore: a newer program wrote it.
        """
        try:
            doc = decode_document(value, self.kind)
        except GuesthouseError:
            raise
        except Exception as error:  # an upgrade step met a document that it cannot read
            raise InvalidInput(
                f"The document at {key} cannot be brought to the present schema: {error!r}."
            ) from error
        if self.key(doc.id) != key:
            raise InvalidInput(f"The document at {key} says that its id is {doc.id!r}.", field="id")
        return doc

    def name_conflict(self, conflict: RevisionConflict, name: str) -> Conflict:
        """What a failed transaction that claims `name` means.

        `NameTaken` when the claim was what failed, else the conflict itself.
        """
        if conflict.detail.get("key") != self.name_key(name):
            return conflict
        return NameTaken(
            f"There is already {article(self.noun.replace('-', ' '))} named {name!r}.",
            hint="Choose another name, or rename or remove that one.",
            name=name,
        )


GUESTS = CollectionKind("guest", "guests/", Guest)
VOLUMES = CollectionKind("volume", "volumes/", Volume)
IMAGES = CollectionKind("image", "images/", Image)
JOBS = CollectionKind("job", "jobs/", Job)
NETWORKS = CollectionKind("network", "networks/", Network)
LEASES = CollectionKind("lease", "leases/", Lease)
GROUPS = CollectionKind("security-group", "security-groups/", SecurityGroup)
SETS = CollectionKind("address-set", "address-sets/", AddressSet)


class Collection(CollectionKind[D]):
    """A kind of documents bound to a store."""

    def __init__(self, kind: CollectionKind[D], store: Store) -> None:
        super().__init__(kind.noun, kind.prefix, kind.kind)
        self._store = store

    async def get(self, id: str) -> Versioned[D] | None:
        """The document, or None. :raise InvalidInput: :raise ReadOnlyStore: see `decode`."""
        entry = await self._store.get(self.key(id))
        if entry is None:
            return None
        return Versioned(self.decode(entry.key, entry.value), entry.revision)

    async def require(self, id: str) -> Versioned[D]:
        """Like `get`. :raise NotFound: there is none."""
        found = await self.get(id)
        if found is None:
            raise unknown(self.noun, id)
        return found

    async def list(self) -> Listed[D]:
        """All documents of this kind, sorted by id; those that do not parse apart."""
        listing = await self._store.list(self.prefix)
        found = Listed[D]([], {}, listing.revision)
        for entry in listing.entries:
            try:
                doc = self.decode(entry.key, entry.value)
            except (InvalidInput, ReadOnlyStore) as error:
                found.broken[entry.key] = error.message
            else:
                found.documents.append(Versioned(doc, entry.revision))
        return found

    async def named(self, name: str) -> Named | None:
        """Whom `name` belongs to by the index."""
        entry = await self._store.get(self.name_key(name))
        return Named(entry.value.decode(), entry.revision) if entry else None

    async def update(
        self, id: str, change: Callable[[D], D], *, extra_ops: Sequence[Op] = ()
    ) -> Versioned[D]:
        """Read, change, write if nobody else wrote meanwhile, else again.

        :param change: pure: it may be called several times. Answering an equal document writes
            nothing (unless there are `extra_ops`).
        :param extra_ops: of the same transaction.
        :raise NotFound: there is none. :raise RevisionConflict: one of `extra_ops` failed, or the
            document was changed under us time and again.
        """
        key = self.key(id)
        for attempt in range(1, ATTEMPTS + 1):
            found = await self.require(id)
            changed = change(found.doc)
            if changed == found.doc and not extra_ops:
                return found
            try:
                ops = [self.put_op(changed, found.revision), *extra_ops]
                return Versioned(changed, await self._store.commit(ops))
            except RevisionConflict as conflict:
                if conflict.detail.get("key") != key or attempt == ATTEMPTS:
                    raise
        raise AssertionError  # the last attempt returned or raised


class Documents:
    """All collections of one house."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.guests = Collection(GUESTS, store)
        self.volumes = Collection(VOLUMES, store)
        self.images = Collection(IMAGES, store)
        self.jobs = Collection(JOBS, store)
        self.networks = Collection(NETWORKS, store)
        self.leases = Collection(LEASES, store)
        self.groups = Collection(GROUPS, store)
        self.sets = Collection(SETS, store)


_COMMANDS = {
    "guest": "guest ls",
    "volume": "guest disk ls",
    "security-group": "guest firewall group ls",
    "address-set": "guest firewall set ls",
}


def article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def unknown(noun: str, ref: str, *, hint: str = "", **detail: object) -> GuesthouseError:
    """The `NotFound` of a noun."""
    kind = UnknownImage if noun == "image" else NotFound
    command = _COMMANDS.get(noun, f"guest {noun} ls")
    hint = f"{hint} See what there is: {command}".strip()
    return kind(f"There is no {noun.replace('-', ' ')} {ref!r}.", hint=hint, **detail)
