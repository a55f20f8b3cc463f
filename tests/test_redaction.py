from __future__ import annotations

import json
from base64 import b64encode

import pytest

from celery_admin_runner.redaction import (
    MASK,
    has_mask,
    is_secret_name,
    masked,
    scrub,
    scrubbed,
    texts_of,
)


@pytest.mark.parametrize("name", ["password", "db_Password", "API_KEY", "access_token", "secrets"])
def test_the_usual_names_are_secret_whatever_their_case(name):
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["user", "pass", "key", ""])
def test_other_names_are_not(name):
    assert not is_secret_name(name)


def test_the_project_names_its_own_secrets(configure):
    configure(REDACT=["*PIN*"])

    assert is_secret_name("pin_code")
    assert not is_secret_name("password")


def test_secrets_are_masked_at_any_depth():
    value = {"a": [{"password": "x", "b": 1}], "token": {"deep": True}, "c": (1, {"secret": None})}

    result = masked(value)

    assert result == {"a": [{"password": MASK, "b": 1}], "token": MASK, "c": [1, {"secret": MASK}]}
    assert value["token"] == {"deep": True}


def test_keys_that_are_no_texts_are_left_alone():
    assert masked({1: "x", None: 2}) == {1: "x", None: 2}


@pytest.mark.parametrize("value", [MASK, [MASK], {"a": [{"b": MASK}]}, (1, (MASK,))])
def test_a_mask_is_found_at_any_depth(value):
    assert has_mask(value)


@pytest.mark.parametrize("value", [None, "", "***", 8, [], {MASK: 1}])
def test_what_is_no_mask_is_none(value):
    assert not has_mask(value)


def test_the_texts_of_a_value_are_those_that_a_message_could_hold():
    value = {"a": ["x", 12, None, True, ""], "b": {3.5}}

    assert set(texts_of(value)) == {"x", "12", "3.5"}


@pytest.mark.parametrize(
    "secret", ["two\nlines", 'a "quoted" one', "it's", "back\\slash", "größer"]
)
def test_a_secret_is_found_as_it_is_as_repr_and_as_json(secret):
    message = f"{secret} {ValueError(secret)!r} {json.dumps({'value': secret})}"

    result = scrub(message, texts_of(secret))

    assert result == f"{MASK} ValueError({repr(secret)[0]}{MASK}{repr(secret)[0]}) " + (
        json.dumps({"value": MASK})
    )


@pytest.mark.parametrize("secret", ["größer".encode(), b"plain", b"\xff\x00"])
def test_secret_bytes_are_found_as_they_are_as_text_and_as_base64(secret):
    message = f"{secret!r} {secret.decode(errors='replace')} {b64encode(secret).decode()}"

    result = scrub(message, texts_of(secret))

    assert result == f"{MASK} {MASK} {MASK}"


def test_of_two_secrets_the_longer_one_is_masked_first():
    assert scrub("hunter2 hunter", ["hunter", "hunter2"]) == f"{MASK} {MASK}"


def test_secrets_are_masked_in_keys_texts_and_numbers_of_data():
    value = {"hunter": ["is hunter", 1234, 5, True, None]}

    result = scrubbed(value, frozenset({"hunter", "1234"}))

    assert result == {MASK: [f"is {MASK}", MASK, 5, True, None]}


def test_without_secrets_data_stays_as_it_is():
    value = {"a": [1, (2,)]}

    assert scrubbed(value, frozenset()) is value
