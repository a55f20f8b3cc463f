"""Websockets for the tests: clients of ``tests.asgi``, in the process of the test.

Imported only where Channels is installed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from asgiref.sync import sync_to_async
from channels.testing import WebsocketCommunicator
from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client

from tests.asgi import application
from tests.waiting import PATIENCE

PATH = "/ws/task-runs/"

Message = dict[str, Any]


def cookie_of(user: User) -> str:
    """Sign a user in; returns the key of the session."""
    client = Client()
    client.force_login(user)
    return client.cookies[settings.SESSION_COOKIE_NAME].value


class Socket(WebsocketCommunicator):
    """The client's side of a websocket."""

    async def open(self) -> bool:
        """Make the handshake; tell whether the server accepts."""
        accepted, _code = await self.connect(timeout=PATIENCE)
        return accepted

    async def hear(self) -> Message:
        """Return the next message."""
        return await self.receive_json_from(timeout=PATIENCE)

    async def hear_until(self, is_it: Callable[[Message], bool]) -> Message:
        """Return the next message of which this holds; others are dropped."""
        while not is_it(message := await self.hear()):
            pass
        return message

    async def hear_state(self, state: str) -> Message:
        """Return the next run that is told of in a state."""
        message = await self.hear_until(
            lambda message: message["type"] == "state" and message["run"]["state"] == state
        )
        return message["run"]

    async def close_code(self) -> int:
        """Return the code with which the server closes; messages before that are dropped."""
        while (output := await self.receive_output(PATIENCE))["type"] != "websocket.close":
            pass
        return output["code"]

    async def ask(self, **frame: Any) -> Message:
        """Send a frame, and return the next message."""
        await self.send_json_to(frame)
        return await self.hear()


def socket_of(user: User | None, *, language: str = "") -> Socket:
    """Return a websocket, not open yet, of a browser in which this user is signed in."""
    key = cookie_of(user) if user is not None else ""
    headers = [(b"host", b"testserver"), (b"origin", b"http://testserver")]
    headers.append((b"cookie", f"{settings.SESSION_COOKIE_NAME}={key}".encode()))
    headers.append((b"accept-language", language.encode()))
    return Socket(application, PATH, headers=headers)


@asynccontextmanager
async def opened(user: User, **options: Any) -> AsyncIterator[tuple[Socket, list[Message]]]:
    """An open websocket of this user, and the runs of its snapshot."""
    socket = await sync_to_async(socket_of)(user, **options)
    assert await socket.open()
    snapshot = await socket.hear()
    assert snapshot["type"] == "snapshot"
    yield socket, snapshot["runs"]
    await socket.disconnect(timeout=PATIENCE)
