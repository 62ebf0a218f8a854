"""The operations that jobs run, by their kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from guesthouse.errors import Internal
from guesthouse.model.document import Noun

if TYPE_CHECKING:
    from guesthouse.jobs.context import JobContext

P = TypeVar("P", bound=Noun)

Result = Noun | Mapping[str, object] | None


class Operation(ABC, Generic[P]):
    """One kind of change. Instances carry what they need of the house; jobs carry the parameters.

    :cvar Params: the parameters; they are stored, so they hold no secrets.
    :cvar may_cancel: whether users may cancel it; `interrupt` is always possible.
    :cvar lock_deadline: seconds to wait for locks before `Busy`.
    """

    kind: ClassVar[str]
    Params: ClassVar[type[Noun]]
    may_cancel: ClassVar[bool] = True
    lock_deadline: ClassVar[float] = 600.0

    @abstractmethod
    def locks(self, params: P) -> Sequence[str]:
        """Keys of the documents that are locked before `run`, as far as they are known then."""

    @abstractmethod
    async def run(self, ctx: JobContext, params: P) -> Result:
        """Do it. Recovery after a crash calls this again, with `ctx.step` answering the ids that
        were recorded: each step looks what exists and goes on from there.

        What it answers becomes the job's `result`.
        """


class Registry:
    def __init__(self) -> None:
        self._operations: dict[str, Operation[Any]] = {}

    def register(self, operation: Operation[Any]) -> None:
        if operation.kind in self._operations:
            raise Internal(f"Two operations are of kind {operation.kind}.")
        self._operations[operation.kind] = operation

    def find(self, kind: str) -> Operation[Any] | None:
        return self._operations.get(kind)

    def get(self, kind: str) -> Operation[Any]:
        """:raise Internal: nobody registered that kind."""
        found = self.find(kind)
        if found is None:
            raise Internal(f"No operation is of kind {kind}.")
        return found

    def kinds(self) -> list[str]:
        return sorted(self._operations)
