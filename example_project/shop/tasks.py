"""The shop's tasks: each has parameters of another kind, and does a little real work.

What travels to a worker is JSON: where a parameter is an enum the task receives its
value, for a model instance its primary key, for a dataclass a dict. Date, time,
``Decimal``, ``timedelta`` and ``UUID`` arrive as they were.
"""

import time
from collections import Counter
from datetime import date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Annotated, Any, Literal
from uuid import UUID

from celery import shared_task
from celery.utils.log import get_task_logger
from django.conf import settings
from django.db.models import Count, F, Sum
from django.utils import timezone
from pydantic import AnyUrl, Field, SecretStr

from celery_admin_runner.base import DjangoTask
from celery_admin_runner.runs import current_run
from shop.kinds import Address, Newsletter, Warehouse
from shop.models import Customer, Order, Product, Report
from shop.queues import Queue
from shop.reports import STEPS

logger = get_task_logger(__name__)

CENT = Decimal("0.01")


@shared_task
def add_vat(
    price: Annotated[Decimal, Field(gt=0, max_digits=10, decimal_places=2)],
    rate: Annotated[int, Field(ge=0, le=30)] = 20,
) -> Decimal:
    """Work out a price with value added tax.

    Args:
        price: The net price in euros.
        rate: The tax rate in percent.
    """
    return (price * (100 + rate) / 100).quantize(CENT, ROUND_HALF_UP)


@shared_task
def rebuild_search_index(
    steps: Annotated[int, Field(ge=1, le=600)] = 10, seconds_a_step: float = 1.0
) -> dict[str, int]:
    """Rebuild the search index, slowly and step by step.

    Takes ``steps`` times ``seconds_a_step`` seconds. Prints and logs what it does, tells how
    far it is, and stops between two steps when it is cancelled.

    Args:
        steps: Into how many steps the work is cut.
        seconds_a_step: How long one step takes.
    """
    run = current_run()  # None if somebody calls this as a plain function.
    products = list(Product.objects.all())
    logger.info("%s products in %s steps", len(products), steps)
    for step in range(1, steps + 1):
        if run:
            run.raise_if_cancelled()
        product = products[step % len(products)] if products else "nothing"
        print(f"Step {step} of {steps}: {product}")
        time.sleep(seconds_a_step)
        if run:
            run.progress(step, steps, f"Last was {product}")
    logger.warning("The old index is deleted now")
    return {"steps": steps, "products": len(products)}


@shared_task
def sync_stock(warehouse: Warehouse, since: date | None = None, full: bool = False) -> str:
    """Take over the stock that a warehouse reports.

    Parameters
    ----------
    warehouse
        Which warehouse is asked.
    since
        Only what has changed since that day; empty: what has changed today.
    full
        Take over everything, whatever has changed.
    """
    day = since or timezone.localdate()
    name = Warehouse(warehouse).name.title()
    extent = "everything" if full else f"changes since {day}"
    print(f"Asking {name} for {extent}")
    return f"{name}: {extent} taken over"


@shared_task
def sync_all_warehouses(full: bool = False) -> int:
    """Start a run of ``sync_stock`` for each warehouse.

    The runs that it starts are in the journal too: each says which run started it, and who
    asked for that.

    Args:
        full: Take over everything, whatever has changed.
    """
    for warehouse in Warehouse:
        run = sync_stock.delay(warehouse.value, full=full)
        print(f"{warehouse.name.title()}: run {run.id}")
    return len(Warehouse)


@shared_task(bind=True, autoretry_for=(ConnectionError,), default_retry_delays=(1, 2, 4))
def check_warehouse_link(self, warehouse: Warehouse, failures: int = 2) -> str:
    """Check the line to a warehouse, and try again when it is down.

    It is tried again up to three times: after one second, two more and four more.

    :param warehouse: Which warehouse is called.
    :param failures: How many attempts fail first; with more than 3 the run fails.
    """
    if self.request.retries < failures:
        raise ConnectionError(f"{Warehouse(warehouse).name.title()} does not answer")
    return f"Answered at attempt {self.request.retries + 1}"


class LoudTask(DjangoTask):
    """A task of which somebody is told when it fails."""

    def on_task_failure(self, task_id: str, args: Any, kwargs: Any, exc: Any, einfo: Any) -> None:
        """Tell the accountant; the example only writes it into the log."""
        logger.error("Would write to the accountant that %s failed: %s", self.name, exc)


@shared_task(base=LoudTask)
def reconcile_payments(day: date, tolerance: Decimal = Decimal("0.00")) -> None:
    """Compare the payments of a day with the bank's statement. This one always fails.

    Args:
        day: The day to look at.
        tolerance: Up to which difference, in euros, all is well.
    """
    paid = Order.objects.filter(paid_at__date=day).aggregate(sum=Sum("total"))["sum"] or 0
    statement = {"booked": paid + tolerance + CENT}
    difference = (statement["booked"] - paid).quantize(CENT)
    if difference > tolerance:
        raise ValueError(f"The statement of {day} is off by {difference} euros")


@shared_task
def close_month(
    year: Annotated[int, Field(ge=2020)], month: Annotated[int, Field(ge=1, le=12)]
) -> dict[str, Any]:
    """Close the books of a month. Asks for a confirmation and a reason.

    Args:
        year: The year, four digits.
        month: The month, from 1 to 12.
    """
    orders = Order.objects.filter(placed_at__year=year, placed_at__month=month)
    figures = orders.aggregate(orders=Count("pk"), turnover=Sum("total"))
    turnover = Decimal(figures["turnover"] or 0).quantize(CENT)
    return {"orders": figures["orders"], "turnover": str(turnover)}


@shared_task
def refund_order(order: Order, amount: Annotated[Decimal, Field(gt=0)], note: str = "") -> str:
    """Pay money back. Only for users with the permission "Can refund orders".

    Args:
        order: The order that is refunded.
        amount: How much is paid back, in euros.
        note: Stands on the customer's statement.
    """
    refunded = Order.objects.select_related("customer").get(pk=order)
    if amount > refunded.total:
        raise ValueError(f"{refunded} was only {refunded.total} euros")
    return f"{amount} euros paid back to {refunded.customer}. {note}".strip()


@shared_task
def email_customer(customer: Customer, subject: str, urgent: bool = False) -> str:
    """Write an email to one customer.

    :param customer: Who gets it; start to type the name.
    :param subject: The line above the email.
    :param urgent: Mark it as important.
    """
    recipient = Customer.objects.get(pk=customer)
    return f"To {recipient.email}: {'! ' if urgent else ''}{subject}"


@shared_task(pydantic=True)
def send_newsletter(letter: Newsletter, limit: int | None = None) -> dict[str, Any]:
    """Send a newsletter to the customers.

    Args:
        letter: What is sent, checked by its pydantic model.
        limit: Send to that many customers at most; empty: to all.
    """
    recipients = Customer.objects.order_by("pk")
    if letter.only_buyers:
        recipients = recipients.filter(orders__isnull=False).distinct()
    count = len(recipients[:limit])
    logger.info("%r sent to %s customers", letter.subject, count)
    return {"subject": letter.subject, "sent": count}


@shared_task
def export_orders(
    start: date, end: date, columns: list[str] | None = None, kind: Literal["csv", "json"] = "csv"
) -> dict[str, Any]:
    """Count the orders of some days as an export would.

    Args:
        start: The first day.
        end: The last day.
        columns: The columns, one a line; empty: all of them.
        kind: The format of the file.
    """
    if end < start:
        raise ValueError("The last day is before the first one")
    rows = Order.objects.filter(placed_at__date__range=(start, end)).count()
    return {"rows": rows, "columns": columns or "all", "kind": kind}


@shared_task
def remind_unpaid_orders(
    older_than: timedelta = timedelta(days=14), placed_before: datetime | None = None
) -> int:
    """Remind the customers of what they have not paid yet.

    Parameters
    ----------
    older_than : timedelta
        How long an order may stay unpaid.
    placed_before : datetime
        Leave out what was ordered later than this.
    """
    limit = min(placed_before or timezone.now(), timezone.now() - older_than)
    return Order.objects.filter(paid_at=None, placed_at__lt=limit).count()


@shared_task
def restock_products(
    products: list[Product],
    quantity: Annotated[int, Field(ge=1, le=1000)] = 10,
    warehouses: set[Literal["vienna", "graz", "linz"]] = frozenset({"vienna"}),
) -> int:
    """Put more of some products on the shelves.

    Args:
        products: Of which products; their ids, one a line.
        quantity: How many are added of each, in each warehouse.
        warehouses: In which warehouses.
    """
    added = quantity * len(warehouses)
    return Product.objects.filter(pk__in=products).update(stock=F("stock") + added)


@shared_task(unique=True, unique_on=["supplier"], stale_time_limit=600, queue=Queue.SLOW)
def import_prices(supplier: Literal["north", "south"], seconds: float = 20) -> str:
    """Take over the prices of a supplier. Of each supplier only one import runs at a time.

    Args:
        supplier: Whose prices.
        seconds: How long that takes.
    """
    time.sleep(seconds)
    return f"The prices of the supplier in the {supplier} are taken over"


@shared_task(
    unique=True,
    stale_time_limit=600,
    ignore_task_after_success=True,
    ignore_task_timedelta=timedelta(hours=1),
)
def send_receipt(order: Order) -> str:
    """Send the customer the receipt of an order; nobody gets it twice within an hour.

    Args:
        order: The order that was paid.
    """
    customer = Order.objects.select_related("customer").get(pk=order).customer
    return f"Receipt sent to {customer.email}"


@shared_task
def print_label(address: Address, parcel: UUID, copies: Annotated[int, Field(ge=1)] = 1) -> str:
    """Print the label of a parcel.

    Args:
        address: Where the parcel goes.
        parcel: The number that the parcel service gave it.
        copies: How many labels are printed.
    """
    to = Address(**address)
    return f"{copies} x {parcel}: {to.name}, {to.street}, {to.country}-{to.postcode} {to.city}"


@shared_task
def rotate_api_key(provider: Literal["bank", "parcels", "mail"], api_key: SecretStr) -> str:
    """Take over a new API key. Only for administrators; the key is never recorded.

    Args:
        provider: Whose key it is.
        api_key: The new key.
    """
    if len(str(api_key)) < 8:
        raise ValueError(f"This is no key of {provider}")
    return f"The key of {provider} was changed; it has {len(str(api_key))} characters"


@shared_task
def call_webhook(url: AnyUrl, payload: dict[str, Any], timeout: float = 5.0) -> dict[str, Any]:
    """Tell another system what has happened. The example only pretends to.

    Args:
        url: Where the message goes.
        payload: The message, as JSON.
        timeout: How many seconds to wait for the answer.
    """
    logger.info("Would post to %s within %s seconds: %s", url, timeout, payload)
    return {"url": url, "keys": sorted(payload)}


@shared_task
def legacy_report(name, *sections, **options):
    """Make a report, written long before type annotations: its arguments are given as JSON."""
    return {"name": name, "sections": sections, "options": options}


@shared_task
def count_orders_by_weekday() -> dict[str, int]:
    """Count the orders of each day of the week. Takes no arguments."""
    moments = Order.objects.values_list("placed_at", flat=True)
    return dict(Counter(timezone.localtime(moment).strftime("%A") for moment in moments))


@shared_task
def build_report(report: Report) -> str:
    """Build a report that a customer has asked for. Tells the customer how far it is.

    Args:
        report: Which one; it has an owner and a period, and no content yet.
    """
    run = current_run()
    wanted = Report.objects.get(pk=report)
    content: dict[str, Any] = {}
    for number, (message, work) in enumerate(STEPS):
        if run:
            run.raise_if_cancelled()
            run.progress(number, len(STEPS), message)
        # Customers of this shop have few orders; let them wait all the same.
        time.sleep(settings.REPORT_SECONDS_A_STEP)
        content |= work(wanted)
    wanted.finish(content)
    if run:
        run.progress(len(STEPS), len(STEPS), "Your report is ready")
    return f"{wanted}, for {wanted.owner}"
