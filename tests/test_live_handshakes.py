"""Who opens websockets, many of them at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from asgiref.sync import async_to_sync

pytest.importorskip("channels", reason="the extra [websocket] is not installed")

from django.conf import settings
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.models import AnonymousUser, User
from django.db.backends.signals import connection_created
from django.test import Client

from celery_admin_runner.live import handshakes
from celery_admin_runner.live.handshakes import SessionAuthMiddlewareStack
from tests.factories import make_user
from tests.waiting import PATIENCE

pytestmark = pytest.mark.django_db(transaction=True)


class Picky(ModelBackend):
    """Breaks for one user."""

    def get_user(self, user_id: int) -> Any:
        user = super().get_user(user_id)
        if user is not None and user.username == "breaks":
            raise RuntimeError("This user breaks it.")
        return user


def session_key_of(user: User, backend: str = "django.contrib.auth.backends.ModelBackend") -> str:
    client = Client()
    client.force_login(user, backend=backend)
    return client.cookies[settings.SESSION_COOKIE_NAME].value


async def user_of(key: str) -> Any:
    """Return the user that a consumer finds in the scope of a handshake with this session."""
    found = []

    async def consumer(scope: dict[str, Any], receive: Any, send: Any) -> None:
        found.append(scope["user"])

    cookie = f"{settings.SESSION_COOKIE_NAME}={key}".encode()
    scope = {"type": "websocket", "path": "/", "headers": [(b"cookie", cookie)]}
    await SessionAuthMiddlewareStack(consumer)(scope, None, None)
    return found[0]


def users_of(*keys: str) -> list[Any]:
    """Return the users, or errors, of handshakes that are made at once."""

    async def find() -> list[Any]:
        return await asyncio.gather(*map(user_of, keys), return_exceptions=True)

    return async_to_sync(find)()


@contextmanager
def counted_connections() -> Iterator[list[Any]]:
    """Count the connections to the database that are opened."""
    opened: list[Any] = []

    def count(connection: Any, **kwargs: Any) -> None:
        opened.append(connection)

    connection_created.connect(count)
    try:
        yield opened
    finally:
        connection_created.disconnect(count)


def test_each_handshake_finds_the_user_of_its_own_session() -> None:
    users = [make_user() for _ in range(5)]
    keys = [session_key_of(user) for user in users]

    found = users_of(*keys, "no-such-session", "", *keys)

    assert found == [*users, AnonymousUser(), AnonymousUser(), *users]


def test_who_has_another_password_now_is_not_signed_in() -> None:
    user = make_user()
    key = session_key_of(user)
    user.set_password("another")
    user.save()

    found = users_of(key)

    assert found == [AnonymousUser()]


def test_many_handshakes_at_once_take_few_connections() -> None:
    user = make_user()
    key = session_key_of(user)

    with counted_connections() as opened:
        found = users_of(*[key] * 100)

    assert found == [user] * 100
    # The first one is looked up before the others have come.
    assert len(opened) <= 3


def test_what_breaks_for_one_breaks_for_nobody_else(settings: Any) -> None:
    settings.AUTHENTICATION_BACKENDS = ["tests.test_live_handshakes.Picky"]
    breaks, other = make_user(username="breaks"), make_user()
    keys = [session_key_of(user, settings.AUTHENTICATION_BACKENDS[0]) for user in (breaks, other)]

    error, found = users_of(*keys)

    assert isinstance(error, RuntimeError)
    assert found == other


def test_who_goes_away_meanwhile_keeps_nobody_else_from_being_found() -> None:
    user = make_user()
    key = session_key_of(user)

    async def find() -> Any:
        gone, stays = asyncio.create_task(user_of(key)), asyncio.create_task(user_of(key))
        await asyncio.sleep(0)
        gone.cancel()
        return await asyncio.gather(gone, stays, return_exceptions=True)

    gone, found = async_to_sync(find)()

    assert isinstance(gone, asyncio.CancelledError)
    assert found == user


def test_a_call_that_fails_as_a_whole_keeps_no_later_handshake_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    user = make_user()
    key = session_key_of(user)

    def break_down(scopes: Any) -> Any:
        raise OSError("No thread can be had.")

    async def find() -> Any:
        async with asyncio.timeout(PATIENCE):
            with monkeypatch.context() as broken:
                broken.setattr(handshakes, "_users_of", break_down)
                errors = await asyncio.gather(user_of(key), user_of(key), return_exceptions=True)
            return errors, await user_of(key)

    errors, found = async_to_sync(find)()

    assert [type(error) for error in errors] == [OSError, OSError]
    assert found == user
