"""How a value travels: kombu's JSON, and its plain form that a JSON column can hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, cast

from kombu.utils.json import dumps, loads, register_type

from celery_admin_runner.exceptions import NotEncodable

#: Larger texts are refused: they belong into a file, not into a message.
CALL_MAX_BYTES = 1024 * 1024


def register_types() -> None:
    """Teach kombu's JSON the types that a form can ask for and that it lacks.

    Called when Django starts, in web processes and workers alike, so that both
    ends speak the same. kombu 5.7 knows date, time, datetime, Decimal, UUID and bytes.
    """
    register_type(timedelta, "timedelta", timedelta.total_seconds, _timedelta)
    register_type(set, "set", list, set)
    register_type(frozenset, "frozenset", list, frozenset)


def _timedelta(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)


def to_plain(value: Any) -> Any:
    """Return ``value`` as plain JSON data, in which ``from_plain`` finds every type again.

    Raises NotEncodable for what JSON, or a JSON column of any database, can't hold:
    unknown types, NaN and infinity, NUL characters, lone surrogates.
    """
    try:
        text = dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        raise NotEncodable(f"This can't be written as JSON: {error}") from error
    plain = json.loads(text)
    if "\\u0000" in text or "\\ud" in text.lower():
        _refuse_unstorable(plain)
    return plain


def from_plain(plain: Any) -> Any:
    """Return the value that ``to_plain`` was given (tuples come back as lists)."""
    return loads(json.dumps(plain))


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


def storable_text(text: str) -> str:
    """Return ``text`` with the characters replaced that not every database can store."""
    return text.replace("\x00", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()


def _refuse_unstorable(plain: Any) -> None:
    """Raise NotEncodable if a text in ``plain`` can't be stored by every database."""
    if isinstance(plain, str):
        if "\x00" in plain:
            raise NotEncodable("A text holds a NUL character, which can't be stored.")
        try:
            plain.encode()
        except UnicodeEncodeError as error:
            raise NotEncodable(
                "A text holds half a character (a lone surrogate), which can't be stored."
            ) from error
    elif isinstance(plain, dict):
        for key, item in cast("dict[str, Any]", plain).items():
            _refuse_unstorable(key)
            _refuse_unstorable(item)
    elif isinstance(plain, list):
        for item in plain:
            _refuse_unstorable(item)
