"""Tasks of the test project, each for one behaviour."""

from __future__ import annotations

from celery import shared_task


@shared_task
def add(a: int, b: int = 2) -> int:
    """Add two numbers."""
    return a + b
