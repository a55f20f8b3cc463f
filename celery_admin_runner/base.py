"""What tasks can be built on. Imports no model: user code imports it before Django is ready."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any

from celery.contrib.django.task import DjangoTask as CeleryDjangoTask
from celery.exceptions import Ignore
from celery.result import AsyncResult
from celery.utils import uuid

from celery_admin_runner.contexts import PlainContext, RunContext, context_of
from celery_admin_runner.headers import marks_run

#: The attribute of a task's request by which our receiver says that the journal refused the
#: start: the run was cancelled before.
REFUSED = "celery_admin_runner_refused"
#: The attribute of a task's request that says for how long calls are to be ignored if it
#: succeeds (``set_ignore_task``), a timedelta.
IGNORE_FOR = "celery_admin_runner_ignore_for"


@dataclass(frozen=True, kw_only=True)
class OwnOptions:
    """What ``apply_async`` of a DjangoTask takes besides Celery's options; None: not given."""

    run_context: RunContext | PlainContext | None = None
    #: Runs that have to succeed before this one starts; until then it is kept, WAITING.
    depends_on: Sequence[Any] = ()
    unique: bool | None = None
    #: In seconds, if it is a number.
    stale_time_limit: timedelta | float | None = None
    ignore_task_after_success: bool | None = None
    ignore_task_timedelta: timedelta | None = None


#: The names of the options that are ours.
OWN_OPTIONS = frozenset(field.name for field in fields(OwnOptions))
_NOTHING_OWN = OwnOptions()


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """One call of a DjangoTask, of which nothing is sent yet."""

    task: DjangoTask
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    #: Under which the task will run, also if nobody answers for the call.
    task_id: str
    #: Whether the caller, or a canvas, chose the id and may wait for just that one.
    is_id_given: bool = False
    #: Whatever else was given to ``apply_async``; ``link`` and the like only where given.
    options: Mapping[str, Any]
    own: OwnOptions = _NOTHING_OWN

    def send(self, headers: Mapping[str, Any] | None = None) -> AsyncResult:
        """Give it to the broker as Celery does, with these headers more."""
        options = dict(self.options)
        if headers:
            options["headers"] = {**(options.get("headers") or {}), **headers}
        result = super(DjangoTask, self.task).apply_async(
            self.args, self.kwargs, self.task_id, **options
        )
        self.task.on_invocation_trigger(
            self.task_id, self.args, self.kwargs, result.id, self.options, result
        )
        return result


#: Answers an invocation in the broker's place, or leaves it alone by None.
Interceptor = Callable[[Invocation], AsyncResult | None]
#: Is told of an invocation that is to be sent when a transaction of this database is
#: committed, and returns what is to be done then; None: it is to be invoked then.
Announcer = Callable[[Invocation, str], Callable[[], AsyncResult] | None]
#: Asked in this order. Empty until Django is ready: then every call goes to the broker.
_interceptors: list[Interceptor] = []
_announcers: list[Announcer] = []


def intercept(interceptor: Interceptor) -> None:
    """Let ``interceptor`` see every invocation of a DjangoTask from now on; once is enough."""
    if interceptor not in _interceptors:
        _interceptors.append(interceptor)


def announce(announcer: Announcer) -> None:
    """Tell ``announcer`` of every invocation that waits for a commit; once is enough."""
    if announcer not in _announcers:
        _announcers.append(announcer)


class DjangoTask(CeleryDjangoTask):  # type: ignore[misc]
    """A task whose calls and starts are guarded by the journal.

    A cancelled run does not begin; a delayed call is kept in the database (SCHEDULE_ETA). The
    base of one task, ``@shared_task(base=DjangoTask)``, or of a whole app,
    ``Celery(task_cls="celery_admin_runner.base:DjangoTask")``. Whoever overrides
    ``before_start`` or ``apply_async`` calls these.
    """

    #: Every call has a row in the journal, as if TRACK named the task.
    track = False
    #: Of several calls with the same arguments one runs; the others join it.
    unique = False
    #: The parameters by which calls are the same; None: by all of them.
    unique_on: Sequence[str] | None = None
    #: ``generator(task, prefix, task_args, task_kwargs)`` returns the key instead.
    unique_key_generator: Callable[..., str] | None = None
    #: After how long a unique run no longer keeps others from running, in seconds if it is a
    #: number; None: UNIQUE_STALE_AFTER, or what follows from the task's limits.
    stale_time_limit: timedelta | float | None = None
    #: After a success calls with the same arguments are ignored for ``ignore_task_timedelta``.
    ignore_task_after_success = False
    ignore_task_timedelta: timedelta | None = None

    def apply_async(
        self,
        args: Any = None,
        kwargs: Any = None,
        task_id: Any = None,
        producer: Any = None,
        link: Any = None,
        link_error: Any = None,
        shadow: Any = None,
        **options: Any,
    ) -> AsyncResult:
        """Call the task, as Celery's ``apply_async`` does, unless somebody here answers for it.

        ``delay``, signatures, chains, groups and retries all come this way; ``app.send_task``
        and ``apply`` do not. Besides Celery's options it takes those of ``OwnOptions``.
        """
        given = {"producer": producer, "link": link, "link_error": link_error, "shadow": shadow}
        options |= {name: value for name, value in given.items() if value is not None}
        if options.get("retries") or (task_id and marks_run(options.get("headers"), task_id)):
            # It goes on with a run: the next attempt, or the message of what was recorded.
            return super().apply_async(args, kwargs, task_id, **options)
        invocation = self._invocation(args, kwargs, task_id, options)
        self._tell_of(invocation)
        return _invoke(invocation)

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Veto the start of a run that was cancelled; the body does not run then.

        Celery 5.7 sends ``task_prerun``, by which the start is recorded, before it calls this.
        """
        if getattr(self.request, REFUSED, False):
            raise Ignore(f"The run {task_id} was cancelled before it started.")
        super().before_start(task_id, args, kwargs)

    def set_ignore_task(self, ignore_task_timedelta: timedelta | None = None) -> None:
        """Let calls with these arguments be ignored for a while, if this run succeeds.

        For the body of the task. ``ignore_task_timedelta``: for how long; None: as the task
        says. Raises ValueError if neither does.
        """
        window = ignore_task_timedelta or self.ignore_task_timedelta
        if window is None:
            raise ValueError(f"{self.name}: for how long? Give ignore_task_timedelta.")
        setattr(self.request, IGNORE_FOR, window)

    @property
    def run_context(self) -> PlainContext | None:
        """Who asked for the run that is running here, about what and why; None: nobody said."""
        return context_of(self.request.headers)

    def on_invocation_apply(
        self, invocation_id: str, args: Any, kwargs: Any, options: Any, result: Any
    ) -> None:
        """Be told that somebody called the task; nothing is decided yet."""

    def on_invocation_trigger(
        self,
        invocation_id: str,
        args: Any,
        kwargs: Any,
        task_id: str,
        options: Any,
        result: Any,
    ) -> None:
        """Be told that the broker took the message of a call."""

    def on_invocation_unique(
        self,
        invocation_id: str,
        args: Any,
        kwargs: Any,
        task_id: str,
        options: Any,
        result: Any,
    ) -> None:
        """Be told that a call joined the run ``task_id``, which is active."""

    def on_invocation_ignored(
        self,
        invocation_id: str,
        args: Any,
        kwargs: Any,
        task_id: str,
        options: Any,
        result: Any,
    ) -> None:
        """Be told that a call was ignored: the same one succeeded not long ago."""

    def on_invocation_timeout(
        self,
        invocation_id: str,
        args: Any,
        kwargs: Any,
        task_id: str,
        ex: Exception,
        options: Any,
        result: Any,
    ) -> None:
        """Be told that ``apply_async_and_get_result`` did not get the result in time."""

    def on_task_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Be told that a worker begins an attempt."""

    def on_task_retry(
        self, task_id: str, args: Any, kwargs: Any, exc: Any, eta: datetime | None
    ) -> None:
        """Be told that an attempt failed, and that another follows, at ``eta``."""

    def on_task_failure(self, task_id: str, args: Any, kwargs: Any, exc: Any, einfo: Any) -> None:
        """Be told that the run failed, and is not tried again."""

    def on_task_success(self, task_id: str, args: Any, kwargs: Any, retval: Any) -> None:
        """Be told that the run succeeded."""

    def _invocation(
        self, args: Any, kwargs: Any, task_id: str | None, options: dict[str, Any]
    ) -> Invocation:
        own = {name: options.pop(name) for name in OWN_OPTIONS & options.keys()}
        return Invocation(
            task=self,
            args=args or (),
            kwargs=kwargs or {},
            task_id=task_id or uuid(),
            is_id_given=task_id is not None,
            options=options,
            own=OwnOptions(**own) if own else _NOTHING_OWN,
        )

    def _tell_of(self, invocation: Invocation) -> None:
        if type(self).on_invocation_apply is not DjangoTask.on_invocation_apply:
            self.on_invocation_apply(
                invocation.task_id,
                invocation.args,
                invocation.kwargs,
                invocation.options,
                self.AsyncResult(invocation.task_id),
            )


def _invoke(invocation: Invocation) -> AsyncResult:
    """Let somebody answer for a call, else send it."""
    for interceptor in _interceptors:
        result = interceptor(invocation)
        if result is not None:
            return result
    return invocation.send()


