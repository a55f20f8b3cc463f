
import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("celery_admin_runner", "0001_create_the_journal"),
        ("tests", "0001_refer_to_runs"),
    ]

    operations = [
        migrations.CreateModel(
            name="Successor",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "run",
                    models.ForeignKey(
                        default=None,
                        null=True,
                        on_delete=django.db.models.deletion.SET_DEFAULT,
                        to="celery_admin_runner.taskrunrecord",
                    ),
                ),
            ],
        ),
    ]
