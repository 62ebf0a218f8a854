"""Requests made up from the document, right and wrong ones: every answer is a documented one.

Schemathesis reaches the application over TCP, from another thread than the server's.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import positive_data_acceptance

from guesthouse.api.app import build_app
from guesthouse.api.openapi import document
from guesthouse.api.server import ApiServer
from guesthouse.model.firewalling import AddressSetRequest, SecurityGroupRequest
from guesthouse.model.networking import NetworkRequest
from guesthouse.model.reports import DeleteRequest
from tests.api.api_house import ApiHouse, open_house
from tests.api.test_networks import able

if TYPE_CHECKING:
    from guesthouse.api.facade import House

# Names and the like have rules that only the house knows, so what fits the schema may be refused.
LENIENT = [positive_data_acceptance]
MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
SHORT = settings(
    max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
LONG = settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))


class Background:
    """A served house on an event loop of its own thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = ""
        self.known: dict[str, str] = {}
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._end = asyncio.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="served")

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(60)
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(60)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:
            self._failure = error
            self._ready.set()
            raise
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        house: ApiHouse = await open_house(self.folder)
        guest = await house.guest("web")
        able(house)
        job = next(iter(house.view.jobs))
        gone = await house.guest("gone", start=False)
        await house.ended(await house.delete_guest("gone", DeleteRequest(), "test"))
        made = await house.create_network(NetworkRequest(name="lan"), "test")
        network = (await house.ended(made)).target.removeprefix("networks/")
        wired = await house.guest("wired", networks=("lan",))
        made = await house.firewall.create_group(SecurityGroupRequest(name="ssh"), "test")
        group = (await house.ended(made)).target.removeprefix("security-groups/")
        made = await house.firewall.create_set(AddressSetRequest(name="office"), "test")
        addresses = (await house.ended(made)).target.removeprefix("address-sets/")
        self.known = {
            "guests": guest.id,
            "images": "micro",
            "jobs": job,
            "trash": gone.id,
            "networks": network,
            "wired": wired.id,
            "security-groups": group,
            "address-sets": addresses,
        }
        listener = socket.create_server(("127.0.0.1", 0))
        server = ApiServer(house, listener, grace=1)
        await server.start()
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._ready.set()
        await self._end.wait()
        await server.stop()
        await house.close()


@pytest.fixture(scope="module")
def background() -> Iterator[Background]:
    folder = Path(tempfile.mkdtemp(prefix="gh-"))
    served = Background(folder)
    served.start()
    yield served
    served.stop()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def described(background: Background) -> Any:
    schema = schemathesis.openapi.from_url(f"{background.url}/v1/openapi.json")

    @schema.hook
    def map_path_parameters(context: Any, path_parameters: dict[str, Any] | None) -> Any:
        """Half of all requests are about something that exists."""
        ref = (path_parameters or {}).get("ref")
        if path_parameters and isinstance(ref, str) and len(ref) % 2:
            room = context.operation.path.split("/")[2]
            if "nic" in path_parameters:
                return {**path_parameters, "ref": background.known["wired"], "nic": "0"}
            return {**path_parameters, "ref": background.known[room]}
        return path_parameters

    @schema.hook
    def map_case(context: Any, case: schemathesis.Case) -> schemathesis.Case:
        """Names have rules, so most that are made up are refused: let some launches pass."""
        right = case.meta is None or case.meta.generation.mode is GenerationMode.POSITIVE
        launch = case.path == "/v1/guests" and isinstance(case.body, dict)
        if right and launch and len(case.body) % 2:
            case.body |= {"image": "micro", "name": None, "user": None}
        return case

    @schema.hook
    def map_query(context: Any, query: dict[str, Any] | None) -> dict[str, Any] | None:
        """Answers that end: no followed logs."""
        return {**query, "follow": "false"} if query and "follow" in query else query

    return schema


def _operations() -> list[tuple[str, str]]:
    """All but the stream without end, which test_events.py reads."""
    paths = document(build_app(cast("House", None), asyncio.Event()))["paths"]
    found = [(path, method) for path in paths if path != "/v1/events" for method in paths[path]]
    return sorted(found, key=lambda operation: operation[1] == "delete")  # what is needed, last


def _try(described: Any, operation: tuple[str, str], wanted: settings) -> None:
    path, method = operation
    strategies = [described[path][method].as_strategy(generation_mode=mode) for mode in MODES]

    @wanted
    @given(case=st.one_of(strategies))
    def attempt(case: schemathesis.Case) -> None:
        case.call_and_validate(excluded_checks=LENIENT, timeout=60)

    attempt()


@pytest.mark.parametrize("operation", _operations(), ids=" ".join)
def test_answers_are_as_described(described: Any, operation: tuple[str, str]) -> None:
    _try(described, operation, SHORT)


@pytest.mark.full
@pytest.mark.parametrize("operation", _operations(), ids=" ".join)
def test_answers_are_as_described_at_length(described: Any, operation: tuple[str, str]) -> None:
    _try(described, operation, LONG)
