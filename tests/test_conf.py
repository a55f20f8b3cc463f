from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

import pytest

from celery_admin_runner.conf import is_set, setting_types, user_settings
from celery_admin_runner.conf import settings as ours


def test_a_setting_that_the_project_does_not_name_has_its_default(settings):
    settings.CELERY_ADMIN_RUNNER = {}

    assert ours.RETENTION == timedelta(weeks=4)
    assert ours.RUNNABLE_TASKS is None


def test_a_setting_that_the_project_names_counts_at_once(settings):
    settings.CELERY_ADMIN_RUNNER = {"RETENTION": timedelta(days=1)}
    before = ours.RETENTION
    settings.CELERY_ADMIN_RUNNER = {"RETENTION": None}

    after = ours.RETENTION

    assert (before, after) == (timedelta(days=1), None)


def test_a_project_without_our_setting_has_the_defaults(settings):
    del settings.CELERY_ADMIN_RUNNER

    assert user_settings() == {}
    assert ours.PRUNE_ON_STARTUP is True


@pytest.mark.parametrize("value", [None, ["RETENTION"], "RETENTION", 3])
def test_a_setting_that_is_no_mapping_counts_as_empty(settings, value):
    settings.CELERY_ADMIN_RUNNER = value

    assert user_settings() == {}
    assert ours.RETENTION == timedelta(weeks=4)


def test_a_setting_that_does_not_exist_is_an_error_even_if_the_project_names_it(settings):
    settings.CELERY_ADMIN_RUNNER = {"COLOUR": "red"}

    with pytest.raises(AttributeError, match="COLOUR"):
        _ = ours.COLOUR


def test_a_default_that_the_project_repeats_is_set(settings):
    settings.CELERY_ADMIN_RUNNER = {"RETENTION": None}

    assert is_set("RETENTION")
    assert not is_set("REDACT")


def test_every_setting_has_a_type_that_its_default_fits():
    types = setting_types()

    assert types["RETENTION"] == timedelta | None
    assert Mapping in [
        getattr(hint, "__origin__", hint) for hint in types["RUNNABLE_TASKS"].__args__
    ]
    assert all(name.isupper() for name in types)
