"""Primary keys of runs in what a browser sends."""

from __future__ import annotations

#: The longest key that is looked up: longer ones no database takes.
DIGITS_MAX = 18


def run_key(text: object) -> int | None:
    """Return the primary key that a text holds; None where it holds none."""
    key = str(text)
    is_key = key.isascii() and key.isdigit() and len(key) <= DIGITS_MAX
    return int(key) if is_key else None
