"""Wait for what another process does."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.states import State

#: Long enough for a worker on a machine that does a dozen other things.
PATIENCE = 60


def wait_until(
    condition: Callable[[], object],
    *,
    seconds: float = PATIENCE,
    why: str | Callable[[], str] = "waited in vain",
) -> None:
    """Return as soon as ``condition`` holds; fail with ``why`` when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, why() if callable(why) else why
        time.sleep(0.05)


def wait_for_words(log: Path, words: str) -> None:
    """Return as soon as these words stand in a process's log, which may be a long one."""
    wanted = words.encode()
    with log.open("rb") as file:
        seen = b""

        def are_there() -> bool:
            nonlocal seen
            seen = seen[-len(wanted) :] + file.read()
            return wanted in seen

        wait_until(are_there, why=f"{log.name} does not say {words!r}")


def wait_for_state(run: TaskRunRecord, *states: State, seconds: float = PATIENCE) -> TaskRunRecord:
    """Return the run as soon as its row is in one of ``states``."""

    def arrived() -> bool:
        run.refresh_from_db()
        return run.state in states

    wait_until(arrived, seconds=seconds, why=lambda: f"the run is {run.state}, not {states}")
    return run
