"""What a run form is filled in with at first: the arguments of a run, or of the page's address."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.http import QueryDict
from django.utils import timezone
from pydantic import PydanticUserError

from celery_admin_runner.annotations import shape_of
from celery_admin_runner.binding import arrange, bind
from celery_admin_runner.calls import may_hold_secret, wire_of
from celery_admin_runner.encoding import from_plain
from celery_admin_runner.exceptions import NotEncodable
from celery_admin_runner.forms.json_text import call_texts, parse_json
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.parameters import OPEN, UNREADABLE, Parameter, Signature, fields_of
from celery_admin_runner.redaction import MASK
from celery_admin_runner.states import KEPT, State

#: Raised for a value that does not fit its parameter (any more).
_UNFIT = (*UNREADABLE, PydanticUserError, NotEncodable)

#: The options of a run that the form shows as they are.
_KEPT_OPTIONS = ("queue", "priority")


def initial_from_run(run: TaskRunRecord, signature: Signature) -> dict[str, Any]:
    """Return the arguments of a run for ``RunForm``; masked values are left out.

    Arguments that no longer fit the task are shown as JSON.
    """
    options = _options(run)
    binding = bind(signature, from_plain(run.args), from_plain(run.kwargs))
    given = {name: value for name, value in binding.by_name().items() if value != MASK}
    values = {name: _unmasked(value) for name, value in given.items()}
    is_fit = not binding.problems and all(
        values[name] != value or _fits(signature[name].collected, value)
        for name, value in given.items()
    )
    if signature.problem or not is_fit:
        # A masked argument in the middle keeps its place.
        args = [None if item == MASK else _unmasked(item) for item in from_plain(run.args)]
        unchecked = bind(OPEN, args, _unmasked(from_plain(run.kwargs)))
        return {"mode": "json", "json": call_texts(unchecked.arguments), "options": options}
    arguments = bind(signature, *arrange(signature, values)).arguments
    return {"values": values, "json": call_texts(arguments), "options": options}


def seconds_to_expire(run: TaskRunRecord) -> int | None:
    """Return how many whole seconds after it is sent the same run would expire; None: never.

    Where that was a moment, it is as far from now as the old one was from when its run was made.
    """
    expires = from_plain(run.options.get("expires"))
    if isinstance(expires, datetime) and run.expires_at is not None:
        expires = (run.expires_at - run.created_at).total_seconds()
    is_number = isinstance(expires, int | float) and not isinstance(expires, bool)
    return math.ceil(expires) if is_number and expires > 0 else None


def _options(run: TaskRunRecord) -> dict[str, Any]:
    """Return the options of a run that the form shows."""
    options = {name: run.options[name] for name in _KEPT_OPTIONS if name in run.options}
    seconds = seconds_to_expire(run)
    if seconds is not None:
        options["expires"] = seconds
    if run.state in KEPT and run.eta is not None and run.eta > timezone.now():
        options["eta"] = run.eta
    if run.state == State.WAITING:
        options["depends_on"] = list(run.depends_on.values_list("pk", flat=True))
    return options


def _unmasked(value: Any) -> Any:
    """Return the value without what is masked in it."""
    if isinstance(value, Mapping):
        return {key: _unmasked(item) for key, item in value.items() if item != MASK}
    if isinstance(value, list):
        return [_unmasked(item) for item in value if item != MASK]
    return value


def _fits(parameter: Parameter, value: Any) -> bool:
    try:
        wire_of(parameter, value)
    except _UNFIT:
        return False
    return True


def initial_from_query(query: QueryDict, signature: Signature) -> dict[str, Any]:
    """Return the values of ``?<parameter>=<value>`` for ``RunForm``; secrets are never taken.

    A value that the parameter does not take is shown as it was written.
    """
    values: dict[str, Any] = {}
    texts: dict[str, str] = {}
    for parameter in signature.parameters:
        _take(parameter, parameter.name, query, values, texts)
        inner: dict[str, Any] = {}
        for field in fields_of(shape_of(parameter.annotation).base):
            place = f"{parameter.name}.{field.name}"
            _take(field, place, query, inner, texts, key=field.name)
        if inner:
            values[parameter.name] = {**values.get(parameter.name, {}), **inner}
    return {"values": values, "texts": texts}


def _take(
    parameter: Parameter,
    name: str,
    query: QueryDict,
    values: dict[str, Any],
    texts: dict[str, str],
    *,
    key: str = "",
) -> None:
    """Take the value that the query has for a parameter or a field of a model."""
    if name not in query or may_hold_secret(parameter):
        return
    written = query.getlist(name)
    for candidate in _candidates(parameter, written):
        try:
            values[key or name] = _aware(wire_of(parameter.collected, candidate))
        except _UNFIT:
            continue
        return
    texts[name] = written[-1]


def _aware(value: Any) -> Any:
    """Return a moment that names no time zone as the form would take it when typed."""
    if settings.USE_TZ and isinstance(value, datetime) and timezone.is_naive(value):
        return timezone.make_aware(value)
    return value


def _candidates(parameter: Parameter, written: list[str]) -> Iterator[Any]:
    """Yield what may be meant: the text, the value of its JSON, the list of texts."""
    text = written[-1]
    if text == "" and shape_of(parameter.annotation).is_optional:
        yield None
    if parameter.has_annotation and not parameter.is_variadic and len(written) == 1:
        yield text
    try:
        yield parse_json(text)
    except ValidationError:
        if not parameter.has_annotation:
            yield text
    yield written
