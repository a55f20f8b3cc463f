from __future__ import annotations

import re
import resource
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from threading import Barrier

import pytest
from django.db import connection, connections, transaction
from django.db.models.signals import post_delete
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from celery_admin_runner import deletion
from celery_admin_runner.deletion import _without_awaited
from celery_admin_runner.exceptions import PruneError
from celery_admin_runner.models import OpenDependency, Source, TaskRunOutput, TaskRunRecord
from celery_admin_runner.retention import Selection, batches, count, cutoff_before, delete, prune
from celery_admin_runner.states import FINISHED, UNFINISHED, State
from tests.factories import make_run, make_runs, make_user
from tests.models import Bookmark, Evidence, Remark, Successor

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
OLD = NOW - timedelta(days=60)
CUTOFF = NOW - timedelta(days=28)


def old_run(**fields):
    return make_run(**{"finished_at": OLD, "created_at": OLD, **fields})


def left():
    return set(TaskRunRecord.objects.values_list("pk", flat=True))


def pruned(batch_size=5000, **fields):
    return sum(prune(Selection(**{"cutoff": CUTOFF, **fields}), batch_size=batch_size))


@pytest.mark.django_db
def test_finished_runs_that_ended_before_the_cutoff_go():
    old_run()
    just_old_enough = old_run(finished_at=CUTOFF - timedelta(microseconds=1))
    too_young = old_run(finished_at=CUTOFF)

    number = pruned()

    assert number == 2
    assert left() == {too_young.pk}
    assert just_old_enough.pk not in left()


@pytest.mark.django_db
@pytest.mark.parametrize("state", sorted(FINISHED))
def test_every_finished_state_is_pruned(state):
    old_run(state=state)

    assert pruned() == 1


@pytest.mark.django_db
@pytest.mark.parametrize("state", sorted(UNFINISHED))
def test_an_unfinished_run_stays_however_old(state):
    run = old_run(state=state, finished_at=OLD if state == State.RETRY else None)

    number = pruned()

    assert number == 0
    assert left() == {run.pk}


def test_an_unfinished_state_can_not_be_selected():
    with pytest.raises(PruneError, match="STARTED: only finished runs are pruned"):
        Selection(cutoff=CUTOFF, states=frozenset({State.STARTED}))


@pytest.mark.django_db
def test_only_the_states_asked_for_go():
    failed = old_run(state=State.FAILURE)
    lost = old_run(state=State.LOST)
    succeeded = old_run()

    number = pruned(states=frozenset({State.FAILURE, State.LOST}))

    assert number == 2
    assert left() == {succeeded.pk}
    assert not {failed.pk, lost.pk} & left()


@pytest.mark.django_db
def test_only_the_tasks_asked_for_go_by_name_or_pattern():
    old_run(task_name="shop.tasks.order")
    old_run(task_name="shop.tasks.ship")
    old_run(task_name="billing.close_month")
    kept = old_run(task_name="billing.open_month")

    number = pruned(tasks=("shop.*", "billing.close_month"))

    assert number == 3
    assert left() == {kept.pk}


@pytest.mark.django_db
def test_a_pattern_that_no_task_matches_prunes_nothing():
    old_run()

    assert pruned(tasks=("nothing.*",)) == 0


@pytest.mark.django_db
def test_the_newest_finished_runs_of_each_task_can_stay():
    often = [old_run(task_name="often") for _ in range(5)]
    seldom = [old_run(task_name="seldom")]
    running = old_run(task_name="often", state=State.STARTED, finished_at=None)

    number = pruned(keep_last=2)

    assert number == 3
    assert left() == {run.pk for run in [*often[3:], *seldom, running]}


@pytest.mark.django_db
def test_the_newest_runs_that_stay_are_counted_over_all_states_and_ages():
    failed = old_run(state=State.FAILURE)
    make_run()
    make_run()

    number = pruned(keep_last=2, states=frozenset({State.FAILURE}))

    assert number == 1
    assert failed.pk not in left()


@pytest.mark.django_db
@pytest.mark.parametrize("keep_last", [0, 1])
def test_the_count_is_what_would_go(keep_last):
    make_runs(3, finished_at=OLD)
    make_run()
    selection = Selection(cutoff=CUTOFF, keep_last=keep_last)

    number = count(selection)

    assert number == 3 == sum(prune(selection))


@pytest.mark.django_db
def test_runs_go_in_batches_and_each_is_told():
    make_runs(7, finished_at=OLD)

    numbers = list(prune(Selection(cutoff=CUTOFF), batch_size=3))

    assert numbers == [3, 3, 1]


@pytest.mark.django_db
def test_a_batch_larger_than_a_statement_can_hold_goes_all_the_same():
    make_runs(1203, finished_at=OLD)

    numbers = list(prune(Selection(cutoff=CUTOFF), batch_size=100_000))

    assert numbers == [1203]
    assert left() == set()


@pytest.mark.django_db
def test_the_batches_come_oldest_first_or_newest_first():
    make_runs(5, finished_at=OLD)
    pks = sorted(left())
    selection = Selection(cutoff=CUTOFF)

    oldest_first = list(batches(selection, batch_size=2))
    newest_first = list(batches(selection, batch_size=2, newest_first=True))

    assert oldest_first == [pks[:2], pks[2:4], pks[4:]]
    assert newest_first == [[pks[4], pks[3]], [pks[2], pks[1]], [pks[0]]]


@pytest.mark.django_db
def test_the_output_of_a_run_goes_with_it_and_that_of_others_stays():
    run, other = old_run(), make_run()
    for owner in (run, other):
        TaskRunOutput.objects.create(run=owner, seq=1, stream="stdout", text="hello")

    pruned()

    assert [output.run_id for output in TaskRunOutput.objects.all()] == [other.pk]


@pytest.mark.django_db
def test_a_run_that_was_run_again_goes_and_the_later_run_stays():
    run = old_run()
    again = make_run(retry_of=run)

    pruned()

    again.refresh_from_db()
    assert left() == {again.pk}
    assert again.retry_of_id is None


@pytest.mark.django_db
def test_the_dependencies_of_a_run_go_in_both_directions():
    old, first, last = old_run(), make_run(), make_run()
    old.depends_on.add(first)
    last.depends_on.add(old)

    pruned()

    assert left() == {first.pk, last.pk}
    assert not TaskRunRecord.depends_on.through.objects.exists()


@pytest.mark.django_db
def test_a_run_for_which_an_unfinished_run_waits_stays():
    dependency = old_run(state=State.FAILURE)
    waiting = old_run(state=State.WAITING, finished_at=None)
    waiting.depends_on.add(dependency)

    number = pruned()

    assert number == 0
    assert left() == {dependency.pk, waiting.pk}


@pytest.mark.django_db
def test_a_run_that_came_back_to_life_keeps_its_row_and_its_output():
    run = old_run(state=State.LOST)
    TaskRunOutput.objects.create(run=run, seq=1, stream="stdout", text="hello")
    selection = Selection(cutoff=CUTOFF)
    keys = list(batches(selection))
    TaskRunRecord.objects.transition(sources=[State.LOST], target=State.STARTED)

    numbers = list(delete(selection, keys))

    assert numbers == [0]
    assert left() == {run.pk}
    assert TaskRunOutput.objects.filter(run=run).exists()


@pytest.mark.django_db(transaction=True)
def test_no_row_is_loaded_even_when_somebody_listens_to_deletions(
    django_assert_max_num_queries,
):
    heard = []

    def listener(sender, **kwargs):
        heard.append(sender)

    make_runs(300, finished_at=OLD)
    post_delete.connect(listener)

    # Two pages, which of these may go, the turn; and six for each transaction of 100 at least.
    with django_assert_max_num_queries(2 + 1 + 3 + 3 * 6) as queries:
        pruned()

    post_delete.disconnect(listener)
    assert heard == []
    assert not any("args" in query["sql"] for query in queries.captured_queries)


@pytest.mark.django_db
def test_rows_of_other_apps_that_cascade_go_as_django_deletes_them():
    heard = []

    def listener(instance, **kwargs):
        heard.append(instance.pk)

    gone = Remark.objects.create(run=old_run())
    stays = Remark.objects.create(run=make_run())
    gone_pk = gone.pk
    post_delete.connect(listener, sender=Remark)

    number = pruned()

    post_delete.disconnect(listener, sender=Remark)
    assert number == 1
    assert heard == [gone_pk]
    assert list(Remark.objects.all()) == [stays]


@pytest.mark.django_db
def test_rows_of_other_apps_that_only_point_to_a_run_stay():
    bookmark = Bookmark.objects.create(run=old_run())

    number = pruned()

    bookmark.refresh_from_db()
    assert number == 1
    assert bookmark.run_id is None


@pytest.mark.django_db
def test_a_run_that_another_app_protects_stays():
    protected = Evidence.objects.create(run=old_run()).run
    old_run()

    number = pruned()

    assert number == 1
    assert left() == {protected.pk}


@pytest.mark.django_db
def test_a_run_for_which_another_app_wants_another_value_stays():
    wanted = Successor.objects.create(run=old_run()).run
    old_run()

    number = pruned()

    assert number == 1
    assert left() == {wanted.pk}


@pytest.mark.django_db
def test_a_success_because_of_which_calls_are_still_ignored_stays():
    now = timezone.now()
    old_run(ignore_until=now - timedelta(seconds=1))
    still_counts = old_run(ignore_until=now + timedelta(hours=1))

    number = pruned()

    assert number == 1
    assert left() == {still_counts.pk}


def test_an_age_before_all_calendars_is_an_error_in_words():
    with pytest.raises(PruneError, match="reaches back before the year 1"):
        cutoff_before(timezone.now(), timedelta.max)


def seen_run(**fields):
    return old_run(**{"seen_at": OLD + timedelta(minutes=1), **fields})


@pytest.mark.django_db
def test_of_what_was_seen_only_that_goes_which_is_old_enough_and_has_been_seen():
    seen_run(run_by=make_user())
    unseen = old_run(run_by=make_user())
    young = seen_run(finished_at=CUTOFF, seen_at=NOW)

    number = pruned(only_seen=True)

    assert number == 1
    assert left() == {unseen.pk, young.pk}


@pytest.mark.django_db
@pytest.mark.parametrize("source", sorted(set(Source.values) - {Source.CODE}))
def test_what_staff_started_is_kept_for_the_audit_whoever_has_seen_it(source):
    run = seen_run(source=source)

    number = pruned(only_seen=True)

    assert number == 0
    assert left() == {run.pk}
    assert pruned() == 1


@pytest.mark.django_db
def test_what_a_run_of_staff_started_in_turn_is_kept_too():
    ids = {source: seen_run(source=source).task_id for source in (Source.ADMIN, Source.CODE)}
    kept, gone = (seen_run(root_id=root, parent_id=root) for root in ids.values())

    number = pruned(only_seen=True)

    assert number == 2
    assert kept.pk in left()
    assert gone.pk not in left()


@pytest.mark.django_db
def test_what_was_seen_can_be_narrowed_as_what_is_old():
    runs = [seen_run(state=State.FAILURE, task_name="shop.order") for _ in range(3)]
    others = [seen_run(task_name="shop.order"), seen_run(state=State.FAILURE)]

    number = pruned(
        only_seen=True, states=frozenset({State.FAILURE}), tasks=("shop.*",), keep_last=2
    )

    # The newest of all states are the success and the last failure.
    assert number == 2
    assert left() == {run.pk for run in [runs[2], *others]}


@pytest.mark.django_db
def test_a_seen_run_that_an_unfinished_one_has_waited_for_stays():
    run = seen_run()
    make_run(state=State.STARTED).depends_on.add(run)

    assert pruned(only_seen=True) == 0


@pytest.mark.django_db
@pytest.mark.parametrize("target", [State.STARTED, State.SUCCESS])
def test_a_seen_run_of_which_there_is_news_stays_with_its_output(target):
    run = seen_run(state=State.LOST)
    TaskRunOutput.objects.create(run=run, seq=1, stream="stdout", text="hello")
    selection = Selection(cutoff=CUTOFF, only_seen=True)
    keys = list(batches(selection))
    TaskRunRecord.objects.transition(sources=[State.LOST], target=target)

    numbers = list(delete(selection, keys))

    assert keys == [[run.pk]]
    assert numbers == [0]
    assert left() == {run.pk}
    assert TaskRunOutput.objects.filter(run=run).exists()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("fields", "index"),
    [
        ({}, "taskrun_finished_idx"),
        ({"only_seen": True}, "taskrun_seen_idx"),
        ({"tasks": ("tests.tasks.few",)}, "taskrun_by_task_idx"),
        ({"tasks": ("tests.tasks.few",), "only_seen": True}, "taskrun_by_task_idx"),
    ],
)
def test_the_few_that_are_to_go_are_found_by_an_index_among_many_that_stay(fields, index):
    for number in range(50):
        moment, name = NOW + timedelta(minutes=number), f"tests.tasks.other{number}"
        make_runs(60, finished_at=moment, created_at=moment, task_name=name)
    run = seen_run(task_name="tests.tasks.few")
    with connection.cursor() as cursor:
        table = connection.ops.quote_name(TaskRunRecord._meta.db_table)
        is_mysql = connection.vendor == "mysql"
        cursor.execute(f"ANALYZE TABLE {table}" if is_mysql else f"ANALYZE {table}")

    with CaptureQueriesContext(connection) as queries:
        found = list(batches(Selection(cutoff=CUTOFF, **fields)))

    assert found == [[run.pk]]
    pages = [query["sql"] for query in queries.captured_queries if "LIMIT 5000" in query["sql"]]
    assert len(pages) == 2
    for sql in pages:
        assert index in plan_of(sql)


def plan_of(sql):
    how = "EXPLAIN QUERY PLAN" if connection.vendor == "sqlite" else "EXPLAIN"
    with connection.cursor() as cursor:
        cursor.execute(f"{how} {sql}")
        return " ".join(str(row) for row in cursor.fetchall())


@pytest.mark.django_db
@pytest.mark.parametrize("newest_first", [False, True])
def test_each_page_goes_on_where_the_last_one_ended_also_among_equals(monkeypatch, newest_first):
    monkeypatch.setattr(deletion, "PAGE_SIZE", 2)
    later, *equals = [old_run(finished_at=OLD + timedelta(hours=each)) for each in (9, 1, 1, 1, 1)]
    earlier = old_run()

    found = list(batches(Selection(cutoff=CUTOFF), batch_size=4, newest_first=newest_first))

    order = [earlier, *equals, later][:: -1 if newest_first else 1]
    assert found == [[run.pk for run in order[:4]], [run.pk for run in order[4:]]]


@pytest.mark.django_db
def test_the_newest_are_those_that_were_created_last():
    later = old_run(created_at=OLD + timedelta(hours=1))
    earlier = old_run()

    pruned(keep_last=1)

    assert left() == {later.pk}
    assert earlier.pk not in left()


@pytest.mark.django_db
def test_only_of_the_tasks_asked_for_the_newest_stay():
    runs = {name: [old_run(task_name=name) for _ in range(2)] for name in ("often", "seldom")}

    number = pruned(keep_last=1, tasks=("often",))

    assert number == 1
    assert left() == {run.pk for run in [runs["often"][1], *runs["seldom"]]}


@pytest.mark.django_db(transaction=True)
def test_all_that_hangs_on_a_run_is_seen_to_where_nobody_else_has_begun_the_transaction():
    run, dependency, dependent, other = old_run(), make_run(), make_run(), make_run()
    TaskRunOutput.objects.create(run=run, seq=1, stream="stdout", text="hello")
    run.depends_on.add(dependency)
    dependent.depends_on.add(run)
    again = make_run(retry_of=run)
    bookmark = Bookmark.objects.create(run=run)
    Remark.objects.create(run=run)
    awaited = old_run()
    make_run(state=State.STARTED).depends_on.add(awaited)
    stays = TaskRunOutput.objects.create(run=other, seq=1, stream="stdout", text="hello")

    keys = [[run.pk, awaited.pk]]
    number = sum(delete(Selection(cutoff=CUTOFF), keys))

    again.refresh_from_db()
    bookmark.refresh_from_db()
    assert number == 1
    assert run.pk not in left()
    assert awaited.pk in left()
    assert (again.retry_of_id, bookmark.run_id) == (None, None)
    assert list(TaskRunOutput.objects.all()) == [stays]
    assert not Remark.objects.exists()
    assert TaskRunRecord.depends_on.through.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_a_dependency_that_is_open_goes_with_the_run_that_has_waited():
    run, dependency = old_run(), old_run()
    OpenDependency.objects.create(dependent=run, dependency=dependency)

    numbers = list(prune(Selection(cutoff=CUTOFF)))

    assert numbers == [1]
    assert left() == {dependency.pk}
    assert not OpenDependency.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_batch_takes_as_many_transactions_as_keep_each_short(monkeypatch):
    monkeypatch.setattr(deletion, "FIRST_SIZE", 3)
    monkeypatch.setattr(deletion, "FIRST_SIZES", {})
    monkeypatch.setattr(deletion, "BREATH_SECONDS", 0)
    for vendor in deletion.AIMS:
        monkeypatch.setitem(deletion.AIMS, vendor, 1e-9)
    monkeypatch.setattr(deletion, "OTHER_AIM", 1e-9)
    make_runs(10, finished_at=OLD)

    with CaptureQueriesContext(connection) as queries:
        numbers = list(prune(Selection(cutoff=CUTOFF), batch_size=8))

    assert numbers == [8, 2]
    turns = [query for query in queries.captured_queries if query["sql"].startswith("UPDATE")]
    assert len(turns) == 4


@pytest.mark.django_db
def test_a_condition_on_keys_stands_as_it_is_for_the_database_to_look_them_up():
    runs = make_runs(3)
    pks = [run.pk for run in runs[:2]]

    with CaptureQueriesContext(connection) as queries:
        found = set(TaskRunRecord.objects.filter(deletion.Among("pk", pks)))

    assert found == set(runs[:2])
    # MySQL finds no row by its key where the condition is compared with a truth value.
    assert re.search(r"(IN \([0-9, ]+\)|= ANY\([^=]+\)) ORDER BY", queries[0]["sql"])


def test_a_few_rows_that_are_left_say_nothing_of_many():
    pace = deletion.Pace(0.1, 250)
    pace.wrote(250, 0.01)

    pace.wrote(3, 0.09)

    assert pace.size == 500


def test_a_transaction_writes_more_while_there_is_time_and_less_when_there_was_not():
    pace = deletion.Pace(0.1, 250)
    sizes = [pace.size]

    for seconds in (0.01, 0.02, 0.2, 0.1, 100, 100):
        pace.wrote(pace.size, seconds)
        sizes.append(pace.size)

    # Never more than twice as many, nor less than half; and not fewer than the first.
    assert sizes == [250, 500, 1000, 500, 500, 250, 250]


@pytest.mark.django_db
def test_a_run_stays_whose_dependent_goes_with_it_but_for_one_that_waits_for_that():
    outside, *chain = [make_run(state=State.WAITING) for _ in range(4)]
    for dependent, dependency in pairwise([outside, *chain]):
        dependent.depends_on.add(dependency)
    free, freed = make_run(state=State.WAITING), make_run()
    free.depends_on.add(freed)
    pks = [run.pk for run in [*chain, free, freed]]

    assert _without_awaited(pks, using="default") == [free.pk, freed.pk]


def in_threads(*functions):
    """Run the functions at the same time, each on a database connection of its own."""

    def closing(function):
        try:
            function()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(len(functions)) as pool:
        for future in [pool.submit(closing, function) for function in functions]:
            future.result(timeout=60)


@pytest.mark.django_db(transaction=True)
def test_two_prunes_at_once_do_no_harm():
    runs = make_runs(600, finished_at=OLD)
    young = make_runs(5)
    TaskRunOutput.objects.bulk_create(
        TaskRunOutput(run=run, seq=1, stream="stdout", text="x") for run in [*runs, *young]
    )
    for earlier, later in zip(runs, runs[7:], strict=False):
        later.retry_of = earlier
    TaskRunRecord.objects.bulk_update(runs, ["retry_of"])
    start, numbers = Barrier(2), []

    def work():
        start.wait()
        numbers.append(pruned(batch_size=10))

    in_threads(work, work)

    assert left() == {run.pk for run in young}
    assert sum(numbers) == 600
    assert TaskRunOutput.objects.count() == 5


@pytest.mark.django_db(transaction=True)
def test_runs_can_be_written_while_others_are_pruned():
    make_runs(400, finished_at=OLD)
    start = Barrier(2)

    def write():
        start.wait()
        for _ in range(40):
            run = make_run(state=State.PENDING)
            moved = TaskRunRecord.objects.filter(pk=run.pk).transition(
                sources=[State.PENDING], target=State.STARTED
            )
            assert moved == 1

    def work():
        start.wait()
        assert pruned(batch_size=10) == 400

    in_threads(write, work)

    assert TaskRunRecord.objects.filter(state=State.STARTED).count() == 40


@pytest.mark.django_db(transaction=True)
def test_a_run_that_another_transaction_holds_stays_for_the_next_time():
    if not connection.features.has_select_for_update_skip_locked:
        pytest.skip("this database locks no rows")
    held, free = old_run(), old_run()
    numbers = []

    with transaction.atomic():
        TaskRunRecord.objects.select_for_update().get(pk=held.pk)
        in_threads(lambda: numbers.append(pruned()))

    assert numbers == [1]
    assert left() == {held.pk}
    assert free.pk not in left()


@pytest.mark.django_db
def test_memory_does_not_grow_with_the_number_of_runs():
    make_runs(2000, finished_at=OLD)
    pruned(batch_size=100)
    make_runs(5000, finished_at=OLD)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    pruned(batch_size=100)

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 * 1024


@pytest.mark.django_db(transaction=True)
def test_what_gets_news_while_it_is_pruned_stays_whole():
    runs = make_runs(400, finished_at=OLD, seen_at=OLD, state=State.LOST)
    TaskRunOutput.objects.bulk_create(
        TaskRunOutput(run=run, seq=1, stream="stdout", text="x") for run in runs
    )
    start, moved, numbers = Barrier(3), [], []

    def report():
        start.wait()
        for run in runs[::10]:
            rows = TaskRunRecord.objects.filter(pk=run.pk)
            if rows.transition(sources=[State.LOST], target=State.STARTED):
                moved.append(run.pk)

    def work():
        start.wait()
        numbers.append(pruned(batch_size=10, only_seen=True))

    in_threads(report, work, work)

    assert left() - set(moved) <= {run.pk for run in runs[::10]}
    assert set(moved) <= left()
    assert sum(numbers) == 400 - len(left())
    assert set(TaskRunOutput.objects.values_list("run_id", flat=True)) == left()
