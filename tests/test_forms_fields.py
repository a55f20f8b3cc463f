"""The table of annotations: which field each one gets, and what is sent from it."""

from __future__ import annotations

import re
import typing
from collections import deque
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Generic, Literal, NewType, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from django import forms
from django.contrib.admin import widgets
from django.contrib.auth.models import AbstractUser, Group, User
from django.utils import translation
from pydantic import (
    AnyUrl,
    AwareDatetime,
    BaseModel,
    ByteSize,
    EmailStr,
    Field,
    FilePath,
    Json,
    JsonValue,
    NaiveDatetime,
    NameEmail,
    PastDate,
    PositiveInt,
    PostgresDsn,
    Secret,
    SecretStr,
    StringConstraints,
)
from typing_extensions import TypeAliasType

from celery_admin_runner.calls import signature_of
from tests.forms import arguments_of, filled, form_of
from tests.typed_tasks import (
    Colour,
    Credentials,
    Level,
    Size,
    as_task,
    task_of,
)

KEY = UUID("12345678-1234-5678-1234-567812345678")


def widget_of(annotation: Any, name: str = "value") -> forms.Widget:
    return form_of(task_of(annotation, name=name)).parameters.fields[name].widget


@pytest.mark.parametrize(
    ("annotation", "widget"),
    [
        (bool, forms.CheckboxInput),
        (bool | None, forms.NullBooleanSelect),
        (int, widgets.AdminIntegerFieldWidget),
        (PositiveInt | None, widgets.AdminIntegerFieldWidget),
        (float, forms.NumberInput),
        (Decimal, forms.NumberInput),
        (str, widgets.AdminTextInputWidget),
        (UUID, widgets.AdminUUIDInputWidget),
        (EmailStr, widgets.AdminEmailInputWidget),
        (AnyUrl, forms.URLInput),
        (SecretStr, forms.PasswordInput),
        (SecretStr | None, forms.PasswordInput),
        (date, widgets.AdminDateWidget),
        (PastDate, widgets.AdminDateWidget),
        (time, widgets.AdminTimeWidget),
        (datetime, widgets.AdminSplitDateTime),
        (AwareDatetime, widgets.AdminSplitDateTime),
        (timedelta, widgets.AdminTextInputWidget),
        (Literal["a", "b"], forms.Select),
        (Size, forms.Select),
        (list[Size], forms.SelectMultiple),
        (set[Literal[1, 2]], forms.SelectMultiple),
        (list[str], widgets.AdminTextareaWidget),
        (tuple[int, str], widgets.AdminTextareaWidget),
        (dict[str, int], widgets.AdminTextareaWidget),
        (Any, widgets.AdminTextareaWidget),
        (int | str, widgets.AdminTextareaWidget),
        (list[dict[str, int]], widgets.AdminTextareaWidget),
    ],
)
def test_an_annotation_has_its_widget(annotation: Any, widget: type[forms.Widget]) -> None:
    assert isinstance(widget_of(annotation), widget)


def test_a_parameter_whose_name_is_secret_is_typed_as_a_password() -> None:
    assert type(widget_of(str, name="password")) is forms.PasswordInput
    assert type(widget_of(int | None, name="api_token")) is forms.PasswordInput


@pytest.mark.parametrize(
    ("annotation", "attributes"),
    [
        (Annotated[int, Ge(1), Le(9)], {"min": "1", "max": "9", "step": "1"}),
        (Annotated[int, Gt(1), Lt(9)], {"min": "2", "max": "8", "step": "1"}),
        (Annotated[int, Field(ge=0), MultipleOf(5)], {"min": "0", "step": "5"}),
        (Annotated[int, Field(ge=3), MultipleOf(5)], {"min": "3", "step": "1"}),
        (Annotated[float, Gt(0)], {"min": "0", "step": "any"}),
        (Annotated[Decimal | None, Field(ge=0, decimal_places=2)], {"min": "0", "step": "0.01"}),
        (Annotated[str, StringConstraints(max_length=5)], {"maxlength": "5"}),
    ],
)
def test_bounds_are_told_to_the_browser(annotation: Any, attributes: dict[str, str]) -> None:
    found = widget_of(annotation).attrs

    names = {"min", "max", "step", "maxlength"}
    assert {name: value for name, value in found.items() if name in names} == attributes


@pytest.mark.parametrize(
    ("annotation", "typed", "sent"),
    [
        (bool, "on", True),
        (bool | None, "unknown", None),
        (bool | None, "false", False),
        (int, " 5 ", 5),
        (int | None, "", None),
        (float, "1e3", 1000.0),
        (Decimal, "1.10", Decimal("1.10")),
        (str, "", ""),
        (str, "  spaces  ", "  spaces  "),
        (str, "null", "null"),
        (str | None, "", None),
        (UUID, str(KEY), KEY),
        (EmailStr, "a@example.com", "a@example.com"),
        (AnyUrl, "http://example.com", "http://example.com/"),
        (SecretStr, " s ", " s "),
        (bytes, "abc", b"abc"),
        (date, "2024-05-01", date(2024, 5, 1)),
        (time, "10:30", time(10, 30)),
        (timedelta, "1 02:00:00", timedelta(days=1, hours=2)),
        (timedelta, "90", timedelta(seconds=90)),
        (timedelta, "PT1H", timedelta(hours=1)),
        (Literal["a", 1], "1", 1),
        (Literal[1, "1"], "1:1", "1"),
        (Literal["a", None], "", None),
        (Size, "l", "l"),
        (Level, "2", 2),
        (Colour | None, "", None),
        (list[Size], ["s", "l"], ["s", "l"]),
        (set[Level], ["1", "2"], {1, 2}),
        (list[str], "a\r\n b \r\n\r\nc", ["a", " b ", "c"]),
        (list[int], " 1 \r\n2", [1, 2]),
        (list[int] | None, "", None),
        (list[int], "", []),
        (set[str], "a\na", {"a"}),
        (tuple[int, str], "1\n2", [1, "2"]),
        (tuple[int, ...], "1\n2", [1, 2]),
        (list[date], "2024-05-01", [date(2024, 5, 1)]),
        (list[bool], "yes\nno", [True, False]),
        (list[datetime], "2024-07-01 10:00", [datetime(2024, 7, 1, 8, tzinfo=UTC)]),
        (list[datetime], "2024-07-01 10:00Z", [datetime(2024, 7, 1, 10, tzinfo=UTC)]),
        (dict[str, int], '{"a": "1"}', {"a": 1}),
        (dict[str, int] | None, "", None),
        (int | str, '"1"', "1"),
        (Any, "null", None),
        (list[list[int]], "[[1]]", [[1]]),
    ],
)
def test_what_is_typed_is_sent_as_its_type(annotation: Any, typed: Any, sent: Any) -> None:
    args, kwargs = arguments_of(filled(task_of(annotation), value=typed))

    assert (args, kwargs) == ((sent,), {})
    assert type(args[0]) is type(sent)


@pytest.mark.parametrize(
    ("annotation", "sent"),
    [
        (datetime, datetime(2024, 7, 1, 8, 30, tzinfo=UTC)),
        (AwareDatetime, datetime(2024, 7, 1, 8, 30, tzinfo=UTC)),
        (NaiveDatetime, datetime(2024, 7, 1, 10, 30)),
    ],
)
def test_a_datetime_is_of_the_current_time_zone(annotation: Any, sent: datetime) -> None:
    form = filled(
        task_of(annotation), **{"args-value.date": "2024-07-01", "args-value.time": "10:30"}
    )

    assert arguments_of(form) == ((sent,), {})


def test_dates_are_read_as_the_users_language_writes_them() -> None:
    with translation.override("de"):
        form = filled(task_of(date), value="01.05.2024")

        assert arguments_of(form) == ((date(2024, 5, 1),), {})


@pytest.mark.parametrize(
    ("annotation", "typed", "words"),
    [
        (int, "x", "valid integer"),
        (int, "", "required"),
        (PositiveInt, "0", "greater than 0"),
        (float, "nan", "JSON"),
        (UUID, "x", "valid UUID"),
        (EmailStr, "x", "valid email"),
        (AnyUrl, "x", "valid URL"),
        (date, "x", "valid date"),
        (date, "", "required"),
        (time, "25:00", "valid time"),
        (timedelta, "x", "valid timedelta"),
        (timedelta, "9" * 30, "valid timedelta"),
        (Size, "x", "Input should be 's' or 'l'"),
        (Size, "", "required"),
        (list[Size], ["s", "x"], "Value 2: Input should be 's' or 'l'"),
        (list[int], "1\nx", "Value 2: Input should be a valid integer"),
        (tuple[int, str], "1", "Value 2: Field required"),
        (list[datetime], "x\n2024-02-30 10:00", "Value 2: Input should be a valid datetime"),
        (dict[str, int], '{"a": "x"}', "a: Input should be a valid integer"),
        (dict[str, int], "x", "Enter valid JSON"),
        (dict[str, int], "", "required"),
        (Annotated[str, StringConstraints(min_length=1)], "", "at least 1 character"),
    ],
)
def test_what_is_wrong_is_said_at_the_field(annotation: Any, typed: Any, words: str) -> None:
    form = filled(task_of(annotation), value=typed)

    assert not form.is_valid()
    assert words in " ".join(form.parameters.errors["value"])
    assert form.parameters["value"].value() == typed


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"args-value.date": "2024-07-01"}, "Enter a date and a time"),
        (
            {"args-value.date": "2024-03-31", "args-value.time": "02:30"},
            "interpreted in time zone",
        ),
        ({"args-value.date": "x", "args-value.time": "02:30"}, "valid date"),
    ],
)
def test_a_moment_that_is_none_is_an_error(values: dict[str, str], words: str) -> None:
    form = filled(task_of(datetime), **values)

    assert not form.is_valid()
    assert words in str(form.parameters.errors["value"])


def test_labels_are_djangos_and_the_values_of_texts() -> None:
    sizes, colours, levels = (
        [str(label) for _value, label in widget_of(annotation).choices]
        for annotation in (Size, Colour, Level)
    )

    assert sizes == ["---------", "Small one", "Large one"]
    assert colours == ["---------", "red", "blue"]
    assert levels == ["---------", "LOW", "HIGH"]


@pytest.mark.parametrize(
    ("annotation", "default", "typed"),
    [
        (int, 5, "5"),
        (bool, True, "on"),
        (bool, False, None),
        (bool | None, None, "unknown"),
        (str, "a", "a"),
        (str, "a\nb", "a\r\nb"),
        (str | None, None, ""),
        (int, 5, ""),
        (Size, Size.LARGE, "l"),
        (list[int], [1, 2], "1\r\n2"),
        (set[str], {"b", "a"}, "a\nb"),
        (dict[str, int], {"a": 1}, '{\r\n  "a": 1\r\n}'),
        (timedelta, timedelta(hours=1), "01:00:00"),
        (date, date(2024, 5, 1), "2024-05-01"),
        (SecretStr, SecretStr("hidden"), ""),
        (list[str], ["a\nb"], '[\n  "a\\nb"\n]'),
        (float, 20, "20.0"),
        (Decimal, 5, "5"),
        (int, "no integer", ""),
        (object, object(), ""),
    ],
)
def test_an_unchanged_default_is_not_sent(annotation: Any, default: Any, typed: Any) -> None:
    values = {} if typed is None else {"value": typed}

    assert arguments_of(filled(task_of(annotation, default), **values)) == ((), {})


@pytest.mark.parametrize(
    ("annotation", "default", "typed", "sent"),
    [
        (int, 5, "6", 6),
        (int | None, 5, "", None),
        (str, "a", "", ""),
        (bool, True, None, False),
        (bool | None, True, "unknown", None),
        (float, 20, "30", 30.0),
        (list[int], [1], "", []),
        (SecretStr, SecretStr("hidden"), "x", "x"),
    ],
)
def test_a_changed_default_is_sent_by_name(
    annotation: Any, default: Any, typed: Any, sent: Any
) -> None:
    values = {} if typed is None else {"value": typed}

    form = filled(task_of(annotation, default), **values)

    assert arguments_of(form) == ((), {"value": sent})


@pytest.mark.parametrize("annotation", [float, Decimal, float | None, Annotated[float, Gt(0)]])
def test_a_number_whose_default_is_written_as_an_integer_has_a_field_for_numbers(
    annotation: Any,
) -> None:
    field = form_of(task_of(annotation, 20)).parameters.fields["value"]

    assert type(field.widget) is forms.NumberInput
    assert float(field.initial) == 20


def test_a_secret_default_is_not_shown() -> None:
    for annotation, default in (
        (SecretStr, SecretStr("hidden")),
        (list[SecretStr], [SecretStr("hidden")]),
        (Credentials, Credentials(user="u", pin="hidden")),
    ):
        assert "hidden" not in form_of(task_of(annotation, default)).parameters.as_p()
    assert "hidden" not in form_of(task_of(str, "hidden", name="secret")).parameters.as_p()


def test_help_texts_are_the_docstrings_and_the_annotation_escaped() -> None:
    def run(value: Literal["<b>"]) -> None:
        """Do.

        Args:
            value: The <script>value</script>.
        """

    help_text = form_of(as_task(run)).parameters.fields["value"].help_text

    assert help_text == (
        "The &lt;script&gt;value&lt;/script&gt;. <code>Literal[&#x27;&lt;b&gt;&#x27;]</code>"
    )


class Odd(Enum):
    """Has values that no message carries."""

    FUNCTION = object()
    PAIR = (1, 2)


Item = TypeVar("Item")


class Page(BaseModel, Generic[Item]):
    """Is generic."""

    items: list[Item]


Numbers = TypeAliasType("Numbers", list[int])
Meters = NewType("Meters", float)


@pytest.mark.parametrize(
    "annotation",
    [
        object,
        None,
        type[int],
        list,
        tuple,
        dict,
        tuple[()],
        Callable[[int], str],
        Callable,
        Iterable[int],
        deque[int],
        typing.List[int],  # noqa: UP006
        JsonValue,
        Json[int],
        Odd,
        list[Odd],
        Literal[b"a", Colour.RED],
        Page[int],
        Page,
        Numbers,
        Numbers | None,
        Meters,
        Path,
        FilePath,
        IPv4Address,
        IPv4Network,
        re.Pattern,
        complex,
        ByteSize,
        ZoneInfo,
        Fraction,
        NameEmail,
        PostgresDsn,
        Secret[int],
        list[SecretStr],
        date | datetime,
        int | None | str,
        Annotated[int | None, Field(ge=1)],
        Annotated[list[int], Field(max_length=2)],
        ModuleType,
        User | Group,
        User | int | None,
        dict[str, User],
        AbstractUser,
        Any | None,
        "Nothing",
    ],
    ids=str,
)
@pytest.mark.parametrize("typed", ["", "1", "[1]", "x", '{"a": {}}'])
@pytest.mark.django_db
def test_whatever_the_annotation_there_is_a_form_and_no_exception(
    annotation: Any, typed: str
) -> None:
    task = task_of(annotation)

    unfilled, form = form_of(task), filled(task, value=typed)
    form.is_valid()

    assert "value" in unfilled.parameters.as_p() or unfilled.problem
    assert form.errors or form.call
    assert signature_of(task).parameters[0].json_schema() is not None
