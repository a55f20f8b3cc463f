"""The fields of a parameter: from what was typed to a value that pydantic then validates."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from django import forms
from django.contrib.admin import widgets
from django.core.exceptions import ValidationError
from django.forms.utils import from_current_timezone
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from django.utils.duration import duration_string
from django.utils.translation import gettext_lazy

from celery_admin_runner.forms.json_text import json_text, parse_json
from celery_admin_runner.parameters import Parameter

_LINE = re.compile(r"\r\n|\n|\r")


class Empty(enum.Enum):
    """What an empty field means, if it is no value."""

    #: It has to be filled in.
    REQUIRED = "required"
    #: The argument is not given: its default counts.
    OMITTED = "omitted"


class ParameterField(forms.Field):
    """A field whose value is checked by pydantic later: ``clean`` only reads what was typed."""

    #: What is said below the field about how to fill it in.
    hint: Any = ""
    #: What the widget posts when it is empty.
    blank: Any = ""

    def __init__(
        self, *, when_empty: Any = Empty.REQUIRED, when_absent: Any = None, **options: Any
    ) -> None:
        """``when_empty``: a value, or an ``Empty``; ``when_absent``: not even posted."""
        super().__init__(required=when_empty is Empty.REQUIRED, **options)
        self.when_empty = when_empty
        self.when_absent = when_empty if when_absent is None else when_absent
        #: ``clean`` answers ``Empty.REQUIRED`` instead of raising.
        self.is_lenient = False

    def clean(self, value: Any) -> Any:
        """Return what pydantic shall validate, or an ``Empty``; raises ValidationError."""
        if not self.is_empty(value):
            return self.parsed(value)
        meaning = self.when_absent if value is None else self.when_empty
        if meaning is Empty.REQUIRED and not self.is_lenient:
            raise ValidationError(self.error_messages["required"], code="required")
        return meaning

    def is_empty(self, value: Any) -> bool:
        """Tell whether nothing was typed."""
        return value in self.empty_values

    def parsed(self, value: Any) -> Any:
        """Return the value of what was typed."""
        return value

    def shown(self, value: Any) -> Any:
        """Return what has to be typed for a value (a wire value) to come out; not for None."""
        return value

    def typed(self, value: Any) -> Any:
        """Return what has to be typed for a value to come out; nothing for None."""
        return self.blank if value is None else self.shown(value)

    def can_type(self, typed: Any) -> bool:
        """Tell whether a browser sends what is shown as it is."""
        return True


class TextField(ParameterField):
    """A text; numbers, durations and whatever else is written as one too."""

    widget = widgets.AdminTextInputWidget

    def __init__(self, *, base: Any = str, **options: Any) -> None:
        """``base``: the class of the values."""
        super().__init__(**options)
        self.base = base
        if base is timedelta:
            self.hint = gettext_lazy("Seconds, or [days] hh:mm:ss.")

    def parsed(self, value: Any) -> Any:
        """Return what the text means, else the text itself: pydantic says what is wrong."""
        text = str(value)
        if self.base in (int, float):
            try:
                return self.base(text)
            except ValueError:
                return text
        if self.base is timedelta:
            return _duration(text)
        if self.base is datetime:
            return _aware(text)
        return _LINE.sub("\n", text)

    def shown(self, value: Any) -> str:
        """Return the value as text."""
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, timedelta):
            return duration_string(value)
        if isinstance(value, date | time):
            return value.isoformat()
        return value.decode() if isinstance(value, bytes) else str(value)

    def can_type(self, typed: Any) -> bool:
        """Tell whether the text survives: a line has no line break, a box has one kind of them."""
        is_box = isinstance(self.widget, forms.Textarea)
        return "\r" not in typed and (is_box or "\n" not in typed)


def _duration(text: str) -> Any:
    """Return the duration if Django reads it, else the text."""
    try:
        return forms.DurationField().to_python(text)
    except ValidationError:
        return text


def _aware(text: str) -> Any:
    """Return the moment in the current time zone if Django reads it, else the text."""
    try:
        moment = parse_datetime(text)
    except ValueError:
        return text
    if moment is None or timezone.is_aware(moment):
        return text
    return from_current_timezone(moment)


class CheckField(ParameterField):
    """Yes or no."""

    widget = forms.CheckboxInput

    def is_empty(self, value: Any) -> bool:
        """A box that is not ticked is a no."""
        return False

    def parsed(self, value: Any) -> bool:
        """Return whether it is ticked."""
        return bool(value)


class NullCheckSelect(forms.NullBooleanSelect):
    """Yes, no, unknown; what was not posted at all is not unknown."""

    def value_from_datadict(self, data: Any, files: Any, name: str) -> Any:
        """Return what was posted, None if nothing was."""
        return data.get(name)


class NullCheckField(ParameterField):
    """Yes, no, unknown."""

    widget = NullCheckSelect
    blank = "unknown"

    def is_empty(self, value: Any) -> bool:
        """Tell whether it is unknown."""
        return value in (None, "", self.blank)

    def parsed(self, value: Any) -> Any:
        """Return whether it is a yes; pydantic says what is wrong with another text."""
        return {"true": True, "false": False}.get(value, value)

    def shown(self, value: Any) -> str:
        """Return the name of the option."""
        return "true" if value else "false"


class ChoiceField(ParameterField):
    """One of several values."""

    widget = forms.Select

    def __init__(
        self, *, options: Mapping[str, tuple[Any, Any]], has_blank: bool = True, **kwargs: Any
    ) -> None:
        """``options``: value and label by the text that is posted."""
        super().__init__(**kwargs)
        self.options = options
        blank = [("", "---------")] if has_blank else []
        self.widget.choices = blank + [(text, label) for text, (_, label) in options.items()]

    def parsed(self, value: Any) -> Any:
        """Return the value; an unknown one as it is: pydantic says which there are."""
        return self.options[value][0] if value in self.options else value

    def shown(self, value: Any) -> str:
        """Return the text that is posted for a value."""
        return next((text for text, (known, _) in self.options.items() if known == value), "")


class MultipleChoiceField(ChoiceField):
    """Several of several values."""

    widget = forms.SelectMultiple
    blank: Any = ()

    def __init__(self, **kwargs: Any) -> None:
        """Take no empty choice: to choose nothing is one."""
        super().__init__(has_blank=False, **kwargs)

    def parsed(self, value: Any) -> Any:
        """Return the list of values."""
        return [super(MultipleChoiceField, self).parsed(text) for text in value]

    def shown(self, value: Any) -> Any:
        """Return the list of texts."""
        texts = [super(MultipleChoiceField, self).shown(item) for item in value]
        return sorted(texts, key=list(self.options).index) if "" not in texts else texts


class LinesField(ParameterField):
    """One value a line."""

    widget = widgets.AdminTextareaWidget
    hint = gettext_lazy("One value a line.")

    def __init__(self, *, item: TextField, **options: Any) -> None:
        """``item``: reads one line."""
        super().__init__(**options)
        self.item = item
        self.widget.attrs["rows"] = 5

    def parsed(self, value: Any) -> Any:
        """Return the values of the lines that are not empty."""
        lines = _LINE.split(value) if self.item.base is str else map(str.strip, _LINE.split(value))
        return [self.item.parsed(line) for line in lines if line]

    def shown(self, value: Iterable[Any]) -> str:
        """Return one line a value; a set is sorted."""
        lines = [self.item.shown(item) for item in value]
        return "\n".join(sorted(lines) if isinstance(value, set | frozenset) else lines)

    def can_type(self, typed: Any) -> bool:
        """Tell whether the text survives."""
        return "\r" not in typed


class JsonField(ParameterField):
    """A value as JSON."""

    widget = widgets.AdminTextareaWidget
    hint = gettext_lazy("JSON.")

    def __init__(
        self,
        *,
        parameter: Parameter,
        is_loose: bool = False,
        kind: type | None = None,
        **options: Any,
    ) -> None:
        """``is_loose``: text that is no JSON is a string; ``kind``: list or dict only."""
        super().__init__(**options)
        self.parameter = parameter
        self.is_loose = is_loose
        self.kind = kind
        self.widget.attrs |= {"rows": 4, "spellcheck": "false"}
        if is_loose:
            self.hint = gettext_lazy("JSON; what is no JSON is sent as text.")

    def is_empty(self, value: Any) -> bool:
        """Tell whether there is nothing but space."""
        return not (value or "").strip()

    def parsed(self, value: Any) -> Any:
        """Return the value of the JSON text."""
        try:
            parsed = parse_json(value)
        except ValidationError as error:
            if self.is_loose and error.code == "invalid":
                return _LINE.sub("\n", value)
            raise
        if self.kind is not None and not isinstance(parsed, self.kind):
            raise ValidationError(_KIND_ERRORS[self.kind], code="kind")
        return parsed

    def typed(self, value: Any) -> str:
        """Return the value as JSON."""
        return json_text(value, self.parameter)


_KIND_ERRORS: dict[type, Any] = {
    list: gettext_lazy("Enter a JSON list: [ ... ]."),
    dict: gettext_lazy("Enter a JSON object: { ... }."),
}


def number_attributes(base: Any, bounds: Mapping[str, Any]) -> dict[str, Any]:
    """Return min, max and step of a number's input; ``bounds`` as annotated_types names them."""
    is_whole = base is int
    low, high = bounds.get("ge"), bounds.get("le")
    if low is None and bounds.get("gt") is not None:
        low = bounds["gt"] + 1 if is_whole else bounds["gt"]
    if high is None and bounds.get("lt") is not None:
        high = bounds["lt"] - 1 if is_whole else bounds["lt"]
    attributes = {"min": low, "max": high, "step": _step(base, low, bounds)}
    return {name: str(value) for name, value in attributes.items() if value is not None}


def _step(base: Any, low: Any, bounds: Mapping[str, Any]) -> Any:
    """Return the step that a browser counts from ``low``, which has to be on it."""
    step = bounds.get("multiple_of")
    if step is None and bounds.get("decimal_places") is not None:
        step = Decimal(1).scaleb(-bounds["decimal_places"])
    if step is None or (low is not None and low % step):
        return 1 if base is int else "any"
    return step


def choices_by_text(values: Sequence[tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    """Return (value, label) by the text that is posted: the value's, numbered where two share."""
    texts = [str(value) for value, _label in values]
    return {
        text if texts.count(text) == 1 and text else f"{index}:{text}": pair
        for index, (text, pair) in enumerate(zip(texts, values, strict=True))
    }
