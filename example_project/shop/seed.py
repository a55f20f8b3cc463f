"""What the demo starts with: users, and something in the shop.

Everything here can be done again and again: what is there already stays as it is.
"""

import random
from datetime import datetime, timedelta
from decimal import Decimal

from django.contrib.auth.models import Group, Permission, User

from shop.models import Customer, Order, Product

RUNNER = "celery_admin_runner"
VIEW_SHOP = [f"shop.view_{name}" for name in ("product", "customer", "order", "report")]
#: What each group may do.
GROUPS = {
    "Administrators": [],
    "Operators": [
        f"{RUNNER}.view_celerytask",
        f"{RUNNER}.run_celerytask",
        f"{RUNNER}.cancel_taskrunrecord",
        f"{RUNNER}.retry_taskrunrecord",
        *VIEW_SHOP,
        # Who may change an object may run the tasks about it.
        "shop.change_order",
        "shop.change_product",
    ],
    "Auditors": [
        f"{RUNNER}.view_celerytask",
        f"{RUNNER}.view_taskrunrecord",
        f"{RUNNER}.export_taskrunrecord",
    ],
}
#: The demo's users, each with its group. The password is the name.
USERS = {"admin": "Administrators", "operator": "Operators", "auditor": "Auditors"}

#: The customers who can log in, each with the email that the shop knows. The password is the name.
CUSTOMERS = {"customer": "anna.huber@example.com", "customer2": "bruno.huber@example.com"}

FIRST_NAMES = ("Anna", "Bruno", "Clara", "David", "Eva", "Felix", "Greta", "Hugo", "Ida", "Jan")
LAST_NAMES = ("Huber", "Novak", "Moser", "Berger")
ORDERS_OF_REGULARS = 25
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
    # These have something to report.
    regulars = [customer for customer in customers if customer.email in CUSTOMERS.values()]
    Order.objects.bulk_create(
        _order(dice, customer, dice.choice(products), now)
        for customer in regulars
        for _ in range(ORDERS_OF_REGULARS)
    )


def make_customer_logins() -> None:
    """Let some customers of the shop log in; they are no staff, and have no permission."""
    for name, email in CUSTOMERS.items():
        customer = Customer.objects.filter(email=email, user=None).first()
        if customer is None:
            continue
        first_name, last_name = customer.name.split(maxsplit=1)
        user, is_new = User.objects.get_or_create(
            username=name,
            defaults={"email": email, "first_name": first_name, "last_name": last_name},
        )
        if is_new:
            user.set_password(name)
            user.save()
        customer.user = user
        customer.save(update_fields=["user"])


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
