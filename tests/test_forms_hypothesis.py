"""Whatever the form accepts, the task receives equal: for every kind of annotation."""

from __future__ import annotations

import json
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kombu.utils.json import dumps, loads
from pydantic import AnyUrl, SecretStr

from celery_admin_runner.calls import prepare_call
from celery_admin_runner.encoding import from_plain
from tests import typed_tasks
from tests.forms import filled
from tests.typed_tasks import SCALARS, Colour, Order, Point, Size, as_task, task_of

MODEST = settings(
    max_examples=50, deadline=None, suppress_health_check=list(HealthCheck), database=None
)

TEXT = st.text(max_size=20) | st.sampled_from(
    ["", " ", "0", "-1", "null", "[]", "{}", "é\r\n", "\x00"]
)
NUMBER = st.integers().map(str) | st.floats().map(str) | st.decimals().map(str) | TEXT
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
).map(json.dumps)
MOMENT = st.datetimes(min_value=datetime(1900, 1, 1))

#: What is typed, by a part of the name of the kind.
TYPED: dict[str, st.SearchStrategy[Any]] = {
    "bool": st.sampled_from(["on", "true", "false", "unknown", "2", "x"]),
    "int": NUMBER,
    "int with bounds": st.integers(-3, 13).map(str) | TEXT,
    "float": NUMBER,
    "Decimal": st.decimals(0, 100, places=2).map(str) | NUMBER,
    "UUID": st.uuids().map(str) | TEXT,
    "EmailStr": st.emails() | TEXT,
    "AnyUrl": st.builds("http://{}.example/{}".format, st.sampled_from("aü-"), TEXT) | TEXT,
    "date": MOMENT.map(lambda moment: moment.date().isoformat()) | TEXT,
    "time": MOMENT.map(lambda moment: moment.time().isoformat()) | TEXT,
    "timedelta": st.timedeltas().map(str) | NUMBER | st.sampled_from(["P1D", "-PT5M", "0:1"]),
    "Literal": st.sampled_from(["a", "1", "", "b"]),
    "TextChoices": st.sampled_from(["s", "l", "x", ""]),
    "IntEnum": st.sampled_from(["1", "2", "3", ""]),
    "Enum": st.sampled_from(["red", "blue", "x", ""]),
}  # fmt: skip


def strategy_of(kind: str) -> st.SearchStrategy[Any]:
    return TYPED.get(kind, TYPED.get(kind.removesuffix(" or None"), TEXT))


def lines(strategy: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(strategy, max_size=4).map("\r\n".join)


#: Every other kind of the table: the annotation, and what is typed.
COMPOUND: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "list of str": (list[str], lines(TEXT)),
    "list of int": (list[int], lines(NUMBER)),
    "list of datetime": (list[datetime], lines(MOMENT.map(str))),
    "list of secrets": (list[SecretStr], lines(TEXT)),
    "list of UUID or None": (list[UUID] | None, lines(st.uuids().map(str))),
    "set of float": (set[float], lines(NUMBER)),
    "set of date": (frozenset[date], lines(TYPED["date"])),
    "tuple": (tuple[int, str, Decimal], lines(NUMBER)),
    "tuple of times": (tuple[time, ...], lines(TYPED["time"])),
    "list of URLs": (list[AnyUrl], lines(TYPED["AnyUrl"])),
    "list of choices": (list[Size], st.lists(TYPED["TextChoices"], max_size=3)),
    "set of literals": (set[Literal["a", 1]], st.lists(TYPED["Literal"], max_size=3)),
    "dict": (dict[str, Any], JSON),
    "dict of dates": (dict[date, list[timedelta]], st.dictionaries(
        TYPED["date"], st.lists(TYPED["timedelta"], max_size=2), max_size=2).map(json.dumps)),
    "Any": (Any, JSON),
    "union": (int | str | Point, JSON),
    "list of models": (list[Point], st.lists(st.fixed_dictionaries(
        {"x": st.integers() | st.text(max_size=2)}), max_size=3).map(json.dumps)),
    "dict of enums": (dict[Colour, Size], st.dictionaries(
        TYPED["Enum"], TYPED["TextChoices"], max_size=2).map(json.dumps)),
}  # fmt: skip


def assert_the_task_receives_equal(form: Any) -> None:
    """Check a form: what is sent arrives, is recorded, and is what it says when sent again."""
    if not form.is_valid():
        assert form.errors
        return
    call = form.call
    assert loads(dumps([call.args, call.kwargs])) == [list(call.args), call.kwargs]
    assert prepare_call(form.task, call.args, call.kwargs) == call
    if not call.has_secrets:
        assert from_plain(call.stored_args) == list(call.args)
        assert from_plain(call.stored_kwargs) == call.kwargs


@pytest.mark.parametrize("kind", [kind for kind in SCALARS if kind != "datetime"])
def test_a_value_arrives_as_it_was_accepted(kind: str) -> None:
    task = task_of(SCALARS[kind])

    @MODEST
    @given(typed=strategy_of(kind))
    def check(typed: str) -> None:
        assert_the_task_receives_equal(filled(task, value=typed))

    check()


@pytest.mark.parametrize("kind", list(COMPOUND))
def test_several_values_arrive_as_they_were_accepted(kind: str) -> None:
    annotation, strategy = COMPOUND[kind]
    task = task_of(annotation)

    @MODEST
    @given(typed=strategy)
    def check(typed: Any) -> None:
        assert_the_task_receives_equal(filled(task, value=typed))

    check()


@MODEST
@given(moment=MOMENT)
def test_a_moment_arrives_as_it_was_accepted(moment: datetime) -> None:
    typed = {
        "args-value.date": moment.date().isoformat(),
        "args-value.time": moment.time().isoformat(),
    }

    form = filled(task_of(datetime), **typed)

    assert_the_task_receives_equal(form)
    if form.is_valid():
        assert form.call.args[0].replace(tzinfo=None) == moment


@MODEST
@given(
    customer=TEXT,
    size=TYPED["TextChoices"],
    due=TYPED["date"],
    tags=lines(TEXT),
    lines_=JSON,
    street=TEXT,
    x=NUMBER,
)
def test_models_arrive_as_they_were_accepted(
    customer: str, size: str, due: str, tags: str, lines_: str, street: str, x: str
) -> None:
    form = filled(
        as_task(typed_tasks.deliver),
        order__customer=customer,
        order__size=size,
        order__due=due,
        order__tags=tags,
        order__lines=lines_ if len(lines_) % 2 else "",
        to__street=street,
        to__zip_code=street,
        at__x=x,
        billing__street=street,
        billing__zip_code="",
    )

    assert_the_task_receives_equal(form)


@MODEST
@given(
    order=st.builds(
        Order,
        customer=st.text("abc"),
        due=st.dates(),
        tags=st.lists(st.text("ab c")),
    ),
    to=st.fixed_dictionaries({"street": st.text("ab"), "zip_code": st.just("1")}),
)
def test_objects_of_code_arrive_too(order: Order, to: dict[str, str]) -> None:
    task = as_task(typed_tasks.deliver)

    call = prepare_call(task, [order], {"to": to, "at": Point(1)})

    assert prepare_call(task, call.args, call.kwargs) == call
    assert from_plain(call.stored_args) == list(call.args)
    assert Order.model_validate(call.args[0]) == order


@MODEST
@given(value=JSON, rest=JSON, more=JSON)
def test_json_arrives_as_it_was_accepted(value: str, rest: str, more: str) -> None:
    task = as_task(typed_tasks.anything)

    typed = filled(task, value=value, rest=rest, more=more)
    as_json = filled(task, "json", **{"json-args": f"[{value}]", "json-kwargs": more})

    assert_the_task_receives_equal(typed)
    assert_the_task_receives_equal(as_json)
