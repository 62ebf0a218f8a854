"""`guest job ls|show|cancel|log`."""

from __future__ import annotations

import time

import click

from guesthouse.cli import output
from guesthouse.cli.command import command, complete_guests, complete_jobs, json_option
from guesthouse.cli.family import Family
from guesthouse.cli.rows import span
from guesthouse.cli.session import open_house
from guesthouse.cli.table import colourful, plain, render, show, terminal_width
from guesthouse.client.house import job_path
from guesthouse.model.job import Job

job_argument = click.argument("job_id", metavar="JOB", shell_complete=complete_jobs)


@click.group(
    "job",
    cls=Family,
    examples=[
        ("guest job ls --active", "What the house is at work on"),
        ("guest job log 01J9", ""),
    ],
)
def job() -> None:
    """Jobs: everything that changes the house.

    A job is durable: it goes on when this program or the daemon ends. JOB is its id or a unique
    beginning of it.
    """


@command(
    "ls",
    examples=[
        ("guest job ls", "The last ones, newest first"),
        ("guest job ls --active", "Those that have not ended"),
        ("guest job ls --guest web -n 5", ""),
    ],
)
@click.option("--active", "-a", is_flag=True, help="Only those that have not ended.")
@click.option("--guest", "-g", default="", metavar="NAME", help="Only those of a guest.",
              shell_complete=complete_guests)  # fmt: skip
@click.option("--limit", "-n", type=click.IntRange(1, 1000), default=20, show_default=True)
@json_option
def job_ls(active: bool, guest: str, limit: int, as_json: bool) -> None:
    """List jobs, the newest first."""
    house = open_house()
    jobs = house.jobs(active=active, guest=guest, limit=limit)
    if as_json:
        import msgspec

        output.json_result(msgspec.to_builtins(jobs))
    elif jobs:
        show(job_table(jobs, width=terminal_width()))
    else:
        output.note("no jobs")


def job_table(jobs: list[Job], *, width: int | None = None) -> str:
    now = time.time()
    rows = [
        [one.id, one.state.value, one.kind, one.target_name, span(now - one.created_at),
         _took(one, now), one.problem.message if one.problem else ""]
        for one in jobs
    ]  # fmt: skip
    headers = ["JOB", "STATE", "KIND", "OF", "AGE", "TOOK", "PROBLEM"]
    drop = ("TOOK", "AGE", "PROBLEM", "OF")
    return render(headers, rows, width=width, drop=drop, colour=colourful())


def _took(job: Job, now: float) -> str:
    if job.started_at is None:
        return ""
    seconds = (job.ended_at or now) - job.started_at
    return f"{seconds:.1f}s" if seconds < 60 else span(seconds)


@command("show", examples=[("guest job show 01J9", ""), ("guest job show 01J9 --json", "")])
@job_argument
@json_option
def job_show(job_id: str, as_json: bool) -> None:
    """Show everything about a job."""
    house = open_house()
    if as_json:
        output.json_result(house.raw(job_path(job_id)))
        return
    found = house.job(job_id)
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.created_at))
    rows = [
        ("Job", found.id),
        ("Kind", found.kind),
        ("Of", found.target_name or found.target or "the house"),
        ("State", found.state.value),
        ("Asked for", f"{when} by {found.requester or 'the house itself'}"),
        ("Took", _took(found, time.time()) or "not begun"),
    ]
    if found.attempts > 1:
        rows.append(("Attempts", f"{found.attempts} (the daemon was restarted in between)"))
    if found.steps:
        rows.append(("Steps", ", ".join(step.name for step in found.steps)))
    if not found.ended:
        rows.append(("Cancel", "possible" if found.may_cancel else "not possible"))
    if found.problem:
        rows.append(("Problem", found.problem.message))
        if found.problem.hint:
            rows.append(("", found.problem.hint))
    output.pairs(rows)


@command("cancel", examples=[("guest job cancel 01J9", "What it did so far is undone")])
@job_argument
def job_cancel(job_id: str) -> None:
    """Cancel a job. What it did so far is undone."""
    house = open_house()
    found = house.job(job_id)
    if found.ended:
        output.note(f"{found.id} has ended already: {found.state.value}")
        return
    house.cancel(found.id)
    output.result(f"Cancelling {found.id} ({found.kind} {found.target_name})".replace(" )", ")"))


@command("log", examples=[("guest job log 01J9", "What it wrote while it worked")])
@job_argument
def job_log(job_id: str) -> None:
    """Show the log of a job."""
    house = open_house()
    for line in house.job_log(job_id).splitlines():
        show(f"{plain(line)}\n")


for _command in (job_ls, job_show, job_cancel, job_log):
    job.add_command(_command)
