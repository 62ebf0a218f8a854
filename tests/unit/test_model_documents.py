"""Documents become bytes and come back; what is wrong with them is named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guesthouse import errors
from guesthouse.errors import InvalidInput, InvalidTransition, ReadOnlyStore, UnknownField
from guesthouse.model import document
from guesthouse.model.device import Disk, Nic, Publish
from guesthouse.model.document import SCHEMA, decode_document, decode_strict, encode
from guesthouse.model.guest import (
    BootPath,
    Guest,
    GuestSpec,
    GuestStatus,
    LaunchRecord,
    check_spec,
    pending_changes,
)
from guesthouse.model.ids import new_id
from guesthouse.model.job import Job, JobState, Step
from guesthouse.model.states import (
    LIVE,
    TRANSITIONS,
    GuestState,
    check_transition,
    require_state,
)


def spec(**fields: Any) -> GuestSpec:
    return GuestSpec(**{"image": "micro", "image_id": new_id()} | fields)


def guest(**fields: Any) -> Guest:
    return Guest(
        **{
            "id": new_id(),
            "name": "web",
            "uuid": "00000000-0000-4000-8000-000000000000",
            "number": 3,
            "created_at": 1.5,
            "spec": spec(
                disks=(Disk(name="root", volume=new_id(), size=1 << 30),),
                nics=(Nic(mac="52:67:68:00:00:01", ports=(Publish(host_port=1, guest_port=2),)),),
            ),
            "status": GuestStatus(state=GuestState.STOPPED, since=1.5),
        }
        | fields
    )


def launched(wanted: GuestSpec, started: GuestSpec) -> Guest:
    record = LaunchRecord(
        incarnation=2,
        argv=("qemu", "-S"),
        machine="pc-q35-7.2",
        cpu="max",
        accelerator="tcg",
        engine="7.2",
        boot=BootPath.DISK,
        spec=started,
        pid=7,
        pid_start=8,
        boot_id="b",
        launched_at=2.0,
    )
    running = GuestStatus(state=GuestState.RUNNING, since=2.0, pid=7)
    return guest(spec=wanted, status=running, launch=record)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(
    params=st.dictionaries(st.text(max_size=5), JSON, max_size=4),
    steps=st.lists(
        st.builds(
            Step, name=st.text(), creates=st.dictionaries(st.text(max_size=3), st.text(max_size=3))
        ),
        max_size=4,
    ),
    state=st.sampled_from(JobState),
    times=st.floats(0, 1e12),
)
def test_jobs_come_back(
    params: dict[str, Any], steps: list[Step], state: JobState, times: float
) -> None:
    job = Job(
        id=new_id(), kind="k", params=params, steps=tuple(steps), state=state, created_at=times
    )
    assert decode_document(encode(job), Job) == job


def test_guests_come_back() -> None:
    old = launched(spec(), spec(cpus=2))
    assert decode_document(encode(old), Guest) == old
    assert old.run_key == f"{old.id}.2"
    assert guest().run_key.endswith(".0")


@given(st.binary(max_size=60))
def test_no_bytes_make_decoding_fail_otherwise(data: bytes) -> None:
    with pytest.raises(InvalidInput):
        decode_document(data, Guest)


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(InvalidInput):
        decode_document(b"[" * 100_000, Guest)
    with pytest.raises(InvalidInput):
        decode_strict(b'{"a":' * 100_000, dict[str, Any])


@pytest.mark.parametrize(
    ("change", "kind", "field"),
    [
        ({"colour": "red"}, UnknownField, "colour"),
        ({"number": "three"}, InvalidInput, "number"),
        ({"spec": {"image": "x", "image_id": "y", "cpu_count": 2}}, UnknownField, "spec.cpu_count"),
        ({"spec": {"image": "x", "image_id": "y", "cpus": 1.5}}, InvalidInput, "spec.cpus"),
        ({"status": {"state": "asleep", "since": 1}}, InvalidInput, "status.state"),
        ({"name": None}, InvalidInput, "name"),
    ],
)
def test_the_wrong_field_is_named(
    change: dict[str, Any], kind: type[InvalidInput], field: str
) -> None:
    raw = json.loads(encode(guest())) | change
    with pytest.raises(kind) as caught:
        decode_document(json.dumps(raw).encode(), Guest)
    assert caught.value.detail["field"] == field
    assert field in caught.value.message


@pytest.mark.parametrize("schema", [None, 0, -1, "1", 1.5])
def test_documents_without_a_schema_do_not_parse(schema: object) -> None:
    raw = json.loads(encode(guest())) | {"schema": schema}
    with pytest.raises(InvalidInput):
        decode_document(json.dumps(raw).encode(), Guest)


def test_newer_documents_ask_for_the_newer_program() -> None:
    raw = json.loads(encode(guest())) | {"schema": SCHEMA + 2, "colour": "red"}
    with pytest.raises(ReadOnlyStore) as caught:
        decode_document(json.dumps(raw).encode(), Guest)
    assert caught.value.detail == {"schema": SCHEMA + 2}


def test_older_documents_are_upgraded_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    new = guest()
    raw = json.loads(encode(new)) | {"label": "web"}
    del raw["name"]

    def first(kind: str, raw: dict[str, Any]) -> dict[str, Any]:
        assert kind == "Guest"
        return raw | {"title": raw.pop("label")}

    def second(kind: str, raw: dict[str, Any]) -> dict[str, Any]:
        return raw | {"name": raw.pop("title")}

    monkeypatch.setattr(document, "SCHEMA", SCHEMA + 2)
    monkeypatch.setattr(document, "UPGRADES", {SCHEMA: first, SCHEMA + 1: second})
    upgraded = decode_document(json.dumps(raw).encode(), Guest)
    assert upgraded.name == "web"
    assert upgraded.schema == SCHEMA + 2


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"cpus": 0}, "cpus"),
        ({"cpus": 513}, "cpus"),
        ({"memory": 1 << 20}, "memory"),
        ({"memory": (1 << 30) + 1}, "memory"),
        ({"accelerator": "magic"}, "accelerator"),
        ({"user": "Root!"}, "user"),
        (
            {"disks": tuple(Disk(name="d", volume="v", size=1) for _ in range(2))},
            "disks",
        ),
        (
            {"nics": (Nic(mac="m", ports=(Publish(host_port=1, guest_port=0),)),)},
            "publish",
        ),
    ],
)
def test_specs_that_cannot_be(fields: dict[str, Any], field: str) -> None:
    check_spec(spec())
    with pytest.raises(InvalidInput) as caught:
        check_spec(spec(**fields))
    assert caught.value.detail["field"] == field


def test_pending_changes() -> None:
    started = spec()
    assert pending_changes(guest()) == ()
    assert pending_changes(launched(started, started)) == ()
    changed = launched(spec(image_id=started.image_id, cpus=4, memory=2 << 30), started)
    assert pending_changes(changed) == ("cpus", "memory")


def test_the_table_of_states() -> None:
    assert set(TRANSITIONS) == set(GuestState)
    for now, then in TRANSITIONS.items():
        assert now not in then
        assert then, f"{now} is a dead end"
    # From everywhere a guest can be brought to an end.
    for state in GuestState:
        reached, queue = {state}, [state]
        while queue:
            for then in TRANSITIONS[queue.pop()] - reached:
                reached.add(then)
                queue.append(then)
        assert {GuestState.STOPPED, GuestState.DELETING} <= reached


@pytest.mark.parametrize("now", GuestState)
@pytest.mark.parametrize("then", GuestState)
def test_transitions(now: GuestState, then: GuestState) -> None:
    if then in TRANSITIONS[now]:
        check_transition("web", now, then)
        return
    with pytest.raises(InvalidTransition) as caught:
        check_transition("web", now, then, verb="do it")
    assert "'web'" in caught.value.message
    assert now.value in caught.value.message
    assert caught.value.hint
    assert "{" not in caught.value.hint


def test_required_states() -> None:
    require_state("web", GuestState.RUNNING, LIVE, verb="stop it")
    with pytest.raises(InvalidTransition):
        require_state("web", GuestState.STOPPED, LIVE, verb="stop it")


def test_every_error_has_its_own_code_and_is_in_the_tree() -> None:
    classes = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.GuesthouseError)
    ]
    # Rooms may refine an error for themselves; what crosses the API is in the tree.
    found = {kind for kind in errors.all_errors().values() if kind.__module__ == errors.__name__}
    assert found == set(classes)
    assert len({kind.code for kind in classes}) == len(classes)
    tree = errors.__doc__ or ""
    for kind in classes:
        assert kind.__name__ in tree
        assert 400 <= kind.status < 600
