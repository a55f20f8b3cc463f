from __future__ import annotations

from dataclasses import fields
from datetime import timedelta

import pytest
from django.core.checks import run_checks

from celery_admin_runner import checks
from celery_admin_runner.conf import setting_types
from celery_admin_runner.registry import DISPATCH_TASK, Rule
from celery_admin_runner.states import State
from tests.celery_app import app

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


@pytest.mark.parametrize(
    ("name", "threshold", "words"),
    [
        ("STARTET", timedelta(1), "Did you mean 'STARTED'?"),
        ("SUCCESS", timedelta(1), "have ended"),
        ("STARTED", timedelta(-1), "should not be negative"),
    ],
)
def test_a_threshold_that_means_nothing_is_an_error(settings, name, threshold, words):
    [(identity, text)] = messages(settings, {**GOOD, "STALE_AFTER": {name: threshold}})

    assert identity == "E007"
    assert repr(name) in text
    assert words in text


@pytest.mark.parametrize("value", [{"STARTED": 60}, {"STARTED": "2m"}, [], None])
def test_thresholds_of_the_wrong_type_are_an_error(settings, value):
    assert ids(settings, {**GOOD, "STALE_AFTER": value}) == ["E003"]


def test_thresholds_may_be_named_by_the_states_themselves(settings):
    value = {State.STARTED: timedelta(minutes=1), "PENDING": None}

    assert ids(settings, {**GOOD, "STALE_AFTER": value}) == []


@pytest.mark.parametrize(
    ("key", "value", "identity"),
    [
        ("TRACK", "shop.*", "E003"),
        ("TRACK", [1], "E003"),
        ("FORCE_JSON", 1, "E003"),
        ("OUTPUT_MAX_BYTES", 1.5, "E003"),
        ("OUTPUT_MAX_BYTES", -1, "E006"),
        ("OUTPUT_FLUSH_SECONDS", -0.5, "E006"),
        ("OUTPUT_FLUSH_SECONDS", "1s", "E003"),
    ],
)
def test_values_that_tracking_and_output_can_not_use_are_errors(settings, key, value, identity):
    assert ids(settings, {**GOOD, key: value}) == [identity]


@pytest.mark.parametrize("seconds", [0, 2, 0.25])
def test_seconds_may_be_whole_or_not(settings, seconds):
    assert ids(settings, {**GOOD, "OUTPUT_FLUSH_SECONDS": seconds}) == []


@pytest.mark.parametrize(
    ("seconds", "identity"),
    [(0, "E010"), (0.5, "E010"), (float("nan"), "E010"), (1e9, "E010"), ("60", "E003")],
)
def test_a_lease_of_no_sensible_length_is_an_error(settings, seconds, identity):
    assert ids(settings, {**GOOD, "BEAT_LEASE_SECONDS": seconds}) == [identity]
    assert ids(settings, {**GOOD, "BEAT_LEASE_SECONDS": 1.5}) == []


@pytest.mark.parametrize("name", sorted(checks.OWN_BACKENDS))
def test_our_result_backend_needs_the_tables_of_django_celery_results(settings, name):
    settings.CELERY_RESULT_BACKEND = name
    assert ids(settings, GOOD) == []

    settings.INSTALLED_APPS = [
        app for app in settings.INSTALLED_APPS if app != "django_celery_results"
    ]

    [(identity, text)] = messages(settings, GOOD)
    assert identity == "E008"
    assert "INSTALLED_APPS" in text


@pytest.fixture
def no_beat_extra(monkeypatch):
    """Hide django-celery-beat, whose schedule is in the database."""
    monkeypatch.setattr(
        checks.apps,
        "is_installed",
        lambda name, known=checks.apps.is_installed: name != "django_celery_beat" and known(name),
    )


def test_dispatch_by_beat_needs_an_entry_in_a_schedule(no_beat_extra, settings, monkeypatch):
    by_beat = {**GOOD, "APP": "tests.celery_app:app", "DISPATCH": "beat"}
    assert ids(settings, by_beat) == ["W002"]

    entry = {"task": DISPATCH_TASK, "schedule": 5}
    with monkeypatch.context() as patch:
        patch.setattr(settings, "CELERY_BEAT_SCHEDULE", {"dispatch": entry}, raising=False)
        assert ids(settings, by_beat) == []
    # What is no schedule is for Celery to complain of.
    with monkeypatch.context() as patch:
        patch.setattr(settings, "CELERY_BEAT_SCHEDULE", ["no", "schedule"], raising=False)
        assert ids(settings, by_beat) == ["W002"]
    monkeypatch.setitem(app.conf, "beat_schedule", {"dispatch": entry})
    assert ids(settings, by_beat) == []


def test_dispatch_names_one_of_three(settings):
    [(identity, text)] = messages(settings, {**GOOD, "DISPATCH": "cron"})

    assert identity == "E003"
    assert "'worker' or 'beat' or 'command'" in text


def test_good_commands_are_silent(settings):
    good = {"clearsessions": {"unique": True}, "django.sql*": {}, "*": {}}

    assert messages(settings, {**GOOD, "COMMAND_TASKS": good}) == []


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("clearsesions", "Did you mean 'clearsessions'"),
        ("session.clearsessions", "'sessions.clearsessions'"),
        ("shop.*", "Name a command"),
    ],
)
def test_a_command_that_does_not_exist_is_an_error_that_names_the_likely_one(settings, key, meant):
    [(identity, text)] = messages(settings, {**GOOD, "COMMAND_TASKS": {key: {}}})

    assert identity == "E011"
    assert f"the key {key!r}, which matches no command" in text
    assert meant in text


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (True, "is True, and should be a dict"),
        (None, "is None, and should be a dict"),
        ({"name": "clear"}, "has the option 'name', which is not to be set"),
        ({1: 2}, "has the option 1,"),
    ],
)
def test_options_of_a_command_that_are_none_are_an_error(settings, options, problem):
    [(identity, text)] = messages(settings, {**GOOD, "COMMAND_TASKS": {"flush": options}})

    assert identity == "E012"
    assert problem in text


def test_commands_that_are_no_mapping_have_the_wrong_type(settings):
    assert ids(settings, {**GOOD, "COMMAND_TASKS": ["flush"]}) == ["E003"]
