"""What tasks can be built on. Imports no model: user code imports it before Django is ready."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

from celery import Celery
from celery.contrib.django.task import DjangoTask as CeleryDjangoTask
from celery.exceptions import Ignore, Retry, TimeoutError
from celery.result import AsyncResult, EagerResult
from celery.utils import uuid
from celery.utils.time import maybe_iso8601
from django.db import DEFAULT_DB_ALIAS, transaction

from celery_admin_runner.attempts import Attempt
from celery_admin_runner.contexts import PlainContext, context_of, starter_of
from celery_admin_runner.handles import OnCommitResult, Sending
from celery_admin_runner.headers import CONTEXT_HEADER, KEY_HEADER, marks_run, without_ours
from celery_admin_runner.queues import TaskQueue, default_options

logger = logging.getLogger("celery_admin_runner")

#: The attribute of a task's request by which our receiver says that the journal refused the
#: start: the run was cancelled before.
REFUSED = "celery_admin_runner_refused"
#: Set on a task's request when the task was replaced (``Task.replace``): its id lives on.
REPLACED = "celery_admin_runner_replaced"
#: The attribute of a task's request that says for how long calls are to be ignored if it
#: succeeds (``set_ignore_task``), a timedelta.
IGNORE_FOR = "celery_admin_runner_ignore_for"
#: The attribute of a task's request that tells when its next attempt is due, an aware datetime.
_RETRY_AT = "celery_admin_runner_retry_at"
#: What a task may state by itself of the options that its queue may have for it.
_STATABLE = frozenset(
    {
        *("priority", "expires", "serializer", "compression", "time_limit", "soft_time_limit"),
        *("routing_key", "exchange", "delivery_mode", "ignore_result"),
    }
)
#: The two limits of a task's time are chosen together.
_LIMITS = frozenset({"time_limit", "soft_time_limit"})
#: The option of ``apply_async`` by which our other ways to call a task say how it is invoked: a
#: project's own ``apply_async`` is asked for these calls too.
_INVOKE = "celery_admin_runner_invoke"
#: The attribute by which Celery 5.7 remembers, for the rest of a run, ``retry(max_retries=...)``.
_MAX_RETRIES_OF_RUN = "override_max_retries"


@dataclass(frozen=True, kw_only=True)
class OwnOptions:
    """What ``apply_async`` of a DjangoTask takes besides Celery's options; None: not given."""

    #: As it travels; a caller gives a RunContext.
    run_context: PlainContext | None = None
    #: Runs that have to succeed before this one starts; until then it is kept, WAITING.
    depends_on: Sequence[Any] = ()
    unique: bool | None = None
    #: In seconds, if it is a number.
    stale_time_limit: timedelta | float | None = None
    ignore_task_after_success: bool | None = None
    ignore_task_timedelta: timedelta | None = None


#: The names of the options that are ours.
OWN_OPTIONS = frozenset(field.name for field in fields(OwnOptions))
NOTHING_OWN = OwnOptions()


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
    own: OwnOptions = NOTHING_OWN

    def send(self, headers: Mapping[str, Any] | None = None) -> AsyncResult:
        """Give it to the broker as Celery does, with these headers more."""
        options = dict(self.options)
        if self.own.run_context is not None:
            headers = {**(headers or {}), CONTEXT_HEADER: self.own.run_context.values}
        if headers:
            options["headers"] = {**(options.get("headers") or {}), **headers}
        result = super(DjangoTask, self.task).apply_async(
            self.args, self.kwargs, self.task_id, **options
        )
        self.tell("on_invocation_trigger", result)
        return result

    def tell_applied(self) -> None:
        """Tell the task's ``on_invocation_apply`` that it was called."""
        task = self.task
        if type(task).on_invocation_apply is not DjangoTask.on_invocation_apply:
            _tell(
                task,
                "on_invocation_apply",
                *(self.task_id, self.args, self.kwargs),
                *(self.options, task.AsyncResult(self.task_id)),
            )

    def tell(self, hook: str, result: AsyncResult) -> None:
        """Tell one of the task's ``on_invocation_`` hooks which run answers for the call."""
        _tell(
            self.task,
            hook,
            *(self.task_id, self.args, self.kwargs, result.id, self.options, result),
        )


#: Answers an invocation, by whoever does.
Invoke = Callable[[Invocation], AsyncResult]
#: Answers an invocation in the broker's place, or leaves it alone by None.
Interceptor = Callable[[Invocation], AsyncResult | None]
#: Is told of an invocation that is to be sent when a transaction of this database is
#: committed, and returns what is to be done then; None: it is to be invoked then.
Announcer = Callable[[Invocation, str], Callable[[], AsyncResult] | None]
#: Tells whether a call of a unique task, with these arguments, would join a run.
Lookup = Callable[["DjangoTask", Sequence[Any], Mapping[str, Any]], bool]
Asked = TypeVar("Asked")

#: Asked in this order. Empty until Django is ready: then every call goes to the broker.
_interceptors: list[Interceptor] = []
_announcers: list[Announcer] = []
_lookups: list[Lookup] = []


def intercept(interceptor: Interceptor, *, first: bool = False) -> None:
    """Let ``interceptor`` see every invocation of a DjangoTask from now on; once is enough.

    ``first``: before those that are there, as who answers for some kind of tasks only.
    """
    _add(_interceptors, interceptor, first=first)


def announce(announcer: Announcer, *, first: bool = False) -> None:
    """Tell ``announcer`` of every invocation that waits for a commit; as for ``intercept``."""
    _add(_announcers, announcer, first=first)


def look_up(lookup: Lookup) -> None:
    """Let ``lookup`` tell from now on which unique calls are active; once is enough."""
    _add(_lookups, lookup)


def _add(asked: list[Asked], one: Asked, *, first: bool = False) -> None:
    if one not in asked:
        asked.insert(0 if first else len(asked), one)


class DjangoTask(CeleryDjangoTask):  # type: ignore[misc]
    """A task whose calls and starts are guarded by the journal.

    A cancelled run does not begin; a delayed call is kept in the database (SCHEDULE_ETA). The
    base of one task, ``@shared_task(base=DjangoTask)``, or of a whole app,
    ``Celery(task_cls="celery_admin_runner.base:DjangoTask")``. Whoever overrides one of Celery's
    own methods, ``before_start`` or ``on_success``, calls these.
    """

    #: Every call has a row in the journal, as if TRACK named the task.
    track = False
    #: The queue of calls that name none.
    queue: TaskQueue | str | None = None
    #: After how long each retry follows, in seconds if it is a number; so many there are then,
    #: unless ``max_retries`` says otherwise. Of more the last one counts.
    default_retry_delays: Sequence[timedelta | float] = ()
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
    #: The options that the task itself states: its queue does not give it others.
    _stated: frozenset[str] = frozenset()

    @classmethod
    def bind(cls, app: Celery) -> Celery:
        """Bind the task to an app, as Celery does, which fills in what the task does not state.

        Celery 5.7 warns of a class that has a queue, for Celery 6 is not to look at it any
        more: it does not see it, and each call names it.
        """
        if "_stated" not in vars(cls):
            stated = (name for name in _STATABLE if getattr(cls, name, None) is not None)
            cls._stated = frozenset(stated)
            _count_retries(cls)
        if "queue" not in vars(cls):
            return super().bind(app)
        queue = cls.queue
        del cls.queue
        try:
            return super().bind(app)
        finally:
            cls.queue = queue

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
        if producer is not None:
            options["producer"] = producer
        if link is not None:
            options["link"] = link
        if link_error is not None:
            options["link_error"] = link_error
        if shadow is not None:
            options["shadow"] = shadow
        invoke: Invoke = options.pop(_INVOKE, _invoke)
        if options.get("retries"):
            return super().apply_async(args, kwargs, task_id, **options)
        _check_arguments(args, kwargs)
        invocation = self._invocation(args, kwargs, task_id, options)
        if task_id and marks_run(options.get("headers"), task_id):
            # The message of what was recorded already.
            return invocation.send()
        invocation.tell_applied()
        return invoke(invocation)

    def apply(
        self, args: Any = None, kwargs: Any = None, *positional: Any, **options: Any
    ) -> EagerResult:
        """Run the task here and now, as Celery does: nothing of it is in the journal.

        Of our own options it minds ``run_context`` only.
        """
        own = _taken(options)
        if own.run_context is not None:
            given = options.get("headers") or {}
            options["headers"] = {**given, CONTEXT_HEADER: own.run_context.values}
        return super().apply(args, kwargs, *positional, **options)

    def delay_on_commit(self, *args: Any, **kwargs: Any) -> OnCommitResult:
        """Call the task with these arguments when the transaction is committed."""
        return self.apply_async_on_commit(args, kwargs)

    def apply_async_on_commit(
        self, args: Any = None, kwargs: Any = None, using: str | None = None, **options: Any
    ) -> OnCommitResult:
        """Call the task when the transaction of the database ``using`` is committed.

        Outside of one: now. The options are those of ``apply_async``. A call that has a row has
        it in that transaction, if it is of the journal's database. A rollback, also that of a
        savepoint, leaves nothing. What goes wrong when the call is sent is raised by the commit,
        as with Celery.
        """
        invoke = partial(_invoke_on_commit, using=using or DEFAULT_DB_ALIAS)
        handle: OnCommitResult = self.apply_async(args, kwargs, **options, **{_INVOKE: invoke})
        return handle

    def apply_async_and_get_result(
        self,
        args: Any = None,
        kwargs: Any = None,
        timeout: float | None = None,
        propagate: bool = True,
        **options: Any,
    ) -> Any:
        """Call the task, wait for its result, up to ``timeout`` seconds, and return it.

        Raises Celery's TimeoutError if there is none by then; the run goes on. A timeout of 0 or
        less sends the call and does not wait. What the task raised is raised, or returned if
        ``propagate`` is False. The options are those of ``apply_async``.
        """
        made: list[Invocation] = []

        def invoke(invocation: Invocation) -> AsyncResult:
            made.append(invocation)
            return _invoke(invocation)

        result = self.apply_async(args, kwargs, **options, **{_INVOKE: invoke})
        try:
            if timeout is not None and timeout <= 0:
                raise TimeoutError("The result was not waited for.")
            value = result.get(timeout=timeout, propagate=False)
        except TimeoutError as error:
            for invocation in made:
                _tell(
                    self,
                    "on_invocation_timeout",
                    *(invocation.task_id, invocation.args, invocation.kwargs, result.id),
                    *(error, invocation.options, result),
                )
            raise
        if propagate and not result.ignored:
            # Not by ``get``: the task itself may have raised a TimeoutError.
            result.maybe_throw()
        return value

    def retry(
        self,
        args: Any = None,
        kwargs: Any = None,
        exc: Any = None,
        throw: bool = True,
        eta: Any = None,
        countdown: Any = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> Retry:
        """Try the run again later, as Celery does; by default after ``default_retry_delays``."""
        request, delays = self.request, self.default_retry_delays
        if delays and not eta and countdown is None:
            countdown = _seconds(delays[min(request.retries, len(delays) - 1)])
        again: Retry = super().retry(
            args, kwargs, exc, False, eta, countdown, max_retries, **options
        )
        setattr(request, _RETRY_AT, _moment(again.when))
        if throw:
            raise again
        return again

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Veto the start of a run that was cancelled; the body does not run then.

        Celery 5.7 sends ``task_prerun``, by which the start is recorded, before it calls this.
        """
        if getattr(self.request, REFUSED, False):
            raise Ignore(f"The run {task_id} was cancelled before it started.")
        # Celery 5.7 does not forget it with the run for which it was said.
        self.__dict__.pop(_MAX_RETRIES_OF_RUN, None)
        super().before_start(task_id, args, kwargs)
        self.on_task_start(task_id, args, kwargs)

    def on_retry(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Tell ``on_task_retry``: Celery says so after it sent the next attempt."""
        super().on_retry(exc, task_id, args, kwargs, einfo)
        eta = getattr(self.request, _RETRY_AT, None)
        _tell(self, "on_task_retry", task_id, args, kwargs, exc, eta)

    def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Tell ``on_task_failure``: Celery says so of what is not tried again."""
        super().on_failure(exc, task_id, args, kwargs, einfo)
        _tell(self, "on_task_failure", task_id, args, kwargs, exc, einfo)

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        """Tell ``on_task_success``."""
        super().on_success(retval, task_id, args, kwargs)
        _tell(self, "on_task_success", task_id, args, kwargs, retval)

    def route(self, options: dict[str, Any]) -> None:
        """Name the queue of a call, and fill in what the queue has for it.

        Of the two time limits neither, if the task or the call states one: together they might
        contradict each other.
        """
        queue = options.get("queue", self.queue)
        if queue is None:
            return
        options["queue"] = queue.value if isinstance(queue, TaskQueue) else queue
        defaults = default_options(queue)
        if defaults:
            stated = self._stated | options.keys()
            if stated & _LIMITS:
                stated |= _LIMITS
            options |= {name: value for name, value in defaults.items() if name not in stated}

    def on_replace(self, sig: Any) -> Any:
        """Send what takes the place of the task (``replace``), as Celery does.

        Of a chain, a group or a chord only the last task has the id of this run. Our result
        backend ends the row by the id, so it goes on until then.
        """
        if getattr(self.backend, "keeps_runs", False):
            setattr(self.request, REPLACED, True)
        return super().on_replace(sig)

    def is_processing(self, args: Any = None, kwargs: Any = None) -> bool:
        """Tell whether the same call of this unique task is active: another would join it.

        Raises ValueError if the task is not unique.
        """
        return any(lookup(self, args or (), kwargs or {}) for lookup in _lookups)

    def set_ignore_task(self, ignore_task_timedelta: timedelta | None = None) -> None:
        """Let calls with these arguments be ignored for a while, if this run succeeds.

        For the body of the task. ``ignore_task_timedelta``: for how long; None: as the task
        says. Raises ValueError if neither does, and for a task that says nothing of being
        ignored, nor did the caller: nobody would look whether its calls are.
        """
        is_ignoring = self.ignore_task_after_success or self.ignore_task_timedelta is not None
        if not is_ignoring and KEY_HEADER not in (self.request.headers or {}):
            raise ValueError(
                f"{self.name}: its calls are never ignored. Give the task an "
                "ignore_task_timedelta, and they can be."
            )
        window = ignore_task_timedelta or self.ignore_task_timedelta
        if window is None:
            raise ValueError(f"{self.name}: for how long? Give ignore_task_timedelta.")
        setattr(self.request, IGNORE_FOR, window)

    @property
    def run_context(self) -> PlainContext | None:
        """Who asked for the run that is running here, about what and why; None: nobody said.

        If nobody said it with the call: who started the task that made it.
        """
        headers = self.request.headers
        return context_of(headers) or starter_of(headers)

    def get_result_url(self, run: Any) -> str:
        """Return where the user of ``run``, a TaskRunRecord that succeeded, finds its result.

        "" for the page of the object that the run is about, if that has one. Asked in the web
        process whenever the run is shown: a query in it is one for each run.
        """
        return ""

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
        self.route(options)
        headers = options.get("headers")
        if headers and not (task_id and marks_run(headers, task_id)):
            options["headers"] = without_ours(headers)
        return Invocation(
            task=self,
            args=args or (),
            kwargs=kwargs or {},
            task_id=task_id or uuid(),
            is_id_given=task_id is not None,
            own=_taken(options),
            options=options,
        )


def _check_arguments(args: Any, kwargs: Any) -> None:
    """Raise TypeError for arguments that Celery 5.7 refuses to send, before a row is written."""
    if args and not isinstance(args, list | tuple):
        raise TypeError(f"Give the arguments as a list, and not as {type(args).__name__}.")
    if kwargs and not isinstance(kwargs, Mapping):
        raise TypeError(f"Give the named arguments as a dict, and not as {type(kwargs).__name__}.")


def _taken(options: dict[str, Any]) -> OwnOptions:
    """Take those options that are ours out of the others; raises TypeError and ValueError."""
    given = OWN_OPTIONS & options.keys()
    if not given:
        return NOTHING_OWN
    own = {name: options.pop(name) for name in given}
    if own.get("run_context") is not None:
        # As it is now: nothing is written for a user that is not saved.
        own["run_context"] = PlainContext.of(own["run_context"])
    return OwnOptions(**own)


def _tell(task: DjangoTask, hook: str, *arguments: Any) -> None:
    """Tell a hook of a project; what it raises is logged: what it is told of is so all the same.

    Celery 5.7 would tell nobody of the end of a run where a hook of that end has failed.
    """
    if getattr(type(task), hook) is getattr(DjangoTask, hook):
        return
    attempt = Attempt()
    with attempt:
        getattr(task, hook)(*arguments)
    if attempt.error is not None:
        logger.error("%s of %s failed.", hook, task.name, exc_info=attempt.error)


def _count_retries(kind: type[DjangoTask]) -> None:
    """Let a task be tried again as often as it has delays, unless it says how often."""
    for base in kind.__mro__:
        if base is DjangoTask or "max_retries" in vars(base):
            return
        if delays := vars(base).get("default_retry_delays"):
            kind.max_retries = len(delays)
            return


def _seconds(delay: timedelta | float) -> float:
    return delay.total_seconds() if isinstance(delay, timedelta) else delay


def _moment(when: Any) -> datetime | None:
    """Return the moment of a retry, of which Celery 5.7 tells the moment or the seconds.

    It takes a moment without its zone for UTC.
    """
    if isinstance(when, int | float):
        return datetime.now(UTC) + timedelta(seconds=when)
    moment: datetime | None = maybe_iso8601(when)
    return moment.replace(tzinfo=UTC) if moment and moment.tzinfo is None else moment


def _announced(invocation: Invocation, using: str) -> Callable[[], AsyncResult] | None:
    """Return what is to be done on commit, if somebody keeps the call until then."""
    for announcer in _announcers:
        send = announcer(invocation, using)
        if send is not None:
            return send
    return None


def _invoke_on_commit(invocation: Invocation, *, using: str) -> OnCommitResult:
    """Let a call wait for the commit of this database; outside of a transaction: answer now."""
    task = invocation.task
    check = getattr(task, "__header__", None) if task.typing else None
    if check is not None:
        # Celery 5.7 would do so after the commit, when nobody can put it right any more.
        check(*invocation.args, **invocation.kwargs)
    # As they are now: who calls in a loop may change them before the commit.
    args, kwargs = copy(invocation.args), copy(invocation.kwargs)
    invocation = replace(invocation, args=args, kwargs=kwargs)
    send: Callable[[], AsyncResult] = partial(_invoke, invocation)
    if transaction.get_connection(using).in_atomic_block:
        send = _announced(invocation, using) or send
    handle = OnCommitResult(
        invocation.task_id, backend=task.backend, task_name=task.name, app=task.app
    )
    transaction.on_commit(Sending(handle, send), using=using)
    return handle


def _invoke(invocation: Invocation) -> AsyncResult:
    """Let somebody answer for a call, else send it."""
    for interceptor in _interceptors:
        result = interceptor(invocation)
        if result is not None:
            return result
    return invocation.send()
