"""A command with every kind of argument that argparse knows; it prints what it was given."""

from __future__ import annotations

import argparse
import json
from datetime import date, timedelta
from decimal import Decimal
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from django.core.management import BaseCommand, CommandParser


class Size(Enum):
    SMALL = "s"
    LARGE = "l"

    @classmethod
    def named(cls, text: str) -> Size:
        return cls(text)

    def __str__(self) -> str:
        return self.value


def even(text: str) -> int:
    """Return an even number."""
    number = int(text)
    if number % 2:
        raise argparse.ArgumentTypeError(f"{number} is odd")
    return number


def hours(text: str) -> timedelta:
    return timedelta(hours=float(text))


class Command(BaseCommand):
    help = """Print what it was given.

    It takes <every> kind of argument & does nothing with it.
    """

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("shop", metavar="SHOP", help="Which one; 100% needed.")
        parser.add_argument("numbers", nargs="*", type=int, help="Any numbers.")
        parser.add_argument("--dry-run", action="store_true", help="Only say it.")
        parser.add_argument("--no-mail", action="store_false", dest="mail", help="Tell nobody.")
        parser.add_argument("--noinput", "--no-input", action="store_false", dest="interactive")
        parser.add_argument("--colour", action=argparse.BooleanOptionalAction)
        parser.add_argument("--fast", action="store_const", const="fast", dest="speed")
        parser.add_argument("--slow", action="store_const", const="slow", dest="speed")
        parser.add_argument("--depth", "-d", action="count", default=1)
        parser.add_argument("--format", choices=["csv", "json"], default="csv", help="%(choices)s")
        parser.add_argument("--size", type=Size, choices=list(Size), default=Size.LARGE)
        parser.add_argument("--weekday", type=int, choices=range(1, 8))
        parser.add_argument("--year", type=int, choices=range(1990, 2100), default=2026)
        parser.add_argument("--rate", type=float, default="1.5", help="Default: %(default)s")
        parser.add_argument("--price", type=Decimal, default=Decimal("9.90"))
        parser.add_argument("--even", type=even)
        parser.add_argument("--day", type=date.fromisoformat)
        parser.add_argument("--hex", type=partial(int, base=16), choices=[10, 11])
        parser.add_argument("--code", type=UUID)
        parser.add_argument("--shade", type=Size.named)
        parser.add_argument("--wait", type=hours, default=timedelta(hours=2))
        parser.add_argument("--into", type=Path, default=Path("out"))
        parser.add_argument("--log", type=argparse.FileType("w"), default="-")
        parser.add_argument("--active", type=bool, default=True)
        parser.add_argument("--tag", action="append", dest="tags", default=["always"])
        parser.add_argument("--pair", action="append", nargs=2, type=int, dest="pairs")
        parser.add_argument("--only", action="extend", nargs="+", choices=["a", "b", "c"])
        parser.add_argument("--box", nargs=2, type=float, metavar=("WIDTH", "HEIGHT"))
        parser.add_argument("--names", nargs="+")
        parser.add_argument("--trace", nargs="?", const="stderr", default=None)
        parser.add_argument("--seed", nargs="?", type=int, default=False)
        parser.add_argument("--absent", default=argparse.SUPPRESS)
        parser.add_argument("--hidden", help=argparse.SUPPRESS)
        parser.add_argument("--class", dest="class")
        parser.add_argument("--password", default="hunter2", help="Not %(default)s.")
        parser.add_argument("--api-token", dest="credential")
        group = parser.add_mutually_exclusive_group()
        group.add_argument("--since", type=date.fromisoformat)
        group.add_argument("--all", action="store_true")
        group = parser.add_mutually_exclusive_group(required=True)
        group.add_argument("--to-file", dest="to_file")
        group.add_argument("--to-all", action="store_true")

    def handle(self, **options: Any) -> str:
        shown = {
            name: value
            for name, value in options.items()
            if name not in ("password", "credential", "log")
        }
        return json.dumps(shown, default=str, sort_keys=True)
