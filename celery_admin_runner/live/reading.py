"""Answer many websockets at once from the database: the part that runs in a thread."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from django.db import connections, router
from django.utils import timezone, translation
from django.utils.translation import gettext as _

from celery_admin_runner.answers import forbidden_text
from celery_admin_runner.attempts import Attempt
from celery_admin_runner.exceptions import ALL
from celery_admin_runner.live.links import load_for_links
from celery_admin_runner.live.payload import (
    RUNS_MAX,
    VERSION_FIELDS,
    ErrorMessage,
    Message,
    SeenMessage,
    changes,
    snapshot,
    version_of,
    with_shown_columns,
)
from celery_admin_runner.live.selection import ID_MAX
from celery_admin_runner.live.sessions import signed_out
from celery_admin_runner.live.sockets import Socket
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.querysets import STEP_MAX, TaskRunRecordQuerySet
from celery_admin_runner.runner import TaskRunner

logger = logging.getLogger("celery_admin_runner")

#: Close codes: signed out; something broke.
SIGNED_OUT = 4401
BROKEN = 1011
#: Whose a run is, and which version.
_LOOKED_AT = ("run_by", *VERSION_FIELDS)
#: So many runs of several users are read at once; are there more, fewer users are asked for.
ROWS_MAX = 2000


@dataclass(kw_only=True)
class Work:
    """What is to be read in one go."""

    #: Runs that have changed, whosever they are, and who is to be told of them: the sockets
    #: by the key of their user.
    changed: set[int] = field(default_factory=set)
    told: dict[Any, tuple[Socket, ...]] = field(default_factory=dict)
    #: Sockets that are to be told whatever they do not know yet.
    looks: list[Socket] = field(default_factory=list)
    #: Sockets of which it is to be asked whether they are still signed in.
    checks: list[Socket] = field(default_factory=list)
    #: What was asked for.
    snapshots: list[Socket] = field(default_factory=list)
    follows: list[tuple[Socket, frozenset[int]]] = field(default_factory=list)
    marks: list[tuple[Socket, frozenset[int]]] = field(default_factory=list)


@dataclass(kw_only=True)
class Answers:
    """What is to be sent to each socket, as JSON; and which are to be closed, with which code."""

    texts: dict[Socket, list[str]] = field(default_factory=lambda: defaultdict(list))
    closing: dict[Socket, int] = field(default_factory=dict)

    def add(self, socket: Socket, make: Callable[[], Iterable[Message]]) -> bool:
        """Take messages in the language of the socket; tell whether they could be made.

        What breaks in them (a task's own code, a template of the site's) breaks for the one
        socket: it is closed.
        """
        attempt = Attempt()
        with attempt, translation.override(socket.language):
            self.texts[socket] += [json.dumps(message) for message in make()]
        if attempt.error is not None:
            logger.error("A message about a task run broke.", exc_info=attempt.error)
            self.closing[socket] = BROKEN
        return attempt.error is None

    def refuse(self, socket: Socket, text: Callable[[], str]) -> None:
        """Answer that something can't be done."""
        self.add(socket, lambda: [error_message(text())])


def error_message(text: str) -> ErrorMessage:
    """Return the message of an error."""
    return ErrorMessage(type="error", errors={ALL: [text]})


def answer(work: Work) -> Answers:
    """Read and write what the work asks for; raises DatabaseError.

    All of it in one thread, one after the other: so of two versions of a run the one that was
    read later is sent later. The connection is kept from one call to the next, whatever
    CONN_MAX_AGE says, but not from one look at everything to the next.
    """
    with ExitStack() as broken:
        # What is broken is opened anew by the next call.
        broken.callback(connections.close_all)
        answers = _Round(work).answer()
        broken.pop_all()
    return answers


class _Round:
    """One call of ``answer``."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.now = timezone.now()
        self.answers = Answers()
        #: What clients will know. What is not sent, for the database went away, is not known.
        self.known: dict[Socket, dict[int, str]] = {}
        self.runs = TaskRunRecord.objects.using(router.db_for_write(TaskRunRecord))

    def answer(self) -> Answers:
        work = self.work
        if work.checks:
            for connection in connections.all(initialized_only=True):
                connection.close_if_unusable_or_obsolete()
            for socket in signed_out(work.checks, self.now):
                self.answers.closing[socket] = SIGNED_OUT
        if work.marks:
            self._mark([(socket, ids) for socket, ids in work.marks if self._stays(socket)])
        if work.snapshots:
            self._take_snapshots(list(filter(self._stays, work.snapshots)))
        if work.follows:
            self._follow([(socket, ids) for socket, ids in work.follows if self._stays(socket)])
        looked_at = self._look(list(filter(self._stays, work.looks))) if work.looks else {}
        if work.changed or looked_at:
            self._tell(looked_at)
        for socket, known in self.known.items():
            socket.known = known
        return self.answers

    def _known(self, socket: Socket) -> dict[int, str]:
        if socket not in self.known:
            self.known[socket] = dict(socket.known)
        return self.known[socket]

    def _stays(self, socket: Socket) -> bool:
        """Tell whether a socket stays open, as far as is known by now."""
        return socket not in self.answers.closing

    def _by_key(
        self, keys: Iterable[int], *fields: str, runs: TaskRunRecordQuerySet | None = None
    ) -> dict[int, TaskRunRecord]:
        """Return those of these runs that exist, whosever they are."""
        ordered = sorted(key for key in keys if 0 < key <= ID_MAX)
        runs = self.runs.only(*fields) if runs is None else runs
        return {
            run.pk: run
            for start in range(0, len(ordered), STEP_MAX)
            for run in runs.filter(pk__in=ordered[start : start + STEP_MAX])
        }

    def _displayed(
        self, runs: TaskRunRecordQuerySet, users: Sequence[Any], limit: int
    ) -> dict[Any, list[TaskRunRecord]]:
        """Return the newest of the displayed runs of each user, at most ``limit``."""
        found: dict[Any, list[TaskRunRecord]] = defaultdict(list)
        for run in self._displayed_rows(runs.displayed(now=self.now), users, limit):
            found[run.run_by_id].append(run)
        return {
            user: sorted(rows, key=lambda run: run.pk, reverse=True)[:limit]
            for user, rows in found.items()
        }

    def _displayed_rows(
        self, runs: TaskRunRecordQuerySet, users: Sequence[Any], limit: int
    ) -> Iterator[TaskRunRecord]:
        """Yield them by as few queries as may be; one user of whom there is much takes his own."""
        if len(users) == 1:
            yield from runs.filter(run_by=users[0])[:limit]
            return
        if len(users) <= STEP_MAX:
            rows = list(runs.filter(run_by__in=users).order_by()[: ROWS_MAX + 1])
            if len(rows) <= ROWS_MAX:
                yield from rows
                return
        half = len(users) // 2
        yield from self._displayed_rows(runs, users[:half], limit)
        yield from self._displayed_rows(runs, users[half:], limit)

    def _take_snapshots(self, sockets: Sequence[Socket]) -> None:
        """Answer with all that is displayed, and what is followed."""
        users = list({socket.user_pk for socket in sockets})
        displayed = self._displayed(with_shown_columns(self.runs), users, RUNS_MAX + 1)
        followed = self._by_key(
            {pk for socket in sockets for pk in socket.followed},
            runs=with_shown_columns(self.runs),
        )
        for socket in sockets:
            shown = {run.pk: run for run in displayed.get(socket.user_pk, ())}
            shown |= {
                pk: followed[pk]
                for pk in socket.followed & followed.keys()
                if followed[pk].run_by_id == socket.user_pk
            }
            runs = [shown[pk] for pk in sorted(shown, reverse=True)]
            if self.answers.add(socket, lambda runs=runs: [snapshot(runs)]):  # type: ignore[misc]
                self.known[socket] = {run.pk: version_of(run) for run in runs[:RUNS_MAX]}

    def _follow(self, follows: Sequence[tuple[Socket, frozenset[int]]]) -> None:
        """Answer with the state of each run that is to be followed; all are one's own, or none."""
        keys = {pk for _socket, ids in follows for pk in ids}
        rows = self._by_key(keys, runs=with_shown_columns(self.runs))
        own_runs = [_own(socket, ids, rows) for socket, ids in follows]
        # Not of another's: the time that it takes would tell that there is one.
        load_for_links(run for own in own_runs for run in own)
        for (socket, ids), own in zip(follows, own_runs, strict=True):
            if len(own) < len(ids):
                self.answers.refuse(socket, forbidden_text)
            elif len(socket.followed | ids) > RUNS_MAX:
                self.answers.refuse(socket, _too_many_text)
            elif self.answers.add(socket, lambda own=own: changes(own, {})):  # type: ignore[misc]
                socket.followed |= ids
                self._known(socket).update((run.pk, version_of(run)) for run in own)

    def _mark(self, marks: Sequence[tuple[Socket, frozenset[int]]]) -> None:
        """Mark runs as seen; all are one's own, or none. All sockets of the user are told."""
        rows = self._by_key({pk for _socket, ids in marks for pk in ids}, "run_by")
        marked = []
        for socket, ids in marks:
            if len(_own(socket, ids, rows)) < len(ids):
                self.answers.refuse(socket, forbidden_text)
            else:
                TaskRunner(socket.user).mark_seen(ids)
                marked.append((socket, ids))
        keys = {pk for _socket, ids in marked for pk in ids}
        seen = {pk for pk, run in self._by_key(keys, "seen_at").items() if run.seen_at is not None}
        for socket, ids in marked:
            message = SeenMessage(type="seen", ids=sorted(ids & seen))
            self.answers.add(socket, lambda message=message: [message])  # type: ignore[misc]
        self.work.changed |= seen

    def _look(self, sockets: Sequence[Socket]) -> dict[Socket, set[int]]:
        """Return the runs of which each socket knows nothing, or something old.

        What is gone it is told at once.
        """
        users = list({socket.user_pk for socket in sockets})
        displayed = {
            user: {run.pk: version_of(run) for run in runs}
            for user, runs in self._displayed(self.runs.only(*_LOOKED_AT), users, RUNS_MAX).items()
        }
        followed = self._by_key({pk for socket in sockets for pk in socket.followed}, *_LOOKED_AT)
        differing = {}
        for socket in sockets:
            own = _own(socket, socket.followed, followed)
            there = displayed.get(socket.user_pk, {}) | {run.pk: version_of(run) for run in own}
            socket.followed &= {run.pk for run in own}
            known = self._known(socket)
            gone = known.keys() - there.keys()
            if gone:
                self._send_changes(socket, [], gone)
            different = {pk for pk, version in there.items() if known.get(pk) != version}
            if different:
                differing[socket] = different
        return differing

    def _tell(self, looked_at: Mapping[Socket, set[int]]) -> None:
        """Tell the sockets what has changed, as it is now."""
        keys = self.work.changed.union(*looked_at.values())
        rows = self._by_key(keys, runs=with_shown_columns(self.runs))
        load_for_links(rows.values())
        displayed = self._by_key(rows, runs=self.runs.displayed(now=self.now).only("pk")).keys()
        touched: dict[Socket, set[int]] = defaultdict(set)
        for pk in self.work.changed & rows.keys():
            for socket in self.work.told.get(rows[pk].run_by_id, ()):
                touched[socket].add(pk)
        for socket, different in looked_at.items():
            touched[socket] |= different
        for socket, pks in touched.items():
            runs = [
                run
                for run in _own(socket, sorted(pks), rows)
                if run.pk in displayed or run.pk in socket.followed
            ]
            if self._stays(socket):
                self._send_changes(socket, runs, pks)

    def _send_changes(
        self, socket: Socket, runs: Sequence[TaskRunRecord], touched: Collection[int]
    ) -> None:
        """Tell one socket of those of these runs that it is shown, and that the rest is gone."""
        all_known = self._known(socket)
        known = {pk: all_known[pk] for pk in touched if pk in all_known}
        if self.answers.add(socket, lambda: changes(runs, known)):
            for pk in known:
                del all_known[pk]
            all_known.update((run.pk, version_of(run)) for run in runs)


def _own(
    socket: Socket, ids: Iterable[int], rows: Mapping[int, TaskRunRecord]
) -> list[TaskRunRecord]:
    """Return those of these rows that are of the socket's user."""
    found = (rows.get(pk) for pk in ids)
    return [run for run in found if run is not None and run.run_by_id == socket.user_pk]


def _too_many_text() -> str:
    return _("No more than %(max)d runs can be followed.") % {"max": RUNS_MAX}
