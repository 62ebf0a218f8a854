"""Which backend connects a card: by what its document names as its network."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

from guesthouse.network.base import NetworkBackend


class Backends(Mapping[str, NetworkBackend]):
    """`builtin`, and one backend for all networks of the house, under the id of each.

    :param ids: of the networks that there are by now.
    """

    def __init__(
        self, builtin: NetworkBackend, house: NetworkBackend, ids: Callable[[], Collection[str]]
    ) -> None:
        self._builtin, self._house, self._ids = builtin, house, ids

    def __getitem__(self, name: str) -> NetworkBackend:
        if name == self._builtin.name:
            return self._builtin
        if name in self._ids():
            return self._house
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter((self._builtin.name, *self._ids()))

    def __len__(self) -> int:
        return 1 + len(self._ids())
