"""How far a run is, as its task says: never backwards, and written down twice a second at most."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import RLock
from typing import Any

from celery_admin_runner.ansi import without_escapes
from celery_admin_runner.encoding import storable_text, text_of
from celery_admin_runner.recording import journal

#: Seconds between two writes.
INTERVAL = 0.5
#: The largest number that every database takes.
MAXIMUM = 2**63 - 1
#: Longest message, in characters.
MESSAGE_MAX_LENGTH = 255


@dataclass(frozen=True)
class Step:
    """How far a run is; ``total`` None: unknown."""

    current: int
    total: int | None
    message: str


class Progress:
    """The progress of one attempt of a run.

    ``scrub`` masks the secrets in its messages; ``tell`` hears of each step that was written.
    """

    def __init__(
        self,
        task_id: str,
        *,
        attempt: int,
        scrub: Callable[[str], str],
        tell: Callable[[Step], None],
    ) -> None:
        self._task_id = task_id
        self._attempt = attempt
        self._scrub = scrub
        self._tell = tell
        self._lock = RLock()
        self._latest: Step | None = None
        self._written: Step | None = None
        #: When it may be written again; on the monotonic clock.
        self.due_at = 0.0

    def advance(self, current: float, total: float | None, message: object) -> bool:
        """Take how far the run is; tell whether until now nothing waited to be written.

        A smaller ``current`` than before changes only the rest.
        """
        done = _count(current, "current")
        whole = None if total is None else _count(total, "total")
        with self._lock:
            is_first = self._latest is self._written
            done = max(done, self._latest.current if self._latest else 0)
            # Nothing of nothing is no part that could be shown.
            whole = max(whole, done) if whole else None
            self._latest = Step(
                current=done, total=whole, message="" if message is None else text_of(message)
            )
        return is_first

    @property
    def waits(self) -> bool:
        """Tell whether the latest step is not written down."""
        return self._latest is not self._written

    def write(self, now: float) -> None:
        """Write down the latest step, by one guarded UPDATE; raises recording.FAULTS."""
        step = self._latest
        self.due_at = now + INTERVAL
        if step is None or step is self._written:
            return
        # The next attempt, which begins at nothing, may have started already.
        message = self._shown(step)
        runs = journal().filter(task_id=self._task_id, retries=self._attempt)
        is_written = runs.advance(current=step.current, total=step.total, message=message)
        self._written = step
        if is_written:
            self._tell(replace(step, message=message))

    def fields(self) -> dict[str, Any]:
        """Return the fields of the latest step, to be written with the end; {} if none waits."""
        step = self._latest
        if step is None or step is self._written:
            return {}
        return {
            "progress_current": step.current,
            "progress_total": step.total,
            "progress_message": self._shown(step),
        }

    def _shown(self, step: Step) -> str:
        """Return the message as it can be stored: without secrets, and short enough."""
        text = storable_text(self._scrub(without_escapes(step.message)))
        return text.strip()[:MESSAGE_MAX_LENGTH]


def _count(value: float, name: str) -> int:
    """Return a number as the database can hold it; what is no number raises TypeError."""
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number, not {value!r}.")
    # No isnan(value): an int may be too large for a float.
    if value <= 0 or value != value:
        return 0
    return MAXIMUM if value >= MAXIMUM else int(value)
