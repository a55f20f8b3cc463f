"""Dispatchers that are killed in the midst of it: no run is sent twice, none is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import settings
from django.db import connection
from django.utils import timezone

from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.states import State
from tests.celery_app import app
from tests.dying import COMING, SENT_AT
from tests.factories import run_fields

#: The dispatchers come late for half of the runs; the others come due while they are at it,
#: within so many seconds.
LATE, SOON, LATER = 2500, 2500, 10
WITHIN = 6
KILLS = 60


def make_scheduled(
    number: int, queue: str, *, first: float, step: float, label: str = ""
) -> list[TaskRunRecord]:
    """Make runs that come due ``first`` seconds from now, and one each ``step`` seconds later."""
    now = timezone.now()
    moments = [now + timedelta(seconds=first + place * step) for place in range(number)]
    call = {"state": State.SCHEDULED, "args": [1], "options": {"queue": queue}, "queue": queue}
    return TaskRunRecord.objects.bulk_create(
        TaskRunRecord(**run_fields(**call, eta=moment, due_at=moment, label=label))
        for moment in moments
    )


def kill_dispatchers(folder: Path) -> dict[str, int]:
    """Let dispatchers send what is due, and die; return how often they were killed."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "tests.dying"),
            *("--kills", str(KILLS), "--folder", str(folder)),
        ],
        env={**os.environ, "TEST_DATABASE_NAME": str(connection.settings_dict["NAME"])},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        told, _errors = process.communicate(timeout=300)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return json.loads(told)


def sent_messages(queue: str, folder: Path) -> list[dict[str, object]]:
    """Take all messages from a queue; return their headers."""
    if app.conf.broker_url == "filesystem://":
        # kombu's reader looks through the whole folder for each of them.
        files = (folder / "messages").glob(f"*.{queue}.msg")
        return [json.loads(file.read_text())["headers"] for file in files]
    headers = []
    with app.connection_for_read() as broker:
        messages = broker.default_channel
        while (message := messages.basic_get(queue, no_ack=True)) is not None:
            headers.append(message.headers)
        messages.queue_delete(queue)
    return headers


@pytest.mark.django_db(transaction=True)
def test_dispatchers_that_are_killed_at_random_send_no_run_twice_and_lose_none(tmp_path):
    queue = f"{settings.QUEUE}-dying"
    make_scheduled(LATE, queue, first=-3600, step=0.01)
    make_scheduled(SOON, queue, first=3600, step=WITHIN / SOON, label=COMING)
    later = make_scheduled(LATER, queue, first=7200, step=1)

    deaths = kill_dispatchers(tmp_path)
    messages = sent_messages(queue, tmp_path)

    sent = Counter(message["id"] for message in messages)
    assert deaths["errors"] == 0
    assert deaths["kills"] > KILLS / 3
    assert set(sent.values()) == {1}
    rows = TaskRunRecord.objects.exclude(pk__in=[run.pk for run in later])
    etas = {task_id: eta.timestamp() for task_id, eta in rows.values_list("task_id", "eta")}
    assert len(etas) == LATE + SOON
    assert sent.keys() <= etas.keys()
    assert all(message[SENT_AT] >= etas[message["id"]] for message in messages)
    # What is due was sent and written down, or is shown as stale when that is old enough.
    stale = TaskRunRecord.objects.stale_scheduled(timezone.now() + timedelta(minutes=6))
    marked = set(rows.filter(state=State.PENDING).values_list("task_id", flat=True))
    in_doubt = set(stale.values_list("task_id", flat=True))
    assert marked <= sent.keys()
    assert marked | in_doubt == etas.keys()
    assert in_doubt
    kept = TaskRunRecord.objects.filter(state=State.SCHEDULED, dispatch_id=None)
    assert set(kept.values_list("pk", flat=True)) == {run.pk for run in later}
