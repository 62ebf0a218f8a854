"""Networks of the house."""

from __future__ import annotations

from litestar import Response, delete, get, patch, post

from guesthouse.api.answers import WaitQuery, job_answer, json_answer
from guesthouse.api.decoding import ApiRequest
from guesthouse.api.described import reads, submits
from guesthouse.errors import Busy, Conflict, HostLacks, InUse, NameTaken, NotFound
from guesthouse.model.networking import NetworkChange, NetworkRequest, NetworkView


@get("/v1/networks", opt=reads(list[NetworkView]))
async def list_networks(request: ApiRequest) -> Response[bytes]:
    """All networks of the house, sorted by name.

    `default` is made when the first guest needs it.
    """
    house = request.house
    networks = sorted(house.view.networks.values(), key=lambda network: network.name)
    return json_answer([house.network_view(network) for network in networks])


@get("/v1/networks/{ref:str}", opt=reads(NetworkView, errors=(NotFound,)))
async def show_network(request: ApiRequest) -> Response[bytes]:
    """One network, and the guests on it with their addresses."""
    house = request.house
    return json_answer(house.network_view(house.view.network(request.ref)))


@post(
    "/v1/networks",
    opt=submits(NetworkRequest, query=WaitQuery, errors=(NameTaken, Conflict, HostLacks)),
)
async def create_network(request: ApiRequest) -> Response[bytes]:
    """Make a network. Nothing of it is built until a guest starts on it."""
    wait = request.ask(WaitQuery).wait
    wanted = await request.read(NetworkRequest)
    job = await request.house.create_network(wanted, request.requester)
    return await job_answer(request, job, wait=wait)


@post(
    "/v1/networks/{ref:str}/confirm",
    status_code=200,
    opt=reads(NetworkView, errors=(NotFound, Conflict)),
)
async def confirm_network(request: ApiRequest) -> Response[bytes]:
    """Confirm that this host is still reached, now that a bridged network has its interface.

    Without that the interface is given back after 30 seconds, and the network is not made.
    """
    return json_answer(await request.house.confirm_network(request.ref))


@patch(
    "/v1/networks/{ref:str}",
    status_code=202,
    opt=submits(NetworkChange, query=WaitQuery, errors=(NotFound, NameTaken, Busy)),
)
async def change_network(request: ApiRequest) -> Response[bytes]:
    """Change a network; running guests have it at once."""
    wait = request.ask(WaitQuery).wait
    wanted = await request.read(NetworkChange)
    job = await request.house.change_network(request.ref, wanted, request.requester)
    return await job_answer(request, job, wait=wait)


@delete(
    "/v1/networks/{ref:str}",
    status_code=202,
    opt=submits(query=WaitQuery, errors=(NotFound, InUse, Busy)),
)
async def remove_network(request: ApiRequest) -> Response[bytes]:
    """Remove a network that no guest is on, not even one in the trash."""
    wait = request.ask(WaitQuery).wait
    job = await request.house.remove_network(request.ref, request.requester)
    return await job_answer(request, job, wait=wait)


NETWORK_ROUTES = [
    list_networks,
    show_network,
    create_network,
    confirm_network,
    change_network,
    remove_network,
]
