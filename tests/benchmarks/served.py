"""The ASGI application of the tests, which also tells what it costs: ``GET /figures``.

With PROFILE in the environment, a path, what its event loop does is profiled, and the profile
written there at ``GET /profile``.
"""

from __future__ import annotations

import cProfile
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from tests.asgi import application as site

_counter: Counter[str] = Counter()
#: The time that this thread computes, and not that in which others do.
_profile = cProfile.Profile(time.thread_time) if os.environ.get("PROFILE") else None
if _profile is not None:
    _profile.enable()


def _count(execute: Callable[..., Any], *arguments: Any) -> Any:
    _counter["statements"] += 1
    return execute(*arguments)


def _on_connected(connection: BaseDatabaseWrapper, **kwargs: Any) -> None:
    _counter["connections"] += 1
    if _count not in connection.execute_wrappers:
        connection.execute_wrappers.append(_count)


connection_created.connect(_on_connected)


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Serve the site, and the figures."""
    path = scope.get("path")
    if scope["type"] != "http" or path not in {"/figures", "/profile"}:
        await site(scope, receive, send)
        return
    if path == "/profile" and _profile is not None:
        _profile.dump_stats(os.environ["PROFILE"])
    figures = {"statements": 0, "connections": 0, **_counter, "threads": threading.active_count()}
    body = json.dumps(figures).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
