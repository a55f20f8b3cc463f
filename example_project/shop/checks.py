"""What the shop asks of each of its tasks (TASK_CHECKER); ``manage.py check`` tells."""

from collections.abc import Iterator

from celery import Task


def check_task(task: Task) -> Iterator[str]:
    """Say what is missing: people choose tasks by what their docstrings say."""
    if not task.run.__doc__:
        yield "Say in a docstring what the task does."
