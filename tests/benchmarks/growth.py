"""Export all runs as a client of the admin does, and print the most memory before and after.

A process of its own, in kB: what others need before it does not count. Linux.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from django.contrib.auth.models import User
from django.test import Client

from tests.benchmarks.export import EXPORT, export_form
from tests.benchmarks.journal import ADMIN


def most_memory() -> int:
    """Return the most memory that this process ever had, in kB."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1])


def main() -> None:
    """Export the first runs, then all of them."""
    client = Client()
    client.force_login(User.objects.get(username=ADMIN))
    first: Any = client.post(EXPORT, export_form())
    parts = iter(first)
    for _part in zip(parts, range(2), strict=False):
        pass
    first.close()
    before = most_memory()
    response: Any = client.post(EXPORT, export_form())
    for _part in response:
        pass
    response.close()
    sys.stdout.write(f"{before} {most_memory()}\n")


main()
