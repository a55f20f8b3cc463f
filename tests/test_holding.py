"""Delayed calls of DjangoTasks: what is kept in the database, and what goes to the broker."""

from __future__ import annotations

import asyncio
import json
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from datetime import timezone as fixed_zone
from decimal import Decimal
from uuid import uuid4

import pytest
from celery import chain, chord, group
from celery.canvas import Signature
from django.conf import settings
from django.db import DatabaseError, OperationalError, connection, transaction
from django.utils import timezone
from kombu import Exchange, Queue

from celery_admin_runner import base, holding
from celery_admin_runner.base import DjangoTask, intercept
from celery_admin_runner.conf import Settings
from celery_admin_runner.dispatcher import Dispatcher
from celery_admin_runner.headers import RUN_HEADER
from celery_admin_runner.holding import hold
from celery_admin_runner.models import Source, TaskRunRecord
from celery_admin_runner.redaction import MASK
from celery_admin_runner.states import State
from tests.brokers import broker_away
from tests.celery_app import app
from tests.factories import run_fields
from tests.held_tasks import add, know_secret, opinionated, total
from tests.tasks import add as unguarded_add

#: Far enough for no test to see it come.
HOUR = 3600
#: What differs between any two messages, or is ours.
_OF_EACH_MESSAGE = {"id", "eta", "origin", "root_id", "expires", "celery_admin_runner_run"}
_OF_EACH_MESSAGE |= {"celery_admin_runner_row"}


@pytest.fixture
def queue() -> str:
    """A queue of the test's own that nobody consumes."""
    return f"held-{uuid4()}"


def sent_to(queue):
    """Take a message out of a queue; None if there is none."""
    with app.connection_for_read() as broker:
        bound = Queue(queue, Exchange(queue), queue)(broker.default_channel)
        bound.declare()
        return bound.get(no_ack=True, accept=["json", "yaml", "pickle"])


def only_run():
    return TaskRunRecord.objects.get()


def dispatch_all():
    """Send what is kept, as if its time had come."""
    return Dispatcher(app).dispatch(timezone.now() + timedelta(seconds=HOUR + 60)).sent


def was_kept(result):
    """Tell whether a call is kept; else nothing of it may be in the database."""
    runs = TaskRunRecord.objects.filter(task_id=result.id, state=State.SCHEDULED)
    return runs.exists()


def essence(message):
    """Return what two messages of like calls have in common."""
    headers = {
        name: value for name, value in message.headers.items() if name not in _OF_EACH_MESSAGE
    }
    info = message.properties.get("delivery_info", {})
    keep = {name: message.properties.get(name) for name in ("reply_to", "delivery_mode")}
    return {
        "headers": headers,
        "body": json.loads(json.dumps(message.decode(), default=str)),
        "type": message.content_type,
        "priority": message.properties.get("priority", info.get("priority")),
        "expires": message.headers["expires"] is not None,
        **keep,
    }


# What is kept


@pytest.mark.django_db
def test_a_delayed_call_is_kept_until_it_is_due(queue):
    before = timezone.now()

    result = add.apply_async([1], {"b": 3}, countdown=HOUR, queue=queue)

    run = only_run()
    assert (run.state, run.task_id, run.task_name) == (
        State.SCHEDULED,
        result.id,
        "tests.held_tasks.add",
    )
    assert (run.args, run.kwargs, run.queue) == ([1], {"b": 3}, queue)
    assert (run.source, run.run_by, run.dispatch_id) == (Source.CODE, None, None)
    assert run.due_at == run.eta
    assert before <= run.eta - timedelta(seconds=HOUR) <= timezone.now()
    assert sent_to(queue) is None


@pytest.mark.django_db
def test_a_kept_call_is_sent_under_the_id_that_its_caller_has(queue):
    result = add.apply_async([1], countdown=HOUR, queue=queue, task_id="my-own")

    assert dispatch_all() == 1

    message = sent_to(queue)
    assert (result.id, message.headers["id"]) == ("my-own", "my-own")
    assert message.headers["eta"] is None
    assert sent_to(queue) is None
    assert only_run().state == State.PENDING


@pytest.mark.django_db
def test_a_call_is_not_kept_unless_the_setting_says_so(configure, queue):
    configure(SCHEDULE_ETA=Settings.SCHEDULE_ETA)

    result = add.apply_async([1], countdown=HOUR, queue=queue)

    assert not TaskRunRecord.objects.exists()
    assert sent_to(queue).headers["id"] == result.id


@pytest.mark.django_db
def test_tasks_of_another_base_go_to_the_broker(queue):
    unguarded_add.apply_async([1], countdown=HOUR, queue=queue)

    assert not TaskRunRecord.objects.exists()
    assert sent_to(queue).headers["eta"] is not None


@pytest.mark.django_db
def test_a_run_that_is_being_sent_is_not_kept_once_more(queue):
    task_id = str(uuid4())

    result = add.apply_async(
        [1], task_id=task_id, countdown=HOUR, queue=queue, headers={RUN_HEADER: task_id}
    )

    assert not was_kept(result)
    assert sent_to(queue).headers["id"] == task_id


@pytest.mark.django_db
def test_before_django_is_ready_every_call_goes_to_the_broker(monkeypatch, queue):
    monkeypatch.setattr(base, "_interceptors", [])

    add.apply_async([1], countdown=HOUR, queue=queue)

    assert not TaskRunRecord.objects.exists()
    assert sent_to(queue) is not None


def test_an_interceptor_that_is_connected_twice_is_asked_once(monkeypatch):
    monkeypatch.setattr(base, "_interceptors", [])

    intercept(hold)
    intercept(hold)

    assert base._interceptors == [hold]


# When


IN_AN_HOUR = datetime.now(UTC).replace(microsecond=5) + timedelta(hours=1)


@pytest.mark.django_db
@pytest.mark.parametrize(
    "eta",
    [
        IN_AN_HOUR,
        IN_AN_HOUR.astimezone(fixed_zone(timedelta(hours=-7))),
        IN_AN_HOUR.isoformat(),
        # Celery takes a moment without its zone for UTC.
        IN_AN_HOUR.replace(tzinfo=None),
    ],
    ids=["in UTC", "in another zone", "as text", "naive"],
)
def test_an_eta_is_the_moment_that_celery_takes_it_for(eta):
    add.apply_async([1], eta=eta)

    assert only_run().eta == IN_AN_HOUR


@pytest.mark.django_db
def test_a_countdown_comes_before_an_eta_unless_it_is_zero():
    now = timezone.now()

    first = add.apply_async([1], eta=IN_AN_HOUR, countdown=2 * HOUR)
    second = add.apply_async([1], eta=IN_AN_HOUR, countdown=0)

    runs = TaskRunRecord.objects.in_bulk(field_name="task_id")
    assert runs[first.id].eta >= now + timedelta(hours=2)
    assert runs[second.id].eta == IN_AN_HOUR


@pytest.mark.django_db
@pytest.mark.parametrize(
    "when",
    [
        {},
        {"countdown": 0},
        {"countdown": -5},
        {"eta": datetime(2020, 1, 1, tzinfo=UTC)},
        {"eta": "2020-01-01T00:00:00"},
        # Only a worker says that this is no moment.
        {"eta": "soon"},
    ],
)
def test_what_may_start_now_goes_to_the_broker_at_once(queue, when):
    result = add.apply_async([1], queue=queue, **when)

    assert not TaskRunRecord.objects.exists()
    assert sent_to(queue).headers["id"] == result.id


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("when", "error"),
    [
        ({"countdown": float("inf")}, OverflowError),
        ({"countdown": 1e30}, OverflowError),
        ({"countdown": "ten"}, TypeError),
    ],
)
def test_what_is_no_time_raises_what_celery_raises(when, error):
    with pytest.raises(error):
        add.apply_async([1], **when)

    assert not TaskRunRecord.objects.exists()


# What goes with it


def signature(**options):
    """Return a signature whose id is the same each time."""
    return add.s(5).set(task_id="linked", reply_to="me", **options)


@pytest.mark.django_db
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"priority": 7},
        {"expires": 2 * HOUR},
        {"expires": IN_AN_HOUR + timedelta(hours=1)},
        {"time_limit": 9, "soft_time_limit": 8},
        {"headers": {"x": {"y": [1, None]}}},
        {"shadow": "another name"},
        {"ignore_result": True},
        {"ignore_result": False},
        {"serializer": "pickle"},
        {"compression": "zlib"},
        {"delivery_mode": 1},
        {"reply_to": "somebody"},
        {"argsrepr": "(hidden)", "kwargsrepr": "{hidden}"},
        {"link": add.s(5).set(task_id="linked", reply_to="me")},
        {"link": [add.s(5), add.si(6).set(countdown=HOUR)]},
        {"link_error": signature(queue="other")},
        {"link": (add.s(5) | group(add.s(6), add.s(7)))},
        {"chain": [signature(), signature(priority=2)]},
        {"group_id": "some-group", "group_index": 3},
        {"parent_id": "the-parent", "root_id": "the-root"},
        {"replaced_task_nesting": 2},
        {"stamped_headers": ["batch"], "batch": "blue"},
        {"retry": False, "retry_policy": {"max_retries": 9}},
        {"correlation": "an own property"},
    ],
    ids=lambda options: "-".join(options) or "none",
)
@pytest.mark.parametrize("task", [add, opinionated], ids=lambda task: task.__name__)
def test_the_message_is_the_one_that_celery_would_send(configure, queue, task, options):
    args = () if task is opinionated else (1,)
    delayed = {**options, "queue": queue, "countdown": HOUR}
    configure(SCHEDULE_ETA=False)
    plain = task.apply_async(args, **delayed)
    sent_by_celery = sent_to(queue)
    configure(SCHEDULE_ETA=True)

    kept = task.apply_async(args, **delayed)
    assert was_kept(kept)
    assert dispatch_all() == 1

    assert kept.ignored == plain.ignored
    assert essence(sent_to(queue)) == essence(sent_by_celery)


@pytest.mark.django_db
def test_explicit_nothing_takes_away_what_the_task_has_by_itself(queue):
    opinionated.apply_async(countdown=HOUR, expires=None, queue=queue)

    assert only_run().expires_at is None
    dispatch_all()
    assert sent_to(queue).headers["expires"] is None


@pytest.mark.django_db
def test_expires_counts_from_the_call():
    now = timezone.now()

    add.apply_async([1], countdown=HOUR, expires=2 * HOUR)
    opinionated.apply_async(countdown=HOUR)

    expires = {run.task_name: run.expires_at for run in TaskRunRecord.objects.all()}
    assert timedelta() <= expires[add.name] - now - timedelta(hours=2) < timedelta(minutes=1)
    assert (
        timedelta() <= expires[opinionated.name] - now - timedelta(hours=3) < timedelta(minutes=1)
    )


@pytest.mark.django_db
def test_an_exchange_and_a_routing_key_survive(queue):
    with app.connection_for_write() as broker:
        Queue(queue, Exchange(queue), "some.key")(broker.default_channel).declare()

    add.apply_async([1], countdown=HOUR, exchange=queue, routing_key="some.key")

    assert only_run().options == {"exchange": queue, "routing_key": "some.key"}
    assert dispatch_all() == 1
    assert sent_to(queue) is not None


@pytest.mark.django_db
def test_a_queue_of_the_settings_is_kept_by_its_name(queue):
    known = app.amqp.queues[queue]

    add.apply_async([1], countdown=HOUR, queue=known)

    assert only_run().queue == queue
    dispatch_all()
    assert sent_to(queue) is not None


@pytest.mark.django_db
def test_values_of_other_types_arrive_as_without_us(queue):
    value = {"at": IN_AN_HOUR, "price": Decimal("1.10"), "id": uuid4(), "raw": b"\xff"}

    total.apply_async([[value]], countdown=HOUR, queue=queue)

    assert only_run().state == State.SCHEDULED
    dispatch_all()
    [[[arrived]], _kwargs, _embedded] = sent_to(queue).decode()
    assert arrived == value


@pytest.mark.django_db
def test_wrong_arguments_are_refused_at_once():
    with pytest.raises(TypeError):
        add.apply_async([1, 2, 3], countdown=HOUR)

    assert not TaskRunRecord.objects.exists()


# What can't be kept


class Number(int):
    """A number of the project's own, which JSON takes for a plain one."""


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("task", "args", "options"),
    [
        (know_secret, [1, 42], {}),
        (know_secret, [1, None], {}),
        (add, [1, MASK], {}),
        (add, [Number(5)], {"serializer": "pickle"}),
        (add, [(1, 2)], {"serializer": "pickle"}),
        (add, ["\x00"], {}),
        (add, [float("nan")], {}),
        (add, ["x" * 1024 * 1024], {}),
        (add, [1], {"headers": {"api_token": "Sesame"}}),
        (add, [1], {"link": know_secret.s(42)}),
        (add, [1], {"link": know_secret.si(1, 42)}),
        (add, [1], {"link": know_secret.s(secret_number=42)}),
        (add, [1], {"chain": [add.s(1), group(add.s(1), know_secret.s(42))]}),
        (add, [1], {"link": add.s(1).set(headers={"password": "Sesame"})}),
        (add, [1], {"link": add.s("x" * 1024 * 1024)}),
        (add, [1], {"chain": [know_secret.starmap([(1, 42)])]}),
        (add, [1], {"chain": [know_secret.chunks([(1, 42)], 1)]}),
        (add, [know_secret.si(1, 42)], {}),
        (add, [1], {"parent_id": "x" * 256}),
        (add, [1], {"root_id": "x" * 256}),
    ],
)
def test_what_can_not_be_kept_as_it_is_goes_to_the_broker(queue, task, args, options):
    result = task.apply_async(args, countdown=HOUR, queue=queue, **options)

    assert not TaskRunRecord.objects.exists()
    message = sent_to(queue)
    assert message.headers["id"] == result.id
    assert message.headers["eta"] is not None


@pytest.mark.django_db
@pytest.mark.parametrize(
    "when",
    [
        {"eta": datetime(9999, 12, 31, 23, 30, tzinfo=fixed_zone(timedelta(hours=-5)))},
        {"eta": datetime(9999, 12, 31, 23, 30)},
    ],
)
def test_a_moment_that_not_every_database_can_give_back_is_not_kept(queue, when):
    add.apply_async([1], queue=queue, **when)

    assert not TaskRunRecord.objects.exists()
    assert sent_to(queue) is not None


@pytest.mark.django_db
@pytest.mark.parametrize(
    "value",
    [
        {"task": 1, "args": [], "kwargs": {}},
        {"task": [], "args": [], "kwargs": {}},
        {"task": "x", "args": 5, "kwargs": {}},
        {"task": "x", "args": [], "kwargs": None},
    ],
)
def test_an_argument_that_only_looks_like_a_signature_is_kept(value):
    assert was_kept(add.apply_async([value], countdown=HOUR))


@pytest.mark.django_db
def test_no_secret_is_stored_of_a_call_that_is_not_kept(queue, caplog):
    with caplog.at_level("INFO", "celery_admin_runner"):
        know_secret.apply_async([1, 424242], {"hint": "Sesame"}, countdown=HOUR, queue=queue)

    assert not TaskRunRecord.objects.exists()
    assert "The broker keeps a delayed call of tests.held_tasks.know_secret" in caplog.text
    assert "424242" not in caplog.text
    assert "Sesame" not in caplog.text


@pytest.mark.django_db
def test_a_queue_that_only_the_caller_knows_goes_to_the_broker():
    name = f"held-{uuid4()}"

    add.apply_async([1], countdown=HOUR, queue=Queue(name, Exchange(name), name))

    assert not TaskRunRecord.objects.exists()
    assert sent_to(name) is not None


@pytest.mark.django_db
def test_a_connection_of_the_callers_own_is_used(queue):
    with app.connection_for_write() as own:
        add.apply_async([1], countdown=HOUR, queue=queue, connection=own)

    assert not TaskRunRecord.objects.exists()
    assert sent_to(queue) is not None


@pytest.mark.django_db
def test_a_producer_for_another_broker_is_used():
    with app.connection_for_write("memory://") as other, other.Producer() as producer:
        add.apply_async([1], countdown=HOUR, producer=producer)

    assert not TaskRunRecord.objects.exists()


@pytest.mark.django_db
def test_a_producer_for_the_same_broker_keeps_nothing_from_being_kept():
    with app.producer_or_acquire() as producer:
        result = add.apply_async([1], countdown=HOUR, producer=producer)

    assert was_kept(result)


@pytest.mark.django_db
def test_a_call_is_kept_while_the_broker_is_away():
    with broker_away():
        result = add.apply_async([1], countdown=HOUR)

    assert was_kept(result)


@pytest.mark.django_db
def test_what_runs_right_here_is_not_kept(monkeypatch):
    monkeypatch.setitem(app.conf, "task_always_eager", True)

    result = add.apply_async([1], countdown=HOUR)

    assert result.get() == 3
    assert add.apply([1], countdown=HOUR).get() == 3
    assert not TaskRunRecord.objects.exists()


@pytest.mark.django_db
def test_celerys_own_tasks_are_not_kept_where_all_tasks_are_guarded(monkeypatch, queue):
    unlock = type("unlock", (DjangoTask,), {"name": "celery.chord_unlock", "run": print})()
    monkeypatch.setitem(app.tasks, unlock.name, unlock)
    unlock.bind(app)

    unlock.apply_async([1], countdown=1, queue=queue)

    assert not TaskRunRecord.objects.exists()
    assert sent_to(queue) is not None


# Signatures, chains, groups, chords


@pytest.mark.django_db
def test_a_signature_is_kept_with_its_own_options(queue):
    Signature.from_dict(dict(add.s(1).set(countdown=HOUR, queue=queue, priority=4))).delay(b=7)

    run = only_run()
    assert (run.args, run.kwargs) == ([1], {"b": 7})
    assert run.options == {"queue": queue, "priority": 4}


@pytest.mark.django_db
def test_a_chain_whose_first_task_is_delayed_is_kept_as_a_whole(queue):
    steps = chain(add.s(1).set(queue=queue), add.s(2), add.s(3))

    result = steps.apply_async(countdown=HOUR)

    run = only_run()
    assert run.task_id == result.parent.parent.id
    assert [step["options"]["task_id"] for step in run.canvas["chain"]] == [
        result.id,
        result.parent.id,
    ]
    dispatch_all()
    _args, _kwargs, embedded = sent_to(queue).decode()
    assert len(embedded["chain"]) == 2


@pytest.mark.django_db
def test_the_members_of_a_group_are_kept_one_by_one(queue):
    result = group(add.s(1), add.s(2), unguarded_add.s(3).set(queue=queue)).apply_async(
        countdown=HOUR
    )

    runs = {run.task_id: run.canvas for run in TaskRunRecord.objects.all()}
    assert list(runs) == [member.id for member in result.results[:2]][::-1]
    assert {canvas["group_id"] for canvas in runs.values()} == {result.id}
    # A task of another base goes with the others as ever.
    assert sent_to(queue).headers["id"] == result.results[2].id


@pytest.mark.django_db
@pytest.mark.parametrize("member", [add.s(2), add.s(2) | add.s(3)], ids=["task", "chain"])
def test_the_members_of_a_chord_go_to_the_broker(monkeypatch, queue, member):
    monkeypatch.setattr(app.backend, "apply_chord", lambda *args, **kwargs: None)
    monkeypatch.setattr(app.backend, "set_chord_size", lambda *args: None, raising=False)
    monkeypatch.setitem(app.conf, "task_default_queue", queue)
    app.amqp.flush_routes()

    chord([add.s(1).set(queue=queue), member.set(queue=queue)], total.s()).apply_async(
        countdown=HOUR
    )

    assert not TaskRunRecord.objects.exists()


@pytest.mark.django_db
def test_a_chain_with_a_chord_in_it_is_kept(monkeypatch):
    monkeypatch.setattr(app.backend, "ensure_chords_allowed", lambda: None)
    steps = add.s(1) | group(add.s(1), add.s(2)) | total.s()

    steps.apply_async(countdown=HOUR)

    assert only_run().args == [1]


# The row


@pytest.mark.django_db
def test_a_task_that_is_tracked_too_has_one_row(configure, queue):
    configure(TRACK=["tests.*"])

    result = add.apply_async([1], countdown=HOUR, queue=queue)
    dispatch_all()

    run = only_run()
    assert (run.task_id, run.state) == (result.id, State.PENDING)


@pytest.mark.django_db
def test_a_tracked_call_that_can_not_be_kept_has_its_row_as_ever(configure, queue):
    configure(TRACK=["tests.*"])

    know_secret.apply_async([1, 42], countdown=HOUR, queue=queue)

    run = only_run()
    assert (run.state, run.args) == (State.PENDING, [1, MASK])
    assert run.eta is not None


@pytest.mark.django_db
def test_a_call_of_beat_is_known_by_its_header(queue):
    headers = {"periodic_task_name": "each night", "x": 1}

    add.apply_async([1], countdown=HOUR, queue=queue, headers=headers)

    run = only_run()
    assert (run.source, run.periodic_task_name) == (Source.PERIODIC, "each night")
    dispatch_all()
    sent = sent_to(queue).headers
    assert (sent["periodic_task_name"], sent["x"]) == ("each night", 1)


@pytest.mark.django_db
def test_headers_that_mark_another_run_mark_nothing_here(queue):
    headers = {"celery_admin_runner_run": "other", "celery_admin_runner_args": "hidden"}

    result = add.apply_async([1], countdown=HOUR, queue=queue, headers=headers)
    dispatch_all()

    sent = sent_to(queue).headers
    assert sent["celery_admin_runner_run"] == result.id
    assert "celery_admin_runner_args" not in sent


@pytest.mark.django_db
def test_a_member_of_a_chain_that_is_called_twice_is_kept_once(queue):
    call = {"countdown": HOUR, "task_id": "member", "parent_id": "before", "queue": queue}

    first, second = add.apply_async([1], **call), add.apply_async([1], **call)

    assert first.id == second.id == only_run().task_id
    assert sent_to(queue) is None


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("args", "options"), [([2], {"parent_id": "before"}), ([1], {"parent_id": "x"}), ([1], {})]
)
def test_another_call_with_an_id_that_is_taken_is_not_lost(queue, args, options):
    call = {"countdown": HOUR, "task_id": "mine", "queue": queue}
    add.apply_async([1], **call, **({"parent_id": "before"} if options else {}))

    add.apply_async(args, **call, **options)

    assert only_run().args == [1]
    assert sent_to(queue).headers["id"] == "mine"


@pytest.mark.parametrize("is_in_transaction", [True, False])
def test_a_user_who_is_gone_is_left_out(transactional_db, is_in_transaction):
    run = TaskRunRecord(**run_fields(state=State.SCHEDULED, run_by_id=987654, run_by_name="gone"))

    with transaction.atomic() if is_in_transaction else nullcontext():
        assert holding._insert(run, holding._save)

    run = only_run()
    assert (run.run_by, run.run_by_name) == (None, "gone")


# Transactions, and a database that is away


def test_a_rollback_leaves_neither_row_nor_message(transactional_db, queue):
    with transaction.atomic():
        add.apply_async([1], countdown=HOUR, queue=queue)
        assert TaskRunRecord.objects.count() == 1
        transaction.set_rollback(True)

    assert not TaskRunRecord.objects.exists()
    assert sent_to(queue) is None


def test_a_call_in_a_transaction_is_kept_with_it(transactional_db):
    with transaction.atomic():
        result = add.apply_async([1], countdown=HOUR)

    assert was_kept(result)


def test_a_call_on_commit_is_kept_with_the_transaction(transactional_db):
    with transaction.atomic():
        add.apply_async_on_commit([1], countdown=HOUR)
        add.delay_on_commit(1)
        assert only_run().state == State.SCHEDULED

    assert only_run().state == State.SCHEDULED


def test_an_id_that_is_taken_does_not_break_the_callers_transaction(transactional_db, queue):
    call = {"countdown": HOUR, "task_id": "mine", "queue": queue}
    with transaction.atomic():
        add.apply_async([1], **call)
        add.apply_async([2], **call)
        assert TaskRunRecord.objects.count() == 1

    assert only_run().args == [1]
    assert sent_to(queue) is not None


@pytest.fixture
def no_table(transactional_db):
    """Let the database know no runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskRunRecord._meta, "db_table", "not_there")
        yield


def test_what_the_database_does_not_take_goes_to_the_broker(no_table, queue, caplog):
    result = add.apply_async([1], countdown=HOUR, queue=queue)

    message = sent_to(queue)
    assert message.headers["id"] == result.id
    assert message.headers["eta"] is not None
    assert f"the delay, which the broker keeps instead, of run {result.id}" in caplog.text


def test_what_the_database_may_have_does_not_go_to_the_broker_too(
    transactional_db, queue, monkeypatch
):
    lost = []

    def lose(execute, sql, params, many, context):
        if lost:
            raise OperationalError("lost")
        done = execute(sql, params, many, context)
        if sql.startswith("INSERT"):
            lost.append(done)
            raise OperationalError("lost")
        return done

    monkeypatch.setattr(connection, "is_usable", lambda: False)
    with connection.execute_wrapper(lose), pytest.raises(OperationalError, match="lost"):
        add.apply_async([1], countdown=HOUR, queue=queue)

    assert only_run().state == State.SCHEDULED
    assert sent_to(queue) is None


def test_in_a_transaction_the_error_of_the_database_is_the_callers(no_table, queue):
    with pytest.raises(DatabaseError), transaction.atomic():
        add.apply_async([1], countdown=HOUR, queue=queue)

    assert sent_to(queue) is None


def test_a_coroutine_has_its_call_sent_by_the_broker(transactional_db, queue):
    async def call():
        return add.apply_async([1], countdown=HOUR, queue=queue)

    result = asyncio.run(call())

    assert not TaskRunRecord.objects.exists()
    assert sent_to(queue).headers["id"] == result.id


@pytest.mark.django_db
def test_a_call_is_kept_by_one_statement(django_assert_num_queries):
    # In a transaction, as here, it stands between a savepoint and its release.
    with django_assert_num_queries(3 if connection.in_atomic_block else 1):
        add.apply_async([1], countdown=HOUR)


@pytest.mark.django_db
def test_a_site_without_time_zones_keeps_its_own_time(settings_without_time_zones, queue):
    before = datetime.now()

    add.apply_async([1], countdown=HOUR, queue=queue)

    assert before <= only_run().eta - timedelta(seconds=HOUR) <= datetime.now()


@pytest.fixture
def settings_without_time_zones(settings):
    """A site with USE_TZ = False, in the zone of this machine."""
    settings.USE_TZ = False
    return settings


def test_the_tests_keep_delayed_calls():
    assert settings.CELERY_ADMIN_RUNNER["SCHEDULE_ETA"] is True
