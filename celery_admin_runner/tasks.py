"""The tasks that we bring: part of the machinery, neither runnable by users nor tracked."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from time import monotonic

from celery import shared_task
from django.utils import timezone

from celery_admin_runner.dispatcher import dispatch_in_this_thread
from celery_admin_runner.exceptions import PruneError
from celery_admin_runner.registry import DISPATCH_TASK, PRUNE_SEEN_TASK
from celery_admin_runner.retention import SEEN_AGE, Selection, cutoff_before, prune

logger = logging.getLogger("celery_admin_runner")

#: ``prune_seen_runs`` deletes so many runs in a transaction, and begins none after so long, in
#: seconds: what is left is for the next time.
PRUNE_BATCH_SIZE, PRUNE_LASTS = 1000, 60.0


@shared_task(name=DISPATCH_TASK, ignore_result=True)  # type: ignore[untyped-decorator]
def dispatch_due_runs() -> None:
    """Send the runs that are due, once: for a schedule of beat (DISPATCH="beat").

    In a thread of its own, where no task runs: what is sent is no child of this one.
    """
    with ThreadPoolExecutor(1) as alone:
        alone.submit(dispatch_in_this_thread).result()


@shared_task(name=PRUNE_SEEN_TASK, ignore_result=True)  # type: ignore[untyped-decorator]
def prune_seen_runs(older_than_seconds: float = SEEN_AGE.total_seconds()) -> int:
    """Delete the runs whose users have seen the end, if that is long enough ago; return how many.

    For a schedule of beat; as ``prune_taskruns --seen``. Of several at once each deletes what
    the others have left. Raises PruneError, and deletes nothing, for an age that is none.
    """
    if not older_than_seconds >= 0:
        raise PruneError(f"{older_than_seconds!r} is no age in seconds: choose 0 or more.")
    end, pruned = monotonic() + PRUNE_LASTS, 0
    try:
        age = timedelta(seconds=older_than_seconds)
    except OverflowError as error:
        raise PruneError(f"{older_than_seconds!r} seconds are too long.") from error
    selection = Selection(cutoff=cutoff_before(timezone.now(), age), only_seen=True)
    for number in prune(selection, batch_size=PRUNE_BATCH_SIZE):
        pruned += number
        if monotonic() >= end:
            break
    if pruned:
        logger.info("Pruned %d task runs whose users have seen them.", pruned)
    return pruned
