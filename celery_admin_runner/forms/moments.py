"""The fields of dates and times, with admin's widgets."""

from __future__ import annotations

from datetime import date, datetime, time
from typing import Any

from django import forms
from django.contrib.admin import widgets
from django.core.exceptions import ValidationError
from django.forms.utils import from_current_timezone, to_current_timezone
from django.utils import formats
from django.utils.translation import gettext as _

from celery_admin_runner.forms.fields import ParameterField
from celery_admin_runner.options import is_far


def refuse_far_years(day: date) -> None:
    """Raise ValueError for a day, or a moment, that not every time zone can show."""
    if is_far(day):
        raise ValueError(_("This moment is out of range."))


class EtaField(forms.SplitDateTimeField):
    """A date and a time of the current time zone at which something can be started."""

    def compress(self, data_list: Any) -> Any:
        """Return the moment that a date and a time mean; raises ValidationError."""
        if data_list and data_list[0]:
            try:
                refuse_far_years(data_list[0])
            except ValueError as error:
                raise ValidationError(str(error), code="out_of_range") from error
        return super().compress(data_list)


class DateField(ParameterField):
    """A date, with admin's calendar."""

    widget = widgets.AdminDateWidget

    def parsed(self, value: Any) -> Any:
        """Return the date."""
        return _date(value)

    def shown(self, value: Any) -> str:
        """Return the date as the calendar writes it."""
        return _date_text(value)


class TimeField(ParameterField):
    """A time, with admin's clock."""

    widget = widgets.AdminTimeWidget

    def parsed(self, value: Any) -> Any:
        """Return the time."""
        return _time(value)

    def shown(self, value: Any) -> str:
        """Return the time in full."""
        return str(value.isoformat())


class DateTimeWidget(widgets.AdminSplitDateTime):
    """Admin's widget; its two inputs can't be called like another parameter, ``name_0``."""

    def __init__(self, attrs: Any = None) -> None:
        """Make the widget, and name its inputs."""
        super().__init__(attrs)
        self.widgets_names = [".date", ".time"]


class DateTimeField(ParameterField):
    """A date and a time of the current time zone, with admin's calendar and clock."""

    widget = DateTimeWidget

    def __init__(self, *, is_naive: bool = False, **options: Any) -> None:
        """``is_naive``: the task wants a datetime without a time zone."""
        super().__init__(**options)
        self.is_naive = is_naive

    def is_empty(self, value: Any) -> bool:
        """Tell whether both are empty."""
        return not any(value or ())

    def parsed(self, value: Any) -> Any:
        """Return the moment, aware unless the task wants it naive."""
        day, hour = (*value, "", "")[:2]
        if not day or not hour:
            raise ValidationError(_("Enter a date and a time."), code="incomplete")
        moment = datetime.combine(_date(day), _time(hour))
        return moment if self.is_naive or moment.tzinfo else from_current_timezone(moment)

    def shown(self, value: Any) -> list[str]:
        """Return the date and the time of the current time zone."""
        local = to_current_timezone(value)
        return [_date_text(local.date()), local.time().isoformat()]


def _date(text: str) -> date:
    """Read a date in ISO's or the user's notation."""
    try:
        return date.fromisoformat(text.strip())
    except ValueError:
        return forms.DateField().clean(text)  # type: ignore[no-any-return]


def _time(text: str) -> time:
    """Read a time in ISO's or the user's notation."""
    try:
        return time.fromisoformat(text.strip())
    except ValueError:
        return forms.TimeField().clean(text)  # type: ignore[no-any-return]


def _date_text(value: date) -> str:
    """Return a date as the user's language writes it; years below 1000 are ISO's only."""
    pattern = formats.get_format("DATE_INPUT_FORMATS")[0]
    return value.strftime(pattern) if value.year >= 1000 else value.isoformat()
