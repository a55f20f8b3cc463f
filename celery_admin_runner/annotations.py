"""What an annotation means: what is inside of Annotated, Optional, models and containers."""

from __future__ import annotations

import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NewType, NotRequired, Required, Union

from annotated_types import GroupedMetadata
from pydantic import Secret, SecretBytes, SecretStr
from pydantic.fields import FieldInfo
from typing_extensions import TypedDict

#: The origins of ``X | Y``.
UNIONS = (Union, types.UnionType)
_UNION: Any = Union
_SECRETS = (Secret, SecretBytes, SecretStr)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """An annotation taken apart."""

    #: The type itself: a class, ``list[int]``, a union without None, Any ...
    base: Any
    #: What ``Annotated`` says of it, flattened.
    metadata: tuple[Any, ...]
    #: None is allowed too.
    is_optional: bool

    @property
    def origin(self) -> Any:
        """The container of ``list[int]`` and the like, else the type itself."""
        return typing.get_origin(self.base) or self.base

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The arguments of ``list[int]`` and the like."""
        return typing.get_args(self.base)

    @property
    def bare(self) -> Any:
        """The annotation again, without None."""
        return Annotated[self.base, *self.metadata] if self.metadata else self.base

    def constraint(self, name: str) -> Any:
        """Return a bound by its name in annotated_types (``ge``, ``max_length``), or None."""
        found = (getattr(item, name, None) for item in self.metadata)
        return next((bound for bound in found if bound is not None), None)


def shape_of(annotation: Any) -> Shape:
    """Take an annotation apart."""
    base, metadata = _unwrapped(annotation)
    arms = typing.get_args(base) if typing.get_origin(base) in UNIONS else ()
    if type(None) not in arms:
        is_none = base in (None, type(None))
        has_none = typing.get_origin(base) is Literal and None in typing.get_args(base)
        return Shape(base=base, metadata=metadata, is_optional=is_none or has_none)
    inner, more = _unwrapped(union_of(arm for arm in arms if arm is not type(None)))
    return Shape(base=inner, metadata=(*more, *metadata), is_optional=True)


def union_of(arms: Iterable[Any]) -> Any:
    """Return the union of the types, whatever they are."""
    return _UNION[tuple(arms)]


def _unwrapped(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return the type inside of Annotated, NewType, type aliases and (Not)Required."""
    metadata: tuple[Any, ...] = ()
    while True:
        if typing.get_origin(annotation) is Annotated:
            annotation, *more = typing.get_args(annotation)
            metadata = (*_flat(more), *metadata)
        elif typing.get_origin(annotation) in (Required, NotRequired):
            (annotation,) = typing.get_args(annotation)
        elif isinstance(annotation, NewType):
            annotation = annotation.__supertype__
        elif type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__
        else:
            return annotation, metadata


def _flat(metadata: Iterable[Any]) -> Iterator[Any]:
    """Yield each single piece of metadata."""
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from _flat(item.metadata)
        elif isinstance(item, GroupedMetadata):
            yield from _flat(item)
        else:
            yield item


def is_class(annotation: Any, *classes: type) -> bool:
    """Tell whether ``annotation`` is a class, and one of ``classes`` or below."""
    is_plain = isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias)
    return is_plain and issubclass(annotation, classes)


def is_secret_type(annotation: Any) -> bool:
    """Tell whether the annotation is pydantic's SecretStr, SecretBytes or Secret[...]."""
    return is_class(typing.get_origin(annotation) or annotation, *_SECRETS)


def annotation_text(annotation: Any) -> str:
    """Return the annotation as a developer would write it, without modules."""
    if typing.get_origin(annotation) is Annotated:
        return _annotated_text(annotation)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in UNIONS:
        return " | ".join(annotation_text(arm) for arm in arguments)
    if origin is Literal:
        return f"Literal[{', '.join(map(_literal_text, arguments))}]"
    if origin is not None and arguments:
        return f"{_name(origin)}[{', '.join(map(annotation_text, arguments))}]"
    return _name(annotation)


def _annotated_text(annotation: Any) -> str:
    """Return what the metadata calls itself, else what is inside."""
    inner, *metadata = typing.get_args(annotation)
    named = (getattr(item, "annotation_text", "") for item in metadata)
    return next(filter(None, named), "") or annotation_text(inner)


def _literal_text(value: Any) -> str:
    return str(getattr(value, "value", value)) if not isinstance(value, str) else repr(value)


def _name(annotation: Any) -> str:
    if annotation is type(None):
        return "None"
    if annotation is Ellipsis:
        return "..."
    if isinstance(annotation, list):
        return f"[{', '.join(map(annotation_text, annotation))}]"
    name = getattr(annotation, "__name__", None)
    return name if isinstance(name, str) else inspect.formatannotation(annotation)


def replaced(annotation: Any, replace: Callable[[Any], Any]) -> Any:
    """Return ``annotation`` with ``replace`` done to each type in its containers and unions.

    ``replace`` answers the type itself where nothing is to be replaced.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return Annotated[replaced(arguments[0], replace), *arguments[1:]]
    if origin in UNIONS:
        return union_of(replaced(arm, replace) for arm in arguments)
    if not is_class(origin, object):
        return replace(annotation)
    new = tuple(item if item is Ellipsis else replaced(item, replace) for item in arguments)
    return annotation if new == arguments else origin[new]


def with_known_dicts(annotation: Any) -> Any:
    """Return ``annotation`` with each TypedDict as one that pydantic knows.

    pydantic 2.14: before Python 3.12 it takes those of typing_extensions only.
    """
    return replaced(annotation, _known_dict) if sys.version_info < (3, 12) else annotation


def _known_dict(annotation: Any) -> Any:
    if not typing.is_typeddict(annotation) or type(annotation).__module__ != "typing":
        return annotation
    required = annotation.__required_keys__
    fields = {
        name: (Required if name in required else NotRequired)[
            with_known_dicts(without_qualifier(hint))
        ]
        for name, hint in typing.get_type_hints(annotation, include_extras=True).items()
    }
    make: Any = TypedDict
    return make(annotation.__name__, fields)


def without_qualifier(hint: Any) -> Any:
    """Return a field's type without Required or NotRequired around it."""
    is_marked = typing.get_origin(hint) in (Required, NotRequired)
    return typing.get_args(hint)[0] if is_marked else hint
