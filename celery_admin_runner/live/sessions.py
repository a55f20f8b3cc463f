"""Whether those who opened websockets are still signed in: all sockets in few queries."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from typing import Any

from django.conf import settings
from django.contrib.auth import (
    BACKEND_SESSION_KEY,
    HASH_SESSION_KEY,
    SESSION_KEY,
    get_user_model,
)
from django.contrib.sessions.backends import db
from django.utils.crypto import constant_time_compare
from django.utils.module_loading import import_string

from celery_admin_runner.live.sockets import Socket
from celery_admin_runner.querysets import STEP_MAX

Data = Mapping[str, Any]


def signed_out(sockets: Collection[Socket], now: datetime) -> Iterator[Socket]:
    """Yield those whose user is inactive or gone, or whose session has ended.

    One query for each 500 users, and one for each 500 sessions where these are kept in a
    database; other stores are asked for each.
    """
    users = _users({socket.user_pk for socket in sockets})
    bound = [socket for socket in sockets if _has_session(socket)]
    sessions = _sessions({socket.session.session_key for socket in bound}, now)
    for socket in sockets:
        user = users.get(socket.user_pk)
        is_let_in = user is not None and user.is_active
        if is_let_in and socket.has_session:
            is_let_in = _is_of(user, sessions.get(socket.session.session_key, {}))
        if not is_let_in:
            yield socket


def _has_session(socket: Socket) -> bool:
    """Tell whether it is by the session that the socket's user is signed in.

    It need not be, where the site lets users in by a token.
    """
    if socket.has_session is None:
        key = socket.session.get(SESSION_KEY) if socket.session is not None else None
        socket.has_session = key == _text_of(socket.user)
    return socket.has_session


def _users(keys: Collection[Any]) -> dict[Any, Any]:
    ordered = list(keys)
    found = {}
    for start in range(0, len(ordered), STEP_MAX):
        step = ordered[start : start + STEP_MAX]
        found.update(get_user_model()._default_manager.in_bulk(step))
    return found


def _sessions(keys: Collection[str], now: datetime) -> dict[str, Data]:
    """Return what is in these sessions, as far as they have not ended."""
    if not keys:
        return {}
    store = import_string(f"{settings.SESSION_ENGINE}.SessionStore")
    if not issubclass(store, db.SessionStore):
        return {key: store(key).load() for key in keys}
    ordered, model = list(keys), store.get_model_class()
    found: dict[str, Data] = {}
    for start in range(0, len(ordered), STEP_MAX):
        step = ordered[start : start + STEP_MAX]
        rows = model.objects.filter(session_key__in=step, expire_date__gt=now)
        found.update((row.session_key, row.get_decoded()) for row in rows)
    return found


def _is_of(user: Any, data: Data) -> bool:
    """Tell whether a session signs this user in; what is asked is what Django asks."""
    if data.get(SESSION_KEY) != _text_of(user):
        return False
    if data.get(BACKEND_SESSION_KEY) not in settings.AUTHENTICATION_BACKENDS:
        return False
    if not hasattr(user, "get_session_auth_hash"):
        return True
    given = data.get(HASH_SESSION_KEY) or ""
    hashes = [user.get_session_auth_hash(), *user.get_session_auth_fallback_hash()]
    return any(constant_time_compare(given, each) for each in hashes)


def _text_of(user: Any) -> str:
    return str(user._meta.pk.value_to_string(user))
