"""TaskRunner: what an actor may do with tasks and runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from time import monotonic
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from celery.app.task import Task
from django.conf import settings
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import PermissionDenied
from django.db import models, router, transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from celery_admin_runner.calls import Call, prepare_call
from celery_admin_runner.dispatch import (
    Message,
    claim,
    keep_claim,
    kept_message,
    publish,
    record_failure,
)
from celery_admin_runner.encoding import from_plain, to_plain
from celery_admin_runner.exceptions import (
    ALL,
    InvalidArguments,
    NotEncodable,
    NotSendable,
    TaskNotFound,
    TaskNotRunnable,
)
from celery_admin_runner.model_keys import ObjectSource
from celery_admin_runner.models import NAME_MAX_LENGTH, Source, TaskRunRecord
from celery_admin_runner.registry import Rule, TaskInfo, get_task, get_task_info
from celery_admin_runner.signals import TaskRunSignal

if TYPE_CHECKING:
    from celery_admin_runner.querysets import AnyUser

RUN_PERMISSION = "celery_admin_runner.run_celerytask"

#: After the broker did not take a run, a runner lets it rest this long, in seconds.
BROKER_REST = 5.0

#: What may be given to ``apply_async`` with a run; the rest is the runner's own.
OPTIONS = frozenset(
    {
        "compression",
        "exchange",
        "expires",
        "headers",
        "ignore_result",
        "priority",
        "queue",
        "routing_key",
        "serializer",
        "shadow",
        "soft_time_limit",
        "time_limit",
    }
)


class TaskRunner:
    """Runs tasks for a user, or for trusted code; here permission and policy are checked, once."""

    def __init__(
        self,
        user: AnyUser | None = None,
        source: str = Source.CODE,
        *,
        objects: ObjectSource | None = None,
    ) -> None:
        """Bind the runner to who acts: ``user`` None is trusted code.

        Objects in arguments must exist, and the user must have the permission to
        view them. ``objects`` decides instead: for an admin site, whose ModelAdmins
        may hide single rows.
        """
        self.user = user
        self.objects = objects
        self.source = Source(source)
        self._broker_away_at = -BROKER_REST

    def may_run(self, info: TaskInfo) -> bool:
        """Tell whether the task is runnable, and this user may run it."""
        return info.is_runnable and (self.user is None or self._is_allowed(self.user, info.rule))

    def run(
        self,
        task_name: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        eta: datetime | None = None,
        countdown: float | None = None,
        obj: models.Model | None = None,
        label: str = "",
        reason: str = "",
        **options: Any,
    ) -> TaskRunRecord:
        """Record a run, send it, and return its row.

        ``countdown`` and a numeric ``expires`` are seconds from now. Raises
        TaskNotFound, TaskNotRunnable, PermissionDenied, InvalidArguments, and
        TypeError for an option that is not in ``OPTIONS``. A broker that does not
        take the message raises nothing: the row stays UNSENT with ``publish_error``.

        Inside ``transaction.atomic()`` the row belongs to the caller's transaction,
        and the message is sent on commit; a rollback leaves neither.
        """
        now = timezone.now()
        info = self._permitted(task_name)
        task = get_task(task_name)
        if unknown := options.keys() - OPTIONS:
            raise TypeError(f"run() got unexpected options: {', '.join(sorted(unknown))}.")
        if self.user is not None and info.rule.reason and not reason.strip():
            raise InvalidArguments({ALL: [_("This task needs a reason.")]})
        call = prepare_call(task, args, kwargs or {}, user=self.user, objects=self.objects)
        eta = _moment(eta, countdown, now)
        if call.has_secrets and eta is not None:
            raise InvalidArguments(
                {ALL: [_("A secret can't be kept until later: run this task now.")]}
            )
        run = self._record(
            info, call, now, eta=eta, obj=obj, label=label, reason=reason, **options
        )
        message = Message(
            args=call.args,
            kwargs=call.kwargs,
            argsrepr=call.argsrepr,
            kwargsrepr=call.kwargsrepr,
        )
        transaction.on_commit(lambda: self._send(task, run, message), using=_database())
        return run

    def send_again(self, run: TaskRunRecord) -> TaskRunRecord:
        """Send a run that stayed UNSENT; raises NotSendable and PermissionDenied.

        Of several callers at once one sends it. A call with a masked value can't be
        sent again: nobody but who gave the secret knows it.
        """
        try:
            task = get_task(self._permitted(run.task_name).name)
        except (TaskNotFound, TaskNotRunnable) as error:
            raise NotSendable(str(error)) from error
        if run.has_masked_arguments:
            raise NotSendable(_("A secret of this run is not stored: fill in the form again."))
        if run.expires_at is not None and run.expires_at <= timezone.now():
            raise NotSendable(_("This run has expired: run the task again."))
        if not claim(run):
            raise NotSendable(_("This run was sent, or is being sent just now."))
        transaction.on_commit(lambda: self._send(task, run, kept_message(run)), using=_database())
        return run

    def _is_allowed(self, user: AnyUser, rule: Rule) -> bool:
        """Tell whether ``user`` has the permissions and the group that running asks for."""
        if not user.is_active or not user.has_perm(RUN_PERMISSION):
            return False
        if rule.permission and not user.has_perm(rule.permission):
            return False
        is_member = not rule.groups or not self._group_names.isdisjoint(rule.groups)
        return is_member or user.is_superuser

    @cached_property
    def _group_names(self) -> frozenset[str]:
        """The names of the user's groups, asked for once."""
        if self.user is None or self.user.pk is None:
            return frozenset()
        return frozenset(self.user.groups.values_list("name", flat=True))

    def _permitted(self, task_name: str) -> TaskInfo:
        """Return the task if it can be run, and by this user."""
        info = get_task_info(task_name)
        if not info.is_runnable:
            raise TaskNotRunnable(task_name)
        if not self.may_run(info):
            raise PermissionDenied(_("You are not allowed to run %(task)s.") % {"task": task_name})
        return info

    def _record(
        self,
        info: TaskInfo,
        call: Call,
        now: datetime,
        *,
        eta: datetime | None,
        obj: models.Model | None,
        label: str,
        reason: str,
        **options: Any,
    ) -> TaskRunRecord:
        """Write the row, already claimed by us: nobody else sends it meanwhile."""
        user = self.user
        run = TaskRunRecord(
            task_id=str(uuid4()),
            task_name=info.name,
            label=label,
            args=call.stored_args,
            kwargs=call.stored_kwargs,
            options=_plain_options(options),
            queue=options.get("queue") or info.queue,
            run_by_id=None if user is None else user.pk,
            run_by_name="" if user is None else user.get_username()[:NAME_MAX_LENGTH],
            source=self.source,
            reason=reason,
            created_at=now,
            eta=eta,
            expires_at=_moment_of(options.get("expires"), now),
            dispatch_id=uuid4(),
            claimed_at=now,
        )
        if obj is not None:
            # Not ``run.obj = obj``, which would move the run to the object's database.
            kinds = ContentType.objects.db_manager(_database())
            run.content_type_id, run.object_id = kinds.get_for_model(obj).pk, obj.pk
        run.save(force_insert=True, using=_database())
        return run

    def _send(self, task: Task, run: TaskRunRecord, message: Message) -> None:
        """Send a recorded run, and tell of it.

        Of many runs sent at once only the first waits for a broker that is away.
        """
        if not keep_claim(run):
            return
        if monotonic() - self._broker_away_at < BROKER_REST:
            record_failure(run, _("The broker did not take the run before this one."))
        elif not publish(task, run, message):
            self._broker_away_at = monotonic()
        else:
            TaskRunSignal.send_robust(
                sender=type(self),
                task_name=run.task_name,
                task_id=run.task_id,
                args=from_plain(run.args),
                kwargs=from_plain(run.kwargs),
                user=self.user,
                run=run,
            )


def _database() -> str:
    """Return the alias of the database that the journal is written to."""
    return str(router.db_for_write(TaskRunRecord))


def _moment(eta: datetime | None, countdown: float | None, now: datetime) -> datetime | None:
    """Return the earliest start that ``eta`` or ``countdown`` asks for."""
    if eta is not None and countdown is not None:
        raise InvalidArguments({ALL: [_("Give an earliest start or a countdown, not both.")]})
    return _moment_of(eta if countdown is None else countdown, now)


def _moment_of(value: datetime | float | None, now: datetime) -> datetime | None:
    """Return the moment that a datetime, or a number of seconds from now, means."""
    if value is None:
        return None
    try:
        if isinstance(value, datetime):
            return _stored_moment(value)
        return now + timedelta(seconds=value)
    except (OverflowError, ValueError) as error:
        raise InvalidArguments({ALL: [_("That is too far from now.")]}) from error


def _stored_moment(moment: datetime) -> datetime:
    """Return a moment as the database takes it: aware, but naive on a site without USE_TZ."""
    if timezone.is_naive(moment):
        if settings.USE_TZ:
            raise InvalidArguments({ALL: [_("A moment needs a time zone.")]})
        return moment
    if settings.USE_TZ:
        return moment
    return timezone.make_naive(moment, timezone.get_default_timezone())


def _plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options as JSON data; raises InvalidArguments for what is none."""
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return dict(to_plain(given))
    except NotEncodable as error:
        raise InvalidArguments({ALL: [str(error)]}) from error
