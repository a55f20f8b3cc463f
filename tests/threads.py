"""What is done in another thread than that of the test."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from django.db import connections

Returned = TypeVar("Returned")


def in_another_thread(function: Callable[..., Returned], *arguments: Any) -> Returned:
    """Call a function by a database connection of its own."""

    def call() -> Returned:
        try:
            return function(*arguments)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()
