from __future__ import annotations

from typing import Any

import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models

from celery_admin_runner.sparse import SparseIndex

#: Foreign keys that had an index of Django's own, of all rows.
KEYS = ("retry_of", "cancel_requested_by")


def drop_indexes_of_keys(apps: Any, editor: Any) -> None:
    """Drop the indexes of the foreign keys; MariaDB drops some of them by itself."""
    model = apps.get_model("celery_admin_runner", "taskrunrecord")
    with editor.connection.cursor() as cursor:
        found = editor.connection.introspection.get_constraints(cursor, model._meta.db_table)
    ours = {index.name for index in model._meta.indexes}
    for key in KEYS:
        columns = [model._meta.get_field(key).column]
        for name, about in found.items():
            if about["index"] and about["columns"] == columns and name not in ours:
                editor.execute(models.Index(fields=[key], name=name).remove_sql(model, editor))


def make_indexes_of_keys(apps: Any, editor: Any) -> None:
    """Make them again, under the names that Django gives them."""
    model = apps.get_model("celery_admin_runner", "taskrunrecord")
    for key in KEYS:
        columns = [model._meta.get_field(key).column]
        name = editor._create_index_name(model._meta.db_table, columns)
        editor.add_index(model, models.Index(fields=[key], name=name))


def key_without_index(name: str, to: str, **options: Any) -> migrations.AlterField:
    """Return what tells Django that a foreign key has no index; the database has it already."""
    field: Any = models.ForeignKey(
        blank=True,
        db_index=False,
        null=True,
        on_delete=django.db.models.deletion.SET_NULL,
        to=to,
        **options,
    )
    return migrations.AlterField("taskrunrecord", name, field)


def added(*fields: str, name: str, known: str | None = None) -> migrations.AddIndex:
    """Return what makes an index; ``known``: of the rows in which that is not null."""
    if known is None:
        return migrations.AddIndex("taskrunrecord", models.Index(fields=fields, name=name))
    return migrations.AddIndex(
        "taskrunrecord", SparseIndex(fields=fields, name=name, known=known)
    )


class Migration(migrations.Migration):
    dependencies = [
        ("celery_admin_runner", "0004_mark_runs_as_seen"),
        ("contenttypes", "0002_remove_content_type_name"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        # First the new ones: MariaDB wants an index for each foreign key at any time.
        added("task_name", "created_at", "state", name="taskrun_by_task_idx"),
        added("state", "created_at", name="taskrun_by_state_idx"),
        added("source", "created_at", name="taskrun_by_source_idx"),
        added("run_by_name", "created_at", "state", name="taskrun_by_user_name_idx"),
        added("run_by", "created_at", name="taskrun_by_user_idx", known="run_by"),
        added("periodic_task_name", "created_at", name="taskrun_by_periodic_idx"),
        added(
            "content_type",
            "object_id",
            "created_at",
            name="taskrun_by_object_idx",
            known="content_type",
        ),
        added("unique_key", "ignore_until", name="taskrun_ignored_idx", known="ignore_until"),
        added("retry_of", name="taskrun_retry_of_idx", known="retry_of"),
        added("cancel_requested_by", name="taskrun_cancelled_by_idx", known="cancel_requested_by"),
        migrations.RemoveIndex("taskrunrecord", "taskrun_task_idx"),
        migrations.RemoveIndex("taskrunrecord", "taskrun_state_idx"),
        migrations.RemoveIndex("taskrunrecord", "taskrun_source_idx"),
        migrations.RemoveIndex("taskrunrecord", "taskrun_user_name_idx"),
        migrations.RemoveIndex("taskrunrecord", "taskrun_user_idx"),
        migrations.RemoveIndex("taskrunrecord", "taskrun_periodic_idx"),
        migrations.RemoveIndex("taskrunrecord", "taskrun_object_idx"),
        migrations.RemoveIndex("taskrunrecord", "taskrun_unique_idx"),
        migrations.RemoveIndex("taskrunrecord", "taskrun_due_idx"),
        added("due_at", name="taskrun_due_idx", known="due_at"),
        migrations.RemoveIndex("taskrunrecord", "taskrun_finished_idx"),
        added("finished_at", name="taskrun_finished_idx", known="finished_at"),
        # Django would make the constraints anew, and SQLite's table.
        migrations.SeparateDatabaseAndState(
            database_operations=[
                migrations.RunPython(drop_indexes_of_keys, make_indexes_of_keys)
            ],
            state_operations=[
                key_without_index(
                    "retry_of",
                    "celery_admin_runner.taskrunrecord",
                    related_name="retried_by",
                    verbose_name="runs again",
                ),
                key_without_index(
                    "cancel_requested_by",
                    settings.AUTH_USER_MODEL,
                    related_name="+",
                    verbose_name="cancel requested by",
                ),
            ],
        ),
    ]
