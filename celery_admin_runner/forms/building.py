"""Which field a parameter gets: the table of annotations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import partial
from typing import Any, Literal

from django import forms
from django.contrib.admin import widgets
from django.core.exceptions import ValidationError
from django.utils.html import format_html
from pydantic import PydanticUserError

from celery_admin_runner.annotations import Shape, is_class, shape_of
from celery_admin_runner.calls import is_secret, may_hold_secret, same, wire_of
from celery_admin_runner.command_lines.texts import joined
from celery_admin_runner.exceptions import NotEncodable
from celery_admin_runner.forms.fields import (
    CheckField,
    ChoiceField,
    Empty,
    JsonField,
    LinesField,
    MultipleChoiceField,
    NullCheckField,
    ParameterField,
    TextField,
    choices_by_text,
    number_attributes,
)
from celery_admin_runner.forms.moments import DateField, DateTimeField, TimeField
from celery_admin_runner.forms.objects import Viewer, object_field, objects_field
from celery_admin_runner.model_keys import ModelKey
from celery_admin_runner.parameters import UNREADABLE, Default, Parameter
from celery_admin_runner.wire import revealed, to_wire

#: What turns a value into what is typed, or back, raises for a value that it can't show.
UNSHOWABLE = (*UNREADABLE, PydanticUserError, NotEncodable, ValidationError)

_LISTS = (list, set, frozenset, tuple, Sequence)
_NUMBERS = (int, float, Decimal)
_BOUNDS = ("ge", "gt", "le", "lt", "multiple_of", "decimal_places")

#: A builder of a field, given what all fields are given; None: it is not its kind.
_Build = Callable[..., ParameterField]


def field_for(parameter: Parameter, viewer: Viewer, *, label: str = "") -> ParameterField:
    """Return the field of a parameter, its default as its initial value.

    A parameter whose default the field can't show as it is gets a JSON field. A
    default that must not or can't be shown counts when the field is left empty.
    """
    default = wire_default(parameter)
    if parameter.default is not None and default is None and parameter.has_known_default:
        parameter = replace(parameter, default=Default.COMPUTED)
    build, may_be_empty = _builder(parameter, viewer)
    field = build(**_emptiness(parameter, may_be_empty))
    if default is not None:
        if not can_show(field, parameter, default):
            field = JsonField(parameter=parameter, **_emptiness(parameter, None))
        field.initial = typed_or_blank(field, default)
    field.label = label or parameter.name
    field.help_text = _help_text(parameter, field)
    return field


def wire_default(parameter: Parameter) -> Any:
    """Return the default as it would be sent, None if there is none that can be shown."""
    if not parameter.has_known_default or may_hold_secret(parameter):
        return None
    try:
        return revealed(to_wire(_default_as_number(parameter)))
    except NotEncodable:
        return None


def _default_as_number(parameter: Parameter) -> Any:
    """Return the default: of ``seconds: float = 20``, as people write it, 20.0."""
    default, base = parameter.default, shape_of(parameter.annotation).base
    if type(default) is not int or not is_class(base, float, Decimal):
        return default
    try:
        number = base(default)
    except OverflowError:
        return default
    return number if number == default else default


def can_show(field: ParameterField, parameter: Parameter, value: Any) -> bool:
    """Tell whether sending the form untouched sends ``value``, a wire value."""
    try:
        typed = field.typed(value)
        cleaned = field.clean(typed)
        if cleaned is Empty.OMITTED:
            return parameter.has_known_default and same(wire_default(parameter), value)
        return field.can_type(typed) and same(wire_of(parameter, cleaned), value)
    except UNSHOWABLE:
        return False


def typed_or_blank(field: ParameterField, value: Any) -> Any:
    """Return what is typed for a value, or nothing if it can't be typed."""
    try:
        return field.typed(value)
    except UNSHOWABLE:
        return field.blank


def _emptiness(parameter: Parameter, may_be_empty: Any) -> dict[str, Any]:
    """Return what an empty field means.

    ``may_be_empty``: an empty value that can be sent, or None if there is none.
    """
    absent = Empty.REQUIRED if parameter.is_required else Empty.OMITTED
    is_optional = shape_of(parameter.annotation).is_optional
    if parameter.default is None or parameter.default is Default.COMPUTED or parameter.is_variadic:
        return {"when_empty": Empty.OMITTED}
    if may_hold_secret(parameter):
        return {"when_empty": None if is_optional and parameter.is_required else absent}
    if is_optional:
        return {"when_empty": None, "when_absent": Empty.OMITTED}
    if may_be_empty is None or not parameter.has_annotation:
        return {"when_empty": absent}
    return {"when_empty": may_be_empty, "when_absent": absent}


def _builder(parameter: Parameter, viewer: Viewer) -> tuple[_Build, Any]:
    """Return what makes the field, and the empty value that it can send (None: it can't)."""
    if parameter.is_variadic:
        is_args = parameter.kind is inspect.Parameter.VAR_POSITIONAL
        kind = list if is_args else dict
        return partial(JsonField, parameter=parameter.collected, kind=kind), None
    if not parameter.has_annotation:
        return partial(JsonField, parameter=parameter, is_loose=True), None
    shape = shape_of(parameter.annotation)
    if parameter.has_schema:
        found = (
            _object_builder(shape, viewer)
            or _list_builder(shape, viewer)
            or _leaf_builder(parameter, shape)
        )
        if found is not None:
            return found
    return partial(JsonField, parameter=parameter), None


def _object_builder(shape: Shape, viewer: Viewer) -> tuple[_Build, Any] | None:
    model = _model(shape)
    return None if model is None else (partial(object_field, model=model, viewer=viewer), None)


def _model(shape: Shape) -> Any:
    """Return the Django model whose primary key the annotation asks for, or None."""
    return next((item.model for item in shape.metadata if isinstance(item, ModelKey)), None)


def _list_builder(shape: Shape, viewer: Viewer) -> tuple[_Build, Any] | None:
    """Build for lists, sets and tuples of what fits on a line."""
    if not is_class(shape.origin, *_LISTS) or not shape.arguments:
        return None
    items = tuple(item for item in shape.arguments if item is not Ellipsis)
    inner = [shape_of(item) for item in items]
    if len(items) == 1 and (model := _model(inner[0])) is not None:
        return partial(objects_field, model=model, viewer=viewer), []
    if any(item.is_optional for item in inner):
        return None
    if len(items) == 1 and (options := _choices(inner[0])):
        return partial(MultipleChoiceField, options=options), []
    lines = [line for line in map(_line, inner) if line is not None]
    if len(lines) < len(inner):
        return None
    # A tuple's items may differ: then pydantic reads them from text.
    first = lines[0] if len(lines) == 1 else TextField(base=object)
    return partial(LinesField, item=first), []


def _line(shape: Shape) -> TextField | None:
    """Return what reads one line, if a value fits on it."""
    if is_class(shape.base, bool, date, time) and shape.base is not datetime:
        return TextField(base=object)
    for base in (str, int, float, datetime, timedelta):
        if shape.base is base:
            return TextField(base=base)
    return TextField(base=object) if _schema_of(shape).get("type") in _TEXT_TYPES else None


def _leaf_builder(parameter: Parameter, shape: Shape) -> tuple[_Build, Any] | None:
    """Build for single values."""
    if is_secret(parameter) and _is_text(shape):
        widget = forms.PasswordInput(
            attrs={"class": "vTextField", "autocomplete": "new-password"}, render_value=True
        )
        return partial(TextField, widget=widget), None
    if shape.base is bool:
        kind = NullCheckField if shape.is_optional else CheckField
        return partial(kind), None
    if options := _choices(shape):
        has_blank = shape.is_optional or not parameter.has_known_default
        return partial(ChoiceField, options=options, has_blank=has_blank), None
    if is_class(shape.base, *_NUMBERS):
        return _number_builder(shape), None
    if is_class(shape.base, str):
        return partial(TextField, widget=_text_widget(parameter, shape)), ""
    return _text_builder(shape)


def _is_text(shape: Shape) -> bool:
    """Tell whether a value is written as a text or a number."""
    return is_class(shape.base, str, *_NUMBERS) or _schema_of(shape).get("type") in _TEXT_TYPES


def _choices(shape: Shape) -> dict[str, tuple[Any, Any]]:
    """Return the choices of a Literal or an Enum, else nothing; nothing if they can't be sent."""
    if shape.origin is Literal:
        items = [item for item in shape.arguments if item is not None]
    elif is_class(shape.base, Enum):
        items = list(shape.base)
    else:
        return {}
    try:
        return choices_by_text([(revealed(to_wire(item)), _label(item)) for item in items])
    except NotEncodable:
        return {}


def _label(item: Any) -> Any:
    """Return a choice for people: Django's label, the value of a text, else the name."""
    if not isinstance(item, Enum):
        return str(item)
    return getattr(item, "label", None) or (
        item.value if isinstance(item.value, str) and item.value else item.name
    )


def _number_builder(shape: Shape) -> _Build:
    base = next(item for item in _NUMBERS if issubclass(shape.base, item))
    bounds = {name: shape.constraint(name) for name in _BOUNDS}
    widget = widgets.AdminIntegerFieldWidget if base is int else forms.NumberInput
    return partial(TextField, base=base, widget=widget(attrs=number_attributes(base, bounds)))


def _text_widget(parameter: Parameter, shape: Shape) -> forms.Widget:
    attributes = {
        name: str(limit)
        for name, limit in {
            "maxlength": shape.constraint("max_length"),
            "minlength": shape.constraint("min_length"),
        }.items()
        if limit is not None
    }
    has_lines = isinstance(parameter.default, str) and "\n" in parameter.default
    kind = widgets.AdminTextareaWidget if has_lines else widgets.AdminTextInputWidget
    return kind(attrs=attributes)


def _text_builder(shape: Shape) -> tuple[_Build, Any] | None:
    """Build for what is written as text, by what pydantic says of its JSON."""
    schema = _schema_of(shape)
    if schema.get("type") in ("integer", "number"):
        return partial(
            TextField, base=float, widget=forms.NumberInput(attrs={"step": "any"})
        ), None
    if schema.get("type") != "string":
        return None
    match schema.get("format"):
        case "date":
            return partial(DateField), None
        case "time":
            return partial(TimeField), None
        case "date-time":
            is_naive = getattr(shape.base, "__name__", "") == "NaiveDatetime"
            return partial(DateTimeField, is_naive=is_naive), None
        case "duration":
            return partial(TextField, base=timedelta), None
        case text_format:
            return partial(TextField, base=object, widget=_widget_of(text_format)), None


def _widget_of(text_format: str | None) -> forms.Widget:
    if text_format == "email":
        return widgets.AdminEmailInputWidget()
    if text_format == "uri":
        return forms.URLInput(attrs={"class": "vURLField"})
    return (
        widgets.AdminUUIDInputWidget() if text_format == "uuid" else widgets.AdminTextInputWidget()
    )


def _schema_of(shape: Shape) -> Mapping[str, Any]:
    """Return the JSON schema of a type, ``{}`` where there is none."""
    return _of_type(shape.bare).json_schema()


def _of_type(annotation: Any) -> Parameter:
    return replace(_ANY, annotation=annotation)


_ANY = Parameter(name="", kind=inspect.Parameter.KEYWORD_ONLY)
_TEXT_TYPES = ("string", "integer", "number")


def _help_text(parameter: Parameter, field: ParameterField) -> Any:
    """Return what the docstring says, how to fill the field in, and the annotation."""
    help_text = format_html("{}", joined((parameter.help_text, field.hint)))
    if not parameter.annotation_text:
        return help_text
    return format_html("{} <code>{}</code>", help_text, parameter.annotation_text)
