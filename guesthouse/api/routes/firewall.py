"""Firewalls of guests and networks: rules, policies, the dry run, counters and the log."""

from __future__ import annotations

from typing import Annotated

from litestar import Response, delete, get, patch, post, put
from litestar.handlers import HTTPRouteHandler
from msgspec import Meta

from guesthouse.api.answers import WaitQuery, job_answer, json_answer
from guesthouse.api.decoding import ApiRequest
from guesthouse.api.described import TEXT, Described, reads, submits
from guesthouse.api.http_streams import StreamAnswer
from guesthouse.errors import Busy, Conflict, HostLacks, NotFound
from guesthouse.model.document import Noun
from guesthouse.model.firewalling import (
    CounterView,
    FirewallChange,
    FirewallView,
    PacketRequest,
    PacketView,
    RuleRequest,
)

_CHANGED = (NotFound, Conflict, HostLacks, Busy)


class PacketLogQuery(Noun, kw_only=True, frozen=True):
    guest: Annotated[str, Meta(max_length=256, description="Only packets about that guest.")] = ""
    tail: Annotated[
        int, Meta(ge=0, le=64 << 20, description="How many bytes of what is there already.")
    ] = 1 << 16
    follow: Annotated[bool, Meta(description="Go on with what comes from now on.")] = False


@get("/v1/guests/{ref:str}/firewall", opt=reads(FirewallView, errors=(NotFound,)))
async def guest_firewall(request: ApiRequest) -> Response[bytes]:
    """A guest's firewall, and every rule that is asked about its packets, with counts."""
    return json_answer(await request.house.firewall.of_guest(request.ref))


@get("/v1/networks/{ref:str}/firewall", opt=reads(FirewallView, errors=(NotFound,)))
async def network_firewall(request: ApiRequest) -> Response[bytes]:
    """The firewall of all guests of a network."""
    return json_answer(await request.house.firewall.of_network(request.ref))


@post(
    "/v1/guests/{ref:str}/firewall/test",
    status_code=200,
    opt={
        "described": Described(answer=PacketView, body=PacketRequest, errors=(NotFound, HostLacks))
    },
)
async def try_packet(request: ApiRequest) -> Response[bytes]:
    """A dry run: what would become of a packet, and which rule decides. Nothing is sent."""
    wanted = await request.read(PacketRequest)
    return json_answer(await request.house.firewall.try_packet(request.ref, wanted))


@get("/v1/firewall/counters", opt=reads(list[CounterView]))
async def counters(request: ApiRequest) -> Response[bytes]:
    """How often each rule, policy, wall and check decided, most often first.

    None while no guest has been started on a network of the house.
    """
    return json_answer(await request.house.firewall.counters())


@get(
    "/v1/firewall/log",
    opt=reads(
        media=TEXT,
        answer_text="A JSON object a line.",
        query=PacketLogQuery,
        errors=(NotFound,),
    ),
)
async def packet_log(request: ApiRequest) -> StreamAnswer:
    """Packets that rules logged; with `follow`, it goes on until the client goes away.

    Each line is a JSON object: `time` (seconds since the epoch), `action`, `rule` and its `owner`,
    `protocol`, `source`, `destination`, `source_port`, `port`, `length`, and the ids and names of
    the guests at both ends.
    """
    query = request.ask(PacketLogQuery)
    lines = await request.house.firewall.log(query.guest, query.tail, follow=query.follow)
    return StreamAnswer(lines, media=TEXT, stopping=request.stopping)


def _adding(room: str, path: str, whose: str) -> HTTPRouteHandler:
    async def handler(request: ApiRequest) -> Response[bytes]:
        wait = request.ask(WaitQuery).wait
        wanted = await request.read(RuleRequest)
        job = await request.house.firewall.add_rule(room, request.ref, wanted, request.requester)
        return await job_answer(request, job, wait=wait)

    handler.__name__ = f"add_rule_{room.replace('-', '_')}"
    handler.__doc__ = f"Add a rule to {whose}; it is in force at once. The job's result names it."
    return post(path, opt=submits(RuleRequest, query=WaitQuery, errors=_CHANGED))(handler)


def _replacing(room: str, path: str, whose: str) -> HTTPRouteHandler:
    async def handler(request: ApiRequest) -> Response[bytes]:
        wait = request.ask(WaitQuery).wait
        wanted = await request.read(RuleRequest)
        rule = str(request.path_params["rule"])
        firewall = request.house.firewall
        job = await firewall.replace_rule(room, request.ref, rule, wanted, request.requester)
        return await job_answer(request, job, wait=wait)

    handler.__name__ = f"replace_rule_{room.replace('-', '_')}"
    handler.__doc__ = f"Put another rule in the place of one of {whose}, by its name or number."
    return put(
        f"{path}/{{rule:str}}",
        status_code=202,
        opt=submits(RuleRequest, query=WaitQuery, errors=_CHANGED),
    )(handler)


def _removing(room: str, path: str, whose: str) -> HTTPRouteHandler:
    async def handler(request: ApiRequest) -> Response[bytes]:
        wait = request.ask(WaitQuery).wait
        rule = str(request.path_params["rule"])
        firewall = request.house.firewall
        job = await firewall.remove_rule(room, request.ref, rule, request.requester)
        return await job_answer(request, job, wait=wait)

    handler.__name__ = f"remove_rule_{room.replace('-', '_')}"
    handler.__doc__ = f"Remove a rule of {whose}, by its name or number."
    return delete(
        f"{path}/{{rule:str}}",
        status_code=202,
        opt=submits(query=WaitQuery, errors=(NotFound, HostLacks, Busy)),
    )(handler)


def _changing(room: str, path: str, whose: str) -> HTTPRouteHandler:
    async def handler(request: ApiRequest) -> Response[bytes]:
        wait = request.ask(WaitQuery).wait
        wanted = await request.read(FirewallChange)
        job = await request.house.firewall.change(room, request.ref, wanted, request.requester)
        return await job_answer(request, job, wait=wait)

    handler.__name__ = f"change_firewall_{room}"
    handler.__doc__ = f"Change the policies of {whose}, and which security groups it is in."
    return patch(
        path,
        status_code=202,
        opt=submits(FirewallChange, query=WaitQuery, errors=(NotFound, HostLacks, Busy)),
    )(handler)


def _of(room: str, below: str, whose: str) -> list[HTTPRouteHandler]:
    path = f"/v1/{room}/{{ref:str}}{below}/rules"
    return [make(room, path, whose) for make in (_adding, _replacing, _removing)]


FIREWALL_ROUTES = [
    guest_firewall,
    network_firewall,
    try_packet,
    counters,
    packet_log,
    *_of("guests", "/firewall", "a guest"),
    *_of("networks", "/firewall", "a network"),
    *_of("security-groups", "", "a security group"),
    _changing("guests", "/v1/guests/{ref:str}/firewall", "a guest"),
    _changing("networks", "/v1/networks/{ref:str}/firewall", "a network"),
]
