"""Who waits for runs in a measurement: signed-in users, and what came over their sockets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.auth.models import User
from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.models import Session
from django.utils import timezone

from celery_admin_runner.states import State
from tests.benchmarks.moves import RANK_OF_END, rank_of
from tests.benchmarks.sockets import Socket


def make_users(number: int) -> list[User]:
    """Make users who are no staff."""
    return User.objects.bulk_create(User(username=f"live-{n}") for n in range(number))


def make_sessions(users: Iterable[User]) -> dict[int, str]:
    """Sign users in; return the keys of their sessions by primary key."""
    store = SessionStore()
    until = timezone.now() + timedelta(days=1)
    keys = {}
    sessions = []
    for user in users:
        keys[user.pk] = f"live{user.pk:028}"
        data = {
            SESSION_KEY: str(user.pk),
            BACKEND_SESSION_KEY: settings.AUTHENTICATION_BACKENDS[0],
            HASH_SESSION_KEY: user.get_session_auth_hash(),
        }
        text = store.encode(data)
        sessions.append(Session(session_key=keys[user.pk], session_data=text, expire_date=until))
    Session.objects.bulk_create(sessions)
    return keys


@dataclass(eq=False)
class Reader:
    """What came over one socket."""

    user_pk: int
    #: By run: the ranks that came, and when.
    heard: dict[int, list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))
    snapshot_at: float = 0.0
    errors: int = 0
    #: An older state after a newer one.
    backwards: int = 0

    def listen(self, socket: Socket, now: float, message: dict[str, Any]) -> None:
        """Take a message."""
        kind = message["type"]
        if kind == "snapshot":
            self.snapshot_at = self.snapshot_at or now
            for run in message["runs"]:
                self._hear(run["id"], run["state"], run["progress"], now)
        elif kind == "state":
            run = message["run"]
            self._hear(run["id"], run["state"], run["progress"], now)
        elif kind == "progress":
            self._hear(message["id"], State.STARTED, message["progress"], now)
        elif kind == "error":
            self.errors += 1

    def lost(self, ended: Mapping[int, Iterable[int]]) -> int:
        """Return of how many finished runs of its user it did not hear the end."""
        return sum(
            not self.heard.get(pk) or self.heard[pk][-1][0] != RANK_OF_END
            for pk in ended.get(self.user_pk, ())
        )

    def _hear(self, pk: int, state: str, progress: dict[str, Any] | None, now: float) -> None:
        rank = rank_of(state, progress["current"] if progress else 0)
        ranks = self.heard[pk]
        if ranks and ranks[-1][0] > rank:
            self.backwards += 1
        ranks.append((rank, now))
