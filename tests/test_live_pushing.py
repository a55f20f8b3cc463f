"""Changes that other processes make reach the websockets of their user by way of Redis."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket as sockets
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import UUID, uuid4

import pytest
from asgiref.sync import async_to_sync, sync_to_async

pytest.importorskip("channels", reason="the extra [websocket] is not installed")

from channels.layers import channel_layers, get_channel_layer
from django.conf import settings as django_settings
from django.contrib.auth.models import User
from django.db import connection
from django.utils import timezone
from redis import Redis
from redis.exceptions import RedisError

from celery_admin_runner.changes import touched
from celery_admin_runner.live import groups, pushing, watching
from celery_admin_runner.live.groups import group_of
from celery_admin_runner.live.pushing import Pusher
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.runner import TaskRunner
from celery_admin_runner.states import State
from tests import tasks
from tests.celery_app import app
from tests.conftest import running_worker
from tests.factories import make_run, make_superuser, make_user
from tests.waiting import PATIENCE, wait_until
from tests.websockets import opened

pytestmark = pytest.mark.django_db(transaction=True)

#: A port on which nothing listens.
NOWHERE = "redis://127.0.0.1:1/0"


#: The layer that tells when its Redis is away.
CORE = "channels_redis.core.RedisChannelLayer"


def layers_at(url: str, prefix: str, backend: str = CORE) -> dict[str, Any]:
    return {
        "default": {
            "BACKEND": backend,
            "CONFIG": {"hosts": [url], "prefix": prefix},
        }
    }


@pytest.fixture
def prefix() -> str:
    """What the names of this test's channels and groups begin with."""
    return f"tests-{uuid4().hex}"


@pytest.fixture
def redis_url() -> str:
    if not find_spec("channels_redis") or not django_settings.CHANNEL_REDIS:
        pytest.skip("channels-redis is not installed, or TEST_CHANNEL_REDIS names no Redis")
    return str(django_settings.CHANNEL_REDIS)


@pytest.fixture
def layer(redis_url: str, prefix: str, settings: Any) -> Any:
    """A channel layer that crosses processes."""
    settings.CHANNEL_LAYERS = layers_at(redis_url, prefix, django_settings.CHANNEL_LAYER)
    return get_channel_layer()


@pytest.fixture
def no_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is told is told because it was pushed."""
    monkeypatch.setattr(watching, "LOOK_EVERY", 3600.0)
    monkeypatch.setattr(watching, "LOOK_EVERY_ALONE", 3600.0)


@pytest.fixture
def user() -> User:
    return make_user()


def environment(redis_url: str, prefix: str) -> dict[str, str]:
    """Return what lets another process of the tests use this test's layer."""
    return {
        "TEST_CHANNEL_REDIS": redis_url,
        "TEST_CHANNEL_PREFIX": prefix,
        "TEST_DATABASE_NAME": str(connection.settings_dict["NAME"]),
    }


@sync_to_async
def run_of(user: User, **fields: Any) -> TaskRunRecord:
    return make_run(run_by=user, **fields)


@pytest.mark.usefixtures("layer", "no_looks")
@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_what_a_worker_does_is_told(
    pool: str, redis_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, queue = make_superuser(), f"{django_settings.QUEUE}-pushing-{pool}"
    monkeypatch.setitem(app.conf, "task_default_queue", queue)

    async def talk() -> None:
        async with opened(user) as (socket, _runs):
            handle = await sync_to_async(TaskRunner(user).run)(tasks.add.name, (1, 2))
            states = []
            while "SUCCESS" not in states:
                message = await socket.hear_until(lambda message: message["type"] == "state")
                states.append(message["run"]["state"])
                assert message["run"]["task_id"] == handle.task_id
            assert message["run"]["finished"]

    arguments = ["--pool", pool, "--concurrency", "1", "-Q", queue]
    with running_worker(f"pushing-{pool}", *arguments, **environment(redis_url, prefix)):
        async_to_sync(talk)()


#: Moves a run, and ends: what a management command does.
COMMAND = """
import django
django.setup()
from django.utils import timezone
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.states import State
TaskRunRecord.objects.filter(pk={pk}).transition(
    sources=list(State), target=State.FAILURE, finished_at=timezone.now()
)
"""


@pytest.mark.usefixtures("layer", "no_looks")
def test_a_process_that_ends_at_once_has_told(user: User, redis_url: str, prefix: str) -> None:
    run = make_run(run_by=user, state=State.STARTED)

    def command() -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-c", COMMAND.format(pk=run.pk)],
            env={**os.environ, **environment(redis_url, prefix)},
            check=True,
            timeout=PATIENCE,
        )

    async def talk() -> None:
        async with opened(user) as (socket, _runs):
            await sync_to_async(command)()
            ended = await socket.hear_state("FAILURE")
            assert ended["id"] == run.pk

    async_to_sync(talk)()


@pytest.fixture
def pusher() -> Iterator[Callable[[User, TaskRunRecord], None]]:
    """Push from this process, as ``pushing.connect`` would have it."""
    pushing._process.begin()
    yield lambda user, run: pushing._push(str(user.pk), run.pk)
    pushing._process.begin()


@pytest.mark.usefixtures("layer", "no_looks")
def test_a_pushed_run_is_looked_at_and_one_of_another_user_is_not_told(
    user: User, pusher: Callable[[User, TaskRunRecord], None]
) -> None:
    other = make_user()
    theirs = make_run(run_by=other, state=State.STARTED)
    mine = make_run(run_by=user, state=State.STARTED)

    async def talk() -> None:
        async with opened(user) as (socket, _runs):
            await sync_to_async(TaskRunRecord.objects.update)(progress_current=5)
            # A push that names another's run, to the wrong group.
            await sync_to_async(pusher)(user, theirs)
            await sync_to_async(pusher)(user, mine)
            message = await socket.hear()
            assert message["type"] == "progress"
            assert message["id"] == mine.pk
            assert await socket.receive_nothing(timeout=10 * watching.GATHER)

    async_to_sync(talk)()


def test_a_layer_that_forgot_its_groups_is_told_again(
    user: User,
    settings: Any,
    redis_url: str,
    prefix: str,
    pusher: Callable[[User, TaskRunRecord], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watching, "LOOK_EVERY", 3600.0)
    monkeypatch.setattr(groups, "RENEW_AFTER", 0.2)
    settings.CHANNEL_LAYERS = layers_at(redis_url, prefix)
    run = make_run(run_by=user, state=State.STARTED)
    key = f"{prefix}:group:{group_of(user.pk)}"

    async def talk() -> None:
        async with opened(user) as (socket, _runs):
            redis = Redis.from_url(redis_url)
            assert redis.delete(key)
            await sync_to_async(wait_until)(lambda: redis.exists(key))
            redis.close()
            await sync_to_async(TaskRunRecord.objects.update)(progress_current=5)
            await sync_to_async(pusher)(user, run)
            assert (await socket.hear())["type"] == "progress"

    async_to_sync(talk)()


@pytest.mark.parametrize("name", ["core.RedisChannelLayer", "pubsub.RedisPubSubChannelLayer"])
def test_a_layer_that_is_quiet_is_not_away(
    user: User,
    settings: Any,
    redis_url: str,
    prefix: str,
    pusher: Callable[[User, TaskRunRecord], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    settings.CHANNEL_LAYERS = layers_at(redis_url, prefix, f"channels_redis.{name}")
    # redis-py 8 gives up after five seconds, channels_redis waits for as long.
    address = {"address": redis_url, "socket_timeout": 1.5}
    settings.CHANNEL_LAYERS["default"]["CONFIG"]["hosts"] = [address]
    monkeypatch.setattr(watching, "LOOK_EVERY", 3600.0)
    run = make_run(run_by=user, state=State.STARTED)

    async def talk() -> None:
        async with opened(user) as (socket, _runs):
            assert await socket.receive_nothing(timeout=4)
            await sync_to_async(TaskRunRecord.objects.update)(progress_current=5)
            await sync_to_async(pusher)(user, run)
            assert (await socket.hear())["type"] == "progress"

    async_to_sync(talk)()

    assert [text for text in caplog.messages if "away" in text] == []


def test_while_the_layer_is_away_changes_are_found_by_looks(
    user: User, settings: Any, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("channels_redis", reason="channels-redis is not installed")
    settings.CHANNEL_LAYERS = layers_at(NOWHERE, prefix)
    run = make_run(run_by=user, state=State.STARTED)

    async def talk() -> None:
        async with opened(user) as (socket, runs):
            assert [each["id"] for each in runs] == [run.pk]
            await sync_to_async(TaskRunRecord.objects.update)(
                state=State.SUCCESS, finished_at=timezone.now()
            )
            assert (await socket.hear_state("SUCCESS"))["id"] == run.pk

    async_to_sync(talk)()

    assert [text for text in caplog.messages if "channel layer is away" in text]


def free_port() -> int:
    with sockets.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_redis(port: int, folder: Path) -> Iterator[None]:
    """Run a Redis of this test's own, which keeps nothing when it ends."""
    command = ["redis-server", "--port", str(port), "--save", "", "--dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: answers(port), why="Redis does not answer")
            yield
        finally:
            process.kill()


def answers(port: int) -> bool:
    client = Redis(port=port)
    try:
        return bool(client.ping())
    except RedisError:
        return False
    finally:
        client.close()


@pytest.mark.skipif(not shutil.which("redis-server"), reason="there is no redis-server to restart")
def test_a_restart_of_redis_loses_nothing(
    user: User,
    settings: Any,
    prefix: str,
    tmp_path: Path,
    pusher: Callable[[User, TaskRunRecord], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("channels_redis", reason="channels-redis is not installed")
    monkeypatch.setattr(watching, "LOOK_EVERY", 3600.0)
    monkeypatch.setattr(groups, "RENEW_AFTER", 1.0)
    port = free_port()
    settings.CHANNEL_LAYERS = layers_at(f"redis://127.0.0.1:{port}/0", prefix)
    run = make_run(run_by=user, state=State.STARTED)

    def step(current: int) -> None:
        TaskRunRecord.objects.update(progress_current=current)
        pusher(user, run)

    async def hear(socket: Any, current: int) -> None:
        message = await socket.hear()
        assert message["progress"]["current"] == current

    async def talk() -> None:
        first, second = running_redis(port, tmp_path), running_redis(port, tmp_path)
        await sync_to_async(first.__enter__)()
        async with opened(user) as (socket, _runs):
            await sync_to_async(step)(1)
            await hear(socket, 1)
            await sync_to_async(first.__exit__)(None, None, None)
            await sync_to_async(step)(2)
            await hear(socket, 2)
            await sync_to_async(second.__enter__)()
            watcher = next(iter(watching._process.watchers.values()))
            await until(lambda: not watcher._groups.is_away and watcher._groups._joined)
            await sync_to_async(step)(3)
            await hear(socket, 3)
        await sync_to_async(second.__exit__)(None, None, None)

    async_to_sync(talk)()


async def until(condition: Callable[[], object]) -> None:
    """Wait in the event loop."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
def silent_layer(settings: Any, prefix: str) -> Iterator[None]:
    """A layer that takes the connection, and never answers."""
    pytest.importorskip("channels_redis", reason="channels-redis is not installed")
    with sockets.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        settings.CHANNEL_LAYERS = layers_at(f"redis://127.0.0.1:{port}/0", prefix)
        yield


@pytest.mark.usefixtures("silent_layer")
def test_who_moves_a_run_does_not_wait_for_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pushing, "WAITING_MAX", 100)
    pusher, begun_at = Pusher(), monotonic()

    for number in range(1000):
        pusher.push("1", number)
    took = monotonic() - begun_at
    is_flushed = pusher.flush(0.1)

    assert took < 5
    assert not is_flushed
    # One round may be on its way.
    assert pusher._number <= 100


def test_a_run_that_waits_already_is_told_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pusher, "_start", lambda pusher: None)
    pusher = Pusher()

    for _ in range(10):
        pusher.push("1", 7)

    assert pusher._waiting == {group_of("1"): {7}}
    assert pusher._number == 1


@pytest.mark.usefixtures("silent_layer")
def test_a_process_that_ends_waits_once_for_a_layer_that_is_away() -> None:
    pusher = Pusher()
    pusher.push("1", 7)
    begun_at = monotonic()

    for _ in range(5):
        assert not pusher.flush(0.5)

    assert 0.5 <= monotonic() - begun_at < 1


def test_of_users_for_whom_there_is_no_room_nothing_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Pusher, "_start", lambda pusher: None)
    monkeypatch.setattr(pushing, "WAITING_MAX", 10)
    pusher = Pusher()

    for number in range(100):
        pusher.push(str(number), number)

    assert len(pusher._waiting) == pusher._number == 10


def test_a_thread_that_could_not_begin_is_followed_by_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[object] = []
    monkeypatch.setattr(Pusher, "_run", lambda pusher: begun.append(pusher))
    pusher = Pusher()

    for number in range(3):
        pusher.push("1", number)
        pusher._thread.join()  # type: ignore[union-attr]

    assert len(begun) == 3


def test_who_leaves_a_group_and_comes_back_at_once_does_not_wait() -> None:
    layer = get_channel_layer()

    async def come_back() -> float:
        joined = groups.Groups(layer, lambda pks: None, lambda names: None)
        await joined.join("group")
        begun_at = monotonic()
        joined.leave("group")
        await joined.join("group")
        took = monotonic() - begun_at
        await joined.close()
        return took

    took = async_to_sync(come_back)()

    assert took < groups.JOIN_PATIENCE / 2


@pytest.mark.parametrize(
    "key", [1, "1", "x" * 1000, "ü/€ \x00", "\ud800", UUID(int=7)], ids=map(str, range(6))
)
def test_every_layer_takes_the_name_of_a_users_group(key: object) -> None:
    name = group_of(key)

    assert channel_layers.make_backend("default").require_valid_group_name(name)
    assert group_of(str(key)) == name


def test_a_layer_in_memory_makes_no_move_of_a_run_dearer() -> None:
    pushing.connect()

    assert pushing.crossing_layer() is None
    assert not touched.has_listeners(TaskRunRecord)
