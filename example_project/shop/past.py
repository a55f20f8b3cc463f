"""A journal to look at: what was run in the three weeks before the demo was started first."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.contrib.auth.models import User
from django.contrib.contenttypes.models import ContentType

from celery_admin_runner.encoding import to_plain
from celery_admin_runner.models import Source, TaskRunOutput, TaskRunRecord
from celery_admin_runner.redaction import MASK
from celery_admin_runner.states import State
from shop.kinds import Warehouse
from shop.models import Order

RUNS = 160
PERIOD = timedelta(weeks=3)
#: The stories of ``_stories`` happened on the last day.
LAST_DAY = timedelta(days=1)
#: Of a hundred runs so many were cancelled before they started.
CANCELLED_PERCENT = 4
#: At which step the cancelled run and the lost one came to an end.
CANCELLED_AT, LOST_AT = 11, 23
STEPS = 30
WORKER = "worker@shop"

Line = tuple[str, str]


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
    #: What it prints and logs, by its stream.
    output: tuple[Line, ...] = ()
    #: How many steps it tells of.
    steps: int = 0


@dataclass(kw_only=True)
class PastRun:
    """A run, and what it printed and logged."""

    row: TaskRunRecord
    output: list[Line] = field(default_factory=list)
    #: The task id of the run that was run again by this one.
    retry_of: str = ""


def _steps(number: int, total: int) -> tuple[Line, ...]:
    """Return what ``rebuild_search_index`` prints in its first steps."""
    first = ("log", f"INFO shop.tasks: 8 products in {total} steps\n")
    return (first, *(("stdout", f"Step {n} of {total}\n") for n in range(1, number + 1)))


SYNC = PastCall(
    task="sync_stock",
    args=["vienna"],
    kwargs={"full": True},
    result="Vienna: everything taken over",
    seconds=19,
    output=(("stdout", "Asking Vienna for everything\n"),),
)
REBUILD = PastCall(
    task="rebuild_search_index",
    args=[STEPS],
    result={"steps": STEPS, "products": 8},
    seconds=31,
    output=(
        *_steps(STEPS, STEPS),
        ("log", "WARNING shop.tasks: The old index is deleted now\n"),
    ),
    steps=STEPS,
)
LINK = PastCall(
    task="check_warehouse_link",
    args=["linz"],
    result="Answered at attempt 3",
    seconds=5,
    error="ConnectionError: Linz does not answer",
    failures_percent=20,
    retries=3,
)
CALLS = (
    SYNC,
    REBUILD,
    LINK,
    PastCall(task="remind_unpaid_orders", result=61, seconds=2),
    PastCall(task="count_orders_by_weekday", result={"Monday": 32, "Friday": 30}),
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


def make_past_runs(now: datetime) -> bool:
    """Write the journal, unless there is one already; tell whether there was none."""
    if TaskRunRecord.objects.exists():
        return False
    dice = random.Random(2)
    users = {
        user.username: user for user in User.objects.filter(username__in=["admin", "operator"])
    }
    span = (PERIOD - LAST_DAY).total_seconds()
    moments = (now - LAST_DAY - timedelta(seconds=dice.uniform(0, 1) * span) for _ in range(RUNS))
    runs = [
        _run(dice, dice.choice(CALLS), dice.choice(list(users.values())), moment)
        for moment in sorted(moments)
    ]
    runs += sorted(_stories(dice, users, now), key=lambda run: run.row.created_at)
    _save(runs)
    return True


def _save(runs: list[PastRun]) -> None:
    """Write runs, the oldest first, with their output."""
    TaskRunRecord.objects.bulk_create(run.row for run in runs)
    keys = dict(TaskRunRecord.objects.values_list("task_id", "pk"))
    for run in runs:
        if run.retry_of:
            again = TaskRunRecord.objects.filter(task_id=run.row.task_id)
            again.update(retry_of=keys[run.retry_of])
    TaskRunOutput.objects.bulk_create(
        TaskRunOutput(run_id=keys[run.row.task_id], seq=_seq(run.row, number), stream=s, text=text)
        for run in runs
        for number, (s, text) in enumerate(run.output)
    )


def _seq(row: TaskRunRecord, number: int) -> int:
    """Return the number of a piece of output: microseconds, and in the order it came."""
    begin = row.started_at or row.created_at
    return int(begin.timestamp() * 1_000_000) + number


def _run(dice: random.Random, call: PastCall, user: User, created_at: datetime) -> PastRun:
    """Make a run that has ended, one way or another."""
    run = _waiting(dice, call, user, created_at)
    if dice.randrange(100) < CANCELLED_PERCENT:
        run.row.state = State.REVOKED
        run.row.finished_at = created_at + timedelta(seconds=dice.randint(1, 60))
        run.row.exception = "Cancelled before it started."
        run.row.cancel_requested_at = run.row.finished_at
        run.row.cancel_requested_by = user
        return run
    _begin(dice, run)
    if dice.randrange(100) < call.failures_percent:
        return _fail(dice, run, call)
    return _succeed(dice, run, call)


def _waiting(dice: random.Random, call: PastCall, user: User, created_at: datetime) -> PastRun:
    """Make a run that was sent."""
    day = [created_at.date() - timedelta(days=1)] if call.takes_day else []
    row = TaskRunRecord(
        task_id=str(UUID(int=dice.getrandbits(128), version=4)),
        task_name=f"shop.tasks.{call.task}",
        args=to_plain([*day, *call.args]),
        kwargs=to_plain(call.kwargs),
        queue="shop",
        run_by=user,
        run_by_name=user.username,
        source=Source.ADMIN,
        state=State.PENDING,
        created_at=created_at,
        published_at=created_at + timedelta(seconds=0.02),
    )
    return PastRun(row=row)


def _begin(dice: random.Random, run: PastRun) -> None:
    run.row.state = State.STARTED
    run.row.started_at = run.row.created_at + timedelta(seconds=dice.uniform(0.05, 2))
    run.row.heartbeat_at = run.row.started_at
    run.row.worker = WORKER


def _end(run: PastRun, state: State, seconds: float) -> None:
    run.row.state = state
    run.row.finished_at = run.row.started_at + timedelta(seconds=seconds)


def _succeed(dice: random.Random, run: PastRun, call: PastCall) -> PastRun:
    _end(run, State.SUCCESS, call.seconds * dice.uniform(0.7, 1.6))
    run.row.result = to_plain(call.result)
    run.output = list(call.output)
    if call.steps:
        _tell_progress(run, call.steps, call.steps)
    return run


def _fail(dice: random.Random, run: PastRun, call: PastCall) -> PastRun:
    _end(run, State.FAILURE, call.seconds * dice.uniform(0.7, 1.6))
    run.row.retries = call.retries
    run.row.exception = call.error
    run.row.traceback = _traceback(call)
    run.output = [("traceback", run.row.traceback)]
    return run


def _tell_progress(run: PastRun, current: int, total: int) -> None:
    run.row.progress_current = current
    run.row.progress_total = total
    run.row.progress_message = f"Step {current} of {total}"


def _stories(dice: random.Random, users: dict[str, User], now: datetime) -> Iterator[PastRun]:
    """Yield what happened on the last day."""
    admin, operator = users["admin"], users["operator"]
    yield from _run_again(dice, operator, now - timedelta(hours=9))
    yield _cancelled(dice, operator, now - timedelta(hours=5))
    yield _lost(dice, admin, now - timedelta(hours=3))
    yield from _shipped(dice, operator, now - timedelta(hours=2))
    yield from _with_children(dice, admin, now - timedelta(minutes=40))


def _run_again(dice: random.Random, user: User, created_at: datetime) -> Iterator[PastRun]:
    """Yield a run that failed, and the one that ran it again when the line was up."""
    failed = _waiting(dice, LINK, user, created_at)
    _begin(dice, failed)
    yield _fail(dice, failed, LINK)
    again = _waiting(dice, LINK, user, created_at + timedelta(minutes=20))
    again.row.source = Source.RETRY
    again.row.reason = "The provider says that the line is up"
    again.retry_of = failed.row.task_id
    _begin(dice, again)
    yield _succeed(dice, again, LINK)


def _cancelled(dice: random.Random, user: User, created_at: datetime) -> PastRun:
    """Return a run that was cancelled while it ran, and stopped itself."""
    run = _unfinished(dice, user, created_at, CANCELLED_AT)
    _end(run, State.REVOKED, CANCELLED_AT + 0.4)
    run.row.exception = f"The run {run.row.task_id} was cancelled while it ran."
    run.row.cancel_requested_at = run.row.finished_at - timedelta(seconds=0.9)
    run.row.cancel_requested_by = user
    return run


def _lost(dice: random.Random, user: User, created_at: datetime) -> PastRun:
    """Return a run whose worker went away, and that ``find_stale_taskruns`` marked."""
    run = _unfinished(dice, user, created_at, LOST_AT)
    _end(run, State.LOST, 600)
    since = run.row.heartbeat_at.isoformat(" ", "seconds")
    run.row.exception = f"Lost: nobody has heard of it since {since}."
    return run


def _unfinished(dice: random.Random, user: User, created_at: datetime, step: int) -> PastRun:
    """Return a run of ``rebuild_search_index`` that came as far as ``step``."""
    run = _waiting(dice, REBUILD, user, created_at)
    _begin(dice, run)
    run.output = list(_steps(step, STEPS))
    _tell_progress(run, step, STEPS)
    return run


def _with_children(dice: random.Random, user: User, created_at: datetime) -> Iterator[PastRun]:
    """Yield a run that started others, and these."""
    parent = _waiting(dice, PastCall(task="sync_all_warehouses"), user, created_at)
    _begin(dice, parent)
    for number, warehouse in enumerate(Warehouse, start=1):
        name = warehouse.name.title()
        call = PastCall(
            task="sync_stock",
            args=[warehouse.value],
            kwargs={"full": False},
            result=f"{name}: changes since {created_at.date()} taken over",
            output=(("stdout", f"Asking {name} for changes since {created_at.date()}\n"),),
        )
        begun_at = parent.row.started_at + timedelta(seconds=number / 100)
        child = _waiting(dice, call, user, begun_at)
        child.row.source = Source.CODE
        child.row.parent_id = child.row.root_id = parent.row.task_id
        _begin(dice, child)
        parent.output.append(("stdout", f"{name}: run {child.row.task_id}\n"))
        yield _succeed(dice, child, call)
    _end(parent, State.SUCCESS, 0.1)
    parent.row.result = len(Warehouse)
    yield parent


def _shipped(dice: random.Random, user: User, created_at: datetime) -> Iterator[PastRun]:
    """Yield the runs about an order: paid and shipped, but for the first time without stock."""
    order = Order.objects.filter(placed_at__lt=created_at, paid_at__isnull=False)[0]
    none = f"ValueError: Only 0 of {order.product} are left"
    pick = PastCall(task="pick", result=f"{order.quantity} of {order.product}", error=none)
    ship = PastCall(task="ship", result=f"Parcels on their way to {order.customer}: 1")
    failed = _about(_waiting(dice, pick, user, created_at), order)
    _begin(dice, failed)
    yield _fail(dice, failed, pick)
    for minutes, call in ((30, pick), (31, ship)):
        run = _about(_waiting(dice, call, user, created_at + timedelta(minutes=minutes)), order)
        _begin(dice, run)
        yield _succeed(dice, run, call)
    order.picked_at = order.shipped_at = run.row.finished_at
    order.save(update_fields=["picked_at", "shipped_at"])


def _about(run: PastRun, order: Order) -> PastRun:
    """Let a run be one of a task of an order's own."""
    run.row.task_name = run.row.task_name.replace("shop.tasks.", "shop.models.Order.")
    run.row.args = [order.pk]
    run.row.content_type = ContentType.objects.get_for_model(Order)
    run.row.object_id = str(order.pk)
    return run


def _traceback(call: PastCall) -> str:
    kind = call.error.partition(":")[0]
    return (
        "Traceback (most recent call last):\n"
        f'  File "shop/tasks.py", line 1, in {call.task}\n'
        f"    raise {kind}(...)\n"
        f"{call.error}\n"
    )
