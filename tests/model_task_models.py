"""Models of the test project whose methods are tasks."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

from celery import current_task
from django.db import models

from celery_admin_runner.model_tasks import model_task
from celery_admin_runner.runs import current_run


class Titled(models.Model):
    """What has a title, and can be shouted."""

    title = models.CharField(max_length=100)

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return self.title

    @model_task
    def shout(self, marks: int = 1) -> str:
        """Say it loudly.

        Args:
            marks: how many exclamation marks.
        """
        return self.title.upper() + marks * "!"


class Archivable:
    """A mixin that is no model."""

    pk: object

    @model_task
    def archive(self) -> str:
        """Put it away."""
        return f"{type(self).__name__} {self.pk} is archived"


class Report(Archivable, Titled):
    """Is loaded, checked and built."""

    folder = models.CharField(max_length=255, blank=True)

    @model_task
    def load(self, source: Path = Path("source")) -> str:
        """Read what the report tells."""
        return self._note("load")

    @model_task(depends_on=("load",))
    def verify(self) -> str:
        """See whether it is plausible."""
        return self._note("verify")

    @model_task(
        depends_on=("load", "verify"),
        title="Build the report",
        autoretry_for=(ConnectionError,),
    )
    def build(self, pages: int = 1, *, cover: bool = False) -> str:
        """Write the report.

        Args:
            pages: how many there are.
            cover: whether there is one.
        """
        run, context = current_run(), current_task.run_context
        assert run is not None
        return self._note(f"build {pages} {cover} {self.title} {run.task_id} {context.reason}")

    @model_task(depends_on=["load", "archive"])
    def hand_in(self) -> str:
        """Give it to who asked for it."""
        return f"{type(self).__name__} is handed in"

    def _note(self, text: str) -> str:
        if self.title == f"{text} fails":
            raise ValueError(f"There is no {text}.")
        if self.folder:
            sys.stdout.write(f"{text}\n")
            with (Path(self.folder) / "notes").open("a") as notes:
                notes.write(f"{text}\n")
        return text


class ShortReport(Report):
    """Has rows of its own beside those of its parent, and is built in its own way."""

    @model_task
    def build(self) -> str:
        """Write it shortly."""
        return f"short {self.title}"

    def shout(self) -> str:  # type: ignore[override]
        """Say it, which is no task here."""
        return self.title


class OldReport(Report):
    """Shows the same rows."""

    class Meta:
        proxy = True

    @model_task
    def archive(self) -> str:
        """Put it far away."""
        return "far away"

    @model_task
    def burn(self) -> str:
        """Only old ones are burnt."""
        return f"{type(self).__name__} burns"


class Parcel(Titled):
    """Has a UUID as its primary key."""

    id = models.UUIDField(primary_key=True, default=uuid4)

    @model_task(ignore_task_after_success=True, ignore_task_timedelta=timedelta(hours=1))
    def weigh(self) -> None:
        """Find out what it weighs."""

    @model_task(
        depends_on="weigh",
        ignore_task_after_success=True,
        ignore_task_timedelta=timedelta(hours=1),
    )
    def stamp(self) -> None:
        """Put stamps on it."""

    @model_task
    def send(self, to: str, *, is_fragile: bool = False) -> str:
        """Give it to the post."""
        return f"{self.title} to {to}"


class CoinsInUse(models.Manager["Coin"]):
    """Hides the coins that nobody takes any more."""

    def get_queryset(self) -> models.QuerySet[Coin]:
        return super().get_queryset().exclude(title="Schilling")


class Coin(Titled):
    """Has a text as its primary key."""

    code = models.CharField(primary_key=True, max_length=20)

    objects = CoinsInUse()

    @model_task(unique_on=["side"])
    def toss(self, side: str = "heads") -> str:
        """Throw it."""
        return side

    @model_task(unique=False)
    def spend(self) -> None:
        """Give it away."""

    @model_task(unique=False, depends_on="spend")
    def miss(self) -> None:
        """Wish that it were here."""
