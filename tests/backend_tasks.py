"""Tasks for the result backend; its worker imports them."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import UUID

from celery import Task, chain, chord, group, shared_task
from celery.exceptions import Ignore, SoftTimeLimitExceeded

from celery_admin_runner.base import DjangoTask
from tests.tasks import add

#: Values of the types that a result keeps.
TYPED = {
    "at": datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
    "on": date(2026, 1, 2),
    "price": Decimal("1.10"),
    "id": UUID("12345678123456781234567812345678"),
    "lasts": timedelta(days=1, microseconds=1),
    "all": {1, 2},
    "raw": b"\x00\xff",
}


class OutOfStock(Exception):
    """An exception of the project's own."""


@shared_task
def return_typed() -> dict[str, object]:
    """Return values that plain JSON does not know."""
    return TYPED


@shared_task
def sell(article: str, password: str = "") -> None:
    """Fail with an exception of the project's own."""
    raise OutOfStock(article, f"for {password}")


@shared_task(bind=True)
def tell_progress(self: Task, path: str) -> str:
    """Set a state of its own until a file is there."""
    self.update_state(state="PROGRESS", meta={"done": Decimal("0.5")})
    while not Path(path).exists():
        time.sleep(0.02)
    return "all"


@shared_task(bind=True, max_retries=1)
def try_again_later(self: Task) -> None:
    """Fail, and try again in an hour."""
    raise self.retry(countdown=3600, exc=OutOfStock("today"))


@shared_task
def start_another() -> None:
    """Start a task, which is its child."""
    add.delay(3)


@shared_task(bind=True)
def become_a_chord(self: Task) -> int:
    """Be replaced by a chord."""
    raise self.replace(chord([add.s(1), add.s(2)], total.s()))


@shared_task(bind=True, base=DjangoTask, unique=True, stale_time_limit=600)
def become(self: DjangoTask, what: str) -> int:
    """Be replaced as asked, with a row."""
    if what == "chain":
        raise self.replace(chain(add.s(1), add.s(10)))
    if what == "group":
        raise self.replace(group(add.s(1), add.s(2)))
    raise self.replace(chain(sell.si("tea"), add.s(1)))


@shared_task
def start_a_group() -> None:
    """Start a group, which is its child."""
    group(add.s(1), add.s(2)).apply_async()


@shared_task
def total(numbers: list[int]) -> int:
    """Add numbers."""
    return sum(numbers)


@shared_task
def note_failure(request: object, error: BaseException, traceback: object, path: str) -> None:
    """Write down that another task failed."""
    Path(path).write_text(repr(error))


@shared_task
def sleep(seconds: float, path: str = "") -> None:
    """Take time; make a file before, if one is named."""
    if path:
        Path(path).touch()
    time.sleep(seconds)


@shared_task(bind=True)
def call_itself(self: Task, state: str | int | None, password: str = "") -> str:
    """Set a state of its own, and go on; "ignored" when it has a password to ignore by."""
    self.update_state(state=state, meta={"why": "shelf"})
    if password == "ignore":
        raise Ignore
    return f"went on as {self.AsyncResult(self.request.id).state}"


class Unspeakable:
    """An object that no text can be made of."""

    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


def _nested(levels: int) -> list[object]:
    inner: list[object] = []
    for _level in range(levels):
        inner = [inner]
    return inner


#: Results that Celery's own backends choke on.
ODD = {
    "unspeakable": Unspeakable,
    "huge number": lambda: 10**5000,
    "huge number inside": lambda: {"number": [10**5000]},
    "deep list": lambda: _nested(100_000),
}


@shared_task
def return_odd(name: str) -> object:
    """Return what can hardly be written down."""
    return ODD[name]()


@shared_task
def sleep_until_asked(path: str) -> str:
    """Go on though the soft time limit is over, until another file is there."""
    Path(path).touch()
    try:
        time.sleep(60)
    except SoftTimeLimitExceeded:
        while not Path(f"{path}.end").exists():
            time.sleep(0.02)
        return "went on"
    return "was never asked"
