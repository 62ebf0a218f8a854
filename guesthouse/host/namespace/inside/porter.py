"""The porter: stands inside the house's namespaces and does there what its daemon asks.

It lives as long as the socket to its daemon does. Requests are JSON, one each packet, answered in
order; taps and sockets come back as descriptors (SCM_RIGHTS). A fork of the daemon itself would do
it too, but the daemon has threads, and the child of such a process may hardly do anything safely.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable, Sequence
from typing import Any

from guesthouse.host.namespace.inside import kernel, netfilter, prepare

PORTER_NAME = "gh-porter"
BUFFER = 64 << 10
_Answer = tuple[dict[str, Any], list[int]]


def main(arguments: Sequence[str]) -> int:
    """`arguments`: descriptors of the socket and of the user (-1: the host's), net and mount
    namespaces. Returns the exit code.
    """
    number, user, net, mount = map(int, arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=number) as daemon:
        try:
            _enter(user, net, mount)
            greeting: dict[str, Any] = {"lacks": prepare.network(new=False)}
        except prepare.Failed as why:
            greeting = {"failed": {"step": why.step, "number": why.number, "said": why.said}}
        _send(daemon, (greeting, []))
        while request := daemon.recv(BUFFER):
            _send(daemon, _do(json.loads(request)))
    return 0


def _enter(user: int, net: int, mount: int) -> None:
    with prepare.step("enter"):
        if user >= 0:
            kernel.setns(user, kernel.NEWUSER)
        kernel.setns(net, kernel.NEWNET)
        kernel.setns(mount, kernel.NEWNS)
        for fd in (user, net, mount):
            if fd >= 0:
                os.close(fd)
        kernel.set_name(PORTER_NAME)


def _do(request: dict[str, Any]) -> _Answer:
    try:
        return _OPERATIONS[request["op"]](request)
    except OSError as error:
        return {"errno": error.errno or 0}, []


def _tap(request: dict[str, Any]) -> _Answer:
    return {}, [kernel.open_tap(request["name"], persist=True)]


def _sniff(request: dict[str, Any]) -> _Answer:
    return {}, [kernel.sniff(request["name"], room=request["room"]).detach()]


def _settings(request: dict[str, Any]) -> _Answer:
    for name, value in request["values"].items():
        prepare.setting(name, value)
    return {}, []


def _netfilter(request: dict[str, Any]) -> _Answer:
    """Descriptors of what tells of changed rules and, if a group is named, of logged packets."""
    fds = [netfilter.changes()]
    group = request["group"]
    if group is None:
        return {}, fds
    try:
        return {}, [*fds, netfilter.packets(group)]
    except OSError as error:
        return {"unlogged": error.errno or 0}, fds


_OPERATIONS: dict[str, Callable[[dict[str, Any]], _Answer]] = {
    "tap": _tap,
    "sniff": _sniff,
    "settings": _settings,
    "netfilter": _netfilter,
}


def _send(daemon: socket.socket, answer: _Answer) -> None:
    body, fds = answer
    try:
        socket.send_fds(daemon, [json.dumps(body).encode()], fds)
    finally:
        for fd in fds:
            os.close(fd)
