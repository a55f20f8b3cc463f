"""Who asks for a run, about what and why: on every way that a call can take."""

from __future__ import annotations

from contextlib import nullcontext
from uuid import uuid4

import pytest
from celery import chain, chord, group
from celery.exceptions import TimeoutError
from django.contrib.auth.models import AnonymousUser, Group, User
from django.db import transaction
from django.test import TestCase
from django.utils import timezone
from django.utils.functional import SimpleLazyObject
from kombu.utils.json import dumps, loads

from celery_admin_runner.base import DjangoTask
from celery_admin_runner.contexts import PlainContext, RunContext, context_of
from celery_admin_runner.dispatcher import Dispatcher
from celery_admin_runner.headers import (
    CONTEXT_HEADER,
    IGNORE_HEADER,
    KEY_HEADER,
    ROW_HEADER,
    RUN_HEADER,
)
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import State
from tests.celery_app import app
from tests.factories import make_run, make_user
from tests.hook_tasks import tell_child, tell_context, tell_context_together, told
from tests.model_task_models import Report
from tests.publishes import attempt, messages_sent
from tests.result_backend import using_backend
from tests.waiting import wait_until


@pytest.fixture
def user(db):
    return make_user()


@pytest.fixture
def context(user):
    return RunContext(user=user, obj=Group.objects.create(name="Staff"), label="L", reason="why")


@pytest.fixture
def values(context):
    """The values of the context as they travel."""
    user, obj = context.user, context.obj
    return [str(user.pk), user.username, "auth.group", str(obj.pk), "L", "why"]


def contexts_told(key, number=1):
    """Return the contexts that so many attempts have written down."""
    wait_until(lambda: len(told(key)) >= number)
    return [line[1] for line in told(key)]


def sent_contexts(call):
    """Return the contexts in the messages that are sent by a call and the commit after it."""
    with messages_sent() as sent, TestCase.captureOnCommitCallbacks(execute=True):
        call()
    return [message["headers"].get(CONTEXT_HEADER) for message in sent]


def own_headers(message):
    """Return the headers that a worker finds in the request: those that are not Celery's."""
    return {
        name: value
        for name, value in message["headers"].items()
        if name.startswith("celery_admin_runner")
    }


WAYS = {
    "apply_async": lambda **options: tell_context.apply_async(**options),
    "apply_async_on_commit": lambda **options: tell_context.apply_async_on_commit(**options),
    "a signature": lambda **options: tell_context.si().set(**options).delay(),
    "a signature's apply_async": lambda **options: tell_context.si().apply_async(**options),
    "a group": lambda **options: group(tell_context.si().set(**options)).delay(),
    "a group's apply_async": lambda **options: group(tell_context.si()).apply_async(**options),
    "a chain": lambda **options: chain(tell_context.si().set(**options), tell_context.si())(),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_context_goes_with_the_message_and_into_the_row(context, values, way):
    sent = sent_contexts(lambda: way(run_context=context))

    run = TaskRunRecord.objects.get()
    assert sent == [values]
    assert (run.run_by, run.run_by_name) == (context.user, context.user.username)
    assert (run.obj, run.label, run.reason) == (context.obj, "L", "why")


def test_a_context_goes_with_a_call_that_is_waited_for(context, values):
    with using_backend("cache+memory://"), messages_sent() as sent, pytest.raises(TimeoutError):
        tell_context.apply_async_and_get_result(timeout=0, run_context=context)

    assert sent[0]["headers"][CONTEXT_HEADER] == values


def test_a_call_without_a_context_has_none(db):
    assert sent_contexts(tell_context.delay) == [None]
    assert not TaskRunRecord.objects.exists()


def test_a_context_is_known_in_the_run_and_in_its_retries(worker):
    context = RunContext(user=make_user(), label="L")
    result = tell_context.apply_async(kwargs={"fail": True}, run_context=context)

    told_contexts = contexts_told(result.id, 2)

    assert told_contexts == [PlainContext.of(context).values] * 2


def test_two_runs_at_once_know_their_own_contexts(transactional_db, threads_queue):
    own = RunContext(user=make_user(), label="own")
    results = [
        tell_context_together.apply_async(queue=threads_queue, **options)
        for options in ({"run_context": own}, {})
    ]

    assert contexts_told(results[0].id) == [PlainContext.of(own).values]
    assert contexts_told(results[1].id) == [None]


def test_the_later_links_of_a_chain_know_their_contexts(worker):
    keys = [str(uuid4()) for _ in range(3)]
    contexts = [RunContext(user=make_user(), label=key) for key in keys]
    first, second, last = (
        tell_context.si(key=key).set(run_context=context)
        for key, context in zip(keys, contexts, strict=True)
    )

    chain(first, second, last).apply_async()

    for key, context in zip(keys, contexts, strict=True):
        assert contexts_told(key) == [PlainContext.of(context).values]
    runs = TaskRunRecord.objects.filter(label__in=keys)
    assert {run.run_by for run in runs} == {context.user for context in contexts}


def test_the_context_of_a_whole_chain_is_that_of_its_first_task(context, values):
    with messages_sent() as sent:
        chain(tell_context.si(), tell_context.si()).apply_async(run_context=context)

    [message] = sent
    assert message["headers"][CONTEXT_HEADER] == values
    assert "run_context" not in message["body"][2]["chain"][0]["options"]


def test_a_callback_and_the_body_of_a_chord_know_their_contexts(context, values):
    later = tell_context.si().set(run_context=context)
    with messages_sent() as sent, using_backend("cache+memory://"):
        tell_context.apply_async(link=later)
        chord([tell_context.si(), tell_context.si()], later).apply_async()
    signatures = [sent[0]["body"][2]["callbacks"][0], sent[1]["body"][2]["chord"]]

    arrived = [app.signature(loads(dumps(signature))) for signature in signatures]

    assert [signature.options["run_context"].values for signature in arrived] == [values] * 2
    assert sent_contexts(arrived[0].delay) == [values]


def test_a_task_that_is_started_inside_a_run_has_its_user(worker):
    context = RunContext(user=make_user(), label="L", reason="why")
    key = str(uuid4())

    tell_child.apply_async([key], run_context=context)

    user = context.user
    assert contexts_told(key) == [[str(user.pk), user.username, "", "", "", ""]]


def test_what_a_task_starts_has_its_user_whatever_is_tracked(user, configure):
    configure(TRACK=[])
    row = [1, str(user.pk), user.username]
    task_id = str(uuid4())
    headers = {"celery_admin_runner_run": task_id, "celery_admin_runner_row": row}

    with messages_sent() as sent:
        attempt(tell_child, id=task_id, kwargs={"key": "k"}, headers=headers)

    assert sent[0]["headers"]["celery_admin_runner_row"] == row


def test_a_task_with_a_row_that_is_started_inside_a_run_has_its_user(user, configure):
    configure(TRACK=["tests.hook_tasks.tell_context"])
    run = make_run(state=State.PENDING, run_by=user, run_by_name=user.username)
    headers = {
        "celery_admin_runner_run": run.task_id,
        "celery_admin_runner_row": [run.pk, str(user.pk), user.username],
    }

    attempt(tell_child, id=run.task_id, kwargs={"key": "k"}, headers=headers)

    assert TaskRunRecord.objects.get(task_name=tell_context.name).run_by == user


def test_the_context_of_a_run_by_a_user_is_that_user(user):
    user.is_superuser = True
    user.save()
    with messages_sent() as sent, TestCase.captureOnCommitCallbacks(execute=True):
        run = TaskRunner(user).run(tell_context.name, reason="why")

    headers = own_headers(sent[0])
    attempt(tell_context, id=run.task_id, headers=headers)

    [[_name, values, _retries]] = told(run.task_id)
    assert values == [str(user.pk), user.username, "", "", "", "why"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("call", ["apply_async", "apply_async_on_commit"])
def test_a_kept_call_keeps_its_context(context, values, call):
    getattr(tell_context, call)(countdown=3600, run_context=context)
    TaskRunRecord.objects.update(due_at=timezone.now())

    sent = sent_contexts(lambda: Dispatcher().dispatch())

    assert sent == [values]


def test_an_eager_run_knows_its_context(context, values, monkeypatch):
    assert tell_context.apply(run_context=context).get() == values
    assert tell_context.apply().get() == []

    monkeypatch.setitem(app.conf, "task_always_eager", True)

    assert tell_context.apply_async(run_context=context).get() == values
    assert tell_context.apply_async(kwargs={"fail": True}, run_context=context).get() == values
    assert tell_context.delay().get() == []


def test_a_run_that_is_delivered_again_knows_its_context(context, values):
    with messages_sent() as sent:
        result = tell_context.apply_async(run_context=context)
    headers = own_headers(sent[0])

    for redelivered in (False, True):
        where = {"exchange": "", "routing_key": "x", "redelivered": redelivered}
        attempt(tell_context, id=result.id, headers=headers, delivery_info=where)

    assert contexts_told(result.id) == [values] * 2


def test_what_replaces_a_task_knows_its_context(context, values):
    task_id = str(uuid4())
    with messages_sent() as sent:
        replacing.apply_async(task_id=task_id, run_context=context)
        attempt(replacing, id=task_id, headers=own_headers(sent[0]))

    assert [message["headers"]["id"] for message in sent] == [task_id] * 2
    assert sent[1]["headers"][CONTEXT_HEADER] == values


@app.task(bind=True, base=DjangoTask, name="tests.test_contexts.replacing")
def replacing(self):
    """Let another task take its place."""
    raise self.replace(tell_context.si())


@pytest.mark.parametrize(
    "make",
    [
        lambda: RunContext(user=User(username="nobody yet")),
        lambda: RunContext(obj=Group(name="none yet")),
        lambda: RunContext(obj=Report(pk=5)),
    ],
)
@pytest.mark.parametrize("call", ["apply_async", "apply_async_on_commit", "apply"])
def test_what_is_not_saved_is_an_error_before_anything_is_written(db, make, call):
    with messages_sent() as sent, pytest.raises(ValueError, match="not saved"):
        getattr(tell_context, call)(run_context=make())

    assert sent == []
    assert not TaskRunRecord.objects.exists()


class Seller(User):
    """A proxy."""

    class Meta:
        app_label = "tests"
        proxy = True


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: RunContext(user="admin"), "Give a user object, and not 'admin'"),
        (lambda: RunContext(user=1), "Give a user object, and not 1"),
        (lambda: RunContext(user=User), "Give a user object"),
        (lambda: RunContext(user=Group.objects.create(name="Staff")), "Give a user object"),
        (lambda: RunContext(obj=1), "Give an object of a model, and not 1"),
        (lambda: RunContext(obj=Group), "Give an object of a model"),
        (lambda: {"user": make_user()}, "Give a RunContext"),
    ],
)
@pytest.mark.parametrize("call", ["apply_async", "apply_async_on_commit", "apply"])
def test_what_is_no_user_and_no_object_is_an_error_before_anything_is_written(
    db, make, told, call
):
    with messages_sent() as sent, pytest.raises(TypeError, match=told):
        getattr(tell_context, call)(run_context=make())

    assert sent == []
    assert not TaskRunRecord.objects.exists()


def test_a_proxy_of_the_user_is_a_user(user):
    seller = Seller.objects.get(pk=user.pk)

    assert PlainContext.of(RunContext(user=seller)) == PlainContext.of(RunContext(user=user))


def test_an_anonymous_user_is_nobody(db):
    tell_context.apply_async(run_context=RunContext(user=AnonymousUser(), label="L"))

    run = TaskRunRecord.objects.get()
    assert (run.run_by, run.run_by_name, run.label) == (None, "", "L")


def test_the_user_of_a_request_is_a_user(user):
    lazy = SimpleLazyObject(lambda: user)

    assert PlainContext.of(RunContext(user=lazy)) == PlainContext.of(RunContext(user=user))


class StaffGroup(Group):
    """A proxy."""

    class Meta:
        proxy = True
        app_label = "tests"


def test_a_proxy_counts_as_its_model(db):
    proxy = StaffGroup.objects.create(name="Staff")

    assert PlainContext.of(RunContext(obj=proxy)).model == "auth.group"


UNKNOWN = [
    PlainContext(model="gone.model", object_id="1", label="L"),
    PlainContext(model="nonsense", object_id="1", label="L"),
    PlainContext(user_pk="of another site", user_name="ann", label="L"),
]
WHEN = pytest.mark.parametrize("options", [{}, {"countdown": 3600}], ids=["now", "later"])


def has_not_lost(result, plain, *, is_kept):
    """Tell whether the run is there, with what of its context this site knows."""
    run = TaskRunRecord.objects.get(task_id=result.id)
    about = (run.run_by, run.run_by_name, run.obj, run.label)
    state = State.SCHEDULED if is_kept else State.PENDING
    return run.state == state and about == (None, plain.user_name, None, "L")


@WHEN
@pytest.mark.parametrize("plain", UNKNOWN)
@pytest.mark.parametrize("call", ["apply_async", "apply_async_on_commit"])
def test_a_context_that_this_site_does_not_know_does_not_lose_the_run(
    db, plain, call, options, django_capture_on_commit_callbacks
):
    with django_capture_on_commit_callbacks(execute=True):
        result = getattr(tell_context, call)(run_context=plain, **options)

    assert has_not_lost(result, plain, is_kept=bool(options))


@WHEN
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("call", ["apply_async", "apply_async_on_commit"])
def test_a_user_who_is_gone_does_not_lose_the_run(call, options):
    plain = PlainContext(user_pk="987654321", user_name="ann", label="L")

    with transaction.atomic() if call == "apply_async_on_commit" else nullcontext():
        result = getattr(tell_context, call)(run_context=plain, **options)

    assert has_not_lost(result, plain, is_kept=bool(options))


@pytest.mark.django_db(transaction=True)
def test_a_user_who_is_deleted_before_the_commit_does_not_lose_the_run(user):
    with transaction.atomic():
        result = tell_context.apply_async_on_commit(run_context=RunContext(user=user))
        name = user.username
        user.delete()

    run = TaskRunRecord.objects.get(task_id=result.id)
    assert (run.state, run.run_by, run.run_by_name) == (State.PENDING, None, name)


def test_headers_that_are_passed_on_do_not_say_whose_run_it_is(context, values):
    with messages_sent() as sent:
        tell_context.apply_async(run_context=context)
        headers = {**own_headers(sent[0]), IGNORE_HEADER: 60, KEY_HEADER: "same", "tenant": "x"}
        tell_context.apply_async(headers=headers)
        tell_context.apply_async(headers=headers, run_context=RunContext(label="other"))
        with TestCase.captureOnCommitCallbacks(execute=True):
            tell_context.apply_async_on_commit(headers=headers)
            run = TaskRunner().run(tell_context.name, headers=headers)

    _first, plain, other, late, by_runner = sent
    assert headers[CONTEXT_HEADER] == values
    assert own_headers(plain) == own_headers(late) == {}
    assert own_headers(other)[CONTEXT_HEADER] == ["", "", "", "", "other", ""]
    assert own_headers(other).keys() == {CONTEXT_HEADER, ROW_HEADER, RUN_HEADER}
    assert own_headers(by_runner)[ROW_HEADER] == [run.pk, "", ""]
    assert not own_headers(by_runner).keys() & {CONTEXT_HEADER, KEY_HEADER}
    assert {message["headers"]["tenant"] for message in sent[1:]} == {"x"}


@pytest.mark.parametrize("headers", [None, {}, {CONTEXT_HEADER: "x"}, {CONTEXT_HEADER: ["x"]}])
def test_headers_without_a_context_are_those_of_nobody(headers):
    assert context_of(headers) is None
