"""Who changes a run of a user is heard in the same process, once the change can be seen."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.db import transaction

from celery_admin_runner.live.hearing import Hearing
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.signals import run_progressed
from celery_admin_runner.states import State
from tests.factories import make_run, make_user

pytestmark = pytest.mark.django_db(transaction=True)

Heard = list[tuple[str, int]]


@pytest.fixture
def heard() -> Iterator[Heard]:
    """What is heard while the test lasts: the key of the user, and that of the run."""
    found: Heard = []
    hearing = Hearing(lambda user_pk, run_pk: found.append((user_pk, run_pk)))
    hearing.connect()
    yield found
    hearing.disconnect()


def progress(run: TaskRunRecord, *, user_pk: str) -> None:
    """Tell of a step of a run, as its worker does."""
    run_progressed.send_robust(
        sender=TaskRunRecord,
        task_id=run.task_id,
        run_pk=run.pk,
        user_pk=user_pk,
        current=1,
        total=2,
        message="",
    )


def test_a_run_that_is_made_moved_further_or_saved_is_heard(heard: Heard) -> None:
    user = make_user()

    run = make_run(run_by=user, state=State.PENDING)
    TaskRunRecord.objects.filter(pk=run.pk).transition(
        sources=[State.PENDING], target=State.STARTED
    )
    progress(run, user_pk=str(user.pk))
    run.label = "Another name"
    run.save(update_fields=["label"])

    assert heard == [(str(user.pk), run.pk)] * 4


def test_of_runs_of_nobody_nothing_is_heard(heard: Heard) -> None:
    run = make_run(state=State.PENDING)
    TaskRunRecord.objects.filter(pk=run.pk).transition(
        sources=[State.PENDING], target=State.STARTED
    )
    progress(run, user_pk="")
    run.save(update_fields=["label"])

    assert heard == []


def test_it_is_heard_after_the_commit_and_not_after_a_rollback(heard: Heard) -> None:
    user = make_user()

    with transaction.atomic():
        run = make_run(run_by=user, state=State.PENDING)
        TaskRunRecord.objects.filter(pk=run.pk).transition(
            sources=[State.PENDING], target=State.STARTED
        )
        inside = list(heard)
    with transaction.atomic():
        make_run(run_by=user)
        transaction.set_rollback(True)

    assert inside == []
    assert set(heard) == {(str(user.pk), run.pk)}


def test_who_has_ended_hears_no_more() -> None:
    heard: Heard = []
    hearing = Hearing(lambda user_pk, run_pk: heard.append((user_pk, run_pk)))
    hearing.connect()
    hearing.disconnect()

    run = make_run(run_by=make_user(), state=State.PENDING)
    TaskRunRecord.objects.filter(pk=run.pk).transition(
        sources=[State.PENDING], target=State.STARTED
    )
    progress(run, user_pk=str(run.run_by_id))

    assert heard == []
