"""Real rows for the tests."""

from __future__ import annotations

from itertools import count
from typing import Any
from uuid import uuid4

from django.contrib.auth.models import Permission, User
from django.utils import timezone

from celery_admin_runner.models import TaskRunRecord
from celery_admin_runner.states import FINISHED, State

_numbers = count(1)


def make_user(*permissions: str, **fields: Any) -> User:
    """Make a staff user with these permissions: codenames of ours, or ``"app_label.codename"``."""
    fields = {"username": f"user-{next(_numbers)}", "is_staff": True, **fields}
    user = User.objects.create_user(**fields)
    user.user_permissions.add(*map(get_permission, permissions))
    return user


def make_superuser(**fields: Any) -> User:
    """Make a user who may do everything."""
    return make_user(is_superuser=True, **fields)


def get_permission(name: str) -> Permission:
    """Return the permission of this codename (of our app), or ``"app_label.codename"``."""
    app_label, _, codename = name.rpartition(".")
    return Permission.objects.get(
        content_type__app_label=app_label or "celery_admin_runner", codename=codename
    )


def make_run(**fields: Any) -> TaskRunRecord:
    """Make a run in the database, succeeded just now unless ``fields`` say otherwise."""
    return TaskRunRecord.objects.create(**run_fields(**fields))


def make_runs(number: int, **fields: Any) -> list[TaskRunRecord]:
    """Make ``number`` like runs in the database, in bulk."""
    return TaskRunRecord.objects.bulk_create(
        [TaskRunRecord(**run_fields(**fields)) for _ in range(number)]
    )


def run_fields(**fields: Any) -> dict[str, Any]:
    """Return the fields of a run, those that its constraints need included."""
    now = timezone.now()
    fields = {
        "task_id": str(uuid4()),
        "task_name": "tests.tasks.add",
        "state": State.SUCCESS,
        "created_at": now,
        **fields,
    }
    if fields["state"] in FINISHED:
        fields.setdefault("finished_at", now)
    if fields.get("run_by") is not None:
        fields.setdefault("run_by_name", fields["run_by"].get_username())
    return fields
