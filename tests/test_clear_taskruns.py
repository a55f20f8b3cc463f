from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import pairwise
from threading import Barrier, Event
from types import SimpleNamespace

import pytest
from celery import signals
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, connections, transaction
from django.utils import timezone

from celery_admin_runner import clearing
from celery_admin_runner.clearing import Remainder, clear, clearance, remainder
from celery_admin_runner.dependencies import record_waiting
from celery_admin_runner.dispatch import Handover, claim, keep_claim, publish, record_failure
from celery_admin_runner.dispatcher import Dispatcher
from celery_admin_runner.messages import Message
from celery_admin_runner.models import (
    OpenDependency,
    RecordingFault,
    Source,
    TaskRunOutput,
    TaskRunRecord,
)
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import FINISHED, State
from tests.conftest import running_worker
from tests.factories import make_run, make_runs, make_superuser, make_user, run_fields
from tests.models import Bookmark, Evidence, Remark
from tests.tasks import add
from tests.unique_tasks import wait_once
from tests.waiting import wait_for_state, wait_until

pytestmark = pytest.mark.django_db


def command(*arguments, **options):
    """Return the exit code, the output and the errors."""
    output, errors = io.StringIO(), io.StringIO()
    try:
        call_command("clear_taskruns", *arguments, stdout=output, stderr=errors, **options)
    except SystemExit as end:
        return end.code, output.getvalue(), errors.getvalue()
    return 0, output.getvalue(), errors.getvalue()


def cleared(*arguments):
    """Clear without a question; return how many runs it says to have deleted."""
    code, output, errors = command("--yes", *arguments)
    assert (code, errors) == (0, "")
    return output.splitlines()[-1]


@pytest.fixture
def answer(monkeypatch):
    """Answer the question, as a person at the keyboard does."""

    def type_in(text):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))

    return type_in


def left():
    return set(TaskRunRecord.objects.values_list("pk", flat=True))


def waiting_for(*others, **fields):
    """Make a run that waits for others."""
    run = TaskRunRecord(**run_fields(state=State.WAITING, **fields))
    record_waiting([run], others)
    return run


def test_runs_in_every_state_go():
    for state in State:
        make_run(state=state)

    assert cleared() == f"Deleted {len(State)} runs."
    assert left() == set()


def test_only_the_states_asked_for_go():
    make_run(state=State.PENDING)
    make_run(state=State.FAILURE)
    kept = make_run(state=State.STARTED)

    assert cleared("--state", "pending", "--state", "FAILURE") == "Deleted 2 runs."
    assert left() == {kept.pk}


def test_a_state_that_there_is_not_is_refused():
    run = make_run()

    with pytest.raises(CommandError, match="--state GONE: the states are UNSENT, SCHEDULED"):
        command("--yes", "--state", "GONE")

    assert left() == {run.pk}


def test_only_the_runs_of_one_user_go():
    eva, adam = make_user(username="eva"), make_user(username="adam")
    make_run(run_by=eva)
    make_run(run_by=eva, run_by_name="her name before")
    kept = [make_run(run_by=adam), make_run(run_by_name="eva"), make_run()]

    assert cleared("--user", "eva") == "Deleted 2 runs."
    assert left() == {run.pk for run in kept}


def test_a_user_who_is_gone_is_known_by_the_name_that_was_kept():
    eva = make_user(username="eva")
    make_run(run_by=eva)
    eva.delete()
    kept = [make_run(run_by=make_user(), run_by_name="eva"), make_run()]

    assert cleared("--user", "eva") == "Deleted 1 run."
    assert left() == {run.pk for run in kept}


@pytest.mark.parametrize("name", ["nobody", ""])
def test_a_user_of_whom_nothing_is_known_is_refused(name):
    run = make_run()

    with pytest.raises(CommandError, match=f"There is no user '{name}', and no run of a former"):
        command("--yes", "--user", name)

    assert left() == {run.pk}


def test_only_the_tasks_asked_for_go():
    make_run(task_name="shop.order")
    make_run(task_name="billing.close")
    kept = make_run(task_name="shop2.order")

    assert cleared("--task", "shop.*", "--task", "billing.close") == "Deleted 2 runs."
    assert cleared("--task", "nothing.*") == "There are no such runs."
    assert left() == {kept.pk}


def test_a_batch_of_none_is_refused():
    with pytest.raises(CommandError, match="--batch-size must be 1 or more"):
        command("--yes", "--batch-size=0")


def test_the_question_shows_how_many_in_which_states_and_what_that_means(answer):
    make_runs(3)
    make_run(state=State.STARTED)
    make_run(state=State.SCHEDULED)
    answer("yes\n")

    code, output, _ = command()

    assert code == 0
    lines = output.splitlines()
    assert [line.split() for line in lines[:4]] == [
        ["1", "SCHEDULED"],
        ["1", "STARTED"],
        ["3", "SUCCESS"],
        ["5", "together"],
    ]
    assert "2 not finished of them: workers and broker are not told." in output
    assert "not recorded" in output
    assert "unique task may run beside it" in output
    assert "1 scheduled or waiting of them: nobody but the journal knows" in output
    assert "Delete 5 runs?" in output
    assert output.endswith("Deleted 5 runs.\n")
    assert left() == set()


def test_of_finished_runs_it_does_not_warn_that_they_may_run(answer):
    make_run()
    answer("no\n")

    assert "not finished" not in command()[1]


@pytest.mark.parametrize("text", ["no\n", "\n", "y\n"])
def test_another_answer_deletes_nothing(answer, text):
    run = make_run()
    answer(text)

    code, output, _ = command()

    assert code == 1
    assert output.endswith("Nothing was deleted.\n")
    assert left() == {run.pk}


def test_without_anybody_to_ask_nothing_is_deleted(answer):
    run = make_run()
    answer("")

    with pytest.raises(CommandError, match=r"say --yes\. Nothing was done"):
        command()

    assert left() == {run.pk}


def test_who_breaks_off_deletes_nothing(monkeypatch):
    def break_off():
        raise KeyboardInterrupt

    run = make_run()
    monkeypatch.setattr("sys.stdin", SimpleNamespace(readline=break_off))

    code, output, _ = command()

    assert code == 1
    assert output.endswith("Nothing was deleted.\n")
    assert left() == {run.pk}


def test_nobody_is_asked_if_there_are_none(answer):
    answer("")

    assert command() == (0, "There are no such runs.\n", "")


def test_a_dry_run_deletes_nothing():
    run = make_run()

    code, output, _ = command("--dry-run")

    assert code == 0
    assert output.split()[:4] == ["1", "SUCCESS", "1", "together"]
    assert output.endswith("\nNothing was deleted.\n")
    assert left() == {run.pk}


def test_a_quiet_command_says_nothing_but_what_went_wrong():
    make_run()
    make_run(state=State.WAITING).depends_on.add(make_run())

    assert command("--yes", "--task", "x", verbosity=0) == (0, "", "")
    code, output, errors = command("--yes", "--state", "SUCCESS", verbosity=0)
    assert (code, output) == (1, "")
    assert "1 run stays" in errors


def test_progress_is_told_when_asked_for():
    make_runs(3)

    output = command("--yes", "--batch-size", "2", verbosity=2)[1]

    told = output.splitlines()[-3:]
    assert told == ["2 runs deleted so far", "3 runs deleted so far", "Deleted 3 runs."]


def test_only_runs_are_counted_and_not_what_goes_with_them():
    run = make_run(state=State.STARTED)
    for seq in range(5):
        TaskRunOutput.objects.create(run=run, seq=seq, stream="stdout", text="x")
    Remark.objects.create(run=run)
    bookmark = Bookmark.objects.create(run=run)
    again = make_run(retry_of=run, task_name="kept")

    assert cleared("--task", "tests.*") == "Deleted 1 run."
    assert not TaskRunOutput.objects.exists()
    assert not Remark.objects.exists()
    bookmark.refresh_from_db()
    again.refresh_from_db()
    assert (bookmark.run_id, again.retry_of_id) == (None, None)


def test_what_others_wait_for_goes_with_them_the_dependents_first():
    runs = [make_run(state=State.STARTED)]
    for _ in range(6):
        runs.append(waiting_for(runs[-1]))

    # In one pass.
    assert list(clear(clearance(), batch_size=2)) == [2, 2, 2, 1]
    assert left() == set()
    assert not OpenDependency.objects.exists()


def test_a_run_that_waits_for_newer_ones_goes_with_them_too():
    runs = [make_run(state=State.WAITING) for _ in range(5)]
    for dependent, dependency in pairwise(runs):
        dependent.depends_on.add(dependency)
        OpenDependency.objects.create(dependent=dependent, dependency=dependency)

    assert cleared("--batch-size", "1") == "Deleted 5 runs."
    assert left() == set()


def test_a_run_that_another_waits_for_that_stays_stays_too_and_it_says_so():
    needed = make_run(task_name="chosen")
    between = waiting_for(needed, task_name="chosen")
    outside = waiting_for(between, task_name="outside")
    make_run(task_name="chosen")

    code, output, errors = command("--yes", "--task", "chosen")

    assert code == 1
    assert output.endswith("Deleted 1 run.\n")
    assert errors == ("2 runs stay: 2 because an unfinished run waits, or has waited, for them.\n")
    assert left() == {needed.pk, between.pk, outside.pk}
    assert OpenDependency.objects.count() == 2


def test_what_a_run_waited_for_that_has_ended_goes():
    dependency = make_run(task_name="chosen")
    dependent = waiting_for(dependency)
    TaskRunRecord.objects.filter(pk=dependent.pk).transition(
        sources=[State.WAITING], target=State.REVOKED, finished_at=timezone.now()
    )

    assert cleared("--task", "chosen") == "Deleted 1 run."
    assert left() == {dependent.pk}
    assert not OpenDependency.objects.exists()


def test_a_run_that_another_app_protects_stays_and_it_says_so():
    protected = Evidence.objects.create(run=make_run()).run
    make_run()

    code, output, errors = command("--yes")

    assert code == 1
    assert output.endswith("Deleted 1 run.\n")
    assert errors == "1 run stays: 1 because rows of other apps protect them.\n"
    assert left() == {protected.pk}


def test_a_success_because_of_which_calls_are_ignored_goes_too():
    make_run(ignore_until=timezone.now() + timedelta(hours=1))

    assert cleared() == "Deleted 1 run."


def test_a_run_that_has_left_its_state_since_stays_and_is_not_counted():
    moved, other = make_runs(2, state=State.PENDING)
    chosen = clearance(states=frozenset({State.PENDING}))
    TaskRunOutput.objects.create(run=moved, seq=1, stream="stdout", text="x")

    def move(execute, sql, params, many, context):
        # Between the choice and the transaction that deletes.
        if sql.startswith("UPDATE") and "celery_admin_runner_lease" in sql and not taken:
            taken.append(sql)
            rows = TaskRunRecord.objects.filter(pk=moved.pk)
            rows.transition(sources=[State.PENDING], target=State.STARTED)
        return execute(sql, params, many, context)

    taken = []
    steps = clear(chosen)
    with connection.execute_wrapper(move):
        numbers = list(steps)

    assert sum(numbers) == 1
    assert left() == {moved.pk}
    assert other.pk not in left()
    assert TaskRunOutput.objects.filter(run=moved).exists()
    assert remainder(chosen) == Remainder(awaited=0, protected=0, busy=0)


def test_what_comes_after_the_question_stays():
    make_run()
    chosen = clearance()
    later = make_run()

    assert sum(clear(chosen)) == 1
    assert left() == {later.pk}


def test_the_key_of_a_unique_task_is_free_afterwards():
    run = make_run(state=State.STARTED, active_key="key", unique_key="key")

    cleared()

    assert run.pk not in left()
    make_run(state=State.STARTED, active_key="key", unique_key="key")


def test_a_database_that_breaks_off_is_told_with_what_went_before():
    make_runs(5)

    def refuse(execute, sql, params, many, context):
        if sql.startswith("DELETE") and "taskrunrecord_depends_on" not in sql:
            deletes.append(sql)
            if len(deletes) > limit:
                raise DatabaseError("gone")
        return execute(sql, params, many, context)

    deletes, limit = [], 0
    with connection.execute_wrapper(refuse), pytest.raises(CommandError) as raised:
        command("--yes", "--batch-size", "2")

    assert "The database broke off: gone Deleted 0 runs before." in str(raised.value)
    assert len(left()) == 5


def test_a_database_that_does_not_answer_is_told_in_plain_words():
    def refuse(execute, sql, params, many, context):
        raise DatabaseError("gone")

    with (
        connection.execute_wrapper(refuse),
        pytest.raises(CommandError, match="The database can't be asked: gone"),
    ):
        command("--yes")


def in_threads(*functions):
    """Run the functions at the same time, each on a database connection of its own."""

    def closing(function):
        try:
            return function()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(len(functions)) as pool:
        return [
            future.result(timeout=60) for future in [pool.submit(closing, f) for f in functions]
        ]


@pytest.mark.django_db(transaction=True)
def test_two_at_once_count_together_what_went_while_others_are_made_and_moved():
    runs = make_runs(200, state=State.PENDING)
    TaskRunOutput.objects.bulk_create(
        TaskRunOutput(run=run, seq=1, stream="stdout", text="x") for run in runs
    )
    chosen = clearance(states=frozenset({State.PENDING}))
    start = Barrier(3)

    def work():
        start.wait()
        return sum(clear(chosen, batch_size=10))

    def move():
        start.wait()
        moved, made = set(), set()
        for run in runs[::10]:
            rows = TaskRunRecord.objects.filter(pk=run.pk)
            if rows.transition(sources=[State.PENDING], target=State.STARTED):
                moved.add(run.pk)
            made.add(make_run(state=State.PENDING).pk)
        return moved, made

    first, second, (moved, made) = in_threads(work, work, move)

    left_of_them = sum(clear(chosen))
    assert first + second + left_of_them == 200 - len(moved)
    assert left() == moved | made
    assert set(TaskRunOutput.objects.values_list("run_id", flat=True)) == moved


@pytest.mark.django_db(transaction=True)
def test_a_run_that_another_transaction_holds_stays_and_it_says_so():
    if not connection.features.has_select_for_update_skip_locked:
        pytest.skip("this database locks no rows")
    held, _ = make_runs(2)

    with transaction.atomic():
        TaskRunRecord.objects.select_for_update().get(pk=held.pk)
        [(code, output, errors)] = in_threads(lambda: command("--yes"))

    assert code == 1
    assert output.endswith("Deleted 1 run.\n")
    assert errors == "1 run stays: 1 because somebody else was writing them: say it again.\n"
    assert left() == {held.pk}


@pytest.mark.django_db(transaction=True)
def test_what_another_transaction_holds_for_a_moment_goes_too(monkeypatch):
    if not connection.features.has_select_for_update_skip_locked:
        pytest.skip("this database locks no rows")
    monkeypatch.setattr(clearing, "PAUSES", [0.1] * 100)
    run = make_run()
    is_held, may_go = Event(), Event()

    def hold():
        with transaction.atomic():
            TaskRunRecord.objects.select_for_update().get(pk=run.pk)
            is_held.set()
            assert may_go.wait(60)

    def work():
        assert is_held.wait(60)
        steps = clear(clearance())
        first = next(steps)
        may_go.set()
        return [first, *steps]

    _, numbers = in_threads(hold, work)

    assert numbers[0] == 0
    assert sum(numbers) == 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_whole_batches_and_the_count_is_true(number):
    runs = make_runs(400)
    TaskRunOutput.objects.bulk_create(
        TaskRunOutput(run=run, seq=1, stream="stdout", text="x") for run in runs
    )
    arguments = ["clear_taskruns", "--yes", "--batch-size", "1", "-v", "2"]
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "django", *arguments],
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "TEST_DATABASE_NAME": str(connection.settings_dict["NAME"]),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines = iter(process.stdout.readline, "")
    assert any("1 runs deleted so far" in line for line in lines)

    process.send_signal(number)
    output, errors = process.communicate(timeout=60)

    gone = 400 - len(left())
    assert process.returncode == 1
    assert 0 < gone < 400
    assert output.endswith(f"Deleted {gone} run{'s' if gone > 1 else ''}.\n")
    assert errors == f"CommandError: Stopped by a signal: {400 - gone} runs stay.\n"
    assert set(TaskRunOutput.objects.values_list("run_id", flat=True)) == left()


@pytest.mark.django_db(transaction=True)
def test_a_run_that_is_deleted_while_it_is_sent_is_sent_all_the_same():
    run = make_run(state=State.UNSENT, claimed_at=None)
    assert claim(run)

    def clear_it(**kwargs):
        TaskRunRecord.objects.all()._raw_delete("default")

    signals.before_task_publish.connect(clear_it)
    try:
        handover = publish(add, run, Message(args=[1], kwargs={}))
    finally:
        signals.before_task_publish.disconnect(clear_it)

    assert handover == Handover.SENT
    assert run.state == State.PENDING
    assert run.published_at is not None


def test_a_run_that_is_deleted_before_it_is_sent_is_not_sent():
    run = make_run(state=State.UNSENT, claimed_at=None)
    assert claim(run)
    cleared()
    run.claimed_at = timezone.now() - timedelta(minutes=1)

    assert not keep_claim(run)
    record_failure(run, "away")
    assert left() == set()


@pytest.mark.django_db(transaction=True)
def test_a_dispatcher_that_has_a_run_in_hand_which_is_deleted_goes_on():
    for number in range(3):
        make_run(state=State.SCHEDULED, due_at=timezone.now(), args=[number])
    make_run(state=State.SCHEDULED, due_at=timezone.now(), task_name="gone.task")

    def clear_all(**kwargs):
        TaskRunRecord.objects.all()._raw_delete("default")

    signals.before_task_publish.connect(clear_all)
    try:
        dispatched = Dispatcher().dispatch()
    finally:
        signals.before_task_publish.disconnect(clear_all)

    assert dispatched.sent == 3
    assert left() == set()
    assert Dispatcher().dispatch().sent == 0


@pytest.mark.parametrize(
    "task_name", ["tests.tasks.wait_for_file", "tests.unique_tasks.wait_once"]
)
def test_a_run_that_is_deleted_while_it_runs_ends_and_counts_no_fault(worker, tmp_path, task_name):
    begun = worker.stat().st_size
    file = tmp_path / "text"
    run = TaskRunner().run(task_name, [str(file)])
    wait_for_state(run, State.STARTED)

    assert cleared() == "Deleted 1 run."
    file.write_text("done")

    def log():
        return worker.read_text()[begun:]

    wait_until(lambda: f"[{run.task_id}] succeeded" in log())
    again = TaskRunner().run(task_name, [str(file)])
    wait_for_state(again, State.SUCCESS)
    assert "journal could not" not in log()
    assert "Traceback" not in log()
    assert not RecordingFault.objects.exists()
    assert TaskRunRecord.objects.count() == 1


@pytest.mark.parametrize("task_name", ["talk_until", "say_and_count"])
def test_what_a_run_tells_whose_row_is_deleted_harms_nobody(worker, tmp_path, task_name):
    begun = worker.stat().st_size
    file = tmp_path / "go"
    run = TaskRunner().run(f"tests.talking_tasks.{task_name}", [str(file)])
    wait_for_state(run, State.STARTED)

    assert cleared() == "Deleted 1 run."
    file.write_text("go")

    wait_until(lambda: f"[{run.task_id}] succeeded" in worker.read_text()[begun:])
    talk = TaskRunner().run(f"tests.talking_tasks.{task_name}", [str(file)])
    wait_for_state(talk, State.SUCCESS)
    assert talk.complete_output()
    assert "journal could not" not in worker.read_text()[begun:]
    assert not RecordingFault.objects.exists()
    assert set(TaskRunOutput.objects.values_list("run_id", flat=True)) == {talk.pk}


@pytest.mark.django_db(transaction=True)
def test_with_our_result_backend_the_end_of_a_run_whose_row_is_deleted_is_a_row_of_nobody(
    tmp_path,
):
    queue, file = f"{settings.QUEUE}-cleared", tmp_path / "text"
    ours = "celery_admin_runner.backends:DatabaseBackend"
    arguments = ["--pool", "threads", "--concurrency", "1", "-Q", queue]
    with running_worker("cleared", *arguments, CELERY_RESULT_BACKEND=ours):
        runner = TaskRunner(make_superuser())
        run = runner.run("tests.tasks.wait_for_file", [str(file)], queue=queue)
        wait_for_state(run, State.STARTED)
        assert cleared() == "Deleted 1 run."
        file.write_text("done")
        wait_until(lambda: TaskRunRecord.objects.filter(state=State.SUCCESS).exists())

    row = TaskRunRecord.objects.get()
    assert (row.task_id, row.result) == (run.task_id, "done")
    assert (row.run_by_id, row.run_by_name, row.source) == (None, "", Source.CODE)
    assert not RecordingFault.objects.exists()


def test_the_same_call_of_a_unique_task_runs_beside_one_whose_row_is_deleted(worker, tmp_path):
    file = tmp_path / "text"
    run = TaskRunner().run("tests.unique_tasks.wait_once", [str(file)])
    wait_for_state(run, State.STARTED)

    cleared()
    beside = wait_once.delay(str(file))
    file.write_text("done")

    assert beside.id != run.task_id
    wait_for_state(TaskRunRecord.objects.get(task_id=beside.id), State.SUCCESS)
    assert set(FINISHED) >= set(TaskRunRecord.objects.values_list("state", flat=True))
