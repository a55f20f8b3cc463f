"""Each move of a run is told of: once, from which state to which, after the commit."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise
from uuid import uuid4

import pytest
from django.conf import settings
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from celery_admin_runner import dispatch, recording, tracking
from celery_admin_runner.changes import touched
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.signals import run_changed
from celery_admin_runner.states import FINISHED, UNFINISHED, State
from tests.conftest import running_worker
from tests.factories import make_run, make_runs, make_user
from tests.hearing import heard, moves
from tests.threads import in_another_thread
from tests.waiting import wait_for_state, wait_until

runs = TaskRunRecord.objects


@contextmanager
def listening(receiver, **options):
    """Have a receiver connected."""
    run_changed.connect(receiver, **options)
    try:
        yield
    finally:
        run_changed.disconnect(receiver, **options)


@pytest.fixture
def told():
    """The moves that are told of, as (primary key, from, to)."""
    moved = []

    def hear(sender, run, from_state, to_state, **kwargs):
        assert sender is TaskRunRecord
        assert (run.state, run._state.db) == (to_state, "default")
        moved.append((run.pk, from_state, to_state))

    with listening(hear):
        yield moved


def move(run, source, target, **fields):
    """Move one run."""
    if target in FINISHED:
        fields.setdefault("finished_at", timezone.now())
    return runs.filter(pk=run.pk).transition(sources=[source], target=target, **fields)


def start(run, attempt=0):
    """Report the start of a run."""
    return tracking.record_start(run.task_id, attempt=attempt, worker="w", now=timezone.now())


def kinds(captured):
    """Return the first words of these statements."""
    return [query["sql"].split()[0] for query in captured]


def locking(*rest):
    """Return the statements by which rows are locked, and these after them."""
    locks = ["SELECT"] if connection.features.has_select_for_update else ["UPDATE", "SELECT"]
    return ["BEGIN", *locks, *rest, "COMMIT"]


# What is told


@pytest.mark.django_db(transaction=True)
def test_the_life_of_a_run_is_told_move_by_move(told):
    run = make_run(state=State.UNSENT)
    now = timezone.now()

    runs.filter(pk=run.pk).hand_over(now)
    start(run)
    tracking.record_retry(run.task_id, attempt=0, exception="no", traceback="", now=now)
    start(run, attempt=1)
    tracking.record_success(run.task_id, attempt=1, result=3, now=now)

    assert [move for _pk, *move in told] == [
        [State.UNSENT, State.PENDING],
        [State.PENDING, State.STARTED],
        [State.STARTED, State.RETRY],
        [State.RETRY, State.STARTED],
        [State.STARTED, State.SUCCESS],
    ]


def claimed(state, **fields):
    return {"state": state, "dispatch_id": uuid4(), "claimed_at": timezone.now(), **fields}


#: What moves a run, by how the run was, and where it is moved to.
VERBS = {
    "cancel": (
        lambda: {"state": State.PENDING},
        lambda run, now: TaskRunner().cancel(run),
        State.CANCELLING,
    ),
    "cancel kept": (
        lambda: {"state": State.SCHEDULED, "due_at": timezone.now() + timedelta(hours=1)},
        lambda run, now: TaskRunner().cancel(run),
        State.REVOKED,
    ),
    "lose": (
        lambda: {"state": State.STARTED},
        lambda run, now: runs.lose(run, now=now),
        State.LOST,
    ),
    "refuse start": (
        lambda: {"state": State.CANCELLING},
        lambda run, now: tracking.refuse_start(run.task_id, now=now),
        State.REVOKED,
    ),
    "failure": (
        lambda: {"state": State.STARTED},
        lambda run, now: tracking.record_failure(
            run.task_id, attempt=0, exception="no", traceback="", now=now
        ),
        State.FAILURE,
    ),
    "terminated": (
        lambda: {"state": State.STARTED},
        lambda run, now: tracking.record_terminated(run.task_id, attempt=0, now=now),
        State.REVOKED,
    ),
    "stopped": (
        lambda: {"state": State.CANCELLING},
        lambda run, now: tracking.record_stopped(run.task_id, attempt=0, now=now),
        State.REVOKED,
    ),
    "expired": (
        lambda: {"state": State.PENDING},
        lambda run, now: tracking.record_end(
            run.task_id, attempt=0, state=State.EXPIRED, why="late", now=now
        ),
        State.EXPIRED,
    ),
    "late report of a lost run": (
        lambda: {"state": State.LOST},
        lambda run, now: tracking.record_success(run.task_id, attempt=0, result=1, now=now),
        State.SUCCESS,
    ),
    "sent": (
        lambda: claimed(State.SCHEDULED),
        lambda run, now: dispatch.record_sent([run], now),
        State.PENDING,
    ),
    "not sent": (
        lambda: claimed(State.SCHEDULED),
        lambda run, now: dispatch.record_unsent([run], "away", now, may_be_out=False),
        State.UNSENT,
    ),
    "expired before it was sent": (
        lambda: claimed(State.SCHEDULED),
        lambda run, now: dispatch.record_expired([run], now),
        State.EXPIRED,
    ),
    "claimed as stale": (
        lambda: {**claimed(State.SCHEDULED), "claimed_at": timezone.now() - timedelta(hours=1)},
        lambda run, now: dispatch.claim_stale(run, now),
        State.UNSENT,
    ),
}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_tells_of_the_move_that_it_makes(told, verb):
    fields, act, target = VERBS[verb]
    run = make_run(task_name="somewhere.else", **fields())
    was = run.state

    act(run, timezone.now())

    assert told == [(run.pk, was, target)]


@pytest.mark.django_db(transaction=True)
def test_what_waited_for_a_run_is_told_of_when_it_is_released_or_skipped(told):
    good, bad = make_run(), make_run(state=State.FAILURE)
    released = TaskRunner().run("tests.tasks.add", [1], depends_on=[good])
    skipped = TaskRunner().run("tests.tasks.add", [1], depends_on=[bad])

    # Both were settled on the commit: what they wait for had ended.
    assert told == [
        (released.pk, State.WAITING, State.SCHEDULED),
        (skipped.pk, State.WAITING, State.IGNORED),
    ]


@pytest.mark.django_db(transaction=True)
def test_that_a_run_is_made_is_no_move(told):
    TaskRunner().run("tests.tasks.add", [1], countdown=3600)
    make_run(state=State.IGNORED)

    assert told == []


@pytest.mark.django_db(transaction=True)
def test_what_stays_in_its_state_is_not_told_of(told):
    run = make_run(state=State.STARTED)
    stopping = make_run(state=State.CANCELLING)

    assert start(run) == 1
    assert tracking.record_start_of_cancelling(
        stopping.task_id, attempt=0, worker="w", now=timezone.now()
    )

    assert told == []


@pytest.mark.django_db(transaction=True)
def test_of_many_runs_moved_at_once_each_is_told_with_where_it_came_from(told):
    states = [State.UNSENT, State.PENDING, State.STARTED, State.SUCCESS]
    made = [make_run(state=state) for state in states]

    moved = runs.all().transition(
        sources=UNFINISHED, target=State.FAILURE, finished_at=timezone.now()
    )

    assert moved == 3
    assert told == [(run.pk, run.state, State.FAILURE) for run in made[:3]]


@pytest.mark.django_db(transaction=True)
def test_of_runs_that_were_sent_only_those_are_told_of_that_nobody_has_begun(told):
    states = [State.UNSENT, State.SCHEDULED, State.STARTED, State.SUCCESS]
    made = [make_run(state=state) for state in states]

    runs.all().hand_over(timezone.now())

    assert told == [(run.pk, run.state, State.PENDING) for run in made[:2]]
    assert not runs.filter(published_at=None).exists()


@pytest.mark.django_db(transaction=True)
def test_the_run_that_is_told_of_is_as_it_was_right_after_the_move():
    kept = []

    def keep(run, **kwargs):
        kept.append(run)

    run = make_run(state=State.PENDING)
    with listening(keep), transaction.atomic():
        move(run, State.PENDING, State.STARTED, worker="one")
        move(run, State.STARTED, State.RETRY, worker="two")

    assert [(run.state, run.worker) for run in kept] == [("STARTED", "one"), ("RETRY", "two")]
    assert [run._state.db for run in kept] == ["default", "default"]


# When


@pytest.mark.django_db(transaction=True)
def test_it_is_told_after_the_commit():
    seen = []

    def look(run, **kwargs):
        seen.append(in_another_thread(lambda: runs.get(pk=run.pk).state))

    run = make_run(state=State.PENDING)
    with listening(look):
        with transaction.atomic():
            move(run, State.PENDING, State.STARTED)
            assert seen == []
        start(make_run(state=State.PENDING))

    assert seen == [State.STARTED, State.STARTED]


@pytest.mark.django_db(transaction=True)
def test_what_is_rolled_back_is_not_told_of(told):
    run = make_run(state=State.PENDING)

    with transaction.atomic():
        with transaction.atomic():
            move(run, State.PENDING, State.STARTED)
            transaction.set_rollback(True)
        move(run, State.PENDING, State.REVOKED)
        assert told == []

    assert told == [(run.pk, State.PENDING, State.REVOKED)]
    with transaction.atomic():
        move(make_run(state=State.PENDING), State.PENDING, State.STARTED)
        transaction.set_rollback(True)
    assert len(told) == 1


@pytest.mark.django_db
def test_in_a_test_case_it_is_told_where_the_commit_would_be(
    told, django_capture_on_commit_callbacks
):
    run = make_run(state=State.PENDING)

    with django_capture_on_commit_callbacks(execute=True):
        start(run)
        assert told == []

    assert told == [(run.pk, State.PENDING, State.STARTED)]


@pytest.mark.django_db(transaction=True)
def test_what_is_recorded_beside_a_transaction_is_told_at_once(told):
    if connection.vendor == "sqlite":
        pytest.skip("on SQLite there is one who writes: a record is part of the transaction")
    run = make_run(state=State.PENDING)

    with transaction.atomic():
        start(run)
        assert told == [(run.pk, State.PENDING, State.STARTED)]
        transaction.set_rollback(True)

    run.refresh_from_db()
    assert run.state == State.STARTED


# Of several at once


@pytest.mark.django_db(transaction=True)
def test_of_many_callers_at_once_one_is_told_of(told):
    run = make_run(state=State.PENDING)

    def try_it(_number):
        try:
            return move(run, State.PENDING, State.STARTED)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(8) as pool:
        moved = sum(pool.map(try_it, range(8)))

    assert moved == 1
    assert told == [(run.pk, State.PENDING, State.STARTED)]


@pytest.mark.django_db(transaction=True)
def test_of_many_who_move_a_run_to_and_fro_each_move_is_told_from_where_it_began(told):
    run = make_run(state=State.PENDING)
    circle = [State.PENDING, State.STARTED, State.RETRY]

    def go_on(number):
        target = circle[number % 3]
        others = [state for state in circle if state != target]
        try:
            return sum(
                runs.filter(pk=run.pk).transition(sources=others, target=target) for _ in range(15)
            )
        finally:
            connections.close_all()

    with ThreadPoolExecutor(6) as pool:
        moved = sum(pool.map(go_on, range(6)))

    assert len(told) == moved
    # Put in a row they lead from the first state to the last: each state was left as often as
    # it was come to.
    run.refresh_from_db()
    left = Counter(source for _pk, source, _target in told)
    reached = Counter(target for _pk, _source, target in told)
    left[run.state] += 1
    reached[State.PENDING] += 1
    assert left == reached


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "act",
    [
        start,
        lambda run: move(run, State.UNSENT, State.STARTED),
        # It writes for every one of them when it was sent.
        lambda run: runs.filter(pk=run.pk).hand_over(timezone.now()) - 1,
    ],
    ids=["report", "transition", "hand_over"],
)
def test_what_comes_into_a_state_while_the_others_are_moved_is_left_alone(told, act):
    if connection.vendor != "postgresql":
        pytest.skip("only PostgreSQL lets others write a row that was looked at and not taken")
    run = make_run(state=State.SUCCESS)

    def revive_after_the_look(execute, sql, params, many, context):
        answer = execute(sql, params, many, context)
        if " FOR " in sql:
            revive = runs.filter(pk=run.pk).update
            in_another_thread(lambda: revive(state=State.UNSENT, finished_at=None))
        return answer

    with connection.execute_wrapper(revive_after_the_look):
        moved = act(run)

    run.refresh_from_db()
    assert (moved, run.state, told) == (0, State.UNSENT, [])


# What receivers do


@pytest.mark.django_db(transaction=True)
def test_a_receiver_that_raises_stops_neither_the_move_nor_the_others(told, caplog):
    def fail(**kwargs):
        raise RuntimeError("no")

    run = make_run(state=State.PENDING)
    with listening(fail):
        moved = start(run)
        move(run, State.STARTED, State.SUCCESS)

    run.refresh_from_db()
    assert (moved, run.state) == (1, State.SUCCESS)
    assert len(told) == 2
    assert "no" in caplog.text


@pytest.mark.django_db(transaction=True)
def test_a_receiver_may_move_the_run_again_and_start_another(told):
    started = []

    def go_on(run, to_state, **kwargs):
        if to_state == State.STARTED:
            run.refresh_from_db()
            move(run, State.STARTED, State.SUCCESS)
        if to_state == State.SUCCESS:
            started.append(TaskRunner().run("tests.tasks.add", [1]))

    run = make_run(state=State.PENDING)
    with listening(go_on):
        assert start(run) == 1

    run.refresh_from_db()
    assert run.state == State.SUCCESS
    assert told == [
        (run.pk, State.PENDING, State.STARTED),
        (run.pk, State.STARTED, State.SUCCESS),
        (started[0].pk, State.UNSENT, State.PENDING),
    ]


# What it costs


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "act",
    [
        start,
        lambda run: move(run, State.PENDING, State.STARTED),
        lambda run: runs.filter(pk=run.pk).hand_over(timezone.now()),
    ],
    ids=["report", "transition", "hand_over"],
)
def test_where_nobody_listens_a_move_is_one_statement(act):
    run = make_run(state=State.PENDING)

    with CaptureQueriesContext(connection) as captured:
        assert act(run) == 1

    assert kinds(captured) == ["UPDATE"]


@pytest.mark.django_db(transaction=True)
def test_where_somebody_listens_a_move_is_a_transaction_of_three(told):
    run = make_run(state=State.PENDING)

    with CaptureQueriesContext(connection) as captured:
        start(run)

    assert kinds(captured) == locking("UPDATE", "SELECT")
    assert "whole_result" not in captured[-2]["sql"]


@pytest.mark.django_db(transaction=True)
def test_where_nothing_is_moved_nothing_is_written(told):
    run = make_run(state=State.SUCCESS)

    with CaptureQueriesContext(connection) as reported:
        assert start(run) == 0
    with CaptureQueriesContext(connection) as tried:
        assert move(run, State.PENDING, State.STARTED) == 0

    assert kinds(reported) == kinds(tried) == locking()


@pytest.mark.django_db(transaction=True)
def test_many_runs_cost_as_many_statements_as_one(told):
    make_runs(20, state=State.PENDING)

    with CaptureQueriesContext(connection) as captured:
        runs.transition(sources=[State.PENDING], target=State.STARTED)

    assert kinds(captured) == locking("UPDATE", "SELECT")
    assert len(told) == 20


# Whose


@pytest.fixture
def owned():
    """The users and runs that are told of by ``touched``, where nobody hears ``run_changed``."""
    heard_of = []

    def hear(sender, owners, **kwargs):
        assert sender is TaskRunRecord
        heard_of.extend(owners)

    touched.connect(hear)
    yield heard_of
    touched.disconnect(hear)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("act", [start, lambda run: move(run, State.PENDING, State.STARTED)])
def test_who_asks_only_whose_runs_were_moved_costs_one_statement(owned, act):
    run = make_run(state=State.PENDING, run_by=make_user())

    with CaptureQueriesContext(connection) as captured:
        assert act(run) == 1

    assert kinds(captured) == ["SELECT", "UPDATE"]
    assert owned == [(run.run_by_id, run.pk)]


@pytest.mark.django_db(transaction=True)
def test_of_runs_that_were_sent_it_is_told_whose_they_are(owned):
    user = make_user()
    made = [make_run(state=state, run_by=user) for state in ("UNSENT", "SCHEDULED", "STARTED")]

    runs.all().hand_over(timezone.now())

    assert sorted(owned) == [(user.pk, run.pk) for run in made[:2]]


@pytest.mark.django_db(transaction=True)
def test_it_is_told_whose_a_run_is_also_where_its_moves_are_told_of(owned, told):
    mine, of_nobody = make_run(state=State.PENDING, run_by=make_user()), make_run(state="PENDING")

    start(mine)
    start(of_nobody)

    assert owned == [(mine.run_by_id, mine.pk)]
    assert len(told) == 2


@pytest.mark.django_db(transaction=True)
def test_what_begins_again_is_no_move_and_yet_something_to_look_at(owned, told):
    run = make_run(state=State.STARTED, run_by=make_user())

    assert start(run) == 1

    assert owned == [(run.run_by_id, run.pk)]
    assert told == []


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("act", [start, lambda run: move(run, State.PENDING, State.STARTED)])
def test_of_the_runs_of_nobody_and_of_those_that_stay_it_is_not_told_whose_they_are(owned, act):
    of_nobody = make_run(state=State.PENDING)
    finished = make_run(state=State.SUCCESS, run_by=make_user())

    assert (act(of_nobody), act(finished)) == (1, 0)

    assert owned == []


@pytest.mark.django_db(transaction=True)
def test_it_is_told_whose_runs_were_moved_after_the_commit(owned):
    kept, undone = (make_run(state=State.PENDING, run_by=make_user()) for _ in range(2))

    with transaction.atomic():
        move(kept, State.PENDING, State.STARTED)
        assert owned == []
    with transaction.atomic():
        move(undone, State.PENDING, State.STARTED)
        transaction.set_rollback(True)

    assert owned == [(kept.run_by_id, kept.pk)]


# Where


class ReadsElsewhere:
    """A router of a site whose journal is read from a database that does not answer."""

    def db_for_read(self, model, **hints):
        return "elsewhere" if model is TaskRunRecord else None


@pytest.mark.django_db(transaction=True)
def test_where_runs_are_read_from_another_database_they_are_moved_and_told_of_in_theirs(
    told, settings
):
    run = make_run(state=State.PENDING)
    settings.DATABASE_ROUTERS = [f"{__name__}.ReadsElsewhere"]

    assert move(run, State.PENDING, State.STARTED) == 1
    assert runs.filter(pk=run.pk).hand_over(timezone.now()) == 1

    assert told == [(run.pk, State.PENDING, State.STARTED)]


@pytest.mark.django_db(transaction=True)
def test_a_worker_tells_by_its_own_connection(told, monkeypatch):
    monkeypatch.setattr(recording._process, "is_worker", True)
    own = connections[recording.database()]
    run = make_run(state=State.PENDING)

    with CaptureQueriesContext(own) as by_own, CaptureQueriesContext(connection) as by_caller:
        start(run)
        tracking.record_success(run.task_id, attempt=0, result=1, now=timezone.now())

    assert kinds(by_own) == locking("UPDATE", "SELECT") * 2
    assert kinds(by_caller) == []
    assert [move for _pk, *move in told] == [["PENDING", "STARTED"], ["STARTED", "SUCCESS"]]


@pytest.fixture(scope="module")
def hearing_queue(django_db_setup, django_db_blocker):
    """The queue of a worker that listens."""
    queue = f"{settings.QUEUE}-hearing"
    with running_worker("hearing", "-I", "tests.hearing", "-c", "2", "-Q", queue, TEST_HEARS="1"):
        yield queue


@pytest.fixture
def hearing(transactional_db, hearing_queue):
    """Run a task in a worker that listens, and return its row when it has ended."""

    def run(name, *args, state=State.SUCCESS):
        return wait_for_state(TaskRunner().run(name, args, queue=hearing_queue), state)

    return run


def test_in_a_worker_each_move_is_told_in_the_process_that_makes_it(hearing, told):
    run = hearing("tests.tasks.add", 1)

    wait_until(lambda: len(moves(run.task_id)) == 2)
    assert told == [(run.pk, State.UNSENT, State.PENDING)] or told == []
    lines = heard(run.task_id)
    assert [line[4:] for line in lines] == [["STARTED", "STARTED"], ["SUCCESS", "SUCCESS"]]
    assert moves(run.task_id) in (
        [("PENDING", "STARTED"), ("STARTED", "SUCCESS")],
        # The worker was faster than who sent it.
        [("UNSENT", "STARTED"), ("STARTED", "SUCCESS")],
    )
    assert len({pid for pid, *_rest in lines}) == 1


def test_each_attempt_is_told_of(hearing, tmp_path):
    run = hearing("tests.tasks.fail_twice", str(tmp_path / "attempts"))

    wait_until(lambda: ("STARTED", "SUCCESS") in moves(run.task_id))
    # Celery may begin the next attempt before it reports that the one before failed.
    told = moves(run.task_id)
    assert told[-1] == ("STARTED", "SUCCESS")
    assert all(source == target for (_, target), (source, _) in pairwise(told))


def test_the_end_of_a_process_that_was_killed_is_told_by_its_parent(hearing):
    run = hearing("tests.tasks.kill_own_process", state=State.FAILURE)

    wait_until(lambda: ("STARTED", "FAILURE") in moves(run.task_id))
    started, ended = heard(run.task_id)
    assert started[0] != ended[0]


def test_progress_is_told_of_with_whose_run_it_is(hearing, hearing_queue, tmp_path):
    user, path = make_user(is_superuser=True), tmp_path / "go on"

    def steps():
        return [line[2:] for line in heard(run.task_id) if line[1] == "progressed"]

    run = TaskRunner(user).run(
        "tests.talking_tasks.count_and_wait", [str(path)], queue=hearing_queue
    )

    # The first word may be told alone.
    wait_until(lambda: [run.pk, str(user.pk), 5, 10, "known"] in steps())
    path.write_text("now")
    wait_for_state(run, State.SUCCESS)
    assert {(pk, user_pk) for pk, user_pk, *_step in steps()} == {(run.pk, str(user.pk))}
