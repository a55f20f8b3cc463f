"""Runs that wait for other runs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import pairwise
from threading import Event

import pytest
from django.core.exceptions import PermissionDenied
from django.db import OperationalError, connection, connections, transaction
from django.db.models import RestrictedError
from django.utils import timezone

from celery_admin_runner import dependencies
from celery_admin_runner.deletion import _without_awaited
from celery_admin_runner.dispatcher import Dispatcher
from celery_admin_runner.exceptions import CircularDependency, InvalidArguments, NotMovable
from celery_admin_runner.models import OpenDependency, TaskRunRecord
from celery_admin_runner.retention import Selection, prune
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import FINISHED, State
from tests.celery_app import app
from tests.factories import make_run, make_runs, make_user
from tests.waiting import wait_until

FAILED = sorted(FINISHED - {State.SUCCESS})


def waiting_for(*others, **options):
    """Make a run that waits for others."""
    return TaskRunner().run("tests.tasks.add", [1], depends_on=others, **options)


def running(**fields):
    return make_run(state=State.STARTED, **fields)


def test_only_runs_of_the_journal_can_be_waited_for(db):
    run = running()

    for given in (run, run.task_id, [run.task_id], [app.AsyncResult(run.task_id)], 5):
        with pytest.raises(TypeError, match="runs of the journal"):
            TaskRunner().run("tests.tasks.add", [1], depends_on=given)

    assert TaskRunRecord.objects.count() == 1


def end(run, state=State.SUCCESS):
    """Let a run end as a worker does: it knows nothing of who waits."""
    TaskRunRecord.objects.filter(pk=run.pk).update(state=state, finished_at=timezone.now())


def pass_of_a_dispatcher():
    now = timezone.now()
    return dependencies.settle_finished(now - timedelta(seconds=5), now)


def in_thread(work: Callable[[], object]) -> object:
    """Do this on another connection to the database, and return what came of it."""

    def do() -> object:
        try:
            return work()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(do).result(timeout=60)


def needs_locks_of_rows() -> None:
    if not connection.features.has_select_for_update_skip_locked:
        pytest.skip("on this database who writes holds all of it")


def state_of(run):
    run.refresh_from_db()
    return run.state


@pytest.mark.django_db
def test_a_run_waits_for_what_runs_still():
    dependency = running()

    run = waiting_for(dependency)

    assert (state_of(run), run.due_at) == (State.WAITING, None)
    assert list(run.depends_on.all()) == [dependency]
    assert pass_of_a_dispatcher() == 0


@pytest.mark.django_db
def test_the_last_dependency_that_succeeds_releases_a_run():
    first, last = running(), running()
    run = waiting_for(first, last)

    end(first)
    assert pass_of_a_dispatcher() == 0
    assert state_of(run) == State.WAITING
    end(last)
    begin = timezone.now()

    assert pass_of_a_dispatcher() == 1
    assert state_of(run) == State.SCHEDULED
    assert begin <= run.due_at <= timezone.now()
    assert run.eta is None
    assert not OpenDependency.objects.exists()


@pytest.mark.django_db
def test_a_run_that_was_released_is_due_at_its_earliest_start():
    dependency = running()
    run = waiting_for(dependency, countdown=600)

    end(dependency)
    pass_of_a_dispatcher()

    assert state_of(run) == State.SCHEDULED
    assert run.due_at == run.eta


@pytest.mark.django_db(transaction=True)
def test_a_run_is_due_at_once_if_all_it_waits_for_has_succeeded():
    run = waiting_for(make_run(), make_run())

    assert state_of(run) == State.SCHEDULED


@pytest.mark.django_db
@pytest.mark.parametrize("state", FAILED)
def test_a_dependency_that_ends_otherwise_lets_a_run_be_skipped(state):
    dependency = running()
    run = waiting_for(running(), dependency)

    end(dependency, state)
    pass_of_a_dispatcher()

    assert state_of(run) == State.IGNORED
    assert run.exception == f"Skipped: a run that it waited for ended as {state}."
    assert run.finished_at is not None
    assert not OpenDependency.objects.exists()


@pytest.mark.django_db
def test_what_waits_for_a_skipped_run_is_skipped_in_the_same_pass():
    dependency = running()
    runs = [dependency]
    for _ in range(4):
        runs.append(waiting_for(runs[-1]))

    end(dependency, State.REVOKED)
    number = pass_of_a_dispatcher()

    assert number == 4
    assert [state_of(run) for run in runs[1:]] == [State.IGNORED] * 4
    assert not OpenDependency.objects.exists()


@pytest.mark.django_db
def test_a_sweep_finds_what_no_pass_has_seen():
    first, second = running(), running()
    released, skipped = waiting_for(first), waiting_for(second)
    end(first)
    end(second, State.FAILURE)
    TaskRunRecord.objects.finished().update(finished_at=timezone.now() - timedelta(days=1))

    assert pass_of_a_dispatcher() == 0
    assert dependencies.sweep(timezone.now()) == 2
    assert (state_of(released), state_of(skipped)) == (State.SCHEDULED, State.IGNORED)


@pytest.mark.django_db
def test_a_pass_that_has_nothing_to_do_is_one_query(django_assert_num_queries):
    for _ in range(5):
        waiting_for(running())
    make_run()
    now = timezone.now()

    with django_assert_num_queries(1):
        assert dependencies.settle_finished(now - timedelta(seconds=5), now) == 0


@pytest.mark.django_db
def test_a_hundred_dependents_cost_as_many_statements_as_one(django_assert_max_num_queries):
    dependency = running()
    runs = [waiting_for(dependency) for _ in range(100)]
    end(dependency)

    with django_assert_max_num_queries(9):
        assert pass_of_a_dispatcher() == 100

    assert {state_of(run) for run in runs} == {State.SCHEDULED}


@pytest.mark.django_db
def test_more_dependents_than_fit_one_statement_are_settled_in_one_pass(monkeypatch):
    monkeypatch.setattr(dependencies, "BATCH_SIZE", 3)
    good, bad = running(), running()
    others = [running() for _ in range(5)]
    released = [waiting_for(good, *others) for _ in range(7)]
    skipped = [waiting_for(bad) for _ in range(7)]
    later = [waiting_for(run) for run in skipped]
    for run in (good, *others):
        end(run)
    end(bad, State.FAILURE)

    assert pass_of_a_dispatcher() == 21
    assert {state_of(run) for run in released} == {State.SCHEDULED}
    assert {state_of(run) for run in skipped + later} == {State.IGNORED}


@pytest.mark.django_db(transaction=True)
def test_what_is_due_does_not_wait_for_the_end_of_a_long_chain(monkeypatch):
    monkeypatch.setattr(dependencies, "CASCADE_LASTS", 0)
    begin = running()
    chain = [waiting_for(begin)]
    for _ in range(3):
        chain.append(waiting_for(chain[-1]))
    now = timezone.now()
    due = make_run(state=State.SCHEDULED, due_at=now, args=[1])
    dispatcher = Dispatcher(app)
    end(begin, State.FAILURE)

    passes = []
    for _ in range(4):
        dispatcher.dispatch()
        passes.append((state_of(due), [state_of(run) for run in chain].count(State.IGNORED)))

    assert passes == [(State.PENDING, number) for number in (1, 2, 3, 4)]


@pytest.mark.django_db
def test_a_diamond_is_released_once_from_the_top_down():
    top = running()
    left, right = waiting_for(top), waiting_for(top)
    bottom = waiting_for(left, right, left)

    end(top)
    assert pass_of_a_dispatcher() == 2
    assert state_of(bottom) == State.WAITING
    end(left)
    assert pass_of_a_dispatcher() == 0
    end(right)

    assert pass_of_a_dispatcher() == 1
    assert pass_of_a_dispatcher() == 0
    assert state_of(bottom) == State.SCHEDULED


@pytest.mark.django_db
def test_a_diamond_whose_top_fails_is_skipped_whole_and_once():
    top = running()
    left, right = waiting_for(top), waiting_for(top)
    bottom = waiting_for(left, right)
    end(top, State.FAILURE)

    assert pass_of_a_dispatcher() == 3
    assert state_of(bottom) == State.IGNORED
    assert bottom.exception == "Skipped: a run that it waited for ended as IGNORED."


@pytest.mark.django_db
def test_what_waits_for_a_cancelled_run_is_skipped():
    first = waiting_for(running())
    second = waiting_for(first)

    TaskRunner().cancel(first)
    pass_of_a_dispatcher()

    assert (state_of(first), state_of(second)) == (State.REVOKED, State.IGNORED)
    dependencies.sweep(timezone.now())
    assert not OpenDependency.objects.exists()


@pytest.mark.django_db
def test_a_cancelled_run_is_neither_released_nor_skipped():
    good, bad = running(), running()
    runs = [waiting_for(good), waiting_for(bad)]
    for run in runs:
        TaskRunner().cancel(run)
    end(good)
    end(bad, State.FAILURE)

    pass_of_a_dispatcher()
    dependencies.sweep(timezone.now())

    assert [state_of(run) for run in runs] == [State.REVOKED] * 2
    assert not OpenDependency.objects.exists()


@pytest.mark.django_db
def test_a_user_waits_only_for_runs_that_he_sees():
    user = make_user("run_celerytask")
    own, hidden = running(run_by=user), running()

    TaskRunner(user).run("tests.tasks.add", [1], depends_on=[own])

    with pytest.raises(PermissionDenied):
        TaskRunner(user).run("tests.tasks.add", [1], depends_on=[own, hidden])


@pytest.mark.django_db
def test_a_secret_is_not_kept_until_others_have_ended():
    with pytest.raises(InvalidArguments):
        TaskRunner().run("tests.tasks.tell_secret", ["x", "y"], depends_on=[running()])

    assert not TaskRunRecord.objects.filter(task_name="tests.tasks.tell_secret").exists()


@pytest.mark.django_db
def test_a_run_does_not_wait_for_what_is_gone():
    gone = make_run()
    TaskRunRecord.objects.get(pk=gone.pk).delete()

    with pytest.raises(InvalidArguments):
        waiting_for(gone, running())

    assert not TaskRunRecord.objects.filter(state=State.WAITING).exists()


@pytest.mark.django_db(transaction=True)
def test_a_run_that_waits_can_wait_for_more():
    first, second = running(), running()
    run = waiting_for(first)

    again = TaskRunner().add_dependencies(run, [second, first])

    assert again.state == State.WAITING
    assert set(again.depends_on.all()) == {first, second}
    end(first)
    assert pass_of_a_dispatcher() == 0
    end(second)
    assert pass_of_a_dispatcher() == 1


@pytest.mark.django_db(transaction=True)
def test_a_dependency_that_has_failed_already_counts_when_it_is_added():
    run = waiting_for(running())

    run = TaskRunner().add_dependencies(run, [make_run(state=State.FAILURE)])

    assert run.state == State.IGNORED


@pytest.mark.django_db
def test_a_circle_is_refused_however_long():
    begin = waiting_for(running())
    end_of_chain = begin
    for _ in range(5):
        end_of_chain = waiting_for(end_of_chain, running())

    for other in (begin, end_of_chain):
        with pytest.raises(CircularDependency):
            TaskRunner().add_dependencies(begin, [running(), other])

    assert begin.depends_on.count() == 1
    TaskRunner().add_dependencies(end_of_chain, [begin])


@pytest.mark.django_db
def test_a_run_that_was_released_waits_for_nothing_more():
    dependency = running()
    run = waiting_for(dependency)
    end(dependency)
    pass_of_a_dispatcher()

    with pytest.raises(NotMovable):
        TaskRunner().add_dependencies(run, [running()])

    assert run.depends_on.count() == 1


@pytest.mark.django_db
def test_who_may_not_run_a_task_or_see_a_run_does_not_change_what_it_waits_for():
    run = waiting_for(running())
    stranger, helper = make_user("run_celerytask"), make_user("view_taskrunrecord")

    for user in (stranger, helper):
        with pytest.raises(PermissionDenied):
            TaskRunner(user).add_dependencies(run, [])


def prune_all():
    return sum(prune(Selection(cutoff=timezone.now() + timedelta(days=1))))


@pytest.mark.django_db
def test_what_is_waited_for_is_neither_pruned_nor_deleted():
    dependency = running()
    run = waiting_for(dependency)
    end(dependency, State.FAILURE)

    assert prune_all() == 0
    with pytest.raises(RestrictedError):
        dependency.delete()
    pass_of_a_dispatcher()

    assert state_of(run) == State.IGNORED
    assert prune_all() == 2


@pytest.mark.django_db(transaction=True)
def test_who_waits_for_a_run_keeps_it_from_being_pruned_before_the_commit():
    needs_locks_of_rows()
    dependency = make_run()

    with transaction.atomic():
        run = waiting_for(dependency)
        assert in_thread(prune_all) == 0

    assert state_of(run) == State.SCHEDULED


@pytest.mark.django_db(transaction=True)
def test_a_run_that_began_to_wait_while_runs_are_pruned_keeps_what_it_waits_for():
    """Between the choice of what goes and its end, on the connection that deletes."""
    needs_locks_of_rows()
    dependency, other = make_run(), make_run()
    is_locked, has_begun = Event(), Event()

    def begin_to_wait():
        with transaction.atomic():
            waiting_for(dependency)
            is_locked.set()
            has_begun.wait(10)

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(lambda: (begin_to_wait(), connections.close_all()))
        assert is_locked.wait(10)
        assert prune_all() == 1
        has_begun.set()
        future.result(timeout=10)

    assert set(TaskRunRecord.objects.finished()) == {dependency}
    assert not TaskRunRecord.objects.filter(pk=other.pk).exists()


@pytest.mark.django_db(transaction=True)
def test_a_worker_reports_a_run_while_another_begins_to_wait_for_it():
    needs_locks_of_rows()
    if connection.vendor == "mysql":
        pytest.skip("InnoDB locks the row that a foreign key names until the commit")
    dependency = running()

    with transaction.atomic():
        run = waiting_for(dependency)
        in_thread(lambda: end(dependency))

    assert state_of(run) == State.SCHEDULED


@pytest.mark.django_db(transaction=True)
def test_a_dependency_that_ends_before_its_dependent_is_committed_releases_it():
    dependency = running()

    with transaction.atomic():
        run = waiting_for(dependency)
        end(dependency)

    assert state_of(run) == State.SCHEDULED


@pytest.mark.django_db(transaction=True)
def test_an_error_of_the_database_while_settling_leaves_the_run_to_the_dispatchers(
    monkeypatch, caplog
):
    def away(*args):
        raise OperationalError("away")

    with monkeypatch.context() as patch:
        patch.setattr(dependencies, "settle", away)
        run = waiting_for(make_run())

    assert "away" in caplog.text
    assert state_of(run) == State.WAITING
    assert pass_of_a_dispatcher() == 1


@pytest.mark.django_db(transaction=True)
def test_two_who_settle_at_once_settle_each_run_once():
    good, bad = [running() for _ in range(5)], running()
    released = [waiting_for(*good) for _ in range(40)]
    skipped = [waiting_for(bad, *good) for _ in range(20)]
    later = [waiting_for(run) for run in skipped]

    def settle() -> int:
        try:
            return sum(pass_of_a_dispatcher() for _ in range(15))
        finally:
            connections.close_all()

    with ThreadPoolExecutor(3) as pool:
        passes = [pool.submit(settle) for _ in range(3)]
        for run in good:
            end(run)
        end(bad, State.LOST)
        number = sum(future.result(timeout=60) for future in passes)
    number += pass_of_a_dispatcher()

    assert number == 80
    assert {state_of(run) for run in released} == {State.SCHEDULED}
    assert {state_of(run) for run in skipped + later} == {State.IGNORED}
    assert not OpenDependency.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_of_two_who_would_close_a_circle_together_one_is_refused():
    one, other = waiting_for(running()), waiting_for(running())

    def link(run, dependency):
        try:
            TaskRunner().add_dependencies(run, [dependency])
        except CircularDependency:
            return "refused"
        finally:
            connections.close_all()
        return "linked"

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(link, one, other), pool.submit(link, other, one)]
        results = [future.result(timeout=60) for future in futures]

    assert sorted(results) == ["linked", "refused"]


@pytest.mark.django_db(transaction=True)
def test_a_run_is_not_released_while_it_is_made_to_wait_for_more():
    needs_locks_of_rows()
    first, second = running(), running()
    run = waiting_for(first)
    end(first)

    with transaction.atomic():
        TaskRunner().add_dependencies(run, [second])
        assert in_thread(pass_of_a_dispatcher) == 0

    assert state_of(run) == State.WAITING
    end(second)
    assert pass_of_a_dispatcher() == 1


def say(run, *texts):
    for number, text in enumerate(texts, start=1):
        run.output.create(seq=number, stream="stdout", text=text)
    return run


def after(*others, says):
    run = say(make_run(), *says)
    run.depends_on.add(*others)
    return run


@pytest.mark.django_db
def test_the_complete_output_begins_with_that_of_the_dependencies_each_once():
    top = say(make_run(), "top 1\n", "top 2\n")
    left, right = after(top, says=["left"]), after(top, says=["right\n"])
    silent = after(left, says=[])
    bottom = after(right, silent, top, says=["bottom ", "end"])

    assert bottom.complete_output() == "top 1\ntop 2\nright\nleft\nbottom end"
    assert left.complete_output() == "top 1\ntop 2\nleft"


@pytest.mark.django_db
def test_the_complete_output_of_a_long_chain_needs_no_deep_stack():
    make_runs(1500)
    through = TaskRunRecord.depends_on.through
    through.objects.bulk_create(
        through(from_taskrunrecord=later, to_taskrunrecord=run)
        for run, later in pairwise(TaskRunRecord.objects.order_by("pk"))
    )
    first, last = TaskRunRecord.objects.order_by("pk")[0], TaskRunRecord.objects.latest("pk")
    say(first, "first\n")
    say(last, "last\n")

    assert last.complete_output() == "first\nlast\n"


@pytest.mark.django_db
def test_the_complete_output_of_a_run_alone_is_two_queries(django_assert_num_queries):
    run = say(make_run(), "alone")

    with django_assert_num_queries(2):
        assert run.complete_output() == "alone"


@pytest.mark.django_db
def test_what_is_to_go_is_looked_at_again_when_it_is_locked():
    awaited, passed, free = make_run(), make_run(), make_run()
    waiting_for(awaited)
    make_run(state=State.IGNORED).depends_on.add(passed, awaited)

    assert _without_awaited([free.pk, awaited.pk, passed.pk], using="default") == [
        free.pk,
        passed.pk,
    ]


def test_a_diamond_goes_through_a_real_worker(worker):
    top = TaskRunner().run("tests.tasks.add", [1])
    left, right = waiting_for(top), waiting_for(top)
    bottom = waiting_for(left, right)
    dispatcher = Dispatcher()

    def has_ended() -> bool:
        dispatcher.dispatch()
        return state_of(bottom) == State.SUCCESS

    wait_until(has_ended)

    runs = list(TaskRunRecord.objects.order_by("pk"))
    assert [run.state for run in runs] == [State.SUCCESS] * 4
    assert max(runs[1].finished_at, runs[2].finished_at) <= bottom.started_at
    assert bottom.eta is None
