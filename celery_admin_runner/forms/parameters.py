"""The typed form: a field for each parameter, and for each field of a model that is one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from django.utils.translation import gettext as _

from celery_admin_runner.annotations import shape_of
from celery_admin_runner.binding import Place
from celery_admin_runner.forms.building import can_show, field_for, typed_or_blank, wire_default
from celery_admin_runner.forms.drafts import DraftForm
from celery_admin_runner.forms.fields import (
    Empty,
    JsonField,
    LinesField,
    MultipleChoiceField,
    ParameterField,
    TextField,
)
from celery_admin_runner.forms.moments import DateField, TimeField
from celery_admin_runner.forms.objects import ObjectField, ObjectsField, Viewer
from celery_admin_runner.parameters import Default, Parameter, Signature, fields_of
from celery_admin_runner.redaction import is_secret_name

#: What shows a text just as it was typed.
_TEXTUAL = (TextField, JsonField, DateField, TimeField, LinesField)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A parameter in the form."""

    parameter: Parameter
    #: By the name of a form field what it is for: the parameter, or the fields of its model.
    inner: Mapping[str, Parameter]
    is_group: bool
    #: Of a group: all empty means None, or not given.
    may_be_blank: bool = False
    #: Of a group: the parameter's own default as it would be sent.
    default: Any = None


class ParametersForm(DraftForm):
    """A field for each parameter; those of a model are called ``parameter.field``."""

    fields: dict[str, ParameterField]  # type: ignore[assignment]

    def __init__(
        self,
        signature: Signature,
        viewer: Viewer,
        *,
        values: Mapping[str, Any],
        texts: Mapping[str, str],
        **options: Any,
    ) -> None:
        """``values``: wire values to show at first; ``texts``: what to show as it was typed."""
        super().__init__(**options)
        self._names = {
            item.name
            for item in signature.parameters
            if not item.is_variadic and item.kind is not inspect.Parameter.POSITIONAL_ONLY
        }
        self.parts = [self._added(parameter, viewer) for parameter in signature.parameters]
        for part in self.parts:
            if part.parameter.name in values:
                self._fill(part, values[part.parameter.name])
        for name, text in texts.items():
            if isinstance(self.fields.get(name), _TEXTUAL):
                self.initial[name] = text

    def arguments(self) -> dict[str, Any]:
        """Return what is to be validated and sent, by parameter; unchanged defaults are not.

        What can't be read has an error at its field; None stands for it where it is needed.
        """
        values: dict[str, Any] = {}
        for part in self.parts:
            value = self._argument(part)
            if value is Empty.REQUIRED and part.parameter.is_required:
                values[part.parameter.name] = None
            elif not isinstance(value, Empty):
                values[part.parameter.name] = value
        return values

    def can_show(self, values: Mapping[str, Any]) -> bool:
        """Tell whether the form can show wire values so that just these would be sent."""
        return all(
            self._can_show(part, values[part.parameter.name])
            for part in self.parts
            if part.parameter.name in values
        )

    def add_problem(self, place: Place, texts: Sequence[str], *, unless: Set[str]) -> None:
        """Show at its field what is wrong in an argument, unless that is one of ``unless``."""
        name, inside = self._target(place)
        if name in unless:
            return
        prefix = ""
        if inside and isinstance(inside[0], int) and isinstance(self.fields[name], _ONE_A_LINE):
            prefix = _("Value %(number)s: ") % {"number": inside[0] + 1}
        elif inside:
            prefix = f"{'.'.join(map(str, inside))}: "
        self.add_error(name or None, [f"{prefix}{text}" for text in texts])

    # Building

    def _added(self, parameter: Parameter, viewer: Viewer) -> Part:
        """Add the fields of a parameter."""
        part = _group(parameter) or Part(
            parameter=parameter, inner={parameter.name: parameter}, is_group=False
        )
        for name, inner in part.inner.items():
            self.fields[name] = (
                _blankable_field(part, inner, viewer, name)
                if part.may_be_blank
                else field_for(inner, viewer, label=name)
            )
        return part

    def _fill(self, part: Part, value: Any) -> None:
        """Show a wire value at first."""
        for name, inner in part.inner.items():
            field = self.fields[name]
            if not part.is_group:
                self.initial[name] = typed_or_blank(field, value)
            elif not isinstance(value, Mapping):
                self.initial[name] = field.blank
            elif inner.name in value:
                self.initial[name] = typed_or_blank(field, value[inner.name])

    def _can_show(self, part: Part, value: Any) -> bool:
        if not part.is_group:
            (name,) = part.inner
            field = self.fields[name]
            # Whether an object may be viewed is said when it is sent.
            return isinstance(field, ObjectField | ObjectsField) or can_show(
                field, part.parameter.collected, value
            )
        if value is None:
            return part.may_be_blank
        keys = {inner.name for inner in part.inner.values()}
        return isinstance(value, Mapping) and value.keys() <= keys and all(
            can_show(self.fields[name], inner, value[inner.name])
            for name, inner in part.inner.items()
            if inner.name in value
        )  # fmt: skip

    # Reading

    def _argument(self, part: Part) -> Any:
        """Return the argument, or an ``Empty``."""
        if part.is_group:
            return self._group_argument(part)
        (name,) = part.inner
        if part.parameter.has_known_default and self._is_unchanged(name):
            return Empty.OMITTED
        value = self.cleaned_data.get(name, Empty.REQUIRED)
        if part.parameter.kind is inspect.Parameter.VAR_KEYWORD and isinstance(value, dict):
            for key in sorted(self._names & value.keys()):
                self.add_error(name, _("%(name)s has a field of its own.") % {"name": key})
            return {key: item for key, item in value.items() if key not in self._names}
        return value

    def _group_argument(self, part: Part) -> Any:
        """Return the dict of a group, None, or an ``Empty``."""
        if part.may_be_blank and all(
            self.fields[name].is_empty(self[name].data) for name in part.inner
        ):
            is_optional = shape_of(part.parameter.annotation).is_optional
            has_other_default = part.parameter.is_required or part.default is not None
            return None if is_optional and has_other_default else Empty.OMITTED
        if part.default is not None and all(map(self._is_unchanged, part.inner)):
            return Empty.OMITTED
        values = {}
        for name, inner in part.inner.items():
            is_default = inner.has_known_default and self._is_unchanged(name)
            value = self.cleaned_data.get(name, Empty.OMITTED)
            if value is Empty.REQUIRED:
                self.add_error(name, self.fields[name].error_messages["required"])
            elif value is not Empty.OMITTED and (part.default is not None or not is_default):
                values[inner.name] = value
        return values

    def _is_unchanged(self, name: str) -> bool:
        """Tell whether a field is as its default shows it, or was not posted."""
        initial, typed = self.fields[name].initial, self[name].data
        return typed is None or (initial is not None and _normal(initial) == _normal(typed))

    def _target(self, place: Place) -> tuple[str, Place]:
        """Return the field at which a place is shown, "" for none, and what is inside of it."""
        name, *inside = place
        if name in self.fields:
            return str(name), tuple(inside)
        for part in self.parts:
            if part.parameter.name != name:
                continue
            if inside and f"{name}.{inside[0]}" in part.inner:
                return f"{name}.{inside[0]}", tuple(inside[1:])
            return next(iter(part.inner)), tuple(inside)
        return "", ()


_ONE_A_LINE = (LinesField, MultipleChoiceField, ObjectsField)


def _normal(typed: Any) -> Any:
    """Return what was typed so that it can be compared: browsers send CR LF, and texts."""
    if isinstance(typed, list | tuple):
        return [_normal(item) for item in typed]
    return str(typed).replace("\r\n", "\n")


def _group(parameter: Parameter) -> Part | None:
    """Return the fields of the parameter's model, if it is one whose fields can be shown."""
    shape = shape_of(parameter.annotation)
    fields = fields_of(shape.base)
    is_whole = parameter.is_variadic or is_secret_name(parameter.name)
    if not fields or is_whole or not parameter.has_schema:
        return None
    default = _group_default(parameter)
    if default is not None:
        fields = tuple(
            replace(item, default=default.get(item.name, Default.COMPUTED)) for item in fields
        )
    is_hidden_default = not parameter.is_required and default is None
    return Part(
        parameter=parameter,
        inner={f"{parameter.name}.{item.name}": item for item in fields},
        is_group=True,
        may_be_blank=shape.is_optional or is_hidden_default,
        default=default,
    )


def _group_default(parameter: Parameter) -> dict[str, Any] | None:
    default = wire_default(parameter)
    return default if isinstance(default, dict) else None


def _blankable_field(
    part: Part, parameter: Parameter, viewer: Viewer, label: str
) -> ParameterField:
    """Return the field of a model that may be left out: empty as long as nothing is filled in.

    The defaults of the model's fields would look filled in; that of the parameter is.
    """
    is_yes_or_no = shape_of(parameter.annotation).base is bool
    annotation = bool | None if is_yes_or_no else parameter.annotation
    has_default = parameter.is_required or part.default is not None
    default = parameter.default if has_default else Default.COMPUTED
    field = field_for(
        replace(parameter, annotation=annotation, default=default), viewer, label=label
    )
    field.is_lenient, field.required = True, False
    if parameter.is_required and annotation != parameter.annotation:
        field.when_empty = Empty.REQUIRED
    return field
