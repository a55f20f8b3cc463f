from __future__ import annotations

import io
import json
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection
from django.utils import timezone

from celery_admin_runner.management import listing
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.states import State
from tests.brokers import broker_away
from tests.factories import make_run, make_runs
from tests.waiting import wait_for_state

pytestmark = pytest.mark.django_db

LONG = timedelta(days=3)


def stale_run(state=State.STARTED, **fields):
    return make_run(state=state, **{"created_at": timezone.now() - LONG, **fields})


def command(*arguments, **options):
    """Return the exit code and the output."""
    output = io.StringIO()
    try:
        call_command("find_stale_taskruns", *arguments, stdout=output, **options)
    except SystemExit as end:
        return end.code, output.getvalue()
    return 0, output.getvalue()


def state_of(run):
    run.refresh_from_db()
    return run.state


def test_without_stale_runs_it_says_so_and_ends_well():
    make_run()
    make_run(state=State.STARTED)

    assert command() == (0, "No stale runs.\n")


def test_stale_runs_are_listed_with_what_helps_to_find_them():
    run = stale_run(worker="celery@here", queue="mail")

    code, output = command()

    line, advice = output.splitlines()
    since = timezone.localtime(run.created_at).isoformat(" ", "seconds")
    assert code == 1
    assert line == (
        f"{run.task_id}  STARTED  tests.tasks.add  since {since}  worker celery@here  queue mail"
    )
    assert advice.startswith("1 stale run. ")
    assert "--mark-lost" in advice
    assert state_of(run) == State.STARTED


def test_what_is_not_known_is_a_dash():
    stale_run(queue="")

    _, output = command()

    assert "worker -  queue -\n" in output


def test_a_quiet_command_lists_and_says_no_more():
    stale_run()

    assert len(command(verbosity=0)[1].splitlines()) == 1
    assert command("--state", "UNSENT", verbosity=0) == (0, "")


@pytest.mark.parametrize(("number", "lines"), [(0, 1), (1, 3), (5, 7)])
def test_json_is_one_array_a_line_for_each_run(number, lines, monkeypatch):
    monkeypatch.setattr(listing, "BATCH_SIZE", 2)
    made = make_runs(number, state=State.STARTED, created_at=timezone.now() - LONG, worker="w")

    code, output = command("--json")

    rows = json.loads(output)
    assert code == bool(number)
    assert len(output.splitlines()) == lines
    assert [row["id"] for row in rows] == [run.task_id for run in made]
    assert all(
        row.keys() == {"id", "task", "state", "since", "worker", "queue", "outcome"}
        for row in rows
    )


def test_runs_are_read_in_batches(monkeypatch, django_assert_num_queries):
    monkeypatch.setattr(listing, "BATCH_SIZE", 2)
    make_runs(5, state=State.STARTED, created_at=timezone.now() - LONG)

    with django_assert_num_queries(4):
        _, output = command()

    assert len(output.splitlines()) == 6


def test_another_age_and_single_states_can_be_asked_for():
    hour = timezone.now() - timedelta(hours=1)
    started = stale_run(created_at=hour)
    pending = stale_run(State.PENDING, created_at=hour)

    assert pending.task_id in command("--older-than", "30m", "--state", "pending")[1]
    assert started.task_id not in command("--older-than", "30m", "--state", "PENDING")[1]
    assert command(older_than=timedelta(hours=2)) == (0, "No stale runs.\n")


def test_several_states_can_be_asked_for():
    for state in (State.UNSENT, State.STARTED, State.RETRY):
        stale_run(state)

    _, output = command("--state", "UNSENT", "--state", "RETRY")

    assert "2 stale runs." in output
    assert "STARTED" not in output


@pytest.mark.parametrize("state", ["SUCCESS", "LOST", "nothing"])
def test_a_state_that_is_never_stale_is_refused(state):
    with pytest.raises(CommandError, match=f"{state}: only unfinished runs can be stale"):
        command("--state", state)


def test_an_age_that_is_none_is_refused():
    with pytest.raises(CommandError, match="is not a duration"):
        command("--older-than", "soon")


def test_stale_runs_are_marked_as_lost():
    stale = [stale_run(), stale_run(State.PENDING), stale_run(State.UNSENT)]
    young = make_run(state=State.STARTED)

    code, output = command("--mark-lost")

    assert code == 1
    assert {state_of(run) for run in stale} == {State.LOST}
    assert all(run.finished_at is not None for run in stale)
    assert state_of(young) == State.STARTED
    assert output.endswith("3 stale runs, 3 of them marked as lost.\n")
    assert command() == (0, "No stale runs.\n")


def test_only_what_was_really_marked_is_counted(monkeypatch):
    first, second = stale_run(), stale_run()
    lose = TaskRunRecord.objects.all().lose
    TaskRunRecord.objects.filter(pk=second.pk).update(worker="slow")

    def report_first(self, run, *, now):
        if run.worker == "slow":
            TaskRunRecord.objects.filter(pk=run.pk).update(heartbeat_at=now)
        return lose(run, now=now)

    monkeypatch.setattr(type(TaskRunRecord.objects.all()), "lose", report_first)

    _, output = command("--mark-lost", "--json")

    assert [row["outcome"] for row in json.loads(output)] == [
        "marked as lost",
        "not marked: it was heard of meanwhile",
    ]
    assert (state_of(first), state_of(second)) == (State.LOST, State.STARTED)


@pytest.mark.django_db(transaction=True)
def test_unsent_runs_are_sent_again_and_no_others(worker):
    unsent = stale_run(State.UNSENT, args=[40])
    started, pending = stale_run(), stale_run(State.PENDING)

    code, output = command("--send-again")

    wait_for_state(unsent, State.SUCCESS)
    assert unsent.result == 42
    assert code == 1
    assert output.endswith("1 stale run unsent, 1 of them sent.\n")
    assert (state_of(started), state_of(pending)) == (State.STARTED, State.PENDING)


@pytest.mark.django_db(transaction=True)
def test_what_can_not_be_sent_is_told_with_the_reason(configure):
    secret = stale_run(State.UNSENT, kwargs={"password": "********"}, task_name="tests.tasks.x")
    gone = stale_run(State.UNSENT, args=[1])

    with broker_away():
        code, output = command("--send-again", "--json")

    outcomes = {row["id"]: row["outcome"] for row in json.loads(output)}
    assert code == 1
    assert "No task named 'tests.tasks.x' is registered" in outcomes[secret.task_id]
    assert outcomes[gone.task_id].startswith("not sent: ")
    assert {state_of(secret), state_of(gone)} == {State.UNSENT}
    gone.refresh_from_db()
    assert gone.publish_error


def test_runs_that_may_be_running_are_never_sent_again():
    with pytest.raises(CommandError, match="UNSENT only: others may be running"):
        command("--send-again", "--state", "PENDING")


@pytest.mark.parametrize(
    ("arguments", "options"),
    [(["--mark-lost", "--send-again"], {}), ([], {"mark_lost": True, "send_again": True})],
    ids=["typed", "from code"],
)
def test_a_run_is_marked_or_sent_not_both(arguments, options):
    with pytest.raises(CommandError, match="--mark-lost"):
        command(*arguments, **options)


def test_a_database_that_does_not_answer_is_told_in_plain_words():
    def refuse(execute, sql, params, many, context):
        raise DatabaseError("gone")

    with (
        connection.execute_wrapper(refuse),
        pytest.raises(CommandError, match="The database can't be asked: gone"),
    ):
        command()
