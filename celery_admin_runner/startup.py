"""The startup hook: prune once a day, when a worker is ready or a request was served."""

from __future__ import annotations

import logging
from datetime import timedelta
from threading import Thread
from typing import Any
from uuid import uuid4

from celery.signals import worker_ready
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import request_finished
from django.db import DatabaseError, InterfaceError, connections
from django.utils import timezone

from celery_admin_runner.conf import settings
from celery_admin_runner.exceptions import PruneError
from celery_admin_runner.models import Lease
from celery_admin_runner.retention import Selection, cutoff_before, prune

logger = logging.getLogger("celery_admin_runner")

#: Who holds this lease prunes; it is never given back, it runs out.
LEASE_NAME = "prune on startup"
LEASE_LASTS = timedelta(days=1)
THREAD_NAME = "celery-admin-runner-prune"
#: Requests of the test client come from another handler, and start nothing.
HANDLERS = (WSGIHandler, ASGIHandler)


def connect() -> None:
    """Wait for the first worker or request of this process; no query, no thread yet."""
    worker_ready.connect(on_worker_ready)
    for handler in HANDLERS:
        request_finished.connect(on_request_finished, sender=handler)


def on_worker_ready(**kwargs: Any) -> None:
    """Prune, if that is asked for: a worker of this process takes messages now."""
    start()


def on_request_finished(**kwargs: Any) -> None:
    """Prune, if that is asked for: the first request is answered; later ones pay nothing."""
    for handler in HANDLERS:
        request_finished.disconnect(on_request_finished, sender=handler)
    start()


def start() -> Thread | None:
    """Start the thread that prunes, if PRUNE_ON_STARTUP and RETENTION ask for it."""
    age = settings.RETENTION
    if not settings.PRUNE_ON_STARTUP or age is None:
        return None
    thread = Thread(target=prune_in_background, args=[age], name=THREAD_NAME, daemon=True)
    thread.start()
    return thread


def prune_in_background(age: timedelta) -> None:
    """Prune what is older than ``age``, unless another process did today.

    Closes this thread's connections to databases. What goes wrong (the database is
    away, the tables are not there yet) is logged, and left to the next day.
    """
    try:
        pruned = prune_once_a_day(age)
    except (DatabaseError, InterfaceError, PruneError) as error:
        logger.warning("Old task runs could not be pruned on startup: %s", error)
    else:
        if pruned:
            logger.info("Pruned %d old task runs on startup.", pruned)
    finally:
        connections.close_all()


def prune_once_a_day(age: timedelta) -> int:
    """Prune what is older than ``age`` if today's lease is free; return how many runs went.

    A process that dies meanwhile keeps nobody from pruning longer than the lease lasts.
    """
    now = timezone.now()
    if not Lease.objects.take(LEASE_NAME, holder=uuid4(), now=now, until=now + LEASE_LASTS):
        return 0
    selection = Selection(cutoff=cutoff_before(now, age))
    return sum(number for number in prune(selection))
