"""A validated value as a message can carry it, and as it may be shown: secrets apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set, ValuesView
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from functools import partial
from typing import Any
from uuid import UUID

from django.utils.functional import Promise
from django.utils.translation import gettext as _
from pydantic import BaseModel, RootModel, Secret, SecretBytes, SecretStr
from pydantic_core import PydanticSerializationError, to_jsonable_python

from celery_admin_runner.encoding import MAX_DEPTH
from celery_admin_runner.exceptions import NotEncodable
from celery_admin_runner.parameters import field_names, validation_key
from celery_admin_runner.redaction import MASK, is_secret_name, texts_of

_ENVELOPE = {"__type__", "__value__"}
_NATIVE = (bool, int, float, str, bytes, date, timedelta, Decimal, UUID)


@dataclass(frozen=True)
class Hidden:
    """A secret in a tree that ``to_wire`` made."""

    value: Any


def to_wire(value: Any, *, only_set: bool = False, only_held: bool = False, depth: int = 0) -> Any:
    """Return ``value`` as a tree of what serializers carry, each secret in it as ``Hidden``.

    Enums become their value, models, dataclasses and named tuples dicts, tuples
    lists, keys texts, whatever else pydantic writes as a text that text.
    ``only_set`` leaves out the fields of models that only have their default.
    ``only_held`` takes nothing from iterators, which would be used up, and may have no end,
    and from ranges. Raises NotEncodable.
    """
    if depth > MAX_DEPTH:
        raise NotEncodable(
            _("This is nested too deeply: more than %(limit)s levels.") % {"limit": MAX_DEPTH}
        )
    below = partial(to_wire, only_set=only_set, only_held=only_held, depth=depth + 1)
    if value is None or type(value) in _NATIVE:
        return value
    if isinstance(value, Secret | SecretBytes | SecretStr):
        return Hidden(revealed(below(value.get_secret_value())))
    if isinstance(value, Enum):
        return below(value.value)
    if isinstance(value, datetime | time):
        return _with_fixed_offset(value)
    if isinstance(value, Mapping):
        return _mapping(value, below)
    if isinstance(value, RootModel):
        return below(value.root)
    if isinstance(value, BaseModel):
        return _hidden_by_field(type(value), _mapping(_model_items(value, only_set), below))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _mapping(_dataclass_items(value), below)
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _mapping(value._asdict(), below)
    if isinstance(value, Set):
        return _set(value, below)
    if isinstance(value, str | bytes | bytearray | memoryview):
        return str.__str__(value) if isinstance(value, str) else bytes(value)
    if only_held and isinstance(value, Iterator | range):
        raise NotEncodable(f"{type(value).__name__}: its items are made when they are asked for.")
    if isinstance(value, Sequence | Iterator | ValuesView):
        return [below(item) for item in value]
    return _leaf(value)


def _with_fixed_offset(value: datetime | time) -> datetime | time:
    """Return the moment with its plain offset, or none: the name of a zone does not travel."""
    offset = value.utcoffset()
    return value.replace(tzinfo=None if offset is None else timezone(offset), fold=0)


def _mapping(value: Mapping[Any, Any], below: Callable[[Any], Any]) -> dict[str, Any]:
    tree = {_key(key): below(item) for key, item in value.items()}
    if len(tree) != len(value):
        raise NotEncodable(_("Two keys are the same when written as text."))
    if tree.keys() == _ENVELOPE:
        raise NotEncodable(
            _(
                "A dict whose only keys are __type__ and __value__ can't be sent: "
                "Celery's serializer keeps these for itself."
            )
        )
    return {key: _hidden_if_named(key, item) for key, item in tree.items()}


def _hidden_if_named(key: str, item: Any) -> Any:
    return Hidden(revealed(item)) if is_secret_name(key) else item


def _hidden_by_field(cls: type[BaseModel], tree: dict[str, Any]) -> dict[str, Any]:
    """Hide also what is secret by the name of its field or by any alias of it."""
    secret = {
        validation_key(cls, name, info)
        for name, info in cls.model_fields.items()
        if any(map(is_secret_name, field_names(name, info)))
    }
    return {key: Hidden(revealed(item)) if key in secret else item for key, item in tree.items()}


def _key(key: Any) -> str:
    """Return the key of a dict as the text that JSON makes of it."""
    key = revealed(to_wire(key))
    if isinstance(key, str):
        return key
    if key is None or isinstance(key, bool):
        return {None: "null", True: "true", False: "false"}[key]
    if isinstance(key, date | time | timedelta):
        return str(to_jsonable_python(key))
    if isinstance(key, int | float | Decimal | UUID):
        return str(key)
    raise NotEncodable(
        _("A key of a dict must be a text or a number, not %(type)s.")
        % {"type": type(key).__name__}
    )


def _model_items(model: BaseModel, only_set: bool) -> dict[str, Any]:
    """Return a model's fields by the keys it is validated from, and its extra values."""
    cls = type(model)
    items = {
        validation_key(cls, name, info): getattr(model, name)
        for name, info in cls.model_fields.items()
        if name in model.model_fields_set or not only_set
    }
    return items | dict(model.model_extra or {})


def _dataclass_items(value: Any) -> dict[str, Any]:
    return {
        item.name: getattr(value, item.name) for item in dataclasses.fields(value) if item.init
    }


def _set(value: Iterable[Any], below: Callable[[Any], Any]) -> Any:
    items = [below(item) for item in value]
    try:
        return frozenset(items) if isinstance(value, frozenset) else set(items)
    except TypeError as error:
        raise NotEncodable(_("A set can hold texts, numbers and dates only.")) from error


def _leaf(value: Any) -> Any:
    """Return what is none of the above: a number, or the text that pydantic writes for it."""
    if isinstance(value, Promise):
        return str(value)
    for kind in (int, float, Decimal):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, date | timedelta | UUID):
        return value
    try:
        return to_jsonable_python(value)
    except (PydanticSerializationError, ValueError) as error:
        kind_name = type(value).__name__
        raise NotEncodable(
            _("A value of the type %(type)s can't be sent to a worker.") % {"type": kind_name}
        ) from error


def revealed(tree: Any) -> Any:
    """Return the tree as it is sent."""
    return _rebuilt(tree, lambda secret: secret.value)


def masked(tree: Any) -> Any:
    """Return the tree as it is stored and shown."""
    return _rebuilt(tree, lambda secret: MASK)


def _rebuilt(tree: Any, change: Callable[[Hidden], Any]) -> Any:
    if isinstance(tree, Hidden):
        return change(tree)
    if isinstance(tree, dict):
        return {key: _rebuilt(item, change) for key, item in tree.items()}
    if isinstance(tree, list | set | frozenset):
        return type(tree)(_rebuilt(item, change) for item in tree)
    return tree


def secrets_in(tree: Any) -> Iterator[Any]:
    """Yield the value of each secret in the tree."""
    if isinstance(tree, Hidden):
        yield tree.value
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from secrets_in(item)
    elif isinstance(tree, list | set | frozenset):
        for item in tree:
            yield from secrets_in(item)


def secret_texts(tree: Any) -> set[str]:
    """Return the texts of the secrets in the tree, as they would stand in a message."""
    return {text for value in secrets_in(tree) for text in texts_of(value)}
