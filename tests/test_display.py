"""How a run's values look in admin."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from django.utils import translation

from celery_admin_runner.admin import display
from celery_admin_runner.models import Source, TaskRunOutput, TaskRunRecord
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


def run_at(current: int = 0, total: int | None = None, message: str = "") -> TaskRunRecord:
    return TaskRunRecord(
        state=State.STARTED,
        progress_current=current,
        progress_total=total,
        progress_message=message,
    )


@pytest.mark.parametrize(
    ("run", "text", "percent", "has_bar"),
    [
        (run_at(3, 10, "third"), "3 / 10 third", "30 %", True),
        (run_at(0, 10), "0 / 10", "0 %", True),
        (run_at(12, 10), "12 / 10", "100 %", True),
        (run_at(0, 0), "0 / 0", "", True),
        (run_at(3), "3", "", True),
        (run_at(0, None, "begins"), "begins", "", True),
    ],
)
def test_progress_has_its_numbers_and_its_message(
    run: TaskRunRecord, text: str, percent: str, has_bar: bool
) -> None:
    progress = display.progress_of(run)

    assert progress is not None
    assert (progress.text, progress.percent, progress.has_bar) == (text, percent, has_bar)


def test_a_run_that_never_told_how_far_it_is_has_no_progress() -> None:
    assert display.progress_of(run_at()) is None


def test_numbers_of_progress_are_written_as_the_language_writes_them(settings: object) -> None:
    settings.USE_THOUSAND_SEPARATOR = True
    progress = display.progress_of(run_at(1234, 12345))

    assert progress is not None
    assert (progress.text, progress.value, progress.end) == ("1,234 / 12,345", "1234", "12345")


def test_pieces_of_output_are_escaped_and_nothing_is_between_them() -> None:
    html = display.output_pieces(
        [
            TaskRunOutput(seq=1795268221000000, stream="stdout", text="a <b>"),
            TaskRunOutput(seq=1795268221000001, stream="log", text=" \n"),
        ]
    )

    assert html == (
        '<span class="run-piece run-piece-stdout" data-seq="1795268221000000">a &lt;b&gt;</span>'
        '<span class="run-piece run-piece-log" data-seq="1795268221000001"> \n</span>'
    )


def test_only_the_badge_of_an_unfinished_run_is_followed() -> None:
    unfinished = display.live_badge(TaskRunRecord(pk=7, state=State.STARTED))
    finished = display.live_badge(TaskRunRecord(pk=7, state=State.SUCCESS))

    assert unfinished == (
        '<span data-live-run="7"><span class="run-state run-state-started">Running</span></span>'
    )
    assert finished == '<span class="run-state run-state-success">Succeeded</span>'
