"""RunForm: both tabs, the options, errors and what is repeated."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from django.contrib import admin
from django.utils import timezone

from celery_admin_runner.encoding import CALL_MAX_BYTES
from tests import typed_tasks
from tests.forms import arguments_of, filled, form_of, query
from tests.typed_tasks import Credentials, Point, as_task, task_of


def positions(**values: Any) -> Any:
    return filled(as_task(typed_tasks.positions), **values)


@pytest.mark.parametrize(
    ("values", "args", "kwargs"),
    [
        ({"a": "1"}, (1,), {}),
        ({"a": "1", "b": "2", "c": "3", "d": "4", "e": "5"}, (1,), {}),
        ({"a": "1", "b": "2", "c": "9"}, (1, 2, 9), {}),
        ({"a": "1", "d": "9", "e": "9"}, (1,), {"d": 9, "e": 9}),
        ({"a": "1", "b": "7", "d": "9"}, (1, 7), {"d": 9}),
    ],
)
def test_only_what_is_required_or_changed_is_sent(
    values: dict[str, str], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    assert arguments_of(positions(**values)) == (args, kwargs)


def test_a_parameter_may_have_any_name() -> None:
    names = ("task", "csrfmiddlewaretoken", "action", "args", "data", "errors")
    values = {f"args-{name}": "5" for name in names}

    form = filled(as_task(typed_tasks.odd_names), csrfmiddlewaretoken="5", **values)

    assert arguments_of(form) == (("5", 5, "5", 5, "5"), {"errors": "5"})


def test_the_inputs_of_a_datetime_are_not_called_like_another_parameter() -> None:
    def run(at: datetime, at_0: str, at_1: int) -> None:
        """Have names like those of the inputs of a datetime."""

    form = filled(
        as_task(run), **{"at.date": "2024-07-01", "at.time": "10:00", "at_0": "x", "at_1": "1"}
    )

    assert arguments_of(form) == ((datetime(2024, 7, 1, 8, tzinfo=UTC), "x", 1), {})


def test_two_forms_on_a_page_do_not_mix() -> None:
    task = task_of(int)
    data = query({"a-mode": "typed", "a-args-value": "1", "b-mode": "json", "b-json-args": "[2]"})

    one, two = (form_of(task, data=data, prefix=prefix) for prefix in ("a-", "b-"))

    assert arguments_of(one) == ((1,), {})
    assert arguments_of(two) == ((2,), {})


def test_untyped_and_extra_parameters_are_json() -> None:
    form = filled(
        as_task(typed_tasks.anything),
        value="not JSON",
        other="5",
        rest='["1", 2]',
        flag="on",
        more='{"x": "y"}',
    )

    assert arguments_of(form) == (("not JSON", 5, 1, 2), {"flag": True, "x": "y"})


@pytest.mark.parametrize(
    ("typed", "sent"),
    [('{"a": 1}', {"a": 1}), ("5", 5), ('"5"', "5"), ("5 apples", "5 apples"), ("null", None)],
)
def test_text_that_is_no_json_is_a_string_where_there_is_no_annotation(
    typed: str, sent: Any
) -> None:
    assert arguments_of(filled(as_task(typed_tasks.anything), value=typed)) == ((sent,), {})


@pytest.mark.parametrize(
    ("values", "errors"),
    [
        ({"value": ""}, {"value": ["This field is required."]}),
        ({"value": "1", "rest": "{}"}, {"rest": ["Enter a JSON list: [ ... ]."]}),
        ({"value": "1", "more": "[]"}, {"more": ["Enter a JSON object: { ... }."]}),
        (
            {"value": "1", "rest": '["x"]'},
            {"rest": ["0: Input should be a valid integer, unable to parse string as an integer"]},
        ),
        (
            {"value": "1", "more": '{"value": "2"}'},
            {"more": ["value has a field of its own."]},
        ),
    ],
)
def test_errors_of_extra_parameters_stand_at_their_fields(
    values: dict[str, str], errors: dict[str, list[str]]
) -> None:
    form = filled(as_task(typed_tasks.anything), **values)

    assert not form.is_valid()
    assert form.parameters.errors == errors


def test_json_is_checked_against_the_signature() -> None:
    task = as_task(typed_tasks.positions)

    valid = filled(task, "json", **{"json-args": "[1]", "json-kwargs": '{"e": "9"}'})
    wrong = filled(task, "json", **{"json-args": '["x"]', "json-kwargs": '{"e": "x", "z": 1}'})

    assert arguments_of(valid) == ((1,), {"e": 9})
    assert not wrong.is_valid()
    integer = "Input should be a valid integer, unable to parse string as an integer"
    assert wrong.errors == {
        "json": {
            "args": [f"a: {integer}"],
            "kwargs": [f"e: {integer}"],
            "__all__": ["The task has no parameter 'z'."],
        }
    }


def test_the_other_tab_keeps_what_was_typed_and_is_not_complained_about() -> None:
    form = positions(**{"a": "x", "json-args": "[1"})

    assert not form.is_valid()
    assert set(form.errors) == {"parameters"}
    assert form.json["args"].value() == "[1"
    assert form.parameters["a"].value() == "x"


@pytest.mark.parametrize(
    "function", [typed_tasks.unresolved, type], ids=["unresolved", "no signature"]
)
def test_a_task_that_can_not_be_read_has_the_json_form_and_a_hint(
    function: Callable[..., Any],
) -> None:
    task = as_task(typed_tasks.unresolved)
    task.run = function

    form = filled(task, **{"json-args": '["x"]'})

    assert (form.mode, form.has_typed) == ("json", False)
    assert "can't be" in form.problem
    assert arguments_of(form) == (("x",), {})


def test_a_parameter_that_pydantic_knows_nothing_of_is_json() -> None:
    form = filled(as_task(typed_tasks.partly_opaque), thing='{"a": 1}', number="1")

    assert arguments_of(form) == (({"a": 1}, 1), {})


# Bad input

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1", "Enter valid JSON"),
        ("[NaN]", "NaN is no JSON"),
        ("[-Infinity]", "-Infinity is no JSON"),
        ("[1e999]", "can't be written as JSON"),
        ("[" + "9" * 10_000 + "]", "too many digits"),
        (DEEP, "nested too deeply"),
        ("[" * 60 + "]" * 60, "nested too deeply"),
        ('["a\\u0000b"]', "NUL"),
        ('["\\ud800"]', "lone surrogate"),
        ('["' + "x" * CALL_MAX_BYTES + '"]', "too large"),
        ('[{"__type__": "no such type", "__value__": 1}]', "__type__"),
        ('[{"__type__": "uuid", "__value__": "x"}]', "__type__"),
        ('[{"__type__": "decimal", "__value__": "x"}]', "__type__"),
        ('[{"__type__": [], "__value__": "x"}]', "__type__"),
        ('[{"__type__": "set", "__value__": [[]]}]', "__type__"),
        ('[{"__type__": "timedelta", "__value__": 1e300}]', "__type__"),
    ],
    ids=lambda value: value[:24],
)
def test_bad_json_is_an_error_in_both_tabs_and_stays_as_it_was_typed(
    text: str, words: str
) -> None:
    task = task_of(list[Any])

    in_field = filled(task, value=text)
    in_tab = filled(task, "json", **{"json-args": f"[{text}]"})

    assert not in_field.is_valid()
    assert words in " ".join(in_field.parameters.errors["value"])
    assert in_field.parameters["value"].value() == text
    assert not in_tab.is_valid()
    assert in_tab.errors["json"]
    assert in_tab.json["args"].value() == f"[{text}]"


def test_a_date_in_kombus_notation_is_a_date() -> None:
    text = '[{"__type__": "datetime", "__value__": "2024-05-01T10:00:00+00:00"}]'

    form = filled(task_of(list[Any]), value=text)

    assert arguments_of(form) == (([datetime(2024, 5, 1, 10, tzinfo=UTC)],), {})


@pytest.mark.parametrize(
    ("annotation", "typed"),
    [
        (str, "a\x00b"),
        (int, "9" * 10_000),
        (float, "1e999"),
        (float, "-inf"),
        (list[str], "a\nb\x00"),
        (Any, '{"a": NaN}'),
    ],
)
def test_what_can_not_be_sent_is_an_error_at_its_field(annotation: Any, typed: str) -> None:
    form = filled(task_of(annotation), value=typed)

    assert not form.is_valid()
    assert form.parameters.errors["value"]


def test_html_that_is_typed_is_shown_as_text() -> None:
    task, text = task_of(dict[str, int]), "<script>alert(1)</script>"

    form = filled(task, value=text, **{"options-queue": text, "json-args": text})
    form.is_valid()

    shown = form.parameters.as_p() + form.json.as_p() + form.options.as_p()
    assert "&lt;script&gt;alert" in shown
    assert text not in shown


def test_nothing_posted_at_all_is_an_error_and_no_exception() -> None:
    form = form_of(as_task(typed_tasks.deliver), data=query({}))

    assert not form.is_valid()
    assert form.mode == "typed"
    with pytest.raises(ValueError, match="no call"):
        _ = form.call


def test_a_form_that_was_not_sent_is_not_valid() -> None:
    form = form_of(task_of(int))

    assert not form.is_valid()
    assert form.errors == {}


# Options


def with_options(task: Any = None, **options: str) -> Any:
    values = {f"options-{name}": value for name, value in options.items()}
    return filled(task or task_of(int), value="1", **values)


def test_only_options_that_are_filled_in_are_given() -> None:
    plain = with_options(queue="", countdown="", reason="")
    full = with_options(queue="q", countdown="0", expires="60", priority="0", reason=" why ")

    assert plain.is_valid()
    assert full.is_valid()
    assert plain.run_kwargs == {"args": (1,), "kwargs": {}}
    assert full.run_kwargs == {
        "args": (1,),
        "kwargs": {},
        "queue": "q",
        "countdown": 0,
        "expires": 60,
        "priority": 0,
        "reason": "why",
    }


def test_an_eta_is_an_aware_datetime() -> None:
    form = with_options(eta_0="2030-07-01", eta_1="10:00")

    assert form.is_valid()
    assert form.run_kwargs["eta"] == datetime(2030, 7, 1, 8, tzinfo=UTC)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"countdown": "-1"}, "countdown"),
        ({"countdown": "9" * 20}, "countdown"),
        ({"countdown": "x"}, "countdown"),
        ({"countdown": "5", "eta_0": "2030-07-01", "eta_1": "10:00"}, "eta"),
        ({"eta_0": "2030-07-01"}, "eta"),
        ({"eta_0": "x", "eta_1": "y"}, "eta"),
        ({"expires": "0"}, "expires"),
        ({"expires": "5", "countdown": "5"}, "expires"),
        ({"expires": "5", "eta_0": "2130-07-01", "eta_1": "10:00"}, "expires"),
        ({"priority": "256"}, "priority"),
        ({"queue": "a\x00"}, "queue"),
        ({"queue": "a" * 256}, "queue"),
        ({"reason": "a\x00"}, "reason"),
    ],
)
def test_options_that_are_wrong_say_so(options: dict[str, str], field: str) -> None:
    form = with_options(**options)

    assert not form.is_valid()
    assert set(form.errors["options"]) == {field}


def test_a_reason_is_needed_where_the_rule_asks_for_one(configure: Callable[..., None]) -> None:
    configure(RUNNABLE_TASKS={"typed.*": {"reason": True}})

    without, with_one = with_options(reason=" "), with_options(reason="so")

    assert not without.is_valid()
    assert set(without.errors["options"]) == {"reason"}
    assert with_one.is_valid()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("countdown", {"options-countdown": "5"}),
        ("eta", {"options-eta_0": "2030-01-01", "options-eta_1": "10:00"}),
    ],
)
def test_a_secret_is_not_kept_until_later(name: str, options: dict[str, str]) -> None:
    task = task_of(str, name="password")

    form = filled(task, password="p-w", **options)

    assert not form.is_valid()
    assert "A secret can't be kept until later" in form.errors["options"][name][0]
    assert filled(task, password="p-w", **{"options-countdown": "0"}).is_valid()


# What the page asks for


def test_the_errors_of_the_runner_stand_at_their_fields() -> None:
    task = as_task(typed_tasks.deliver)
    typed, as_json = filled(task, order__customer="A"), filled(task, "json")

    for form in (typed, as_json):
        form.add_errors({"order": ["size: no"], "__all__": ["not at all"]})

    assert typed.parameters.errors["order.customer"][-1] == "size: no"
    assert typed.parameters.non_field_errors() == ["not at all"]
    assert as_json.json.errors["args"] == ["order: size: no"]
    assert as_json.json.non_field_errors() == ["not at all"]


def test_a_secret_is_shown_again_only_to_who_just_typed_it() -> None:
    task = task_of(Credentials)

    form = filled(task, value__user="", value__pin="s-3", value__api_key="k-3")
    unfilled = form_of(task)

    assert 'value="s-3"' in form.parameters.as_p()
    assert "s-3" not in unfilled.parameters.as_p()


def test_the_media_are_admins() -> None:
    media = str(form_of(task_of(Point), admin_site=admin.site).media)

    assert "admin/js/admin/DateTimeShortcuts.js" in media


@pytest.mark.parametrize("zone", ["Europe/Vienna", "America/Los_Angeles", "Pacific/Kiritimati"])
@pytest.mark.parametrize("day", ["0001-01-01", "1969-12-31", "9999-01-01", "9999-12-31"])
@pytest.mark.parametrize("expires", ["", "60"])
def test_an_eta_that_not_every_time_zone_can_show_is_an_error(
    zone: str, day: str, expires: str
) -> None:
    with timezone.override(zone):
        form = with_options(eta_0=day, eta_1="23:59:59", expires=expires)

        assert not form.is_valid()
        assert form.options.errors == {"eta": ["This moment is out of range."]}
        assert day in form.options.as_p()
