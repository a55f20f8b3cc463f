"""Tasks that are cancelled."""

from __future__ import annotations

import time
from pathlib import Path

from celery import Task, shared_task

from celery_admin_runner.base import DjangoTask
from celery_admin_runner.runs import current_run

#: A task that nobody stops ends by itself after so many seconds.
AT_MOST = 20


def wait_for(path: Path) -> bool:
    """Tell whether the file came in time."""
    deadline = time.monotonic() + AT_MOST
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@shared_task(base=DjangoTask)
def guarded(path: str) -> None:
    """Leave a file."""
    Path(path).touch()


@shared_task
def unguarded(path: str) -> None:
    """Leave a file."""
    Path(path).touch()


@shared_task
def stubborn(folder: str) -> str:
    """Do not stop at SIGTERM; end as soon as there is a file."""
    begun, end = Path(folder) / "begun", Path(folder) / "end"
    try:
        begun.touch()
        wait_for(end)
    except SystemExit:
        (Path(folder) / "asked").touch()
        wait_for(end)
    return "went on"


@shared_task
def polite(folder: str) -> None:
    """Look again and again whether to stop."""
    run = current_run()
    assert run is not None
    (Path(folder) / "begun").touch()
    deadline = time.monotonic() + AT_MOST
    while time.monotonic() < deadline:
        run.raise_if_cancelled()
        time.sleep(0.05)


@shared_task(bind=True, base=DjangoTask, max_retries=3)
def tried_again(self: Task, folder: str, countdown: float) -> None:
    """Fail the first time, and be tried again a little later."""
    (Path(folder) / str(self.request.retries)).touch()
    raise self.retry(countdown=countdown)
