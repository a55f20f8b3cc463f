"""TaskRunner: what an actor may do with tasks and runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from celery.app.task import Task
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.db import models, router, transaction
from django.utils import timezone
from django.utils.translation import gettext as _
from kombu.messaging import Producer

from celery_admin_runner import control, dependencies, ignoring, insertion, unique
from celery_admin_runner.base import DjangoTask, Invocation
from celery_admin_runner.batches import leave_unsent, send_all
from celery_admin_runner.binding import bind
from celery_admin_runner.calls import (
    Call,
    InvalidCall,
    InvalidCalls,
    prepare_call,
    prepare_calls,
    signature_of,
)
from celery_admin_runner.cancelling import AWAITED, CLAIMABLE, ask_to_stop, check_can_kill
from celery_admin_runner.contexts import check_label, check_saved, check_user
from celery_admin_runner.control import Answer, Untold
from celery_admin_runner.deadlocks import written_together
from celery_admin_runner.dispatch import (
    CLAIM_LASTS,
    Handover,
    claim,
    claim_stale,
    keep_claim,
    post,
    publish,
    record_failure,
)
from celery_admin_runner.encoding import from_plain, is_altered
from celery_admin_runner.exceptions import (
    ALL,
    AlreadyActive,
    InvalidArguments,
    NotMovable,
    NotRetryable,
    NotSendable,
    TaskNotFound,
    TaskNotRunnable,
)
from celery_admin_runner.messages import Message, kept_message
from celery_admin_runner.model_keys import ObjectSource
from celery_admin_runner.models import NAME_MAX_LENGTH, Source, TaskRunRecord
from celery_admin_runner.object_tasks import ModelTask, start_needed
from celery_admin_runner.options import (
    OPTIONS,
    earliest_start,
    options_again,
    plain_options,
)
from celery_admin_runner.orders import CallGiven, CheckedCall, Order, pairs_of, siblings
from celery_admin_runner.periodic import PeriodicTask, read_periodic_task
from celery_admin_runner.publishing import lineage
from celery_admin_runner.querysets import STEP_MAX
from celery_admin_runner.redaction import has_mask
from celery_admin_runner.registry import (
    TaskInfo,
    find_task,
    find_task_info,
    get_task_info,
)
from celery_admin_runner.rights import RUN_PERMISSION, Rights
from celery_admin_runner.sameness import Sameness
from celery_admin_runner.scheduling import move, obstacle
from celery_admin_runner.signals import TaskRunSignal
from celery_admin_runner.states import KEPT, State

if TYPE_CHECKING:
    from celery_admin_runner.querysets import AnyUser

__all__ = ("OPTIONS", "RUN_PERMISSION", "Cancellation", "TaskRunner")

#: After the broker did not take a run, a runner lets it rest this long, in seconds.
BROKER_REST = 5.0


@dataclass(frozen=True, kw_only=True)
class Cancellation:
    """What came of asking a run to stop."""

    #: The run's state now: CANCELLING until a worker confirms that it stopped.
    state: State
    #: What the workers answered; () where none had to be asked, or waits for the commit.
    answers: tuple[Answer, ...] = ()


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
        may hide single rows. Raises TypeError for what is no user.
        """
        check_user(user)
        self.user = user
        self.objects = objects
        self.source = Source(source)
        self._rights = Rights(user)
        self._broker_away_at = -BROKER_REST

    def may_run(self, info: TaskInfo) -> bool:
        """Tell whether the task is runnable, and this user may run it."""
        return self._rights.may_run(info)

    def may_cancel(self, run: TaskRunRecord) -> bool:
        """Tell whether the run has not ended, and this user may cancel it."""
        return not run.is_finished and self._rights.may_cancel(run)

    def may_run_task_of(self, run: TaskRunRecord) -> bool:
        """Tell whether this user may run the task of the run, as the same run once more."""
        try:
            return self.may_run(_task_info_of(run))
        except TaskNotFound:
            return False

    def may_retry(self, run: TaskRunRecord) -> bool:
        """Tell whether the run has ended, and this user may run it again.

        A run with a secret can be run again only by who gives the secret anew, in the form:
        see ``run.can_be_repeated``.
        """
        may_retry = run.is_finished and self._rights.may_retry(run)
        return may_retry and self._may_run_registered(run.task_name)

    def may_move(self, run: TaskRunRecord) -> bool:
        """Tell whether the run is kept until later, and this user may say until when."""
        may_move = not obstacle(run) and self._rights.may_see(run)
        return may_move and self._may_run_registered(run.task_name)

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
        depends_on: Iterable[TaskRunRecord] = (),
        **options: Any,
    ) -> TaskRunRecord:
        """Record a run, send it, and return its row.

        ``countdown`` and a numeric ``expires`` are seconds from now. A run that may not start
        yet is kept in the database, SCHEDULED until its ``eta``, or WAITING until the runs
        that it ``depends_on`` have succeeded, and then sent by a dispatcher. Raises
        TaskNotFound, TaskNotRunnable, PermissionDenied, InvalidArguments (of which
        AlreadyActive is one, for a unique task), TypeError for an option that is not in
        ``OPTIONS``, and ValueError for an ``obj`` that is not saved and for a ``label`` of over
        255 characters. A call that is ignored returns its row, IGNORED. A broker that does not
        take the message raises nothing: the row stays UNSENT with ``publish_error``.

        Inside ``transaction.atomic()`` the row belongs to the caller's transaction,
        and the message is sent on commit; a rollback leaves neither.
        """
        now = timezone.now()
        check_saved(obj)
        check_label(label)
        return self._start(
            self._permitted(task_name),
            args,
            kwargs or {},
            now=now,
            options=options,
            eta=earliest_start(eta, countdown, now),
            depends_on=self._awaited(depends_on),
            label=label,
            reason=reason,
            source=self.source,
            **_about(obj),
        )

    def run_many(
        self,
        task_name: str,
        calls: Iterable[CallGiven],
        *,
        eta: datetime | None = None,
        countdown: float | None = None,
        obj: models.Model | None = None,
        label: str = "",
        reason: str = "",
        depends_on: Iterable[TaskRunRecord] = (),
        **options: Any,
    ) -> list[TaskRunRecord]:
        """Record many runs of one task, send them, and return their rows in the same order.

        Each call is ``(args, kwargs)``, or only the named arguments, a mapping. Everything else
        is as for ``run``, and for all of them. All are valid, or nothing is recorded:
        InvalidArguments names each call that does not fit by its place from 0 on
        (``{"3.amount": [...]}``), and AlreadyActive the one whose unique task is active, or
        stands twice among them. The rows are written in bulk, in one transaction, and sent by
        one connection; those of a task that is unique, or ignored for a while, one by one. At the
        first sign that the broker is away what is left stays UNSENT with ``publish_error``,
        without being tried; what was sent is PENDING.
        """
        now = timezone.now()
        check_saved(obj)
        check_label(label)
        order = self._order(
            self._permitted(task_name),
            now=now,
            options=options,
            eta=earliest_start(eta, countdown, now),
            depends_on=self._awaited(depends_on),
            fields={"label": label, "reason": reason, "source": self.source, **_about(obj)},
        )
        checked = self._checked(order, calls)
        return self._begin_many(order, checked) if checked else []

    def _checked(self, order: Order, calls: Iterable[CallGiven]) -> list[CheckedCall]:
        """Return many calls, checked; raises InvalidCalls."""
        checked: list[CheckedCall] = []
        errors: dict[int, InvalidArguments] = {}
        prepared = prepare_calls(
            order.task, pairs_of(calls), user=self.user, objects=self.objects
        )
        for number, call in enumerate(prepared):
            if isinstance(call, InvalidCall):
                errors[number] = call
                continue
            try:
                order.refuse_kept_secrets(call)
                checked.append((call, *siblings(order, call, using=_database())))
            except InvalidArguments as error:
                errors[number] = error
        if errors:
            raise InvalidCalls(errors)
        return checked

    def retry(
        self,
        run: TaskRunRecord,
        *,
        reason: str = "",
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        eta: datetime | None = None,
        countdown: float | None = None,
        depends_on: Iterable[TaskRunRecord] = (),
        options: Mapping[str, Any] | None = None,
    ) -> TaskRunRecord:
        """Run again what has ended: record a new run with ``retry_of``, send it, return it.

        It has the same arguments, options, label and object, and starts at once, whatever the
        old one waited for; what is given here takes their place, ``options`` one by one
        (None: without it). Raises
        NotRetryable, also where something that is not given here is not stored as it was
        sent, PermissionDenied, and InvalidArguments if the arguments do not fit the task as
        it is today. Sent as by ``run``.
        """
        now = timezone.now()
        if not self._rights.may_retry(run):
            raise PermissionDenied(_("You are not allowed to run this again."))
        if not run.is_finished:
            text = _("This run is still in the state “%(state)s”: cancel it, or use the form.")
            raise NotRetryable(text % {"state": State(run.state).label})
        try:
            info = self._permitted(run.task_name)
        except (TaskNotFound, TaskNotRunnable) as error:
            raise NotRetryable(str(error)) from error
        changed = options or {}
        if set(run.lost_options) - changed.keys():
            raise NotRetryable(lost_text(run))
        return self._start(
            info,
            _kept(run.args, run.args) if args is None else args,
            _kept(run.kwargs, run.kwargs.values()) if kwargs is None else kwargs,
            now=now,
            options={**options_again(run, now), **changed},
            eta=earliest_start(eta, countdown, now),
            depends_on=self._awaited(depends_on),
            label=run.label,
            reason=reason,
            source=Source.RETRY,
            retry_of_id=run.pk,
            content_type_id=run.content_type_id,
            object_id=run.object_id,
        )

    def reschedule(
        self,
        run: TaskRunRecord,
        *,
        eta: datetime | None = None,
        countdown: float | None = None,
    ) -> TaskRunRecord:
        """Give a run that is kept another earliest start; raises NotMovable, PermissionDenied.

        What has passed is now; without a moment it has none any more. Then it is sent at once,
        but a WAITING run only when all have succeeded that it waits for. NotMovable where a
        dispatcher was faster, where it is due already and should come sooner, and where it
        would expire before. Of several callers at once the last one counts.
        """
        now = timezone.now()
        self._check_may_move(run)
        move(run, earliest_start(eta, countdown, now), now=now, using=_database())
        return run

    def add_dependencies(
        self, run: TaskRunRecord, depends_on: Iterable[TaskRunRecord]
    ) -> TaskRunRecord:
        """Let a run that waits wait for more runs; return it as it is then.

        Raises CircularDependency, NotMovable if it does not wait any more, InvalidArguments if
        what it is to wait for is gone, and PermissionDenied. As with ``run``, a dependency that
        has ended counts at once, on commit.
        """
        now = timezone.now()
        self._check_may_move(run)
        dependencies.await_more(run, self._awaited(depends_on), now=now)
        dependencies.settle_on_commit([run])
        run.refresh_from_db(using=_database())
        return run

    def run_periodic(self, periodic_task: PeriodicTask, *, reason: str = "") -> TaskRunRecord:
        """Run a periodic task of django-celery-beat now, as beat would send it; return its run.

        Its queue, exchange, routing key, priority, expires and headers are kept; whether it is
        enabled does not matter. Its schedule stays as it is: this counts as no run of beat's.
        A task that only workers know is sent by its name, if RUNNABLE_TASKS allows the name.
        Raises what ``run`` raises but TaskNotFound; InvalidArguments, by the field of the
        periodic task, also for what is no JSON there.
        """
        now = timezone.now()
        call = read_periodic_task(periodic_task, now)
        return self._start(
            self._check_may_run(find_task_info(call.task_name)),
            call.args,
            call.kwargs,
            now=now,
            options=call.options,
            eta=None,
            reason=reason,
            source=Source.PERIODIC,
            periodic_task_name=call.name,
        )

    def cancel(
        self, run: TaskRunRecord, *, terminate: bool = False, kill: bool = False
    ) -> Cancellation:
        """Ask a run to stop; raises NotCancellable and PermissionDenied.

        What no worker has is REVOKED at once, and so is a DjangoTask that none runs just now.
        Everything else is CANCELLING until Celery confirms that it has stopped: a task that
        runs may look for it (``current_run().cancel_requested``). ``terminate`` ends the
        process that runs it by SIGTERM; ``kill``, as a second step, by SIGKILL.

        Inside ``transaction.atomic()`` the workers are told on commit. A broker that is away
        raises nothing: an answer says so, and the run can be cancelled again.
        """
        if not self._rights.may_cancel(run):
            raise PermissionDenied(_("You are not allowed to cancel this run."))
        using = _database()
        if kill:
            run.refresh_from_db(using=using)
            check_can_kill(run)
        by = None if self.user is None else self.user.pk
        was = ask_to_stop(run, by=by, now=timezone.now(), using=using)
        answers: list[Answer] = []

        def tell() -> None:
            answers.extend(self._tell_workers(run, was, terminate=terminate, kill=kill))

        transaction.on_commit(tell, using=using)
        return Cancellation(state=State(run.state), answers=tuple(answers))

    def terminate_many(self, runs: Iterable[TaskRunRecord]) -> list[Answer]:
        """End those of these runs that ``cancel`` made CANCELLING, by one message to all workers.

        Their states are read anew. Inside ``transaction.atomic()`` that, and the message, wait
        for the commit, and so do the answers.
        """
        asked = {run.pk: run for run in runs if run.state == State.CANCELLING}
        if not all(map(self._rights.may_cancel, asked.values())):
            raise PermissionDenied(_("You are not allowed to cancel this run."))
        answers: list[Answer] = []
        transaction.on_commit(lambda: answers.extend(self._terminate(asked)), using=_database())
        return answers

    def _terminate(self, asked: Mapping[int, TaskRunRecord]) -> list[Answer]:
        """End those of these runs that are still CANCELLING."""
        _read_states(asked)
        unfinished = [run for run in asked.values() if run.state == State.CANCELLING]
        if not unfinished:
            return []
        if self._is_broker_away():
            return [Untold(_("The broker was away just before.")).answer]
        workers = {run.worker for run in unfinished if run.worker}
        try:
            answers = control.terminate_all([run.task_id for run in unfinished], workers=workers)
        except Untold as error:
            self._broker_away_at = monotonic()
            return [error.answer]
        _read_states(asked)
        return answers

    def send_again(self, run: TaskRunRecord) -> TaskRunRecord:
        """Send a run that stayed UNSENT, or a stale scheduled one.

        Of several callers at once one sends it. Where ``run.may_have_been_sent`` it may run
        twice: so only a person decides that. Raises as ``check_can_send_again`` does.
        """
        now = timezone.now()
        task, may_be_out = self._sendable(run, now), run.may_have_been_sent
        if not self._claim_again(task, run, now):
            raise NotSendable(_unclaimed_text(run))

        def send() -> None:
            self._send(task, run, kept_message(run), may_be_out=may_be_out)

        transaction.on_commit(send, using=_database())
        return run

    def _claim_again(self, task: Task, run: TaskRunRecord, now: datetime) -> bool:
        """Claim a run that is to be sent again, and its key with it; raises NotSendable."""
        limit = _limit_again(task, run)
        if limit is None:
            return claim(run) or claim_stale(run, now)
        key = run.unique_key

        def claim_with_key() -> bool:
            return claim(run, active_key=key) or claim_stale(run, now, active_key=key)

        try:
            return unique.take(
                key, claim_with_key, limit=limit, now=now, using=_database(), task_id=run.task_id
            )
        except unique.KeyTaken as error:
            raise NotSendable(_taken_text()) from error

    def mark_seen(self, ids: Iterable[int]) -> int:
        """Write that this user saw how these runs ended; returns for how many that is news.

        Only finished runs, and only the user's own, whatever else he or she may see; trusted
        code marks anybody's. One guarded UPDATE for each 500.
        """
        now, keys = timezone.now(), sorted(set(ids))
        runs = TaskRunRecord.objects.using(_database())
        own = runs if self.user is None else runs.only_of(self.user)
        return sum(
            own.filter(pk__in=keys[start : start + STEP_MAX]).mark_seen(now)
            for start in range(0, len(keys), STEP_MAX)
        )

    def check_can_send_again(self, run: TaskRunRecord) -> None:
        """Raise NotSendable or PermissionDenied if ``send_again`` would for a run read just now.

        A call with a masked value can't be sent again: nobody but who gave the secret knows it.
        """
        now = timezone.now()
        task = self._sendable(run, now)
        is_left = run.claimed_at is None or now - run.claimed_at > CLAIM_LASTS
        is_unsent = run.state == State.UNSENT and is_left
        if not is_unsent and not run.is_stale_scheduled(now):
            raise NotSendable(_unclaimed_text(run))
        limit = _limit_again(task, run)
        if limit is not None and unique.is_taken(run, limit, now, _database()):
            raise NotSendable(_taken_text())

    def _sendable(self, run: TaskRunRecord, now: datetime) -> Task:
        """Return the task of a run that this user may send again, whatever its state is."""
        try:
            task = find_task(self._check_may_run(_task_info_of(run)).name)
        except (TaskNotFound, TaskNotRunnable) as error:
            raise NotSendable(str(error)) from error
        if not run.can_be_repeated:
            raise NotSendable(lost_text(run))
        bound = bind(signature_of(task), from_plain(run.args), from_plain(run.kwargs))
        if bound.problems:
            text = _(
                "Its arguments do not fit the task any more; use “Edit and run again”. "
                "%(problems)s"
            )
            raise NotSendable(text % {"problems": "; ".join(InvalidCall(bound.problems).lines)})
        if run.expires_at is not None and run.expires_at <= now:
            raise NotSendable(_("This run has expired: run the task again."))
        return task

    def _awaited(self, depends_on: Iterable[TaskRunRecord]) -> list[TaskRunRecord]:
        """Return the runs to wait for, each once; raises PermissionDenied for what is hidden."""
        runs = dependencies.awaited(depends_on)
        if self.user is not None and runs:
            visible = TaskRunRecord.objects.using(_database()).visible_to(self.user)
            if visible.filter(pk__in=[run.pk for run in runs]).count() < len(runs):
                raise PermissionDenied(_("You are not allowed to see what this waits for."))
        return runs

    def _check_may_move(self, run: TaskRunRecord) -> None:
        """Raise PermissionDenied or NotMovable if this user may not say when a run starts."""
        if not self._rights.may_see(run):
            raise PermissionDenied(_("You are not allowed to see this run."))
        try:
            self._permitted(run.task_name)
        except (TaskNotFound, TaskNotRunnable) as error:
            raise NotMovable(str(error)) from error

    def _may_run_registered(self, task_name: str) -> bool:
        """Tell whether this user may run a task that is registered here."""
        try:
            return self.may_run(get_task_info(task_name))
        except TaskNotFound:
            return False

    def _permitted(self, task_name: str) -> TaskInfo:
        """Return the task if it can be run, and by this user."""
        return self._check_may_run(get_task_info(task_name))

    def _check_may_run(self, info: TaskInfo) -> TaskInfo:
        """Return the task; raises TaskNotRunnable and PermissionDenied."""
        if not info.is_runnable:
            raise TaskNotRunnable(info.name)
        if not self.may_run(info):
            raise PermissionDenied(_("You are not allowed to run %(task)s.") % {"task": info.name})
        return info

    def _start(
        self,
        info: TaskInfo,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        now: datetime,
        options: Mapping[str, Any],
        eta: datetime | None,
        depends_on: Sequence[TaskRunRecord] = (),
        **fields: Any,
    ) -> TaskRunRecord:
        """Check a call, record it with these fields of its row, and send it on commit.

        What may not start yet is kept instead, for a dispatcher.
        """
        order = self._order(
            info, now=now, options=options, eta=eta, depends_on=depends_on, fields=fields
        )
        call = prepare_call(order.task, args, kwargs, user=self.user, objects=self.objects)
        return self._begin(order, call, *siblings(order, call, using=_database()))

    def _order(
        self,
        info: TaskInfo,
        *,
        now: datetime,
        options: Mapping[str, Any],
        eta: datetime | None,
        depends_on: Sequence[TaskRunRecord],
        fields: Mapping[str, Any],
    ) -> Order:
        """Return what is asked for but for the arguments; raises InvalidArguments, TypeError."""
        plain = plain_options(options)
        if self.user is not None and info.rule.reason and not fields["reason"].strip():
            raise InvalidArguments({ALL: [_("This task needs a reason.")]})
        user, inherited = self.user, lineage()
        name = inherited.run_by_name if user is None else user.get_username()[:NAME_MAX_LENGTH]
        origin = {
            "parent_id": inherited.parent_id,
            "root_id": inherited.root_id,
            "run_by_id": inherited.run_by_id if user is None else user.pk,
            "run_by_name": name,
        }
        return Order(
            info=info,
            task=find_task(info.name),
            now=now,
            options=options,
            plain=plain,
            eta=eta,
            depends_on=depends_on,
            fields={**origin, **fields},
        )

    def _begin(
        self, order: Order, call: Call, same: Sameness, success: TaskRunRecord | None
    ) -> TaskRunRecord:
        """Record a call that was checked, and what it needs, and send it on commit.

        ``success``: of the run since which it is ignored, if it is.
        """
        task = order.task
        if not isinstance(task, ModelTask):
            return self._enter(order, call, same, success)
        obj = task.object_in(call.args, call.kwargs)
        about = replace(order, fields={**order.fields, **_about(obj)})
        if success is not None or not task.needs:
            return self._enter(about, call, same, success)

        def write() -> TaskRunRecord:
            needed = self._start_needed(task, obj, order)
            waiting = replace(about, depends_on=[*order.depends_on, *needed])
            return self._enter(waiting, call, same, success)

        return written_together(write, using=_database())

    def _start_needed(
        self, task: ModelTask, obj: models.Model, order: Order
    ) -> list[TaskRunRecord]:
        """Start what a task on a method needs to have run before; return what it waits for.

        This user must be allowed to run it.
        """

        def start(task_name: str, depends_on: Sequence[TaskRunRecord]) -> TaskRunRecord:
            try:
                return self._start(
                    self._permitted(task_name),
                    (obj.pk,),
                    {},
                    now=order.now,
                    options=task.passed_on(order.plain),
                    eta=None,
                    depends_on=depends_on,
                    reason=order.fields["reason"],
                    source=Source.DEPENDENCY,
                )
            except AlreadyActive as error:
                return error.run

        return start_needed(task, obj.pk, start, now=order.now)

    def _enter(
        self, order: Order, call: Call, same: Sameness, success: TaskRunRecord | None
    ) -> TaskRunRecord:
        """Record a call that was checked, and send it on commit."""
        if success is not None:
            same = replace(same, limit=None)
        run = order.row(call, same, success)
        invocation = _told_of(order.task, call, run.task_id, order.plain)
        self._record([run], order if success is None else replace(order, depends_on=()), same)
        if success is not None and invocation is not None:
            result = ignoring.result_of(run)
            ignored = partial(invocation.tell, "on_invocation_ignored", result)
            transaction.on_commit(ignored, using=_database())
        if run.state == State.UNSENT:
            message = order.message(call)
            transaction.on_commit(
                lambda: self._send(order.task, run, message), using=_database()
            )
        return run

    def _record(self, runs: Sequence[TaskRunRecord], order: Order, same: Sameness) -> None:
        """Write rows, and what each waits for; raises AlreadyActive.

        ``same.limit``: how long others may have the ``active_key`` of the one run, if it has
        one.
        """
        using, now = _database(), order.now

        def write() -> None:
            if order.depends_on:
                dependencies.record_waiting(runs, order.depends_on)
            else:
                insertion.insert(runs, using=using)

        if same.limit is None:
            write()
        else:
            try:
                unique.take(same.key, write, limit=same.limit, now=now, using=using)
            except unique.KeyTaken as error:
                raise AlreadyActive(error.holder) from None
        if order.depends_on:
            dependencies.settle_on_commit(runs)

    def _begin_many(self, order: Order, calls: Sequence[CheckedCall]) -> list[TaskRunRecord]:
        """Record calls that were checked, all or none, and send them on commit."""
        if order.is_plain and not any(same.key for _call, same, _success in calls):
            return self._enter_many(order, [call for call, *_others in calls])

        def key_of(number: int) -> str:
            _call, same, _success = calls[number]
            return same.key

        def write() -> list[TaskRunRecord]:
            runs: dict[int, TaskRunRecord] = {}
            # In the order of their keys: two who take the same do not wait for each other.
            for number in sorted(range(len(calls)), key=key_of):
                try:
                    runs[number] = self._begin(order, *calls[number])
                except AlreadyActive as error:
                    raise AlreadyActive(error.run, str(number)) from None
                except InvalidArguments as error:
                    raise InvalidCalls({number: error}) from error
            return [runs[number] for number in range(len(calls))]

        return written_together(write, using=_database())

    def _enter_many(self, order: Order, calls: Sequence[Call]) -> list[TaskRunRecord]:
        """Record calls that have nothing to do with others, and send them on commit."""
        runs = [order.row(call, Sameness(), None) for call in calls]
        for run, call in zip(runs, calls, strict=True):
            _told_of(order.task, call, run.task_id, order.plain)
        self._record(runs, order, Sameness())
        messages = {
            run.task_id: order.message(call)
            for run, call in zip(runs, calls, strict=True)
            if run.state == State.UNSENT
        }
        if messages:
            transaction.on_commit(
                lambda: self._send_many(order.task, runs, messages), using=_database()
            )
        return runs

    def _send(
        self, task: Task, run: TaskRunRecord, message: Message, *, may_be_out: bool = False
    ) -> None:
        """Send a recorded run, and tell of it.

        Of many runs sent at once only the first waits for a broker that is away.
        """
        if not keep_claim(run):
            return
        if self._is_broker_away():
            text = _("The broker did not take the run before this one.")
            record_failure(run, text, may_be_out=may_be_out)
            return
        handover = publish(task, run, message, may_be_out=may_be_out)
        if handover == Handover.REFUSED:
            self._broker_away_at = monotonic()
        elif handover == Handover.SENT:
            tell_of_handover(run, self.user, sender=type(self))

    def _send_many(
        self,
        task: Task,
        runs: Sequence[TaskRunRecord],
        messages: Mapping[str, Message],
    ) -> None:
        """Send recorded runs by one connection, and tell of each; see ``_send``."""
        if task.app.conf.task_always_eager or any(
            message.has_secrets for message in messages.values()
        ):
            # What runs here at once needs no connection, and what is told of an error in a
            # project's code might quote a secret.
            for run in runs:
                self._send(task, run, messages[run.task_id])
            return
        if self._is_broker_away():
            leave_unsent(runs, _("The broker did not take the run before this one."))
            return

        def send(run: TaskRunRecord, producer: Producer) -> None:
            post(task, run, messages[run.task_id], producer, retry=False)

        def tell(sent: Sequence[TaskRunRecord]) -> None:
            if TaskRunSignal.has_listeners(type(self)):
                for run in sent:
                    tell_of_handover(run, self.user, sender=type(self))

        if not send_all(task.app, runs, send, tell=tell):
            self._broker_away_at = monotonic()

    def _tell_workers(
        self, run: TaskRunRecord, was: State, *, terminate: bool, kill: bool
    ) -> list[Answer]:
        """Tell the workers what they must know of a run that is to stop, unless it has ended.

        Of many told at once only the first waits for a broker that is away.
        """
        must_end = run.state == State.CANCELLING and (terminate or kill)
        if not must_end and not _may_be_with_a_worker(run, was):
            return []
        if run.state == State.CANCELLING:
            run.refresh_from_db(using=_database())
            if run.is_finished:
                return []
        if self._is_broker_away():
            return [Untold(_("The broker was away just before.")).answer]
        try:
            if not must_end:
                control.revoke(run.task_id)
                return []
            answers = (
                control.kill(run.task_id, worker=run.worker)
                if kill
                else control.terminate(run.task_id, signal="SIGTERM", worker=run.worker)
            )
        except Untold as error:
            self._broker_away_at = monotonic()
            return [error.answer]
        run.refresh_from_db(using=_database())
        return answers

    def _is_broker_away(self) -> bool:
        return monotonic() - self._broker_away_at < BROKER_REST


def tell_of_handover(
    run: TaskRunRecord, user: AnyUser | None, *, sender: type[TaskRunner] = TaskRunner
) -> None:
    """Send TaskRunSignal for a run that the broker has taken."""
    TaskRunSignal.send_robust(
        sender=sender,
        task_name=run.task_name,
        task_id=run.task_id,
        args=from_plain(run.args),
        kwargs=from_plain(run.kwargs),
        user=user,
        run=run,
    )


def _read_states(runs: Mapping[int, TaskRunRecord]) -> None:
    """Read anew in which states these runs are, by their primary keys."""
    rows = TaskRunRecord.objects.using(_database()).filter(pk__in=list(runs))
    for pk, state in rows.values_list("pk", "state"):
        runs[pk].state = state


def _may_be_with_a_worker(run: TaskRunRecord, was: State) -> bool:
    """Tell whether a message of the run may be out that no worker has begun yet."""
    if was in CLAIMABLE:
        # The token stays where the broker did not confirm that it took the run.
        return run.claimed_at is not None or run.dispatch_id is not None
    return was in AWAITED or (was == State.CANCELLING and run.started_at is None)


def _database() -> str:
    """Return the alias of the database that the journal is written to."""
    return str(router.db_for_write(TaskRunRecord))


def _limit_again(task: Task, run: TaskRunRecord) -> timedelta | None:
    """Return how long others may have the key that a run takes when it is sent again.

    None: it takes none. Raises NotSendable.
    """
    try:
        # The key of a task that is not unique is for its windows.
        is_unique = unique.is_unique(task) or not ignoring.is_ignoring(task)
        if not run.unique_key or not is_unique or not isinstance(task, DjangoTask):
            return None
        return unique.stale_after(task, options=from_plain(run.options))
    except ImproperlyConfigured as error:
        raise NotSendable(str(error)) from error


def _taken_text() -> str:
    return _("The same call is active already: sent again, this one would be a second.")


def _told_of(
    task: Task, call: Call, task_id: str, options: Mapping[str, Any]
) -> Invocation | None:
    """Tell a DjangoTask that it was called, and return the call; None for another task."""
    if not isinstance(task, DjangoTask):
        return None
    invocation = Invocation(
        task=task, args=call.args, kwargs=call.kwargs, task_id=task_id, options=options
    )
    invocation.tell_applied()
    return invocation


def _about(obj: models.Model | None) -> dict[str, Any]:
    """Return the fields that say which object a run is about."""
    if obj is None:
        return {}
    # Not ``run.obj = obj``, which would move the run to the object's database.
    kinds = ContentType.objects.db_manager(_database())
    return {"content_type_id": kinds.get_for_model(obj).pk, "object_id": str(obj.pk)}


def _task_info_of(run: TaskRunRecord) -> TaskInfo:
    """Return what is known of a run's task; that of a periodic task is sent by its name too."""
    return (find_task_info if run.periodic_task_name else get_task_info)(run.task_name)


def _unclaimed_text(run: TaskRunRecord) -> str:
    """Return why nobody can send a run again just now."""
    if run.state in KEPT and run.claimed_at is None:
        return _("This run is kept until it may start, and sent then.")
    return _("This run was sent, or is being sent just now.")


def lost_text(run: TaskRunRecord) -> str:
    """Return why a run can't be sent again that is not stored as it was sent."""
    if run.has_masked_arguments or has_mask(run.options):
        return _("A secret of this run is not stored: fill in the form again.")
    return _("Its arguments are not stored as they were: fill in the form.")


def _kept(arguments: Any, values: Iterable[Any]) -> Any:
    """Return arguments as the row keeps them; raises NotRetryable if they were not sent so."""
    if has_mask(arguments):
        raise NotRetryable(_("A secret of this run is not stored: fill in the form again."))
    if any(map(is_altered, values)):
        raise NotRetryable(_("Its arguments are not stored as they were: fill in the form."))
    return from_plain(arguments)
