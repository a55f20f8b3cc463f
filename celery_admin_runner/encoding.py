"""How a value travels: kombu's JSON, and its plain form that a JSON column can hold."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Set
from datetime import timedelta
from types import TracebackType
from typing import Any, cast

from django.utils.dateparse import parse_duration
from django.utils.duration import duration_iso_string
from django.utils.translation import gettext as _
from kombu.utils.encoding import safe_repr
from kombu.utils.json import dumps, loads, register_type

from celery_admin_runner.exceptions import NotEncodable

#: Larger texts are refused: they belong into a file, not into a message.
CALL_MAX_BYTES = 1024 * 1024
#: The keys under which the text of a value stands that could not be stored as it was sent.
FORCED, SHORTENED = "forced_json", "shortened"
#: Lists in lists, so deep: MariaDB 10.11 takes JSON of 31 levels, SQLite of 1000.
MAX_DEPTH = 30
#: The types that mean the same in JSON and in Python.
_SCALARS = frozenset({str, int, float, bool, type(None)})
#: ``json.dumps`` with these options makes an encoder for each call.
_write_json = json.JSONEncoder(ensure_ascii=False, default=str).encode


class ForeignCode:
    """Surrounds code of a project's own types: whatever error that raises is NotEncodable."""

    def __enter__(self) -> None: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, NotEncodable):
            text = _("This can't be written as JSON: %(error)s") % {"error": type(error).__name__}
            raise NotEncodable(text) from error


class _AsText:
    """Lets kombu's ``safe_repr`` survive a ``__str__`` that raises."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return str(self.value)


def register_types() -> None:
    """Teach kombu's JSON the types that a form can ask for and that it lacks.

    Called when Django starts, in web processes and workers alike, so that both
    ends speak the same. kombu 5.7 knows date, time, datetime, Decimal, UUID and bytes.
    A duration travels as ISO 8601: as a number of seconds a long one loses microseconds.
    """
    register_type(timedelta, "timedelta", duration_iso_string, _timedelta)
    register_type(set, "set", _in_order, set)
    register_type(frozenset, "frozenset", _in_order, frozenset)


def _in_order(items: Set[Any]) -> list[Any]:
    """Return the items of a set, equal sets in the same order in every process."""
    return sorted(items, key=repr)


def _timedelta(text: str) -> timedelta:
    duration = parse_duration(text)
    if duration is None:
        raise ValueError(f"{text!r} is no duration in ISO 8601.")
    return duration


def to_plain(value: Any) -> Any:
    """Return ``value`` as plain JSON data, in which ``from_plain`` finds every type again.

    Raises NotEncodable for what JSON, or a JSON column of any database, can't hold:
    unknown types, NaN and infinity, NUL characters, lone surrogates, and what is
    nested deeper than MAX_DEPTH.
    """
    try:
        text = dumps(value, allow_nan=False)
        plain = json.loads(text)
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        text = _("This can't be written as JSON: %(error)s") % {"error": error}
        raise NotEncodable(text) from error
    if text.count("[") + text.count("{") > MAX_DEPTH:
        _refuse_deep(plain)
    if "\\u0000" in text or "\\ud" in text.lower():
        _refuse_unstorable(plain)
    return plain


def is_altered(plain: Any) -> bool:
    """Tell whether this stands in a row in place of a value that could not be stored as sent."""
    keys: Any = plain.keys() if isinstance(plain, Mapping) else ()
    return keys in ({"value", FORCED}, {"value", SHORTENED})


def from_plain(plain: Any) -> Any:
    """Return the value that ``to_plain`` was given (tuples come back as lists)."""
    # Most of what a dispatcher reads; the way by text takes ten times as long.
    if type(plain) is list and all(type(item) in _SCALARS for item in plain):
        return list(plain)
    if type(plain) is dict and _is_flat(plain):
        return dict(plain)
    return loads(json.dumps(plain))


def _is_flat(plain: dict[str, Any]) -> bool:
    """Tell whether a JSON object holds no other, and is none of kombu's envelopes."""
    return "__type__" not in plain and all(type(item) in _SCALARS for item in plain.values())


def readable(plain: Any) -> Any:
    """Return plain JSON data without kombu's envelopes, for people to read."""
    if isinstance(plain, Mapping):
        if plain.keys() == {"__type__", "__value__"}:
            value = plain["__value__"]
            is_uuid = plain["__type__"] == "uuid" and isinstance(value, Mapping)
            return value.get("hex", value) if is_uuid else readable(value)
        return {key: readable(item) for key, item in plain.items()}
    if isinstance(plain, list):
        return [readable(item) for item in plain]
    return plain


def readable_text(plain: Any, *, indent: int | None = None) -> str:
    """Return plain JSON data as text for people to read."""
    return json.dumps(readable(plain), ensure_ascii=False, indent=indent, default=str)


def readable_json(text: str) -> str | None:
    """Return JSON as ``readable_text`` writes its value; None for "null"."""
    plain = json.loads(text)
    if plain is None:
        return None
    # An envelope's key may be written with escapes.
    return _write_json(readable(plain) if "__type__" in text or "\\u" in text else plain)


def text_of(value: Any) -> str:
    """Return ``str(value)``, or what can be told of a value whose ``__str__`` raises."""
    try:
        with ForeignCode():
            return str(safe_repr(_AsText(value)))
    except NotEncodable:
        return f"<{type(value).__name__}>"


def storable_text(text: str) -> str:
    """Return ``text`` with the characters replaced that not every database can store."""
    return text.replace("\x00", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()


def _refuse_deep(plain: Any) -> None:
    """Raise NotEncodable if ``plain`` has more than MAX_DEPTH levels; looks level by level."""
    level = [plain]
    for _level in range(MAX_DEPTH + 1):
        level = [child for item in level for child in _children(item)]
    if level:
        raise NotEncodable(
            _("This is nested too deeply: more than %(limit)s levels.") % {"limit": MAX_DEPTH}
        )


def _children(plain: Any) -> Iterable[Any]:
    if isinstance(plain, dict):
        return plain.values()
    return plain if isinstance(plain, list) else ()


def _refuse_unstorable(plain: Any) -> None:
    """Raise NotEncodable if a text in ``plain`` can't be stored by every database."""
    if isinstance(plain, str):
        if "\x00" in plain:
            raise NotEncodable(_("A text holds a NUL character, which can't be stored."))
        try:
            plain.encode()
        except UnicodeEncodeError as error:
            raise NotEncodable(
                _("A text holds half a character (a lone surrogate), which can't be stored.")
            ) from error
    elif isinstance(plain, dict):
        for key, item in cast("dict[str, Any]", plain).items():
            _refuse_unstorable(key)
            _refuse_unstorable(item)
    elif isinstance(plain, list):
        for item in plain:
            _refuse_unstorable(item)
