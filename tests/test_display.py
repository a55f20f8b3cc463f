"""How a run's values look in admin."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from django.utils import translation

from celery_admin_runner.admin import display
from celery_admin_runner.models import Source, TaskRunRecord
from celery_admin_runner.states import State


@pytest.mark.parametrize("state", State)
def test_every_state_has_its_label_and_class(state: State) -> None:
    badge = display.state_badge(state)

    assert str(state.label) in badge
    assert f'class="run-state run-state-{state.lower()}"' in badge


def test_an_unknown_state_is_shown_escaped() -> None:
    badge = display.state_badge("<b>")

    assert "&lt;b&gt;" in badge
    assert "<b>" not in badge


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.045, "45 ms"),
        (0.12, "0.1 s"),
        (1.24, "1.2 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (184.2, "3 min 4 s"),
        (3599.6, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (86399.9, "1 d 0 h"),
        (183600, "2 d 3 h"),
    ],
)
def test_a_duration_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert display.duration_text(timedelta(seconds=seconds)) == text


def test_no_duration_is_a_dash() -> None:
    assert display.duration_text(None) == "–"


def test_a_duration_is_written_as_the_language_writes_numbers() -> None:
    with translation.override("de"):
        text = display.duration_text(timedelta(seconds=1.2))

    assert text == "1,2 s"


def test_a_time_is_shown_in_the_current_timezone() -> None:
    text = display.time_text(datetime(2026, 1, 31, 12, 30, tzinfo=UTC))

    assert text == "Jan. 31, 2026, 1:30 p.m."
    assert display.time_text(None) == "–"


def test_a_run_is_by_its_user_or_else_by_its_source() -> None:
    assert display.user_text(TaskRunRecord(run_by_name="ada")) == "ada"
    assert display.user_text(TaskRunRecord(source=Source.PERIODIC)) == "Periodic"
    assert display.user_text(TaskRunRecord(source="gone")) == "–"


def test_json_is_indented_and_escaped_and_without_envelopes() -> None:
    html = display.pretty_json([{"__type__": "decimal", "__value__": "1.50"}, "<script>"])

    assert html == (
        '<pre class="run-text">[\n  &quot;1.50&quot;,\n  &quot;&lt;script&gt;&quot;\n]</pre>'
    )


def test_no_text_is_a_dash() -> None:
    assert display.preformatted("") == "–"
