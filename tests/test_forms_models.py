"""Models, dataclasses and TypedDicts in the form: one level of fields."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from django import forms
from django.contrib.admin import widgets

from tests import typed_tasks
from tests.forms import arguments_of, filled, form_of
from tests.typed_tasks import Credentials, Order, Point, as_task, task_of


def deliver(**values: Any) -> Any:
    required = {"order__customer": "A", "to__street": "S", "to__zip_code": "1"}
    return filled(as_task(typed_tasks.deliver), **(required | values))


ORDER = {
    "customer": "A",
    "size": "s",
    "due": None,
    "is_gift": False,
    "lines": [],
    "tags": [],
}
TO = {"street": "S", "zip_code": "1"}


def test_a_model_has_a_field_for_each_of_its_own() -> None:
    form = form_of(as_task(typed_tasks.deliver))

    assert list(form.parameters.fields) == [
        *(f"order.{name}" for name in ORDER),
        *("to.street", "to.zip_code", "at.x", "at.y", "billing.street", "billing.zip_code"),
    ]
    assert 'name="args-order.customer"' in form.parameters.as_p()
    assert type(form.parameters.fields["order.size"].widget) is forms.Select
    assert "Who ordered it." in form.parameters.fields["order.customer"].help_text


def test_a_model_is_sent_as_a_dict() -> None:
    form = deliver(
        order__size="l", order__due="2024-05-01", order__lines='[{"sku": "x"}]', order__tags="a\nb"
    )

    order = ORDER | {
        "size": "l",
        "due": date(2024, 5, 1),
        "lines": [{"sku": "x", "quantity": 1}],
        "tags": ["a", "b"],
    }
    assert arguments_of(form) == ((order, TO), {})


def test_a_model_that_is_left_empty_is_none_or_its_default() -> None:
    form = deliver(at__x="1", at__y="2", billing__street="", billing__zip_code="")

    assert arguments_of(form) == ((ORDER, TO), {})


def test_a_model_whose_default_is_changed_is_sent_whole() -> None:
    form = deliver(at__x="9", at__y="2", billing__street="B", billing__zip_code="")

    assert arguments_of(form) == (
        (ORDER, TO),
        {"at": {"x": 9, "y": 2}, "billing": {"street": "B", "zip_code": ""}},
    )


def test_errors_in_a_model_stand_at_its_fields() -> None:
    form = deliver(
        order__customer="A1", order__size="x", order__due="x", order__lines='[{"quantity": 0}]'
    )

    assert not form.is_valid()
    assert form.parameters.errors == {
        "order.customer": ["Value error, a customer has no digits"],
        "order.size": ["Input should be 's' or 'l'"],
        "order.due": ["Enter a valid date."],
        "order.lines": [
            "0.sku: Field required",
            "0.quantity: Input should be greater than or equal to 1",
        ],
    }


def test_an_error_of_the_whole_model_stands_at_its_first_field() -> None:
    form = deliver(order__size="l")

    assert not form.is_valid()
    assert form.parameters.errors == {
        "order.customer": ["Value error, a large order needs a date"]
    }


@pytest.mark.parametrize(
    ("values", "sent"),
    [
        ({}, None),
        ({"value__x": "1"}, {"x": 1, "y": 0}),
    ],
)
def test_an_optional_model_is_none_while_nothing_is_filled_in(
    values: dict[str, str], sent: Any
) -> None:
    assert arguments_of(filled(task_of(Point | None), **values)) == ((sent,), {})


def test_an_optional_model_needs_its_fields_once_one_is_filled_in() -> None:
    form = filled(task_of(Order | None), value__size="s", value__customer="")
    point = filled(task_of(Point | None), value__y="1")

    assert arguments_of(form) == ((ORDER | {"customer": ""},), {})
    assert not point.is_valid()
    assert point.parameters.errors == {"value.x": ["This field is required."]}
    assert not point.parameters.fields["value.x"].required


def test_an_optional_model_with_a_default_can_be_made_none() -> None:
    task = task_of(Point | None, Point(1, 2))

    untouched = filled(task, value__x="1", value__y="2")
    emptied = filled(task, value__x="", value__y="")

    assert arguments_of(untouched) == ((), {})
    assert arguments_of(emptied) == ((), {"value": None})


def test_a_secret_in_a_model_is_typed_as_a_password() -> None:
    fields = form_of(task_of(Credentials)).parameters.fields

    assert type(fields["value.pin"].widget) is forms.PasswordInput
    assert type(fields["value.api_key"].widget) is forms.PasswordInput
    assert type(fields["value.user"].widget) is widgets.AdminTextInputWidget
