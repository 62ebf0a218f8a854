"""Security groups and sets of addresses."""

from __future__ import annotations

from litestar import Response, delete, get, patch, post

from guesthouse.api.answers import WaitQuery, job_answer, json_answer
from guesthouse.api.decoding import ApiRequest
from guesthouse.api.described import reads, submits
from guesthouse.errors import Busy, HostLacks, InUse, NameTaken, NotFound
from guesthouse.model.firewalling import (
    AddressSetChange,
    AddressSetRequest,
    AddressSetView,
    SecurityGroupChange,
    SecurityGroupRequest,
    SecurityGroupView,
)


@get("/v1/security-groups", opt=reads(list[SecurityGroupView]))
async def list_groups(request: ApiRequest) -> Response[bytes]:
    """All security groups, sorted by name: rules that several guests share."""
    return json_answer(await request.house.firewall.groups())


@get("/v1/security-groups/{ref:str}", opt=reads(SecurityGroupView, errors=(NotFound,)))
async def show_group(request: ApiRequest) -> Response[bytes]:
    """One security group, its rules, and who is in it."""
    return json_answer(await request.house.firewall.group(request.ref))


@post(
    "/v1/security-groups", opt=submits(SecurityGroupRequest, query=WaitQuery, errors=(NameTaken,))
)
async def create_group(request: ApiRequest) -> Response[bytes]:
    """Make a security group, without rules."""
    wait = request.ask(WaitQuery).wait
    wanted = await request.read(SecurityGroupRequest)
    job = await request.house.firewall.create_group(wanted, request.requester)
    return await job_answer(request, job, wait=wait)


@patch(
    "/v1/security-groups/{ref:str}",
    status_code=202,
    opt=submits(SecurityGroupChange, query=WaitQuery, errors=(NotFound, NameTaken, Busy)),
)
async def change_group(request: ApiRequest) -> Response[bytes]:
    """Give a security group another name or note."""
    wait = request.ask(WaitQuery).wait
    wanted = await request.read(SecurityGroupChange)
    job = await request.house.firewall.change_group(request.ref, wanted, request.requester)
    return await job_answer(request, job, wait=wait)


@delete(
    "/v1/security-groups/{ref:str}",
    status_code=202,
    opt=submits(query=WaitQuery, errors=(NotFound, InUse, Busy)),
)
async def remove_group(request: ApiRequest) -> Response[bytes]:
    """Remove a security group that nobody is in and no rule names."""
    wait = request.ask(WaitQuery).wait
    job = await request.house.firewall.remove_group(request.ref, request.requester)
    return await job_answer(request, job, wait=wait)


@get("/v1/address-sets", opt=reads(list[AddressSetView]))
async def list_sets(request: ApiRequest) -> Response[bytes]:
    """All sets of addresses, sorted by name."""
    return json_answer(request.house.firewall.sets())


@get("/v1/address-sets/{ref:str}", opt=reads(AddressSetView, errors=(NotFound,)))
async def show_set(request: ApiRequest) -> Response[bytes]:
    """One set of addresses, and whose rules name it."""
    return json_answer(request.house.firewall.address_set(request.ref))


@post("/v1/address-sets", opt=submits(AddressSetRequest, query=WaitQuery, errors=(NameTaken,)))
async def create_set(request: ApiRequest) -> Response[bytes]:
    """Make a set of addresses, which rules call `set:NAME`."""
    wait = request.ask(WaitQuery).wait
    wanted = await request.read(AddressSetRequest)
    job = await request.house.firewall.create_set(wanted, request.requester)
    return await job_answer(request, job, wait=wait)


@patch(
    "/v1/address-sets/{ref:str}",
    status_code=202,
    opt=submits(AddressSetChange, query=WaitQuery, errors=(NotFound, NameTaken, HostLacks, Busy)),
)
async def change_set(request: ApiRequest) -> Response[bytes]:
    """Change a set of addresses; rules that name it have it at once."""
    wait = request.ask(WaitQuery).wait
    wanted = await request.read(AddressSetChange)
    job = await request.house.firewall.change_set(request.ref, wanted, request.requester)
    return await job_answer(request, job, wait=wait)


@delete(
    "/v1/address-sets/{ref:str}",
    status_code=202,
    opt=submits(query=WaitQuery, errors=(NotFound, InUse, Busy)),
)
async def remove_set(request: ApiRequest) -> Response[bytes]:
    """Remove a set of addresses that no rule names."""
    wait = request.ask(WaitQuery).wait
    job = await request.house.firewall.remove_set(request.ref, request.requester)
    return await job_answer(request, job, wait=wait)


LIST_ROUTES = [
    list_groups,
    show_group,
    create_group,
    change_group,
    remove_group,
    list_sets,
    show_set,
    create_set,
    change_set,
    remove_set,
]
