"""Every setting: default, type, unit, meaning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal, get_type_hints

from django.conf import settings as django_settings

#: The one Django setting that holds all of ours.
SETTING = "CELERY_ADMIN_RUNNER"


class Settings:
    """The settings, read from ``settings.CELERY_ADMIN_RUNNER`` at each access.

    The class attributes are the defaults, their annotations the types that the
    system check asks for.
    """

    #: Dotted path of the Celery app, as ``"shop.celery:app"``; None: Celery's current app.
    APP: str | None = None
    #: Which tasks can be run: None (all but Celery's own), names and glob
    #: patterns, or a mapping from pattern to rule (see ``registry.Rule``).
    RUNNABLE_TASKS: Sequence[str] | set[str] | frozenset[str] | Mapping[str, Any] | None = None
    #: Hide the tasks that can't be run.
    SHOW_ONLY_RUNNABLE: bool = False
    #: Finished runs older than this are pruned; None: kept for ever.
    RETENTION: timedelta | None = timedelta(weeks=4)
    #: Prune when a worker is ready or a web process has served its first request, in
    #: the background, once a day at most over all processes.
    PRUNE_ON_STARTUP: bool = True
    #: Glob patterns of parameter names whose values are never stored, shown,
    #: exported or logged. Case does not matter.
    REDACT: Sequence[str] = ("*password*", "*secret*", "*token*", "*api_key*")
    #: Names and glob patterns of tasks that are journalled also when code starts them, or
    #: beat; ``["*"]``: all but Celery's own.
    TRACK: Sequence[str] = ()
    #: How many bytes of a run's output are kept: its beginning and its end.
    OUTPUT_MAX_BYTES: int = 1024 * 1024
    #: After how many seconds at most the output of a running task is written down.
    OUTPUT_FLUSH_SECONDS: float = 1
    #: Our result backend stores the text of a result that is no JSON; False: the task fails.
    FORCE_JSON: bool = True
    #: After how long in a state, without a word, an unfinished run counts as stale; states
    #: that are not named keep their default, None: never (see ``querysets.STALE_AFTER``).
    STALE_AFTER: Mapping[str, timedelta | None] = {}
    #: Results larger than this many bytes of JSON are stored shortened, and say so.
    RESULT_MAX_BYTES: int = 64 * 1024
    #: Who sends the runs that are due: "worker" (each worker, in a thread), "beat" (the task
    #: ``celery_admin_runner.tasks.dispatch_due_runs``, which beat is to send each few seconds)
    #: or "command" (``manage.py dispatch_taskruns``).
    DISPATCH: Literal["worker", "beat", "command"] = "worker"
    #: Keep a DjangoTask that code sends with ``eta`` or ``countdown`` in the database until it
    #: is due, and not in the memory of the workers.
    SCHEDULE_ETA: bool = False
    #: After how long a unique task's run no longer keeps others from running, for tasks that
    #: say nothing themselves (``stale_time_limit``); None: what follows from their limits.
    UNIQUE_STALE_AFTER: timedelta | None = None
    #: Dotted path of a callable that looks at each registered task when Django checks itself:
    #: it returns or yields texts or Django's check messages about the task, or nothing.
    TASK_CHECKER: str | None = None
    #: Which management commands are tasks: by a command's name, or by a glob pattern of it or
    #: of ``<app label>.<name>``, the options of the task, as ``@shared_task`` takes them. The
    #: first key that matches counts: ``{"clearsessions": {"unique": True}, "shop.*": {}}``.
    COMMAND_TASKS: Mapping[str, Any] = {}
    #: For how many seconds a locked beat (``celery_admin_runner.beat``) holds its lease: after so
    #: many, and one tick, another takes over from one that died. 1 to 86400.
    BEAT_LEASE_SECONDS: float = 60
    #: Where the websocket of a user's runs is, as a path (``"/ws/task-runs/"``) or a URL: pages
    #: with ``{% task_runs %}`` are told there; "": they ask the server again and again.
    WEBSOCKET_URL: str = ""

    def __getattribute__(self, name: str) -> Any:
        """Answer from the project's settings, else with the default."""
        default = super().__getattribute__(name)
        if not name.isupper():
            return default
        return user_settings().get(name, default)


def user_settings() -> Mapping[str, Any]:
    """Return what the project set; what is no mapping counts as empty (a check says so)."""
    value = getattr(django_settings, SETTING, {})
    return value if isinstance(value, Mapping) else {}


def is_set(name: str) -> bool:
    """Tell whether the project itself set ``name``."""
    return name in user_settings()


def setting_types() -> dict[str, Any]:
    """Return the name and the type of every setting."""
    return {name: hint for name, hint in get_type_hints(Settings).items() if name.isupper()}


settings = Settings()
