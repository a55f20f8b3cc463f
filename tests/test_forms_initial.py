"""What a form is filled in with at first: a run's arguments, or the page's address."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from celery import Task
from django.http import QueryDict

from celery_admin_runner.calls import Call, prepare_call, signature_of
from celery_admin_runner.encoding import to_plain
from celery_admin_runner.forms.run import RunForm, initial_from_query, initial_from_run
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.redaction import MASK
from tests import typed_tasks
from tests.forms import arguments_of, form_of, shown_data
from tests.typed_tasks import Colour, Credentials, Level, Order, Point, Size, as_task, task_of


def run_of(call: Call, **options: Any) -> TaskRunRecord:
    return TaskRunRecord(args=call.stored_args, kwargs=call.stored_kwargs, options=options)


def retried(task: Task, call: Call) -> RunForm:
    """Return the form for the arguments of a run, as it is shown."""
    return form_of(task, initial=initial_from_run(run_of(call), signature_of(task)))


def sent_unchanged(task: Task, form: RunForm) -> Any:
    """Return what is sent if a form is sent as it is shown."""
    return arguments_of(form_of(task, data=shown_data(form)))


@pytest.mark.parametrize(
    ("annotation", "value", "mode"),
    [
        (bool, True, "typed"),
        (bool, False, "typed"),
        (bool | None, None, "typed"),
        (bool | None, False, "typed"),
        (int, 5, "typed"),
        (int | None, None, "typed"),
        (float, 1e-7, "typed"),
        (Decimal, Decimal("1E+2"), "typed"),
        (str, "", "typed"),
        (str, " a ", "typed"),
        (str, "a\nb", "json"),
        (str | None, "", "json"),
        (bytes, b"\xff", "json"),
        (UUID, UUID(int=5), "typed"),
        (date, date(2024, 5, 1), "typed"),
        (date, date(1, 1, 1), "typed"),
        (datetime, datetime(2024, 5, 1, 10, 0, 0, 5, tzinfo=UTC), "typed"),
        (datetime, datetime(2024, 10, 27, 1, 30, tzinfo=UTC), "json"),
        (datetime, datetime.max.replace(tzinfo=UTC), "json"),
        (timedelta, timedelta(days=-1, microseconds=5), "typed"),
        (Size, "l", "typed"),
        (Level, 2, "typed"),
        (list[Size], ["s", "l"], "typed"),
        (list[Size], ["l", "s"], "json"),
        (list[str], ["a", " b"], "typed"),
        (list[str], ["a", "", "b\nc"], "json"),
        (set[int], {1, 2}, "typed"),
        (tuple[int, str], [1, "2"], "typed"),
        (dict[str, date], {"a": date(2024, 5, 1)}, "typed"),
        (Any, {"a": [date(2024, 5, 1)]}, "typed"),
        (Any, None, "typed"),
        (Point, {"x": 1, "y": 2}, "typed"),
        (Point | None, None, "typed"),
        (Order, {"customer": "A", "lines": [{"sku": "x"}], "due": "2024-05-01"}, "typed"),
        (Order | None, {"customer": "A", "is_gift": True}, "typed"),
    ],
)
def test_a_run_is_shown_so_that_the_same_is_sent_again(
    annotation: Any, value: Any, mode: str
) -> None:
    task = task_of(annotation)
    call = prepare_call(task, [value], {})

    form = retried(task, call)

    assert form.mode == mode
    assert sent_unchanged(task, form) == (call.args, call.kwargs)


@pytest.mark.parametrize("value", ["abc", "5", '"5"', "{", " a", 5, None, {"a": date(2024, 5, 1)}])
def test_an_untyped_argument_keeps_its_type(value: Any) -> None:
    task = as_task(typed_tasks.anything)
    call = prepare_call(task, [value, 5, 1], {"flag": True, "more": "m"})

    form = retried(task, call)

    assert form.mode == "typed"
    assert sent_unchanged(task, form) == (call.args, call.kwargs)


def test_the_json_tab_has_the_arguments_too() -> None:
    task = as_task(typed_tasks.deliver)
    order = {"customer": "A", "due": date(2024, 5, 1)}
    call = prepare_call(task, [order], {"to": {"street": "S", "zip_code": "1"}})

    form = retried(task, call)

    assert '"due": "2024-05-01"' in form.json["args"].value()
    assert "__type__" not in form.json["args"].value()
    assert form.json["kwargs"].value() == "{}"


def test_masked_values_are_left_out() -> None:
    task = as_task(typed_tasks.log_in)
    credentials = {"user": "u", "pin": "1", "api_key": "k"}
    call = prepare_call(task, [credentials, "p"], {"hint": "h"})

    form = retried(task, call)

    assert form.mode == "typed"
    assert form.parameters["credentials.user"].value() == "u"
    assert not form.parameters["credentials.pin"].value()
    assert not form.parameters["password"].value()
    shown = form.parameters.as_p() + form.json.as_p()
    assert MASK not in shown
    assert not form_of(task, data=shown_data(form)).is_valid()


def test_arguments_that_no_longer_fit_are_shown_as_json() -> None:
    run = TaskRunRecord(args=["x", {"password": MASK}], kwargs={"gone": 1})

    form = form_of(task_of(int), initial=initial_from_run(run, signature_of(task_of(int))))

    assert form.mode == "json"
    assert '"x"' in form.json["args"].value()
    assert MASK not in form.json["args"].value()
    assert '"gone": 1' in form.json["kwargs"].value()


def test_a_task_that_can_not_be_read_shows_the_arguments_as_json() -> None:
    task = as_task(typed_tasks.unresolved)
    call = prepare_call(task, [datetime(2024, 5, 1, tzinfo=UTC)], {})

    form = retried(task, call)

    assert form.mode == "json"
    assert sent_unchanged(task, form) == (call.args, call.kwargs)


def shown_options(**options: Any) -> dict[str, Any]:
    """Return the options that the form shows for a run that was sent with these."""
    task = task_of(int)
    run = run_of(prepare_call(task, [1], {}), **options)
    form = form_of(task, initial=initial_from_run(run, signature_of(task)))
    return {name: form.options[name].value() for name in options}


def test_queue_priority_and_seconds_to_expire_are_kept() -> None:
    options = {"queue": "q", "priority": 3, "expires": 5}

    assert shown_options(**options) == options


def test_a_moment_to_expire_is_shown_in_seconds_from_when_it_is_sent() -> None:
    start = datetime(2020, 1, 1, tzinfo=UTC)
    moment = start + timedelta(seconds=9.5)
    run = TaskRunRecord(
        created_at=start, expires_at=moment, options={"expires": to_plain(moment)}, args=[1]
    )

    initial = initial_from_run(run, signature_of(task_of(int)))

    assert initial["options"] == {"expires": 10}


@pytest.mark.parametrize("expires", [0, -5, True, "soon", datetime(2020, 1, 1, tzinfo=UTC)])
def test_what_is_no_time_to_expire_is_left_out(expires: Any) -> None:
    assert not shown_options(expires=to_plain(expires))["expires"]


# The page's address


def asked(task: Task, query: str) -> RunForm:
    return form_of(task, initial=initial_from_query(QueryDict(query), signature_of(task)))


@pytest.mark.parametrize(
    ("annotation", "query", "sent"),
    [
        (int, "value=5", 5),
        (int | None, "value=", None),
        (bool, "value=yes", True),
        (str, "value=5", "5"),
        (str, "value=", ""),
        (Size, "value=l", "l"),
        (Colour, "value=red", "red"),
        (date, "value=2024-05-01", date(2024, 5, 1)),
        (datetime, "value=2024-05-01T10:00Z", datetime(2024, 5, 1, 10, tzinfo=UTC)),
        (datetime, "value=2024-05-01T12:00", datetime(2024, 5, 1, 10, tzinfo=UTC)),
        (list[int], "value=1&value=2", [1, 2]),
        (list[int], "value=[1,2]", [1, 2]),
        (list[str], "value=a", ["a"]),
        (list[Size], "value=s&value=l", ["s", "l"]),
        (dict[str, int], 'value={"a":1}', {"a": 1}),
        (Point, "value.x=1", {"x": 1, "y": 0}),
        (Point, 'value={"x":1}&value.y=5', {"x": 1, "y": 5}),
        (Any, "value=5", "5"),
    ],
)
def test_the_address_fills_in_parameters(annotation: Any, query: str, sent: Any) -> None:
    task = task_of(annotation)

    form = asked(task, query)

    assert sent_unchanged(task, form) == ((sent,), {})


def test_the_address_fills_in_what_has_no_annotation() -> None:
    task = as_task(typed_tasks.anything)

    form = asked(task, 'value=text&other={"a":1}&rest=[1]&more={"x":"y"}&unknown=1')

    assert sent_unchanged(task, form) == (("text", {"a": 1}, 1), {"x": "y"})


def test_what_does_not_fit_is_shown_as_it_is_written() -> None:
    form = asked(task_of(int), "value=<b>five")

    assert form.mode == "typed"
    assert form.parameters["value"].value() == "<b>five"
    assert asked(task_of(Size), "value=<b>").parameters["value"].value() is None


def test_secrets_are_never_taken_from_the_address() -> None:
    query = "credentials.pin=s3&credentials.user=u&password=s3&hint=s3&credentials={}"

    form = asked(as_task(typed_tasks.log_in), query)

    assert "s3" not in form.parameters.as_p()
    assert form.parameters["credentials.user"].value() == "u"
    assert "s3" not in asked(task_of(Credentials), "value.api_key=s3").parameters.as_p()


@pytest.mark.parametrize("text", ["[" * 50_000, "\x00", "9" * 5000, "NaN", "\ud800"])
@pytest.mark.parametrize("annotation", [int, Any, dict[str, int], list[str], date, Order])
def test_bad_input_in_the_address_is_no_exception(annotation: Any, text: str) -> None:
    task, query = task_of(annotation), QueryDict(mutable=True)
    query["value"] = text

    form = form_of(task, initial=initial_from_query(query, signature_of(task)))

    assert form.parameters.as_p()
