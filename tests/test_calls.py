"""Calls: what is checked, sent and stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import celery
import pytest
from django.contrib.auth.models import Group, User
from django.utils.translation import gettext_lazy
from kombu.serialization import register, unregister
from kombu.utils.json import dumps, loads
from pydantic import (
    AfterValidator,
    AnyUrl,
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    RootModel,
    Secret,
    SecretBytes,
    SecretStr,
)

from celery_admin_runner.binding import arrange, bind
from celery_admin_runner.calls import Call, prepare_call, signature_of
from celery_admin_runner.encoding import CALL_MAX_BYTES, from_plain
from celery_admin_runner.exceptions import ALL, InvalidArguments
from tests import typed_tasks
from tests.factories import make_superuser, make_user
from tests.typed_tasks import (
    Address,
    Colour,
    Credentials,
    Level,
    Line,
    Order,
    Pair,
    Point,
    Size,
    as_task,
    task_of,
)


def sent(annotation: Any, value: Any) -> Any:
    """Return what a task with one parameter of this type is sent."""
    (wire,) = prepare_call(task_of(annotation), [value], {}).args
    return wire


def errors_of(task: Any, *args: Any, user: Any = None, **kwargs: Any) -> dict[str, list[str]]:
    with pytest.raises(InvalidArguments) as caught:
        prepare_call(task, args, kwargs, user=user)
    return caught.value.errors


@pytest.mark.parametrize(
    ("annotation", "value", "wire"),
    [
        (int, "5", 5),
        (bool, "false", False),
        (float, "1e3", 1000.0),
        (str, "", ""),
        (int | None, None, None),
        (list[int], ("1", 2), [1, 2]),
        (tuple[int, str], [1, "a"], [1, "a"]),
        (set[int], [1, 1, 2], {1, 2}),
        (frozenset[str], ["a"], frozenset({"a"})),
        (dict[int, str], {"1": "a"}, {"1": "a"}),
        (dict[date, int], {"2024-05-01": 1}, {"2024-05-01": 1}),
        (dict[Colour, int], {"red": 1}, {"red": 1}),
        (date, "2024-05-01", date(2024, 5, 1)),
        (time, "10:00", time(10)),
        (timedelta, "PT5M", timedelta(minutes=5)),
        (Decimal, "1.10", Decimal("1.10")),
        (bytes, "abc", b"abc"),
        (bytes, b"\xff", b"\xff"),
        (Path, "/tmp/x", "/tmp/x"),
        (IPv4Address, "127.0.0.1", "127.0.0.1"),
        (IPv4Network, "10.0.0.0/8", "10.0.0.0/8"),
        (Iterable[int], ["1"], [1]),
        (AnyUrl, "http://example.com", "http://example.com/"),
        (Size, "s", "s"),
        (Level, "2", 2),
        (Colour, Colour.RED, "red"),
        (list[Level], [Level.LOW, 2], [1, 2]),
        (Line, {"sku": "a"}, {"sku": "a", "quantity": 1}),
        (Line, Line(sku="a", quantity=3), {"sku": "a", "quantity": 3}),
        (Point, {"x": "1"}, {"x": 1, "y": 0}),
        (Address, {"street": "a", "zip_code": "1"}, {"street": "a", "zip_code": "1"}),
        (Pair, [1], {"left": 1, "right": 2}),
        (RootModel[list[int]], ["1"], [1]),
        (Any, Size.LARGE, "l"),
        (Any, (1, (2,)), [1, [2]]),
        (Any, Point(1), {"x": 1, "y": 0}),
        (Any, gettext_lazy("text"), "text"),
        (Any, ByteSize(5), 5),
        (Any, {None: 1, True: 2, 3.5: 4}, {"null": 1, "true": 2, "3.5": 4}),
        (Any, bytearray(b"a"), b"a"),
        (SecretStr, "s", "s"),
        (SecretBytes, b"s", b"s"),
        (Secret[int], 5, 5),
    ],
)
def test_a_value_is_sent_as_pydantic_reads_it(annotation: Any, value: Any, wire: Any) -> None:
    result = sent(annotation, value)

    assert result == wire
    assert type(result) is type(wire)


def test_an_aware_datetime_keeps_its_moment() -> None:
    moment = datetime(2024, 7, 1, 12, tzinfo=ZoneInfo("Europe/Vienna"))

    wire = sent(datetime, moment)

    assert wire == moment
    assert wire.tzinfo == timezone(timedelta(hours=2))


def test_an_ambiguous_moment_keeps_its_offset() -> None:
    second = datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Vienna"), fold=1)

    assert sent(datetime, second).isoformat() == "2024-10-27T02:30:00+01:00"


class Aliased(BaseModel):
    """Validated from other names."""

    one: int = Field(alias="eins")


class Strict(BaseModel):
    """Accepts texts for dates only in JSON."""

    model_config = ConfigDict(strict=True)

    day: date
    colour: Colour


class Sloppy(BaseModel):
    """Has a default that is not valid."""

    name: str = None
    number: int = 1


class Stamped(BaseModel):
    """Has a default that is another each time."""

    name: str
    id: UUID = Field(default_factory=uuid4)


class Open(BaseModel):
    """Takes more."""

    model_config = ConfigDict(extra="allow")


@dataclass
class Bag:
    """Has a field that is not given."""

    items: list[int] = field(default_factory=list)
    size: int = field(init=False, default=0)


@pytest.mark.parametrize(
    ("annotation", "value", "wire"),
    [
        (Aliased, {"eins": 1}, {"eins": 1}),
        (
            Strict,
            {"day": "2024-05-01", "colour": "red"},
            {"day": date(2024, 5, 1), "colour": "red"},
        ),
        (Sloppy, {"number": 2}, {"number": 2}),
        (Stamped, {"name": "a"}, {"name": "a"}),
        (Open, {"more": 1}, {"more": 1}),
        (Bag, {"items": [1]}, {"items": [1]}),
    ],
)
def test_a_model_is_sent_so_that_it_validates_again(
    annotation: Any, value: Any, wire: Any
) -> None:
    assert sent(annotation, value) == wire


@pytest.mark.parametrize(
    "call",
    [
        lambda task: prepare_call(task, [{"customer": "A", "size": "l", "due": "2024-05-01"}], {}),
        lambda task: prepare_call(task, [], {"value": Order(customer="A", lines=[Line(sku="x")])}),
    ],
)
def test_a_prepared_call_prepares_to_itself(call: Callable[[Any], Call]) -> None:
    task = task_of(Order)

    first = call(task)

    assert prepare_call(task, first.args, first.kwargs) == first
    assert loads(dumps([first.args, first.kwargs])) == [list(first.args), first.kwargs]
    assert from_plain(first.stored_args) == list(first.args)
    assert from_plain(first.stored_kwargs) == first.kwargs


@pytest.mark.parametrize(
    ("args", "kwargs", "errors"),
    [
        ([], {}, {"a": ["Field required"]}),
        ([1], {"z": 2}, {ALL: ["The task has no parameter 'z'."]}),
        ([1, 2, 3, 4], {"d": 2}, {"d": ["This is given twice: by its position and by its name."]}),
        ([1, 2, 3, 4, 5], {}, {ALL: [
            "The task takes fewer positional arguments than the 5 given."
        ]}),
        (["x"], {"e": "y", "z": 1}, {
            "a": ["Input should be a valid integer, unable to parse string as an integer"],
            "e": ["Input should be a valid integer, unable to parse string as an integer"],
            ALL: ["The task has no parameter 'z'."],
        }),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit_are_told_by_parameter(
    args: list[Any], kwargs: dict[str, Any], errors: dict[str, list[str]]
) -> None:
    assert errors_of(as_task(typed_tasks.positions), *args, **kwargs) == errors


def test_an_error_inside_of_an_argument_says_where() -> None:
    assert errors_of(task_of(Order), {"customer": "A", "lines": [{"quantity": 0}]}) == {
        "value": [
            "lines.0.sku: Field required",
            "lines.0.quantity: Input should be greater than or equal to 1",
        ]
    }


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (float("nan"), "can't be written as JSON"),
        (float("inf"), "can't be written as JSON"),
        ("a\x00b", "NUL"),
        ("\ud800", "lone surrogate"),
        (10**5000, "can't be written as JSON"),
        (nested(30), "nested too deeply"),
        (nested(900), "nested too deeply"),
        ({"__type__": "date", "__value__": "2024-05-01"}, "__type__"),
        (object(), "object can't be sent"),
        ({1: "a", "1": "b"}, "Two keys are the same"),
        ({(1, 2): "a"}, "key of a dict"),
        ({frozenset({(1, 2)})}, "A set can hold"),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_what_can_not_be_sent_is_an_error_in_words(value: Any, words: str) -> None:
    def run(value) -> None: ...  # type: ignore[no-untyped-def]

    (text,) = errors_of(as_task(run), value)["value"]

    assert words in text


def test_a_call_that_is_too_large_is_refused() -> None:
    assert "too large" in errors_of(task_of(str), "x" * CALL_MAX_BYTES)[ALL][0]
    assert sent(str, "x" * (CALL_MAX_BYTES - 10)) == "x" * (CALL_MAX_BYTES - 10)


def test_a_value_that_each_validation_changes_is_refused() -> None:
    annotation = Annotated[str, AfterValidator(lambda text: text + "!")]

    assert "changes each time" in errors_of(task_of(annotation), "a")["value"][0]


def test_a_validator_that_breaks_is_an_error_and_not_an_exception() -> None:
    annotation = Annotated[str, AfterValidator(lambda text: {}[text])]

    assert "could not be checked" in errors_of(task_of(annotation), "a")["value"][0]


def test_the_tasks_own_serializer_counts() -> None:
    def run(value: Any) -> None: ...

    with_yaml = as_task(run, serializer="no such serializer")
    with_pickle = as_task(run, serializer="pickle")

    assert "No encoder installed" in errors_of(with_yaml, 1)["value"][0]
    assert prepare_call(with_pickle, [{1, 2}], {}).args == ({1, 2},)


def test_what_the_serializer_changes_is_refused() -> None:
    register("lossy", lambda value: "[]", json.loads, "application/x-lossy", "utf-8")
    try:
        errors = errors_of(as_task(typed_tasks.checked, serializer="lossy"), 1)
    finally:
        unregister("lossy")

    assert errors == {
        "number": ["The serializer 'lossy' can't carry this: it would arrive changed."]
    }


def test_a_time_keeps_its_offset_and_loses_the_name_of_its_zone() -> None:
    noon, zone = time(12), ZoneInfo("Europe/Vienna")

    assert sent(time, noon.replace(tzinfo=zone)).tzinfo is None
    assert sent(time, "12:00+02:00").utcoffset() == timedelta(hours=2)


def test_a_signature_that_can_not_be_read_takes_everything() -> None:
    task = as_task(typed_tasks.unresolved)

    call = prepare_call(task, ["x"], {"number": "y"})

    assert (call.args, call.kwargs) == (("x",), {"number": "y"})
    assert errors_of(task) == {"value": ["Field required"]}


def test_extra_arguments_are_checked_too() -> None:
    task = as_task(typed_tasks.anything)

    call = prepare_call(task, ["x", 5, "1"], {"flag": "yes", "note": "n"})

    assert (call.args, call.kwargs) == (("x", 5, 1), {"flag": True, "note": "n"})
    assert set(errors_of(task, 1, 2, "x", note=5)) == {"rest", "more"}


@pytest.mark.parametrize(
    ("values", "args", "kwargs"),
    [
        ({"a": 1}, [1], {}),
        ({"a": 1, "c": 9}, [1, 2, 9], {}),
        ({"a": 1, "d": 9}, [1], {"d": 9}),
        ({"a": 1, "b": 7, "e": 9}, [1, 7], {"e": 9}),
        ({"d": 1}, [], {"d": 1}),
    ],
)
def test_required_arguments_go_by_position_and_others_by_name(
    values: dict[str, Any], args: list[Any], kwargs: dict[str, Any]
) -> None:
    signature = signature_of(as_task(typed_tasks.positions))

    assert arrange(signature, values) == (args, kwargs)


def test_what_is_arranged_binds_again() -> None:
    signature = signature_of(as_task(typed_tasks.anything))
    values = {"value": 1, "rest": [3, 4], "flag": True, "more": {"x": "y"}}

    args, kwargs = arrange(signature, values)

    assert (args, kwargs) == ([1, 5, 3, 4], {"flag": True, "x": "y"})
    assert bind(signature, args, kwargs).by_name() == {**values, "other": 5}


@pytest.mark.django_db
def test_an_object_is_sent_as_its_primary_key() -> None:
    task, user = as_task(typed_tasks.greet), make_user()
    groups = [Group.objects.create(name=name) for name in "ab"]

    call = prepare_call(task, [user, [str(group.pk) for group in groups]], {"kind": None})

    assert call.args == (user.pk, [group.pk for group in groups])
    assert call.stored_args == list(call.args)
    assert prepare_call(task, call.args, call.kwargs) == call


@pytest.mark.django_db
@pytest.mark.parametrize("value", ["x", "", "1.5", True, {}, [], "1\x00", 10**30, -(10**30)])
def test_what_is_no_primary_key_is_an_error(value: Any) -> None:
    assert errors_of(task_of(User), value) == {"value": ["This is no primary key of user."]}


@pytest.mark.django_db
def test_an_object_that_does_not_exist_is_an_error() -> None:
    assert errors_of(task_of(list[User]), [10**6, 10**6 + 1]) == {
        "value": [
            "There is no user with the primary key 1000000.",
            "There is no user with the primary key 1000001.",
        ]
    }


@pytest.mark.django_db
def test_of_many_objects_that_do_not_exist_a_few_are_named() -> None:
    texts = errors_of(task_of(list[User]), list(range(1000, 1015)))["value"]
    just_few = errors_of(task_of(list[User]), list(range(1000, 1010)))["value"]

    assert texts[:-1] == just_few
    assert just_few[-1] == "There is no user with the primary key 1009."
    assert texts[-1] == "And 5 more."


@pytest.mark.django_db
@pytest.mark.parametrize("permission", ["auth.view_group", "auth.change_group"])
def test_a_user_names_only_objects_that_he_may_view(permission: str) -> None:
    task, group = task_of(Group), Group.objects.create(name="g")

    assert errors_of(task, group.pk, user=make_user()) == {"value": ["You may not view groups."]}
    assert prepare_call(task, [group.pk], {}, user=make_user(permission)).args == (group.pk,)
    assert prepare_call(task, [group.pk], {}, user=make_superuser()).args == (group.pk,)


@pytest.mark.django_db
def test_many_objects_are_looked_up_by_one_query(django_assert_num_queries: Any) -> None:
    keys = [Group.objects.create(name=f"g{number}").pk for number in range(20)]

    with django_assert_num_queries(1):
        prepare_call(task_of(list[Group]), [keys], {})


@pytest.mark.django_db
def test_very_many_objects_are_looked_up_by_several_queries(
    django_assert_num_queries: Any,
) -> None:
    groups = Group.objects.bulk_create(Group(name=f"g{number}") for number in range(1001))
    keys = [group.pk for group in groups]

    with django_assert_num_queries(3):
        call = prepare_call(task_of(list[Group]), [keys], {})

    assert call.args == (keys,)


@pytest.mark.skipif(
    celery.VERSION < (5, 6), reason="Celery 5.5 itself reads no postponed annotations"
)
def test_celerys_own_pydantic_gets_its_model() -> None:
    def run(self: Any, line: Line, credentials: Credentials | None = None) -> dict[str, Any]:
        return {"is_line": isinstance(line, Line), "pin": credentials.pin.get_secret_value()}

    task = as_task(run, bind=True, pydantic=True)

    call = prepare_call(task, [{"sku": "a"}], {"credentials": {"user": "u", "pin": "1234-5"}})

    result = task.apply(call.args, call.kwargs).get()
    assert result == {"is_line": True, "pin": "1234-5"}


def test_a_signature_is_read_once() -> None:
    task = task_of(int)

    assert signature_of(task) is signature_of(task)
