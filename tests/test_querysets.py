from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Event
from uuid import uuid4

import pytest
from django.contrib.auth.models import AnonymousUser
from django.db import IntegrityError, connections, transaction
from django.template import Context, Template
from django.utils import timezone

from celery_admin_runner import tracking
from celery_admin_runner.models import Lease, TaskRunRecord
from celery_admin_runner.states import FINISHED, UNFINISHED, State
from tests.factories import make_run, make_superuser, make_user

runs = TaskRunRecord.objects


@pytest.mark.django_db
def test_a_transition_moves_a_run_and_writes_its_fields():
    run = make_run(state=State.PENDING)

    moved = runs.filter(pk=run.pk).transition(
        sources=[State.PENDING], target=State.STARTED, worker="celery@here"
    )

    run.refresh_from_db()
    assert moved == 1
    assert (run.state, run.worker) == (State.STARTED, "celery@here")


@pytest.mark.django_db
def test_a_transition_leaves_a_run_in_another_state_alone():
    run = make_run(state=State.SUCCESS)

    moved = runs.filter(pk=run.pk).transition(
        sources=UNFINISHED, target=State.STARTED, worker="celery@here"
    )

    run.refresh_from_db()
    assert moved == 0
    assert (run.state, run.worker) == (State.SUCCESS, "")


@pytest.mark.django_db
def test_a_run_that_ends_gives_up_its_unique_key():
    run = make_run(state=State.STARTED, unique_key="key", active_key="key")

    runs.filter(pk=run.pk).transition(
        sources=[State.STARTED], target=State.FAILURE, finished_at=timezone.now()
    )

    run.refresh_from_db()
    assert run.active_key is None
    assert make_run(state=State.PENDING, active_key="key").pk


@pytest.mark.django_db
def test_a_transition_is_one_statement(django_assert_num_queries):
    make_run(state=State.PENDING)

    with django_assert_num_queries(1):
        runs.transition(sources=[State.PENDING], target=State.STARTED)


@pytest.mark.django_db(transaction=True)
def test_of_many_callers_at_once_one_moves_a_run():
    make_run(state=State.PENDING)

    def move(number):
        try:
            return runs.transition(
                sources=[State.PENDING], target=State.STARTED, worker=f"worker {number}"
            )
        finally:
            connections.close_all()

    with ThreadPoolExecutor(8) as pool:
        moved = list(pool.map(move, range(8)))

    assert sorted(moved) == [0] * 7 + [1]
    assert runs.get().worker == f"worker {moved.index(1)}"


@pytest.mark.django_db
def test_a_finished_run_without_its_time_is_refused_by_the_database():
    run = make_run(state=State.STARTED)

    with pytest.raises(IntegrityError), transaction.atomic():
        runs.filter(pk=run.pk).transition(sources=[State.STARTED], target=State.SUCCESS)


@pytest.mark.django_db
def test_runs_are_finished_or_unfinished():
    for state in State:
        make_run(state=state)

    assert {run.state for run in runs.finished()} == FINISHED
    assert {run.state for run in runs.unfinished()} == UNFINISHED


@pytest.mark.django_db
def test_a_user_without_the_permission_sees_his_or_her_own_runs():
    user = make_user()
    own = make_run(run_by=user)
    make_run(run_by=make_user())
    make_run()

    assert list(runs.visible_to(user)) == [own]


@pytest.mark.django_db
@pytest.mark.parametrize(
    "make", [lambda: make_user("view_taskrunrecord"), make_superuser], ids=["auditor", "superuser"]
)
def test_a_user_with_the_permission_sees_every_run(make):
    make_run()
    make_run(run_by=make_user())

    assert runs.visible_to(make()).count() == 2


@pytest.mark.django_db
@pytest.mark.parametrize(
    "make",
    [AnonymousUser, lambda: make_user("view_taskrunrecord", is_active=False)],
    ids=["anonymous", "inactive"],
)
def test_others_see_no_run(make):
    make_run()

    assert not runs.visible_to(make()).exists()


@pytest.mark.django_db
def test_a_user_has_his_or_her_own_runs_whatever_else_he_or_she_may_see():
    user = make_superuser()
    own = make_run(run_by=user)
    make_run(run_by=make_user())
    make_run()

    assert list(runs.for_user(user)) == [own]
    assert not runs.for_user(AnonymousUser()).exists()


@pytest.mark.django_db
def test_what_is_shown_to_a_user_is_unfinished_unseen_or_seen_just_now():
    user, now = make_user(), timezone.now()
    shown = [make_run(run_by=user, state=state) for state in State]
    shown.append(make_run(run_by=user, seen_at=now - timedelta(seconds=30)))
    make_run(run_by=user, seen_at=now - timedelta(seconds=30, microseconds=1))
    make_run(run_by=make_user())
    make_run()

    assert list(runs.for_display(user, now=now)) == shown[::-1]
    assert list(runs.displayed(now=now).filter(run_by=user)) == shown[::-1]
    assert not runs.for_display(AnonymousUser()).exists()


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("seconds", "number"), [(0, 2), (0.5, 2), (1, 3), (59.5, 3), (60, 4), (86_400, 4)]
)
def test_what_was_seen_is_shown_for_as_many_seconds_as_one_likes(seconds, number):
    user, now = make_user(), timezone.now()
    make_run(run_by=user)
    for ago in (0, 1, 60):
        make_run(run_by=user, seen_at=now - timedelta(seconds=ago))

    assert runs.for_display(user, seconds, now=now).count() == number


@pytest.mark.django_db
def test_of_what_a_run_started_its_user_is_shown_what_has_a_label():
    user = make_user()
    parent = make_run(run_by=user)
    labelled = make_run(run_by=user, parent_id=parent.task_id, label="Page 1")
    make_run(run_by=user, parent_id=parent.task_id)

    assert list(runs.for_display(user)) == [labelled, parent]


@pytest.mark.django_db
def test_what_is_shown_is_one_query(django_assert_num_queries):
    user = make_user()
    make_run(run_by=user)

    with django_assert_num_queries(1):
        assert len(runs.for_display(user)) == 1


@pytest.mark.django_db
@pytest.mark.parametrize("state", sorted(State))
def test_only_what_has_ended_can_be_seen_and_once(state):
    run, now = make_run(state=state), timezone.now()

    seen = [runs.filter(pk=run.pk).mark_seen(now + timedelta(hours=hour)) for hour in (0, 1)]

    run.refresh_from_db()
    assert seen == ([1, 0] if state in FINISHED else [0, 0])
    assert run.seen_at == (now if state in FINISHED else None)


@pytest.mark.django_db
def test_no_template_marks_a_run_as_seen_by_the_way():
    run = make_run()

    assert Template("{{ run.mark_seen }}").render(Context({"run": run})) == ""
    run.refresh_from_db()

    assert run.seen_at is None


@pytest.mark.django_db
def test_a_run_that_was_seen_is_marked_by_one_statement(django_assert_num_queries):
    run = make_run()

    with django_assert_num_queries(2):
        assert run.mark_seen() is True
        assert run.seen_at is not None
        assert run.mark_seen() is False


@pytest.mark.django_db
@pytest.mark.parametrize("state", sorted(UNFINISHED))
def test_the_database_refuses_that_what_goes_on_was_seen(state):
    run = make_run(state=state)

    with pytest.raises(IntegrityError), transaction.atomic():
        runs.filter(pk=run.pk).update(seen_at=timezone.now())


def start_again(run, now):
    return tracking.record_start(run.task_id, attempt=1, worker="w", now=now)


def succeed_late(run, now):
    return tracking.record_success(run.task_id, attempt=0, result=1, now=now)


def revoke_late(run, now):
    return runs.filter(pk=run.pk).transition(
        sources=[State.LOST], target=State.REVOKED, finished_at=now
    )


@pytest.mark.django_db
@pytest.mark.parametrize("move", [start_again, succeed_late, revoke_late])
def test_a_later_attempt_or_another_end_has_not_been_seen(move):
    run = make_run(state=State.LOST, seen_at=timezone.now(), run_by=make_user())

    assert move(run, timezone.now()) == 1

    run.refresh_from_db()
    assert run.seen_at is None
    # And that can be seen in turn, once it has ended.
    assert run.mark_seen() is run.is_finished


@pytest.mark.django_db(transaction=True)
def test_a_run_that_comes_back_while_somebody_looks_at_its_end_is_not_seen():
    if not connections["default"].features.has_select_for_update:
        pytest.skip("on SQLite one writes after the other")
    run = make_run(state=State.LOST)
    begun = Event()

    def look():
        begun.set()
        try:
            return runs.filter(pk=run.pk).mark_seen(timezone.now())
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            runs.filter(pk=run.pk).transition(
                sources=[State.LOST], target=State.STARTED, finished_at=None
            )
            seen = pool.submit(look)
            begun.wait()
        assert seen.result() == 0

    run.refresh_from_db()
    assert (run.state, run.seen_at) == (State.STARTED, None)


@pytest.mark.django_db
def test_old_is_what_ended_before_the_moment_and_has_ended():
    moment = timezone.now() - timedelta(days=1)
    old = make_run(finished_at=moment - timedelta(microseconds=1))
    make_run(finished_at=moment)
    make_run(state=State.STARTED, finished_at=moment - timedelta(days=9))

    assert list(runs.older_than(moment)) == [old]


def take(now, *, days=1, name="work"):
    return Lease.objects.take(name, holder=uuid4(), now=now, until=now + timedelta(days=days))


@pytest.mark.django_db
def test_a_lease_is_taken_once_until_it_runs_out():
    now = timezone.now()

    answers = [
        take(now),
        take(now),
        take(now + timedelta(hours=23)),
        take(now + timedelta(days=1)),
    ]

    assert answers == [True, False, False, True]


@pytest.mark.django_db
def test_leases_of_other_names_are_free():
    now = timezone.now()

    assert take(now)
    assert take(now, name="other work")


@pytest.mark.django_db
def test_a_lease_knows_its_holder():
    now, holder = timezone.now(), uuid4()

    Lease.objects.take("work", holder=holder, now=now, until=now + timedelta(days=1))

    assert Lease.objects.get(pk="work").holder == holder


@pytest.mark.django_db(transaction=True)
def test_of_many_callers_at_once_one_takes_a_lease():
    now = timezone.now()

    def compete(_):
        try:
            return take(now)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(compete, range(8)))

    assert sorted(answers) == [False] * 7 + [True]
