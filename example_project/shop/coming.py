"""What is still to come when the demo starts: a run for the night, and one that waits for it."""

from datetime import datetime, time, timedelta

from django.contrib.auth.models import User
from django.utils import timezone

from celery_admin_runner.models import Source
from celery_admin_runner.runner import TaskRunner

#: When the nightly run starts.
NIGHT = time(3)


def make_coming_runs(now: datetime) -> None:
    """Schedule a run for the next night, and let another wait until it has succeeded."""
    runner = TaskRunner(User.objects.get(username="operator"), source=Source.ADMIN)
    tomorrow = timezone.localdate(now) + timedelta(days=1)
    stock = runner.run(
        "shop.tasks.sync_all_warehouses",
        kwargs={"full": True},
        eta=timezone.make_aware(datetime.combine(tomorrow, NIGHT)),
        label="The night's stock",
    )
    runner.run(
        "shop.tasks.rebuild_search_index",
        kwargs={"steps": 20},
        depends_on=[stock],
        label="Index over the night's stock",
        reason="New products come with the stock",
    )
