"""Find out who opens websockets, for many of them at once, as after a restart of the server.

``SessionAuthMiddlewareStack`` in place of ``channels.auth.AuthMiddlewareStack``: that asks for
each user by a call of its own, with a new connection to the database where CONN_MAX_AGE is 0.
Daphne gives up a handshake after five seconds.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from channels.auth import AuthMiddleware, get_user
from channels.db import database_sync_to_async
from channels.sessions import CookieMiddleware, SessionMiddleware

from celery_admin_runner.attempts import Attempt

Scope = dict[str, Any]

#: So many are looked up by one call.
AT_ONCE = 50


class SessionAuthMiddleware(AuthMiddleware):  # type: ignore[misc]
    """Puts the user of the session into the scope, as Channels' own does."""

    async def resolve_scope(self, scope: Scope) -> None:
        """Wait for the user, who is looked up together with those of other handshakes."""
        loop = asyncio.get_running_loop()
        scope["user"]._wrapped = await _desks.setdefault(loop, _Desk()).user_of(scope)


def SessionAuthMiddlewareStack(application: Any) -> Any:
    """Surround an ASGI application with all that finds the user: cookies, session, user."""
    return CookieMiddleware(SessionMiddleware(SessionAuthMiddleware(application)))


class _Desk:
    """Where the handshakes of an event loop wait for their users."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Scope, asyncio.Future[Any]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def user_of(self, scope: Scope) -> Any:
        """Return the user of a handshake; raises what the look-up raised."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((scope, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._serve())
        return await future

    async def _serve(self) -> None:
        while self._waiting:
            number = min(AT_ONCE, len(self._waiting))
            batch = [self._waiting.popleft() for _ in range(number)]
            # Nobody waits for the others any more.
            wanted = [(scope, future) for scope, future in batch if not future.done()]
            attempt, users = Attempt(), []
            with attempt:
                users = await database_sync_to_async(_users_of)([scope for scope, _ in wanted])
            if attempt.error is not None:
                users = [attempt.error] * len(wanted)
            for (_, future), user in zip(wanted, users, strict=True):
                if future.done():
                    continue
                if isinstance(user, Exception):
                    future.set_exception(user)
                else:
                    future.set_result(user)
        # A task would keep its loop.
        self._task = None


def _users_of(scopes: Sequence[Scope]) -> list[Any]:
    """Return the user of each, or the error that looking him or her up ended with."""
    users = []
    for scope in scopes:
        attempt = Attempt()
        with attempt:
            users.append(get_user.func(scope))
        if attempt.error is not None:
            users.append(attempt.error)
    return users


_desks: WeakKeyDictionary[asyncio.AbstractEventLoop, _Desk] = WeakKeyDictionary()
