"""The websocket of a signed-in user: a snapshot of the runs that are displayed, then changes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from functools import cache
from inspect import isclass
from typing import Any

from channels.consumer import AsyncConsumer, get_handler_name
from channels.exceptions import StopConsumer
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, parse_cookie
from django.middleware.locale import LocaleMiddleware
from django.utils import translation
from django.utils.module_loading import import_string

from celery_admin_runner.live.frames import Frame, FrameRefused, parse
from celery_admin_runner.live.pushing import crossing_layer
from celery_admin_runner.live.reading import SIGNED_OUT, error_message
from celery_admin_runner.live.sockets import Socket
from celery_admin_runner.live.watching import Watcher, watcher

Scope = dict[str, Any]

#: Close code: too many frames.
FLOOD = 4408
#: A client may send so many frames a second in the long run, and so many at once.
FRAMES_PER_SECOND = 2.0
FRAMES_AT_ONCE = 100.0
#: So many wait at most, while the database is away or the client reads nothing.
FRAMES_WAITING_MAX = 100


class TaskRunsConsumer(AsyncConsumer):  # type: ignore[misc]
    """Tells one client of the runs of its user: see ``live.payload`` for the messages.

    It needs ``scope["user"]``, as ``channels.auth.AuthMiddlewareStack`` puts it there.
    """

    #: No channel of its own: the process has one for all sockets, which outlives the layer.
    channel_layer_alias = ""

    socket: Socket | None = None
    watcher: Watcher
    _frames_left = FRAMES_AT_ONCE
    _counted_at = 0.0

    async def __call__(
        self,
        scope: Scope,
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        """Serve one websocket, and clean up however it ends."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            if self.socket is not None:
                await self.watcher.leave(self.socket)

    async def dispatch(self, message: dict[str, Any]) -> None:
        """Handle an event; unlike Channels', without a trip to a thread."""
        await getattr(self, get_handler_name(message))(message)

    async def websocket_connect(self, message: dict[str, Any]) -> None:
        """Accept who is signed in, and nobody else."""
        user = user_of(self.scope)
        if not (user.is_authenticated and user.is_active):
            await self._close(SIGNED_OUT)
            return
        await self.send({"type": "websocket.accept"})
        socket = Socket(
            user=user,
            session=self.scope.get("session"),
            language=language_of(self.scope),
            send=self._send_texts,
            close=self._close,
        )
        # From here on nothing fails before it has the socket: without one it would end.
        self.watcher, self.socket = watcher(crossing_layer()), socket
        await self.watcher.enter(socket)

    async def websocket_receive(self, message: dict[str, Any]) -> None:
        """Take what the client asks for; what can't be understood is answered with the reason."""
        socket = self.socket
        if socket is None or not socket.is_open:
            return
        if self._is_flood(socket):
            socket.is_open = False
            await self._close(FLOOD)
            return
        try:
            with translation.override(socket.language):
                frame = parse(message.get("text"))
        except FrameRefused as error:
            await self._send_texts([json.dumps(error_message(str(error)))])
        else:
            self._take(socket, frame)

    async def websocket_disconnect(self, message: dict[str, Any]) -> None:
        """End with the socket."""
        raise StopConsumer

    def _take(self, socket: Socket, frame: Frame) -> None:
        if frame.kind == "snapshot":
            socket.wants_snapshot = True
        elif frame.kind == "follow":
            socket.to_follow.append(frame.ids)
        else:
            socket.to_mark.append(frame.ids)
        self.watcher.ask()

    def _is_flood(self, socket: Socket) -> bool:
        now = asyncio.get_running_loop().time()
        more = (now - self._counted_at) * FRAMES_PER_SECOND
        self._frames_left = min(FRAMES_AT_ONCE, self._frames_left + more) - 1
        self._counted_at = now
        waiting = len(socket.to_follow) + len(socket.to_mark)
        return self._frames_left < 0 or waiting >= FRAMES_WAITING_MAX

    async def _send_texts(self, texts: list[str]) -> None:
        for text in texts:
            await self.send({"type": "websocket.send", "text": text})

    async def _close(self, code: int) -> None:
        await self.send({"type": "websocket.close", "code": code})


def user_of(scope: Scope) -> Any:
    """Return the user of a handshake; raises ImproperlyConfigured where nobody looked for one."""
    if "user" not in scope:
        raise ImproperlyConfigured(
            'The websocket of task runs needs scope["user"]: wrap its URLRouter in '
            "channels.auth.AuthMiddlewareStack."
        )
    return scope["user"]


def language_of(scope: Scope) -> str:
    """Return the language in which the site's pages would be shown to who makes the handshake."""
    if not _has_languages():
        return settings.LANGUAGE_CODE
    headers = {
        name.decode("latin-1").lower(): value.decode("latin-1")
        for name, value in scope.get("headers", ())
    }
    request = HttpRequest()
    request.COOKIES = scope.get("cookies") or parse_cookie(headers.get("cookie", ""))
    request.META["HTTP_ACCEPT_LANGUAGE"] = headers.get("accept-language", "")
    return translation.get_language_from_request(request)


@cache
def _has_languages() -> bool:
    """Tell whether the site chooses its pages' language by the request."""
    middleware = [import_string(name) for name in settings.MIDDLEWARE]
    return any(isclass(each) and issubclass(each, LocaleMiddleware) for each in middleware)
