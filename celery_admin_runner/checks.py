"""System checks: one function a mistake. They import no task, and ask no broker or database."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin

from celery import Celery
from django.apps import apps
from django.conf import settings as django_settings
from django.core import checks
from django.utils.module_loading import import_string
from pydantic import TypeAdapter, ValidationError

from celery_admin_runner.commands import RESERVED, known_commands
from celery_admin_runner.conf import SETTING, is_set, setting_types, settings, user_settings
from celery_admin_runner.exceptions import BeatMisconfigured
from celery_admin_runner.leases import beat_lease_seconds
from celery_admin_runner.querysets import STALE_AFTER
from celery_admin_runner.registry import DISPATCH_TASK
from celery_admin_runner.states import FINISHED, UNFINISHED

#: How a project names our result backend.
OWN_BACKENDS = frozenset({"celery-admin-runner", "celery_admin_runner.backends:DatabaseBackend"})
#: What each key of a rule in RUNNABLE_TASKS can be (``registry.Rule``).
RULE_TYPES: dict[str, Any] = {
    "permission": str,
    "groups": Sequence[str] | set[str] | frozenset[str],
    "confirm": bool,
    "reason": bool,
}


def register() -> None:
    """Have Django run these checks."""
    for check in (
        check_mapping,
        check_names,
        check_types,
        check_app,
        check_rules,
        check_not_negative,
        check_stale_after,
        check_results_app,
        check_beat_lease,
        check_command_names,
        check_command_options,
        check_retention,
        check_dispatch,
    ):
        checks.register(check)


def check_mapping(**kwargs: Any) -> list[checks.CheckMessage]:
    """E001: the setting is a dict."""
    value = getattr(django_settings, SETTING, {})
    if isinstance(value, Mapping):
        return []
    return [
        checks.Error(
            f"{SETTING} is {value!r}, and should be a dict.",
            hint=f'For example {SETTING} = {{"RETENTION": timedelta(weeks=4)}}.',
            id="celery_admin_runner.E001",
        )
    ]


def check_names(**kwargs: Any) -> list[checks.CheckMessage]:
    """E002: every key is one that we know."""
    known = setting_types()
    return [
        checks.Error(
            f"{SETTING} has the unknown key {name!r}.",
            hint=_names_hint(name, list(known)),
            id="celery_admin_runner.E002",
        )
        for name in user_settings()
        if name not in known
    ]


def check_types(**kwargs: Any) -> list[checks.CheckMessage]:
    """E003: every value has the type of its setting."""
    types = setting_types()
    return [
        checks.Error(
            f"{SETTING}[{name!r}] is {value!r}, which has the wrong type.",
            hint=f"It should be {_type_text(types[name])}.",
            id="celery_admin_runner.E003",
        )
        for name, value in user_settings().items()
        if name in types and not _fits(types[name], value)
    ]


def check_app(**kwargs: Any) -> list[checks.CheckMessage]:
    """E004: APP names a Celery app that can be imported."""
    path = settings.APP
    if not isinstance(path, str):
        return []
    try:
        app = import_string(path.replace(":", "."))
    except ImportError as error:
        problem = f"can't be imported: {error}"
    else:
        if isinstance(app, Celery):
            return []
        problem = f"is {app!r}, which is no Celery app"
    return [
        checks.Error(
            f"{SETTING}['APP'], {path!r}, {problem}.",
            hint='Name the module and the app in it, as "shop.celery:app".',
            id="celery_admin_runner.E004",
        )
    ]


def check_rules(**kwargs: Any) -> list[checks.CheckMessage]:
    """E005: the rules in RUNNABLE_TASKS have keys and values that we know."""
    rules = settings.RUNNABLE_TASKS
    if not isinstance(rules, Mapping):
        return []
    return [
        checks.Error(
            f"{SETTING}['RUNNABLE_TASKS'][{pattern!r}] {problem}.",
            hint=hint,
            id="celery_admin_runner.E005",
        )
        for pattern, rule in rules.items()
        for problem, hint in _rule_problems(rule)
    ]


def check_not_negative(**kwargs: Any) -> list[checks.CheckMessage]:
    """E006: durations and sizes are not negative."""
    types = setting_types()
    return [
        checks.Error(
            f"{SETTING}[{name!r}] is {value!r}, and should not be negative.",
            hint="Name a duration or size from zero on.",
            id="celery_admin_runner.E006",
        )
        for name, value in user_settings().items()
        if name in types and _is_negative(value)
    ]


def check_stale_after(**kwargs: Any) -> list[checks.CheckMessage]:
    """E007: STALE_AFTER names unfinished states, and no negative durations."""
    thresholds = user_settings().get("STALE_AFTER")
    if not isinstance(thresholds, Mapping):
        return []
    return [
        checks.Error(
            f"{SETTING}['STALE_AFTER'][{name!r}] {problem}.",
            hint=hint,
            id="celery_admin_runner.E007",
        )
        for name, threshold in thresholds.items()
        for problem, hint in _threshold_problems(name, threshold)
    ]


def check_results_app(**kwargs: Any) -> list[checks.CheckMessage]:
    """E008: our result backend keeps groups and chords in django_celery_results' tables."""
    backend = getattr(django_settings, "CELERY_RESULT_BACKEND", None)
    is_ours = isinstance(backend, str) and backend in OWN_BACKENDS
    if not is_ours or apps.is_installed("django_celery_results"):
        return []
    return [
        checks.Error(
            f"CELERY_RESULT_BACKEND is {backend!r}, which needs the app django_celery_results.",
            hint='Add "django_celery_results" to INSTALLED_APPS, and run manage.py migrate.',
            id="celery_admin_runner.E008",
        )
    ]


def check_beat_lease(**kwargs: Any) -> list[checks.CheckMessage]:
    """E010: the lease of a locked beat has a length that one can wait for."""
    if not _fits(float, settings.BEAT_LEASE_SECONDS):
        return []
    try:
        beat_lease_seconds()
    except BeatMisconfigured as error:
        return [
            checks.Error(
                str(error),
                hint="After so many seconds another beat takes over from one that died.",
                id="celery_admin_runner.E010",
            )
        ]
    return []


def check_command_names(**kwargs: Any) -> list[checks.CheckMessage]:
    """E011: each key of COMMAND_TASKS names a command."""
    commands = list(known_commands())
    names = [name for command in commands for name in (command.name, command.dotted)]
    return [
        checks.Error(
            f"{SETTING}['COMMAND_TASKS'] has the key {key!r}, which matches no command.",
            hint=_commands_hint(key, names),
            id="celery_admin_runner.E011",
        )
        for key in _command_tasks()
        if not any(command.matches(key) for command in commands)
    ]


def check_command_options(**kwargs: Any) -> list[checks.CheckMessage]:
    """E012: the values in COMMAND_TASKS are options of tasks."""
    return [
        checks.Error(
            f"{SETTING}['COMMAND_TASKS'][{key!r}] {problem}.",
            hint='Give the options that @shared_task takes: {"unique": True}, or {}.',
            id="celery_admin_runner.E012",
        )
        for key, options in _command_tasks().items()
        for problem in _options_problems(options)
    ]


def check_retention(**kwargs: Any) -> list[checks.CheckMessage]:
    """W001: the project itself says how long runs are kept."""
    age = settings.RETENTION
    if is_set("RETENTION") or age is None:
        return []
    return [
        checks.Warning(
            f"{SETTING}['RETENTION'] is not set: finished runs are deleted after {age.days} days.",
            hint="Set it to the timedelta that your audits need, or to None: kept for ever.",
            id="celery_admin_runner.W001",
        )
    ]


def check_dispatch(**kwargs: Any) -> list[checks.CheckMessage]:
    """W002: with DISPATCH "beat" a schedule has the task that sends what is due."""
    if settings.DISPATCH != "beat" or apps.is_installed("django_celery_beat"):
        # django-celery-beat has its schedule in the database.
        return []
    entries = _entries(getattr(django_settings, "CELERY_BEAT_SCHEDULE", None))
    if any(entry.get("task") == DISPATCH_TASK for entry in [*entries, *_app_schedule()]):
        return []
    return [
        checks.Warning(
            f"{SETTING}['DISPATCH'] is 'beat', and no schedule has the task {DISPATCH_TASK!r}.",
            hint="Let beat send it every few seconds, else scheduled runs never start.",
            id="celery_admin_runner.W002",
        )
    ]


def _app_schedule() -> list[Mapping[str, Any]]:
    """Return the entries in the schedule of the app that APP names; () if it can't be read."""
    if not isinstance(settings.APP, str):
        return []
    try:
        app = import_string(settings.APP.replace(":", "."))
    except ImportError:
        return []
    return _entries(app.conf.beat_schedule) if isinstance(app, Celery) else []


def _entries(schedule: Any) -> list[Mapping[str, Any]]:
    """Return the entries of a schedule, as far as it is one: Celery tells of the rest."""
    entries = schedule.values() if isinstance(schedule, Mapping) else ()
    return [entry for entry in entries if isinstance(entry, Mapping)]


def _rule_problems(rule: Any) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with one rule, and how to mend it."""
    if not isinstance(rule, Mapping):
        yield f"is {rule!r}, and should be a dict", 'For example {"confirm": True}, or {}.'
        return
    for key, value in rule.items():
        if key not in RULE_TYPES:
            yield f"has the unknown key {key!r}", _names_hint(key, list(RULE_TYPES))
        elif not _fits(RULE_TYPES[key], value):
            yield (
                f"has {key!r}: {value!r}, which has the wrong type",
                f"It should be {_type_text(RULE_TYPES[key])}.",
            )
        elif key == "permission" and value and not all(value.partition(".")):
            yield (
                f"has the permission {value!r}, which names no app",
                'Name app and codename, as "billing.close_month".',
            )


def _command_tasks() -> Mapping[Any, Any]:
    """Return COMMAND_TASKS; what is no mapping has a check of its own."""
    value = settings.COMMAND_TASKS
    return value if isinstance(value, Mapping) else {}


def _commands_hint(key: Any, names: list[str]) -> str:
    """Return the commands that were likely meant."""
    close = get_close_matches(str(key), names, n=3)
    if close:
        return f"Did you mean {' or '.join(map(repr, close))}?"
    return 'Name a command, as "clearsessions", or a pattern of app and command, as "shop.*".'


def _options_problems(options: Any) -> Iterator[str]:
    """Yield what is wrong with the options of one task."""
    if not isinstance(options, Mapping):
        yield f"is {options!r}, and should be a dict"
        return
    for name in options:
        if name in RESERVED or not isinstance(name, str):
            yield f"has the option {name!r}, which is not to be set"


def _threshold_problems(name: Any, threshold: Any) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with one threshold of STALE_AFTER, and how to mend it."""
    known = sorted(state.value for state in STALE_AFTER)
    if name in FINISHED:
        yield "is for a state of runs that have ended", f"Name one of {', '.join(known)}."
    elif name not in UNFINISHED:
        yield "is for an unknown state", _names_hint(name, known)
    elif isinstance(threshold, timedelta) and _is_negative(threshold):
        yield f"is {threshold!r}, and should not be negative", "None means never."


def _names_hint(name: Any, known: list[str]) -> str:
    """Return the name that was likely meant, else all of them."""
    close = get_close_matches(str(name).upper(), [text.upper() for text in known], n=1)
    meant = [text for text in known if text.upper() in close]
    return f"Did you mean {meant[0]!r}?" if meant else f"Known are {', '.join(known)}."


def _fits(hint: Any, value: Any) -> bool:
    """Tell whether ``value`` has the type ``hint``; a text is no sequence of texts."""
    try:
        TypeAdapter(hint).validate_python(value, strict=True)
    except ValidationError:
        return False
    return True


def _type_text(hint: Any) -> str:
    """Return a type as it is written in code; of a Literal, its values."""
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    text = hint.__name__ if isinstance(hint, type) else str(hint)
    for package in ("collections.abc.", "typing.", "datetime."):
        text = text.replace(package, "")
    return text.replace("NoneType", "None").replace(" | ", " or ")


def _is_negative(value: Any) -> bool:
    if isinstance(value, timedelta):
        return value < timedelta()
    return isinstance(value, int | float) and value < 0
