"""The agent's client against an agent that behaves, and one that does not."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from guesthouse.errors import (
    AgentUnavailable,
    AgentUnsupported,
    DeadlineExceeded,
    EngineError,
    InvalidInput,
)
from guesthouse.guestos.agent import Address, Agent

from .fake_agent import FakeAgent, refuses, returns


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeAgent]:
    async with FakeAgent(tmp_path / "ga") as made:
        yield made


@pytest.fixture
async def agent(fake: FakeAgent) -> AsyncIterator[Agent]:
    made = Agent(fake.socket)
    yield made
    await made.close()


async def test_one_sync_for_many_commands(fake: FakeAgent, agent: Agent) -> None:
    await asyncio.gather(*(agent.ping() for _ in range(10)))
    assert fake.commands == ["guest-sync-delimited"] + ["guest-ping"] * 10
    assert fake.connections == 1


@pytest.mark.parametrize(
    "stale",
    [
        b'{"return": {}}\n',
        b'{"return": 12345}\n\xff{"return": 12345}\n',
        b"\xff\xff\xff\n",
        b'\xff{"return": 1\xff{"ret',
        b"\xffnot json\n",
        b"\x00\xfe garbage" * 1000,
        b'\xff{"return": {"return": 5}}\n\xff[]\n\xffnull\n',
    ],
)
async def test_stale_bytes_are_skipped(fake: FakeAgent, agent: Agent, stale: bytes) -> None:
    fake.before_sync = stale
    fake.handlers["guest-get-host-name"] = lambda _: returns({"host-name": "web"})
    for fake.piece in (0, 7):
        assert await agent.hostname() == "web"
        await agent.close()


async def test_answers_in_single_bytes(fake: FakeAgent, agent: Agent) -> None:
    fake.piece = 1
    fake.handlers["guest-get-host-name"] = lambda _: returns({"host-name": "ü-web"})
    assert await agent.hostname() == "ü-web"


async def test_a_late_answer_is_not_taken_for_the_next(fake: FakeAgent, agent: Agent) -> None:
    """The real port keeps an answer that was owed and gives it to the next connection."""

    async def slow(_: Any) -> bytes | None:
        await asyncio.sleep(0.3)
        fake.before_sync = returns({"host-name": "stale"})
        return None

    fake.handlers["guest-get-host-name"] = slow
    with pytest.raises(AgentUnavailable, match="within"):
        await agent.call("guest-get-host-name", timeout=0.1)
    fake.handlers["guest-get-host-name"] = lambda _: returns({"host-name": "fresh"})
    assert await agent.hostname() == "fresh"
    assert fake.commands.count("guest-sync-delimited") == 2


async def test_a_cancelled_call_is_not_answered_to_the_next(fake: FakeAgent, agent: Agent) -> None:
    fake.handlers["guest-info"] = lambda _: None
    task = asyncio.create_task(agent.info())
    while "guest-info" not in fake.commands:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await agent.ping()
    assert fake.connections == 2


async def test_no_socket_and_no_agent(tmp_path: Path, fake: FakeAgent, agent: Agent) -> None:
    with pytest.raises(AgentUnavailable, match="not there"):
        await Agent(tmp_path / "none").ping()
    fake.handlers["guest-sync-delimited"] = lambda _: None
    with pytest.raises(AgentUnavailable) as caught:
        await agent.ping(timeout=0.2)
    assert caught.value.hint
    del fake.handlers["guest-sync-delimited"]
    await agent.ping()


async def test_a_second_party_gets_the_port_when_the_first_is_idle(fake: FakeAgent) -> None:
    one, two = Agent(fake.socket, idle=0.1), Agent(fake.socket)
    await one.ping()
    await two.ping()  # waits in the backlog until the first lets go
    assert fake.connections == 2
    await two.close()


@pytest.mark.parametrize(
    "answer",
    [b"nonsense\n", b"\xff\xfe\n", b"[1]\n", b"{}\n", b'{"error": 5}\n', b"[" * 100_000 + b"\n"],
)
async def test_nonsense(fake: FakeAgent, agent: Agent, answer: bytes) -> None:
    fake.handlers["guest-ping"] = lambda _: answer
    with pytest.raises(AgentUnavailable, match="no QEMU guest agent"):
        await agent.ping()
    del fake.handlers["guest-ping"]
    await agent.ping()


async def test_answers_are_capped(fake: FakeAgent, agent: Agent) -> None:
    fake.handlers["guest-ping"] = lambda _: b"x" * 200_000
    with pytest.raises(AgentUnavailable, match="longer than 100000"):
        await agent.call("guest-ping", limit=100_000)
    fake.handlers["guest-ping"] = lambda _: b'"' + b"x" * 200_000 + b'"\n'
    with pytest.raises(AgentUnavailable, match="longer than 100000"):
        await agent.call("guest-ping", limit=100_000)


async def test_the_port_closes_under_a_call(fake: FakeAgent, agent: Agent) -> None:
    def hang_up(_: Any) -> bytes:
        raise ConnectionError

    fake.handlers["guest-ping"] = hang_up
    with pytest.raises(AgentUnavailable, match="closed"):
        await agent.ping()


async def test_refusals_are_typed_and_keep_the_connection(fake: FakeAgent, agent: Agent) -> None:
    fake.handlers["guest-exec"] = lambda _: refuses("CommandNotFound", "not found")
    with pytest.raises(AgentUnsupported, match="guest-exec"):
        await agent.exec(["true"])
    fake.handlers["guest-set-time"] = lambda _: refuses(
        "GenericError", "this feature or command is not currently supported"
    )
    with pytest.raises(AgentUnsupported):
        await agent.set_time()
    fake.handlers["guest-exec"] = lambda _: refuses("GenericError", "Failed to execute")
    with pytest.raises(EngineError, match="Failed to execute"):
        await agent.exec(["/none"])
    assert fake.connections == 1


async def test_addresses(fake: FakeAgent, agent: Agent) -> None:
    def ip(text: object, prefix: object) -> dict[str, object]:
        return {"ip-address": text, "ip-address-type": "ipv4", "prefix": prefix}

    fake.handlers["guest-network-get-interfaces"] = lambda _: returns(
        [
            {"name": "lo", "hardware-address": "00:00:00:00:00:00",
             "ip-addresses": [ip("127.0.0.1", 8), ip("::1", 128)]},
            {"name": "e0", "hardware-address": "52:67:68:AA:00:01",
             "ip-addresses": [ip("10.0.2.15", 24), ip("fe80::1%e0", 64), ip("169.254.1.1", 16)]},
            {"name": "tun0", "ip-addresses": [ip("fd00::2", 64)]},
            {"name": "bad", "hardware-address": "; rm -rf /", "ip-addresses": [
                ip("10.0.0.1", 99), ip("300.1.1.1", 8), ip(7, 8), ip("10.0.0.2", "x"), "no",
                ip("10.0.0.3", 8)]},
            {"name": "odd", "ip-addresses": "none"},
            "nonsense",
        ]
    )  # fmt: skip
    assert await agent.addresses() == [
        Address("52:67:68:aa:00:01", "10.0.2.15", 24, False),
        Address("52:67:68:aa:00:01", "fe80::1", 64, True),
        Address("52:67:68:aa:00:01", "169.254.1.1", 16, True),
        Address("", "fd00::2", 64, False),
        Address("", "10.0.0.3", 8, False),
    ]
    fake.handlers["guest-network-get-interfaces"] = lambda _: returns({"no": "list"})
    with pytest.raises(AgentUnavailable):
        await agent.addresses()


async def test_info_and_system(fake: FakeAgent, agent: Agent) -> None:
    commands = [{"name": "a", "enabled": True}, {"name": "b", "enabled": False}, 7]
    fake.handlers["guest-info"] = lambda _: returns(
        {"version": "7", "supported_commands": commands}
    )
    info = await agent.info()
    assert (info.version, info.commands) == ("7", {"a"})
    fake.handlers["guest-get-osinfo"] = lambda _: returns({"id": "debian", "machine": "x\n86"})
    found = await agent.os_info()
    assert (found.id, found.machine, found.version_id) == ("debian", "x86", "")
    for name, call in (("guest-info", agent.info), ("guest-get-osinfo", agent.os_info),
                       ("guest-get-host-name", agent.hostname)):  # fmt: skip
        fake.handlers[name] = lambda _: returns([])
        with pytest.raises(AgentUnavailable):
            await call()


async def test_time_and_shutdown(fake: FakeAgent, agent: Agent) -> None:
    seen: list[Any] = []
    fake.handlers["guest-set-time"] = lambda given: seen.append(given) or returns({})
    await agent.set_time(1.5)
    assert seen == [{"time": 1_500_000_000}]
    fake.handlers["guest-shutdown"] = seen.append  # answers nothing
    await agent.shutdown("reboot")
    assert seen[1:] == [{"mode": "reboot"}]
    fake.handlers["guest-shutdown"] = lambda _: refuses("GenericError", "no")
    with pytest.raises(EngineError):
        await agent.shutdown()
    with pytest.raises(InvalidInput):
        await agent.shutdown("explode")


class TestFreeze:
    @pytest.fixture(autouse=True)
    def frozen(self, fake: FakeAgent) -> None:
        self.is_frozen = False

        def freeze(_: Any) -> bytes:
            self.is_frozen = True
            return returns(3)

        def thaw(_: Any) -> bytes:
            self.is_frozen = False
            return returns(3)

        fake.handlers["guest-fsfreeze-freeze"] = freeze
        fake.handlers["guest-fsfreeze-thaw"] = thaw
        fake.handlers["guest-fsfreeze-status"] = lambda _: returns(
            "frozen" if self.is_frozen else "thawed"
        )

    async def test_within_the_block_only(self, agent: Agent) -> None:
        async with agent.frozen() as count:
            assert count == 3 and self.is_frozen and await agent.is_frozen()
        assert not self.is_frozen and not await agent.is_frozen()

    async def test_an_error_in_the_block(self, agent: Agent) -> None:
        with pytest.raises(ZeroDivisionError):
            async with agent.frozen():
                raise ZeroDivisionError
        assert not self.is_frozen
        with pytest.raises(TimeoutError):  # the block's own
            async with agent.frozen():
                raise TimeoutError
        assert not self.is_frozen

    async def test_the_deadline_cancels_the_block(self, agent: Agent) -> None:
        with pytest.raises(DeadlineExceeded, match="thawed"):
            async with agent.frozen(deadline=0.2):
                await asyncio.Event().wait()
        assert not self.is_frozen

    async def test_a_cancelled_block(self, agent: Agent) -> None:
        async def work() -> None:
            async with agent.frozen():
                await asyncio.Event().wait()

        task = asyncio.create_task(work())
        while not self.is_frozen:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not self.is_frozen

    async def test_a_freeze_that_comes_late_is_thawed(self, fake: FakeAgent, agent: Agent) -> None:
        async def late(_: Any) -> bytes:
            await asyncio.sleep(0.4)
            self.is_frozen = True
            return returns(3)

        fake.handlers["guest-fsfreeze-freeze"] = late
        with pytest.raises((AgentUnavailable, DeadlineExceeded)):
            async with agent.frozen(deadline=0.2):
                pytest.fail("not frozen, yet the block runs")
        assert not self.is_frozen

    async def test_a_thaw_that_fails_is_tried_again(self, fake: FakeAgent, agent: Agent) -> None:
        thaw, failures = fake.handlers["guest-fsfreeze-thaw"], [1, 1]

        def unsure(given: Any) -> Any:
            return refuses("GenericError", "busy") if failures and failures.pop() else thaw(given)

        fake.handlers["guest-fsfreeze-thaw"] = unsure
        async with agent.frozen():
            pass
        assert not self.is_frozen
        failures.extend([1] * 9)
        with pytest.raises(EngineError, match="busy"):  # the caller must know: it stands still
            async with agent.frozen():
                pass


class TestExec:
    async def test_output_and_input(self, fake: FakeAgent, agent: Agent) -> None:
        seen: list[Any] = []
        answers = [
            {"exited": False},
            {"exited": False},
            {"exited": True, "exitcode": 3, "err-truncated": True,
             "out-data": base64.b64encode(b"\0out").decode()},
        ]  # fmt: skip
        fake.handlers["guest-exec"] = lambda given: seen.append(given) or returns({"pid": 7})
        fake.handlers["guest-exec-status"] = lambda _: returns(answers.pop(0))
        ended = await agent.exec(["/bin/x", "a"], env={"K": "v"}, data=b"in")
        assert ended == (3, None, b"\0out", b"", True)
        assert seen == [
            {"path": "/bin/x", "arg": ["a"], "env": ["K=v"], "capture-output": True,
             "input-data": base64.b64encode(b"in").decode()}
        ]  # fmt: skip

    async def test_a_command_that_does_not_end(self, fake: FakeAgent, agent: Agent) -> None:
        fake.handlers["guest-exec"] = lambda _: returns({"pid": 7})
        fake.handlers["guest-exec-status"] = lambda _: returns({"exited": False})
        with pytest.raises(DeadlineExceeded, match="goes on"):
            await agent.exec(["sleep"], timeout=0.2)

    async def test_nonsense(self, fake: FakeAgent, agent: Agent) -> None:
        fake.handlers["guest-exec"] = lambda _: returns({"pid": "x"})
        with pytest.raises(AgentUnavailable):
            await agent.exec(["x"])
        fake.handlers["guest-exec"] = lambda _: returns({"pid": 7})
        fake.handlers["guest-exec-status"] = lambda _: returns({"exited": True, "out-data": "*"})
        with pytest.raises(AgentUnavailable):
            await agent.exec(["x"])
        with pytest.raises(InvalidInput):
            await agent.exec([])
        with pytest.raises(InvalidInput):
            await agent.exec(["x"], data=b"x" * (1 << 21))
