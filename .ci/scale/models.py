"""What was really done, beside the journal."""

from django.db import models


class Execution(models.Model):
    """A task was begun by a worker: one row each time."""

    task_id = models.CharField(max_length=255, db_index=True)
    task_name = models.CharField(max_length=255)
    retries = models.IntegerField()
    begun_at = models.DateTimeField(auto_now_add=True)
    over_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"{self.task_name} {self.task_id}"
