from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from celery_admin_runner import tracking
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.querysets import STALE_AFTER, Unfinished, stale_after
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import FINISHED, UNFINISHED, State
from tests.factories import make_run, make_runs
from tests.waiting import wait_for_state

pytestmark = pytest.mark.django_db

runs = TaskRunRecord.objects
NOW = timezone.now()
LONG = timedelta(days=30)
SECOND = timedelta(seconds=1)


def silent(state, age, **fields):
    """Make a run that was last heard of ``age`` ago."""
    return make_run(state=state, created_at=NOW - age, **fields)


@pytest.mark.parametrize("state", sorted(s for s in UNFINISHED if STALE_AFTER[s] is not None))
def test_a_run_is_stale_when_it_was_silent_for_longer_than_its_state_allows(state):
    threshold = STALE_AFTER[state]
    stale = silent(state, threshold + SECOND)
    young = silent(state, threshold - SECOND)

    assert list(runs.stale(NOW)) == [stale]
    assert (stale.is_stale(NOW), young.is_stale(NOW)) == (True, False)


@pytest.mark.parametrize("state", sorted({State.SCHEDULED, State.WAITING} | FINISHED))
def test_what_is_kept_or_has_ended_is_never_stale(state):
    run = silent(state, LONG)

    assert not runs.stale(NOW).exists()
    assert not run.is_stale(NOW)


@pytest.mark.parametrize(
    "name",
    ["claimed_at", "published_at", "started_at", "heartbeat_at", "cancel_requested_at", "eta"],
)
def test_the_latest_word_counts(name):
    stale = silent(State.STARTED, LONG, **{name: NOW - timedelta(minutes=3)})
    young = silent(State.STARTED, LONG, **{name: NOW - timedelta(minutes=1)})

    assert list(runs.stale(NOW)) == [stale]
    assert stale.heard_of_at == NOW - timedelta(minutes=3)
    assert not young.is_stale(NOW)


@pytest.mark.parametrize("state", [State.PENDING, State.RETRY, State.UNSENT])
def test_a_run_whose_moment_is_still_to_come_is_not_stale(state):
    run = silent(state, LONG, eta=NOW + SECOND)

    assert not runs.stale(NOW, older_than=SECOND, states=[state]).exists()
    assert not run.is_stale(NOW)


def test_after_its_moment_a_run_has_the_whole_time_again():
    silent(State.PENDING, LONG, eta=NOW - timedelta(hours=23))
    stale = silent(State.PENDING, LONG, eta=NOW - timedelta(hours=25))

    assert list(runs.stale(NOW)) == [stale]


def test_another_age_takes_the_place_of_every_threshold():
    silent(State.SCHEDULED, LONG)
    silent(State.STARTED, timedelta(minutes=50))
    stale = [silent(state, timedelta(hours=2)) for state in (State.STARTED, State.PENDING)]

    found = runs.stale(NOW, older_than=timedelta(hours=1))

    assert set(found) == set(stale)


def test_only_the_states_that_are_asked_for_are_looked_at():
    kept = silent(State.SCHEDULED, LONG)
    unsent = silent(State.UNSENT, LONG)
    silent(State.STARTED, LONG)

    assert list(runs.stale(NOW, states=[State.UNSENT])) == [unsent]
    assert list(runs.stale(NOW, states=[State.SCHEDULED])) == []
    assert list(runs.stale(NOW, older_than=SECOND, states=[State.SCHEDULED])) == [kept]


def test_finished_states_can_not_be_asked_for():
    with pytest.raises(ValueError, match="SUCCESS: a finished run is never stale"):
        runs.stale(NOW, states=[State.SUCCESS, State.STARTED])


def test_the_setting_changes_single_thresholds(configure):
    configure(STALE_AFTER={"STARTED": timedelta(), "PENDING": None, State.WAITING: SECOND})
    started = silent(State.STARTED, SECOND)
    silent(State.PENDING, LONG)
    waiting = silent(State.WAITING, timedelta(seconds=2))

    assert set(runs.stale(NOW)) == {started, waiting}
    assert stale_after()[State.UNSENT] == STALE_AFTER[State.UNSENT]


def test_every_unfinished_state_has_its_line_in_the_defaults():
    assert set(STALE_AFTER) == UNFINISHED


@pytest.mark.parametrize("age", [timedelta.max, timedelta(days=365 * 100)])
def test_an_age_that_no_calendar_reaches_finds_nothing(age, configure):
    configure(STALE_AFTER={"STARTED": age})
    run = silent(State.STARTED, LONG)

    assert list(runs.stale(NOW)) == []
    assert list(runs.stale(NOW, older_than=age)) == []
    assert not run.is_stale(NOW)


def test_the_clock_is_the_moment_of_the_call_unless_one_is_given():
    run = make_run(state=State.STARTED, created_at=timezone.now() - timedelta(minutes=3))

    assert list(runs.stale()) == [run]
    assert not runs.stale(run.created_at + timedelta(minutes=1)).exists()


def test_stale_runs_are_one_query(django_assert_num_queries):
    for state in UNFINISHED:
        silent(state, LONG)

    with django_assert_num_queries(1):
        assert len(runs.stale(NOW)) == 5


def test_a_stale_run_is_moved_to_lost_by_one_update(django_assert_num_queries):
    run = silent(State.STARTED, LONG, active_key="key")

    with django_assert_num_queries(1):
        moved = runs.lose(run, now=NOW)

    run.refresh_from_db()
    assert (moved, run.state, run.finished_at, run.active_key) == (1, State.LOST, NOW, None)
    assert "nobody has heard of it since" in run.exception


@pytest.mark.parametrize(
    "fields",
    [{"heartbeat_at": NOW}, {"state": State.SUCCESS, "finished_at": NOW}, {"claimed_at": NOW}],
)
def test_a_run_that_was_heard_of_since_it_was_read_is_not_lost(fields):
    run = silent(State.STARTED, LONG)
    runs.filter(pk=run.pk).update(**fields)

    assert runs.lose(run, now=NOW) == 0
    assert runs.exclude(state=State.LOST).count() == 1


def test_a_late_report_corrects_what_was_lost():
    run = silent(State.STARTED, LONG)
    runs.lose(run, now=NOW)

    tracking.record_success(run.task_id, attempt=0, result=1, now=NOW)

    run.refresh_from_db()
    assert (run.state, run.exception) == (State.SUCCESS, "")


@pytest.mark.django_db(transaction=True)
def test_a_run_that_was_lost_and_still_runs_is_corrected_by_its_worker(worker, tmp_path):
    path = tmp_path / "go"
    run = TaskRunner().run("tests.tasks.wait_for_file", [str(path)])
    wait_for_state(run, State.STARTED)
    assert runs.lose(run, now=timezone.now()) == 1

    path.write_text("done")

    wait_for_state(run, State.SUCCESS)
    assert (run.result, run.exception) == ("done", "")


def test_the_age_of_unfinished_runs_is_told_by_state_and_queue(django_assert_num_queries):
    make_runs(2, state=State.PENDING, queue="mail", created_at=NOW)
    silent(State.PENDING, LONG, queue="mail")
    silent(State.PENDING, SECOND, queue="")
    silent(State.STARTED, SECOND, queue="mail")
    silent(State.FAILURE, LONG)

    with django_assert_num_queries(1):
        ages = runs.unfinished_ages()

    assert ages == [
        Unfinished(state=State.PENDING, queue="", runs=1, oldest_at=NOW - SECOND),
        Unfinished(state=State.PENDING, queue="mail", runs=3, oldest_at=NOW - LONG),
        Unfinished(state=State.STARTED, queue="mail", runs=1, oldest_at=NOW - SECOND),
    ]
