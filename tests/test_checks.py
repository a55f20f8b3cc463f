from __future__ import annotations

from dataclasses import fields
from datetime import timedelta

import pytest
from django.core.checks import run_checks

from celery_admin_runner import checks
from celery_admin_runner.conf import setting_types
from celery_admin_runner.registry import Rule

#: Django 6.1 asks the database in checks of its own.
pytestmark = pytest.mark.django_db

GOOD = {"RETENTION": timedelta(weeks=4)}


def messages(settings, value):
    """Return what all the checks that Django runs say of this value of our setting."""
    settings.CELERY_ADMIN_RUNNER = value
    ours = [message for message in run_checks() if message.id.startswith("celery_admin_runner.")]
    found = sorted(ours, key=lambda message: message.id)
    assert all(message.hint for message in found)
    return [(message.id.rpartition(".")[2], f"{message.msg} {message.hint}") for message in found]


def ids(settings, value):
    return [identity for identity, _ in messages(settings, value)]


def test_good_settings_are_silent(settings):
    everything = {
        "APP": "tests.celery_app:app",
        "RUNNABLE_TASKS": {
            "shop.*": {},
            "billing.*": {
                "permission": "billing.close_month",
                "groups": ["Finance"],
                "confirm": True,
                "reason": False,
            },
        },
        "SHOW_ONLY_RUNNABLE": True,
        "RETENTION": None,
        "PRUNE_ON_STARTUP": False,
        "REDACT": ["*pin*"],
        "RESULT_MAX_BYTES": 0,
    }

    found = messages(settings, everything)

    assert found == []
    assert set(everything) <= set(setting_types())


@pytest.mark.parametrize("value", [None, [], "RETENTION"])
def test_a_setting_that_is_no_dict_is_an_error(settings, value):
    found = messages(settings, value)

    assert [identity for identity, _ in found] == ["E001", "W001"]
    assert "should be a dict" in found[0][1]


def test_an_unknown_key_is_an_error_that_names_the_likely_one(settings):
    [(identity, text)] = messages(settings, {**GOOD, "RUNNABLE_TASK": []})

    assert identity == "E002"
    assert "'RUNNABLE_TASK'" in text
    assert "Did you mean 'RUNNABLE_TASKS'?" in text


@pytest.mark.parametrize("name", ["COLOUR", 7])
def test_an_unknown_key_unlike_any_other_is_told_all(settings, name):
    [(identity, text)] = messages(settings, {**GOOD, name: 1})

    assert identity == "E002"
    assert "Known are APP, RUNNABLE_TASKS," in text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("APP", 1),
        ("RUNNABLE_TASKS", "shop.*"),
        ("RUNNABLE_TASKS", [1]),
        ("RUNNABLE_TASKS", True),
        ("SHOW_ONLY_RUNNABLE", "no"),
        ("SHOW_ONLY_RUNNABLE", 1),
        ("RETENTION", 28),
        ("RETENTION", "28d"),
        ("PRUNE_ON_STARTUP", None),
        ("REDACT", "*password*"),
        ("REDACT", None),
        ("RESULT_MAX_BYTES", 1.5),
        ("RESULT_MAX_BYTES", True),
    ],
)
def test_a_value_of_the_wrong_type_is_an_error_that_names_the_right_one(settings, key, value):
    found = messages(settings, {**GOOD, key: value})

    assert [identity for identity, _ in found] == ["E003"]
    assert key in found[0][1]
    assert "It should be " in found[0][1]


def test_the_type_is_told_as_one_would_write_it(settings):
    [(_, text)] = messages(settings, {"RETENTION": 28})

    assert text.endswith("It should be timedelta or None.")


@pytest.mark.parametrize("value", [[], ("a",), {"a"}, frozenset({"a"}), None, {}])
def test_every_kind_of_collection_will_do_for_the_allowlist(settings, value):
    assert ids(settings, {**GOOD, "RUNNABLE_TASKS": value}) == []


@pytest.mark.parametrize(
    "path", ["", "app", "no_such_package:app", "tests.celery_app:no_such_app", "tests.no_module:a"]
)
def test_an_app_that_can_not_be_imported_is_an_error(settings, path):
    [(identity, text)] = messages(settings, {**GOOD, "APP": path})

    assert identity == "E004"
    assert repr(path) in text
    assert "can't be imported" in text


def test_an_app_that_is_none_is_an_error(settings):
    [(identity, text)] = messages(settings, {**GOOD, "APP": "tests.celery_app"})

    assert identity == "E004"
    assert "no Celery app" in text


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (None, "should be a dict"),
        ("confirm", "should be a dict"),
        ({"confirmed": True}, "Did you mean 'confirm'?"),
        ({"colour": 1}, "Known are permission, groups, confirm, reason."),
        ({"groups": "Finance"}, "wrong type"),
        ({"confirm": "yes"}, "wrong type"),
        ({"permission": None}, "wrong type"),
        ({"permission": "close_month"}, "names no app"),
        ({"permission": "billing."}, "names no app"),
    ],
)
def test_a_rule_that_can_not_be_read_is_an_error(settings, rule, words):
    [(identity, text)] = messages(settings, {**GOOD, "RUNNABLE_TASKS": {"billing.*": rule}})

    assert identity == "E005"
    assert "'billing.*'" in text
    assert words in text


def test_the_keys_of_a_rule_are_those_that_the_registry_reads():
    assert set(checks.RULE_TYPES) == {field.name for field in fields(Rule)}


@pytest.mark.parametrize(
    ("key", "value"), [("RETENTION", timedelta(seconds=-1)), ("RESULT_MAX_BYTES", -1)]
)
def test_a_negative_duration_or_size_is_an_error(settings, key, value):
    [(identity, text)] = messages(settings, {**GOOD, key: value})

    assert identity == "E006"
    assert key in text


def test_a_retention_that_nobody_chose_is_a_warning(settings):
    found = messages(settings, {})

    assert found == [
        (
            "W001",
            "CELERY_ADMIN_RUNNER['RETENTION'] is not set: finished runs are deleted after 28 "
            "days. Set it to the timedelta that your audits need, or to None: kept for ever.",
        )
    ]
