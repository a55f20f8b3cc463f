"""The websocket of a signed-in user, with a channel layer in memory, or none."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from functools import wraps
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async

pytest.importorskip("channels", reason="the extra [websocket] is not installed")

from channels.security.websocket import AllowedHostsOriginValidator
from django.conf import settings
from django.contrib.auth.models import AnonymousUser, User
from django.contrib.contenttypes.models import ContentType
from django.contrib.sessions.models import Session
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError, connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django.utils.module_loading import import_string

from celery_admin_runner.changes import touched
from celery_admin_runner.live import consumers, payload, reading, watching
from celery_admin_runner.live.consumers import FRAMES_AT_ONCE, TaskRunsConsumer
from celery_admin_runner.live.frames import FRAME_MAX_LENGTH
from celery_admin_runner.live.payload import RUNS_MAX
from celery_admin_runner.live.sockets import Socket
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.states import State
from tests.factories import make_run, make_runs, make_user
from tests.waiting import PATIENCE, wait_until
from tests.websockets import PATH, opened, socket_of
from tests.websockets import Socket as ClientSocket

pytestmark = pytest.mark.django_db(transaction=True)

Test = Callable[..., Awaitable[None]]


def in_a_loop(test: Test) -> Callable[..., None]:
    """Run a coroutine as a test."""

    @wraps(test)
    def run(**arguments: Any) -> None:
        async_to_sync(test)(**arguments)

    return run


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """Each test closes what it opened, and then nothing is watched or heard."""
    yield
    assert watching._process.watchers == {}
    assert not watching._process.is_hearing


@pytest.fixture
def no_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is told of is looked at, and all of it once, at the beginning."""
    monkeypatch.setattr(watching, "LOOK_EVERY_ALONE", 3600.0)


@pytest.fixture
def user() -> User:
    return make_user()


@sync_to_async
def run_of(user: User, **fields: Any) -> TaskRunRecord:
    return make_run(run_by=user, **fields)


@sync_to_async
def move(run: TaskRunRecord, target: State, **fields: Any) -> None:
    """Move a run as everybody does, so that it is told of."""
    runs = TaskRunRecord.objects.filter(pk=run.pk)
    assert runs.transition(sources=list(State), target=target, **fields)


@sync_to_async
def write(run: TaskRunRecord, **fields: Any) -> None:
    """Change a run's row so that nobody is told of it, as another process might."""
    TaskRunRecord.objects.filter(pk=run.pk).update(**fields)


def consumer_of(user: Any) -> ClientSocket:
    """Return a websocket whose user is known by other means than a session."""
    socket = ClientSocket(TaskRunsConsumer.as_asgi(), PATH)
    if user is not None:
        socket.scope["user"] = user
    return socket


@in_a_loop
async def test_the_anonymous_are_refused() -> None:
    socket = await sync_to_async(socket_of)(None)

    answer = await socket.connect(timeout=PATIENCE)

    assert answer == (False, 4401)


@in_a_loop
async def test_the_inactive_are_refused() -> None:
    socket = consumer_of(User(pk=1, username="gone", is_active=False))

    answer = await socket.connect(timeout=PATIENCE)

    assert answer == (False, 4401)
    assert not AnonymousUser().is_active


@in_a_loop
async def test_a_handshake_from_elsewhere_is_refused(user: User) -> None:
    socket = await sync_to_async(socket_of)(user)
    socket.scope["headers"][1] = (b"origin", b"http://elsewhere.example")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "ALLOWED_HOSTS", ["testserver"])
        socket = ClientSocket(socket_of_stack(), PATH, headers=socket.scope["headers"])
        accepted = await socket.open()

    assert not accepted


def socket_of_stack() -> Any:
    """Return the websockets' application anew: it reads ALLOWED_HOSTS once."""
    return AllowedHostsOriginValidator(TaskRunsConsumer.as_asgi())


@in_a_loop
async def test_a_site_without_users_in_the_scope_is_told_what_to_do() -> None:
    socket = consumer_of(None)
    await socket.send_input({"type": "websocket.connect"})

    with pytest.raises(ImproperlyConfigured, match="AuthMiddlewareStack"):
        # Who waits for an answer does so to the end of all patience.
        await socket.wait(PATIENCE)


@in_a_loop
async def test_a_snapshot_of_ones_own_displayed_runs_comes_first(user: User) -> None:
    other = await sync_to_async(make_user)()
    long_ago = timezone.now() - timedelta(hours=1)
    old, new = await run_of(user, state=State.STARTED), await run_of(user)
    await run_of(user, seen_at=long_ago)
    await run_of(other)

    async with opened(user) as (_socket, runs):
        assert [run["id"] for run in runs] == [new.pk, old.pk]


@pytest.mark.usefixtures("no_looks")
@in_a_loop
async def test_a_move_in_this_process_is_told_without_a_look(user: User) -> None:
    run = await run_of(user, state=State.PENDING)

    async with opened(user) as (socket, _runs):
        await move(run, State.STARTED, started_at=timezone.now())
        started = await socket.hear_state("STARTED")
        await move(run, State.SUCCESS, finished_at=timezone.now())
        ended = await socket.hear_state("SUCCESS")

    assert started["id"] == ended["id"] == run.pk
    assert ended["finished"]
    assert "data-finished" in ended["html"]


@pytest.mark.usefixtures("no_looks")
@in_a_loop
async def test_a_new_run_is_told_without_a_look(user: User) -> None:
    async with opened(user) as (socket, _runs):
        run = await run_of(user, state=State.PENDING)
        message = await socket.hear_state("PENDING")

    assert message["id"] == run.pk


@pytest.mark.usefixtures("no_looks")
@in_a_loop
async def test_what_changes_after_the_snapshot_was_read_is_told(
    user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await run_of(user, state=State.PENDING)

    def answer_late(work: reading.Work) -> reading.Answers:
        answers = reading.answer(work)
        if work.snapshots:
            runs = TaskRunRecord.objects.filter(pk=run.pk)
            runs.transition(sources=[State.PENDING], target=State.STARTED)
        return answers

    monkeypatch.setattr(watching, "answer", answer_late)
    async with opened(user) as (socket, runs):
        started = await socket.hear_state("STARTED")

    assert [each["state"] for each in runs] == ["PENDING"]
    assert started["id"] == run.pk


@pytest.mark.usefixtures("no_looks")
@in_a_loop
async def test_of_more_changes_than_are_read_at_once_each_is_told(
    user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "CHANGED_MAX", 2)
    runs = await sync_to_async(make_runs)(5, run_by=user, state=State.PENDING)
    moved = TaskRunRecord.objects.filter(pk__in=[run.pk for run in runs])

    async with opened(user) as (socket, _runs):
        await sync_to_async(moved.transition)(sources=[State.PENDING], target=State.STARTED)
        told = {(await socket.hear_state("STARTED"))["id"] for _run in runs}

    assert told == {run.pk for run in runs}


@in_a_loop
async def test_what_nobody_told_of_is_found_by_a_look(user: User) -> None:
    run = await run_of(user, state=State.STARTED)

    async with opened(user) as (socket, _runs):
        await write(run, state=State.FAILURE, finished_at=timezone.now())
        ended = await socket.hear_state("FAILURE")
        (made,) = await sync_to_async(make_runs)(1, run_by=user, state=State.PENDING)
        new = await socket.hear_state("PENDING")

    assert ended["id"] == run.pk
    assert new["id"] == made.pk


@in_a_loop
async def test_a_step_is_told_as_progress_and_not_as_a_state(user: User) -> None:
    run = await run_of(user, state=State.STARTED)

    async with opened(user) as (socket, _runs):
        await write(run, progress_current=3, progress_total=4, progress_message="almost")
        message = await socket.hear()

    assert message["type"] == "progress"
    assert message["id"] == run.pk
    assert message["progress"]["percent"] == 75
    assert "almost" in message["html"]


@in_a_loop
async def test_what_was_seen_long_ago_or_deleted_is_gone(user: User) -> None:
    seen, deleted = await run_of(user), await run_of(user)

    async with opened(user) as (socket, _runs):
        await write(seen, seen_at=timezone.now() - timedelta(minutes=5))
        await sync_to_async(TaskRunRecord.objects.filter(pk=deleted.pk).delete)()
        gone: set[int] = set()
        while gone != {seen.pk, deleted.pk}:
            message = await socket.hear_until(lambda message: message["type"] == "gone")
            gone |= set(message["ids"])


@pytest.mark.usefixtures("no_looks")
@in_a_loop
async def test_one_user_hears_nothing_of_another(user: User) -> None:
    other = await sync_to_async(make_user)()
    mine, theirs = (
        await run_of(user, state=State.PENDING),
        await run_of(other, state=State.PENDING),
    )

    async with opened(user) as (socket, _), opened(other) as (other_socket, _):
        await move(theirs, State.STARTED)
        heard_by_other = await other_socket.hear_state("STARTED")
        await move(mine, State.STARTED)
        heard = await socket.hear()

    assert heard_by_other["id"] == theirs.pk
    assert heard["run"]["id"] == mine.pk


@pytest.mark.usefixtures("no_looks")
@in_a_loop
async def test_what_was_seen_in_one_tab_is_seen_in_the_others(user: User) -> None:
    ended, unfinished = await run_of(user), await run_of(user, state=State.STARTED)

    async with opened(user) as (one, _), opened(user) as (two, _):
        answer = await one.ask(type="seen", ids=[ended.pk, unfinished.pk])
        told = [await socket.hear_state("SUCCESS") for socket in (one, two)]

    assert answer == {"type": "seen", "ids": [ended.pk]}
    assert all(run["seen"] for run in told)
    await sync_to_async(ended.refresh_from_db)()
    assert ended.seen_at is not None


@in_a_loop
async def test_of_anothers_run_one_hears_what_one_hears_of_none(user: User) -> None:
    other = await sync_to_async(make_user)()
    mine, theirs = await run_of(user), await run_of(other)

    async with opened(user) as (socket, _runs):
        answers = [
            await socket.ask(type=kind, ids=[mine.pk, pk])
            for kind in ("seen", "follow")
            for pk in (theirs.pk, theirs.pk + 1000, -1, 0, 2**63, 10**300)
        ]

    assert {answer["type"] for answer in answers} == {"error"}
    assert all(answer == answers[0] for answer in answers)
    for run in (mine, theirs):
        await sync_to_async(run.refresh_from_db)()
        assert run.seen_at is None


@in_a_loop
async def test_a_run_that_is_not_displayed_can_be_followed(user: User) -> None:
    long_ago = timezone.now() - timedelta(hours=1)
    run = await run_of(user, seen_at=long_ago)

    async with opened(user) as (socket, runs):
        answer = await socket.ask(type="follow", ids=[run.pk])
        await write(run, label="Another name")
        changed = await socket.hear_state("SUCCESS")
        again = await socket.ask(type="snapshot")

    assert runs == []
    assert answer["run"]["id"] == run.pk
    assert changed["label"] == "Another name"
    assert [each["id"] for each in again["runs"]] == [run.pk]


@in_a_loop
async def test_no_more_runs_are_followed_than_are_shown_at_once(user: User) -> None:
    long_ago = timezone.now() - timedelta(hours=1)
    runs = await sync_to_async(make_runs)(RUNS_MAX + 1, run_by=user, seen_at=long_ago)

    async with opened(user) as (socket, _runs):
        await socket.send_json_to({"type": "follow", "ids": [run.pk for run in runs[:RUNS_MAX]]})
        told = {(await socket.hear())["run"]["id"] for _ in range(RUNS_MAX)}
        refused = await socket.ask(type="follow", ids=[runs[RUNS_MAX].pk])

    assert len(told) == RUNS_MAX
    assert refused["type"] == "error"


@pytest.mark.parametrize(
    "frame",
    [
        "x",
        "",
        "NaN",
        "[]",
        "[1]",
        "7",
        "null",
        '"snapshot"',
        "{}",
        '{"type": null}',
        '{"type": ["snapshot"]}',
        '{"type": "drop"}',
        '{"type": "follow"}',
        '{"type": "follow", "ids": []}',
        '{"type": "follow", "ids": 1}',
        '{"type": "follow", "ids": {"1": 1}}',
        '{"type": "follow", "ids": "1"}',
        '{"type": "seen", "ids": ["1"]}',
        '{"type": "seen", "ids": [1.0]}',
        '{"type": "seen", "ids": [true]}',
        '{"type": "seen", "ids": [null]}',
        '{"type": "seen", "ids": [[1]]}',
        '{"type": "seen", "ids": [NaN]}',
        '{"type": "seen", "ids": [Infinity]}',
        '{"type": "seen", "ids": [1e400]}',
        '{"type": "seen", "ids": [' + "1" * 5000 + "]}",
        json.dumps({"type": "seen", "ids": list(range(1, RUNS_MAX + 2))}),
        "[" * FRAME_MAX_LENGTH,
        "[" * 100_000,
        '{"a":' * 3000,
        "x" * 10_000_000,
        '{"type": "snapshot"}' + " " * FRAME_MAX_LENGTH,
        "\x00",
        '{"type": "\\ud800"}',
        b"snapshot",
        b"\xff" * 1_000_000,
    ],
    ids=lambda frame: repr(frame)[:40],
)
def test_a_frame_that_makes_no_sense_is_answered_with_an_error(
    user: User, frame: str | bytes
) -> None:
    async def talk() -> None:
        async with opened(user) as (socket, _runs):
            key = "text" if isinstance(frame, str) else "bytes"
            await socket.send_input({"type": "websocket.receive", key: frame})
            answer = await socket.hear()
            again = await socket.ask(type="snapshot")

        assert answer["type"] == "error"
        assert len(answer["errors"]["__all__"]) == 1
        assert again["type"] == "snapshot"

    async_to_sync(talk)()


@in_a_loop
async def test_who_sends_frame_after_frame_is_closed(user: User) -> None:
    async with opened(user) as (socket, _runs):
        for _ in range(2 * int(FRAMES_AT_ONCE)):
            await socket.send_json_to({"type": "snapshot"})
        code = await socket.close_code()

    assert code == consumers.FLOOD


@pytest.mark.parametrize("engine", ["db", "cached_db", "cache"])
def test_who_signs_out_is_closed(user: User, engine: str) -> None:
    async def talk() -> None:
        socket = await sync_to_async(socket_of)(user)
        assert await socket.open()
        key = dict(socket.scope["headers"])[b"cookie"].decode().partition("=")[2]
        store = import_string(f"{settings.SESSION_ENGINE}.SessionStore")(key)
        await sync_to_async(store.delete)()
        code = await socket.close_code()
        await socket.disconnect(timeout=PATIENCE)

        assert code == 4401

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "SESSION_ENGINE", f"django.contrib.sessions.backends.{engine}")
        async_to_sync(talk)()


@in_a_loop
async def test_a_session_that_runs_out_is_closed(user: User) -> None:
    async with opened(user) as (socket, _runs):
        await sync_to_async(Session.objects.update)(expire_date=timezone.now())
        code = await socket.close_code()

    assert code == 4401


@in_a_loop
async def test_another_password_closes_what_the_old_one_opened(user: User) -> None:
    async with opened(user) as (socket, _runs):
        user.set_password("another")
        await sync_to_async(user.save)()
        code = await socket.close_code()

    assert code == 4401


@in_a_loop
async def test_who_is_no_longer_active_is_closed(user: User) -> None:
    async with opened(user) as (socket, _runs):
        await sync_to_async(User.objects.update)(is_active=False)
        code = await socket.close_code()

    assert code == 4401


@in_a_loop
async def test_who_is_let_in_by_a_token_stays_until_inactive(user: User) -> None:
    run = await run_of(user, state=State.STARTED)
    socket = consumer_of(user)
    assert await socket.open()
    assert (await socket.hear())["type"] == "snapshot"

    await write(run, state=State.FAILURE, finished_at=timezone.now())
    ended = await socket.hear_state("FAILURE")
    await sync_to_async(user.delete)()
    code = await socket.close_code()
    await socket.disconnect(timeout=PATIENCE)

    assert ended["id"] == run.pk
    assert code == 4401


@pytest.mark.parametrize("has_languages", [True, False])
def test_texts_are_in_the_language_of_the_sites_pages(user: User, has_languages: bool) -> None:
    async def talk() -> None:
        await run_of(user)
        async with opened(user, language="de") as (_socket, runs):
            assert runs[0]["state_label"] == ("Erfolgreich" if has_languages else "Succeeded")

    middleware = list(settings.MIDDLEWARE)
    if has_languages:
        middleware.append("django.middleware.locale.LocaleMiddleware")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "MIDDLEWARE", middleware)
        consumers._has_languages.cache_clear()
        async_to_sync(talk)()
    consumers._has_languages.cache_clear()


@pytest.mark.usefixtures("no_looks")
@in_a_loop
async def test_a_slow_client_hears_only_how_it_is_when_it_listens_again(user: User) -> None:
    run = await run_of(user, state=State.STARTED)
    can_send, sent = asyncio.Event(), []

    async def send(event: dict[str, Any]) -> None:
        await can_send.wait()
        sent.append(event)

    events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    scope = {"type": "websocket", "path": PATH, "headers": [], "user": user}
    can_send.set()
    serving = asyncio.create_task(TaskRunsConsumer.as_asgi()(scope, events.get, send))
    await events.put({"type": "websocket.connect"})
    await until(lambda: len(sent) == 2)

    can_send.clear()
    for current in range(1, 6):
        await write(run, progress_current=current, progress_total=10)
        await move(run, State.STARTED)
        await asyncio.sleep(2 * watching.GATHER)
    can_send.set()
    await until(lambda: any('"current": 5' in event.get("text", "") for event in sent))
    await events.put({"type": "websocket.disconnect", "code": 1000})
    await serving

    assert len(sent) <= 4


@in_a_loop
async def test_who_can_not_be_told_is_closed(user: User) -> None:
    sent: list[dict[str, Any]] = []

    async def send(event: dict[str, Any]) -> None:
        if "progress" in event.get("text", ""):
            raise ValueError("It can't be sent.")
        sent.append(event)

    events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    scope = {"type": "websocket", "path": PATH, "headers": [], "user": user}
    await run_of(user, state=State.STARTED)
    serving = asyncio.create_task(TaskRunsConsumer.as_asgi()(scope, events.get, send))
    await events.put({"type": "websocket.connect"})
    await until(lambda: len(sent) == 2)
    await events.put({"type": "websocket.disconnect", "code": 1000})
    await serving

    assert sent[1] == {"type": "websocket.close", "code": reading.BROKEN}


@in_a_loop
async def test_no_more_is_kept_for_who_hears_nothing_than_makes_sense(
    user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumers, "FRAMES_WAITING_MAX", 5)
    run = await run_of(user, state=State.STARTED)
    can_answer = threading.Event()

    def answer_late(work: reading.Work) -> reading.Answers:
        assert can_answer.wait(PATIENCE)
        return reading.answer(work)

    async with opened(user) as (socket, _runs):
        monkeypatch.setattr(watching, "answer", answer_late)
        await socket.send_json_to({"type": "snapshot"})
        await asyncio.sleep(4 * watching.GATHER)
        for _ in range(8):
            await socket.send_json_to({"type": "follow", "ids": [run.pk]})
        code = await socket.close_code()
        can_answer.set()

    assert code == consumers.FLOOD


async def until(condition: Callable[[], object]) -> None:
    """Wait in the event loop."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


def watching_threads() -> list[threading.Thread]:
    return [
        thread for thread in threading.enumerate() if thread.name.startswith(watching.THREAD_NAME)
    ]


def test_of_the_last_socket_nothing_is_left(user: User) -> None:
    async def talk() -> None:
        async with opened(user) as (_socket, _runs):
            assert touched.has_listeners(TaskRunRecord)
            assert watching_threads()

    async_to_sync(talk)()

    assert not touched.has_listeners(TaskRunRecord)
    assert watching._process.watchers == {}
    wait_until(lambda: not watching_threads(), why="the thread is still there")


@pytest.mark.usefixtures("no_looks")
@in_a_loop
async def test_what_could_not_be_read_is_told_when_the_database_answers_again(
    user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, calls = await run_of(user, state=State.STARTED), []

    def fail_twice(work: reading.Work) -> reading.Answers:
        calls.append(work)
        if len(calls) <= 2:
            raise OperationalError("gone away")
        return reading.answer(work)

    async with opened(user) as (socket, _runs):
        monkeypatch.setattr(watching, "answer", fail_twice)
        await move(run, State.FAILURE, finished_at=timezone.now())
        ended = await socket.hear_state("FAILURE")

    assert ended["id"] == run.pk
    assert len(calls) >= 3


@pytest.mark.usefixtures("no_looks")
@pytest.mark.parametrize(
    ("kind", "answered"), [("snapshot", "snapshot"), ("follow", "state"), ("seen", "seen")]
)
def test_what_was_asked_while_the_database_was_away_is_answered_later(
    user: User, monkeypatch: pytest.MonkeyPatch, kind: str, answered: str
) -> None:
    failed: list[reading.Work] = []

    def fail_once(work: reading.Work) -> reading.Answers:
        if not failed:
            failed.append(work)
            raise OperationalError("gone away")
        return reading.answer(work)

    async def talk() -> None:
        run = await run_of(user)
        async with opened(user) as (socket, _runs):
            monkeypatch.setattr(watching, "answer", fail_once)
            answer = await socket.ask(type=kind, ids=[run.pk])

        assert answer["type"] == answered

    async_to_sync(talk)()
    assert failed


async def _no_texts(texts: list[str]) -> None: ...


async def _no_close(code: int) -> None: ...


def server_side(user: User) -> Socket:
    """Return what a server knows of a websocket that has had its snapshot."""
    return Socket(
        user=user,
        session=None,
        language="en",
        send=_no_texts,
        close=_no_close,
        has_snapshot=True,
    )


@pytest.fixture
def kept_connection(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A connection that a look leaves open: to open one takes queries on some servers."""
    monkeypatch.setitem(connection.settings_dict, "CONN_MAX_AGE", None)
    connection.close()
    connection.ensure_connection()
    yield
    connection.close()


@pytest.mark.parametrize("number", [3, 30])
def test_a_look_takes_the_same_few_queries_for_any_number_of_sockets(
    number: int, kept_connection: None
) -> None:
    users = [make_user() for _ in range(number)]
    for user in users:
        make_run(run_by=user, state=State.STARTED)
    sockets = [server_side(user) for user in users]
    work = reading.Work(looks=sockets, checks=sockets)

    with CaptureQueriesContext(connection) as first:
        answers = reading.answer(work)
    with CaptureQueriesContext(connection) as second:
        nothing = reading.answer(work)

    assert sorted(map(len, answers.texts.values())) == [1] * number
    assert nothing.texts == {}
    # The users; what is displayed; the runs that differ, and which of these are displayed.
    assert len(first) == 4
    assert len(second) == 2


def test_what_was_read_and_not_sent_is_told_the_next_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    user = make_user()
    run, socket = make_run(run_by=user, state=State.STARTED), server_side(user)
    tell = reading._Round._tell

    def tell_and_fail(self: Any, looked_at: Any) -> None:
        tell(self, looked_at)
        raise OperationalError("gone away")

    with monkeypatch.context() as patch:
        patch.setattr(reading._Round, "_tell", tell_and_fail)
        with pytest.raises(OperationalError):
            reading.answer(reading.Work(looks=[socket]))
    answers = reading.answer(reading.Work(looks=[socket]))

    (text,) = answers.texts[socket]
    assert json.loads(text)["run"]["id"] == run.pk


def test_of_a_user_with_very_many_runs_only_the_newest_are_read() -> None:
    users = [make_user() for _ in range(3)]
    make_runs(reading.ROWS_MAX + 10, run_by=users[1], state=State.STARTED)
    runs = [make_run(run_by=user, state=State.STARTED) for user in users]
    sockets = [server_side(user) for user in users]

    reading.answer(reading.Work(snapshots=sockets))

    assert [len(socket.known) for socket in sockets] == [1, RUNS_MAX, 1]
    assert [max(socket.known) for socket in sockets] == [run.pk for run in runs]


def test_what_breaks_for_one_socket_closes_that_one_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken, other = make_user(), make_user()
    run = make_run(run_by=broken)
    make_run(run_by=other)
    sockets = [server_side(broken), server_side(other)]
    run_payload = payload.run_payload

    def fail(each: TaskRunRecord) -> payload.RunPayload:
        if each == run:
            raise ZeroDivisionError
        return run_payload(each)

    monkeypatch.setattr(payload, "run_payload", fail)
    answers = reading.answer(reading.Work(snapshots=sockets))

    assert answers.closing == {sockets[0]: reading.BROKEN}
    assert len(answers.texts[sockets[1]]) == 1


@pytest.mark.parametrize("is_there", [True, False])
def test_of_anothers_run_that_is_to_be_followed_nothing_more_is_read(
    user: User, is_there: bool
) -> None:
    kind = ContentType.objects.get_for_model(User)
    other = make_run(run_by=make_user(), content_type=kind, object_id=str(user.pk))
    socket = Socket(user=user, session=None, language="en", send=_ignore, close=_ignore)
    ids = frozenset([other.pk if is_there else other.pk + 1])

    with CaptureQueriesContext(connection) as queries:
        answers = reading.answer(reading.Work(follows=[(socket, ids)]))

    [text] = answers.texts[socket]
    assert json.loads(text)["type"] == "error"
    assert len(queries) == 1


@in_a_loop
async def test_one_user_with_many_sockets_that_ask_keeps_nobody_waiting(
    user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "SOCKETS_MAX", 2)
    other = await sync_to_async(make_user)()
    calm = Socket(user=other, session=None, language="en", send=_ignore, close=_ignore)
    greedy = [
        Socket(user=user, session=None, language="en", send=_ignore, close=_ignore)
        for _ in range(30)
    ]
    watcher = watching.Watcher(None)
    for socket in [*greedy, calm]:
        watcher._sockets[socket.user_pk].add(socket)
        socket.wants_snapshot = True

    work = reading.Work()
    watcher._take_asked(work, [*greedy, calm])

    assert calm in work.snapshots
    assert len(work.snapshots) == 2
    monkeypatch.setattr(watching, "SOCKETS_MAX", 50)
    assert len(watching._in_turns(greedy)) == watching.SOCKETS_OF_ONE_MAX
    for socket in [*greedy, calm]:
        await watcher.leave(socket)


async def _ignore(*arguments: Any) -> None: ...
