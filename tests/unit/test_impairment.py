"""Impairments: as people write them, and on this kernel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from guesthouse.errors import InvalidInput, UnknownField
from guesthouse.model.impairment import Impairment, NicImpairment, parse_impairment, parse_rate
from guesthouse.network.impairment import Plan, Shaping, capabilities, plan, probe, table_name

from ..firewall_house import house
from ..firewall_kernel import KernelHouse, ethernet, ip, kernel_house, udp

WEB, DB = "t1-0", "t2-0"


def test_words_of_people() -> None:
    words = {"latency": "80ms", "jitter": "10ms", "loss": "1%", "reorder": "0.25", "rate": "8mbit"}
    assert parse_impairment(words) == Impairment(
        latency=0.08, jitter=0.01, loss=0.01, reorder=0.25, rate=8_000_000
    )


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ({"latency": "far"}, "latency"),
        ({"loss": "101%"}, "loss"),
        ({"jitter": "5ms"}, "jitter"),
        ({"reorder": "5%"}, "reorder"),
        ({"rate": "fast"}, "rate"),
        ({"rate": "10"}, "rate"),
        ({"latency": "2m"}, "latency"),
    ],
)
def test_words_that_cannot_be(words: dict[str, str], field: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        parse_impairment(words)
    assert raised.value.detail["field"] == field


def test_another_word() -> None:
    with pytest.raises(UnknownField, match="'lag'"):
        parse_impairment({"lag": "1"})


@pytest.mark.parametrize(
    ("text", "rate"),
    [("8mbit", 8_000_000), ("500k", 500_000), ("1.5Gbit", 1_500_000_000), ("64000", 64_000)],
)
def test_rates(text: str, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelHouse]:
    with kernel_house(house({"guests": {"web": {}, "db": {}}})) as made:
        yield made


async def shaping(kernel: KernelHouse) -> Shaping:
    async def run(argv: tuple[str, ...], text: bytes) -> bool:
        return kernel.space.run(*argv, text=text.decode()).returncode == 0

    return await probe(run)


def apply(kernel: KernelHouse, made: Plan) -> None:
    for command in made.undo:
        kernel.space.run(*command)
    for command in made.commands:
        kernel.space.ok(*command)
    kernel.load(made.rules)


def arrived(kernel: KernelHouse, count: int) -> int:
    """Of so many packets from one card to the other."""
    kernel.drain()
    packet = ip("10.200.1.11", "10.200.1.12", 17, udp(5000, 5001, b"impaired"))
    for _ in range(count):
        kernel.send(WEB, ethernet(kernel.mac(WEB), kernel.mac(DB), 0x0800, packet))
    return sum(f.at == DB and b"impaired" in f.data for f in kernel.seen())


@pytest.mark.root
async def test_this_kernel_is_asked_and_nothing_is_left_behind(kernel: KernelHouse) -> None:
    found = await shaping(kernel)
    assert found.numgen, "nft draws lots on every kernel that tests are run on"
    assert "gh-probe" not in kernel.space.ok("ip", "link")
    assert "gh-probe" not in kernel.space.ok("nft", "list", "ruleset")
    by_name = {capability.name: capability for capability in capabilities(found)}
    assert by_name["netem"].available is found.netem
    assert found.netem or "CONFIG_NET_SCH_NETEM" in by_name["netem"].reason


@pytest.mark.root
@pytest.mark.parametrize(
    ("share", "least", "most"), [(0.0, 400, 400), (1.0, 0, 0), (0.5, 100, 300)]
)
@pytest.mark.parametrize("way", ["incoming", "outgoing"])
def test_lots_are_drawn(kernel: KernelHouse, way: str, share: float, least: int, most: int) -> None:
    tap = DB if way == "incoming" else WEB
    wanted = NicImpairment(**{way: Impairment(loss=share)})
    apply(kernel, plan(tap, wanted, Shaping(numgen=True)))
    assert least <= arrived(kernel, 400) <= most
    apply(kernel, plan(tap, NicImpairment(), Shaping(numgen=True)))
    assert table_name(tap) not in kernel.space.ok("nft", "list", "ruleset")
    assert arrived(kernel, 400) == 400


@pytest.mark.root
async def test_a_rate_is_set_both_ways_and_taken_back(kernel: KernelHouse) -> None:
    found = await shaping(kernel)
    slow = Impairment(rate=8_000_000)
    wanted = NicImpairment(incoming=slow, outgoing=slow if found.ifb else Impairment())
    apply(kernel, plan(WEB, wanted, found))
    queues = kernel.space.ok("tc", "qdisc", "show")
    assert queues.count("rate 8Mbit") == (2 if found.ifb else 1), queues
    assert arrived(kernel, 20) == 20, "what is led through the other device arrives too"
    apply(kernel, plan(WEB, NicImpairment(), found))
    assert "rate" not in kernel.space.ok("tc", "qdisc", "show")
    assert "it1-0" not in kernel.space.ok("ip", "link")
    assert arrived(kernel, 20) == 20
