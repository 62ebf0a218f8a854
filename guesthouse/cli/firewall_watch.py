"""`guest firewall test|counters|log`: what rules would do, and what they did."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import click
import msgspec

from guesthouse.cli import output
from guesthouse.cli.command import command, complete_guests, guest_argument, json_option
from guesthouse.cli.firewall_words import complete_far, parse_traffic
from guesthouse.cli.session import open_house
from guesthouse.cli.table import GREEN, RED, colourful, paint, render, show, terminal_width
from guesthouse.client.firewall import COUNTERS, Firewalls
from guesthouse.errors import InvalidInput
from guesthouse.model.firewall import Action, Direction
from guesthouse.model.firewalling import LoggedPacket, PacketRequest
from guesthouse.model.rule_edits import WORDS

_BYTES_PER_LINE = 500
_MOST = 16 << 20


@command(
    "test",
    examples=[
        ("guest firewall test web in tcp 22 --from db", ""),
        ("guest firewall test web in tcp 80", "From outside"),
        ("guest firewall test web out udp 53 --to 192.0.2.53", ""),
        ("guest firewall test web out tcp 22 --to host", "To this host itself"),
    ],
)
@guest_argument()
@click.argument("direction", type=click.Choice([one.value for one in Direction]))
@click.argument("traffic", nargs=-1, required=True, metavar="tcp PORT|udp PORT|icmp")
@click.option("--from", "source", metavar="WHO", shell_complete=complete_far, help="Who sends it.")
@click.option(
    "--to", "target", metavar="WHO", shell_complete=complete_far, help="Who is to get it."
)
@json_option
def firewall_test(
    name: str,
    direction: str,
    traffic: tuple[str, ...],
    source: str | None,
    target: str | None,
    as_json: bool,
) -> None:
    """Say what would become of a packet, and which rule decides. Nothing is sent.

    WHO is a guest, an address, host (this host itself), house (the guest's own gateway) or outside,
    which is what is meant when nobody is named. It leaves with 1 if the packet would not arrive.
    """
    wrong = target if direction == "in" else source
    if wrong is not None:
        raise InvalidInput(
            f"What goes {direction} has {name} itself at that end.",
            hint="Use --from with in, and --to with out.",
        )
    protocol, ports = parse_traffic(traffic)
    if len(ports) > 1 or (ports and not ports[0].isdigit()):
        raise InvalidInput("A packet has one port.", hint="Write for example: tcp 22")
    packet = PacketRequest(
        direction=Direction(direction),
        protocol=protocol,
        port=int(ports[0]) if ports and len(ports[0]) < 6 else 0,
        far=source or target or "outside",
    )
    found = Firewalls(open_house()).test(name, packet)
    if as_json:
        output.json_result(msgspec.to_builtins(found))
    else:
        arrives = found.action is Action.ACCEPT
        word = {"allow": "allowed", "deny": "denied", "reject": "rejected"}[WORDS[found.action]]
        word = paint(word, GREEN if arrives else RED) if colourful() else word
        port = f" port {found.port}" if found.port else ""
        what = f"{protocol.value} from {found.source} to {found.destination}{port}"
        show(f"{word}: {what}\n")
        rows = [("Because", found.reason), ("Decided by", found.label)]
        output.pairs([*rows, *([("After", ", ".join(found.passed))] if found.passed else [])])
    if found.action is not Action.ACCEPT:
        raise click.exceptions.Exit(1)


@command(
    "counters",
    examples=[("guest firewall counters", ""), ("guest firewall counters --json", "")],
)
@click.option("--all", "-a", "every", is_flag=True, help="Also what never decided.")
@json_option
def firewall_counters(every: bool, as_json: bool) -> None:
    """Show what decided how often: rules, policies, walls and checks of the house.

    Rules that let a connection through count it once; what follows counts as house/established.
    """
    house = open_house()
    if as_json:
        output.json_result(house.raw(COUNTERS))
        return
    found = [one for one in Firewalls(house).counters() if one.packets or every]
    if not found:
        output.note("nothing was decided yet; rules are loaded when a guest starts on a network")
        return
    rows = [[str(one.packets), str(one.bytes), one.label, one.reason] for one in found]
    headers = ["PACKETS", "BYTES", "RULE", "REASON"]
    show(render(headers, rows, width=terminal_width(), drop=("BYTES",), colour=colourful()))


@command(
    "log",
    examples=[
        ("guest firewall log", "Packets about which rules with --log decided"),
        ("guest firewall log web -f", "Those about web, and all that follow; Ctrl-C leaves"),
        ("guest firewall log --json", "A JSON object a line"),
    ],
)
@click.argument("name", metavar="[GUEST]", required=False, shell_complete=complete_guests)
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes.")
@click.option("--lines", "-n", type=click.IntRange(0), metavar="LINES", help="Only the last LINES.")
@json_option
def firewall_log(name: str | None, follow: bool, lines: int | None, as_json: bool) -> None:
    """Show packets that rules logged: those that were added with --log.

    Of a flood some are left out: 5 packets a second for each rule.
    """
    tail = _MOST if lines is None else min(lines * _BYTES_PER_LINE * 4, _MOST)
    firewalls = Firewalls(open_house())
    with firewalls.log(guest=name or "", tail=tail, follow=follow) as stream:
        try:
            _show_lines(iter(stream), lines, as_json=as_json, follow=follow)
        except KeyboardInterrupt:
            if not follow:
                raise
            return
    if follow:
        output.note("the daemon stopped, and with it this; run it again to follow on")


def _show_lines(pieces: Iterator[bytes], lines: int | None, *, as_json: bool, follow: bool) -> None:
    """While following, the last `lines` are those of the first piece."""
    if lines is not None and not follow:
        whole = b"".join(pieces).splitlines()
        _show_some(whole[-lines:] if lines else [], as_json=as_json)
        return
    held, first = b"", lines is not None
    for piece in pieces:
        *whole, held = (held + piece).split(b"\n")
        _show_some(whole[-(lines or 0) :] if first and lines else whole, as_json=as_json)
        first = False


def _show_some(lines: list[bytes], *, as_json: bool) -> None:
    for line in lines:
        if as_json:
            os.write(1, line + b"\n")
        else:
            output.result(_spoken(msgspec.json.decode(line, type=LoggedPacket)))


def _spoken(packet: LoggedPacket) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(packet.time))
    source = _end(packet.source, packet.sender_name, packet.source_port)
    destination = _end(packet.destination, packet.receiver_name, packet.port)
    rule = packet.rule.rpartition("/")[2]
    word = WORDS[packet.action]
    return (
        f"{when}  {word:6}  {packet.protocol}  {source} -> {destination}  ({packet.owner}: {rule})"
    )


def _end(address: str, name: str, port: int) -> str:
    where = f"[{address}]" if ":" in address and port else address
    text = f"{where}:{port}" if port else where
    return f"{name} {text}" if name else text
