"""What stands in a customer's report, worked out in steps of which the customer is told."""

from collections import Counter
from collections.abc import Callable
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

from django.db.models import QuerySet, Sum
from django.utils import timezone
from django.utils.dateformat import format

from shop.models import Order, Report

Content = dict[str, Any]

DAYS = {Report.Period.WEEK: 7, Report.Period.MONTH: 30}
PRODUCTS_MAX = 5


def orders_of(report: Report) -> QuerySet[Order]:
    """Return the orders that a report is about."""
    orders = Order.objects.filter(customer__user=report.owner_id)
    if report.period in DAYS:
        begin = report.created_at - timedelta(days=DAYS[Report.Period(report.period)])
        orders = orders.filter(placed_at__gte=begin)
    return orders.order_by("placed_at")


def count_orders(report: Report) -> Content:
    """Count the orders, and find the first and the last day."""
    moments = list(orders_of(report).values_list("placed_at", flat=True))
    if not moments:
        return {"orders": 0}
    first, last = (_day(timezone.localdate(moment)) for moment in (moments[0], moments[-1]))
    return {"orders": len(moments), "first": first, "last": last}


def ask_archive(report: Report) -> Content:
    """Fetch what is older than the shop's database. Nobody has ever seen the archive answer."""
    if report.period == Report.Period.ARCHIVE:
        raise ConnectionError("The archive does not answer")
    return {}


def add_up_paid(report: Report) -> Content:
    """Add up what was paid."""
    return {"paid": _total(orders_of(report).filter(paid_at__isnull=False))}


def add_up_unpaid(report: Report) -> Content:
    """Add up what is still to be paid."""
    return {"unpaid": _total(orders_of(report).filter(paid_at=None))}


def sort_by_product(report: Report) -> Content:
    """Find on which products most was spent."""
    products = orders_of(report).order_by().values("product__name")
    sums = products.annotate(number=Sum("quantity"), sum=Sum("total"))
    return {
        "products": [
            {"name": row["product__name"], "number": row["number"], "sum": _euros(row["sum"])}
            for row in sums.order_by("-sum", "product__name")[:PRODUCTS_MAX]
        ]
    }


def sort_by_week(report: Report) -> Content:
    """Add up each week, from the first order to the last one; ``percent`` of the best week."""
    sums: Counter[date] = Counter()
    for placed_at, total in orders_of(report).values_list("placed_at", "total"):
        sums[_monday(timezone.localdate(placed_at))] += total
    if not sums:
        return {"weeks": []}
    first, best = min(sums), max(sums.values())
    number = (max(sums) - first).days // 7 + 1
    weeks = [first + timedelta(weeks=week) for week in range(number)]
    return {
        "weeks": [
            {
                "begin": _day(week),
                "sum": _euros(sums[week]),
                "percent": round(100 * sums[week] / best),
            }
            for week in weeks
        ]
    }


#: Each step with what the customer reads meanwhile.
STEPS: tuple[tuple[str, Callable[[Report], Content]], ...] = (
    ("Collecting your orders", count_orders),
    ("Asking the archive", ask_archive),
    ("Adding up what you have paid", add_up_paid),
    ("Looking for what is still to pay", add_up_unpaid),
    ("Sorting by product", sort_by_product),
    ("Sorting by week", sort_by_week),
)


def _total(orders: QuerySet[Order]) -> str:
    return _euros(orders.aggregate(sum=Sum("total"))["sum"])


def _euros(amount: Decimal | None) -> str:
    """Return an amount as it stands in the report: JSON has no decimals."""
    return f"{amount or 0:,.2f}"


def _day(day: date) -> str:
    return format(day, "j M Y")


def _monday(day: date) -> date:
    return day - timedelta(days=day.weekday())
