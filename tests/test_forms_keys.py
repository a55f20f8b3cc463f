"""Primary keys of runs in what a browser sends."""

from __future__ import annotations

import pytest

from celery_admin_runner.forms.keys import run_key


@pytest.mark.parametrize(("text", "key"), [("0", 0), ("17", 17), (17, 17), ("9" * 18, 10**18 - 1)])
def test_a_key_is_read(text: object, key: int) -> None:
    assert run_key(text) == key


@pytest.mark.parametrize("text", ["", "x", "-1", "1.0", " 1", "²", "٣", "9" * 19, None, "1\x00"])
def test_what_no_database_takes_is_no_key(text: object) -> None:
    assert run_key(text) is None
