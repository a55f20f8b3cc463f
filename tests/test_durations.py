from __future__ import annotations

from datetime import timedelta

import pytest

from celery_admin_runner.durations import parse_duration


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("28d", timedelta(days=28)),
        ("12h", timedelta(hours=12)),
        ("90m", timedelta(minutes=90)),
        ("120s", timedelta(seconds=120)),
        ("0s", timedelta()),
        (" 28D ", timedelta(days=28)),
        ("P28D", timedelta(days=28)),
        ("PT12H", timedelta(hours=12)),
        ("P1DT1H30M", timedelta(days=1, hours=1, minutes=30)),
    ],
)
def test_a_duration_is_read_in_the_short_form_and_in_iso_8601(text, duration):
    assert parse_duration(text) == duration


@pytest.mark.parametrize(
    "text", ["", "28", "d", "28 d", "-1d", "-P1D", "P", "PT", "28 00:00:00", "1.5d", "28dd", "٣d"]
)
def test_what_is_no_duration_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="Write it as 28d, 12h"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["999999999999d", "P999999999999D"])
def test_a_duration_that_no_calendar_holds_is_refused(text):
    with pytest.raises(ValueError, match="too long"):
        parse_duration(text)
