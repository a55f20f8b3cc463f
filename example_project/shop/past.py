"""A journal to look at: what was run in the three weeks before the demo was started first."""

import random
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.contrib.auth.models import User

from celery_admin_runner.encoding import to_plain
from celery_admin_runner.models import Source, TaskRunRecord
from celery_admin_runner.redaction import MASK
from celery_admin_runner.states import State

RUNS = 160
PERIOD = timedelta(weeks=3)
#: Of a hundred runs so many were cancelled before they started.
CANCELLED_PERCENT = 4


@dataclass(frozen=True, kw_only=True)
class PastCall:
    """A task that was run now and then, always with the same arguments."""

    task: str
    args: list[Any] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)
    result: Any = None
    #: How long it takes, more or less.
    seconds: float = 1
    #: With what it fails, and how many times of a hundred.
    error: str = ""
    failures_percent: int = 0
    #: Attempts after the first one, when it fails in the end.
    retries: int = 0
    #: Its first argument is the day before the run.
    takes_day: bool = False


CALLS = (
    PastCall(
        task="sync_stock",
        args=["vienna"],
        kwargs={"full": True},
        result="Vienna: everything taken over",
        seconds=19,
    ),
    PastCall(
        task="rebuild_search_index",
        args=[30],
        result={"steps": 30, "products": 8},
        seconds=31,
    ),
    PastCall(
        task="check_warehouse_link",
        args=["linz"],
        result="Answered at attempt 3",
        seconds=5,
        error="ConnectionError: Linz does not answer",
        failures_percent=20,
        retries=3,
    ),
    PastCall(task="remind_unpaid_orders", result=61, seconds=2),
    PastCall(task="count_orders_by_weekday", result={"Monday": 32, "Friday": 30}),
    PastCall(task="clear_expired_sessions", result="Expired sessions are gone"),
    PastCall(task="restock_products", args=[[1, 4, 5]], kwargs={"quantity": 25}, result=3),
    PastCall(
        task="rotate_api_key",
        args=["bank", MASK],
        result="The key of bank was changed; it has 32 characters",
    ),
    PastCall(
        task="reconcile_payments",
        seconds=3,
        error="ValueError: The statement is off by 0.01 euros",
        failures_percent=100,
        takes_day=True,
    ),
)


def make_past_runs(now: datetime) -> None:
    """Write the journal, unless there is one already."""
    if TaskRunRecord.objects.exists():
        return
    dice = random.Random(2)
    users = list(User.objects.filter(username__in=["admin", "operator"]))
    moments = sorted(now - dice.uniform(0.001, 1) * PERIOD for _ in range(RUNS))
    TaskRunRecord.objects.bulk_create(
        _run(dice, dice.choice(CALLS), dice.choice(users), moment) for moment in moments
    )


def _run(dice: random.Random, call: PastCall, user: User, created_at: datetime) -> TaskRunRecord:
    """Make a run that has ended, one way or another."""
    day = [created_at.date() - timedelta(days=1)] if call.takes_day else []
    run = TaskRunRecord(
        task_id=str(UUID(int=dice.getrandbits(128), version=4)),
        task_name=f"shop.tasks.{call.task}",
        args=to_plain([*day, *call.args]),
        kwargs=to_plain(call.kwargs),
        queue="shop",
        run_by=user,
        run_by_name=user.username,
        source=Source.ADMIN,
        created_at=created_at,
        published_at=created_at + timedelta(seconds=0.02),
    )
    if dice.randrange(100) < CANCELLED_PERCENT:
        run.state = State.REVOKED
        run.finished_at = created_at + timedelta(seconds=dice.randint(1, 60))
        return run
    run.started_at = created_at + timedelta(seconds=dice.uniform(0.05, 2))
    run.finished_at = run.started_at + timedelta(seconds=call.seconds * dice.uniform(0.7, 1.6))
    run.worker = "worker@shop"
    if dice.randrange(100) < call.failures_percent:
        run.state = State.FAILURE
        run.retries = call.retries
        run.exception = call.error
        run.traceback = _traceback(call)
    else:
        run.state = State.SUCCESS
        run.result = to_plain(call.result)
    return run


def _traceback(call: PastCall) -> str:
    kind = call.error.partition(":")[0]
    return (
        "Traceback (most recent call last):\n"
        f'  File "shop/tasks.py", line 1, in {call.task}\n'
        f"    raise {kind}(...)\n"
        f"{call.error}\n"
    )
