"""The command by which a worker kills the process of a run that went on after SIGTERM.

Celery 5.7 forgets a task as soon as it has sent SIGTERM to its process, whether that ends or
not: its own remote control then knows no such task. The pool still knows.
"""

from __future__ import annotations

import signal
from functools import partial
from typing import Any

from celery import bootsteps
from celery.worker.control import control_command
from django.utils import timezone

from celery_admin_runner import tracking
from celery_admin_runner.control import KILL_COMMAND
from celery_admin_runner.recording import report
from celery_admin_runner.states import State


class KillStep(bootsteps.Step):  # type: ignore[misc]
    """Teaches the worker that begins the command; other processes need nothing of this."""

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        """Bind it to a worker."""
        super().__init__(parent, **kwargs)
        register()


def register() -> None:
    """Teach the workers of this process the command."""
    command = {"name": KILL_COMMAND, "args": [("task_id", str)], "signature": "<task_id>"}
    control_command(**command)(kill)


def kill(state: Any, task_id: str, **kwargs: Any) -> dict[str, str]:
    """Kill the process of this worker that runs the task, and record that it has ended.

    Celery does not: it has told of this end when it sent SIGTERM. Raises NotImplementedError
    if the pool has no processes.
    """
    pool = state.consumer.pool
    pids = _processes(pool, task_id)
    if not pids:
        return {"ok": "kill: tasks unknown"}
    for pid in pids:
        pool.terminate_job(pid, signal.SIGKILL)
    end = partial(
        tracking.record_end,
        task_id,
        attempt=None,
        state=State.REVOKED,
        why=tracking.TERMINATED,
        now=timezone.now(),
        sources=[State.CANCELLING],
    )
    report("the end REVOKED", task_id, end)
    return {"ok": f"kill: {task_id}"}


def _processes(pool: Any, task_id: str) -> list[int]:
    """Return the ids of the pool's processes that run the task just now (billiard 4.2)."""
    jobs = getattr(getattr(pool, "_pool", None), "_cache", None)
    if jobs is None:
        raise NotImplementedError(f"{type(pool).__name__} has no processes to kill.")
    mine = [job for job in list(jobs.values()) if job.correlation_id == task_id]
    return [pid for job in mine for pid in job.worker_pids()]
