"""What the demo starts with: users, something in the shop, and a past.

Everything here can be done again and again: what is there already stays as it is.
"""

import random
from datetime import datetime, timedelta
from decimal import Decimal
from uuid import UUID

from django.contrib.auth.models import Group, Permission, User

from celery_admin_runner.models import Source, TaskRunRecord
from celery_admin_runner.states import State
from shop.models import Customer, Order, Product

RUNNER = "celery_admin_runner"
VIEW_SHOP = ["shop.view_product", "shop.view_customer", "shop.view_order"]
#: What each group may do.
GROUPS = {
    "Administrators": [],
    "Operators": [
        f"{RUNNER}.view_celerytask",
        f"{RUNNER}.run_celerytask",
        f"{RUNNER}.cancel_taskrunrecord",
        f"{RUNNER}.retry_taskrunrecord",
        *VIEW_SHOP,
    ],
    "Auditors": [
        f"{RUNNER}.view_celerytask",
        f"{RUNNER}.view_taskrunrecord",
        f"{RUNNER}.export_taskrunrecord",
        "django_celery_results.view_taskresult",
    ],
}
#: The demo's users, each with its group. The password is the name.
USERS = {"admin": "Administrators", "operator": "Operators", "auditor": "Auditors"}

FIRST_NAMES = ("Anna", "Bruno", "Clara", "David", "Eva", "Felix", "Greta", "Hugo", "Ida", "Jan")
LAST_NAMES = ("Huber", "Novak", "Moser", "Berger")
PRODUCTS = (
    ("Kettle", "34.90"),
    ("Teapot", "49.00"),
    ("Cup", "8.50"),
    ("Saucer", "4.20"),
    ("Tea, green, 100 g", "7.90"),
    ("Tea, black, 100 g", "6.40"),
    ("Strainer", "5.60"),
    ("Timer", "12.00"),
)

PAST_RUNS = 160
#: What has been run: name, arguments, result, typical seconds, how often of 100 it fails.
PAST_CALLS = (
    ("sync_stock", ["vienna"], {}, "Vienna: changes taken over", 4, 5),
    ("sync_stock", ["graz"], {"full": True}, "Graz: everything taken over", 19, 10),
    ("rebuild_search_index", [], {"steps": 30}, {"steps": 30, "products": 8}, 31, 0),
    ("check_warehouse_link", ["linz"], {}, "Answered at attempt 3", 5, 15),
    ("remind_unpaid_orders", [], {}, 7, 2, 0),
    ("count_orders_by_weekday", [], {}, {"Monday": 12, "Friday": 9}, 1, 0),
    ("clear_expired_sessions", [], {}, "Expired sessions are gone", 1, 0),
    ("restock_products", [[1, 4, 5]], {"quantity": 25}, 3, 1, 3),
    ("rotate_api_key", ["bank", "********"], {}, "The key of bank was changed", 1, 0),
    ("reconcile_payments", [], {}, None, 3, 100),
)
FAILURE = (
    "ConnectionError: the other side does not answer",
    "Traceback (most recent call last):\n"
    '  File "shop/tasks.py", line 84, in check_warehouse_link\n'
    "    raise ConnectionError(...)\n"
    "ConnectionError: the other side does not answer\n",
)


def make_users() -> None:
    """Make the users and their groups; a user that exists keeps its password."""
    for name, permissions in GROUPS.items():
        group, _ = Group.objects.get_or_create(name=name)
        group.permissions.set(_permissions(permissions))
    for name, group_name in USERS.items():
        user, is_new = User.objects.get_or_create(
            username=name,
            defaults={"is_staff": True, "is_superuser": name == "admin"},
        )
        if is_new:
            user.set_password(name)
            user.save()
            user.groups.add(Group.objects.get(name=group_name))


def fill_shop(now: datetime) -> None:
    """Put products, customers and the orders of the last two months into an empty shop."""
    if Product.objects.exists():
        return
    dice = random.Random(1)
    products = Product.objects.bulk_create(
        Product(sku=f"T-{number:03}", name=name, price=Decimal(price), stock=dice.randint(0, 80))
        for number, (name, price) in enumerate(PRODUCTS, start=1)
    )
    customers = Customer.objects.bulk_create(
        Customer(name=f"{first} {last}", email=f"{first}.{last}@example.com".lower())
        for last in LAST_NAMES
        for first in FIRST_NAMES
    )
    Order.objects.bulk_create(
        _order(dice, dice.choice(customers), dice.choice(products), now) for _ in range(240)
    )


def make_past_runs(now: datetime) -> None:
    """Write a journal of the last three weeks, unless there is a journal already."""
    if TaskRunRecord.objects.exists():
        return
    dice = random.Random(2)
    users = list(User.objects.filter(username__in=["admin", "operator"]))
    moments = sorted(
        now - timedelta(minutes=dice.randint(10, 21 * 24 * 60)) for _ in range(PAST_RUNS)
    )
    TaskRunRecord.objects.bulk_create(
        _past_run(dice, dice.choice(users), moment) for moment in moments
    )


def _permissions(names: list[str]) -> list[Permission]:
    return [
        Permission.objects.get(content_type__app_label=label, codename=codename)
        for label, codename in (name.split(".") for name in names)
    ]


def _order(dice: random.Random, customer: Customer, product: Product, now: datetime) -> Order:
    quantity = dice.randint(1, 6)
    placed_at = now - timedelta(minutes=dice.randint(10, 60 * 24 * 60))
    is_paid = dice.random() < 0.7
    return Order(
        customer=customer,
        product=product,
        quantity=quantity,
        total=quantity * product.price,
        placed_at=placed_at,
        paid_at=placed_at + timedelta(minutes=5) if is_paid else None,
    )


def _past_run(dice: random.Random, user: User, created_at: datetime) -> TaskRunRecord:
    """Make a run that has ended, one way or another."""
    name, args, kwargs, result, seconds, failures = dice.choice(PAST_CALLS)
    started_at = created_at + timedelta(seconds=dice.uniform(0.05, 2))
    run = TaskRunRecord(
        task_id=str(UUID(int=dice.getrandbits(128), version=4)),
        task_name=f"shop.tasks.{name}",
        args=args,
        kwargs=kwargs,
        queue="shop",
        run_by=user,
        run_by_name=user.username,
        source=Source.ADMIN,
        created_at=created_at,
        published_at=created_at + timedelta(seconds=0.02),
    )
    if dice.random() < 0.04:
        run.state = State.REVOKED
        run.finished_at = created_at + timedelta(seconds=dice.randint(1, 60))
        return run
    run.started_at = started_at
    run.finished_at = started_at + timedelta(seconds=seconds * dice.uniform(0.7, 1.6))
    run.worker = "worker@shop"
    if dice.randrange(100) < failures:
        run.state = State.FAILURE
        run.exception, run.traceback = FAILURE
    else:
        run.state = State.SUCCESS
        run.result = result
    return run
