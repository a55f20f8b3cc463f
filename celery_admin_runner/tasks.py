"""The tasks that we bring: part of the machinery, neither runnable by users nor tracked."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from celery import shared_task

from celery_admin_runner.dispatcher import dispatch_in_this_thread
from celery_admin_runner.registry import DISPATCH_TASK


@shared_task(name=DISPATCH_TASK, ignore_result=True)  # type: ignore[untyped-decorator]
def dispatch_due_runs() -> None:
    """Send the runs that are due, once: for a schedule of beat (DISPATCH="beat").

    In a thread of its own, where no task runs: what is sent is no child of this one.
    """
    with ThreadPoolExecutor(1) as alone:
        alone.submit(dispatch_in_this_thread).result()
