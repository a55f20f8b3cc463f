from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("celery_admin_runner", "0004_mark_runs_as_seen"),
        ("contenttypes", "0002_remove_content_type_name"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        # First the new ones: MariaDB wants an index for each foreign key at any time.
        migrations.AddIndex(
            "taskrunrecord",
            models.Index(fields=["task_name", "created_at"], name="taskrun_by_task_idx"),
        ),
        migrations.AddIndex(
            "taskrunrecord",
            models.Index(fields=["state", "created_at"], name="taskrun_by_state_idx"),
        ),
        migrations.AddIndex(
            "taskrunrecord",
            models.Index(fields=["run_by", "created_at"], name="taskrun_by_user_idx"),
        ),
        migrations.AddIndex(
            "taskrunrecord",
            models.Index(fields=["source", "created_at"], name="taskrun_by_source_idx"),
        ),
        migrations.AddIndex(
            "taskrunrecord",
            models.Index(fields=["run_by_name", "created_at"], name="taskrun_by_user_name_idx"),
        ),
        migrations.AddIndex(
            "taskrunrecord",
            models.Index(
                fields=["periodic_task_name", "created_at"], name="taskrun_by_periodic_idx"
            ),
        ),
        migrations.RemoveIndex("taskrunrecord", "taskrun_task_idx"),
        migrations.RemoveIndex("taskrunrecord", "taskrun_state_idx"),
        migrations.RemoveIndex("taskrunrecord", "taskrun_user_idx"),
        migrations.RemoveIndex("taskrunrecord", "taskrun_source_idx"),
        migrations.RemoveIndex("taskrunrecord", "taskrun_user_name_idx"),
        migrations.RemoveIndex("taskrunrecord", "taskrun_periodic_idx"),
    ]
