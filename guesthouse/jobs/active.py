"""The jobs that have not ended, by id and by what makes two submissions the same."""

from __future__ import annotations

from collections.abc import Iterator

from guesthouse.jobs.record import JobRecord
from guesthouse.model.job import Job


class ActiveJobs:
    def __init__(self) -> None:
        self._records: dict[str, JobRecord] = {}
        self._dedupe: dict[tuple[str, str], JobRecord] = {}

    def __iter__(self) -> Iterator[JobRecord]:
        return iter(list(self._records.values()))

    def get(self, id: str) -> JobRecord | None:
        return self._records.get(id)

    def add(self, record: JobRecord) -> None:
        self._records[record.id] = record
        if record.job.dedupe:
            self._dedupe[record.job.kind, record.job.dedupe] = record

    def remove(self, record: JobRecord) -> None:
        self._records.pop(record.id, None)
        key = (record.job.kind, record.job.dedupe)
        if self._dedupe.get(key) is record:
            del self._dedupe[key]

    def same(self, kind: str, dedupe: str) -> JobRecord | None:
        """The job that answers another submission with this key, if it shall go on."""
        record = self._dedupe.get((kind, dedupe))
        if record is None or record.cancel_reason is not None or record.ended.done():
            return None
        return record

    def jobs(self) -> list[Job]:
        """The oldest first; without those that ended and could not be recorded yet."""
        known = [record.known for record in self._records.values()]
        return sorted((job for job in known if not job.ended), key=lambda job: job.id)
