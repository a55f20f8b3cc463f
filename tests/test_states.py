from __future__ import annotations

from celery import states as celery_states

from celery_admin_runner.states import FAILED, FINISHED, REPORTABLE, UNFINISHED, State


def test_every_state_is_either_finished_or_unfinished():
    assert FINISHED | UNFINISHED == set(State)
    assert not FINISHED & UNFINISHED


def test_the_words_are_those_of_celery_where_it_has_one():
    ours_alone = {"UNSENT", "SCHEDULED", "WAITING", "CANCELLING", "EXPIRED", "LOST"}

    assert set(State.values) - ours_alone <= {*celery_states.ALL_STATES, celery_states.IGNORED}


def test_celery_agrees_on_what_is_finished():
    assert celery_states.READY_STATES <= FINISHED
    assert not celery_states.UNREADY_STATES & FINISHED


def test_a_report_moves_a_lost_run_and_no_other_finished_one():
    assert REPORTABLE & FINISHED == {State.LOST}


def test_what_failed_is_finished():
    assert FAILED < FINISHED
