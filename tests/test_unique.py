"""Unique tasks: which calls are the same, who of them runs, and what ends that."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import date, timedelta
from decimal import Decimal
from enum import Enum
from uuid import UUID, uuid4

import pytest
from celery import shared_task
from django.contrib.auth.models import Group, User
from django.core.exceptions import ImproperlyConfigured
from django.db import IntegrityError, connection
from django.utils import timezone

from celery_admin_runner import tracking, unique
from celery_admin_runner.base import DjangoTask, OwnOptions
from celery_admin_runner.exceptions import (
    InvalidArguments,
    NotEncodable,
)
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import State
from tests.celery_app import app
from tests.hook_tasks import Queue
from tests.publishes import messages_sent
from tests.unique_tasks import (
    Place,
    once,
    once_a_user,
    once_of_two,
    once_with_secret,
    plain,
)

HOUR = 3600


def key(task, *args, **kwargs):
    return unique.key_of(task, args, kwargs)


def run_of(result):
    return TaskRunRecord.objects.get(task_id=result.id)


def active_key_of(run):
    run.refresh_from_db()
    return run.active_key


class Size(Enum):
    SMALL = "small"


# Which calls are the same


def test_however_an_argument_is_given_it_is_the_same_call():
    ways = {
        key(once_of_two, 1),
        key(once_of_two, a=1),
        key(once_of_two, 1, 2),
        key(once_of_two, 1, b=2),
        key(once_of_two, b=2, a=1),
    }

    assert len(ways) == 1


def test_what_goes_to_other_parameters_is_another_call():
    ways = [
        key(once, 1),
        key(once, 2),
        key(once, 1, 3),
        key(once, 1, 2, 3),
        key(once, 1, c=3),
        key(once, 1, d=3),
        key(once_of_two, 1),
    ]

    assert len(set(ways)) == len(ways)


def test_values_of_other_types_are_other_values():
    values = [1, True, 1.0, "1", None, "None", [1], {"1": 1}, Decimal(1), b"1"]

    assert len({key(once, value) for value in values}) == len(values)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (UUID(int=7), UUID(int=7)),
        (date(2026, 1, 2), date(2026, 1, 2)),
        (Place(row=3), {"row": 3, "seat": 1}),
        ({1, 2, 30}, {30, 2, 1}),
        ((1, 2), [1, 2]),
        (Size.SMALL, "small"),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    ],
    ids=["uuid", "date", "model", "set", "tuple", "enum", "order"],
)
def test_values_that_are_equal_when_they_travel_are_the_same(one, other):
    assert key(once, one) == key(once, other)


def test_an_object_is_the_same_by_its_primary_key():
    user = User(pk=7, username="a")

    assert key(once, user) == key(once, User(pk=7, username="b"))
    assert key(once, [user]) == key(once, [User(pk=7)])
    assert len({key(once, user), key(once, User(pk=8)), key(once, Group(pk=7))}) == 3


@pytest.mark.django_db
@pytest.mark.parametrize("value", [object(), iter([1]), lambda: 1], ids=["object", "iter", "code"])
def test_what_makes_no_key_is_refused_in_words(value):
    with pytest.raises(NotEncodable, match=r"“a” of tests.* unique_on.* unique_key_generator"):
        once.delay(value)

    assert not TaskRunRecord.objects.exists()


def test_a_default_that_could_not_travel_counts_as_not_given():
    nothing = object()

    @shared_task(base=DjangoTask, name="tests.unique.default")
    def task(a, b=nothing):
        """Have a default of its own."""

    assert key(task, 1) == key(task, 1, nothing) != key(task, 1, 2)


@pytest.mark.django_db
def test_wrong_arguments_raise_what_celery_raises():
    with pytest.raises(TypeError, match="once_of_two"):
        once_of_two.delay(1, 2, 3)

    assert not TaskRunRecord.objects.exists()


def test_arguments_that_nobody_checks_make_a_key_as_they_are():
    @shared_task(base=DjangoTask, typing=False, name="tests.unique.untyped")
    def task(a):
        """Be called with anything."""

    assert key(task, 1, 2) == key(task, 1, 2) != key(task, 1)


def test_only_what_unique_on_names_counts():
    assert key(once_a_user, 1, "x") == key(once_a_user, text=object(), user_pk=1)
    assert key(once_a_user, 1) != key(once_a_user, 2)


def test_unique_on_names_parameters():
    @shared_task(base=DjangoTask, unique_on="b", name="tests.unique.on_one")
    def on_one(a, b):
        """Be the same by one."""

    @shared_task(base=DjangoTask, unique_on=["c"], name="tests.unique.on_none")
    def on_none(a, b):
        """Name nothing."""

    @shared_task(base=DjangoTask, unique_on=["c"], name="tests.unique.on_more")
    def on_more(a, **more):
        """Name what may be given."""

    assert key(on_one, 1, 2) == key(on_one, 3, 2)
    assert key(on_more, 1, c=2) == key(on_more, 3, c=2) != key(on_more, 3)
    with pytest.raises(ImproperlyConfigured, match=r"on_none names .* c\."):
        key(on_none, 1, 2)


SEEN = []


def generated(task, prefix, task_args, task_kwargs):
    """Make a key as a project's function does."""
    SEEN.append(f"{task.name} {prefix} {task_args} {task_kwargs}")
    return SEEN[-1]


class Generator:
    def __call__(self, task, prefix, task_args, task_kwargs):
        return generated(task, prefix, task_args, task_kwargs)

    def key(self, task, prefix, task_args, task_kwargs):
        return generated(task, prefix, task_args, task_kwargs)


class WithMethod(DjangoTask):
    def unique_key_generator(self, prefix, task_args, task_kwargs):
        return generated(self, prefix, task_args, task_kwargs)


@pytest.mark.parametrize(
    "given",
    [
        {"unique_key_generator": generated},
        {"unique_key_generator": lambda *given: generated(*given)},
        {"unique_key_generator": Generator()},
        {"unique_key_generator": staticmethod(generated)},
        {"unique_key_generator": Generator().key},
        {"base": WithMethod},
    ],
    ids=["function", "lambda", "object", "static", "method of another", "own method"],
)
def test_a_generator_makes_the_key_however_it_is_given(given):
    options = {"base": DjangoTask, **given, "name": f"tests.unique.{uuid4()}"}

    @shared_task(**options)
    def task(a, b=2):
        """Have a key of its own."""

    task_key = key(task, 1, b=3)

    assert SEEN.pop() == f"{task.name} {task.name} (1,) {{'b': 3}}"
    assert not SEEN
    assert task_key.startswith(f"{task.name}:")
    assert "(1,)" not in task_key


def test_any_text_makes_a_key_and_nothing_else():
    @shared_task(base=DjangoTask, unique_key_generator=lambda t, p, a, k: a[0], name="tests.u.any")
    def task(a):
        """Have any key."""

    keys = {key(task, text) for text in ("", "x" * 10_000, "\x00", "ä", "Ä")}

    assert len(keys) == 5
    assert max(map(len, keys)) <= 255
    with pytest.raises(TypeError, match=r"returned int: a key is a text"):
        key(task, 1)


@pytest.mark.django_db
def test_a_secret_is_in_the_key_as_a_keyed_hash_only(settings):
    once_with_secret.delay("a", password="Sesame4")

    run = TaskRunRecord.objects.get()
    assert "Sesame4" not in str(vars(run))
    before = key(once_with_secret, "a", "Sesame4")
    settings.SECRET_KEY = "another"
    assert key(once_with_secret, "a", "Sesame4") != before == run.active_key


# After how long a run is stale


def stale_after(own=None, options=None, **task_options):
    @shared_task(base=DjangoTask, name=f"tests.unique.{uuid4()}", **task_options)
    def task():
        """Be stale after a while."""

    return unique.stale_after(task, own or OwnOptions(), options or {}).total_seconds()


def test_the_call_the_task_and_the_setting_say_in_this_order_what_is_stale(configure):
    configure(UNIQUE_STALE_AFTER=timedelta(seconds=3))

    assert stale_after(OwnOptions(stale_time_limit=1), stale_time_limit=2) == 1
    assert stale_after(stale_time_limit=timedelta(seconds=2)) == 2
    assert stale_after(time_limit=1, expires=1) == 3


@pytest.mark.parametrize(
    ("task_options", "options", "seconds"),
    [
        ({"time_limit": 10, "expires": 100, "max_retries": 0}, {}, 110),
        ({"time_limit": 10, "max_retries": 0}, {"expires": 50, "time_limit": 20}, 70),
        ({"time_limit": 10, "expires": 100, "default_retry_delay": 60}, {}, 100 + 40 + 180),
        ({"time_limit": 10, "expires": 100, "default_retry_delays": (1, 2)}, {}, 100 + 30 + 3),
        (
            {"time_limit": 10, "expires": 100, "default_retry_delays": (1, 2), "max_retries": 4},
            {},
            100 + 50 + 7,
        ),
        (
            {"time_limit": 1, "expires": 1, "max_retries": 2, "retry_backoff": True},
            {},
            1 + 3 + 1200,
        ),
        (
            {
                **{"time_limit": 1, "expires": 1, "max_retries": 1, "default_retry_delay": 5},
                **{"retry_backoff": 2, "retry_backoff_max": 30},
            },
            {},
            1 + 2 + 30,
        ),
    ],
)
def test_else_it_follows_from_the_longest_that_a_run_can_last(task_options, options, seconds):
    assert stale_after(options=options, **task_options) == seconds


@pytest.mark.parametrize(
    ("options", "seconds"),
    [({"expires": 1}, 110), ({"time_limit": 1}, 110), ({"expires": 200}, 210)],
)
def test_a_call_that_is_over_sooner_takes_no_key_sooner(options, seconds):
    assert stale_after(options=options, time_limit=10, expires=100, max_retries=0) == seconds


@pytest.mark.django_db
def test_a_call_on_a_faster_queue_takes_no_key_sooner():
    options = {"queue": "hooks-fast", "expires": 1}

    found = stale_after(options=options, time_limit=100, expires=100, max_retries=0)

    assert found == 200


def test_a_moment_to_expire_is_as_far_as_it_is():
    options = {"expires": timezone.now() + timedelta(seconds=100)}

    assert 109 < stale_after(options=options, time_limit=10, max_retries=0) <= 110


def test_the_time_limit_of_the_app_counts_too(monkeypatch):
    monkeypatch.setitem(app.conf, "task_time_limit", 30)

    assert stale_after(expires=1, max_retries=0) == 31


@pytest.mark.django_db
def test_what_the_queue_says_of_the_limits_counts_too():
    assert stale_after(queue=Queue.FAST, max_retries=0) == 600 + 30
    assert stale_after(options={"queue": "hooks-fast"}, max_retries=0, expires=1) == 1 + 30
    with pytest.raises(ImproperlyConfigured, match=r"lacks time_limit\."):
        stale_after(queue=Queue.FAST, soft_time_limit=9)

    @shared_task(base=DjangoTask, unique=True, queue=Queue.FAST, name=f"tests.unique.{uuid4()}")
    def task():
        """Have the limits of its queue."""

    run = TaskRunner().run(task.name)
    assert task.is_processing()
    assert task.delay().id == run.task_id


@pytest.mark.parametrize(
    ("task_options", "missing"),
    [
        ({}, "time_limit, expires"),
        ({"time_limit": 1}, "expires"),
        ({"expires": 1}, "time_limit"),
        ({"time_limit": 1, "expires": 1, "max_retries": None}, "max_retries"),
    ],
)
@pytest.mark.django_db
def test_what_is_missing_is_said_before_anything_is_written(task_options, missing):
    @shared_task(base=DjangoTask, unique=True, name=f"tests.unique.{uuid4()}", **task_options)
    def task():
        """Be unique without a limit."""

    with messages_sent() as sent, pytest.raises(ImproperlyConfigured, match=f"lacks {missing}\\."):
        task.delay()
    with pytest.raises(InvalidArguments, match=f"lacks {missing}\\."):
        TaskRunner().run(task.name)

    assert not sent
    assert not TaskRunRecord.objects.exists()


@pytest.mark.django_db
def test_a_stale_run_loses_its_key_and_nothing_else():
    first = run_of(once.delay(1))
    TaskRunRecord.objects.update(
        created_at=timezone.now() - timedelta(hours=1),
        published_at=timezone.now() - timedelta(seconds=601),
        claimed_at=None,
    )

    second = run_of(once.delay(1))

    assert second.pk != first.pk
    assert active_key_of(first) is None
    assert (first.state, active_key_of(second)) == (State.PENDING, second.unique_key)


@pytest.mark.django_db
def test_a_call_may_take_another_limit_than_its_task():
    first = once.delay(1)
    TaskRunRecord.objects.update(
        **dict.fromkeys(["created_at", "published_at"], timezone.now() - timedelta(seconds=30)),
        claimed_at=None,
    )

    assert once.delay(1).id == first.id
    assert once.apply_async([1], stale_time_limit=20).id != first.id


@pytest.mark.django_db
def test_a_key_that_is_free_again_each_time_is_tried_for_some_times():
    errors = [IntegrityError("taken")] * (unique.TRIES - 1)

    def insert():
        if errors:
            raise errors.pop()
        return "mine"

    week = timedelta(weeks=1)
    given = unique.take("key", insert, limit=week, now=timezone.now(), using="default")

    assert given == "mine"


@pytest.mark.django_db
def test_what_is_kept_until_later_is_not_stale(configure):
    configure(SCHEDULE_ETA=True)
    first = once.apply_async([1], countdown=HOUR)
    long_ago = timezone.now() - timedelta(days=9)
    TaskRunRecord.objects.update(created_at=long_ago, eta=long_ago, due_at=long_ago)

    assert once.delay(1).id == first.id

    # A dispatcher that has died took it.
    TaskRunRecord.objects.update(claimed_at=long_ago)
    assert once.delay(1).id != first.id


# Who runs


@pytest.mark.django_db
def test_the_second_caller_joins_the_run_of_the_first():
    with messages_sent() as sent:
        first, second, other = once.delay(1), once.delay(a=1), once.delay(2)

    assert first.id == second.id != other.id
    assert [message["headers"]["id"] for message in sent] == [first.id, other.id]
    assert TaskRunRecord.objects.count() == 2


@pytest.mark.django_db
def test_a_call_may_ask_to_be_unique_or_not():
    first = once.delay(1)

    assert once.apply_async([1], unique=False).id != first.id
    assert plain.delay(1).id != plain.delay(1).id
    limit = {"unique": True, "stale_time_limit": 60}
    assert plain.apply_async([1], **limit).id == plain.apply_async([1], **limit).id


@pytest.mark.django_db
def test_a_run_is_processing_until_it_ends():
    assert not once.is_processing([1])
    run = run_of(once.delay(1))
    assert once.is_processing([1])
    assert once.is_processing(kwargs={"a": 1})
    assert not once.is_processing([2])

    tracking.record_success(run.task_id, attempt=0, result=None, now=timezone.now())

    assert not once.is_processing([1])
    with pytest.raises(ValueError, match="not unique"):
        plain.is_processing([1])


CALLERS = 200
#: So many of them at once a server is asked to let in, which others use too.
AT_ONCE_ON_A_SERVER = 40
#: Forks callers, of which so many as asked for call at once as soon as all are ready, and the
#: others as soon as one has its answer.
SCRIPT = """
import gc, os, sys, traceback
import django
django.setup()
from django.db import connections
from tests.celery_app import app
from tests.unique_tasks import once
callers, at_once = map(int, sys.argv[1:3])
app.conf.task_default_queue = sys.argv[3]
# What each would do first, done once.
once.delay(40), once.delay(40)
connections.close_all()
ready_read, ready_write = os.pipe()
turn_read, turn_write = os.pipe()
answer_read, answer_write = os.pipe()
children = []
for _ in range(callers):
    pid = os.fork()
    if not pid:
        app._after_fork()
        gc.disable()
        os.write(ready_write, b".")
        os.read(turn_read, 1)
        code = 1
        try:
            os.write(answer_write, once.delay(41).id.encode() + b" ")
            connections.close_all()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os.write(turn_write, b".")
            os._exit(code)
    children.append(pid)
for _ in children:
    os.read(ready_read, 1)
os.write(turn_write, b"." * at_once)
os.close(answer_write)
answers = b""
while piece := os.read(answer_read, 65536):
    answers += piece
codes = [os.waitpid(pid, 0)[1] for pid in children]
print(answers.decode())
sys.exit(any(codes))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no forks")
def test_of_200_processes_that_call_at_once_one_starts_a_run(transactional_db):
    queue = f"unique-{uuid4()}"
    at_once = CALLERS if connection.vendor == "sqlite" else AT_ONCE_ON_A_SERVER

    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(CALLERS), str(at_once), queue],
        env={
            **os.environ,
            "TEST_DATABASE_NAME": str(connection.settings_dict["NAME"]),
            # SQLite lets one write at a time; the others wait, and not in turn.
            "TEST_DATABASE_TIMEOUT": "60",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert process.returncode == 0, process.stderr[-3000:]
    [run] = TaskRunRecord.objects.filter(args=[41])
    assert process.stdout.split() == [run.task_id] * CALLERS
    assert (run.state, run.active_key) == (State.PENDING, run.unique_key)
    with app.connection_for_read() as broker:
        waiting = app.amqp.queues[queue](broker.default_channel)
        waiting.declare()
        sent = [waiting.get(no_ack=True, accept=["json"]) for _ in range(3)]
    assert [message and message.headers["argsrepr"] for message in sent] == [
        "(40,)",
        "(41,)",
        None,
    ]
