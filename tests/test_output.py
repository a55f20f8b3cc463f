"""What of a run's output is kept: each case with a real worker."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.db import connection

from celery_admin_runner.models import TaskRunOutput
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import State
from tests.waiting import wait_for_state, wait_until


def start(name, *args, **kwargs):
    return TaskRunner().run(f"tests.talking_tasks.{name}", args, kwargs)


def run_to_end(name, *args, state=State.SUCCESS, **kwargs):
    return wait_for_state(start(name, *args, **kwargs), state)


def texts_of(run, stream):
    return "".join(run.output.filter(stream=stream).values_list("text", flat=True))


def progress_of(run):
    run.refresh_from_db()
    return run.progress_current


def wait_for_output(run, text):
    wait_until(lambda: text in run.complete_output(), why=f"no {text!r}")


def test_what_a_task_prints_and_logs_is_kept_in_order(worker):
    run = run_to_end("talk")

    assert texts_of(run, "stdout") == "to stdout\nthe end\n"
    assert texts_of(run, "stderr") == "to stderr\n"
    log = texts_of(run, "log")
    assert log.startswith(
        "WARNING tests.talking_tasks: to the log\n"
        "ERROR tests.own: to the task log\n"
        "WARNING tests.quiet: to a log that is not propagated\n"
        "ERROR tests.talking_tasks: went wrong\nTraceback"
    )
    assert log.endswith("ValueError: caught\n")
    whole = run.complete_output()
    assert whole.index("to stdout") < whole.index("to stderr") < whole.index("to the log")
    seqs = list(run.output.values_list("seq", flat=True))
    assert seqs == sorted(set(seqs))


def test_what_is_printed_still_goes_to_the_log_of_the_worker(worker):
    run_to_end("say", "this goes on to the worker's log")

    assert "this goes on to the worker's log" in worker.read_text()


def test_text_of_one_stream_is_one_row(worker):
    run = run_to_end("say", *map(str, range(100)))

    assert [row.text for row in run.output.all()] == ["".join(map(str, range(100)))]


def test_the_traceback_of_a_failure_ends_the_output(worker):
    run = run_to_end("talk_and_fail", state=State.FAILURE)

    *_, last = run.output.all()
    assert (last.stream, last.text) == ("traceback", run.traceback)
    assert run.complete_output().startswith("before it failed\nTraceback")


def test_a_secret_is_masked_in_the_output_also_if_it_is_printed_in_parts(worker):
    run = run_to_end("tell", "Sesame-open-1234", state=State.FAILURE)

    assert "Sesame" not in run.complete_output()
    assert "open-1234" not in run.complete_output()
    assert run.complete_output().startswith("it is ******** in parts ********\n")


def test_colours_are_stripped_and_what_no_database_stores_is_replaced(worker):
    run = run_to_end("say_hostile")

    assert run.complete_output() == "a\ufffdb ? red bell\n100%\n"


def test_a_task_that_prints_nothing_makes_no_row(worker):
    run_to_end("who_am_i")

    assert TaskRunOutput.objects.count() == 0


def test_output_is_seen_while_the_task_runs(worker, tmp_path):
    run = start("say_and_wait", "working", str(tmp_path / "go"))

    wait_for_output(run, "working")

    (tmp_path / "go").touch()
    wait_for_state(run, State.SUCCESS)
    assert run.complete_output() == "working\nwent on\n"


def test_a_killed_process_leaves_what_was_flushed(worker, tmp_path):
    run = start("say_and_be_killed", str(tmp_path / "go"))
    wait_for_output(run, "last words")
    child = Path("/proc") / run.complete_output().split()[-1]

    (tmp_path / "go").touch()

    # Celery waits ten seconds before it calls the process lost.
    wait_until(lambda: not child.exists())
    assert run.complete_output().startswith("last words")


def test_a_terminated_run_keeps_its_output(worker, tmp_path):
    run = start("say_and_wait", "stopped", str(tmp_path / "never"))
    wait_for_output(run, "stopped")

    run_pid_gone = TaskRunner().cancel(run, terminate=True)

    assert run_pid_gone
    wait_for_state(run, State.REVOKED)
    assert run.complete_output().startswith("stopped\n")


def test_much_output_keeps_its_beginning_and_its_end_and_says_so(worker):
    run = run_to_end("say_much", 50_000, 1000)

    rows = list(run.output.all())
    assert rows[0].text.startswith("00000000.")
    assert rows[-1].text.rstrip().endswith(".")
    assert "00049999" in rows[-1].text
    assert sum(len(row.text) for row in rows) <= 1024 * 1024 + 200
    assert sum(len(row.text) for row in rows) > 900 * 1024
    [note] = [row for row in rows if row.stream == "note"]
    assert "left out" in note.text
    # 50 MB were printed.
    assert run.result < 12 * 1024 * 1024


def test_output_and_progress_are_seen_while_the_task_holds_a_transaction(worker, tmp_path):
    run = start("say_in_transaction", str(tmp_path / "go"))
    if connection.vendor != "sqlite":
        wait_for_output(run, "in a transaction")
        wait_until(lambda: wait_for_state(run, State.STARTED).progress_current == 1)

    (tmp_path / "go").touch()

    wait_for_state(run, State.SUCCESS)
    assert run.complete_output() == "in a transaction\n"
    assert (run.progress_current, run.progress_total) == (1, 2)


def test_a_task_that_closes_its_connections_is_recorded(worker):
    run = run_to_end("say_after_closing")

    assert run.complete_output() == "no connection\n"
    assert run.progress_current == 3


def test_two_threads_never_mix_their_outputs(transactional_db, threads_queue):
    runs = {
        text: TaskRunner().run(
            "tests.talking_tasks.say_often", [text, 200, 0.5], queue=threads_queue
        )
        for text in ("one", "two", "three", "four")
    }

    for text, run in runs.items():
        wait_for_state(run, State.SUCCESS)
        assert run.complete_output() == f"{text}\n" * 200


def test_the_worker_of_a_thread_pool_shows_output_while_the_task_runs(
    transactional_db, threads_queue, tmp_path
):
    run = TaskRunner().run(
        "tests.talking_tasks.say_and_wait", ["x", str(tmp_path / "go")], queue=threads_queue
    )

    wait_for_output(run, "x\n")

    (tmp_path / "go").touch()
    wait_for_state(run, State.SUCCESS)


def test_output_is_whole_when_the_database_ended_all_sessions_meanwhile(worker, tmp_path):
    if connection.vendor != "postgresql":
        pytest.skip("only PostgreSQL ends the sessions of others at once")
    run = start("say_and_wait", "before", str(tmp_path / "go"))
    wait_for_output(run, "before")

    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    (tmp_path / "go").touch()

    wait_for_state(run, State.SUCCESS)
    assert run.complete_output() == "before\nwent on\n"


def test_a_solo_worker_keeps_output_and_progress(transactional_db, solo_queue, tmp_path):
    run = TaskRunner().run(
        "tests.talking_tasks.say_and_count", [str(tmp_path / "go")], queue=solo_queue
    )
    wait_for_output(run, "solo\n")
    wait_until(lambda: progress_of(run) == 1)

    (tmp_path / "go").touch()
    wait_for_state(run, State.SUCCESS)

    assert progress_of(run) == 2
