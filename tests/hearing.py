"""What is told of runs in the processes of a worker: written down there, a line each, by run.

A worker that is started with ``-I tests.hearing`` and TEST_HEARS listens.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.signals import run_changed, run_progressed

FOLDER = Path(os.environ["TEST_FOLDER"]) / "heard"


def heard(task_id: str) -> list[list[Any]]:
    """Return what was told of a run, in order; each line begins with the process."""
    path = FOLDER / task_id
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def moves(task_id: str) -> list[tuple[str, str]]:
    """Return from which state to which a run was told to be moved."""
    return [(line[2], line[3]) for line in heard(task_id) if line[1] == "moved"]


def _write_down(task_id: str, *values: Any) -> None:
    FOLDER.mkdir(exist_ok=True)
    with (FOLDER / task_id).open("a") as file:
        file.write(json.dumps([os.getpid(), *values]) + "\n")


def _hear_of_move(run: TaskRunRecord, from_state: str, to_state: str, **kwargs: Any) -> None:
    # By the database of the site, which nobody keeps from its receivers in a worker.
    seen = TaskRunRecord.objects.get(pk=run.pk)
    _write_down(run.task_id, "moved", from_state, to_state, run.state, seen.state)


def _hear_of_progress(task_id: str, run_pk: int, user_pk: str, **kwargs: Any) -> None:
    step = [kwargs["current"], kwargs["total"], kwargs["message"]]
    _write_down(task_id, "progressed", run_pk, user_pk, *step)


if "TEST_HEARS" in os.environ:
    run_changed.connect(_hear_of_move)
    run_progressed.connect(_hear_of_progress)
