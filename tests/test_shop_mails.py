"""The worked example of ``run_changed``: the owner of a long run is told by email when it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from importlib import import_module
from pathlib import Path

import django
import pytest
from django.core import mail
from django.core.mail import EmailMessage
from django.utils import timezone

from celery_admin_runner import tracking
from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.signals import run_changed
from celery_admin_runner.states import State
from tests.factories import make_run, make_user

EXAMPLE = Path(__file__).parent.parent / "example_project"

#: In the example's own process: somebody's run ends after two minutes.
SCRIPT = """
import django
django.setup()
from datetime import timedelta
from django.contrib.auth.models import User
from django.core.management import call_command
from django.utils import timezone
from celery_admin_runner import tracking
from celery_admin_runner.models import TaskRunRecord
call_command("migrate", verbosity=0)
now = timezone.now()
run = TaskRunRecord.objects.create(
    task_id="1", task_name="shop.tasks.build_report", label="Report", state="STARTED",
    run_by=User.objects.create_user("ida", "ida@example.com"), created_at=now,
    started_at=now - timedelta(minutes=2),
)
tracking.record_success("1", attempt=0, result=None, now=now)
"""


@pytest.fixture(autouse=True)
def _mails(transactional_db, monkeypatch, settings):
    """Listen as the shop does, in the midst of the tests' own site."""
    if django.VERSION >= (6, 1):
        backend = "django.core.mail.backends.locmem.EmailBackend"
        settings.MAILERS = {"default": {"BACKEND": backend}}
    monkeypatch.syspath_prepend(EXAMPLE)
    mails = import_module("shop.mails")
    mails.connect()
    yield
    run_changed.disconnect(dispatch_uid="shop.mail_owner")


def running(*, seconds=90, **fields):
    """Make a run that began so many seconds ago, of somebody who has an address."""
    if "run_by" not in fields:
        fields["run_by"] = make_user(username="ida", email="ida@example.com")
    started_at = timezone.now() - timedelta(seconds=seconds)
    return make_run(state=State.STARTED, label="Your report", started_at=started_at, **fields)


def succeed(run):
    return tracking.record_success(run.task_id, attempt=0, result=1, now=timezone.now())


def fail(run):
    return tracking.record_failure(
        run.task_id, attempt=0, exception="no", traceback="", now=timezone.now()
    )


@pytest.mark.parametrize(
    ("end", "subject"),
    [(succeed, "Your report is ready"), (fail, "Your report has failed")],
)
def test_the_owner_of_a_long_run_is_told_once_how_it_ended(end, subject):
    run = running()

    end(run)
    end(run)

    assert [(letter.subject, letter.to) for letter in mail.outbox] == [
        (subject, ["ida@example.com"])
    ]
    assert "Dear ida" in mail.outbox[0].body


def test_a_run_that_was_lost_and_came_back_is_told_of_once():
    run = running()

    TaskRunRecord.objects.lose(run, now=timezone.now())
    assert mail.outbox == []
    succeed(run)

    assert len(mail.outbox) == 1


@pytest.mark.parametrize(
    "fields",
    [
        lambda: {"seconds": 50},
        lambda: {"run_by": None},
        lambda: {"run_by": make_user(email="")},
        lambda: {"run_by": make_user(email="gone@example.com", is_active=False)},
    ],
    ids=["short", "nobody's", "no address", "inactive"],
)
def test_of_other_runs_nobody_is_told(fields):
    succeed(running(**fields()))

    assert mail.outbox == []


def test_nobody_is_told_that_a_run_was_cancelled():
    run = running()

    tracking.record_terminated(run.task_id, attempt=0, now=timezone.now())

    assert mail.outbox == []


def test_a_label_of_several_lines_adds_no_header():
    run = running()
    TaskRunRecord.objects.update(label="Your\r\nBcc: all@example.com")

    succeed(run)

    assert mail.outbox[0].subject == "Your Bcc: all@example.com is ready"
    assert mail.outbox[0].recipients() == ["ida@example.com"]


def test_a_mail_server_that_is_away_keeps_no_run_from_its_end(monkeypatch, caplog):
    def refuse(self, **kwargs):
        raise ConnectionRefusedError("no mail today")

    monkeypatch.setattr(EmailMessage, "send", refuse)
    run = running()

    assert succeed(run) == 1

    run.refresh_from_db()
    assert run.state == State.SUCCESS
    assert "no mail today" in caplog.text


def test_the_example_listens_and_keeps_its_mails_in_files(tmp_path):
    foreign = ("DATABASE_URL", "CELERY_BROKER_URL", "CELERY_RESULT_BACKEND")
    kept = {name: value for name, value in os.environ.items() if name not in foreign}

    subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=EXAMPLE,
        env={**kept, "DJANGO_SETTINGS_MODULE": "config.settings", "EXAMPLE_VAR": str(tmp_path)},
        check=True,
        timeout=120,
    )

    (letter,) = (tmp_path / "mails").iterdir()
    assert "Subject: Report is ready" in letter.read_text()
    assert "To: ida@example.com" in letter.read_text()
