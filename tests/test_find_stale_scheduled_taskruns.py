from __future__ import annotations

import io
import json
from datetime import timedelta
from uuid import uuid4

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection
from django.utils import timezone

from celery_admin_runner.models import NOT_CONFIRMED, TaskRunRecord
from celery_admin_runner.states import State
from tests.brokers import broker_away
from tests.factories import make_run

pytestmark = pytest.mark.django_db

HOUR = timedelta(hours=1)


def stale_run(**fields: object) -> TaskRunRecord:
    """Make a run that was due two hours ago, and taken by a dispatcher an hour later."""
    claimed_at = timezone.now() - HOUR
    due_at = claimed_at - HOUR
    claim = {"claimed_at": claimed_at, "dispatch_id": uuid4(), "due_at": due_at, "eta": due_at}
    return make_run(**{"state": State.SCHEDULED, "args": [1], **claim, **fields})


def command(*arguments, **options):
    """Return the exit code and the output."""
    output = io.StringIO()
    try:
        call_command("find_stale_scheduled_taskruns", *arguments, stdout=output, **options)
    except SystemExit as end:
        return end.code, output.getvalue()
    return 0, output.getvalue()


def state_of(run):
    run.refresh_from_db()
    return run.state


@pytest.fixture
def answer(monkeypatch):
    """Answer the question, as a person at the keyboard does."""

    def type_in(text):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))

    return type_in


def test_without_stale_scheduled_runs_it_says_so_and_ends_well():
    make_run(state=State.SCHEDULED, due_at=timezone.now() - HOUR)
    stale_run(claimed_at=timezone.now())

    assert command() == (0, "No stale scheduled runs.\n")
    assert command(verbosity=0) == (0, "")


def test_they_are_listed_with_when_they_were_due_and_taken():
    run = stale_run(queue="mail")

    code, output = command()

    line, advice = output.splitlines()
    due = timezone.localtime(run.eta).isoformat(" ", "seconds")
    claimed = timezone.localtime(run.claimed_at).isoformat(" ", "seconds")
    assert code == 1
    assert line == f"{run.task_id}  tests.tasks.add  due {due}  claimed {claimed}  queue mail"
    assert advice.startswith("1 stale scheduled run. ")
    assert "--send-again" in advice
    assert state_of(run) == State.SCHEDULED


def test_a_run_that_waited_for_others_was_due_when_they_had_ended():
    run = stale_run(eta=None)

    _, output = command("--json")

    [row] = json.loads(output)
    assert row["due"] == timezone.localtime(run.due_at).isoformat(" ", "seconds")


@pytest.mark.parametrize("number", [0, 1, 3])
def test_json_is_one_array(number):
    made = [stale_run() for _ in range(number)]

    code, output = command("--json")

    rows = json.loads(output)
    assert code == bool(number)
    assert [row["id"] for row in rows] == [run.task_id for run in made]
    assert all(row.keys() == {"id", "task", "due", "claimed", "queue", "outcome"} for row in rows)


def test_another_age_can_be_asked_for():
    run = stale_run(claimed_at=timezone.now() - timedelta(minutes=2))

    assert command()[0] == 0
    assert run.task_id in command("--older-than", "90s")[1]
    assert command(older_than=timedelta(minutes=3))[0] == 0
    with pytest.raises(CommandError, match="is not a duration"):
        command("--older-than", "soon")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("text", ["yes\n", " YES\n"])
def test_who_says_yes_sends_them_again(answer, text):
    first, second = stale_run(), stale_run()
    answer(text)

    code, output = command("--send-again")

    assert code == 1
    assert "may run twice. Send these 2 runs again?" in output
    assert output.endswith("2 stale scheduled runs, 2 of them sent again.\n")
    assert (state_of(first), state_of(second)) == (State.PENDING, State.PENDING)
    assert command() == (0, "No stale scheduled runs.\n")


@pytest.mark.parametrize("text", ["no\n", "\n", "y\n"])
def test_another_answer_sends_nothing(answer, text):
    run = stale_run()
    answer(text)

    code, output = command("--send-again")

    assert code == 1
    assert "Send this run again?" in output
    assert "sent again." not in output
    assert state_of(run) == State.SCHEDULED


def test_without_anybody_to_ask_nothing_is_sent(answer):
    run = stale_run()
    answer("")

    with pytest.raises(CommandError, match="say --yes"):
        command("--send-again")

    assert state_of(run) == State.SCHEDULED


def test_nobody_is_asked_if_there_are_none(answer):
    answer("")

    assert command("--send-again") == (0, "No stale scheduled runs.\n")


@pytest.mark.django_db(transaction=True)
def test_yes_can_be_said_before():
    run = stale_run()

    code, output = command("--send-again", "--yes", "--json")

    assert code == 1
    assert [row["outcome"] for row in json.loads(output)] == ["sent"]
    assert state_of(run) == State.PENDING


def test_with_json_nobody_can_be_asked():
    with pytest.raises(CommandError, match="say --yes too"):
        command("--send-again", "--json")


@pytest.mark.django_db(transaction=True)
def test_what_can_not_be_sent_is_told_with_the_reason():
    gone = stale_run(task_name="gone.task")
    young = stale_run(claimed_at=timezone.now() - timedelta(minutes=2))
    away = stale_run()

    with broker_away():
        _, output = command("--send-again", "--yes", "--json", "--older-than", "1m")

    outcomes = {row["id"]: row["outcome"] for row in json.loads(output)}
    assert "No task named 'gone.task'" in outcomes[gone.task_id]
    assert "being sent just now" in outcomes[young.task_id]
    assert outcomes[away.task_id].startswith("not sent: ")
    assert state_of(away) == State.UNSENT


@pytest.mark.django_db(transaction=True)
def test_the_other_command_never_sends_what_may_have_been_sent():
    unsent = {"state": State.UNSENT, "args": [1], "created_at": timezone.now() - HOUR}
    runs = [
        make_run(**unsent, publish_error=f"{NOT_CONFIRMED}reset"),
        make_run(**unsent, claimed_at=timezone.now() - HOUR, dispatch_id=uuid4()),
    ]
    output = io.StringIO()

    with pytest.raises(SystemExit):
        call_command("find_stale_taskruns", "--send-again", stdout=output)

    assert output.getvalue().count("it may have been sent before") == 2
    assert {state_of(run) for run in runs} == {State.UNSENT}


def test_a_database_that_does_not_answer_is_told_in_plain_words():
    def refuse(execute, sql, params, many, context):
        raise DatabaseError("gone")

    with (
        connection.execute_wrapper(refuse),
        pytest.raises(CommandError, match="The database can't be asked: gone"),
    ):
        command()
