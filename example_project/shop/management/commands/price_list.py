"""``manage.py price_list``: what the shop sells, and for how much. In the admin it is a task."""

import csv
from argparse import BooleanOptionalAction
from decimal import Decimal
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from shop.models import Product

COLUMNS = ("sku", "name", "price", "stock")


class Command(BaseCommand):
    """Print the products."""

    help = "Prints the price list."

    def add_arguments(self, parser: CommandParser) -> None:
        """Take which products, and how they are printed."""
        parser.add_argument("skus", nargs="*", help="Only these products; none: all.")
        parser.add_argument("--separator", choices=(",", ";", "|"), default=",")
        parser.add_argument("--columns", nargs="+", choices=COLUMNS, default=["sku", "price"])
        parser.add_argument("--up-to", type=Decimal, metavar="EUR", help="The highest price.")
        parser.add_argument("--header", action=BooleanOptionalAction, default=True)
        stock = parser.add_mutually_exclusive_group()
        stock.add_argument("--in-stock", action="store_true", help="Only what is there.")
        stock.add_argument("--sold-out", action="store_true", help="Only what is sold out.")

    def handle(
        self,
        *,
        skus: list[str],
        separator: str,
        columns: list[str],
        up_to: Decimal | None,
        header: bool,
        in_stock: bool,
        sold_out: bool,
        **options: Any,
    ) -> None:
        """Print; raises CommandError for a product that the shop does not have."""
        products = Product.objects.filter(sku__in=skus) if skus else Product.objects.all()
        unknown = set(skus).difference(products.values_list("sku", flat=True))
        if unknown:
            raise CommandError(f"The shop has no {', '.join(sorted(unknown))}.")
        if up_to is not None:
            products = products.filter(price__lte=up_to)
        if in_stock:
            products = products.filter(stock__gt=0)
        if sold_out:
            products = products.filter(stock=0)
        writer = csv.writer(self.stdout, delimiter=separator, lineterminator="\n")
        if header:
            writer.writerow(columns)
        writer.writerows(products.values_list(*columns))
