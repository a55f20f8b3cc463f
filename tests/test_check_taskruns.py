from __future__ import annotations

import io
import json
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection
from django.db.models import F
from django.utils import timezone

from celery_admin_runner.management.commands import check_taskruns
from celery_admin_runner.models import RecordingFault
from celery_admin_runner.states import State
from tests.factories import make_run

pytestmark = pytest.mark.django_db

GOOD = "Recording faults: none.\nUnfinished runs: none.\nStale runs: none.\n"


def command(*arguments):
    """Return the exit code and the output."""
    output = io.StringIO()
    try:
        call_command("check_taskruns", *arguments, stdout=output)
    except SystemExit as end:
        return end.code, output.getvalue()
    return 0, output.getvalue()


def make_fault(worker="celery@a", count=1, minutes=0):
    return RecordingFault.objects.create(
        worker=worker,
        count=count,
        task_id="the-run",
        error="on_success: gone",
        happened_at=timezone.now() - timedelta(minutes=minutes),
    )


def test_a_journal_in_good_health_ends_well():
    make_run()

    assert command() == (0, GOOD)


def test_without_verbosity_only_what_somebody_has_to_look_at_is_told():
    assert command("-v", "0") == (0, "")

    make_fault()

    code, output = command("-v", "0")
    assert code == 1
    assert "gone" in output


def test_unfinished_runs_are_told_by_state_and_queue_with_the_oldest_age():
    now = timezone.now()
    make_run(state=State.PENDING, queue="mail", created_at=now - timedelta(hours=2))
    make_run(state=State.PENDING, queue="mail")
    make_run(state=State.WAITING, queue="")

    code, output = command()

    lines = output.splitlines()
    assert code == 0
    assert lines[1] == "Unfinished runs:"
    assert lines[2].startswith("  PENDING, queue mail: 2, the oldest is 2:00:")
    assert lines[3].startswith("  WAITING, queue -: 1, the oldest is 0:00:")


def test_an_age_is_never_negative():
    make_run(state=State.PENDING, queue="q", created_at=timezone.now() + timedelta(hours=1))

    assert "the oldest is 0:00:00 old" in command()[1]


def test_stale_runs_are_counted_and_make_it_end_badly():
    make_run(state=State.STARTED, created_at=timezone.now() - timedelta(hours=1))

    code, output = command()

    assert code == 1
    assert "Stale runs: 1. manage.py find_stale_taskruns lists them." in output


def test_faults_are_counted_by_worker_and_make_it_end_badly():
    make_fault(count=1200, minutes=5)
    make_fault(worker="", count=1)

    code, output = command()

    lines = output.splitlines()
    assert code == 1
    assert lines[0].startswith("Recording faults: 1,201.")
    assert lines[1].startswith("  outside workers: 1, the latest of run the-run at ")
    assert lines[2].startswith("  celery@a: 1,200, ")
    assert lines[2].endswith(": on_success: gone")


def test_faults_are_forgotten_after_they_were_told():
    make_fault()

    assert command("--reset")[0] == 1
    assert command() == (0, GOOD)


def test_a_fault_that_comes_while_others_are_told_is_not_forgotten(monkeypatch):
    fault = make_fault(count=2)
    as_text = check_taskruns._as_text

    def tell_slowly(health):
        RecordingFault.objects.filter(pk=fault.pk).update(count=F("count") + 1)
        return as_text(health)

    monkeypatch.setattr(check_taskruns, "_as_text", tell_slowly)

    command("--reset")

    assert RecordingFault.objects.get().count == 1


def test_json_holds_the_same():
    make_fault(count=3)
    run = make_run(
        state=State.STARTED, queue="mail", created_at=timezone.now() - timedelta(hours=1)
    )

    code, output = command("--json")

    health = json.loads(output)
    assert code == 1
    assert (health["good"], health["stale"], health["faults"]["total"]) == (False, 1, 3)
    assert health["faults"]["workers"][0]["latest_id"] == "the-run"
    [group] = health["unfinished"]
    assert (group["state"], group["queue"], group["runs"]) == ("STARTED", "mail", 1)
    assert group["oldest_at"] == run.created_at.isoformat()
    assert group["oldest_age"] >= 3600


def test_scheduled_runs_of_which_nobody_knows_whether_they_were_sent_are_told():
    moment = timezone.now() - timedelta(hours=1)
    make_run(state=State.SCHEDULED, claimed_at=moment, due_at=moment)

    code, output = command()
    _, as_json = command("--json")

    health = json.loads(as_json)
    assert code == 1
    assert "may have been sent, or not: 1. manage.py find_stale_scheduled_taskruns" in output
    assert (health["good"], health["stale"], health["stale_scheduled"]) == (False, 0, 1)


def test_it_asks_four_questions(django_assert_num_queries):
    with django_assert_num_queries(4):
        command()


def test_a_database_that_does_not_answer_is_told_in_plain_words():
    def refuse(execute, sql, params, many, context):
        raise OperationalError("gone")

    with (
        connection.execute_wrapper(refuse),
        pytest.raises(CommandError, match="The database can't be asked: gone"),
    ):
        command()
