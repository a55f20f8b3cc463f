"""Wait for what another process does."""

from __future__ import annotations

import time
from collections.abc import Callable

from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.states import State


def wait_until(condition: Callable[[], object], *, seconds: float = 30, why: str = "") -> None:
    """Return as soon as ``condition`` holds; fail with ``why`` when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, why or "waited in vain"
        time.sleep(0.05)


def wait_for_state(run: TaskRunRecord, *states: State, seconds: float = 30) -> TaskRunRecord:
    """Return the run as soon as its row is in one of ``states``."""

    def arrived() -> bool:
        run.refresh_from_db()
        return run.state in states

    wait_until(arrived, seconds=seconds, why=f"the run is {run.state}, not {states}")
    return run
