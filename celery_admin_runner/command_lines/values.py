"""Which values an argument takes: from what argparse says of it to an annotation."""

from __future__ import annotations

import argparse
import inspect
from argparse import SUPPRESS, Action
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from itertools import islice
from types import GenericAlias
from typing import Annotated, Any, Literal
from uuid import UUID

from annotated_types import Ge, Le, Len
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.core.management import CommandError
from django.db import DatabaseError
from django.utils.translation import gettext as _
from pydantic import GetCoreSchemaHandler, Secret, SecretStr
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from celery_admin_runner.annotations import union_of
from celery_admin_runner.attempts import Attempt
from celery_admin_runner.command_lines.texts import is_secret, name_of
from celery_admin_runner.parameters import UNREADABLE, Default, Parameter
from celery_admin_runner.redaction import is_secret_name

#: What goes wrong in a project's own code while a command is imported, or a text converted.
BROKEN = (
    *UNREADABLE,
    argparse.ArgumentError,
    argparse.ArgumentTypeError,
    CommandError,
    DatabaseError,
    ImproperlyConfigured,
    ValidationError,
)
#: More choices than this make a form slow; they are checked, and not listed.
_CHOICES_MAX = 1000
#: A range of numbers up to this long is a list to choose from, a longer one has bounds.
_RANGE_MAX = 25
#: What makes a value of a text, and the class of what it makes, which a form has a field for.
_MAKES: tuple[tuple[Any, type], ...] = (
    (str, str),
    (int, int),
    (float, float),
    (bool, bool),
    (Decimal, Decimal),
    (UUID, UUID),
    (date.fromisoformat, date),
)
MISSING: Any = inspect.Parameter.empty
LITERAL: Any = Literal
_SECRET: Any = Secret
_YES_AND_NO = {(bool, True), (bool, False)}


class NotConverted(ValueError):
    """A project's own ``type=`` refuses a text; the message is what it says."""


@dataclass(frozen=True)
class Converted:
    """What stands in ``Annotated`` for a ``type=`` of argparse: a text that it must accept."""

    action: Action

    @property
    def annotation_text(self) -> str:
        """The name of the type."""
        return name_of(self.action.type)

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Tell pydantic to convert the text, and to keep it as it was."""
        return core_schema.no_info_after_validator_function(self._accepted, handler(source))

    def _accepted(self, text: str) -> str:
        try:
            value = converted(self.action, text)
        except NotConverted as error:
            message = str(error) or name_of(self.action.type)
            raise _refusal(_("This value is not valid: %(error)s") % {"error": message}) from error
        if self.action.choices is not None and value not in self.action.choices:
            raise _refusal(_("This value is not one of the choices."))
        return text


def item_of(action: Action) -> Any:
    """Return the annotation of one value."""
    annotation = _choice(action) if action.choices is not None else kind_of(action)
    if annotation is None:
        annotation = Annotated[str, Converted(action)]
    if is_secret(action) and not is_secret_name(action.dest):
        # Hidden by its option's name; the parameter has another.
        return SecretStr if annotation is str else _SECRET[annotation]
    return annotation


def kind_of(action: Action) -> Any:
    """Return the class of an action's values, None if it is the project's own to make them."""
    if action.type is None or not callable(action.type) or is_file(action):
        return str
    return next((base for made_by, base in _MAKES if action.type == made_by), None)


def is_file(action: Action) -> bool:
    """Tell whether argparse would open a file: that is for the worker alone to do."""
    kind: Any = getattr(action.type, "func", action.type)
    return isinstance(kind, argparse.FileType) or kind is open


def _choice(action: Action) -> Any:
    """Return the annotation of one of the choices, None where they can't be listed."""
    choices: Any = action.choices
    kind = kind_of(action)
    is_long = isinstance(choices, range) and len(choices) > _RANGE_MAX
    if is_long and kind is int and abs(choices.step) == 1:
        return Annotated[int, Ge(min(choices[0], choices[-1])), Le(max(choices[0], choices[-1]))]
    try:
        listed = list(islice(choices, _CHOICES_MAX + 1))
        wires = [
            item if kind in (str, int) and type(item) is kind else str(item) for item in listed
        ]
        is_same = all(
            converted(action, str(wire)) == item for wire, item in zip(wires, listed, strict=True)
        )
    except BROKEN:
        return None
    return one_of(wires) if wires and is_same and len(listed) <= _CHOICES_MAX else None


def list_of(item: Any, nargs: Any) -> Any:
    """Return the annotation of as many values as ``nargs`` says."""
    annotation: Any = GenericAlias(list, (item,))
    if isinstance(nargs, int):
        return Annotated[annotation, Len(nargs, nargs)]
    return Annotated[annotation, Len(1)] if nargs == argparse.ONE_OR_MORE else annotation


def key_of(const: Any) -> tuple[type, Any]:
    """Return what tells 1 from True."""
    return type(const), const


def one_of(values: Iterable[Any]) -> Any:
    """Return the annotation of one of these: a yes or no, or a Literal, and None if it is one."""
    listed = list(values)
    consts = tuple(
        value for kind_of, value in dict.fromkeys(map(key_of, listed)) if value is not None
    )
    annotation: Any = bool if set(map(key_of, consts)) == _YES_AND_NO else LITERAL[consts]
    return union_of((annotation, None)) if None in listed else annotation


def converted(action: Action, text: str) -> Any:
    """Return what argparse makes of a text; raises NotConverted."""
    if not callable(action.type) or is_file(action):
        return text
    attempt, value = Attempt(), None
    with attempt:
        # ``lambda name: User.objects.get(username=name)`` may raise anything.
        value = action.type(text)
    if attempt.error is not None:
        error = attempt.error
        lines = error.messages if isinstance(error, ValidationError) else [str(error)]
        raise NotConverted(" ".join(lines)) from error
    return value


def wire_of(action: Action, value: Any, annotation: Any) -> Any:
    """Return what is sent so that argparse makes ``value`` of it, MISSING if nothing is."""
    kind = kind_of(action)
    try:
        is_named = action.choices is not None and kind not in (str, int)
        if isinstance(value, str) and kind not in (None, str) and not is_named:
            # argparse converts a default that is a text.
            value = converted(action, value)
        if (kind is None or is_named) and not isinstance(value, str):
            text = str(value)
            value = text if converted(action, text) == value else MISSING
        adapter = Parameter(name="", kind=None, annotation=annotation).adapter
        return adapter.dump_python(adapter.validate_python(value, strict=True))
    except BROKEN:
        return MISSING


def default_of(action: Action, annotation: Any, *, is_list: bool) -> Any:
    """Return the default as a call names it; what can't be named is COMPUTED."""
    default = action.default
    if default is SUPPRESS or default == SUPPRESS:
        return Default.COMPUTED
    if default is None:
        is_rest = action.nargs in (argparse.ZERO_OR_MORE, argparse.REMAINDER)
        return [] if is_rest and not action.option_strings else None
    if not is_list:
        wire = wire_of(action, default, annotation)
        return Default.COMPUTED if wire is MISSING else wire
    if not isinstance(default, list | tuple):
        return Default.COMPUTED
    wires = [wire_of(action, item, item_of(action)) for item in default]
    return Default.COMPUTED if MISSING in wires else wires


def _refusal(text: str) -> PydanticCustomError:
    return PydanticCustomError("command_argument", "{text}", {"text": text})
