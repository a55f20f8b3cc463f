from __future__ import annotations

import io
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from celery_admin_runner.models import Source, TaskRunRecord
from celery_admin_runner.states import State
from tests.factories import make_run

pytestmark = pytest.mark.django_db


def run_of_age(age, **fields):
    return make_run(finished_at=timezone.now() - age, **fields)


def command(*arguments, **options):
    output = io.StringIO()
    call_command("prune_taskruns", *arguments, stdout=output, **options)
    return output.getvalue()


def left():
    return set(TaskRunRecord.objects.values_list("pk", flat=True))


def test_runs_older_than_the_retention_go_and_are_counted(configure):
    configure(RETENTION=timedelta(days=7))
    run_of_age(timedelta(days=8))
    kept = run_of_age(timedelta(days=6))

    output = command()

    assert left() == {kept.pk}
    assert output.startswith("Pruned 1 run that ended before ")


def test_another_age_can_be_asked_for(configure):
    configure(RETENTION=None)
    run_of_age(timedelta(hours=13))
    kept = run_of_age(timedelta(hours=11))

    command("--older-than", "12h")

    assert left() == {kept.pk}


def test_an_age_can_be_given_from_code_as_a_timedelta():
    run_of_age(timedelta(hours=2))

    output = command(older_than=timedelta(hours=1))

    assert output.startswith("Pruned 1 run ")


def test_without_any_age_the_command_says_what_to_do(configure):
    configure(RETENTION=None)
    run = run_of_age(timedelta(days=9999))

    with pytest.raises(CommandError, match="for example with --older-than 28d"):
        command()

    assert left() == {run.pk}


@pytest.mark.parametrize("text", ["28", "soon", "-3d", "", "999999999999d"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(CommandError, match=r"--older-than: .*(not a duration|too long)"):
        command(f"--older-than={text}")


def test_an_age_before_all_calendars_is_refused():
    with pytest.raises(CommandError, match="before the year 1"):
        command("--older-than", "900000000d")


def test_states_and_tasks_can_be_named_more_than_once():
    for state in (State.FAILURE, State.LOST):
        run_of_age(timedelta(days=60), state=state, task_name="shop.order")
    others = [
        run_of_age(timedelta(days=60), state=State.SUCCESS, task_name="shop.order"),
        run_of_age(timedelta(days=60), state=State.FAILURE, task_name="billing.close"),
    ]

    command("--state", "FAILURE", "--state", "lost", "--task", "shop.*", "--task", "x.y")

    assert left() == {run.pk for run in others}


@pytest.mark.parametrize("state", ["STARTED", "PENDING", "NONSENSE"])
def test_a_state_that_is_not_finished_is_refused(state):
    with pytest.raises(CommandError, match=f"--state {state}: only finished runs are pruned"):
        command("--state", state)


def test_the_newest_runs_of_each_task_can_stay():
    old = [run_of_age(timedelta(days=60)) for _ in range(3)]

    command("--keep-last", "2")

    assert left() == {run.pk for run in old[1:]}


@pytest.mark.parametrize("option", ["--keep-last=-1", "--batch-size=0"])
def test_numbers_that_make_no_sense_are_refused(option):
    with pytest.raises(CommandError, match="--keep-last must be 0 or more"):
        command(option)


def test_a_dry_run_tells_what_would_go_and_writes_nothing(tmp_path):
    run = run_of_age(timedelta(days=60))

    output = command("--dry-run", "--export", str(tmp_path / "old.csv"))

    assert output.startswith("1 run would be pruned that ended before ")
    assert left() == {run.pk}
    assert list(tmp_path.iterdir()) == []


def test_an_export_is_written_before_the_runs_go(tmp_path):
    run = run_of_age(timedelta(days=60))

    output = command("--export", str(tmp_path / "old.csv"))

    assert left() == set()
    assert run.task_id in (tmp_path / "old.csv").read_text()
    assert f"They are kept in {tmp_path / 'old.csv'}." in output


def test_an_export_that_fails_is_told_and_nothing_goes(tmp_path):
    run = run_of_age(timedelta(days=60))

    with pytest.raises(CommandError, match="Nothing was deleted"):
        command("--export", str(tmp_path / "missing" / "old.csv"))

    assert left() == {run.pk}


def test_progress_is_told_when_asked_for():
    for _ in range(3):
        run_of_age(timedelta(days=60))

    output = command("--batch-size", "2", verbosity=2)

    assert output.splitlines()[:2] == ["2 runs pruned so far", "3 runs pruned so far"]


def test_nothing_is_told_when_nothing_shall_be(tmp_path):
    run_of_age(timedelta(days=60))

    output = command("--export", str(tmp_path / "old.csv"), verbosity=0)

    assert output == ""
    assert left() == set()


def seen_run(age, **fields):
    return run_of_age(age, seen_at=timezone.now(), **fields)


def test_what_was_seen_goes_two_minutes_after_its_end(configure):
    configure(RETENTION=None)
    seen_run(timedelta(seconds=125))
    kept = [
        seen_run(timedelta(seconds=100)),
        run_of_age(timedelta(days=60)),
        seen_run(timedelta(days=60), source=Source.ADMIN),
    ]

    output = command("--seen")

    assert output.startswith("Pruned 1 seen run that ended before ")
    assert left() == {run.pk for run in kept}


def test_another_age_can_be_asked_for_what_was_seen():
    seen_run(timedelta(minutes=50))
    kept = seen_run(timedelta(minutes=30))

    command("--seen", "--older-than", "40m")

    assert left() == {kept.pk}


def test_what_was_seen_can_be_counted_and_narrowed_and_exported(tmp_path):
    hour = timedelta(hours=1)
    runs = [seen_run(hour, task_name="shop.order", state=State.FAILURE) for _ in range(3)]
    others = [seen_run(hour, task_name="shop.order"), seen_run(hour, state=State.FAILURE)]
    narrowed = ["--seen", "--task", "shop.*", "--state", "FAILURE", "--keep-last", "2"]

    assert command(*narrowed, "--dry-run").startswith("2 seen runs would be pruned ")
    command(*narrowed, "--batch-size", "1", "--export", str(tmp_path / "seen.csv"))

    assert left() == {run.pk for run in [runs[2], *others]}
    text = (tmp_path / "seen.csv").read_text()
    assert [run.task_id in text for run in runs] == [True, True, False]


def test_the_help_says_that_the_audit_keeps_what_staff_started(capsys):
    with pytest.raises(SystemExit):
        command("--help")

    assert "the journal is the audit" in " ".join(capsys.readouterr().out.split())
