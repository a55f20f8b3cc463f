"""What tasks can be built on. Imports no model: user code imports it before Django is ready."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from celery.app.task import Task
from celery.contrib.django.task import DjangoTask as CeleryDjangoTask
from celery.exceptions import Ignore
from celery.result import AsyncResult
from celery.utils import uuid

#: The attribute of a task's request by which our receiver says that the journal refused the
#: start: the run was cancelled before.
REFUSED = "celery_admin_runner_refused"


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """One call of a DjangoTask, of which nothing is sent yet."""

    task: Task
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    #: Under which the task will run, also if nobody answers for the call.
    task_id: str
    #: Whatever else was given to ``apply_async``; ``link`` and the like only where given.
    options: Mapping[str, Any]


#: Answers an invocation in the broker's place, or leaves it alone by None.
Interceptor = Callable[[Invocation], AsyncResult | None]
#: Asked in this order. Empty until Django is ready: then every call goes to the broker.
_interceptors: list[Interceptor] = []


def intercept(interceptor: Interceptor) -> None:
    """Let ``interceptor`` see every invocation of a DjangoTask from now on; once is enough."""
    if interceptor not in _interceptors:
        _interceptors.append(interceptor)


class DjangoTask(CeleryDjangoTask):  # type: ignore[misc]
    """A task whose calls and starts are guarded by the journal.

    A cancelled run does not begin; a delayed call is kept in the database (SCHEDULE_ETA). The
    base of one task, ``@shared_task(base=DjangoTask)``, or of a whole app,
    ``Celery(task_cls="celery_admin_runner.base:DjangoTask")``. Whoever overrides
    ``before_start`` or ``apply_async`` calls these.
    """

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
        and ``apply`` do not.
        """
        task_id = task_id or uuid()
        own = {"producer": producer, "link": link, "link_error": link_error, "shadow": shadow}
        given = {name: value for name, value in own.items() if value is not None}
        invocation = Invocation(
            task=self,
            args=args or (),
            kwargs=kwargs or {},
            task_id=task_id,
            options={**options, **given},
        )
        for interceptor in _interceptors:
            result = interceptor(invocation)
            if result is not None:
                return result
        return super().apply_async(
            args, kwargs, task_id, producer, link, link_error, shadow, **options
        )

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Veto the start of a run that was cancelled; the body does not run then.

        Celery 5.7 sends ``task_prerun``, by which the start is recorded, before it calls this.
        """
        if getattr(self.request, REFUSED, False):
            raise Ignore(f"The run {task_id} was cancelled before it started.")
        super().before_start(task_id, args, kwargs)
