"""System checks: one function a mistake. They import no task, and ask no broker or database."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from difflib import get_close_matches
from typing import Any

from celery import Celery
from django.conf import settings as django_settings
from django.core import checks
from django.utils.module_loading import import_string
from pydantic import TypeAdapter, ValidationError

from celery_admin_runner.conf import SETTING, is_set, setting_types, settings, user_settings

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
        check_retention,
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
    """Return a type as it is written in code."""
    text = hint.__name__ if isinstance(hint, type) else str(hint)
    for package in ("collections.abc.", "typing.", "datetime."):
        text = text.replace(package, "")
    return text.replace("NoneType", "None").replace(" | ", " or ")


def _is_negative(value: Any) -> bool:
    if isinstance(value, timedelta):
        return value < timedelta()
    return isinstance(value, int | float) and value < 0
