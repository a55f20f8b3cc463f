"""Every question about runs, and ``transition``, which alone writes ``state``.

But for ``hand_over``, and for what workers report: that is the same statement, written by
hand (``statements.move``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Self, cast
from uuid import UUID

from django.contrib.contenttypes.models import ContentType
from django.db import models
from django.db.models import Case, Count, F, Min, Q, Value, When
from django.db.models.functions import Coalesce
from django.utils import timezone

from celery_admin_runner.alternatives import AlternativesQuerySet
from celery_admin_runner.changes import Owner, told
from celery_admin_runner.conf import settings
from celery_admin_runner.states import FINISHED, UNFINISHED, State

if TYPE_CHECKING:
    from django.contrib.auth.models import AbstractUser, AnonymousUser

    from celery_admin_runner.models import Lease, TaskRunRecord

    AnyUser = AbstractUser | AnonymousUser

#: Of so many runs at once it is asked what they depend on.
STEP_MAX = 500

#: After how long without a word an unfinished run counts as stale, by state; None: never.
#: The setting STALE_AFTER changes single ones. A worker tells at most every 30 seconds that a
#: run goes on; a queue can be long; what is kept waits for its moment, or for other runs.
STALE_AFTER: Mapping[State, timedelta | None] = {
    State.UNSENT: timedelta(minutes=5),
    State.SCHEDULED: None,
    State.WAITING: None,
    State.PENDING: timedelta(days=1),
    State.STARTED: timedelta(minutes=2),
    State.RETRY: timedelta(days=1),
    State.CANCELLING: timedelta(minutes=10),
}
#: Who claims a run that is due sends it within seconds: longer ago than this, and it died.
STALE_SCHEDULED_AFTER = timedelta(minutes=5)
#: A finished run is shown to its user for so many seconds after it was seen.
SECONDS_SINCE_SEEN = 30.0
#: The moments at which something was heard of a run. ``eta`` is one too, for before it
#: nothing is to be heard.
_HEARD_AT = (
    "created_at",
    "claimed_at",
    "published_at",
    "started_at",
    "heartbeat_at",
    "cancel_requested_at",
    "eta",
)


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """The unfinished runs in one state and one queue."""

    state: State
    queue: str
    runs: int
    #: When the oldest of them was made.
    oldest_at: datetime


def stale_after() -> dict[State, timedelta | None]:
    """Return the threshold of every unfinished state: the defaults, changed by STALE_AFTER.

    What the setting names and does not exist counts for nothing (a check says so).
    """
    chosen = settings.STALE_AFTER
    return {state: chosen.get(state.value, default) for state, default in STALE_AFTER.items()}


def heard_of_at(run: TaskRunRecord) -> datetime:
    """Return when something was last heard of a run; its ``eta``, if that is later."""
    moments: list[datetime | None] = [getattr(run, name) for name in _HEARD_AT]
    return max(moment for moment in moments if moment is not None)


def is_stale(run: TaskRunRecord, now: datetime) -> bool:
    """Tell whether a run that was read from the database is one of ``stale(now)``."""
    threshold = stale_after().get(State(run.state))
    return threshold is not None and now - heard_of_at(run) > threshold


def is_stale_scheduled(run: TaskRunRecord, now: datetime) -> bool:
    """Tell whether a run that was read from the database is one of ``stale_scheduled(now)``."""
    is_claimed = run.state == State.SCHEDULED and run.claimed_at is not None
    return is_claimed and now - run.claimed_at > STALE_SCHEDULED_AFTER  # type: ignore[operator]


class TaskRunRecordQuerySet(AlternativesQuerySet["TaskRunRecord"]):
    """Runs, and how they are asked for and moved."""

    def transition(self, *, sources: Iterable[State], target: State, **fields: Any) -> int:
        """Move the runs in this set that are in one of ``sources`` to ``target``.

        One guarded UPDATE that also writes ``fields``; returns how many rows it
        moved. Of any number of concurrent callers exactly one gets 1 for a row:
        who gets 1 acts, who gets 0 stops. A finished run gives up its
        ``active_key``, so that a unique task can run again, and is due no more. Nobody
        has seen yet what became of it. Sends ``run_changed``.
        """
        sources = list(sources)
        fields = {"seen_at": None, **fields}
        if target in FINISHED:
            fields = {"active_key": None, "due_at": None, **fields}
        return told(
            lambda: self,
            sender=self._sender,
            sources=sources,
            target=target,
            update=lambda pks: self._among(pks).in_state(sources).update(state=target, **fields),
            owners=lambda: self._owners(sources),
        )

    def hand_over(self, now: datetime) -> int:
        """Write when these runs were sent, and move those that nobody has begun yet to PENDING.

        One UPDATE, like ``transition``, that leaves every other state as it is: a worker may
        have begun, or somebody have asked it to stop, before its publisher writes this.
        """
        unsent = [State.UNSENT, State.SCHEDULED]

        def update(pks: Collection[int] | None) -> int:
            among = Q() if pks is None else Q(pk__in=pks)
            is_unsent = When(among, state__in=unsent, then=Value(State.PENDING.value))
            return self.update(
                state=Case(is_unsent, default=F("state")),
                due_at=None,
                published_at=Coalesce("published_at", Value(now, models.DateTimeField())),
            )

        return told(
            lambda: self,
            sender=self._sender,
            sources=unsent,
            target=State.PENDING,
            update=update,
            owners=lambda: self._owners(unsent),
        )

    def _owners(self, sources: Iterable[State]) -> Iterable[Owner]:
        """Return whose the runs in one of ``sources`` are, from where they are written."""
        owned = self.using(self.select_for_update().db).in_state(sources)
        return owned.filter(run_by__isnull=False).order_by().values_list("run_by_id", "pk")

    @property
    def _sender(self) -> type[TaskRunRecord]:
        """The model that ``run_changed`` is sent by, also where this one is a proxy of it."""
        return cast("type[TaskRunRecord]", self.model._meta.concrete_model)

    def _among(self, pks: Collection[int] | None) -> Self:
        """Those of these runs with one of these primary keys; None: all."""
        return self if pks is None else self.filter(pk__in=pks)

    def in_state(self, states: Iterable[State]) -> Self:
        """Runs in one of ``states``, written so that no index serves it.

        For a row that its key names MariaDB 10.11 would take the index on the state, and
        lock that before the row; whoever moves the state locks them the other way round,
        and one of the two ends as a deadlock.
        """
        return self.alias(_state=Coalesce("state", Value(""))).filter(_state__in=list(states))

    def advance(self, *, current: int, total: int | None, message: str) -> int:
        """Write the progress of unfinished runs that are not further already."""
        runs = self.in_state(UNFINISHED).filter(progress_current__lte=current)
        return runs.update(
            progress_current=current, progress_total=total, progress_message=message
        )

    def dependencies_of(self, pk: int) -> list[int]:
        """Return the keys of all that a run depends on, also through others, each once.

        Before each run those that it depends on itself, so ``pk``, the last, comes after all.
        One query for each step of the longest way (and for each 500 runs on it).
        """
        links = self.model.depends_on.through._base_manager.using(self.db)
        awaited: dict[int, list[int]] = {}
        level = [pk]
        while level:
            awaited |= {key: [] for key in level}
            for start in range(0, len(level), STEP_MAX):
                step = links.filter(from_taskrunrecord__in=level[start : start + STEP_MAX])
                for key, other in step.values_list("from_taskrunrecord_id", "to_taskrunrecord_id"):
                    awaited[key].append(other)
            level = sorted({other for key in level for other in awaited[key]} - awaited.keys())
        order: list[int] = []
        found: set[int] = set()
        stack = [(pk, False)]
        while stack:
            key, is_next = stack.pop()
            if is_next:
                order.append(key)
            elif key not in found:
                found.add(key)
                stack.append((key, True))
                stack += [(other, False) for other in sorted(awaited[key], reverse=True)]
        return order

    def finished(self) -> Self:
        """Runs that have ended."""
        return self.filter(state__in=list(FINISHED))

    def unfinished(self) -> Self:
        """Runs that have not ended yet."""
        return self.filter(state__in=list(UNFINISHED))

    def visible_to(self, user: AnyUser) -> Self:
        """Runs that ``user`` may see: all with ``view_taskrunrecord``, else his or her own."""
        if user.is_active and user.has_perm("celery_admin_runner.view_taskrunrecord"):
            return self
        return self.for_user(user)

    def for_user(self, user: AnyUser) -> Self:
        """Runs of one user, and of nobody else, whatever he or she may see; anonymous: none."""
        return self.filter(run_by=user.pk) if user.pk is not None else self.none()

    def only_of(self, user: AnyUser) -> Self:
        """The same as ``for_user``, written so that no index serves it: see ``in_state``.

        Here it would be against who deletes a run.
        """
        if user.pk is None:
            return self.none()
        return self.alias(_run_by=Coalesce("run_by", "run_by")).filter(_run_by=user.pk)

    def for_display(
        self,
        user: AnyUser,
        seconds_since_seen: float = SECONDS_SINCE_SEEN,
        *,
        now: datetime | None = None,
    ) -> Self:
        """Runs to show to their user: unfinished, finished and unseen, or seen just now.

        What was seen is shown for ``seconds_since_seen`` more. Of the runs that a run of the
        user started in turn only those that have a label: the others are its own affair. The
        newest first. One query, which the index on ``seen_at`` serves, for what is unfinished
        was never seen; on SQLite, which knows not how few these are, that of the user's runs.
        """
        return self.for_user(user).displayed(seconds_since_seen, now=now)

    def displayed(
        self, seconds_since_seen: float = SECONDS_SINCE_SEEN, *, now: datetime | None = None
    ) -> Self:
        """Runs that are shown to their users, whoever these are: see ``for_display``.

        No index is to serve their order: PostgreSQL would look for the newest 200 of a user who
        has many, but has seen them all, through the whole journal.
        """
        now = timezone.now() if now is None else now
        is_unseen = Q(seen_at=None) | Q(seen_at__gte=now - timedelta(seconds=seconds_since_seen))
        is_asked_for = Q(parent_id="") | ~Q(label="")
        return self.filter(is_unseen, is_asked_for).order_by((F("pk") + 0).desc())

    def mark_seen(self, now: datetime) -> int:
        """Write that their user saw how these runs ended; returns for how many that is news.

        One guarded UPDATE: what is unfinished, or was seen before, is left alone. As by
        ``in_state``, no index is to serve that.
        """
        finished = self.in_state(FINISHED).alias(_seen_at=Coalesce("seen_at", "seen_at"))
        return finished.filter(_seen_at=None).update(seen_at=now)

    def for_object(self, obj: models.Model) -> Self:
        """Runs that are about a model instance, in whichever database that is.

        Those of its proxies too. One query, which the index on the object serves. An object
        that is not saved has none.
        """
        if obj.pk is None:
            return self.none()
        kind = ContentType.objects.db_manager(self.db).get_for_model(obj)
        return self.filter(content_type=kind.pk, object_id=str(obj.pk))

    def of_task(self, task_name: str) -> Self:
        """Runs of one task."""
        return self.filter(task_name=task_name)

    def older_than(self, moment: datetime) -> Self:
        """Finished runs that ended before ``moment``."""
        return self.finished().filter(finished_at__lt=moment)

    def stale(
        self,
        now: datetime | None = None,
        *,
        older_than: timedelta | None = None,
        states: Iterable[State] | None = None,
    ) -> Self:
        """Unfinished runs of which nobody has heard for longer than is usual in their state.

        ``older_than`` takes the place of every threshold, ``states`` are those that are
        looked at; by default all that have a threshold. A run whose ``eta`` is still to come
        is not stale. One query, whose first condition is the state. Raises ValueError for a
        finished state.
        """
        now = timezone.now() if now is None else now
        parts = [
            Q(state=state) & _silent_since(cutoff)
            for state, cutoff in _cutoffs(now, older_than, states)
        ]
        if not parts:
            return self.none()
        return self.filter(Q(*parts, _connector=Q.OR))

    def stale_scheduled(
        self, now: datetime | None = None, *, older_than: timedelta = STALE_SCHEDULED_AFTER
    ) -> Self:
        """Scheduled runs that a dispatcher took to send them, longer ago than ``older_than``.

        It died before it wrote that they were sent, and nobody knows whether they were: they
        are not sent again by themselves. One query, which the index on ``due_at`` serves.
        """
        now = timezone.now() if now is None else now
        # Not even the first run is as old as an age that reaches back before 1970.
        if older_than.total_seconds() >= now.timestamp():
            return self.none()
        cutoff = now - older_than
        # What was claimed was due.
        return self.filter(state=State.SCHEDULED, due_at__lt=cutoff, claimed_at__lt=cutoff)

    def lose(self, run: TaskRunRecord, *, now: datetime) -> int:
        """Move a run that was read as stale to LOST, unless it was heard of since.

        One guarded UPDATE; returns how many rows it moved. A later report corrects it.
        """
        heard_at = heard_of_at(run)
        silent = self.filter(_silent_since(heard_at + timedelta(microseconds=1)), pk=run.pk)
        return silent.transition(
            sources=[State(run.state)],
            target=State.LOST,
            finished_at=now,
            exception=f"Lost: nobody has heard of it since {heard_at.isoformat(' ', 'seconds')}.",
        )

    def unfinished_ages(self) -> list[Unfinished]:
        """Return how many runs are unfinished, and since when, by state and queue."""
        groups = self.unfinished().order_by("state", "queue").values_list("state", "queue")
        return [
            Unfinished(state=State(state), queue=queue, runs=runs, oldest_at=oldest_at)
            for state, queue, runs, oldest_at in groups.annotate(Count("pk"), Min("created_at"))
        ]


def _cutoffs(
    now: datetime, older_than: timedelta | None, states: Iterable[State] | None
) -> Iterator[tuple[State, datetime]]:
    """Yield the states that are looked at, and since when a run in them must be silent."""
    looked_at = None if states is None else frozenset(states)
    if looked_at is not None and (finished := FINISHED & looked_at):
        raise ValueError(f"{', '.join(sorted(finished))}: a finished run is never stale.")
    for state, threshold in stale_after().items():
        is_looked_at = threshold is not None if looked_at is None else state in looked_at
        age = threshold if older_than is None else older_than
        # Not even the first run is as old as an age that reaches back before 1970.
        if is_looked_at and age is not None and age.total_seconds() < now.timestamp():
            yield state, now - age


def _silent_since(cutoff: datetime) -> Q:
    """The latest of several moments, each of which may be missing, was before ``cutoff``."""
    conditions = Q(created_at__lt=cutoff)
    for name in _HEARD_AT[1:]:
        conditions &= Q(**{f"{name}__lt": cutoff}) | Q(**{name: None})
    return conditions


class LeaseQuerySet(models.QuerySet["Lease"]):
    """Leases, and how one is taken."""

    def take(self, name: str, *, holder: UUID, now: datetime, until: datetime) -> bool:
        """Take the lease ``name`` until ``until`` if nobody else holds it at ``now``.

        One guarded UPDATE after the row was made sure to exist; of any number of concurrent
        callers exactly one gets True. It begins a new term: the fencing counter goes up.
        """
        self.bulk_create([self.model(name=name, expires_at=now)], ignore_conflicts=True)
        free = self.filter(Q(expires_at__lte=now) | Q(holder=holder), name=name)
        return bool(free.update(holder=holder, expires_at=until, counter=F("counter") + 1))

    def in_term(self, name: str, *, holder: UUID, counter: int) -> Self:
        """The lease ``name`` as long as nobody has taken it since, though it may have run out."""
        return self.filter(name=name, holder=holder, counter=counter)

    def renew(self, until: datetime) -> bool:
        """Hold these leases until ``until``, never shorter than before; whether there was one.

        A statement that the database executes late, when a later one is through, does nothing.
        """
        return bool(self.filter(expires_at__lte=until).update(expires_at=until))

    def keep(self, data: Any) -> bool:
        """Keep in these leases what their next holder is to know; whether there was one."""
        return bool(self.update(data=data))

    def give_back(self, now: datetime) -> bool:
        """Let these leases end at ``now``; whether there was one."""
        return bool(self.update(holder=None, expires_at=now))
