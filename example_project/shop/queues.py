"""The queues of the shop."""

from celery_admin_runner.queues import TaskQueue


class Queue(TaskQueue):
    """Where tasks wait for a worker, and what their calls get there if they say nothing else."""

    SHOP = "shop"
    #: What takes long; after half an hour it is ended.
    SLOW = "slow", {"time_limit": 30 * 60}
