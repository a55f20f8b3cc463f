from __future__ import annotations

import json
import math
import uuid
from datetime import date, datetime, time, timedelta
from datetime import timezone as fixed_timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_admin_runner.encoding import (
    MAX_DEPTH,
    from_plain,
    readable,
    readable_text,
    storable_text,
    to_plain,
)
from celery_admin_runner.exceptions import NotEncodable
from celery_admin_runner.models import TaskRunRecord
from tests.factories import make_run

VALUES = [
    None,
    True,
    10**30,
    "Grüße 😀",
    [1, [2.5]],
    {"a": {"b": []}},
    date(2026, 2, 28),
    time(23, 59, 1),
    datetime(2026, 2, 28, 12, 30, 1, 5),
    datetime(2026, 2, 28, 12, tzinfo=fixed_timezone(timedelta(hours=-5))),
    timedelta(days=-3, microseconds=1),
    Decimal("1.10"),
    uuid.UUID("0b0e5e8f-1d4b-4f1e-8b0a-0d5f8d0b7c11"),
    b"\x00\xff",
    {1, 2},
    frozenset({"a"}),
    {"nested": [timedelta(hours=1), {"set": {3}}]},
]


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_comes_back_as_it_was_with_its_type(value):
    plain = to_plain(value)

    again = from_plain(plain)

    assert again == value
    assert type(again) is type(value)
    assert json.loads(json.dumps(plain)) == plain


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(10**40), 10**40)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
        | st.timedeltas()
        | st.decimals(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner) | st.dictionaries(st.text("abc_"), inner),
        max_leaves=10,
    )
)
def test_whatever_is_plain_comes_back_as_it_was(value):
    assert from_plain(to_plain(value)) == value


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        object(),
        {"a": [math.nan]},
        10**10_000,
        {(1, 2): 3},
        nested(100_000),
    ],
    ids=["nan", "infinity", "object", "nan inside", "10,000 digits", "tuple as key", "very deep"],
)
def test_what_json_can_not_hold_is_refused_in_words(value):
    with pytest.raises(NotEncodable, match="This can't be written as JSON"):
        to_plain(value)


@pytest.mark.parametrize("value", ["a\x00b", ["\x00"], {"\x00": 1}, {"a": {"b": "\x00"}}])
def test_a_nul_character_is_refused(value):
    with pytest.raises(NotEncodable, match="NUL character"):
        to_plain(value)


@pytest.mark.parametrize("value", ["\ud800", [1, "x\udfff"], {"\udc00": 1}])
def test_half_a_character_is_refused(value):
    with pytest.raises(NotEncodable, match="half a character"):
        to_plain(value)


def test_texts_that_only_look_like_escapes_are_kept():
    value = ["\\u0000", "\\ud800", "😀"]

    assert to_plain(value) == value


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 400])
def test_what_is_nested_deeper_than_every_database_takes_is_refused(depth):
    with pytest.raises(NotEncodable, match="nested too deeply"):
        to_plain(nested(depth))


def test_many_lists_beside_each_other_are_not_deep():
    value = [[] for _ in range(MAX_DEPTH * 2)]

    assert to_plain(value) == value


@pytest.mark.django_db
def test_the_database_stores_the_deepest_value_that_is_let_through():
    run = make_run(args=to_plain(nested(MAX_DEPTH)))

    assert TaskRunRecord.objects.get(pk=run.pk).args == nested(MAX_DEPTH)


def test_people_read_values_without_envelopes():
    value = {
        "when": date(2026, 2, 28),
        "ids": [uuid.UUID(int=5)],
        "price": Decimal("1.10"),
        "tags": {"a"},
        "took": timedelta(hours=1),
    }

    assert readable(to_plain(value)) == {
        "when": "2026-02-28",
        "ids": [uuid.UUID(int=5).hex],
        "price": "1.10",
        "tags": ["a"],
        "took": "P0DT01H00M00S",
    }


def test_people_read_letters_not_escapes():
    assert readable_text(to_plain({"größe": "ü"})) == '{"größe": "ü"}'


def test_a_text_is_made_storable():
    assert storable_text("a\x00b\ud800c") == "a\N{REPLACEMENT CHARACTER}b?c"
